"""What becomes of what is on its way, and of what waits, when the connection ends or is full."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pika
import pytest

from tests.servers.limits import comes
from timedblock import Fixed, Policy, rabbitmq
from timedblock.faults.proxy import Relay
from timedblock.rabbitmq.connecting import LIVES, PAUSE_MAX, Connecting
from timedblock.rabbitmq.publishing import PublishingLink
from timedblock.testing.rabbitmq import Broker

pytestmark = pytest.mark.server


@pytest.fixture(autouse=True)
def nothing_is_left(no_leaks: None) -> Iterator[None]:
    yield
    gc.collect()


def publishing(client: rabbitmq.Client) -> PublishingLink:
    """The connection that publishes, when it has published."""
    assert client._engine is not None
    return client._engine.publishing


def end(link: PublishingLink) -> None:
    """As a proxy between does that goes: an end of the stream, and RabbitMQ is well."""
    link.connection._transport._sock.shutdown(socket.SHUT_RDWR)


def ended(link: PublishingLink, connection: Any) -> bool:
    """Whether it ends, soon."""
    return comes(lambda: link.connection is not connection)


def end_at(link: PublishingLink, tag: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once so many messages were sent."""
    connection, inner = link.connection, link._read

    def read(confirms: list[tuple[int, bool]]) -> None:
        inner(confirms)
        if link.connection is connection and link._tag >= tag:
            end(link)

    monkeypatch.setattr(connection, "_confirm", read)


def outcomes(errors: list[BaseException | None]) -> Counter[str]:
    return Counter(
        "ok" if error is None else f"{type(error).__name__}, sent {getattr(error, 'sent', None)}"
        for error in errors
    )


