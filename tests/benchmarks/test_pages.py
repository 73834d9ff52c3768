"""The two READMEs: their programs run, figures are the committed ones, links lead somewhere."""

import importlib.util
import re
import tomllib

import matplotlib.pyplot as plt
import pytest

from benchmarks.__main__ import main
from benchmarks.report.claims import CLAIM_TASKS, CLAIMS, compare
from benchmarks.report.page import read
from benchmarks.report.text import number
from benchmarks.runs.store import RESULTS, ROOT

FRONT, BACK = ROOT / "README.md", ROOT / "benchmarks" / "README.md"
# The front page's row, by its first words, and the claim that it shows.
ROWS = {
    "base at a constant rate, last weights": "(a)",
    "base at a constant rate, averaged": "(b)",
    "base at 1/sqrt(step)": "(c)",
    "base with its best schedule": "horizon",
    "Adam at a constant rate": "s / Adam",
}


@pytest.mark.parametrize(
    "path", [FRONT, pytest.param(BACK, marks=pytest.mark.slow)], ids=["front", "back"]
)
def test_every_program_of_a_page_runs(path, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, str(path), "exec"), names)  # one reader runs them one after the other
    plt.close("all")
    said = capsys.readouterr().out
    if path == FRONT:
        assert "In execution since step" in said
        assert float(re.findall(r"accuracy ([0-9.]+)", said)[0]) > 0.9


def commands(path):
    """(module, its arguments) of every `python -m` of a page."""
    found = re.findall(r"python -m ([\w.]+)((?: [^\s`]+)*)", path.read_text())
    return [(module, arguments.split()) for module, arguments in found]


@pytest.mark.parametrize("path", [FRONT, BACK], ids=["front", "back"])
def test_every_command_of_a_page_is_there(path):
    assert commands(path)
    for module, arguments in commands(path):
        assert importlib.util.find_spec(module), module
        if module == "benchmarks":
            command, *rest = arguments
            known = {option for p in main.commands[command].params for option in p.opts}
            assert {word for word in rest if word.startswith("--")} <= known, arguments


def test_the_table_of_commands_and_the_extras_are_real():
    table = BACK.read_text().partition("## Commands")[2].partition("\n\nFor a first look")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    names = re.findall(r"`([a-z]+)", " ".join(cells))
    assert set(names) | {"list"} == set(main.commands)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extra,) = re.findall(r'-e "\.\[(\w+)\]"', FRONT.read_text())
    assert extra in extras["optional-dependencies"]


def test_the_front_page_is_short_and_gives_the_commands():
    lines = FRONT.read_text().splitlines()
    assert len(lines) <= 120
    assert '.venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow"' in lines
    assert any(line.endswith("-m benchmarks demo") for line in lines)


def test_the_front_pages_figures_are_the_committed_ones():
    races, lines = read(RESULTS).races, FRONT.read_text().splitlines()
    for words, key in ROWS.items():
        (claim,) = [claim for claim in CLAIMS if claim.key == key]
        (line,) = [line for line in lines if line.startswith(f"| {words}")]
        compared = [compare(races[task], claim) for task in CLAIM_TASKS]
        medians = [number(c.ratio["median"], "{:.2f}", "∞") for c in compared if c is not None]
        assert [cell.strip() for cell in line.split("|")[2:-1]] == medians


@pytest.mark.parametrize("path", [FRONT, BACK], ids=["front", "back"])
def test_what_a_page_links_to_is_there(path):
    targets = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    local = [target for target in targets if not target.startswith("http")]
    assert local
    assert all((path.parent / target).exists() for target in local)


@pytest.mark.parametrize("path", [FRONT, BACK], ids=["front", "back"])
def test_every_heading_that_a_page_links_to_is_there(path):
    for target, anchor in re.findall(r"\]\(((?!http)[^)#]*)#([^)]+)\)", path.read_text()):
        page = (path.parent / target).read_text() if target else path.read_text()
        headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
        # As GitHub makes them: lower case, letters, digits and hyphens alone.
        slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in slugs, (target, anchor)


def test_the_first_picture_is_small():
    assert (RESULTS / "demo.png").stat().st_size < 100_000
