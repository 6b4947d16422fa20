"""What producers and consumers of RabbitMQ lived through during a fault, and the checks of it.

Each client has a producer thread and a consumer on each of its queues. Raw pika stands beside them,
in a process of its own (see `raw_rabbitmq`): fresh connections, tried all the time on each queue,
tell since when traffic can flow again; and calls on connections that were made before the fault
show that it bites.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.servers.raw_rabbitmq import Address, Raw
from timedblock import Unavailable, rabbitmq

CONFIRMED, UNROUTABLE, NACKED, UNAVAILABLE, DISHONEST = (
    "confirmed",
    "unroutable",
    "nacked",
    "unavailable",
    "dishonest",
)
#: Seconds between two publishes of a producer.
PACE = 0.1


@dataclass(frozen=True)
class Published:
    """One call of publish; times are monotonic."""

    client: str
    queue: str
    body: str
    began: float
    ended: float
    outcome: str
    sent: bool
    error: str


@dataclass(frozen=True)
class Delivered:
    """One message that a handler got."""

    client: str
    queue: str
    body: str
    at: float


@dataclass(frozen=True)
class Fresh:
    """A fresh raw connection that got a confirm."""

    queue: str
    began: float
    ended: float


@dataclass(frozen=True)
class Ended:
    """A raw call on an older connection that ended, and how."""

    began: float
    ended: float
    error: str | None


@dataclass
class History:
    """Everything, in the order in which it ended. Lists are appended to by many threads."""

    published: list[Published] = field(default_factory=list)
    delivered: list[Delivered] = field(default_factory=list)
    fresh: list[Fresh] = field(default_factory=list)
    ended: dict[str, Ended] = field(default_factory=dict)
    ready: threading.Event = field(default_factory=threading.Event)

    def hear(self, line: dict[str, Any]) -> None:
        """A line of `raw_rabbitmq`."""
        if "fresh" in line:
            self.fresh.append(Fresh(line["fresh"], line["began"], line["ended"]))
        elif "hanging" in line:
            self.ended[line["hanging"]] = Ended(line["began"], line["ended"], line["error"])
        else:
            self.ready.set()

    def lost(self, queue: str) -> set[str]:
        """Confirmed messages of a queue that were never delivered."""
        confirmed = {
            one.body
            for one in list(self.published)
            if one.queue == queue and one.outcome == CONFIRMED
        }
        return confirmed - {one.body for one in list(self.delivered) if one.queue == queue}

    def about(self, bodies: set[str]) -> str:
        """How these messages were published, and which one of their queue came last."""
        published = [one for one in list(self.published) if one.body in bodies]
        queues = {one.queue for one in published}
        delivered = [one for one in list(self.delivered) if one.queue in queues]
        return f"{published}, the last delivery: {delivered[-1:]}"

    def late(self, limit: float) -> list[Published]:
        """Calls that took longer than `limit` seconds."""
        return [one for one in list(self.published) if one.ended - one.began > limit]

    def dishonest(self) -> list[Published]:
        """Calls that ended neither by an answer nor by an `Unavailable`."""
        return [one for one in list(self.published) if one.outcome == DISHONEST]

    def outcomes(self, queue: str, since: float, until: float) -> Counter[str]:
        """How the publishes ended that began then."""
        return Counter(
            one.outcome
            for one in list(self.published)
            if one.queue == queue and since <= one.began < until
        )

    def possible(self, queue: str, since: float) -> float | None:
        """When a fresh raw connection, begun after `since`, had its confirm."""
        times = [one.ended for one in list(self.fresh) if one.queue == queue and one.began >= since]
        return min(times, default=None)

    def confirmed(self, queue: str, since: float) -> float | None:
        """When a publish that began after `since` was confirmed."""
        times = [
            one.ended
            for one in list(self.published)
            if one.queue == queue and one.outcome == CONFIRMED and one.began >= since
        ]
        return min(times, default=None)

    def arrived(self, queue: str, since: float) -> float | None:
        """When a message that was published after `since` was delivered."""
        bodies = {
            one.body for one in list(self.published) if one.queue == queue and one.began >= since
        }
        times = [
            one.at for one in list(self.delivered) if one.queue == queue and one.body in bodies
        ]
        return min(times, default=None)


def publish(client: rabbitmq.Client, queue: str, body: str) -> tuple[str, bool, str]:
    """The outcome of a publish, whether bytes left, and the error."""
    try:
        client.publish("", queue, body)
    except rabbitmq.Unroutable as error:
        return UNROUTABLE, error.sent, str(error)
    except rabbitmq.Nacked as error:
        return NACKED, error.sent, str(error)
    except Unavailable as error:
        return UNAVAILABLE, error.sent, f"{type(error).__name__}: {error}"
    except Exception as error:
        return DISHONEST, True, repr(error)
    return CONFIRMED, True, ""


class _Producer:
    """Publishes to one queue all the time, from a thread of its own."""

    def __init__(self, history: History, client: rabbitmq.Client, queue: str) -> None:
        self._history = history
        self._client = client
        self._queue = queue
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"producer-{queue}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join(10)
        assert not self._thread.is_alive(), f"the producer of {self._queue} hangs"

    def _run(self) -> None:
        name, queue, number = self._client.name, self._queue, 0
        while not self._over.wait(PACE):
            number += 1
            body = f"{queue} {number}"
            began = time.monotonic()
            told = publish(self._client, queue, body)
            one = Published(name, queue, body, began, time.monotonic(), *told)
            self._history.published.append(one)


class Workload:
    """Clients with their queues, and raw pika, while inside; `end_producers` before a drain."""

    def __init__(
        self,
        clients: Mapping[str, Sequence[Address]],
        queues: Mapping[str, Sequence[str]],
        fresh: Mapping[str, Sequence[Address]],
        hanging: Mapping[str, tuple[Address, str]],
    ) -> None:
        """`clients`: their hosts by name; `queues`: those of each client."""
        self.history = History()
        self._clients = clients
        self._queues = queues
        self.raw = Raw(fresh, hanging, self.history.hear)
        self._producers: list[_Producer] = []
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> Workload:
        with contextlib.ExitStack() as undo:
            undo.enter_context(self.raw)
            for name, hosts in self._clients.items():
                client = undo.enter_context(rabbitmq.Client(list(hosts), name=name))
                for queue in self._queues[name]:
                    self._consume(client, queue)
                    self._producers.append(_Producer(self.history, client, queue))
            undo.callback(self.end_producers)
            assert self.history.ready.wait(20), "raw pika did not start"
            self._entered = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.close()

    def end_producers(self) -> None:
        """No more is published."""
        producers, self._producers = self._producers, []
        for producer in producers:
            producer.end()

    def _consume(self, client: rabbitmq.Client, queue: str) -> None:
        name, delivered = client.name, self.history.delivered

        def handler(message: rabbitmq.Message) -> None:
            delivered.append(Delivered(name, queue, message.body.decode(), time.monotonic()))

        client.consume(queue, handler)


@contextlib.contextmanager
def timeline(history: History, queues: Sequence[str], zero: float) -> Iterator[None]:
    """Where a check fails, what began in each second is printed, and how it ended."""
    try:
        yield
    except AssertionError:
        for queue in queues:
            ends = [
                (one.began, one.error.split(":")[0] if one.outcome == UNAVAILABLE else one.outcome)
                for one in history.published
                if one.queue == queue
            ]
            ends += [(one.began, "raw confirmed") for one in history.fresh if one.queue == queue]
            rows: dict[int, Counter[str]] = {}
            for began, how in ends:
                rows.setdefault(math.floor(began - zero), Counter())[how] += 1
            print(queue, {second: dict(rows[second]) for second in sorted(rows)})
        raise
