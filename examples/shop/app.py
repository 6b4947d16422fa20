"""A shop's home page: the goods of its catalogue, and how often they were looked at.

It can't do without the catalogue, an HTTP service. It can without the cache that counts the visits:
when that is lost the shop is *degraded*, and sells.

    SHOP_CACHE=127.0.0.1:11211 SHOP_CATALOGUE=http://127.0.0.1:8001 gunicorn --threads 8 app
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterable
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from flask import Flask
from pymemcache.exceptions import MemcacheError

from timedblock import Percentile, Policy, TimedBlock, Unavailable, memcache, remaining
from timedblock.middleware import WSGIDeadlineMiddleware
from timedblock.monitor import wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: Seconds that a page may take.
PAGE_LIMIT = 0.5

#: No answer in time; or an answer that is none: a refusal, half a reply, garbage.
CATALOGUE_LOST = (Unavailable, OSError, HTTPException, ValueError)
CACHE_LOST = (Unavailable, MemcacheError)

CATALOGUE = os.environ.get("SHOP_CATALOGUE", "http://127.0.0.1:8001") + "/goods.json"
host, _, port = os.environ.get("SHOP_CACHE", "127.0.0.1:11211").rpartition(":")
cache = memcache.Client((host, int(port)))

# urllib can't be stopped by a deadline, so it works in a thread that nobody has to wait for.
catalogue = TimedBlock(
    "catalogue.goods", Policy(timeout=Percentile(99.5, ceiling=0.4), isolation="thread")
)

app = Flask(__name__)


@app.get("/")
def home() -> tuple[dict[str, Any], int]:
    """The goods, with the number of visits if there is one."""
    try:
        goods = catalogue.call(fetch_goods)
    except CATALOGUE_LOST:
        return {"error": "the catalogue is away, please come back"}, 503
    # What the page can do without comes last, and has what is left of its time.
    return {"goods": goods, "visits": count_visit()}, 200


def fetch_goods() -> list[str]:
    """All goods, from the catalogue."""
    with urllib.request.urlopen(CATALOGUE, timeout=remaining()) as response:
        goods: list[str] = json.load(response)
    return goods


def count_visit() -> int | None:
    """How many visits there were with this one; None while the cache is away."""
    try:
        cache.add("visits", "0")
        return cache.incr("visits", 1)
    except CACHE_LOST:
        return None


# A request has its limit, or what its caller's header leaves of it; the monitor has neither.
pages = WSGIDeadlineMiddleware(app.wsgi_app, ceiling=PAGE_LIMIT)
monitor = wsgi_app(critical=["catalogue.*"])


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The shop, with the monitor's pages beside its own."""
    watched = environ["PATH_INFO"] in ("/live", "/ready", "/health", "/metrics")
    return (monitor if watched else pages)(environ, start_response)
