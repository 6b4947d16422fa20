"""What the memcached drill plans to do, and how it knows a right answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from timedblock import faults
from timedblock.drill import engine, injection, memcache, plans, store
from timedblock.drill.errors import ScenarioError
from timedblock.drill.load import Schedule
from timedblock.drill.memcache import CacheSession, Client, Keys
from timedblock.drill.scenario import Scenario, Target
from timedblock.drill.worker import FaultyResolver, Spell, Task

STORE = memcache.STORE
KEYS = Keys("p")


class _Cache:
    """A cache that gives one value, or raises one error."""

    def __init__(self, given: bytes | Exception | None) -> None:
        self._given = given

    def get(self, key: str) -> bytes | None:
        if isinstance(self._given, Exception):
            raise self._given
        return self._given

    def set(self, key: str, value: bytes) -> bool | None:
        return self.get(key) is not None


def _usual(injector: str = "proxy") -> Scenario:
    return plans.usual(STORE, Target(), injector, None, None)


def test_store_is_found_by_its_name() -> None:
    """One neighbour a store, imported when it is needed."""
    assert [store.find(name).name for name in store.STORES] == list(store.STORES)


def test_usual_drill_makes_every_fault_of_the_store_after_a_run_without() -> None:
    """On the three clients of the README, in the report's order."""
    scenario = _usual()
    assert [episode.name for episode in scenario.plan] == ["none", *STORE.faults]
    assert scenario.variants == ("raw-default", "raw-timeout", "timedblock")
    assert len(STORE.faults) >= 8


def test_full_drill_judges_all_variants_and_their_recovery() -> None:
    """Where a client can know that the store is gone, its breaker and its health have to say so."""
    scenario = plans.full(STORE, Target(), "proxy", None, None)
    assert scenario.variants == tuple(STORE.variants)
    bounds = {episode.name: scenario.judged_by(episode) for episode in scenario.episodes}
    assert None not in (bounds["hang"].seen, bounds["hang"].breaker_closed)
    assert bounds["latency"].seen is None
    assert bounds["latency"].recovery is not None


@pytest.mark.parametrize("injector", ["inprocess", "proxy", "netfilter", "process"])
def test_every_drill_asks_an_injector_for_what_it_makes(injector: str) -> None:
    """Of the store's faults those that this injector makes; where there are none, its own."""
    for kind in (plans.usual, plans.quick):
        scenario = kind(STORE, Target(), injector, None, None)
        injection.check(scenario, injector)
        assert scenario.episodes
    assert len(plans.quick(STORE, Target(), "proxy", None, None).episodes) == 4


def test_faults_that_are_asked_for_keep_the_order_of_the_report() -> None:
    """Whatever order they are asked for in; those of other injectors come with usual values."""
    scenario = plans.only(_usual(), STORE, ["flap", "hang", "refuse"])
    assert [episode.name for episode in scenario.episodes] == ["refuse", "hang", "flap"]
    with pytest.raises(ScenarioError, match="process can't make 'refuse'"):
        injection.check(scenario, "process")


@pytest.mark.parametrize(
    ("change", "injector", "said"),
    [
        ({}, "magic", "unknown injector 'magic'"),
        ({"variants": ("raw-default",)}, "inprocess", "own variants only"),
    ],
)
def test_drill_that_an_injector_cannot_make_is_refused(
    change: dict[str, tuple[str, ...]], injector: str, said: str
) -> None:
    """Before anything is started."""
    scenario = replace(plans.only(_usual(), STORE, ["hang"]), **change)
    with pytest.raises(ScenarioError, match=said):
        injection.check(scenario, injector)


def test_process_faults_no_server_of_the_users() -> None:
    """Only one that the drill started itself is paused or killed."""
    target = Target(server=("127.0.0.1", 11211))
    scenario = plans.usual(STORE, target, "process", None, None)
    with pytest.raises(ScenarioError, match="that the drill started"):
        injection.check(scenario, "process")


