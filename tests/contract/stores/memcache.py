"""memcached under the contract: `timedblock.memcache.Client` beside pymemcache's `Client`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pymemcache
import pytest

import timedblock
from tests.contract.faults import Expected, Trouble
from tests.contract.store import Address, Operation
from tests.servers.limits import LIMIT, TOLERANCE
from tests.servers.memcached import ENVIRONMENT, Memcached, binary, free_port, given_address
from tests.servers.raw_call import RawCall, RawOutcome
from timedblock import faults, memcache
from timedblock.testing.memcached import EmbeddedMemcached

# Too big for the buffers of two sockets: a peer that doesn't read blocks the sender.
LARGE = 900_000
# A flush in the far future is answered like any other and doesn't touch the other cells' data.
LATER = 1_000_000


@dataclass(frozen=True)
class Scene:
    """Four keys of a cell's own: two with values, one with a number, one without anything."""

    name: str
    cas: bytes = b""

    def key(self, part: str) -> str:
        return f"{self.name}:{part}"

    def value(self, part: str, version: str = "first") -> bytes:
        """200 bytes that name their key, so that another key's value is recognised."""
        return f"{self.key(part)} {version} ".encode().ljust(200, b".")

    def pairs(self, *parts: str, version: str = "first") -> dict[str, bytes]:
        return {self.key(part): self.value(part, version) for part in parts}

    def large(self) -> bytes:
        return self.value("a").ljust(LARGE, b"x")

    def every_key(self) -> list[str]:
        return [self.key(part) for part in ("a", "b", "number", "missing")]


def _is(expected: object) -> Callable[[Any, Scene], bool]:
    return lambda answer, scene: answer is expected


def _equals(make: Callable[[Scene], object]) -> Callable[[Any, Scene], bool]:
    def right(answer: Any, scene: Scene) -> bool:
        expected = make(scene)
        return type(answer) is type(expected) and answer == expected

    return right


def _becomes(part: str, make: Callable[[Scene], bytes | None]) -> Callable[[Scene], dict[str, Any]]:
    return lambda scene: {scene.key(part): make(scene)}


def _second(part: str) -> Callable[[Scene], dict[str, Any]]:
    return _becomes(part, lambda scene: scene.value(part, "second"))


def _has_tokens(answer: Any, scene: Scene) -> bool:
    """`gets_many` of both values: each with a token, which is a number."""
    if set(answer) != set(scene.pairs("a", "b")):
        return False
    return all(
        answer[key][0] == value and answer[key][1].isdigit()
        for key, value in scene.pairs("a", "b").items()
    )


OPERATIONS = [
    Operation("get", lambda c, s: c.get(s.key("a")), _equals(lambda s: s.value("a"))),
    Operation("get of a miss", lambda c, s: c.get(s.key("missing"), "nothing"),
              _equals(lambda s: "nothing")),
    Operation("get_many", lambda c, s: c.get_many(s.every_key()),
              _equals(lambda s: {**s.pairs("a", "b"), s.key("number"): b"41"})),
    Operation("gets", lambda c, s: c.gets(s.key("a")), _equals(lambda s: (s.value("a"), s.cas))),
    Operation("gets_many", lambda c, s: c.gets_many([s.key("a"), s.key("b")]), _has_tokens),
    Operation("set", lambda c, s: c.set(s.key("a"), s.value("a", "second")), _is(True),
              writes=_second("a")),
    Operation("set of 900 kB", lambda c, s: c.set(s.key("a"), s.large()), _is(True),
              writes=_becomes("a", Scene.large)),
    Operation("set_many", lambda c, s: c.set_many(s.pairs("a", "b", version="second")),
              _equals(lambda s: []), writes=lambda s: s.pairs("a", "b", version="second")),
    Operation("add", lambda c, s: c.add(s.key("missing"), s.value("missing", "second")), _is(True),
              writes=_second("missing")),
    Operation("add of what is there", lambda c, s: c.add(s.key("a"), b"other"), _is(False)),
    Operation("replace", lambda c, s: c.replace(s.key("a"), s.value("a", "second")), _is(True),
              writes=_second("a")),
    Operation("append", lambda c, s: c.append(s.key("a"), b"tail"), _is(True),
              writes=_becomes("a", lambda s: s.value("a") + b"tail")),
    Operation("prepend", lambda c, s: c.prepend(s.key("a"), b"head"), _is(True),
              writes=_becomes("a", lambda s: b"head" + s.value("a"))),
    Operation("cas", lambda c, s: c.cas(s.key("a"), s.value("a", "second"), s.cas), _is(True),
              writes=_second("a")),
    Operation("incr", lambda c, s: c.incr(s.key("number"), 1), _equals(lambda s: 42),
              writes=_becomes("number", lambda s: b"42")),
    Operation("decr", lambda c, s: c.decr(s.key("number"), 1), _equals(lambda s: 40),
              writes=_becomes("number", lambda s: b"40")),
    Operation("touch", lambda c, s: c.touch(s.key("a"), 1000), _is(True)),
    Operation("delete", lambda c, s: c.delete(s.key("a")), _is(True),
              writes=_becomes("a", lambda s: None)),
    Operation("delete_many", lambda c, s: c.delete_many([s.key("a"), s.key("b")]), _is(True),
              writes=lambda s: {s.key("a"): None, s.key("b"): None}),
    Operation("flush_all", lambda c, s: c.flush_all(delay=LATER), _is(True)),
    Operation("version", lambda c, s: c.version(), lambda a, s: a.startswith(b"1.")),
    Operation("stats", lambda c, s: c.stats(), lambda a, s: a[b"version"].startswith(b"1.")),
    Operation("raw_command", lambda c, s: c.raw_command(f"get {s.key('number')}", "END\r\n"),
              lambda a, s: a == f"VALUE {s.key('number')} 0 2\r\n41\r\n".encode(), opaque=True),
    Operation("quit", lambda c, s: c.quit(), _is(None), replies=False),
]  # fmt: skip


