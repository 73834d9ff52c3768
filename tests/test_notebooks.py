"""Every notebook says today what it said when it was committed, and is fit to be read."""

import copy
import re

import nbformat
import numpy as np
import pytest

from notebooks import leads
from tests import notebooks


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture(scope="module")
def shared():
    with notebooks.kernel() as run:
        yield run


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_says_the_same(path, shared):
    found = notebooks.differences(read(path), shared(path))
    assert not found, f"run `python -m tests.notebooks {path.stem}` if this is better: {found}"


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_has_its_outputs_and_nothing_of_a_machine(path):
    assert path.stat().st_size < 300_000
    notebook = read(path)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    assert any(drawn for _, _, drawn in notebooks.outputs(notebook))
    assert all(output.get("name") != "stderr" for cell in codes for output in cell.outputs)
    text = path.read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (path.parent / target).exists(), target
    folders = [f"/{name}/" for name in ("tmp", "home", "root", "work", "Users")]
    for word in (*folders, "Warning", "Traceback"):
        assert word not in text, word


def test_the_comparison_sees_what_a_reader_would():
    (path,) = [path for path in notebooks.NOTEBOOKS if path.stem == "quickstart"]
    old = read(path)
    assert not notebooks.differences(old, old)
    (at,) = [i for i, (tags, t, _) in enumerate(notebooks.outputs(old)) if "averaged weights" in t]
    code = [cell for cell in old.cells if cell.cell_type == "code"]
    assert "accuracy" in code[at].source
    for was, now in (("right", "wrong"), ("weights: 9", "weights: 6")):
        new = copy.deepcopy(old)
        cell = [cell for cell in new.cells if cell.cell_type == "code"][at]
        assert was in cell.outputs[0].text
        cell.outputs[0].text = cell.outputs[0].text.replace(was, now)
        assert len(notebooks.differences(old, new)) == 1
        cell.outputs = []
        assert notebooks.differences(old, new)
    (run,) = [cell for cell in code if "plotting.run" in cell.source]
    (others,) = [path for path in notebooks.NOTEBOOKS if path.stem == "spectrum"]
    new = copy.deepcopy(old)
    (cell,) = [cell for cell in new.cells if cell.source == run.source]
    (other, *_) = [drawn[0] for _, _, drawn in notebooks.outputs(read(others)) if drawn]
    cell.outputs[0].data["image/png"] = other
    assert notebooks.differences(old, new) == ["another picture"]


def test_a_lead_is_counted_to_the_jump_and_a_false_alarm_where_there_is_none():
    never = {"early": None, "always": 50.0}
    runs = {
        "addition": [(400.0, {**never, "early": 300.0}), (500.0, {**never, "early": 450.0})],
        "random labels": [(None, never), (None, {**never, "early": 90.0})],
    }
    rows = leads.table(runs)["rows"]
    assert rows["early"]["fired"] == "2/2"
    assert rows["early"]["lead"] == {"median": 75.0, "low": 50.0, "high": 100.0}
    assert rows["early"]["false alarms"] == "1/2"
    assert rows["always"]["lead"] == {"median": 400.0, "low": 350.0, "high": 450.0}
    assert rows["always"]["false alarms"] == "2/2"


def test_the_onset_of_the_commutator_is_twenty_and_ten_times_its_start():
    step = 10.0 * np.arange(1, 13)
    held = np.array([np.nan, 1, 1, 4, 4, 3, 3, 25, 25, 31, 31, 90])  # measured at every second one
    run = {"step": step, "commutator_defect": held}
    assert leads.onset(run) == 100.0  # ten times the median of 1, 4 and 3
    assert leads.onset({**run, "commutator_defect": held / 2}) == 120.0  # above 20 as well
    assert leads.onset({**run, "commutator_defect": held / 9}) is None
    assert leads.first(step, held > 2) == 50.0
    assert leads.first(step, np.arange(12) == 5) is None  # not at two in a row
