"""Several trainings of one configuration as one model: records made of theirs.

An evaluation is made anew of the counts of all (`analysis.measures.evaluation`). Of any other measurement each number
becomes the mean over trainings, with ``sd`` over them and ``seeds``, the number of each; its interval joins the spread
between trainings and the interval that each has over units (of the same units, so these are taken not to average out)
by Student's t with Satterthwaite's degrees of freedom (`analysis.maths.resampling`).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.ask import keep
from analysis.maths.conventions import LEVEL
from analysis.maths.packing import PICTURE
from analysis.maths.resampling import LEAST
from analysis.measures.evaluation import Evaluated, measured_scores
from analysis.measures.extras import SEED, Extra
from analysis.record import Answer, Question, Record, RecordError, Weights
from whitebox.runs import Family


def family_evaluation(family: Family, trained: Sequence[Evaluated], output: Path | None = None) -> Evaluated:
    """The evaluation of several trainings as one model, stored in the family's folder.

    Raises:
        RecordError: they have different classes, images or settings; or counts cannot be read.
    """
    question = _question(family, [each.record for each in trained], [each.seed for each in trained], SEED)
    classes = [row["name"] for row in trained[0].record.measured["per_class"]]
    for each in trained:
        if [row["name"] for row in each.record.measured["per_class"]] != classes:
            raise RecordError(f"{each.name} has other classes than {trained[0].name}: evaluate again.")
    first = trained[0].evaluation
    counts_SN3K = np.stack([each.evaluation.counts_N3K for each in trained])
    scores = measured_scores(counts_SN3K, classes, trained[0].unit_N, mean_over=first.mean_over)
    record = keep(question, Answer(measured=scores, n=trained[0].record.n), (output or family.folder) / "records")
    return Evaluated(family.name, record, trained[0].counts, members=tuple(trained))


def model_evaluations(
    grouped: Sequence[Family], single: Sequence[Evaluated], output: Path | None = None
) -> list[Evaluated]:
    """An evaluation a model: those of trainings that belong together as one, others as they are.

    Args:
        single: the evaluation of each run, in the order that families count them in.

    Raises:
        RecordError: see `family_evaluation`.
    """
    return [
        family_evaluation(family, [single[index] for index in family.indices], output)
        if len(family.indices) > 1
        else single[family.indices[0]]
        for family in grouped
    ]


def family_extras(
    family: Family, trained: Sequence[Evaluated], extras: Sequence[Extra], output: Path | None = None
) -> list[Record]:
    """What else was asked for of evaluations, of the counts of all trainings, stored in the family's folder.

    Args:
        extras: those that ``trained`` were asked for, in this order.

    Raises:
        RecordError: they have different settings; or counts cannot be read.
    """
    found = []
    for index, extra in enumerate(extras):
        own = [each.also[index] for each in trained]
        question = _question(family, [each.record for each in own], [each.seed for each in trained], SEED)
        kept = [kept for each in trained for kept in each.kept(extra, index)]
        classes = [row["name"] for row in trained[0].record.measured["per_class"]]
        measured = extra.measured(kept, classes, trained[0].unit_N)
        found.append(
            keep(question, Answer(measured=measured, n=own[0].record.n), (output or family.folder) / "records")
        )
    return found


def averaged(records: Sequence[Record]) -> Answer:
    """What the trainings of a family have measured, as one."""
    measured = merged([record.measured for record in records])
    if said := _notes(records):
        measured["notes"] = said
    return Answer(measured=measured, n=records[0].n)


def family_records(
    seeds: Sequence[int],
    records: Sequence[Record],
    families: Sequence[Family],
    output: Path | None = None,
    together: Callable[[Sequence[Record]], Answer] = averaged,
) -> list[Record]:
    """One record a family, those of runs that stand alone as they are.

    Args:
        seeds: of the trainings, as families count them.
        together: what the trainings of a family, by seed, have measured as one model.

    Raises:
        RecordError: trainings of a family were measured on different data, or with different settings.
    """
    found = []
    for family in families:
        own = [records[index] for index in family.indices]
        if len(own) == 1:
            found.append(own[0])
            continue
        of_family = [seeds[index] for index in family.indices]
        question = _question(family, own, of_family, own[0].seeds.get("bootstrap"))
        found.append(keep(question, together(own), (output or family.folder) / "records"))
    return found


def _notes(records: Sequence[Record]) -> list[str]:
    """What was noted of all trainings, and with their names what was of some."""
    by_note: dict[str, list[str]] = {}
    for record in records:
        for note in record.measured.get("notes", ()):
            by_note.setdefault(note, []).append(record.model)
    return [note if len(own) == len(records) else f"{', '.join(own)}: {note}" for note, own in by_note.items()]


def _question(family: Family, records: Sequence[Record], seeds: Sequence[int], draws: int | None) -> Question:
    first = records[0]
    for record in records[1:]:
        if record.data != first.data:
            raise RecordError(f"{record.model} was measured on other data than {first.model}: measure them alike.")
        unlike = [key for key in first.settings if record.settings.get(key) != first.settings[key]]
        if unlike or record.variant != first.variant:
            raise RecordError(
                f"{record.model} was measured with another {(*unlike, 'variant')[0]} than {first.model}: trainings of "
                "one family are measured alike."
            )
    hashes = [record.weights.sha256 for record in records if record.weights is not None]
    together = hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()
    own = {} if draws is None else {"bootstrap": draws}
    others = {key: value for key, value in first.seeds.items() if key not in ("bootstrap", "training")}
    return Question(
        kind=first.kind,
        model=family.name,
        data=first.data,
        weights=Weights(os.path.relpath(family.folder), together),
        variant=first.variant,
        seeds={**own, **others},
        settings={**first.settings, "training_seeds": list(seeds), "training_weights": hashes},
    )


def merged(stored: Sequence[Any]) -> Any:
    """What several trainings have measured, as one: numbers averaged, estimates with their spread, the rest as it was.

    Parts of lists that have words (a layer, a map) are matched by these. What does not add up (a matrix, a text) is
    that of the first; a number that one of them lacks is unknown. Under the key ``numbers`` are estimates, also where
    one training has no interval for them; ``sigma_50`` is joined by its logarithm, as over draws; ``smallest`` and
    ``largest`` are those of all.
    """
    first = stored[0]
    if all(isinstance(each, Mapping) for each in stored):
        if first.keys() == PICTURE:
            return first
        if "value" in first and {"low", "high"} & first.keys() and all("value" in each for each in stored):
            beside = [key for key in first if key not in ("value", "low", "high")]  # as the draws behind a value
            together = joined_lists(stored) if isinstance(first["value"], list) else joined(stored)
            return {**{key: merged([each[key] for each in stored if key in each]) for key in beside}, **together}
        return {key: _JOINED.get(key, merged)([each[key] for each in stored if key in each]) for key in first}
    if all(isinstance(each, list) for each in stored):
        common = _alike(stored)
        if all(len(each) == len(common[0]) for each in common):
            return [merged(parts) for parts in zip(*common, strict=True)]
    known = [each for each in stored if each is not None]
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in known)
    if numbers and len(known) < len(stored):
        return None
    if numbers and len(set(stored)) > 1:
        return float(np.mean(stored))
    return first


def _alike(lists: Sequence[list[Any]]) -> Sequence[list[Any]]:
    """Lists of parts that are told apart by their words (a layer, a query), without those that not all of them have."""
    if not all(isinstance(part, Mapping) for each in lists for part in each):
        return lists
    words = [[tuple(word for word in part.values() if isinstance(word, str)) for part in each] for each in lists]
    if any(len(set(each)) < len(each) for each in words):
        return lists
    common = [word for word in words[0] if all(word in each for each in words)]
    return [[each[own.index(word)] for word in common] for each, own in zip(lists, words, strict=True)]


def _spread(stored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As `merged`; each number becomes an estimate."""
    found = {}
    for key in stored[0]:
        values = [each.get(key) for each in stored]
        single = all(value is None or isinstance(value, int | float) for value in values)
        found[key] = joined([{"value": value} for value in values]) if single else merged(values)
    return found


