"""After `fork` the child starts with fresh locks, threads and connections (L0)."""

from __future__ import annotations

import os
import threading
from typing import Protocol

from .weak import WeakMembers


class Forkable(Protocol):
    """Something that must be made fresh in a forked child."""

    def after_fork(self) -> None:
        """Replace locks (another thread may have held them) and forget threads, connections."""


_alive: WeakMembers[Forkable] = WeakMembers()


def register(thing: Forkable) -> None:
    """Call ``thing.after_fork()`` in every forked child, for as long as `thing` lives."""
    _alive.add(thing)


class Guard:
    """``with guard.lock:`` for a module's own state; a forked child gets a lock that is free."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        register(self)

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self.lock = threading.Lock()


def _in_child() -> None:
    for thing in list(_alive):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
