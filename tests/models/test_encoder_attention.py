"""Attention of encoders that run timm's own forward pass: what is recorded is what the layer used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from whitebox.models import Encoder, EncoderConfig, record, tap_names
from whitebox.models.attention import ATTENTIONS, mhsa_weights

ENCODERS = {  # timm's name -> sizes that make it small
    "vit_small_patch16_dinov3": {"depth": 2, "width": 48, "heads": 3},
    "vit_small_plus_patch16_dinov3": {"depth": 2},
    "eva02_tiny_patch14_224": {"depth": 2},
    "eva02_base_patch14_224": {"depth": 1},
    "vit_pe_core_tiny_patch16_384": {"depth": 2},
    "vit_pe_spatial_tiny_patch16_512": {"depth": 2},
    "vit_small_patch16_rope_mixed_224": {"depth": 2},
    "vit_small_patch14_reg4_dinov2": {"depth": 2, "width": 48, "heads": 3},
    "vit_base_patch16_siglip_224": {"depth": 2, "width": 48, "heads": 3},
    "vit_base_patch16_clip_224": {"depth": 2, "width": 48, "heads": 3},
}


def made(name: str) -> Encoder:
    torch.manual_seed(0)
    side = 56 if "patch14" in name else 64
    encoder = Encoder(EncoderConfig(name=name, image_size=side, **ENCODERS[name])).eval()
    for each in encoder.parameters():
        torch.nn.init.normal_(each, std=0.1)
    return encoder


def output(layer: Any, weights_BHNN: Tensor, z_BND: Tensor) -> Tensor:
    """What a layer gives, by explicit weights."""
    heads = layer.num_heads
    if layer.qkv is None:
        v_BNC = layer.v_proj(z_BND)
    else:
        qkv_BNC = layer.qkv(z_BND)
        if getattr(layer, "q_bias", None) is not None:
            qkv_BNC = qkv_BNC + torch.cat([layer.q_bias, layer.k_bias, layer.v_bias])
        v_BNC = qkv_BNC.chunk(3, dim=-1)[2]
    v_BHNP = v_BNC.unflatten(-1, (heads, -1)).transpose(1, 2)
    out_BNC = (weights_BHNN @ v_BHNP).transpose(1, 2).flatten(2)
    out_BNC = layer.norm(out_BNC)
    if getattr(layer, "gate", None) is not None:
        out_BNC = out_BNC * layer.gate(z_BND).sigmoid()
    return layer.proj(out_BNC)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_recorded_attention_gives_the_layers_output(name: str) -> None:
    encoder = made(name)
    h, w = 3, 5
    images = torch.randn(2, 3, h * encoder.patch_size, w * encoder.patch_size)
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for index, block in enumerate(encoder.vit.blocks):
        assert type(block.attn) in ATTENTIONS

        def keep(_: Any, given: Any, named: Any, result: Tensor, index: int = index) -> None:
            seen[index] = (given[0], result)

        block.attn.register_forward_hook(keep, with_kwargs=True)
    with record(encoder, "layers.*.attention") as heard:
        tokens, _ = encoder(images)
    assert len(heard) == encoder.depth
    N = encoder.prefix_tokens + h * w
    for index, (z_BND, result) in seen.items():
        weights_BHNN = heard[f"layers.{index}.attention"]
        assert weights_BHNN.shape[-2:] == (N, N)
        torch.testing.assert_close(weights_BHNN.sum(-1), torch.ones_like(weights_BHNN[..., 0]))
        torch.testing.assert_close(
            output(encoder.vit.blocks[index].attn, weights_BHNN, z_BND), result, atol=1e-5, rtol=1e-5
        )
    torch.testing.assert_close(encoder(images)[0], tokens)
    if not encoder.plain:
        assert all(not block.attn._forward_pre_hooks for block in encoder.vit.blocks)


@torch.no_grad()
def test_of_some_layers_alone() -> None:
    encoder = made("vit_small_patch16_dinov3")
    images = torch.randn(1, 3, 32, 48)
    with record(encoder, "layers.0.attention", "layers.0.tokens") as heard:
        encoder.intermediate(images, [0])
    assert heard["layers.0.attention"].shape == (1, 3, 5 + 6, 5 + 6)
    assert heard["layers.0.tokens"].shape == (1, 5 + 6, 48)


def test_places_matter() -> None:
    """Rotary positions are part of what is recorded: equal patches attend differently at different distances."""
    encoder = made("vit_small_patch16_dinov3")
    with torch.no_grad(), record(encoder, "layers.0.attention") as heard:
        encoder(torch.ones(1, 3, 48, 48))
    patches = heard["layers.0.attention"][0, 0, 5:, 5:]
    assert patches[0].std() > 1e-4
    flat = mhsa_weights(encoder.vit.blocks[0].attn, torch.ones(1, 14, 48))
    assert flat[0, 0, 5].std() < 1e-6


def test_what_has_no_such_attention_has_no_tap() -> None:
    encoder = Encoder(EncoderConfig(name="vit_small_patch16_18x2_224", image_size=32, depth=1))
    assert tap_names(encoder) == ["input", "layers.0.tokens"]
