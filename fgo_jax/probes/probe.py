"""What a probe is: a measurement inside the training step, with a cadence of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fgo_jax import _checks


class Estimate(NamedTuple):
    """A measured number and its standard error.

    Attributes:
      value: [], float32, in the unit of its signal. NaN before the first measurement.
      error: [], float32, standard error of the value. NaN where none is known. Infinite
        where the value must not be trusted: every condition on the signal is then unknown,
        so neither the condition nor its negation ends a phase.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> estimate = fgo.probes.Estimate(jnp.float32(12.0), jnp.float32(1.5))
      >>> float(estimate.value + 2 * estimate.error)
      15.0

    Source: the definition above.
    """

    value: jax.Array
    error: jax.Array


class MicroGradients(NamedTuple):
    r"""Two independent gradients at the same parameters, from the micro-batches of one step.

    :func:`fgo_jax.accumulate` makes them. Where the gradient of each of k micro-batches has the
    noise covariance C, their mean, which makes the update, has C / k.

    Attributes:
      first: mean over the first m = k // 2 micro-batches; shaped like the parameters.
      second: mean over the others; shaped alike.
      scale: [], float32; :math:`\sqrt{m (k - m)} / k`. The difference of the two means, times
        this, has the covariance C / k.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> micro = fgo.probes.MicroGradients(jnp.zeros(3), jnp.ones(3), jnp.float32(0.5))
      >>> ((micro.second - micro.first) * micro.scale).tolist()
      [0.5, 0.5, 0.5]

    Source: the definition above.
    """

    first: Any
    second: Any
    scale: jax.Array


class ProbeInputs(NamedTuple):
    """What one training step offers to a probe.

    Attributes:
      grads: the raw gradients, before any clipping; shaped like the parameters.
      rows: the same gradients in the metric of the running phase's transform; shaped alike.
        They equal ``grads`` for a transform without a metric.
      params: the whole parameter tree, or None where the update was called without it.
      batch: what was passed as ``batch=``, or None.
      key: [], typed PRNG key, fresh at every step.
      step: [], int32; updates before this one. 0 at the first update, and again at the first
        one after `fgo_jax.restart`.
      axis_name: inside `jax.pmap` or `jax.shard_map`, the axis over which the batch is split,
        as :func:`fgo_jax.phased` was given it; None for one program. A probe that reads the
        batch averages over it (`jax.lax.pmean`), so that all devices decide alike.
      micro: under :func:`fgo_jax.accumulate`, two gradients of the step's micro-batches in the
        metric of ``rows``; None otherwise.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> g = jnp.ones(3)
      >>> inputs = fgo.probes.ProbeInputs(g, g, None, None, jax.random.key(0), jnp.int32(0))
      >>> probe = fgo.probes.gradient_stream()
      >>> int(probe.measure(inputs, probe.init(g)).half)  # a pair waits for its second gradient
      1

    Source: the definition above.
    """

    grads: Any
    rows: Any
    params: Any
    batch: Any
    key: jax.Array
    step: jax.Array
    axis_name: str | tuple[str, ...] | None = None
    micro: MicroGradients | None = None


@dataclasses.dataclass(frozen=True)
class Probe:
    """A measurement at some of the steps: pure functions over a state that is a pytree.

    The state needs an int32 field ``evaluations`` that grows whenever the result of ``read``
    changes. From it :func:`fgo_jax.phased` knows that a number is new. The functions run
    inside the compiled update, so they must be pure JAX, and ``measure`` must keep the
    structure, shapes and dtypes of the state.

    Attributes:
      signals: the names of the estimates that ``read`` returns.
      init: `params -> state`; must work on `jax.ShapeDtypeStruct` leaves.
      due: `(state, step) -> bool []`, whether to measure at this step. It runs at every
        step, so it should be cheap.
      measure: `(ProbeInputs, state) -> state`; runs inside one `jax.lax.cond`.
      read: `state -> {name: Estimate}`. It runs at every step, so it should be cheap.
      requires: fields of :class:`ProbeInputs` that must not be None: "params", "batch" or
        both.
      renew: `state -> state`, called when the metric of the rows changes. It drops what was
        gathered but not yet read.
      check: `(ProbeInputs) -> None`, raises at trace time where the inputs do not fit.
      counter: `(state, signal) -> int32 []`, grows whenever that signal is measured anew;
        ``evaluations`` by default.

    Raises:
      ValueError: for a string in place of a tuple of names, and another name in ``requires``.

    Example:
      A probe for the norm of the gradient, and a trigger that reads it:

      >>> from typing import NamedTuple
      >>> import jax, jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> class NormState(NamedTuple):
      ...     evaluations: jax.Array  # [], int32
      ...     norm: jax.Array  # [], float32
      >>> unknown = jnp.float32(jnp.nan)
      >>> probe = fgo.probes.Probe(
      ...     signals=("gradient_norm",),
      ...     init=lambda params: NormState(jnp.int32(0), unknown),
      ...     due=lambda state, step: step % 10 == 0,
      ...     measure=lambda inputs, state: NormState(
      ...         state.evaluations + 1, optax.tree.norm(inputs.grads)
      ...     ),
      ...     read=lambda state: {"gradient_norm": fgo.probes.Estimate(state.norm, unknown)},
      ... )
      >>> adam = optax.scale_by_adam()
      >>> tx = fgo.phased(
      ...     [fgo.acquisition(1e-3, transform=adam), fgo.execution(1e-3, transform=adam)],
      ...     [fgo.triggers.below("gradient_norm", 0.1)],  # at two measurements in a row
      ...     probe,
      ... )
      >>> params = jnp.ones(3)
      >>> state = tx.init(params)
      >>> for step in range(12):
      ...     _, state = tx.update(0.01 * params, state, params)
      >>> int(state.clock.phase), round(float(state.signals["gradient_norm"][0]), 4)
      (1, 0.0173)

    Source: the definition above.
    """

    signals: tuple[str, ...]
    init: Callable[[Any], Any]
    due: Callable[[Any, jax.Array], jax.Array]
    measure: Callable[[ProbeInputs, Any], Any]
    read: Callable[[Any], dict[str, Estimate]]
    requires: tuple[str, ...] = ()
    renew: Callable[[Any], Any] = lambda state: state
    check: Callable[[ProbeInputs], None] = lambda inputs: None
    counter: Callable[[Any, str], jax.Array] = lambda state, name: state.evaluations

    def __post_init__(self) -> None:
        _checks.names("signals", self.signals)
        _checks.names("requires", self.requires)
        for name in self.requires:
            _checks.choice("requires", name, ("params", "batch"))
