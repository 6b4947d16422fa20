"""A link as the relay's process serves it: its doorway, its upstream, its connections, and the
toxics that act on them."""

from __future__ import annotations

import errno
import socket
import threading
from typing import Any

from ..plan import Fault
from .connection import Connection
from .door import Door, Doorway
from .loop import Loop, Timer
from .toxics import Toxic, for_fault

Address = tuple[str, int]
Upstream = Address | str


class Way:
    """Where an upstream is. A name is looked up again, in the background, until it is found."""

    def __init__(self, upstream: Upstream, *, must: bool = True) -> None:
        self._upstream = upstream
        self._looking = False
        self.target: tuple[int, Any] | None = None
        try:
            self.target = resolve(upstream)
        except OSError:
            if must:
                raise

    def look(self) -> None:
        """Look the name up; a connection that comes later may find it."""
        if not self._looking:
            self._looking = True
            threading.Thread(target=self._look, name="timedblock-upstream", daemon=True).start()

    def _look(self) -> None:
        try:
            self.target = resolve(self._upstream)
        except OSError:
            pass
        finally:
            self._looking = False


class ServedLink:
    """One listening address, its upstream, its toxics, its connections.

    Toxics act in their order. ``inject`` and ``clear`` keep one of them, the fault; others are
    put and taken away by ``add``, ``replace`` and ``remove``."""

    def __init__(self, loop: Loop, address: Address, way: Way) -> None:
        self.loop = loop
        self.connections: set[Connection] = set()
        self.accepted = 0
        self.fault: Fault | None = None
        self._way = way
        self._toxics: list[Toxic] = []
        self._injected: Toxic | None = None
        self._end: Timer | None = None
        self._doorway = Doorway(loop, *resolve(address), self._open)

    @property
    def address(self) -> Any:
        """Where it listens."""
        return self._doorway.address

    def _open(self, client: socket.socket) -> None:
        self.accepted += 1
        if self._way.target is None:
            self._way.look()
            client.close()
            return
        family, where = self._way.target
        try:
            server = socket.socket(family)
        except OSError as error:
            client.close()
            self._doorway.rest(error)
            return
        for one in (client, server):
            one.setblocking(False)
            if one.family != socket.AF_UNIX:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(self, client, server)
        self.connections.add(connection)
        if server.connect_ex(where) in (0, errno.EINPROGRESS):
            self._arm(connection)
            connection.update()
        else:
            connection.abort()

    def forget(self, connection: Connection) -> None:
        """The connection is closed."""
        self.connections.discard(connection)
        for toxic in self._toxics:
            toxic.forget(connection)

    # -- toxics ------------------------------------------------------------------------------

    def add(self, toxic: Toxic) -> None:
        """Put a toxic in force, behind the others."""
        self._toxics.append(toxic)
        self._begin(toxic)

    def replace(self, before: Toxic, now: Toxic) -> None:
        """Put `now` in the place of `before`, which lets go of what it held."""
        before.release()
        now.take_over(before)
        self._toxics[self._toxics.index(before)] = now
        before.stop()
        self._begin(now)

    def remove(self, toxic: Toxic) -> None:
        """Take a toxic away."""
        self._toxics.remove(toxic)
        toxic.end()
        self.refresh()

    def inject(self, fault: Fault) -> None:
        """Put the fault in force, in place of the one before."""
        toxic = for_fault(fault)
        self._drop_injected()
        self.fault, self._injected = fault, toxic
        if fault.duration is not None:
            self._end = self.loop.after(fault.duration, self.clear)
        try:
            self.add(toxic)
        except BaseException:
            self._injected = None
            self.clear()
            raise

    def clear(self) -> None:
        """End the fault."""
        self._drop_injected()
        self.refresh()

    def _drop_injected(self) -> None:
        if self._end is not None:
            self._end.cancel()
        toxic, self._injected = self._injected, None
        self._end = self.fault = None
        if toxic is not None:
            self._toxics.remove(toxic)
            toxic.end()

    def _begin(self, toxic: Toxic) -> None:
        toxic.link = self
        try:
            toxic.begin()
            self.refresh()
        except BaseException:
            self.remove(toxic)
            raise

    def refresh(self) -> None:
        """Let the toxics in force act, and wait for what they want."""
        self._doorway.set(max((one.door for one in self._toxics), default=Door.OPEN))
        for connection in list(self.connections):
            self._arm(connection)
            connection.update()

    def _arm(self, connection: Connection) -> None:
        for flow in (connection.up, connection.down):
            flow.put([one for one in self._toxics if one.touches(flow)])

    def close(self, *, reset: bool = True) -> None:
        """Stop listening, end the connections (with RST, or in order), give the port back."""
        for toxic in self._toxics:
            toxic.stop()
        self._toxics.clear()
        self._injected = None
        self._doorway.close()
        for connection in list(self.connections):
            connection.abort() if reset else connection.close()


def resolve(address: Upstream) -> tuple[int, Any]:
    """Family and socket address of (host, port), or of a UNIX socket's path. An empty host is
    every address. OSError when it isn't found."""
    if isinstance(address, str):
        return socket.AF_UNIX, address
    host, port = address
    if not host:
        return (socket.AF_INET6, ("::", port)) if socket.has_ipv6 else (socket.AF_INET, ("", port))
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # A name with both is the IPv4 one: servers that listen on 127.0.0.1 only are the rule.
    family, _, _, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, where
