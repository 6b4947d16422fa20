"""What the report says in words and in its summary table, from a drill's document. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timedblock.drill.load import TOLERANCE
from timedblock.drill.loads import Drill
from timedblock.drill.report import seconds
from timedblock.drill.series import breaker_delays
from timedblock.drill.verdict import ENOUGH, FAULT_FREE, count
from timedblock.faults import FAULTS

#: The variant that the drill judges.
OURS = "timedblock"


@dataclass(frozen=True)
class Cell:
    """One load in the summary. ``passed``: the drill's own verdict on `OURS`; of the others,
    whether they would have passed: no call past the limit, no wrong answer, and nine tenths of
    the fault-free goodput in the window's last two thirds."""

    worst: str
    goodput: float
    passed: bool
    hung: int


def percent(share: float) -> str:
    """``100%`` only when it is all, ``0%`` only when it is nothing: 0.9999 is ``99.9%``."""
    tenths = min(max(round(share * 1000), 1), 999)
    return "0%" if share <= 0 else "100%" if share >= 1 else f"{tenths / 10:.1f}%"


def problems_of(document: Mapping[str, Any], fault: str) -> list[str]:
    """The drill's problems with `OURS` in one fault, without the fault's name."""
    start = f"{fault}: "
    return [p.removeprefix(start) for p in document.get("problems", ()) if p.startswith(start)]


def cell(drill: Drill, fault: str, variant: str) -> Cell | None:
    """None where the drill has no result (it was interrupted)."""
    row = drill.row(fault, variant)
    if row is None:
        return None
    hung = int(row.get("hung", 0))
    passed = _would_pass(drill, row)
    if variant == OURS:
        passed = not problems_of(drill.document, fault)
    return Cell(f"{'> ' if hung else ''}{seconds(row['worst'])}", row["goodput"], passed, hung)


def _would_pass(drill: Drill, row: Mapping[str, Any]) -> bool:
    if row["over_limit"] or row["wrong"] or row.get("hung") or row.get("dishonest"):
        return False
    usual = drill.row(FAULT_FREE, row["variant"])
    tail = "goodput_last_two_thirds"
    reference = (usual or {}).get(tail, 1.0)
    return bool(row.get(tail, row["goodput"]) >= ENOUGH * reference)


def verdict(drill: Drill) -> str:
    """The whole drill in one sentence."""
    mine = _rows(drill, OURS)
    if not mine:
        return "No fault was run to its end."
    worst = seconds(max(row["worst"] for row in mine))
    over = [row["fault"] for row in mine if row["over_limit"]]
    if over:
        held = f"{OURS} went past its limit in {len(over)} of {count(len(mine), 'fault')}"
    else:
        held = f"{OURS} kept its limit in {_all(len(mine))}"
    others = [_other(drill, variant) for variant in drill.variants if variant != OURS]
    return "; ".join([f"{held} (slowest call {worst})", *filter(None, others)]) + "."


def _all(number: int) -> str:
    return "the one fault" if number == 1 else f"all {number} faults"


def _rows(drill: Drill, variant: str) -> list[dict[str, Any]]:
    rows = [drill.row(fault, variant) for fault in drill.faults if fault != FAULT_FREE]
    return [row for row in rows if row is not None]


def _other(drill: Drill, variant: str) -> str:
    rows = _rows(drill, variant)
    lost = sum(not _would_pass(drill, row) for row in rows if row["variant"] != OURS)
    hung = sum(bool(row.get("hung")) for row in rows)
    if not rows:
        return ""
    return f"{variant} failed in {lost}" + (f", and hung in {hung} of them" if hung else "")


def fault_verdict(drill: Drill, fault: str) -> str:
    """One fault in one line: what it did to ours, then to the others."""
    parts = [_ours(drill, fault)]
    for variant in drill.variants:
        row = None if variant == OURS else drill.row(fault, variant)
        if row is not None:
            parts.append(f"{variant}: {_short(row)}.")
    return " ".join(part for part in parts if part)


def _ours(drill: Drill, fault: str) -> str:
    row = drill.row(fault, OURS)
    if row is None:
        return f"{OURS} was not run to its end."
    problems = problems_of(drill.document, fault)
    if problems:
        return f"{OURS} failed: {'; '.join(problems)}."
    return (
        f"{OURS} kept its limit of {row['limit']:g} s (worst {seconds(row['worst'])}), served"
        f" {percent(row['goodput'])} of its requests in time{_breaker(drill, fault)}."
    )


def _breaker(drill: Drill, fault: str) -> str:
    load = drill.loads.get((fault, OURS))
    spans = drill.spans(fault)
    if load is None or not spans:
        return ""
    opened, closed = breaker_delays(load.samples, spans[0][1], spans[-1][2])
    if opened is None:
        return ", and its breaker stayed closed" if load.samples else ""
    after = "" if closed is None else f" and closed {closed:.1f} s after the fault"
    return f"; its breaker opened after {opened:.1f} s{after}"


def _short(row: Mapping[str, Any]) -> str:
    if row.get("hung"):
        return f"{count(row['hung'], 'call')} hung, {percent(row['goodput'])} served in time"
    past = row["over_limit"]
    late = f"{count(past, 'call')} past {row['limit'] + TOLERANCE:g} s, " if past else ""
    wrong = f"{count(row['wrong'], 'wrong answer')}, " if row["wrong"] else ""
    worst = seconds(row["worst"])
    return f"{wrong}{late}worst {worst}, {percent(row['goodput'])} served in time"


def about_fault(name: str) -> str:
    """What a fault of the vocabulary is, in its own first sentence; empty for other names."""
    kind = FAULTS.get(name)
    text = " ".join((kind.__doc__ or "").split()) if kind else ""
    first, dot, _ = text.partition(". ")
    return (first + dot).strip().replace("``", "")
