"""Deadline sockets and racing connects. Wall time: limits of 50-100 ms, asserted + 0.25 s."""

from __future__ import annotations

import contextlib
import errno
import gc
import socket
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.net_lab import full, pair, refused
from timedblock import clock as clocks
from timedblock import time_limit
from timedblock.net import sockets
from timedblock.net.sockets import DeadlineSocket, connect
from timedblock.net.wire import Wire

pytestmark = pytest.mark.wall
SLACK = 0.25


@contextlib.contextmanager
def _within(seconds: float, at_least: float = 0.0) -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert at_least - 0.01 <= took <= seconds + SLACK


OPERATIONS: list[tuple[str, Callable[[DeadlineSocket], object]]] = [
    ("recv", lambda sock: sock.recv(10)),
    ("recv_into", lambda sock: sock.recv_into(bytearray(10))),
    ("sendall", lambda sock: sock.sendall(b"x" * (1 << 24))),
    ("makefile", lambda sock: sock.makefile("rb").readline()),
]
operations = pytest.mark.parametrize(
    "operation", [call for _, call in OPERATIONS], ids=[name for name, _ in OPERATIONS]
)


@operations
def test_an_operation_ends_at_the_deadline_in_force(
    operation: Callable[[DeadlineSocket], object],
) -> None:
    """A peer that says nothing: TimeoutError when the deadline passes."""
    with pair() as (ours, _), _within(0.05, 0.05), time_limit(0.05), pytest.raises(TimeoutError):
        operation(ours)


@operations
def test_without_a_deadline_the_ceiling_holds(
    operation: Callable[[DeadlineSocket], object],
) -> None:
    """A socket of ours where no deadline is set has the ceiling, never None."""
    with pair(ceiling=0.05) as (ours, _), _within(0.05, 0.05), pytest.raises(TimeoutError):
        operation(ours)


def test_each_operation_has_what_is_left() -> None:
    """A peer that always has another byte can't stretch the deadline."""
    with pair() as (ours, peer), _within(0.1), time_limit(0.1), pytest.raises(TimeoutError):
        while True:
            peer.send(b"x")
            assert ours.recv(10) == b"x"
            time.sleep(0.01)


def test_bytes_that_are_here_are_the_answer() -> None:
    """The deadline has passed, the reply lies in the buffer: it is read."""
    with pair() as (ours, peer):
        peer.sendall(b"here")
        with time_limit(0.01):
            time.sleep(0.02)
            assert ours.recv(10) == b"here"
            assert ours.send(b"x") == 1
            with pytest.raises(TimeoutError):
                ours.recv(10)


def test_the_calls_own_instant_goes_before_the_context() -> None:
    """`until` is that of the call in progress."""
    with pair() as (ours, _), time_limit(5):
        ours.until = time.monotonic() + 0.05
        with _within(0.05), pytest.raises(TimeoutError):
            ours.recv(1)


def test_a_severed_socket_raises_whatever_is_done_with_it() -> None:
    """A cut answer must not look like a short one."""
    with pair() as (ours, _):
        ours.severed = True
        for operation in (lambda: ours.recv(1), lambda: ours.send(b"x"), lambda: ours.sendall(b"")):
            with pytest.raises(ConnectionResetError, match="severed"):
                operation()


def test_a_socket_severed_during_a_read_raises() -> None:
    """recv would return b'': the mark tells."""
    import threading

    with pair() as (ours, _):

        def sever() -> None:
            ours.severed = True
            socket.socket.shutdown(ours, socket.SHUT_RDWR)

        timer = threading.Timer(0.03, sever)
        timer.start()
        with pytest.raises(ConnectionResetError):
            ours.recv(1)
        timer.join()


def test_the_end_of_the_stream_is_the_end() -> None:
    """A peer that closes: b''."""
    with pair() as (ours, peer):
        peer.close()
        assert ours.recv(1) == b""
        assert ours.recv_into(bytearray(1)) == 0


def test_a_connect_ends_at_the_deadline() -> None:
    """Nobody answers the handshake."""
    with full() as address:
        ours = DeadlineSocket(socket.AF_INET, socket.SOCK_STREAM)
        ours.clock = clocks.SYSTEM
        with ours, time_limit(0.05), _within(0.05), pytest.raises(TimeoutError):
            ours.connect(address)


