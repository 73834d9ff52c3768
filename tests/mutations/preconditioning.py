"""Mutations of the preconditioners, the graft and the limits of a step."""

from tests.mutations.mutation import mutations

FISMO = [
    *mutations(
        "precondition/fismo/whitening.py",
        "precondition/fismo/test_whitening.py",
        (
            "factor.shape[0] * _ROUNDING * values[-1]",
            "0.0 * values[-1]",
            "a root of a rounding error is taken",
        ),
        ("+ damping * trace(factor) / d * eye", "", "a factor is not damped"),
        ("jnp.maximum(trace(gram) / d, 1.0)", "1.0", "one large gradient makes the factor"),
        ("decay * factor + (1 - decay) * gram", "gram", "a factor is of one gradient"),
        ("one.multiply(g, root, 1 - side)", "g", "a factor is of raw gradients"),
    ),
    *mutations(
        "precondition/fismo/whitening.py",
        "precondition/fismo/test_fismo.py",
        (
            "jnp.sum(each, axis=blocks, keepdims=True) if blocks else each",
            "each",
            "each block has a trace of its own",
        ),
    ),
    *mutations(
        "precondition/fismo/between_factors.py",
        "precondition/fismo/test_fismo_metric.py",
        (
            "kind.stack.join(first) / bias_correction(beta, step)",
            "kind.stack.join(first)",
            "the metric of a matrix is biased",
        ),
        (
            "square / min(kind.whole.dims)",
            "square / max(kind.whole.dims)",
            "the metric divides by the long side",
        ),
        (
            "state.second_moment[kind] / bias_correction(adam_b2, step)",
            "state.second_moment[kind]",
            "the metric of a vector is biased",
        ),
        (
            "jnp.where(size <= eps, 1.0, jnp.sqrt(size))",
            "jnp.sqrt(size)",
            "the first metric divides by zero",
        ),
        (
            "(f32(rule.consistent_rms) * max(kind.whole.dims) ** 0.5)",
            "f32(rule.consistent_rms)",
            "the RMS depends on the shape",
        ),
    ),
]

KFAC = [
    *mutations(
        "precondition/kfac/roots.py",
        "precondition/kfac/test_roots.py",
        ("_over(b, x) * x for", "x for", "the terms of a tied layer count alike on the left"),
        ("_over(a / total, y) * y for", "y for", "the terms of a tied layer count alike"),
        ("jnp.finfo(jnp.float32).eps * jnp.max", "0.0 * jnp.max", "rounding errors are inverted"),
        ("jnp.sqrt(damping) * mean", "damping * mean", "both factors have all of the damping"),
        ("jnp.maximum(values, 0.0), vectors", "values, vectors", "negative eigenvalues are kept"),
        (
            "damping * jnp.mean(square, axis=axes, keepdims=True)",
            "damping",
            "a diagonal's damping has a unit",
        ),
    ),
    *mutations(
        "precondition/kfac/transform.py",
        "precondition/kfac/test_roots.py",
        (
            "jnp.sqrt(limit / jnp.maximum(total, limit))",
            "jnp.sqrt(limit / total)",
            "the norm constraint lengthens",
        ),
        ("jnp.where(jnp.isfinite(s), scale * u, 0.0)", "scale * u", "an infinite layer moves"),
    ),
    *mutations(
        "precondition/kfac/estimate.py",
        "precondition/kfac/test_roots.py",
        (
            "(1 - decay) / (1 - decay ** jnp",
            "(1 - decay) / (1 - 0 * decay ** jnp",
            "first estimates count little",
        ),
        (
            "jnp.where(good, a + share * (mesh.placed_like(b, a) - a), a)",
            "a + share * (b - a)",
            "a bad estimate enters",
        ),
    ),
    *mutations(
        "precondition/kfac/refresh.py",
        "precondition/kfac/test_roots.py",
        ("early | (step", "(step", "there is no burn-in"),
    ),
    *mutations(
        "precondition/kfac/roots.py",
        "precondition/kfac/test_kfac_blocks.py",
        ("_summed(layer, values) / n", "_summed(layer, values) / values.size", "padding is damped"),
    ),
    *mutations(
        "precondition/kfac/blocks.py",
        "precondition/kfac/test_kfac_blocks.py",
        ("mesh.placed_like(rows[..., n], bias)", "bias", "a bias is not in the last block"),
    ),
]

