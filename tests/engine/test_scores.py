"""Inference of models that give scores: windows and views of SegViT against the released code and a plain reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_vectors import released_segvit
from numpy.typing import NDArray
from safetensors.torch import load_file

import whitebox
from whitebox.config import InferenceConfig
from whitebox.engine import assembly
from whitebox.engine.inference import predict_labels, probabilities, segment
from whitebox.engine.windows import anchors
from whitebox.models import EncoderConfig, Segmentor, build
from whitebox.models.decoders.segvit import SegViTConfig

Normalise = Callable[[torch.Tensor], torch.Tensor]
NORMALISE: dict[str, Normalise] = {"shares": lambda scores: scores / scores.sum(0), "softmax": lambda s: s.softmax(0)}


@pytest.fixture(scope="module")
def model() -> Segmentor:
    torch.manual_seed(2)  # one whose random weights see more than one class
    encoder = EncoderConfig(image_size=32, width=24, depth=2, heads=2, patch_size=8)
    built = build(encoder, SegViTConfig(encoder_layers=[0, 1], layers=1, width=16, heads=2), 5).eval()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # masks and classes that differ
    return built


def photo(height: int, width: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(noise, (width, height)))


@torch.inference_mode()
def reference(
    model: Segmentor,
    views: list[tuple[NDArray[np.uint8], bool]],
    shape: tuple[int, int],
    window: int,
    stride: int,
    normalise: Normalise,
) -> torch.Tensor:
    """Scores of every window at full size, averaged; resized; normalised; averaged over views."""
    total = torch.zeros(())
    for image, flipped in views:
        x = torch.from_numpy(image).permute(2, 0, 1)[None]
        x = x.flip(3) if flipped else x
        h, w = x.shape[2:]
        scores, count = torch.zeros(1, model.num_classes, h, w), torch.zeros(h, w)
        for top in anchors(h, window, stride):
            for left in anchors(w, window, stride):
                place = (..., slice(top, top + window), slice(left, left + window))
                scores[place] += model(x[place])
                count[place] += 1
        scores = F.interpolate(scores / count, shape, mode="bilinear")[0]
        total = total + normalise(scores.flip(2) if flipped else scores)
    return total / len(views)


CASES = [  # image sides, original sides, window, stride, probabilities, tile
    ((40, 64), (40, 64), 32, 16, "shares", (2**17, 64)),
    ((41, 67), (53, 90), 32, 20, "softmax", (2**17, 64)),
    ((41, 67), (53, 90), 32, 20, "shares", (5 * 9 * 16, 16)),
    ((64, 33), (70, 31), 30, 30, "shares", (2**17, 64)),  # a window is padded to whole patches
]


@pytest.mark.parametrize(("size", "shape", "window", "stride", "how", "tile"), CASES)
def test_equals_the_plain_reference(
    model: Segmentor,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    shape: tuple[int, int],
    window: int,
    stride: int,
    how: str,
    tile: tuple[int, int],
) -> None:
    monkeypatch.setattr(assembly, "ON_CPU", tile)
    views = [(photo(*size), False), (photo(*size), True), (photo(size[0] + 9, size[1] + 5), False)]
    expected = reference(model, views, shape, window, stride, NORMALISE[how])
    found = probabilities(model, views, shape, window, stride, batch=3, scores=how)
    assert found.shape == (5, *shape)
    torch.testing.assert_close(found.sum(0), torch.ones(shape))
    assert (found - expected).abs().max() < 2e-6


def test_labels_of_a_single_view_do_not_depend_on_how_scores_are_read(model: Segmentor) -> None:
    image = photo(50, 70)
    found = [predict_labels(model, image, InferenceConfig(window=32, stride=20, scores=how)) for how in NORMALISE]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], segment(model, image, InferenceConfig(window=32, stride=20)).argmax(0))
    assert len(found[0].unique()) > 1
    several = InferenceConfig(window=32, stride=20, scales=[1.0, 1.5], flip=True)
    assert torch.equal(predict_labels(model, image, several), segment(model, image, several).argmax(0))


def test_scores_are_the_answer_of_the_model(model: Segmentor) -> None:
    """Also where the image is no multiple of the patch."""
    image = torch.rand(2, 3, 30, 43)
    said = model.predict(image)
    assert said.classes_BKC is not None
    masks = F.interpolate(said.masks_BKhw, size=(32, 48), mode="bilinear")[..., :30, :43]
    expected = torch.einsum("bqk,bqhw->bkhw", said.classes_BKC.softmax(-1)[..., :-1], masks.sigmoid())
    torch.testing.assert_close(model(image), expected)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def as_pixels(model: Segmentor, normalised: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation the vectors' inputs already have."""
    return (normalised * model.std + model.mean) / 255


def test_released_model_whole_and_sliding(shared: Path, tmp_path: Path) -> None:
    vectors = load_file(shared / "golden" / "segvit_sed" / "segvit_e2e.io.safetensors")
    torch.save(released_segvit(shared), tmp_path / "segvit.pth")
    model = whitebox.load_model(tmp_path / "segvit.pth")
    with torch.inference_mode():
        tokens, grids = model.encoder.intermediate(vectors["in.whole"], (1, 2, 3))
        assert grids == [(4, 4)] * 3
        for index, z_BND in enumerate(tokens):
            assert_near(z_BND, vectors[f"mid.feat{index}"].flatten(2).transpose(1, 2))
        assert_near(model(as_pixels(model, vectors["in.whole"])), vectors["out.whole"])

        view = assembly.ScoreView((80, 112), False, 64, 43)
        for number, (top, left) in enumerate((top, left) for top in view.tops for left in view.lefts):
            said = model.predict(as_pixels(model, vectors["in.slide"][..., top : top + 64, left : left + 64]))
            assert said.shares_BKK is not None
            view.receive(number, said.masks_BKhw[0], said.shares_BKK[0], model.encoder.patch_size, (80, 112))
        assert_near(view.scores(slice(0, 80)).permute(2, 0, 1)[None], vectors["out.slide"])
