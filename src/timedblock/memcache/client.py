"""`Client` and `PooledClient`: pymemcache's, with one total limit on every call."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pymemcache.client import base
from pymemcache.exceptions import MemcacheIllegalInputError, MemcacheUnexpectedCloseError

from .. import errors as _errors
from ..block import TimedBlock
from ..call import ANSWER, BROKEN, CROWDED, CUT, OVERSLEPT, STALLED, UNCONNECTED, UNWELL
from ..deadline import check_seconds
from ..endpoint import endpoint
from ..net import seam, sockets, tls
from ..net.parking import LOT
from ..net.pool import STALE, ConnectTimeout, Pool, PoolFull
from ..net.resolve import RESOLVER
from ..net.wire import CHUNK, EXPIRED, GRAIN, SLACK, Cut, EndOfStream, Wire
from ..net.workers import Full
from ..policy import UNSET, Fixed, Percentile, Policy
from . import replies
from .errors import KINDS, GarbledReply
from .replies import Garbled, Refused, ServerUnwell

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping
    from ssl import SSLContext
    from types import ModuleType

    from pymemcache.client.base import KeepaliveOpts, Key, ServerSpec

    from ..call import Call
    from ..policy.timeout import Learnt
    from .replies import Reader

#: What a call may take (seconds) where neither policy nor `timeout` says.
DEFAULT_CEILING = 1.0
#: The least that a connection is waited for (seconds), whatever was learnt.
CONNECT_FLOOR = 0.15
#: Connections of a client where `max_pool_size` doesn't say. Enough for the threads of a service
#: when the server is ten times slower than usual: 8 would cap 50 ms answers at 160 a second.
POOL_SIZE = 32
#: Requests up to this size (bytes) leave in one send, unless the peer has stopped reading.
ONE_SEND = 4096
# Kept by name: tests put other classes into pymemcache's module.
_Raw = base.Client

#: memcached has no default of its own for these; everything else is learnt
ADMINISTRATIVE = frozenset(
    ("cache_memlimit", "flush_all", "quit", "raw_command", "shutdown", "stats", "version")
)
ADMINISTRATIVE_LIMIT = 10.0
#: a second execution changes neither the store nor the answer
REPEATABLE = frozenset(("get", "get_many", "gets", "gets_many", "stats", "touch", "version"))


#: pymemcache's own, whoever puts another class (ours, say) in its module's place later
_Bare = base.Client


class _Blocks(dict[str, TimedBlock]):
    """The client's timed blocks by operation, made at first use."""

    def __init__(self, make: Callable[[str], TimedBlock]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, operation: str) -> TimedBlock:
        return self.setdefault(operation, self._make(operation))


