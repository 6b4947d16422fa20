"""Messages as AMQP's frames, made once where they are alike (L4).

pika's encoder makes three objects a message. Here all that messages of one (exchange, routing key)
have in common is kept, and the properties are encoded again only when they differ from the last.
The values themselves are encoded by pika. See the AMQP 0-9-1 specification, 4.2.3 and 4.2.6.
"""

from __future__ import annotations

import copy
import struct
import uuid
from typing import TYPE_CHECKING, Any, TypeAlias

import pika
from pika import spec

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Exchange and routing key.
Route: TypeAlias = "tuple[str, str]"
#: A message, ready to be sent: its envelope, head, body and size in bytes. Whoever carries it has
#: these as attributes of its own; a third object for each message would cost as much as its bytes.
Message: TypeAlias = "tuple[Envelope, bytes, bytes, int]"

#: The channel that publishes, on every connection.
CHANNEL = 1
#: A body up to here is one frame, whatever RabbitMQ and we agreed on (frame-min-size).
SMALL = 4096 - 8
END = b"\xce"
_FRAME = struct.Struct(">BHI")
#: A content header, up to the body's size; its end, and the body's frame, up to the size again.
_HEADER = struct.Struct(">BHIHH")
_BETWEEN = struct.Struct(">BBH")
_MOST_ROUTES = 1024
_LONGEST_NAME = 255


class Envelope:
    """What all messages of one route with the same properties have in common.

    `frame`: ``basic.publish``. `properties`: those that are encoded, by name. `before` and `after`
    the body's size, which `pack` puts between them and once more after them: the frames before a
    body, with the header of its own frame.
    """

    __slots__ = ("after", "before", "frame", "mandatory", "pack", "properties", "route")

    def __init__(self, route: Route, mandatory: bool, frame: bytes, properties: Any) -> None:
        self.route = route
        self.mandatory = mandatory
        self.frame = frame
        self.properties: dict[str, Any] = dict(vars(properties))
        encoded = b"".join(properties.encode())
        size = 12 + len(encoded)
        self.before = frame + _HEADER.pack(spec.FRAME_HEADER, CHANNEL, size, 60, 0)
        self.after = encoded + _BETWEEN.pack(spec.FRAME_END, spec.FRAME_BODY, CHANNEL)
        self.pack = struct.Struct(f">{len(self.before)}sQ{len(self.after)}sI").pack


class Encoder:
    """Encodes for one client; any thread. No lock: what is kept is replaced whole."""

    def __init__(self, *, named: bool) -> None:
        """`named`: each message gets a message id, where it has none."""
        self._named = named
        #: the last one of each route
        self._envelopes: dict[tuple[str, str, bool], Envelope] = {}
        persistent: Any = pika.BasicProperties(delivery_mode=2)  # type: ignore[no-untyped-call]
        self._default = persistent

    def message(
        self,
        exchange: str,
        routing_key: str,
        body: bytes | str,
        properties: pika.BasicProperties | None,
        mandatory: bool,
    ) -> Message:
        """A message; raises TypeError, ValueError, or what pika raises for properties that AMQP
        can't carry."""
        if type(body) is not bytes:
            body = _bytes(body)
        if properties is None:
            properties = self._default
        if self._named and properties.message_id is None:
            properties = copy.copy(properties)
            properties.message_id = uuid.uuid4().hex
        envelope = self._envelopes.get((exchange, routing_key, mandatory))
        if (
            envelope is None
            # headers are a dict that its owner may change: equal to itself, whatever is in it now
            or properties.headers is not None
            or properties.__dict__ != envelope.properties
        ):
            envelope = self._envelope(exchange, routing_key, mandatory, properties, envelope)
        size = len(body)
        head = envelope.pack(envelope.before, size, envelope.after, size)
        if not 0 < size <= SMALL:
            head = head[: -_FRAME.size]
        return envelope, head, body, len(head) + size

    def _envelope(
        self,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        properties: Any,
        last: Envelope | None,
    ) -> Envelope:
        frame = _publish(exchange, routing_key, mandatory) if last is None else last.frame
        made = Envelope((exchange, routing_key), mandatory, frame, properties)
        if last is None and len(self._envelopes) >= _MOST_ROUTES:
            self._envelopes = {}
        self._envelopes[exchange, routing_key, mandatory] = made
        return made


def _bytes(body: Any) -> bytes:
    if isinstance(body, str):
        return body.encode()
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise TypeError(f"the body must be bytes or text, not a {type(body).__name__}")
    return bytes(body)


def _publish(exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """The frame of ``basic.publish``."""
    for what, value in (("exchange", exchange), ("routing_key", routing_key)):
        if not isinstance(value, str):
            raise TypeError(f"{what} must be a string, not a {type(value).__name__}")
        if (size := len(value.encode())) > _LONGEST_NAME:
            raise ValueError(f"{what} must have {_LONGEST_NAME} bytes or less, not {size}")
    publish: Any = spec.Basic.Publish
    method = publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    payload = b"".join((struct.pack(">I", method.INDEX), *method.encode()))
    return _FRAME.pack(spec.FRAME_METHOD, CHANNEL, len(payload)) + payload + END


def frames(body: bytes, most: int) -> Iterator[bytes]:
    """The frames of a body that is not `SMALL`, each with at most `most` bytes of it."""
    for start in range(0, len(body), most):
        part = body[start : start + most]
        yield _FRAME.pack(spec.FRAME_BODY, CHANNEL, len(part))
        yield part
        yield END
