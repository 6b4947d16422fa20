"""The path of a call: from the caller's thread to the I/O thread, and what became of it (L4)."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from .. import fork
from ..block import TimedBlock
from ..call import CROWDED, CUT, OVERSLEPT, STALLED, UNCONNECTED
from ..deadline import check_seconds
from ..endpoint import endpoint
from ..errors import DeadlineExceeded, Overloaded, Unavailable
from ..policy.clients import effective
from . import hosts as _hosts
from . import policies
from .engine import Engine
from .errors import KINDS
from .link import TOLD, Link
from .request import Batch, Failure, Question, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..call import Call
    from ..policy import Policy


class Full(Exception):
    """Too much is unconfirmed."""


class Caller:
    """A client's blocks, its I/O thread, and how a call goes through both.

    Lock: `_lock` guards the making and the ending of the I/O thread.
    """

    def __init__(
        self,
        hosts: Any,
        *,
        name: str,
        policy: Policy | None,
        timeout: float | None,
        on_unavailable: Any,
        **publishing: Any,
    ) -> None:
        self._parameters = _hosts.read(hosts)
        self.name = name
        self._timeout = None if timeout is None else check_seconds("timeout", timeout)
        self._policy = policies.guarded(effective(policy, timeout, on_unavailable))
        where = ",".join(sorted({_hosts.show(one) for one in self._parameters}))
        self.endpoint = endpoint(
            where if name == "rabbitmq" else f"{name}@{where}", self._policy.breaker
        )
        self._blocks: dict[str, TimedBlock] = {}
        self._connect_block = self._block("connect")
        self._publishing = publishing
        self._engine: Engine | None = None
        self._finalizer: Any = None
        self._start_fresh()
        fork.register(self)
        self.endpoint.pools.add(self)

    def _start_fresh(self) -> None:
        self._lock = threading.Lock()
        self._engine = None

    def after_fork(self) -> None:
        """The I/O thread stayed in the parent, and its connections are the parent's."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._start_fresh()

    def count(self) -> dict[str, int]:
        """Connections that are open or being made, who waits for one; unconfirmed messages."""
        engine = self._engine
        links = () if engine is None else (engine.publishing, engine.asking)
        ready = sum(link.ready for link in links)
        return {
            "size": 2,
            "open": ready,
            "idle": ready,
            "connecting": sum(link.open and not link.ready for link in links),
            "waiting": sum(link.waiting for link in links),
            "unconfirmed": 0 if engine is None else engine.publishing.unconfirmed,
        }

    def _block(self, operation: str) -> TimedBlock:
        block = self._blocks.get(operation)
        if block is None:
            policy = policies.of(self._policy, operation, self._timeout)
            made = TimedBlock(
                f"{self.name}.{operation}", policy, endpoint=self.endpoint, errors=KINDS
            )
            block = self._blocks.setdefault(operation, made)
        return block

    def _running(self) -> Engine:
        engine = self._engine
        if engine is not None and not engine.ended:
            return engine
        with self._lock:
            engine = self._engine
            if engine is None or engine.ended:
                engine = self._start()
        return engine

    def _start(self) -> Engine:
        """Struck by an interrupt, it leaves no thread behind that nobody ends."""
        engine = Engine(self.name, self._parameters, self._connect_block, **self._publishing)
        finalizer = None
        try:
            finalizer = weakref.finalize(self, engine.end)
            finalizer.atexit = False
            engine.start()
            self._engine, self._finalizer = engine, finalizer
        except BaseException:
            if finalizer is not None:
                finalizer.detach()
            engine.end()
            self._engine = None
            raise
        return engine

    def _end(self, seconds: float) -> None:
        """End the I/O thread; the next use makes another."""
        with self._lock:
            engine, self._engine = self._engine, None
            finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer.detach()
        if engine is not None:
            engine.end()
            engine.join(seconds)

    # -- one call -----------------------------------------------------------------------------

    def _ask(
        self,
        operation: str,
        question: Callable[[Any, Request, Callable[[Any], None]], None],
    ) -> Any:
        def make(engine: Engine, call: Call) -> Question:
            return Question(call, self._until(call, engine.asking), question)

        block = self._block(operation)
        try:
            return self._call(block, make)
        except Unavailable as error:
            return block._fall_back(error)

    def _call(self, block: TimedBlock, make: Callable[[Engine, Call], Request]) -> Any:
        """Hand in what ``make(engine, call)`` makes, and wait for what becomes of it."""
        call = block.begin()
        request = None
        while True:
            try:
                request = None
                engine = self._running()
                engine.check_caller()
                # known here before anybody else knows it: an interrupt leaves nothing behind
                request = make(engine, call)
                self._hand_in(engine, request)
                failure = request.failure if request.wait() else self._gave_up(request, engine)
                if failure is None:
                    call.succeeded()
                    return request.value
                pause, error = self._judge(request, failure, self._is_repeatable(block, request))
                self._doubt(engine, request)
            except Full as full:
                raise self._too_many(call, full) from None
            except BaseException:
                call.abandoned()
                if request is not None:
                    request.given_up = True
                raise
            finally:
                if request is not None:
                    self._left(request)
            if pause is None:
                raise error
            call.clock.sleep(pause)
            call.again()

    def _hand_in(self, engine: Engine, request: Request) -> None:
        engine.post(engine.asking.take, request)

    def _left(self, request: Request) -> None:
        """The caller waits no longer."""

    def _until(self, call: Call, link: Link) -> float:
        """When a request gives up: where there is a connection, as its attempt does; else as
        connecting does, within the call's limit."""
        if link.ready:
            return call.at
        now = self.endpoint.clock.monotonic()
        if now >= self._connect_block.histogram.due:
            self._connect_block.refresh(now)
        connect = self._connect_block.learnt.limit
        circuit = call.owner.circuit
        if circuit is None or circuit.shut:
            connect = self._connect_block.ceiling
        return min(call.call_at, now + connect)

    @staticmethod
    def _is_repeatable(block: TimedBlock, request: Request) -> bool:
        return not request.sent or block.name.rpartition(".")[2] in policies.REPEATABLE

    @staticmethod
    def _doubt(engine: Engine, request: Request) -> None:
        link = engine.asking if isinstance(request, Question) else engine.publishing
        engine.post(link.doubt, request)
        engine.ring()  # whatever became of the bell: two interrupts in a row may silence it

    def _too_many(self, call: Call, full: Exception) -> Exception:
        verdict = call.failed(full, kind=CROWDED, repeatable=False)
        assert verdict.retry_after is None
        return call.unavailable(Overloaded, note=str(full))

    def _gave_up(self, request: Request, engine: Engine | None) -> Failure | None:
        """Its time is over; None: no, the answer has just come."""
        request.given_up = True
        return request.failure if request.settled else self._out_of_time(request, engine)

    @staticmethod
    def _out_of_time(request: Request, engine: Engine | None) -> Failure:
        if isinstance(request, Batch) and request.failure is not None:
            return request.failure
        call = request.call
        overslept = call.clock.monotonic() - request.at
        error = TimeoutError("no answer in time")
        publishing = not isinstance(request, Question)
        if publishing and engine is not None and engine.publishing.blocked:
            note = "RabbitMQ takes no messages: it is short of memory or disk"
            return Failure(error, CROWDED, Overloaded, note)
        if request.connection is None:
            return Failure(error, UNCONNECTED, DeadlineExceeded, "no connection")
        if not request.sent and publishing:
            note = "it waited for others that were on the wire"
            return Failure(error, CROWDED, DeadlineExceeded, note)
        kind = STALLED if overslept > OVERSLEPT else CUT
        return Failure(error, kind, DeadlineExceeded)

    def _judge(
        self, request: Request, failure: Failure, repeatable: bool
    ) -> tuple[float | None, BaseException]:
        """Tell the machine; the pause before the next attempt, or None and the caller's error."""
        call = request.call
        call.sent = call.sent or request.sent
        if failure.kind == TOLD:
            return None, failure.error
        verdict = call.failed(
            failure.error,
            kind=failure.kind,
            waited=call.limit if failure.kind == STALLED else None,
            connect=self._connect_block.learnt,
            repeatable=repeatable,
        )
        request.late = call.late
        request.tell_late()
        if verdict.retry_after is not None or failure.raised is None:
            return verdict.retry_after, failure.error
        return None, self._error(call, failure)

    @staticmethod
    def _error(call: Call, failure: Failure) -> Unavailable:
        assert failure.raised is not None
        error = call.unavailable(failure.raised, note=failure.note)
        error.__cause__ = failure.error
        return error
