"""pika's connection with a short way out for messages, and a short way in for confirms (L4)."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING, Any

import pika
from pika import exceptions
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport

from .encoding import CHANNEL

if TYPE_CHECKING:
    from collections.abc import Callable

#: The frame of ``basic.ack`` on our channel, up to the delivery tag; and the rest of it.
_ACK = struct.pack(">BHIHH", 1, CHANNEL, 13, 60, 80)
_TAG = struct.Struct(">QBB")
_SIZE = len(_ACK) + _TAG.size
_END = 0xCE


class Connection(pika.SelectConnection):
    """Touches what pika keeps private: `_transport`, its `_sock`, `_frame_buffer` and
    `_on_data_available`. tests/unit/test_rabbitmq_wire.py pins what is expected of them.
    """

    def __init__(
        self,
        *args: Any,
        on_confirms: Callable[[list[tuple[int, bool]]], None] | None = None,
        **kwargs: Any,
    ) -> None:
        """``on_confirms([(delivery_tag, multiple), …])`` for each run of ``basic.ack`` on the
        channel that publishes; those that come any other way go to the channel's callback."""
        self._confirm = on_confirms
        super().__init__(*args, **kwargs)

    @property
    def backlog(self) -> int:
        """Bytes that the kernel has not taken yet."""
        size: int = self._transport.get_write_buffer_size() if self._transport else 0
        return size

    @property
    def largest_body(self) -> int:
        """Bytes of a body that one frame may carry."""
        return int(self._body_max_length)

    def emit(self, data: bytes) -> None:
        """Send frames now; pika would send them in the loop's next turn."""
        self.bytes_sent += len(data)
        transport: Any = self._transport
        if transport is None:  # it is lost, and whoever waits is told in a moment
            return
        if type(transport) is _AsyncPlaintextTransport and not transport.get_write_buffer_size():
            try:
                sent = transport._sock.send(data)
            except OSError:  # the kernel takes nothing; or worse, and pika will find it out
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        transport.write(data)

    def _on_data_available(self, data_in: bytes) -> None:
        if self._confirm is not None:
            if self._frame_buffer:  # the beginning of a frame, most often of a confirm
                data_in, self._frame_buffer = self._frame_buffer + data_in, b""
            data_in = self._read_confirms(self._confirm, data_in)
        if data_in:
            super()._on_data_available(data_in)
            self._check_size()

    def _read_confirms(
        self, confirm: Callable[[list[tuple[int, bool]]], None], data: bytes
    ) -> bytes:
        """Tell `confirm` of those at the beginning of `data`; returns the rest of it."""
        at, confirms = 0, []
        while data.startswith(_ACK, at) and len(data) - at >= _SIZE:
            tag, multiple, end = _TAG.unpack_from(data, at + len(_ACK))
            if end != _END:
                break  # pika's decoder says what is wrong
            at += _SIZE
            confirms.append((tag, bool(multiple & 1)))
        if confirms:
            self.frames_received += len(confirms)
            self.bytes_received += at
            confirm(confirms)
        return data[at:]

    def _check_size(self) -> None:
        """pika waits for whatever a frame's header says, up to 4 GB: all that follows a corrupted
        one would disappear in it."""
        buffer = self._frame_buffer
        most = self.params.frame_max
        if (
            self.is_open
            and len(buffer) >= 7
            and most
            and int.from_bytes(buffer[3:7], "big") + 8 > most
        ):
            self._terminate_stream(exceptions.InvalidFrameError("a frame is too long"))


def sever(connection: Any) -> None:
    """Close a connection's socket at once, without any handshake and without the loop."""
    transport = connection._transport
    if transport is None:
        return
    sock = transport._sock
    for step in (transport._deactivate, transport._close_and_finalize):
        with contextlib.suppress(Exception):
            step()
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.close()


def in_order(channel: Any, tag: int) -> bool:
    """Whether `tag` is the next delivery tag of `channel`: RabbitMQ counts up by one.

    Another one is garbage, which must not be acknowledged; the connection ends.
    """
    expected = getattr(channel, "timedblock_tag", 0) + 1
    channel.timedblock_tag = expected
    if tag == expected:
        return True
    channel.connection._terminate_stream(exceptions.InvalidFrameError("a wrong delivery tag"))
    return False
