"""`timedblock audit`: what a program asks of the network with no deadline in force, by place."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from timedblock import cli
from timedblock.audit import recorder, report
from timedblock.testing.memcached import EmbeddedMemcached

ARGUMENTS = [sys.executable, "-m", "timedblock.cli", "audit"]


@dataclass
class Outcome:
    """What an audited program came to."""

    code: int
    text: str
    output: str
    sites: list[dict[str, Any]] = field(default_factory=list)

    def told(self) -> list[tuple[str, str, int]]:
        """Of each site: where, which kind, how often."""
        return [
            (f"{os.path.basename(site['file'])}:{site['line']}", site["kind"], site["count"])
            for site in self.sites
        ]


Audit = Callable[..., Outcome]


@pytest.fixture
def audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Audit:
    """Audits a script of the given lines; the first is line 1."""
    monkeypatch.chdir(tmp_path)

    def run(script: str, *options: str, arguments: tuple[str, ...] = ()) -> Outcome:
        file, found = tmp_path / "app.py", tmp_path / "found.json"
        file.write_text(script)
        told = ["--json", str(found), *options, "--", sys.executable, str(file), *arguments]
        code = cli.main(["audit", *told])
        captured = capfd.readouterr()
        sites = json.loads(found.read_text()).get("sites", [])
        return Outcome(code, captured.err, captured.out, sites)

    return run


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Puts a directory before all others on the audited program's path."""

    def prepend(directory: Path) -> None:
        before = os.environ.get("PYTHONPATH")
        joined = [str(directory), *([before] if before else [])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(joined))

    return prepend


@pytest.fixture
def port() -> Iterator[int]:
    """Where something listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_raw_client_is_listed_and_ours_is_not(audit: Audit) -> None:
    """pymemcache's connects are named by the application's line; timedblock's have a limit, also
    those that its pool makes in the background, and so has what runs under a time_limit."""
    script = """\
import sys
from pymemcache.client.base import Client as Raw
from timedblock import memcache, time_limit
where = ("localhost", int(sys.argv[1]))
def load_user():
    return Raw(where).get("user:42")
load_user(), load_user()
cache = memcache.Client(where, max_pool_size=4)
cache.get_many(["a", "b"]), cache.get("user:42")
with time_limit(5.0):
    load_user()
"""
    with EmbeddedMemcached() as store:
        found = audit(script, arguments=(str(store.address[1]),))
    assert found.code == 1
    assert found.told() == [("app.py:6", "connect", 2), ("app.py:6", "look-up", 2)]
    connect, look_up = found.sites
    assert connect["through"] == look_up["through"] == "pymemcache"
    assert connect["function"] == "load_user"
    assert list(look_up["destinations"]) == ["localhost"]
    head, *lines = found.text.splitlines()
    assert head == (
        "timedblock audit: 4 connections or name look-ups without a deadline, "
        "from 2 places in 1 Python process"
    )
    assert lines[0].startswith("2 × app.py:6 in load_user connects to 127.0.0.1:")
    assert lines[0].endswith(
        "through pymemcache with no deadline: the socket has no timeout, so the kernel's minutes"
    )
    assert lines[1] == (
        "2 × app.py:6 in load_user looks up localhost through pymemcache with no deadline: "
        "it takes as long as the resolver does"
    )


def test_a_users_socket_module_under_our_client_has_our_limit(audit: Audit) -> None:
    """What timedblock asks of a socket module that isn't its own is limited as well."""
    script = """\
import sys, types, socket
from timedblock import memcache
own = types.ModuleType("own")
vars(own).update({k: v for k, v in vars(socket).items() if not k.startswith("__")})
cache = memcache.Client(("127.0.0.1", int(sys.argv[1])), socket_module=own)
print(cache.set("a", "1"))
"""
    with EmbeddedMemcached() as store:
        found = audit(script, arguments=(str(store.address[1]),))
    assert (found.code, found.output) == (0, "True\n")
    assert "nothing without a deadline in 1 Python process" in found.text


