"""`Client`: pymemcache's, with one total limit on every call."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pymemcache.client import base
from pymemcache.exceptions import MemcacheIllegalInputError, MemcacheUnexpectedCloseError

from .. import errors as _errors
from . import replies
from .exchange import Exchanging
from .policies import size_class

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

    from pymemcache.client.base import Key

    from ..net.wire import Wire


class Client(Exchanging):
    """A drop-in for `pymemcache.client.base.Client` on which no call can hang; thread-safe.

    Takes pymemcache's arguments, and four of its own. No I/O until the first use. `timeout` is
    the ceiling of a call with its connect (seconds; None: 1), `connect_timeout` that of the
    connect within it. `default_noreply` is False here, so that True from `set` means stored.

    Args:
        name: what the blocks are called: ``name.get``; give each client of one server with other
            breaker settings its own.
        policy: for every operation but the administrative ones, which are Fixed at `timeout` or
            10 s.
        on_unavailable: the value, or a callable without arguments, used where there is no answer.
        max_pool_size: connections at most; callers wait for one within their deadline.

    Raises:
        timedblock.Unavailable: by every operation, when there is no answer within its limit.
        pymemcache's MemcacheClientError and MemcacheServerError, unchanged.
        ValueError, TypeError: at construction, naming the bad value.
    """

    # -- reading ----------------------------------------------------------------------------

    def get(self, key: Key, default: Any = None) -> Any:
        """See pymemcache's `Client.get`."""
        wire_key = self._wire_key(key)
        if self._own_parser:
            return self._get_with_own_parser([key], b"get").get(key, default)
        try:
            found = self._exchange("get", b"get " + wire_key + b"\r\n", replies.one_value, wire_key)
        except _errors.Unavailable as error:
            return self._unavailable(error, default)
        except Exception:
            if self.ignore_exc:
                return default
            raise
        if found is None:
            return default
        return self.serde.deserialize(key, found[1], int(found[0]))

    def gets(self, key: Key, default: Any = None, cas_default: Any = None) -> tuple[Any, Any]:
        """See pymemcache's `Client.gets`."""
        found = self._fetch("gets", b"gets ", [key], 5)
        return found.get(key, (default, cas_default))  # type: ignore[no-any-return]

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """See pymemcache's `Client.get_many`."""
        if not keys:
            return {}
        return self._fetch("get_many", b"get ", keys, 4)

    get_multi = get_many

    def gets_many(self, keys: Iterable[Key]) -> dict[Key, tuple[Any, Any]]:
        """See pymemcache's `Client.gets_many`."""
        if not keys:
            return {}
        return self._fetch("gets_many", b"gets ", keys, 5)

    def _fetch(
        self, operation: str, verb: bytes, keys: Iterable[Key], fields: int
    ) -> dict[Key, Any]:
        keys = list(keys)
        asked = self._asked(keys)
        if self._own_parser:
            return self._get_with_own_parser(keys, verb.strip())
        request = verb + b" ".join(asked) + b"\r\n"
        try:
            key = size_class(len(asked))
            found = self._exchange(operation, request, replies.values, (asked, fields), key)
        except _errors.Unavailable as error:
            value = self._unavailable(error, {})
            return value if isinstance(value, dict) else {}
        except Exception:
            if self.ignore_exc:
                return {}
            raise
        return self._found(asked, fields, found)

    def _asked(self, keys: list[Key]) -> dict[bytes, Key]:
        """The caller's key of each key as it is sent."""
        return dict(zip(map(self._wire_key, keys), keys, strict=True))

    def _found(
        self,
        asked: Mapping[bytes, Key],
        fields: int,
        found: Iterable[tuple[bytes, bytes, bytes, bytes]],
    ) -> dict[Key, Any]:
        """The values that `replies.values` read, by the caller's keys."""
        deserialize = self.serde.deserialize
        if fields == 4:
            return {
                asked[key]: deserialize(asked[key], value, int(flags))
                for key, flags, value, _ in found
            }
        return {
            asked[key]: (deserialize(asked[key], value, int(flags)), cas)
            for key, flags, value, cas in found
        }

    def _get_with_own_parser(self, keys: list[Key], verb: bytes) -> dict[Key, Any]:
        """For a subclass with an `_extract_value` of its own: pymemcache's reader on our wire."""
        asked = {self._wire_key(key): key for key in keys}
        request = verb + b" " + b" ".join(asked) + b"\r\n"
        found: dict[Key, Any] = {}

        def read(
            wire: Wire, until: float, asked: Mapping[bytes, Key], buffer: bytes
        ) -> dict[Key, Any]:
            with self._lend(wire, until):
                while True:
                    while b"\r\n" not in buffer:
                        buffer += wire.read(until)
                    head, _, buffer = buffer.partition(b"\r\n")
                    replies.raise_errors(head, verb)
                    if head == b"END":
                        return found
                    key, value, buffer = self._extract_value(
                        verb == b"gets", head, buffer, dict(asked), list(asked)
                    )
                    found[key] = value

        try:
            self._exchange("get", request, read, asked)
            return found
        except Exception:
            if self.ignore_exc:
                return {}
            raise

    @contextlib.contextmanager
    def _lend(self, wire: Wire, until: float) -> Iterator[None]:
        """Let a subclass read from ``self.sock`` in a call, within its limit."""
        self._pending.sock = wire.sock
        with contextlib.suppress(AttributeError):
            wire.sock.until = until
        try:
            yield
        finally:
            self._pending.sock = None
            wire.settle()

    # -- writing ----------------------------------------------------------------------------

    def _store(
        self,
        verb: str,
        values: Mapping[Key, Any],
        expire: int,
        noreply: bool | None,
        flags: int | None,
        cas: bytes | None = None,
        *,
        operation: str | None = None,
    ) -> dict[Key, bool | None]:
        if noreply is None:
            noreply = self.default_noreply
        command = verb.encode()
        request = self._storing(command, values, expire, noreply, flags, cas)
        if not request:
            return {}
        operation = operation or verb
        size = size_class(len(values), len(request))
        try:
            if noreply:
                self._exchange(operation, request, None, None, size)
                return dict.fromkeys(values, True)
            expected = (command, len(values), base.VALID_STORE_RESULTS[command])
            lines = self._exchange(operation, request, replies.lines, expected, size)
        except _errors.Unavailable as error:
            value = self._fall_back(error)
            return dict.fromkeys(values, value)
        return {key: replies.STORED[line] for key, line in zip(values, lines, strict=True)}

    def _storing(
        self,
        command: bytes,
        values: Mapping[Key, Any],
        expire: int,
        noreply: bool | None,
        flags: int | None,
        cas: bytes | None = None,
    ) -> bytes:
        """The request that stores `values`."""
        tail = b" " + self._check_integer(expire, "expire") + b" "
        end = (b"" if cas is None else b" " + cas) + (b" noreply\r\n" if noreply else b"\r\n")
        parts: list[bytes] = []
        for key, value in values.items():
            wire_key = self._wire_key(key)
            data, data_flags = self._serialize(key, value, flags)
            number = str(data_flags).encode(self.encoding)
            size = str(len(data)).encode(self.encoding)
            parts += (command, b" ", wire_key, b" ", number, tail, size, end, data, b"\r\n")
        return b"".join(parts)

    def _serialize(self, key: Key, value: Any, flags: int | None) -> tuple[bytes, int]:
        data, data_flags = self.serde.serialize(key, value)
        if not isinstance(data, bytes):
            try:
                data = str(data).encode(self.encoding)
            except UnicodeEncodeError as error:
                raise MemcacheIllegalInputError(
                    f"Data values must be binary-safe: {error}"
                ) from error
        return data, data_flags if flags is None else flags

    def set(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool | None:
        """See pymemcache's `Client.set`; True means stored (unless `noreply`)."""
        return self._store("set", {key: value}, expire, noreply, flags)[key]

    def set_many(
        self,
        values: dict[Key, Any],
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> list[Key]:
        """See pymemcache's `Client.set_many`."""
        stored = self._store("set", values, expire, noreply, flags, operation="set_many")
        return [key for key, done in stored.items() if not done]

    set_multi = set_many

    def add(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool:
        """See pymemcache's `Client.add`."""
        return self._store("add", {key: value}, expire, noreply, flags)[key]  # type: ignore[return-value]

    def replace(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool:
        """See pymemcache's `Client.replace`."""
        return self._store("replace", {key: value}, expire, noreply, flags)[key]  # type: ignore[return-value]

    def append(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool:
        """See pymemcache's `Client.append`."""
        return self._store("append", {key: value}, expire, noreply, flags)[key]  # type: ignore[return-value]

    def prepend(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool | None:
        """See pymemcache's `Client.prepend`."""
        return self._store("prepend", {key: value}, expire, noreply, flags)[key]

    def cas(
        self,
        key: Key,
        value: Any,
        cas: Any,
        expire: int = 0,
        noreply: bool = False,
        flags: int | None = None,
    ) -> bool | None:
        """See pymemcache's `Client.cas`."""
        return self._store("cas", {key: value}, expire, noreply, flags, self._check_cas(cas))[key]

    # -- everything else --------------------------------------------------------------------

    def _command(
        self,
        operation: str,
        commands: list[bytes],
        valid: Container[bytes] | None,
        noreply: bool | None = False,
    ) -> list[bytes] | None:
        """Send commands of one reply line each; None when nobody waits for them."""
        end = b" noreply\r\n" if noreply else b"\r\n"
        request = end.join(commands) + end
        key = size_class(len(commands))
        if noreply:
            self._exchange(operation, request, None, None, key)
            return None
        verb = commands[0].partition(b" ")[0]
        expected = (verb, len(commands), valid)
        lines: list[bytes] = self._exchange(operation, request, replies.lines, expected, key)
        return lines

    def _done(
        self, operation: str, commands: list[bytes], done: bytes, noreply: bool | None
    ) -> Any:
        """Whether the (last) reply is `done`; a fallback where the user gave one."""
        if noreply is None:
            noreply = self.default_noreply
        try:
            lines = self._command(operation, commands, (done, b"NOT_FOUND"), noreply)
        except _errors.Unavailable as error:
            return self._fall_back(error)
        return lines is None or lines[-1] == done

    def delete(self, key: Key, noreply: bool | None = None) -> bool:
        """See pymemcache's `Client.delete`."""
        command = b"delete " + self._wire_key(key)
        return self._done("delete", [command], b"DELETED", noreply)  # type: ignore[no-any-return]

    def delete_many(self, keys: Iterable[Key], noreply: bool | None = None) -> bool:
        """See pymemcache's `Client.delete_many`."""
        commands = [b"delete " + self._wire_key(key) for key in keys]
        if commands:
            self._done("delete_many", commands, b"DELETED", noreply)
        return True

    delete_multi = delete_many

    def incr(self, key: Key, value: int, noreply: bool | None = False) -> int | None:
        """See pymemcache's `Client.incr`."""
        return self._count("incr", key, value, noreply)

    def decr(self, key: Key, value: int, noreply: bool | None = False) -> int | None:
        """See pymemcache's `Client.decr`."""
        return self._count("decr", key, value, noreply)

    def _count(self, verb: str, key: Key, value: int, noreply: bool | None) -> int | None:
        wire_key = self._wire_key(key)
        command = b" ".join((verb.encode(), wire_key, self._check_integer(value, "value")))
        try:
            lines = self._command(verb, [command], None, noreply)
        except _errors.Unavailable as error:
            return self._fall_back(error)  # type: ignore[no-any-return]
        if lines is None or lines[0] == b"NOT_FOUND":
            return None
        return int(lines[0])

    def touch(self, key: Key, expire: int = 0, noreply: bool | None = None) -> bool:
        """See pymemcache's `Client.touch`."""
        wire_key = self._wire_key(key)
        command = b" ".join((b"touch", wire_key, self._check_integer(expire, "expire")))
        return self._done("touch", [command], b"TOUCHED", noreply)  # type: ignore[no-any-return]

    def flush_all(self, delay: int = 0, noreply: bool | None = None) -> bool:
        """See pymemcache's `Client.flush_all`."""
        command = b"flush_all " + self._check_integer(delay, "delay")
        return self._done("flush_all", [command], b"OK", noreply)  # type: ignore[no-any-return]

    def stats(self, *args: Any) -> dict[bytes, Any]:
        """See pymemcache's `Client.stats`."""
        words = [self.check_key(word, b"") for word in args]
        request = b" ".join([b"stats", *words]) + b"\r\n"
        try:
            result: dict[bytes, Any] = self._exchange(
                "stats", request, replies.statistics, b"stats"
            )
        except _errors.Unavailable as error:
            return self._unavailable(error, {})  # type: ignore[no-any-return]
        except Exception:
            if self.ignore_exc:
                return {}
            raise
        for key, value in result.items():
            with contextlib.suppress(Exception):
                result[key] = base.STAT_TYPES.get(key, int)(value)
        return result

    def cache_memlimit(self, memlimit: int) -> bool:
        """See pymemcache's `Client.cache_memlimit`."""
        command = b"cache_memlimit " + self._check_integer(memlimit, "memlimit")
        self._command("cache_memlimit", [command], (b"OK",))
        return True

    def version(self) -> bytes:
        """See pymemcache's `Client.version`."""
        version: bytes = self._exchange("version", b"version\r\n", replies.version)
        return version

    def raw_command(self, command: str | bytes, end_tokens: str | bytes = "\r\n") -> bytes:
        """See pymemcache's `Client.raw_command`."""
        encoding = "utf8" if self.allow_unicode_keys else "ascii"
        if isinstance(command, str):
            command = command.encode(encoding)
        if isinstance(end_tokens, str):
            end_tokens = end_tokens.encode(encoding)
        request = command + b"\r\n"
        reply: bytes = self._exchange(
            "raw_command", request, replies.segment, (command, end_tokens)
        )
        return reply

    def quit(self) -> None:
        """See pymemcache's `Client.quit`."""
        self._exchange("quit", b"quit\r\n", None)
        self.close()

    def shutdown(self, graceful: bool = False) -> None:
        """See pymemcache's `Client.shutdown`."""
        with contextlib.suppress(MemcacheUnexpectedCloseError):  # that is how it answers
            self._command("shutdown", [b"shutdown graceful" if graceful else b"shutdown"], (b"OK",))
