"""Which files a dataset is made of, what its classes are, and how stored label values become class indices.

Folder layouts are those of the datasets' owners; class names and colours lie in ``classes/*.txt``, with their sources.

Labels store one of V values: 256, or 65536 where there are more than 254 classes. The last is ignored. A table says
which class each value is; there the last means ignored, too, and the last but one, that a value means nothing.
"""

from __future__ import annotations

import codecs
import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from whitebox.catalog import nearest
from whitebox.config import DataConfig
from whitebox.data import open_shapes, shapes
from whitebox.data.images import (
    IGNORE,
    IMAGE_SUFFIXES,
    NARROW,
    WIDE,
    Label,
    UInt8,
    orientation,
    read_image,
    read_label,
)
from whitebox.errors import ConfigError, DataError
from whitebox.palette import distinct_palette
from whitebox.text import composed, require_text

Classes = tuple[str, ...]
Palette = tuple[tuple[int, int, int], ...]

MAX_CLASSES = 254
_LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")  # without loss, unlike JPEG
_HELP = "give the folder that holds it with --data-root or WHITEBOX_DATA; `whitebox datasets` shows each folder"

# The 19 evaluated classes in the order of their train ids (cityscapesscripts/helpers/labels.py).
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# Stored values 0..181 without those of the 11 COCO categories that no image has.
_COCO_STUFF_IDS = tuple(sorted(set(range(182)) - {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}))


@functools.cache
def class_list(name: str) -> tuple[Classes, Palette]:
    """Class names and RGB colours (0..255) of ``classes/NAME.txt``, a line ``red green blue name`` for each class."""
    text = Path(__file__).with_name("classes").joinpath(f"{name}.txt").read_text("utf-8")
    rows = [line.split(maxsplit=3) for line in text.splitlines() if not line.startswith("#")]
    return tuple(row[3] for row in rows), _as_palette([int(part) for part in row[:3]] for row in rows)


@functools.cache
def id_list(name: str) -> tuple[str, ...]:
    """The words of ``ids/NAME.txt``, whose first lines say the source."""
    text = Path(__file__).with_name("ids").joinpath(f"{name}.txt").read_text("utf-8")
    return tuple(word for line in text.splitlines() if not line.startswith("#") for word in line.split())


@dataclass(frozen=True)
class Pair:
    """One image file and its label file."""

    name: str  # path below the split's image folder, without suffix
    image: str
    label: str


class Source(Protocol):
    """Images with labels, before any augmentation. Shapes: H, W pixels."""

    classes: Classes
    palette: Palette
    names: list[str]
    ignore: int

    def load(self, index: int) -> tuple[UInt8, Label]:
        """RGB image (H, W, 3), uint8, and label (H, W); label values are class indices or ``ignore``."""
        ...


class ShapesSource:
    """The images of ``whitebox.data.shapes``, drawn when asked for."""

    ignore = IGNORE

    def __init__(self, config: DataConfig, split: str) -> None:
        if split not in shapes.SPLITS:
            raise _unknown_split("shapes", split, shapes.SPLITS)
        self.classes: Classes = shapes.CLASSES
        self.palette: Palette = shapes.PALETTE
        self.split, self.seed, self.size = split, config.shapes_seed, config.size
        length = config.train_length if split == "train" else config.val_length
        self.names = [f"{split}_{index:05d}" for index in range(length)]

    def load(self, index: int) -> tuple[UInt8, UInt8]:
        return shapes.draw(self.seed, self.split, index, self.size)


class OpenShapesSource:
    """The images of ``whitebox.data.open_shapes``, drawn when asked for, with the names of one group as classes."""

    ignore = IGNORE

    def __init__(self, config: DataConfig, split: str, group: str) -> None:
        splits = [name for name, drawn in open_shapes.SPLITS.items() if group in (drawn.group, "all")]
        if split not in splits:
            raise _unknown_split(config.name, split, splits)
        self.classes: Classes = open_shapes.names(group)
        self.palette: Palette = open_shapes.palette(self.classes)
        self.split, self.seed, self.size = split, config.shapes_seed, config.size
        length = config.train_length if split == "train" else config.val_length
        self.names = [f"{split}_{index:05d}" for index in range(length)]
        drawn_classes = [open_shapes.CLASSES.index(name) for name in self.classes]
        self.table_V = label_table(len(self.classes), drawn_classes)

    def load(self, index: int) -> tuple[UInt8, UInt8]:
        image, drawn = open_shapes.draw(self.seed, self.split, index, self.size)
        return image, np.asarray(cv2.LUT(drawn, self.table_V), np.uint8)


