"""The table of faults names tests that exist."""

import ast
import pathlib

import pytest

from tests.faults import OUTCOMES, ROWS

TESTS = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_row_has_its_test(row):
    _, outcome, (name, _, function) = row[0], row[1], row[2].partition("::")
    assert outcome in OUTCOMES
    (file,) = TESTS.rglob(name)
    defined = [node for node in ast.parse(file.read_text()).body]
    assert function in [node.name for node in defined if isinstance(node, ast.FunctionDef)]


def test_no_fault_is_listed_twice():
    assert len({fault for fault, _, _ in ROWS}) == len(ROWS) > 20
