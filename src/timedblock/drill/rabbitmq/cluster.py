"""The drill of a RabbitMQ cluster: three nodes, of which one is parted from the others.

Producers publish to a quorum queue, mandatory and with a confirm, while a consumer of the same
client takes from it. Faults are made between the nodes: clients reach each of them, on either
side. Every client begins at the node that is cut off, which leads the queue, and knows the others.
"""

from __future__ import annotations

import queue as queues
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import pika

from timedblock.drill.errors import DrillError
from timedblock.drill.history import OK, UNAVAILABLE
from timedblock.drill.injection import NETFILTER
from timedblock.drill.load import Answer, Request, Session
from timedblock.drill.queue_checker import PUBLISH
from timedblock.drill.rabbitmq import clients
from timedblock.drill.rabbitmq.clients import Client
from timedblock.drill.rabbitmq.data import QueueData
from timedblock.drill.rabbitmq.session import Messages, QueueSession
from timedblock.drill.store import (
    FIXED,
    LEARNT,
    RAW_DEFAULT,
    RAW_FRESH,
    RAW_TIMEOUT,
    Address,
    Serving,
    Store,
    Variant,
)
from timedblock.faults import Fault, Hang, Partition
from timedblock.testing.rabbitmq import Cluster

#: The node that is cut off.
_ALONE = 0
_QUORUM = {"x-queue-type": "quorum"}


class FreshSession:
    """The witness: each request publishes on a new connection, to the next node, and waits for a
    second at most. What it left hanging hangs in a thread of its own."""

    def __init__(self, servers: Sequence[Address], messages: Messages) -> None:
        self._servers = servers
        self._messages = messages

    def enter(self) -> None:
        pass

    def request(self, number: int) -> Request:
        return Request(PUBLISH, "queue", f"m{number}")

    def answer(self, number: int) -> Answer:
        told: queues.SimpleQueue[Answer] = queues.SimpleQueue()
        given = (self._servers[number % len(self._servers)], f"m{number}", told)
        threading.Thread(target=self._try, args=given, daemon=True).start()
        try:
            return told.get(timeout=clients.TIMEOUT)
        except queues.Empty:
            return Answer(UNAVAILABLE, error="TimeoutError", sent=True)

    def finish(self) -> list[tuple[float, str]]:
        return []

    def _try(self, server: Address, token: str, told: queues.SimpleQueue[Answer]) -> None:
        properties = clients.persistent(token)
        messages = self._messages
        try:
            connection = pika.BlockingConnection(clients.with_timeouts(server))
            channel = connection.channel()
            channel.confirm_delivery()
            body = messages.body(token)
            channel.basic_publish("", messages.queue, body, properties, mandatory=True)
            told.put(Answer(OK))
            connection.close()
        except Exception as error:
            told.put(Answer(UNAVAILABLE, error=type(error).__name__, sent=True))


def _variant(name: str, limit: float, connect: Callable[[Sequence[Address]], Client]) -> Variant:
    def session(servers: Sequence[Address], prefix: str, writes: float) -> Session:
        return QueueSession(connect(servers), Messages(prefix), writes, consumes=True)

    return Variant(name, limit, session, consumes=True)


def _fresh() -> Variant:
    def session(servers: Sequence[Address], prefix: str, writes: float) -> Session:
        return FreshSession(servers, Messages(prefix))

    return Variant(RAW_FRESH, clients.TIMEOUT, session)


class BetweenNodes:
    """The injector of faults between the nodes, and its one link. A client's way to them is free.

    ``hang`` is ``-m state --state ESTABLISHED -j DROP`` on the port that nodes speak by, at the
    node that is cut off; ``partition`` is ``-j DROP``."""

    name = NETFILTER
    prefix: tuple[str, ...] = ()

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._parted = False
        #: Of the node that is cut off.
        self.address = cluster.addresses[_ALONE]

    def listen(self) -> BetweenNodes:
        """The one link, to a cluster that is whole: one that was parted is mended."""
        if self._parted:
            self._cluster.restore()
            self._parted = False
        return self

    def inject(self, fault: Fault) -> None:
        if isinstance(fault, Hang):
            self._cluster.partition(_ALONE, "established")
        elif isinstance(fault, Partition):
            self._cluster.partition(_ALONE, "full")
        else:
            raise ValueError(f"{fault.name} can't be made between nodes: hang or partition")
        self._parted = True

    def clear(self) -> None:
        self._cluster.heal()

    def __enter__(self) -> BetweenNodes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.clear()


@contextmanager
def serve(host: str) -> Iterator[Serving]:
    """Three nodes in network namespaces. DrillError says what is missing where there can be
    none."""
    try:
        with Cluster() as cluster:
            alone, *others = cluster.addresses
            yield Serving(alone, 0, (), tuple(others), BetweenNodes(cluster))
    except RuntimeError as error:
        raise DrillError(str(error)) from error


def _data(servers: Sequence[Address]) -> QueueData:
    return QueueData(servers, _QUORUM)


STORE = Store(
    name="rabbitmq-cluster",
    operation="rabbitmq.publish",
    rate=10.0,
    writes=1.0,
    variants={
        variant.name: variant
        for variant in (
            _variant(RAW_DEFAULT, 1.0, clients.raw_default),
            _variant(RAW_TIMEOUT, 1.0, clients.raw_timeout),
            _fresh(),
            _variant(FIXED, clients.FIXED_LIMIT, clients.timedblock_fixed),
            _variant(LEARNT, 1.0, clients.timedblock_learnt),
        )
    },
    faults={fault.name: fault for fault in (Hang(), Partition())},
    quick=("hang", "partition"),
    gone=frozenset(),
    quiet=frozenset({"hang", "partition"}),
    serve=serve,
    data=_data,
    loads_a_core=5,
    injectors=(NETFILTER,),
)
