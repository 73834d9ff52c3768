"""Where devices have whole blocks, nothing but scalars and sketches travels between them."""

import pytest

from tests import eight_devices


@pytest.mark.parametrize(
    "part",
    [
        "direction",
        "phases",
        "dealt out",
        pytest.param("places", marks=pytest.mark.slow),
    ],
)
def test_only_scalars_and_sketches_travel(part):
    done = eight_devices.run("-m", "tests.precondition.collectives_program", part)
    assert "nothing travels" in done.stdout, done.stdout + done.stderr[-3000:]
