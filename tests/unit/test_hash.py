"""HashClient on embedded servers: which keys come, which are missing, and what is left behind."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pymemcache
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from pymemcache.client.hash import HashClient as RawHashClient
from pymemcache.exceptions import MemcacheError, MemcacheIllegalInputError

from timedblock import ConnectFailed, Policy, Retry, Unavailable, faults, memcache, time_limit
from timedblock.memcache import HashClient, PartialResult
from timedblock.memcache.fanout import Bell
from timedblock.testing.memcached import EmbeddedMemcached

Address = tuple[str, int]

LIMIT = 0.1
TOLERANCE = 0.25
NODES = 4
LIVE, REFUSES, SILENT = "live", "refuses", "silent"
KEYS = [f"key:{number}" for number in range(40)]
_numbers = itertools.count()
_open: list[HashClient] = []


@dataclass(frozen=True)
class Places:
    """Addresses that answer, that refuse, and that take connections and say nothing."""

    live: list[Address]
    refuses: list[Address]
    silent: list[Address]

    def of(self, kinds: list[str]) -> list[Address]:
        """One address each, no two the same."""
        by_kind = {LIVE: self.live, REFUSES: self.refuses, SILENT: self.silent}
        return [by_kind[kind][number] for number, kind in enumerate(kinds)]


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    with contextlib.ExitStack() as stack:
        live = []
        for _ in range(NODES):
            address = stack.enter_context(EmbeddedMemcached()).address
            assert isinstance(address, tuple)
            live.append(address)
        bound = []
        for number in range(2 * NODES):
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            if number >= NODES:
                one.listen(128)
            bound.append(one.getsockname())
        yield Places(live, bound[:NODES], bound[NODES:])


def _client(servers: list[Address], **options: Any) -> HashClient:
    """A client with breakers of its own, whatever earlier tests did to these addresses."""
    options = {"timeout": LIMIT, "name": f"hash{next(_numbers)}", **options}
    made = HashClient(servers, **options)
    _open.append(made)
    return made


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()


def _owner(client: HashClient, key: Any) -> Any:
    return client.hasher.get_node(key)


def _down(servers: list[Address], kinds: list[str]) -> set[str]:
    pairs = zip(servers, kinds, strict=True)
    return {f"{host}:{port}" for (host, port), kind in pairs if kind != LIVE}


class Outcome:
    """How a call on several keys ended: what came, and which keys have no answer."""

    def __init__(self, call: Any, keys: list[str], nothing: Any) -> None:
        began = time.monotonic()
        self.error: Unavailable | None = None
        try:
            self.result, self.missing = call(), set()
        except PartialResult as error:
            self.result, self.missing, self.error = error.result, set(error.missing), error
        except Unavailable as error:
            self.result, self.missing, self.error = nothing, set(keys), error
        self.elapsed = time.monotonic() - began


@pytest.mark.wall
@settings(max_examples=25)
@given(
    kinds=st.lists(st.sampled_from([LIVE, LIVE, REFUSES, SILENT]), min_size=2, max_size=NODES),
    keys=st.lists(st.sampled_from(KEYS), min_size=1, unique=True),
)
def test_results_are_the_living_nodes_keys_and_missing_the_others(
    places: Places, kinds: list[str], keys: list[str]
) -> None:
    """Whichever nodes are down: every key is in the answer or in `missing`, by its node."""
    servers = places.of(kinds)
    with contextlib.closing(_client(servers)) as client:
        down = _down(servers, kinds)
        lost = {key for key in keys if _owner(client, key) in down}
        found = {key: f"{key}!".encode() for key in keys if key not in lost}
        stored = Outcome(lambda: client.set_many({key: f"{key}!" for key in keys}), keys, [])
        got = Outcome(lambda: client.get_many(keys), keys, {})
        versions = Outcome(lambda: client.gets_many(keys), keys, {})
        deleted = Outcome(lambda: client.delete_many(keys), keys, True)
        outcomes = (stored, got, versions, deleted)
        assert [one.missing for one in outcomes] == [lost] * 4
        assert stored.result == [] and got.result == found and deleted.result is True
        assert {key: value for key, (value, _) in versions.result.items()} == found
        assert max(one.elapsed for one in outcomes) <= LIMIT + TOLERANCE
        for one in outcomes:
            assert (one.error is None) == (not lost)
            # only where nobody at all answered is it the node's own error
            assert isinstance(one.error, PartialResult) == (bool(lost) and lost != set(keys))


def test_it_is_pymemcaches() -> None:
    """An isinstance check written for pymemcache's class holds, and there is no I/O before use."""
    with pytest.raises(MemcacheError, match="down right now"):
        HashClient([]).get("k")
    client = HashClient(["192.0.2.1:11211"])
    assert isinstance(client, RawHashClient)
    assert isinstance(client.clients["192.0.2.1:11211"], memcache.Client)
    pooled = HashClient(["192.0.2.1"], use_pooling=True, max_pool_size=3, lock_generator=None)
    assert isinstance(pooled.clients["192.0.2.1:11211"], memcache.PooledClient)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"timeout": -1.0}, "timeout"),
        ({"retry_timeout": float("nan")}, "retry_timeout"),
        ({"dead_timeout": -1}, "dead_timeout"),
        ({"retry_attempts": "2"}, "retry_attempts"),
        ({"max_pool_size": 0}, "max_pool_size"),
        ({"policy": 1}, "policy"),
    ],
)
def test_bad_arguments_are_named_at_construction(options: dict[str, Any], problem: str) -> None:
    """A bad value is refused before the first call, by its name."""
    with pytest.raises((TypeError, ValueError), match=problem):
        HashClient(["192.0.2.1"], **options)


