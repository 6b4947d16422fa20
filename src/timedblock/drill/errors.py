"""What goes wrong with a drill itself."""

from __future__ import annotations


class DrillError(Exception):
    """The drill could not be run: nothing is said about any client."""


class ScenarioError(DrillError):
    """A scenario that can't be run. ``key`` is the one that is wrong, as in the file; ``step`` the
    step of a timeline that it is wrong in, if it is one that only the rest of it makes wrong."""

    def __init__(self, message: str, key: str = "", step: object = None) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key
        self.message = message
        self.step = step
