"""SegViT equals the released code: layers, masks, class logits, scores, losses and gradients (segvit_sed vectors).

Largest differences measured, relative to the largest value (torch 2.15, 1 thread): forward 9e-7, gradients 8e-7.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import whitebox
from whitebox.config import OptimConfig
from whitebox.engine.optimisation import build_optimizer, learning_rate
from whitebox.errors import ConfigError, ModelError
from whitebox.interop.segvit import head_tensors
from whitebox.models import Encoder, EncoderConfig, Segmentor, build, record
from whitebox.models.decoders.base import Prediction, class_scores
from whitebox.models.decoders.depict_sa import DepictSAConfig
from whitebox.models.decoders.segvit import QueryLayer, SegViT, SegViTConfig, SegViTShrunk, SegViTShrunkConfig
from whitebox.models.encoder import MMSEG_NAMES, shrunk_block
from whitebox.models.losses import ATMLoss, CrossEntropy
from whitebox.models.weights import renamed

LIMIT, GRADIENT_LIMIT = 2e-5, 1e-4  # of the largest value


class Vectors:
    """One case: ``io`` tensors, official ``weights``, and what the json says."""

    def __init__(self, shared: Path, case: str) -> None:
        folder = shared / "golden" / "segvit_sed"
        self.facts: dict[str, Any] = json.loads((folder / f"{case}.json").read_text())
        self.io = load_file(folder / f"{case}.io.safetensors")
        weights = folder / f"{case}.weights.safetensors"
        self.weights = load_file(weights) if weights.is_file() else {}

    def inputs(self, name: str = "x") -> list[Tensor]:
        """``in.x0``, ``in.x1``, ... as tokens, (B, N, D)."""
        found = [self.io[f"in.{name}{index}"] for index in range(sum(key.startswith(f"in.{name}") for key in self.io))]
        return [tokens.flatten(2).transpose(1, 2) if tokens.dim() == 4 else tokens for tokens in found]


@pytest.fixture
def vectors(shared: Path) -> Callable[[str], Vectors]:
    return lambda case: Vectors(shared, case)


def assert_near(found: Tensor, expected: Tensor, limit: float = LIMIT) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= limit * expected.abs().max()


def load(module: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """Official tensors of a head."""
    module.load_state_dict(head_tensors(weights))


# --- encoder ---------------------------------------------------------------------------------------------------------


def encoder(**options: object) -> Encoder:
    settings = {"width": 32, "heads": 4, "image_size": 64, "norm_eps": 1e-6, "positions": "mmseg", "final_norm": False}
    return Encoder(EncoderConfig(**{**settings, "class_token": False, **options})).eval()


def load_encoder(module: Encoder, weights: dict[str, Tensor]) -> None:
    module.vit.load_state_dict({renamed(key, MMSEG_NAMES): value for key, value in weights.items()})


def test_positions_are_resampled(vectors: Callable[[str], Vectors]) -> None:
    given = vectors("segvit_pos_embed_resize")
    module = encoder(depth=1)
    assert_near(module._resample(given.io["in.pos_embed"], (3, 3), (4, 4), 1), given.io["out.pos_embed"])
    square = torch.randn(1, 17, 32)
    assert not torch.equal(module._resample(square, (4, 4), (2, 8), 1), square)  # though the number is the same
    assert torch.equal(module._resample(square, (4, 4), (4, 4), 1), square)


@torch.inference_mode()
def test_shrunk_encoder(vectors: Callable[[str], Vectors]) -> None:
    given = vectors("segvit_vit_shrink")
    module = encoder(depth=5, shrink=2)
    load_encoder(module, given.weights)
    tokens, grids = module.intermediate(given.io["in.x"], (1, 4))
    assert grids == [(4, 4), (2, 2)]
    for found, name in zip(tokens, ("out.0", "out.1"), strict=True):
        assert_near(found, given.io[name])


@torch.inference_mode()
def test_shrinking_with_a_class_token_loses_a_patch_in_the_released_code(vectors: Callable[[str], Vectors]) -> None:
    """Its class token ends before the block that shrinks, and in the end the first patch is taken for it.

    No config does this, and ours refuses to; but the blocks, put together as there, give the same.
    """
    given = vectors("segvit_vit_shrink_clsquirk")
    module = encoder(depth=5, class_token=True)
    load_encoder(module, vectors("segvit_vit_shrink").weights)
    (before,), _ = module.intermediate(given.io["in.x"], (1,), class_tokens=True)
    assert_near(before[:, 1:], given.io["out.0"])
    after = shrunk_block(module.vit.blocks[2], before[:, 1:], torch.tensor([0, 2, 8, 10]))
    for block in module.vit.blocks[3:]:
        after = block(after)
    assert_near(after[:, 1:], given.io["out.1"])


# --- decoders --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_attention_to_mask(vectors: Callable[[str], Vectors]) -> None:
    given = vectors("segvit_attention")
    layer = QueryLayer(32, 4, dropout=0.1).eval()
    for name in ("q", "k", "v", "proj"):
        getattr(layer, name).weight.copy_(given.weights[f"{name}.weight"])
        getattr(layer, name).bias.copy_(given.weights[f"{name}.bias"])
    read, masks = layer.read(given.io["in.xq"], given.io["in.xk"], with_masks=True)
    assert_near(read.transpose(0, 1), given.io["out.x"])
    assert_near(masks, given.io["out.attn"])


@torch.inference_mode()
def test_layers(vectors: Callable[[str], Vectors]) -> None:
    given = vectors("segvit_tpn_decoder")
    layers = torch.nn.ModuleList(QueryLayer(32, 4, dropout=0.1) for _ in range(2)).eval()
    load(
        torch.nn.ModuleDict({"cross_layers": layers}),
        {f"decoder_1.{key}": value for key, value in given.weights.items()},
    )
    queries = given.io["in.xq"]
    for index, layer in enumerate(layers):
        queries, masks = layer(queries, given.io["in.xk"], with_masks=True)
        assert_near(queries.transpose(0, 1), given.io[f"out.layer{index}.q"])
        assert_near(masks, given.io[f"out.layer{index}.attn"])
    assert_near(queries.transpose(0, 1), given.io["out.q"])
    assert_near(masks, given.io["out.attn"])


HEADS = ("proj", "mixed_res", "tokens_cls", "ignored_image")


def cascade(given: Vectors) -> tuple[SegViT, list[Tensor], list[tuple[int, int]]]:
    kwargs, tokens = given.facts["kwargs"], given.inputs()
    config = SegViTConfig(
        encoder_layers=list(range(kwargs["use_stages"])),
        layers=kwargs["num_layers"],
        width=kwargs["embed_dims"],
        heads=kwargs["num_heads"],
        dropout=0.0,
        project=kwargs.get("use_proj", True),
    )
    decoder = SegViT(config, kwargs["in_channels"], kwargs["num_classes"])
    load(decoder, given.weights)
    return decoder, tokens, [(int(z.shape[1] ** 0.5),) * 2 for z in tokens]


def shrunk(given: Vectors) -> tuple[SegViTShrunk, list[Tensor], list[tuple[int, int]]]:
    kwargs, tokens = given.facts["kwargs"], given.inputs()
    config = SegViTShrunkConfig(
        encoder_layers=[0, 1],
        layers=kwargs["num_layers"],
        width=kwargs["embed_dims"],
        heads=kwargs["num_heads"],
        dropout=0.0,
        grid=6,
    )
    decoder = SegViTShrunk(config, kwargs["in_channels"], kwargs["num_classes"])
    load(decoder, given.weights)
    return decoder, tokens, [(6, 6), (3, 3)]


def terms(prediction: Prediction, labels: Tensor, loss: ATMLoss, patch: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and its terms by their released names."""
    counts = loss.counts(labels, prediction.masks_BKhw.shape[1])
    sums = loss(prediction, labels, patch)
    found = {}
    for stage in range(len(sums)):
        for term, name in enumerate(("loss_ce", "loss_mask", "loss_dice")):
            alone = torch.zeros_like(sums)
            alone[stage, term] = sums[stage, term]
            found[name if stage == 0 else f"{name}_{stage - 1}"] = loss.mean(alone, counts)
    return loss.mean(sums, counts), found


