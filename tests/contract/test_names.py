"""Every operation while its server's name doesn't resolve: the contract, with a fault of our own.

The relay can't make these faults. `timedblock.faults` makes them where our clients ask for an
address, each cell's at its own port; for the bare driver its process has a resolver that is at
fault, whoever asks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.contract import cell
from tests.contract.cell import Cell
from tests.contract.faults import NAME_TROUBLES, Trouble
from tests.contract.store import Address
from tests.contract.stores.memcache import Memcache
from tests.contract.stores.memcache_hash import MemcacheHash
from tests.servers.limits import LIMIT, TOLERANCE
from tests.servers.raw_call import RawCall
from timedblock.faults.injector import Link
from timedblock.faults.inprocess import InProcess
from timedblock.faults.proxy import Relay

pytestmark = pytest.mark.wall

NAME = "localhost"
TOGETHER = 12
every_fault = pytest.mark.parametrize("trouble", NAME_TROUBLES, ids=lambda trouble: trouble.name)


@pytest.fixture(scope="module")
def server() -> Iterator[Address]:
    with Memcache().embedded() as address:
        yield address


@pytest.mark.parametrize("trouble", [None, *NAME_TROUBLES], ids=lambda one: one and one.name)
@pytest.mark.parametrize("store", [Memcache(), MemcacheHash()], ids=lambda store: store.name)
def test_every_operation_keeps_its_limit_without_names(
    server: Address, store: Memcache, trouble: Trouble | None, no_leaks: None
) -> None:
    """Without its name a new connection is an honest error in time, an open one works on, and the
    next call after the fault is right."""
    cells = [
        Cell(store, server, operation, warm, trouble)
        for operation in store.operations
        for warm in (False, True)
    ]
    with Relay(upstream=server) as relay, ExitStack() as stack:
        # a port of its own for each, so that no cell meets another one's breaker
        ports = [relay.listen().address[1] for _ in cells]
        links: list[Link] = [
            stack.enter_context(InProcess((NAME, port))).listen() for port in ports
        ]
        with ThreadPoolExecutor(TOGETHER) as threads:
            found = list(threads.map(cell.run, cells, links))
    problems = [problem for problems in found for problem in problems]
    assert not problems, f"{len(problems)} problems\n" + "\n".join(problems)


@every_fault
def test_the_bare_driver_suffers_without_names(server: Address, trouble: Trouble) -> None:
    """It fails where there is no name, and hangs past every limit where the resolver does."""
    with RawCall((NAME, server[1]), warm=False, resolver=trouble.name) as raw:
        raw.begin()
        outcome = raw.outcome(LIMIT + TOLERANCE + 0.5)
    if trouble.name == "dns-hang":
        assert outcome is None, f"it doesn't hang: {outcome}"
    else:
        assert outcome is not None and outcome.error == "gaierror", outcome
