"""The evaluation sets of open-vocabulary papers, from files as their owners publish them to classes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from whitebox.config import resolve
from whitebox.data import SegmentationDataset, build_dataset, dataset_info
from whitebox.data.check import check_dataset
from whitebox.data.conversions import ade847_label, decoded_mask, pascal_context_label, shrunk_size
from whitebox.data.images import read_image, read_label
from whitebox.data.prepare import Prepared, prepare
from whitebox.data.readers import id_list
from whitebox.data.show import show_dataset
from whitebox.errors import ConfigError, DataError

CLASS_COUNTS = {"ade20k-full": 847, "pascal-context-459": 459, "pascal-voc-20": 20, "pascal-voc-20b": 21}


def make(name: str, root: Path, *sources: object) -> Prepared:
    return prepare(name, root, [str(source) for source in sources], allow_partial=True)


def dataset(name: str, root: Path) -> SegmentationDataset:
    return build_dataset(resolve("segmenter-linear-tiny", name, (), root).data, "val", augment=False)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def photo(path: Path, height: int = 12, width: int = 16, seed: int = 0) -> Path:
    return save(path, np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize("name", CLASS_COUNTS)
def test_each_is_for_evaluation_only_and_counts_labelled_classes(name: str) -> None:
    data = resolve("segmenter-linear-tiny", name, ()).data
    assert data.mean_over == "labelled"
    assert len(dataset_info(data)[0]) == CLASS_COUNTS[name]
    with pytest.raises(ConfigError, match=f"{name} is for evaluation only"):
        build_dataset(data, data.train_split, augment=True, mean_255=(0.0, 0.0, 0.0))


# --- A-847 -----------------------------------------------------------------------------------------------------------


def objects(classes_HW: np.ndarray) -> np.ndarray:
    """An ``X_seg.png``; class -1 is an object of none."""
    ids_HW = np.where(classes_HW < 0, 1, np.array([int(word) for word in id_list("ade847")])[classes_HW])
    instance_HW = np.arange(ids_HW.size).reshape(ids_HW.shape) % 256
    return np.stack([ids_HW // 256 * 10 + instance_HW % 10, ids_HW % 256, instance_HW], axis=-1).astype(np.uint8)


def full_ade(folder: Path, sizes: Sequence[tuple[int, int]] = ((12, 16), (600, 800)), above: str = "") -> Path:
    for index, (height, width) in enumerate(sizes, start=1):
        place = folder / above / "ADE20K_2021_17_01/images/ADE/validation/urban/street"
        photo(place / f"ADE_val_{index:08d}.jpg", height, width, index)
        classes_HW = np.random.default_rng(index).integers(-1, 847, (height, width))
        save(place / f"ADE_val_{index:08d}_seg.png", objects(classes_HW))
        save(place / f"ADE_val_{index:08d}_parts_1.png", objects(classes_HW))
        save(place / f"ADE_val_{index:08d}/instance_000_ADE_val_{index:08d}.png", np.zeros((height, width), np.uint8))
    (folder / above / "ADE20K_2021_17_01/index_ade20k.pkl").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    return folder


def test_ade847_classes_by_hand() -> None:
    first, last = (int(id_list("ade847")[index]) for index in (0, -1))
    pixels = [[first // 256 * 10 + 9, first % 256, 3], [last // 256 * 10, last % 256, 255], [0, 0, 0], [255, 255, 9]]
    assert ade847_label(np.array([pixels], np.uint8)).tolist() == [[0, 846, 65535, 65535]]


def test_ade847_labels_and_sizes_are_those_of_sed(shared: Path) -> None:
    folder = shared / "golden" / "sed_steps"
    with np.load(folder / "sed_eval_data.npz") as arrays:
        seg, expected = arrays["label.ade847.seg_rgb"], arrays["label.ade847.train"]
    np.testing.assert_array_equal(ade847_label(seg), expected)
    sizes = json.loads((folder / "sed_eval_data.json").read_text("utf-8"))["ade847_resize"]
    assert [[height, width, *shrunk_size(height, width)] for height, width, *_ in sizes] == sizes


def test_ade847_from_the_owners_files(tmp_path: Path) -> None:
    source = full_ade(tmp_path / "down", above="inside")
    prepared = make("ade20k-full", tmp_path / "data", source)
    assert dict(prepared.counts) == {"val": 2}
    found = dataset("ade20k-full", tmp_path / "data")
    assert found.names == ["ADE_val_00000001", "ADE_val_00000002"]
    assert found.ignore_index == 65535
    small, large = found[0], found[1]
    classes_HW = np.random.default_rng(1).integers(-1, 847, (12, 16))
    np.testing.assert_array_equal(small.label, np.where(classes_HW < 0, 65535, classes_HW))
    assert large.image.shape == (3, 512, 683)
    assert large.label.shape == (512, 683)
    below = tmp_path / "data/ade20k_full/ADE20K_2021_17_01"
    assert not (below.parent / "raw").exists()
    assert not (tmp_path / "opened").exists()
    assert not list(below.rglob("*.pkl"))
    stored = read_label(below / "annotations_detectron2/validation/ADE_val_00000001.tif", 2**16)
    assert stored.dtype == np.uint16
    with Image.open(below / "images_detectron2/validation/ADE_val_00000001.jpg") as again:
        assert again.quantization[0][0] == 8  # type: ignore[attr-defined]  # the first coefficient of quality 75
    drawn = read_image(source / "inside/ADE20K_2021_17_01/images/ADE/validation/urban/street/ADE_val_00000001.jpg")
    assert (small.image.numpy().transpose(1, 2, 0) != drawn).any()  # photos that keep their size, too
    assert make("ade20k-full", tmp_path / "data").folder == prepared.folder


def test_a_folder_that_sed_prepared_is_taken_as_it_is(tmp_path: Path) -> None:
    below = tmp_path / "there/ADE20K_2021_17_01"
    photo(below / "images_detectron2/validation/ADE_val_00000007.jpg")
    label = np.full((12, 16), 65535, np.uint16)
    label[0] = 846
    save(below / "annotations_detectron2/validation/ADE_val_00000007.tif", label)
    make("ade20k-full", tmp_path / "data", tmp_path / "there")
    np.testing.assert_array_equal(dataset("ade20k-full", tmp_path / "data")[0].label, label.astype(np.int32))


def test_another_release_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "ADE20K_2016_07_26/images/validation/a/abbey"
    photo(place / "ADE_val_00000001.jpg")
    save(place / "ADE_val_00000001_seg.png", objects(np.zeros((12, 16), np.int64)))
    with pytest.raises(DataError, match=r"holds nothing of ade20k-full: looked for .*2021_17_01 \(that of 2016"):
        make("ade20k-full", tmp_path / "data", tmp_path / "ADE20K_2016_07_26")
    moved = tmp_path / "as/images/ADE/validation"
    photo(moved / "ADE_val_00000001.jpg")
    save(moved / "ADE_val_00000001_seg.png", np.full((12, 16, 3), 1, np.uint8))
    with pytest.raises(DataError, match="another release than ADE20K_2021_17_01"):
        make("ade20k-full", tmp_path / "data", tmp_path / "as")


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (".jpg", r"has ADE_val_00000001_seg\.png but not ADE_val_00000001\.jpg"),
        ("_seg.png", r"has ADE_val_00000001\.jpg but not"),
    ],
)
def test_photo_or_objects_alone(tmp_path: Path, remove: str, message: str) -> None:
    source = full_ade(tmp_path / "down", ((12, 16),))
    next(source.rglob(f"ADE_val_00000001{remove}")).unlink()
    with pytest.raises(DataError, match=message):
        make("ade20k-full", tmp_path / "data", source)


def test_photo_and_objects_of_other_sizes(tmp_path: Path) -> None:
    source = full_ade(tmp_path / "down", ((12, 16),))
    photo(next(source.rglob("ADE_val_00000001.jpg")), 10, 16)
    with pytest.raises(DataError, match=r"ADE_val_00000001_seg\.png is 16 x 12 px but its photo 16 x 10 px"):
        make("ade20k-full", tmp_path / "data", source)


def test_check_and_show_labels_of_16_bits(tmp_path: Path) -> None:
    make("ade20k-full", tmp_path, full_ade(tmp_path / "down", ((12, 16), (20, 14))))
    config = resolve("segmenter-linear-tiny", "ade20k-full", (), tmp_path).data
    report = check_dataset(config, allow_partial=True)
    assert report.problems == []
    (split,) = report.splits
    assert split.stored() is not None
    assert split.stored()[1] <= 846  # type: ignore[index]
    labels = [dataset("ade20k-full", tmp_path)[index].label.numpy().ravel() for index in (0, 1)]
    counted = np.bincount(np.concatenate(labels), minlength=65536)
    np.testing.assert_array_equal(report.class_pixels(split), counted[:847])
    assert report.ignored(split) == counted[65535] / counted.sum()
    show_dataset(config, "val", 2, tmp_path / "shown.png", (0.0, 0.0, 0.0))
    assert read_image(tmp_path / "shown.png").std() > 10


def test_a_value_beyond_the_classes(tmp_path: Path) -> None:
    below = tmp_path / "ade20k_full/ADE20K_2021_17_01"
    photo(below / "images_detectron2/validation/ADE_val_00000007.jpg")
    save(below / "annotations_detectron2/validation/ADE_val_00000007.tif", np.full((12, 16), 847, np.uint16))
    with pytest.raises(
        DataError, match=r"holds the value 847, but ade20k-full has 847 classes, stored as 0\.\.846 \(65535"
    ):
        dataset("ade20k-full", tmp_path)[0]


# --- Pascal Context --------------------------------------------------------------------------------------------------


def context(root: Path, name: str, label: np.ndarray) -> Path:
    voc = root / "pascal_context/VOCdevkit/VOC2010"
    photo(voc / "JPEGImages" / f"{name}.jpg")
    (voc / "trainval").mkdir(exist_ok=True)
    scipy.io.savemat(voc / "trainval" / f"{name}.mat", {"LabelMap": label}, do_compression=True)
    return voc


def test_pc459_reads_the_owners_labels(tmp_path: Path) -> None:
    label = (np.arange(192).reshape(12, 16) % 459 + 1).astype(np.uint16)
    label[11, 15] = 459
    known, other = id_list("pascal_context459_val")[3], "2007_000001"
    context(tmp_path, known, label)
    context(tmp_path, other, label)  # not one of the 5104
    found = dataset("pascal-context-459", tmp_path)
    assert found.names == [known]
    np.testing.assert_array_equal(found[0].label, label.astype(np.int32) - 1)


def test_pc459_and_pc59_labels_are_those_of_sed(shared: Path, tmp_path: Path) -> None:
    with np.load(shared / "golden/sed_steps/sed_eval_data.npz") as arrays:
        label, expected = arrays["label.pc459.LabelMap"], arrays["label.pc459.train"]
        category, expected_59 = arrays["label.pc59.category"], arrays["label.pc59.train"]
    name = id_list("pascal_context459_val")[0]
    voc = context(tmp_path, name, label)
    photo(voc / "JPEGImages" / f"{name}.jpg", *label.shape)
    np.testing.assert_array_equal(dataset("pascal-context-459", tmp_path)[0].label, expected.astype(np.int32))
    np.testing.assert_array_equal(pascal_context_label(category.astype(np.int64)) - np.uint8(1), expected_59)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: path.write_bytes(b"no matrix at all, but long enough to be looked at" * 9),
            "damaged or holds no",
        ),
        (lambda path: scipy.io.savemat(path, {"other": np.ones((12, 16))}), "damaged or holds no 'LabelMap'"),
        (lambda path: scipy.io.savemat(path, {"LabelMap": np.ones((2, 2, 2))}), "is no map of values"),
        (lambda path: scipy.io.savemat(path, {"LabelMap": np.full((12, 16), 460.0)}), "holds the value 460"),
    ],
)
def test_mat_files_that_are_none(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    name = id_list("pascal_context459_val")[0]
    voc = context(tmp_path, name, np.ones((12, 16), np.uint16))
    write(voc / "trainval" / f"{name}.mat")
    with pytest.raises(DataError, match=message) as caught:
        dataset("pascal-context-459", tmp_path)[0]
    assert "\n" not in str(caught.value)


def test_masks_of_one_file(tmp_path: Path) -> None:
    """``trainval_merged.json``: painted in the order of the file, then the 59 classes."""
    lower = np.zeros((12, 16), bool)
    lower[6:] = True
    content = {
        "images": [
            {"image_id": 7, "file_name": "2008_000007.jpg", "phase": "val", "height": 12, "width": 16},
            {"image_id": 2, "file_name": "2008_000002.jpg", "phase": "train", "height": 12, "width": 16},
        ],
        "annos_segmentation": [
            {"image_id": 7, "category_id": 2, "segmentation": {"size": [12, 16], "counts": [0, 192]}},
            {"image_id": 7, "category_id": 458, "segmentation": encoded(lower)},
            {"image_id": 2, "category_id": 3, "segmentation": {"size": [12, 16], "counts": [0, 192]}},
        ],
    }
    source = tmp_path / "down"
    for split, name in (("train", "2008_000002"), ("val", "2008_000007")):
        photo(source / "JPEGImages" / f"{name}.jpg")
        (source / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (source / f"ImageSets/Main/{split}.txt").write_text(f"{name}\n")
    (source / "trainval_merged.json").write_text(json.dumps(content))
    prepared = make("pascal-context", tmp_path / "data", source)
    assert dict(prepared.counts) == {"train": 1, "val": 1}
    found = dataset("pascal-context-59", tmp_path / "data")[0].label
    np.testing.assert_array_equal(found, np.where(lower, 58, 0))
    config = resolve("segmenter-linear-tiny", "pascal-context-59", (), tmp_path / "data").data
    assert set(build_dataset(config, "train", augment=False)[0].label.unique().tolist()) == {255}  # 3 is background


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "not json",
        '{"images": [{"image_id": 1, "file_name": "a.jpg", "phase": "val", "height": 2, "width": 2}], '
        '"annos_segmentation": [{"image_id": 1, "category_id": 2, "segmentation": {"size": [2, 2], "counts": [1]}}]}',
    ],
)
def test_a_file_of_masks_that_is_none(tmp_path: Path, text: str) -> None:
    source = tmp_path / "down"
    photo(source / "JPEGImages/2008_000007.jpg")
    (source / "trainval_merged.json").write_text(text)
    with pytest.raises(DataError, match="holds no masks as PASCAL in Detail has them"):
        make("pascal-context", tmp_path / "data", source)


def encoded(mask_HW: np.ndarray) -> dict[str, object]:
    """A mask as COCO spells it, by the format's definition."""
    flat = mask_HW.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int))).tolist()
    runs = np.diff([0, *edges, flat.size]).tolist()
    text = ""
    for index, run in enumerate(runs):
        number = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            bits = number & 31
            number >>= 5
            more = number != -1 if bits & 16 else number != 0
            text += chr(48 + bits + (32 if more else 0))
    return {"size": list(mask_HW.shape), "counts": text}


