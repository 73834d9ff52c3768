"""All mutations, and those that no test can notice."""

from tests.mutations.deciding import DECIDING
from tests.mutations.measuring import MEASURING
from tests.mutations.preconditioning import PRECONDITIONING

MUTATIONS = [*DECIDING, *MEASURING, *PRECONDITIONING]

EQUIVALENT = []
