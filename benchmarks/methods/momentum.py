"""The refinement with a slow momentum from the first step on: the phases' parts without phases."""

from __future__ import annotations

import optax

from benchmarks.methods.method import alone, kronecker_fisher, pair, sources


def _blended(task):
    import fgo_jax as fgo

    return optax.chain(kronecker_fisher(task), fgo.slow_momentum())


METHODS = pair(
    "natural_gradient_slow_momentum",
    build=alone(_blended),
    uses=(*sources("kronecker_fisher"), "smoothing/slow_momentum.py", "smoothing/growing_mean.py"),
    cadence=10,
)
