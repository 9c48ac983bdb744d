"""What intervals and paired tests hold, by simulation with a known truth: few trainings, few clusters, ratios of sums.

A pixel of unit u is right, for the model of seed s, with a probability that has a seed's, a unit's and their common
part, and images differ. Falsely predicted pixels are a share of the labelled ones, so the truth is known: IoU = p / (1
+ share). ``pytest -rP`` shows what was found.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.maths.resampling import interval, sampled

Float = NDArray[np.float64]
CLASSES, IMAGES, FALSE, REPEATS, RESAMPLES = 4, 5, 0.3, 1000, 100
RIGHT = np.linspace(0.3, 0.8, CLASSES)
TRUTH = np.concatenate([[RIGHT.mean()], RIGHT]) / (1 + FALSE)

MIXED = {"seed": 0.01, "unit": 0.03, "both": 0.01, "image": 0.05}
SETTINGS = {
    "units and seeds": MIXED,
    "mostly units": {**MIXED, "seed": 0.002, "unit": 0.05},
    "mostly seeds": {**MIXED, "seed": 0.04, "unit": 0.01},
}


def told(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def ious(sums: Float) -> Float:
    right, predicted, labelled = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, CLASSES), -2, 0)
    iou = right / (predicted + labelled - right)
    return np.concatenate([iou.mean(-1, keepdims=True), iou], -1)


def effects(random: np.random.Generator, seeds: int, units: int, sd: dict[str, float]) -> Float:
    """What a model has beside ``RIGHT``, (S, U, 1, K)."""
    of_seed = random.normal(0, sd["seed"], (seeds, 1, 1, CLASSES)) + random.normal(0, sd["seed"], (seeds, 1, 1, 1))
    return of_seed + random.normal(0, sd["both"], (seeds, units, 1, CLASSES))


def of_units(random: np.random.Generator, units: int, sd: float) -> Float:
    return random.normal(0, sd, (1, units, 1, CLASSES)) + random.normal(0, sd, (1, units, 1, 1))


def labelled(random: np.random.Generator, units: int) -> Float:
    """Pixels of a class in an image, (U, N, K); units and images differ in size."""
    sizes = random.lognormal(0, 0.5, (units, 1, CLASSES)) * random.lognormal(0, 0.25, (units, IMAGES, CLASSES))
    return 1000 * sizes


def counts(random: np.random.Generator, label: Float, right: Float, sd: float) -> Float:
    """(S, U N, 3 K)."""
    right = label * (right + random.normal(0, sd, (len(right), *label.shape)))
    predicted = right + FALSE * label
    stacked = np.stack([right, predicted, np.broadcast_to(label, right.shape)], -2)
    return stacked.reshape(len(right), -1, 3 * CLASSES)


def covered(seeds: int, units: int, sd: dict[str, float], least: int = 0) -> Float:
    """Share of the simulations whose interval holds the truth: of mIoU, and of classes on average."""
    random = np.random.default_rng([seeds, units])
    held = []
    unit_N = np.repeat(np.arange(units), IMAGES)
    for repeat in range(REPEATS):
        label = labelled(random, units)
        right = RIGHT + effects(random, seeds, units, sd) + of_units(random, units, sd["unit"])
        found = interval(
            sampled(counts(random, label, right, sd["image"]), ious, unit_N, resamples=RESAMPLES, seed=repeat)
        )
        held.append((found.low_M <= TRUTH) & (found.high_M >= TRUTH))
    shares = np.mean(held, axis=0)
    return np.array([shares[0], shares[1:].mean()])


ONE = {"one training": {**MIXED, "seed": 0.0}}  # its own truth is meant, not that of others


@pytest.mark.parametrize("units", [3, 5, 10])
@pytest.mark.parametrize(("setting", "seeds"), [("one training", 1), *((name, n) for name in SETTINGS for n in (3, 5))])
def test_intervals_cover_what_they_say(setting: str, seeds: int, units: int) -> None:
    sd = {**SETTINGS, **ONE}[setting]
    found = covered(seeds, units, sd)
    told(f"{setting}, {seeds} seeds, {units} units: {found}")
    assert (found > 0.93).all() and (found < 0.97).all(), found


def test_two_clusters_have_no_interval_and_what_one_would_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (covered(3, 2, MIXED) == 0).all()
    monkeypatch.setattr("analysis.maths.resampling.LEAST", 2)
    found = covered(3, 2, MIXED)
    told(f"3 seeds, 2 units: {found}")
    assert (found < 0.97).all()


def rejected(seeds: int, units: int, preference: float, sd: dict[str, float], matched: bool = True) -> float:
    """Share of paired tests of two models as good as each other that find a difference of mIoU.

    ``preference``: units that suit one of the models rather than the other.
    """
    random = np.random.default_rng([7, seeds, units])
    unit_N = np.repeat(np.arange(units), IMAGES)
    found = 0
    for repeat in range(REPEATS):
        label, hard = labelled(random, units), of_units(random, units, sd["unit"])
        both = []
        for count in (seeds, seeds if matched else seeds + 1):
            right = RIGHT + effects(random, count, units, sd) + hard + of_units(random, units, preference)
            both.append(
                sampled(counts(random, label, right, sd["image"]), ious, unit_N, resamples=RESAMPLES, seed=repeat)
            )
        found += bool(interval(both[0].minus(both[1], matched)).p_M[0] < 0.05)
    return found / REPEATS


@pytest.mark.parametrize(("seeds", "units"), [(1, 5), (1, 10), (3, 5), (3, 10), (5, 5), (5, 10)])
def test_a_paired_test_under_no_difference_rejects_as_often_as_it_says(seeds: int, units: int) -> None:
    sd = MIXED if seeds > 1 else {**MIXED, "seed": 0.0}
    found = rejected(seeds, units, 0.02, sd)
    told(f"{seeds} seeds, {units} units: {found}")
    assert 0.03 <= found <= 0.07


def test_with_unlike_seeds_too() -> None:
    assert 0.03 <= rejected(3, 10, 0.02, MIXED, matched=False) <= 0.07


def test_where_neither_seeds_nor_units_differ_it_is_careful() -> None:
    """Of the interaction alone each mean square is an estimate, and the largest of three is taken."""
    found = rejected(3, 10, 0.0, {"seed": 0.0, "unit": 0.03, "both": 0.02, "image": 0.05})
    told(f"only an interaction: {found}")
    assert found <= 0.03
