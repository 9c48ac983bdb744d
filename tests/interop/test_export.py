"""Files for other programs: they give what the model gives, and say what it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_run

import whitebox
from whitebox.interop.export import read_onnx

onnx = pytest.importorskip("onnx", reason="needs the extra export")
Call = Callable[..., tuple[int, str, str]]


def refused(call: Call, *arguments: object) -> str:
    code, out, err = call(*arguments)
    assert code in (1, 2) and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("export") / "sa", encoder__depth=1, decoder__layers=1)


def exported(call: Call, run: Path, path: Path, *options: object) -> tuple[float, float]:
    """Largest difference, and share of pixels of the same class, as the command says them."""
    code, out, err = call("export", run, "-o", path, *options)
    assert code == 0, err
    found = re.search(r"Largest difference to the run (\S+); the same class in ([\d.]+)%", out)
    assert found is not None and "An image of" in out and "of PyTorch" in out
    return float(found[1]), float(found[2])


def test_onnx(call: Call, run: Path, tmp_path: Path) -> None:
    difference, same = exported(call, run, tmp_path / "model.onnx")
    assert difference < 1e-4 and same > 99.9
    program = onnx.load(tmp_path / "model.onnx")
    said = json.loads({each.key: each.value for each in program.metadata_props}["whitebox"])
    model = whitebox.load_model(run)
    assert said["classes"] == list(model.classes) and said["palette"] == [list(each) for each in model.palette]
    assert said["size"] == 32 and said["gives"] == "logits" and said["data"]["name"] == "shapes"
    pixels = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(read_onnx(tmp_path / "model.onnx")(pixels), model(pixels), atol=1e-4, rtol=1e-4)
    assert "exists already" in refused(call, "export", run, "-o", tmp_path / "model.onnx")
