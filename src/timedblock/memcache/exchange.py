"""One request and its reply on a connection of the pool, under the call machine (L4)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from .. import errors as _errors
from ..call import ANSWER, BROKEN, CROWDED, CUT, OVERSLEPT, STALLED, UNCONNECTED, UNWELL
from ..net.parking import LOT
from ..net.pool import STALE, ConnectTimeout, PoolFull
from ..net.wire import CHUNK, EXPIRED, GRAIN, SLACK, Cut, EndOfStream, Wire
from ..net.workers import Full
from .connecting import Connecting
from .errors import GarbledReply
from .policies import REPEATABLE
from .replies import Garbled, Refused, ServerUnwell

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymemcache.client.base import Key

    from ..call import Call
    from ..policy.timeout import Learnt
    from .replies import Reader

#: Requests up to this size (bytes) leave in one send, unless the peer has stopped reading.
ONE_SEND = 4096
#: A connect that failed so says nothing of the server: this machine has nothing left to connect
#: with (descriptors, ports, memory).
EXHAUSTED = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)
)


class Exchanging(Connecting):
    """What every operation is made of: `_exchange`, and what follows where it fails."""

    def _exchange(
        self,
        operation: str,
        request: bytes,
        read: Reader | None,
        expected: Any = None,
        key: str | None = None,
    ) -> Any:
        """Send `request` and return what `read` makes of the reply (None: there is none).

        `key`: the request's size class, see `policies.size_class`.
        """
        block = self._blocks[operation]
        call = block.begin() if key is None else block.begin(key=key)
        wire = None
        try:
            try:
                wire = self._idle.pop()
            except IndexError:
                wire = self._take_slowly(call)
            if call.began - wire.used > STALE:
                wire = self._pool.check(wire) or self._take_slowly(call)
            answer: Any = self._talk(wire, call, request, read, expected)
            # in here, so that an interrupt on the way finds the connection not yet given back
            call.succeeded()
        except Exception as error:
            return self._after(call, wire, error, operation, request, read, expected)
        except BaseException:
            self._abandon(call, wire)
            raise
        if wire.finished:
            self._pool.discard(wire, dead=False)
            return answer
        self._idle.append(wire)
        if self._pool.waiting:
            self._pool.serve()
        return answer

    def _take_slowly(self, call: Call) -> Wire:
        """A connection by the pool's rules; the attempt begins when it is here."""
        began = self._clock.monotonic()
        try:
            wire = self._pool.take(call, self._connect_limit(call))
        finally:
            now = self._clock.monotonic()
            call.spent = {"connection": now - began}
        self._start_on(wire, call, now)
        return wire

    def _start_on(self, wire: Wire, call: Call, now: float) -> None:
        """Begin `call`'s attempt, which had to wait for `wire` until `now`."""
        try:
            call.restart(now)
        except BaseException:
            self._pool.give(wire)  # too little time was left, which is not its fault
            raise
        wire.used = now

    def _connect_limit(self, call: Call) -> Callable[[], float]:
        block = self._connect_block
        now = self._clock.monotonic()
        if now >= block.histogram.due:
            block.refresh(now)  # connects are rare: nobody else closes their slices
        return lambda: self._connect_learnt(call).limit

    def _connect_learnt(self, call: Call) -> Learnt:
        """How long `call` may wait for a connect.

        A pool makes so few connections that their limit may not be learnt when the server falls
        silent. From then on a caller waits no longer for one than for an answer. The connect goes
        on to its ceiling, so that a probe needn't wait for it: once made, it grants one.
        """
        connect, attempt = self._connect_block.learnt, call.owner.learnt
        circuit = call.owner.circuit
        if (
            circuit is not None
            and circuit.attentive
            and attempt.source == "learnt"
            and attempt.limit < connect.limit
        ):
            return attempt
        return connect

    def _talk(
        self, wire: Wire, call: Call, request: bytes, read: Reader | None, expected: Any
    ) -> Any:
        """Send, and read the reply (None: there is none)."""
        left = call.at - call.began
        if not -SLACK <= wire.armed - left <= GRAIN:
            wire.arm(left)
        wire.used = call.began
        wire.calls += 1
        # replies come in order: one that was read means that none is still to come
        wire.unread = read is None or wire.unread
        if len(request) > ONE_SEND:
            self._send_much(wire, call, request)
        else:
            # before, not after: a KeyboardInterrupt may come between the two
            call.sent = True
            try:
                sent = wire.send(request)
            except EXPIRED:
                sent = 0
            if sent != len(request):  # the buffers are full: nobody reads at the other end
                wire.send_rest(memoryview(request)[sent:], call.at)
        if read is None:
            return None
        try:
            data = wire.recv(CHUNK)
        except EXPIRED:
            data = self._first_bytes(wire, call)
        if not data:
            raise EndOfStream
        answer = read(wire, call.at, expected, data)
        wire.unread = False
        return answer

    def _first_bytes(self, wire: Wire, call: Call) -> bytes:
        try:
            return wire.read(call.at)
        except Cut as cut:
            cut.mute = True
            raise

    def _send_much(self, wire: Wire, call: Call, request: bytes) -> None:
        call.sent = call.sent or not wire.whole_sends
        try:
            sent = wire.send(request)
        except EXPIRED:
            sent = 0
        call.sent = call.sent or sent > 0
        wire.send_rest(memoryview(request)[sent:], call.at)
        call.sent = True

    def _give_back(self, wire: Wire) -> None:
        if wire.finished:
            self._pool.discard(wire, dead=False)
        else:
            self._pool.give(wire)

    def _after(
        self,
        call: Call,
        wire: Wire | None,
        error: BaseException,
        operation: str,
        request: bytes,
        read: Reader | None,
        expected: Any,
    ) -> Any:
        """After an attempt that failed: drop the connection, blame, repeat or raise."""
        while True:
            pause = self._dispose(call, wire, error, operation)
            if pause is not None:
                self._pause(call, pause)
            wire = None
            try:
                wire = self._take_slowly(call)
                answer: Any = self._talk(wire, call, request, read, expected)
                call.succeeded()
            except Exception as next_error:
                error = next_error
                continue
            except BaseException:
                self._abandon(call, wire)
                raise
            self._give_back(wire)
            return answer

    def _abandon(self, call: Call, wire: Wire | None) -> None:
        """An interrupt: neither answer nor failure.

        Not handed on by name: a frame that holds its own exception is a cycle, and would keep a
        connection from the pool until the garbage collector runs.
        """
        call.abandoned()
        if wire is not None:
            self._pool.discard(wire, dead=False)

    def _pause(self, call: Call, seconds: float) -> None:
        try:
            self._clock.sleep(seconds)
            call.again()
        except BaseException:
            call.abandoned()
            raise

    def _dispose(
        self, call: Call, wire: Wire | None, error: BaseException, operation: str
    ) -> float | None:
        """Drop the connection of a failed attempt and blame; or raise what the caller gets.

        Returns the pause before the next attempt, to be begun by ``call.again()``; None: the one
        repeat that is nobody's fault, at once.
        """
        if wire is not None and wire.unread and isinstance(error, (Refused, ServerUnwell)):
            error = Garbled("an error, perhaps of an earlier command with noreply")
        once_more = (
            wire is not None
            and call.attempt == 1
            and self._may_repeat_once(call, wire, error, operation)
        )
        # its answer may come yet: the machine learns from that
        park = wire is not None and isinstance(error, Cut) and error.mute and wire.can_park
        if wire is not None:
            dead = isinstance(error, ConnectionError)
            self._pool.discard(wire, dead=dead, close=not park)
        if once_more:
            call.attempt += 1
            return None
        repeatable = operation in REPEATABLE or not call.sent
        try:
            return self._judge(call, wire, error, repeatable=repeatable)
        finally:
            if park and wire is not None:
                LOT.park(wire, call.late, self._clock)

    def _may_repeat_once(
        self, call: Call, wire: Wire, error: BaseException, operation: str
    ) -> bool:
        """The one repeat on a pooled connection that had died: no evidence against the server.

        Nothing of a reply may have been read, or the reply wasn't ours.
        """
        return (
            isinstance(error, ConnectionError)
            and wire.born < call.started  # it was in the pool, where it may have died
            and (wire.unread or not isinstance(error, Garbled))
            and (operation in REPEATABLE or not call.sent)
            and call.call_at > self._clock.monotonic()
        )

    def _judge(
        self, call: Call, wire: Wire | None, error: BaseException, *, repeatable: bool
    ) -> float:
        """Tell the machine; the pause before the next attempt, or raise what the caller gets."""
        kind, raised = _translate(error, connected=wire is not None)
        verdict = call.failed(
            error,
            kind=kind,
            waited=call.limit if kind == STALLED else None,
            connect=self._connect_learnt(call),
            repeatable=repeatable and kind is not None,
        )
        if verdict.retry_after is not None:
            return verdict.retry_after
        if isinstance(error, (Refused, ServerUnwell)):
            raise error.error from None
        if raised is None:
            raise error
        told = isinstance(error, (Garbled, PoolFull, Full)) or kind == CROWDED
        note = str(error) if told else ""
        raise call.unavailable(raised, note=note) from error

    # -- falling back -----------------------------------------------------------------------

    def _unavailable(self, error: _errors.Unavailable, default: Any) -> Any:
        """What a read returns without an answer, where the user asked for something."""
        if self.ignore_exc:
            return default
        return self._fall_back(error)

    def _fall_back(self, error: _errors.Unavailable) -> Any:
        return self._get_block._fall_back(error)

    # -- keys -------------------------------------------------------------------------------

    def _wire_key(self, key: Key) -> bytes:
        """The key as it is sent: pymemcache's rules, with a short cut for the plainest ones."""
        if (
            type(key) is str
            and key.isascii()
            and key.isprintable()
            and " " not in key
            and self._plain_keys
            and len(key) <= 250 - len(self.key_prefix)
        ):
            return self.key_prefix + key.encode()
        return self.check_key(key, self.key_prefix)


def _translate(
    error: BaseException, *, connected: bool
) -> tuple[str | None, type[_errors.Unavailable] | None]:
    """(the machine's kind, the Unavailable to raise or None: `error` as it is)."""
    if isinstance(error, Refused):
        return ANSWER, None
    if isinstance(error, ServerUnwell):
        return UNWELL, None
    if isinstance(error, Garbled):
        return BROKEN, GarbledReply
    if isinstance(error, (PoolFull, Full)):
        return CROWDED, _errors.Overloaded
    if isinstance(error, (ConnectTimeout, TimeoutError)):
        overslept = isinstance(error, Cut) and error.overslept > OVERSLEPT
        kind = STALLED if overslept else CUT
        return kind if connected else UNCONNECTED, _errors.DeadlineExceeded
    if isinstance(error, OSError) and not connected and error.errno in EXHAUSTED:
        return CROWDED, _errors.Overloaded
    if isinstance(error, (OSError, EOFError)):
        return BROKEN, _errors.ConnectionLost if connected else _errors.ConnectFailed
    return None, None
