"""``timedblock.rabbitmq.Client`` on loopback beside pika's ``BlockingConnection``.

python -m benchmarks.rabbitmq [--json FILE] [--rounds N] [--only WORD]

Against a real RabbitMQ of its own, Debian's, as it comes: with an Erlang scheduler a core. Default
policies: ours has its learnt limit, breaker and recovery; pika has no limit at all. Both publish
1 kB, mandatory, with confirms; pika as its users do, one connection, one message after the other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pika

from benchmarks import _harness as harness
from timedblock import Unavailable, rabbitmq
from timedblock.testing.rabbitmq import Broker

BODY = b"m" * 1000
THREADS = 32
#: Messages of a round: pika's one by one, ours of 32 threads, ours of one thread by futures.
RAW, THREADED, BULK = 300, 1600, 3000
CONSUMED = 4000
PREFETCH = 200
#: One raw round in four is off by half on a busy machine: medians of 36 differed by a fifth from
#: run to run, of 100 by a tenth.
ROUNDS = 100
#: Seconds for RabbitMQ to clean up after a round, which are no cost of the next one's.
SETTLE = 0.05


class Kind(NamedTuple):
    """A kind of queue, how persistent its messages are, and the figures to reach."""

    name: str
    durable: bool
    arguments: Mapping[str, Any]
    delivery_mode: int
    threads: float
    futures: float = 8.0


KINDS = (
    Kind("transient", False, {}, 1, threads=2.5),
    Kind("durable classic", True, {}, 2, threads=4.0),
    Kind("quorum", True, {"x-queue-type": "quorum"}, 2, threads=5.0),
)


class Bench:
    """A queue, a raw channel with confirms, and our client."""

    def __init__(self, broker: Broker, kind: Kind) -> None:
        self.queue = f"bench.{kind.name}"
        self.properties = pika.BasicProperties(delivery_mode=kind.delivery_mode)
        self.connection = broker.connect()
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        self.channel.queue_declare(self.queue, durable=kind.durable, arguments=dict(kind.arguments))
        self.client = rabbitmq.Client(broker.address)

    def purge(self) -> None:
        self.channel.queue_purge(self.queue)

    def close(self) -> None:
        self.client.close()
        self.channel.queue_delete(self.queue)
        self.connection.close()

    # -- rounds: seconds a message ------------------------------------------------------------

    def raw_publishes(self, latencies: list[float] | None = None) -> float:
        publish, clock = self.channel.basic_publish, time.perf_counter
        began = clock()
        for _ in range(RAW):
            start = clock()
            publish("", self.queue, BODY, self.properties, mandatory=True)
            if latencies is not None:
                latencies.append(clock() - start)
        return (clock() - began) / RAW

    def one_thread(self, latencies: list[float]) -> float:
        publish, clock = self.client.publish, time.perf_counter
        began = clock()
        for _ in range(RAW):
            start = clock()
            publish("", self.queue, BODY, self.properties)
            latencies.append(clock() - start)
        return (clock() - began) / RAW

    def threads(self) -> float:
        each = THREADED // THREADS
        failures: list[Exception] = []
        gate = threading.Barrier(THREADS + 1)

        def work() -> None:
            gate.wait()
            try:
                for _ in range(each):
                    self.client.publish("", self.queue, BODY, self.properties)
            except Unavailable as error:
                failures.append(error)

        running = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in running:
            thread.start()
        gate.wait()
        began = time.perf_counter()
        for thread in running:
            thread.join()
        spent = time.perf_counter() - began
        if failures:
            raise failures.pop()
        return spent / (each * THREADS)

    def futures(self) -> float:
        began = time.perf_counter()
        made = [
            self.client.publish_async("", self.queue, BODY, self.properties) for _ in range(BULK)
        ]
        for future in made:
            future.result()
        return (time.perf_counter() - began) / BULK

    def many(self) -> float:
        messages = [("", self.queue, BODY, self.properties)] * BULK
        began = time.perf_counter()
        reports = self.client.publish_many(messages)
        spent = time.perf_counter() - began
        for report in reports:
            if report.error is not None:
                raise report.error
        return spent / BULK

    def fill(self) -> None:
        left = CONSUMED
        while left:
            reports = self.client.publish_many([("", self.queue, BODY, self.properties)] * left)
            left -= sum(report.ok for report in reports)

    def raw_consume(self) -> float:
        self.fill()
        connection = pika.BlockingConnection(self.connection._impl.params)
        channel = connection.channel()
        channel.basic_qos(prefetch_count=PREFETCH)
        got = 0

        def handler(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            nonlocal got
            got += 1
            channel.basic_ack(method.delivery_tag)
            if got == CONSUMED:
                channel.stop_consuming()

        began = time.perf_counter()
        channel.basic_consume(self.queue, handler)
        channel.start_consuming()
        spent = time.perf_counter() - began
        connection.close()
        return spent / CONSUMED

    def consume(self) -> float:
        self.fill()
        done = threading.Event()
        got = 0

        def handler(message: rabbitmq.Message) -> None:
            nonlocal got
            got += 1
            if got == CONSUMED:
                done.set()

        began = time.perf_counter()
        consumer = self.client.consume(self.queue, handler, prefetch=PREFETCH)
        assert done.wait(60)
        spent = time.perf_counter() - began
        consumer.stop()
        return spent / CONSUMED


@contextmanager
def bench(broker: Broker, kind: Kind) -> Iterator[Bench]:
    made = Bench(broker, kind)
    try:
        yield made
    finally:
        made.close()


def undisturbed(one: harness.Round, purge: Callable[[], None]) -> harness.Round:
    """The round on an empty queue; again when a call was cut: a machine that paused, not a cost."""

    def repeated() -> float:
        while True:
            purge()
            time.sleep(SETTLE)
            try:
                return one()
            except Unavailable as error:
                harness.console.print(f"a round is repeated: {error}", markup=False)
                time.sleep(0.5)

    return repeated


def rates(ours: list[float], raw: list[float]) -> str:
    return f"best {1 / min(ours):,.0f}/s / {1 / min(raw):,.0f}/s"


def publishing(broker: Broker, kind: Kind, rounds: int) -> list[harness.Figure]:
    """Confirmed publishes of one kind of queue."""
    latencies: dict[str, list[float]] = {"ours": [], "raw": []}
    medians: list[float] = []

    def raw() -> float:
        latencies["raw"].clear()
        return made.raw_publishes(latencies["raw"])

    def one() -> float:
        latencies["ours"].clear()
        spent = made.one_thread(latencies["ours"])
        if latencies["raw"]:
            medians.append(
                statistics.median(latencies["ours"]) / statistics.median(latencies["raw"])
            )
        return spent

    with bench(broker, kind) as made:
        ways: dict[str, Callable[[], float]] = {
            "raw": raw, "one": one, "threads": made.threads, "futures": made.futures,
            "many": made.many,
        }  # fmt: skip
        samples = harness.interleave(
            {name: undisturbed(way, made.purge) for name, way in ways.items()}, repeat=rounds
        )
    raws = samples["raw"]
    reach = {"threads": kind.threads, "futures": kind.futures, "many": kind.futures}
    names = {
        "threads": f"{THREADS} blocking threads",
        "futures": "publish_async, one thread",
        "many": "publish_many, one thread",
    }
    found = [
        harness.ratio(
            f"{kind.name}: publishes/s, {names[way]}, / raw",
            harness.paired(raws, samples[way]),
            at_least=reach[way],
            note=rates(samples[way], raws),
        )
        for way in names
    ]
    found.append(
        harness.ratio(
            f"{kind.name}: confirmed publish, one thread, median / raw",
            medians,
            at_most=1.2,
            note=f"min a call {min(samples['one']) * 1e6:.3g} us / {min(raws) * 1e6:.3g} us",
        )
    )
    return found


def consuming(broker: Broker, rounds: int) -> list[harness.Figure]:
    """Messages of a full queue through a handler that returns."""
    with bench(broker, KINDS[0]) as made:
        samples = harness.interleave(
            {
                "raw": undisturbed(made.raw_consume, made.purge),
                "ours": undisturbed(made.consume, made.purge),
            },
            repeat=rounds,
        )
    return [
        harness.ratio(
            f"consumed/s, 1 kB, prefetch {PREFETCH}, / raw",
            harness.paired(samples["raw"], samples["ours"]),
            at_least=1.2,
            note=rates(samples["ours"], samples["raw"]),
        )
    ]


def measure(options: argparse.Namespace) -> list[harness.Figure]:
    """All of it against one broker."""
    figures = []
    with Broker(schedulers=os.cpu_count() or 1) as broker:
        for kind in KINDS:
            if options.only in kind.name:
                figures += publishing(broker, kind, options.rounds)
        if options.only in "consume":
            figures += consuming(broker, options.rounds)
    return figures


def options() -> argparse.ArgumentParser:
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", default="", help="a kind of queue, or consume")
    return parser


if __name__ == "__main__":
    sys.exit(harness.main("rabbitmq", __doc__, measure, options()))
