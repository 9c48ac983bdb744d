"""`whitebox.replace`: what a model makes of changed activations, against forward passes written out by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import whitebox
from whitebox.errors import ConfigError, ModelError
from whitebox.models import EncoderConfig, Segmentor, build, changeable, record, replace, tap_names
from whitebox.models.changes import along, mean, other, scale, zero
from whitebox.models.decoders.cbsa import CBSAConfig
from whitebox.models.decoders.crate import CrateConfig
from whitebox.models.decoders.depict_ca import DepictCAConfig
from whitebox.models.decoders.depict_sa import DepictSAConfig
from whitebox.models.decoders.segmenter_mask import SegmenterMaskConfig
from whitebox.models.decoders.tost import ToSTConfig

IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
SUBSPACES = {"layers": 2, "heads": 3, "head_dim": 8}
DECODERS: list[Any] = [
    DepictSAConfig(**SUBSPACES),
    CBSAConfig(**SUBSPACES, pool=2),
    ToSTConfig(**SUBSPACES),
    CrateConfig(**SUBSPACES),
    SegmenterMaskConfig(layers=2, heads=3),
]


def small(decoder: Any = DECODERS[0], name: str = "vit_tiny_patch16_384", **encoder: Any) -> Segmentor:
    torch.manual_seed(0)
    settings = {"image_size": 32, "width": 24, "depth": 1, "heads": 3, **encoder}
    return build(EncoderConfig(name=name, **settings), decoder, 5).eval()


def heard(model: Segmentor, *names: str) -> dict[str, Tensor]:
    with record(model, *names) as activations:
        model(IMAGES)
    return activations


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda each: each.name)
def test_a_layer_without_its_update_is_a_layer_left_out(decoder: Any) -> None:
    model = small(decoder)
    shorter = copy.deepcopy(model)
    del shorter.decoder.layers[0]
    with replace(model, {"decoder.layers.0.update": zero()}):
        torch.testing.assert_close(model(IMAGES), shorter(IMAGES))
    assert not torch.allclose(model(IMAGES), shorter(IMAGES))


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda each: each.name)
def test_what_stays_the_same_changes_nothing(decoder: Any) -> None:
    model = small(decoder)
    names = changeable(model)
    with replace(model, dict.fromkeys(names, scale(1.0))):
        torch.testing.assert_close(model(IMAGES), small(decoder)(IMAGES), atol=1e-5, rtol=1e-5)


def test_afterwards_nothing_is_left() -> None:
    model = small()
    before = model(IMAGES)
    with pytest.raises(ZeroDivisionError), replace(model, {"decoder.*.update": lambda value: value * (1 // 0)}):
        model(IMAGES)
    assert torch.equal(model(IMAGES), before)
    with replace(model, {"decoder.*.update": zero()}):
        assert torch.equal(copy.deepcopy(model)(IMAGES), before)


def test_the_step_of_mssa_is_what_its_update_is_scaled_by() -> None:
    model = small()
    halved = copy.deepcopy(model)
    with torch.no_grad():
        halved.decoder.layers[1].step_size.mul_(-0.5)
    with replace(model, {"decoder.layers.1.update": scale(-0.5)}):
        torch.testing.assert_close(model(IMAGES), halved(IMAGES), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("decoder", [DECODERS[0], DECODERS[1], DECODERS[3]], ids=lambda each: each.name)
def test_a_head_that_sees_nothing_is_a_head_left_out(decoder: Any) -> None:
    model = small(decoder)
    without = copy.deepcopy(model)
    with torch.no_grad():
        without.decoder.layers[1].basis[8:16] = 0
    with replace(model, {"decoder.layers.1.projected": zero(heads=[1])}):
        torch.testing.assert_close(model(IMAGES), without(IMAGES), atol=1e-6, rtol=1e-5)


def test_tokens_by_hand() -> None:
    """The last layer's tokens, and all that follows, written out."""
    model, decoder = small(), small().decoder
    tokens = heard(model, "decoder.layers.1.tokens")["decoder.layers.1.tokens"]
    recorded = heard(model, "decoder.layers.0.tokens")["decoder.layers.0.tokens"]
    direction = torch.arange(24.0)
    expected: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [
        (zero(), torch.zeros_like(tokens)),
        (scale(2.0), 2 * tokens),
        (mean(recorded), recorded.mean((0, 1)).expand_as(tokens)),
        (other(recorded[:1]), recorded[:1].expand_as(tokens)),
        (along(direction, 3.0), tokens + 3 * direction / direction.norm()),
    ]
    for change, changed in expected:
        patches, classes = decoder.split(decoder.norm(changed))
        masks = decoder.masks(patches, classes, (2, 3))
        with replace(model, {"decoder.layers.1.tokens": change}):
            torch.testing.assert_close(model.masks(IMAGES), masks)


