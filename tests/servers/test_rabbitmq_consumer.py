"""`Client.consume` on a real broker: at least once, over every end of a connection."""

from __future__ import annotations

import gc
import queue as queues
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.servers import limits
from tests.servers.limits import TOLERANCE
from timedblock import Percentile, Policy, Unavailable, rabbitmq
from timedblock.testing import leaks
from timedblock.testing.rabbitmq import Broker

pytestmark = pytest.mark.server

PATIENT = Policy(timeout=Percentile(99.5, floor=2.0, ceiling=5.0))
Inbox = queues.SimpleQueue[rabbitmq.Message]

comes = partial(limits.comes, seconds=15.0, look=0.02)


@pytest.fixture
def client(broker: Broker) -> Iterator[rabbitmq.Client]:
    with leaks.no_leaks():
        with rabbitmq.Client(broker.address, policy=PATIENT) as one:
            yield one
        gc.collect()


@pytest.fixture
def queue(client: rabbitmq.Client, request: pytest.FixtureRequest) -> Iterator[str]:
    yield client.declare_queue(f"test.{request.node.name}")
    client.delete_queue(f"test.{request.node.name}")


def left(broker: Broker, queue: str) -> int:
    """Messages of the queue that nobody has."""
    with broker.connect() as connection:
        count: int = connection.channel().queue_declare(queue, passive=True).method.message_count
        return count


def test_what_a_handler_returned_from_is_gone(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    inbox: Inbox = queues.SimpleQueue()
    consumer = client.consume(queue, inbox.put)
    client.publish_many([("", queue, f"{number}") for number in range(500)])
    got = [inbox.get(timeout=5) for _ in range(500)]
    assert [int(message.body) for message in got] == list(range(500))
    assert not got[0].redelivered and got[0].routing_key == queue
    assert comes(lambda: client.health()["consumers"] == {queue: {"waiting": 0, "lag": 0.0}})
    assert comes(lambda: inbox.empty())
    consumer.stop()
    assert left(broker, queue) == 0
    assert client.health()["consumers"] == {}


def test_a_handler_that_raises_gets_the_message_again_and_then_never(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    seen: list[bool] = []

    def handler(message: rabbitmq.Message) -> None:
        seen.append(message.redelivered)
        raise SystemExit if len(seen) == 2 else ValueError("no")

    client.consume(queue, handler, max_attempts=3, requeue_delay=0.1)
    began = time.monotonic()
    client.publish("", queue, b"poison")
    assert comes(lambda: len(seen) == 3)
    assert time.monotonic() - began >= 0.2, "each time after the delay"
    time.sleep(0.3)
    assert seen == [False, True, True]
    assert left(broker, queue) == 0


def test_by_hand_a_message_is_acknowledged_or_given_back(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    inbox: Inbox = queues.SimpleQueue()
    consumer = client.consume(queue, inbox.put, ack="manual", prefetch=2)
    client.publish_many([("", queue, b"x")] * 3)
    first, second = inbox.get(timeout=5), inbox.get(timeout=5)
    with pytest.raises(queues.Empty):
        inbox.get(timeout=0.2)  # two are out
    first.ack()
    first.nack()  # once is enough
    second.nack()
    again = {inbox.get(timeout=5).redelivered for _ in range(2)}
    assert again == {False, True}
    consumer.stop()
    assert comes(lambda: left(broker, queue) == 2), "what was not acknowledged is back"


def test_a_consumer_goes_on_after_the_broker_was_killed(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    inbox: Inbox = queues.SimpleQueue()
    client.consume(queue, inbox.put, ack="manual")
    client.publish("", queue, b"before")
    unsettled = inbox.get(timeout=5)
    broker.kill()
    broker.start()
    again = inbox.get(timeout=20)
    assert (again.body, again.redelivered) == (b"before", True)
    unsettled.ack()  # of a connection that is gone: harmless
    again.ack()
    until = time.monotonic() + 10
    while True:
        try:
            client.publish("", queue, b"after")
            break
        except Unavailable:
            assert time.monotonic() < until
    found = {inbox.get(timeout=10).body}
    while not inbox.empty():
        found.add(inbox.get().body)
    assert b"after" in found


def test_a_queue_that_comes_later_is_consumed_then(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    inbox: Inbox = queues.SimpleQueue()
    client.consume("test.later", inbox.put)
    time.sleep(0.2)
    client.declare_queue("test.later")
    client.publish("", "test.later", b"x")
    assert inbox.get(timeout=10).body == b"x"
    client.delete_queue("test.later")  # RabbitMQ cancels the consumer
    client.declare_queue("test.later")
    client.publish("", "test.later", b"y")
    assert inbox.get(timeout=10).body == b"y"
    client.close()
    client.delete_queue("test.later")


def test_a_handler_may_stop_its_own_consumer(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    consumers: list[rabbitmq.Consumer] = []
    calls: list[bytes] = []

    def handler(message: rabbitmq.Message) -> None:
        calls.append(message.body)
        consumers[0].stop()

    client.publish_many([("", queue, b"x")] * 3)
    consumers.append(client.consume(queue, handler, prefetch=1))
    assert comes(lambda: len(calls) > 0)
    time.sleep(0.2)
    assert len(calls) == 1


def test_what_a_handler_has_in_hand_is_acknowledged_after_stop(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    calls: list[bytes] = []

    def handler(message: rabbitmq.Message) -> None:
        calls.append(message.body)
        time.sleep(0.4)

    client.publish_many([("", queue, b"x")] * 3)
    consumer = client.consume(queue, handler)
    assert comes(lambda: len(calls) == 1)
    assert consumer.waiting == 2 and 0 < consumer.lag < 5
    consumer.stop()
    assert comes(lambda: left(broker, queue) == 2)
    time.sleep(0.2)
    assert len(calls) == 1


def test_a_handler_that_never_returns_does_not_hold_up_stop(
    client: rabbitmq.Client, broker: Broker, queue: str
) -> None:
    hung, freed = threading.Event(), threading.Event()

    def handler(message: rabbitmq.Message) -> None:
        hung.set()
        freed.wait(20)

    client.publish("", queue, b"x")
    consumer = client.consume(queue, handler)
    assert hung.wait(10)
    began = time.monotonic()
    consumer.stop(0.2)
    assert time.monotonic() - began < 0.2 + TOLERANCE
    assert comes(lambda: left(broker, queue) == 1), "it is not acknowledged"
    freed.set()
    consumer.stop()
    assert left(broker, queue) == 1, "and not after its consumer's end either"
