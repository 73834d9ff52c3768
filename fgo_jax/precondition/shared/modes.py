"""Groups of a leaf's axes as the modes of a tensor, without a reshape of the leaf."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fgo_jax.linalg import mesh


class Modes(NamedTuple):
    """Which axes of a leaf form each mode, and which are a batch; an axis may be in neither.

    Every axis has a letter for einsum. Contractions go over the axes themselves, so a sharded axis
    is never reshaped. Only factors are, [*batch, d, d] with the batch in the order given here:
    they are split over the batch at most.
    """

    shape: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]  # the axes of each mode
    batch: tuple[int, ...] = ()

    def _letters(self, axes: Sequence[int]) -> str:
        return "".join(string.ascii_lowercase[a] for a in axes)

    def _sizes(self, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.shape[a] for a in axes)

    @property
    def leaf(self) -> str:
        return self._letters(range(len(self.shape)))

    @property
    def dims(self) -> tuple[int, ...]:
        """Length of each mode."""
        return tuple(math.prod(self._sizes(axes)) for axes in self.groups)

    @property
    def unbatched(self) -> tuple[int, ...]:
        return tuple(a for a in range(len(self.shape)) if a not in self.batch)

    def only(self, wanted: Callable[[int], bool]) -> Modes:
        """The modes whose length is wanted."""
        groups = zip(self.groups, self.dims, strict=True)
        return self._replace(groups=tuple(axes for axes, d in groups if wanted(d)))

    def factor_shape(self, k: int) -> tuple[int, ...]:
        return (*self._sizes(self.batch), self.dims[k], self.dims[k])

    @property
    def factor_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(map(self.factor_shape, range(len(self.groups))))

    def reduce(self, function: Callable, x: jax.Array) -> jax.Array:
        """A reduction over each member of the batch; the result keeps the rank of the leaf."""
        return function(x, axis=self.unbatched, keepdims=True)

    def per_factor(self, x: jax.Array) -> jax.Array:
        """A result of `reduce` as [*batch, 1, 1], which broadcasts against a factor."""
        x = jnp.squeeze(x, self.unbatched)
        return jnp.transpose(x, np.argsort(np.argsort(self.batch)).tolist())[..., None, None]

    # Accelerators multiply float32 in lower precision by default. Its rounding would be divided by
    # small second moments and become noise as large as the update.

    def gram(self, x: jax.Array, k: int, precision: Any = "highest") -> jax.Array:
        """X_(k) X_(k)^T, where X_(k) unfolds X along mode k: [*batch, d, d]."""
        kept, batch = self._letters(self.groups[k]), self._letters(self.batch)
        product = jnp.einsum(
            f"{self.leaf},{_raised(self.leaf, kept)}->{batch}{kept}{kept.upper()}",
            x,
            x,
            precision=precision,
            out_sharding=mesh.on_batch(x, self.batch, len(batch) + 2 * len(kept)),
        )
        return mesh.reshaped(product, len(batch), (self.dims[k],) * 2)

    def multiply(
        self,
        x: jax.Array,
        matrix: jax.Array,
        k: int,
        transpose: bool = False,
        precision: Any = "highest",
    ) -> jax.Array:
        """A X_(k), or A^T X_(k), folded back to the shape of X; sharded as X."""
        kept, batch = self._letters(self.groups[k]), self._letters(self.batch)
        sizes = self._sizes(self.groups[k])
        matrix = mesh.reshaped(matrix, len(batch), sizes + sizes)
        indices = kept.upper() + kept if transpose else kept + kept.upper()
        return jnp.einsum(
            f"{batch}{indices},{_raised(self.leaf, kept)}->{self.leaf}",
            matrix,
            x,
            precision=precision,
            out_sharding=mesh.like(x),
        )

    def along(self, vectors: jax.Array, k: int) -> jax.Array:
        """Vectors [*batch, d] along mode k, in a shape that broadcasts against the leaf."""
        axes = (*self.batch, *self.groups[k])
        x = jnp.transpose(vectors.reshape(self._sizes(axes)), np.argsort(axes).tolist())
        return x.reshape([n if a in axes else 1 for a, n in enumerate(self.shape)])


def identity(shape: tuple[int, ...], device: Any, dtype: Any = jnp.float32) -> jax.Array:
    """Identity matrices [*batch, d, d], in the place that `whole_blocks.of_new` names."""
    return mesh.made(_identities, shape, dtype, device)


def _identities(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    # A copy: a buffer that is there twice cannot be donated.
    return jnp.array(jnp.broadcast_to(jnp.eye(shape[-1]), shape), dtype)


def _raised(leaf: str, letters: str) -> str:
    return "".join(c.upper() if c in letters else c for c in leaf)
