"""The list of mutations fits the package as it is."""

from tests.mutations.listed import EQUIVALENT, MUTATIONS
from tests.mutations.mutation import ROOT

ALL = [*MUTATIONS, *(mutation for mutation, _ in EQUIVALENT)]


def test_the_list_is_long_and_names_no_mutation_twice():
    assert len(MUTATIONS) >= 70
    assert len({(m.file, m.old, m.new) for m in ALL}) == len(ALL)


def test_the_text_of_every_mutation_is_in_its_file_once():
    counts = {(m.file, m.old): m.path.read_text().count(m.old) for m in ALL}
    assert not {where: count for where, count in counts.items() if count != 1}
    assert not [m for m in ALL if m.new == m.old]


def test_the_tests_of_every_mutation_exist():
    missing = []
    for test in {test for mutation in MUTATIONS for test in mutation.tests}:
        file, _, name = test.partition("::")
        path = ROOT / "tests" / file
        if not path.is_file() or f"def {name}" not in path.read_text():
            missing.append(test)
    assert not missing
