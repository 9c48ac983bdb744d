"""The figure of paired differences where there are many classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asking import made_up

from analysis.record import Data, Record
from analysis.show import compare


def record(model: str, gains: list[float]) -> Record:
    def about(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.01, "high": value + 0.01, "p": 0.01, "error": 0.0}

    return made_up(
        "compare",
        model=model,
        data=Data("ade20k", "val", 20, "ab" * 32),
        n=20,
        settings={"reference": "linear"},
        measured={
            **{key: about(0.01) for key in ("miou", "macc", "aacc")},
            "per_class": [{"name": f"class-{index:03d}", "iou": about(gain)} for index, gain in enumerate(gains)],
        },
    )


@pytest.mark.parametrize("models", [1, 2])
def test_of_many_classes_those_that_gain_and_lose_most_are_drawn(monkeypatch: pytest.MonkeyPatch, models: int) -> None:
    """By the first model where there are several, and the figure says so."""
    caught: list[Any] = []
    monkeypatch.setattr(compare, "save_figure", lambda figure, stem: caught.append(figure))
    gains = [0.001 * (75 - index) for index in range(150)]
    records = [record("sa", gains), record("ca", gains[::-1])][:models]
    compare._draw(records, Path("unused"))
    (axes,) = caught[0].axes
    shown = [label.get_text() for label in axes.get_yticklabels()][1:]
    assert shown == [f"class-{index:03d}" for index in (*range(20), *range(130, 150))]
    words = " ".join(axes.get_xlabel().split())
    whose = " by sa" if models == 2 else ""
    assert f"the 20 that gain most{whose} and the 20 that lose most{whose} of 150 classes; all: in the table" in words
