"""What /health and /ready say: the states of blocks, and what they mean for the service."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest

from timedblock import Breaker, Fixed, Policy, TimedBlock
from timedblock.endpoint import endpoint
from timedblock.monitor import report
from timedblock.monitor.report import lost
from timedblock.policy.breaker import CLOSED, HALF_OPEN, OPEN, Circuit
from timedblock.registry import BLOCKS
from timedblock.testing import FakeClock

ONE_FAILURE = Policy(timeout=Fixed(1.0), breaker=Breaker(failures=1))


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """No blocks of other tests."""
    gc.collect()
    before = list(BLOCKS)
    for block in before:
        BLOCKS.discard(block)
    yield
    for block in before:
        BLOCKS.add(block)


def _fail(block: TimedBlock) -> None:
    block.begin().failed(ConnectionRefusedError())


def _open_time(block: TimedBlock) -> float:
    assert block.circuit is not None
    return block.circuit.retry_after(block.now())


def test_all_is_well(clock: FakeClock) -> None:
    """Without trouble every block is ok, since always and for no reason."""
    block = TimedBlock("a.get", ONE_FAILURE)
    block.call(clock.advance, 0.1)
    found = report()
    assert found["status"] == "ok"
    told = found["blocks"]["a.get"]
    assert (told["status"], told["reason"], told["since"]) == ("ok", None, None)
    assert (told["calls"], told["limit"], told["limit_source"]) == (1, 1.0, "fixed")
    assert told["critical"] is False


def test_a_lost_optional_block_degrades(clock: FakeClock) -> None:
    """The block is down with its reason and its time; the service is degraded and serves."""
    block = TimedBlock("cache.get", ONE_FAILURE)
    fine = TimedBlock("db.query", ONE_FAILURE)
    clock.advance(50)
    _fail(block)
    clock.advance(0.1)
    before = datetime.now(timezone.utc)
    found = report(["db.*"])
    told = found["blocks"]["cache.get"]
    assert found["status"] == "degraded"
    assert told["status"] == "down"
    assert told["reason"] == "ConnectionRefusedError, 1 in a row"
    since = datetime.fromisoformat(told["since"])
    assert (before - since).total_seconds() == pytest.approx(0.1, abs=0.09)
    assert told["retry_after"] == pytest.approx(_open_time(block), abs=0.001)
    assert found["blocks"][fine.name]["critical"] is True
    assert lost(("db.*",)) == {}


def test_a_lost_critical_block_is_the_end(clock: FakeClock) -> None:
    """While a critical block is down the service is."""
    block = TimedBlock("db.query", ONE_FAILURE)
    _fail(block)
    assert report(["db.*"])["status"] == "down"
    assert report(["db.query"])["status"] == "down"
    assert report(["d"])["status"] == "degraded"
    assert lost(("db.*",)) == {"db.query": "ConnectionRefusedError, 1 in a row"}


def test_a_block_that_may_be_probed_is_not_down(clock: FakeClock) -> None:
    """When the open time is over the next call is the probe: traffic must come back for it."""
    block = TimedBlock("db.query", ONE_FAILURE)
    _fail(block)
    opened = report()["blocks"]["db.query"]["since"]
    clock.advance(_open_time(block))
    told = report(["db.*"])
    assert told["status"] == "degraded"
    assert "1 in a row; a probe is due" in told["blocks"]["db.query"]["reason"]
    assert lost(("db.*",)) == {}
    probe = block.begin()
    assert "a probe is under way" in report()["blocks"]["db.query"]["reason"]
    probe.failed(ConnectionResetError())
    told = report()["blocks"]["db.query"]
    assert told["reason"] == "probe failed: ConnectionResetError"
    one, other = (datetime.fromisoformat(text) for text in (opened, told["since"]))
    assert abs((one - other).total_seconds()) < 0.5 + _open_time(block)


def test_recovered_is_ok_since_then(clock: FakeClock) -> None:
    """After the probe's answer: ok, without a reason, since now."""
    block = TimedBlock("db.query", ONE_FAILURE)
    _fail(block)
    clock.advance(_open_time(block))
    block.begin().succeeded()
    told = report(["db.*"])
    assert told["status"] == "ok"
    assert told["blocks"]["db.query"]["reason"] is None
    assert told["blocks"]["db.query"]["since"] is not None


