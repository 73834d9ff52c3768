"""The claim at a glance: one table, one sentence for each claim."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from benchmarks import statistics as evidence
from benchmarks.report.claims import CLAIMS, FIT, Comparison, Verdict, compare, judge
from benchmarks.report.reading import CLAIM_TASKS, Results
from benchmarks.report.text import number, restored, spread
from benchmarks.runs import transitions
from benchmarks.studies.study import LEVELS

EASY = "°"
LEVEL = LEVELS[0]
STEPS = (
    "Median steps to the claim's level: the task's fixed target, or else what the refinement alone "
    "(the natural gradient at a constant rate) ends with by its raw weights. Methods are judged by "
    "averaged weights where their name says so; -: not run at this level."
)
SHOWN = {
    "constant": "Adam",
    "natural_gradient": "refinement",
    "natural_gradient_two_step": "two-step (knows T)",
    "natural_gradient_cosine": "cosine (knows T)",
    "natural_gradient_1_over_sqrt_t": "1/sqrt(t)",
    "fgo": "FGO",
    "natural_gradient_averaged": "refinement, averaged",
    "natural_gradient_slow_momentum_averaged": "slow momentum, averaged",
    "natural_gradient_1_over_sqrt_t_averaged": "1/sqrt(t), averaged",
    "fgo_averaged": "FGO, averaged",
}


def legend(races: Mapping[str, Any]) -> str:
    """What the cells mean, and what an interval of so few seeds covers."""
    seeds = sorted({_seeds(race) for race in races.values() if race["evidence"]})
    covers = ", ".join(f"{evidence.coverage(n):.0%} of cases with {n} seeds" for n in seeds)
    return (
        "Median over seeds of FGO's steps (last two columns: seconds) over the rival's own, paired "
        f"by seed, [95 % bootstrap interval, which covers the median in {covers}]; "
        f"**bold**: the interval lies below 1; {EASY}: the rival is there before {FIT:g} T, so the "
        "level is easy; ∞: FGO misses it; -: not raced."
    )


def headings() -> tuple[str, ...]:
    return ("task", "seeds", *(claim.key for claim in CLAIMS))


def rows(results: Results) -> list[tuple[str, ...]]:
    """A row for each race, quick looks left out."""
    return [
        (name, str(_seeds(race)), *(cell(compare(race, claim)) for claim in CLAIMS))
        for name, race in results.races.items()
        if race["evidence"]
    ]


def _seeds(race: Mapping[str, Any]) -> int:
    """Those of the methods that the claim compares; others may have been raced on fewer."""
    return max(
        row["runs"] for level in race["levels"].values() for row in level["methods"].values()
    )


def cell(comparison: Comparison | None) -> str:
    """A ratio as Markdown."""
    if comparison is None:
        return "-"
    text = spread(comparison.ratio, "{:.2f}", beyond="∞")
    clear = comparison.ratio["high"] < 1
    return (f"**{text}**" if clear else text) + EASY * comparison.easy


def step_headings() -> tuple[str, ...]:
    return ("task", "T", *SHOWN.values())


def step_rows(results: Results) -> list[tuple[str, ...]]:
    """Median steps to the claim's level for the methods that `SHOWN` names."""
    found = []
    for name, race in results.races.items():
        level = race["levels"].get(LEVEL)
        if not race["evidence"] or level is None:
            continue
        beyond = f"> {race['num_steps']}"
        cells = [
            number(level["methods"][method]["steps"]["median"], "{:.0f}", beyond)
            if method in level["methods"]
            else "-"
            for method in SHOWN
        ]
        found.append((name, str(race["num_steps"]), *cells))
    return found


def sentences(races: Mapping[str, Any]) -> list[str]:
    """What was asked and what held, claim by claim; how phases ended; what was not raced."""
    verdicts = [judge(races, claim) for claim in CLAIMS]
    silent = [verdict.claim.key for verdict in verdicts if not verdict.found]
    spoken = [_sentence(verdict) for verdict in verdicts if verdict.found]
    not_raced = [f"Not raced on any task yet: {', '.join(silent)}."] if silent else []
    return [*spoken, *transitions_sentence(races), *not_raced]


def transitions_sentence(races: Mapping[str, Any]) -> list[str]:
    """How many runs came to execution by triggers; a run at one setting counts once."""
    rows = {
        (name, method, str(row["hyperparameters"])): row
        for name, race in races.items()
        if race["evidence"]
        for level in race["levels"].values()
        for method, row in level["methods"].items()
        if "causes" in row
    }
    if not rows:
        return []
    runs = sum(row["runs"] for row in rows.values())
    others = Counter()
    for (name, *_), row in rows.items():
        others[name] += row["runs"] - transitions.by_trigger(row)
    came = runs - others.total()
    listed = ", ".join(f"{count} of {name}" for name, count in others.items() if count) or "none"
    begun = Counter(
        pair
        for row in rows.values()
        for pair in zip(*restored(row["started"]), strict=True)
        if math.isfinite(max(pair))
    )
    pairs = ", ".join(f"{a:g} and {b:g} in {n}" for (a, b), n in sorted(begun.items()))
    when = f" Re-ask and execution began at steps {pairs}." if begun else ""
    return [
        f"Transitions: {came} of FGO's {runs} runs ({came / runs:.0%}) came to execution by "
        f"triggers; the rest, by a deadline or never: {listed}.{when}"
    ]


def _sentence(verdict: Verdict) -> str:
    claim, total, parts = verdict.claim, len(CLAIM_TASKS), []
    for tasks, bar in zip(verdict.held, claim.bars, strict=True):
        names = ", ".join(f"{task}{EASY * verdict.found[task].easy}" for task in tasks)
        held = f"{len(tasks)} ({names})" if tasks else "none"
        parts.append(f"{bar} asked on {bar.tasks} of {total}, held on {held}")
    if claim.worst is not None:
        medians = {task: verdict.found[task].ratio["median"] for task in verdict.worse}
        worse = ", ".join(f"{t} ({number(m, '{:.2f}', '∞')})" for t, m in medians.items())
        parts.append(f"worse than {claim.worst:g} on {worse or 'none'}")
    if len(verdict.found) < total:
        parts.append(f"{total - len(verdict.found)} not raced")
    return f"{claim.key}, {claim.words}: **{verdict.word}** ({'; '.join(parts)})."
