"""The four pages, whatever server shows them (L5)."""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import fork
from .report import DOWN, check_critical, lost, report

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.registry import CollectorRegistry

logger = logging.getLogger("timedblock")

REASONS = {
    200: "OK",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}
#: Scrapes at once: one of a user's collectors that hangs must not take every thread of a server.
MOST_SCRAPES = 4
_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"


class Page(NamedTuple):
    """An answer."""

    status: int
    kind: str
    body: bytes

    def headers(self) -> list[tuple[str, str]]:
        """Its headers; what it says is true only now."""
        found = [
            ("Content-Type", self.kind),
            ("Content-Length", str(len(self.body))),
            ("Cache-Control", "no-store"),
        ]
        return [*found, ("Allow", "GET, HEAD")] if self.status == 405 else found


BUSY = Page(503, _TEXT, b"too many scrapes at once\n")


class Pages:
    """`/live`, `/ready`, `/health` and `/metrics`; a page that can't be made is a 500."""

    def __init__(self, critical: Iterable[str], registry: CollectorRegistry | None) -> None:
        self._critical = check_critical(critical)
        self._registry = registry
        self._metrics: Any = None
        self._scrapes = threading.BoundedSemaphore(MOST_SCRAPES)
        fork.register(self)
        try:
            self._metrics = _metrics(registry)
        except ImportError as error:
            self._missing = str(error)

    def page(self, method: str, path: str, accept: str = "") -> Page:
        """The answer to a request; raises nothing."""
        if method not in ("GET", "HEAD"):
            return Page(405, _TEXT, b"only GET and HEAD\n")
        try:
            if path == "/live":
                return Page(200, _JSON, b'{"status": "ok"}\n')
            if path == "/ready":
                return self._ready()
            if path == "/health":
                found = report(self._critical)
                return _json(503 if found["status"] == DOWN else 200, found)
            if path == "/metrics":
                return self._metrics_page(accept)
        except Exception as error:
            logger.warning("the monitor's %s failed: %s", path, type(error).__name__)
            return Page(500, _TEXT, f"{type(error).__name__}\n".encode())
        return Page(404, _TEXT, b"/live, /ready, /health, /metrics\n")

    def _ready(self) -> Page:
        down = lost(self._critical)
        return _json(503 if down else 200, {"status": DOWN if down else "ok", "down": down})

    def _metrics_page(self, accept: str) -> Page:
        if self._metrics is None:
            return Page(501, _TEXT, f"{self._missing}\n".encode())
        scrapes = self._scrapes
        if not scrapes.acquire(blocking=False):
            return BUSY
        try:
            body, kind = self._metrics(accept)
        finally:
            scrapes.release()
        return Page(200, kind, body)

    def after_fork(self) -> None:
        """The parent's scrapes aren't ours."""
        self._scrapes = threading.BoundedSemaphore(MOST_SCRAPES)


def _metrics(registry: CollectorRegistry | None) -> Any:
    from ..metrics import exposition

    return exposition.exposition(registry)


def _json(status: int, document: dict[str, Any]) -> Page:
    return Page(status, _JSON, json.dumps(document, allow_nan=False, indent=1).encode() + b"\n")
