"""The estimator against exact Kaplan and Meier, and against processes that try to break it."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from timedblock import Percentile, Policy
from timedblock.latency import SLICE, WINDOW, Histogram, bucket, middle
from timedblock.simulate import Client, Server, Simulation, bursts, lognormal, poisson

#: Attempts as (seconds, whether they were cut).
ATTEMPTS = st.lists(st.tuples(st.floats(1e-5, 100.0), st.booleans()), min_size=1, max_size=200)


def _exact(attempts: list[tuple[float, bool]], level: float) -> float:
    """Kaplan and Meier's quantile by lifelines; infinite if it isn't reached."""
    from lifelines import KaplanMeierFitter

    fitter = KaplanMeierFitter().fit(
        [seconds for seconds, _ in attempts], [not cut for _, cut in attempts]
    )
    survival = fitter.survival_function_["KM_estimate"]
    reached = survival[survival <= 1 - level + 1e-9]
    return math.inf if reached.empty else float(reached.index[0])


def _in_buckets(attempts: list[tuple[float, bool]], cuts: float) -> list[tuple[float, bool]]:
    """What the buckets stand for, where every cut lasts `cuts` times as long."""
    return [(middle(bucket(seconds)) * (cuts if cut else 1.0), cut) for seconds, cut in attempts]


def _histogram(attempts: list[tuple[float, bool]]) -> Histogram:
    histogram = Histogram(0.0)
    for seconds, cut in attempts:
        if cut:
            histogram.cut_at(seconds)
        else:
            histogram.record(seconds)
    histogram.rotate(SLICE)
    return histogram


LEVELS = (0.01, 0.25, 0.5, 0.9, 0.995)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=30)
@given(attempts=ATTEMPTS)
def test_quantiles_are_kaplan_and_meiers(attempts: list[tuple[float, bool]]) -> None:
    """The same bucket as an independent library's, for any samples, cut or not; where answers
    and cuts share a bucket, between what it says if the cuts there were first and if last."""
    first, last = (_in_buckets(attempts, 1 + shift) for shift in (-1e-4, 1e-4))
    for level, ours in zip(LEVELS, _histogram(attempts).quantiles(*LEVELS), strict=True):
        least, most = _exact(first, level), _exact(last, level)
        assert least * (1 - 1e-9) <= (math.inf if ours is None else ours) <= most * (1 + 1e-9)
    shared = {bucket(seconds) for seconds, cut in attempts if cut} & {
        bucket(seconds) for seconds, cut in attempts if not cut
    }
    event("shared" if shared else "apart")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("cut_at", [0.01, 0.02, 0.05, 1.0])
def test_quantiles_of_many_samples_are_exact_to_a_bucket(seed: int, cut_at: float) -> None:
    """However the answers and cuts lie inside their buckets, 3 % at the most."""
    chance = random.Random(seed)
    attempts = []
    for _ in range(5000):
        real, limit = chance.lognormvariate(-4.6, 0.8), cut_at * chance.uniform(0.5, 1.5)
        attempts.append((min(real, limit), real > limit))
    for level, ours in zip(LEVELS, _histogram(attempts).quantiles(*LEVELS), strict=True):
        exact = _exact(attempts, level)
        assert (math.inf if ours is None else ours) == pytest.approx(exact, rel=0.03)


@given(
    attempts=ATTEMPTS,
    late=st.lists(st.tuples(st.floats(1e-5, 10.0), st.floats(1.0, 50.0), st.integers(0, 40))),
)
def test_a_late_answer_is_as_good_as_one_in_time(
    attempts: list[tuple[float, bool]], late: list[tuple[float, float, int]]
) -> None:
    """However many slices later it comes: the window is as if the call had never been cut."""
    cut, exact = Histogram(0.0, window=1e6), Histogram(0.0, window=1e6)
    for seconds, was_cut in attempts:
        for one in (cut, exact):
            if was_cut:
                one.cut_at(seconds)
            else:
                one.record(seconds)
    told: dict[int, list[tuple[float, int, float]]] = {}
    for seconds, factor, slices in late:
        told.setdefault(slices, []).append((seconds, cut.cut_at(seconds), seconds * factor))
        exact.record(seconds * factor)
    for number in range(42):
        for seconds, where, whole in told.get(number, []):
            cut.late(seconds, where, whole)
        for one in (cut, exact):
            one.rotate((number + 1) * SLICE)
    levels = (0.1, 0.5, 0.99)
    assert cut.quantiles(*levels) == exact.quantiles(*levels)
    assert (cut.answered, cut.censored) == (exact.answered, exact.censored)


@given(steps=st.lists(st.tuples(ATTEMPTS, st.booleans()), min_size=1, max_size=60))
def test_sums_are_those_of_the_slices(
    steps: list[tuple[list[tuple[float, bool]], bool]],
) -> None:
    """Joining, forgetting and leaving the window keep the sums right, and the slices few."""
    histogram = Histogram(0.0)
    for number, (attempts, forget) in enumerate(steps, 1):
        now = number * SLICE * 3
        for seconds, cut in attempts[:10]:
            (histogram.cut_at if cut else histogram.record)(seconds)
        histogram.rotate(now)
        if forget:
            histogram.forget(now - 2 * SLICE, now)
        kept = [one for one in histogram._slices if one.end > histogram._since]
        lanes = sum(one.lanes(histogram._low) for one in kept)
        assert lanes == histogram._sum
        assert histogram.answered == sum(one.samples for one in kept) == sum(histogram._known()[0])
        cuts = sum(count for one in kept for _, count in one.censored())
        assert histogram.censored == cuts
        assert len(histogram._slices) <= WINDOW / 3
        assert histogram._slices[0].end > now - WINDOW


#: A process: (seconds that a stretch lasts, factor on the latency, calls a second).
STRETCHES = st.lists(
    st.tuples(st.floats(1.0, 40.0), st.floats(0.2, 30.0), st.sampled_from([0.5, 5.0, 50.0])),
    min_size=1,
    max_size=6,
)


@settings(max_examples=15)
@given(
    stretches=STRETCHES,
    seed=st.integers(0, 1000),
    sigma=st.sampled_from([0.1, 0.5, 1.5]),
    burst=st.sampled_from([1, 20]),
    late=st.booleans(),
    stalls=st.lists(st.floats(0.0, 60.0), max_size=4),
)
def test_no_latency_process_keeps_it_down(
    stretches: list[tuple[float, float, float]],
    seed: int,
    sigma: float,
    burst: int,
    late: bool,
    stalls: list[float],
) -> None:
    """Whatever latency did before: a minute after it is calm, the calls are answered."""
    simulation = Simulation(seed)
    server = Server(simulation, lognormal(0.01, sigma))
    policy = Policy(timeout=Percentile(99, margin=1.25, floor=0.005))
    client = Client(simulation, server, policy=policy, late_answers=late)
    for at in stalls:
        simulation.at(at, client.stall, 0.7)
    at = 0.0
    for seconds, factor, rate in stretches:
        simulation.at(at, server.slow_down, factor)
        load = bursts(rate, burst) if burst > 1 else poisson(rate)
        simulation.at(at, lambda load=load, end=at + seconds: client.load(load, until=end))
        at += seconds
    simulation.at(at, server.heal)
    simulation.at(at, client.load, poisson(100))
    simulation.run(at + 90)
    assert max(client.trace.elapsed, default=0.0) <= 1.0 + 1e-6 + 0.7 * bool(stalls)
    assert client.trace.share_ok(at + 60, at + 88) >= 0.97
    assert 0.005 <= client.block.limit <= 1.0
    assert not math.isnan(client.block.limit)


def test_the_window_is_small_at_any_rate() -> None:
    """A block's window stays within 32 KiB, at a hundred and at ten thousand calls a second."""
    from benchmarks.prove.figures import filled, size

    for rate in (100, 10_000):
        histogram, _, _ = filled(1, rate, 60.0)
        assert size(histogram) <= 32 * 1024


def test_random_is_not_shared() -> None:
    """A simulation leaves the program's own chance as it was."""
    random.seed(1)
    first = random.random()
    random.seed(1)
    simulation = Simulation(9)
    Client(simulation, Server(simulation, lognormal(0.01, 1.0))).load(poisson(10))
    simulation.run(5)
    assert random.random() == first
