"""RabbitMQ under the contract: `timedblock.rabbitmq.Client` on a real broker.

There is no embedded one. A scene is made of queues and exchanges, which the broker keeps in memory
alone and the suite deletes with the scene: hundreds of cells come by.
"""

from __future__ import annotations

import contextlib
import itertools
import queue as queues
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker, UnroutableError

import timedblock
from tests.contract.faults import ANY, Expected, Trouble
from tests.contract.store import Address, Operation
from tests.servers.limits import LIMIT, TOLERANCE
from tests.servers.raw_call import RawCall, RawOutcome
from timedblock import ConnectFailed, ConnectionLost, DeadlineExceeded, faults, rabbitmq
from timedblock.testing.rabbitmq import Broker, why_not

BODY = b"taken " + b"." * 200
# Too big for the buffers of two sockets: a peer that doesn't read blocks the sender.
LARGE = 900_000
_attempts = itertools.count()


@dataclass(frozen=True)
class Scene:
    """What a cell has on the broker.

    Queues: `full`, which has one message; `into`, for what is published; `bound`, which the
    exchange `from` sends to by the key `old`; `later`, for the calls after the fault. Exchanges:
    `from` and `spare`. Nothing is called `new`.
    """

    name: str
    #: what a consumer's handler had
    inbox: queues.SimpleQueue[bytes] = field(default_factory=queues.SimpleQueue)

    def part(self, part: str) -> str:
        return f"{self.name}.{part}"

    def message(self, number: int) -> bytes:
        return f"{self.name} message {number} ".encode().ljust(200, b".")

    def large(self) -> bytes:
        return self.message(1).ljust(LARGE, b"x")


