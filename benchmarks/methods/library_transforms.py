"""The other natural-gradient transforms of the library, each by itself at a constant rate."""

from __future__ import annotations

from benchmarks.methods.method import TRANSFORM_TASKS, Method, alone, sources
from benchmarks.methods.muon import dimensions

_CURVATURE = ("linalg/*.py", "curvature/*.py")


def _kfac(task):
    import fgo_jax as fgo

    # Learned positions belong to no layer that K-FAC knows.
    diagonal = ("positions",) if task.name == "char_gpt" else ()
    return fgo.scale_by_kfac(task.predict, task.loss_name, diagonal=diagonal)


def _diagonal_fisher(task):
    import fgo_jax as fgo

    return fgo.scale_by_diagonal_fisher(task.predict, task.loss_name)


def _low_rank_fisher(task):
    import fgo_jax as fgo

    return fgo.scale_by_low_rank_fisher(fgo.curvature.ggn(task.predict, task.loss_name))


def _fismo(task):
    """As Muon is used here: the same leaves go to Adam, and updates have the size of its own."""
    del task
    import fgo_jax as fgo

    return fgo.scale_by_fismo(
        unit_gradients=True, consistent_rms=0.2, weight_dimension_numbers=dimensions
    )


METHODS = (
    Method(
        "kfac",
        alone(_kfac),
        uses=(*sources("kfac/*"), *_CURVATURE),
        only=TRANSFORM_TASKS,
        transform="scale_by_kfac",
        needs_batch=True,
        cadence=5,
        update_size="newton",
    ),
    Method(
        "diagonal_fisher",
        alone(_diagonal_fisher),
        uses=(*sources("diagonal_fisher"), *_CURVATURE),
        only=TRANSFORM_TASKS,
        transform="scale_by_diagonal_fisher",
        needs_batch=True,
        cadence=10,
    ),
    Method(
        "low_rank_fisher",
        alone(_low_rank_fisher),
        uses=(*sources("low_rank_fisher"), *_CURVATURE),
        only=TRANSFORM_TASKS,
        transform="scale_by_low_rank_fisher",
        needs_batch=True,
        cadence=100,
        update_size="newton",
    ),
    Method(
        "fismo",
        alone(_fismo),
        uses=sources("fismo"),
        only=TRANSFORM_TASKS,
        transform="scale_by_fismo",
        cadence=10,
    ),
)
