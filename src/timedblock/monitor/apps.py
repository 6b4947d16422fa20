"""The monitor as a WSGI and as an ASGI application (L5)."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

from ..net.workers import Full, Job, Workers
from .pages import BUSY, MOST_SCRAPES, REASONS, Page, Pages

if TYPE_CHECKING:
    import asyncio

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
    """The monitor as an ASGI application; arguments and errors are those of `wsgi_app`.

    What takes longer, `/health` and `/metrics`, is made on a thread: the event loop goes on.
    """
    pages = Pages(critical, registry)
    workers = Workers("monitor", MOST_SCRAPES)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            await _answer(pages, workers, scope, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    return app


async def _live(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def _answer(pages: Pages, workers: Workers, scope: Scope, send: Send) -> None:
    method, path, accept = scope["method"], _path(scope), _accept(scope)

    def make() -> Page:
        return pages.page(method, path, accept)

    if path == "/health":
        page = await _elsewhere(workers, make, make)
    elif path == "/metrics":  # a user's collector may hang: never on the loop
        page = await _elsewhere(workers, make, lambda: BUSY)
    else:
        page = make()
    headers = [(name.lower().encode(), value.encode()) for name, value in page.headers()]
    await send({"type": "http.response.start", "status": page.status, "headers": headers})
    body = b"" if scope["method"] == "HEAD" else page.body
    await send({"type": "http.response.body", "body": body})


async def _elsewhere(
    workers: Workers, make: Callable[[], Page], instead: Callable[[], Page]
) -> Page:
    """What `make` returns, made on a worker, or here where the loop isn't asyncio's.

    `instead` makes it when all workers are busy.
    """
    import asyncio

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return make()
    answer: asyncio.Future[Page] = loop.create_future()

    def made(job: Job[Page]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(_settle, answer, job)

    try:
        workers.submit(make, made)
    except Full:
        return instead()
    return await answer


def _settle(answer: asyncio.Future[Page], job: Job[Page]) -> None:
    if answer.done():  # the request was cancelled
        return
    if job.error is None:
        answer.set_result(job.outcome())
    else:
        answer.set_exception(job.error)


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
