"""A service as its users would write it, for real servers: work, monitor, deadline by header."""

from __future__ import annotations

import json
import os
from typing import Any

from timedblock import Fixed, Policy, TimedBlock, remaining
from timedblock.metrics.prometheus import Collector
from timedblock.middleware import ASGIDeadlineMiddleware, WSGIDeadlineMiddleware
from timedblock.monitor import asgi_app, wsgi_app

#: Calls that the module itself makes when it is imported: in the master where it is preloaded.
AT_IMPORT = 3

work = TimedBlock("work", Policy(timeout=Fixed(1.0)))
for _ in range(AT_IMPORT):
    work.call(int)

_monitor = wsgi_app(critical=["work"])
# what a process sees by itself
_alone = Collector()


def _tell() -> bytes:
    return json.dumps({"pid": os.getpid(), "left": remaining()}).encode()


def _page(path: str) -> bytes:
    if path == "/work":
        work.call(int)
    elif path == "/alone":
        calls = next(one for one in _alone.collect() if one.name == "timedblock_calls")
        return str(sum(sample.value for sample in calls.samples)).encode()
    return _tell()


def _routed(environ: dict[str, Any], start_response: Any) -> Any:
    path = environ["PATH_INFO"]
    if path.startswith("/-/"):
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = "/-", path[2:]
        return _monitor(environ, start_response)
    start_response("200 OK", [("Content-Type", "application/json")])
    if path == "/streamed":
        return (_tell() + b"\n" for _ in range(3))
    return [_page(path)]


app = WSGIDeadlineMiddleware(_routed)

_asgi_monitor = asgi_app(critical=["work"])


async def _asgi_routed(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await _asgi_monitor(scope, receive, send)
        return
    path = scope["path"]
    if path.startswith("/-/"):
        await _asgi_monitor({**scope, "root_path": "/-"}, receive, send)
        return
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _page(path)})


asgi = ASGIDeadlineMiddleware(_asgi_routed)
