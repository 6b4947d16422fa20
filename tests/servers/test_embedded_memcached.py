"""The embedded memcached answers as the real one does, and lives no longer than it should."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pymemcache.test
import pytest
import trustme
from pymemcache.client.base import Client

from tests.servers.memcached import Address, Memcached
from timedblock.testing.memcached import EmbeddedMemcached, Store

SENTINEL = b"VERSION 1.6.18\r\n"
LIMIT = 5.0


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedMemcached]:
    with EmbeddedMemcached() as server:
        yield server


def _connect(address: Address | str) -> socket.socket:
    kind = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    connection = socket.socket(kind)
    connection.settimeout(LIMIT)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def ask(connection: socket.socket, command: bytes) -> bytes:
    """Everything that a server answers to ``command``, up to the answer to a `version` after it,
    or to the end of the connection."""
    connection.sendall(command + b"version\r\n")
    reply = b""
    while not reply.endswith(SENTINEL):
        try:
            piece = connection.recv(1 << 20)
        except ConnectionResetError:  # closed with our `version` unread
            piece = b""
        if not piece:
            return reply + b"<closed>"
        reply += piece
    return reply.removesuffix(SENTINEL)


# The same replies as the real server's

LONG = b"k" * 251
LONGEST = b"k" * 250
BIG = b"x" * (1 << 20)
SET_A = b"set a 5 0 1\r\na\r\n"
SET_N = b"set n 7 0 3\r\n100\r\n"

EDGES = [
    # What isn't a command
    b"\r\n", b"\n", b" \r\n", b"foo\r\n", b"GET a\r\n", b"get\r\n", b"get \r\n", b"gets\r\n",
    b"set\ta 0 0 1\r\na\r\n", b"get\0a\r\n", b"quit\r\n", b"quit x\r\n",
    # Keys
    SET_A + b"get  a   a b\r\n", SET_A + b"get a\0b\r\n", b"get a\rb\r\n", b"get \xe3\x81\x93\r\n",
    b"get " + LONG + b"\r\n", b"get a " + LONG + b"\r\n", b"set " + LONG + b" 0 0 1\r\na\r\n",
    b"set " + LONGEST + b" 0 0 1\r\na\r\nget " + LONGEST + b"\r\n", b"incr " + LONG + b" 1\r\n",
    b"delete " + LONG + b"\r\n", b"touch " + LONG + b" 1\r\n",
    SET_A + b"get " + b"a " * 3000 + b"\r\n",
    # set
    b"set\r\n", b"set a 0 0\r\n", b"set a 0 0 x\r\n", b"set a x 0 1\r\na\r\n",
    b"set a 0 x 1\r\na\r\n",
    b"set a 0 0 -1\r\n", b"set a 0 0 1 foo\r\na\r\n", b"set a 0 0 1 noreply foo\r\na\r\n",
    b"set a 4294967295 0 1\r\na\r\nget a\r\n", b"set a 4294967296 0 1\r\na\r\nget a\r\n",
    b"set a -1 0 1\r\na\r\n", b"set a 0 0 2147483647\r\n", b"set a 0 0 2\nab\r\nget a\n",
    b"set a 0 0 1 noreply\r\na\r\nget a\r\n", b"set a x 0 1 noreply\r\na\r\n",
    # Data blocks
    SET_A + b"set a 0 0 2\r\nabcd\r\nget a\r\n", SET_A + b"set a 0 0 5\r\nab\r\nget a\r\n",
    b"set a 0 0 2 noreply\r\nabcd\r\n", b"set a 0 0 0\r\n\r\nget a\r\n",
    SET_A + b"set a 0 0 1048576\r\n" + BIG + b"\r\nget a\r\n",
    SET_A + b"set a 0 0 1048576 noreply\r\n" + BIG + b"\r\nget a\r\n",
    SET_A + b"add a 0 0 1048576\r\n" + BIG + b"\r\nget a\r\n",
    SET_A + b"append a 0 0 1048576\r\n" + BIG + b"\r\nget a\r\n",
    b"set big 0 0 1048514\r\n" + BIG[:1048514] + b"\r\n",
    b"set big 0 0 1048515\r\n" + BIG[:1048515] + b"\r\n",
    b"set big 1 0 1048510\r\n" + BIG[:1048510] + b"\r\n",
    b"set big 1 0 1048511\r\n" + BIG[:1048511] + b"\r\n",
    SET_A + b"append a 0 0 1048000\r\n" + BIG[:1048000] + b"\r\nappend a 0 0 999\r\n" + BIG[:999]
    + b"\r\n",
    # The other storage commands
    SET_A + b"add a 0 0 1\r\nb\r\nget a\r\n", b"replace none 0 0 1\r\na\r\n",
    SET_A + b"append a 6 0 1\r\nb\r\nprepend a 0 0 1\r\nc\r\nget a\r\n",
    b"append none 0 0 1\r\na\r\n", SET_A + b"cas a 0 0 1 1\r\nb\r\n", b"cas none 0 0 1 1\r\nb\r\n",
    b"cas a 0 0 1\r\n", b"cas a 0 0 1 x\r\nb\r\n", b"cas a 0 0 1 1 foo\r\nb\r\n",
    # Numbers
    b"incr n\r\n", b"incr none 1\r\n", b"incr none x\r\n", SET_N + b"incr n -1\r\n",
    SET_N + b"incr n +1\r\n", SET_N + b"incr n 18446744073709551616\r\n",
    SET_N + b"incr n 18446744073709551615\r\nget n\r\n", SET_N + b"incr n x noreply\r\n",
    SET_N + b"incr n 1 noreply\r\nget n\r\n", b"incr n 1 noreply x\r\n", SET_N + b"incr n 1 2\r\n",
    SET_N + b"decr n 1\r\nget n\r\ndecr n 95\r\nget n\r\nincr n 996\r\nget n\r\ndecr n 2000\r\n",
    b"set n 0 0 20\r\n18446744073709551615\r\nincr n 2\r\nget n\r\n",
    b"set n 0 0 21\r\n184467440737095516150\r\nincr n 2\r\n", b"set n 0 0 0\r\n\r\nincr n 1\r\n",
    b"set n 0 0 3\r\n 12\r\nincr n 1\r\n", b"set n 0 0 3\r\n12 \r\nincr n 1\r\nget n\r\n",
    b"set n 0 0 3\r\n-12\r\nincr n 1\r\n", b"set n 0 0 3\r\n12a\r\nincr n 1\r\n",
    # Expiry
    b"set a 0 -1 1\r\na\r\nget a\r\n", b"set a 0 2592000 1\r\na\r\nget a\r\n",
    b"set a 0 2592001 1\r\na\r\nget a\r\n", b"set a 0 99999999999 1\r\na\r\nget a\r\n",
    SET_A + b"touch a 10\r\nget a\r\ntouch a -1\r\nget a\r\n", b"touch a\r\n", b"touch a x\r\n",
    b"touch none 10\r\n", b"touch a 0 noreply x\r\n",
    SET_A + b"gat 9 a b a\r\ngat -1 a\r\nget a\r\n",
    b"gat\r\n", b"gat 0\r\n", b"gat x a\r\n", b"gats 0 none\r\n",
    # delete, flush_all
    b"delete\r\n", b"delete none\r\n", SET_A + b"delete a\r\nget a\r\n", SET_A + b"delete a 0\r\n",
    b"delete a 1\r\n", b"delete a 0 noreply\r\n", b"delete a 0 1\r\n", b"delete a 1 2 3\r\n",
    SET_A + b"delete a noreply\r\nget a\r\n",
    SET_A + b"flush_all\r\nget a\r\n" + SET_A + b"get a\r\n",
    b"flush_all x\r\n", b"flush_all noreply\r\n", b"flush_all 0 noreply\r\n", b"flush_all 1 2\r\n",
    SET_A + b"flush_all -1\r\nget a\r\n", SET_A + b"flush_all 100\r\nget a\r\n",
    b"flush_all 0 x y\r\n",
    # Administration
    b"version x\r\n", b"verbosity\r\n", b"verbosity 0\r\n", b"verbosity x\r\n",
    b"verbosity 0 noreply\r\n", b"verbosity 0 1 2 3\r\n", b"verbosity noreply\r\n",
    b"cache_memlimit\r\n", b"cache_memlimit x\r\n", b"cache_memlimit 1\r\n",
    b"cache_memlimit 16\r\n",
    b"cache_memlimit 16 noreply\r\n", b"shutdown\r\n", b"shutdown graceful\r\n",
    b"stats reset\r\n", b"stats foo\r\n", b"stats sizes\r\n", b"stats cachedump\r\n",
    b"stats cachedump 1\r\n", b"stats cachedump x 1\r\n", b"stats cachedump 5 1\r\n",
]  # fmt: skip


@pytest.mark.server
def test_edges_are_answered_as_the_real_server_does(
    embedded: EmbeddedMemcached, own_memcached: Memcached
) -> None:
    """Whatever is malformed, too long, too large or out of range gets the very same bytes."""
    different = []
    for command in EDGES:
        replies = []
        for address in (own_memcached.address, embedded.address):
            with _connect(address) as connection:
                replies.append(ask(connection, command))
        if replies[0] != replies[1]:
            different.append((command[:60], replies[0][:200], replies[1][:200]))
    assert not different


@pytest.mark.server
def test_a_line_without_an_end_closes_the_connection(
    embedded: EmbeddedMemcached, own_memcached: Memcached
) -> None:
    """5,000 bytes without a line's end are no command: both servers close the connection."""
    for address in (own_memcached.address, embedded.address):
        with _connect(address) as connection:
            connection.sendall(b"x" * 5000)
            with contextlib.suppress(ConnectionResetError):  # closed with some of it unread
                assert connection.recv(10) == b""


