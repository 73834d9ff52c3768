"""Layers of an nnx model computed by their linen twins, so that K-FAC's interceptor sees them.

K-FAC marks a layer by one more entry among its parameters. Here a marked nnx layer calls the
linen layer of the same options on these parameters, mark included. Layers without a mark run
as usual, so nothing changes without K-FAC.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

_TWINS: dict[type, type] = {
    nnx.Linear: nn.Dense,
    nnx.LinearGeneral: nn.DenseGeneral,
    nnx.Conv: nn.Conv,
    nnx.Embed: nn.Embed,
    nnx.LayerNorm: nn.LayerNorm,
    nnx.RMSNorm: nn.RMSNorm,
    nnx.GroupNorm: nn.GroupNorm,
    nnx.BatchNorm: nn.BatchNorm,
    nnx.InstanceNorm: nn.InstanceNorm,
}
# Linen's promotion of types has another signature; the rest is not read when a layer is applied.
_OWN = {"promote_dtype", "parent", "name"}
_TWIN = "_fgo_linen_twin"


class Twin(NamedTuple):
    """A linen layer with the variables that it is applied to."""

    layer: nn.Module
    held: dict[str, Any]
    path: tuple[Any, ...]
    names: set[Any]  # of its parameters

    def call(self, original: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        params = self.held["params"]
        if any(jnp.shape(params[n]) != jnp.shape(getattr(original, n)[...]) for n in self.names):
            where = "/".join(map(str, self.path))
            raise ValueError(
                f"scale_by_kfac cannot capture {where!r} inside nnx.scan or nnx.vmap, which hand "
                f"it a part of its parameters: give it a diagonal Fisher with "
                f"diagonal=['{where}/*'], or another optimizer with optax.partition."
            )
        # Linen's layers lack some of the options that nnx's are called with.
        given = {name: value for name, value in kwargs.items() if value is not None}
        # Mutable, as batch normalisation by the batch's own statistics stores them.
        mutable = ["batch_stats"]
        return self.layer.apply(self.held, *args, method=method, mutable=mutable, **given)[0]


def reroute(model: nnx.Module, params: Any, paths: Iterable[tuple[Any, ...]]) -> None:
    """Makes the marked layers of a private copy of a model call their linen twins.

    Args:
      model: the model with the parameters in it.
      params: the same parameters, and the marks.
      paths: of all parameters.
    """
    names: dict[tuple[Any, ...], set[Any]] = {}
    for path in paths:
        names.setdefault(path[:-1], set()).add(path[-1])
    for path, module in nnx.iter_modules(model):
        kind = _kind(module)
        if kind is None or path not in names:
            continue
        node = functools.reduce(lambda tree, key: tree[key], path, params)
        if set(node) == names[path]:
            continue
        # Also those that are no parameters of this run, such as biases that are frozen.
        own = {name: v for name, v in vars(module).items() if isinstance(v, nnx.Param)}
        held = {"params": {name: _array(leaf) for name, leaf in (own | dict(node)).items()}}
        if kind is nnx.BatchNorm:
            held["batch_stats"] = {name: getattr(module, name)[...] for name in ("mean", "var")}
        # Past nnx's own checks: what is attached here is neither a submodule nor static.
        object.__setattr__(module, _TWIN, Twin(_twin(module, kind), held, path, names[path]))
        object.__setattr__(module, "__class__", _rerouted(type(module)))


def _kind(module: Any) -> type | None:
    """The class of the layer; None for others and for subclasses that override the call."""
    cls = type(module)
    same = [c for c in _TWINS if isinstance(module, c) and cls.__call__ is c.__call__]
    return same[0] if same else None


def _twin(module: Any, kind: type) -> nn.Module:
    cls = _TWINS[kind]
    names = {field.name for field in dataclasses.fields(cls)} - _OWN  # pyright: ignore
    options = {name: getattr(module, name) for name in names if hasattr(module, name)}
    if kind in (nnx.Linear, nnx.LinearGeneral, nnx.Conv):
        options["features"] = module.out_features
    if kind is nnx.LinearGeneral:
        options["batch_dims"] = tuple(module.batch_axis)
    if kind is nnx.GroupNorm:
        options["group_size"] = None  # follows from the number of groups
    return cls(**options)


@functools.cache
def _rerouted(cls: type) -> type:
    def through(method: str) -> Any:
        return lambda self, *args, **kwargs: getattr(self, _TWIN).call(
            self, method, *args, **kwargs
        )

    methods = [method for method in ("__call__", "attend") if hasattr(cls, method)]
    return type(cls.__name__, (cls,), {method: through(method) for method in methods})


def _array(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
