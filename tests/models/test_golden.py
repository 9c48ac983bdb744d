"""Our models equal the official implementations: tokens, attention maps, masks, logits, training steps.

Largest differences measured over the whole set (torch 2.15, 1 thread): features 2.6e-6, masks 3.1e-5 (DEPICT-CA; 8.9e-6
others), logits 1.9e-5. CBSA: masks 5.0e-6, layers 7.7e-6. Blocks of ToST, CRATE and CBSA's classifier: 2.4e-6.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_vectors import CASES, difference, load_npz, real_checkpoint, sampled, vector_file
from timm.layers import Mlp
from torch import Tensor, nn

import whitebox
from whitebox.config import OptimConfig
from whitebox.engine.optimisation import build_optimizer, learning_rate
from whitebox.engine.update import summed_loss
from whitebox.models import Segmentor, intervene, record
from whitebox.models.attention import CBSA, TSSA, SubspaceAttention, UntiedSubspaces
from whitebox.models.decoders.crate import CrateLayer, ista
from whitebox.models.decoders.segmenter_mask import SegmenterMask, SegmenterMaskConfig
from whitebox.models.interventions import orthonormal_rows

INPUTS = ("train", "rect", "pad", "small", "sametok")
REAL_CASES = ("depict_sa", "depict_ca", "segmenter_linear", "segmenter_mask", "cbsa")


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


@pytest.mark.parametrize("case", ["cbsa", "cbsa_deit"])
class TestCBSA:
    """The released CBSA takes only 150 classes and square grids."""

    @pytest.mark.parametrize("size", ["train", "big", "pad", "padresize"])
    def test_features_masks_and_logits(self, case: str, size: str, golden: Path | None) -> None:
        test_features_masks_and_logits(case, size, golden)

    @torch.inference_mode()
    def test_grid_that_the_official_code_scrambles(self, case: str, golden: Path | None) -> None:
        """It pools 8 x 18 patches as if they were 12 x 12. Told so, ours does the same; else it pools what is there."""
        vectors = load_npz(vector_file(golden, case, "vectors_scrambled.npz"))
        model = whitebox.load_model(vector_file(golden, case, "checkpoint.pth"))
        tokens, masks = decode(model, vectors["im"])
        scrambled = model.decoder(tokens[:, model.encoder.prefix_tokens :], (12, 12))
        assert difference(tokens, vectors["feat"]) < 2e-5
        assert difference(scrambled.flatten(2).unflatten(2, (8, 18)), vectors["masks"]) < 1e-4
        assert difference(masks, vectors["masks"]) > 0.1

    @torch.inference_mode()
    def test_every_layer(self, case: str, golden: Path | None) -> None:
        model = whitebox.load_model(vector_file(golden, case, "checkpoint.pth"))
        with record(model, "decoder.*") as taps:
            decode(model, load_npz(vector_file(golden, case, "vectors_train.npz"))["im"][:1])
        last = f"decoder.layers.{len(model.decoder.layers) - 1}.tokens"
        found = {"dec.cosine": taps["decoder.cosine"], "dec.decoder_norm": model.decoder.norm(taps[last])}
        expected = load_npz(vector_file(golden, case, "layers_train_out.npz"))
        for index, layer in enumerate(model.decoder.layers):
            expected |= load_npz(vector_file(golden, case, f"layers_train_dec{index}.npz"))
            ours, official = f"decoder.layers.{index}.", f"dec.net.L{index}."
            pooled = taps[f"{ours}representatives"].transpose(-1, -2).flatten(1, 2)
            found |= {
                f"{official}before": taps["decoder.input"],
                f"{official}w_s5": taps[f"{ours}projected"].transpose(1, 2).flatten(2)[:, ::5],
                f"{official}pool": pooled.unflatten(-1, (layer.pool, layer.pool)),
                f"{official}attn": taps[f"{ours}attention"],
                f"{official}attn_rep": taps[f"{ours}representative_attention"],
                f"{official}after": taps[f"{ours}tokens"],
            }
        # the change of the tokens before the output map: an activation of the official code that ours does not name
        assert {name for name in expected if name not in found} == {"dec.net.L0.xdelta_s5"}
        for name in expected.keys() & found.keys():
            limit = 3e-5 if "attn" in name else 1e-4
            assert difference(found[name].detach(), expected[name]) < limit, name


class TestBlocks:
    """Single layers of ToST, CRATE, and CBSA's classifier, which knows all three."""

    @staticmethod
    def read(name: str, golden: Path | None) -> tuple[dict[str, np.ndarray], dict[str, Tensor], Tensor]:
        """All arrays; the parameters by their official names; the input."""
        vectors = load_npz(vector_file(golden, "blocks", f"{name}.npz"))
        parameters = {
            key.removeprefix("param."): torch.from_numpy(value)
            for key, value in vectors.items()
            if key.startswith("param.")
        }
        return vectors, parameters, torch.from_numpy(vectors["x"])

    @staticmethod
    def fill(layer: UntiedSubspaces, parameters: dict[str, Tensor]) -> None:
        """Basis and output map from official parameters of any of these projects; no LayerNorm before them."""
        layer.norm = nn.Identity()
        official = {key.replace("to_out.0.", "to_out."): value for key, value in parameters.items()}
        with torch.no_grad():
            layer.basis.copy_(official.get("qkv.weight", official.get("proj.weight")))
            layer.output.weight.copy_(official["to_out.weight"])
            layer.output.bias.copy_(official["to_out.bias"])

    @torch.inference_mode()
    def test_cbsa(self, golden: Path | None) -> None:
        """In the classifier the class token comes first, and the last token, a patch, is not pooled."""
        vectors, parameters, x = self.read("cbsa_cls_cbsa", golden)
        layer = CBSA(48, 3, 16, pool=8)
        self.fill(layer, parameters)
        layer.step_size.copy_(parameters["step_x"])
        layer.representative_step.copy_(parameters["step_rep"])
        with record(layer, "attention", "update") as taps:
            layer(x, (7, 7))
        assert difference(taps["update"], vectors["out"]) < 1e-5
        weights = taps["attention"]
        assert difference(weights.transpose(-1, -2) @ weights, vectors["return_attn"]) < 1e-5

    @pytest.mark.parametrize("name", ["tost_tssa_bias", "tost_tssa_nobias", "cbsa_cls_tssa"])
    @torch.inference_mode()
    def test_tssa(self, name: str, golden: Path | None) -> None:
        """A bias of the projection, which ours has not, is one more coordinate of the input that is always 1."""
        vectors, parameters, x = self.read(name, golden)
        x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
        bias = parameters.get("qkv.bias", torch.zeros(48))
        parameters["qkv.weight"] = torch.cat([parameters["qkv.weight"], bias[:, None]], dim=1)
        heads = len(parameters["temp"])
        layer = TSSA(49, heads, 48 // heads)
        layer.output = nn.Linear(48, 48)
        self.fill(layer, parameters)
        layer.temperature.copy_(parameters["temp"])
        layer.lift, lift = lambda w: nn.functional.pad(lift(w), (0, 1)), layer.lift
        with record(layer, "projected", "membership", "update") as taps:
            layer(x)
        assert difference(taps["update"][..., :48], vectors["out"]) < 1e-5
        if "Pi" in vectors:
            assert difference(taps["membership"], vectors["Pi"]) < 1e-6
            assert difference(taps["projected"].transpose(1, 2).flatten(2), vectors["w"]) < 1e-5

    @torch.inference_mode()
    def test_tost_block(self, golden: Path | None) -> None:
        """With its LayerNorm (eps 1e-6) and MLP; layer scales are rows of the output maps."""
        vectors, parameters, x = self.read("tost_block", golden)
        attention = {key.removeprefix("attn."): value for key, value in parameters.items()}
        bias, gamma1, gamma2 = attention["qkv.bias"], parameters["gamma1"], parameters["gamma2"]
        layer = TSSA(48, 4, 12)
        self.fill(layer, attention)
        layer.norm = nn.LayerNorm(48, eps=1e-6)
        norm2, mlp = nn.LayerNorm(48, eps=1e-6), Mlp(48, 192)
        for part, prefix in ((layer.norm, "norm1."), (norm2, "norm2."), (mlp, "mlp.")):
            part.load_state_dict({k.removeprefix(prefix): v for k, v in parameters.items() if k.startswith(prefix)})
        layer.temperature.copy_(attention["temp"])
        layer.output.weight.mul_(gamma1[:, None])
        layer.output.bias.mul_(gamma1)
        layer.project, project = lambda y: project(y) + bias.view(1, 4, 1, 12), layer.project
        z = layer(x)
        assert difference(z + gamma2 * mlp(norm2(z)), vectors["out"]) < 1e-5

    @pytest.mark.parametrize("name", ["crate_mssa", "crate_mssa_1head", "cbsa_cls_mssa"])
    @torch.inference_mode()
    def test_mssa(self, name: str, golden: Path | None) -> None:
        """One head of the whole width has no output map in the official code, which is the identity here."""
        vectors, parameters, x = self.read(name, golden)
        identity = {"to_out.weight": torch.eye(48), "to_out.bias": torch.zeros(48)}
        heads = 1 if name.endswith("1head") else 3
        layer = CrateLayer(48, heads, 48 // heads, ista_step=0.1, sparsity=0.1)
        self.fill(layer, {**identity, **parameters})
        with record(layer, "attention", "compressed") as taps:
            layer(x)
        assert difference(taps["compressed"] - x, vectors["out"]) < 1e-5
        for key in {"attn", "return_attn"} & vectors.keys():
            assert difference(taps["attention"], vectors[key]) < 1e-5

    def test_ista(self, golden: Path | None) -> None:
        vectors, parameters, x = self.read("crate_ista", golden)
        assert difference(ista(x, parameters["weight"], step=0.1, sparsity=0.1), vectors["out"]) < 1e-5

    @torch.inference_mode()
    def test_crate_layers(self, golden: Path | None) -> None:
        vectors, parameters, tokens = self.read("crate_transformer", golden)
        for index in range(3):
            layer = CrateLayer(48, 3, 16, ista_step=0.1, sparsity=0.1)
            own = {
                key.removeprefix(f"layers.{index}."): value
                for key, value in parameters.items()
                if key.startswith(f"layers.{index}.")
            }
            names = {"basis": "0.fn.qkv.weight", "dictionary": "1.fn.weight"}
            names |= {f"norm.{kind}": f"0.norm.{kind}" for kind in ("weight", "bias")}
            names |= {f"sparse_norm.{kind}": f"1.norm.{kind}" for kind in ("weight", "bias")}
            names |= {f"output.{kind}": f"0.fn.to_out.0.{kind}" for kind in ("weight", "bias")}
            layer.load_state_dict({ours: own.pop(theirs) for ours, theirs in names.items()}, strict=True)
            assert own == {}
            with record(layer, "compressed", "sparse") as taps:
                tokens = layer(tokens)
            assert difference(taps["compressed"], vectors[f"L{index}.after_attn"]) < 1e-5
            assert difference(taps["sparse"], vectors[f"L{index}.after_ista"]) < 1e-5
        assert difference(tokens, vectors["out"]) < 1e-5


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