# -- connect() --------------------------------------------------------------------------------


def _connect(*addresses: Any, seconds: float = 1.0, **options: Any) -> DeadlineSocket:
    return connect(
        [(socket.AF_INET, address) for address in addresses],
        clock=clocks.SYSTEM,
        seconds=seconds,
        **options,
    )


@pytest.fixture
def listener() -> Iterator[tuple[str, int]]:
    """Somebody who listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one.getsockname()


def test_a_connected_socket_is_ours(listener: tuple[str, int], no_leaks: None) -> None:
    """With the options that were asked for."""
    with _connect(listener, no_delay=True) as sock:
        assert type(sock) is DeadlineSocket
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getpeername() == listener


def test_a_silent_address_doesnt_hold_up_the_next(
    listener: tuple[str, int], no_leaks: None
) -> None:
    """RFC 8305: the second address starts after the attempt delay and wins."""
    with full() as silent, _within(0.25, 0.2), _connect(silent, listener) as sock:
        assert sock.getpeername() == listener


def test_the_attempt_delay_shrinks_with_the_time(listener: tuple[str, int], no_leaks: None) -> None:
    """In 0.09 s there is time for a second address too."""
    with full() as silent, _within(0.09), _connect(silent, listener, seconds=0.09) as sock:
        assert sock.getpeername() == listener


def test_a_refusing_address_gives_way_at_once(listener: tuple[str, int], no_leaks: None) -> None:
    """The next one starts without the delay."""
    with _within(0.0), _connect(refused(), refused(), listener) as sock:
        assert sock.getpeername() == listener


def test_when_all_refuse_the_last_error_is_raised(no_leaks: None) -> None:
    """With its errno."""
    with pytest.raises(ConnectionRefusedError) as caught:
        _connect(refused(), refused())
    assert caught.value.errno == errno.ECONNREFUSED


def test_when_nobody_answers_it_ends_in_time(no_leaks: None) -> None:
    """TimeoutError at the limit, and every attempt is closed."""
    with full() as one, full() as other, _within(0.1, 0.1), pytest.raises(TimeoutError):
        _connect(one, other, seconds=0.1)


def test_no_address_is_an_error() -> None:
    """An empty list can't be connected to."""
    with pytest.raises(OSError, match="no address"):
        _connect()


def test_a_family_that_isnt_there_gives_way(listener: tuple[str, int]) -> None:
    """An address of a family without support is skipped."""
    addresses: list[Any] = [(999, ("x", 1)), (socket.AF_INET, listener)]
    with connect(addresses, clock=clocks.SYSTEM, seconds=1) as sock:
        assert sock.getpeername() == listener


def test_a_unix_socket(tmp_path: Any, no_leaks: None) -> None:
    """A path is an address too; it has no TCP options."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)
        one.listen()
        address: Any = (socket.AF_UNIX, path)
        with connect([address], clock=clocks.SYSTEM, seconds=1, no_delay=True) as sock:
            assert sock.getpeername() == path
    with pytest.raises(FileNotFoundError):
        connect([(socket.AF_UNIX, path + "x")], clock=clocks.SYSTEM, seconds=1)  # type: ignore[list-item]


def test_gevent_that_patched_too_late_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear error, not sockets that block every greenlet; without gevent nothing."""
    monkeypatch.setitem(
        sys.modules, "gevent.monkey", SimpleNamespace(is_module_patched=lambda name: True)
    )
    with pytest.raises(RuntimeError, match="before the first import"):
        sockets.check_not_patched_late()
    monkeypatch.setattr(sockets, "COOPERATIVE", True)
    sockets.check_not_patched_late()
    monkeypatch.delitem(sys.modules, "gevent.monkey")
    sockets.check_not_patched_late()


def test_a_forgotten_connection_is_closed_at_once() -> None:
    """No cycle keeps it until the garbage collector runs."""
    gc.disable()
    try:
        with pair() as (ours, peer):
            wire = Wire(ours, clocks.SYSTEM)
            import weakref

            ref = weakref.ref(wire)
            del wire
            assert ref() is None
            assert peer.fileno() > 0
    finally:
        gc.enable()
