"""What the records of a load say, and whether it is good enough. Pure: no I/O, no clock."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass

from timedblock.drill.load import GOOD_WITHIN, TOLERANCE, Call, Schedule

#: Goodput must be at least this share of the reference's.
ENOUGH = 0.9
#: Below this, a raw client's fault-free goodput says that the machine is too busy.
USUAL = 0.98
#: The name of the run without a fault.
FAULT_FREE = "none"


@dataclass(frozen=True)
class Row:
    """One fault on one variant. Seconds.

    ``calls`` requests were due in the fault's window: ``ok`` got the right answer, ``unavailable``
    an error; the rest got a wrong answer, hung, or found no free thread while the fault was on.
    ``p50``, ``p99`` and ``worst`` are the durations of those that began. ``goodput`` is the share
    that finished within 0.25 s of the moment it was due, whatever the cache said. ``wrong`` and
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
class Result:
    """A row, and what is not in it.

    ``hung`` calls were still in flight when the fault was lifted. ``dishonest`` errors were not
    the one by which the client says that it has no answer (``unavailable`` counts them, too).
    ``tail`` and ``recovery`` are the goodput of the window's last two thirds (which is judged) and
    after the fault (None if the process had to be ended). ``errors`` are the window's, by type.
    """

    row: Row
    hung: int
    dishonest: int
    tail: float
    recovery: float | None
    errors: dict[str, int]


@dataclass(frozen=True)
class Check:
    """A goodput that was judged: ``value`` must be at least 0.9 of ``reference``."""

    fault: str
    value: float
    reference: float
    against: str

    @property
    def passed(self) -> bool:
        return self.value >= ENOUGH * self.reference

    def to_dict(self) -> dict[str, object]:
        return {**asdict(self), "passed": self.passed}


def summarise(
    fault: str, variant: str, limit: float, schedule: Schedule, calls: Sequence[Call]
) -> Result:
    """The result of one load."""
    due = schedule.window_requests()
    hung = sum(call.kind == "hung" for call in calls)
    counted = [call for call in calls if _under_fault(call, schedule, due)]
    kinds = Counter(call.kind for call in counted)
    durations = sorted(call.duration for call in counted)
    worst = durations[-1] if durations else 0.0
    row = Row(
        fault=fault,
        variant=variant,
        calls=len(due),
        ok=kinds["ok"],
        unavailable=kinds["error"] + kinds["dishonest"],
        wrong=sum(call.kind == "wrong" for call in calls),
        over_limit=sum(call.duration > limit + TOLERANCE for call in calls),
        limit=limit,
        p50=_rounded(_percentile(durations, 50)),
        p99=_rounded(_percentile(durations, 99)),
        # A call that hung was still waiting when its process was ended.
        worst=_rounded(max(worst, schedule.window) if hung else worst),
        goodput=_rounded(_goodput(calls, schedule, due)),
    )
    dishonest = sum(call.kind == "dishonest" for call in calls)
    after = None if hung else _goodput(calls, schedule, _settled(schedule))
    errors = Counter(call.error for call in counted if call.error)
    tail = _goodput(calls, schedule, schedule.tail_requests())
    return Result(row, hung, dishonest, tail, after, dict(errors.most_common()))


def _under_fault(call: Call, schedule: Schedule, due: range) -> bool:
    """Hung ones count even if the fault caught them on their way; those that found a thread only
    when the fault was over don't: the fault did nothing to them."""
    return call.kind == "hung" or (call.number in due and call.began < schedule.clear_at)


def _settled(schedule: Schedule) -> range:
    """The requests of the second half of the recovery."""
    return schedule.requests(schedule.clear_at + schedule.recovery / 2, schedule.end)


def _goodput(calls: Iterable[Call], schedule: Schedule, due: range) -> float:
    good = sum(
        call.number in due
        and call.kind != "hung"
        and call.ended - schedule.due(call.number) <= GOOD_WITHIN
        for call in calls
    )
    return good / len(due) if due else 0.0


def _percentile(durations: Sequence[float], percent: int) -> float:
    if len(durations) < 2:
        return durations[0] if durations else 0.0
    return statistics.quantiles(durations, n=100, method="inclusive")[percent - 1]


def _rounded(value: float) -> float:
    return round(value, 6)


