"""Momentum divided by a running estimate of the Fisher's diagonal, and clipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.curvature import losses
from fgo_jax.curvature.chunks import Part
from fgo_jax.curvature.ggn import ggn
from fgo_jax.curvature.weights import Select, check_select
from fgo_jax.linalg import mesh
from fgo_jax.linalg.devices import mean_over, on_each_device
from fgo_jax.linalg.draws import drawn_like
from fgo_jax.linalg.operator import Operator, bind_matvec
from fgo_jax.precondition.shared import model as models
from fgo_jax.precondition.shared.leaves import (
    bias_correction,
    check_floating,
    given_back,
    usable_leaves,
)
from fgo_jax.precondition.shared.preconditioner import Preconditioner

_NAME = "scale_by_diagonal_fisher"
_BARTLETT, _HUTCHINSON = "gauss_newton_bartlett", "hutchinson"


class ScaleByDiagonalFisherState(NamedTuple):
    """State of :func:`scale_by_diagonal_fisher`, grouped by how often it changes."""

    fisher_step: jax.Array  # shape=(), dtype=jnp.int32.
    first_moment: Any  # like params, dtype=jnp.float32.
    # The following fields change at a refresh.
    refreshes: jax.Array  # shape=(), dtype=jnp.int32.
    diagonal: Any  # like params, dtype=jnp.float32; averaged over refreshes, debiased.
    fisher_key: jax.Array  # shape=(2,), dtype=jnp.uint32; never changes.


def scale_by_diagonal_fisher(
    predict_fn: Callable[[Any, Any], Any] | None = None,
    loss: losses.Loss = "softmax_cross_entropy",
    estimator: str | None = None,
    *,
    operator: Operator | None = None,
    weights: Select | None = None,
    every: jax.typing.ArrayLike = 10,
    b1: jax.typing.ArrayLike = 0.96,
    b2: jax.typing.ArrayLike = 0.99,
    gamma: jax.typing.ArrayLike = 0.05,
    eps: jax.typing.ArrayLike = 1e-12,
    axis_name: str | None = None,
    seed: int = 0,
) -> Preconditioner:
    r"""Sophia: momentum over the diagonal of the Fisher, clipped.

    It is a direction: no learning rate, no minus sign.

    M is the average of the gradients, h that of estimates h^ of the diagonal. An estimate is made
    at the first step and then every ``every`` steps.

        M <- b1 M + (1 - b1) G,        M' = M / (1 - b1^t),
        h <- h + (1 - b2) / (1 - b2^n) (h^ - h)                              at the n-th refresh,
        update = clip(M' / max(gamma h, eps), -1, 1) = M' / max(gamma h, eps, |M'|).

    Where curvature is small, unknown or negative, the update is the sign of M'. Elsewhere it is the
    coordinate's Newton step, 1/gamma times as long. No entry exceeds one, from the first step on.
    Good learning rates are lower than Adam's: 0.03 and 0.25 times Adam's on two small tasks. Both
    averages are debiased. Choose ``gamma`` such that a tenth to half of the entries are not
    clipped. It has the unit of a gradient over a curvature, so scaling the loss changes nothing.

    Two estimators of the diagonal of F, both unbiased at any batch:

    - ``"gauss_newton_bartlett"``: with labels y^_i drawn from the model for each row of its outputs
      and s_i the rows' shares in the mean loss (1/B each without weights),

          h^ = (grad sum_i sqrt(s_i) l(f_i, y^_i))^2.

      Without weights this is B times the square of the mean loss's gradient. By Bartlett's
      identities the rows' gradients have mean zero over the labels. So their products vanish in the
      mean, and the mean of the squares is the diagonal of :func:`fgo_jax.curvature.ggn`. It costs
      one gradient, and h^ >= 0.
    - ``"hutchinson"``: h^ = z * F z with random signs z. It costs one product with F, about two
      gradients. It is exact for a diagonal F, and h^ may be negative.

    An entry of h^ is at worst as noisy as the square of one Gaussian, and h averages 1 / (1 - b2)
    of them. Until then the clipping bounds the effect of a small draw. A leaf whose
    gradient is not finite, or has squares that overflow float32, gets a zero update and keeps its
    M; a leaf with a non-finite estimate keeps its h. The bias corrections count such a step like
    any other.

    Everything is sharded like its leaf. Meshes need automatic axes.

    Args:
      predict_fn: ``(params, batch) -> outputs`` as for :func:`fgo_jax.curvature.ggn`.
      loss: as there. A function is allowed with ``"hutchinson"`` alone.
      estimator: one of the two above. None is ``"gauss_newton_bartlett"`` for a model and
        ``"hutchinson"`` for an operator.
      operator: instead of a model, any ``(params, batch) -> matvec`` such as those of
        :mod:`fgo_jax.curvature`. One that requires a keyword ``key`` gets a new key at every
        refresh.
      weights: of the rows of a model, as for :func:`fgo_jax.curvature.ggn`.
      every: steps from one refresh to the next.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the diagonal, per refresh, in [0, 1).
      gamma: factor of the curvature, > 0; larger values shorten the steps that are not clipped.
      eps: least denominator, > 0, in the unit of a gradient.
      axis_name: inside `jax.pmap` or `jax.shard_map`: the axis over which the batch is split and
        curvature is averaged. Gradients are expected to be averaged already.
      seed: of the key for labels, signs and the operator's draws.

    Returns:
      A :class:`fgo_jax.precondition.Preconditioner`. Its update requires ``params`` and the keyword
      ``batch``, and under `optax.masked` or `optax.partition` also ``probe_params``, the whole
      tree. Its `metric` divides by sqrt(max(gamma h, eps, |M'|)), in float32, except
      at eps, as before the first update. The state takes 8 bytes per parameter.

    Raises:
      ValueError: for an argument out of its range, for both a model and an operator or neither, for
        an estimator that does not fit them, and for a leaf that is complex or not floating-point.
      TypeError: in ``update``, without ``batch`` or without the parameters.

    >>> import jax.numpy as jnp
    >>> linear = lambda params, batch: batch * params
    >>> transform = scale_by_diagonal_fisher(linear, "squared_error", "hutchinson", gamma=1.0)
    >>> params, batch = jnp.array([1.0, 1.0, 1.0]), jnp.array([[4.0, 1.0, 0.1]])
    >>> state = transform.init(params)
    >>> updates, state = transform.update(jnp.array([8.0, 0.5, 0.5]), state, params, batch=batch)
    >>> updates.round(3).tolist()  # 8 / 4^2, 0.5 / 1^2, and 0.5 / 0.1^2 clipped
    [0.5, 0.5, 1.0]

    Sources: Liu et al., Sophia, 2023 (arXiv 2305.14342), section 2 and Algorithms 1 to 3; Martens,
    2020 (arXiv 1412.1193), on the identity of Fisher and Gauss-Newton matrix. Debiased averages and
    weighted rows are additions of this library.
    """
    if (predict_fn is None) == (operator is None):
        raise ValueError(
            f"{_NAME} needs either a model, predict_fn=, or a curvature operator, operator=, and "
            "not both."
        )
    if predict_fn is not None:
        _checks.model(predict_fn)
    if estimator is None:
        estimator = _BARTLETT if operator is None else _HUTCHINSON
    _checks.choice("estimator", estimator, (_BARTLETT, _HUTCHINSON))
    if operator is not None and estimator == _BARTLETT:
        raise ValueError(
            f"{_BARTLETT!r} draws labels from a model: pass predict_fn= and loss= instead of "
            f"operator=, or estimator={_HUTCHINSON!r}."
        )
    if operator is not None and weights is not None:
        raise ValueError("weights= are those of a model: let the operator weigh its examples.")
    if weights is not None:
        check_select("weights", weights)
    if estimator == _BARTLETT:
        losses.check_likelihood(loss, _BARTLETT, f"pass estimator={_HUTCHINSON!r}.")
        estimate = _bartlett(predict_fn, loss, weights, axis_name)
    else:
        predict: Any = predict_fn
        fisher = ggn(predict, loss, weights=weights) if operator is None else operator
        estimate = _hutchinson(fisher, axis_name)
    _checks.integer("every", every)
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.positive("gamma", gamma)
    _checks.positive("eps", eps)
    _checks.static("seed", seed)

    def refreshed(old: Any, model: Any, batch: Any, key: jax.Array, updates: Any) -> Any:
        count = optax.safe_increment(old.refreshes)
        decay = jnp.asarray(b2, jnp.float32)
        share = (1 - decay) / (1 - decay ** jnp.asarray(count, jnp.float32))

        def average(h: jax.Array, new: jax.Array) -> jax.Array:
            ok = jnp.all(jnp.isfinite(new))
            return jnp.where(ok, h + share * (new - h), h)

        new = mean_over(axis_name, estimate(model, batch, key, updates))
        diagonal = jax.tree.map(average, old.diagonal, new)
        return old._replace(refreshes=count, diagonal=diagonal)

    def denominators(diagonal: list[jax.Array], moment: list[jax.Array]) -> list[jax.Array]:
        """max(gamma h, eps, |M'|)."""
        floor = jnp.asarray(eps, jnp.float32)
        scale = jnp.asarray(gamma, jnp.float32)
        return [
            jnp.maximum(jnp.maximum(scale * h, floor), jnp.abs(m))
            for h, m in zip(diagonal, moment, strict=True)
        ]

    def debiased(moment: list[jax.Array], step: jax.Array) -> list[jax.Array]:
        correction = bias_correction(jnp.asarray(b1, jnp.float32), step)
        return [m / correction for m in moment]

    def init(params: Any) -> ScaleByDiagonalFisherState:
        check_floating(_NAME, jax.tree.leaves(params))
        return ScaleByDiagonalFisherState(
            fisher_step=jnp.zeros([], jnp.int32),
            first_moment=optax.tree.zeros_like(params, dtype=jnp.float32),
            refreshes=jnp.zeros([], jnp.int32),
            diagonal=optax.tree.zeros_like(params, dtype=jnp.float32),
            fisher_key=models.key_data(seed),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        model, batch = models.model_and_batch(_NAME, params, extra_args)
        leaves, treedef = jax.tree.flatten(updates)
        check_floating(_NAME, leaves)
        step = jnp.asarray(optax.safe_increment(state.fisher_step))
        if not leaves:
            return updates, state._replace(fisher_step=step)

        moving = jax.lax.cond(
            state.fisher_step % jnp.asarray(every, jnp.int32) == 0,
            refreshed,
            lambda old, *_: old,
            state._replace(first_moment=()),
            model,
            batch,
            models.key_of_step(state.fisher_key, state.fisher_step),
            updates,
        )
        grads, finite = usable_leaves(leaves)
        decay = jnp.asarray(b1, jnp.float32)
        moment = [
            jnp.where(ok, decay * m + (1 - decay) * g, m)
            for ok, m, g in zip(
                finite, treedef.flatten_up_to(state.first_moment), grads, strict=True
            )
        ]
        shown = debiased(moment, step)
        scale = denominators(treedef.flatten_up_to(moving.diagonal), shown)
        moved = [m / p for m, p in zip(shown, scale, strict=True)]
        out = [given_back(u, ok, g) for u, ok, g in zip(moved, finite, leaves, strict=True)]
        new = moving._replace(fisher_step=step, first_moment=treedef.unflatten(moment))
        return treedef.unflatten(out), optax.tree.cast_like(new, state)

    def metric(grads: Any, state: Any) -> Any:
        leaves, treedef = jax.tree.flatten(grads)
        check_floating(_NAME, leaves)
        moment = treedef.flatten_up_to(state.first_moment)
        moment = debiased(moment, jnp.maximum(state.fisher_step, 1))
        scale = denominators(treedef.flatten_up_to(state.diagonal), moment)
        return treedef.unflatten(
            [
                # At eps neither curvature nor a gradient has been seen.
                jnp.asarray(g, jnp.float32) * jnp.where(p <= eps, 1.0, jax.lax.rsqrt(p))
                for g, p in zip(leaves, scale, strict=True)
            ]
        )

    return Preconditioner(init, update, metric)


# (model, batch, key, updates) -> an estimate of the diagonal, like the updates.
Estimate = Callable[[Any, Any, jax.Array, Any], Any]


def _bartlett(predict_fn: Any, loss: Any, weights: Any, axis_name: str | None) -> Estimate:
    def estimate(model: Any, batch: Any, key: jax.Array, updates: Any) -> Any:
        model = on_each_device(model, batch, axis_name)

        def outputs_of(part: Any) -> Any:
            return predict_fn(models.merge(part, model), batch)

        outputs, pull = jax.vjp(outputs_of, models.restrict(model, updates))
        key = jax.random.fold_in(key, models.device_number(axis_name))
        labels = losses.draw_labels(loss, outputs, key, Part().rows)
        shares, residuals = losses.drawn_residuals(loss, outputs, labels, batch, weights)
        (gradient,) = pull((jnp.sqrt(shares) * residuals).astype(outputs.dtype))
        return jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), gradient)

    return estimate


def _hutchinson(fisher: Operator, axis_name: str | None) -> Estimate:
    def estimate(model: Any, batch: Any, key: jax.Array, updates: Any) -> Any:
        inner = models.restrict(model, updates)
        signs = drawn_like(_signs, key, inner)
        matvec = bind_matvec(fisher, model, batch, key, axis_name=axis_name)
        product = models.restrict(matvec(models.lift(signs, model)), updates)
        return jax.tree.map(jnp.multiply, signs, optax.tree.cast(product, jnp.float32))

    return estimate


def _signs(key: jax.Array, leaf: Any) -> jax.Array:
    return mesh.placed_like(jax.random.rademacher(key, leaf.shape, jnp.float32), leaf)
