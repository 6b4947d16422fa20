"""The monitor on a port of its own (L5): the standard library's server, bounded.

One slow scraper can't hang it, nor can many: a connection has `TOTAL` seconds in all, `MOST` are
served at once, and when one more comes, the oldest makes room.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import socketserver
import sys
import threading
import time
from typing import IO, TYPE_CHECKING, Any, cast
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

from .. import fork
from .apps import wsgi_app

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from _typeshed.wsgi import WSGIApplication
    from prometheus_client.registry import CollectorRegistry

logger = logging.getLogger("timedblock")

#: Seconds for one receive or send, and for a connection in all.
SILENCE, TOTAL = 5.0, 10.0
#: Connections that are served at once.
MOST = 16
#: How often (seconds) old connections are looked for.
_LOOK = 0.25
_PATIENCE = 2.0


class _Handler(WSGIRequestHandler):
    timeout = SILENCE

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: a request for metrics is no news."""

    def handle(self) -> None:
        """One request, as wsgiref does it, without its traceback on stderr."""
        self.raw_requestline = self.rfile.readline(65537)
        if len(self.raw_requestline) > 65536:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
        elif self.parse_request():
            environ, server = self.get_environ(), cast("_Server", self.server)
            stdin = cast("IO[bytes]", self.rfile)
            stdout = cast("IO[bytes]", self.wfile)
            handler = _Answer(stdin, stdout, self.get_stderr(), environ, multithread=True)
            handler.request_handler = self
            handler.run(server.app)


class _Answer(ServerHandler):
    # ServerHandler's close() needs it
    request_handler: _Handler

    def log_exception(self, exc_info: Any) -> None:
        """Its type only."""
        logger.info("a request to the monitor failed: %s", exc_info[0].__name__)


class _Server(WSGIServer):
    request_queue_size = 64
    allow_reuse_port = False
    daemon_threads = True

    def __init__(self, address: tuple[str, int], app: WSGIApplication) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._slots = threading.BoundedSemaphore(MOST)
        # by age; the lock is held while one is shut down, so that nobody closes it meanwhile
        self._open: dict[socket.socket, tuple[float, threading.Thread]] = {}
        self._cut: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, _Handler)
        self.socket.setblocking(False)
        self.app = app
        fork.register(self)

    def after_fork(self) -> None:
        """The child holds neither the port nor a connection."""
        self.socket.close()
        for request in self._open:
            request.close()

    def server_bind(self) -> None:
        """Without HTTPServer's reverse look-up of the host, which may hang."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                time.sleep(_LOOK)  # no descriptors left, say: don't spin until there are
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on a thread of its own; the oldest makes room when all are taken."""
        if not self._slots.acquire(blocking=False) and not self._make_room():
            self.shutdown_request(request)
            return
        thread = threading.Thread(
            target=self._serve, args=(request, client_address), name="timedblock-monitor"
        )
        thread.daemon = True
        with self._lock:
            self._open[request] = time.monotonic(), thread
        try:
            thread.start()
        except BaseException:
            self._forget(request)
            raise

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception as error:  # it went away, or was too slow
            logger.debug("a connection to the monitor ended: %s", type(error).__name__)
        finally:
            self._forget(request)
            self.shutdown_request(request)

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            self._open.pop(request, None)
            self._cut.discard(request)
        self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection could not be served: no thread left, say."""
        kind = sys.exc_info()[0]
        logger.warning("the monitor lost a connection: %s", kind and kind.__name__)

    def service_actions(self) -> None:
        """Cut the connections whose time is over."""
        self._cut_before(time.monotonic() - TOTAL)

    def _make_room(self) -> bool:
        """Cut the oldest, or the next where that one is still at work on its page."""
        while self._cut_one():
            if self._slots.acquire(timeout=_LOOK):
                return True
        return self._slots.acquire(timeout=_PATIENCE)

    def _cut_one(self) -> bool:
        with self._lock:
            oldest = next((one for one in self._open if one not in self._cut), None)
            if oldest is not None:
                self._shut(oldest)
            return oldest is not None

    def _cut_before(self, began: float) -> None:
        with self._lock:
            for request, (since, _) in self._open.items():
                if since <= began and request not in self._cut:
                    self._shut(request)

    def _shut(self, request: socket.socket) -> None:
        self._cut.add(request)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def finish_all(self) -> None:
        """Cut what is open, and wait a little for its threads."""
        self._cut_before(time.monotonic())
        with self._lock:
            threads = [thread for _, thread in self._open.values()]
        end = time.monotonic() + _PATIENCE
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))


class MonitorServer:
    """A monitor that serves; ends with `close`, at the end of its ``with``, or the process.

    Attributes:
        host, port: where it listens.
    """

    def __init__(self, host: str, port: int, app: WSGIApplication) -> None:
        try:
            self._server = _Server((host, port), app)
        except OSError as error:
            text = f"the monitor can't listen on {host}:{port}: {error.strerror}"
            raise OSError(error.errno, text) from error
        self.host, self.port = host, int(self._server.server_port)
        self._thread: threading.Thread | None = threading.Thread(
            target=self._server.serve_forever, args=(_LOOK,), name="timedblock-monitor-accept"
        )
        self._thread.daemon = True
        fork.register(self)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where its pages are."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def after_fork(self) -> None:
        """The child serves nothing."""
        self._thread = None

    def close(self) -> None:
        """Stop serving; connections under way are cut. Returns within a few seconds."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._server.shutdown()
        thread.join(_PATIENCE)
        self._server.server_close()
        self._server.finish_all()

    def __enter__(self) -> MonitorServer:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<MonitorServer {self.url}: {'closed' if self._thread is None else 'serving'}>"


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    critical: Iterable[str] = (),
    registry: CollectorRegistry | None = None,
) -> MonitorServer:
    """Serve the monitor from threads of this process, and return at once.

    Args:
        host: an address of this machine; other machines reach it only on one of theirs or
            ``0.0.0.0``. The pages name blocks and endpoints: don't show them to the world.
        port: 0 takes a free one, which `MonitorServer.port` tells.
        critical, registry: see `wsgi_app`.

    Raises:
        OSError: it can't listen there; the message names host and port.
        TypeError, ValueError, RuntimeError: see `wsgi_app`.
    """
    if not isinstance(host, str) or not host:
        raise ValueError(f"host must be an address of this machine, not {host!r}")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ValueError(f"port must be a whole number from 0 to 65535, not {port!r}")
    return MonitorServer(host, port, wsgi_app(critical=critical, registry=registry))