@dataclass(frozen=True)
class Judgement:
    """Whether timedblock held what it promises, in the faults that were run; ``notes`` say what
    makes the run itself doubtful."""

    checks: list[Check]
    problems: list[str]
    notes: list[str]

    @property
    def passed(self) -> bool:
        return not self.problems


def judge(results: Sequence[Result], ours: str, reference: str, gone: Collection[str]) -> Judgement:
    """Judges the variant ``ours``: in the faults ``gone`` against its own fault-free run, in the
    others against the variant ``reference`` in the same fault."""
    by_key = {(result.row.fault, result.row.variant): result for result in results}
    problems: list[str] = []
    checks: list[Check] = []
    for result in results:
        row = result.row
        if row.variant != ours:
            continue
        problems += _broken_promises(result)
        if row.fault != FAULT_FREE:
            against = (FAULT_FREE, ours) if row.fault in gone else (row.fault, reference)
            words = "without fault" if row.fault in gone else reference
            checks.append(Check(row.fault, result.tail, by_key[against].tail, words))
    problems += [_shortfall(check) for check in checks if not check.passed]
    return Judgement(checks, problems, _notes(results, ours))


def _broken_promises(result: Result) -> list[str]:
    row = result.row
    problems = []
    if row.over_limit:
        problems.append(
            f"{row.fault}: {count(row.over_limit, 'call')} took longer than the limit of"
            f" {row.limit:g} s (worst {row.worst:.2f} s)"
        )
    if row.wrong:
        problems.append(f"{row.fault}: {count(row.wrong, 'wrong answer')}")
    if result.dishonest:
        names = ", ".join(result.errors)
        errors = count(result.dishonest, "error")
        problems.append(f"{row.fault}: {errors} other than Unavailable (errors seen: {names})")
    return problems


def _shortfall(check: Check) -> str:
    return (
        f"{check.fault}: goodput {check.value:.1%} in the last two thirds of the fault"
        f" ({check.against}: {check.reference:.1%})"
    )


def _notes(results: Sequence[Result], ours: str) -> list[str]:
    raw = [result for result in results if result.row.variant != ours]
    return [
        *(_too_busy(r) for r in raw if r.row.fault == FAULT_FREE and r.row.goodput < USUAL),
        *(f"{fault}: no raw client noticed it, so it proves nothing." for fault in _harmless(raw)),
    ]


def _too_busy(result: Result) -> str:
    return (
        f"This machine is too busy for this load: without a fault {result.row.variant} had a"
        f" goodput of {result.row.goodput:.1%}."
    )


def _harmless(raw: Sequence[Result]) -> list[str]:
    """The faults that no raw variant noticed."""
    usual = max((r.row.p50 for r in raw if r.row.fault == FAULT_FREE), default=0.0)
    noticed = {r.row.fault for r in raw if r.row.ok < r.row.calls or r.row.p50 > 2 * usual}
    ran = dict.fromkeys(result.row.fault for result in raw)
    return [fault for fault in ran if fault not in noticed and fault != FAULT_FREE]


def headline(results: Sequence[Result], ours: str) -> list[str]:
    """The outcome in sentences that need no table; none before a fault was run."""
    faults = [result for result in results if result.row.fault != FAULT_FREE]
    lines = [
        _variant_line([result for result in faults if result.row.variant == variant], variant)
        for variant in dict.fromkeys(result.row.variant for result in faults)
        if variant != ours
    ]
    mine = [result.row for result in faults if result.row.variant == ours]
    if mine:
        past = sum(row.over_limit for row in mine)
        calls = count(past, "call") if past else "no call"
        worst = max(row.worst for row in mine)
        lines.append(
            f"{ours}: {calls} went past the limit in {count(len(mine), 'fault')},"
            f" worst {worst:.2f} s."
        )
    return lines


def _variant_line(mine: Sequence[Result], variant: str) -> str:
    hung = sum(result.hung > 0 for result in mine)
    late = sum(result.row.over_limit > 0 for result in mine)
    return (
        f"{variant}: hung in {hung} of {count(len(mine), 'fault')},"
        f" calls went past {mine[0].row.limit:g} s in {late}."
    )


def count(number: int, word: str) -> str:
    """``1 fault``, ``2 faults``."""
    return f"{number} {word}{'' if number == 1 else 's'}"