class FileSource:
    """Pairs of image and label files.

    ``table_V`` turns stored label values into class indices; ``hint`` ends the message about a value without a class.
    """

    def __init__(
        self,
        title: str,
        classes: Classes,
        palette: Palette,
        pairs: Sequence[Pair],
        table_V: Label,
        hint: str,
    ) -> None:
        self.title, self.classes, self.palette = title, classes, palette
        self.pairs, self.table_V, self.hint = pairs, table_V, hint
        self.ignore = len(table_V) - 1
        self.names = [pair.name for pair in pairs]

    def load(self, index: int) -> tuple[UInt8, Label]:
        pair = self.pairs[index]
        image, stored = read_image(pair.image), read_label(pair.label, len(self.table_V))
        if image.shape[:2] != stored.shape:
            raise DataError(unlike_sizes(pair.image, image, pair.label, stored))
        return image, self.classes_of(index, stored)

    def classes_of(self, index: int, stored: Label) -> Label:
        """Class indices (H, W) of the stored values of a label; ``DataError`` names one without a class."""
        pair, unknown = self.pairs[index], self.ignore - 1
        narrow = len(self.table_V) == NARROW
        label = np.asarray(cv2.LUT(stored, self.table_V), np.uint8) if narrow else self.table_V[stored]
        if (label == unknown).any():
            value = int(stored[label == unknown].max())
            known = np.flatnonzero(self.table_V[: self.ignore] != unknown)
            raise DataError(
                f"Label {pair.label} holds the value {value}, but {self.title} has {len(self.classes)} classes, stored "
                f"as {known[0]}..{known[-1]} ({self.ignore} is ignored): {self.hint}."
            )
        return label


def unlike_sizes(image_path: str, image: UInt8, label_path: str, label: Label) -> str:
    """The one line about an image and a label of different sizes."""
    turned = [orientation(path) for path in (image_path, label_path)]
    cure = "give both the same size"
    if turned[0] != turned[1] and image.shape[:2] == label.shape[::-1]:
        which, other, value = ("image", "label", turned[0]) if turned[0] > 1 else ("label", "image", turned[1])
        cure = f"the {which} is turned by its EXIF orientation ({value}) and the {other} is not; save both upright"
    return (
        f"Label {label_path} is {label.shape[1]} x {label.shape[0]} px but its image {image_path} is "
        f"{image.shape[1]} x {image.shape[0]} px: {cure}."
    )


@dataclass(frozen=True)
class Listing:
    """The files of one split by name, not paired yet, and what their labels mean (see ``FileSource``)."""

    title: str
    classes: Classes
    palette: Palette
    table_V: Label
    hint: str
    names: Sequence[str]  # those of the owners' list, else of every image
    images: Mapping[str, str]
    labels: Mapping[str, str]
    image_folder: Path
    label_folder: Path
    listed: bool  # files that the list does not name are none of this split's business
    doubled: Sequence[str] = ()  # a line for each file whose name another file has too

    def source(self) -> FileSource:
        """The pairs; ``DataError`` names the first file that lacks its partner."""
        if not self.names:
            raise DataError(f"Dataset folder {self.image_folder} holds no images: put them there, or {_HELP}.")
        for line in self.doubled:
            raise DataError(line)
        for lack in self.unpaired():
            raise DataError(lack.advice())
        pairs = [Pair(name, self.images[name], self.labels[name]) for name in self.names]
        return FileSource(self.title, self.classes, self.palette, pairs, self.table_V, self.hint)

    def unpaired(self) -> Iterator[Lack]:
        """What each file lacks that has no partner, with the reason where one can be seen."""
        without_image = [name for name in self.names if name not in self.images]
        without_label = [name for name in self.names if name not in self.labels]
        orphans = [] if self.listed else sorted(set(self.labels) - set(self.names))
        images, labels = _Beside(self.image_folder, "image"), _Beside(self.label_folder, "label")
        explained = set()
        for name in without_image:
            owner, cure = f"Image {name} of the dataset's list is not", "add it, or take it off the list"
            yield Lack(owner, self.image_folder, images.meant(name)[1], cure)
        for name in without_label:
            path, why = labels.meant(name)
            explained.add(path)
            owner = f"Image {self.images.get(name, name)} has no label"
            yield Lack(owner, self.label_folder, why, "add it or remove the image")
        for name in orphans:
            if self.labels[name] not in explained:
                owner = f"Label {self.labels[name]} has no image"
                yield Lack(owner, self.image_folder, images.meant(name)[1], "add it or remove the label")


