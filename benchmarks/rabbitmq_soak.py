"""Many messages through a misbehaving wire and a broker that is killed and paused: none is lost.

python -m benchmarks.rabbitmq_soak [--json FILE] [--messages N] [--seconds S] [--seed N]

Each link of the relay gets another fault, or none, several times a second (seeded); every few
seconds the broker is paused, or killed by SIGKILL and started again. Nine threads publish, through
`publish`, `publish_async` and `publish_many` of three clients with a link each; a fourth client
consumes all the time, from one queue with automatic acknowledgement, from the other by hand.

*Lost* is a message whose publish was confirmed and that no consumer ever had; *unsent* one whose
error said that nothing was sent, and that came all the same; *late* a call or a future past its
limit + 0.25 s. The third client's wire also has ``corrupt``, and its losses aren't judged. AMQP
has no checksums: where the number of a confirm is hit, it is another message's confirm, and no
client of RabbitMQ can see it.
"""

from __future__ import annotations

import argparse
import contextlib
import queue as queues
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.progress import Progress

from benchmarks import _harness as harness
from benchmarks._weather import Weather
from timedblock import Policy, Unavailable, faults, rabbitmq
from timedblock.faults.proxy import Link, Relay
from timedblock.testing import leaks
from timedblock.testing.rabbitmq import Broker

if TYPE_CHECKING:
    from timedblock.rabbitmq import Message

LIMIT = 0.5
TOLERANCE = 0.25
CHANGE = 0.3
CALM = 0.5
#: A caller whom the breaker refuses does something else for so long.
REFUSED_PAUSE = 0.005
REFUSED = ("CircuitOpen", "Overloaded")
#: Unconfirmed messages of one thread, and messages of one batch.
WINDOW, BATCH = 100, 50
#: Between two things that happen to the broker, and how long it is paused, in seconds.
PEACE, PAUSED = 8.0, 1.2
DRAIN = 60.0
AUTO, MANUAL, HIT = "soak.auto", "soak.manual", "soak.hit"

FAULTS: tuple[faults.Fault, ...] = (
    faults.Refuse(),
    faults.Blackhole(),
    faults.Hang(),
    faults.Hang("up"),
    faults.Hang("down"),
    faults.Silent(),
    faults.Latency(0.03, 0.02),
    faults.Drip(3, 0.01),
    faults.Reset(),
    faults.Reset(after=200),
    faults.Cut(10),
    faults.Cut(2000),
    faults.ErrorRate(0.2),
    faults.Bandwidth(2000),
)
CORRUPT = faults.Corrupt(0.3)


@dataclass(frozen=True)
class Size:
    """How long and how wild: messages in all and a second, seconds at most, seconds between two
    things that happen to the broker."""

    messages: int
    pace: float
    seconds: float
    seed: int
    peace: float = PEACE


@dataclass
class Tally:
    """What one thread's messages became. Its own thread tells, and callbacks do, which `lock` is
    for."""

    outcomes: Counter[str] = field(default_factory=Counter)
    confirmed: set[bytes] = field(default_factory=set)
    unsent: set[bytes] = field(default_factory=set)
    late: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    worst: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def made(self) -> int:
        """Messages that left: each was confirmed, or may have come."""
        return self.outcomes.total() - len(self.unsent)

    def took(self, what: str, seconds: float) -> None:
        """Note a call's time."""
        self.worst = max(self.worst, seconds)
        if seconds > LIMIT + TOLERANCE:
            self.late.append(f"{what}: {seconds:.3f} s")

    def became(self, body: bytes, error: BaseException | None) -> None:
        """Note what became of a message."""
        with self.lock:
            self.outcomes["confirmed" if error is None else type(error).__name__] += 1
        if error is None:
            self.confirmed.add(body)
        elif isinstance(error, Unavailable):
            if not error.sent:
                self.unsent.add(body)
        else:
            self.other.append(repr(error))


