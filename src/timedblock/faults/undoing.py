"""What the reaper can undo: plain data that survives its maker, and the doing of it (L3).

Each is idempotent: undoing what is undone, or what was never made, does nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

#: One step of an undoing, JSON-able: a word and its values.
Undo = list[Any]

_COMMAND_LIMIT = 30.0
#: Seconds that a process in a namespace has after SIGTERM.
_GRACE = 1.0
_SBIN = "/usr/sbin:/sbin"
#: Per-namespace files of `ip netns`: resolv.conf.
NETNS_FILES = Path("/etc/netns")


def found(tool: str) -> str | None:
    """The path of a program, also where only root's PATH leads; None if it isn't installed."""
    return shutil.which(tool) or shutil.which(tool, path=_SBIN)


def born(pid: int) -> str | None:
    """When a process started, as its kernel counts: with the pid it names one process for ever.

    None if there is no such process; "" where the system doesn't tell (no /proc)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() or not alive(pid) else ""
    except ProcessLookupError:
        return None


def alive(pid: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def to_run(*command: str, may_fail: bool = False) -> Undo:
    """Run a command; with `may_fail` its failure means that nothing was left to undo."""
    return ["run", list(command), may_fail]


def to_signal(pid: int, birth: str, number: int) -> Undo:
    """Send a signal to that process, and to no other that got its number."""
    return ["signal", pid, birth, number]


def to_start(command: Sequence[str], directory: str) -> Undo:
    """Start a command in a session of its own; tells its ``pid``."""
    return ["start", list(command), directory]


def to_remove_namespace(name: str) -> Undo:
    """End what runs in a network namespace, and delete it; its devices and rules go with it."""
    return ["namespace", name]


def do_all(steps: Sequence[Undo]) -> dict[str, Any]:
    """Do every step, whatever becomes of the others; what they told.

    RuntimeError, after the last, names what failed."""
    told: dict[str, Any] = {}
    failed = []
    for what, *values in steps:
        try:
            told.update(_DOING[what](*values) or {})
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            failed.append(str(error))
    if failed:
        raise RuntimeError("; ".join(failed))
    return told


def run(*command: str, text: str | None = None) -> str:
    """A command's output. RuntimeError with what it complained about, if it fails."""
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=_COMMAND_LIMIT, input=text
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _run(command: list[str], may_fail: bool) -> None:
    with contextlib.suppress(*([RuntimeError] if may_fail else [])):
        run(*command)


def _signal(pid: int, birth: str, number: int) -> None:
    if born(pid) == birth:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _start(command: list[str], directory: str) -> dict[str, int]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, cwd=directory, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )
    return {"pid": process.pid}


def _remove_namespace(name: str) -> None:
    ip = found("ip") or "ip"
    if name in namespaces():
        _empty(ip, name)
        run(ip, "netns", "del", name)
    shutil.rmtree(NETNS_FILES / name, ignore_errors=True)


def namespaces() -> list[str]:
    """The names of the network namespaces that there are."""
    listed = run(found("ip") or "ip", "netns", "list").splitlines()
    return [line.split()[0] for line in listed if line.strip()]


def _empty(ip: str, name: str) -> None:
    """End what runs there, by pid: SIGTERM, and SIGKILL for what stays."""
    asked: set[str] = set()
    patient_until = time.monotonic() + _GRACE
    while pids := set(run(ip, "netns", "pids", name).split()):
        late = time.monotonic() - patient_until
        if late > _COMMAND_LIMIT:
            raise RuntimeError(f"processes in {name} can't be ended: {' '.join(sorted(pids))}")
        for pid in pids if late > 0 else pids - asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL if late > 0 else signal.SIGTERM)
        asked |= pids
        time.sleep(0.02)


_DOING: dict[str, Any] = {
    "run": _run,
    "signal": _signal,
    "start": _start,
    "namespace": _remove_namespace,
}