@dataclass(frozen=True)
class Lack:
    """A file without its partner.

    Attributes:
        owner: the file that is there, and what it lacks.
        folder: where that was looked for.
        why: a file there that may be meant, and why it is not taken; empty where there is none.
        cure: what to do then.
    """

    owner: str
    folder: Path
    why: str
    cure: str

    def finding(self) -> str:
        """What is missing."""
        return f"{self.owner} in {self.folder}{self.why}."

    def advice(self) -> str:
        """What is missing, and what to do."""
        of_that_name = "" if self.owner.endswith(" not") else " of that name"
        return f"{self.owner}{of_that_name} in {self.folder}{self.why or f': {self.cure}'}."


class _Beside:
    """What lies in a folder of images or labels, to find what was meant where a name is missing."""

    def __init__(self, folder: Path, what: str) -> None:
        self.folder, self.what = folder, what

    @functools.cached_property
    def files(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Files of other kinds by their stem; and all by their stem without what is before, or after, a _ or -."""
        kinds = {"label": _LABEL_SUFFIXES, "image": IMAGE_SUFFIXES}[self.what]
        same: dict[str, Path] = {}
        alike: dict[str, Path] = {}
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file() and path.name[0] != "."):
            stem = composed(path.relative_to(self.folder).with_suffix("").as_posix())
            if path.suffix.lower() not in kinds:
                same.setdefault(stem, path)
            above, slash, own = stem.rpartition("/")
            for found in re.finditer("[_-]", own):
                for part in (own[: found.start()], own[found.end() :]):
                    alike.setdefault(f"{above}{slash}{part}", path)
        return same, alike

    def meant(self, name: str) -> tuple[str, str]:
        """A file that may be meant by ``name``, and why it is not taken; empty where there is none."""
        same, alike = self.files
        if name in same:
            path = same[name]
            lossy = self.what == "label" and path.suffix.lower() in (".jpg", ".jpeg")
            why = "JPEG changes label values" if lossy else f"that is no kind of {self.what} that is read"
            return str(path), f", only {path}: {why}, save it as {'PNG' if self.what == 'label' else 'PNG or JPEG'}"
        if name in alike:
            path, last = alike[name], name.rpartition("/")[2]
            cure = "give both the same stem"
            if self.what == "label" and composed(path.name).startswith(last):
                cure += f", or set data.label_suffix={composed(path.name)[len(last) :]}"
            return str(path), f", only {path}, whose stem differs: {cure}"
        return "", ""


@dataclass(frozen=True)
class Layout:
    """One dataset as its owners lay it out; folders are below ``DataConfig.path``, ``{split}`` is the split's name."""

    classes: str  # see class_list
    images: str = "images/{split}"
    labels: str = "annotations/{split}"
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "val": "val", "test": "test"})
    image_suffix: str = ".jpg"
    label_suffix: str = ".png"
    other_labels: tuple[str, ...] = ()  # ends of file names that lie beside the labels and are none
    list_file: str = ""  # one name a line; empty: every image of the folder
    id_list: str = ""  # or our own list, see id_list; names of which nothing is there are left out
    reduce_zero_label: bool = False  # what DataConfig must say: else every class would be off by one
    ids: tuple[int, ...] = ()  # stored label value of each class; empty: 0, 1, 2, ...
    values: int = NARROW  # V
    stored_values: int = 0  # labels hold 0..stored_values-1, those without a class ignored; 0: the classes only

    def info(self, config: DataConfig) -> tuple[Classes, Palette]:
        """Class names and colours; needs no file of the dataset."""
        return class_list(self.classes)

    def source(self, config: DataConfig, split: str) -> FileSource:
        """The pairs of a split, complete and checked by name; no image is opened yet."""
        return self.listing(config, split).source()

    def listing(self, config: DataConfig, split: str) -> Listing:
        """The files of a split, whether or not they are complete."""
        if split not in self.splits:
            raise _unknown_split(config.name, split, self.splits)
        if config.reduce_zero_label != self.reduce_zero_label:
            needed = str(self.reduce_zero_label).lower()
            raise ConfigError(
                f"data.reduce_zero_label must be {needed} for data.kind={config.kind}: its labels are fixed."
            )
        classes, palette = self.info(config)
        root = Path(config.root, config.path)
        images, labels, list_file = (
            text.format(split=self.splits[split]) for text in (self.images, self.labels, self.list_file)
        )
        for folder in (images, labels, os.path.dirname(list_file)):
            _require_folder(root / folder, config.name)
        if list_file and not (root / list_file).is_file():
            raise DataError(f"The list {root / list_file} of dataset {config.name} is missing: {_HELP}.")
        have_images, doubled_images = _files(root / images, (self.image_suffix,))
        have_labels, doubled_labels = _files(root / labels, (self.label_suffix,), self.other_labels)
        if list_file:
            lines = (line.strip() for line in read_text(root / list_file).splitlines())
            names = [composed(Path(line).as_posix()) for line in lines if line]
        elif self.id_list:
            names = [name for name in id_list(self.id_list) if name in have_images or name in have_labels]
        else:
            names = sorted(have_images, key=lambda name: name + self.image_suffix)  # as mmsegmentation orders them
        return Listing(
            title=config.name,
            classes=classes,
            palette=palette,
            table_V=label_table(len(classes), self.ids, self.stored_values, config.reduce_zero_label, self.values),
            hint="the file is not as the dataset's owners made it, replace it",
            names=names,
            images=have_images,
            labels=have_labels,
            image_folder=root / images,
            label_folder=root / labels,
            listed=bool(list_file or self.id_list),
            doubled=[*doubled_images, *doubled_labels],
        )


