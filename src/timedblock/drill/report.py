"""The drill's table and its sentences, and the document that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from timedblock.drill.load import TOLERANCE
from timedblock.drill.measure import Result, Row
from timedblock.drill.store import OURS
from timedblock.drill.verdict import Judgement, headline

_USUAL_NAME = len("raw-default")
#: A goodput below this is shown in red.
_LOW = 0.9
_RIGHT = ("calls", "ok", "p50", "p99", "worst", "past", "goodput")


def table(results: Sequence[Result]) -> Table:
    """All results, one row a variant, a rule after each fault."""
    longest = max((len(result.row.variant) for result in results), default=0)
    gap = (0, 0 if longest > _USUAL_NAME else 1)  # so that the table fits 80 columns
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=gap)
    # Where the screen is narrow the names are folded, never the numbers.
    shown.add_column("fault", overflow="fold")
    shown.add_column("variant", overflow="fold")
    for name in _RIGHT:
        shown.add_column(name, justify="right", no_wrap=True)
    for number, result in enumerate(results):
        new = number == 0 or results[number - 1].row.fault != result.row.fault
        last = number + 1 == len(results) or results[number + 1].row.fault != result.row.fault
        shown.add_row(*_cells(result, new), end_section=last, style=_style(result.row))
    return shown


def _style(row: Row) -> str:
    return "bold" if row.variant in OURS else ""


def _cells(result: Result, new: bool) -> list[Text]:
    row = result.row
    worst = Text(f"{'>' if result.hung else ''}{seconds(row.worst)}")
    past = Text(str(row.over_limit), style="red" if row.over_limit else "")
    low = row.goodput < _LOW
    return [
        Text(row.fault if new else ""),
        Text(row.variant),
        Text(str(row.calls)),
        Text(str(row.ok)),
        Text(seconds(row.p50)),
        Text(seconds(row.p99)),
        worst if not row.over_limit else Text(worst.plain, style="red"),
        past,
        Text(f"{row.goodput:.1%}", style="red" if low else "green"),
    ]


def seconds(value: float) -> str:
    """``0.4 ms``, ``51 ms``, ``1.02 s``."""
    if value < 0.01:
        return f"{value * 1000:.1f} ms"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def show(console: Console, results: Sequence[Result], judgement: Judgement) -> None:
    """The table and what it means."""
    console.print(table(results))
    console.print(
        f"past: calls longer than their limit + {TOLERANCE:g} s; >: still waiting when it was"
        " ended. goodput: requests done within 0.25 s of when they were due, with the store or"
        " without it.",
        style="dim",
    )
    for line in headline(results):
        console.print(line, highlight=False)
    for note in judgement.notes:
        console.print(note, style="yellow", highlight=False)
    for problem in judgement.problems:
        console.print(f"FAILED  {problem}", style="red", highlight=False)


def write_json(
    path: Path, about: Mapping[str, object], results: Sequence[Result], judgement: Judgement
) -> None:
    """Writes the file whole or not at all. OSError when it cannot be written."""
    document = {
        **about,
        "results": [asdict(result.row) for result in results],
        "checks": [check.to_dict() for check in judgement.checks],
        "verdicts": [asdict(verdict) for verdict in judgement.verdicts],
        "problems": judgement.problems,
        "notes": judgement.notes,
        "passed": judgement.passed,
        "details": [result.details() for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
