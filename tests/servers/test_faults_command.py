"""``timedblock faults``: the list, a fault by hand, and every bad input with exit code 2."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.memcached import free_port
from timedblock import faults
from timedblock.cli import main
from timedblock.faults import undoing, vocabulary
from timedblock.faults.netfilter import why_not
from timedblock.testing.memcached import EmbeddedMemcached

CLI = [sys.executable, "-m", "timedblock.cli", "faults"]
# Ends with 7 once a request had no reply in its time, and a later one had.
CLIENT = """
import os, socket, sys, time
assert os.environ["TIMEDBLOCK_FAULTS_ADDRESS"] == "{address}"
hung = False
end = time.monotonic() + 40
while time.monotonic() < end:
    try:
        with socket.create_connection(("{host}", int("{port}")), timeout=0.7) as one:
            one.sendall(b"version\\r\\n")
            assert one.recv(100).startswith(b"VERSION")
    except TimeoutError:
        hung = True
    else:
        if hung:
            sys.exit(7)
        time.sleep(0.05)
"""
SERVER = """
import socket
server = socket.create_server(("127.0.0.1", PORT))
print("up", flush=True)
while True:
    server.accept()[0].close()
"""
# Ends with 5 once it is refused.
UNTIL_REFUSED = """
import socket, sys, time
end = time.monotonic() + 20
while time.monotonic() < end:
    try:
        socket.create_connection(("{host}", int("{port}")), 5).close()
    except ConnectionRefusedError:
        sys.exit(5)
    time.sleep(0.02)
"""


def _run(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, *CLI, *arguments], check=False, capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """An embedded server."""
    with EmbeddedMemcached() as server:
        assert isinstance(server.address, tuple)
        yield "{}:{}".format(*server.address)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that may be paused."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_list_shows_every_fault() -> None:
    """One line a fault, with its values and who can make it."""
    done = _run("list")
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines()[1:]}
    assert set(lines) == set(faults.FAULTS)
    for name, line in lines.items():
        assert line.split()[-4:] == [
            "yes" if one in vocabulary.injectors_of(name) else "-" for one in vocabulary.INJECTORS
        ]
        assert vocabulary.values_of(name) in line


def test_list_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    """Every cell of the table in words."""
    assert main(["faults", "list", "--how"]) == 0
    told = capsys.readouterr().out
    for injectors in vocabulary.HOW.values():
        assert all(how in told for how in injectors.values())


@pytest.mark.parametrize("injector", ["proxy", "netfilter"])
@pytest.mark.server
@pytest.mark.wall
def test_command_runs_under_the_fault(injector: str, upstream: str) -> None:
    """The command finds the store, meets the fault for its time, and gives its own exit code."""
    if injector == "netfilter" and (reason := why_not()):
        pytest.skip(f"no netfilter: {reason}")
    done = _run("inject", injector, "hang", "--upstream", upstream, "--after", "100ms",
                "--for", "4s", "--", sys.executable, "-c", CLIENT)  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert "hang is on for 4 s" in done.stderr and "hang is over" in done.stderr


@pytest.mark.server
@pytest.mark.wall
def test_fault_without_a_command_lasts_its_time(sleeper: subprocess.Popen[bytes]) -> None:
    """A process is paused for so long, and goes on."""
    with subprocess.Popen(
        [*CLI, "inject", "process", "pause@1s", "--pid", str(sleeper.pid)]
    ) as run:
        end = time.monotonic() + 20
        while _state(sleeper.pid) != "T":
            assert time.monotonic() < end
            time.sleep(0.01)
        assert run.wait(20) == 0
    assert _state(sleeper.pid) == "S"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_interrupted_it_rolls_back(sleeper: subprocess.Popen[bytes], number: int) -> None:
    """Ctrl-C: the process goes on, and the exit code is 130."""
    command = [*CLI, "inject", "process", "pause", "--pid", str(sleeper.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert "pause is on" in run.stderr.readline()
        assert _state(sleeper.pid) == "T"
        run.send_signal(number)
        assert run.wait(20) == 130
    assert _state(sleeper.pid) == "S"


def test_command_that_outlives_us_is_ended(upstream: str) -> None:
    """Interrupted, the command is ended as well: the fault and its client end together."""
    command = [*CLI, "inject", "proxy", "hang", "--upstream", upstream, "--", "sleep", "600"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert "the store is at 127.0.0.1:" in run.stderr.readline()
        assert "hang is on" in run.stderr.readline()
        run.send_signal(signal.SIGINT)
        assert run.wait(20) == 130


@pytest.mark.server
def test_without_a_command_it_says_how_to_run_one(upstream: str) -> None:
    """netfilter: the namespace's prefix is what a client needs."""
    if reason := why_not():
        pytest.skip(f"no netfilter: {reason}")
    done = _run("inject", "netfilter", "refuse@100ms", "--upstream", upstream)
    assert done.returncode == 0
    assert "run them by: " in done.stderr and "netns exec timedblock-" in done.stderr
    assert undoing.namespaces() == [one for one in undoing.namespaces() if one not in done.stderr]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tc", "hang"], "'tc' is not one of 'inprocess', 'proxy', 'netfilter', 'process'"),
        (["proxy", "hangs"], "unknown fault 'hangs'; known: refuse, blackhole"),
        (["proxy", "pause"], "proxy can't make 'pause'; it can be made by: process"),
        (["netfilter", "latency"], "netfilter can't make 'latency'; it can be made by: inprocess"),
        (["netfilter", "reset:7"], "netfilter counts no bytes"),
        (["inprocess", "hang"], "set TIMEDBLOCK_FAULTS"),
        (["proxy", "hang"], "proxy needs --upstream HOST:PORT"),
        (["proxy", "hang", "--upstream", "11211"], "'11211' is not HOST:PORT"),
        (["proxy", "hang", "--upstream", "a:0"], "'a:0' is not HOST:PORT"),
        (["proxy", "hang", "--upstream", "a:1", "--pid", "7"], "--pid is not for proxy"),
        (["proxy", "hang", "--upstream", "a:1", "--restart", "x"], "--restart is not for proxy"),
        (["proxy", "hang", "--upstream", "a:1", "--host-tables"], "--host-tables is not for proxy"),
        (["process", "pause", "--pid", "7", "--host-tables"], "--host-tables is not for process"),
        (["process", "pause"], "process needs --pid"),
        (["process", "pause", "--pid", "4194304"], "there is no process 4194304"),
        (["process", "pause", "--pid", "1"], "1 is not in the range x>=2"),
        (["proxy", "hang@1s", "--for", "2s"], "the time is given twice: 'hang@1s', and --for"),
        (["proxy", "hang", "--for", "soon"], "'soon' is not a time"),
        (["proxy", "hang", "--after", "-1s"], "'-1s' must be at least 0"),
        (["proxy", "hang", "--upstream", "a:1", "--", "/no/such"], "'/no/such' isn't there"),
        (["netfilter", "hang", "--upstream", "no.such.invalid:1", "--host-tables"],
         "no.such.invalid"),
    ],
)  # fmt: skip
def test_bad_input_is_told(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], no_leaks: None
) -> None:
    """One line that names what is wrong, exit code 2, nothing left behind."""
    if "--host-tables" in arguments and told.startswith("no.such") and why_not():
        pytest.skip("needs root")
    assert main(["faults", "inject", *arguments]) == 2
    output = capsys.readouterr()
    assert told in output.err and not output.out