def _geometric(stored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As `merged`, of positive numbers: the geometric mean, with the interval of the logarithm; sd times the mean."""

    def through(change: Callable[[float], float], values: Any) -> Any:
        if isinstance(values, Mapping):
            return {key: through(change, each) for key, each in values.items()}
        if isinstance(values, list):
            return [through(change, each) for each in values]
        return None if values is None else change(values)

    if any(each["value"] is None for each in stored):  # one bears whatever it was given: no mean of the others
        stored = [{**each, "value": None} for each in stored]
    together = merged(through(math.log, stored))
    spread = together.pop("sd", None)
    found: dict[str, Any] = through(math.exp, together)
    return found if spread is None else {**found, "sd": spread * found["value"]}


def joined_lists(stored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As `joined`, of estimates that lie side by side, as those of a spectrum."""
    ends = ("value", "low", "high")
    columns = [[each[end] for end in ends] for each in stored]
    found = [
        joined([dict(zip(ends, each, strict=True)) for each in together])
        for together in zip(*(zip(*own, strict=True) for own in columns), strict=True)
    ]
    return {key: [each[key] for each in found] for key in found[0]}


def _extreme(choose: Callable[[Sequence[float]], float]) -> Callable[[Sequence[Any]], Any]:
    """The smallest or largest of all trainings."""
    return lambda stored: None if None in stored else choose(stored)


def _within(low: float, high: float) -> Callable[[Sequence[Any]], Any]:
    """As `merged`, of what cannot lie outside: Student's t knows no bounds, and cut there it covers as much."""

    def bounded(stored: Sequence[Any]) -> Any:
        found = merged(stored)
        if not isinstance(found, Mapping) or found.get("low") is None:
            return found
        return {**found, "low": max(found["low"], low), "high": min(found["high"], high)}

    return bounded


_SHARE, _POSITIVE = _within(0, 1), _within(0, math.inf)
_JOINED: dict[str, Callable[[Sequence[Any]], Any]] = {
    "numbers": _spread,
    "sigma_50": _geometric,
    "random": lambda stored: stored[0] if all(each == stored[0] for each in stored) else merged(stored),  # of one seed
    "smallest": _extreme(min),
    "largest": _extreme(max),
    "overlap": _SHARE,
    "alike": _SHARE,
    "miou": _SHARE,
    "cosine": _within(-1, 1),
    "rate": _POSITIVE,
    "reduction": _POSITIVE,
    "effective_rank": _POSITIVE,
    "stable_rank": _POSITIVE,
}


def joined(estimates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of estimates of several trainings, and an interval over both levels."""
    from scipy.stats import norm
    from scipy.stats import t as student

    values = [each["value"] for each in estimates]
    if any(value is None for value in values):
        known = [value for value in values if value is not None]
        return {"value": float(np.mean(known)) if known else None, "low": None, "high": None, "seeds": values}
    spread = float(np.std(values, ddof=1))
    found: dict[str, Any] = {"value": float(np.mean(values)), "low": None, "high": None, "sd": spread, "seeds": values}
    ends = [[each.get("low"), each.get("high")] for each in estimates]
    if any(end is None for pair in ends for end in pair):
        return found
    low, high = (float(end) for end in np.mean(np.array(ends, dtype=np.float64), axis=0))
    half = (high - low) / 2
    if len(values) < LEAST:
        return {**found, "low": low, "high": high}
    of_units = half / float(norm.ppf((1 + LEVEL) / 2))
    of_seeds = spread / math.sqrt(len(values))
    total = math.hypot(of_units, of_seeds)
    if total == 0:
        return found
    freedom = (len(values) - 1) * (total / of_seeds) ** 4 if of_seeds > 0 else math.inf
    width = float(student.ppf((1 + LEVEL) / 2, freedom)) * total
    scale = width / half if half > 0 else math.inf
    value = found["value"]
    below, above = (scale * (value - low), scale * (high - value)) if math.isfinite(scale) else (width, width)
    return {**found, "low": value - below, "high": value + above}
