"""One connection under faults: what stands in place of a wire's functions, and what it does (L3).

A `Tap` sits on a wire while an `Injection` reaches it; one small `Behaviour` a fault decides what
becomes of the bytes. `timedblock.faults.inprocess` puts them there and takes them away.

All waits are in real time and end at the instant that the socket was armed for: what limits a call
under a fault is the call's own limit, as on a real network. Under TLS the faults that count bytes
count the protocol's.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import random
import socket
import ssl
import threading
import weakref
from typing import TYPE_CHECKING, Any

from ..clock import SYSTEM
from ..net import resolve
from ..net.wire import CHUNK, EXPIRED, SLACK
from .flips import flip_framing
from .plan import (
    Bandwidth,
    Blackhole,
    Corrupt,
    Cut,
    Drip,
    ErrorRate,
    FailFirst,
    Fault,
    Flap,
    Hang,
    Latency,
    Refuse,
    Reset,
    Silent,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..net.resolve import Address
    from ..net.seam import Site
    from ..net.wire import Wire

_log = logging.getLogger("timedblock")
#: Bytes that a connection takes from its sender before it stops, as a kernel's buffers do.
HIGH_WATER = 1 << 20
_LONGEST_WAIT = 1e6


class Injection:
    """One fault in force at one target, until it is over. Lock: `_lock` guards the draws.

    Attributes:
        fault: the fault.
        met: whether a connection, a connect or a name of the target was there for it to act on.
    """

    def __init__(self, target: str, fault: Fault) -> None:
        self.fault = fault
        self.met = False
        self._name, _, self._where = target.partition("@")
        self._began = SYSTEM.monotonic()
        self._until = math.inf if fault.duration is None else self._began + fault.duration
        self._random = fault.random()
        self._said: set[str] = set()
        self._count = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def make_fresh(self) -> None:
        """In a forked child: another thread may have held the locks."""
        self._lock = threading.Lock()
        stopped, self._stopped = self._stopped, threading.Event()
        if stopped.is_set():
            self._stopped.set()

    def reaches(self, site: Site) -> bool:
        """Whether a connection of `site` is meant."""
        found = self._name in (site.wrapper, site.name) and self._where in ("", site.where)
        self.met = self.met or found
        return found

    @property
    def over(self) -> bool:
        """Whether the fault has ended."""
        return self._stopped.is_set() or SYSTEM.monotonic() >= self._until

    @property
    def refuses(self) -> bool:
        """Whether nobody listens at the moment."""
        fault = self.fault
        if isinstance(fault, Flap):
            return (SYSTEM.monotonic() - self._began) % (fault.down + fault.up) < fault.down
        return isinstance(fault, Refuse)

    def goes_down(self) -> float:
        """The next instant at which nobody listens again, under `Flap`."""
        fault = self.fault
        assert isinstance(fault, Flap)
        period = fault.down + fault.up
        now = SYSTEM.monotonic()
        return now + period - (now - self._began) % period

    def stop(self) -> None:
        """End it, and wake those who wait in it."""
        self._stopped.set()

    def wait(self, until: float) -> bool:
        """Wait to the instant `until`, or to the fault's end; True when the fault is over."""
        while not self.over:
            left = min(until, self._until) - SYSTEM.monotonic()
            if left <= 0:
                break
            self._stopped.wait(min(left, _LONGEST_WAIT))
        return self.over

    def draw(self, use: Callable[[random.Random], Any]) -> Any:
        """What `use` makes of the fault's own generator; one caller at a time."""
        with self._lock:
            return use(self._random)

    def counted(self) -> int:
        """Count once more: 1, 2, 3 and so on."""
        with self._lock:
            self._count += 1
            return self._count

    def first(self, what: str) -> bool:
        """Whether this is the first time of `what`."""
        with self._lock:
            new = what not in self._said
            self._said.add(what)
        return new

    # The two ways not to resolve. A bound method, so that callers of one name share one lookup.

    def fail_to_resolve(self, host: str, port: int) -> list[Address]:
        """Names don't resolve."""
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def resolve_late(self, host: str, port: int) -> list[Address]:
        """The resolver answers when the fault is over."""
        self.wait(math.inf)
        return resolve.lookup(host, port)