@pytest.mark.parametrize("case", [*(f"segvit_atm_head_{name}" for name in HEADS), "segvit_tpn_atm_head"])
def test_heads_losses_and_gradients(case: str, vectors: Callable[[str], Vectors]) -> None:
    given = vectors(case)
    decoder, tokens, grids = shrunk(given) if "tpn" in case else cascade(given)
    for each in tokens:
        each.requires_grad_()
    with record(decoder, "*") as heard:
        prediction = decoder.predict(tokens, grids)
    if "tpn" in case:
        upsampled = heard["layers.3.tokens"].transpose(1, 2).unflatten(2, (6, 6))
        assert_near(upsampled, given.io["mid.upsampled_queries"])
    patch = given.facts["kwargs"]["img_size"] // grids[0][0]
    size = (given.facts["kwargs"]["img_size"],) * 2
    masks = F.interpolate(prediction.masks_BKhw, size=size, mode="bilinear")
    assert_near(masks, given.io["out.pred_masks"])
    assert_near(prediction.classes_BKC, given.io["out.pred_logits"])
    scores = class_scores(masks.flatten(2).transpose(1, 2), prediction.shares_BKK).transpose(1, 2).unflatten(2, size)
    assert_near(scores, given.io["out.pred"])
    assert len(prediction.earlier) == sum(key.endswith("pred_logits") for key in given.io) - 1
    for index, earlier in enumerate(prediction.earlier):
        assert_near(earlier.masks_BKhw, given.io[f"out.aux{index}.pred_masks"])
        assert_near(earlier.classes_BKC, given.io[f"out.aux{index}.pred_logits"])

    total, found = terms(prediction, given.io["in.label"], ATMLoss(), patch)
    assert set(found) == {key.removeprefix("loss.") for key in given.io if key.startswith("loss.loss_")}
    for name, value in found.items():
        assert_near(value, given.io[f"loss.{name}"])
    assert_near(total, given.io["loss.total"])
    total.backward()
    for index, each in enumerate(tokens):
        expected = given.io[f"grad.in.x{index}"]
        expected = expected.flatten(2).transpose(1, 2) if expected.dim() == 4 else expected
        assert_near(each.grad, expected, GRADIENT_LIMIT)
    known = {key.removeprefix("grad.param."): value for key, value in given.io.items() if key.startswith("grad.param.")}
    every = {name: known.get(name, torch.full_like(value, torch.nan)) for name, value in given.weights.items()}
    gradients = {name: value for name, value in head_tensors(every).items() if not value.isnan().any()}
    assert len(gradients) >= len(known)
    for name, parameter in decoder.named_parameters():
        if name in gradients:
            assert_near(parameter.grad, gradients[name], GRADIENT_LIMIT)


