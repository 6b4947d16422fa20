"""Faults on the wire: a TCP relay in a process of its own.

The relay listens on *links*; a link relays to one upstream and has one fault at a time, put there
and taken away at run time, for connections that are open as well as for new ones::

    with Relay(upstream=("127.0.0.1", 11211)) as relay:
        link = relay.listen()
        client = pymemcache.Client(link.address)
        link.inject(Hang())          # returns once the relay has done it
        link.clear()

In the process one thread serves every link: `_Loop` waits, `_Link` accepts, `_Connection` pairs a
client with the upstream, `_Flow` carries bytes one way, and one small `_Behaviour` a fault decides
what becomes of them. It obeys JSON lines on its standard input and ends with it, so that it never
outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import json
import os
import resource
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from .flips import flip_framing, flip_payload
from .plan import (
    Blackhole,
    Corrupt,
    Cut,
    Drip,
    ErrorRate,
    Fault,
    Hang,
    Latency,
    Refuse,
    Reset,
    Silent,
)

Address = tuple[str, int]
Upstream = Address | str

BACKLOG = 4096
CHUNK = 1 << 16
#: Bytes of one flow that the relay keeps before it stops reading more.
HIGH_WATER = 1 << 20
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


# The loop


class _Timer:
    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class _Loop:
    """Waits for sockets and for instants, in one thread."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = itertools.count()
        self.running = True

    def watch(
        self, thing: socket.socket | int, before: int, now: int, call: Callable[[int], None]
    ) -> None:
        """Wait for ``now`` events of a socket that ``before`` events were awaited of."""
        if before == now:
            return
        if not before:
            self._selector.register(thing, now, call)
        elif not now:
            self._selector.unregister(thing)
        else:
            self._selector.modify(thing, now, call)

    def after(self, seconds: float, call: Callable[[], None]) -> _Timer:
        timer = _Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def run(self) -> None:
        while self.running:
            for key, mask in self._selector.select(self._due_in()):
                key.data(mask)
            self._run_due()

    def _due_in(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _run_due(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            call = heapq.heappop(self._timers)[2].call
            if call is not None:
                call()


# Bytes


class _Flow:
    """Bytes from one socket of a connection to the other."""

    def __init__(
        self, connection: _Connection, source: socket.socket, target: socket.socket, up: bool
    ) -> None:
        self.connection = connection
        self.source = source
        self.target = target
        self.up = up
        self.kept = 0  # bytes that the link's behaviour holds back
        self.ended = False  # no more is to be read
        self.finished = False  # the target was told so
        self._out = bytearray()
        self._then: Callable[[], None] | None = None

    @property
    def wants_read(self) -> bool:
        return (
            not self.ended
            and len(self._out) + self.kept < HIGH_WATER
            and self.connection.link.behaviour.reads(self)
        )

    @property
    def wants_write(self) -> bool:
        return bool(self._out)

    def read(self) -> None:
        data = self.source.recv(CHUNK)
        behaviour = self.connection.link.behaviour
        if data:
            self.connection.note(self)
            behaviour.received(self, data)
        else:
            self.ended = True
            behaviour.ended(self)

    def send(self, data: bytes) -> None:
        """To the target, as soon as it takes them."""
        if not self._out:
            with contextlib.suppress(BlockingIOError):
                data = data[self.target.send(data) :]
        self._out += data

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            del self._out[: self.target.send(self._out)]
        if not self._out and self._then is not None:
            then, self._then = self._then, None
            then()

    def when_sent(self, then: Callable[[], None]) -> None:
        """Once everything given to ``send`` is on its way."""
        if self._out:
            self._then = then
        else:
            then()

    def finish(self) -> None:
        """Pass the end of the stream on."""
        self.when_sent(self._shut)

    def _shut(self) -> None:
        self.finished = True
        with contextlib.suppress(OSError):
            self.target.shutdown(socket.SHUT_WR)
        self.connection.close_if_finished()


class _Connection:
    """A client's socket, its upstream socket, and the two flows between them."""

    def __init__(self, link: _Link, client: socket.socket, server: socket.socket) -> None:
        self.link = link
        self.client = client
        self.server = server
        self.closed = False
        self.connecting = True
        self.up = _Flow(self, client, server, up=True)
        self.down = _Flow(self, server, client, up=False)
        self.new_request = False  # the bytes in hand begin a request
        self.new_reply = False  # the bytes in hand begin a reply
        self._last_up: bool | None = None
        self._masks = {client: 0, server: 0}

    def note(self, flow: _Flow) -> None:
        """Requests and replies take turns: the first bytes after the other side's begin one."""
        turn = flow.up is not self._last_up
        self.new_request = turn and flow.up
        self.new_reply = turn and not flow.up
        self._last_up = flow.up

    def update(self) -> None:
        """Wait for what the flows want now."""
        if self.closed:
            return
        server = (_WRITE * (self.up.wants_write or self.connecting)) | (
            _READ * self.down.wants_read
        )
        client = (_WRITE * self.down.wants_write) | (_READ * self.up.wants_read)
        self._watch(self.server, server, self._server_ready)
        self._watch(self.client, client, self._client_ready)

    def _watch(self, one: socket.socket, mask: int, call: Callable[[int], None]) -> None:
        self.link.loop.watch(one, self._masks[one], mask, call)
        self._masks[one] = mask

    def _server_ready(self, mask: int) -> None:
        if mask & _WRITE and self.connecting and not self.closed:
            self.connecting = False
            if self.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.abort()
        self._ready(mask, self.up, self.down)

    def _client_ready(self, mask: int) -> None:
        self._ready(mask, self.down, self.up)

    def _ready(self, mask: int, writes: _Flow, reads: _Flow) -> None:
        try:
            if mask & _WRITE and not self.closed and writes.wants_write:
                writes.flush()
            if mask & _READ and not self.closed and reads.wants_read:
                reads.read()
        except BlockingIOError:
            pass
        except OSError:  # either end is gone: so is the other
            self.abort()
        self.update()

    def close_if_finished(self) -> None:
        if self.up.finished and self.down.finished:
            self.close()

    def close(self) -> None:
        if self.closed:
            return
        for one in (self.client, self.server):
            self._watch(one, 0, self._client_ready)
            one.close()
        self.closed = True
        self.link.forget(self)

    def abort(self) -> None:
        """Close with RST, to both ends."""
        if not self.closed:
            for one in (self.client, self.server):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close()

    def cut(self) -> None:
        """Close in the orderly way. What the client sent is read first: closing a socket with
        unread bytes would reset it."""
        with contextlib.suppress(OSError):
            while not self.closed and self.client.recv(CHUNK):
                pass
        self.close()


# Faults


class _Behaviour:
    """What a link does with connections and bytes; this one relays faithfully."""

    accepts: ClassVar[bool] = True  # new connections are taken from the kernel

    def __init__(self, link: _Link) -> None:
        self.link = link

    def begin(self) -> None:
        """The fault begins."""

    def end(self) -> None:
        """The fault ends: release or drop whatever was held back."""

    def reads(self, flow: _Flow) -> bool:
        """Whether bytes are taken from the flow's source at all."""
        return True

    def received(self, flow: _Flow, data: bytes) -> None:
        flow.send(data)

    def ended(self, flow: _Flow) -> None:
        """The flow's source has sent its last byte."""
        flow.finish()

    def forget(self, connection: _Connection) -> None:
        """The connection is closed."""


class _Refuse(_Behaviour):
    accepts = False

    def begin(self) -> None:
        self.link.stop_listening()
        for connection in list(self.link.connections):
            connection.abort()

    def end(self) -> None:
        self.link.start_listening()


class _Blackhole(_Behaviour):
    """A listener whose queue is full: the kernel drops SYNs, as a firewall's DROP does."""

    accepts = False
    _MOST = 16  # connections that may be needed to fill a queue of no length
    _SETTLE = 0.02  # seconds in which a loopback connect completes if it ever will

    def __init__(self, link: _Link) -> None:
        super().__init__(link)
        self._fillers: list[socket.socket] = []
        self._lossy: set[_Connection] = set()

    def begin(self) -> None:
        self.link.accept_waiting()
        self.link.listener.listen(0)
        for _ in range(self._MOST):
            if not self._fill():
                return
        raise RuntimeError(f"the listener at {self.link.address} still accepts connections")

    def _fill(self) -> bool:
        """Take a place in the queue; False if there is none left."""
        one = socket.socket(self.link.listener.family)
        one.setblocking(False)
        one.connect_ex(self.link.listener.getsockname())
        poll = select.poll()
        poll.register(one, select.POLLOUT)
        if not poll.poll(self._SETTLE * 1000):
            one.close()
            return False
        self._fillers.append(one)
        self.link.ours.add(one.getsockname()[:2])
        return True

    def received(self, flow: _Flow, data: bytes) -> None:
        self._lossy.add(flow.connection)

    def ended(self, flow: _Flow) -> None:
        self._lossy.add(flow.connection)

    def forget(self, connection: _Connection) -> None:
        self._lossy.discard(connection)

    def end(self) -> None:
        self.link.listener.listen(BACKLOG)
        self.link.accept_waiting()
        for one in self._fillers:
            one.close()
        self.link.ours.clear()
        # A stream with a hole in it can't go on: its bytes would be taken for something else.
        for connection in list(self._lossy):
            connection.abort()


class _Hang(_Behaviour):
    """Nothing is read, so the kernel keeps every byte, in order, until the end."""

    def __init__(self, link: _Link, fault: Hang) -> None:
        super().__init__(link)
        self._held = {"both": (True, False), "up": (True,), "down": (False,)}[fault.direction]

    def reads(self, flow: _Flow) -> bool:
        return flow.up not in self._held


class _Silent(_Behaviour):
    accepts = False

    def reads(self, flow: _Flow) -> bool:
        return False


class _Delayed(_Behaviour):
    """Replies wait in a queue; the empty chunk is the end of the stream."""

    def __init__(self, link: _Link) -> None:
        super().__init__(link)
        self._queues: dict[_Flow, deque[bytes]] = {}
        self._timers: dict[_Flow, _Timer] = {}

    def keep(self, flow: _Flow, data: bytes) -> None:
        self._queues.setdefault(flow, deque()).append(data)
        flow.kept += len(data)

    def ended(self, flow: _Flow) -> None:
        if flow.up:
            flow.finish()
        else:
            self.received(flow, b"")

    def give(self, flow: _Flow, data: bytes) -> None:
        flow.kept -= len(data)
        if data:
            flow.send(data)
        else:
            flow.finish()

    def guarded(self, flow: _Flow, work: Callable[[_Flow], None]) -> None:
        """Send from a timer, where nobody else takes care of a client that is gone."""
        try:
            work(flow)
        except OSError:
            flow.connection.abort()
        flow.connection.update()

    def forget(self, connection: _Connection) -> None:
        self._queues.pop(connection.down, None)
        timer = self._timers.pop(connection.down, None)
        if timer is not None:
            timer.cancel()

    def end(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for flow in list(self._queues):
            self.guarded(flow, self._give_all)

    def _give_all(self, flow: _Flow) -> None:
        for data in self._queues.pop(flow, ()):
            self.give(flow, data)


class _Latency(_Delayed):
    def __init__(self, link: _Link, fault: Latency) -> None:
        super().__init__(link)
        self._fault = fault
        self._random = fault.random()
        self._due: dict[_Flow, deque[float]] = {}

    def received(self, flow: _Flow, data: bytes) -> None:
        if flow.up:
            flow.send(data)
            return
        delay = self._fault.seconds + self._random.uniform(-1, 1) * self._fault.jitter
        due = self._due.setdefault(flow, deque())
        # A chunk never overtakes the one before it.
        due.append(max(time.monotonic() + delay, due[-1] if due else 0.0))
        self.keep(flow, data)
        if len(due) == 1:
            self._wait(flow)

    def _wait(self, flow: _Flow) -> None:
        seconds = max(0.0, self._due[flow][0] - time.monotonic())
        self._timers[flow] = self.link.loop.after(
            seconds, lambda: self.guarded(flow, self._give_due)
        )

    def _give_due(self, flow: _Flow) -> None:
        now = time.monotonic()
        while self._due[flow] and self._due[flow][0] <= now:
            self._due[flow].popleft()
            self.give(flow, self._queues[flow].popleft())
            if flow.connection.closed:
                return
        if self._due[flow]:
            self._wait(flow)

    def forget(self, connection: _Connection) -> None:
        super().forget(connection)
        self._due.pop(connection.down, None)


class _Drip(_Delayed):
    def __init__(self, link: _Link, fault: Drip) -> None:
        super().__init__(link)
        self._fault = fault

    def received(self, flow: _Flow, data: bytes) -> None:
        if flow.up:
            flow.send(data)
            return
        self.keep(flow, data)
        if flow not in self._timers:
            self._drop(flow)

    def _drop(self, flow: _Flow) -> None:
        """The next drop now, and the one after it in its time."""
        queue = self._queues[flow]
        if not queue:
            self._timers.pop(flow, None)
            return
        data = queue.popleft()
        if len(data) > self._fault.size:
            queue.appendleft(data[self._fault.size :])
        self.give(flow, data[: self._fault.size])
        if not flow.connection.closed:
            self._timers[flow] = self.link.loop.after(
                self._fault.every, lambda: self.guarded(flow, self._drop)
            )


class _AfterReply(_Behaviour):
    """Strikes a connection once ``after`` bytes of reply were delivered on it."""

    def __init__(self, link: _Link, fault: Reset | Cut) -> None:
        super().__init__(link)
        self._after = fault.after
        self._delivered: dict[_Connection, int] = {}
        self._struck: set[_Connection] = set()

    def strike(self, connection: _Connection) -> None:
        raise NotImplementedError

    def reads(self, flow: _Flow) -> bool:
        return flow.connection not in self._struck

    def received(self, flow: _Flow, data: bytes) -> None:
        if flow.up:
            flow.send(data)
            return
        connection = flow.connection
        before = self._delivered.get(connection, 0)
        self._delivered[connection] = before + len(data)
        flow.send(data[: max(0, self._after - before)])
        if before + len(data) >= self._after:
            self._struck.add(connection)
            flow.when_sent(lambda: self.strike(connection))

    def forget(self, connection: _Connection) -> None:
        self._delivered.pop(connection, None)
        self._struck.discard(connection)


class _Reset(_AfterReply):
    def received(self, flow: _Flow, data: bytes) -> None:
        if flow.up and not self._after:
            flow.connection.abort()
        else:
            super().received(flow, data)

    def strike(self, connection: _Connection) -> None:
        connection.abort()


class _Cut(_AfterReply):
    def strike(self, connection: _Connection) -> None:
        connection.cut()


class _Corrupt(_Behaviour):
    def __init__(self, link: _Link, fault: Corrupt) -> None:
        super().__init__(link)
        self._fault = fault
        self._random = fault.random()

    def received(self, flow: _Flow, data: bytes) -> None:
        if flow.connection.new_reply and self._random.random() < self._fault.rate:
            flip = flip_payload if self._fault.payload else flip_framing
            data = flip(data, self._random)
        flow.send(data)


class _ErrorRate(_Behaviour):
    def __init__(self, link: _Link, fault: ErrorRate) -> None:
        super().__init__(link)
        self._rate = fault.rate
        self._random = fault.random()

    def received(self, flow: _Flow, data: bytes) -> None:
        if flow.connection.new_request and self._random.random() < self._rate:
            flow.connection.abort()
        else:
            flow.send(data)


def _behaviour(link: _Link, fault: Fault) -> _Behaviour:
    """What makes this fault on the wire."""
    match fault:
        case Refuse():
            return _Refuse(link)
        case Blackhole():
            return _Blackhole(link)
        case Hang():
            return _Hang(link, fault)
        case Silent():
            return _Silent(link)
        case Latency():
            return _Latency(link, fault)
        case Drip():
            return _Drip(link, fault)
        case Reset():
            return _Reset(link, fault)
        case Cut():
            return _Cut(link, fault)
        case Corrupt():
            return _Corrupt(link, fault)
        case ErrorRate():
            return _ErrorRate(link, fault)
    raise ValueError(_not_on_the_wire(fault))


_ON_THE_WIRE = (
    Refuse, Blackhole, Hang, Silent, Latency, Drip, Reset, Cut, Corrupt, ErrorRate,
)  # fmt: skip


def _not_on_the_wire(fault: Fault) -> str:
    return f"{fault.name} can't be made on the wire by a relay; it is made where names are resolved"


# Links


class _Link:
    """One listening address, its upstream, its fault, its connections.

    ``_reserved`` is bound to the same port and never listens: while the listener is closed it
    keeps the port from everybody else, and connects are refused."""

    def __init__(self, loop: _Loop, address: Address, upstream: Upstream) -> None:
        self.loop = loop
        self.connections: set[_Connection] = set()
        self.accepted = 0
        self.ours: set[tuple[Any, ...]] = set()  # addresses of the relay's own connections
        self.behaviour = _Behaviour(self)
        self.fault: Fault | None = None
        self._target = _resolve(upstream)
        self._watched = 0
        self._end: _Timer | None = None
        family, where = _resolve(address)
        self._reserved = self._bound(family, where)
        self.address: Any = self._reserved.getsockname()
        self.start_listening()

    @staticmethod
    def _bound(family: int, where: Any) -> socket.socket:
        one = socket.socket(family)
        try:
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(where)
        except BaseException:
            one.close()
            raise
        return one

    def start_listening(self) -> None:
        self.listener = self._bound(self._reserved.family, self.address)
        self.listener.listen(BACKLOG)
        self._watch(self.behaviour.accepts)

    def stop_listening(self) -> None:
        self._watch(False)
        self.listener.close()

    def _watch(self, accepting: bool) -> None:
        if self.listener.fileno() < 0:
            return
        mask = _READ if accepting else 0
        self.loop.watch(self.listener, self._watched, mask, lambda _: self.accept_waiting())
        self._watched = mask

    def accept_waiting(self) -> None:
        """Take every connection that the kernel has accepted for us."""
        while True:
            try:
                client, peer = self.listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._rest(error)
                return
            if peer[:2] in self.ours:
                client.close()
            else:
                self._open(client)

    def _rest(self, error: OSError) -> None:
        """Out of descriptors: look again a little later instead of at once."""
        if error.errno in (errno.EMFILE, errno.ENFILE) and self._watched:
            self._watch(False)
            self.loop.after(0.05, lambda: self._watch(self.behaviour.accepts))

    def _open(self, client: socket.socket) -> None:
        self.accepted += 1
        family, where = self._target
        try:
            server = socket.socket(family)
        except OSError as error:
            client.close()
            self._rest(error)
            return
        for one in (client, server):
            one.setblocking(False)
            if one.family != socket.AF_UNIX:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(self, client, server)
        self.connections.add(connection)
        if server.connect_ex(where) in (0, errno.EINPROGRESS):
            connection.update()
        else:
            connection.abort()

    def forget(self, connection: _Connection) -> None:
        self.connections.discard(connection)
        self.behaviour.forget(connection)

    def inject(self, fault: Fault) -> None:
        self._change(_behaviour(self, fault), fault)
        if fault.duration is not None:
            self._end = self.loop.after(fault.duration, self.clear)

    def clear(self) -> None:
        self._change(_Behaviour(self), None)

    def _change(self, behaviour: _Behaviour, fault: Fault | None) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None
        before, self.behaviour, self.fault = self.behaviour, behaviour, fault
        before.end()
        try:
            behaviour.begin()
        except BaseException:
            self.behaviour, self.fault = _Behaviour(self), None
            behaviour.end()
            raise
        finally:
            self._resume()

    def _resume(self) -> None:
        """Wait for what the behaviour in force wants."""
        self._watch(self.behaviour.accepts)
        for connection in list(self.connections):
            connection.update()

    def close(self) -> None:
        self.clear()
        self.stop_listening()
        self._reserved.close()
        for connection in list(self.connections):
            connection.abort()


def _resolve(address: Upstream) -> tuple[int, Any]:
    """Family and socket address of (host, port), or of a UNIX socket's path."""
    if isinstance(address, str):
        return socket.AF_UNIX, address
    host, port = address
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return family, where


# The process


class _Control:
    """Obeys JSON lines, one answer for each, in order."""

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop
        self._links: dict[int, _Link] = {}
        self._numbers = itertools.count(1)
        self._input = b""
        try:
            loop.watch(0, 0, _READ, self._readable)
        except PermissionError:  # a file, or /dev/null
            sys.exit("the relay is driven through a pipe on its standard input")

    def _readable(self, mask: int) -> None:
        data = os.read(0, CHUNK)
        if not data:
            self._loop.running = False
            return
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            self._write(self._answer(line))

    @staticmethod
    def _write(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), flush=True)

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            return {"ok": True, **self._do(request.pop("do"), request)}
        except Exception as error:  # the relay outlives a bad request
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def _do(self, what: str, request: dict[str, Any]) -> dict[str, Any]:
        if what == "listen":
            return self._listen(request)
        link = self._links.get(request["link"])
        if link is None:
            raise ValueError("this link is closed")
        if what == "inject":
            link.inject(Fault.from_dict(request["fault"]))
        elif what == "clear":
            link.clear()
        elif what == "close":
            self._links.pop(request["link"]).close()
        elif what == "describe":
            return self._describe(link)
        else:
            raise ValueError(f"unknown request {what!r}")
        return {}

    def _listen(self, request: dict[str, Any]) -> dict[str, Any]:
        upstream = request["upstream"]
        upstream = upstream if isinstance(upstream, str) else tuple(upstream)
        link = _Link(self._loop, tuple(request["address"]), upstream)
        number = next(self._numbers)
        self._links[number] = link
        return {"link": number, "address": link.address[:2]}

    @staticmethod
    def _describe(link: _Link) -> dict[str, Any]:
        return {
            "fault": link.fault.to_dict() if link.fault else None,
            "connections": len(link.connections),
            "accepted": link.accepted,
        }


def main() -> int:
    """Relay until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop = _Loop()
    _Control(loop)
    loop.run()
    return 0


# The front


class Link:
    """One address of a relay. Made by ``Relay.listen``."""

    def __init__(self, relay: Relay, number: int, address: Address) -> None:
        self._relay = relay
        self._number = number
        #: (host, port) to connect to.
        self.address = address
        #: Nothing has to stand before a client's command: see `injector.Link`.
        self.prefix: tuple[str, ...] = ()

    def inject(self, fault: Fault) -> None:
        """Put the fault in force, in place of the one before; returns once it bites. It ends
        by ``clear``, or by itself after ``fault.duration`` seconds.

        ValueError for a fault that can't be made on the wire."""
        if not isinstance(fault, _ON_THE_WIRE):
            raise ValueError(_not_on_the_wire(fault))
        self._ask("inject", fault=fault.to_dict())

    def clear(self) -> None:
        """End the fault; returns once bytes pass again. What was held back is delivered."""
        self._ask("clear")

    def close(self) -> None:
        """Stop listening, reset the connections, give the port back."""
        self._ask("close")

    def describe(self) -> dict[str, Any]:
        """``fault`` (as ``Fault.to_dict``, or None), ``connections`` (open now) and ``accepted``
        (ever)."""
        answer = self._ask("describe")
        return {key: answer[key] for key in ("fault", "connections", "accepted")}

    def _ask(self, what: str, **more: Any) -> dict[str, Any]:
        return self._relay.ask({"do": what, "link": self._number, **more})


class Relay:
    """The relay's process, for the time of a ``with`` block, or between ``start`` and ``stop``.

    ``upstream`` is where links lead: (host, port) or the path of a UNIX socket. Thread-safe."""

    ANSWER_LIMIT = 10.0
    name = "proxy"

    def __init__(self, upstream: Upstream | None = None) -> None:
        self._upstream = upstream
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The process. RuntimeError if it isn't running."""
        return self._running().pid

    def start(self) -> Relay:
        """Start the process. RuntimeError if it is running."""
        if self._process is not None:
            raise RuntimeError("the relay is already running")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "timedblock.faults.proxy"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_child_environment(),
        )
        return self

    def stop(self) -> None:
        """End the process, and with it every connection; harmless when it isn't running."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:  # it may have been stopped by a signal
            process.kill()
            process.wait()
        process.stdout.close()

    def listen(
        self, host: str = "127.0.0.1", port: int = 0, *, upstream: Upstream | None = None
    ) -> Link:
        """A new link, by default on a free port. ValueError if it has no upstream; RuntimeError
        if it can't listen there."""
        target = self._upstream if upstream is None else upstream
        if target is None:
            raise ValueError("upstream is needed: give it to Relay or to listen")
        answer = self.ask({"do": "listen", "address": [host, port], "upstream": target})
        where_host, where_port = answer["address"]
        return Link(self, answer["link"], (where_host, where_port))

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request of the control protocol and its answer. RuntimeError if the relay is gone,
        doesn't answer, or can't do it."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                ready, _, _ = select.select([process.stdout], [], [], self.ANSWER_LIMIT)
                line = process.stdout.readline() if ready else b""
            except OSError as error:
                raise RuntimeError(f"the relay is gone: {error}") from error
        if not line:
            self.stop()  # a late answer would be taken for the next one's
            raise RuntimeError("the relay is gone, or didn't answer")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise RuntimeError(f"the relay can't {request['do']}: {answer['error']}")
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the relay is not running")
        return self._process

    def __enter__(self) -> Relay:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _child_environment() -> dict[str, str]:
    """Ours, plus where this package is, which need not be installed."""
    root = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": root if not before else root + os.pathsep + before}


if __name__ == "__main__":
    sys.exit(main())
