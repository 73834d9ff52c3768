"""The README's table of the claim: what stands between two markers is written here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import glance, regrets
from benchmarks.report.reading import Results

BEGIN, END = "<!-- claim:begin -->", "<!-- claim:end -->"


def write(path: Path, results: Results) -> None:
    """Replaces what stands between the markers of the file at `path`.

    Raises:
      ValueError: if the file has not each marker once, in this order.
    """
    path.write_text(rewritten(path.read_text(), results))


def rewritten(text: str, results: Results) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise ValueError(
            f"The README's table stands between {BEGIN} and {END}: write each once, in this "
            "order, where the table belongs."
        )
    return f"{before}{BEGIN}\n{block(results)}{END}{after}"


def block(results: Results) -> str:
    """The tables and their sentences as Markdown."""
    parts = [
        _table(glance.headings(), glance.rows(results)),
        glance.legend(results.races),
        _list(glance.sentences(results.races)),
        glance.STEPS,
        _table(glance.step_headings(), glance.step_rows(results)),
    ]
    if "triggers" in results.others:
        content = results.others["triggers"]
        parts += [
            _table(regrets.HEADINGS, regrets.rows(content)),
            regrets.legend(content),
            _list(regrets.sentences(content)),
        ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *body))


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
