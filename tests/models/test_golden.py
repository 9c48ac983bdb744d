"""Our models equal the official implementations: tokens, attention maps, masks, logits, training steps.

Largest differences measured over the whole set (torch 2.15, 1 thread): features 2.6e-6, masks 3.1e-5 (DEPICT-CA; 8.9e-6
others), logits 1.9e-5.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_vectors import CASES, difference, load_npz, real_checkpoint, sampled, vector_file

import whitebox
from whitebox.config import OptimConfig
from whitebox.engine.train import build_optimizer, learning_rate, summed_loss
from whitebox.models import Segmentor, intervene, record
from whitebox.models.attention import SubspaceAttention
from whitebox.models.decoders.segmenter_mask import SegmenterMask, SegmenterMaskConfig
from whitebox.models.interventions import orthonormal_rows

INPUTS = ("train", "rect", "pad", "small", "sametok")
REAL_CASES = ("depict_sa", "depict_ca", "segmenter_linear", "segmenter_mask")


def as_pixels(model: Segmentor, normalised: np.ndarray) -> torch.Tensor:
    """Undo the normalisation the vectors' inputs already have."""
    return (torch.from_numpy(normalised) * model.std + model.mean) / 255


def decode(model: Segmentor, normalised: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Features with class tokens, and mask logits, of a normalised input."""
    padded = model.pad(torch.from_numpy(normalised))
    grid = (padded.shape[-2] // model.encoder.patch_size, padded.shape[-1] // model.encoder.patch_size)
    tokens = model.encoder.tokens(padded)
    return tokens, model.decoder(tokens[:, model.encoder.prefix_tokens :], grid)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", INPUTS)
def test_features_masks_and_logits(case: str, size: str, golden: Path | None) -> None:
    vectors = load_npz(vector_file(golden, case, f"vectors_{size}.npz"))
    model = whitebox.load_model(vector_file(golden, case, "checkpoint.pth"))
    with torch.inference_mode():
        tokens, masks = decode(model, vectors["im"])
        logits = model(as_pixels(model, vectors["im"]))
    assert difference(tokens, vectors["feat"]) < 2e-5
    assert difference(masks, vectors["masks"]) < 1e-4
    expected, stride = sampled(vectors, "logits")
    assert difference(logits[..., ::stride, ::stride], expected) < 1e-4
    assert (logits.argmax(1).numpy() == vectors["argmax"]).mean() >= 0.999


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", ["train", "pad"])
@torch.inference_mode()
def test_every_layer(case: str, size: str, golden: Path | None) -> None:
    expected = load_npz(vector_file(golden, case, f"layers_{size}.npz"))
    model = whitebox.load_model(vector_file(golden, case, "checkpoint.pth"))
    first = load_npz(vector_file(golden, case, f"vectors_{size}.npz"))["im"][:1]
    with record(model, "*") as taps:
        decode(model, first)

    found = {"enc.L0.before": taps["encoder.input"]}
    for index in range(model.encoder.depth):
        found[f"enc.L{index}.attn"] = taps[f"encoder.layers.{index}.attention"]
        found[f"enc.L{index}.after"] = taps[f"encoder.layers.{index}.tokens"]
    if "decoder.cosine" in taps:
        found["dec.cosine"] = taps["decoder.cosine"]
        stack = {"depict_sa": "dec.net.", "depict_ca": "dec.snet."}.get(case.removesuffix("_deit"), "dec.")
        found |= decoder_layers(model, taps, "layers", stack)
        found[f"{stack}L0.before"] = taps["decoder.input"]
        refined = model.decoder.norm(taps[f"decoder.layers.{len(model.decoder.layers) - 1}.tokens"])
        found["dec.snorm" if "ca" in case.split("_") else "dec.decoder_norm"] = refined
    if hasattr(model.decoder, "cross_layers"):
        found |= decoder_layers(model, taps, "cross_layers", "dec.cnet.")
        queries = model.decoder.class_embeddings
        found["dec.cnet.L0.before"] = queries
        for index, layer in enumerate(model.decoder.cross_layers):
            found[f"dec.cnet.L{index}.x"] = refined
            found[f"dec.cnet.L{index}.q"] = queries @ layer.basis.T
            queries = taps[f"decoder.cross_layers.{index}.tokens"]
        found["dec.cnorm"] = model.decoder.class_norm(queries)
    if "dec.proj_dec" in expected:
        found["dec.proj_dec"] = taps["decoder.input"][:, : -model.num_classes]

    assert set(expected) <= set(found), set(expected) - set(found)
    for name, value in expected.items():
        limit = 3e-5 if name.endswith("attn") else 1e-4 + 1e-5 * float(np.abs(value).max())
        assert difference(found[name].detach(), value) < limit, name


def decoder_layers(
    model: Segmentor, taps: dict[str, torch.Tensor], ours: str, official: str
) -> dict[str, torch.Tensor]:
    found = {}
    for index, layer in enumerate(getattr(model.decoder, ours)):
        found[f"{official}L{index}.attn"] = taps[f"decoder.{ours}.{index}.attention"]
        found[f"{official}L{index}.after"] = taps[f"decoder.{ours}.{index}.tokens"]
        if isinstance(layer, SubspaceAttention):
            found[f"{official}L{index}.w"] = taps[f"decoder.{ours}.{index}.projected"].transpose(1, 2).flatten(2)
            found[f"{official}L{index}.proj"] = layer.bases.flatten(0, 1)
            found[f"{official}L{index}.step_size"] = layer.step_size
    return found


@pytest.mark.parametrize("case", REAL_CASES)
def test_real_size(case: str, shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden"
    model = whitebox.load_model(real_checkpoint(golden, case, tmp_path))
    vectors = load_npz(golden / "real" / case / "vectors_512.npz")
    photo = torch.from_numpy(load_npz(golden / "real" / "image_u8.npz")["im_u8"][:, :512]).permute(2, 0, 1)[None]
    with torch.inference_mode():
        tokens = model.encoder.tokens(model.pad(model.normalise(photo)))
        masks = model.decoder(tokens[:, 1:], (32, 32))
        logits = model(photo)
    assert difference(tokens[:, ::16], vectors["feat_s16"]) < 2e-5
    assert difference(masks[..., ::2, ::2], vectors["masks_s2"]) < 1e-4
    assert difference(logits[..., 5::37, 11::37], vectors["logits_s37"]) < 1e-4
    assert (logits.argmax(1)[0].numpy() == vectors["argmax"]).mean() >= 0.999
    if "masks_head_ortho_s2" in vectors:
        altered = intervene(model, "head_ortho")
        with torch.inference_mode():
            masks = altered.decoder(tokens[:, 1:], (32, 32))
        assert difference(masks[..., ::2, ::2], vectors["masks_head_ortho_s2"]) < 1e-4


@pytest.mark.parametrize("case", ["train_depict_sa", "train_depict_ca"])
def test_training_steps(case: str, shared: Path, tmp_path: Path) -> None:
    folder = shared / "golden" / case
    (tmp_path / "checkpoint.pth").write_bytes((folder / "checkpoint_start.pth").read_bytes())
    (tmp_path / "variant.yml").write_bytes((folder / "variant.yml").read_bytes())
    model = whitebox.load_model(tmp_path).train()
    expected = load_npz(folder / "train.npz")
    optim = OptimConfig(lr=1e-2)
    optimizer = build_optimizer(model, optim)
    official = dict(zip(model.state_dict(), official_names(model, case), strict=True))
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 10, optim)
        assert learning_rate(step, 10, optim) == pytest.approx(expected["lr"][step], rel=1e-12)
        labels = torch.from_numpy(expected[f"label{step}"])
        loss = summed_loss(model, as_pixels(model, expected[f"im{step}"]), labels) / (labels != 255).sum()
        assert float(loss.detach()) == pytest.approx(float(expected["loss"][step]), abs=2e-5)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for name, parameter in model.named_parameters():
                if parameter.grad is None:
                    assert official[name] in expected["nograd_params"]
                    continue
                norm = float(expected[f"gradnorm0.{official[name]}"])
                assert float(parameter.grad.norm()) == pytest.approx(norm, rel=2e-4, abs=1e-6), name
                if f"grad0.{official[name]}" in expected:
                    gradient = expected[f"grad0.{official[name]}"]
                    assert difference(parameter.grad, gradient) < 1e-5 + 2e-4 * np.abs(gradient).max(), name
        optimizer.step()
    compared = 0
    for name, parameter in model.named_parameters():
        if f"final.{official[name]}" in expected:
            final = expected[f"final.{official[name]}"]
            assert difference(parameter.detach(), final) < 1e-5 + 1e-5 * np.abs(final).max(), name
            compared += 1
    assert compared == sum(name.startswith("final.") for name in expected)


def official_names(model: Segmentor, case: str) -> list[str]:
    """Names in the official checkpoint, in the order of our state dict."""
    self_stack, cross_stack = ("net", "") if case.endswith("sa") else ("snet", "cnet")
    names = []
    for name in model.state_dict():
        name = name.replace("encoder.vit.", "encoder.").replace("class_embeddings", "cls_emb")
        name = name.replace("decoder.layers.", f"decoder.{self_stack}.layers.")
        name = name.replace("decoder.cross_layers.", f"decoder.{cross_stack}.layers.")
        name = name.replace("class_norm", "cnorm").replace(".basis", ".fn.proj").replace(".step_size", ".fn.step_size")
        norm = "decoder_norm" if case.endswith("sa") else "snorm"
        names.append(name.replace("decoder.norm.", f"decoder.{norm}."))
    return names


def test_learning_rate_schedule(golden: Path | None) -> None:
    expected = load_npz(vector_file(golden, "blocks", "poly_lr.npz"))["lr"]
    found = [learning_rate(step, 40, OptimConfig()) for step in range(len(expected))]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_segmenter_mask_of_another_width_and_heads(golden: Path | None) -> None:
    vectors = load_npz(vector_file(golden, "blocks", "segmenter_mask_multihead.npz"))
    decoder = SegmenterMask(SegmenterMaskConfig(layers=2, heads=3, width=60), width=40, num_classes=7).eval()
    renames = (
        ("blocks.", "layers."),
        ("proj_dec", "proj_in"),
        ("proj_classes", "proj_class"),
        ("decoder_norm", "norm"),
    )
    tensors = {}
    for key, value in vectors.items():
        if key.startswith("param."):
            name = key.removeprefix("param.").replace("cls_emb", "class_embeddings")
            for theirs, ours in renames:
                name = name.replace(theirs, ours)
            tensors[name] = torch.from_numpy(value)
    decoder.load_state_dict(tensors, strict=True)
    with torch.inference_mode(), record(decoder, "layers.*.attention") as taps:
        masks = decoder(torch.from_numpy(vectors["x"]), (4, 6))
    assert difference(masks, vectors["masks"]) < 1e-5
    for index in range(2):
        assert difference(taps[f"layers.{index}.attention"], vectors[f"attn.L{index}"]) < 3e-5


class TestInterventions:
    """DEPICT's own ``ortho`` operations, with the random matrices the official code drew."""

    @pytest.fixture
    def vectors(self, golden: Path | None) -> dict[str, np.ndarray]:
        return load_npz(vector_file(golden, "blocks", "depict_transformer_ortho.npz"))

    @staticmethod
    def layers(vectors: dict[str, np.ndarray], operation: str) -> torch.nn.ModuleList:
        built = torch.nn.ModuleList(SubspaceAttention(48, 3, 16) for _ in range(3))
        for index, layer in enumerate(built):
            basis = torch.from_numpy(vectors[f"param.layers.{index}.fn.proj"]).double()
            heads = basis.unflatten(0, (3, 16))
            if operation == "head_ortho":
                basis = torch.cat([orthonormal_rows(head) for head in heads])
            elif operation == "head_trans":
                basis = torch.cat(
                    [torch.from_numpy(q) @ h for q, h in zip(vectors[f"Q_head.L{index}"], heads, strict=True)]
                )
            elif operation == "ortho_trans":
                basis = torch.from_numpy(vectors[f"Q_full.L{index}"]) @ basis
            layer.load_state_dict(
                {
                    "norm.weight": torch.from_numpy(vectors[f"param.layers.{index}.norm.weight"]),
                    "norm.bias": torch.from_numpy(vectors[f"param.layers.{index}.norm.bias"]),
                    "basis": basis.float(),
                    "step_size": torch.from_numpy(vectors[f"param.layers.{index}.fn.step_size"]),
                }
            )
        return built

    @pytest.mark.parametrize("operation", ["None", "head_ortho", "head_trans", "ortho_trans"])
    def test_outputs(self, operation: str, vectors: dict[str, np.ndarray]) -> None:
        layers = self.layers(vectors, operation)
        tokens, query = torch.from_numpy(vectors["x"]), torch.from_numpy(vectors["query"])
        refined, moved = tokens, query
        with torch.inference_mode():
            for layer in layers:
                refined, moved = layer(refined), layer(tokens, query=moved)
        for found, name in ((refined, "out_self"), (moved, "out_cross")):
            expected = vectors[f"{name}.{operation}"]
            assert difference(found, expected) < 1e-4 + 1e-5 * np.abs(expected).max()

    def test_projectors_of_orthonormal_heads(self, vectors: dict[str, np.ndarray]) -> None:
        for index, layer in enumerate(self.layers(vectors, "head_ortho")):
            projectors = layer.bases.transpose(1, 2) @ layer.bases
            assert difference(projectors.detach(), vectors[f"L{index}.head_projectors.head_ortho"]) < 1e-5
