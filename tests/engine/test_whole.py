"""Whole images: inference without windows, everywhere that windows are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from child_runs import TINY
from numpy.typing import NDArray
from PIL import Image
from tiny_runs import CLOSED
from torch import Tensor, nn

from whitebox.config import DataConfig, InferenceConfig, resolve
from whitebox.data import Sample
from whitebox.engine.encoded import EncodedImages
from whitebox.engine.evaluate import evaluate
from whitebox.engine.inference import predict_labels, predict_many, probabilities, segment, windows
from whitebox.engine.metrics import image_counts
from whitebox.engine.predict import predict_files
from whitebox.engine.video import predict_videos
from whitebox.engine.windows import resize_image
from whitebox.models import DECODERS, Segmentor, build

WHOLE = InferenceConfig(window=None)
CLASSES = ("red", "green", "blue", "other", "more")
SIZES = [(64, 160), (45, 70), (20, 33)]  # whole patches of 16 px, not, and less than a window of 32


def tiny(decoder: str, seed: int = 0) -> Segmentor:
    """A model whose position embeddings were made for 32 x 32 px, and whose predictions differ from place to place."""
    small: dict[str, Any] = {key: value for key, value in TINY.items() if key.startswith("encoder.")}
    small["decoder.name"] = decoder
    if hasattr(DECODERS[decoder].Config(), "encoder_layers"):
        small |= {"encoder.class_token": False, "encoder.final_norm": False, "decoder.encoder_layers": [0, 1]}
    if decoder == "segvit-shrunk":
        small |= {"encoder.shrink": 1}
    config = resolve("segmenter-linear-tiny", overrides=small)
    torch.manual_seed(seed)
    model = build(config.encoder, config.decoder, len(CLASSES), CLASSES)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(noise, (width, height)))


@torch.no_grad()
def direct(model: Segmentor, image_HW3: NDArray[np.uint8], flipped: bool = False) -> Tensor:
    """Logits or scores of one call of the model, (K, H, W)."""
    x_13HW = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1)[None]
    return model(x_13HW.flip(3) if flipped else x_13HW)[0]


def normalised(model: Segmentor, maps_KHW: Tensor) -> Tensor:
    return maps_KHW / maps_KHW.sum(0) if model.decoder.scores else maps_KHW.softmax(0)


@pytest.mark.parametrize("decoder", CLOSED)
def test_equals_a_call_of_the_model(decoder: str) -> None:
    model = tiny(decoder)
    for seed, size in enumerate(SIZES):
        image = photo(*size, seed)
        expected = direct(model, image)
        found = segment(model, image, WHOLE)
        assert found.shape == (5, *size)
        assert (found - normalised(model, expected)).abs().max() < 2e-6
        assert (predict_labels(model, image, WHOLE) == expected.argmax(0)).float().mean() > 0.999


def test_it_is_not_what_windows_give() -> None:
    model, image = tiny("depict-sa"), photo(64, 160)
    sliding = segment(model, image, InferenceConfig(window=32, stride=32))
    assert (segment(model, image, WHOLE) - sliding).abs().max() > 0.01


@pytest.mark.parametrize("decoder", ["depict-sa", "segvit"])
def test_scales_and_flips(decoder: str) -> None:
    model, image, data = tiny(decoder), photo(40, 90), DataConfig(resize=36, max_ratio=2.0)
    config = InferenceConfig(window=None, scales=[0.5, 1.0, 1.75], flip=True, batch=3)
    expected = torch.zeros(5, 40, 90)
    for scale in config.scales:
        for flipped in (False, True):
            maps = direct(model, resize_image(image, 36, scale, 2.0), flipped)
            maps = F.interpolate(maps[None], (40, 90), mode="bilinear")[0]
            expected += normalised(model, maps.flip(2) if flipped else maps) / 6
    assert (segment(model, image, config, data) - expected).abs().max() < 2e-6
    assert (predict_labels(model, image, config, data) == expected.argmax(0)).float().mean() > 0.999


class Recorder(nn.Module):
    """The brightest colour is the class; keeps the shapes it was shown."""

    num_classes, classes, palette = 3, CLASSES[:3], ((255, 0, 0), (0, 255, 0), (0, 0, 255))

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images_B3HW: Tensor) -> Tensor:
        self.shapes.append(tuple(images_B3HW.shape))
        return images_B3HW * 5


def test_images_of_one_size_share_batches() -> None:
    model = Recorder()
    sizes = [(8, 12)] * 3 + [(12, 8)] * 2 + [(8, 12)]
    photos = [photo(*size, seed) for seed, size in enumerate(sizes)]
    labels = list(predict_many(model, photos, InferenceConfig(window=None, batch=2)))
    assert model.shapes == [(2, 3, 8, 12), (1, 3, 8, 12), (2, 3, 12, 8), (1, 3, 8, 12)]
    for label_HW, image_HW3 in zip(labels, photos, strict=True):
        assert np.array_equal(label_HW.numpy(), image_HW3.argmax(2))


def test_a_result_does_not_wait_for_an_image_of_another_size() -> None:
    asked = []

    def photos() -> Any:
        for number, size in enumerate([(8, 12), (12, 8), (12, 8)]):
            asked.append(number)
            yield photo(*size)

    next(predict_many(Recorder(), photos(), InferenceConfig(window=None, batch=4)))
    assert asked == [0, 1]


@pytest.mark.parametrize("sides", [(1, 1), (1, 300), (300, 1)])
def test_narrow_images_are_not_enlarged(sides: tuple[int, int]) -> None:
    model = Recorder()
    found = segment(model, photo(*sides), InferenceConfig(window=None, flip=True))
    assert model.shapes == [(2, 3, *sides)] and found.shape == (3, *sides)
    torch.testing.assert_close(found.sum(0), torch.ones(sides))
    assert torch.isfinite(segment(tiny("segvit"), photo(*sides), WHOLE)).all()


def test_the_only_window_is_the_resized_image() -> None:
    image, data = photo(40, 90), DataConfig(resize=20)
    (window,) = windows(image, WHOLE, data, torch.device("cpu"))
    assert (window.size, window.top, window.left) == ((20, 45), 0, 0)
    assert np.array_equal((window.pixels_13vu[0] * 255).round().permute(1, 2, 0).numpy(), resize_image(image, 20))


def test_views_without_a_stride() -> None:
    image = photo(30, 50)
    found = probabilities(Recorder(), [(image, True)], (30, 50), None, None)
    torch.testing.assert_close(found, (torch.from_numpy(image).permute(2, 0, 1) / 51).softmax(0))


class Unlike:
    """Labelled images of sizes that change from one to the next."""

    classes, ignore_index = CLASSES, 255
    sizes = ((40, 64), (40, 64), (64, 40), (33, 100), (16, 16), (40, 64))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int, /) -> Sample:
        image = torch.from_numpy(photo(*self.sizes[index], index)).permute(2, 0, 1)
        label = torch.randint(0, 5, self.sizes[index], generator=torch.Generator().manual_seed(index)).to(torch.uint8)
        return Sample(image, label, f"image{index}")


@pytest.mark.parametrize("decoder", ["depict-ca", "segvit"])
@pytest.mark.parametrize("changes", [{}, {"scales": [0.75, 1.25], "flip": True, "batch": 3}])
def test_evaluation_of_unlike_sizes(decoder: str, changes: dict[str, Any]) -> None:
    """In front of the encoder and behind it."""
    model, dataset, config = tiny(decoder), Unlike(), InferenceConfig(window=None, **changes)
    result = evaluate(model, dataset, config, None, workers=0)
    for index in range(len(dataset)):
        image, label, _ = dataset[index]
        alone = predict_labels(model, image.permute(1, 2, 0).numpy(), config)
        counts = image_counts(alone, label, 5).numpy()
        assert np.abs(result.counts_N3K[index] - counts).max() <= 2  # of some thousand pixels: batches round otherwise
    assert (result.counts_N3K[:, 1].sum(0) > 0).sum() > 1  # classes that are predicted
    images = EncodedImages(model, dataset, config, None, workers=0)
    np.testing.assert_array_equal(images.evaluate().counts_N3K, result.counts_N3K)


def test_files_and_videos(tmp_path: Path) -> None:
    image = photo(32, 48)
    (tmp_path / "frames").mkdir()
    Image.fromarray(image).save(tmp_path / "frames" / "1.png")
    model = Recorder()
    predict_files(model, [tmp_path / "frames"], tmp_path / "files", WHOLE, probabilities=True)
    predict_videos(model, [tmp_path / "frames"], tmp_path / "videos", WHOLE, video="v.mp4", labels=True)
    assert set(model.shapes) == {(1, 3, 32, 48)}
    for file in ("files/1_labels.png", "videos/v_labels/1.png"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / file)), image.argmax(2))