KRONECKER = [
    *mutations(
        "precondition/kronecker/eigenbasis.py",
        "precondition/kronecker/test_eigenbasis.py",
        (
            "jnp.where(first, 2, jnp.where(due, 1, 0))",
            "jnp.where(due, 1, 0)",
            "the first basis is one step of iteration",
        ),
        ("first | jnp.any(", "first & jnp.any(", "zero eigenvalues stay until the next refresh"),
        (
            "modes[i].multiply(second[i], selection, k)",
            "second[i]",
            "moments stay when columns move",
        ),
        (
            "multiply(second[i], selection, k)",
            "multiply(second[i], selection, k, transpose=True)",
            "moments move the wrong way",
        ),
        (
            "rotate(rotate_back(f32(x), before, m), after, m)",
            "f32(x)",
            "the first moment stays when its basis turns",
        ),
        ("jnp.argsort(-jnp.sum", "jnp.argsort(jnp.sum", "columns rise in their quotients"),
        ("decay * f32(f) + (1 - decay) * m.gram", "f32(f) + m.gram", "factors are sums"),
        ("_VISITED * values[0], signed", "-1, signed", "rounding chooses a null space"),
        ("_VISITED * values[0]", "_VISITED", "a large factor loses eigenvectors"),
        ("jnp.where(trace == 0, 1.0, trace)", "1.0", "tiny factors underflow"),
        (" + _ROUNDING * basis", "", "a null space loses its columns"),
        ("f32(f) / unbiased", "f32(f)", "eigenvalues are biased at first"),
    ),
    *mutations(
        "precondition/kronecker/second_moment.py",
        "precondition/kronecker/test_eigenbasis.py",
        ("v = v / bias_correction(self.b2, step)", "pass", "the second moment is biased at first"),
        (
            "trace = trace / bias_correction(self.factor_decay, step)",
            "pass",
            "the trace is biased at first",
        ),
        ("trace - 2 * jnp.sum", "trace - 9 * jnp.sum", "a spike outgrows its eigenvalues"),
        (
            "jnp.where(step == 1, jnp.maximum(relative, 1.0), relative)",
            "relative",
            "rounding errors of the first step become one",
        ),
        (
            "relative = jnp.maximum(relative, 1 / step.astype(jnp.float32))",
            "pass",
            "few samples are divided by",
        ),
        ("[ok & (square > 0) for", "[ok for", "a constant gradient fades the factors"),
    ),
    *mutations(
        "precondition/kronecker/transform.py",
        "precondition/kronecker/test_eigenbasis.py",
        (
            "(1 - b2) * x**2 + b2 * v",
            "x**2 + v",
            "the second moment is a sum",
        ),
        (
            "mean / bias_correction(b1, step)",
            "mean",
            "the first moment is biased at first",
        ),
        (
            "jnp.where(denominator.is_unknown(p), 1.0, jnp.sqrt(p))",
            "jnp.where(denominator.is_unknown(p), 1.0, p)",
            "the metric is applied twice",
        ),
        (
            "not centred, momentum_dtype)",
            "True, momentum_dtype)",
            "the noise's scale passes as the update's",
        ),
    ),
    *mutations(
        "precondition/shared/stacks.py",
        "precondition/test_stacks.py",
        ('re.sub(r"\\d+", "#", ', "str(", "every layer has a stack of its own"),
        ("kinds.setdefault((m, part)", "kinds.setdefault(part", "other shapes share a stack"),
    ),
    *mutations(
        "precondition/shared/cuts.py",
        "precondition/test_stacks.py",
        ("4 * block < longest", "False", "a prime axis falls into its entries"),
        ("block <= 1 or", "False or", "factors of a single number"),
        ("(math.prod(cuts), [-cut", "([-cut", "every axis of a side is cut"),
        ("length > longest > _LONGEST", "False", "a block is of any shape"),
        ("length > longest > _LONGEST", "length > longest", "a vector is cut"),
    ),
    *mutations(
        "linalg/whole_blocks.py",
        "precondition/test_collectives.py",
        ("if length > 1 and number % number_of_parts(mesh, entry)", "if False", "nothing moves"),
        (
            "spec = (None, *(jax.sharding.PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1))",
            "return x",
            "leaves are moved one by one",
        ),
        ("None if divisible and", "free if divisible and", "the partitioner cuts blocks"),
    ),
    *mutations(
        "steering/shardings.py",
        "steering/test_state_shardings.py",
        ("if sharding is None else sharding.spec", "if True else None", "all of it everywhere"),
    ),
    *mutations(
        "precondition/shared/over_matrices.py",
        "precondition/test_stacks.py",
        ("starts[is_own] += math.prod(batch)", "pass", "every place has the first results"),
    ),
    *mutations(
        "precondition/kronecker/transform.py",
        "precondition/test_bad_steps.py::test_a_constant_gradient_is_no_noise_to_a_centred_transform",
        ("stays[1] * v)", "v)", "a moment without noise fades"),
    ),
]

