"""A route that RabbitMQ nacks, or doesn't confirm, takes a detour by another connection.

On one broker a full queue that refuses nacks; what a detour is really for is in
`test_rabbitmq_cluster`.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import pika
import pytest

from tests.servers.limits import comes
from timedblock import DeadlineExceeded, Fixed, Policy, rabbitmq
from timedblock.rabbitmq.detour import Detour
from timedblock.testing import leaks
from timedblock.testing.rabbitmq import Broker

pytestmark = pytest.mark.server

FULL = {"x-max-length": 1, "x-overflow": "reject-publish"}


@pytest.fixture
def client(broker: Broker) -> Iterator[rabbitmq.Client]:
    """Without a breaker: it counts nacks."""
    policy = Policy(timeout=Fixed(5.0), breaker=None)
    with leaks.no_leaks():
        with rabbitmq.Client(broker.address, name="detour", policy=policy) as one:
            yield one
        gc.collect()


@pytest.fixture
def queue(client: rabbitmq.Client, request: pytest.FixtureRequest) -> Iterator[str]:
    """A queue with room for one message."""
    yield client.declare_queue(f"test.{request.node.name}", arguments=FULL)
    client.delete_queue(f"test.{request.node.name}")


def detour(client: rabbitmq.Client, queue: str, exchange: str = "") -> Detour | None:
    """The detour of what is published to `queue`, if it has one that serves."""
    engine = client._engine
    assert engine is not None
    return engine.routing.way((exchange, queue))


def on_detour(client: rabbitmq.Client, queue: str) -> Detour:
    """Have the queue nack once; what is published to it from now on takes a detour."""
    client.publish("", queue, b"first")
    with pytest.raises(rabbitmq.Nacked):
        client.publish("", queue, b"refused")
    assert comes(lambda: detour(client, queue) is not None)
    assert client.get(queue) is not None
    found = detour(client, queue)
    assert found is not None
    return found


def lanes(client: rabbitmq.Client) -> list[dict[tuple[str, str], object]]:
    """What is open on each of its detours."""
    engine = client._engine
    assert engine is not None
    return [dict(one._lanes) for one in engine.routing.detours]


def connections(broker: Broker) -> int:
    return int(broker.evaluate("length(rabbit_networking:local_connections())"))


def test_nacked_route_is_served_by_another_connection(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    """What is published there arrives with its properties, once; other routes stay."""
    on_detour(client, queue)
    assert connections(broker) == 3
    properties = pika.BasicProperties(message_id="7", headers={"a": 1}, delivery_mode=1)
    for _ in range(3):
        client.publish("", queue, "tëxt", properties)
        taken = client.get(queue)
        assert taken is not None and taken.body == "tëxt".encode()
        assert (taken.properties.message_id, taken.properties.headers) == ("7", {"a": 1})
        assert client.get(queue) is None
    assert connections(broker) == 3


def test_route_that_is_nacked_there_too_goes_back(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    """A queue that refuses for ever costs no connection for each refusal."""
    first = on_detour(client, queue)
    client.publish("", queue, b"x")
    until = time.monotonic() + 3
    while time.monotonic() < until:
        with pytest.raises(rabbitmq.Nacked):
            client.publish("", queue, b"refused")
    assert connections(broker) <= 3
    engine = client._engine
    assert engine is not None
    assert engine.routing.detours == [first]
    assert client.get(queue) is not None
    client.publish("", queue, b"x")


def test_every_message_of_many_threads_has_its_own_answer(
    client: rabbitmq.Client, queue: str
) -> None:
    """Also those that wait for a channel which is given up: none waits for its limit."""
    client.publish("", queue, b"x")
    wrong: list[object] = []

    def work() -> None:
        for _ in range(100):
            began = time.monotonic()
            try:
                client.publish("", queue, b"x")
                wrong.append("accepted")
            except rabbitmq.Nacked:
                pass
            except Exception as error:
                wrong.append(error)
            if time.monotonic() - began > 2.5:
                wrong.append(time.monotonic() - began)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_batch_goes_that_way_too(client: rabbitmq.Client, queue: str) -> None:
    """Its messages for the route have the answers of the detour, the others their own."""
    other = client.declare_queue(f"{queue}.other")
    on_detour(client, queue)
    reports = client.publish_many([("", name, b"x") for name in (queue, other, queue, other)])
    assert [report.ok for report in reports] == [True, True, False, True]
    assert isinstance(reports[2].error, rabbitmq.Nacked)
    assert client.delete_queue(other) == 2


@pytest.mark.parametrize("many", [False, True])
def test_route_that_gets_no_confirm_there_has_another_channel(
    broker: Broker, many: bool, no_leaks: None
) -> None:
    """Others are confirmed all the while; what was left on the old one harms nobody."""
    policy = Policy(timeout=Fixed(1.0), breaker=None)
    with rabbitmq.Client(broker.address, name="silent", policy=policy) as client:
        queue, other = (client.declare_queue(name) for name in ("test.silent", "test.other"))
        client.publish("", other, b"x")
        engine = client._engine
        assert engine is not None
        engine.post(lambda: engine.routing.unserved(("", queue), None, nacked=True))
        assert comes(lambda: detour(client, queue) is not None)
        found = detour(client, queue)
        assert found is not None
        lane = found._lanes["", queue]
        with broker.suspended(queue):
            if many:
                [report] = client.publish_many([("", queue, b"x")], timeout=1.0)
                assert isinstance(report.error, DeadlineExceeded)
            else:
                with pytest.raises(DeadlineExceeded):
                    client.publish("", queue, b"x")
            client.publish("", other, b"x")
            assert comes(lambda: all(one.get(("", queue)) is not lane for one in lanes(client)))
        client.publish("", queue, b"y")
        assert client.delete_queue(queue) == 2
        assert client.delete_queue(other) == 2
    gc.collect()


def test_what_no_queue_gets_is_unroutable_there_too(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    """The queue is gone; a message that isn't mandatory is taken all the same."""
    on_detour(client, queue)
    with broker.connect() as connection:
        connection.channel().queue_delete(queue)
    with pytest.raises(rabbitmq.Unroutable, match="312 NO_ROUTE"):
        client.publish("", queue, b"x")
    client.publish("", queue, b"x", mandatory=False)
    client.publish("", queue, b"x", mandatory=False, confirm=False)


