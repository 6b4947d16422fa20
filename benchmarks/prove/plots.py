"""One plot a figure, for the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot

from . import rows
from .worlds import DEFAULTS, SETTINGS, SHAPES

# the same picture for the same data
matplotlib.rcParams.update({"svg.hashsalt": "timedblock", "font.size": 9, "svg.fonttype": "none"})


def draw(runs: Any, folder: Path) -> None:
    """Draw them all into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _stationary(runs, folder)
    for factor in (4.0, 20.0):
        _steps(runs, folder, factor)
    _late_answers(runs, folder)
    _outages(runs, folder)
    _against_constants(runs, folder)
    _loads(runs, folder)
    _studies(runs, folder)


def _bars(axis: Any, groups: list[str], heights: dict[str, list[float]], reach: float) -> None:
    """Beside each other for each group, and a line where they are to be."""
    width = 0.8 / len(heights)
    for number, (label, values) in enumerate(heights.items()):
        places = [index + (number - (len(heights) - 1) / 2) * width for index in range(len(groups))]
        axis.bar(places, values, width, label=label)
    axis.set_xticks(range(len(groups)), groups)
    axis.axhline(reach, color="grey", linestyle=":")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _late_answers(runs: Any, folder: Path) -> None:
    shares = {}
    for setting in SETTINGS:
        each = [runs.of(rows.step, shape, 4.0, setting) for shape in SHAPES]
        shares[setting.name] = [
            100
            * sum(one.exact * one.cuts for one in done if one.cuts)
            / max(1, sum(one.cuts for one in done))
            for done in each
        ]
    figure, axis = pyplot.subplots(figsize=(9, 3))
    _bars(axis, list(SHAPES), shares, 90)
    axis.set(ylabel="%", ylim=(0, 102), title="cut calls that end with an exact latency")
    _save(figure, folder / "late.svg")


def _against_constants(runs: Any, folder: Path) -> None:
    ratios = {
        setting.name: [
            max(one.ratio for one in runs.of(rows.stationary, shape, setting)) for shape in SHAPES
        ]
        for setting in SETTINGS
    }
    figure, axis = pyplot.subplots(figsize=(9, 3))
    _bars(axis, list(SHAPES), ratios, 1.3)
    axis.set(title="learnt limit / best constant in hindsight")
    _save(figure, folder / "constant.svg")


def _loads(runs: Any, folder: Path) -> None:
    kinds = ["silence", "refuse", "overload"]
    loads = {
        label: [max(one.ratio for one in runs.of(rows.dead, kind, guarded)) for kind in kinds]
        for guarded, label in (("alone", "no breaker"), ("breaker", "default breaker"))
    }
    figure, axis = pyplot.subplots(figsize=(9, 3))
    _bars(axis, kinds, loads, 1.1)
    axis.set(title="attempts that reach a store in trouble / calls")
    _save(figure, folder / "load.svg")


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _stationary(runs: Any, folder: Path) -> None:
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3), sharey=True)
    for axis, setting in zip(axes, SETTINGS, strict=True):
        for shape in SHAPES:
            one = runs.of(rows.stationary, shape, setting)[0]
            axis.plot([at for at, _ in one.curve], [100 * s for _, s in one.curve], label=shape)
        axis.set(title=setting.name, xlabel="minute")
        axis.axhline(0.5 if setting is DEFAULTS else 1.0, color="grey", linestyle=":")
    axes[0].set_ylabel("false timeouts, %")
    axes[0].legend()
    _save(figure, folder / "stationary.svg")


def _two(title: str) -> Any:
    figure, (good, limit) = pyplot.subplots(1, 2, figsize=(9, 3))
    good.set(title=title, xlabel="s", ylabel="calls answered, %", ylim=(0, 102))
    limit.set(title="learnt limit", xlabel="s", ylabel="s", yscale="log")
    return figure, good, limit


def _steps(runs: Any, folder: Path, factor: float) -> None:
    figure, good, limit = _two(f"{factor:g} × latency after 5 s")
    for shape in SHAPES:
        if factor == 20.0 and shape == "bimodal":
            continue
        one = runs.of(rows.step, shape, factor, DEFAULTS)[0]
        good.plot([at for at, _ in one.good], [100 * g for _, g in one.good], label=shape)
        limit.plot([at for at, _ in one.limits], [x for _, x in one.limits], label=shape)
    good.legend()
    _save(figure, folder / f"step-{factor:g}.svg")


def _outages(runs: Any, folder: Path) -> None:
    figure, good, limit = _two("outage from 5 to 25 s")
    for kind in ("silence", "refuse"):
        one = runs.of(rows.outage, kind, DEFAULTS)[0]
        good.plot([at for at, _ in one.good], [100 * g for _, g in one.good], label=kind)
        limit.plot([at for at, _ in one.limits], [x for _, x in one.limits], label=kind)
    good.legend()
    _save(figure, folder / "outage.svg")


def _studies(runs: Any, folder: Path) -> None:
    figure, axis = pyplot.subplots(figsize=(9, 3))
    for guarded, budget in (("alone", True), ("alone", False), ("breaker", True)):
        one = runs.of(rows.metastable, guarded, budget)[0]
        label = ("budget" if budget else "no budget") + (
            ", breaker" if guarded == "breaker" else ""
        )
        axis.plot([at for at, _ in one.good], [100 * g for _, g in one.good], label=label)
    axis.axvspan(rows.TRIGGER_AT - 5, rows.TRIGGER_AT - 5 + rows.TRIGGER, color="0.9")
    axis.set(xlabel="s", ylabel="calls answered, %", title="an overload of 10 s (grey)")
    axis.legend()
    _save(figure, folder / "metastable.svg")
