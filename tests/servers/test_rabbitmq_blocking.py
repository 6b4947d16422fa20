"""The drop-in `BlockingConnection` on a real broker: pika's results, limits under faults."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest

from tests.servers.limits import TOLERANCE
from tests.servers.rabbitmq import RabbitMQ, missing
from timedblock import Breaker, Fixed, Policy, Unavailable, rabbitmq, stats, time_limit
from timedblock.faults import Blackhole, Drip, Hang, Refuse, Reset, Silent
from timedblock.faults.plan import Fault
from timedblock.faults.proxy import Relay
from timedblock.rabbitmq.blocking.lines import LINES
from timedblock.testing import leaks

pytestmark = pytest.mark.server

LIMIT = 0.3
#: Seconds within which a raw call must not have ended, for the fault to bite.
BITES = 1.0
BIG = b"x" * 20_000_000


@pytest.fixture(scope="module")
def broker() -> Iterator[RabbitMQ]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with RabbitMQ() as one:
        yield one


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


@pytest.fixture
def queue(broker: RabbitMQ, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"test.{request.node.name}"
    with contextlib.closing(broker.connect()) as connection:
        connection.channel().queue_declare(name, durable=True)
    yield name
    with contextlib.closing(broker.connect()) as connection:
        connection.channel().queue_delete(name)


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
        properties = pika.BasicProperties(message_id="7", headers={"a": [1, {"b": "c"}]}, priority=3)
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
    broker: RabbitMQ, no_leaks: None, scenario: Callable[[Record], None]
) -> None:
    """The same calls give the same values, errors, texts and callbacks, in the same order."""
    theirs = Record(broker.address, pika.BlockingConnection)
    mine = Record(broker.address, rabbitmq.BlockingConnection)
    scenario(theirs)
    scenario(mine)
    assert mine.seen == theirs.seen
    assert len(theirs.seen) > 5


def test_a_get_on_a_closed_channel_costs_no_more(broker: RabbitMQ, no_leaks: None) -> None:
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


def test_it_is_one_of_pikas(broker: RabbitMQ, no_leaks: None) -> None:
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
def hanging(address: tuple[str, int], operations: dict[str, Operation]) -> Iterator[Any]:
    """Gives a function that starts `operations` on raw pika, and one that says which have ended."""
    ended: list[str] = []
    raw = {name: pika.BlockingConnection(at(address)) for name in operations}
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
                assert seconds < 0.1
                again, seconds = timed(mine[name].process_data_events)
                assert isinstance(again, closed) and seconds < 0.1
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
def faults_queue(broker: RabbitMQ) -> Iterator[str]:
    with contextlib.closing(broker.connect()) as connection:
        connection.channel().queue_declare("faults")
        yield "faults"
        connection.channel().queue_delete("faults")


@pytest.mark.wall
@pytest.mark.parametrize(
    "fault",
    [Hang(), Hang("down"), Blackhole(), Silent(), Drip(1, 0.3)],
    ids=["hang", "one-way", "blackhole", "silent", "drip"],
)
def test_every_operation_ends_at_its_limit(
    broker: RabbitMQ, relay: Relay, faults_queue: str, no_leaks: None, fault: Fault
) -> None:
    """Whatever the network does: an error within the limit, and then a closed connection."""
    link = relay.listen(upstream=broker.address)
    held_to_the_limit(link.address, OPERATIONS, lambda: injected(link, fault))


@pytest.mark.wall
def test_a_paused_broker_costs_no_more_than_the_limit(
    broker: RabbitMQ, faults_queue: str, no_leaks: None
) -> None:
    """Also 20 MB without confirms, which no buffer takes."""
    operations = {**OPERATIONS, "20 MB": publishing_much}
    held_to_the_limit(broker.address, operations, broker.paused)
