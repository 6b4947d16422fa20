"""Scenarios in TOML files: those that ship, and a user's own.

Every error of a file is one ScenarioError: ``FILE:LINE: KEY: what is wrong``. What is missing from
the whole of a file is missing from its line 1.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from timedblock import faults
from timedblock.drill import injection
from timedblock.drill.errors import ScenarioError
from timedblock.drill.scenario import (
    FAULT_FREE,
    MAX_SECONDS,
    Bounds,
    Episode,
    Load,
    Scenario,
    Step,
    Target,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SHIPPED = files("timedblock.drill") / "scenarios"
_SCENARIO = {
    "name", "title", "variants", "recovery", "baseline", "in_order", "inject", "targets", "load",
    "timeline", "episodes", "verdicts",
}  # fmt: skip
_STEP = {"fault", "at", "for", "target", "times", "every"}
_MOST_TIMES = 1000

_Path = tuple[str | int, ...]
#: The steps of a scenario, and where in the document each is written.
_Placed = Sequence[tuple[_Path, Step]]


def names() -> list[str]:
    """The scenarios that ship."""
    found = (entry.name for entry in _SHIPPED.iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def load(name: str) -> Scenario:
    """The scenario that ships by this name, or that of a file. ScenarioError if there is none, or
    it is malformed."""
    if name in names():
        return parse((_SHIPPED / f"{name}.toml").read_text("utf-8"), f"{name}.toml", name)
    file = Path(name)
    try:
        return parse(file.read_text("utf-8"), name, file.stem)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        known = ", ".join(names())
        raise ScenarioError(f"no scenario {name!r}: {reason}; those that ship: {known}") from None
    except UnicodeDecodeError:
        raise ScenarioError(f"{name}: not UTF-8 text") from None


def parse(text: str, where: str, name: str) -> Scenario:
    """The scenario of a TOML text; ``where`` names it in errors, ``name`` is its own unless it
    says so."""
    data = _read(text, where)
    try:
        return _scenario(data, name)
    except _Misplaced as error:
        line = line_of(text, error.path) or 1
        spelt = ".".join(str(part) for part in error.path if isinstance(part, str))
        raise ScenarioError(f"{where}:{line}: {spelt}: {error.message}") from None


def _read(text: str, where: str) -> dict[str, Any]:
    try:
        data: dict[str, Any] = tomllib.loads(text)
        return data
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        at = int(line[1]) if line else max(1, len(text.splitlines()))  # "at end of document"
        raise ScenarioError(f"{where}:{at}: not TOML: {error}") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 1,000 brackets
        at = _line_that_raises(type(error), text)
        raise ScenarioError(f"{where}:{at}: cannot be read: {error}") from None


def _line_that_raises(kind: type[Exception], text: str) -> int:
    """The parser doesn't tell: it is the first line of which it says so alone, or 1."""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            tomllib.loads(line)
        except tomllib.TOMLDecodeError:
            continue
        except kind:
            return number
    return 1


