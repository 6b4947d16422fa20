"""The drill's main chart as one picture: every fault and variant on the same scales (PNG)."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from timedblock.drill import sentences, series
from timedblock.drill.dots import Chosen, choose, decades
from timedblock.drill.errors import DrillError
from timedblock.drill.history import OUTCOMES, PICTURE
from timedblock.drill.html import NEEDS_EXTRA
from timedblock.drill.loads import Drill, Load, read_drill
from timedblock.drill.report import seconds
from timedblock.drill.verdict import is_fault_free

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Dots of one of its small charts, at most; failures are never left out.
_DOTS = 4_000
#: Inches: of one small chart, between them, and on the four sides of all.
_WIDTH, _HEIGHT, _GAP = 4.2, 1.4, 0.28
_LEFT, _RIGHT, _TOP, _BOTTOM = 1.0, 0.15, 1.05, 0.85
_DPI = 110
#: An outcome's colour and marker, as in the HTML report.
_LOOKS = {
    "ok": ("#0072b2", ".", 3.0),
    "unavailable": ("#cf6f00", "D", 1.6),
    "wrong": ("#c2260f", "x", 4.0),
    "dishonest": ("#aa3377", "s", 3.0),
    "hung": ("#16191d", "^", 6.0),
}
_WORDS = {"wrong": "wrong answer", "dishonest": "another error"}
_LIMIT, _LEARNT, _FAULT, _SOFT = "#b3261e", "#0f7b3f", "#f1ede4", "#57606a"


def write_picture(directory: Path, drill: Drill | None = None) -> Path:
    """Writes ``report.png`` beside the records of the drill in ``directory`` and gives its path.

    ``drill`` are the records, if they were read already. DrillError if they can't be read or the
    picture can't be written; ImportError, with the pip line, without matplotlib.
    """
    if find_spec("matplotlib") is None:
        raise ImportError(NEEDS_EXTRA)
    drill = drill or read_drill(directory)
    if not drill.loads:
        raise DrillError(f"{str(directory)!r} has no calls to draw")
    path = directory / PICTURE
    part = path.with_name(f"{path.name}.part")
    try:
        draw(drill).savefig(part, format="png", dpi=_DPI)
        part.replace(path)
    except OSError as error:
        raise DrillError(f"cannot write {str(path)!r}: {error.strerror}") from error
    return path


def draw(drill: Drill) -> Figure:
    """A row a fault, a column a variant: each call a dot, on the same scales."""
    faults = sorted(drill.faults, key=is_fault_free)
    variants = drill.variants
    figure, grid = _grid(len(faults), len(variants))
    low, high = decades(drill.durations())
    for row, fault in zip(grid, faults, strict=True):
        for axes, variant in zip(row, variants, strict=True):
            _frame(axes, drill, fault, variant, low, high)
            load = drill.loads.get((fault, variant))
            if load is not None and len(load):
                _load(axes, drill, load)
        row[0].set_ylabel(sentences.title(fault), fontweight="bold")
    for axes, variant in zip(grid[0], variants, strict=True):
        axes.set_title(variant, fontsize=12, fontweight="bold", loc="left")
    for axes in grid[-1]:
        axes.set_xlabel("seconds", color=_SOFT, fontsize=9)
    _words(figure, drill)
    return figure


def _grid(rows: int, columns: int) -> tuple[Figure, Any]:
    """The figure and its axes. Their places are computed here: matplotlib's own layout takes
    seconds for so many."""
    # Not pyplot: it keeps figures, and would look for a display.
    from matplotlib.figure import Figure

    width = _LEFT + columns * _WIDTH + (columns - 1) * _GAP + _RIGHT
    height = _TOP + rows * _HEIGHT + (rows - 1) * _GAP + _BOTTOM
    figure = Figure(figsize=(width, height))
    places = {
        "left": _LEFT / width,
        "right": 1 - _RIGHT / width,
        "top": 1 - _TOP / height,
        "bottom": _BOTTOM / height,
        "wspace": _GAP / _WIDTH,
        "hspace": _GAP / _HEIGHT,
    }
    # Each has its own axes with the same limits: shared ones cost more than all the dots.
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=places)


def _words(figure: Figure, drill: Drill) -> None:
    """The verdict above, the key below."""
    width, height = figure.get_size_inches()
    text = fill(sentences.verdict(drill), int(width * 9))
    figure.text(_LEFT / width, 1 - 0.2 / height, text, fontsize=14, fontweight="bold", va="top")
    figure.legend(handles=_key(), loc="lower center", ncols=8, frameon=False)


def _frame(axes: Axes, drill: Drill, fault: str, variant: str, low: float, high: float) -> None:
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_xlim(0, drill.times(fault).end or None)
    marks = _decades(low, high)
    labels = [_tick(mark) if variant == drill.variants[0] else "" for mark in marks]
    axes.set_yticks(marks, labels)
    axes.minorticks_off()
    axes.grid(color="#e9edf1", linewidth=0.8)
    axes.tick_params(labelsize=8, length=2, colors=_SOFT)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color("#d8dee4")
    for _, since, until in drill.spans(fault):
        axes.axvspan(since, until, facecolor=_FAULT, zorder=0)


def _decades(low: float, high: float) -> list[float]:
    return [10.0**n for n in range(round(math.log10(low)), round(math.log10(high)) + 1)]


def _tick(value: float) -> str:
    if value >= 1:
        return f"{value:g} s"
    return f"{value * 1e3:g} ms" if value >= 1e-3 else f"{value * 1e6:g} µs"


def _load(axes: Axes, drill: Drill, load: Load) -> None:
    chosen = choose(load, _DOTS)
    for outcome, name in enumerate(OUTCOMES):
        _dots(axes, load, chosen, outcome, name)
    row = drill.row(load.fault, load.variant)
    if row is not None:
        axes.axhline(row["limit"], color=_LIMIT, linestyle="--", linewidth=1)
        worst = f"{'> ' if row.get('hung') else ''}{seconds(row['worst'])}"
        text = f"worst {worst}, goodput {sentences.percent(row['goodput'])}"
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
        axes.text(0.99, 0.05, text, transform=axes.transAxes, ha="right", fontsize=8, bbox=box)
    at, limits = series.learnt_limit(load.samples)
    axes.step(at, limits, where="post", color=_LEARNT, linewidth=1.4)


def _dots(axes: Axes, load: Load, chosen: Chosen, outcome: int, name: str) -> None:
    mine = [n for n in chosen.positions if load.outcome[n] == outcome]
    if mine:
        colour, marker, size = _LOOKS[name]
        axes.plot(
            [load.began[n] for n in mine],
            [load.ended[n] - load.began[n] for n in mine],
            marker,
            color=colour,
            clip_on=False,
            markersize=size,
            markeredgewidth=0.8 if marker == "x" else 0,
        )


def _key() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    dots = [
        Line2D(
            [],
            [],
            color=colour,
            marker=marker,
            linestyle="none",
            markersize=6,
            label=_WORDS.get(name, name),
        )
        for name, (colour, marker, _) in _LOOKS.items()
    ]
    return [
        *dots,
        Line2D([], [], color=_LIMIT, linestyle="--", label="limit of a call"),
        Line2D([], [], color=_LEARNT, label="learnt limit"),
        Patch(facecolor=_FAULT, label="fault on"),
    ]