@pytest.mark.parametrize("case", ["segvit_atm_loss_default", "segvit_atm_loss_weights"])
def test_loss_terms_and_gradients(case: str, vectors: Callable[[str], Vectors]) -> None:
    """The released code drops the terms of stages beyond ``dec_layers``; ours takes what it is given."""
    given = vectors(case)
    kwargs = given.facts["kwargs"]
    stages = kwargs["dec_layers"] - 1
    names = ["", *(f"aux{index}." for index in range(stages))]
    said = {
        name: [given.io[f"in.{name}pred_{kind}"].requires_grad_() for kind in ("masks", "logits")] for name in names
    }
    prediction = Prediction(*said[""], tuple(Prediction(*said[name]) for name in names[1:]))
    weights = (kwargs.get("cls_weight", 1.0), kwargs.get("mask_weight", 20.0), kwargs.get("dice_weight", 1.0))
    classification, focal, dice = (kwargs["loss_weight"] * weight for weight in weights)
    loss = ATMLoss(classification=classification, focal=focal, dice=dice)
    total, found = terms(prediction, given.io["in.label"], loss, patch=1)
    assert loss.counts(given.io["in.label"], kwargs["num_classes"])[0] == given.facts["extra"]["num_masks"]
    for name, value in found.items():
        assert_near(value, given.io[f"loss.{name}"])
    assert_near(total, given.io["loss.total"])
    raw = terms(prediction, given.io["in.label"], ATMLoss(focal=1.0), patch=1)[1]
    for name, value in raw.items():
        assert_near(value, given.io[f"raw.{name}"])
    total.backward()
    for name in names:
        for each, kind in zip(said[name], ("masks", "logits"), strict=True):
            assert_near(each.grad, given.io[f"grad.{name}pred_{kind}"], GRADIENT_LIMIT)


# --- published numbers -----------------------------------------------------------------------------------------------


