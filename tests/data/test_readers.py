"""Datasets on disk: layouts, label values, and one line for everything that can be wrong with a folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from whitebox.catalog import configs_folder, dataset_names
from whitebox.config import DataConfig
from whitebox.data import GENERATED, READERS, build_dataset, dataset_info, readers, shapes
from whitebox.data.readers import FileSource, Layout, class_list, label_table
from whitebox.errors import ConfigError, DataError, WhiteboxError
from whitebox.palette import distinct_palette

MakeFolder = Callable[..., DataConfig]


def named(name: str, root: Path | str = "nowhere", **changes: object) -> DataConfig:
    settings = OmegaConf.to_container(OmegaConf.load(configs_folder() / "datasets" / f"{name}.yaml"))
    return DataConfig(**{**settings["data"], "root": str(root), **changes})  # type: ignore[index, call-overload]


def fails(config: DataConfig, split: str = "train") -> str:
    """The message of what building the split, or reading all of it, raises."""
    with pytest.raises(WhiteboxError) as caught:
        _ = list(build_dataset(config, split, augment=False))  # type: ignore[call-overload]
    assert "\n" not in str(caught.value)
    return str(caught.value)


CLASS_COUNTS = {
    "ade20k": 150,
    "camvid": 11,
    "cityscapes": 19,
    "coco-stuff": 171,
    "coco-stuff10k": 171,
    "pascal-context": 60,
    "pascal-context-59": 59,
    "shapes": 7,
    "open-shapes": 68,
    "open-shapes-held-out": 25,
    "open-shapes-pairs": 30,
    "open-shapes-all": 121,
    "ade20k-full": 847,
    "pascal-context-459": 459,
    "pascal-voc-20": 20,
    "pascal-voc-20b": 21,
}


def test_every_dataset_has_a_reader() -> None:
    assert {named(name).kind for name in dataset_names()} == set(READERS)
    assert set(dataset_names()) == {*CLASS_COUNTS, "folder"}
    assert all(named(name).name == name for name in dataset_names())


@pytest.mark.parametrize("name", CLASS_COUNTS)
def test_classes_are_known_without_files(name: str) -> None:
    classes, palette = dataset_info(named(name))
    assert len(classes) == len(palette) == CLASS_COUNTS[name]
    assert all(text == text.strip() and text for text in classes)
    assert all(len(colour) == 3 and 0 <= min(colour) <= max(colour) <= 255 for colour in palette)


MMSEG_CLASSES = {
    "ade20k": "ADE20KDataset",
    "cityscapes": "CityscapesDataset",
    "pascal_context": "PascalContextDataset",
    "pascal_context59": "PascalContextDataset59",
    "coco_stuff": "COCOStuffDataset",
}


def test_every_class_list_is_used() -> None:
    files = {path.stem for path in Path(readers.__file__).with_name("classes").iterdir()}
    files.remove("voc20b_names")  # of a vocabulary alone
    assert files == {reader.classes for reader in READERS.values() if isinstance(reader, Layout)}
    assert files == {*MMSEG_CLASSES, "camvid", "ade847", "pascal_context459", "voc20", "voc20b"}


@pytest.mark.parametrize("name", MMSEG_CLASSES)
def test_class_lists_and_palettes_equal_mmsegmentation(mmseg: None, name: str) -> None:
    import mmseg.datasets

    meta = getattr(mmseg.datasets, MMSEG_CLASSES[name]).METAINFO
    classes, palette = class_list(name)
    assert list(classes) == [text.strip() for text in meta["classes"]]
    assert list(palette) == list(map(tuple, meta["palette"]))


@pytest.mark.parametrize("name", ["ade20k", "coco_stuff164k", "pascal_context"])
def test_lists_of_files_equal_mmsegmentation(mmseg: None, tmp_path: Path, name: str) -> None:
    """Their order too, which decides what a training sees first: files, not stems, are sorted."""
    import mmseg.datasets

    layout = READERS[name]
    assert isinstance(layout, Layout)
    config = DataConfig(name=name, kind=name, root=str(tmp_path), path=".", reduce_zero_label=layout.reduce_zero_label)
    names = ["b", "a-b", "a", "a.b", "a b", "sub/c", "sub-d", "B"]
    folders = [tmp_path / part.format(split=layout.splits["train"]) for part in (layout.images, layout.labels)]
    for parent, suffix in zip(folders, (layout.image_suffix, layout.label_suffix), strict=True):
        for file in (*names, ".hidden"):
            path = parent / f"{file}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    list_file = layout.list_file.format(split="train")
    if list_file:
        (tmp_path / list_file).parent.mkdir(parents=True)
        (tmp_path / list_file).write_text("sub/c\nb \n./a\n")
    theirs = getattr(mmseg.datasets, MMSEG_CLASSES[layout.classes])(
        data_prefix={"img_path": str(folders[0]), "seg_map_path": str(folders[1])},
        ann_file=str(tmp_path / list_file) if list_file else "",
        img_suffix=layout.image_suffix,
        seg_map_suffix=layout.label_suffix,
        reduce_zero_label=layout.reduce_zero_label,
        lazy_init=True,
    ).load_data_list()
    pairs = layout.source(config, "train").pairs
    assert [Path(pair.image) for pair in pairs] == [Path(info["img_path"]) for info in theirs]
    assert [Path(pair.label) for pair in pairs] == [Path(info["seg_map_path"]) for info in theirs]


def test_unknown_kind() -> None:
    with pytest.raises(ConfigError, match=r"'ade20'; did you mean 'ade20k'\? There are: shapes"):
        dataset_info(DataConfig(kind="ade20"))


# --- real files ------------------------------------------------------------------------------------------------------

SAMPLES = {  # images per split, and a name
    "ade20k": ({"train": 5, "val": 3}, "ADE_val_00000001"),
    "cityscapes": ({"train": 6, "val": 4}, "cambridge/cambridge_000000_000000"),
    "pascal-context": ({"train": 6, "val": 4}, "2010_900007"),
    "pascal-context-59": ({"train": 6, "val": 4}, "2010_900007"),
    "coco-stuff": ({"train": 13, "val": 8}, "000000000139"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_of_each_layout(shared: Path, name: str) -> None:
    counts, first = SAMPLES[name]
    for split, count in counts.items():
        dataset = build_dataset(named(name, shared / "data" / "samples"), split, augment=False)
        assert len(dataset) == count
        for index in range(count):
            sample = dataset[index]
            assert sample.image.shape[1:] == sample.label.shape
            assert sample.name == dataset.names[index]
            assert (sample.label[sample.label != 255] < len(dataset.classes)).all()
    assert dataset.names[0] == first


def test_camvid(shared: Path) -> None:
    meta = json.loads((shared / "data" / "camvid" / "meta.json").read_text())
    assert class_list("camvid") == (tuple(meta["classes"]), tuple(map(tuple, meta["palette"])))
    for split, count in meta["splits"].items():
        dataset = build_dataset(named("camvid", shared / "data"), split, augment=False)
        assert len(dataset) == count
    labels = torch.cat([dataset[index].label.flatten() for index in range(0, len(dataset), 40)])
    assert set(labels.unique().tolist()) <= {*range(11), 255}


def test_camvid_as_a_folder(shared: Path) -> None:
    config = named("folder", shared / "data", path="camvid")
    plain, as_folder = (build_dataset(c, "val", augment=False) for c in (named("camvid", shared / "data"), config))
    assert as_folder.classes == plain.classes
    assert as_folder.palette == plain.palette
    assert as_folder.names == plain.names
    assert torch.equal(as_folder[3].label, plain[3].label)


@pytest.mark.parametrize("name", ["ade20k", "pascal-context", "pascal-context-59"])
def test_labels_equal_mmsegmentation(mmseg: None, shared: Path, name: str) -> None:
    from mmseg.datasets import LoadAnnotations

    config = named(name, shared / "data" / "samples")
    dataset = build_dataset(config, "val", augment=False)
    assert isinstance(dataset.source, FileSource)
    load = LoadAnnotations()
    for index, pair in enumerate(dataset.source.pairs):
        info = {"seg_map_path": pair.label, "seg_fields": [], "reduce_zero_label": config.reduce_zero_label}
        np.testing.assert_array_equal(dataset[index].label.numpy(), load(info)["gt_seg_map"])


def test_coco_stuff_ids_are_the_classes_of_that_name(shared: Path) -> None:
    lines = (shared / "data" / "samples" / "coco_stuff164k" / "labels.txt").read_text().splitlines()
    names = {int(line.partition(":")[0]): line.partition(":")[2].strip() for line in lines}
    reader = READERS["coco_stuff164k"]
    classes, _ = dataset_info(named("coco-stuff"))
    assert [names[stored + 1] for stored in reader.ids] == list(classes)  # type: ignore[attr-defined]


def test_coco_stuff_ids_are_those_of_segvit(shared: Path) -> None:
    maps = json.loads((shared / "golden" / "segvit_sed" / "label_maps.json").read_text())
    known = {int(stored): train for stored, train in maps["cocostuff164k_png_id_to_train"].items()}
    table = label_table(171, READERS["coco_stuff164k"].ids, 182)  # type: ignore[attr-defined]
    assert {stored: int(table[stored]) for stored in known} == known
    assert all(table[stored] == 255 for stored in set(range(182)) - set(known))


def test_cityscapes_ids() -> None:
    """From cityscapesscripts/helpers/labels.py; the drawn CamVid sample holds ten of them only."""
    reader = READERS["cityscapes"]
    classes, _ = dataset_info(named("cityscapes"))
    ids = dict(zip(classes, reader.ids, strict=True))  # type: ignore[attr-defined]
    assert ids == {
        "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
        "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26,
        "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
    }  # fmt: skip


def test_generated_files_beside_coco_labels_are_no_labels(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "data" / "samples" / "coco_stuff164k", tmp_path / "coco_stuff164k")
    folder = tmp_path / "coco_stuff164k" / "annotations" / "val2017"
    for file in list(folder.iterdir()):
        shutil.copy(file, folder / f"{file.stem}_labelTrainIds.png")
    assert len(build_dataset(named("coco-stuff", tmp_path), "val", augment=False)) == 8


# --- label values ----------------------------------------------------------------------------------------------------


def test_plain_table() -> None:
    assert label_table(3).tolist() == [0, 1, 2] + [254] * 252 + [255]


def test_table_with_reduced_zero() -> None:
    assert label_table(2, reduce_zero_label=True).tolist() == [255, 0, 1] + [254] * 252 + [255]


def test_table_with_ids() -> None:
    assert label_table(2, (1, 4), 6).tolist() == [255, 0, 255, 255, 1, 255] + [254] * 249 + [255]


def test_reduced_zero_label(folder: MakeFolder) -> None:
    plain = build_dataset(folder(), "train", augment=False)[0].label
    config = folder(reduce_zero_label=True, classes=list(shapes.CLASSES[1:]))
    reduced = build_dataset(config, "train", augment=False)[0].label
    assert (plain == 0).any()
    assert torch.equal(reduced, torch.where(plain == 0, 255, plain - 1))


def test_value_out_of_range(folder: MakeFolder, tmp_path: Path) -> None:
    config = folder(classes=["a", "b", "c"])
    Image.fromarray(np.array([[0, 9], [5, 255]], np.uint8)).save(tmp_path / "set" / "masks" / "train" / "train0.png")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "set" / "images" / "train" / "train0.png")
    message = fails(config)
    assert str(tmp_path / "set" / "masks" / "train" / "train0.png") in message
    assert "holds the value 9" in message
    assert "3 classes, stored as 0..2 (255 is ignored)" in message
    assert "set data.reduce_zero_label=true" in message


def test_value_out_of_range_with_reduced_zero(folder: MakeFolder) -> None:
    message = fails(folder(classes=["a"], reduce_zero_label=True))
    assert "1 classes, stored as 0..1" in message
    assert "0 is ignored because of data.reduce_zero_label=true" in message


@pytest.mark.parametrize(("name", "needed"), [("ade20k", "true"), ("pascal-context-59", "true"), ("camvid", "false")])
def test_reduced_zero_label_is_fixed_by_the_owners(name: str, needed: str) -> None:
    message = fails(named(name, reduce_zero_label=needed == "false"))
    assert f"data.reduce_zero_label must be {needed}" in message


def test_value_that_the_owners_do_not_use(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "data" / "samples" / "cityscapes", tmp_path / "cityscapes")
    label = next((tmp_path / "cityscapes" / "gtFine" / "val").rglob("*_labelIds.png"))
    Image.fromarray(np.full((360, 480), 34, np.uint8)).save(label)
    message = fails(named("cityscapes", tmp_path), "val")
    assert f"Label {label} holds the value 34, but cityscapes has 19 classes, stored as 0..33" in message


# --- the folder dataset ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", ["masks", "annotations", "labels"])
def test_folder(folder: MakeFolder, masks: str) -> None:
    dataset = build_dataset(folder(train=3, masks=masks), "train", augment=False)
    assert dataset.names == ["train0", "train1", "train2"]
    assert dataset.classes == shapes.CLASSES
    image, label = shapes.draw(0, "train", 1, 64)
    assert torch.equal(dataset[1].image, torch.from_numpy(image).permute(2, 0, 1))
    assert torch.equal(dataset[1].label, torch.from_numpy(label))
    with pytest.raises(IndexError):
        _ = dataset[3]


def test_folder_without_splits(folder: MakeFolder, tmp_path: Path) -> None:
    config = folder(train=2, val=0, train_split=".", val_split=".")
    for part in ("images", "masks"):
        for file in list((tmp_path / "set" / part / "train").iterdir()):
            shutil.move(file, tmp_path / "set" / part / file.name)
    shutil.rmtree(tmp_path / "set" / "images" / "train")
    assert build_dataset(config, ".", augment=False).names == ["train0", "train1"]
    assert "set data.train_split=. and data.val_split=. to use all images in both" in fails(config, "train")


def test_folder_of_folders_and_mixed_kinds(folder: MakeFolder, tmp_path: Path) -> None:
    config = folder(train=1)
    image, mask = (tmp_path / "set" / part / "train" / "train0.png" for part in ("images", "masks"))
    (image.parent / "deep").mkdir()
    (mask.parent / "deep").mkdir()
    Image.open(image).save(image.parent / "deep" / "b.JPG", "jpeg")
    shutil.copy(mask, mask.parent / "deep" / "b.png")
    (image.parent / "._train0.png").write_bytes(b"hidden files of macOS")
    (image.parent / "notes.txt").write_text("no image")
    dataset = build_dataset(config, "train", augment=False)
    assert dataset.names == ["deep/b", "train0"]
    assert torch.equal(dataset[0].label, dataset[1].label)


def test_folder_with_one_image_suffix(folder: MakeFolder, tmp_path: Path) -> None:
    config = folder(train=1, image_suffix="_rgb.png")
    image = tmp_path / "set" / "images" / "train" / "train0.png"
    shutil.move(image, image.with_name("train0_rgb.png"))
    assert build_dataset(config, "train", augment=False).names == ["train0"]


def test_folder_at_an_absolute_path(folder: MakeFolder, tmp_path: Path) -> None:
    config = folder(root="elsewhere", path=str(tmp_path / "set"))
    assert len(build_dataset(config, "train", augment=False)) == 2


def test_classes_of_a_folder(folder: MakeFolder, tmp_path: Path) -> None:
    config = folder()
    assert dataset_info(config) == (shapes.CLASSES, distinct_palette(7))
    (tmp_path / "set" / "classes.txt").unlink()
    meta = {"classes": list(shapes.CLASSES), "palette": shapes.PALETTE}
    (tmp_path / "set" / "meta.json").write_text(json.dumps(meta))
    assert dataset_info(config) == (shapes.CLASSES, shapes.PALETTE)
    own = folder(classes=["a", "b"], palette=[[1, 2, 3], [4, 5, 6]])
    assert dataset_info(own) == (("a", "b"), ((1, 2, 3), (4, 5, 6)))
    # from the configuration, without any file
    assert dataset_info(DataConfig(kind="folder", root="nowhere", classes=["a"])) == (("a",), distinct_palette(1))


def test_generated_palette_is_distinct() -> None:
    for count in (2, 20, 254):
        palette = distinct_palette(count)
        assert len(set(palette)) == count
        assert palette == distinct_palette(254)[:count]


def test_palette_of_another_length(folder: MakeFolder) -> None:
    assert "data.palette has 1 colours for 2 classes" in fails(folder(classes=["a", "b"], palette=[[1, 2, 3]]))


@pytest.mark.parametrize("colour", [[1, 2], [1, 2, 300], [-1, 2, 3]])
def test_palette_of_something_else(folder: MakeFolder, colour: list[int]) -> None:
    assert "[red, green, blue]" in fails(folder(classes=["a"], palette=[colour]))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classes.txt", b"\n \n", "has no class names"),
        ("classes.txt", b"\xff\xfe\x00", "must be readable UTF-8 text"),
        ("classes.txt", "\n".join(map(str, range(300))).encode(), "has 300 class names: give 1 to 254"),
        ("meta.json", b"{", "cannot be read as JSON"),
        ("meta.json", b"[]", 'lacks "classes"'),
        ("other", b"", "has no class names"),
    ],
)
def test_bad_class_lists(folder: MakeFolder, tmp_path: Path, file: str, content: bytes, message: str) -> None:
    config = folder()
    (tmp_path / "set" / "classes.txt").unlink()
    (tmp_path / "set" / file).write_bytes(content)
    assert message in fails(config)


# --- what can be wrong with the files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CLASS_COUNTS if named(name).kind not in GENERATED])
def test_missing_dataset(tmp_path: Path, name: str) -> None:
    config = named(name, tmp_path)
    message = fails(config, config.train_split or config.val_split)
    assert str(tmp_path / config.path) in message
    assert "--data-root or WHITEBOX_DATA" in message
    assert "`whitebox datasets`" in message


def test_missing_folder_dataset(tmp_path: Path) -> None:
    message = fails(named("folder", tmp_path, path="photos"))
    assert str(tmp_path / "photos") in message
    assert "--data-root" in message


def test_missing_split_list(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "data" / "samples" / "pascal_context", tmp_path / "pascal_context")
    config = named("pascal-context", tmp_path)
    list_file = tmp_path / config.path / "ImageSets" / "SegmentationContext" / "train.txt"
    list_file.write_text("2010_900001\n2010_999999\n")
    assert "Image 2010_999999 of the dataset's list is not in" in fails(config)
    list_file.unlink()
    assert f"The list {list_file} of dataset pascal-context is missing" in fails(config)


def test_split_that_is_not_there() -> None:
    assert "ade20k has no split 'test': choose from train, val" in fails(named("ade20k"), "test")


def test_empty_folder(folder: MakeFolder, tmp_path: Path) -> None:
    config = folder()
    for part in ("images", "masks"):
        for file in (tmp_path / "set" / part / "train").iterdir():
            file.unlink()
    message = fails(config)
    assert str(tmp_path / "set" / "images" / "train") in message
    assert "holds no images" in message


def test_no_masks(folder: MakeFolder, tmp_path: Path) -> None:
    config = folder()
    shutil.rmtree(tmp_path / "set" / "masks")
    assert "has no masks/, annotations/ or labels/" in fails(config)


@pytest.mark.parametrize("name", ["folder", "camvid"])
def test_image_without_label(folder: MakeFolder, tmp_path: Path, name: str) -> None:
    config = folder(train=3, masks="annotations")
    if name == "camvid":
        config.kind = "camvid"
        for file in (tmp_path / "set" / "images" / "train").iterdir():
            Image.open(file).save(file.with_suffix(".jpg"))
            file.unlink()
    (tmp_path / "set" / "annotations" / "train" / "train1.png").unlink()
    message = fails(config)
    assert str(tmp_path / "set" / "images" / "train" / "train1") in message
    assert f"has no label of that name in {tmp_path / 'set' / 'annotations' / 'train'}" in message


@pytest.mark.parametrize("kind", ["folder", "camvid"])
def test_label_without_image(folder: MakeFolder, tmp_path: Path, kind: str) -> None:
    config = folder(train=3, masks="annotations")
    config.kind = kind
    for file in (tmp_path / "set" / "images" / "train").iterdir():
        Image.open(file).save(file.with_suffix(".jpg"))
        file.unlink()
    (tmp_path / "set" / "images" / "train" / "train1.jpg").unlink()
    message = fails(config)
    assert str(tmp_path / "set" / "annotations" / "train" / "train1.png") in message
    assert f"has no image of that name in {tmp_path / 'set' / 'images' / 'train'}" in message


def test_same_stem_twice(folder: MakeFolder, tmp_path: Path) -> None:
    config = folder()
    image = tmp_path / "set" / "images" / "train" / "train0.png"
    Image.open(image).save(image.with_suffix(".jpg"))
    assert "have the same stem" in fails(config)


def test_label_of_another_size(folder: MakeFolder, tmp_path: Path) -> None:
    config = folder()
    label = tmp_path / "set" / "masks" / "train" / "train1.png"
    Image.open(label).crop((0, 0, 30, 40)).save(label)
    message = fails(config)
    assert f"Label {label} is 30 x 40 px" in message
    assert "train1.png is 64 x 64 px: give both the same size" in message


@pytest.mark.parametrize(("part", "what"), [("images", "Image"), ("masks", "Label")])
def test_damaged_file(folder: MakeFolder, tmp_path: Path, part: str, what: str) -> None:
    config = folder()
    path = tmp_path / "set" / part / "train" / "train1.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=f"{what} .*train1.png is damaged"):
        _ = build_dataset(config, "train", augment=True, mean_255=(0, 0, 0))[1]
