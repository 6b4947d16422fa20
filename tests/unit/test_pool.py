"""The pool: lazy, bounded, last in first out, and no connection is lost or used twice."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from timedblock import Breaker, Fixed, Policy, TimedBlock, time_limit
from timedblock.endpoint import Endpoint, endpoint
from timedblock.net.pool import STALE, ConnectTimeout, Pool, PoolFull
from timedblock.policy.breaker import HALF_OPEN, OPEN

pytestmark = pytest.mark.wall
LIMIT = 2.0


class _Conn:
    """A connection that remembers what was done to it."""

    def __init__(self) -> None:
        self.used = time.monotonic()
        self.calls = 0
        self.closed = self.dead = False

    def close(self) -> None:
        self.closed = True

    def is_dead(self) -> bool:
        return self.dead


class _Store:
    """What connects: as fast, and as well, as the test wants."""

    def __init__(self) -> None:
        self.made: list[_Conn] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.connects = 0

    def connect(self, seconds: float | None = None) -> _Conn:
        self.connects += 1
        self.gate.wait(10)
        if self.error is not None:
            raise self.error
        conn = _Conn()
        self.made.append(conn)
        return conn


class _Lab:
    def __init__(self, size: int, **options: float) -> None:
        self.store = _Store()
        self.endpoint: Endpoint = endpoint(f"pool-{id(self)}:1", Breaker(failures=1))
        self.pool: Pool[_Conn] = Pool(
            "pool-test", size, self.store.connect, self.endpoint, **options
        )
        self.block = TimedBlock("pool.get", Policy(timeout=Fixed(LIMIT)), endpoint=self.endpoint)

    def take(self, connect: float = LIMIT) -> _Conn:
        call = self.block.begin()
        try:
            return self.pool.take(call, lambda: connect)
        finally:
            call.abandoned()


@pytest.fixture
def lab() -> Iterator[_Lab]:
    """A pool of two."""
    lab = _Lab(2)
    yield lab
    lab.store.gate.set()


def _until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        threading.Event().wait(0.001)


def test_no_connection_before_the_first_use(lab: _Lab) -> None:
    """Making a pool connects nothing."""
    assert lab.store.connects == 0
    assert lab.pool.count() == {"size": 2, "open": 0, "idle": 0, "connecting": 0, "waiting": 0}


def test_a_connection_is_used_again_newest_first(lab: _Lab) -> None:
    """Last in, first out: the others go cold and are found stale."""
    first, second = lab.take(), lab.take()
    lab.pool.give(first)
    lab.pool.give(second)
    assert lab.take() is second
    assert lab.take() is first
    assert lab.store.connects == 2


def test_a_full_pool_lets_wait_and_then_says_so(lab: _Lab) -> None:
    """All in use: PoolFull, at the caller's deadline."""
    lab.take(), lab.take()
    held = [conn for conn in lab.store.made]
    began = time.monotonic()
    with time_limit(0.1), pytest.raises(PoolFull, match="all 2 connections"):
        lab.take()
    assert 0.09 <= time.monotonic() - began <= 0.1 + 0.25
    assert lab.pool.count()["waiting"] == 0
    assert len(held) == 2


def test_who_waits_gets_the_connection_that_comes_back(lab: _Lab) -> None:
    """First come, first served."""
    held = [lab.take(), lab.take()]
    got: list[tuple[int, _Conn]] = []

    def wait(number: int) -> None:
        conn = lab.take()
        got.append((number, conn))

    threads = []
    for number in range(2):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        _until(lambda number=number: lab.pool.count()["waiting"] == number + 1)  # type: ignore[misc]
    for number in range(2):
        lab.pool.give(held[number])
        _until(lambda number=number: len(got) == number + 1)  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert [number for number, _ in got] == [0, 1]
    assert lab.store.connects == 2


