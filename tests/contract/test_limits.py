"""Every operation of every store under every fault: an answer or an honest error, in time.

For each fault the cells (operation × cold or warm) run side by side, each with a client and a link
of its own, so that their limits pass at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.contract import cell
from tests.contract.cell import Cell
from tests.contract.faults import TROUBLES, Trouble
from tests.contract.store import Address, Store
from tests.contract.stores.memcache import Memcache
from tests.contract.stores.memcache_hash import MemcacheHash
from tests.contract.stores.memcache_pooled import MemcachePooled
from tests.contract.stores.memcache_tls import MemcacheTls
from tests.contract.stores.rabbitmq import Rabbitmq
from timedblock.faults.proxy import Relay

pytestmark = pytest.mark.wall

STORES: list[tuple[Store, tuple[str, ...]]] = [
    (Memcache(), ("embedded", "real")),
    (MemcachePooled(), ("real",)),
    (MemcacheHash(), ("real",)),
    (MemcacheTls(), ("real",)),
    (Rabbitmq(), ("real",)),
]


@dataclass(frozen=True)
class Bench:
    """A store's server with the relay in front of it."""

    store: Store
    server: Address
    relay: Relay


def _benches() -> Iterator[object]:
    for store, kinds in STORES:
        for kind in kinds:
            marks = [pytest.mark.server] if kind == "real" else []
            yield pytest.param((store, kind), id=f"{store.name}-{kind}", marks=marks)


@pytest.fixture(scope="module", params=_benches())
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    store, kind = request.param
    with ExitStack() as stack:
        server = stack.enter_context(getattr(store, kind)())
        relay = stack.enter_context(Relay(upstream=server))
        yield Bench(store, server, relay)


def _run_all(bench: Bench, cells: list[Cell]) -> list[str]:
    with ThreadPoolExecutor(bench.store.together) as threads:
        links = [bench.relay.listen() for _ in cells]
        found = list(threads.map(cell.run, cells, links))
    return [problem for problems in found for problem in problems]


def _cells(bench: Bench, trouble: Trouble | None) -> list[Cell]:
    return [
        Cell(bench.store, bench.server, operation, warm, trouble)
        for operation in bench.store.operations
        for warm in (False, True)
    ]


def test_without_a_fault_every_operation_is_answered(bench: Bench, no_leaks: None) -> None:
    """The cells themselves are right: each operation has its right answer through the relay."""
    problems = _run_all(bench, _cells(bench, None))
    assert not problems, "\n".join(problems)


def test_the_bare_driver_suffers_from_every_fault(bench: Bench) -> None:
    """The faults bite: without limits the raw client hangs, fails or is late under each."""

    def missing(trouble: Trouble) -> str | None:
        link = bench.relay.listen()
        found = bench.store.raw_feels(
            link.address, trouble.fault, lambda: link.inject(trouble.fault)
        )
        return found and f"{trouble.name}: {found}"

    # Each is a process that has to start: not too many at a time.
    with ThreadPoolExecutor(4) as threads:
        problems = [problem for problem in threads.map(missing, TROUBLES) if problem]
    assert not problems, problems


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_every_operation_keeps_its_limit(bench: Bench, trouble: Trouble, no_leaks: None) -> None:
    """Within its limit each call has its answer or an honest error, no answer is wrong, and the
    next call after the fault is right."""
    problems = _run_all(bench, _cells(bench, trouble))
    assert not problems, f"{len(problems)} problems\n" + "\n".join(problems)
