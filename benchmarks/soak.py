"""Many calls from many threads while the wire misbehaves at random: no call late, no answer wrong.

python -m benchmarks.soak [--json FILE] [--calls N] [--threads N] [--seconds S] [--seed N]

Every ~50 ms each link of the relay gets another fault, or none (seeded). Three clients, a link
each: the default policy; one without breaker, so that every call meets the wire; one for counters,
without ``corrupt`` (the digits of an ``incr`` reply are payload: no client of memcached can see
them flip).

*Wrong* is a value of another key or request, a truncated one, a success for a write that wasn't
done. A value is a function of its key, and a key is written once, so every answer can be checked
while it comes; at the end every acknowledged write is looked up past the relay.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pymemcache.client.base import Client as RawClient
from rich.progress import Progress

from benchmarks import _harness as harness
from benchmarks import _servers as servers
from benchmarks._weather import Weather
from timedblock import Policy, Unavailable, faults, memcache
from timedblock.faults.proxy import Link, Relay

LIMIT = 0.2
TOLERANCE = 0.25
CHANGE = 0.05
CALM = 0.3
# A caller whom the breaker refuses does something else for so long; its calls aren't counted
# among the 100,000 either.
REFUSED_PAUSE = 0.002
REFUSED = "CircuitOpen"

FAULTS: tuple[faults.Fault, ...] = (
    faults.Refuse(),
    faults.Blackhole(),
    faults.Hang(),
    faults.Silent(),
    faults.Latency(0.03, 0.02),
    faults.Drip(3, 0.01),
    faults.Reset(),
    faults.Reset(after=20),
    faults.Cut(10),
    faults.Cut(200),
    faults.ErrorRate(0.5),
    faults.Corrupt(0.5),
)
#: Those that a client can tell from a right answer.
HONEST = tuple(one for one in FAULTS if one.name != "corrupt")


def value_of(key: str) -> bytes:
    """The only right value of a key: 50 to 1,550 bytes that no other key has."""
    digest = hashlib.blake2b(key.encode(), digest_size=25).hexdigest().encode()
    return digest * (1 + digest[0] % 31)


@dataclass
class Tally:
    """What one thread saw; merged at the end, so that no lock is shared."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    worst: float = 0.0
    stored: set[str] = field(default_factory=set)

    @property
    def calls(self) -> int:
        """Calls that an open breaker let through."""
        return sum(self.outcomes.values()) - self.outcomes[REFUSED]


class Caller:
    """One thread's load: writes keys of its own, reads what it wrote, checks every answer."""

    def __init__(self, client: memcache.Client, number: int, seed: int) -> None:
        self.client = client
        self.prefix = f"soak:{number}"
        self.counter = f"count:{number}"
        self.random = random.Random(f"{seed}:{number}")
        self.tally = Tally()
        self.written = 0
        self.least = self.most = 0

    def key(self, number: int) -> str:
        return f"{self.prefix}:{number}"

    def set(self) -> None:
        self.written += 1
        key = self.key(self.written)
        if self.client.set(key, value_of(key)) is True:
            self.tally.stored.add(key)
        else:
            self.tally.wrong.append("set of a new key returned something else than True")

    def get(self) -> None:
        key = self.key(self.random.randint(1, self.written + 1))
        acknowledged = key in self.tally.stored
        self._check(key, self.client.get(key), acknowledged)

    def get_many(self) -> None:
        keys = [self.key(self.random.randint(1, self.written + 1)) for _ in range(10)]
        found = self.client.get_many(keys)
        if set(found) - set(keys):
            self.tally.wrong.append("get_many returned a key that wasn't asked for")
        for key in keys:
            self._check(key, found.get(key), key in self.tally.stored)

    def incr(self) -> None:
        self.most += 1
        value = self.client.incr(self.counter, 1)
        if value is None or not self.least < value <= self.most:
            self.tally.wrong.append(f"incr: {value} is not in ({self.least}, {self.most}]")
        else:
            self.least = value

    def _check(self, key: str, value: object, acknowledged: bool) -> None:
        if value is None:
            if acknowledged:
                self.tally.wrong.append("a miss for a write that was acknowledged")
        elif value != value_of(key):
            self.tally.wrong.append("a value that isn't this key's")

    def run(self, operations: list[str], done: Callable[[], bool]) -> None:
        """Call until ``done``, counting every outcome and its time."""
        while not done():
            operation = getattr(self, self.random.choice(operations))
            started = time.perf_counter()
            try:
                operation()
                outcome = "ok"
            except Unavailable as error:
                outcome = type(error).__name__
            except Exception as error:
                outcome = f"other: {type(error).__name__}"
            elapsed = time.perf_counter() - started
            self.tally.outcomes[outcome] += 1
            self.tally.worst = max(self.tally.worst, elapsed)
            if outcome == REFUSED:
                time.sleep(REFUSED_PAUSE)
            if elapsed > LIMIT + TOLERANCE:
                self.tally.late.append(f"{operation.__name__}: {outcome} after {elapsed:.3f} s")


