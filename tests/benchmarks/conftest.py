"""Fixtures of several tests of the benchmarks."""

import importlib

import flax.linen as nn
import optax
import pytest

from benchmarks.methods import three_phases

CHEAP_PROGRAMS: dict = {}  # of runs with the cheap refinement, for all tests that have it


class Small(nn.Module):
    """An autoencoder of two layers: most of a run's time is its compilation."""

    @nn.compact
    def __call__(self, pixels):
        return nn.Dense(pixels.shape[-1])(nn.sigmoid(nn.Dense(64, use_bias=False)(pixels)))


@pytest.fixture
def small_autoencoder(monkeypatch):
    """The task with a small network in the deep one's place, and small batches."""
    module = importlib.import_module("benchmarks.tasks.digits_autoencoder")
    monkeypatch.setattr(module, "MODEL", Small())
    monkeypatch.setattr(module, "BATCH_SIZE", 16)
    return module.digits_autoencoder()


@pytest.fixture
def cheap_refinement(monkeypatch):
    """Adam in the refinement's place: what is tested with it does not depend on it."""
    monkeypatch.setattr(three_phases, "kronecker_fisher", lambda task: optax.scale_by_adam())
    monkeypatch.setattr("benchmarks.runs.training._programs", CHEAP_PROGRAMS)