class Tap:
    """In place of a wire's functions while faults reach it; takes itself out when it may.

    The newest of its behaviours that is in force decides; with none, bytes pass.

    Attributes:
        kept: bytes that came and weren't given to the reader yet.
        held: bytes that the sender gave and that weren't sent yet.
        new_request, new_reply: the bytes in hand begin one; the two take turns.

    Lock: `_lock` guards the behaviours' comings and goings and `held`; never held in a wait, but
    for that of sending what was held back, which ends as the socket is armed.
    """

    def __init__(self, wire: Wire) -> None:
        # Weak, and without the wire's bound methods: no cycle keeps a lost connection alive.
        self._wire = weakref.ref(wire)
        self.sock = wire.sock
        self.tls = isinstance(wire.sock, ssl.SSLSocket)
        self._send, self._recv = wire.send, wire.recv
        self.kept = bytearray()
        self.held = bytearray()
        self._dead = ""
        self.new_request = self.new_reply = False
        self._upwards: bool | None = None
        self._behaviours: tuple[Behaviour, ...] = ()
        self.make_fresh()

    def make_fresh(self) -> None:
        """In a forked child: another thread may have held the lock."""
        self._lock = threading.RLock()

    def add(self, injection: Injection) -> None:
        """Let a fault act here, unless it does already."""
        wire = self._here()
        with self._lock:
            if any(one.injection is injection for one in self._behaviours):
                return
            behaviour = BEHAVIOURS[type(injection.fault)](self, injection)
            self._behaviours += (behaviour,)
            wire.send, wire.recv, wire.tapped = self.send, self.recv, self.recv_now
            behaviour.begin()

    def finish(self, injection: Injection) -> None:
        """A fault is over."""
        with self._lock:
            gone = [one for one in self._behaviours if one.injection is injection]
            self._behaviours = tuple(one for one in self._behaviours if one not in gone)
            for one in gone:
                one.end()
            if not self._behaviours:
                self._flush()
                self._leave()

    def _leave(self) -> None:
        """Give the wire its own functions back, if nothing is left to do here."""
        with self._lock:
            wire = self._wire()
            if wire is None or self._dead or self.kept or self.held or self._behaviours:
                return
            wire.send, wire.recv, wire.tapped = self._send, self._recv, None

    def _in_force(self) -> Behaviour | None:
        while self._behaviours:
            newest = self._behaviours[-1]
            if not newest.injection.over:
                return newest
            self.finish(newest.injection)
        return None

    # -- in place of the wire's functions ---------------------------------------------------

    def send(self, data: bytes) -> int:
        """See Wire.send."""
        behaviour = self._in_force()
        if self._dead:
            return self._send_dead(data)
        self.new_request, self._upwards = self._upwards is not True, True
        return self.write(data) if behaviour is None else behaviour.send(data)

    def recv(self, size: int) -> bytes:
        """See Wire.recv: waits as long as the wire is armed for."""
        return self._receive(size, SYSTEM.monotonic() + max(0.0, self._here().armed))

    def recv_now(self) -> bytes:
        """See Wire.recv_now."""
        return self._receive(CHUNK, SYSTEM.monotonic())

    def _receive(self, size: int, until: float) -> bytes:
        while True:
            behaviour = self._in_force()
            if self._dead:
                return self._recv_dead()
            if behaviour is None:
                data = self.read(size, until)
                self._leave()
                return data
            given = behaviour.recv(size, until)
            if given is not None:
                return given

    # -- for the behaviours -----------------------------------------------------------------

    def write(self, data: bytes) -> int:
        """Send, after what was held back."""
        with self._lock:
            self._flush()
        if self._dead:
            return self._send_dead(data)
        return self._send(data)

    def read(self, size: int, until: float, *, flush: bool = True) -> bytes:
        """What comes before the instant `until`; raises as the connection does."""
        if self.kept:
            self.new_reply = False
            return self.take(size)
        data = self._fill(size, until, flush)
        if data:
            self.new_reply, self._upwards = self._upwards is not False, False
        return data

    def _fill(self, size: int, until: float, flush: bool) -> bytes:
        if flush and self.held:
            with self._lock:
                self._flush()
        wire = self._here()
        left = until - SYSTEM.monotonic()
        if left <= 0:
            return self._read_now(wire, size)
        if abs(wire.armed - left) > SLACK:  # a part of the time was spent here
            wire.arm(left)
        return self._recv(size)

    def _read_now(self, wire: Wire, size: int) -> bytes:
        if wire._blocking:
            return wire._recv_now()
        wire.armed = -1.0
        wire.sock.settimeout(0.0)
        return self._recv(size)

    def take(self, size: int) -> bytes:
        """The next of the bytes that were kept."""
        data = bytes(self.kept[:size])
        del self.kept[:size]
        return data

    def hold(self, data: bytes) -> int:
        """How many bytes are held back until the fault is over; 0 when there is no more room."""
        with self._lock:
            part = bytes(data[: HIGH_WATER - len(self.held)])
            self.held += part
        return len(part)

    def _flush(self) -> None:
        wire = self._wire()  # kept while we send: another thread may forget it meanwhile
        if wire is None:
            self.held.clear()
            return
        try:
            while self.held and not self._dead:
                del self.held[: self._send(bytes(self.held))]
        except OSError:  # closed, or nobody reads: a request with a hole in it can't go on
            self.reset()

    def expired(self) -> OSError:
        """What the socket raises when its time is over."""
        if self._here()._blocking:
            return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return TimeoutError("timed out")

    @property
    def dead(self) -> bool:
        """Whether the fault has ended the connection."""
        return bool(self._dead)

    def reset(self) -> None:
        """From now on the connection is one that the peer has reset."""
        self._die("reset")

    def hang_up(self) -> None:
        """From now on the connection is one that the peer has closed."""
        self._die("closed")

    def _die(self, how: str) -> None:
        self._dead = how
        self.kept.clear()
        self.held.clear()
        # Who waits in the kernel, and whoever looks whether the connection is dead, sees it too.
        # socket's own: SSLSocket's would make the next recv return raw ciphertext.
        kind: Any = socket.socket if isinstance(self.sock, socket.socket) else type(self.sock)
        with contextlib.suppress(Exception):
            kind.shutdown(self.sock, socket.SHUT_RDWR)

    def _send_dead(self, data: bytes) -> int:
        if self._dead == "closed":  # the kernel takes the bytes; the peer answers with a reset
            return len(data)
        raise reset_error()

    def _recv_dead(self) -> bytes:
        if self._dead == "closed":
            return b""
        raise reset_error()

    def _here(self) -> Wire:
        wire = self._wire()
        if wire is None:
            raise reset_error()
        return wire