KEYS = [b"a", b"b", b"count", b"long" * 50]
# None of only spaces and line ends: `incr` on such a value makes the real server read past its
# end, into whatever was stored there before.
VALUES = [b"", b"x", b"7", b"99", b"18446744073709551615", b"\r\n.", b"END\r\n", b"y" * 5000]
EXPTIMES = [b"0", b"1000", b"-1", b"2592000", b"1000000000"]


def _storage(draw: random.Random) -> bytes:
    name = draw.choice([b"set", b"set", b"add", b"replace", b"append", b"prepend", b"cas"])
    value = draw.choice(VALUES)
    tokens = [name, draw.choice(KEYS), b"%d" % draw.choice([0, 1, 65535]), draw.choice(EXPTIMES)]
    tokens.append(b"%d" % len(value))
    if name == b"cas":
        tokens.append(draw.choice([b"<cas>", b"<cas>", b"1"]))
    return _line(draw, tokens) + value + draw.choice([b"\r\n"] * 9 + [b"!\r\n"])


def _line(draw: random.Random, tokens: list[bytes]) -> bytes:
    if draw.random() < 0.1:
        tokens.append(b"noreply")
    return b" ".join(tokens) + b"\r\n"


def _retrieval(draw: random.Random) -> bytes:
    name = draw.choice([b"get", b"gets", b"gat", b"gats"])
    keys = draw.choices(KEYS, k=draw.randint(1, 5))
    return b" ".join([name, *([draw.choice(EXPTIMES)] if b"gat" in name else []), *keys]) + b"\r\n"


