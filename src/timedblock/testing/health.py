"""Waiting for what a health endpoint says."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from .. import clock as _clock
from ..deadline import check_seconds
from ..net.workers import Full, Workers
from ..stats import health

#: Seconds between two looks.
_PAUSE = 0.02
#: Seconds that a look may take at the least, when the time is nearly over.
_PATIENCE = 0.25
_MOST_BYTES = 1_000_000
_WORKERS = Workers("health", 8)
# A proxy of the environment is not on the way to a service under test.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Health:
    """What `timedblock.health` says in this process, or a service at its ``/health``.

    Args:
        url: of an endpoint whose JSON has a ``status``, such as `timedblock.monitor` serves; None:
            this process.
        slack: seconds added to every `within` (a slow machine's).
    """

    def __init__(self, url: str | None = None, slack: float = 0.0) -> None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError(f"the URL of a health endpoint is http:// or https://, not {url!r}")
        self.url = url
        self._slack = slack

    def __call__(self, url: str) -> Health:
        """The health of the service that answers at `url`."""
        return Health(url, self._slack)

    def read(self, within: float = 1.0) -> dict[str, Any]:
        """What it says now. TimeoutError or OSError if there is no answer within so many seconds,
        ValueError if it is no health."""
        if self.url is None:
            return health()
        url = self.url
        try:
            job = _WORKERS.submit(lambda: _fetch(url, within))
        except Full:
            raise TimeoutError("the looks before are still waiting for their answers") from None
        if not job.wait(_clock.SYSTEM, within):
            raise TimeoutError(f"no answer within {within:g} s")
        return job.outcome()

    def becomes(
        self, status: str, within: float = 2.0, *, doing: Callable[[], object] | None = None
    ) -> float:
        """Wait until it says `status`; returns after how many seconds it did.

        Args:
            status: ``"ok"``, ``"degraded"`` or ``"down"``.
            within: seconds.
            doing: called before each look: the traffic that a breaker needs to see a failure.

        Raises:
            AssertionError: it didn't; tells what it said instead.
        """
        check_seconds("within", within)
        began = time.monotonic()
        until = began + within + self._slack
        said: list[str] = []
        while True:
            if doing is not None:
                doing()
            left = until - time.monotonic()
            found, answer = self._look(max(_PATIENCE, left))
            # A look that began in time may end a moment later: one that says it is enough.
            if found == status and (left > 0 or not said):
                return time.monotonic() - began
            if not said or said[-1] != found:
                said.append(found)
            if time.monotonic() >= until:
                raise AssertionError(
                    f"health did not become {status!r} within {within:g} s: "
                    f"it was {', then '.join(said)}; now: {answer}"
                )
            time.sleep(_PAUSE)

    def _look(self, seconds: float) -> tuple[str, Any]:
        try:
            answer = self.read(min(seconds, 1.0))
        except (OSError, ValueError) as error:
            return f"no answer ({type(error).__name__})", str(error)
        return str(answer["status"]), answer


def _fetch(url: str, seconds: float) -> dict[str, Any]:
    try:
        with _OPENER.open(url, timeout=seconds) as response:
            body = response.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:  # 503 has the same body
        with error:
            body = error.read(_MOST_BYTES)
    answer = json.loads(body)
    if not isinstance(answer, dict) or "status" not in answer:
        raise ValueError(f"{url} has no status")
    return answer
