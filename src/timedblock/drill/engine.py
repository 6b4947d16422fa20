"""Runs a scenario's episodes in waves of worker processes, each on a link of its own."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from timedblock.drill import injection
from timedblock.drill.errors import DrillError
from timedblock.drill.history import WRONG, Call, Delivery, Sample
from timedblock.drill.injection import Site
from timedblock.drill.measure import Result, summarise
from timedblock.drill.process import Worker, running, start_together
from timedblock.drill.scenario import Episode, Scenario, Step
from timedblock.drill.starvation import Starved, Watch, children
from timedblock.drill.store import OURS, VARIANTS, find
from timedblock.drill.worker import Records, Spell, Task
from timedblock.faults import Refuse
from timedblock.faults.injector import Link

#: Seconds that starting a wave usually takes, for the progress bar.
_USUAL_START = 1.5
_REPORT_WITHIN = 5.0
_TICK = 0.1
#: Seconds in which packet rules reset the connections that a load has open.
_RESETTING = 0.3

#: Told the seconds that have passed of the plan, and what is going on.
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class _Lane:
    """One load of a wave: an episode of a target by a variant, on a link."""

    episode: Episode
    site: Site
    variant: str
    label: str
    prefix: str
    link: Link

    def steps(self) -> tuple[Step, ...]:
        """The faults of this lane's target."""
        return self.episode.on(self.site.target).timeline

    def checked(self, records: Records) -> list[Call]:
        """The calls, those that can't be right as wrong. DrillError if the server itself can't be
        right."""
        restarted = any(step.fault.name == injection.KILL for step in self.steps())
        calls, given = records.calls, records.deliveries
        found = self.site.data.violations(self.prefix, calls, given, restarted=restarted)
        wrong = {violation.call.number for violation in found}
        return [call._replace(outcome=WRONG) if call.number in wrong else call for call in calls]


@dataclass
class Engine:
    """Runs a scenario. What it has found grows wave by wave, so that an interrupted run has
    some."""

    scenario: Scenario
    injector: str
    prefix: str
    progress: Progress
    server: str = ""
    results: list[Result] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)

    def run(self) -> None:
        """DrillError if it cannot be run."""
        started = time.monotonic()
        rounds = waves(self.scenario, self.injector)
        try:
            with injection.sites(self.scenario, self.injector) as sites:
                servers = [server for site in sites for server in site.servers]
                self.server = ", ".join(f"{host}:{port}" for host, port in servers)
                for number, episodes in enumerate(rounds, 1):
                    names = ", ".join(episode.name for episode in episodes)
                    label = f"wave {number} of {len(rounds)}: {names}"
                    self._wave(sites, episodes, label, started)
        except (RuntimeError, ValueError) as error:  # what an injector says when it can't
            raise DrillError(str(error)) from error

    def _wave(
        self, sites: Sequence[Site], episodes: Sequence[Episode], label: str, started: float
    ) -> None:
        def tell(phase: str) -> None:
            self.progress(time.monotonic() - started, f"{label}: {phase}")

        tell("start")
        lanes = self._lanes(sites, episodes)
        tasks = [(self._task(lane), lane.link.prefix) for lane in lanes]
        # Before the loads are started: what runs now is what serves them.
        with _prepared(lanes), Watch(children) as watch, running(tasks) as workers:
            start = start_together(workers)
            for moment, act, phase in _moments(lanes, self.injector):
                _wait(start + moment, lambda now=phase: tell(now))  # type: ignore[misc]
                act()
            end = start + max(worker.task.schedule.end for worker in workers)
            _wait(end, lambda: tell("recovery"))
            until = end + self.scenario.grace + _REPORT_WITHIN
            for lane, worker in zip(lanes, workers, strict=True):
                starved = [Starved(s - start, u - start, taken) for s, u, taken in watch.found]
                self._finish(lane, worker, until, starved)

    def _lanes(self, sites: Sequence[Site], episodes: Sequence[Episode]) -> list[_Lane]:
        lanes = []
        for episode in episodes:
            labels = self.scenario.labels(episode)
            for site, (label, _) in zip(sites, labels, strict=True):
                for variant in variants(self.scenario, self.injector):
                    prefix = f"{self.prefix}:{label}:{variant}"
                    link = site.injector.listen()
                    lanes.append(_Lane(episode, site, variant, label, prefix, link))
        return lanes

    def _task(self, lane: _Lane) -> Task:
        load = self.scenario.load
        spells = tuple(
            Spell(step.fault.to_dict(), step.at, step.until)
            for step in lane.steps()
            if injection.in_worker(step.fault, self.injector)
        )
        return Task(
            lane.label,
            lane.variant,
            lane.site.store.name,
            (lane.link.address, *lane.site.servers[1:]),
            lane.prefix,
            self.scenario.schedule(lane.episode),
            load.kind,
            int(load.threads),
            load.think,
            lane.site.store.writes if load.writes is None else load.writes,
            spells,
            self.injector == injection.INPROCESS,
        )

    def _finish(
        self, lane: _Lane, worker: Worker, until: float, starved: Sequence[Starved]
    ) -> None:
        """What came of a lane: checked, counted, kept."""
        records = worker.collect(until)
        calls = [worker.hung()] if records is None else lane.checked(records)
        known = records or Records([], [], [], [])
        variant, schedule = lane.site.store.variants[lane.variant], worker.task.schedule
        self.results.append(
            summarise(
                lane.label,
                lane.variant,
                variant.limit,
                schedule,
                calls,
                known.samples,
                [*known.starved, *starved],
                known.deliveries if variant.consumes else None,
            )
        )
        self.calls += calls
        self.samples += known.samples
        self.deliveries += known.deliveries


