"""Claims held against numbers that are known: on which side of a bound a whole interval lies, and what would tell."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from analysis.maths.intervals import half_width
from analysis.maths.variance import Sds
from analysis.record import Data, Record
from analysis.show.tables import Estimate
from experiments import claims
from experiments.claims import (
    CLAIMS,
    OF_PAIRS,
    Claim,
    Found,
    Key,
    Number,
    claims_table,
    layers_table,
    needed_of_difference,
    over_trainings,
)


def a_claim(above: bool, bound: float = 0.0) -> Claim:
    return Claim("words", "source", lambda found, bound: iter(()), above, bound)


def a_record(kind: str, measured: dict[str, Any], variant: str = "") -> Record:
    data = Data("shapes", "val", 3, "0" * 16)
    return Record(kind=kind, model="m", data=data, weights=None, variant=variant, measured=measured, n=3)


def test_over_trainings_is_students_t() -> None:
    values = [1.0, 1.5, 2.4, 0.7]
    found = over_trainings(values)
    known = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high)) and found.value == np.mean(values)
    assert math.isnan(over_trainings([1.0, 2.0]).low)


@pytest.mark.parametrize(
    ("above", "low", "high", "verdict"),
    [
        (True, 0.1, 2.0, "supported"),
        (True, -2.0, -0.1, "refuted"),
        (False, -2.0, -0.1, "supported"),
        (False, 0.1, 2.0, "refuted"),
        (False, -0.1, 2.0, "cannot tell; about 7 trainings would"),
    ],
)
def test_a_verdict_is_about_the_whole_interval(above: bool, low: float, high: float, verdict: str) -> None:
    number = Number("m", "x", Estimate((low + high) / 2, low, high), 4, needed=7)
    assert a_claim(above).verdict(number) == verdict
    moved = Number("m", "x", Estimate(number.estimate.value - 1, low - 1, high - 1), 4, needed=7)
    assert a_claim(above, bound=-1.0).verdict(moved) == verdict


def test_too_few_trainings_tell_nothing() -> None:
    assert (
        a_claim(True).verdict(Number("m", "x", Estimate(5.0, 4.0, 6.0), 2)).startswith("cannot tell: 2 of at least 3")
    )
    assert "nor would 200 trainings" in a_claim(True).verdict(
        Number("m", "x", Estimate(1.0, -1.0, 3.0), 5, needed=None)
    )


def test_the_trainings_that_would_tell() -> None:
    values = [1.0, -0.5, 1.5]  # the interval of three holds 0
    needed = claims.needed_trainings(values, 0.0)
    assert needed is not None and needed > len(values)
    half = [half_width(float(np.std(values, ddof=1)), count) for count in (needed - 1, needed)]
    assert half[1] < np.mean(values) <= half[0]
    assert claims.needed_trainings([1.0, -1.0, 0.0], 0.0) is None  # no mean at all
    assert needed_of_difference(Sds(1.0, 0.1, 0.0), 10, 1.0) == 4  # 1.96 sqrt(1 / 4 + 0.001) < 1
    assert needed_of_difference(Sds(1.0, 5.0, 0.0), 10, 1.0) is None  # ten such units alone spread it by 3.1


def test_numbers_of_layers_beside_untrained() -> None:
    def estimate(*values: float) -> dict[str, Any]:
        return {"value": float(np.mean(values)), "low": None, "high": None, "seeds": list(values)}

    layer = {"position": 0, "effective_rank": estimate(1.0), "reduction": estimate(1.0)}
    layers = [
        {**layer, "name": "decoder.input", "rate": estimate(50.0, 50.0, 50.0)},
        {**layer, "name": "decoder.layers.0", "rate": estimate(55.0, 56.0, 57.0)},
    ]
    moves = [
        {
            "name": "decoder.layers.0",
            "objective": "compression",
            "cosine": estimate(0.1, 0.1, -0.1),
            "change": estimate(-10.0, -11.0, -9.0),
            "gradient": estimate(-2.0),
        }
    ]
    records = {
        "rank-analysis": a_record("rank-analysis", {"layers": layers, "projections": []}),
        "alignment": a_record("alignment", {"layers": moves}),
    }
    quantities = [{"name": "change (%)", "place": "decoder.layers.0", "against": {"untrained": {"value": -1.0}}}]
    found = Found(
        {Key(kind, "", "val"): {"cbsa": record} for kind, record in records.items()},
        {},
        {"alignment": {"cbsa": a_record("against", {"quantities": quantities})}},
    )
    compresses, rate, follows = (claim for claim in CLAIMS if list(claim.numbers(found, 0.0)))
    (number,) = compresses.numbers(found, 0.0)
    assert number.estimate.value == pytest.approx(-10.0) and number.untrained == pytest.approx(-1.0)
    assert number.trainings == 3 and compresses.verdict(number) == "supported"
    (number,) = rate.numbers(found, 0.0)
    assert number.estimate.value == pytest.approx(12.0) and rate.verdict(number) == "refuted"
    signs = ("+", "\N{MINUS SIGN}", "?")
    assert layers_table(found).rows == tuple(zip((compresses.words, rate.words, follows.words), signs, strict=True))
    row = claims_table(found).rows[0]
    assert row[2:5] == ("cbsa", "change of R^c (%), layer 1", "< 0") and row[-1] == "supported"


def test_noise_is_a_ratio_of_pairs_of_trainings() -> None:
    """Of the seeds that both have."""
    records = {
        decoder: replace(
            a_record("parameter-noise", {"sigma_50": {"value": 1.0, "seeds": stored}}),
            settings={"training_seeds": list(range(len(stored)))},
        )
        for decoder, stored in (("depict-sa", [0.4, 0.8, 0.4]), ("segmenter-mask", [0.1, 0.2, 0.1, 9.0]))
    }
    found = Found({Key("parameter-noise", "decoder", "val"): records}, {}, {})
    ((number,),) = (numbers for claim in CLAIMS if (numbers := list(claim.numbers(found, 0.0))))
    assert number.estimate.value == pytest.approx(2.0) and number.model == "depict-sa / segmenter-mask"
    assert number.trainings == 3
    (row,) = claims_table(found, OF_PAIRS).rows
    assert row[2] == "depict-sa / segmenter-mask" and layers_table(found).rows == ()


def test_nothing_measured_gives_an_empty_table() -> None:
    assert claims_table(Found({}, {}, {})).rows == ()
