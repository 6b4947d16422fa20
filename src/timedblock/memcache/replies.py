"""Reads memcached's replies: a reply that can't belong to the request is never a value.

Each reader takes the bytes of a first recv, reads on within the deadline, and returns the parsed
reply; bytes past the end of the reply mean that request and reply are out of step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymemcache.exceptions import (
    MemcacheClientError,
    MemcacheServerError,
    MemcacheUnknownCommandError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from ..net.wire import Wire

    #: (wire, until, what is expected, the first bytes of the reply) -> the parsed reply
    Reader = Callable[[Wire, float, Any, bytes], Any]

STORED: dict[bytes, bool | None] = {
    b"STORED": True,
    b"NOT_STORED": False,
    b"NOT_FOUND": None,
    b"EXISTS": False,
}
#: memcached's way to say that the caller's value is the problem, not the server
_TOO_LARGE = b"object too large for cache"
_ERRORS = (b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR")


class Garbled(ConnectionError):
    """Bytes that no reply to this request can be. The text names their kind, never the bytes."""


class ServerUnwell(Exception):
    """Carries memcached's SERVER_ERROR through the call machine: unwell, and passed unchanged."""

    def __init__(self, error: MemcacheServerError) -> None:
        super().__init__("SERVER_ERROR")
        self.error = error


class Refused(Exception):
    """Carries memcached's logical error (an answer) through the call machine."""

    def __init__(self, error: Exception) -> None:
        super().__init__("refused")
        self.error = error


def raise_errors(line: bytes, command: bytes) -> None:
    """Raise what an error line says, as pymemcache would; return for any other line."""
    if not line.startswith(_ERRORS):
        return
    text = line[line.find(b" ") + 1 :]
    if line.startswith(b"SERVER_ERROR"):
        error = MemcacheServerError(text)
        raise Refused(error) if text.startswith(_TOO_LARGE) else ServerUnwell(error)
    if line.startswith(b"CLIENT_ERROR"):
        raise Refused(MemcacheClientError(text))
    raise Refused(MemcacheUnknownCommandError(command))


def lines(
    wire: Wire, until: float, expected: tuple[bytes, int, Container[bytes] | None], data: bytes
) -> list[bytes]:
    """The reply lines for (command, how many, what they may be; None: a number or NOT_FOUND)."""
    command, count, valid = expected
    if count == 1 and valid is not None and data[:-2] in valid and data[-2:] == b"\r\n":
        return [data[:-2]]
    while data.count(b"\r\n") < count:
        _check_errors(data, command)
        data += wire.read(until)
    found = data.split(b"\r\n")
    for one in found[:count]:
        if valid is not None and one in valid:
            continue
        raise_errors(one, command)
        if valid is not None or not (one.isdigit() or one == b"NOT_FOUND"):
            raise Garbled("no reply to this command")
    if len(found) != count + 1 or found[count]:
        raise Garbled("bytes after the end of the reply")
    return found[:count]


def version(wire: Wire, until: float, expected: None, data: bytes) -> bytes:
    """The text of a VERSION line."""
    while not data.endswith(b"\r\n"):
        data += wire.read(until)
    raise_errors(data[:-2], b"version")
    before, _, after = data[:-2].partition(b" ")
    if before != b"VERSION" or b"\r\n" in after:
        raise Garbled("no version")
    return after


def _check_errors(data: bytes, command: bytes) -> None:
    """An error may end the replies early: fewer lines come than were asked for."""
    if data.endswith(b"\r\n"):
        for one in data[:-2].split(b"\r\n"):
            raise_errors(one, command)


def segment(wire: Wire, until: float, expected: tuple[bytes, bytes], data: bytes) -> bytes:
    """Everything up to a token, for (command, token); what follows is dropped with the wire."""
    command, token = expected
    while True:
        end = data.find(token) if token else -1
        if end >= 0:
            raise_errors(data[:end], command)
            if len(data) != end + len(token):
                wire.finished = True
            return data[:end]
        data += wire.read(until)


