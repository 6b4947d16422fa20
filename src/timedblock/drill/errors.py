"""What goes wrong with a drill itself."""

from __future__ import annotations


class DrillError(Exception):
    """The drill could not be run: nothing is said about any client."""
