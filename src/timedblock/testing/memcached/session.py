"""One connection of the server (L5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .engine import Engine
from .protocol import BAD_CHUNK, MAX_LINE, Quit, Shutdown

_STORAGE = frozenset((b"set", b"add", b"replace", b"append", b"prepend", b"cas"))
#: Bytes of the newest replies past which they are sent before the next command is looked at.
_BATCH = 1 << 16


class Session(asyncio.BufferedProtocol):
    """One connection: bytes into commands, in order, pipelined ones answered together.

    Reads into a buffer of its own: what asyncio allocates for each read of a plain protocol,
    256 kB, comes from the kernel and goes back to it, and costs more than the command does."""

    def __init__(self, engine: Engine, on_shutdown: Callable[[], None]) -> None:
        self._engine = engine
        self._on_shutdown = on_shutdown
        self._transport: asyncio.Transport | None = None
        self._received = memoryview(bytearray(_BATCH))
        self._buffer = bytearray()
        self._needed = 0  # bytes in the buffer before it is worth another look
        self._swallow = 0  # bytes of a refused data block still to come
        self._after_swallow = b""
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._engine.curr_connections += 1
        self._engine.total_connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.curr_connections -= 1

    def pause_writing(self) -> None:
        """A client that doesn't read its replies isn't read either."""
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        if self._transport is not None:
            self._work()
        if self._transport is not None and not self._paused:
            self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._received  # a view: under TLS, asyncio writes into slices of it

    def buffer_updated(self, nbytes: int) -> None:
        self._buffer += self._received[:nbytes]
        if len(self._buffer) >= self._needed:
            self._work()

    def _work(self) -> None:
        """Answer what is here, a batch of replies at a time, for as long as they are read."""
        assert self._transport is not None
        self._engine.store.tick()
        while self._buffer and not self._paused:
            data = bytes(self._buffer)
            self._buffer.clear()
            replies: list[bytes] = []
            try:
                done = self._consume(data, replies)
            except Quit:
                self._transport.write(b"".join(replies))
                self._transport.close()
                return
            except Shutdown:
                self._on_shutdown()
                return
            self._buffer += data[done:]
            self._transport.write(b"".join(replies))
            if not done:
                return

    def _consume(self, data: bytes, replies: list[bytes]) -> int:
        """Do every whole command in ``data``; returns where the rest begins."""
        position, size = 0, len(data)
        self._needed = 0
        while position < size and sum(map(len, replies[-8:])) < _BATCH:
            if self._swallow:
                position += self._swallow_some(size - position, replies)
                continue
            newline = data.find(b"\n", position)
            if newline < 0:
                self._check_line(data[position:])
                break
            tokens = self._tokens(data[position:newline])
            if tokens and tokens[0] in _STORAGE:
                end = self._storage(data, newline + 1, tokens, replies)
                if end < 0:
                    self._needed = -end - position
                    break
                position = end
            else:
                position = newline + 1
                replies.append(self._engine.execute(tokens))
        return position

    @staticmethod
    def _tokens(line: bytes) -> list[bytes]:
        if line.endswith(b"\r"):
            line = line[:-1]
        if b"\0" in line:
            line = line[: line.index(b"\0")]
        tokens = line.split(b" ")
        return [token for token in tokens if token] if b"" in tokens else tokens

    def _storage(self, data: bytes, start: int, tokens: list[bytes], replies: list[bytes]) -> int:
        """One storage command whose data block begins at ``start``. Returns where it ends, or,
        if the block isn't all here, minus where it will."""
        engine = self._engine
        update = engine.parse_update(tokens)
        if isinstance(update, bytes):
            replies.append(update)
            return start
        refused = engine.refuse_size(update)
        if refused is not None:
            self._swallow, self._after_swallow = update.size + 2, refused
            return start
        end = start + update.size + 2
        if end > len(data):
            return -end
        if data[end - 2 : end] == b"\r\n":
            replies.append(engine.update(update, data[start : end - 2]))
        else:
            replies.append(b"" if update.quiet else BAD_CHUNK)
        return end

    def _swallow_some(self, available: int, replies: list[bytes]) -> int:
        taken = min(self._swallow, available)
        self._swallow -= taken
        if not self._swallow:
            replies.append(self._after_swallow)
        return taken

    @staticmethod
    def _check_line(line: bytes) -> None:
        """Only a `get` of many keys may be longer than a line should be."""
        if len(line) > MAX_LINE and not line.lstrip(b" ").startswith((b"get ", b"gets ")):
            raise Quit
