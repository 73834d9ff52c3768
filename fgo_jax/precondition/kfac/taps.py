"""Second moments of a layer's inputs and output gradients, for each kind of layer."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.linalg import mesh
from fgo_jax.linalg.devices import as_varying, varying_axes
from fgo_jax.precondition.kfac import blocks
from fgo_jax.precondition.kfac.layers import Diagonal, Layer, Layout

# A term is a pair (X, Y) of moments: X on the kernel's input axes, Y on its output axes. Their
# shapes tell three kinds of factors: [n, n] is full, [blocks, d, d] has blocks, [n] is diagonal.
#   linear layers: ((A, G),)
#   embeddings:    ((counts of tokens, G of the look-up), (g^2 of .attend, A of .attend))


def shapes(layer: Layer, block_size: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The shapes of the terms of a layer."""

    def side(n: int, size: int = block_size, bias: int = 0) -> tuple[int, ...]:
        count = -(-(n - bias) // size)
        d = -(-n // count)
        return (*layer.stack, *((n,) if size == 1 else (n, n) if count == 1 else (count, d, d)))

    columns = side(layer.columns)
    if layer.kind == "embed":
        return ((side(layer.rows, 1), columns),) * 2
    return ((side(layer.rows, bias=int(layer.bias is not None)), columns),)


def zero_terms(layer: Layer, block_size: int) -> tuple[tuple[jax.Array, ...], ...]:
    """The terms of a layer before any estimate."""
    return tuple(
        tuple(jnp.zeros(shape, jnp.float32) for shape in term) for term in shapes(layer, block_size)
    )


def treatments(plan: Layout, factors: list[Any], roots: list[Any]) -> list[tuple[str, int]]:
    """For each leaf, in words for the user, and the bytes of its factors and roots."""
    found: dict[int, tuple[str, int]] = {}
    arrays = list(zip(factors, roots, strict=True))
    for part, state in zip((*plan.layers, *plan.diagonals), arrays, strict=True):
        size = sum(4 * x.size for x in jax.tree.leaves(state))
        if isinstance(part, Diagonal):
            found[part.leaf] = "a diagonal Fisher", size
            continue
        of = f"of {part.kind} layer {part.path or '(root)'}"
        sides = " and ".join(_in_words(x.shape[len(part.stack) :]) for x in state[0][0])
        found[part.kernel] = f"kernel {of}: factors of {sides}", size
        if part.bias is not None:
            found[part.bias] = f"bias {of}: in the kernel's factors", 0
    return [found[leaf] for leaf in sorted(found)]


def _in_words(factor: tuple[int, ...]) -> str:
    if len(factor) == 3:
        return f"{factor[-1]} ({factor[0]} blocks)"
    return f"{factor[-1]}{' (diagonal)' if len(factor) == 1 else ''}"


def zero_probe(layer: Layer, block_size: int) -> Any:
    """The zeros whose cotangent is the layer's statistic."""
    terms = zero_terms(layer, block_size)
    return {"terms": terms, "uses": tuple(jnp.zeros(layer.stack, jnp.float32) for _ in terms)}


def normalised(layer: Layer, probe: Any) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """The terms, their activations averaged over the uses of the layer; gradients stay sums."""
    out = []
    for index, ((x, y), uses) in enumerate(zip(probe["terms"], probe["uses"], strict=True)):
        share = 1.0 / jnp.maximum(uses, 1.0)

        def scale(moment: jax.Array, share: jax.Array = share) -> jax.Array:
            missing = tuple(range(share.ndim, moment.ndim))
            return moment * jnp.expand_dims(share, missing)

        out.append((scale(x), y) if index == 0 else (x, scale(y)))
    return tuple(out)


def tap(
    layer: Layer, module: Any, method: str, x: jax.Array, y: jax.Array, probe: Any, reduce: bool
) -> jax.Array:
    """y unchanged; the cotangent of the probe is the layer's statistics."""

    # Shapes only: a backward pass must not hold values from the trace of the forward pass.
    like = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), probe)

    @jax.custom_vjp
    def identity(y, x, probe):
        del x, probe
        return y

    def forward(y, x, probe):
        del probe
        return y, x

    def backward(x, g):
        if layer.kind == "embed":
            found = _embed(layer, method, x, g, like)
        else:
            found = _linear(layer, module, x, g, like, reduce)
        # A model may cast its parameters to a lower precision, and the probe with them.
        found = jax.tree.map(lambda new, old: new.astype(old.dtype), found, like)
        return g, None, as_varying(found, varying_axes(g))

    identity.defvjp(forward, backward)
    return identity(y, x, probe)


