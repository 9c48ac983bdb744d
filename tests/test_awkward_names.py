"""Awkward names through every command, as class, run, file and path: shown as they are written, or refused in one line.

Every layer below reads more than letters in some of them: rich, matplotlib, YAML, OmegaConf, FFmpeg, spreadsheets,
Markdown, LaTeX, shells and terminals.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from child_runs import TINY
from omegaconf import OmegaConf
from PIL import Image
from tiny_runs import tiny_model

from whitebox.cli import app
from whitebox.cli.app import main
from whitebox.config import RunConfig, resolve, to_yaml
from whitebox.engine.checkpoint import save_model
from whitebox.text import csv_text, latex, markdown, shown

Call = Callable[..., tuple[int, str, str]]

NAMES = [
    *("lane [/red]", "[bold]x :smile:", "$a$ b$", "50 % %s", "%03d", "{x} {0}", "_c", 'it\'s "q" `id` $(id)'),
    *(
        "on",
        "null",
        "~",
        "007",
        "1e5",
        "1_1_1",
        "12:30",
        "a: b",
        "#x, - y",
        "=1+1",
        "+1",
        "-1",
        "@x",
        "=cmd|' /C calc'!A0",
    ),
    *("ñandú Straße", "cafe\u0301", "Жук", "中文 🦔 👩‍🚀", "שלום مرحبا", "x" * 200, "<script>alert(1)</script> &lt;"),
    *("a|b *c*", "${oc.env:HOME}", "\\frac{1", "a\\", "."),
]
ACTIVE = ["a\nb\r\n", "e\x1b]0;t\x07f\x1b[2Jg", "i\u202ej\u2028l\tn"]
TOGETHER = (
    'r [red] [bold] $a$ 50 % _c it\'s "q" =1 ñ cafe\u0301 Ж 中 🦔 ש <b> ${x} {0} #y a: b `id` *'  # as a name of files
)
TINY_FOLDER = [
    f"{key}={value}" for key, value in TINY.items() if key not in ("data.size", "data.train_length", "data.val_length")
]


def files(names: list[str]) -> list[str]:
    """Those that can be names of files with a few letters behind them."""
    return [name for name in names if "/" not in name and len(name.encode()) < 240 and name != "."]


def make_set(root: Path, classes: list[str], names: list[str]) -> Path:
    """A dataset of these classes, all of which occur, whose images have these names."""
    label = np.arange(64 * 64).reshape(64, 64) // (64 * 64 // len(classes) + 1)
    for split in ("train", "val"):
        for number, name in enumerate(names):
            for part in ("images", "masks"):
                path = root / part / split / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                photo = np.random.default_rng(number).integers(0, 256, (64, 64, 3))
                Image.fromarray((photo if part == "images" else label).astype(np.uint8)).save(path)
    (root / "meta.json").write_text(json.dumps({"classes": classes}))
    return root


def save_run(folder: Path, config: RunConfig, seed: int, classes: list[str]) -> Path:
    model = tiny_model(config, seed, tuple(classes))
    save_model(folder / "model.safetensors", model, config)
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def write_video(path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
    for value in (0, 200):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()


class Desk:
    """A working folder of an awkward name, with a dataset, two runs, a photo, a label and a video."""

    def __init__(self, root: Path) -> None:
        self.root = root / TOGETHER
        self.classes = [*NAMES, *ACTIVE]
        self.set = make_set(self.root / "sets" / TOGETHER, self.classes, [TOGETHER, "=1", "-1", "ñ"])
        config = resolve("depict-sa-tiny", "folder", [*TINY_FOLDER, f"data.path={self.set}"])
        self.run = save_run(self.root / "results" / TOGETHER, config, 0, self.classes)
        self.other = save_run(self.root / "results" / "_other", config, 1, self.classes)
        self.photo = self.set / "images" / "val" / f"{TOGETHER}.png"
        self.label = self.set / "masks" / "val" / f"{TOGETHER}.png"
        write_video(self.root / "plain.mp4")
        self.video = (self.root / "plain.mp4").rename(self.root / f"{TOGETHER}.mp4")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    desk = Desk(tmp_path_factory.mktemp("awkward"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk.root)
        patch.setenv("WHITEBOX_CACHE", str(desk.root / "cache"))
        yield desk


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["whitebox", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        captured = capfd.readouterr()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", captured.out + captured.err)
        return int(code or 0), captured.out, captured.err  # type: ignore[call-overload]

    return run


COMMANDS: dict[tuple[str, ...], Callable[[Desk], list[object]]] = {
    ("train",): lambda desk: [
        *("depict-sa-tiny", "--dataset", "folder", f"data.path={desk.set}", *TINY_FOLDER, "train.epochs=1"),
        *("--name", f"trained {TOGETHER}"),
    ],
    ("eval",): lambda desk: [desk.run, desk.other, "--save-images", 1, "--boundary", "--confusion", "--images"],
    ("predict",): lambda desk: [desk.run, desk.photo, desk.video.name, "-o", TOGETHER, "--labels"],
    ("convert",): lambda desk: [desk.run, "--to", "mmseg", "-o", f"{TOGETHER}.pth"],
    ("export",): lambda desk: [desk.run, "-o", f"{TOGETHER}.safetensors"],
    ("push",): lambda desk: [desk.run, "me/run", "--to-folder", f"page {TOGETHER}", "--picture", desk.photo],
    ("models",): lambda _: [],
    ("datasets",): lambda desk: ["--data-root", desk.root],
    ("encoders",): lambda _: [],
    ("recipes",): lambda _: [],
    ("rank-analysis",): lambda desk: [desk.run, desk.other, "--limit", 1, "--layers", "decoder.input"],
    ("drift",): lambda desk: [desk.run, desk.other],
    ("orthogonality",): lambda desk: [desk.run, desk.other, "--after", "--limit", 1, "--draws", 2],
    ("attention",): lambda desk: [desk.run, desk.other, desk.photo],
    ("explore",): lambda desk: [desk.run, desk.photo, "-o", f"{TOGETHER}.html"],
    ("pca",): lambda desk: [desk.run, desk.other, desk.photo, "--truth", desk.label],
    ("alignment",): lambda desk: [desk.run, desk.other, "--limit", 1, "--draws", 1],
    ("ood",): lambda desk: [desk.run, "--held-out", "ñandú Straße", "--train-images", 2],
    ("probe",): lambda desk: [desk.run, "--limit", 1],
    ("ablate",): lambda desk: [desk.run, desk.other, "--limit", 1, "--draws", 1],
    ("profile",): lambda desk: [desk.run, desk.other, "--repeats", 1, "--size", 32],
    ("robustness",): lambda desk: [
        *(desk.run, desk.other, "--noise", "0.1,0.2", "--draws", 2, "--limit", 1, "--no-sigma-50"),
    ],
    ("compare",): lambda desk: [desk.run, desk.other],
    ("similarity",): lambda desk: [desk.run, desk.other, "--limit", 1, "--draws", 1],
    ("power",): lambda desk: [
        *(desk.run, desk.other, "--sd-seed", 1, "--sd-unit", 2, "--sd-residual", 1, "--units", 5),
    ],
    ("render",): lambda desk: [*(desk.run / "records").glob("eval-*.json"), "-o", f"rendered {TOGETHER}"],
    ("summary",): lambda desk: [desk.root / "results"],
    ("intervene",): lambda desk: [desk.run, "--ortho", "head_ortho", "--limit", 1, "-o", f"{TOGETHER} 2"],
    ("reproduce",): lambda desk: [
        *("depict-fig5", "--dataset", "folder", "--runs", desk.root / "results", "--dry-run", f"data.path={desk.set}"),
    ],
    ("sweep",): lambda _: [f"{TOGETHER}.yaml"],
    ("data", "prepare"): lambda desk: ["camvid", "--from", desk.set, "--data-root", f"root {TOGETHER}"],
    ("data", "check"): lambda desk: ["folder", f"data.path={desk.set}"],
    ("data", "show"): lambda desk: ["folder", f"data.path={desk.set}", "-o", f"shown {TOGETHER}.png", "-n", 1],
    ("cache", "ls"): lambda _: [],
    ("cache", "rm"): lambda _: [TOGETHER],
}
REFUSED = {
    ("data", "prepare"),
    ("cache", "rm"),
    ("reproduce",),
    ("sweep",),
}  # there is no such dataset, store, paper, plan


def commands(group: object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            yield from commands(command, (*above, name))
        else:
            yield (*above, name)


def test_no_command_is_missing() -> None:
    assert set(COMMANDS) == set(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command(command: tuple[str, ...], desk: Desk, call: Call, request: pytest.FixtureRequest) -> None:
    if command == ("convert",):
        request.getfixturevalue("mmseg")
    if command != ("eval",):  # whose figures hold all names; the letters of others are laid out alone
        request.getfixturevalue("empty_pictures")
    code, _out, err = call(*command, *COMMANDS[command](desk))
    if command in REFUSED:
        assert code in (0, 1, 2) and "Traceback" not in err
        assert code == 0 or (err.startswith("error: ") and err.count("\n") == 1)
    else:
        assert code == 0, err


def test_class_names_in_tables(desk: Desk, call: Call) -> None:
    assert call("eval", desk.run, "-o", "tables")[0] == 0
    (table,) = Path("tables", "tables").glob("eval-*.csv")
    rows = (
        table.read_text(encoding="utf-8"),
        table.with_suffix(".md").read_text(),
        table.with_suffix(".tex").read_text(),
    )
    for name in desk.classes:
        quoted = csv_text(name).replace('"', '""')
        assert f"\n{quoted}," in rows[0] or f'\n"{quoted}",' in rows[0]
        assert f"\n| {markdown(name)} | " in rows[1]
        assert f"\n{latex(name)} & " in rows[2]
    stored = [path for folder in (Path("tables"), desk.run) for path in (folder / "records").glob("eval-*.json")]
    record = json.loads(stored[0].read_text(encoding="utf-8"))
    assert [row["name"] for row in record["measured"]["per_class"]] == desk.classes
    code, out, _ = call("data", "check", "folder", f"data.path={desk.set}")
    assert code == 0
    for name in desk.classes:
        assert len(name) > 100 or f" {shown(name)} " in out


def test_files_and_videos(desk: Desk, call: Call, tmp_path: Path) -> None:
    write_video(tmp_path / "plain.mp4")
    for name in files([*NAMES, *ACTIVE]):
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copyfile(desk.photo, tmp_path / "photos" / f"{name}.png")
    code, _, err = call("predict", desk.run, tmp_path / "photos", "-o", tmp_path / "out")
    assert code == 0, err
    for name in files([*NAMES, *ACTIVE]):
        assert (tmp_path / "out" / f"{name}_labels.png").is_file()
    videos = []
    for name in files(["12:30", "file:x", "%03d", "-1", "=1", "中", "a\nb", "e\x1bf", "$(id)"]):
        videos.append(tmp_path / f"{name}.mp4")
        shutil.copyfile(tmp_path / "plain.mp4", videos[-1])
    code, _out, err = call("predict", desk.run, *videos, "-o", tmp_path / "films")
    assert code == 0, err
    assert len(list((tmp_path / "films").glob("*_overlay.mp4"))) == len(videos)


def test_folders(call: Call, tmp_path: Path) -> None:
    for number, name in enumerate(files([*NAMES, *ACTIVE])):
        if number == 0:
            make_set(tmp_path / name, ["a", "b"], ["c"])
        else:
            (tmp_path / name).symlink_to(tmp_path / files(NAMES)[0])
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            if name.startswith("~"):
                continue
            code, out, err = call("data", "check", "folder", f"data.path={name}")
            assert (code, err) == (0, ""), name
            assert out.startswith(f"folder ({shown(tmp_path / name)}): 2 classes\n")


def test_names_of_runs(desk: Desk, call: Call, tmp_path: Path) -> None:
    """All in one figure, each as it is written in the table."""
    names = ["on", "007", "=1", "_c", ".h", "a\nb", "e\x1b[2J", "12:30"]
    for name in names:
        (tmp_path / "results" / name).mkdir(parents=True)
        shutil.copyfile(desk.run / "model.safetensors", tmp_path / "results" / name / "model.safetensors")
    runs = [tmp_path / "results" / name for name in names]
    code, _, err = call("profile", *runs, "--size", 32, "--repeats", 1, "-o", tmp_path / "out")
    assert code == 0, err
    text = next((tmp_path / "out" / "tables").glob("*.md")).read_text(encoding="utf-8")
    for name in names:
        assert f"| {markdown(name)} |" in text
    for name in (TOGETHER, "on", "a\nb"):
        code, out, err = call("train", "depict-sa-tiny", "--print-config", f"data.train_split={name}")
        assert code == 0, err
        assert OmegaConf.create(out).data.train_split == name if "$" not in name else True


@pytest.mark.parametrize("name", ["a\udcff", "n" * 300])
def test_names_that_cannot_be_saved(desk: Desk, call: Call, name: str) -> None:
    for arguments in (
        ["train", "depict-sa-tiny", *TINY_FOLDER, "--name", name],
        ["eval", desk.run, "-o", name],
        ["data", "show", "shapes", "-o", f"{name}.png"],
    ):
        code, out, err = call(*arguments)
        assert code in (1, 2) and out == "" and err.startswith("error: ") and err.count("\n") == 1
