"""K-FAC as a gradient transformation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.curvature import losses
from fgo_jax.curvature.chunks import Part
from fgo_jax.curvature.weights import Select, check_select
from fgo_jax.precondition.kfac import roots as rooted
from fgo_jax.precondition.kfac import statistics
from fgo_jax.precondition.kfac.capture import Recorder, run_tapped
from fgo_jax.precondition.kfac.layers import Axes, Layout, Paths, check_diagonal, layout, leaf_paths
from fgo_jax.precondition.preconditioner import Preconditioner


class ScaleByKfacState(NamedTuple):
    """State of `scale_by_kfac`, grouped by how often it changes."""

    kfac_step: jax.Array  # shape=(), dtype=jnp.int32.
    kfac_key: jax.Array  # shape=(2,), dtype=jnp.uint32; never changes.
    step_momentum: Any  # like params, dtype=jnp.float32; () without momentum.
    # The rest goes by layer and by diagonal leaf. `optax.tree.map_params` treats each field as
    # one value that is not parameter-shaped. They change when factors are estimated,
    estimates: Any  # tuple over layers and diagonals, shape=(), dtype=jnp.int32.
    factors: Any  # tuple over layers of pairs (A, G) [*stack, d, d] or [*stack, d], jnp.float32.
    diagonals: Any  # tuple over diagonal leaves, like the leaf, dtype=jnp.float32.
    # and when they are inverted.
    roots: Any  # tuple over layers of one pair, damped inverse square roots, as factors.
    diagonal_roots: Any  # as diagonals.


def scale_by_kfac(
    predict_fn: Callable[[Any, Any], Any],
    loss: str = "softmax_cross_entropy",
    *,
    damping: jax.typing.ArrayLike = 1e-3,
    damping_kind: str = "absolute",
    factor_decay: jax.typing.ArrayLike = 0.95,
    b1: jax.typing.ArrayLike | None = 0.9,
    norm_constraint: jax.typing.ArrayLike | None = 1e-2,
    factors_every: jax.typing.ArrayLike = 1,
    refresh_every: jax.typing.ArrayLike = 10,
    burn_in: jax.typing.ArrayLike = 10,
    approximation: str = "expand",
    diagonal: Paths = (),
    layers: Mapping[str, Axes] | None = None,
    weights: Select | None = None,
    max_dim: int = 4096,
    axis_name: str | None = None,
    seed: int = 0,
) -> Preconditioner:
    losses.check_likelihood(loss, "scale_by_kfac", "use scale_by_kronecker_fisher.")
    _checks.non_negative("damping", damping)
    _checks.fraction("factor_decay", factor_decay)
    if b1 is not None:
        _checks.fraction("b1", b1)
    if norm_constraint is not None:
        _checks.positive("norm_constraint", norm_constraint)
    _checks.integer("factors_every", factors_every)
    _checks.integer("refresh_every", refresh_every)
    _checks.integer("burn_in", burn_in, 0)
    _checks.choice("approximation", approximation, ("expand", "reduce"))
    _checks.positive_int("max_dim", max_dim)
    if weights is not None:
        check_select("weights", weights)
    is_diagonal = check_diagonal(diagonal)
    reduce = approximation == "reduce"
    recorder = Recorder()

    def layout_of(tree: Any) -> Layout:
        return layout(tree, layers, is_diagonal)

    def init(params: Any) -> ScaleByKfacState:
        leaves = jax.tree.leaves(params)
        plan = layout_of(params)
        terms = tuple(statistics.zero_terms(layer, max_dim) for layer in plan.layers)
        flat = tuple(jnp.zeros(jnp.shape(leaves[d.leaf]), jnp.float32) for d in plan.diagonals)
        nothing = jnp.zeros((0,), jnp.float32)
        count = len(plan.layers) + len(plan.diagonals)
        return ScaleByKfacState(
            kfac_step=jnp.zeros((), jnp.int32),
            kfac_key=jax.random.key_data(jax.random.key(seed, impl="threefry2x32")),
            step_momentum=()
            if b1 is None
            else optax.tree.zeros_like(params, dtype=jnp.float32),
            estimates=tuple(jnp.zeros((), jnp.int32) for _ in range(count)) if leaves else nothing,
            factors=terms if leaves else nothing,
            diagonals=flat if leaves else nothing,
            roots=jax.tree.map(jnp.zeros_like, tuple(t[0] for t in terms)) if leaves else nothing,
            diagonal_roots=jax.tree.map(jnp.zeros_like, flat) if leaves else nothing,
        )

    def estimate(plan: Layout, model: Any, batch: Any, key: Any, state: Any) -> Any:
        """(estimates, factors, diagonals) after one batch."""
        probes: dict[str, Any] = {
            x.path: statistics.zero_probe(x, max_dim) for x in plan.layers
        }
        by_path = dict(zip(leaf_paths(model), jax.tree.leaves(model), strict=True))
        chosen = {d.path: by_path[d.path] for d in plan.diagonals if d.norm is None}
        for d in plan.diagonals:
            if d.norm is not None:
                zeros = jnp.zeros(jnp.shape(by_path[d.path]), jnp.float32)
                probes.setdefault(d.norm, {})[_name(d.path)] = zeros

        def outputs_of(probes: Any, chosen: Any) -> Any:
            return run_tapped(
                recorder, predict_fn, model, batch, plan, probes, chosen, reduce
            )

        outputs, pull = jax.vjp(outputs_of, probes, chosen)
        labels = losses.draw_labels(loss, outputs, key, Part().rows)
        drawn = losses.drawn_cotangent(loss, outputs, labels, batch, weights)
        moments, gradients = pull(drawn.astype(outputs.dtype))
        found: list[Any] = [statistics.normalised(x, moments[x.path]) for x in plan.layers]
        found += [
            # The labels of different rows are independent: the square of a sum of their scores
            # has the mean of a sum of their squares.
            jnp.square(gradients[d.path].astype(jnp.float32))
            if d.norm is None
            else moments[d.norm][_name(d.path)]
            for d in plan.diagonals
        ]
        if axis_name is not None:
            found = jax.lax.pmean(found, axis_name)
        used = [moments[x.path]["uses"] for x in plan.layers] + [None] * len(plan.diagonals)

        counts, new = [], []
        old = (*state.factors, *state.diagonals)
        for count, before, now, uses in zip(state.estimates, old, found, used, strict=True):
            good = _all_finite(now)
            if uses is not None:
                good &= jnp.any(sum(uses) > 0)
            after = count + good.astype(jnp.int32)
            # The weight of the newest in a bias-corrected moving average.
            share = (1 - factor_decay) / (1 - factor_decay ** after.astype(jnp.float32))
            counts.append(after)
            new.append(
                jax.tree.map(lambda a, b, s=share, ok=good: jnp.where(ok, a + s * (b - a), a), before, now)
            )
        split = len(plan.layers)
        return tuple(counts), tuple(new[:split]), tuple(new[split:])

    def invert(plan: Layout, factors: Any, diagonals: Any, counts: Any) -> Any:
        """(roots, diagonal_roots)."""
        pairs = [rooted.merged(x, terms) for x, terms in zip(plan.layers, factors, strict=True)]
        sides = [(x, f) for x, pair in zip(plan.layers, pairs, strict=True) for f in pair]
        found = rooted.spectra(sides)
        means = [jnp.mean(values, axis=-1) for values, _ in found]
        products = [a * b for a, b in zip(means[::2], means[1::2], strict=True)]
        if damping_kind == "global":
            total = sum(jnp.sum(p) * x.rows * x.columns for p, x in zip(products, plan.layers, strict=True))
            total = total + sum(jnp.sum(d) for d in diagonals)
            size = sum(p.size * x.rows * x.columns for p, x in zip(products, plan.layers, strict=True))
            size = size + sum(d.size for d in diagonals)
            level = damping * total / max(size, 1)
        else:
            level = jnp.asarray(damping, jnp.float32)
        out = []
        for index, x in enumerate(plan.layers):
            a, b = means[2 * index], means[2 * index + 1]
            here = jnp.broadcast_to(level, a.shape)
            if damping_kind == "layer":
                here = damping * a * b
            both = (a > 0) & (b > 0)
            pi = jnp.sqrt(jnp.where(both, a, 1.0) / jnp.where(both, b, 1.0))
            known = counts[index] > 0
            out.append(
                tuple(
                    jnp.where(known, rooted.inverse_root(*found[2 * index + k], d), 0.0)
                    for k, d in enumerate((jnp.sqrt(here) * pi, jnp.sqrt(here) / pi))
                )
            )
        flat = []
        for count, d in zip(counts[len(plan.layers) :], diagonals, strict=True):
            lev = damping * jnp.mean(d) if damping_kind == "layer" else level
            damped = d + lev
            root = jnp.where(damped > 0, jax.lax.rsqrt(jnp.where(damped > 0, damped, 1.0)), 0.0)
            flat.append(jnp.where(count > 0, root, 0.0))
        return tuple(out), tuple(flat)

    def rooted_gradient(plan: Layout, leaves: list[Any], roots: Any, flat: Any) -> list[Any]:
        """P^(-1/2) applied to float32 leaves."""
        out = list(leaves)
        for x, root in zip(plan.layers, roots, strict=True):
            bias = None if x.bias is None else leaves[x.bias]
            out[x.kernel], new = rooted.apply(x, root, leaves[x.kernel], bias)
            if x.bias is not None:
                out[x.bias] = new
        for d, root in zip(plan.diagonals, flat, strict=True):
            out[d.leaf] = root * leaves[d.leaf]
        return out

    def update(
        updates: Any, state: Any, params: Any = None, *, batch: Any = None,
        probe_params: Any = None, **extra: Any,
    ) -> tuple[Any, Any]:
        del extra
        leaves, treedef = jax.tree.flatten(updates)
        if not leaves:
            step = jnp.asarray(optax.safe_increment(state.kfac_step))
            return updates, optax.tree.cast_like(state._replace(kfac_step=step), state)
        model = _check_inputs(params if probe_params is None else probe_params, batch)
        plan = layout_of(updates)
        early = state.kfac_step < jnp.asarray(burn_in, jnp.int32)

        def due(every: Any) -> jax.Array:
            return early | (state.kfac_step % jnp.asarray(every, jnp.int32) == 0)

        key = jax.random.wrap_key_data(state.kfac_key, impl="threefry2x32")
        key = jax.random.fold_in(key, state.kfac_step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        moving = (state.estimates, state.factors, state.diagonals)
        counts, factors, diagonals = jax.lax.cond(
            due(factors_every),
            lambda model, batch, key, state, kept: estimate(plan, model, batch, key, state),
            lambda model, batch, key, state, kept: kept,
            model, batch, key, state, moving,
        )
        roots, flat = jax.lax.cond(
            due(refresh_every),
            lambda f, d, c, kept: invert(plan, f, d, c),
            lambda f, d, c, kept: kept,
            factors, diagonals, counts, (state.roots, state.diagonal_roots),
        )
        grads = [jnp.asarray(g, jnp.float32) for g in leaves]
        keep = [jnp.asarray(True)] * len(grads)
        for x in plan.layers:
            good = _all_finite([grads[i] for i in x.leaves])
            for i in x.leaves:
                keep[i] = good
        for d in plan.diagonals:
            keep[d.leaf] = _all_finite(grads[d.leaf])
        grads = [jnp.where(ok, g, 0.0) for ok, g in zip(keep, grads, strict=True)]
        out = rooted_gradient(plan, rooted_gradient(plan, grads, roots, flat), roots, flat)
        if norm_constraint is not None:
            square = sum(jnp.sum(g * u) for g, u in zip(grads, out, strict=True))
            scale = jnp.sqrt(norm_constraint / jnp.maximum(square, norm_constraint))
            out = [scale * u for u in out]
        step = jnp.asarray(optax.safe_increment(state.kfac_step))
        momentum = ()
        if b1 is not None:
            old = treedef.flatten_up_to(state.step_momentum)
            new = [
                jnp.where(ok, b1 * m + (1 - b1) * u, m)
                for ok, m, u in zip(keep, old, out, strict=True)
            ]
            momentum = treedef.unflatten(new)
            correction = 1 - b1 ** step.astype(jnp.float32)
            out = [m / correction for m in new]
        out = [
            jnp.where(ok, u, 0.0).astype(jnp.result_type(g))
            for ok, u, g in zip(keep, out, leaves, strict=True)
        ]
        new_state = ScaleByKfacState(
            step, state.kfac_key, momentum, counts, factors, diagonals, roots, flat
        )
        return treedef.unflatten(out), optax.tree.cast_like(new_state, state)

    def metric(grads: Any, state: Any) -> Any:
        leaves, treedef = jax.tree.flatten(grads)
        if not leaves:
            return grads
        leaves = [jnp.asarray(g, jnp.float32) for g in leaves]
        rows = rooted_gradient(layout_of(grads), leaves, state.roots, state.diagonal_roots)
        fresh = state.kfac_step == 0
        return treedef.unflatten(
            [jnp.where(fresh, g, r) for g, r in zip(leaves, rows, strict=True)]
        )

    return Preconditioner(init, update, metric, keeps_scale=False)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _all_finite(tree: Any) -> jax.Array:
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(checks)) if checks else jnp.asarray(True)


def _check_inputs(model: Any, batch: Any) -> Any:
    if batch is None:
        raise TypeError(
            "scale_by_kfac runs the model: call update(grads, state, params, batch=batch)."
        )
    nodes = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if model is None or any(isinstance(node, optax.MaskedNode) for node in nodes):
        raise TypeError(
            "scale_by_kfac runs the model and needs all of its parameters: call update(grads, "
            "state, params, batch=batch), and under optax.masked or optax.partition pass "
            "probe_params=params as well."
        )
    return model
