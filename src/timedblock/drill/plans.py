"""The scenarios that ``timedblock drill STORE`` makes of its options: one episode a fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from timedblock import faults
from timedblock.drill import injection
from timedblock.drill.errors import ScenarioError
from timedblock.drill.load import TOLERANCE
from timedblock.drill.scenario import (
    RECOVERY,
    STEADY,
    STEADY_REQUESTS,
    Bounds,
    Episode,
    Load,
    Scenario,
    Step,
    Target,
)
from timedblock.drill.store import Store
from timedblock.drill.worker import DNS_FAULTS
from timedblock.faults import Fault

#: Seconds of fault that are counted. A breaker may take the first third of them to be sure.
WINDOW = 6.0
FULL_WINDOW = 10.0
#: Seconds after the fault in a full drill, and in which answers and a closed breaker are due: an
#: open breaker looks each 5 s and a quarter, at the latest.
FULL_RECOVERY = 8.0
_BACK_WITHIN = 7.0
#: Seconds of a dead store in which a breaker opens, and the monitoring endpoint says so.
_KNOWN_WITHIN = 3.0


def usual(
    store: Store, target: Target, injector: str, rate: float | None, window: float | None
) -> Scenario:
    """All faults on the three clients of the README."""
    names = [name for name in store.faults if name in injection.makes(injector)]
    return _scenario(store, target, injector, names, rate or store.rate, window or WINDOW)


def quick(
    store: Store, target: Target, injector: str, rate: float | None, window: float | None
) -> Scenario:
    """Four faults."""
    able = injection.makes(injector)
    few = [name for name in store.quick if name in able]
    others = [name for name in store.faults if name in able and name not in few]
    names = (few + others)[: len(store.quick)]
    return _scenario(store, target, injector, names, rate or store.rate, window or WINDOW)


def full(
    store: Store, target: Target, injector: str, rate: float | None, window: float | None
) -> Scenario:
    """All faults, all variants; how soon timedblock knows and is back is judged, too."""
    plan = usual(store, target, injector, rate, window or FULL_WINDOW)
    gone = Bounds(
        recovery=_BACK_WITHIN,
        breaker_opened=_KNOWN_WITHIN,
        breaker_closed=_BACK_WITHIN,
        seen=_KNOWN_WITHIN,
    )
    sick = Bounds(recovery=_BACK_WITHIN)
    killed = replace(
        gone, recovery=_BACK_WITHIN + store.starts, breaker_closed=_BACK_WITHIN + store.starts
    )
    # Of names a client keeps the last good address: then nothing is wrong that it could see.
    seen = set(store.gone) - DNS_FAULTS

    def bounds(episode: Episode) -> Bounds:
        if not set(episode.faults) <= seen:
            return sick
        return killed if injection.KILL in episode.faults else gone

    episodes = tuple(replace(episode, bounds=bounds(episode)) for episode in plan.episodes)
    recovery = plan.recovery - RECOVERY + FULL_RECOVERY
    return replace(
        plan, name="full", episodes=episodes, variants=tuple(store.variants), recovery=recovery
    )


def only(plan: Scenario, store: Store, names: Sequence[str]) -> Scenario:
    """The episodes of these faults; those that a store's drill doesn't have are made with their
    usual values. ScenarioError if there is none."""
    if not plan.episodes:
        raise ScenarioError("there is no fault that this injector makes", "faults")
    model = plan.episodes[0]
    have = {episode.name: episode for episode in plan.episodes}
    known = [*store.faults, *(name for name in faults.FAULTS if name not in store.faults)]
    episodes = tuple(
        have[name] if name in have else _like(model, _fault(store, name))
        for name in known
        if name in names
    )
    return replace(plan, episodes=episodes)


def _fault(store: Store, name: str) -> Fault:
    return store.faults[name] if name in store.faults else faults.FAULTS[name]()


def _like(model: Episode, fault: Fault) -> Episode:
    step = model.timeline[0]
    return Episode(fault.name, (replace(step, fault=fault),), model.bounds)


def _scenario(
    store: Store, target: Target, injector: str, names: Sequence[str], rate: float, window: float
) -> Scenario:
    grace = store.longest_limit + TOLERANCE
    chosen = list(names) or list(injection.makes(injector))
    episodes = tuple(one_fault(_fault(store, name), rate, window, grace) for name in chosen)
    # A store that was killed is started again when its fault is over.
    starting = store.starts if injection.KILL in chosen else 0.0
    return Scenario(
        name=store.name,
        title=f"every fault of {store.name}",
        episodes=episodes,
        targets=(target,),
        load=Load(rate=rate),
        inject=injector,
        recovery=RECOVERY + starting,
    )


def one_fault(fault: Fault, rate: float, window: float, grace: float) -> Episode:
    """Steady state, one fault for ``window`` (counted) and ``grace`` seconds; then recovery."""
    steady = max(STEADY, STEADY_REQUESTS / rate)
    return Episode(fault.name, (Step(fault, steady, window + grace),))