def reset_error() -> ConnectionResetError:
    """What a socket raises whose peer has reset the connection."""
    return ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


class Behaviour:
    """One connection under one fault; this one lets everything pass."""

    def __init__(self, tap: Tap, injection: Injection) -> None:
        self.tap = tap
        self.injection = injection
        self.fault: Any = injection.fault

    def begin(self) -> None:
        """The fault begins."""

    def end(self) -> None:
        """The fault is over."""

    def send(self, data: bytes) -> int:
        """How many bytes were taken; raises as the connection would."""
        return self.tap.write(data)

    def recv(self, size: int, until: float) -> bytes | None:
        """What comes before `until`; None when the fault ended meanwhile, or the connection."""
        return self.tap.read(size, until)

    def send_when_over(self, data: bytes) -> int:
        """There is no room: wait as long as the sender may."""
        until = SYSTEM.monotonic() + max(0.0, self.tap._here().armed)
        if self.injection.wait(until):
            return self.tap.send(data)
        raise self.tap.expired()

    def wait(self, until: float) -> None:
        """Nothing comes: returns when the fault is over, raises as the socket does at `until`."""
        if not self.injection.wait(until):
            raise self.tap.expired()


class _Refuse(Behaviour):
    def begin(self) -> None:
        self.tap.reset()