@pytest.mark.parametrize("number", range(1, 13))
@pytest.mark.parametrize("cores", [1, 2, 16])
def test_waves_hold_every_fault_once(
    number: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is lost or run twice, no wave is more than the processors carry, the run without a
    fault is alone."""
    monkeypatch.setattr(engine, "cores", lambda: cores)
    names = list(STORE.faults)[:number]
    found = engine.waves(plans.only(_usual(), STORE, names), "proxy")
    assert [episode.name for episode in found[0]] == ["none"]
    assert sorted(one.name for wave in found[1:] for one in wave) == sorted(names)
    assert max(len(wave) for wave in found) <= 2 * cores


def test_busy_faults_are_spread_over_the_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two cores no wave has more than three of the faults that keep the processor busy."""
    monkeypatch.setattr(engine, "cores", lambda: 2)
    waves = engine.waves(_usual(), "proxy")
    assert all(len({one.name for one in wave} - set(STORE.quiet)) <= 3 for wave in waves)
    assert engine.expected_seconds(_usual(), "proxy") <= 60


@pytest.mark.parametrize(
    ("kind", "most"), [(plans.quick, 60), (plans.usual, 60), (plans.full, 240)]
)
def test_drills_take_no_longer_than_they_promise(
    kind: Callable[..., Scenario], most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned for two cores: a minute, and four with every fault, client and recovery."""
    monkeypatch.setattr(engine, "cores", lambda: 2)
    scenario = kind(STORE, Target(), "proxy", None, None)
    assert engine.expected_seconds(scenario, "proxy") <= most


def test_process_is_one_for_all_clients() -> None:
    """So its faults come one after the other."""
    scenario = plans.usual(STORE, Target(), "process", None, None)
    assert [len(wave) for wave in engine.waves(scenario, "process")] == [1, 1, 1]
    assert {episode.name for episode in scenario.episodes} == {"pause", "kill"}


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (KEYS.value("k1", "0"), "ok"),
        (KEYS.value("k1", "w7"), "ok"),
        (KEYS.value("k2", "0"), "wrong"),
        (KEYS.value("k1", "0")[:-1], "wrong"),
        (b"", "wrong"),
        (None, "ok"),  # a miss: the checker knows whether it can be right
        (ConnectionError(), "unavailable"),
        (KeyError(), "dishonest"),
    ],
)
def test_answer_is_judged_by_its_key(given: bytes | Exception | None, outcome: str) -> None:
    """Another key's value and a truncated one are wrong; an error the client doesn't promise is
    dishonest."""
    session = CacheSession(Client(_Cache(given), OSError, noreply=False), KEYS, writes=0)
    assert session.answer(1).outcome == outcome


@pytest.mark.parametrize("writes", [0.0, 0.1, 0.5, 1.0])
def test_share_of_the_requests_writes(writes: float) -> None:
    """Each with a token of its own, to every key in turn."""
    session = CacheSession(Client(_Cache(b"x"), OSError, noreply=False), KEYS, writes)
    requests = [session.request(number) for number in range(1000)]
    written = [request for request in requests if request.op == "set"]
    assert len(written) == 1000 * writes
    assert len({request.value for request in written}) == len(written)
    if writes:
        assert {request.key for request in written} == set(KEYS.all())


@pytest.mark.parametrize(
    ("given", "noreply", "answer"),
    [
        (b"stored", False, ("ok", None, None, None)),
        (b"stored", True, ("ok", None, None, True)),
        (None, False, ("unavailable", None, "NotStored", False)),
        (ConnectionError(), False, ("unavailable", None, "ConnectionError", True)),
    ],
)
def test_write_says_whether_somebody_answered(
    given: bytes | Exception | None, noreply: bool, answer: tuple[object, ...]
) -> None:
    """A noreply is "stored" that nobody has said; a raw error doesn't say whether bytes left."""
    session = CacheSession(Client(_Cache(given), OSError, noreply), KEYS, writes=1)
    assert tuple(session.answer(1)) == answer


def test_task_comes_out_of_its_json_as_it_went_in() -> None:
    """The worker gets what the drill decided."""
    schedule = Schedule(rate=200, steady=2, window=6, grace=1.25, recovery=1.5)
    spells = (Spell({"fault": "dns-fail"}, 1.0, 2.0),)
    where = ("127.0.0.1", 11211)
    task = Task("hang", "timedblock", "memcache", (where, where), "p", schedule, spells=spells)
    assert json.loads(task.to_json())["fault"] == "hang"
    assert Task.from_json(task.to_json()) == task
    assert task.by_name


def test_resolver_is_at_fault_in_its_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after it the drill's name leads to the relay, other names are left alone."""
    asked: list[str] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *more: asked.append(host))
    resolver = FaultyResolver("127.0.0.9")
    resolver("localhost", 1)
    resolver.schedule([Spell(faults.DnsFail().to_dict(), 0.0, float("inf"))], 0.0)
    with pytest.raises(OSError, match="name resolution"):
        resolver("localhost", 1)
    resolver("other.example", 1)
    resolver.schedule([Spell(faults.DnsFail().to_dict(), 0.0, 1.0)], -5.0)
    resolver("localhost", 1)
    assert asked == ["127.0.0.9", "other.example", "127.0.0.9"]