class Client(_Raw):
    """A drop-in for `pymemcache.client.base.Client` on which no call can hang; thread-safe.

    Takes pymemcache's arguments, and four of its own. No I/O until the first use. `timeout` is
    the ceiling of a call with its connect (seconds; None: 1), `connect_timeout` that of the
    connect within it. `default_noreply` is False here, so that True from `set` means stored.

    Args:
        name: what the blocks are called: ``name.get``; give each client of one server with other
            breaker settings its own.
        policy: for every operation but the administrative ones, which are Fixed at `timeout` or
            10 s.
        on_unavailable: the value, or a callable without arguments, used where there is no answer.
        max_pool_size: connections at most; callers wait for one within their deadline.

    Raises:
        timedblock.Unavailable: by every operation, when there is no answer within its limit.
        pymemcache's MemcacheClientError and MemcacheServerError, unchanged.
        ValueError, TypeError: at construction, naming the bad value.
    """

    def __init__(
        self,
        server: ServerSpec,
        serde: Any = None,
        serializer: Any = None,
        deserializer: Any = None,
        connect_timeout: float | None = None,
        timeout: float | None = None,
        no_delay: bool = False,
        ignore_exc: bool = False,
        socket_module: ModuleType = socket,
        socket_keepalive: KeepaliveOpts | None = None,
        key_prefix: bytes = b"",
        default_noreply: bool = False,
        allow_unicode_keys: bool = False,
        encoding: str = "ascii",
        tls_context: SSLContext | None = None,
        *,
        name: str = "memcache",
        policy: Policy | None = None,
        on_unavailable: Any = UNSET,
        max_pool_size: int | None = None,
        pool_idle_timeout: float = 0.0,
    ) -> None:
        self._pending = threading.local()
        super().__init__(
            server,
            serde,
            serializer,
            deserializer,
            connect_timeout,
            timeout,
            no_delay,
            ignore_exc,
            socket_module,
            socket_keepalive,
            key_prefix,
            default_noreply,
            allow_unicode_keys,
            encoding,
            tls_context,
        )
        self.name = name
        self._policy = _effective(policy, timeout, on_unavailable)
        self._set_up(max_pool_size, pool_idle_timeout)

    def _set_up(self, max_pool_size: int | None, pool_idle_timeout: float) -> None:
        size = POOL_SIZE if max_pool_size is None else max_pool_size
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"max_pool_size must be a whole number from 1, not {size!r}")
        if self.connect_timeout is not None:
            check_seconds("connect_timeout", self.connect_timeout)
        check_seconds("pool_idle_timeout", pool_idle_timeout, zero=True)
        sockets.check_not_patched_late()
        self.endpoint = endpoint(self._endpoint_name(), self._policy.breaker)
        self._clock = self.endpoint.clock
        self._site = seam.Site("memcache", self.name, _show(self.server))
        self._blocks = _Blocks(self._make_block)
        self._connect_block = self._blocks["connect"]
        self._get_block = self._blocks["get"]
        self._pool = Pool(
            f"{self.name}-connect",
            size,
            self._open,
            self.endpoint,
            idle_timeout=pool_idle_timeout,
            in_place=self.socket_module is not socket,
        )
        self._idle = self._pool.idle
        prefix = self.key_prefix.decode("latin-1")
        self._plain_keys = (
            type(self).check_key is _Raw.check_key
            and prefix.isascii()
            and (not prefix or prefix.isprintable())
            and " " not in prefix
        )
        self._good: Any = None
        self._own_parser = type(self)._extract_value is not _Raw._extract_value

    def _endpoint_name(self) -> str:
        where = _show(self.server)
        return where if self.name == "memcache" else f"{self.name}@{where}"

    def _make_block(self, operation: str) -> TimedBlock:
        policy = self._policy
        if operation in ADMINISTRATIVE:
            limit = ADMINISTRATIVE_LIMIT if self.timeout is None else self.timeout
            policy = replace(policy, timeout=Fixed(limit))
        elif operation == "connect":
            policy = _for_connecting(_with_ceiling(policy, self.connect_timeout))
        name = f"{self.name}.{operation}"
        return TimedBlock(name, policy, endpoint=self.endpoint, errors=KINDS)

    # -- connecting -------------------------------------------------------------------------

    @property
    def sock(self) -> Any:
        """The socket of the newest idle connection, or None (pymemcache's attribute).

        In a subclass's `_extract_value`: the socket of the call in progress.
        """
        current = getattr(self._pending, "sock", None)
        if current is not None:
            return current
        idle = getattr(self, "_idle", None)
        return idle[-1].sock if idle else None

    @sock.setter
    def sock(self, sock: Any) -> None:
        if sock is None:
            return
        wire = Wire(sock, self._clock)
        seam.born(wire, self._site)
        if getattr(self._pending, "open", False):
            self._pending.wire = wire
        else:
            self._pool.adopt(wire)

    def _connect(self) -> None:
        """Make one more connection (pymemcache's hook); callers never need it."""
        self.sock = self._connected_socket()

    def _open(self, seconds: float | None = None) -> Wire:
        """A fresh connection within `seconds`, or the connect ceiling (the pool's workers)."""
        block = self._connect_block
        began = self._clock.monotonic()
        self._pending.seconds = block.ceiling if seconds is None else seconds
        self._pending.open = True
        try:
            self._connect()
            wire: Wire = self._pending.wire
        except BaseException:
            block.histogram.miss()
            raise
        finally:
            self._pending.open = False
            self._pending.wire = None
        ended = self._clock.monotonic()
        block.histogram.record(ended - began)
        if ended >= block.histogram.due:
            block.refresh(ended)
        return wire

    def _connected_socket(self) -> Any:
        ceiling = self._connect_block.ceiling
        until = self._clock.monotonic() + getattr(self._pending, "seconds", ceiling)
        if self.socket_module is not socket:
            return self._foreign_socket(until)
        addresses = self._addresses(until)
        injector = seam.injector
        if injector is not None:
            injector.connecting(self._site, until - self._clock.monotonic())
        sock = sockets.connect(
            addresses,
            clock=self._clock,
            seconds=until - self._clock.monotonic(),
            no_delay=self.no_delay,
        )
        try:
            self._good = sock.getpeername()
            sock.ceiling, sock.until = ceiling, until
            self._keep_alive(sock)
            if self.tls_context is not None:
                sock = self._shake_hands(sock, until)
            sock.until = None
        except BaseException:
            sockets.close_quietly(sock)
            raise
        return sock

    def _addresses(self, until: float) -> list[Any]:
        if not isinstance(self.server, tuple):
            return [(socket.AF_UNIX, self.server)]
        host, port = self.server
        injector = seam.injector
        ask = None if injector is None else injector.lookup(self._site)
        left = until - self._clock.monotonic()
        found = RESOLVER.resolve(host, port, self._clock, left, ask)
        # the one that answered last time goes first
        return sorted(found, key=lambda address: address[1] != self._good)

    def _shake_hands(self, sock: sockets.DeadlineSocket, until: float) -> Any:
        assert self.tls_context is not None
        injector = seam.injector
        if injector is not None:
            injector.shaking_hands(self._site, until - self._clock.monotonic())
        host = self.server[0] if isinstance(self.server, tuple) else None
        wrapped = tls.wrap(self.tls_context, sock, host)
        try:
            wrapped.do_handshake()
        except BaseException:
            sockets.close_quietly(wrapped)
            raise
        return wrapped

    def _keep_alive(self, sock: socket.socket) -> None:
        options = self.socket_keepalive
        if options is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, options.idle)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, options.intvl)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, options.cnt)

    def _foreign_socket(self, until: float) -> Any:
        """pymemcache's own connect on the user's socket module."""
        injector = seam.injector
        if injector is not None:
            self._meet_faults(injector, until)
        shell = _Raw(
            self.server,
            connect_timeout=self.connect_timeout,
            timeout=self.timeout,
            no_delay=self.no_delay,
            socket_module=self.socket_module,
            socket_keepalive=self.socket_keepalive,
            tls_context=self.tls_context,
        )
        if getattr(self._pending, "open", False):
            shell.connect_timeout = max(0.001, until - self._clock.monotonic())
        shell._connect()
        return shell.sock

    def _meet_faults(self, injector: seam.Injector, until: float) -> None:
        """What the user's socket module would meet on the way, before it sets out."""
        self._addresses(until)
        injector.connecting(self._site, until - self._clock.monotonic())
        if self.tls_context is not None:
            injector.shaking_hands(self._site, until - self._clock.monotonic())

    def close(self) -> None:
        """Close the idle connections; the next use connects again."""
        pool = getattr(self, "_pool", None)
        if pool is not None:
            pool.clear()

    disconnect_all = close

    # -- one exchange -----------------------------------------------------------------------

    def _exchange(
        self,
        operation: str,
        request: bytes,
        read: Reader | None,
        expected: Any = None,
    ) -> Any:
        """Send `request` and return what `read` makes of the reply (None: there is none)."""
        block = self._blocks[operation]
        call = block.begin()
        wire = None
        try:
            try:
                wire = self._idle.pop()
            except IndexError:
                wire = self._take_slowly(call)
            if call.began - wire.used > STALE:
                wire = self._pool.check(wire) or self._take_slowly(call)
            answer: Any = self._talk(wire, call, request, read, expected)
            # in here, so that an interrupt on the way finds the connection not yet given back
            call.succeeded()
        except BaseException as error:
            return self._after(call, wire, error, operation, request, read, expected)
        if wire.finished:
            self._pool.discard(wire, dead=False)
            return answer
        self._idle.append(wire)
        if self._pool.waiting:
            self._pool.serve()
        return answer

    def _take_slowly(self, call: Call) -> Wire:
        """A connection by the pool's rules; the attempt begins when it is here."""
        began = self._clock.monotonic()
        try:
            wire = self._pool.take(call, self._connect_limit(call))
        finally:
            now = self._clock.monotonic()
            call.spent = {"connection": now - began}
        self._start_on(wire, call, now)
        return wire

    def _start_on(self, wire: Wire, call: Call, now: float) -> None:
        """Begin `call`'s attempt, which had to wait for `wire` until `now`."""
        try:
            call.restart(now)
        except BaseException:
            self._pool.give(wire)  # too little time was left, which is not its fault
            raise
        wire.used = now

    def _connect_limit(self, call: Call) -> Callable[[], float]:
        block = self._connect_block
        now = self._clock.monotonic()
        if now >= block.histogram.due:
            block.refresh(now)  # connects are rare: nobody else closes their slices
        return lambda: self._connect_learnt(call).limit

    def _connect_learnt(self, call: Call) -> Learnt:
        """How long `call` may wait for a connect.

        A pool makes so few connections that their limit may not be learnt when the server falls
        silent. From then on a caller waits no longer for one than for an answer. The connect goes
        on to its ceiling, so that a probe needn't wait for it: once made, it grants one.
        """
        connect, attempt = self._connect_block.learnt, call.owner.learnt
        circuit = call.owner.circuit
        if (
            circuit is not None
            and circuit.attentive
            and attempt.source == "learnt"
            and attempt.limit < connect.limit
        ):
            return attempt
        return connect

    def _talk(
        self, wire: Wire, call: Call, request: bytes, read: Reader | None, expected: Any
    ) -> Any:
        """Send, and read the reply (None: there is none)."""
        left = call.at - call.began
        if not -SLACK <= wire.armed - left <= GRAIN:
            wire.arm(left)
        wire.used = call.began
        wire.calls += 1
        # replies come in order: one that was read means that none is still to come
        wire.unread = read is None or wire.unread
        if len(request) > ONE_SEND:
            self._send_much(wire, call, request)
        else:
            # before, not after: a KeyboardInterrupt may come between the two
            call.sent = True
            try:
                sent = wire.send(request)
            except EXPIRED:
                sent = 0
            if sent != len(request):  # the buffers are full: nobody reads at the other end
                wire.send_rest(memoryview(request)[sent:], call.at)
        if read is None:
            return None
        try:
            data = wire.recv(CHUNK)
        except EXPIRED:
            data = self._first_bytes(wire, call)
        if not data:
            raise EndOfStream
        answer = read(wire, call.at, expected, data)
        wire.unread = False
        return answer

    def _first_bytes(self, wire: Wire, call: Call) -> bytes:
        try:
            return wire.read(call.at)
        except Cut as cut:
            cut.mute = True
            raise

    def _send_much(self, wire: Wire, call: Call, request: bytes) -> None:
        call.sent = call.sent or not wire.whole_sends
        try:
            sent = wire.send(request)
        except EXPIRED:
            sent = 0
        call.sent = call.sent or sent > 0
        wire.send_rest(memoryview(request)[sent:], call.at)
        call.sent = True

    def _give_back(self, wire: Wire) -> None:
        if wire.finished:
            self._pool.discard(wire, dead=False)
        else:
            self._pool.give(wire)

    def _after(
        self,
        call: Call,
        wire: Wire | None,
        error: BaseException,
        operation: str,
        request: bytes,
        read: Reader | None,
        expected: Any,
    ) -> Any:
        """After an attempt that failed: drop the connection, blame, repeat or raise."""
        while True:
            pause = self._dispose(call, wire, error, operation)
            if pause is not None:
                self._pause(call, pause)
            wire = None
            try:
                wire = self._take_slowly(call)
                answer: Any = self._talk(wire, call, request, read, expected)
                call.succeeded()
            except BaseException as next_error:
                error = next_error
                continue
            self._give_back(wire)
            return answer

    def _pause(self, call: Call, seconds: float) -> None:
        try:
            self._clock.sleep(seconds)
            call.again()
        except BaseException:
            call.abandoned()
            raise

    def _dispose(
        self, call: Call, wire: Wire | None, error: BaseException, operation: str
    ) -> float | None:
        """Drop the connection of a failed attempt and blame; or raise what the caller gets.

        Returns the pause before the next attempt, to be begun by ``call.again()``; None: the one
        repeat that is nobody's fault, at once.
        """
        if wire is not None and wire.unread and isinstance(error, (Refused, ServerUnwell)):
            error = Garbled("an error, perhaps of an earlier command with noreply")
        once_more = (
            wire is not None
            and call.attempt == 1
            and self._may_repeat_once(call, wire, error, operation)
        )
        # its answer may come yet: the machine learns from that
        park = wire is not None and isinstance(error, Cut) and error.mute and wire.can_park
        if wire is not None:
            dead = isinstance(error, ConnectionError)
            self._pool.discard(wire, dead=dead, close=not park)
        if once_more:
            call.attempt += 1
            return None
        repeatable = operation in REPEATABLE or not call.sent
        try:
            return self._judge(call, wire, error, repeatable=repeatable)
        finally:
            if park and wire is not None:
                LOT.park(wire, call.late, self._clock)

    def _may_repeat_once(
        self, call: Call, wire: Wire, error: BaseException, operation: str
    ) -> bool:
        """The one repeat on a pooled connection that had died: no evidence against the server.

        Nothing of a reply may have been read, or the reply wasn't ours.
        """
        return (
            isinstance(error, ConnectionError)
            and wire.born < call.started  # it was in the pool, where it may have died
            and (wire.unread or not isinstance(error, Garbled))
            and (operation in REPEATABLE or not call.sent)
            and call.call_at > self._clock.monotonic()
        )

    def _judge(
        self, call: Call, wire: Wire | None, error: BaseException, *, repeatable: bool
    ) -> float:
        """Tell the machine; the pause before the next attempt, or raise what the caller gets."""
        kind, raised = _translate(error, connected=wire is not None)
        verdict = call.failed(
            error,
            kind=kind,
            waited=call.limit if kind == STALLED else None,
            connect=self._connect_learnt(call),
            repeatable=repeatable and kind is not None,
        )
        if verdict.retry_after is not None:
            return verdict.retry_after
        if isinstance(error, (Refused, ServerUnwell)):
            raise error.error from None
        if raised is None:
            raise error
        note = str(error) if isinstance(error, (Garbled, PoolFull, Full)) else ""
        raise call.unavailable(raised, note=note) from error

    # -- falling back -----------------------------------------------------------------------

    def _unavailable(self, error: _errors.Unavailable, default: Any) -> Any:
        """What a read returns without an answer, where the user asked for something."""
        if self.ignore_exc:
            return default
        return self._fall_back(error)

    def _fall_back(self, error: _errors.Unavailable) -> Any:
        return self._get_block._fall_back(error)

    # -- keys -------------------------------------------------------------------------------

    def _wire_key(self, key: Key) -> bytes:
        """The key as it is sent: pymemcache's rules, with a short cut for the plainest ones."""
        if (
            type(key) is str
            and key.isascii()
            and key.isprintable()
            and " " not in key
            and self._plain_keys
            and len(key) <= 250 - len(self.key_prefix)
        ):
            return self.key_prefix + key.encode()
        return self.check_key(key, self.key_prefix)

    # -- reading ----------------------------------------------------------------------------

    def get(self, key: Key, default: Any = None) -> Any:
        """See pymemcache's `Client.get`."""
        wire_key = self._wire_key(key)
        if self._own_parser:
            return self._get_with_own_parser([key], b"get").get(key, default)
        try:
            found = self._exchange("get", b"get " + wire_key + b"\r\n", replies.one_value, wire_key)
        except _errors.Unavailable as error:
            return self._unavailable(error, default)
        except Exception:
            if self.ignore_exc:
                return default
            raise
        if found is None:
            return default
        return self.serde.deserialize(key, found[1], int(found[0]))

    def gets(self, key: Key, default: Any = None, cas_default: Any = None) -> tuple[Any, Any]:
        """See pymemcache's `Client.gets`."""
        found = self._fetch("gets", b"gets ", [key], 5)
        return found.get(key, (default, cas_default))  # type: ignore[no-any-return]

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """See pymemcache's `Client.get_many`."""
        if not keys:
            return {}
        return self._fetch("get_many", b"get ", keys, 4)

    get_multi = get_many

    def gets_many(self, keys: Iterable[Key]) -> dict[Key, tuple[Any, Any]]:
        """See pymemcache's `Client.gets_many`."""
        if not keys:
            return {}
        return self._fetch("gets_many", b"gets ", keys, 5)

    def _fetch(
        self, operation: str, verb: bytes, keys: Iterable[Key], fields: int
    ) -> dict[Key, Any]:
        keys = list(keys)
        asked = self._asked(keys)
        if self._own_parser:
            return self._get_with_own_parser(keys, verb.strip())
        request = verb + b" ".join(asked) + b"\r\n"
        try:
            found = self._exchange(operation, request, replies.values, (asked, fields))
        except _errors.Unavailable as error:
            value = self._unavailable(error, {})
            return value if isinstance(value, dict) else {}
        except Exception:
            if self.ignore_exc:
                return {}
            raise
        return self._found(asked, fields, found)

    def _asked(self, keys: list[Key]) -> dict[bytes, Key]:
        """The caller's key of each key as it is sent."""
        return dict(zip(map(self._wire_key, keys), keys, strict=True))

    def _found(
        self,
        asked: Mapping[bytes, Key],
        fields: int,
        found: Iterable[tuple[bytes, bytes, bytes, bytes]],
    ) -> dict[Key, Any]:
        """The values that `replies.values` read, by the caller's keys."""
        deserialize = self.serde.deserialize
        if fields == 4:
            return {
                asked[key]: deserialize(asked[key], value, int(flags))
                for key, flags, value, _ in found
            }
        return {
            asked[key]: (deserialize(asked[key], value, int(flags)), cas)
            for key, flags, value, cas in found
        }

    def _get_with_own_parser(self, keys: list[Key], verb: bytes) -> dict[Key, Any]:
        """For a subclass with an `_extract_value` of its own: pymemcache's reader on our wire."""
        asked = {self._wire_key(key): key for key in keys}
        request = verb + b" " + b" ".join(asked) + b"\r\n"
        found: dict[Key, Any] = {}

        def read(
            wire: Wire, until: float, asked: Mapping[bytes, Key], buffer: bytes
        ) -> dict[Key, Any]:
            with self._lend(wire, until):
                while True:
                    while b"\r\n" not in buffer:
                        buffer += wire.read(until)
                    head, _, buffer = buffer.partition(b"\r\n")
                    replies.raise_errors(head, verb)
                    if head == b"END":
                        return found
                    key, value, buffer = self._extract_value(
                        verb == b"gets", head, buffer, dict(asked), list(asked)
                    )
                    found[key] = value

        try:
            self._exchange("get", request, read, asked)
            return found
        except Exception:
            if self.ignore_exc:
                return {}
            raise

    @contextlib.contextmanager
    def _lend(self, wire: Wire, until: float) -> Iterator[None]:
        """Let a subclass read from ``self.sock`` in a call, within its limit."""
        self._pending.sock = wire.sock
        with contextlib.suppress(AttributeError):
            wire.sock.until = until
        try:
            yield
        finally:
            self._pending.sock = None
            wire.settle()

    # -- writing ----------------------------------------------------------------------------

    def _store(
        self,
        verb: str,
        values: Mapping[Key, Any],
        expire: int,
        noreply: bool | None,
        flags: int | None,
        cas: bytes | None = None,
        *,
        operation: str | None = None,
    ) -> dict[Key, bool | None]:
        if noreply is None:
            noreply = self.default_noreply
        command = verb.encode()
        request = self._storing(command, values, expire, noreply, flags, cas)
        if not request:
            return {}
        operation = operation or verb
        try:
            if noreply:
                self._exchange(operation, request, None)
                return dict.fromkeys(values, True)
            expected = (command, len(values), base.VALID_STORE_RESULTS[command])
            lines = self._exchange(operation, request, replies.lines, expected)
        except _errors.Unavailable as error:
            value = self._fall_back(error)
            return dict.fromkeys(values, value)
        return {key: replies.STORED[line] for key, line in zip(values, lines, strict=True)}

    def _storing(
        self,
        command: bytes,
        values: Mapping[Key, Any],
        expire: int,
        noreply: bool | None,
        flags: int | None,
        cas: bytes | None = None,
    ) -> bytes:
        """The request that stores `values`."""
        tail = b" " + self._check_integer(expire, "expire") + b" "
        end = (b"" if cas is None else b" " + cas) + (b" noreply\r\n" if noreply else b"\r\n")
        parts: list[bytes] = []
        for key, value in values.items():
            wire_key = self._wire_key(key)
            data, data_flags = self._serialize(key, value, flags)
            number = str(data_flags).encode(self.encoding)
            size = str(len(data)).encode(self.encoding)
            parts += (command, b" ", wire_key, b" ", number, tail, size, end, data, b"\r\n")
        return b"".join(parts)

    def _serialize(self, key: Key, value: Any, flags: int | None) -> tuple[bytes, int]:
        data, data_flags = self.serde.serialize(key, value)
        if not isinstance(data, bytes):
            try:
                data = str(data).encode(self.encoding)
            except UnicodeEncodeError as error:
                raise MemcacheIllegalInputError(
                    f"Data values must be binary-safe: {error}"
                ) from error
        return data, data_flags if flags is None else flags

    def set(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool | None:
        """See pymemcache's `Client.set`; True means stored (unless `noreply`)."""
        return self._store("set", {key: value}, expire, noreply, flags)[key]

    def set_many(
        self,
        values: dict[Key, Any],
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> list[Key]:
        """See pymemcache's `Client.set_many`."""
        stored = self._store("set", values, expire, noreply, flags, operation="set_many")
        return [key for key, done in stored.items() if not done]

    set_multi = set_many

    def add(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool:
        """See pymemcache's `Client.add`."""
        return self._store("add", {key: value}, expire, noreply, flags)[key]  # type: ignore[return-value]

    def replace(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool:
        """See pymemcache's `Client.replace`."""
        return self._store("replace", {key: value}, expire, noreply, flags)[key]  # type: ignore[return-value]

    def append(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool:
        """See pymemcache's `Client.append`."""
        return self._store("append", {key: value}, expire, noreply, flags)[key]  # type: ignore[return-value]

    def prepend(
        self,
        key: Key,
        value: Any,
        expire: int = 0,
        noreply: bool | None = None,
        flags: int | None = None,
    ) -> bool | None:
        """See pymemcache's `Client.prepend`."""
        return self._store("prepend", {key: value}, expire, noreply, flags)[key]

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
        return self._store("cas", {key: value}, expire, noreply, flags, self._check_cas(cas))[key]

    # -- everything else --------------------------------------------------------------------

    def _command(
        self,
        operation: str,
        commands: list[bytes],
        valid: Container[bytes] | None,
        noreply: bool | None = False,
    ) -> list[bytes] | None:
        """Send commands of one reply line each; None when nobody waits for them."""
        end = b" noreply\r\n" if noreply else b"\r\n"
        request = end.join(commands) + end
        if noreply:
            self._exchange(operation, request, None)
            return None
        verb = commands[0].partition(b" ")[0]
        expected = (verb, len(commands), valid)
        lines: list[bytes] = self._exchange(operation, request, replies.lines, expected)
        return lines

    def _done(
        self, operation: str, commands: list[bytes], done: bytes, noreply: bool | None
    ) -> Any:
        """Whether the (last) reply is `done`; a fallback where the user gave one."""
        if noreply is None:
            noreply = self.default_noreply
        try:
            lines = self._command(operation, commands, (done, b"NOT_FOUND"), noreply)
        except _errors.Unavailable as error:
            return self._fall_back(error)
        return lines is None or lines[-1] == done

    def delete(self, key: Key, noreply: bool | None = None) -> bool:
        """See pymemcache's `Client.delete`."""
        command = b"delete " + self._wire_key(key)
        return self._done("delete", [command], b"DELETED", noreply)  # type: ignore[no-any-return]

    def delete_many(self, keys: Iterable[Key], noreply: bool | None = None) -> bool:
        """See pymemcache's `Client.delete_many`."""
        commands = [b"delete " + self._wire_key(key) for key in keys]
        if commands:
            self._done("delete_many", commands, b"DELETED", noreply)
        return True

    delete_multi = delete_many

    def incr(self, key: Key, value: int, noreply: bool | None = False) -> int | None:
        """See pymemcache's `Client.incr`."""
        return self._count("incr", key, value, noreply)

    def decr(self, key: Key, value: int, noreply: bool | None = False) -> int | None:
        """See pymemcache's `Client.decr`."""
        return self._count("decr", key, value, noreply)

    def _count(self, verb: str, key: Key, value: int, noreply: bool | None) -> int | None:
        wire_key = self._wire_key(key)
        command = b" ".join((verb.encode(), wire_key, self._check_integer(value, "value")))
        try:
            lines = self._command(verb, [command], None, noreply)
        except _errors.Unavailable as error:
            return self._fall_back(error)  # type: ignore[no-any-return]
        if lines is None or lines[0] == b"NOT_FOUND":
            return None
        return int(lines[0])

    def touch(self, key: Key, expire: int = 0, noreply: bool | None = None) -> bool:
        """See pymemcache's `Client.touch`."""
        wire_key = self._wire_key(key)
        command = b" ".join((b"touch", wire_key, self._check_integer(expire, "expire")))
        return self._done("touch", [command], b"TOUCHED", noreply)  # type: ignore[no-any-return]

    def flush_all(self, delay: int = 0, noreply: bool | None = None) -> bool:
        """See pymemcache's `Client.flush_all`."""
        command = b"flush_all " + self._check_integer(delay, "delay")
        return self._done("flush_all", [command], b"OK", noreply)  # type: ignore[no-any-return]

    def stats(self, *args: Any) -> dict[bytes, Any]:
        """See pymemcache's `Client.stats`."""
        words = [self.check_key(word, b"") for word in args]
        request = b" ".join([b"stats", *words]) + b"\r\n"
        try:
            result: dict[bytes, Any] = self._exchange(
                "stats", request, replies.statistics, b"stats"
            )
        except _errors.Unavailable as error:
            return self._unavailable(error, {})  # type: ignore[no-any-return]
        except Exception:
            if self.ignore_exc:
                return {}
            raise
        for key, value in result.items():
            with contextlib.suppress(Exception):
                result[key] = base.STAT_TYPES.get(key, int)(value)
        return result

    def cache_memlimit(self, memlimit: int) -> bool:
        """See pymemcache's `Client.cache_memlimit`."""
        command = b"cache_memlimit " + self._check_integer(memlimit, "memlimit")
        self._command("cache_memlimit", [command], (b"OK",))
        return True

    def version(self) -> bytes:
        """See pymemcache's `Client.version`."""
        version: bytes = self._exchange("version", b"version\r\n", replies.version)
        return version

    def raw_command(self, command: str | bytes, end_tokens: str | bytes = "\r\n") -> bytes:
        """See pymemcache's `Client.raw_command`."""
        encoding = "utf8" if self.allow_unicode_keys else "ascii"
        if isinstance(command, str):
            command = command.encode(encoding)
        if isinstance(end_tokens, str):
            end_tokens = end_tokens.encode(encoding)
        request = command + b"\r\n"
        reply: bytes = self._exchange(
            "raw_command", request, replies.segment, (command, end_tokens)
        )
        return reply

    def quit(self) -> None:
        """See pymemcache's `Client.quit`."""
        self._exchange("quit", b"quit\r\n", None)
        self.close()

    def shutdown(self, graceful: bool = False) -> None:
        """See pymemcache's `Client.shutdown`."""
        with contextlib.suppress(MemcacheUnexpectedCloseError):  # that is how it answers
            self._command("shutdown", [b"shutdown graceful" if graceful else b"shutdown"], (b"OK",))


def _translate(
    error: BaseException, *, connected: bool
) -> tuple[str | None, type[_errors.Unavailable] | None]:
    """(the machine's kind, the Unavailable to raise or None: `error` as it is)."""
    if isinstance(error, Refused):
        return ANSWER, None
    if isinstance(error, ServerUnwell):
        return UNWELL, None
    if isinstance(error, Garbled):
        return BROKEN, GarbledReply
    if isinstance(error, (PoolFull, Full)):
        return CROWDED, _errors.Overloaded
    if isinstance(error, (ConnectTimeout, TimeoutError)):
        overslept = isinstance(error, Cut) and error.overslept > OVERSLEPT
        kind = STALLED if overslept else CUT
        return kind if connected else UNCONNECTED, _errors.DeadlineExceeded
    if isinstance(error, (OSError, EOFError)):
        return BROKEN, _errors.ConnectionLost if connected else _errors.ConnectFailed
    return None, None


def _show(server: Any) -> str:
    if isinstance(server, tuple):
        host, port = server
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(server)


def _with_ceiling(policy: Policy, ceiling: float | None) -> Policy:
    timeout = policy.timeout
    if ceiling is None:
        return policy
    if isinstance(timeout, Percentile):
        initial = None if timeout.initial is None else min(timeout.initial, ceiling)
        floor = min(timeout.floor, ceiling)
        return replace(
            policy, timeout=replace(timeout, ceiling=ceiling, floor=floor, initial=initial)
        )
    if isinstance(timeout, Fixed):
        return replace(policy, timeout=Fixed(min(timeout.seconds, ceiling)))
    return replace(policy, timeout=Fixed(ceiling))


def _for_connecting(policy: Policy) -> Policy:
    timeout = policy.timeout
    if isinstance(timeout, Percentile):
        # A pool makes few connections, and a connect that is waited for too shortly isn't lost:
        # it goes on in the background. So little evidence will do.
        # But a worker has to be woken first: on a busy machine that alone may take 50 ms.
        floor = min(max(timeout.floor, CONNECT_FLOOR), timeout.ceiling)
        timeout = replace(timeout, min_samples=min(timeout.min_samples, 5), floor=floor)
    return replace(policy, timeout=timeout, breaker=None, retry=None, fallback=UNSET)


def _effective(policy: Policy | None, timeout: float | None, on_unavailable: Any) -> Policy:
    if policy is not None and not isinstance(policy, Policy):
        raise TypeError(f"policy must be a Policy, not {policy!r}")
    policy = Policy() if policy is None else policy
    if policy.timeout is None and timeout is None:
        timeout = DEFAULT_CEILING  # no limit of its own still isn't "for ever" on our sockets
    if timeout is not None:
        policy = _with_ceiling(policy, check_seconds("timeout", timeout))
    if on_unavailable is not UNSET:
        policy = replace(policy, fallback=on_unavailable)
    return policy
