"""SASA: the rate falls when the weights' squared norm has become stationary."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.rival_triggers import batch_means
from benchmarks.rival_triggers.parameter_probe import parameter_probe
from fgo_jax.linalg import sum_squares, vdot
from fgo_jax.probes import Probe
from fgo_jax.triggers import Observation, Trigger, condition

_SIGNALS = ("norm_drift", "step_square")
_MIN_SAMPLES = 64  # kept, before anything is said
_BATCHES = 64  # even; between half and all of them hold the phase's samples


class NormDriftState(NamedTuple):
    evaluations: jax.Array  # [], int32
    began: jax.Array  # [], bool; `previous` holds parameters
    previous: Any  # f32, shaped like the parameters
    readings: jax.Array  # [2], float32


def norm_drift() -> Probe:
    r"""Measures, at every step, what moved the squared norm of the weights.

    With the update :math:`\Delta = \theta_t - \theta_{t-1}`, ``step_square`` is
    :math:`\|\Delta\|^2`, and ``norm_drift``, the rise of :math:`\|\theta\|^2`, is summed as
    :math:`\langle \theta_t + \theta_{t-1}, \Delta \rangle`, which loses no digits to the
    difference of two large norms. State: four bytes per parameter.
    """

    def init(params: Any) -> NormDriftState:
        return NormDriftState(
            evaluations=jnp.zeros([], jnp.int32),
            began=jnp.zeros([], jnp.bool_),
            previous=optax.tree.zeros_like(params, jnp.float32),
            readings=jnp.full([2], jnp.nan, jnp.float32),
        )

    def measure(params: Any, state: NormDriftState) -> NormDriftState:
        now = optax.tree.cast(params, jnp.float32)
        step = jax.tree.map(jnp.subtract, now, state.previous)
        both = jax.tree.map(jnp.add, now, state.previous)
        readings = jnp.stack([vdot(both, step), sum_squares(step)])
        return NormDriftState(
            evaluations=state.evaluations + state.began.astype(jnp.int32),
            began=jnp.ones_like(state.began),
            previous=now,
            readings=jnp.where(state.began, readings, state.readings),
        )

    def read(state: NormDriftState) -> dict[str, jax.Array]:
        return dict(zip(_SIGNALS, state.readings, strict=True))

    return parameter_probe(init, measure, read, _SIGNALS)


class StationaryState(NamedTuple):
    batches: batch_means.BatchMeans
    samples: jax.Array  # [], int32; since the phase began
    verdict: jax.Array  # [], int32; of the last look


def stationary(
    tolerance: float | None = 0.38, confidence: float = 0.8, keep: float = 0.25, every: int = 20
) -> Trigger:
    r"""Holds when the squared norm of the weights is stationary.

    Under any update :math:`\theta_{t+1} = \theta_t - \eta d_t` a stationary state has
    :math:`E[\langle \theta_t, d_t \rangle - \tfrac{\eta}{2} \|d_t\|^2] = 0` (SASA+). At a constant
    rate that is a mean ``norm_drift`` of zero, and its scale is the mean ``step_square``. As in
    SASA the confidence interval of the mean drift, from batch means, must lie inside :math:`\pm`
    ``tolerance`` times the mean scale. A noisy drift thus does not pass.

    With ``tolerance=None`` the test is SASA+'s, which a noisy drift does pass: the intervals
    around the means of the older and of the newer half of the samples must both hold zero, and
    the two means must have one sign, so that a drift on its way through zero is no rest.

    Args:
      tolerance: SASA's 0.02 is of a scale larger by (1 + beta)/(1 - beta): 0.38 for momentum 0.9.
      confidence: of the two-sided interval; SASA's. SASA+ takes 0.95.
      keep: share of the phase's samples that is used, the latest; SASA's 1/8 is for longer runs.
      every: samples from one look to the next. The sources look once an epoch.

    Sources: Lang et al. (2019), SASA; Zhang et al. (2020), SASA+.
    """

    def init() -> StationaryState:
        zero = jnp.zeros([], jnp.int32)
        return StationaryState(batch_means.init(2, _BATCHES), zero, jnp.zeros([], jnp.int32))

    def judge(observation: Observation, state: StationaryState):
        drift, square = (observation.signals[name] for name in _SIGNALS)
        sample = jnp.stack([drift.value, square.value])
        evaluated = drift.fresh & jnp.all(jnp.isfinite(sample))
        means = batch_means.update(state.batches, jnp.where(jnp.isfinite(sample), sample, 0.0))
        found = batch_means.interval(means, keep, confidence)
        known = (found.samples >= _MIN_SAMPLES) & (found.mean[1] > 0)
        rests, drifts = _equivalent(found, tolerance) if tolerance else _holds_zero(found)
        verdict = jnp.where(known, jnp.where(rests, 1, jnp.where(drifts, -1, 0)), 0)
        samples = state.samples + 1
        verdict = jnp.where(samples % every == 0, verdict, state.verdict).astype(jnp.int32)
        state = StationaryState(means, samples, verdict)
        return evaluated, verdict == 1, verdict == -1, state

    return condition("stationary", init, judge, signals=_SIGNALS)


def _equivalent(found: batch_means.Interval, tolerance: float) -> tuple[jax.Array, jax.Array]:
    limit, off = tolerance * found.mean[1], jnp.abs(found.mean[0])
    return off + found.half_width[0] < limit, off - found.half_width[0] > limit


def _holds_zero(found: batch_means.Interval) -> tuple[jax.Array, jax.Array]:
    older, newer = found.halves[0, 0], found.halves[1, 0]
    near = (jnp.abs(older) < found.half_width[0]) & (jnp.abs(newer) < found.half_width[0])
    rests = near & (older * newer > 0)
    return rests, ~rests
