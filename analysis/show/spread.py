"""What intervals are about, in words: the unit that is independent, and trainings. Every caption takes it from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.record import Record

LEAST = 3  # units, or trainings, that an interval can be about (analysis.maths.resampling)

_ONE_EACH = "one training each, whose spread is unknown"


def interval_words(record: Record, level: str = "95 %") -> str:
    """``95 % interval over 10 blocks of about 10 frames of one drive (...); one training, whose spread is unknown``."""
    return f"{over_units(record, level)}; {trainings(record, 'mean (± sd)')}"


def over_units(record: Record, level: str = "95 %") -> str:
    """The interval and its unit."""
    unit = record.settings.get("unit")
    if unit is None:
        return f"{level} interval over images as independent"
    if unit["count"] < LEAST:
        return f"no interval: all images are of {unit_words(unit)}, and of fewer than {LEAST} no interval holds"
    about = ""
    if unit.get("block"):
        clips = "it" if unit["clips"] == 1 else "these"
        about = f" (about other stretches of {clips}, not about other {plural(unit['name'])})"
    return f"{level} interval over {unit_words(unit)}{about}"


def unit_words(unit: Mapping[str, Any]) -> str:
    """``101 images``; ``3 cities``; ``10 blocks of about 10 frames of one drive``."""
    if unit.get("block"):
        clips = f"one {unit['name']}" if unit["clips"] == 1 else f"{unit['clips']} {plural(unit['name'])}"
        blocks = "one block" if unit["count"] == 1 else f"{unit['count']} blocks"
        return f"{blocks} of about {unit['block']} frames of {clips}"
    return f"one {unit['name']}" if unit["count"] == 1 else f"{unit['count']} {plural(unit['name'])}"


def plural(name: str) -> str:
    """``city`` -> ``cities``."""
    return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"


def trainings(record: Record, mean: str = "mean") -> str:
    """How many trainings there were, and what that means for the interval."""
    seeds = seeds_of(record)
    if len(seeds) < 2:
        return "one training, whose spread is unknown"
    unit = record.settings.get("unit")
    if unit is not None and unit["count"] < LEAST:
        return f"{mean} of {len(seeds)} trainings"
    if len(seeds) < LEAST:
        return f"{mean} of two trainings, whose spread the interval does not hold"
    return f"{mean} of {len(seeds)} trainings, whose spread the interval holds"


def behind_words(records: Sequence[Record], what: str) -> str:
    """Of a figure: what is lightly drawn behind means of several trainings (lines, dots); "" where there are none."""
    return f" Faint {what}: single trainings." if any(len(seeds_of(record)) > 1 for record in records) else ""


def pictured(record: Record) -> str:
    """Whose pictures a record has: those of several trainings do not add up, so they are the first one's."""
    seeds = seeds_of(record)
    return f"{record.model}, seed {seeds[0]}" if len(seeds) > 1 else record.model


def together_words(records: Sequence[Record], level: str = "95 %") -> str:
    """`interval_words` of records that share a table: the trainings of each, where these are not alike."""
    first = records[0]
    if len({len(seeds_of(record)) for record in records}) < 2:
        return interval_words(first, level) if seeds_of(first) else f"{over_units(first, level)}; {_ONE_EACH}"
    several = "± sd over trainings; those of one or two do not hold the spread between trainings"
    return f"{over_units(first, level)}; {several}"


def shared_words(records: Sequence[Record], level: str = "95 %") -> str:
    """`together_words`; of records of single trainings alone, `interval_words`."""
    several = any(seeds_of(record) for record in records)
    return together_words(records, level) if several else interval_words(records[0], level)


def seeds_of(record: Record) -> Sequence[int]:
    """Seeds of the trainings that a record is the mean of; of one training, nothing or its own."""
    found: Sequence[int] = record.settings.get("training_seeds", ())
    return found


def bootstrap_words(record: Record) -> str:
    """How ends were drawn."""
    return f"{record.settings.get('resamples')} resamples, seed {record.seeds.get('bootstrap')}"


def figure_words(record: Record) -> str:
    """For the label of an axis: ``95 % interval over 10 blocks``."""
    unit = record.settings.get("unit")
    if unit is None:
        return "95 % interval, images as independent"
    if unit["count"] < LEAST:
        return "no interval"
    return f"95 % interval over {unit['count']} {'blocks' if unit.get('block') else plural(unit['name'])}"
