"""scale_by_fismo against float64 and Muon, and what it keeps true for every leaf and tree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgo_jax.precondition import scale_by_fismo
from tests.precondition.sequences import gradients, run

Numbers = optax.contrib.MuonDimensionNumbers
BETA, DECAY, DAMPING, EVERY, EPS = 0.9, 0.8, 0.05, 4, 1e-8
MUON = (3.4445, -4.7750, 2.0315)


def inverse_root(p):
    values, vectors = np.linalg.eigh(p)
    return vectors / np.sqrt(values) @ vectors.T


def of_trace(p):
    p = (p + p.T) / 2
    return len(p) * p / np.trace(p)


def at_most_one(x):
    """Divided until the mean of the diagonal is at most one."""
    return x / max(np.trace(x) / len(x), 1.0)


def polar(x):
    x = x / (np.linalg.norm(x) + EPS)
    for _ in range(5):
        a = x @ x.T
        x = MUON[0] * x + MUON[1] * a @ x + MUON[2] * a @ a @ x
    return x


def within(blocks, size):
    """Ones where rows and columns belong to the same block."""
    return np.kron(np.eye(blocks), np.ones((size // blocks, size // blocks)))


def reference(grads, unit, blocks=(1, 1)):
    """The equations, step by step in float64; inverses are those of the last refresh."""
    m, n = grads[0].shape
    kept = within(blocks[0], m), within(blocks[1], n)
    p, q, moment = np.eye(m), np.eye(n), np.zeros((m, n))
    p_root, q_root, out = np.eye(m), np.eye(n), []
    for t, g in enumerate(grads):
        refresh = t % EVERY == 0
        h = g / np.sqrt(np.mean(g**2)) if unit else g
        left = at_most_one(kept[0] * (h @ q_root @ q_root @ h.T) / n) + DAMPING * np.trace(
            p
        ) / m * np.eye(m)
        p = of_trace(DECAY * p + (1 - DECAY) * left)
        p_root = inverse_root(p) if refresh else p_root
        right = at_most_one(kept[1] * (h.T @ p_root @ p_root @ h) / m) + DAMPING * np.trace(
            q
        ) / n * np.eye(n)
        q = of_trace(DECAY * q + (1 - DECAY) * right)
        q_root = inverse_root(q) if refresh else q_root
        moment = BETA * moment + (1 - BETA) * p_root @ g @ q_root
        out.append(p_root @ polar(moment / (1 - BETA ** (t + 1))) @ q_root)
    return out


# A leaf's axes, in the order (batch, rows, columns) of what it stands for.
LEAVES = {
    "square": ((5, 5), None),
    "wide": ((3, 6), None),
    "tall": ((6, 4), None),
    "conv": ((2, 2, 3, 4), lambda x: x.reshape(12, 4)),
    "query": ((6, 2, 3), lambda x: x.reshape(6, 6)),
    "out": ((2, 3, 6), lambda x: x.reshape(6, 6)),
}


@pytest.mark.parametrize("unit", [True, False])
def test_equals_the_dense_reference_over_three_refresh_periods(unit):
    steps = 3 * EVERY + 3
    grads = {k: list(gradients(shape, steps, seed=7)) for k, (shape, _) in LEAVES.items()}
    tx = scale_by_fismo(BETA, DECAY, DAMPING, refresh_every=EVERY, unit_gradients=unit)
    trees = [{k: jnp.asarray(g[t], jnp.float32) for k, g in grads.items()} for t in range(steps)]
    updates, _ = run(tx, trees)
    for key, (shape, flatten) in LEAVES.items():
        flatten = flatten or (lambda x: x)
        for t, expected in enumerate(reference([flatten(g) for g in grads[key]], unit)):
            # float32, through eigenvalues over a range of 1e3 and five products that are not
            # contractions: the iteration multiplies a small singular value by up to 3.4^5.
            np.testing.assert_allclose(
                updates[t][key],
                expected.reshape(shape),
                atol=2e-3 * np.abs(expected).max(),
                err_msg=f"{key} {t}",
            )


def test_long_sides_are_block_diagonal_and_equal_leaves_one_stack():
    steps = 2 * EVERY + 2
    names = [f"layer_{i}" for i in range(3)]
    grads = {name: list(gradients((8, 6), steps, seed=i)) for i, name in enumerate(names)}
    tx = scale_by_fismo(BETA, DECAY, DAMPING, refresh_every=EVERY, block_size=4)
    trees = [{k: jnp.asarray(g[t], jnp.float32) for k, g in grads.items()} for t in range(steps)]
    updates, state = run(tx, trees)
    assert [p.shape for p in state.factors[0]] == [(2, 3, 4, 4), (2, 3, 3, 3)]
    for name in names:
        for t, expected in enumerate(reference(grads[name], False, (2, 2))):
            np.testing.assert_allclose(
                updates[t][name], expected, atol=2e-3 * np.abs(expected).max(), err_msg=f"{t}"
            )


def test_stacked_matrices_are_each_on_their_own():
    steps = 2 * EVERY + 2
    layers = [list(gradients((4, 5), steps, seed=s)) for s in range(3)]
    stacked = [jnp.asarray(np.stack(g, axis=1), jnp.float32) for g in zip(*layers, strict=True)]
    numbers = {"w": Numbers(reduction_axis=0, output_axis=2)}
    tx = scale_by_fismo(BETA, DECAY, refresh_every=EVERY, weight_dimension_numbers=numbers)
    together, state = run(tx, [{"w": g} for g in stacked])
    assert [p.shape for p in state.factors[0]] == [(3, 4, 4), (3, 5, 5)]
    for index, layer in enumerate(layers):
        tx = scale_by_fismo(BETA, DECAY, refresh_every=EVERY)
        alone, _ = run(tx, [jnp.asarray(g, jnp.float32) for g in layer])
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(a, b["w"][:, index], atol=1e-5)


@pytest.mark.parametrize("identity", [{"factor_decay": 1.0}, {"block_size": 1}])
@pytest.mark.parametrize(
    "options",
    [{}, {"ns_coeffs": tuple((2.0 - 0.1 * k, -1.5, 0.5) for k in range(6)), "ns_steps": 6}],
)
def test_with_identity_factors_it_is_muon(identity, options):
    shapes = {"wide": (3, 6), "tall": (6, 4), "square": (5, 5)}
    sequences = {k: list(gradients(s, 12, seed=3)) for k, s in shapes.items()}
    grads = [{k: jnp.asarray(g[t], jnp.float32) for k, g in sequences.items()} for t in range(12)]
    ours, state = run(scale_by_fismo(refresh_every=3, **identity, **options), grads)
    # As of 0.2.8 it wants a tree of them as soon as there is more than one leaf.
    numbers = {k: Numbers() for k in shapes}
    muon = optax.contrib.scale_by_muon(nesterov=False, weight_dimension_numbers=numbers, **options)
    theirs, muon_state = run(muon, grads)
    for key in shapes:
        for a, b in zip(ours, theirs, strict=True):
            # The same sums in another order, multiplied by up to 3.4^5.
            np.testing.assert_allclose(a[key], b[key], atol=2e-5)
        np.testing.assert_allclose(state.first_moment[key], muon_state.mu[key], atol=1e-6)
    for factor in jax.tree.leaves((state.factors, state.roots)):
        np.testing.assert_array_equal(factor, np.eye(len(factor), dtype=np.float32))


def test_a_whole_run_of_muon_s_alias_is_reproduced():
    """Matrices at consistent_rms, the rest by Adam, one learning rate: optax.contrib.muon."""
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones(4), "s": jnp.ones(())}
    rng = np.random.default_rng(0)
    grads = [
        jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
        for _ in range(8)
    ]
    muon = optax.contrib.muon(0.1, nesterov=False, consistent_rms=0.2)
    ours = optax.chain(
        scale_by_fismo(factor_decay=1.0, consistent_rms=0.2), optax.scale_by_learning_rate(0.1)
    )
    state, mine = muon.init(params), ours.init(params)
    for g in grads:
        expected, state = muon.update(g, state, params)
        got, mine = ours.update(g, mine, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)
