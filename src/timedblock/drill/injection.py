"""Where a drill's faults are made: the injectors, behind one door."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from timedblock.drill.errors import DrillError, ScenarioError
from timedblock.drill.scenario import Scenario, Target
from timedblock.drill.store import OURS, Address, Serving, find
from timedblock.drill.worker import DNS_FAULTS
from timedblock.faults import Fault, vocabulary
from timedblock.faults.injector import CannotInject

if TYPE_CHECKING:
    from timedblock.faults.injector import Injector

#: The fault after which a store that keeps nothing has lost its keys.
KILL = "kill"
#: Seconds in which a store that was killed accepts connections again, on a busy machine.
_ACCEPTS_WITHIN = 60.0
PROXY, NETFILTER, PROCESS, INPROCESS = "proxy", "netfilter", "process", "inprocess"


def makes(injector: str) -> frozenset[str]:
    """The faults that a drill can make with an injector. With all that make them on the wire, the
    faults of names are made where names are resolved, in the load's own process, for raw too."""
    names = frozenset(vocabulary.faults_of(injector))
    return names | DNS_FAULTS if injector in (PROXY, NETFILTER) else names


def check(scenario: Scenario, injector: str) -> None:
    """ScenarioError if the injector can't make a fault of the scenario, or has nobody to make it
    for."""
    if injector not in vocabulary.INJECTORS:
        known = ", ".join(vocabulary.INJECTORS)
        raise ScenarioError(f"unknown injector {injector!r}; known: {known}", "inject")
    for store in (find(target.store) for target in scenario.targets):
        if injector not in store.injectors:
            able = ", ".join(store.injectors)
            raise ScenarioError(f"{store.name} can be faulted by {able}, not {injector}", "inject")
    for step in (step for episode in scenario.episodes for step in episode.timeline):
        if in_worker(step.fault, injector) and injector in (PROXY, NETFILTER):
            continue
        try:
            vocabulary.check(injector, step.fault)
        except ValueError as error:
            raise ScenarioError(str(error), "inject") from None
    if injector == INPROCESS and not set(scenario.variants) & set(OURS):
        raise ScenarioError("inprocess reaches timedblock's own variants only", "variants")
    if injector == PROCESS and any(target.server for target in scenario.targets):
        raise ScenarioError("process faults a server that the drill started, not one of yours",
                            "inject")  # fmt: skip


def in_worker(fault: Fault, injector: str) -> bool:
    """Whether the load's own process makes a fault."""
    return injector == INPROCESS or fault.name in DNS_FAULTS


class _Straight:
    """A link that leads straight to the server: its faults are made in the load's process."""

    prefix: tuple[str, ...] = ()

    def __init__(self, address: Address) -> None:
        self.address = address

    def inject(self, fault: Fault) -> None:
        raise ValueError(f"{fault.name} is made in the load's own process")

    def clear(self) -> None:
        pass


class InProcess:
    """The injector whose faults the workers make themselves."""

    name = INPROCESS

    def __init__(self, server: Address) -> None:
        self._link = _Straight(server)

    def listen(self) -> _Straight:
        return self._link

    def __enter__(self) -> InProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


class Site:
    """A target that is being drilled: its server, past the faults, and its injector."""

    def __init__(self, target: Target, serving: Serving, injector: Injector) -> None:
        self.target = target
        self.servers = serving.addresses
        self.injector = injector
        self.store = find(target.store)
        self.data = self.store.data(serving.addresses)


@contextmanager
def sites(scenario: Scenario, injector: str) -> Iterator[list[Site]]:
    """Every target of a scenario, its server started where it isn't a user's. DrillError if a
    server doesn't start or the injector can't work here."""
    with ExitStack() as stack:
        found = []
        for target in scenario.targets:
            _check_server(target)
            serving = _serving(stack, target)
            if injector == PROCESS and _kills(scenario) and not serving.command:
                raise DrillError(f"{KILL} needs an installed {target.store}, to start it again")
            try:
                made = stack.enter_context(_injector(injector, serving))
            except (CannotInject, RuntimeError) as error:
                raise DrillError(str(error)) from error
            found.append(Site(target, serving, made))
        yield found


def _kills(scenario: Scenario) -> bool:
    return any(KILL in episode.faults for episode in scenario.episodes)


def _check_server(target: Target) -> None:
    """DrillError says why nothing can be read at a server of the user's: an injector, which doesn't
    know what it leads to, could not."""
    if target.server is not None:
        find(target.store).data([target.server]).check()


def _serving(stack: ExitStack, target: Target) -> Serving:
    if target.server is not None:
        return Serving(target.server, 0, ())
    return stack.enter_context(find(target.store).serve("127.0.0.1"))


def _injector(name: str, serving: Serving) -> Injector:
    if serving.injector is not None:
        return serving.injector
    # Imported where they are used: netfilter is for Linux and root.
    if name == NETFILTER:
        from timedblock.faults.netfilter import Netfilter

        return Netfilter(serving.address)
    if name == PROCESS:
        from timedblock.faults.process import Process

        return Process(
            serving.pid,
            address=serving.address,
            restart=serving.command,
            accepts_within=_ACCEPTS_WITHIN,
        )
    if name == INPROCESS:
        return InProcess(serving.address)
    from timedblock.faults.proxy import Relay

    return Relay(serving.address)
