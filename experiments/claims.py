"""What papers claim of the decoders, held against the trainings of a study.

A claim becomes a number and a bound: "each layer lowers R^c" is the change of R^c by a layer, below 0. The number is
taken of each training; its interval is Student's t over trainings, images as they are. Differences of mIoU are paired
over units and trainings (`analysis.measures.compare`). A claim is supported where the whole 95 % interval lies on its
side of the bound, refuted where it lies on the other, and else cannot be told; then the number of trainings is given
with which an interval about the same mean, of the same spread, would. Fewer than three trainings tell nothing.

Sources: DEPICT (arXiv 2411.03033), CBSA (2509.16875), ToST (2412.17810), CRATE (2306.01129), SegViT (2210.05844),
Segmenter (2105.05633).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from analysis.maths.conventions import LEVEL
from analysis.maths.intervals import half_width
from analysis.maths.resampling import LEAST
from analysis.maths.variance import Sds
from analysis.measurement import KINDS, Quantity, loaded
from analysis.measures.compare import differences
from analysis.measures.evaluation import Evaluated
from analysis.measures.power import sds_of_difference
from analysis.record import Record
from analysis.show.spread import seeds_of
from analysis.show.tables import Cell, Column, Estimate, Table

WHITE_BOX = ("depict-sa", "depict-ca", "cbsa", "tost", "crate")
_MOST = 200  # trainings; a study of more is not advised
_SIGNS = {"supported": "+", "refuted": "\N{MINUS SIGN}"}


class Key(NamedTuple):
    """What is the same in records that are shown together."""

    kind: str
    variant: str
    split: str


@dataclass(frozen=True)
class Found:
    """What a study has measured.

    Attributes:
        records: of each decoder, all its trainings as one.
        evaluations: of each split, by decoder.
        baselines: beside untrained decoders, by what was measured of both and decoder.
        seed: of the bootstrap.
    """

    records: dict[Key, dict[str, Record]]
    evaluations: dict[str, dict[str, Evaluated]]
    baselines: dict[str, dict[str, Record]]
    seed: int = 0

    def of(self, kind: str, variant: str = "") -> Mapping[str, Record]:
        """The records of a kind by decoder, of the split it was measured on first."""
        return next((found for key, found in self.records.items() if key[:2] == (kind, variant)), {})


@dataclass(frozen=True)
class Number:
    """What a claim is about, as it was measured.

    Attributes:
        model: or two that are compared.
        what: with its unit.
        estimate: the mean over trainings, its interval NaN where fewer than three tell it.
        trainings: behind it.
        needed: trainings with which it could be told, if it cannot; None: more than `_MOST`, or unknown.
        untrained: the same of decoders that learned nothing; NaN: not measured, or it does not apply.
    """

    model: str
    what: str
    estimate: Estimate
    trainings: int
    needed: int | None = None
    untrained: float = math.nan


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    Attributes:
        words: what is claimed.
        source: where.
        numbers: what was measured of it.
        above: whether the numbers are to be above the bound; else below.
        bound: in the unit of the numbers.
        decimals: of the numbers.
    """

    words: str
    source: str
    numbers: Callable[[Found, float], Iterator[Number]]
    above: bool
    bound: float = 0.0
    decimals: int = 1

    def verdict(self, number: Number) -> str:
        """In a few words."""
        sign = 1 if self.above else -1
        low, high = sorted(sign * (end - self.bound) for end in (number.estimate.low, number.estimate.high))
        if number.trainings < LEAST or math.isnan(low):
            return f"cannot tell: {number.trainings} of at least {LEAST} trainings"
        if low > 0:
            return "supported"
        if high < 0:
            return "refuted"
        if number.needed is None:
            return f"cannot tell, nor would {_MOST} trainings on these images"
        return f"cannot tell; about {max(number.needed, number.trainings + 1)} trainings would"


