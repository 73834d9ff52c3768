"""The claim at a glance: a table of ratios, one of steps, one sentence for each claim."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import statistics
from benchmarks.report import claims
from benchmarks.report.text import number, restored, spread
from benchmarks.runs import transitions

STEPS = (
    "Median steps to the claim's level: the task's fixed target, otherwise the loss that the base "
    "(`kronecker_fisher` at its best constant rate) ends with by its last weights. Methods are "
    "judged by averaged weights where their name says so; -: not run at this level."
)
FINALS = (
    "Final loss in nats on validation data / on test data, on which nothing was chosen. Medians "
    "over seeds, at the settings for the late level."
)
SHOWN = {
    "constant": "Adam", "natural_gradient": "base",
    "natural_gradient_two_step": "two-step (knows T)",
    "natural_gradient_cosine": "cosine (knows T)",
    "natural_gradient_wsd_1_minus_sqrt": "constant, then 1 - sqrt (knows T)",
    "natural_gradient_1_over_sqrt_t": "1/sqrt(t)",
    "fgo": "FGO", "natural_gradient_averaged": "base, averaged",
    "natural_gradient_slow_momentum_averaged": "slow momentum, averaged",
    "natural_gradient_1_over_sqrt_t_averaged": "1/sqrt(t), averaged",
    "fgo_averaged": "FGO, averaged",
}  # fmt: skip
HEADINGS = ("task", "seeds", *(claim.key for claim in claims.CLAIMS))
STEP_HEADINGS = ("task", "T", *SHOWN.values())


def legend(races: Mapping[str, Any]) -> str:
    """What the cells and marks mean, and what an interval of so few seeds covers."""
    seeds = sorted({_seeds(race) for race in claims.evidence(races).values()})
    covers = ", ".join(f"{statistics.coverage(n):.0%} of cases with {n} seeds" for n in seeds)
    fit = f"{claims.EASY}: the rival is there before {claims.FIT:g} T, so the level is easy"
    edge = f"{claims.EDGE}: the rival's best setting is at an edge of its grid"
    return (
        "Median over seeds of FGO's steps (last four columns: seconds) over the rival's, paired "
        f"by seed, [95 % bootstrap interval, which covers the median in {covers}]. Each interval "
        "stands by itself, at the tuned rates: it holds no noise of tuning or of the target. "
        f"**Bold**: the interval lies below 1; {fit}; {edge}; ∞: FGO misses the level; "
        "-: not raced. Verdicts go by medians. *Added later*: after the first races were read, so "
        "no goal."
    )


def rows(races: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each race."""
    return [
        (name, str(_seeds(race)), *(cell(claims.compare(race, claim)) for claim in claims.CLAIMS))
        for name, race in claims.evidence(races).items()
    ]


def _seeds(race: Mapping[str, Any]) -> int:
    """Those of the methods that the claim compares; others may have been raced on fewer."""
    runs = (row["runs"] for level in race["levels"].values() for row in level["methods"].values())
    return max(runs)


def cell(comparison: claims.Comparison | None) -> str:
    """A ratio as Markdown."""
    if comparison is None:
        return "-"
    bold = "**" * (comparison.ratio["high"] < 1)
    return bold + spread(comparison.ratio, "{:.2f}", beyond="∞") + bold + comparison.marks


def step_rows(races: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Median steps to the claim's level for the methods that `SHOWN` names."""
    return _shown(races, "claim", lambda row, horizon: number(
        row["steps"]["median"], "{:.0f}", f"> {horizon}"))  # fmt: skip


def final_rows(races: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Their final losses, where a task has a test split: bowls have none."""
    split = {n: race for n, race in races.items() if race["metric"] == "validation cross-entropy"}
    return _shown(split, "late", lambda row, horizon: " / ".join(
        number(loss["median"], "{:#.4g}", "∞")
        for loss in (row["final"], row["test"]["cross_entropy"])))  # fmt: skip


def _shown(races: Mapping[str, Any], level: str, cell: Callable[[Any, int], str]):
    return [
        (name, str(race["num_steps"]),
         *(cell(methods[m], race["num_steps"]) if m in methods else "-" for m in SHOWN))
        for name, race in claims.evidence(races).items()
        for methods in [race["levels"].get(level, {}).get("methods")] if methods
    ]  # fmt: skip


def sentences(races: Mapping[str, Any]) -> list[str]:
    """What was asked and what held, claim by claim; how phases ended; what was not raced."""
    verdicts = [claims.judge(races, claim) for claim in claims.CLAIMS]
    silent = [verdict.claim.key for verdict in verdicts if not verdict.found]
    spoken = [_sentence(verdict) for verdict in verdicts if verdict.found]
    not_raced = [f"Not raced on any task yet: {', '.join(silent)}."] if silent else []
    return [*spoken, *transitions_sentence(races), *not_raced]


def transitions_sentence(races: Mapping[str, Any]) -> list[str]:
    """How many runs came to execution by triggers; a run at one setting counts once."""
    rows = {
        (name, method, str(row["hyperparameters"])): row
        for name, race in claims.evidence(races).items()
        for level in race["levels"].values()
        for method, row in level["methods"].items()
        if "causes" in row
    }
    if not rows:
        return []
    runs, others, begun = 0, Counter(), Counter()
    for (name, *_), row in rows.items():
        runs += row["runs"]
        others[name] += row["runs"] - transitions.by_trigger(row)
        pairs = zip(*restored(row["started"]), strict=True)
        begun.update(pair for pair in pairs if math.isfinite(max(pair)))
    came = runs - others.total()
    listed = ", ".join(f"{count} of {name}" for name, count in others.items() if count) or "none"
    pairs = ", ".join(f"{a:g} and {b:g} in {n}" for (a, b), n in sorted(begun.items()))
    when = f" Re-ask and execution began at steps {pairs}." if begun else ""
    return [
        f"Transitions: {came} of FGO's {runs} runs ({came / runs:.0%}) came to execution by "
        f"triggers; the rest, by a deadline or never: {listed}.{when}"
    ]


def _sentence(verdict: claims.Verdict) -> str:
    claim, total, parts = verdict.claim, len(claims.CLAIM_TASKS), []
    for tasks, bar in zip(verdict.held, claim.bars, strict=True):
        names = ", ".join(f"{task}{verdict.found[task].marks}" for task in tasks)
        held = f"{len(tasks)} ({names})" if tasks else "none"
        parts.append(f"{bar} asked on {bar.tasks} of {total}, held on {held}")
    if claim.worst is not None:
        medians = {task: verdict.found[task].ratio["median"] for task in verdict.worse}
        worse = ", ".join(f"{t} ({number(m, '{:.2f}', '∞')})" for t, m in medians.items())
        parts.append(f"worse than {claim.worst:g} on {worse or 'none'}")
    if len(verdict.found) < total:
        parts.append(f"{total - len(verdict.found)} not raced")
    word = "added later" if claim.later else verdict.word
    return f"{claim.key} ({claim.words}): **{word}**; {'; '.join(parts)}."
