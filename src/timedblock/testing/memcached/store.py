"""What the server keeps: the items, which expire, and give way when memory is full (L5)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

MAX_ITEM = 1024 * 1024
_MONTH = 60 * 60 * 24 * 30
#: What an item costs beside its key and value: header, cas, the key's NUL and the value's CR LF.
_ITEM_OVERHEAD = 48 + 8 + 1 + 2


class Item:
    __slots__ = ("cas", "expires", "flags", "value")

    def __init__(self, value: bytes, flags: int, expires: int, cas: int) -> None:
        self.value = value
        self.flags = flags
        self.expires = expires
        self.cas = cas


class Store:
    """The items and their clock, which ticks in whole seconds from 2 on, like memcached's."""

    def __init__(
        self,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.max_bytes = max_bytes
        self.now = 2
        self._clock = clock
        self._started = clock() - 2
        self._started_wall = int(wall()) - 2
        self._items: dict[bytes, Item] = {}
        self._bytes = 0
        self._cas = 0
        self._flush_at: int | None = None

    def tick(self) -> None:
        """Read the clock; called once for each piece of input."""
        self.now = int(self._clock() - self._started)
        if self._flush_at is not None and self.now >= self._flush_at:
            self.clear()

    def expiry(self, exptime: int) -> int:
        """An exptime of the protocol as an instant of this clock (0: never, 1: long ago)."""
        if exptime == 0:
            return 0
        if exptime < 0:
            return 1
        if exptime > _MONTH:
            return max(1, exptime - self._started_wall)
        return self.now + exptime

    def get(self, key: bytes) -> Item | None:
        item = self._items.get(key)
        if item is not None and item.expires and item.expires <= self.now:
            self.remove(key)
            return None
        return item

    @staticmethod
    def fits(key: bytes, size: int, flags: int) -> bool:
        return _ITEM_OVERHEAD + len(key) + size + (4 if flags else 0) <= MAX_ITEM

    def put(self, key: bytes, value: bytes, flags: int, expires: int) -> None:
        """Store, as the newest of all; the oldest give way when memory is full."""
        self.remove(key)
        self._cas += 1
        self._items[key] = Item(value, flags, expires, self._cas)
        self._bytes += len(key) + len(value) + _ITEM_OVERHEAD
        while self._bytes > self.max_bytes:
            self.remove(next(iter(self._items)))

    def remove(self, key: bytes) -> bool:
        item = self._items.pop(key, None)
        if item is None:
            return False
        self._bytes -= len(key) + len(item.value) + _ITEM_OVERHEAD
        return True

    def clear(self) -> None:
        self._items.clear()
        self._bytes = 0
        self._flush_at = None

    def flush(self, exptime: int) -> None:
        """``flush_all``: at once, or ``exptime`` seconds from now."""
        at = self.expiry(exptime) - 1
        if exptime <= 0 or at <= self.now:
            self.clear()
        else:
            self._flush_at = at

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[tuple[bytes, Item]]:
        return iter(self._items.items())

    @property
    def bytes_used(self) -> int:
        return self._bytes
