"""The table of calibration: each number with the decimals that it has beside other models."""

from __future__ import annotations

from typing import Any

from asking import made_up

from analysis.record import Data, Record
from analysis.show.calibration import tables

NUMBERS = {"ece": 0.03456, "overconfidence": -0.01234, "brier": 0.45678, "aurc": 0.012344, "eaurc": 0.00456}
SHOWN = ["3.46 [3.36, 3.56]", "-1.23 [-1.33, -1.13]", "0.457 [0.456, 0.458]", "1.23 [1.13, 1.33]", "0.46 [0.36, 0.56]"]
RISKS = ["2.00 [1.90, 2.10]", "5.50 [5.40, 5.60]", "11.11 [11.01, 11.21]"]


def about(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.001, "high": value + 0.001}


def record(model: str = "sa", **changes: Any) -> Record:
    measured = {
        **{name: about(value) for name, value in NUMBERS.items()},
        "reliability": [{"from": 0.0, "to": 1.0, "share": 1.0, "confidence": 0.5, "accuracy": about(0.5)}],
        "risk": [{"coverage": at, "risk": about(risk)} for at, risk in ((0.8, 0.02), (0.9, 0.055), (1.0, 0.11111))],
        **changes,
    }
    return made_up("calibration", model=model, data=Data("camvid", "val", 101, "ab" * 32), n=101, measured=measured)


def test_decimals_are_those_of_each_number() -> None:
    """Beside each other or one below the other: Brier has three, though the column of values has two."""
    (one,) = tables([record()]).values()
    assert [row[1] for row in one.shown()] == SHOWN + RISKS
    (several,) = tables([record(), record("ca")]).values()
    assert several.shown() == [[model, *SHOWN, *RISKS] for model in ("sa", "ca")]


def test_a_brier_score_below_its_decimals_is_not_0() -> None:
    (one,) = tables([record(brier={"value": 0.0002, "low": 0.0001, "high": 0.0003})]).values()
    assert one.shown()[2] == ["Brier", "0.00020 [0.00010, 0.00030]"]
