"""What the pictures of a race show, and that one reads them at 800 pixels."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

from benchmarks.methods import METHODS
from benchmarks.race import picture
from benchmarks.race.hold import Entry
from benchmarks.runs.store import RESULTS
from benchmarks.runs.training import Curves
from benchmarks.tasks import get_task


@pytest.fixture
def kept(monkeypatch):
    """The figures, in place of their files."""
    figures = []
    monkeypatch.setattr(picture, "_save", lambda figure, path: figures.append(figure))
    yield figures
    plt.close("all")


def test_the_committed_figures_are_what_is_drawn(kept, tmp_path):
    race = json.loads((RESULTS / "digits_vit.json").read_text())
    picture.draw(race, tmp_path / "digits_vit.png")
    (figure,) = kept
    dots, rungs = figure.axes
    for name, (_, ink, mark) in picture.SHOWN.items():
        rows = [level["methods"].get(name) for level in race["levels"].values()]
        medians = {row["steps"]["median"] for row in rows if row} - {None}
        lines = [
            line for line in dots.lines if (line.get_color(), line.get_marker()) == (ink, mark)
        ]
        drawn = [float(line.get_xdata()[0]) for line in lines]
        assert {x for x in drawn if np.isfinite(x)} == medians
    # Both readings of a target are one row, and the hardest is the lowest.
    targets = {level["target"] for level in race["levels"].values()}
    ticks = [float(tick.get_text().split()[-1]) for tick in dots.get_yticklabels()]
    np.testing.assert_allclose(ticks, sorted(targets), rtol=0.01)
    # Adam's, and both readings of FGO's; those of the reference are one.
    assert sum(len(line.get_xdata()) == len(race["ladder"]["targets"]) for line in rungs.lines) == 3
    width, _ = figure.get_size_inches()
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert all(text.get_fontsize() >= 9 for text in texts)
    assert width == 8  # inches: 800 pixels
    labels = [dots.get_xlabel(), dots.get_ylabel(), rungs.get_xlabel(), rungs.get_ylabel()]
    assert all("[" in label or "steps" in label for label in labels)


@pytest.mark.parametrize("name", ["digits_autoencoder", "modular_addition", "quadratic_bowl_01"])
def test_levels_differ_names_have_marks_and_ratios_three_numbers(kept, tmp_path, name):
    picture.draw(json.loads((RESULTS / f"{name}.json").read_text()), tmp_path / "race.png")
    (figure,) = kept
    figure.canvas.draw()
    dots, rungs = figure.axes
    ticks = [tick.get_text() for tick in dots.get_yticklabels()]
    assert len({tick.split()[-1] for tick in ticks}) == len(ticks)
    low, high = sorted(rungs.get_xlim())
    inside = [tick for tick in rungs.get_xticks() if low <= tick <= high]
    assert len(inside) >= 3
    counts = [text for text in dots.texts if " of " in text.get_text()]
    marks = {(text.get_text()[0], text.get_color()) for text in counts}
    (legend,) = figure.legends
    named = {label.get_text() for label in legend.get_texts()}
    assert named == {
        label for label, ink, mark in picture.SHOWN.values() if (picture.GLYPHS[mark], ink) in marks
    }


def test_a_run_is_drawn_with_its_phases_and_an_agreement_below_zero(kept, tmp_path):
    steps = np.arange(10, 210, 10)
    phases = {"acquisition": (0, 4), "reask": (50, 1), "execution": (90, 1)}
    told = {
        "total_step": steps,
        "phase": 1.0 * (steps >= 50) + (steps >= 90),
        "learning_rate": np.full(20, 0.1),
        "agreement": np.linspace(0.5, -0.1, 20),
    }
    for name, (start, cause) in phases.items():
        begun = steps >= start
        told |= {f"started/{name}": np.where(begun, start, -1), f"cause/{name}": cause * begun}
    curve = np.linspace(2.0, 1.0, 20)
    run = Curves(steps, curve, curve / 2, curve, told, {}, 0.0)
    picture.draw_run(
        Entry(get_task("quadratic_bowl"), METHODS["fgo"], {}, {3: run}), tmp_path / "run.png"
    )
    (figure,) = kept
    assert figure.get_suptitle() == "One run of fgo on quadratic_bowl (seed 3)"
    axes = {axis.get_ylabel().partition("\n")[0]: axis for axis in figure.axes}
    low, high = axes["agreement"].get_ylim()
    assert low < -0.1 < 0.5 < high
    words = " ".join(text.get_text() for text in figure.findobj(Text))
    assert "reask from 50: its trigger held" in words
    assert "execution from 90: its trigger held" in words
