"""What the report says in words and in its summary table, from a drill's document. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timedblock.drill.load import TOLERANCE
from timedblock.drill.loads import Drill
from timedblock.drill.report import seconds
from timedblock.drill.store import LEARNT, OURS, RAW_FRESH
from timedblock.drill.verdict import FAULT_FREE, count, is_fault_free
from timedblock.faults import FAULTS

#: Goodput below this share of the fault-free run's: requests did not go on.
_ENOUGH = 0.9
#: Seconds between two samples.
_LOOK = 0.1


@dataclass(frozen=True)
class Cell:
    """One load in the summary. ``failed`` is empty if it passed, else a word for why: the drill's
    own verdict on `OURS`; of the others, whether they would have passed: no call past the limit,
    no wrong answer, and nine tenths of the fault-free goodput in the window's last two thirds. The
    witness can't pass or fail."""

    worst: str
    goodput: float
    failed: str | None


def percent(share: float) -> str:
    """``100%`` only when it is all, ``0%`` only when it is nothing: 0.9999 is ``99.9%``."""
    tenths = min(max(round(share * 1000), 1), 999)
    return "0%" if share <= 0 else "100%" if share >= 1 else f"{tenths / 10:.1f}%"


def title(fault: str) -> str:
    """An episode's name for people."""
    name, at, target = fault.partition("@")
    return f"no fault{at}{target}" if name == FAULT_FREE else fault


def problems_of(document: Mapping[str, Any], fault: str, variant: str | None = None) -> list[str]:
    """What is wrong with one of `OURS`, or all of them, in one episode, in the drill's words."""
    start = f"{fault}: "
    return [
        one["words"].removeprefix(start)
        for one in document.get("verdicts", ())
        if not one["passed"] and one["fault"] == fault and variant in (None, one["variant"])
    ]


def cell(drill: Drill, fault: str, variant: str) -> Cell | None:
    """None where the drill has no result (it was interrupted)."""
    row = drill.row(fault, variant)
    if row is None:
        return None
    failed = None if variant == RAW_FRESH else _why_not(drill, row)
    if variant in OURS:
        failed = (failed or "failed") if problems_of(drill.document, fault, variant) else ""
    worst = f"{'> ' if row.get('hung') else ''}{seconds(row['worst'])}"
    return Cell(worst, row["goodput"], failed)


def _why_not(drill: Drill, row: Mapping[str, Any]) -> str:
    reasons = {"hung": "hung", "over_limit": "late", "wrong": "wrong", "dishonest": "error"}
    for column, word in reasons.items():
        if row.get(column):
            return word
    _, at, target = row["fault"].partition("@")
    usual = drill.row(FAULT_FREE + at + target, row["variant"])
    tail = "goodput_last_two_thirds"
    reference = (usual or {}).get(tail, 1.0)
    return "" if row.get(tail, row["goodput"]) >= _ENOUGH * reference else "goodput"


def verdict(drill: Drill) -> str:
    """The whole drill in one sentence."""
    rows = {variant: _rows(drill, variant) for variant in drill.variants}
    told = [
        _kept(drill, variant, rows[variant])
        if variant in OURS
        else _lost(drill, variant, rows[variant])
        # What it is about comes first.
        for variant in sorted(rows, key=lambda variant: variant != LEARNT)
        if rows[variant] and variant != RAW_FRESH
    ]
    return "; ".join(told) + "." if told else "No fault was run to its end."


def _rows(drill: Drill, variant: str) -> list[dict[str, Any]]:
    rows = [drill.row(fault, variant) for fault in drill.faults if not is_fault_free(fault)]
    return [row for row in rows if row is not None]


