"""Mutations of what decides: triggers, phases, smoothing and steering."""

from tests.mutations.mutation import mutations

TRIGGERS = [
    *mutations(
        "triggers/trends.py",
        "triggers/test_verdicts.py triggers/test_triggers.py",
        ("slope - margin > 0,", "slope + margin > 0,", "increasing holds on the upper bound"),
        ("slope - margin <= 0", "slope + margin <= 0", "increasing fails on the upper bound"),
        ("slope + margin < 0,", "slope - margin < 0,", "decreasing holds on the lower bound"),
        ("slope + margin >= 0", "slope - margin >= 0", "decreasing fails on the lower bound"),
        (
            "slope - margin > -tol",
            "slope + margin > -tol",
            "stopped falling: the upper bound holds",
        ),
        (
            "slope + margin < -tol",
            "slope - margin < -tol",
            "stopped falling: the lower bound fails",
        ),
        ("- margin > tolerance", "+ margin > tolerance", "a stall fails on the upper bound"),
        ("slope.points >= min_points", "slope.points >= 0", "few points are known"),
        ("fails & known", "fails", "few points can fail"),
        ("holds & known", "holds", "few points can hold"),
        ("observation.total_step.astype", "observation.phase_step.astype", "time is of the phase"),
        ("time = jnp.log(", "time = (", "time is not logarithmic"),
        (
            "(value > 0) & jnp.isfinite(value) if logarithm",
            "jnp.isfinite(value) if logarithm",
            "a negative value has a logarithm",
        ),
        ("jnp.log(safe) if logarithm", "safe if logarithm", "a stall is not relative"),
        ("regression.margin(slope, z)", "z * slope.error", "the margin is a normal one"),
    ),
    *mutations(
        "triggers/trigger.py",
        "triggers/test_verdicts.py triggers/test_triggers.py",
        ("evaluated &= ~distrusted", "evaluated &= True", "a distrusted value is remembered"),
        ("(streak, old.streak)", "(streak, streak)", "what is not evaluated counts"),
        ("jnp.where(distrusted, 0, ", "jnp.where(False, 0, ", "distrust keeps verdict and streak"),
        ("streak >= patience", "streak > patience", "patience is one longer"),
        (
            "jnp.where(holds, optax.safe_increment(old.streak), 0)",
            "old.streak + holds",
            "a streak may have gaps",
        ),
        ("jnp.where(fails, -1, 0)", "-1", "unknown is a failure"),
        (
            "tree.where(evaluated, memory",
            "tree.where(evaluated | True, memory",
            "stale signals are judged",
        ),
        ("_combine(jnp.minimum, self", "_combine(jnp.maximum, self", "and is or"),
        ("return -verdict, {", "return verdict, {", "a negation is none"),
        ("old._replace(counts=counts[name])", "old", "a fixed verdict is not shown"),
    ),
    *mutations(
        "triggers/thresholds.py",
        "triggers/test_verdicts.py triggers/test_triggers.py",
        ("phase_step >= steps", "phase_step > steps", "after is a step late"),
        ("excess - margin > 0", "excess > 0", "a threshold holds inside its bound"),
        ("excess + margin <= 0", "excess <= 0", "a threshold fails inside its bound"),
        ("jnp.where(jnp.isnan(error), 0.0, error)", "error", "without an error nothing is known"),
        ("fresh & jnp.isfinite(value), ~better", "fresh, ~better", "a plateau counts bad values"),
        ("jnp.abs(state.best), 0.0", "state.best, 0.0", "a plateau below zero is none"),
        ("jnp.where(better, value, state.best)", "value", "a plateau is from value to value"),
    ),
    *mutations(
        "triggers/regression.py",
        "triggers/test_triggers.py",
        ("-elapsed / memory", "0.0 * elapsed / memory", "a trend never forgets"),
        ("slope.points - 2.0, 1.0", "slope.points, 1.0", "the margin has two degrees too many"),
        ("fade**2 * state.weight_square", "fade * state.weight_square", "points are miscounted"),
    ),
]

