"""A learning rate for each layer, from the measured noise of its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg.compiled import compiled_once
from fgo_jax.linalg.mesh import everywhere, on_mesh
from fgo_jax.linalg.ordering import ordered_after
from fgo_jax.linalg.trees import leaf_names, times
from fgo_jax.precondition.shared.leaves import called, check_floating
from fgo_jax.precondition.shared.matrix_view import DimensionNumbers, newton_schulz, views
from fgo_jax.precondition.shared.modes import Modes
from fgo_jax.precondition.shared.preconditioner import Preconditioner, inherited

_NAME = "scale_by_layer_noise"
NORMS = ("nuclear", "l1", "l2")
# Muon's steps bring all but tiny singular values near 1. Two steps of the quintic iteration that
# converges to the polar factor remove the remaining error, which Muon tolerates.
_POLAR = [[3.4445, -4.7750, 2.0315]] * 5 + [[1.875, -1.25, 0.375]] * 2
# Squared noise below this share of the largest is that of a layer whose true gradient is zero.
_ROUNDING = 1e-10


class ScaleByLayerNoiseState(NamedTuple):
    """State of :func:`scale_by_layer_noise`, grouped by how often it changes."""

    layer_step: jax.Array  # [], int32
    direction_state: Any  # that of `direction`
    first_of_pair: Any  # like the parameters, float32; NaN where it cannot be squared
    # For each leaf a scalar; for a stack of matrices one for each, of the leaf's rank. They change
    # when a pair is complete.
    noise_sum: Any  # float32; decayed sum of the squared norms
    noise_weight: Any  # float32; of its weights, 0 before the first pair
    layer_noise: Any  # float32; root of the mean squared norm, 0 before the first pair
    layer_rates: Any  # float32, in (0, 1]; factor of the update


def scale_by_layer_noise(
    direction: optax.GradientTransformation,
    alpha: jax.typing.ArrayLike = 0.1,
    *,
    every: jax.typing.ArrayLike = 10,
    decay: jax.typing.ArrayLike = 0.9,
    norms: Any = None,
    weight_dimension_numbers: DimensionNumbers = None,
) -> optax.GradientTransformationExtraArgs:
    r"""LANTON: noisier layers take shorter steps than the other layers of their kind.

    It is a direction if `direction` is: no learning rate, no minus sign. With the update
    :math:`u_l` of `direction` for layer l,

    .. math:: u_l \leftarrow u_l \sqrt{a_l / \max_k a_k},
              \qquad a_l = \frac{\alpha}{\sqrt{\alpha^2 + H_l / \bar H}},
              \qquad H_l = E\,\|N_l\|_*^2.

    The maximum and the mean :math:`\bar H` are over the layers that share a norm. A layer whose H
    is below 1e-10 of the largest, a rounding error, is in neither and keeps its update. So does
    the least noisy of the others. As :math:`\alpha \to 0` the rest fall as the root of their
    noise; as :math:`\alpha \to \infty` nothing changes. No factor is below
    :math:`(\alpha^2 / (\alpha^2 + H_l/\bar H))^{1/4}`, a third for a layer of mean noise at the
    default. The noise is measured in the dual of the norm in which the update has a fixed size:

    | name | of updates that are | norm of the noise |
    |---|---|---|
    | nuclear | orthogonalised m x n matrices (Muon, FISMO) | sqrt(n/m) sum of singular values |
    | l1 | signs, nearly (Adam) | sum of absolute values |
    | l2 | of unit length | root of the sum of squares |

    No singular values are computed: a nuclear norm is the inner product of a matrix with its
    polar factor, from seven Newton-Schulz steps (within 0.1 % for matrices of noise).

    The noise is that of pairs of successive gradients, :math:`N = (G' - G)/\sqrt 2`, as in
    :func:`fgo_jax.probes.gradient_stream`: one pair every ``every`` steps. ``every=1`` takes the
    difference at every step, as the paper does. It costs more, and neighbouring differences
    share a gradient. The parameters move between the two gradients. So a row also holds the
    curvature times the step, which is no noise and is largest in layers that oscillate.

    Args:
      direction: makes the updates, from raw gradients and all extra arguments.
      alpha: > 0; evens out the rates. In the unit of the mean noise of the layers that share a
        norm, so that scaling the loss changes nothing.
      every: steps from one pair to the next, at least 1.
      decay: of the mean of squared norms, per pair, in [0, 1).
      norms: a name from the table for all leaves, a tree of names (or a prefix of one), or a
        function from the parameters to it. None is "nuclear" for matrices and "l1" for other
        leaves, as fits Muon and FISMO. For Adam pass "l1".
      weight_dimension_numbers: which axes form matrices, as in :func:`fgo_jax.scale_by_fismo`.
        Each matrix of a stack is a layer. Orientation matters: rows are inputs.

    Returns:
      A gradient transformation. :func:`fgo_jax.telemetry` shows ``layer_noise/PATH`` and
      ``layer_rate/PATH``; elsewhere ``optax.tree.get(state, "layer_rates")`` does. If
      `direction` has a metric, so has the result. Its state has four more bytes per parameter.

    Raises:
      ValueError: for an argument out of its range, an unknown norm, the nuclear norm of a leaf
        that is no matrix, and a leaf that is complex or not floating-point.

    >>> import jax.numpy as jnp, optax
    >>> transform = scale_by_layer_noise(optax.scale_by_sign(), 1e-3, every=1, norms="l1")
    >>> params = {"calm": jnp.zeros(2), "noisy": jnp.zeros(2)}
    >>> state = transform.init(params)
    >>> for noise in (1.0, -1.0):
    ...     grads = {"calm": jnp.full(2, noise), "noisy": jnp.full(2, 16 * noise)}
    ...     updates, state = transform.update(grads, state, params)
    >>> {name: round(float(rate), 3) for name, rate in state.layer_rates.items()}
    {'calm': 1.0, 'noisy': 0.25}

    Source: LANTON (arXiv 2510.14009), for the norms, the running mean and a_l. The rule from
    a_l to rates is a reconstruction: the accessible text ends before it. The
    paper publishes neither code nor values of its constants. Its alpha is absolute; the unit
    here, the pairs and all defaults are this library's. Its reported speed-up is early in
    training and fades later; none of it has been measured here.
    """
    _checks.positive("alpha", alpha)
    _checks.integer("every", every)
    _checks.fraction("decay", decay)
    inner = optax.with_extra_args_support(direction)

    def kinds(tree: Any) -> list[tuple[str, Modes | None]]:
        """The norm of each leaf, and its view where that is the nuclear one."""
        return _kinds(norms, tree, views(weight_dimension_numbers, tree))

    def init(params: Any) -> ScaleByLayerNoiseState:
        leaves, treedef = jax.tree.flatten(params)
        check_floating(_NAME, leaves)
        found = [view for _, view in kinds(params)]
        shapes = [
            tuple(n if axis in view.batch else 1 for axis, n in enumerate(view.shape))
            if view is not None and view.batch
            else ()
            for view in found
        ]

        def per_layer(value: float) -> Any:
            return treedef.unflatten([jnp.full(shape, value, jnp.float32) for shape in shapes])

        return ScaleByLayerNoiseState(
            layer_step=jnp.zeros([], jnp.int32),
            direction_state=inner.init(params),
            first_of_pair=optax.tree.zeros_like(params, dtype=jnp.float32),
            noise_sum=per_layer(0.0),
            noise_weight=per_layer(0.0),
            layer_noise=per_layer(0.0),
            layer_rates=per_layer(1.0),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        leaves, treedef = jax.tree.flatten(updates)
        check_floating(_NAME, leaves)
        of_leaf = kinds(updates)
        towards, inner_state = inner.update(updates, state.direction_state, params, **extra_args)
        step, gap = state.layer_step, jnp.asarray(every, jnp.int32)
        names = ("noise_sum", "noise_weight", "layer_noise", "layer_rates")

        def complete(step: Any, grads: Any, first: Any, fields: Any) -> Any:
            old = [treedef.flatten_up_to(field) for field in fields]
            pairs = zip(jax.tree.leaves(grads), treedef.flatten_up_to(first), strict=True)
            keep = jnp.asarray(decay, jnp.float32)
            sums, weights = [], []
            for (g, before), (name, view), total, weight in zip(
                pairs, of_leaf, *old[:2], strict=True
            ):
                row = (g.astype(jnp.float32) - before) * jnp.float32(0.5**0.5)
                square = jnp.square(everywhere(dual_norm(row, name, view)))
                good = jnp.isfinite(square)
                sums.append(jnp.where(good, keep * total + (1 - keep) * square, total))
                weights.append(jnp.where(good, keep * weight + (1 - keep), weight))
            means = [
                total / jnp.where(weight > 0, weight, 1.0)
                for total, weight in zip(sums, weights, strict=True)
            ]
            rates = _rates(means, weights, [name for name, _ in of_leaf], alpha)
            new = (sums, weights, [jnp.sqrt(mean) for mean in means], rates)
            return optax.safe_increment(step), tuple(treedef.unflatten(field) for field in new)

        def hold(grads: Any, first: Any) -> Any:
            del first
            pairs = zip(jax.tree.leaves(grads), of_leaf, strict=True)
            return treedef.unflatten([_squarable(g, view) for g, (_, view) in pairs])

        fields, read = tuple(getattr(state, name) for name in names), step
        if leaves:
            second = (step > 0) & ((step - 1) % gap == 0)
            read, fields = jax.lax.cond(
                second, complete, lambda step, grads, first, fields: (step, fields),
                step, updates, state.first_of_pair, fields,
            )  # fmt: skip
        first_of_pair = jax.lax.cond(
            ordered_after(step % gap == 0, read),  # the pair before is complete
            hold, lambda grads, first: first, updates, state.first_of_pair,
        )  # fmt: skip
        new = ScaleByLayerNoiseState(
            layer_step=jnp.asarray(optax.safe_increment(step)),
            direction_state=inner_state,
            first_of_pair=first_of_pair,
            **dict(zip(names, fields, strict=True)),
        )
        scaled = jax.tree.map(times, towards, new.layer_rates)
        return scaled, optax.tree.cast_like(new, state)

    metric: Any = getattr(direction, "metric", None)
    if metric is None:
        return optax.GradientTransformationExtraArgs(on_mesh(init), compiled_once(update))

    def scaled_metric(grads: Any, state: Any) -> Any:
        rows = metric(grads, state.direction_state)
        return jax.tree.map(lambda row, rate: row * jnp.sqrt(rate), rows, state.layer_rates)

    return Preconditioner(init, update, scaled_metric, *inherited(direction))


def layer_numbers(tree: Any) -> dict[str, jax.Array]:
    """Noise and rate of each leaf by its path, for telemetry; of each matrix of a stack."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, ScaleByLayerNoiseState))
    states = [node for node in nodes if isinstance(node, ScaleByLayerNoiseState)]
    numbers = {}
    for which, state in enumerate(states):
        runs = state.layer_step.shape  # of an ensemble of models
        several = f"{which}/" if len(states) > 1 else ""
        for name, field in (("layer_noise", state.layer_noise), ("layer_rate", state.layer_rates)):
            for path, leaf in zip(leaf_names(field), jax.tree.leaves(field), strict=True):
                key = f"{name}/{several}{path}"
                if leaf.ndim - len(runs) < 3:  # no stack of matrices
                    numbers[key] = leaf
                else:
                    members = jnp.moveaxis(leaf.reshape(*runs, -1), -1, 0)
                    numbers |= {f"{key}/{i}": one for i, one in enumerate(members)}
    return numbers


