"""Imported by each Python process of an audited program, from its PYTHONPATH, when it starts.

It loads the recorder by its file, so that nothing else of timedblock is imported, and then the
``sitecustomize`` that would have been imported without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

# its own name, so that there is one recorder in a process that imports timedblock, too
_NAME = "timedblock.audit.recorder"


def _load_recorder(here: str) -> None:
    file = os.path.join(os.path.dirname(here), "recorder.py")
    spec = importlib.util.spec_from_file_location(_NAME, file)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    module.from_environment()


def _import_next(here: str) -> None:
    """The environment keeps our directory for child processes; this one has no use for it."""
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    mine = sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        if mine is not None:
            sys.modules.setdefault("sitecustomize", mine)


_here = os.path.dirname(os.path.abspath(__file__))
_load_recorder(_here)
_import_next(_here)