def claims_table(found: Found, claims: Sequence[Claim] | None = None) -> Table:
    """A row for each number that one of the claims (None: all) is about."""
    rows: list[tuple[Cell, ...]] = []
    for claim in CLAIMS if claims is None else claims:
        for number in claim.numbers(found, claim.bound):
            side = f"{'>' if claim.above else '<'} {claim.bound:g}"
            shown = Estimate(number.estimate.value, number.estimate.low, number.estimate.high, decimals=claim.decimals)
            untrained = None if math.isnan(number.untrained) else Estimate(number.untrained, decimals=claim.decimals)
            about = (claim.words, claim.source, number.model, number.what, side)
            rows.append((*about, shown, number.trainings, untrained, claim.verdict(number)))
    columns = (
        *map(Column, ("Claim", "Source", "Decoder", "Measured", "Claimed")),
        Column("Estimate", 1),
        Column("Trainings", 0),
        Column("Untrained", 1),
        Column("Verdict"),
    )
    caption = (
        "Brackets: 95 % over trainings (Student's t), the images as they are; of differences of mIoU 95 % over units "
        "and trainings, paired. Supported, refuted: the whole interval lies on the claimed side of the bound, or on "
        "the other. Not corrected for the number of rows: of twenty that are told apart, one may be by chance."
    )
    return Table(columns, tuple(rows), caption)


def layers_table(found: Found) -> Table:
    """The verdicts on claims about single decoders, a row a claim, a column a decoder, a sign a layer."""
    signs: dict[str, dict[str, list[str]]] = {}
    for claim in OF_LAYERS:
        for number in claim.numbers(found, claim.bound):
            sign = _SIGNS.get(claim.verdict(number), "?")
            signs.setdefault(claim.words, {}).setdefault(number.model, []).append(sign)
    decoders = [decoder for decoder in WHITE_BOX if any(decoder in models for models in signs.values())]
    rows = [(words, *(" ".join(models.get(each, ())) for each in decoders)) for words, models in signs.items()]
    caption = (
        f"A sign a layer, in their order: + supported, {_SIGNS['refuted']} refuted, ? cannot tell. DEPICT-CA: layers "
        "of its patches, then of its classes. Numbers and intervals are in the table of all claims."
    )
    return Table((Column("Claim"), *map(Column, decoders)), tuple(rows), caption)


def over_trainings(values: Sequence[float]) -> Estimate:
    """Mean and Student's t interval; of fewer than three without."""
    mean = float(np.mean(values))
    if len(values) < LEAST:
        return Estimate(mean)
    half = half_width(float(np.std(values, ddof=1)), len(values))
    return Estimate(mean, mean - half, mean + half)


def needed_trainings(values: Sequence[float], bound: float) -> int | None:
    """How many trainings of this mean and spread have an interval off the bound; None: more than `_MOST`."""
    if len(values) < LEAST:
        return None
    away, sd = abs(float(np.mean(values)) - bound), float(np.std(values, ddof=1))
    return next((count for count in range(LEAST, _MOST) if half_width(sd, count) < away), None)


def needed_of_difference(sds: Sds, units: int, away: float) -> int | None:
    """As `needed_trainings`, of a paired difference whose units stay; None: these alone spread it wider."""
    from scipy.stats import norm

    reach = float(norm.ppf((1 + LEVEL) / 2))
    known = Sds(*(0.0 if math.isnan(sd) else sd for sd in sds))
    counts = range(LEAST, _MOST)
    return next((count for count in counts if reach * math.sqrt(known.variance(count, units)) < away), None)


def _values(stored: Mapping[str, Any]) -> list[float]:
    """Of each training."""
    return [math.nan if value is None else float(value) for value in stored.get("seeds", [stored["value"]])]


def _by_seed(record: Record, name: str) -> dict[int | None, float]:
    """Of each training, by its seed; nothing where it was not measured."""
    stored = record.measured.get(name)
    seeds = seeds_of(record) or (record.seeds.get("training"),)
    return {} if stored is None else dict(zip(seeds, _values(stored), strict=True))


def _quantities(record: Record) -> dict[tuple[str, str], Quantity]:
    """What can be held against baselines, by name and place."""
    measurement = loaded(KINDS[record.kind].measured)()
    return {(each.name, each.place): each for each in measurement.quantities(record.measured)}


