"""Real servers for the tests: an address, a process of our own, a namespace for packet faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import netlab
from tests.servers.memcached import (
    ENVIRONMENT,
    Address,
    Memcached,
    binary,
    free_port,
    given_address,
)
from tests.servers.netlab import NetLab
from timedblock.testing import rabbitmq


@pytest.fixture(scope="session")
def memcached_address() -> Iterator[Address]:
    """A real memcached: the one that the environment names, or Debian's, started for the run."""
    given = given_address()
    if given is not None:
        yield given
    elif binary() is None:
        pytest.skip(f"no memcached here: install it, or set {ENVIRONMENT}=HOST:PORT")
    else:
        with Memcached(("127.0.0.1", free_port())) as server:
            yield server.address


@pytest.fixture
def own_memcached() -> Iterator[Memcached]:
    """A memcached of the test's own, which it may pause, kill and restart."""
    if binary() is None:
        pytest.skip("no memcached here that may be paused and killed: install it")
    with Memcached(("127.0.0.1", free_port())) as server:
        yield server


@pytest.fixture(scope="session")
def lab() -> Iterator[NetLab]:
    """A memcached in a network namespace of its own."""
    reason = netlab.why_not()
    if reason is not None:
        pytest.skip(f"no namespace lab: {reason}")
    with NetLab() as built:
        yield built


@pytest.fixture(scope="session")
def broker() -> Iterator[rabbitmq.Broker]:
    """A RabbitMQ on loopback. Whoever kills it starts it again."""
    reason = rabbitmq.why_not()
    if reason is not None:
        pytest.skip(reason)
    with rabbitmq.Broker() as one:
        yield one
