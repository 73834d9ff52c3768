"""On a mesh with explicit axes rows of the table train, and probes read, as on one device."""

import pytest

from tests import eight_devices


@pytest.mark.slow
@pytest.mark.parametrize("program", ["explicit_program", "explicit_probes"])
def test_explicit_axes(program):
    done = eight_devices.run("-m", f"tests.contracts.{program}", devices=4)
    assert "all as on one device" in done.stdout, done.stdout + done.stderr[-3000:]
