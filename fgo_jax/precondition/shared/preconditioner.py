"""A gradient transformation with a metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import jax
import optax

from fgo_jax.linalg.compiled import compiled_once
from fgo_jax.linalg.mesh import on_mesh


class Preconditioner(optax.GradientTransformationExtraArgs):
    r"""A gradient transformation with a metric; use it to write a preconditioner of your own.

    It is a direction: no learning rate, no minus sign.

    Let P^-1 be the matrix with which the transformation multiplies a gradient g. `metric` applies
    its square root, at the statistics in the state, and changes no state:

        update ~ P^-1 g,        metric(g, state) = P^(-1/2) g.

    A probe that reads rows P^(-1/2) g measures the gradient covariance C in the metric of the
    running phase, P^(-1/2) C P^(-1/2). :func:`fgo_jax.phased` passes them to its probe. A
    transformation without a metric works there too: its probe then reads raw gradients.
    `optax.chain`, `optax.masked` and other wrappers return plain transformations, without a metric;
    :func:`fgo_jax.precondition.chain` and :func:`fgo_jax.precondition.masked` keep it.

    Attributes:
      init: ``params -> state``.
      update: ``(grads, state, params=None, **extra_args) -> (updates, state)``. Updates have the
        shapes and dtypes of the gradients. The state keeps the structure, shapes and dtypes that
        `init` gave it.
      metric: ``(grads, state) -> rows``, a tree like the gradients, in float32. Before a
        leaf's first gradient it should be the identity.
      keeps_scale: whether updates keep their size while gradients shrink, as Adam's do. If False,
        a transformation that takes over keeps the size of the updates before it; so does one that
        takes over later, if this one is the first phase's. Otherwise a transformation's own size
        returns as the graft of :func:`fgo_jax.phased` fades. None lets `phased` try a few steps to
        find out.
      momentum_dtype: in which the state keeps a momentum, or None. If it is bfloat16,
        :func:`fgo_jax.phased` keeps its slow momentum and its average in it too.

    Returns:
      A `GradientTransformationExtraArgs` with these attributes. Its state
      takes the bytes that `init` allocates; the example takes 4 per parameter.

    >>> import jax, jax.numpy as jnp, optax
    >>> import fgo_jax as fgo
    >>> def scale_by_diagonal(decay=0.99):
    ...     '''v <- decay v + (1 - decay) g^2, update = g / sqrt(v).'''
    ...     def init(params):
    ...         return optax.tree.ones_like(params, dtype=jnp.float32)
    ...     def moved(v, g):
    ...         return decay * v + (1 - decay) * jnp.square(g.astype(jnp.float32))
    ...     def update(grads, state, params=None, **extra_args):
    ...         state = jax.tree.map(moved, state, grads)
    ...         updates = jax.tree.map(lambda g, v: (g / jnp.sqrt(v)).astype(g.dtype), grads, state)
    ...         return updates, state
    ...     def metric(grads, state):
    ...         return jax.tree.map(lambda g, v: g.astype(jnp.float32) / v**0.25, grads, state)
    ...     return fgo.precondition.Preconditioner(init, update, metric)

    Alone, behind a learning rate:

    >>> optimizer = optax.chain(scale_by_diagonal(), optax.scale_by_learning_rate(0.1))
    >>> params = jnp.array([1.0, 2.0])
    >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    >>> [round(float(u), 3) for u in updates]
    [-0.1, -0.197]

    In phases, whose probe measures in its metric:

    >>> diagonal = scale_by_diagonal()
    >>> optimizer = fgo.phased(
    ...     [fgo.acquisition(0.1, transform=diagonal), fgo.execution(0.1, transform=diagonal)],
    ...     [fgo.triggers.below("agreement", 0.75)],
    ...     fgo.probes.gradient_stream(),
    ... )
    >>> state = optimizer.init(params)
    >>> updates, state = jax.jit(optimizer.update)(params, state, params)
    >>> params = optax.apply_updates(params, updates)

    Source: this library.
    """

    metric: Callable[[Any, Any], Any]
    keeps_scale: bool | None
    momentum_dtype: Any

    def __new__(
        cls,
        init: Callable[..., Any],
        update: Callable[..., tuple[Any, Any]],
        metric: Callable[[Any, Any], Any],
        keeps_scale: bool | None = True,
        momentum_dtype: Any = None,
    ) -> Self:
        self = super().__new__(cls, on_mesh(init), compiled_once(update))
        self.metric = metric
        self.keeps_scale = keeps_scale
        self.momentum_dtype = momentum_dtype
        return self

    def _replace(self, /, **kwargs: Any) -> Self:
        return _again(type(self), vars(self), super()._replace(**kwargs))

    __replace__ = _replace

    # A tuple copies itself by a call with its two members alone, which would lack the metric, and
    # would compile the update once more.
    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), vars(self), tuple(self))


def _again(cls: Any, attributes: Any, members: Any) -> Any:
    self = tuple.__new__(cls, members)
    vars(self).update(attributes)
    return self


# `jax.tree.map`, and passing an optimizer to a function, rebuild a tuple like this.
jax.tree_util.register_pytree_node(
    Preconditioner,
    lambda self: (tuple(self), tuple(vars(self).items())),
    lambda attributes, members: _again(Preconditioner, dict(attributes), members),
)


def inherited(inner: Any) -> tuple[bool | None, Any]:
    """keeps_scale and momentum_dtype, also of a transformation that only has a metric."""
    return getattr(inner, "keeps_scale", None), getattr(inner, "momentum_dtype", None)
