"""Transforms of detectron2, equal to the official ones on the same draws."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whitebox.config import DataConfig
from whitebox.data import detectron2
from whitebox.data.augment import augment, random_key


@pytest.fixture(scope="module")
def facts(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden" / "sed_steps" / "sed_eval_data.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def arrays(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / "sed_steps" / "sed_eval_data.npz") as opened:
        return {name: opened[name] for name in opened.files}


class Drawn:
    """A generator that gives the official draws, and sees that the same are asked for."""

    def __init__(self, draws: list[list[Any]]) -> None:
        self.draws = list(draws)

    def _next(self, kind: str) -> Any:
        name, _, value = self.draws.pop(0)
        assert kind in name
        return value

    def randint(self, low: int, high: int | None = None) -> int:
        return int(self._next("rand"))

    def uniform(self, low: float, high: float) -> float:
        return float(self._next("uniform"))


def test_sides_are_the_official_ones(facts: dict[str, Any]) -> None:
    for name, rows in facts["resize_shortest_edge"].items():
        _, short, long = name.split("_")
        for height, width, *expected in rows:
            assert list(detectron2.resized_sides(height, width, int(short), int(long))) == expected


def test_pixels_are_the_official_ones(arrays: dict[str, np.ndarray]) -> None:
    for name in ("down", "up"):
        expected = arrays[f"tf.pil_bilinear.{name}"]
        found = detectron2._resize_image(arrays["tf.image"], expected.shape[:2])
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
        expected = arrays[f"tf.label_nearest.{name}"]
        assert np.array_equal(detectron2._resize_label(arrays["tf.label"], expected.shape), expected)


def test_colours_are_the_official_ones(facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    for number, draws in enumerate(facts["color_aug_draws"]):
        drawn = Drawn(draws)
        found = detectron2.distort(arrays["tf.image"], drawn)  # type: ignore[arg-type]
        assert drawn.draws == []
        difference = np.abs(found.astype(int) - arrays[f"tf.color.{number}"].astype(int))
        assert difference.max() <= 1, number


class Python(Drawn):
    """The draws of Python's generator, from which the official mapper takes colours."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def randint(self, low: int, high: int | None = None) -> int:
        return self.random.randrange(low) if high is None else self.random.randint(low, high - 1)

    def uniform(self, low: float, high: float) -> float:
        return self.random.uniform(low, high)


@pytest.mark.parametrize("case", ["mapper", "mapper.padded"])
def test_the_whole_pipeline_is_the_official_one(arrays: dict[str, np.ndarray], case: str) -> None:
    padded = case.endswith("padded")
    image, label = arrays["mapper.padded.in" if padded else "mapper.image"], arrays[f"{case}.label"]
    expected, expected_label = arrays[f"{case}.out.image"], arrays[f"{case}.out.sem_seg"]
    sides = detectron2.resized_sides(*label.shape, 64, 222)
    assert (sides[0] < 64) == padded
    image, label = detectron2._resize_image(image, sides), detectron2._resize_label(label, sides)
    for top in range(max(0, sides[0] - 64) + 1):
        for left in range(sides[1] - 63):
            square = np.s_[top : top + 64, left : left + 64]
            for turn in (1,) if padded else (1, -1):
                if not np.array_equal(detectron2.pad(image[square], label[square][:, ::turn], 64)[1], expected_label):
                    continue
                colours = image[square] if padded else detectron2.distort(image[square], Python(2029))  # type: ignore[arg-type]
                found, _ = detectron2.pad(colours[:, ::turn], label[square], 64)
                assert np.abs(found * 255 - expected).max() <= 1.001
                return
    pytest.fail("no crop is the official one")


def test_a_view_has_the_shape_of_a_crop() -> None:
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (40, 90, 3), np.uint8), rng.integers(0, 4, (40, 90), np.uint8)
    data = DataConfig(transforms="detectron2", resize=48, train_resize=64, crop=64)
    first = augment(image, label, data, (0.0, 0.0, 0.0), random_key(0, 0, 0))
    again = augment(image, label, data, (0.0, 0.0, 0.0), random_key(0, 0, 0))
    assert first[0].shape == (3, 64, 64) and first[0].dtype == np.float32 and first[1].shape == (64, 64)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert 255 not in first[1]
    other = augment(image, label, data, (0.0, 0.0, 0.0), random_key(0, 0, 1))
    assert not np.array_equal(first[0], other[0])
