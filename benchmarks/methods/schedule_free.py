"""Schedule-free AdamW (Defazio et al., 2024): an average and a rate that need no horizon.

Gradients are taken between the fast weights and their average, and the average is what the
method is evaluated at: here its raw weights are `schedule_free_eval_params`.
"""

from __future__ import annotations

from typing import Any

import optax

from benchmarks.methods import schedules
from benchmarks.methods.method import Method

_B1 = 0.9  # between the two, as optax has it


def _schedule_free(task, hp):
    # A schedule instead of optax's own warm-up, whose first rate is zero: everybody's is not.
    # Its type says a number only.
    schedule: Any = schedules.constant(task, hp)
    return optax.contrib.schedule_free_adamw(schedule, b1=_B1, weight_decay=task.weight_decay)


METHODS = (
    Method(
        "schedule_free",
        _schedule_free,
        eval_params=optax.contrib.schedule_free_eval_params,
        note="its own average",
    ),
)
