"""A short run of the soak: the same code as ``python -m benchmarks.rabbitmq_soak``."""

from __future__ import annotations

import pytest

from benchmarks.rabbitmq_soak import Size, one_run, report
from timedblock.testing.rabbitmq import why_not

pytestmark = [pytest.mark.server, pytest.mark.wall]
#: For so many seconds; a busy machine lets fewer messages through than an idle one.
SECONDS, PACE, AT_LEAST = 8.0, 700.0, 300


@pytest.mark.parametrize("seed", [1])
def test_nothing_confirmed_is_lost_whatever_happens(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Through changing faults, a pause and a kill -9 of the broker: no confirmed message is lost,
    no unsent one comes, no call is late, every consumer goes on, and nothing is left behind."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    caplog.set_level("CRITICAL", logger="pika")
    found = one_run(Size(1_000_000, pace=PACE, seconds=SECONDS, seed=seed, peace=1.5))
    figures = report(found, AT_LEAST)
    wrong = [f"{one.name}: {one.value} {one.note}" for one in figures if not one.holds]
    assert wrong == []
    assert found.seen["pause"] and found.seen["kill"]
