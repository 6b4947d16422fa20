"""Whether what was measured is good enough. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from timedblock.drill.measure import Result, Row
from timedblock.drill.scenario import FAULT_FREE as FAULT_FREE
from timedblock.drill.scenario import Bounds, Episode
from timedblock.drill.store import LEARNT, OURS, RAW_FRESH, RAW_TIMEOUT

#: Below this, a raw client's fault-free goodput says that the machine is too busy.
USUAL = 0.98
#: Seconds between two moments of `Result.flowing`.
_STEP = 0.1


@dataclass(frozen=True)
class Check:
    """A goodput that was judged: ``value`` must be at least ``share`` of ``reference``."""

    fault: str
    variant: str
    value: float
    reference: float
    against: str
    share: float

    @property
    def passed(self) -> bool:
        return self.value >= self.share * self.reference

    def to_dict(self) -> dict[str, object]:
        return {**asdict(self), "passed": self.passed}


@dataclass(frozen=True)
class Verdict:
    """One promise that one variant was held to in one episode: the bound, the value measured
    (None: it never happened), and what is wrong if it failed."""

    fault: str
    variant: str
    name: str
    bound: float
    value: float | None
    passed: bool
    words: str


@dataclass(frozen=True)
class Judgement:
    """Whether timedblock held what it promises, in the faults that were run; ``notes`` say what
    makes the run itself doubtful."""

    checks: list[Check]
    verdicts: list[Verdict]
    notes: list[str]

    @property
    def problems(self) -> list[str]:
        return [verdict.words for verdict in self.verdicts if not verdict.passed]

    @property
    def passed(self) -> bool:
        return not self.problems


def judge(
    results: Sequence[Result],
    episodes: Mapping[str, Episode],
    bounds: Mapping[str, Bounds],
    gone: Collection[str],
) -> Judgement:
    """Judges timedblock's variants in each episode by its bounds; ``gone`` are the faults that are
    judged against the variant's own fault-free run, the others against raw-timeout."""
    by_key = {(result.row.fault, result.row.variant): result for result in results}
    checks: list[Check] = []
    verdicts: list[Verdict] = []
    for result in results:
        row = result.row
        if row.variant not in OURS:
            continue
        mine = bounds[row.fault]
        verdicts += _promises(result, mine)
        if is_fault_free(row.fault):
            continue
        if mine.goodput is not None:
            can_know = set(episodes[row.fault].faults) <= set(gone)
            checks.append(_check(result, by_key, can_know, mine.goodput))
            verdicts.append(_goodput_verdict(checks[-1]))
        verdicts += _timely(result, mine)
        fresh = by_key.get((row.fault, RAW_FRESH))  # None: interrupted before it was counted
        if mine.way is not None and fresh is not None:
            verdicts.append(_way(result, fresh, mine.way))
    return Judgement(checks, verdicts, _notes(results, episodes))


def _promises(result: Result, bounds: Bounds) -> list[Verdict]:
    """What holds with a fault and without: the limit, right answers, honest errors."""
    row = result.row
    label = row.fault, row.variant
    verdicts = []
    if bounds.limit_kept:
        words = (
            f"{_label(row)}: {count(row.over_limit, 'call')} took longer than the limit of"
            f" {row.limit:g} s (worst {row.worst:.2f} s)"
        )
        late = row.over_limit
        verdicts.append(Verdict(*label, "limit_kept", 0, late, not late, words))
    if bounds.no_wrong_answer:
        words = f"{_label(row)}: {count(row.wrong, 'wrong answer')}"
        verdicts.append(Verdict(*label, "no_wrong_answer", 0, row.wrong, not row.wrong, words))
        names = ", ".join(result.errors)
        errors = count(result.dishonest, "error")
        words = f"{_label(row)}: {errors} other than Unavailable (errors seen: {names})"
        fine = not result.dishonest
        verdicts.append(Verdict(*label, "honest_errors", 0, result.dishonest, fine, words))
    return verdicts


def _label(row: Row) -> str:
    return _name(row.fault, row.variant)


def is_fault_free(label: str) -> bool:
    """Whether this is the run without a fault, of whatever target."""
    return label.partition("@")[0] == FAULT_FREE


def _without(label: str) -> str:
    """The run without a fault of the same target."""
    _, at, target = label.partition("@")
    return FAULT_FREE + at + target


def _name(fault: str, variant: str) -> str:
    return fault if variant == LEARNT else f"{fault} with {variant}"


def _check(
    result: Result, by_key: Mapping[tuple[str, str], Result], can_know: bool, share: float
) -> Check:
    row = result.row
    own = (_without(row.fault), row.variant), "without fault"
    raw = (row.fault, RAW_TIMEOUT), RAW_TIMEOUT
    for key, words in (own, raw) if can_know else (raw, own):
        if key in by_key:
            return Check(row.fault, row.variant, result.tail, by_key[key].tail, words, share)
    return Check(row.fault, row.variant, result.tail, 1.0, "all requests", share)


