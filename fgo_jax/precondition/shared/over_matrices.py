"""A function of many small matrices, such as an eigendecomposition, in few compiled loops.

On a mesh of devices each of them loops over its own matrices alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from fgo_jax.linalg import mesh
from fgo_jax.linalg.decompositions import one_at_a_time

_FREE = PartitionSpec.UNCONSTRAINED

# The factors [*batch, d, d] of one place, one for each operand of the function.
Row = tuple[jax.Array, ...]


def over_matrices(function: Callable[..., Any], *operands: Sequence[jax.Array]) -> list[Any]:
    """function(*matrices [d, d]) over factors [*batch, d, d], for every place in the operands.

    Factors of equal size share one compiled loop. They are not batched: on CPU a batched
    decomposition waits for workers of the thread pool that it runs on. Several at once
    (three sizes, or eight simulated devices) deadlock (jaxlib 0.10, ParallelBatchMap).
    `jax.vmap` over an ensemble would batch them again, so it becomes a loop as well.

    On a mesh, factors with a sharded batch are treated where they lie. Replicated factors are
    divided among the devices, and every device gets all results.
    """
    one_by_one = one_at_a_time(lambda *matrices: function(*matrices))

    def loop(*stacked: jax.Array) -> Any:
        return jax.lax.map(lambda matrices: one_by_one(*matrices), stacked)

    by_size: dict[int, list[int]] = {}
    for i, factor in enumerate(operands[0]):
        by_size.setdefault(factor.shape[-1], []).append(i)
    results: list[Any] = [None] * len(operands[0])
    for same in by_size.values():
        rows = [tuple(operand[i] for operand in operands) for i in same]
        for i, found in zip(same, _on_their_mesh(loop, rows), strict=True):
            results[i] = found
    return results


def _on_their_mesh(loop: Callable[..., Any], rows: list[Row]) -> list[Any]:
    first = rows[0][0]
    if mesh.like(first) is not None:
        return _on_an_explicit_mesh(loop, rows)
    if mesh.number_of_devices(first) == 1:
        return _looped(loop, rows, [True] * len(rows), ())
    return _as_the_partitioner_splits(loop, rows)


def _looped(
    loop: Callable[..., Any], rows: Sequence[Row], own: Sequence[bool], axes: tuple[str, ...]
) -> list[Any]:
    """One device's part: all of its own matrices, and its share of those that all devices have."""
    flat = [[x.reshape(-1, *x.shape[-2:]) for x in row] for row in rows]
    mine = [row for row, is_own in zip(flat, own, strict=True) if is_own]
    common = [row for row, is_own in zip(flat, own, strict=True) if not is_own]
    parts = [jnp.concatenate(xs) for xs in zip(*mine, strict=True)]
    count = len(parts[0]) if mine else 0
    if common:
        shares = [_share(jnp.concatenate(xs), axes) for xs in zip(*common, strict=True)]
        parts = list(map(jnp.concatenate, zip(parts, shares, strict=True))) if mine else shares
    found = loop(*parts)
    collected = None
    if common:
        collected = jax.tree.map(lambda x: jax.lax.all_gather(x[count:], axes, tiled=True), found)
    results, starts = [], {True: 0, False: 0}
    for row, is_own in zip(rows, own, strict=True):
        batch = row[0].shape[:-2]
        results.append(_part(found if is_own else collected, starts[is_own], batch))
        starts[is_own] += math.prod(batch)
    return results


def _share(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """This device's part of arrays [n, d, d]; copies of the first fill up the last share."""
    devices = math.prod(jax.lax.axis_size(axis) for axis in axes)
    x = jnp.concatenate([x, jnp.repeat(x[:1], -len(x) % devices, axis=0)])
    size = len(x) // devices
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size)


def _part(mapped: Any, start: int, batch: tuple[int, ...]) -> Any:
    stop = start + math.prod(batch)
    return jax.tree.map(lambda x: x[start:stop].reshape(*batch, *x.shape[1:]), mapped)


def _on_an_explicit_mesh(loop: Callable[..., Any], rows: list[Row]) -> list[Any]:
    kind = jax.typeof(rows[0][0]).sharding.mesh
    batches = [PartitionSpec(*jax.typeof(row[0]).sharding.spec[:-2]) for row in rows]
    own = [_is_split(kind, batch) for batch in batches]
    homes = [NamedSharding(kind, batch) for batch in batches]
    rows = [
        tuple(jax.sharding.reshard(x, home) for x in row)
        for row, home in zip(rows, homes, strict=True)
    ]
    # Without the checks: they cannot infer that gathered results are equal on all devices.
    return jax.shard_map(
        lambda rows: _looped(loop, rows, own, kind.axis_names),
        mesh=kind,
        in_specs=([tuple(batch for _ in row) for row, batch in zip(rows, batches, strict=True)],),
        out_specs=batches,
        check_vma=False,
    )(rows)


