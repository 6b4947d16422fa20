"""pika's connect workflow within one limit: names, addresses, attempts, TLS and log-in (L4)."""

from __future__ import annotations

import contextlib
import copy
import socket
from typing import TYPE_CHECKING, Any

from pika.adapters.select_connection import SelectConnection
from pika.adapters.utils.connection_workflow import AMQPConnectionWorkflow
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

from ...net.resolve import RESOLVER
from ..connection import sever

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...clock import Clock

#: The least that one address is tried for, in seconds.
ATTEMPT = 0.15


class TimeOver(Exception):
    """The limit of a call passed; the connection is gone, or never was."""


class Connector:
    """Stands where pika has the class of its connections, and makes one, within `until`."""

    def __init__(self, kind: Any, clock: Clock, until: float) -> None:
        """`kind`: the class that is to be made; None: pika's SelectConnection."""
        self._kind = SelectConnection if kind is None else kind
        self._clock = clock
        self._until = until
        self._over = False
        self._connections: list[Any] = []
        self._workflow: Any = None
        self._timer: Any = None
        self._given: list[Any] = []
        self._parameters: list[Any] = []

    def create_connection(
        self, connection_configs: Any, on_done: Callable[[Any], None], custom_ioloop: Any
    ) -> None:
        """Begin; ``on_done(connection or error)`` is called from `custom_ioloop`, in time."""
        self._on_done = on_done
        self._ioloop = custom_ioloop
        self._given = list(connection_configs)
        self._parameters = [copy.copy(one) for one in self._given]
        self._workflow = AMQPConnectionWorkflow()
        self._timer = custom_ioloop.call_later(max(0.0, self._left()), self._expired)
        services = _Services(custom_ioloop, self._resolve)

        def make(parameters: Any) -> Any:
            made = self._kind(
                parameters=parameters, custom_ioloop=services, internal_connection_workflow=False
            )
            self._connections.append(made)
            return made

        SelectConnection._start_connection_workflow(
            connection_configs=self._parameters,
            connection_factory=make,
            nbio=services,
            workflow=self._workflow,
            on_done=self._finished,
        )

    def _left(self) -> float:
        return self._until - self._clock.monotonic()

    def _resolve(self, host: str, port: int) -> list[Any]:
        """`getaddrinfo`'s records; each of them gets a fair share of the time that is left."""
        try:
            found = RESOLVER.resolve(host, port, self._clock, max(0.001, self._left()))
        except TimeoutError:
            raise TimeOver from None
        index = self._workflow._current_config_index
        here = self._parameters[index]
        share = self._left() / (len(found) * (len(self._parameters) - index))
        share = max(ATTEMPT, share)
        for name in ("socket_timeout", "stack_timeout"):
            given = getattr(self._given[index], name)
            setattr(here, name, share if given is None else min(given, share))
        stream = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(family, *stream, address) for family, address in found]

    def _finished(self, result: Any) -> None:
        if not self._over:
            self._over = True
            self._ioloop.remove_timeout(self._timer)
            self._on_done(result)

    def _expired(self) -> None:
        # what is here already is read first
        self._timer = self._ioloop.call_later(0, self._give_up)

    def _give_up(self) -> None:
        if not self._over:
            self.abandon()
            self._on_done(TimeOver())

    def end(self) -> None:
        """Let go of everything, the loop too, which pika forgets after an interrupt."""
        self.abandon()
        with contextlib.suppress(Exception):
            self._ioloop.close()

    def abandon(self) -> None:
        """Let go of whatever was begun, without a word to the peer."""
        self._over = True
        workflow = self._workflow
        if workflow is None:
            return
        connector = workflow._connector
        with contextlib.suppress(Exception):
            workflow._deactivate()
        if connector is not None:
            connector._amqp_conn = None
            with contextlib.suppress(Exception):
                connector._close()
        for connection in self._connections:
            sever(connection)


class _Services(SelectorIOServicesAdapter):  # type: ignore[misc, unused-ignore]
    """pika's, but a name is resolved within the limit, on a bounded number of threads."""

    def __init__(self, ioloop: Any, resolve: Callable[[str, int], list[Any]]) -> None:
        super().__init__(ioloop)
        self._resolve = resolve

    def getaddrinfo(
        self,
        host: str,
        port: int,
        on_done: Callable[[Any], None],
        family: int = 0,
        socktype: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """As pika's, for streams. Waits: nothing else happens on this loop before it knows."""
        result: Any
        try:
            result = self._resolve(host, port)
        except Exception as error:
            result = error
        return self.call_later(0, lambda: on_done(result))
