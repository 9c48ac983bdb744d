"""Each command once, on as little as it takes: what a contributor runs in under a minute (`pytest -m "not slow"`)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer
from child_runs import TINY
from conftest import FAST, TESTS
from PIL import Image
from tiny_runs import tiny_run

from whitebox.cli import app

Call = Callable[..., tuple[int, str, str]]
SETTINGS = " ".join(f"{key}={value}" for key, value in {**TINY, "train.epochs": 1}.items())

# Command: arguments, and a file that it leaves (a pattern) or a text that it shows. Runs `sa` and `linear` are there, a
# photo, a record, and a dataset.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": (f"depict-sa-tiny -o new --device cpu {SETTINGS}", "new/depict-sa-tiny-shapes/model.safetensors"),
    "eval": ("sa --limit 2", "sa/records/eval-shapes-val-*.json"),
    "predict": ("sa photo.png -o out", "out/photo_overlay.jpg"),
    "convert": ("sa/model.safetensors -o converted", "converted/config.yaml"),
    "export": ("sa -o weights.safetensors", "weights.safetensors"),
    "push": ("sa me/sa --to-folder page", "page/README.md"),
    "models": ("", "depict-sa-tiny"),
    "datasets": ("", "camvid"),
    "encoders": ("", "dinov2-small"),
    "recipes": ("", "segmenter"),
    "rank-analysis": ("sa --limit 1 -o ranks", "ranks/records/rank*-*.json"),
    "orthogonality": ("sa --draws 2 -o bases", "bases/records/orthogonality-*.json"),
    "drift": ("sa -o moved", "moved/records/drift-*.json"),
    "attention": ("sa photo.png -o maps", "maps/records/attention-*.json"),
    "explore": ("sa photo.png -o page.html", "page.html"),
    "pca": ("sa photo.png -o components", "components/records/pca-*.json"),
    "ood": ("sa --held-out egg --train-images 2 -o foreign", "foreign/records/ood-*.json"),
    "probe": ("sa --limit 1 -o probed", "probed/records/probe-*.json"),
    "alignment": ("sa --limit 1 --draws 1 -o aligned", "aligned/records/alignment-*.json"),
    "ablate": ("sa --limit 2 --draws 1 -o causes", "causes/records/ablate-*.json"),
    "profile": ("sa --size 32 --repeats 1 -o cost", "cost/records/profile-*.json"),
    "render": ("record.json -o drawn", "drawn/tables/*.md"),
    "robustness": ("sa --noise 0.1 --draws 1 --limit 1 --no-sigma-50 -o noise", "noise/records/*noise-*.json"),
    "similarity": ("sa --limit 1 --draws 1 -o alike", "alike/records/similarity-*.json"),
    "compare": ("sa linear --limit 2 -o compared", "compared/records/compare-*.json"),
    "power": ("--sd-seed 1 --sd-unit 3 --sd-residual 1 --units 10 -o study", "study/tables/power.md"),
    "summary": ("sa -o all", "all/tables/summary*.md"),
    "intervene": ("sa --ortho head_ortho --limit 1", "sa-head_ortho/model.safetensors"),
    "reproduce": ("--list", "depict"),
    "sweep": ("plan.yaml --status", "2 waiting"),
    "data prepare": ("camvid --from raw --allow-partial --data-root data", "data/camvid/.whitebox.json"),
    "data check": ("shapes data.train_length=2 data.val_length=2", "shapes"),
    "data show": ("shapes -n 1 -o shapes.png", "shapes.png"),
    "cache ls": ("", "no stores"),
    "cache rm": ("--all", ""),
}


def names(command: click.Command, before: str = "") -> Iterator[str]:
    """All commands of the command line, those of its groups with the group's name."""
    for name, below in getattr(command, "commands", {}).items():
        if hasattr(below, "commands"):
            yield from names(below, f"{before}{name} ")
        else:
            yield f"{before}{name}"


def test_the_fast_tier_has_each_command(request: pytest.FixtureRequest) -> None:
    assert set(COMMANDS) == set(names(typer.main.get_command(app)))
    assert request.node.get_closest_marker("slow") is None
    assert all((TESTS / path).is_file() for path in FAST)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    tiny_run(folder / "sa")
    tiny_run(folder / "linear", "segmenter-linear-tiny")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    (folder / "plan.yaml").write_text("train: {models: [depict-sa-tiny], seeds: '0:2'}")
    for split in ("train", "val", "test"):
        for name, picture in ((split, pixels), (f"{split}annot", pixels[..., 0] % 12)):
            (folder / "raw" / name).mkdir(parents=True)
            Image.fromarray(picture).save(folder / "raw" / name / "0.png")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "here"


@pytest.mark.parametrize("command", COMMANDS)
def test_runs(command: str, call: Call, here: Path) -> None:
    arguments, result = COMMANDS[command]
    if command in ("render", "summary"):  # they look at what was measured
        assert call("eval", "sa", "--limit", 2)[0] == 0
        (record,) = (here / "sa" / "records").glob("*.json")
        record.with_suffix(".npz").rename(here / "record.npz") if command == "render" else None
        shutil.copy(record, here / "record.json")
    code, out, err = call(*command.split(), *arguments.split())
    assert code == 0, err
    assert result in out or list(here.glob(result)), (out, sorted(map(str, here.rglob("*"))))


def test_nothing_is_left_of_what_was_here(made: Path) -> None:
    """The commands above worked on copies."""
    there: Any = sorted(path.name for path in made.iterdir())
    assert there == ["linear", "photo.png", "plan.yaml", "raw", "sa"]
