"""Augmentation: equal to mmsegmentation's transforms, and a function of (seed, epoch, index) alone."""

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from whitebox.config import DataConfig
from whitebox.data import Sample, SegmentationDataset, build_dataset
from whitebox.data.augment import augment, random_key
from whitebox.data.quiet import mmseg_datasets, quiet
from whitebox.data.readers import FileSource
from whitebox.data.sampler import EpochSampler
from whitebox.errors import DataError

MEAN_255 = (123.68, 116.28, 103.53)
MakeFolder = Callable[..., DataConfig]


def train(config: DataConfig, seed: int = 0) -> SegmentationDataset:
    return build_dataset(config, "train", augment=True, seed=seed, mean_255=MEAN_255)


def same(one: Sample, other: Sample) -> bool:
    return torch.equal(one.image, other.image) and torch.equal(one.label, other.label) and one.name == other.name


def by_mmsegmentation(
    config: DataConfig, image: str, label: str, key: np.ndarray, low_high: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """mmsegmentation's own loading, transforms, normalisation and padding; the result is normalised."""
    mmseg_datasets()
    with quiet():
        from mmseg.registry import TRANSFORMS

        scale = (int(config.max_ratio * config.resize), config.resize)
        steps: list[dict[str, Any]] = [
            {"type": "LoadImageFromFile"},
            {"type": "mmseg.LoadAnnotations"},
            {
                "type": "RandomResize",
                "scale": scale,
                "ratio_range": low_high,
                "keep_ratio": True,
                "resize_type": "mmseg.Resize",
            },
            {
                "type": "mmseg.RandomCrop",
                "crop_size": (config.crop, config.crop),
                "cat_max_ratio": config.cat_max_ratio,
            },
            {"type": "mmseg.RandomFlip", "prob": config.flip},
            {"type": "mmseg.PhotoMetricDistortion"},
            {"type": "Normalize", "mean": MEAN_255, "std": (1.0, 1.0, 1.0), "to_rgb": True},
            {"type": "Pad", "size": (config.crop, config.crop), "pad_val": {"img": 0, "seg": 255}},
        ]
        chain = [TRANSFORMS.build(step) for step in steps]
    results: dict[str, Any] = {
        "img_path": image,
        "seg_map_path": label,
        "reduce_zero_label": config.reduce_zero_label,
        "label_map": None,
        "seg_fields": [],
    }
    np.random.seed(key)  # noqa: NPY002
    for step in chain:
        results = step(results)
    return results["img"], results["gt_seg_map"]


def assert_equals_mmsegmentation(dataset: SegmentationDataset, samples: int) -> None:
    source = dataset.source
    assert isinstance(source, FileSource)
    config = dataset.config
    low, high = config.scale_range
    for number in range(samples):
        epoch, index = divmod(number, len(dataset))
        pair = source.pairs[index]
        image, label = by_mmsegmentation(
            config, pair.image, pair.label, random_key(dataset.seed, epoch, index), (low, high)
        )
        ours = dataset[epoch, index]
        normalised = ours.image.numpy().transpose(1, 2, 0) * 255 - np.asarray(MEAN_255, np.float32)
        np.testing.assert_allclose(normalised, image, atol=1e-4)
        np.testing.assert_array_equal(ours.label.numpy(), label)


@pytest.mark.parametrize("changes", [{}, {"scale_range": [0.3, 1.2]}, {"cat_max_ratio": 1.0, "flip": 1.0}])
def test_equals_mmsegmentation(folder: MakeFolder, changes: dict[str, Any]) -> None:
    assert_equals_mmsegmentation(train(folder(train=3, **changes), seed=5), 12)


def test_equals_mmsegmentation_on_ade20k(shared: Path) -> None:
    config = DataConfig(
        kind="ade20k",
        root=str(shared / "data" / "samples"),
        path="ade20k/ADEChallengeData2016",
        reduce_zero_label=True,
    )
    assert_equals_mmsegmentation(train(config), 6)


def test_form_of_a_sample(folder: MakeFolder) -> None:
    sample = train(folder(scale_range=[0.5, 0.5]))[0]
    assert sample.image.shape == (3, 48, 48)
    assert sample.image.dtype == torch.float32
    assert sample.label.shape == (48, 48)
    assert sample.label.dtype == torch.uint8
    assert 0 <= sample.image.min() <= sample.image.max() <= 1


def test_padding_is_the_mean_pixel_and_ignored(folder: MakeFolder) -> None:
    sample = train(folder(scale_range=[0.5, 0.5]))[0]  # 64 px become 32 of 48
    mean = torch.tensor(MEAN_255) / 255
    outside = sample.image.clone()
    outside[:, :32, :32] = mean[:, None, None]
    assert torch.equal(outside, mean[:, None, None].expand(3, 48, 48))
    assert (sample.label[32:] == 255).all()
    assert (sample.label[:, 32:] == 255).all()
    assert (sample.label[:32, :32] != 255).all()


def test_without_change_the_image_comes_through() -> None:
    config = DataConfig(
        size=64, train_length=1, resize=64, crop=64, scale_range=[1, 1], cat_max_ratio=1, flip=0, photometric=False
    )
    plain = build_dataset(config, "train", augment=False)[0]
    augmented = train(config)[0]
    assert torch.equal((augmented.image * 255).round().byte(), plain.image)
    assert torch.equal(augmented.label, plain.label)


def test_flip_turns_image_and_label() -> None:
    config = DataConfig(
        size=64, train_length=1, resize=64, crop=64, scale_range=[1, 1], cat_max_ratio=1, flip=1, photometric=False
    )
    plain = build_dataset(config, "train", augment=False)[0]
    augmented = train(config)[0]
    assert torch.equal((augmented.image * 255).round().byte(), plain.image.flip(-1))
    assert torch.equal(augmented.label, plain.label.flip(-1))


def test_a_function_of_seed_epoch_and_index(folder: MakeFolder) -> None:
    config = folder(train=3)
    dataset = train(config, seed=1)
    first = dataset[4, 2]
    for key in [(0, 0), (4, 1), (5, 2)]:
        _ = dataset[key]
    assert same(dataset[4, 2], first)
    assert same(train(config, seed=1)[4, 2], first)
    assert not same(dataset[5, 2], first)
    assert not same(train(config, seed=2)[4, 2], first)
    assert same(dataset[2], dataset[0, 2])


def test_random_keys_do_not_meet() -> None:
    keys = {tuple(random_key(s, e, i).tolist()) for s in range(4) for e in range(4) for i in range(4)}
    assert len(keys) == 64


def test_global_random_states_stay(folder: MakeFolder) -> None:
    dataset = train(folder())

    def states() -> tuple[object, bytes, bytes]:
        legacy = np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002
        return random.getstate(), legacy.tobytes(), torch.get_rng_state().numpy().tobytes()  # type: ignore[union-attr]

    before = states()
    _ = dataset[0, 1]
    assert states() == before


def test_global_random_state_stays_after_an_error(folder: MakeFolder) -> None:
    config = folder()
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    with pytest.raises(cv2.error):
        augment(np.zeros((1, 5000, 3), np.uint8), np.zeros((1, 5000), np.uint8), config, MEAN_255, random_key(0, 0, 0))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_change_nothing_and_say_nothing(
    folder: MakeFolder, context: str, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = train(folder(train=5))
    sampler = EpochSampler(len(dataset), seed=1)
    sampler.set_epoch(3)
    loader: DataLoader[Sample] = DataLoader(
        dataset, batch_size=2, sampler=sampler, num_workers=workers, multiprocessing_context=context
    )
    batches = list(loader)
    assert [name for batch in batches for name in batch.name] == [dataset.names[index] for _, index in sampler]
    for batch, start in zip(batches, range(0, 5, 2), strict=True):
        keys = list(sampler)[start : start + 2]
        assert torch.equal(batch.image, torch.stack([dataset[key].image for key in keys]))
        assert torch.equal(batch.label, torch.stack([dataset[key].label for key in keys]))
    assert capfd.readouterr() == ("", "")


def test_pickles_small(folder: MakeFolder) -> None:
    dataset = train(folder())
    first = dataset[0]
    content = pickle.dumps(dataset)
    assert same(pickle.loads(content)[0], first)
    assert len(content) < 10_000


def test_all_ignored_label(folder: MakeFolder, tmp_path: Path) -> None:
    config = folder()
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "set" / "masks" / "train" / "train0.png")
    sample = train(config)[0]
    assert (sample.label == 255).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (300, 2)])