def tap_norm(standardised: jax.Array, y: jax.Array, probe: Any) -> jax.Array:
    """y unchanged; cotangents are the squared gradients of scale and bias, example by example."""
    for leaf in probe.values():
        if leaf.shape != y.shape[y.ndim - leaf.ndim :]:
            raise ValueError(
                f"scale_by_kfac takes normalisations over trailing axes, got a parameter of shape "
                f"{leaf.shape} for outputs {y.shape}: name it in diagonal= (globs or a function "
                "of the path)."
            )
    like = {name: jax.ShapeDtypeStruct(p.shape, p.dtype) for name, p in probe.items()}

    @jax.custom_vjp
    def identity(y, standardised, probe):
        del standardised, probe
        return y

    def forward(y, standardised, probe):
        del probe
        return y, standardised

    def backward(standardised, g):
        def square(name: str) -> jax.Array:
            each = g.astype(jnp.float32)
            if name == "scale":
                each = each * standardised.astype(jnp.float32)
            lead = g.ndim - len(like[name].shape)
            each = jnp.square(jnp.sum(each, axis=tuple(range(1, lead))))
            return (jnp.sum(each, axis=0) if lead else each).astype(like[name].dtype)

        return g, None, {name: square(name) for name in like}

    identity.defvjp(forward, backward)
    return identity(y, standardised, probe)


def _moment(x: jax.Array, axes: int, like: Any, constant: bool) -> jax.Array:
    """Sum of x x^T over all but the last `axes` axes of x; `constant` appends a 1 to x."""
    lead = tuple(range(x.ndim - axes))
    n = math.prod(x.shape[len(lead) :])
    uses = jnp.full((1,), math.prod(x.shape[: len(lead)]), jnp.float32)
    if like.ndim == 1:
        square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=lead).reshape(n)
        return jnp.concatenate([square, uses]) if constant else square
    if like.ndim == 3:
        return _block_moments(x, lead, like.shape, constant)
    # No reshape before the contraction: the leading axes may be sharded.
    product = jnp.tensordot(
        x,
        x,
        axes=(lead, lead),
        precision="highest",
        preferred_element_type=jnp.float32,
        out_sharding=mesh.replicated(x, 2 * axes),
    ).reshape(n, n)
    if not constant:
        return product
    total = jnp.sum(x.astype(jnp.float32), axis=lead).reshape(n, 1)
    return jnp.block([[product, total], [total.T, uses[:, None]]])


def _block_moments(
    x: jax.Array, lead: tuple[int, ...], shape: tuple[int, ...], constant: bool
) -> jax.Array:
    """`_moment` by blocks, [blocks, d, d]; zeros fill up the last one."""
    x = blocks.flat(x, len(lead))
    if constant:
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
    x = blocks.cut(x, shape)
    rows = len(lead)
    return jax.lax.dot_general(
        x,
        x,
        ((lead, lead), ((rows,), (rows,))),
        precision="highest",
        preferred_element_type=jnp.float32,
        out_sharding=mesh.replicated(x, 3),
    )


def _count(lead: tuple[int, ...], g: jax.Array) -> jax.Array:
    """The number of uses of the layer: the size of the leading axes."""
    uses = jnp.full((), math.prod(lead), jnp.float32)
    # Always `uses`. This data dependency makes vmap sum the count over examples.
    return jnp.where(jnp.isnan(jnp.sum(g)), uses, uses)


