"""A caller's deadline, taken from its request's header: WSGI and ASGI middleware (L5).

The header `Timedblock-Deadline-Ms` has the milliseconds that remain. It only shortens what is in
force, and garbage in it is ignored. While the application works for a request, the deadline is in
force; between the pieces of a streamed body, and for the next request on the same thread or task,
it is not.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from .deadline import HEADER, Deadline, check_seconds, get, time_limit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = [
    "HEADER",
    "ASGIDeadlineMiddleware",
    "WSGIDeadlineMiddleware",
    "deadline_headers",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]

_OWNER = "the caller"
_ENVIRON = "HTTP_" + HEADER.upper().replace("-", "_")
_NAME = HEADER.lower().encode()


def deadline_headers() -> dict[str, str]:
    """The header to send with a request: what is left of the deadline in force; {} without one."""
    deadline = get()
    if deadline is None or math.isinf(deadline.at):
        return {}
    return {HEADER: deadline.to_header()}


def _deadline(values: Iterable[str], ceiling: float | None) -> Deadline | None:
    """The soonest of what the caller sent and our own ceiling; None for neither."""
    found = [
        deadline
        for value in values
        for part in value.split(",")  # a header sent twice may come joined
        if (deadline := Deadline.from_header(part, _OWNER)) is not None
    ]
    if ceiling is not None:
        found.append(Deadline.after(ceiling, "the request"))
    return min(found, key=lambda deadline: deadline.at, default=None)


def _check_ceiling(ceiling: float | None) -> float | None:
    return None if ceiling is None else check_seconds("the middleware's ceiling", ceiling)


class WSGIDeadlineMiddleware:
    """Puts the caller's deadline in force while `app` answers.

    Args:
        app: the application.
        ceiling: seconds that a request has where the caller asks for more, or for nothing.

    Raises:
        ValueError, TypeError: `ceiling` is no duration.
    """

    def __init__(self, app: WSGIApplication, ceiling: float | None = None) -> None:
        self._app = app
        self._ceiling = _check_ceiling(ceiling)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        deadline = _deadline([environ.get(_ENVIRON, "")], self._ceiling)
        if deadline is None:
            return self._app(environ, start_response)
        with time_limit(deadline):
            body = self._app(environ, start_response)
        if isinstance(body, (list, tuple)) or _is_file(body, environ):
            return body  # nothing of the application's runs any more
        return _Body(body, deadline)


def _is_file(body: Iterable[bytes], environ: WSGIEnvironment) -> bool:
    """Whether the server sends it by itself (sendfile), as it would not from inside a wrapper."""
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


class _Body:
    """A streamed body: the deadline is in force while a piece is made, and not between them."""

    def __init__(self, body: Iterable[bytes], deadline: Deadline) -> None:
        self._body = body
        self._deadline = deadline
        self._pieces: Iterator[bytes] | None = None

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        with time_limit(self._deadline):
            if self._pieces is None:
                self._pieces = iter(self._body)
            return next(self._pieces)

    def close(self) -> None:
        """The server has sent all, or the client went away."""
        close = getattr(self._body, "close", None)
        if close is not None:
            with time_limit(self._deadline):
                close()


class ASGIDeadlineMiddleware:
    """Puts the caller's deadline in force while `app` answers an HTTP request.

    Args:
        app: the application.
        ceiling: seconds that a request has where the caller asks for more, or for nothing.

    Raises:
        ValueError, TypeError: `ceiling` is no duration.
    """

    def __init__(self, app: ASGIApplication, ceiling: float | None = None) -> None:
        self._app = app
        self._ceiling = _check_ceiling(ceiling)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # a websocket lives longer than a request
            await self._app(scope, receive, send)
            return
        sent = [value.decode("latin-1") for name, value in scope["headers"] if name == _NAME]
        with time_limit(_deadline(sent, self._ceiling)):
            await self._app(scope, receive, send)
