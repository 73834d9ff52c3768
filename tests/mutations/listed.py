"""All mutations, and those that no test can notice."""

from tests.mutations.controlling import CONTROLLER
from tests.mutations.deciding import DECIDING
from tests.mutations.measuring import MEASURING
from tests.mutations.moving import MOVING
from tests.mutations.mutation import Mutation
from tests.mutations.preconditioning import PRECONDITIONING

MUTATIONS = [*DECIDING, *CONTROLLER, *MEASURING, *PRECONDITIONING, *MOVING]

# Each with the reason why no run can tell.
EQUIVALENT = [
    (
        Mutation(
            "controller/transition.py", "(holds & last)", "holds", "any trigger raises the flag", ()
        ),
        "where a trigger holds before the last phase, the phase ends and the flag falls",
    ),
    (
        Mutation(
            "smoothing/slow_momentum.py",
            "steps = jnp.where(in_use, state.averaged_steps, 0)",
            "steps = state.averaged_steps",
            "a mean that is not in use moves slowly at first",
            (),
        ),
        "its share is zero then, and the first direction in use replaces it",
    ),
    (
        Mutation(
            "precondition/fismo/whitening.py",
            "good = jnp.isfinite(total) & (total > 0)",
            "good = total > 0",
            "an infinite factor is kept",
            (),
        ),
        "over its own trace a Gram matrix has a trace of one, zero or NaN",
    ),
]
