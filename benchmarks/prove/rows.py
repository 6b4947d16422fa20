"""One function a figure and seed: what was measured, in a picklable record."""

from __future__ import annotations

import math
from typing import NamedTuple

from timedblock import Breaker, Policy, Retry
from timedblock.simulate import (
    OK,
    Client,
    LeastConnections,
    Server,
    Simulation,
    Trace,
    fixed,
    poisson,
)

from . import worlds
from .worlds import CEILING, SHAPES, Setting

HOUR = 3600.0
MINUTE = 60.0
STATIONARY_RATE = 100.0
STEP_RATE = 200.0
STEP_AT = 60.0
STEP_UNTIL = 110.0
#: Runs that count what a step's first second cuts: their window is full when it comes.
BITES, BITE_AT = 8, 35.0
#: So many times slower is the store that a process with loaded limits meets.
WARM = 10.0
#: Of the calls begun so soon after a step those that are cut should end with an exact latency.
RELEARNING = 10.0
OUTAGE_AT, OUTAGE = 60.0, 20.0
OUTAGE_UNTIL = 125.0

Curve = list[tuple[float, float]]


class Stationary(NamedTuple):
    """An hour without trouble."""

    shape: str
    setting: str
    seed: int
    calls: int
    worst_minute: float
    share: float
    ratio: float
    opened: int
    curve: Curve


def stationary(shape: str, setting: Setting, seed: int, seconds: float = HOUR) -> Stationary:
    """False timeouts, and the limit against the best constant in hindsight."""
    p99 = 0.2
    floor = worlds.floor_for(SHAPES[shape], setting, p99)
    run = worlds.world(seed, SHAPES[shape].scaled(p99), setting.policy(floor), STATIONARY_RATE)
    run.simulation.run(seconds)
    trace = run.client.trace
    minutes = trace.per(MINUTE, 0.0, seconds)
    missed = sum(outcome != OK for outcome in trace.outcome)
    ordered = sorted(run.latencies)
    best = ordered[max(0, len(ordered) - 1 - missed)]
    limits = [one.limit for one in trace.limits if one.at > MINUTE]
    return Stationary(
        shape,
        setting.name,
        seed,
        len(trace),
        max(1 - good / calls for calls, good in minutes if calls),
        missed / len(trace),
        worlds.median(limits) / min(best, CEILING),
        opens(trace),
        [(at / MINUTE, 1 - good / max(1, calls)) for at, (calls, good) in _timed(minutes, MINUTE)],
    )


def _timed(bins: list[tuple[int, int]], width: float) -> list[tuple[float, tuple[int, int]]]:
    return [(index * width, one) for index, one in enumerate(bins)]


def opens(trace: Trace) -> int:
    """How often the breaker opened."""
    return sum(state == "open" for _, state in trace.breaker)


class Step(NamedTuple):
    """Latency that becomes a multiple of what it was."""

    shape: str
    factor: float
    setting: str
    seed: int
    back: float
    before: float
    floor: float
    opened: int
    cuts: int
    exact: float
    good: Curve
    limits: Curve


def step(shape: str, factor: float, setting: Setting, seed: int, late: bool = True) -> Step:
    """The base is as slow as the ceiling allows: twice the new p99."""
    p99 = CEILING / 2 / factor
    floor = worlds.floor_for(SHAPES[shape], setting, p99)
    run = worlds.world(seed, SHAPES[shape].scaled(p99), setting.policy(floor), STEP_RATE)
    run.client.late_answers = late
    run.simulation.at(STEP_AT, run.server.slow_down, factor)
    run.simulation.run(STEP_AT)
    before = run.client.block.limit
    run.simulation.run(STEP_UNTIL + 2 * CEILING)
    trace = run.client.trace
    bins = trace.per(1.0, STEP_AT, STEP_UNTIL)
    cuts, heard = (
        sum(STEP_AT <= began < STEP_AT + RELEARNING for began in column)
        for column in (trace.cut_began, trace.late_began)
    )
    return Step(
        shape,
        factor,
        setting.name,
        seed,
        back_after(bins),
        before,
        floor,
        opens(trace),
        cuts,
        heard / cuts if cuts else math.nan,
        [(at, good / calls) for at, (calls, good) in _timed(trace.per(0.5, 55, 80), 0.5) if calls],
        [(one.at - 55, one.limit) for one in trace.limits if 55 <= one.at <= 80],
    )


