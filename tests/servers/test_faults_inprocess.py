"""The faults at our own sockets: each bites a bare connection, and ends no call late."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.servers.limits import LIMIT, TOLERANCE, failed, recovered, timed
from timedblock import (
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    Policy,
    Unavailable,
    faults,
    memcache,
)
from timedblock.faults.inprocess import _INJECTOR
from timedblock.faults.taps import HIGH_WATER
from timedblock.net import seam
from timedblock.net.resolve import RESOLVER
from timedblock.net.wire import CHUNK, EXPIRED, Wire
from timedblock.testing import EmbeddedMemcached

# For how long a bare connection is armed here: longer than a call may take.
ARMED = 0.5
# A recv in the kernel, or a wait in the fault, may end a little before its time.
EARLY = 0.02
REQUEST, VALUE = b"get key\r\n", b"v" * 20
REPLY = b"VALUE key 0 20\r\n" + VALUE + b"\r\nEND\r\n"

pytestmark = pytest.mark.usefixtures("no_leaks", "off_again")

Make = Callable[..., memcache.Client]


class OwnSocket(socket.socket):
    """What a user's own socket module may make."""


def own_module() -> types.ModuleType:
    """A user's socket module, as `socket_module=` takes it."""
    module = types.ModuleType("own_sockets")
    vars(module).update({name: getattr(socket, name) for name in socket.__all__})
    module.socket = OwnSocket  # type: ignore[attr-defined]
    return module


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """A client's arguments for each way to a server."""
    folder: Path = tmp_path_factory.mktemp("faults")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    cert, key = folder / "cert.pem", folder / "key.pem"
    issued.private_key_pem.write_to_path(str(key))
    for pem in issued.cert_chain_pems:
        pem.write_to_path(str(cert), append=True)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with (
        EmbeddedMemcached() as plain,
        EmbeddedMemcached(unix=folder / "socket") as unix,
        EmbeddedMemcached(tls_cert=cert, tls_key=key) as tls,
    ):
        yield {
            "tcp": {"server": plain.address},
            "unix": {"server": unix.address},
            "tls": {"server": ("localhost", tls.address[1]), "tls_context": trusting},
            "own": {"server": plain.address, "socket_module": own_module()},
        }


@pytest.fixture
def off_again() -> Iterator[None]:
    """No fault outlives its test."""
    yield
    assert seam.injector is None


@pytest.fixture
def make(servers: dict[str, dict[str, Any]]) -> Iterator[Make]:
    """Makes clients of one kind of connection; they hold the key that tests ask for."""
    made: list[memcache.Client] = []

    def make(kind: str, timeout: float = LIMIT, **more: Any) -> memcache.Client:
        made.append(
            memcache.Client(**servers[kind], timeout=timeout, policy=Policy(breaker=None), **more)
        )
        recovered(lambda: made[-1].set("key", VALUE))
        return made[-1]

    yield make
    for client in made:
        client.close()


@dataclass(frozen=True)
class Raw:
    """What a bare connection met: what `send` and `recv` raised or returned, and how long."""

    outcome: bytes | BaseException
    elapsed: float


def bare(client: memcache.Client, wire: Wire | None = None) -> Raw:
    """Ask on a connection armed for ARMED, without a limit of ours above it."""
    began = time.monotonic()
    outcome: bytes | BaseException
    try:
        wire = wire or client._open()
        wire.arm(ARMED)
        assert wire.send(REQUEST) == len(REQUEST)
        outcome = wire.recv(CHUNK)
    except (OSError, *EXPIRED) as error:
        outcome = error
    elapsed = time.monotonic() - began
    if wire is not None:
        wire.close()
    return Raw(outcome, elapsed)


KINDS = ["tcp", "unix", "tls", "own"]


def expired(raw: Raw) -> None:
    """Nothing came for as long as the socket waits."""
    assert isinstance(raw.outcome, EXPIRED)
    assert ARMED - EARLY <= raw.elapsed <= ARMED + TOLERANCE


def broken(raw: Raw) -> None:
    """The connection was reset."""
    assert isinstance(raw.outcome, ConnectionResetError)


def refused(raw: Raw) -> None:
    """Nobody listens."""
    assert isinstance(raw.outcome, (ConnectionRefusedError, ConnectionResetError))


def first_bytes(size: int) -> Callable[[Raw], None]:
    """Only a part of the reply came."""

    def check(raw: Raw) -> None:
        assert raw.outcome == REPLY[:size]

    return check


