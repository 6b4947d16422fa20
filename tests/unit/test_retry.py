"""Retries: tenacity decides the waits; the deadline, the budget and the error whether at all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
import tenacity

from timedblock import (
    Breaker,
    CircuitOpen,
    DeadlineExceeded,
    Fixed,
    Policy,
    Retry,
    TimedBlock,
    Unavailable,
    time_limit,
)
from timedblock.testing import FakeClock


class _Flaky:
    """Fails `times` with `error`, then answers; `took` seconds each."""

    def __init__(self, clock: FakeClock, times: int, error: Exception, took: float = 0.0) -> None:
        self.clock, self.left, self.error, self.took = clock, times, error, took
        self.starts: list[float] = []

    def __call__(self) -> str:
        self.starts.append(self.clock.now())
        self.clock.advance(self.took)
        if self.left:
            self.left -= 1
            raise self.error
        return "answer"


def _block(retry: Retry, **policy: Any) -> TimedBlock:
    block = TimedBlock("b", Policy(timeout=policy.pop("timeout", Fixed(1)), retry=retry, **policy))
    for _ in range(100):  # calls that earn repeats
        block.call(int)
    return block


def test_a_failed_attempt_is_repeated(clock: FakeClock) -> None:
    """Two failures, then an answer: the caller sees the answer, in three attempts."""
    work = _Flaky(clock, 2, OSError())
    assert _block(Retry(attempts=3)).call(work) == "answer"
    assert len(work.starts) == 3


def test_the_last_error_is_raised_as_it_is(clock: FakeClock) -> None:
    """When all attempts failed the caller gets the work's own error."""
    error = OSError("down")
    work = _Flaky(clock, 9, error)
    with pytest.raises(OSError) as caught:
        _block(Retry(attempts=3)).call(work)
    assert caught.value is error
    assert len(work.starts) == 3


def test_only_what_on_names_is_repeated(clock: FakeClock) -> None:
    """Another error is raised at once."""
    work = _Flaky(clock, 1, KeyError())
    with pytest.raises(KeyError):
        _block(Retry(on=(OSError,))).call(work)
    assert len(work.starts) == 1


def test_an_answer_isnt_repeated(clock: FakeClock) -> None:
    """What ignore= calls an answer is one."""
    work = _Flaky(clock, 1, KeyError())
    with pytest.raises(KeyError):
        _block(Retry(), ignore=(KeyError,)).call(work)
    assert len(work.starts) == 1


def test_a_base_exception_isnt_repeated(clock: FakeClock) -> None:
    """Nobody is kept from leaving."""
    block = _block(Retry())
    attempts: list[int] = []

    def work() -> None:
        attempts.append(1)
        raise SystemExit

    with pytest.raises(SystemExit):
        block.call(work)
    assert attempts == [1]
    assert not block.in_flight


@pytest.mark.parametrize(
    ("wait", "pauses"),
    [
        (tenacity.wait_fixed(0.1), [0.1, 0.1]),
        (tenacity.wait_exponential(multiplier=0.1), [0.1, 0.2]),
        (tenacity.wait_incrementing(start=0.05, increment=0.1), [0.05, 0.15]),
        (tenacity.wait_none(), [0.0, 0.0]),
        (tenacity.wait_fixed(0.1) + tenacity.wait_fixed(0.05), [0.15, 0.15]),
        (tenacity.wait_chain(tenacity.wait_fixed(0.1), tenacity.wait_fixed(0.2)), [0.1, 0.2]),
        (tenacity.wait_exception(lambda error: float(str(error))), [0.07, 0.07]),
    ],
    ids=["fixed", "exponential", "incrementing", "none", "sum", "chain", "exception"],
)
def test_the_pauses_are_tenacitys(
    clock: FakeClock, wait: tenacity.wait.wait_base, pauses: list[float]
) -> None:
    """Any wait of tenacity's works, those that look at the error too."""
    work = _Flaky(clock, 2, OSError("0.07"))
    _block(Retry(attempts=3, wait=wait)).call(work)
    between = [b - a for a, b in zip(work.starts, work.starts[1:], strict=False)]
    assert between == pytest.approx(pauses)


