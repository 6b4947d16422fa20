"""How far a call with a limit of 0.1 s goes past it: every operation under every fault.

python -m benchmarks.overshoot [--json FILE] [--faults NAME ...]

Each operation runs twice under each fault: on a connection that was open before the fault began,
and on a fresh client. Faults are made by the relay, on the wire; dns faults at the resolver. All of
it once on the idle machine and once with two CPU-bound threads in this process, which hold the GIL.
The control is a bare wait of 0.1 s: what the machine itself adds.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from rich.progress import Progress

from benchmarks import _harness as harness
from benchmarks import _servers as servers
from timedblock import Policy, Unavailable, faults, memcache
from timedblock.faults.proxy import Link, Relay

LIMIT = 0.1
KEYS = [f"key:{number}" for number in range(20)]
LARGE = b"x" * 300_000

FAULTS: dict[str, faults.Fault] = {
    "refuse": faults.Refuse(),
    "blackhole": faults.Blackhole(),
    "hang": faults.Hang(),
    "silent": faults.Silent(),
    "latency": faults.Latency(0.3),
    "drip": faults.Drip(1, 0.02),
    "reset": faults.Reset(),
    "cut": faults.Cut(3),
    "corrupt": faults.Corrupt(),
    "error-rate": faults.ErrorRate(1.0),
}
DNS_FAULTS = ("dns-fail", "dns-hang")
NAMES = [*FAULTS, *DNS_FAULTS]

Operation = Callable[[memcache.Client], object]

OPERATIONS: dict[str, Operation] = {
    "get": lambda client: client.get("key:0"),
    "gets": lambda client: client.gets("key:0"),
    "get_many": lambda client: client.get_many(KEYS),
    "gets_many": lambda client: client.gets_many(KEYS),
    "set": lambda client: client.set("key:0", b"value"),
    "set large": lambda client: client.set("large", LARGE),
    "set noreply": lambda client: client.set("key:0", b"value", noreply=True),
    "set_many": lambda client: client.set_many(dict.fromkeys(KEYS, b"value")),
    "add": lambda client: client.add("key:0", b"value"),
    "replace": lambda client: client.replace("key:0", b"value"),
    "append": lambda client: client.append("key:0", b"value"),
    "prepend": lambda client: client.prepend("key:0", b"value"),
    "cas": lambda client: client.cas("key:0", b"value", b"1"),
    "delete": lambda client: client.delete("key:1"),
    "delete_many": lambda client: client.delete_many(KEYS),
    "incr": lambda client: client.incr("counter", 1),
    "decr": lambda client: client.decr("counter", 1),
    "touch": lambda client: client.touch("key:0", 60),
    "stats": lambda client: client.stats(),
    "version": lambda client: client.version(),
    "raw_command": lambda client: client.raw_command(b"version"),
    "flush_all": lambda client: client.flush_all(),
}


@dataclass(frozen=True)
class Measured:
    """One call."""

    fault: str
    operation: str
    state: str
    overshoot: float

    def __str__(self) -> str:
        return f"{self.operation} under {self.fault}, {self.state}"


def client(address: tuple[str, int], name: str) -> memcache.Client:
    """A client whose calls end at 0.1 s and always go to the wire (no breaker).

    Its name makes the endpoint its own: the pause after a failed connect is not another's.
    """
    return memcache.Client(address, timeout=LIMIT, policy=Policy(breaker=None), name=name)


def warm(opened: memcache.Client) -> None:
    """Let it connect; beside CPU-bound threads the first try may not make it in 0.1 s."""
    for _ in range(20):
        with contextlib.suppress(Unavailable):
            opened.set("counter", b"1")
            return
    raise RuntimeError("no connection to the relay, though no fault is in force")


def elapsed_of(operation: Callable[[Any], object], used: object) -> float:
    """Seconds of one call, whatever its outcome."""
    started = time.perf_counter()
    with contextlib.suppress(Exception):
        operation(used)
    return time.perf_counter() - started


@contextlib.contextmanager
def broken_resolver(*, hangs: bool) -> Iterator[None]:
    """Names of this process don't resolve, for any client: at once, or after all this is over."""
    real, over = socket.getaddrinfo, threading.Event()

    def broken(*_: object, **__: object) -> NoReturn:
        if hangs:
            over.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "the resolver is broken on purpose")

    socket.getaddrinfo = broken
    try:
        yield
    finally:
        socket.getaddrinfo = real
        over.set()


