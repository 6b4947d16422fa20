"""The watchdog severs what hangs, and nothing else. Wall time: limits of 30-60 ms, + 0.25 s."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from timedblock.net.watchdog import Guard, Watchdog

pytestmark = pytest.mark.wall
SLACK = 0.25


def test_a_hanging_read_is_ended() -> None:
    """recv returns at the instant, and the guard is marked: b'' isn't the peer's end."""
    watchdog = Watchdog()
    one, other = socket.socketpair()
    with one, other:
        began = time.monotonic()
        guard = watchdog.watch(one, 0.05)
        assert one.recv(1) == b""
        assert 0.04 <= time.monotonic() - began <= 0.05 + SLACK
        assert guard.severed
        assert watchdog.release(guard) is False


def test_a_released_socket_lives() -> None:
    """Whoever was in time keeps the connection."""
    watchdog = Watchdog()
    one, other = socket.socketpair()
    with one, other:
        guard = watchdog.watch(one, 0.03)
        assert watchdog.release(guard)
        time.sleep(0.06)
        other.send(b"x")
        assert one.recv(1) == b"x"


def test_an_earlier_instant_that_comes_later_is_kept() -> None:
    """A nearer limit wakes the watchdog from waiting for a farther one."""
    watchdog = Watchdog()
    pairs = [socket.socketpair() for _ in range(3)]
    far = watchdog.watch(pairs[0][0], 60)
    began = time.monotonic()
    watchdog.watch(pairs[1][0], 0.06)
    watchdog.watch(pairs[2][0], 0.03)
    assert pairs[2][0].recv(1) == b""
    assert pairs[1][0].recv(1) == b""
    assert time.monotonic() - began <= 0.06 + SLACK
    assert watchdog.release(far)
    for pair in pairs:
        for one in pair:
            one.close()


def test_a_closed_socket_is_no_trouble() -> None:
    """Severing what is closed already ends nothing else."""
    watchdog = Watchdog()
    one, other = socket.socketpair()
    one.close()
    other.close()
    guard = watchdog.watch(one, 0.0)
    end = time.monotonic() + 2
    while not guard.severed and time.monotonic() < end:
        threading.Event().wait(0.001)
    assert guard.severed
    live, peer = socket.socketpair()
    with live, peer:
        watchdog.watch(live, 0.01)
        assert live.recv(1) == b""


def test_a_socket_released_at_the_last_moment_isnt_severed() -> None:
    """Whatever the order of release and severing: never released in time and severed as well."""
    one, other = socket.socketpair()

    class Late(Guard):
        """Is released exactly while the watchdog looks whether it was."""

        in_time: bool | None = None
        _done = False

        @property
        def done(self) -> bool:  # type: ignore[override]
            if self.in_time is None:
                self.in_time = False
                before = self._done
                self.in_time = Watchdog().release(self)
                return before
            return self._done

        @done.setter
        def done(self, value: bool) -> None:
            self._done = value

    with one, other:
        guard = Late(one, 0.0)
        guard.in_time = None
        Watchdog._sever(guard)
        if guard.in_time:
            other.send(b"x")
            assert one.recv(1) == b"x", "released in time, and severed all the same"


def test_a_forked_childs_watchdog_is_fresh() -> None:
    """The parent's thread isn't there, and its sockets aren't ours to sever."""
    watchdog = Watchdog()
    watchdog._heap.append((0.0, 0, Guard(socket.socket(), 0.0)))
    theirs = watchdog._heap[0][2].sock
    assert theirs is not None
    watchdog._wake.acquire()
    watchdog.after_fork()
    one, other = socket.socketpair()
    with one, other, theirs:
        guard = watchdog.watch(one, 0.01)
        assert one.recv(1) == b""
        assert guard.severed
