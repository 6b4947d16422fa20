"""The I/O thread of a client: pika's loop, what is handed to it, and its timers (L4)."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from pika.adapters.select_connection import IOLoop

from .link import Link
from .publishing import PublishingLink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pika

    from ..block import TimedBlock
    from ..endpoint import Endpoint
    from .request import Request

logger = logging.getLogger("timedblock")

#: Seconds that the polite end of the connections may take, in the background.
FAREWELL = 0.5


class Engine:
    """One daemon thread that owns two connections: RabbitMQ stops reading one that publishes while
    it is short of memory, and whatever else would be sent there.

    Knows nothing of the client, so that a client that is gone ends it. What isn't `post` runs on
    the I/O thread. Lock: none; `post` is a deque's append, and a flag that is cleared before the
    deque is emptied, so that many requests cost one wake-up.
    """

    def __init__(
        self, name: str, hosts: Sequence[pika.ConnectionParameters], connect: TimedBlock
    ) -> None:
        assert connect.endpoint is not None
        self.endpoint: Endpoint = connect.endpoint
        self.clock = self.endpoint.clock
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._woken = False
        self._expiring: list[tuple[float, int, Request]] = []
        self._numbers = itertools.count()
        self._timer: Any = None
        self.ended = False
        self.ioloop = IOLoop()
        self.publishing = PublishingLink(self, hosts, connect)
        self.asking = Link(self, hosts, connect)
        self._thread = threading.Thread(target=self._run, name=f"timedblock-{name}", daemon=True)
        self._thread.start()

    # -- from any thread ----------------------------------------------------------------------

    def post(self, fn: Callable[..., None], *args: Any) -> None:
        """Have ``fn(*args)`` done on the I/O thread."""
        self._inbox.append((fn, args))
        if not self._woken:
            self._woken = True
            # it is closed where the engine has ended: then nobody listens any more
            with contextlib.suppress(Exception):
                self.ioloop.add_callback_threadsafe(self._drain)

    def end(self) -> None:
        """Close the connections, end the thread; waits for neither."""
        self.post(self._end)

    def join(self, seconds: float) -> bool:
        """Wait up to `seconds` until the thread has ended; whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # -- on the I/O thread --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self.ioloop.start()
        except BaseException as error:  # pika raised in a callback of its own
            logger.error("the I/O thread of RabbitMQ ended by %s", type(error).__name__)
        finally:
            self.ended = True
            for link in (self.publishing, self.asking):
                link.drop("the client was closed")
            self._drain()
            with contextlib.suppress(Exception):
                self.ioloop.close()

    def _drain(self) -> None:
        self._woken = False
        while self._inbox:
            fn, args = self._inbox.popleft()
            try:
                fn(*args)
            except Exception as error:
                logger.error("RabbitMQ's I/O thread: %s", type(error).__name__)

    def _end(self) -> None:
        self.ended = True
        for link in (self.publishing, self.asking):
            link.close()
        self._stop_when_closed(self.clock.monotonic() + FAREWELL)

    def _stop_when_closed(self, until: float) -> None:
        if self.clock.monotonic() >= until or not (self.publishing.open or self.asking.open):
            self.ioloop.stop()
        else:
            self.ioloop.call_later(0.01, lambda: self._stop_when_closed(until))

    def expire(self, request: Request) -> None:
        """Give `request`, for which no thread waits, up at its time."""
        heapq.heappush(self._expiring, (request.at, next(self._numbers), request))
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and self._expiring:
            pause = max(0.0, self._expiring[0][0] - self.clock.monotonic())
            # a shorter one may follow: look again soon
            self._timer = self.ioloop.call_later(min(pause, 0.02), self._look)

    def _look(self) -> None:
        self._timer = None
        now = self.clock.monotonic()
        while self._expiring and (self._expiring[0][0] <= now or self._expiring[0][2].done):
            _, _, request = heapq.heappop(self._expiring)
            if request.done or request.given_up:
                continue
            if request.at > now:
                heapq.heappush(self._expiring, (request.at, next(self._numbers), request))
            elif request.on_done is not None:
                request.given_up = True
                request.on_done(request)
                self.publishing.doubt(request)
        self._arm()
