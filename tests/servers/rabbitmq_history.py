"""What producers and consumers of RabbitMQ lived through during a fault, and the checks of it.

Each client has a producer thread and a consumer on each of its queues. Raw pika stands beside them:
fresh connections, tried all the time at every host, say since when traffic can flow again; and one
connection that was made before the fault shows that it bites.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pika
import pika.exceptions

from timedblock import Unavailable, rabbitmq

Address = tuple[str, int]

CONFIRMED, UNROUTABLE, NACKED, UNAVAILABLE, DISHONEST = (
    "confirmed",
    "unroutable",
    "nacked",
    "unavailable",
    "dishonest",
)
#: Seconds between two publishes of a producer, and between two tries of a fresh connection.
PACE = 0.1
RAW_PACE = 0.2
#: Of a fresh raw connection: it is given up after so many seconds.
RAW_LIMIT = 1.0


@dataclass(frozen=True)
class Published:
    """One call of publish."""

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
class Confirmed:
    """A fresh raw connection that got a confirm."""

    host: Address
    queue: str
    began: float
    ended: float


@dataclass
class History:
    """Everything in the order in which it ended. Lists are appended to by many threads."""

    published: list[Published] = field(default_factory=list)
    delivered: list[Delivered] = field(default_factory=list)
    fresh: list[Confirmed] = field(default_factory=list)
    moments: dict[str, float] = field(default_factory=dict)

    def moment(self, name: str) -> float:
        """Note that something begins now."""
        self.moments[name] = time.monotonic()
        return self.moments[name]

    # -- the checks ---------------------------------------------------------------------------

    def lost(self, queue: str) -> set[str]:
        """Confirmed messages of a queue that were never delivered."""
        confirmed = {
            one.body for one in self.published if one.queue == queue and one.outcome == CONFIRMED
        }
        return confirmed - {one.body for one in self.delivered if one.queue == queue}

    def late(self, limit: float) -> list[Published]:
        """Calls that took longer than `limit` seconds."""
        return [one for one in self.published if one.ended - one.began > limit]

    def dishonest(self) -> list[Published]:
        """Calls that ended by an error that isn't for want of an answer, and is no answer."""
        return [one for one in self.published if one.outcome == DISHONEST]

    def possible(self, hosts: Sequence[Address], queue: str, since: float) -> float | None:
        """When a fresh raw connection, begun after `since` at one of `hosts`, had its confirm."""
        times = [
            one.ended
            for one in self.fresh
            if one.host in hosts and one.queue == queue and one.began >= since
        ]
        return min(times, default=None)

    def confirmed(self, client: str, queue: str, since: float) -> float | None:
        """When a publish that began after `since` was confirmed."""
        times = [
            one.ended
            for one in self.published
            if (one.client, one.queue, one.outcome) == (client, queue, CONFIRMED)
            and one.began >= since
        ]
        return min(times, default=None)

    def arrived(self, client: str, queue: str, since: float) -> float | None:
        """When a message that was published after `since` was delivered."""
        began = {one.body: one.began for one in self.published if one.queue == queue}
        times = [
            one.at
            for one in self.delivered
            if (one.client, one.queue) == (client, queue) and began.get(one.body, 0.0) >= since
        ]
        return min(times, default=None)

    def share(self, client: str, queue: str, since: float, until: float) -> float:
        """The share of publishes that began in that time and were confirmed."""
        outcomes = [
            one.outcome
            for one in self.published
            if (one.client, one.queue) == (client, queue) and since <= one.began < until
        ]
        return outcomes.count(CONFIRMED) / len(outcomes) if outcomes else 0.0


class Producer:
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
        number = 0
        while not self._over.wait(PACE):
            number += 1
            body = f"{self._queue} {number}"
            began = time.monotonic()
            outcome, sent, error = publish(self._client, self._queue, body)
            self._history.published.append(
                Published(
                    self._client.name, self._queue, body, began, time.monotonic(), outcome, sent,
                    error,
                )
            )  # fmt: skip


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


class Fresh:
    """Tries raw connections at one host, one after the other, each with one confirmed publish.

    Nobody can end a call of pika's, so each try has a daemon thread and is forgotten when it takes
    too long: the next one begins all the same.
    """

    def __init__(self, history: History, host: Address, queue: str) -> None:
        self._history = history
        self._host = host
        self._queue = queue
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"fresh-{host}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            one = threading.Thread(target=self._try, daemon=True)
            one.start()
            one.join(RAW_LIMIT)
            self._over.wait(max(0.0, began + RAW_PACE - time.monotonic()))

    def _try(self) -> None:
        began = time.monotonic()
        with contextlib.suppress(Exception):
            connection = raw(self._host, socket_timeout=RAW_LIMIT, stack_timeout=RAW_LIMIT)
            try:
                channel = connection.channel()
                channel.confirm_delivery()
                channel.basic_publish("", self._queue, b"fresh", mandatory=True)
                self._history.fresh.append(Confirmed(self._host, self._queue, began, time.monotonic()))
            finally:
                connection.close()


def raw(host: Address, **parameters: float) -> pika.BlockingConnection:
    """A raw connection."""
    return pika.BlockingConnection(pika.ConnectionParameters(*host, **parameters))


class Hanging:
    """A raw operation on a connection that was made before the fault, in a daemon thread."""

    def __init__(self, host: Address, call: Callable[[pika.channel.Channel], object]) -> None:
        self._channel = raw(host).channel()
        self._call = call
        self._thread = threading.Thread(target=self._run, name="raw", daemon=True)
        self.began = self.ended = 0.0
        self.error: BaseException | None = None

    def begin(self) -> None:
        self.began = time.monotonic()
        self._thread.start()

    @property
    def hangs(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._call(self._channel)
        except BaseException as error:
            self.error = error
        self.ended = time.monotonic()


@contextlib.contextmanager
def running(workers: Sequence[Producer | Fresh]) -> Iterator[None]:
    """They are ended, whatever happens."""
    try:
        yield
    finally:
        for worker in workers:
            worker.end()


def consume(history: History, client: rabbitmq.Client, queue: str) -> None:
    """Note every delivery of a queue to a client."""
    name = client.name

    def handler(message: rabbitmq.Message) -> None:
        history.delivered.append(Delivered(name, queue, message.body.decode(), time.monotonic()))

    client.consume(queue, handler)
