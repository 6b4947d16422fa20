"""What happened in a simulation, call by call, in columns."""

from __future__ import annotations

from array import array
from typing import NamedTuple

#: Outcomes of a call.
OK, CUT, FAILED, REFUSED = range(4)


class Sample(NamedTuple):
    """The learnt limit at an instant (seconds), and the breaker's state."""

    at: float
    limit: float
    breaker: str


class Trace:
    """Calls in the order of their ends.

    Attributes:
        began, elapsed: seconds.
        outcome: `OK`, `CUT` (ran into a limit), `FAILED`, `REFUSED` (not started: breaker,
            bulkhead or deadline).
        calls: calls asked for, those under way included.
        attempts: requests sent.
        cuts: attempts that were cut.
        late: those of them whose answer came later.
        cut_began, late_began: when the attempts began that were cut, and that were answered late.
        limits: the limit every half second, where `Client.watch` was asked for.
        breaker: (instant, state) of every change.
    """

    def __init__(self) -> None:
        self.began = array("d")
        self.elapsed = array("d")
        self.outcome = array("B")
        self.calls = self.attempts = self.cuts = self.late = 0
        self.cut_began = array("d")
        self.late_began = array("d")
        self.limits: list[Sample] = []
        self.breaker: list[tuple[float, str]] = []

    def add(self, began: float, ended: float, outcome: int) -> None:
        """One call is over."""
        self.began.append(began)
        self.elapsed.append(ended - began)
        self.outcome.append(outcome)

    def __len__(self) -> int:
        return len(self.began)

    def per(self, seconds: float, since: float, until: float) -> list[tuple[int, int]]:
        """(calls, good ones) begun in each stretch of `seconds` from `since`."""
        count = max(1, round((until - since) / seconds))
        bins = [[0, 0] for _ in range(count)]
        for began, outcome in zip(self.began, self.outcome, strict=True):
            index = int((began - since) // seconds)
            if 0 <= index < count:
                bins[index][0] += 1
                bins[index][1] += outcome == OK
        return [(calls, good) for calls, good in bins]

    def share_ok(self, since: float, until: float) -> float:
        """The share of good ones among the calls begun from `since` to `until`."""
        ((calls, good),) = self.per(until - since, since, until)
        return good / calls if calls else float("nan")
