"""The weights of the best validation so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg.compiled import compiled_once
from fgo_jax.linalg.fitting import check_fits
from fgo_jax.linalg.mesh import filled_like, on_mesh
from fgo_jax.linalg.wrapped import unwrapped, wrapped_like
from fgo_jax.steering.averaged import averaged_or_last, check_one_run, own_part


class KeepBestState(NamedTuple):
    """The best report so far, and its weights."""

    calls: jax.Array  # [], int32; of `update`
    best_validation: jax.Array  # [], float32; infinite before the first report
    best_step: jax.Array  # [], int32; calls before it was reported, -1 before the first report
    best_params: Any  # like the parameters
    inner_opt_state: Any


def keep_best(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    eval_fn: Callable[[Any, Any], Any] | None = None,
    *,
    axis_name: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the weights with the lowest ``validation_value``; the updates pass unchanged.

    Pass to ``update`` the loss that was measured at the very parameters and state of this call,
    and NaN where none was measured. A value held until the next validation is one report, of the
    parameters at its first call. Of an accuracy pass the negative. All of it may run in a
    `jax.lax.scan`. A copy is made only where a report is the best one.

    `optax.tree.get(opt_state, "best_validation")` reads the best value, ``"best_step"`` the number
    of calls before it. :func:`fgo_jax.should_stop` says when to stop.

    Args:
      optimizer: any optimizer. `optax.MultiSteps` and :func:`fgo_jax.accumulate` may be inside or
        outside.
      eval_fn: ``(opt_state, params) -> weights``, those that are validated, such as
        `optax.contrib.schedule_free_eval_params`. None: the average of
        :func:`fgo_jax.eval_params` where the optimizer keeps one, otherwise the parameters.
      axis_name: inside `jax.pmap` or `jax.shard_map`, the axis over which ``validation_value`` is
        averaged, as in :func:`phased`.

    Returns:
      A gradient transformation; :func:`fgo_jax.best_params` reads the weights. Its state is the
      optimizer's and a copy of the parameters.

    Raises:
      TypeError: in ``update``, without parameters or ``validation_value``.
      ValueError: for an ``eval_fn`` that is no function; in ``update``, for a value that is no
        scalar, for a state of another optimizer, and for parameters of another tree.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> tx = fgo.keep_best(optax.sgd(1.0))
      >>> params, grads = jnp.float32(3.0), jnp.float32(1.0)
      >>> state = tx.init(params)
      >>> for value in (0.5, 0.2, float("nan"), 0.4):  # at parameters 3, 2, 1 and 0
      ...     updates, state = tx.update(grads, state, params, validation_value=value)
      ...     params = optax.apply_updates(params, updates)
      >>> float(fgo.best_params(state, params)), int(optax.tree.get(state, "best_step"))
      (2.0, 1)

    Source: Prechelt (1998), "Early stopping - but when?".
    """
    if eval_fn is not None:
        _checks.function("eval_fn", eval_fn, "(opt_state, params) -> weights")
    # `MultiSteps` is no transformation, but hands extra arguments on.
    inner: Any = optimizer
    if isinstance(optimizer, optax.GradientTransformation):
        inner = optax.with_extra_args_support(optimizer)
    validated = averaged_or_last if eval_fn is None else eval_fn

    def init(params: Any) -> KeepBestState:
        return KeepBestState(
            calls=jnp.zeros([], jnp.int32),
            best_validation=jnp.full([], jnp.inf, jnp.float32),
            best_step=jnp.full([], -1, jnp.int32),
            best_params=jax.tree.map(jnp.zeros_like, params),
            inner_opt_state=inner.init(params),
        )

    def update(updates: Any, state: Any, params: Any = None, **extras: Any) -> tuple[Any, Any]:
        reported = extras.get("validation_value")
        if params is None or reported is None:
            raise TypeError(
                "keep_best needs the parameters and their validation: call update(grads, state, "
                "params, validation_value=...), with NaN where none was measured."
            )
        _checks.own_state("keep_best", state, KeepBestState)
        _checks.scalar("validation_value", reported)
        check_fits("parameter", params, "the best weights", state.best_params)
        value = jnp.asarray(reported, jnp.float32)
        if axis_name is not None:
            value = jax.lax.pmean(value, axis_name)

        def take(best: Any, opt_state: Any, params: Any) -> Any:
            return optax.tree.cast_like(validated(opt_state, params), best)

        better = jnp.isfinite(value) & (value < state.best_validation)
        best = jax.lax.cond(
            better, take, lambda best, *_: best, state.best_params, state.inner_opt_state, params
        )
        updates, inner_state = inner.update(updates, state.inner_opt_state, params, **extras)
        return updates, KeepBestState(
            calls=jnp.asarray(optax.safe_increment(state.calls)),
            best_validation=jnp.where(better, value, state.best_validation),
            best_step=jnp.where(better, state.calls, state.best_step),
            best_params=best,
            inner_opt_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(on_mesh(init), compiled_once(update))


def best_params(opt_state: Any, params: Any) -> Any:
    """The weights of the lowest validation that was reported, from :func:`fgo_jax.keep_best`.

    Args:
      opt_state: an optax state that holds one of :func:`fgo_jax.keep_best`. Under `optax.masked`
        and `optax.partition` it keeps its own part of the parameters.
      params: the parameters after the last update, returned where nothing was reported yet, and
        where none are kept.

    Returns:
      A pytree like ``params``.

    Raises:
      ValueError: where the state holds none of :func:`fgo_jax.keep_best`, or several; for
        states that are stacked, and for parameters of another tree.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> tx = fgo.keep_best(fgo.target_acquisition(3e-3, average_weights=0.1))
      >>> params = {"w": jnp.ones(2)}
      >>> fgo.best_params(tx.init(params), params)["w"].tolist()
      [1.0, 1.0]

    Source: as :func:`fgo_jax.keep_best`.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, KeepBestState))
    found = [node for node in nodes if isinstance(node, KeepBestState)]
    if len(found) != 1:
        raise ValueError(
            f"the state holds {len(found)} of fgo.keep_best, not one: wrap the whole optimizer, "
            "as in fgo.keep_best(optimizer)."
        )
    state = unwrapped(found[0])
    check_one_run(state.best_step, "best_params")
    check_fits("parameter", unwrapped(params), "the best weights", state.best_params)
    best = own_part(
        lambda best, last: jnp.where(state.best_step >= 0, best, last),
        state.best_params,
        unwrapped(params),
    )
    return wrapped_like(best, params)


def searched_anew(state: KeepBestState) -> KeepBestState:
    """Resets the search for the best weights."""
    none = {"calls": 0, "best_validation": jnp.inf, "best_step": -1}
    new = {name: filled_like(getattr(state, name), jnp.asarray(x)) for name, x in none.items()}
    return state._replace(**new)
