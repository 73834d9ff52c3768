"""The demo at a tiny scale: what a stranger is told, with a screen and without one."""

import dataclasses
import io
import json
import re

import flax.linen as nn
import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks import demo
from benchmarks.__main__ import main
from benchmarks.race.tuning import RESULTS
from benchmarks.tasks import canvas, get_task
from benchmarks.tasks.supervised import supervised

STEPS = 200


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10, use_bias=False)(images.reshape(images.shape[0], -1))


@pytest.fixture
def tiny(monkeypatch, cheap_refinement):
    fields = supervised(canvas.splits, Tiny(), "image", (1, canvas.CANVAS, canvas.CANVAS))
    task = dataclasses.replace(get_task("digits_vit"), **fields)
    monkeypatch.setattr(demo, "get_task", lambda name: task)


def test_the_demo_tells_what_happens_line_by_line_and_on_a_screen(tiny, tmp_path, monkeypatch):
    path = tmp_path / "folder" / "demo.png"
    command = ["demo", "--steps", str(STEPS), "--output", str(path.with_suffix(""))]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    tuned = json.loads((RESULTS / "digits_vit.json").read_text())["methods"]
    for name, words_of in demo.NAMES.items():
        rate = tuned[name]["chosen"][demo.LEVEL]["learning_rate"]
        assert f"{words_of} {rate:g}" in words
    assert "no evidence" in words
    # The first measurement is a phase's beginning, with what the run waits for.
    assert re.search(r"phase acquisition, training loss [0-9.]+, validation", words)
    assert "In acquisition since step 0" in words
    rows = [line for line in result.output.splitlines() if re.search(r"│ (last|averaged) ", line)]
    assert len(rows) == 4
    # Adam ends at the target, so it is there at the latest at the end.
    assert 0 < int(rows[0].split("│")[4]) <= STEPS
    assert f"Wrote {path}" in result.output  # with the suffix of a picture
    assert path.stat().st_size > 10_000

    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(demo, "console", screen)
    monkeypatch.setattr(demo, "draw", lambda *args: None)  # as before
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    shown = screen.file.getvalue()
    assert f"step {STEPS} of {STEPS}" in shown
    assert "Execution began at step" in shown
