"""What every decoder promises, over all of them, and the costs the papers publish."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import whitebox
from whitebox.errors import ConfigError, ModelError
from whitebox.models import DECODERS, EncoderConfig, build, record, tap_names
from whitebox.models.decoders.depict_ca import DepictCAConfig
from whitebox.models.decoders.depict_sa import DepictSAConfig
from whitebox.models.decoders.segmenter_mask import SegmenterMaskConfig

SMALL_ENCODER = EncoderConfig(image_size=32, width=48, depth=2, heads=3, patch_size=16)


def decoder(name: str, width: int = 48, num_classes: int = 5) -> torch.nn.Module:
    torch.manual_seed(0)
    cls = DECODERS[name]
    return cls(cls.Config(), width, num_classes).eval()


@pytest.mark.parametrize("name", sorted(DECODERS))
class TestEveryDecoder:
    @pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 2)])
    @pytest.mark.parametrize("num_classes", [1, 5])
    def test_any_grid_and_class_count(self, name: str, grid: tuple[int, int], num_classes: int) -> None:
        masks = decoder(name, num_classes=num_classes)(torch.randn(2, grid[0] * grid[1], 48), grid)
        assert masks.shape == (2, num_classes, *grid)
        assert masks.isfinite().all()

    def test_every_parameter_learns(self, name: str) -> None:
        module = decoder(name).train()
        module(torch.randn(2, 6, 48), (2, 3)).square().sum().backward()
        idle = [key for key, value in module.named_parameters() if value.grad is None or not value.grad.any()]
        assert idle == []

    def test_batch_items_do_not_mix(self, name: str) -> None:
        module, tokens = decoder(name), torch.randn(3, 6, 48)
        together = module(tokens, (2, 3))
        alone = torch.cat([module(item[None], (2, 3)) for item in tokens])
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)

    def test_rows_and_columns_of_the_grid(self, name: str) -> None:
        """Tokens carry no position of their own here: permuting them permutes the mask pixels."""
        module, tokens = decoder(name), torch.randn(1, 6, 48)
        order = torch.randperm(6)
        found = module(tokens[:, order], (2, 3)).flatten(2)
        torch.testing.assert_close(found, module(tokens, (2, 3)).flatten(2)[..., order], atol=1e-5, rtol=1e-4)

    def test_listening_changes_nothing(self, name: str) -> None:
        module, tokens = decoder(name), torch.randn(1, 6, 48)
        quiet = module(tokens, (2, 3))
        with record(module, "*") as activations:
            heard = module(tokens, (2, 3))
        assert torch.equal(quiet, heard)
        assert set(activations) == set(tap_names(module))
        for key, value in activations.items():
            if key.endswith("attention"):
                torch.testing.assert_close(value.sum(-1), torch.ones(value.shape[:-1]))

    def test_layers_add_their_update(self, name: str) -> None:
        module, tokens = decoder(name), torch.randn(1, 6, 48)
        with record(module, "*") as activations:
            module(tokens, (2, 3))
        before = activations["input"]
        for index in range(len(getattr(module, "layers", ()))):
            after = activations[f"layers.{index}.tokens"]
            torch.testing.assert_close(before + activations[f"layers.{index}.update"], after)
            before = after

    def test_same_seed_same_model(self, name: str) -> None:
        first, second = decoder(name).state_dict(), decoder(name).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_state_dict_round_trip(self, name: str) -> None:
        module, other, tokens = decoder(name), decoder(name), torch.randn(1, 6, 48)
        for parameter in other.parameters():
            torch.nn.init.normal_(parameter)
        other.load_state_dict(module.state_dict(), strict=True)
        assert torch.equal(other(tokens, (2, 3)), module(tokens, (2, 3)))


@pytest.mark.parametrize("name", ["depict-sa", "depict-ca"])
def test_fused_attention_equals_the_plain_formula(name: str) -> None:
    module, tokens = decoder(name, width=64), torch.randn(1, 12, 64)
    with record(module, "layers.*") as activations:
        module(tokens, (3, 4))
    for index, layer in enumerate(module.layers):
        weights, projected = activations[f"layers.{index}.attention"], activations[f"layers.{index}.projected"]
        plain = sum((weights[:, head] @ projected[:, head]) @ layer.bases[head] for head in range(layer.heads))
        torch.testing.assert_close(activations[f"layers.{index}.update"], layer.step_size * plain, atol=1e-5, rtol=1e-4)


ENCODER_PARAMETERS = {"tiny": 5_876_392, "small": 22_368_616, "base": 87_203_560}
DECODER_PARAMETERS = {
    "depict-sa": {"tiny": 203_439, "small": 406_575, "base": 812_847},
    "depict-ca": {"tiny": 291_378, "small": 582_450, "base": 1_164_594},
    "segmenter-linear": {"tiny": 28_950, "small": 57_750, "base": 115_350},
    "segmenter-mask": {"tiny": 1_029_996, "small": 4_050_348, "base": 16_063_020},
}


@pytest.mark.parametrize("size", sorted(ENCODER_PARAMETERS))
@pytest.mark.parametrize("name", sorted(DECODER_PARAMETERS))
def test_parameter_counts(name: str, size: str) -> None:
    """Those of the official code at 150 classes and 512 px (shared/reference/official_baseline.md)."""
    with torch.device("meta"):
        model = whitebox.create_model(f"{name}-{size}", num_classes=150)
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == ENCODER_PARAMETERS[size]
    assert sum(parameter.numel() for parameter in model.decoder.parameters()) == DECODER_PARAMETERS[name][size]


@pytest.mark.parametrize(
    ("model", "image", "published"),  # GFLOPs of the decoder's blocks on ADE20K, papers.md section 1
    [
        ("depict-sa-tiny", 512, 5.77),
        ("depict-sa-small", 512, 6.58),
        ("depict-sa-base", 512, 8.21),
        ("depict-sa-large", 640, 34.95),
        ("segmenter-mask-tiny", 512, 4.19),
        ("segmenter-mask-small", 512, 12.54),
        ("segmenter-mask-base", 512, 41.71),
        ("segmenter-mask-large", 640, 113.17),
    ],
)
def test_published_decoder_cost(model: str, image: int, published: float) -> None:
    with torch.device("meta"):
        layers = whitebox.create_model(model, num_classes=150).eval().decoder.layers
        tokens = torch.empty(1, (image // 16) ** 2 + 150, _width(layers))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for layer in layers:
            tokens = layer(tokens)
    assert counter.get_total_flops() / 1e9 == pytest.approx(published, rel=0.01)


def _width(layers: torch.nn.ModuleList) -> int:
    return next(module for module in layers.modules() if isinstance(module, torch.nn.LayerNorm)).normalized_shape[0]


def test_impossible_hyper_parameters() -> None:
    with pytest.raises(ConfigError, match=r"decoder.layers=0 is impossible"):
        DepictSAConfig(layers=0)
    with pytest.raises(ConfigError, match=r"decoder.cross_head_dim=-1 is impossible"):
        DepictCAConfig(cross_head_dim=-1)
    with pytest.raises(ConfigError, match=r"decoder.dropout=1.5 is impossible: it lies in \[0, 1\)"):
        SegmenterMaskConfig(dropout=1.5)
    with pytest.raises(ModelError, match=r"decoder.heads=5 is impossible: it must divide the decoder's width 48"):
        build(SMALL_ENCODER, SegmenterMaskConfig(heads=5), 5)
    with pytest.raises(ModelError, match="at least one class"):
        build(SMALL_ENCODER, DepictCAConfig(), 0)
    with pytest.raises(ModelError, match=r"2 class names were given for 5 classes"):
        build(SMALL_ENCODER, DepictCAConfig(), 5, classes=("a", "b"))


def test_copies_do_not_share_listeners() -> None:
    module = decoder("depict-sa")
    with record(module, "layers.0.tokens") as activations:
        copied = copy.deepcopy(module)
        copied(torch.randn(1, 6, 48), (2, 3))
        assert activations == {}
