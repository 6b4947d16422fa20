"""The audit of a pytest run (L5): ``pytest --timedblock-audit``."""

from __future__ import annotations

import os
from collections.abc import Sequence

from . import recorder, report


class PytestAudit:
    """Records in this process, and in those that it starts, from construction to `finish`."""

    def __init__(self, apps: Sequence[str]) -> None:
        self._recording = report.Recording(apps)
        self._before = dict(os.environ)
        os.environ.update(self._recording.environment(os.environ))
        recorder.start(self._recording.directory, tuple(apps))
        #: whether there is any
        self.found = False
        #: the report
        self.lines: list[str] = []

    def finish(self, ignore: Sequence[str], allow: Sequence[str]) -> bool:
        """Stop, and make the report; whether anything was found."""
        recorder.stop()
        recorded = self._recording.read()
        found, left_out = report.sites(recorded, ignore=ignore, allow=allow)
        self.found = bool(found)
        self.lines = report.lines(found, recorded, left_out)
        return self.found

    def close(self) -> None:
        """Put the environment back, and remove what was recorded."""
        recorder.stop()
        for name in ("PYTHONPATH", recorder.DIRECTORY, recorder.APPS):
            if name in self._before:
                os.environ[name] = self._before[name]
            else:
                os.environ.pop(name, None)
        self._recording.__exit__()
