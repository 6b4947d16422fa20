"""Retries: tenacity decides the waits; the deadline, the budget and the error whether at all."""

from __future__ import annotations

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
