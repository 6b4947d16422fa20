"""The monitor as a WSGI and as an ASGI application (L5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

from .pages import REASONS, Page, Pages

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from prometheus_client.registry import CollectorRegistry

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]


def wsgi_app(
    *, critical: Iterable[str] = (), registry: CollectorRegistry | None = None
) -> WSGIApplication:
    """The monitor as a WSGI application, to be served or mounted under a prefix.

    Args:
        critical: names of the blocks (shell patterns: ``mysql.*``) without which the service
            can't work: while one is down, `/ready` and `/health` are 503. The others are optional.
        registry: what `/metrics` shows; None: the blocks' metrics, of all workers where
            prometheus-client is in its multiprocess mode.

    Raises:
        TypeError, ValueError: `critical` is no list of names.
        RuntimeError: PROMETHEUS_MULTIPROC_DIR is no directory to write to.
    """
    pages = Pages(critical, registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        page = pages.page(method, environ.get("PATH_INFO", ""), environ.get("HTTP_ACCEPT", ""))
        start_response(f"{page.status} {REASONS[page.status]}", page.headers())
        return [] if method == "HEAD" else [page.body]

    return app


def asgi_app(
    *, critical: Iterable[str] = (), registry: CollectorRegistry | None = None
) -> ASGIApplication:
    """The monitor as an ASGI application; arguments and errors are those of `wsgi_app`."""
    pages = Pages(critical, registry)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            await _answer(pages, scope, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    return app


async def _live(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def _answer(pages: Pages, scope: Scope, send: Send) -> None:
    page = pages.page(scope["method"], _path(scope), _accept(scope))
    headers = [(name.lower().encode(), value.encode()) for name, value in page.headers()]
    await send({"type": "http.response.start", "status": page.status, "headers": headers})
    body = b"" if scope["method"] == "HEAD" else page.body
    await send({"type": "http.response.body", "body": body})


def _path(scope: Scope) -> str:
    """The path below the place where the app is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    below = path.removeprefix(root)
    return below if below.startswith("/") else path


def _accept(scope: Scope) -> str:
    found = (value for name, value in scope["headers"] if name == b"accept")
    return bytes(next(found, b"")).decode("latin-1")


__all__ = ["ASGIApplication", "Page", "asgi_app", "wsgi_app"]
