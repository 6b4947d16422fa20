"""The nodes of a `HashClient`: its ring, and which of them are out of it (L4)."""

from __future__ import annotations

import copy
import logging
import math
import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pymemcache.client import base
from pymemcache.client import hash as _hash
from pymemcache.client.rendezvous import RendezvousHash
from pymemcache.exceptions import MemcacheError

from .. import clock as _clock
from .. import events
from ..deadline import check_seconds, remaining
from ..errors import DeadlineExceeded, Overloaded, Unavailable
from ..policy import UNSET
from ..policy.clients import effective
from .addresses import checked, show
from .client import Client
from .errors import CircuitOpen
from .pooled import PooledClient

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pymemcache.client.base import Key

    from ..policy import Policy

# Kept by name: tests put other classes into pymemcache's modules.
_RawPooled = base.PooledClient
#: pymemcache's own defaults, where one of the three is given and the others aren't
_ATTEMPTS, _REST, _DEAD = 2, 1.0, 60.0


class Ring(_hash.HashClient):
    """pymemcache's `HashClient` with its arguments and ours, and nodes that are ours.

    For the arguments see `timedblock.memcache.HashClient`.
    """

    client_class: Any = Client

    def __init__(
        self,
        servers: Iterable[Any],
        hasher: Any = RendezvousHash,
        serde: Any = None,
        serializer: Any = None,
        deserializer: Any = None,
        connect_timeout: float | None = None,
        timeout: float | None = None,
        no_delay: bool = False,
        socket_module: Any = socket,
        socket_keepalive: Any = None,
        key_prefix: bytes = b"",
        max_pool_size: int | None = None,
        pool_idle_timeout: float = 0,
        lock_generator: Any = None,
        retry_attempts: int | None = None,
        retry_timeout: float | None = None,
        dead_timeout: float | None = None,
        use_pooling: bool = False,
        ignore_exc: bool = False,
        allow_unicode_keys: bool = False,
        default_noreply: bool = False,
        encoding: str = "ascii",
        tls_context: Any = None,
        *,
        name: str = "memcache",
        policy: Policy | None = None,
        on_unavailable: Any = UNSET,
    ) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            [],
            hasher=hasher,
            serde=serde,
            serializer=serializer,
            deserializer=deserializer,
            connect_timeout=connect_timeout,
            timeout=timeout,
            no_delay=no_delay,
            socket_module=socket_module,
            socket_keepalive=socket_keepalive,
            key_prefix=key_prefix,
            max_pool_size=max_pool_size,
            pool_idle_timeout=pool_idle_timeout,
            lock_generator=lock_generator,
            use_pooling=use_pooling,
            ignore_exc=ignore_exc,
            allow_unicode_keys=allow_unicode_keys,
            default_noreply=default_noreply,
            encoding=encoding,
            tls_context=tls_context,
        )
        self.name = name
        self._now = _clock.current().monotonic
        # guards the ring and the tables of nodes; a call only reads them
        self._lock = threading.Lock()
        self._policy = effective(policy, timeout, on_unavailable)
        self._own = {
            "name": name,
            # a fallback is used here, once, and not by each node
            "policy": replace(self._policy, fallback=UNSET),
            "max_pool_size": max_pool_size,
            "pool_idle_timeout": pool_idle_timeout,
        }
        self._set_ejecting(retry_attempts, retry_timeout, dead_timeout)
        self._plain = not (self.ejecting or ignore_exc or self._policy.fallback is not UNSET)
        if isinstance(servers, (str, bytes)):
            raise TypeError("servers must be a list of addresses, not one string")
        for server in servers:
            self.add_server(checked(server))

    def _set_ejecting(self, attempts: int | None, rest: float | None, dead: float | None) -> None:
        #: whether nodes that fail are taken out of the ring for `dead_timeout` seconds
        self.ejecting = not (attempts is None and rest is None and dead is None)
        self.retry_attempts = _ATTEMPTS if attempts is None else attempts
        self.retry_timeout = _REST if rest is None else rest
        self.dead_timeout = _DEAD if dead is None else dead
        check_seconds("retry_timeout", self.retry_timeout, zero=True)
        check_seconds("dead_timeout", self.dead_timeout, zero=True)
        if not isinstance(self.retry_attempts, int):
            raise TypeError(f"retry_attempts must be a whole number, not {attempts!r}")
        self._last_dead_check_time = self._now()

    # -- the nodes --------------------------------------------------------------------------

    def add_server(self, server: Any, port: int | None = None) -> None:
        """See pymemcache's `HashClient.add_server`. No call in progress is disturbed."""
        server = _with_port(server, port)
        checked(server)
        node = self._make_node(server)
        key = self._make_client_key(server)
        with self._lock:
            self.clients[key] = node
            self._dead_clients.pop(server, None)
            self._failed_clients.pop(server, None)
            self._change_ring("add_node", key)

    def remove_server(self, server: Any, port: int | None = None) -> None:
        """See pymemcache's `HashClient.remove_server`; here the node doesn't come back by itself.

        Its idle connections are closed; calls in progress on it end as they would.
        """
        server = _with_port(server, port)
        key = self._make_client_key(server)
        with self._lock:
            self._failed_clients.pop(server, None)
            if server not in self._dead_clients:
                self._change_ring("remove_node", key)
            self._dead_clients[server] = math.inf
            node = self.clients.pop(key, None)
        if node is not None:
            node.close()

    def _make_client_key(self, server: Any) -> Any:
        """What a node is called in `clients` and in the ring, as pymemcache does."""
        if isinstance(server, (list, tuple)) and len(server) == 2:
            return f"{server[0]}:{server[1]}"
        return server

    def _make_node(self, server: Any) -> Any:
        kind = self.client_class
        ours = isinstance(kind, type) and issubclass(kind, Client)
        if not self.use_pooling:
            return kind(server, **self.default_kwargs, **(self._own if ours else {}))
        arguments = {**self.default_kwargs, **(self._own if ours else {})}
        node: Any = (PooledClient if ours else _RawPooled)(server, **arguments)
        node.client_class = kind
        return node

    def _change_ring(self, change: str, key: Any) -> None:
        """Change a copy, so that no call sees the ring in between."""
        ring = copy.deepcopy(self.hasher)
        getattr(ring, change)(key)
        self.hasher = ring

    def _get_client(self, key: Key) -> Any:
        """The node of a key; None when there is no node and `ignore_exc` is set."""
        base.check_key_helper(key, self.allow_unicode_keys, self.key_prefix)
        if self.ejecting and self._dead_clients:
            self._retry_dead()
        for _ in range(2):  # a node may be removed between the two looks
            server = self.hasher.get_node(key)
            if server is None:
                break
            node = self.clients.get(server)
            if node is not None:
                return node
        if self.ignore_exc is True:
            return None
        raise MemcacheError("All servers seem to be down right now")

    # -- ejecting ---------------------------------------------------------------------------

    def _resting(self, node: Any) -> Unavailable | None:
        """Why a node that failed isn't asked now, or None."""
        if not self.ejecting:
            return None
        failed = self._failed_clients.get(node.server)
        if failed is None:
            return None
        if failed["attempts"] >= self.retry_attempts:
            self._eject(node.server)
            return None
        rest = failed["failed_time"] + self.retry_timeout - self._now()
        if rest <= 0:
            return None
        where = show(node.server)
        return CircuitOpen(
            f"{self.name} on {where} was not tried: it failed, retry after {rest:.3f} s",
            block=self.name,
            endpoint=where,
            retry_after=rest,
        )

    def _note(self, node: Any, error: Exception | None, began: float) -> None:
        """Keep count of a node's failures, where it may be ejected."""
        if not self.ejecting:
            return
        if error is None:
            self._failed_clients.pop(node.server, None)
        elif _is_failure(error):
            failed = self._failed_clients.get(node.server)
            # calls that were in flight together are one piece of evidence
            if failed is None or began >= failed["failed_time"]:
                self._mark_failed_server(node.server)

    def _mark_failed_server(self, server: Any) -> None:
        with self._lock:
            failed = self._failed_clients.setdefault(server, {"attempts": -1})
            failed["attempts"] += 1
            failed["failed_time"] = self._now()
        if self.retry_attempts <= 0:
            self._eject(server)

    def _eject(self, server: Any) -> None:
        """Take a node out of the ring, unless half of them would be out."""
        now = self._now()
        with self._lock:
            out = sum(not math.isinf(since) for since in self._dead_clients.values())
            key = self._make_client_key(server)
            if server in self._dead_clients or key not in self.clients:
                return
            if out + 1 > len(self.clients) // 2:
                what = "stays in the ring: half of the nodes are out, or would be"
            else:
                self._failed_clients.pop(server, None)
                self._dead_clients[server] = now
                self._change_ring("remove_node", key)
                what = f"is out of the ring for {self.dead_timeout:g} s"
        events.log_state(now, logging.WARNING, f"{self.name}@{show(server)}", what, what)

    def _retry_dead(self) -> None:
        """Put back the nodes that were out for long enough."""
        now = self._now()
        if now - self._last_dead_check_time <= self.dead_timeout:
            return
        with self._lock:
            self._last_dead_check_time = now
            for server, since in list(self._dead_clients.items()):
                if now - since > self.dead_timeout:
                    self._change_ring("add_node", self._make_client_key(server))
                    del self._dead_clients[server]


def _with_port(server: Any, port: int | None) -> Any:
    if port is None:
        return server
    if not isinstance(server, str):
        raise TypeError("Server must be a string when passing port.")
    return server, port


def _is_failure(error: Exception) -> bool:
    """Whether an error tells against its node (pymemcache: every OSError)."""
    if isinstance(error, Overloaded):
        return False
    if isinstance(error, DeadlineExceeded):
        # not one that the caller's own deadline cut, or kept from starting
        return remaining() is None
    return isinstance(error, (Unavailable, OSError))
