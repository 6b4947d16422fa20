"""The lines and stacks of the report's charts, from a load's calls and samples. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from timedblock.drill.history import DISHONEST, HUNG, OK, OUTCOMES, UNAVAILABLE, WRONG, Sample
from timedblock.drill.loads import Load, Times
from timedblock.drill.nines import SERVED, due_between, served

#: Seconds that one bar of a stack may stand for; the first that gives at most so many bars.
_WIDTHS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_MOST_BARS = 64
#: What the stack calls an answer, or the honest word that there is none, that came too late to be
#: of use; and a request for which no thread was ever free.
LATE, NEVER_BEGAN = "late", "not begun"
STACK = (OK, UNAVAILABLE, LATE, WRONG, DISHONEST, HUNG, NEVER_BEGAN)
BREAKER_STATES = ("closed", "half-open", "open")

_HUNG = OUTCOMES.index(HUNG)


@dataclass(frozen=True)
class Bars:
    """Requests by the time when they were due, and when they ended; a list has one number a bar.

    ``stack`` has a list for each of `STACK`: requests a second, by what became of those that came
    due then. ``finished`` and ``served`` are calls a second, by when they ended; ``offered`` is
    the open loop's rate (None in a closed one).
    """

    width: float
    stack: list[list[float]]
    finished: list[float]
    served: list[float]
    offered: float | None


def bar_width(end: float) -> float:
    """Seconds a bar, for a load of ``end`` seconds."""
    return next((w for w in _WIDTHS if end / w <= _MOST_BARS), math.ceil(end / _MOST_BARS))


def bars(load: Load, times: Times) -> Bars:
    """The stack and the throughput of one load."""
    width = bar_width(times.end)
    count = max(1, math.ceil(times.end / width - 1e-9))
    stack = [[0.0] * count for _ in STACK]
    finished, in_time = [0.0] * count, [0.0] * count
    for number, (due, ended, outcome) in enumerate(
        zip(load.due, load.ended, load.outcome, strict=True)
    ):
        good = served(load, number)
        what = LATE if outcome in SERVED and not good else OUTCOMES[outcome]
        _add(stack[STACK.index(what)], due, width)
        if outcome != _HUNG:  # it was given up: nothing was finished
            _add(finished, ended, width)
        if good:
            _add(in_time, ended, width)
    # A load whose calls hung was ended with its fault: nothing is known of it after that.
    _add_missing(stack, times, width, times.clear_at if hung(load) else times.end)
    # The last bar may be a part of one.
    spans = [min(width, times.end - n * width) for n in range(count)]
    rates = [[round(v / s, 2) for v, s in zip(row, spans, strict=True)] for row in stack]
    ends = [
        [round(v / s, 2) for v, s in zip(row, spans, strict=True)] for row in (finished, in_time)
    ]
    return Bars(width, rates, ends[0], ends[1], times.rate)


def hung(load: Load) -> int:
    """How many of its calls hung."""
    return load.outcome.count(_HUNG)


def _add(row: list[float], at: float, width: float) -> None:
    place = int(at / width)
    if 0 <= place < len(row):  # what ended after the drill's end is in no bar
        row[place] += 1


def _add_missing(stack: list[list[float]], times: Times, width: float, end: float) -> None:
    """Requests that came due before ``end`` and are in no record: no thread ever took them."""
    for place in range(len(stack[-1])):
        since, until = place * width, min((place + 1) * width, end)
        began = sum(row[place] for row in stack)
        stack[-1][place] = max(0.0, due_between(times, since, until) - began)


#: Times and values of a line that keeps its value until the next.
Steps = tuple[list[float], list[float]]


def learnt_limit(samples: Sequence[Sample]) -> Steps:
    """The operation's limit, seconds."""
    return _changes((s.at, s.limit) for s in samples)


def breaker(samples: Sequence[Sample]) -> Steps:
    """The breaker's state: its place in `BREAKER_STATES`. Empty without a breaker."""
    known = {state: float(place) for place, state in enumerate(BREAKER_STATES)}
    return _changes((s.at, known[s.breaker]) for s in samples if s.breaker in known)


def _changes(points: Iterable[tuple[float, float]]) -> Steps:
    """The points where the value changes, the first and the last."""
    all_points = list(points)
    kept = all_points[:1]
    kept += [b for a, b in pairwise(all_points) if b[1] != a[1]]
    if all_points and kept[-1] != all_points[-1]:
        kept.append(all_points[-1])
    return [round(at, 3) for at, _ in kept], [value for _, value in kept]
