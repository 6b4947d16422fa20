"""A service of 16 threads on two memcached nodes, one of which is down: what the other's keys keep.

python -m benchmarks.hash [--json FILE] [--seconds S]

Each thread makes a request every 80 ms (200/s in all), scheduled in advance: a `get` of one key
or a `get_many` of ten, over both nodes. Goodput: requests for keys of the healthy node whose
values came right within 0.25 s of their schedule, of all that were scheduled; a thread that waits
for the dead node is late for its next requests. The same client serves the healthy window and the
one with the fault. The fault is made by a relay in front of the one node, in a process of its
own. pymemcache's `HashClient` with timeouts of 1 s stands beside it. Default policy.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pymemcache.client.hash import HashClient as RawHashClient

from benchmarks import _harness as harness
from benchmarks import _servers as servers
from timedblock import faults, memcache
from timedblock.faults.proxy import Relay

Address = tuple[str, int]

THREADS = 16
PERIOD = 0.08
IN_TIME = 0.25
KEYS = [f"key:{number}" for number in range(200)]
MANY = 10
HEALTHY_SECONDS = 4.0
REACH = 0.95
FAULTS = (faults.Blackhole(), faults.Hang(), faults.Refuse())
_numbers = itertools.count()


def value_of(key: str) -> bytes:
    """The only right value of a key."""
    return f"value of {key} ".encode() * 10


@dataclass
class Window:
    """What the requests of one thread came to."""

    scheduled: int = 0
    good: int = 0
    wrong: int = 0
    worst: float = 0.0
    errors: set[str] = field(default_factory=set)


def ask(client: Any, keys: list[str]) -> dict[str, Any]:
    """What the service has of these keys, whatever it costs; a part where there is only a part."""
    try:
        if len(keys) == 1:
            return {keys[0]: client.get(keys[0])}
        found: dict[str, Any] = client.get_many(keys)
    except memcache.PartialResult as partial:
        return dict(partial.result)
    except Exception:
        return {}
    return found


def serve(
    client: Any, living: set[str], many: bool, seconds: float, thread: int, window: Window
) -> None:
    """One thread's requests."""
    draw = random.Random(thread)
    start = time.monotonic() + 0.05 + PERIOD * thread / THREADS
    for number in range(int(seconds / PERIOD)):
        keys = draw.sample(KEYS, MANY if many else 1)
        wanted = [key for key in keys if key in living]
        due = start + number * PERIOD
        time.sleep(max(0.0, due - time.monotonic()))
        found = ask(client, keys)
        took = time.monotonic() - due
        window.worst = max(window.worst, took)
        window.wrong += sum(v is not None and v != value_of(key) for key, v in found.items())
        if wanted:
            window.scheduled += 1
            complete = all(found.get(key) == value_of(key) for key in wanted)
            window.good += complete and took <= IN_TIME


def load(client: Any, living: set[str], many: bool, seconds: float) -> Window:
    """All threads for so long."""
    windows = [Window() for _ in range(THREADS)]
    threads = [
        threading.Thread(target=serve, args=(client, living, many, seconds, number, window))
        for number, window in enumerate(windows)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Window(
        sum(one.scheduled for one in windows),
        sum(one.good for one in windows),
        sum(one.wrong for one in windows),
        max(one.worst for one in windows),
    )


def ours(nodes: list[Address]) -> memcache.HashClient:
    """Ours with its defaults; breakers and learnt limits of its own."""
    return memcache.HashClient(nodes, name=f"bench{next(_numbers)}")


def raw(nodes: list[Address]) -> RawHashClient:
    """pymemcache's, as one would set it up for a service."""
    return RawHashClient(nodes, use_pooling=True, timeout=1, connect_timeout=1)


def one_fault(
    make: Callable[[list[Address]], Any], many: bool, fault: faults.Fault, seconds: float
) -> tuple[float, Window]:
    """(goodput with one node down ÷ goodput before, the window with the fault)."""
    with servers.memcached() as healthy, servers.memcached() as other, Relay() as relay:
        link = relay.listen(upstream=other.address)
        client = make([healthy.address, link.address])
        client.set_many({key: value_of(key) for key in KEYS}, noreply=False)
        ring, name = client.hasher, "{}:{}".format(*healthy.address)
        living = {key for key in KEYS if ring.get_node(key) == name}
        before = load(client, living, many, HEALTHY_SECONDS)
        link.inject(fault)
        during = load(client, living, many, seconds)
        link.clear()
        with contextlib.suppress(ValueError):  # of pymemcache's, for a node that it took out
            client.close()
    during.wrong += before.wrong
    share = (during.good / during.scheduled) / (before.good / before.scheduled)
    return share, during


def measure(arguments: argparse.Namespace) -> list[harness.Figure]:
    """Every fault under both operations; the raw client under one."""
    figures = []
    wrong = 0
    for many, fault in itertools.product((False, True), FAULTS):
        share, window = one_fault(ours, many, fault, arguments.seconds)
        wrong += window.wrong
        operation = f"get_many of {MANY}" if many else "get"
        note = f"{window.good} of {window.scheduled} in time; worst {window.worst:.3f} s"
        name = f"goodput of the other node's keys, {fault.name}, {operation}"
        figures.append(harness.ratio(name, [share], at_least=REACH, note=note))
    figures.append(harness.count("wrong answers", wrong, 0))
    for many in (False, True):
        share, window = one_fault(raw, many, faults.Blackhole(), arguments.seconds)
        operation = f"get_many of {MANY}" if many else "get"
        note = f"{window.good} of {window.scheduled} in time; worst {window.worst:.3f} s"
        name = f"the same of pymemcache's, timeouts 1 s, blackhole, {operation}"
        figures.append(harness.shown(name, share, "x", note=note))
    return figures


def main() -> int:
    options = harness.parser(__doc__)
    options.add_argument("--seconds", type=float, default=8.0, help="of each fault (8)")
    return harness.main("hash", __doc__, measure, options)


if __name__ == "__main__":
    sys.exit(main())
