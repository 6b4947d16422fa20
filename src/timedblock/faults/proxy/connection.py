"""A client's socket, its upstream socket, and the two flows of bytes between them."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .loop import READ, WRITE

if TYPE_CHECKING:
    from .link import ServedLink
    from .toxics.base import Toxic

CHUNK = 1 << 16
#: Bytes of one flow that the relay keeps before it stops reading more.
HIGH_WATER = 1 << 20
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# What comes is read into one buffer: nothing else runs until it was sent on or copied.
_BUFFER = bytearray(CHUNK)
_VIEW = memoryview(_BUFFER)


class Flow:
    """Bytes from one socket of a connection to the other.

    With `toxics` on it they pass through each of them in turn; with none they go straight on.

    Attributes:
        up: to the server (False: to the client).
        begins: the bytes in hand begin a request (``up``) or a reply.
        kept: bytes that toxics hold back.
        ended: no more is to be read.
        finished: the target was told so.
    """

    __slots__ = (
        "_out", "_source", "_target", "_then", "begins", "connection", "ended", "finished", "kept",
        "next", "toxics", "up",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, source: socket.socket, target: socket.socket, up: bool
    ) -> None:
        self.connection = connection
        self.up = up
        self.toxics: tuple[Toxic, ...] = ()
        self.next: dict[Toxic, Toxic | None] = {}
        self.begins = self.ended = self.finished = False
        self.kept = 0
        self._source = source
        self._target = target
        self._out = bytearray()
        self._then: Callable[[], None] | None = None

    def put(self, toxics: Sequence[Toxic]) -> None:
        """Let these act, in this order."""
        new = [one for one in toxics if one not in self.toxics]
        self.toxics = tuple(toxics)
        self.next = dict(zip(toxics, [*toxics[1:], None], strict=False))
        for one in new:
            one.joined(self)

    @property
    def wants_read(self) -> bool:
        """Whether bytes are taken from the source now."""
        return (
            not self.ended
            and len(self._out) + self.kept < HIGH_WATER
            and all(one.reads(self) for one in self.toxics)
        )

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait for the target."""
        return bool(self._out)

    @property
    def is_straight(self) -> bool:
        """Whether what comes may go on without a copy."""
        return not self.toxics and not self._out

    def relay(self) -> None:
        """Read, and send straight on. True while nothing else is wanted."""
        size = self._source.recv_into(_BUFFER)
        if not size:
            self.ended = True
            self.finish()
        else:
            self.connection.last_up = self.up
            try:
                sent = self._target.send(_VIEW[:size])
            except BlockingIOError:
                sent = 0
            if sent == size:
                return
            self._out += _VIEW[sent:size]
        self.connection.update()

    def read(self) -> None:
        """Read, and give it to the first toxic."""
        data = self._source.recv(CHUNK)
        if data:
            self._note_turn()
            if self.toxics:
                self.toxics[0].received(self, data)
            else:
                self.send(data)
        else:
            self.ended = True
            if self.toxics:
                self.toxics[0].ended(self)
            else:
                self.finish()

    def _note_turn(self) -> None:
        """Requests and replies take turns: the first bytes after the other side's begin one."""
        self.begins = self.up is not self.connection.last_up
        self.connection.last_up = self.up

    def send(self, data: bytes) -> None:
        """To the target, as soon as it takes them."""
        if not self._out:
            with contextlib.suppress(BlockingIOError):
                data = data[self._target.send(data) :]
        self._out += data

    def flush(self) -> None:
        """Send what waits for the target."""
        with contextlib.suppress(BlockingIOError):
            del self._out[: self._target.send(self._out)]
        if not self._out and self._then is not None:
            then, self._then = self._then, None
            then()

    def when_sent(self, then: Callable[[], None]) -> None:
        """Once everything given to ``send`` is on its way."""
        if self._out:
            self._then = then
        else:
            then()

    def finish(self) -> None:
        """Pass the end of the stream on."""
        self.when_sent(self._shut)

    def _shut(self) -> None:
        self.finished = True
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)
        self.connection.close_if_finished()


class Connection:
    """The two sockets, what is awaited of them, and how they end.

    Attributes:
        last_up: the way that bytes went last (None: none yet).
    """

    __slots__ = ("_client", "_connecting", "_masks", "_server", "closed", "down", "last_up", "link",
                 "up")  # fmt: skip

    def __init__(self, link: ServedLink, client: socket.socket, server: socket.socket) -> None:
        self.link = link
        self.closed = False
        self.last_up: bool | None = None
        self._client = client
        self._server = server
        self._connecting = True
        self._masks = {client: 0, server: 0}
        self.up = Flow(self, client, server, up=True)
        self.down = Flow(self, server, client, up=False)

    def update(self) -> None:
        """Wait for what the flows want now."""
        if self.closed:
            return
        server = (WRITE * (self.up.wants_write or self._connecting)) | (READ * self.down.wants_read)
        client = (WRITE * self.down.wants_write) | (READ * self.up.wants_read)
        self._watch(self._server, server, self._server_ready)
        self._watch(self._client, client, self._client_ready)

    def _watch(self, one: socket.socket, mask: int, call: Callable[[int], None]) -> None:
        self.link.loop.watch(one.fileno(), self._masks[one], mask, call)
        self._masks[one] = mask

    def _server_ready(self, mask: int) -> None:
        if mask != READ and self._connecting and not self.closed:
            self._connecting = False
            if self._server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.abort()
        self._ready(mask, self.up, self.down)

    def _client_ready(self, mask: int) -> None:
        self._ready(mask, self.down, self.up)

    def _ready(self, mask: int, writes: Flow, reads: Flow) -> None:
        try:
            if mask == READ and reads.is_straight:
                reads.relay()
                return
            # An error or a hang-up is found by whichever of the two is wanted.
            if mask & ~READ and not self.closed and writes.wants_write:
                writes.flush()
            if mask & ~WRITE and not self.closed and reads.wants_read:
                reads.read()
        except BlockingIOError:
            pass
        except OSError:  # either end is gone: so is the other
            self.abort()
        self.update()

    def close_if_finished(self) -> None:
        """Both streams have ended: so has the connection."""
        if self.up.finished and self.down.finished:
            self.close()

    def close(self) -> None:
        """Close both ends."""
        if self.closed:
            return
        for one in (self._client, self._server):
            self._watch(one, 0, self._client_ready)
            one.close()
        self.closed = True
        self.link.forget(self)

    def abort(self) -> None:
        """Close with RST, to both ends."""
        if not self.closed:
            for one in (self._client, self._server):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close()

    def cut(self) -> None:
        """Close in the orderly way. What was sent to us is read first: closing a socket with
        unread bytes would reset it."""
        for one in (self._client, self._server):
            with contextlib.suppress(OSError):
                while not self.closed and one.recv(CHUNK):
                    pass
        self.close()
