"""The histogram: buckets, window, censoring."""

from __future__ import annotations

import pytest

from timedblock.latency import SIZE, SLICE, WINDOW, Histogram, bucket, middle


def _filled(now: float, *elapsed: float) -> Histogram:
    histogram = Histogram(now)
    for one in elapsed:
        histogram.record(one)
    histogram.rotate(now + SLICE)
    return histogram


@pytest.mark.parametrize("elapsed", [0.0, 1e-9, 5e-324, 1e-6, 0.001, 0.1, 1.0, 60.0, 3600.0])
def test_a_duration_has_a_bucket_near_it(elapsed: float) -> None:
    """From nothing to an hour: the bucket's middle is within its width of the duration."""
    assert 0 <= bucket(elapsed) < SIZE
    assert middle(bucket(elapsed)) == pytest.approx(elapsed, rel=0.022, abs=2e-7)


def test_days_are_the_last_bucket() -> None:
    """What is longer than the histogram is counted in its last bucket."""
    assert bucket(1e6) == SIZE - 1
    histogram = _filled(0.0, 1e6)
    assert histogram.answered == 1


def test_an_empty_histogram_has_no_quantile() -> None:
    """Nothing seen: nothing known."""
    assert Histogram(0.0).quantiles(0.5, 0.99) == [None, None]


def test_the_running_slice_joins_when_it_is_closed() -> None:
    """Quantiles are of whole slices; a slice isn't closed before its time."""
    histogram = Histogram(0.0)
    histogram.record(0.1)
    assert histogram.answered_total == 1
    assert not histogram.rotate(SLICE / 2)
    assert histogram.answered == 0
    assert histogram.rotate(SLICE)
    assert histogram.answered == 1


def test_a_slice_leaves_the_window() -> None:
    """What is older than the window is forgotten, cuts included."""
    histogram = _filled(0.0, 0.1)
    histogram.cut_at(0.2)
    histogram.rotate(2 * SLICE)
    histogram.record(0.5)
    histogram.rotate(2 * SLICE + WINDOW)
    assert (histogram.answered, histogram.censored) == (1, 0)
    assert histogram.quantiles(0.5)[0] == pytest.approx(0.5, rel=0.03)
    assert histogram.answered_total == 2


def test_several_cuts_in_a_bucket_leave_one_by_one() -> None:
    """Cuts of two slices in one bucket: when the first slice goes, the second's stay."""
    histogram = Histogram(0.0)
    histogram.cut_at(0.1)
    histogram.rotate(SLICE)
    histogram.cut_at(0.1)
    histogram.rotate(2 * SLICE)
    assert histogram.censored == 2
    histogram.rotate(SLICE + WINDOW)
    assert histogram.censored == 1


def test_a_cut_call_counts_as_longer_than_its_cut() -> None:
    """Left out, cut calls would make the quantile fall; as exact values, stick."""
    histogram = Histogram(0.0)
    for _ in range(90):
        histogram.record(0.01)
    for _ in range(10):
        histogram.cut_at(0.02)
    histogram.rotate(SLICE)
    assert histogram.quantiles(0.9)[0] == pytest.approx(0.01, rel=0.03)
    assert histogram.quantiles(0.91) == [None]


def test_an_early_cut_says_nothing_about_the_tail() -> None:
    """A caller's smaller deadline censors: it doesn't pull the quantile down."""
    histogram = Histogram(0.0)
    for _ in range(50):
        histogram.cut_at(0.001)
    for _ in range(50):
        histogram.record(1.0)
    histogram.rotate(SLICE)
    assert histogram.quantiles(0.01)[0] == pytest.approx(1.0, rel=0.03)


def test_recent_counts_to_this_moment() -> None:
    """Answered and not answered of the last seconds, the running slice included."""
    histogram = _filled(0.0, 0.1, 0.1)
    histogram.cut_at(0.1)
    histogram.miss()
    assert histogram.recent(SLICE, 10) == (2, 2)
    histogram.rotate(20.0)
    histogram.record(0.1)
    assert histogram.recent(20.0, 10) == (1, 2)
    assert histogram.recent(40.0, 10) == (1, 0)


def test_the_newest_attempts_are_whole_slices() -> None:
    """Enough of the newest slices for so many attempts; cuts below the limit say nothing of it."""
    histogram = _filled(0.0, *[0.01] * 10)
    assert histogram.newest(0.1, 11) == []
    histogram.cut_at(0.1)
    histogram.cut_at(0.05)
    histogram.rotate(2 * SLICE)
    assert histogram.newest(0.1, 1) == [(2, 1, SLICE)]
    assert histogram.newest(0.1, 1, 2, 3, 13) == [(2, 1, SLICE)] * 2 + [(12, 1, 0.0)]
    assert histogram.newest(0.05, 3) == [(12, 2, 0.0)]


def test_an_empty_slice_costs_nothing() -> None:
    """Idle slices aren't kept."""
    histogram = Histogram(0.0)
    for number in range(1, 10):
        assert histogram.rotate(number * SLICE)
    assert len(histogram._slices) == 0


def test_one_thread_rotates() -> None:
    """While one thread closes the slice, another goes on without waiting."""
    histogram = Histogram(0.0)
    with histogram._lock:
        assert not histogram.rotate(SLICE)


def test_a_forked_childs_histogram_isnt_locked() -> None:
    """The parent's other thread may have held the lock at the fork."""
    histogram = Histogram(0.0)
    histogram._lock.acquire()
    histogram.after_fork()
    assert histogram.rotate(SLICE)


def test_a_bucket_counts_past_four_thousand_million() -> None:
    """What was counted for ever outgrows 32 bits after days; the window goes on as before."""
    histogram = _filled(0.0, 0.1, 0.1, 0.2)
    histogram.counts[bucket(0.1)] += 2**32 - 3
    histogram.rotate(2 * SLICE)
    assert histogram.answered == 2**32
    histogram.counts[bucket(0.1)] += 5
    histogram.counts[bucket(0.2)] += 2
    histogram.rotate(3 * SLICE)
    histogram.rotate(3 * SLICE + WINDOW)
    histogram.record(0.1)
    histogram.rotate(4 * SLICE + WINDOW)
    assert histogram.answered == 1
    assert histogram.quantiles(0.5)[0] == pytest.approx(0.1, rel=0.03)


def test_slices_of_any_counts_are_kept_exactly() -> None:
    """Joined, dropped, widened to both sides: the window has each sample once."""
    histogram = Histogram(0.0)
    counts = {0.01: 255, 0.02: 256, 0.5: 65_535, 0.001: 65_536, 7.0: 1, 0.0001: 300}
    for turn, (elapsed, count) in enumerate(counts.items(), 1):
        histogram.counts[bucket(elapsed)] += count
        histogram.rotate(turn * SLICE)
    known, low = histogram._known()
    assert {low + index: count for index, count in enumerate(known) if count} == {
        bucket(elapsed): count for elapsed, count in counts.items()
    }
