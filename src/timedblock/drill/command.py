"""``timedblock drill``: the command line of the drills."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import click
from rich.console import Console

from timedblock.drill import injection, plans, toml
from timedblock.drill.errors import DrillError
from timedblock.drill.repeat import Repeat, seconds
from timedblock.drill.run import Run
from timedblock.drill.scenario import Scenario, Target
from timedblock.drill.store import Address, find
from timedblock.ending import interrupted_once
from timedblock.faults import vocabulary

_Command = TypeVar("_Command", bound=Callable[..., Any])
_MAX_RATE = 1000.0
_MAX_WINDOW = 60.0


def _number(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Refuses what click's ranges let through: NaN."""
    if value is not None and math.isnan(value):
        raise click.BadParameter(f"{value} is not a number of {option.name}.")
    return value


def _address(context: click.Context, option: click.Parameter, value: str | None) -> Address | None:
    try:
        return None if value is None else toml.address(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _period(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _fault_names(
    context: click.Context, option: click.Parameter, value: str | None
) -> list[str] | None:
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in vocabulary.HOW:
            known = ", ".join(vocabulary.HOW)
            raise click.BadParameter(f"unknown fault {name!r}; known: {known}.")
    return names


class _Wanted(TypedDict):
    """The options that make a plan."""

    server: Address | None
    faults: list[str] | None
    rate: float | None
    window: float | None
    full: bool
    quick: bool
    scenario: str | None
    inject: str | None


class _Kept(TypedDict):
    """The options that say what becomes of the results."""

    json_file: Path | None
    out: Path
    repeat: float | None
    keep: int
    metrics: Address | None
    graphite: Address | None


@click.group()
def drill() -> None:
    """Make the faults of a store on purpose and see what its clients do."""


@drill.command(name="list")
def list_scenarios() -> None:
    """The scenarios that ship; --scenario takes their names."""
    width = max(map(len, toml.names()))
    for name in toml.names():
        click.echo(f"{name:<{width}} {toml.load(name).title}")


def _planning(server: str) -> Callable[[_Command], _Command]:
    """The options of what is done to which server."""
    return _all(
        click.option("--server", metavar="HOST:PORT", callback=_address, help=server),
        click.option("--faults", metavar="A,B,...", callback=_fault_names,
                     help="The faults to make (default: all that the injector makes): "
                     f"{', '.join(vocabulary.HOW)}."),
        click.option("--rate", type=click.FloatRange(10, _MAX_RATE), callback=_number,
                     help="Requests a second of each load (default: 200; of RabbitMQ 40)."),
        click.option("--window", type=click.FloatRange(2, _MAX_WINDOW), callback=_number,
                     help=f"Seconds of fault that are counted (default: {plans.WINDOW:g})."),
        click.option("--full", is_flag=True,
                     help="All faults, all variants, and the recovery (4 minutes at most)."),
        click.option("--quick", is_flag=True, help="Four faults."),
        click.option("--scenario", metavar="NAME|FILE",
                     help="One that ships (timedblock drill list), or a TOML file."),
        click.option("--inject", type=click.Choice(vocabulary.INJECTORS),
                     help="Where the faults are made (default: proxy)."),
    )  # fmt: skip


def _keeping() -> Callable[[_Command], _Command]:
    """The options of what becomes of the results."""
    return _all(
        click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path),
                     metavar="FILE", help="Where the results go besides --out."),
        click.option("--out", type=click.Path(file_okay=False, path_type=Path),
                     default=Path("timedblock-drill"), show_default=True, metavar="DIRECTORY",
                     help="The directory of what the drill writes."),
        click.option("--repeat", metavar="TIME", callback=_period,
                     help="Begin a run each so often (10m, 90s) until it is interrupted, each in a "
                     "directory of its own below --out."),
        click.option("--keep", type=click.IntRange(1, 10_000), default=50, show_default=True,
                     help="How many runs --repeat keeps."),
        click.option("--metrics", metavar="HOST:PORT", callback=_address,
                     help="Serve the results of --repeat to Prometheus here."),
        click.option("--graphite", metavar="HOST:PORT", callback=_address,
                     help="Send the results of --repeat to a Graphite here."),
    )  # fmt: skip


