"""The weights to evaluate, where a run holds an average of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from fgo_jax.controller.state import FgoState
from fgo_jax.linalg.fitting import check_fits
from fgo_jax.linalg.wrapped import unwrapped, wrapped_like
from fgo_jax.smoothing.average_weights import AverageWeightsState, average_point
from fgo_jax.smoothing.primal_averaging import PrimalAveragingState, primal_point

_HOLDERS = (FgoState, AverageWeightsState, PrimalAveragingState)


def eval_params(opt_state: Any, params: Any) -> Any:
    """The averaged weights, for validation and for the final model.

    The average includes the present parameters. Training goes on from ``params``, not from
    the average.

    Args:
      opt_state: an optax state that holds an average: of :func:`average_weights`, of
        :func:`scale_by_primal_averaging`, or of :func:`fgo_jax.target_acquisition` with
        ``average_weights=``. Under `optax.masked` and `optax.partition` each average is of its
        own part of the parameters. Parameters without an average are returned as they are.
        Outside of phases primal averaging must come after the learning rate.
      params: the parameters after the last update.

    Returns:
      A pytree like ``params``, in its dtypes.

    Raises:
      ValueError: where the state holds no average, or more than one of the same parameters;
        for parameters of another tree; for states that are stacked; for a primal averaging in a
        phase whose transform is not the last one.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> tx = fgo.target_acquisition(3e-3, average_weights=0.1)
      >>> params = {"w": jnp.ones(2)}
      >>> fgo.eval_params(tx.init(params), params)["w"].shape
      (2,)

    Source: as :func:`average_weights` and :func:`scale_by_primal_averaging`.
    """
    advice = (
        "pass average_weights= to target_acquisition, or add fgo.average_weights() to the chain "
        "once."
    )
    found = list(_averages(opt_state))
    if not found:
        raise ValueError(f"the state holds 0 averages of the weights, not one: {advice}")
    averaged, seen = unwrapped(params), set()
    for average, point in found:
        own = {path for path, _ in jax.tree_util.tree_leaves_with_path(average)}
        if own & seen:
            raise ValueError(f"the state holds more than one average of the same weights: {advice}")
        seen |= own
        check_fits("parameter", averaged, "the state's average of the weights", average)
        averaged = own_part(
            lambda leaf, part, point=point: point(leaf, part).astype(part.dtype), average, averaged
        )
    return wrapped_like(averaged, params)


def own_part(function: Callable[[Any, Any], Any], kept: Any, params: Any) -> Any:
    """`function(kept, parameters)` of each leaf that is kept; the other parameters as they are.

    Under `optax.masked` and `optax.partition` a transform keeps a part of the parameters.
    """
    return jax.tree.map(
        lambda leaf, part: part if isinstance(leaf, optax.MaskedNode) else function(leaf, part),
        kept,
        params,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )


def check_one_run(count: jax.Array, reader: str) -> None:
    """Raises where a state's scalar, such as a count of steps, has an axis of runs."""
    if count.ndim:
        raise ValueError(
            f"the state holds several runs: call jax.vmap(fgo.{reader})(opt_state, params), or "
            "pass one, as in jax.tree.map(lambda x: x[0], (opt_state, params))."
        )


def averaged_or_last(opt_state: Any, params: Any) -> Any:
    """The averaged weights where the state holds an average, otherwise the parameters."""
    return eval_params(opt_state, params) if next(_averages(opt_state), None) else params


def _averages(tree: Any, unit: Any = 1.0) -> Iterator[tuple[Any, Callable[[Any, Any], Any]]]:
    """What each average keeps, and the function of its leaves and the parameters'."""
    for node in _nodes(tree, _HOLDERS):
        node = unwrapped(node)
        if isinstance(node, AverageWeightsState):
            check_one_run(node.averaged_steps, "eval_params")
            yield node.average, average_point(node)
        elif isinstance(node, PrimalAveragingState):
            check_one_run(node.averaging_steps, "eval_params")
            yield node.trail, primal_point(node, unit)
        else:
            _check_last(node)
            # Inside a phase a trail is in the unit of directions.
            yield from _averages((node.average, node.transforms), -node.fgo_learning_rate)


def _check_last(state: FgoState) -> None:
    """Raises for an averaging in an earlier phase: afterwards its trail is stale."""
    # The first transform fills, and has a graft, only where a later phase comes back to it.
    comes_back = len(state.grafts) == len(state.transforms)
    early = state.transforms if comes_back else state.transforms[:-1]
    if _nodes(early, PrimalAveragingState):
        raise ValueError(
            "a primal averaging in a phase before the last one has no average once its phase is "
            "over: use it in the last phase, or behind all of them, as in "
            "optax.chain(optimizer, fgo.scale_by_primal_averaging(...))."
        )


def _nodes(tree: Any, kinds: Any) -> list[Any]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kinds))
    return [leaf for leaf in leaves if isinstance(leaf, kinds)]
