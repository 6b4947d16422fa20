"""Raw pika beside a fault, in a process of its own: a call of pika's that hangs can't be ended.

Standard input: one line of JSON, ``{"fresh": {queue: [hosts]}, "hanging": {name: [host, queue]}}``;
then the line ``go``. Fresh connections are made all the time, every 0.2 s one for each queue, at
its hosts in turn, each with one confirmed publish. A hanging one is made at once, and publishes at
``go``. Standard output: a line of JSON for each confirm and for each end; times are monotonic.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pika

Address = tuple[str, int]

PACE = 0.2
#: Seconds of pika's own limits for a fresh connection, where it has some.
LIMIT = 1.0


class Raw:
    """The process, and what it told, from entry to exit."""

    def __init__(
        self,
        fresh: Mapping[str, Sequence[Address]],
        hanging: Mapping[str, tuple[Address, str]],
        heard: Callable[[dict[str, Any]], None],
    ) -> None:
        self._task = json.dumps({"fresh": dict(fresh), "hanging": dict(hanging)})
        self._heard = heard

    def __enter__(self) -> Raw:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        self._send(self._task)
        self._reader = threading.Thread(target=self._read, name="raw", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    def go(self) -> None:
        """Have the hanging ones publish."""
        self._send("go")

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._heard(json.loads(line))


def _tell(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")  # one write, and so one line
    sys.stdout.flush()


def _connect(host: Sequence[Any], **limits: float) -> Any:
    return pika.BlockingConnection(pika.ConnectionParameters(host[0], host[1], **limits))


def _publish(channel: Any, queue: str) -> None:
    channel.confirm_delivery()
    channel.basic_publish("", queue, b"raw", mandatory=True)


def _try(host: Sequence[Any], queue: str) -> None:
    began = time.monotonic()
    with contextlib.suppress(Exception):
        connection = _connect(host, socket_timeout=LIMIT, stack_timeout=LIMIT)
        _publish(connection.channel(), queue)
        _tell(fresh=queue, began=began, ended=time.monotonic())
        connection.close()


def _hang(name: str, channel: Any, queue: str) -> None:
    began, error = time.monotonic(), None
    try:
        _publish(channel, queue)
    except Exception as caught:
        error = type(caught).__name__
    _tell(hanging=name, began=began, ended=time.monotonic(), error=error)


def _try_all(fresh: dict[str, list[Any]]) -> None:
    turns = {queue: itertools.cycle(hosts) for queue, hosts in fresh.items()}
    while True:
        for queue, hosts in turns.items():
            threading.Thread(target=_try, args=(next(hosts), queue), daemon=True).start()
            time.sleep(PACE / len(turns))


def main() -> None:
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    task = json.loads(sys.stdin.readline())
    hanging = {
        name: (_connect(host).channel(), queue) for name, (host, queue) in task["hanging"].items()
    }
    threading.Thread(target=_try_all, args=(task["fresh"],), daemon=True).start()
    _tell(ready=True)
    if sys.stdin.readline():
        for name, (channel, queue) in hanging.items():
            threading.Thread(target=_hang, args=(name, channel, queue), daemon=True).start()
        sys.stdin.readline()


if __name__ == "__main__":
    main()
