"""What the results say about the claim, the page and the tables of benchmarks/README.md."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from benchmarks import statistics
from benchmarks.__main__ import main
from benchmarks.report import glance, page, readme
from benchmarks.report.claims import CLAIM_TASKS, CLAIMS, compare, judge
from benchmarks.report.page import MEASUREMENTS, Results, read
from benchmarks.runs.store import RESULTS, ROOT, plain

A, B, C = (next(c for c in CLAIMS if c.key == key) for key in ("(a)", "(b)", "(c)"))
SECONDS = next(c for c in CLAIMS if c.key == "s / alone")
T = 100


def _row(steps, seconds=None):
    steps = np.asarray(steps, float)
    return {
        "hyperparameters": {"learning_rate": 0.1},
        "note": "",
        "steps": statistics.summary(steps),
        "ratio": statistics.summary(steps / T),
        "seconds": statistics.summary(steps if seconds is None else np.asarray(seconds, float)),
        "final": statistics.summary([1.0, 1.0]),
        "test": {"cross_entropy": statistics.summary([2.0, 2.0])},
        "reached": int(np.isfinite(steps).sum()),
        "runs": len(steps),
    }


def _race(task="digits_vit", ours=(40, 30), alone=(80, 60), **changes):
    """A race as it comes back from JSON; both seeds of `natural_gradient` take 80 and 60."""
    methods = {
        "natural_gradient": _row(alone),
        "natural_gradient_averaged": _row(alone),
        "natural_gradient_1_over_sqrt_t_averaged": _row(alone),
        "fgo": _row(ours),
        "fgo_averaged": _row(ours),
    }
    level = {
        "title": "a level",
        "target": 1.0,
        "references": {"raw": "natural_gradient", "averaged": "natural_gradient_averaged"},
        "methods": methods,
    }
    race = {
        "task": task,
        "metric": "validation cross-entropy",
        "ratio": "paired",
        "evidence": True,
        "num_steps": T,
        "levels": {"claim": level},
        "ladder": {
            "reference": "natural_gradient",
            "targets": [2.0, 1.0],
            "ratios": {"fgo": [0.5, None]},
        },
        "step_times": {name: {"seconds": 2.0, "ratio_to_constant": 1.0} for name in methods},
        **changes,
    }
    return json.loads(json.dumps(plain(race)))


def test_a_comparison_is_paired_by_seed_and_a_rival_that_misses_counts_as_the_horizon():
    comparison = compare(_race(ours=(40, np.inf)), A)
    assert comparison is not None
    np.testing.assert_array_equal(comparison.ratio["values"], [0.5, np.inf])
    assert comparison.ratio["median"] == np.inf
    assert comparison.own == 0.7
    comparison = compare(_race(ours=(40, 30), alone=(80, np.inf)), A)
    assert comparison is not None
    np.testing.assert_array_equal(comparison.ratio["values"], [0.5, 0.3])
    assert comparison.own == np.inf
    fewer = compare(_race(ours=(40, 30), alone=(80,)), A)  # of the first seeds alone
    assert fewer is not None
    np.testing.assert_array_equal(fewer.ratio["values"], [0.5])


def test_seconds_of_a_rival_that_misses_are_those_of_the_whole_run():
    comparison = compare(_race(ours=(40, 30), alone=(80, np.inf)), SECONDS)
    assert comparison is not None
    np.testing.assert_allclose(comparison.ratio["values"], [0.5, 30 / (2.0 * T)])


def test_an_interval_all_below_one_is_bold_and_an_easy_level_is_marked():
    assert glance.cell(compare(_race(), A)) == "**0.50**"
    assert glance.cell(compare(_race(ours=(20, 20), alone=(40, 10)), A)) == "1.25 [0.50, 2.00]°"
    assert glance.cell(compare(_race(ours=(np.inf, np.inf)), A)) == "∞"
    assert glance.cell(compare(_race(levels={}), A)) == "-"
    edge = {"natural_gradient": ["claim"], "natural_gradient_averaged": ["late"]}
    assert glance.cell(compare(_race(at_edge=edge), A)) == "**0.50**†"
    assert glance.cell(compare(_race(at_edge=edge), B)) == "**0.50**"


def _races(*ratios):
    pairs = zip(CLAIM_TASKS, ratios, strict=False)
    return {task: _race(task, (80 * r, 60 * r)) for task, r in pairs}


@pytest.mark.parametrize(
    ("claim", "ratios", "word"),
    [
        (A, [0.5] * 4, "open"),  # a fifth may still be worse
        (A, [0.5] * 4 + [0.9, 1.0], "met"),
        (A, [0.5] * 4 + [0.9, 1.1], "missed"),
        (A, [0.9] * 3, "missed"),  # the other three cannot make four
        (A, [0.9] * 2, "open"),
        (B, [0.8] * 4 + [1.02, 1.02], "met"),
        (C, [0.9] * 4, "met"),
        (C, [0.9] * 3 + [1.0] * 3, "missed"),  # a tie is not a win
        (C, [0.9] * 2 + [0.97] * 4, "missed"),  # the second bar
        (A, [], "open"),
    ],
)
def test_a_claim_is_met_when_it_can_no_longer_be_missed(claim, ratios, word):
    assert judge(_races(*ratios), claim).word == word


def test_neither_other_tasks_nor_quick_looks_count():
    races = _races(0.5)
    races["quadratic_bowl"]["evidence"] = False
    races["quadratic_bowl_04"] = _race("quadratic_bowl_04")
    assert not judge(races, A).found


def test_what_held_is_said_and_where_it_is_worse():
    races = _races(0.5, 1.1)
    first = glance.sentences(races)[0]
    held, worse = CLAIM_TASKS[:2]
    assert f"at most 0.65 asked on 4 of 6, held on 1 ({held})" in first
    assert f"worse than 1 on {worse} (1.10)" in first
    assert "4 not raced" in first
    assert "**missed**" in first
    silent = "(b) late, (c) late, horizon, two-step, two-step, averaged, Adam's cosine, s / Adam"
    assert ": **added later**; at most 0.85 asked" in next(
        said for said in glance.sentences(races) if said.startswith("(b) s ")
    )
    assert glance.sentences(races)[-1] == f"Not raced on any task yet: {silent}."


def test_a_runs_transitions_count_once():
    race = _race()
    claim = race["levels"]["claim"]
    claim["methods"]["fgo"] |= {"causes": [[1, 1], [1, 0]], "started": [[20, 10], [50, None]]}
    claim["methods"]["fgo_averaged"] |= {"causes": [[1, 1], [1, 1]], "started": [[20, 5], [50, 7]]}
    race["levels"]["late"] = claim
    (said,) = glance.transitions_sentence({"digits_vit": race})
    assert "3 of FGO's 4 runs (75%)" in said
    assert "never: 1 of digits_vit." in said
    assert said.endswith("began at steps 5 and 7 in 1, 20 and 50 in 2.")
    assert glance.transitions_sentence({"digits_vit": _race()}) == []


def test_the_legend_says_what_so_few_seeds_cover():
    races = {"digits_vit": _race(), "char_gpt": _race(ours=(1,) * 5, alone=(2,) * 5)}
    assert "50% of cases with 2 seeds, 94% of cases with 5 seeds" in glance.legend(races)
    races["digits_vit"]["evidence"] = False
    assert "2 seeds" not in glance.legend(races)
    # Of a method outside the claim's tables, which has fewer.
    races["char_gpt"]["levels"]["claim"]["methods"]["muon"] = _row((1.0, 1.0))
    assert "2 seeds" not in glance.legend(races)


def test_steps_are_shown_at_the_claims_level():
    races = {"digits_vit": _race(ours=(20, np.inf, 30)), "char_gpt": _race(evidence=False)}
    (row,) = glance.step_rows(races)
    shown = dict(zip(glance.STEP_HEADINGS, row, strict=True))
    assert shown["task"] == "digits_vit"
    assert shown["FGO"] == "30"
    assert shown["Adam"] == "-"
    races = {"digits_vit": _race(ours=(20, np.inf, np.inf))}
    (row,) = glance.step_rows(races)
    assert dict(zip(glance.STEP_HEADINGS, row, strict=True))["FGO"] == f"> {T}"


def test_final_losses_are_shown_where_there_is_a_test_split():
    race, bowl = _race(), _race(metric="excess population loss")
    for each in (race, bowl):
        each["levels"]["late"] = each["levels"]["claim"]
    (row,) = glance.final_rows({"digits_vit": race, "quadratic_bowl": bowl, "other": _race()})
    assert dict(zip(glance.STEP_HEADINGS, row, strict=True))["FGO"] == "1.000 / 2.000"


def test_a_folder_is_read_whatever_lies_in_it(tmp_path):
    (tmp_path / "digits_vit.json").write_text(json.dumps(_race()))
    row = {"trigger": "x", "steps": {"median": 3.5, "low": 3, "high": None}}
    (tmp_path / "ablation.json").write_text(json.dumps({"rows": {"one": row, "two": row}}))
    (tmp_path / "overhead.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    found = read(tmp_path)
    assert list(found.races) == ["digits_vit"]
    assert list(found.others) == ["ablation", "overhead"]
    assert list(found.unreadable) == ["broken"]
    wanted = {*CLAIM_TASKS, *MEASUREMENTS} - {"digits_vit", "ablation", "overhead"}
    assert set(found.missing) == wanted

    page.write(found, tmp_path / "out" / "page.html")
    made = (tmp_path / "out" / "page.html").read_text()
    for name in ("digits_vit", "ablation", "broken.json could not be read", *wanted):
        assert name in made
    assert "overhead.json is not as this revision writes it" in made
    assert "No picture: digits_vit.png" in made
    # What no printer knows is shown as it is.
    assert "&quot;trigger&quot;" in made


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """The page of the committed results, in a folder of its own.

    Its pictures but the first are empty files: friction_field.ipynb draws and compares the same
    ones.
    """
    output, save = tmp_path_factory.mktemp("page") / "page.html", Figure.savefig

    def save_first(figure, path, **options):
        if any(path.parent.glob("*.png")):
            path.touch()
        else:
            save(figure, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_first)
        page.write(read(RESULTS), output)
    return output


def test_the_page_of_the_committed_results_loads_nothing(committed):
    made = committed.read_text()
    assert not re.search(r"<(script|img|link|iframe)|url\(|@import|\bsrc=", made)
    assert "not as this revision" not in made
    assert "natural_gradient_1_over_sqrt_t_averaged" in made


def test_the_pictures_that_the_page_names_are_there(committed):
    named = re.findall(r'href="([^"]+)"', committed.read_text())
    races = {f"{name}.png" for name in read(RESULTS).races}
    assert {name.rpartition("/")[2] for name in named} >= races | {"field-digits_vit.png"}
    assert all((committed.parent / name).exists() for name in named)


def test_the_page_shows_the_readmes_table(committed):
    text = re.sub("<[^>]+>", "", committed.read_text())
    for row in glance.rows(read(RESULTS).races):
        line = next(line for line in text.splitlines() if line.split()[:1] == [row[0]])
        assert line.split() == " ".join(row).replace("*", "").split()


def test_what_comes_from_a_file_cannot_become_markup(tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"<b>": ["<b>", {"x": "<b>"}]}))
    page.write(read(tmp_path), tmp_path / "page.html")
    assert "<b>" not in (tmp_path / "page.html").read_text()


def test_the_committed_readme_is_what_the_committed_results_give():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert readme.rewritten(text, read(RESULTS)) == text, (
        "run `python -m benchmarks report --readme benchmarks/README.md` and commit it"
    )


def test_only_what_stands_between_the_markers_is_written():
    empty = Results(RESULTS)
    text = f"before\n{readme.BEGIN}\nwritten before\n{readme.END}\nafter\n"
    new = readme.rewritten(text, empty)
    assert new.startswith(f"before\n{readme.BEGIN}\n| task |")
    assert new.endswith(f"{readme.END}\nafter\n")
    assert "written before" not in new
    assert readme.rewritten(new, empty) == new


@pytest.mark.parametrize(
    "text", ["", readme.BEGIN, f"{readme.END}{readme.BEGIN}", 2 * f"{readme.BEGIN}{readme.END}"]
)
def test_a_readme_without_its_markers_is_not_written(text):
    with pytest.raises(ValueError, match="write each once"):
        readme.rewritten(text, Results(RESULTS))


def test_the_command_says_what_is_missing_and_writes_the_readme_where_it_is_asked(tmp_path):
    (tmp_path / "digits_vit.json").write_text(json.dumps(_race()))
    target = tmp_path / "README.md"
    target.write_text(f"{readme.BEGIN}{readme.END}")
    output = tmp_path / "out" / "page.html"
    command = ["report", "--results", str(tmp_path), "--output", str(output)]
    before = (ROOT / "benchmarks" / "README.md").read_bytes()
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "Not there yet: quadratic_bowl" in result.output
    assert "digits_vit" in output.read_text()
    assert target.read_text() == f"{readme.BEGIN}{readme.END}"
    result = CliRunner().invoke(main, [*command, "--readme", str(target)])
    assert result.exit_code == 0, result.output
    assert "| digits_vit | 2 | **0.50** |" in target.read_text()
    assert (ROOT / "benchmarks" / "README.md").read_bytes() == before
