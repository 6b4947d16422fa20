"""What the memcached drill plans to do, and how it knows a right answer."""

from __future__ import annotations

import json

import pytest

from timedblock import faults
from timedblock.drill import memcache
from timedblock.drill.load import Schedule
from timedblock.drill.worker import FaultyResolver, Task


class _Cache:
    """A cache that gives one value, or raises one error."""

    def __init__(self, given: bytes | Exception | None) -> None:
        self._given = given

    def get(self, key: str) -> bytes | None:
        if isinstance(self._given, Exception):
            raise self._given
        return self._given


KEYS = memcache.Keys("p")


def test_full_drill_makes_every_fault_of_the_vocabulary() -> None:
    """Twelve faults, by the names that every injector uses, after the fault-free run."""
    more = {"bandwidth", "flap", "fail-first", "pause", "kill", "partition"}
    assert set(memcache.FAULTS) == set(faults.FAULTS) - more
    assert memcache.planned(list(memcache.FAULTS)) == ["none", *memcache.FAULTS]


def test_plan_keeps_the_order_of_the_report() -> None:
    """Whatever order faults are asked for in, and however often."""
    assert memcache.planned(["hang", "refuse", "hang"]) == ["none", "refuse", "hang"]


@pytest.mark.parametrize("number", range(1, 14))
def test_waves_hold_every_fault_once(number: int) -> None:
    """None is lost, none is run twice, no wave is larger than allowed."""
    names = ["none", *memcache.FAULTS][:number]
    waves = memcache.waves(names, 4)
    assert sorted(name for wave in waves for name in wave) == sorted(names)
    assert max(len(wave) for wave in waves) <= 4


def test_busy_faults_are_spread_over_the_waves() -> None:
    """No wave has more than two of the faults in which clients keep the processor busy."""
    waves = memcache.waves(["none", *memcache.FAULTS], 4)
    assert all(len(set(wave) - memcache.QUIET) <= 2 for wave in waves)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (KEYS.value("p:1"), "ok"),
        (KEYS.value("p:2"), "wrong"),
        (KEYS.value("p:1")[:-1], "wrong"),
        (None, "wrong"),
        (ConnectionError(), "error"),
        (KeyError(), "dishonest"),
    ],
)
def test_answer_is_judged_by_its_key(given: bytes | Exception | None, kind: str) -> None:
    """Another key's value, a truncated one and a false miss are wrong; an error the client doesn't
    promise is dishonest."""
    request = memcache.make_request(memcache.Client(_Cache(given), OSError), KEYS)
    assert request(1).kind == kind


def test_task_comes_out_of_its_json_as_it_went_in() -> None:
    """The worker gets what the drill decided."""
    schedule = Schedule(rate=200, steady=2, window=6, grace=1.25, recovery=1.5)
    task = Task("hang", "timedblock", ("127.0.0.1", 11211), "p", schedule)
    assert json.loads(task.to_json())["fault"] == "hang"
    assert Task.from_json(task.to_json()) == task


def test_resolver_is_at_fault_in_its_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after it the drill's name leads to the relay, other names are left alone."""
    asked: list[str] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *more: asked.append(host))
    resolver = FaultyResolver("dns-fail", "127.0.0.9")
    resolver("localhost", 1)
    resolver.schedule(0.0, float("inf"))
    with pytest.raises(OSError, match="name resolution"):
        resolver("localhost", 1)
    resolver("other.example", 1)
    resolver.schedule(0.0, 0.0)
    resolver("localhost", 1)
    assert asked == ["127.0.0.9", "other.example", "127.0.0.9"]
