"""On a mesh with explicit axes rows of the table train, and probes read, as on one device."""

import pytest

from tests.contracts import explicit_probes, explicit_program


@pytest.mark.slow
@pytest.mark.parametrize("program", [explicit_program, explicit_probes])
def test_explicit_axes(program):
    program.main()
