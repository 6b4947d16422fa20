"""The monitoring endpoint: `/live`, `/ready`, `/health` and `/metrics` over HTTP (L5).

As an app to mount or to serve (`wsgi_app`, `asgi_app`), or on a port of its own (`serve`).
"""

from .apps import asgi_app, wsgi_app
from .report import report
from .server import MonitorServer, serve

__all__ = ["MonitorServer", "asgi_app", "report", "serve", "wsgi_app"]
