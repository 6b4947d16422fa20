"""`timedblock.rabbitmq.Client` shared by threads that are interrupted anywhere, forked, closed.

No wall time is asserted: a failure here is never the machine's.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import ModuleType
from typing import Any

import pytest

from tests.interrupts import every_line
from tests.property.crowd import Crowd, until
from tests.servers.memcached import stop
from timedblock import Fixed, Policy, Unavailable, block, call, deadline, rabbitmq
from timedblock.rabbitmq import batching, calling, client, encoding, engine, request
from timedblock.testing.rabbitmq import Broker, why_not

pytestmark = [
    pytest.mark.server,
    # a socket that was lost to an interrupt is closed by the collector: that is the design
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
LIMIT = 2.0
#: What a call runs through on its caller's thread.
MODULES = [block, call, calling, client, engine, request]


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with Broker() as one:
        yield one


class Store:
    """The test's own hand on the broker: queues, and what is in them."""

    def __init__(self, broker: Broker) -> None:
        self._connection = broker.connect()
        self.channel = self._connection.channel()
        self.channel.confirm_delivery()

    def queue(self) -> str:
        """A queue of one's own, which goes with this hand."""
        made: str = self.channel.queue_declare("", auto_delete=False).method.queue
        return made

    def drain(self, queue: str) -> list[bytes]:
        """The messages of a queue, which is empty then."""
        count = self.channel.queue_declare(queue, passive=True).method.message_count
        found = []
        for _, _, body in self.channel.consume(queue, auto_ack=True, inactivity_timeout=5):
            if body is None:
                break
            found.append(body)
            if len(found) == count:
                break
        self.channel.cancel()
        return found

    def fill(self, queue: str, bodies: list[bytes]) -> None:
        for body in bodies:
            self.channel.basic_publish("", queue, body)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def store(broker: Broker) -> Iterator[Store]:
    with contextlib.closing(Store(broker)) as hand:
        yield hand


def _shared(broker: Broker, **options: Any) -> rabbitmq.Client:
    policy = Policy(timeout=Fixed(LIMIT), breaker=None)
    return rabbitmq.Client(broker.address, name="struck", policy=policy, timeout=LIMIT, **options)


def _assert_whole(shared: rabbitmq.Client, queue: str) -> None:
    """Every operation has its answer, and no place is taken."""
    _works(shared, queue)
    gc.collect()

    def free() -> bool:
        shared._recount()  # as before anybody is refused
        return not shared._unconfirmed

    assert until(free), "a message's place was lost"
    assert shared.health()["unconfirmed"] == 0
    for one in shared._blocks.values():
        one.sweep()
        assert not one.in_flight, one


def _works(shared: rabbitmq.Client, queue: str) -> None:
    shared.purge(queue)
    shared.publish("", queue, b"whole")
    taken = shared.get(queue)
    assert taken is not None and taken.body == b"whole"
    assert shared.publish_async("", queue, b"whole").result(10) is None
    assert [report.ok for report in shared.publish_many([("", queue, b"x")] * 3)] == [True] * 3
    assert shared.purge(queue) == 4


# -- interrupts -------------------------------------------------------------------------------


class _Load:
    """What interrupted threads do with one client, and what they know of it afterwards."""

    def __init__(self, shared: rabbitmq.Client, into: str, out_of: str) -> None:
        self.shared, self.into, self.out_of = shared, into, out_of
        self.confirmed: list[bytes] = []
        self.unsent: list[bytes] = []
        self.taken: list[bytes] = []
        self.wrong: list[str] = []

    def work(self, rng: random.Random) -> None:
        body = b"%d " % rng.getrandbits(64) + b"x" * rng.randrange(500)
        try:
            way = rng.randrange(5)
            if way == 0:
                self.shared.publish("", self.into, body)
                self.confirmed.append(body)
            elif way == 1:
                self.shared.publish_async("", self.into, body).result(LIMIT + 10)
                self.confirmed.append(body)
            elif way == 2:
                self._many(body)
            elif way == 3:
                self._get()
            else:
                name = self.shared.declare_queue(self.into, passive=True)
                if name != self.into:
                    self.wrong.append(f"declare_queue gave {name}")
        except Unavailable as error:
            if not error.sent and way < 2:
                self.unsent.append(body)

    def _many(self, body: bytes) -> None:
        bodies = [body + b" %d" % number for number in range(3)]
        reports = self.shared.publish_many([("", self.into, one) for one in bodies])
        for one, report in zip(bodies, reports, strict=True):
            if report.ok:
                self.confirmed.append(one)

    def _get(self) -> None:
        taken = self.shared.get(self.out_of)
        if taken is None:
            return
        if not taken.body.startswith(b"given "):
            self.wrong.append(f"get gave {taken.body[:40]!r}")
        elif not taken.redelivered:
            self.taken.append(taken.body)


