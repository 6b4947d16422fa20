"""Configuration: frozen, keyword-only, and refused with the offending value in the message."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest

from timedblock import Breaker, Fixed, Percentile, Policy, Retry, TimedBlock, time_limit
from timedblock.latency import SLICE, Histogram
from timedblock.policy.timeout import Learnt, learn
from timedblock.testing import FakeClock

NAN, INF, HUGE = math.nan, math.inf, 10**400

BAD_VALUES: list[tuple[Any, str, list[Any]]] = [
    (Fixed, "seconds", [NAN, INF, -INF, -1, 0, HUGE, 1e9, "1", None, True, [1]]),
    (Percentile, "q", [NAN, INF, 0, -1, 100, 49.9, HUGE, "99", None, True]),
    (Percentile, "margin", [NAN, INF, 0, -1, 0.99, HUGE, "2", None, True]),
    (Percentile, "floor", [NAN, INF, 0, -1, HUGE, "1", None, True]),
    (Percentile, "ceiling", [NAN, INF, 0, -1, HUGE, "1", None, True]),
    (Percentile, "initial", [NAN, INF, 0, -1, HUGE, "1", True, 2.0]),
    (Percentile, "min_samples", [NAN, 0, -1, 1.5, "100", None, True]),
    (Breaker, "failures", [NAN, 0, -1, 1.5, "5", None, True]),
    (Breaker, "failure_rate", [NAN, INF, 0, -0.1, 1.1, HUGE, "0.5", True]),
    (Breaker, "slow_rate", [NAN, INF, 0, -0.1, 1.1, HUGE, "0.5", True]),
    (Breaker, "window", [NAN, INF, 0, -1, HUGE, "10", None]),
    (Breaker, "minimum_calls", [0, -1, 1.5, "20", None]),
    (Breaker, "open_for", [NAN, INF, 0, -1, HUGE, "1", None, 5.1]),
    (Breaker, "open_max", [NAN, INF, 0, -1, HUGE, "1", None]),
    (Breaker, "probes", [0, -1, 1.5, "1", None, True]),
    (Retry, "attempts", [NAN, 0, 1, 11, -1, 2.5, "3", None, True]),
    (Retry, "wait", [0.5, "1", -1]),
    (Retry, "backoff", [NAN, INF, 0, -1, HUGE, "1", None]),
    (Retry, "backoff_max", [NAN, INF, 0, -1, HUGE, "1", None]),
    (Retry, "on", [OSError, [OSError], (1,), (KeyboardInterrupt,), None]),
    (Policy, "timeout", [1.0, "1", Percentile]),
    (Policy, "breaker", [5, "on", Breaker]),
    (Policy, "bulkhead", [NAN, 0, -1, 1.5, "64", True]),
    (Policy, "retry", [3, "yes", Retry]),
    (Policy, "hedge", [1, "yes", object()]),
    (Policy, "fallback_limit", [NAN, INF, 0, -1, HUGE, "1", None]),
    (Policy, "isolation", ["process", None, "", 1, ["none"]]),
    (Policy, "ignore", [1, "x", [OSError], (OSError, 1), None]),
]
CASES = [(kind, name, value) for kind, name, values in BAD_VALUES for value in values]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    CASES,
    ids=[f"{kind.__name__}.{name}={value!r:.12}" for kind, name, value in CASES],
)
def test_a_bad_value_is_refused_at_construction(kind: Any, name: str, value: Any) -> None:
    """The error is a ValueError or TypeError that names the argument and shows the value."""
    with pytest.raises((ValueError, TypeError)) as caught:
        kind(**{name: value})
    assert name in str(caught.value)
    assert re.search(re.escape(repr(value)), str(caught.value))


@pytest.mark.parametrize("kind", [Policy, Breaker, Percentile, Retry])
def test_configuration_is_frozen(kind: Any) -> None:
    """A policy in use can't be changed under the calls."""
    one = kind()
    field = dataclasses.fields(one)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, field, None)


def test_a_policy_takes_keywords_only() -> None:
    """What a bare number would mean can't be seen."""
    with pytest.raises(TypeError):
        Policy(Fixed(1))  # type: ignore[misc]


