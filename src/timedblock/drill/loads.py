"""What a drill left in its directory, as the report needs it: the document and the loads.

A load's calls are kept in columns (`array`), 34 bytes a call: a drill at the highest rate makes
millions of them.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timedblock.drill.errors import DrillError
from timedblock.drill.history import (
    HISTORY,
    OUTCOMES,
    SAMPLES,
    Call,
    Sample,
    read_calls,
    read_samples,
)
from timedblock.drill.verdict import is_fault_free

#: A fault of a load, by name, on from .. until (seconds from the load's start).
Span = tuple[str, float, float]
#: Different (outcome, error) pairs that are told apart; the later ones have the error "other".
_MOST_KINDS = 250


@dataclass
class Kinds:
    """The (outcome, error) pairs that occurred, each by a small number."""

    pairs: list[tuple[int, str | None]] = field(default_factory=list)
    _numbers: dict[tuple[int, str | None], int] = field(default_factory=dict)

    def number(self, outcome: int, error: str | None) -> int:
        found = self._numbers.get((outcome, error))
        if found is not None:
            return found
        pair = (outcome, error if len(self.pairs) < _MOST_KINDS else "other")
        number = self._numbers.get(pair, len(self.pairs))
        if number == len(self.pairs):
            self.pairs.append(pair)
        self._numbers[outcome, error] = self._numbers[pair] = number
        return number


@dataclass
class Load:
    """One variant under one fault: its calls in columns (seconds from its start), its samples."""

    fault: str
    variant: str
    due: array[float] = field(default_factory=lambda: array("d"))
    began: array[float] = field(default_factory=lambda: array("d"))
    ended: array[float] = field(default_factory=lambda: array("d"))
    outcome: array[int] = field(default_factory=lambda: array("B"))
    kind: array[int] = field(default_factory=lambda: array("B"))
    samples: list[Sample] = field(default_factory=list)

    def add(self, call: Call, kinds: Kinds) -> None:
        outcome = OUTCOMES.index(call.outcome)
        self.due.append(call.due)
        self.began.append(call.began)
        self.ended.append(call.ended)
        self.outcome.append(outcome)
        self.kind.append(kinds.number(outcome, call.error))

    def durations(self) -> array[float]:
        """Seconds of the calls themselves."""
        return array("d", (b - a for a, b in zip(self.began, self.ended, strict=True)))

    def __len__(self) -> int:
        return len(self.due)


@dataclass(frozen=True)
class Times:
    """Of an episode's schedule, what a chart needs. ``rate`` is None in a closed loop: nothing
    was due that didn't begin."""

    rate: float | None
    fault_at: float
    window_end: float
    clear_at: float
    end: float

    @staticmethod
    def of(given: Mapping[str, Any]) -> Times:
        """From a schedule as the document has it."""
        fault_at = float(given.get("steady", 0.0))
        window_end = fault_at + float(given.get("window", 0.0))
        clear_at = window_end + float(given.get("grace", 0.0))
        rate = given.get("rate")
        end = clear_at + float(given.get("recovery", 0.0))
        return Times(float(rate) if rate else None, fault_at, window_end, clear_at, end)


@dataclass(frozen=True)
class Drill:
    """A drill's directory, read. ``loads`` are in the order of the document's results."""

    file: Path
    document: dict[str, Any]
    loads: dict[tuple[str, str], Load]
    kinds: Kinds

    @property
    def faults(self) -> list[str]:
        """The episodes, in order; the run without a fault is one of them."""
        return list(dict.fromkeys(fault for fault, _ in self._keys()))

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(variant for _, variant in self._keys()))

    def durations(self) -> Iterator[float]:
        """Seconds of all calls, and the limits that they were held to."""
        for load in self.loads.values():
            yield from load.durations()
        for row in self.document.get("results", ()):
            yield row["limit"]

    def times(self, fault: str) -> Times:
        """The schedule of an episode."""
        own = self.document.get("schedules", {}).get(fault)
        return Times.of(own or self.document.get("schedule", {}))

    def spans(self, fault: str) -> list[Span]:
        """Which faults were on, from when to when, in the loads of ``fault``."""
        told = [one for one in self.document.get("timeline", ()) if one["fault"] == fault]
        if told:
            return [(one["name"], float(one["at"]), float(one["until"])) for one in told]
        if is_fault_free(fault):
            return []
        times = self.times(fault)
        return [(fault, times.fault_at, times.clear_at)]

    def row(self, fault: str, variant: str) -> dict[str, Any] | None:
        """The document's result of one load, ``details`` included; None if it has none."""
        found = [
            row
            for part in ("results", "details")
            for row in self.document.get(part, ())
            if (row["fault"], row["variant"]) == (fault, variant)
        ]
        return {name: value for row in found for name, value in row.items()} or None

    def _keys(self) -> Iterator[tuple[str, str]]:
        for row in self.document.get("results", ()):
            yield row["fault"], row["variant"]
        yield from self.loads


def document_file(directory: Path) -> Path:
    """The drill's document in its directory. DrillError if there is none, or more than one."""
    found = sorted(directory.glob("drill-*.json"))
    if len(found) != 1:
        what = "no drill-*.json" if not found else f"{len(found)} files drill-*.json"
        raise DrillError(f"{str(directory)!r} has {what}: not the directory of one drill")
    return found[0]


def read_document(file: Path) -> dict[str, Any]:
    """A drill's document. DrillError if it can't be read, or is another file."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DrillError(f"cannot read {str(file)!r}: {error}") from error
    if not isinstance(document, dict) or "results" not in document:
        raise DrillError(f"{str(file)!r} is not a drill's document: it has no 'results'")
    return document


def read_drill(directory: Path) -> Drill:
    """Reads what a drill wrote. DrillError says which file can't be read, and its line."""
    file = document_file(directory)
    document = read_document(file)
    kinds = Kinds()
    loads: dict[tuple[str, str], Load] = {}
    for row in document["results"]:
        loads[row["fault"], row["variant"]] = Load(row["fault"], row["variant"])
    try:
        for call in read_calls(directory / HISTORY):
            key = (call.fault, call.variant)
            loads.setdefault(key, Load(*key)).add(call, kinds)
        if (directory / SAMPLES).exists():
            for sample in read_samples(directory / SAMPLES):
                key = (sample.fault, sample.variant)
                loads.setdefault(key, Load(*key)).samples.append(sample)
    except (OSError, ValueError) as error:
        raise DrillError(f"cannot read the drill's records: {error}") from error
    return Drill(file, document, loads, kinds)