@pytest.mark.parametrize("pooling", [False, True])
def test_all_operations_reach_the_keys_node(places: Places, pooling: bool) -> None:
    """Single-key operations go to the node of the ring and nowhere else, with or without pools."""
    client = _client(places.live, use_pooling=pooling, key_prefix=b"p:")
    client.flush_all()
    for key in KEYS:
        assert client.set(key, key) is True
        host, _, port = _owner(client, key).rpartition(":")
        for address in places.live:
            raw = pymemcache.Client(address, timeout=5)
            there = raw.get(f"p:{key}")
            assert there == (key.encode() if address == (host, int(port)) else None)
            raw.close()
    key = KEYS[0]
    assert client.add(key, 1) is False and client.replace(key, 5) is True
    assert client.incr(key, 2) == 7 and client.decr(key, 1) == 6
    assert client.append(key, "0") and client.prepend(key, "1") and client.get(key) == b"160"
    _, version = client.gets(key)
    assert client.cas(key, b"new", version) and not client.cas(key, b"newer", version)
    assert client.touch(key, 100) and client.delete(key) and client.get(key, "none") == "none"
    assert client.get_many(KEYS[1:]) == {other: other.encode() for other in KEYS[1:]}
    assert client.flush_all() is None and client.get_many(KEYS) == {}
    client.quit()
    client.close()


def test_a_down_node_is_told_from_a_miss(places: Places) -> None:
    """A single key of a node that is down raises, also while the node rests after a failure."""
    client = _client(
        places.of([LIVE, REFUSES]), retry_attempts=2, retry_timeout=60, dead_timeout=60
    )
    down = f"{places.refuses[1][0]}:{places.refuses[1][1]}"
    key = next(key for key in KEYS if _owner(client, key) == down)
    with pytest.raises(ConnectFailed):
        client.get(key)
    for _ in range(3):  # pymemcache returns the default here
        with pytest.raises(memcache.CircuitOpen) as caught:
            client.get(key, "default")
        assert 0 < caught.value.retry_after <= 60 and key not in str(caught.value)
    with pytest.raises(PartialResult) as partial:
        client.get_many(KEYS)
    assert set(partial.value.missing) == {key for key in KEYS if _owner(client, key) == down}


def test_errors_hold_no_key(places: Places) -> None:
    """The text, the repr and the pickled text of a PartialResult say how many, never which."""
    client = _client(places.of([LIVE, REFUSES]))
    with pytest.raises(PartialResult) as caught:
        client.set_many({f"secret{number}": b"hidden" for number in range(20)})
    text = str(caught.value) + repr(caught.value)
    assert "secret" not in text and "hidden" not in text
    assert f"has {len(caught.value.missing)} of its keys without an answer" in text
    assert isinstance(caught.value, MemcacheError) and caught.value.__cause__ is not None


def test_ignore_exc_and_fallbacks(places: Places) -> None:
    """Whoever asks for it gets what came: misses, the fallback's values, and honest failures."""
    servers = places.of([LIVE, REFUSES, SILENT])
    ignoring = _client(servers, ignore_exc=True)
    down = _down(servers, [LIVE, REFUSES, SILENT])
    lost = [key for key in KEYS if _owner(ignoring, key) in down]
    assert set(ignoring.set_many(dict.fromkeys(KEYS, b"v"))) == set(lost)
    assert ignoring.get_many(KEYS) == {key: b"v" for key in KEYS if key not in lost}
    assert ignoring.get(lost[0], "default") == "default"
    assert ignoring.set(lost[0], b"v") is False
    filling = _client(servers, on_unavailable=lambda: dict.fromkeys(KEYS, b"old"))
    assert filling.get_many(KEYS) == {key: b"old" if key in lost else b"v" for key in KEYS}
    constant = _client(servers, on_unavailable=None)
    assert constant.get(lost[0], "default") is None
    assert set(constant.get_many(KEYS)) == set(KEYS) - set(lost)
    assert set(constant.set_many(dict.fromkeys(KEYS, b"v"))) == set(lost)


