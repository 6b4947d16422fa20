"""What every injector of faults on real connections has, so that a drill can use any (L3).

    with injector as made:
        link = made.listen()
        client = subprocess.Popen([*link.prefix, "my-client", *map(str, link.address)])
        link.inject(Hang(duration=10))
        link.clear()

A link is one way to the store, with one fault at a time. Which faults an injector makes is in
`timedblock.faults.vocabulary`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import TracebackType

    from .plan import Fault


class CannotInject(RuntimeError):
    """This injector can't work here: another system, no rights, a program that isn't installed."""


class Link(Protocol):
    """One way to the store: what a client is given, and where a fault is put."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port for the client to connect to."""
        ...

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before the client's command, such as ``ip netns exec NAME``; mostly ()."""
        ...

    def inject(self, fault: Fault) -> None:
        """Put a fault in force, in place of the one before; returns once it bites.

        It ends by `clear`, or by itself after ``fault.duration`` seconds. ValueError if this
        injector can't make it."""
        ...

    def clear(self) -> None:
        """End the fault, and return once it is over; harmless when there is none."""
        ...


class Injector(Protocol):
    """Makes links while a ``with`` block lasts; whatever it made is gone afterwards."""

    @property
    def name(self) -> str:
        """One of `vocabulary.INJECTORS`."""
        ...

    def listen(self) -> Link:
        """A new link."""
        ...

    def __enter__(self) -> Injector: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
