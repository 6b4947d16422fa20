"""Keys: calls whose cost differs learn and use limits of their own."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest

from timedblock import (
    Breaker,
    DeadlineExceeded,
    Fixed,
    Overloaded,
    Percentile,
    Policy,
    TimedBlock,
    bind,
    events,
    memcache,
    stats,
    tag,
    tags,
    time_limit,
)
from timedblock.endpoint import Endpoint
from timedblock.events import LimitChanged
from timedblock.latency import SLICE
from timedblock.memcache.policies import size_class
from timedblock.operation import MOST_KEYS
from timedblock.policy.breaker import OPEN
from timedblock.testing import FakeClock
from timedblock.testing.memcached import EmbeddedMemcached

LEARNT = Policy(timeout=Percentile(min_samples=50))


def _answers(block: TimedBlock, clock: FakeClock, seconds: float, count: int = 200) -> None:
    for _ in range(count):
        block.call(clock.advance, seconds)
    clock.advance(SLICE)
    block.call(clock.advance, seconds)


# -- the tag in force -------------------------------------------------------------------------


def test_the_innermost_tag_counts() -> None:
    """And after it the one around it, by whatever way it was left."""
    assert tags.current() is None
    with tag("outer"):
        with pytest.raises(KeyError), tag("inner"):
            assert tags.current() == "inner"
            raise KeyError
        assert tags.current() == "outer"
    assert tags.current() is None


def test_one_tag_may_be_entered_again_and_again() -> None:
    """A constant of a module, in several threads and within itself."""
    report, seen = tag("report"), []
    with report:
        with tag("other"), report:
            seen.append(tags.current())
        seen.append(tags.current())
    with report:
        seen.append(tags.current())
    assert seen == ["report"] * 3
    assert tags.current() is None


def test_threads_have_no_tag_unless_they_are_bound() -> None:
    """`bind` carries it, as it carries the deadline."""
    seen: list[str | None] = []

    def look() -> None:
        seen.append(tags.current())

    with tag("report"):
        work = [look, bind(look)]
    for target in work:
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    assert seen == [None, "report"]


def test_isolated_work_has_its_callers_tag() -> None:
    """Our workers carry it, and the call is the key's."""
    block = TimedBlock("isolated", Policy(isolation="thread"))
    with tag("report"):
        assert block.call(tags.current) == "report"
    assert block.parts()["report"].histogram.answered_total == 1


def test_tasks_have_their_own() -> None:
    """Two tasks at once; one that was started inside keeps the tag after it was left."""

    async def look(turns: int) -> str | None:
        for _ in range(turns):
            await asyncio.sleep(0)
        return tags.current()

    async def tagged(name: str) -> str | None:
        with tag(name):
            return await look(3)

    async def main() -> list[str | None]:
        with tag("around"):
            inside = asyncio.ensure_future(look(5))
        return [*await asyncio.gather(tagged("a"), tagged("b"), look(2)), await inside]

    assert asyncio.run(main()) == ["a", "b", None, "around"]


def test_a_generators_tag_left_out_of_turn_is_no_longer_in_force() -> None:
    """Entered inside of another one, and left after it."""

    def generator() -> Iterator[None]:
        with tag("generator"):
            yield

    with tag("outer"):
        running = generator()
        next(running)
        with tag("inner"):
            running.close()
            assert tags.current() == "inner"
        assert tags.current() == "outer"
    assert tags.current() is None


def test_a_tag_left_in_another_context_is_left_alone() -> None:
    """A generator that is closed elsewhere: nothing raises, nobody else's tag ends."""
    report = tag("report")
    contextvars.copy_context().run(report.__enter__)
    with tag("here"):
        report.__exit__(None, None, None)
        assert tags.current() == "here"


@pytest.mark.parametrize("name", ["", "a b", "x" * 101, "é", "/x", "new\nline"])
def test_a_bad_name_is_refused_by_name(name: str) -> None:
    """At once, naming it."""
    with pytest.raises(ValueError, match="a tag must be"):
        tag(name)
    with pytest.raises(ValueError, match="the key of a call must be"):
        TimedBlock("b").begin(key=name)


def test_a_tag_that_is_no_text_is_a_type_error() -> None:
    """None, a number."""
    for name in (None, 1, b"report"):
        with pytest.raises(TypeError, match="a tag must be a str"):
            tag(name)  # type: ignore[arg-type]


# -- limits of their own ----------------------------------------------------------------------


