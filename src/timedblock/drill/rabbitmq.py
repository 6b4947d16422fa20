"""The RabbitMQ drill: the clients, the requests that they serve, the faults, the broker.

A request publishes a persistent message to a durable queue of the load's own, mandatory and with a
confirm, or takes one from there. The raw variants have a ``BlockingConnection`` for each thread,
because it must not be shared by threads, and open a new one after an error.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol

import pika
from pika.adapters.blocking_connection import BlockingChannel

from timedblock import faults
from timedblock.drill import queue_checker
from timedblock.drill.checker import Violation
from timedblock.drill.errors import DrillError
from timedblock.drill.history import DISHONEST, OK, UNAVAILABLE, WRONG, Call, Delivery
from timedblock.drill.load import Answer, Request, Session
from timedblock.drill.queue_checker import PUBLISH
from timedblock.drill.store import (
    FIXED,
    LEARNT,
    RAW_DEFAULT,
    RAW_TIMEOUT,
    Address,
    Serving,
    Store,
    Variant,
)

GET = "get"
#: Seconds that timedblock-fixed gives a call: what a request can spare for its message.
FIXED_LIMIT = 0.25
#: Seconds of a raw client that was given timeouts; pika's heartbeat is whole seconds, and a
#: connection that is silent for twice of it is given up.
_TIMEOUT, _HEARTBEAT = 1, 4
#: Seconds that the drill's own connections may take for each step.
_OWN_TIMEOUT = 5.0
#: Seconds after which a message that a client held when it ended has to be back in its queue.
_BACK_WITHIN = 20.0
_LOOK = 0.1
_PERSISTENT = 2


class Taken(Protocol):
    """Is told the body of a message before it is acknowledged; False: it must not be."""

    def __call__(self, body: bytes) -> bool: ...


class Publisher(Protocol):
    """What the load needs of a client. ``open`` is called in each thread before anything else."""

    def open(self) -> None: ...

    def publish(self, queue: str, body: bytes, token: str) -> None: ...

    def get(self, queue: str, taken: Taken) -> bytes | None: ...


class Client(NamedTuple):
    """A client, and the errors by which it may say that there is no answer."""

    publisher: Publisher
    honest: tuple[type[Exception], ...]


def _properties(token: str) -> pika.BasicProperties:
    return pika.BasicProperties(  # type: ignore[no-untyped-call]
        delivery_mode=_PERSISTENT, message_id=token
    )


class RawPublisher:
    """pika as an application with threads uses it."""

    def __init__(self, parameters: pika.ConnectionParameters) -> None:
        self._parameters = parameters
        self._local = threading.local()

    def open(self) -> None:
        with self._channel():
            pass

    def publish(self, queue: str, body: bytes, token: str) -> None:
        with self._channel() as channel:
            channel.basic_publish("", queue, body, _properties(token), mandatory=True)

    def get(self, queue: str, taken: Taken) -> bytes | None:
        with self._channel() as channel:
            method, _, body = channel.basic_get(queue)
            if method is None or body is None:
                return None
            if taken(body):
                with suppress(pika.exceptions.AMQPError):  # then it is delivered once more
                    channel.basic_ack(method.delivery_tag)
            return body

    @contextmanager
    def _channel(self) -> Iterator[BlockingChannel]:
        """This thread's, which is opened when there is none; after an error it is closed."""
        channel = getattr(self._local, "channel", None)
        if channel is None or not channel.is_open:
            channel = pika.BlockingConnection(self._parameters).channel()
            channel.confirm_delivery()
            self._local.channel = channel
        try:
            yield channel
        except (pika.exceptions.UnroutableError, pika.exceptions.NackError):
            raise  # an answer: the channel is fine
        except Exception:
            self._local.channel = None
            if channel.connection.is_open:
                channel.connection.close()
            raise


