"""Small datasets on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from whitebox.cli import main
from whitebox.config import DataConfig
from whitebox.data import shapes

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run ``whitebox ARGUMENTS``; returns exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["whitebox", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "160")
        code: object = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        captured = capfd.readouterr()
        return int(code or 0), captured.out, captured.err  # type: ignore[call-overload]

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., DataConfig]:
    """Writes a ``folder`` dataset of drawn shapes and returns its configuration."""

    def make(train: int = 2, val: int = 1, size: int = 64, masks: str = "masks", **changes: object) -> DataConfig:
        for split, count in (("train", train), ("val", val)):
            for index in range(count):
                image, label = shapes.draw(0, split, index, size)
                for part, array, suffix in (("images", image, ".png"), (masks, label, ".png")):
                    path = tmp_path / "set" / part / split / f"{split}{index}{suffix}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.asarray(array)).save(path)
        (tmp_path / "set" / "classes.txt").write_text("\n".join(shapes.CLASSES) + "\n")
        settings = {"name": "mine", "kind": "folder", "root": str(tmp_path), "path": "set", "resize": 64, "crop": 48}
        return DataConfig(**{**settings, **changes})  # type: ignore[arg-type]

    return make
