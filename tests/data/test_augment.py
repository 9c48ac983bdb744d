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
from whitebox.data.readers import FileSource
from whitebox.data.sampler import EpochSampler
from whitebox.errors import DataError

MEAN_255 = (123.68, 116.28, 103.53)
MakeFolder = Callable[..., DataConfig]


def train(config: DataConfig, seed: int = 0) -> SegmentationDataset:
    return build_dataset(config, "train", augment=True, seed=seed, mean_255=MEAN_255)


def same(one: Sample, other: Sample) -> bool:
    return torch.equal(one.image, other.image) and torch.equal(one.label, other.label) and one.name == other.name


def by_mmsegmentation(config: DataConfig, key: np.ndarray, loaded: dict[str, Any]) -> dict[str, Any]:
    """What mmsegmentation's own transforms make of an image, drawing the random numbers of ``key``."""
    from mmseg.registry import TRANSFORMS

    low, high = config.scale_range
    steps: list[dict[str, Any]] = [
        {
            "type": "RandomResize",
            "scale": (int(config.max_ratio * config.resize), config.resize),
            "ratio_range": (low, high),
            "keep_ratio": True,
            "resize_type": "mmseg.Resize",
        },
        {"type": "mmseg.RandomCrop", "crop_size": (config.crop, config.crop), "cat_max_ratio": config.cat_max_ratio},
        {"type": "mmseg.RandomFlip", "prob": float(config.flip)},
    ]
    if config.photometric:
        steps.append({"type": "mmseg.PhotoMetricDistortion"})
    np.random.seed(key)  # noqa: NPY002
    for step in steps:
        loaded = TRANSFORMS.build(step)(loaded)
    return loaded


def pixels(config: DataConfig, made: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Image and label padded by mmsegmentation, RGB values 0..255."""
    from mmseg.registry import TRANSFORMS

    padded = TRANSFORMS.build({"type": "Pad", "size": (config.crop,) * 2, "pad_val": {"img": 0, "seg": 255}})(made)
    return padded["img"][..., ::-1], padded["gt_seg_map"]


def assert_equal_by_bit(config: DataConfig, ours: tuple[np.ndarray, np.ndarray], made: dict[str, Any]) -> None:
    height, width = made["img"].shape[:2]
    image, label = pixels(config, made)
    expected = image.astype(np.float32) / 255
    mean = np.asarray(MEAN_255, np.float32) / np.float32(255)
    expected[height:], expected[:, width:] = mean, mean
    np.testing.assert_array_equal(ours[0].transpose(1, 2, 0), expected)
    np.testing.assert_array_equal(ours[1], label)


def test_equals_mmsegmentation_by_bit(mmseg: None) -> None:
    """1,000 images of all shapes with labels of few classes, each with other settings."""
    random = np.random.default_rng(0)
    seen = {"narrow": 0, "padded": 0, "cropped": 0}
    for index in range(1000):
        height, width = (int(side) for side in random.integers(2, 120, 2))
        coarse = random.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        image = (
            cv2.resize(coarse, (width, height)) if index % 2 else random.integers(0, 256, (height, width, 3), np.uint8)
        )
        regions = random.choice(np.array([0, 1, 2, 150, 254, 255], np.uint8), (-(-height // 16), -(-width // 16)))
        label = cv2.resize(regions, (width, height), interpolation=cv2.INTER_NEAREST)
        low = random.uniform(0.1, 1.5)
        config = DataConfig(
            resize=int(random.integers(4, 100)),
            max_ratio=float(random.uniform(1, 4)),
            crop=int(random.integers(4, 80)),
            scale_range=[low, low + random.uniform(0, 2)],
            cat_max_ratio=float(random.choice([0.4, 0.75, 1.0])),
            flip=float(random.choice([0, 0.3, 0.5, 1])),
            photometric=bool(index % 8),
        )
        key = random_key(1, index, 2)
        loaded = {"img": image[..., ::-1].copy(), "gt_seg_map": label.copy(), "seg_fields": ["gt_seg_map"]}
        try:
            made = by_mmsegmentation(config, key, {**loaded, "img_shape": label.shape})
        except cv2.error:
            seen["narrow"] += 1
            with pytest.raises(cv2.error):
                augment(image, label, config, MEAN_255, key)
            continue
        seen["padded" if min(made["img_shape"]) < config.crop else "cropped"] += 1
        assert_equal_by_bit(config, augment(image, label, config, MEAN_255, key), made)
    assert all(seen.values())


@pytest.mark.parametrize("changes", [{}, {"scale_range": [0.3, 1.2]}, {"cat_max_ratio": 1.0, "flip": 1.0}])
def test_files_as_mmsegmentation_loads_them(mmseg: None, folder: MakeFolder, changes: dict[str, Any]) -> None:
    assert_files_equal(train(folder(train=3, **changes), seed=5), 12)


def test_files_of_ade20k_as_mmsegmentation_loads_them(mmseg: None, shared: Path) -> None:
    config = DataConfig(
        kind="ade20k",
        root=str(shared / "data" / "samples"),
        path="ade20k/ADEChallengeData2016",
        reduce_zero_label=True,
    )
    assert_files_equal(train(config), 6)


def assert_files_equal(dataset: SegmentationDataset, samples: int) -> None:
    from mmseg.registry import TRANSFORMS

    source, config = dataset.source, dataset.config
    assert isinstance(source, FileSource)
    for number in range(samples):
        epoch, index = divmod(number, len(dataset))
        pair, key = source.pairs[index], random_key(dataset.seed, epoch, index)
        loaded: dict[str, Any] = {
            "img_path": pair.image,
            "seg_map_path": pair.label,
            "reduce_zero_label": config.reduce_zero_label,
            "label_map": None,
            "seg_fields": [],
        }
        for step in ("LoadImageFromFile", "mmseg.LoadAnnotations"):
            loaded = TRANSFORMS.build({"type": step})(loaded)
        ours = dataset[epoch, index]
        made = by_mmsegmentation(config, key, loaded)
        assert_equal_by_bit(config, (ours.image.numpy(), ours.label.numpy()), made)


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
