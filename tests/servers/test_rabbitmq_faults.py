"""`timedblock.rabbitmq.Client` under what no relay can do: every operation keeps its limit.

The broker is stopped, killed, short of memory; packets to it are rejected or dropped by the rules
of an outage that was simulated by hand; a name of one of several hosts never resolves. Each is
first shown to bite plain pika.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pika
import pytest

from tests.contract import cell
from tests.contract.cell import Cell
from tests.contract.faults import Expected, Trouble
from tests.contract.store import Address
from tests.contract.stores.rabbitmq import OPERATIONS
from tests.servers.limits import LIMIT, TOLERANCE, failed, recovered, timed
from tests.servers.memcached import stop
from tests.servers.rabbitmq_crowd import ASKS, PUBLISHES, STORE, Crowd, raw_pika
from timedblock import (
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    Overloaded,
    Unavailable,
    faults,
    rabbitmq,
)
from timedblock.faults.netfilter import Netfilter, PacketLink, why_not
from timedblock.faults.proxy import Relay
from timedblock.faults.reaper import Reaper
from timedblock.testing.rabbitmq import Broker, Server
from timedblock.testing.rabbitmq import why_not as why_no_broker

pytestmark = [pytest.mark.server, pytest.mark.wall]

# Both are true: nothing came in time, and a connection of which nothing is heard is given up.
NO_ANSWER = Expected((DeadlineExceeded, ConnectionLost), sent=True)
NO_HANDSHAKE = Expected((DeadlineExceeded, ConnectFailed), sent=False)


# -- the broker's process ---------------------------------------------------------------------


def test_a_paused_broker(broker: Broker, no_leaks: None) -> None:
    """Its kernel takes bytes, nobody reads them: each call ends at its limit."""
    trouble = Trouble(faults.Pause(), cold=NO_HANDSHAKE, warm=NO_ANSWER)
    crowd = Crowd(broker.address, broker.address, trouble)
    with contextlib.closing(crowd), raw_pika(broker.address) as raw:
        with broker.paused():
            crowd.call()
            assert raw() is None, "plain pika doesn't hang"
        assert crowd.problems() == []


@contextlib.contextmanager
def started_again(broker: Broker) -> Iterator[None]:
    """The broker is killed in here; afterwards it runs."""
    try:
        yield
    finally:
        broker.kill()
        broker.start()


def test_a_broker_killed_under_its_calls(broker: Broker, no_leaks: None) -> None:
    """Who waits for an answer is told at once; who calls then is refused; all of them go on with
    the next one."""
    lost = Expected((ConnectionLost,), sent=True)
    trouble = Trouble(faults.Kill(), cold=Expected((ConnectFailed,), sent=False), warm=lost)
    crowd = Crowd(broker.address, broker.address, trouble)
    with contextlib.closing(crowd), raw_pika(broker.address) as raw:
        stop(broker.pid)  # so that it dies while they wait
        killer = threading.Timer(LIMIT / 2, broker.kill)  # all of them are on the wire by then
        with started_again(broker):
            killer.start()
            crowd.call()
            killer.join()
            outcome = raw()
            assert outcome is not None and outcome.error is not None
            with rabbitmq.Client(broker.address, timeout=LIMIT) as client:
                error = failed(lambda: client.publish("", "anywhere", b"x"))
                assert isinstance(error, ConnectFailed) and not error.sent
        assert crowd.problems(lost=True) == []


def test_what_was_confirmed_survives_a_kill(broker: Broker, no_leaks: None) -> None:
    """A durable queue has each confirmed message after kill -9, and of the unconfirmed ones only
    those that were sent. The kill is one that costs messages: what plain pika published, transient
    as its messages are, is gone."""
    with rabbitmq.Client(broker.address, timeout=LIMIT) as client:
        client.declare_queue("survivors")
        client.declare_queue("casualties")
        with contextlib.closing(broker.connect()) as plain:
            channel = plain.channel()
            channel.confirm_delivery()
            channel.basic_publish("", "casualties", b"transient")
        confirmed, unsent = set(), set()
        killer = threading.Timer(0.2, broker.kill)
        with started_again(broker):
            killer.start()
            for number in range(100_000):
                body = b"%d" % number
                try:
                    client.publish("", "survivors", body)
                    confirmed.add(body)
                except Unavailable as error:
                    if not error.sent:
                        unsent.add(body)
                        break
            killer.join()
        assert confirmed and unsent
        recovered(lambda: client.publish("", "survivors", b"last"))
        assert client.get("casualties") is None
        client.delete_queue("casualties")
        found = []
        while (message := client.get("survivors")) is not None:
            found.append(message.body)
        client.delete_queue("survivors")
    assert confirmed <= set(found)
    assert not unsent & set(found)


class MemoryAlarm(faults.Fault):
    """What the broker does by itself; no injector makes it."""

    name = "memory-alarm"


def test_a_broker_short_of_memory(broker: Broker, no_leaks: None) -> None:
    """It takes no messages: publishing is `Overloaded` within the limit; whatever else is asked is
    answered, and messages flow again afterwards."""
    refused = Expected((Overloaded,))
    answers = Expected((), answers=True)
    where, alarm = broker.address, MemoryAlarm()
    publishing = Crowd(where, where, Trouble(alarm, refused, refused), PUBLISHES)
    asking = Crowd(where, where, Trouble(alarm, answers, answers), ASKS)
    with contextlib.closing(publishing), contextlib.closing(asking), raw_pika(where) as raw:
        with broker.short_of_memory():
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(Crowd.call, (publishing, asking)))
            assert raw() is None, "plain pika doesn't hang"
        assert publishing.problems() + asking.problems() == []


# -- frames that are hit ------------------------------------------------------------------------

HIT = Expected((ConnectionLost, DeadlineExceeded), sent=True, answers=True)


def test_frames_that_are_hit_anywhere(broker: Broker, no_leaks: None) -> None:
    """A flipped bit in a size, a channel, a delivery tag or a method of RabbitMQ's frames, in turn:
    each is told or without harm, and the connection isn't deaf afterwards."""
    operations = [one for one in OPERATIONS if one.name in ("publish_many", "get", "declare_queue")]
    cells = [
        Cell(STORE, broker.address, operation, True, Trouble(faults.Corrupt(seed=seed), HIT, HIT))
        for operation in operations
        for seed in range(1, 13)
    ]
    with Relay(upstream=broker.address) as relay:
        links = [relay.listen() for _ in cells]
        with ThreadPoolExecutor(STORE.together) as threads:
            found = list(threads.map(cell.run, cells, links))
    assert [problem for problems in found for problem in problems] == []


