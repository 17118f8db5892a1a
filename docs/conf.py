"""How the documentation is built: `make docs`. Sphinx reads the Markdown pages here, and the docstrings.

Sphinx because it reads docstrings and counts every warning as an error; MyST because the pages are Markdown
that can be read without it; Furo because it asks nothing of the internet: no font, no script, no tracker.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from write_pages import PACKAGE, ROOMS

from cervicyte import __version__
from cervicyte.provenance import RESEARCH_USE_ONLY, write_text

HERE = Path(__file__).parent
OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+src/[^)]+\.md)\)")  # Markdown that is no page of the site

project = "Cervicyte"
author = copyright = "The Cervicyte contributors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["**/inner_*", "Thumbs.db"]
nitpicky = False
suppress_warnings = ["ref.python"]  # two classes with an attribute of one name are no mistake

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
default_role = "literal"  # docstrings write `name`, as Markdown does
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = f"Cervicyte {__version__}"
html_theme_options = {"announcement": RESEARCH_USE_ONLY}
html_show_sphinx = False
html_copy_source = False


def modules() -> dict[str, list[str]]:
    """Return room -> its modules with a dot, those beside the rooms first."""
    named = {"beside the rooms": PACKAGE, **{room: PACKAGE / room for room in ROOMS}}
    return {
        title: sorted(
            ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            for path in folder.glob("[!_]*.py")
        )
        for title, folder in named.items()
    }


def write_reference(app: object) -> None:
    """Write a page for each room, which autodoc fills from the docstrings."""
    del app
    for room, names in modules().items():
        title = room[0].upper() + room[1:]
        parts = [title, "=" * len(title), ""]
        for name in names:
            parts += [name, "-" * len(name), "", f".. automodule:: {name}", "   :members:", ""]
        write_text(HERE / "python_modules" / f"{room.replace(' ', '_')}.rst", "\n".join(parts))


def offer_outside(app: object, name: str, source: list[str]) -> None:
    """Make downloads of links to Markdown files that lie beside the code, as other files outside are."""
    del app, name
    source[0] = OUTSIDE.sub(r"{download}`\1 <\2>`", source[0])


def setup(app: object) -> None:
    """Let Sphinx call the two functions above: before it looks for pages, and as it reads each."""
    app.connect("builder-inited", write_reference)  # type: ignore[attr-defined]
    app.connect("source-read", offer_outside)  # type: ignore[attr-defined]
