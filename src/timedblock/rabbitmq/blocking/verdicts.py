"""What an error of pika's means: for the call machine, and for the caller (L4)."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from pika import exceptions
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

from ... import errors as core
from ...call import ANSWER, BROKEN, CROWDED, CUT, STALLED, UNWELL
from ...net.workers import Full
from .connecting import TimeOver
from .errors import BlockedTooLong, ClosedByBroker, HeartbeatLost, NameNotResolved, NotRabbitMQ

if TYPE_CHECKING:
    from types import TracebackType

    from ...errors import Unavailable

#: RabbitMQ closes the connection for reasons of its own: it stops, or it is broken.
_ITS_OWN_REASONS = (320, 541)
#: The connect's answers: wrong password, no such virtual host.
_REFUSED = (
    exceptions.AuthenticationError,
    exceptions.ProbableAccessDeniedError,
    exceptions.ProbableAuthenticationError,
)
#: In whose frames an interrupt finds pika's state half changed.
_AT_WORK = frozenset(("_dispatch_fd_events", "process_timeouts"))
_SHORT = {"note": "RabbitMQ takes nothing: it is short of memory or disk"}


class Held(Exception):
    """Nothing was sent: RabbitMQ reads nothing."""


class Verdict(NamedTuple):
    """The machine's `kind`; what is `raised` in the error's place (None: itself), with `more`.

    `kind` None: the error says nothing about RabbitMQ.
    """

    kind: str | None
    raised: type[Unavailable] | None = None
    more: dict[str, Any] = {}  # noqa: RUF012 - read only


def of_call(error: Exception, *, blocked: bool, late: bool, sent: bool) -> Verdict:
    """Of an operation; `late`: the time was over long before it was noticed."""
    if isinstance(error, Held) or (isinstance(error, TimeOver) and blocked):
        return Verdict(CROWDED, core.Overloaded, _SHORT)
    if isinstance(error, TimeOver):
        return Verdict(STALLED if late else CUT, core.DeadlineExceeded)
    found = of_wait(error)
    # a bad argument says nothing about RabbitMQ
    return Verdict(None) if found.kind == ANSWER and not sent else found


def of_wait(error: Exception) -> Verdict:
    """Of what pika raises by itself."""
    if isinstance(error, exceptions.AMQPHeartbeatTimeout):
        return Verdict(BROKEN, HeartbeatLost, {"note": str(error)})
    if isinstance(error, exceptions.ConnectionBlockedTimeout):
        return Verdict(CROWDED, BlockedTooLong, _SHORT)
    if isinstance(error, exceptions.ConnectionClosedByBroker):
        code, text = error.reply_code, error.reply_text
        if code not in _ITS_OWN_REASONS:
            return Verdict(ANSWER)
        more = {"code": code, "text": text, "note": f"{code} {text}"}
        return Verdict(BROKEN, ClosedByBroker, more)
    if isinstance(error, exceptions.StreamLostError):
        return Verdict(BROKEN, core.ConnectionLost)
    return Verdict(UNWELL if isinstance(error, exceptions.NackError) else ANSWER)


def of_connect(error: Exception, *, over: bool, late: bool) -> Verdict:
    """Of a connect; `over`: there is no time left."""
    if isinstance(error, TimeOver) or (over and isinstance(cause_of(error), TimeoutError)):
        note = {"note": "no connection"}
        return Verdict(STALLED if late else CUT, core.DeadlineExceeded, note)
    if isinstance(error, exceptions.ConnectionClosedByBroker):
        return of_wait(error)
    if isinstance(error, _REFUSED):
        return Verdict(ANSWER)
    if isinstance(error, Full):
        return Verdict(CROWDED, core.Overloaded, {"note": str(error)})
    if isinstance(error, (ValueError, TypeError, AttributeError)):
        return Verdict(None)  # the parameters, or a certificate that isn't the host's
    for theirs, ours in (
        (socket.gaierror, NameNotResolved),
        (exceptions.IncompatibleProtocolError, NotRabbitMQ),
    ):
        if isinstance(error, theirs):
            return Verdict(BROKEN, ours)
    return Verdict(BROKEN, core.ConnectFailed)


def cause_of(error: BaseException) -> BaseException:
    """What is below pika's wrappers; a TimeoutError where time ran out."""
    if isinstance(error, (TimeOver, Held, AMQPConnectorStackTimeout)):
        return TimeoutError("no answer in time")
    below = getattr(error, "exception", None) or next(iter(error.args), None)
    return cause_of(below) if isinstance(below, BaseException) else error


def at_work(traceback: TracebackType | None) -> bool:
    """Whether pika was at work, not waiting, where an interrupt came."""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_name in _AT_WORK:
            return True
        traceback = traceback.tb_next
    return False
