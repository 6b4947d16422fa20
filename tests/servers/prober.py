"""A bare socket in a process of its own: what a fault does to somebody without any limit of ours.

Each question is answered with what happened: "right", "wrong", "refused", "unconnected" (no answer
to the connect), "silent" (connected, no reply), "reset", "closed", "unknown" (the name), "part".
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

KEY = "timedblock-probe"
VALUE = b"v" * 200
REQUEST = f"get {KEY}\r\n".encode()
REPLY = f"VALUE {KEY} 0 200\r\n".encode() + VALUE + b"\r\nEND\r\n"
SET = f"set {KEY} 0 0 200\r\n".encode() + VALUE + b"\r\n"
# A resolver gives up after 10 s by default: too long for a test.
RESOLVER = {"RES_OPTIONS": "timeout:1 attempts:1"}
READY_WITHIN = 20.0


@dataclass(frozen=True)
class Seen:
    """What happened to one request, and how long it took, in seconds."""

    what: str
    elapsed: float


class Prober:
    """The front. `prefix` stands before its command, such as a namespace's."""

    def __init__(self, address: tuple[str, int], prefix: tuple[str, ...] = ()) -> None:
        host, port = address
        self._process = subprocess.Popen(
            [*prefix, sys.executable, __file__, host, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **RESOLVER},
        )

    def __enter__(self) -> Prober:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def fresh(self, within: float = 5.0, host: str | None = None) -> Seen:
        """Ask on a new connection, which is kept for `open`; perhaps by another name."""
        return self._do("fresh", within, host)

    def open(self, within: float = 5.0) -> Seen:
        """Ask on the connection that is kept."""
        return self._do("open", within)

    def rest(self, within: float = 5.0) -> Seen:
        """Wait once more for the reply that didn't come whole."""
        return self._do("rest", within)

    def _do(self, what: str, within: float, host: str | None = None) -> Seen:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, within, host]) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], within + READY_WITHIN)
        assert ready, "the prober doesn't answer"
        return Seen(*json.loads(self._process.stdout.readline()))


class _Bare:
    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._got = b""

    def fresh(self, end: float, host: str | None) -> str:
        if self._socket is not None:
            self._socket.close()
        host = host or self._address[0]
        try:
            self._socket = socket.create_connection(
                (host, self._address[1]), timeout=max(0.01, end - time.monotonic())
            )
        except TimeoutError:
            return "unconnected"
        return self.open(end, None)

    def open(self, end: float, host: str | None) -> str:
        assert self._socket is not None
        self._got = b""
        self._socket.sendall(REQUEST)
        return self.rest(end, None)

    def rest(self, end: float, host: str | None) -> str:
        assert self._socket is not None
        while len(self._got) < len(REPLY):
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            try:
                data = self._socket.recv(4096)
            except TimeoutError:
                return "part" if self._got else "silent"
            if not data:
                return "closed"
            self._got += data
            if not REPLY.startswith(self._got):
                return "wrong"
        return "right"


def _main(host: str, port: int) -> None:
    bare = _Bare((host, port))
    for line in sys.stdin:
        what, within, name = json.loads(line)
        began = time.monotonic()
        seen: Any
        try:
            seen = getattr(bare, what)(began + within, name)
        except ConnectionRefusedError:
            seen = "refused"
        except (ConnectionResetError, BrokenPipeError):
            seen = "reset"
        except socket.gaierror:
            seen = "unknown"
        print(json.dumps([seen, time.monotonic() - began]), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
