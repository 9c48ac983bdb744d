"""The site: pages of ``docs``, ``results`` and the root, read where they lie; ``sphinx-build -W -c docs . OUT``.

The pages are those that GitHub shows: links, formulas and diagrams are written for both.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import whitebox  # noqa: E402  the one of this checkout

project = "whitebox"
author = "The whitebox contributors"
project_copyright = author
version = release = whitebox.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinxcontrib.mermaid"]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "results/README.md",
    "results/**/README.md",
    "results/**/tables/*.md",
    "results/benchmarks/*.md",
    "*.md",
]
exclude_patterns = ["README.md", "docs/site", "results/**/sweeps", "**/.*", "data", "dist", "build", "tests", "out"]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["mermaid", "math"]
myst_heading_anchors = 4  # as GitHub makes them
nb_execution_mode = "off"  # tests/test_notebooks.py runs them
suppress_warnings = ["toc.not_included"]  # a page of results is reached from the page that links it

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True


def setup(app: Sphinx) -> None:
    """Tables of results, which are nothing but a table, get their names as titles; | in a docstring is a norm."""
    app.connect("source-read", _titled)
    app.connect("autodoc-process-docstring", _with_norms)


def _titled(_: Sphinx, page: str, source: list[str]) -> None:
    if page.startswith("results/") and source[0].startswith("|"):
        source[0] = f"# {page.rpartition('/')[2]}\n\n{source[0]}"


def _with_norms(*given: list[str]) -> None:
    given[-1][:] = [line.replace("|", r"\|") for line in given[-1]]


html_theme = "furo"
html_title = f"whitebox {release}"
html_extra_path = ["site"]  # index.html, which leads to docs/index.html
html_show_sphinx = False
html_copy_source = False
