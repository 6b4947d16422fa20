"""The real RabbitMQ: a broker of a test's own, which it may pause, kill and starve of memory."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pika

from tests.servers.memcached import free_port, stop

# Debian's wrapper in /usr/sbin changes user; the script below it doesn't.
PROGRAMS = Path("/usr/lib/rabbitmq/bin")
START_SECONDS = 90.0
_CONFIG = """\
loopback_users = none
vm_memory_high_watermark.relative = 0.4
disk_free_limit.absolute = 50MB
listeners.tcp.default = 127.0.0.1:{port}
"""


def missing() -> str | None:
    """Why there can be no broker here, or None."""
    if not (PROGRAMS / "rabbitmq-server").exists():
        return "no rabbitmq-server here: sh scripts/install-test-servers"
    return None


class RabbitMQ:
    """One broker on 127.0.0.1, with an Erlang name server of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self._base = Path(tempfile.mkdtemp(prefix="timedblock-rabbitmq-"))
        self._name = f"tb{secrets.token_hex(4)}@localhost"
        for name in ("mnesia", "log", "home"):
            (self._base / name).mkdir()
        cookie = self._base / "home" / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o600)
        (self._base / "enabled_plugins").write_text("[].")
        (self._base / "advanced.config").write_text("[].")
        (self._base / "rabbitmq.conf").write_text(_CONFIG.format(port=self.port))
        self._environment = self._settings()
        self._process: subprocess.Popen[bytes] | None = None

    def _settings(self) -> dict[str, str]:
        base = self._base
        return {
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "HOME": str(base / "home"),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(base / "mnesia"),
            "RABBITMQ_LOG_BASE": str(base / "log"),
            "RABBITMQ_PID_FILE": str(base / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(base / "advanced.config"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(base / "feature_flags"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    @property
    def pid(self) -> int:
        """The broker's own process."""
        return int((self._base / "pid").read_text())

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._base / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [str(PROGRAMS / "rabbitmq-server")],
                env=self._environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
                return
            except (pika.exceptions.AMQPError, OSError):
                assert self._process.poll() is None, self._output()
                assert time.monotonic() < until, self._output()
                time.sleep(0.1)

    def _output(self) -> str:
        return (self._base / "output").read_text()[-2000:]

    def connect(self) -> pika.BlockingConnection:
        """A raw connection, for a test's own hand on the broker."""
        return pika.BlockingConnection(
            pika.ConnectionParameters("127.0.0.1", self.port, socket_timeout=5, stack_timeout=5)
        )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """SIGSTOP, and SIGCONT afterwards."""
        pid = self.pid
        stop(pid)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def control(self, *arguments: str) -> str:
        """What rabbitmqctl prints."""
        done = subprocess.run(
            [str(PROGRAMS / "rabbitmqctl"), "-q", "-n", self._name, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def short_of_memory(self) -> Iterator[None]:
        """The memory alarm."""
        self.control("set_vm_memory_high_watermark", "0.00001")
        try:
            yield
        finally:
            self.control("set_vm_memory_high_watermark", "0.4")

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._end_group()

    def _end_group(self) -> None:
        """Also the Erlang helpers and the name server, which began in our session."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> RabbitMQ:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        epmd = self._environment["ERL_EPMD_PORT"]
        subprocess.run(
            ["epmd", "-port", epmd, "-kill"],
            env=self._environment,
            capture_output=True,
            timeout=10,
            check=False,
        )
        shutil.rmtree(self._base, ignore_errors=True)
