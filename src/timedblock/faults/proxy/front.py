"""The relay in a process of its own, and what drives it.

It listens on *links*; a link relays to one upstream and has one fault at a time, put there
and taken away at run time, for connections that are open as well as for new ones::

    with Relay(upstream=("127.0.0.1", 11211)) as relay:
        link = relay.listen()
        client = pymemcache.Client(link.address)
        link.inject(Hang())          # returns once the relay has done it
        link.clear()
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from ...child import Child, Gone
from .. import vocabulary
from ..plan import Fault
from .link import Address, Upstream


class Link:
    """One address of a relay. Made by ``Relay.listen``."""

    def __init__(self, relay: Relay, number: int, address: Address) -> None:
        self._relay = relay
        self._number = number
        #: (host, port) to connect to.
        self.address = address
        #: Nothing has to stand before a client's command: see `injector.Link`.
        self.prefix: tuple[str, ...] = ()

    def inject(self, fault: Fault, *, toxicity: float = 1.0) -> None:
        """Put the fault in force, in place of the one before; returns once it bites. It ends
        by ``clear``, or by itself after ``fault.duration`` seconds.

        ``toxicity`` is the share of connections that it acts on, drawn from the fault's seed; it
        doesn't divide what becomes of the port (refuse, blackhole, silent, flap).

        ValueError for a fault that can't be made on the wire, or another share than 0 to 1."""
        vocabulary.check("proxy", fault)
        if not 0.0 <= toxicity <= 1.0:
            raise ValueError(f"toxicity must be from 0 to 1, not {toxicity!r}")
        self._ask("inject", fault=fault.to_dict(), toxicity=toxicity)

    def clear(self) -> None:
        """End the fault; returns once bytes pass again. What was held back is delivered."""
        self._ask("clear")

    def close(self) -> None:
        """Stop listening, reset the connections, give the port back."""
        self._ask("close")

    def describe(self) -> dict[str, Any]:
        """``fault`` (as ``Fault.to_dict``, or None), ``connections`` (open now) and ``accepted``
        (ever)."""
        answer = self._ask("describe")
        return {key: answer[key] for key in ("fault", "connections", "accepted")}

    def _ask(self, what: str, **more: Any) -> dict[str, Any]:
        return self._relay.ask({"do": what, "link": self._number, **more})


class Relay:
    """The relay's process, for the time of a ``with`` block, or between ``start`` and ``stop``.

    ``upstream`` is where links lead: (host, port) or the path of a UNIX socket. Thread-safe."""

    ANSWER_LIMIT = 10.0
    name = "proxy"

    def __init__(self, upstream: Upstream | None = None) -> None:
        self._upstream = upstream
        self._child: Child | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The process. RuntimeError if it isn't running."""
        return self._running().pid

    def start(self) -> Relay:
        """Start the process. RuntimeError if it is running."""
        if self._child is not None:
            raise RuntimeError("the relay is already running")
        self._child = Child("timedblock.faults.proxy")
        return self

    def stop(self) -> None:
        """End the process, and with it every connection; harmless when it isn't running."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def listen(
        self, host: str = "127.0.0.1", port: int = 0, *, upstream: Upstream | None = None
    ) -> Link:
        """A new link, by default on a free port. ValueError if it has no upstream; RuntimeError
        if it can't listen there."""
        target = self._upstream if upstream is None else upstream
        if target is None:
            raise ValueError("upstream is needed: give it to Relay or to listen")
        answer = self.ask({"do": "listen", "address": [host, port], "upstream": target})
        where_host, where_port = answer["address"]
        return Link(self, answer["link"], (where_host, where_port))

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request of the control protocol and its answer. RuntimeError if the relay is gone,
        doesn't answer, or can't do it."""
        with self._lock:
            try:
                answer: dict[str, Any] = self._running().ask(request, self.ANSWER_LIMIT)
            except Gone as error:
                self.stop()
                raise RuntimeError(f"the relay is gone, or didn't answer: {error}") from error
        if not answer["ok"]:
            raise RuntimeError(f"the relay can't {request['do']}: {answer['error']}")
        return answer

    def _running(self) -> Child:
        if self._child is None:
            raise RuntimeError("the relay is not running")
        return self._child

    def __enter__(self) -> Relay:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