def test_a_connect_limit_is_for_connecting(lab: _Lab) -> None:
    """No connection within the connect limit: ConnectTimeout, and the connect goes on."""
    lab.store.gate.clear()
    with pytest.raises(ConnectTimeout):
        lab.take(connect=0.05)
    assert lab.pool.count()["connecting"] == 1
    lab.store.gate.set()
    _until(lambda: lab.pool.count()["idle"] == 1)
    assert lab.take() is lab.store.made[0]
    assert lab.store.connects == 1


def test_a_background_connect_grants_a_probe(lab: _Lab) -> None:
    """Nobody waits for it any more, and the breaker is open: half-open at once."""
    lab.store.gate.clear()
    with pytest.raises(ConnectTimeout):
        lab.take(connect=0.02)
    circuit = lab.endpoint.circuit
    assert circuit is not None
    circuit.force(OPEN, "test", time.monotonic())
    lab.store.gate.set()
    _until(lambda: circuit.state == HALF_OPEN)


def test_a_failed_connect_is_raised_to_who_waits(lab: _Lab) -> None:
    """The connect's own error, at once, and the next connect pauses."""
    lab.store.error = ConnectionRefusedError("no")
    began = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        lab.take()
    assert time.monotonic() - began < 0.25
    lab.store.error = None
    assert isinstance(lab.take(), _Conn)
    assert 0.09 <= time.monotonic() - began <= 0.1 + 0.25
    assert lab.pool.count()["connecting"] == 0