SIZES = [  # model, classes, px, published GMACs, parameters of encoder and decoder (segvit_sed.md, A10)
    ("segvit-base", 150, 512, 120.9, 86_433_024, 22_303_255),
    ("segvit-large", 150, 640, 637.9, 304_737_280, 39_568_023),
    ("segvit-large-shrunk", 150, 640, 373.5, 304_737_280, 39_861_399),
    ("segvit-large", 171, 512, 383.9, 304_147_456, 39_589_548),
    ("segvit-large-shrunk", 60, 480, 186.9, 304_020_480, 39_410_749),
]


@pytest.mark.parametrize(("name", "classes", "px", "macs", "encoder", "decoder"), SIZES)
def test_published_sizes(name: str, classes: int, px: int, macs: float, encoder: int, decoder: int) -> None:
    """Multiply-adds of the whole model, semantic inference included, and the parameters of the released modules."""
    with torch.device("meta"):
        model = whitebox.create_model(name, classes, encoder={"image_size": px}).eval()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(torch.empty(1, 3, px, px))
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, rel=0.005)
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == encoder
    assert sum(parameter.numel() for parameter in model.decoder.parameters()) == decoder


@pytest.mark.parametrize(
    ("name", "case", "px"),
    [
        ("segvit-base", "segvit_vit-b16_ade20k_512", 512),
        ("segvit-large-shrunk", "segvit_vit-l16_shrink8_tpnatm_ade20k_640", 640),
    ],
)
def test_released_heads_have_our_tensors(name: str, case: str, px: int, shared: Path) -> None:
    shapes = json.loads((shared / "golden" / "segvit_sed" / "real_configs.json").read_text())[case]["state_dict_shapes"]
    with torch.device("meta"):
        model = whitebox.create_model(name, 150, encoder={"image_size": px})
        released = head_tensors({key: torch.empty(shape) for key, shape in shapes.items()})
    ours = model.decoder.state_dict()
    assert {key: value.shape for key, value in released.items()} == {key: value.shape for key, value in ours.items()}


def test_parameter_groups(shared: Path) -> None:
    """Rate and decay of every parameter; the class token has none, as it never gets a gradient."""
    folder = shared / "golden" / "segvit_sed"
    expected = json.loads((folder / "segvit_optimizer_groups.json").read_text())
    wanted: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, value in expected["groups"].items():
        part, _, rest = name.partition(".")
        settings = torch.tensor([value["lr"], value["weight_decay"]])
        if part == "backbone":
            wanted[f"encoder.vit.{renamed(rest, MMSEG_NAMES)}"] = settings
        else:
            head[rest] = settings
    wanted |= {f"decoder.{name}": settings for name, settings in head_tensors(head).items()}
    encoder_config = EncoderConfig(width=64, heads=2, depth=4, class_token=False, final_norm=False, positions="mmseg")
    model = build(encoder_config, SegViTConfig(encoder_layers=[1, 2, 3], layers=1), 5)
    optim = OptimConfig(
        name="adamw", lr=2e-5, min_lr=0, weight_decay=0.01, clip_grad=35, decoder_lr=10, decay_norms=False
    )
    optimizer = build_optimizer(model, optim)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == tuple(expected["betas"])
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert wanted.keys() - found.keys() == {"encoder.vit.cls_token"}
    for name, (rate, decay) in found.items():
        assert wanted[name].flatten().tolist() == pytest.approx([rate, decay]), name


@pytest.mark.parametrize(
    ("case", "steps", "power"),
    [
        ("segvit_ade_160k_power1_base2e-5", 160_000, 1.0),
        ("segvit_pc_80k_power1_base2e-5", 80_000, 1.0),
        ("segvit_coco_80k_power2_base2e-5", 80_000, 2.0),
    ],
)
def test_schedules(case: str, steps: int, power: float, shared: Path) -> None:
    expected = json.loads((shared / "golden" / "segvit_sed" / "lr_schedules.json").read_text())
    optim = OptimConfig(lr=2e-5, min_lr=0.0, power=power, warmup_steps=1500, warmup_ratio=1e-6)
    found = [learning_rate(step, steps, optim) for step in expected["iters"]]
    assert found == pytest.approx(expected[case], rel=1e-9)


# --- what the released code cannot do, and what nobody can ----------------------------------------------------------