def test_half_of_the_nodes_stay_in_the_ring(places: Places) -> None:
    """Ejection, where asked for, takes out half of the nodes at most, and they come back."""
    servers = places.of([REFUSES] * NODES)
    client = _client(servers, retry_attempts=0, retry_timeout=0, dead_timeout=0.3)
    for key in KEYS * 2:
        with pytest.raises(Unavailable):
            client.get(key)
    assert len(client._dead_clients) == NODES // 2
    assert len({_owner(client, key) for key in KEYS}) == NODES - NODES // 2
    time.sleep(0.35)
    with pytest.raises(Unavailable):
        client.get(KEYS[0])
    assert {_owner(client, key) for key in KEYS} == set(client.clients) or client._dead_clients


def test_nothing_is_ejected_unless_asked_for(places: Places) -> None:
    """With pymemcache's arguments left out, a dead node keeps its keys: no old values later."""
    client = _client(places.of([LIVE, REFUSES]))
    owners = [_owner(client, key) for key in KEYS]
    for key in KEYS:
        with contextlib.suppress(Unavailable):
            client.get(key)
    assert [_owner(client, key) for key in KEYS] == owners


def test_nodes_come_and_go(places: Places) -> None:
    """add_server and remove_server move keys at once; a removed node doesn't come back."""
    client = _client(places.live[:2], dead_timeout=0)
    client.add_server(*places.live[2])
    assert client.set_many(dict.fromkeys(KEYS, b"v")) == []
    assert len({_owner(client, key) for key in KEYS}) == 3
    client.remove_server(places.live[0])
    assert set(client.clients) == {f"{host}:{port}" for host, port in places.live[1:3]}
    for key in KEYS:
        client.get(key)
    assert len({_owner(client, key) for key in KEYS}) == 2


def test_big_values_both_ways(places: Places) -> None:
    """Requests and replies of megabytes to all nodes at once arrive whole."""
    values = {key: random.Random(key).randbytes(500_000) for key in KEYS[:24]}
    client = _client(places.live, timeout=20.0)
    assert client.set_many(values) == []
    assert client.get_many(values) == values
    client.flush_all()


def test_a_bad_value_sends_nothing(places: Places) -> None:
    """A key or value that can't be sent is refused before any node has got a byte."""
    client = _client(places.live)
    client.flush_all()
    with pytest.raises(MemcacheIllegalInputError):
        client.set_many({**dict.fromkeys(KEYS, b"v"), "umlaut": "\xe4"})
    with pytest.raises(MemcacheIllegalInputError):
        client.get_many([*KEYS, "two words"])
    assert client.get_many(KEYS) == {}


def test_a_callers_deadline_covers_all_nodes(places: Places) -> None:
    """Several silent nodes together take the deadline once, not once each."""
    client = _client(places.silent, timeout=5.0)
    began = time.monotonic()
    with time_limit(0.2), pytest.raises(Unavailable):
        client.get_many(KEYS)
    assert time.monotonic() - began <= 0.2 + TOLERANCE


def test_an_open_breaker_costs_nothing(places: Places) -> None:
    """Once a node's breaker is open, its keys are missing at once and the others come."""
    client = _client(places.of([LIVE, SILENT]), policy=Policy())
    for _ in range(20):
        with contextlib.suppress(PartialResult):
            client.get_many(KEYS)
    spent = []
    for _ in range(5):
        began = time.monotonic()
        with pytest.raises(PartialResult) as caught:
            client.get_many(KEYS)
        spent.append(time.monotonic() - began)
        assert caught.value.missing
    assert min(spent) < 0.02


@pytest.mark.parametrize("fault", [faults.Hang(), faults.Latency(0.02), faults.Drip(7, 0.001)])
def test_injected_faults_act_on_one_node_alone(places: Places, fault: faults.Fault) -> None:
    """The taps of in-process faults, which no poll sees, are served within the limit too."""
    client = _client(places.live[:2], timeout=2.0 if not isinstance(fault, faults.Hang) else LIMIT)
    assert client.set_many(dict.fromkeys(KEYS, b"v")) == []
    host, port = places.live[0]
    with faults.inject(f"{client.name}@{host}:{port}", fault):
        got = Outcome(lambda: client.get_many(KEYS), KEYS, {})
    lost = {key for key in KEYS if _owner(client, key) == f"{host}:{port}"}
    assert got.missing == (lost if isinstance(fault, faults.Hang) else set())
    assert set(got.result) == set(KEYS) - got.missing
    assert got.elapsed <= 2.0 + TOLERANCE