def test_a_block_that_sets_no_limit_is_no_deadline(audit: Audit, port: int) -> None:
    """What a block runs is not ours: with `timeout=None` nothing limits it."""
    script = """\
import socket, sys
from timedblock import Fixed, Policy, TimedBlock
where = ("127.0.0.1", int(sys.argv[1]))
for isolation in ("none", "thread"):
    endless = TimedBlock("endless." + isolation, Policy(timeout=None, isolation=isolation))
    endless.call(lambda: socket.create_connection(where).close())
    limited = TimedBlock("limited." + isolation, Policy(timeout=Fixed(5), isolation=isolation))
    limited.call(lambda: socket.create_connection(where).close())
"""
    found = audit(script, arguments=(str(port),))
    assert found.told() == [("app.py:6", "connect", 2)]


def test_a_look_up_in_a_thread_has_no_deadline_but_a_bound_one_has(audit: Audit) -> None:
    """A plain thread doesn't inherit the deadline; `bind` hands it down."""
    script = """\
import socket, threading
from timedblock import bind, time_limit
def look(name):
    try: socket.getaddrinfo(name, 80)
    except OSError: pass
with time_limit(5.0):
    for target in (look, bind(look)):
        thread = threading.Thread(target=target, args=[f"{target is look}.invalid"])
        thread.start(); thread.join()
"""
    found = audit(script)
    assert found.told() == [("app.py:4", "look-up", 1)]
    assert found.sites[0]["destinations"] == {"True.invalid": 1}


def test_every_way_to_ask_for_a_name(audit: Audit) -> None:
    """Forward and back; an address is no name, and asks nobody."""
    script = """\
import socket
for ask, what in [
    (socket.gethostbyname, b"one.invalid"), (socket.gethostbyname_ex, "two.invalid"),
    (socket.gethostbyaddr, "127.0.0.1"), (socket.getfqdn, "127.0.0.1"),
    (lambda to: socket.getnameinfo(to, 0), ("127.0.0.1", 80)),
    (socket.gethostbyname, "127.0.0.1"),
    (lambda host: socket.getaddrinfo(host, 80), "::1"),
    (lambda host: socket.getaddrinfo(host, 80), None),
    (lambda host: socket.getaddrinfo(host, 80), "three.invalid"),
]:
    try: ask(what)
    except OSError: pass
"""
    found = audit(script)
    asked = [name for site in found.sites for name in site["destinations"]]
    assert sorted(asked) == [
        "127.0.0.1",
        "127.0.0.1",
        "one.invalid",
        "three.invalid",
        "two.invalid",
    ]
    assert sum(site["count"] for site in found.sites) == 6


def test_own_timeouts_are_told_and_udp_is_no_connection(audit: Audit, port: int) -> None:
    """A timeout of the socket's own, and non-blocking, have their own words."""
    script = """\
import asyncio, socket, sys
port = int(sys.argv[1])
socket.create_connection(("127.0.0.1", port), 3).close()
async def main():
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
asyncio.run(main())
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
    datagrams.connect(("127.0.0.1", port))
"""
    found = audit(script, arguments=(str(port),))
    by_line = {site["line"]: site for site in found.sites}
    assert by_line[3]["timeout"] == "own"
    assert "timeout, 3 s, is for each step" in by_line[3]["explanation"]
    assert by_line[5]["timeout"] == "zero"
    assert "non-blocking" in by_line[5]["explanation"]
    assert len(by_line) == 2


def test_what_stays_on_this_machine_can_be_ignored(audit: Audit, port: int, tmp_path: Path) -> None:
    """Loopback addresses and UNIX sockets are listed, unless asked otherwise."""
    script = """\
import os, socket, sys
os.chdir(sys.argv[2])
socket.create_connection(("127.0.0.1", int(sys.argv[1]))).close()
one = socket.socket(socket.AF_UNIX); one.connect("here")
"""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "here"))
        listener.listen()
        arguments = (str(port), str(tmp_path))
        assert len(audit(script, arguments=arguments).sites) == 2
        found = audit(script, "--ignore", "loopback", arguments=arguments)
        assert found.told() == [("app.py:4", "connect", 1)]
        both = audit(script, "--ignore", "loopback", "--ignore", "unix", arguments=arguments)
    assert both.code == 0
    assert "1 Python process; 2 more ignored or allowed" in both.text


