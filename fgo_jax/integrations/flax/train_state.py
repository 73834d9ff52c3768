"""Flax's TrainState, with extra arguments for the optimizer and averaged weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import optax
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

from fgo_jax import eval_params


class TrainState(train_state.TrainState, kw_only=True):
    """`flax.training.train_state.TrainState` whose optimizer is given extra arguments.

    In Flax's own, ``value=`` would have to be a field of the state. Make it by
    ``create(apply_fn=, params=, tx=, batch_stats=)``, and add fields in a subclass, as in Flax.

    Attributes:
      step: number of calls of :meth:`apply_gradients`.
      apply_fn: usually ``model.apply``.
      params: the parameters that train.
      tx: the optimizer; `optax.MultiSteps` too.
      opt_state: its state, for :func:`fgo_jax.telemetry` and the others.
      batch_stats: the running statistics of batch normalisation, or None. They belong to
        ``params``. For ``eval_params`` see :func:`recompute_batch_stats`.
      eval_params: the averaged weights (read only), as :func:`fgo_jax.eval_params` gives them:
        a ValueError where the optimizer keeps no average.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> from fgo_jax.integrations.flax import TrainState
      >>> model, x = nn.Dense(2), jnp.ones((4, 3))
      >>> tx = fgo.phased([fgo.acquisition(1e-2, transform=optax.scale_by_adam())], [])
      >>> state = TrainState.create(
      ...     apply_fn=model.apply,
      ...     params=model.init(jax.random.key(0), x)["params"],
      ...     tx=optax.chain(tx, fgo.average_weights(0.1)),
      ... )
      >>> loss = lambda params: jnp.mean(state.apply_fn({"params": params}, x) ** 2)
      >>> value, grads = jax.value_and_grad(loss)(state.params)
      >>> state = state.apply_gradients(grads=grads, value=value)
      >>> bool(fgo.telemetry(state.opt_state)["loss"] == value)
      True
      >>> state.eval_params["kernel"].shape
      (3, 2)

    Source: `flax.training.train_state.TrainState`.
    """

    batch_stats: Any = None

    @property
    def eval_params(self) -> Any:
        params: Any = self.params
        if isinstance(params, dict) and OVERWRITE_WITH_GRADIENT in params:
            # Scales of 8-bit floats, which gradients replace: no optimizer knows of them.
            return {**params, "params": eval_params(self.opt_state, params["params"])}
        return eval_params(self.opt_state, params)

    def apply_gradients(self, *, grads: Any, **kwargs: Any) -> TrainState:
        """One step: ``tx.update`` with the extra arguments, then `optax.apply_updates`.

        Args:
          grads: gradients, shaped like ``params``.
          **kwargs: those named like a field of the state replace it after the step; all others,
            such as ``value=``, ``batch=`` and ``validation_value=``, go to ``tx.update``. An
            optimizer without extra arguments does not see them.

        Returns:
          The state after the step.

        Raises:
          TypeError: from ``tx.update``, for a misspelt argument and a missing one.

        Example:
          >>> import jax.numpy as jnp, optax
          >>> from fgo_jax.integrations.flax import TrainState
          >>> params = {"w": jnp.ones(2)}
          >>> state = TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.5))
          >>> state.apply_gradients(grads=params, value=1.0).params["w"].tolist()
          [0.5, 0.5]

        Source: `flax.training.train_state.TrainState`.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        replaced = {name: kwargs.pop(name) for name in fields & set(kwargs)}
        tx: Any = self.tx
        if isinstance(tx, optax.GradientTransformation):
            tx = optax.with_extra_args_support(tx)

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            return tx.update(updates, state, params, **kwargs)

        bound = self.replace(tx=optax.GradientTransformation(tx.init, update))
        moved: Any = train_state.TrainState.apply_gradients(bound, grads=grads)
        # After the step, so that `tx=`, `step=`, `params=` and `opt_state=` win too.
        return moved.replace(**{"tx": self.tx, **replaced})
