"""What is known before the first step is said before the first step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from own_data import SMALL, change_masks, make_folder
from tiny_runs import tiny_run

from whitebox.config import DataConfig
from whitebox.data import learnable
from whitebox.data.preflight import preflight
from whitebox.errors import ConfigError, DataError, OutputError

Call = Callable[..., tuple[int, str, str]]
TRAIN = ["train", "segmenter-linear-tiny", "--dataset", "folder"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "d")


def refused(call: Call, *arguments: object) -> str:
    """The one line of a command that did no work."""
    code, out, err = call(*arguments)
    assert code in (1, 2) and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


class TestTraining:
    def test_one_class(self, call: Call, root: Path, tmp_path: Path) -> None:
        change_masks(root, np.zeros_like)
        (root / "classes.txt").write_text("water\n")
        line = refused(call, *TRAIN, f"data.path={root}", *SMALL, "-o", tmp_path / "r")
        assert "there is one class, so every pixel is right from the first step: add a class for all the rest" in line
        assert not (tmp_path / "r").exists()

    def test_0_and_255(self, call: Call, root: Path, tmp_path: Path) -> None:
        change_masks(root, lambda label: np.where(label == 1, 255, 0))
        (root / "classes.txt").write_text("background\ntumour\n")
        line = refused(call, *TRAIN, f"data.path={root}", *SMALL, "-o", tmp_path / "r")
        assert "where 255 means 'tumour', say so with data.label_map={0:0,255:1}" in line

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_only_ignored(self, call: Call, root: Path, tmp_path: Path, split: str) -> None:
        change_masks(root, lambda label: np.full_like(label, 255), split)
        line = refused(call, *TRAIN, f"data.path={root}", *SMALL, "-o", tmp_path / "r")
        assert f"{split}: no label has a pixel of any class." in line

    def test_values_without_a_class(self, call: Call, root: Path, tmp_path: Path) -> None:
        change_masks(root, lambda label: label + 7, "val")
        line = refused(call, *TRAIN, f"data.path={root}", *SMALL, "-o", tmp_path / "r")
        assert "holds the value 9" in line and "data.label_map" in line

    @pytest.mark.parametrize("name", ["../x", "..", ".", "a/../../x", "/absolute"])
    def test_names_that_leave_the_folder(self, call: Call, tmp_path: Path, name: str) -> None:
        line = refused(call, "train", "segmenter-linear-tiny", *SMALL, "-o", tmp_path / "r", "--name", name)
        assert f"--name {name} leaves the folder of the runs" in line
        assert not (tmp_path / "r").exists()

    def test_labels_of_all_are_counted_in_the_first_epoch(
        self, call: Call, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where the look before was at a part of them."""
        change_masks(root, lambda label: np.where(label == 1, 0, label), "train")
        code, _, err = call(*TRAIN, f"data.path={root}", *SMALL, "-o", tmp_path / "r")
        assert code == 0, err
        assert "Classes without a pixel in the first epoch: car." in caplog.text
        change_masks(root, lambda label: np.full_like(label, 255), "train")
        monkeypatch.setattr(learnable, "SECONDS", -1.0)
        code, _, err = call(*TRAIN, f"data.path={root}", *SMALL, "-o", tmp_path / "r", "--name", "other")
        assert code == 1
        assert "error: No pixel of the 1 steps of the first epoch had a class" in err

    def test_a_window_of_another_size(
        self, call: Call, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        more = [*SMALL, "inference.window=48"]
        assert call(*TRAIN, f"data.path={root}", *more, "-o", tmp_path / "r")[0] == 0
        assert "inference.window=48 is not data.crop=32" in caplog.text


class TestEvaluation:
    def test_only_ignored(self, call: Call, root: Path, tmp_path: Path) -> None:
        run = tiny_run(tmp_path / "run")
        (root / "classes.txt").write_text("\n".join(shapes_classes()) + "\n")
        change_masks(root, lambda label: np.full_like(label, 255), "val")
        line = refused(call, "eval", run, "--dataset", "folder", f"data.path={root}")
        assert "val: no label has a pixel of any class." in line


def shapes_classes() -> tuple[str, ...]:
    from whitebox.data.shapes import CLASSES

    return CLASSES


class TestOutput:
    @pytest.mark.parametrize("name", ["n" * 300, "/".join(["n" * 200] * 30)])
    def test_names_too_long(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ConfigError, match=r"is too long for a file or folder: choose a shorter one"):
            preflight(tmp_path / name)

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(
            OutputError, match=r"Cannot write .*file/run: Not a directory; choose another folder with -o"
        ):
            preflight(tmp_path / "file" / "run")

    def test_a_folder_that_may_not_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever runs the tests, root too, so the system's answer is given here."""
        monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
        with pytest.raises(OutputError, match=r"Cannot write .*/run/a: Permission denied"):
            preflight(tmp_path / "run" / "a")

    def test_every_command_looks_before_it_works(
        self, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = tiny_run(tmp_path / "run")
        for arguments in (
            ["eval", run],
            ["predict", run, tmp_path],
            ["convert", run],
            ["orthogonality", run],
            ["render", run],
            ["compare", run, run],
        ):
            line = refused(call, *arguments, "-o", tmp_path / ("n" * 300))
            assert "is too long for a file or folder" in line
        for arguments in (
            ["eval", "n" * 300],
            ["render", "n" * 300],
            ["predict", run, "n" * 300],
            ["summary", "n" * 300],
        ):
            assert "is too long for a file or folder" in refused(call, *arguments)
        monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != run)
        assert "Permission denied" in refused(call, "eval", run)


def test_labels_are_looked_at_in_a_part_of_the_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(name="folder", kind="folder", root=str(root.parent), path="d")
    read: list[object] = []
    original = learnable.read_label
    monkeypatch.setattr(learnable, "read_label", lambda *given: read.append(given[0]) or original(*given))
    assert preflight(data=config, splits=["train", "val"], training=True) == []
    assert len(set(read)) == 4
    change_masks(root, np.zeros_like, "val")  # one class to judge by may be right
    assert preflight(data=config, splits=["train", "val"], training=True) == [
        "val: no label has a pixel of any class but 'road': there is nothing to tell apart."
    ]
    monkeypatch.setattr(learnable, "MOST_LABELS", 1)
    change_masks(root, np.zeros_like, "train")
    (note, _) = preflight(data=config, splits=["train", "val"], training=True)
    assert note.endswith("there is nothing to tell apart. Seen in 1 labels of 2.")
    change_masks(root, lambda label: np.full_like(label, 255), "train")
    monkeypatch.setattr(learnable, "MOST_LABELS", 200)
    with pytest.raises(DataError, match=r"^train: no label has a pixel of any class.$"):
        preflight(data=config, splits=["train", "val"], training=True)
