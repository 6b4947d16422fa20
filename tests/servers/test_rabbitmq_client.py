"""`timedblock.rabbitmq.Client` on a real broker: answers, faults, recovery, nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest

from tests.servers.limits import TOLERANCE
from timedblock import Fixed, Percentile, Policy, Retry, Unavailable, rabbitmq, stats, time_limit
from timedblock.rabbitmq.publishing import PublishingLink
from timedblock.rabbitmq.request import Batch, Item, Promise, Request
from timedblock.rabbitmq.returns import Returns
from timedblock.testing import leaks
from timedblock.testing.rabbitmq import Broker

pytestmark = pytest.mark.server

LIMIT = 0.3
#: Seconds within which a raw call must not have ended, for the fault to bite.
BITES = 1.0


@pytest.fixture
def queue(broker: Broker, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"test.{request.node.name}"
    with contextlib.closing(broker.connect()) as connection:
        connection.channel().queue_declare(name, durable=True)
    yield name
    with contextlib.closing(broker.connect()) as connection:
        connection.channel().queue_delete(name)


#: For tests of what is answered, not of when: no false timeout on a busy machine.
PATIENT = Policy(timeout=Percentile(99.5, floor=2.0, ceiling=5.0))


@pytest.fixture
def client(broker: Broker, no_leaks: None) -> Iterator[rabbitmq.Client]:
    with rabbitmq.Client(broker.address, policy=PATIENT) as one:
        yield one
    gc.collect()


def limited(broker: Broker) -> rabbitmq.Client:
    """A client whose limits are all `LIMIT`, and whose breaker doesn't matter."""
    return rabbitmq.Client(
        broker.address, name="fixed", policy=Policy(timeout=Fixed(LIMIT), breaker=None),
        timeout=LIMIT,
    )  # fmt: skip


def timed(call: Callable[[], object]) -> tuple[object, float]:
    """What a call returned or raised, and after how many seconds."""
    began = time.monotonic()
    try:
        result = call()
    except Exception as error:
        result = error
    return result, time.monotonic() - began


def connected(client: rabbitmq.Client, queue: str) -> PublishingLink:
    """The connection that publishes, after its first message."""
    client.publish("", queue, b"x")
    assert client._engine is not None
    return client._engine.publishing


def flows(client: rabbitmq.Client, queue: str, seconds: float = 15.0) -> None:
    """Wait until a publish is confirmed again."""
    until = time.monotonic() + seconds
    while True:
        try:
            client.publish("", queue, b"flows")
            return
        except Unavailable:
            assert time.monotonic() < until, "nothing flows"
            time.sleep(0.05)


# -- answers ----------------------------------------------------------------------------------


def test_what_was_published_is_got_once(client: rabbitmq.Client, queue: str) -> None:
    client.publish("", queue, "tëxt", pika.BasicProperties(message_id="7", delivery_mode=2))
    client.publish("", queue, b"second")
    first, second, third = (client.get(queue) for _ in range(3))
    assert first is not None and second is not None and third is None
    assert (first.body, first.properties.message_id) == ("tëxt".encode(), "7")
    assert (first.redelivered, first.exchange, first.routing_key) == (False, "", queue)
    assert second.body == b"second"
    assert second.properties.delivery_mode == 2, "persistent by default"


def test_an_empty_queue_after_a_full_one_is_told_from_it(
    client: rabbitmq.Client, queue: str
) -> None:
    """The channel of an earlier get serves the next one."""
    for _ in range(3):
        assert client.get(queue) is None
        client.publish("", queue, b"x")
        assert client.get(queue) is not None


def test_a_message_that_no_queue_gets_is_unroutable(client: rabbitmq.Client, queue: str) -> None:
    with pytest.raises(rabbitmq.Unroutable, match="312 NO_ROUTE") as caught:
        client.publish("", "nobody", b"x")
    assert isinstance(caught.value, pika.exceptions.UnroutableError) and caught.value.sent
    client.publish("", "nobody", b"x", mandatory=False)
    client.publish("", queue, b"x")