class Publisher:
    """One thread's messages, each with a body of its own, by one of the ways to publish."""

    def __init__(self, client: rabbitmq.Client, number: int, seed: int, queue: str | None) -> None:
        self.client = client
        self.number = number
        self.queue = queue
        self.random = random.Random(f"{seed}:{number}")
        self.tally = Tally()
        self._count = 0
        self._room = threading.Semaphore(WINDOW)

    def message(self) -> tuple[str, bytes]:
        """The next one: the queue, and 20 to 2,000 bytes."""
        self._count += 1
        name = f"{self.number}:{self._count}:".encode()
        queue = self.queue or (AUTO, MANUAL)[self._count % 2]
        return queue, name.ljust(self.random.randrange(20, 2000), b".")

    def publish(self) -> None:
        queue, body = self.message()
        began, error = time.perf_counter(), None
        try:
            self.client.publish("", queue, body)
        except Exception as caught:
            error = caught
        self.tally.took("publish", time.perf_counter() - began)
        self._ended(body, error)

    def publish_async(self) -> None:
        queue, body = self.message()
        if not self._room.acquire(timeout=LIMIT + 10):
            self.tally.late.append("publish_async: a future is never done")
            return
        began = time.perf_counter()

        def done(future: Future[None]) -> None:
            self._room.release()
            self.tally.took("publish_async", time.perf_counter() - began)
            self.tally.became(body, future.exception())

        try:
            self.client.publish_async("", queue, body).add_done_callback(done)
        except Exception as error:
            self._room.release()
            self.tally.took("publish_async", time.perf_counter() - began)
            self._ended(body, error)

    def publish_many(self) -> None:
        messages = [self.message() for _ in range(BATCH)]
        began = time.perf_counter()
        reports = self.client.publish_many([("", queue, body) for queue, body in messages])
        self.tally.took("publish_many", time.perf_counter() - began)
        for (_, body), report in zip(messages, reports, strict=True):
            self.tally.became(body, report.error)
        self._pause(reports[-1].error)

    def _ended(self, body: bytes, error: Exception | None) -> None:
        self.tally.became(body, error)
        self._pause(error)

    @staticmethod
    def _pause(error: Exception | None) -> None:
        if type(error).__name__ in REFUSED:
            time.sleep(REFUSED_PAUSE)

    def run(self, done: Callable[[], bool], pace: float) -> None:
        """Publish `pace` messages a second until ``done``, and until the last future is."""
        way = (self.publish, self.publish_async, self.publish_many)[self.number % 3]
        began = time.monotonic()
        while not done():
            way()
            time.sleep(max(0.0, began + self._count / pace - time.monotonic()))
        for _ in range(WINDOW):
            if not self._room.acquire(timeout=LIMIT + 10):
                self.tally.late.append("publish_async: a future is never done")
                return


class Consumers:
    """Everything that was delivered. What comes by hand is acknowledged by another thread, a tenth
    of it given back first."""

    def __init__(self, client: rabbitmq.Client, seed: int) -> None:
        self.seen: set[bytes] = set()
        self.deliveries = 0
        self._random = random.Random(f"{seed}:consumers")
        self._by_hand: queues.SimpleQueue[Message | None] = queues.SimpleQueue()
        client.consume(AUTO, self._saw, prefetch=200)
        client.consume(HIT, lambda message: None, prefetch=200)
        client.consume(MANUAL, self._by_hand.put, prefetch=200, ack="manual")
        self._thread = threading.Thread(target=self._acknowledge, daemon=True)
        self._thread.start()

    def _saw(self, message: Message) -> None:
        self.deliveries += 1
        self.seen.add(message.body)

    def _acknowledge(self) -> None:
        while (message := self._by_hand.get()) is not None:
            if self._random.random() < 0.1:
                message.nack()
            else:
                self._saw(message)
                message.ack()

    def end(self) -> None:
        """After the client was closed."""
        self._by_hand.put(None)
        self._thread.join(10)


class Misfortune(threading.Thread):
    """Pauses the broker, or kills it and starts it again, in turn."""

    def __init__(self, broker: Broker, peace: float) -> None:
        super().__init__(daemon=True)
        self.broker = broker
        self.peace = peace
        self.seen: Counter[str] = Counter()
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(self.peace):
            if self.seen.total() % 2:
                self.seen["kill"] += 1
                self.broker.kill()
                self.broker.start()
            else:
                self.seen["pause"] += 1
                with self.broker.paused():
                    time.sleep(PAUSED)


@contextlib.contextmanager
def misery(links: list[Link], broker: Broker, size: Size) -> Iterator[list[Weather | Misfortune]]:
    """Changing faults on every link, the third one's with `CORRUPT`, and on the broker."""
    running: list[Weather | Misfortune] = [
        Weather(
            link,
            f"{size.seed}:weather:{number}",
            (*FAULTS, CORRUPT) if number == 2 else FAULTS,
            change=CHANGE,
            calm=CALM,
        )
        for number, link in enumerate(links)
    ]
    running.append(Misfortune(broker, size.peace))
    for one in running:
        one.start()
    try:
        yield running
    finally:
        for one in running:
            one.stop.set()
        for one in running:
            one.join()


def drive(loads: list[Publisher], size: Size) -> float:
    """Run every load until it has made its messages or the time is over; seconds spent."""
    started = time.monotonic()
    full = threading.Event()
    arguments = full.is_set, size.pace / len(loads)
    running = [threading.Thread(target=load.run, args=arguments, daemon=True) for load in loads]
    for thread in running:
        thread.start()

    def made() -> int:
        return sum(load.tally.made for load in loads)

    with Progress(console=harness.console, transient=True) as progress:
        task = progress.add_task("messages", total=size.messages)
        while made() < size.messages and time.monotonic() - started < size.seconds:
            progress.update(task, completed=made())
            time.sleep(0.1)
    full.set()
    for thread in running:
        thread.join(LIMIT + 30)
    hung = [thread for thread in running if thread.is_alive()]
    if hung:
        loads[0].tally.late.append(f"{len(hung)} threads never came back")
    return time.monotonic() - started


def drained(broker: Broker) -> bool:
    """Whether the consumers took everything that was ready, within `DRAIN` seconds."""
    until = time.monotonic() + DRAIN
    with contextlib.closing(broker.connect()) as connection:
        channel = connection.channel()
        while time.monotonic() < until:
            ready = sum(
                channel.queue_declare(queue, passive=True).method.message_count
                for queue in (AUTO, MANUAL)
            )
            if not ready:
                return True
            time.sleep(0.1)
    return False


