"""A drill again and again: the continuous test environment."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from timedblock.drill.errors import DrillError
from timedblock.drill.exporter import Exporter
from timedblock.drill.run import Run
from timedblock.drill.store import Address

_TIME = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>s|m|h)?")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
#: What makes the page of the last runs.
_TREND = "timedblock.drill.trend"
_RUN = re.compile(r"run-\d{8}T\d{6}Z(-\d+)?")


def seconds(text: str) -> float:
    """The seconds of ``90s``, ``10m``, ``1h`` or ``90``. ValueError names the text."""
    match = _TIME.fullmatch(text.strip())
    found = float(match["number"]) * _UNITS[match["unit"] or "s"] if match else 0.0
    if not 0 < found <= 7 * 86400:
        raise ValueError(f"{text!r} is not a time (such as 10m), of a week at most")
    return found


@dataclass(frozen=True)
class Repeat:
    """Runs ``run_once`` each ``every`` seconds, or at once after one that took longer, in
    directories of their own below its ``out``, of which the last ``keep`` stay."""

    run_once: Run
    every: float
    keep: int
    metrics: Address | None = None
    graphite: Address | None = None
    sleep: Callable[[float], None] = time.sleep

    def run(self) -> int:
        """Goes on until it is interrupted; the exit code of that. A run that fails, or can't be
        run, doesn't end it, but the first one's: DrillError."""
        exporter = Exporter(self.metrics, self.graphite)
        due, first = time.monotonic(), True
        with exporter:
            while True:
                code = self._once(exporter, first)
                first = False
                if code is not None:
                    return code
                due = max(due + self.every, time.monotonic())
                self.run_once.console.print(
                    f"Next run in {max(0.0, due - time.monotonic()):.0f} s.", highlight=False
                )
                self.sleep(max(0.0, due - time.monotonic()))

    def _once(self, exporter: Exporter, first: bool) -> int | None:
        """One run; its exit code if it was interrupted."""
        run = replace(self.run_once, out=self._directory())
        run.check_files()
        try:
            outcome = run.run()
        except DrillError as error:
            shutil.rmtree(run.out)
            if first:
                raise
            exporter.failed()
            run.console.print(f"FAILED  the drill could not be run: {error}", style="red")
            return None
        self._drop_old()
        self._write_trend()
        exporter.tell(outcome.results, outcome.judgement)
        return outcome.exit_code if outcome.interrupted else None

    def runs(self) -> list[Path]:
        """The directories of the runs, oldest first."""
        out = self.run_once.out
        return sorted(path for path in out.glob("run-*") if _RUN.fullmatch(path.name))

    def _directory(self) -> Path:
        stamp = f"run-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}"
        path, number = self.run_once.out / stamp, 1
        while path.exists():
            number += 1
            path = self.run_once.out / f"{stamp}-{number}"
        return path

    def _drop_old(self) -> None:
        for path in self.runs()[: -self.keep]:
            shutil.rmtree(path)

    def _write_trend(self) -> None:
        """That it can't be made takes nothing from what was measured."""
        if find_spec(_TREND) is None:
            return
        try:
            import_module(_TREND).write_trend(self.run_once.out)
        except (ImportError, DrillError) as error:
            self.run_once.console.print(f"No trend: {error}", style="yellow", highlight=False)
