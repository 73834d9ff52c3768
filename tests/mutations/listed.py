"""All mutations, and those that no test can notice."""

from tests.mutations.controlling import CONTROLLER
from tests.mutations.deciding import DECIDING
from tests.mutations.measuring import MEASURING
from tests.mutations.mutation import Mutation
from tests.mutations.preconditioning import PRECONDITIONING

MUTATIONS = [*DECIDING, *CONTROLLER, *MEASURING, *PRECONDITIONING]

# Each with the reason why no run can tell.
EQUIVALENT = [
    (
        Mutation(
            "controller/transition.py", "(holds & last)", "holds", "any trigger raises the flag", ()
        ),
        "where a trigger holds before the last phase, the phase ends and the flag falls",
    ),
]
