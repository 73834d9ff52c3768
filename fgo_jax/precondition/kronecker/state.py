"""The state of the Kronecker Fisher."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax


class ScaleByKroneckerFisherState(NamedTuple):
    """State of :func:`scale_by_kronecker_fisher`, grouped by how often it changes.

    Moments, factors, bases and eigenvalues are tuples with an item for each stack of leaves, in the
    order of their first leaves. `optax.tree.map_params` treats each of these fields as one value
    that is not parameter-shaped.
    """

    fisher_step: jax.Array  # shape=(), dtype=jnp.int32.
    # Both moments: in coordinates of the eigenbasis, shape=(*blocks, *leaves, *one block).
    first_moment: Any  # float32 or momentum_dtype.
    second_moment: Any  # float32. Without `corrected`, a stack with factors has () here.
    previous: Any  # like the moments, float32; the last gradient if `centred`, else ().
    factors: Any  # tuples, shape=(*batch, d, d), float32 or factor_dtype; changes at every step.
    bases: Any  # like factors, eigenvectors in columns; changes at a refresh.
    eigenvalues: Any  # shape=(*batch, d), dtype=jnp.float32; at a refresh. () if `corrected`.