def test_only_the_unroutable_ones_of_many_are_told_so(client: rabbitmq.Client, queue: str) -> None:
    messages = [("", queue if number % 3 else "nobody", b"x") for number in range(300)]
    reports = client.publish_many(messages)
    assert [report.ok for report in reports] == [bool(number % 3) for number in range(300)]
    assert {type(report.error) for report in reports if not report.ok} == {rabbitmq.Unroutable}
    assert client.purge(queue) == 200


def test_a_queue_that_refuses_is_a_nack(client: rabbitmq.Client, broker: Broker) -> None:
    client.declare_queue("short", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    with pytest.raises(rabbitmq.Nacked) as caught:
        for _ in range(3):
            client.publish("", "short", b"x")
    assert isinstance(caught.value, pika.exceptions.NackError) and caught.value.sent
    assert stats()["blocks"]["rabbitmq.publish"]["unwell"] == 1
    client.delete_queue("short")


def test_an_exchange_that_is_not_there_is_an_answer(client: rabbitmq.Client, queue: str) -> None:
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="no exchange"):
        client.publish("nowhere", queue, b"x")
    client.publish("", queue, b"x")
    block = stats()["blocks"]["rabbitmq.publish"]
    assert (block["breaker"], block["unavailable"]) == ("closed", 0)


def test_a_refused_question_costs_the_others_nothing(client: rabbitmq.Client, queue: str) -> None:
    for _ in range(3):
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="no queue"):
            client.get("nowhere")
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="PRECONDITION_FAILED"):
            client.declare_queue(queue, durable=False)
        assert client.get(queue) is None


def test_a_channel_or_connection_that_closes_just_now_is_not_asked(
    client: rabbitmq.Client, queue: str
) -> None:
    """Not even in the moment in which pika knows it, and we have not been told."""
    client.publish("", queue, b"x")
    assert client.purge(queue) == 1
    engine = client._engine
    assert engine is not None
    engine.post(lambda: engine.asking._channels[0].close())
    assert client.purge(queue) == 0
    engine.post(lambda: engine.asking.connection.close())
    try:
        client.purge(queue)
    except rabbitmq.ConnectionLost as lost:
        assert not lost.sent
    flows(client, queue)


def test_topology_is_made_and_unmade(client: rabbitmq.Client, queue: str) -> None:
    client.declare_exchange("test.exchange", "topic")
    client.bind(queue, "test.exchange", "a.*")
    client.publish("test.exchange", "a.b", b"x")
    client.unbind(queue, "test.exchange", "a.*")
    with pytest.raises(rabbitmq.Unroutable):
        client.publish("test.exchange", "a.b", b"x")
    client.delete_exchange("test.exchange")
    made = client.declare_queue("", exclusive=True)
    assert made.startswith("timedblock.gen-")
    assert client.delete_queue(made) == 0
    assert client.purge(queue) == 1


def test_a_publish_without_confirm_is_not_waited_for(client: rabbitmq.Client, queue: str) -> None:
    client.publish("", queue, b"x", confirm=False)
    client.publish("", queue, b"y")
    assert client.purge(queue) == 2


def test_what_can_not_be_sent_is_named(client: rabbitmq.Client, queue: str) -> None:
    with pytest.raises(TypeError, match="exchange must be a string, not a NoneType"):
        client.publish(None, queue, b"x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bytes or text, not a dict"):
        client.publish("", queue, {})  # type: ignore[arg-type]
    bad = pika.BasicProperties(headers={"x": object()})
    with pytest.raises(pika.exceptions.UnsupportedAMQPFieldException):
        client.publish("", queue, b"x", bad)
    client.publish("", queue, b"x")


def test_many_threads_share_a_client(client: rabbitmq.Client, queue: str) -> None:
    wrong: list[Exception] = []

    def work(number: int) -> None:
        try:
            for index in range(50):
                client.publish("", queue, f"{number} {index}")
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    got = set()
    while (message := client.get(queue)) is not None:
        got.add(message.body)
    assert len(got) == 800


def test_futures_have_what_a_publish_has(client: rabbitmq.Client, queue: str) -> None:
    assert client.publish_async("", queue, b"x").result(5) is None
    with pytest.raises(rabbitmq.Unroutable):
        client.publish_async("", "nobody", b"x").result(5)


