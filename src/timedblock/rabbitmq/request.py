"""What travels between a caller's thread and the one that talks to RabbitMQ (L4)."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from ..call import ANSWER
from .future import RUNNING, Confirmation

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..call import Call, Late
    from ..errors import Unavailable
    from .client import Client
    from .encoding import Message
    from .link import Link
    from .publishing import PublishingLink


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

    No lock guards `sent`: the I/O thread sets it before it looks at `given_up`, the caller sets
    `given_up` before it looks at `sent`. So what was given up unsent is never sent.
    `_settled` is the waiting caller's alarm clock and nothing else: it may be rung twice.

    Many are made: what only some of them are told is an attribute of the class until then. What
    each is told belongs into `__init__`, or Python (3.11, 3.12) gives it a dict, which costs more
    than all the attributes.
    """

    #: nobody waits for it in `wait`: the I/O thread gives it up at its time
    timed_here = False
    given_up: bool = False
    value: Any = None
    failure: Failure | None = None
    late: Late | None = None

    def __init__(self, call: Call, until: float) -> None:
        """`until`: how long it may wait for a connection."""
        self.call = call
        #: when its caller gives up, as things are
        self.at = self.until = until
        self.sent = self.settled = False
        #: it had to wait for a connection, or for room on it
        self.waited = False
        self.connection: Any = None
        #: frames that had come on its connection when it was sent
        self.heard = 0
        #: when `Engine` looks whether its time is over; 0: it isn't in the line for that
        self.due = 0.0
        self._settled = threading.Lock()
        self._settled.acquire()

    def go(self, link: Any) -> None:
        """There is a connection, and `begin` said yes: do it."""
        raise NotImplementedError

    def begin(self) -> bool:
        """Just before it is sent; False: nobody waits for it any more."""
        self.sent = True
        if self.given_up:
            self.sent = False
        return not self.given_up

    def hasten(self, at: float) -> None:
        """Its caller gives up at `at`, which may be sooner than it knew."""
        sooner, self.at = at < self.at, at
        if sooner and not self.timed_here:
            self._ring()

    def succeed(self, value: Any = None) -> None:
        """The answer is here."""
        self.value = value
        self._end()

    def fail(self, failure: Failure) -> None:
        """There is no answer, or it is an error."""
        if not self.settled:
            self.failure = failure
        self._end()

    def _end(self) -> None:
        if not self.settled:
            self.settled = True
            self._tell()
            self.tell_late()

    def _tell(self) -> None:
        self._ring()

    def _ring(self) -> None:
        if self._settled.locked():  # only the I/O thread unlocks it: it can't fail
            self._settled.release()

    def give_up(self) -> None:
        """Its time is over, and nobody waits in `wait`."""
        self.given_up = True

    def tell_late(self) -> None:
        """Where the caller has left: the answer came after all."""
        late = self.late
        if late is not None and self.settled and self.failure is None:
            late.answered(self.call.owner.now())

    def wait(self) -> bool:
        """Wait until it is settled or its time is over; whether it is settled."""
        clock = self.call.clock
        while not self.settled:
            rang = clock.wait(self._settled, self.at - clock.monotonic())
            if not rang and self.at <= clock.monotonic():
                return self.settled
        return True


class Question(Request):
    """Something that RabbitMQ answers, on a channel of its own."""

    def __init__(
        self,
        call: Call,
        until: float,
        question: Callable[[Any, Request, Callable[[Any], None]], None],
    ) -> None:
        """``question(channel, request, answered)`` puts it."""
        super().__init__(call, until)
        self._question = question

    def go(self, link: Link) -> None:
        """See `Request.go`."""
        link.ask(self, lambda channel, answered: self._question(channel, self, answered))


class Publication(Request):
    """One message whose caller waits for the confirm."""

    #: given up, and all but forgotten
    abandoned: bool = False
    #: whether its caller waits for more than that it is sent
    confirm: bool = True

    def __init__(self, call: Call, until: float, message: Message) -> None:
        super().__init__(call, until)
        self.envelope, self.head, self.body, self.size = message
        #: its delivery tag, on the channel that it was sent on; 0: none yet
        self.tag = 0
        #: when it left, after it had to wait for that; 0: it left at once, or not yet
        self.left_at = 0.0

    def go(self, link: PublishingLink) -> None:
        """See `Request.go`."""
        link.hold(self)

    def again(self, link: PublishingLink) -> None:
        """Its connection was lost before the confirm: wait for the next one."""
        self.connection = None
        self.until = self.call.call_at
        link.take(self)


