"""Muon between two Kronecker factors: the rules that the transformations of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax.linalg import mesh
from fgo_jax.precondition.fismo import directions, whitening
from fgo_jax.precondition.shared.leaves import (
    bias_correction,
    check_floating,
    empty_field,
    f32,
    usable_leaves,
)
from fgo_jax.precondition.shared.matrix_view import DimensionNumbers, views
from fgo_jax.precondition.shared.modes import Modes
from fgo_jax.precondition.shared.notes import note
from fgo_jax.precondition.shared.preconditioner import Preconditioner


class ScaleByFismoState(NamedTuple):
    """State of `scale_by_fismo` and `scale_by_mousse`, grouped by how often it changes.

    `optax.tree.map_params` treats every field but `first_moment` as one value that is not
    parameter-shaped.
    """

    fisher_step: jax.Array  # shape=(), dtype=jnp.int32.
    # Like params, dtype=jnp.float32; whitened coordinates for matrices under FISMO.
    first_moment: Any
    second_moment: Any  # tuple, an array like each leaf, dtype=jnp.float32; None for matrices.
    # A tuple with a pair (P, Q) for each leaf, shape=(*batch, d, d), dtype=jnp.float32. A side
    # above max_dim has None; a leaf that is no matrix has ().
    factors: Any  # changes at every step.
    roots: Any  # like factors, P^-power and Q^-power; changes at a refresh.


class Rule(NamedTuple):
    """What the transformations of this folder differ in, and the options that they share."""

    name: str
    # The power of the factors on each side of the orthogonalisation.
    power: float
    # Whether each side's factor sees gradients that the other side has whitened, and the momentum
    # is of whitened gradients. If not, the update has the norm of the orthogonalised matrix.
    coupled: bool
    unit_gradients: bool
    beta: Any
    factor_decay: Any
    damping: Any
    refresh_every: Any
    coefficients: Sequence[Sequence[float]]
    eps: Any
    max_dim: int
    adam_b1: Any
    adam_b2: Any
    consistent_rms: Any
    weight_dimension_numbers: DimensionNumbers


def between_factors(rule: Rule) -> Preconditioner:
    """The transformation of a rule."""
    beta, eps, adam_b1, adam_b2 = map(f32, (rule.beta, rule.eps, rule.adam_b1, rule.adam_b2))
    numbers, max_dim = rule.weight_dimension_numbers, rule.max_dim

    def init(params: Any) -> ScaleByFismoState:
        leaves = jax.tree.leaves(params)
        check_floating(rule.name, leaves)
        pairs = list(zip(leaves, views(numbers, params), strict=True))
        note(rule.name, params, [whitening.treatment(*pair, max_dim) for pair in pairs])

        def per_leaf(start: Callable[[Any, Any], Any]) -> Any:
            return tuple(start(*pair) for pair in pairs) if leaves else empty_field()

        def second_moment(x: Any, view: Modes | None) -> Any:
            return optax.tree.zeros_like(x, dtype=jnp.float32) if view is None else None

        def identities(x: Any, view: Modes | None) -> Any:
            return () if view is None else whitening.identities(x, view, max_dim)

        return ScaleByFismoState(
            fisher_step=jnp.zeros((), jnp.int32),
            first_moment=optax.tree.zeros_like(params, dtype=jnp.float32),
            second_moment=per_leaf(second_moment),
            factors=per_leaf(identities),
            roots=per_leaf(identities),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        del params, extra_args
        leaves, treedef = jax.tree.flatten(updates)
        step = jnp.asarray(optax.safe_increment(state.fisher_step))
        if not leaves:
            return updates, state._replace(fisher_step=step)
        check_floating(rule.name, leaves)
        found = views(numbers, updates)
        first, second = treedef.flatten_up_to(state.first_moment), list(state.second_moment)
        grads, finite = usable_leaves(leaves, found)
        due = state.fisher_step % jnp.asarray(rule.refresh_every, jnp.int32) == 0
        factors, roots = _whitened(rule, grads, finite, found, state, due)

        out = []
        for i, (g, view, good, leaf) in enumerate(zip(grads, found, finite, leaves, strict=True)):
            if view is None:
                m, v, u = directions.adam(g, first[i], second[i], step, adam_b1, adam_b2, eps)
                second[i] = jnp.where(good & jnp.isfinite(v), v, second[i])
            else:
                m, u = directions.orthogonalised(
                    g, first[i], roots[i], view, step, beta, rule.coefficients, eps, rule.coupled
                )
                good = good & jnp.isfinite(view.reduce(jnp.sum, jnp.square(m)))
                if rule.consistent_rms is not None:
                    u = u * (f32(rule.consistent_rms) * max(view.dims) ** 0.5)
            first[i] = jnp.where(good, m, first[i])
            # An elementwise function of the leaf is sharded like it.
            u = jnp.where(jnp.isfinite(leaf) & good, u, 0.0)
            out.append(u.astype(jnp.result_type(leaf)))

        new = ScaleByFismoState(
            fisher_step=step,
            first_moment=treedef.unflatten(first),
            second_moment=tuple(second),
            factors=factors,
            roots=roots,
        )
        return treedef.unflatten(out), optax.tree.cast_like(new, state)

    def metric(grads: Any, state: Any) -> Any:
        leaves, treedef = jax.tree.flatten(grads)
        check_floating(rule.name, leaves)
        found = views(numbers, grads)
        first = treedef.flatten_up_to(state.first_moment)
        step = jnp.maximum(state.fisher_step, 1)
        rows = []
        for i, (leaf, view) in enumerate(zip(leaves, found, strict=True)):
            g = jnp.asarray(leaf, jnp.float32)
            if view is None:
                size = jnp.sqrt(state.second_moment[i] / bias_correction(adam_b2, step)) + eps
            else:
                g = directions.between(view, g, state.roots[i])
                m = first[i] / bias_correction(beta, step)
                m = m if rule.coupled else directions.between(view, m, state.roots[i])
                square = view.reduce(jnp.sum, jnp.square(m))
                size = jnp.sqrt(square / min(view.dims)) + eps
            rows.append(g / jnp.where(state.fisher_step == 0, 1.0, jnp.sqrt(size)))
        return treedef.unflatten(rows)

    return Preconditioner(init, update, metric)


def _whitened(
    rule: Rule,
    grads: Sequence[jax.Array],
    finite: Sequence[jax.Array],
    found: Sequence[Modes | None],
    state: ScaleByFismoState,
    due: jax.Array,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The factors and roots of all leaves after a step, as `whitening.advance` makes them."""
    factors, roots = list(state.factors), list(state.roots)
    matrices = {i: view for i, view in enumerate(found) if view is not None}
    if not matrices:
        return tuple(factors), tuple(roots)
    old = [mesh.replicate((factors[i], roots[i]), grads[i]) for i in matrices]
    observed = [
        whitening.unit(grads[i], view) if rule.unit_gradients else grads[i]
        for i, view in matrices.items()
    ]
    new = whitening.advance(
        observed,
        list(matrices.values()),
        *zip(*old, strict=True),
        decay=f32(rule.factor_decay),
        damping=f32(rule.damping),
        due=due,
        power=rule.power,
        coupled=rule.coupled,
    )
    for (i, view), before, *after in zip(matrices.items(), old, *new, strict=True):
        # The roots as well: those of a skipped gradient come from a factor that only damping moved.
        good = view.per_factor(finite[i])
        keep = lambda new, old, good=good: jnp.where(good, new, old)  # noqa: E731
        factors[i], roots[i] = jax.tree.map(keep, tuple(after), before)
    return tuple(factors), tuple(roots)