class _Ours:
    """timedblock's client: one for all threads."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def open(self) -> None:
        pass

    def publish(self, queue: str, body: bytes, token: str) -> None:
        self._client.publish("", queue, body, _properties(token))

    def get(self, queue: str, taken: Taken) -> bytes | None:
        message = self._client.get(queue)
        if message is None:
            return None
        taken(message.body)
        body: bytes = message.body
        return body


def _raw_default(server: Address) -> Client:
    return Client(RawPublisher(pika.ConnectionParameters(*server)), (Exception,))


def _raw_timeout(server: Address) -> Client:
    parameters = pika.ConnectionParameters(
        *server,
        socket_timeout=_TIMEOUT,
        stack_timeout=_TIMEOUT,
        blocked_connection_timeout=_TIMEOUT,
        heartbeat=_HEARTBEAT,
    )
    return Client(RawPublisher(parameters), (Exception,))


# The imports are here, so that the raw clients' processes are without them.


def _timedblock_fixed(server: Address) -> Client:
    from timedblock import Fixed, Policy

    return _ours(server, policy=Policy(timeout=Fixed(FIXED_LIMIT)))


def _timedblock(server: Address) -> Client:
    return _ours(server)


def _ours(server: Address, **options: Any) -> Client:
    from timedblock import Unavailable, rabbitmq

    honest = (Unavailable, rabbitmq.Unroutable, rabbitmq.Nacked)
    return Client(_Ours(rabbitmq.Client(server, **options)), honest)


class Messages:
    """The messages of one load. A body carries its queue, its token and a checksum, so that one of
    another queue, a truncated or a corrupted one is recognised."""

    _BODY = re.compile(rb"(?P<queue>\S+) (?P<token>\w+) [0-9a-f]{64}")

    def __init__(self, queue: str) -> None:
        self.queue = queue

    def body(self, token: str) -> bytes:
        text = f"{self.queue} {token}"
        return f"{text} {hashlib.sha256(text.encode()).hexdigest()}".encode()

    def token(self, body: bytes) -> str | None:
        """Whose body it is; None if nobody can have published it."""
        match = self._BODY.fullmatch(body)
        token = match["token"].decode() if match else ""
        return token if match and body == self.body(token) else None


class QueueSession:
    """Requests of an application: most hand a message over, some take one; on any error the
    request goes on without."""

    def __init__(self, client: Client, messages: Messages, writes: float) -> None:
        self._publisher, self._honest = client
        self._messages = messages
        self._writes = writes
        self._lock = threading.Lock()
        self._given: list[tuple[float, str]] = []
        self._over = False

    def enter(self) -> None:
        self._publisher.open()

    def request(self, number: int) -> Request:
        due = math.floor((number + 1) * self._writes + 1e-9)
        if due > math.floor(number * self._writes + 1e-9):
            return Request(PUBLISH, "queue", f"m{number}")
        return Request(GET, "queue")

    def answer(self, number: int) -> Answer:
        token = self.request(number).value
        try:
            return self._get() if token is None else self._publish(token)
        except self._honest as error:
            # The raw clients don't say whether bytes left: what became of a message is unknown.
            sent = getattr(error, "sent", True)
            return Answer(UNAVAILABLE, error=type(error).__name__, sent=sent)
        except Exception as error:
            return Answer(DISHONEST, error=type(error).__name__, sent=True)

    def finish(self) -> list[tuple[float, str]]:
        with self._lock:
            self._over = True
            return list(self._given)

    def _publish(self, token: str) -> Answer:
        self._publisher.publish(self._messages.queue, self._messages.body(token), token)
        return Answer(OK)

    def _get(self) -> Answer:
        body = self._publisher.get(self._messages.queue, self._taken)
        if body is None:
            return Answer(OK)
        token = self._messages.token(body)
        return Answer(WRONG) if token is None else Answer(OK, token)

    def _taken(self, body: bytes) -> bool:
        """Under the lock of `finish`: what is acknowledged is known to have been given."""
        token = self._messages.token(body)
        with self._lock:
            if token is not None and not self._over:
                self._given.append((time.monotonic(), token))
            return not self._over


def _variant(name: str, limit: float, connect: Callable[[Address], Client]) -> Variant:
    def session(server: Address, prefix: str, writes: float) -> Session:
        return QueueSession(connect(server), Messages(prefix), writes)

    return Variant(name, limit, session)


class QueueData:
    """The drill's own connections to the broker, past the faults."""

    def __init__(self, server: Address) -> None:
        self._server = server

    def check(self) -> None:
        with self._channel():
            pass

    def prepare(self, prefix: str) -> None:
        with self._channel() as channel:
            channel.queue_declare(prefix, durable=True)

    def violations(
        self,
        prefix: str,
        calls: Sequence[Call],
        deliveries: Sequence[Delivery],
        *,
        restarted: bool,
    ) -> list[Violation]:
        """A restart excuses nothing: messages are persistent, and the queue is durable. A message
        that is missing may be held by a connection of which the broker doesn't know yet that it is
        gone."""
        messages = Messages(prefix)
        whole: set[str] = set()
        spoilt: set[str] = set()
        until = time.monotonic() + _BACK_WITHIN
        with self._channel() as channel:
            while True:
                for properties, body in _drained(channel, prefix):
                    token = messages.token(body)
                    (spoilt if token is None else whole).add(token or str(properties.message_id))
                if not queue_checker.unfound(calls, deliveries, whole | spoilt):
                    break
                if time.monotonic() > until:
                    break
                time.sleep(_LOOK)
        strange = spoilt - {call.value for call in calls}
        if strange:
            raise DrillError(f"{prefix} holds {len(strange)} messages that are not the drill's")
        return queue_checker.check(calls, deliveries, left=whole | spoilt, spoilt=spoilt)

    def delete(self, prefix: str) -> None:
        with self._channel() as channel:
            channel.queue_delete(prefix)

    @contextmanager
    def _channel(self) -> Iterator[BlockingChannel]:
        host, port = self._server
        parameters = pika.ConnectionParameters(
            host,
            port,
            socket_timeout=_OWN_TIMEOUT,
            stack_timeout=_OWN_TIMEOUT,
            heartbeat=_HEARTBEAT,
        )
        try:
            connection = pika.BlockingConnection(parameters)
            try:
                yield connection.channel()
            finally:
                if connection.is_open:
                    connection.close()
        except (OSError, pika.exceptions.AMQPError) as error:
            reason = str(error) or type(error).__name__
            raise DrillError(f"no RabbitMQ at {host}:{port}: {reason}") from error


