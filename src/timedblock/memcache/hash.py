"""`HashClient`: pymemcache's, where a node that is down costs the keys of the others nothing."""

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
from ..deadline import check_seconds, remaining, time_limit
from ..errors import DeadlineExceeded, Overloaded, Unavailable
from ..policy import UNSET
from . import replies
from .client import Client, _effective, _show
from .errors import CircuitOpen, PartialResult
from .fanout import Part, exchange
from .pooled import PooledClient, _OnePool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pymemcache.client.base import Key

    from ..policy import Policy

    Make = Callable[[Client, "_Share"], Part]
    Perform = Callable[[Any, "_Share"], Any]
    Decode = Callable[[Client, "_Share", Any], Any]

# Kept by name: tests put other classes into pymemcache's modules.
_RawPooled = base.PooledClient
#: pymemcache's own defaults, where one of the three is given and the others aren't
_ATTEMPTS, _REST, _DEAD = 2, 1.0, 60.0


class _Share:
    """What one node has to do in an operation on several: its keys, and how it went."""

    __slots__ = ("asked", "error", "keys", "node", "part", "resting", "value")

    def __init__(self, node: Any) -> None:
        self.node = node
        self.keys: list[Any] = []
        self.asked: Any = None
        self.part: Part | None = None
        self.value: Any = None
        self.error: Exception | None = None
        self.resting = False


