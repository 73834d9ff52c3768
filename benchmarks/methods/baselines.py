"""Adam and momentum: with schedules, halved on a plateau, and without a schedule."""

from typing import Any

import optax

from benchmarks.methods import schedules
from benchmarks.methods.method import KNOWS_T, Method, alone, descend, pair


def _adam(schedule_of=schedules.constant):
    return alone(lambda task: optax.scale_by_adam(), schedule_of)


# Of `reduce_on_plateau`, in evaluation intervals, so it does not know T. A window averages the
# training loss over as many steps as four evaluations are apart. The rate is halved after five
# windows in which no mean was lower than the lowest before by a thousandth.
WINDOW, PATIENCE, FACTOR, MARGIN = 4, 5, 0.5, 1e-3

# optax asks for a mean below (1 - rtol) * best. That lies above a negative best, so every window
# would count as an improvement and the rate would never fall.
NOT_NEGATIVE = ("softmax_cross_entropy", "sigmoid_cross_entropy", "squared_error")


def _reduce_on_plateau(task, hp):
    if task.loss_name not in NOT_NEGATIVE:
        raise ValueError(
            f"{task.name} has the loss {task.loss_name!r}, of which it is not known that it is "
            "never negative; optax's reduce_on_plateau never fires on a negative one. Leave the "
            "method out there, or add the loss to NOT_NEGATIVE."
        )
    return optax.chain(
        descend(optax.scale_by_adam(), task, schedules.constant(task, hp)),
        optax.contrib.reduce_on_plateau(
            factor=FACTOR, patience=PATIENCE, rtol=MARGIN,
            accumulation_size=WINDOW * task.eval_every,
        ),
    )  # fmt: skip


# Schedule-free AdamW (Defazio et al., 2024) takes gradients between the fast weights and their
# average, and is evaluated at the average: its raw weights here.
_B1 = 0.9  # between the two, as optax has it


def _schedule_free(task, hp):
    # A schedule instead of optax's own warm-up, whose first rate is zero: everybody's is not.
    # Its type says a number only.
    schedule: Any = schedules.constant(task, hp)
    return optax.contrib.schedule_free_adamw(schedule, b1=_B1, weight_decay=task.weight_decay)


METHODS = (
    *pair("constant", build=_adam(), transform="optax.adam"),
    Method("two_step", _adam(schedules.two_step), note=KNOWS_T),
    Method("cosine", _adam(schedules.cosine), note=KNOWS_T),
    Method("wsd_linear", _adam(schedules.wsd_linear), note=KNOWS_T),
    Method("wsd_1_minus_sqrt", _adam(schedules.wsd_1_minus_sqrt), note=KNOWS_T),
    *pair("1_over_sqrt_t", build=_adam(schedules.one_over_sqrt_t)),
    Method("sgd_momentum", alone(lambda task: optax.trace(0.9)), only="quadratic_bowl"),
    Method("reduce_on_plateau", _reduce_on_plateau),
    Method("schedule_free", _schedule_free, note="its own average",
           eval_params=optax.contrib.schedule_free_eval_params),
)  # fmt: skip
