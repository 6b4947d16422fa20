"""The words and numbers of the ASCII protocol (L5)."""

from __future__ import annotations

import re

VERSION = "1.6.18"
MAX_KEY = 250
MAX_LINE = 2048
U64 = 1 << 64
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


def integer(text: bytes, low: int, high: int) -> int | None:
    """A number as C's strto* reads it, or None if it isn't one within the bounds."""
    match = _NUMBER.match(text)
    if match is None:
        return None
    value = int(match[2])
    value = -value if match[1] == b"-" else value
    return value if low <= value <= high else None


def int32(text: bytes) -> int | None:
    """A long, cut to 32 bits as memcached does."""
    value = integer(text, -(1 << 63), (1 << 63) - 1)
    return None if value is None else (value + (1 << 31)) % (1 << 32) - (1 << 31)
