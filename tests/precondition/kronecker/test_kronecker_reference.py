"""scale_by_kronecker_fisher against a dense float64 reference, Adam and its own identities."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgo_jax.precondition.kronecker.transform import scale_by_kronecker_fisher
from tests.precondition.sequences import gradients, run

B1, B2, DECAY, EPS, EVERY = 0.9, 0.99, 0.95, 1e-8, 4
OPTIONS = {"eps": EPS, "refresh_every": EVERY}


def unfold(x, axis):
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def rotate(x, bases):
    for axis, q in enumerate(bases):
        x = np.moveaxis(np.tensordot(q, x, axes=(1, axis)), 0, axis)
    return x


def unit_noise(grads):
    """Differences of consecutive gradients, each of root mean square one."""
    noise = np.diff(np.stack(grads), axis=0, prepend=0.0)
    return [d / np.sqrt(np.mean(d**2)) for d in noise]


def reference(grads, power, damping, centred):
    """Every axis factored, float64, one leaf; bases, moments and damping written out."""
    shape = grads[0].shape
    seen = unit_noise(grads) if centred else grads
    factors = [np.zeros((d, d)) for d in shape]
    bases = [np.eye(d) for d in shape]
    m, v, out = np.zeros(shape), np.zeros(shape), []
    for t, (g, d) in enumerate(zip(grads, seen, strict=True), start=1):
        for axis in range(g.ndim):
            unfolded = unfold(d, axis)
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
        v = B2 * v + (1 - B2) * rotate(d, inward) ** 2
        v_hat = v / (1 - B2**t)
        least = (1.0 if t == 1 else 0.0) if power == 0.5 else 1 / t
        v_hat = v_hat + max(damping, least) * v_hat.mean()
        if centred:
            p = (v_hat + EPS**2) ** power
        elif power == 0.5:
            p = np.sqrt(v_hat) + EPS
        else:
            v_hat = v_hat + EPS**2
            p = v_hat**power * np.sqrt(np.mean(v_hat ** (1 - 2 * power)))
        out.append(rotate(rotate(m / (1 - B1**t), inward) / p, bases))
    return out


# Shapes for which one gradient leaves at most one direction of an axis unseen: its basis is then
# unique up to signs, which cancel, and two implementations must agree from the first step on.
SHAPES = {"square": (5, 5), "wide": (4, 5), "kernel": (3, 4, 5), "vector": (2,)}


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("power", "damping"), [(0.5, 1e-6), (1.0, 1e-3)])
def test_equals_the_dense_reference_over_three_refresh_periods(power, damping, centred):
    steps = 3 * EVERY + 3
    grads = {k: list(gradients(s, steps, seed=7)) for k, s in SHAPES.items()}
    tx = scale_by_kronecker_fisher(
        B1, B2, DECAY, **OPTIONS, power=power, vector_factors=True, centred=centred
    )
    trees = [{k: jnp.asarray(g[t], jnp.float32) for k, g in grads.items()} for t in range(steps)]
    updates, state = run(tx, trees)
    assert [len(f) for f in state.factors] == [3, 2, 1, 2]  # in the order of the sorted keys
    for key, sequence in grads.items():
        for t, expected in enumerate(reference(sequence, power, damping, centred)):
            # Eigenvectors of a float32 factor are off by eps |L| / gap, about 1e-7 * 1e2; an
            # entry below the root mean square by another 1e2 is divided by its own size.
            np.testing.assert_allclose(
                updates[t][key], expected, atol=1e-3 * np.abs(expected).max(), err_msg=f"{key} {t}"
            )


def shampoo(grads, power, rows, damping=1e-3):
    """Both sides of a matrix, its second moment the product of their eigenvalues; float64."""
    out, sides, m = [], None, 0.0
    factors = [np.zeros((d, d)) for d in rows]
    for t, g in enumerate(grads, start=1):
        factors = [
            DECAY * f + (1 - DECAY) * x for f, x in zip(factors, (g @ g.T, g.T @ g), strict=True)
        ]
        m = B1 * m + (1 - B1) * g
        if t == 1:
            bases = [np.linalg.eigh(f)[1][:, ::-1] for f in factors]
        elif (t - 1) % EVERY == 0:
            for k, f in enumerate(factors):
                order = np.argsort(-np.diag(bases[k].T @ f @ bases[k]))
                bases[k] = np.linalg.qr(f @ bases[k][:, order])[0]
        if (t - 1) % EVERY == 0:
            sides = [
                np.diag(q.T @ f @ q) / (1 - DECAY**t) for q, f in zip(bases, factors, strict=True)
            ]
        v = np.outer(*sides) / sides[0].sum()
        trace = np.trace(factors[0]) / (1 - DECAY**t)
        v = v + max(trace - 2 * sides[0].sum(), 0.0) / v.size
        v = v + max(damping, 1 / t) * v.mean()
        p = np.sqrt(v) + EPS
        if power != 0.5:
            p = (v + EPS**2) ** power * np.sqrt(np.mean((v + EPS**2) ** (1 - 2 * power)))
        left, right = bases
        out.append(left @ ((left.T @ m @ right) / (1 - B1**t) / p) @ right.T)
    return out


@pytest.mark.parametrize("power", [0.5, 0.25])
def test_uncorrected_eigenvalues_of_two_modes_equal_the_dense_reference(power):
    """Of a matrix, of a kernel with its last axis against the rest, and of a stack of matrices."""
    steps = 3 * EVERY + 3
    flat = list(gradients((6, 5), steps, seed=7))
    stack = [list(gradients((6, 5), steps, seed=s)) for s in (8, 9)]
    trees = [
        {
            "kernel": jnp.asarray(flat[t].reshape(2, 3, 5), jnp.float32),
            "matrix": jnp.asarray(flat[t], jnp.float32),
            # The batch lies between rows and columns.
            "stack": jnp.asarray(np.stack([s[t] for s in stack], axis=1), jnp.float32),
            "table": jnp.asarray(flat[t], jnp.float32),
        }
        for t in range(steps)
    ]
    axes = optax.contrib.MuonDimensionNumbers
    tx = scale_by_kronecker_fisher(
        B1, B2, DECAY, **OPTIONS, power=power, damping=1e-3, corrected=False,
        weight_dimension_numbers={
            "kernel": axes((0, 1), 2), "matrix": axes(0, 1), "stack": axes(0, 2), "table": None,
        },
    )  # fmt: skip
    updates, state = run(tx, trees)
    assert [[f.shape for f in leaf] for leaf in state.factors] == [
        [(6, 6), (5, 5)], [(6, 6), (5, 5)], [(2, 6, 6), (2, 5, 5)], [],
    ]  # fmt: skip
    assert len(jax.tree.leaves(state.second_moment)) == 1  # the table's, which follows Adam
    expected = shampoo(flat, power, (6, 5))
    both = np.stack([shampoo(s, power, (6, 5)) for s in stack], axis=2)
    for t, update in enumerate(updates):
        # As for the corrected reference: rounding, through eigenvectors.
        for got, want in (
            (update["matrix"], expected[t]),
            (update["kernel"].reshape(6, 5), expected[t]),
            (update["stack"], both[t]),
        ):
            np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max(), err_msg=str(t))


def test_a_batch_of_matrices_is_each_of_them():
    # Eigenvalues of this seed lie apart: of near-equal ones rounding makes other eigenvectors.
    grads = [np.asarray(g, np.float32) for g in gradients((3, 4, 5), 9, seed=14)]
    axes = optax.contrib.MuonDimensionNumbers(1, 2)
    together, state = run(
        scale_by_kronecker_fisher(refresh_every=3, weight_dimension_numbers=axes), grads
    )
    assert [f.shape for f in state.factors[0]] == [(3, 4, 4), (3, 5, 5)]
    for i in range(3):
        alone, _ = run(scale_by_kronecker_fisher(refresh_every=3), [g[i] for g in grads])
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-3 * np.abs(b).max())


def test_without_factors_it_is_adam():
    grads = [
        {"w": jnp.asarray(g, jnp.float32), "b": jnp.asarray(g[0], jnp.float32), "s": jnp.float32(t)}
        for t, g in enumerate(gradients((4, 6), 12, seed=1))
    ]
    ours, _ = run(scale_by_kronecker_fisher(block_size=1), grads)
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


def test_centred_updates_are_as_large_as_the_gradients():
    grads = [jnp.asarray(g, jnp.float32) for g in gradients((4, 5), 7, seed=2)]
    tx = scale_by_kronecker_fisher(refresh_every=3, power=1.0, centred=True)
    plain, state = run(tx, grads)
    small, _ = run(tx, [g / 1024 for g in grads])
    # A power of two rounds nothing, and the statistics do not see it.
    np.testing.assert_array_equal(np.stack(plain) / 1024, np.stack(small))
    np.testing.assert_array_equal(state.previous[0], grads[-1])


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
