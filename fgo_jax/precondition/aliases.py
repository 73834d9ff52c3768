"""Optimizers: a preconditioner, decoupled weight decay, and a learning rate in one chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from fgo_jax import _checks
from fgo_jax.curvature.weights import Select
from fgo_jax.precondition.fismo.transform import scale_by_fismo
from fgo_jax.precondition.kfac import Axes, scale_by_kfac
from fgo_jax.precondition.kfac.layers import Paths
from fgo_jax.precondition.kronecker.transform import scale_by_kronecker_fisher
from fgo_jax.precondition.shared.leaves import called
from fgo_jax.precondition.shared.matrix_view import DimensionNumbers


def kronecker_fisher(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.99,
    factor_decay: jax.typing.ArrayLike = 0.95,
    eps: jax.typing.ArrayLike = 1e-8,
    refresh_every: jax.typing.ArrayLike = 10,
    block_size: int = 1024,
    vector_factors: bool = False,
    power: float = 0.5,
    centred: bool = False,
    damping: jax.typing.ArrayLike | None = None,
    momentum_dtype: jax.typing.DTypeLike | None = None,
    factor_dtype: jax.typing.DTypeLike | None = None,
    corrected: bool = True,
    weight_dimension_numbers: DimensionNumbers = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam in the eigenbasis of Kronecker factors, with a learning rate (SOAP, Shampoo).

        p <- p - learning_rate (U + weight_decay p),

    where U is the direction of :func:`fgo_jax.scale_by_kronecker_fisher`. Its entries
    have the size of Adam's unless `centred`. Start at 2 times Adam's best constant rate, or at the
    peak of your cosine schedule.

    Args:
      learning_rate: a number, or a schedule of the steps.
      weight_decay: decoupled decay, a number or a schedule; times the learning rate as in
        `optax.adamw`. Calls of ``update`` need ``params``, as there.
      mask: which leaves decay, as in `optax.adamw`: a tree of bools or a function to one.
      **others: all other options are those of :func:`fgo_jax.scale_by_kronecker_fisher`, with the
        same defaults.

    Returns:
      A gradient transformation that applies the learning rate and the minus sign. Its state takes
      the bytes per parameter of :func:`fgo_jax.scale_by_kronecker_fisher`. Under
      `optax.inject_hyperparams` name in ``static_args`` mask, block_size, power, momentum_dtype,
      factor_dtype and weight_dimension_numbers, and call ``update`` inside `jax.jit`: outside, each
      call compiles anew.

    Raises:
      ValueError: for a negative learning rate or decay, and as
        :func:`fgo_jax.scale_by_kronecker_fisher`.

    >>> import jax, jax.numpy as jnp, optax
    >>> optimizer = kronecker_fisher(0.1, weight_decay=1e-2)
    >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    >>> state = optimizer.init(params)
    >>> updates, state = jax.jit(optimizer.update)(params, state, params)
    >>> params = optax.apply_updates(params, updates)

    Source: Vyas et al., SOAP, 2024 (arXiv 2409.11321); Loshchilov and Hutter, 2019 (arXiv
    1711.05101), for the decay.
    """
    transform = scale_by_kronecker_fisher(
        b1,
        b2,
        factor_decay,
        eps=eps,
        refresh_every=refresh_every,
        block_size=block_size,
        vector_factors=vector_factors,
        power=power,
        centred=centred,
        damping=damping,
        momentum_dtype=momentum_dtype,
        factor_dtype=factor_dtype,
        corrected=corrected,
        weight_dimension_numbers=weight_dimension_numbers,
    )
    return _at_rate(transform, learning_rate, weight_decay, mask)