def test_the_default_pause_is_jittered_and_bounded(clock: FakeClock) -> None:
    """Full jitter: from nothing to backoff, doubling to backoff_max."""
    retry = Retry(backoff=0.1, backoff_max=0.4)
    for attempt in range(1, 10):
        pauses = {retry.pause(attempt, OSError()) for _ in range(50)}
        assert len(pauses) > 10
        assert min(pauses) >= 0 and max(pauses) <= min(0.1 * 2 ** (attempt - 1), 0.4)


def test_the_back_off_is_clamped_by_the_call_limit(clock: FakeClock) -> None:
    """A pause that leaves no time isn't begun: the error comes at once, not at the limit."""
    work = _Flaky(clock, 9, OSError(), took=0.3)
    began = clock.now()
    with pytest.raises(OSError):
        _block(Retry(attempts=5, wait=tenacity.wait_fixed(0.5))).call(work)
    assert clock.now() - began <= 1.2
    assert len(work.starts) == 2


def test_the_back_off_is_clamped_by_the_callers_deadline(clock: FakeClock) -> None:
    """No pause outlasts the deadline in force."""
    work = _Flaky(clock, 9, OSError())
    block = _block(Retry(attempts=5, wait=tenacity.wait_fixed(0.3)))
    with time_limit(0.25), pytest.raises(OSError):
        block.call(work)
    assert len(work.starts) == 1


def test_all_attempts_share_the_call_limit(clock: FakeClock) -> None:
    """Attempts that each run into their limit end together at the call's."""
    block = _block(Retry(attempts=9, wait=tenacity.wait_none()), timeout=Fixed(1), breaker=None)
    began = clock.now()

    def work() -> None:
        left = block_remaining()
        assert left is not None
        clock.advance(min(0.4, left))
        raise TimeoutError

    from timedblock import remaining as block_remaining

    with pytest.raises((DeadlineExceeded, TimeoutError)):
        block.call(work)
    assert clock.now() - began == pytest.approx(1.0)


def test_an_attempt_after_the_breaker_opened_isnt_made(clock: FakeClock) -> None:
    """The first attempt's failure opened it: the caller is told so, and nothing more is sent."""
    work = _Flaky(clock, 9, OSError())
    block = _block(Retry(attempts=5), breaker=Breaker(failures=1))
    with pytest.raises(CircuitOpen):
        block.call(work)
    assert len(work.starts) == 1
    assert not block.in_flight


