"""Messages as AMQP's frames, made once where they are alike (L4).

pika's encoder makes three objects a message. Here the frame of ``basic.publish`` is kept for each
(exchange, routing key), and the properties are encoded again only when they differ from the last.
The values themselves are encoded by pika. See the AMQP 0-9-1 specification, 4.2.3 and 4.2.6.
"""

from __future__ import annotations

import copy
import struct
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import pika
from pika import spec

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The channel that publishes, on every connection.
CHANNEL = 1
#: A body up to here is one frame, whatever RabbitMQ and we agreed on (frame-min-size).
SMALL = 4096 - 8
END = b"\xce"
_FRAME = struct.Struct(">BHI")
_HEADER = struct.Struct(">BHIHHQ")
_BODY = struct.Struct(">BBHI")
_MOST_ROUTES = 1024
_LONGEST_NAME = 255


class Message(NamedTuple):
    """A message, ready to be sent.

    `head`: the frames before the body, with the body's frame header where it is `SMALL`.
    `properties`: those that were encoded, by name. `size`: its bytes, about.
    """

    head: bytes
    body: bytes
    exchange: str
    routing_key: str
    properties: dict[str, Any]
    mandatory: bool
    confirm: bool
    size: int


class Encoder:
    """Encodes for one client; any thread. No lock: what is kept is replaced whole."""

    def __init__(self, *, named: bool) -> None:
        """`named`: each message gets a message id, where it has none."""
        self._named = named
        self._routes: dict[tuple[str, str, bool], bytes] = {}
        persistent: Any = pika.BasicProperties(delivery_mode=2)  # type: ignore[no-untyped-call]
        self._default = persistent
        self._last: tuple[dict[str, Any], bytes] = _encode(persistent)

    def message(
        self,
        exchange: str,
        routing_key: str,
        body: bytes | str,
        properties: pika.BasicProperties | None,
        mandatory: bool,
        confirm: bool,
    ) -> Message:
        """A message; raises TypeError, ValueError, or what pika raises for properties that AMQP
        can't carry."""
        if isinstance(body, str):
            body = body.encode()
        elif type(body) is not bytes:
            if not isinstance(body, (bytes, bytearray, memoryview)):
                raise TypeError(f"the body must be bytes or text, not a {type(body).__name__}")
            body = bytes(body)
        route = self._routes.get((exchange, routing_key, mandatory))
        if route is None:
            route = self._route(exchange, routing_key, mandatory)
        if properties is None:
            properties = self._default
        if self._named and properties.message_id is None:
            properties = copy.copy(properties)
            properties.message_id = uuid.uuid4().hex
        values, encoded = self._encoded(properties)
        size = len(body)
        head = _HEADER.pack(spec.FRAME_HEADER, CHANNEL, 12 + len(encoded), 60, 0, size)
        if 0 < size <= SMALL:
            end = _BODY.pack(spec.FRAME_END, spec.FRAME_BODY, CHANNEL, size)
        else:
            end = END
        head = b"".join((route, head, encoded, end))
        return Message(
            head, body, exchange, routing_key, values, mandatory, confirm, len(head) + size
        )

    def _route(self, exchange: str, routing_key: str, mandatory: bool) -> bytes:
        for what, value in (("exchange", exchange), ("routing_key", routing_key)):
            if not isinstance(value, str):
                raise TypeError(f"{what} must be a string, not a {type(value).__name__}")
            if (size := len(value.encode())) > _LONGEST_NAME:
                raise ValueError(f"{what} must have {_LONGEST_NAME} bytes or less, not {size}")
        publish: Any = spec.Basic.Publish
        method = publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
        payload = b"".join((struct.pack(">I", method.INDEX), *method.encode()))
        route = _FRAME.pack(spec.FRAME_METHOD, CHANNEL, len(payload)) + payload + END
        if len(self._routes) >= _MOST_ROUTES:
            self._routes = {}
        self._routes[exchange, routing_key, mandatory] = route
        return route

    def _encoded(self, properties: Any) -> tuple[dict[str, Any], bytes]:
        last = self._last
        # headers are a dict that its owner may change: equal to itself, whatever is in it now
        if properties.headers is None and vars(properties) == last[0]:
            return last
        self._last = last = _encode(properties)
        return last


def _encode(properties: Any) -> tuple[dict[str, Any], bytes]:
    return dict(vars(properties)), b"".join(properties.encode())


def frames(body: bytes, most: int) -> Iterator[bytes]:
    """The frames of a body that is not `SMALL`, each with at most `most` bytes of it."""
    for start in range(0, len(body), most):
        part = body[start : start + most]
        yield _FRAME.pack(spec.FRAME_BODY, CHANNEL, len(part))
        yield part
        yield END
