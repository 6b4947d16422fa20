"""`HashClient` under the contract: its operations on several keys have a way of their own."""

from __future__ import annotations

from typing import Any

from tests.contract.store import Address, Operation
from tests.contract.stores.memcache import LATER, OPERATIONS, Memcache
from timedblock import memcache

_NAMES = {
    "get", "get_many", "gets_many", "set", "set of 900 kB", "set_many", "incr", "delete_many",
    "quit",
}  # fmt: skip
# This client's says nothing, as pymemcache's.
_FLUSH = Operation(
    "flush_all", lambda c, s: c.flush_all(delay=LATER), lambda answer, scene: answer is None
)


class MemcacheHash(Memcache):
    """memcached through the drop-in for pymemcache's `HashClient`, on one node."""

    name = "memcache-hash"
    operations = (*(one for one in OPERATIONS if one.name in _NAMES), _FLUSH)

    def client(self, address: Address, limit: float) -> Any:
        return memcache.HashClient([address], timeout=limit)