def test_a_wait_that_is_broken_breaks_no_call(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A wait that raises, or is no time, means no retry; the work's error passes, the slot too."""
    waits: list[Callable[[Any], Any]] = [
        lambda state: 1 / 0,
        lambda state: float("nan"),
        lambda state: -1.0,
        lambda state: "soon",
    ]
    for wait in waits:
        block = _block(Retry(wait=wait), bulkhead=1)  # type: ignore[arg-type]
        with caplog.at_level(logging.WARNING, "timedblock"), pytest.raises(OSError):
            block.call(_Flaky(clock, 1, OSError()))
        assert not block.in_flight
    assert len(caplog.records) == len(waits)


def test_an_unavailable_of_an_inner_block_can_be_repeated(clock: FakeClock) -> None:
    """A Retry outside an inner block repeats what the inner one refused."""
    work = _Flaky(clock, 1, Unavailable("inner"))
    assert _block(Retry()).call(work) == "answer"


def test_a_retried_call_counts_once(clock: FakeClock) -> None:
    """Three attempts are one call."""
    block = _block(Retry(attempts=3, wait=tenacity.wait_none()))
    before = block.histogram.answered_total
    block.call(_Flaky(clock, 2, OSError()))
    assert block.histogram.answered_total == before + 1
    assert (block.tally.unwell, block.tally.unavailable) == (0, 0)


class _Busy(Exception):
    """An unwell answer that asks to be left alone."""

    def __init__(self, retry_after: object) -> None:
        super().__init__()
        self.retry_after = retry_after


def test_a_retry_waits_as_long_as_the_store_asks(clock: FakeClock) -> None:
    """Retry-After: at least so long, whatever the back-off says."""
    work = _Flaky(clock, 1, _Busy(0.5))
    assert _block(Retry(backoff=0.001)).call(work) == "answer"
    assert work.starts[1] - work.starts[0] >= 0.5
    assert work.starts[1] - work.starts[0] < 0.6


def test_a_longer_back_off_stays(clock: FakeClock) -> None:
    """The store asks for less than the policy waits anyway."""
    work = _Flaky(clock, 1, _Busy(0.1))
    assert _block(Retry(wait=tenacity.wait_fixed(0.3))).call(work) == "answer"
    assert work.starts[1] - work.starts[0] == pytest.approx(0.3)


@pytest.mark.parametrize("asked", [1.0, 60, float("inf"), 1e300])
@pytest.mark.parametrize("timeout", [Fixed(1), None])
def test_a_store_that_asks_for_too_long_is_given_up_at_once(
    clock: FakeClock, asked: float, timeout: Fixed | None
) -> None:
    """It doesn't fit into the deadline: the error now, no wait, and nothing off the budget."""
    block = _block(Retry(), timeout=timeout)
    work = _Flaky(clock, 1, _Busy(asked))
    left = block.budget.allowed(clock.now())
    with time_limit(1.0), pytest.raises(_Busy):
        block.call(work)
    assert len(work.starts) == 1
    assert clock.now() == work.starts[0]
    assert block.budget.allowed(clock.now()) >= left


def test_without_any_deadline_nobody_waits_for_ever(clock: FakeClock) -> None:
    """timeout=None and a store that asks for the end of days."""
    work = _Flaky(clock, 1, _Busy(float("inf")))
    with pytest.raises(_Busy):
        _block(Retry(), timeout=None).call(work)
    assert len(work.starts) == 1


@pytest.mark.parametrize("asked", [None, "soon", -1, 0, float("nan"), True, [1]])
def test_a_retry_after_that_is_no_time_changes_nothing(clock: FakeClock, asked: object) -> None:
    """A driver may call anything so."""
    work = _Flaky(clock, 1, _Busy(asked))
    assert _block(Retry(backoff=0.001)).call(work) == "answer"
    assert work.starts[1] - work.starts[0] <= 0.01


def test_a_retry_after_that_raises_changes_nothing(clock: FakeClock) -> None:
    """A property of the driver's own error, broken."""

    class Broken(Exception):
        @property
        def retry_after(self) -> float:
            raise RuntimeError

    assert _block(Retry(backoff=0.001)).call(_Flaky(clock, 1, Broken())) == "answer"


def test_an_open_inner_breaker_is_waited_for(clock: FakeClock) -> None:
    """CircuitOpen says when a probe is due; the outer block's retry comes then."""
    inner = TimedBlock("inner", Policy(timeout=Fixed(1), breaker=Breaker(failures=1, open_for=0.2)))
    with pytest.raises(OSError):
        inner.call(_Flaky(clock, 1, OSError()))
    outer = _block(Retry(backoff=0.001, attempts=2), timeout=Fixed(1))
    began = clock.now()
    assert outer.call(inner.call, lambda: "answer") == "answer"
    assert 0.2 <= clock.now() - began <= 0.26


def test_a_wrapper_may_say_what_the_store_asked_for(clock: FakeClock) -> None:
    """A header, say; it goes before what the error has."""
    block = _block(Retry(backoff=0.001))
    call = block.begin()
    verdict = call.failed(_Busy(0.9), retry_after=0.4)
    assert verdict.retry_after == pytest.approx(0.4, abs=0.01)
    call.abandoned()
    call = block.begin()
    assert call.failed(_Busy(0.1), retry_after=5.0).retry_after is None


def test_a_coroutine_waits_as_long_as_the_store_asks(clock: FakeClock) -> None:
    """The same machine."""
    work = _Flaky(clock, 1, _Busy(0.5))

    async def attempt() -> str:
        return work()

    assert asyncio.run(_block(Retry(backoff=0.001)).acall(attempt)) == "answer"
    assert 0.5 <= work.starts[1] - work.starts[0] < 0.6
    work = _Flaky(clock, 1, _Busy(4.0))
    with pytest.raises(_Busy):
        asyncio.run(_block(Retry()).acall(attempt))
    assert len(work.starts) == 1
