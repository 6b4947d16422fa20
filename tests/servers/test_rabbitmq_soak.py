"""A short run of the soak: the same code as ``python -m benchmarks.rabbitmq_soak``."""

from __future__ import annotations

import pytest

from benchmarks.rabbitmq_soak import Size, one_run, report
from timedblock.testing.rabbitmq import why_not

pytestmark = [pytest.mark.server, pytest.mark.wall]
MESSAGES = 4_000


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
    found = one_run(Size(MESSAGES, pace=700.0, seconds=20.0, seed=seed, peace=1.5))
    wrong = [
        f"{one.name}: {one.value} {one.note}"
        for one in report(found, MESSAGES // 2)
        if not one.holds
    ]
    assert wrong == []
    assert found.seen["pause"] and found.seen["kill"]
