"""Every command and every line of Python in README and the guides runs, in the order a reader meets them.

Of a page the blocks marked ``bash`` are run, unless ``<!-- not run: REASON -->`` stands above them. Bash itself says
what a block calls, so quotes, globs, loops and variables mean what they mean to a reader; `whitebox` is then called
with the same arguments on less work, also where torchrun or the like would start it.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import subprocess
import zipfile
from importlib.util import find_spec
from pathlib import Path

import cv2
import pytest
import timm
import torch
from golden_vectors import vector_file
from tiny_runs import tiny_model

import whitebox
from analysis.measures.costs import count
from whitebox.catalog import model_names
from whitebox.cli import main
from whitebox.config import resolve
from whitebox.data.readers import class_list
from whitebox.data.shapes import CLASSES
from whitebox.engine.checkpoint import save_model
from whitebox.errors import ConfigError
from whitebox.extras import EXTRAS
from whitebox.models import DECODERS, encoder

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
# Appended to each `whitebox train`: the same code on less work.
SMALL = "encoder.depth=1 train.epochs=1 train.steps=null train.workers=0 train.batch_size=2 train.micro_batch=null"
NARROW = "encoder.width=48 encoder.heads=3"  # coding rates of it take a moment
SMALL_IMAGES = "data.crop=28 data.resize=32 inference.window=28 inference.stride=28"
SMALL_SHAPES = "data.train_length=4 data.val_length=4"
IMAGES = 8  # of CamVid, of each split
# Appended to these commands; the last of an option counts.
LESS = {
    "rank-analysis": "--limit 2",
    "alignment": "--limit 1 --draws 1",
    "ablate": "--limit 1 --draws 1",
    "orthogonality": "--draws 5",
    "ood": "--limit 2 --train-images 2",
    "probe": "--limit 2 --train-images 2 --patches 200",
    "profile": "--repeats 1 --size 64",
    "robustness": "--limit 1 --draws 1",
    "compare": "--limit 2",
    "similarity": "--limit 1 --draws 1",
    "intervene": "--limit 2",
}
INSTEAD = {  # what takes minutes, and what models of one layer and epoch lack
    "--compile": None,
    "11": "0",
    "512": "64",
    "640": "64",
    "1024": "96",
    "depict-sa-large": "depict-sa-tiny",
    "segmenter-mask-large": "segmenter-mask-tiny",
    "train.keep_every=2": "train.keep_every=1",
    "train.keep_every=5": "train.keep_every=1",
    "0.001:1:log13": "0.001:1:log2",
    "0.02:0.2:0.02": "0.02:0.04:0.02",
    "1:5": "1:2",
}

TRAINED = ["depict-sa-tiny-camvid", "segmenter-mask-tiny-camvid", "depict-sa-tiny-camvid-0", "depict-sa-tiny-camvid-1"]

EXTRA_OPTIONS = {"--corruptions": "corruptions", "mmseg": "mmseg"}  # what of a command needs an extra

# What a block of bash calls: without a path nothing else is found, and `.ci/run` and the tests themselves see to these.
CALLS = """
PATH=
whitebox() { printf '%s\\0' "$#" "$@"; }
launched() { while [ "$1" != whitebox ]; do shift; done; "$@"; }
torchrun() { launched "$@"; }
accelerate() { launched "$@"; }
pip() { :; }
pytest() { :; }
set -eu
"""


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a language that are run; those below a comment are not, unless it names a line of ``.ci/run``."""
    text = page.read_text("utf-8")
    found = re.findall(rf"([^\n]*)\n```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for above, block in found if not re.match(r"<!-- (?!ci:)", above)]


def calls(block: str) -> list[list[str]]:
    """The arguments of each call of `whitebox` in a block of bash, as its shell understands it here and now."""
    done = subprocess.run(["/bin/bash", "-c", CALLS + block], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, (block, done.stderr)
    fields = iter(done.stdout.split("\0")[:-1])
    return [[next(fields) for _ in range(int(number))] for number in fields]


def thin(model: str) -> str:
    """Heads of 8 numbers, for decoders that have such."""
    return "decoder.head_dim=8" if hasattr(resolve(model).decoder, "head_dim") else ""


def small(arguments: list[str]) -> list[str]:
    arguments = [given for each in arguments if (given := INSTEAD.get(each, each)) is not None]
    if arguments[:2] == ["data", "prepare"]:
        return [*arguments, "--allow-partial"]
    if arguments[0] != "train":
        fewer = ["--initialisations", "1"] if "untrained" in arguments else []
        return [*arguments, *LESS.get(arguments[0], "").split(), *fewer]
    return [
        *arguments,
        *(SMALL if {"--dataset", "shapes"} & {*arguments} == {"--dataset"} else f"{SMALL} {SMALL_SHAPES}").split(),
        *SMALL_IMAGES.split(),
        *NARROW.split(),
        *thin(next(each for each in arguments[1:] if each in model_names())).split(),
    ]


def make_run(folder: Path, *, thinner: bool = True) -> None:
    """What a page takes for trained: a run whose name says model and dataset, and of several trainings the seed."""
    model = max((name for name in model_names() if folder.name.startswith(name)), key=len)
    dataset, _, seed = folder.name.removeprefix(f"{model}-").partition("-")
    smaller = SMALL if dataset != "shapes" else f"{SMALL} {SMALL_SHAPES}"
    overrides = [*smaller.split(), *SMALL_IMAGES.split(), *(f"{NARROW} {thin(model)}".split() if thinner else ())]
    config = resolve(model, dataset, [*overrides, f"train.seed={seed or 0}"])
    classes = CLASSES if dataset == "shapes" else tuple(class_list(dataset)[0])
    save_model(folder / "model.safetensors", tiny_model(config, int(seed or 0), classes), config)


def there(arguments: list[str]) -> list[str]:
    """The arguments, with the runs that they name made where nothing has trained them."""
    found = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        path = Path(argument)
        names = fnmatch.filter(TRAINED, path.name) if re.search(r"[*?]", argument) else path.parts[1:2]
        if before == "-o" or path.parts[:1] != ("results",) or not names:
            found.append(argument)
            continue
        for name in names:
            if not Path("results", name).exists():
                make_run(Path("results", name))
        found += [argument] if path.parts[1] in names else [f"results/{name}" for name in names]
    return found


@functools.cache
def downloaded(name: str) -> dict[str, torch.Tensor]:
    """In place of a download: the same numbers, however often they are asked for."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(timm.create_model(name, depth=1, embed_dim=48, num_heads=3).state_dict())


@pytest.fixture
def reader(
    shared: Path, golden: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_pictures: None
) -> Path:
    """The folder of somebody who follows a page: datasets, photos, weights and an official checkpoint are there."""
    data = shared / "data"
    for kind in ("images", "annotations"):
        for split in ("train", "val", "test"):
            folder = tmp_path / "data" / "camvid" / kind / split
            folder.mkdir(parents=True)
            there = sorted((data / "camvid-mini" / kind / ("train" if split == "train" else "val")).iterdir())
            for path in there[:: len(there) // IMAGES]:
                (folder / path.name).symlink_to(path)
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
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WHITEBOX_DATA", raising=False)
    monkeypatch.setattr(encoder, "_pretrained_tensors", downloaded)
    torch.save(downloaded("vit_small_patch14_dinov2.lvd142m"), "dinov2_vits14_pretrain.pth")
    return tmp_path


def missing(command: list[str]) -> list[str]:
    """The extras that a command needs and that are not here."""
    asked = [extra for option, extra in EXTRA_OPTIONS.items() if option in command]
    return [extra for extra in asked if find_spec(EXTRAS[extra].module) is None]


def run(command: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command, on less work."""
    monkeypatch.setattr("sys.argv", ["whitebox", *small(there(command))])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=lambda page: page.stem)
def test_commands(page: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that need no extra, and without their extra the others, which say what they lack."""
    if "data prepare ade20k" not in page.read_text("utf-8"):
        Path("data", "ade20k").symlink_to(shared / "data" / "samples" / "ade20k")
    for block in blocks(page, "bash"):
        for command in calls(block):
            if missing(command):
                assert run(command, monkeypatch) == ConfigError.exit_code, command
            elif not set(EXTRA_OPTIONS) & set(command):
                assert run(command, monkeypatch) == 0, command


def with_extras(page: Path) -> list[list[str]]:
    """The commands of a page that need an extra, behind the trainings whose runs they take."""
    every = [command for block in blocks(page, "bash") for command in calls(block)]
    asking = [command for command in every if set(EXTRA_OPTIONS) & set(command)]
    taken = {argument.removeprefix("results/") for command in asking for argument in command}
    return [each for each in every if each in asking or (each[0] == "train" and taken & set(each))]


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("page", [page for page in PAGES if with_extras(page)], ids=lambda page: page.stem)
def test_commands_with_extras(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in with_extras(page):
        if lacking := missing(command):
            pytest.skip(f"needs the extra {', '.join(lacking)}")
        assert run(command, monkeypatch) == 0, command


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("page", ["README.md", "docs/look_inside.md"])
def test_python(page: str) -> None:
    make_run(Path("results", "depict-ca-tiny-shapes"), thinner=False)  # the page states shapes
    python = "\n".join(
        blocks(REPOSITORY / page, "python")
    )  # one program: later blocks go on with the model of the first
    names: dict[str, object] = {}
    exec(python, names)
    for line in python.splitlines():
        if stated := re.match(r"\s*(\w+) = .*#\s*\((\d[\d, ]*)\)", line):
            assert tuple(names[stated[1]].shape) == tuple(map(int, stated[2].split(","))), line  # type: ignore[attr-defined]


def test_there_are_commands() -> None:
    verbs = {command[0] for page in PAGES for block in blocks(page, "bash") for command in calls(block)}
    assert {"train", "eval", "predict", "convert", "models", "datasets", *LESS} <= verbs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_command_is_left_out(page: Path) -> None:
    """A block of commands is bash, and is run, or a comment above it says why not."""
    found = re.findall(r"([^\n]*)\n```(\w*)\n(.*?)^```$", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for above, language, block in found:
        if re.search(r"^(?:\S+ .*-m )?whitebox [a-z]", block, re.MULTILINE) and language != "python":
            assert language == "bash", block
            assert not above.startswith("<!--") or re.match(r"<!-- (ci:[a-z]+|not run: .{20,}) -->$", above), above


def test_the_gallery_has_each_figure_and_commands_that_are_run() -> None:
    page = (REPOSITORY / "docs" / "gallery.md").read_text("utf-8")
    shown = {(REPOSITORY / "docs" / path).resolve() for path in re.findall(r"!\[.*?\]\((.*?)\)", page)}
    assert len(shown) > 15 and not [path for path in shown if not path.is_file()]
    figures = set((REPOSITORY / "results" / "camvid" / "analysis" / "figures").glob("*.png"))
    assert figures <= shown
    run = {line.strip() for other in PAGES for block in blocks(other, "bash") for line in block.splitlines()}
    assert set(re.findall(r"^`(whitebox .*)`$", page, re.MULTILINE)) <= {re.sub(r"\s+#.*", "", line) for line in run}


def test_pictures_and_links_exist() -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert [path for path in linked if not path.startswith("https://") and not (README.parent / path).exists()] == []


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) < 150


ROWS = [  # of models whose classes are given; those of an open vocabulary: tests/models/test_sed.py
    row
    for row in re.findall(
        r"^\| `([a-z-]+-(?:tiny|small|base|large|large-shrunk))` \| .*? \| ([\d.]+) \| ([\d.]+) \|",
        (REPOSITORY / "docs" / "models.md").read_text("utf-8"),
        re.M,
    )
    if not row[0].startswith("sed-")
]


def test_the_model_table_is_complete() -> None:
    closed = [name for name in model_names() if not DECODERS[resolve(name).decoder.name].open_vocabulary]
    assert sorted(row[0] for row in ROWS) == closed


@pytest.mark.parametrize(("name", "parameters", "gflops"), ROWS)
def test_model_table(name: str, parameters: str, gflops: str) -> None:
    """Parameters of the decoder in millions, and 2 x multiply-adds of its blocks (or linear head) at 150 classes."""
    size = 640 if "large" in name else 512
    short = {} if name.startswith("segvit") else {"depth": 1}  # the decoder is the same behind one block
    with torch.device("meta"):
        model = whitebox.create_model(name, num_classes=150, encoder={"image_size": size, **short}).eval()
    costs = count(model, size)
    scope = "decoder" if "linear" in name else "decoder blocks"
    assert f"{costs['decoder'].parameters / 1e6:.2f}" == parameters
    assert f"{costs[scope].gflops:.2f}" == gflops
