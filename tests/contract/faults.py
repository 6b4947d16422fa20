"""The faults, and what each must do to a call in the contract."""

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
    # A dozen bytes within the limit: a short reply may come, a value doesn't.
    Trouble(faults.Bandwidth(40), _MAY_ANSWER, _MAY_ANSWER),
    Trouble(faults.Flap(0.1, 0.1), _MAY_ANSWER, _MAY_ANSWER),
    # What may be repeated is, and has its answer.
    Trouble(faults.FailFirst(), _MAY_ANSWER, _MAY_ANSWER),
]  # fmt: skip

_NO_NAME = Expected((ConnectFailed,), sent=False)
_HANGING_NAME = Expected((DeadlineExceeded, ConnectFailed), sent=False)
#: No relay makes these: they are made where the client asks for an address. An open connection
#: asks for none.
NAME_TROUBLES = [
    Trouble(faults.DnsFail(), _NO_NAME, _ANSWERS),
    Trouble(faults.DnsHang(), _HANGING_NAME, _ANSWERS),
]