def test_returns_are_told_apart_there_too(client: rabbitmq.Client, queue: str) -> None:
    """By the headers, where everything else is the same."""
    other = client.declare_queue(f"{queue}.headers")
    client.declare_exchange("test.headers", "headers")
    client.bind(other, "test.headers", arguments={"x-match": "all", "kind": "good"})

    def message(kind: str) -> tuple[str, str, bytes, pika.BasicProperties]:
        return "test.headers", "", b"same", pika.BasicProperties(headers={"kind": kind})

    assert client.publish_many([message("good")])[0].ok
    engine = client._engine
    assert engine is not None
    route = message("good")[:2]
    engine.post(lambda: engine.routing.unserved(route, None, nacked=True))
    assert comes(lambda: detour(client, "", "test.headers") is not None)
    kinds = ["good", "bad", "good", "good", "bad", "bad", "good"] * 20
    reports = client.publish_many([message(kind) for kind in kinds])
    assert ["bad" if report.error else "good" for report in reports] == kinds
    assert detour(client, "", "test.headers") is not None
    client.delete_exchange("test.headers")
    client.delete_queue(other)


def test_exchange_that_is_gone_is_an_answer_there_too(client: rabbitmq.Client, queue: str) -> None:
    """RabbitMQ closes the channel of the route over it; the next message opens another."""
    client.declare_exchange("test.detour", "fanout")
    client.bind(queue, "test.detour")
    client.publish("test.detour", "", b"x")
    with pytest.raises(rabbitmq.Nacked):
        client.publish("test.detour", "", b"refused")
    assert comes(lambda: detour(client, "", "test.detour") is not None)
    client.delete_exchange("test.detour")
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="no exchange"):
        client.publish("test.detour", "", b"x")
    client.declare_exchange("test.detour", "fanout")
    client.publish("test.detour", "", b"x", mandatory=False)
    client.delete_exchange("test.detour")


def test_detour_that_is_lost_is_done_without(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    """Its connection ends: the route goes back to the one that publishes."""
    found = on_detour(client, queue)
    assert found.connection is not None
    found._engine.post(found.drop, "a test")
    assert comes(lambda: detour(client, queue) is None)
    client.publish("", queue, b"x")
    assert client.get(queue) is not None
    assert comes(lambda: connections(broker) == 2)


def test_io_thread_that_begins_anew_leaves_no_detour_behind(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    """Nobody connects on the loop that is ending."""
    on_detour(client, queue)
    engine = client._engine
    assert engine is not None

    def as_a_bug_would() -> None:
        raise SystemExit

    engine.post(as_a_bug_would)
    assert comes(lambda: not engine.routing.links)
    client.publish("", queue, b"x")
    assert client.get(queue) is not None
    assert comes(lambda: connections(broker) == 2)


def test_what_is_unconfirmed_on_a_lost_detour_is_repeated_if_asked_for(broker: Broker) -> None:
    """On the connection that publishes, with the same message id."""
    policy = Policy(timeout=Fixed(10.0), breaker=None)
    room = {**FULL, "x-max-length": 2}
    with (
        leaks.no_leaks(),
        rabbitmq.Client(
            broker.address, name="repeats", policy=policy, repeat_unconfirmed=True
        ) as client,
    ):
        queue = client.declare_queue("test.repeats", arguments=room)
        client.publish("", queue, b"x")
        found = on_detour(client, queue)
        assert client.get(queue) is not None
        client.publish("", queue, b"y")
        assert client.get(queue) is not None
        with broker.paused():
            future = client.publish_async("", queue, b"again")
            assert comes(lambda: any(lane.unconfirmed for lane in found._lanes.values()))
            found._engine.post(found.drop, "a test")
            assert comes(lambda: detour(client, queue) is None)
        assert future.result(20) is None
        taken = [client.get(queue), client.get(queue)]
        ids = {one.properties.message_id for one in taken if one is not None}
        assert len(ids) == 1
        assert {one.body for one in taken if one is not None} == {b"again"}
        client.delete_queue(queue)


def test_client_that_ends_ends_its_detour(client: rabbitmq.Client, broker: Broker) -> None:
    queue = client.declare_queue("test.ends", arguments=FULL)
    on_detour(client, queue)
    client.close()
    assert comes(lambda: connections(broker) == 0)
    client.delete_queue(queue)