def flipped(raw: Raw) -> None:
    """Another reply than the server's; TLS notices by itself."""
    assert raw.outcome != REPLY
    assert isinstance(raw.outcome, (bytes, ssl.SSLError))


def late(raw: Raw) -> None:
    """The whole reply, later."""
    assert raw.outcome == REPLY
    assert raw.elapsed >= 0.1


@dataclass(frozen=True)
class Case:
    """A fault, what it does to a bare open connection, and how a call under it ends.

    `sent` is what the error of a call on a *new* connection says; on an open one it is True.
    """

    fault: faults.Fault
    bites: Callable[[Raw], None]
    error: type[Unavailable] | tuple[type[Unavailable], ...] | None
    sent: bool = True
    handshake: bool = False  # acts on the TLS handshake too: nothing is sent then

    def __str__(self) -> str:
        return self.fault.name + (f"-{self.fault.direction}" if self.direction else "")

    @property
    def direction(self) -> str:
        return getattr(self.fault, "direction", "")


CASES = [
    Case(faults.Refuse(), refused, (ConnectFailed, ConnectionLost), sent=False),
    Case(faults.Blackhole(), expired, DeadlineExceeded, sent=False),
    Case(faults.Hang(), expired, DeadlineExceeded, handshake=True),
    Case(faults.Hang("up"), expired, DeadlineExceeded, handshake=True),
    Case(faults.Hang("down"), expired, DeadlineExceeded, handshake=True),
    Case(faults.Silent(), expired, DeadlineExceeded, handshake=True),
    Case(faults.Latency(2.0), expired, DeadlineExceeded, handshake=True),
    Case(faults.Latency(0.11, jitter=0.01), late, None),
    Case(faults.Drip(size=2, every=0.1), first_bytes(2), DeadlineExceeded),
    Case(faults.Bandwidth(20.0), first_bytes(1), DeadlineExceeded),
    Case(faults.Reset(), broken, ConnectionLost),
    Case(faults.Reset(after=7), first_bytes(7), ConnectionLost),
    Case(faults.Cut(), first_bytes(10), ConnectionLost),
    Case(faults.Corrupt(), flipped, (ConnectionLost, DeadlineExceeded)),
    Case(faults.Bandwidth(0), expired, DeadlineExceeded),
    Case(faults.FailFirst(1000), broken, ConnectionLost),
    Case(faults.Flap(down=5.0), refused, (ConnectFailed, ConnectionLost), sent=False),
    Case(faults.ErrorRate(1.0), broken, ConnectionLost),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.wall
@every_kind
@every_case
def test_fault_bites_a_bare_connection(case: Case, kind: str, make: Make) -> None:
    """Without our limits an open connection waits, breaks or lies as the fault says."""
    client = make(kind)
    wire = client._open()
    with faults.inject("memcache", case.fault):
        case.bites(bare(client, wire))
    assert bare(client).outcome == REPLY


@pytest.mark.wall
@every_kind
@every_case
def test_call_on_an_open_connection_ends_within_its_limit(
    case: Case, kind: str, make: Make
) -> None:
    """Under a fault a call on a pooled connection has an answer or the right error in time."""
    client = make(kind)
    with faults.inject("memcache", case.fault):
        if case.error is None:
            assert timed(lambda: client.get("key")).value == VALUE
        else:
            error = failed(lambda: client.get("key"))
            assert isinstance(error, case.error)
            assert error.sent
    assert recovered(lambda: client.get("key")) == VALUE


@pytest.mark.wall
@every_kind
@every_case
def test_call_on_a_new_connection_ends_within_its_limit(case: Case, kind: str, make: Make) -> None:
    """Under a fault a call that has to connect has an answer or the right error in time."""
    client = make(kind)
    client.close()
    with faults.inject("memcache", case.fault):
        if case.error is None:
            ended = timed(lambda: client.get("key"))
            assert ended.value == VALUE or kind == "tls"  # two round trips, and the limit is one
        else:
            error = failed(lambda: client.get("key"))
            assert isinstance(error, case.error)
            assert error.sent is (case.sent and not (case.handshake and kind == "tls"))
    assert recovered(lambda: client.get("key")) == VALUE


@every_kind
def test_connects_are_refused(kind: str, make: Make) -> None:
    """Refuse: a new connection meets ConnectionRefusedError at once."""
    client = make(kind)
    with faults.inject("memcache", faults.Refuse()):
        assert isinstance(bare(client).outcome, ConnectionRefusedError)


@pytest.mark.wall
@every_kind
def test_connects_vanish(kind: str, make: Make) -> None:
    """Blackhole: a connect isn't answered until its ceiling."""
    client = make(kind)
    with faults.inject("memcache", faults.Blackhole()):
        raw = bare(client)
    assert isinstance(raw.outcome, TimeoutError)
    assert LIMIT - EARLY <= raw.elapsed <= LIMIT + TOLERANCE


@pytest.fixture
def unknown() -> Iterator[None]:
    """No name is known from before, and none stays known."""
    RESOLVER.forget()
    yield
    RESOLVER.forget()


@pytest.fixture
def by_name(make: Make, servers: dict[str, dict[str, Any]]) -> Callable[[str], memcache.Client]:
    """Makes clients whose server has a name."""

    def by_name(kind: str) -> memcache.Client:
        given = servers[kind]
        servers[kind] = {**given, "server": ("localhost", given["server"][1])}
        try:
            client = make(kind)
        finally:
            servers[kind] = given
        client.close()
        return client

    return by_name


Named = Callable[[str], memcache.Client]
NAMED = pytest.mark.parametrize("kind", ["tcp", "tls", "own"])


@NAMED
def test_names_do_not_resolve(kind: str, by_name: Named, unknown: None) -> None:
    """dns-fail: a new connection fails with the resolver's error, the call with ConnectFailed."""
    client = by_name(kind)
    RESOLVER.forget()
    with faults.inject("memcache", faults.DnsFail()):
        assert isinstance(bare(client).outcome, socket.gaierror)
        error = failed(lambda: client.get("key"))
    assert isinstance(error, ConnectFailed)
    assert error.sent is False
    assert recovered(lambda: client.get("key")) == VALUE


@pytest.mark.wall
@NAMED
def test_resolver_hangs(kind: str, by_name: Named, unknown: None) -> None:
    """dns-hang: a new connection waits to its ceiling, the call to its limit."""
    client = by_name(kind)
    RESOLVER.forget()
    with faults.inject("memcache", faults.DnsHang()):
        raw = bare(client)
        assert isinstance(raw.outcome, TimeoutError)
        assert raw.elapsed >= LIMIT - EARLY
        error = failed(lambda: client.get("key"))
    assert isinstance(error, DeadlineExceeded)
    assert error.sent is False
    assert recovered(lambda: client.get("key")) == VALUE


@pytest.mark.parametrize("fault", [faults.DnsFail(), faults.DnsHang()], ids=["fail", "hang"])
def test_faults_of_names_spare_open_connections_and_numbers(
    fault: faults.Fault, make: Make
) -> None:
    """A name that doesn't resolve harms no open connection, and no address that is a number."""
    client = make("tcp")
    with faults.inject("memcache", fault):
        assert client.get("key") == VALUE
        client.close()
        assert client.get("key") == VALUE


@pytest.mark.wall
def test_known_name_serves_while_the_resolver_hangs(by_name: Named, unknown: None) -> None:
    """The last good addresses connect a call while the resolver doesn't answer."""
    client = by_name("tcp")
    time.sleep(1.1)  # an answer is used again for one second without asking
    with faults.inject("memcache", faults.DnsHang()):
        assert timed(lambda: client.get("key")).value == VALUE


def test_other_clients_resolve(by_name: Named, make: Make, unknown: None) -> None:
    """One client's faulty resolver isn't another's, though they ask for the same name."""
    hit = by_name("tcp")
    RESOLVER.forget()
    other = memcache.Client(hit.server, name="other", timeout=LIMIT)
    with faults.inject(f"memcache@localhost:{hit.server[1] + 1}", faults.DnsHang()):
        assert hit.get("key") == VALUE
    hit.close()
    RESOLVER.forget()
    with faults.inject("other", faults.DnsHang()):
        thread = threading.Thread(target=failed, args=(lambda: other.get("key"),))
        thread.start()
        time.sleep(0.05)
        assert timed(lambda: hit.get("key")).value == VALUE
        thread.join()
    other.close()


# -- off, and the end ------------------------------------------------------------------------


def functions(wire: Wire) -> tuple[Any, ...]:
    """What stands in the wire's slots, without the objects that it is bound to."""
    own = (wire.send, wire.recv, wire.tapped)
    return tuple(getattr(one, "func", getattr(one, "__func__", one)) for one in own)


def test_off_costs_nothing_on_the_way_of_a_call(make: Make) -> None:
    """While no fault was asked for a plain connection receives and sends by the C functions."""
    client = make("tcp")
    (wire,) = client._idle
    for function in (wire.recv, wire.send):
        assert isinstance(function, functools.partial)
        assert type(function.func) is types.MethodDescriptorType
        assert function.args == (wire.sock,)


@every_kind
def test_connection_is_as_before_when_the_fault_is_over(kind: str, make: Make) -> None:
    """A connection that the fault didn't harm is used again, by its own functions."""
    client = make(kind)
    (wire,) = client._idle
    before = functions(wire)
    with faults.inject("memcache", faults.Latency(0.01)):
        assert functions(wire) != before
        assert client.get("key") == VALUE
    assert functions(wire) == before
    assert client.get("key") == VALUE
    assert list(client._idle) == [wire]


def test_fault_that_ended_by_itself_leaves_the_connection(make: Make) -> None:
    """After its duration a fault costs nothing either, though its block goes on."""
    client = make("tcp")
    (wire,) = client._idle
    before = functions(wire)
    with faults.inject("memcache", faults.Latency(0.01, duration=0.05)):
        time.sleep(0.06)
        assert client.get("key") == VALUE
        assert functions(wire) == before


@pytest.mark.wall
@pytest.mark.parametrize("fault", [faults.Hang(), faults.Hang("up"), faults.Silent()], ids=str)
@every_kind
def test_call_that_waits_when_the_fault_ends_has_its_answer(
    fault: faults.Fault, kind: str, make: Make
) -> None:
    """What was held back goes on in order at the fault's end, for a call that still waits."""
    client = make(kind, timeout=5.0)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(client.get("key")))
    began = time.monotonic()
    with faults.inject("memcache", fault):
        thread.start()
        time.sleep(0.1)
        assert not got
    thread.join()
    assert got == [VALUE]
    assert time.monotonic() - began <= 0.1 + TOLERANCE


