"""Adam whose rate is halved where the training loss stops improving."""

from __future__ import annotations

import optax

from benchmarks.methods import schedules
from benchmarks.methods.method import Method, descend

# Constants in evaluation intervals: neither knows T. A window averages the training loss over
# as many steps as four evaluations are apart; the rate is halved after five windows in which
# no mean was lower than the lowest before by a thousandth.
WINDOW, PATIENCE, FACTOR, MARGIN = 4, 5, 0.5, 1e-3

# optax asks for a mean below (1 - rtol) * best, which a negative best raises above itself:
# every window would then count as an improvement and the rate would never fall.
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
            factor=FACTOR,
            patience=PATIENCE,
            rtol=MARGIN,
            accumulation_size=WINDOW * task.eval_every,
        ),
    )


METHODS = (Method("reduce_on_plateau", _reduce_on_plateau),)
