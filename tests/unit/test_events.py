"""What listeners and the log are told, in which order, and how little they can break."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

import pytest

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
    events,
    subscribe,
    time_limit,
)
from timedblock.testing import FakeClock


def _names(heard: list[Event]) -> list[str]:
    return [type(event).__name__ for event in heard]


def _fail(error: BaseException) -> None:
    raise error


@pytest.fixture(autouse=True)
def _fresh_lines() -> Iterator[None]:
    events._last_line.clear()
    yield
    events._last_line.clear()


def test_a_success_is_told_with_its_time(clock: FakeClock, heard: list[Event]) -> None:
    """One event for a call that was answered, with how long it took."""
    TimedBlock("b").call(clock.advance, 0.3)
    assert heard == [events.CallSucceeded("b", None, clock.now(), 0.3)] or (
        isinstance(heard[0], events.CallSucceeded)
        and heard[0].elapsed == pytest.approx(0.3)
        and not heard[0].late
    )
    assert len(heard) == 1


def test_events_are_frozen(clock: FakeClock, heard: list[Event]) -> None:
    """A listener can't change what the next one sees."""
    TimedBlock("b").call(int)
    with pytest.raises(dataclasses.FrozenInstanceError):
        heard[0].block = "other"  # type: ignore[misc]


def test_a_retried_call_tells_its_story_in_order(clock: FakeClock, heard: list[Event]) -> None:
    """Failed, retried, failed, fallen back: as it happened."""
    block = TimedBlock("b", Policy(retry=Retry(attempts=2), fallback="f"))
    assert block.call(_fail, OSError("secret")) == "f"
    assert _names(heard) == ["CallFailed", "CallRetried", "CallFailed", "FellBack"]
    assert "secret" not in repr(heard)
    failed = heard[0]
    assert isinstance(failed, events.CallFailed)
    assert (failed.kind, failed.error) == ("unwell", "OSError")
    retried = heard[1]
    assert isinstance(retried, events.CallRetried)
    assert retried.attempt == 1


def test_refusals_are_told_with_their_reason(clock: FakeClock, heard: list[Event]) -> None:
    """A call that isn't started says why: the circuit, the bulkhead or the deadline."""
    block = TimedBlock("b", Policy(bulkhead=1, breaker=Breaker(failures=1)))
    call = block.begin()
    with pytest.raises(Overloaded):
        block.begin()
    call.failed(OSError())
    with pytest.raises(CircuitOpen):
        block.begin()
    with time_limit(0.1):
        clock.advance(0.2)
        with pytest.raises(DeadlineExceeded):
            block.begin()
    rejected = [event for event in heard if isinstance(event, events.CallRejected)]
    assert [event.reason for event in rejected] == ["bulkhead", "circuit", "deadline"]


def test_an_abandoned_call_is_told_as_such(clock: FakeClock, heard: list[Event]) -> None:
    """A BaseException is neither success nor failure."""
    with pytest.raises(KeyboardInterrupt):
        TimedBlock("b").call(_fail, KeyboardInterrupt())
    assert _names(heard) == ["CallAbandoned"]


def test_a_breaker_tells_its_changes(clock: FakeClock, heard: list[Event]) -> None:
    """Closed, open, half-open, closed: each with its reason."""
    block = TimedBlock("b", Policy(breaker=Breaker(failures=1)))
    with pytest.raises(OSError):
        block.call(_fail, OSError())
    clock.advance(1)
    block.call(int)
    changes = [event for event in heard if isinstance(event, events.BreakerChanged)]
    assert [(change.old, change.new) for change in changes] == [
        ("closed", "open"),
        ("open", "half-open"),
        ("half-open", "closed"),
    ]
    assert "OSError" in changes[0].reason


def test_a_moved_limit_is_told(clock: FakeClock, heard: list[Event]) -> None:
    """A learnt limit's change is an event with both values."""
    block = TimedBlock("b", Policy(timeout=Percentile(99, min_samples=10)))
    for _ in range(20):
        block.call(clock.advance, 0.04)
    moved = [event for event in heard if isinstance(event, events.LimitChanged)]
    assert moved[0].old == 1.0
    assert moved[0].new == pytest.approx(0.08, rel=0.05)
    assert moved[0].source == "learnt"


def test_a_broken_listener_breaks_nothing(
    clock: FakeClock, heard: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    """The call is answered and the other listeners are told; the log has the type only."""

    def broken(event: Event) -> None:
        raise ValueError("secret")

    unsubscribe = subscribe(broken)
    events.listeners.insert(0, events.listeners.pop())
    with caplog.at_level(logging.WARNING, "timedblock"):
        assert TimedBlock("b").call(lambda: 7) == 7
    unsubscribe()
    assert _names(heard) == ["CallSucceeded"]
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_unsubscribing_twice_is_harmless() -> None:
    """The returned function ends the subscription, once."""
    unsubscribe = subscribe(print)
    unsubscribe()
    unsubscribe()
    assert print not in events.listeners


def test_a_listener_may_leave_while_it_listens(clock: FakeClock) -> None:
    """Unsubscribing inside the listener neither breaks the call nor skips the next listener."""
    seen: list[str] = []

    def once(event: Event) -> None:
        seen.append("once")
        leave()

    leave = subscribe(once)
    stay = subscribe(lambda event: seen.append("stay"))
    TimedBlock("b").call(int)
    TimedBlock("b").call(int)
    stay()
    assert seen == ["once", "stay", "stay"]


def test_a_change_of_state_is_one_line(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """Opening is a warning, closing is information; half-open isn't worth a line."""
    block = TimedBlock("b", Policy(breaker=Breaker(failures=1)))
    with caplog.at_level(logging.INFO, "timedblock"):
        with pytest.raises(OSError):
            block.call(_fail, OSError("secret"))
        clock.advance(1)
        block.call(int)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in lines] == ["WARNING", "INFO"]
    assert lines[0][1] == "b: breaker open (OSError, 1 in a row)"


def test_the_log_is_rate_limited(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """A breaker that flaps writes at most one line a second for each of its states."""
    breaker = Breaker(failures=1, open_for=0.01, open_max=0.01)
    block = TimedBlock("b", Policy(breaker=breaker, timeout=Fixed(1)))
    with caplog.at_level(logging.INFO, "timedblock"):
        for _ in range(100):
            with pytest.raises(OSError):
                block.call(_fail, OSError())
            clock.advance(0.02)
            block.call(int)
    assert 4 <= len(caplog.records) <= 6


def test_the_logs_memory_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """However many names there are, what is remembered of the log stays small."""
    with caplog.at_level(logging.CRITICAL, "timedblock"):
        for number in range(10_000):
            events.log_state(0.0, logging.INFO, f"b{number}", "open", "x")
    assert len(events._last_line) <= 4097
