from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from asking import samples_of
from child_runs import TINY
from PIL import Image

from analysis.consumed import Chosen, Images
from analysis.maths.patches import patch_labels
from analysis.measures.samples import open_photo
from analysis.show.photos import at_pixels
from whitebox.config import InferenceConfig, resolve
from whitebox.data import Sample
from whitebox.engine.checkpoint import save_model
from whitebox.engine.inference import predict_labels
from whitebox.errors import ConfigError, DataError, ModelError
from whitebox.models import build
from whitebox.runs import Run, open_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    torch.manual_seed(0)
    config = resolve("depict-sa-tiny", "shapes", {**TINY, "data.size": 40, "inference.window": 32})
    model = build(config.encoder, config.decoder, 7)
    save_model(tmp_path / "run" / "model.safetensors", model, config)
    return open_run(tmp_path / "run", device="cpu")


def test_windows_are_those_of_evaluation(run: Run) -> None:
    samples = Images(run, Chosen(limit=2))
    assert len(samples) == 2 and samples.data.images == 2
    done = []
    (first, second) = samples.each(run, lambda *at: done.append(at))
    assert done == [(1, 2), (2, 2)]
    assert first.pixels_B3HW.shape == (1, 3, 32, 32)  # resized to 32 px
    assert first.labels_Bhw.shape == (1, 2, 2) and first.name != second.name
    image = samples.dataset[0].image.permute(1, 2, 0).numpy()
    expected = predict_labels(run.model, image, run.config.inference, run.config.data)
    masks = run.model(first.pixels_B3HW)
    resized = torch.nn.functional.interpolate(masks, (40, 40), mode="bilinear")[0].argmax(0)
    assert (resized == expected).float().mean() > 0.999


def test_without_windows_the_resized_image_is_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.config.inference = InferenceConfig(window=None)
    samples = Images(run, Chosen(limit=1))
    image, label, name = samples.dataset[0]
    narrow = [Sample(image[:, :, :24], label[:, :24], name)]
    monkeypatch.setattr("analysis.measures.samples.read_images", lambda *_: narrow)
    (sample,) = samples.each(run)
    assert sample.pixels_B3HW.shape == (1, 3, 53, 32)  # 40 x 24 resized to a short side of 32 px
    resized = cv2.resize(narrow[0].label.numpy(), (32, 53), interpolation=cv2.INTER_NEAREST)
    assert sample.labels_Bhw.shape == (1, 4, 2)
    assert torch.equal(sample.labels_Bhw[0], patch_labels(np.asarray(resized, np.uint8), 16))
    assert run.model.masks(sample.pixels_B3HW).shape == (1, 7, 4, 2)


def test_majority_of_labelled_pixels() -> None:
    label = np.full((4, 7), 255, np.uint8)
    label[:2, :2] = [[3, 255], [3, 1]]
    label[2:, 2:4] = [[5, 4], [4, 5]]
    label[0, 5] = 4  # three of four are ignored: those that are not decide
    assert patch_labels(label, 2).tolist() == [[3, 255, 4, 255], [255, 4, 255, 255]]


def test_what_samples_refuse(run: Run) -> None:
    with pytest.raises(ConfigError, match="--limit 0 is impossible"):
        Images(run, Chosen(limit=0))
    with pytest.raises((ConfigError, DataError), match="nowhere"):
        Images(run, Chosen(split="nowhere"))
    other = Run(run.name, run.weights, build(run.config.encoder, run.config.decoder, 3), run.config)
    with pytest.raises(ModelError, match="has 3 classes and shapes has 7: measure on the dataset"):
        Images(other, Chosen())


def test_a_photo_keeps_its_shape(run: Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    photo = open_photo(tmp_path / "photo.png", run)
    assert photo.pixels_13hw.shape == (1, 3, 32, 58) and photo.grid == (2, 4)
    np.testing.assert_array_equal(photo.image_HW3, pixels)


def test_patches_lie_where_they_were_seen() -> None:
    stored = {"shown": [16, 40], "patch": 16}
    shown = at_pixels([[[1.0, 2.0, 3.0]]], stored, (8, 20), "nearest")  # the last patch is half padding
    assert shown.shape == (1, 8, 20)
    assert shown[0, 0].tolist() == [1.0] * 8 + [2.0] * 8 + [3.0] * 4
    smooth = at_pixels([[[1.0, 2.0, 3.0]]], stored, (16, 40), "bilinear")[0, 0]
    assert smooth[0] == 1.0 and smooth[23] == pytest.approx(2.0, abs=0.04) and (np.diff(smooth) >= 0).all()


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_patches_are_enlarged_as_pytorch_does(mode: str) -> None:
    values_Chw = np.random.default_rng(0).random((2, 3, 5))
    exact = {} if mode == "nearest" else {"align_corners": False}
    enlarged = torch.nn.functional.interpolate(torch.from_numpy(values_Chw)[None], (48, 80), mode=mode, **exact)
    expected = torch.nn.functional.interpolate(enlarged[..., :41, :77], (60, 50), mode=mode, **exact)[0]
    found = at_pixels(values_Chw, {"shown": [41, 77], "patch": 16}, (60, 50), mode)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-12)


def nearest(label_HW: np.ndarray, height: int, width: int) -> np.ndarray:
    """OpenCV's nearest neighbour: of pixel i the source pixel floor(i * old / new)."""
    rows = np.arange(height) * label_HW.shape[0] // height
    return label_HW[rows[:, None], np.arange(width) * label_HW.shape[1] // width]


def test_labels_are_resized_to_classes_that_are_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    image, _, name = Images(run, Chosen(limit=1)).dataset[0]
    label = np.random.default_rng(0).choice([2, 6], (40, 40)).astype(np.uint8)  # an average of them is in no photo
    shown = [Sample(image, torch.from_numpy(label), name)]
    monkeypatch.setattr("analysis.measures.samples.read_images", lambda *_: shown)
    (sample,) = samples_of(run, 1)
    resized = nearest(label, 32, 32)
    counts = [[np.bincount(resized[y : y + 16, x : x + 16].ravel()) for x in (0, 16)] for y in (0, 16)]
    assert sample.labels_Bhw[0].tolist() == [[int(each.argmax()) for each in row] for row in counts]
    assert set(sample.labels_Bhw.unique().tolist()) <= {2, 6}
