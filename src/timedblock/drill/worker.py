"""One load on one client in a process of its own, so that a client that hangs disturbs nobody.

``python -m timedblock.drill.worker``: line 1 of stdin is the JSON of a ``Task``; "ready" is
answered once the client has served a first call; line 2 is the ``time.monotonic()`` at which the
load starts (that clock is the machine's, the same in every process). The answer is one JSON line:
the calls.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from timedblock.drill import memcache
from timedblock.drill.load import Call, OpenLoad, Schedule

#: The name that the DNS faults are about.
HOST_NAME = "localhost"


@dataclass(frozen=True)
class Task:
    """What a worker needs to know."""

    fault: str
    variant: str
    server: memcache.Address
    prefix: str
    schedule: Schedule

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Task:
        data = json.loads(text)
        host, port = data.pop("server")
        return Task(server=(host, port), schedule=Schedule(**data.pop("schedule")), **data)


class FaultyResolver:
    """``socket.getaddrinfo`` of this process, at fault between two moments of ``monotonic``.

    Every client of this process goes through it. Outside the fault, ``HOST_NAME`` is ``address``.
    """

    def __init__(self, fault: str, address: str) -> None:
        self._real = socket.getaddrinfo
        self._fails = fault == "dns-fail"
        self._address = address
        self._since = self._until = float("inf")

    def install(self) -> None:
        socket.getaddrinfo = self

    def schedule(self, since: float, until: float) -> None:
        self._since, self._until = since, until

    def __call__(self, host: Any, *args: Any, **kwargs: Any) -> Any:
        if host != HOST_NAME:
            return self._real(host, *args, **kwargs)
        now = time.monotonic()
        if self._since <= now < self._until:
            if self._fails:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            time.sleep(self._until - now)
        return self._real(self._address, *args, **kwargs)


def _resolver(task: Task) -> FaultyResolver | None:
    if task.fault not in memcache.DNS_FAULTS:
        return None
    resolver = FaultyResolver(task.fault, task.server[0])
    resolver.install()
    return resolver


def _run(task: Task) -> list[Call]:
    resolver = _resolver(task)
    server = (HOST_NAME, task.server[1]) if resolver else task.server
    client = memcache.VARIANTS[task.variant].connect(server)
    request = memcache.make_request(client, memcache.Keys(task.prefix))
    first = request(0)
    if first.kind != "ok":
        raise RuntimeError(f"{task.variant}: no answer before any fault: {first}")
    print("ready", flush=True)
    start = float(sys.stdin.readline())
    if resolver:
        resolver.schedule(start + task.schedule.fault_at, start + task.schedule.clear_at)
    return OpenLoad(request, task.schedule, start).run()


def main() -> None:
    calls = _run(Task.from_json(sys.stdin.readline()))
    print(json.dumps([[c.number, round(c.began, 6), round(c.ended, 6), *c[3:]] for c in calls]))


if __name__ == "__main__":
    main()
