"""The clock that tests advance by hand."""

from __future__ import annotations

import asyncio
import math
import threading

import pytest

from timedblock import Deadline, TimedBlock
from timedblock import clock as clocks
from timedblock.testing import FakeClock


def test_time_stands_still() -> None:
    """Until it is advanced."""
    clock = FakeClock(5)
    assert clock.now() == clock.monotonic() == 5
    clock.advance(1.5)
    clock.advance(0)
    assert clock.now() == 6.5


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1, "1", None])
def test_time_doesnt_run_backwards(seconds: object) -> None:
    """A step that is no time is refused and named."""
    with pytest.raises((ValueError, TypeError), match="advance"):
        FakeClock().advance(seconds)  # type: ignore[arg-type]


def test_blocks_made_inside_keep_it() -> None:
    """It is the clock of what is made inside, also after leaving; nothing else sees it."""
    with FakeClock() as clock:
        block, deadline = TimedBlock("b"), Deadline.after(1)
        assert clocks.current() is clock
    assert block.clock is clock
    assert deadline.clock is clock
    assert clocks.current() is clocks.SYSTEM
    clock.advance(2)
    assert deadline.remaining() == 0


def test_clocks_nest_and_leave_in_any_order() -> None:
    """The innermost one counts; leaving another one twice does nothing."""
    outer, inner = FakeClock(), FakeClock()
    with outer:
        inner.__enter__()
        assert clocks.current() is inner
        with inner:
            pass
        assert clocks.current() is inner
    assert clocks.current() is inner
    inner.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    clocks.pop(outer)
    assert clocks.current() is clocks.SYSTEM


def test_threads_see_it() -> None:
    """What a test's threads make is on the fake clock too."""
    found: list[object] = []
    with FakeClock() as clock:
        thread = threading.Thread(target=lambda: found.append(clocks.current()))
        thread.start()
        thread.join()
    assert found == [clock]


def test_a_sleep_advances() -> None:
    """One thread can drive every pause; a negative one is none."""
    clock = FakeClock(0)
    clock.sleep(2.5)
    clock.sleep(-1)
    assert clock.now() == 2.5


def test_a_wait_ends_by_the_lock_or_by_time() -> None:
    """Fake seconds count; a free lock is acquired at once."""
    clock = FakeClock()
    lock = threading.Lock()
    assert clock.wait(lock, 0)
    assert not clock.wait(lock, 0)
    over = threading.Event()

    def advance() -> None:
        while not over.is_set():
            clock.advance(1)

    thread = threading.Thread(target=advance)
    thread.start()
    assert not clock.wait(lock, 5)
    over.set()
    thread.join()
    lock.release()
    assert clock.wait(lock, 5)


def test_timers_fire_when_it_is_their_time() -> None:
    """At their instant, once, in their loop; a cancelled one never."""
    clock = FakeClock(0)
    fired: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        clock.timer(loop, 1.0, lambda: fired.append("one"))
        clock.timer(loop, 2.0, lambda: fired.append("never")).cancel()
        clock.timer(loop, 0.0, lambda: fired.append("at once"))
        late = clock.timer(loop, 1.0, lambda: fired.append("cancelled at the last moment"))
        await asyncio.sleep(0)
        clock.advance(1.0)
        late.cancel()
        await asyncio.sleep(0)
        clock.advance(10)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert fired == ["at once", "one"]


def test_the_systems_clock_waits_and_times() -> None:
    """The same protocol on real time; centuries are cut to what threading takes."""
    clock, lock = clocks.SYSTEM, threading.Lock()
    assert clock.wait(lock, 1e12)
    assert not clock.wait(lock, 0)
    assert not clock.wait(lock, 0.001)
    fired: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        clock.timer(loop, clock.monotonic() - 1, lambda: fired.append(1))
        clock.timer(loop, clock.monotonic() + 60, lambda: fired.append(2)).cancel()
        await asyncio.sleep(0.001)

    asyncio.run(main())
    assert fired == [1]