# -- faults: each first proves that it bites raw pika -------------------------------------------


@contextlib.contextmanager
def biting(broker: Broker, queue: str) -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether raw pika's confirmed publish hangs now."""
    connection = broker.connect()
    channel = connection.channel()
    channel.confirm_delivery()
    channel.basic_publish("", queue, b"raw")
    ended = threading.Event()

    def publish() -> None:
        with contextlib.suppress(Exception):
            channel.basic_publish("", queue, b"raw")
            ended.set()

    thread = threading.Thread(target=publish, daemon=True)

    def bites() -> bool:
        thread.start()
        return not ended.wait(BITES)

    try:
        yield bites
    finally:
        if thread.ident is not None:
            thread.join(20)
        with contextlib.suppress(Exception):
            connection.close()


@pytest.mark.wall
def test_a_paused_broker_costs_no_more_than_the_limit(broker: Broker, queue: str) -> None:
    with leaks.no_leaks(), limited(broker) as client, biting(broker, queue) as bites:
        client.publish("", queue, b"before")
        assert client.get(queue) is not None
        with broker.paused():
            assert bites()
            for call in (
                lambda: client.publish("", queue, b"x"),
                lambda: client.get(queue),
                lambda: client.purge(queue),
                lambda: client.publish("", queue, b"x"),
                lambda: client.publish_async("", queue, b"x").result(),
            ):
                result, seconds = timed(call)
                assert isinstance(result, Unavailable)
                assert isinstance(result, pika.exceptions.AMQPError)
                assert seconds < LIMIT + TOLERANCE
        flows(client, queue)


@pytest.mark.wall
def test_a_cut_get_loses_no_message(broker: Broker, queue: str) -> None:
    with limited(broker) as client:
        client.publish("", queue, b"precious")
        assert client.purge(queue) == 1
        client.publish("", queue, b"precious")
        with broker.paused():
            result, _ = timed(lambda: client.get(queue))
            assert isinstance(result, rabbitmq.DeadlineExceeded)
        until = time.monotonic() + 10
        found = None
        while found is None and time.monotonic() < until:
            with contextlib.suppress(Unavailable):
                found = client.get(queue)
        assert found is not None and found.body == b"precious"


@pytest.mark.wall
def test_a_broker_short_of_memory_is_overloaded_and_still_read(broker: Broker, queue: str) -> None:
    with limited(broker) as client, biting(broker, queue) as bites:
        client.publish("", queue, b"before")
        with broker.short_of_memory():
            assert bites()
            for sent in (True, False):
                result, seconds = timed(lambda: client.publish("", queue, b"x"))
                assert isinstance(result, rabbitmq.Overloaded), result
                assert result.sent is sent and seconds < LIMIT + TOLERANCE
            assert "short of memory" in str(result)
            assert client.health()["blocked"]
            assert client.get(queue) is not None
        flows(client, queue)
        assert not client.health()["blocked"]


@pytest.mark.wall
def test_a_dead_broker_is_told_at_once_and_found_again(broker: Broker, queue: str) -> None:
    with leaks.no_leaks(), rabbitmq.Client(broker.address) as client:
        client.publish("", queue, b"before")
        broker.kill()
        results = [timed(lambda: client.publish("", queue, b"x")) for _ in range(8)]
        assert all(isinstance(result, Unavailable) for result, _ in results)
        assert max(seconds for _, seconds in results) < 1.0 + TOLERANCE
        assert isinstance(results[-1][0], rabbitmq.CircuitOpen)
        assert client.health()["host"] is None
        broker.start()
        flows(client, queue)
        assert client.health()["host"] == f"127.0.0.1:{broker.address[1]}"


@pytest.mark.wall
def test_a_listener_that_never_answers_is_given_up(no_leaks: None) -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=64) as silent,
        rabbitmq.Client(silent.getsockname(), timeout=LIMIT) as client,
    ):
        for call in (lambda: client.publish("", "q", b"x"), lambda: client.get("q")):
            result, seconds = timed(call)
            assert isinstance(result, rabbitmq.DeadlineExceeded)
            assert not result.sent and seconds < LIMIT + TOLERANCE


