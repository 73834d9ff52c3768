"""scale_by_kronecker_fisher against a dense float64 reference, and what it must keep true."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgo_jax.precondition.kronecker_fisher import scale_by_kronecker_fisher

B1, B2, DECAY, EPS, EVERY = 0.9, 0.99, 0.95, 1e-8, 4


def gradients(shape, steps, seed):
    """Gradients with an anisotropic covariance along every axis, in no special basis."""
    rng = np.random.default_rng(seed)
    mixers = [rng.normal(size=(d, d)) for d in shape]
    for _ in range(steps):
        g = rng.normal(size=shape)
        for axis, mixer in enumerate(mixers):
            g = np.moveaxis(np.tensordot(mixer, g, axes=(1, axis)), 0, axis)
        yield g


def unfold(x, axis):
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def rotate(x, bases):
    for axis, q in enumerate(bases):
        x = np.moveaxis(np.tensordot(q, x, axes=(1, axis)), 0, axis)
    return x


def reference(grads, power, damping):
    """Every axis factored, float64, one leaf; bases, moments and damping written out."""
    shape = grads[0].shape
    factors = [np.zeros((d, d)) for d in shape]
    bases = [np.eye(d) for d in shape]
    m, v, out = np.zeros(shape), np.zeros(shape), []
    for t, g in enumerate(grads, start=1):
        for axis in range(g.ndim):
            unfolded = unfold(g, axis)
            factors[axis] = DECAY * factors[axis] + (1 - DECAY) * unfolded @ unfolded.T
        if t == 1:
            bases = [np.linalg.eigh(f)[1] for f in factors]
        elif (t - 1) % EVERY == 0:
            for axis, f in enumerate(factors):
                q = bases[axis]
                order = np.argsort(-np.diag(q.T @ f @ q))
                v = np.take(v, order, axis)
                bases[axis] = np.linalg.qr(f @ q[:, order])[0]
        inward = [q.T for q in bases]
        m = B1 * m + (1 - B1) * g
        v = B2 * v + (1 - B2) * rotate(g, inward) ** 2
        v_hat = v / (1 - B2**t)
        if power == 0.5:
            v_hat = v_hat + (1.0 if t == 1 else damping) * v_hat.mean()
            p = np.sqrt(v_hat) + EPS
        else:
            v_hat = v_hat + max(damping, 1 / t) * v_hat.mean() + EPS**2
            p = v_hat**power * np.sqrt(np.mean(v_hat ** (1 - 2 * power)))
        out.append(rotate(rotate(m / (1 - B1**t), inward) / p, bases))
    return out


def run(transform, grads):
    """All updates of a sequence of gradient trees, and the last state."""
    state = transform.init(grads[0])
    update = jax.jit(transform.update)
    out = []
    for g in grads:
        u, state = update(g, state)
        out.append(u)
    return out, state


# Shapes for which one gradient leaves at most one direction of an axis unseen: its basis is then
# unique up to signs, which cancel, and two implementations must agree from the first step on.
SHAPES = {"square": (5, 5), "wide": (4, 5), "kernel": (3, 4, 5), "vector": (2,)}


@pytest.mark.parametrize(("power", "damping"), [(0.5, 1e-6), (1.0, 1e-3)])
def test_equals_the_dense_reference_over_three_refresh_periods(power, damping):
    steps = 3 * EVERY + 3
    grads = {k: list(gradients(s, steps, seed=7)) for k, s in SHAPES.items()}
    tx = scale_by_kronecker_fisher(B1, B2, DECAY, EPS, EVERY, power=power, vector_factors=True)
    trees = [{k: jnp.asarray(g[t], jnp.float32) for k, g in grads.items()} for t in range(steps)]
    updates, state = run(tx, trees)
    assert [len(f) for f in state.factors] == [3, 2, 1, 2]  # in the order of the sorted keys
    for key, sequence in grads.items():
        for t, expected in enumerate(reference(sequence, power, damping)):
            # Eigenvectors of a float32 factor are off by eps |L| / gap, about 1e-7 * 1e2; an
            # entry below the root mean square by another 1e2 is divided by its own size.
            np.testing.assert_allclose(
                updates[t][key], expected, atol=1e-3 * np.abs(expected).max(), err_msg=f"{key} {t}"
            )


def test_without_factors_it_is_adam():
    grads = [
        {"w": jnp.asarray(g, jnp.float32), "b": jnp.asarray(g[0], jnp.float32), "s": jnp.float32(t)}
        for t, g in enumerate(gradients((4, 6), 12, seed=1))
    ]
    ours, _ = run(scale_by_kronecker_fisher(max_dim=1), grads)
    adam, _ = run(optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-8), grads)
    # The same operations in the same order: only fused multiply-adds may differ.
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(adam), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_scalars_follow_adam_at_every_power():
    grads = [jnp.float32(g) for g in (0.3, -2.0, 1e-3, 5.0)]
    adam, _ = run(optax.scale_by_adam(b1=0.9, b2=0.99), grads)
    for power in (0.75, 1.0):
        ours, _ = run(scale_by_kronecker_fisher(power=power, damping=0.0), grads)
        # A mean over one entry is that entry; the damping 1/t is in both factors and cancels.
        np.testing.assert_allclose(
            np.asarray(ours) * np.sqrt(1 + 1 / np.arange(1, 5)), adam, rtol=1e-5
        )


def test_converges_where_adam_crawls():
    """A quadratic tr(W^T A W B) / 2 of condition 1e4 in a rotated basis, rates decaying to 0."""
    rng = np.random.default_rng(0)

    def ill_conditioned(d):
        q = np.linalg.qr(rng.normal(size=(d, d)))[0]
        return jnp.asarray((q * np.logspace(0, -2, d)) @ q.T, jnp.float32)

    a, b = ill_conditioned(6), ill_conditioned(8)
    start = jnp.asarray(rng.normal(size=(6, 8)), jnp.float32)

    def loss(w):
        return 0.5 * jnp.sum(w * (a @ w @ b))

    def final(tx, rate, steps=300):
        def step(carry, t):
            w, state = carry
            u, state = tx.update(a @ w @ b, state)
            return (w - rate * (1 - t / steps) * u, state), None

        carry = (start, tx.init(start))
        (w, _), _ = jax.lax.scan(step, carry, jnp.arange(steps, dtype=jnp.float32))
        return loss(w) / loss(start)

    rates = (0.03, 0.1, 0.3)
    ours, adam = (
        min(float(run_at(rate)) for rate in rates)
        for run_at in (
            jax.jit(lambda r: final(scale_by_kronecker_fisher(), r)),
            jax.jit(lambda r: final(optax.scale_by_adam(b2=0.99), r)),
        )
    )
    assert ours < 1e-2 * adam


def test_rotating_the_gradients_rotates_the_updates():
    rng = np.random.default_rng(3)
    u, w = (np.linalg.qr(rng.normal(size=(d, d)))[0] for d in (5, 6))
    grads = list(gradients((5, 6), 10, seed=4))
    tx = scale_by_kronecker_fisher(refresh_every=3)
    plain, _ = run(tx, [jnp.asarray(g, jnp.float32) for g in grads])
    turned, _ = run(tx, [jnp.asarray(u @ g @ w.T, jnp.float32) for g in grads])
    for p, q in zip(plain, turned, strict=True):
        # As for the reference: rounding, through eigenvectors and small second moments.
        np.testing.assert_allclose(u @ np.asarray(p) @ w.T, q, atol=1e-3 * np.abs(q).max())


def test_a_constant_gradient_gives_its_polar_factor_and_no_rounding_noise():
    """In its own basis G is diagonal: what is divided beside the diagonal is rounding."""
    g = np.random.default_rng(5).normal(size=(24, 32))
    left, _, right = np.linalg.svd(g, full_matrices=False)
    updates, _ = run(scale_by_kronecker_fisher(), [jnp.asarray(g, jnp.float32)] * 12)
    for u in updates:
        cosine = np.sum(u * (left @ right)) / np.linalg.norm(u) / np.linalg.norm(left @ right)
        assert cosine > 0.99


def test_applying_the_metric_twice_is_the_update_without_momentum():
    grads = [jnp.asarray(g, jnp.float32) for g in gradients((4, 5), 7, seed=6)]
    for power in (0.5, 1.0):
        tx = scale_by_kronecker_fisher(b1=0.0, refresh_every=3, power=power)
        updates, state = run(tx, grads)
        metric = jax.jit(tx.metric)
        rows = metric(metric(grads[-1], state), state)
        np.testing.assert_allclose(rows, updates[-1], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(metric(grads[0], tx.init(grads[0])), grads[0])
        abstract = jax.ShapeDtypeStruct(grads[0].shape, jnp.bfloat16)
        assert jax.eval_shape(metric, abstract, state).dtype == jnp.float32


def test_the_metric_whitens_a_stationary_gradient():
    """At power 1 the rows have equal variances in the eigenbasis, where gradients have not."""
    grads = np.stack(list(gradients((4, 6), 2400, seed=8))).astype(np.float32)
    tx = scale_by_kronecker_fisher(power=1.0, damping=0.0, factor_decay=0.99)
    state = tx.init(grads[0])
    state, _ = jax.lax.scan(lambda s, g: (tx.update(g, s)[1], None), state, grads[:400])
    rows = jax.vmap(tx.metric, in_axes=(0, None))(grads[400:], state)

    def variances(x):
        left, right = (np.asarray(q) for q in state.bases[0])
        return np.mean((left.T @ np.asarray(x) @ right) ** 2, axis=0)

    before, after = variances(grads[400:]), variances(rows)
    # The second moment averages (1 + b2) / (1 - b2) = 199 squares: sd 0.1; 2000 rows: sd 0.03.
    # Five standard deviations, and the weight 1/t of the mean.
    assert before.max() / before.min() > 100
    np.testing.assert_allclose(after / after.mean(), 1.0, atol=0.55)


LEAVES = {
    "empty": (0, 4),
    "ones": (1, 1),
    "row": (1, 4),
    "column": (4, 1),
    "rank4": (3, 4, 1, 3),
    "long": (9, 3),
    "vector": (4,),
    "scalar": (),
}


@pytest.mark.parametrize(("dtype", "power"), [(jnp.bfloat16, 0.5), (jnp.float16, 1.0)])
def test_degenerate_leaves_and_zero_gradients(dtype, power):
    zeros = {k: jnp.zeros(s, dtype) for k, s in LEAVES.items()}
    ones = jax.tree.map(jnp.ones_like, zeros)
    tx = scale_by_kronecker_fisher(max_dim=8, refresh_every=2, power=power, vector_factors=True)
    updates, state = run(tx, [zeros, zeros, zeros, ones, zeros, zeros])
    for tree in updates[:3]:
        assert all(not np.any(u) for u in jax.tree.leaves(tree))
    for x in jax.tree.leaves((updates, state)):
        assert np.all(np.isfinite(np.asarray(x, np.float32)))
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    for q in jax.tree.leaves(state.bases):
        np.testing.assert_allclose(q.T @ q, np.eye(len(q)), atol=1e-5)
    dims = [[len(f) for f in leaf] for leaf in state.factors]
    assert dict(zip(sorted(LEAVES), dims, strict=True)) == {
        "empty": [], "ones": [], "row": [4], "column": [4], "rank4": [3, 4, 3], "long": [3],
        "vector": [4], "scalar": [],
    }  # fmt: skip


def test_vectors_have_no_factor_unless_asked():
    params = {"row": jnp.ones((1, 6)), "vector": jnp.ones(5)}
    assert scale_by_kronecker_fisher().init(params).factors == ((), ())


def test_trees_without_arrays_none_and_masked_leaves():
    tx = scale_by_kronecker_fisher()
    for tree in ({}, (), None, {"a": None}, {"a": optax.MaskedNode()}):
        updates, state = tx.update(tree, tx.init(tree))
        assert updates == tree
        assert tx.metric(tree, state) == tree
    tree = {"a": None, "w": jnp.ones((2, 3)), "m": optax.MaskedNode()}
    updates, _ = run(tx, [tree])
    assert updates[0]["a"] is None
    assert updates[0]["w"].shape == (2, 3)

    masked = optax.masked(tx, lambda p: {"w": True, "v": False})
    grads = {"w": jnp.ones((2, 3)), "v": jnp.full((2, 2), 7.0)}
    updates, _ = run(masked, [grads])
    np.testing.assert_array_equal(updates[0]["v"], grads["v"])


def test_a_non_finite_gradient_is_not_hidden():
    tx = scale_by_kronecker_fisher(refresh_every=2)
    bad = jnp.ones((3, 4)).at[0, 0].set(jnp.inf)
    updates, state = run(tx, [jnp.ones((3, 4)), bad, bad])
    assert not np.all(np.isfinite(updates[1]))
    assert not np.all(np.isfinite(updates[2]))
    assert not np.all(np.isfinite(state.bases[0][0]))


@pytest.mark.parametrize("momentum_dtype", [None, jnp.bfloat16])
def test_the_state_keeps_its_types_through_nested_conditionals(momentum_dtype):
    params = {"w": jnp.ones((3, 4), jnp.bfloat16), "b": jnp.ones(4), "none": None}
    tx = scale_by_kronecker_fisher(momentum_dtype=momentum_dtype)
    state = tx.init(params)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert jax.eval_shape(tx.init, params) == jax.eval_shape(lambda: state)
    assert jax.eval_shape(lambda: tx.init(abstract)) == jax.eval_shape(lambda: state)
    assert state.first_moment["w"].dtype == (momentum_dtype or jnp.float32)
    assert state.second_moment["w"].dtype == jnp.float32

    def keep(g, s):
        return g, s

    @jax.jit
    def step(g, s, outer, inner):
        nested = lambda g, s: jax.lax.cond(inner, tx.update, keep, g, s)  # noqa: E731
        return jax.lax.cond(outer, nested, keep, g, s)

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        _, new = step(params, state, True, True)
    assert int(new.fisher_step) == 1
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type), state, new
    )
    assert all(jax.tree.leaves(same))


def test_float64_gradients_keep_their_dtype_and_float32_statistics():
    with jax.enable_x64(True):
        g = jnp.ones((3, 4), jnp.float64)
        tx = scale_by_kronecker_fisher()
        updates, state = run(tx, [g, g])
        assert updates[-1].dtype == jnp.float64
        assert {x.dtype for x in jax.tree.leaves(state)} == {np.dtype("f4"), np.dtype("i4")}


def test_one_conditional_and_no_callback():
    params = {"w": jnp.ones((3, 4)), "k": jnp.ones((2, 3, 4)), "b": jnp.ones(3)}
    tx = scale_by_kronecker_fisher()
    jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params))
    assert sum(eqn.primitive.name == "cond" for eqn in jaxpr.eqns) == 1
    assert "callback" not in str(jaxpr)


def test_map_params_sees_the_moments_and_nothing_else():
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    for tx in (
        scale_by_kronecker_fisher(),
        optax.chain(optax.masked(scale_by_kronecker_fisher(), lambda p: {"w": True, "b": True})),
    ):
        state = run(tx, [params, params])[1]
        same = optax.tree.map_params(tx, lambda x: x, state)
        assert jax.tree.structure(same) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, same, state)
        specs = optax.tree.map_params(
            tx, lambda _, name: name, state, {"w": "w", "b": "b"}, transform_non_params=lambda _: 0
        )
        assert sorted(map(str, jax.tree.leaves(specs))) == ["0", "0", "0", "b", "b", "w", "w"]


def test_injected_hyperparameters():
    make = optax.inject_hyperparams(
        scale_by_kronecker_fisher, static_args=("power", "max_dim", "vector_factors")
    )
    grads = [{"w": jnp.asarray(g, jnp.float32)} for g in gradients((3, 4), 7, seed=9)]
    plain, _ = run(scale_by_kronecker_fisher(refresh_every=3), grads)
    injected, _ = run(make(refresh_every=3), grads)
    # Rates rounded to float32 before they are subtracted from 1, through the same divisions.
    np.testing.assert_allclose(plain[-1]["w"], injected[-1]["w"], atol=2e-3)

    with pytest.raises(ValueError, match=r"power decides .* static_args"):
        run(optax.inject_hyperparams(scale_by_kronecker_fisher)(), grads)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"b1": 1.0}, r"b1 must lie in \[0, 1\)"),
        ({"b2": -0.1}, r"b2 must lie in \[0, 1\)"),
        ({"factor_decay": float("nan")}, "factor_decay must lie"),
        ({"eps": -1e-8}, "eps must be a finite number >= 0"),
        ({"refresh_every": 0}, "refresh_every must be an integer >= 1"),
        ({"refresh_every": 2.5}, "refresh_every must be an integer >= 1"),
        ({"max_dim": 0}, "max_dim must be an integer >= 1"),
        ({"power": 1.5}, r"power must lie in \[0, 1\]"),
        ({"damping": -1.0}, "damping must be a finite number >= 0"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        scale_by_kronecker_fisher(**arguments)


def test_wrong_leaves():
    tx = scale_by_kronecker_fisher()
    with pytest.raises(ValueError, match="split_real_and_imaginary"):
        tx.init({"w": jnp.ones((2, 2), jnp.complex64)})
    with pytest.raises(ValueError, match=r"exclude the others with optax\.masked"):
        tx.init({"w": jnp.ones((2, 2), jnp.int32)})


SHARDED = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from fgo_jax.precondition.kronecker_fisher import scale_by_kronecker_fisher

specs = {"both": P("data", "model"), "kernel": P(None, "model", None)}
shapes = {"both": (8, 8), "kernel": (3, 4, 5)}
rng = np.random.default_rng(0)
grads = [{k: rng.normal(size=s).astype("f4") for k, s in shapes.items()} for _ in range(4)]
tx = scale_by_kronecker_fisher(refresh_every=2)
update = jax.jit(tx.update)

def run(put):
    state, out = tx.init(put(grads[0])), []
    for g in grads:
        u, state = update(put(g), state)
        out.append((u, state.first_moment, state.second_moment))
    return out, state

alone, _ = run(lambda tree: tree)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    home = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
    together, state = run(lambda tree: jax.device_put(tree, home))
    for step, (one, many) in enumerate(zip(alone, together)):
        for k in shapes:
            for x in many:
                assert x[k].sharding.is_equivalent_to(home[k], x[k].ndim), (kind, step, k)
            error = np.abs(np.asarray(many[0][k]) - np.asarray(one[0][k])).max()
            assert error < 1e-3, (kind, step, k, error)
# With automatic axes the partitioner may split them, as long as nobody pins them.
assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves((state.factors, state.bases)))
print("sharded as one")
"""


def test_sharded_parameters_give_the_result_of_one_device():
    """Shapes and tolerance as for the reference: no basis is left to the rounding."""
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True, timeout=120
    )
    assert "sharded as one" in done.stdout, done.stdout + done.stderr[-3000:]
