"""The report of a drill: one HTML file that needs no network, from the directory that it left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timedblock.drill import sentences, series
from timedblock.drill.dots import Panel, Scales, decades, panels
from timedblock.drill.errors import DrillError
from timedblock.drill.history import DELIVERIES, HISTORY, OUTCOMES, PICTURE, REPORT, SAMPLES
from timedblock.drill.load import GOOD_WITHIN, TOLERANCE
from timedblock.drill.loads import Drill, Load, Times, read_drill
from timedblock.drill.nines import FAULT_SHARE, MONTH, Cost, cost
from timedblock.drill.report import seconds
from timedblock.drill.store import LEARNT, OURS, RAW_FRESH
from timedblock.drill.verdict import is_fault_free

if TYPE_CHECKING:
    import jinja2

NEEDS_EXTRA = "the drill's pages need: pip install 'timedblock[drill]'"
_PAGES = "pages"
#: The throughput chart goes up to so many times the load's rate; and room above a chart's highest.
_BURST = 2.0
_ROOM = 1.08


def write_report(directory: Path, drill: Drill | None = None) -> Path:
    """Writes ``report.html`` beside the records of the drill in ``directory`` and gives its path.

    The file is whole in itself: charts, their library and their data. ``drill`` are the records,
    if they were read already. DrillError if they can't be read or the page can't be written;
    ImportError, with the pip line, without jinja2.
    """
    values = report_page(drill or read_drill(directory))
    return write_page(directory / REPORT, "report.html", values)


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> Path:
    """Writes a page whole or not at all. DrillError when it cannot be written."""
    text = _templates().get_template(template).render(values)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise DrillError(f"cannot write {str(path)!r}: {error.strerror}") from error
    return path


@cache
def _templates() -> jinja2.Environment:
    if find_spec("jinja2") is None:
        raise ImportError(NEEDS_EXTRA)
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("timedblock.drill", _PAGES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = asset
    environment.filters["seconds"] = seconds
    environment.filters["percent"] = sentences.percent
    environment.filters["minutes"] = minutes
    environment.filters["nines"] = nines
    return environment


def asset(name: str) -> str:
    """A file of the package's pages: style, script, or the chart library."""
    return files("timedblock.drill").joinpath(_PAGES).joinpath(name).read_text(encoding="utf-8")


def nines(cost: Cost) -> str:
    """``1.5``; ``> 3.1`` where more can't be told from so few requests."""
    if cost.served < cost.due:
        return f"{cost.nines:.1f}"
    return f"> {cost.proved:.1f}" if cost.due else "–"


def minutes(cost: Cost) -> str:
    """``39.2``; ``< 0.4`` where none was lost: one of the requests would have been so many."""
    if not cost.due:
        return "–"
    one = FAULT_SHARE * MONTH / cost.due
    return f"{cost.minutes():.1f}" if cost.served < cost.due else f"< {one:.1f}"


def report_page(drill: Drill) -> dict[str, Any]:
    """Everything that the template shows."""
    loads = list(drill.loads.values())
    low, high = decades(drill.durations())
    scales = [Scales(_end(drill, load.fault), low, high) for load in loads]
    drawn = dict(zip(drill.loads, panels(loads, scales) if loads else [], strict=True))
    # The run without a fault comes last: it is what the others are compared with.
    faults = sorted(drill.faults, key=is_fault_free)
    sections = [_section(drill, fault, drawn) for fault in faults]
    return {
        "document": drill.document,
        "title": drill.document.get("scenario", {}).get("title", ""),
        "verdict": sentences.verdict(drill),
        "status": _status(drill.document),
        "faults": sections,
        "variants": drill.variants,
        "ours": OURS,
        "learnt": LEARNT,
        "witness": RAW_FRESH,
        "cells": _cells(drill, faults),
        "files": _files(drill),
        "share": FAULT_SHARE,
        "month": MONTH,
        "good_within": GOOD_WITHIN,
        "tolerance": TOLERANCE,
        "stack": series.STACK,
        "data": {
            "low": low,
            "high": high,
            "kinds": [[outcome, error or ""] for outcome, error in drill.kinds.pairs],
            "outcomes": OUTCOMES,
            "stack": series.STACK,
            "breaker": series.BREAKER_STATES,
            "faults": [section["data"] for section in sections],
        },
    }


