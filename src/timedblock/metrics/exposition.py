"""The text of a scrape (L5): of this process, or of all workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .prometheus import register

# after it, for its message where prometheus-client isn't installed
from prometheus_client import CollectorRegistry  # isort: skip
from prometheus_client.exposition import choose_encoder  # isort: skip
from prometheus_client.registry import Collector  # isort: skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.core import Metric


def exposition(registry: CollectorRegistry | None) -> Callable[[str], tuple[bytes, str]]:
    """What makes (text, content type) for an ``Accept`` header.

    None: the metrics of the blocks, of all workers where prometheus-client is in its multiprocess
    mode (with what else is in its directory). A registry: what is in it.
    """
    if registry is not None:
        return lambda accept: _encode(registry, accept)
    from . import workers

    if workers.active():
        workers.publish()
        return _of_all_workers
    mine = CollectorRegistry()
    register(mine)
    return lambda accept: _encode(mine, accept)


def _encode(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    encoder, kind = choose_encoder(accept)
    return encoder(registry), kind


class _AllWorkers(Collector):
    def collect(self) -> Iterable[Metric]:
        from . import workers

        workers.write_now()
        return workers.merged()


def _of_all_workers(accept: str) -> tuple[bytes, str]:
    registry = CollectorRegistry()
    registry.register(_AllWorkers())
    return _encode(registry, accept)