class Promise(Publication, Confirmation):
    """One message whose caller has a future: this one."""

    timed_here = True

    def __init__(self, call: Call, until: float, message: Message, client: Client) -> None:
        """`client`: whose `_keep_promise` and `_break_promise` tell the call machine."""
        # all of it here: by its parents' constructors, which make a lock too, 0.74 us and not 0.3
        self._state = RUNNING
        self._exception = None
        self.call = call
        self.at = self.until = until
        self.sent = self.settled = self.waited = False
        self.connection = None
        self.heard = self.tag = 0
        self.due = self.left_at = 0.0
        self.envelope, self.head, self.body, self.size = message
        self._client: Client | None = client

    def give_up(self) -> None:
        """Its time is over."""
        self.given_up = True
        self._tell()

    def succeed(self, value: Any = None) -> None:
        """RabbitMQ has it."""
        if self.settled:
            return
        self.settled = True
        # whoever keeps the future keeps neither the message nor the client
        self.head = self.body = b""
        client = self._client
        if client is None:  # it was given up
            self.tell_late()
            return
        self._client = None
        client._keep_promise(self)
        self.settle(None)

    def _tell(self) -> None:
        # one that was given up on the wire may still come back, and is known by its body
        if self.settled or not self.sent:
            self.head = self.body = b""
        client = self._client
        if client is not None:
            self._client = None
            self.settle(client._break_promise(self))


class Item:
    """One message of a `Batch`; the same to the link as a `Publication`."""

    abandoned: bool = False
    confirm: bool = True
    failure: Failure | None = None

    def __init__(self, batch: Batch, message: Message) -> None:
        self.batch = batch
        self.envelope, self.head, self.body, self.size = message
        self.sent = self.settled = False
        self.tag = 0

    @property
    def given_up(self) -> bool:
        """Nobody waits for it any more."""
        return self.batch.given_up

    def begin(self) -> bool:
        """See `Request.begin`."""
        self.sent = True  # before it is looked whether somebody waits, who looks at it afterwards
        if self.batch.given_up:
            self.sent = False
        return self.sent

    def succeed(self) -> None:
        """RabbitMQ has it."""
        if not self.settled:
            self.settled = True
            self.batch.count()

    def fail(self, failure: Failure) -> None:
        """RabbitMQ doesn't have it, or nobody knows."""
        if not self.settled:
            self.settled = True
            self.failure = failure
            self.batch.count()

    def again(self, link: PublishingLink) -> None:
        """Its connection was lost before the confirm: send it again on the next one."""
        self.batch.queued.append(self)
        self.batch.again(link)


class Batch(Request):
    """Many messages under one limit; the link takes from `queued` as fast as RabbitMQ confirms.

    The caller appends and then says `all_here`; the I/O thread counts what is settled.
    """

    def __init__(self, call: Call, until: float) -> None:
        super().__init__(call, until)
        self.queued: deque[Item] = deque()
        self._settled_items = 0
        self._total: int | None = None

    def go(self, link: PublishingLink) -> None:
        """See `Request.go`."""
        link.batch(self)
        self._ring()

    def wait_for_connection(self) -> None:
        """Wait until its messages can leave, or never will, or its time is over."""
        clock = self.call.clock
        while self.connection is None and self.failure is None:
            left = self.at - clock.monotonic()
            if left <= 0:
                return
            clock.wait(self._settled, left)

    def all_here(self, total: int) -> None:
        """There are `total` messages, and no more come."""
        self._total = total
        if self._settled_items >= total:
            self.settled = True

    def count(self) -> None:
        """One of them is settled."""
        self._settled_items += 1
        if self._settled_items == self._total:
            self._end()

    def fail(self, failure: Failure) -> None:
        """No connection, for all that were not sent."""
        while self.queued:
            self.queued.popleft().fail(failure)
        if self.failure is None:
            self.failure = failure
        self._ring()

    def again(self, link: PublishingLink) -> None:
        """Its connection was lost: wait for the next one."""
        if self.connection is not None:
            self.connection = None
            self.until = self.call.call_at
            link.take(self)
