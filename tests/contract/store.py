"""How the contract suite sees a store: what the next stores implement to plug in.

A *cell* is one operation under one fault on one connection state (cold or warm). Each cell has its
own client, its own link of the relay and its own *scene*: data of its own, made through a client
that goes round the relay, and what the operation is expected to do to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from tests.contract.faults import Expected, Trouble
from timedblock.faults import Fault

Address = tuple[str, int]


@dataclass(frozen=True)
class Operation:
    """One operation of a store.

    Attributes:
        name: what the test's report calls it.
        call: makes it: ``call(client, scene)``.
        right: whether an answer is right: ``right(answer, scene)``.
        writes: what the scene's data is once it is done, or None if it changes nothing.
        replies: the store answers it; False: an answer of the client says nothing.
        opaque: the client hands the reply over unread, so it can't tell a corrupted one.
        acknowledges: the client tells the store afterwards that it has the answer; where a fault
            loses that, the store's data are as they were.
        in_the_end: what is still wrong some time after the fault, or None: asked again until then,
            ``in_the_end(raw, scene, answered)``.
    """

    name: str
    call: Callable[[Any, Any], Any]
    right: Callable[[Any, Any], bool]
    writes: Callable[[Any], Mapping[str, Any]] | None = None
    replies: bool = True
    opaque: bool = False
    acknowledges: bool = False
    in_the_end: Callable[[Any, Any, bool], str | None] | None = None


class Store(Protocol):
    """A store under the contract.

    One that has an embedded server has `embedded`, which is to it what `real` is to the real one.

    Attributes:
        name: what the test's report calls it.
        operations: what the suite goes through.
        together: cells at a time; they mostly wait, but too many make each other late.
        patience: seconds that `warm_up` and `follow_up` may take: as long as their calls may.
    """

    name: str
    operations: Sequence[Operation]
    together: int
    patience: float

    def real(self) -> AbstractContextManager[Address]:
        """A real server, while inside; skips the test with its reason where there is none."""

    def client(self, address: Address, limit: float) -> Any:
        """Our client, each call of which is to end within `limit` seconds."""

    def raw(self, address: Address) -> Any:
        """The bare driver's client, for what the suite does behind the relay's back."""

    def scene(self, raw: Any, name: str) -> Any:
        """Data of a cell's own, stored on the server."""

    def data(self, raw: Any, scene: Any) -> Mapping[str, Any]:
        """The scene's data as it is on the server now."""

    def warm_up(self, client: Any, scene: Any) -> None:
        """Make the client's connection."""

    def follow_up(self, client: Any, scene: Any) -> str | None:
        """Calls after the fault on data of their own; what was wrong with the answers, or None."""

    def busy(self, client: Any, address: Address) -> int:
        """Calls of the client in flight to this address, and what else it keeps for any of them: a
        connection that is neither idle nor closed, a place of a message."""

    def expected(self, trouble: Trouble, warm: bool) -> Expected:
        """How a call on a warm or a cold connection may end under the fault."""

    def raw_feels(self, address: Address, fault: Fault, start: Callable[[], None]) -> str | None:
        """Proof that the bare driver suffers: it connects, `start()` puts the fault in place, it
        calls. What was missing, or None."""