def _other(draw: random.Random) -> bytes:
    key = draw.choice(KEYS)
    tokens = draw.choice(
        [
            [b"incr", key, draw.choice([b"1", b"18446744073709551615", b"x"])],
            [b"decr", key, draw.choice([b"1", b"3", b"99999"])],
            [b"delete", key],
            [b"touch", key, draw.choice(EXPTIMES)],
            [b"flush_all"],
            [b"verbosity", b"0"],
            [b"nonsense", key],
        ]
    )
    return _line(draw, tokens)


def _commands(seed: int, count: int) -> Iterator[bytes]:
    """Commands, now and then several in one write.

    A `get` and an `incr` of one key never go together: what the real server then stores (padded
    or not) depends on whether the reply to the first was sent already."""
    draw = random.Random(seed)
    for _ in range(count):
        together = draw.choice([1, 1, 1, 5])
        second = draw.choice([_retrieval, _other])
        kinds = [draw.choice([_storage, second]) for _ in range(together)]
        yield b"".join(kind(draw) for kind in kinds)


def _with_cas(connection: socket.socket, command: bytes) -> bytes:
    """Each `<cas>` as this server's own current unique number of the key."""
    for key in re.findall(rb"cas (\S+) \S+ \S+ \S+ <cas>", command):
        reply = ask(connection, b"gets " + key + b"\r\n")
        unique = reply.split(b"\r\n")[0].split(b" ")[-1] if reply.startswith(b"VALUE") else b"1"
        command = command.replace(b"<cas>", unique, 1)
    return command


