"""`HashClient`: pymemcache's, where a node that is down costs the keys of the others nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymemcache.client import base

from .. import events
from ..deadline import time_limit
from ..errors import Unavailable
from ..policy import UNSET
from . import replies
from .client import Client
from .errors import PartialResult
from .fanout import Part, exchange
from .policies import size_class
from .pooled import PooledClient, _OnePool
from .ring import Ring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pymemcache.client.base import Key

    Make = Callable[[Client, "_Share"], Part]
    Perform = Callable[[Any, "_Share"], Any]
    Decode = Callable[[Client, "_Share", Any], Any]


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


class HashClient(Ring):
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
            key = size_class(len(share.asked))
            return Part(client, operation, request, replies.values, (share.asked, fields), key)

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
            key = size_class(len(mine), len(request))
            reader = None if silent else replies.lines
            return Part(client, "set_many", request, reader, expected, key)

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
            key = size_class(len(commands))
            return Part(client, "delete_many", end.join(commands) + end, reader, expected, key)

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
