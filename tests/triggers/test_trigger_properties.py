"""Triggers against plain Python: each condition on any series, and the algebra of verdicts."""

import dataclasses
import functools
import math

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import fgo_jax as fgo
from fgo_jax.triggers import ConditionState, Observation, Signal, Trigger
from tests import streams
from tests.streams import STEPS
from tests.triggers.reference import JUDGES, Seen, followed

t = fgo.triggers


def triggers(n):
    """Every condition, with traced numbers."""
    level = {"z": n["z"], "patience": n["patience"]}
    slope = level | {"memory": n["memory"], "min_points": n["min_points"]}
    return {
        "after": t.after(n["steps"]),
        "above": t.above("x", n["threshold"], **level),
        "below": t.below("x", n["threshold"], **level),
        "plateau": t.plateau("x", patience=n["patience"], rtol=n["rtol"]),
        "stall": t.stall("x", n["tolerance"], **slope),
        "stopped_falling": t.stopped_falling("x", n["tolerance"], **slope),
        "decreasing": t.decreasing("x", **slope),
        "increasing": t.increasing("x", **slope),
    }


def joined(plain):
    """Some conditions joined, from a dict of conditions or from one of their verdicts."""
    return {
        "not": {name: ~trigger for name, trigger in plain.items()},
        "first": (plain["below"] & ~plain["increasing"]) | plain["after"],
        "second": ~(plain["stall"] | plain["plateau"] & plain["above"]) | ~plain["stall"],
    }


class Verdict(int):
    """A verdict in Kleene's logic, written with the triggers' operators."""

    def __and__(self, other):
        return Verdict(min(self, other))

    def __or__(self, other):
        return Verdict(max(self, other))

    def __invert__(self):
        return Verdict(-self)


@functools.cache
def program():
    """(numbers, observations with steps in front) -> the verdicts of all triggers, [STEPS]."""

    def every(n):
        plain = triggers(n)
        return {"plain": plain, "joined": joined(plain)}

    def is_trigger(node):
        return isinstance(node, Trigger)

    def watch(n, seen):
        start = jax.tree.map(lambda trigger: trigger.init(), every(n), is_leaf=is_trigger)

        def look(states, seen):
            signals = {"x": Signal(seen["value"], seen["error"], seen["fresh"])}
            observation = Observation(signals, seen["phase_step"], seen["total_step"])
            both = jax.tree.map(
                lambda trigger, state: trigger.update(observation, state),
                every(n), states, is_leaf=is_trigger,
            )  # fmt: skip
            pair = {"is_leaf": lambda node: isinstance(node, tuple)}
            verdicts = jax.tree.map(lambda both: both[0], both, **pair)
            return jax.tree.map(lambda both: both[1], both, **pair), verdicts

        return jax.lax.scan(look, start, seen)[1]

    return jax.jit(watch)


numbers = st.fixed_dictionaries(
    {
        # Dyadic, as the series are: comparisons with them are exact.
        "threshold": st.sampled_from((-1.0, 0.0, 0.5, 4.0)),
        "z": st.sampled_from((1.0, 1.5)),
        "rtol": st.sampled_from((0.0, 2.0**-10, 0.125)),
        "patience": st.integers(1, 5),
        "steps": st.integers(0, STEPS),
        "tolerance": st.sampled_from((0.1, 0.5, 1.0)),
        "memory": st.sampled_from((0.2, 0.7, 10.0)),
        "min_points": st.integers(4, 8),
    }
)


@dataclasses.dataclass(frozen=True)
class Series:
    """A signal as a trigger sees it."""

    values: list[streams.Segment]
    errors: list[tuple[float, int]]  # (standard error, for so many steps)
    fresh_every: int
    begin: int
    growth: float

    def observations(self):
        values = streams.series(self.values)
        small = np.abs(values) < 2.0**15
        values = np.where(small, np.round(np.where(small, values, 0.0) * 8) / 8, values)
        errors = np.resize(np.concatenate([np.full(k, e) for e, k in self.errors]), STEPS)
        steps = np.arange(STEPS)
        total = self.begin * self.growth**steps + steps
        return {
            "value": values.astype(np.float32),
            "error": errors.astype(np.float32),
            "fresh": steps % self.fresh_every == 0,
            "phase_step": steps.astype(np.int32),
            "total_step": total.astype(np.int32),
        }


