"""Files for other programs: they give what the model gives, and say what it is."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_runs import configured, tiny_model, tiny_run

import whitebox
from whitebox.config import resolve
from whitebox.data.shapes import CLASSES
from whitebox.engine.checkpoint import save_model
from whitebox.engine.inference import segment
from whitebox.errors import CheckpointError, ConfigError
from whitebox.interop import export as ours
from whitebox.interop.export import read_onnx
from whitebox.models import Encoder, EncoderConfig, build
from whitebox.runs import find_run

onnx = pytest.importorskip("onnx", reason="needs the extra export")
pytest.importorskip("onnxruntime", reason="needs the extra export")
Call = Callable[..., tuple[int, str, str]]
ONE_BLOCK = {"encoder__depth": 1, "decoder__layers": 1}
OTHER = {"encoder__width": None, "encoder__heads": None, "encoder__depth": 1}  # an encoder of another family
DECODERS: dict[str, dict[str, Any]] = {
    "depict-sa-tiny": ONE_BLOCK,
    "depict-ca-tiny": ONE_BLOCK,
    "cbsa-tiny": {**ONE_BLOCK, "decoder__pool": 3},
    "tost-tiny": ONE_BLOCK,
    "crate-tiny": ONE_BLOCK,
    "segmenter-mask-tiny": ONE_BLOCK,
    "segmenter-linear-tiny": {"encoder__depth": 1},
    "segvit-tiny": {"encoder__depth": 2, "decoder__encoder_layers": [0, 1]},
}
ENCODERS = [
    "vit_small_patch16_dinov3",  # rotary positions
    "vit_small_patch14_dinov2",  # timm's own resampling
    "eva02_tiny_patch14_224",  # both
    "vit_pe_spatial_tiny_patch16_512",  # both
]


def refused(call: Call, *arguments: object) -> str:
    code, out, err = call(*arguments)
    assert code in (1, 2) and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("export") / "sa", **ONE_BLOCK)


@pytest.fixture(scope="module")
def file(run: Path) -> Path:
    """The run as ONNX, for squares of 32 px."""
    path = run.parent / "model.onnx"
    model = whitebox.load_model(run)
    check = ours.export(model, model.configuration, path, "onnx", size=32)
    assert check.difference < 1e-4 and check.agreement > 0.999 and min(check.seconds) > 0
    return path


def test_what_the_file_says(run: Path, file: Path) -> None:
    said = json.loads({each.key: each.value for each in onnx.load(file).metadata_props}["whitebox"])
    model = whitebox.load_model(run)
    assert said["classes"] == list(model.classes) and said["palette"] == [list(each) for each in model.palette]
    assert said["size"] == 32 and said["gives"] == "logits" and said["data"]["name"] == "shapes"


def test_the_same_maps_in_batches(run: Path, file: Path) -> None:
    pixels = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(read_onnx(file)(pixels), whitebox.load_model(run)(pixels), atol=1e-4, rtol=1e-4)


def test_predict(call: Call, run: Path, file: Path, tmp_path: Path) -> None:
    """In windows of its size, as the run does it; several scales too."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((180, 80)).save(tmp_path / "photo.png")
    for name, options in (("one", ()), ("all", ("--multiscale",))):
        for model, folder in ((run, f"{name}-run"), (file, f"{name}-file")):
            assert call("predict", model, tmp_path / "photo.png", "-o", tmp_path / folder, *options)[0] == 0
        found = [np.asarray(Image.open(tmp_path / f"{name}-{of}" / "photo_labels.png")) for of in ("run", "file")]
        assert (found[0] == found[1]).mean() > 0.999
    assert "leave --classes, --vocabulary and --fast out" in refused(call, "predict", file, "a.png", "--classes", "a")
    assert "leave --device cuda out" in refused(call, "predict", file, "a.png", "--device", "cuda")


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_at_any_size(name: str, tmp_path: Path) -> None:
    config = configured(name, **DECODERS[name])
    model = tiny_model(config)
    check = ours.export(model, config, tmp_path / "model.onnx", "onnx")
    assert check.difference < 2e-3 and check.agreement > 0.999 and len(check.sizes) == 3
    found = read_onnx(tmp_path / "model.onnx")
    assert found.gives == ("scores" if name == "segvit-tiny" else "logits")
    pixels = np.random.default_rng(1).integers(0, 255, (45, 33, 3), dtype=np.uint8)
    ours_KHW, theirs_KHW = (segment(each, pixels, config.inference) for each in (model, found))
    torch.testing.assert_close(ours_KHW, theirs_KHW, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["sed-tiny", "depict-sa-open-tiny"])