def small(decoder: object, **encoder: object) -> Segmentor:
    torch.manual_seed(0)
    settings = {"image_size": 64, "width": 24, "depth": 3, "heads": 2, "positions": "mmseg", "class_token": False}
    return build(EncoderConfig(**{**settings, "final_norm": False, **encoder}), decoder, 5).eval()


CASCADE = SegViTConfig(encoder_layers=[0, 2], layers=1)
SHRUNK = SegViTShrunkConfig(encoder_layers=[0, 2], layers=1)


@pytest.mark.parametrize(("decoder", "shrink"), [(CASCADE, None), (SHRUNK, 1), (CASCADE, 1)])
@pytest.mark.parametrize("size", [(64, 64), (32, 80), (16, 48), (50, 17)])
@torch.inference_mode()
def test_any_image(decoder: object, shrink: int | None, size: tuple[int, int]) -> None:
    """Rectangular, an odd number of tokens, a single row of patches, no multiple of the patch."""
    model = small(decoder, shrink=shrink)
    scores = model(torch.rand(2, 3, *size))
    assert scores.shape == (2, 5, *size)
    assert scores.isfinite().all() and (scores >= 0).all()
    alone = model(torch.zeros(1, 3, *size))
    torch.testing.assert_close(model(torch.zeros(2, 3, *size))[1:], alone)


