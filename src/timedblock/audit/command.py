"""``timedblock audit -- CMD``: runs a program and lists what it asks of the network unlimited."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click

from timedblock.audit import report
from timedblock.ending import ended_by

FOUND = 1


def _not_empty(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Refuses what would match nothing: a variable of a script that was empty."""
    for value in values:
        if not value.strip():
            raise click.BadParameter(f"{value!r} is no {str(option.metavar).lower()}.")
    return values


@click.command(
    name="audit",
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
)
@click.option(
    "--ignore",
    type=click.Choice(report.IGNORABLE),
    multiple=True,
    help="Leave out what stays on this machine: loopback addresses, UNIX sockets. Repeatable.",
)
@click.option(
    "--allow",
    metavar="PATTERN",
    multiple=True,
    callback=_not_empty,
    help="Leave out a file ('app/start.py'), a line of it ('app/start.py:12'), a function "
    "('app/start.py:warm_up'), a library ('boto3') or a destination ('10.0.0.5:*'); shell "
    "patterns. Repeatable.",
)
@click.option(
    "--app",
    "apps",
    metavar="PACKAGE",
    multiple=True,
    callback=_not_empty,
    help="An installed package that is the application, not a library. Repeatable.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write the findings there, too.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
def audit(
    ignore: tuple[str, ...],
    allow: tuple[str, ...],
    apps: tuple[str, ...],
    json_file: Path | None,
    command: tuple[str, ...],
) -> int:
    """Run CMD and list, by call site, every outgoing connection and name look-up that it and the
    Python processes that it starts make with no deadline in force.

    The report goes to standard error. Exit code: 1 if there is any; 2 if CMD could not be run or
    was no Python; otherwise CMD's own (128 + N if signal N ended it).
    """
    if json_file is not None:
        _write(json_file, {})  # what can't be written is better known before
    with report.Recording(apps) as recording:
        code = _run(command, recording.environment(os.environ))
        recorded = recording.read()
    if not recorded.processes:
        raise click.UsageError(
            f"{command[0]} started no Python that could be audited (exit code {code}): it must "
            "not be started with -E, -I or -S, and its environment must be passed on."
        )
    found, left_out = report.sites(recorded, ignore=ignore, allow=allow)
    for line in report.lines(found, recorded, left_out):
        click.echo(line, err=True)
    if json_file is not None:
        told = [site.to_dict() for site in found]
        _write(json_file, {"processes": recorded.processes, "sites": told})
    return FOUND if found else code


def _write(file: Path, document: dict[str, Any]) -> None:
    try:
        file.write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise click.UsageError(f"can't write {file}: {error.strerror}") from error


def _run(command: tuple[str, ...], environment: dict[str, str]) -> int:
    """The exit code of the command, once it has ended."""
    with _passing_signals_on() as passed_on_to:
        try:
            # descriptors that we were given are meant for the command
            process = subprocess.Popen(command, env=environment, close_fds=False)
        except OSError as error:
            raise click.UsageError(f"can't run {command[0]!r}: {error.strerror}") from error
        passed_on_to(process)
        code = process.wait()
    return 128 - code if code < 0 else code


@contextlib.contextmanager
def _passing_signals_on() -> Iterator[Callable[[subprocess.Popen[Any]], None]]:
    """SIGTERM and SIGINT end the command, not us: we report when it has ended. One that comes
    before the command has started is passed on then."""
    running: list[subprocess.Popen[Any]] = []
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        # Ctrl-C of a terminal is sent to all of its foreground processes by the kernel.
        if number == signal.SIGINT and running and _in_foreground():
            return
        if running:
            running[0].send_signal(number)
        else:
            early.append(number)

    def passed_on_to(process: subprocess.Popen[Any]) -> None:
        running.append(process)
        for number in early:
            process.send_signal(number)

    with ended_by(pass_on):
        yield passed_on_to


def _in_foreground() -> bool:
    with contextlib.suppress(OSError):
        return os.tcgetpgrp(0) == os.getpgrp()
    return False