def test_kill_without_a_way_back_is_told(
    sleeper: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """The process lives on."""
    assert main(["faults", "inject", "process", "kill", "--pid", str(sleeper.pid)]) == 2
    assert "starts the server again" in capsys.readouterr().err
    assert sleeper.poll() is None


# All is imported before: nobody may not be able to read where this is installed.
AS_NOBODY = """
import os, sys
import timedblock.faults.netfilter, timedblock.faults.proxy
from timedblock.cli import NEEDED, main
for name in NEEDED:
    __import__(name)
sys.stdout = open(os.devnull, "w")
main(["faults", "list"])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.parametrize("more", [[], ["--host-tables"]], ids=["namespaces", "host"])
def test_without_root_it_offers_the_proxy(more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As nobody: one message that says what is missing and what to use."""
    for name in [name for name in os.environ if name.startswith("COVERAGE")]:
        monkeypatch.delenv(name)  # nobody may not write its data
    arguments = ["faults", "inject", "netfilter", "hang", "--upstream", "127.0.0.1:1", *more]
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("timedblock: netfilter can't be used here: it needs root")
    assert "uid 65534" in done.stderr and "'proxy'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.server
def test_host_tables_by_hand() -> None:
    """In a namespace that stands for a host: every client is refused, and then served."""
    if reason := why_not():
        pytest.skip(f"no netfilter: {reason}")
    name, port = f"tbcli-{os.getpid()}", free_port()
    ip = undoing.found("ip") or "ip"
    inside = (ip, "netns", "exec", name)
    undoing.run(ip, "netns", "add", name)
    try:
        undoing.run(*inside, ip, "link", "set", "lo", "up")
        served = [*inside, sys.executable, "-c", SERVER.replace("PORT", str(port))]
        with subprocess.Popen(served, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None and server.stdout.readline() == "up\n"
            at = f"127.0.0.1:{port}"
            done = _run("inject", "netfilter", "refuse", "--host-tables", "--upstream", at,
                        "--", sys.executable, "-c", UNTIL_REFUSED, prefix=inside)  # fmt: skip
            server.kill()
        assert done.returncode == 5, done.stderr
        assert "timedblock" not in undoing.run(*inside, "iptables", "-S")
    finally:
        undoing.do_all([undoing.to_remove_namespace(name)])