def test_duration_ends_the_wait_of_a_call(make: Make) -> None:
    """A fault's own end wakes a call as the block's end does."""
    client = make("tcp", timeout=5.0)
    with faults.inject("memcache", faults.Hang(duration=0.1)):
        assert timed(lambda: client.get("key"), limit=0.1).value == VALUE


@pytest.mark.wall
@every_kind
def test_recv_keeps_its_time_when_the_fault_ends_in_it(kind: str, make: Make) -> None:
    """What a recv spent in the fault is taken off what it may wait for the server."""
    client = make(kind)
    wire = client._open()
    with faults.inject("memcache", faults.Hang(duration=0.3)):
        wire.arm(ARMED)
        began = time.monotonic()
        with pytest.raises(EXPIRED):  # nothing was asked, so nothing comes
            wire.recv(CHUNK)
    assert ARMED - EARLY <= time.monotonic() - began <= ARMED + TOLERANCE
    wire.close()


def test_held_writes_are_delivered_at_the_end(make: Make) -> None:
    """Writes without a reply that were held back reach the server in order."""
    client, reader = make("tcp", name="writer"), make("tcp")
    (wire,) = client._idle
    with faults.inject("writer", faults.Hang("up")):
        client.set("key", "first", noreply=True)
        client.set("key", "second", noreply=True)
        assert reader.get("key") == VALUE
    end = time.monotonic() + TOLERANCE
    while reader.get("key") != b"second":
        assert time.monotonic() < end, "not delivered at the fault's end"
    assert client.get("key") == b"second"
    assert list(client._idle) == [wire]


