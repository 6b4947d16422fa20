"""How every figure is measured, judged and printed.

- **Interleaved.** What is compared runs A B, then B A, then A B ..., at least 10 rounds (30 when
  a round is under 300 µs), so that a slow spell of the machine falls on both. A ratio is the
  median of the paired ratios, printed with its smallest and largest.
- **Absolutes** are the smallest of the rounds (what the code costs; the rest is what else the
  machine did), with the median beside; a *worst* is the largest seen. They hold on Python 3.11 on
  two idle cores and are printed beside a calibration loop; on other Pythons they are printed, not
  judged. With ``CI=true`` three times the absolute is allowed; ratios and counts stay as they are.
- The garbage collector runs between turns and never inside a round (``timeit`` switches it off).
- Costs of microseconds are measured in rounds of a millisecond or two and a hundred of them, so
  that some of them fall between what else the machine does.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import os
import platform
import statistics
import sys
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Kind = Literal["absolute", "ratio", "count", "shown"]
Bound = Literal["<=", ">=", "=="]
Round = Callable[[], float]

JUDGED_PYTHON = (3, 11)
CI_FACTOR = 3.0
SHORT_ROUND = 300e-6

console = Console(width=None if sys.stdout.isatty() else 140)


@dataclass(frozen=True)
class Figure:
    """One measured number. ``holds`` is None when it is printed without being judged."""

    name: str
    value: float
    unit: str
    kind: Kind = "shown"
    bound: Bound | None = None
    reach: float | None = None
    holds: bool | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


def _satisfies(value: float, bound: Bound, reach: float) -> bool:
    if bound == "<=":
        return value <= reach
    if bound == ">=":
        return value >= reach
    return value == reach


def absolute(
    name: str,
    value: float,
    unit: str,
    at_most: float,
    *,
    note: str = "",
    high: float | None = None,
) -> Figure:
    """A time that must not exceed ``at_most`` (same unit); judged on Python 3.11 only."""
    allowed = at_most * (CI_FACTOR if in_ci() else 1.0)
    judged = sys.version_info[:2] == JUDGED_PYTHON
    if not judged:
        note = f"{note}; not judged on this Python".lstrip("; ")
    holds = _satisfies(value, "<=", allowed) if judged else None
    return Figure(name, value, unit, "absolute", "<=", allowed, holds, value, high, note)


def ratio(
    name: str,
    ratios: Sequence[float],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    note: str = "",
) -> Figure:
    """The median of paired ratios, with the smallest and largest; judged if a bound is given."""
    value, low, high = statistics.median(ratios), min(ratios), max(ratios)
    bound: Bound | None = "<=" if at_most is not None else ">=" if at_least is not None else None
    reach = at_most if at_most is not None else at_least
    holds = None if bound is None or reach is None else _satisfies(value, bound, reach)
    kind: Kind = "shown" if bound is None else "ratio"
    return Figure(name, value, "x", kind, bound, reach, holds, low, high, note)


def cheaper(
    name: str,
    theirs: Sequence[float],
    ours: Sequence[float],
    at_least: float | None,
    note: str = "",
) -> Figure:
    """The smallest round of theirs over the smallest of ours, with the paired ratios' spread."""
    value, spread = min(theirs) / min(ours), paired(theirs, ours)
    holds = None if at_least is None else _satisfies(value, ">=", at_least)
    kind: Kind = "shown" if at_least is None else "ratio"
    bound: Bound | None = None if at_least is None else ">="
    note = f"min of each; {note}"
    return Figure(name, value, "x", kind, bound, at_least, holds, min(spread), max(spread), note)


def count(
    name: str, value: float, reach: float, *, bound: Bound = "==", unit: str = "", note: str = ""
) -> Figure:
    """A number that doesn't depend on the machine: judged everywhere, in CI too."""
    holds = _satisfies(value, bound, reach)
    return Figure(name, value, unit, "count", bound, reach, holds, note=note)


def shown(
    name: str,
    value: float,
    unit: str,
    *,
    low: float | None = None,
    high: float | None = None,
    note: str = "",
) -> Figure:
    """A number printed for comparison, without a bound."""
    return Figure(name, value, unit, low=low, high=high, note=note)


def in_ci() -> bool:
    """True when the environment says so (``CI=true``)."""
    return os.environ.get("CI", "").lower() in {"true", "1"}


# --------------------------------------------------------------------------- measuring