def kfac(
    learning_rate: optax.ScalarOrSchedule,
    predict_fn: Callable[[Any, Any], Any],
    loss: str = "softmax_cross_entropy",
    *,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
    damping: jax.typing.ArrayLike = 0.03,
    factor_decay: jax.typing.ArrayLike = 0.99,
    norm_constraint: jax.typing.ArrayLike | None = 1.0,
    b1: jax.typing.ArrayLike | None = None,
    factors_every: jax.typing.ArrayLike = 1,
    refresh_every: jax.typing.ArrayLike = 5,
    burn_in: jax.typing.ArrayLike = 10,
    approximation: str = "expand",
    diagonal: Paths = (),
    layers: Mapping[str, Axes] | None = None,
    weights: Select | None = None,
    block_size: int = 1024,
    axis_name: str | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""K-FAC of a Flax model, with a learning rate.

        p <- p - learning_rate (U + weight_decay p),

    where U is the direction of :func:`fgo_jax.scale_by_kfac`, a natural gradient. Start at
    0.1. A rate of 1 is a Gauss-Newton step; tuning chose 0.04 and 0.32 on two tasks.

    Args:
      learning_rate: a number, or a schedule of the steps.
      predict_fn: ``(params, batch) -> outputs`` [..., C], which calls Flax linen modules, as for
        :func:`fgo_jax.scale_by_kfac`.
      loss: ``"softmax_cross_entropy"``, ``"sigmoid_cross_entropy"`` or ``"squared_error"``.
      weight_decay: decoupled decay, a number or a schedule; times the learning rate as in
        `optax.adamw`.
      mask: which leaves decay, as in `optax.adamw`: a tree of bools or a function to one.
      **others: all other options are those of :func:`fgo_jax.scale_by_kfac`, with the same
        defaults.

    Returns:
      A gradient transformation that applies the learning rate and the minus sign. Its ``update``
      takes the extra argument ``batch``. Its state takes the bytes of
      :func:`fgo_jax.scale_by_kfac`. Under `optax.inject_hyperparams` name in ``static_args`` mask
      and the arguments that :func:`fgo_jax.scale_by_kfac` names, and call ``update`` inside
      `jax.jit`: outside, each call compiles anew.

    Raises:
      ValueError: for a negative learning rate or decay, and as :func:`fgo_jax.scale_by_kfac`.
      TypeError: in ``update``, without ``batch=`` or without parameters.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
    >>> model = nn.Dense(3)
    >>> x = jax.random.normal(jax.random.key(0), (8, 4))
    >>> params = model.init(jax.random.key(1), x)["params"]
    >>> optimizer = kfac(0.1, lambda params, batch: model.apply({"params": params}, batch))
    >>> state = optimizer.init(params)
    >>> updates, state = jax.jit(optimizer.update)(params, state, params, batch=x)
    >>> params = optax.apply_updates(params, updates)

    Source: Martens and Grosse, 2015 (arXiv 1503.05671); Loshchilov and Hutter, 2019 (arXiv
    1711.05101), for the decay.
    """
    transform = scale_by_kfac(
        predict_fn,
        loss,
        damping=damping,
        factor_decay=factor_decay,
        norm_constraint=norm_constraint,
        b1=b1,
        factors_every=factors_every,
        refresh_every=refresh_every,
        burn_in=burn_in,
        approximation=approximation,
        diagonal=diagonal,
        layers=layers,
        weights=weights,
        block_size=block_size,
        axis_name=axis_name,
        seed=seed,
    )
    return _at_rate(transform, learning_rate, weight_decay, mask)


def fismo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any = None,
    beta: jax.typing.ArrayLike = 0.95,
    factor_decay: jax.typing.ArrayLike = 0.95,
    damping: jax.typing.ArrayLike | None = None,
    refresh_every: jax.typing.ArrayLike = 10,
    ns_coeffs: Sequence[Any] = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    eps: jax.typing.ArrayLike = 1e-8,
    block_size: int = 1024,
    adam_b1: jax.typing.ArrayLike = 0.9,
    adam_b2: jax.typing.ArrayLike = 0.999,
    unit_gradients: bool = False,
    consistent_rms: jax.typing.ArrayLike | None = None,
    weight_dimension_numbers: DimensionNumbers = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Muon in the metric of two Kronecker factors, with a learning rate.

        p <- p - learning_rate (U + weight_decay p),

    where U is the direction of :func:`fgo_jax.scale_by_fismo`. With
    ``consistent_rms=0.2`` one learning rate serves matrices and the leaves that follow Adam.

    Args:
      learning_rate: a number, or a schedule of the steps.
      weight_decay: decoupled decay, a number or a schedule; times the learning rate as in
        `optax.adamw`. Calls of ``update`` need ``params``, as there.
      mask: which leaves decay, as in `optax.adamw`: a tree of bools or a function to one.
      **others: all other options are those of :func:`fgo_jax.scale_by_fismo`, with the same
        defaults.

    Returns:
      A gradient transformation that applies the learning rate and the minus sign. Its state takes
      the bytes per parameter of :func:`fgo_jax.scale_by_fismo`. Under `optax.inject_hyperparams`
      name in ``static_args`` mask, ns_coeffs, ns_steps, block_size and weight_dimension_numbers,
      and call ``update`` inside `jax.jit`: outside, each call compiles anew.

    Raises:
      ValueError: for a negative learning rate or decay, and as :func:`fgo_jax.scale_by_fismo`.

    >>> import jax, jax.numpy as jnp, optax
    >>> optimizer = fismo(0.1, consistent_rms=0.2)
    >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    >>> state = optimizer.init(params)
    >>> updates, state = jax.jit(optimizer.update)(params, state, params)
    >>> params = optax.apply_updates(params, updates)

    Source: FISMO, 2026 (arXiv 2601.21750); Loshchilov and Hutter, 2019 (arXiv 1711.05101), for the
    decay.
    """
    transform = scale_by_fismo(
        beta,
        factor_decay,
        damping,
        refresh_every=refresh_every,
        ns_coeffs=ns_coeffs,
        ns_steps=ns_steps,
        eps=eps,
        block_size=block_size,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        unit_gradients=unit_gradients,
        consistent_rms=consistent_rms,
        weight_dimension_numbers=weight_dimension_numbers,
    )
    return _at_rate(transform, learning_rate, weight_decay, mask)


def _at_rate(
    transform: optax.GradientTransformation, learning_rate: Any, weight_decay: Any, mask: Any
) -> optax.GradientTransformationExtraArgs:
    _checks.learning_rate(learning_rate)
    _checks.learning_rate(weight_decay, "weight_decay")
    decaying = None if mask is None else lambda params: called(mask, params)
    return optax.chain(
        transform,
        optax.add_decayed_weights(weight_decay, decaying),
        optax.scale_by_learning_rate(learning_rate),
    )
