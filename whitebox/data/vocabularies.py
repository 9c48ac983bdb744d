"""Names that open-vocabulary papers prompt with, for each label set they evaluate on.

A vocabulary is separate from the dataset: it may say a class in other words, or more than there are classes. Lists are
those of xb534/SED (db20d93, Apache-2.0), ``datasets``; most are the class names of a dataset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from whitebox.catalog import nearest
from whitebox.data.readers import class_list
from whitebox.errors import ConfigError
from whitebox.foreign import read_json

Names = tuple[str, ...]

_LARGEST = 2**20  # bytes of a file of names


def _classes(name: str) -> Callable[[], Names]:
    return lambda: class_list(name)[0]


def _pc59() -> Names:
    """As Pascal Context has them, but for one."""
    return tuple("diningtable" if name == "table" else name for name in class_list("pascal_context59")[0])


VOCABULARIES: dict[str, Callable[[], Names]] = {
    "coco": _classes("coco_stuff"),
    "ade150": _classes("ade20k"),
    "ade847": _classes("ade847"),
    "pc59": _pc59,
    "pc459": _classes("pascal_context459"),
    "voc20": _classes("voc20"),
    "voc20b": _classes("voc20b_names"),
}


def vocabulary(name: str) -> Names:
    """A list by name; synonyms of a class are separated by ", ".

    Raises:
        ConfigError: there is no such list.
    """
    if name not in VOCABULARIES:
        raise ConfigError(
            f"Unknown vocabulary {name!r}{nearest(name, list(VOCABULARIES))} There are: {', '.join(VOCABULARIES)}."
        )
    return VOCABULARIES[name]()


def read_names(text: str) -> Names:
    """Names that a user chose: a list by name, a file, or the names themselves.

    A file has a name a line (``.json``: a list of texts). Names in a text are separated by commas; where there is a
    semicolon or a line break, that separates them, and commas their synonyms: "sofa, couch; window".

    Raises:
        ConfigError: a file that cannot be read.
    """
    if text in VOCABULARIES:
        return VOCABULARIES[text]()
    path = Path(os.path.expanduser(text))
    if path.suffix in (".txt", ".json") or (os.sep in text and path.exists()):
        return _read_file(path)
    parts = re.split(r"[;\n]", text)
    parts = parts if len(parts) > 1 else text.split(",")
    return _cleaned(parts)


def read_vocabulary(text: str) -> Names:
    """As ``read_names``, but a name alone is that of a list.

    Raises:
        ConfigError: there is no such list, or a file cannot be read.
    """
    names = read_names(text)
    return vocabulary(text) if names == (text,) else names


def _read_file(path: Path) -> Names:
    try:
        if path.suffix == ".json":
            found = read_json(path, _LARGEST)
            if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
                raise ConfigError(f"{path} is no vocabulary: a JSON file holds a list of names.")
            return tuple(found)  # as they are: papers prompt with stray spaces, too
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"{path} is no vocabulary: it has more than {_LARGEST // 2**20} MB.")
        return _cleaned(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or ("it is not UTF-8 text" if path.suffix == ".txt" else str(error))
        raise ConfigError(f"The vocabulary {path} cannot be read: {reason}.") from error


def _cleaned(parts: Sequence[str]) -> Names:
    """Without blanks around names and synonyms, and without empty ones."""
    synonyms = [[each.strip() for each in part.split(",") if each.strip()] for part in parts]
    return tuple(", ".join(names) for names in synonyms if names)
