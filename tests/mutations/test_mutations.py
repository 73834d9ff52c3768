"""The list of mutations fits the package as it is."""

import ast

import pytest

from tests.mutations.listed import EQUIVALENT, MUTATIONS
from tests.mutations.mutation import ROOT

ALL = [*MUTATIONS, *(mutation for mutation, _ in EQUIVALENT)]


def test_the_list_is_long_and_names_no_mutation_twice():
    assert len(MUTATIONS) >= 70
    assert len({(m.file, m.old, m.new) for m in ALL}) == len(ALL)


@pytest.mark.parametrize("mutation", ALL, ids=lambda m: f"{m.file}: {m.wrong}")
def test_a_mutation_applies_to_its_file_and_is_another_program(mutation):
    text = mutation.path.read_text()
    assert text.count(mutation.old) == 1
    mutated = ast.parse(mutation.applied(text))
    assert ast.dump(mutated) != ast.dump(ast.parse(text))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.file}: {m.wrong}")
def test_the_tests_of_a_mutation_exist(mutation):
    assert mutation.tests
    assert all((ROOT / "tests" / test).is_file() for test in mutation.tests)
