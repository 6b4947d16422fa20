"""What a drill leaves behind: every call and every sample, one JSON object a line.

A drill's directory (``--out``, by default ``timedblock-drill/``) holds

========================  ==================================================================
``drill-STORE.json``      the document: scenario, schedule, timeline, results, verdicts
``history.jsonl``         every call: `Call`
``samples.jsonl``         each 0.1 s, what timedblock knew in each of its loads: `Sample`
``deliveries.jsonl``      every message that a load was given, of a store with queues: `Delivery`
``report.html``           the report, whole in one file
``report.png``            its main chart
``junit.xml``             the verdicts, one test case each
========================  ==================================================================

A load is known by ``fault`` (the episode's name; ``none`` is the run without a fault) and
``variant``. All times are seconds from that load's start. Columns of ``history.jsonl``:

===========  ============================================================================
``fault``    the episode
``variant``  ``raw-default``, ``raw-timeout``, ``timedblock-fixed`` or ``timedblock``; of a cluster
             also ``raw-fresh``, a new raw connection for each call
``number``   the request's number in its load, from 0, in the order in which they came due
``op``       what was called: ``get``, ``set``; of a queue ``publish``, ``get``
``key``      which of the load's keys (a short name, not the key on the wire), or its queue
``value``    a short token of the value read or written, or of the message; None: a miss, an empty
             queue, or no answer
``due``      when the request was due; in a closed loop, when its thread was free for it
``began``    when the call began
``ended``    when it ended; of a call that hung, when it was given up
``outcome``  ``ok``; ``unavailable`` (the client said that it has no answer); ``wrong`` (an
             answer that can't be right); ``dishonest`` (an error that doesn't say so);
             ``hung`` (still waiting when its fault was lifted)
``error``    the error's type, or None
``sent``     of a call without an answer, or with one that nobody gave (a noreply): False if
             nothing had left the process, True if its outcome is unknown; else None
===========  ============================================================================

Columns of ``samples.jsonl``: ``fault``, ``variant``, ``at``, ``limit`` (the operation's limit at
that moment), ``limit_source`` (``learnt``, ``initial``, ``fixed``, ``ceiling``), ``breaker``
(``closed``, ``open``, ``half-open``, or None without one), ``in_flight`` (calls), ``health`` (the
``status`` that the monitoring endpoint answered to ``GET /health``: ``ok`` or ``degraded``. No
block of a drill is critical, so it is never ``down``).

Columns of ``deliveries.jsonl``: ``fault``, ``variant``, ``at``, ``value`` (the message's token).

The document's ``timeline`` is a list of ``{"fault", "name", "at", "until"}``: which fault of the
vocabulary (``name``) was on, in which episode (``fault``), from when to when.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

HISTORY = "history.jsonl"
SAMPLES = "samples.jsonl"
DELIVERIES = "deliveries.jsonl"
REPORT = "report.html"
PICTURE = "report.png"
JUNIT = "junit.xml"

#: What can become of a call.
OK, UNAVAILABLE, WRONG, DISHONEST, HUNG = "ok", "unavailable", "wrong", "dishonest", "hung"
OUTCOMES = (OK, UNAVAILABLE, WRONG, DISHONEST, HUNG)


class Call(NamedTuple):
    """One call to a client; the columns are described above."""

    fault: str
    variant: str
    number: int
    op: str
    key: str
    value: str | None
    due: float
    began: float
    ended: float
    outcome: str
    error: str | None = None
    sent: bool | None = None

    @property
    def duration(self) -> float:
        """Seconds of the call itself."""
        return self.ended - self.began

    @property
    def lateness(self) -> float:
        """Seconds from the moment it was due to its end: what its user saw."""
        return self.ended - self.due


class Sample(NamedTuple):
    """What timedblock knew at one moment of a load; the columns are described above."""

    fault: str
    variant: str
    at: float
    limit: float
    limit_source: str
    breaker: str | None
    in_flight: int
    health: str


class Delivery(NamedTuple):
    """A message that a load was given; the columns are described above."""

    fault: str
    variant: str
    at: float
    value: str


_Record = TypeVar("_Record", Call, Sample, Delivery)


def write_calls(path: Path, calls: Iterable[Call]) -> None:
    """Writes ``history.jsonl``, whole or not at all. OSError when it cannot be written."""
    _write(path, calls)


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Writes ``samples.jsonl``, whole or not at all. OSError when it cannot be written."""
    _write(path, samples)


def write_deliveries(path: Path, deliveries: Iterable[Delivery]) -> None:
    """Writes ``deliveries.jsonl``, whole or not at all. OSError when it cannot be written."""
    _write(path, deliveries)


def read_calls(path: Path) -> Iterator[Call]:
    """The calls of a ``history.jsonl``, as they are read. OSError if there is none; ValueError
    names the file and the line that is not a call."""
    return _read(path, Call)


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a ``samples.jsonl``, as they are read. OSError if there is none; ValueError
    names the file and the line that is not a sample."""
    return _read(path, Sample)


def read_deliveries(path: Path) -> Iterator[Delivery]:
    """The messages of a ``deliveries.jsonl``, as they are read. OSError if there is none;
    ValueError names the file and the line that is not a delivery."""
    return _read(path, Delivery)


def _write(path: Path, records: Iterable[Call | Sample | Delivery]) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(_rounded(record._asdict()), separators=(",", ":")) + "\n")
    part.replace(path)


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    """Microseconds are enough, and a fifth of the bytes."""
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in record.items()
    }


def _read(path: Path, kind: type[_Record]) -> Iterator[_Record]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield kind(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}:{number}: not a {kind.__name__}: {error}") from None
