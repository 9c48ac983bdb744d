"""Weights of the world: what others put around a state dict, in it, and what must not be loaded."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import trunc_normal_
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from whitebox.errors import CheckpointError
from whitebox.models import Encoder, EncoderConfig
from whitebox.models.weights import Undrawn, read_pickle, unwrap

SMALL: dict[str, Any] = {"width": 48, "depth": 2, "heads": 3, "image_size": 64}
Tensors = dict[str, Tensor]


def encoder(name: str = "vit_tiny_patch16_384", seed: int = 0, **options: Any) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(EncoderConfig(name=name, **{**SMALL, **options})).eval()


def state(seed: int = 1, **options: Any) -> Tensors:
    return encoder(seed=seed, **options).vit.state_dict()


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def loads(content: Any, folder: Path, **options: Any) -> Encoder:
    torch.save(content, folder / "w.pth")
    return encoder(weights=str(folder / "w.pth"), **options)


def inside(tensors: Tensors) -> Tensors:
    """As of an encoder whose blocks were each compiled and wrapped."""
    return {name.replace("blocks.0.", "blocks.0._orig_mod.module."): tensor for name, tensor in tensors.items()}


WRAPPED: dict[str, Callable[[Tensors], Any]] = {
    "bare": lambda own: own,
    "model": lambda own: {"model": own, "optimizer": {"state": {0: {"step": torch.ones(1)}}}, "epoch": 3},
    "DDP": lambda own: {"state_dict": under("module.", own)},
    "compiled": lambda own: under("_orig_mod.", own),
    "compiled, DDP": lambda own: {"model": under("module._orig_mod.", own)},
    "parts compiled": inside,
    "Lightning": lambda own: {"state_dict": under("model.", own), "global_step": 7},
    "torchvision's wrapper": lambda own: {"net": under("backbone.", own)},
    "averaged": lambda own: {"n_averaged": torch.tensor(3), **under("module.", own)},
    "DINO": lambda own: {
        "student": {**under("module.backbone.", state(2)), "module.head.mlp.weight": torch.ones(2, 2)},
        "teacher": {**under("backbone.", own), "head.mlp.weight": torch.ones(2, 2)},
    },
    "EMA": lambda own: {"model": state(2), "model_ema": own},
    "deep": lambda own: {"checkpoint": {"ema": {"state_dict": under("module.encoder.", own)}}},
    "the larger of two": lambda own: {"student": state(2, width=24), "model": own, "teacher": state(2, depth=1)},
    "a segmentation model": lambda own: {"state_dict": {**under("backbone.", own), "decode_head.w": torch.ones(1)}},
    "one of whitebox": lambda own: {**under("encoder.vit.", own), "decoder.norm.weight": torch.ones(48)},
    "CLIP": lambda own: {**under("visual.trunk.", own), "text.proj": torch.ones(3)},
    "with MAE's decoder": lambda own: {
        "model": {**own, "mask_token": torch.ones(1), "decoder_embed.bias": torch.ones(1)}
    },
    "half precision": lambda own: {name: tensor.to(torch.float64) for name, tensor in own.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_unwrapped(kind: str, tmp_path: Path) -> None:
    own = state()
    loaded = loads(WRAPPED[kind](own), tmp_path)
    torch.testing.assert_close(
        dict(loaded.vit.named_parameters())["blocks.1.mlp.fc1.weight"], own["blocks.1.mlp.fc1.weight"]
    )
    torch.testing.assert_close(loaded.vit.pos_embed, own["pos_embed"])
    assert str(tmp_path / "w.pth") in str(loaded.load_report)


def test_where_it_lay_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = loads(WRAPPED["DINO"](state()), tmp_path)
    path = tmp_path / "w.pth"
    assert caplog.messages == [f"{path} also holds weights in student/backbone; those in teacher/backbone are taken."]
    assert str(loaded.load_report).startswith(f"{tmp_path / 'w.pth'} in teacher/backbone: encoder weights; all ")


def test_two_of_one_name(tmp_path: Path) -> None:
    own = state()
    with pytest.raises(CheckpointError, match=r"holds cls_token twice in model: keep one of them"):
        loads({"model": {**own, "module.cls_token": own["cls_token"]}}, tmp_path)


@pytest.mark.parametrize(
    "content",
    [{}, {0: torch.ones(2)}, [1, 2], {"model": {1: torch.ones(2)}}, {"vit.embeddings.cls_token": torch.ones(1)}, None],
    ids=str,
)
def test_no_encoder_at_all(content: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"w\.pth holds no Vision Transformer by the names of timm"):
        loads(content, tmp_path)


def test_a_nest_without_an_end_is_left_alone() -> None:
    nest: Any = {"model": torch.ones(1)}
    for _ in range(20_000):
        nest = {"model": nest, "again": nest}
    assert unwrap(nest, ["model"]) is None


PUBLISHED = {  # what authors' files hold that a timm model does not -> how timm itself reads it
    "mask_token": ("vit_small_patch14_dinov2", {"mask_token": torch.zeros(1, 48)}),
    "a pooling": ("vit_base_patch16_siglip_224", {}),
    "average pooling": ("vit_wee_patch16_reg1_gap_256", {}),
    "no pooling": ("vit_base_patch16_siglip_gap_224", {}),
    "layer scale": ("deit3_small_patch16_224", {}),
    "two classifiers": ("deit_tiny_distilled_patch16_224", {}),
    "rotary positions": ("eva02_tiny_patch14_224", {}),
    "rotary positions, registers": ("vit_small_patch16_dinov3", {}),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_timms_own_weights(kind: str, tmp_path: Path) -> None:
    name, more = PUBLISHED[kind]
    sizes = {"depth": 2} if "rotary" in kind else {"depth": 2, "embed_dim": 48, "num_heads": 3}
    torch.manual_seed(1)
    source = timm.create_model(name, img_size=56 if "14" in name else 64, dynamic_img_size=True, **sizes).eval()
    source.requires_grad_(False)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_file({**source.state_dict(), **more}, tmp_path / "w.safetensors")
    options = {"width": None, "heads": None} if "rotary" in kind else {}
    loaded = encoder(name, weights=str(tmp_path / "w.safetensors"), image_size=56 if "14" in name else 64, **options)
    images = torch.randn(1, 3, 4 * loaded.patch_size, 4 * loaded.patch_size)
    if not loaded.family:  # which has its own epsilon
        torch.testing.assert_close(loaded.tokens(images), source.forward_features(images))
    assert not any(name.startswith("vit.head") and value.requires_grad for name, value in loaded.named_parameters())


def test_registers_as_the_authors_of_dinov2_store_them(tmp_path: Path) -> None:
    """There the class token has a position of its own; timm adds it to the token when it reads the file."""
    name = "vit_small_patch14_reg4_dinov2"
    own = state(name=name, image_size=70)
    theirs = {key: value for key, value in own.items() if key != "reg_token"}
    theirs |= {"register_tokens": torch.randn(1, 4, 48), "mask_token": torch.zeros(1, 48)}
    theirs["pos_embed"] = torch.randn(1, 1 + 25, 48)
    loaded = loads(theirs, tmp_path, name=name, image_size=70)
    expected = checkpoint_filter_fn(dict(theirs), loaded.vit)
    assert expected.keys() == own.keys()
    for key, value in expected.items():
        torch.testing.assert_close(loaded.vit.state_dict()[key], value)
    torch.testing.assert_close(loaded.vit.cls_token, theirs["cls_token"] + theirs["pos_embed"][:, 0])


CLIP_NAMES = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "attn.proj",
}


def openai_clip(own: Tensors) -> Tensors:
    """A tower of timm's by the names of OpenAI's CLIP, beside a text tower."""
    theirs = {"text_projection": torch.ones(2, 2), "transformer.resblocks.0.ln_1.weight": torch.ones(2)}
    theirs |= {"visual.proj": torch.randn(48, 512), "logit_scale": torch.ones(())}
    for name, tensor in own.items():
        part = name.removeprefix("blocks.")
        for ours, its in (("attn.qkv.weight", "attn.in_proj_weight"), ("attn.qkv.bias", "attn.in_proj_bias")):
            part = part.replace(ours, its)
        for its, ours in CLIP_NAMES.items():
            part = part.replace(ours, its)
        whole = {
            "cls_token": "class_embedding",
            "pos_embed": "positional_embedding",
            "norm_pre.weight": "ln_pre.weight",
        }
        whole |= {"norm_pre.bias": "ln_pre.bias", "norm.weight": "ln_post.weight", "norm.bias": "ln_post.bias"}
        whole["patch_embed.proj.weight"] = "conv1.weight"
        if not name.startswith("head."):
            renamed = whole.get(name, f"transformer.resblocks.{part}")
            theirs[f"visual.{renamed}"] = tensor.flatten(0, 1) if renamed == "positional_embedding" else tensor
    theirs["visual.class_embedding"] = theirs["visual.class_embedding"].flatten()
    theirs["visual.positional_embedding"] = own["pos_embed"][0]
    return theirs


def test_openais_clip(tmp_path: Path) -> None:
    name = "vit_base_patch16_clip_quickgelu_224"
    own = state(name=name)
    loaded = loads(openai_clip(own), tmp_path, name=name)
    for key, value in own.items():
        if not key.startswith("head."):
            torch.testing.assert_close(loaded.vit.state_dict()[key], value)
    with pytest.raises(CheckpointError, match="its patches are 16 px wide, those of vit_base_patch32_clip_224 32 px"):
        loads(openai_clip(own), tmp_path, name="vit_base_patch32_clip_224")


def test_positions_of_another_size_are_resampled_as_timm_does(tmp_path: Path) -> None:
    name = "vit_small_patch14_dinov2"
    own = state(name=name, image_size=70)
    loaded = loads({**own, "mask_token": torch.zeros(1, 48)}, tmp_path, name=name, image_size=98)
    expected = checkpoint_filter_fn(dict(own), loaded.vit)["pos_embed"]
    torch.testing.assert_close(loaded.vit.pos_embed, expected)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda own: own.pop("norm.weight"), r"1 missing \(first: norm.weight\)"),
        (lambda own: own.update({"reg_token": torch.ones(1, 4, 48)}), r"1 unexpected \(first: reg_token\)"),
        (lambda own: own.pop("cls_token"), r"1 missing \(first: cls_token\)"),
        (lambda own: own["norm.bias"].__setitem__(3, float("nan")), r"norm.bias holds NaN or infinite values"),
        (lambda own: own["blocks.0.norm1.bias"].__setitem__(0, float("inf")), r"blocks.0.norm1.bias holds NaN or inf"),
        (
            lambda own: own.update({"norm.bias": own["norm.bias"].to(torch.int8)}),
            r"norm.bias holds int8 where .*float32",
        ),
        (
            lambda own: own.update({"norm.bias": own["norm.bias"].to(torch.complex64)}),
            r"norm.bias holds complex64 where",
        ),
        (lambda own: own.update({"norm.bias": own["norm.bias"].bool()}), r"norm.bias holds bool where"),
        (lambda own: own.update({"norm.bias": own["norm.bias"].to_sparse()}), r"norm.bias is stored sparse"),
        (lambda own: own.update({"norm.bias": own["norm.bias"].double() * 1e60}), r"norm.bias holds NaN or infinite"),
        (lambda own: own.update({"norm.bias": torch.ones(1)}), r"norm.bias is \(1,\), the model needs \(48,\)"),
        (
            lambda own: own.update({"patch_embed.proj.weight": torch.ones(48, 3, 14, 14)}),
            r"does not fit this model: its patches are 14 px wide, those of vit_tiny_patch16_384 16 px",
        ),
        (lambda own: own.update({"pos_embed": torch.ones(1, 8, 48)}), "is not a square grid"),
    ],
)
def test_refused(edit: Callable[[Tensors], None], message: str, tmp_path: Path) -> None:
    own = {name: tensor.clone() for name, tensor in state().items()}
    own["norm.bias"] += 1
    edit(own)
    with pytest.raises(CheckpointError, match=message) as raised:
        loads(own, tmp_path)
    assert "\n" not in str(raised.value)


def test_a_classifier_may_be_anything(tmp_path: Path) -> None:
    """It is not loaded, so neither its size nor its numbers matter."""
    loaded = loads({**state(), "head.weight": torch.full((5, 48), float("nan"))}, tmp_path)
    assert loaded.vit.head.weight.isfinite().all()


def test_a_file_that_unpacks_to_more_than_itself(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/99", bytes(2**24))
    with pytest.raises(CheckpointError, match=r"w\.pth unpacks to 0\.0 GB, which no torch file does|unpacks to"):
        read_pickle(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "fill",
    [
        nn.init.kaiming_uniform_,
        nn.init.orthogonal_,
        nn.init.xavier_uniform_,
        lambda weight: nn.init.trunc_normal_(weight, std=0.02, a=-2, b=2),
        lambda weight: nn.init.trunc_normal_(weight, mean=3, std=0.02, a=2.9, b=3.1),  # zero is outside
        lambda weight: nn.init.trunc_normal_(weight, std=5.0, a=0.5, b=0.6),
        trunc_normal_,
    ],
)
def test_what_is_built_to_be_loaded_is_not_drawn(fill: Callable[[Tensor], Tensor]) -> None:
    """It ends, whatever a model draws its weights from."""
    with Undrawn():
        module = nn.Linear(7, 5)
        fill(module.weight)
        other = torch.rand(3)
    assert not module.bias.any() and other.all() and module.weight.isfinite().all()
    assert module.weight.requires_grad and nn.Linear(7, 5).weight.all()