class _Misplaced(Exception):
    """What is wrong at a path of the document."""

    def __init__(self, path: _Path, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


@contextmanager
def _at(*path: str | int, placed: _Placed = ()) -> Iterator[None]:
    """Errors of the block are of keys below ``path``, or below the step that they are of."""
    try:
        yield
    except ScenarioError as error:
        place = next((where for where, step in placed if step is error.step), path)
        raise _Misplaced((*place, *([error.key] if error.key else [])), error.message) from None


def _only(table: object, known: Collection[str], *path: str | int) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise _Misplaced(path, f"must be a table, not {table!r}")
    for key in table:
        if key not in known:
            raise _Misplaced((*path, key), f"unknown key; known: {', '.join(sorted(known))}")
    return table


def _tables(value: object, *path: str | int) -> list[Any]:
    if not isinstance(value, list):
        raise _Misplaced(path, f"must be an array of tables, not {value!r}")
    return value


def _typed(table: Mapping[str, Any], key: str, kind: type, *path: str | int) -> Any:
    value = table[key]
    if not isinstance(value, kind):
        wanted = {str: "text", bool: "true or false", list: "an array"}[kind]
        raise _Misplaced((*path, key), f"must be {wanted}, not {value!r}")
    return value


def _scenario(data: dict[str, Any], name: str) -> Scenario:
    _only(data, _SCENARIO)
    given: dict[str, Any] = {"name": name}
    for key, kind in (("name", str), ("title", str), ("inject", str), ("baseline", bool),
                      ("in_order", bool)):  # fmt: skip
        if key in data:
            given[key] = _typed(data, key, kind)
    if "recovery" in data:
        given["recovery"] = data["recovery"]
    if "variants" in data:
        given["variants"] = tuple(_typed(data, "variants", list))
    if "targets" in data:
        tables = enumerate(_tables(data["targets"], "targets"))
        given["targets"] = tuple(_target(one, "targets", number) for number, one in tables)
    if "load" in data:
        with _at("load"):
            given["load"] = Load(**_only(data["load"], _fields(Load), "load"))
    if "verdicts" in data:
        given["bounds"] = _bounds(data["verdicts"], "verdicts")
    if not given["name"]:
        raise _Misplaced(("name",), "must not be empty")
    episodes, placed = _episodes(data, given["name"])
    with _at(placed=placed):
        scenario = Scenario(episodes=episodes, **given)
        if scenario.inject is not None:
            injection.check(scenario, scenario.inject)
        return scenario


def _fields(kind: type) -> set[str]:
    return set(kind.__dataclass_fields__)  # type: ignore[attr-defined]


def _target(table: object, *path: str | int) -> Target:
    given = dict(_only(table, _fields(Target), *path))
    if "server" in given:
        given["server"] = _address(_typed(given, "server", str, *path), *path, "server")
    with _at(*path):
        return Target(**given)


def _address(text: str, *path: str | int) -> tuple[str, int]:
    try:
        return address(text)
    except ValueError as error:
        raise _Misplaced(path, str(error)) from None


def address(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT, an IPv6 host in brackets. ValueError names the text."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{text!r} is not HOST:PORT.")
    return host, int(port)


def _bounds(table: object, *path: str | int) -> Bounds:
    with _at(*path):
        return Bounds(**_only(table, _fields(Bounds), *path))


def _episodes(data: Mapping[str, Any], name: str) -> tuple[tuple[Episode, ...], _Placed]:
    """The episodes, and where their steps are."""
    if "timeline" in data:
        if "episodes" in data:
            raise _Misplaced(("episodes",), "there is a timeline: give either, not both")
        episode, placed = _episode({"name": name, "timeline": data["timeline"]})
        return (episode,), placed
    tables = enumerate(_tables(data.get("episodes", []), "episodes"))
    found = [_episode(one, "episodes", number) for number, one in tables]
    return tuple(episode for episode, _ in found), [one for _, placed in found for one in placed]


def _episode(table: object, *path: str | int) -> tuple[Episode, _Placed]:
    given = _only(table, {"name", "title", "timeline", "verdicts"}, *path)
    if "name" not in given:
        raise _Misplaced((*path, "name"), "is missing")
    name = _typed(given, "name", str, *path)
    if name == FAULT_FREE:
        raise _Misplaced((*path, "name"), f"{name!r} is the name of the run without a fault")
    below = enumerate(_tables(given.get("timeline", []), *path, "timeline"))
    placed = [one for number, step in below for one in _steps(step, *path, "timeline", number)]
    if not placed:
        raise _Misplaced((*path, "timeline"), "there is no fault in it")
    bounds = _bounds(given["verdicts"], *path, "verdicts") if "verdicts" in given else None
    title = _typed(given, "title", str, *path) if "title" in given else ""
    with _at(*path, placed=placed):
        return Episode(name, tuple(step for _, step in placed), bounds, title), placed


def _steps(table: object, *path: str | int) -> _Placed:
    """A step, or as many as it says."""
    given = _only(table, _STEP, *path)
    for key in ("fault", "at", "for"):
        if key not in given:
            raise _Misplaced((*path, key), "is missing")
    try:
        fault = faults.parse(_typed(given, "fault", str, *path))
    except ValueError as error:
        raise _Misplaced((*path, "fault"), str(error)) from None
    times, every = _repetition(given, *path)
    with _at(*path):
        first = Step(fault, given["at"], given["for"], given.get("target"))
        again = (first.at + every * number for number in range(times))
        return [(path, Step(fault, at, first.seconds, first.target)) for at in again]


def _repetition(given: Mapping[str, Any], *path: str | int) -> tuple[int, float]:
    times, every = given.get("times", 1), given.get("every", 0.0)
    if isinstance(times, bool) or not isinstance(times, int) or not 1 <= times <= _MOST_TIMES:
        raise _Misplaced((*path, "times"), f"must be from 1 to {_MOST_TIMES}, not {times!r}")
    if times > 1 and "every" not in given:
        raise _Misplaced((*path, "every"), "is missing: the seconds between two beginnings")
    number = isinstance(every, (int, float)) and not isinstance(every, bool)
    if not (number and 0 <= every <= MAX_SECONDS):
        says = f"must be seconds from 0 to {MAX_SECONDS:g}, not {every!r}"
        raise _Misplaced((*path, "every"), says)
    return times, float(every)


# Where a key stands. The parser doesn't tell, so the line is looked for: that of the deepest part
# of the path that is written as a table's header or as a key of its own.

_HEADER = re.compile(r"\s*(\[\[?)\s*([\w.\"-]+)\s*\]\]?")
_KEY = re.compile(r"\s*([\w.\"-]+)\s*=")


def line_of(text: str, path: _Path) -> int | None:
    """The line, from 1, of the key at ``path``, or of the table that it is missing from."""
    best, found = -1, None
    counts: dict[tuple[str, ...], int] = {}
    here: _Path = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            here = _table(header[2].replace('"', ""), header[1] == "[[", counts)
            candidate = here
        elif key := _KEY.match(line):
            candidate = (*here, *key[1].replace('"', "").split("."))
        else:
            continue
        common = min(len(path), len(candidate))
        if path[:common] == candidate[:common] and common > best:
            best, found = common, number
    return found


def _table(dotted: str, array: bool, counts: dict[tuple[str, ...], int]) -> _Path:
    """The path of a header, with the numbers of the arrays of tables that it is in."""
    parts = tuple(dotted.split("."))
    if array:
        counts[parts] = counts.get(parts, -1) + 1
        for deeper in [one for one in counts if one[: len(parts)] == parts and one != parts]:
            del counts[deeper]
    path: list[str | int] = []
    for depth, part in enumerate(parts, 1):
        path.append(part)
        if parts[:depth] in counts:
            path.append(counts[parts[:depth]])
    return tuple(path)
