"""What a call raises when it has no answer (L0).

One `except timedblock.Unavailable` serves every store. Each error says whether bytes left this
process (`sent`) and where the time went. The message is composed when it is read, so that failing
fast stays fast.
"""

from __future__ import annotations

import errno
from typing import Any


class Unavailable(Exception):
    """No answer within the limit. The base of everything timedblock raises for a call.

    Attributes:
        block: name of the timed block, e.g. ``memcache.get``.
        endpoint: ``host:port``, or None for a block of the application's own.
        elapsed: seconds from the start of the call to this error.
        limit: the call limit in seconds, or None where there was none.
        attempt_limit: the limit of the attempt that was cut, in seconds, or None.
        limit_source: ``learnt: p99.5 × 2``, ``initial``, ``fixed``, ``ceiling`` or ``caller``.
        sent: False: nothing left this process, safe to repeat. True: the outcome is unknown.
        spent: where the time went, e.g. ``{"pool": 0.0, "connect": 0.002, "waiting": 0.098}``.
        note: what else is worth knowing, e.g. ``3 of 5 failures``.
    """

    #: what `errno` is on the subclasses that are OSErrors
    default_errno: int | None = None
    errno: Any

    def __init__(
        self,
        message: str = "",
        *,
        block: str = "",
        endpoint: str | None = None,
        elapsed: float = 0.0,
        limit: float | None = None,
        attempt_limit: float | None = None,
        limit_source: str = "",
        sent: bool = False,
        spent: dict[str, float] | None = None,
        note: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.block = block
        self.endpoint = endpoint
        self.elapsed = elapsed
        self.limit = limit
        self.attempt_limit = attempt_limit
        self.limit_source = limit_source
        self.sent = sent
        self.spent = {} if spent is None else spent
        self.note = note
        if self.default_errno is not None:
            self.errno = self.default_errno

    def _verb(self) -> str:
        return f"gave up after {self.elapsed:.3f} s"

    def _where(self) -> str:
        at = f" on {self.endpoint}" if self.endpoint else ""
        return f"{self.block or 'call'}{at}"

    def _limits(self) -> str:
        if self.limit is None and self.attempt_limit is None:
            return ""
        parts = []
        if self.attempt_limit is not None:
            source = f", {self.limit_source}" if self.limit_source else ""
            parts.append(f"attempt limit {self.attempt_limit:.3f}{source}")
        if self.limit is not None:
            parts.append(f"call limit {self.limit:g}")
        return f" ({'; '.join(parts)})"

    def _spent(self) -> str:
        parts = [f"{name} {seconds:.3f}" for name, seconds in self.spent.items()]
        if self.spent:
            parts.insert(-1 if "waiting" in self.spent else len(parts), self._sent())
        return f": {', '.join(parts)}" if parts else f": {self._sent()}"

    def _sent(self) -> str:
        return "sent" if self.sent else "nothing sent"

    def __str__(self) -> str:
        if self.message:
            return self.message
        told = self.__cause__ is None or isinstance(self.__cause__, TimeoutError)
        cause = "" if told else f"; {type(self.__cause__).__name__}"
        note = f"; {self.note}" if self.note else ""
        return f"{self._where()} {self._verb()}{self._limits()}{self._spent()}{note}{cause}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError's own __reduce__ would lose our attributes, Exception's those of OSError.
        names = ("errno", "strerror", "filename", "filename2")
        os_part = {name: getattr(self, name, None) for name in names}
        # The text is frozen: the cause that it may name doesn't travel.
        state = {**self.__dict__, "message": str(self)}
        return _rebuild, (type(self), state, os_part)


def _rebuild(cls: type[Unavailable], state: dict[str, Any], os_part: dict[str, Any]) -> Unavailable:
    error = cls.__new__(cls, state["message"])
    error.args = (state["message"],)
    error.__dict__.update(state)
    for name, value in os_part.items():
        if value is not None:
            setattr(error, name, value)
    return error


class DeadlineExceeded(Unavailable, TimeoutError):
    """The limit passed before the answer came (or the budget left was too small to start)."""

    default_errno = errno.ETIMEDOUT


class ConnectFailed(Unavailable, ConnectionError):
    """No connection could be made; nothing was sent."""

    default_errno = errno.ECONNREFUSED

    def _verb(self) -> str:
        return f"could not connect after {self.elapsed:.3f} s"


class ConnectionLost(Unavailable, ConnectionError):
    """The connection ended, or the reply can't belong to the request, before the answer."""

    default_errno = errno.ECONNRESET

    def _verb(self) -> str:
        return f"lost its connection after {self.elapsed:.3f} s"


class CircuitOpen(Unavailable):
    """The breaker is open: the call was not tried.

    Attributes:
        retry_after: seconds until the next probe may be permitted.
    """

    def __init__(self, message: str = "", *, retry_after: float = 0.0, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.retry_after = retry_after

    def __str__(self) -> str:
        if self.message:
            return self.message
        note = f" ({self.note})" if self.note else ""
        after = f"retry after {self.retry_after:.3f} s"
        return f"{self._where()} was not tried: the breaker is open{note}, {after}"


class Overloaded(Unavailable):
    """The bulkhead, the pool or the workers are full; never blames the store."""

    def __str__(self) -> str:
        if self.message:
            return self.message
        return f"{self._where()} was not tried after {self.elapsed:.3f} s: {self.note or 'full'}"


class PartialResult(Unavailable):
    """Some of the answers came, some didn't.

    Attributes:
        result: what came.
        missing: the keys without an answer.
    """

    def __init__(
        self, message: str = "", *, result: Any = None, missing: Any = (), **fields: Any
    ) -> None:
        super().__init__(message, **fields)
        self.result = result
        self.missing = missing

    def _verb(self) -> str:
        return f"has {len(self.missing)} of its keys without an answer after {self.elapsed:.3f} s"