def test_lossy_connection_is_dropped_after_a_blackhole(make: Make) -> None:
    """A connection that lost bytes is reset when the blackhole ends; a silent one goes on."""
    client = make("tcp")
    (wire,) = client._idle
    with faults.inject("memcache", faults.Blackhole()):
        client.set("key", "lost", noreply=True)
    assert client.get("key") == VALUE
    assert wire not in client._idle
    (fresh,) = client._idle
    with faults.inject("memcache", faults.Blackhole()):
        pass
    assert client.get("key") == VALUE
    assert list(client._idle) == [fresh]


@pytest.mark.parametrize("fault", [faults.Hang(), faults.Blackhole()], ids=str)
@every_kind
def test_sender_is_stopped_when_nobody_reads(fault: faults.Fault, kind: str, make: Make) -> None:
    """A large request isn't swallowed whole: its sender waits as a kernel's would."""
    client = make(kind)
    with faults.inject("memcache", fault):
        error = failed(lambda: client.set("big", b"x" * 4_000_000))
    assert isinstance(error, DeadlineExceeded)
    assert error.sent
    assert recovered(lambda: client.get("key")) == VALUE


@pytest.mark.parametrize("fault", [faults.Hang(), faults.Blackhole()], ids=str)
def test_connection_takes_bytes_until_it_is_full(fault: faults.Fault, make: Make) -> None:
    """Bytes that go nowhere are taken up to what a kernel buffers, then send times out."""
    client = make("tcp")
    wire = client._open()
    taken = 0
    with faults.inject("memcache", fault):
        wire.arm(0.05)
        with pytest.raises(BlockingIOError):
            while taken < 2 * HIGH_WATER:
                taken += wire.send(b"x" * 300_000)
        wire.close()
    assert taken == HIGH_WATER


