"""What the reaper does: harmless when there is nothing to undo, told if it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from timedblock.faults import undoing

NOBODY = 1 << 22  # no process has this number


@pytest.mark.parametrize("code", [0, 1, 2, 255])
def test_what_is_not_there_need_not_be_removed(code: int) -> None:
    """iptables and ip say by these codes that the rule, chain or namespace is gone already."""
    undoing.do_all([undoing.to_run("sh", "-c", f"exit {code}", may_fail=True)])


def test_what_could_not_be_removed_is_told() -> None:
    """Another process held the lock of iptables: the fault is still there, and that is an error."""
    with pytest.raises(RuntimeError, match="exit 4"):
        undoing.do_all([undoing.to_run("sh", "-c", "exit 4", may_fail=True)])
    with pytest.raises(RuntimeError, match="no such rule"):
        undoing.do_all([undoing.to_run("sh", "-c", "echo no such rule; exit 1")])


def test_every_step_is_done_though_one_fails(tmp_path: Path) -> None:
    """The error comes last and names all that failed."""
    done = tmp_path / "done"
    steps = [undoing.to_run(str(tmp_path / "missing")), undoing.to_run("false")]
    with pytest.raises(RuntimeError, match=r"missing.*false"):
        undoing.do_all([*steps, undoing.to_run("touch", str(done))])
    assert done.exists()


def test_started_command_has_its_directory_and_tells_its_pid(tmp_path: Path) -> None:
    """What starts a server again runs where the server's owner was."""
    told = undoing.do_all([undoing.to_start(["sh", "-c", "pwd > here"], str(tmp_path))])
    (started,) = (one for one in undoing._STARTED if one.pid == told["pid"])
    assert started.wait(10) == 0
    assert (tmp_path / "here").read_text().strip() == str(tmp_path)


def test_process_is_known_by_its_number_and_its_birth() -> None:
    """Whoever took the number later is another process, and gets no signal."""
    with subprocess.Popen(["sleep", "60"]) as process:
        birth = undoing.born(process.pid)
        assert birth and undoing.born(os.getpid()) != birth
        undoing.do_all([undoing.to_signal(process.pid, "1", signal.SIGKILL)])
        assert process.poll() is None
        undoing.do_all([undoing.to_signal(process.pid, birth, signal.SIGKILL)])
        assert process.wait(10) == -signal.SIGKILL
    undoing.do_all([undoing.to_signal(process.pid, birth, signal.SIGKILL)])
    assert undoing.born(NOBODY) is None and not undoing.alive(NOBODY)


def test_another_users_process_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it may not be signalled says that it is there."""

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert undoing.alive(1)


def test_program_is_found_where_only_root_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ip and iptables are in /usr/sbin, which is on no user's path."""
    tool = tmp_path / "tool"
    tool.symlink_to(sys.executable)
    monkeypatch.setenv("PATH", "/nowhere")
    assert undoing.found("tool") is None
    monkeypatch.setattr(undoing, "_SBIN", str(tmp_path))
    assert undoing.found("tool") == str(tool)