@pytest.mark.parametrize(
    "pattern", ["app.py", "app.py:4", "app.py:start_up", "*/app.py", "127.0.0.1:*"]
)
def test_what_is_known_can_be_allowed(audit: Audit, port: int, pattern: str) -> None:
    """By file, line, function or destination; the rest is still listed."""
    script = """\
import socket, sys

def start_up():
    socket.create_connection(("127.0.0.1", int(sys.argv[1]))).close()
start_up()
"""
    assert audit(script, "--allow", "other.py", arguments=(str(port),)).code == 1
    assert audit(script, "--allow", pattern, arguments=(str(port),)).code == 0


def test_libraries_are_told_from_the_application(
    audit: Audit, port: int, tmp_path: Path, path: Callable[[Path], None]
) -> None:
    """The innermost line that isn't a library's is listed; `--app` makes one the application's.
    A library's own thread has no such line, and says so."""
    library = tmp_path / "site-packages" / "pool"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text(
        "import socket, threading\n"
        "def fill(port):\n    socket.create_connection(('127.0.0.1', port)).close()\n"
        "def keep(port):\n"
        "    thread = threading.Thread(target=fill, args=[port]); thread.start(); thread.join()\n"
    )
    script = "import pool, sys\npool.fill(int(sys.argv[1]))\npool.keep(int(sys.argv[1]))\n"
    path(library.parent)
    found = audit(script, arguments=(str(port),))
    assert sorted(found.told()) == [("__init__.py:3", "connect", 1), ("app.py:2", "connect", 1)]
    by_through = {site["through"]: site for site in found.sites}
    assert by_through["pool"]["line"] == 2
    assert "in a thread without a frame of the application" in by_through[None]["explanation"]
    as_app = audit(script, "--app", "pool", arguments=(str(port),))
    assert as_app.told() == [("__init__.py:3", "connect", 2)]
    allowed = audit(script, "--allow", "pool", "--allow", "*/pool/*", arguments=(str(port),))
    assert allowed.code == 0


def test_a_thread_of_pythons_own_is_named(audit: Audit) -> None:
    """asyncio looks names up in a thread of its executor, where nobody's frame is."""
    script = """\
import asyncio
async def main():
    try: await asyncio.get_running_loop().getaddrinfo("no.invalid", 80)
    except OSError: pass
asyncio.run(main())
"""
    (site,) = audit(script).sites
    assert site["file"].endswith(os.path.join("concurrent", "futures", "thread.py"))
    assert site["through"] is None


def test_children_are_audited_however_they_begin_and_end(audit: Audit, port: int) -> None:
    """A subprocess, a fork that leaves by os._exit, one that is killed, multiprocessing."""
    script = """\
import multiprocessing, os, signal, socket, subprocess, sys
def ask():
    socket.create_connection(("127.0.0.1", int(sys.argv[1]))).close()
if __name__ == "__main__":
    ask()
    if len(sys.argv) == 2:
        subprocess.run([sys.executable, *sys.argv, "child"], check=True)
        for leave in (lambda: os._exit(0), lambda: os.kill(os.getpid(), signal.SIGKILL)):
            child = os.fork()
            if not child:
                ask(); leave()
            os.waitpid(child, 0)
        for method in ("fork", "spawn"):
            process = multiprocessing.get_context(method).Process(target=ask)
            process.start(); process.join()
"""
    found = audit(script, arguments=(str(port),))
    assert found.told() == [("app.py:3", "connect", 6)], found.text
    # and multiprocessing's resource tracker, which asks nothing
    assert "in 6 Python processes" in found.text or "in 7 Python processes" in found.text


