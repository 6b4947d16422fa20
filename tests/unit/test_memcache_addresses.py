"""Addresses of memcacheds: bad ones are refused at once, good ones are read as pymemcache does."""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from pymemcache.client.base import normalize_server_spec

from timedblock import memcache, stats

_numbers = itertools.count()


def _client(server: Any) -> Any:
    return memcache.Client(server, name=f"address{next(_numbers)}")


def _pooled(server: Any) -> Any:
    return memcache.PooledClient(server, name=f"address{next(_numbers)}")


def _node(server: Any) -> Any:
    client = memcache.HashClient([server], name=f"address{next(_numbers)}")
    return next(iter(client.clients.values()))


def _added_node(server: Any) -> Any:
    client = memcache.HashClient([], name=f"address{next(_numbers)}")
    client.add_server(server)
    return next(iter(client.clients.values()))


every_class = pytest.mark.parametrize("make", [_client, _pooled, _node, _added_node])


class Port(enum.IntEnum):
    MEMCACHED = 11211


class Place(NamedTuple):
    host: str
    port: int


@every_class
@pytest.mark.parametrize(
    ("server", "kind", "named"),
    [
        (("h", 0), ValueError, "0"),
        (("h", -1), ValueError, "-1"),
        (("127.0.0.1", 99999), ValueError, "99999"),
        (("h", 65536), ValueError, "65536"),
        (("h", 10**400), ValueError, "1329 bits"),
        (("h", "0"), ValueError, "'0'"),
        (("h", "99999"), ValueError, "'99999'"),
        (("h", "9" * 5000), ValueError, "'999"),
        (("h", math.nan), TypeError, "nan"),
        (("h", 11211.0), TypeError, "11211.0"),
        (("h", True), TypeError, "True"),
        (("h", None), TypeError, "None"),
        (("h", []), TypeError, "[]"),
        (("h", "x"), ValueError, "'x'"),
        (("h", ""), ValueError, "''"),
        (("h", "²"), ValueError, "'²'"),
        (("", 11211), ValueError, "''"),
        ((None, 11211), TypeError, "None"),
        ((b"h", 11211), TypeError, "b'h'"),
        ((5, 11211), TypeError, "5"),
        (("h h", 11211), ValueError, "'h h'"),
        (("h\r\n", 11211), ValueError, r"'h\r\n'"),
        (("h\0", 11211), ValueError, r"'h\x00'"),
        (("a/b", 11211), ValueError, "'a/b'"),
        (("h:11211", 11211), ValueError, "'h:11211'"),
        (("[::1]", 11211), ValueError, "'[::1]'"),
        (("h" * 64 + ".example", 11211), ValueError, "hhh"),
        (("a..b", 11211), ValueError, "'a..b'"),
        (("h",), ValueError, "('h',)"),
        (("h", 1, 2), ValueError, "('h', 1, 2)"),
        ((), ValueError, "()"),
        ("", ValueError, "''"),
        (":11211", ValueError, "':11211'"),
        ("127.0.0.1:99999", ValueError, "'127.0.0.1:99999'"),
        ("h:0", ValueError, "'h:0'"),
        ("h:-1", ValueError, "'h:-1'"),
        ("h:", ValueError, "'h:'"),
        ("h:x", ValueError, "'h:x'"),
        ("h:" + "9" * 5000, ValueError, "'h:999"),
        ("x:y:z", ValueError, "'x:y:z'"),
        ("x:y:11211", ValueError, "'x:y:11211'"),
        ("::1", ValueError, "'::1'"),
        ("[]", ValueError, "'[]'"),
        ("[]:11211", ValueError, "'[]:11211'"),
        ("[::1", ValueError, "'[::1'"),
        ("http://h:11211", ValueError, "'http://h:11211'"),
        ("unix:", ValueError, "'unix:'"),
        (None, ValueError, "None"),
        (11211, ValueError, "11211"),
        (b"h:11211", ValueError, "b'h:11211'"),
        ({"host": 11211}, ValueError, "{'host': 11211}"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_bad_address_is_refused_when_the_client_is_made(
    make: Callable[[Any], Any], server: Any, kind: type[Exception], named: str
) -> None:
    """ValueError or TypeError names what is wrong, in a line that can be read."""
    with pytest.raises(kind) as caught:
        make(server)
    assert named in str(caught.value)
    assert len(str(caught.value)) < 400


@every_class
def test_a_port_of_thousands_of_digits_is_refused(make: Callable[[Any], Any]) -> None:
    """Also a number that Python itself refuses to write out."""
    for port in (10**5000, -(10**5000)):
        with pytest.raises(ValueError, match=r"65535, not one of \d+ bits"):
            make(("h", port))


@every_class
@pytest.mark.parametrize(
    "server",
    [
        ("localhost", 11211),
        ("127.0.0.1", 1),
        ("127.0.0.1", 65535),
        ("::1", 11211),
        ("fe80::1%lo", 11211),
        ("under_score.example.", 11211),
        ("bücher.example", 11211),
        ("h", "11211"),
        ("h", Port.MEMCACHED),
        Place("h", 11211),
        "localhost",
        "localhost:12345",
        "127.0.0.1",
        "127.0.0.1:12345",
        "[::1]",
        "[::1]:12345",
        "::1:12345",
        "localhost: 012345\n",
        "/run/memcached/socket",
        "/run/me@home/socket:1",
        "unix:/run/memcached/socket",
        "unix:run/memcached",
        "unix:\0abstract",
    ],
    ids=repr,
)
def test_a_good_address_is_what_pymemcache_makes_of_it(
    make: Callable[[Any], Any], server: Any
) -> None:
    """What pymemcache can connect to is accepted, and read as pymemcache reads it."""
    client = make(server)
    assert client.server == normalize_server_spec(server)
    if isinstance(client, memcache.PooledClient):
        assert client.client_pool.get().server == client.server


@every_class
@pytest.mark.parametrize(
    "server",
    [
        "bob:secret@127.0.0.1:11211",
        "bob:secret@127.0.0.1",
        "bob:secret@h:x",
        "secret@",
        "http://bob:secret@h",
        "bob:se@cret@h",
        ("bob:secret@h", 11211),
        ("bob:secret@h", -1),
        ("bob:secret@h", 1, 2),
        ("h", "secret@11211"),
        (b"bob:secret@h", 11211),
        ["bob:secret@h", 11211],
        {"bob:secret@h": 11211},
        b"bob:secret@h",
    ],
    ids=repr,
)
def test_user_info_is_refused_and_not_told(make: Callable[[Any], Any], server: Any) -> None:
    """memcached has no log-in in its address; a password put there is in no error and no name."""
    with pytest.raises((ValueError, TypeError)) as caught:
        make(server)
    for error in (caught.value, caught.value.__context__):
        assert "secret" not in str(error) and "bob" not in str(error)
        assert "se@cret" not in str(error)
    assert not [name for name in stats()["endpoints"] if "secret" in name]


def test_one_string_is_no_list_of_nodes() -> None:
    """A string in the place of HashClient's list is refused, not read letter by letter."""
    with pytest.raises(TypeError, match="servers") as caught:
        memcache.HashClient("bob:secret@localhost")
    assert "secret" not in str(caught.value)


def test_a_node_that_is_added_with_its_port_is_checked() -> None:
    """add_server(host, port) refuses what the constructor refuses."""
    client = memcache.HashClient([("localhost", 11211)], name=f"address{next(_numbers)}")
    with pytest.raises(ValueError, match="99999"):
        client.add_server("localhost", 99999)
    assert list(client.clients) == ["localhost:11211"]
