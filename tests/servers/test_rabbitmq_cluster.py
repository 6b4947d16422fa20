"""`timedblock.rabbitmq.Client` on three real nodes: partitions and the death of a leader.

Producers and consumers run throughout, on four clients side by side: one knows every host, one a
name that stands for all of them, one only a node of the majority, one only the node that is cut
off. Each has two quorum queues, led by the cut node and by another, and two classic ones, at home
on these nodes. What is asserted:

* no call is past its limit + 0.25 s, and each ends by an answer or by an honest error;
* every confirmed message to a quorum queue is delivered, at least once;
* traffic flows again, by a confirmed publish and by a delivery, at most 5 s after a fresh raw
  connection, tried at the same hosts and the same queue all the time, gets its first confirm.

For classic queues only the first holds: RabbitMQ doesn't give more. After a split brain under
`ignore` the node that is restarted loses what it had confirmed; raw pika is even told that a
message for the unreachable node is safe, where ours, being mandatory, is unroutable.

One cluster for all tests; each has queues of its own.
"""

from __future__ import annotations

import gc
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytest

from tests.servers import limits
from tests.servers.limits import TOLERANCE
from tests.servers.rabbitmq_history import UNROUTABLE, History, Workload, timeline
from tests.servers.raw_rabbitmq import Address
from timedblock import Fixed, Policy, rabbitmq
from timedblock.net.resolve import RESOLVER
from timedblock.rabbitmq.detour import Detour
from timedblock.testing.rabbitmq import Cluster

pytestmark = [pytest.mark.server, pytest.mark.wall]

#: The ceiling of a publish, by default.
LIMIT = 1.0
#: Seconds from raw pika's first fresh confirm to ours, and to a delivery.
RECOVERY = 5.0
#: Of a raw call during a partition: it is no bite if it is over sooner.
BITES = 3.0
#: Seconds that a fault may take until the majority serves: Erlang sees a partition after 5 to 7 s.
FAULT_MOST = 30.0
#: Seconds until a healed or started node serves.
AFTERWARDS = 40.0

CUT, OTHER = 0, 1
#: Resolved to all nodes, the one that is cut off first.
NAME = "every-node.test"
QUORUM = ("led-by-cut", "led-by-other")
CLASSIC = ("classic-on-cut", "classic-on-other")
_NUMBERS = itertools.count(1)

