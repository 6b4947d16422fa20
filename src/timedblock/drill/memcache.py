"""The memcached drill: the clients, the requests that they serve, the faults, the server.

The raw variants are pymemcache's ``PooledClient``, because requests run in threads and its
``Client`` must not be shared by threads.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import NamedTuple, Protocol

from pymemcache.client.base import Client as RawClient
from pymemcache.client.base import PooledClient
from pymemcache.exceptions import MemcacheError

from timedblock import faults
from timedblock.drill import checker
from timedblock.drill.checker import Violation
from timedblock.drill.errors import DrillError
from timedblock.drill.history import DISHONEST, OK, UNAVAILABLE, WRONG, Call, Delivery
from timedblock.drill.load import Answer, Request, Session
from timedblock.drill.store import (
    FIXED,
    LEARNT,
    RAW_DEFAULT,
    RAW_TIMEOUT,
    Address,
    Serving,
    Store,
    Variant,
)
from timedblock.testing.memcached import EmbeddedMemcached

#: The token of the value that every key has before a load writes to it.
INITIAL = "0"
#: Different keys of one load; every one is stored before it starts and stays stored.
KEYS = 32
#: Seconds that timedblock-fixed gives a call: what a request can spare for its cache.
FIXED_LIMIT = 0.25
#: Seconds that a drill's own calls (storing and deleting its keys) may take each.
_OWN_TIMEOUT = 2.0
_START_LIMIT = 10.0


class Cache(Protocol):
    """What the load needs of a client."""

    def get(self, key: str) -> bytes | None: ...

    def set(self, key: str, value: bytes) -> bool | None: ...


class Client(NamedTuple):
    """A client, the error by which it may say that there is no answer, and whether its writes
    return before the server has answered."""

    cache: Cache
    honest: type[Exception]
    noreply: bool


def _raw_default(server: Address) -> Client:
    return Client(PooledClient(server), Exception, noreply=True)


def _raw_timeout(server: Address) -> Client:
    return Client(PooledClient(server, connect_timeout=1, timeout=1), Exception, noreply=True)


# The imports are here, so that the raw clients' processes are without them.


def _timedblock_fixed(server: Address) -> Client:
    from timedblock import Fixed, Policy, Unavailable, memcache

    policy = Policy(timeout=Fixed(FIXED_LIMIT))
    return Client(memcache.Client(server, policy=policy), Unavailable, noreply=False)


def _timedblock(server: Address) -> Client:
    from timedblock import Unavailable, memcache

    return Client(memcache.Client(server), Unavailable, noreply=False)


class Keys:
    """The keys of one load. A value carries its key, who wrote it (a token) and a checksum, so that
    a value of another key, a truncated or a corrupted one is recognised."""

    _VALUE = re.compile(rb"(?P<key>\S+) (?P<token>\w+) [0-9a-f]{64}")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def short(self, index: int) -> str:
        """What a key is called in the history."""
        return f"k{index % KEYS}"

    def name(self, short: str) -> str:
        """What it is called on the wire."""
        return f"{self._prefix}:{short}"

    def value(self, short: str, token: str) -> bytes:
        text = f"{self.name(short)} {token}"
        return f"{text} {hashlib.sha256(text.encode()).hexdigest()}".encode()

    def token(self, short: str, value: bytes) -> str | None:
        """Who wrote the value of a key; None if nobody can have written it."""
        match = self._VALUE.fullmatch(value)
        token = match["token"].decode() if match else ""
        return token if match and value == self.value(short, token) else None

    def all(self) -> list[str]:
        return [self.short(index) for index in range(KEYS)]


class CacheSession:
    """Requests of an application: read the cache, now and then write to it; on any error go on
    without it."""

    def __init__(self, client: Client, keys: Keys, writes: float) -> None:
        self._cache, self._honest, self._noreply = client
        self._keys = keys
        self._every = round(1 / writes) if writes else 0

    def enter(self) -> None:
        pass

    def request(self, number: int) -> Request:
        if self._every and number % self._every == self._every - 1:
            return Request("set", self._keys.short(number // self._every), f"w{number}")
        return Request("get", self._keys.short(number))

    def answer(self, number: int) -> Answer:
        _, key, token = self.request(number)
        try:
            if token is None:
                return self._read(key)
            return self._write(key, token)
        except self._honest as error:
            # The raw clients don't say whether bytes left: what became of a write is unknown.
            sent = getattr(error, "sent", True)
            return Answer(UNAVAILABLE, error=type(error).__name__, sent=sent)
        except Exception as error:
            return Answer(DISHONEST, error=type(error).__name__, sent=True)

    def finish(self) -> list[tuple[float, str]]:
        return []

    def _read(self, key: str) -> Answer:
        value = self._cache.get(self._keys.name(key))
        if value is None:  # whether the key may be gone is for the checker to say
            return Answer(OK)
        token = self._keys.token(key, value)
        return Answer(WRONG) if token is None else Answer(OK, token)

    def _write(self, key: str, token: str) -> Answer:
        stored = self._cache.set(self._keys.name(key), self._keys.value(key, token))
        if not stored:
            return Answer(UNAVAILABLE, error="NotStored", sent=False)
        return Answer(OK, sent=True if self._noreply else None)


def _variant(name: str, limit: float, connect: Callable[[Address], Client]) -> Variant:
    def session(servers: Sequence[Address], prefix: str, writes: float) -> Session:
        return CacheSession(connect(servers[0]), Keys(prefix), writes)

    return Variant(name, limit, session)


class CacheData:
    """The drill's own connections to the server, past the faults."""

    def __init__(self, servers: Sequence[Address]) -> None:
        self._server = servers[0]

    def check(self) -> None:
        self.read("timedblock-drill")

    def prepare(self, prefix: str) -> None:
        keys = Keys(prefix)
        values: dict[str | bytes, bytes] = {
            keys.name(short): keys.value(short, INITIAL) for short in keys.all()
        }
        with self._client() as client:
            failed = client.set_many(values, noreply=False)
        if failed:
            raise DrillError(f"{self._text} did not store {len(failed)} of {KEYS} keys")

    def violations(
        self,
        prefix: str,
        calls: Sequence[Call],
        deliveries: Sequence[Delivery],
        *,
        restarted: bool,
    ) -> list[Violation]:
        """A server that was not restarted and lost keys can't be right: a miss would then not be a
        wrong answer."""
        final = self.read(prefix)
        lost = sum(token is None for token in final.values())
        if lost and not restarted:
            raise DrillError(f"{self._text} lost {lost} keys while the drill ran")
        return checker.check(calls, INITIAL, final=final, may_lose=restarted)

    def read(self, prefix: str) -> dict[str, str | None]:
        """The token of every key; None for one that is lost."""
        keys = Keys(prefix)
        with self._client() as client:
            found = client.get_many([keys.name(short) for short in keys.all()])
        return {
            short: keys.token(short, value) if (value := found.get(keys.name(short))) else None
            for short in keys.all()
        }

    def delete(self, prefix: str) -> None:
        keys = Keys(prefix)
        with self._client() as client:
            client.delete_many([keys.name(short) for short in keys.all()], noreply=False)

    @property
    def _text(self) -> str:
        return f"{self._server[0]}:{self._server[1]}"

    @contextmanager
    def _client(self) -> Iterator[RawClient]:
        limit = _OWN_TIMEOUT
        try:
            with closing(RawClient(self._server, connect_timeout=limit, timeout=limit)) as client:
                yield client
        except (OSError, MemcacheError) as error:
            reason = str(error) or type(error).__name__
            raise DrillError(f"no memcached at {self._text}: {reason}") from error


