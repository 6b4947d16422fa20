"""What the server does with a command (L5)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from .protocol import (
    BAD_DELETE,
    BAD_DELTA,
    BAD_EXPTIME,
    BAD_FORMAT,
    DELETED,
    END,
    ERROR,
    EXISTS,
    MAX_KEY,
    NOT_FOUND,
    NOT_NUMERIC,
    NOT_STORED,
    OK,
    RESET,
    STORED,
    TOO_LARGE,
    TOUCHED,
    U64,
    VERSION,
    Quit,
    Shutdown,
    int32,
    integer,
)
from .store import MAX_ITEM, Item, Store


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
        flags = integer(tokens[2], 0, U64 - 1)
        exptime, size = int32(tokens[3]), int32(tokens[4])
        unique = integer(tokens[5], 0, U64 - 1) if cas else 0
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
        exptime = int32(tokens[1])
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
        delta = integer(tokens[2], 0, U64 - 1)
        if delta is None:
            return BAD_DELTA
        item = self.store.get(key)
        if item is None:
            return NOT_FOUND
        old = integer(item.value, 0, U64 - 1)
        if old is None:
            return NOT_NUMERIC
        result = b"%d" % ((old + delta) % U64 if sign > 0 else max(0, old - delta))
        # A shorter number is written in place and padded, as memcached's is.
        self.store.put(key, result.ljust(len(item.value)), item.flags, item.expires)
        return result + b"\r\n"

    def _touch(self, tokens: list[bytes]) -> bytes:
        if len(tokens[1]) > MAX_KEY:
            return BAD_FORMAT
        exptime = int32(tokens[2])
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
        exptime = int32(tokens[1])
        if exptime is None:
            return BAD_EXPTIME
        self.store.flush(exptime)
        return OK

    def _version(self, tokens: list[bytes]) -> bytes:
        return b"VERSION %b\r\n" % VERSION.encode()

    def _verbosity(self, tokens: list[bytes]) -> bytes:
        level = integer(tokens[1], 0, (1 << 32) - 1)
        if level is None:
            return BAD_FORMAT
        self.verbosity = min(level, 2)
        return OK

    def _cache_memlimit(self, tokens: list[bytes]) -> bytes:
        megabytes = integer(tokens[1], 0, (1 << 32) - 1)
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
        slab, limit = (integer(token, 0, (1 << 32) - 1) for token in tokens[2:4])
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
