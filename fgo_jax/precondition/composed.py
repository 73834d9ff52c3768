"""`optax.chain` and `optax.masked`, with the metric of the preconditioner inside."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fgo_jax.linalg.trees import real32
from fgo_jax.precondition.shared import model as models
from fgo_jax.precondition.shared.leaves import called
from fgo_jax.precondition.shared.preconditioner import Preconditioner, inherited


def chain(*transforms: optax.GradientTransformation) -> Preconditioner:
    """`optax.chain` that keeps the metric of its one preconditioner.

    `optax.chain` returns a plain transformation, and a probe of :func:`fgo_jax.phased` then reads
    raw gradients. This one has the same updates and the same state, and the metric and the
    `keeps_scale` of the member that has them. The other members have no part in the metric.

    Args:
      *transforms: the members in their order, exactly one of which is a preconditioner.

    Returns:
      A :class:`fgo_jax.precondition.Preconditioner`. Its state is that of `optax.chain`.

    Raises:
      ValueError: unless exactly one member has a metric.

    >>> import jax.numpy as jnp, optax
    >>> import fgo_jax as fgo
    >>> kronecker = fgo.scale_by_kronecker_fisher()
    >>> transform = fgo.precondition.chain(optax.clip_by_global_norm(1.0), kronecker)
    >>> params = jnp.ones((2, 3))
    >>> updates, state = transform.update(params, transform.init(params), params)
    >>> transform.metric(params, state).shape
    (2, 3)

    Source: this library.
    """
    owners = [i for i, t in enumerate(transforms) if getattr(t, "metric", None) is not None]
    if len(owners) != 1:
        raise ValueError(
            f"chain takes exactly one member with a metric, got {len(owners)}: use optax.chain, or "
            "fgo_jax.precondition.Preconditioner(init, update, metric) with a metric of your own."
        )
    (index,) = owners
    owner: Any = transforms[index]
    whole = optax.with_extra_args_support(optax.chain(*transforms))

    def metric(grads: Any, state: Any) -> Any:
        return owner.metric(grads, state[index])

    return Preconditioner(whole.init, whole.update, metric, *inherited(owner))


def masked(inner: Preconditioner, mask: Any) -> Preconditioner:
    """`optax.masked` that keeps the metric of its preconditioner.

    On the leaves that the mask excludes, updates are the gradients and the metric is the identity.

    Args:
      inner: the preconditioner.
      mask: as in `optax.masked`: a tree of bools shaped like the parameters, or a prefix of one,
        or a function from the parameters to it.

    Returns:
      A :class:`fgo_jax.precondition.Preconditioner`. Its state is that of `optax.masked`.

    Raises:
      ValueError: if `inner` has no metric.

    >>> import jax.numpy as jnp
    >>> import fgo_jax as fgo
    >>> kronecker = fgo.scale_by_kronecker_fisher()
    >>> transform = fgo.precondition.masked(kronecker, {"w": True, "b": False})
    >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    >>> updates, state = transform.update(params, transform.init(params), params)
    >>> transform.metric(params, state)["b"].tolist()
    [1.0, 1.0, 1.0]

    Source: this library.
    """
    if getattr(inner, "metric", None) is None:
        raise ValueError("masked keeps a metric, and inner has none: use optax.masked.")
    whole = optax.masked(inner, lambda params: called(mask, params))

    def metric(grads: Any, state: Any) -> Any:
        def select(keep: bool, below: Any) -> Any:
            return jax.tree.map(lambda g: g if keep else optax.MaskedNode(), below)

        part = jax.tree.map(select, called(mask, grads), grads)
        rows = inner.metric(part, state.inner_state)
        return models.merge(rows, jax.tree.map(real32, grads))

    return Preconditioner(whole.init, whole.update, metric, *inherited(inner))
