"""Numbers of a spectrum, from its eigenvalues or from the Gram matrix of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

# Float32 sums of a few thousand terms are good to about this. A share of the trace that is
# reached exactly must not need one more eigenvalue because of rounding.
_ROUNDING = 1e-6


def participation_ratio(eigenvalues: jax.Array) -> jax.Array:
    r"""The effective number of eigenvalues: their squared sum over the sum of their squares.

    :math:`(\sum \lambda)^2 / \sum \lambda^2` is between 1 (one eigenvalue holds everything) and n
    (all are equal). For the eigenvalues of a *sample* covariance it is strongly biased towards the
    number of samples: there, take the ratio of :func:`uncentred_sums` or :func:`centred_sums`.

    Args:
      eigenvalues: [..., n], real, in any order and unit.

    Returns:
      [...], float32; NaN where all eigenvalues are zero.

    Raises:
      Nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> from fgo_jax.linalg import participation_ratio
      >>> float(participation_ratio(jnp.array([2.0, 2.0, 2.0, 0.0])))
      3.0

    Source: Gao et al. (2017), "A theory of multineuronal dimensionality, dynamics and
    measurement".
    """
    scaled = _scaled(eigenvalues)
    return jnp.square(jnp.sum(scaled, axis=-1)) / jnp.sum(jnp.square(scaled), axis=-1)


def energy_rank(eigenvalues: jax.Array, q: Any = 0.9) -> jax.Array:
    r"""The fewest eigenvalues that hold a share ``q`` of the trace.

    .. math:: \min \lbrace r : \lambda_1 + \dots + \lambda_r \ge q \sum_i \lambda_i \rbrace,
              \qquad \lambda_1 \ge \lambda_2 \ge \dots

    Negative eigenvalues count as zero: a positive semi-definite matrix has them by rounding
    only. A millionth of the share may be missing, so that rounding adds no eigenvalue to a share
    that is reached exactly.

    Args:
      eigenvalues: [..., n], real, in any order and unit.
      q: share of the trace, in (0, 1].

    Returns:
      [...], float32, a whole number; NaN where no eigenvalue is positive.

    Raises:
      ValueError: where ``q`` is concrete and outside (0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from fgo_jax.linalg import energy_rank
      >>> float(energy_rank(jnp.array([1.0, 6.0, 3.0, 0.0]), q=0.9))
      2.0

    Source: Friction-Guided Optimization (2026), on the effective rank.
    """
    if not isinstance(q, Tracer) and not 0.0 < float(q) <= 1.0:
        raise ValueError(f"q is a share of the trace and must lie in (0, 1], got {q!r}.")
    held = jnp.cumsum(jnp.flip(jnp.sort(jnp.maximum(_scaled(eigenvalues), 0.0)), -1), axis=-1)
    total = held[..., -1]
    wanted = jnp.asarray(q, jnp.float32) * total * (1.0 - _ROUNDING)
    rank = 1.0 + jnp.sum((held < wanted[..., None]).astype(jnp.float32), axis=-1)
    return jnp.where(total > 0.0, rank, jnp.nan)


def entropy_rank(eigenvalues: jax.Array) -> jax.Array:
    r"""The exponential of the entropy of the spectrum.

    .. math:: \exp\Bigl(-\sum_i p_i \log p_i\Bigr), \qquad p_i = \lambda_i / \sum_j \lambda_j

    Negative eigenvalues count as zero.

    Args:
      eigenvalues: [..., n], real, in any order and unit.

    Returns:
      [...], float32, between 1 and n; NaN where no eigenvalue is positive.

    Raises:
      Nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> from fgo_jax.linalg import entropy_rank
      >>> round(float(entropy_rank(jnp.array([5.0, 5.0, 0.0]))), 4)
      2.0

    Source: Roy and Vetterli (2007), "The effective rank".
    """
    scaled = jnp.maximum(_scaled(eigenvalues), 0.0)
    share = scaled / jnp.sum(scaled, axis=-1, keepdims=True)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(share), axis=-1))


def uncentred_sums(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    r"""Unbiased squared trace and trace of the square of a second moment, from a Gram matrix.

    They estimate :math:`(\mathrm{tr}\,F)^2` and :math:`\mathrm{tr}\,F^2`, where F = E gg^T. With
    :math:`K_{ij} = \langle g_i, g_j \rangle` of n independent rows and :math:`D =
    \mathrm{diag}\,K`,

    .. math:: \frac{(\sum_i D_i)^2 - \sum_i D_i^2}{n (n - 1)},
              \qquad \frac{\sum_{ij} K_{ij}^2 - \sum_i D_i^2}{n (n - 1)}.

    Both use only products of two different rows, hence no bias. Their ratio is the
    participation ratio of F. It is biased upwards by the variance of the denominator:
    average each sum over many draws and divide once. The second sum can be negative.

    Args:
      gram: [n, n], inner products of rows, n >= 2. For the empirical Fisher a row is the
        gradient of one example. With ``rows = (g - g') / sqrt 2``, F is a covariance.

    Returns:
      Two float32 scalars, in the fourth power of the rows' unit.

    Raises:
      ValueError: for a Gram matrix that is not square or has fewer than 2 rows.

    Example:
      >>> import jax.numpy as jnp
      >>> from fgo_jax.linalg import uncentred_sums
      >>> [float(x) for x in uncentred_sums(jnp.array([[2.0, 1.0], [1.0, 3.0]]))]
      [6.0, 1.0]

    Source: Chun et al. (ICLR 2026), on the bias of the participation ratio.
    """
    n = _rows(gram, 2)
    gram = gram.astype(jnp.float32)
    diagonal = jnp.diagonal(gram)
    # Zeroed, not subtracted: the diagonal can be far larger than the rest.
    off = gram * (1.0 - jnp.eye(n, dtype=jnp.float32))
    pairs = n * (n - 1)
    numerator = jnp.sum(diagonal * (jnp.sum(diagonal) - diagonal)) / pairs
    return numerator, jnp.sum(jnp.square(off)) / pairs


def centred_sums(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    r"""Unbiased squared trace and trace of the square of a covariance, from a Gram matrix.

    They estimate :math:`(\mathrm{tr}\,C)^2` and :math:`\mathrm{tr}\,C^2`, where C = Cov g, and are
    the U-statistics of order four of n rows with any mean. Both depend on differences of rows only,
    so the Gram matrix may be centred exactly, :math:`\bar K = H K H, H = I - 11^T/n`. Of nine sums
    three remain: :math:`t_1 = \sum \bar K_{ij}^2, t_2 = \sum \bar K_{ii}^2, t_6 = (\sum \bar
    K_{ii})^2`:

    .. math:: A = \frac{1}{n (n-3)} \Bigl[t_6 - \frac{n t_2}{n-2}
                  + \frac{2 t_1 - t_6}{(n-1)(n-2)}\Bigr],
              \qquad B = \frac{1}{n (n-3)} \Bigl[t_1 - \frac{n t_2}{n-2}
                  + \frac{t_6}{(n-1)(n-2)}\Bigr].

    A float32 Gram matrix of rows whose mean is a thousand times their noise holds little of the
    noise. Subtract any common row from all rows before taking their products.

    A and B estimate what :func:`uncentred_sums` does for rows minus their true mean. That
    formula applied to :math:`\bar K` would be biased. A / B is the participation ratio of C:
    average each over many draws and divide once. B can be negative.

    Args:
      gram: [n, n], inner products of rows, n >= 4. A row may be a mean over any number of
        examples: A and B then shrink, and their ratio stays.

    Returns:
      Two float32 scalars, in the fourth power of the rows' unit.

    Raises:
      ValueError: for a Gram matrix that is not square or has fewer than 4 rows.

    Example:
      >>> import jax.numpy as jnp
      >>> from fgo_jax.linalg import centred_sums
      >>> rows = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) + 7.0
      >>> [round(float(x), 4) for x in centred_sums(rows @ rows.T)]
      [2.0, 0.6667]

    Source: Chen, Zhang and Zhong (2010), "Tests for high-dimensional covariance matrices";
    Chun et al. (ICLR 2026).
    """
    n = _rows(gram, 4)
    # Without this, a mean far above the noise would cancel in the fourth power.
    gram = centre(gram)
    diagonal = jnp.diagonal(gram)
    t1, t2 = jnp.sum(jnp.square(gram)), jnp.sum(jnp.square(diagonal))
    t6 = jnp.square(jnp.sum(diagonal))
    own = n / (n - 2) * t2
    distinct = (n - 1) * (n - 2)
    scale = 1.0 / (n * (n - 3))
    return (
        scale * (t6 - own + (2.0 * t1 - t6) / distinct),
        scale * (t1 - own + t6 / distinct),
    )


def centre(gram: jax.Array) -> jax.Array:
    """H K H in float32, H = I - 11^T / n: the Gram matrix of the rows minus their mean."""
    gram = gram.astype(jnp.float32)
    gram = gram - jnp.mean(gram, axis=0, keepdims=True)
    return gram - jnp.mean(gram, axis=1, keepdims=True)


def jackknife_log_ratio(
    gram: jax.Array,
    sums: Callable[[jax.Array], tuple[jax.Array, jax.Array]] = centred_sums,
) -> jax.Array:
    r"""Standard error of the log of a ratio of Gram sums, leaving out one row at a time.

    .. math:: \sqrt{\tfrac{n-1}{n} \textstyle\sum_i (x_i - \bar x)^2},
              \qquad x_i = \log (A_{-i} / B_{-i})

    It is the relative error of the ratio, since d log x = dx / x. It takes memory for n Gram
    matrices.

    Args:
      gram: [n, n], inner products of independent rows.
      sums: :func:`centred_sums` (n >= 5) or :func:`uncentred_sums` (n >= 3).

    Returns:
      [], float32; NaN where a sum without one of the rows is not positive: the rows are then
      too few to estimate their error.

    Raises:
      ValueError: for a Gram matrix that is not square or has too few rows.

    Example:
      >>> import jax
      >>> from fgo_jax.linalg import jackknife_log_ratio
      >>> rows = jax.random.normal(jax.random.key(0), (32, 8))
      >>> 0.0 < float(jackknife_log_ratio(rows @ rows.T)) < 0.5
      True

    Source: Efron and Stein (1981), "The jackknife estimate of variance".
    """
    n = _rows(gram, 3)
    kept = jnp.arange(n - 1)

    def without(row: jax.Array) -> jax.Array:
        index = kept + (kept >= row).astype(kept.dtype)
        numerator, denominator = sums(gram[index][:, index])
        good = (numerator > 0.0) & (denominator > 0.0)
        return jnp.where(good, jnp.log(numerator) - jnp.log(denominator), jnp.nan)

    return jnp.sqrt((n - 1) * jnp.var(jax.vmap(without)(jnp.arange(n))))


def _scaled(eigenvalues: jax.Array) -> jax.Array:
    """In float32, scaled to at most 1 in size: squares of tiny eigenvalues would underflow."""
    eigenvalues = jnp.asarray(eigenvalues).astype(jnp.float32)
    largest = jnp.max(jnp.abs(eigenvalues), axis=-1, keepdims=True)
    return eigenvalues / jnp.where(largest > 0.0, largest, 1.0)


def _rows(gram: jax.Array, minimum: int) -> int:
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"a Gram matrix has shape [n, n], got {gram.shape}: pass rows @ rows.T.")
    if gram.shape[0] < minimum:
        raise ValueError(
            f"these sums need at least {minimum} rows, got {gram.shape[0]}: collect more rows."
        )
    return gram.shape[0]