# -- names ------------------------------------------------------------------------------------


@pytest.fixture
def hanging_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Names that end in .hang don't resolve until the test is over."""
    over = threading.Event()
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **options: Any) -> Any:
        if str(host).endswith(".hang"):
            over.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield
    over.set()


def _raw_hangs(hosts: list[Address]) -> bool:
    parameters = [pika.ConnectionParameters(host, port) for host, port in hosts]
    ended = threading.Event()

    def connect() -> None:
        with contextlib.suppress(Exception):
            pika.BlockingConnection(parameters).close()
        ended.set()

    threading.Thread(target=connect, daemon=True).start()
    return not ended.wait(LIMIT + TOLERANCE + 0.5)


def test_of_several_hosts_one_that_never_resolves_is_passed_by(
    broker: Broker, no_leaks: None, hanging_names: None
) -> None:
    """Plain pika waits for the first name for ever; ours asks the next host within the limit."""
    hosts = [("one.hang", 5672), ("two.hang", 5672), broker.address]
    assert _raw_hangs(hosts)
    for _ in range(3):  # they are tried in random order
        with rabbitmq.Client(hosts, timeout=1.0) as client:
            _has_answers(client)


def _has_answers(client: rabbitmq.Client) -> None:
    declared = timed(lambda: client.declare_queue("", exclusive=True), limit=1.0)
    assert declared.error is None, declared
    queue = declared.value
    assert timed(lambda: client.publish("", queue, b"x"), limit=1.0).error is None
    assert timed(lambda: client.get(queue), limit=1.0).value.body == b"x"


def test_where_no_host_resolves_a_call_keeps_its_limit(no_leaks: None, hanging_names: None) -> None:
    """All names hang, and plain pika with them: nothing was sent, and the call ends in time."""
    hosts = [("one.hang", 5672), ("two.hang", 5672)]
    assert _raw_hangs(hosts)
    with rabbitmq.Client(hosts, timeout=LIMIT) as client:
        for call in (lambda: client.publish("", "q", b"x"), lambda: client.get("q")):
            error = failed(call)
            assert isinstance(error, (DeadlineExceeded, ConnectFailed)) and not error.sent


# -- packets ----------------------------------------------------------------------------------

PORT, SPARED = 5672, 5673


@pytest.fixture(scope="module")
def distant() -> Iterator[tuple[Server, PacketLink]]:
    """A broker in a namespace, on two ports: faults meet the clients of the first."""
    reason = why_no_broker() or why_not()
    if reason:
        pytest.skip(reason)
    with Netfilter() as net, contextlib.ExitStack() as stack:
        node = net.node("broker")
        reaper = Reaper()
        stack.callback(reaper.stop)
        server = Server(
            reaper,
            (node.host, PORT),
            stem="distant",
            cookie="distant",
            ports=(25672, 4369),
            prefix=node.prefix,
            config=f"listeners.tcp.1 = 0.0.0.0:{PORT}\nlisteners.tcp.2 = 0.0.0.0:{SPARED}\n",
        )
        stack.callback(server.end)
        server.start()
        yield server, net.towards(node, port=PORT)


# A warm call may find its dead connection before it sends, or after; then it is refused.
REFUSED = Expected((ConnectionLost, ConnectFailed))
PACKETS = [
    Trouble(faults.Refuse(), cold=Expected((ConnectFailed,), sent=False), warm=REFUSED),
    Trouble(faults.Blackhole(), cold=NO_HANDSHAKE, warm=NO_ANSWER),
    Trouble(faults.Hang("up"), cold=NO_HANDSHAKE, warm=NO_ANSWER),
    Trouble(faults.Hang("down"), cold=NO_HANDSHAKE, warm=NO_ANSWER),
    Trouble(faults.Hang("both"), cold=NO_HANDSHAKE, warm=NO_ANSWER),
]


@pytest.mark.parametrize("trouble", PACKETS, ids=lambda one: str(one.fault))
def test_packets_that_are_refused_or_dropped(
    distant: tuple[Server, PacketLink], trouble: Trouble, no_leaks: None
) -> None:
    """tcp-reset, DROP, and DROP of ESTABLISHED one way and both: plain pika hangs or breaks, ours
    ends in time, and is right again afterwards."""
    server, link = distant
    crowd = Crowd(link.address, (server.address[0], SPARED), trouble)
    with contextlib.closing(crowd), raw_pika(link.address) as raw:
        link.inject(trouble.fault)
        crowd.call()
        outcome = raw()
        link.clear()
        if isinstance(trouble.fault, faults.Refuse):
            assert outcome is not None and outcome.error is not None
        else:
            assert outcome is None, f"plain pika doesn't hang: {outcome}"
        assert crowd.problems() == []
