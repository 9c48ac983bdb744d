"""Segmentor: pixels in, logits out; normalisation and padding are inside."""

from __future__ import annotations

import pytest
import torch

import whitebox
from whitebox.errors import ModelError
from whitebox.models import EncoderConfig, Segmentor, build, intervene, record
from whitebox.models.decoders.depict_sa import DepictSAConfig
from whitebox.models.decoders.segmenter_linear import SegmenterLinearConfig
from whitebox.models.interventions import OPERATIONS
from whitebox.palette import distinct_palette


def small(decoder: object = DepictSAConfig(head_dim=16), **encoder: object) -> Segmentor:
    torch.manual_seed(0)
    settings = {"image_size": 64, "width": 48, "depth": 1, "heads": 3, **encoder}
    return build(EncoderConfig(**settings), decoder, 5).eval()


def test_uint8_and_float_are_the_same_image() -> None:
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    model = small()
    torch.testing.assert_close(model(pixels), model(pixels.float() / 255), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (17, 50), (64, 64), (65, 200)])
def test_any_size(size: tuple[int, int]) -> None:
    logits = small()(torch.rand(1, 3, *size))
    assert logits.shape == (1, 5, *size)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_what_is_heard_of_a_fixed_encoder_is_of_all_images() -> None:
    """It sees one image at a time, unless somebody listens to its layers."""
    model = small(frozen=True, random=True)
    assert model.encoder.fixed
    images = torch.rand(3, 3, 64, 64)
    with record(model, "encoder.layers.0.tokens") as together:
        logits = model(images)
    for index in range(3):
        with record(model, "encoder.layers.0.tokens") as alone:
            model(images[index : index + 1])
        heard = together["encoder.layers.0.tokens"]
        assert len(heard) == 3
        torch.testing.assert_close(heard[index], alone["encoder.layers.0.tokens"][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(images), logits, atol=1e-5, rtol=1e-5)


def test_padding_is_zero_after_normalisation() -> None:
    model = small(normalization="deit")
    image = torch.rand(1, 3, 50, 40)
    padded = (model.mean / 255).expand(1, 3, 64, 48).clone()
    padded[..., :50, :40] = image
    torch.testing.assert_close(model(image), model(padded)[..., :50, :40], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(3, 64, 64), r"shape \(B, 3, H, W\); these have shape \(3, 64, 64\)"),
        (torch.rand(1, 4, 64, 64), r"shape \(1, 4, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), "these are torch.int64"),
    ],
)
def test_wrong_input(image: torch.Tensor, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        small()(image)


def test_palette_is_distinct() -> None:
    assert len(set(distinct_palette(254))) == 254
    assert small().palette == distinct_palette(5)


def test_record_names_what_there_is() -> None:
    model = small()
    with record(model, "decoder.layers.*.tokens", "encoder.layers.0.attention") as heard:
        model(torch.rand(1, 3, 64, 64))
    assert {key: tuple(value.shape) for key, value in heard.items()} == {
        "decoder.layers.0.tokens": (1, 21, 48),
        "decoder.layers.1.tokens": (1, 21, 48),
        "decoder.layers.2.tokens": (1, 21, 48),
        "encoder.layers.0.attention": (1, 3, 17, 17),
    }
    missing = pytest.raises(
        ModelError, match=r"No activation is named 'decoder.blocks.0'; this model has: encoder.input"
    )
    with missing, record(model, "decoder.blocks.0"):
        pass


class TestInterventions:
    image = torch.rand(1, 3, 64, 64)

    def test_head_trans_changes_the_bases_but_not_the_model(self) -> None:
        model = small()
        altered = intervene(model, "head_trans", seed=3)
        assert not torch.allclose(altered.decoder.layers[0].bases, model.decoder.layers[0].bases)
        torch.testing.assert_close(altered(self.image), model(self.image), atol=1e-4, rtol=1e-4)

    def test_head_ortho_gives_orthonormal_rows_of_the_same_space(self) -> None:
        model = small()
        before, after = (each.decoder.layers[1].bases for each in (model, intervene(model, "head_ortho")))
        torch.testing.assert_close(after @ after.mT, torch.eye(16).expand(3, 16, 16), atol=1e-5, rtol=0)
        torch.testing.assert_close(before @ after.mT @ after, before, atol=1e-5, rtol=1e-4)

    def test_ortho_trans_mixes_heads_and_keeps_the_gram_matrix_of_all(self) -> None:
        model = small()
        altered = intervene(model, "ortho_trans")
        before, after = model.decoder.layers[0].basis, altered.decoder.layers[0].basis
        torch.testing.assert_close(after.T @ after, before.T @ before, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(altered(self.image), model(self.image), atol=1e-3)

    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_seeded_and_leaves_the_original_alone(self, operation: str) -> None:
        model = small()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        first, second, other = (intervene(model, operation, seed=seed).state_dict() for seed in (1, 1, 2))
        key = "decoder.layers.0.basis"
        assert torch.equal(first[key], second[key])
        assert torch.equal(first[key], other[key]) == (operation == "head_ortho")
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def test_only_the_layers_asked_for(self) -> None:
        model = small()
        altered = intervene(model, "ortho_trans", ["decoder.layers.1"])
        same = [
            torch.equal(a.basis, b.basis) for a, b in zip(model.decoder.layers, altered.decoder.layers, strict=True)
        ]
        assert same == [True, False, True]

    def test_errors(self) -> None:
        with pytest.raises(ModelError, match="Unknown intervention 'rotate': choose from head_ortho"):
            intervene(small(), "rotate")
        with pytest.raises(ModelError, match=r"no subspace layer 'decoder.layers.7': this model has decoder.layers.0"):
            intervene(small(), "head_ortho", ["decoder.layers.7"])
        with pytest.raises(ModelError, match="no subspace attention"):
            intervene(small(SegmenterLinearConfig()), "head_ortho")
        with pytest.raises(ModelError, match="dimension 100 exceeds the width 48"):
            intervene(small(DepictSAConfig()), "head_ortho")
        model = small()
        with torch.no_grad():
            model.decoder.layers[0].basis[1] = model.decoder.layers[0].basis[0]
        with pytest.raises(ModelError, match="rank deficient"):
            intervene(model, "head_ortho")


class TestCreateModel:
    def test_overrides_nested_and_dotted(self) -> None:
        model = whitebox.create_model(
            "depict-ca-tiny", 3, encoder={"depth": 1, "image_size": 32}, **{"decoder.cross_layers": 2}
        )
        assert (model.encoder.depth, len(model.decoder.cross_layers), model.num_classes) == (1, 2, 3)
        assert model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 3, 32, 32)

    def test_unknown_names(self) -> None:
        with pytest.raises(whitebox.WhiteboxError, match=r"Unknown model 'depict-sa-tinny'; did you mean"):
            whitebox.create_model("depict-sa-tinny", 3)
        with pytest.raises(whitebox.WhiteboxError, match=r"Unknown key 'decoder.layer'; did you mean 'decoder.layers'"):
            whitebox.create_model("depict-sa-tiny", 3, decoder={"layer": 2})


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [
        ("vit", [(10 - 127.5) / 127.5, (20 - 127.5) / 127.5, (30 - 127.5) / 127.5]),
        ("deit", [(10 - 123.68) / 58.4, (20 - 116.28) / 57.12, (30 - 103.53) / 57.38]),
    ],
)
def test_pixels_are_normalised_channel_by_channel(normalization: str, expected: list[float]) -> None:
    """Mean and standard deviation of red, green and blue, as the official configurations of ViT and DeiT have them."""
    model = small(normalization=normalization)
    pixels = torch.tensor([10, 20, 30], dtype=torch.uint8)[None, :, None, None]
    for image in (pixels, pixels.float() / 255):
        assert model.normalise(image).flatten().tolist() == pytest.approx(expected, rel=1e-5)