def _all(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Options in the order of --help."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@drill.command(name="memcache")
@_planning("A memcached to use (default: the drill starts one). Keys are the drill's own, and are "
           "deleted afterwards.")  # fmt: skip
@_keeping()
def memcache_drill(**options: Any) -> int:
    """Make every fault on the wire to memcached, under load, for raw pymemcache with its defaults,
    with 1 s timeouts, and for timedblock with its default policy.

    Exit code: 0 if timedblock's calls held their limit and requests went on; 1 if not; 2 if the
    drill could not be run; 130 if it was interrupted (what is finished is written).
    """
    return _run("memcache", options)


@drill.command(name="rabbitmq")
@_planning("A RabbitMQ to use, as the user guest (default: the drill starts one). Queues are the "
           "drill's own, and are deleted afterwards.")  # fmt: skip
@_keeping()
def rabbitmq_drill(**options: Any) -> int:
    """Make every fault on the wire to RabbitMQ, under load, for raw pika with its defaults, with
    1 s timeouts, and for timedblock with its default policy. pause and kill: --inject process.

    Exit code: 0 if timedblock's calls held their limit, no confirmed message was lost and requests
    went on; 1 if not; 2 if the drill could not be run; 130 if it was interrupted (what is finished
    is written).
    """
    return _run("rabbitmq", options)


@drill.command(name="rabbitmq-partition")
@click.option("--scenario", metavar="NAME|FILE", default="rabbitmq-partition", show_default=True,
              help="Another one of a cluster.")  # fmt: skip
@_keeping()
def partition_drill(**options: Any) -> int:
    """Drop the port by which the nodes of a RabbitMQ cluster speak with each other, at the node
    where the clients are: raw pika with its defaults, with 1 s timeouts, and timedblock.

    Needs root, Linux, iptables and an installed RabbitMQ: three nodes are started in network
    namespaces. Exit codes: as of the other drills.
    """
    return _run("rabbitmq-cluster", {**dict.fromkeys(_Wanted.__annotations__), **options})


def _run(store: str, options: dict[str, Any]) -> int:
    kept = _Kept(**{name: options.pop(name) for name in _Kept.__annotations__})  # type: ignore[typeddict-item]
    try:
        with interrupted_once():
            return _drill(store, _Wanted(**options), kept)  # type: ignore[typeddict-item]
    except DrillError as error:
        raise click.UsageError(f"the drill could not be run: {error}") from error


def _drill(store: str, wanted: _Wanted, kept: _Kept) -> int:
    scenario = _scenario(store, wanted)
    injector = wanted["inject"] or scenario.inject or injection.PROXY
    injection.check(scenario, injector)
    run = Run(scenario, injector, kept["out"], Console(), kept["json_file"])
    if kept["repeat"] is None:
        for name in ("metrics", "graphite"):
            if kept[name]:
                raise click.UsageError(f"--{name} goes with --repeat")
        run.check_files()
        return run.run().exit_code
    return Repeat(run, kept["repeat"], kept["keep"], kept["metrics"], kept["graphite"]).run()


def _scenario(store: str, wanted: _Wanted) -> Scenario:
    if wanted["scenario"] is None:
        return _planned(store, wanted)
    for name in ("faults", "rate", "window", "full", "quick"):
        if wanted[name]:
            raise click.UsageError(f"--{name} doesn't go with --scenario, which says it itself")
    scenario = toml.load(wanted["scenario"])
    for target in scenario.targets:
        if target.store != store:
            raise click.UsageError(f"{scenario.name} is a scenario of {target.store}, not {store}")
    if wanted["server"] is None:
        return scenario
    if len(scenario.targets) > 1:
        raise click.UsageError("--server is one, and the scenario has several targets")
    return replace(scenario, targets=(replace(scenario.targets[0], server=wanted["server"]),))


def _planned(store: str, wanted: _Wanted) -> Scenario:
    if wanted["full"] and wanted["quick"]:
        raise click.UsageError("--full and --quick: one of them")
    injector = wanted["inject"] or injection.PROXY
    target = Target(store, store, wanted["server"])
    names = wanted["faults"]
    kind = plans.full if wanted["full"] else plans.quick if wanted["quick"] else plans.usual
    plan = kind(find(store), target, injector, wanted["rate"], wanted["window"])
    return plan if names is None else plans.only(plan, find(store), names)