def test_one_of_two_endpoints_degrades(clock: FakeClock) -> None:
    """A block that is lost on one endpoint of two is degraded, and down when it is on both."""
    ends = [endpoint(f"{number}:1", Breaker(failures=1)) for number in range(2)]
    blocks = [TimedBlock("s.get", Policy(timeout=Fixed(1.0)), endpoint=end) for end in ends]
    _fail(blocks[0])
    told = report(["s.*"])
    assert told["status"] == "degraded"
    assert told["blocks"]["s.get"]["status"] == "degraded"
    assert {name: one["status"] for name, one in told["blocks"]["s.get"]["endpoints"].items()} == {
        "0:1": "down",
        "1:1": "ok",
    }
    _fail(blocks[1])
    assert report(["s.*"])["status"] == "down"


def test_a_block_without_breaker_is_ok(clock: FakeClock) -> None:
    """Nothing says that it is down."""
    block = TimedBlock("free", Policy(timeout=None, breaker=None))
    _fail(block)
    told = report()["blocks"]["free"]
    assert told["status"] == "ok"
    assert told["limit"] is None


def test_on_paper_nothing_is_down(clock: FakeClock) -> None:
    """In observe mode the breaker's state is only told."""
    block = TimedBlock("paper", ONE_FAILURE)
    block.reconfigure(ONE_FAILURE, observing=True)
    _fail(block)
    told = report(["paper"])
    assert told["status"] == "ok"
    assert told["blocks"]["paper"]["reason"] == "observe mode: its breaker is open, on paper"


def test_a_name_that_no_block_has_is_told(clock: FakeClock) -> None:
    """A misspelt critical name is seen."""
    TimedBlock("db.query")
    assert report(["db.*", "dd.*"])["unmatched"] == ["dd.*"]


def test_it_is_json(clock: FakeClock) -> None:
    """Infinite limits are null: JSON has no infinity."""
    TimedBlock("free", Policy(timeout=None))
    json.dumps(report(), allow_nan=False)


@pytest.mark.parametrize(
    ("critical", "kind"),
    [("db.*", TypeError), (b"db", TypeError), (7, TypeError), ([7], TypeError), ([""], ValueError)],
)
def test_bad_names_are_refused(critical: object, kind: type[Exception]) -> None:
    """What is no list of names is named in the error."""
    with pytest.raises(kind, match="critical"):
        report(critical)  # type: ignore[arg-type]


def test_a_circuit_knows_why_and_since_when() -> None:
    """The reason of the last opening or closing; a probe that begins changes neither."""
    circuit = Circuit(Breaker(failures=1))
    assert (circuit.reason, circuit.turned) == ("", float("-inf"))
    circuit.failure(10.0, 9.0, "OSError")
    assert (circuit.state, circuit.reason, circuit.turned) == (OPEN, "OSError, 1 in a row", 10.0)
    lease = circuit.admit(20.0, 1.0)
    assert (circuit.state, circuit.reason, circuit.turned) == (
        HALF_OPEN,
        "OSError, 1 in a row",
        10.0,
    )
    circuit.failure(20.5, 20.0, "EOFError", lease)  # type: ignore[arg-type]
    assert (circuit.state, circuit.reason, circuit.turned) == (OPEN, "probe failed: EOFError", 10.0)
    circuit.force(CLOSED, "by hand", 30.0)
    assert (circuit.reason, circuit.turned) == ("by hand", 30.0)
    circuit.force(HALF_OPEN, "by hand again", 31.0)
    assert (circuit.reason, circuit.turned) == ("by hand again", 31.0)
