"""A small memcached server in a process of its own, for tests and drills without Debian's.

It speaks the classic ASCII protocol over real TCP (IPv4, IPv6), UNIX sockets and TLS, and answers
byte for byte like memcached 1.6.18, which ``tests/servers`` checks. It does not have the meta and
binary protocols, slabs, or persistence::

    with EmbeddedMemcached() as server:
        client = pymemcache.Client(server.address)

By hand: ``python -m timedblock.testing.memcached --listen 127.0.0.1:11211``. It ends when its
standard input does, so it never outlives the process that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import select
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

VERSION = "1.6.18"
MAX_KEY = 250
MAX_ITEM = 1024 * 1024
MAX_LINE = 2048
_MONTH = 60 * 60 * 24 * 30
_U64 = 1 << 64
#: What an item costs beside its key and value: header, cas, the key's NUL and the value's CR LF.
_ITEM_OVERHEAD = 48 + 8 + 1 + 2
_NUMBER = re.compile(rb"[ \t-\r]*([+-]?)([0-9]+)(?:[ \t-\r\0]|$)")

BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
BAD_CHUNK = b"CLIENT_ERROR bad data chunk\r\n"
BAD_EXPTIME = b"CLIENT_ERROR invalid exptime argument\r\n"
BAD_DELTA = b"CLIENT_ERROR invalid numeric delta argument\r\n"
NOT_NUMERIC = b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"
BAD_DELETE = b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"
TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"
ERROR, OK, END, STORED, NOT_STORED, EXISTS, NOT_FOUND, DELETED, TOUCHED, RESET = (
    word + b"\r\n"
    for word in (
        b"ERROR", b"OK", b"END", b"STORED", b"NOT_STORED", b"EXISTS", b"NOT_FOUND", b"DELETED",
        b"TOUCHED", b"RESET",
    )
)  # fmt: skip


class Quit(Exception):
    """The client asked for its connection to be closed."""


class Shutdown(Exception):
    """The client asked for the server to end."""


def _integer(text: bytes, low: int, high: int) -> int | None:
    """A number as C's strto* reads it, or None if it isn't one within the bounds."""
    match = _NUMBER.match(text)
    if match is None:
        return None
    value = int(match[2])
    value = -value if match[1] == b"-" else value
    return value if low <= value <= high else None


def _int32(text: bytes) -> int | None:
    """A long, cut to 32 bits as memcached does."""
    value = _integer(text, -(1 << 63), (1 << 63) - 1)
    return None if value is None else (value + (1 << 31)) % (1 << 32) - (1 << 31)


class Item:
    __slots__ = ("cas", "expires", "flags", "value")

    def __init__(self, value: bytes, flags: int, expires: int, cas: int) -> None:
        self.value = value
        self.flags = flags
        self.expires = expires
        self.cas = cas


class Store:
    """The items and their clock, which ticks in whole seconds from 2 on, like memcached's."""

    def __init__(
        self,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.max_bytes = max_bytes
        self.now = 2
        self._clock = clock
        self._started = clock() - 2
        self._started_wall = int(wall()) - 2
        self._items: dict[bytes, Item] = {}
        self._bytes = 0
        self._cas = 0
        self._flush_at: int | None = None

    def tick(self) -> None:
        """Read the clock; called once for each piece of input."""
        self.now = int(self._clock() - self._started)
        if self._flush_at is not None and self.now >= self._flush_at:
            self.clear()

    def expiry(self, exptime: int) -> int:
        """An exptime of the protocol as an instant of this clock (0: never, 1: long ago)."""
        if exptime == 0:
            return 0
        if exptime < 0:
            return 1
        if exptime > _MONTH:
            return max(1, exptime - self._started_wall)
        return self.now + exptime

    def get(self, key: bytes) -> Item | None:
        item = self._items.get(key)
        if item is not None and item.expires and item.expires <= self.now:
            self.remove(key)
            return None
        return item

    @staticmethod
    def fits(key: bytes, size: int, flags: int) -> bool:
        return _ITEM_OVERHEAD + len(key) + size + (4 if flags else 0) <= MAX_ITEM

    def put(self, key: bytes, value: bytes, flags: int, expires: int) -> None:
        """Store, as the newest of all; the oldest give way when memory is full."""
        self.remove(key)
        self._cas += 1
        self._items[key] = Item(value, flags, expires, self._cas)
        self._bytes += len(key) + len(value) + _ITEM_OVERHEAD
        while self._bytes > self.max_bytes:
            self.remove(next(iter(self._items)))

    def remove(self, key: bytes) -> bool:
        item = self._items.pop(key, None)
        if item is None:
            return False
        self._bytes -= len(key) + len(item.value) + _ITEM_OVERHEAD
        return True

    def clear(self) -> None:
        self._items.clear()
        self._bytes = 0
        self._flush_at = None

    def flush(self, exptime: int) -> None:
        """``flush_all``: at once, or ``exptime`` seconds from now."""
        at = self.expiry(exptime) - 1
        if exptime <= 0 or at <= self.now:
            self.clear()
        else:
            self._flush_at = at

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[tuple[bytes, Item]]:
        return iter(self._items.items())

    @property
    def bytes_used(self) -> int:
        return self._bytes


class Update:
    """A storage command whose data block is still to come: ``set key flags exptime bytes``."""

    __slots__ = ("cas", "command", "expires", "flags", "key", "quiet", "size")

    def __init__(self, command: bytes, key: bytes, quiet: bool) -> None:
        self.command = command
        self.key = key
        self.quiet = quiet
        self.flags = self.expires = self.size = self.cas = 0


class Engine:
    """The commands: tokens in, a reply out. One for each server, shared by its connections."""

    def __init__(self, store: Store, *, allow_shutdown: bool = False, max_conns: int = 4096):
        self.store = store
        self.allow_shutdown = allow_shutdown
        self.max_conns = max_conns
        self.curr_connections = 0
        self.total_connections = 0
        self.started = time.monotonic()
        self.verbosity = 0
        self.counts = dict.fromkeys(
            ("cmd_get", "cmd_set", "cmd_flush", "cmd_touch", "get_hits", "get_misses"), 0
        )
        # Fewest and most tokens, whether `noreply` silences it, and what does it.
        self._commands: dict[bytes, tuple[int, float, bool, Callable[[list[bytes]], bytes]]] = {
            b"get": (2, 1e9, False, self._get),
            b"gets": (2, 1e9, False, self._gets),
            b"bget": (2, 1e9, False, self._get),
            b"gat": (2, 1e9, False, self._gat),
            b"gats": (2, 1e9, False, self._gats),
            b"delete": (2, 4, True, self._delete),
            b"incr": (3, 4, True, self._incr),
            b"decr": (3, 4, True, self._decr),
            b"touch": (3, 4, True, self._touch),
            b"flush_all": (1, 3, True, self._flush_all),
            b"version": (1, 1e9, False, self._version),
            b"verbosity": (2, 4, True, self._verbosity),
            b"cache_memlimit": (2, 3, True, self._cache_memlimit),
            b"stats": (1, 1e9, False, self._stats),
            b"quit": (1, 1e9, False, self._quit),
            b"shutdown": (1, 3, False, self._shutdown),
        }

    def execute(self, tokens: list[bytes]) -> bytes:
        """The reply to a command without a data block."""
        entry = self._commands.get(tokens[0]) if tokens else None
        if entry is None:
            return ERROR
        fewest, most, silenced, command = entry
        if not fewest <= len(tokens) <= most:
            return ERROR
        reply = command(tokens)
        return b"" if silenced and tokens[-1] == b"noreply" else reply

    # Storage commands

    def parse_update(self, tokens: list[bytes]) -> Update | bytes:
        """What a storage command wants, or the reply if it is refused before its data block."""
        cas = tokens[0] == b"cas"
        if not 5 + cas <= len(tokens) <= 6 + cas:
            return ERROR
        update = Update(tokens[0], tokens[1], tokens[-1] == b"noreply")
        flags = _integer(tokens[2], 0, _U64 - 1)
        exptime, size = _int32(tokens[3]), _int32(tokens[4])
        unique = _integer(tokens[5], 0, _U64 - 1) if cas else 0
        bad = None in (flags, exptime, size, unique) or len(update.key) > MAX_KEY
        if bad or size is None or not 0 <= size <= (1 << 31) - 3:
            return b"" if update.quiet else BAD_FORMAT
        assert flags is not None and exptime is not None and unique is not None
        update.flags = flags % (1 << 32)
        update.expires, update.size, update.cas = self.store.expiry(exptime), size, unique
        return update

    def refuse_size(self, update: Update) -> bytes | None:
        """The reply if the data block can't fit. A `set` that fails leaves no old value behind."""
        if self.store.fits(update.key, update.size, update.flags):
            return None
        if update.command == b"set":
            self.store.remove(update.key)
        return b"" if update.quiet else TOO_LARGE

    def update(self, update: Update, value: bytes) -> bytes:
        self.counts["cmd_set"] += 1
        reply = self._store(update, value)
        return b"" if update.quiet else reply

    def _store(self, update: Update, value: bytes) -> bytes:
        command, key, store = update.command, update.key, self.store
        if command == b"set":
            store.put(key, value, update.flags, update.expires)
            return STORED
        old = store.get(key)
        if command == b"cas" and (old is None or old.cas != update.cas):
            return NOT_FOUND if old is None else EXISTS
        if (old is None) != (command == b"add"):
            return NOT_STORED
        if old is not None and command in (b"append", b"prepend"):
            return self._extend(update, old, value)
        store.put(key, value, update.flags, update.expires)
        return STORED

    def _extend(self, update: Update, old: Item, value: bytes) -> bytes:
        whole = old.value + value if update.command == b"append" else value + old.value
        if not self.store.fits(update.key, len(whole), old.flags):
            return NOT_STORED
        self.store.put(update.key, whole, old.flags, old.expires)
        return STORED

    # Retrieval

    def _get(self, tokens: list[bytes]) -> bytes:
        return self._retrieve(tokens[1:], False)

    def _gets(self, tokens: list[bytes]) -> bytes:
        return self._retrieve(tokens[1:], True)

    def _gat(self, tokens: list[bytes]) -> bytes:
        return self._get_and_touch(tokens, False)

    def _gats(self, tokens: list[bytes]) -> bytes:
        return self._get_and_touch(tokens, True)

    def _get_and_touch(self, tokens: list[bytes], with_cas: bool) -> bytes:
        exptime = _int32(tokens[1])
        if exptime is None:
            return BAD_EXPTIME
        return self._retrieve(tokens[2:], with_cas, self.store.expiry(exptime))

    def _retrieve(self, keys: list[bytes], with_cas: bool, touch: int | None = None) -> bytes:
        parts = []
        for key in keys:
            if len(key) > MAX_KEY:
                return BAD_FORMAT
            item = self.store.get(key)
            if item is None:
                continue
            if touch is not None:
                item.expires = touch
            cas = b" %d" % item.cas if with_cas else b""
            parts.append(
                b"VALUE %b %d %d%b\r\n%b\r\n" % (key, item.flags, len(item.value), cas, item.value)
            )
        self._count_gets(len(keys), len(parts))
        parts.append(END)
        return b"".join(parts)

    def _count_gets(self, asked: int, hits: int) -> None:
        counts = self.counts
        counts["cmd_get"] += asked
        counts["get_hits"] += hits
        counts["get_misses"] += asked - hits

    # The other commands

    def _delete(self, tokens: list[bytes]) -> bytes:
        if len(tokens) > 2:
            quiet, zero = tokens[-1] == b"noreply", tokens[2] == b"0"
            if not ((zero or quiet) if len(tokens) == 3 else (zero and quiet)):
                return BAD_DELETE
        if len(tokens[1]) > MAX_KEY:
            return BAD_FORMAT
        if self.store.get(tokens[1]) is None:
            return NOT_FOUND
        self.store.remove(tokens[1])
        return DELETED

    def _incr(self, tokens: list[bytes]) -> bytes:
        return self._arithmetic(tokens, 1)

    def _decr(self, tokens: list[bytes]) -> bytes:
        return self._arithmetic(tokens, -1)

    def _arithmetic(self, tokens: list[bytes], sign: int) -> bytes:
        key = tokens[1]
        if len(key) > MAX_KEY:
            return BAD_FORMAT
        delta = _integer(tokens[2], 0, _U64 - 1)
        if delta is None:
            return BAD_DELTA
        item = self.store.get(key)
        if item is None:
            return NOT_FOUND
        old = _integer(item.value, 0, _U64 - 1)
        if old is None:
            return NOT_NUMERIC
        result = b"%d" % ((old + delta) % _U64 if sign > 0 else max(0, old - delta))
        # A shorter number is written in place and padded, as memcached's is.
        self.store.put(key, result.ljust(len(item.value)), item.flags, item.expires)
        return result + b"\r\n"

    def _touch(self, tokens: list[bytes]) -> bytes:
        if len(tokens[1]) > MAX_KEY:
            return BAD_FORMAT
        exptime = _int32(tokens[2])
        if exptime is None:
            return BAD_EXPTIME
        self.counts["cmd_touch"] += 1
        item = self.store.get(tokens[1])
        if item is None:
            return NOT_FOUND
        item.expires = self.store.expiry(exptime)
        return TOUCHED

    def _flush_all(self, tokens: list[bytes]) -> bytes:
        self.counts["cmd_flush"] += 1
        if len(tokens) == 1 or (len(tokens) == 2 and tokens[1] == b"noreply"):
            self.store.flush(0)
            return OK
        exptime = _int32(tokens[1])
        if exptime is None:
            return BAD_EXPTIME
        self.store.flush(exptime)
        return OK

    def _version(self, tokens: list[bytes]) -> bytes:
        return b"VERSION %b\r\n" % VERSION.encode()

    def _verbosity(self, tokens: list[bytes]) -> bytes:
        level = _integer(tokens[1], 0, (1 << 32) - 1)
        if level is None:
            return BAD_FORMAT
        self.verbosity = min(level, 2)
        return OK

    def _cache_memlimit(self, tokens: list[bytes]) -> bytes:
        megabytes = _integer(tokens[1], 0, (1 << 32) - 1)
        if megabytes is None:
            return ERROR
        if megabytes < 8:
            return b"MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m\r\n"
        self.store.max_bytes = megabytes << 20
        return OK

    def _quit(self, tokens: list[bytes]) -> bytes:
        raise Quit

    def _shutdown(self, tokens: list[bytes]) -> bytes:
        if not self.allow_shutdown:
            return b"ERROR: shutdown not enabled\r\n"
        raise Shutdown

    # Statistics

    def _stats(self, tokens: list[bytes]) -> bytes:
        kind = tokens[1] if len(tokens) > 1 else b""
        if kind == b"reset":
            self.counts = dict.fromkeys(self.counts, 0)
            return RESET
        if kind == b"cachedump":
            return self._cachedump(tokens)
        tables: dict[bytes, Callable[[], dict[str, object]]] = {
            b"": self._general,
            b"settings": self._settings,
            b"items": self._items,
            b"slabs": lambda: {},
            b"sizes": lambda: {"sizes_status": "disabled"},
        }
        table = tables.get(kind)
        if table is None:
            return ERROR
        lines = [f"STAT {name} {value}\r\n".encode() for name, value in table().items()]
        return b"".join([*lines, END])

    def _cachedump(self, tokens: list[bytes]) -> bytes:
        if len(tokens) < 4:
            return b"CLIENT_ERROR bad command line\r\n"
        slab, limit = (_integer(token, 0, (1 << 32) - 1) for token in tokens[2:4])
        if slab is None or limit is None:
            return BAD_FORMAT
        items = list(self.store) if slab == 1 else []
        wall = int(time.time()) - self.store.now
        lines = [
            b"ITEM %b [%d b; %d s]\r\n"
            % (key, len(item.value), wall + item.expires if item.expires else 0)
            for key, item in items[: limit or None]
        ]
        return b"".join([*lines, END])

    def _general(self) -> dict[str, object]:
        usage = os.times()
        return {
            "pid": os.getpid(),
            "uptime": int(time.monotonic() - self.started),
            "time": int(time.time()),
            "version": VERSION,
            "pointer_size": 64,
            "rusage_user": f"{usage.user:.6f}",
            "rusage_system": f"{usage.system:.6f}",
            "max_connections": self.max_conns,
            "curr_connections": self.curr_connections,
            "total_connections": self.total_connections,
            **self.counts,
            "limit_maxbytes": self.store.max_bytes,
            "threads": 1,
            "bytes": self.store.bytes_used,
            "curr_items": len(self.store),
        }

    def _settings(self) -> dict[str, object]:
        return {
            "maxbytes": self.store.max_bytes,
            "maxconns": self.max_conns,
            "verbosity": self.verbosity,
            "evictions": "on",
            "shutdown_command": "yes" if self.allow_shutdown else "no",
            "num_threads": 1,
            "cas_enabled": "yes",
            "binding_protocol": "ascii",
            "item_size_max": MAX_ITEM,
            "flush_enabled": "yes",
        }

    def _items(self) -> dict[str, object]:
        return {"items:1:number": len(self.store)} if len(self.store) else {}


_STORAGE = frozenset((b"set", b"add", b"replace", b"append", b"prepend", b"cas"))


#: Bytes of the newest replies past which they are sent before the next command is looked at.
_BATCH = 1 << 16


class Session(asyncio.Protocol):
    """One connection: bytes into commands, in order, pipelined ones answered together."""

    def __init__(self, engine: Engine, on_shutdown: Callable[[], None]) -> None:
        self._engine = engine
        self._on_shutdown = on_shutdown
        self._transport: asyncio.Transport | None = None
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

    def data_received(self, data: bytes) -> None:
        self._buffer += data
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


# The process


def _end_with_stdin(end: Callable[[], object]) -> None:
    """Call ``end`` when standard input ends: whoever started us is gone."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            end()

    threading.Thread(target=wait, daemon=True, name="stdin-watch").start()


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    try:
        return host.strip("[]"), int(port)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT") from None


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="timedblock.testing.memcached", description="A small memcached for tests."
    )
    parser.add_argument("--listen", type=_host_port, metavar="HOST:PORT", help="port 0: any")
    parser.add_argument("--unix", metavar="PATH", help="listen on a UNIX socket")
    parser.add_argument("--tls-cert", metavar="FILE", help="serve TLS with this certificate")
    parser.add_argument("--tls-key", metavar="FILE", help="its key")
    parser.add_argument("--memory", type=int, default=64, metavar="MB", help="default 64")
    parser.add_argument("--enable-shutdown", action="store_true", help="allow `shutdown`")
    options = parser.parse_args(argv)
    if options.listen is None and options.unix is None:
        options.listen = ("127.0.0.1", 11211)
    return options


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if options.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.tls_cert, options.tls_key)
    return context


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    engine = Engine(Store(options.memory << 20), allow_shutdown=options.enable_shutdown)

    def session() -> Session:
        return Session(engine, done.set)

    tls = _tls(options)
    report: dict[str, object] = {"pid": os.getpid()}
    servers = []
    if options.listen is not None:
        host, port = options.listen
        server = await loop.create_server(session, host, port, backlog=1024, ssl=tls)
        report["address"] = server.sockets[0].getsockname()[:2]
        servers.append(server)
    if options.unix is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(options.unix)
        servers.append(await loop.create_unix_server(session, options.unix, backlog=1024, ssl=tls))
        report["unix"] = options.unix
    _end_with_stdin(lambda: loop.call_soon_threadsafe(done.set))
    print(json.dumps(report), flush=True)
    await done.wait()
    for server in servers:
        server.close()


def main(argv: list[str] | None = None) -> int:
    """Serve until standard input ends. The first line of output is JSON: ``pid``, ``address``
    (host and port), ``unix`` (path)."""
    options = _arguments(argv)
    # Ctrl-C is for whoever started us; our standard input ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve(options))
    if options.unix is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(options.unix)
    return 0


class EmbeddedMemcached:
    """The server above in a process of its own, for the time of a ``with`` block, or between
    ``start`` and ``stop``. ``port`` 0 takes a free one, and keeps it when started again.

    ``unix`` is the path of a UNIX socket to listen on instead of TCP. ``tls_cert`` and
    ``tls_key`` are files; ``memory`` is in megabytes."""

    START_LIMIT = 10.0

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        unix: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        memory: int = 64,
        enable_shutdown: bool = False,
    ) -> None:
        self._host = host
        self._port = port
        self._unix = None if unix is None else os.fspath(unix)
        options: list[str] = ["--memory", str(memory)]
        if tls_cert is not None:
            options += ["--tls-cert", os.fspath(tls_cert)]
        if tls_key is not None:
            options += ["--tls-key", os.fspath(tls_key)]
        if enable_shutdown:
            options.append("--enable-shutdown")
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> tuple[str, int] | str:
        """Where it listens: (host, port), or the path of its UNIX socket."""
        return (self._host, self._port) if self._unix is None else self._unix

    @property
    def pid(self) -> int:
        """The process. RuntimeError if it isn't running."""
        if self._process is None:
            raise RuntimeError("the embedded memcached is not running")
        return self._process.pid

    def start(self) -> EmbeddedMemcached:
        """Start the process; returns once it listens. RuntimeError if it can't."""
        if self._process is not None:
            raise RuntimeError("the embedded memcached is already running")
        where = (
            ["--unix", self._unix]
            if self._unix is not None
            else ["--listen", f"{self._host}:{self._port}"]
        )
        # -W: whoever imports this module from its package makes runpy warn about it.
        command = [sys.executable, "-W", "ignore::RuntimeWarning:runpy"]
        command += ["-m", "timedblock.testing.memcached", *where, *self._options]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_child_environment()
        )
        try:
            report = self._read_report(self._process)
        except BaseException:
            self.stop()
            raise
        if "address" in report:
            self._port = report["address"][1]
        return self

    def _read_report(self, process: subprocess.Popen[bytes]) -> dict[str, list[int]]:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], self.START_LIMIT)
        line = process.stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(f"the embedded memcached did not start at {self.address}")
        report: dict[str, list[int]] = json.loads(line)
        return report

    def stop(self) -> None:
        """End the process; harmless when it isn't running."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:  # it may have been stopped by a signal
            process.kill()
            process.wait()
        process.stdout.close()

    def kill(self) -> None:
        """End the process as a crash would; ``start`` brings it back, empty, at its address."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.stop()

    def __enter__(self) -> EmbeddedMemcached:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _child_environment() -> dict[str, str]:
    """Ours, plus where this package is, which need not be installed."""
    root = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": root if not before else root + os.pathsep + before}


if __name__ == "__main__":
    sys.exit(main())
