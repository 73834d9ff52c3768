"""Every row of the table trains on a mesh with explicit axes as it does on one device."""

import pytest

from tests import eight_devices


@pytest.mark.slow
def test_every_row_on_explicit_axes():
    done = eight_devices.run("-m", "tests.contracts.explicit_program", devices=4)
    assert "all as on one device" in done.stdout, done.stdout + done.stderr[-3000:]
