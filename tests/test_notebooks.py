"""The notebooks of the site run from beginning to end, on less."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
nbclient = pytest.importorskip("nbclient", reason="needs the extra docs")
pytest.importorskip("ipykernel", reason="needs the extra docs")

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "docs" / "notebooks").glob("*.ipynb"))
LESS = {
    "own_data": 'FOLDER, IMAGES, EPOCHS, SEEDS = "mydata", 8, 1, "0:2"',
    "dissect_a_decoder": "IMAGES, EPOCHS = 16, 1",
}


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(LESS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "WHITEBOX_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # `!whitebox`
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    (parameters,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ())]
    assert parameters.source.split(" = ")[0] == LESS[path.stem].split(" = ")[0]
    parameters.source = LESS[path.stem]
    client = nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            text = output.get("text", "")
            assert "error:" not in text and "command not found" not in text, text