def _number(model: str, what: str, values: Sequence[float], bound: float, untrained: float = math.nan) -> Number:
    estimate, needed = over_trainings(values), needed_trainings(values, bound)
    return Number(model, what, estimate, len(values), needed, untrained)


def _untrained(found: Found, of: str, decoder: str) -> dict[tuple[str, str], float]:
    """What untrained decoders have in the place of each quantity."""
    record = found.baselines.get(of, {}).get(decoder)
    rows = [] if record is None else record.measured["quantities"]
    baseline = ((row["name"], row["place"], row["against"].get("untrained")) for row in rows)
    return {(name, place): value["value"] for name, place, value in baseline if value and value["value"] is not None}


def _white_box(records: Mapping[str, Record]) -> Iterator[tuple[str, Record]]:
    return ((decoder, records[decoder]) for decoder in WHITE_BOX if decoder in records)


def _through(name: str, what: str) -> Callable[[Found, float], Iterator[Number]]:
    """How a quantity of rank-analysis changes from the decoder's input to its last layer, in percent."""

    def numbers(found: Found, bound: float) -> Iterator[Number]:
        for decoder, record in _white_box(found.of("rank-analysis")):
            stages = [each for (own, _), each in _quantities(record).items() if own == name]
            unlearned = _untrained(found, "rank-analysis", decoder)
            if len(stages) > 1:
                pairs = zip(_values(stages[0].stored), _values(stages[-1].stored), strict=True)
                ends = [unlearned.get((name, stage.place), math.nan) for stage in (stages[0], stages[-1])]
                values = [100 * (last / first - 1) for first, last in pairs]
                yield _number(decoder, what, values, bound, 100 * (ends[1] / ends[0] - 1))

    return numbers


def _quantity(kind: str, name: str, what: str) -> Callable[[Found, float], Iterator[Number]]:
    """A quantity of each layer."""

    def numbers(found: Found, bound: float) -> Iterator[Number]:
        for decoder, record in _white_box(found.of(kind)):
            unlearned = _untrained(found, kind, decoder)
            for (own, place), each in _quantities(record).items():
                if own == name and each.stored["value"] is not None:
                    untrained = unlearned.get((own, place), math.nan)
                    yield _number(decoder, f"{what}, layer {each.position}", _values(each.stored), bound, untrained)

    return numbers


def _above_random(found: Found, bound: float) -> Iterator[Number]:
    """Overlap of the subspaces of a layer minus that of random ones."""
    for decoder, record in _white_box(found.of("orthogonality")):
        for position, layer in enumerate(record.measured["layers"], start=1):
            overlap, random = layer["numbers"]["overlap"], layer["random"]["overlap"]["value"]
            values = [each - random for each in _values(overlap if isinstance(overlap, dict) else {"value": overlap})]
            yield _number(decoder, f"overlap of subspaces minus that of random ones, layer {position}", values, bound)


def _noise_ratio(model: str, other: str, relative: bool) -> Callable[[Found, float], Iterator[Number]]:
    """The noise that halves the mIoU of one beside that of another, as log2 of the ratio, of seeds that both have."""

    def numbers(found: Found, bound: float) -> Iterator[Number]:
        records = found.of("parameter-noise", "decoder-relative" if relative else "decoder")
        if model in records and other in records:
            ours, theirs = (_by_seed(records[each], "sigma_50") for each in (model, other))
            values = [math.log2(ours[seed] / theirs[seed]) for seed in ours if seed in theirs]
            if values and not any(math.isnan(value) for value in values):
                what = f"log2 of the ratio of sigma_50{', relative' * relative}"
                yield _number(f"{model} / {other}", what, values, bound)

    return numbers