def left_over(broker: Broker) -> set[bytes]:
    """What the consumers gave back at the very end."""
    found = set[bytes]()
    with contextlib.closing(broker.connect()) as connection:
        channel = connection.channel()
        for queue in (AUTO, MANUAL):
            while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
                found.add(got[2])
    return found


@dataclass
class Outcome:
    """A finished run."""

    loads: list[Publisher]
    consumers: Consumers
    seconds: float
    drained: bool
    seen: Counter[str]
    leaked: str = ""

    @property
    def judged(self) -> list[Tally]:
        """The tallies whose losses count."""
        return [load.tally for load in self.loads if load.queue is None]

    @property
    def lost(self) -> set[bytes]:
        confirmed = set[bytes]().union(*(tally.confirmed for tally in self.judged))
        return confirmed - self.consumers.seen

    @property
    def unsent_but_there(self) -> set[bytes]:
        unsent = set[bytes]().union(*(tally.unsent for tally in self.judged))
        return unsent & self.consumers.seen


def one_run(size: Size) -> Outcome:
    """The whole story, on a broker of its own."""
    with Broker() as broker, Relay(upstream=broker.address) as relay:
        with contextlib.closing(broker.connect()) as connection:
            for queue in (AUTO, MANUAL, HIT):
                connection.channel().queue_declare(queue, durable=True)
        links = [relay.listen() for _ in range(4)]
        made: list[Outcome] = []
        try:
            with leaks.no_leaks(5.0):
                made.append(_with_clients(broker, links, size))
        except AssertionError as error:
            if not made:
                raise
            made[0].leaked = str(error)
    return made[0]


def _with_clients(broker: Broker, links: list[Link], size: Size) -> Outcome:
    patient = Policy(breaker=None)
    policies = [None, patient, patient, None]
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(rabbitmq.Client(link.address, timeout=LIMIT, policy=policy))
            for link, policy in zip(links, policies, strict=True)
        ]
        consumers = Consumers(clients[3], size.seed)
        loads = [
            Publisher(clients[number // 3], number, size.seed, HIT if number // 3 == 2 else None)
            for number in range(9)
        ]
        with misery(links, broker, size) as trouble:
            spent = drive(loads, size)
        empty = drained(broker)
    consumers.end()
    consumers.seen |= left_over(broker)
    seen = sum((one.seen for one in trouble), Counter[str]())
    return Outcome(loads, consumers, spent, empty, seen)


def report(found: Outcome, messages: int) -> list[harness.Figure]:
    """The figures of a finished run."""
    tallies = [load.tally for load in found.loads]
    outcomes: Counter[str] = sum((tally.outcomes for tally in tallies), Counter())
    late = [text for tally in tallies for text in tally.late]
    others = [text for tally in tallies for text in tally.other]
    worst = max(tally.worst for tally in tallies)
    told = ", ".join(f"{name} {number}" for name, number in outcomes.most_common())
    confirmed = sum(len(tally.confirmed) for tally in found.judged)
    unsent = sum(len(tally.unsent) for tally in found.judged)
    which = ", ".join(sorted(body.rstrip(b".").decode() for body in found.lost)[:3])
    figures = [
        ("messages that left", sum(tally.made for tally in tallies), messages, ">=",
         f"{found.seconds:.0f} s; {told}"),
        ("confirmed messages lost", len(found.lost), 0, "==",
         f"of {confirmed}; {found.consumers.deliveries} deliveries; {which}"),
        ("messages delivered that were told unsent", len(found.unsent_but_there), 0, "==",
         f"of {unsent}"),
        ("calls past the limit + 0.25 s", len(late), 0, "==",
         f"worst {worst:.3f} s of {LIMIT} s; {'; '.join(late[:3])}"),
        ("errors that are not Unavailable", len(others), 0, "==", "; ".join(others[:3])),
        ("consumers that stopped", int(not found.drained), 0, "==", ""),
        ("threads or descriptors leaked", int(bool(found.leaked)), 0, "==", found.leaked),
    ]  # fmt: skip
    return [
        harness.count(f"rabbitmq soak: {name}", value, reach, bound=bound, note=note)  # type: ignore[arg-type]
        for name, value, reach, bound, note in figures
    ]


def options() -> argparse.ArgumentParser:
    """How long and how wild."""
    parser = harness.parser(__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--pace", type=float, default=1_500.0, help="messages a second")
    parser.add_argument("--seconds", type=float, default=400.0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=20)
    return parser


def measure(arguments: argparse.Namespace) -> list[harness.Figure]:
    """One run."""
    harness.quiet_pika()
    given = vars(arguments)
    found = one_run(Size(*(given[name] for name in ("messages", "pace", "seconds", "seed"))))
    harness.console.print("faults:", ", ".join(f"{n} {c}" for n, c in found.seen.most_common()))
    return report(found, arguments.messages)


if __name__ == "__main__":
    sys.exit(harness.main("rabbitmq soak", __doc__, measure, options()))