def _status(document: Mapping[str, Any]) -> str:
    if document.get("interrupted"):
        return "interrupted"
    return "passed" if document.get("passed") else "failed"


def _cells(drill: Drill, faults: list[str]) -> dict[str, dict[str, sentences.Cell | None]]:
    return {
        fault: {variant: sentences.cell(drill, fault, variant) for variant in drill.variants}
        for fault in faults
    }


def _files(drill: Drill) -> list[tuple[str, str]]:
    """What lies beside the report: its name, and what it is."""
    about = [
        (drill.file.name, "results"),
        (HISTORY, "every call"),
        (SAMPLES, "what timedblock knew, each 0.1 s"),
        (DELIVERIES, "every message that was given to a load"),
        (PICTURE, "the main chart"),
    ]
    return [(name, what) for name, what in about if (drill.file.parent / name).exists()]


def _end(drill: Drill, fault: str) -> float:
    mine = [load for load in drill.loads.values() if load.fault == fault]
    ends = [began for load in mine for began in load.began]
    return max([drill.times(fault).end, *ends]) or 1.0


def _section(drill: Drill, fault: str, drawn: Mapping[tuple[str, str], Panel]) -> dict[str, Any]:
    """One fault: its words, and the data of its charts."""
    mine = [load for load in drill.loads.values() if load.fault == fault]
    times = drill.times(fault)
    counted = [series.bars(load, times) for load in mine]
    loads = [
        _panel(drill, load, drawn[load.fault, load.variant], made)
        for load, made in zip(mine, counted, strict=True)
    ]
    spans = drill.spans(fault)
    tops = [max(map(sum, zip(*made.stack, strict=True)), default=1.0) for made in counted]
    return {
        "name": fault,
        "title": sentences.title(fault),
        "about": sentences.about(drill.document, fault),
        "verdict": sentences.fault_verdict(drill, fault),
        "passed": not sentences.problems_of(drill.document, fault),
        "loads": loads,
        "free": is_fault_free(fault),
        "consumed": any((load["row"] or {}).get("silence") is not None for load in loads),
        "data": {
            "name": fault,
            "end": _end(drill, fault),
            "spans": spans,
            "named": [name for name, _, _ in spans] != [fault],
            "stack_top": max(tops, default=1.0) * _ROOM,
            "flow_top": _flow_top(times, counted),
            "loads": [load["data"] for load in loads],
        },
    }


def _flow_top(times: Times, counted: Sequence[series.Bars]) -> float:
    """Where the throughput's axis ends. Calls that were waiting may end in one burst: it is cut,
    and its label says so, or nothing else could be read."""
    busiest = max((rate for made in counted for rate in made.finished), default=1.0)
    if times.rate is None:
        return busiest * _ROOM
    return min(max(busiest, times.rate), _BURST * times.rate) * _ROOM


def _panel(drill: Drill, load: Load, panel: Panel, made: series.Bars) -> dict[str, Any]:
    row = drill.row(load.fault, load.variant)
    times = drill.times(load.fault)
    rate, busiest = times.rate, max(made.finished)
    return {
        "variant": load.variant,
        "row": row,
        "cost": cost(load, times),
        "caption": panel.caption,
        "ended": series.hung(load) > 0,
        "peak": round(busiest) if rate and busiest > _BURST * rate else None,
        "data": {
            "variant": load.variant,
            "count": len(panel.dots),
            "dots": panel.encoded(),
            "limit": row["limit"] if row else None,
            "learnt": series.learnt_limit(load.samples),
            "breaker": series.breaker(load.samples),
            "bars": asdict(made),
        },
    }
