"""One node of the real RabbitMQ: its files, its process, and a hand on it (L5)."""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...faults import undoing
from ...faults.plan import Pause
from ...faults.process import Process
from ...faults.reaper import Reaper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    import pika

#: Debian's wrappers in /usr/sbin change the user; the scripts behind them don't.
PROGRAMS = Path("/usr/lib/rabbitmq/bin")
_TOOLS = ("epmd", "erl", "erl_call")
#: Seconds for a node's start, on a busy machine; one alone takes about four.
START_LIMIT = 90.0
_COMMAND_LIMIT = 60.0
#: Ports that the kernel gives to clients.
_CLIENT_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000
_TRIES = 3
_IN_USE = re.compile("eaddrinuse|in use", re.IGNORECASE)
#: RabbitMQ's banner has it also where nobody looks.
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_HELLO = b"AMQP\x00\x00\x09\x01"
_ANSWER_LIMIT = 2.0
_LOOK = 0.05
#: A process waits for a word of ours, and ends if we do before it: so it is promised to the reaper
#: before it does anything.
_WHEN_TOLD = 'read go && exec "$@" </dev/null'
_WATERMARK, _NO_MEMORY = "0.4", "0.00001"
_CONFIG = """\
loopback_users = none
vm_memory_high_watermark.relative = 0.4
disk_free_limit.absolute = 50MB
log.file.level = info
"""


def why_not() -> str | None:
    """Why there can be no RabbitMQ here, and what to install; or None."""
    if not (PROGRAMS / "rabbitmq-server").exists():
        return "RabbitMQ isn't installed: apt-get install rabbitmq-server"
    for tool in _TOOLS:
        if undoing.found(tool) is None:
            return f"the program {tool} isn't installed: apt-get install erlang-base"
    return None


def check() -> None:
    """RuntimeError says why there can be no RabbitMQ here."""
    reason = why_not()
    if reason is not None:
        raise RuntimeError(reason)


def free_port(host: str) -> int:
    """A port of `host` on which nobody listens at the moment, if possible one that no client is
    given by the kernel: the server binds it seconds later, and again after a kill."""
    try:
        first, last = map(int, _CLIENT_PORTS.read_text().split())
    except (OSError, ValueError):
        first, last = 32768, 60999
    for _ in range(200):
        port = random.randrange(_LOWEST, 65536)
        if first <= port <= last:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        found: int = probe.getsockname()[1]
        return found


