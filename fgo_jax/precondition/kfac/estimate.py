"""One batch's estimate of every factor, and the moving averages of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.curvature import losses
from fgo_jax.curvature.chunks import Part
from fgo_jax.curvature.weights import Select
from fgo_jax.linalg import mesh
from fgo_jax.linalg.devices import as_varying, on_each_device, varying_axes
from fgo_jax.precondition.kfac import taps
from fgo_jax.precondition.kfac.capture import Recorder, run_tapped
from fgo_jax.precondition.kfac.layers import Layout, leaf_paths

# Estimates by layer, then by diagonal leaf; each with whether it may be used, bool [].
Found = list[tuple[Any, jax.Array]]


def estimator(
    predict_fn: Callable[[Any, Any], Any],
    loss: str,
    weights: Select | None,
    reduce: bool,
    block_size: int,
    axis_name: str | None,
) -> Callable[[Layout, Any, Any, jax.Array], Found]:
    """(layout, whole parameters, batch, key) -> estimates."""
    _checks.model(predict_fn)
    recorder = Recorder()

    def estimate(plan: Layout, model: Any, batch: Any, key: jax.Array) -> Found:
        model = on_each_device(model, batch, axis_name)
        leaves = dict(zip(leaf_paths(model), jax.tree.leaves(model), strict=True))
        plain = {d.path: leaves[d.path] for d in plan.diagonals if d.norm is None}
        probes: dict[str, Any] = {
            layer.path: taps.zero_probe(layer, block_size) for layer in plan.layers
        }
        for d in plan.diagonals:
            if d.norm is not None:
                zeros = jnp.zeros(jnp.shape(leaves[d.path]), jnp.float32)
                probes.setdefault(d.norm, {})[_name(d.path)] = zeros

        # The statistics are the probes' cotangents: each device wants its own.
        probes = as_varying(probes, varying_axes(batch, axis_name))

        def outputs_of(probes: Mapping[str, Any], plain: Mapping[str, Any]) -> Any:
            return run_tapped(recorder, predict_fn, model, batch, plan, probes, plain, reduce)

        outputs, pull = jax.vjp(outputs_of, probes, plain)
        labels = losses.draw_labels(loss, outputs, key, Part().rows)
        drawn = losses.drawn_cotangent(loss, outputs, labels, batch, weights)
        moments, gradients = pull(drawn.astype(outputs.dtype))

        found: list[Any] = [taps.normalised(layer, moments[layer.path]) for layer in plan.layers]
        uses = [sum(moments[layer.path]["uses"]) for layer in plan.layers]
        for d in plan.diagonals:
            if d.norm is not None:
                found.append(moments[d.norm][_name(d.path)])
            else:
                # The labels of different rows are independent. So the squared sum of their scores
                # and the sum of the squared scores have the same mean.
                found.append(jnp.square(gradients[d.path].astype(jnp.float32)))
        if axis_name is not None:
            found, uses = jax.lax.pmean((found, uses), axis_name)
        used = [jnp.any(count > 0) for count in uses] + [jnp.asarray(True)] * len(plan.diagonals)
        return [(item, good & all_finite(item)) for item, good in zip(found, used, strict=True)]

    return estimate


def averaged(
    found: Found, counts: Any, before: Any, decay: Any
) -> tuple[tuple[jax.Array, ...], tuple[Any, ...]]:
    """Moving averages, kept in bias-corrected form: the first one is the first estimate itself."""
    new_counts, after = [], []
    for (item, good), count, old in zip(found, counts, before, strict=True):
        count = count + good.astype(jnp.int32)
        # Without a good estimate the count may be zero; the share is then not used.
        share = (1 - decay) / (1 - decay ** jnp.maximum(count, 1).astype(jnp.float32))

        def mix(a: jax.Array, b: jax.Array, share: Any = share, good: Any = good) -> jax.Array:
            return jnp.where(good, a + share * (mesh.placed_like(b, a) - a), a)

        new_counts.append(count)
        after.append(jax.tree.map(mix, old, item))
    return tuple(new_counts), tuple(after)


def all_finite(tree: Any) -> jax.Array:
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(checks)) if checks else jnp.asarray(True)


def _name(path: str) -> str:
    return path.rpartition("/")[2]
