"""The latencies, policies and runs that the rows of the table are made of."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from timedblock import Percentile, Policy
from timedblock.simulate import (
    Client,
    Delay,
    Server,
    Simulation,
    bimodal,
    gamma,
    lognormal,
    poisson,
)

CEILING = 1.0
DEFAULT_FLOOR = 0.05


class Shape(NamedTuple):
    """A kind of latency; `scaled(s)` has its 99th percentile at `s` seconds."""

    name: str
    made: Callable[[float], Delay]
    p99: float

    def scaled(self, p99: float) -> Delay:
        """This kind of latency with a 99th percentile of `p99` seconds."""
        return self.made(p99 / self.p99)


def _shape(name: str, made: Callable[[float], Delay]) -> Shape:
    chance, delay = Random(0), made(1.0)
    drawn = sorted(delay(chance) for _ in range(200_000))
    return Shape(name, made, drawn[int(0.99 * len(drawn))])


SHAPES = {
    shape.name: shape
    for shape in (
        _shape("lognormal 0.5", lambda s: lognormal(s, 0.5)),
        _shape("lognormal 1.0", lambda s: lognormal(s, 1.0)),
        _shape("gamma", lambda s: gamma(s, 2.0)),
        _shape("bimodal", lambda s: bimodal(lognormal(s, 0.5), 0.05, 50.0)),
    )
}


class Setting(NamedTuple):
    """A row's policy: defaults, or the tight one beside them."""

    name: str
    q: float
    margin: float

    def policy(self, floor: float = DEFAULT_FLOOR, **other: object) -> Policy:
        """The policy, everything else as by default."""
        timeout = Percentile(self.q, margin=self.margin, floor=floor)
        return Policy(timeout=timeout, **other)  # type: ignore[arg-type]


DEFAULTS = Setting("defaults", 99.5, 2.0)
TIGHT = Setting("q 99, margin 1.25", 99.0, 1.25)
SETTINGS = (DEFAULTS, TIGHT)


def floor_for(shape: Shape, setting: Setting, p99: float) -> float:
    """The default floor, or half the limit to be expected where that is below it."""
    chance, delay = Random(0), shape.scaled(p99)
    drawn = sorted(delay(chance) for _ in range(20_000))
    expected = setting.margin * drawn[int(setting.q / 100 * len(drawn))]
    return DEFAULT_FLOOR if expected > 1.05 * DEFAULT_FLOOR else expected / 2


class World(NamedTuple):
    """One client, one server, and every latency that the server had."""

    simulation: Simulation
    server: Server
    client: Client
    latencies: array[float]


def world(seed: int, delay: Delay, policy: Policy, rate: float, watch: float = 0.5) -> World:
    """A client that calls a server `rate` times a second."""
    simulation = Simulation(seed)
    latencies = array("d")

    def kept(chance: Random) -> float:
        seconds = delay(chance)
        latencies.append(seconds)
        return seconds

    server = Server(simulation, kept)
    client = Client(simulation, server, policy=policy)
    client.watch(watch)
    client.load(poisson(rate))
    return World(simulation, server, client, latencies)


def median(values: list[float]) -> float:
    """The middle value; NaN of none."""
    return sorted(values)[len(values) // 2] if values else math.nan
