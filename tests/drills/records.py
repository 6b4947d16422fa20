"""Drills' directories made up for tests of what is drawn from them: real files, chosen calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from timedblock.drill.history import (
    HISTORY,
    SAMPLES,
    Call,
    Sample,
    write_calls,
    write_samples,
)
from timedblock.drill.load import Schedule
from timedblock.drill.loads import Kinds, Load

SCHEDULE = Schedule(rate=100.0, steady=1.0, window=4.0, grace=1.0, recovery=1.0)
VARIANTS = ("raw-default", "raw-timeout", "timedblock")

#: What became of request `number`: seconds that it took, outcome and error's type.
Fate = Callable[[int], tuple[float, str, str | None]]


def fine(number: int) -> tuple[float, str, str | None]:
    return 0.001 + number % 7 * 1e-4, "ok", None


def call(
    number: int = 0,
    took: float = 0.001,
    outcome: str = "ok",
    error: str | None = None,
    *,
    due: float | None = None,
    began: float | None = None,
    load: tuple[str, str] = ("hang", "timedblock"),
) -> Call:
    """One call; due by the schedule's rate, begun when it was due."""
    due = SCHEDULE.due(number) if due is None else due
    began = due if began is None else began
    return Call(*load, number, "get", "k", None, due, began, began + took, outcome, error)


def load_of(calls: Iterable[Call], kinds: Kinds | None = None) -> Load:
    """A load in columns."""
    kinds = kinds or Kinds()
    load = Load("hang", "timedblock")
    for one in calls:
        load.add(one, kinds)
    return load


def row(fault: str, variant: str, **given: Any) -> dict[str, Any]:
    """A result with everything well."""
    return {
        "fault": fault, "variant": variant, "calls": 400, "ok": 400, "unavailable": 0, "wrong": 0,
        "over_limit": 0, "limit": 1.0, "p50": 0.001, "p99": 0.002, "worst": 0.003, "goodput": 1.0,
        **given,
    }  # fmt: skip


def details(fault: str, variant: str, **given: Any) -> dict[str, Any]:
    return {
        "fault": fault, "variant": variant, "hung": 0, "dishonest": 0, "errors": {},
        "goodput_last_two_thirds": 1.0, "goodput_after": 1.0, "recovered": None, "opened": None,
        "closed": None, "seen": None, **given,
    }  # fmt: skip


def document(
    faults: Sequence[str], variants: Sequence[str] = VARIANTS, **given: Any
) -> dict[str, Any]:
    """A drill's document in which everything is well."""
    pairs = [(fault, variant) for fault in faults for variant in variants]
    return {
        "drill": "memcache", "version": "1.2.3", "started": "2026-11-23T15:00:00+00:00",
        "seconds": 9.0, "server": "127.0.0.1:11211", "interrupted": False,
        "schedule": asdict(SCHEDULE), "results": [row(*pair) for pair in pairs],
        "details": [details(*pair) for pair in pairs], "checks": [], "verdicts": [],
        "problems": [], "notes": [], "passed": True, **given,
    }  # fmt: skip


def failed(fault: str, words: str, variant: str = "timedblock") -> dict[str, Any]:
    """A verdict that was not held."""
    return {
        "fault": fault, "variant": variant, "name": "goodput", "bound": 0.9, "value": 0.1,
        "passed": False, "words": f"{fault}: {words}",
    }  # fmt: skip


def samples(fault: str, variant: str, end: float) -> list[Sample]:
    """A limit that is learnt, and a breaker that opens in the fault and closes after it."""
    found = []
    for tenth in range(int(end * 10)):
        at = tenth / 10
        state = "open" if 1.5 <= at < 6.2 else "half-open" if 6.2 <= at < 6.4 else "closed"
        limit, source = (1.0, "initial") if at < 0.8 else (0.05, "learnt")
        health = "ok" if state == "closed" else "down"
        found.append(Sample(fault, variant, at, limit, source, state, 0, health))
    return found


def write_drill(
    directory: Path,
    faults: Sequence[str] = ("none", "hang"),
    variants: Sequence[str] = VARIANTS,
    fate: Fate = fine,
    schedule: Schedule = SCHEDULE,
    **given: Any,
) -> Path:
    """A drill's directory: each load has the same calls, timedblock's has samples too."""
    directory.mkdir(parents=True, exist_ok=True)
    text = document(faults, variants, schedule=asdict(schedule), **given)
    (directory / "drill-memcache.json").write_text(json.dumps(text))
    write_calls(
        directory / HISTORY,
        (
            call(number, *fate(number), due=schedule.due(number), load=(fault, variant))
            for fault in faults
            for variant in variants
            for number in schedule.requests(0, schedule.end)
        ),
    )
    write_samples(
        directory / SAMPLES,
        (one for fault in faults for one in samples(fault, variants[-1], schedule.end)),
    )
    return directory
