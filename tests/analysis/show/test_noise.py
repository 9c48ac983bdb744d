"""Curves of noise: few models share a panel, many have one each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asking import made_up
from matplotlib.colors import to_rgb

from analysis.record import Data, Record
from analysis.show import noise

GREY = to_rgb("0.75")
LEVELS = (0.0, 0.1, 0.2, 0.4)


def model(number: int) -> Record:
    def point(sigma: float) -> dict[str, Any]:
        value = 0.5 + 0.03 * number - sigma
        miou = {"value": value, "low": value - 0.02, "high": value + 0.02}
        images = {"low": value - 0.05, "high": value + 0.05}
        return {
            "sigma": sigma,
            "miou": miou if sigma else {**miou, "low": None, "high": None},
            "images": images,
            "smallest": value - 0.03,
            "largest": value + 0.03,
            "draws": [value] * 3,
        }

    return made_up(
        "parameter-noise",
        model=f"model-{number}",
        data=Data("camvid", "val", 101, "ab" * 32),
        n=101,
        variant="decoder",
        measured={"curve": [point(sigma) for sigma in LEVELS], "classes": ["sky", "car"], "notes": []},
        settings={"target": "decoder", "relative": False, "antithetic": False, "draws": 3, "resamples": 100},
        seeds={"noise": 0, "bootstrap": 0},
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    caught: list[Any] = []
    monkeypatch.setattr(noise, "save_figure", lambda figure, stem: caught.append(figure))
    return caught


def means(axes: Any) -> dict[tuple[float, ...], list[float]]:
    """The curves through all levels that are drawn in full, by colour."""
    return {
        to_rgb(line.get_color()): [float(y) for y in line.get_ydata()]
        for line in axes.lines
        if line.get_linestyle() == "-" and len(line.get_xdata()) == len(LEVELS)
    }


def test_few_models_share_a_panel(drawn: list[Any]) -> None:
    noise.noise_curves([model(number) for number in range(noise.TOGETHER)], Path("unused"))
    (axes,) = drawn[0].axes
    assert len(axes.collections) >= noise.TOGETHER and GREY not in means(axes)
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == [f"model-{number}" for number in range(noise.TOGETHER)]


@pytest.mark.parametrize("count", [noise.TOGETHER + 1, 9, noise.MODELS])
def test_many_models_have_a_panel_each(drawn: list[Any], count: int) -> None:
    """Its own curve with its band in its colour, the means of the others behind it in grey; one scale for all."""
    records = [model(number) for number in range(count)]
    noise.noise_curves(records, Path("unused"))
    (figure,) = drawn
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == [record.model for record in records] and not figure.legends
    colours = set()
    for number, axes in enumerate(panels):
        (own,) = (colour for colour in means(axes) if colour != GREY)
        colours.add(own)
        assert means(axes)[own] == pytest.approx([100 * (0.5 + 0.03 * number - sigma) for sigma in LEVELS])
        behind = [line for line in axes.lines if to_rgb(line.get_color()) == GREY]
        assert len(behind) == count and all(line.get_zorder() < 1.5 for line in behind)
        faces = [each.get_facecolor()[0] for each in axes.collections if len(each.get_facecolor())]
        assert len(faces) == 1 and faces[0] == pytest.approx((*own, 0.18))
    assert len(colours) == count
    assert len({axes.get_ylim() for axes in panels}) == len({axes.get_xlim() for axes in panels}) == 1
    across = 3
    lowest = [index for index in range(count) if index + across >= count]
    assert [index for index, axes in enumerate(panels) if axes.get_xlabel()] == lowest  # none of these has one below
    figure.draw_without_rendering()
    assert all(any(tick.label1.get_visible() for tick in panels[index].xaxis.get_major_ticks()) for index in lowest)
    assert "grey: the other models" in " ".join(figure.get_supxlabel().split())


def test_more_models_than_colours_are_refused() -> None:
    with pytest.raises(noise.RecordError, match=f"at most {noise.MODELS} models"):
        noise.tables([model(number) for number in range(noise.MODELS + 1)])
