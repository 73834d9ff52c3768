"""The steps at which factors are estimated, and those at which they are inverted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax.precondition.kfac import roots
from fgo_jax.precondition.kfac.estimate import Found, averaged
from fgo_jax.precondition.kfac.layers import Layout


class Cadence(NamedTuple):
    """Intervals of estimates and of inversions; both run at each of the first steps."""

    factors_every: Any
    refresh_every: Any
    burn_in: Any

    def due(self, every: Any, step: jax.Array) -> jax.Array:
        early = step < jnp.asarray(self.burn_in, jnp.int32)
        return early | (step % jnp.asarray(every, jnp.int32) == 0)


def brought_up_to_date(
    plan: Layout,
    old: tuple[Any, Any, Any],
    step: jax.Array,
    model: Any,
    batch: Any,
    key: jax.Array,
    *,
    cadence: Cadence,
    estimate: Callable[[Layout, Any, Any, jax.Array], Found],
    decay: Any,
    damping: Any,
) -> tuple[Any, Any, Any]:
    """The new (counts of estimates, factors, roots); each stays as it is where it is not due."""
    counts, factors, inverse = old

    def observe(model: Any, batch: Any, key: jax.Array, old: Any) -> Any:
        counts, factors = old
        return averaged(estimate(plan, model, batch, key), counts, factors, decay)

    counts, factors = jax.lax.cond(
        cadence.due(cadence.factors_every, step),
        observe,
        lambda model, batch, key, old: old,
        model,
        batch,
        key,
        (counts, factors),
    )
    inverse = jax.lax.cond(
        cadence.due(cadence.refresh_every, step),
        lambda factors, counts, old: roots.invert(plan, factors, counts, damping),
        lambda factors, counts, old: old,
        factors,
        counts,
        inverse,
    )
    return counts, factors, inverse
