"""What SIGINT and SIGTERM do to our commands, for the time of a block (L0)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_BOTH = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ended_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Both signals call `handler`; afterwards they do what they did before."""
    before = {one: signal.signal(one, handler) for one in _BOTH}
    try:
        yield
    finally:
        for one, earlier in before.items():
            # None: a handler that Python doesn't know of
            signal.signal(one, signal.SIG_DFL if earlier is None else earlier)


@contextmanager
def interrupted_once() -> Iterator[threading.Event]:
    """The first of either is a KeyboardInterrupt, which rolls back and writes what there is; more
    of them don't disturb that.

    The event is for an interrupt that comes where nobody can catch it, such as in a finaliser.
    """
    told = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        for one in _BOTH:
            signal.signal(one, signal.SIG_IGN)
        told.set()
        raise KeyboardInterrupt

    with ended_by(stop):
        yield told
