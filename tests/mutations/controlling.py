"""Mutations of the controller: one step, the hand-over and the transition."""

from tests.mutations.mutation import mutations

CONTROLLER = [
    *mutations(
        "controller/transition.py",
        "controller/test_transition.py",
        ("& (clock.handover_left == 0)\n", "\n", "a trigger looks during a hand-over"),
        ("late = (clock.handover_left == 0) & (total", "late = (total", "a hand-over can be late"),
        (">= limit", "> limit", "a deadline is a step late"),
        ("(clock.stop_flag | (holds & last))", "(holds & last)", "the stop flag falls by itself"),
        ("jnp.where(leaves, 0.0, decay_exponent)", "decay_exponent", "a decay goes on when anew"),
        (
            "running = finite & (clock.phase == index)",
            "running = clock.phase == index",
            "a skipped step is judged",
        ),
        ("min_steps[index] - 1", "min_steps[index]", "a least length is one longer"),
        ("jnp.where(holds, BY_TRIGGER, BY_DEADLINE)", "BY_TRIGGER", "deadlines have no name"),
        ("(holds | late) & ~last", "holds & ~last", "no deadline ends a phase"),
        (
            "(taken_over, total, clock.driver",
            "(taken_over, clock.total_step, clock.driver",
            "a new driver began a step ago",
        ),
        ("jnp.where(leaves, rate, clock.entry_rate)", "rate", "the rate glides from itself"),
        (
            "jnp.where(fills, design.handover_steps, 0)",
            "design.handover_steps",
            "phases of one transform hand over",
        ),
    ),
    *mutations(
        "controller/transition.py",
        "controller/test_again.py",
        ("(clock.phase_step == 0)\n", "(clock.phase_step < 0)\n", "old verdicts count again"),
        (
            "(taken_over, ~leaves, clock.grafted)",
            "(taken_over, True, clock.grafted)",
            "a forced phase has a graft",
        ),
        ("stop_flag=~leaves & (", "stop_flag=(", "the stop flag outlives its phase"),
    ),
    *mutations(
        "linalg/trees.py",
        "controller/test_grafts_and_clipping.py",
        (
            "0.5 * (above - below), known",
            "0.5 * (below - above), known",
            "a graft is inverted",
        ),
        (
            "(wide(leaf) * factor)",
            "(leaf * factor.astype(leaf.dtype))",
            "a graft overflows half precision",
        ),
    ),
    *mutations(
        "controller/direction.py",
        "controller/test_grafts_and_clipping.py",
        (
            "jnp.maximum(design.handover_steps - clock.handover_left, 0)",
            "(design.handover_steps - clock.handover_left)",
            "a shorter hand-over divides by zero",
        ),
        ("2.0 / (filled + 2.0)", "1.0 / (filled + 1.0)", "a graft is a plain mean"),
        ("since / design.handover_steps, 0.0", "0.0 * since, 0.0", "a graft stays"),
        ("coming=jnp.where(ready, coming, -1)", "coming=coming", "a skipped step fills"),
        ("driving=jnp.where(ready, driving, -1)", "driving=driving", "a skipped step drives"),
    ),
    *mutations(
        "controller/direction.py",
        "controller/test_update.py::test_weight_decay_and_mask_may_differ_between_phases",
        (
            "select(running, weights)",
            "select(0 * running, weights)",
            "all phases have the first one's weight decay",
        ),
    ),
    *mutations(
        "controller/handover.py",
        "controller/test_grafts_and_clipping.py",
        ("weight = jnp.ones([], jnp.float32)", "pass", "a graft of another scale fades"),
        ("jnp.sqrt(sum_squares(grads))", "optax.tree.norm(grads)", "half precision clips"),
        (
            "if clip_norm is not None:",
            "if clip_norm is not None and index == 0:",
            "a filling transform is not clipped",
        ),
        ("old < new and driving != coming", "driving != coming", "a phase forced back fills"),
        ("old + share *", "share *", "a graft is of its last step"),
        (
            "return self.transform_at(driver), jnp",
            "return self.transform_at(phase), jnp",
            "the new transform drives while it fills",
        ),
    ),
    *mutations(
        "controller/handover.py",
        "controller/test_overflow.py"
        "::test_a_direction_is_not_rounded_to_the_dtype_of_half_precision_gradients",
        ("cast_like(direction, widened(grads, params))", "cast_like(direction, grads)", "it is"),
    ),
    *mutations(
        "controller/accumulate.py",
        "composition/test_accumulate.py",
        ("widened(updates, params),", "updates,", "a mean is rounded to its parts' dtype"),
        ('passed["grad"] = mean', "pass", "the raw gradient is the last micro-batch's"),
    ),
    *mutations(
        "controller/handover.py",
        "controller/test_handover.py",
        ("jnp.isnan(grafts), grafts[-1]", "jnp.isnan(grafts), 0.0", "a dead tensor wakes alone"),
        (
            "jnp.where(known, jnp.where",
            "jnp.where(True, jnp.where",
            "an idle expert loses its size",
        ),
    ),
    *mutations(
        "controller/handover.py",
        "controller/test_measure.py",
        (
            "self.transform_at(driver), branches",
            "0 * driver, branches",
            "rows are in the first metric",
        ),
    ),
    *mutations(
        "controller/measure.py",
        "controller/test_axis.py",
        ("axis_name=design.axis_name", "axis_name=None", "each device measures for itself"),
    ),
    *mutations(
        "controller/measure.py",
        "controller/test_measure.py",
        (
            "begun = finite & (clock.driver_since == clock.total_step)",
            "begun = finite & (False)",
            "a window holds rows of two metrics",
        ),
        (
            "_step_key(inputs.key, inputs.step)",
            "_step_key(inputs.key, 0 * inputs.step)",
            "all steps have one key",
        ),
        ("!= probe.counter(state.probe_state, signal)", ">= 0", "a measurement is always fresh"),
        ("jnp.where(finite & fresh, value, old[0])", "value", "a NaN replaces a validation"),
        ("finite & probe.due(", "probe.due(", "a skipped step is measured"),
    ),
    *mutations(
        "controller/guard.py",
        "controller/test_axis.py",
        ("jax.lax.pmin(finite", "jax.lax.pmax(finite", "one sound device takes a step for all"),
    ),
    *mutations(
        "controller/guard.py",
        "controller/test_overflow.py::test_a_loss_too_large_to_square_is_skipped_too",
        (
            "(*jax.tree.leaves(grads), *jax.tree.leaves(value))",
            "jax.tree.leaves(grads)",
            "a loss that is not finite is taken",
        ),
        ("LARGEST = 1e36", 'LARGEST = float("inf")', "squares may come near overflow"),
    ),
    *mutations(
        "controller/extras.py",
        "controller/test_axis.py",
        ("jax.lax.pmean(number, design.axis_name)", "number", "each device has its own loss"),
    ),
    *mutations(
        "controller/rate.py",
        "phases/test_rates.py",
        ("clock.entry_rate < 0", "clock.entry_rate <= 0", "no rate glides from zero"),
        (
            "(clock.phase_step.astype(jnp.float32) + 1.0)",
            "clock.phase_step.astype(jnp.float32)",
            "a glide is a step late",
        ),
    ),
    *mutations(
        "controller/rate.py",
        "controller/test_overflow.py::"
        "test_a_skipped_step_gives_zeros_even_where_parameters_are_infinite",
        (
            "jnp.where(finite, -rate * wide(leaf), 0.0)",
            "(finite * -rate * wide(leaf))",
            "a skipped step may be NaN",
        ),
    ),
    *mutations(
        "controller/smooth.py",
        "smoothing/test_in_phases.py",
        ("ramp_steps=design.handover_steps", "ramp_steps=1", "a mean's share starts large"),
        ("taken=taken", "taken=True", "a skipped step moves the slow momentum"),
        (
            "design.average_weights, finite)",
            "design.average_weights, True)",
            "a skipped step is averaged",
        ),
    ),
    *mutations(
        "controller/smooth.py",
        "smoothing/test_energy_exponent.py::test_another_transform_is_measured_anew",
        ("finite, anew=anew", "finite, anew=False", "another transform's energy goes on"),
    ),
    *mutations(
        "controller/state.py",
        "controller/test_measure.py",
        ("jax.random.key(design.seed", "jax.random.key(0 * design.seed", "all seeds are one"),
    ),
]