def test_no_wrong_answer_and_nothing_lost_under_interrupts(
    broker: Broker, store: Store, eager_switches: None, no_leaks: None
) -> None:
    """Eight threads publish, get and declare through one client while interrupts strike: what was
    confirmed is there, what was told unsent is not, no message comes twice unmarked, and no place
    of a message or a call is lost."""
    into, out_of = store.queue(), store.queue()
    store.fill(out_of, [b"given %d" % number for number in range(300)])
    with _shared(broker) as shared:
        shared.get(into)  # CPython can't start a thread and be interrupted
        load = _Load(shared, into, out_of)
        crowd = Crowd(load.work, seed=5)
        crowd.run(5.0, 600)
        assert crowd.wrong == load.wrong == []
        assert crowd.interrupts > 300
        assert len(load.confirmed) > 100 and load.taken
        there = set(store.drain(into))
        assert set(load.confirmed) <= there
        assert not set(load.unsent) & there
        assert len(set(load.taken)) == len(load.taken)
        del crowd, load
        _assert_whole(shared, into)


def _each(*modules: ModuleType) -> pytest.MarkDecorator:
    def name(module: ModuleType) -> str:
        return module.__name__.rpartition(".")[2]

    return pytest.mark.parametrize("module", modules, ids=name)


@pytest.fixture
def single(
    broker: Broker, store: Store, untraced: None, no_leaks: None
) -> Iterator[tuple[rabbitmq.Client, str]]:
    """A client with a single place for a message: one that is lost is missed at once."""
    queue = store.queue()
    with _shared(broker, max_unconfirmed=1) as shared:
        shared.publish("", queue, b"x")
        shared.purge(queue)
        yield shared, queue
    deadline.put(None)  # what a struck exit left, which limits nothing
    gc.collect()


def _next_is_right(shared: rabbitmq.Client, queue: str) -> None:
    """The next calls have their answers; a message that an interrupted call left in flight may
    take its place a little longer."""
    body = b"next %d" % random.getrandbits(64)
    end = time.monotonic() + 10
    while True:
        try:
            shared.publish("", queue, body)
            break
        except rabbitmq.Overloaded:
            assert time.monotonic() < end, "the only place is lost"
            time.sleep(0.001)
    found = None
    while found != body:
        taken = shared.get(queue)
        assert taken is not None
        found = taken.body
    assert deadline.remaining() is None


@_each(*MODULES, encoding)
def test_a_publish_struck_at_every_line(
    single: tuple[rabbitmq.Client, str], module: ModuleType
) -> None:
    """The next publish and get are right, and the only place of a message is free."""
    shared, queue = single
    for _ in every_line(module, lambda: lambda: shared.publish("", queue, b"struck")):
        _next_is_right(shared, queue)
    _assert_whole(shared, queue)


@_each(block, calling, client, engine, request)
def test_a_publish_async_struck_at_every_line(
    single: tuple[rabbitmq.Client, str], module: ModuleType
) -> None:
    """Handing it over and waiting for its future."""
    shared, queue = single

    def publish() -> None:
        shared.publish_async("", queue, b"struck").result(10)

    def prepare() -> Callable[[], None]:
        return publish

    for _ in every_line(module, prepare):
        _next_is_right(shared, queue)
    _assert_whole(shared, queue)


