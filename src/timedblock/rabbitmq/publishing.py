"""The connection that publishes: one channel with confirms, shared by all threads (L4)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from pika import exceptions

from ..call import ANSWER, UNWELL
from .errors import Nacked, Unroutable
from .link import Link, _lost
from .request import Failure, Request

if TYPE_CHECKING:
    import pika


class Message(NamedTuple):
    """What is published."""

    exchange: str
    routing_key: str
    body: bytes
    properties: pika.BasicProperties
    mandatory: bool
    confirm: bool


class PublishingLink(Link):
    """Publishes in the order in which messages come; a confirm settles one or many."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._channel: Any = None
        #: by delivery tag, oldest first
        self._unconfirmed: dict[int, tuple[Request, Message]] = {}
        self._tag = 0
        #: until RabbitMQ takes messages again, or the channel is open again
        self._held: deque[tuple[Request, Message]] = deque()

    @property
    def unconfirmed(self) -> int:
        """Messages that were sent and of which RabbitMQ hasn't said anything yet."""
        return len(self._unconfirmed)

    def publish(self, request: Request, message: Message) -> None:
        """Send `message`, unless RabbitMQ takes none."""
        if self.blocked or self._channel is None or not self._channel.is_open:
            request.sent = False
            self._held.append((request, message))
            return
        self._tag += 1
        self._unconfirmed[self._tag] = request, message
        try:
            self._channel.basic_publish(
                message.exchange,
                message.routing_key,
                message.body,
                message.properties,
                message.mandatory,
            )
        except Exception as error:  # properties that can't be encoded
            del self._unconfirmed[self._tag]
            self._tag -= 1
            request.fail(Failure(error))
            return
        if not message.confirm:
            request.succeed()

    # -- the channel --------------------------------------------------------------------------

    def _prepare(self) -> None:
        self.connection.channel(on_open_callback=self._channel_open)

    def _channel_open(self, channel: Any) -> None:
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_return_callback(self._returned)
        channel.confirm_delivery(self._confirmed, callback=lambda frame: self._can_publish(channel))

    def _can_publish(self, channel: Any) -> None:
        if self.connection is None or channel.connection is not self.connection:
            return
        self._channel, self._tag = channel, 0
        if not self.ready:
            self._get_ready()
        self._release()

    def _release(self) -> None:
        held, self._held = self._held, deque()
        for request, message in held:
            if request.begin():
                self.publish(request, message)

    def _on_unblocked(self, connection: Any, frame: Any) -> None:
        super()._on_unblocked(connection, frame)
        self._release()

    def _channel_closed(self, channel: Any, reason: Exception) -> None:
        if channel is not self._channel:
            return
        self._channel = None
        told = isinstance(reason, exceptions.ChannelClosedByBroker)
        text = getattr(reason, "reply_text", "")
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        why = "RabbitMQ closed the channel over another message" if told else ""
        for request, message in unconfirmed.values():
            # RabbitMQ names the exchange that isn't there; what the others became nobody knows
            if told and (f"'{message.exchange}'" in text or len(unconfirmed) == 1):
                request.fail(Failure(reason, ANSWER))
            else:
                request.fail(_lost(why))
        if self.connection is not None and self.connection.is_open:
            self._prepare()

    # -- what became of messages --------------------------------------------------------------

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        failure = Failure(Nacked(), UNWELL) if method.NAME == "Basic.Nack" else None
        for tag in self._tags(method.delivery_tag, method.multiple):
            request, _ = self._unconfirmed.pop(tag)
            if request.done:
                continue
            if failure is None:
                request.succeed()
            else:
                request.fail(failure)

    def _tags(self, tag: int, multiple: bool) -> list[int]:
        if not multiple:
            return [tag] if tag in self._unconfirmed else []
        found = []
        for one in self._unconfirmed:
            if one > tag:
                break
            found.append(one)
        return found

    def _returned(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        """The broker's return has no tag, and comes before the confirm of its message."""
        key = method.exchange, method.routing_key, body
        encoded = _encoded(properties)
        for request, message in self._unconfirmed.values():
            same = (message.exchange, message.routing_key, message.body) == key
            if same and not request.done and _encoded(message.properties) == encoded:
                request.fail(Failure(Unroutable(method.reply_code, method.reply_text)))
                return

    # -- ending -------------------------------------------------------------------------------

    def _forget(self) -> None:
        super()._forget()
        self._channel = None

    def _lose(self, why: str) -> None:
        super()._lose(why)
        lost, self._unconfirmed = self._unconfirmed, {}
        for request, _ in lost.values():
            request.fail(_lost(why))
        held, self._held = self._held, deque()
        for request, _ in held:
            request.sent = False
            request.fail(_lost(why))

    def doubt(self, request: Request) -> None:
        """See `Link.doubt`; a message that was held is forgotten."""
        if self._held:
            self._held = deque(one for one in self._held if not one[0].given_up)
        super().doubt(request)


def _encoded(properties: Any) -> bytes:
    return b"".join(properties.encode())
