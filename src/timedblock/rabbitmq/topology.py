"""Queues, exchanges and bindings, declared again on every new connection (L4)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pika import exceptions

if TYPE_CHECKING:
    from collections.abc import Callable

    #: ``declare(channel, callback)``
    Declare = Callable[[Any, Callable[[Any], None]], Any]

logger = logging.getLogger("timedblock")

#: Declarations that a client remembers.
_MOST = 10_000
#: Seconds until everything is declared again, because another connection holds some of it, say.
AGAIN = 1.0
_LOCKED = 405


class Topology:
    """What was declared and is to be there: by what it is, in the order of declaring.

    Written by callers, read by the I/O thread; no lock, every step is one of a dict's own.
    """

    def __init__(self) -> None:
        self._declared: dict[tuple[str, ...], tuple[Declare, bool]] = {}

    def add(self, what: tuple[str, ...], declare: Declare, exclusive: bool = False) -> None:
        """`what` was declared; an `exclusive` queue is its connection's."""
        self._declared[what] = declare, exclusive
        while len(self._declared) > _MOST:
            self._declared.pop(next(iter(self._declared)), None)

    def drop(self, *what: str) -> None:
        """It is gone, and with a queue or an exchange its bindings."""
        self._declared.pop(what, None)
        if what[0] in ("queue", "exchange"):
            for other in list(self._declared):
                if other[0] == "bind" and other[1 if what[0] == "queue" else 2] == what[1]:
                    self._declared.pop(other, None)

    def is_exclusive(self, queue: str) -> bool:
        """Whether `queue` was declared exclusive here."""
        return self._declared.get(("queue", queue), (None, False))[1]

    @property
    def has_exclusive(self) -> bool:
        """Whether anything here is its connection's."""
        return any(exclusive for _, exclusive in list(self._declared.values()))

    def queues(self, exchange: str, routing_key: str) -> set[str]:
        """Those that get a message, as far as is known here."""
        if not exchange:
            return {routing_key}
        return {
            what[1] for what in list(self._declared) if what[0] == "bind" and what[2] == exchange
        }

    def all(self, *, exclusive: bool) -> list[Declare]:
        """Everything, with or without what is exclusive."""
        declared = list(self._declared.values())
        return [declare for declare, its in declared if exclusive or not its]


class Restoring:
    """Declares everything on a connection, one after the other, on the I/O thread.

    What RabbitMQ refuses is left out: it closes the channel, and the next one goes on behind it.
    What it doesn't answer is left out too, as by a quorum queue without a leader, and nobody waits
    for the rest.
    """

    def __init__(
        self,
        connection: Any,
        declares: list[Declare],
        patience: float,
        *,
        progress: Callable[[], None],
        then: Callable[[], object],
        again: Callable[[], object],
    ) -> None:
        """`patience`: seconds for one answer. ``then()``, once: others may go on. ``again()``,
        once: another connection still holds one of them, or an answer came late, on which others
        may have depended."""
        self._connection = connection
        self._left = declares
        self._patience = patience
        self._progress = progress
        self._then: Callable[[], object] | None = then
        self._again: Callable[[], object] | None = again
        self._channel: Any = None
        self._timer: Any = None
        self._skips = False
        self._open()

    def _open(self) -> None:
        self._connection.channel(on_open_callback=self._opened)

    def _opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        if self._skips:
            self._go_on()
        self._next(channel)

    def _next(self, channel: Any) -> None:
        if channel is not self._channel:
            if channel.is_open:
                channel.close()
            self._repeat()
            return
        self._answered()
        if not channel.is_open:
            return
        if not self._left:
            channel.close()
            return
        self._timer = self._connection.ioloop.call_later(self._patience, self._skip)
        self._left.pop(0)(channel, lambda frame: self._next(channel))

    def _answered(self) -> None:
        self._progress()
        if self._timer is not None:
            self._connection.ioloop.remove_timeout(self._timer)
            self._timer = None

    def _skip(self) -> None:
        self._timer = None
        if self._connection.is_open:
            logger.warning("RabbitMQ doesn't answer a declaration anew: it is left out")
            self._skips = True
            self._progress()
            self._open()

    def _closed(self, channel: Any, reason: Exception) -> None:
        if channel is not self._channel or not self._connection.is_open:
            return
        self._answered()
        if isinstance(reason, exceptions.ChannelClosedByBroker):
            logger.warning("RabbitMQ refused a declaration anew: %d", reason.reply_code)
            if reason.reply_code == _LOCKED:
                self._repeat()
            self._open()
        else:
            self._go_on()

    def _go_on(self) -> None:
        then, self._then = self._then, None
        if then is not None:
            then()

    def _repeat(self) -> None:
        again, self._again = self._again, None
        if again is not None:
            again()