@pytest.mark.wall
def test_one_of_two_hosts_is_enough(broker: Broker, queue: str, no_leaks: None) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        for _ in range(4):
            hosts = [silent.getsockname(), broker.address]
            with rabbitmq.Client(hosts) as client:
                assert timed(lambda: client.publish("", queue, b"x"))[0] is None


def test_a_name_that_is_nobodys_is_no_connection(no_leaks: None) -> None:
    with rabbitmq.Client(("nobody.invalid", 5672)) as client:
        with pytest.raises(Unavailable) as caught:
            client.publish("", "q", b"x")
        assert not caught.value.sent


def test_a_retry_repeats_what_was_not_sent(broker: Broker, queue: str) -> None:
    policy = Policy(timeout=Fixed(2.0), breaker=None, retry=Retry(attempts=5))
    with rabbitmq.Client(broker.address, name="again", policy=policy) as client:
        client.publish("", queue, b"x")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with (
            rabbitmq.Client(nobody.getsockname(), name="again", policy=policy) as client,
            pytest.raises(rabbitmq.ConnectFailed),
        ):
            client.publish("", queue, b"x")


def test_a_fallback_stands_in(no_leaks: None) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with rabbitmq.Client(nobody.getsockname(), on_unavailable=None) as client:
            client.publish("", "q", b"x")
            assert client.get("q") is None
            reports = client.publish_many([("", "q", b"x")] * 30)
            assert not any(report.ok for report in reports)


def test_a_surrounding_limit_holds(broker: Broker, queue: str) -> None:
    with rabbitmq.Client(broker.address) as client:
        client.publish("", queue, b"x")
        with broker.paused(), time_limit(0.1):
            result, seconds = timed(lambda: client.publish("", queue, b"x"))
        assert isinstance(result, rabbitmq.DeadlineExceeded) and seconds < 0.1 + TOLERANCE


def test_what_is_unconfirmed_is_bounded(broker: Broker, queue: str) -> None:
    with rabbitmq.Client(broker.address, name="bounded", max_unconfirmed=5) as client:
        client.publish("", queue, b"x")
        with broker.paused():
            futures = [client.publish_async("", queue, b"x") for _ in range(5)]
            with pytest.raises(rabbitmq.Overloaded, match="5 messages are unconfirmed"):
                client.publish_async("", queue, b"x")
            errors = [future.exception() for future in futures]
        assert all(isinstance(error, Unavailable) for error in errors), errors
        flows(client, queue)


def test_the_bytes_of_what_is_unconfirmed_are_bounded(broker: Broker, queue: str) -> None:
    with rabbitmq.Client(broker.address, name="bytes", max_unconfirmed_bytes=10_000) as client:
        client.publish("", queue, b"x" * 20_000)  # alone it may be larger
        with broker.paused():
            futures = [client.publish_async("", queue, b"x" * 3_000) for _ in range(3)]
            with pytest.raises(rabbitmq.Overloaded, match="bytes are unconfirmed"):
                client.publish_async("", queue, b"x" * 3_000)
            assert all(future.exception() for future in futures)
        flows(client, queue)
        assert client._unconfirmed_bytes == 0


def test_a_batch_is_paced_and_every_message_has_its_report(broker: Broker, queue: str) -> None:
    with rabbitmq.Client(broker.address, name="paced", max_unconfirmed=7) as client:
        messages = [("", queue, f"{number}") for number in range(1000)]
        messages[500] = ("", "no.such.queue", "lost")
        messages[501] = ("", queue, None)  # type: ignore[assignment]
        reports = client.publish_many(messages)
        wrong = {number: report.error for number, report in enumerate(reports) if not report.ok}
        assert {number: type(error) for number, error in wrong.items()} == {
            500: rabbitmq.Unroutable,
            501: TypeError,
        }
        assert client.purge(queue) == 998


