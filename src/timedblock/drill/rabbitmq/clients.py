"""The clients of the RabbitMQ drills: raw pika as applications use it, and timedblock's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol

import pika
from pika.adapters.blocking_connection import BlockingChannel

from timedblock.drill.store import Address

#: Seconds that timedblock-fixed gives a call: what a request can spare for its message.
FIXED_LIMIT = 0.25
#: Seconds of a raw client that was given timeouts; pika's heartbeat is whole seconds, and a
#: connection that is silent for twice of it is given up.
TIMEOUT, HEARTBEAT = 1, 4
PREFETCH = 100
#: Seconds between two attempts of a raw consumer to connect.
_PAUSE = 0.5
_OPEN_WITHIN = 15.0
_PERSISTENT = 2


class Taken(Protocol):
    """Is told the body of a message before it is acknowledged; False: it must not be."""

    def __call__(self, body: bytes) -> bool: ...


class Publisher(Protocol):
    """What the load needs of a client."""

    def open(self) -> None:
        """Called in each thread before anything else."""
        ...

    def publish(self, queue: str, body: bytes, token: str) -> None:
        """Returns once the message is confirmed."""
        ...

    def get(self, queue: str, taken: Taken) -> bytes | None: ...

    def consume(self, queue: str, taken: Taken) -> None:
        """Have ``taken`` called for every message from now on, in a thread."""
        ...


class Client(NamedTuple):
    """A client, and the errors by which it may say that there is no answer."""

    publisher: Publisher
    honest: tuple[type[Exception], ...]


def persistent(token: str) -> pika.BasicProperties:
    """Of a message that outlives a restart, by its token."""
    return pika.BasicProperties(  # type: ignore[no-untyped-call]
        delivery_mode=_PERSISTENT, message_id=token
    )


class RawPublisher:
    """pika as an application with threads uses it: a connection for each, and a new one after an
    error, to the first host that takes it."""

    def __init__(self, hosts: Sequence[pika.ConnectionParameters]) -> None:
        self._hosts = hosts
        self._local = threading.local()
        self._opening = threading.Lock()

    def open(self) -> None:
        """One after the other: opened all at once, on a busy machine, none is in time."""
        until = time.monotonic() + _OPEN_WITHIN
        with self._opening:
            while True:
                try:
                    with self._channel():
                        return
                except (pika.exceptions.AMQPError, OSError):
                    if time.monotonic() > until:
                        raise

    def publish(self, queue: str, body: bytes, token: str) -> None:
        with self._channel() as channel:
            channel.basic_publish("", queue, body, persistent(token), mandatory=True)

    def get(self, queue: str, taken: Taken) -> bytes | None:
        with self._channel() as channel:
            method, _, body = channel.basic_get(queue)
            if method is None or body is None:
                return None
            if taken(body):
                with suppress(pika.exceptions.AMQPError):  # then it is delivered once more
                    channel.basic_ack(method.delivery_tag)
            return body

    def consume(self, queue: str, taken: Taken) -> None:
        threading.Thread(target=self._consume, args=(queue, taken), daemon=True).start()

    @contextmanager
    def _channel(self) -> Iterator[BlockingChannel]:
        """This thread's, which is opened when there is none; after an error it is closed."""
        channel = getattr(self._local, "channel", None)
        if channel is None or not channel.is_open:
            channel = pika.BlockingConnection(self._hosts).channel()
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

    def _consume(self, queue: str, taken: Taken) -> None:
        def delivered(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            if taken(body):
                channel.basic_ack(method.delivery_tag)

        while True:
            with suppress(pika.exceptions.AMQPError, OSError):
                channel = pika.BlockingConnection(self._hosts).channel()
                channel.basic_qos(prefetch_count=PREFETCH)
                channel.basic_consume(queue, delivered)
                channel.start_consuming()
            time.sleep(_PAUSE)


class Timedblock:
    """timedblock's client: one for all threads."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def open(self) -> None:
        pass

    def publish(self, queue: str, body: bytes, token: str) -> None:
        self._client.publish("", queue, body, persistent(token))

    def get(self, queue: str, taken: Taken) -> bytes | None:
        message = self._client.get(queue)
        if message is None:
            return None
        taken(message.body)
        body: bytes = message.body
        return body

    def consume(self, queue: str, taken: Taken) -> None:
        def handle(message: Any) -> None:
            if taken(message.body):
                message.ack()

        self._client.consume(queue, handle, prefetch=PREFETCH, ack="manual")


def raw_default(servers: Sequence[Address]) -> Client:
    hosts = [pika.ConnectionParameters(*server) for server in servers]
    return Client(RawPublisher(hosts), (Exception,))


def with_timeouts(server: Address) -> pika.ConnectionParameters:
    """Every timeout that pika has."""
    return pika.ConnectionParameters(
        *server,
        socket_timeout=TIMEOUT,
        stack_timeout=TIMEOUT,
        blocked_connection_timeout=TIMEOUT,
        heartbeat=HEARTBEAT,
    )


def raw_timeout(servers: Sequence[Address]) -> Client:
    return Client(RawPublisher([with_timeouts(server) for server in servers]), (Exception,))


# The imports are here, so that the raw clients' processes are without them.


def timedblock_fixed(servers: Sequence[Address]) -> Client:
    from timedblock import Fixed, Policy

    return _ours(servers, policy=Policy(timeout=Fixed(FIXED_LIMIT)))


def timedblock_learnt(servers: Sequence[Address]) -> Client:
    return _ours(servers)


def _ours(servers: Sequence[Address], **options: Any) -> Client:
    from timedblock import Unavailable, rabbitmq

    honest = (Unavailable, rabbitmq.Unroutable, rabbitmq.Nacked)
    client = rabbitmq.Client(list(servers), **options)
    if len(servers) > 1:
        _begin_at(client, servers[0])
    return Client(Timedblock(client), honest)


def _begin_at(client: Any, server: Address) -> None:
    """Hosts are tried in random order: connect again until it is this one."""
    from timedblock import Unavailable, rabbitmq

    host, port = server
    for _ in range(50):
        # There is no such queue: what says so is connected.
        with suppress(Unavailable, rabbitmq.Unroutable):
            client.publish("", "timedblock-drill-nowhere", b"")
        if client.health()["host"] == f"{host}:{port}":
            return
        client.close()
    raise RuntimeError(f"it never connected to {host}:{port}")