PHASES = [
    *mutations(
        "phases/rates.py",
        "phases/test_rates.py",
        ("jnp.where(share >= 1.0, target, moving)", "moving", "a glide ends beside its target"),
        (", target * share)", ", target)", "a glide from zero jumps"),
        ("entry * ratio**share", "entry + (target - entry) * share", "a glide is linear"),
        (
            "later(progress.phase_step, progress.phase_start)",
            "progress.phase_step",
            "a schedule counts from the phase",
        ),
        (
            "jnp.asarray(1.0 - cut, jnp.float32)",
            "jnp.asarray(cut, jnp.float32)",
            "a cut is what stays",
        ),
    ),
    *mutations(
        "phases/decays.py",
        "phases/test_rates.py phases/test_decays.py",
        ("jnp.where(jnp.isnan(own), 0.0, own)", "own", "an unknown exponent is NaN"),
        ("jnp.float32), 0.0, 1.0)", "jnp.float32), 0.0, 9.0)", "a rate falls faster than 1/t"),
        ("jnp.where(progress.averaged, 1.0, 0.0)", "0.0", "averaged weights have no later onset"),
        ("jnp.exp(-jnp.minimum(share, 1.0) * ", "jnp.exp(-share * ", "an exponential never ends"),
        ("jnp.float32(100.0)", "jnp.float32(10.0)", "an exponential ends at a tenth"),
        (
            "jnp.log1p(1.0 / (length + elapsed))",
            "(1.0 / (length + elapsed))",
            "exponents are averaged over another time",
        ),
    ),
    *mutations(
        "phases/decay.py",
        "phases/test_decays.py::test_with_a_horizon_every_decay_ends_there",
        (
            "jnp.minimum(factor(progress, share), line)",
            "factor(progress, share)",
            "a horizon is no bound",
        ),
        (
            "value = factor(progress, elapsed / left)",
            "value = jnp.minimum(factor(progress, elapsed / left), 1 - elapsed / left)",
            "a cosine begins as a line",
        ),
    ),
    *mutations(
        "phases/decay.py",
        "phases/test_decays.py::test_a_factor_follows_its_formula",
        ("jnp.maximum(value, jnp.asarray(floor, jnp.float32))", "value", "there is no floor"),
    ),
]

SMOOTHING = [
    *mutations(
        "smoothing/slow_momentum.py",
        "smoothing/test_growing_mean.py",
        (
            "jnp.where(in_use, optax.safe_increment(steps), 0)",
            "optax.safe_increment(steps)",
            "directions count that are not in use",
        ),
        ("taken, share, state.share", "True, share, state.share", "a skipped step has a share"),
        ("share * count / (count + ramp_steps)", "share", "a share starts large"),
    ),
    *mutations(
        "smoothing/growing_mean.py",
        "smoothing/test_growing_mean.py",
        ("float32) + 1.0", "float32) + 2.0", "zeros are in the mean"),
        (
            "jnp.where(taken, new, m)",
            "m + taken * (new - m)",
            "an infinite tree enters untaken",
        ),
        ("memory > _LATE, golden", "memory > _LATE, jnp.inf", "a late mean stands still"),
        (
            "rounded_at_random(new, m.dtype, seen.astype(jnp.uint32), first)",
            "new.astype(m.dtype)",
            "a mean in bfloat16 stands still",
        ),
    ),
    *mutations(
        "smoothing/average_weights.py",
        "smoothing/test_growing_mean.py",
        (
            "jnp.where(taken, optax.safe_increment(steps), steps)",
            "optax.safe_increment(steps)",
            "an untaken step is counted",
        ),
        (
            "average=_moved(state, params, taken)",
            "average=_moved(state, params)",
            "an untaken step is averaged",
        ),
        (
            "_moved(state._replace(average=wide(average)), part)",
            "wide(average)",
            "an evaluation lacks the present weights",
        ),
    ),
    *mutations(
        "smoothing/energy_exponent.py",
        "smoothing/test_growing_mean.py",
        (
            "(due & (seen > 0) & known, new",
            "(due & (seen > 0), new",
            "an infinite energy is measured",
        ),
    ),
    *mutations(
        "smoothing/energy_exponent.py",
        "smoothing/test_energy_exponent.py::test_it_is_the_slope_of_the_energy_over_log_time",
        ("0.5 * (energy + last)", "energy", "the exponent is of the later energy"),
    ),
    *mutations(
        "smoothing/energy_exponent.py",
        "smoothing/test_energy_exponent.py::test_a_step_that_is_not_finite_leaves_it_as_it_was",
        ("taken & (due | anew)", "due | anew", "a skipped step is measured"),
    ),
]

STEERING = [
    *mutations(
        "steering/by_hand.py",
        "steering/test_by_hand.py",
        ("jnp.all(jnp.stack", "jnp.any(jnp.stack", "one of several runs stops all"),
        (
            "stop_flag=jnp.zeros_like(clock.stop_flag)",
            "stop_flag=clock.stop_flag",
            "a forced phase is stopped already",
        ),
        (
            "judged = _unjudged(state.trigger_states)",
            "judged = state.trigger_states",
            "a restart keeps old verdicts",
        ),
        ("clock=clock, slow=slow,", "clock=clock,", "a restart keeps the slow momentum"),
        (
            "mapped_nodes(AccumulateState, emptied, opt_state)",
            "opt_state",
            "a restart keeps micro-batches",
        ),
        (
            "jnp.full_like(clock.requested_phase, index)",
            "jnp.full_like(clock.requested_phase, 0)",
            "only the first phase can be forced",
        ),
    ),
    *mutations(
        "steering/telemetry.py",
        "steering/test_by_hand.py",
        ("clock.started[..., index]", "clock.started[index]", "of stacked runs one is told"),
    ),
]

DECIDING = [*TRIGGERS, *PHASES, *SMOOTHING, *STEERING]
