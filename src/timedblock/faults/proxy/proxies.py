"""What the HTTP API tells of and changes: proxies by name, each with its toxics in order.

Every operation is that of Toxiproxy 2.5.0, with its errors; so are the names of the fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .kinds import KINDS, Entry, is_stream
from .link import Address, ServedLink, Way
from .loop import Loop


class Problem(Exception):
    """What the API answers instead: an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def bad_body(why: object) -> Problem:
    """400: the request's body isn't what it should be."""
    return Problem(400, f"bad request body: {why}")


def _missing(what: str) -> Problem:
    return Problem(400, f"missing required field: {what}")


def split(address: str) -> Address:
    """Host and port of ``host:port``, ``[host]:port``, ``:port`` or nothing. ValueError names
    the bad one."""
    if not address:
        return "", 0
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError(f"{address!r} is not HOST:PORT")
    return host, int(port)


def join(address: Sequence[Any]) -> str:
    """``host:port`` of a socket's address."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Proxy:
    """A proxy of the API; while it is enabled it has a link."""

    def __init__(self, loop: Loop, name: str, listen: str, upstream: str) -> None:
        self.name = name
        self.listen = listen
        self.upstream = upstream
        self._loop = loop
        self._link: ServedLink | None = None
        self._entries: list[Entry] = []

    @property
    def enabled(self) -> bool:
        """Whether it listens."""
        return self._link is not None

    def show(self) -> dict[str, Any]:
        """JSON-able, in Toxiproxy's form."""
        fields = {field: getattr(self, field) for field in ("name", "listen", "upstream")}
        return {**fields, "enabled": self.enabled, "toxics": self.toxics()}

    def start(self) -> None:
        """Listen. Problem 500 if it can't; harmless when it does."""
        if self._link is not None:
            return
        try:
            address, way = split(self.listen), Way(split(self.upstream), must=False)
        except ValueError as error:
            raise Problem(500, f"listen tcp: address {self.listen}: {error}") from None
        try:
            self._link = self._loop.ask(lambda: self._open(address, way))
        except (OSError, RuntimeError) as error:
            why = (getattr(error, "strerror", None) or str(error)).lower()
            raise Problem(500, f"listen tcp {self.listen}: bind: {why}") from error
        self.listen = join(self._link.address)

    def _open(self, address: Address, way: Way) -> ServedLink:
        link = ServedLink(self._loop, address, way)
        try:
            for entry in self._entries:
                link.add(entry.build())
        except BaseException:
            link.close()
            raise
        return link

    def stop(self) -> None:
        """Close its connections and its port; its toxics stay."""
        link, self._link = self._link, None
        if link is not None:
            self._loop.ask(lambda: link.close(reset=False))

    def update(self, listen: str, upstream: str, enabled: bool) -> None:
        """Make it so."""
        if (listen, upstream) != (self.listen, self.upstream):
            self.stop()
            self.listen, self.upstream = listen, upstream
        if enabled:
            self.start()
        else:
            self.stop()

    # -- toxics ------------------------------------------------------------------------------

    def toxics(self) -> list[dict[str, Any]]:
        """Those to the server first, each stream's in their order."""
        return [one.show() for one in sorted(self._entries, key=lambda one: not one.upstream)]

    def toxic(self, name: str) -> Entry:
        """The toxic of that name; Problem 404."""
        for entry in self._entries:
            if entry.name == name:
                return entry
        raise Problem(404, "toxic not found")

    def add_toxic(self, body: Mapping[str, Any], seed: str) -> Entry:
        """A new toxic, in force at once. Problem 400 or 409."""
        entry = _read_entry(body, seed)
        if any(one.name == entry.name for one in self._entries):
            raise Problem(409, "toxic already exists")
        link = self._link
        if link is not None:
            self._carry_out(lambda: link.add(entry.build()))
        self._entries.append(entry)
        return entry

    def update_toxic(self, name: str, body: Mapping[str, Any]) -> Entry:
        """Give a toxic other attributes or another toxicity. Problem 400 or 404."""
        entry = self.toxic(name)
        attributes = _attributes(entry.type, body, entry.attributes)
        entry.toxicity = _toxicity(body, entry.toxicity)
        entry.attributes = attributes
        before, link = entry.toxic, self._link
        if link is not None and before is not None:
            self._carry_out(lambda: link.replace(before, entry.build()))
        return entry

    def remove_toxic(self, name: str) -> None:
        """Take a toxic away; Problem 404."""
        entry = self.toxic(name)
        self._entries.remove(entry)
        toxic, link = entry.toxic, self._link
        if link is not None and toxic is not None:
            self._carry_out(lambda: link.remove(toxic))

    def reset(self) -> None:
        """Take every toxic away."""
        for entry in list(self._entries):
            self.remove_toxic(entry.name)

    def _carry_out(self, work: Any) -> None:
        try:
            self._loop.ask(work)
        except (OSError, RuntimeError) as error:
            raise Problem(500, str(error)) from error


