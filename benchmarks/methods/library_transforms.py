"""The other natural-gradient transforms of the library, each by itself at a constant rate."""

import fgo_jax as fgo
from benchmarks.methods.method import TRANSFORM_TASKS, Method, alone
from benchmarks.methods.muon import dimensions


def _kfac(task):
    # Learned positions belong to no layer that K-FAC knows.
    diagonal = ("positions",) if task.name == "char_gpt" else ()
    return fgo.scale_by_kfac(task.predict, task.loss_name, diagonal=diagonal)


def _diagonal_fisher(task):
    return fgo.scale_by_diagonal_fisher(task.predict, task.loss_name)


def _low_rank_fisher(task):
    return fgo.scale_by_low_rank_fisher(fgo.curvature.ggn(task.predict, task.loss_name))


def _fismo(task):
    """As Muon is used here: the same leaves go to Adam, and updates have the size of its own."""
    del task
    return fgo.scale_by_fismo(
        unit_gradients=True, consistent_rms=0.2, weight_dimension_numbers=dimensions
    )


def _compared(name, transform, **fields):
    kinds = {"natural": True, "only": TRANSFORM_TASKS, "transform": f"scale_by_{name}"}
    return Method(name, alone(transform), **kinds, **fields)


METHODS = (
    _compared("kfac", _kfac, needs_batch=True, cadence=5, update_size="newton"),
    _compared("diagonal_fisher", _diagonal_fisher, needs_batch=True, cadence=10),
    _compared(
        "low_rank_fisher", _low_rank_fisher, needs_batch=True, cadence=100, update_size="newton"
    ),
    _compared("fismo", _fismo, cadence=10),
)
