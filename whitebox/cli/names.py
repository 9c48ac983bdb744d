"""Options of commands that take an open vocabulary, and what they mean for a run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.errors import ConfigError, require

if TYPE_CHECKING:
    from whitebox.runs import Run, SavedRun

Classes = Annotated[
    str | None,
    typer.Option(
        "--classes", help='Of an open-vocabulary model: "cat, sofa", with synonyms "sofa, couch; cat", or a file.'
    ),
]
Vocabulary = Annotated[
    str | None,
    typer.Option(
        "--vocabulary", help="Of an open-vocabulary model: ade847, pc459, ..., or a file. Default: the dataset's."
    ),
]
Fast = Annotated[bool, typer.Option("--fast", help="Open vocabulary: early rejection of classes, top 8.")]
TopK = Annotated[
    int | None, typer.Option("--topk", help="With --fast: classes of a place that stay.", show_default="8")
]


def chosen_names(classes: str | None, vocabulary: str | None) -> tuple[str, ...] | None:
    """The names of ``--classes`` or ``--vocabulary``; None: neither is given.

    Raises:
        ConfigError: both are, or a file or list that is not there.
    """
    from whitebox.data.vocabularies import read_names, read_vocabulary

    if classes is not None and vocabulary is not None:
        raise ConfigError("--classes and --vocabulary both say the names: give one of them.")
    if vocabulary is not None:
        return read_vocabulary(vocabulary)
    return None if classes is None else read_names(classes)


def encode_names(run: Run) -> None:
    """Encode the names of an open-vocabulary run before its work begins, with a progress bar.

    Raises:
        ModelError: they cannot be encoded here. VocabularyError: one is too long.
    """
    from whitebox.cli.progress import image_progress
    from whitebox.models import OpenSegmentor

    if isinstance(run.model, OpenSegmentor):
        with image_progress(f"encoding {run.model.num_classes} names", None) as advance:
            run.model.prepare(advance)


def named(run: SavedRun) -> SavedRun:
    """A run that encodes its names, with a progress bar, when its model is loaded."""
    if not run.open_vocabulary:
        return run

    def load() -> Run:
        opened = run.load()
        encode_names(opened)
        return opened

    return replace(run, load=load)


def require_fast(fast: bool, topk: int | None) -> None:
    """Raise a ``ConfigError`` where ``--topk`` is given without ``--fast``, or keeps no class."""
    if topk is not None:
        require(topk >= 1, "--topk", topk, "it must be at least 1")
    if topk is not None and not fast:
        raise ConfigError(f"--topk {topk} is of early rejection: add --fast.")