class Collection:
    """Every proxy by its name. Not thread-safe: the API's lock is around each call."""

    def __init__(self, loop: Loop, seed: int = 0) -> None:
        self._loop = loop
        self._seed = seed
        self._proxies: dict[str, Proxy] = {}

    def show(self) -> dict[str, Any]:
        """All of them, JSON-able."""
        return {name: proxy.show() for name, proxy in self._proxies.items()}

    def get(self, name: str) -> Proxy:
        """Problem 404 if there is none."""
        try:
            return self._proxies[name]
        except KeyError:
            raise Problem(404, "proxy not found") from None

    def create(self, body: Mapping[str, Any]) -> Proxy:
        """A new proxy, listening unless it says otherwise. Problem 400, 409 or 500."""
        name, listen, upstream = _names(body, "")
        if name in self._proxies:
            raise Problem(409, "proxy already exists")
        proxy = Proxy(self._loop, name, listen, upstream)
        if _field(body, "enabled", bool, True):
            proxy.start()
        self._proxies[name] = proxy
        return proxy

    def populate(self, bodies: Sequence[Mapping[str, Any]]) -> tuple[list[Proxy], Problem | None]:
        """Create or replace each; those made before the first problem, and that problem."""
        wanted = [_names(body, f" at proxy {at}") for at, body in enumerate(bodies, 1)]
        enabled = [_field(body, "enabled", bool, True) for body in bodies]
        made: list[Proxy] = []
        for (name, listen, upstream), on in zip(wanted, enabled, strict=True):
            try:
                made.append(self._put(name, listen, upstream, on))
            except Problem as problem:
                return made, problem
        return made, None

    def _put(self, name: str, listen: str, upstream: str, enabled: bool) -> Proxy:
        before = self._proxies.get(name)
        if before is not None:
            if (before.listen, before.upstream) == (listen, upstream):
                return before
            before.stop()
        proxy = Proxy(self._loop, name, listen, upstream)
        if enabled:
            proxy.start()
        self._proxies[name] = proxy
        return proxy

    def update(self, name: str, body: Mapping[str, Any]) -> Proxy:
        """Change where it listens or leads to, or whether. Problem 400, 404 or 500."""
        proxy = self.get(name)
        listen = _field(body, "listen", str, proxy.listen)
        upstream = _field(body, "upstream", str, proxy.upstream)
        proxy.update(listen, upstream, _field(body, "enabled", bool, proxy.enabled))
        return proxy

    def remove(self, name: str) -> None:
        """Problem 404 if there is none."""
        self.get(name).stop()
        del self._proxies[name]

    def reset(self) -> None:
        """Start all that are stopped, take every toxic away."""
        for proxy in self._proxies.values():
            proxy.start()
            proxy.reset()

    def add_toxic(self, name: str, body: Mapping[str, Any]) -> Entry:
        """A new toxic of that proxy; its chance is its own and the same in each run."""
        proxy = self.get(name)
        return proxy.add_toxic(body, f"{self._seed}/{name}")

    def close(self) -> None:
        """Stop them all."""
        for proxy in self._proxies.values():
            proxy.stop()


def _field(body: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """A field of the body, whatever the case of its name; null is as if it weren't there."""
    for key, value in body.items():
        if key.lower() == name and value is not None:
            if not isinstance(value, kind):
                raise bad_body(f"{name} must be a {kind.__name__}, not {value!r}")
            default = value
    return default


def _names(body: Mapping[str, Any], where: str) -> tuple[str, str, str]:
    name, listen, upstream = (
        _field(body, field, str, "") for field in ("name", "listen", "upstream")
    )
    for field, value in (("name", name), ("upstream", upstream)):
        if not value:
            raise _missing(field + where)
    return name, listen, upstream


def _toxicity(body: Mapping[str, Any], default: float) -> float:
    given = _field(body, "toxicity", object, default)
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise bad_body(f"toxicity must be a number, not {given!r}")
    return float(given)


def _attributes(kind: str, body: Mapping[str, Any], before: Any) -> dict[str, Any]:
    try:
        return KINDS[kind].read(_field(body, "attributes", object, None), before)
    except ValueError as error:
        raise bad_body(error) from None


def _read_entry(body: Mapping[str, Any], seed: str) -> Entry:
    kind = _field(body, "type", str, "")
    stream = _field(body, "stream", str, "downstream")
    name = _field(body, "name", str, "") or f"{kind}_{stream}"
    toxicity = _toxicity(body, 1.0)
    if not is_stream(stream):
        raise Problem(400, "stream was invalid, can be either upstream or downstream")
    if kind not in KINDS:
        raise Problem(400, "invalid toxic type")
    attributes = _attributes(kind, body, None)
    return Entry(name, kind, stream, toxicity, attributes, f"{seed}/{name}")