def test_tiny_images(folder: MakeFolder, tmp_path: Path, shape: tuple[int, int]) -> None:
    config = folder()
    Image.fromarray(np.full((*shape, 3), 200, np.uint8)).save(tmp_path / "set" / "images" / "train" / "train0.png")
    Image.fromarray(np.ones(shape, np.uint8)).save(tmp_path / "set" / "masks" / "train" / "train0.png")
    for epoch in range(3):
        sample = train(config)[epoch, 0]
        assert sample.image.shape == (3, 48, 48)
        assert (sample.label == 1).any()
    assert build_dataset(config, "train", augment=False)[0].label.shape == shape


def test_too_narrow_image(folder: MakeFolder, tmp_path: Path) -> None:
    config = folder()
    Image.fromarray(np.zeros((1, 5000, 3), np.uint8)).save(tmp_path / "set" / "images" / "train" / "train0.png")
    Image.fromarray(np.zeros((1, 5000), np.uint8)).save(tmp_path / "set" / "masks" / "train" / "train0.png")
    with pytest.raises(DataError, match=r"train0 of dataset mine is 5000 x 1 px, too narrow"):
        _ = train(config)[0]


def test_augmenting_needs_the_mean(folder: MakeFolder) -> None:
    with pytest.raises(ValueError, match="needs mean_255"):
        build_dataset(folder(), "train", augment=True)
