"""The page of a drill that runs again and again: what the last runs said, fault by fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from timedblock.drill.dots import decades
from timedblock.drill.errors import DrillError
from timedblock.drill.history import REPORT
from timedblock.drill.html import write_page
from timedblock.drill.loads import document_file, read_document
from timedblock.drill.sentences import problems_of, title
from timedblock.drill.store import LEARNT
from timedblock.drill.verdict import is_fault_free

TREND = "trend.html"
#: Runs on the page, and runs in its table of verdicts.
LAST = 200
_TABLE = 24


@dataclass(frozen=True)
class Run:
    """One run's document, and its directory's name."""

    name: str
    started: datetime
    document: dict[str, Any]
    report: bool

    @property
    def status(self) -> str:
        if self.document.get("interrupted"):
            return "interrupted"
        return "passed" if self.document.get("passed") else "failed"

    def value(self, fault: str, variant: str, column: str) -> float | None:
        for row in self.document["results"]:
            if (row["fault"], row["variant"]) == (fault, variant):
                return float(row[column])
        return None

    def verdict(self, fault: str) -> str:
        """``passed``, ``failed``, or ``not run``."""
        if self.value(fault, LEARNT, "worst") is None:
            return "not run"
        return "failed" if problems_of(self.document, fault) else "passed"


def write_trend(out: Path, last: int = LAST) -> Path:
    """Writes ``trend.html`` of the ``last`` runs below ``out``, each a directory with its
    ``drill-*.json``, and gives its path. A run that can't be read is counted on the page.

    DrillError if there is no run or the page can't be written; ValueError if ``last`` is less
    than 1; ImportError, with the pip line, without jinja2.
    """
    if last < 1:
        raise ValueError(f"last must be at least 1, not {last!r}")
    runs, unread = read_runs(out)
    if not runs:
        raise DrillError(f"no run of a drill below {str(out)!r}")
    return write_page(out / TREND, TREND, trend_page(runs[-last:], unread))


def read_runs(out: Path) -> tuple[list[Run], int]:
    """The runs below ``out`` in the order of their start, and how many can't be read (one may be
    under way)."""
    runs, unread = [], 0
    for directory in sorted(path for path in out.iterdir() if path.is_dir()):
        try:
            document = read_document(document_file(directory))
            started = _moment(document)
        except (DrillError, ValueError):
            unread += 1
        else:
            runs.append(Run(directory.name, started, document, (directory / REPORT).exists()))
    return sorted(runs, key=lambda run: run.started), unread


def _moment(document: dict[str, Any]) -> datetime:
    """ValueError if the document doesn't say when it was started."""
    started = datetime.fromisoformat(str(document.get("started")))
    if started.tzinfo is None:
        raise ValueError(f"{started} has no time zone")
    return started.astimezone(timezone.utc)


def trend_page(runs: Sequence[Run], unread: int) -> dict[str, Any]:
    """Everything that the template shows."""
    faults = _in_order(runs, "fault")
    faults.sort(key=is_fault_free)
    variants = _in_order(runs, "variant")
    worsts = [row["worst"] for run in runs for row in run.document["results"]]
    low, high = decades(worsts, lowest=1e-4)
    passed = sum(run.status == "passed" for run in runs)
    return {
        "drill": runs[-1].document.get("drill", ""),
        "runs": runs,
        "shown": runs[-_TABLE:],
        "passed": passed,
        "unread": unread,
        "faults": [{"name": fault, "title": title(fault)} for fault in faults],
        "variants": variants,
        "ours": LEARNT,
        "data": {
            "at": [run.started.timestamp() for run in runs],
            "low": low,
            "high": high,
            "variants": variants,
            "ours": LEARNT,
            "faults": [_lines(runs, fault, variants) for fault in faults],
        },
    }


def _in_order(runs: Sequence[Run], column: str) -> list[str]:
    """What occurs in a column of the results, the newest run's order first."""
    rows = [row for run in reversed(runs) for row in run.document["results"]]
    return list(dict.fromkeys(row[column] for row in rows))


def _lines(runs: Sequence[Run], fault: str, variants: Sequence[str]) -> dict[str, Any]:
    return {
        column: [[run.value(fault, variant, column) for run in runs] for variant in variants]
        for column in ("goodput", "worst")
    }
