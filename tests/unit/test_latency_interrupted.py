"""A KeyboardInterrupt in the middle of a change of the histogram doesn't break it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.interrupts import every_line
from timedblock import latency
from timedblock.latency import SLICE, WINDOW, Histogram, pooled

pytestmark = pytest.mark.usefixtures("untraced")
FAST, SLOW = 0.001, 0.1


def _busy(now: float = 0.0) -> Histogram:
    """A histogram whose window is full, with slices joined and dropped, cuts and late answers."""
    histogram = Histogram(now)
    for number in range(80):
        histogram.record(FAST * (1 + number % 7))
        cut = histogram.cut_at(FAST)
        if number % 3 == 0:
            histogram.late(FAST, cut, SLOW)
        histogram.miss()
        now += SLICE
        histogram.rotate(now)
    histogram.record(FAST)
    histogram.late(FAST, histogram.cut_at(FAST), SLOW)
    return histogram


def _reads(histogram: Histogram, now: float) -> None:
    """Everything can be read, whatever it says."""
    for value in histogram.quantiles(0.5, 0.99):
        assert value is None or 0 < value < 1
    answered, other = histogram.recent(now, WINDOW)
    assert 0 <= answered < 1000
    assert 0 <= other < 1000
    assert all(one.attempts >= one.cut >= 0 for one in histogram.newest(FAST, 1, 20))
    assert pooled([histogram], 0.5)[0] >= 0


def _learns(histogram: Histogram, now: float) -> None:
    """After a whole window of one latency it knows nothing else, and counts right."""
    for _ in range(int(2 * WINDOW / SLICE)):
        for _ in range(3):
            histogram.record(SLOW)
        now += SLICE
        histogram.rotate(now)
        _reads(histogram, now)
    assert histogram.quantiles(0.01, 0.99) == [pytest.approx(SLOW, rel=0.03)] * 2
    assert histogram.answered == pytest.approx(3 * WINDOW / SLICE, abs=3 * 15 / SLICE + 3)
    assert histogram.censored == 0


CHANGES: dict[str, Callable[[Histogram, float], object]] = {
    "rotate": lambda histogram, now: histogram.rotate(now),
    "forget": lambda histogram, now: histogram.forget(now - 5, now),
    "restore": lambda histogram, now: histogram.restore(now - 3, now, [FAST]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_interrupt_costs_samples_at_most(change: str) -> None:
    """Struck at whatever line: the next reading raises nothing, and the next window is right."""
    struck: list[Histogram] = []
    end = 80 * SLICE + SLICE

    def prepare() -> Callable[[], object]:
        struck.append(_busy())
        return lambda: CHANGES[change](struck[-1], end)

    for _ in every_line(latency, prepare):
        _reads(struck[-1], end)
        struck[-1].frozen = False  # a breaker thaws it
        _learns(struck[-1], end)
