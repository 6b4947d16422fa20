"""One connection under the limits of one call after the other, on plain, TLS and users' sockets."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme

from tests.unit.net_lab import pair
from timedblock import clock as clocks
from timedblock import time_limit
from timedblock.net import tls
from timedblock.net.wire import Cut, EndOfStream, Wire

pytestmark = pytest.mark.wall
SLACK = 0.25
AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("localhost")


class _Plain(socket.socket):
    """A user's own kind of socket."""


def _client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context


def _serve_tls(peer: socket.socket, ready: list[ssl.SSLSocket]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CERTIFICATE.configure_cert(context)
    with contextlib.suppress(OSError):
        ready.append(context.wrap_socket(peer.dup(), server_side=True))


@contextlib.contextmanager
def _wire(kind: str) -> Iterator[tuple[Wire, Any]]:
    with contextlib.ExitStack() as stack:
        if kind == "plain":
            ours, peer = stack.enter_context(pair())
            yield Wire(ours, clocks.SYSTEM), peer
        elif kind == "user":
            one, peer = socket.socketpair()
            mine = _Plain(fileno=one.detach())
            with mine, peer:
                yield Wire(mine, clocks.SYSTEM), peer
        else:
            ours, peer = stack.enter_context(pair())
            ready: list[ssl.SSLSocket] = []
            thread = threading.Thread(target=_serve_tls, args=(peer, ready))
            thread.start()
            with tls.Context(_client_context()).wrap_socket(ours, "localhost") as wrapped:
                thread.join()
                with ready[0] as server:
                    yield Wire(wrapped, clocks.SYSTEM), server


def _wait_for(what: Callable[[], object]) -> None:
    """Until `what` holds: bytes take a moment, also to the other end of a pair."""
    end = time.monotonic() + 5
    while not what():
        assert time.monotonic() < end
        time.sleep(0.002)


def _here(wire: Wire) -> bytes | None:
    """What a read gives whose limit has passed."""
    try:
        return wire.read(time.monotonic() - 0.01)
    except Cut:
        return None


kinds = pytest.mark.parametrize("kind", ["plain", "tls", "user"])


@kinds
def test_it_talks(kind: str) -> None:
    """Both ways, within the limit."""
    with _wire(kind) as (wire, peer):
        until = time.monotonic() + 2
        wire.send_rest(b"question", until)
        assert peer.recv(100) == b"question"
        peer.sendall(b"answer")
        assert wire.read(until) == b"answer"
        assert repr(wire).startswith("<Wire ")


@kinds
def test_a_read_ends_at_its_instant(kind: str) -> None:
    """Cut at the limit, which says how late that was noticed; the next call has its own limit."""
    with _wire(kind) as (wire, peer):
        for limit in (0.05, 0.12):
            began = time.monotonic()
            with pytest.raises(Cut) as caught:
                wire.read(began + limit)
            took = time.monotonic() - began
            assert limit - 0.002 <= took <= limit + SLACK
            assert caught.value.overslept == pytest.approx(took - limit, abs=0.05)
        peer.sendall(b"x")
        assert wire.read(time.monotonic() + 1) == b"x"


@kinds
def test_a_dripping_peer_cant_stretch_a_read(kind: str) -> None:
    """Every read of a call ends at the same instant."""
    with _wire(kind) as (wire, peer):
        began = time.monotonic()
        with pytest.raises(Cut):
            while True:
                peer.sendall(b"x")
                wire.read(began + 0.1)
                time.sleep(0.01)
                if time.monotonic() > began + 0.1:
                    wire.read(began + 0.1)
        assert time.monotonic() - began <= 0.1 + SLACK


@kinds
def test_a_peer_that_floods_cant_stretch_a_read(kind: str) -> None:
    """There always are bytes: what is here at the limit is read, for a moment, then it is cut."""
    with _wire(kind) as (wire, peer):
        over = threading.Event()

        def flood() -> None:
            with contextlib.suppress(OSError):
                while not over.is_set():
                    peer.sendall(b"x" * 65536)

        thread = threading.Thread(target=flood)
        thread.start()
        began = time.monotonic()
        try:
            with pytest.raises(Cut):
                while time.monotonic() < began + 3:
                    wire.read(began + 0.1)
            assert time.monotonic() - began <= 0.1 + SLACK
        finally:
            over.set()
            wire.close()
            thread.join()


@kinds
def test_bytes_that_are_here_after_the_limit_are_the_answer(kind: str) -> None:
    """One zero-time read comes first."""
    with _wire(kind) as (wire, peer):
        peer.sendall(b"here")
        _wait_for(lambda: _here(wire) == b"here")
        with pytest.raises(Cut):
            wire.read(time.monotonic() - 0.01)


@kinds
def test_a_large_request_to_a_peer_that_doesnt_read_is_cut(kind: str) -> None:
    """A send has the call's limit too."""
    with _wire(kind) as (wire, _):
        began = time.monotonic()
        with pytest.raises((Cut, TimeoutError)):
            wire.send_rest(b"x" * (1 << 25), began + 0.1)
        assert 0.09 <= time.monotonic() - began <= 0.1 + SLACK


def test_a_send_after_the_limit_isnt_tried() -> None:
    """No time left: Cut."""
    with _wire("plain") as (wire, _), pytest.raises(Cut):
        wire.send_rest(b"x", time.monotonic() - 0.01)


@kinds
def test_the_peers_end_is_seen(kind: str) -> None:
    """EndOfStream in a read, and dead when asked without waiting."""
    with _wire(kind) as (wire, peer):
        assert not wire.is_dead()
        peer.shutdown(socket.SHUT_RDWR)
        _wait_for(wire.is_dead)
        with pytest.raises((EndOfStream, ConnectionError)):
            wire.read(time.monotonic() + 1)
        with pytest.raises((EndOfStream, ConnectionError)):
            wire.read(time.monotonic() - 1)


@kinds
def test_what_nobody_asked_for_means_dead(kind: str) -> None:
    """Bytes on an idle connection would be taken for the next answer."""
    with _wire(kind) as (wire, peer):
        peer.sendall(b"late answer")
        _wait_for(wire.is_dead)


def test_a_closed_wire_is_dead() -> None:
    """Closing is quiet, twice too."""
    with _wire("plain") as (wire, _):
        wire.close()
        wire.close()
        assert wire.is_dead()


def test_after_a_loan_it_is_as_before() -> None:
    """A subclass read from the socket itself: the next call's limit holds again."""
    with _wire("plain") as (wire, peer):
        wire.sock.until = time.monotonic() + 1
        peer.sendall(b"x")
        assert wire.sock.recv(1) == b"x"
        wire.settle()
        assert wire.sock.until is None
        began = time.monotonic()
        with pytest.raises(Cut):
            wire.read(began + 0.05)
        assert time.monotonic() - began <= 0.05 + SLACK


def test_a_users_socket_whose_timeout_doesnt_hold_is_severed() -> None:
    """The watchdog is behind a user's own socket: the call ends all the same, as cut."""

    class Deaf(socket.socket):
        """Ignores timeouts, as a badly written one may."""

        def settimeout(self, value: float | None) -> None:
            super().settimeout(None if value else value)

    one, peer = socket.socketpair()
    with Deaf(fileno=one.detach()) as mine, peer:
        wire = Wire(mine, clocks.SYSTEM)
        began = time.monotonic()
        with pytest.raises(Cut):
            wire.read(began + 0.1)
        assert time.monotonic() - began <= 0.1 + 2 * SLACK
        assert wire.severed


def test_a_users_object_with_sendall_only_is_enough() -> None:
    """pymemcache asks for no more."""

    class Minimal:
        def __init__(self) -> None:
            self.sent: list[bytes] = []

        def sendall(self, data: bytes) -> None:
            assert isinstance(data, bytes)
            self.sent.append(data)

        def recv(self, size: int) -> bytes:
            return b"answer"

        def settimeout(self, seconds: float) -> None:
            pass

        def close(self) -> None:
            raise OSError

    minimal = Minimal()
    wire = Wire(minimal, clocks.SYSTEM)
    until = time.monotonic() + 1
    wire.send_rest(memoryview(b"question"), until)
    assert minimal.sent == [b"question"]
    assert wire.read(until) == b"answer"
    assert wire.is_dead()
    wire.close()


# -- TLS --------------------------------------------------------------------------------------


def test_a_handshake_ends_at_the_deadline_and_the_context_is_untouched() -> None:
    """A peer that accepts and says nothing."""
    context = _client_context()
    before = context.sslsocket_class
    with pair() as (ours, _), time_limit(0.1):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            tls.Context(context).wrap_socket(ours, "localhost")
        assert time.monotonic() - began <= 0.1 + SLACK
    assert context.sslsocket_class is before


def test_a_wrong_name_is_refused() -> None:
    """The user's context decides whom it trusts."""
    with pair() as (ours, peer):
        thread = threading.Thread(target=_serve_tls, args=(peer, []))
        thread.start()
        with pytest.raises(ssl.SSLCertVerificationError):
            tls.Context(_client_context()).wrap_socket(ours, "elsewhere")
        ours.close()
        thread.join()


def test_a_tls_socket_is_under_the_deadline_by_itself() -> None:
    """Where a driver reads and writes it: recv, recv_into, send, sendall."""
    with _wire("tls") as (wire, peer):
        sock = wire.sock
        for operation in (
            lambda: sock.recv(10),
            lambda: sock.recv_into(bytearray(10)),
            lambda: sock.sendall(b"x" * (1 << 24)),
        ):
            began = time.monotonic()
            with time_limit(0.05), pytest.raises((TimeoutError, ssl.SSLError)):
                operation()
            assert time.monotonic() - began <= 0.05 + SLACK
        assert peer.fileno() > 0


def test_a_tls_socket_talks_to_a_driver() -> None:
    """And its end of stream is one."""
    with _wire("tls") as (wire, peer):
        wire.sock.sendall(b"question")
        assert peer.recv(100) == b"question"
        peer.sendall(b"answer")
        assert wire.sock.recv(3) == b"ans"
        buffer = bytearray(3)
        assert wire.sock.recv_into(buffer) == 3
        assert bytes(buffer) == b"wer"
        peer.shutdown(socket.SHUT_RDWR)
        assert wire.sock.recv(1) == b""
