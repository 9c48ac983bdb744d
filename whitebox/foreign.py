"""Texts that somebody else may have written: JSON read as plain data, within bounds.

A few bytes can stand for very much, so what is read is bounded in size and depth before anything is done with it.
Whoever reads says in one line what is wrong, see ``ValueError`` below. YAML is read by `whitebox.interop.plain_yaml`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LARGEST = 2**28  # bytes of a JSON file: records with the counts of all images are megabytes
DEEPEST = 64  # levels of lists and mappings; ours have less than ten


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or nested too deeply; the reason, for a message.
    """
    try:
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from error
    _require_shallow(value)
    return value


def read_json(path: Path, largest: int = LARGEST) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: it cannot be read. ValueError: see ``parse_json``; or it is larger than ``largest`` bytes.
    """
    require_size(path, largest)
    return parse_json(path.read_bytes())


def require_size(path: Path, largest: int) -> None:
    """Raise a ``ValueError`` for a file of more than ``largest`` bytes, an ``OSError`` where it cannot be read."""
    size = path.stat().st_size
    if size > largest:
        raise ValueError(f"it has {size / 1e6:.0f} MB, more than the {largest / 1e6:.0f} MB such a file may have")


def _require_shallow(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inside
            for each in level
            if isinstance(each, dict | list)
            for inside in (each.values() if isinstance(each, dict) else each)
            if isinstance(inside, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")
