"""`whitebox data check`: what it counts, and each thing it finds wrong, by name."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from whitebox.config import DataConfig, resolve
from whitebox.data import shapes
from whitebox.data.check import DatasetReport, check_dataset, print_report
from whitebox.data.prepare import prepare
from whitebox.errors import ConfigError, DataError

MakeFolder = Callable[..., DataConfig]
Call = Callable[..., tuple[int, str, str]]


def printed(report: DatasetReport, most: int | None = 50) -> str:
    screen = io.StringIO()
    print_report(report, Console(file=screen, width=160), most)
    return screen.getvalue()


def file(config: DataConfig, part: str, name: str) -> Path:
    return Path(config.root, config.path, part, name)


def save(path: Path, array: np.ndarray) -> None:  # type: ignore[type-arg]
    Image.fromarray(array.astype(np.uint8)).save(path)


def test_a_good_folder(folder: MakeFolder) -> None:
    config = folder(train=3, val=2)
    seen: list[tuple[int, int]] = []
    report = check_dataset(config, workers=2, on_image=lambda done, total: seen.append((done, total)))
    assert report.problems == []
    assert seen == [(index, 5) for index in range(1, 6)]
    train, val = report.splits
    assert (train.name, train.images, train.labels, train.checked) == ("train", 3, 3, 3)
    assert (val.name, val.images) == ("val", 2)
    labels = [shapes.draw(0, "train", index, 64)[1] for index in range(3)]
    np.testing.assert_array_equal(report.class_pixels(train), np.bincount(np.concatenate(labels).ravel(), minlength=7))
    assert report.class_images(train).tolist() == [sum((label == k).any() for label in labels) for k in range(7)]
    assert train.stored() == (min(map(np.min, labels)), max(map(np.max, labels)))
    assert train.sizes == {(64, 64): 3}
    assert report.ignored(train) == 0


def test_ignored_share_and_unlabelled(folder: MakeFolder) -> None:
    config = folder(train=2)
    for index, value in enumerate((255, 1)):
        label = np.full((64, 64), value)
        label[:16] = 255
        save(file(config, "masks", f"train/train{index}.png"), label)
    report = check_dataset(config)
    assert report.ignored(report.splits[0]) == pytest.approx((1 + 0.25) / 2)
    assert "train: 1 labels have no pixel that counts." in report.notes
    assert "1..1, 255" in printed(report) and "62.50%" in printed(report)


def test_test_split_is_checked_where_it_is(folder: MakeFolder) -> None:
    config = folder()
    assert [split.name for split in check_dataset(config).splits] == ["train", "val"]
    for part in ("images", "masks"):
        shutil.copytree(file(config, part, "val"), file(config, part, "test"))
    assert [split.name for split in check_dataset(config).splits] == ["train", "val", "test"]
    assert [split.name for split in check_dataset(config, ["test"]).splits] == ["test"]


def problem(config: DataConfig) -> str:
    (line,) = check_dataset(config).problems
    assert "\n" not in line
    return line


def test_no_label(folder: MakeFolder) -> None:
    config = folder()
    file(config, "masks", "train/train1.png").unlink()
    assert "train1.png has no label in" in problem(config)


def test_no_image(folder: MakeFolder) -> None:
    config = folder()
    file(config, "images", "train/train1.png").unlink()
    line = problem(config)
    assert line.startswith("Label ") and "train1.png has no image in" in line


def test_damaged_image(folder: MakeFolder) -> None:
    config = folder()
    path = file(config, "images", "val/val0.png")
    path.write_bytes(path.read_bytes()[:500])
    assert f"Image {path} is damaged" in problem(config)


def test_damaged_label(folder: MakeFolder) -> None:
    config = folder()
    path = file(config, "masks", "val/val0.png")
    path.write_bytes(b"")
    assert f"Label {path} is empty" in problem(config)


def test_colour_label(folder: MakeFolder) -> None:
    config = folder()
    save(file(config, "masks", "val/val0.png"), np.zeros((64, 64, 3)))
    assert "is a colour image" in problem(config)


def test_other_size(folder: MakeFolder) -> None:
    config = folder()
    save(file(config, "masks", "val/val0.png"), np.zeros((64, 32)))
    assert "val0.png is 32 x 64 px but its image" in problem(config)


def test_unknown_values(folder: MakeFolder) -> None:
    config = folder()
    label = np.zeros((64, 64))
    label[:32] = 7
    label[0, :32] = 200
    save(file(config, "masks", "train/train0.png"), label)
    line = problem(config)
    assert "train0.png holds values without a class: 7, 200 (50.0% of its pixels)" in line
    assert "data.reduce_zero_label=true" in line


def test_missing_split(folder: MakeFolder) -> None:
    config = folder()
    shutil.rmtree(file(config, "images", "val"))
    report = check_dataset(config)
    assert "images/val is missing" in report.problems[0]
    assert report.splits[0].checked == 2  # the rest is still checked


def test_nothing_labelled(folder: MakeFolder) -> None:
    config = folder(train=1)
    save(file(config, "masks", "train/train0.png"), np.full((64, 64), 255))
    assert problem(config) == "train: no label has a pixel of any class."


def test_all_problems_at_once(folder: MakeFolder) -> None:
    config = folder(train=4)
    file(config, "masks", "train/train0.png").unlink()
    file(config, "images", "train/train1.png").write_bytes(b"x")
    save(file(config, "masks", "train/train2.png"), np.full((64, 64), 77))
    report = check_dataset(config)
    assert [name in line for name, line in zip(("train0", "train1", "train2"), report.problems, strict=True)] == [
        True
    ] * 3
    text = printed(report, most=1)
    assert "... and 2 more problems; --all shows them" in text and "mine: 3 problems" in text
    assert "77" in printed(report, most=None)


def test_reduce_zero_label_off(folder: MakeFolder) -> None:
    config = folder()
    (note,) = [note for note in check_dataset(config).notes if note.startswith("reduce_zero_label=false")]
    labels = np.stack(
        [shapes.draw(0, split, index, 64)[1] for split, index in (("train", 0), ("train", 1), ("val", 0))]
    )
    assert f"{(labels == 0).mean():.2%} of pixels ('background') would be ignored" in note
    assert "1 would be 'background', every class one off" in note


def test_reduce_zero_label_on(folder: MakeFolder) -> None:
    config = folder(reduce_zero_label=True, classes=list(shapes.CLASSES[1:]))
    report = check_dataset(config)
    assert report.problems == []
    (note,) = [note for note in report.notes if note.startswith("reduce_zero_label=true")]
    assert "is ignored, 1 is 'disc'. With false, 0 would be 'disc'" in note
    labels = np.stack(
        [shapes.draw(0, split, index, 64)[1] for split, index in (("train", 0), ("train", 1), ("val", 0))]
    )
    assert f"and {(labels == 6).mean():.2%} of pixels (6 and above) without a class" in note


def test_shapes() -> None:
    config = DataConfig(size=32, train_length=6, val_length=2)
    report = check_dataset(config)
    assert [(split.name, split.images) for split in report.splits] == [("train", 6), ("val", 2)]
    assert report.problems == []
    assert "shapes (drawn, no files): 7 classes" in printed(report)
    with pytest.raises(ConfigError, match="no split 'dev'"):
        check_dataset(config, ["dev"])


def test_classes_that_cannot_be_read(folder: MakeFolder) -> None:
    config = folder()
    Path(config.root, config.path, "classes.txt").unlink()
    with pytest.raises(DataError, match="no class names"):
        check_dataset(config)


NAMES = {
    "ade20k": (5, 3),
    "cityscapes": (6, 4),
    "pascal-context": (6, 4),
    "pascal-context-59": (6, 4),
    "coco-stuff": (13, 8),
}


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_good_but_incomplete(shared: Path, name: str) -> None:
    config = resolve("segmenter-linear-tiny", name, (), shared / "data" / "samples").data
    (line,) = check_dataset(config).problems
    assert line.startswith("Not the complete dataset: train has ")
    report = check_dataset(config, allow_partial=True)
    assert report.problems == []
    assert [split.checked for split in report.splits] == list(NAMES[name])
    assert any("(accepted)" in note for note in report.notes)


def test_a_part_accepted_by_prepare(shared: Path, tmp_path: Path) -> None:
    prepare("coco-stuff10k", tmp_path, [str(shared / "data" / "samples" / "coco_stuff10k")], allow_partial=True)
    config = resolve("segmenter-linear-tiny", "coco-stuff10k", (), tmp_path).data
    assert check_dataset(config).problems == []
    listed = tmp_path / "coco_stuff10k" / "imageLists" / "train.txt"
    names = listed.read_text().split()
    listed.write_text("\n".join(names[1:]))
    assert "train has 5 of 9000 images" in check_dataset(config).problems[0]  # less than was accepted
    listed.write_text("\n".join([*names, "COCO_train2014_000000000009"]))
    assert "Image COCO_train2014_000000000009 of the dataset's list is not in" in check_dataset(config).problems[0]


def test_camvid(shared: Path) -> None:
    config = resolve("segmenter-linear-tiny", "camvid", (), shared / "data").data
    report = check_dataset(config, ["val"])
    assert report.problems == []
    (val,) = report.splits
    assert (val.images, val.checked, val.stored()) == (101, 101, (0, 10))
    shares = 100 * report.class_pixels(val) / report.class_pixels(val).sum()  # those of the dataset's own README:
    assert shares.round(2).tolist() == [9.34, 26.41, 0.57, 29.46, 8.87, 16.62, 0.91, 3.13, 1.78, 0.66, 2.26]
    assert round(100 * report.ignored(val), 2) == 1.7


def test_command(call: Call, folder: MakeFolder) -> None:
    config = folder(train=2)
    arguments = ("data", "check", "folder", f"data.path={config.root}/set")
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    assert "folder: nothing is wrong" in out and "background" in out
    file(config, "masks", "train/train1.png").unlink()
    code, out, _ = call(*arguments)
    assert code == 1
    assert "train1.png has no label in" in out and "folder: 1 problem\n" in out


def test_command_takes_the_name_of_prepare(call: Call, shared: Path) -> None:
    code, out, _ = call(
        "data", "check", "coco-stuff164k", "--data-root", shared / "data" / "samples", "--allow-partial"
    )
    assert code == 0
    assert "coco-stuff: nothing is wrong" in out
    code, _, err = call("data", "check", "coco-stuf")
    assert code == 2 and err.startswith("error: Unknown dataset 'coco-stuf'; did you mean 'coco-stuff'?")