def _without_uniques(reply: bytes) -> bytes:
    return re.sub(rb"(VALUE \S+ \d+ \d+) \d+\r\n", rb"\1 <cas>\r\n", reply)


@pytest.mark.server
@pytest.mark.parametrize("seed", range(5))
def test_a_random_conversation_goes_as_with_the_real_server(
    embedded: EmbeddedMemcached, own_memcached: Memcached, seed: int
) -> None:
    """600 random commands, pipelined now and then, get byte-identical replies (but for the
    unique numbers of cas, which each server counts for itself)."""
    connections = [_connect(own_memcached.address), _connect(embedded.address)]
    seen = set()
    try:
        assert {ask(connection, b"flush_all\r\n") for connection in connections} == {b"OK\r\n"}
        for number, command in enumerate(_commands(seed, 600)):
            real, ours = (ask(one, _with_cas(one, command)) for one in connections)
            assert _without_uniques(ours) == _without_uniques(real), (number, command)
            seen.add(real)
    finally:
        for connection in connections:
            connection.close()
    # The conversation said something: hits, misses, refusals.
    for reply in (b"STORED\r\n", b"NOT_STORED\r\n", b"EXISTS\r\n", b"END\r\n", b"DELETED\r\n"):
        assert any(reply in one for one in seen), reply


def test_pymemcaches_own_integration_tests_pass(embedded: EmbeddedMemcached) -> None:
    """The suite that pymemcache runs against memcached passes against the embedded server."""
    suite = Path(pymemcache.test.__file__).parent / "test_integration.py"
    assert isinstance(embedded.address, tuple)
    host, port = embedded.address
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(suite), "-q", "-p", "no:cacheprovider",
         "-o", "addopts=", "-c", os.devnull, "--server", host, "--port", str(port)],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None and int(passed[1]) >= 100


