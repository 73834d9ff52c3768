"""K-FAC as a gradient transformation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.curvature import losses
from fgo_jax.curvature.weights import Select, check_select
from fgo_jax.precondition.kfac import roots, statistics
from fgo_jax.precondition.kfac.estimate import all_finite, averaged, estimator
from fgo_jax.precondition.kfac.layers import Axes, Layout, Paths, check_diagonal, layout
from fgo_jax.precondition.shared import mesh
from fgo_jax.precondition.shared.model import model_and_batch
from fgo_jax.precondition.shared.preconditioner import Preconditioner


class ScaleByKfacState(NamedTuple):
    """State of `scale_by_kfac`, grouped by how often it changes."""

    kfac_key: jax.Array  # shape=(2,), dtype=jnp.uint32; never.
    kfac_step: jax.Array  # shape=(), dtype=jnp.int32.
    direction: Any  # like params, dtype=jnp.float32; moving average of updates, () without b1.
    # The rest goes by layer, then by diagonal leaf. `optax.tree.map_params` treats each field as
    # one value that is not parameter-shaped. These change when factors are estimated,
    estimates: Any  # tuple, shape=(), dtype=jnp.int32; how many made it into the average.
    factors: Any  # tuple of tuples of pairs (A, G) [*stack, d, d] or [*stack, d], jnp.float32;
    # diagonals of the Fisher like their leaf after them.
    # and these when they are inverted.
    roots: Any  # tuple of damped inverse square roots, one pair per layer, as factors.


def scale_by_kfac(
    predict_fn: Callable[[Any, Any], Any],
    loss: str = "softmax_cross_entropy",
    *,
    damping: jax.typing.ArrayLike = 0.03,
    factor_decay: jax.typing.ArrayLike = 0.99,
    norm_constraint: jax.typing.ArrayLike | None = 1.0,
    b1: jax.typing.ArrayLike | None = None,
    factors_every: jax.typing.ArrayLike = 1,
    refresh_every: jax.typing.ArrayLike = 5,
    burn_in: jax.typing.ArrayLike = 10,
    approximation: str = "expand",
    diagonal: Paths = (),
    layers: Mapping[str, Axes] | None = None,
    weights: Select | None = None,
    max_dim: int = 4096,
    axis_name: str | None = None,
    seed: int = 0,
) -> Preconditioner:
    r"""Natural gradient of a Flax model by Kronecker factors of activations and output gradients.

    For a layer whose kernel and bias form one matrix W, with inputs a (a 1 appended for the bias)
    and gradients g of the log-likelihood with respect to its outputs,

        A = E[a a^T],   G = E[g g^T],   F ~ A kron G,
        U = (A + sqrt(damping) mean(A) I)^-1 grad W (G + sqrt(damping) mean(G) I)^-1,

    with mean(X) = tr X / dim X, which is Martens and Grosse's factored damping
    (pi = sqrt(mean(A) / mean(G))) of size damping * mean(A) mean(G). F is the Fisher of the mean
    loss over all rows of the outputs, as in `fgo_jax.curvature.ggn`, and its labels are drawn from
    the model, one per row, as in `fgo_jax.curvature.sampled_fisher`: none is read from the batch.
    All updates U together are shortened to U^T F U = <U, grad> <= norm_constraint, then averaged
    if asked for (b1, bias-corrected). They shrink with the gradient: at a learning rate of 1 they
    are Newton's steps, at 0.03 to 0.3 they stand the noise of a batch of hundreds.

    The model runs through `flax.linen.intercept_methods` once per estimate: a forward and a
    backward pass without weight gradients, and the products that make the factors. It may use
    nn.scan, nn.remat, nn.vmap, nn.jit, `jax.jit` and `jax.vmap` in any way. Captured are

    - nn.Dense, nn.DenseGeneral (any axes, so nn.MultiHeadDotProductAttention too), nn.Conv, and
      cells and models made of them;
    - nn.Embed: the input factor is diagonal, the frequencies of the tokens. For .attend the output
      factor is: the squared gradients of the logits. Where both are used, F is a sum of two
      Kronecker products, replaced by the one with the same partial traces;
    - nn.LayerNorm, RMSNorm, GroupNorm, BatchNorm, InstanceNorm over trailing axes: a diagonal
      Fisher of squared gradients, example (axis 0) by example;
    - parameters named by ``diagonal``: squared gradients of the whole batch at the drawn labels
      (Gauss-Newton-Bartlett), an unbiased diagonal of more noise. Empty leaves as well.

    Anything else raises an error with its name. A parameter that is read past its module (such as
    ``embed.embedding.T``) escapes notice: use .attend, or ``diagonal``. So does the batch
    dimension of a masked input: padding is part of A.

    Several uses of a layer for one example (a time axis, a convolution's patches, a module called
    twice, a recurrence) are taken as independent: A is the mean and G the sum over uses ("expand",
    exact where each use has a loss term of its own). "reduce" takes a as the mean and g as the sum
    over all axes between the first and the features, before the outer product (exact for a linear
    layer under mean pooling); uses in separate calls are still expanded, and so are embeddings.

    A step's sums are over the whole batch under `jax.jit`, sharded or not. Kernels and their
    updates keep their sharding; factors are small, and replicated unless the partitioner splits
    them. A batch on which a layer's statistics are not finite leaves them as they were; a layer
    whose gradient is not finite (kernel or bias) gets a zero update and keeps its average. A layer
    that has never been seen does not move.

    Memory: 4 bytes per parameter for the average, none without b1, and for an m x n layer
    8 (m^2 + n^2) bytes for factors and roots. On a busy CPU set OPENBLAS_NUM_THREADS=1.

    Args:
      predict_fn: ``(params, batch) -> outputs`` [..., C], which calls Flax linen modules on the
        very parameters it is given. (flax.nnx has no interception of methods.)
      loss: ``"softmax_cross_entropy"``, ``"sigmoid_cross_entropy"`` or ``"squared_error"``.
      damping: relative to mean(A) mean(G) of each layer; for a diagonal, to its mean. Far less
        than the default stopped a small language model from training, where a batch says little
        about most directions; a deep autoencoder trained alike from 3e-4 to 0.03.
      factor_decay: decay rate of the factors, per estimate.
      norm_constraint: bound on <U, grad>, in units of the loss, before the learning rate (which
        multiplies it by its square); None for none.
      b1: decay rate of a moving average of updates; None for none, which was better at every
        learning rate tried on a deep autoencoder.
      factors_every: steps from one estimate to the next.
      refresh_every: steps from one inversion to the next.
      burn_in: number of first steps at which factors are estimated and inverted at every step.
        The first step does both in any case.
      approximation: ``"expand"`` or ``"reduce"``.
      diagonal: parameters to be given a diagonal Fisher: a glob or globs of paths such as
        ``"Embed_0/*"``, or ``path -> bool``.
      layers: the result of `kfac_layers`; needed where a kernel of three or more axes has no bias
        to tell its outputs from its inputs.
      weights: as in `fgo_jax.curvature.ggn`: where the batch holds one weight per row.
      max_dim: longest side with a full factor; longer ones have a diagonal one.
      axis_name: inside `jax.pmap` or `jax.shard_map`: the axis over which factors are averaged.
        Gradients are expected to be averaged already.
      seed: of the key that draws the labels.

    Returns:
      A `Preconditioner` whose update takes ``batch=`` and, under `optax.masked` or
      `optax.partition`, ``probe_params=`` (all parameters). Its `metric` is P^(-1/2) at the last
      inversion, the identity before the first. Under `optax.inject_hyperparams` name in
      ``static_args`` all arguments but damping, factor_decay, b1, norm_constraint and the three
      counts of steps.

    Raises:
      ValueError: an argument out of its range; in ``init``, a parameter of no known layer; in
        ``update``, a module that cannot be captured.
      TypeError: in ``update``, without ``batch=``, or without parameters.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
    >>> model = nn.Dense(3)
    >>> x = jax.random.normal(jax.random.key(0), (8, 4))
    >>> params = model.init(jax.random.key(1), x)["params"]
    >>> transform = scale_by_kfac(lambda params, batch: model.apply({"params": params}, batch))
    >>> state = transform.init(params)
    >>> [f.shape for f in state.factors[0][0]]  # A and G
    [(5, 5), (3, 3)]
    >>> updates, state = transform.update(params, state, params, batch=x)
    >>> params = optax.apply_updates(params, optax.tree.scale(-0.1, updates))

    Sources: Martens and Grosse, 2015 (arXiv 1503.05671), sections 3 and 6.3; Grosse and Martens,
    2016 (arXiv 1602.01407), convolutions; Ba, Grosse and Martens, 2017, the norm constraint;
    Eschenhagen et al., 2023 (arXiv 2311.00636), shared weights.
    """
    losses.check_likelihood(
        loss, "scale_by_kfac", "use scale_by_kronecker_fisher, which reads gradients alone."
    )
    _checks.non_negative("damping", damping)
    _checks.fraction("factor_decay", factor_decay)
    if b1 is not None:
        _checks.fraction("b1", b1)
    if norm_constraint is not None:
        _checks.positive("norm_constraint", norm_constraint)
    _checks.integer("factors_every", factors_every)
    _checks.integer("refresh_every", refresh_every)
    _checks.integer("burn_in", burn_in, 0)
    _checks.choice("approximation", approximation, ("expand", "reduce"))
    _checks.positive_int("max_dim", max_dim)
    if weights is not None:
        check_select("weights", weights)
    is_diagonal = check_diagonal(diagonal)
    factor_decay, b1, norm_constraint = map(_f32, (factor_decay, b1, norm_constraint))
    estimate = estimator(predict_fn, loss, weights, approximation == "reduce", max_dim, axis_name)

    def layout_of(tree: Any) -> Layout:
        return layout(tree, layers, is_diagonal)

    def init(params: Any) -> ScaleByKfacState:
        leaves = jax.tree.leaves(params)
        plan = layout_of(params)
        factors: list[Any] = [statistics.zero_terms(layer, max_dim) for layer in plan.layers]
        inverse: list[Any] = [statistics.zero_terms(layer, max_dim)[0] for layer in plan.layers]
        for d in plan.diagonals:
            factors.append(jnp.zeros(jnp.shape(leaves[d.leaf]), jnp.float32))
            inverse.append(jnp.zeros(jnp.shape(leaves[d.leaf]), jnp.float32))
        # `optax.tree.map_params` finds what is parameter-shaped by an init without leaves. It takes
        # one array there, and not an empty tuple, for whatever a field may hold otherwise.
        nothing = [jnp.zeros((0,), jnp.float32) for _ in range(3)]
        counts = tuple(jnp.zeros((), jnp.int32) for _ in factors)
        parts = (counts, tuple(factors), tuple(inverse)) if leaves else nothing
        return ScaleByKfacState(
            jax.random.key_data(jax.random.key(seed, impl="threefry2x32")),
            jnp.zeros((), jnp.int32),
            () if b1 is None else optax.tree.zeros_like(params, dtype=jnp.float32),
            *parts,
        )

    def statistics_after(plan: Layout, state: Any, model: Any, batch: Any) -> tuple[Any, Any, Any]:
        """(counts, factors, roots), each brought up to date where this step is one to do it."""
        key = jax.random.wrap_key_data(state.kfac_key, impl="threefry2x32")
        key = jax.random.fold_in(key, state.kfac_step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        early = state.kfac_step < jnp.asarray(burn_in, jnp.int32)

        def due(every: Any) -> jax.Array:
            return early | (state.kfac_step % jnp.asarray(every, jnp.int32) == 0)

        def observe(model: Any, batch: Any, key: jax.Array, old: Any) -> Any:
            counts, factors = old
            return averaged(estimate(plan, model, batch, key), counts, factors, factor_decay)

        counts, factors = jax.lax.cond(
            due(factors_every), observe, lambda model, batch, key, old: old,
            model, batch, key, (state.estimates, state.factors),
        )  # fmt: skip
        inverse = jax.lax.cond(
            due(refresh_every),
            lambda factors, counts, old: roots.invert(plan, factors, counts, damping),
            lambda factors, counts, old: old,
            factors, counts, state.roots,
        )  # fmt: skip
        return counts, factors, inverse

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        leaves, treedef = jax.tree.flatten(updates)
        step = jnp.asarray(optax.safe_increment(state.kfac_step))
        if not leaves:
            return updates, optax.tree.cast_like(state._replace(kfac_step=step), state)
        given = {name: extra for name, extra in extra_args.items() if extra is not None}
        model, batch = model_and_batch("scale_by_kfac", params, given)
        plan = layout_of(updates)
        counts, factors, inverse = statistics_after(plan, state, model, batch)

        grads = [jnp.asarray(g, jnp.float32) for g in leaves]
        good = [jnp.asarray(True)] * len(grads)
        for members in [*(x.leaves for x in plan.layers), *((d.leaf,) for d in plan.diagonals)]:
            together = all_finite([grads[i] for i in members])
            for i in members:
                good[i] = together
        grads = [jnp.where(ok, g, 0.0) for ok, g in zip(good, grads, strict=True)]
        out = roots.apply_all(plan, inverse, roots.apply_all(plan, inverse, grads))
        if norm_constraint is not None:
            out = _shortened(out, grads, norm_constraint)
        direction: Any = ()
        if b1 is not None:
            old = treedef.flatten_up_to(state.direction)
            moved = [
                jnp.where(ok, b1 * m + (1 - b1) * u, m)
                for ok, m, u in zip(good, old, out, strict=True)
            ]
            direction = treedef.unflatten(moved)
            out = [m / (1 - b1 ** step.astype(jnp.float32)) for m in moved]
        out = [
            jnp.where(ok, u, 0.0).astype(jnp.result_type(g))
            for ok, u, g in zip(good, out, leaves, strict=True)
        ]
        new = ScaleByKfacState(state.kfac_key, step, direction, counts, factors, inverse)
        return treedef.unflatten(out), optax.tree.cast_like(new, state)

    def metric(grads: Any, state: Any) -> Any:
        leaves, treedef = jax.tree.flatten(grads)
        if not leaves:
            return grads
        leaves = [jnp.asarray(g, jnp.float32) for g in leaves]
        rows = roots.apply_all(layout_of(grads), state.roots, leaves)
        # Before the first update there are no statistics: the identity.
        fresh = state.kfac_step == 0
        return treedef.unflatten(
            [jnp.where(fresh, g, r) for g, r in zip(leaves, rows, strict=True)]
        )

    return Preconditioner(init, update, metric, keeps_scale=False)


def _f32(x: Any) -> Any:
    """None or a Python number as it is; an injected hyperparameter of any dtype in float32."""
    return x if x is None or isinstance(x, (int, float)) else jnp.asarray(x, jnp.float32)


def _shortened(updates: list[Any], grads: list[Any], limit: Any) -> list[Any]:
    """The updates u scaled to u^T P u <= limit, where P u = g."""
    square = sum(
        (
            jnp.tensordot(g, u, axes=g.ndim, out_sharding=mesh.replicated(g, 0))
            for g, u in zip(grads, updates, strict=True)
        ),
        jnp.zeros((), jnp.float32),
    )
    scale = jnp.sqrt(limit / jnp.maximum(square, limit))
    return [scale * u for u in updates]
