"""``timedblock drill``: the command line of the drills."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from timedblock.drill import memcache
from timedblock.drill.errors import DrillError
from timedblock.drill.load import TOLERANCE, Schedule
from timedblock.drill.run import Run
from timedblock.testing.memcached import EmbeddedMemcached

#: Seconds before the fault, at least, and so many requests: a limit is learnt from 100.
STEADY = 1.5
STEADY_REQUESTS = 150
#: Seconds of fault that are counted. A breaker may take the first third of them to be sure.
WINDOW = 6.0
RECOVERY = 1.0
_MAX_RATE = 1000.0
_MAX_WINDOW = 60.0
_JSON_NAME = "drill-memcache.json"


def _number(context: click.Context, option: click.Parameter, value: float) -> float:
    """Refuses what click's ranges let through: NaN."""
    if math.isnan(value):
        raise click.BadParameter(f"{value} is not a number of {option.name}.")
    return value


def _address(
    context: click.Context, option: click.Parameter, value: str | None
) -> memcache.Address | None:
    if value is None:
        return None
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise click.BadParameter(f"{value!r} is not HOST:PORT.")
    return host, int(port)


def _fault_names(context: click.Context, option: click.Parameter, value: str | None) -> list[str]:
    if value is None:
        return list(memcache.FAULTS)
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in memcache.FAULTS:
            known = ", ".join(memcache.FAULTS)
            raise click.BadParameter(f"unknown fault {name!r}; known: {known}.")
    return names


@click.group()
def drill() -> None:
    """Make the faults of a store on purpose and see what its clients do."""


@drill.command(name="memcache")
@click.option(
    "--server",
    metavar="HOST:PORT",
    callback=_address,
    help="A memcached to use (default: an embedded one). Keys are the drill's own, and "
    "are deleted afterwards.",
)
@click.option(
    "--faults",
    metavar="A,B,...",
    callback=_fault_names,
    help=f"The faults to make (default: all): {', '.join(memcache.FAULTS)}.",
)
@click.option(
    "--rate",
    type=click.FloatRange(10, _MAX_RATE),
    default=200.0,
    show_default=True,
    callback=_number,
    help="Requests a second of each load.",
)
@click.option(
    "--window",
    type=click.FloatRange(2, _MAX_WINDOW),
    default=WINDOW,
    show_default=True,
    callback=_number,
    help="Seconds of fault that are counted.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help=f"Where the results go (default: {_JSON_NAME} in --out).",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              default=Path("timedblock-drill"), show_default=True, metavar="DIRECTORY",
              help="The directory of what the drill writes.")  # fmt: skip
def memcache_drill(
    server: memcache.Address | None,
    faults: list[str],
    rate: float,
    window: float,
    json_file: Path | None,
    out: Path,
) -> int:
    """Make every fault on the wire to memcached, under load, for raw pymemcache with its defaults,
    with 1 s timeouts, and for timedblock with its default policy.

    Exit code: 0 if timedblock's calls held their limit and requests went on; 1 if not; 2 if the
    drill could not be run; 130 if it was interrupted (what is finished is written).
    """
    grace = memcache.LONGEST_LIMIT + TOLERANCE
    steady = max(STEADY, STEADY_REQUESTS / rate)
    schedule = Schedule(rate, steady, window, grace, RECOVERY)
    run = Run(faults, schedule, json_file or out / _JSON_NAME, Console())
    try:
        run.check_file()
        with _terminable():
            if server is not None:
                return run.on(server)
            with EmbeddedMemcached() as embedded:
                assert isinstance(embedded.address, tuple)
                return run.on(embedded.address)
    except DrillError as error:
        raise click.UsageError(f"the drill could not be run: {error}") from error


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the drill as Ctrl-C does: everything that was started is ended."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