def test_gunicorns_workers_are_audited_until_it_is_told_to_end(tmp_path: Path, port: int) -> None:
    """A service is audited while it serves; SIGTERM is passed on, and the report comes after."""
    (tmp_path / "web.py").write_text(
        f"""\
import socket
def application(environ, start_response):
    socket.create_connection(("127.0.0.1", {port})).close()
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        command = [*ARGUMENTS, "--", sys.executable, "-m", "gunicorn", "--workers", "2"]
        # A worker that is told to end while it boots doesn't hear it: gunicorn kills it then.
        command += ["--graceful-timeout", "3"]
        command += ["--bind", f"fd://{number}", "--no-control-socket", "web"]
        process = subprocess.Popen(
            command, cwd=tmp_path, pass_fds=[number], stderr=subprocess.PIPE, text=True
        )
        try:
            for _ in range(5):
                with socket.create_connection(listener.getsockname(), 30) as visit:
                    visit.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    assert visit.recv(100).startswith(b"HTTP/1.0 200")
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 1
    assert "5 × web.py:3 in application connects to" in told


_COUNTS_CTRL_C = """\
import signal, sys, time
got = []
signal.signal(signal.SIGINT, lambda *_: got.append(1))
print("ready", flush=True)
end = time.monotonic() + 30
while not got and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.3)
print("got", len(got), flush=True)
sys.exit(5)
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_an_interrupt_reaches_the_program_once(tmp_path: Path, terminal: bool) -> None:
    """From a terminal, where the kernel sends it to both, and by `kill`, where only we get it."""
    (tmp_path / "app.py").write_text(_COUNTS_CTRL_C)
    command = [*ARGUMENTS, "--", sys.executable, "app.py"]
    if terminal:
        spawn = f"import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn({command!r})))"
        command = [sys.executable, "-c", spawn]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "ready"
        if terminal:
            process.stdin.write("\x03")
            process.stdin.flush()
        else:
            process.send_signal(signal.SIGINT)
        output = process.stdout.readline() + process.stdout.readline()
        assert "got 1" in output
        assert process.wait(30) == 5
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("pass", 0),
    ],
)
def test_the_programs_own_exit_code_is_kept(audit: Audit, script: str, code: int) -> None:
    """Where there is nothing to tell."""
    assert audit(script).code == code


def test_another_sitecustomize_is_still_imported(
    audit: Audit, tmp_path: Path, path: Callable[[Path], None]
) -> None:
    """The environment's own customisation isn't replaced, nor is its error hidden; and our
    directory isn't left on the program's path."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("print('customised')\n")
    path(own)
    script = """\
