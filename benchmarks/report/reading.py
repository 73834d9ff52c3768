"""The results folder: races, other measurements, and what is not there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

# The tasks that the claim is about; the other bowls are the same task with other noise.
CLAIM_TASKS = (
    "quadratic_bowl", "digits_vit", "char_gpt", "digits_autoencoder", "mnist5k_vit",
    "modular_addition",
)  # fmt: skip
MEASUREMENTS = (
    "transforms", "sketch", "overhead", "stream", "calibration", "triggers", "ablation",
)  # fmt: skip


class Results(NamedTuple):
    """What a folder holds."""

    folder: Path  # where the pictures of the races lie too
    races: Mapping[str, Any] = {}  # by task, as `benchmarks.race.outcome` gave them
    others: Mapping[str, Any] = {}  # every other JSON, by the name of its file
    unreadable: Mapping[str, str] = {}  # what is no JSON, and why
    missing: tuple[str, ...] = ()  # what a full set of results would hold besides


def read(folder: Path) -> Results:
    """Reads every JSON of `folder`, but not of folders inside it."""
    races, others, unreadable = {}, {}, {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            unreadable[path.stem] = str(error)
            continue
        is_race = isinstance(content, dict) and {"task", "levels", "step_times"} <= set(content)
        (races if is_race else others)[path.stem] = content
    # The claim's tasks first, in their order.
    names = [*(name for name in CLAIM_TASKS if name in races), *races]
    wanted = (*CLAIM_TASKS, *MEASUREMENTS)
    missing = tuple(name for name in wanted if name not in {*races, *others})
    return Results(folder, {name: races[name] for name in names}, others, unreadable, missing)


def evidence(races: Mapping[str, Any]) -> dict[str, Any]:
    """The races that are no quick looks."""
    return {name: race for name, race in races.items() if race["evidence"]}
