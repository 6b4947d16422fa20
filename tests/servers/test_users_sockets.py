"""A user's own socket module: armed for each call, and backed by the watchdog."""

from __future__ import annotations

import socket
import time
import types
from collections.abc import Iterator

import pytest

from timedblock import DeadlineExceeded, faults, memcache
from timedblock.faults.proxy import Link, Relay
from timedblock.testing import EmbeddedMemcached


class DeafSocket(socket.socket):
    """A socket that ignores its timeout, as a wrapper of somebody's may."""

    def settimeout(self, value: float | None) -> None:
        """Do nothing."""


def _module() -> types.ModuleType:
    module = types.ModuleType("deaf")
    module.__dict__.update(socket.__dict__)
    module.socket = DeafSocket  # type: ignore[attr-defined]
    return module


@pytest.fixture
def link() -> Iterator[Link]:
    with EmbeddedMemcached() as server, Relay(server.address) as relay:
        yield relay.listen()


@pytest.mark.wall
def test_a_socket_that_ignores_its_timeout_is_severed(link: Link) -> None:
    """The watchdog ends every call at its limit, and each end is a limit's, not a lost stream's."""
    client = memcache.Client(link.address, timeout=0.3, socket_module=_module())
    assert client.set("key", "value")
    link.inject(faults.Hang())
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.get("key")
        assert 0.25 < time.monotonic() - began < 0.3 + 0.25
    link.clear()
    assert client.get("key") == b"value"
    client.close()
