"""What counts as evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.tasks.task import Task
from benchmarks.terminal import console


def is_evidence(task: Task, tuned: Mapping[str, Any], *, is_whole: bool, all_seeds: bool) -> bool:
    """Whether runs at these settings count: whole ones, on all seeds, on the settings' own data."""
    same_data = tuned.get("data") == task.digest
    if not same_data:
        console.print(
            f"Settings and targets of {task.name} are of other data ({tuned.get('data')}; "
            f"here {task.digest}): tune anew for evidence.",
            style="yellow",
        )
    return is_whole and all_seeds and same_data