MIXED = ["get"] * 6 + ["set"] * 3 + ["get_many"]
COUNTING = ["incr"]


@contextmanager
def weather(links: list[Link], seed: int) -> Iterator[list[Weather]]:
    """A changing fault on every link; the last one is the counters'."""
    running = [
        Weather(
            link,
            f"{seed}:weather:{number}",
            FAULTS if number < len(links) - 1 else HONEST,
            change=CHANGE,
            calm=CALM,
        )
        for number, link in enumerate(links)
    ]
    for one in running:
        one.start()
    try:
        yield running
    finally:
        for one in running:
            one.stop.set()
        for one in running:
            one.join()


def callers(links: list[Link], threads: int, seed: int) -> list[Caller]:
    """The threads' loads, dealt to the three clients."""
    clients = [
        memcache.Client(links[0].address, timeout=LIMIT),
        memcache.Client(links[1].address, timeout=LIMIT, policy=Policy(breaker=None)),
        memcache.Client(links[2].address, timeout=LIMIT, policy=Policy(breaker=None)),
    ]
    return [Caller(clients[number % 3], number, seed) for number in range(threads)]


def drive(loads: list[Caller], calls: int, seconds: float) -> float:
    """Run every load until ``calls`` were made in all or ``seconds`` are over; seconds spent."""
    started = time.monotonic()

    def made() -> int:
        return sum(load.tally.calls for load in loads)

    full = threading.Event()
    running = [
        threading.Thread(
            target=load.run,
            args=(COUNTING if number % 3 == 2 else MIXED, full.is_set),
            daemon=True,
        )
        for number, load in enumerate(loads)
    ]
    for thread in running:
        thread.start()
    with Progress(console=harness.console, transient=True) as progress:
        task = progress.add_task("calls", total=calls)
        while made() < calls and time.monotonic() - started < seconds:
            progress.update(task, completed=made())
            time.sleep(0.1)
    full.set()
    for thread in running:
        thread.join(LIMIT + 10)
    hung = [thread for thread in running if thread.is_alive()]
    if hung:
        loads[0].tally.late.append(f"{len(hung)} threads never came back")
    return time.monotonic() - started


def lost_writes(server: servers.Server, loads: list[Caller]) -> int:
    """Acknowledged writes that the server doesn't have, looked up past the relay."""
    raw = RawClient(server.address)
    lost = 0
    for load in loads:
        stored = sorted(load.tally.stored)
        for start in range(0, len(stored), 100):
            keys = stored[start : start + 100]
            found = raw.get_many(keys)
            lost += sum(found.get(key) != value_of(key) for key in keys)
    evicted = raw.stats().get(b"evictions", 0)  # type: ignore[no-untyped-call]
    assert evicted == 0, f"the server evicted {evicted} items: it needs more memory"
    return lost


def report(loads: list[Caller], lost: int, spent: float, calls: int) -> list[harness.Figure]:
    """The figures of a finished run."""
    outcomes: Counter[str] = sum((load.tally.outcomes for load in loads), Counter())
    wrong = [text for load in loads for text in load.tally.wrong]
    late = [text for load in loads for text in load.tally.late]
    worst = max(load.tally.worst for load in loads)
    others = sum(number for name, number in outcomes.items() if name.startswith("other"))
    seen = ", ".join(f"{name} {number}" for name, number in outcomes.most_common())
    made = sum(load.tally.calls for load in loads)
    return [
        harness.count(
            "soak: calls past the breaker", made, calls, bound=">=", note=f"{spent:.0f} s; {seen}"
        ),
        harness.count(
            "soak: calls past the limit + 0.25 s",
            len(late),
            0,
            note=f"worst {worst:.3f} s of {LIMIT} s; {'; '.join(late[:3])}",
        ),
        harness.count("soak: wrong answers", len(wrong), 0, note="; ".join(sorted(set(wrong))[:3])),
        harness.count("soak: acknowledged writes lost", lost, 0),
        harness.count("soak: errors that are not Unavailable", others, 0),
    ]


def options() -> argparse.ArgumentParser:
    """How long and how wild."""
    parser = harness.parser(__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=240.0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=20)
    return parser


def measure(arguments: argparse.Namespace) -> list[harness.Figure]:
    """One run."""
    with servers.memcached(megabytes=256) as server, Relay(server.address) as relay:
        links = [relay.listen() for _ in range(3)]
        loads = callers(links, arguments.threads, arguments.seed)
        raw = RawClient(server.address)
        for load in loads:
            raw.set(load.counter, b"0", noreply=False)
        with weather(links, arguments.seed) as storms:
            spent = drive(loads, arguments.calls, arguments.seconds)
        lost = lost_writes(server, loads)
        kinds = sum((storm.seen for storm in storms), Counter())
    harness.console.print("faults:", ", ".join(f"{name} {n}" for name, n in kinds.most_common()))
    return report(loads, lost, spent, arguments.calls)


if __name__ == "__main__":
    sys.exit(harness.main("soak", __doc__, measure, options()))