@contextlib.contextmanager
def faulty(link: Link, fault: str) -> Iterator[None]:
    """The fault, on the wire or at the resolver, for the time of the block."""
    if fault in DNS_FAULTS:
        with broken_resolver(hangs=fault == "dns-hang"):
            yield
        return
    link.inject(FAULTS[fault])
    try:
        yield
    finally:
        link.clear()


def both_states(link: Link, fault: str, name: str) -> Iterator[Measured]:
    """One operation on a connection opened before the fault, then on a fresh client."""
    operation = OPERATIONS[name]
    address = link.address
    if fault in DNS_FAULTS:
        address = ("localhost", address[1])
    else:
        opened = client(address, "opened")
        warm(opened)
        with faulty(link, fault):
            yield Measured(fault, name, "open connection", elapsed_of(operation, opened) - LIMIT)
    fresh = client(address, "fresh")
    with faulty(link, fault):
        yield Measured(fault, name, "fresh client", elapsed_of(operation, fresh) - LIMIT)


def sweep(relay: Relay, names: Iterable[str], label: str) -> list[Measured]:
    """Every operation under every fault, each on an endpoint of its own."""
    found: list[Measured] = []
    cells = [(fault, name) for fault in names for name in OPERATIONS]
    with Progress(console=harness.console, transient=True) as progress:
        task = progress.add_task(label, total=len(cells))
        for fault, name in cells:
            link = relay.listen()
            found += both_states(link, fault, name)
            link.close()
            progress.advance(task)
    return found


def control(times: int = 20) -> float:
    """The worst oversleep of a bare wait of the same length, in seconds."""
    worst = 0.0
    for _ in range(times):
        started = time.perf_counter()
        select.select([], [], [], LIMIT)
        worst = max(worst, time.perf_counter() - started - LIMIT)
    return worst


@contextlib.contextmanager
def burning(threads: int = 2) -> Iterator[None]:
    """CPU-bound Python threads in this process."""
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(1000))

    running = [threading.Thread(target=burn, daemon=True) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in running:
            thread.join()


def judged(label: str, found: list[Measured], at_most: float, bare: float) -> list[harness.Figure]:
    """The worst of all, and the worst of each fault beside."""
    worst = max(found, key=lambda measured: measured.overshoot)
    note = f"{worst}; of {len(found)} calls; control {bare * 1e3:.3g} ms"
    title = f"worst overshoot of 0.1 s, {label}"
    figures = [harness.absolute(title, worst.overshoot * 1e3, "ms", at_most, note=note)]
    for fault in dict.fromkeys(measured.fault for measured in found):
        of_fault = [measured for measured in found if measured.fault == fault]
        slowest = max(of_fault, key=lambda measured: measured.overshoot)
        note = f"{slowest.operation}, {slowest.state}"
        if slowest.overshoot < -LIMIT / 2:
            note = "ends at once"
        figures.append(
            harness.shown(f"- {fault}, {label}", slowest.overshoot * 1e3, "ms", note=note)
        )
    return figures


def options() -> argparse.ArgumentParser:
    """Which faults."""
    parser = harness.parser(__doc__)
    parser.add_argument("--faults", nargs="+", choices=NAMES, default=NAMES)
    return parser


def measure(arguments: argparse.Namespace) -> list[harness.Figure]:
    """The idle machine first, then with the two threads."""
    with servers.memcached() as server, Relay(server.address) as relay:
        idle = judged("idle", sweep(relay, arguments.faults, "idle"), 15.0, control())
        with burning():
            found = sweep(relay, arguments.faults, "two CPU-bound threads")
            busy = judged("two CPU-bound threads", found, 150.0, control())
    return idle + busy


if __name__ == "__main__":
    sys.exit(harness.main("overshoot", __doc__, measure, options()))
