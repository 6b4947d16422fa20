"""What a drill does, said once: targets, load, a timeline of faults, variants, verdicts.

A scenario is made of these dataclasses, in Python or by ``timedblock.drill.toml`` from a file. It
is checked where it is made; ScenarioError says which key is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from timedblock.drill.errors import ScenarioError
from timedblock.drill.load import THREADS, TOLERANCE, Schedule
from timedblock.drill.store import (
    LEARNT,
    RAW_DEFAULT,
    RAW_FRESH,
    RAW_TIMEOUT,
    STORES,
    VARIANTS,
    find,
)
from timedblock.faults import Fault
from timedblock.faults.vocabulary import INJECTORS

#: The name of the episode without a fault.
FAULT_FREE = "none"
#: Seconds before the fault, at least, and so many requests: a limit is learnt from 100.
STEADY = 1.5
STEADY_REQUESTS = 150
#: Seconds after the last fault, where a scenario doesn't say.
RECOVERY = 1.0
MAX_RATE = 5000.0
#: Seconds that an episode may last.
MAX_SECONDS = 3600.0
_LOADS = ("open", "closed")


def _check(holds: bool, key: str, message: str, step: object = None) -> None:
    if not holds:
        raise ScenarioError(message, key, step)


def _check_name(value: object) -> None:
    _check(isinstance(value, str), "name", f"must be text, not {value!r}")
    _check(bool(value), "name", "must not be empty")


def _check_number(key: str, value: object, low: float, high: float) -> None:
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    _check(fine, key, f"must be a number from {low:g} to {high:g}, not {value!r}")


@dataclass(frozen=True)
class Target:
    """A store under test. ``server``: (host, port) of one that is there; None: the drill starts
    one."""

    name: str = "cache"
    store: str = "memcache"
    server: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        known = ", ".join(STORES)
        _check(self.store in STORES, "store", f"unknown store {self.store!r}; known: {known}")


@dataclass(frozen=True)
class Load:
    """``open``: requests come due at ``rate`` a second, whatever became of the ones before.
    ``closed``: each of ``threads`` makes its next request when the one before has ended, after
    ``think`` seconds. A share ``writes`` of the requests writes (None: the store's usual one)."""

    kind: str = "open"
    rate: float = 200.0
    threads: int = THREADS
    think: float = 0.0
    writes: float | None = None

    def __post_init__(self) -> None:
        known = " or ".join(_LOADS)
        _check(self.kind in _LOADS, "kind", f"must be {known}, not {self.kind!r}")
        _check_number("rate", self.rate, 1, MAX_RATE)
        _check_number("threads", self.threads, 1, 1000)
        _check(self.threads == int(self.threads), "threads", f"{self.threads!r} is not whole")
        _check_number("think", self.think, 0, 60)
        if self.writes is not None:
            _check_number("writes", self.writes, 0, 1)

    @property
    def scheduled(self) -> float:
        """Requests a second that come due by the clock; 0 in a closed loop."""
        return float(self.rate) if self.kind == "open" else 0.0


@dataclass(frozen=True)
class Step:
    """A fault of the vocabulary from ``at`` (seconds from the load's start) for ``seconds``, on
    one target or (None) on all of them."""

    fault: Fault
    at: float
    seconds: float
    target: str | None = None

    def __post_init__(self) -> None:
        _check_number("at", self.at, 0, MAX_SECONDS)
        _check_number("for", self.seconds, 0.05, MAX_SECONDS)
        fine = self.target is None or isinstance(self.target, str)
        _check(fine, "target", f"must be a target's name, not {self.target!r}")

    @property
    def until(self) -> float:
        return self.at + self.seconds


@dataclass(frozen=True)
class Bounds:
    """What timedblock's variants are held to; None: it is measured and not judged.

    ``goodput`` is a share of the reference's: of the fault-free run where a client can know that
    the store is gone, else of raw-timeout under the same fault. ``p99`` is seconds of a call.
    ``recovery``, ``breaker_closed``: within so many seconds of the last fault's end;
    ``breaker_opened``, ``seen``: of the first one's beginning. ``way``: within so many seconds of
    the moment when ``raw-fresh`` has found a way during the fault. ``seen`` is the moment when the
    monitoring endpoint (``GET /health`` of ``timedblock.monitor``) tells that something is wrong:
    its ``status`` isn't ``ok``. The load's process makes that answer each 0.1 s; no HTTP is spoken.
    """

    limit_kept: bool | None = True
    no_wrong_answer: bool | None = True
    goodput: float | None = 0.9
    p99: float | None = None
    recovery: float | None = None
    breaker_opened: float | None = None
    breaker_closed: float | None = None
    seen: float | None = None
    way: float | None = None

    def __post_init__(self) -> None:
        for key in ("limit_kept", "no_wrong_answer"):
            value = getattr(self, key)
            fine = value is None or isinstance(value, bool)
            _check(fine, key, f"must be true or false, not {value!r}")
        if self.goodput is not None:
            _check_number("goodput", self.goodput, 0, 1)
        for key in ("p99", "recovery", "breaker_opened", "breaker_closed", "seen", "way"):
            if getattr(self, key) is not None:
                _check_number(key, getattr(self, key), 0, MAX_SECONDS)


@dataclass(frozen=True)
class Episode:
    """One timeline of faults under one load. No step is the run without a fault. ``title`` says in
    one sentence what happens; without it the report says what its fault is."""

    name: str
    timeline: tuple[Step, ...] = ()
    bounds: Bounds | None = None
    title: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        steps = sorted(self.timeline, key=lambda step: step.at)
        for before, after in pairwise(steps):
            apart = before.target and after.target and before.target != after.target
            _check(
                bool(apart) or before.until <= after.at,
                "at",
                f"{after.fault.name} at {after.at:g} begins before {before.fault.name} has ended"
                f" at {before.until:g}",
                after,
            )
        object.__setattr__(self, "timeline", tuple(steps))

    def on(self, target: Target) -> Episode:
        """What of it happens to one target."""
        mine = tuple(step for step in self.timeline if step.target in (None, target.name))
        return replace(self, timeline=mine)

    @property
    def faults(self) -> tuple[str, ...]:
        """The names of its faults, each once."""
        return tuple(dict.fromkeys(step.fault.name for step in self.timeline))


@dataclass(frozen=True)
class Scenario:
    """A whole drill.

    Its episodes run side by side, as many as the machine carries; with ``in_order`` one after the
    other. ``baseline`` adds the run without a fault, which is always the first and alone.
    ``recovery``: seconds of load after an episode's last fault. ``inject``: the injector (None:
    the proxy).
    """

    name: str
    episodes: tuple[Episode, ...]
    title: str = ""
    targets: tuple[Target, ...] = (Target(),)
    load: Load = field(default_factory=Load)
    variants: tuple[str, ...] = (RAW_DEFAULT, RAW_TIMEOUT, LEARNT)
    bounds: Bounds = field(default_factory=Bounds)
    recovery: float = RECOVERY
    baseline: bool = True
    in_order: bool = False
    inject: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check(bool(self.targets), "targets", "there is none")
        _unique("targets", [target.name for target in self.targets])
        _check(bool(self.variants), "variants", "there is none")
        _unique("variants", self.variants)
        for name in self.variants:
            known = ", ".join(VARIANTS)
            _check(name in VARIANTS, "variants", f"unknown variant {name!r}; known: {known}")
            for target in self.targets:
                others = f"{target.store} has no variant {name!r}"
                _check(name in find(target.store).variants, "variants", others)
        _check_number("recovery", self.recovery, 0, MAX_SECONDS)
        known = ", ".join(INJECTORS)
        fine = self.inject is None or self.inject in INJECTORS
        _check(fine, "inject", f"unknown injector {self.inject!r}; known: {known}")
        self._check_episodes()

    def _check_episodes(self) -> None:
        _check(bool(self.episodes), "timeline", "there is no fault in it")
        _unique("episodes", [episode.name for episode in self.episodes])
        names = {target.name for target in self.targets}
        known = ", ".join(sorted(names))
        for episode in self.episodes:
            _check(bool(episode.timeline), "timeline", f"{episode.name}: there is no fault in it")
            for step in episode.timeline:
                fine = step.target is None or step.target in names
                _check(fine, "target", f"unknown target {step.target!r}; known: {known}", step)
            taken = f"{FAULT_FREE} is the name of the run without a fault"
            _check(episode.name != FAULT_FREE, "episodes", taken)
            _check_window(episode, self.grace)
            witness = self.judged_by(episode).way is None or RAW_FRESH in self.variants
            _check(witness, "variants", f"the verdict 'way' needs {RAW_FRESH}")

    @property
    def plan(self) -> list[Episode]:
        """The episodes as they run: the one without a fault first."""
        without = [Episode(FAULT_FREE)] if self.baseline else []
        return [*without, *self.episodes]

    @property
    def grace(self) -> float:
        """Seconds in which a call of any variant has to have ended."""
        return max(find(target.store).longest_limit for target in self.targets) + TOLERANCE

    def schedule(self, episode: Episode) -> Schedule:
        """When what happens in an episode; the one without a fault is as long as the longest."""
        timed = [episode] if episode.timeline else self.episodes
        longest = max(timed, key=lambda one: _end(one) - one.timeline[0].at)
        begin, end = longest.timeline[0].at, _end(longest)
        window = end - begin - self.grace
        return Schedule(self.load.scheduled, begin, window, self.grace, self.recovery)

    def labels(self, episode: Episode) -> list[tuple[str, Target]]:
        """What an episode is called on each target, in the results and in the history."""
        if len(self.targets) == 1:
            return [(episode.name, self.targets[0])]
        return [(f"{episode.name}@{target.name}", target) for target in self.targets]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what it says, fault by fault."""
        return {
            **asdict(self),
            "targets": [_target_dict(target) for target in self.targets],
            "episodes": [_episode_dict(episode) for episode in self.episodes],
        }

    def judged_by(self, episode: Episode) -> Bounds:
        """The bounds of an episode: its own, or the scenario's."""
        return episode.bounds or self.bounds


def _target_dict(target: Target) -> dict[str, Any]:
    server = ":".join(map(str, target.server)) if target.server else None
    return {"name": target.name, "store": target.store, "server": server}


def _episode_dict(episode: Episode) -> dict[str, Any]:
    steps = [
        {**step.fault.to_dict(), "at": step.at, "for": step.seconds, "target": step.target}
        for step in episode.timeline
    ]
    bounds = asdict(episode.bounds) if episode.bounds else None
    about = {"name": episode.name, "title": episode.title}
    return {**about, "timeline": steps, "bounds": bounds}


def _unique(key: str, names: Sequence[str]) -> None:
    for name in names:
        _check(names.count(name) == 1, key, f"{name!r} is there twice")


def _end(episode: Episode) -> float:
    return max(step.until for step in episode.timeline)


def _check_window(episode: Episode, grace: float) -> None:
    begin, end = episode.timeline[0].at, _end(episode)
    last = max(episode.timeline, key=lambda step: step.until)
    _check(
        end - begin >= grace + 0.5,
        "for",
        f"{episode.name}: its faults have to last {grace + 0.5:g} s, so that a call can be seen"
        f" to hang, not {end - begin:g} s",
        last,
    )
    _check(end <= MAX_SECONDS, "at", f"{episode.name} ends after {MAX_SECONDS:g} s", last)