OTHERS = [
    *mutations(
        "precondition/graft.py",
        "precondition/test_graft.py::test_zero_empty_and_non_finite_leaves",
        ("jnp.where(known, jnp.exp", "jnp.where(True, jnp.exp", "a zero length moves"),
    ),
    *mutations(
        "precondition/graft.py",
        "precondition/test_graft.py::test_equals_a_float64_reference_step_by_step",
        (
            "weight(state.graft_step) if callable",
            "weight(0) if callable",
            "a schedule stands still",
        ),
        ("jnp.exp(weight * ", "jnp.exp(", "half a graft is a whole one"),
    ),
    *mutations(
        "precondition/graft.py",
        "precondition/test_graft_members.py",
        (
            "_finite_or_old(direction_state, state.direction_state)",
            "direction_state",
            "a bad step poisons the direction's state",
        ),
        ("[magnitude] * (fixed != 0.0)", "[]", "the magnitude's scale does not count"),
    ),
    *mutations(
        "precondition/step_limits/along_update.py",
        "precondition/step_limits/test_step_limits.py::test_zero_updates_are_not_measured_and_made_up_for",
        (
            "(due | (state.measurements == 0))",
            "due",
            "a first measurement is not made up for",
        ),
    ),
    *mutations(
        "precondition/step_limits/along_update.py",
        "precondition/step_limits/test_step_limits.py::test_outputs_that_are_not_finite_leave_the_last_measurement",
        ("taken = due & jnp.all(jnp.isfinite(found))", "taken = due", "a NaN is a measurement"),
    ),
    *mutations(
        "precondition/step_limits/along_update.py",
        "precondition/step_limits/test_scales.py",
        (
            "jnp.clip(jnp.stack(allowed).min(), 0.0, 1.0)",
            "jnp.stack(allowed).min()",
            "a limit lengthens",
        ),
        ("jnp.where(jnp.isfinite(norm), shrinkage, 0.0)", "shrinkage", "an infinite step is taken"),
    ),
    *mutations(
        "precondition/step_limits/softmax_radius.py",
        "precondition/step_limits/test_scales.py",
        ("math.pi * radius", "radius", "the radius is not in units of pi"),
    ),
    *mutations(
        "precondition/step_limits/friction_limit.py",
        "precondition/step_limits/test_scales.py",
        ("(curvature + damping) * step.norm", "curvature * step.norm", "friction is not damped"),
        ("jnp.where(step.slope < 0, jnp.inf, 0.0)", "0.0", "a step without friction is refused"),
    ),
    *mutations(
        "precondition/low_rank_fisher.py",
        "precondition/test_low_rank_reference.py::"
        "test_a_measurement_without_a_spectrum_is_not_taken_over",
        ("optax.tree.where(good, new, old)", "new", "a spectrum that is none is kept"),
    ),
    *mutations(
        "precondition/low_rank_fisher.py",
        "precondition/test_metrics.py",
        ("gains(state) / (1 + left)", "gains(state)", "the metric is applied twice"),
    ),
    *mutations(
        "precondition/diagonal_fisher.py",
        "precondition/test_metrics.py",
        (
            "(1 - decay) / (1 - decay ** jnp",
            "(1 - decay) / (1 - 0 * decay ** jnp",
            "the diagonal is biased at first",
        ),
        (
            "jnp.maximum(jnp.maximum(scale * h, floor), jnp.abs(m))",
            "jnp.maximum(scale * h, floor)",
            "an entry may exceed one",
        ),
    ),
    *mutations(
        "precondition/kronecker/second_moment.py",
        "precondition/test_metrics.py",
        ("p <= least * (1 + 1e-3)", "p < 0", "a first gradient is the whole signal"),
    ),
    *mutations(
        "precondition/shared/leaves.py",
        "precondition/kronecker/test_eigenbasis.py",
        (
            "bias_correction(decay, step) / jnp.where(before > 0, before, 1), 1)",
            "1.0, 1)",
            "averages fade while nothing is seen",
        ),
    ),
]

PRECONDITIONING = [*FISMO, *KFAC, *KRONECKER, *OTHERS]
