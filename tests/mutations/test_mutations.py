"""The list of mutations fits the package as it is."""

import ast

from tests.mutations.listed import EQUIVALENT, MUTATIONS
from tests.mutations.mutation import ROOT

ALL = [*MUTATIONS, *(mutation for mutation, _ in EQUIVALENT)]


def test_the_list_is_long_and_names_no_mutation_twice():
    assert len(MUTATIONS) >= 70
    assert len({(m.file, m.old, m.new) for m in ALL}) == len(ALL)


def test_every_mutation_applies_to_its_file_and_is_another_program():
    wrong = []
    for mutation in ALL:
        text = mutation.path.read_text()
        if text.count(mutation.old) != 1 or mutation.new == mutation.old:
            wrong.append((mutation.file, mutation.old, text.count(mutation.old)))
        ast.parse(text.replace(mutation.old, mutation.new))
    assert not wrong


def test_the_tests_of_every_mutation_exist():
    missing = []
    for test in {test for mutation in MUTATIONS for test in mutation.tests}:
        file, _, name = test.partition("::")
        path = ROOT / "tests" / file
        if not path.is_file() or f"def {name}" not in path.read_text():
            missing.append(test)
    assert not missing
