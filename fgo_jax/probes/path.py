"""Sketched snapshots of the parameters along a run, and the dimension of the path they lie on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax.linalg import sums
from fgo_jax.linalg.decompositions import eigh
from fgo_jax.linalg.rows import unit_of
from fgo_jax.linalg.sketch import sketch_parts
from fgo_jax.probes.groups import Groups, slots

COMPONENTS = 3  # of a path, for the share of a vector that lies in it


class Path(NamedTuple):
    """A ring of snapshots. All share the signs of their sketches, so they can be compared."""

    path_seed: jax.Array  # [], uint32
    taken: jax.Array  # [], int32; snapshots so far
    times: jax.Array  # [snapshots], int32; steps at which they were taken, -1 before
    snapshots: jax.Array  # [snapshots, 1 + groups, 2, width], float32


class Reading(NamedTuple):
    """What a full ring says; the last entry along the first axis is the random walk's."""

    dimension: jax.Array  # [1 + groups + 1], float32; participation ratio
    rank: jax.Array  # [1 + groups + 1], float32
    top_share: jax.Array  # [1 + groups + 1], float32; of the variance, in the first component
    components: jax.Array  # [COMPONENTS, 2, width], float32; orthonormal, of the whole tree


def empty(snapshots: int, groups: int, width: int) -> Path:
    """No snapshots yet."""
    return Path(
        path_seed=jnp.zeros([], jnp.uint32),
        taken=jnp.zeros([], jnp.int32),
        times=jnp.full([snapshots], -1, jnp.int32),
        snapshots=jnp.zeros([snapshots, 1 + groups, 2, width], jnp.float32),
    )


def is_full(path: Path) -> jax.Array:
    """[], bool."""
    return path.taken >= path.times.shape[0]


def add(path: Path, params: Any, step: jax.Array, key: jax.Array, groups: Groups | None) -> Path:
    """The path with one more snapshot, or a new one where training began again."""
    anew = (path.taken == 0) | (step <= jnp.max(path.times))
    taken = jnp.where(anew, 0, path.taken)
    seed = jnp.where(anew, jax.random.bits(key, dtype=jnp.uint32), path.path_seed)
    count, _, _, width = path.snapshots.shape
    everything, *members = slots(groups, params)
    rest = sorted(set(everything).difference(*members))
    parts = sketch_parts(params, seed, width, [rest, *members])
    row = jnp.stack([sum(parts, jnp.zeros([2, width], jnp.float32)), *parts[1:]])
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    return Path(
        path_seed=seed,
        taken=jnp.asarray(optax.safe_increment(taken)),
        times=put(jnp.where(anew, -1, path.times), step.astype(jnp.int32), taken % count),
        snapshots=put(path.snapshots, row, taken % count),
    )


def read(path: Path, energy: Any) -> Reading:
    """Dimensions of the whole path and of each group, and those of a random walk."""
    rows = path.snapshots - jnp.mean(path.snapshots, axis=0, keepdims=True)
    rows = rows / unit_of(rows)
    grams = jnp.einsum("igsk,jgsk->gsij", rows, rows, precision=jax.lax.Precision.HIGHEST)
    walk = random_walk_gram(path.times)
    grams = jnp.concatenate([grams, jnp.stack([walk, walk])[None]])
    # The trace of K1 K2 from two independent sketches is unbiased for that of K^2.
    numerators = jnp.trace(grams[:, 0], axis1=1, axis2=2) * jnp.trace(grams[:, 1], axis1=1, axis2=2)
    dimension = _ratio(numerators, jnp.sum(grams[:, 0] * grams[:, 1], axis=(1, 2)))
    values, vectors = jax.lax.map(eigh, jnp.mean(grams, axis=1))
    values, vectors = jnp.maximum(jnp.flip(values, 1), 0.0), jnp.flip(vectors, 2)
    heights = jnp.sqrt(values[0, :COMPONENTS])
    unit = vectors[0, :, :COMPONENTS] / jnp.where(heights > 0, heights, jnp.inf)[None]
    return Reading(
        dimension=dimension,
        rank=sums.energy_rank(values, energy),
        top_share=_ratio(values[:, 0], jnp.sum(values, axis=1)),
        components=jnp.einsum("ic,isk->csk", unit, rows[:, 0]),
    )


def random_walk_gram(times: jax.Array) -> jax.Array:
    r"""Centred inner products of a random walk's positions, up to a factor.

    With independent increments in many dimensions,
    :math:`\langle x_s, x_t \rangle \propto \min(s, t)`. At n even times the eigenvalues are
    :math:`1 / (4 \sin^2(\pi k / 2n))`, k = 1 ... n - 1. As n grows, the first has
    :math:`6/\pi^2` of the trace, six hold 90 % of it, and the participation ratio is 5/2.

    Args:
      times: [n], int32, in any order.
    """
    since = (times - jnp.min(times)).astype(jnp.float32)
    since = since / jnp.maximum(jnp.max(since), 1.0)
    return sums.centre(jnp.minimum(since[:, None], since[None]))


def share(components: jax.Array, sketch: jax.Array, energy: jax.Array) -> jax.Array:
    """The share of a vector's squared length that lies in the span of the components.

    The product of two independent sketches is unbiased; it may be a little below zero.

    Args:
      components: [COMPONENTS, 2, width].
      sketch: [2, width], of the vector.
      energy: [], its squared length.
    """
    heights = jnp.einsum("csk,sk->cs", components, sketch, precision=jax.lax.Precision.HIGHEST)
    return _ratio(jnp.sum(heights[:, 0] * heights[:, 1]), energy)


def estimates(reading: Reading, names: Sequence[str]) -> dict[str, jax.Array]:
    """The signals by name."""
    kinds = ("dimension", "rank", "top_share")
    found = {f"path_{kind}": getattr(reading, kind)[0] for kind in kinds}
    found |= {f"walk_{kind}": getattr(reading, kind)[-1] for kind in kinds}
    for index, name in enumerate(names, 1):
        found |= {f"path_{kind}/{name}": getattr(reading, kind)[index] for kind in kinds}
    return found


def signal_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names of `estimates`."""
    nothing = Reading(*(jnp.zeros([2 + len(names)]) for _ in Reading._fields))
    return tuple(estimates(nothing, names))


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    known = denominator > 0
    return jnp.where(known, numerator / jnp.where(known, denominator, 1.0), jnp.nan)