def test_the_defaults_are_the_documented_ones() -> None:
    """The figures that the documentation gives are the defaults."""
    timeout = Percentile()
    assert (timeout.q, timeout.margin, timeout.floor, timeout.ceiling, timeout.min_samples) == (
        99.5, 2, 0.05, 1.0, 100,
    )  # fmt: skip
    assert timeout.first == timeout.ceiling
    assert Breaker() == Breaker(
        failures=5, failure_rate=0.5, slow_rate=None, window=10.0, minimum_calls=20,
        open_for=0.5, open_max=5.0, probes=1,
    )  # fmt: skip
    policy = Policy()
    assert (policy.bulkhead, policy.retry, policy.hedge, policy.isolation, policy.ignore) == (
        None, None, None, "none", (),
    )  # fmt: skip
    assert policy.fallback_limit == 0.1
    assert policy.ceiling == 1.0
    assert Policy(timeout=None).ceiling is None
    assert repr(policy.fallback) == "<unset>"


def test_the_floor_may_not_be_above_the_ceiling() -> None:
    """Values that contradict each other are refused, both named."""
    with pytest.raises(ValueError, match=r"0\.5.*0\.1"):
        Percentile(floor=0.5, ceiling=0.1)


def test_one_ignored_type_may_come_alone() -> None:
    """ignore=KeyError is ignore=(KeyError,)."""
    assert Policy(ignore=KeyError).ignore == (KeyError,)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [1, "p", Fixed(1), Policy])
def test_a_block_refuses_what_is_no_policy(policy: Any) -> None:
    """A block's policy is a Policy; the value is named."""
    with pytest.raises(TypeError, match="policy"):
        TimedBlock("b", policy)


@pytest.mark.parametrize("limit", [NAN, INF, -1, 0, HUGE, "1", True])
def test_a_calls_own_limit_is_checked(clock: FakeClock, limit: Any) -> None:
    """begin(limit=) refuses what is no duration, and takes no slot."""
    block = TimedBlock("b", Policy(bulkhead=1))
    with pytest.raises((ValueError, TypeError)) as caught:
        block.begin(limit=limit)
    assert repr(limit) in str(caught.value)
    block.begin().abandoned()


# -- the learnt limit ---------------------------------------------------------------------------


def _histogram(answers: int, seconds: float, cuts: int = 0, cut: float = 0.0) -> Histogram:
    histogram = Histogram(0.0)
    for _ in range(answers):
        histogram.record(seconds)
    for _ in range(cuts):
        histogram.cut_at(cut)
    histogram.rotate(SLICE)
    return histogram


INITIAL = Learnt(1.0, "initial")


def test_too_few_samples_leave_the_initial_limit() -> None:
    """Under min_samples the limit is the initial one."""
    assert learn(Percentile(), _histogram(99, 0.01), INITIAL) == Learnt(1.0, "initial")
    assert learn(Percentile(initial=0.5), _histogram(0, 0.01), INITIAL).limit == 0.5


def test_the_limit_is_the_quantile_times_the_margin() -> None:
    """Enough samples: margin × the percentile, between floor and ceiling."""
    found = learn(Percentile(), _histogram(100, 0.1), INITIAL)
    assert (found.limit, found.source) == (pytest.approx(0.2, rel=0.03), "learnt")
    assert found.median == pytest.approx(0.1, rel=0.03)
    assert learn(Percentile(), _histogram(100, 0.001), INITIAL).limit == 0.05
    assert learn(Percentile(), _histogram(100, 0.9), INITIAL).limit == 1.0


def test_a_quiet_hour_forgets_nothing() -> None:
    """A learnt limit stays when the window runs empty."""
    before = Learnt(0.2, "learnt", 0.1)
    after = learn(Percentile(), Histogram(0.0), before)
    assert (after.limit, after.source, after.median, after.exploring) == (0.2, "learnt", 0.1, False)
    assert learn(Percentile(), Histogram(0.0), after) == after


def test_few_attempts_that_are_slower_are_waited_for() -> None:
    """Never enough of them to learn from: what they ask for is added, and taken back slowly."""
    quiet, histogram = Learnt(0.2, "learnt", 0.1), Histogram(0.0)
    limits = []
    for number in range(1, 5):  # each cut, for its answer takes longer
        histogram.cut_at(quiet.limit)
        histogram.rotate(number * SLICE)
        quiet = learn(Percentile(), histogram, quiet)
        limits.append(quiet.limit)
    assert limits == [0.4, 0.8, 1.0, 1.0]
    assert quiet.exploring
    histogram = _histogram(1, 0.3)  # answered now, in 0.3 s
    asked = [quiet := learn(Percentile(), histogram, quiet) for _ in range(20)]
    assert asked[0].limit == pytest.approx(0.95)
    assert asked[-1].limit == pytest.approx(0.6, rel=0.03)
    histogram = _histogram(1, 0.01)
    asked = [quiet := learn(Percentile(), histogram, quiet) for _ in range(40)]
    assert asked[-1].limit == 0.2  # what was learnt from many
    assert not asked[-1].exploring