@contextlib.contextmanager
def _at_embedded() -> Iterator[Address]:
    with EmbeddedMemcached() as server:
        assert isinstance(server.address, tuple)
        yield server.address


@contextlib.contextmanager
def _at_real() -> Iterator[Address]:
    given = given_address()
    if given is not None:
        yield given
    elif binary() is None:
        pytest.skip(f"no memcached here: install it, or set {ENVIRONMENT}=HOST:PORT")
    else:
        with Memcached(("127.0.0.1", free_port())) as server:
            yield server.address


class Memcache:
    """The store of the contract; see `tests.contract.store.Store`."""

    name = "memcache"
    operations = OPERATIONS
    together = 12
    patience = LIMIT
    embedded = staticmethod(_at_embedded)
    real = staticmethod(_at_real)

    #: How plain pymemcache fares: it hangs, or it is late by these seconds, or it fails. Under
    #: corrupt any of it, after the byte that was hit.
    HANGS: ClassVar = ("blackhole", "hang", "silent", "drip", "bandwidth")
    LATE: ClassVar = {"latency": 0.02}

    def client(self, address: Address, limit: float) -> memcache.Client:
        return memcache.Client(address, timeout=limit)

    def raw(self, address: Address) -> pymemcache.Client:
        return pymemcache.Client(address, timeout=10.0, default_noreply=False)

    def scene(self, raw: pymemcache.Client, name: str) -> Scene:
        scene = Scene(name)
        raw.delete_many(scene.every_key())
        raw.set_many({**scene.pairs("a", "b"), scene.key("number"): b"41"})
        return Scene(name, cas=raw.gets(scene.key("a"))[1])

    def data(self, raw: pymemcache.Client, scene: Scene) -> Mapping[str, Any]:
        found = raw.get_many(scene.every_key())
        return {key: found.get(key) for key in scene.every_key()}

    def warm_up(self, client: Any, scene: Scene) -> None:
        assert client.get(scene.key("missing")) is None

    def follow_up(self, client: Any, scene: Scene) -> str | None:
        later, value = scene.key("later"), scene.value("later")
        if client.set(later, value) is not True:
            return "a set was not stored"
        found = client.get(later)
        if found != value:
            return f"get of what was just set gave {found!r:.200}"
        nothing = client.get(scene.key("never"))
        return None if nothing is None else f"a key that was never set has {nothing!r:.200}"

    def busy(self, client: Any, address: Address) -> int:
        endpoint = timedblock.stats()["endpoints"][f"{address[0]}:{address[1]}"]
        count: int = endpoint["in_flight"] + endpoint["pool"]["open"] - endpoint["pool"]["idle"]
        return count

    def expected(self, trouble: Trouble, warm: bool) -> Expected:
        return trouble.warm if warm else trouble.cold

    def raw_options(self) -> dict[str, Any]:
        """What the raw client needs beside the address."""
        return {}

    def raw_feels(
        self, address: Address, fault: faults.Fault, start: Callable[[], None]
    ) -> str | None:
        with RawCall(address, warm=True, calls=20, **self.raw_options()) as raw:
            start()
            raw.begin()
            bound = 10.0 if fault.name in self.LATE else LIMIT + TOLERANCE + 0.5
            return self._suffers(fault, raw.outcome(bound))

    def _suffers(self, fault: faults.Fault, outcome: RawOutcome | None) -> str | None:
        if fault.name in self.LATE:
            late = outcome is not None and outcome.elapsed >= self.LATE[fault.name]
            return None if late else f"it isn't late: {outcome}"
        if fault.name in self.HANGS:
            return None if outcome is None else f"it doesn't hang: {outcome}"
        if outcome is None:
            return None if fault.name == "corrupt" else "it hangs"
        failed = outcome.error is not None or outcome.value == "wrong"
        return None if failed else f"it gets right answers: {outcome}"
