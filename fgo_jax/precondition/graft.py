"""Updates with the length of one transformation and the direction of another."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg.compiled import compiled_once
from fgo_jax.linalg.fitting import check_fits
from fgo_jax.linalg.mesh import on_mesh
from fgo_jax.linalg.trees import log_norm_ratio, sum_squares, wide
from fgo_jax.precondition.layer_noise import ScaleByLayerNoiseState
from fgo_jax.precondition.shared.leaves import given_back
from fgo_jax.precondition.shared.preconditioner import Preconditioner


class GraftState(NamedTuple):
    """State of :func:`graft`."""

    graft_step: jax.Array  # shape=(), dtype=jnp.int32.
    magnitude_state: Any  # that of `magnitude`.
    direction_state: Any  # that of `direction`.


def graft(
    magnitude: optax.GradientTransformation,
    direction: optax.GradientTransformation,
    weight: optax.ScalarOrSchedule = 1.0,
    *,
    global_norm: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Each tensor's update in one transformation's direction, with the length of another's.

    It is a direction if both are: no learning rate, no minus sign.

    With M and D the updates of `magnitude` and `direction` for the same gradient, per tensor

        update = D (||M|| / ||D||)^w,   of norm ||M||^w ||D||^(1 - w),

    where w is the weight: 1 takes the whole length from M, 0 gives D bit for bit. A schedule from 1
    to 0 fades the graft out, log-linearly between the two norms.

    A learning rate tuned for `magnitude` then serves `direction`, tensor by tensor. Once a
    preconditioner has its own scale, the graft can go. Both transformations see raw gradients, all
    extra arguments and the parameters. Both states are held, and both move at any weight.

    A tensor whose M is zero gets a zero update while w > 0; one whose D is zero always does. If the
    norm of M or D is not finite, the tensor's update is zero while w > 0; at w = 0 only the
    non-finite entries of D become zero, and at any w those that float16 gradients cannot hold. A
    gradient that is not finite, or whose square overflows float32, gives zero too: both
    transformations get NaN there, and entries of their states that would become NaN or infinite
    keep their values.

    Args:
      magnitude: gives the norms. It has no learning rate, or both transformations have one.
      direction: gives the directions.
      weight: a number in [0, 1], or a schedule of the steps to such numbers.
      global_norm: whether one ratio, of the norms of the whole trees, scales all tensors.

    Returns:
      A gradient transformation in the dtypes of the gradients. If `direction` is a
      :class:`fgo_jax.precondition.Preconditioner`, so is the result, with the same metric; it keeps
      its scale if each member that has a part in its norms does. The state takes as many bytes per
      parameter as both states together.

    Raises:
      ValueError: for a weight outside of [0, 1].

    >>> import jax.numpy as jnp, optax
    >>> transform = graft(optax.identity(), optax.scale_by_sign())
    >>> grads = {"w": jnp.array([3.0, 4.0])}
    >>> updates, _ = transform.update(grads, transform.init(grads))
    >>> [round(float(u), 4) for u in updates["w"]]  # of norm 5, along (1, 1)
    [3.5355, 3.5355]
    >>> fading = optax.linear_schedule(1.0, 0.0, 200)  # from Adam's lengths to the direction's own
    >>> transform = graft(optax.scale_by_adam(), optax.scale_by_sign(), fading)

    Sources: Agarwal et al., "Disentangling adaptive gradient methods from learning rates", 2020
    (arXiv 2002.11803); Eschenhagen et al., 2025 (arXiv 2506.03595), on when to leave it.
    """
    _checks.transform("magnitude", magnitude)
    _checks.transform("direction", direction)
    if not callable(weight):
        _checks.unit("weight", weight)
    _checks.static("global_norm", global_norm)
    length = optax.with_extra_args_support(magnitude)
    course = optax.with_extra_args_support(direction)

    def init(params: Any) -> GraftState:
        return GraftState(
            graft_step=jnp.zeros([], jnp.int32),
            magnitude_state=length.init(params),
            direction_state=course.init(params),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if params is not None:
            check_fits("gradient", updates, "the parameters", params)
        marked = jax.tree.map(_marked, updates)
        wanted, magnitude_state = length.update(marked, state.magnitude_state, params, **extra_args)
        given, direction_state = course.update(marked, state.direction_state, params, **extra_args)
        w = weight(state.graft_step) if callable(weight) else weight
        _checks.scheduled("weight", w)
        w = jnp.asarray(w, jnp.float32)

        if global_norm:
            scale = grafted_scale(wanted, given, w)
            new = jax.tree.map(lambda d, g: _scaled(scale, d, g), given, updates)
        else:
            new = jax.tree.map(
                lambda m, d, g: _scaled(grafted_scale(m, d, w), d, g), wanted, given, updates
            )
        state = GraftState(
            graft_step=jnp.asarray(optax.safe_increment(state.graft_step)),
            magnitude_state=_finite_or_old(magnitude_state, state.magnitude_state),
            direction_state=_finite_or_old(direction_state, state.direction_state),
        )
        return new, state

    metric = getattr(direction, "metric", None)
    if metric is None:
        return optax.GradientTransformationExtraArgs(on_mesh(init), compiled_once(update))
    # The updates are as large as those of each member that has a part in their norm.
    fixed = None if callable(weight) else _checks.number(weight)
    members = [magnitude] * (fixed != 0.0) + [direction] * (fixed != 1.0)
    told = [getattr(member, "keeps_scale", None) for member in members]
    keeps = False if False in told else None if None in told else True
    return Preconditioner(
        init,
        update,
        lambda grads, state: metric(grads, state.direction_state),
        keeps_scale=keeps,
        momentum_dtype=getattr(direction, "momentum_dtype", None),
    )


def grafted_scale(wanted: Any, given: Any, weight: jax.Array) -> jax.Array:
    """(||wanted|| / ||given||)^weight.

    It is zero where one of the norms is zero or not finite, and always 1 at weight 0.
    """
    ratio, known = log_norm_ratio(sum_squares(wanted), sum_squares(given))
    # exp(88) is the largest that float32 holds.
    scale = jnp.where(known, jnp.exp(weight * jnp.minimum(ratio, 88.0)), 0.0)
    return jnp.where(weight > 0, scale, 1.0)


def _marked(gradient: Any) -> jax.Array:
    """NaN instead of the entries that float32 cannot square."""
    gradient = jnp.asarray(gradient)
    modulus = jnp.abs(gradient) if jnp.iscomplexobj(gradient) else gradient
    square = jnp.square(modulus.astype(jnp.float32))
    return jnp.where(jnp.isfinite(square), gradient, jnp.nan).astype(gradient.dtype)


def _finite_or_old(new: Any, old: Any) -> Any:
    """The new state in the old dtypes; entries that are not finite keep their old values.

    It is elementwise, so it adds no pass over the moments.
    """

    def marks(node: Any) -> bool:
        return isinstance(node, ScaleByLayerNoiseState)

    def keep(new: Any, old: Any) -> Any:
        if marks(new):  # it marks by NaN what it cannot measure
            inner = _finite_or_old(new.direction_state, old.direction_state)
            return optax.tree.cast_like(new, old)._replace(direction_state=inner)
        if not jnp.issubdtype(jnp.result_type(new), jnp.inexact):
            return new
        return jnp.where(jnp.isfinite(new), new, old)

    return jax.tree.map(keep, optax.tree.cast_like(new, old), old, is_leaf=marks)


def _scaled(scale: jax.Array, direction: jax.Array, like: jax.Array) -> jax.Array:
    direction = jnp.where(jnp.isfinite(direction), direction, jnp.zeros_like(direction))
    return given_back(wide(direction) * scale, True, like)
