"""Names to addresses, never longer than the caller has."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from timedblock import clock as clocks
from timedblock.net import resolve as module
from timedblock.net.resolve import Address, Resolver
from timedblock.net.workers import Full

pytestmark = pytest.mark.wall
SLACK = 0.25
HERE: list[Address] = [(socket.AF_INET, ("127.0.0.9", 1))]


class _Dns:
    """A resolver of the system's, as bad as the test wants."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, *_: Any) -> list[Any]:
        self.asked.append(host)
        self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return [(socket.AF_INET, 1, 6, "", ("127.0.0.9", port))] * 2


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Dns]:
    """getaddrinfo is ours."""
    dns = _Dns()
    monkeypatch.setattr(socket, "getaddrinfo", dns)
    yield dns
    dns.gate.set()


def _resolve(resolver: Resolver, name: str = "store", seconds: float = 1.0) -> list[Address]:
    return resolver.resolve(name, 1, clocks.SYSTEM, seconds)


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        threading.Event().wait(0.001)


def _age(resolver: Resolver, seconds: float, name: str = "store") -> None:
    known = resolver._known[name, 1]
    resolver._known[name, 1] = known._replace(at=known.at - seconds)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", (socket.AF_INET, ("127.0.0.1", 1))),
        ("::1", (socket.AF_INET6, ("::1", 1, 0, 0))),
    ],
)
def test_an_address_isnt_asked_for(dns: _Dns, host: str, address: Address) -> None:
    """Numbers need no resolver."""
    assert _resolve(Resolver(), host) == [address]
    assert dns.asked == []


def test_an_answer_serves_for_a_moment(dns: _Dns) -> None:
    """Asked once a second and name; an address that comes twice is one."""
    resolver = Resolver()
    assert [_resolve(resolver) for _ in range(3)] == [HERE] * 3
    assert dns.asked == ["store"]
    _age(resolver, module.FRESH)
    assert _resolve(resolver) == HERE
    assert dns.asked == ["store", "store"]


def test_an_unknown_name_is_the_resolvers_error(dns: _Dns) -> None:
    """gaierror, as it is."""
    dns.error = socket.gaierror(socket.EAI_NONAME, "unknown")
    with pytest.raises(socket.gaierror, match="unknown"):
        _resolve(Resolver())


def test_a_name_without_addresses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty answer is no answer."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    with pytest.raises(socket.gaierror, match="no address"):
        _resolve(Resolver())


def test_a_resolver_that_hangs_ends_in_time(dns: _Dns) -> None:
    """TimeoutError at the caller's limit; one resolution in flight, however many ask."""
    dns.gate.clear()
    resolver = Resolver()
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            _resolve(resolver, seconds=0.03)
    assert time.monotonic() - began <= 0.09 + SLACK
    assert dns.asked == ["store"]
    dns.gate.set()
    _until(lambda: ("store", 1) in resolver._known)
    assert _resolve(resolver) == HERE


@pytest.mark.parametrize("trouble", ["hang", "fail", "full"])
def test_the_last_good_addresses_serve_in_trouble(dns: _Dns, trouble: str) -> None:
    """The resolver hangs, fails or is full: what was known a while ago is used, soon."""
    resolver = Resolver(size=1)
    _resolve(resolver)
    _age(resolver, 60)
    if trouble == "hang":
        dns.gate.clear()
    elif trouble == "fail":
        dns.error = socket.gaierror(socket.EAI_AGAIN, "try again")
    else:
        dns.gate.clear()
        with pytest.raises(TimeoutError):
            _resolve(resolver, "other", seconds=0.01)
    began = time.monotonic()
    assert _resolve(resolver, seconds=0.2) == HERE
    assert time.monotonic() - began <= 0.05 + SLACK


def test_what_is_too_old_doesnt_serve(dns: _Dns) -> None:
    """Five minutes are enough."""
    resolver = Resolver()
    _resolve(resolver)
    _age(resolver, module.STALE)
    dns.error = socket.gaierror(socket.EAI_AGAIN, "try again")
    with pytest.raises(socket.gaierror):
        _resolve(resolver)


def test_full_workers_are_told(dns: _Dns) -> None:
    """All hang in the resolver, and the name is new: Full, at once."""
    dns.gate.clear()
    resolver = Resolver(size=1)
    with pytest.raises(TimeoutError):
        _resolve(resolver, "one", seconds=0.01)
    with pytest.raises(Full):
        _resolve(resolver, "two")


def test_names_are_bounded(dns: _Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten, and all on request."""
    monkeypatch.setattr(module, "_MOST_NAMES", 3)
    resolver = Resolver()
    for number in range(10):
        _resolve(resolver, f"n{number}")
    assert len(resolver._known) == 3
    resolver.forget()
    assert resolver._known == {}


def test_a_forked_child_asks_anew_and_knows_what_was_known(dns: _Dns) -> None:
    """Resolutions in flight stay in the parent."""
    resolver = Resolver()
    _resolve(resolver)
    dns.gate.clear()
    with pytest.raises(TimeoutError):
        _resolve(resolver, "hanging", seconds=0.01)
    resolver._lock.acquire()
    resolver.after_fork()
    resolver._workers.after_fork()
    dns.gate.set()
    assert _resolve(resolver) == HERE
    assert _resolve(resolver, "hanging") == HERE
