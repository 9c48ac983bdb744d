"""Released SegViT checkpoints: strict, told apart, read without running anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_vectors import released_segvit
from safetensors.torch import load_file

import whitebox
from whitebox.api import load_run
from whitebox.config import resolve
from whitebox.data import dataset_info
from whitebox.engine.checkpoint import save_model
from whitebox.engine.header import WEIGHTS
from whitebox.errors import CheckpointError
from whitebox.interop.segvit import configured, described_by_size, is_segvit, load_segvit
from whitebox.models import Encoder, EncoderConfig, build
from whitebox.models.encoder import MMSEG_NAMES
from whitebox.models.weights import renamed

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def content(shared: Path) -> dict[str, Any]:
    return released_segvit(shared)


def saved(content: dict[str, Any], folder: Path) -> Path:
    torch.save(content, folder / "segvit.pth")
    return folder / "segvit.pth"


def test_what_is_read_off_the_checkpoint(content: dict[str, Any], tmp_path: Path) -> None:
    path = saved(content, tmp_path)
    model, config = load_run(path)
    encoder, decoder = config.encoder, config.decoder
    assert (encoder.width, encoder.depth, encoder.heads, encoder.patch_size, encoder.image_size) == (32, 4, 4, 16, 64)
    assert (encoder.positions, encoder.class_token, encoder.final_norm, encoder.shrink) == ("mmseg", False, False, None)
    assert (encoder.drop_path, encoder.norm_eps, encoder.normalization) == (0.1, 1e-6, "vit")
    assert (decoder.name, decoder.encoder_layers, decoder.layers) == ("segvit", [1, 2, 3], 2)
    assert (decoder.width, decoder.heads, decoder.project) == (16, 4, True)
    assert (config.inference.window, config.inference.stride) == (64, 43)
    assert (config.loss.name, config.data.name, model.classes[0]) == ("atm", "unknown", "class 0")
    dropped = {"decode_head.loss_decode.criterion.empty_weight"}
    assert model.load_report is not None
    assert model.load_report.matched == len(content["state_dict"].keys() - dropped)
    assert "released SegViT checkpoint, segvit; all" in str(model.load_report)
    assert not model.training


def test_saved_from_a_wrapped_model(content: dict[str, Any], tmp_path: Path) -> None:
    image, (expected, _) = torch.rand(1, 3, 64, 64), load_run(saved(content, tmp_path))
    wrapped = {f"module.{name}": tensor for name, tensor in content["state_dict"].items()}
    model, _ = load_run(saved({**content, "state_dict": wrapped}, tmp_path))
    assert torch.equal(model(image), expected(image))


def test_whole_images(content: dict[str, Any], tmp_path: Path) -> None:
    assert "mode='slide'" in content["meta"]["config"]
    config_without("mode='slide'", "mode='whole'")(content)
    _, config = load_run(saved(content, tmp_path))
    assert (config.inference.window, config.inference.stride) == (None, None)


def test_a_run_made_of_it_gives_the_same(content: dict[str, Any], tmp_path: Path) -> None:
    model, config = load_run(saved(content, tmp_path))
    save_model(tmp_path / WEIGHTS, model, config)
    images = torch.rand(1, 3, 48, 80)
    assert torch.equal(whitebox.load_model(tmp_path / WEIGHTS)(images), model(images))


def test_the_shrunk_head(shared: Path, content: dict[str, Any]) -> None:
    """Put together of the vectors of the shrunk encoder and head, which have other widths: the encoder's is adapted."""
    folder = shared / "golden" / "segvit_sed"
    head = load_file(folder / "segvit_tpn_atm_head.weights.safetensors")
    torch.manual_seed(0)
    for name in ("input_proj_1.weight", "input_proj_2.weight"):
        head[name] = torch.randn(32, 32)
    tensors = {
        f"backbone.{key}": value for key, value in load_file(folder / "segvit_vit_shrink.weights.safetensors").items()
    }
    tensors |= {f"decode_head.{key}": value for key, value in head.items()}
    text = (
        "model = dict(backbone=dict(type='vit_shrink', num_heads=4, with_cls_token=False, final_norm=False,"
        " shrink_idx=2, out_indices=[1, 4]), decode_head=dict(type='TPNATMHead', num_heads=4, num_classes=6))"
    )
    model, config = load_segvit({"meta": {"config": text}, "state_dict": tensors}, "shrunk.pth")
    assert (config.encoder.shrink, config.decoder.name, config.decoder.grid) == (2, "segvit-shrunk", 6)
    assert (config.decoder.encoder_layers, config.decoder.layers, config.inference.window) == ([1, 4], 2, 64)
    assert model(torch.rand(1, 3, 96, 96)).shape == (1, 6, 96, 96)


