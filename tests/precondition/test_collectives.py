"""Where devices have whole blocks, nothing but scalars and sketches travels between them."""

import pytest

from tests.precondition.collectives_program import PARTS


@pytest.mark.parametrize(
    "part",
    [pytest.param(part, marks=pytest.mark.slow) if part == "places" else part for part in PARTS],
)
def test_only_scalars_and_sketches_travel(part):
    PARTS[part]()
