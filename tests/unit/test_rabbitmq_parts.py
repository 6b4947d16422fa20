"""Parts of the RabbitMQ client that need no broker: hosts, arguments, errors."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import pickle
import ssl
import threading
import time
from typing import Any

import pika
import pytest

from timedblock import rabbitmq
from timedblock.rabbitmq import errors, hosts
from timedblock.rabbitmq.encoding import Encoder
from timedblock.rabbitmq.future import Confirmation
from timedblock.rabbitmq.request import Item


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (("store", 5673), ["store:5673"]),
        (("::1", 5673), ["[::1]:5673"]),
        ("amqp://user:secret@store:5673/vhost", ["store:5673"]),
        ([("a", 1), "amqps://b"], ["a:1", "b:5671"]),
        (pika.ConnectionParameters("c"), ["c:5672"]),
    ],
)
def test_hosts_are_pairs_urls_or_parameters(given: Any, shown: list[str]) -> None:
    found = hosts.read(given)
    assert [hosts.show(one) for one in found] == shown
    assert {one.heartbeat for one in found} == {hosts.HEARTBEAT}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([], "at least one"),
        (("store", 0), "not 0"),
        (("store", True), "not True"),
        (("", 5672), "not ''"),
        ("http://user:secret@store", "begins with amqp://"),
        ("amqp://user:secret@store:port", "ValueError"),
        ([7], "not a int"),
    ],
)
def test_what_is_no_host_is_named_without_its_secret(given: Any, named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=named) as caught:
        rabbitmq.Client(given)
    assert "secret" not in str(caught.value)


def test_a_name_is_shown_with_the_address_where_it_was_found() -> None:
    [by_name, by_address] = hosts.read([("store", 5673), ("10.0.0.1", 5673)])
    assert hosts.show(by_name, "10.0.0.1") == "store:5673 (10.0.0.1)"
    assert hosts.show(by_address, "10.0.0.1") == "10.0.0.1:5673"


def test_places_are_those_of_addresses_and_of_names_once_resolved() -> None:
    """Each once, whatever stands for it; a name's new addresses take the place of the old ones."""
    given = hosts.read([("store", 1), ("10.0.0.1", 1), ("10.0.0.1", 2)])
    places = hosts.Places(given)
    assert places.all() == [("10.0.0.1", 1), ("10.0.0.1", 2)]
    assert places.of(given[0]) == []
    places.learn(given[0], ["10.0.0.1", "10.0.0.9"])
    assert places.of(given[0]) == [("10.0.0.1", 1), ("10.0.0.9", 1)]
    places.learn(given[0], ["10.0.0.8"])
    assert places.all() == [("10.0.0.1", 1), ("10.0.0.1", 2), ("10.0.0.8", 1)]


def test_an_attempt_is_at_one_address_and_keeps_the_name_for_tls() -> None:
    context = ssl.create_default_context()
    given = hosts.read(pika.ConnectionParameters("store", ssl_options=pika.SSLOptions(context)))[0]
    one = hosts.at(given, "127.0.0.1", 0.5)
    assert (one.host, one.ssl_options.server_hostname) == ("127.0.0.1", "store")
    assert one.connection_attempts == 1 and one.stack_timeout == 0.5
    assert given.host == "store"


@pytest.mark.parametrize("bad", [0, -1])
def test_the_bound_on_unconfirmed_messages_is_checked(bad: int) -> None:
    with pytest.raises(ValueError, match=f"not {bad}"):
        rabbitmq.Client(max_unconfirmed=bad)
    with pytest.raises(TypeError, match="not True"):
        rabbitmq.Client(max_unconfirmed=True)


@pytest.mark.parametrize("error", [errors.Unroutable(312, "NO_ROUTE"), errors.Nacked()])
def test_what_became_of_a_message_travels(error: Exception) -> None:
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is type(error)
        assert (str(other), repr(other)) == (str(error), repr(error))
        assert other.sent is True  # type: ignore[attr-defined]


def test_a_client_does_nothing_until_it_is_used() -> None:
    client = rabbitmq.Client("amqp://user:secret@store")
    assert client.health() == {"host": None, "blocked": False, "unconfirmed": 0, "consumers": {}}
    assert "secret" not in repr(client)
    client.close()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"ack": "never"}, "not 'never'"),
        ({"prefetch": 0}, "prefetch must be from 1, not 0"),
        ({"max_attempts": True}, "max_attempts must be a whole number, not True"),
        ({"requeue_delay": -1.0}, "requeue_delay must be from 0"),
        ({"handler": None}, "callable, not None"),
    ],
)
def test_what_no_consumer_can_do_is_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=named):
        rabbitmq.Client().consume("q", **{"handler": print, **wrong})


# -- the future -----------------------------------------------------------------------------------

ENDS: list[Exception | None] = [None, errors.Nacked()]


def settled(error: Exception | None, after: float = 0.0) -> Confirmation:
    """A future that is settled `after` so many seconds, by another thread."""
    future = Confirmation()
    if after:
        threading.Timer(after, future.settle, [error]).start()
    else:
        future.settle(error)
    return future


@pytest.mark.parametrize("error", ENDS)
@pytest.mark.parametrize("after", [0.0, 0.05])
def test_a_future_ends_as_it_was_settled(error: Exception | None, after: float) -> None:
    """Asked before and after, by every way of asking."""
    assert settled(error, after).exception() is error
    future = settled(error, after)
    if error is None:
        assert future.result() is None
    else:
        with pytest.raises(type(error)):
            future.result()
    assert future.done() and not future.running() and not future.cancelled()
    futures = [settled(error, after), settled(error)]
    assert concurrent.futures.wait(futures, 5).done == set(futures)
    assert set(concurrent.futures.as_completed([settled(error, after)], 5)) != set()
    told: list[Any] = []
    future = settled(error, after)
    future.add_done_callback(told.append)
    future.exception()
    until = time.monotonic() + 5
    while not told and time.monotonic() < until:
        time.sleep(0.001)
    assert told == [future]


@pytest.mark.parametrize("error", ENDS)
def test_a_future_can_be_awaited(error: Exception | None) -> None:
    async def wait() -> None:
        await asyncio.wrap_future(settled(error, 0.02))

    if error is None:
        asyncio.run(wait())
    else:
        with pytest.raises(type(error)):
            asyncio.run(wait())


def test_a_future_that_is_not_settled_says_so() -> None:
    future = Confirmation()
    assert future.running() and not future.done() and not future.cancel()
    for ask in (future.result, future.exception):
        with pytest.raises(concurrent.futures.TimeoutError):
            ask(0.01)


def test_nobody_waits_in_vain() -> None:
    """Asked at the very moment when it is settled."""
    for number in range(300):
        future, gate = Confirmation(), threading.Barrier(2)

        def settle(future: Confirmation = future, gate: threading.Barrier = gate) -> None:
            gate.wait()
            future.settle(None)

        thread = threading.Thread(target=settle)
        thread.start()
        gate.wait()
        assert future.exception(5) is None, number
        thread.join()


def test_an_item_is_sent_before_it_is_looked_whether_somebody_waits() -> None:
    """Its caller gives up, and then looks at `sent`: in between it must not leave unsaid."""
    seen: list[bool] = []

    class Leaving:
        @property
        def given_up(self) -> bool:
            seen.append(item.sent)
            return True

    batch: Any = Leaving()
    item = Item(batch, Encoder(named=False).message("", "q", b"x", None, True))
    assert not item.begin() and not item.sent
    assert seen == [True]
