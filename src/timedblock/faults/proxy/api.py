"""Toxiproxy's HTTP API (2.5.0), over the proxies of this process."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from .proxies import Collection, Problem, bad_body

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: What `/version` says: the version of Toxiproxy whose API this is, in the form that clients
#: compare.
VERSION = "2.5.0+timedblock"
#: Toxiproxy turns browsers away, so that no web page can drive it.
_BROWSERS = "Mozilla/"
_MOST_BODY = 1 << 22


class Api:
    """The WSGI application. One request at a time changes or reads the proxies."""

    def __init__(self, proxies: Collection) -> None:
        self._proxies = proxies
        self._lock = threading.Lock()
        self._routes = Map(
            [
                _route("GET", "/version", self._version),
                _route("POST", "/reset", self._reset),
                _route("POST", "/populate", self._populate),
                _route("GET", "/proxies", self._index),
                _route("POST", "/proxies", self._create),
                _route("GET", "/proxies/<name>", self._show),
                _route("POST", "/proxies/<name>", self._update),
                _route("DELETE", "/proxies/<name>", self._delete),
                _route("GET", "/proxies/<name>/toxics", self._toxics),
                _route("POST", "/proxies/<name>/toxics", self._add_toxic),
                _route("GET", "/proxies/<name>/toxics/<toxic>", self._toxic),
                _route("POST", "/proxies/<name>/toxics/<toxic>", self._update_toxic),
                _route("DELETE", "/proxies/<name>/toxics/<toxic>", self._remove_toxic),
            ]
        )

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Any:
        request = Request(environ)
        request.max_content_length = _MOST_BODY
        return self._answer(request)(environ, start)

    def _answer(self, request: Request) -> Response:
        try:
            work, named = self._routes.bind_to_environ(request.environ).match()
            if request.headers.get("User-Agent", "").startswith(_BROWSERS):
                return Response("User agent not allowed\n", 403)
            with self._lock:
                answer: Response = work(request, **named)
            return answer
        except Problem as problem:
            return _json({"error": problem.message, "status": problem.status}, problem.status)
        except HTTPException as error:  # no such route, no such method, too large a body
            return Response(f"{error.name.lower()}\n", error.code, {"Content-Type": "text/plain"})

    def _version(self, request: Request) -> Response:
        return Response(VERSION, content_type="text/plain;charset=utf-8")

    def _reset(self, request: Request) -> Response:
        self._proxies.reset()
        return Response(status=204)

    def _populate(self, request: Request) -> Response:
        bodies = _body(request, list)
        if not all(isinstance(one, Mapping) for one in bodies):
            raise bad_body("it must be a list of objects")
        made, problem = self._proxies.populate(bodies)
        shown = {"proxies": [proxy.show() for proxy in made]}
        if problem is None:
            return _json(shown, 201)
        return _json({"error": problem.message, "status": problem.status, **shown}, problem.status)

    def _index(self, request: Request) -> Response:
        return _json(self._proxies.show())

    def _create(self, request: Request) -> Response:
        return _json(self._proxies.create(_body(request)).show(), 201)

    def _show(self, request: Request, name: str) -> Response:
        return _json(self._proxies.get(name).show())

    def _update(self, request: Request, name: str) -> Response:
        self._proxies.get(name)
        return _json(self._proxies.update(name, _body(request)).show())

    def _delete(self, request: Request, name: str) -> Response:
        self._proxies.remove(name)
        return Response(status=204)

    def _toxics(self, request: Request, name: str) -> Response:
        return _json(self._proxies.get(name).toxics())

    def _add_toxic(self, request: Request, name: str) -> Response:
        self._proxies.get(name)
        return _json(self._proxies.add_toxic(name, _body(request)).show())

    def _toxic(self, request: Request, name: str, toxic: str) -> Response:
        return _json(self._proxies.get(name).toxic(toxic).show())

    def _update_toxic(self, request: Request, name: str, toxic: str) -> Response:
        proxy = self._proxies.get(name)
        proxy.toxic(toxic)
        return _json(proxy.update_toxic(toxic, _body(request)).show())

    def _remove_toxic(self, request: Request, name: str, toxic: str) -> Response:
        self._proxies.get(name).remove_toxic(toxic)
        return Response(status=204)


def _route(method: str, path: str, work: Callable[..., Response]) -> Rule:
    return Rule(path, methods=[method], endpoint=work)


def _json(document: Any, status: int = 200) -> Response:
    return Response(json.dumps(document), status, content_type="application/json")


def _body(request: Request, kind: type = dict) -> Any:
    """The request's JSON, whatever its content type says: clients send any."""
    try:
        document = json.loads(request.get_data())
    except ValueError as error:
        raise bad_body(error) from None
    if not isinstance(document, kind):
        raise bad_body(f"it must be a JSON {'list' if kind is list else 'object'}")
    return document


class _Quiet(WSGIRequestHandler):
    """Without a line for each request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing."""


@contextmanager
def served(listener: socket.socket, proxies: Collection) -> Iterator[None]:
    """Answer on the listening socket, in threads of its own, for the time of the block."""
    host, port = listener.getsockname()[:2]
    server = make_server(
        host, port, Api(proxies), threaded=True, request_handler=_Quiet, fd=listener.fileno()
    )
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="timedblock-api"
    )
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
