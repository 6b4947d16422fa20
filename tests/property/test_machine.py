"""The call machine in any order of events: slots, counters, blame."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from timedblock import (
    Breaker,
    CircuitOpen,
    DeadlineExceeded,
    Event,
    Fixed,
    Overloaded,
    Percentile,
    Policy,
    Retry,
    TimedBlock,
    Unavailable,
    remaining,
    subscribe,
    time_limit,
)
from timedblock.call import BROKEN, CROWDED, CUT, STALLED, UNCONNECTED, UNWELL, Call
from timedblock.deadline import get
from timedblock.testing import FakeClock

BULKHEAD = 3
KINDS = st.sampled_from([None, UNWELL, CUT, BROKEN, STALLED, UNCONNECTED, CROWDED])
ERRORS = st.sampled_from(
    [OSError, TimeoutError, KeyError, ValueError, ConnectionResetError, Unavailable]
)
SECONDS = st.sampled_from([0.0, 0.001, 0.04, 0.3, 1.0, 5.0, 40.0])


class Machine(RuleBasedStateMachine):
    """Interleaved calls of one block, ended in any way, any number of times."""

    calls: Bundle[Call] = Bundle("calls")
    ended: Bundle[Call] = Bundle("ended")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.clock.__enter__()
        self.block = TimedBlock(
            "machine",
            Policy(
                timeout=Percentile(99, min_samples=5),
                bulkhead=BULKHEAD,
                breaker=Breaker(failures=3, probes=2),
                retry=Retry(attempts=3),
                ignore=(KeyError,),
            ),
        )
        self.live: set[Call] = set()
        self.finished = 0
        self.refused = 0

    def teardown(self) -> None:
        self.clock.__exit__(None, None, None)

    @rule(target=calls, limit=st.sampled_from([None, None, None, 0.2]))
    def begin(self, limit: float | None) -> Any:
        try:
            call = self.block.begin(limit=limit)
        except (CircuitOpen, Overloaded, DeadlineExceeded) as error:
            self.refused += 1
            assert error.sent is False
            return self.never()
        self.live.add(call)
        return call

    @rule(target=calls, seconds=st.sampled_from([0.01, 0.1, 0.5]), passed=SECONDS)
    def begin_within_a_limit(self, seconds: float, passed: float) -> Any:
        with time_limit(seconds):
            self.clock.advance(passed)
            if passed >= seconds:
                with pytest.raises(DeadlineExceeded):
                    self.block.begin()
                self.refused += 1
                return self.never()
            return self.begin(None)

    def never(self) -> Call:
        """A call that was not begun: every end of it must be harmless."""
        call = Call()
        call.owner, call.clock = self.block, self.clock
        call.began = call.at = self.clock.now()
        return call

    @rule(target=ended, call=consumes(calls))
    def succeeded(self, call: Call) -> Call:
        assert call.succeeded() is (call in self.live)
        self.finished += call in self.live
        self.live.discard(call)
        return call

    @rule(target=ended, call=consumes(calls))
    def abandoned(self, call: Call) -> Call:
        call.abandoned()
        self.live.discard(call)
        return call

    @rule(call=calls, kind=KINDS, error=ERRORS, repeatable=st.booleans())
    def failed(
        self, call: Call, kind: str | None, error: type[Exception], repeatable: bool
    ) -> None:
        verdict = call.failed(error(), kind=kind, repeatable=repeatable)
        if verdict.retry_after is not None:
            assert call in self.live
            assert call.attempt < 3
            self.again(call, verdict.retry_after)
            return
        self.finished += call in self.live
        self.live.discard(call)

    def again(self, call: Call, pause: float) -> None:
        assert self.clock.now() + pause <= call.call_at
        self.clock.advance(pause)
        try:
            call.again()
        except Unavailable:
            self.live.discard(call)
            self.finished += 1

    @rule(call=calls, kind=st.sampled_from([KeyboardInterrupt, SystemExit]))
    def interrupted(self, call: Call, kind: type[BaseException]) -> None:
        error = kind()
        assert call.failed(error).error is error
        self.live.discard(call)

    @rule(call=ended, kind=KINDS, error=ERRORS)
    def ended_again(self, call: Call, kind: str | None, error: type[Exception]) -> None:
        raised = error()
        assert call.succeeded() is False
        assert call.failed(raised, kind=kind) == (None, raised)
        call.abandoned()

    @rule(call=calls, passed=SECONDS)
    def restarted(self, call: Call, passed: float) -> None:
        if call not in self.live:
            return
        self.clock.advance(passed)
        try:
            call.restart(self.clock.now())
        except DeadlineExceeded:
            self.live.discard(call)
            self.refused += 1
        else:
            assert call.at <= call.call_at

    @rule(seconds=SECONDS)
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def slots_are_live_calls(self) -> None:
        assert set(self.block.in_flight) == self.live
        assert len(self.live) <= BULKHEAD

    @invariant()
    def counters_add_up(self) -> None:
        block = self.block
        counted = block.histogram.answered_total + block.tally.unwell + block.tally.unavailable
        assert counted == self.finished + self.refused

    @invariant()
    def leases_are_live_calls(self) -> None:
        circuit = self.block.circuit
        assert circuit is not None
        assert len(circuit._leases) <= 2
        leased = {call.lease for call in self.live if call.lease is not None}
        assert circuit._leases <= leased

    @invariant()
    def nothing_is_in_force_outside(self) -> None:
        assert get() is None

    @invariant()
    def the_limit_is_within_its_bounds(self) -> None:
        assert 0.05 <= self.block.limit <= 1.0


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40)


# -- the three ways to drive it ---------------------------------------------------------------

STEP = st.tuples(SECONDS, st.sampled_from([None, OSError, TimeoutError, KeyError, SystemExit]))


def _told(event: Event) -> tuple[Any, ...]:
    fields = {name: value for name, value in vars(event).items() if name not in ("at", "elapsed")}
    fields.pop("reason", None)  # it may hold seconds
    elapsed = getattr(event, "elapsed", None)
    return (
        type(event).__name__,
        None if elapsed is None else round(elapsed, 6),
        *((name, round(v, 6) if isinstance(v, float) else v) for name, v in sorted(fields.items())),
    )


def _story(way: str, steps: list[tuple[float, type[BaseException] | None]]) -> list[Any]:
    """The events and results of the same calls, driven in one way."""
    heard: list[Event] = []
    results: list[Any] = []
    with FakeClock() as clock:
        policy = Policy(
            timeout=Percentile(99, min_samples=3),
            # no randomness in the open time
            breaker=Breaker(failures=3, open_for=1e-6, open_max=1e-6),
            ignore=(KeyError,),
        )
        block = TimedBlock("story", policy)
        end = subscribe(heard.append)
        for seconds, error in steps:

            def work(seconds: float = seconds, error: type[BaseException] | None = error) -> str:
                clock.advance(seconds)
                if error is not None:
                    raise error
                return "answer"

            clock.advance(0.01)
            try:
                results.append(_drive(way, block, work))
            except BaseException as raised:
                results.append(type(raised))
        end()
        counts = (block.tally.late, block.tally.unwell, block.tally.unavailable)
        results.append((counts, block.histogram.counts, block.learnt))
    return [results, [_told(event) for event in heard]]


def _drive(way: str, block: TimedBlock, work: Any) -> Any:
    if way == "call":
        return block.call(work)
    if way == "with":
        with block:
            return work()
    call = block.begin()
    try:
        result = work()
    except BaseException as error:
        raise call.failed(error).error from None
    call.succeeded()
    return result


@settings(max_examples=100)
@given(st.lists(STEP, max_size=25))
def test_every_way_tells_the_same_story(
    steps: list[tuple[float, type[BaseException] | None]],
) -> None:
    """`.call` and `with` write parts out; results, events, counts and limits are begin's."""
    plain = _story("begin", steps)
    assert _story("call", steps) == plain
    assert _story("with", steps) == plain


# -- deadlines --------------------------------------------------------------------------------


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["limit", "block"]),
            st.floats(0.001, 100, allow_nan=False),
            st.floats(0, 5, allow_nan=False),
        ),
        max_size=8,
    )
)
def test_deadlines_nest(levels: list[tuple[str, float, float]]) -> None:
    """In any nesting what is left is the least of all, and leaving restores it exactly."""
    with FakeClock() as clock:
        ends: list[float] = []

        def enter(level: int) -> None:
            before = get()
            if level == len(levels):
                return
            kind, seconds, passed = levels[level]
            block = TimedBlock("nest", Policy(timeout=Fixed(seconds)))
            try:
                with time_limit(seconds) if kind == "limit" else block:
                    ends.append(clock.now() + seconds)
                    left = max(0.0, min(ends) - clock.now())
                    assert remaining() == pytest.approx(left, abs=1e-9)
                    clock.advance(passed)
                    enter(level + 1)
                    ends.pop()
            except DeadlineExceeded:
                assert min(ends) <= clock.now()
            assert get() is before

        enter(0)
        assert get() is None
