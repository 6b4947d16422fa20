"""Sphinx: the site is built from these pages and from docstrings, warnings as errors."""

from __future__ import annotations

from importlib.metadata import version as installed_version

from timedblock.faults import vocabulary

project = "timedblock"
author = "The timedblock developers"
project_copyright = "2026, The timedblock developers"
release = installed_version("timedblock")
version = release

# Docstrings are read in an editor too: `name` in them is code.
default_role = "code"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_default_options = {"show-inheritance": True}

# A store's errors have the names of those they inherit from: a bare name in "Raises" means both.
suppress_warnings = ["ref.python"]

exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"timedblock {release}"


def fault_table() -> str:
    """Which injector makes which fault, and how: the table in the code, as Markdown."""
    rows = [["fault", *vocabulary.INJECTORS], ["---"] * (len(vocabulary.INJECTORS) + 1)]
    rows += [
        [f"`{name}`", *(how.get(injector, "") for injector in vocabulary.INJECTORS)]
        for name, how in vocabulary.HOW.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# `{{ fault_table }}` in a page.
myst_substitutions = {"fault_table": fault_table()}
