"""What the records of a load say, in numbers. Pure: no I/O, no clock."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise

from timedblock.drill.history import (
    DISHONEST,
    HUNG,
    OK,
    UNAVAILABLE,
    WRONG,
    Call,
    Delivery,
    Sample,
)
from timedblock.drill.load import GOOD_WITHIN, TOLERANCE, Schedule
from timedblock.drill.starvation import Starvation, Starved

#: A store answers again once this share of the calls due in so many seconds is answered.
_ANSWERS = 0.95
_STRETCH = 0.5
_STEP = 0.1


@dataclass(frozen=True)
class Row:
    """One fault on one variant. Seconds.

    ``calls`` requests were due in the fault's window: ``ok`` got the right answer, ``unavailable``
    an error; the rest got a wrong answer, hung, or found no free thread while the fault was on.
    ``p50``, ``p99`` and ``worst`` are the durations of those that began. ``goodput`` is the share
    that finished within 0.25 s of the moment it was due, whatever the store said. ``wrong`` and
    ``over_limit`` (longer than ``limit`` + 0.25 s) count every call of the load, the recovery's
    too.
    """

    fault: str
    variant: str
    calls: int
    ok: int
    unavailable: int
    wrong: int
    over_limit: int
    limit: float
    p50: float
    p99: float
    worst: float
    goodput: float


@dataclass(frozen=True)
class Times:
    """When what happened, in seconds; None: it didn't.

    ``recovered``: from the last fault's end until calls are answered again; ``opened`` and ``seen``
    (the monitoring endpoint isn't ok): from the first fault's beginning; ``closed``: from the last
    fault's end. ``again``: from the first fault's beginning to the end of the first answered call
    that began after one without an answer.
    """

    recovered: float | None = None
    opened: float | None = None
    closed: float | None = None
    seen: float | None = None
    again: float | None = None


@dataclass(frozen=True)
class Result:
    """A row, and what is not in it.

    ``hung`` calls were still in flight when the fault was lifted. ``dishonest`` errors were not
    the one by which the client says that it has no answer (``unavailable`` counts them, too).
    ``tail`` and ``recovery`` are the goodput of the window's last two thirds (which is judged) and
    after the fault (None if the process had to be ended). ``errors`` are the window's, by type.
    ``stalled`` calls of the window had no answer because the machine was busy with something else
    for at least half of their time; ``starved`` is how many seconds of the load it was.
    ``delivered`` messages came to a load that consumes, with a ``silence`` of so many seconds at
    most between two of them. ``flowing`` are the moments, from the first fault's beginning and each
    0.1 s, from which on nearly every call due in half a second is answered.
    """

    row: Row
    hung: int
    dishonest: int
    tail: float
    recovery: float | None
    errors: dict[str, int]
    times: Times = Times()
    stalled: int = 0
    starved: float = 0.0
    delivered: int | None = None
    silence: float | None = None
    flowing: tuple[float, ...] = ()

    def details(self) -> dict[str, object]:
        """For the document: everything but the row."""
        return {
            "fault": self.row.fault,
            "variant": self.row.variant,
            "hung": self.hung,
            "dishonest": self.dishonest,
            "goodput_last_two_thirds": self.tail,
            "goodput_after": self.recovery,
            "errors": self.errors,
            "stalled": self.stalled,
            "starved": self.starved,
            "delivered": self.delivered,
            "silence": self.silence,
            **asdict(self.times),
        }


def summarise(
    fault: str,
    variant: str,
    limit: float,
    schedule: Schedule,
    calls: Sequence[Call],
    samples: Sequence[Sample] = (),
    spans: Sequence[Starved] = (),
    deliveries: Sequence[Delivery] | None = None,
) -> Result:
    """The result of one load. ``spans`` is the time that the machine took away, ``deliveries`` the
    messages that came to a load that consumes."""
    taken = Starvation(spans)
    hung = sum(call.outcome == HUNG for call in calls)
    counted = [call for call in calls if _under_fault(call, schedule)]
    after = None if hung else _settled_goodput(calls, schedule)
    errors = Counter(call.error for call in counted if call.error)
    tail = _goodput(calls, schedule, schedule.fault_at + schedule.window / 3, schedule.window_end)
    return Result(
        _row(fault, variant, limit, schedule, calls),
        hung,
        sum(call.outcome == DISHONEST for call in calls),
        tail,
        after,
        dict(errors.most_common()),
        _times(schedule, calls, samples),
        sum(call.outcome != OK and _was_starved(call, taken) for call in counted),
        _rounded(taken.total),
        None if deliveries is None else len(deliveries),
        None if deliveries is None else _silence(deliveries, schedule),
        _flowing(schedule, calls),
    )


def _silence(deliveries: Sequence[Delivery], schedule: Schedule) -> float:
    """The longest time without a message, to the end of the faults."""
    moments = [one.at for one in deliveries if 0 <= one.at < schedule.clear_at]
    return _rounded(max(b - a for a, b in pairwise(sorted([0.0, *moments, schedule.clear_at]))))


def _row(
    fault: str,
    variant: str,
    limit: float,
    schedule: Schedule,
    calls: Sequence[Call],
) -> Row:
    counted = [call for call in calls if _under_fault(call, schedule)]
    kinds = Counter(call.outcome for call in counted)
    durations = sorted(call.duration for call in counted)
    worst = durations[-1] if durations else 0.0
    hung = any(call.outcome == HUNG for call in calls)
    return Row(
        fault=fault,
        variant=variant,
        calls=_scheduled(calls, schedule, schedule.fault_at, schedule.window_end),
        ok=kinds[OK],
        unavailable=kinds[UNAVAILABLE] + kinds[DISHONEST],
        wrong=sum(call.outcome == WRONG for call in calls),
        over_limit=sum(call.duration > limit + TOLERANCE for call in calls),
        limit=limit,
        p50=_rounded(_percentile(durations, 50)),
        p99=_rounded(_percentile(durations, 99)),
        # A call that hung was still waiting when its process was ended.
        worst=_rounded(max(worst, schedule.window) if hung else worst),
        goodput=_rounded(_goodput(calls, schedule, schedule.fault_at, schedule.window_end)),
    )


def _was_starved(call: Call, taken: Starvation) -> bool:
    """Whether the machine, not the store, took most of a call's time."""
    return call.duration > 0 and taken.seconds(call.began, call.ended) >= call.duration / 2


def _due_in(call: Call, schedule: Schedule, since: float, until: float) -> bool:
    if schedule.rate:  # by its number: the instant itself is rounded
        return call.number in schedule.requests(since, until)
    return since <= call.due < until


def _scheduled(calls: Iterable[Call], schedule: Schedule, since: float, until: float) -> int:
    """How many requests came due; in a closed loop, those that were made."""
    if schedule.rate:
        return len(schedule.requests(since, until))
    return sum(since <= call.due < until for call in calls)


def _under_fault(call: Call, schedule: Schedule) -> bool:
    """Hung ones count even if the fault caught them on their way; those that found a thread only
    when the fault was over don't: the fault did nothing to them."""
    due = _due_in(call, schedule, schedule.fault_at, schedule.window_end)
    return call.outcome == HUNG or (due and call.began < schedule.clear_at)


def _settled_goodput(calls: Iterable[Call], schedule: Schedule) -> float:
    """Of the requests of the second half of the recovery."""
    return _goodput(calls, schedule, schedule.clear_at + schedule.recovery / 2, schedule.end)


def _goodput(calls: Iterable[Call], schedule: Schedule, since: float, until: float) -> float:
    calls = list(calls)
    scheduled = _scheduled(calls, schedule, since, until)
    good = sum(
        _due_in(call, schedule, since, until)
        and call.outcome != HUNG
        and call.lateness <= GOOD_WITHIN
        for call in calls
    )
    return good / scheduled if scheduled else 0.0


def _percentile(durations: Sequence[float], percent: int) -> float:
    if len(durations) < 2:
        return durations[0] if durations else 0.0
    return statistics.quantiles(durations, n=100, method="inclusive")[percent - 1]


def _rounded(value: float) -> float:
    return round(value, 6)


# Times


def _times(schedule: Schedule, calls: Sequence[Call], samples: Sequence[Sample]) -> Times:
    hurt = [one for one in samples if one.at >= schedule.fault_at]
    healing = [one for one in samples if one.at >= schedule.clear_at]
    open_at = next((one.at for one in hurt if one.breaker not in (None, "closed")), None)
    seen_at = next((one.at for one in hurt if one.health != "ok"), None)
    closed_at = _settled_at([(one.at, one.breaker in (None, "closed")) for one in healing])
    return Times(
        recovered=_recovered(schedule, calls),
        opened=None if open_at is None else _rounded(open_at - schedule.fault_at),
        closed=None if closed_at is None else _rounded(closed_at - schedule.clear_at),
        seen=None if seen_at is None else _rounded(seen_at - schedule.fault_at),
        again=_again(schedule, calls),
    )


def _settled_at(moments: Sequence[tuple[float, bool]]) -> float | None:
    """The first moment from which on it held to the end."""
    settled = None
    for at, holds in moments:
        if not holds:
            settled = None
        elif settled is None:
            settled = at
    return settled


def _recovered(schedule: Schedule, calls: Sequence[Call]) -> float | None:
    """Seconds after the fault to the first stretch in which nearly every call was answered."""
    after = Schedule(schedule.rate, schedule.clear_at, 0.0, 0.0, schedule.recovery)
    return next(iter(_flowing(after, calls)), None)


def _flowing(schedule: Schedule, calls: Sequence[Call]) -> tuple[float, ...]:
    """The moments since the fault began, each 0.1 s, that begin such a stretch."""
    known = sorted(
        (call.due, call.outcome == OK) for call in calls if call.due >= schedule.fault_at
    )
    dues = [due for due, _ in known]
    answered = list(accumulate((ok for _, ok in known), initial=0))
    steps = max(0, round((schedule.end - schedule.fault_at - _STRETCH) / _STEP) + 1)
    found = []
    for step in range(steps):
        since = schedule.fault_at + step * _STEP
        first, last = (bisect_left(dues, at) for at in (since, since + _STRETCH))
        if last > first and answered[last] - answered[first] >= _ANSWERS * (last - first):
            found.append(_rounded(step * _STEP))
    return tuple(found)


def _again(schedule: Schedule, calls: Sequence[Call]) -> float | None:
    since = [c.began for c in calls if c.began >= schedule.fault_at and c.outcome != OK]
    if not since:
        return None
    ended = [c.ended for c in calls if c.began >= min(since) and c.outcome == OK]
    return _rounded(min(ended) - schedule.fault_at) if ended else None
