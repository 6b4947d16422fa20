"""One load on one client in a process of its own, so that a client that hangs disturbs nobody.

``python -m timedblock.drill.worker``: line 1 of stdin is the JSON of a ``Task``; "ready" is
answered once the client has served a first call; line 2 has the ``time.monotonic()`` at which the
load starts and the one at which its fault is lifted (that clock is the machine's, the same in
every process). The answer is one JSON line:
``{"calls": [...], "samples": [...], "starved": [...], "deliveries": [...]}``, the records as lists.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from timedblock.drill import store as stores
from timedblock.drill.history import OK, Call, Delivery, Sample
from timedblock.drill.load import THREADS, ClosedLoad, Load, OpenLoad, Schedule, Session
from timedblock.drill.sampler import Sampler
from timedblock.drill.starvation import Heartbeat, Starved
from timedblock.drill.store import OURS, Address

#: The name that the DNS faults are about.
HOST_NAME = "localhost"
#: Seconds that starting a wave's workers may take on a busy machine.
READY_WITHIN = 20.0
#: Seconds in which a client has to serve its first call, and between two of them.
_FIRST_WITHIN, _PAUSE = 2.0, 0.1
#: Faults of names, made in the load's own process, for the raw clients too.
DNS_FAULTS = frozenset({"dns-fail", "dns-hang"})


class Spell(NamedTuple):
    """A fault that the worker makes itself: as ``Fault.to_dict``, from when to when."""

    fault: dict[str, Any]
    since: float
    until: float


@dataclass(frozen=True)
class Task:
    """What a worker needs to know. ``spells`` are the faults of names; with ``inprocess`` all of
    them, made at timedblock's own sockets."""

    fault: str
    variant: str
    store: str
    servers: tuple[Address, ...]
    prefix: str
    schedule: Schedule
    kind: str = "open"
    threads: int = THREADS
    think: float = 0.0
    writes: float = 0.0
    spells: tuple[Spell, ...] = ()
    inprocess: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Task:
        data = json.loads(text)
        servers = tuple((host, port) for host, port in data.pop("servers"))
        spells = tuple(Spell(*spell) for spell in data.pop("spells"))
        schedule = Schedule(**data.pop("schedule"))
        return Task(servers=servers, schedule=schedule, spells=spells, **data)

    @property
    def by_name(self) -> bool:
        """Whether the client has to resolve its server's name."""
        return any(spell.fault["fault"] in DNS_FAULTS for spell in self.spells)


class Records(NamedTuple):
    """What came of a load."""

    calls: list[Call]
    samples: list[Sample]
    starved: list[Starved]
    deliveries: list[Delivery]

    def to_json(self) -> str:
        return json.dumps(self._asdict())

    @staticmethod
    def from_json(text: str | bytes) -> Records:
        data = json.loads(text)
        calls = [Call(*record) for record in data["calls"]]
        samples = [Sample(*record) for record in data["samples"]]
        starved = [Starved(*record) for record in data["starved"]]
        return Records(calls, samples, starved, [Delivery(*one) for one in data["deliveries"]])


class FaultyResolver:
    """``socket.getaddrinfo`` of this process, at fault in spells of ``monotonic``.

    Every client of this process goes through it. Outside the faults, ``HOST_NAME`` is
    ``address``.
    """

    def __init__(self, address: str) -> None:
        self._real = socket.getaddrinfo
        self._address = address
        self._spells: list[Spell] = []

    def install(self) -> None:
        socket.getaddrinfo = self

    def schedule(self, spells: Sequence[Spell], start: float) -> None:
        self._spells = [Spell(one.fault, start + one.since, start + one.until) for one in spells]

    def __call__(self, host: Any, *args: Any, **kwargs: Any) -> Any:
        if host != HOST_NAME:
            return self._real(host, *args, **kwargs)
        now = time.monotonic()
        for spell in self._spells:
            if spell.since <= now < spell.until:
                if spell.fault["fault"] == "dns-fail":
                    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
                time.sleep(spell.until - now)
        return self._real(self._address, *args, **kwargs)


@contextmanager
def _own_faults(task: Task, start: float) -> Iterator[None]:
    """The faults at timedblock's own sockets, in their time, by a thread of its own."""
    if not (task.inprocess and task.variant in OURS):
        yield
        return
    over = threading.Event()

    def work() -> None:
        from timedblock import faults

        for spell in task.spells:
            if over.wait(max(0.0, start + spell.since - time.monotonic())):
                return
            if spell.fault["fault"] in DNS_FAULTS:
                # Names are resolved for new connections only: end the open ones once.
                with faults.inject(task.store, faults.Refuse()):
                    pass
            with faults.inject(task.store, faults.Fault.from_dict(spell.fault)):
                over.wait(max(0.0, start + spell.until - time.monotonic()))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _load(task: Task, session: Session) -> Load:
    start = time.monotonic()  # until the drill says another
    known = task.fault, task.variant, session, task.schedule, start, task.threads
    if task.kind == "closed":
        return ClosedLoad(*known, think=task.think)
    return OpenLoad(*known)


def _session(task: Task) -> Session:
    """A session whose client has served a first call."""
    servers = [(HOST_NAME, port) if task.by_name else (host, port) for host, port in task.servers]
    variant = stores.find(task.store).variants[task.variant]
    session = variant.session(servers, task.prefix, task.writes)
    # The first connect may take longer than a short limit, on a busy machine; the next call has it.
    until = time.monotonic() + _FIRST_WITHIN
    while (first := session.answer(0)).outcome != OK and time.monotonic() < until:
        time.sleep(_PAUSE)
    if first.outcome != OK:
        raise RuntimeError(f"{task.variant}: no answer before any fault: {first}")
    return session


def _run(task: Task) -> Records:
    resolver = FaultyResolver(task.servers[0][0]) if task.by_name and not task.inprocess else None
    if resolver:
        resolver.install()
    session = _session(task)
    load = _load(task, session)
    load.enter(READY_WITHIN)
    print("ready", flush=True)
    start, lifted = map(float, sys.stdin.readline().split())
    load.starts_at(start, lifted)
    if resolver:
        resolver.schedule(task.spells, start)
    sampler = _sampler(task, start)
    with _own_faults(task, start), Heartbeat() as heartbeat:
        calls = load.run()
        given = session.finish()
    starved = [Starved(s - start, u - start, taken) for s, u, taken in heartbeat.found]
    # What was given before is of the first call, which the load makes once more.
    deliveries = [
        Delivery(task.fault, task.variant, at - start, token) for at, token in given if at >= start
    ]
    return Records(calls, sampler.stop() if sampler else [], starved, deliveries)


def _sampler(task: Task, start: float) -> Sampler | None:
    if task.variant not in OURS:
        return None
    return Sampler(task.fault, task.variant, stores.find(task.store).operation, start)


def main() -> None:
    records = _run(Task.from_json(sys.stdin.readline()))
    print(records.to_json(), flush=True)
    # Threads that still hang in a client have nothing to say in whether this process ends.
    os._exit(0)


if __name__ == "__main__":
    main()