class Hand:
    """The suite's own hand on the broker, round the relay."""

    def __init__(self, address: Address) -> None:
        self._connection = pika.BlockingConnection(
            pika.ConnectionParameters(*address, socket_timeout=10, stack_timeout=10)
        )
        self._open()
        self._made: list[Scene] = []

    def _open(self) -> None:
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()

    def make(self, scene: Scene, *, keep: bool = False) -> None:
        """Make what the scene has; it is deleted with this hand, or by who takes it over."""
        channel = self._channel
        if not keep:
            self.take_over(scene)
        for part in ("full", "into", "bound", "later"):
            channel.queue_declare(scene.part(part))
        for part in ("from", "spare"):
            channel.exchange_declare(scene.part(part), "direct")
        channel.queue_bind(scene.part("bound"), scene.part("from"), "old")
        channel.basic_publish("", scene.part("full"), BODY)

    def take_over(self, scene: Scene) -> None:
        """Delete the scene when this hand is closed."""
        self._made.append(scene)

    def messages(self, queue: str) -> int | None:
        """How many the queue has ready; None: there is no such queue."""
        found: Any = self._asked(lambda: self._channel.queue_declare(queue, passive=True))
        return None if found is None else int(found.method.message_count)

    def has_exchange(self, exchange: str) -> bool:
        return (
            self._asked(lambda: self._channel.exchange_declare(exchange, passive=True)) is not None
        )

    def _asked(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except ChannelClosedByBroker:
            self._open()
            return None

    def routes(self, scene: Scene, key: str) -> bool:
        """Whether the exchange sends what has the key to the bound queue."""
        try:
            self._channel.basic_publish(scene.part("from"), key, b"", mandatory=True)
        except UnroutableError:
            return False
        self._channel.queue_purge(scene.part("bound"))
        return True

    def bodies(self, queue: str) -> list[bytes]:
        """The messages of a queue, which keeps them."""
        found, tag = [], 0
        while (got := self._channel.basic_get(queue))[0] is not None:
            found.append(got[2])
            tag = got[0].delivery_tag
        if tag:
            self._channel.basic_nack(tag, multiple=True, requeue=True)
        return found

    def close(self) -> None:
        with contextlib.closing(self._connection):
            for scene in self._made:
                for part in ("full", "into", "bound", "later", "new"):
                    self._channel.queue_delete(scene.part(part))
                for part in ("from", "spare", "new"):
                    self._channel.exchange_delete(scene.part(part))


def _consume(client: rabbitmq.Client, scene: Scene) -> rabbitmq.Consumer:
    return client.consume(scene.part("full"), lambda message: scene.inbox.put(message.body))


def _publish_many(client: rabbitmq.Client, scene: Scene) -> list[bool]:
    """The reports; or the error of a message, of one that was sent if there is any."""
    into = scene.part("into")
    reports = client.publish_many([("", into, scene.message(number)) for number in (1, 2, 3)])
    errors = [report.error for report in reports if report.error is not None]
    for error in sorted(errors, key=lambda error: not getattr(error, "sent", True)):
        raise error
    return [report.ok for report in reports]


def _equals(expected: object) -> Callable[[Any, Scene], bool]:
    return lambda answer, scene: type(answer) is type(expected) and answer == expected


def _has(part: str, value: object) -> Callable[[Scene], dict[str, Any]]:
    return lambda scene: {part: value}


def _not_lost(hand: Hand, scene: Scene, answered: bool) -> str | None:
    """A get that has no answer took nothing."""
    found = hand.messages(scene.part("full"))
    return None if answered or found == 1 else f"the queue has {found} messages"


def _was_consumed(hand: Hand, scene: Scene, answered: bool) -> str | None:
    """A consumer goes on after the fault, and what its handler returned from is acknowledged."""
    if scene.inbox.empty():
        return "the consumer had no message"
    found = hand.messages(scene.part("full"))
    return None if found == 0 else f"the queue has {found} messages"


OPERATIONS = [
    Operation("publish", lambda c, s: c.publish("", s.part("into"), s.message(1)), _equals(None),
              writes=_has("message 1", 1)),
    Operation("publish of 900 kB", lambda c, s: c.publish("", s.part("into"), s.large()),
              _equals(None), writes=_has("large message", 1)),
    Operation("publish_async", lambda c, s: c.publish_async("", s.part("into"), s.message(1))
              .result(10), _equals(None), writes=_has("message 1", 1)),
    Operation("publish_many", _publish_many, _equals([True] * 3),
              writes=lambda s: {f"message {number}": 1 for number in (1, 2, 3)}),
    # AMQP has no checksums: a message that was hit can't be told from another.
    Operation("get", lambda c, s: c.get(s.part("full")), lambda a, s: a.body == BODY,
              writes=_has("full", 0), opaque=True, acknowledges=True, in_the_end=_not_lost),
    Operation("get of nothing", lambda c, s: c.get(s.part("into")), _equals(None)),
    Operation("consume", _consume, lambda a, s: isinstance(a, rabbitmq.Consumer),
              writes=_has("full", 0), replies=False, in_the_end=_was_consumed),
    Operation("declare_queue", lambda c, s: c.declare_queue(s.part("new"), durable=False),
              lambda a, s: a == s.part("new"), writes=_has("new", 0)),
    Operation("declare_exchange", lambda c, s: c.declare_exchange(s.part("new"), durable=False),
              _equals(None), writes=_has("exchange new", True)),
    Operation("bind", lambda c, s: c.bind(s.part("bound"), s.part("from"), "new"), _equals(None),
              writes=_has("key new", True)),
    Operation("unbind", lambda c, s: c.unbind(s.part("bound"), s.part("from"), "old"),
              _equals(None), writes=_has("key old", False)),
    # A count that was hit is another count.
    Operation("purge", lambda c, s: c.purge(s.part("full")), _equals(1), writes=_has("full", 0),
              opaque=True),
    Operation("delete_queue", lambda c, s: c.delete_queue(s.part("full")), _equals(1),
              writes=_has("full", None), opaque=True),
    Operation("delete_exchange", lambda c, s: c.delete_exchange(s.part("spare")), _equals(None),
              writes=_has("exchange spare", False)),
]  # fmt: skip


# A connection of AMQP begins with a conversation of seven questions; no request leaves before.
_NO_HANDSHAKE = Expected((DeadlineExceeded, ConnectFailed), sent=False)
# Seven answers, each late by up to 30 ms: of the limit little is left on a busy machine.
_SLOW_HANDSHAKE = Expected((DeadlineExceeded,), answers=True)
_COLD = {"latency": _SLOW_HANDSHAKE} | {
    name: _NO_HANDSHAKE for name in ("hang", "silent", "drip", "reset", "cut", "bandwidth")
}
_WARM = {
    # Both are true: nothing came in time, and a connection of which nothing is heard is given up.
    name: Expected((DeadlineExceeded, ConnectionLost), sent=True)
    for name in ("hang", "blackhole", "silent", "drip")
} | {
    # No frame is as short as that.
    "cut": Expected((ConnectionLost,), sent=True),
    # Bits of a frame that mean nothing may flip, and those of a confirm's number: there is no
    # checksum. What can be told is.
    "corrupt": Expected((ConnectionLost, DeadlineExceeded), sent=True, answers=True),
}


def _load_code(address: Address) -> None:
    """Erlang loads its code when it is first run, which takes longer than a call may."""
    client = rabbitmq.Client(address, name="first", timeout=10.0)
    with contextlib.closing(client), contextlib.closing(Hand(address)) as hand:
        for operation in OPERATIONS:
            scene = Scene(f"first {operation.name}")
            hand.make(scene)
            operation.call(client, scene)
            Rabbitmq().data(hand, scene)


class Rabbitmq:
    """The store of the contract; see `tests.contract.store.Store`."""

    name = "rabbitmq"
    operations = OPERATIONS
    # the broker has one scheduler, and a connection costs it ten milliseconds
    together = 8
    patience = 4 * LIMIT

    #: How plain pika fares: it hangs, or it is late by these seconds, or it fails. Under corrupt
    #: any of it.
    HANGS: ClassVar = ("blackhole", "hang", "silent", "drip", "bandwidth")
    LATE: ClassVar = {"latency": 0.02}

    @staticmethod
    @contextlib.contextmanager
    def real() -> Iterator[Address]:
        reason = why_not()
        if reason is not None:
            pytest.skip(reason)
        with Broker() as broker:
            _load_code(broker.address)
            yield broker.address

    def client(self, address: Address, limit: float) -> rabbitmq.Client:
        return rabbitmq.Client(address, timeout=limit)

    def raw(self, address: Address) -> Hand:
        return Hand(address)

    def scene(self, raw: Hand, name: str) -> Scene:
        scene = Scene(name)
        raw.make(scene)
        return scene

    def data(self, raw: Hand, scene: Scene) -> Mapping[str, Any]:
        bodies = raw.bodies(scene.part("into"))
        messages = {number: scene.message(number) for number in (1, 2, 3)}
        strange = [body for body in bodies if body not in (*messages.values(), scene.large())]
        return {
            "full": raw.messages(scene.part("full")),
            "new": raw.messages(scene.part("new")),
            "exchange new": raw.has_exchange(scene.part("new")),
            "exchange spare": raw.has_exchange(scene.part("spare")),
            "key old": raw.routes(scene, "old"),
            "key new": raw.routes(scene, "new"),
            **{f"message {number}": bodies.count(body) for number, body in messages.items()},
            "large message": bodies.count(scene.large()),
            "strange messages": len(strange),
        }

    def warm_up(self, client: rabbitmq.Client, scene: Scene) -> None:
        """Both of its connections: one publishes, the other asks."""
        client.publish("", scene.part("later"), b"warm")
        client.purge(scene.part("later"))

    def follow_up(self, client: rabbitmq.Client, scene: Scene) -> str | None:
        queue = scene.part("later")
        tries = f"{scene.name} later ".encode()
        body = tries + str(next(_attempts)).encode()
        client.purge(queue)
        client.publish("", queue, body)
        while (found := client.get(queue)) is not None and found.body != body:
            # what an earlier try was cut in publishing or in getting comes late
            if not found.body.startswith(tries):
                return f"get of what was just published gave {found!r:.200}"
        if found is None:
            return "what was just published isn't there"
        left = client.get(queue)
        if left is None or (left.body.startswith(tries) and left.body != body):
            return None
        return f"an empty queue has {left!r:.200}"

    def busy(self, client: rabbitmq.Client, address: Address) -> int:
        endpoint = timedblock.stats()["endpoints"][client.endpoint.name]
        return int(endpoint["in_flight"]) + len(client._unconfirmed)

    def expected(self, trouble: Trouble, warm: bool) -> Expected:
        if trouble.name == "corrupt" and not warm:
            return Expected(ANY, answers=True)  # it may hit what a handshake can do without
        usual = trouble.warm if warm else trouble.cold
        return (_WARM if warm else _COLD).get(trouble.name, usual)

    def raw_feels(
        self, address: Address, fault: faults.Fault, start: Callable[[], None]
    ) -> str | None:
        with RawCall(address, warm=True, calls=20, driver="pika") as raw:
            start()
            raw.begin()
            bound = 10.0 if fault.name in self.LATE else LIMIT + TOLERANCE + 0.5
            return self._suffers(fault, raw.outcome(bound))

    def _suffers(self, fault: faults.Fault, outcome: RawOutcome | None) -> str | None:
        if fault.name in self.LATE:
            late = outcome is not None and outcome.elapsed >= self.LATE[fault.name]
            return None if late else f"it isn't late: {outcome}"
        if fault.name in self.HANGS:
            return None if outcome is None else f"it doesn't hang: {outcome}"
        if outcome is None:
            return None if fault.name == "corrupt" else "it hangs"
        failed = outcome.error is not None or outcome.value == "wrong"
        return None if failed else f"it gets right answers: {outcome}"