def test_a_retry_of_one_node_waits_with_the_others(places: Places) -> None:
    """A policy's retries repeat a node's share alone, within its call limit."""
    policy = Policy(retry=Retry(attempts=3))
    client = _client(places.of([LIVE, REFUSES]), policy=policy, timeout=1.0)
    client.set_many({})
    got = Outcome(lambda: client.get_many(KEYS), KEYS, {})
    assert isinstance(got.error, PartialResult) and got.elapsed <= 1.0 + TOLERANCE


def test_noreply_is_not_waited_for(places: Places) -> None:
    """With noreply nothing is read, and the next replies are in step."""
    client = _client(places.live, default_noreply=True)
    assert client.set_many(dict.fromkeys(KEYS, b"v")) == []
    assert client.get_many(KEYS) == dict.fromkeys(KEYS, b"v")
    assert client.delete_many(KEYS) is True
    assert client.get_many(KEYS) == {}
    client.flush_all()


def test_a_client_of_another_kind_is_asked_too(places: Places) -> None:
    """With pymemcache's own class as `client_class`, several keys are fetched as there."""

    class Raw(HashClient):
        client_class = pymemcache.Client

    client = Raw(places.live[:2], timeout=5.0)
    assert type(next(iter(client.clients.values()))) is pymemcache.Client
    assert client.set_many(dict.fromkeys(KEYS, b"v")) == []
    assert client.get_many(KEYS) == dict.fromkeys(KEYS, b"v")
    assert client.delete_many(KEYS) is True
    client.close()


def test_tls_and_a_sockets_module_of_ones_own(tmp_path: Path) -> None:
    """Replies of many TLS records come whole; sockets that can't be polled are read in turn."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(chain), append=True)
    issued.private_key_pem.write_to_path(str(key))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    values = {key: random.Random(key).randbytes(100_000) for key in KEYS}
    with (
        EmbeddedMemcached("localhost", tls_cert=chain, tls_key=key) as one,
        EmbeddedMemcached("localhost", tls_cert=chain, tls_key=key) as two,
    ):
        servers: list[Any] = [one.address, two.address]
        plain = socket.__class__("my_sockets")
        plain.__dict__.update(vars(socket))
        for module in (socket, plain):
            client = _client(servers, tls_context=context, timeout=20.0, socket_module=module)
            assert client.set_many(values) == []
            assert client.get_many(values) == values
            client.close()


@contextlib.contextmanager
def _interrupt_after(seconds: float) -> Iterator[float]:
    """A KeyboardInterrupt in this thread; the instant by which it has certainly come."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def strike() -> None:
        if not over.wait(seconds):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    over = threading.Event()
    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=strike)
    try:
        thread.start()
        yield time.monotonic() + seconds + 0.2
    finally:
        over.set()
        with contextlib.suppress(KeyboardInterrupt):
            thread.join()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("no_leaks", "untraced")
def test_interrupts_leave_nothing_behind(places: Places) -> None:
    """A KeyboardInterrupt at any point of an exchange loses no slot, turn, pipe or answer."""
    client = _client(places.of([LIVE, LIVE, SILENT]), timeout=0.05)
    values = {key: key.encode() for key in KEYS}
    with contextlib.suppress(Unavailable):
        client.set_many(values)
    struck = 0
    for number in range(150):
        try:
            with _interrupt_after(0.0002 + (number % 30) * 0.0002) as until:
                while time.monotonic() < until:
                    got = Outcome(lambda: client.get_many(KEYS), KEYS, {})
                    assert all(value == values[key] for key, value in got.result.items())
        except KeyboardInterrupt:
            struck += 1
    assert struck > 50
    got = Outcome(lambda: client.get_many(KEYS), KEYS, {})
    assert set(got.result) == set(KEYS) - got.missing and got.result
    for node in client.clients.values():
        assert not node._pool.waiting
        for block in node._blocks.values():
            block.sweep()
            assert not block.in_flight
    client.close()


@pytest.mark.usefixtures("no_leaks")
def test_a_bell_that_was_closed_rings_nobody() -> None:
    """A late ring never writes to a descriptor that may be another's by then."""
    bell = Bell()
    bell.ring()  # not open yet: nothing
    bell.open()
    for _ in range(100_000):  # past what the pipe holds
        bell.ring()
    fd = bell.fd
    bell.close()
    reader, writer = socket.socketpair()
    with reader, writer:
        assert fd is not None
        bell.ring()
        reader.setblocking(False)
        writer.setblocking(False)
        for end in (reader, writer):
            with pytest.raises(BlockingIOError):
                end.recv(1)