def test_the_end_of_a_stream_costs_raw_pika_its_connection(broker: Broker) -> None:
    """And whatever it has to publish until somebody makes another."""
    raw: Any = broker.connect()
    channel = raw.channel()
    channel.confirm_delivery()
    raw._impl._transport._sock.shutdown(socket.SHUT_RDWR)
    for _ in range(2):
        with pytest.raises(pika.exceptions.AMQPError):
            channel.basic_publish("", "nowhere", b"x")
    assert not raw.is_open


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("hosts", [1, 3])
def test_what_was_not_sent_goes_by_the_next_connection(
    broker: Broker, hosts: int, repeat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was, if the client repeats; over one connection that is made, not two at once."""
    crossed: list[str] = []
    inner = Connecting._open

    def opening(self: Connecting, *where: Any) -> None:
        if self.connection is not None:
            crossed.append(type(self).__name__)
        inner(self, *where)

    monkeypatch.setattr(Connecting, "_open", opening)
    with Relay(upstream=broker.address) as relay:
        known = [relay.listen().address for _ in range(hosts)]
        with rabbitmq.Client(
            known, name=f"lost{hosts}{repeat}", repeat_unconfirmed=repeat, timeout=8.0
        ) as client:
            queue = client.declare_queue("test.lost")
            client.publish("", queue, b"x")
            time.sleep(LIVES)
            end_at(publishing(client), 3_000, monkeypatch)
            reports = client.publish_many([("", queue, b"x")] * 20_000)
            client.delete_queue(queue)
    found = outcomes([report.error for report in reports])
    lost = found.pop("ConnectionLost, sent True", 0)
    assert (lost == 0) if repeat else (0 < lost <= 1_000), found
    assert found == {"ok": 20_000 - lost}
    assert not crossed


def test_futures_are_repeated_also_where_the_connection_was_young(broker: Broker) -> None:
    """What ended it so soon may end the next one too: but who waits needn't wait for the rest of a
    long pause, and is not told that no host is there."""
    with rabbitmq.Client(
        broker.address, name="young", repeat_unconfirmed=True, timeout=5.0
    ) as client:
        queue = client.declare_queue("test.young")
        for _ in range(6):
            client.publish("", queue, b"x")
            link = publishing(client)
            connection = link.connection
            futures = [client.publish_async("", queue, b"x") for _ in range(2_000)]
            assert client._engine is not None
            client._engine.post(end, link)
            began = time.monotonic()
            assert outcomes([future.exception() for future in futures]) == {"ok": 2_000}
            took = time.monotonic() - began
            # all may have been confirmed before; the next end is not to strike who is connecting
            assert ended(link, connection)
        assert took < PAUSE_MAX, "nobody waited for the sixth pause, of 1 to 2 s"
        client.delete_queue(queue)


def test_batch_of_which_all_had_left_goes_on_by_the_next_connection(broker: Broker) -> None:
    """Encoding was slower than sending, so that nothing of it waited when its connection ended."""
    with rabbitmq.Client(broker.address, name="drained", timeout=5.0) as client:
        queue = client.declare_queue("test.drained")
        client.publish("", queue, b"x")
        link, encoded = publishing(client), 0
        engine = client._engine
        assert engine is not None

        class Body(str):
            def encode(self, *args: Any, **named: Any) -> bytes:
                nonlocal encoded
                encoded += 1
                if encoded == 500:
                    assert comes(lambda: link._tag > 200 and not link.unconfirmed)
                    first = link.connection
                    engine.post(end, link)
                    assert comes(lambda: link.ready and link.connection is not first)
                return super().encode(*args, **named)

        reports = client.publish_many([("", queue, Body("x"))] * 1_000)
        client.delete_queue(queue)
    assert outcomes([report.error for report in reports]) == {"ok": 1_000}


@pytest.fixture
def stuck(broker: Broker) -> Iterator[str]:
    """A queue that no client declares: where it answers nothing, that would take its time."""
    with contextlib.closing(broker.connect()) as connection:
        connection.channel().queue_declare("test.stuck", durable=True)
        yield "test.stuck"
        connection.channel().queue_delete("test.stuck")


def test_messages_with_a_detour_wait_for_no_room_on_the_wire(broker: Broker, stuck: str) -> None:
    """It is full of what is not confirmed; those on a detour are, also if they came before it."""
    policy = Policy(timeout=Fixed(5.0), breaker=None)
    with rabbitmq.Client(broker.address, name="full", policy=policy) as client:
        queue = client.declare_queue("test.detour")
        client.publish("", queue, b"x")
        link, engine = publishing(client), client._engine
        assert engine is not None
        with broker.suspended(stuck):
            filling = [client.publish_async("", stuck, b"x") for _ in range(1_500)]
            assert comes(lambda: link.unconfirmed == 1_000)
            early = [client.publish_async("", queue, b"x") for _ in range(10)]
            assert comes(lambda: len(link._held) == 510)
            engine.post(lambda: engine.routing.unserved(("", queue), None, nacked=True))
            assert comes(lambda: engine.routing.way(("", queue)) is not None)
            late = [client.publish_async("", queue, b"x") for _ in range(10)]
            assert [future.exception() for future in late] == [None] * 10
            assert not any(future.done() for future in filling), "the wire was full throughout"
        assert [future.exception() for future in early + filling] == [None] * 1_510
        way = engine.routing.way(("", queue))
        assert way is not None and way._lanes["", queue].tag == 20, "the held ones took it, too"
        assert client.delete_queue(queue) == 21


def test_held_message_whose_time_is_over_is_taken_out_alone(broker: Broker, stuck: str) -> None:
    """By no look at all the others: 20,000 that gave up together took 6 s, and not half a one."""
    policy = Policy(timeout=Fixed(5.0), breaker=None)
    with rabbitmq.Client(broker.address, name="late", policy=policy) as client:
        client.publish("", client.declare_queue("test.late"), b"x")
        link, engine = publishing(client), client._engine
        assert engine is not None
        held = link._held
        with broker.suspended(stuck):
            futures = [client.publish_async("", stuck, b"x") for _ in range(1_500)]
            assert comes(lambda: len(held) == 500)
            seventh: Any = held[6]
            engine.post(seventh.give_up)
            engine.post(link.doubt, seventh)
            assert comes(lambda: len(held) == 499)
            assert link._held is held and seventh not in held
        found = outcomes([future.exception() for future in futures])
        assert found == {"ok": 1_499, "DeadlineExceeded, sent False": 1}
        client.delete_queue("test.late")


def test_naps_between_reads_are_one_a_turn_of_the_loop(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where much is on the wire: confirms come a few to a read, and a read costs more than they do.
    But pika reads until nothing is there, and during a nap something comes: it would never end."""
    policy = Policy(timeout=Fixed(5.0), breaker=None)
    with rabbitmq.Client(broker.address, name="turns", policy=policy) as client:
        queue = client.declare_queue("test.turns")
        client.publish("", queue, b"x")
        link, engine = publishing(client), client._engine
        assert engine is not None
        with broker.suspended(queue):
            futures = [client.publish_async("", queue, b"x") for _ in range(500)]
            assert comes(lambda: link.unconfirmed == 500)
            over = threading.Event()
            naps: list[float] = []
            inner = engine.clock

            class Watched:
                monotonic, wait = inner.monotonic, inner.wait

                def sleep(self, seconds: float) -> None:
                    if seconds > 0:
                        naps.append(seconds)
                    inner.sleep(seconds)

            def reads() -> None:
                for _ in range(50):
                    link._read([])
                assert not naps, "others have their turn first"
                engine.ioloop.call_later(0.05, over.set)

            monkeypatch.setattr(engine, "clock", Watched())
            engine.post(reads)
            assert over.wait(5.0)
            assert naps == [0.001]
        assert [future.exception() for future in futures] == [None] * 500
        naps.clear()
        for _ in range(5):
            client.publish("", queue, b"x")
        assert not naps, "who waits for the last ones waits for nothing else"
        client.delete_queue(queue)


def test_consumers_leave_a_host_whose_publishing_connection_was_lost(broker: Broker) -> None:
    """A node that stops closes one connection at once, and another seconds later; a consumer can't
    tell the silence in between from an empty queue."""
    with Relay(upstream=broker.address) as relay:
        hosts = [relay.listen().address for _ in range(3)]
        with rabbitmq.Client(hosts, name="follow", timeout=5.0) as client:
            queue = client.declare_queue("test.follow")
            got: list[bytes] = []
            consumer = client.consume(queue, lambda message: got.append(message.body))
            client.publish("", queue, b"1")
            assert comes(lambda: got == [b"1"])
            link, engine = publishing(client), client._engine
            assert engine is not None
            before = link.place
            assert engine.asking.place == before
            time.sleep(LIVES)
            engine.post(end, link)
            assert comes(lambda: link.ready and link.place not in (None, before))
            assert comes(lambda: engine.asking.ready and engine.asking.place == link.place)
            client.publish("", queue, b"2")
            assert comes(lambda: got[-1] == b"2")
            consumer.stop()
            client.delete_queue(queue)
