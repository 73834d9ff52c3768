"""Devices that run one program, each on its own part of the batch.

Under `jax.shard_map` with its checks on (the default), JAX knows which values differ between
devices. A gradient with respect to parameters that do not differ is then summed over the
devices. A probe needs each device's own gradient and averages them. So parameters
are marked as varying before they are differentiated. Without the checks, under `jax.pmap` and
under `jax.vmap`, nothing is summed, and there is nothing to mark.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import core

# The name of an axis of devices, or several names; None for one program.
AxisName = str | tuple[str, ...] | None


def varying_axes(tree: Any, axis_name: AxisName = None) -> frozenset[str]:
    """The axes over which JAX knows some leaf to differ between devices, and `axis_name`.

    Empty wherever there is nothing to mark: `axis_name` counts only under checks.
    """
    leaves = jax.tree.leaves(tree)
    if axis_name is not None:
        # The number of a device differs between devices, whatever the batch does.
        leaves.append(jax.lax.axis_index(axis_name))
    return frozenset[str]().union(*map(_varying, leaves))


def _varying(leaf: Any) -> frozenset[str]:
    if not isinstance(leaf, core.Tracer):
        return frozenset()
    kind: Any = jax.typeof(leaf)
    # JAX 0.10.0 calls it `vma`, later versions `manual_axis_type.varying`.
    return getattr(getattr(kind, "manual_axis_type", None), "varying", getattr(kind, "vma", _NONE))


_NONE: frozenset[str] = frozenset()


def as_varying(tree: Any, axes: Iterable[str]) -> Any:
    """The same values, marked as different between the devices of these axes."""
    axes = frozenset(axes)
    if not axes:
        return tree

    def mark(leaf: Any) -> Any:
        missing = tuple(sorted(axes - _varying(leaf)))
        return jax.lax.pcast(jnp.asarray(leaf), missing, to="varying") if missing else leaf

    return jax.tree.map(mark, tree)


def again(value: Any, old: jax.Array) -> jax.Array:
    """A constant in place of a state's old value, marked as `jax.shard_map` requires."""
    return as_varying(jnp.asarray(value, jnp.float32), _varying(old))


def on_each_device(params: Any, batch: Any, axis_name: AxisName) -> Any:
    """The parameters as each device's own, to be differentiated on its part of the batch.

    Raises:
      ValueError: where the devices have different batches and no `axis_name` to average over.
    """
    axes = varying_axes(batch, axis_name)
    if axis_name is None and axes - varying_axes(params):
        raise ValueError(
            f"the batch differs between the devices of {sorted(axes)}, and the parameters do "
            f"not: pass axis_name={sorted(axes)[0]!r} (to fgo.phased, fgo.target_acquisition or "
            "the transform), so that curvature is averaged over the devices."
        )
    return as_varying(params, axes)


def mean_over(axis_name: AxisName, tree: Any) -> Any:
    """In float32; averaged over the devices of `axis_name`, each of which has part of the batch.

    Raises:
      ValueError: for complex numbers, which a cast would leave without their imaginary part.
    """
    if any(map(jnp.iscomplexobj, jax.tree.leaves(tree))):
        raise ValueError(
            "products with curvature are real, got complex ones: write the operator for the real "
            "and imaginary parts as two parameters."
        )
    tree = optax.tree.cast(tree, jnp.float32)
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)