import sys
print([p for p in sys.path if p.endswith("inject")], "timedblock" in sys.modules)
"""
    assert audit(script).output == "customised\n[] False\n"
    (own / "sitecustomize.py").write_text("import nonesuch\n")
    assert "nonesuch" in audit(script).text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument"),
        (["--", "no-such-command"], "can't run 'no-such-command': No such file"),
        (["--ignore", "moon", "--", "true"], "'moon'"),
        (["--allow", "", "--", "true"], "Invalid value for '--allow': '' is no pattern"),
        (["--allow", "app.py", "--allow", " ", "--", "true"], "' ' is no pattern"),
        (["--app", "", "--", "true"], "Invalid value for '--app': '' is no package"),
        (["--nonsense", "--", "true"], "--nonsense"),
        (
            ["--json", "/nonexistent/found.json", "--", "true"],
            "can't write /nonexistent/found.json",
        ),
        (["--", "true"], "true started no Python that could be audited (exit code 0)"),
        (["--", sys.executable, "-I", "-c", "raise SystemExit(4)"], "(exit code 4)"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and what was wrong."""
    assert cli.main(["audit", *arguments]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert error.startswith("timedblock: ")


# The recorder itself


@pytest.fixture
def record() -> recorder.Record:
    """Something to count."""
    return recorder.Record("connect", "remote", "10.0.0.1:80", "/app.py", 1, "f", "", "own", 0.5)


def counted(directory: Path) -> dict[recorder.Record, int]:
    """What was written there."""
    recording = report.Recording()
    os.rmdir(recording.directory)
    recording.directory = str(directory)
    return recording.read().counts


def test_counts_are_exact_with_many_threads(tmp_path: Path, record: recorder.Record) -> None:
    """No record is lost where threads meet, and none is written twice."""
    kept = recorder.Recorder(str(tmp_path))

    def work(number: int) -> None:
        for i in range(500):
            kept.add(record._replace(line=i % 7, seconds=i / 1000))

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = counted(tmp_path)
    assert sum(found.values()) == 4000
    assert len(found) == 7


def test_memory_is_bounded(tmp_path: Path, record: recorder.Record) -> None:
    """Past so many records destinations are folded, past twice that all of a kind."""
    kept = recorder.Recorder(str(tmp_path))
    for i in range(recorder.MOST + 10):
        kept.add(record._replace(destination=f"10.0.0.1:{i}"))
    for i in range(recorder.MOST + 10):
        kept.add(record._replace(line=i + 2))
    found = counted(tmp_path)
    assert len(found) <= 2 * recorder.MOST + 2
    assert sum(found.values()) == 2 * recorder.MOST + 20
    folded = {one.destination for one in found if one.destination == recorder.OTHER}
    assert folded
    assert any(one.file == recorder.OTHER for one in found)


def test_a_signal_handler_may_record_while_its_thread_does(
    tmp_path: Path, record: recorder.Record
) -> None:
    """The lock is never waited for: the one who holds it writes what the other left."""
    kept = recorder.Recorder(str(tmp_path))
    before = signal.signal(signal.SIGALRM, lambda *_: kept.add(record))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    rang = 0
    try:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            kept.add(record._replace(line=2))
            rang += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    kept.add(record._replace(line=3))
    found = {one.line: count for one, count in counted(tmp_path).items()}
    assert found[2] == rang
    assert found[1] >= 1
    assert found[3] == 1


def test_a_program_that_closes_everything_loses_nothing(
    tmp_path: Path, record: recorder.Record
) -> None:
    """A descriptor that became somebody else's file isn't written to; a new file is."""
    kept = recorder.Recorder(str(tmp_path))
    kept.add(record)
    stolen = kept._file
    os.close(stolen)
    other = os.open(tmp_path / "theirs", os.O_RDWR | os.O_CREAT)
    try:
        os.dup2(other, stolen)
        kept.add(record)
        assert os.fstat(other).st_size == 0
    finally:
        os.close(other)
        if stolen != other:
            os.close(stolen)
    assert sum(counted(tmp_path).values()) == 2


def test_an_audit_that_is_over_harms_nobody(tmp_path: Path, record: recorder.Record) -> None:
    """A process that outlives the audit finds its directory gone, and goes on."""
    gone = tmp_path / "gone"
    kept = recorder.Recorder(str(gone))
    with pytest.raises(OSError):
        kept.add(record)  # which the hook keeps to itself
    assert not gone.exists()


def test_what_a_process_could_not_finish_writing_is_left_out(tmp_path: Path) -> None:
    """Half a line, or a line of something else, is no record."""
    recorded = report.Recorded()
    recorded.take(b'{"pid": 1}\n{"count": 3, "record": [1]}\n{"count"')
    assert not recorded.counts


def test_stores_are_known_to_the_recorder() -> None:
    """Addresses as people write them, and which of them stay here."""
    assert recorder._host_port(("::1", 80, 0, 0)) == "[::1]:80"
    assert recorder._path(b"\0abstract") == "@abstract"
    assert recorder._path("/run/x") == "/run/x"
    scopes = {host: recorder._scope(host) for host in ("localhost", "db.localhost.", "::1",
              b"127.0.0.9", "::ffff:127.0.0.1", "127.evil.example", "10.0.0.1")}  # fmt: skip
    assert list(scopes.values()) == ["loopback"] * 5 + ["remote"] * 2