class Warm(NamedTuple):
    """A process that starts with limits from before, when the store was faster."""

    shape: str
    setting: str
    seed: int
    back: float
    before: float
    opened: int


def warm(shape: str, setting: Setting, seed: int) -> Warm:
    """What one process learnt another one takes up, from a store `WARM` times as slow by then."""
    p99 = CEILING / 2 / WARM
    scaled, floor = SHAPES[shape].scaled(p99), worlds.floor_for(SHAPES[shape], setting, p99)
    earlier = worlds.world(seed, scaled, setting.policy(floor), STEP_RATE)
    earlier.simulation.run(BITE_AT)
    learnt = earlier.client.block.learnt
    run = worlds.world(seed + 1, scaled, setting.policy(floor), STEP_RATE)
    run.client.block.adopt(learnt)
    run.server.slow_down(WARM)
    run.simulation.run(STEP_UNTIL - STEP_AT + 2 * CEILING)
    trace = run.client.trace
    back = back_after(trace.per(1.0, 0.0, STEP_UNTIL - STEP_AT))
    return Warm(shape, setting.name, seed, back, learnt.limit, opens(trace))


class Bite(NamedTuple):
    """How much of a step the first second is cut by, counted where it is over then."""

    calls: int
    cut: int


def bite(shape: str, factor: float, setting: Setting, seed: int) -> Bite:
    """Calls begun in the first second after a step, and those cut, of `BITES` further runs.

    One run has 200 such calls, too few to tell a share of 2 % from one of 1 %.
    """
    p99 = CEILING / 2 / factor
    floor = worlds.floor_for(SHAPES[shape], setting, p99)
    calls = cut = 0
    for number in range(BITES):
        policy, scaled = setting.policy(floor), SHAPES[shape].scaled(p99)
        run = worlds.world(1000 * seed + number, scaled, policy, STEP_RATE)
        run.simulation.at(BITE_AT, run.server.slow_down, factor)
        run.simulation.run(BITE_AT + 1 + 2 * CEILING)
        ((begun, good),) = run.client.trace.per(1.0, BITE_AT, BITE_AT + 1)
        calls, cut = calls + begun, cut + begun - good
    return Bite(calls, cut)


def back_after(bins: list[tuple[int, int]], share: float = 0.99, hold: int = 30) -> float:
    """Seconds until the first second that is good and is followed by a good half minute.

    Good: at least `share` of the calls begun then had their answer, in that second, and in the
    seconds from it on (`hold` of them, together).
    """
    for index, (calls, good) in enumerate(bins):
        after = bins[index : index + hold]
        if calls and good >= share * calls:
            total = sum(one for one, _ in after)
            if sum(one for _, one in after) >= share * total:
                return float(index)
    return math.inf


class Outage(NamedTuple):
    """A store that is gone for a while."""

    kind: str
    setting: str
    seed: int
    opened_after: float
    closed_after: float
    off: float
    good: Curve
    limits: Curve


def outage(kind: str, setting: Setting, seed: int) -> Outage:
    """Silent or refusing for 20 s; then as before."""
    shape = SHAPES["lognormal 0.5"]
    run = worlds.world(seed, shape.scaled(0.1), setting.policy(), STEP_RATE, watch=0.05)
    run.simulation.at(OUTAGE_AT, getattr(run.server, kind))
    healed = OUTAGE_AT + OUTAGE
    run.simulation.at(healed, run.server.heal)
    run.simulation.run(OUTAGE_UNTIL)
    trace = run.client.trace
    old = worlds.median([one.limit for one in trace.limits if 50 < one.at < OUTAGE_AT])
    # a probe that was under way when the store came back was permitted before
    probing = ("half-open", "closed")
    probed = next((at for at, s in trace.breaker if at >= healed and s in probing), math.inf)
    closed = next((at for at, state in trace.breaker if at >= healed and state == "closed"), 1e9)
    opened = next((at for at, state in trace.breaker if state == "open"), math.inf)
    settled = [one.limit for one in trace.limits if one.at >= probed + 5]
    return Outage(
        kind,
        setting.name,
        seed,
        opened - OUTAGE_AT,
        closed - probed,
        max((abs(limit / old - 1) for limit in settled), default=math.inf),
        [(at, g / c) for at, (c, g) in _timed(trace.per(0.5, 55, 95), 0.5) if c],
        [(one.at - 55, one.limit) for one in trace.limits if 55 <= one.at <= 95],
    )


