"""How a link is met: its listening socket, open or not."""

from __future__ import annotations

import enum
import errno
import select
import socket
from collections.abc import Callable
from typing import Any

from .loop import READ, Loop

BACKLOG = 4096


class Door(enum.IntEnum):
    """What becomes of new connections; where several are asked for, the largest holds."""

    OPEN = 0
    #: The kernel completes them, nobody takes them.
    UNATTENDED = 1
    #: The kernel drops their SYNs, as a firewall's DROP does: the listener's queue is full.
    WALLED = 2
    #: Nobody listens: refused.
    CLOSED = 3


class Doorway:
    """The listener of a link. `took` is called with each new client.

    ``_reserved`` is bound to the same port and never listens: while the listener is closed it
    keeps the port from everybody else, and connects are refused."""

    _MOST = 16  # connections that may be needed to fill a queue of no length
    _SETTLE = 0.02  # seconds in which a loopback connect completes if it ever will
    _REST = 0.05  # seconds until a look for free descriptors

    def __init__(
        self, loop: Loop, family: int, where: Any, took: Callable[[socket.socket], None]
    ) -> None:
        self._loop = loop
        self._took = took
        self._state = Door.OPEN
        self._watched = 0
        self._fillers: list[socket.socket] = []
        self._ours: set[tuple[Any, ...]] = set()  # addresses of the fillers
        _check_free(family, where)
        self._reserved = _bound(family, where)
        self.address: Any = self._reserved.getsockname()
        self._listen()

    def set(self, state: Door) -> None:
        """Open or close it; harmless when it is so already. RuntimeError if it can't be done."""
        before, self._state = self._state, state
        if before is not state:
            if before is Door.CLOSED:
                self._listen()
            elif before is Door.WALLED:
                self._tear_down()
            if state is Door.CLOSED:
                self._unlisten()
            elif state is Door.WALLED:
                self._wall_up()
        self._watch(state is Door.OPEN)

    def close(self) -> None:
        """Give the port back."""
        self.set(Door.CLOSED)
        self._reserved.close()

    def rest(self, error: OSError) -> None:
        """Out of descriptors: look again a little later instead of at once."""
        if error.errno in (errno.EMFILE, errno.ENFILE) and self._watched:
            self._watch(False)
            self._loop.after(self._REST, lambda: self._watch(self._state is Door.OPEN))

    def _listen(self) -> None:
        self._listener = _bound(self._reserved.family, self.address)
        self._listener.listen(BACKLOG)
        self._watch(self._state is Door.OPEN)

    def _unlisten(self) -> None:
        self._watch(False)
        self._listener.close()

    def _watch(self, accepting: bool) -> None:
        if self._listener.fileno() < 0:
            return
        mask = READ if accepting else 0
        self._loop.watch(self._listener.fileno(), self._watched, mask, self._accept_waiting)
        self._watched = mask

    def _accept_waiting(self, mask: int = READ) -> None:
        """Take every connection that the kernel has accepted for us."""
        while True:
            try:
                client, peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self.rest(error)
                return
            if peer[:2] in self._ours:
                client.close()
            else:
                self._took(client)

    def _wall_up(self) -> None:
        self._accept_waiting()
        self._listener.listen(0)
        for _ in range(self._MOST):
            if not self._fill():
                return
        raise RuntimeError(f"the listener at {self.address} still accepts connections")

    def _fill(self) -> bool:
        """Take a place in the queue; False if there is none left."""
        one = socket.socket(self._listener.family)
        one.setblocking(False)
        one.connect_ex(self._listener.getsockname())
        poll = select.poll()
        poll.register(one, select.POLLOUT)
        if not poll.poll(self._SETTLE * 1000):
            one.close()
            return False
        self._fillers.append(one)
        self._ours.add(one.getsockname()[:2])
        return True

    def _tear_down(self) -> None:
        self._listener.listen(BACKLOG)
        self._accept_waiting()
        for one in self._fillers:
            one.close()
        self._fillers.clear()
        self._ours.clear()


def _bound(family: int, where: Any, *, shared: bool = True) -> socket.socket:
    one = socket.socket(family)
    try:
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, where[0] != "::")
        one.bind(where)
    except BaseException:
        one.close()
        raise
    return one


def _check_free(family: int, where: Any) -> None:
    """OSError if somebody listens there: a port that is shared would be, with another relay's."""
    _bound(family, where, shared=False).close()
