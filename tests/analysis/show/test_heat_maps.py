"""Heat maps of classes: of many, of some that no patch has, and of one model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import made_up

from analysis.maths.packing import packed
from analysis.record import Data, Record
from analysis.show import orthogonality, probe

DATA = Data("ade20k", "val", 4, "ab" * 32)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    caught: list[Any] = []
    for module in (orthogonality, probe):
        monkeypatch.setattr(module, "save_figure", lambda figure, *_, **__: caught.append(figure))
    return caught


def probed(classes: int, absent: bool) -> Record:
    shares = [[{"value": 0.4, "low": 0.3, "high": 0.5}] * 2 for _ in range(classes)]
    if absent:
        shares[1] = [{"value": None, "low": None, "high": None}] * 2
    counted = {"patches": 10, "images": 4, "sample": 10}
    return made_up(
        "probe",
        model="sa",
        data=DATA,
        n=4,
        settings={"tokens": "normed", "eps": 0.1, "fitted": {"split": "train"}},
        measured={
            "classes": [f"class-{index:03d}" for index in range(classes)],
            "energies": [{"position": 1, "random": [0.3, 0.3], "shares": shares}],
            "fitted": counted,
            "judged": counted,
        },
    )


@pytest.mark.parametrize(("classes", "absent"), [(3, False), (150, True)])
def test_energies_of_many_classes_say_where_names_are_and_what_is_white(
    drawn: list[Any], classes: int, absent: bool
) -> None:
    probe._draw_energies([probed(classes, absent)], Path("unused"))
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()][:1] == (["class-000"] if classes == 3 else [])
    assert axes.get_ylabel() == ("" if classes == 3 else "150 classes, in the order of the table")
    assert ("white: a class without patches" in axes.get_xlabel()) == absent
    assert drawn[0].get_figheight() < 10


@pytest.mark.parametrize("models", [1, 2, 5])
def test_models_side_by_side_leave_no_empty_half(drawn: list[Any], models: int) -> None:
    cosines = packed(np.eye(150))
    records = [
        made_up(
            "orthogonality",
            model=f"model-{number}",
            data=DATA,
            n=4,
            measured={"classes": {"names": ["x"] * 150, "learned": {"cosines": cosines}}},
        )
        for number in range(models)
    ]
    orthogonality._draw_classes(records, Path("unused"))
    panels = [axes for axes in drawn[0].axes if axes.images or axes.axison]
    drawn[0].draw_without_rendering()
    boxes = [axes.get_window_extent() for axes in panels if axes.get_title()]
    assert len(boxes) == models
    across = min(models, 4)
    covered = sum(box.width for box in boxes[:across]) / drawn[0].bbox.width
    assert covered > 0.6, covered