class Dead(NamedTuple):
    """Retries against a store that is dead or has too much to do."""

    kind: str
    guarded: str
    seed: int
    ratio: float


def dead(kind: str, guarded: str, seed: int) -> Dead:
    """Attempts that reached it, to calls that were asked for, over a minute of trouble."""
    simulation = Simulation(seed)
    delay = SHAPES["lognormal 0.5"].scaled(0.02)
    server = Server(simulation, delay, concurrency=4, queue=1000)
    breaker = Breaker() if guarded == "breaker" else None
    policy = Policy(retry=Retry(attempts=3), breaker=breaker)
    client = Client(simulation, server, policy=policy)
    client.load(poisson(100.0))
    simulation.run(30.0)
    if kind == "overload":
        server.slow_down(20.0)
    else:
        getattr(server, kind)()
    calls, attempts = client.trace.calls, server.received
    simulation.run(90.0)
    return Dead(kind, guarded, seed, (server.received - attempts) / (client.trace.calls - calls))


class Metastable(NamedTuple):
    """Many clients, an overload, and whether it ends with its cause."""

    guarded: str
    budget: bool
    seed: int
    before: float
    down: float
    amplified: float
    good: Curve


class NoBudget:
    """Every repeat is allowed (what most libraries do)."""

    def withdraw(self, now: float) -> bool:
        """Always."""
        return True

    def allowed(self, now: float) -> float:
        """Without end."""
        return math.inf


CLIENTS, SERVERS = 1000, 100
TRIGGER_AT, TRIGGER = 15.0, 10.0
STUDY = 65.0


def metastable(guarded: str, budget: bool, seed: int) -> Metastable:
    """1,000 clients of 1.4 calls/s; 100 servers of 20/s, ten times slower for 10 s.

    A request that waited 0.15 s at a server costs its work and ends in an error: the kind of
    overload that repeats feed.
    """
    simulation = Simulation(seed)
    delay = fixed(0.1)
    servers = [
        Server(simulation, delay, concurrency=2, queue=8, patience=0.15) for _ in range(SERVERS)
    ]
    target = LeastConnections(servers)
    breaker = Breaker() if guarded == "breaker" else None
    policy = Policy(retry=Retry(attempts=3), breaker=breaker)
    clients = [Client(simulation, target, policy=policy) for _ in range(CLIENTS)]
    for client in clients:
        if not budget:
            client.block.budget = NoBudget()  # type: ignore[assignment]
        client.load(poisson(1.4))
    healed = TRIGGER_AT + TRIGGER
    for server in servers:
        simulation.at(TRIGGER_AT, server.slow_down, 10.0)
        simulation.at(healed, server.heal)
    simulation.run(healed + STUDY + 3)
    whole = _together(clients)
    before = whole.share_ok(5.0, TRIGGER_AT)
    bins = whole.per(1.0, healed, healed + STUDY)
    attempts = sum(client.trace.attempts for client in clients)
    return Metastable(
        guarded,
        budget,
        seed,
        before,
        min(back_after(bins, 0.99 * before, 10), STUDY),
        attempts / len(whole),
        [(at, g / c) for at, (c, g) in _timed(whole.per(1.0, 5.0, healed + STUDY), 1.0) if c],
    )


def _together(clients: list[Client]) -> Trace:
    whole = Trace()
    for client in clients:
        whole.began.extend(client.trace.began)
        whole.elapsed.extend(client.trace.elapsed)
        whole.outcome.extend(client.trace.outcome)
    return whole
