"""A consumer: a channel of its own that is opened again, and a thread for its handler (L4)."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue as queues
import threading
from typing import TYPE_CHECKING, Any

from pika import exceptions

from .connection import in_order

if TYPE_CHECKING:
    from collections.abc import Callable

    import pika

    from .engine import Engine
    from .link import Link

logger = logging.getLogger("timedblock")

#: Seconds until a consumer that RabbitMQ ended (no such queue, say) is tried again.
AGAIN = 1.0
#: Seconds that RabbitMQ has to answer that it consumes, at first and at the most.
PATIENCE, PATIENCE_MAX = 1.0, 2.0
#: Messages whose failures are remembered, where RabbitMQ doesn't count them.
_REMEMBERED = 10_000


class Message:
    """A message for a handler.

    Attributes:
        body: bytes.
        properties: pika's BasicProperties.
        redelivered: whether RabbitMQ has delivered it before.
        exchange, routing_key: as it was published.
    """

    __slots__ = (
        "_channel",
        "_consumer",
        "_tag",
        "body",
        "came",
        "exchange",
        "properties",
        "redelivered",
        "routing_key",
        "settled",
    )

    def __init__(
        self,
        consumer: Consumer,
        channel: Any,
        method: Any,
        properties: Any,
        body: bytes,
        came: float,
    ) -> None:
        #: when it came, on the client's clock
        self.came = came
        self._consumer = consumer
        self._channel = channel
        self._tag = method.delivery_tag
        self.body = body
        self.properties: pika.BasicProperties = properties
        self.redelivered: bool = method.redelivered
        self.exchange: str = method.exchange
        self.routing_key: str = method.routing_key
        #: ack or nack was called
        self.settled = False

    def ack(self) -> None:
        """Done with it; from any thread, once. Of a connection that is gone: RabbitMQ delivers it
        again."""
        self._settle("basic_ack", self._tag)

    def nack(self, requeue: bool = True) -> None:
        """Give it back, or (`requeue` False) to its dead-letter exchange; from any thread, once."""
        self._settle("basic_nack", self._tag, False, requeue)

    def _settle(self, how: str, *arguments: Any) -> None:
        if not self.settled:
            self.settled = True
            self._consumer._engine.post(self._consumer._do, self._channel, how, arguments)


class Consumer:
    """What `Client.consume` returns: it goes on, over every reconnect, until `stop`.

    Attributes:
        queue: what it consumes.
        stopped: whether `stop` was called.
    """

    def __init__(
        self,
        engine: Engine,
        queue: str,
        handler: Callable[[Message], object],
        *,
        prefetch: int,
        auto: bool,
        max_attempts: int,
        requeue_delay: float,
    ) -> None:
        self.queue = queue
        self._engine = engine
        #: where it consumes; changed on the I/O thread
        self.link: Link = engine.asking
        self._handler = handler
        self._prefetch = prefetch
        self._auto = auto
        self._max_attempts = max_attempts
        self._requeue_delay = requeue_delay
        self._failures: dict[bytes, int] = {}
        self._inbox: queues.SimpleQueue[Message | None] = queues.SimpleQueue()
        self._channel: Any = None
        self._consumer_tag: str | None = None
        #: RabbitMQ has said that it consumes, on this channel; seconds that this may take
        self._answered, self._patience = False, PATIENCE
        self.stopped = False
        #: when the message came that the handler has, or has next
        self._oldest: float | None = None
        self._thread = threading.Thread(
            target=self._work, name=f"timedblock-consume-{queue}"[:60], daemon=True
        )
        self._thread.start()
        engine.post(self.link.consume, self)

    @property
    def waiting(self) -> int:
        """Messages that are here and that the handler has not had yet."""
        return self._inbox.qsize()

    @property
    def lag(self) -> float:
        """Seconds since the oldest message came that the handler has not returned from; 0: none."""
        oldest = self._oldest
        return 0.0 if oldest is None else max(0.0, self._engine.clock.monotonic() - oldest)

    def stop(self, timeout: float = 1.0) -> None:
        """End; messages that are not acknowledged go back to the queue.

        Waits for the handler to return from the message in its hands, and for that to be
        acknowledged, but not longer than `timeout` seconds. The handler itself may call it.
        """
        self.stopped = True
        self._engine.post(self.pause)
        self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
            self._engine.post(self._leave)

    # -- on the I/O thread --------------------------------------------------------------------

    def _leave(self) -> None:
        self.link.stop_consuming(self)

    def begin(self, connection: Any) -> None:
        """Consume on a channel of a connection that is ready."""
        if self.stopped or self._channel is not None or not connection.is_open:
            return
        with contextlib.suppress(Exception):  # no channel left, or it closes just now
            connection.channel(on_open_callback=self._opened)

    def _opened(self, channel: Any) -> None:
        if self.stopped or self._channel is not None:
            channel.close()
            return
        if channel.connection is not self.link.connection:
            channel.close()  # it consumes elsewhere now
            return
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        channel.add_on_cancel_callback(lambda frame: channel.close())
        channel.basic_qos(prefetch_count=self._prefetch, callback=lambda frame: self._ask(channel))

    def _ask(self, channel: Any) -> None:
        if not channel.is_open or self.stopped or channel is not self._channel:
            return
        self._answered = False
        self._consumer_tag = channel.basic_consume(
            self.queue, self._delivered, callback=lambda frame: self._consuming(channel)
        )
        self._engine.ioloop.call_later(self._patience, lambda: self._ask_elsewhere(channel))

    def _consuming(self, channel: Any) -> None:
        if channel is self._channel:
            self._answered, self._patience = True, PATIENCE

    def _ask_elsewhere(self, channel: Any) -> None:
        """RabbitMQ waits, in this channel, for a leader of the queue that isn't there any more; a
        new one has long been elected when it gives up."""
        if channel is self._channel and not self._answered and not self.stopped:
            self._patience = min(PATIENCE_MAX, self._patience * 2)
            self.end()
            self._again()

    def _delivered(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if in_order(channel, method.delivery_tag):
            now = self._engine.clock.monotonic()
            self._inbox.put(Message(self, channel, method, properties, body, now))

    def _closed(self, channel: Any, reason: Exception) -> None:
        if channel is not self._channel:
            return
        self._channel = None
        connection = channel.connection
        if connection.is_open and not self.stopped:
            logger.warning("RabbitMQ ended a consumer: %s", type(reason).__name__)
            self._engine.ioloop.call_later(AGAIN, self._again)

    def _again(self) -> None:
        if self.link.ready:
            self.begin(self.link.connection)

    def lost(self) -> None:
        """The connection is gone, and nobody closes its channels any more."""
        self._channel = self._consumer_tag = None

    def pause(self) -> None:
        """Have no more delivered."""
        channel, tag = self._channel, self._consumer_tag
        self._consumer_tag = None
        if channel is not None and channel.is_open and tag is not None:
            channel.basic_cancel(tag)

    def end(self) -> None:
        """Close the channel; RabbitMQ has the rest back."""
        channel, self._channel = self._channel, None
        if channel is not None and channel.is_open:
            # its connection may be closing just now, and tells us later
            with contextlib.suppress(exceptions.AMQPError):
                channel.close()

    def _do(self, channel: Any, how: str, arguments: tuple[Any, ...]) -> None:
        if channel is self._channel and channel.is_open:
            getattr(channel, how)(*arguments)

    # -- on the consumer's thread -------------------------------------------------------------

    def _work(self) -> None:
        while True:
            message = self._inbox.get()
            if message is None or self.stopped:
                break
            if message._channel is self._channel:  # else RabbitMQ delivers it again
                self._oldest = message.came
                self._handle(message)
                self._oldest = None
        self._engine.post(self._leave)

    def _handle(self, message: Message) -> None:
        try:
            self._handler(message)
        except BaseException as error:  # whatever it is, the next message is not harmed
            self._failed(message, error)
        else:
            if self._failures:
                self._failures.pop(_identity(message), None)
            if self._auto:
                message.ack()

    def _failed(self, message: Message, error: BaseException) -> None:
        failures = self._count(message)
        last = failures >= self._max_attempts
        logger.warning(
            "a handler raised %s (%d of %d attempts)",
            type(error).__name__,
            failures,
            self._max_attempts,
        )
        if message.settled:
            return
        if last:
            self._failures.pop(_identity(message), None)
            message.nack(requeue=False)
        else:
            delay = self._requeue_delay
            self._engine.post(self._engine.ioloop.call_later, delay, message.nack)

    def _count(self, message: Message) -> int:
        """Failures of this message: by RabbitMQ's count (quorum queues), or our own."""
        identity = _identity(message)
        mine = self._failures.get(identity, 0) + 1
        while len(self._failures) >= _REMEMBERED:
            del self._failures[next(iter(self._failures))]
        self._failures[identity] = mine
        counted = (message.properties.headers or {}).get("x-delivery-count", 0)
        return max(mine, counted + 1 if isinstance(counted, int) else 0)


def _identity(message: Message) -> bytes:
    named = message.properties.message_id
    return named.encode() if named else hashlib.blake2b(message.body, digest_size=16).digest()