def test_every_message_of_a_batch_has_its_report_also_where_time_ran_out_before_it_was_encoded(
    client: rabbitmq.Client, queue: str
) -> None:
    """All that was encoded is confirmed, and yet the batch is not."""
    engine, call = client._running(), client._block("publish_many").begin()
    batch = Batch(call, call.at)
    item = Item(batch, client._encoder.message("", queue, b"x", None, True))
    item.succeed()
    batch.all_here(1)
    reports = client._judge_batch(engine, batch, batch.wait(), [item], 3)
    assert [report.ok for report in reports] == [True, False, False]
    assert isinstance(reports[2].error, rabbitmq.DeadlineExceeded) and not reports[2].error.sent


def test_a_batch_that_finds_nobody_is_told_at_once(no_leaks: None) -> None:
    """Also what is encoded after that was known."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with rabbitmq.Client(nobody.getsockname(), timeout=5.0) as client:
            for count in (1, 2000, 100_000):
                reports, seconds = timed(lambda n=count: client.publish_many([("", "q", b"x")] * n))
                assert isinstance(reports, list) and len(reports) == count
                kinds = {type(report.error) for report in reports}
                assert kinds <= {rabbitmq.ConnectFailed, rabbitmq.CircuitOpen}, kinds
                assert seconds < 2.0


def test_a_batch_is_not_encoded_ahead_of_its_connection(no_leaks: None) -> None:
    """Encoding it needs the same interpreter as connecting: 100,000 at once made that slow."""

    class Body(str):
        encoded = 0

        def encode(self, *args: Any, **named: Any) -> bytes:
            Body.encoded += 1
            return super().encode(*args, **named)

    with (
        socket.create_server(("127.0.0.1", 0), backlog=64) as silent,
        rabbitmq.Client(silent.getsockname(), timeout=LIMIT) as client,
    ):
        reports = client.publish_many([("", "q", Body("x"))] * 100_000)
        assert len(reports) == 100_000 and not any(report.ok for report in reports)
        assert not any(report.error.sent for report in reports)  # type: ignore[union-attr]
        assert 0 < Body.encoded < 1000
        wrong, seconds = timed(lambda: client.publish_many([("", "q", 5)] * 3))  # type: ignore[list-item]
        assert (
            isinstance(wrong, list) and [type(report.error) for report in wrong] == [TypeError] * 3
        )
        assert seconds < LIMIT, "they wait for no connection"


@pytest.mark.wall
def test_a_batch_has_one_limit(broker: Broker, queue: str, no_leaks: None) -> None:
    """However many messages: those that are not confirmed by then are told apart by `sent`."""
    with rabbitmq.Client(broker.address, name="batch") as client:
        client.publish("", queue, b"x")
        client.purge(queue)
        messages = [("", queue, b"x" * 100)] * 100_000
        reports, seconds = timed(lambda: client.publish_many(messages, timeout=0.2))
        assert isinstance(reports, list) and len(reports) == len(messages)
        assert seconds < 0.2 + TOLERANCE
        errors = [report.error for report in reports if not report.ok]
        assert errors and all(isinstance(error, rabbitmq.DeadlineExceeded) for error in errors)
        confirmed = len(reports) - len(errors)
        maybe = sum(error.sent for error in errors if isinstance(error, Unavailable))
        time.sleep(0.3)
        assert confirmed <= client.purge(queue) <= confirmed + maybe


def test_returns_are_told_apart_on_a_headers_exchange(client: rabbitmq.Client, queue: str) -> None:
    """RabbitMQ reads the headers there, and may write them back in another order."""
    client.declare_exchange("test.headers", "headers")
    client.bind(queue, "test.headers", arguments={"x-match": "all", "kind": "good"})

    def message(kind: str) -> tuple[str, str, bytes, pika.BasicProperties]:
        headers = {"z": 1, "kind": kind, "a": "x", "n": -3}
        return "test.headers", "", b"same", pika.BasicProperties(headers=headers)

    kinds = ["good", "bad", "good", "good", "bad", "bad", "good"] * 20
    reports = client.publish_many([message(kind) for kind in kinds])
    assert ["bad" if report.error else "good" for report in reports] == kinds
    client.delete_exchange("test.headers")


def test_bodies_of_every_size_arrive_whole(client: rabbitmq.Client, queue: str) -> None:
    sizes = [0, 1, 4087, 4088, 4089, 131_063, 131_064, 131_065, 1_000_000]
    reports = client.publish_many([("", queue, bytes([size % 251]) * size) for size in sizes])
    assert all(report.ok for report in reports)
    for size in sizes:
        taken = client.get(queue)
        assert taken is not None and taken.body == bytes([size % 251]) * size


def test_properties_arrive_as_they_are_when_published(client: rabbitmq.Client, queue: str) -> None:
    properties = pika.BasicProperties(headers={"n": 1}, content_type="a/b", priority=3)
    client.publish("", queue, b"1", properties)
    properties.headers["n"] = 2  # type: ignore[index]
    client.publish("", queue, b"2", properties)
    properties.content_type = "c/d"
    client.publish("", queue, b"3", properties)
    client.publish("", queue, b"4")
    found = [client.get(queue) for _ in range(4)]
    assert [one and one.properties.headers for one in found] == [{"n": 1}, {"n": 2}, {"n": 2}, None]
    assert [one and one.properties.content_type for one in found] == ["a/b", "a/b", "c/d", None]
    assert found[3] is not None and found[3].properties.delivery_mode == 2


def test_topology_is_restored_on_a_new_connection(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    """Also what RabbitMQ forgot with its restart: transient queues, their bindings."""
    client.declare_exchange("test.restored", "topic", durable=False)
    own = client.declare_queue("", durable=False, exclusive=True)
    client.declare_queue("test.transient", durable=False)
    client.bind("test.transient", "test.restored", "a.*")
    client.bind(own, "test.restored", "a.*")
    client.declare_queue("test.deleted", durable=False)
    client.delete_queue("test.deleted")
    broker.kill()
    broker.start()
    flows(client, queue)
    client.purge(own)  # this connection, too, is whole again
    client.publish("test.restored", "a.b", b"x")
    assert client.purge("test.transient") == 1
    assert client.purge(own) == 1
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="404"):
        client.declare_queue("test.deleted", passive=True)
    client.delete_queue("test.transient")
    client.delete_exchange("test.restored")


def test_what_cannot_be_restored_is_left_out(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    client.declare_queue("test.changed", durable=True)
    client.declare_queue("test.after", durable=True)
    with contextlib.closing(broker.connect()) as connection:
        channel = connection.channel()
        channel.queue_delete("test.changed")
        channel.queue_declare("test.changed", durable=False)
        channel.queue_delete("test.after")
    drop(client)
    flows(client, queue)
    flows(client, "test.after")
    client.delete_queue("test.changed")
    client.delete_queue("test.after")


def test_what_gets_no_answer_is_left_out(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    """One queue that says nothing keeps nobody from the others, nor from what was declared after
    it; raw pika waits for the answer."""
    client.declare_queue("test.mute", durable=True)
    client.declare_queue("test.after", durable=False)
    with broker.suspended("test.mute"):
        raw = threading.Thread(target=declare_raw, args=(broker, "test.mute"))
        raw.start()
        with contextlib.closing(broker.connect()) as connection:
            connection.channel().queue_delete("test.after")
        drop(client)
        flows(client, queue)
        client.publish("", "test.after", b"x")
        assert client.get("test.after") is not None
        with contextlib.closing(broker.connect()) as connection:
            connection.channel().queue_delete("test.after")
        raw.join(1.0)
        assert raw.is_alive(), "no bite"
    raw.join()
    # the answer comes late: what was to follow may have needed it, and is declared once more
    until = time.monotonic() + 10
    while not exists(broker, "test.after"):
        assert time.monotonic() < until
        time.sleep(0.05)
    flows(client, "test.mute")
    client.delete_queue("test.mute")
    client.delete_queue("test.after")


def declare_raw(broker: Broker, queue: str) -> None:
    with contextlib.closing(broker.connect()) as connection:
        connection.channel().queue_declare(queue, durable=True)


def exists(broker: Broker, queue: str) -> bool:
    with contextlib.closing(broker.connect()) as connection:
        try:
            connection.channel().queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
    return True


def drop(client: rabbitmq.Client) -> None:
    """Both connections end, without a farewell."""
    engine = client._engine
    assert engine is not None
    engine.post(engine.publishing.drop, "test")
    engine.post(engine.asking.drop, "test")


def test_what_is_unconfirmed_is_repeated_if_asked_for(broker: Broker, queue: str) -> None:
    """With a message id: whoever gets it twice can tell."""
    policy = Policy(timeout=Fixed(3.0), breaker=None)
    options = {"name": "repeats", "policy": policy, "repeat_unconfirmed": True}
    with rabbitmq.Client(broker.address, **options) as client:  # type: ignore[arg-type]
        client.publish("", queue, b"first")
        with broker.paused():
            futures = [client.publish_async("", queue, f"{number}") for number in range(50)]
            time.sleep(0.1)
            drop(client)
            time.sleep(0.1)
        assert [future.result() for future in futures] == [None] * 50
        ids: dict[bytes, str | None] = {}
        while taken := client.get(queue):
            assert ids.setdefault(taken.body, taken.properties.message_id)
        assert len(ids) == 51 and len(set(ids.values())) == 51


def test_without_asking_nothing_is_repeated(broker: Broker, queue: str) -> None:
    with rabbitmq.Client(broker.address, name="once") as client:
        client.publish("", queue, b"first")
        with broker.paused():
            future = client.publish_async("", queue, b"x")
            time.sleep(0.1)
            drop(client)
            error = future.exception()
        assert isinstance(error, rabbitmq.ConnectionLost) and error.sent


def test_whatever_is_raised_on_the_io_thread_the_next_call_works(
    client: rabbitmq.Client, queue: str
) -> None:
    inbox: list[bytes] = []
    client.consume(queue, lambda message: inbox.append(message.body))

    def broken() -> None:
        raise SystemExit

    for number in range(3):
        flows(client, queue)
        engine = client._engine
        assert engine is not None
        engine.post(engine.ioloop.call_later, 0, broken)
        time.sleep(0.2)
        flows(client, queue)
        assert client._engine is engine, number
    until = time.monotonic() + 10
    while len(inbox) < 6 and time.monotonic() < until:
        time.sleep(0.02)
    assert len(inbox) >= 6, "the consumer goes on"


def test_messages_that_get_no_confirm_leave_the_others_the_rest_of_the_wire(
    client: rabbitmq.Client, queue: str
) -> None:
    """Large sends are for when all is well: more than half of the wire is taken here."""
    link, call = connected(client, queue), client._block("publish_many").begin()
    engine, batch = client._running(), Batch(call, call.at)
    stuck = {
        -number: Item(batch, client._encoder.message("", queue, b"x", None, True))
        for number in range(1, 701)
    }
    engine.post(link._unconfirmed.update, stuck)
    for publish in (
        lambda: client.publish("", queue, b"x"),
        lambda: client.publish_async("", queue, b"x").result(),
        lambda: client.publish_many([("", queue, b"x")] * 400),
    ):
        _, seconds = timed(publish)
        assert seconds < 0.5
    assert client.purge(queue) == 403
    engine.post(link._unconfirmed.clear)
    call.abandoned()


def test_who_got_more_time_keeps_nobody_behind_it_waiting(client: rabbitmq.Client) -> None:
    """Futures are given up in the order in which they were handed over, about."""
    engine, over = client._running(), threading.Event()

    class Waiting(Request):
        timed_here = True
        gave_up = 0.0

        def give_up(self) -> None:
            super().give_up()
            self.gave_up = time.monotonic()
            if self.at > began + 0.4:
                over.set()

    began = time.monotonic()
    made = [Waiting(client._block("get").begin(), began + at) for at in (0.05, 0.1, 0.2, 0.06)]

    def expire() -> None:
        for one in made:
            engine.expire([one])
        made[0].at = began + 0.5
        engine.expire(made[:1])  # as where its connection was lost

    engine.post(expire)
    assert over.wait(5)
    late = [one.gave_up - one.at for one in made]
    assert min(late) >= 0 and max(late) < TOLERANCE, late
    for one in made:
        one.call.abandoned()


def test_what_was_confirmed_is_told_also_where_sending_the_next_fails(
    client: rabbitmq.Client, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next leave before the confirmed are told of it."""
    link, futures, fails = connected(client, queue), [], []
    pump = link.pump

    def failing(*least: int) -> None:
        if not fails and sum(future.done() for future in futures) > 100:
            fails.append(len(futures))
            raise RuntimeError("as a bug would")
        pump(*least)

    monkeypatch.setattr(link, "pump", failing)
    for _ in range(3_000):
        futures.append(client.publish_async("", queue, b"x"))
    errors = [future.exception(10) for future in futures]
    assert fails and errors.count(None) > 100
    assert all(error is None or isinstance(error, Unavailable) for error in errors)
    flows(client, queue)
    assert client.purge(queue) >= errors.count(None)