@pytest.mark.wall
def test_late_bytes_stay_for_the_next_recv(make: Make) -> None:
    """A recv that ends before the delay is over times out; the next one has the bytes."""
    client = make("tcp")
    wire = client._open()
    with faults.inject("memcache", faults.Latency(0.2)):
        wire.arm(0.1)
        wire.send(REQUEST)
        with pytest.raises(BlockingIOError):
            wire.recv(CHUNK)
        with pytest.raises(EXPIRED):
            wire.recv_now()
        wire.arm(1.0)
        assert wire.recv(CHUNK) == REPLY
    wire.close()


def test_drip_gives_every_byte_in_order(make: Make) -> None:
    """What drips is the reply, `size` bytes at a time, the first at once."""
    client = make("tcp")
    wire = client._open()
    drops: list[bytes] = []
    began = time.monotonic()
    with faults.inject("memcache", faults.Drip(size=9, every=0.02)):
        wire.arm(1.0)
        wire.send(REQUEST)
        while sum(map(len, drops)) < len(REPLY):
            drops.append(wire.recv(CHUNK))
    assert b"".join(drops) == REPLY
    assert [len(drop) for drop in drops[:-1]] == [9] * (len(drops) - 1)
    assert time.monotonic() - began >= 0.02 * (len(drops) - 1)
    wire.close()


def test_bandwidth_gives_every_byte_in_order_at_its_rate(make: Make) -> None:
    """A reply at 360 bytes a second is whole, and took as long as its bytes do."""
    wire = make("tcp")._open()
    with contextlib.closing(wire), faults.inject("memcache", faults.Bandwidth(360.0)):
        wire.arm(5.0)
        wire.send(REQUEST)
        got, began = b"", time.monotonic()
        while len(got) < len(REPLY):
            got += wire.recv(CHUNK)
        assert got == REPLY
        assert time.monotonic() - began >= len(REPLY) / 360.0 - EARLY


@pytest.mark.wall
def test_flap_lets_calls_through_while_it_is_up(make: Make) -> None:
    """Refused, then answered, then refused again, on the connection of the time in between too."""
    client = make("tcp")
    with faults.inject("memcache", faults.Flap(down=0.3, up=0.6)):
        assert isinstance(failed(lambda: client.get("key")), (ConnectFailed, ConnectionLost))
        assert recovered(lambda: client.get("key")) == VALUE
        wire = client._open()
        wire.arm(5.0)
        with contextlib.closing(wire), pytest.raises(ConnectionResetError):
            wire.recv(CHUNK)  # nothing was asked: it waits until the store goes down
        with pytest.raises(Unavailable):
            client.get("key")
    assert recovered(lambda: client.get("key")) == VALUE


def test_cut_connection_ends_in_order(make: Make) -> None:
    """After `after` bytes of reply the peer has closed: end of stream, not a reset."""
    client = make("tcp")
    wire = client._open()
    with faults.inject("memcache", faults.Cut(after=5)):
        wire.arm(1.0)
        wire.send(REQUEST)
        assert wire.recv(CHUNK) == REPLY[:5]
        assert wire.recv(CHUNK) == b""
    assert wire.is_dead()
    wire.close()


# -- whom it reaches, and by what chance -------------------------------------------------------


def test_target_narrows_to_a_client_or_an_endpoint(
    make: Make, servers: dict[str, dict[str, Any]]
) -> None:
    """A client's own name, or an endpoint, spares everybody else."""
    plain, named, unix = make("tcp"), make("tcp", name="sessions"), make("unix")
    with faults.inject("sessions", faults.Refuse()):
        assert plain.get("key") == VALUE
        assert isinstance(failed(lambda: named.get("key")), (ConnectFailed, ConnectionLost))
    with faults.inject(f"memcache@{servers['unix']['server']}", faults.Refuse()):
        assert plain.get("key") == VALUE
        assert isinstance(failed(lambda: unix.get("key")), (ConnectFailed, ConnectionLost))
    with faults.inject("memcache", faults.Refuse()):
        for client in (plain, named, unix):
            failed(lambda: client.get("key"))  # noqa: B023


