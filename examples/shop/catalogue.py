"""The catalogue of the shop: a service of its own, as small as it can be."""

from __future__ import annotations

from flask import Flask

application = Flask(__name__)


@application.get("/goods.json")
def goods() -> list[str]:
    """Everything that there is to buy."""
    return ["tea", "biscuits", "umbrellas"]