# The server


@contextmanager
def _embedded(host: str) -> Iterator[Serving]:
    with EmbeddedMemcached(host) as server:
        assert isinstance(server.address, tuple)
        # It ends with its standard input, so nobody else can start it again.
        yield Serving(server.address, server.pid, ())


def _installed() -> tuple[str, ...]:
    """The command of an installed memcached, as nobody and so that it never outlives the drill;
    () if there is none, or nothing to run it by."""
    memcached, setpriv = shutil.which("memcached"), shutil.which("setpriv")
    if memcached is None or setpriv is None:
        return ()
    nobody = ("--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
    return (setpriv, *nobody, "--pdeathsig", "KILL", memcached)


@contextmanager
def _real(program: tuple[str, ...], host: str) -> Iterator[Serving]:
    port = _free_port(host)
    command = (*program, "-l", host, "-p", str(port), "-m", "16", "-c", "4096")
    # A session of its own: Ctrl-C is for the drill, which then ends its server.
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait_listening((host, port), process)
        yield Serving((host, port), process.pid, command)
    finally:
        process.kill()
        process.wait()


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.bind((host, 0))
        port: int = one.getsockname()[1]
        return port


def _wait_listening(address: Address, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_LIMIT
    while process.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection(address, _OWN_TIMEOUT).close()
            return
        except OSError:
            time.sleep(0.02)
    raise DrillError(f"memcached did not start at {address[0]}:{address[1]}")


@contextmanager
def serve(host: str) -> Iterator[Serving]:
    """A server on a free port of ``host``: memcached if it is installed, else the embedded one.
    DrillError if it doesn't start."""
    program = _installed()
    try:
        with _real(program, host) if program else _embedded(host) as serving:
            yield serving
    except RuntimeError as error:
        raise DrillError(str(error)) from error


#: raw-default has no limit of its own; it is held to the second that its users would expect.
#: timedblock's is the default ceiling of a call, with nothing tuned.
STORE = Store(
    name="memcache",
    operation="memcache.get",
    rate=200.0,
    writes=0.1,
    variants={
        variant.name: variant
        for variant in (
            _variant(RAW_DEFAULT, 1.0, _raw_default),
            _variant(RAW_TIMEOUT, 1.0, _raw_timeout),
            _variant(FIXED, FIXED_LIMIT, _timedblock_fixed),
            _variant(LEARNT, 1.0, _timedblock),
        )
    },
    faults={
        fault.name: fault
        for fault in (
            faults.Refuse(),
            faults.Blackhole(),
            faults.Hang(),
            faults.Silent(),
            faults.Reset(),
            faults.DnsFail(),
            faults.DnsHang(),
            faults.Latency(0.05, jitter=0.02),
            faults.Drip(),
            faults.Cut(),
            faults.Corrupt(),
            faults.ErrorRate(0.5),
        )
    },
    quick=("refuse", "blackhole", "hang", "drip"),
    gone=frozenset({"refuse", "blackhole", "hang", "silent", "reset", "dns-fail", "dns-hang"}),
    quiet=frozenset({"blackhole", "hang", "silent", "drip", "dns-hang"}),
    serve=serve,
    data=CacheData,
)