def test_run_lengths_as_coco_spells_them() -> None:
    assert decoded_mask({"size": [2, 3], "counts": "132"}).tolist() == [[False, True, False], [True, True, False]]
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (3, 5), (40, 60)):
        for share in (0.0, 0.1, 0.9, 1.0):
            mask_HW = rng.uniform(size=(height, width)) < share
            np.testing.assert_array_equal(decoded_mask(encoded(mask_HW)), mask_HW)
    long = np.zeros((300, 400), bool)
    long[20:280, 30:390] = True
    np.testing.assert_array_equal(decoded_mask(encoded(long)), long)


# --- PASCAL VOC ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["SegmentationClass", "SegmentationClassAug"])
def test_voc_with_and_without_background(tmp_path: Path, labels: str) -> None:
    stored = np.zeros((12, 16), np.uint8)
    stored[:3], stored[3:5], stored[5] = 1, 20, 255
    source = tmp_path / "VOCdevkit/VOC2012"
    for name in ("2007_000033", "2007_000042"):
        photo(source / "JPEGImages" / f"{name}.jpg")
    save(source / labels / "2007_000033.png", stored)
    (source / "ImageSets/Segmentation").mkdir(parents=True)
    (source / "ImageSets/Segmentation/val.txt").write_text("2007_000033\n")
    assert dict(make("pascal-voc", tmp_path / "data", tmp_path / "VOCdevkit").counts) == {"val": 1}
    without, within = (dataset(f"pascal-voc-{name}", tmp_path / "data") for name in ("20", "20b"))
    assert within.classes == (*without.classes, "background")
    np.testing.assert_array_equal(without[0].label, np.where((stored == 0) | (stored == 255), 255, stored - 1))
    np.testing.assert_array_equal(within[0].label, np.where(stored == 0, 20, np.where(stored == 255, 255, stored - 1)))


def test_voc_labels_are_those_of_sed(shared: Path, tmp_path: Path) -> None:
    with np.load(shared / "golden/sed_steps/sed_eval_data.npz") as arrays:
        raw = arrays["label.voc.raw"]
        expected = {name: arrays[f"label.voc{name}.train"] for name in ("20", "20b")}
    voc = tmp_path / "pascal_voc/VOCdevkit/VOC2012"
    photo(voc / "JPEGImages/a.jpg", *raw.shape)
    save(voc / "SegmentationClassAug/a.png", raw)
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "ImageSets/Segmentation/val.txt").write_text("a\n")
    for name, label in expected.items():
        np.testing.assert_array_equal(dataset(f"pascal-voc-{name}", tmp_path)[0].label, label)
