"""Levels, targets, and the random numbers of noise on parameters and photos."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_runs import CLOSED
from torch import nn

from analysis.maths.levels import MAX_LEVELS, TARGETS, parse_levels
from analysis.maths.perturbation import (
    ChangedImages,
    PixelNoise,
    perturbed,
    standard_normal,
    target_parameters,
)
from whitebox.config import resolve
from whitebox.data import build_dataset
from whitebox.errors import ConfigError
from whitebox.models import Segmentor, build

SMALL = {"encoder.width": 24, "encoder.depth": 2, "encoder.heads": 2, "encoder.image_size": 32}


def small(name: str) -> Segmentor:
    torch.manual_seed(0)
    overrides = {**SMALL, **({"encoder.depth": 12} if name.startswith("segvit") else {})}
    config = resolve(name, "shapes", overrides)
    return build(config.encoder, config.decoder, 5).eval()


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("0.1:0.5", (0.1, 0.2, 0.3, 0.4, 0.5)),
        ("0:0.3", (0.1, 0.2, 0.3)),
        ("0.02:0.1:0.02", (0.02, 0.04, 0.06, 0.08, 0.1)),
        ("0.1:0.35", (0.1, 0.2, 0.3)),
        ("0.001:1:log4", (0.001, 0.01, 0.1, 1.0)),
        ("1e-2:1e-1:log3", (0.01, 0.0316227766, 0.1)),
        ("0.3,0.1,0.1,0", (0.1, 0.3)),
        ("0.25", (0.25,)),
        ("0.2:0.2", (0.2,)),
    ],
)
def test_levels(text: str, levels: tuple[float, ...]) -> None:
    assert parse_levels(text) == levels


def test_levels_are_those_of_the_papers_grid() -> None:
    levels = parse_levels("0.001:1:log13")
    assert len(levels) == 13 and levels[0] == 0.001 and levels[4] == 0.01 and levels[-1] == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a number"),
        ("0.1,", "'' is not a number"),
        ("a:b", "'a' is not a number"),
        ("-0.1:0.5", "'-0.1' is impossible"),
        ("nan", "'nan' is impossible"),
        ("0.1:nan", "'nan' is impossible"),
        ("0.1:inf", "'inf' is impossible"),
        ("1e5", "lies between 0 and 10000"),
        ("0.5:0.1", "is reversed"),
        ("0:0", "no noise above 0"),
        ("0,0", "no noise above 0"),
        ("0.1:0.5:0.1:0.1", "too many colons"),
        ("0.1:0.5:0", "a step of 0 never arrives"),
        ("0.1:0.5:-0.1", "'-0.1' is impossible"),
        ("0.001:0.05", "narrower than the step"),
        ("0:1:0.0001", "asks for 10000 levels"),
        ("0.001:1:log5000", "asks for 5000 levels"),
        ("0:1:log5", "needs 0 < START < STOP"),
        ("0.1:0.1:log5", "needs 0 < START < STOP"),
        ("0.1:1:log1", "and two levels"),
        ("0.1:1:log", "needs a number of levels"),
        ("0.1:1:log3.5", "needs a number of levels"),
        (",".join(map(str, range(1, MAX_LEVELS + 2))), f"asks for {MAX_LEVELS + 1} levels"),
    ],
)
def test_levels_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        parse_levels(text)
    assert str(refused.value).startswith("--noise ") and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", sorted(f"{name}-tiny" for name in CLOSED if name != "segvit-shrunk"))
def test_targets_of_every_decoder(name: str) -> None:
    model = small(name)
    everything, decoder, encoder = (set(target_parameters(model, target)) for target in ("all", "decoder", "encoder"))
    assert decoder == {f"decoder.{name}" for name, _ in model.decoder.named_parameters()}
    assert decoder | encoder == everything and not decoder & encoder
    attention = target_parameters(model, "attention")
    queries = target_parameters(model, "queries")
    if name == "segmenter-linear-tiny":
        assert not attention and not queries
        return
    assert set(queries) == {"decoder.class_embeddings"}
    assert set(attention) < decoder and all(value.dim() == 2 for value in attention.values())
    assert not any("mlp" in key or "norm" in key or "dictionary" in key or "bias" in key for key in attention)


def test_attention_targets_by_name() -> None:
    assert list(target_parameters(small("depict-ca-tiny"), "attention")) == [
        *(f"decoder.layers.{layer}.basis" for layer in range(3)),
        *(f"decoder.cross_layers.{layer}.basis" for layer in range(3)),
    ]
    assert list(target_parameters(small("segmenter-mask-tiny"), "attention")) == [
        f"decoder.layers.{layer}.attn.{part}.weight" for layer in range(2) for part in ("qkv", "proj")
    ]


def test_norms_head_matrices_and_step_sizes_by_name() -> None:
    def found(model: Segmentor, target: str) -> list[str]:
        return [name.removeprefix("decoder.") for name in target_parameters(model, target) if "s.1." not in name]

    depict, crate, cbsa = small("depict-ca-tiny"), small("crate-tiny"), small("cbsa-tiny")
    head = [f"{norm}.{part}" for norm in ("mask_norm", "norm", "class_norm") for part in ("weight", "bias")]
    assert found(depict, "head") == head
    layers = [f"{kind}.{n}" for kind in ("layers", "cross_layers") for n in (0, 2)]
    assert sorted(found(depict, "norms")) == sorted(
        [*head, *(f"{layer}.norm.{part}" for layer in layers for part in ("weight", "bias"))]
    )
    assert found(depict, "matrices") == [f"{layer}.basis" for layer in layers]
    assert found(depict, "step-sizes") == [f"{layer}.step_size" for layer in layers]
    steps = [f"layers.{n}.{name}" for n in (0, 2) for name in ("step_size", "representative_step")]
    assert found(cbsa, "step-sizes") == steps  # (H, 1, 1), no matrices
    assert found(cbsa, "matrices") == [f"layers.{n}.{name}" for n in (0, 2) for name in ("basis", "output.weight")]
    assert not found(crate, "step-sizes")
    assert {name.split(".")[2] for name in found(crate, "matrices")} == {"basis", "dictionary", "output"}
    linear = small("segmenter-linear-tiny")
    assert found(linear, "head") == ["head.weight", "head.bias"]
    assert not found(linear, "norms") + found(linear, "matrices") + found(linear, "step-sizes")
    assert {"proj_patch", "proj_class"} < set(found(small("segmenter-mask-tiny"), "head"))


def test_unknown_targets() -> None:
    for target in ("tail", "input"):
        with pytest.raises(ConfigError, match=r"no parameters called .* choose from decoder, attention"):
            target_parameters(nn.Linear(2, 2), target)
    parts = {"attention", "queries", "norms", "matrices", "step-sizes", "head"}
    assert set(TARGETS) == {"decoder", "encoder", "all", "input"} | parts


def test_draws_depend_on_their_key_alone() -> None:
    one = standard_normal((3, 5), 0, 1, "decoder.basis")
    np.random.default_rng(0).standard_normal(7)
    torch.randn(3)
    np.testing.assert_array_equal(standard_normal((3, 5), 0, 1, "decoder.basis"), one)
    for other in ((1, 1, "decoder.basis"), (0, 2, "decoder.basis"), (0, 1, "decoder.basis2")):
        assert not np.isclose(standard_normal((3, 5), *other), one).any()
    many = standard_normal((100_000,), "x")
    assert many.dtype == np.float32 and abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02


def test_noise_is_added_to_the_saved_parameters_and_taken_back() -> None:
    model = small("depict-sa-tiny")
    before = copy.deepcopy(model.state_dict())
    parameters = target_parameters(model, "decoder")
    seen = {}
    for sigma, sign in ((0.25, 1), (0.5, 1), (0.25, -1)):
        with perturbed(parameters, sigma, seed=3, draw=1, sign=sign):
            seen[sigma, sign] = {name: value.detach().clone() for name, value in parameters.items()}
            torch.testing.assert_close(model.state_dict()["encoder.vit.pos_embed"], before["encoder.vit.pos_embed"])
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, n in (
        (name, torch.from_numpy(standard_normal(tuple(p.shape), 3, 1, name))) for name, p in parameters.items()
    ):
        for (sigma, sign), values in seen.items():
            assert torch.equal(values[name], before[name] + sign * sigma * n)


def test_parameters_come_back_after_an_error() -> None:
    linear = nn.Linear(3, 2)
    before = linear.weight.detach().clone()

    def stop() -> None:
        assert not torch.equal(linear.weight, before)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), perturbed(dict(linear.named_parameters()), 1.0, seed=0, draw=0):
        stop()
    assert torch.equal(linear.weight, before)


def test_no_noise_changes_no_bit() -> None:
    model = small("depict-sa-tiny")
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        for relative in (False, True):
            with perturbed(target_parameters(model, "all"), 0.0, seed=0, draw=0, relative=relative):
                assert torch.equal(model(images), expected)


def test_relative_noise_is_in_units_of_each_tensor() -> None:
    linear = nn.Linear(200, 300)
    with torch.no_grad():
        linear.weight.mul_(50)
        linear.bias.zero_()
    weight = linear.weight.detach().clone()
    rms = weight.square().mean().sqrt()
    with perturbed(dict(linear.named_parameters()), 0.1, seed=0, draw=0, relative=True):
        assert torch.equal(linear.bias, torch.zeros(300))  # without a scale of its own there is nothing to add
        assert float((linear.weight.detach() - weight).std() / rms) == pytest.approx(0.1, rel=0.02)


def test_the_variance_of_a_linear_heads_logits_is_known() -> None:
    """Logits W z + b under noise on W and b: their mean is W z + b, their variance sigma^2 (|z|^2 + 1)."""
    model = small("segmenter-linear-tiny")
    z_BND = torch.randn(1, 4, 24, generator=torch.Generator().manual_seed(0))
    sigma, draws = 0.3, 1000
    with torch.no_grad():
        clean = model.decoder(z_BND, (2, 2))
        found = []
        for draw in range(draws):
            with perturbed(target_parameters(model, "decoder"), sigma, seed=0, draw=draw):
                found.append(model.decoder(z_BND, (2, 2)))
    logits = torch.stack(found).double()
    expected = sigma**2 * (z_BND[0].double().square().sum(-1) + 1).view(1, 1, 2, 2).expand(1, 5, 2, 2)
    # the variance of n normal numbers has the relative standard error sqrt(2 / n), 4.5 %; none of 20 is beyond 4 of it
    assert ((logits.var(0) - expected).abs() / expected).max() < 4 * (2 / draws) ** 0.5
    assert ((logits.mean(0) - clean).abs() / expected.sqrt()).max() < 4 / draws**0.5


def test_noise_on_photos() -> None:
    image = np.full((60, 80, 3), 128, np.uint8)
    image[0, 0] = (0, 255, 7)
    np.testing.assert_array_equal(PixelNoise(0.0, "camvid", 0, 0)(image, "a"), image)
    one, two, twin = (PixelNoise(s, "camvid", 0, 0, sign)(image, "a") for s, sign in ((0.05, 1), (0.1, 1), (0.1, -1)))
    assert one.dtype == np.uint8 and one.shape == image.shape
    change = (two.astype(float) - image)[1:] / 255
    assert abs(change.mean()) < 0.005 and change.std() == pytest.approx(0.1, rel=0.03)
    np.testing.assert_allclose((one.astype(float) - image)[1:] * 2, (two.astype(float) - image)[1:], atol=1.5)
    np.testing.assert_allclose((twin.astype(float) - image)[1:], -(two.astype(float) - image)[1:], atol=1.01)
    strong = PixelNoise(10.0, "camvid", 0, 0)(image, "a")
    assert set(np.unique(strong)) >= {0, 255} and ((strong == 0) | (strong == 255)).mean() > 0.9
    for other in (PixelNoise(0.1, "ade20k", 0, 0), PixelNoise(0.1, "camvid", 1, 0), PixelNoise(0.1, "camvid", 0, 1)):
        assert (other(image, "a") != two).mean() > 0.8
    assert (PixelNoise(0.1, "camvid", 0, 0)(image, "b") != two).mean() > 0.8


def test_changed_images_keep_names_and_labels() -> None:
    config = resolve("depict-sa-tiny", "shapes", {"data.size": 32, "data.val_length": 3}).data
    dataset = build_dataset(config, "val", augment=False)
    changed = ChangedImages(dataset, PixelNoise(0.2, "shapes", 0, 0))
    assert len(changed) == 3 and changed.classes == dataset.classes and changed.ignore_index == 255
    last, first = changed[2], changed[0]  # in any order
    for index, sample in ((0, first), (2, last)):
        plain = dataset[index]
        assert sample.name == plain.name and torch.equal(sample.label, plain.label)
        assert sample.image.shape == plain.image.shape and not torch.equal(sample.image, plain.image)
    assert torch.equal(changed[2].image, last.image)


def test_relative_noise_is_in_units_of_the_root_mean_square() -> None:
    """LayerNorm's weights lie around 1: their root mean square is about 1 where their standard deviation is about 0."""
    norm = nn.LayerNorm(5)
    with torch.no_grad():
        norm.weight.fill_(-3.0)
        norm.bias.copy_(torch.tensor([1.0, 3.0, 1.0, 3.0, 5.0]))  # mean square 9
    before = {name: value.detach().clone() for name, value in norm.named_parameters()}
    with perturbed(dict(norm.named_parameters()), 0.1, seed=4, draw=2, sign=-1, relative=True):
        for name, value in norm.named_parameters():
            n = torch.from_numpy(standard_normal((5,), 4, 2, name))
            torch.testing.assert_close(value.detach(), before[name] - 0.3 * n)


def test_noisy_pixels_are_clipped_and_rounded_to_the_nearest_level() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    noisy = PixelNoise(0.2, "camvid", 1, 2)(image, "a").astype(float)
    exact = image + 255 * 0.2 * standard_normal(image.shape, 1, 2, "camvid", "a").astype(float)
    assert ((exact < -1) | (exact > 256)).mean() > 0.1
    assert np.abs(noisy - exact.clip(0, 255)).max() <= 0.5 + 1e-4
