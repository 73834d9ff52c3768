"""Accumulation of micro-batches; the default probe reads their gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg.compiled import compiled_once
from fgo_jax.linalg.fitting import check_fits
from fgo_jax.linalg.mesh import on_mesh
from fgo_jax.linalg.trees import widened
from fgo_jax.probes.probe import MicroGradients
from fgo_jax.smoothing import growing_mean


class AccumulateState(NamedTuple):
    """Sums over the micro-batches of the running step."""

    micro_step: jax.Array  # [], int32; how many they are
    first_sum: Any  # float32 (or wider), shaped like the parameters; of the first half of them
    second_sum: Any  # the same, of the second half
    loss_count: jax.Array  # [], int32; how many had a value
    loss_sum: jax.Array  # [], float32
    reported: jax.Array  # [], float32; their newest validation_value, NaN where there is none
    inner_opt_state: Any


def accumulate(
    optimizer: optax.GradientTransformation, every: int, *, axis_name: str | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Makes one step from the gradients of ``every`` micro-batches, and measures on them.

    As with `optax.MultiSteps`, updates are zero except at the last of k = ``every`` calls.
    There the optimizer gets the mean of the k gradients. It counts only such steps. In
    addition:

    - The default probe reads the noise of that mean from the micro-batches themselves. Let
      :math:`g, g'` be the mean gradients of the first m = k // 2 and of the others. The row
      :math:`(g' - g) \sqrt{m (k - m)} / k` has the covariance of the step's gradient noise, and
      :math:`\langle g, g' \rangle` is the squared norm of the mean gradient on average. Signals
      keep their meaning, a pair costs one step instead of two, and the parameters do not move
      in between.
    - ``value`` is averaged over the micro-batches that have one. For ``validation_value`` the
      newest that is not NaN counts. The optimizer gets both only if the last call has them, so
      pass them at every call. ``grad``, which :func:`fgo_jax.scale_by_friction_limit` reads,
      becomes the mean gradient. Other extra arguments, such as ``batch``, come from the last call.
    - The optimizer runs once in k calls, inside a `jax.lax.switch`.

    A micro-batch whose gradients or loss are not finite spoils the mean. :func:`phased` then
    skips the step, and the next one begins anew.

    Args:
      optimizer: any optimizer, with :func:`fgo_jax.target_acquisition` in a chain or under
        `optax.partition` too.
      every: micro-batches of a step. 1 returns the optimizer itself.
      axis_name: inside `jax.pmap` or `jax.shard_map`, the axis over which ``value`` and
        ``validation_value`` are averaged, as in :func:`phased`. Gradients must be averaged
        already.

    Returns:
      A gradient transformation. Updates have the parameters' dtypes. Its state takes 8 bytes per
      parameter and the optimizer's. It can be saved between two micro-batches, and resumed with
      another ``every``; the probe's numbers for that step are then slightly wrong.
      :func:`fgo_jax.telemetry` takes this state too.

    Raises:
      ValueError: unless `every` is an integer >= 1; in ``update``, for a value that is not
        a scalar, for a state of another optimizer, and for gradients of another tree.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> tx = fgo.accumulate(optax.sgd(0.5), every=2)
      >>> params = {"w": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> for gradient in (1.0, 3.0):
      ...     grads = {"w": jnp.full(2, gradient)}
      ...     updates, state = tx.update(grads, state, params, value=jnp.float32(1.0))
      ...     print(updates["w"].tolist())
      [0.0, 0.0]
      [-1.0, -1.0]

    Source: McCandlish et al. (2018), "An empirical model of large-batch training", appendix A,
    for the noise of a gradient from those of its parts.
    """
    _checks.positive_int("every", every)
    _checks.transform("optimizer", optimizer)
    inner = optax.with_extra_args_support(optimizer)
    if every == 1:
        return inner
    half = every // 2

    def init(params: Any) -> AccumulateState:
        return AccumulateState(
            micro_step=jnp.zeros([], jnp.int32),
            first_sum=growing_mean.zeros(params),
            second_sum=growing_mean.zeros(params),
            loss_count=jnp.zeros([], jnp.int32),
            loss_sum=jnp.zeros([], jnp.float32),
            reported=jnp.full([], jnp.nan, jnp.float32),
            inner_opt_state=inner.init(params),
        )

    def update(updates: Any, state: Any, params: Any = None, **extras: Any) -> tuple[Any, Any]:
        _checks.own_state("accumulate", state, AccumulateState)
        check_fits("gradient", updates, "the state's sums", state.first_sum)
        given = {name: extra for name, extra in extras.items() if extra is not None}
        number, state = state.micro_step, _with_numbers(state, given, axis_name)
        # Branches must agree in dtype; the optimizer may return either.
        like = updates if params is None else params

        def first(state: AccumulateState) -> tuple[Any, AccumulateState]:
            state = state._replace(first_sum=_added(state.first_sum, updates))
            return optax.tree.zeros_like(like), state

        def second(state: AccumulateState) -> tuple[Any, AccumulateState]:
            state = state._replace(second_sum=_added(state.second_sum, updates))
            return optax.tree.zeros_like(like), state

        def last(state: AccumulateState) -> tuple[Any, AccumulateState]:
            _, state = second(state)
            # `every`, or more if it was larger before a resumption.
            count = state.micro_step.astype(jnp.float32)
            loss_count = state.loss_count.astype(jnp.float32)
            means = {"value": state.loss_sum / loss_count, "validation_value": state.reported}
            passed = given | {name: mean for name, mean in means.items() if name in given}
            passed["micro_grads"] = MicroGradients(
                optax.tree.scale(1 / half, state.first_sum),
                optax.tree.scale(1 / (every - half), state.second_sum),
                jnp.full([], (half * (every - half)) ** 0.5 / every, jnp.float32),
            )
            mean = jax.tree.map(
                lambda a, b, g: ((a + b) / count).astype(g.dtype),
                state.first_sum,
                state.second_sum,
                widened(updates, params),
            )
            if "grad" in passed:
                passed["grad"] = mean
            updates_, inner_state = inner.update(mean, state.inner_opt_state, params, **passed)
            new = emptied(state)._replace(inner_opt_state=inner_state)
            return optax.tree.cast_like(updates_, like), optax.tree.cast_like(new, state)

        branch = (number >= half).astype(jnp.int32) + (number >= every - 1).astype(jnp.int32)
        return jax.lax.switch(branch, (first, second, last), state)

    return optax.GradientTransformationExtraArgs(on_mesh(init), compiled_once(update))


