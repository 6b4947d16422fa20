"""Late answers: what a cut call's answer teaches when it comes after all."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from timedblock import Breaker, Fixed, Percentile, Policy, TimedBlock
from timedblock.call import CUT, STALLED
from timedblock.latency import SLICE
from timedblock.policy.timeout import EXPLORE, Learnt
from timedblock.testing import FakeClock


def _cut(block: TimedBlock, clock: FakeClock, kind: str = CUT, waited: float | None = None):  # type: ignore[no-untyped-def]
    call = block.begin()
    clock.advance(call.limit)
    call.failed(TimeoutError(), kind=kind, waited=waited)
    assert call.late is not None
    return call.late


def test_a_late_answer_is_an_exact_sample(clock: FakeClock) -> None:
    """It takes the place of "at least so long", once, however often it is told."""
    block = TimedBlock("b", Policy(breaker=None))
    late = _cut(block, clock)
    block.refresh(clock.now() + SLICE)
    assert (block.histogram.answered, block.histogram.censored) == (0, 1)
    clock.advance(0.5)
    late.answered(clock.now())
    late.answered(clock.now())
    late.silent(clock.now())
    block.refresh(clock.now() + SLICE)
    assert (block.histogram.answered, block.histogram.censored) == (1, 0)
    assert block.histogram.quantiles(0.5)[0] == pytest.approx(1.5, rel=0.03)
    assert block.histogram.answered_total == 0  # it was no answer to its caller


def test_silence_to_the_end_is_a_longer_censored_sample(clock: FakeClock) -> None:
    """Who listened in vain to the ceiling knows more than who was cut."""
    block = TimedBlock("b", Policy(breaker=None))
    late = _cut(block, clock)
    assert late.until == pytest.approx(clock.now() + block.ceiling)
    late.silent(clock.now() + 0.5)
    late.answered(clock.now() + 0.6)
    block.histogram.record(1.2)
    block.refresh(clock.now() + SLICE)
    assert (block.histogram.answered, block.histogram.censored) == (1, 1)
    assert block.histogram.quantiles(0.5)[0] == pytest.approx(1.2, rel=0.03)


def test_late_answers_keep_the_breaker_closed(clock: FakeClock) -> None:
    """An endpoint whose answers come late is slow, not dead; without them it is dead."""
    for late_ones, state in ((True, "closed"), (False, "open")):
        block = TimedBlock("b", Policy(breaker=Breaker(failures=3)))
        block.learnt = Learnt(0.1, "learnt", 0.05)
        block.limit = 0.1
        block.histogram.due = math.inf  # the limit stays
        for _ in range(60):
            assert block.circuit is not None
            if block.circuit.state == "open":
                break
            late = _cut(block, clock)
            if late_ones:
                late.answered(clock.now())
        assert block.circuit is not None
        assert block.circuit.state == state


def test_a_stalled_attempts_answer_is_a_sign_of_life_only(clock: FakeClock) -> None:
    """When it came nobody knows, for our own process slept."""
    block = TimedBlock("b", Policy())
    assert block.circuit is not None
    late = _cut(block, clock, STALLED, waited=0.5)
    assert block.circuit._silence > 0
    late.answered(clock.now())
    assert block.circuit._silence == 0
    block.refresh(clock.now() + SLICE)
    assert (block.histogram.answered, block.histogram.censored) == (0, 0)


def test_while_calls_are_cut_a_few_run_to_the_ceiling(clock: FakeClock) -> None:
    """One in fifty, on every way of calling, so that the tail stays known."""
    block = TimedBlock("b", Policy(timeout=Percentile(min_samples=10), breaker=None))
    for _ in range(100):
        block.histogram.record(0.05)
    block.refresh(clock.now() + SLICE)
    assert not block._exploring
    assert block.begin().limit == pytest.approx(0.1, rel=0.03)
    for _ in range(3):
        block.histogram.cut_at(0.1)
    block.refresh(clock.now() + 2 * SLICE)
    assert block._exploring
    limits = [block.begin().limit for _ in range(2 * EXPLORE)]
    assert sum(limit == pytest.approx(1.0) for limit in limits) == 2
    seen: list[float] = []
    for _ in range(EXPLORE):
        block.call(lambda: seen.extend(call.limit for call in block.in_flight))
    assert sum(limit == pytest.approx(1.0) for limit in seen[-EXPLORE:]) <= 2
    block.refresh(clock.now() + 3 * SLICE)
    block.histogram.record(0.05)
    block.refresh(clock.now() + 4 * SLICE)
    assert not block._exploring


def test_an_outage_is_taken_out_of_the_window(clock: FakeClock) -> None:
    """From open to closed nothing is learnt; then the limit is the one from before."""
    block = TimedBlock("b", Policy(timeout=Percentile(min_samples=50), breaker=Breaker(failures=2)))
    for _ in range(200):
        block.histogram.record(0.05)
    clock.advance(SLICE)
    block.refresh(clock.now())
    limit = block.limit
    assert block.learnt.source == "learnt"
    for _ in range(2):
        call = block.begin()
        call.failed(ConnectionResetError())
        clock.advance(0.01)
    assert block.circuit is not None
    assert block.circuit.state == "open"
    clock.advance(40.0)
    block.refresh(clock.now())
    assert block.limit == limit
    block.call(lambda: None)
    assert block.circuit.state == "closed"
    assert block.limit == pytest.approx(limit)
    assert block.histogram.answered == 200


def test_a_fixed_limit_survives_an_outage(clock: FakeClock) -> None:
    """What isn't learnt isn't restored."""
    block = TimedBlock("b", Policy(timeout=Fixed(0.5), breaker=Breaker(failures=1)))
    block.begin().failed(ConnectionResetError())
    clock.advance(1.0)
    block.call(lambda: None)
    assert (block.limit, block.learnt.source) == (0.5, "fixed")


def test_a_rare_operation_uses_its_kind(clock: FakeClock) -> None:
    """Under min_samples the data of the store's other operations on that endpoint serve it."""
    from timedblock.endpoint import Endpoint

    place = Endpoint("127.0.0.1:1", None, clock)
    policy = Policy(breaker=None)
    busy = TimedBlock("store.get", policy, endpoint=place)
    rare = TimedBlock("store.touch", policy, endpoint=place)
    connect = TimedBlock("store.connect", policy, endpoint=place)
    for _ in range(200):
        busy.histogram.record(0.1)
    clock.advance(SLICE)
    for block in (busy, rare, connect):
        block.refresh(clock.now())
    assert rare.limit == pytest.approx(0.2, rel=0.03)
    assert rare.learnt.source == "learnt"
    assert connect.learnt.source == "initial"


