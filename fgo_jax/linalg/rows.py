"""The spectrum of a few rows, and when it only shows that the rows are few."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fgo_jax.linalg import sums
from fgo_jax.linalg.decompositions import eigh

# A rank above this share of white noise's rank cannot be told from white noise.
_NEAR = 0.85


class RowSpectrum(NamedTuple):
    """Top eigenvalue and energy rank of a second moment, each a mean over the rows."""

    top_eigenvalue: jax.Array  # [], float32
    energy_rank: jax.Array  # [], float32; a whole number
    top_influence: jax.Array  # [n], float32; influence of each row, minus the mean
    rank_influence: jax.Array  # [n], float32


def unit_of(rows: Any) -> jax.Array:
    """A power of two, [], float32; in this unit the fourth powers of rows stay within float32.

    No entry of the rows, an array or a pytree, is more than four times as large, and a division
    by it changes no digit.
    """
    sizes = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(rows)]
    power = power_below(functools.reduce(jnp.maximum, sizes, jnp.float32(0.0)))
    return jnp.clip(power, 2.0**-126, 2.0**126)  # its inverse is within float32 too


def power_below(x: jax.Array) -> jax.Array:
    """The largest power of two that is not above |x|, for each float32; 0 below the least one."""
    # The bits of the exponent, without sign and digits.
    exponent = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0x7F800000)
    return jax.lax.bitcast_convert_type(exponent, jnp.float32)


def fitting_unit(unit: jax.Array, found: jax.Array, average: jax.Array) -> tuple[jax.Array, ...]:
    """The unit while it suits, else another one; and the old unit as a multiple of the new one.

    A unit suits within a factor of 65,536: beyond that, eighth powers of gradients leave float32.

    Args:
      unit: of any shape, float32; zero for none yet.
      found: the size of a new measurement. One that is zero or not finite has no say.
      average: in the old unit, the size of the average so far.
    """
    far = 2.0**16
    size = jnp.maximum(jnp.where(jnp.isfinite(found), found, 0.0), average * unit)
    # A fall takes several measurements if it is deep, so that no power of the ratio overflows.
    new = jnp.where((size > far * unit) | (size < unit / far), jnp.maximum(size, unit / far), unit)
    new = jnp.where(new > 0.0, new, unit)
    return new, jnp.where(unit > 0.0, unit / new, 1.0)


def divided(rows: Any, unit: jax.Array) -> Any:
    """The rows in a unit."""
    return jax.tree.map(lambda leaf: leaf / unit, rows)


def row_spectrum(gram: jax.Array, freedom: int, energy: Any) -> RowSpectrum:
    r"""Top eigenvalue and energy rank of :math:`G^T G / f` from the Gram matrix K of G.

    With :math:`K u_j = \kappa_j u_j` the eigenvalues are :math:`\kappa_j / f`, and row i
    contributes :math:`\kappa_j u_{ij}^2` to the j-th. To first order, more weight on row i
    changes the top eigenvalue by :math:`\kappa_1 u_{i1}^2`. It changes the number r of
    eigenvalues that hold a share q of the trace (counted with its fraction) by

    .. math:: - \Bigl(\sum_{j \le r} \kappa_j u_{ij}^2 - q K_{ii}\Bigr) / \kappa_r.

    Few rows make the top eigenvalue too large and the rank too small.
    :func:`white_noise_rank` tells where the rank means nothing.

    Args:
      gram: [n, n], inner products of rows (centred ones, for a covariance).
      freedom: f, the number of independent rows: n, or n - 1 for centred rows.
      energy: q, in (0, 1].

    Returns:
      A :class:`RowSpectrum`. The standard deviation of the influences over root n is a
      standard error.

    Example:
      >>> import jax.numpy as jnp
      >>> result = row_spectrum(jnp.diag(jnp.array([8.0, 4.0, 0.0, 0.0])), 4, energy=0.9)
      >>> float(result.top_eigenvalue), float(result.energy_rank)
      (2.0, 2.0)

    Source: Efron (1982), "The jackknife, the bootstrap and other resampling plans",
    chapter 6, on the infinitesimal jackknife.
    """
    n = gram.shape[0]
    values, vectors = eigh(gram.astype(jnp.float32))
    values, vectors = jnp.maximum(jnp.flip(values), 0.0), jnp.flip(vectors, 1)
    rank = sums.energy_rank(values, energy)
    shares = values[None, :] * jnp.square(vectors)  # [row, eigenvalue]
    total = jnp.sum(values)
    wanted = jnp.asarray(energy, jnp.float32) * total
    before = jnp.cumsum(values) - values
    part = jnp.clip((wanted - before) / jnp.where(values > 0.0, values, 1.0), 0.0, 1.0)
    last = jnp.sum(jnp.where(jnp.arange(n) == rank.astype(jnp.int32) - 1, values, 0.0))
    held = jnp.sum(shares * part[None, :], axis=1) - jnp.asarray(energy, jnp.float32) * jnp.sum(
        shares, 1
    )
    influence = -n * held / jnp.where(last > 0.0, last, jnp.nan)
    top = n * shares[:, 0] / freedom
    return RowSpectrum(values[0] / freedom, rank, top - jnp.mean(top), influence)


def white_noise_rank(rows: int, dimension: float, energy: Any) -> jax.Array:
    r"""The energy rank of white noise, which is the ceiling of a rank from few rows.

    The mean characteristic polynomial of the Gram matrix of n white rows of d entries is
    the Laguerre polynomial :math:`L_n^{(d-n)}`. Its roots stand for the eigenvalues of such
    a matrix. They are the eigenvalues of :math:`B B^T` with B lower bidiagonal,
    :math:`B_{ii}^2 = d - i + 1, B_{i+1,i}^2 = n - i`.

    Args:
      rows: n, the number of independent rows; a Python integer.
      dimension: d, entries of a row.
      energy: share of the trace that the rank holds.

    Returns:
      [], float32; inf (no ceiling) if the rows are so many that the rank of white noise is
      nearly its true rank, ``energy * d``.

    Example:
      >>> float(white_noise_rank(25, 1e6, 0.9))  # as good as all eigenvalues equal
      23.0
      >>> float(white_noise_rank(100, 5, 0.9))
      inf

    Source: Edelman (1989), "Eigenvalues and condition numbers of random matrices";
    Dumitriu and Edelman (2002), "Matrix models for beta ensembles".
    """
    many, few = max(float(rows), float(dimension)), max(int(min(rows, dimension)), 1)
    index = np.arange(few)
    bidiagonal = np.diag(np.sqrt(many - index)) + np.diag(np.sqrt(few - index[1:]), -1)
    roots = np.sort(np.linalg.svd(bidiagonal, compute_uv=False) ** 2)
    rank = sums.energy_rank(jnp.asarray(roots / many, jnp.float32), energy)
    truth = jnp.asarray(energy, jnp.float32) * jnp.float32(dimension)
    return jnp.where(rank >= _NEAR * truth, jnp.inf, rank)


def trusted_error(rank: jax.Array, error: jax.Array, ceiling: jax.Array) -> jax.Array:
    """The standard error of a rank; infinite near the ceiling, so that no trigger acts on it."""
    return jnp.where(rank > _NEAR * ceiling, jnp.inf, error)
