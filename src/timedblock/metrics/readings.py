"""One reading of all counters and states, in series that are bounded and never fall (L5)."""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from operator import add, mul, sub
from typing import TYPE_CHECKING, Generic, TypeVar

from .. import fork
from ..endpoint import endpoints
from ..latency import SIZE, middle
from ..policy.breaker import CLOSED, HALF_OPEN, OPEN
from ..registry import BLOCKS, OTHER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..block import Operation, TimedBlock
    from ..endpoint import Endpoint
    from ..latency import Histogram

#: Upper bounds of the latency histogram's buckets, in seconds; +Inf comes after.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Past so many pairs of block and endpoint, new ones are added up as "other".
MOST_SERIES = 500
STATES = (CLOSED, HALF_OPEN, OPEN)

_MIDDLES = [middle(index) for index in range(SIZE)]
# Our fine buckets, 2 % wide, are parted by their middles.
_EDGES = [0, *(bisect_right(_MIDDLES, bound) for bound in BOUNDS), SIZE]

#: (block, endpoint); a block of the application's own has the endpoint ""
Key = tuple[str, str]
_Values = tuple[float, ...]
#: What each series counts, in this order; `seconds` is what all answered attempts took together.
COUNTERS = (
    "ok",
    "unwell",
    "unavailable",
    "late",
    "stalled",
    "cut",
    "would_cut",
    "would_reject",
    "seconds",
)
_LATENCY = COUNTERS.index("seconds")
_NOTHING: _Values = (0.0,) * (len(COUNTERS) + len(BOUNDS) + 1)


@dataclass(frozen=True)
class Reading:
    """One block on one endpoint. The counters only grow, whatever blocks come and go.

    Attributes:
        counted: by the names of `COUNTERS`; ``cut`` are attempts that ran into their limit, and
            ``seconds`` is right within 1 %.
        buckets: answered attempts between the bounds of `BOUNDS`, not cumulative.
        limit: of one attempt now, in seconds; infinity without one.
        histogram: that of the slowest, for its quantiles.
        observing: it only observes: limit and breaker are on paper.
    """

    block: str
    endpoint: str
    counted: dict[str, float]
    buckets: _Values
    limit: float
    histogram: Histogram
    learnt: bool
    observing: bool
    in_flight: int


@dataclass(frozen=True)
class EndpointReading:
    """One endpoint: its pool (connections by what they do), connects so far, repeats left."""

    endpoint: str
    connections: dict[str, int]
    connects: float
    budget: float


def _values(operation: Operation, before: _Values) -> _Values:
    """The counters of one operation, which were `before`; takes no lock."""
    histogram, tally = operation.histogram, operation.tally
    counts = histogram.counts[:]
    answered = sum(counts)
    latency = before[_LATENCY:]
    if answered != sum(latency[1:]):
        parted = (sum(counts[low:high]) for low, high in pairwise(_EDGES))
        latency = (sum(map(mul, counts, _MIDDLES)), *parted)
    return (
        answered + histogram.plain_total,
        tally.unwell,
        tally.unavailable,
        tally.late,
        tally.stalled,
        histogram.cut_total,
        tally.would_cut,
        tally.would_reject,
        *latency,
    )


def _combined(operation: Callable[[float, float], float], one: _Values, other: _Values) -> _Values:
    return tuple(map(operation, one, other))


T = TypeVar("T")


class _Series(Generic[T]):
    """What operations (or endpoints) of one name counted, those that are gone included."""

    def __init__(self, read: Callable[[T, _Values], _Values], nothing: _Values) -> None:
        self._read = read
        self._nothing = self._base = nothing
        # by the operation's id, which another one may get later
        self._seen: dict[int, tuple[weakref.ref[T], _Values]] = {}

    def total(self, things: Iterable[T]) -> _Values:
        """The counts of `things`, and the last known ones of those that are gone."""
        for number, (ref, last) in list(self._seen.items()):
            if ref() is None:
                self._base = _combined(add, self._base, last)
                del self._seen[number]
        total = self._base
        for one in things:
            _, before = self._seen.get(id(one), (None, self._nothing))
            values = self._read(one, before)
            self._seen[id(one)] = weakref.ref(one), values
            total = _combined(add, total, values)
        return total

    def start_at(self, things: Iterable[T]) -> None:
        """Count from here on: what was counted so far is another process's."""
        self._base = _combined(sub, self._nothing, self.total(things))


