"""What lies behind the lines of the figure over distortions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import made_up

from analysis.record import Data
from analysis.show import alignment

DISTORTIONS = (0.1, 1.0, 10.0)
SEEDS = {"cosine": (0.9, 0.5), "derived": (0.8, 0.2), "change": (-3.0, -9.0)}


def of_two_trainings(first: float, second: float) -> list[dict[str, Any]]:
    mean = (first + second) / 2
    return [{"value": mean, "low": None, "high": None, "seeds": [first, second], "sd": 0.1} for _ in DISTORTIONS]


def test_trainings_lie_behind_each_line_and_behind_the_dotted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dotted line is that of the derived direction: its trainings are dotted, too, not those of the update."""
    caught: list[Any] = []
    monkeypatch.setattr(alignment, "save_figure", lambda figure, stem: caught.append(figure))
    layer = {
        "name": "decoder.layers.0",
        "objective": "compression",
        "range": {key: of_two_trainings(*values) for key, values in SEEDS.items()},
    }
    record = made_up(
        "alignment",
        model="sa",
        data=Data("camvid", "val", 4, "ab" * 32),
        n=4,
        measured={"layers": [layer]},
        settings={"distortions": list(DISTORTIONS), "at": "tokens", "eps": 0.1, "training_seeds": [0, 1]},
    )
    alignment._draw_range([record], Path("unused"))
    above, below = caught[0].axes
    found = {
        (name, line.get_linestyle(), bool((line.get_alpha() or 1) < 0.5), float(np.unique(line.get_ydata()).item()))
        for name, axes in (("cosine", above), ("change", below))
        for line in axes.lines
        if len(line.get_xdata()) == len(DISTORTIONS)
    }
    assert found == {
        ("cosine", "-", False, 0.7),
        ("cosine", "-", True, 0.9),
        ("cosine", "-", True, 0.5),
        ("cosine", ":", False, 0.5),
        ("cosine", ":", True, 0.8),
        ("cosine", ":", True, 0.2),
        ("change", "-", False, 6.0),
        ("change", "-", True, 3.0),
        ("change", "-", True, 9.0),
    }
    assert "Faint lines: single trainings." in caught[0].get_supxlabel()