@pytest.mark.parametrize(
    ("name", "case", "px"),
    [
        ("segvit-base", "segvit_vit-b16_ade20k_512", 512),
        ("segvit-large-shrunk", "segvit_vit-l16_shrink8_tpnatm_ade20k_640", 640),
    ],
)
def test_released_sizes_need_no_config(name: str, case: str, px: int, shared: Path) -> None:
    """Every size that the model is then built with is that of our model of this name."""
    facts = json.loads((shared / "golden" / "segvit_sed" / "real_configs.json").read_text())[case]
    wanted = resolve(name, None, {"encoder.image_size": px})
    with torch.device("meta"):
        model = build(wanted.encoder, wanted.decoder, 150)
        tensors = {f"decode_head.{key}": torch.empty(shape) for key, shape in facts["state_dict_shapes"].items()}
        tensors |= {
            "backbone.cls_token": model.encoder.vit.cls_token,
            "backbone.pos_embed": model.encoder.vit.pos_embed,
            "backbone.patch_embed.projection.weight": model.encoder.vit.patch_embed.proj.weight,
            **{f"backbone.layers.{index}.ln1.bias": torch.empty(1) for index in range(model.encoder.depth)},
        }
        config, num_classes = configured(described_by_size(tensors), tensors)
        again = build(config.encoder, config.decoder, num_classes)
    assert num_classes == 150
    assert (config.encoder.drop_path, config.encoder.shrink) == (wanted.encoder.drop_path, wanted.encoder.shrink)
    assert config.decoder.encoder_layers == wanted.decoder.encoder_layers
    assert again.decoder.heads == model.decoder.heads == facts["head_kwargs"]["num_heads"]
    assert again.encoder.vit.blocks[0].attn.num_heads == model.encoder.vit.blocks[0].attn.num_heads
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes


@pytest.mark.parametrize(("dataset", "count"), [("ade20k", 150), ("pascal-context-59", 59)])
def test_the_dataset_is_known_by_its_classes(content: dict[str, Any], dataset: str, count: int) -> None:
    names, palette = dataset_info(resolve("segvit-tiny", dataset).data)
    content["meta"]["CLASSES"] = names
    content["meta"]["config"] = content["meta"]["config"].replace("num_classes=5", f"num_classes={count}")
    width = content["state_dict"]["decode_head.q.weight"].shape[1]
    content["state_dict"] |= {
        "decode_head.q.weight": torch.zeros(count, width),
        "decode_head.class_embed.weight": torch.zeros(count + 1, width),
        "decode_head.class_embed.bias": torch.zeros(count + 1),
    }
    model, config = load_segvit(content, "segvit.pth")
    assert (config.data.name, model.classes, model.palette) == (dataset, names, palette)


def test_other_classes_keep_their_names(content: dict[str, Any]) -> None:
    content["meta"]["CLASSES"] = ("a", "b", "c", "d", "e")
    model, config = load_segvit(content, "segvit.pth")
    assert (model.classes, config.data.name) == (("a", "b", "c", "d", "e"), "unknown")


def test_the_backbone_of_mmsegmentation_is_an_encoder_by_itself(content: dict[str, Any], tmp_path: Path) -> None:
    """As its converted ViT weights are: with a final norm, and a classifier that is left out."""
    backbone = {
        key.removeprefix("backbone."): value
        for key, value in content["state_dict"].items()
        if key.startswith("backbone.")
    }
    backbone |= {"ln1.weight": torch.rand(32), "ln1.bias": torch.rand(32), "head.weight": torch.zeros(1000, 32)}
    torch.save({"state_dict": backbone}, tmp_path / "vit.pth")
    settings = {"width": 32, "depth": 4, "heads": 4, "weights": str(tmp_path / "vit.pth")}
    encoder = Encoder(EncoderConfig(image_size=64, **settings))
    for name, value in backbone.items():
        if not name.startswith("head"):
            assert torch.equal(encoder.vit.state_dict()[renamed(name, MMSEG_NAMES)], value), name
    bare = Encoder(EncoderConfig(image_size=96, final_norm=False, positions="mmseg", class_token=False, **settings))
    assert bare.vit.pos_embed.shape == (1, 37, 32)
    assert not any(name.startswith(("norm.", "head.")) for name in bare.vit.state_dict())