class Server:
    """A node, made by `Broker` or `Cluster`.

    Attributes:
        address: where clients connect to, (host, port).
        name: what Erlang calls it.
        command: what starts it again, for `timedblock.faults.process.Process`; it ends with
            whoever ran it.
    """

    def __init__(
        self,
        reaper: Reaper,
        address: tuple[str, int],
        *,
        stem: str,
        cookie: str,
        ports: tuple[int, int],
        prefix: tuple[str, ...] = (),
        config: str = "",
        arguments: str = "",
    ) -> None:
        """`ports`: of other nodes, and of Erlang's name server."""
        self.address = address
        self.name = f"{stem}@{address[0]}"
        self._reaper = reaper
        self._between, self._names = ports
        self._base = Path(tempfile.mkdtemp(prefix="timedblock-rabbitmq-"))
        reaper.hold(undoing.to_run("rm", "-rf", str(self._base)))
        self._write_files(cookie, f"{_CONFIG}{config}")
        environment = (f"{key}={value}" for key, value in self._environment(arguments).items())
        self._run = (*prefix, undoing.found("env") or "env", "-i", *environment)
        self._server = (*self._run, str(PROGRAMS / "rabbitmq-server"))
        setpriv = undoing.found("setpriv")
        ends_with_parent = (setpriv, "--pdeathsig", "KILL") if setpriv else ()
        self.command: tuple[str, ...] = (*ends_with_parent, *self._server)
        self._process: subprocess.Popen[bytes] | None = None
        self._name_server: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<RabbitMQ {self.name}>"

    def _write_files(self, cookie: str, config: str) -> None:
        base = self._base
        for name in ("mnesia", "log", "home"):
            (base / name).mkdir()
        secret = base / "home" / ".erlang.cookie"
        secret.write_text(cookie)
        secret.chmod(0o600)
        for name in ("enabled_plugins", "advanced.config"):
            (base / name).write_text("[].")
        (base / "rabbitmq.conf").write_text(config)

    def _environment(self, arguments: str) -> dict[str, str]:
        base = self._base
        return {
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "HOME": str(base / "home"),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._names),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_NODE_IP_ADDRESS": self.address[0],
            "RABBITMQ_NODE_PORT": str(self.address[1]),
            "RABBITMQ_DIST_PORT": str(self._between),
            "RABBITMQ_MNESIA_BASE": str(base / "mnesia"),
            "RABBITMQ_LOG_BASE": str(base / "log"),
            "RABBITMQ_PID_FILE": str(base / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(base / "advanced.config"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(base / "feature_flags"),
            # The script becomes the server, instead of waiting for it; and there is no shell.
            "RABBITMQ_ALLOW_INPUT": "true",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"+S 1:1 {arguments}",
        }

    @property
    def pid(self) -> int:
        """The server's process. RuntimeError if it isn't running."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self._base / "pid").read_text())
            if self._is_ours(pid):
                return pid
        raise RuntimeError(f"{self.name} isn't running")

    def _is_ours(self, pid: int) -> bool:
        """It may have been started again by whoever killed it, so it needn't be our child."""
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            return f"RABBITMQ_PID_FILE={self._base / 'pid'}".encode() in environment
        return False

    # -- its life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start it; returns once it answers. RuntimeError with its last words if it doesn't."""
        self.begin()
        self.wait_until_up()

    def begin(self) -> None:
        """Start it, and don't wait. RuntimeError if it runs already."""
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError(f"{self.name} is running already")
        if self._name_server is None:
            port = str(self._names)
            self._name_server = self._launch((*self._run, "epmd", "-port", port))
            here = (self.address[0], self._names)
            self._wait(lambda: _accepts(here), self._name_server)
        with contextlib.suppress(FileNotFoundError):
            (self._base / "pid").unlink()
        self._process = self._launch(self._server)

    def wait_until_up(self, within: float = START_LIMIT) -> None:
        """Wait until it answers clients, also if a fault has started it again. RuntimeError with
        its last words if it doesn't."""
        process = self._process
        if process is not None and process.poll() is not None:
            process = None
        self._wait(self._is_up, process, within)

    def _is_up(self) -> bool:
        """Whether it answers, and it is this one that does."""
        with contextlib.suppress(RuntimeError):
            return _answers(self.address) and self.evaluate("rabbit:is_running()") == "true"
        return False

    def _launch(self, command: tuple[str, ...]) -> subprocess.Popen[bytes]:
        with (self._base / "output").open("ab") as output:
            process = subprocess.Popen(
                ("/bin/sh", "-c", _WHEN_TOLD, "sh", *command),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            birth = undoing.born(process.pid) or ""
            self._reaper.hold(undoing.to_signal(process.pid, birth, signal.SIGKILL))
            assert process.stdin is not None
            process.stdin.write(b"go\n")
        except BaseException:
            _end(process)
            raise
        finally:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
        return process

    def _wait(
        self,
        happened: Callable[[], bool],
        process: subprocess.Popen[bytes] | None,
        within: float = START_LIMIT,
    ) -> None:
        until = time.monotonic() + within
        while not happened():
            ended = process is not None and process.poll() is not None
            if ended or time.monotonic() > until:
                raise RuntimeError(f"{self.name} did not start: {self.last_words()}")
            time.sleep(_LOOK)

    def kill(self) -> None:
        """SIGKILL, and wait for its end. Its files stay: it may be started again."""
        with contextlib.suppress(RuntimeError, ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        process, self._process = self._process, None
        _end(process)

    def end(self) -> None:
        """Kill it, and remove its files."""
        self.kill()
        process, self._name_server = self._name_server, None
        _end(process)
        shutil.rmtree(self._base, ignore_errors=True)

    def last_words(self) -> str:
        """The ends of what it printed and of its log."""
        written = (self._base / "output", self._base / "log" / f"{self.name}.log")
        ends = (file.read_text(errors="replace")[-2000:] for file in written if file.exists())
        return _COLOUR.sub("", "\n".join(end.strip() for end in ends))

    # -- a hand on it -------------------------------------------------------------------------

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """SIGSTOP, and SIGCONT afterwards: also if this process is killed meanwhile."""
        with Process(self.pid) as process:
            process.listen().inject(Pause())
            yield

    @contextlib.contextmanager
    def suspended(self, queue: str) -> Iterator[None]:
        """This classic queue answers nothing, for a while; the server and other queues live.

        A raw publish to it waits for its confirm, and a declaration for its answer.
        """
        name = f'rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)'
        its = f"begin {{ok, Q}} = rabbit_amqqueue:lookup({name}), amqqueue:get_pid(Q) end"
        self.evaluate(f"sys:suspend({its})")
        try:
            yield
        finally:
            self.evaluate(f"sys:resume({its})")

    def control(self, *arguments: str) -> str:
        """What rabbitmqctl prints; it takes a second. RuntimeError with its complaint."""
        program = str(PROGRAMS / "rabbitmqctl")
        return undoing.run(*self._run, program, "-q", "-n", self.name, *arguments)

    def evaluate(self, expression: str) -> str:
        """The value of an Erlang expression in the server, as text: what ``rabbitmqctl eval``
        does, in milliseconds. RuntimeError with its complaint."""
        where = f"{self.address[0]}:{self._between}"
        call = (*self._run, "erl_call", "-address", where, "-r", "-timeout", "30")
        told = (*call, "-fetch_stdout", "-no_result_term", "-e")
        text = f'io:format("~0tp~n", [begin {expression} end]).\n'
        try:
            printed = undoing.run(*told, text=text).strip()
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{self.name} doesn't answer Erlang's calls") from error
        if not printed:
            raise RuntimeError(f"{self.name} could not evaluate {expression}")
        return printed

    def set_memory_alarm(self, on: bool) -> None:
        """Have it take no messages, as one that is short of memory, or let it take them again."""
        share = _NO_MEMORY if on else _WATERMARK
        self.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({share})")

    @contextlib.contextmanager
    def short_of_memory(self) -> Iterator[None]:
        """The memory alarm, for a while."""
        self.set_memory_alarm(True)
        try:
            yield
        finally:
            self.set_memory_alarm(False)

    def connect(self, **parameters: Any) -> pika.BlockingConnection:
        """A raw connection by pika, with `parameters` for its ConnectionParameters."""
        import pika

        limits = {"socket_timeout": 5, "stack_timeout": 5, **parameters}
        return pika.BlockingConnection(pika.ConnectionParameters(*self.address, **limits))


class Broker(Server):
    """One RabbitMQ on loopback, for the time of a ``with`` block; with any user's rights.

    ``start`` and ``kill`` may be called within the block.

    Args:
        port: 0 takes a free one.
        config: more lines for its rabbitmq.conf.
        schedulers: of Erlang, each a core's work; as it comes RabbitMQ has one a core.

    Attributes:
        address: where clients connect to, (host, port).
        name: what Erlang calls it.
        command: what starts it again, for `timedblock.faults.process.Process`.

    Raises:
        RuntimeError: at entry, where RabbitMQ isn't installed, or doesn't start.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, *, config: str = "", schedulers: int = 1
    ) -> None:
        self._schedulers = f"+S {schedulers}:{schedulers}"
        self.address = (host, port or free_port(host))
        self._tries = 1 if port else _TRIES
        self._stem = f"timedblock{secrets.token_hex(4)}"
        self.name = f"{self._stem}@{host}"
        self._config = config

    def __enter__(self) -> Broker:
        check()
        for left in reversed(range(self._tries)):
            try:
                self._open()
                return self
            except RuntimeError as error:
                # somebody was quicker: a port was free when we looked
                if not left or not _IN_USE.search(str(error)):
                    raise
                self.address = (self.address[0], free_port(self.address[0]))
        raise AssertionError

    def _open(self) -> None:
        host = self.address[0]
        self._own_reaper = Reaper()
        try:
            super().__init__(
                self._own_reaper,
                self.address,
                stem=self._stem,
                cookie=secrets.token_hex(16),
                ports=(free_port(host), free_port(host)),
                config=self._config,
                arguments=f"{self._schedulers} -kernel inet_dist_use_interface "
                f"{{{host.replace('.', ',')}}}",
            )
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _environment(self, arguments: str) -> dict[str, str]:
        return {**super()._environment(arguments), "ERL_EPMD_ADDRESS": self.address[0]}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if hasattr(self, "_base"):
                self.end()
        finally:
            self._own_reaper.stop()


def _end(process: subprocess.Popen[bytes] | None) -> None:
    """And the Erlang helpers that began in its session."""
    if process is not None:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _accepts(address: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(address, _ANSWER_LIMIT).close()
        return True
    return False


def _answers(address: tuple[str, int]) -> bool:
    """Whether a server's first frame comes."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(address, _ANSWER_LIMIT) as connection,
    ):
        connection.sendall(_HELLO)
        return connection.recv(1) == b"\x01"
    return False
