"""Cut calls whose answers come after all: the connection is parked, and the limit learns."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from timedblock import DeadlineExceeded, Unavailable, faults, memcache
from timedblock.faults.proxy import Link, Relay
from timedblock.net import parking
from timedblock.net.parking import LOT
from timedblock.testing import EmbeddedMemcached

pytestmark = pytest.mark.wall


@pytest.fixture
def link() -> Iterator[Link]:
    with EmbeddedMemcached() as server, Relay(server.address) as relay:
        yield relay.listen()


def _learnt(link: Link) -> memcache.Client:
    """A client whose limit is learnt and short."""
    client = memcache.Client(link.address)
    client.set("key", "value")
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        client.get("key")
        time.sleep(0.005)
    assert client._get_block.learnt.source == "learnt"
    return client


def _empty(within: float) -> bool:
    end = time.monotonic() + within
    while LOT.count() and time.monotonic() < end:
        time.sleep(0.01)
    return not LOT.count()


def test_a_slower_server_is_learnt_from_the_answers_of_cut_calls(link: Link) -> None:
    """Answers past the limit are exact samples: the limit follows them, and no breaker opens."""
    client = _learnt(link)
    short = client._get_block.limit
    link.inject(faults.Latency(short * 2.5))
    cut = 0
    for _ in range(30):
        try:
            assert client.get("key") == b"value"
        except DeadlineExceeded:
            cut += 1
    assert 0 < cut < 25
    assert client._get_block.histogram.late_total > 0
    assert client._get_block.limit > short * 2.5
    assert client.endpoint.circuit is not None
    assert client.endpoint.circuit.state == "closed"
    assert _empty(2.0)
    client.close()


def test_a_silent_servers_connections_are_let_go_at_the_ceiling(link: Link, no_leaks: None) -> None:
    """Nothing is listened to for longer than the ceiling, and the breaker finds the silence."""
    client = _learnt(link)
    link.inject(faults.Hang())
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        with pytest.raises(Unavailable):
            client.get("key")
        time.sleep(0.01)
    assert client.endpoint.circuit is not None
    assert client.endpoint.circuit.state != "closed"
    assert client._get_block.histogram.late_total == 0
    assert _empty(1.0 + 0.25)
    client.close()


def test_only_so_many_are_parked(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound a cut connection is closed at once."""
    monkeypatch.setattr(parking, "MOST", 1)
    client = memcache.Client(link.address, timeout=0.5)
    client.set("key", "value")
    link.inject(faults.Hang())
    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            client.get("key")
        assert LOT.count() <= 1
    assert _empty(1.0)
    client.close()
