"""Every fault that an injector can make happens to a bare client, and ends when rolled back.

The pairs come from the table in `timedblock.faults.vocabulary`: one that is added there without a
case here fails. What `inprocess` makes is proven in test_faults_inprocess.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.servers import test_faults_inprocess
from tests.servers.memcached import Memcached, binary, free_port
from tests.servers.prober import KEY, REPLY, SET, VALUE, Prober, Seen
from timedblock import ConnectionLost, DeadlineExceeded, Policy, faults, memcache
from timedblock.faults import vocabulary
from timedblock.faults.injector import Link
from timedblock.faults.inprocess import InProcess
from timedblock.faults.netfilter import Netfilter, why_not
from timedblock.faults.process import Process
from timedblock.faults.proxy import Relay
from timedblock.testing.memcached import EmbeddedMemcached

pytestmark = pytest.mark.wall

# Who has no reply after so many seconds hangs: without a fault it takes milliseconds.
HANGS = 0.7
# A fault that slows a reply slows it by this at least.
SLOW = 0.5
# How soon after the roll-back the store is used again: a kernel repeats lost packets seldom.
RECOVERS = 15.0


@dataclass(frozen=True)
class Case:
    """A fault; what a new connection and an open one see; what becomes of the request at the end.

    None is not looked at. `slow`: the reply is right, but takes SLOW at least.
    """

    fault: faults.Fault
    fresh: tuple[str, ...] | None = None
    open: tuple[str, ...] | None = None
    then: tuple[str, ...] | None = None
    slow: bool = False

    def __str__(self) -> str:
        return f"{self.fault.name}-{getattr(self.fault, 'direction', '')}".rstrip("-")


REFUSED, UNCONNECTED, SILENT, RIGHT = ("refused",), ("unconnected",), ("silent",), ("right",)
RESET, CLOSED, BROKEN = ("reset",), ("closed",), ("reset", "closed")

PROXY = [
    Case(faults.Refuse(), REFUSED, RESET),
    # The kernel of the proxy's own machine shakes hands, or doesn't, as its queue is full.
    Case(faults.Blackhole(), ("unconnected", "silent"), SILENT, then=BROKEN),
    Case(faults.Hang(), SILENT, SILENT, then=RIGHT),
    Case(faults.Hang("up"), SILENT, SILENT, then=RIGHT),
    Case(faults.Hang("down"), SILENT, SILENT, then=RIGHT),
    Case(faults.Silent(), SILENT, SILENT),
    Case(faults.Latency(SLOW), RIGHT, RIGHT, slow=True),
    Case(faults.Drip(size=10, every=0.04), RIGHT, RIGHT, slow=True),
    Case(faults.Bandwidth(len(REPLY) / (2 * SLOW)), RIGHT, RIGHT, slow=True),
    Case(faults.Reset(), RESET, RESET),
    Case(faults.Reset(after=10), RESET, RESET),
    Case(faults.Cut(), CLOSED, CLOSED),
    Case(faults.Corrupt(), ("wrong",), ("wrong",)),
    Case(faults.Flap(down=60.0), REFUSED, RESET),
    Case(faults.FailFirst(2), RESET, RESET),
    Case(faults.ErrorRate(1.0), RESET, RESET),
]
NETFILTER = [
    Case(faults.Refuse(), REFUSED, RESET),
    # An ICMP error doesn't end an open connection.
    Case(faults.Refuse(icmp=True), REFUSED, SILENT, then=RIGHT),
    Case(faults.Blackhole(), UNCONNECTED, SILENT, then=RIGHT),
    Case(faults.Hang(), SILENT, SILENT, then=RIGHT),
    Case(faults.Hang("up"), SILENT, SILENT, then=RIGHT),
    Case(faults.Hang("down"), SILENT, SILENT, then=RIGHT),
    Case(faults.Reset(), RESET, RESET),
    Case(faults.Partition(), UNCONNECTED, SILENT, then=RIGHT),
    Case(faults.Flap(down=60.0), REFUSED, RESET),
    Case(faults.DnsFail(), ("unknown",), RIGHT),
    Case(faults.DnsHang(), ("unknown",), slow=True),
]
PROCESS = [
    Case(faults.Pause(), SILENT, SILENT, then=RIGHT),
    Case(faults.Kill(), REFUSED, BROKEN),
]


def _every(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=str)


@pytest.mark.parametrize("injector", vocabulary.INJECTORS)
def test_every_pair_of_the_table_is_proven(injector: str) -> None:
    """A fault that is added to an injector gets a case, or this fails."""
    made = {
        "inprocess": [case.fault.name for case in test_faults_inprocess.CASES],
        "proxy": [case.fault.name for case in PROXY],
        "netfilter": [case.fault.name for case in NETFILTER],
        "process": [case.fault.name for case in PROCESS],
    }[injector]
    if injector == "inprocess":  # names have tests of their own there
        made += ["dns-fail", "dns-hang"]
    assert set(made) == set(vocabulary.faults_of(injector))


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[str, int]]:
    """An embedded server that holds the prober's key."""
    with EmbeddedMemcached() as server:
        assert isinstance(server.address, tuple)
        _store(server.address)
        yield server.address


