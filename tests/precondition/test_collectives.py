"""Where shards are whole blocks, nothing but scalars and sketches travels between devices."""

import pytest

from tests import eight_devices


@pytest.mark.parametrize(
    "optimizer", ["direction", "phases", pytest.param("places", marks=pytest.mark.slow)]
)
def test_only_scalars_and_sketches_travel(optimizer):
    done = eight_devices.run("-m", "tests.precondition.collectives_program", optimizer)
    assert "nothing travels" in done.stdout, done.stdout + done.stderr[-3000:]
