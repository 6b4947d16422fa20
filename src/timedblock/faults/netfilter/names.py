"""Names for the clients of `Netfilter`: one of our own for the store, the host's for the rest.

Without it no client in a namespace could resolve anything, and a fault of names would do nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import struct
import threading
from pathlib import Path

Address = tuple[str, int]

#: What a client in a namespace may call the store; under a top level that is nobody's.
STORE_NAME = "store.timedblock.test"
PORT = 53
_QUESTION = b"".join(bytes([len(part)]) + part.encode() for part in STORE_NAME.split(".")) + b"\0"
_HEADER = struct.Struct("!HHHHHH")
_IS_REPLY = 0x8180
_NO_SERVER = 0x8182
_A = b"\0\1\0\1"
_SECONDS_VALID = 1
_LARGEST = 4096
#: Questions that wait for the host's server; the oldest are forgotten.
_WAITING = 512


def host_nameserver(file: Path = Path("/etc/resolv.conf")) -> Address | None:
    """The first name server of this host, or None."""
    with contextlib.suppress(OSError):
        for line in file.read_text().splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                return words[1], PORT
    return None


def answer(question: bytes, host: str) -> bytes | None:
    """The answer to a question about the store's name: `host`; None if it is about another."""
    end = len(_QUESTION) + _HEADER.size
    if len(question) < end + 4 or question[_HEADER.size : end].lower() != _QUESTION:
        return None
    number = _HEADER.unpack_from(question)[0]
    known = question[end : end + 4] == _A  # it has no IPv6 address
    reply = _HEADER.pack(number, _IS_REPLY, 1, known, 0, 0) + question[_HEADER.size : end + 4]
    if known:
        pointer = struct.pack("!H", 0xC000 | _HEADER.size)
        reply += pointer + _A + struct.pack("!IH", _SECONDS_VALID, 4) + socket.inet_aton(host)
    return reply


class NameServer:
    """Answers at (`host`, 53) for the time of a ``with`` block. OSError if that is taken."""

    def __init__(self, host: str, upstream: Address | None) -> None:
        self._host = host
        self._upstream = upstream
        self._numbers = itertools.count()
        self._asked: dict[int, tuple[int, Address]] = {}
        self._thread = threading.Thread(target=self._serve, name="timedblock-names", daemon=True)

    def __enter__(self) -> NameServer:
        self._server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        family = socket.AF_INET6 if self._upstream and ":" in self._upstream[0] else socket.AF_INET
        self._client = socket.socket(family, socket.SOCK_DGRAM)
        self._waker, self._woken = socket.socketpair()
        try:
            self._server.bind((self._host, PORT))
        except BaseException:
            self._close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._waker.send(b".")
        self._thread.join()
        self._close()

    def _close(self) -> None:
        for one in (self._server, self._client, self._waker, self._woken):
            one.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for one in (self._server, self._client, self._woken):
                one.setblocking(False)
                selector.register(one, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        return
                    with contextlib.suppress(OSError):  # an ICMP error of one client
                        self._ask() if key.fileobj is self._server else self._tell()

    def _ask(self) -> None:
        question, asker = self._server.recvfrom(_LARGEST)
        if len(question) < _HEADER.size:
            return
        reply = answer(question, self._host)
        if reply is None and self._upstream is None:
            reply = _HEADER.pack(_HEADER.unpack_from(question)[0], _NO_SERVER, 0, 0, 0, 0)
        if reply is not None:
            self._server.sendto(reply, asker)
            return
        assert self._upstream is not None
        number = next(self._numbers) & 0xFFFF
        self._asked[number] = _HEADER.unpack_from(question)[0], asker
        if len(self._asked) > _WAITING:
            del self._asked[next(iter(self._asked))]
        self._client.sendto(struct.pack("!H", number) + question[2:], self._upstream)

    def _tell(self) -> None:
        reply = self._client.recv(_LARGEST)
        waiting = self._asked.pop(int.from_bytes(reply[:2], "big"), None)
        if waiting is not None:
            number, asker = waiting
            self._server.sendto(struct.pack("!H", number) + reply[2:], asker)
