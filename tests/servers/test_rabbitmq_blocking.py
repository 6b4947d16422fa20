"""The drop-in `BlockingConnection` on a real broker: pika's results, limits under faults."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.adapters import blocking_connection, select_connection
from pika.adapters.utils import io_services_utils

from tests.interrupts import every_line, struck_at
from tests.servers.limits import TOLERANCE
from timedblock import Breaker, Fixed, Percentile, Policy, Unavailable, rabbitmq, stats, time_limit
from timedblock.faults import Bandwidth, Blackhole, Drip, Hang, Refuse, Reset, Silent
from timedblock.faults.plan import Fault
from timedblock.faults.proxy import Relay
from timedblock.rabbitmq import blocking
from timedblock.rabbitmq.blocking.lines import LINES
from timedblock.testing.rabbitmq import Broker

pytestmark = pytest.mark.server

LIMIT = 0.3
#: Seconds within which a raw call must not have ended, for the fault to bite.
BITES = 1.0
BIG = b"x" * 20_000_000


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What one test learnt is not the next one's past."""
    LINES.forget()
    yield
    LINES.forget()


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    with Relay() as one:
        yield one


def at(address: tuple[str, int], **more: Any) -> pika.ConnectionParameters:
    return pika.ConnectionParameters(*address, **more)


def ours(address: tuple[str, int], limit: float = LIMIT, **more: Any) -> Any:
    """A connection whose operations all have `limit`, and whose breaker doesn't matter."""
    policy = Policy(timeout=Fixed(limit), breaker=None)
    return rabbitmq.BlockingConnection(at(address, **more), policy=policy)


def timed(call: Callable[[], object]) -> tuple[object, float]:
    """What a call returned or raised, and after how many seconds."""
    began = time.monotonic()
    try:
        result = call()
    except Exception as error:
        result = error
    return result, time.monotonic() - began


# -- a healthy broker: what raw pika gives, ours gives ------------------------------------------


