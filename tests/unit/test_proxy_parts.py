"""The relay's parts where no server is needed: its loop, its doorway, its upstream."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from timedblock import faults
from timedblock.faults.proxy import link as links
from timedblock.faults.proxy.door import Door, Doorway
from timedblock.faults.proxy.link import ServedLink, Way
from timedblock.faults.proxy.loop import Loop
from timedblock.faults.proxy.proxies import Collection, join, split

PATIENCE = 10.0
LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
def loop(no_leaks: None) -> Iterator[Loop]:
    """A loop whose thread runs it, for the time of the test."""
    made: list[Loop] = []
    ready = threading.Event()

    def run() -> None:
        made.append(Loop())
        ready.set()
        made[0].run()
        made[0].close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(PATIENCE)
    yield made[0]
    made[0].stop()
    thread.join(PATIENCE)


def test_work_is_done_in_the_loops_thread(loop: Loop) -> None:
    """`ask` gives what the work gives, or raises what it raises."""
    assert loop.ask(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        loop.ask(lambda: 1 / 0)


def test_a_stopped_loop_does_no_work(loop: Loop) -> None:
    """Who asks too late hears of it at once, instead of waiting for ever."""
    loop.stop()
    with pytest.raises(RuntimeError, match="the relay has ended"):
        loop.ask(threading.get_ident)


def test_a_cancelled_timer_is_never_called(loop: Loop) -> None:
    """Timers are called in their order, but for those that were cancelled."""
    called: list[str] = []
    done = threading.Event()
    loop.ask(lambda: loop.after(0.02, done.set))
    loop.ask(lambda: loop.after(0.01, lambda: called.append("kept")))
    loop.ask(lambda: loop.after(0.005, lambda: called.append("cancelled")).cancel())
    assert done.wait(PATIENCE)
    assert called == ["kept"]


def _link(loop: Loop, upstream: tuple[str, int]) -> ServedLink:
    return loop.ask(lambda: ServedLink(loop, LOOPBACK, Way(upstream, must=False)))


def _close(loop: Loop, link: ServedLink) -> None:
    loop.ask(link.close)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(LOOPBACK) as listener:
        yield listener


def test_a_wall_that_does_not_stand_is_rolled_back(
    loop: Loop, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blackhole that can't be made is an error, and the link works as before."""
    monkeypatch.setattr(Doorway, "_MOST", 0)
    link = _link(loop, server.getsockname())
    with pytest.raises(RuntimeError, match="still accepts connections"):
        loop.ask(lambda: link.inject(faults.Blackhole()))
    assert link.fault is None
    with socket.create_connection(link.address, timeout=PATIENCE):
        server.settimeout(PATIENCE)
        server.accept()[0].close()
    _close(loop, link)


def test_out_of_descriptors_it_looks_again_later(
    loop: Loop, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that comes when no descriptor is left is ended; the next one is served."""
    link = _link(loop, server.getsockname())
    used_up = [True]

    def make(family: int) -> socket.socket:
        if used_up.pop() if used_up else False:
            raise OSError(errno.EMFILE, "Too many open files")
        return socket.SocketType(family)

    monkeypatch.setattr(links, "socket", SimpleNamespace(**{**vars(socket), "socket": make}))
    with socket.create_connection(link.address, timeout=PATIENCE) as first:
        assert first.recv(1) == b""
    with socket.create_connection(link.address, timeout=PATIENCE):
        server.settimeout(PATIENCE)
        server.accept()[0].close()
    _close(loop, link)


def test_a_name_is_looked_up_again_until_it_is_found(
    loop: Loop, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that comes before its upstream's name is known is ended; a later one is served."""
    link = _link(loop, ("no.such.invalid", 1))
    assert link.way.target is None
    where = server.getsockname()
    monkeypatch.setattr(links, "resolve", lambda upstream: (socket.AF_INET, where))
    with socket.create_connection(link.address, timeout=PATIENCE) as first:
        assert first.recv(1) == b""
    end = time.monotonic() + PATIENCE
    while link.way.target is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    with socket.create_connection(link.address, timeout=PATIENCE):
        server.settimeout(PATIENCE)
        server.accept()[0].close()
    _close(loop, link)


def test_a_name_that_stays_unknown_is_an_error_where_it_must_be_known() -> None:
    """The relay of a test is told at once that its upstream's name leads nowhere."""
    with pytest.raises(OSError):
        Way(("no.such.invalid", 1))
    way = Way(("no.such.invalid", 1), must=False)
    way._look()
    assert way.target is None


def test_the_most_closed_door_holds() -> None:
    """Doors are ordered: refusing is stronger than dropping, dropping than not accepting."""
    assert Door.OPEN < Door.UNATTENDED < Door.WALLED < Door.CLOSED


@pytest.mark.parametrize(
    ("text", "address"),
    [("", ("", 0)), (":80", ("", 80)), ("a:1", ("a", 1)), ("[::1]:5", ("::1", 5))],
)
def test_an_address_is_read_as_go_reads_it(text: str, address: tuple[str, int]) -> None:
    """Nothing is any port of every address, as in Toxiproxy."""
    assert split(text) == address
    assert join(("::1", 5, 0, 0)) == "[::1]:5"


@pytest.mark.parametrize("text", ["a", "a:", "a:x", "a:65536", "a:-1"])
def test_a_bad_address_is_named(text: str) -> None:
    """ValueError with the text itself."""
    with pytest.raises(ValueError, match="is not HOST:PORT") as caught:
        split(text)
    assert repr(text) in str(caught.value)


def test_populating_what_is_there_changes_nothing(loop: Loop, server: socket.socket) -> None:
    """A proxy with the same addresses is kept, with its toxics; without a host it is everywhere."""
    proxies = Collection(loop)
    upstream = join(server.getsockname())
    proxy = proxies.create({"name": "one", "upstream": upstream})
    assert proxy.enabled and not proxy.listen.startswith("127.")
    proxies.add_toxic("one", {"type": "latency"})
    made, problem = proxies.populate(
        [{"name": "one", "listen": proxy.listen, "upstream": upstream}]
    )
    assert (made, problem) == ([proxy], None)
    assert len(proxy.toxics()) == 1
    proxy.stop()
    proxy.update_toxic("latency_downstream", {"toxicity": 0.5})
    proxies.add_toxic("one", {"type": "noop"})
    proxy.remove_toxic("noop_downstream")
    assert [one["toxicity"] for one in proxy.toxics()] == [0.5]
    proxies.close()