def test_each_key_learns_and_uses_its_own_limit(clock: FakeClock) -> None:
    """Reports take ten times as long; neither limit is the other's."""
    block = TimedBlock("b", LEARNT)
    _answers(block, clock, 0.04)
    with tag("report"):
        _answers(block, clock, 0.4)
        assert block.begin().limit == pytest.approx(0.8, rel=0.03)
        with tag("quick"):
            _answers(block, clock, 0.03)
            assert block.begin().limit == pytest.approx(0.06, rel=0.03)
    assert block.begin().limit == pytest.approx(0.08, rel=0.03)
    assert set(block.parts()) == {"report", "quick"}


def test_every_way_of_calling_uses_the_key(clock: FakeClock) -> None:
    """call, with, a decorator, coroutines, begin: limit and sample are the key's."""
    block = TimedBlock("b", LEARNT)
    _answers(block, clock, 0.04)
    seen: list[float] = []

    def work() -> None:
        seen.extend(call.limit for call in block.in_flight)
        clock.advance(0.01)

    async def later() -> None:
        work()

    async def entered() -> None:
        async with block:
            work()

    with tag("report"):
        _answers(block, clock, 0.4)
        part = block.parts()["report"]
        before = part.histogram.answered_total
        block.call(work)
        with block:
            work()
        block(work)()
        asyncio.run(block.acall(later))
        asyncio.run(entered())
        call = block.begin()
        work()
        call.succeeded()
    assert seen == [pytest.approx(0.8, rel=0.03)] * 6
    assert part.histogram.answered_total == before + 6
    assert not block.in_flight


def test_errors_inside_a_with_block_are_the_keys(clock: FakeClock) -> None:
    """What runs into the key's limit is cut by it, censored there, and says so."""
    block = TimedBlock("b", LEARNT)
    _answers(block, clock, 0.04)
    with tag("report"):
        _answers(block, clock, 0.4)
        part = block.parts()["report"]
        with pytest.raises(DeadlineExceeded, match=r"learnt for report: p99\.5 × 2"), block:
            clock.advance(0.9)
            raise TimeoutError
        with pytest.raises(KeyError), block:
            raise KeyError
    assert (part.histogram.cut_total, block.histogram.cut_total) == (1, 0)
    assert not block.in_flight


def test_a_wrappers_key_and_a_tag_are_both(clock: FakeClock) -> None:
    """A size class inside a report is the report's size class."""
    block = TimedBlock("b", LEARNT)
    block.begin(key="100_keys").succeeded()
    with tag("t" * 100):  # together longer than either may be
        block.begin(key="100_keys").succeeded()
        block.begin(limit=0.5).succeeded()
    assert list(block.parts()) == ["100_keys", "t" * 100 + "/100_keys", "t" * 100]


def test_under_min_samples_a_key_uses_the_blocks_window_as_a_whole(clock: FakeClock) -> None:
    """From its first call on, and until it has enough of its own; a block uses its keys' too."""
    block = TimedBlock("b", LEARNT)
    with tag("known"):
        _answers(block, clock, 0.1)
    with tag("new"):
        assert block.begin().limit == pytest.approx(0.2, rel=0.03)
        assert block.parts()["new"].learnt.pooled
    _answers(block, clock, 0.01, count=1)
    clock.advance(SLICE)
    block.call(clock.advance, 0.01)
    assert block.begin().limit == pytest.approx(0.2, rel=0.03)


def test_a_key_that_is_slower_than_its_block_is_not_cut_for_ever(clock: FakeClock) -> None:
    """A report a minute, twenty times as slow as the rest."""
    block = TimedBlock("b", Policy(timeout=Percentile(min_samples=20), breaker=None))
    outcomes = []
    for _ in range(20):
        for _ in range(60):
            block.call(clock.advance, 0.02)
            clock.advance(0.98)
        with tag("report"):
            call = block.begin()
            took = min(0.4, call.limit)
            clock.advance(took)
            if took < 0.4:
                call.failed(TimeoutError())
            else:
                call.succeeded()
            outcomes.append(took == 0.4)
    assert all(outcomes[6:])
    assert block.limit == pytest.approx(0.05)


def test_without_enough_anywhere_a_key_has_the_initial_limit(clock: FakeClock) -> None:
    """Nothing is known: nothing is guessed."""
    block = TimedBlock("b", Policy(timeout=Percentile(initial=0.7)))
    with tag("report"):
        assert block.begin().limit == pytest.approx(0.7)


def test_keys_of_an_endpoint_pool_with_their_kind(clock: FakeClock) -> None:
    """A new key of a rare operation begins with what the store's other operations take."""
    place = Endpoint("127.0.0.1:1", None, clock)
    busy = TimedBlock("store.get", Policy(breaker=None), endpoint=place)
    rare = TimedBlock("store.touch", Policy(breaker=None), endpoint=place)
    with tag("report"):
        _answers(busy, clock, 0.1)
        assert rare.begin().limit == pytest.approx(0.2, rel=0.03)


