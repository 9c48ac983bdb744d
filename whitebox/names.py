"""Names that open-vocabulary models are prompted with: what a list of them must be. Without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from whitebox.errors import ConfigError

OPEN_VOCABULARY = ("cbsa-open", "depict-sa-open", "sed")  # decoders whose classes are names
TOPK = 8  # classes of a place that early rejection keeps, where nothing else is said (README of SED)
SYNONYMS = ", "  # between the synonyms of a name


class VocabularyError(ConfigError):
    """Names that cannot be the classes of a model."""


def check_vocabulary(names: Sequence[str]) -> None:
    """Raise a ``VocabularyError`` unless there are names, none of them empty or there twice."""
    if not names:
        raise VocabularyError("The vocabulary is empty: name at least one class.")
    seen: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        known = re.sub(r"\s+", " ", name.strip().lower())
        if not known or not all(part.strip() for part in name.split(SYNONYMS)):
            raise VocabularyError(f"Class {place} of the vocabulary has no name, or an empty synonym.")
        if known in seen:
            raise VocabularyError(f"Class {place} of the vocabulary, {quoted(name)}, is class {seen[known]} already.")
        seen[known] = place


def listed(text: str) -> tuple[str, ...]:
    """Names with commas between them; where there is a semicolon, that is between them, and a name may have commas."""
    parts = text.split(";" if ";" in text else ",")
    return tuple(part.strip() for part in parts if part.strip())


def fits_label_set(names: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether names are those of a label set, one each, by their number.

    There may be more where the last class is the background, which is what is none of the others (PAS-20b):
    predictions of names beyond the classes count as it.
    """
    return len(names) == len(classes) or (len(names) > len(classes) and classes[-1] == "background")


def quoted(text: str) -> str:
    """A name for a message, its end left out where it is long."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