class Folder:
    """``folder``: any tree ``images/`` + ``masks/`` (or ``annotations/`` or ``labels/``), files paired by their stems.

    Below each lie the splits' folders (``data.train_split``, ``data.val_split``); a split ``.`` means all images.
    Classes come from ``data.classes``, else ``classes.txt`` (a name a line), else ``meta.json`` (``{"classes": [...],
    "palette": [...]}``) in the dataset's folder; colours from ``data.palette``, else ``meta.json``, else generated.
    """

    def info(self, config: DataConfig) -> tuple[Classes, Palette]:
        """Class names and colours."""
        root = Path(config.root, config.path)
        meta: dict[str, Any] = {}
        names: Sequence[str] = list(config.classes)
        if not names:
            _require_own(config)
            if (root / "classes.txt").is_file():
                lines = re.split(r"\r\n|\r|\n", read_text(root / "classes.txt"))
                names = [line.strip() for line in lines if line.strip()]
            elif (root / "meta.json").is_file():
                meta = _read_meta(root / "meta.json")
                names = meta["classes"]
        if not 1 <= len(names) <= MAX_CLASSES:
            raise DataError(
                f"Dataset folder {root} has {len(names) or 'no'} class names: give 1 to {MAX_CLASSES} as data.classes="
                "[road,car,...], or one name a line in classes.txt there."
            )
        classes = _checked(names, "data.classes" if config.classes else str(root))
        colours = config.palette or meta.get("palette")
        if not colours:
            return classes, distinct_palette(len(names))
        palette = _as_palette(colours)
        if len(palette) != len(names):
            raise ConfigError(
                f"data.palette has {len(palette)} colours for {len(names)} classes: give one each or none."
            )
        return classes, palette

    def source(self, config: DataConfig, split: str) -> FileSource:
        """The pairs of a split, complete and checked by name; no image is opened yet."""
        return self.listing(config, split).source()

    def listing(self, config: DataConfig, split: str) -> Listing:
        """The files of a split, whether or not they are complete."""
        root = _require_own(config)
        classes, palette = self.info(config)
        candidates = [root / name for name in ("masks", "annotations", "labels")]
        labels = next((folder for folder in candidates if folder.is_dir()), None)
        if labels is None:
            raise DataError(f"Dataset folder {root} has no masks/, annotations/ or labels/: put the labels there.")
        for folder in (root / "images" / split, labels / split):
            if not folder.is_dir():
                raise DataError(
                    f"Dataset folder {folder} is missing: make one for each split, or set data.train_split=. and "
                    "data.val_split=. to use all images in both."
                )
        suffixes = (config.image_suffix,) if config.image_suffix else IMAGE_SUFFIXES
        have_images, doubled_images = _files(root / "images" / split, suffixes)
        label_suffixes = (config.label_suffix,) if config.label_suffix else _LABEL_SUFFIXES
        have_labels, doubled_labels = _files(labels / split, label_suffixes)
        return Listing(
            title=str(root),
            classes=classes,
            palette=palette,
            table_V=_mapped(label_table(len(classes), reduce_zero_label=config.reduce_zero_label), config, classes),
            hint="correct the file or the class list, or say with data.label_map which class a value means; "
            + (
                "0 is ignored because of data.reduce_zero_label=true"
                if config.reduce_zero_label
                else "where 0 means unlabelled, set data.reduce_zero_label=true"
            ),
            names=sorted(have_images),
            images=have_images,
            labels=have_labels,
            image_folder=root / "images" / split,
            label_folder=labels / split,
            listed=False,
            doubled=[*doubled_images, *doubled_labels],
        )


