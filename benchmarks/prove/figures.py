"""Figures that need no world: the estimator itself, its cost, and the simulator's speed."""

from __future__ import annotations

import math
import random
import sys
import time
from array import array
from typing import Any

import simpy

from timedblock import Policy
from timedblock.latency import SLICE, Histogram
from timedblock.policy.timeout import Learnt, Percentile, learn
from timedblock.simulate import Client, Server, Simulation, lognormal, poisson

#: Where fewer attempts lasted longer, an exact quantile is itself worth little, and the order of
#: answers and cuts inside one bucket, which only the exact one knows, is worth more than a bucket.
ENOUGH = 50


def against_lifelines(seed: int) -> tuple[float, float]:
    """The largest error of a quantile against exact Kaplan and Meier on the same samples: where
    `ENOUGH` attempts lasted longer than either says, and anywhere (infinite where only one of
    them says that the level was reached)."""
    from lifelines import KaplanMeierFitter

    chance = random.Random(seed)
    known = anywhere = 0.0
    for cut_at in (0.01, 0.02, 0.05, 1.0):
        histogram, durations, seen = Histogram(0.0), [], []
        for _ in range(5000):
            real = chance.lognormvariate(math.log(0.01), 0.8)
            limit = cut_at * chance.uniform(0.5, 1.5)
            durations.append(min(real, limit))
            seen.append(real <= limit)
            (histogram.record if real <= limit else histogram.cut_at)(durations[-1])
        histogram.rotate(SLICE)
        exact = KaplanMeierFitter().fit(durations, seen).survival_function_["KM_estimate"]
        for level in (0.25, 0.5, 0.9, 0.99, 0.995):
            (ours,), theirs = histogram.quantiles(level), _reached(exact, level)
            error = _error(ours, theirs)
            anywhere = max(anywhere, error)
            least = min(one for one in (ours, theirs, math.inf) if one is not None)
            if sum(one > least for one in durations) >= ENOUGH:
                known = max(known, error)
    return known, anywhere


def _reached(survival: Any, level: float) -> float | None:
    below = survival[survival <= 1 - level + 1e-9]
    return None if below.empty else float(below.index[0])


def _error(ours: float | None, theirs: float | None) -> float:
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else math.inf
    return abs(ours / theirs - 1)


def filled(seed: int, rate: int, seconds: float) -> tuple[Histogram, list[float], list[float]]:
    """A busy histogram, and the seconds that each rotation and each learning took."""
    chance = random.Random(seed)
    now, histogram = 0.0, Histogram(0.0)
    learnt = Learnt(1.0, "initial")
    rotating, reading = [], []
    while now < seconds:
        now += SLICE
        for _ in range(int(rate * SLICE)):
            histogram.record(chance.lognormvariate(math.log(0.01), 1.0))
        histogram.late(0.5, histogram.cut_at(0.5), 0.7)
        histogram.cut_at(0.5)
        started = time.perf_counter()
        histogram.rotate(now)
        closed = time.perf_counter()
        learnt = learn(Percentile(), histogram, learnt, now)
        rotating.append(closed - started)
        reading.append(time.perf_counter() - closed)
    return histogram, rotating, reading


def size(thing: Any, seen: set[int] | None = None) -> int:
    """Bytes of a histogram with everything that it alone holds; small integers are shared."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, type) or thing is None:
        return 0
    seen.add(id(thing))
    if isinstance(thing, int) and -5 <= thing <= 256:
        return 0
    total = sys.getsizeof(thing)
    if isinstance(thing, array):
        return total
    if isinstance(thing, dict):
        return total + sum(size(key, seen) + size(value, seen) for key, value in thing.items())
    if hasattr(thing, "__slots__"):
        inside = [getattr(thing, name) for name in thing.__slots__ if name != "__weakref__"]
        return total + sum(size(one, seen) for one in inside)
    if hasattr(thing, "__iter__") and not isinstance(thing, str):
        return total + sum(size(one, seen) for one in thing)
    return total


def simulator_speed(seed: int, calls: int = 60_000) -> tuple[float, float]:
    """Calls a second of wall time: ours with the full policy, and bare simpy's."""
    rate = 1000.0
    simulation = Simulation(seed)
    server = Server(simulation, lognormal(0.01, 0.5), concurrency=64)
    client = Client(simulation, server, policy=Policy(bulkhead=1000))
    client.load(poisson(rate))
    started = time.perf_counter()
    simulation.run(calls / rate)
    ours = len(client.trace) / (time.perf_counter() - started)
    return ours, calls / bare_simpy(seed, calls, rate)


def bare_simpy(seed: int, calls: int, rate: float) -> float:
    """Seconds of the same queue as simpy's documentation would write it, without any limit."""
    chance, env = random.Random(seed), simpy.Environment()
    resource = simpy.Resource(env, capacity=64)

    def call() -> Any:
        with resource.request() as request:
            yield request
            yield env.timeout(chance.lognormvariate(math.log(0.01), 0.5))

    def arrivals() -> Any:
        for _ in range(calls):
            yield env.timeout(chance.expovariate(rate))
            env.process(call())

    env.process(arrivals())
    started = time.perf_counter()
    env.run()
    return time.perf_counter() - started
