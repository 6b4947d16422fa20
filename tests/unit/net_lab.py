"""Loopback peers for the socket tests: a pair, a listener, one that never answers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from timedblock import clock as clocks
from timedblock.net.sockets import DeadlineSocket


@contextlib.contextmanager
def pair(ceiling: float = 5.0) -> Iterator[tuple[DeadlineSocket, socket.socket]]:
    """One of our sockets, connected to a plain one."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours = DeadlineSocket(socket.AF_INET, socket.SOCK_STREAM)
        ours.clock, ours.ceiling = clocks.SYSTEM, ceiling
        with ours:
            ours.connect(listener.getsockname())
            peer, _ = listener.accept()
            # a reply after TLS's tickets would wait for a delayed acknowledgement
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with peer:
                yield ours, peer


@contextlib.contextmanager
def full() -> Iterator[tuple[str, int]]:
    """An address where a connect gets no answer: the backlog is full."""
    with socket.socket() as listener, contextlib.ExitStack() as fillers:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield listener.getsockname()


def refused() -> tuple[str, int]:
    """An address where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address: tuple[str, int] = one.getsockname()
    return address