def _opened(clock: FakeClock, breaker: Breaker) -> TimedBlock:
    """A block that knew 200 answers of 0.05 s when its breaker opened."""
    block = TimedBlock("b", Policy(timeout=Percentile(min_samples=50), breaker=breaker))
    for _ in range(200):
        block.histogram.record(0.05)
    clock.advance(SLICE)
    block.refresh(clock.now())
    block.begin().failed(ConnectionResetError())
    assert block.circuit is not None
    assert block.circuit.state == "open"
    clock.advance(1.0)
    return block


def _longest(block: TimedBlock, clock: FakeClock) -> float | None:
    clock.advance(SLICE)
    block.refresh(clock.now())
    return block.histogram.quantiles(1.0)[0]


@pytest.mark.parametrize("answer", [True, False])
def test_the_probe_teaches_what_it_took(clock: FakeClock, answer: bool) -> None:
    """The one that closes the breaker is a sample, be its answer a value or a logical error."""
    ignored = () if answer else (KeyError,)
    block = _opened(clock, Breaker(failures=1))
    block.policy = replace(block.policy, ignore=ignored)
    before = block.histogram.answered_total
    call = block.begin()
    clock.advance(0.7)
    if answer:
        call.succeeded()
    else:
        call.failed(KeyError())
    assert block.circuit is not None
    assert block.circuit.state == "closed"
    assert _longest(block, clock) == pytest.approx(0.7, rel=0.03)
    assert block.histogram.answered == 201
    assert block.histogram.answered_total == before + 1  # and counted once


def test_every_probe_teaches_where_several_must_succeed(clock: FakeClock) -> None:
    """The first ones too, whose answers came while the breaker was half-open."""
    block = _opened(clock, Breaker(failures=1, probes=3))
    for seconds in (0.6, 0.7, 0.8):
        block.call(clock.advance, seconds)
    assert _longest(block, clock) == pytest.approx(0.8, rel=0.03)
    assert block.histogram.answered == 203


def test_probes_that_did_not_close_the_breaker_teach_nothing(clock: FakeClock) -> None:
    """A success before a failed probe belongs to the outage, and so does a late result."""
    block = _opened(clock, Breaker(failures=1, probes=2, open_for=0.5, open_max=0.5))
    block.call(clock.advance, 0.6)  # the first probe of two
    slow = block.begin()  # the second, whose answer is far away
    clock.advance(3.0)  # its lease is over
    third = block.begin()
    third.failed(ConnectionResetError())
    clock.advance(1.0)
    slow.succeeded()  # of an older state: ignored
    for _ in range(2):
        block.call(clock.advance, 0.1)
    assert block.circuit is not None
    assert block.circuit.state == "closed"
    assert _longest(block, clock) == pytest.approx(0.1, rel=0.03)
    assert block.histogram.answered == 202


def test_a_probe_with_a_limit_of_its_own_teaches_nothing(clock: FakeClock) -> None:
    """As every call that has one."""
    block = _opened(clock, Breaker(failures=1))
    call = block.begin(limit=0.9)
    clock.advance(0.7)
    call.succeeded()
    assert _longest(block, clock) == pytest.approx(0.05, rel=0.03)
    assert block.histogram.answered == 200
