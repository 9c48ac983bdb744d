import numpy as np
import pytest

from whitebox.config import DataConfig
from whitebox.data import build_dataset, shapes
from whitebox.errors import ConfigError

SHARES = (0.4024, 0.0813, 0.1418, 0.0673, 0.1513, 0.1083, 0.0478)
MEAN = (103.19, 117.76, 109.64)


def test_a_pure_function_of_seed_split_and_index() -> None:
    state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    image, label = shapes.draw(1, "train", 5, 96)
    again, label_again = shapes.draw(1, "train", 5, 96)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # type: ignore[index]  # noqa: NPY002
    assert image.shape == (96, 96, 3)
    assert label.shape == (96, 96)
    assert image.dtype == label.dtype == np.uint8


@pytest.mark.parametrize("other", [(2, "train", 5), (1, "val", 5), (1, "train", 6), (5, "train", 1), (1, "train", 0)])
def test_other_keys_give_other_images(other: tuple[int, str, int]) -> None:
    assert (shapes.draw(1, "train", 5, 64)[0] != shapes.draw(*other, 64)[0]).mean() > 0.5


def test_the_dataset_does_not_drift() -> None:
    """Results on `shapes` are compared between versions: its labels must stay what they are."""
    labels = np.stack([shapes.draw(0, "val", index, 128)[1] for index in range(8)])
    # A rounding of cos or arctan2 on another platform may move single border pixels: compare coarsely.
    shares = np.bincount(labels.ravel(), minlength=7) / labels.size
    np.testing.assert_allclose(shares, SHARES, atol=2e-4)
    image = shapes.draw(0, "val", 0, 128)[0]
    np.testing.assert_allclose(image.mean((0, 1)), MEAN, atol=0.05)


def test_every_class_is_common() -> None:
    labels = np.stack([shapes.draw(0, "train", index, 64)[1] for index in range(100)])
    shares = np.bincount(labels.ravel(), minlength=len(shapes.CLASSES)) / labels.size
    assert len(shares) == len(shapes.CLASSES) == len(shapes.PALETTE) == 7
    assert shares.min() > 0.05


def test_colour_tells_the_class() -> None:
    """The mean colour of a class is nearer to its own mean over other images than to that of any other class."""

    def means(first: int) -> np.ndarray:
        drawn = [shapes.draw(0, "train", index, 64) for index in range(first, first + 40)]
        images, labels = (np.stack([pair[part] for pair in drawn]) for part in (0, 1))
        return np.stack([images[labels == k].mean(0) for k in range(7)])

    one, other = means(0), means(40)
    distance = np.linalg.norm(one[:, None] - other[None], axis=-1)
    np.testing.assert_array_equal(distance.argmin(1), np.arange(7))


def test_lengths_and_size_follow_the_config() -> None:
    config = DataConfig(size=40, train_length=3, val_length=2)
    lengths = {split: len(build_dataset(config, split, augment=False)) for split in ("train", "val", "test")}
    assert lengths == {"train": 3, "val": 2, "test": 2}
    assert build_dataset(config, "val", augment=False)[1].image.shape == (3, 40, 40)
    other = DataConfig(size=40, train_length=3, val_length=2, shapes_seed=1)
    assert (
        build_dataset(other, "val", augment=False)[1].image != build_dataset(config, "val", augment=False)[1].image
    ).any()


def test_unknown_split() -> None:
    with pytest.raises(ConfigError, match="no split 'dev': choose from train, val, test"):
        build_dataset(DataConfig(), "dev", augment=False)
