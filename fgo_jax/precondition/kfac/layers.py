"""Which parameters form a layer, and which axes of a kernel are inputs or outputs."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Globs of paths of leaves ("encoder/Dense_0/kernel"), or a function path -> bool.
Paths = str | Sequence[str] | Callable[[str], bool]

# What Flax's attention calls its layers with several output axes.
_TO_HEADS = ("query", "key", "value")

WAY_OUT = (
    "give it a diagonal Fisher with diagonal=[{paths}] (globs or a function of the path), or "
    "another optimizer with optax.partition"
)


class Axes(NamedTuple):
    """How a kernel's axes split into (stack, inputs, outputs); made by `kfac_layers`."""

    kind: str  # "linear" or "embed"
    stack: int  # number of leading axes over the copies of a layer under nn.scan or nn.vmap
    inputs: int  # number of axes that are contracted with the layer's input


class Layer(NamedTuple):
    """A kernel and its bias as one matrix [inputs (+ 1), outputs], for each copy in the stack."""

    path: str  # of the module
    kind: str  # "linear" or "embed"
    kernel: int  # index of its leaf
    bias: int | None  # index of its leaf
    stack: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def rows(self) -> int:
        return math.prod(self.inputs) + (self.bias is not None)

    @property
    def columns(self) -> int:
        return math.prod(self.outputs)

    @property
    def leaves(self) -> tuple[int, ...]:
        return (self.kernel,) if self.bias is None else (self.kernel, self.bias)


class Diagonal(NamedTuple):
    """A leaf whose Fisher is taken as diagonal."""

    path: str  # of the leaf
    leaf: int  # its index
    norm: str | None  # path of the normalisation that it belongs to; None if diagonal= names it


class Layout(NamedTuple):
    """All leaves of a tree, sorted."""

    layers: tuple[Layer, ...]
    diagonals: tuple[Diagonal, ...]


def leaf_paths(tree: Any) -> list[str]:
    """Paths of the leaves, without the boxes around them (such as nn.Partitioned)."""
    names = []
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
            path = path[:-1]
        names.append(jax.tree_util.keystr(path, simple=True, separator="/"))
    return names


def check_diagonal(diagonal: Paths) -> Callable[[str], bool]:
    if callable(diagonal):
        return diagonal
    globs = (diagonal,) if isinstance(diagonal, str) else tuple(diagonal)
    for glob in globs:
        if not isinstance(glob, str):
            raise ValueError(
                f"diagonal must hold globs of parameter paths such as 'Embed_0/*', got {glob!r}."
            )
    return lambda path: any(fnmatch.fnmatchcase(path, glob) for glob in globs)


def layout(
    tree: Any,
    table: Mapping[str, Axes] | None,
    diagonal: Callable[[str], bool],
    predict_fn: Callable[[Any, Any], Any] | None = None,
) -> Layout:
    """Sorts all leaves into layers and diagonals, by their paths and shapes alone."""
    _check_linen(predict_fn, tree)
    paths = leaf_paths(tree)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    modules: dict[str, dict[str, int]] = {}
    diagonals = []
    for number, path in enumerate(paths):
        module, _, name = path.rpartition("/")
        if diagonal(path) or math.prod(shapes[number]) == 0:
            diagonals.append(Diagonal(path, number, None))
        else:
            modules.setdefault(module, {})[name] = number
    layers, strangers = [], []
    for module, leaves in modules.items():
        names = set(leaves)
        if names in ({"kernel"}, {"kernel", "bias"}, {"embedding"}):
            layers.append(_layer(module, leaves, shapes, table))
        elif names in ({"scale"}, {"scale", "bias"}) or (
            names == {"bias"} and f"{module}/scale".lstrip("/") in paths
        ):
            diagonals += [Diagonal(paths[n], n, module) for n in leaves.values()]
        else:
            strangers += [paths[n] for n in leaves.values()]
    if strangers and all(path.rpartition("/")[2] == "bias" for path in strangers):
        raise ValueError(
            f"scale_by_kfac needs the layer's kernel beside its bias {strangers}: keep both in "
            "the same part of optax.partition or optax.masked. If there is none, "
            + advice(WAY_OUT, strangers)
        )
    if strangers:
        raise ValueError(
            f"scale_by_kfac knows no layer with the parameters {strangers}: it captures nn.Dense, "
            "nn.DenseGeneral, nn.Conv, nn.Embed and normalisations. " + advice(WAY_OUT, strangers)
        )
    return Layout(tuple(layers), tuple(sorted(diagonals, key=lambda d: d.leaf)))


