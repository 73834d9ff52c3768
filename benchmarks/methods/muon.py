"""Muon as it is used: hidden matrices by orthogonalised momentum, everything else by Adam."""

import jax
import optax

from benchmarks.methods import schedules
from benchmarks.methods.method import Method

# Tables of rows that are looked up, and the map to logits: matrices by shape only
# (Jordan et al., 2024).
_BY_ADAM = ("embed", "positions", "head")


def dimensions(params):
    def of(path, leaf):
        if leaf.ndim != 2 or any(getattr(key, "key", None) in _BY_ADAM for key in path):
            return None
        return optax.contrib.MuonDimensionNumbers()

    return jax.tree_util.tree_map_with_path(of, params)


def _muon(task, hp):
    # Updates of the size of Adam's let one rate serve both halves (Liu et al., 2025).
    decay = {"weight_decay": task.weight_decay, "adam_weight_decay": task.weight_decay}
    matrices = {"muon_weight_dimension_numbers": dimensions, "consistent_rms": 0.2}
    return optax.contrib.muon(schedules.constant(task, hp), **matrices, **decay)


# The bowl's only parameter is a vector: Muon would be Adam there.
METHODS = (Method("muon", _muon, never="quadratic_bowl", transform="optax.contrib.muon"),)