def test_a_limit_that_is_not_learnt_has_no_keys(clock: FakeClock) -> None:
    """Fixed is fixed."""
    for timeout in (Fixed(0.5), None):
        block = TimedBlock("b", Policy(timeout=timeout))
        with tag("report"):
            block.call(int)
        block.begin(key="10_keys").succeeded()
        assert not block.parts()


# -- what is shared ---------------------------------------------------------------------------


def test_keys_share_the_breaker_the_bulkhead_and_the_counts(clock: FakeClock) -> None:
    """They are the same work on the same store."""
    block = TimedBlock("shared", Policy(breaker=Breaker(failures=2), bulkhead=1))
    held = block.begin()
    with tag("report"), pytest.raises(Overloaded):
        block.call(int)
    held.abandoned()
    for name in ("a", "b"):
        clock.advance(0.1)
        with tag(name), pytest.raises(OSError):
            block.call(_fail)
    assert block.circuit is not None
    assert block.circuit.state == OPEN
    clock.advance(1.0)
    with tag("a"):
        block.call(clock.advance, 0.7)
    assert block.circuit.state == "closed"
    block.call(int)
    found = stats()["blocks"]["shared"]
    assert (found["calls"], found["ok"], found["unwell"]) == (5, 2, 2)
    assert found["keys"]["a"]["ok"] == 1


def _fail() -> None:
    raise OSError


def test_an_outage_is_taken_out_of_every_keys_window(clock: FakeClock) -> None:
    """And the probe teaches the key that it was of."""
    block = TimedBlock("b", Policy(timeout=Percentile(min_samples=50), breaker=Breaker(failures=1)))
    with tag("report"):
        _answers(block, clock, 0.1)
        limit, part = block.begin().limit, block.parts()["report"]
    with pytest.raises(OSError):
        block.call(_fail)
    clock.advance(60.0)
    with tag("report"):
        block.call(clock.advance, 0.7)
        assert part.limit == pytest.approx(limit)
        clock.advance(SLICE)
        block.call(clock.advance, 0.1)
    assert part.histogram.answered == 203
    assert part.histogram.quantiles(1.0)[0] == pytest.approx(0.7, rel=0.03)


def test_the_budget_counts_the_calls_of_every_key(clock: FakeClock) -> None:
    """Repeats are earned by all of them; so are the breaker's rates."""
    block = TimedBlock("b", LEARNT)
    with tag("report"):
        for _ in range(100):
            block.call(int)
    assert block.budget.allowed(clock.now()) == pytest.approx(9.5)
    assert block._answered_within(clock.now(), 10.0) == 100


def test_keys_follow_their_blocks_policy(clock: FakeClock) -> None:
    """What configuration changes holds for all of it, and what was learnt stays learnt."""
    block = TimedBlock("b", LEARNT)
    with tag("report"):
        _answers(block, clock, 0.4)
        block.reconfigure(Policy(timeout=Percentile(ceiling=0.5, min_samples=50), bulkhead=3))
        assert block.begin().limit == pytest.approx(0.5)
        assert block.parts()["report"].bulkhead == 3
        block.reconfigure(Policy(timeout=Percentile(min_samples=50)), observing=True)
        assert block.begin().limit == pytest.approx(1.0)
        block.reconfigure(Policy(timeout=Fixed(0.3)))
        assert block.begin().limit == pytest.approx(0.3)


def test_stats_tell_the_keys(clock: FakeClock) -> None:
    """Each with its limit and percentiles; the block's percentiles are of all calls."""
    block = TimedBlock("told", LEARNT)
    _answers(block, clock, 0.04)
    with tag("report"):
        _answers(block, clock, 0.4)
    found = stats()["blocks"]["told"]
    assert found["keys"] == {
        "report": {
            "ok": 201,
            "limit": pytest.approx(0.8, rel=0.03),
            "limit_source": "learnt",
            "p50": pytest.approx(0.4, rel=0.03),
            "p95": pytest.approx(0.4, rel=0.03),
            "p99": pytest.approx(0.4, rel=0.03),
        }
    }
    assert (found["ok"], found["limit"]) == (402, pytest.approx(0.08, rel=0.03))
    assert found["p95"] == pytest.approx(0.4, rel=0.03)


def test_a_listener_is_told_whose_limit_changed(clock: FakeClock) -> None:
    """LimitChanged has the key."""
    heard: list[LimitChanged] = []
    block = TimedBlock("b", LEARNT)
    end = events.subscribe(lambda one: heard.append(one) if isinstance(one, LimitChanged) else None)
    try:
        with tag("report"):
            _answers(block, clock, 0.4)
    finally:
        end()
    assert {one.key for one in heard} == {"report"}


# -- bounds -----------------------------------------------------------------------------------


