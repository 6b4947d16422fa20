"""A weak set that threads may add to while others iterate (L0)."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class WeakMembers(weakref.WeakSet[T]):
    """`weakref.WeakSet`, whose iteration is a snapshot.

    A plain one raises RuntimeError when another thread adds, or drops the last reference to, a
    member meanwhile. A lock can't help: a member may be dropped anywhere, by the garbage
    collector of the very thread that holds it.
    """

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                return iter(list(super().__iter__()))
            except RecursionError:  # a RuntimeError too, and no reason to look again
                raise
            except RuntimeError:  # changed meanwhile: look again
                continue
