"""``timedblock config``: the policies in force, and where each value came from."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from timedblock import config as _config
from timedblock import registry
from timedblock.config import ConfigError, Configuration, Setting
from timedblock.config.settings import spelling

_WIDE = 200


@click.command()
@click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Check and show this file in place of TIMEDBLOCK_CONFIG's.",
)
@click.option(
    "--import",
    "modules",
    multiple=True,
    metavar="MODULE",
    help="Import a module of yours and show the blocks that it makes; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def config(file: Path | None, modules: tuple[str, ...], as_json: bool) -> int:
    """Show the effective policy of every block, and where each value came from.

    Blocks live in a process: without --import this shows what the file and the environment say.

    Exit code: 2 if one of them can't be used.
    """
    try:
        configuration = _config.begin(file=file, live=False)
        for module in modules:
            _import(module)
        problems = _config.strangers(os.environ)
        problems += [str(error) for error in _problems(configuration)]
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        print(json.dumps(_config.as_json(configuration), indent=2))
    else:
        _show(configuration, bool(modules))
    if problems:
        raise click.UsageError("; ".join(problems))
    return 0


def _import(module: str) -> None:
    sys.path.insert(0, "")
    try:
        importlib.import_module(module)
    except ConfigError:
        raise
    except Exception as error:
        text = f"{module} can't be imported: {type(error).__name__}: {error}"
        raise click.UsageError(text) from error
    finally:
        sys.path.remove("")


def _problems(configuration: Configuration) -> list[ConfigError]:
    found = []
    for block in list(registry.BLOCKS):
        try:
            configuration.check(block)
        except ConfigError as error:
            found.append(error)
    return found


def _show(configuration: Configuration, blocks_too: bool) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = _WIDE  # a pipe has no edge to wrap at
    mode, snapshot = configuration.mode, configuration.snapshot
    console.print(f"mode: {mode.value} (from {mode.origin})", markup=False)
    if snapshot is not None:
        console.print(f"snapshot: {snapshot.value} (from {snapshot.origin})", markup=False)
    effective = configuration.effective()
    for one in effective:
        where = f" on {one.endpoint}" if one.endpoint else ""
        console.print(_table(f"{one.block}{where}", one.settings))
    known = {spelling(one.block) for one in effective}
    for name, found in configuration.tables().items():
        if spelling(name) not in known:
            note = ": no block of this name yet" if blocks_too else ""
            console.print(_table(f"{name}{note}", found))
    if not blocks_too:
        console.print("Blocks are made by a program: --import MODULE shows those of yours.")


def _table(title: str, settings: Mapping[str, Setting]) -> Table:
    table = Table("setting", "value", "from", title=_plain(title), title_justify="left")
    for key, setting in settings.items():
        table.add_row(key, _plain(_shown(setting.value)), _plain(setting.origin))
    return table


def _shown(value: Any) -> str:
    if value is None or value is False:
        return "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    """Text in which rich sees no markup: a table's name has brackets."""
    return text.replace("[", r"\[")