def drop(name: str) -> Edit:
    return lambda content: content["state_dict"].pop(name)


def put(name: str, value: torch.Tensor) -> Edit:
    return lambda content: content["state_dict"].update({name: value})


def config_without(old: str, new: str = "") -> Edit:
    def edit(content: dict[str, Any]) -> None:
        assert old in content["meta"]["config"]
        content["meta"]["config"] = content["meta"]["config"].replace(old, new)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("decode_head.q.weight"), r"does not fit this model: 1 missing \(first: decoder.class_embeddings\)"),
        (drop("backbone.layers.1.ln1.bias"), r"1 missing \(first: encoder.vit.blocks.1.norm1.bias\)"),
        (put("decode_head.conv_seg.weight", torch.zeros(1)), r"1 unexpected \(first: decoder.conv_seg.weight\)"),
        (put("auxiliary_head.weight", torch.zeros(1)), r"1 unexpected \(first: decoder.auxiliary_head.weight\)"),
        (put("backbone.ln1.weight", torch.zeros(32)), r"1 unexpected \(first: encoder.vit.norm.weight\)"),
        (
            put("decode_head.q.weight", torch.zeros(4, 16)),
            r"class_embeddings is \(1, 4, 16\), the model needs \(1, 5, 16\)",
        ),
        (drop("backbone.pos_embed"), r"do not describe a SegViT model: KeyError\('backbone.pos_embed'\)"),
        (config_without("num_classes=5", "num_classes=59"), r"has 5 classes but its config says 59"),
        (lambda content: content["meta"].update(CLASSES=("a", "b")), r"has 5 classes but its CLASSES says 2"),
        (lambda content: content.pop("meta"), r"no SegViT of width 32 and depth 4 was released, and the file holds no"),
        (
            lambda content: content["meta"].update(config="model = dict("),
            r"do not describe a SegViT model: SyntaxError",
        ),
        (lambda content: content["meta"].update(config="model = __import__('os')"), r"do not describe .* ValueError"),
        (
            lambda content: content["meta"].update(config=f"model = {'-' * 3000}1"),
            r"do not describe a SegViT model: ValueError\('it is nested too deeply'\)",
        ),
        (
            lambda content: content["meta"].update(config="a = 1"),
            r"do not describe a SegViT model: KeyError\('model'\)",
        ),
        (config_without("with_cls_token=False", "with_cls_token=True"), r"only encoders without class token"),
        (config_without("127.5, 127.5, 127.5", "'x', [2], 3"), r"normalised with mean \['x', \[2\], 3\]; known are"),
        (config_without("127.5, 127.5, 127.5", "1, 2, 3"), r"normalised with mean \[1, 2, 3\]; known are 127.5"),
        (config_without("crop_size=[64, 64]", "crop_size=[64, 96]"), r"SegViT model: test_cfg.crop_size=\[64, 96\] is"),
        (config_without("num_heads=4", "num_heads=0"), r"encoder.heads=0 is impossible"),
        (config_without("num_heads=4", "num_heads='x'"), r"do not describe a SegViT model: ValueError"),
        (config_without("out_indices=[1, 2, 3]", "out_indices=[1, 2, 9]"), r"asks for block 9, but the encoder has 4"),
    ],
)
def test_bad_checkpoints(content: dict[str, Any], edit: Edit, message: str, tmp_path: Path) -> None:
    edit(content)
    with pytest.raises(whitebox.WhiteboxError, match=message) as raised:
        whitebox.load_model(saved(content, tmp_path))
    assert "\n" not in str(raised.value)


def test_not_taken_for_others(content: dict[str, Any], tmp_path: Path) -> None:
    assert is_segvit(content)
    for other in (None, [], {}, {"state_dict": {}}, {"state_dict": {"decode_head.decoder.norm.weight": 0}}):
        assert not is_segvit(other)
    torch.save({"state_dict": {"backbone.norm.weight": torch.zeros(1)}}, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"variant\.yml"):
        whitebox.load_model(tmp_path / "checkpoint.pth")
