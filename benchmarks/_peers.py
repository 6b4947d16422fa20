"""The same protection made with other libraries: what a team would otherwise write.

Each maker wraps a function and returns the guarded one; a peer that isn't installed (interlock-cb
needs Python 3.11) is left out and said so.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, util
from typing import Any

Work = Callable[..., Any]
Maker = Callable[[Work], Work]

LIMIT = 1.0
ATTEMPTS = 3
BULKHEAD = 64


def installed(module: str) -> bool:
    """Whether a peer can be imported here."""
    return util.find_spec(module) is not None


def version(distribution: str) -> str:
    """``pyresilience 0.4.1``."""
    return f"{distribution} {metadata.version(distribution)}"


def pyresilience(work: Work, *, timeout: bool = True) -> Work:
    """pyresilience with timeout, retry, breaker, bulkhead and a constant fallback."""
    from pyresilience import (
        BulkheadConfig,
        CircuitBreakerConfig,
        FallbackConfig,
        RetryConfig,
        TimeoutConfig,
        resilient,
    )

    guard: Work = resilient(
        timeout=TimeoutConfig(seconds=LIMIT) if timeout else None,
        retry=RetryConfig(max_attempts=ATTEMPTS),
        circuit_breaker=CircuitBreakerConfig(),
        bulkhead=BulkheadConfig(max_concurrent=BULKHEAD),
        fallback=FallbackConfig(handler=0),
    )
    wrapped: Work = guard(work)
    return wrapped


def pybreaker_tenacity_pool(work: Work) -> Work:
    """pybreaker around tenacity around a thread pool's ``result(timeout)``."""
    import pybreaker
    import tenacity

    breaker = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=30)
    retrying = tenacity.Retrying(stop=tenacity.stop_after_attempt(ATTEMPTS))
    pool = ThreadPoolExecutor(BULKHEAD)

    def limited(*args: Any, **kwargs: Any) -> Any:
        return pool.submit(work, *args, **kwargs).result(LIMIT)

    return lambda *args, **kwargs: breaker.call(retrying, limited, *args, **kwargs)


def interlock(work: Work, *, timeout: bool = True) -> Work:
    """interlock-cb's pipeline: fallback, retry, breaker, bulkhead, timeout."""
    from interlock import CircuitBreaker, Pipeline

    builder = (
        Pipeline.builder()
        .fallback(lambda _: 0)
        .retry(attempts=ATTEMPTS)
        .circuit_breaker(CircuitBreaker(name="peer"))
        .bulkhead(BULKHEAD)
    )
    if timeout:
        builder = builder.timeout(LIMIT)
    guarded: Work = builder.build()(work)
    return guarded


def overhead_peers() -> dict[str, Maker]:
    """Every peer with everything it offers of timeout, retry, breaker, bulkhead, fallback."""
    peers: dict[str, Maker] = {
        "pyresilience": pyresilience,
        "pyresilience without timeout": lambda work: pyresilience(work, timeout=False),
        "pybreaker(tenacity(thread pool))": pybreaker_tenacity_pool,
    }
    if installed("interlock"):
        peers["interlock-cb"] = interlock
        peers["interlock-cb without timeout"] = lambda work: interlock(work, timeout=False)
    return peers


def pybreaker_only(work: Work, *, failures: int, open_for: float) -> Work:
    """pybreaker's breaker alone."""
    import pybreaker

    breaker = pybreaker.CircuitBreaker(fail_max=failures, reset_timeout=open_for)
    return lambda *args: breaker.call(work, *args)


def pyresilience_breaker(work: Work, *, failures: int, open_for: float) -> Work:
    """pyresilience's breaker alone, closing after one success."""
    from pyresilience import CircuitBreakerConfig, resilient

    wrapped: Work = resilient(
        circuit_breaker=CircuitBreakerConfig(
            failure_threshold=failures, recovery_timeout=open_for, success_threshold=1
        )
    )(work)
    return wrapped


def interlock_breaker(work: Work, *, failures: int, open_for: float) -> Work:
    """interlock-cb's breaker alone, one probe."""
    from interlock import CircuitBreaker, Config

    config = Config(
        minimum_number_of_calls=failures,
        permitted_calls_in_half_open=1,
        wait_duration_in_open=open_for,
    )
    guarded: Work = CircuitBreaker(name="peer", config=config)(work)
    return guarded


def breaker_peers() -> dict[str, Callable[..., Work]]:
    """Every peer's breaker alone: ``maker(work, failures=, open_for=)``."""
    peers: dict[str, Callable[..., Work]] = {
        "pybreaker": pybreaker_only,
        "pyresilience": pyresilience_breaker,
    }
    if installed("interlock"):
        peers["interlock-cb"] = interlock_breaker
    return peers