def _kept(drill: Drill, variant: str, rows: list[dict[str, Any]]) -> str:
    worst = seconds(max(row["worst"] for row in rows))
    names = [row["fault"] for row in rows]
    failed = [name for name in names if problems_of(drill.document, name, variant)]
    if failed:
        held = f"failed in {len(failed)} of {count(len(rows), 'fault')}, {', '.join(failed)}"
    else:
        held = f"kept its limit in {_all(len(rows))}"
    return f"{variant} {held} (slowest call {worst})"


def _all(number: int) -> str:
    return "the one fault" if number == 1 else f"all {number} faults"


def _lost(drill: Drill, variant: str, rows: list[dict[str, Any]]) -> str:
    lost = sum(bool(_why_not(drill, row)) for row in rows)
    hung = sum(bool(row.get("hung")) for row in rows)
    return f"{variant} failed in {lost}" + (f", and hung in {hung} of them" if hung else "")


def fault_verdict(drill: Drill, fault: str) -> str:
    """One fault in one line: what it did to ours, then to the others."""
    parts = []
    for variant in sorted(drill.variants, key=lambda variant: variant != LEARNT):
        row = drill.row(fault, variant)
        if row is None:
            parts.append(f"{variant} was not run to its end.")
        elif variant == LEARNT:
            parts.append(_ours(drill, fault, row))
        elif variant == RAW_FRESH:
            parts.append(_way(row, drill.row(fault, LEARNT)))
        else:
            parts.append(f"{variant}: {_short(row)}.")
    return " ".join(parts)


def _ours(drill: Drill, fault: str, row: Mapping[str, Any]) -> str:
    problems = problems_of(drill.document, fault, LEARNT)
    if problems:
        return f"{LEARNT} failed: {'; '.join(problems)}."
    return (
        f"{LEARNT} kept its limit of {row['limit']:g} s (worst {seconds(row['worst'])}), served"
        f" {percent(row['goodput'])} of its requests in time{_breaker(row)}."
    )


def _way(fresh: Mapping[str, Any], ours: Mapping[str, Any] | None) -> str:
    """From when on calls were answered in spite of the fault."""
    if fresh.get("again") is None:
        return "A new raw connection was never answered again."
    after = f"A new raw connection was first answered {fresh['again']:.1f} s after the fault began"
    own = (ours or {}).get("again")
    return f"{after}." if own is None else f"{after}, {LEARNT} {own:.1f} s."


def _breaker(row: Mapping[str, Any]) -> str:
    """When its breaker opened and closed, as the samples saw it (each 0.1 s)."""
    opened, closed = row.get("opened"), row.get("closed")
    if opened is None:
        return ""
    after = "" if closed is None else f" and closed {closed:.1f} s after the fault"
    if closed is not None and closed < _LOOK:
        after = " and had closed before the fault was over"
    return f"; its breaker opened after {opened:.1f} s{after}"


def _short(row: Mapping[str, Any]) -> str:
    if row.get("hung"):
        return f"{count(row['hung'], 'call')} hung, {percent(row['goodput'])} served in time"
    past = row["over_limit"]
    late = f"{count(past, 'call')} past {row['limit'] + TOLERANCE:g} s, " if past else ""
    wrong = f"{count(row['wrong'], 'wrong answer')}, " if row["wrong"] else ""
    worst = seconds(row["worst"])
    return f"{wrong}{late}worst {worst}, {percent(row['goodput'])} served in time"


def about(document: Mapping[str, Any], fault: str) -> str:
    """What happens in an episode: as its scenario says, or what its fault is."""
    name = fault.partition("@")[0]
    episodes = document.get("scenario", {}).get("episodes", ())
    titles = (one.get("title", "") for one in episodes if one["name"] == name)
    return next(titles, "") or about_fault(fault)


def about_fault(name: str) -> str:
    """What a fault of the vocabulary is, in its own first sentence; empty for other names."""
    kind = FAULTS.get(name)
    text = " ".join((kind.__doc__ or "").split()) if kind else ""
    first, dot, _ = text.partition(". ")
    return (first + dot).strip().replace("``", "")
