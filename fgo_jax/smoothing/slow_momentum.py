"""A momentum whose memory grows with the number of steps, blended into the direction."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg.fitting import check_fits
from fgo_jax.smoothing import growing_mean

WINDOW = 0.25
RAMP_STEPS = 40


class SlowMomentumState(NamedTuple):
    """Mean of the directions since the momentum was first used."""

    averaged_steps: jax.Array  # [], int32; directions in the mean
    share: jax.Array  # [], float32; of the mean in the last update
    mean: Any  # f32 (or wider) or the dtype asked for, shaped like the parameters


def momentum_init(params: Any, dtype: Any = None) -> SlowMomentumState:
    """A mean of no directions yet."""
    return SlowMomentumState(
        averaged_steps=jnp.zeros([], jnp.int32),
        share=jnp.zeros([], jnp.float32),
        mean=growing_mean.zeros(params, dtype),
    )


def momentum_update(
    state: SlowMomentumState,
    direction: Any,
    share: jax.Array,
    *,
    window: Any = WINDOW,
    ramp_steps: Any = RAMP_STEPS,
    taken: Any = True,
) -> tuple[Any, SlowMomentumState]:
    """The blended direction and the new state.

    Args:
      share: [], float32; of the mean in the direction. While it is zero the mean stays
        empty, and it starts at the first positive share.
      taken: [], bool; a step that is not taken changes nothing.
    """
    in_use = share > 0
    steps = jnp.where(in_use, state.averaged_steps, 0)
    count = steps.astype(jnp.float32)
    # A mean of few directions is as noisy as they are, so its share starts small.
    share = share * count / (count + ramp_steps)

    def blended(leaf: jax.Array, mean: jax.Array) -> jax.Array:
        return (leaf + share * (mean - leaf)).astype(leaf.dtype)

    mean = growing_mean.moved(state.mean, direction, window, steps, taken, close=False)
    new = SlowMomentumState(
        averaged_steps=jnp.where(
            taken, jnp.where(in_use, optax.safe_increment(steps), 0), state.averaged_steps
        ),
        share=jnp.where(taken, share, state.share),
        mean=mean,
    )
    return jax.tree.map(blended, direction, mean), new


def slow_momentum(
    share: float = 0.5, *, window: float = WINDOW, ramp_steps: int = RAMP_STEPS
) -> optax.GradientTransformationExtraArgs:
    r"""Blends each direction with a long-memory mean of the directions before it.

    .. math:: m \leftarrow m + (u - m)/(c\,t + 1),
              \qquad d = (1 - \sigma_t)\,u + \sigma_t\,m,
              \qquad \sigma_t = \sigma\,t / (t + r)

    with the direction u and t directions in the mean m. The weight of direction s in m is
    proportional to :math:`s^{1/c - 1}`, so the memory is a constant share, about c, of the
    steps taken. What successive directions have in common passes unchanged. After a while
    their noise is multiplied by little more than :math:`1 - \sigma`. Directions in which the
    loss is flat gain most: gradients there are mostly noise, and a high learning rate does harm
    only through that noise.

    Put it after the transform that makes the direction and before the learning rate:
    ``optax.chain(optax.scale_by_adam(), fgo.slow_momentum(), optax.scale_by_learning_rate(lr))``.
    Then tune the learning rate again, since noise limits it less.

    Args:
      share: :math:`\sigma`, of the mean in the direction, in [0, 1); 0 changes nothing.
      window: c, in (0, 1].
      ramp_steps: r, the number of steps after which half of the share is reached.

    Returns:
      A gradient transformation. State: four bytes per parameter.

    Raises:
      ValueError: for a share outside [0, 1), a window outside (0, 1], or a ramp that is not
        positive.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> tx = optax.chain(fgo.slow_momentum(0.5), optax.sgd(0.1))
      >>> params = {"w": jnp.ones(2)}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> round(float(updates["w"][0]), 3)
      -0.1

    Source: Pagliardini et al. (2024), AdEMAMix, on a slow mean beside the newest gradient;
    Ferbach et al. (2026), "Logarithmic-time schedules for scaling language models with
    momentum", on a memory that grows with time; Jain et al. (2018), "Accelerating stochastic
    gradient descent for least squares regression", on why it helps under averaged weights.
    """
    _checks.fraction("share", share)
    _checks.positive("window", window)
    _checks.unit("window", window)
    _checks.positive("ramp_steps", ramp_steps)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, SlowMomentumState]:
        del params, extra_args
        check_fits("gradient", updates, "the state's slow momentum", state.mean)
        return momentum_update(
            state,
            updates,
            jnp.asarray(share, jnp.float32),
            window=window,
            ramp_steps=ramp_steps,
        )

    return optax.GradientTransformationExtraArgs(momentum_init, update)
