"""The tables of benchmarks/README.md: what stands between two markers is written here."""

from typing import Any

from benchmarks.report import glance, regrets
from benchmarks.report.text import markdown_table

BEGIN, END = "<!-- claim:begin -->", "<!-- claim:end -->"


def rewritten(text: str, results: Any) -> str:
    """The text with the tables of `results` between its markers.

    Raises:
      ValueError: if the text has not each marker once, in this order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise ValueError(
            f"The tables stand between {BEGIN} and {END}: write each once, in this "
            "order, where the tables belong."
        )
    return f"{before}{BEGIN}\n{block(results)}{END}{after}"


def block(results: Any) -> str:
    """The tables and their sentences as Markdown."""
    races = results.races
    parts = [
        markdown_table(glance.HEADINGS, glance.rows(races)), glance.legend(races),
        "\n".join(f"- {said}" for said in glance.sentences(races)), glance.STEPS,
        markdown_table(glance.STEP_HEADINGS, glance.step_rows(races)), glance.FINALS,
        markdown_table(glance.STEP_HEADINGS, glance.final_rows(races)),
    ]  # fmt: skip
    if "triggers" in results.others:
        content = results.others["triggers"]
        parts += [
            markdown_table(regrets.HEADINGS, regrets.rows(content)),
            regrets.legend(content),
            "\n".join(f"- {said}" for said in regrets.sentences(content)),
        ]
    return "\n\n".join(parts) + "\n"
