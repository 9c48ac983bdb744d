"""What can be known before any work is said before it: a look that every command takes, in less than two seconds."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from whitebox.config import DataConfig
from whitebox.errors import ConfigError, DataError, OutputError
from whitebox.text import require_text

_FILES = 160  # bytes: what is written below an output folder has paths about so long


def preflight(
    output: Path | None = None,
    data: DataConfig | None = None,
    splits: Sequence[str] = (),
    *,
    training: bool = False,
    cure: str = "choose another folder with -o",
) -> list[str]:
    """See that results can be written, and that labels can teach or judge something.

    Args:
        output: what is to be written: a file, or a folder that is made where missing.
        data: a dataset whose labels are needed; None: none.
        splits: of it. In training the first is learned from.
        training: whether a model is to learn from the labels.
        cure: what to do where the output cannot be written.

    Returns:
        What only the user can judge, a line each.

    Raises:
        OutputError: it cannot be written.
        DataError: files are missing or damaged, labels hold values without a class, or nothing can be learned.
        ConfigError: a name cannot be saved, or the dataset's settings cannot be used.
    """
    if output is not None:
        _require_writable(output, cure)
    if data is None:
        return []
    from whitebox.data.learnable import ONE_CLASS, look_at_labels
    from whitebox.data.readers import READERS, dataset_info

    classes, _ = dataset_info(data)
    if training and len(classes) == 1:
        raise DataError(f"{data.name}: {ONE_CLASS}.")
    notes = []
    for split in dict.fromkeys(splits):
        source = READERS[data.kind].source(data, split)
        notes += look_at_labels(source, split, learned=training and split == splits[0])
    return notes


def require_path(path: Path) -> None:
    """See that ``path`` can be one: not too long, and text that can be saved.

    Raises:
        ConfigError: it cannot.
    """
    require_text(str(path), "The path")
    there = Path(os.path.abspath(path))
    longest = max((len(os.fsencode(part)) for part in there.parts), default=0)
    if len(os.fsencode(there)) + _FILES > os.pathconf("/", "PC_PATH_MAX") or longest > os.pathconf("/", "PC_NAME_MAX"):
        raise ConfigError(f"The name {str(path)[:60]}... is too long for a file or folder: choose a shorter one.")


def _require_writable(path: Path, cure: str) -> None:
    require_path(path)
    there, problem = Path(os.path.abspath(path)), 0
    while not os.path.lexists(there):
        there = there.parent
    if there.is_file() and there != Path(os.path.abspath(path)):
        problem = errno.ENOTDIR
    elif not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
        problem = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
    if problem:
        raise OutputError(f"Cannot write {path}: {os.strerror(problem)}; {cure}.")
