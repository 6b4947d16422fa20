"""``timedblock faults list`` and ``timedblock faults inject``."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
import shutil
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from timedblock.ending import interrupted_once
from timedblock.faults import plan, vocabulary
from timedblock.faults.proxy.proxies import split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from timedblock.faults.injector import Injector, Link

#: What a command that runs under a fault finds the store's address in.
ADDRESS_VARIABLE = "TIMEDBLOCK_FAULTS_ADDRESS"
_REACH_LIMIT = 5.0
#: Seconds between two looks whether we were told to end.
_LOOK = 0.5
_BY_ITSELF = "inprocess acts inside the process that asks for it: set TIMEDBLOCK_FAULTS there"


@click.command(name="list")
@click.option("--how", is_flag=True, help="Say how each injector makes each fault.")
def list_faults(how: bool) -> None:
    """Show every fault, its values, and the injectors that can make it."""
    if how:
        for fault, injectors in vocabulary.HOW.items():
            click.echo(fault)
            for injector, made in injectors.items():
                click.echo(f"  {injector:<10} {made}")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("fault", "values", *vocabulary.INJECTORS):
        table.add_column(column, overflow="fold")
    for fault in vocabulary.HOW:
        able = vocabulary.injectors_of(fault)
        marks = ("yes" if one in able else "-" for one in vocabulary.INJECTORS)
        table.add_row(fault, vocabulary.values_of(fault), *marks)
    Console().print(table)


def _time(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """Seconds, as faults have them: 10s, 200ms, 2m."""
    if value is None:
        return None
    try:
        seconds = plan.read_time(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None
    if not 0 <= seconds < threading.TIMEOUT_MAX:
        raise click.BadParameter(f"{value!r} must be at least 0.")
    return seconds


def _address(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    try:
        host, port = split(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None
    if not (host and port):
        raise click.BadParameter(f"{value!r} is not HOST:PORT.")
    return host, port


@dataclasses.dataclass(frozen=True)
class _Asked:
    """The options that say where the fault is made."""

    upstream: tuple[str, int] | None
    host_tables: bool
    pid: int | None
    restart: str | None


@click.command()
@click.argument("injector", type=click.Choice(vocabulary.INJECTORS))
@click.argument("fault", metavar="FAULT[:VALUE,...][@TIME]")
@click.option("--upstream", metavar="HOST:PORT", callback=_address,
              help="The store (proxy, netfilter; process: where the server listens).")  # fmt: skip
@click.option("--after", callback=_time, default="0s", metavar="TIME",
              help="Begin the fault so much later (10s, 200ms).")  # fmt: skip
@click.option("--for", "lasting", callback=_time, metavar="TIME",
              help="End it after so long (default: with the command, or at Ctrl-C).")  # fmt: skip
@click.option("--host-tables", is_flag=True,
              help="netfilter: use this host's own iptables, for every client here.")  # fmt: skip
@click.option("--pid", type=click.IntRange(min=2), help="process: the server's process.")
@click.option("--restart", metavar="COMMAND", help="process: what starts it again after a kill.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def inject(
    injector: str,
    fault: str,
    upstream: tuple[str, int] | None,
    after: float,
    lasting: float | None,
    host_tables: bool,
    pid: int | None,
    restart: str | None,
    command: tuple[str, ...],
) -> int:
    """Make one fault, by hand, and roll it back at its end.

    With a COMMAND (after --) it runs as the store's client, in a network of its own under
    netfilter: {host}, {port} and {address} in it are replaced by where it finds the store, which
    is also in TIMEDBLOCK_FAULTS_ADDRESS. Its exit code is ours.

    \b
    timedblock faults inject netfilter blackhole --upstream 127.0.0.1:11211 \\
        --after 5s --for 10s -- my-client {host} {port}
    timedblock faults inject process pause@10s --pid 4711
    """
    asked = _Asked(upstream, host_tables, pid, restart)
    try:
        wanted = _parse(injector, fault, lasting)
        if command and shutil.which(command[0]) is None:
            raise ValueError(f"the command {command[0]!r} isn't there, or can't be run")
        made = _injector(injector, asked)
        with interrupted_once() as told, made:
            if upstream is not None and injector != "process":
                _reach(upstream)
            return _Run(made.listen(), wanted, Console(stderr=True), told).run(after, command)
    except (ValueError, OSError, RuntimeError) as error:
        raise click.UsageError(str(error)) from error


def _parse(injector: str, fault: str, lasting: float | None) -> plan.Fault:
    if lasting is not None and "@" in fault:
        raise ValueError(f"the time is given twice: {fault!r}, and --for")
    return vocabulary.parse(injector, fault, default_duration=lasting)


def _injector(name: str, asked: _Asked) -> Injector:
    """Where the fault is made. ValueError if what it needs isn't given, or doesn't belong here."""
    if name == "inprocess":
        raise ValueError(_BY_ITSELF)
    if name == "process":
        _refuse(asked.host_tables, "--host-tables", name)
        return _process(asked)
    _refuse(asked.pid is not None, "--pid", name)
    _refuse(asked.restart is not None, "--restart", name)
    if asked.upstream is None:
        raise ValueError(f"{name} needs --upstream HOST:PORT")
    if name == "proxy":
        _refuse(asked.host_tables, "--host-tables", name)
        from timedblock.faults.proxy import Relay

        return Relay(asked.upstream)
    from timedblock.faults.netfilter import HostTables, Netfilter

    return HostTables(asked.upstream) if asked.host_tables else Netfilter(asked.upstream)


def _reach(upstream: tuple[str, int]) -> None:
    """ValueError if nobody accepts connections there: then no fault could be told from none."""
    try:
        socket.create_connection(upstream, timeout=_REACH_LIMIT).close()
    except OSError as error:
        host, port = upstream
        raise ValueError(f"the store at {host}:{port} can't be reached: {error}") from error


def _process(asked: _Asked) -> Injector:
    from timedblock.faults.process import Process

    if asked.pid is None:
        raise ValueError("process needs --pid")
    restart = shlex.split(asked.restart or "")
    return Process(asked.pid, address=asked.upstream or ("", 0), restart=restart)


def _refuse(given: bool, option: str, injector: str) -> None:
    if given:
        raise ValueError(f"{option} is not for {injector}")


class _Run:
    """One fault on one link, and the command beside it."""

    def __init__(
        self, link: Link, fault: plan.Fault, console: Console, told: threading.Event
    ) -> None:
        """`told`: to end now."""
        self._link = link
        self._fault = fault
        self._console = console
        self._told = told

    def run(self, after: float, command: Sequence[str]) -> int:
        """Until the command ends, or without one until the fault does; the exit code."""
        host, port = self._link.address
        if port:
            self._say(f"the store is at {host}:{port} for clients")
        if not command:
            return self._run_alone(after)
        process = subprocess.Popen(self._argv(command), env=self._environment())
        try:
            if not self._ended(process, after):
                self._inject()
                self._ended(process, self._fault.duration)
                self._clear()
            self._ended(process, None)
            return _code(process.wait())
        finally:
            _end(process)
            self._link.clear()

    def _run_alone(self, after: float) -> int:
        if self._link.prefix:
            self._say(f"run them by: {shlex.join(self._link.prefix)} COMMAND")
        self._wait(after)
        self._inject()
        try:
            self._wait(self._fault.duration)
        finally:
            self._clear()
        return 0

    def _wait(self, seconds: float | None) -> None:
        """For ever where that is None; KeyboardInterrupt when we are told to end."""
        if self._told.wait(seconds):
            raise KeyboardInterrupt

    def _ended(self, process: subprocess.Popen[bytes], within: float | None) -> bool:
        """Whether it has, in so many seconds; KeyboardInterrupt when we are told to end."""
        until = math.inf if within is None else time.monotonic() + within
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(left, _LOOK))
                return True
            self._wait(0)
        return process.poll() is not None

    def _argv(self, command: Sequence[str]) -> list[str]:
        host, port = self._link.address
        found = {"{host}": host, "{port}": str(port), "{address}": f"{host}:{port}"}
        argv = [*self._link.prefix]
        for part in command:
            for placeholder, value in found.items():
                part = part.replace(placeholder, value)
            argv.append(part)
        return argv

    def _environment(self) -> dict[str, str]:
        host, port = self._link.address
        return {**os.environ, ADDRESS_VARIABLE: f"{host}:{port}"}

    def _inject(self) -> None:
        self._link.inject(self._fault)
        lasts = self._fault.duration
        self._say(f"{self._fault.name} is on" + (f" for {lasts:g} s" if lasts else ""))

    def _clear(self) -> None:
        self._link.clear()
        self._say(f"{self._fault.name} is over")

    def _say(self, text: str) -> None:
        self._console.print(f"timedblock: {text}", highlight=False, markup=False, soft_wrap=True)


def _code(status: int) -> int:
    """A command's exit code as a shell gives it."""
    return 128 - status if status < 0 else status


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5.0)
        process.kill()
        process.wait()
