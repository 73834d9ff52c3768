"""A long side of a kernel in blocks of equal length, each with a factor of its own."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fgo_jax.linalg import mesh


def flat(x: jax.Array, lead: int) -> jax.Array:
    """x with all axes after the first `lead` as one, which is not split over devices."""
    whole = mesh.put_on_batch(x, x, range(lead))
    return mesh.reshaped(whole, lead, (math.prod(x.shape[lead:]),))


def cut(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[..., n] as [..., blocks, d] for factors [blocks, d, d]; zeros fill up the last block."""
    count, d = shape[0], shape[-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count * d - x.shape[-1])])
    return mesh.reshaped(x, x.ndim - 1, (count, d))


def multiply(roots: jax.Array, x: jax.Array) -> jax.Array:
    """Symmetric blocks [blocks, d, d] times the last axis of x."""
    parts = cut(x, roots.shape)
    found = jnp.einsum(
        "...bi,bij->...bj", parts, roots, precision="highest", out_sharding=mesh.like(parts)
    )
    whole = mesh.reshaped(found, x.ndim - 1, (math.prod(roots.shape[:2]),))
    return whole[..., : x.shape[-1]]


def on_inputs(
    roots: jax.Array, kernel: jax.Array, bias: jax.Array | None, inputs: int
) -> tuple[jax.Array, jax.Array | None]:
    """The blocks times [kernel; bias] from the left; the first axes of the kernel are inputs."""
    turned = jnp.moveaxis(kernel, range(inputs), range(-inputs, 0))
    rows = flat(turned, kernel.ndim - inputs)
    n = rows.shape[-1]
    if bias is not None:
        rows = jnp.concatenate([rows, mesh.placed_like(bias[..., None], rows)], axis=-1)
    rows = multiply(roots, rows)
    if bias is not None:
        bias = mesh.placed_like(rows[..., n], bias)
    new = mesh.reshaped(rows[..., :n], rows.ndim - 1, kernel.shape[:inputs])
    return mesh.placed_like(jnp.moveaxis(new, range(-inputs, 0), range(inputs)), kernel), bias


def on_outputs(roots: jax.Array, x: jax.Array, outputs: int) -> jax.Array:
    """x times the blocks from the right; its last axes are outputs."""
    lead = x.ndim - outputs
    new = multiply(roots, flat(x, lead))
    return mesh.placed_like(mesh.reshaped(new, lead, x.shape[lead:]), x)
