"""The spectrum of a trained model's curvature in one call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fgo_jax import _checks
from fgo_jax.analysis import quadrature
from fgo_jax.analysis.batches import Data, gradient_noise, mean_product, stack_batches
from fgo_jax.analysis.report import LayerReport, SpectrumReport
from fgo_jax.linalg.krylov import Krylov, combination, krylov_space, random_block
from fgo_jax.linalg.operator import Operator
from fgo_jax.linalg.trees import vdot
from fgo_jax.probes.gram import RowsFn
from fgo_jax.probes.groups import Groups, check_groups, slots
from fgo_jax.probes.probe import Estimate

# Residual, relative to the Ritz value, of one that is taken exactly from then on. By
# Weyl's inequality the others move by no more.
_CONVERGED = 1e-3
# Below this share of the largest eigenvalue float32 products show little but rounding.
_ROUNDING = 1e-5


def spectrum(
    operator: Operator,
    params: Any,
    batch: Any = None,
    *,
    batches: Sequence[Any] | None = None,
    key: jax.Array | None = None,
    num_steps: int = 48,
    num_starts: int = 6,
    block_size: int = 1,
    top: int = 10,
    energy: float = 0.9,
    groups: Groups | None = None,
    rows_fn: RowsFn | None = None,
    noise_examples: int = 128,
) -> SpectrumReport:
    r"""Top eigenpairs, moments, ranks and density of a Fisher, GGN or Hessian.

    One Lanczos run of ``num_steps`` products gives the ``top`` eigenpairs of largest
    :math:`|\lambda|`. All its Ritz pairs that have converged (residual below
    :math:`10^{-3} |\lambda|`, at most ``max(top, num_steps // 2)``) then count exactly,
    and the operator is projected off them; ``num_starts`` random Lanczos runs measure what
    is left, by quadrature. A few outliers, which dominate the variance of random traces,
    thus add nothing to it. Traces are unbiased; ratios are so to first order. The rank and
    the density are those of Ritz values, which resolve the bulk as far as the steps go.

    An indefinite operator, such as :func:`fgo_jax.curvature.hessian`, is taken as it is:
    ``trace``, ``trace_square`` and the eigenvalues are signed, and what speaks of energy
    (``participation_ratio``, ``energy_rank``) takes :math:`|\lambda|`. There the sum of
    :math:`|\lambda|` is no polynomial in A and its quadrature is biased a little low.

    All of it describes the mean over the examples given. Few of them have few large
    eigenvalues: no error here holds the noise of their choice. A start vector sees one copy of
    a multiple eigenvalue, so a block as wide as the multiplicity is needed to *list* the
    copies; moments, rank and density count them all the same, as a random draw.

    It takes ``(1 + num_starts) * num_steps + top + 1`` products with every batch, and as
    many again per group (less ``top``), one at a time; and
    ``4 * (num_steps + block_size + 2 * max(top, num_steps // 2))`` bytes per parameter.
    No leaf is flattened, so sharded parameters stay as they are. The compiled functions
    are kept for the operator: make it once and pass it for every checkpoint.

    Args:
      operator: ``(params, batch) -> matvec``, as :mod:`fgo_jax.curvature` makes them;
        symmetric. Its own ``mask=`` restricts the analysis: leaves on which it gives exact
        zeros are not counted as dimensions, and a parameter without any curvature is one.
        One that requires a keyword ``key`` draws once for each batch, and the whole analysis
        is of these draws.
      params: pytree of floating arrays.
      batch: one batch, in the form that the operator reads.
      batches: instead, several batches of equal shapes, whose mean operator is analysed;
        they are put on the device together, and each product runs the model on one after
        the other.
      key: PRNG key of the starts; None for ``jax.random.key(0)``.
      num_steps: products of a Lanczos run.
      num_starts: random runs for what is not taken exactly, at least 2, for an error.
      block_size: start vectors of a run, at most ``num_steps``; polynomials in the operator
        then have degree ``num_steps / block_size`` only.
      top: eigenpairs to list; fewer come back from a Krylov space of fewer dimensions.
      energy: share of :math:`\sum |\lambda|` that the energy rank holds, in [0, 1).
      groups: parts of the tree whose diagonal blocks are measured too, such as layers,
        from :func:`fgo_jax.probes.layer_groups`.
      rows_fn: ``(params, batch) -> rows``, the gradients of single examples, for the noise
        scale: :func:`fgo_jax.probes.example_gradients` makes it from a loss. All leaves
        count there, whatever the operator's mask.
      noise_examples: leading examples of each batch that ``rows_fn`` gets, at least 5; it
        takes memory for that many gradients and ``8 * noise_examples ** 3`` bytes.

    Returns:
      a :class:`fgo_jax.analysis.SpectrumReport`; :mod:`fgo_jax.plotting` draws it.

    Raises:
      ValueError: for sizes that do not fit, no batch or two kinds of it, batches of
        different shapes, groups that do not fit the parameters or that hold only leaves on
        which the operator is zero, and products that are not finite or all zero.

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
    for name, value in (("num_steps", num_steps), ("block_size", block_size), ("top", top)):
        _checks.positive_int(name, value)
    _checks.positive_int("num_starts", num_starts, 2)
    _checks.positive_int("noise_examples", noise_examples, 5)
    _checks.static("energy", energy)
    _checks.fraction("energy", energy)
    if max(block_size, top) > num_steps:
        raise ValueError(
            f"num_steps={num_steps} products show at most as many eigenpairs and cannot take "
            f"block_size={block_size} and top={top}: pass num_steps= of at least "
            f"{2 * max(block_size, top)}."
        )
    names = check_groups(groups)
    members = slots(groups, params)
    data = stack_batches(batch, batches)
    key = jax.random.key(0) if key is None else key
    keys = jax.random.split(key, 2 + len(names))

    probe = jax.tree.map(lambda leaf: leaf[0], random_block(keys[0], params, 1))
    acting = _acting_leaves(_product(operator, params, data, key, probe))
    run = _Run(operator, params, data, key, num_steps, num_starts, block_size, top, energy)
    whole = _analyse(run, keys[1], acting)
    layers = {}
    for name, those, group_key in zip(names, members[1:], keys[2:], strict=True):
        if not acting & set(those):
            raise ValueError(
                f"the operator gives zeros on all of group {name!r}: leave it out of groups=, "
                "or let the operator's mask= choose it."
            )
        layers[name] = _analyse(run, group_key, acting & set(those))
    noise: dict[str, Estimate] = {}
    if rows_fn is not None:
        noise = gradient_noise(rows_fn, params, data, groups, noise_examples, key)

    listed = whole.main.values[:top]
    vectors = jax.tree.map(lambda leaf: leaf[: len(listed)], whole.vectors)
    residuals = np.array([_residual(run, vectors, i, value) for i, value in enumerate(listed)])
    extremes = {
        "top_eigenvalue": int(np.argmax(whole.main.values)),
        "lowest_eigenvalue": int(np.argmin(whole.main.values)),
    }
    rank = whole.estimates.pop("energy_rank")
    return SpectrumReport(
        eigenvalues=listed,
        residuals=residuals,
        eigenvectors=vectors,
        complete=_complete(whole, len(listed)),
        dimension=whole.dimension,
        **{name: _bounded(whole.main, index) for name, index in extremes.items()},
        **whole.estimates,
        energy_rank=rank,
        energy_fraction=Estimate(rank.value / whole.dimension, rank.error / whole.dimension),
        noise_scale=noise.get("noise_scale"),
        energy=float(energy),
        rule=whole.rule,
        layers={
            name: LayerReport(
                dimension=part.dimension,
                top_eigenvalue=_bounded(part.main, 0),
                trace=part.estimates["trace"],
                participation_ratio=part.estimates["participation_ratio"],
                noise_scale=noise.get(f"noise_scale/{name}"),
            )
            for name, part in layers.items()
        },
    )


class _Run(NamedTuple):
    """What all parts of one analysis share."""

    operator: Operator
    params: Any
    data: Data
    key: jax.Array  # of the draws of an operator that requires one
    num_steps: int
    num_starts: int
    block_size: int
    top: int
    energy: float


class _Analysis(NamedTuple):
    """Of the whole operator or the diagonal block of some leaves."""

    dimension: int
    main: quadrature.Ritz  # of the run that the eigenpairs come from
    vectors: Any  # leaves [keep, *leaf.shape]; its first Ritz vectors
    bulks: list[quadrature.Ritz]
    rule: quadrature.Rule
    estimates: dict[str, Estimate]


def _analyse(run: _Run, key: jax.Array, acting: set[int]) -> _Analysis:
    leaves, treedef = jax.tree.flatten(run.params)
    within = treedef.unflatten([jnp.float32(i in acting) for i in range(len(leaves))])
    dimension = sum(leaves[i].size for i in acting)
    keep = max(run.top, run.num_steps // 2)
    keys = jax.random.split(key, 1 + run.num_starts)

    def krylov(start_key: jax.Array, off: Any) -> Krylov:
        return _space(
            run.operator,
            run.num_steps,
            run.block_size,
            run.params,
            run.data,
            run.key,
            within,
            off,
            start_key,
        )

    nothing = jax.tree.map(lambda p: jnp.zeros((keep, *p.shape), jnp.float32), run.params)
    space = krylov(keys[0], nothing)
    main = quadrature.ritz_values(space.matrix, space.coupling, space.valid)
    converged = main.residuals <= _CONVERGED * np.abs(main.values)
    converged[keep:] = False
    rows = np.zeros([keep, run.num_steps])
    rows[: len(main.values)] = main.coefficients[:keep]
    vectors = combination(jnp.asarray(rows, jnp.float32), space.basis)
    del space  # the next run needs room for a basis of its own
    rows_off = jnp.asarray(np.append(converged, np.zeros(keep))[:keep], jnp.float32)
    off = jax.tree.map(lambda leaf: jnp.einsum("k,k...->k...", rows_off, leaf), vectors)
    bulks = []
    for start_key in keys[1:]:
        part = krylov(start_key, off)
        bulks.append(quadrature.ritz_values(part.matrix, part.coupling, part.valid))
    rule = quadrature.combine(main.values[converged], bulks, dimension)
    estimates = quadrature.moments(rule, main.residuals[converged])
    estimates["energy_rank"] = quadrature.energy_rank(rule, run.energy)
    return _Analysis(dimension, main, vectors, bulks, rule, estimates)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _space(
    operator: Operator,
    num_steps: int,
    block_size: int,
    params: Any,
    data: Data,
    draws: jax.Array,
    within: Any,
    off: Any,
    key: jax.Array,
) -> Krylov:
    """A Krylov space of P A P, P projecting on the leaves `within` and off the vectors `off`."""
    product = mean_product(operator, params, data, draws)

    def project(vector: Any) -> Any:
        vector = jax.tree.map(lambda on, leaf: on * leaf, within, vector)
        heights = jax.lax.map(lambda row: vdot(row, vector), off)
        return optax.tree.sub(vector, combination(heights, off))

    def matvec(vector: Any) -> Any:
        return project(product(project(vector)))

    block = jax.lax.map(project, random_block(key, params, block_size))
    return krylov_space(matvec, block, num_steps)


@functools.partial(jax.jit, static_argnums=0)
def _product(operator: Operator, params: Any, data: Data, draws: jax.Array, vector: Any) -> Any:
    return mean_product(operator, params, data, draws)(vector)


def _acting_leaves(product: Any) -> set[int]:
    """The leaves on which a product with a random vector is not exactly zero."""
    sizes = [float(jnp.max(jnp.abs(leaf), initial=0.0)) for leaf in jax.tree.leaves(product)]
    if not np.all(np.isfinite(sizes)):
        raise ValueError(
            "the operator's products are not finite: check that the parameters and the batch "
            "hold no NaN or infinity."
        )
    if not any(sizes):
        raise ValueError(
            "the operator's product with a random vector is zero, so it has no spectrum: check "
            "that the loss depends on the parameters, and the operator's mask=."
        )
    return {index for index, size in enumerate(sizes) if size > 0.0}


def _residual(run: _Run, vectors: Any, index: int, value: float) -> float:
    vector = jax.tree.map(lambda leaf: leaf[index], vectors)
    product = _product(run.operator, run.params, run.data, run.key, vector)
    rest = jax.tree.map(lambda a, b: a - jnp.float32(value) * b, product, vector)
    return float(jnp.sqrt(vdot(rest, rest)))


def _complete(whole: _Analysis, listed: int) -> bool:
    """Whether nothing in the range of the eigenvalues listed was left to the random runs."""
    sizes = np.abs(whole.main.values)
    # A Krylov space listed to its end should have left nothing at all.
    smallest = sizes[listed - 1] if listed < len(sizes) else 0.0
    left = max(np.max(np.abs(bulk.values), initial=0.0) for bulk in whole.bulks)
    everything = np.sum(whole.rule.starts == -1) >= whole.dimension
    return bool(everything or left <= max((1.0 + _CONVERGED) * smallest, _ROUNDING * sizes[0]))


def _bounded(ritz: quadrature.Ritz, index: int) -> Estimate:
    # A residual from the band matrix falls without end, the products' rounding does not.
    error = max(ritz.residuals[index], 8 * jnp.finfo(jnp.float32).eps * abs(ritz.values[0]))
    return Estimate(jnp.float32(ritz.values[index]), jnp.float32(error))