def test_failed_connects_dont_storm() -> None:
    """Eight callers at a refusing endpoint: a connect each 0.1 s, not one each."""
    lab = _Lab(8)
    lab.store.error = ConnectionRefusedError("no")
    with pytest.raises(ConnectionRefusedError):
        lab.take()
    end = time.monotonic() + 0.35

    def knock() -> None:
        while time.monotonic() < end:
            with time_limit(0.3), pytest.raises((ConnectionRefusedError, ConnectTimeout)):
                lab.take()

    threads = [threading.Thread(target=knock) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lab.store.connects <= 10


def test_a_connection_that_died_while_idle_isnt_used(lab: _Lab) -> None:
    """Idle for more than a second it is looked at; the older ones go with it."""
    first, second = lab.take(), lab.take()
    lab.pool.give(first)
    lab.pool.give(second)
    first.used -= 2 * STALE
    second.used -= STALE + 0.1
    second.dead = True
    third = lab.take()
    assert third not in (first, second)
    assert first.closed
    assert second.closed
    assert lab.pool.count()["open"] == 1


def test_a_connection_idle_too_long_is_closed() -> None:
    """pool_idle_timeout: older ones aren't used again."""
    lab = _Lab(2, idle_timeout=5.0)
    conn = lab.take()
    lab.pool.give(conn)
    conn.used -= 6
    assert lab.take() is not conn
    assert conn.closed


def test_a_discarded_connection_makes_room(lab: _Lab) -> None:
    """Who waits for a slot gets a fresh connection when one is thrown away."""
    held = [lab.take(), lab.take()]
    got: list[_Conn] = []
    thread = threading.Thread(target=lambda: got.append(lab.take()))
    thread.start()
    _until(lambda: lab.pool.count()["waiting"] == 1)
    lab.pool.discard(held.pop(), dead=False)
    thread.join(LIMIT)
    assert got == [lab.store.made[2]]


def test_a_lost_connection_gives_its_slot_back(lab: _Lab) -> None:
    """Dropped by an interrupt between two bytecodes: its slot is free when it is collected."""
    lab.take(), lab.take()
    lab.store.made.clear()
    gc.collect()
    assert lab.pool.count()["open"] == 0
    assert isinstance(lab.take(), _Conn)


def test_an_interrupt_in_the_submit_loses_no_place(
    lab: _Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KeyboardInterrupt while a connect is started: the place is free again."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(5):
        with monkeypatch.context() as patched:
            patched.setattr(lab.pool._workers, "submit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                lab.take()
    assert lab.pool.count() == {"size": 2, "open": 0, "idle": 0, "connecting": 0, "waiting": 0}
    assert {lab.take(), lab.take()} == set(lab.store.made)


def test_a_connect_that_began_before_an_interrupt_never_exceeds_the_size(
    lab: _Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt came after the worker had begun: its connection is used, or closed."""
    submit = lab.pool._workers.submit

    def interrupted(*arguments: object) -> None:
        submit(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    lab.store.gate.clear()
    with monkeypatch.context() as patched:
        patched.setattr(lab.pool._workers, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lab.take()
    threads = [threading.Thread(target=lab.take) for _ in range(2)]
    for thread in threads:
        thread.start()
    _until(lambda: lab.pool.count()["waiting"] == 2)
    lab.store.gate.set()
    for thread in threads:
        thread.join()
    _until(lambda: lab.pool.count()["connecting"] == 0 and lab.pool._workers.busy == 0)
    assert lab.pool.count()["open"] <= 2
    assert sum(not conn.closed for conn in lab.store.made) <= 2


def test_full_workers_are_waited_for(lab: _Lab) -> None:
    """Connects that hang fill the workers: ConnectTimeout in time, and all is well later."""
    lab.store.gate.clear()
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(ConnectTimeout):
            lab.take(connect=0.02)
        assert time.monotonic() - began < 0.02 + 0.25
    assert lab.store.connects <= 2
    lab.store.gate.set()
    assert isinstance(lab.take(), _Conn)


def test_clear_closes_what_is_idle(lab: _Lab) -> None:
    """close() of a client; the next use connects again."""
    conn = lab.take()
    lab.pool.give(conn)
    lab.pool.clear()
    assert conn.closed
    assert lab.pool.count()["open"] == 0
    assert lab.take() is not conn


def test_a_connect_that_nobody_wants_after_clear_is_closed(lab: _Lab) -> None:
    """close() while a connect is in flight: it isn't kept."""
    lab.store.gate.clear()
    with pytest.raises(ConnectTimeout):
        lab.take(connect=0.02)
    lab.pool.clear()
    lab.store.gate.set()
    _until(lambda: lab.pool.count()["connecting"] == 0)
    _until(lambda: bool(lab.store.made) and lab.store.made[0].closed)
    assert lab.pool.count()["open"] == 0


def test_an_adopted_connection_is_one_of_the_pools(lab: _Lab) -> None:
    """A connection that somebody else made is counted and used."""
    conn = _Conn()
    lab.pool.adopt(conn)
    assert lab.pool.count()["open"] == 1
    assert lab.take() is conn


def test_a_newcomer_doesnt_jump_the_line(lab: _Lab) -> None:
    """A connection that is idle while others wait goes to the first of them."""
    held = [lab.take(), lab.take()]
    order: list[str] = []

    def wait(name: str) -> None:
        conn = lab.take()
        order.append(name)
        lab.pool.give(conn)

    first = threading.Thread(target=wait, args=("first",))
    first.start()
    _until(lambda: lab.pool.count()["waiting"] == 1)
    lab.pool.idle.append(held[0])  # given back, not yet served
    second = threading.Thread(target=wait, args=("second",))
    second.start()
    first.join(LIMIT)
    second.join(LIMIT)
    assert order == ["first", "second"]


def test_after_a_fork_the_pool_is_empty_and_the_list_is_the_same(lab: _Lab) -> None:
    """The child closes its copies; who holds the list of idle ones sees the fresh pool."""
    idle = lab.pool.idle
    conn = lab.take()
    lab.pool.give(conn)
    lab.pool._lock.acquire()
    lab.pool.after_fork()
    assert conn.closed
    assert lab.pool.idle is idle
    assert idle == []
    assert lab.take() is not conn


def test_another_process_id_is_found_at_checkout(lab: _Lab) -> None:
    """Where no hook runs at a fork, the checkout notices."""
    conn = lab.take()
    lab.pool.give(conn)
    lab.pool.pid = -1
    assert lab.take() is not conn
    assert conn.closed


def test_a_repr_counts(lab: _Lab) -> None:
    """Active and idle."""
    lab.pool.give(lab.take())
    assert repr(lab.pool) == "<Pool: 0 active, 1 idle>"