def test_past_the_bound_keys_are_other(clock: FakeClock) -> None:
    """A tag per user by mistake costs 64 windows, not a million; "other" learns too."""
    block = TimedBlock("b", LEARNT)
    for number in range(3 * MOST_KEYS):
        with tag(f"user-{number}"):
            block.call(clock.advance, 0.3)
    assert len(block.parts()) == MOST_KEYS + 1
    other = block.parts()["other"]
    assert other.histogram.answered_total == 2 * MOST_KEYS
    with tag("user-1"):
        block.call(clock.advance, 0.3)
    assert block.parts()["user-1"].histogram.answered_total == 2


def test_an_endpoints_operations_share_the_bound(clock: FakeClock) -> None:
    """64 of them together, and "other" of each; another client's block finds the same keys."""
    place = Endpoint("127.0.0.1:1", None, clock)
    blocks = [
        TimedBlock(f"store.{name}", Policy(breaker=None), endpoint=place) for name in "abcdefgh"
    ]
    for number in range(20):
        with tag(f"t{number}"):
            for block in blocks:
                block.call(int)
    named = sum(key != "other" for block in blocks for key in block.parts())
    assert named == MOST_KEYS
    twin = TimedBlock("store.a", Policy(breaker=None), endpoint=place)
    with tag("t0"):
        twin.call(int)
    assert twin.parts()["t0"].histogram is blocks[0].parts()["t0"].histogram


def test_blocks_without_keys_hold_none(clock: FakeClock) -> None:
    """No window is made before it is used."""
    block = TimedBlock("b", LEARNT)
    with tag("report"):
        pass
    block.call(int)
    assert not block.parts()
    assert block._operation.histograms() == [block.histogram]


def test_a_block_that_is_gone_takes_its_keys_along(clock: FakeClock) -> None:
    """Nobody else holds them."""
    block = TimedBlock("b", LEARNT)
    with tag("report"):
        block.call(int)
    part = weakref.ref(block.parts()["report"])
    with time_limit(1.0):
        del block
        gc.collect()
    assert part() is None


def test_threads_make_a_key_once(clock: FakeClock, untraced: None) -> None:
    """All of them learn in one window, however they race."""
    block, gate = TimedBlock("raced", LEARNT), threading.Barrier(8)

    def work(_: int) -> None:
        gate.wait(30)
        for number in range(100):
            with tag(f"t{number % 70}"):
                block.call(int)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(block.parts()) == MOST_KEYS + 1
    assert stats()["blocks"]["raced"]["ok"] == 800
    for key, part in block.parts().items():
        assert block._operation.keys[key].histogram is part.histogram


# -- size classes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "size", "expected"),
    [
        (1, 0, None),
        (9, 9_999, None),
        (10, 500, "10_keys"),
        (99, 9_999, "10_keys"),
        (100, 0, "100_keys"),
        (250_000, 10**7, "1000_keys"),
        (1, 10_000, "10_kB"),
        (1, 999_999, "100_kB"),
        (1, 10**8, "1000_kB"),
        (20, 50_000, "10_kB"),
        (20, 20_000, "10_keys"),
    ],
)
def test_requests_of_a_size_are_a_class(keys: int, size: int, expected: str | None) -> None:
    """Powers of ten of keys or of kilobytes, of which there are more; small ones have none."""
    assert size_class(keys, size) == expected


def test_memcached_requests_learn_by_size() -> None:
    """Many keys and large values have limits of their own, on one node and on several."""
    many = {f"k{number}": b"v" for number in range(120)}
    with EmbeddedMemcached() as one, EmbeddedMemcached() as two:
        client = memcache.Client(one.address, name="by-size")
        ring = memcache.HashClient([one.address, two.address], name="by-size-ring")
        for each in (client, ring):
            each.set("small", b"v")
            each.set("large", b"v" * 200_000)
            each.set_many(many)
            with tag("report"):
                assert each.get_many(many) == many
            assert each.get_many(["small"]) == {"small": b"v"}
            each.delete_many(many)
        blocks = stats()["blocks"]
        client.close()
        ring.close()
    found = {name: block["keys"] for name, block in blocks.items() if name.startswith("by-size")}
    assert set(found["by-size.set"]) == {"100_kB"}
    assert set(found["by-size.set_many"]) == {"100_keys"}
    assert set(found["by-size.get_many"]) == {"report/100_keys"}
    assert set(found["by-size.delete_many"]) == {"100_keys"}
    assert blocks["by-size.get_many"]["ok"] == 2
    for name in ("set_many", "delete_many"):
        assert set(found[f"by-size-ring.{name}"]) <= {"10_keys", "100_keys"}
        assert found[f"by-size-ring.{name}"]
    assert all(key.startswith("report/") for key in found["by-size-ring.get_many"])