series = st.builds(
    Series,
    streams.any_segments(),
    st.lists(
        st.tuples(
            st.sampled_from((math.nan, math.nan, 0.0, 0.125, 1.0, 100.0, math.inf)),
            st.integers(1, 30),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from((1, 1, 2, 5)),
    st.sampled_from((0, 30, 1000)),
    st.sampled_from((1.0, 1.02, 1.1)),
)


@given(numbers, series)
def test_every_condition_says_what_its_definition_says(n, drawn):
    seen = drawn.observations()
    verdicts = jax.tree.map(lambda x: x.tolist(), jax.device_get(program()(n, seen)))
    observations = [
        Seen(*row)
        for row in zip(*(seen[name].tolist() for name in Seen.__annotations__), strict=True)
    ]
    plain = verdicts["plain"]
    for name, judge in JUDGES.items():
        # A condition without a signal knows no distrust.
        watched = [None] * STEPS if name == "after" else observations
        patience = 1 if name == "after" else n["patience"]
        expected = followed(judge(observations, n), watched, patience)
        for step, (got, wanted) in enumerate(zip(plain[name], expected, strict=True)):
            assert wanted is None or got == wanted, (name, step, got, wanted)
    # Joined conditions see what single ones see.
    for step in range(STEPS):
        now = {name: Verdict(verdict[step]) for name, verdict in plain.items()}
        expected = joined(now)
        got = jax.tree.map(
            lambda found: found[step],  # noqa: B023
            verdicts["joined"],
            is_leaf=lambda node: isinstance(node, list),
        )
        assert got == expected


LEAVES = ("x_above", "x_above", "loss_increasing", "not_ready")


def planted(which):
    """A trigger whose verdict is the signal's value."""
    name = LEAVES[which]

    def update(observation, state):
        verdict = observation.signals[str(which)].value
        return verdict, {name: state[name]._replace(counts=np.asarray([verdict, 0], np.int32))}

    def init():
        return {name: ConditionState(np.zeros(2, np.int32), math.nan, ())}

    return Trigger(init, update, frozenset([str(which)]))


@dataclasses.dataclass(frozen=True)
class Expression:
    """A trigger, and what it says of the leaves' verdicts, as Kleene's logic has it."""

    text: str
    trigger: Trigger
    value: object  # verdicts of the leaves -> verdict
    shown: tuple  # for each condition in its order: (leaf, sign)


def leaf(which):
    return Expression(str(which), planted(which), lambda v: v[which], ((which, 1),))


def negation(e):
    shown = tuple((which, -sign) for which, sign in e.shown)
    return Expression(f"~{e.text}", ~e.trigger, lambda v: -e.value(v), shown)


def conjunction(a, b):
    return Expression(
        f"({a.text} & {b.text})",
        a.trigger & b.trigger,
        lambda v: min(a.value(v), b.value(v)),
        a.shown + b.shown,
    )


def disjunction(a, b):
    return Expression(
        f"({a.text} | {b.text})",
        a.trigger | b.trigger,
        lambda v: max(a.value(v), b.value(v)),
        a.shown + b.shown,
    )


expressions = st.recursive(
    st.builds(leaf, st.integers(0, len(LEAVES) - 1)),
    lambda inner: st.one_of(
        st.builds(negation, inner),
        st.builds(conjunction, inner, inner),
        st.builds(disjunction, inner, inner),
    ),
    max_leaves=8,
)
series_of_verdicts = st.lists(
    st.tuples(*[st.sampled_from((-1, 0, 1))] * len(LEAVES)), min_size=1, max_size=4
)


def said(trigger, verdicts):
    """The trigger's verdict and its conditions' names and verdicts, at each step."""
    state, out = trigger.init(), []
    for step, now in enumerate(verdicts):
        signals = {str(i): Signal(v, math.nan, True) for i, v in enumerate(now)}
        verdict, state = trigger.update(Observation(signals, step, step), state)
        out.append((int(verdict), {name: int(s.verdict) for name, s in state.items()}))
    return out


@given(expressions, series_of_verdicts)
def test_joined_triggers_are_kleenes_logic(e, verdicts):
    names = list(e.trigger.init())
    assert len(names) == len(set(names)) == len(e.shown)
    assert e.trigger.signals == {str(which) for which, _ in e.shown}
    for now, (verdict, conditions) in zip(verdicts, said(e.trigger, verdicts), strict=True):
        assert verdict == e.value(now)
        # A negated condition has a verdict of its own: 1 says that what its name says holds.
        assert list(conditions.values()) == [sign * now[which] for which, sign in e.shown]


@given(expressions, expressions, series_of_verdicts)
def test_double_negation_and_de_morgan(a, b, verdicts):
    left, right = a.trigger, b.trigger
    not_left, not_right = ~left, ~right  # each takes as long as what it says
    assert said(~not_left, verdicts) == said(left, verdicts)
    assert said(~(left & right), verdicts) == said(not_left | not_right, verdicts)
    assert said(~(left | right), verdicts) == said(not_left & not_right, verdicts)
