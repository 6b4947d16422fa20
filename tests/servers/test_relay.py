"""The relay: what a raw client sees under each fault, and that it ends when the fault does."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheUnexpectedCloseError

from timedblock import faults
from timedblock.faults.flips import flip_framing, flip_payload
from timedblock.faults.proxy import Link, Relay
from timedblock.faults.vocabulary import faults_of
from timedblock.testing.memcached import EmbeddedMemcached

PATIENCE = 5.0  # longer than anything here should take
WAIT = 0.3  # how long "nothing comes" is watched
SLACK = 0.25
VALUE = b"v" * 40
GET = b"get key\r\n"
REPLY = b"VALUE key 0 40\r\n" + VALUE + b"\r\nEND\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedMemcached]:
    with EmbeddedMemcached() as one, _open(one.address) as connection:
        connection.sendall(b"set key 0 0 40\r\n" + VALUE + b"\r\n")
        assert connection.recv(100) == b"STORED\r\n"
        yield one


@pytest.fixture(scope="module")
def relay(server: EmbeddedMemcached) -> Iterator[Relay]:
    with Relay(server.address) as one:
        yield one


@pytest.fixture
def link(relay: Relay) -> Iterator[Link]:
    one = relay.listen()
    yield one
    one.close()


def _open(address: Any, timeout: float = PATIENCE) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    try:
        connection.settimeout(timeout)
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


@pytest.fixture
def connection(link: Link) -> Iterator[socket.socket]:
    """An open connection that has already been used."""
    with _open(link.address) as one:
        assert _get(one) == REPLY
        yield one


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            break
        data += piece
    return data


def _get(connection: socket.socket) -> bytes:
    connection.sendall(GET)
    return _receive(connection, len(REPLY))


def _nothing_comes(connection: socket.socket) -> bool:
    ready, _, _ = select.select([connection], [], [], WAIT)
    return not ready


def _passes(link: Link) -> bool:
    """A new connection works."""
    with _open(link.address) as connection:
        return _get(connection) == REPLY


# Without a fault


def test_without_a_fault_it_relays_faithfully(link: Link) -> None:
    """10 MB in random pieces arrive whole and in order, both ways."""
    draw = random.Random(1)
    value = draw.randbytes(1_000_000)
    with _open(link.address) as connection:
        for _ in range(10):
            connection.sendall(b"set big 0 0 1000000\r\n" + value + b"\r\n")
            assert _receive(connection, 8) == b"STORED\r\n"
        connection.sendall(b"get big\r\n" * 10)
        for _ in range(10):
            reply = _receive(connection, 1_000_000 + 28)
            assert reply == b"VALUE big 0 1000000\r\n" + value + b"\r\nEND\r\n"


def test_the_end_of_a_stream_is_passed_on(link: Link) -> None:
    """A client that half-closes still gets its replies, then the server's end of stream."""
    with _open(link.address) as connection:
        connection.sendall(GET * 3)
        connection.shutdown(socket.SHUT_WR)
        assert _receive(connection, 10_000) == REPLY * 3
    _until(lambda: link.describe()["connections"] == 0)


