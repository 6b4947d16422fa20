"""What the clients of one endpoint share."""

from __future__ import annotations

import gc

import pytest

from timedblock import Breaker, Fixed, Percentile, Policy, TimedBlock, stats
from timedblock.endpoint import CONNECT_PAUSE, endpoint, endpoints
from timedblock.testing import FakeClock


def test_two_clients_share_breaker_and_data(clock: FakeClock) -> None:
    """What one client learns, the other knows; one's failures open the other's breaker."""
    shared = endpoint("h:1", Breaker(failures=1))
    assert endpoint("h:1", Breaker(failures=1)) is shared
    one, other = (TimedBlock("store.get", endpoint=shared) for _ in range(2))
    assert one.circuit is other.circuit is shared.circuit
    assert one.histogram is other.histogram
    assert one.budget is other.budget
    for _ in range(120):
        one.call(clock.advance, 0.04)
    assert other.limit == one.limit < 1.0
    one.begin().failed(OSError())
    with pytest.raises(Exception, match="breaker is open"):
        other.begin()


def test_other_breaker_settings_are_refused(clock: FakeClock) -> None:
    """The second client raises ValueError that names both settings."""
    kept = endpoint("h:1", Breaker(failures=3))
    with pytest.raises(ValueError, match=r"failures=3.*failures=4.*name="):
        endpoint("h:1", Breaker(failures=4))
    assert kept.breaker == Breaker(failures=3)


def test_a_client_without_a_breaker_joins(clock: FakeClock) -> None:
    """breaker=None asks for none; a later client may bring one."""
    shared = endpoint("h:1", None)
    assert shared.circuit is None
    assert "no breaker" in repr(shared)
    assert endpoint("h:1", Breaker()) is shared
    assert shared.circuit is not None
    assert "closed" in repr(shared)
    assert endpoint("h:1", None) is shared
    block = TimedBlock("store.get", Policy(breaker=None), endpoint=shared)
    assert block.circuit is None


def test_an_endpoint_that_nobody_uses_is_gone(clock: FakeClock) -> None:
    """A client that is gone leaves no state."""
    made = endpoint("gone:1", Breaker())
    circuit = made.circuit
    assert made in endpoints()
    del made
    gc.collect()
    assert "gone:1" not in [one.name for one in endpoints()]
    assert "gone:1" not in stats()["endpoints"]
    assert circuit is not None
    circuit.failure(0.0, 0.0, "OSError")  # kept by somebody, it still works
    assert circuit._answered_within(0.0, 10.0) == 0


def test_connects_after_a_failure_are_apart(clock: FakeClock) -> None:
    """Free at first; after a failed one 1 each 0.1 s, until one succeeds."""
    one = endpoint("h:1", None)
    assert [one.connect_pause(clock.now()) for _ in range(3)] == [0.0, 0.0, 0.0]
    one.connect_failed(clock.now())
    one.connect_failed(clock.now())
    assert one.connect_pause(clock.now()) == pytest.approx(CONNECT_PAUSE)
    clock.advance(0.06)
    assert one.connect_pause(clock.now()) == pytest.approx(0.04)
    clock.advance(0.05)
    assert one.connect_pause(clock.now()) == 0.0
    assert one.connect_pause(clock.now()) == pytest.approx(CONNECT_PAUSE)
    one.connected()
    assert one.connect_pause(clock.now()) == 0.0
    assert one.connects == 1


def test_the_endpoints_failure_rate_counts_all_operations(clock: FakeClock) -> None:
    """Answers of one operation are volume for the failures of another."""
    shared = endpoint("h:1", Breaker(failures=100, minimum_calls=20, failure_rate=0.5))
    get = TimedBlock("store.get", Policy(timeout=Fixed(1)), endpoint=shared)
    put = TimedBlock("store.set", Policy(timeout=Fixed(1)), endpoint=shared)
    for _ in range(100):
        get.call(int)
    for _ in range(50):
        put.begin().failed(OSError())
        clock.advance(0.01)
    assert shared.circuit is not None
    assert shared.circuit.state == "closed"


def test_connections_are_added_up(clock: FakeClock) -> None:
    """Pools of several clients, in stats()."""

    class Pool:
        def count(self) -> dict[str, int]:
            return {"open": 2, "idle": 1}

    one = endpoint("h:1", None)
    pools = [Pool(), Pool()]
    for pool in pools:
        one.pools.add(pool)
    assert one.connections() == {"open": 4, "idle": 2}


def test_operations_of_too_many_names_are_one(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are bounded at an endpoint too."""
    monkeypatch.setattr("timedblock.registry.MOST_NAMES", 5)
    one = endpoint("h:1", None)
    blocks = [TimedBlock(f"bounded-{number}", endpoint=one) for number in range(200)]
    assert len(one._operations) <= 6
    assert len({block.name for block in blocks}) <= 6


def test_a_percentile_block_of_an_endpoint_tells_its_limit(clock: FakeClock) -> None:
    """endpoints[…]["limits"] holds the learnt limit of each operation."""
    one = endpoint("limits:1", None)
    block = TimedBlock("store.get", Policy(timeout=Percentile(initial=0.3)), endpoint=one)
    assert stats()["endpoints"]["limits:1"]["limits"] == {"store.get": 0.3}
    assert block.endpoint is one