@_each(batching, block, call, calling, engine, request)
def test_a_publish_many_struck_at_every_line(
    single: tuple[rabbitmq.Client, str], module: ModuleType
) -> None:
    """Encoding, feeding and waiting for a batch."""
    shared, queue = single
    batch = [("", queue, b"struck")] * 3
    for _ in every_line(module, lambda: lambda: shared.publish_many(batch)):
        _next_is_right(shared, queue)
    _assert_whole(shared, queue)


@_each(*MODULES)
def test_a_get_struck_at_every_line(
    single: tuple[rabbitmq.Client, str], store: Store, module: ModuleType
) -> None:
    """What a struck get took was not returned, so it may be gone; whatever else is there stays."""
    shared, queue = single
    other = store.queue()
    for _ in every_line(module, lambda: lambda: shared.get(other)):
        _next_is_right(shared, queue)
    _assert_whole(shared, queue)


@_each(block, call, calling, client, engine, request)
def test_a_publish_that_connects_struck_at_every_line(
    single: tuple[rabbitmq.Client, str], module: ModuleType
) -> None:
    """Making the I/O thread, and waiting for its connection."""
    shared, queue = single

    def prepare() -> Callable[[], object]:
        shared.close()
        return lambda: shared.publish("", queue, b"struck")

    for _ in every_line(module, prepare):
        _next_is_right(shared, queue)
    _assert_whole(shared, queue)


@_each(calling, client, request)
def test_a_publish_that_is_cut_struck_at_every_line(
    broker: Broker, store: Store, single: tuple[rabbitmq.Client, str], module: ModuleType
) -> None:
    """No confirm in time: the request is given up, and the error made."""
    shared, queue = single
    other = store.queue()  # what was cut comes late

    def cut() -> None:
        with contextlib.suppress(Unavailable), deadline.time_limit(0.02):
            shared.publish("", other, b"struck")

    def prepare() -> Callable[[], None]:
        stop(broker.pid)
        return cut

    try:
        for _ in every_line(module, prepare):
            os.kill(broker.pid, signal.SIGCONT)
            _next_is_right(shared, queue)
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    _assert_whole(shared, queue)


def test_a_lock_that_an_interrupt_left_taken_stops_nobody(
    broker: Broker, store: Store, no_leaks: None
) -> None:
    """A thread struck in `concurrent.futures.wait` may leave its future's lock taken for ever; the
    I/O thread has the others to serve."""
    queue = store.queue()
    with _shared(broker) as shared:
        shared.publish("", queue, b"first")
        with broker.paused():
            future = shared.publish_async("", queue, b"x")
            future._condition.acquire()
        assert future.result(10) is None
        _assert_whole(shared, queue)
        future._condition.release()


# -- forked, closed, dropped --------------------------------------------------------------------


class _Publishers:
    """Threads that publish until told to end, and what they know of their messages."""

    def __init__(self, shared: rabbitmq.Client, queue: str) -> None:
        self._shared, self._queue = shared, queue
        self._end = threading.Event()
        self.confirmed: list[bytes] = []
        self.unsent: list[bytes] = []
        self.wrong: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(6)]

    def _run(self, number: int) -> None:
        count = 0
        while not self._end.is_set():
            count += 1
            body = b"%d:%d" % (number, count)
            try:
                if number % 2:
                    self._shared.publish("", self._queue, body)
                else:
                    self._shared.publish_async("", self._queue, body).result(LIMIT + 10)
                self.confirmed.append(body)
            except Unavailable as error:
                if not error.sent:
                    self.unsent.append(body)
            except Exception as error:
                self.wrong.append(repr(error))

    def __enter__(self) -> _Publishers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(LIMIT + 20)
        assert not any(thread.is_alive() for thread in self._threads), "a publish hangs"


def _assert_told_right(told: _Publishers, there: list[bytes]) -> None:
    assert told.wrong == []
    assert set(told.confirmed) <= set(there)
    assert not set(told.unsent) & set(there)