def _until(condition: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_relay_has_no_delay_of_its_own(connection: socket.socket) -> None:
    """A request with its header and its data in two writes isn't held back by Nagle's algorithm
    on either side, which would cost 40 ms each."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    begun = time.monotonic()
    for _ in range(20):
        connection.sendall(b"set two 0 0 4\r\n")
        connection.sendall(b"data\r\n")
        assert _receive(connection, 8) == b"STORED\r\n"
    assert time.monotonic() - begun < 0.4


def test_a_server_that_is_gone_resets_the_client(relay: Relay) -> None:
    """With nobody at the upstream, a client is accepted and reset."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        link = relay.listen(upstream=free.getsockname())
    # The reset may arrive before connect() has returned, or after.
    with pytest.raises(ConnectionResetError), _open(link.address) as connection:
        connection.recv(1)
    assert link.describe()["accepted"] == 1
    link.close()


def test_links_have_faults_of_their_own(relay: Relay, link: Link) -> None:
    """One relay serves many links; a fault on one isn't seen on another."""
    other = relay.listen()
    other.inject(faults.Refuse())
    assert _passes(link)
    with pytest.raises(ConnectionRefusedError):
        _open(other.address)
    assert link.describe()["fault"] is None
    assert other.describe()["fault"]["fault"] == "refuse"
    other.close()


# One fault each


def test_refuse(link: Link, connection: socket.socket) -> None:
    """refuse: open connections are reset, connects are refused; afterwards the same port works."""
    link.inject(faults.Refuse())
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            _open(link.address)
    client = Client(link.address)
    with pytest.raises(ConnectionRefusedError):
        client.get("key")
    link.clear()
    assert client.get("key") == VALUE
    client.close()


def test_nobody_else_gets_the_port_while_it_refuses(link: Link) -> None:
    """The port of a link that refuses stays the link's."""
    link.inject(faults.Refuse())
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(link.address)
    link.clear()
    assert _passes(link)


def test_blackhole_for_new_connections(link: Link) -> None:
    """blackhole: connects time out, every one of them; afterwards they work."""
    link.inject(faults.Blackhole())
    begun = time.monotonic()
    waiting = []
    for _ in range(5):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(link.address)
        waiting.append(one)
    with pytest.raises(TimeoutError):
        _open(link.address, timeout=WAIT)
    # The kernel sends the first SYN again after a second: that one is dropped as well.
    assert select.select([], waiting, [], 1.5)[1] == []
    assert time.monotonic() - begun > 1.5
    for one in waiting:
        one.close()
    link.clear()
    assert _passes(link)


def test_blackhole_for_open_connections(link: Link, connection: socket.socket) -> None:
    """blackhole: bytes vanish both ways, and the connection that lost some is reset at the end
    instead of going on with a hole in its stream."""
    with _open(link.address) as idle:
        assert _get(idle) == REPLY
        link.inject(faults.Blackhole())
        connection.sendall(GET)
        assert _nothing_comes(connection)
        link.clear()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        assert _get(idle) == REPLY


@pytest.mark.parametrize("direction", ["both", "up", "down"])
def test_hang(link: Link, connection: socket.socket, direction: str) -> None:
    """hang: open and new connections stay, nothing comes, and all of it comes in order later."""
    link.inject(faults.Hang(direction))
    with _open(link.address) as new:
        for one in (connection, new):
            one.sendall(b"incr none 1\r\n" + GET + b"version\r\n")
            assert _nothing_comes(one)
        link.clear()
        for one in (connection, new):
            expected = b"NOT_FOUND\r\n" + REPLY + b"VERSION 1.6.18\r\n"
            assert _receive(one, len(expected)) == expected
            assert _get(one) == REPLY


def test_hang_has_a_direction(link: Link, server: EmbeddedMemcached) -> None:
    """hang:down lets requests through to the server, hang:up does not."""
    for direction, reaches in (("down", True), ("up", False)):
        link.inject(faults.Hang(direction))
        with _open(link.address) as connection, _open(server.address) as direct:
            connection.sendall(b"set %s 0 0 1\r\nx\r\n" % direction.encode())
            time.sleep(WAIT)
            direct.sendall(b"get %s\r\n" % direction.encode())
            assert direct.recv(100).startswith(b"VALUE") is reaches


def test_hang_blocks_a_big_upload(link: Link) -> None:
    """hang: a client that sends a lot is blocked, because nobody takes its bytes."""
    link.inject(faults.Hang())
    with _open(link.address, timeout=WAIT) as connection, pytest.raises(TimeoutError):
        connection.sendall(b"x" * (32 << 20))


def test_silent(link: Link, connection: socket.socket) -> None:
    """silent: connects succeed and requests are taken, nothing is answered before the end."""
    before = link.describe()["accepted"]
    link.inject(faults.Silent())
    with _open(link.address) as new:
        for one in (connection, new):
            one.sendall(GET)
            assert _nothing_comes(one)
        assert link.describe()["accepted"] == before
        link.clear()
        for one in (connection, new):
            assert _receive(one, len(REPLY)) == REPLY


def test_latency(link: Link, connection: socket.socket) -> None:
    """latency: each reply takes that much longer, on open and new connections, until the end."""
    link.inject(faults.Latency(0.2))
    with _open(link.address) as new:
        for one in (connection, new, new):
            begun = time.monotonic()
            assert _get(one) == REPLY
            assert 0.2 <= time.monotonic() - begun < 0.2 + SLACK
    link.clear()
    begun = time.monotonic()
    assert _get(connection) == REPLY
    assert time.monotonic() - begun < 0.2


def test_latency_keeps_the_order(link: Link, connection: socket.socket) -> None:
    """latency: however much it varies, replies come in the order of their requests."""
    link.inject(faults.Latency(0.1, jitter=0.1, seed=3))
    count = 50
    for number in range(count):
        connection.sendall(b"incr none%d 1\r\nget key\r\n" % number)
        time.sleep(0.002)
    expected = (b"NOT_FOUND\r\n" + REPLY) * count
    assert _receive(connection, len(expected)) == expected


def test_what_latency_held_back_is_delivered_at_its_end(
    link: Link, connection: socket.socket
) -> None:
    """latency: clearing it delivers at once what was on its way, end of stream included."""
    link.inject(faults.Latency(30.0))
    connection.sendall(GET + b"quit\r\n")
    assert _nothing_comes(connection)
    link.clear()
    assert _receive(connection, 1000) == REPLY


def test_drip(link: Link, connection: socket.socket) -> None:
    """drip: a reply comes in pieces of that size, each that much later than the one before."""
    link.inject(faults.Drip(size=5, every=0.1))
    connection.sendall(GET)
    pieces, times = [], []
    for _ in range(4):
        pieces.append(connection.recv(1000))
        times.append(time.monotonic())
    assert [len(piece) for piece in pieces] == [5, 5, 5, 5]
    assert 0.3 - 0.05 <= times[-1] - times[0] < 0.3 + SLACK
    link.clear()
    rest = len(REPLY) - 20
    begun = time.monotonic()
    assert b"".join(pieces) + _receive(connection, rest) == REPLY
    assert time.monotonic() - begun < SLACK
    assert _get(connection) == REPLY


def test_drip_defeats_a_timeout_for_each_recv(link: Link) -> None:
    """drip: a raw client with a timeout of 0.1 s waits 1 s for its answer, and gets it."""
    client = Client(link.address, timeout=0.1)
    client.get("key")
    link.inject(faults.Drip(size=3, every=0.05))
    begun = time.monotonic()
    assert client.get("key") == VALUE
    assert time.monotonic() - begun > 0.9
    client.close()


def test_reset_at_a_request(link: Link, connection: socket.socket) -> None:
    """reset: the first bytes of a request reset the connection, an open one and a new one."""
    link.inject(faults.Reset())
    with _open(link.address) as new:
        for one in (connection, new):
            one.sendall(GET)
            with pytest.raises(ConnectionResetError):
                one.recv(1)
    link.clear()
    assert _passes(link)


def test_reset_in_a_reply(link: Link, connection: socket.socket) -> None:
    """reset:N: N bytes of the reply come, then the reset."""
    link.inject(faults.Reset(after=20))
    connection.sendall(GET)
    assert _receive(connection, 20) == REPLY[:20]
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    link.clear()
    assert _passes(link)


@pytest.mark.parametrize("after", [0, 10, 30])
def test_cut(link: Link, connection: socket.socket, after: int) -> None:
    """cut:N: N bytes of the reply come, then an orderly end of the stream."""
    link.inject(faults.Cut(after))
    connection.sendall(GET)
    assert _receive(connection, 1000) == REPLY[:after]
    client = Client(link.address)
    with pytest.raises(MemcacheUnexpectedCloseError):
        client.get("key")
    link.clear()
    assert client.get("key") == VALUE
    client.close()


def test_cut_counts_over_all_replies_of_a_connection(link: Link, connection: socket.socket) -> None:
    """cut:N: N is counted from the fault's beginning, over several replies."""
    link.inject(faults.Cut(after=len(REPLY) + 7))
    assert _get(connection) == REPLY
    assert _get(connection) == REPLY[:7]


def test_corrupt_flips_the_framing(link: Link, connection: socket.socket) -> None:
    """corrupt: one byte of each reply's first line differs, never the value's; a raw client
    fails or gets something wrong."""
    link.inject(faults.Corrupt(seed=1))
    first_line = REPLY.index(b"\n") + 1
    for _ in range(20):
        reply = _get(connection)
        changed = [
            at for at, (one, other) in enumerate(zip(reply, REPLY, strict=True)) if one != other
        ]
        assert len(changed) == 1 and changed[0] < first_line
    client = Client(link.address, timeout=WAIT)
    try:
        value = client.get("key")
    except Exception as error:
        value = error
    assert value != VALUE
    client.close()
    link.clear()
    assert _get(connection) == REPLY


def test_corrupt_flips_the_payload_on_request(link: Link, connection: socket.socket) -> None:
    """corrupt:payload=true: the framing is whole and one byte of the value differs."""
    link.inject(faults.Corrupt(payload=True))
    for _ in range(10):
        reply = _get(connection)
        assert reply[:16] == REPLY[:16] and reply[-7:] == REPLY[-7:]
        assert sum(one != other for one, other in zip(reply, REPLY, strict=True)) == 1


def test_corrupt_hits_its_share_of_replies_and_repeats(link: Link) -> None:
    """corrupt: about the given share of replies, the same ones with the same seed."""
    seen = []
    for _ in range(2):
        link.inject(faults.Corrupt(rate=0.3, seed=9))
        with _open(link.address) as connection:
            seen.append([_get(connection) for _ in range(100)])
    assert seen[0] == seen[1]
    assert 15 <= sum(reply != REPLY for reply in seen[0]) <= 45


@pytest.mark.parametrize(
    "reply",
    [REPLY, b"STORED\r\n", b"END\r\n", b"7\r\n", b"18446744073709551615\r\n", b"VERSION 1.6.18\r\n",
     b"VALUE a 1 3 77\r\nabc\r\nEND\r\n", b"CLIENT_ERROR bad data chunk\r\n", b"par"],
)  # fmt: skip
def test_a_flip_in_the_framing_can_be_seen(reply: bytes) -> None:
    """Whatever is flipped, the first line is no longer the same valid reply: a word that isn't
    the protocol's, no end of the line, or a length that its value hasn't got. Numbers that are
    an answer never turn into other numbers; keys, flags and cas numbers stay."""
    draw = random.Random(2)
    line = reply[: reply.find(b"\n") + 1 or len(reply)]
    for _ in range(300):
        flipped = flip_framing(reply, draw)
        assert len(flipped) == len(reply) and flipped[len(line) :] == reply[len(line) :]
        new = flipped[: len(line)]
        assert new != line
        assert not new.strip().isdigit()
        if new.startswith(b"VALUE ") and new.endswith(b"\n"):
            old_words, new_words = line.split(), new.split()
            assert new_words[1:3] == old_words[1:3] and new_words[4:] == old_words[4:]
            assert new_words[3] != old_words[3]


@pytest.mark.parametrize("reply", [b"END\r\n", b"STORED\r\n", b"VALUE a 0 0\r\n\r\nEND\r\n", b"VA"])
def test_a_reply_without_data_has_no_payload_to_flip(reply: bytes) -> None:
    """Payload corruption leaves replies alone that carry none."""
    assert flip_payload(reply, random.Random(1)) == reply


def test_error_rate(link: Link) -> None:
    """error-rate: about that share of requests is reset, the same ones with the same seed."""
    outcomes: list[list[bool]] = []
    for _ in range(2):
        link.inject(faults.ErrorRate(0.4, seed=5))
        outcomes.append([])
        connection = _open(link.address)
        for _ in range(100):
            try:
                outcomes[-1].append(_get(connection) == REPLY)
            except ConnectionResetError:
                outcomes[-1].append(False)
                connection.close()
                connection = _open(link.address)
        connection.close()
    assert outcomes[0] == outcomes[1]
    assert 25 <= outcomes[0].count(False) <= 55
    link.clear()
    with _open(link.address) as connection:
        assert all(_get(connection) == REPLY for _ in range(50))


@pytest.mark.parametrize("fault", [faults.DnsFail(), faults.DnsHang()])
def test_dns_faults_are_not_the_relays(link: Link, fault: faults.Fault) -> None:
    """A fault of name resolution is refused with the reason, and nothing changes."""
    with pytest.raises(ValueError, match=f"proxy can't make '{fault.name}'"):
        link.inject(fault)
    assert _passes(link)


# Control

ON_THE_WIRE = [faults.FAULTS[name] for name in faults_of("proxy")]


@pytest.mark.parametrize("kind", ON_THE_WIRE, ids=lambda kind: kind.name)
def test_a_bounded_fault_ends_by_itself(link: Link, kind: type[faults.Fault]) -> None:
    """After its duration a fault is over, without anybody clearing it."""
    link.inject(kind(duration=0.2))
    assert link.describe()["fault"]["fault"] == kind.name
    time.sleep(0.2 + SLACK)
    assert link.describe()["fault"] is None
    assert _passes(link)


@pytest.mark.parametrize("after", ON_THE_WIRE, ids=lambda kind: kind.name)
@pytest.mark.parametrize("before", ON_THE_WIRE, ids=lambda kind: kind.name)
def test_a_fault_replaces_the_one_before(
    relay: Relay, before: type[faults.Fault], after: type[faults.Fault]
) -> None:
    """Any fault can follow any other, with a connection in mid-call, and leaves a working link."""
    link = relay.listen()
    with _open(link.address) as connection:
        connection.sendall(GET)
        link.inject(before(duration=0.5))
        link.inject(after())
        with contextlib.suppress(OSError):
            connection.sendall(GET)
        assert link.describe()["fault"]["fault"] == after.name
        link.clear()
    assert _passes(link)
    link.close()


def test_the_clock_of_a_replaced_fault_does_not_end_the_next(link: Link) -> None:
    """The duration belongs to its fault: a fault that follows isn't ended by it."""
    link.inject(faults.Refuse(duration=0.1))
    link.inject(faults.Refuse())
    time.sleep(0.1 + SLACK)
    with pytest.raises(ConnectionRefusedError):
        _open(link.address)


@pytest.mark.parametrize("kind", [faults.Hang, faults.Silent, faults.Latency, faults.Drip])
def test_clients_that_give_up_leave_nothing_behind(link: Link, kind: type[faults.Fault]) -> None:
    """200 clients that time out under a fault are forgotten once it is over."""
    link.inject(kind())
    for _ in range(200):
        with _open(link.address) as connection:
            connection.sendall(GET)
    link.clear()
    _until(lambda: link.describe()["connections"] == 0)
    assert _passes(link)


@pytest.mark.parametrize("kind", ON_THE_WIRE, ids=lambda kind: kind.name)
def test_a_fault_does_not_keep_the_relay_busy(
    relay: Relay, link: Link, kind: type[faults.Fault]
) -> None:
    """With clients that wait, that have closed half and that are gone, the relay sleeps."""
    clients = [_open(link.address) for _ in range(6)]
    for one in clients:
        assert _get(one) == REPLY
    link.inject(kind())
    for one in clients:
        with contextlib.suppress(OSError):
            one.sendall(GET)
    for one in clients[2:4]:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_WR)
    for one in clients[4:]:
        one.close()
    time.sleep(0.1)
    before = _cpu_seconds(relay.pid)
    time.sleep(0.5)
    assert _cpu_seconds(relay.pid) - before <= 0.05
    for one in clients:
        one.close()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_closed_link_gives_its_port_back(relay: Relay) -> None:
    """Closing a link resets its connections, frees its port, and ends its use."""
    link = relay.listen()
    with _open(link.address) as connection:
        _get(connection)
        link.close()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with pytest.raises(ConnectionRefusedError):
        _open(link.address)
    with pytest.raises(RuntimeError, match="this link is closed"):
        link.clear()
    host, port = link.address
    again = relay.listen(host, port)
    assert again.address == link.address and _passes(again)
    again.close()


