"""One page of all results, in one file: no script, no font and no picture from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from string import Template
from typing import Any

from rich.console import Console

from benchmarks.measurements import overhead, sketch, stream
from benchmarks.measurements.calibration import tables as calibration
from benchmarks.report import figures, glance, markup, regrets
from benchmarks.report.race_tables import print_race
from benchmarks.report.reading import Results
from benchmarks.report.text import restored
from benchmarks.studies import parts as ablation
from benchmarks.studies import study, transforms
from benchmarks.studies import which_trigger as triggers

# Those that say in a terminal what they found say the same here; other JSON is shown as it is.
_PRINTERS: dict[str, Callable[[Any, Console], None]] = {
    "transforms": lambda content, console: transforms.print_tables(
        restored(content["tasks"]), console
    ),
    "sketch": sketch.print_tables,
    "overhead": overhead.print_tables,
    "stream": stream.print_table,
    "calibration": calibration.print_tables,
    "triggers": lambda content, console: study.print_tables(
        triggers, restored(content["tasks"]), console
    ),
    "ablation": lambda content, console: study.print_tables(
        ablation, restored(content["tasks"]), console
    ),
}
_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Friction-Guided Optimization: results</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #22262b; max-width: 1200px;
  margin: 2rem auto; padding: 0 1rem; }
nav a { margin-right: 1em; } a { color: #1f63b5; }
h2 { border-top: 1px solid #d9dde3; padding-top: 1.2rem; margin-top: 2.5rem; }
h4 { margin: 1.6rem 0 .4rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .7em; border-bottom: 1px solid #eef0f3; vertical-align: top; }
th { border-bottom: 1px solid #8a8f98; } .left { text-align: left; } .right { text-align: right; }
.best { font-weight: bold; color: #2c7a44; } .wide { overflow-x: auto; }
.note, dl { color: #6b7280; font-size: 13px; } .warning { color: #b3261e; }
img { max-width: 100%; } dt { font-weight: bold; } dd { margin: 0 0 .3em 1.2em; }
</style></head><body>
<h1>Friction-Guided Optimization: results</h1>
<nav>$links</nav>
$missing
$sections
</body></html>
""")


def page(results: Results) -> str:
    sections = {"At a glance": _glance(results)}
    for name, race in results.races.items():
        sections[name] = _race(results, name, race)
    for name, content in results.others.items():
        sections[name] = _other(name, content)
    anchors = {title: f"s{index}" for index, title in enumerate(sections)}
    return _PAGE.substitute(
        links=" ".join(f"<a href='#{anchors[t]}'>{html.escape(t)}</a>" for t in sections),
        missing=_missing(results),
        sections="\n".join(
            f"<h2 id='{anchors[title]}'>{html.escape(title)}</h2>\n{body}"
            for title, body in sections.items()
        ),
    )


def _glance(results: Results) -> str:
    table = markup.rows(
        [html.escape(heading) for heading in glance.headings()],
        [[markup.emphasis(cell) for cell in row] for row in glance.rows(results)],
    )
    listed = "".join(f"<li>{markup.emphasis(s)}</li>" for s in glance.sentences(results.races))
    legend = markup.emphasis(glance.legend(results.races))
    shown = f"{table}<p class='note'>{legend}</p><ul>{listed}</ul>"
    steps = [[html.escape(cell) for cell in row] for row in glance.step_rows(results)]
    heads = [html.escape(heading) for heading in glance.step_headings()]
    return f"{shown}<p>{html.escape(glance.STEPS)}</p>{markup.rows(heads, steps)}"


def _missing(results: Results) -> str:
    lines = [f"{name}.json could not be read: {why}" for name, why in results.unreadable.items()]
    if results.missing:
        lines.append(f"Not there yet: {', '.join(results.missing)}.")
    return "".join(f"<p class='warning'>{html.escape(line)}</p>" for line in lines)


def _race(results: Results, name: str, race: Mapping[str, Any]) -> str:
    console = markup.Collector()
    print_race(race, console, wide=True)
    parts = [markup.printed(console)]
    ladders = {next(iter(race["levels"])): race["ladder"], **race.get("ladders", {})}
    for level, climbed in ladders.items():
        references = climbed.get("references", {"raw": climbed["reference"]})
        own = html.escape(" or ".join(dict.fromkeys(references.values())))
        parts.append(
            f"<h4>Every target, settings of the level {html.escape(level)}, over {own}</h4>"
        )
        parts.append(_image(figures.ladder(climbed, race["metric"]), "steps over the reference's"))
    picture = results.folder / f"{name}.png"
    if picture.exists():
        parts.append("<h4>Validation curves, and one phased run</h4>")
        parts.append(_image(figures.picture(picture), "validation curves and phases"))
    else:
        parts.append(f"<p class='warning'>No picture: {html.escape(picture.name)} is missing.</p>")
    parts.append(_folded("Environment", race.get("environment")))
    return "\n".join(parts)


def _other(name: str, content: Any) -> str:
    if name not in _PRINTERS:
        return _folded("As stored", content)
    console = markup.Collector()
    try:
        _PRINTERS[name](content, console)
        shown = markup.printed(console)
        return f"{_regrets(content)}{shown}" if name == "triggers" else shown
    except (KeyError, TypeError) as error:
        # A file of another revision is shown as it is, and said to be one.
        why = f"{name}.json is not as this revision writes it: {error!r}."
        return f"<p class='warning'>{html.escape(why)}</p>{_folded('As stored', content)}"


def _regrets(content: Mapping[str, Any]) -> str:
    """What the triggers get of what there is, and why: a table and a picture for each task."""
    body = [[html.escape(cell) for cell in row] for row in regrets.rows(content)]
    listed = "".join(f"<li>{html.escape(s)}</li>" for s in regrets.sentences(content))
    pictures = [
        _image(figures.field(task, table, regrets.LEVEL), f"field of {task}")
        for task, table in content["tasks"].items()
        if regrets.LEVEL in table["levels"]
    ]
    head, note = regrets.HEADINGS, f"<p class='note'>{html.escape(regrets.legend(content))}</p>"
    return "\n".join([markup.rows(head, body), note, f"<ul>{listed}</ul>", *pictures])


def _folded(title: str, content: Any) -> str:
    return f"<details><summary>{title}</summary>{markup.json_tree(content)}</details>"


def _image(uri: str, words: str) -> str:
    return f"<img src='{uri}' alt='{html.escape(words, quote=True)}'>"
