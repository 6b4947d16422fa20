"""Every operation while its server's name doesn't resolve: the contract, with a fault of our own.

The relay can't make these faults. `timedblock.faults` makes them where our clients ask for an
address, each cell's at its own port, and for a client that asks by itself the process's resolver
does. For the bare driver its process has a resolver that is at fault, whoever asks it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest

from tests.contract import cell
from tests.contract.cell import Cell
from tests.contract.faults import NAME_TROUBLES, Trouble
from tests.contract.store import Address, Store
from tests.contract.stores.memcache import Memcache
from tests.contract.stores.memcache_hash import MemcacheHash
from tests.contract.stores.rabbitmq import Rabbitmq
from tests.servers.limits import LIMIT, TOLERANCE
from tests.servers.raw_call import RawCall
from timedblock.faults import Fault
from timedblock.faults.inprocess import InProcess
from timedblock.faults.proxy import Relay

pytestmark = pytest.mark.wall

NAME = "localhost"
every_fault = pytest.mark.parametrize("trouble", NAME_TROUBLES, ids=lambda trouble: trouble.name)


class ResolversLink:
    """One port of NAME: the process's resolver is at fault for whoever asks for it."""

    _resolve: Callable[..., Any] = staticmethod(socket.getaddrinfo)

    def __init__(self, port: int) -> None:
        self.address = NAME, port
        self._fault: str | None = None
        self._over = threading.Event()

    @contextmanager
    def installed(self) -> Iterator[ResolversLink]:
        before = socket.getaddrinfo

        def getaddrinfo(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
            if (host, port) == self.address and self._fault is not None:
                if self._fault == "dns-hang":
                    self._over.wait()
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            return before(host, port, *rest, **options)

        socket.getaddrinfo = getaddrinfo
        try:
            yield self
        finally:
            socket.getaddrinfo = before
            self._over.set()

    def inject(self, fault: Fault) -> None:
        self._fault = fault.name

    def clear(self) -> None:
        self._fault = None
        self._over.set()


@contextmanager
def _in_process(port: int) -> Iterator[Any]:
    """The link of one port of NAME, made by the library's own injector."""
    with InProcess((NAME, port)) as injector:
        yield injector.listen()


def _by_resolver(port: int) -> AbstractContextManager[Any]:
    return ResolversLink(port).installed()


Making = Callable[[int], AbstractContextManager[Any]]
STORES: list[tuple[Store, str, Making]] = [
    (Memcache(), "embedded", _in_process),
    (MemcacheHash(), "embedded", _in_process),
    (Rabbitmq(), "real", _by_resolver),
]


def _params() -> Iterator[object]:
    for store, kind, making in STORES:
        marks = [pytest.mark.server] if kind == "real" else []
        yield pytest.param((store, kind, making), id=store.name, marks=marks)


@pytest.fixture(scope="module", params=_params())
def bench(request: pytest.FixtureRequest) -> Iterator[tuple[Store, Address, Making]]:
    store, kind, making = request.param
    with getattr(store, kind)() as address:
        yield store, address, making


@pytest.mark.parametrize("trouble", [None, *NAME_TROUBLES], ids=lambda one: one and one.name)
def test_every_operation_keeps_its_limit_without_names(
    bench: tuple[Store, Address, Making], trouble: Trouble | None, no_leaks: None
) -> None:
    """Without its name a new connection is an honest error in time, an open one works on, and the
    next call after the fault is right."""
    store, server, making = bench
    cells = [
        Cell(store, server, operation, warm, trouble)
        for operation in store.operations
        for warm in (False, True)
    ]
    with Relay(upstream=server) as relay, ExitStack() as stack:
        # a port of its own for each, so that no cell meets another one's breaker
        links = [stack.enter_context(making(relay.listen().address[1])) for _ in cells]
        with ThreadPoolExecutor(store.together) as threads:
            found = list(threads.map(cell.run, cells, links))
    problems = [problem for problems in found for problem in problems]
    assert not problems, f"{len(problems)} problems\n" + "\n".join(problems)


@every_fault
def test_the_bare_driver_suffers_without_names(
    bench: tuple[Store, Address, Making], trouble: Trouble
) -> None:
    """It fails where there is no name, and hangs past every limit where the resolver does."""
    store, server, _ = bench
    driver = "pika" if isinstance(store, Rabbitmq) else "pymemcache"
    with RawCall((NAME, server[1]), warm=False, resolver=trouble.name, driver=driver) as raw:
        raw.begin()
        outcome = raw.outcome(LIMIT + TOLERANCE + 0.5)
    if trouble.name == "dns-hang":
        assert outcome is None, f"it doesn't hang: {outcome}"
    else:
        assert outcome is not None and outcome.error in ("gaierror", "AMQPConnectionError"), outcome
