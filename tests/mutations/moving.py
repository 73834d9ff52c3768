"""Mutations of primal averaging, rates of layers, paths, commutators, symmetries and drift."""

from tests.mutations.mutation import mutations

MOVING = [
    *mutations(
        "smoothing/primal_averaging.py",
        "smoothing/test_primal_averaging.py",
        ("(1 - near) * v.astype", "near * v.astype", "the newest gradient has the other weight"),
        ("before * trail + near", "slow * trail + near", "a trail decays by the coming weight"),
        (
            "unit * state.mu_x * (1 - state.mu_y)",
            "unit * (1 - state.mu_y)",
            "x is as far from y as before the last step",
        ),
        ("mu_x = rho**2 / (2 - rho)", "mu_x = rho**2 / (2 + rho)", "triple momentum is slower"),
    ),
    *mutations(
        "steering/averaged.py",
        "smoothing/test_primal_averaging.py",
        ("-node.fgo_learning_rate", "1.0", "a phase's trail has no rate"),
        ("state.transforms[:-1]", "()", "a stale trail is read"),
        ("len(state.grafts) == len(state.transforms)", "False", "one between others is read"),
    ),
    *mutations(
        "precondition/layer_noise.py",
        "precondition/test_layer_noise.py",
        ("jnp.sqrt(jnp.sqrt(spread", "(jnp.sqrt(spread", "the rate falls as the noise"),
        ("jnp.where(seen, h, jnp.inf)", "h", "a layer that was not measured is the least noisy"),
        ("* jnp.float32(0.5**0.5)", "", "the noise is that of two gradients"),
        ("(step - 1) % gap == 0", "step % gap == 0", "a pair is read before its second gradient"),
        ("(columns / rows) ** 0.5", "(rows / columns) ** 0.5", "columns are inputs"),
        ("+ [[1.875, -1.25, 0.375]] * 2", "", "singular values are near one only"),
        ("row * jnp.sqrt(rate)", "row * rate", "the metric has the whole rate"),
    ),
    *mutations(
        "probes/path.py",
        "probes/test_trajectory.py",
        (
            "path.snapshots - jnp.mean(path.snapshots, axis=0, keepdims=True)",
            "path.snapshots",
            "no centre",
        ),
        (
            "jnp.minimum(since[:, None], since[None])",
            "since[:, None] * since",
            "the walk is a line",
        ),
        ("| (step <= jnp.max(path.times))", "", "a restart keeps the old snapshots"),
        ("values[:, 0], jnp.sum", "values[:, 1], jnp.sum", "the second component is the top"),
    ),
    *mutations(
        "probes/commutator.py",
        "probes/test_commutator.py",
        ("(2 * number + i) * size", "(2 * number) * size", "a pair is one part twice"),
        ("(lengths[0] * lengths[1])", "lengths[0] ** 2", "the second gradient has no length"),
        ("(jnp.pi / 2) ** 0.5", "1.0", "a median is as sure as a mean"),
        ("(a - b) / rate", "a - b", "a drift grows with the rate"),
    ),
    *mutations(
        "analysis/symmetries.py",
        "analysis/test_symmetries.py",
        ("_SPREAD * size *", "0.0 * size *", "one point is tried four times"),
        ("jnp.maximum(size, 1.0) if", "size if", "a bias of zero stays at zero"),
    ),
    *mutations(
        "analysis/on_the_sphere.py",
        "analysis/test_symmetries.py",
        ("rest = jnp.where(known, decay, 1.0) * (1 - momentum)", "rest = decay", "no momentum"),
        ("y - share * x", "y", "what is radial turns"),
        ("learning_rate * decay / (1 + momentum)", "learning_rate * decay", "it turns faster"),
    ),
    *mutations(
        "analysis/representations.py",
        "analysis/test_representations.py",
        ("(counts - 1) / 2", "(counts - 1) * 0", "equal distances have the last rank"),
        ("1.0 - _spearman", "_spearman", "drift is agreement"),
    ),
]