def timed(statement: str, names: Mapping[str, Any], *, round_seconds: float = 0.02) -> Round:
    """A round of ``statement``: repeated for about ``round_seconds``, seconds of one returned."""
    timer = timeit.Timer(statement, globals=dict(names))
    number = 1
    # the smallest of a few, so that one pause of the machine doesn't make every round short
    while (spent := min(timer.repeat(5, number))) < round_seconds / 10:
        number *= 4
    number = max(1, round(number * round_seconds / spent))
    return lambda: timer.timeit(number) / number


def interleave(rounds: Mapping[str, Round], *, repeat: int | None = None) -> dict[str, list[float]]:
    """Run the rounds in turn, the order reversed each time, and return what each gave."""
    samples: dict[str, list[float]] = {name: [] for name in rounds}
    order = list(rounds)
    started = time.perf_counter()
    for name in order:  # one warm-up round each: caches, pools, learnt limits
        rounds[name]()
    if repeat is None:
        short = (time.perf_counter() - started) / len(order) < SHORT_ROUND
        repeat = 30 if short else 15
    for turn in range(repeat):
        if turn % 10 == 0:
            gc.collect()
        for name in order:
            samples[name].append(rounds[name]())
        order.reverse()
    return samples


def paired(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """The ratio ``over / under`` of each round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def median_note(samples: Sequence[float], scale: float, unit: str) -> str:
    """The note that stands beside a smallest round."""
    return f"median {statistics.median(samples) * scale:.3g} {unit}"


def _calibration_round() -> float:
    started = time.perf_counter()
    total = 0
    for number in range(100_000):
        total += number & 7
    return (time.perf_counter() - started) / 100_000


def calibration() -> dict[str, float]:
    """Nanoseconds of one turn of a fixed pure-Python loop: how fast and how quiet it is here."""
    rounds = [_calibration_round() for _ in range(15)]
    return {
        "min_ns": round(min(rounds) * 1e9, 2),
        "median_ns": round(statistics.median(rounds) * 1e9, 2),
    }


# --------------------------------------------------------------------------- reporting


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "ci": in_ci(),
    }


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.4g}"


def _spread(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"{_number(figure.low)} - {_number(figure.high)}"


def print_table(figures: Sequence[Figure], calibrations: Mapping[str, Mapping[str, float]]) -> None:
    """One table of everything, and the calibration beside it."""
    table = Table(title="timedblock: figures", title_justify="left")
    for column in ("figure", "value", "reach", "holds", "min - max", "note"):
        table.add_column(column, overflow="fold", justify="right" if column == "value" else "left")
    for figure in figures:
        reach = f"{figure.bound} {_number(figure.reach)}" if figure.bound else ""
        holds = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: "-"}[figure.holds]
        value = f"{_number(figure.value)} {figure.unit}".strip()
        table.add_row(figure.name, value, reach, holds, _spread(figure), escape(figure.note))
    console.print(table)
    for question, loop in calibrations.items():
        console.print(
            f"calibration loop ({question}): {loop['min_ns']} ns a turn, "
            f"median {loop['median_ns']} ns"
        )
    console.print(" · ".join(f"{key} {value}" for key, value in machine().items()))


def write_json(
    path: Path, figures: Sequence[Figure], calibrations: Mapping[str, Mapping[str, float]]
) -> None:
    """The same figures for a program to read."""
    document = {
        "machine": machine(),
        "calibration": calibrations,
        "figures": [asdict(figure) for figure in figures],
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> tuple[list[Figure], dict[str, dict[str, float]]]:
    """What :func:`write_json` wrote."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return [Figure(**figure) for figure in document["figures"]], document["calibration"]


def exit_code(figures: Sequence[Figure]) -> int:
    """1 if a judged figure doesn't hold."""
    return int(any(figure.holds is False for figure in figures))


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every question has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    return made


def quiet_pika() -> None:
    """Faults are made on purpose, and pika tells of every connection that fails."""
    logging.getLogger("pika").setLevel(logging.CRITICAL)


def main(
    question: str,
    description: str | None,
    measure: Callable[[argparse.Namespace], list[Figure]],
    options: argparse.ArgumentParser | None = None,
) -> int:
    """Measure one question, print its table and return the exit code."""
    arguments = (options or parser(description)).parse_args()
    logging.getLogger("timedblock").addHandler(logging.NullHandler())  # breakers open on purpose
    before = calibration()
    figures = measure(arguments)
    after = calibration()
    calibrations = {question: min(before, after, key=lambda loop: loop["min_ns"])}
    print_table(figures, calibrations)
    if arguments.json:
        write_json(arguments.json, figures, calibrations)
    return exit_code(figures)
