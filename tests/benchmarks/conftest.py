"""Fixtures of several tests of the benchmarks."""

import optax
import pytest

from benchmarks.methods import three_phases


@pytest.fixture
def cheap_refinement(monkeypatch):
    """Adam in the refinement's place: what is tested with it does not depend on it."""
    monkeypatch.setattr(three_phases, "kronecker_fisher", lambda task: optax.scale_by_adam())
    monkeypatch.setattr("benchmarks.runs.training._programs", {})
