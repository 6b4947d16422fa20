"""The RabbitMQ drill: one broker, what is tried on which clients, and which faults.

A request publishes a persistent message to a durable queue of the load's own, mandatory and with a
confirm, or takes one from there. The raw variants have a ``BlockingConnection`` for each thread,
because it must not be shared by threads, and open a new one after an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from timedblock import faults
from timedblock.drill.errors import DrillError
from timedblock.drill.injection import NETFILTER, PROCESS, PROXY
from timedblock.drill.load import Session
from timedblock.drill.rabbitmq import clients
from timedblock.drill.rabbitmq.clients import Client
from timedblock.drill.rabbitmq.data import QueueData
from timedblock.drill.rabbitmq.session import Messages, QueueSession
from timedblock.drill.store import (
    FIXED,
    LEARNT,
    RAW_DEFAULT,
    RAW_TIMEOUT,
    Address,
    Serving,
    Store,
    Variant,
)


def _variant(name: str, limit: float, connect: Callable[[Sequence[Address]], Client]) -> Variant:
    def session(servers: Sequence[Address], prefix: str, writes: float) -> Session:
        return QueueSession(connect(servers), Messages(prefix), writes)

    return Variant(name, limit, session)


@contextmanager
def serve(host: str) -> Iterator[Serving]:
    """The installed RabbitMQ on a free port of ``host``. DrillError says what to install where
    there is none."""
    from timedblock.testing.rabbitmq import Broker

    try:
        with Broker(host) as broker:
            yield Serving(broker.address, broker.pid, broker.command)
    except RuntimeError as error:
        raise DrillError(str(error)) from error


#: raw-default has no limit of its own; it is held to the second that its users would expect.
#: timedblock's is the default ceiling of a call, with nothing tuned. Corrupted replies are not
#: made: AMQP has no checksum, so that no client can recognise them.
STORE = Store(
    name="rabbitmq",
    operation="rabbitmq.publish",
    rate=40.0,
    writes=0.9,
    variants={
        variant.name: variant
        for variant in (
            _variant(RAW_DEFAULT, 1.0, clients.raw_default),
            _variant(RAW_TIMEOUT, 1.0, clients.raw_timeout),
            _variant(FIXED, clients.FIXED_LIMIT, clients.timedblock_fixed),
            _variant(LEARNT, 1.0, clients.timedblock_learnt),
        )
    },
    faults={
        fault.name: fault
        for fault in (
            faults.Refuse(),
            faults.Blackhole(),
            faults.Hang(),
            faults.Silent(),
            faults.Reset(),
            faults.DnsFail(),
            faults.DnsHang(),
            faults.Latency(0.05, jitter=0.02),
            faults.Drip(),
            faults.Cut(),
            faults.ErrorRate(0.5),
            faults.Pause(),
            faults.Kill(),
        )
    },
    quick=("refuse", "blackhole", "hang", "drip"),
    gone=frozenset(
        {
            "refuse", "blackhole", "hang", "silent", "reset", "dns-fail", "dns-hang", "cut",
            "pause", "kill",
        }
    ),
    quiet=frozenset({"blackhole", "hang", "silent", "drip", "dns-hang", "pause"}),
    serve=serve,
    data=QueueData,
    starts=10.0,
    loads_a_core=5,
    # Its client's sockets are pika's, not ours: in the process there is nothing to fault.
    injectors=(PROXY, NETFILTER, PROCESS),
)  # fmt: skip
