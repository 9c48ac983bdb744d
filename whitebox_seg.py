"""The door of the command line: sees to it that ``whitebox``, ``analysis`` and ``experiments`` are ours, then opens.

Its own name is nobody else's, unlike theirs: there is a geospatial package ``whitebox``, and users have an
``analysis.py`` or ``experiments/`` in the working folder, which comes first on Python's path under ``python -m``
(torchrun too) and with ``PYTHONPATH=.``.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run ``whitebox``, or ``python -m whitebox``."""
    sys.path.sort(key=_hides_ours)  # those go to the end: what else they hold can still be imported
    import whitebox

    if "WhiteboxError" not in vars(whitebox):
        sys.exit(
            f"error: `import whitebox` finds {whitebox.__file__}, which is not of whitebox-seg: others have that name "
            "too, such as the geospatial package. Give each its own environment, or here `pip uninstall whitebox` "
            "and install whitebox-seg again."
        )
    from whitebox.cli import main as command_line

    command_line()


def _hides_ours(entry: str) -> bool:
    names = ("analysis.py", "analysis/__init__.py", "experiments.py", "experiments/__init__.py")
    return any(Path(entry, name).is_file() for name in names) and Path(entry).resolve() != HERE
