"""stats(), health() and the registry."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest

from timedblock import Breaker, Fixed, Policy, TimedBlock, health, stats
from timedblock.endpoint import endpoint
from timedblock.policy.breaker import HALF_OPEN, OPEN
from timedblock.registry import BLOCKS, check_name
from timedblock.testing import FakeClock


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No blocks of other tests."""
    gc.collect()
    before = list(BLOCKS)
    for block in before:
        BLOCKS.discard(block)
    yield
    for block in before:
        BLOCKS.add(block)


def test_a_blocks_figures(clock: FakeClock) -> None:
    """Every figure of a block, after a known history."""
    block = TimedBlock("figures", Policy(timeout=Fixed(0.5)))
    for _ in range(10):
        block.call(clock.advance, 0.1)
    block.call(clock.advance, 0.7)
    with pytest.raises(OSError):
        block.call(lambda: (_ for _ in ()).throw(OSError()))
    held = block.begin()
    block.refresh(clock.now() + 1)
    assert stats() == {
        "blocks": {
            "figures": {
                "calls": 12,
                "ok": 11,
                "unwell": 1,
                "unavailable": 0,
                "late": 1,
                "stalled": 0,
                "limit": 0.5,
                "limit_source": "fixed",
                "p50": pytest.approx(0.1, rel=0.02),
                "p95": pytest.approx(0.7, rel=0.02),
                "p99": pytest.approx(0.7, rel=0.02),
                "in_flight": 1,
                "breaker": "closed",
                "would_cut": 0,
                "would_reject": 0,
                "would_limit": None,
                "keys": {},
            }
        },
        "endpoints": stats()["endpoints"],
    }
    held.abandoned()


def test_an_endpoints_figures(clock: FakeClock) -> None:
    """Every figure of an endpoint."""
    one = endpoint("figures:1", Breaker())
    block = TimedBlock("store.get", Policy(timeout=Fixed(0.5)), endpoint=one)
    held = block.begin()
    assert stats()["endpoints"]["figures:1"] == {
        "breaker": "closed",
        "in_flight": 1,
        "pool": {},
        "budget": 1.0,
        "connects": 0,
        "limits": {"store.get": 0.5},
    }
    held.succeeded()


def test_blocks_of_one_name_are_added_up(clock: FakeClock) -> None:
    """On two endpoints: counts are sums, the limit is the slowest's, the breaker the worst's."""
    ends = [endpoint(f"sum:{number}", Breaker(failures=1)) for number in range(2)]
    blocks = [
        TimedBlock("store.get", Policy(timeout=Fixed(1 + number)), endpoint=end)
        for number, end in enumerate(ends)
    ]
    for block in blocks:
        block.call(int)
    blocks[0].begin().failed(OSError())
    found = stats()["blocks"]["store.get"]
    assert (found["ok"], found["unwell"], found["limit"]) == (2, 1, 2)
    assert found["breaker"] == "open"


def test_two_blocks_of_one_endpoint_are_counted_once(clock: FakeClock) -> None:
    """Two clients of one endpoint share their data: it isn't doubled."""
    one = endpoint("twice:1", None)
    blocks = [TimedBlock("store.get", endpoint=one) for _ in range(2)]
    blocks[0].call(int)
    assert stats()["blocks"]["store.get"]["ok"] == 1


def test_calls_that_an_interrupt_lost_arent_in_flight(clock: FakeClock) -> None:
    """Nobody holds them: stats() sweeps them away."""
    block = TimedBlock("lost")
    block.begin()
    assert stats()["blocks"]["lost"]["in_flight"] == 0


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ([], "ok"),
        (["closed"], "ok"),
        ([None], "ok"),
        (["closed", OPEN], "degraded"),
        ([HALF_OPEN], "degraded"),
        ([OPEN, HALF_OPEN], "degraded"),
        ([OPEN, OPEN], "down"),
        ([OPEN, None], "down"),
        ([HALF_OPEN, None], "degraded"),
    ],
)
def test_health(clock: FakeClock, states: list[str | None], status: str) -> None:
    """Down: every block with a breaker is; degraded: any isn't ok; a block without is ok."""
    blocks = []
    for number, state in enumerate(states):
        policy = Policy(breaker=None if state is None else Breaker())
        block = TimedBlock(f"b{number}", policy)
        if state is not None:
            assert block.circuit is not None
            block.circuit.force(state, "test", clock.now())
        blocks.append(block)
    found = health()
    assert found["status"] == status
    words = {None: "ok", "closed": "ok", OPEN: "down", HALF_OPEN: "degraded"}
    assert found["blocks"] == {f"b{n}": words[state] for n, state in enumerate(states)}


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a\n", "-a", ".a", "ä", "a/b", "x" * 101, None, 1, b"bytes"]
)
def test_a_bad_name_is_refused(name: object) -> None:
    """A block's name is short and plain; the error shows the bad one."""
    with pytest.raises(ValueError, match="name") as caught:
        check_name(name)  # type: ignore[arg-type]
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["a", "memcache.get", "a-b_c.d9", "x" * 100, "9"])
def test_a_good_name_is_kept(name: str) -> None:
    """Letters, digits, dots, dashes and underscores."""
    assert check_name(name) == name


def test_past_a_thousand_names_new_ones_are_folded(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The thousand-and-first name is "other", said once; a known name stays itself."""
    blocks = [TimedBlock(f"n{number}") for number in range(1000)]
    with caplog.at_level(logging.WARNING, "timedblock"):
        more = [TimedBlock(f"m{number}") for number in range(50)]
        again = TimedBlock("n7")
    assert {block.name for block in more} == {"other"}
    assert again.name == "n7"
    assert len(caplog.records) == 1
    more[0].call(int)
    more[1].call(int)
    assert stats()["blocks"]["other"]["ok"] == 2
    assert len(blocks) == 1000


def test_a_block_that_is_gone_leaves_no_name(clock: FakeClock) -> None:
    """The registry holds blocks weakly."""
    TimedBlock("gone")
    gc.collect()
    assert "gone" not in stats()["blocks"]