def _linear(layer: Layer, module: Any, x: jax.Array, g: jax.Array, like: Any, reduce: bool) -> Any:
    x = _inputs(layer, module, x)
    inputs, outputs = len(layer.inputs), len(layer.outputs)
    shared = tuple(range(1, x.ndim - inputs))
    if reduce and shared:
        x = jnp.mean(x.astype(jnp.float32), axis=shared)
        g = jnp.sum(g.astype(jnp.float32), axis=shared)
    ((like_x, like_y),) = like["terms"]
    uses = _count(x.shape[: x.ndim - inputs], g)
    return {
        "terms": (
            (
                _moment(x, inputs, like_x, layer.bias is not None),
                _moment(g, outputs, like_y, False),
            ),
        ),
        "uses": (uses,),
    }


def _embed(layer: Layer, method: str, x: jax.Array, g: jax.Array, like: Any) -> Any:
    (x0, y0), (x1, y1) = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), like["terms"])
    uses = [jnp.zeros((), jnp.float32)] * 2
    if method == "attend":
        x1, y1 = _moment(g, 1, x1, False), _moment(x, 1, y1, False)
        uses[1] = _count(x.shape[:-1], g)
    else:
        x0 = x0.at[x].add(1.0)
        y0 = _moment(g, 1, y0, False)
        uses[0] = _count(x.shape, g)
    return {"terms": ((x0, y0), (x1, y1)), "uses": tuple(uses)}


def _inputs(layer: Layer, module: Any, x: jax.Array) -> jax.Array:
    """The layer's input with the contracted axes last, in the order of the kernel's."""
    if hasattr(module, "kernel_size"):
        return _patches(layer, module, x)
    axis = getattr(module, "axis", -1)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    axes = tuple(sorted(a % x.ndim for a in axes))  # as Flax does for the kernel
    lead = tuple(a for a in range(x.ndim) if a not in axes)
    return jnp.transpose(x, lead + axes)


def _patches(layer: Layer, module: Any, x: jax.Array) -> jax.Array:
    """The patches that a convolution multiplies its kernel with: [..., *kernel_size, channels]."""
    sizes = layer.inputs[:-1]
    rank = len(sizes)

    def each(value: Any) -> tuple[int, ...]:
        value = 1 if value is None else value
        return (value,) * rank if isinstance(value, int) else tuple(value)

    lead = x.shape[: x.ndim - rank - 1]
    x = x.reshape((math.prod(lead), *x.shape[x.ndim - rank - 1 :]))
    reach = [(k - 1) * d for k, d in zip(sizes, each(module.kernel_dilation), strict=True)]
    padding: Any = module.padding
    if isinstance(padding, int):
        padding = [(padding, padding)] * rank
    elif not isinstance(padding, str):
        padding = [(p, p) if isinstance(p, int) else tuple(p) for p in padding]
    elif padding in ("CIRCULAR", "REFLECT"):
        mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}[padding]
        x = jnp.pad(x, [(0, 0), *((r // 2, (r + 1) // 2) for r in reach), (0, 0)], mode=mode)
        padding = "VALID"
    elif padding == "CAUSAL":
        padding = [(reach[0], 0)]
    spatial = "".join("DHW"[-rank:]) if rank <= 3 else None
    numbers = None if spatial is None else (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    if numbers is None:
        raise ValueError(f"scale_by_kfac takes convolutions of one to three axes, got {rank}.")
    patches = jax.lax.conv_general_dilated_patches(
        x.astype(jnp.float32),
        sizes,
        each(module.strides),
        padding,
        lhs_dilation=each(module.input_dilation),
        rhs_dilation=each(module.kernel_dilation),
        dimension_numbers=numbers,
        precision=jax.lax.Precision.HIGHEST,
    )
    patches = patches.reshape((*lead, *patches.shape[1:-1], layer.inputs[-1], *sizes))
    return jnp.moveaxis(patches, patches.ndim - rank - 1, -1)
