"""One family of two averages that holds heavy ball, Nesterov and triple momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg.devices import again
from fgo_jax.linalg.fitting import check_fits
from fgo_jax.linalg.mesh import on_mesh
from fgo_jax.smoothing import growing_mean


class PrimalAveragingState(NamedTuple):
    """State of :func:`scale_by_primal_averaging`."""

    averaging_steps: jax.Array  # [], int32
    mu_x: jax.Array  # [], float32; of the last update
    mu_y: jax.Array  # [], float32; a copy for eval_params: the constructor's decides
    trail: Any  # f32 (or wider), shaped like the parameters; (z - y) / mu_x behind the rate


def scale_by_primal_averaging(
    mu_x: optax.ScalarOrSchedule, mu_y: jax.typing.ArrayLike
) -> optax.GradientTransformationExtraArgs:
    r"""Primal averaging around any direction: gradients at one average, results at another.

    .. math:: y = \mu_y x + (1 - \mu_y) z,
              \qquad z \leftarrow z + v(y),
              \qquad x \leftarrow \mu_x x + (1 - \mu_x) z

    with the incoming update v, such as :math:`-\eta\,g(y)`. The parameters hold y, and
    :func:`fgo_jax.eval_params` returns x. The state holds z alone, as
    :math:`q = (z - y)/\mu_x`. Written in q the family is a momentum that needs no parameters:

    .. math:: q \leftarrow \mu_x\,q + \mu_y\,v,
              \qquad \text{update} = (1 - \mu_x)\,q + (1 - \mu_y)\,v

    | method | :math:`\mu_x` | :math:`\mu_y` |
    |---|---|---|
    | heavy ball, at the effective rate :math:`(1-\beta)\eta` | :math:`\beta` | 1 |
    | Nesterov, at the effective rate :math:`(1-\beta)\eta` | :math:`\beta` | :math:`\beta` |
    | :func:`fgo_jax.triple_momentum` | see there | see there |
    | schedule-free | ``lambda n: n / (n + 1)`` | 0.9 |
    | generalized primal averaging | 0.9967 | 0.7 |

    It replaces the momentum of the direction, so switch that off:
    ``optax.scale_by_adam(b1=0.0)``. There are two places for it:

    - Behind the learning rate, ``optax.chain(optimizer, scale_by_primal_averaging(...))``,
      around a whole run of phases too. The equations above then hold at any law of the rate.
    - Inside a phase, as the last member of its transform, before the rate. The update is then
      a direction, and q is in its unit. At a constant rate this is the same; as the
      rate changes, so does the distance of z from y, and x, y and z meet as it falls to zero.
      Use it in the last phase, with ``slow_share=None`` and a decay that follows no slow
      momentum, such as `fgo.decays.hyperbolic()`. While the transform fills or its graft
      fades (two hand-overs), x is approximate.

    Args:
      mu_x: in [0, 1), or a schedule of the updates so far: how slowly x follows z.
      mu_y: in (0, 1]: how near the gradients are to x.

    Returns:
      A gradient transformation. State: four bytes per parameter.

    Raises:
      ValueError: for a number out of its range.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> tx = optax.chain(optax.sgd(1.0), fgo.scale_by_primal_averaging(0.5, 0.5))
      >>> params = jnp.array([8.0])
      >>> updates, state = tx.update(jnp.array([4.0]), tx.init(params), params)
      >>> params = params + updates  # z is 8 - 4, x is (8 + 4) / 2, y is (4 + 6) / 2
      >>> params.tolist(), fgo.eval_params(state, params).tolist()
      ([5.0], [6.0])

    Source: arXiv 2509.18346, on generalized primal averaging and its numbers in the table;
    Defazio et al. (2024), "The road less scheduled". The momentum q, and that one family holds
    all five methods, are derived here and tested against independent definitions. Fewer steps
    than AdamW are the paper's claim, which has not been measured here.
    """
    if not callable(mu_x):
        _checks.fraction("mu_x", mu_x)
    _checks.positive("mu_y", mu_y)
    _checks.unit("mu_y", mu_y)

    def init(params: Any) -> PrimalAveragingState:
        return PrimalAveragingState(
            averaging_steps=jnp.zeros([], jnp.int32),
            mu_x=jnp.zeros([], jnp.float32),
            mu_y=jnp.asarray(mu_y, jnp.float32),
            trail=growing_mean.zeros(params),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        del params, extra_args
        check_fits("gradient", updates, "the state's trail", state.trail)
        steps = state.averaging_steps
        slow: Any = mu_x(steps) if callable(mu_x) else mu_x
        _checks.scheduled("mu_x", slow)
        # A mu_x that may change, also by inject_hyperparams, decays the trail by its value at the
        # last step.
        before: Any = slow if isinstance(mu_x, (int, float)) else state.mu_x
        near: Any = mu_y

        def moved(v: jax.Array, trail: jax.Array) -> jax.Array:
            return before * trail + near * v.astype(trail.dtype)

        # From the new trail, so that it can be written over the old one.
        def step(v: jax.Array, trail: jax.Array) -> jax.Array:
            return ((1 - slow) * trail + (1 - near) * v.astype(trail.dtype)).astype(v.dtype)

        trail = jax.tree.map(moved, updates, state.trail)
        new = PrimalAveragingState(
            averaging_steps=jnp.asarray(optax.safe_increment(steps)),
            mu_x=again(slow, state.mu_x),
            mu_y=again(near, state.mu_y),
            trail=trail,
        )
        return jax.tree.map(step, updates, trail), optax.tree.cast_like(new, state)

    return optax.GradientTransformationExtraArgs(on_mesh(init), update)


def primal_point(state: PrimalAveragingState, unit: Any = 1.0) -> Callable[[Any, Any], Any]:
    """`(trail, y) -> x` of one leaf.

    Args:
      unit: of the trail, in that of the parameters: 1 behind the learning rate; before it, the
        rate and its minus sign.
    """
    back = unit * state.mu_x * (1 - state.mu_y) / state.mu_y
    return lambda trail, y: y.astype(trail.dtype) - back * trail


def triple_momentum(
    smoothness: float, strong_convexity: float
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent with momentum tuned to a known largest and smallest curvature.

    It is a reference for smooth and strongly convex functions, not an optimizer for networks.
    With curvature between m and L, :math:`\kappa = L/m` and :math:`\rho = 1 - 1/\sqrt\kappa`,
    it is gradient descent at the rate :math:`(1+\rho)/(L (1-\mu_x))` under
    :func:`scale_by_primal_averaging` with

    .. math:: \mu_x = \frac{\rho^2}{2 - \rho}, \qquad \mu_y = 1 - \frac{1 - \mu_x}{1 + \rho}.

    After k steps, the point :math:`w = x + \frac{2 + \rho}{1 + \rho}(z - x)` has

    .. math:: f(w) - f^* \le \rho^{2k}\,\frac{L \kappa}{2}\,\|x_0 - x^*\|^2.

    Quadratics reach the bound. So x, y and z stay below it, x by a factor of :math:`\kappa` in
    the tests. Heavy ball at its best numbers for quadratics can cycle forever on a function of
    this class. The method needs exact gradients and both constants.

    Args:
      smoothness: L, the largest curvature, > 0.
      strong_convexity: m, the smallest one, in (0, L].

    Returns:
      A gradient transformation that applies its rate and the minus sign. State: four bytes per
      parameter.

    Raises:
      ValueError: for a constant that is not positive, or m > L.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> curvature = jnp.array([1.0, 4.0])
      >>> tx, params = fgo.triple_momentum(4.0, 1.0), jnp.ones(2)
      >>> state = tx.init(params)
      >>> for _ in range(20):
      ...     updates, state = tx.update(curvature * params, state)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(jnp.max(jnp.abs(params)) < 1e-5)  # gradient descent: 3.7e-5 at best
      True

    Source: Van Scoy, Freeman and Lynch (2018), "The fastest known globally convergent
    first-order method for minimizing strongly convex functions"; Lessard, Recht and Packard
    (2016), on heavy ball's cycle.
    """
    _checks.positive("smoothness", smoothness)
    _checks.positive("strong_convexity", strong_convexity)
    largest, smallest = _checks.number(smoothness), _checks.number(strong_convexity)
    if largest is not None and smallest is not None and smallest > largest:
        raise ValueError(
            f"strong_convexity={strong_convexity} is the smallest curvature and cannot be above "
            f"the largest, smoothness={smoothness}: swap the two."
        )
    rho = 1 - (strong_convexity / smoothness) ** 0.5
    mu_x = rho**2 / (2 - rho)
    mu_y = 1 - (1 - mu_x) / (1 + rho)
    rate = (1 + rho) / (smoothness * (1 - mu_x))
    if _checks.is_off(mu_y):  # at kappa = 1, where one step of gradient descent is exact
        return optax.with_extra_args_support(optax.scale(-rate))
    if not isinstance(mu_y, float):  # it may be zero too, and x divides by it
        mu_y = jnp.maximum(mu_y, jnp.finfo(jnp.float32).tiny)
    return optax.with_extra_args_support(
        optax.chain(optax.scale(-rate), scale_by_primal_averaging(mu_x, mu_y))
    )