# Waves


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def variants(scenario: Scenario, injector: str) -> tuple[str, ...]:
    """Those that the injector reaches."""
    reached = OURS if injector == injection.INPROCESS else VARIANTS
    return tuple(name for name in scenario.variants if name in reached)


def waves(scenario: Scenario, injector: str) -> list[list[Episode]]:
    """The episodes that run side by side: the one without a fault alone, so that nothing disturbs
    what the others are compared with; the others as many as the processors carry, each wave with
    its share of the busy ones. A process is one for all clients: one episode at a time."""
    plan = scenario.plan
    alone = [[episode] for episode in plan if not episode.timeline]
    others = [episode for episode in plan if episode.timeline]
    loads = len(variants(scenario, injector)) * len(scenario.targets)
    a_core = min(find(target.store).loads_a_core for target in scenario.targets)
    largest = max(1, a_core * cores() // loads)
    if scenario.in_order or injector == injection.PROCESS:
        largest = 1
    if largest == 1:
        return [*alone, *([episode] for episode in others)]
    quiet = {name for target in scenario.targets for name in find(target.store).quiet}
    dealt = sorted(others, key=lambda episode: set(episode.faults) <= quiet)
    count = math.ceil(len(dealt) / largest)
    return [*alone, *(dealt[number::count] for number in range(count))]


def expected_seconds(scenario: Scenario, injector: str) -> float:
    """About how long a scenario takes."""
    ends = [
        max(scenario.schedule(episode).end for episode in episodes)
        for episodes in waves(scenario, injector)
    ]
    return sum(ends) + _USUAL_START * len(ends)


# Faults and time

_Moment = tuple[float, Callable[[], None], str]


def _moments(lanes: Sequence[_Lane], injector: str) -> list[_Moment]:
    """What is done to the links of a wave, when, and what goes on until then."""
    found: list[_Moment] = []
    seen: set[tuple[int, Step]] = set()
    for lane in lanes:
        for step in lane.steps():
            if (id(lane.link), step) in seen:  # one link for all: a process
                continue
            seen.add((id(lane.link), step))
            found += _of_step(lane.link, step, injector)
    return sorted(found, key=lambda moment: moment[0])


def _of_step(link: Link, step: Step, injector: str) -> list[_Moment]:
    if not injection.in_worker(step.fault, injector):
        return [
            (step.at, partial(link.inject, step.fault), "steady"),
            (step.until, link.clear, "fault"),
        ]
    if injector == injection.INPROCESS:
        return [(step.at, _nothing, "steady"), (step.until, _nothing, "fault")]
    # Names are resolved for new connections only: end the open ones once, for every variant.
    # The relay can do that at once, packet rules only to those that send.
    settle = _RESETTING if injector == injection.NETFILTER else 0.0
    return [
        (step.at, partial(link.inject, Refuse()), "steady"),
        (step.at + settle, link.clear, "fault"),
        (step.until, _nothing, "fault"),
    ]


def _nothing() -> None:
    pass


@contextmanager
def _prepared(lanes: Sequence[_Lane]) -> Iterator[None]:
    """What every lane needs is on its server for the time of the block."""
    try:
        for lane in lanes:
            lane.site.data.prepare(lane.prefix)
        yield
    except BaseException:
        # It can only be deleted, and the error be told, once the faults are over.
        for lane in lanes:
            with suppress(RuntimeError):
                lane.link.clear()
            with suppress(DrillError):
                lane.site.data.delete(lane.prefix)
        raise
    for lane in lanes:
        lane.site.data.delete(lane.prefix)


def _wait(until: float, tick: Callable[[], None]) -> None:
    while (left := until - time.monotonic()) > 0:
        tick()
        time.sleep(min(left, _TICK))
