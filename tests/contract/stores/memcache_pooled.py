"""`PooledClient` under the contract: it hands its calls to `Client`, so a few are enough."""

from __future__ import annotations

from typing import Any

from tests.contract.store import Address
from tests.contract.stores.memcache import OPERATIONS, Memcache
from timedblock import memcache

_NAMES = {"get", "get_many", "set", "incr", "delete", "quit"}


class MemcachePooled(Memcache):
    """memcached through the drop-in for pymemcache's `PooledClient`."""

    name = "memcache-pooled"
    operations = tuple(one for one in OPERATIONS if one.name in _NAMES)

    def client(self, address: Address, limit: float) -> Any:
        return memcache.PooledClient(address, timeout=limit, max_pool_size=2)
