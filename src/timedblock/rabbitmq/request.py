"""One request between the thread that waits for it and the one that talks to RabbitMQ (L4)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ..call import ANSWER

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..call import Call, Late
    from ..errors import Unavailable


class Failure:
    """How a request failed, for the call machine.

    `raised`: the kind of Unavailable that the caller gets; None: `error` as it is.
    """

    __slots__ = ("error", "kind", "note", "raised")

    def __init__(
        self,
        error: Exception,
        kind: str = ANSWER,
        raised: type[Unavailable] | None = None,
        note: str = "",
    ) -> None:
        self.error = error
        self.kind = kind
        self.raised = raised
        self.note = note


class Request:
    """Settled once, by the I/O thread; given up by its caller at any time.

    No lock is needed for `sent`: the I/O thread sets it before it looks at `given_up`, the caller
    sets `given_up` before it looks at `sent`. So what was given up unsent is never sent.
    """

    __slots__ = (
        "_settled",
        "call",
        "connection",
        "done",
        "failure",
        "given_up",
        "heard",
        "late",
        "on_done",
        "sent",
        "size",
        "start",
        "until",
        "value",
        "waited",
    )

    def __init__(
        self,
        call: Call,
        start: Callable[[Any, Request], None],
        until: float,
        on_done: Callable[[Request], None] | None = None,
    ) -> None:
        """`start(link, request)` sends it; `until`: how long it may wait for a connection."""
        self.call = call
        self.start = start
        self.until = until
        self.on_done = on_done
        self.sent = self.given_up = self.done = False
        #: it had to wait for a connection
        self.waited = False
        self.value: Any = None
        self.failure: Failure | None = None
        self.late: Late | None = None
        self.connection: Any = None
        #: bytes that had come on its connection when it was sent
        self.heard = 0
        self.size = 0
        self._settled = threading.Lock()
        self._settled.acquire()

    @property
    def at(self) -> float:
        """When the caller gives up: its attempt begins when there is a connection."""
        return self.until if self.connection is None and not self.sent else self.call.at

    def begin(self) -> bool:
        """Just before it is sent; False: nobody waits for it any more."""
        self.sent = True
        if self.given_up:
            self.sent = False
        return not self.given_up

    def succeed(self, value: Any = None) -> None:
        """The answer is here."""
        self.value = value
        self._end()

    def fail(self, failure: Failure) -> None:
        """There is no answer, or it is an error."""
        self.failure = failure
        self._end()

    def _end(self) -> None:
        if self.done:
            return
        self.done = True
        if self.on_done is None:
            self._settled.release()
        elif not self.given_up:
            self.on_done(self)
        self.tell_late()

    def tell_late(self) -> None:
        """Where the caller has left: the answer came after all."""
        late = self.late
        if late is not None and self.done and self.failure is None:
            late.answered(self.call.owner.now())

    def wait(self) -> bool:
        """Wait until it is settled or its time is over; whether it is settled."""
        clock = self.call.clock
        while not self.done:
            at = self.at
            if clock.wait(self._settled, at - clock.monotonic()):
                self._settled.release()
                return True
            if self.at <= clock.monotonic():
                return self.done
        return True
