"""Observe mode: only ceilings cut; learnt limits and breakers decide on paper."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from timedblock import (
    Breaker,
    CircuitOpen,
    DeadlineExceeded,
    Fixed,
    Percentile,
    Policy,
    TimedBlock,
    events,
    health,
    registry,
    stats,
    time_limit,
)
from timedblock.config import Configuration
from timedblock.testing import FakeClock

Observe = Callable[[], Configuration]


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks obey what the test installs, and nothing of it outlives the test."""
    gc.collect()
    monkeypatch.setattr(registry, "source", None)
    monkeypatch.setattr(registry, "find_source", None)
    listeners = list(events.listeners)
    yield
    events.listeners[:] = listeners


@pytest.fixture
def observe(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Observe:
    """Go to observe mode, as TIMEDBLOCK_MODE=observe does."""

    def start() -> Configuration:
        configuration = Configuration({"TIMEDBLOCK_MODE": "observe"})
        monkeypatch.setattr(registry, "source", configuration)
        return configuration

    return start


def taught(clock: FakeClock, **policy: Any) -> TimedBlock:
    """A block whose answers took 0.1 s, so that its limit is near 0.2 s."""
    block = TimedBlock("work", Policy(**policy))
    for _ in range(200):
        block.call(clock.advance, 0.1)
    assert block.learnt.source == "learnt"
    assert 0.15 < block.learnt.limit < 0.25
    return block


def count(name: str = "work") -> dict[str, Any]:
    """What stats() says of the block."""
    found: dict[str, Any] = stats()["blocks"][name]
    return found


def refuse() -> None:
    """Work that fails at once."""
    raise ConnectionRefusedError


def hang(clock: FakeClock, seconds: float) -> None:
    """Work that obeys a limit of `seconds` in force."""
    clock.advance(seconds)
    raise TimeoutError


def test_call_past_its_learnt_limit_is_answered_and_counted(
    clock: FakeClock, observe: Observe
) -> None:
    """Its limit is the ceiling; on paper it would have been cut."""
    observe()
    block = taught(clock)
    with block as call:
        assert call.limit == 1.0
        clock.advance(0.5)
    assert block.call(lambda: clock.advance(0.5) or 7) == 7
    found = count()
    assert (found["would_cut"], found["would_reject"]) == (2, 0)
    assert (found["ok"], found["late"], found["unavailable"]) == (202, 0, 0)
    assert (found["limit"], found["limit_source"]) == (1.0, "ceiling")
    assert found["would_limit"] == block.learnt.limit


def test_call_within_its_learnt_limit_is_not_counted(clock: FakeClock, observe: Observe) -> None:
    """Neither is one whose limit was its own."""
    observe()
    block = taught(clock)
    block.call(clock.advance, 0.14)
    call = block.begin(limit=0.9)
    clock.advance(0.5)
    call.succeeded()
    assert count()["would_cut"] == 0


def test_error_past_the_learnt_limit_is_counted_and_passes(
    clock: FakeClock, observe: Observe
) -> None:
    """The store's own late error is one that the learnt limit would have hidden."""
    observe()
    block = taught(clock)

    def slow_error() -> None:
        clock.advance(0.5)
        raise KeyError("x")

    with pytest.raises(KeyError):
        block.call(slow_error)
    assert count()["would_cut"] == 1
    assert count()["unwell"] == 1


def test_ceiling_cuts_as_ever(clock: FakeClock, observe: Observe) -> None:
    """What is cut really is not counted as cut on paper."""
    observe()
    block = taught(clock)
    with pytest.raises(DeadlineExceeded) as caught:
        block.call(hang, clock, 1.0)
    assert "attempt limit 1.000, ceiling" in str(caught.value)
    assert count()["would_cut"] == 0
    assert count()["unavailable"] == 1


def test_fixed_limit_is_its_own_ceiling(clock: FakeClock, observe: Observe) -> None:
    """Nothing about it was learnt, so it holds."""
    observe()
    block = TimedBlock("work", Policy(timeout=Fixed(0.3)))
    with pytest.raises(DeadlineExceeded):
        block.call(hang, clock, 0.3)
    assert (count()["limit"], count()["limit_source"]) == (0.3, "fixed")


def test_open_breaker_lets_everything_through_and_counts(
    clock: FakeClock, observe: Observe, caplog: pytest.LogCaptureFixture
) -> None:
    """It opens, refuses, probes and closes on paper; health stays ok."""
    observe()
    block = taught(clock, breaker=Breaker(failures=3))
    assert block.circuit is not None
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                block.call(refuse)
            clock.advance(0.01)
    assert block.circuit.state == "open"
    assert "on paper" in caplog.text
    for _ in range(5):
        with pytest.raises(ConnectionRefusedError):
            block.call(refuse)
    assert block.call(lambda: 7) == 7
    assert count()["would_reject"] == 6
    assert block.circuit.state == "open"
    assert health()["blocks"]["work"] == "ok"
    clock.advance(1.0)
    assert block.call(lambda: 7) == 7  # the probe
    assert block.circuit.state == "closed"
    assert count()["would_reject"] == 6


def test_call_that_would_not_have_been_started_is_not_also_cut(
    clock: FakeClock, observe: Observe
) -> None:
    """It is counted once."""
    observe()
    block = taught(clock, breaker=Breaker(failures=1))
    with pytest.raises(ConnectionRefusedError):
        block.call(refuse)
    block.call(clock.advance, 0.4)
    assert (count()["would_reject"], count()["would_cut"]) == (1, 0)


def test_budget_below_the_median_starts_all_the_same(clock: FakeClock, observe: Observe) -> None:
    """Enforcing, the call would not have been started."""
    observe()
    block = taught(clock)
    with time_limit(0.05):
        assert block.call(lambda: 7) == 7
    assert (count()["would_reject"], count()["ok"]) == (1, 201)


def test_initial_limit_is_on_paper_too(clock: FakeClock, observe: Observe) -> None:
    """A guess of the code's is no ceiling; the breaker counts it as the failure that it were."""
    observe()
    policy = Policy(timeout=Percentile(initial=0.1), breaker=Breaker(failures=3))
    block = TimedBlock("work", policy)
    for _ in range(3):
        block.call(clock.advance, 0.3)
    assert count()["would_cut"] == 3
    assert block.circuit is not None
    assert block.circuit.state == "open"


def test_slow_store_opens_no_breaker_on_paper(clock: FakeClock, observe: Observe) -> None:
    """Late answers are signs of life, as when it enforces."""
    observe()
    block = taught(clock)
    for _ in range(30):
        block.call(clock.advance, 0.6)
    assert count()["would_cut"] >= 1
    assert block.circuit is not None
    assert block.circuit.state == "closed"


def test_silent_store_opens_the_breaker_on_paper(clock: FakeClock, observe: Observe) -> None:
    """Calls that ran into the ceiling were, on paper, over at the learnt limit."""
    observe()
    block = taught(clock)
    for _ in range(5):
        with pytest.raises(DeadlineExceeded):
            block.call(hang, clock, 1.0)
    assert block.circuit is not None
    assert block.circuit.state == "open"


def test_block_without_breaker_is_counted_too(clock: FakeClock, observe: Observe) -> None:
    """Cuts on paper need no breaker."""
    observe()
    block = taught(clock, breaker=None)
    block.call(clock.advance, 0.5)
    assert (count()["would_cut"], count()["breaker"]) == (1, None)


def test_file_goes_from_observing_to_enforcing(
    clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was learnt meanwhile is in force at once, and no call takes the long way any more."""
    file = tmp_path / "a.toml"
    file.write_text('mode = "observe"')
    quiet = list(events.listeners)
    configuration = Configuration({}, file)
    monkeypatch.setattr(registry, "source", configuration)
    block = taught(clock, breaker=Breaker(failures=1))
    with pytest.raises(ConnectionRefusedError):
        block.call(refuse)
    assert events.listeners != quiet
    file.write_text('mode = "enforce"')
    configuration.poll()
    configuration.poll()
    assert events.listeners == quiet
    assert block.limit == block.learnt.limit < 0.25
    assert (count()["limit_source"], count()["would_limit"]) == ("learnt", None)
    with pytest.raises(CircuitOpen):
        block.call(lambda: 7)
    file.write_text('mode = "observe"')
    configuration.poll()
    configuration.poll()
    assert block.limit == 1.0
    assert block.call(lambda: 7) == 7


def test_enforcing_counts_nothing_on_paper(clock: FakeClock) -> None:
    """The counts are there, and stay zero."""
    block = taught(clock)
    block.call(clock.advance, 0.5)
    with time_limit(0.05), pytest.raises(DeadlineExceeded):
        block.call(lambda: 7)
    found = count()
    assert (found["would_cut"], found["would_reject"], found["would_limit"]) == (0, 0, None)