def _as_the_partitioner_splits(loop: Callable[..., Any], rows: list[Row]) -> list[Any]:
    """On automatic axes only the partitioner knows how the factors are split.

    It is told that the axes of a batch are independent, and calls back with what it has chosen.
    """

    def whole(*flat: jax.Array) -> list[Any]:
        return _looped(loop, jax.tree.unflatten(structure, flat), [True] * len(rows), ())

    flat, structure = jax.tree.flatten(rows)
    kind = jax.typeof(flat[0]).sharding.mesh
    results = jax.eval_shape(whole, *flat)

    def partition(concrete: Any, arguments: Any, found: Any) -> Any:
        batches = [
            _even(concrete, row[0].sharding.spec, row[0].shape[:-2])
            for row in jax.tree.unflatten(structure, arguments)
        ]
        own = [_is_split(concrete, batch) for batch in batches]
        homes = [NamedSharding(concrete, PartitionSpec(*batch)) for batch in batches]

        def local(*flat: jax.Array) -> list[Any]:
            return _looped(loop, jax.tree.unflatten(structure, flat), own, concrete.axis_names)

        results = [
            jax.tree.map(lambda _, home=home: home, tree)
            for tree, home in zip(found, homes, strict=True)
        ]
        inputs = [home for row, home in zip(rows, homes, strict=True) for _ in row]
        return concrete, local, results, tuple(inputs)

    rule, whole_axes = _rule(rows, results)
    dealt = custom_partitioning(whole)
    dealt.def_partition(
        partition=partition, sharding_rule=rule, need_replication_factors=whole_axes
    )

    def pinned(*flat: jax.Array) -> list[Any]:
        found = dealt(*(_on_whole_axes(x, x.ndim - 2, kind) for x in flat))
        return [
            jax.tree.map(lambda x, rank=row[0].ndim - 2: _on_whole_axes(x, rank, kind), tree)
            for row, tree in zip(rows, found, strict=True)
        ]

    return one_at_a_time(pinned)(*flat)


def _on_whole_axes(x: jax.Array, batch: int, kind: Any) -> jax.Array:
    """Lets the partitioner shard the batch alone, and by whole mesh axes.

    Where a shard of a leaf is a part of a block, it would split an axis of the batch by a part of a
    mesh axis. No PartitionSpec can say that, so `custom_partitioning` fails.
    """
    sizes = kind.shape.values()
    spec = [
        None if any(1 < math.gcd(length, size) < size for size in sizes) else _FREE
        for length in x.shape[:batch]
    ]
    spec += [None] * (x.ndim - batch)
    return jax.lax.with_sharding_constraint(x, NamedSharding(kind, PartitionSpec(*spec)))


def _is_split(kind: Any, batch: PartitionSpec | tuple[Any, ...]) -> bool:
    """Whether more than one device has a part of the batch; a mesh axis of one splits nothing."""
    return any(mesh.number_of_parts(kind, name) > 1 for name in batch)


def _even(kind: Any, spec: Any, batch: tuple[int, ...]) -> tuple[Any, ...]:
    """The axes that split a batch evenly; a partitioner may pad others."""
    return tuple(
        None if length % mesh.number_of_parts(kind, name) else name
        for name, length in zip(spec, batch, strict=False)
    )


def _rule(rows: list[Row], results: list[Any]) -> tuple[str, tuple[str, ...]]:
    """Shardy's rule: results have the batch of their factors; and the axes that are not split."""
    whole_axes: list[str] = []

    def letters(x: Any, place: int, batch: int) -> str:
        names = [f"b{place * 10 + k}" for k in range(batch)]
        new = [f"w{len(whole_axes) + k}" for k in range(len(x.shape) - batch)]
        whole_axes.extend(new)
        return " ".join([*names, *new])

    def side(trees: Sequence[Any]) -> str:
        return ", ".join(
            letters(x, place, len(rows[place][0].shape) - 2)
            for place, tree in enumerate(trees)
            for x in jax.tree.leaves(tree)
        )

    return f"{side(rows)} -> {side(results)}", tuple(whole_axes)