def test_bytes_in_any_pieces_are_the_same_commands(embedded: EmbeddedMemcached) -> None:
    """A request that arrives byte by byte is answered like one that arrives whole."""
    command = b"set p 1 0 4\r\n\r\n\r\n\r\nget p\r\nadd p 0 0 1\r\nq\r\n"
    with _connect(embedded.address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(len(command)):
            connection.send(command[position : position + 1])
            time.sleep(0.0005)
        assert ask(connection, b"") == b"STORED\r\nVALUE p 1 4\r\n\r\n\r\n\r\nEND\r\nNOT_STORED\r\n"


# Time and memory


def test_items_expire_and_flushes_wait_by_the_clock() -> None:
    """exptime and the delay of flush_all are counted in ticks of the store's clock."""
    now = 1000.5
    store = Store(1 << 20, clock=lambda: now, wall=lambda: 1_700_000_000.0)
    store.tick()
    for key, exptime in ((b"never", 0), (b"relative", 10), (b"absolute", 1_700_000_020)):
        store.put(key, b"v", 0, store.expiry(exptime))
    now += 9
    store.tick()
    assert all(store.get(key) for key in (b"never", b"relative", b"absolute"))
    now += 1
    store.tick()
    assert store.get(b"relative") is None and store.get(b"absolute") is not None
    now += 11
    store.tick()
    assert store.get(b"absolute") is None
    store.flush(5)
    now += 3
    store.tick()
    assert store.get(b"never") is not None
    now += 2
    store.tick()
    assert store.get(b"never") is None
    store.put(b"later", b"v", 0, 0)
    now += 100
    store.tick()
    assert store.get(b"later") is not None


def test_the_oldest_items_give_way_when_memory_is_full() -> None:
    """The store holds what its memory allows, the newest items, and counts them right."""
    store = Store(100_000)
    for number in range(200):
        store.put(b"k%d" % number, b"x" * 1000, 0, 0)
    assert 80 <= len(store) < 100
    assert store.bytes_used <= 100_000
    assert store.get(b"k0") is None and store.get(b"k199") is not None
    for key, _ in list(store):
        store.remove(key)
    assert store.bytes_used == 0


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.wall
def test_a_request_costs_the_server_less_than_50_microseconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20,000 requests a second fit in one core. Measured as the server's own CPU time, which a
    busy machine doesn't change much, with 16 connections each sending one request at a time."""
    for name in [name for name in os.environ if name.startswith("COVERAGE_PROCESS")]:
        monkeypatch.delenv(name)  # coverage's tracing costs more than the server does
    with EmbeddedMemcached() as embedded:
        connections = [_connect(embedded.address) for _ in range(16)]
        ask(connections[0], b"set k 0 0 100\r\n" + b"v" * 100 + b"\r\n")
        cost = _cpu_seconds_a_request(embedded.pid, connections, 1250)
        for connection in connections:
            connection.close()
    assert cost < 50e-6


def _cpu_seconds_a_request(pid: int, connections: list[socket.socket], rounds: int) -> float:
    before = _cpu_seconds(pid)
    for _ in range(rounds):
        for connection in connections:
            connection.send(b"get k\r\n")
        for connection in connections:
            assert connection.recv(4096).endswith(b"END\r\n")
    return (_cpu_seconds(pid) - before) / (rounds * len(connections))


def _resident_megabytes(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def test_a_client_that_does_not_read_costs_no_memory(embedded: EmbeddedMemcached) -> None:
    """300 MB of replies that nobody reads aren't kept: the server stops reading the client."""
    with _connect(embedded.address) as connection:
        ask(connection, b"set m 0 0 1000000\r\n" + b"v" * 1_000_000 + b"\r\n")
        before = _resident_megabytes(embedded.pid)
        for _ in range(300):
            connection.send(b"get m\r\n")
            time.sleep(0.001)
        time.sleep(0.2)
        assert _resident_megabytes(embedded.pid) - before < 50


# Where it listens, and how long


def test_it_listens_on_a_unix_socket(tmp_path: Path) -> None:
    """With a path it serves a UNIX socket, and takes the file away at its end."""
    path = tmp_path / "memcached.sock"
    with EmbeddedMemcached(unix=path) as server:
        assert server.address == str(path)
        client = Client(server.address)
        assert client.set("k", "v", noreply=False) and client.get("k") == b"v"
        client.close()
    assert not path.exists()


def test_it_listens_on_ipv6() -> None:
    """An IPv6 address is served as it is given."""
    with EmbeddedMemcached("::1") as server:
        client = Client(server.address)
        assert client.set("k", "v", noreply=False) and client.get("k") == b"v"
        client.close()


def test_it_speaks_tls(tmp_path: Path) -> None:
    """With a certificate it serves TLS, large values included, and nothing else."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    certificate.private_key_pem.write_to_path(key)
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with EmbeddedMemcached("localhost", tls_cert=chain, tls_key=key) as server:
        client = Client(server.address, tls_context=context)
        assert client.set("k", "v" * 900_000, noreply=False) and len(client.get("k")) == 900_000
        client.close()
        plain = Client(server.address, timeout=LIMIT)
        with pytest.raises(Exception, match=r".*"):
            plain.get("k")
        plain.close()


def test_it_comes_back_empty_on_its_port_after_a_crash() -> None:
    """`kill` and `start` are a crash and a restart: same address, another process, no data."""
    with EmbeddedMemcached() as server:
        address, pid = server.address, server.pid
        with _connect(address) as connection:
            assert ask(connection, SET_A) == b"STORED\r\n"
            server.kill()
            assert connection.recv(10) == b""
        with pytest.raises(ConnectionRefusedError):
            _connect(address)
        server.start()
        assert server.address == address and server.pid != pid
        with _connect(address) as connection:
            assert ask(connection, b"get a\r\n") == b"END\r\n"


def test_shutdown_ends_it_only_if_allowed(embedded: EmbeddedMemcached) -> None:
    """`shutdown` is refused by default, and ends the process where it is enabled."""
    with _connect(embedded.address) as connection:
        assert ask(connection, b"shutdown\r\n") == b"ERROR: shutdown not enabled\r\n"
    with EmbeddedMemcached(enable_shutdown=True) as server:
        with _connect(server.address) as connection:
            connection.sendall(b"shutdown\r\n")
            assert connection.recv(10) == b""
        with pytest.raises(ConnectionRefusedError):
            _connect(server.address)


def test_stop_ends_a_paused_server() -> None:
    """A server that a test left stopped by a signal is ended all the same."""
    server = EmbeddedMemcached().start()
    os.kill(server.pid, signal.SIGSTOP)
    pid = server.pid
    server.stop()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.pid


def test_a_start_that_takes_too_long_is_an_error_and_leaves_nothing(no_leaks: None) -> None:
    """Who doesn't say within its limit where it listens is ended; once running, it isn't again."""
    server = EmbeddedMemcached()
    server.START_LIMIT = 0.0
    with pytest.raises(RuntimeError, match="did not start"):
        server.start()
    del server.START_LIMIT
    with server, pytest.raises(RuntimeError, match="already running"):
        server.start()


def test_starting_it_needs_no_server_in_the_process_that_starts_it() -> None:
    """The event loop, TLS and the argument parser are loaded where the server runs."""
    code = (
        "import sys; from timedblock.testing.memcached import EmbeddedMemcached as E\n"
        "with E(): print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "timedblock.testing.memcached.embedded" in loaded
    assert not {"asyncio", "argparse", "ssl"} & set(loaded)


def test_it_is_started_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    """`python -m` has nothing to say of a package that is imported already."""
    with EmbeddedMemcached():
        pass
    assert capfd.readouterr().err == ""


def test_a_port_in_use_is_an_error_that_names_it(
    embedded: EmbeddedMemcached, capfd: pytest.CaptureFixture[str]
) -> None:
    """Starting where somebody listens fails at once and names the address."""
    assert isinstance(embedded.address, tuple)
    host, port = embedded.address
    with pytest.raises(RuntimeError, match=str(port)):
        EmbeddedMemcached(host, port).start()
    assert "address already in use" in capfd.readouterr().err


@pytest.mark.wall
def test_it_dies_with_the_process_that_started_it() -> None:
    """When its parent is killed outright, the server is gone within a second."""
    code = (
        "import time; from timedblock.testing.memcached import EmbeddedMemcached as E\n"
        "print(E().start().pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 1.0 + 0.25
    while _alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # nobody may be there to collect an orphan


def test_several_servers_live_side_by_side() -> None:
    """Each server has its own process, port and data, whichever thread starts it."""
    servers = [EmbeddedMemcached() for _ in range(3)]
    threads = [threading.Thread(target=server.start) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len({server.address for server in servers}) == 3
        with _connect(servers[0].address) as connection:
            ask(connection, SET_A)
        with _connect(servers[1].address) as connection:
            assert ask(connection, b"get a\r\n") == b"END\r\n"
    finally:
        for server in servers:
            server.stop()