class Record:
    """What a scenario saw, without what differs from run to run."""

    def __init__(self, address: tuple[str, int], connect: Callable[..., Any]) -> None:
        self.address = address
        self.connect = lambda **more: connect(at(address, **more))
        self.seen: list[str] = []

    def note(self, value: object) -> None:
        text = re.sub(r"ctag\d+\.[0-9a-f]{32}", "ctag", repr(value))
        text = re.sub(r"amq\.gen-[\w-]+", "amq.gen", text)
        text = re.sub(r"0x[0-9a-f]+|\b\d{4,5}\b(?=[)'>,])", "…", text)
        self.seen.append(text)

    def do(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Note what a call returns or raises; what it returned."""
        try:
            result = call(*args, **kwargs)
        except Exception as error:
            self.note((type(error).__module__, type(error).__name__, str(error)))
            return None
        self.note(result)
        return result


def topology(record: Record) -> None:
    with record.connect() as connection, connection.channel() as channel:
        do = record.do
        do(channel.queue_declare, "c.q", durable=True)
        do(channel.queue_declare, "c.q", passive=True)
        do(channel.queue_declare, "", exclusive=True)
        for number in (1, 2):
            do(channel.exchange_declare, f"c.x{number}", "topic")
        do(channel.exchange_bind, "c.x2", "c.x1", "#")
        do(channel.queue_bind, "c.q", "c.x2", "a.*")
        do(channel.basic_publish, "c.x1", "a.b", b"x")
        connection.sleep(0.1)
        do(channel.queue_purge, "c.q")
        do(channel.queue_unbind, "c.q", "c.x2", "a.*")
        do(channel.exchange_unbind, "c.x2", "c.x1", "#")
        do(channel.queue_delete, "c.q", if_empty=True)
        for number in (1, 2):
            do(channel.exchange_delete, f"c.x{number}")


def messages(record: Record) -> None:
    with record.connect() as connection, connection.channel() as channel:
        do = record.do
        channel.queue_declare("c.q")
        properties = pika.BasicProperties(
            message_id="7", headers={"a": [1, {"b": "c"}]}, priority=3
        )
        do(channel.basic_publish, "", "c.q", "tëxt", properties)
        do(channel.basic_publish, "", "c.q", b"", mandatory=True)
        do(channel.basic_publish, "", "c.q", b"x" * 300_000)
        connection.sleep(0.1)
        method, _, _ = do(channel.basic_get, "c.q")
        do(channel.basic_nack, method.delivery_tag)
        method, _, _ = do(channel.basic_get, "c.q")
        do(channel.basic_ack, method.delivery_tag)
        method, _, _ = do(channel.basic_get, "c.q", auto_ack=True)
        method, _, body = do(channel.basic_get, "c.q") and channel.basic_get("c.q")
        record.note((method, body))
        do(channel.basic_recover, True)
        do(channel.basic_qos, prefetch_count=1)
        do(channel.flow, True)
        do(channel.basic_reject, 99)
        do(channel.basic_get, "c.q")
        connection.channel().queue_delete("c.q")


def confirms(record: Record) -> None:
    with record.connect() as connection:
        do, channel = record.do, connection.channel()
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        channel.queue_declare("c.full", arguments=full)
        do(channel.confirm_delivery)
        do(channel.confirm_delivery)
        for _ in range(3):
            do(channel.basic_publish, "", "c.full", b"x", mandatory=True)
        for key in ("nobody", "c.full"):
            try:
                channel.basic_publish("", key, b"body", mandatory=True)
            except (pika.exceptions.UnroutableError, pika.exceptions.NackError) as error:
                record.note([(one.method, one.body) for one in error.messages])
        do(channel.basic_publish, "", "nobody", b"body")
        do(channel.basic_publish, "nowhere", "c.full", b"x")
        do(channel.basic_publish, "", "c.full", b"x")
        channel = connection.channel()
        channel.queue_delete("c.full")
        channel.tx_select()
        do(channel.tx_commit)
        do(channel.tx_rollback)


def refusals(record: Record) -> None:
    with record.connect() as connection:
        do = record.do
        channel = connection.channel()
        do(channel.queue_declare, "nowhere", passive=True)
        record.note((channel.is_open, channel.is_closed, connection.is_open))
        for call in (channel.close, channel.tx_select, channel.start_consuming):
            do(call)
        do(channel.basic_ack, 1)
        do(channel.basic_publish, "", "c.q", b"x")
        channel = connection.channel()
        do(channel.queue_declare, None)
        do(channel.queue_declare, "c.q", durable=True)
        do(channel.basic_consume, "c.q", None)
        do(channel.basic_publish, "", "c.q", b"x", pika.BasicProperties(headers={"x": object()}))
        do(channel.queue_declare, "c.q", durable=False)
        do(connection.channel, 7)
        connection.channel().queue_delete("c.q")
        do(connection.channel().basic_publish, "nowhere", "k", b"x")
        do(connection.channel().exchange_declare, "c.x", "no such type")
        record.note((connection.is_open, connection.is_closed))


def ends(record: Record) -> None:
    do = record.do
    connection = record.connect()
    channel = connection.channel()
    do(channel.close)
    do(channel.close)
    do(connection.close)
    record.note((connection.is_open, connection.is_closed, channel.is_open))
    do(connection.close)
    do(connection.channel)
    do(connection.add_callback_threadsafe, print)
    do(connection.process_data_events, None)
    do(channel.queue_declare, "c.q")
    with contextlib.suppress(ZeroDivisionError), record.connect() as connection:
        1 / 0  # noqa: B018
    record.note(connection.is_open)
    do(record.connect, credentials=pika.PlainCredentials("guest", "wrong"))
    do(record.connect, virtual_host="nowhere")


def generator(record: Record) -> None:
    with record.connect() as connection:
        do, channel = record.do, connection.channel()
        channel.queue_declare("c.q")
        for number in range(5):
            channel.basic_publish("", "c.q", f"{number}")
        for method, properties, body in channel.consume("c.q", inactivity_timeout=0.2):
            record.note((method, properties, body))
            if method is None:
                break
            if method.delivery_tag == 1:
                do(channel.queue_declare, "c.q", passive=True)
                do(lambda: next(channel.consume("c.other")))
            if method.delivery_tag % 2:
                channel.basic_ack(method.delivery_tag)
        do(channel.get_waiting_message_count)
        do(channel.cancel)
        do(channel.cancel)
        channel.close()
        do(lambda: connection.channel().queue_purge("c.q"))
        do(lambda: next(connection.channel().consume("nowhere")))
        channel = connection.channel()
        consumer = channel.consume("c.q", auto_ack=True, inactivity_timeout=1)
        channel.basic_publish("", "c.q", b"last")
        do(lambda: next(consumer))
        connection.channel().queue_delete("c.q")
        do(lambda: next(consumer))


def callbacks(record: Record) -> None:
    with record.connect() as connection:
        do, channel = record.do, connection.channel()
        channel.queue_declare("c.q")
        for number in range(4):
            channel.basic_publish("", "c.q", f"{number}")

        def handler(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            record.note((method, properties, body, type(channel).__name__))
            channel.basic_ack(method.delivery_tag)
            if body == b"0":
                do(channel.start_consuming)
                do(connection.process_data_events, 0.05)
                do(channel.queue_declare, "c.q2")
                do(channel.basic_publish, "", "c.q2", b"from the handler")
            if body == b"3":
                do(channel.stop_consuming)

        tag = channel.basic_consume("c.q", handler, consumer_tag="mine")
        do(channel.basic_consume, "c.q", handler, consumer_tag="mine")
        record.note((tag, channel.consumer_tags))
        channel.add_on_cancel_callback(lambda frame: record.note(frame))
        do(channel.start_consuming)
        do(channel.basic_get, "c.q2", auto_ack=True)
        do(channel.basic_cancel, "unknown")
        channel.basic_consume("c.q2", handler, consumer_tag="theirs")
        connection.channel().queue_delete("c.q2")
        do(channel.start_consuming)
        do(connection.channel().queue_delete, "c.q")
        channel.add_on_return_callback(lambda *told: record.note(told[1:]))
        channel.basic_publish("", "nobody", b"back", mandatory=True)
        connection.sleep(0.2)


def timers(record: Record) -> None:
    connection = record.connect()
    do, order = record.do, []
    connection.call_later(0.1, lambda: order.append("second"))
    connection.call_later(0, lambda: order.append("first"))
    gone = connection.call_later(0, lambda: order.append("never"))
    connection.remove_timeout(gone)
    thread = threading.Thread(
        target=lambda: connection.add_callback_threadsafe(lambda: order.append("thread"))
    )
    connection.process_data_events()
    thread.start()
    thread.join()
    do(connection.sleep, 0.3)
    record.note(order)
    connection.call_later(0.05, connection.close)
    do(connection.process_data_events, 1)
    record.note(connection.is_open)
    connection = record.connect()
    channel = connection.channel()
    blocked = []
    connection.add_on_connection_blocked_callback(lambda *told: blocked.append(told[1].method.NAME))
    record.note((int(channel), channel.channel_number, channel.connection is connection))
    record.note([getattr(connection, name) for name in ("basic_nack", "publisher_confirms")])
    do(connection.update_secret, "guest", "because")
    connection.close()
    record.note(blocked)


SCENARIOS = [topology, messages, confirms, refusals, ends, generator, callbacks, timers]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
def test_results_are_those_of_pika(
    broker: Broker, no_leaks: None, scenario: Callable[[Record], None]
) -> None:
    """The same calls give the same values, errors, texts and callbacks, in the same order."""
    theirs = Record(broker.address, pika.BlockingConnection)
    mine = Record(broker.address, rabbitmq.BlockingConnection)
    scenario(theirs)
    scenario(mine)
    assert mine.seen == theirs.seen
    assert len(theirs.seen) > 5


def test_a_get_on_a_closed_channel_costs_no_more(broker: Broker, no_leaks: None) -> None:
    """pika sends it all the same, and RabbitMQ ends the connection for it; ours only raises."""

    def after_a_get(connection: Any) -> Any:
        channel = connection.channel()
        channel.close()
        with pytest.raises(pika.exceptions.ChannelWrongStateError, match="Channel is closed"):
            channel.basic_get("c.q")
        return connection.channel()

    with pytest.raises(pika.exceptions.ConnectionClosedByBroker):
        after_a_get(broker.connect())
    with ours(broker.address) as connection:
        assert after_a_get(connection).is_open


def test_it_is_one_of_pikas(broker: Broker, no_leaks: None) -> None:
    """Code that asks for pika's classes finds them."""
    with rabbitmq.BlockingConnection(at(broker.address)) as connection:
        assert isinstance(connection, pika.BlockingConnection)
        channel = connection.channel()
        assert isinstance(channel, pika.adapters.blocking_connection.BlockingChannel)
        assert isinstance(channel, rabbitmq.BlockingChannel)
        assert channel.connection is connection


# -- faults: each first proves that it bites raw pika -------------------------------------------

Operation = Callable[[Any], Callable[[], object]]


def confirming(connection: Any) -> Callable[[], object]:
    channel = connection.channel()
    channel.confirm_delivery()
    channel.basic_publish("", "faults", b"before")
    return lambda: channel.basic_publish("", "faults", b"x")


def consuming(connection: Any) -> Callable[[], object]:
    channel = connection.channel()
    return lambda: next(channel.consume("faults", inactivity_timeout=LIMIT))


#: What is done, on a connection that is made before the fault.
OPERATIONS: dict[str, Operation] = {
    "channel": lambda connection: connection.channel,
    "queue_declare": lambda connection: (
        lambda channel: lambda: channel.queue_declare("faults", passive=True)
    )(connection.channel()),
    "publish": confirming,
    "basic_get": lambda connection: (lambda channel: lambda: channel.basic_get("faults"))(
        connection.channel()
    ),
    "consume": consuming,
    "close_channel": lambda connection: connection.channel().close,
    "close": lambda connection: connection.close,
}


def publishing_much(connection: Any) -> Callable[[], object]:
    channel = connection.channel()
    return lambda: channel.basic_publish("", "faults", BIG)


@contextlib.contextmanager
def hanging(
    address: tuple[str, int], operations: dict[str, Operation], **more: Any
) -> Iterator[Any]:
    """Gives a function that starts `operations` on raw pika, and one that says which have ended."""
    ended: list[str] = []
    raw = {name: pika.BlockingConnection(at(address, **more)) for name in operations}
    calls = {name: make(raw[name]) for name, make in operations.items()}
    threads = []

    def run(name: str) -> None:
        with contextlib.suppress(Exception):
            calls[name]()
        ended.append(name)

    def start() -> float:
        for name in calls:
            threads.append(threading.Thread(target=run, args=(name,), daemon=True))
            threads[-1].start()
        return time.monotonic()

    try:
        yield start, ended
    finally:
        for connection in raw.values():
            with contextlib.suppress(Exception):
                connection._impl._transport._sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(20)
        for connection in raw.values():
            with contextlib.suppress(Exception):
                connection.close()


def held_to_the_limit(
    address: tuple[str, int], operations: dict[str, Operation], fault: Callable[[], Any]
) -> None:
    """Under `fault` each of `operations` hangs raw pika, and ends ours within its limit."""
    with contextlib.ExitStack() as stack:
        mine = {name: ours(address) for name in operations}
        calls = {name: make(mine[name]) for name, make in operations.items()}
        start, ended = stack.enter_context(hanging(address, operations))
        with fault():
            began = start()
            for name, call in calls.items():
                result, seconds = timed(call)
                assert isinstance(result, rabbitmq.DeadlineExceeded), (name, result)
                assert isinstance(result, pika.exceptions.AMQPConnectionError)
                assert result.sent
                assert seconds < LIMIT + TOLERANCE, name
                assert not mine[name].is_open and mine[name].is_closed
                closed = (
                    pika.exceptions.ConnectionWrongStateError,
                    pika.exceptions.ChannelWrongStateError,
                )
                again, seconds = timed(call)
                assert isinstance(again, (*closed, StopIteration)), (name, again)
                assert seconds < TOLERANCE
                again, seconds = timed(mine[name].process_data_events)
                assert isinstance(again, closed) and seconds < TOLERANCE
            time.sleep(max(0.0, began + BITES - time.monotonic()))
            assert not ended, "the fault doesn't bite"


@contextlib.contextmanager
def injected(link: Any, fault: Fault) -> Iterator[None]:
    """`fault` on a link; after it nothing of the old connections is left."""
    link.inject(fault)
    try:
        yield
    finally:
        link.close()


@pytest.fixture
def faults_queue(broker: Broker) -> Iterator[str]:
    with contextlib.closing(broker.connect()) as connection:
        connection.channel().queue_declare("faults")
    yield "faults"
    with contextlib.closing(broker.connect()) as connection:
        connection.channel().queue_delete("faults")


@pytest.mark.wall
@pytest.mark.parametrize(
    "fault",
    [Hang(), Hang("down"), Blackhole(), Silent(), Drip(1, 0.3)],
    ids=["hang", "one-way", "blackhole", "silent", "drip"],
)
def test_every_operation_ends_at_its_limit(
    broker: Broker, relay: Relay, faults_queue: str, no_leaks: None, fault: Fault
) -> None:
    """Whatever the network does: an error within the limit, and then a closed connection."""
    link = relay.listen(upstream=broker.address)
    held_to_the_limit(link.address, OPERATIONS, lambda: injected(link, fault))


@pytest.mark.wall
def test_a_paused_broker_costs_no_more_than_the_limit(
    broker: Broker, faults_queue: str, no_leaks: None
) -> None:
    """Also 20 MB without confirms, which no buffer takes."""
    operations = {**OPERATIONS, "20 MB": publishing_much}
    held_to_the_limit(broker.address, operations, broker.paused)


@pytest.mark.parametrize("fault", [Reset(), Refuse()], ids=["reset", "refuse"])
def test_a_broken_connection_is_told_at_once(
    broker: Broker, relay: Relay, faults_queue: str, no_leaks: None, fault: Fault
) -> None:
    """ConnectionLost where pika has StreamLostError, and it is one."""
    link = relay.listen(upstream=broker.address)
    mine = {name: ours(link.address, 5.0) for name in OPERATIONS}
    calls = {name: make(mine[name]) for name, make in OPERATIONS.items()}
    theirs = pika.BlockingConnection(at(link.address))
    with injected(link, fault):
        with pytest.raises(pika.exceptions.StreamLostError):
            theirs.channel()
        for name, call in calls.items():
            result, seconds = timed(call)
            assert isinstance(result, rabbitmq.ConnectionLost), (name, result)
            assert isinstance(result, pika.exceptions.StreamLostError)
            assert seconds < 1.0 and not mine[name].is_open


@pytest.mark.wall
def test_a_killed_broker_is_told_and_found_again(
    broker: Broker, faults_queue: str, no_leaks: None
) -> None:
    """A program that connects again and again meets the breaker, and then the broker."""
    connection = rabbitmq.BlockingConnection(at(broker.address))
    channel = connection.channel()
    broker.kill()
    result, seconds = timed(lambda: channel.queue_declare(faults_queue, passive=True))
    assert isinstance(result, rabbitmq.ConnectionLost) and seconds < TOLERANCE
    kinds = []
    for _ in range(8):
        with pytest.raises(pika.exceptions.AMQPConnectionError) as caught:
            rabbitmq.BlockingConnection(at(broker.address))
        kinds.append(type(caught.value))
        assert not caught.value.sent  # type: ignore[attr-defined]
    assert kinds[0] is rabbitmq.ConnectFailed
    assert issubclass(kinds[-1], rabbitmq.CircuitOpen)
    broker.start()
    until = time.monotonic() + 10
    while True:
        try:
            rabbitmq.BlockingConnection(at(broker.address)).close()
            break
        except rabbitmq.CircuitOpen as error:
            assert time.monotonic() < until
            time.sleep(error.retry_after)
    with contextlib.closing(broker.connect()) as again:
        again.channel().queue_declare(faults_queue)


def test_a_broker_that_stops_says_so(broker: Broker, no_leaks: None) -> None:
    """RabbitMQ's own farewell is ConnectionLost, and pika's ConnectionClosedByBroker."""
    with ours(broker.address, 5.0) as connection:
        broker.control("close_all_connections", "because")
        with pytest.raises(rabbitmq.ConnectionLost, match="CONNECTION_FORCED") as caught:
            connection.sleep(5)
        assert isinstance(caught.value, pika.exceptions.ConnectionClosedByBroker)
        assert caught.value.reply_code == 320


@pytest.mark.wall
def test_a_broker_short_of_memory_is_overloaded(
    broker: Broker, faults_queue: str, no_leaks: None
) -> None:
    """A publish is Overloaded within its limit; consumers of the same connection go on, and no
    late confirm is taken for another message's."""
    mine, raw = ours(broker.address), broker.connect()
    channel, theirs = mine.channel(), raw.channel()
    got: list[bytes] = []
    channel.basic_qos(prefetch_count=100)
    channel.basic_consume(
        faults_queue, lambda channel, method, properties, body: got.append(body), auto_ack=True
    )
    channel.confirm_delivery()
    channel.basic_publish("", faults_queue, b"before")
    theirs.confirm_delivery()
    with hanging(broker.address, {"publish": OPERATIONS["publish"]}) as (start, ended):
        theirs.queue_declare("other")
        theirs.basic_publish("", "other", b"kept")
        with broker.short_of_memory():
            began = start()
            for sent in (True, False, False):
                result, seconds = timed(
                    lambda: channel.basic_publish("", "nobody", b"x", None, True)
                )
                assert isinstance(result, rabbitmq.Overloaded), result
                assert result.sent is sent and seconds < LIMIT + TOLERANCE
                assert "short of memory" in str(result) and mine.is_open
            result, seconds = timed(lambda: mine.channel())
            assert isinstance(result, rabbitmq.Overloaded) and not result.sent and mine.is_open
            assert seconds < LIMIT + TOLERANCE
            time.sleep(max(0.0, began + BITES - time.monotonic()))
            assert not ended, "the alarm doesn't bite"
            result, _ = timed(lambda: mine.process_data_events(0.1))
            assert result is None
    # the first one comes back now, as unroutable; that is not this one's answer
    channel.basic_publish("", faults_queue, b"after", None, True)
    with pytest.raises(pika.exceptions.UnroutableError):
        channel.basic_publish("", "nobody", b"x", None, True)
    until = time.monotonic() + 5
    while b"after" not in got and time.monotonic() < until:
        mine.process_data_events(0.1)
    assert got[0] == b"before" and got[-1] == b"after"
    mine.close()
    theirs.queue_delete("other")
    raw.close()


@pytest.mark.wall
def test_a_message_too_big_for_the_buffers_ends_a_blocked_connection(
    broker: Broker, faults_queue: str, no_leaks: None
) -> None:
    """It is partly sent, so nothing else could be: Overloaded, and closed."""
    mine = ours(broker.address)
    channel = mine.channel()
    channel.basic_publish("", faults_queue, b"before")
    with broker.short_of_memory():
        channel.basic_publish("", faults_queue, b"x")
        mine.sleep(0.1)
        result, seconds = timed(lambda: channel.basic_publish("", faults_queue, BIG))
        assert isinstance(result, rabbitmq.Overloaded) and result.sent
        assert seconds < LIMIT + TOLERANCE and not mine.is_open
        mine = ours(broker.address)
        mine.channel().basic_publish("", faults_queue, b"x")
        mine.sleep(0.1)
        result, seconds = timed(mine.close)
        assert isinstance(result, rabbitmq.Overloaded) and result.sent
        assert seconds < LIMIT + TOLERANCE and not mine.is_open


@pytest.mark.wall
def test_a_message_that_comes_in_pieces_is_waited_for(
    broker: Broker, relay: Relay, faults_queue: str, no_leaks: None
) -> None:
    """A learnt limit cuts silence; what arrives slowly may have all of the ceiling, no more."""
    with contextlib.closing(broker.connect()) as raw:
        raw.channel().basic_publish("", faults_queue, BIG[:3_000_000])
    for rate, ceiling, whole in ((2e6, 5.0, True), (2e5, 1.0, False)):
        link = relay.listen(upstream=broker.address)
        policy = Policy(timeout=Percentile(initial=LIMIT, ceiling=ceiling), breaker=None)
        name = f"slow{ceiling:g}"
        connection = rabbitmq.BlockingConnection(at(link.address), name=name, policy=policy)
        channel = connection.channel()
        with injected(link, Bandwidth(rate)):
            result, seconds = timed(partial(channel.basic_get, faults_queue))
            assert seconds > LIMIT + TOLERANCE
            if whole:
                assert isinstance(result, tuple) and len(result[2]) == 3_000_000
            else:
                assert isinstance(result, rabbitmq.DeadlineExceeded)
                assert seconds < ceiling + TOLERANCE and not connection.is_open
            assert timed(connection.close)[1] < 2.0


def test_what_ended_before_it_was_used_was_sent_nothing(
    broker: Broker, relay: Relay, faults_queue: str, no_leaks: None
) -> None:
    """A connection that was closed while nobody looked: it is safe to repeat the question."""
    link = relay.listen(upstream=broker.address)
    connection = ours(link.address, 5.0)
    channel = connection.channel()
    link.close()
    time.sleep(0.1)
    with pytest.raises(rabbitmq.ConnectionLost) as caught:
        channel.queue_declare(faults_queue, passive=True)
    assert not caught.value.sent


# -- connecting ---------------------------------------------------------------------------------


@pytest.mark.wall
@pytest.mark.parametrize("fault", [Hang(), Silent(), Drip(1, 0.3)], ids=["hang", "silent", "drip"])
def test_a_connect_ends_at_its_limit(
    broker: Broker, relay: Relay, no_leaks: None, fault: Fault
) -> None:
    """All attempts and the pauses between them together; each has pika's limit with raw pika."""
    link = relay.listen(upstream=broker.address)
    with injected(link, fault):
        several = {"stack_timeout": LIMIT, "connection_attempts": 4, "retry_delay": 0.2}
        began = time.monotonic()
        with pytest.raises(Exception):  # noqa: B017
            pika.BlockingConnection(at(link.address, **several))
        assert time.monotonic() - began > LIMIT + 2 * TOLERANCE, "the fault doesn't bite"
        result, seconds = timed(lambda: ours(link.address, **several))
        assert isinstance(result, rabbitmq.DeadlineExceeded), result
        assert isinstance(result, pika.exceptions.AMQPConnectionError)
        assert not result.sent and seconds < LIMIT + TOLERANCE
        with time_limit(0.1):
            result, seconds = timed(lambda: ours(link.address))
        assert isinstance(result, rabbitmq.DeadlineExceeded) and seconds < 0.1 + TOLERANCE


@pytest.mark.wall
def test_a_handshake_that_hangs_ends_at_the_limit(no_leaks: None) -> None:
    """TLS is inside the connect's limit too."""
    options = pika.SSLOptions(ssl.create_default_context())
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        result, seconds = timed(
            lambda: ours(silent.getsockname(), stack_timeout=LIMIT, ssl_options=options)
        )
    assert isinstance(result, rabbitmq.DeadlineExceeded) and seconds < LIMIT + TOLERANCE


@pytest.mark.wall
def test_a_silent_host_leaves_time_for_the_next(broker: Broker, no_leaks: None) -> None:
    """Each host has its share of the limit, whatever the others do."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        hosts = [at(one, stack_timeout=1.0) for one in (silent.getsockname(), broker.address)]
        connection, seconds = timed(lambda: rabbitmq.BlockingConnection(hosts))
        assert isinstance(connection, pika.BlockingConnection), connection
        assert seconds < 1.0 + TOLERANCE
        connection.close()


def test_what_refuses_a_connection_is_named(broker: Broker, no_leaks: None) -> None:
    """Nobody there, no such name, nobody who speaks: each also pika's own error."""
    with socket.socket() as nobody, pytest.raises(rabbitmq.ConnectFailed) as refused:
        nobody.bind(("127.0.0.1", 0))
        ours(nobody.getsockname())
    assert isinstance(refused.value.__cause__, ConnectionRefusedError)
    with pytest.raises(rabbitmq.ConnectFailed) as unknown:
        ours(("nobody.invalid", 5672))
    assert isinstance(unknown.value, socket.gaierror)
    with socket.create_server(("127.0.0.1", 0)) as rude:
        thread = threading.Thread(target=lambda: rude.accept()[0].close())
        thread.start()
        with pytest.raises(rabbitmq.ConnectFailed) as incompatible:
            ours(rude.getsockname())
        thread.join()
    assert isinstance(incompatible.value, pika.exceptions.IncompatibleProtocolError)


@pytest.mark.wall
def test_a_resolver_that_hangs_costs_no_more_than_the_limit(
    no_leaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS is inside the connect's limit."""
    answer = threading.Event()

    def hang(*args: Any, **kwargs: Any) -> Any:
        answer.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "at last")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    result, seconds = timed(lambda: ours(("hangs.example", 5672), stack_timeout=LIMIT))
    answer.set()
    assert isinstance(result, rabbitmq.DeadlineExceeded) and seconds < LIMIT + TOLERANCE


# -- waits --------------------------------------------------------------------------------------


@pytest.mark.wall
def test_a_wait_ends_with_its_argument(broker: Broker, faults_queue: str, no_leaks: None) -> None:
    """Also behind a publish that is stuck, where pika's does not end."""

    def stuck(connection: Any) -> Callable[[], object]:
        channel = connection.channel()
        channel._impl.basic_publish("", faults_queue, BIG)
        return lambda: connection.process_data_events(0.2)

    mine = ours(broker.address)
    channel = mine.channel()
    consumer = channel.consume(faults_queue, inactivity_timeout=0.2)
    assert next(consumer) == (None, None, None)
    with broker.paused():
        for call in (
            lambda: mine.process_data_events(0.2),
            lambda: mine.sleep(0.2),
            lambda: next(consumer),
        ):
            result, seconds = timed(call)
            assert result in (None, (None, None, None)), result
            assert 0.2 <= seconds < 0.2 + TOLERANCE
    mine.close()
    mine = ours(broker.address)
    call = stuck(mine)
    with hanging(broker.address, {"stuck": stuck}) as (start, ended), broker.paused():
        start()
        result, seconds = timed(call)
        assert result is None and seconds < 0.2 + TOLERANCE
        time.sleep(BITES)
        assert not ended, "the fault doesn't bite"
    mine.close()


@pytest.mark.wall
def test_a_wait_ends_with_a_deadline_around_it(
    broker: Broker, faults_queue: str, no_leaks: None
) -> None:
    """Nothing is outstanding, so the connection is as it was, and its consumers too."""
    with ours(broker.address) as connection:
        channel, got = connection.channel(), []
        channel.basic_consume(faults_queue, lambda *told: got.append(told[3]), auto_ack=True)
        for wait in (
            channel.start_consuming,
            lambda: connection.sleep(5),
            lambda: connection.process_data_events(5),
        ):
            with time_limit(0.2):
                result, seconds = timed(wait)
            assert isinstance(result, rabbitmq.DeadlineExceeded)
            assert not result.sent and connection.is_open
            assert 0.2 <= seconds < 0.2 + TOLERANCE
        channel.basic_publish("", faults_queue, b"x")
        connection.sleep(0.2)
        assert got == [b"x"]


@pytest.mark.wall
def test_two_heartbeats_of_silence_are_the_end(broker: Broker, no_leaks: None) -> None:
    """pika waits for up to two heartbeats and ten seconds."""
    connection = ours(broker.address, 30.0, heartbeat=1)
    connection.sleep(1.5)  # a heartbeat has come
    forever = {"wait": lambda raw: lambda: raw.process_data_events(None)}
    with hanging(broker.address, forever, heartbeat=1) as (start, ended), broker.paused():
        start()
        result, seconds = timed(lambda: connection.process_data_events(None))
        assert isinstance(result, rabbitmq.ConnectionLost), result
        assert isinstance(result, pika.exceptions.AMQPHeartbeatTimeout)
        assert 1.0 < seconds < 2.0 + TOLERANCE
        assert not ended, "the fault doesn't bite"
        assert not connection.is_open


@pytest.mark.wall
def test_blocked_connection_timeout_keeps_its_meaning(
    broker: Broker, faults_queue: str, no_leaks: None
) -> None:
    """The connection may be blocked for so long; then it is pika's error, and Overloaded."""
    connection = ours(broker.address, 5.0, blocked_connection_timeout=LIMIT)
    channel = connection.channel()
    with broker.short_of_memory():
        channel.basic_publish("", faults_queue, b"x")
        result, seconds = timed(lambda: connection.sleep(5))
    assert isinstance(result, rabbitmq.Overloaded), result
    assert isinstance(result, pika.exceptions.ConnectionBlockedTimeout)
    assert seconds < LIMIT + 2 * TOLERANCE and not connection.is_open


@pytest.mark.wall
def test_a_question_that_nobody_knows_has_a_limit_too(broker: Broker, no_leaks: None) -> None:
    """What a later pika may ask, by a method that isn't ours."""

    class Later(rabbitmq.BlockingConnection):
        def ask(self) -> None:
            self._flush_output(lambda: False)

    connection = Later(at(broker.address), policy=Policy(timeout=Fixed(LIMIT), breaker=None))
    result, seconds = timed(connection.ask)
    assert isinstance(result, rabbitmq.DeadlineExceeded), result
    assert "rabbitmq.other" in str(result) and not result.sent
    assert seconds < LIMIT + TOLERANCE and not connection.is_open


# -- interrupts, forks, our own stalls ----------------------------------------------------------


@contextlib.contextmanager
def interrupted_in(seconds: float) -> Iterator[None]:
    """KeyboardInterrupt, as Ctrl-C would."""

    def strike(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_publish_ends_the_connection(
    broker: Broker, faults_queue: str, no_leaks: None
) -> None:
    """Its confirm would be the next message's, as it is with pika, which then says that a message
    has arrived that nobody got, or breaks."""
    mine, raw = ours(broker.address, 10.0), broker.connect()
    channel, theirs = mine.channel(), raw.channel()
    for one in (channel, theirs):
        one.confirm_delivery()
        with broker.paused(), pytest.raises(KeyboardInterrupt), interrupted_in(0.2):
            one.basic_publish("", faults_queue, b"x")
    wrong, _ = timed(lambda: theirs.basic_publish("", "nobody", b"lost", mandatory=True))
    assert wrong is None or "already set" in str(wrong)
    assert not mine.is_open
    with pytest.raises(pika.exceptions.ChannelWrongStateError):
        channel.basic_publish("", "nobody", b"lost", mandatory=True)
    with contextlib.suppress(Exception):
        raw.close()


def test_an_interrupted_connect_leaves_nothing(no_leaks: None) -> None:
    """Neither a socket nor pika's loop."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=64) as silent,
        pytest.raises(KeyboardInterrupt),
        interrupted_in(0.2),
    ):
        ours(silent.getsockname())


def test_an_interrupted_wait_costs_nothing(
    broker: Broker, faults_queue: str, no_leaks: None
) -> None:
    """Ctrl-C while a consumer waits: it stops consuming, and closes, as every example of pika."""
    connection = ours(broker.address, 10.0)
    channel, got = connection.channel(), []
    channel.basic_consume(faults_queue, lambda *told: got.append(told[3]), auto_ack=True)
    with pytest.raises(KeyboardInterrupt), interrupted_in(0.2):
        channel.start_consuming()
    channel.basic_publish("", faults_queue, b"x")
    connection.sleep(0.2)
    assert got == [b"x"]
    channel.stop_consuming()
    connection.close()


@pytest.mark.usefixtures("untraced")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_interrupt_anywhere_harms_no_later_call(broker: Broker, faults_queue: str) -> None:
    """Struck before each line of ours in turn: the next call has its own answer or is told that
    the connection is closed."""
    held: list[Any] = []

    def prepare() -> Callable[[], object]:
        if not held or not held[0].connection.is_open:
            connection = ours(broker.address, 10.0)
            held[:] = [connection.channel()]
            held[0].confirm_delivery()
        channel = held[0]

        def act() -> None:
            channel.basic_publish("", faults_queue, b"x", None, True)
            channel.queue_declare(faults_queue, passive=True)

        return act

    closed = 0
    for _ in every_line(blocking, prepare):
        channel = held[0]
        try:
            frame = channel.queue_declare(faults_queue, passive=True)
            assert frame.method.queue == faults_queue
            with pytest.raises(pika.exceptions.UnroutableError) as caught:
                channel.basic_publish("", "nobody", b"mine", None, True)
            assert caught.value.messages[0].body == b"mine"
            channel.basic_publish("", faults_queue, b"x", None, True)
        except pika.exceptions.AMQPError as error:
            assert isinstance(
                error,
                (pika.exceptions.ChannelWrongStateError, pika.exceptions.ConnectionWrongStateError),
            )
            assert not channel.connection.is_open
            closed += 1
    assert closed, "some of them came while an answer was outstanding"
    if held[0].connection.is_open:
        held[0].connection.close()


@pytest.mark.usefixtures("untraced")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("action", ["ask", "wait"])
def test_an_interrupt_inside_pika_harms_no_later_call(
    broker: Broker, faults_queue: str, action: str
) -> None:
    """Struck before many of pika's own lines: answers and deliveries are right afterwards, or the
    connection is closed."""
    raw = broker.connect()
    publisher, held = raw.channel(), []  # type: ignore[var-annotated]

    def prepare() -> Callable[[], object]:
        if not held or not held[0].connection.is_open:
            channel, got = ours(broker.address, 10.0).channel(), []  # type: ignore[var-annotated]
            channel.confirm_delivery()
            channel.basic_consume(faults_queue, lambda *told: got.append(told[3]), auto_ack=True)
            held[:] = channel, got
        if action == "ask":
            return lambda: held[0].basic_publish("", faults_queue, b"x", None, True)
        publisher.basic_publish("", faults_queue, b"x")
        time.sleep(0.002)
        return partial(held[0].connection.process_data_events, 0.01)

    struck = closed = 0
    for module in (select_connection, io_services_utils, blocking_connection, pika.connection):
        number = 0
        while struck_at(number, module, prepare()):
            channel, got = held
            struck, number, mine = struck + 1, number + 7, f"{module.__name__} {number}".encode()
            try:
                with pytest.raises(pika.exceptions.UnroutableError) as caught:
                    channel.basic_publish("", "nobody", mine, None, True)
                assert caught.value.messages[0].body == mine
                channel.basic_publish("", faults_queue, mine, None, True)
                until = time.monotonic() + 2
                while mine not in got and time.monotonic() < until:
                    channel.connection.process_data_events(0.05)
                assert mine in got
            except (
                pika.exceptions.ChannelWrongStateError,
                pika.exceptions.ConnectionWrongStateError,
            ):
                assert not channel.connection.is_open
                closed += 1
    assert struck > 10 and closed > 0
    for connection in (raw, held[0].connection):
        if connection.is_open:
            connection.close()


def test_a_forked_child_is_told_and_the_parent_goes_on(
    broker: Broker, faults_queue: str, no_leaks: None
) -> None:
    """The child writes nothing to its parent's socket, and may connect by itself."""
    connection = ours(broker.address, 10.0)
    channel = connection.channel()

    def child() -> None:
        assert not connection.is_open and not channel.is_open
        for call in (
            lambda: channel.basic_publish("", faults_queue, b"child"),
            lambda: channel.queue_declare(faults_queue, passive=True),
            connection.channel,
            connection.process_data_events,
            lambda: connection.sleep(0),
            connection.close,
        ):
            with pytest.raises(pika.exceptions.AMQPConnectionError, match=r"parent's|closed"):
                call()
        with pytest.raises(rabbitmq.ConnectionLost, match="connect again after a fork"):
            connection.channel()
        with pytest.raises(pika.exceptions.ConnectionWrongStateError):
            connection.add_callback_threadsafe(print)
        with ours(broker.address, 10.0) as own:
            own.channel().basic_publish("", faults_queue, b"its own")

    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            child()
            status = 0
        os._exit(status)
    until = time.monotonic() + 20
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    assert ended[1] == 0
    connection.sleep(0.1)
    assert channel.basic_get(faults_queue, auto_ack=True)[2] == b"its own"
    assert channel.basic_get(faults_queue, auto_ack=True) == (None, None, None)
    connection.close()


def test_an_answer_that_is_here_is_taken_though_we_are_late(
    broker: Broker, faults_queue: str, no_leaks: None
) -> None:
    """A process that stood still doesn't blame Broker, nor end its connection."""
    with ours(broker.address) as connection:
        channel = connection.channel()
        poll = connection._impl.ioloop.poll

        def stand_still() -> None:
            connection._impl.ioloop.poll = poll
            poll()  # sends
            time.sleep(LIMIT + 0.2)

        connection._impl.ioloop.poll = stand_still
        assert channel.queue_declare(faults_queue, passive=True).method.queue == faults_queue
        assert connection.is_open


# -- what is learnt and counted -----------------------------------------------------------------


def test_operations_are_counted_by_name_and_answers_are_no_failures(
    broker: Broker, faults_queue: str, no_leaks: None
) -> None:
    """A 404 is an answer, a nack is unwell, and publish and get learn their limits."""
    refused = {"x-max-length": 1, "x-overflow": "reject-publish"}
    with rabbitmq.BlockingConnection(at(broker.address), name="counted") as connection:
        for _ in range(8):
            with pytest.raises(pika.exceptions.ChannelClosedByBroker):
                connection.channel().queue_declare("nowhere", passive=True)
        channel = connection.channel()
        channel.queue_declare("short", arguments=refused)
        channel.basic_publish("", faults_queue, b"unconfirmed")
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.NackError):
            for _ in range(3):
                channel.basic_publish("", "short", b"x")
        for _ in range(150):
            channel.basic_publish("", faults_queue, b"x")
            channel.basic_get(faults_queue, auto_ack=True)
        channel.queue_delete("short")
        blocks = stats()["blocks"]
        assert blocks["counted.queue_declare"]["breaker"] == "closed"
        assert blocks["counted.queue_declare"]["limit"] == 10.0
        assert blocks["counted.publish"]["unwell"] == 1
        assert blocks["counted.publish_unconfirmed"]["calls"] == 1
        assert blocks["counted.connect"]["ok"] == 1
        for name in ("counted.publish", "counted.get"):
            assert blocks[name]["ok"] >= 150
            assert 1.0 <= blocks[name]["limit"] <= 10.0
        assert all(block["in_flight"] == 0 for block in blocks.values())


@pytest.mark.wall
def test_a_surrounding_limit_ends_a_call(broker: Broker, faults_queue: str, no_leaks: None) -> None:
    """With the defaults; and with nothing left a call isn't begun, and the connection stays."""
    connection = rabbitmq.BlockingConnection(at(broker.address))
    channel = connection.channel()
    with time_limit(0.001):
        time.sleep(0.01)
        with pytest.raises(rabbitmq.DeadlineExceeded) as caught:
            channel.queue_declare(faults_queue, passive=True)
    assert not caught.value.sent and connection.is_open
    with (
        pytest.raises(rabbitmq.DeadlineExceeded),
        time_limit(0.2),
        rabbitmq.BlockingConnection(at(broker.address)) as left,
    ):
        time.sleep(0.3)
    assert not left.is_open, "without a farewell, for which there was no time"
    with broker.paused(), time_limit(0.2):
        result, seconds = timed(lambda: channel.queue_declare(faults_queue, passive=True))
    assert isinstance(result, rabbitmq.DeadlineExceeded) and result.sent
    assert seconds < 0.2 + TOLERANCE and not connection.is_open


def test_an_open_breaker_refuses_questions_but_not_the_end(broker: Broker, no_leaks: None) -> None:
    """Acknowledgements and `close` pass, on a connection that works all the same."""
    policy = Policy(timeout=Fixed(LIMIT), breaker=Breaker(failures=1, open_for=5.0))
    with broker.connect() as raw:
        raw.channel().queue_declare("guarded", exclusive=False)
    healthy = rabbitmq.BlockingConnection(at(broker.address), name="guarded", policy=policy)
    channel = healthy.channel()
    channel.basic_publish("", "guarded", b"x")
    channel.basic_publish("", "guarded", b"y")
    healthy.sleep(0.1)
    method = channel.basic_get("guarded")[0]
    dead = rabbitmq.BlockingConnection(at(broker.address), name="guarded", policy=policy)
    with broker.paused(), pytest.raises(Unavailable):
        dead.channel()
    with pytest.raises(rabbitmq.CircuitOpen) as caught:
        channel.basic_get("guarded")
    assert isinstance(caught.value, pika.exceptions.AMQPConnectionError) and healthy.is_open
    with pytest.raises(rabbitmq.CircuitOpen):
        rabbitmq.BlockingConnection(at(broker.address), name="guarded", policy=policy)
    channel.basic_ack(method.delivery_tag)
    healthy.close()
    with broker.connect() as raw:
        assert raw.channel().queue_delete("guarded").method.message_count == 1


def test_the_migration_page_runs(broker: Broker, tmp_path: Path) -> None:
    """The snippets of the page run one after another, without an error or a warning."""
    page = (Path(__file__).parents[2] / "docs" / "migration" / "pika.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 3
    script = tmp_path / "page.py"
    script.write_text("\n".join(snippets).replace("5672", str(broker.address[1])))
    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