def pattern(client: memcache.Client, fault: faults.Fault) -> list[Any]:
    """How 40 requests on fresh connections end."""
    found: list[Any] = []
    with faults.inject("memcache", fault):
        for _ in range(40):
            outcome = bare(client).outcome
            found.append(outcome if isinstance(outcome, bytes) else type(outcome))
    return found


@pytest.mark.parametrize(
    "kind_of_fault", [faults.ErrorRate, faults.Corrupt], ids=["error-rate", "corrupt"]
)
def test_same_seed_same_faults(kind_of_fault: Any, make: Make) -> None:
    """Chance is the fault's own: the same seed strikes the same requests, another one others."""
    client = make("tcp")
    first = pattern(client, kind_of_fault(0.5, seed=7))
    assert pattern(client, kind_of_fault(0.5, seed=7)) == first
    assert pattern(client, kind_of_fault(0.5, seed=8)) != first
    assert 0 < sum(one == REPLY for one in first) < len(first)


def test_only_the_first_requests_fail(make: Make) -> None:
    """Two requests meet a reset, on whatever connection; those after them are answered."""
    client = make("tcp")
    with faults.inject("memcache", faults.FailFirst(2)):
        found = [bare(client).outcome for _ in range(4)]
    assert [type(one) for one in found[:2]] == [ConnectionResetError] * 2
    assert found[2:] == [REPLY] * 2


def test_payload_is_flipped_under_tls_only(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A flipped payload breaks a TLS record; a plain connection, where no client could see it, is
    spared with a warning."""
    fault = faults.Corrupt(payload=True)
    plain, tls = make("tcp"), make("tls")
    with faults.inject("memcache", fault):
        assert isinstance(bare(tls).outcome, ssl.SSLError)
        assert bare(plain).outcome == REPLY
        assert plain.get("key") == VALUE
        assert isinstance(failed(lambda: tls.get("key")), ConnectionLost)
    told = [one for one in caplog.messages if "under TLS only" in one]
    assert len(told) == 1


@pytest.mark.wall
def test_calls_of_many_threads_end_in_time_under_changing_faults(make: Make) -> None:
    """Faults come and go under eight threads: no call is late, no value wrong, all recover."""
    client = make("tcp")
    over = threading.Event()
    wrong: list[Any] = []

    def work() -> None:
        while not over.is_set():
            began = time.monotonic()
            try:
                value = client.get("key")
            except Unavailable:
                value = VALUE
            if value != VALUE or time.monotonic() - began > LIMIT + TOLERANCE:
                wrong.append((value, time.monotonic() - began))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for case in CASES:
        with faults.inject("memcache", case.fault):
            time.sleep(0.05)
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert recovered(lambda: client.get("key")) == VALUE


def test_child_of_a_fork_has_the_faults(make: Make) -> None:
    """A forked process is under the faults of its parent, whatever locks were held."""
    client = make("tcp")
    with faults.inject("memcache", faults.Refuse()):
        with _INJECTOR._lock:  # as another thread may hold it
            pid = os.fork()
            if pid == 0:
                _exit_as_refused(client)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def _exit_as_refused(client: memcache.Client) -> None:
    code = 1
    try:
        client.get("key")
    except ConnectFailed:
        code = 0
    finally:
        os._exit(code)


@pytest.mark.wall
def test_environment_makes_faults_for_a_process(servers: dict[str, dict[str, Any]]) -> None:
    """TIMEDBLOCK_FAULTS hangs a process's memcached for as long as it says, with a warning."""
    host, port = servers["tcp"]["server"]
    code = (
        "import time\n"
        "from timedblock import DeadlineExceeded, memcache\n"
        f"client = memcache.Client(({host!r}, {port}), timeout={LIMIT})\n"
        "began = time.monotonic()\n"
        "try:\n"
        "    client.get('key')\n"
        "except DeadlineExceeded as error:\n"
        "    print('hung', error.sent)\n"
        "time.sleep(max(0.0, 2.1 - (time.monotonic() - began)))\n"
        "client.set('key', 'back')\n"
        "print(client.get('key').decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TIMEDBLOCK_FAULTS": f"memcache@{host}:{port}=hang@2s"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["hung", "True", "back"], done.stderr
    assert done.stderr.count("FAULTS ARE ON") == 1