def _of_operations() -> _Series[Operation]:
    return _Series(_values, _NOTHING)


def _of_endpoints() -> _Series[Endpoint]:
    return _Series(lambda one, before: (one.connects,), (0.0,))


class Readings:
    """Reads every block. Lock: `_lock` guards the series; it is never held across a callback."""

    def __init__(self, *, keep: bool = False) -> None:
        """`keep`: a series that no block has any more goes on when one comes back."""
        self._keep = keep
        self._series: dict[Key, _Series[Operation]] = {}
        self._connects: dict[str, _Series[Endpoint]] = {}
        self._lock = threading.Lock()
        fork.register(self)

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def start_here(self) -> None:
        """Count from here on (after a fork)."""
        with self._lock:
            self._series.clear()
            self._connects.clear()
            for key, blocks in self._by_key().items():
                self._series[key].start_at({block._operation for block in blocks})
            for name, ends in self._by_name().items():
                self._connects[name].start_at(ends)

    def blocks(self) -> list[Reading]:
        """Every block on each endpoint; of those that are gone only what they counted is kept."""
        with self._lock:
            found = self._by_key()
            if not self._keep:
                for gone in self._series.keys() - found.keys():
                    del self._series[gone]
            return [self._reading(key, found[key]) for key in sorted(found)]

    def _by_key(self) -> dict[Key, list[TimedBlock]]:
        found: dict[Key, list[TimedBlock]] = {}
        for block in list(BLOCKS):
            key = block.name, "" if block.endpoint is None else block.endpoint.name
            if key not in self._series:
                if len(self._series) >= MOST_SERIES:
                    key = OTHER, OTHER
                self._series.setdefault(key, _of_operations())
            found.setdefault(key, []).append(block)
        return found

    def _reading(self, key: Key, blocks: list[TimedBlock]) -> Reading:
        total = self._series[key].total({block._operation for block in blocks})
        slowest = max(blocks, key=lambda block: block.limit)
        for block in blocks:
            block.sweep()  # calls that an interrupt lost aren't in flight
        return Reading(
            *key,
            counted=dict(zip(COUNTERS, total, strict=False)),
            buckets=total[len(COUNTERS) :],
            limit=slowest.limit,
            histogram=slowest.histogram,
            learnt=slowest.limit_source == "learnt",
            observing=slowest.observing,
            in_flight=sum(len(block.in_flight) for block in blocks),
        )

    def endpoints(self) -> list[EndpointReading]:
        """Every endpoint in use; past `MOST_SERIES` they are added up as "other"."""
        with self._lock:
            found = self._by_name()
            if not self._keep:
                for gone in self._connects.keys() - found.keys():
                    del self._connects[gone]
            return [
                EndpointReading(
                    name,
                    _connections(found[name]),
                    self._connects[name].total(found[name])[0],
                    sum(one.budget.allowed(one.clock.monotonic()) for one in found[name]),
                )
                for name in sorted(found)
            ]

    def _by_name(self) -> dict[str, list[Endpoint]]:
        found: dict[str, list[Endpoint]] = {}
        for one in endpoints():
            name = one.name
            if name not in self._connects:
                if len(self._connects) >= MOST_SERIES:
                    name = OTHER
                self._connects.setdefault(name, _of_endpoints())
            found.setdefault(name, []).append(one)
        return found


def _connections(ends: list[Endpoint]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in ends:
        for what, count in one.connections().items():
            total[what] = total.get(what, 0) + count
    return total


def breakers() -> dict[str, dict[str, int]]:
    """How many breakers of each name are in each state; `MOST_SERIES` names at most.

    An endpoint's breaker has the endpoint's name, that of an application's own block the block's.
    """
    named = [(one.name, one.circuit) for one in endpoints()]
    named += [(block.name, block.circuit) for block in list(BLOCKS) if block.endpoint is None]
    found: dict[str, dict[str, int]] = {}
    for name, circuit in sorted(named, key=lambda pair: pair[0]):
        if circuit is not None:
            known = name if name in found or len(found) < MOST_SERIES else OTHER
            found.setdefault(known, dict.fromkeys(STATES, 0))[circuit.state] += 1
    return found