def _check_linen(predict_fn: Any, tree: Any) -> None:
    """Raises for the parameters of an nnx model, unless its layers call linen's."""

    def is_nnx(node: Any) -> bool:
        return type(node).__module__.startswith("flax.nnx")

    captured = getattr(predict_fn, "captures_nnx", False)
    if not captured and any(map(is_nnx, jax.tree.leaves(tree, is_leaf=is_nnx))):
        raise ValueError(
            "scale_by_kfac captures layers by flax.linen.intercept_methods, and flax.nnx has "
            "nothing like it: make predict_fn by fgo_jax.integrations.flax.nnx_predict_fn(model), "
            "or use scale_by_kronecker_fisher, which needs no capture."
        )


def advice(text: str, paths: Sequence[str]) -> str:
    text = text.format(paths=", ".join(map(repr, paths[:3])))
    return text[0].upper() + text[1:] + "."


def _layer(
    module: str, leaves: dict[str, int], shapes: list[Any], table: Mapping[str, Axes] | None
) -> Layer:
    if "embedding" in leaves:
        kernel, bias, axes = leaves["embedding"], None, Axes("embed", 0, 1)
    else:
        kernel, bias, axes = leaves["kernel"], leaves.get("bias"), None
    shape = shapes[kernel]
    if table is not None:
        axes = table.get(module)
        if axes is None:
            raise ValueError(
                f"layers= has no {module!r}, so nothing that scale_by_kfac can capture uses its "
                "parameters: " + advice(WAY_OUT, [f"{module}/*"])
            )
    elif axes is None:
        axes = _guess(module, shape, None if bias is None else shapes[bias])
    elif len(shape) > 2:
        axes = Axes("embed", len(shape) - 2, 1)
    stack, inputs = shape[: axes.stack], shape[axes.stack : axes.stack + axes.inputs]
    return Layer(module, axes.kind, kernel, bias, stack, inputs, shape[axes.stack + axes.inputs :])


def _guess(module: str, kernel: tuple[int, ...], bias: tuple[int, ...] | None) -> Axes:
    """The axes of a kernel, from its shape and the shape of its bias (the output axes).

    Without a bias, which is how layers before a batch normalisation are made, a kernel is taken
    for a convolution's, or for one of Flax's attention. If the model then uses it in another way,
    the first update raises.
    """
    possible = []
    if bias is None and len(kernel) > 1:
        from_heads = module.rpartition("/")[2] not in _TO_HEADS
        possible.append(Axes("linear", 0, len(kernel) - 1 if from_heads else 1))
    if bias is not None and 0 < len(bias) < len(kernel):
        if kernel[-len(bias) :] == bias:
            possible.append(Axes("linear", 0, len(kernel) - len(bias)))
        rest = bias[1:]
        if rest and kernel[:1] == bias[:1] and kernel[-len(rest) :] == rest:
            possible.append(Axes("linear", 1, len(kernel) - len(bias)))
    if len(possible) == 1:
        return possible[0]
    raise ValueError(
        f"the shapes of {module or 'the'} kernel {kernel} and its bias {bias} do not tell which "
        "axes are inputs and which are outputs: pass "
        "layers=fgo_jax.precondition.kfac_layers(predict_fn, params, batch)."
    )
