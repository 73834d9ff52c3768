"""The table of faults in benchmarks/README.md names tests that exist."""

import ast
import pathlib
import re

import pytest

TESTS = pathlib.Path(__file__).parents[1]
PAGE = (TESTS.parent / "benchmarks" / "README.md").read_text()
OUTCOMES = ("survived", "skipped", "flagged", "refused")
# (fault, what happens, file, test)
ROWS = re.findall(r"^\| (.*?) \| (\w+) \| `(\w+\.py)::(\w+)` \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_row_has_its_test(row):
    _, outcome, name, function = row
    assert outcome in OUTCOMES
    (file,) = TESTS.rglob(name)
    defined = ast.parse(file.read_text()).body
    assert function in [node.name for node in defined if isinstance(node, ast.FunctionDef)]


def test_no_fault_is_listed_twice():
    assert len({fault for fault, *_ in ROWS}) == len(ROWS) > 20
