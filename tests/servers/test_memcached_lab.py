"""The namespace lab cleans up after itself, whatever happens."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

import pytest

from tests.servers import netlab
from tests.servers.netlab import NetLab

pytestmark = pytest.mark.server


def _namespaces() -> list[str]:
    return [line.split()[0] for line in netlab._run("ip", "netns", "list").splitlines()]


def _in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


@pytest.fixture(autouse=True)
def _possible() -> None:
    reason = netlab.why_not()
    if reason is not None:
        pytest.skip(f"no namespace lab: {reason}")


def test_a_failing_test_leaves_no_namespace_behind() -> None:
    """An error inside the lab removes the namespace, the veth pair and the server."""
    done = _in_a_process(
        "import os\n"
        "from tests.servers.netlab import NetLab\n"
        "with NetLab() as lab:\n"
        "    print(os.getpid(), lab._server.pid, flush=True)\n"
        "    raise KeyboardInterrupt\n"
    )
    session, server = done.stdout.split()
    assert "KeyboardInterrupt" in done.stderr
    assert f"tbmc-{session}" not in _namespaces()
    assert f"tbmc{session}" not in [name for _, name in socket.if_nameindex()]
    with pytest.raises(ProcessLookupError):
        os.kill(int(server), 0)


def test_what_a_killed_test_process_left_is_swept() -> None:
    """A namespace whose process was killed is gone, its server too, after the next sweep."""
    done = _in_a_process(
        "import os, signal\n"
        "from tests.servers.netlab import NetLab\n"
        "with NetLab() as lab:\n"
        "    print(os.getpid(), lab._server.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    session, server = done.stdout.split()
    assert f"tbmc-{session}" in _namespaces()
    netlab.sweep()
    assert f"tbmc-{session}" not in _namespaces()
    with contextlib.suppress(ProcessLookupError), open(f"/proc/{server}/stat") as stat:
        assert stat.read().split()[2] == "Z"  # killed, and not yet collected by init


def test_a_rule_meets_one_address_alone(lab: NetLab) -> None:
    """While one address is rejected the others answer, and afterwards all do."""
    rejected, other = lab.address(30), lab.address(31)
    with lab.rule(30, "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(rejected, timeout=2)
        socket.create_connection(other, timeout=2).close()
    socket.create_connection(rejected, timeout=2).close()
