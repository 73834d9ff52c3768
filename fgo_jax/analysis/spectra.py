"""The spectrum of a trained model's curvature in one call."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgo_jax import _checks
from fgo_jax.analysis import quadrature
from fgo_jax.analysis.batches import (
    Data,
    check_rows,
    gradient_noise,
    refuse_batches,
    stack_batches,
)
from fgo_jax.analysis.progress import shown
from fgo_jax.analysis.report import LayerReport, Setup, SpectrumReport
from fgo_jax.analysis.runs import (
    CONVERGED,
    Analysis,
    Setting,
    analyse,
    product_sizes,
    residuals,
    start_block,
)
from fgo_jax.linalg.operator import Operator, check_operator, name_of
from fgo_jax.probes.gram import RowsFn
from fgo_jax.probes.groups import Groups, check_groups, slots
from fgo_jax.probes.probe import Estimate

# Below this share of the largest eigenvalue, float32 products are mostly rounding.
_ROUNDING = 1e-5


def spectrum(
    operator: Operator,
    params: Any,
    batch: Any = None,
    *,
    batches: Iterable[Any] | None = None,
    key: jax.Array | None = None,
    num_steps: int = 48,
    num_starts: int = 6,
    block_size: int = 1,
    top: int = 10,
    energy: float = 0.9,
    groups: Groups | None = None,
    rows_fn: RowsFn | None = None,
    noise_examples: int = 128,
    progress: bool | None = None,
) -> SpectrumReport:
    r"""Measures top eigenpairs, moments, ranks and density of a Fisher, GGN or Hessian.

    A first Lanczos run of ``num_steps`` products gives the ``top`` eigenpairs of largest
    :math:`|\lambda|`. Its converged Ritz pairs (residual below :math:`10^{-3} |\lambda|`, at
    most ``max(top, num_steps // 2)`` of them) are taken as exact, and the operator is projected
    off them. Then ``num_starts`` random Lanczos runs measure the rest by quadrature:

    .. math:: \sum_i f(\lambda_i) \approx \sum_{\text{converged}} f(\theta_j)
              + \sum_{\text{rest}} w_j f(\theta_j)

    The few outliers that dominate the variance of a random trace thus add nothing to it.
    Traces are unbiased, ratios to first order. The rank and the density are those of Ritz
    values, which resolve the bulk as far as the steps allow. The error of every figure that
    depends on ``num_steps`` includes its change over the last third of the steps. If that is more
    than half of the figure, the error is infinite and printed as "unresolved": take more steps.
    Errors of single eigenvalues include rounding in the model's precision.

    Run the model in evaluation mode; see :mod:`fgo_jax.curvature`.

    The operator may be indefinite, as :func:`fgo_jax.curvature.hessian` is. ``trace``,
    ``trace_square`` and the eigenvalues are then signed, and ``participation_ratio`` and
    ``energy_rank`` are of :math:`|\lambda|`. The sum of :math:`|\lambda|` is not a polynomial
    in A, and its quadrature is slightly too low there.

    All figures describe the mean over the examples given. A few examples have few large
    eigenvalues, and no error here includes the noise of sampling. A run lists one
    copy of a multiple eigenvalue: to list k copies, take ``block_size=k``. Moments, rank and
    density count all copies in any case, but errors of ``participation_ratio`` are a third too
    small where one multiple eigenvalue makes most of it.

    It takes ``(1 + num_starts) * num_steps + top + 2`` products with every batch, one at a
    time, and as many again for each group (less ``top + 2``). It takes
    ``8 * (num_steps + block_size + max(top, num_steps // 2) + 2)`` bytes per parameter. No
    leaf is flattened, so sharded parameters stay as they are. Compiled functions are cached
    by the operator: make it once and pass the same one for every checkpoint.

    Args:
      operator: ``(params, batch) -> matvec``, as :mod:`fgo_jax.curvature` makes them;
        symmetric. Its own ``mask=`` restricts the analysis: leaves on which it gives exact
        zeros are not counted as dimensions, while other parameters without curvature are.
        If it requires a keyword ``key``, it draws once for each batch, and the whole
        analysis uses these draws.
      params: pytree of floating arrays.
      batch: one batch, in the form that the operator reads.
      batches: instead, several batches of equal shapes, whose mean operator is analysed.
        They are on the device together, and each product runs the model on one at a time.
      key: PRNG key of the starts; None for ``jax.random.key(0)``.
      num_steps: products of a Lanczos run.
      num_starts: random runs, at least 2, so that they have a standard error.
      block_size: start vectors of a run, at most ``num_steps``. The degree of the
        polynomials in the operator falls to ``num_steps / block_size``.
      top: eigenpairs to list. A Krylov space of fewer dimensions gives fewer.
      energy: share of :math:`\sum |\lambda|` that the energy rank holds, in (0, 1].
      groups: parts of the tree, such as layers, whose diagonal blocks are measured too, from
        :func:`fgo_jax.probes.layer_groups`; they need not hold all parameters.
      rows_fn: ``(params, batch) -> rows``, the gradients of single examples, for the noise
        scale. :func:`fgo_jax.probes.example_gradients` makes it from a loss. The noise scale
        is of all leaves, whatever the operator's mask.
      noise_examples: how many leading examples of each batch ``rows_fn`` gets, at least 5.
        It takes memory for that many gradients and ``8 * noise_examples ** 3`` bytes.
      progress: whether to print the expected time and the progress to stderr, as a bar on a
        terminal if `rich` or `tqdm` is installed. None: only if it will take more than ten
        seconds. The estimate is from one product and excludes compilation.

    Returns:
      A :class:`fgo_jax.analysis.SpectrumReport`; :mod:`fgo_jax.plotting` draws it.

    Raises:
      ValueError: for sizes that do not fit; for no batch, or both ``batch`` and ``batches``;
        for batches of different shapes; for groups that do not fit the parameters, or hold
        only leaves on which the operator is zero; for products that are not finite, or all
        zero.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> eigenvalues = jnp.array([9.0, 4.0, 0.5, 0.5, -1.0])
      >>> report = fgo.spectrum(
      ...     lambda params, batch: lambda v: eigenvalues * v, jnp.zeros(5), batch=0, top=3
      ... )
      >>> report.eigenvalues.round(3).tolist(), round(float(report.trace.value), 3)
      ([9.0, 4.0, -1.0], 13.0)

    Source: Ghorbani et al. (2019), "An investigation into neural net optimization via
    Hessian eigenvalue density"; Golub and Meurant (2010), on the quadrature; Meyer et al.
    (2021), "Hutch++", on taking the top exactly.
    """
    check_operator(operator)
    for name, value in (("num_steps", num_steps), ("block_size", block_size), ("top", top)):
        _checks.positive_int(name, value)
    _checks.positive_int("num_starts", num_starts, 2)
    _checks.positive_int("noise_examples", noise_examples, 5)
    _checks.static("energy", energy)
    _checks.share("energy", energy)
    if max(block_size, top) > num_steps:
        raise ValueError(
            f"num_steps={num_steps} products show at most as many eigenpairs, too few for "
            f"block_size={block_size} and top={top}: pass num_steps= of at least "
            f"{max(block_size, top)} (twice as many resolve them), or smaller block_size= and top=."
        )
    names = check_groups(groups)
    members = slots(groups, params)
    data = stack_batches(batch, batches)
    if rows_fn is not None:
        check_rows(data)
    key = jax.random.key(0) if key is None else key
    keys = jax.random.split(key, 2 + len(names))

    run = Setting(operator, params, data, key, num_steps, num_starts, block_size, top, energy)
    given = operator, params, data, key
    block = start_block(keys[0], params, block_size)
    try:
        sizes = np.asarray(product_sizes(*given, block))
    except Exception as error:
        error.add_note("fgo.spectrum takes (operator, params, batch), in this order.")
        raise
    if not np.all(np.isfinite(sizes)):
        refuse_batches(*given)
    if not np.any(sizes):
        raise ValueError(
            "the operator's product with a random vector is zero, so it has no spectrum: check "
            "that the loss depends on the parameters, the operator's mask=, and that a Hessian or "
            "an empirical Fisher was made of losses, not of a model."
        )
    acting = set(np.flatnonzero(sizes).tolist())
    for name, those in zip(names, members[1:], strict=True):
        if not acting & set(those):
            raise ValueError(
                f"the operator gives zeros on all of group {name!r}: leave it out of groups=, "
                "or let the operator's mask= choose it."
            )
    begin = time.perf_counter()
    jax.block_until_ready(product_sizes(*given, block))  # it is compiled by now
    seconds = time.perf_counter() - begin
    del block  # the runs need its room
    products = (1 + len(names)) * (1 + num_starts) * num_steps
    with shown(products, seconds, progress) as advance:
        whole = analyse(run, keys[1], acting, advance)
        layers = {
            # The vectors of a group are not listed, and would stay until the end.
            name: analyse(run, group_key, acting & set(those), advance)._replace(vectors=None)
            for name, those, group_key in zip(names, members[1:], keys[2:], strict=True)
        }
    noise: dict[str, Estimate] = {}
    if rows_fn is not None:
        noise = gradient_noise(rows_fn, params, data, groups, noise_examples, key)

    listed = whole.main.values[:top]
    vectors = jax.tree.map(lambda leaf: leaf[: len(listed)], whole.vectors)
    measured = np.asarray(residuals(*given, np.float32(listed), vectors), np.float64)
    # The band matrix does not include the rounding of products, in the model's precision.
    excess = np.max(measured - whole.main.residuals[: len(listed)], initial=0.0)
    rounding = max(8 * float(jnp.finfo(jnp.float32).eps), excess / abs(listed[0]))
    extremes = {
        "top_eigenvalue": int(np.argmax(whole.main.values)),
        "lowest_eigenvalue": int(np.argmin(whole.main.values)),
    }
    rank = whole.estimates.pop("energy_rank")
    return SpectrumReport(
        setup=Setup(name_of(operator), *_examples(data), num_steps, num_starts, block_size),
        eigenvalues=listed,
        residuals=measured,
        eigenvectors=vectors,
        complete=_complete(whole, len(listed)),
        dimension=whole.dimension,
        **{name: _bounded(whole.main, index, rounding) for name, index in extremes.items()},
        **whole.estimates,
        energy_rank=rank,
        energy_fraction=Estimate(rank.value / whole.dimension, rank.error / whole.dimension),
        noise_scale=noise.get("noise_scale"),
        energy=float(energy),
        rule=whole.rule,
        short_rule=whole.short,
        layers={
            name: LayerReport(
                dimension=part.dimension,
                top_eigenvalue=_bounded(part.main, 0, rounding),
                trace=part.estimates["trace"],
                participation_ratio=part.estimates["participation_ratio"],
                noise_scale=noise.get(f"noise_scale/{name}"),
            )
            for name, part in layers.items()
        },
    )


def _examples(data: Data) -> tuple[int, int | None]:
    """How many batches, and the examples of each; None where its leaves do not agree."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(data)]
    sizes = {shape[1] for shape in shapes if len(shape) > 1}
    return shapes[0][0], sizes.pop() if len(sizes) == 1 else None


def _complete(whole: Analysis, listed: int) -> bool:
    """Whether the random runs saw no other eigenvalue in the range of those listed."""
    sizes = np.abs(whole.main.values)
    # Where all of the Krylov space is listed, nothing at all should be left.
    smallest = sizes[listed - 1] if listed < len(sizes) else 0.0
    left = max(np.max(np.abs(bulk.values), initial=0.0) for bulk in whole.bulks)
    everything = np.sum(whole.rule.starts == -1) >= whole.dimension
    return bool(everything or left <= max((1.0 + CONVERGED) * smallest, _ROUNDING * sizes[0]))


def _bounded(ritz: quadrature.Ritz, index: int, rounding: float) -> Estimate:
    # The residual from the band matrix can fall below the rounding of the products.
    error = max(ritz.residuals[index], rounding * abs(ritz.values[0]))
    return Estimate(jnp.float32(ritz.values[index]), jnp.float32(error))
