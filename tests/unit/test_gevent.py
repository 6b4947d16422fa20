"""Under gevent: patched in time it works, patched too late it says so."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("gevent", reason="gevent is not installed")

COOPERATES = """
from gevent import monkey; monkey.patch_all()
import gevent, time
from timedblock import Unavailable, faults, memcache
from timedblock.faults.proxy import Relay
from timedblock.testing import EmbeddedMemcached

def one():
    try:
        client.get("key")
    except Unavailable:
        return 1

with EmbeddedMemcached() as server, Relay(server.address) as relay:
    link = relay.listen()
    client = memcache.Client(link.address, timeout=0.5, max_pool_size=40)
    client.set("key", "value")
    assert client.get("key") == b"value"
    link.inject(faults.Hang())
    began = time.monotonic()
    greenlets = [gevent.spawn(one) for _ in range(30)]
    gevent.joinall(greenlets)
    took = time.monotonic() - began
    assert [greenlet.value for greenlet in greenlets] == [1] * 30, greenlets
    assert took < 0.5 + 0.25, took
"""

TOO_LATE = """
import timedblock.memcache
from gevent import monkey; monkey.patch_all()
timedblock.memcache.Client("127.0.0.1:11211")
"""


def _run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.wall
def test_thirty_greenlets_wait_side_by_side() -> None:
    """Thirty calls into a hanging server end together, at the limit of one."""
    done = _run(COOPERATES)
    assert done.returncode == 0, done.stderr


def test_patched_too_late_is_a_clear_error() -> None:
    """A client made after a late patch would block every greenlet: it says what to do instead."""
    done = _run(TOO_LATE)
    assert "before the first import of timedblock" in done.stderr


def test_gevent_sockets_without_a_patch() -> None:
    """`socket_module=gevent.socket` alone: connections are made where they are used."""
    program = """
import gevent.socket
from timedblock import memcache
from timedblock.testing import EmbeddedMemcached
with EmbeddedMemcached() as server:
    client = memcache.Client(server.address, socket_module=gevent.socket)
    assert client.set("key", "value") and client.get("key") == b"value"
"""
    done = _run(program)
    assert done.returncode == 0, done.stderr