class Shapes:
    """``shapes``: generated, see ``whitebox.data.shapes``."""

    def info(self, config: DataConfig) -> tuple[Classes, Palette]:
        """Class names and colours."""
        return shapes.CLASSES, shapes.PALETTE

    def source(self, config: DataConfig, split: str) -> ShapesSource:
        """Images of a split."""
        return ShapesSource(config, split)


@dataclass(frozen=True)
class OpenShapes:
    """``open_shapes``: generated, see ``whitebox.data.open_shapes``; its classes are a group of names."""

    group: str  # seen | held-out | pairs | all

    def info(self, config: DataConfig) -> tuple[Classes, Palette]:
        """Class names and colours."""
        classes = open_shapes.names(self.group)
        return classes, open_shapes.palette(classes)

    def source(self, config: DataConfig, split: str) -> OpenShapesSource:
        """Images of a split."""
        return OpenShapesSource(config, split, self.group)


class Reader(Protocol):
    """What each kind of dataset offers."""

    def info(self, config: DataConfig) -> tuple[Classes, Palette]:
        """Class names and colours."""
        ...

    def source(self, config: DataConfig, split: str) -> Source:
        """Images of a split, by the split's name."""
        ...


_PASCAL_CONTEXT = Layout(
    classes="pascal_context",
    images="JPEGImages",
    labels="SegmentationClassContext",
    splits={"train": "train", "val": "val"},
    list_file="ImageSets/SegmentationContext/{split}.txt",
)
_PASCAL_VOC = Layout(
    classes="",
    images="JPEGImages",
    labels="SegmentationClassAug",
    splits={"val": "val"},
    list_file="ImageSets/Segmentation/{split}.txt",
)
READERS: dict[str, Reader] = {
    "shapes": Shapes(),
    "open_shapes": OpenShapes("seen"),
    "open_shapes_held_out": OpenShapes("held-out"),
    "open_shapes_pairs": OpenShapes("pairs"),
    "open_shapes_all": OpenShapes("all"),
    "folder": Folder(),
    "camvid": Layout(classes="camvid"),
    "ade20k": Layout(classes="ade20k", splits={"train": "training", "val": "validation"}, reduce_zero_label=True),
    "ade20k_full": Layout(  # as `whitebox data prepare` makes it, or SED's prepare_ade20k_full.py
        classes="ade847",
        images="images_detectron2/{split}",
        labels="annotations_detectron2/{split}",
        splits={"val": "validation"},
        label_suffix=".tif",
        values=WIDE,
    ),
    "cityscapes": Layout(
        classes="cityscapes",
        images="leftImg8bit/{split}",
        labels="gtFine/{split}",
        image_suffix="_leftImg8bit.png",
        label_suffix="_gtFine_labelIds.png",
        ids=_CITYSCAPES_IDS,
        stored_values=34,
    ),
    "pascal_context": _PASCAL_CONTEXT,
    "pascal_context59": replace(_PASCAL_CONTEXT, classes="pascal_context59", reduce_zero_label=True),
    "pascal_context459": Layout(
        classes="pascal_context459",
        images="JPEGImages",
        labels="trainval",
        splits={"val": "val"},
        label_suffix=".mat",
        id_list="pascal_context459_val",
        reduce_zero_label=True,
        values=WIDE,
    ),
    "pascal_voc20": replace(_PASCAL_VOC, classes="voc20", reduce_zero_label=True),
    "pascal_voc20b": replace(_PASCAL_VOC, classes="voc20b", ids=(*range(1, 21), 0)),
    "coco_stuff164k": Layout(
        classes="coco_stuff",
        splits={"train": "train2017", "val": "val2017"},
        other_labels=("TrainIds.png",),  # mmsegmentation's converter writes them
        ids=_COCO_STUFF_IDS,
        stored_values=182,
    ),
    "coco_stuff10k": Layout(  # labels as `whitebox data prepare` makes them of the owners' .mat: those of 164k
        classes="coco_stuff",
        images="images",
        labels="annotations",
        splits={"train": "train", "val": "test"},
        list_file="imageLists/{split}.txt",
        ids=_COCO_STUFF_IDS,
        stored_values=182,
    ),
}

