"""`with block:` — every entry has its own state, in threads, contexts and generators."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from timedblock import (
    Breaker,
    CircuitOpen,
    DeadlineExceeded,
    Fixed,
    Overloaded,
    Policy,
    Retry,
    TimedBlock,
    remaining,
    stats,
    time_limit,
)
from timedblock.deadline import get
from timedblock.testing import FakeClock


def test_the_body_is_timed(clock: FakeClock) -> None:
    """The body's time is recorded, its limit is in force and is put back."""
    block = TimedBlock("body", Policy(timeout=Fixed(0.5)))
    with block as call:
        assert remaining() == pytest.approx(0.5)
        assert list(block.in_flight) == [call]
        clock.advance(0.1)
    assert get() is None
    assert not block.in_flight
    assert block.histogram.answered_total == 1


def test_a_block_can_be_entered_again_inside_itself(clock: FakeClock) -> None:
    """Re-entrant: two entries are two calls, and end in their order."""
    block = TimedBlock("twice", Policy(bulkhead=2))
    with block as outer:
        with block as inner:
            assert inner is not outer
            assert get() is inner
            with pytest.raises(Overloaded), block:
                pass
        assert get() is outer
    assert get() is None
    assert block.histogram.answered_total == 2


def test_an_error_in_the_body_passes_and_counts(clock: FakeClock) -> None:
    """The body's own error is raised as it is."""
    block = TimedBlock("err", Policy(breaker=Breaker(failures=1)))
    error = OSError()
    with pytest.raises(OSError) as caught, block:
        raise error
    assert caught.value is error
    assert get() is None
    with pytest.raises(CircuitOpen), block:
        pytest.fail("the body ran")
    assert get() is None


def test_a_timeout_error_at_the_limit_becomes_deadline_exceeded(clock: FakeClock) -> None:
    """As with `.call`: the body's TimeoutError at the limit is the cause."""
    block = TimedBlock("cutbody", Policy(timeout=Fixed(0.5)))
    with pytest.raises(DeadlineExceeded) as caught, block:
        clock.advance(0.5)
        raise TimeoutError("mine")
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_a_late_body_is_no_error(clock: FakeClock) -> None:
    """The exit raises nothing because of time."""
    block = TimedBlock("latebody", Policy(timeout=Fixed(0.1)))
    with block:
        clock.advance(10)
    assert stats()["blocks"]["latebody"]["late"] == 1


def test_a_base_exception_gives_the_slot_back(clock: FakeClock) -> None:
    """Neither success nor failure."""
    block = TimedBlock("leaving", Policy(bulkhead=1, breaker=Breaker(failures=1)))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), block:
            raise KeyboardInterrupt
    assert not block.in_flight
    assert stats()["blocks"]["leaving"]["calls"] == 0


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        ({"retry": Retry()}, "retry"),
        ({"fallback": None}, "fallback"),
        ({"isolation": "thread"}, "isolation"),
    ],
)
def test_with_refuses_what_it_cant_honour(
    clock: FakeClock, policy: dict[str, Any], named: str
) -> None:
    """A body can't be repeated, replaced or moved: TypeError at the entry, naming it."""
    block = TimedBlock("refusing", Policy(**policy))
    for _ in range(2):
        with pytest.raises(TypeError, match=named), block:
            pytest.fail("the body ran")
    assert not block.in_flight
    assert get() is None


def test_a_time_limit_inside_and_outside(clock: FakeClock) -> None:
    """Deadlines nest in any mixture of blocks and limits."""
    block = TimedBlock("mixed", Policy(timeout=Fixed(0.5)))
    with time_limit(1.0), block, time_limit(0.2):
        assert remaining() == pytest.approx(0.2)
    with time_limit(0.3), block, time_limit(2.0):
        assert remaining() == pytest.approx(0.3)
    assert get() is None


def _held(block: TimedBlock) -> Iterator[int]:
    with block:
        yield 1


def test_leaving_in_another_context_is_quiet(clock: FakeClock) -> None:
    """A generator closed elsewhere gives its slot back and changes nothing there."""
    block = TimedBlock("elsewhere", Policy(bulkhead=1))
    generator = _held(block)
    contextvars.copy_context().run(next, generator)
    assert len(block.in_flight) == 1
    with time_limit(1.0):
        generator.close()  # type: ignore[attr-defined]
        assert remaining() == pytest.approx(1.0)
    assert not block.in_flight
    assert get() is None


def test_every_exit_elsewhere_gives_one_slot_back(clock: FakeClock) -> None:
    """However the entries of several contexts are closed: the slots add up."""
    block = TimedBlock("slots", Policy(bulkhead=5))
    generators = [_held(block) for _ in range(5)]
    for generator in generators:
        contextvars.copy_context().run(next, generator)
    for left, generator in enumerate(generators):
        generator.close()  # type: ignore[attr-defined]
        assert len(block.in_flight) == 4 - left


def test_leaving_elsewhere_without_an_entry_is_quiet(clock: FakeClock) -> None:
    """More exits than entries can't be, but if: nothing happens."""
    block = TimedBlock("none")
    block.__exit__(None, None, None)
    assert get() is None


def test_a_generator_left_out_of_turn_leaves_no_dead_limit(clock: FakeClock) -> None:
    """A generator's block that outlives the caller's: neither is in force for the next call."""
    inner = TimedBlock("inner", Policy(timeout=Fixed(0.5)))
    outer = TimedBlock("outer", Policy(timeout=Fixed(1.0)))
    generator = _held(inner)
    with outer:
        next(generator)
    generator.close()  # type: ignore[attr-defined]
    assert not inner.in_flight
    assert not outer.in_flight
    clock.advance(10)
    assert remaining() is None


def test_an_error_in_a_block_left_out_of_turn_passes(clock: FakeClock) -> None:
    """The outer body fails while a generator's entry is open inside: its own error, counted."""
    inner, outer = TimedBlock("inner"), TimedBlock("outer-failing")
    generator = _held(inner)
    with pytest.raises(OSError), outer:
        next(generator)
        raise OSError
    generator.close()  # type: ignore[attr-defined]
    assert stats()["blocks"]["outer-failing"]["unwell"] == 1
    assert not inner.in_flight
    assert get() is None


def test_threads_have_their_own_entries() -> None:
    """Twenty threads in one block: each ends its own call."""
    block = TimedBlock("threads", Policy(timeout=Fixed(30)))
    together = threading.Barrier(20)
    mine: list[bool] = []

    def work() -> None:
        with block as call:
            together.wait(10)
            mine.append(get() is call)
            together.wait(10)

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mine == [True] * 20
    assert not block.in_flight
    assert stats()["blocks"]["threads"]["ok"] == 20


def test_a_call_ended_by_hand_in_the_body_isnt_ended_twice(clock: FakeClock) -> None:
    """The body may tell the machine itself."""
    block = TimedBlock("byhand")
    with block as call:
        call.succeeded()
    assert stats()["blocks"]["byhand"]["calls"] == 1
    assert get() is None
