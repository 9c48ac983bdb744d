"""Names that open-vocabulary papers prompt with, for each label set they evaluate on.

A vocabulary is separate from the dataset: it may say a class in other words, or more than there are classes. Lists are
those of xb534/SED (db20d93, Apache-2.0), ``datasets``; most are the class names of a dataset.
"""

from __future__ import annotations

from collections.abc import Callable

from whitebox.catalog import nearest
from whitebox.data.readers import class_list
from whitebox.errors import ConfigError

Names = tuple[str, ...]


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