GENERATED = tuple(kind for kind, reader in READERS.items() if isinstance(reader, (Shapes, OpenShapes)))  # without files


def reader_of(config: DataConfig) -> Reader:
    """The reader of a dataset's kind.

    Raises:
        ConfigError: an unknown kind.
    """
    if not config.kind:
        raise ConfigError(f"Nothing is known of the dataset {config.name!r}: name one of ours with --dataset.")
    if config.kind not in READERS:
        hint = nearest(config.kind, list(READERS))
        raise ConfigError(f"Unknown data.kind {config.kind!r}{hint} There are: {', '.join(READERS)}.")
    return READERS[config.kind]


def dataset_info(config: DataConfig) -> tuple[Classes, Palette]:
    """Class names and RGB colours (0..255) of a dataset, without its files (``folder`` may have them in a file).

    Raises:
        ConfigError: unknown kind, or a palette that does not fit.
        DataError: a ``folder`` without class names.
    """
    return reader_of(config).info(config)


def class_table(config: DataConfig, classes: Classes) -> UInt8:
    """Class index of each stored value in the labels of a dataset, for labels that do not belong to a split.

    Raises:
        ConfigError: see ``reader_of``; or ``data.label_map`` names a class that is not there.
    """
    reader = reader_of(config)
    ids, values = (reader.ids, reader.stored_values) if isinstance(reader, Layout) else ((), 0)
    table_256 = label_table(len(classes), ids, values, config.reduce_zero_label)
    return _mapped(table_256, config, classes) if isinstance(reader, Folder) else table_256


def label_table(
    num_classes: int,
    ids: Sequence[int] = (),
    stored_values: int = 0,
    reduce_zero_label: bool = False,
    values: int = NARROW,
) -> Label:
    """Class index of each stored value, shape (V,): V - 1 where it is ignored, V - 2 where it means nothing.

    Args:
        num_classes: at most V - 2.
        ids: stored value of each class; empty: the indices themselves.
        stored_values: stored values below this one that no class has are ignored.
        reduce_zero_label: stored 0 is ignored, and k is class k - 1.
        values: V.
    """
    ignore = values - 1
    table_V: Label = np.full(values, ignore - 1, np.uint8 if values == NARROW else np.uint16)
    table_V[:stored_values] = ignore
    table_V[ignore] = ignore
    stored = np.asarray(ids or range(num_classes), np.int64)
    if reduce_zero_label:
        table_V[0] = ignore
        stored = stored + 1
    table_V[stored] = np.arange(num_classes, dtype=table_V.dtype)
    return table_V


