"""Muon between two Kronecker factors: the rules that the transformations of this folder share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg import mesh
from fgo_jax.precondition.fismo import directions, whitening
from fgo_jax.precondition.fismo.matrices import Matrices, matrices
from fgo_jax.precondition.shared.leaves import (
    bias_correction,
    check_floating,
    empty_field,
    f32,
    usable_leaves,
)
from fgo_jax.precondition.shared.matrix_view import DimensionNumbers, views
from fgo_jax.precondition.shared.notes import note
from fgo_jax.precondition.shared.preconditioner import Preconditioner
from fgo_jax.precondition.shared.stacks import check_factors, numbers_for


class ScaleByFismoState(NamedTuple):
    """State of `scale_by_fismo` and `scale_by_mousse`, grouped by how often it changes.

    `optax.tree.map_params` treats every field but `first_moment` as one value that is not
    parameter-shaped.
    """

    fisher_step: jax.Array  # shape=(), dtype=jnp.int32.
    # Like params, dtype=jnp.float32; whitened coordinates for matrices under FISMO.
    first_moment: Any
    second_moment: Any  # tuple, an array like each leaf, dtype=jnp.float32; None for matrices.
    # A tuple with a pair (P, Q) for each stack of equal matrices, shape=(*blocks, *batch, d, d),
    # dtype=jnp.float32. A side without a factor has None; a leaf that is no matrix has ().
    factors: Any  # changes at every step.
    roots: Any  # like factors, P^-power and Q^-power; changes at a refresh.


class Rule(NamedTuple):
    """The options of FISMO and Mousse, and those in which they differ."""

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
    block_size: int
    adam_b1: Any
    adam_b2: Any
    consistent_rms: Any
    weight_dimension_numbers: DimensionNumbers


def between_factors(rule: Rule) -> Preconditioner:
    """The transformation of a rule; checks its numbers."""
    for name in ("beta", "adam_b1", "adam_b2"):
        _checks.fraction(name, getattr(rule, name))
    _checks.unit("factor_decay", rule.factor_decay)
    for name in ("damping", "eps"):
        _checks.non_negative(name, getattr(rule, name))
    _checks.integer("refresh_every", rule.refresh_every)
    _checks.positive_int("block_size", rule.block_size)
    if rule.consistent_rms is not None:
        _checks.positive("consistent_rms", rule.consistent_rms)
    beta, eps, adam_b1, adam_b2 = map(f32, (rule.beta, rule.eps, rule.adam_b1, rule.adam_b2))

    def kinds_of(tree: Any) -> list[Matrices | int]:
        return matrices(tree, views(rule.weight_dimension_numbers, tree), rule.block_size)

    def init(params: Any) -> ScaleByFismoState:
        leaves = jax.tree.leaves(params)
        check_floating(rule.name, leaves)
        kinds = kinds_of(params)
        treated: list[Any] = [("no matrix, as Adam", 0)] * len(leaves)
        second: list[Any] = [None] * len(leaves)
        for kind in kinds:
            if isinstance(kind, int):
                second[kind] = optax.tree.zeros_like(leaves[kind], dtype=jnp.float32)
            else:
                for place in kind.stack.places:
                    treated[place] = kind.treatment()
        note(rule.name, params, treated)

        def identities() -> Any:
            started = (() if isinstance(k, int) else k.identities(leaves) for k in kinds)
            return tuple(started) if leaves else empty_field()

        return ScaleByFismoState(
            fisher_step=jnp.zeros((), jnp.int32),
            first_moment=optax.tree.zeros_like(params, dtype=jnp.float32),
            second_moment=tuple(second) if leaves else empty_field(),
            factors=identities(),
            roots=identities(),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        del params, extra_args
        leaves, treedef = jax.tree.flatten(updates)
        step = jnp.asarray(optax.safe_increment(state.fisher_step))
        if not leaves:
            return updates, state._replace(fisher_step=step)
        check_floating(rule.name, leaves)
        found = views(rule.weight_dimension_numbers, updates)
        grads, finite = usable_leaves(leaves, found)
        kinds = matrices(updates, found, rule.block_size)
        shapes = [() if isinstance(k, int) else k.factor_shapes for k in kinds]
        check_factors(rule.name, tuple(shapes), state.factors)
        first, second = treedef.flatten_up_to(state.first_moment), list(state.second_moment)
        before = [first[k] if isinstance(k, int) else k.stack.join(first) for k in kinds]
        rows, usable = (
            [
                tree[k] if isinstance(k, int) else k.stack.join(tree, x)
                for k, x in zip(kinds, before, strict=True)
            ]
            for tree in (grads, finite)
        )
        due = state.fisher_step % jnp.asarray(rule.refresh_every, jnp.int32) == 0
        factors, roots = whitening.whitened(
            kinds,
            [whitening.unit(*pair) for pair in zip(rows, kinds, strict=True)]
            if rule.unit_gradients
            else rows,
            usable,
            (state.factors, state.roots),
            decay=f32(rule.factor_decay),
            damping=f32(rule.damping),
            due=due,
            power=rule.power,
            coupled=rule.coupled,
        )

        out = list(leaves)
        numbers = numbers_for([k.stack for k in kinds if not isinstance(k, int)], step)
        for i, (kind, g, good) in enumerate(zip(kinds, rows, usable, strict=True)):
            if isinstance(kind, int):
                m, v, u = directions.adam(g, first[kind], second[kind], step, adam_b1, adam_b2, eps)
                second[kind] = jnp.where(good & jnp.isfinite(v), v, second[kind])
                first[kind] = jnp.where(good, m, first[kind])
                parts = [(kind, jnp.where(good, u, 0.0))]
            else:
                m, u = directions.orthogonalised(
                    g, before[i], roots[i], kind, step, beta, rule.coefficients, eps, rule.coupled
                )
                good = good & jnp.isfinite(kind.whole.reduce(jnp.sum, jnp.square(m)))
                if rule.consistent_rms is not None:
                    u = u * (f32(rule.consistent_rms) * max(kind.whole.dims) ** 0.5)
                for place, part in kind.stack.split(jnp.where(good, m, before[i]), first, numbers):
                    # Changes nothing where finite; makes the moment sharded like the leaf.
                    usual = mesh.placed_like(jnp.isfinite(leaves[place]), part)
                    first[place] = jnp.where(usual, part, first[place])
                parts = kind.stack.split(jnp.where(good, u, 0.0), leaves, numbers)
            for place, part in parts:
                # Sharded like the leaf, for the same reason.
                part = jnp.where(jnp.isfinite(leaves[place]), part, 0.0)
                out[place] = part.astype(jnp.result_type(leaves[place]))

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
        first = treedef.flatten_up_to(state.first_moment)
        step = jnp.maximum(state.fisher_step, 1)
        rows = [jnp.asarray(leaf, jnp.float32) for leaf in leaves]

        def divided(g: jax.Array, size: jax.Array) -> jax.Array:
            return g / jnp.where(size <= eps, 1.0, jnp.sqrt(size))  # eps: no gradient so far

        kinds = kinds_of(grads)
        numbers = numbers_for([k.stack for k in kinds if not isinstance(k, int)], step)
        for i, kind in enumerate(kinds):
            if isinstance(kind, int):
                size = jnp.sqrt(state.second_moment[kind] / bias_correction(adam_b2, step)) + eps
                rows[kind] = divided(rows[kind], size)
                continue
            m = kind.stack.join(first) / bias_correction(beta, step)
            m = m if rule.coupled else kind.between(m, state.roots[i])
            square = kind.whole.reduce(jnp.sum, jnp.square(m))
            size = jnp.sqrt(square / min(kind.whole.dims)) + eps
            g = kind.between(kind.stack.join(rows, m), state.roots[i])
            for place, part in kind.stack.split(divided(g, size), leaves, numbers):
                rows[place] = part
        return treedef.unflatten(rows)

    return Preconditioner(init, update, metric)
