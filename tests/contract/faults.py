"""The relay's faults, and what each must do to a call in the contract."""

from __future__ import annotations

from dataclasses import dataclass

from timedblock import ConnectFailed, ConnectionLost, DeadlineExceeded, Unavailable, faults

ANY = (Unavailable,)


@dataclass(frozen=True)
class Expected:
    """How a call under a fault may end.

    Attributes:
        errors: the subclasses of Unavailable that are right.
        sent: what `.sent` must be; None: it depends on the instant.
        answers: an answer is possible too.
    """

    errors: tuple[type[Unavailable], ...]
    sent: bool | None = None
    answers: bool = False


@dataclass(frozen=True)
class Trouble:
    """A fault, and what it does to a call on a new and on an open connection."""

    fault: faults.Fault
    cold: Expected
    warm: Expected

    @property
    def name(self) -> str:
        return self.fault.name


_CUT = Expected((DeadlineExceeded,), sent=True)
_MAY_ANSWER = Expected(ANY, answers=True)
_ANSWERS = Expected((), answers=True)
_BROKEN = Expected((ConnectionLost,), sent=True)

TROUBLES = [
    # A warm call may find its dead connection before it sends, or after; then it is refused.
    Trouble(faults.Refuse(), Expected((ConnectFailed,), sent=False),
            Expected((ConnectionLost, ConnectFailed))),
    Trouble(faults.Blackhole(), Expected((DeadlineExceeded, ConnectFailed), sent=False), _CUT),
    Trouble(faults.Hang(), _CUT, _CUT),
    Trouble(faults.Silent(), _CUT, _CUT),
    # A fifth of the limit there and back: slow is not dead, and every call has its answer.
    Trouble(faults.Latency(0.02, jitter=0.01), _ANSWERS, _ANSWERS),
    Trouble(faults.Drip(), _CUT, _CUT),
    Trouble(faults.Reset(), _BROKEN, _BROKEN),
    # Replies that are shorter than ten bytes get through.
    Trouble(faults.Cut(after=10), _MAY_ANSWER, _MAY_ANSWER),
    Trouble(faults.Corrupt(), Expected((ConnectionLost, DeadlineExceeded), sent=True),
            Expected((ConnectionLost, DeadlineExceeded), sent=True)),
    Trouble(faults.ErrorRate(0.5), _MAY_ANSWER, _MAY_ANSWER),
]  # fmt: skip
