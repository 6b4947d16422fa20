"""`Client`: publish, get and consume on RabbitMQ, each call within one limit (L4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pika

from ..deadline import check_seconds
from ..errors import Unavailable
from ..policy import UNSET, Policy
from .batching import Batching
from .calling import Full
from .connection import in_order
from .consuming import Consumer, Message
from .declaring import Declaring
from .encoding import Encoder
from .request import Promise, Publication, Request
from .topology import Topology

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from ..call import Call
    from .engine import Engine
    from .publishing import PublishingLink

#: Messages, and their bytes, that a client keeps until they are confirmed.
MAX_UNCONFIRMED = 20_000
MAX_UNCONFIRMED_BYTES = 256 * 1024 * 1024
#: Seconds for which `close` waits.
_CLOSE = 1.0
_EMPTY = pika.spec.Basic.GetEmpty


class Taken(NamedTuple):
    """A message that `Client.get` took: RabbitMQ is told to forget it."""

    body: bytes
    properties: pika.BasicProperties
    redelivered: bool
    exchange: str
    routing_key: str


class Client(Batching, Declaring):
    """RabbitMQ with one total limit on every call; thread-safe, fork-safe, no I/O until first used.

    Args:
        hosts: an AMQP URL, a (host, port) pair or pika's ConnectionParameters; or several of them,
            tried in random order.
        name: what the blocks are called: ``name.publish``.
        policy: for publish and get; the administrative operations and ``publish_many`` are Fixed
            at `timeout` or 10 s.
        timeout: the ceiling of a call with its connect, in seconds; None: 1.
        on_unavailable: the value, or a callable without arguments, used where there is no answer.
        max_unconfirmed: messages that may be unconfirmed at a time, then `Overloaded`.
        max_unconfirmed_bytes: the bytes of these messages; one alone may be larger.
        repeat_unconfirmed: whether a message whose connection ended before its confirm is sent
            again on the next one, within its limit. It may then be there twice: each message gets
            a ``message_id``, where it has none, by which consumers can drop the second.

    Raises:
        timedblock.Unavailable: by every operation, when there is no answer within its limit.
        Unroutable, Nacked: by publishing, see there.
        pika.exceptions.ChannelClosedByBroker: RabbitMQ's answer to what it refuses (404, 406).
        ValueError, TypeError: at construction, naming the bad value.
    """

    def __init__(
        self,
        hosts: Any = ("127.0.0.1", 5672),
        *,
        name: str = "rabbitmq",
        policy: Policy | None = None,
        timeout: float | None = None,
        on_unavailable: Any = UNSET,
        max_unconfirmed: int = MAX_UNCONFIRMED,
        max_unconfirmed_bytes: int = MAX_UNCONFIRMED_BYTES,
        repeat_unconfirmed: bool = False,
    ) -> None:
        self.max_unconfirmed = _whole("max_unconfirmed", max_unconfirmed)
        self.max_unconfirmed_bytes = _whole("max_unconfirmed_bytes", max_unconfirmed_bytes)
        if not isinstance(repeat_unconfirmed, bool):
            raise TypeError(f"repeat_unconfirmed must be a bool, not {repeat_unconfirmed!r}")
        self._topology = Topology()
        self._encoder = Encoder(named=repeat_unconfirmed)
        super().__init__(
            hosts,
            name=name,
            policy=policy,
            timeout=timeout,
            on_unavailable=on_unavailable,
            topology=self._topology,
            most=max_unconfirmed,
            most_bytes=max_unconfirmed_bytes,
            repeat=repeat_unconfirmed,
        )

    def _start_fresh(self) -> None:
        super()._start_fresh()
        #: publishes whose callers still wait, and their bytes; from any thread
        self._unconfirmed: dict[Publication, int] = {}
        #: the sum of these bytes, about: what is refused by it is counted first
        self._unconfirmed_bytes = 0
        self._consumers: list[Consumer] = []

    # -- publishing ---------------------------------------------------------------------------

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes | str,
        properties: pika.BasicProperties | None = None,
        *,
        confirm: bool = True,
        mandatory: bool = True,
    ) -> None:
        """Publish a message; a return means that RabbitMQ has it.

        Args:
            exchange: its name; "" for the default one.
            routing_key: the queue's name, with the default exchange.
            body: text is encoded as UTF-8.
            properties: None: persistent, and nothing else.
            confirm: False returns as soon as it is handed to the connection: it may be lost.
            mandatory: whether a message that no queue gets is an error.

        Raises:
            Unroutable: no queue got it.
            Nacked: RabbitMQ refused the responsibility.
            timedblock.Unavailable: no answer within the limit; `sent` False: nothing left.
        """
        message = self._encoder.message(exchange, routing_key, body, properties, mandatory)

        def make(engine: Engine, call: Call) -> Publication:
            made = Publication(call, self._until(call, engine.publishing), message)
            if not confirm:
                made.confirm = False
            return made

        block = self._block("publish")
        try:
            self._call(block, make)
        except Unavailable as error:
            block._fall_back(error)

    def publish_async(
        self,
        exchange: str,
        routing_key: str,
        body: bytes | str,
        properties: pika.BasicProperties | None = None,
        *,
        mandatory: bool = True,
    ) -> Future[None]:
        """Like `publish`, but returns a future at once.

        Its `result` has what `publish` returns or raises, within the ceiling: how long one takes
        depends on how many were handed over before it, so there is no learnt limit. What can be
        told at once is raised here (`CircuitOpen`, `Overloaded`). No retries, no fallback; it
        can't be cancelled, since the message may have left.
        """
        message = self._encoder.message(exchange, routing_key, body, properties, mandatory)
        call = self._block("publish_async").begin()
        promise = None
        try:
            engine = self._running()
            promise = Promise(call, self._until(call, engine.publishing), message, self)
            self._reserve(engine, promise)
            engine.publish(promise)
        except Full as full:
            raise self._too_many(call, full) from None
        except BaseException:
            call.abandoned()
            if promise is not None:
                promise.given_up = True
                self._left(promise)
            raise
        return promise

    def _keep_promise(self, promise: Promise) -> None:
        """Confirmed: on the I/O thread."""
        self._left(promise)
        call = promise.call
        if promise.left_at:
            call.began = promise.left_at
        call.succeeded()

    def _break_promise(self, promise: Promise) -> BaseException | None:
        """Settled otherwise, or given up: on the I/O thread. What the future raises."""
        self._left(promise)
        if promise.left_at > promise.call.began:
            promise.call.restart(promise.left_at)
        failure = promise.failure if promise.settled else self._gave_up(promise, self._engine)
        assert failure is not None
        return self._judge(promise, failure, repeatable=False)[1]

    def _hand_in(self, engine: Engine, request: Request) -> None:
        if isinstance(request, Publication):
            self._reserve(engine, request)
            engine.publish(request)
        else:
            super()._hand_in(engine, request)

    def _reserve(self, engine: Engine, publication: Publication) -> None:
        """A place for a message; `Full` where there is none.

        The link keeps also those whose callers have left, until they are confirmed or lost.
        """
        waiting, size, link = self._unconfirmed, publication.size, engine.publishing
        most, most_bytes = self.max_unconfirmed, self.max_unconfirmed_bytes - size
        if (
            len(waiting) >= most
            or link.unconfirmed >= most
            or self._unconfirmed_bytes > most_bytes
            or link.unconfirmed_bytes > most_bytes
        ):
            self._look_closer(link, size)
        waiting[publication] = size
        self._unconfirmed_bytes += size

    def _look_closer(self, link: PublishingLink, size: int) -> None:
        """Before anybody is refused: one message may be larger than all that may be unconfirmed."""
        self._recount()
        if max(len(self._unconfirmed), link.unconfirmed) >= self.max_unconfirmed:
            raise Full(f"{self.max_unconfirmed} messages are unconfirmed")
        taken = max(self._unconfirmed_bytes, link.unconfirmed_bytes)
        if taken and taken + size > self.max_unconfirmed_bytes:
            raise Full(f"{taken} bytes are unconfirmed")

    def _recount(self) -> None:
        """An interrupt may have left an entry behind, or the sum off."""
        for publication in list(self._unconfirmed):
            if publication.settled or publication.given_up:
                self._unconfirmed.pop(publication, None)
        self._unconfirmed_bytes = sum(list(self._unconfirmed.values()))

    def _left(self, request: Request) -> None:
        if isinstance(request, Publication):
            size = self._unconfirmed.pop(request, None)
            if size is not None:
                self._unconfirmed_bytes -= size

    # -- getting ------------------------------------------------------------------------------

    def get(self, queue: str) -> Taken | None:
        """Take one message of `queue`, or None where it is empty.

        It is acknowledged when it is here and its caller still waits, else it goes back to the
        queue: a call that was cut loses nothing. At least once: where the acknowledgement is lost
        with its connection, the message comes again.
        """

        def question(channel: Any, request: Request, answered: Callable[[Any], None]) -> None:
            def nothing(frame: Any) -> None:
                answered(None)

            def got(channel: Any, method: Any, properties: Any, body: bytes) -> None:
                # the channel is used again
                channel.callbacks.remove(channel.channel_number, _EMPTY, nothing)
                if not in_order(channel, method.delivery_tag):
                    return
                answered(
                    Taken(
                        body,
                        properties,
                        method.redelivered,
                        method.exchange,
                        method.routing_key,
                    )
                )
                # Only now: a caller who gives up looks for the answer afterwards. So the message
                # is never acknowledged and had by nobody.
                if request.given_up:
                    channel.basic_nack(method.delivery_tag, requeue=True)
                else:
                    channel.basic_ack(method.delivery_tag)

            channel.add_callback(nothing, [_EMPTY], one_shot=True)
            channel.basic_get(queue, got)

        return self._ask("get", question)  # type: ignore[no-any-return]

    def consume(
        self,
        queue: str,
        handler: Callable[[Message], object],
        *,
        prefetch: int = 100,
        ack: Literal["auto", "manual"] = "auto",
        max_attempts: int = 5,
        requeue_delay: float = 1.0,
    ) -> Consumer:
        """Have ``handler(message)`` called for the messages of `queue`, one after the other, on a
        thread of the consumer's own; returns at once, and goes on over every reconnect.

        At least once: a message whose connection ended before it was acknowledged comes again.

        Args:
            prefetch: messages that RabbitMQ may deliver before they are acknowledged.
            ack: ``auto``: a return acknowledges. ``manual``: ``message.ack()`` or
                ``message.nack()``, from any thread. With both, an exception of the handler gives
                the message back, unless it is settled.
            max_attempts: exceptions after which a message goes to its dead-letter exchange.
            requeue_delay: seconds from an exception until the message is given back.

        Raises:
            ValueError, TypeError: naming the bad value.
        """
        if ack not in ("auto", "manual"):
            raise ValueError(f"ack must be 'auto' or 'manual', not {ack!r}")
        if not callable(handler):
            raise TypeError(f"the handler must be callable, not {handler!r}")
        consumer = Consumer(
            self._running(),
            queue,
            handler,
            prefetch=_whole("prefetch", prefetch),
            auto=ack == "auto",
            max_attempts=_whole("max_attempts", max_attempts),
            requeue_delay=check_seconds("requeue_delay", requeue_delay, zero=True),
        )
        self._consumers = [one for one in self._consumers if not one.stopped] + [consumer]
        return consumer

    # -- health, ending -----------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """How it is.

        ``host``: what it publishes to, of a name with the address, or None. ``blocked``: RabbitMQ
        takes no messages. ``unconfirmed``: messages on their way. ``consumers``: by queue, messages
        that are here and ``waiting`` for the handler, and since when, in seconds, the oldest is
        (``lag``).
        """
        engine = self._engine
        link = None if engine is None else engine.publishing
        return {
            "host": link.where if link is not None and link.ready else None,
            "blocked": link is not None and link.blocked,
            "unconfirmed": 0 if link is None else link.unconfirmed,
            "consumers": {
                one.queue: {"waiting": one.waiting, "lag": one.lag}
                for one in self._consumers
                if not one.stopped
            },
        }

    def close(self) -> None:
        """Stop the consumers, close the connections, each within a second; the next use connects
        again.

        What is still unconfirmed is told so.
        """
        consumers, self._consumers = self._consumers, []
        for consumer in consumers:
            consumer.stop(_CLOSE)
        self._end(_CLOSE)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self.name} on {self.endpoint.name}>"


def _whole(what: str, number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{what} must be a whole number, not {number!r}")
    if number < 1:
        raise ValueError(f"{what} must be from 1, not {number!r}")
    return number