def one_value(wire: Wire, until: float, key: bytes, data: bytes) -> tuple[bytes, bytes] | None:
    """(flags, value) of a ``get`` of one key, or None for a miss."""
    if data == b"END\r\n":
        return None
    while True:
        end = data.find(b"\r\n")
        if end >= 0:
            break
        if len(data) > 2048:
            raise Garbled("no end of a line")
        data += wire.read(until)
    head = data[:end]
    if head == b"END":
        if len(data) != 5:
            raise Garbled("bytes after the end of the reply")
        return None
    raise_errors(head, b"get")
    fields = head.split(b" ")
    if len(fields) != 4 or fields[0] != b"VALUE" or fields[1] != key:
        raise Garbled("no value of the key that was asked for")
    size = _size(fields[3])
    total = end + 2 + size + 7
    if len(data) < total:
        data = _read_to(wire, until, data, total)
    if len(data) != total or not data.endswith(b"\r\nEND\r\n"):
        raise Garbled("a value that doesn't end where it says")
    return fields[2], data[end + 2 : end + 2 + size]


def _size(text: bytes) -> int:
    if not text.isdigit() or len(text) > 10:
        raise Garbled("a value without a size")
    return int(text)


def _read_to(wire: Wire, until: float, data: bytes, total: int) -> bytes:
    chunks = [data]
    missing = total - len(data)
    while missing > 0:
        chunk = wire.read(until)
        chunks.append(chunk)
        missing -= len(chunk)
    return b"".join(chunks)


def values(
    wire: Wire, until: float, expected: tuple[Mapping[bytes, Any], int], chunk: bytes
) -> list[tuple[bytes, bytes, bytes, bytes]]:
    """[(key, flags, value, cas)] for (keys asked for, fields of a VALUE line: 4, or 5 with cas)."""
    keys, fields = expected
    chunks: list[bytes] = []
    while True:
        chunks.append(chunk)
        if chunk.endswith(b"\n"):
            # a value may hold any bytes: only the parser knows whether this line is the last
            data = chunk if len(chunks) == 1 else b"".join(chunks)
            chunks = [data]
            found = _parse_values(data, keys, fields)
            if found is not None:
                return found
        chunk = wire.read(until)


def _parse_values(
    data: bytes, keys: Mapping[bytes, Any], fields: int
) -> list[tuple[bytes, bytes, bytes, bytes]] | None:
    found: list[tuple[bytes, bytes, bytes, bytes]] = []
    add = found.append
    position, length = 0, len(data)
    find = data.find
    while True:
        end = find(b"\r\n", position)
        if end < 0:
            return None
        head = data[position:end].split(b" ")
        if len(head) != fields or head[0] != b"VALUE":
            return _end_of_values(data, position, end, found)
        key, size = head[1], head[3]
        if key not in keys or not size.isdigit():
            raise Garbled("no value of a key that was asked for")
        start = end + 2
        end = start + int(size)
        if end + 2 > length:
            return None
        if data[end : end + 2] != b"\r\n":
            raise Garbled("a value that doesn't end where it says")
        add((key, head[2], data[start:end], head[4] if fields == 5 else b""))
        position = end + 2


def _end_of_values(
    data: bytes, position: int, end: int, found: list[tuple[bytes, bytes, bytes, bytes]]
) -> list[tuple[bytes, bytes, bytes, bytes]]:
    last = data[position:end]
    raise_errors(last, b"get")
    if last != b"END" or end + 2 != len(data):
        raise Garbled("no value and no end")
    return found


def statistics(wire: Wire, until: float, command: bytes, data: bytes) -> dict[bytes, bytes]:
    """The lines of ``stats``, up to END (or OK, RESET)."""
    while True:
        if data.endswith(b"\r\n"):
            result = _parse_statistics(data[:-2], command)
            if result is not None:
                return result
        data += wire.read(until)


def _parse_statistics(data: bytes, command: bytes) -> dict[bytes, bytes] | None:
    result: dict[bytes, bytes] = {}
    for one in data.split(b"\r\n"):
        if one in (b"END", b"OK", b"RESET"):
            return result
        raise_errors(one, command)
        kind, _, rest = one.partition(b" ")
        if kind not in (b"STAT", b"ITEM"):
            raise Garbled("no statistics")
        name, _, value = rest.partition(b" ")
        result[name] = value
    return None
