"""Coroutines: cancelled at the limit, and nobody else's cancellation is touched."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import tenacity

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
    time_limit,
)
from timedblock.coroutines import CancelAt
from timedblock.deadline import get
from timedblock.testing import FakeClock

Run = Callable[[TimedBlock, Callable[[], Awaitable[Any]]], Awaitable[Any]]


async def _by_acall(block: TimedBlock, work: Callable[[], Awaitable[Any]]) -> Any:
    return await block.acall(work)  # type: ignore[arg-type]


async def _by_with(block: TimedBlock, work: Callable[[], Awaitable[Any]]) -> Any:
    async with block:
        return await work()


async def _by_decorator(block: TimedBlock, work: Callable[[], Awaitable[Any]]) -> Any:
    @block
    async def decorated() -> Any:
        return await work()

    return await decorated()


ways = pytest.mark.parametrize("run", [_by_acall, _by_with, _by_decorator])


async def _turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class _NoUncancel:
    """A task as 3.10 has it: without `cancelling` and `uncancel`."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.cancel = task.cancel


@pytest.fixture(params=["this python", "as on 3.10"])
def semantics(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything twice: with this Python's tasks, and with what 3.10's offer."""
    if request.param == "as on 3.10":
        current = asyncio.current_task
        monkeypatch.setattr("timedblock.coroutines.asyncio.current_task", lambda: _old(current()))


def _old(task: asyncio.Task[Any] | None) -> Any:
    return None if task is None else _NoUncancel(task)


@ways
def test_an_answer_is_returned(clock: FakeClock, run: Run) -> None:
    """The coroutine's value, with the block's limit in force inside and put back after."""
    block = TimedBlock("a", Policy(timeout=Fixed(0.5)))

    async def work() -> float | None:
        await asyncio.sleep(0)
        return remaining()

    async def main() -> None:
        with time_limit(3.0):
            assert await run(block, work) == pytest.approx(0.5)
            assert remaining() == pytest.approx(3.0)

    asyncio.run(main())
    assert block.histogram.answered_total == 1


@ways
@pytest.mark.usefixtures("semantics")
def test_it_is_cancelled_at_its_limit(clock: FakeClock, run: Run) -> None:
    """A coroutine that hangs is cancelled, and the caller gets DeadlineExceeded."""
    block = TimedBlock("hang", Policy(timeout=Fixed(0.5)))
    seen: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main() -> None:
        task = asyncio.ensure_future(run(block, hang))
        await _turns()
        clock.advance(0.4)
        await _turns()
        assert not task.done()
        clock.advance(0.1)
        with pytest.raises(DeadlineExceeded) as caught:
            await task
        assert caught.value.elapsed == pytest.approx(0.5)
        assert caught.value.sent is True

    asyncio.run(main())
    assert seen == ["cancelled"]
    assert not block.in_flight


@ways
@pytest.mark.usefixtures("semantics")
def test_a_foreign_cancellation_passes_untouched(clock: FakeClock, run: Run) -> None:
    """Whoever cancels the task sees it cancelled; the breaker doesn't hear of it."""
    block = TimedBlock("foreign", Policy(timeout=Fixed(0.5), breaker=Breaker(failures=1)))

    async def main() -> None:
        task = asyncio.ensure_future(run(block, asyncio.Event().wait))
        await _turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        clock.advance(10)
        await _turns()

    asyncio.run(main())
    assert block.circuit is not None
    assert block.circuit.state == "closed"
    assert not block.in_flight


@ways
def test_a_foreign_cancellation_together_with_ours_wins(clock: FakeClock, run: Run) -> None:
    """Both in one turn of the loop: the task was cancelled by somebody, so it is cancelled."""
    if not hasattr(asyncio.Task, "uncancel"):
        pytest.skip("Python 3.10 can't tell the two apart")
    block = TimedBlock("both", Policy(timeout=Fixed(0.5)))

    async def main() -> None:
        task = asyncio.ensure_future(run(block, asyncio.Event().wait))
        await _turns()
        clock.advance(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert not block.in_flight


@ways
@pytest.mark.usefixtures("semantics")
def test_nothing_is_cancelled_afterwards(clock: FakeClock, run: Run) -> None:
    """The timer of a call that was answered in time never fires into the caller."""
    block = TimedBlock("after", Policy(timeout=Fixed(0.5)))

    async def main() -> None:
        await run(block, _turns)
        clock.advance(10)
        await _turns()

    asyncio.run(main())


@ways
@pytest.mark.usefixtures("semantics")
def test_an_answer_in_spite_of_the_cancellation_is_late(clock: FakeClock, run: Run) -> None:
    """Work that finishes when it is cancelled isn't turned into an error."""
    block = TimedBlock("stubborn", Policy(timeout=Fixed(0.5)))

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            clock.advance(0.1)
        return "answer"

    async def main() -> None:
        task = asyncio.ensure_future(run(block, stubborn))
        await _turns()
        clock.advance(0.5)
        assert await task == "answer"
        await _turns()

    asyncio.run(main())
    assert block.tally.late == 1


@ways
def test_errors_pass_and_count(clock: FakeClock, run: Run) -> None:
    """The coroutine's own error is raised as it is; enough of them open the breaker."""
    block = TimedBlock("errors", Policy(breaker=Breaker(failures=1)))
    error = OSError()

    async def fail() -> None:
        raise error

    async def main() -> None:
        with pytest.raises(OSError) as caught:
            await run(block, fail)
        assert caught.value is error
        with pytest.raises(CircuitOpen):
            await run(block, fail)

    asyncio.run(main())


@ways
def test_the_callers_deadline_cuts_it(clock: FakeClock, run: Run) -> None:
    """A surrounding time_limit shortens a coroutine's limit."""
    block = TimedBlock("outer", Policy(timeout=Fixed(5)))

    async def main() -> None:
        with time_limit(0.1):
            task = asyncio.ensure_future(run(block, asyncio.Event().wait))
        await _turns()
        clock.advance(0.1)
        with pytest.raises(DeadlineExceeded):
            await task

    asyncio.run(main())


@pytest.mark.usefixtures("semantics")
def test_nested_coroutines_end_at_one_instant(clock: FakeClock) -> None:
    """Inner and outer limits that pass together: one honest error, nothing left to cancel."""
    inner = TimedBlock("inner", Policy(timeout=Fixed(5)))
    outer = TimedBlock("outer", Policy(timeout=Fixed(0.5)))

    async def main() -> None:
        task = asyncio.ensure_future(outer.acall(inner.acall, asyncio.Event().wait))
        await _turns()
        clock.advance(0.5)
        with pytest.raises(DeadlineExceeded):
            await task
        await _turns()

    asyncio.run(main())
    assert not inner.in_flight
    assert not outer.in_flight


def test_each_task_has_its_own_entry(clock: FakeClock) -> None:
    """Tasks in one block at the same time don't end each other's calls."""
    block = TimedBlock("tasks", Policy(bulkhead=3))

    async def main() -> None:
        gates = [asyncio.Event() for _ in range(3)]
        tasks = [asyncio.ensure_future(_by_with(block, gate.wait)) for gate in gates]
        await _turns()
        with pytest.raises(Overloaded):
            await block.acall(_turns)
        for left, (gate, task) in enumerate(zip(gates[::-1], tasks[::-1], strict=True)):
            gate.set()
            await task
            assert len(block.in_flight) == 2 - left

    asyncio.run(main())


def test_it_is_retried_without_blocking(clock: FakeClock) -> None:
    """A failed coroutine is awaited again after tenacity's pause."""
    policy = Policy(timeout=Fixed(1), retry=Retry(attempts=3, wait=tenacity.wait_fixed(0.1)))
    block = TimedBlock("again", policy)
    starts: list[float] = []

    async def flaky() -> str:
        starts.append(clock.now())
        if len(starts) < 2:
            raise OSError
        return "answer"

    assert asyncio.run(block.acall(flaky)) == "answer"
    assert starts[1] - starts[0] == pytest.approx(0.1)


def test_the_pause_sleeps_in_the_loop() -> None:
    """On the system's clock other tasks run during the pause."""
    policy = Policy(timeout=Fixed(5), retry=Retry(attempts=2, wait=tenacity.wait_fixed(0.02)))
    block = TimedBlock("pause", policy)
    starts: list[int] = []
    turns: list[int] = []

    async def flaky() -> int:
        starts.append(1)
        if len(starts) < 2:
            raise OSError
        return len(turns)

    async def main() -> int:
        call = asyncio.ensure_future(block.acall(flaky))
        while not call.done():
            turns.append(1)
            await asyncio.sleep(0.001)
        return await call

    assert asyncio.run(main()) > 2


def test_an_attempt_that_may_not_begin_ends_the_call(clock: FakeClock) -> None:
    """The breaker opened between two attempts: CircuitOpen, and no slot is lost."""
    policy = Policy(retry=Retry(attempts=3), breaker=Breaker(failures=1), bulkhead=1)
    block = TimedBlock("opened", policy)

    async def fail() -> None:
        raise OSError

    async def main() -> None:
        with pytest.raises(CircuitOpen):
            await block.acall(fail)

    asyncio.run(main())
    assert not block.in_flight


def test_a_constant_fallback(clock: FakeClock) -> None:
    """A constant stands in for a failure and for a refusal."""
    block = TimedBlock("const", Policy(fallback="f", breaker=Breaker(failures=1)))

    async def fail() -> str:
        raise OSError

    async def main() -> list[str]:
        return [await block.acall(fail), await block.acall(fail)]

    assert asyncio.run(main()) == ["f", "f"]


def test_a_coroutine_fallback_runs_within_its_limit(clock: FakeClock) -> None:
    """A coroutine function as the fallback is awaited, with its limit in force inside."""
    left: list[float | None] = []

    async def fallback() -> str:
        left.append(remaining())
        return "awaited"

    block = TimedBlock("cofall", Policy(fallback=fallback, fallback_limit=0.1))

    async def fail() -> str:
        raise OSError

    assert asyncio.run(block.acall(fail)) == "awaited"
    assert left == [pytest.approx(0.1)]


@pytest.mark.parametrize(("budget", "end"), [(5.0, 0.1), (0.04, 0.04)])
def test_a_coroutine_fallback_that_hangs_is_cut(
    clock: FakeClock, budget: float, end: float
) -> None:
    """At fallback_limit or the caller's deadline, whichever is sooner, with an honest error."""

    async def hang() -> None:
        await asyncio.Event().wait()

    block = TimedBlock("hangfall", Policy(fallback=hang, fallback_limit=0.1))

    async def fail() -> None:
        raise ConnectionResetError

    async def main() -> None:
        with time_limit(budget):
            task = asyncio.ensure_future(block.acall(fail))
        await _turns()
        clock.advance(end - 0.001)
        await _turns()
        assert not task.done()
        clock.advance(0.002)
        with pytest.raises(DeadlineExceeded):
            await task

    asyncio.run(main())


def test_cancel_at_needs_a_task(clock: FakeClock) -> None:
    """Outside a task there is nothing to cancel: a clear error."""

    class Bare:
        def __await__(self) -> Any:
            return CancelAt(clock, clock.now() + 1).__aenter__().__await__()

    with pytest.raises(RuntimeError):
        next(Bare().__await__())


def test_without_a_limit_nothing_is_timed(clock: FakeClock) -> None:
    """timeout=None and no deadline: no timer at all."""
    block = TimedBlock("free", Policy(timeout=None))
    asyncio.run(block.acall(_turns))
    assert clock._timers == []


def test_the_limit_holds_on_the_systems_clock() -> None:
    """Without a fake clock too."""
    block = TimedBlock("real", Policy(timeout=Fixed(0.02)))

    async def main() -> None:
        with pytest.raises(DeadlineExceeded):
            await block.acall(asyncio.Event().wait)
        with pytest.raises(DeadlineExceeded):
            async with block:
                await asyncio.Event().wait()

    asyncio.run(main())
    assert get() is None
