"""One exchange with several nodes in one thread: send to all, read whoever is ready (L4).

The share of each node is a call of that node's client, with its own breaker, bulkhead, limits and
connections. Whatever a share waits for (a connection that a worker makes, room to send, its reply)
it waits for in one poll() together with all others, so a node that is down costs them nothing, and
its own limit ends it. All shares begin at once: the longest call limit is the limit of the whole.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import select
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any, cast

from ..errors import Unavailable
from ..net.wire import EXPIRED, Cut, EndOfStream, Wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..call import Call
    from ..net.pool import Turn
    from .client import Client
    from .replies import Reader

#: Seconds that a send may wait; whoever has no room waits in the poll.
_AT_ONCE = 0.001
#: A connection under an injected fault can't be polled: it is asked so often (seconds).
_ASK_AGAIN = 0.002
_CHUNK = 1 << 20


class _More(Exception):
    """A reader needs bytes that aren't here yet."""


class _BytesSoFar:
    """Stands for the connection where a reader parses what came so far."""

    finished = False

    def read(self, until: float) -> bytes:
        """There is no more."""
        raise _More


_BYTES_SO_FAR = cast("Wire", _BytesSoFar())


class Bell:
    """Wakes the poll of one exchange from another thread.

    Its pipe is made and closed in single calls of C code: a KeyboardInterrupt comes between two
    bytecodes, and a descriptor that nobody holds would stay open for ever.

    Lock: `_lock`, so that nobody rings a descriptor that was closed (and may be another's by now);
    reentrant, since a connection that is collected rings wherever that happens.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pipes: list[tuple[int, int]] = []

    @property
    def fd(self) -> int | None:
        """What is readable after a ring; None until `open`."""
        return self._pipes[0][0] if self._pipes else None

    def open(self) -> None:
        """Make it, once."""
        if not self._pipes:
            self._pipes.extend(itertools.starmap(os.pipe, ((),)))
            for end in self._pipes[0]:
                os.set_blocking(end, False)

    def ring(self) -> None:
        """Wake the poll."""
        with self._lock, contextlib.suppress(OSError):  # full: it has been rung often enough
            if self._pipes:
                os.write(self._pipes[0][1], b"\0")

    def hush(self) -> None:
        """Forget the rings so far."""
        if self._pipes:
            with contextlib.suppress(OSError):
                os.read(self._pipes[0][0], 4096)

    def close(self) -> None:
        """Close it; later rings do nothing."""
        with self._lock, contextlib.suppress(IndexError):  # of the pop from an empty list
            ends = itertools.chain.from_iterable(iter(self._pipes.pop, None))
            any(map(os.close, ends))

    __del__ = close


class Part:
    """The share of one node: a request, and then its `answer` or its `error`.

    Args:
        client: the node's.
        operation: its block's name; see `Client._exchange` for the others.
        key: the request's size class, or None.
    """

    def __init__(
        self,
        client: Client,
        operation: str,
        request: bytes,
        read: Reader | None,
        expected: Any,
        key: str | None = None,
    ) -> None:
        self.client = client
        self.operation = operation
        self.answer: Any = None
        self.error: Exception | None = None
        self.done = False
        self._request = request
        self._read = read
        self._expected = expected
        self._key = key
        self._now = client._clock.monotonic
        self._call: Call
        self._begun = False
        self._wire: Wire | None = None
        self._turn: Turn[Wire] | None = None
        self._asked = self._step_at = self._resume_at = math.inf
        self._rest = memoryview(b"")
        self._data: list[bytes] = []
        #: sockets that can't be polled, or mustn't: read in turn
        self.by_hand = False

    # -- what it waits for ------------------------------------------------------------------

    @property
    def due(self) -> float:
        """The instant when something is to be done without any event."""
        if self._wire is not None:
            return self._call.at
        return self._resume_at if self._turn is None else self._step_at

    @property
    def events(self) -> int:
        """What to poll its connection for; 0: nothing."""
        wire = self._wire
        if wire is None or self.tapped:
            return 0
        return select.POLLOUT if self._rest else select.POLLIN

    @property
    def tapped(self) -> bool:
        """Whether injected faults hold bytes back that a poll would announce."""
        wire = self._wire
        return wire is not None and wire.recv_now != wire._recv_now

    def fileno(self) -> int:
        """The descriptor to poll; below 0 when it was closed."""
        return -1 if self._wire is None else int(self._wire.sock.fileno())

    # -- the steps --------------------------------------------------------------------------

    def begin(self, bell: Bell) -> None:
        """Start the call: on an idle connection at once, else in line for one."""
        self._bell = bell
        try:
            self._call = self.client._blocks[self.operation].begin(key=self._key)
        except Unavailable as error:
            self._end(error)
            return
        self._begun = True
        self._attempt()

    def ready(self) -> None:
        """Its connection has room, or bytes, or an end."""
        try:
            if self._rest:
                self._push()
            else:
                self._pull()
        except Exception as error:
            self._fail(error)

    def tick(self, now: float, rung: bool) -> None:
        """Do what is due at the instant `now`, and look at its place in line when `rung`."""
        if self._wire is not None:
            if now >= self._call.at:
                self._expire(now)
        elif self._turn is not None:
            if rung or now >= self._step_at:
                self._step()
        elif now >= self._resume_at:
            self._resume()

    def read_in_turn(self) -> None:
        """Wait for the reply alone (`by_hand`)."""
        wire = self._wire
        if wire is None:
            self.client._clock.sleep(max(0.0, self._resume_at - self._now()))
            self._resume()
            return
        try:
            assert self._read is not None
            until = self._call.at
            self._succeed(self._read(wire, until, self._expected, wire.read(until)))
        except Exception as error:
            self._fail(error)

    def drop(self) -> None:
        """Leave nothing behind, whatever interrupted the exchange."""
        if self.done or not self._begun:
            return
        self._leave_line()
        wire, self._wire = self._wire, None
        if wire is not None:
            self.client._pool.discard(wire, dead=False)
        self._call.abandoned()
        self.done = True

    # -- connection -------------------------------------------------------------------------

    def _attempt(self) -> None:
        client = self.client
        try:
            if client.socket_module is not socket:
                self._send(client._pool.pop() or client._take_slowly(self._call))
                return
            wire = client._pool.pop()
            if wire is not None:
                self._send(wire)
                return
            self._bell.open()
            self._asked = self._now()
            limit = client._connect_limit(self._call)
            self._turn = client._pool.turn(self._call, limit, self._bell.ring)
        except Exception as error:
            self._fail(error)
            return
        self._step()

    def _step(self) -> None:
        assert self._turn is not None
        try:
            wire = self._turn.step()
            if wire is None:
                self._step_at = self._now() + self._turn.wait
                return
            self._leave_line()
            self.client._start_on(wire, self._call, self._now())
            self._send(wire)
        except Exception as error:
            self._fail(error)

    def _leave_line(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.leave()
            self._call.spent = {"connection": self._now() - self._asked}

    def _resume(self) -> None:
        self._resume_at = math.inf
        try:
            self._call.again()
        except Unavailable as error:
            self._end(error)
        else:
            self._attempt()

    # -- bytes ------------------------------------------------------------------------------

    def _send(self, wire: Wire) -> None:
        self._wire = wire
        wire.used = self._call.began
        wire.calls += 1
        # replies come in order: one that was read means that none is still to come
        wire.unread = self._read is None or wire.unread
        self._data = []
        self._rest = memoryview(self._request)
        foreign = self.client.socket_module is not socket
        self.by_hand = foreign or not hasattr(wire.sock, "fileno")
        self._push()

    def _push(self) -> None:
        """Send what there is room for."""
        call, wire = self._call, self._wire
        assert wire is not None
        if self.by_hand:
            call.sent = True
            wire.send_rest(self._rest, call.at)
            self._rest = self._rest[:0]
        elif not self._push_some(call, wire):
            return
        if self._read is None:
            self._succeed(None)

    def _push_some(self, call: Call, wire: Wire) -> bool:
        wire.arm(_AT_ONCE)
        before = call.sent
        while self._rest:
            # before, not after: a KeyboardInterrupt may come between the two
            call.sent = True
            try:
                count = wire.send(self._rest[:_CHUNK])  # type: ignore[arg-type]
            except EXPIRED:
                call.sent = before or not wire.whole_sends
                return False
            before = True
            self._rest = self._rest[count:]
        return True

    def _pull(self) -> None:
        """Take in what has come."""
        wire = self._wire
        assert wire is not None
        while not self.done:
            try:
                data = wire.recv_now()
            except EXPIRED:
                return
            if not data:
                raise EndOfStream
            self._feed(data)
            # what TLS has decrypted already, no poll announces
            if not (isinstance(wire.sock, ssl.SSLSocket) and wire.sock.pending()):
                return

    def _feed(self, data: bytes) -> None:
        assert self._read is not None
        self._data.append(data)
        if not data.endswith(b"\n"):  # every reply ends so
            return
        whole = data if len(self._data) == 1 else b"".join(self._data)
        self._data = [whole]
        try:
            answer = self._read(_BYTES_SO_FAR, self._call.at, self._expected, whole)
        except _More:
            return
        self._succeed(answer)

    def _expire(self, now: float) -> None:
        """The limit has passed: bytes that are here all the same are the answer."""
        wire, at = self._wire, self._call.at
        assert wire is not None
        try:
            if self._rest:
                raise Cut(now - at)
            while not self.done:
                self._feed(wire.read_now(at))
        except Cut as cut:
            cut.mute = not self._rest and not self._data
            self._fail(cut)
        except Exception as error:
            self._fail(error)

    # -- endings ----------------------------------------------------------------------------

    def _succeed(self, answer: Any) -> None:
        wire, self._wire = self._wire, None
        assert wire is not None
        if self._read is not None:
            wire.unread = False
        self._call.succeeded()
        self.client._give_back(wire)
        self.answer = answer
        self.done = True

    def _fail(self, error: Exception) -> None:
        """The attempt failed: the next one, or the end."""
        self._leave_line()
        wire, self._wire = self._wire, None
        try:
            pause = self.client._dispose(self._call, wire, error, self.operation)
        except Exception as raised:
            self._end(raised)
            return
        if pause is None:
            self._attempt()
        else:
            self._resume_at = self._now() + pause

    def _end(self, error: Exception) -> None:
        # its frames hold this part, which would hold it: a cycle for each node that is down
        self.error = error.with_traceback(None)
        self.done = True


def exchange(parts: Sequence[Part]) -> None:
    """Let each part have its answer or its error; ends with the last one's limit."""
    bell = Bell()
    try:
        for part in parts:
            part.begin(bell)
        for part in parts:
            while part.by_hand and not part.done:
                part.read_in_turn()
        while waiting := [part for part in parts if not part.done]:
            _wait(waiting, bell)
    finally:
        for part in parts:
            part.drop()
        bell.close()


def _wait(parts: list[Part], bell: Bell) -> None:
    """Wait for the next event, or instant, of any of the parts, and let them act on it."""
    poll = select.poll()
    by_fd: dict[int, Part] = {}
    tapped = []
    for part in parts:
        events = part.events
        if events:
            fd = part.fileno()
            if fd < 0:
                part.ready()  # closed by somebody: it finds out
                return
            by_fd[fd] = part
            poll.register(fd, events)
        elif part.tapped:
            tapped.append(part)
    if bell.fd is not None:
        poll.register(bell.fd, select.POLLIN)
    now = parts[0]._now
    left = min(part.due for part in parts) - now()
    if tapped:
        left = min(left, _ASK_AGAIN)
    rung = False
    for fd, _ in poll.poll(max(0, math.ceil(min(left, 3600.0) * 1000))):
        if fd in by_fd:
            by_fd[fd].ready()
        else:
            bell.hush()
            rung = True
    for part in tapped:
        part.ready()
    instant = now()
    for part in parts:
        if not part.done:
            part.tick(instant, rung)