def _store(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(SET)
        assert connection.recv(100) == b"STORED\r\n"


@pytest.fixture(scope="module")
def relay(store: tuple[str, int]) -> Iterator[Relay]:
    """The proxy."""
    with Relay(store) as made:
        yield made


@pytest.fixture(scope="module")
def netfilter(store: tuple[str, int]) -> Iterator[Netfilter]:
    """A network of our own."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"no netfilter: {reason}")
    with Netfilter(store) as made:
        yield made


@pytest.fixture
def server() -> Iterator[tuple[Memcached, Process]]:
    """A real memcached of the test's own, and the injector of its process."""
    if binary() is None:
        pytest.skip("no memcached here that may be paused and killed: install it")
    with Memcached(("127.0.0.1", free_port())) as own:
        _store(own.address)
        with Process(own.pid, address=own.address, restart=own.command) as injector:
            yield own, injector
            started = injector.listen().pid
        if started != own.pid:  # the reaper's child, not ours
            os.kill(started, signal.SIGKILL)


def _meets(case: Case, seen: Seen, wanted: tuple[str, ...]) -> None:
    assert seen.what in wanted, seen
    if case.slow:
        assert seen.elapsed >= SLOW * 0.9, seen
    if seen.what in ("silent", "unconnected"):
        assert seen.elapsed >= HANGS * 0.9, seen


def _recovers(prober: Prober, name: str | None = None) -> None:
    """A new connection is served again; it stays for the next question."""
    end = time.monotonic() + RECOVERS
    while (seen := prober.fresh(1.0, name)).what != "right":
        assert time.monotonic() < end, f"still {seen} after the roll-back"


def _happens(link: Link, case: Case, *, name: str | None = None) -> None:
    """The fault meets new connections and open ones, and each time it is over when cleared."""
    within = 5.0 if case.slow else HANGS
    with Prober(link.address, link.prefix) as prober:
        for wanted, ask in (
            (case.fresh, lambda: prober.fresh(within, name)),
            (case.open, lambda: prober.open(within)),
        ):
            if wanted is None:
                continue
            _recovers(prober, name)
            link.inject(case.fault)
            seen = ask()
            _meets(case, seen, wanted)
            link.clear()
            if case.then is not None and seen.what == "silent":
                assert prober.rest(RECOVERS).what in case.then
        _recovers(prober, name)


@_every(PROXY)
def test_proxy(relay: Relay, case: Case) -> None:
    """What the table says of the proxy is so."""
    link = relay.listen()
    _happens(link, case)
    link.close()


@pytest.mark.server
@_every(NETFILTER)
def test_netfilter(netfilter: Netfilter, case: Case) -> None:
    """What the table says of netfilter is so."""
    link = netfilter.listen()
    _happens(link, case, name=link.name if case.fault.name.startswith("dns") else None)


@pytest.mark.server
@_every(PROCESS)
def test_process(server: tuple[Memcached, Process], case: Case) -> None:
    """What the table says of signals is so, on the real memcached."""
    own, injector = server
    link = injector.listen()
    with Prober(own.address) as prober:
        for wanted, ask in ((case.fresh, prober.fresh), (case.open, prober.open)):
            assert wanted is not None
            _recovers(prober)
            link.inject(case.fault)
            _meets(case, ask(HANGS), wanted)
            link.clear()
            if case.then is not None:
                assert prober.rest(RECOVERS).what in case.then
            else:
                _store(own.address)  # its data is gone
        _recovers(prober)


def test_inprocess(store: tuple[str, int]) -> None:
    """It has the form of the others, for clients of ours in this process."""
    client = memcache.Client(store, timeout=0.3, policy=Policy(breaker=None))
    with contextlib.closing(client), InProcess(store) as injector:
        link = injector.listen()
        assert (link.address, link.prefix) == (store, ())
        assert client.get(KEY) == VALUE
        link.inject(faults.Hang())
        with pytest.raises(DeadlineExceeded):
            client.get(KEY)
        link.inject(faults.Reset())
        with pytest.raises(ConnectionLost):
            client.get(KEY)
        link.clear()
        link.clear()
        assert client.get(KEY) == VALUE
        link.inject(faults.Refuse())
    assert client.get(KEY) == VALUE
    client.close()


@pytest.mark.parametrize("which", ["proxy", "netfilter", "process"])
@pytest.mark.server
def test_fault_ends_by_itself(which: str, request: pytest.FixtureRequest) -> None:
    """After its duration a fault is over, without anybody clearing it."""
    fault: faults.Fault = faults.Hang(duration=1.0)
    if which == "process":
        link: Link = request.getfixturevalue("server")[1].listen()
        fault = faults.Pause(duration=1.0)
    else:
        link = request.getfixturevalue("relay" if which == "proxy" else which).listen()
    with Prober(link.address, link.prefix) as prober:
        _recovers(prober)
        link.inject(fault)
        assert prober.open(HANGS).what == "silent"
        assert prober.rest(RECOVERS).what == "right"
    link.clear()


@pytest.mark.server
def test_flap_comes_and_goes(netfilter: Netfilter) -> None:
    """Refused, served, refused again; and served for good after its duration."""
    link = netfilter.listen()
    with Prober(link.address, link.prefix) as prober:
        _recovers(prober)
        link.inject(faults.Flap(down=0.4, up=0.6, duration=3.0))
        seen = []
        end = time.monotonic() + 3.0
        while time.monotonic() < end:
            seen.append(prober.fresh(HANGS).what)
            time.sleep(0.02)
        changes = [what for what, _ in itertools.groupby(seen)]
        assert changes[:3] == ["refused", "right", "refused"]
        _recovers(prober)


def test_each_has_the_name_of_the_table() -> None:
    """A drill finds what an injector can make by its name."""
    every = (InProcess, Relay, Netfilter, Process)
    assert [one.name for one in every] == list(vocabulary.INJECTORS)
