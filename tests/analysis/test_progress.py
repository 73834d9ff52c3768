"""What an analysis says before and while it works."""

import io
import sys

import jax.numpy as jnp
import pytest

import fgo_jax as fgo
from fgo_jax.analysis import progress

VALUES = jnp.linspace(0.1, 2.0, 12)
PARAMS = {"a": jnp.zeros(5), "b": jnp.zeros(7)}


def operator(params, batch):
    return lambda v: {"a": VALUES[:5] * v["a"], "b": VALUES[5:] * v["b"]}


def run(**kwargs):
    groups = fgo.probes.layer_groups(PARAMS)
    return fgo.spectrum(
        operator, PARAMS, 0, num_steps=6, num_starts=2, top=2, groups=groups, **kwargs
    )


def test_it_says_how_long_and_how_far(capsys):
    run(progress=True)
    said = capsys.readouterr()
    assert "54 products in about a second, and the compiling" in said.err  # 3 parts of 3 runs of 6
    shares = [line.split()[1] for line in said.err.splitlines()[1:]]
    assert len(shares) == 4
    assert shares[-1] == "100%"
    assert not said.out


def test_a_short_analysis_is_quiet(capsys):
    run()
    run(progress=False)
    said = capsys.readouterr()
    assert not said.err + said.out


def test_a_long_one_speaks_unless_told_not_to(capsys):
    with progress.shown(1000, 1.0, None) as advance:
        advance(1000)
    assert "1000 products in about 17 min" in capsys.readouterr().err
    with progress.shown(1000, 1.0, False) as advance:
        advance(1000)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "a second"), (8.4, "8 s"), (150.0, "2 min"), (9000.0, "2 h")]
)
def test_durations_are_for_people(seconds, words):
    assert progress.duration(seconds) == words


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("missing", [(), ("rich.console",), ("rich.console", "tqdm")])
def test_on_a_terminal_there_is_a_bar_where_one_is_installed(missing, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with progress.shown(100, 1.0, None) as advance:
        advance(60)
        advance(40)
    assert "100 products in about 100 s" in terminal.getvalue()
    if "tqdm" in missing:
        assert "100%" in terminal.getvalue()