class _Blackhole(Behaviour):
    """A stream with a hole in it can't go on: it is reset when the fault is over."""

    def __init__(self, tap: Tap, injection: Injection) -> None:
        super().__init__(tap, injection)
        self._swallowed = 0
        self._lossy = False

    def end(self) -> None:
        if self._lossy:
            self.tap.reset()

    def send(self, data: bytes) -> int:
        self._lossy = True
        size = min(len(data), HIGH_WATER - self._swallowed)
        self._swallowed += size
        return size or self.send_when_over(data)

    def recv(self, size: int, until: float) -> bytes | None:
        self._lossy = True
        self.wait(until)
        return None


class _Hang(Behaviour):
    """Bytes to the server are held here, those from it stay in the kernel."""

    _UP, _DOWN = ("both", "up"), ("both", "down")

    def __init__(self, tap: Tap, injection: Injection) -> None:
        super().__init__(tap, injection)
        direction = getattr(self.fault, "direction", "both")
        self._up, self._down = direction in self._UP, direction in self._DOWN

    def send(self, data: bytes) -> int:
        if not self._up:
            return self.tap.write(data)
        return self.tap.hold(data) or self.send_when_over(data)

    def recv(self, size: int, until: float) -> bytes | None:
        if self._down:
            self.wait(until)
            return None
        if not self.tap.held:
            return self.tap.read(size, until)
        if self.injection.wait(until):
            return None
        return self.tap.read(size, -math.inf, flush=False)


class _Latency(Behaviour):
    """The first bytes of each reply wait; those after them come as they come."""

    def __init__(self, tap: Tap, injection: Injection) -> None:
        super().__init__(tap, injection)
        self._due = -math.inf

    def recv(self, size: int, until: float) -> bytes | None:
        tap = self.tap
        if not tap.kept:
            data = tap.read(size, until)
            if not data or not tap.new_reply:
                return data
            tap.kept += data
            self._due = SYSTEM.monotonic() + self._delay()
        if self.injection.wait(min(self._due, until)):
            return None
        if self._due > until:
            raise tap.expired()
        return tap.take(size)

    def _delay(self) -> float:
        fault = self.fault
        shift = self.injection.draw(lambda draw: draw.uniform(-1, 1))
        return max(0.0, fault.seconds + shift * fault.jitter)  # type: ignore[no-any-return]


class _Drip(Behaviour):
    def __init__(self, tap: Tap, injection: Injection) -> None:
        super().__init__(tap, injection)
        self._next = -math.inf

    def recv(self, size: int, until: float) -> bytes | None:
        tap = self.tap
        if not tap.kept:
            data = tap.read(size, until)
            if not data:
                return data
            tap.kept += data
        if self.injection.wait(min(self._next, until)):
            return None
        if self._next > until:
            raise tap.expired()
        self._next = SYSTEM.monotonic() + self.fault.every
        return tap.take(min(size, self.fault.size))


class _Bandwidth(Behaviour):
    """A little of the reply whenever it would have come by then."""

    _STEP = 0.05  # seconds

    def __init__(self, tap: Tap, injection: Injection) -> None:
        super().__init__(tap, injection)
        self._free_at = -math.inf

    def recv(self, size: int, until: float) -> bytes | None:
        tap, rate = self.tap, self.fault.rate
        if not tap.kept:
            data = tap.read(size, until)
            if not data:
                return data
            tap.kept += data
            self._free_at = max(self._free_at, SYSTEM.monotonic())
        part = min(size, len(tap.kept), max(1, int(rate * self._STEP)))
        due = self._free_at + part / rate if rate else math.inf
        if self.injection.wait(min(due, until)):
            return None
        if due > until:
            raise tap.expired()
        self._free_at = due
        return tap.take(part)


