"""Where the drop-in was once not like pymemcache, on a real memcached."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pymemcache
import pytest

from tests.servers.memcached import Address, Memcached
from timedblock import memcache

Clients = tuple[pymemcache.Client, memcache.Client]


@pytest.fixture
def clients(memcached_address: Address) -> Iterator[Clients]:
    raw, ours = pymemcache.Client(memcached_address), memcache.Client(memcached_address)
    with contextlib.closing(raw), contextlib.closing(ours):
        yield raw, ours


@pytest.mark.server
def test_a_shutdown_that_the_server_forbids_raises(clients: Clients) -> None:
    """memcached answers "ERROR: shutdown not enabled": both clients raise for it."""
    for client in clients:
        with pytest.raises(pymemcache.MemcacheUnknownCommandError):
            client.shutdown()


@pytest.mark.server
def test_a_shutdown_that_the_server_obeys_returns(own_memcached: Memcached) -> None:
    """The server closes the connection instead of answering: that is the success."""
    own_memcached.restart(["--enable-shutdown"])
    with contextlib.closing(memcache.Client(own_memcached.address)) as client:
        assert client.shutdown() is None


def test_our_client_stands_a_replaced_pymemcache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's socket module works though our class has taken pymemcache's name."""
    import socket
    import types

    from pymemcache.client import base

    monkeypatch.setattr(base, "Client", memcache.Client)
    module = types.ModuleType("a_users_sockets")
    module.__dict__.update(vars(socket))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        client = memcache.Client(address, socket_module=module)
        with contextlib.closing(client):
            client._connect()
            assert client.sock.getpeername() == address
