"""How long work takes, and when it comes. Each maker returns a function of a random generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import TypeAlias

#: Seconds that one piece of work takes.
Delay: TypeAlias = Callable[[Random], float]
#: Seconds from the instant given to the next arrival.
Load: TypeAlias = Callable[[Random, float], float]


def fixed(seconds: float) -> Delay:
    """Always the same."""
    return lambda chance: seconds


def lognormal(median: float, sigma: float) -> Delay:
    """Log-normal: what most services look like; `sigma` 0.5 is calm, 1.0 has a long tail."""
    mu = math.log(median)
    return lambda chance: chance.lognormvariate(mu, sigma)


def gamma(mean: float, shape: float = 2.0) -> Delay:
    """Gamma: work in `shape` stages."""
    return lambda chance: chance.gammavariate(shape, mean / shape)


def bimodal(fast: Delay, share: float = 0.05, factor: float = 50.0) -> Delay:
    """A `share` of the work takes `factor` times as long (a cache miss, a disk)."""

    def delay(chance: Random) -> float:
        slow = chance.random() < share
        return fast(chance) * (factor if slow else 1.0)

    return delay


def poisson(rate: float) -> Load:
    """`rate` calls a second from many independent callers."""
    return lambda chance, now: chance.expovariate(rate)


def constant(rate: float) -> Load:
    """`rate` calls a second, evenly."""
    return lambda chance, now: 1.0 / rate


def bursts(rate: float, size: int, gap: float = 1e-6) -> Load:
    """`rate` calls a second in the mean, `size` of them together."""
    left = size

    def wait(chance: Random, now: float) -> float:
        nonlocal left
        left -= 1
        if left > 0:
            return gap
        left = size
        return chance.expovariate(rate / size)

    return wait
