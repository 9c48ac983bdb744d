from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from whitebox.config import DataConfig, resolve
from whitebox.data import build_dataset, dataset_info, open_shapes
from whitebox.errors import ConfigError

MEANS, COVERED = (107.85, 89.54, 110.20, 97.55), (0.6208, 0.5161, 0.4028, 0.5166)


def pairs_of(group: str) -> set[tuple[str, str]]:
    return {pair for kind in open_shapes.KINDS if kind.group == group for pair in combinations(kind.words, 2)}


def test_a_pure_function_of_seed_split_and_index() -> None:
    state = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    image, label = open_shapes.draw(1, "train", 5, 48)
    again, label_again = open_shapes.draw(1, "train", 5, 48)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # type: ignore[index]  # noqa: NPY002
    assert image.shape == (48, 48, 3)
    assert label.shape == (48, 48)
    assert image.dtype == label.dtype == np.uint8


@pytest.mark.parametrize("other", [(2, "train", 5), (1, "val", 5), (1, "train", 6), (1, "held-out", 5)])
def test_other_keys_give_other_images(other: tuple[int, str, int]) -> None:
    assert (open_shapes.draw(1, "train", 5, 48)[0] != open_shapes.draw(*other, 48)[0]).mean() > 0.5


def test_the_dataset_does_not_drift() -> None:
    """Results are compared between versions: scenes must stay what they are, up to the rounding of a platform."""
    drawn = [open_shapes.draw(0, "held-out", index, 64) for index in range(4)]
    np.testing.assert_allclose([image.mean() for image, _ in drawn], MEANS, atol=0.05)
    np.testing.assert_allclose([(label > 0).mean() for _, label in drawn], COVERED, atol=1e-3)


def test_each_word_is_seen_and_only_the_unseen_pairs_are_not() -> None:
    seen = [kind for kind in open_shapes.KINDS if kind.group == "seen"]
    assert {word for kind in seen for word in kind.words} == set(open_shapes.WORDS) - {open_shapes.GROUND}
    assert pairs_of("held-out") <= pairs_of("seen")
    assert pairs_of("pairs") - pairs_of("seen") == set(open_shapes.UNSEEN_PAIRS)
    groups = Counter(kind.group for kind in open_shapes.KINDS)
    assert len(open_shapes.KINDS) == groups.total() == len(set(open_shapes.CLASSES)) - 1
    assert min(groups.values()) >= 20


@pytest.mark.parametrize("split", list(open_shapes.SPLITS))
def test_scenes_show_their_group_alone(split: str) -> None:
    drawn = {int(value) for index in range(60) for value in np.unique(open_shapes.draw(0, split, index, 32)[1])} - {0}
    groups = {open_shapes.KINDS[value - 1].group for value in drawn}
    assert groups == {open_shapes.SPLITS[split].group}


def test_each_seen_class_is_common() -> None:
    labels = np.stack([open_shapes.draw(0, "train", index, 32)[1] for index in range(300)])
    shown = Counter(value for label in labels for value in np.unique(label))
    seen = [value for value, kind in enumerate(open_shapes.KINDS, start=1) if kind.group == "seen"]
    assert min(shown[value] for value in seen) >= 2
    assert 0.4 < (labels == 0).mean() < 0.8


def test_portraits_show_what_they_say() -> None:
    shown = [open_shapes.portrait(0, index, 32) for index in range(80)]
    values = [value for _, value in shown]
    assert 0 in values
    assert len(set(values)) > 40
    hues = dict(zip(open_shapes.COLOURS, np.eye(3)[[0, 0, 1, 1, 2, 0]], strict=True))
    for image, value in shown:
        if value:
            kind = open_shapes.KINDS[value - 1]
            centre = image[12:20, 12:20].reshape(-1, 3).mean(0)
            assert hues[kind.colour] @ centre == centre.max() or kind.colour in ("yellow", "cyan", "pink")


def test_names_of_a_group_are_the_classes_of_its_dataset() -> None:
    config = resolve("segmenter-linear-tiny", "open-shapes-all", ()).data
    classes, palette = dataset_info(config)
    assert classes == open_shapes.CLASSES
    assert len(palette) == len(set(palette)) == len(classes)
    held_out, _ = dataset_info(resolve("segmenter-linear-tiny", "open-shapes-held-out", ()).data)
    assert held_out[0] == open_shapes.GROUND
    assert not set(held_out[1:]) & set(dataset_info(resolve("segmenter-linear-tiny", "open-shapes", ()).data)[0])


@pytest.mark.parametrize("split", ["val", "held-out", "pairs"])
def test_labels_are_the_same_classes_among_other_names(split: str) -> None:
    kind = {"val": "open_shapes", "held-out": "open_shapes_held_out", "pairs": "open_shapes_pairs"}[split]
    own = build_dataset(DataConfig(kind=kind, size=32, val_length=3), split, augment=False)
    among_all = build_dataset(DataConfig(kind="open_shapes_all", size=32, val_length=3), split, augment=False)
    assert len(own) == len(among_all) == 3
    for index in range(3):
        np.testing.assert_array_equal(own[index].image, among_all[index].image)
        named = np.array(own.classes)[own[index].label.numpy()]
        np.testing.assert_array_equal(named, np.array(among_all.classes)[among_all[index].label.numpy()])


def test_another_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="no split 'held-out': choose from train, val"):
        build_dataset(DataConfig(name="open-shapes", kind="open_shapes", size=32), "held-out", augment=False)


def test_held_out_names_are_not_trained_on() -> None:
    config = resolve("segmenter-linear-tiny", "open-shapes-held-out", ()).data
    with pytest.raises(ConfigError, match="open-shapes-held-out is for evaluation only"):
        build_dataset(config, config.train_split, augment=True, mean_255=(0.0, 0.0, 0.0))
