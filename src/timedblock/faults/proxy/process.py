"""The relay's process as `Relay` starts it: it obeys JSON lines on its standard input and ends
with it, so that it never outlives the process that started it."""

from __future__ import annotations

import gc
import itertools
import json
import os
import resource
import signal
import sys
from typing import Any

from ..plan import Fault
from .connection import CHUNK
from .link import ServedLink, Way
from .loop import READ, Loop


class _Control:
    """Obeys JSON lines, one answer for each, in order."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._links: dict[int, ServedLink] = {}
        self._numbers = itertools.count(1)
        self._input = b""
        try:
            loop.watch(0, 0, READ, self._readable)
        except PermissionError:  # a file, or /dev/null
            sys.exit("the relay is driven through a pipe on its standard input")

    def _readable(self, mask: int) -> None:
        data = os.read(0, CHUNK)
        if not data:
            self._loop.running = False
            return
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            self._write(self._answer(line))

    @staticmethod
    def _write(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), flush=True)

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            return {"ok": True, **self._do(request.pop("do"), request)}
        except Exception as error:  # the relay outlives a bad request
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def _do(self, what: str, request: dict[str, Any]) -> dict[str, Any]:
        if what == "listen":
            return self._listen(request)
        link = self._links.get(request["link"])
        if link is None:
            raise ValueError("this link is closed")
        if what == "inject":
            link.inject(Fault.from_dict(request["fault"]))
        elif what == "clear":
            link.clear()
        elif what == "close":
            self._links.pop(request["link"]).close()
        elif what == "describe":
            return self._describe(link)
        else:
            raise ValueError(f"unknown request {what!r}")
        return {}

    def _listen(self, request: dict[str, Any]) -> dict[str, Any]:
        upstream = request["upstream"]
        upstream = upstream if isinstance(upstream, str) else tuple(upstream)
        link = ServedLink(self._loop, tuple(request["address"]), Way(upstream))
        number = next(self._numbers)
        self._links[number] = link
        return {"link": number, "address": link.address[:2]}

    @staticmethod
    def _describe(link: ServedLink) -> dict[str, Any]:
        return {
            "fault": link.fault.to_dict() if link.fault else None,
            "connections": len(link.connections),
            "accepted": link.accepted,
        }


def prepare() -> None:
    """Make this process fit for many connections, and for short ones."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.collect()
    gc.freeze()  # what is loaded stays: no collection in a reply's way looks at it again


def main() -> int:
    """Relay until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    prepare()
    loop = Loop()
    _Control(loop)
    loop.run()
    return 0
