"""The token budget: a dead store gets at most 1.1 × its normal load."""

from __future__ import annotations

import random
from bisect import bisect_right

import pytest

from timedblock import Fixed, Policy, Retry, TimedBlock
from timedblock.policy.budget import Budget
from timedblock.testing import FakeClock


class _Load:
    """Calls that all fail and would all be repeated; counts what reaches the store."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.repeats: list[float] = []
        self.budget = Budget(self._calls)

    def _calls(self, now: float, seconds: float) -> int:
        return sum(_between(times, now - seconds, now) for times in (self.first, self.repeats))

    def call(self, now: float) -> None:
        self.first.append(now)
        if self.budget.withdraw(now):
            self.repeats.append(now)

    def worst(self, span: float = 10.0) -> float:
        """The most repeats for the calls of any `span` seconds."""
        ratios = []
        for end in self.repeats:
            first = _between(self.first, end - span, end)
            repeats = _between(self.repeats, end - span, end)
            ratios.append((first + repeats - 1) / first)
        return max(ratios, default=0.0)


def _between(times: list[float], begin: float, end: float) -> int:
    """How many of the sorted `times` are after `begin` and not after `end`."""
    return bisect_right(times, end) - bisect_right(times, begin)


@pytest.mark.parametrize("per_second", [5, 20, 50])
def test_a_dead_store_gets_a_tenth_more(per_second: int) -> None:
    """Over any ten seconds at a steady load: at most 1.1 × the calls, and one."""
    load = _Load()
    for number in range(30 * per_second):
        load.call(number / per_second)
    assert load.worst() <= 1.1 + 1e-9
    assert len(load.repeats) >= 0.08 * len(load.first)


@pytest.mark.parametrize("per_second", [1, 2.5, 10, 100])
def test_a_minute_of_trouble_has_a_tenth_more_at_the_most(per_second: float) -> None:
    """Whatever chance does to the times of the calls: not 1.101 × either."""
    chance = random.Random(1)
    load, now = _Load(), 0.0
    while now < 100:
        now += chance.expovariate(per_second)
        load.call(now)
    for begin in range(0, 40, 4):
        first = _between(load.first, begin, begin + 60)
        repeats = _between(load.repeats, begin, begin + 60)
        # under ten calls in ten seconds there is one repeat all the same
        assert repeats <= max(0.1 * first, 7)


def test_ten_thousand_calls_a_second_have_their_share() -> None:
    """Counted, not guessed: of 100,000 calls in ten seconds 9,500 are repeated, then none."""
    budget = Budget(lambda now, seconds: 100_000 + len(budget._spent))
    assert sum(budget.withdraw(5.0) for _ in range(11_000)) == 9_500
    assert budget.withdraw(14.9) is False
    assert budget.withdraw(15.1) is True


def test_one_call_a_minute_may_be_repeated() -> None:
    """A quiet process has a repeat for each of its calls."""
    load = _Load()
    for minute in range(10):
        load.call(minute * 60.0)
    assert len(load.repeats) == 10


def test_a_burst_after_silence_is_bounded_too() -> None:
    """Nothing is saved up: a thousand calls at once have about a hundred repeats."""
    load = _Load()
    for _ in range(300):
        load.call(1000.0)
    assert 25 <= len(load.repeats) <= 31


def test_allowed_shows_what_is_left() -> None:
    """stats() reads it; reading takes nothing."""
    load = _Load()
    assert load.budget.allowed(0.0) == 1.0
    load.call(0.0)
    assert load.budget.allowed(0.0) < 1.0
    assert load.budget.allowed(0.0) == load.budget.allowed(0.0)
    assert load.budget.allowed(60.0) == 1.0


def test_a_fork_frees_the_lock() -> None:
    """The parent's other thread may have held it."""
    budget = Budget(lambda now, seconds: 0)
    budget._lock.acquire()
    budget.after_fork()
    assert budget.withdraw(0.0)


def test_a_block_that_always_fails_is_repeated_for_a_tenth(clock: FakeClock) -> None:
    """The whole of it: 50 calls a second for 20 s, every one fails, ≤ 1.1 × reach the work."""
    block = TimedBlock("b", Policy(timeout=Fixed(1), breaker=None, retry=Retry(backoff=0.001)))
    reached: list[float] = []
    calls: list[float] = []

    def work() -> None:
        reached.append(clock.now())
        raise OSError

    for _ in range(1000):
        start = clock.now()
        calls.append(start)
        with pytest.raises(OSError):
            block.call(work)
        clock.advance(max(0.0, start + 0.02 - clock.now()))
    for end in reached:
        among = sum(end - 10 < at <= end for at in calls)
        assert sum(end - 10 < at <= end for at in reached) <= 1.1 * among + 2
    assert len(reached) > 1.05 * len(calls)
