"""The corruptions: which, how strong, and on which random numbers."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from analysis.maths.corruption_names import GROUPS, KINDS, SEVERITIES, parse_kinds, parse_severities, shown_names
from analysis.maths.corruptions import Corruption, corrupt
from analysis.maths.degradation import degradation, relative_degradation
from analysis.measures.corruption_tables import estimated
from whitebox.errors import ConfigError, DataError


def photo(height: int = 45, width: int = 61) -> np.ndarray:
    """Smooth, with a little texture."""
    rows, columns = np.mgrid[0:height, 0:width]
    base = 127 + 60 * np.sin(rows / 7) * np.cos(columns / 5)
    grain = np.random.default_rng(0).normal(0, 8, (height, width, 3))
    return np.clip(base[..., None] + grain, 0, 255).astype(np.uint8)


def test_fifteen_kinds_in_four_groups() -> None:
    assert len(KINDS) == 15 and parse_kinds("all") == KINDS
    assert parse_kinds("fog, noise") == (*GROUPS["noise"], "fog")
    assert parse_kinds("weather,snow") == GROUPS["weather"]
    assert shown_names(["jpeg_compression", "snow"]) == ["JPEG compression", "snow"]


@pytest.mark.parametrize("text", ["", "smog", "noise,,fog", "Fog"])
def test_unknown_kinds(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"Unknown corruption .*There are all, noise, blur, weather, digital, and gauss"
    ):
        parse_kinds(text)


@pytest.mark.parametrize(
    ("text", "severities"), [("1:5", SEVERITIES), ("3", (3,)), ("5,1,5", (1, 5)), ("2:2", (2,)), ("2:3", (2, 3))]
)
def test_severities(text: str, severities: tuple[int, ...]) -> None:
    assert parse_severities(text) == severities


@pytest.mark.parametrize("text", ["", "0", "6", "1:6", "5:1", "x", "1.5", "1:", ":", "1:3:5", "-1"])
def test_severities_that_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is impossible: give 3, 1:5 or 1,3,5"):
        parse_severities(text)


@pytest.mark.usefixtures("imagecorruptions")
@pytest.mark.parametrize("kind", KINDS)
def test_every_corruption(kind: str) -> None:
    """Any size, repeatable, on random numbers of its own; NumPy's global ones are as before."""
    image = photo()
    kept = image.copy()
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    weak, strong = corrupt(image, kind, 1, 0, "shapes", "a"), corrupt(image, kind, 5, 0, "shapes", "a")
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index]  # noqa: NPY002
    np.testing.assert_array_equal(image, kept)
    for changed in (weak, strong):
        assert changed.shape == image.shape and changed.dtype == np.uint8 and (changed != image).any()
    np.random.seed(6)  # noqa: NPY002
    np.testing.assert_array_equal(corrupt(image, kind, 5, 0, "shapes", "a"), strong)
    difference = [np.abs(changed.astype(float) - image).mean() for changed in (weak, strong)]
    assert difference[1] > difference[0]
    random = kind not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert (corrupt(image, kind, 5, 0, "shapes", "b") != strong).any() == random
    assert (corrupt(image, kind, 5, 1, "shapes", "a") != strong).any() == random


@pytest.mark.usefixtures("imagecorruptions")
def test_severities_share_their_random_numbers() -> None:
    grey = np.full((40, 40, 3), 128, np.uint8)
    weak, strong = (corrupt(grey, "gaussian_noise", severity, 0).astype(float) - 128 for severity in (1, 3))
    inside = np.abs(strong) < 120
    np.testing.assert_allclose(weak[inside] / 0.08, strong[inside] / 0.18, atol=15)


@pytest.mark.usefixtures("imagecorruptions")
@pytest.mark.parametrize("size", [(32, 32), (33, 200), (150, 32)])
def test_sizes(size: tuple[int, int], capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("zoom_blur", "snow", "frost", "fog", "elastic_transform"):
        assert corrupt(photo(*size), kind, 3, 0).shape == (*size, 3)
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("imagecorruptions")
def test_photos_that_are_too_small() -> None:
    with pytest.raises(DataError, match="lane: A photo of 50 x 31 px cannot be corrupted: the corruptions need 32 px"):
        Corruption("fog", 1, "shapes", 0)(photo(31, 50), "lane")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ConfigError, match=r"needs imagecorruptions-imaug: pip install 'whitebox-seg\[corruptions\]'"):
        corrupt(photo(), "fog", 1)


def test_degradation_by_hand() -> None:
    model, reference = [[0.5, 0.3], [0.4, 0.4]], [[0.6, 0.4], [0.4, 0.2]]
    np.testing.assert_allclose(degradation(model, reference), [1.2 / 1.0, 1.2 / 1.4])
    np.testing.assert_allclose(degradation(reference, reference), 1)
    relative = relative_degradation(model, [0.6, 0.6], reference, [0.7, 0.4])
    np.testing.assert_allclose(relative, [(0.1 + 0.3) / (0.1 + 0.3), (0.2 + 0.2) / 0.2])
    assert np.isnan(relative_degradation([0.5], 0.6, [0.7], 0.7))  # the reference loses nothing
    assert np.isnan(degradation([0.5], [1.0]))


def test_an_interval_is_that_of_the_resamples() -> None:
    found = estimated(np.array([7.0, *range(1001)]), 10**9)
    assert found == {"value": 7.0, "low": pytest.approx(25), "high": pytest.approx(975)}
    few = estimated(np.array([1500.0, *range(1000, 2001)]), 5)
    assert few["high"] - few["low"] == pytest.approx(950 * 2.776 / 1.960 * (5 / 4) ** 0.5, rel=1e-3)
    broken = estimated(np.array([7.0, 1.0, np.nan]), 9)
    assert broken["value"] == 7.0 and np.isnan(broken["low"]) and np.isnan(broken["high"])
