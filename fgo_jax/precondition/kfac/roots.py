"""Damped inverse square roots of Kronecker factors, and their product with a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.linalg import mesh
from fgo_jax.precondition.kfac import blocks
from fgo_jax.precondition.kfac.layers import Diagonal, Layer, Layout
from fgo_jax.precondition.shared.over_matrices import over_matrices

Terms = tuple[tuple[jax.Array, jax.Array], ...]


def _is_diagonal(layer: Layer, factor: jax.Array) -> bool:
    return factor.ndim - len(layer.stack) == 1


def trace(layer: Layer, factor: jax.Array) -> jax.Array:
    """The trace of a factor, one number for each copy in the stack."""
    if not _is_diagonal(layer, factor):
        factor = jnp.diagonal(factor, axis1=-2, axis2=-1)
    return _summed(layer, factor)


def _summed(layer: Layer, values: jax.Array) -> jax.Array:
    """The sum over a whole side, blocks and all; one number for each copy in the stack."""
    return jnp.sum(values, axis=tuple(range(len(layer.stack), values.ndim)))


def _over(scale: jax.Array, x: jax.Array) -> jax.Array:
    """A number per copy in the stack, in a shape that broadcasts against x."""
    return jnp.expand_dims(scale, tuple(range(scale.ndim, x.ndim)))


def merged(layer: Layer, terms: Terms) -> tuple[jax.Array, jax.Array]:
    """One Kronecker product with the same partial traces as the sum of the given ones."""
    if len(terms) == 1:
        return terms[0]
    traces = [(trace(layer, x), trace(layer, y)) for x, y in terms]
    total = sum((a * b for a, b in traces), jnp.zeros(layer.stack, jnp.float32))
    total = jnp.where(total > 0, total, 1.0)
    left = sum(_over(b, x) * x for (x, _), (_, b) in zip(terms, traces, strict=True))
    right = sum(_over(a / total, y) * y for (_, y), (a, _) in zip(terms, traces, strict=True))
    return jnp.asarray(left), jnp.asarray(right)


def spectra(factors: Sequence[tuple[Layer, jax.Array]]) -> list[tuple[jax.Array, Any]]:
    """Eigenvalues >= 0 and eigenvectors; None for the eigenvectors of a diagonal factor."""
    out: list[Any] = [(factor, None) for _, factor in factors]
    full = [i for i, (layer, factor) in enumerate(factors) if not _is_diagonal(layer, factor)]
    found = over_matrices(jnp.linalg.eigh, [factors[i][1] for i in full])
    for i, (values, vectors) in zip(full, found, strict=True):
        out[i] = (jnp.maximum(values, 0.0), vectors)
    return out


def inverse_root(values: jax.Array, vectors: Any, damping: jax.Array) -> jax.Array:
    """(X + damping I)^-1/2 from the eigenvalues of X; zero where it would be infinite."""
    damping = _over(damping, values)
    # Smaller eigenvalues are rounding errors.
    floor = jnp.finfo(jnp.float32).eps * jnp.max(values, axis=-1, keepdims=True)
    roots = _root(jnp.maximum(values + damping, floor))
    if vectors is None:
        return roots
    scaled = vectors * roots[..., None, :]
    return jnp.matmul(scaled, jnp.swapaxes(vectors, -1, -2), precision="highest")


def invert(plan: Layout, factors: Any, counts: Any, damping: Any) -> tuple[Any, ...]:
    """The roots of all layers, then of all diagonal leaves; zero before the first estimate."""
    split, damping = len(plan.layers), jnp.asarray(damping, jnp.float32)
    return (
        *_layer_roots(plan.layers, factors[:split], counts[:split], damping),
        *_diagonal_roots(plan.diagonals, factors[split:], counts[split:], damping),
    )


def apply_all(plan: Layout, roots: Any, leaves: list[jax.Array]) -> list[jax.Array]:
    """P^(-1/2) applied to float32 leaves."""
    out = list(leaves)
    for layer, pair in zip(plan.layers, roots, strict=False):
        bias = None if layer.bias is None else leaves[layer.bias]
        out[layer.kernel], new = apply(layer, pair, leaves[layer.kernel], bias)
        if layer.bias is not None and new is not None:
            out[layer.bias] = new
    for d, root in zip(plan.diagonals, roots[len(plan.layers) :], strict=True):
        out[d.leaf] = root * leaves[d.leaf]
    return out


def _layer_roots(
    layers: Sequence[Layer], factors: Sequence[Terms], counts: Sequence[jax.Array], damping: Any
) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """A damped pair for each layer.

    The factored Tikhonov terms are pi sqrt(lambda) and sqrt(lambda) / pi, with
    lambda = damping * mean(A) * mean(G) (means over the eigenvalues) and
    pi = sqrt(mean(A) / mean(G)). So each is sqrt(damping) times the mean of its own side.
    """
    pairs = [merged(x, terms) for x, terms in zip(layers, factors, strict=True)]
    sides = [(x, f) for x, pair in zip(layers, pairs, strict=True) for f in pair]
    lengths = [n for x in layers for n in (x.rows, x.columns)]
    found = []
    for (layer, _), n, (values, vectors) in zip(sides, lengths, spectra(sides), strict=True):
        # Not `jnp.mean`: blocks have zeros beyond the end of the side.
        mean = _summed(layer, values) / n
        found.append(inverse_root(values, vectors, jnp.sqrt(damping) * mean))
    return tuple(
        (jnp.where(count > 0, left, 0.0), jnp.where(count > 0, right, 0.0))
        for left, right, count in zip(found[::2], found[1::2], counts, strict=True)
    )


def _diagonal_roots(
    diagonals: Sequence[Diagonal],
    squares: Sequence[jax.Array],
    counts: Sequence[jax.Array],
    damping: Any,
) -> tuple[jax.Array, ...]:
    def damped(d: Diagonal, square: jax.Array) -> jax.Array:
        if not square.size:
            return square
        # The axes before a normalisation's last one are copies under nn.scan or nn.vmap.
        axes = -1 if d.norm is not None and square.ndim else None
        return square + damping * jnp.mean(square, axis=axes, keepdims=True)

    return tuple(
        jnp.where(count > 0, _root(damped(d, square)), 0.0)
        for d, square, count in zip(diagonals, squares, counts, strict=True)
    )


def _root(values: jax.Array) -> jax.Array:
    """values^(-1/2), zero where it would be infinite."""
    positive = values > 0
    return jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, values, 1.0)), 0.0)


def apply(
    layer: Layer, roots: tuple[jax.Array, jax.Array], kernel: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Left root times [kernel; bias] times right root.

    No axis of the kernel is reshaped but those of a side in blocks.
    """
    if layer.stack:
        below = layer._replace(stack=layer.stack[1:])
        return jax.vmap(lambda r, k, b: apply(below, r, k, b))(roots, kernel, bias)
    left, right = mesh.replicate(roots, kernel)
    inputs, outputs = len(layer.inputs), len(layer.outputs)
    n = layer.rows - (bias is not None)
    if left.ndim == 1:
        kernel = left[:n].reshape(layer.inputs + (1,) * outputs) * kernel
        bias = None if bias is None else left[n] * bias
    elif left.ndim == 3:
        kernel, bias = blocks.on_inputs(left, kernel, bias, inputs)
    else:
        square = left[:n, :n].reshape(layer.inputs + layer.inputs)
        new = _dot(square, kernel, inputs, kernel)
        if bias is not None:
            column = left[:n, n].reshape(layer.inputs)
            new = new + _dot(column, bias, 0, kernel)
            bias = left[n, n] * bias + _dot(column, kernel, inputs, bias)
        kernel = new
    if right.ndim == 1:
        scale = right.reshape(layer.outputs)
        kernel = kernel * scale.reshape((1,) * inputs + layer.outputs)
        return kernel, None if bias is None else bias * scale
    if right.ndim == 3:
        bias = None if bias is None else blocks.on_outputs(right, bias, outputs)
        return blocks.on_outputs(right, kernel, outputs), bias
    square = right.reshape(layer.outputs + layer.outputs)
    if bias is not None:
        bias = _dot(bias, square, outputs, bias)
    return _dot(kernel, square, outputs, kernel), bias


def _dot(a: jax.Array, b: jax.Array, axes: int, result: jax.Array) -> jax.Array:
    return jnp.tensordot(a, b, axes=axes, precision="highest", out_sharding=mesh.like(result))
