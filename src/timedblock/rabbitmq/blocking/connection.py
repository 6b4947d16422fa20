"""pika's BlockingConnection, with one total limit on every call (L4)."""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING, Any

import pika
from pika import exceptions
from pika.adapters.blocking_connection import BlockingConnection as PikaConnection
from pika.adapters.blocking_connection import _CallbackResult

from ... import errors as core
from ... import fork
from ...call import OVERSLEPT, STALLED
from ...deadline import get, sooner
from .. import errors
from ..connection import sever
from .channel import BlockingChannel
from .connecting import Connector, TimeOver
from .errors import KINDS
from .lines import CEILING, LINES, UNGUARDED, check
from .verdicts import Held, at_work, cause_of, of_call, of_connect, of_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ...call import Call
    from ...errors import Unavailable
    from ...policy import Policy

logger = logging.getLogger("timedblock")

#: Seconds and reads that may be spent, when the time is over, on what is here already.
_LAST_LOOK = 0.05
_LAST_READS = 64
#: pika's own timers may end a connect this much before ours does, in seconds.
_EARLY = 0.01
#: Of the heartbeat: how often life is looked for, and how much silence is death.
_LOOK, _SILENCE = 1 / 8, 1.8


class BlockingConnection(PikaConnection):
    """pika's BlockingConnection; every call ends within its limit, with an answer or an error.

    Args:
        parameters: as pika's: one set of parameters or several.
        name: what the blocks are called: ``name.publish``.
        policy: publish with confirms and basic_get use it as it is; the other operations are Fixed
            at its ceiling. None: ``Percentile(floor=1.0, ceiling=10.0)``, and 10 s. No retry, no
            fallback.

    Making the connection has the longest ``stack_timeout`` of `parameters` (pika's default: 15 s)
    for everything: names, all addresses, all attempts and the pauses between them, TLS, log-in.

    Raises:
        timedblock.Unavailable: by every call, where there is no answer within its limit; each is
            an AMQPConnectionError too. ``is_open`` says whether the connection can still be used.
        pika's own errors: what RabbitMQ says (404, 406, a nack, a message without a queue).
        ValueError, TypeError: at construction, naming the bad value.
    """

    def __init__(
        self,
        parameters: pika.connection.Parameters | Sequence[pika.connection.Parameters] | None = None,
        _impl_class: Any = None,
        *,
        name: str = "rabbitmq",
        policy: Policy | None = None,
    ) -> None:
        hosts = _list(parameters)
        limits = [one.stack_timeout for one in hosts if one.stack_timeout is not None]
        # no host at all: pika says so
        known = hosts or [pika.connection.Parameters()]  # type: ignore[no-untyped-call, unused-ignore]
        self._line = LINES.get(known, name, check(policy), max(limits, default=CEILING))
        self._now = self._line.endpoint.clock.monotonic
        #: the operation in hand
        self._call: Call | None = None
        #: bytes that had come and gone when it began
        self._mark = (0, 0)
        #: the next `_flush_output` is that of a wait
        self._waiting = False
        #: RabbitMQ reads nothing from this connection (a memory or disk alarm)
        self._blocked = False
        #: made before a fork, by the parent
        self._inherited = False
        super().__init__(hosts, _impl_class)
        self._impl.add_on_connection_blocked_callback(self._now_blocked)
        self._impl.add_on_connection_unblocked_callback(self._now_unblocked)
        self._heard = (self._impl.bytes_received, self._now())
        self._watch_heartbeat()
        fork.register(self)

    # -- connecting ---------------------------------------------------------------------------

    def _create_connection(self, configs: Any = None, impl_class: Any = None) -> Any:
        call = self._line.block("connect").begin()
        connector = Connector(impl_class, call.clock, call.at)
        try:
            made = super()._create_connection(configs, connector)  # type: ignore[arg-type, unused-ignore]
        except Exception as error:
            connector.abandon()
            raised = self._connect_error(call, error)
            if raised is error:
                raise
            raise raised from cause_of(error)
        except BaseException:
            connector.end()
            call.abandoned()
            raise
        call.succeeded()
        self._line.endpoint.connected()
        return made

    def _connect_error(self, call: Call, error: Exception) -> Exception:
        late = self._now() - call.at
        verdict = of_connect(error, over=late > -_EARLY, late=late > OVERSLEPT)
        if verdict.kind is None:
            call.abandoned()
            return error
        call.failed(cause_of(error), kind=verdict.kind, repeatable=False)
        if verdict.raised is None:
            return error
        self._line.endpoint.connect_failed(self._now())
        return call.unavailable(verdict.raised, **verdict.more)

    # -- one operation ------------------------------------------------------------------------

    def _run(
        self,
        operation: str,
        method: Callable[..., Any],
        owner: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        whole: bool = False,
    ) -> Any:
        """``method(owner, *args, **kwargs)`` within the limit of `operation`.

        `whole`: it has the ceiling, whatever was learnt.
        """
        self._check_process()
        if self._call is not None or owner.is_closed or self.is_closed:
            # a part of a larger one; or pika says at once that it is closed
            return method(owner, *args, **kwargs)
        block = self._line.block(operation)
        call = block.begin(limit=block.ceiling if whole else None)
        impl = self._impl
        try:
            self._call = call
            self._mark = impl.bytes_received, impl.bytes_sent
            if self._blocked and operation not in UNGUARDED:
                self._hold(call)
                self._mark = impl.bytes_received, impl.bytes_sent
            result = method(owner, *args, **kwargs)
        except Exception as error:
            raised = self._error(call, error)
            if raised is error:
                raise
            raise raised from cause_of(error)
        except BaseException as struck:
            sent = impl.bytes_sent != self._mark[1]
            if sent or not impl.is_open or at_work(struck.__traceback__):
                # its answer would be taken for that of the next operation
                self._abort(exceptions.StreamLostError("interrupted"))
            call.abandoned()
            raise
        finally:
            self._call = None
        call.succeeded()
        return result

    def _hold(self, call: Call) -> None:
        """RabbitMQ wouldn't read it: send nothing before it does."""
        if not self._drive(lambda: not self._blocked, lambda: call.at):
            raise Held
        self._raise_if_closed()
        call.restart(self._now())

    def _error(self, call: Call, error: Exception) -> Exception:
        """Tell the machine how the operation ended; what is to be raised."""
        if isinstance(error, core.Unavailable):
            return error  # the machine has counted it
        late = self._now() - call.at > OVERSLEPT
        verdict = of_call(error, blocked=self._blocked, late=late, sent=call.sent)
        if verdict.kind is None:
            call.abandoned()
            return error
        waited = call.limit if verdict.kind == STALLED else None
        call.failed(cause_of(error), kind=verdict.kind, waited=waited, repeatable=False)
        return error if verdict.raised is None else call.unavailable(verdict.raised, **verdict.more)

    # -- waiting ------------------------------------------------------------------------------

    def _flush_output(self, *waiters: Callable[[], bool]) -> None:
        """pika's, but it ends in time."""
        waiting, self._waiting = self._waiting, False
        self._check_process()
        if self.is_closed:
            raise exceptions.ConnectionWrongStateError()
        if waiting:
            self._wait(waiters)
        elif self._call is None:  # an operation of pika's that we don't know
            self._run("other", type(self)._flush_output, self, waiters, {})
        else:
            self._finish(self._call, waiters)

    def _finish(self, call: Call, waiters: tuple[Callable[[], bool], ...]) -> None:
        impl = self._impl

        def done() -> bool:
            flushed = not impl._transport or impl._get_write_buffer_size() == 0
            return flushed and (not waiters or any(ready() for ready in waiters))

        def until() -> float:
            # What arrives in pieces, or beside deliveries, is no reason to cut a connection.
            if self._now() >= call.at and impl.bytes_received != self._mark[0]:
                call.at = call.call_at
            return call.at

        transport, given = impl._transport, impl.bytes_sent

        def left() -> bool:
            # the counters of a connection that ended are gone, its transport's are not
            waiting = transport.get_write_buffer_size() if transport is not None else 0
            return bool(given - waiting > self._mark[1])

        try:
            over = not self._drive(done, until)
        finally:
            call.sent = call.sent or left()
        if over:
            confirming = call.owner.name.endswith(".publish") and self._blocked
            if not confirming or impl._get_write_buffer_size() > 0:
                self._abort(exceptions.StreamLostError("no answer in time"))
            raise TimeOver
        self._raise_if_closed()

    def _wait(self, waiters: tuple[Callable[[], bool], ...]) -> None:
        """Nothing is outstanding: what the caller waits for may never come."""
        began, outer, clock = self._now(), get(), self._line.endpoint.clock
        at = sooner(outer, clock)
        try:
            over = not self._drive(lambda: any(ready() for ready in waiters), lambda: at)
            self._raise_if_closed()
        except BaseException as error:
            if isinstance(error, Exception):
                verdict = of_wait(error)
                if verdict.raised is None:
                    raise
                raise self._wait_error(verdict.raised, began, at, verdict.more) from error
            if at_work(error.__traceback__):
                self._abort(exceptions.StreamLostError("interrupted"))
            raise
        if over:
            raise self._wait_error(core.DeadlineExceeded, began, at, {})

    def _wait_error(
        self, kind: type[Unavailable], began: float, at: float, more: dict[str, Any]
    ) -> Unavailable:
        line, outer = self._line, get()
        owner = getattr(outer, "owner", None)
        limit = None if at == math.inf else max(0.0, at - began)
        source = "" if limit is None else f"the deadline of {getattr(owner, 'name', owner)}"
        return KINDS.get(kind, kind)(
            block=f"{line.name}.wait",
            endpoint=line.endpoint.name,
            elapsed=self._now() - began,
            limit=limit,
            limit_source=source,
            **more,
        )

    def _drive(self, done: Callable[[], bool], until: Callable[[], float]) -> bool:
        """Do I/O until `done`, or the end of the connection; False: the time is over."""
        ioloop = self._impl.ioloop
        alarm: _Alarm | None = None
        try:
            while not (self._closed_result.ready or done()):
                at = until()
                left = at - self._now()
                if left <= 0:
                    return self._last_look(done)
                if at != math.inf and (alarm is None or alarm.rang):
                    if alarm is not None:
                        alarm.stop()
                    alarm = _Alarm(ioloop, left)
                ioloop.poll()
                ioloop.process_timeouts()
            return True
        finally:
            if alarm is not None:
                alarm.stop()

    def _last_look(self, done: Callable[[], bool]) -> bool:
        """What is here already is the answer, though we come late for it."""
        ioloop = self._impl.ioloop
        end = self._now() + _LAST_LOOK
        silent = 0
        for _ in range(_LAST_READS):
            before = self._impl.bytes_received
            ioloop.call_later(0, _nothing)  # don't wait
            ioloop.poll()
            ioloop.process_timeouts()
            if self._closed_result.ready or done():
                return True
            silent = silent + 1 if self._impl.bytes_received == before else 0
            if silent > 1 or self._now() >= end:
                break
        return False

    def _raise_if_closed(self) -> None:
        if not self._closed_result.ready:
            return
        error = self._closed_result.value.error
        self._cleanup()
        if not isinstance(error, exceptions.ConnectionClosedByClient):
            logger.info("the connection to RabbitMQ ended: %s", type(error).__name__)
            raise error

    # -- ending -------------------------------------------------------------------------------

    def _abort(self, why: Exception) -> None:
        """Without any farewell, at once, wherever an interrupt has left pika's state."""
        impl = self._impl
        with contextlib.suppress(Exception):
            sever(impl)
        with contextlib.suppress(Exception):
            if not impl.is_closed:
                impl._on_stream_terminated(why)
        if not impl.is_closed:
            impl._set_connection_state(impl.CONNECTION_CLOSED)
        with contextlib.suppress(Exception):
            self._cleanup()

    def after_fork(self) -> None:
        """The socket and what waits on it are the parent's: only close our copy of it."""
        self._inherited = True
        impl: Any = self._impl
        transport = impl._transport
        for channel in list(impl._channels.values()):
            channel._set_state(channel.CLOSED)
        impl._set_connection_state(impl.CONNECTION_CLOSED)
        with contextlib.suppress(Exception):
            transport._sock.close()

    def _check_process(self) -> None:
        if self._inherited:
            raise errors.ConnectionLost(
                block=f"{self._line.name}.fork",
                endpoint=self._line.endpoint.name,
                note="the connection is the parent's: connect again after a fork",
            )

    def _now_blocked(self, connection: Any, frame: Any) -> None:
        self._blocked = True

    def _now_unblocked(self, connection: Any, frame: Any) -> None:
        self._blocked = False

    def _watch_heartbeat(self) -> None:
        beat: Any = self._impl.params.heartbeat
        if isinstance(beat, (int, float)) and beat > 0 and not self._impl.is_closed:
            self._impl._adapter_call_later(beat * _LOOK, self._look_for_life)

    def _look_for_life(self) -> None:
        """pika notices silence after up to 2 heartbeats and 10 s; here it is at most 2."""
        impl: Any = self._impl
        if not impl.is_open:
            return
        count, at = self._heard
        if impl.bytes_received != count:
            self._heard = impl.bytes_received, self._now()
        elif self._now() - at >= _SILENCE * impl.params.heartbeat:
            text = f"nothing was heard for {self._now() - at:.1f} s"
            impl._terminate_stream(exceptions.AMQPHeartbeatTimeout(text))
            return
        self._watch_heartbeat()

    # -- what the user calls ------------------------------------------------------------------

    def __enter__(self) -> BlockingConnection:
        return self

    def channel(self, channel_number: int | None = None) -> BlockingChannel:
        """As pika's; the channel's calls have limits too."""
        opened: BlockingChannel = self._run(
            "channel", BlockingConnection._open_channel, self, (channel_number,), {}
        )
        return opened

    def _open_channel(self, channel_number: int | None) -> BlockingChannel:
        with _CallbackResult(self._OnChannelOpenedArgs) as opened:
            impl = self._impl.channel(
                channel_number=channel_number, on_open_callback=opened.set_value_once
            )
            channel = BlockingChannel(impl, self)
            impl._set_cookie(channel)
            channel._flush_output(opened.is_ready)
        return channel

    def close(self, reply_code: int = 200, reply_text: str = "Normal shutdown") -> None:
        """As pika's, within its limit; after that the connection is closed, whatever came."""
        try:
            self._run("close", PikaConnection.close, self, (reply_code, reply_text), {})
        except core.Unavailable:
            if self.is_open:  # there was no time left to begin
                self._abort(exceptions.StreamLostError("no time left to say farewell"))
            raise

    def update_secret(self, new_secret: str, reason: str) -> None:
        """As pika's, within its limit."""
        update = PikaConnection.update_secret
        self._run("update_secret", update, self, (new_secret, reason), {})

    def process_data_events(self, time_limit: float | None = 0) -> None:
        """As pika's. Ends after `time_limit` seconds and the time of your callbacks; None: when
        something has come.

        Raises:
            DeadlineExceeded: a deadline around it passed first; the connection is as it was.
            ConnectionLost: there is no connection any more, or nothing was heard for two
                heartbeats.
        """
        self._check_process()
        if self.is_closed:
            raise exceptions.ConnectionWrongStateError()
        depth = self._event_dispatch_suspend_depth
        self._waiting = True
        try:
            super().process_data_events(time_limit)  # type: ignore[arg-type, unused-ignore]
        except BaseException:
            self._mend_dispatch(depth)
            raise
        finally:
            self._waiting = False

    def _mend_dispatch(self, depth: int) -> None:
        """An interrupt may come where pika counts who dispatches, or before it has dispatched."""
        self._event_dispatch_suspend_depth = depth
        for number, channel in list(self._impl._channels.items()):
            ours = channel._get_cookie()
            if ours is not None and ours._pending_events:
                self._request_channel_dispatch(number)


class _Alarm:
    """Wakes the loop."""

    def __init__(self, ioloop: Any, seconds: float) -> None:
        self.rang = False
        self._ioloop = ioloop
        self._timer = ioloop.call_later(seconds, self._ring)

    def _ring(self) -> None:
        self.rang = True

    def stop(self) -> None:
        self._ioloop.remove_timeout(self._timer)


def _nothing() -> None:
    pass


def _list(parameters: Any) -> list[Any]:
    """The hosts that were given, for what is learnt about them; pika reads them itself."""
    if parameters is None:
        return [pika.connection.Parameters()]  # type: ignore[no-untyped-call, unused-ignore]
    return [parameters] if isinstance(parameters, pika.connection.Parameters) else list(parameters)