def test_what_has_to_wait_while_the_io_thread_begins_anew_is_sent_by_its_next_loop(
    client: rabbitmq.Client, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, fails = connected(client, queue), []
    pump = link.pump

    def failing(*least: int) -> None:
        if not fails and link.inbox:
            link._queue_new()  # as where the wire is full
            fails.append(len(link._held))
            raise SystemExit
        pump(*least)

    monkeypatch.setattr(link, "pump", failing)
    assert client.publish_async("", queue, b"x").result(10) is None
    assert fails == [1]
    assert client.purge(queue) == 2


def test_who_keeps_a_future_keeps_neither_the_message_nor_a_dict(
    client: rabbitmq.Client, queue: str
) -> None:
    """A dict would cost more than the attributes: Python gives one to whatever is told more than
    its constructor said."""
    futures: list[Any] = [client.publish_async("", queue, b"x" * 100) for _ in range(3_000)]
    for future in futures:
        future.result()
    assert {bytes(future.head + future.body) for future in futures} == {b""}
    assert not any(future._client for future in futures)
    if (3, 11) <= sys.version_info < (3, 13):
        with_dict = [one for one in futures if any(type(x) is dict for x in gc.get_referents(one))]
        # those on which somebody waited have a lock more
        assert len(with_dict) < 1_000


def test_a_return_is_told_apart_also_from_messages_that_were_given_up(
    client: rabbitmq.Client,
) -> None:
    """On a headers exchange: the first is given up on the wire, then it comes back."""
    block, returns = client._block("publish_async"), Returns()
    made = []
    for tag, kind in enumerate(("bad", "good"), 1):
        call, properties = block.begin(), pika.BasicProperties(headers={"kind": kind})
        message = client._encoder.message("headers", "", b"same", properties, True)
        made.append(promise := Promise(call, call.at, message, client))
        promise.sent, promise.tag = True, tag
    bad, good = made
    bad.give_up()
    method: Any = pika.spec.Basic.Return(312, "NO_ROUTE", "headers", "")
    came = pika.BasicProperties(headers={"kind": "bad"})
    returns.tell({1: bad, 2: good}, range(1, 3), method, came, b"same")
    assert isinstance(bad.failure and bad.failure.error, rabbitmq.Unroutable)
    assert not good.settled
    assert bad.body == b"", "once it is settled, nothing is kept"
    good.succeed()


def test_a_future_can_not_be_cancelled(client: rabbitmq.Client, queue: str) -> None:
    future = client.publish_async("", queue, b"x")
    assert not future.cancel()
    assert future.result() is None


# -- the life of a client -----------------------------------------------------------------------


def test_a_closed_client_connects_again(client: rabbitmq.Client, queue: str) -> None:
    client.publish("", queue, b"x")
    client.close()
    client.close()
    client.publish("", queue, b"x")
    assert client.purge(queue) == 2


def test_a_client_that_is_gone_leaves_nothing(broker: Broker, queue: str) -> None:
    with leaks.no_leaks():
        client = rabbitmq.Client(broker.address)
        client.publish("", queue, b"x")
        del client
        gc.collect()


def test_a_forked_child_has_its_own_connection(client: rabbitmq.Client, queue: str) -> None:
    client.publish("", queue, b"parent")
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            client.publish("", queue, b"child")
            client.close()
            status = 0
        os._exit(status)
    until = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    assert ended[1] == 0
    client.publish("", queue, b"parent again")
    assert client.purge(queue) == 3