def _accuracy(model: str, other: str) -> Callable[[Found, float], Iterator[Number]]:
    """The paired difference of mIoU, on each split."""

    def numbers(found: Found, bound: float) -> Iterator[Number]:
        for split, models in found.evaluations.items():
            if model in models and other in models:
                ours, theirs = models[model], models[other]
                classes = [row["name"] for row in ours.record.measured["per_class"]]
                miou = differences(theirs, ours, classes, found.seed)["miou"]
                ends = [math.nan if miou[end] is None else 100 * miou[end] for end in ("value", "low", "high")]
                trainings = min(len(ours.seeds), len(theirs.seeds))
                needed = None
                if trainings >= LEAST:
                    units = len(set(theirs.unit_N))
                    needed = needed_of_difference(sds_of_difference(theirs, ours), units, abs(ends[0] - bound))
                what = f"mIoU, difference, {split} (points)"
                yield Number(f"{model} - {other}", what, Estimate(*ends), trainings, needed)

    return numbers


def _replaced(found: Found, bound: float) -> Iterator[Number]:
    """The mIoU with the exact gradient step in the place of a layer's, minus that of the decoder as it is."""
    for decoder, record in _white_box(found.of("ablate")):
        for variant in record.measured["variants"]:
            if variant["kind"] == "gradient" and variant["layer"] != "all":
                values = [100 * value for value in _values(variant["miou"])]
                layer = int(variant["layer"].rpartition(".")[2]) + 1
                yield _number(decoder, f"mIoU with the exact gradient step, layer {layer} (points)", values, bound)


def _bears_more(model: str, other: str, named: str) -> Iterator[Claim]:
    """The claim about noise, and whether it is more than one about the size of weights."""
    words = f"Bears more noise on its parameters than {named}"
    yield Claim(words, "DEPICT, noise figures", _noise_ratio(model, other, relative=False), above=True, decimals=2)
    words = "So it does in units of each tensor's size"
    yield Claim(words, "ours", _noise_ratio(model, other, relative=True), above=True, decimals=2)


OF_PAIRS = (
    Claim(
        "Segments better than Segmenter's mask transformer",
        "DEPICT, table 1",
        _accuracy("depict-sa", "segmenter-mask"),
        above=True,
    ),
    Claim(
        "Is on a par with DEPICT: at most one point below",
        "CBSA, README",
        _accuracy("cbsa", "depict-sa"),
        above=True,
        bound=-1.0,
    ),
    Claim(
        "Segments better than Segmenter's mask transformer",
        "SegViT",
        _accuracy("segvit", "segmenter-mask"),
        above=True,
    ),
    Claim(
        "A mask transformer segments better than a linear layer",
        "Segmenter",
        _accuracy("segmenter-mask", "linear"),
        above=True,
    ),
    *_bears_more("depict-sa", "segmenter-mask", "Segmenter's mask transformer"),
    *_bears_more("cbsa", "depict-sa", "DEPICT"),
)
OF_LAYERS = (
    Claim(
        "The attention of each layer compresses: R^c of its tokens falls",
        "DEPICT, figure 7; CRATE, figure 3",
        _quantity("alignment", "change (%)", "change of R^c (%)"),
        above=False,
    ),
    Claim(
        "The rate of the tokens falls on the way through the decoder",
        "DEPICT, appendix",
        _through("R(Z) (nats)", "change of R(Z), input to last layer (%)"),
        above=False,
    ),
    Claim(
        "The learned step goes down the rate: it is above 0",
        "DEPICT, its derivation",
        _quantity("drift", "step, learned", "step"),
        above=True,
        decimals=2,
    ),
    Claim(
        "What a layer adds points down the gradient of R^c",
        "DEPICT, CRATE, CBSA, ToST: their derivations",
        _quantity("alignment", "cosine", "cosine of update and descent"),
        above=True,
        decimals=3,
    ),
    Claim(
        "A layer is such a step: an exact one in its place costs at most a point",
        "CRATE, equations 10 to 13",
        _replaced,
        above=True,
        bound=-1.0,
    ),
    Claim(
        "The subspaces of a layer are nearer to orthogonal than random ones",
        "DEPICT, figures 5 and 8",
        _above_random,
        above=False,
        decimals=3,
    ),
)
CLAIMS = (*OF_PAIRS, *OF_LAYERS)
