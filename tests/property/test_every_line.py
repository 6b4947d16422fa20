"""An interrupt at every line of a call: the next call has its answer, and nothing is lost.

`test_interrupts` throws at random, between any two bytecodes; this goes through all lines, one
after the other, of the modules that a call runs through.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from tests.interrupts import every_line
from tests.servers.memcached import stop
from timedblock import Fixed, Policy, Unavailable, block, call, deadline
from timedblock.memcache import Client, client, exchange
from timedblock.net import parking, pool, wire
from timedblock.policy import breaker
from timedblock.testing import EmbeddedMemcached

pytestmark = [
    pytest.mark.usefixtures("untraced", "no_leaks"),
    # a socket that was lost to an interrupt is closed by the collector: that is the design
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
KEY, VALUE = "key", b"value" * 100
ALWAYS = [block, call, client, exchange]


def _each(*modules: ModuleType) -> pytest.MarkDecorator:
    def name(module: ModuleType) -> str:
        return module.__name__.rpartition(".")[2]

    return pytest.mark.parametrize("module", modules, ids=name)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedMemcached]:
    with EmbeddedMemcached() as one:
        yield one


@pytest.fixture
def cache(server: EmbeddedMemcached) -> Iterator[Client]:
    """A client with a single connection and a single slot: one that is lost is missed at once."""
    cache = Client(
        server.address,
        name="struck",
        policy=Policy(timeout=Fixed(1.0), bulkhead=1),
        max_pool_size=1,
    )
    cache.set(KEY, VALUE)
    yield cache
    cache.close()
    deadline.put(None)  # what a struck exit left, which limits nothing
    gc.collect()


def _whole(cache: Client) -> None:
    """The next calls have their answers."""
    for _ in range(2):
        assert cache.get(KEY) == VALUE
    count = cache._pool.count()
    assert count["open"] == count["idle"] == 1
    assert count["waiting"] == count["connecting"] == 0
    assert deadline.remaining() is None
    circuit = cache.endpoint.circuit
    assert circuit is not None
    assert circuit.state == "closed"


@_each(*ALWAYS)
def test_a_call_on_a_pooled_connection(cache: Client, module: ModuleType) -> None:
    """Send and receive: the connection is used again, or replaced."""
    for _ in every_line(module, lambda: lambda: cache.get(KEY)):
        _whole(cache)


@_each(*ALWAYS, pool)
def test_a_call_that_connects(cache: Client, module: ModuleType) -> None:
    """Waiting for one's turn and for the connection."""

    def prepare() -> Callable[[], object]:
        cache.close()
        return lambda: cache.get(KEY)

    for _ in every_line(module, prepare):
        _whole(cache)


@_each(*ALWAYS, breaker, deadline, parking, wire)
def test_a_call_that_is_cut(server: EmbeddedMemcached, cache: Client, module: ModuleType) -> None:
    """No answer in time: the connection is parked, and the error made."""

    def cut() -> None:
        with contextlib.suppress(Unavailable), deadline.time_limit(0.01):
            cache.get(KEY)

    def prepare() -> Callable[[], object]:
        stop(server.pid)
        return cut

    try:
        for _ in every_line(module, prepare):
            os.kill(server.pid, signal.SIGCONT)
            _whole(cache)
    finally:
        os.kill(server.pid, signal.SIGCONT)
