"""The contract suite notices what it is there for: it fails with a client that breaks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pymemcache
import pytest

from tests.contract import cell
from tests.contract.cell import Cell
from tests.contract.faults import TROUBLES
from tests.contract.store import Address
from tests.contract.stores.memcache import OPERATIONS, Memcache
from timedblock import DeadlineExceeded
from timedblock.faults.proxy import Relay

pytestmark = pytest.mark.wall

_TROUBLES = {trouble.name: trouble for trouble in TROUBLES}
_OPERATIONS = {operation.name: operation for operation in OPERATIONS}


class BareClient:
    """pymemcache with its own timeouts; all that it raises is called a deadline, not sent."""

    def __init__(self, address: Address, limit: float) -> None:
        # Longer than the drip's pause, so that each byte is waited for anew.
        self._raw = pymemcache.Client(address, connect_timeout=limit, timeout=limit + 0.1)

    def close(self) -> None:
        self._raw.close()

    def _honestly(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._raw, name)(*arguments)
        except (OSError, pymemcache.MemcacheError) as error:
            raise DeadlineExceeded(sent=False) from error

    def get(self, key: str, default: Any = None) -> Any:
        return self._honestly("get", key, default)

    def set(self, key: str, value: bytes) -> Any:
        return self._honestly("set", key, value)

    def incr(self, key: str, by: int) -> Any:
        return self._honestly("incr", key, by)


class Bare(Memcache):
    """The store of the contract with the bare driver in our client's place."""

    def client(self, address: Address, limit: float) -> Any:
        return BareClient(address, limit)

    def busy(self, client: Any, address: Address) -> int:
        return 0


@pytest.fixture(scope="module")
def server() -> Iterator[Address]:
    with Bare.embedded() as address:
        yield address


@pytest.mark.parametrize(
    ("operation", "fault", "problem"),
    [
        ("incr", "drip", "s for a limit of 0.3 s"),
        ("get", "hang", "sent=False, not True"),
        ("set", "hang", "said True, but the server has"),
        ("incr", "latency", "no problem"),
    ],
    ids=["no-total-limit", "a-lie-about-sent", "success-of-a-lost-write", "nothing-wrong"],
)
def test_the_bare_driver_breaks_the_contract(
    server: Address, operation: str, fault: str, problem: str
) -> None:
    """Timeouts of a recv, a wrong `.sent` and a write that was only hoped for are all found."""
    with Relay(upstream=server) as relay:
        one = Cell(Bare(), server, _OPERATIONS[operation], True, _TROUBLES[fault])
        problems = [line for line in cell.run(one, relay.listen()) if "KeyError: '127" not in line]
    if problem == "no problem":
        assert not problems, problems
    else:
        assert any(problem in line for line in problems), problems
