"""The I/O thread of a client: pika's loop, what is handed to it, and its timers (L4)."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from pika.adapters.select_connection import IOLoop

from .detour import Detour
from .hosts import Places
from .link import Link
from .publishing import PublishingLink
from .routing import Routing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pika

    from ..block import TimedBlock
    from ..endpoint import Endpoint
    from .connecting import Connecting
    from .request import Publication, Request
    from .topology import Topology

logger = logging.getLogger("timedblock")

#: Seconds that the polite end of the connections may take, in the background.
FAREWELL = 0.5
#: Seconds that their impolite end may take.
_ABORT = 0.1
#: Seconds between two looks at who has run out of time.
_TICK = 0.02
#: Messages that are handed over in a row before the I/O thread has its turn.
_YIELD = 128
#: Looks at what was handed over between two looks at the sockets.
_ROUNDS = 4
#: Seconds until the loop is entered again after something raised in it.
_RECOVER = 0.05


class _Bell:
    """Wakes the I/O thread.

    Lock: `_lock` keeps the descriptor open while somebody rings: once closed, its number may be
    anybody's. Not in a forked child, where it is the parent's bell, and the lock may be taken.
    """

    _closed = False
    reader = _writer = -1

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)

    def ring(self) -> None:
        if os.getpid() != self._pid:
            return
        with self._lock, contextlib.suppress(BlockingIOError):  # it rings
            if not self._closed:
                os.write(self._writer, b"!")

    def hush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.reader, 4096)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.reader)
                os.close(self._writer)

    def __del__(self) -> None:  # a forked child's copy, or one that an interrupt left half made
        if not self._closed and self.reader >= 0:
            self._closed = True
            os.close(self.reader)
            os.close(self._writer)


class Engine:
    """One daemon thread that owns two connections: RabbitMQ stops reading one that publishes while
    it is short of memory, and whatever else would be sent there.

    Knows nothing of the client, so that a client that is gone ends it. What isn't for any thread
    runs on the I/O thread. Lock: none; handing something over is a deque's append, and a flag that
    the I/O thread clears before it looks for the last time, so that many requests cost one wake-up.
    """

    def __init__(
        self,
        name: str,
        hosts: Sequence[pika.ConnectionParameters],
        connect: TimedBlock,
        topology: Topology,
        **publishing: Any,
    ) -> None:
        """`publishing`: see `PublishingLink`."""
        assert connect.endpoint is not None
        self.endpoint: Endpoint = connect.endpoint
        self.clock = self.endpoint.clock
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._bell = _Bell()
        self._woken = False
        #: who has no thread to give it up: in the order of their time, and out of it
        self._expiring: deque[Request] = deque()
        self._out_of_order: list[tuple[float, int, Request]] = []
        self._numbers = itertools.count()
        self._timer: Any = None
        self.ended = False
        self.ioloop = IOLoop()
        self.places = Places(hosts)
        self.publishing = PublishingLink(self, hosts, connect, topology, **publishing)
        self.asking = Link(self, hosts, connect, topology)
        #: for what `publishing` doesn't serve
        detour = partial(Detour, self, hosts, connect, topology)
        self.routing = Routing(self, topology, detour)
        self._thread = threading.Thread(target=self._run, name=f"timedblock-{name}", daemon=True)

    def start(self) -> None:
        """Once, by who made it."""
        self._thread.start()

    # -- from any thread ----------------------------------------------------------------------

    def post(self, fn: Callable[..., Any], *args: Any) -> None:
        """Have ``fn(*args)`` done on the I/O thread."""
        self._inbox.append((fn, args))
        self._wake()

    def publish(self, publication: Publication) -> None:
        """Have it sent."""
        inbox = self.publishing.inbox
        inbox.append(publication)
        if not self._woken:
            self._wake()
        if len(inbox) % _YIELD == _YIELD - 1:
            self.clock.sleep(0)  # else the I/O thread has its turn each 5 ms only

    def _wake(self) -> None:
        if not self._woken:
            try:
                self._woken = True
                self._bell.ring()
            except BaseException:  # an interrupt: whoever comes next rings
                self._woken = False
                raise

    def ring(self) -> None:
        """Have it look, whether it is told to or not."""
        self._bell.ring()

    def end(self) -> None:
        """Close the connections, end the thread; waits for neither."""
        self.post(self._end)

    def join(self, seconds: float) -> bool:
        """Wait up to `seconds` until the thread has ended; whether it has."""
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def check_caller(self) -> None:
        """RuntimeError for a call that would wait for its own thread."""
        if threading.get_ident() == self._thread.ident:
            raise RuntimeError(
                "this is a callback of a future, on the thread that would have to answer: "
                "call publish_async, or from another thread"
            )

    # -- on the I/O thread --------------------------------------------------------------------

    def _run(self) -> None:
        self.ioloop.add_handler(self._bell.reader, self._rung, self.ioloop.READ)
        while not self.ended:
            try:
                self.ioloop.start()
            except BaseException as error:  # pika, or what it called
                self._begin_anew(error)
        for _ in range(2):  # what came in between is told, too
            self._each(lambda link: link.sever("the client was closed"))
            self._drain()
        self._close_loop()
        self._bell.close()

    def _begin_anew(self, error: BaseException) -> None:
        """What was being done when `error` was raised is half done: nothing of the loop, its timers
        and its connections is used again."""
        why = type(error).__name__
        logger.error("RabbitMQ's I/O thread: %s; connecting again", why)
        logger.debug("where it came from", exc_info=error)
        self._each(lambda link: link.sever(why))
        self._close_loop()
        self.clock.sleep(_RECOVER)
        self.ioloop = IOLoop()
        self.ioloop.add_handler(self._bell.reader, self._rung, self.ioloop.READ)
        self._timer = None
        if self._expiring or self._out_of_order:
            self._timer = self.ioloop.call_later(_TICK, self._look)
        self._each(lambda link: link.revive())
        self._woken = True
        self._bell.ring()

    def _close_loop(self) -> None:
        try:
            self.ioloop.close()
        except Exception as error:
            logger.debug("RabbitMQ's loop ended by %s", type(error).__name__)

    def _each(self, act: Callable[[Link], None]) -> None:
        for link in self._links():
            try:
                act(link)
            except Exception as error:
                logger.error("RabbitMQ's I/O thread: %s", type(error).__name__)

    def _rung(self, descriptor: int, events: int) -> None:
        self._bell.hush()
        self._drain()

    def _drain(self) -> None:
        """Whoever hands something over meanwhile need not ring: it is looked for once more, after
        the flag is cleared. But not for ever, or nobody would read what RabbitMQ says."""
        try:
            for _ in range(_ROUNDS):
                self._do_posted()
                self.publishing.pump()
                self._woken = False
                if not self._inbox and not self.publishing.inbox:
                    return
                self._woken = True
        except BaseException:
            try:
                self._woken = True
                self._bell.ring()
            except BaseException:  # an interrupt: whoever comes next rings
                self._woken = False
                raise
            raise
        self._bell.ring()

    def _do_posted(self) -> None:
        while self._inbox:
            fn, args = self._inbox.popleft()
            try:
                fn(*args)
            except Exception as error:
                logger.error("RabbitMQ's I/O thread: %s", type(error).__name__)

    def _end(self) -> None:
        self.ended = True
        for link in self._links():
            link.close()
        self._stop_when_closed(self.clock.monotonic() + FAREWELL)

    def _stop_when_closed(self, until: float, last: bool = False) -> None:
        now = self.clock.monotonic()
        if not any(link.open for link in self._links()) or (last and now >= until):
            self.ioloop.stop()
        elif now < until:
            self.ioloop.call_later(0.01, lambda: self._stop_when_closed(until, last))
        else:
            # no farewell was heard; pika closes the sockets some turns of the loop later
            self._each(lambda link: link.drop("the client was closed"))
            self._stop_when_closed(now + _ABORT, True)

    # -- connections --------------------------------------------------------------------------

    def _links(self) -> list[Link]:
        return [self.publishing, self.asking, *self.routing.links]

    def partner(self, link: Connecting) -> Link:
        """The other one of the two. They are at one host where they can be: what the confirms tell
        of it is known for the consumers too."""
        return self.publishing if link is self.asking else self.asking

    def bring_consumers(self) -> None:
        """Where messages go now, if they were left at a host that messages went to, and whose
        connection was lost: a consumer can't tell its silence from an empty queue."""
        publishing, asking = self.publishing, self.asking
        if (
            asking.consumers
            and asking.place != publishing.place
            and publishing.was_lost(asking.place)
        ):
            asking.leave()

    # -- time ---------------------------------------------------------------------------------

    def expire(self, requests: Iterable[Request]) -> None:
        """Give those of `requests` for which no thread waits up at their time."""
        order = self._expiring
        last = order[-1].due if order else 0.0
        for request in requests:
            if not request.timed_here:
                continue
            at = request.at
            if not request.due and at >= last:
                request.due = last = at
                order.append(request)
            elif not request.due or at < request.due:
                heapq.heappush(self._out_of_order, (at, next(self._numbers), request))
            # else it is in the line, and gets the rest of its time when its turn comes
        if order or self._out_of_order:
            self.look_soon()

    def look_soon(self) -> None:
        """Look who has run out of time, and who waits although there is room."""
        if self._timer is None:
            self._timer = self.ioloop.call_later(_TICK, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self.clock.monotonic()
        order, heap = self._expiring, self._out_of_order
        while order and (order[0].settled or order[0].due <= now):
            request = order.popleft()
            request.due = 0.0
            if not request.settled:
                self._look_at(request, now)
        while heap and (heap[0][2].settled or heap[0][0] <= now):
            self._look_at(heapq.heappop(heap)[2], now)
        if order or heap:
            self.look_soon()
        self.publishing.pump_all()  # who gave up has left room

    def _look_at(self, request: Request, now: float) -> None:
        if request.settled or request.given_up:
            return
        if request.at > now:  # it got more time
            self.expire((request,))
            return
        request.give_up()
        self.publishing.doubt(request)
