"""The two READMEs: their programs run, figures are the committed ones, links lead somewhere."""

import contextlib
import importlib.util
import io
import json
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
    "Adam with a cosine": "Adam's cosine",
    "base at a constant rate, last weights": "(a)",
    "base at a constant rate, averaged": "(b)",
    "base at 1/sqrt(step)": "(c)",
    "base with the best schedule": "horizon",
    "Adam at a constant rate": "s / Adam",
}
# A row of the back page's table of learning rates, by its first words, and the methods it names.
RATES = {
    "optax.adam |": ["constant"],
    "scale_by_kronecker_fisher |": ["natural_gradient"],
    "its Shampoo form": ["shampoo_power"],
    "scale_by_fismo |": ["fismo"],
    "optax.contrib.muon |": ["muon"],
    "scale_by_diagonal_fisher |": ["diagonal_fisher"],
    "scale_by_kfac |": ["kfac"],
    "scale_by_low_rank_fisher |": ["low_rank_fisher"],
    "scale_by_kronecker_fisher, then": ["natural_gradient_orthogonalised"],
    "scale_by_mousse |": ["mousse"],
    "scale_by_layer_noise around Muon": ["muon_layer_noise", "natural_gradient_layer_noise"],
    "scale_by_primal_averaging (0.9967": ["natural_gradient_primal_averaging"],
}


def _run(page, names):
    """What the page's programs print; a reader runs one after the other."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for block in blocks:
            exec(compile(block, str(page), "exec"), names)
    plt.close("all")
    return said.getvalue()


@pytest.fixture(scope="module")
def front():
    """All names of the front page's programs, and what they print."""
    names = {}
    return names, _run(FRONT, names)


@pytest.mark.parametrize(
    "path", [FRONT, pytest.param(BACK, marks=pytest.mark.slow)], ids=["front", "back"]
)
def test_every_program_of_a_page_runs(path, front):
    names, said = front
    if path is BACK:
        _run(BACK, names)  # it goes on where the front ends
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
        medians = [number(c.ratio["median"], "{:.2f}", "∞") if c else "-" for c in compared]
        assert [cell.strip() for cell in line.split("|")[2:-1]] == medians


def test_the_back_pages_learning_rates_are_the_committed_ones():
    tasks = json.loads((RESULTS / "transforms.json").read_text())["tasks"]
    table = BACK.read_text().partition("Learning rates that tuning chose")[2]
    lines = table.partition("\n\n- ")[0].splitlines()[4:]
    for line, (words, methods) in zip(lines, RATES.items(), strict=True):
        assert line.startswith(f"| {words}")
        for task, cell in zip(tasks, line.split("|")[2:4], strict=True):
            rows = [tasks[task]["rows"][method] for method in methods]
            rates = [row["hyperparameters"]["learning_rate"] for row in rows]
            said = [float(rate) for rate in re.findall(r"[0-9.]+", cell)]
            assert said == list(dict.fromkeys(rates))


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