class _Flap(Behaviour):
    """A connection lives until the store goes down again."""

    def begin(self) -> None:
        if self.injection.refuses:
            self.tap.reset()
        self._until = self.injection.goes_down()

    def send(self, data: bytes) -> int:
        self._look()
        return self.tap.send(data) if self.tap.dead else self.tap.write(data)

    def recv(self, size: int, until: float) -> bytes | None:
        self._look()
        if self.tap.dead:
            return None
        try:
            return self.tap.read(size, min(until, self._until))
        except EXPIRED:
            if until <= self._until:
                raise
        return None

    def _look(self) -> None:
        if SYSTEM.monotonic() >= self._until:
            self.tap.reset()


class _AfterReply(Behaviour):
    """Strikes once ``after`` bytes of reply were delivered."""

    def __init__(self, tap: Tap, injection: Injection) -> None:
        super().__init__(tap, injection)
        self._left: int = self.fault.after

    def recv(self, size: int, until: float) -> bytes | None:
        data = self.tap.read(size, until)
        if not data:
            return data
        given = data[: self._left]
        self._left -= len(given)
        if not self._left:
            self.strike()
        return given or None

    def strike(self) -> None:
        raise NotImplementedError


class _Reset(_AfterReply):
    def send(self, data: bytes) -> int:
        if self.fault.after:
            return self.tap.write(data)
        self.tap.reset()  # the bytes left; what comes back is the reset
        return len(data)

    def strike(self) -> None:
        self.tap.reset()


class _Cut(_AfterReply):
    def strike(self) -> None:
        self.tap.hang_up()


class _Corrupt(Behaviour):
    """Under TLS any flipped bit on the wire, payload or not, fails the record's check. On a plain
    connection no client could see a flipped payload, so that one is left alone."""

    def begin(self) -> None:
        if self._spared() and self.injection.first("spared"):
            _log.warning("corrupt: payload is flipped under TLS only; plain connections are spared")

    def _spared(self) -> bool:
        return bool(self.fault.payload) and not self.tap.tls

    def recv(self, size: int, until: float) -> bytes | None:
        data = self.tap.read(size, until)
        if not data or not self.tap.new_reply or self._spared():
            return data
        flipped: bytes = self.injection.draw(lambda draw: self._flipped(data, draw))
        if flipped == data or not self.tap.tls:
            return flipped
        self.tap.reset()
        raise ssl.SSLError(
            ssl.SSL_ERROR_SSL,
            "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC] decryption failed or bad record mac",
        )

    def _flipped(self, data: bytes, draw: random.Random) -> bytes:
        return flip_framing(data, draw) if draw.random() < self.fault.rate else data


class _FailFirst(Behaviour):
    def send(self, data: bytes) -> int:
        if self.tap.new_request and self.injection.counted() <= self.fault.count:
            self.tap.reset()
            return len(data)
        return self.tap.write(data)


class _ErrorRate(Behaviour):
    def send(self, data: bytes) -> int:
        if self.tap.new_request and self._strikes():
            self.tap.reset()
            return len(data)
        return self.tap.write(data)

    def _strikes(self) -> bool:
        drawn: float = self.injection.draw(random.Random.random)
        rate: float = self.fault.rate
        return drawn < rate


#: The faults that can be made here, and how.
BEHAVIOURS: dict[type[Fault], type[Behaviour]] = {
    Refuse: _Refuse,
    Blackhole: _Blackhole,
    Hang: _Hang,
    Silent: _Hang,
    Latency: _Latency,
    Drip: _Drip,
    Bandwidth: _Bandwidth,
    Reset: _Reset,
    Cut: _Cut,
    Corrupt: _Corrupt,
    Flap: _Flap,
    FailFirst: _FailFirst,
    ErrorRate: _ErrorRate,
}
