"""Interception of Flax layers: the gradient of a probe is a layer's statistic.

A probe is an array of zeros among the parameters of a layer's module. It goes wherever Flax takes
them: through nn.scan, nn.remat, nn.vmap and nn.jit. An interceptor ties the probe to the layer's
output by an identity. The derivative of that identity with respect to the probe is *declared* to be
the layer's statistic, a function of its input and of the gradient of its output. So the gradient of
a loss with respect to all probes holds every statistic, summed over the uses of a layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.precondition.kfac import taps
from fgo_jax.precondition.kfac.layers import WAY_OUT, Axes, Layer, Layout, advice, leaf_paths

_NORMS = ("LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm", "InstanceNorm")
_numbers = itertools.count()


class Seen(NamedTuple):
    """A module's class, and how its kernel's axes split inside the model."""

    module: str
    axes: Axes | None  # None for a class that cannot be captured
    reason: str


class Recorder:
    """Marks modules with keys of its own, and remembers which modules it saw.

    The record is filled while a model is traced. A model that is jitted on its own is traced once
    for each structure of its parameters. The recorder's keys make that structure unique, so every
    recorder gets its record. The record is never cleared: later calls may not trace again.
    """

    def __init__(self) -> None:
        self.prefix: str = f"kfac{next(_numbers)}:"
        self.seen: dict[str, list[Seen]] = {}

    def put(self, model: Any, probes: Mapping[str, Any], leaves: Mapping[str, Any]) -> Any:
        """The parameters with probes by path of module, and with leaves replaced by path."""
        found: set[str] = set()

        def rebuild(node: Any, path: str) -> Any:
            new = {key: below(item, f"{path}/{key}".lstrip("/")) for key, item in node.items()}
            if path in probes:
                found.add(path)
                new[self.prefix + path] = probes[path]
            return type(node)(new)

        def below(node: Any, path: str) -> Any:
            def visit(keys: Any, item: Any) -> Any:
                name = jax.tree_util.keystr(keys, simple=True, separator="/")
                here = f"{path}/{name}".strip("/")
                if isinstance(item, Mapping):
                    return rebuild(item, here)
                return leaves.get(here.removesuffix("/value"), leaves.get(here, item))

            return jax.tree_util.tree_map_with_path(
                visit, node, is_leaf=lambda x: isinstance(x, Mapping)
            )

        model = below(model, "")
        missing = sorted(set(probes) - found)
        if missing:
            raise ValueError(
                f"scale_by_kfac finds no dictionary of parameters at {missing[:3]}: it takes the "
                "nested dictionaries of Flax linen modules, as `init` makes them. Name the scales "
                "of an nn.WeightNorm in diagonal=, together with the layer that it wraps."
            )
        return model

    def run(self, predict_fn: Callable, model: Any, batch: Any, handle: Callable) -> Any:
        """Calls predict_fn, with `handle` in place of the call of every marked module."""
        nn = _checks.linen()

        def intercept(next_fun: Callable, args: Any, kwargs: Any, context: Any) -> Any:
            module, method = context.module, context.method_name
            if method not in ("__call__", "attend") or module.scope is None:
                return next_fun(*args, **kwargs)
            if isinstance(module, (nn.SpectralNorm, nn.WeightNorm)):
                self.check_wrapped(module)
            held = module.variables.get("params", {})
            marks = [key for key in held if key.startswith(self.prefix)]
            if not marks:
                return next_fun(*args, **kwargs)
            path = marks[0].removeprefix(self.prefix)
            seen = _identify(nn, module, method, held)
            self.seen.setdefault(path, []).append(seen)
            probe = held[marks[0]]
            # A FrozenDict freezes the dictionaries inside.
            probe = dict(probe) if isinstance(probe, Mapping) else probe
            return handle(next_fun, args, kwargs, module, method, seen, path, probe)

        with nn.intercept_methods(intercept):
            return predict_fn(model, batch)

    def check_wrapped(self, module: Any) -> None:
        """Raises if a probe lies in a layer whose kernel is not what the layer multiplies with."""

        def paths(node: Any) -> list[str]:
            if not isinstance(node, Mapping):
                return []
            found = [k.removeprefix(self.prefix) for k in node if k.startswith(self.prefix)]
            return found + [path for item in node.values() for path in paths(item)]

        marked = paths(module.layer_instance.variables.get("params", {}))
        if marked:
            raise ValueError(
                f"scale_by_kfac cannot capture {marked} inside {type(module).__name__}, which "
                "multiplies with another kernel than the one among the parameters. "
                + advice(WAY_OUT, [f"{path}/*".lstrip("/") for path in marked])
            )

    def captured(self, path: str) -> Seen | None:
        """The first module with parameters at this path that can be captured."""
        return next((seen for seen in self.seen.get(path, ()) if seen.axes is not None), None)


def _identify(nn: Any, module: Any, method: str, held: Mapping[str, Any]) -> Seen:
    cls = type(module)
    name = cls.__name__

    def is_a(*classes: Any) -> bool:
        # A subclass that overrides the call may compute anything.
        return any(isinstance(module, c) and cls.__call__ is c.__call__ for c in classes)

    def seen(kind: str, inputs: int, stack: int = 0) -> Seen:
        return Seen(name, Axes(kind, stack, inputs), "")

    if is_a(nn.Embed):
        return seen("embed", 1)
    if method != "__call__" or "kernel" not in held:
        if is_a(*(getattr(nn, norm) for norm in _NORMS)):
            return seen("norm", 0)
        return Seen(name, None, f"{name} is not a layer that it captures")
    if is_a(nn.Dense):
        return seen("linear", 1)
    if is_a(nn.DenseGeneral):
        if module.batch_dims:
            return Seen(name, None, "DenseGeneral with batch_dims has a kernel per example")
        return seen("linear", 1 if isinstance(module.axis, int) else len(module.axis))
    if isinstance(module, nn.Conv) and cls.__call__ is nn.Conv.__call__:
        if module.feature_group_count != 1:
            return Seen(name, None, "a grouped convolution is no single matrix")
        if module.mask is not None:
            return Seen(name, None, "a masked convolution is no matrix of free entries")
        (kernel,) = jax.tree.leaves(held["kernel"])  # out of a box such as `nn.Partitioned`
        return seen("linear", jnp.ndim(kernel) - 1)
    return Seen(name, None, f"{name} is not a layer that it captures")


def kfac_layers(predict_fn: Callable[[Any, Any], Any], params: Any, batch: Any) -> dict[str, Axes]:
    """Finds the layers of a Flax model that K-FAC can capture, from shapes alone.

    :func:`fgo_jax.scale_by_kfac` asks for them as ``layers=`` where the shapes of kernel and bias
    do not tell inputs from outputs. The model is traced and nothing is computed.

    A kernel of shape stack + inputs + outputs is a matrix [prod(inputs), prod(outputs)], once for
    each of the prod(stack) copies of the layer.

    Args:
      predict_fn: ``(params, batch) -> outputs``, which calls Flax linen modules.
      params: all parameters of the model, or their `jax.ShapeDtypeStruct`s.
      batch: a batch, or its shapes.

    Returns:
      A dict from the path of a module ("encoder/Dense_0") to the split of its kernel's axes: the
      kind of layer, and the numbers of stack axes and of input axes. It is no state.

    Raises:
      ValueError: for parameters that are not in nested dictionaries.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> model = nn.Conv(4, (3, 3), use_bias=False)
    >>> predict_fn = lambda params, x: model.apply({"params": params}, x)
    >>> x = jnp.ones((2, 8, 8, 1))
    >>> kfac_layers(predict_fn, model.init(jax.random.key(0), x)["params"], x)
    {'': Axes(kind='linear', stack=0, inputs=3)}

    Source: this library; `flax.linen.intercept_methods` finds the modules.
    """
    recorder, table = Recorder(), {}
    ranks: dict[str, int] = {}
    probes = {}
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        module, _, name = path.rpartition("/")
        if name in ("kernel", "embedding"):
            ranks[module] = len(jnp.shape(leaf))
            probes[module] = jnp.zeros(jnp.shape(leaf), jnp.float32)

    def handle(next_fun, args, kwargs, module, method, seen, path, probe):
        if seen.axes is not None and seen.axes.kind != "norm":
            # nn.scan and nn.vmap slice the probe as they do the kernel.
            table[path] = seen.axes._replace(stack=ranks[path] - jnp.ndim(probe))
        return next_fun(*args, **kwargs)

    jax.eval_shape(
        lambda p, b: recorder.run(predict_fn, recorder.put(p, probes, {}), b, handle),
        params,
        batch,
    )
    return table


def run_tapped(
    recorder: Recorder,
    predict_fn: Callable,
    model: Any,
    batch: Any,
    layout: Layout,
    probes: Mapping[str, Any],
    leaves: Mapping[str, Any],
    reduce: bool,
) -> Any:
    """The outputs of the model, with every layer tied to its probe."""
    by_path = {layer.path: layer for layer in layout.layers}

    def handle(next_fun, args, kwargs, module, method, seen, path, probe):
        y = next_fun(*args, **kwargs)
        if seen.axes is None:
            return y
        if path not in by_path:
            return taps.tap_norm(_standardised(module, args, kwargs), y, probe)
        x = args[0] if args else next(iter(kwargs.values()))
        _check_axes(by_path[path], seen, module)
        return taps.tap(by_path[path], module, method, x, y, probe, reduce)

    outputs = recorder.run(predict_fn, recorder.put(model, probes, leaves), batch, handle)
    _check_seen(recorder, layout, predict_fn, model, batch)
    return outputs


def _standardised(module: Any, args: Any, kwargs: Any) -> jax.Array:
    """The output of a normalisation before its scale and bias."""
    switches = {name: False for name in ("use_scale", "use_bias") if hasattr(module, name)}
    held = {name: value for name, value in module.variables.items() if name != "params"}
    bare = module.clone(parent=None, **switches)
    return bare.apply(held, *args, mutable=list(held), **kwargs)[0]


def _check_axes(layer: Layer, seen: Seen, module: Any) -> None:
    held = module.variables["params"]["embedding" if layer.kind == "embed" else "kernel"]
    (kernel,) = jax.tree.leaves(held)  # out of a box such as `nn.Partitioned`
    if (
        seen.axes is None
        or seen.axes.kind != layer.kind
        or seen.axes.inputs != len(layer.inputs)
        or jnp.shape(kernel) != layer.inputs + layer.outputs
    ):
        raise ValueError(
            f"{seen.module} at {layer.path!r} has a kernel of shape {jnp.shape(kernel)} inside the "
            f"model, where scale_by_kfac took its inputs for {layer.inputs} and its outputs for "
            f"{layer.outputs}: pass layers=fgo_jax.precondition.kfac_layers(predict_fn, params, "
            "batch). If you did, the copies under nn.scan or nn.vmap must lie along axis 0."
        )


def _check_seen(
    recorder: Recorder, layout: Layout, predict_fn: Callable, model: Any, batch: Any
) -> None:
    """Raises unless every parameter belongs to a captured module or is not used at all."""
    needed = {layer.path: layer.path for layer in layout.layers}
    needed |= {d.norm: d.norm for d in layout.diagonals if d.norm is not None}
    lost = [path for path in needed if recorder.captured(path) is None]
    if not lost:
        return
    unused = _unused(predict_fn, model, batch)
    for path in lost:
        own = {p for p in leaf_paths(model) if p.rpartition("/")[0] == path}
        if own <= unused:
            continue
        seen = recorder.seen.get(path, [])
        reason = seen[0].reason if seen else "no module that it captures was called with them"
        raise ValueError(
            f"scale_by_kfac cannot capture the parameters {sorted(own)}: {reason}. "
            + advice(WAY_OUT, [f"{path}/*".lstrip("/")])
        )


def _unused(predict_fn: Callable, model: Any, batch: Any) -> set[str]:
    """Paths of the parameters that no operation of the model reads."""
    leaves, treedef = jax.tree.flatten(model)
    jaxpr = jax.make_jaxpr(lambda xs: predict_fn(treedef.unflatten(xs), batch))(leaves).jaxpr
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    pairs = zip(leaf_paths(model), jaxpr.invars, strict=True)
    return {path for path, v in pairs if id(v) not in read}