class HashClient(_hash.HashClient):
    """A drop-in for `pymemcache.client.hash.HashClient` on which no call can hang; thread-safe.

    Each node is a `Client` of its own in `clients`: one breaker, bulkhead, pool and set of learnt
    limits a node. `get_many`, `gets_many`, `set_many`, `delete_many` and `flush_all` send to all
    nodes at once, in the caller's thread, and read whichever is ready; the longest limit of a
    node is that of the whole.

    Takes pymemcache's arguments, and `name`, `policy` and `on_unavailable` as `Client` does.
    `default_noreply` is False here. A node is taken out of the ring only if one of
    `retry_attempts`, `retry_timeout` (seconds) and `dead_timeout` (seconds) is given, never more
    than half of the nodes at once: its breaker makes a dead node cheap already, and the keys of
    a node that is out move to others, where old values may be when it is back.

    Raises:
        timedblock.memcache.PartialResult: by the operations on several keys, when some nodes
            answered and some didn't: `.result` and `.missing` (keys; nodes, for `flush_all`).
        timedblock.Unavailable: when no node that was asked answered.
        pymemcache's errors, unchanged. ValueError, TypeError: at construction.
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
        self._policy = _effective(policy, timeout, on_unavailable)
        self._own = {
            "name": name,
            # a fallback is used here, once, and not by each node
            "policy": replace(self._policy, fallback=UNSET),
            "max_pool_size": max_pool_size,
            "pool_idle_timeout": pool_idle_timeout,
        }
        self._set_ejecting(retry_attempts, retry_timeout, dead_timeout)
        self._plain = not (self.ejecting or ignore_exc or self._policy.fallback is not UNSET)
        for server in servers:
            self.add_server(base.normalize_server_spec(server))

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
        where = _show(node.server)
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
        events.log_state(now, logging.WARNING, f"{self.name}@{_show(server)}", what, what)

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

    # -- one key ----------------------------------------------------------------------------

    def _run_cmd(self, cmd: str, key: Key, default_val: Any, *args: Any, **kwargs: Any) -> Any:
        """What pymemcache's `get`, `set` and so on call."""
        node = self._get_client(key)
        if node is None:
            return default_val
        func = getattr(node, cmd)
        if self._plain:
            return func(key, *args, **kwargs)
        return self._safely_run_func(node, func, default_val, key, *args, **kwargs)

    def _safely_run_func(
        self, client: Any, func: Callable[..., Any], default_val: Any, *args: Any, **kwargs: Any
    ) -> Any:
        began = self._now()
        resting = self._resting(client)
        try:
            if resting is not None:
                raise resting
            result = func(*args, **kwargs)
        except Exception as error:
            if error is not resting:
                self._note(client, error, began)
            if self.ignore_exc:
                return default_val
            if isinstance(error, Unavailable):
                return self._fall_back(error)
            raise
        self._note(client, None, began)
        return result

    def _fall_back(self, error: Unavailable) -> Any:
        """The fallback's value in place of `error`, or raise it."""
        fallback = self._policy.fallback
        if fallback is UNSET:
            raise error
        if events.listeners:
            kind = type(error).__name__
            events.emit(events.FellBack(error.block, error.endpoint, self._now(), kind))
        if not callable(fallback):
            return fallback
        with time_limit(self._policy.fallback_limit, f"{self.name}'s fallback"):
            return fallback()

    def get(self, key: Key, default: Any = None, **kwargs: Any) -> Any:
        """See pymemcache's `Client.get`."""
        return self._run_cmd("get", key, default, default=default, **kwargs)

    def gets(self, key: Key, default: Any = None, cas_default: Any = None) -> tuple[Any, Any]:
        """See pymemcache's `Client.gets`."""
        found = self._run_cmd("gets", key, (None, None))
        # PooledClient's takes no defaults
        missed = isinstance(found, tuple) and all(part is None for part in found)
        return (default, cas_default) if missed else found

    def set(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool | None:
        """See pymemcache's `Client.set`."""
        return self._run_cmd("set", key, False, value, expire, noreply, flags)  # type: ignore[no-any-return]

    def add(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool | None:
        """See pymemcache's `Client.add`."""
        return self._run_cmd("add", key, False, value, expire, noreply, flags)  # type: ignore[no-any-return]

    def replace(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool | None:
        """See pymemcache's `Client.replace`."""
        return self._run_cmd("replace", key, False, value, expire, noreply, flags)  # type: ignore[no-any-return]

    def append(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool | None:
        """See pymemcache's `Client.append`."""
        return self._run_cmd("append", key, False, value, expire, noreply, flags)  # type: ignore[no-any-return]

    def prepend(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool | None:
        """See pymemcache's `Client.prepend`."""
        return self._run_cmd("prepend", key, False, value, expire, noreply, flags)  # type: ignore[no-any-return]

    def cas(
        self,
        key: Key,
        value: Any,
        cas: Any,
        expire: int = 0,
        noreply: bool = False,
        flags: int | None = None,
    ) -> bool | None:
        """See pymemcache's `Client.cas`."""
        return self._run_cmd("cas", key, False, value, cas, expire, noreply, flags)  # type: ignore[no-any-return]

    def incr(self, key: Key, value: int, noreply: bool | None = False) -> int | None:
        """See pymemcache's `Client.incr`."""
        return self._run_cmd("incr", key, False, value, noreply)  # type: ignore[no-any-return]

    def decr(self, key: Key, value: int, noreply: bool | None = False) -> int | None:
        """See pymemcache's `Client.decr`."""
        return self._run_cmd("decr", key, False, value, noreply)  # type: ignore[no-any-return]

    def touch(self, key: Key, expire: int = 0, noreply: bool | None = None) -> bool:
        """See pymemcache's `Client.touch`."""
        return self._run_cmd("touch", key, False, expire, noreply)  # type: ignore[no-any-return]

    def delete(self, key: Key, noreply: bool | None = None) -> bool:
        """See pymemcache's `Client.delete`."""
        return self._run_cmd("delete", key, False, noreply)  # type: ignore[no-any-return]

    # -- several keys -----------------------------------------------------------------------

    def _shares(self, keys: Iterable[Key]) -> tuple[list[_Share], list[Key]]:
        """The keys by node, and those for which there is no node (with `ignore_exc`)."""
        shares: dict[int, _Share] = {}
        homeless: list[Key] = []
        for key in keys:
            node = self._get_client(key)
            if node is None:
                homeless.append(key)
                continue
            share = shares.get(id(node))
            if share is None:
                share = shares[id(node)] = _Share(node)
            share.keys.append(key)
        return list(shares.values()), homeless

    def _ask(
        self, shares: list[_Share], operation: str, make: Make, decode: Decode, perform: Perform
    ) -> None:
        """Let all nodes do their share: `make` and `decode` on ours, `perform` on any other."""
        began = self._now()
        for share in shares:
            share.error = self._resting(share.node)
            share.resting = share.error is not None
            client = _ours(share.node, operation)
            if share.error is None and client is not None:
                try:
                    share.part = make(client, share)
                except Exception as error:  # a bad value: nothing has been sent yet
                    if not self.ignore_exc:
                        raise
                    share.error = error
        exchange([share.part for share in shares if share.part is not None])
        for share in shares:
            if not share.resting:
                self._finish(share, decode, perform)
                self._note(share.node, share.error, began)

    def _finish(self, share: _Share, decode: Decode, perform: Perform) -> None:
        if share.error is not None:
            return
        try:
            if share.part is None:
                share.value = perform(share.node, share)
            elif share.part.error is not None:
                share.error = share.part.error
            else:
                share.value = decode(share.part.client, share, share.part.answer)
        except Exception as error:
            share.error = error

    def _without_answer(
        self, operation: str, shares: list[_Share], result: Any
    ) -> tuple[list[Any], Any]:
        """The keys without an answer and what to use for them; or raise, as the caller wants."""
        failed = [share for share in shares if share.error is not None]
        missing = [key for share in failed for key in share.keys]
        if not failed or self.ignore_exc:
            return missing, None
        for share in failed:
            if share.error is not None and not isinstance(share.error, Unavailable):
                raise share.error  # logical, or another client's: unchanged
        errors: list[Unavailable] = [share.error for share in failed]  # type: ignore[misc]
        if len(failed) == len(shares):
            return missing, self._fall_back(errors[0])
        partial = _partial(f"{self.name}.{operation}", errors, result, missing)
        partial.__cause__ = errors[0]
        return missing, self._fall_back(partial)

    def get_many(self, keys: Iterable[Key], gets: bool = False) -> dict[Key, Any]:
        """See pymemcache's `HashClient.get_many`; PartialResult when a node doesn't answer."""
        verb, fields = (b"gets ", 5) if gets else (b"get ", 4)
        operation = "gets_many" if gets else "get_many"

        def make(client: Client, share: _Share) -> Part:
            share.asked = client._asked(share.keys)
            request = verb + b" ".join(share.asked) + b"\r\n"
            return Part(client, operation, request, replies.values, (share.asked, fields))

        shares, _ = self._shares(keys)
        self._ask(
            shares,
            operation,
            make,
            lambda client, share, found: client._found(share.asked, fields, found),
            lambda node, share: getattr(node, operation)(share.keys),
        )
        result: dict[Key, Any] = {}
        for share in shares:
            result.update(share.value or {})
        missing, value = self._without_answer(operation, shares, result)
        if isinstance(value, dict):
            result.update({key: value[key] for key in missing if key in value})
        return result

    get_multi = get_many

    def gets_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """See pymemcache's `HashClient.gets_many`; PartialResult when a node doesn't answer."""
        return self.get_many(keys, gets=True)

    gets_multi = gets_many

    def set_many(
        self,
        values: dict[Key, Any],
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> list[Key]:
        """The keys that were not stored; PartialResult when a node doesn't answer.

        Then `.result` holds the keys that the other nodes did not store. With `ignore_exc`, the
        keys of a node without an answer count as not stored.
        """

        def make(client: Client, share: _Share) -> Part:
            silent = client.default_noreply if noreply is None else noreply
            mine = {key: values[key] for key in share.keys}
            request = client._storing(b"set", mine, expire, silent, flags)
            expected = (b"set", len(mine), base.VALID_STORE_RESULTS[b"set"])
            return Part(client, "set_many", request, None if silent else replies.lines, expected)

        def perform(node: Any, share: _Share) -> Any:
            mine = {key: values[key] for key in share.keys}
            return node.set_many(mine, expire=expire, noreply=noreply, flags=flags)

        shares, homeless = self._shares(values)
        self._ask(shares, "set_many", make, _not_stored, perform)
        result = [*homeless, *(key for share in shares for key in share.value or ())]
        missing, value = self._without_answer("set_many", shares, result)
        return result if value else result + missing

    set_multi = set_many

    def delete_many(self, keys: Iterable[Key], noreply: bool | None = None) -> bool:
        """See pymemcache's `HashClient.delete_many`; PartialResult when a node doesn't answer."""

        def make(client: Client, share: _Share) -> Part:
            silent = client.default_noreply if noreply is None else noreply
            end = b" noreply\r\n" if silent else b"\r\n"
            commands = [b"delete " + client._wire_key(key) for key in share.keys]
            expected = (b"delete", len(commands), (b"DELETED", b"NOT_FOUND"))
            reader = None if silent else replies.lines
            return Part(client, "delete_many", end.join(commands) + end, reader, expected)

        shares, _ = self._shares(keys)
        self._ask(
            shares,
            "delete_many",
            make,
            lambda client, share, lines: True,
            lambda node, share: node.delete_many(share.keys, noreply=noreply),
        )
        self._without_answer("delete_many", shares, True)
        return True

    delete_multi = delete_many

    # -- all nodes --------------------------------------------------------------------------

    def _all(self) -> list[_Share]:
        shares = []
        for key, node in list(self.clients.items()):
            share = _Share(node)
            share.keys.append(key)
            shares.append(share)
        return shares

    def flush_all(self, delay: int = 0, noreply: bool | None = None) -> None:
        """Flush every node; PartialResult, with the nodes in `.missing`, when some don't answer."""

        def make(client: Client, share: _Share) -> Part:
            silent = client.default_noreply if noreply is None else noreply
            command = b"flush_all " + client._check_integer(delay, "delay")
            end = b" noreply\r\n" if silent else b"\r\n"
            expected = (b"flush_all", 1, (b"OK",))
            return Part(
                client, "flush_all", command + end, None if silent else replies.lines, expected
            )

        shares = self._all()
        self._ask(
            shares,
            "flush_all",
            make,
            lambda client, share, lines: True,
            lambda node, share: node.flush_all(delay, noreply),
        )
        self._without_answer("flush_all", shares, None)

    def quit(self) -> None:
        """Tell every node, and close its connections."""

        def make(client: Client, share: _Share) -> Part:
            return Part(client, "quit", b"quit\r\n", None, None)

        shares = self._all()
        self._ask(
            shares,
            "quit",
            make,
            lambda client, share, nothing: client.close(),
            lambda node, share: node.quit(),
        )
        self._without_answer("quit", shares, None)

    def close(self) -> None:
        """Close the idle connections to all nodes; the next use connects again."""
        for node in list(self.clients.values()):
            node.close()

    disconnect_all = close


def _with_port(server: Any, port: int | None) -> Any:
    if port is None:
        return server
    if not isinstance(server, str):
        raise TypeError("Server must be a string when passing port.")
    return server, port


def _ours(node: Any, operation: str) -> Client | None:
    """The `Client` behind a node, where it does this operation as we know it."""
    if isinstance(node, PooledClient) and isinstance(node.client_pool, _OnePool):
        node = node.client_pool.get()
    if not isinstance(node, Client) or node._own_parser:
        return None
    return node if getattr(type(node), operation) is getattr(Client, operation) else None


def _not_stored(client: Client, share: _Share, lines: list[bytes] | None) -> list[Any]:
    if lines is None:  # noreply
        return []
    return [key for key, line in zip(share.keys, lines, strict=True) if not replies.STORED[line]]


def _is_failure(error: Exception) -> bool:
    """Whether an error tells against its node (pymemcache: every OSError)."""
    if isinstance(error, Overloaded):
        return False
    if isinstance(error, DeadlineExceeded):
        # not one that the caller's own deadline cut, or kept from starting
        return remaining() is None
    return isinstance(error, (Unavailable, OSError))


def _partial(
    block: str, errors: list[Unavailable], result: Any, missing: list[Any]
) -> PartialResult:
    first = errors[0]
    return PartialResult(
        block=block,
        endpoint=", ".join(sorted({error.endpoint or "?" for error in errors})),
        elapsed=max(error.elapsed for error in errors),
        limit=first.limit,
        attempt_limit=first.attempt_limit,
        limit_source=first.limit_source,
        sent=any(error.sent for error in errors),
        spent=first.spent,
        result=result,
        missing=missing,
    )
