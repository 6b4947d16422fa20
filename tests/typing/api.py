"""What users write, checked by mypy --strict and never run: the types they get are the promise."""

from __future__ import annotations

from typing import Any

import pika
from typing_extensions import assert_type

from timedblock import (
    Breaker,
    CircuitBreaker,
    CircuitOpen,
    Deadline,
    Fixed,
    Percentile,
    Policy,
    Retry,
    TimedBlock,
    Unavailable,
    bind,
    faults,
    health,
    memcache,
    monitor,
    rabbitmq,
    remaining,
    stats,
    tag,
    time_limit,
)
from timedblock.faults.injector import Injector
from timedblock.faults.inprocess import InProcess
from timedblock.faults.netfilter import HostTables, Netfilter
from timedblock.faults.process import Process
from timedblock.faults.proxy import Relay
from timedblock.middleware import (
    ASGIDeadlineMiddleware,
    WSGIDeadlineMiddleware,
    deadline_headers,
)
from timedblock.testing import FakeClock

policy = Policy(
    timeout=Percentile(99, margin=2, floor=0.05, ceiling=2.0, initial=1.0, min_samples=50),
    breaker=Breaker(failures=3, open_for=0.5, open_max=5.0, probes=2),
    bulkhead=64,
    retry=Retry(),
    fallback=lambda: None,
    fallback_limit=0.1,
    isolation="none",
    ignore=(KeyError,),
)
charge = TimedBlock("payments.charge", Policy(timeout=Fixed(2.0)))
TimedBlock("unlimited", Policy(timeout=None, breaker=None))


def pay(cents: int, *, currency: str = "EUR") -> str:
    return f"{cents} {currency}"


async def pay_later(cents: int) -> str:
    return str(cents)


# A call has the type of what it calls, and its arguments are checked.
assert_type(charge.call(pay, 1250, currency="USD"), str)
charge.call(pay, "1250")  # type: ignore[arg-type]


# The decorator keeps the signature.
@charge
def decorated(cents: int, *, currency: str = "EUR") -> str:
    return pay(cents, currency=currency)


assert_type(decorated(12), str)
decorated("12")  # type: ignore[arg-type]
decorated(12, nonsense=1)  # type: ignore[call-arg]


@charge
async def decorated_later(cents: int) -> str:
    return await pay_later(cents)


async def awaited() -> None:
    assert_type(await charge.acall(pay_later, 12), str)
    assert_type(await decorated_later(12), str)
    await charge.acall(pay_later, "12")  # type: ignore[arg-type]
    async with charge:
        await pay_later(1)


def blocks_and_limits() -> float | None:
    with charge:
        pay(1)
    with time_limit(0.250) as deadline:
        assert_type(remaining(), "float | None")
        if deadline is not None:
            assert_type(deadline.to_header(), str)
    with tag("report") as about, charge:
        assert_type(about.name, str)
    tag(1)  # type: ignore[arg-type]
    assert_type(charge.begin(key="select-1").limit, float)
    assert_type(Deadline.from_header("250"), "Deadline | None")
    assert_type(bind(pay)(1), str)
    return remaining()


def errors() -> None:
    try:
        pay(1)
    except CircuitOpen as error:
        assert_type(error.retry_after, float)
    except Unavailable as error:
        assert_type(error.block, str)
        assert_type(error.endpoint, "str | None")
        assert_type(error.elapsed, float)
        assert_type(error.limit, "float | None")
        assert_type(error.sent, bool)


breaker = CircuitBreaker(fail_max=3, exclude=[KeyError, lambda error: False], name="payments")


@breaker
def guarded(cents: int) -> str:
    return pay(cents)


def breakers() -> None:
    assert_type(guarded(12), str)
    guarded("12")  # type: ignore[arg-type]
    assert_type(breaker.call(pay, 1250), str)
    assert_type(breaker.current_state, str)
    with breaker.calling():
        pay(1)


def caches() -> None:
    cache = memcache.Client(("127.0.0.1", 11211), timeout=0.5, name="sessions", policy=policy)
    cache.get("user:42", default=None)
    assert_type(cache.set("user:42", b"Ada", expire=60), "bool | None")
    memcache.Client("127.0.0.1:11211", on_unavailable=None)
    memcache.PooledClient(("127.0.0.1", 11211), max_pool_size=4)
    nodes = memcache.HashClient(["10.0.0.3:11211", ("10.0.0.4", 11211)], policy=policy)
    nodes.get("user:42", default=None)
    assert_type(nodes.set_many({"a": 1}, expire=60), list[str | bytes])
    assert_type(nodes.set("user:42", b"Ada"), "bool | None")
    nodes.get_many(["a", b"b"])
    with faults.inject("memcache", faults.Hang()):
        cache.get("user:42")


def queues() -> None:
    here = pika.ConnectionParameters("127.0.0.1", 5672)
    with rabbitmq.BlockingConnection(here, name="orders", policy=policy) as connection:
        assert_type(connection, rabbitmq.BlockingConnection)
        rabbitmq.BlockingConnection([here, here])
        channel = connection.channel()
        assert_type(channel, rabbitmq.BlockingChannel)
        assert_type(channel.connection, rabbitmq.BlockingConnection)
        channel.confirm_delivery()
        channel.basic_publish("", "orders", b"x", mandatory=True)
        channel.queue_declare("orders", durable=True)
        channel.queue_declare("orders", nonsense=True)  # type: ignore[call-arg]
        assert_type(connection.process_data_events(time_limit=1.0), None)


def reading() -> None:
    stats()["blocks"]["memcache.get"]["calls"]
    health()["status"]


def monitoring() -> None:
    with monitor.serve("127.0.0.1", 0, critical=["payments.*"]) as server:
        assert_type(server.port, int)
        assert_type(server.url, str)
    assert_type(monitor.report(["payments.*"])["status"], Any)
    monitor.serve(critical=[7], port=80)  # type: ignore[list-item]
    WSGIDeadlineMiddleware(monitor.wsgi_app(), ceiling=1.0)
    ASGIDeadlineMiddleware(monitor.asgi_app(), ceiling=1.0)
    assert_type(deadline_headers(), dict[str, str])


def time_in_tests() -> None:
    with FakeClock() as clock:
        clock.advance(0.4)
        assert_type(clock.now(), float)


# Every injector has the one form that a drill uses.
injectors: list[Injector] = [
    InProcess(("127.0.0.1", 11211)),
    Relay(("127.0.0.1", 11211)),
    Netfilter(("127.0.0.1", 11211)),
    HostTables(("127.0.0.1", 11211)),
    Process(4711, restart=["memcached"]),
]
for injector in injectors:
    assert_type(injector.name, str)
    with injector as made:
        link = made.listen()
        assert_type(link.address, tuple[str, int])
        assert_type(link.prefix, tuple[str, ...])
        link.inject(faults.Hang(duration=1.0))
        link.clear()