def dual_norm(x: jax.Array, name: str, view: Modes | None) -> jax.Array:
    """The norm of a leaf, []; of a stack the nuclear norm of each matrix, of the leaf's rank."""
    if view is None:
        return jnp.sum(jnp.abs(x)) if name == "l1" else jnp.sqrt(jnp.sum(jnp.square(x)))
    # Unit length: the iteration adds a fixed epsilon to it.
    size = jnp.sqrt(view.reduce(jnp.sum, jnp.square(x)))
    unit = x / jnp.where(size > 0, size, 1.0)
    polar = newton_schulz(unit, view, _POLAR, 1e-7)
    rows, columns = view.dims
    norm = (columns / rows) ** 0.5 * size * view.reduce(jnp.sum, unit * polar)
    return norm if view.batch else norm.reshape(())


def _rates(
    means: Sequence[jax.Array], weights: Sequence[jax.Array], names: Sequence[str], alpha: Any
) -> list[jax.Array]:
    """(a_l / max a)^(1/2) of each layer, 1 where nothing but rounding errors is measured."""
    rates, alpha = list(means), jnp.asarray(alpha, jnp.float32)
    for name in dict.fromkeys(names):
        same = [i for i, other in enumerate(names) if other == name]
        h = jnp.concatenate([means[i].reshape(-1) for i in same])
        seen = jnp.concatenate([weights[i].reshape(-1) for i in same]) > 0
        floor = _ROUNDING * jnp.max(jnp.where(seen, h, 0.0))
        seen = seen & (h > floor)
        unit = jnp.sum(jnp.where(seen, h, 0.0)) / jnp.maximum(jnp.sum(seen.astype(jnp.float32)), 1)
        least = jnp.min(jnp.where(seen, h, jnp.inf))
        known = (unit > 0) & jnp.isfinite(least)
        unit, least = (jnp.where(known, x, 1.0) for x in (unit, least))

        def spread(h: jax.Array, unit: Any = unit) -> jax.Array:
            return 1.0 + h / unit / alpha / alpha  # 1/a^2; alpha^2 may be beyond float32

        for i in same:
            rate = jnp.sqrt(jnp.sqrt(spread(least) / spread(means[i])))
            rates[i] = jnp.where(known & (weights[i] > 0) & (means[i] > floor), rate, 1.0)
    return rates


def _kinds(norms: Any, tree: Any, found: Sequence[Modes | None]) -> list[tuple[str, Modes | None]]:
    if norms is None:
        return [("l1", None) if view is None else ("nuclear", view) for view in found]
    names: list[str] = []
    jax.tree.map(
        lambda name, below: names.extend([name] * len(jax.tree.leaves(below))),
        called(norms, tree),
        tree,
    )
    for name, view in zip(names, found, strict=True):
        _checks.choice("norms", name, NORMS)
        if name == "nuclear" and view is None:
            raise ValueError(
                "norms asks for the nuclear norm of a leaf that is no matrix: give such leaves "
                "'l1' or 'l2'."
            )
    return [(n, view if n == "nuclear" else None) for n, view in zip(names, found, strict=True)]


def _squarable(g: jax.Array, view: Modes | None) -> jax.Array:
    """In float32, NaN where it cannot be squared: the leaf, or one matrix of a stack."""
    g = g.astype(jnp.float32)
    total = jnp.sum(g * g) if view is None else view.reduce(jnp.sum, g * g)
    return jnp.where(jnp.isfinite(total), g, jnp.nan)