def test_a_port_in_use_is_an_error(relay: Relay, server: EmbeddedMemcached) -> None:
    """A link can't take an address where somebody listens, and the relay goes on."""
    with pytest.raises(RuntimeError, match="in use"):
        relay.listen(*server.address)
    link = relay.listen()
    assert _passes(link)
    link.close()


def test_an_upstream_is_needed() -> None:
    """A link that leads nowhere is refused at once."""
    with Relay() as relay, pytest.raises(ValueError, match="upstream is needed"):
        relay.listen()


def test_it_relays_to_a_unix_socket_and_on_ipv6(tmp_path: Path) -> None:
    """The upstream may be a UNIX socket, the link an IPv6 address."""
    path = tmp_path / "memcached.sock"
    with EmbeddedMemcached(unix=path), Relay(str(path)) as relay:
        client = Client(relay.listen("::1").address)
        assert client.set("key", "value", noreply=False) and client.get("key") == b"value"
        client.close()


def test_many_clients_at_once(link: Link) -> None:
    """32 threads with a connection each all get their own answers."""
    wrong: list[bytes] = []

    def work(number: int) -> None:
        client = Client(link.address)
        for count in range(50):
            value = b"%d-%d" % (number, count)
            client.set(f"key{number}", value, noreply=False)
            got = client.get(f"key{number}")
            if got != value:
                wrong.append(got)
        client.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE * 4)
    assert not wrong and not any(thread.is_alive() for thread in threads)


def test_using_a_relay_that_does_not_run_is_an_error(server: EmbeddedMemcached) -> None:
    """Before its start, after its end and after its death a relay says so."""
    relay = Relay(server.address)
    with pytest.raises(RuntimeError, match="not running"):
        relay.listen()
    with relay:
        with pytest.raises(RuntimeError, match="already running"):
            relay.start()
        link = relay.listen()
        os.kill(relay.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="is gone"):
            link.inject(faults.Hang())
    with pytest.raises(RuntimeError, match="not running"):
        link.clear()


def test_it_dies_with_the_process_that_started_it(server: EmbeddedMemcached) -> None:
    """When its parent is killed outright, the relay is gone within a second."""
    code = (
        "import sys, time; from timedblock.faults.proxy import Relay\n"
        f"relay = Relay({server.address!r}).start(); relay.listen()\n"
        "print(relay.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert _alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 1.0 + SLACK
    while _alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # nobody may be there to collect an orphan
