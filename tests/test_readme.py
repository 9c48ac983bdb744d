"""Every command and every line of Python in the README runs, in the order a reader meets them."""

from __future__ import annotations

import re
import shlex
import zipfile
from importlib.util import find_spec
from pathlib import Path

import cv2
import pytest
import timm
import torch
from golden_vectors import vector_file

import whitebox
from analysis.measures.costs import count
from whitebox.cli import main
from whitebox.data.readers import class_list
from whitebox.errors import ConfigError
from whitebox.extras import EXTRAS
from whitebox.models import encoder

README = Path(__file__).resolve().parent.parent / "README.md"
# Appended to each `whitebox train`: the same code on less work.
SMALL = "encoder.depth=1 train.epochs=1 train.workers=0 train.batch_size=2 train.micro_batch=null"
SMALL_IMAGES = "data.crop=32 data.resize=32 inference.window=32 inference.stride=32"
SMALL_SHAPES = "data.train_length=4 data.val_length=4"
# Appended to these commands; the last of an option counts.
LESS = {
    "rank-analysis": "--limit 2",
    "alignment": "--limit 1 --draws 1",
    "ablate": "--limit 1 --draws 1",
    "orthogonality": "--draws 5",
    "profile": "--repeats 1 --size 64",
    "robustness": "--limit 1 --draws 1",
    "compare": "--limit 2",
    "similarity": "--limit 1 --draws 1",
    "intervene": "--limit 2",
}

EXTRA_OPTIONS = {"--corruptions": "corruptions", "mmseg": "mmseg"}  # what of a command needs an extra


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def commands() -> list[str]:
    """The `whitebox` commands, without the installation that stands before the first (.ci/run runs those lines)."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line[line.index("whitebox ") :] for line in lines if "whitebox " in line]


def small(command: str) -> list[str]:
    arguments = shlex.split(command)[1:]
    if arguments[:2] == ["data", "prepare"]:
        return [*arguments, "--allow-partial"]
    if arguments[0] != "train":
        return [*arguments, *LESS.get(arguments[0], "").split()]
    return [
        *arguments,
        *(SMALL if "--dataset" in arguments else f"{SMALL} {SMALL_SHAPES}").split(),
        *SMALL_IMAGES.split(),
    ]


@pytest.fixture
def reader(shared: Path, golden: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who follows the README: datasets, photos and an official checkpoint are there."""
    data = shared / "data"
    for kind in ("images", "annotations"):
        (tmp_path / "data" / "camvid" / kind).mkdir(parents=True)
        for split in ("train", "val", "test"):
            source = data / "camvid-mini" / kind / ("train" if split == "train" else "val")
            (tmp_path / "data" / "camvid" / kind / split).symlink_to(source)
    with zipfile.ZipFile(tmp_path / "ADEChallengeData2016.zip", "w") as archive:
        for path in (data / "samples" / "ade20k" / "ADEChallengeData2016").rglob("*"):
            archive.write(path, path.relative_to(data / "samples" / "ade20k"))
    for split in ("train", "val"):
        for own, camvid in (("images", "images"), ("masks", "annotations")):
            (tmp_path / "mydata" / own / split).mkdir(parents=True)
            for path in sorted((data / "camvid-mini" / camvid / split).iterdir())[:4]:
                (tmp_path / "mydata" / own / split / path.name).symlink_to(path)
    (tmp_path / "mydata" / "classes.txt").write_text("\n".join(class_list("camvid")[0]))
    video = cv2.VideoWriter(str(tmp_path / "drive.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (427, 240))
    for frame in sorted((data / "davis2016-val-240p" / "JPEGImages" / "240p" / "blackswan").iterdir())[:3]:
        video.write(cv2.resize(cv2.imread(str(frame)), (427, 240)))
    video.release()
    (tmp_path / "photos").mkdir()
    for photo in sorted((data / "samples" / "natural" / "images").iterdir())[:2]:
        (tmp_path / "photos" / photo.name).symlink_to(photo)
    street = sorted((data / "camvid-mini" / "images" / "val").iterdir())[0]
    (tmp_path / "photos" / "street.jpg").symlink_to(street)
    (tmp_path / "official").mkdir()
    for name in ("checkpoint.pth", "variant.yml"):
        (tmp_path / "official" / name).symlink_to(vector_file(golden, "depict_sa", name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WHITEBOX_DATA", raising=False)
    return tmp_path


def test_commands_and_python(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def downloaded(name: str) -> dict[str, torch.Tensor]:
        return dict(timm.create_model(name, depth=1).state_dict())

    monkeypatch.setattr(encoder, "_pretrained_tensors", downloaded)
    for command in commands():
        monkeypatch.setattr("sys.argv", ["whitebox", *small(command)])
        with pytest.raises(SystemExit) as stopped:
            main()
        asked = [extra for option, extra in EXTRA_OPTIONS.items() if option in command]
        missing = [extra for extra in asked if find_spec(EXTRAS[extra].module) is None]
        assert (stopped.value.code or 0) == (ConfigError.exit_code if missing else 0), command

    python = "\n".join(blocks("python"))  # one program: later blocks go on with the model of the first
    names: dict[str, object] = {}
    exec(python, names)
    for line in python.splitlines():
        if stated := re.match(r"\s*(\w+) = .*#\s*\((\d[\d, ]*)\)", line):
            assert tuple(names[stated[1]].shape) == tuple(map(int, stated[2].split(","))), line  # type: ignore[attr-defined]


def test_there_are_commands() -> None:
    verbs = {command.split()[1] for command in commands()}
    assert {"train", "eval", "predict", "convert", "models", "datasets"} <= verbs


def test_pictures_and_links_exist() -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert [path for path in linked if not path.startswith("https://") and not (README.parent / path).exists()] == []


ROWS = [  # of models whose classes are given; those of an open vocabulary: tests/models/test_sed.py
    row
    for row in re.findall(
        r"^\| `([a-z-]+-(?:tiny|small|base|large|large-shrunk))` \| .*? \| ([\d.]+) \| ([\d.]+) \|",
        README.read_text(),
        re.M,
    )
    if not row[0].startswith("sed-")
]


def test_the_model_table_is_complete() -> None:
    from whitebox.catalog import model_names
    from whitebox.config import resolve
    from whitebox.models import DECODERS

    closed = [name for name in model_names() if not DECODERS[resolve(name).decoder.name].open_vocabulary]
    assert sorted(row[0] for row in ROWS) == closed


@pytest.mark.parametrize(("name", "parameters", "gflops"), ROWS)
def test_model_table(name: str, parameters: str, gflops: str) -> None:
    """Parameters of the decoder in millions, and 2 x multiply-adds of its blocks (or linear head) at 150 classes."""
    size = 640 if "large" in name else 512
    with torch.device("meta"):
        model = whitebox.create_model(name, num_classes=150, encoder={"image_size": size}).eval()
    costs = count(model, size)
    scope = "decoder" if "linear" in name else "decoder blocks"
    assert f"{costs['decoder'].parameters / 1e6:.2f}" == parameters
    assert f"{costs[scope].gflops:.2f}" == gflops
