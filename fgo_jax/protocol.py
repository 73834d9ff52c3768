"""Target acquisition: the three phases with their triggers, ready for use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optax

from fgo_jax import _checks
from fgo_jax.controller.design import check_probe
from fgo_jax.controller.update import phased
from fgo_jax.phases import builders, decays
from fgo_jax.phases.decay import Decay
from fgo_jax.precondition.kronecker.transform import scale_by_kronecker_fisher
from fgo_jax.probes.gradient_stream import gradient_stream
from fgo_jax.probes.probe import Probe
from fgo_jax.triggers import Trigger
from fgo_jax.triggers.defaults import defaults

# Of `optax.inject_hyperparams`, whose update belongs inside `jax.jit`: each call builds the
# optimizer anew, and outside it would compile at every call.
STATIC_ARGS = (
    "transform",
    "mask",
    "decay",
    "probe",
    "triggers",
    "axis_name",
    "seed",
)


def target_acquisition(
    learning_rate: float | optax.Schedule,
    warmup_steps: int = 100,
    *,
    transform: optax.GradientTransformation
    | Mapping[str, optax.GradientTransformation]
    | None = None,
    weight_decay: float = 0.0,
    mask: Any = None,
    clip_norm: float | None = None,
    average_weights: float | None = None,
    slow_share: float | None = 0.5,
    decay: Decay | None = None,
    total_steps: int | None = None,
    probe: Probe | None = None,
    triggers: Mapping[str, Trigger] | None = None,
    handover_steps: int = 40,
    axis_name: str | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Friction-Guided Optimization: three phases that end when the measured geometry says so.

    1. ``acquisition``: warm-up to ``learning_rate``. It ends when the intrinsic dimension of
       the gradient noise falls more slowly than 1/step, the agreement of successive gradients is
       below 0.75 (``help(fgo_jax)``), and no rise of the loss is proven.
    2. ``reask``: the peak rate stays. A share ``slow_share`` of each update comes from
       :func:`fgo_jax.slow_momentum`, a long-memory mean of past directions, so gradient noise
       is reduced by about that share. It ends when the agreement is below 0.75, after
       ``handover_steps`` at the earliest. By default, where acquisition uses the same
       transform, it usually ends then.
    3. ``execution``: the rate falls at most as 1/(1 + s/t), s steps after its start at step t. It
       stays while past directions agree, and with ``average_weights`` also while they are
       noise. It never ends. :func:`fgo_jax.should_stop` says when ten reported
       ``validation_value`` (see :func:`fgo_jax.phased`) in a row brought no improvement, or as
       many as ``triggers=fgo.triggers.defaults(patience=...)`` says. :func:`fgo_jax.keep_best`
       keeps the best weights.

    All of it is decided inside the compiled step, from a sketch of the gradients that training
    computes anyway, in the metric of the transform that makes the updates. No horizon is
    needed. With noise-free (full-batch) gradients training stays in phase 1. On a CPU
    ``jax.jit(step, compiler_options={"xla_cpu_use_fusion_emitters": False})`` halves the time
    to compile the first step.

    Anything else, such as other phases, a cut of the learning rate or deadlines, is built with
    :func:`fgo_jax.phased` from :func:`fgo_jax.acquisition`, :func:`fgo_jax.reask`,
    :func:`fgo_jax.execution` and :func:`fgo_jax.triggers.defaults`.

    Args:
      learning_rate: the peak; a number or an optax schedule. Tune this one. Start at 3 times
        Adam's best constant rate with ``average_weights``, at 4 times without. The best peak is
        above the transform's best constant rate, since later phases damp noise.
      warmup_steps: length of the linear warm-up, and the least length of acquisition.
      transform: gradients to a direction: a ``scale_by_*`` with no learning rate and no minus
        sign; an optimizer such as `optax.adam(1e-3)` is refused. None is
        :func:`fgo_jax.scale_by_kronecker_fisher`. A dict gives phases their own:
        ``{"acquisition": optax.scale_by_adam()}`` makes cheaper first steps, as in the paper,
        but needs more of them and a second state. Acquisition and execution share the
        transform of ``reask`` unless they have their own.
      weight_decay: decoupled, scaled by the effective rate, as in `optax.adamw`.
      mask: which leaves decay, as in `optax.adamw`.
      clip_norm: global norm to clip gradients to, after the probe. A `clip_by_global_norm`
        before this in a chain makes the probe measure clipped gradients.
      average_weights: window of :func:`fgo_jax.average_weights`, in [0, 1]; None keeps no average.
        It is a share of the steps so far, not a decay: 0.1, a good one, is about the last tenth.
        Read the average with :func:`fgo_jax.eval_params`.
      slow_share: share of the slow momentum from re-ask on, in [0, 1). With None or 0
        pass another `decay` too.
      decay: how the rate falls in execution, from :mod:`fgo_jax.decays`; None is
        `fgo.decays.adaptive()`.
      total_steps: the horizon, where it is known. Acquisition and re-ask then end by 35 % and
        70 % of it, and the decay ends there.
      probe: what is measured; None is :func:`fgo_jax.probes.gradient_stream`. With a probe that
        measures no agreement of gradients, acquisition ends without that condition, and re-ask
        when the intrinsic dimension is at rest.
      triggers: what ends a phase instead of :func:`fgo_jax.triggers.defaults`, by the phase's
        name: ``{"reask": fgo.triggers.after(1000)}``. That of ``execution`` raises the flag of
        :func:`fgo_jax.should_stop`.
      handover_steps: length of a hand-over, and the least length of re-ask; the share of the slow
        momentum is halfway after as many steps.
      axis_name: as in :func:`fgo_jax.phased`.
      seed: of the probe's key.

    Returns:
      A gradient transformation with state :class:`fgo_jax.FgoState` that, like an optax alias,
      applies the learning rate. Its update takes the optional extra arguments of
      :func:`fgo_jax.phased`. State, in bytes per parameter: 8 and the factors for the default
      transform, 4 for the slow momentum, 4 for an average, and that of a transform of
      acquisition's own (8 for Adam).

    Raises:
      ValueError: for arguments out of range, names of no phase, an adaptive decay without slow
        momentum, or a horizon that ends the warm-up early; in ``init``, for a transform with a
        learning rate of its own; in ``update``, for gradients of the wrong shape and a ``value``
        that is no scalar.
      TypeError: in ``update``, where a probe or trigger of yours needs an extra argument, and
        for a misspelt one.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> tx = fgo.target_acquisition(3e-3, warmup_steps=100, average_weights=0.1)
      >>> params = {"w": jnp.ones((2, 3))}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params, value=jnp.float32(1.0))
      >>> params = optax.apply_updates(params, updates)

    Under `optax.inject_hyperparams` pass ``static_args=fgo.STATIC_ARGS``, and call ``update``
    inside `jax.jit`: outside, each call builds and compiles the optimizer anew, which takes
    seconds. With bfloat16 parameters also pass ``hyperparam_dtype=jnp.float32``, or the rate is
    stored in bfloat16.

    Source: Friction-Guided Optimization (2026), section 4. The paper cuts the learning rate in
    re-ask, and takes a natural gradient only from then on.
    """
    _checks.integer("warmup_steps", warmup_steps, 0)
    one_for_all = isinstance(transform, optax.GradientTransformation)
    own = _by_phase("transform", {"reask": transform} if one_for_all else transform)
    main = own.get("reask")
    # The very same object in all phases: one state, and no hand-over.
    main = scale_by_kronecker_fisher() if main is None else main
    probe = gradient_stream() if probe is None else probe
    check_probe(probe)
    ends = {**defaults(probe.signals), **_by_phase("triggers", triggers)}
    decaying: dict[str, Any] = {"weight_decay": weight_decay, "mask": mask}
    return phased(
        [
            builders.acquisition(
                learning_rate, warmup_steps, transform=own.get("acquisition", main), **decaying
            ),
            builders.reask(learning_rate, 0.0, transform=main, slow_share=slow_share, **decaying),
            builders.execution(
                learning_rate,
                0.0,
                decay=decays.adaptive() if decay is None else decay,
                transform=own.get("execution"),
                slow_share=slow_share,
                **decaying,
            ),
        ],
        [ends[name] for name in builders.NAMES],
        probe,
        handover_steps=handover_steps,
        min_steps=(warmup_steps, handover_steps, 0),
        total_steps=total_steps,
        clip_norm=clip_norm,
        average_weights=average_weights,
        axis_name=axis_name,
        seed=seed,
    )


def _by_phase(name: str, given: Any) -> dict[str, Any]:
    """A dict keyed by names of phases; raises for any other."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not set(given) <= set(builders.NAMES):
        one = "a gradient transformation (call it, as in optax.scale_by_adam()) or "
        raise ValueError(
            f"{name} must be {one if name == 'transform' else ''}a dict with keys among "
            f"{', '.join(builders.NAMES)}, got "
            f"{sorted(given) if isinstance(given, Mapping) else type(given).__name__}."
        )
    return dict(given)