def _child(shared: rabbitmq.Client, queue: str, body: bytes) -> int:
    """A forked child's pid; it ends with 0 if its own publish is confirmed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            shared.publish("", queue, body)
            shared.close()
            status = 0
        os._exit(status)
    return pid


def _ended(pid: int) -> int:
    end = time.monotonic() + 30
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(found[1])


def test_a_fork_in_mid_publish(broker: Broker, store: Store, no_leaks: None) -> None:
    """Children that are forked while six threads publish have a connection of their own; the
    parent's messages are none the worse for it."""
    queue = store.queue()
    bodies = [b"child %d" % number for number in range(5)]
    with _shared(broker) as shared:
        shared.publish("", queue, b"first")
        with _Publishers(shared, queue) as told:
            children = [_child(shared, queue, body) for body in bodies]
            codes = [_ended(pid) for pid in children]
        assert codes == [0] * len(bodies)
        _assert_told_right(told, there := store.drain(queue))
        assert told.confirmed and set(bodies) <= set(there)
        assert len(set(there)) == len(there), "a message went twice"
        _assert_whole(shared, queue)


def test_a_close_while_others_publish(broker: Broker, store: Store, no_leaks: None) -> None:
    """Whose message was in flight is told so, whoever comes later connects again, nobody hangs."""
    queue = store.queue()
    with _shared(broker) as shared:
        with _Publishers(shared, queue) as told:
            for _ in range(20):
                time.sleep(0.05)
                shared.close()
        assert len(told.confirmed) > 20
        _assert_told_right(told, store.drain(queue))
        _assert_whole(shared, queue)


def test_a_callback_publishes_the_next(broker: Broker, store: Store, no_leaks: None) -> None:
    """A future's callback may hand in the next message: a chain of a hundred."""
    queue = store.queue()
    over = threading.Event()
    errors: list[BaseException] = []
    with _shared(broker) as shared:

        def publish(left: int) -> None:
            future = shared.publish_async("", queue, b"%d" % left)
            future.add_done_callback(lambda done: confirmed(done, left))

        def confirmed(done: Future[None], left: int) -> None:
            error = done.exception()
            if error is not None:
                errors.append(error)
            if error is not None or not left:
                over.set()
            else:
                publish(left - 1)

        publish(99)
        assert over.wait(30)
        assert errors == []
        assert store.drain(queue) == [b"%d" % number for number in range(99, -1, -1)]
        _assert_whole(shared, queue)


def test_a_callback_that_waits_ends(broker: Broker, store: Store, no_leaks: None) -> None:
    """A blocking call in a callback would wait for the thread that it is on: it ends all the
    same, honestly, and the next call is right."""
    queue = store.queue()
    found: list[BaseException] = []
    over = threading.Event()
    with _shared(broker) as shared:
        shared.get(queue)

        def confirmed(done: Future[None]) -> None:
            for ask in (lambda: shared.get(queue), lambda: shared.publish("", queue, b"inner")):
                try:
                    ask()
                except (Unavailable, RuntimeError) as error:
                    found.append(error)
            over.set()

        shared.publish_async("", queue, b"outer").add_done_callback(confirmed)
        assert over.wait(2 * LIMIT + 10)
        assert len(found) == 2
        _assert_whole(shared, queue)


def test_a_callback_that_raises_harms_nobody(
    broker: Broker, store: Store, no_leaks: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The other futures are done, and the client goes on."""
    queue = store.queue()

    def raises(done: Future[None]) -> None:
        raise ValueError("a callback's own")

    with _shared(broker) as shared:
        futures = [shared.publish_async("", queue, b"x") for _ in range(10)]
        for future in futures:
            future.add_done_callback(raises)
        assert [future.result(10) for future in futures] == [None] * 10
        _assert_whole(shared, queue)


def test_a_dropped_client_leaves_no_future_undone(
    broker: Broker, store: Store, no_leaks: None
) -> None:
    """Futures of a client that is gone are done in time, and its thread ends with them."""
    queue = store.queue()
    for pause in (contextlib.nullcontext(), broker.paused()):
        shared = _shared(broker)
        shared.publish("", queue, b"first")
        with pause:
            futures = [shared.publish_async("", queue, b"%d" % number) for number in range(50)]
            del shared
            gc.collect()
            errors = [future.exception(LIMIT + 10) for future in futures]
        assert all(error is None or isinstance(error, Unavailable) for error in errors)
    there = store.drain(queue)
    assert len(there) >= sum(error is None for error in errors)
