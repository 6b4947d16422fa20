"""Quantiles of the histogram against numpy's, and its censoring against an exact estimator."""

from __future__ import annotations

from fractions import Fraction

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timedblock.latency import SLICE, WINDOW, Histogram, bucket, middle
from timedblock.latency.histogram import _COARSE as COARSE

SECONDS = st.floats(1e-5, 1000, allow_nan=False)
LEVELS = st.lists(st.sampled_from([0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 0.995]), min_size=1)
#: a bucket is at most 3.1 % wide, so its middle is within half of that; and TINY is added
NEAR = {"rel": 0.016, "abs": 2e-7}


def _of(answers: list[float], cuts: list[float] | None = None) -> Histogram:
    histogram = Histogram(0.0)
    for one in answers:
        histogram.record(one)
    for one in cuts or []:
        histogram.cut_at(one)
    histogram.rotate(SLICE)
    return histogram


@settings(max_examples=200)
@given(st.lists(SECONDS, min_size=1, max_size=300), LEVELS)
def test_without_cuts_they_are_numpys(answers: list[float], levels: list[float]) -> None:
    """Every quantile is within a bucket of numpy's."""
    levels.sort()
    found = _of(answers).quantiles(*levels)
    expected = numpy.quantile(answers, levels, method="inverted_cdf")
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(float(other), **NEAR)


@given(SECONDS)
def test_a_buckets_middle_is_near(elapsed: float) -> None:
    """A duration and the middle of its bucket."""
    assert middle(bucket(elapsed)) == pytest.approx(elapsed, **NEAR)


@given(SECONDS, SECONDS)
def test_buckets_keep_the_order(one: float, other: float) -> None:
    """Longer is never in a lower bucket."""
    low, high = sorted((one, other))
    assert bucket(low) <= bucket(high)


def _kaplan_meier(answers: list[int], cuts: list[float], level: Fraction) -> int | None:
    """Kaplan and Meier 1958, word for word and in fractions: the first time at which S <= 1 - q."""
    surviving = Fraction(1)
    for time in sorted(set(answers)):
        at_risk = sum(one >= time for one in answers) + sum(one >= time for one in cuts)
        surviving *= 1 - Fraction(answers.count(time), at_risk)
        if surviving <= 1 - level:
            return time
    return None


@settings(max_examples=200)
@given(
    st.lists(st.integers(1, 12), max_size=40),
    st.lists(st.integers(0, 12).map(lambda whole: whole + 0.5), max_size=40),
    st.lists(st.sampled_from([1, 25, 50, 75, 90, 95, 99]), min_size=1, unique=True),
)
def test_with_cuts_they_are_kaplan_and_meiers(
    answers: list[int], cuts: list[float], percents: list[int]
) -> None:
    """Cut attempts count as at least so long: the product-limit estimator's quantiles. (Those
    that share a bucket with answers: test_estimator.)"""
    percents.sort()
    histogram = _of([one / 10 for one in answers], [one / 10 for one in cuts])
    found = histogram.quantiles(*(percent / 100 for percent in percents))
    for one, percent in zip(found, percents, strict=True):
        exact = _kaplan_meier(answers, cuts, Fraction(percent, 100))
        assert (one is None) == (exact is None)
        if exact is not None:
            assert one == pytest.approx(exact / 10, **NEAR)


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(st.sampled_from(["answer", "cut", "miss", "plain"]), SECONDS, st.integers(0, 12)),
        max_size=80,
    )
)
def test_the_window_is_a_list_of_what_happened_lately(
    happened: list[tuple[str, float, int]],
) -> None:
    """However slices are closed, joined and dropped, the sums are those of a plain list."""
    histogram = Histogram(0.0)
    now = 0.0
    kept: list[tuple[float, str]] = []  # (end of its slice, what)
    running: list[str] = []
    for what, seconds, slices in happened:
        running.append(what)
        if what == "answer":
            histogram.record(seconds)
        elif what == "cut":
            histogram.cut_at(seconds)
        elif what == "miss":
            histogram.miss()
        else:
            histogram.answer()
        if slices:
            now += slices * SLICE
            histogram.rotate(now)
            kept += [(now, one) for one in running]
            running = []
    lately = [what for end, what in kept if end > now - WINDOW]
    # old slices are joined until they span 15 s, and leave together
    still = [what for end, what in kept if end > now - WINDOW - COARSE]
    assert lately.count("answer") <= histogram.answered <= still.count("answer")
    assert lately.count("cut") <= histogram.censored <= still.count("cut")
    answered, other = histogram.recent(now, WINDOW)
    everything = lately + running
    assert answered == everything.count("answer") + everything.count("plain")
    assert other == everything.count("cut") + everything.count("miss")
    assert min(histogram._known()[0], default=0) >= 0
    assert sum(histogram._known()[0]) == histogram.answered