def test_patch_queries_are_those_of_the_encoders_grid() -> None:
    model = small(SHRUNK, shrink=1)
    assert model.decoder.queries.shape == (1, 16, 12)
    assert small(replace(SHRUNK, grid=3), shrink=1).decoder.queries.shape == (1, 9, 12)
    with torch.inference_mode(), record(model, "decoder.input") as heard:
        model(torch.zeros(1, 3, 64, 64))
        assert torch.equal(heard["decoder.input"], model.decoder.queries)
        model(torch.zeros(1, 3, 32, 96))
    grid = model.decoder.queries.transpose(1, 2).unflatten(2, (4, 4))
    expected = F.interpolate(grid, size=(2, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(heard["decoder.input"].transpose(1, 2).unflatten(2, (2, 6)), expected)


def test_class_tokens_take_part_but_have_no_mask() -> None:
    """With an encoder that keeps its class token, only patches are handed over; given by hand it is read."""
    model = small(CASCADE, class_token=True)
    assert model.masks(torch.zeros(1, 3, 32, 48)).shape == (1, 5, 2, 3)
    tokens = [torch.randn(1, 7, 24) for _ in range(2)]
    with_token = model.decoder(tokens, [(2, 3)] * 2)
    assert with_token.shape == (1, 5, 2, 3)
    assert not torch.allclose(with_token, model.decoder([each[:, 1:] for each in tokens], [(2, 3)] * 2))


def test_named_activations() -> None:
    model = small(SHRUNK, shrink=1)
    with torch.inference_mode(), record(model, "decoder.*", "encoder.layers.*") as heard:
        said = model.predict(torch.rand(1, 3, 48, 48))
    assert {name: tuple(value.shape) for name, value in heard.items() if "attention" not in name} == {
        "encoder.layers.0.tokens": (1, 9, 24),
        "encoder.layers.1.tokens": (1, 4, 24),
        "encoder.layers.2.tokens": (1, 4, 24),
        "decoder.memories.0.tokens": (1, 9, 12),
        "decoder.memories.1.tokens": (1, 4, 12),
        "decoder.input": (1, 9, 12),
        **{f"decoder.layers.{index}.{name}": (1, 9, 12) for index in range(2) for name in ("tokens", "update")},
        "decoder.layers.0.masks": (1, 9, 9),
        "decoder.layers.1.masks": (1, 9, 4),
        **{f"decoder.cross_layers.0.{name}": (1, 5, 12) for name in ("tokens", "update")},
        "decoder.cross_layers.0.masks": (1, 5, 9),
    }
    assert torch.equal(heard["decoder.cross_layers.0.masks"].unflatten(2, (3, 3)), said.masks_BKhw)
    for name in ("encoder.layers.1.attention", "decoder.layers.1.attention", "decoder.cross_layers.0.attention"):
        torch.testing.assert_close(heard[name].sum(-1), torch.ones(heard[name].shape[:-1]))
    assert heard["encoder.layers.1.attention"].shape == (1, 2, 4, 9)
    # the logits behind the weights: softmax forgets a number a row, no more
    attention, masks = heard["decoder.cross_layers.0.attention"][:, 0], heard["decoder.cross_layers.0.masks"]
    torch.testing.assert_close(masks.softmax(-1), attention)  # of a single head


@torch.no_grad()
def test_where_training_starts() -> None:
    model = small(SHRUNK, shrink=1, width=64)
    layers = [*model.decoder.layers, *model.decoder.cross_layers]
    for layer in layers:
        bound = (6 / (4 * 32)) ** 0.5
        assert layer.self_attention.qkv.weight.abs().max() == pytest.approx(bound, rel=0.01)
        assert not layer.self_attention.qkv.bias.any()
        assert layer.proj.weight.std() == pytest.approx(0.02, rel=0.1)
    assert model.decoder.layers[0].q.weight.abs().max() == pytest.approx(bound, rel=0.02)
    assert model.decoder.cross_layers[0].q.weight.std() == pytest.approx(0.02, rel=0.1)
    assert model.decoder.queries.std() == pytest.approx(1, rel=0.1)


def test_what_never_gets_a_gradient_is_not_trained() -> None:
    """So every parameter that is trained has one, as training on many processes needs."""
    model = small(SegViTConfig(encoder_layers=[0, 1], layers=1), final_norm=True, class_token=True).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    labels = torch.zeros(2, 64, 64, dtype=torch.uint8)
    labels[:, 32:] = 3
    for loss in (ATMLoss(), CrossEntropy()):
        model.loss = loss
        model.zero_grad()
        model(torch.rand(2, 3, 64, 64), labels).sum().backward()
        idle = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
        assert idle == []
    frozen = {name.split(".")[2] for name, each in model.named_parameters() if not each.requires_grad}
    assert frozen == {"blocks", "norm", "head"}
    assert not any(each.requires_grad for each in model.encoder.vit.blocks[2].parameters())


def test_bad_input() -> None:
    with pytest.raises(ModelError, match=r"encoder_layers=\[1, 3\] asks for block 3, but the encoder has 3 \(0 to 2\)"):
        small(SegViTConfig(encoder_layers=[1, 3]))
    for layers in ([], [1, 1], [2, 1], [-1, 0]):
        with pytest.raises(ModelError, match=r"decoder.encoder_layers=.* is impossible: name blocks once, in rising"):
            small(SegViTConfig(encoder_layers=layers))
    with pytest.raises(ModelError, match=r"encoder.shrink=3 is outside the encoder, which has 3 blocks \(0 to 2\)"):
        small(SHRUNK, shrink=3)
    with pytest.raises(ModelError, match=r"encoder.shrink=-1 is outside the encoder"):
        small(SHRUNK, shrink=-1)
    for decoder, shrink in ((SegViTShrunkConfig(encoder_layers=[1, 2]), 1), (DepictSAConfig(head_dim=4), 0)):
        with pytest.raises(
            ModelError, match=rf"encoder.shrink={shrink} leaves a quarter of the patches.*segvit-shrunk"
        ):
            small(decoder, shrink=shrink)
    with pytest.raises(ModelError, match=r"decoder.heads=5 is impossible: it must divide the decoder's width 12"):
        small(SegViTConfig(encoder_layers=[0], heads=5))
    with pytest.raises(
        ModelError, match=r"decoder.width=8 is impossible: with decoder.project=false it is the encoder's"
    ):
        small(SegViTConfig(encoder_layers=[0], width=8, project=False))
    with pytest.raises(ModelError, match=r"takes the tokens of 2 encoder layers as a list, and a list of their grids"):
        small(CASCADE).decoder(torch.zeros(1, 4, 24), (2, 2))
    for options in ({"layers": 0}, {"width": -1}, {"dropout": 1.0}, {"grid": 0}):
        with pytest.raises(ConfigError, match=rf"^decoder.{next(iter(options))}=.* is impossible"):
            SegViTShrunkConfig(**options)
    model = small(CASCADE)
    for loss in (ATMLoss(), CrossEntropy()):
        model.loss = loss
        with pytest.raises(ModelError, match=r"Labels of shape \(1, 64, 80\) do not fit 1 images of 4 x 4 patches"):
            model(torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 80))
        with pytest.raises(IndexError, match="Target 5 is out of bounds"):
            model(torch.rand(1, 3, 64, 64), torch.full((1, 64, 64), 5))