def _goodput_verdict(check: Check) -> Verdict:
    words = (
        f"{_name(check.fault, check.variant)}: goodput {check.value:.1%} in the last two thirds of"
        f" the fault ({check.against}: {check.reference:.1%})"
    )
    bound, value = round(check.share * check.reference, 6), round(check.value, 6)
    label = check.fault, check.variant, "goodput"
    return Verdict(*label, bound, value, check.passed, words)


def _timely(result: Result, bounds: Bounds) -> list[Verdict]:
    times = result.times
    asked = (
        ("p99", "p99 of a call", bounds.p99, result.row.p99),
        ("recovery", "answers again", bounds.recovery, times.recovered),
        ("breaker_opened", "breaker opened", bounds.breaker_opened, times.opened),
        ("breaker_closed", "breaker closed", bounds.breaker_closed, times.closed),
        ("seen", "/health not ok", bounds.seen, times.seen),
    )
    return [
        _within(result.row, name, words, bound, value)
        for name, words, bound, value in asked
        if bound is not None
    ]


def _way(result: Result, fresh: Result, bound: float) -> Verdict:
    """How long after a raw connection made anew had found a way ours were answered again."""
    row, found = result.row, fresh.times.again
    if found is None and fresh.row.ok < fresh.row.calls:
        words = f"{_label(row)}: {RAW_FRESH} never found a way, so it proves nothing"
        return Verdict(row.fault, row.variant, "way", bound, None, False, words)
    since = found or 0.0
    flows = next((at - since for at in result.flowing if at >= since - _STEP), None)
    value = None if flows is None else max(0.0, round(flows, 6))
    return _within(row, "way", f"answers again, after {RAW_FRESH} had one", bound, value)


def _within(row: Row, name: str, what: str, bound: float, value: float | None) -> Verdict:
    took = "never" if value is None else f"{value:.2f} s"
    passed = value is not None and value <= bound
    words = f"{_label(row)}: {what}: {took}, {'' if passed else 'not '}within {bound:g} s"
    return Verdict(row.fault, row.variant, name, bound, value, passed, words)


def _notes(results: Sequence[Result], episodes: Mapping[str, Episode]) -> list[str]:
    raw = [result for result in results if result.row.variant not in OURS]
    return [
        *(_too_busy(r) for r in raw if is_fault_free(r.row.fault) and r.row.goodput < USUAL),
        *(
            f"{fault}: no raw client noticed it, so it proves nothing."
            for fault in _harmless(raw, episodes)
        ),
    ]


def _too_busy(result: Result) -> str:
    return (
        f"This machine is too busy for this load: without a fault {result.row.variant} had a"
        f" goodput of {result.row.goodput:.1%}."
    )


def _harmless(raw: Sequence[Result], episodes: Mapping[str, Episode]) -> list[str]:
    """The faults that no raw variant noticed."""
    usual = max((r.row.p50 for r in raw if is_fault_free(r.row.fault)), default=0.0)
    noticed = {r.row.fault for r in raw if r.row.ok < r.row.calls or r.row.p50 > 2 * usual}
    ran = dict.fromkeys(result.row.fault for result in raw)
    return [fault for fault in ran if fault not in noticed and episodes[fault].timeline]


def headline(results: Sequence[Result]) -> list[str]:
    """The outcome in sentences that need no table; none before a fault was run."""
    faults = [result for result in results if not is_fault_free(result.row.fault)]
    lines = []
    clients = (result.row.variant for result in faults if result.row.variant != RAW_FRESH)
    for variant in dict.fromkeys(clients):
        mine = [result for result in faults if result.row.variant == variant]
        lines.append(_our_line(mine) if variant in OURS else _raw_line(mine))
    return lines


def _our_line(mine: Sequence[Result]) -> str:
    past = sum(result.row.over_limit for result in mine)
    calls = count(past, "call") if past else "no call"
    worst = max(result.row.worst for result in mine)
    return (
        f"{mine[0].row.variant}: {calls} went past the limit in {count(len(mine), 'fault')},"
        f" worst {worst:.2f} s."
    )


def _raw_line(mine: Sequence[Result]) -> str:
    row = mine[0].row
    hung = sum(result.hung > 0 for result in mine)
    late = sum(result.row.over_limit > 0 for result in mine)
    wrong = sum(result.row.wrong for result in mine)
    lost = f", {count(wrong, 'wrong answer')}" if wrong else ""
    return (
        f"{row.variant}: hung in {hung} of {count(len(mine), 'fault')},"
        f" calls went past {row.limit:g} s in {late}{lost}."
    )


def count(number: int, word: str) -> str:
    """``1 fault``, ``2 faults``."""
    return f"{number} {word}{'' if number == 1 else 's'}"