def _drained(channel: BlockingChannel, queue: str) -> Iterator[tuple[pika.BasicProperties, bytes]]:
    """What is in the queue, which is empty afterwards."""
    count = channel.queue_declare(queue, passive=True).method.message_count
    if not count:
        return
    tag = 0
    for method, properties, body in channel.consume(queue, inactivity_timeout=_OWN_TIMEOUT):
        if method is None or properties is None or body is None:
            break
        yield properties, body
        tag, count = method.delivery_tag, count - 1
        if not count:
            break
    if tag:
        channel.basic_ack(tag, multiple=True)
    channel.cancel()


@contextmanager
def serve(host: str) -> Iterator[Serving]:
    """The installed RabbitMQ on a free port of ``host``. DrillError says what to install where
    there is none."""
    from timedblock.testing.rabbitmq import Broker

    try:
        with Broker(host) as broker:
            yield Serving(broker.address, broker.pid, broker.command)
    except RuntimeError as error:
        raise DrillError(str(error)) from error


#: raw-default has no limit of its own; it is held to the second that its users would expect.
#: timedblock's is the default ceiling of a call, with nothing tuned. Corrupted replies are not
#: made: AMQP has no checksum, so that no client can recognise them.
STORE = Store(
    name="rabbitmq",
    operation="rabbitmq.publish",
    rate=40.0,
    writes=0.9,
    variants={
        variant.name: variant
        for variant in (
            _variant(RAW_DEFAULT, 1.0, _raw_default),
            _variant(RAW_TIMEOUT, 1.0, _raw_timeout),
            _variant(FIXED, FIXED_LIMIT, _timedblock_fixed),
            _variant(LEARNT, 1.0, _timedblock),
        )
    },
    faults={
        fault.name: fault
        for fault in (
            faults.Refuse(),
            faults.Blackhole(),
            faults.Hang(),
            faults.Silent(),
            faults.Reset(),
            faults.DnsFail(),
            faults.DnsHang(),
            faults.Latency(0.05, jitter=0.02),
            faults.Drip(),
            faults.Cut(),
            faults.ErrorRate(0.5),
            faults.Pause(),
            faults.Kill(),
        )
    },
    quick=("refuse", "blackhole", "hang", "drip"),
    gone=frozenset(
        {
            "refuse", "blackhole", "hang", "silent", "reset", "dns-fail", "dns-hang", "cut",
            "pause", "kill",
        }
    ),
    quiet=frozenset({"blackhole", "hang", "silent", "drip", "dns-hang", "pause"}),
    serve=serve,
    data=QueueData,
    starts=5.0,
    loads_a_core=5,
)  # fmt: skip
