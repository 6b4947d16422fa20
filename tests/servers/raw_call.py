"""One call of a plain driver in a process of its own, so that one that hangs can be ended.

A fault test starts with this: a fault that the raw client doesn't feel proves nothing about ours.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

KEY = "timedblock-probe"
VALUE = b"v" * 200
READY_WITHIN = 20.0


@dataclass(frozen=True)
class RawOutcome:
    """How the raw call ended: `value` is "right", "wrong" or None, `error` a class name or None."""

    value: str | None
    error: str | None
    elapsed: float


class RawCall:
    """A process with a client of pymemcache (default timeouts: none) that makes a `get`, or, with
    ``driver="pika"``, of pika (its default timeouts), that publishes with confirm and then gets.

    Entered, the client is ready; `warm` means that it has made a connection, and stored VALUE.
    With `calls` it repeats the call so often, until one isn't right; `elapsed` is the longest.
    `authority` is the certificate (PEM) of a TLS server's authority. `resolver` is "dns-fail" or
    "dns-hang": names don't resolve in that process, for any client.
    `begin()` starts the call, `outcome()` waits for its end, leaving kills the process by its pid.
    """

    def __init__(
        self, address: tuple[str, int], *, warm: bool, calls: int = 1, **options: Any
    ) -> None:
        arguments = json.dumps(
            {"address": address, "warm": warm, "calls": calls, "options": options}
        )
        self._process = subprocess.Popen(
            [sys.executable, __file__, arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> RawCall:
        try:
            assert self._line(READY_WITHIN) == "ready\n", "the raw client did not get ready"
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self) -> None:
        """Let the client make its `get` now."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def outcome(self, within: float) -> RawOutcome | None:
        """How the call ended; None: it still hangs after `within` seconds more."""
        line = self._line(within)
        return RawOutcome(**json.loads(line)) if line else None

    def _line(self, within: float) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], within)
        return self._process.stdout.readline() if ready else ""


class _Memcache:
    def __init__(self, address: tuple[str, int], options: dict[str, Any]) -> None:
        from pymemcache.client.base import Client

        self._client = Client(address, **options)

    def warm(self) -> None:
        self._client.set(KEY, VALUE, noreply=False)

    def call(self) -> bool:
        return bool(self._client.get(KEY) == VALUE)


class _Rabbitmq:
    """A queue of its own, that the broker deletes when its connection ends."""

    def __init__(self, address: tuple[str, int], options: dict[str, Any]) -> None:
        self._address = address
        self._channel: Any = None

    def warm(self) -> None:
        import pika

        connection = pika.BlockingConnection(pika.ConnectionParameters(*self._address))
        self._channel = connection.channel()
        self._channel.confirm_delivery()
        self._queue = self._channel.queue_declare("", exclusive=True).method.queue

    def call(self) -> bool:
        if self._channel is None:
            self.warm()
        self._channel.basic_publish("", self._queue, VALUE)
        return bool(self._channel.basic_get(self._queue, auto_ack=True)[2] == VALUE)


_DRIVERS = {"pymemcache": _Memcache, "pika": _Rabbitmq}


def _one_call(client: _Memcache | _Rabbitmq) -> RawOutcome:
    value = error = None
    began = time.perf_counter()
    try:
        value = "right" if client.call() else "wrong"
    except Exception as caught:
        error = type(caught).__name__
    return RawOutcome(value, error, time.perf_counter() - began)


def _no_names(*_: Any, **__: Any) -> Any:
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def _never(*_: Any, **__: Any) -> Any:
    time.sleep(3600)


def _main() -> None:
    arguments = json.loads(sys.argv[1])
    options = arguments["options"]
    if authority := options.pop("authority", None):
        options["tls_context"] = ssl.create_default_context(cadata=authority)
    if fault := options.pop("resolver", None):
        socket.getaddrinfo = _no_names if fault == "dns-fail" else _never
    kind = _DRIVERS[options.pop("driver", "pymemcache")]
    client = kind(tuple(arguments["address"]), options)
    if arguments["warm"]:
        client.warm()
    print("ready", flush=True)
    sys.stdin.readline()
    longest = 0.0
    for _ in range(arguments["calls"]):
        outcome = _one_call(client)
        longest = max(longest, outcome.elapsed)
        if outcome.value != "right":
            break
    print(json.dumps({**asdict(outcome), "elapsed": longest}), flush=True)


if __name__ == "__main__":
    _main()
