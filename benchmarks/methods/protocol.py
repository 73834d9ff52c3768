"""The three phases."""

from __future__ import annotations

from benchmarks.methods.method import Method, kronecker_fisher


def target_acquisition(task, hp, **parts):
    """The protocol as it races, with the settings of `hp` and other parts in place of its own."""
    import fgo_jax as fgo

    refinement = parts.pop("refinement", None) or kronecker_fisher(task)
    return fgo.target_acquisition(
        warmup_steps=task.warmup_steps,
        weight_decay=task.weight_decay,
        refinement=refinement,
        average_weights=0.1,
        **parts,
        **hp,
    )


def raw(task, hp, **parts):
    """As without an average, which is kept beside for the curve of it."""
    from fgo_jax.protocol import default_decay_onset

    hp = {"decay_onset": default_decay_onset(averaged=False), **hp}
    return target_acquisition(task, hp, **parts)


_FIELDS = {"natural": True, "phased": True, "cadence": 10}
METHODS = (
    Method("fgo", raw, **_FIELDS),
    Method("fgo_averaged", target_acquisition, weights="averaged", **_FIELDS),
)