def _mapped(table_V: Label, config: DataConfig, classes: Classes) -> Label:
    """``table_V`` with the classes that ``data.label_map`` gives to stored values."""
    for stored, index in config.label_map.items():
        if index != IGNORE and index >= len(classes):
            raise ConfigError(
                f"data.label_map makes {stored} class {index}, and there are {len(classes)} classes: 0 to "
                f"{len(classes) - 1}, or {IGNORE} for ignored."
            )
        table_V[stored] = index
    return table_V


def _as_palette(colours: Iterable[Sequence[int]]) -> Palette:
    try:
        palette = tuple((int(red), int(green), int(blue)) for red, green, blue in colours)
    except (TypeError, ValueError):
        raise ConfigError("A palette is a list of [red, green, blue], one a class, each 0..255.") from None
    if not all(0 <= part <= 255 for colour in palette for part in colour):
        raise ConfigError("A palette is a list of [red, green, blue], one a class, each 0..255.")
    return palette


def read_text(path: Path) -> str:
    """A text file as an editor has saved it: UTF-8, or what its byte order mark says."""
    try:
        content = path.read_bytes()
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if marked else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): it must be readable UTF-8 text.") from None


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}): correct it or use classes.txt.") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("classes"), list):
        raise DataError(f'{path} lacks "classes": [...]: add it, or put classes.txt in its place.')
    for name in meta["classes"]:
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise DataError(f'"classes" in {path} holds {name!r:.60}, which is no name: write names in quotes.')
    return {**meta, "classes": [str(name) for name in meta["classes"]]}


def _checked(names: Sequence[str], origin: str) -> Classes:
    """Class names that can be saved and shown."""
    for number, name in enumerate(names):
        if not name.strip():
            raise DataError(f"Class {number} of {origin} has no name: give it one.")
        require_text(name, f"Class {number} of {origin},")
    return tuple(names)


def _unknown_split(title: str, split: str, splits: Iterable[str]) -> ConfigError:
    if not split:
        return ConfigError(f"Dataset {title} is for evaluation only: train on another one.")
    return ConfigError(f"Dataset {title} has no split {split!r}: choose from {', '.join(splits)}.")


def _require_own(config: DataConfig) -> Path:
    """The folder of a ``folder`` dataset."""
    root = Path(config.root, config.path)
    if not root.is_dir():
        here = "" if os.path.abspath(root) == os.path.abspath(config.path) else f" (and for {config.path} here)"
        raise DataError(
            f"Dataset {config.name} is not there, looked for the folder {root}{here}: give it as data.path=DIR, a path "
            "here or below --data-root."
        )
    return root


def _require_folder(folder: Path, title: str) -> None:
    if not folder.is_dir():
        raise DataError(f"Dataset {title} is not there, looked for the folder {folder}: {_HELP}.")


def _files(folder: Path, suffixes: tuple[str, ...], others: tuple[str, ...] = ()) -> tuple[dict[str, str], list[str]]:
    """Names (path below ``folder`` without suffix, é as one character) to paths, and a line for each name twice there.

    Hidden files are no data.
    """
    found: dict[str, str] = {}
    doubled: list[str] = []
    for parent, _, files in os.walk(folder, followlinks=True):
        for file in sorted(files):
            suffix = next((end for end in suffixes if file.lower().endswith(end.lower())), None)
            if suffix is None or file.startswith(".") or (others and file.endswith(others)):
                continue
            path = os.path.join(parent, file)
            name = composed(Path(path[: -len(suffix)]).relative_to(folder).as_posix())
            if name in found:
                doubled.append(f"{found[name]} and {path} have the same stem: keep one of them.")
            found.setdefault(name, path)
    return found, doubled