def test_an_empty_window_keeps_what_few_attempts_asked_for() -> None:
    """A call a minute: most windows are empty."""
    quiet = Learnt(0.8, "learnt", 0.1, base=0.2)
    assert learn(Percentile(), Histogram(0.0), quiet).limit == 0.8


def test_a_rare_operation_slower_than_its_kind_is_waited_for() -> None:
    """The pooled limit is where it begins, not where it ends."""
    kind, mine = _histogram(1000, 0.01), Histogram(0.0)
    mine.cut_at(0.05)
    mine.rotate(SLICE)
    pooled = learn(Percentile(), mine, Learnt(1.0, "initial"), kin=lambda: [kind, mine])
    assert (pooled.limit, pooled.pooled) == (1.0, True)  # nothing is known but that it is longer
    mine = _histogram(1, 0.1)
    for _ in range(60):
        pooled = learn(Percentile(), mine, pooled, kin=lambda: [kind, mine])
    assert pooled.limit == pytest.approx(0.2, rel=0.03)
    for _ in range(60):
        pooled = learn(Percentile(), Histogram(0.0), pooled, kin=lambda: [kind])
    assert pooled.limit == pytest.approx(0.2, rel=0.03)


def test_the_limit_doubles_while_the_quantile_is_unreached() -> None:
    """So many cut that the percentile lies beyond every answer: doubled, up to the ceiling."""
    after = Learnt(0.1, "learnt", 0.05)
    histogram = _histogram(990, 0.05, cuts=10, cut=0.1)
    for number in range(2, 6):
        after = learn(Percentile(), histogram, after)
        assert after.limit == pytest.approx(min(1.0, 0.1 * 2 ** (number - 1)))
        for _ in range(10):
            histogram.cut_at(after.limit)
        histogram.rotate(number * SLICE)


def test_the_limit_grows_on_fresh_evidence_only() -> None:
    """What an older, shorter limit cut doesn't double this one."""
    histogram = _histogram(990, 0.05, cuts=10, cut=0.1)
    before = Learnt(0.2, "learnt", 0.05)
    assert learn(Percentile(), histogram, before).limit == pytest.approx(0.2)


def test_the_limit_doesnt_tremble_downwards() -> None:
    """Less than 5 % down isn't worth a change."""
    before = Learnt(0.205, "learnt", 0.1)
    assert learn(Percentile(), _histogram(100, 0.1), before).limit == 0.205


def test_limits_dont_ratchet_down_in_a_latency_shift(clock: FakeClock) -> None:
    """A store that becomes ten times slower is cut for a while, then its limit has grown."""
    block = TimedBlock("b", Policy(timeout=Percentile(99, min_samples=50), breaker=None))

    def work(seconds: float) -> None:
        call = block.begin()
        clock.advance(min(seconds, call.limit))
        if seconds > call.limit:
            call.failed(TimeoutError())
        else:
            call.succeeded()

    for _ in range(300):
        work(0.03)
    assert block.limit == pytest.approx(0.06, rel=0.05)
    for _ in range(300):
        work(0.3)
    assert block.limit > 0.3
    assert block.learnt.source == "learnt"


def test_a_limit_given_for_one_call_teaches_nothing(clock: FakeClock) -> None:
    """A call with a limit of its own is counted, but neither answer nor cut is a sample."""
    block = TimedBlock("b", Policy(timeout=Percentile(99, min_samples=1), breaker=None))
    call = block.begin(limit=5.0)
    clock.advance(3.0)
    call.succeeded()
    call = block.begin(limit=0.001)
    clock.advance(0.001)
    call.failed(TimeoutError())
    block.refresh(clock.now() + SLICE)
    assert (block.histogram.answered, block.histogram.censored) == (0, 0)
    assert block.learnt.source == "initial"


def test_a_calls_own_limit_is_its_total_limit(clock: FakeClock) -> None:
    """begin(limit=) replaces the learnt limit, and a caller's deadline still shortens it."""
    block = TimedBlock("b")
    assert block.begin(limit=3.0).limit == pytest.approx(3.0)
    with time_limit(0.5):
        assert block.begin(limit=3.0).limit == pytest.approx(0.5)
