"""What a load's process says of itself, as the monitoring endpoint would."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable

import pytest

from timedblock import TimedBlock, Unavailable, monitor
from timedblock.drill.history import Sample
from timedblock.drill.sampler import EVERY, Sampler
from timedblock.policy import Breaker, Fixed, Policy

NAME = "drill.sampler"


def _health(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        return str(json.load(answer)["status"])


def _fail() -> None:
    raise ConnectionRefusedError


def _until(sampler: Sampler, holds: Callable[[Sample], bool]) -> Sample:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for sample in sampler.samples[-1:]:
            if holds(sample):
                return sample
        time.sleep(EVERY / 2)
    raise AssertionError(f"never: {sampler.samples[-1:]}")


def test_samples_have_the_status_that_the_endpoint_answers(no_leaks: None) -> None:
    """Ok before; with the breaker open what GET /health says: degraded, since nothing of a drill is
    critical, where `timedblock.health()` says down."""
    block = TimedBlock(NAME, policy=Policy(timeout=Fixed(1.0), breaker=Breaker()))
    block.call(lambda: None)
    sampler = Sampler("hang", "timedblock", NAME, time.monotonic())
    with monitor.serve(port=0) as server:
        sample = _until(sampler, lambda one: one.breaker == "closed")
        assert (sample.health, sample.limit, sample.limit_source) == ("ok", 1.0, "fixed")
        for _ in range(50):
            with pytest.raises((ConnectionRefusedError, Unavailable)):
                block.call(_fail)
        sample = _until(sampler, lambda one: one.breaker == "open")
        assert sample.health == _health(server.port) == "degraded"
    assert sampler.stop()[-1].health == "degraded"


def test_nothing_is_sampled_of_a_block_that_is_not_there() -> None:
    """Before its first call a client has told nothing."""
    sampler = Sampler("none", "timedblock", "no.such.block", time.monotonic())
    time.sleep(2 * EVERY)
    assert sampler.stop() == []