def _with_numbers(
    state: AccumulateState, given: dict[str, Any], axis_name: str | None
) -> AccumulateState:
    """The state with one more micro-batch, of which only the gradients are missing."""

    def read(name: str) -> jax.Array:
        _checks.scalar(name, given[name])
        number = jnp.asarray(given[name], jnp.float32)
        return number if axis_name is None else jax.lax.pmean(number, axis_name)

    state = state._replace(micro_step=state.micro_step + 1)
    if "value" in given:
        total = state.loss_sum + read("value")
        state = state._replace(loss_count=state.loss_count + 1, loss_sum=total)
    if "validation_value" in given:
        newest = read("validation_value")
        state = state._replace(reported=jnp.where(jnp.isnan(newest), state.reported, newest))
    return state


def _added(total: Any, updates: Any) -> Any:
    return jax.tree.map(lambda s, g: s + g.astype(s.dtype), total, updates)


def emptied(state: AccumulateState) -> AccumulateState:
    """The state with the sums of the running step reset."""
    return state._replace(
        micro_step=jnp.zeros_like(state.micro_step),
        first_sum=optax.tree.zeros_like(state.first_sum),
        second_sum=optax.tree.zeros_like(state.second_sum),
        loss_count=jnp.zeros_like(state.loss_count),
        loss_sum=jnp.zeros_like(state.loss_sum),
        reported=jnp.full_like(state.reported, jnp.nan),
    )