def test_who_listens_hears_what_was_changed() -> None:
    model = small()
    with replace(model, {"encoder.layers.0.tokens": zero()}):
        assert not heard(model, "encoder.layers.0.tokens")["encoder.layers.0.tokens"].any()


def test_changes_of_one_tap_act_in_order() -> None:
    model = small()
    before = heard(model, "decoder.input")["decoder.input"]
    with replace(model, {"decoder.input": lambda value: value + 1, "decoder.inpu?": scale(2.0)}):
        torch.testing.assert_close(heard(model, "decoder.input")["decoder.input"], 2 * (before + 1))


def test_gradients_flow_through() -> None:
    model = small()
    amount = torch.tensor(1.0, requires_grad=True)
    with replace(model, {"decoder.layers.0.update": lambda value: amount * value}):
        model(IMAGES).sin().sum().backward()
    assert amount.grad is not None and amount.grad != 0
    assert model.decoder.layers[0].basis.grad.any() and model.decoder.class_embeddings.grad.any()


def test_a_cross_attention_without_its_update_leaves_class_embeddings() -> None:
    model = small(DepictCAConfig(layers=1, heads=3, head_dim=8, cross_layers=2, cross_head_dim=4))
    with replace(model, {"decoder.cross_layers.*.update": zero()}):
        classes = heard(model, "decoder.classes")["decoder.classes"]
    learned = model.decoder.class_norm(model.decoder.class_embeddings)
    torch.testing.assert_close(classes, (learned / learned.norm(dim=-1, keepdim=True)).expand_as(classes))


def test_what_the_model_does_not_go_on_with_is_refused() -> None:
    model = small()
    assert set(tap_names(model)) - set(changeable(model)) == {
        "encoder.layers.0.attention",
        "decoder.layers.0.attention",
        "decoder.layers.1.attention",
    }
    refused = pytest.raises(ModelError, match=r"layers.0.attention can be read, not changed.*decoder.layers.0.update")
    with refused, replace(model, {"decoder.layers.0.attention": zero()}):
        pass
    rotary = small(name="vit_small_patch16_dinov3", width=None, depth=1, heads=None)
    with pytest.raises(ModelError, match="can be read, not changed"), replace(rotary, {"encoder.*.tokens": zero()}):
        pass


@pytest.mark.parametrize(
    ("tap", "change", "message"),
    [
        ("decoder.layers.7.update", zero(), "No activation is named 'decoder.layers.7.update'; this model has: enc"),
        ("decoder.input", lambda value: value[:1], r"replaces decoder.input has shape \(1, 11, 24\), it takes \(2, 11"),
        ("decoder.layers.0.projected", zero(heads=[3]), "no head 3: this activation has heads 0 to 2"),
        ("decoder.input", zero(heads=[0]), "no head 0: this activation has no heads"),
        (
            "decoder.input",
            other(torch.zeros(1, 4, 24)),
            r"another image has shape \(1, 4, 24\), here it is \(2, 11",
        ),
        ("decoder.input", along(torch.ones(7), 1.0), "direction has 7 numbers, the activation 24"),
    ],
)
def test_errors(tap: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    model = small()
    with pytest.raises(ModelError, match=message), replace(model, {tap: change}):
        model(IMAGES)


def test_impossible_changes() -> None:
    with pytest.raises(ConfigError, match="factor"):
        scale(float("nan"))
    with pytest.raises(ModelError, match="not zero"):
        along(torch.zeros(3), 1.0)


def test_it_is_part_of_the_public_interface() -> None:
    assert whitebox.replace is replace
