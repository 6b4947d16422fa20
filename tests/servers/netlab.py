"""A network namespace with a memcached in it, where packets can be dropped and rejected.

Root on Linux with `ip` and `iptables`. The server has one address per fault, so that a rule meets
the clients of one fault alone. Clients run outside; a veth pair leads to the namespace. Names hold
this process's pid; what a dead process left behind is swept at the next start.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from tests.servers.memcached import Memcached, binary

PORT = 11211
HOSTS = range(10, 32)
_NAME = re.compile(r"tbmc-(\d+)")
_ENVIRONMENT = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}


def why_not() -> str | None:
    """Why there can be no lab here, or None."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "iptables"):
        if shutil.which(tool, path=_ENVIRONMENT["PATH"]) is None:
            return f"{tool} is not installed"
    return None if binary() else "memcached is not installed"


def _run(*command: str) -> str:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=30, env=_ENVIRONMENT
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _remove(name: str) -> None:
    """End what runs in the namespace, by pid, and delete it; its veth pair goes with it."""
    for pid in _run("ip", "netns", "pids", name).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    end = time.monotonic() + 5
    while _run("ip", "netns", "pids", name).split() and time.monotonic() < end:
        time.sleep(0.01)
    _run("ip", "netns", "del", name)


def sweep() -> None:
    """Remove the namespaces of test processes that are dead."""
    for line in _run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        match = _NAME.fullmatch(name)
        if match and not _alive(int(match[1])):
            _remove(name)


def _free_net() -> str:
    """The first three numbers of a /24 that this machine has no address in."""
    for offset in range(250):
        net = f"10.213.{(os.getpid() + offset) % 250}"
        if not _run("ip", "-4", "-o", "addr", "show", "to", f"{net}.0/24").strip():
            return net
    raise RuntimeError("no free 10.213.x.0/24")


class NetLab:
    """The namespace and its server, from entry to exit."""

    def __init__(self) -> None:
        self._name = f"tbmc-{os.getpid()}"
        self._veth = f"tbmc{os.getpid()}"
        self._net = ""
        self._server: Memcached | None = None

    def __enter__(self) -> NetLab:
        sweep()
        self._net = _free_net()
        try:
            self._build()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.kill()
        if self._name in _run("ip", "netns", "list").split():
            _remove(self._name)

    def _inside(self, *command: str) -> str:
        return _run("ip", "netns", "exec", self._name, *command)

    def _build(self) -> None:
        name, veth, net = self._name, self._veth, self._net
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "addr", "add", f"{net}.1/24", "dev", veth)
        _run("ip", "link", "set", veth, "up")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", name, "link", "set", "eth0", "up")
        for host in HOSTS:
            _run("ip", "-n", name, "addr", "add", f"{net}.{host}/24", "dev", "eth0")
        # By default REJECT turns into DROP after about six replies to one address.
        self._inside("sysctl", "-q", "-w", "net.ipv4.icmp_ratelimit=0")
        # Connection tracking is off until a rule needs it; a connection made before that looks
        # NEW, and a rule about ESTABLISHED would let its first packet through.
        self._iptables("-I", "-p", "tcp", "--dport", str(PORT), "-m", "state",
                       "--state", "ESTABLISHED")  # fmt: skip
        prefix = ("ip", "netns", "exec", name)
        reachable = self.address(HOSTS[-1])
        self._server = Memcached(("0.0.0.0", PORT), prefix=prefix, reachable=reachable)
        self._server.start()

    def _iptables(self, action: str, *rule: str) -> None:
        self._inside("iptables", "-w", action, "INPUT", *rule)

    def address(self, host: int) -> tuple[str, int]:
        """The server's address that ends in `host` (10 to 31)."""
        assert host in HOSTS
        return f"{self._net}.{host}", PORT

    @contextlib.contextmanager
    def rule(self, host: int, *rule: str | Sequence[str]) -> Iterator[None]:
        """An iptables rule for packets to the address that ends in `host`, while inside."""
        parts = ("-d", f"{self._net}.{host}", *(str(part) for part in rule))
        self._iptables("-I", *parts)
        try:
            yield
        finally:
            self._iptables("-D", *parts)