comes = partial(limits.comes, look=0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    reason = Cluster.why_not()
    if reason is not None:
        pytest.skip(reason)
    with Cluster() as one:
        yield one


@dataclass
class Case:
    """The queues and the clients of one test."""

    cluster: Cluster
    number: int

    @property
    def hosts(self) -> dict[str, list[Address]]:
        every = self.cluster.addresses
        return {"all": every, "named": every, "majority": [every[OTHER]], "cut": [every[CUT]]}

    def known(self, owner: str) -> list[Address]:
        """The hosts as the client is told them."""
        hosts = self.hosts[owner]
        return [(NAME, hosts[CUT][1])] if owner == "named" else hosts

    def queue(self, owner: str, kind: str) -> str:
        return f"{self.number}.{owner}.{kind}"

    def declare(self) -> None:
        """Each queue from the node that is to lead it."""
        for kind in (*QUORUM, *CLASSIC):
            with self.cluster.node(CUT if kind.endswith("cut") else OTHER).connect() as connection:
                channel = connection.channel()
                arguments = {"x-queue-type": "quorum"} if kind in QUORUM else None
                for owner in (*self.hosts, "raw"):
                    name = self.queue(owner, kind)
                    channel.queue_declare(name, durable=True, arguments=arguments)

    def workload(self) -> Workload:
        """Clients on all their queues, and fresh raw connections beside them on each quorum queue:
        two that lost the same leader were seen to elect a new one six seconds apart. Raw calls that
        are to hang have queues of their own."""
        every = self.cluster.addresses
        names = {owner: f"{owner}{self.number}" for owner in self.hosts}
        kinds = (*QUORUM, *CLASSIC)
        return Workload(
            {names[owner]: self.known(owner) for owner in self.hosts},
            {names[owner]: [self.queue(owner, kind) for kind in kinds] for owner in self.hosts},
            {
                self.queue(owner, kind): hosts
                for owner, hosts in self.hosts.items()
                for kind in QUORUM
            },
            {
                f"at-{where} {kind}": (every[node], self.queue("raw", kind))
                for where, node in (("cut", CUT), ("other", OTHER))
                for kind in QUORUM
            },
        )

    def queues(self, *owners: str, kinds: tuple[str, ...] = QUORUM) -> list[str]:
        return [self.queue(owner, kind) for owner in owners for kind in kinds]

    # -- checks -------------------------------------------------------------------------------

    def flow(self, history: History, since: float, *owners: str) -> bool:
        """Whether raw pika and these clients have had what `recovers` looks at."""
        return all(
            history.possible(self.queue(owner, kind), since) is not None
            and history.confirmed(self.queue(owner, kind), since) is not None
            and history.arrived(self.queue(owner, kind), since) is not None
            for owner in owners
            for kind in QUORUM
        )

    def recovers(self, history: History, since: float, *owners: str) -> None:
        """These clients' traffic flowed again soon enough after `since`."""
        for owner, kind in itertools.product(owners, QUORUM):
            queue = self.queue(owner, kind)
            possible = history.possible(queue, since)
            assert possible is not None, f"{queue}: no fresh raw connection got a confirm"
            for what, at in (
                ("confirm", history.confirmed(queue, since)),
                ("delivery", history.arrived(queue, since)),
            ):
                assert at is not None, f"{queue}: no {what}"
                late = at - possible
                assert late <= RECOVERY, f"{queue}: a {what} {late:.1f} s after raw pika's confirm"

    def holds(self, history: History) -> None:
        """What is asserted of every call, and of every message."""
        assert not history.late(LIMIT + TOLERANCE)
        assert not history.dishonest()
        for queue in self.queues(*self.hosts):
            lost = history.lost(queue)
            assert not lost, f"{history.about(lost)}\n{_told_by_leader(self.cluster, queue)}"


@pytest.fixture
def case(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Case:
    resolve, addresses = socket.getaddrinfo, cluster.addresses

    def getaddrinfo(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        if host != NAME:
            return resolve(host, port, *rest, **options)
        return [one for ip, _ in addresses for one in resolve(ip, port, *rest, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    RESOLVER.forget()
    cluster.restore()
    case = Case(cluster, next(_NUMBERS))
    case.declare()
    return case


def begin(case: Case, load: Workload) -> None:
    """Everything flows before the fault."""
    history = load.history
    queues = case.queues(*case.hosts, kinds=(*QUORUM, *CLASSIC))
    assert comes(lambda: all(history.arrived(one, 0.0) for one in queues), 10)
    assert comes(lambda: case.flow(history, 0.0, *case.hosts), 10)


def drain(case: Case, load: Workload) -> None:
    """Whatever was confirmed has the time to be delivered."""
    load.end_producers()
    comes(lambda: not any(load.history.lost(one) for one in case.queues(*case.hosts)), 15)


def bites(history: History, raw: str) -> bool:
    """Whether a raw call, begun in the fault, hangs, or took too long."""
    ended = history.ended.get(raw)
    return ended is None or ended.ended - ended.began > BITES


@pytest.mark.parametrize("how", ["established", "full"])
def test_partition_under_ignore(
    case: Case, how: Literal["established", "full"], no_leaks: None
) -> None:
    """Both sides go on, and afterwards the cut node is restarted, as RabbitMQ wants it."""
    cluster = case.cluster
    cluster.set_partition_handling("ignore")
    with case.workload() as load:
        history = load.history
        begin(case, load)
        cluster.partition(CUT, how)
        cut_at = time.monotonic()
        load.raw.go()
        with timeline(history, case.queues("all", "named", "majority", "cut"), cut_at):
            assert comes(lambda: case.flow(history, cut_at, "all", "named", "majority"), FAULT_MOST)
            flowed_at = time.monotonic()
            split = comes(lambda: _told_unroutable(case, history, cut_at), FAULT_MOST)
            assert split, "the majority never heard that a classic queue's home is gone"
            took = f"flow {flowed_at - cut_at:.1f} s, split {time.monotonic() - cut_at:.1f} s"
            lied = _publish_raw(cluster, case.queue("raw", CLASSIC[0]))
            assert f"at-cut {QUORUM[0]}" not in history.ended, f"raw pika hangs to the end ({took})"
            assert bites(history, f"at-cut {QUORUM[1]}") and bites(history, f"at-other {QUORUM[0]}")
            healed_at = time.monotonic()
            cluster.heal()
            assert comes(lambda: case.flow(history, healed_at, *case.hosts), AFTERWARDS)
            cluster.kill(CUT)
            restarted_at = time.monotonic()  # before that raw pika has a confirm of the old node
            cluster.restore()
            assert comes(lambda: case.flow(history, restarted_at, *case.hosts), AFTERWARDS)
            drain(case, load)
            case.holds(history)
            case.recovers(history, cut_at, "all", "named", "majority")
            case.recovers(history, healed_at, *case.hosts)
            case.recovers(history, restarted_at, *case.hosts)
    assert lied and _count(cluster, case.queue("raw", CLASSIC[0])) == 0


def _told_unroutable(case: Case, history: History, since: float) -> bool:
    queue = case.queue("majority", CLASSIC[0])
    return history.outcomes(queue, since, time.monotonic())[UNROUTABLE] > 0


def _publish_raw(cluster: Cluster, queue: str) -> bool:
    """What raw pika does by default: a confirm, and not mandatory. Whether it was confirmed."""
    with cluster.node(OTHER).connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("", queue, b"lost")
    return True


def _count(cluster: Cluster, queue: str) -> int:
    with cluster.node(OTHER).connect() as connection:
        declared = connection.channel().queue_declare(queue, passive=True)
        count: int = declared.method.message_count
    return count


def _told_by_leader(cluster: Cluster, queue: str) -> str:
    """Messages, ready and unacknowledged, and each consumer's node and state; or why it can't be
    told, which must not take the place of what a check has found."""
    expression = (
        f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)), '
        "{ok, {_, Told}, Leader} = "
        "ra:leader_query(amqqueue:get_pid(Q), fun rabbit_fifo:overview/1), "
        "{Leader, maps:remove(config, Told), "
        "[{node(element(1, One)), One} || One <- rabbit_amqqueue:consumers(Q)]}"
    )
    try:
        return cluster.node(OTHER).evaluate(expression)
    except RuntimeError as error:
        return str(error)


def _consumers(cluster: Cluster, queue: str) -> int:
    with cluster.node(OTHER).connect() as connection:
        declared = connection.channel().queue_declare(queue, passive=True)
        count: int = declared.method.consumer_count
    return count


@pytest.mark.parametrize("how", ["established", "full"])
def test_partition_under_pause_minority(
    case: Case, how: Literal["established", "full"], no_leaks: None
) -> None:
    """The cut node closes its connections and its port when it sees that it is alone, and comes
    back by itself."""
    cluster = case.cluster
    cluster.set_partition_handling("pause_minority")
    with case.workload() as load:
        history = load.history
        begin(case, load)
        cluster.partition(CUT, how)
        cut_at = time.monotonic()
        load.raw.go()
        with timeline(history, case.queues("all", "named", "majority", "cut"), cut_at):
            assert comes(lambda: case.flow(history, cut_at, "all", "named", "majority"), FAULT_MOST)
            for raw in (f"at-cut {QUORUM[0]}", f"at-cut {QUORUM[1]}", f"at-other {QUORUM[0]}"):
                assert bites(history, raw), raw
            assert comes(lambda: f"at-cut {QUORUM[0]}" in history.ended, FAULT_MOST), "paused"
            healed_at = time.monotonic()
            cluster.restore()
            assert comes(lambda: case.flow(history, healed_at, *case.hosts), AFTERWARDS)
            drain(case, load)
            case.holds(history)
            case.recovers(history, cut_at, "all", "named", "majority")
            case.recovers(history, healed_at, *case.hosts)


def test_leader_is_killed(case: Case, no_leaks: None) -> None:
    """SIGKILL to the node that leads a queue, which is started again later."""
    cluster = case.cluster
    assert cluster.leader(case.queue("all", QUORUM[0])) == CUT
    with case.workload() as load:
        history = load.history
        begin(case, load)
        cluster.kill(CUT)
        killed_at = time.monotonic()
        load.raw.go()
        with timeline(history, case.queues("all", "named", "majority", "cut"), killed_at):
            assert comes(
                lambda: case.flow(history, killed_at, "all", "named", "majority"), FAULT_MOST
            )
            assert history.ended[f"at-cut {QUORUM[0]}"].error is not None
            assert cluster.leader(case.queue("all", QUORUM[0])) != CUT
            started_at = time.monotonic()
            cluster.restore()
            assert comes(lambda: case.flow(history, started_at, *case.hosts), AFTERWARDS)
            drain(case, load)
            case.holds(history)
            case.recovers(history, killed_at, "all", "named", "majority")
            case.recovers(history, started_at, *case.hosts)


def test_partition_that_one_node_alone_remembers_is_mended(case: Case, no_leaks: None) -> None:
    """RabbitMQ gets there once in some tens of partitions that are healed just as a node pauses:
    all run, and one takes another for parted from it, for ever. Here it is made to."""
    cluster = case.cluster
    remembering = cluster.node(2)
    parted = f"['{cluster.node(CUT).name}']"
    remembering.evaluate(
        f"sys:replace_state(rabbit_node_monitor, fun(S) -> setelement(3, S, {parted}) end), ok"
    )
    assert remembering.evaluate("rabbit_node_monitor:partitions()") == parted
    with pytest.raises(RuntimeError, match="the cluster did not recover in 1 s"):
        cluster.recovered(within=1.0)  # not by itself
    cluster.restore()
    for number in range(3):
        assert cluster.node(number).evaluate("rabbit_node_monitor:partitions()") == "[]"


@pytest.mark.parametrize("owner", ["all", "named"])
def test_route_that_is_nacked_is_tried_at_each_node(
    case: Case, owner: str, no_leaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turn, the one that failed longest ago first; over one connection to each, which stays:
    a full queue that refuses everything is the same to a client as a node without a leader."""
    places = set(case.cluster.addresses)
    policy = Policy(timeout=Fixed(5.0), breaker=None)
    with rabbitmq.Client(case.known(owner), name="nacked", policy=policy) as client:
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        queue = client.declare_queue(f"{case.number}.nacked", arguments=full)
        client.publish("", queue, b"first")
        engine = client._engine
        assert engine is not None
        seen: list[tuple[Address | None, int]] = []
        inner = Detour._open_lane

        def opening(self: Detour, route: tuple[str, str]) -> None:
            seen.append((self.place, id(self)))
            inner(self, route)

        monkeypatch.setattr(Detour, "_open_lane", opening)
        until = time.monotonic() + 15
        while len(seen) < 6:
            assert time.monotonic() < until
            time.sleep(0.02)
            with pytest.raises(rabbitmq.Nacked):
                client.publish("", queue, b"refused")
        for three in zip(seen, seen[1:], seen[2:], strict=False):
            assert {place for place, _ in three} == places
        assert len(set(seen)) == len(places)
        client.delete_queue(queue)
    gc.collect()


@pytest.mark.parametrize("owner", ["all", "named"])
def test_node_that_was_lost_is_tried_last(case: Case, owner: str, no_leaks: None) -> None:
    """Connections that live and are of no use, one after the other: each node has its turn."""
    policy = Policy(timeout=Fixed(5.0), breaker=None)
    with rabbitmq.Client(case.known(owner), name="turns", policy=policy) as client:
        queue = client.declare_queue(f"{case.number}.turns")
        seen: list[Address | None] = []
        for _ in range(7):
            client.publish("", queue, b"x")
            engine = client._engine
            assert engine is not None
            publishing = engine.publishing
            seen.append(publishing.place)
            connection = publishing.connection
            engine.post(publishing.drop, "a test")
            assert comes(lambda: publishing.connection is not connection, 5)  # noqa: B023
        for three in zip(seen, seen[1:], seen[2:], strict=False):
            assert set(three) == set(case.cluster.addresses)
        client.delete_queue(queue)
    gc.collect()


def test_consumer_follows_a_detour_and_comes_back(case: Case, no_leaks: None) -> None:
    """It goes where a queue is served that was silent, whatever else it did. Then RabbitMQ closes
    the connection, and with it the channels of the consumer and of the route."""
    cluster = case.cluster
    policy = Policy(timeout=Fixed(5.0), breaker=None)
    with rabbitmq.Client(cluster.addresses, name="back", policy=policy) as client:
        queue = client.declare_queue(f"{case.number}.back")
        got: list[bytes] = []
        consumer = client.consume(queue, lambda message: got.append(message.body))
        client.publish("", queue, b"1")
        engine = client._engine
        assert engine is not None
        routing, place = engine.routing, engine.publishing.place
        engine.post(lambda: routing.unserved(("", queue), place, nacked=True))
        engine.post(lambda: routing.unserved(("", queue), place, nacked=False))
        assert comes(lambda: routing.way(("", queue)) is not None, 5)
        # what it has in hand, unacknowledged, when it goes comes again: here it has nothing
        engine.post(consumer.pause)
        assert comes(lambda: _consumers(cluster, queue) == 0, 5)
        client.publish("", queue, b"2")
        detour = routing.way(("", queue))
        assert detour is not None and detour.place is not None and detour.place != place
        assert comes(lambda: consumer.link is detour, 5)
        assert comes(lambda: got == [b"1", b"2"] and not consumer.lag, 5), got
        acknowledged = threading.Event()
        engine.post(acknowledged.set)  # after the acknowledgement, which was handed over before
        assert acknowledged.wait(5)
        node = cluster.node(cluster.addresses.index(detour.place))
        node.evaluate(
            'rabbit_networking:close_connections(rabbit_networking:local_connections(), "a test")'
        )
        assert comes(lambda: consumer.link is not detour, 5)
        client.publish("", queue, b"3")
        assert comes(lambda: got == [b"1", b"2", b"3"], 5), got
        client.delete_queue(queue)
    gc.collect()
