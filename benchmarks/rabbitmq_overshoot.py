"""How far a call to RabbitMQ with a limit of 0.2 s goes past it: every operation under every fault.

python -m benchmarks.rabbitmq_overshoot [--json FILE] [--faults NAME ...]

Each operation runs twice under each fault: on connections that were open before the fault began,
and on a fresh client. Faults are made by the relay, on the wire; dns faults at the resolver; pause
and the memory alarm in the broker itself. On an idle machine. The control is a bare wait of 0.2 s:
what the machine itself adds.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import sys
import time
from collections.abc import Callable, Iterator

from rich.progress import Progress

from benchmarks import _harness as harness
from benchmarks.overshoot import DNS_FAULTS, Measured, broken_resolver, elapsed_of
from timedblock import Policy, Unavailable, faults, rabbitmq
from timedblock.faults.proxy import Link, Relay
from timedblock.testing.rabbitmq import Broker

LIMIT = 0.2
REACH_MS = 50.0
QUEUE, EXCHANGE = "overshoot", "overshoot"
BODY, LARGE = b"x" * 1000, b"x" * 300_000

FAULTS: dict[str, faults.Fault] = {
    "refuse": faults.Refuse(),
    "blackhole": faults.Blackhole(),
    "hang": faults.Hang(),
    "silent": faults.Silent(),
    "latency": faults.Latency(0.3),
    "drip": faults.Drip(1, 0.02),
    "bandwidth": faults.Bandwidth(40),
    "reset": faults.Reset(),
    "cut": faults.Cut(3),
    "corrupt": faults.Corrupt(),
    "error-rate": faults.ErrorRate(1.0),
    "flap": faults.Flap(0.05, 0.05),
}
OF_THE_BROKER = ("pause", "memory-alarm")
NAMES = [*FAULTS, *DNS_FAULTS, *OF_THE_BROKER]

Operation = Callable[[rabbitmq.Client], object]

OPERATIONS: dict[str, Operation] = {
    "publish": lambda client: client.publish("", QUEUE, BODY),
    "publish large": lambda client: client.publish("", QUEUE, LARGE),
    "publish_async": lambda client: client.publish_async("", QUEUE, BODY).result(),
    "publish_many": lambda client: client.publish_many([("", QUEUE, BODY)] * 20),
    "get": lambda client: client.get(QUEUE),
    "declare_queue": lambda client: client.declare_queue(QUEUE),
    "declare_exchange": lambda client: client.declare_exchange(EXCHANGE),
    "bind": lambda client: client.bind(QUEUE, EXCHANGE, "key"),
    "unbind": lambda client: client.unbind(QUEUE, EXCHANGE, "key"),
    "purge": lambda client: client.purge(QUEUE),
    "delete_queue": lambda client: client.delete_queue("nothing"),
    "delete_exchange": lambda client: client.delete_exchange("nothing"),
}


def client(address: tuple[str, int], name: str) -> rabbitmq.Client:
    """A client whose calls end at 0.2 s and always go to the wire (no breaker)."""
    return rabbitmq.Client(address, timeout=LIMIT, policy=Policy(breaker=None), name=name)


def warm(opened: rabbitmq.Client) -> None:
    """Let both of its connections be made."""
    for _ in range(20):
        with contextlib.suppress(Unavailable):
            opened.publish("", QUEUE, BODY)
            opened.purge(QUEUE)
            return
    raise RuntimeError("no connection to the relay, though no fault is in force")


@contextlib.contextmanager
def faulty(broker: Broker, link: Link, fault: str) -> Iterator[None]:
    """The fault, on the wire, at the resolver or in the broker, for the time of the block."""
    if fault in DNS_FAULTS:
        with broken_resolver(hangs=fault == "dns-hang"):
            yield
    elif fault in OF_THE_BROKER:
        with broker.paused() if fault == "pause" else broker.short_of_memory():
            yield
    else:
        link.inject(FAULTS[fault])
        try:
            yield
        finally:
            link.clear()


def both_states(broker: Broker, link: Link, fault: str, name: str) -> Iterator[Measured]:
    """One operation on connections opened before the fault, then on a fresh client."""
    operation, address = OPERATIONS[name], link.address
    if fault in DNS_FAULTS:
        address = ("localhost", address[1])
    else:
        with client(address, "opened") as opened:
            warm(opened)
            with faulty(broker, link, fault):
                elapsed = elapsed_of(operation, opened)
            yield Measured(fault, name, "open connection", elapsed - LIMIT)
    with client(address, "fresh") as fresh, faulty(broker, link, fault):
        yield Measured(fault, name, "fresh client", elapsed_of(operation, fresh) - LIMIT)


def sweep(broker: Broker, relay: Relay, names: list[str]) -> list[Measured]:
    """Every operation under every fault, each on an endpoint of its own."""
    found: list[Measured] = []
    cells = [(fault, name) for fault in names for name in OPERATIONS]
    with Progress(console=harness.console, transient=True) as progress:
        task = progress.add_task("idle", total=len(cells))
        for fault, name in cells:
            link = relay.listen()
            found += both_states(broker, link, fault, name)
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


def judged(found: list[Measured], bare: float) -> list[harness.Figure]:
    """The worst of all, and the worst of each fault beside."""
    worst = max(found, key=lambda measured: measured.overshoot)
    note = f"{worst}; of {len(found)} calls; control {bare * 1e3:.3g} ms"
    title = "rabbitmq: worst overshoot of 0.2 s, idle"
    figures = [harness.absolute(title, worst.overshoot * 1e3, "ms", REACH_MS, note=note)]
    for fault in dict.fromkeys(measured.fault for measured in found):
        of_fault = [measured for measured in found if measured.fault == fault]
        slowest = max(of_fault, key=lambda measured: measured.overshoot)
        ended = slowest.overshoot < -LIMIT / 2
        note = "ends at once" if ended else f"{slowest.operation}, {slowest.state}"
        figures.append(harness.shown(f"- {fault}", slowest.overshoot * 1e3, "ms", note=note))
    return figures


def options() -> argparse.ArgumentParser:
    """Which faults."""
    parser = harness.parser(__doc__)
    parser.add_argument("--faults", nargs="+", choices=NAMES, default=NAMES)
    return parser


def measure(arguments: argparse.Namespace) -> list[harness.Figure]:
    """One sweep on an idle machine."""
    harness.quiet_pika()
    with Broker() as broker, Relay(upstream=broker.address) as relay:
        with client(broker.address, "first") as first:
            first.declare_queue(QUEUE)
            first.declare_exchange(EXCHANGE)
        return judged(sweep(broker, relay, arguments.faults), control())


if __name__ == "__main__":
    sys.exit(harness.main("rabbitmq overshoot", __doc__, measure, options()))