def test_models_of_names_at_any_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their classes are constants of the file; also sides that are no multiples of a patch of 32 px."""
    monkeypatch.setattr(ours, "_sizes", lambda patch: [(3 * patch, 2 * patch), (2 * patch - 3, 3 * patch + 1)])
    monkeypatch.setattr(ours, "REPEATS", 1)
    names = ("ground", "red striped star", "blue plain circle")
    config = resolve(name, "open-shapes", {"encoder.text_layers": 1, "data.size": 64, "inference.window": 64})
    torch.manual_seed(0)
    model = build(config.encoder, config.decoder, len(names), names).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    check = ours.export(model, config, tmp_path / "model.onnx", "onnx")
    assert check.difference < 2e-3 and check.agreement > 0.999 and check.sizes[1] == (61, 97)
    found = read_onnx(tmp_path / "model.onnx")
    assert (found.gives, found.classes) == ("probabilities", names)


def test_shrunk_tokens_at_any_size(tmp_path: Path) -> None:
    """SegViT-Shrunk: a quarter of the tokens behind a block, and patch queries that are resampled."""
    own = {"encoder__shrink": 1, "encoder__class_token": False, "encoder__final_norm": False}
    layers = {"decoder__name": "segvit-shrunk", "decoder__encoder_layers": [0, 1]}
    config = configured("segmenter-linear-tiny", **own, **layers)
    check = ours.export(tiny_model(config), config, tmp_path / "model.onnx", "onnx")
    assert check.difference < 2e-3 and check.agreement > 0.999 and len(check.sizes) == 3


@pytest.mark.parametrize("name", ENCODERS)
def test_other_encoders_at_any_size(name: str, tmp_path: Path) -> None:
    config = configured("segmenter-linear-tiny", encoder__name=name, **OTHER)
    check = ours.export(tiny_model(config), config, tmp_path / "model.onnx", "onnx")
    assert check.difference < 2e-3 and check.agreement > 0.999


def test_half(run: Path, tmp_path: Path) -> None:
    model = whitebox.load_model(run)
    check = ours.export(model, model.configuration, tmp_path / "model.onnx", "onnx", size=32, half=True)
    assert check.agreement > 0.9
    weights = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert {each.data_type for each in weights if len(each.dims) == 2} == {onnx.TensorProto.FLOAT16}


def test_torch_export(call: Call, run: Path, tmp_path: Path) -> None:
    code, out, err = call("export", run, "-o", tmp_path / "model.pt2")
    assert code == 0, err
    found = re.search(r"Largest difference to the run (\S+); the same class in ([\d.]+)%", out)
    assert found is not None and float(found[1]) < 1e-4 and "takes squares of 32 px" in out
    extra = {"whitebox": ""}
    program = torch.export.load(str(tmp_path / "model.pt2"), extra_files=extra)
    assert json.loads(extra["whitebox"])["size"] == 32
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(pixels), whitebox.load_model(run)(pixels))


def test_safetensors_are_a_run(call: Call, run: Path, tmp_path: Path) -> None:
    assert call("export", run, "--format", "safetensors", "-o", tmp_path / "all.bin")[0] == 0
    shutil.move(tmp_path / "all.bin", tmp_path / "all.safetensors")
    pixels = torch.rand(1, 3, 40, 32)
    assert torch.equal(whitebox.load_model(tmp_path / "all.safetensors")(pixels), whitebox.load_model(run)(pixels))


def test_weights_in_half_take_half(call: Call, run: Path, tmp_path: Path) -> None:
    for name, options in (("whole", []), ("half", ["--half"])):
        assert call("export", run, *options, "-o", tmp_path / f"{name}.safetensors")[0] == 0
    whole, half = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < 0.75 * whole  # the header stays
    pixels = torch.rand(1, 3, 40, 32)
    found, given = whitebox.load_model(tmp_path / "half.safetensors"), whitebox.load_model(run)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert not torch.equal(found(pixels), given(pixels))
    torch.testing.assert_close(found(pixels), given(pixels), rtol=0, atol=0.02)


def test_a_decoder_alone_finds_its_encoder(call: Call, tmp_path: Path) -> None:
    made = Encoder(EncoderConfig(width=24, depth=1, heads=2, image_size=32)).vit
    encoder = tmp_path / "there" / "encoder.safetensors"
    encoder.parent.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in made.state_dict().items()}, encoder)
    config = configured("depict-sa-tiny", **ONE_BLOCK, encoder__frozen=True, encoder__weights=str(encoder))
    run = tmp_path / "frozen"
    save_model(run / "model.safetensors", build(config.encoder, config.decoder, len(CLASSES), CLASSES), config)
    alone = tmp_path / "alone.safetensors"
    assert call("export", run, "--decoder-only", "--half", "-o", alone)[0] == 0
    assert all(name.startswith("decoder.") for name in load_file(alone))
    assert (find_run(alone).name, find_run(run).name) == ("alone", "frozen")
    pixels = torch.rand(1, 3, 32, 32)
    expected = whitebox.load_model(run)(pixels)
    encoder.rename(tmp_path / encoder.name)  # beside the decoder
    torch.testing.assert_close(whitebox.load_model(alone)(pixels), expected, rtol=0, atol=0.02)
    (tmp_path / encoder.name).unlink()
    with pytest.raises(CheckpointError, match="holds a decoder alone"):
        whitebox.load_model(alone)


def test_halving_leaves_the_model_as_it_is(run: Path, tmp_path: Path) -> None:
    model = whitebox.load_model(run)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ours.export(model, model.configuration, tmp_path / "model.pt2", "torch-export", size=32, half=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_file_that_differs_is_deleted(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = whitebox.load_model(run)
    monkeypatch.setattr(ours.OnnxModel, "forward", lambda self, images: model(images.flip(3)))
    with pytest.raises(whitebox.WhiteboxError, match="does not give what the model gives"):
        ours.export(model, model.configuration, tmp_path / "model.onnx", "onnx", size=32)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["-o", "model.tflite"], "--format None is unknown: choose onnx, torch-export, safetensors"),
        (["-o", "a.onnx", "--format", "onx"], "--format onx is unknown"),
        (["-o", "a.onnx", "--size", 32, "--dynamic"], "give one of them"),
        (["-o", "a.pt2", "--opset", 20], "--opset is of ONNX"),
        (["-o", "a.safetensors", "--dynamic"], "leave --size and --dynamic out"),
        (["-o", "a.onnx", "--decoder-only"], "--decoder-only is of safetensors"),
        (["-o", "a.safetensors", "--decoder-only"], "is the run's own: leave --decoder-only out"),
        (["-o", "there.onnx"], "there.onnx exists already"),
    ],
)
def test_what_cannot_be(
    call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").touch()
    assert line in refused(call, "export", run, *options)


def test_without_the_extra(call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = refused(call, "export", run, "-o", tmp_path / "a.onnx")
    assert "whitebox export to ONNX needs onnx, onnxruntime and onnxscript: pip install 'whitebox-seg[export]'" in line
    with pytest.raises(ConfigError, match=r"pip install 'whitebox-seg\[export\]'"):
        read_onnx(tmp_path / "a.onnx")


def test_other_files(file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no file"):
        read_onnx(tmp_path / "none.onnx")
    (tmp_path / "damaged.onnx").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is damaged, or no ONNX file"):
        read_onnx(tmp_path / "damaged.onnx")
    program = onnx.load(file)
    program.metadata_props[0].value = '{"classes": 3}'
    onnx.save_model(program, str(tmp_path / "odd.onnx"))
    with pytest.raises(CheckpointError, match=r"metadata of .* cannot be used"):
        read_onnx(tmp_path / "odd.onnx")
    del program.metadata_props[:]
    onnx.save_model(program, str(tmp_path / "foreign.onnx"))
    with pytest.raises(CheckpointError, match="was not written by `whitebox export`"):
        read_onnx(tmp_path / "foreign.onnx")
