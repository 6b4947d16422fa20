"""Publishing many messages under one limit (L4)."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from ..call import ANSWER, BROKEN, UNWELL
from ..errors import DeadlineExceeded, Unavailable
from .calling import Caller
from .link import TOLD
from .request import Batch, Failure, Item

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .encoding import Encoder
    from .engine import Engine

#: Messages that are encoded between two looks at the time.
_STRIDE = 250
#: What the machine is told of a batch: the first of these that happened.
_WORST = (TOLD, BROKEN, UNWELL, ANSWER)


class Report(NamedTuple):
    """What became of one message of `Client.publish_many`: None, or its error."""

    error: Exception | None

    @property
    def ok(self) -> bool:
        """Whether RabbitMQ has it."""
        return self.error is None


_CONFIRMED = Report(None)


class Batching(Caller):
    """Many messages at a time."""

    _encoder: Encoder

    def publish_many(
        self,
        messages: Iterable[tuple[str, str, bytes | str] | tuple[str, str, bytes | str, Any]],
        *,
        mandatory: bool = True,
        timeout: float | None = None,
    ) -> list[Report]:
        """Publish (exchange, routing_key, body[, properties]) each; a report for each, in order.

        They leave as fast as RabbitMQ confirms them, and together share one limit. Never raises
        for a message: `Report.error` is what `publish` would have raised for it.

        Args:
            timeout: seconds for all of them; None: the client's `timeout`, or 10.
        """
        given = list(messages)
        try:
            call = self._block("publish_many").begin(limit=timeout)
        except Unavailable as error:
            return [Report(error)] * len(given)
        batch = None
        reports: list[Report | Item] = []
        try:
            engine = self._running()
            engine.check_caller()
            batch = Batch(call, self._until(call, engine.publishing))
            engine.post(engine.publishing.take, batch)
            # what was not even handed over has nothing to wait for
            settled = self._feed(engine, batch, given, mandatory, reports) and batch.wait()
            batch.given_up = True
            return self._judge_batch(engine, batch, settled, reports, len(given))
        except BaseException:
            if batch is not None:
                batch.given_up = True
            call.abandoned()
            raise

    def _feed(
        self,
        engine: Engine,
        batch: Batch,
        given: list[Any],
        mandatory: bool,
        reports: list[Report | Item],
    ) -> bool:
        """Encode while there is time, and while the first are being sent; whether it was all.

        Not ahead of the connection: the thread that makes it would have its turn each 5 ms only.
        """
        clock, todo, items = batch.call.clock, iter(given), 0
        while batch.failure is None and clock.monotonic() < batch.at:
            stride = list(islice(todo, _STRIDE))
            if not stride:
                batch.all_here(items)
                return True
            for one in stride:
                made = self._item(batch, one, mandatory)
                reports.append(made)
                if isinstance(made, Item):
                    batch.queued.append(made)
                    items += 1
            if items:
                engine.post(engine.publishing.feed, batch)
                batch.wait_for_connection()
        return False

    def _item(self, batch: Batch, one: Any, mandatory: bool) -> Report | Item:
        try:
            exchange, routing_key, body, *rest = one
            properties = rest[0] if rest else None
            message = self._encoder.message(exchange, routing_key, body, properties, mandatory)
        except Exception as error:  # that message alone can't be sent
            return Report(error)
        return Item(batch, message)

    def _judge_batch(
        self,
        engine: Engine,
        batch: Batch,
        settled: bool,
        reports: list[Report | Item],
        count: int,
    ) -> list[Report]:
        """Tell the machine the worst of it, and everybody their own."""
        items = [one for one in reports if isinstance(one, Item)]
        batch.sent = batch.call.sent = any(item.sent for item in items)
        failures = [item.failure for item in items if item.failure is not None]
        worst = min(failures, key=lambda failure: _WORST.index(failure.kind), default=None)
        if not settled or len(reports) < count:
            worst = self._out_of_time(batch, engine)
        if worst is None:
            batch.call.succeeded()
            return [one if isinstance(one, Report) else _CONFIRMED for one in reports]
        self._judge(batch, worst, repeatable=False)
        self._doubt(engine, batch)
        errors = _Errors(batch, worst)
        found = [one if isinstance(one, Report) else errors.report(one) for one in reports]
        return found + [errors.unsent] * (count - len(reports))


class _Errors:
    """The errors of a batch, each made once."""

    def __init__(self, batch: Batch, cut: Failure) -> None:
        self._call = batch.call
        if cut.raised is None:
            cut = Failure(cut.error, cut.kind, DeadlineExceeded)
        self._cut = cut
        self._made: dict[tuple[int, bool], Report] = {}

    @property
    def unsent(self) -> Report:
        """For a message that was not even encoded."""
        return self._report(self._cut, sent=False)

    def report(self, item: Item) -> Report:
        """What became of `item`."""
        if item.settled and item.failure is None:
            return _CONFIRMED
        return self._report(item.failure or self._cut, item.sent)

    def _report(self, failure: Failure, sent: bool) -> Report:
        key = id(failure), sent
        report = self._made.get(key)
        if report is None:
            error = failure.error
            if failure.raised is not None:
                self._call.sent = sent
                error = Caller._error(self._call, failure)
            report = self._made[key] = Report(error)
        return report
