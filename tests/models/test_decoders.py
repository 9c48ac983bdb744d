"""What every decoder promises, over all of them and the one built in docs/new_decoder.md; and their published costs."""

from __future__ import annotations

import copy
import re
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from exporting import check_export
from safetensors.torch import load_file, save_file
from tiny_runs import CLOSED
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import whitebox
from whitebox.catalog import configs_folder, model_names
from whitebox.config import RunConfig
from whitebox.engine.checkpoint import save_model
from whitebox.errors import ConfigError, ModelError
from whitebox.models import DECODERS, EncoderConfig, build, intervene, record, tap_names
from whitebox.models.attention import CBSA, TSSA, Subspaces, is_subspace_layer, subspace_layers
from whitebox.models.decoders import Decoder
from whitebox.models.decoders.base import unit
from whitebox.models.decoders.cbsa import CBSAConfig
from whitebox.models.decoders.crate import CrateConfig
from whitebox.models.decoders.depict_ca import DepictCAConfig
from whitebox.models.decoders.depict_sa import DepictSAConfig
from whitebox.models.decoders.segmenter_mask import SegmenterMaskConfig
from whitebox.models.decoders.segvit import SegViTShrunk
from whitebox.models.decoders.tost import ToSTConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"
TINY = {
    "layers": 1,
    "cross_layers": 1,
    "heads": 2,
    "head_dim": 3,
    "cross_head_dim": 2,
    "pool": 2,
    "encoder_layers": [0, 1],
}
SMALL_ENCODER = EncoderConfig(image_size=32, width=48, depth=1, heads=3, patch_size=16)


def written(page: str, marker: str) -> str:
    """The code under ``<!-- marker -->`` in a page of the documentation."""
    found = re.findall(
        rf"^<!-- {re.escape(marker)} -->\n```\w+\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(found) == 1, marker
    return str(found[0])


def example_module() -> ModuleType:
    """The file of docs/new_decoder.md, imported."""
    module = ModuleType("whitebox_example_kmeans")
    sys.modules[module.__name__] = module  # where dataclasses look up their annotations
    exec(written("new_decoder.md", "file: whitebox/models/decoders/kmeans.py"), vars(module))
    return module


EXAMPLE = example_module()
ALL = {**CLOSED, "kmeans": EXAMPLE.KMeansDecoder}


def decoder(name: str, width: int = 48, num_classes: int = 5, **options: Any) -> Decoder:
    torch.manual_seed(0)
    known = {field.name for field in fields(ALL[name].Config)}
    config = ALL[name].Config(**{key: value for key, value in options.items() if key in known})
    return ALL[name](config, width, num_classes).eval()


def several(module: Decoder, z_BND: Tensor, grid: tuple[int, int]) -> tuple[Any, Any]:
    """Tokens and grid as a decoder takes them: one set stands for every encoder layer, a shrunk one keeps a quarter."""
    if module.encoder_layers is None:
        return z_BND, grid
    count = len(module.encoder_layers)
    if not isinstance(module, SegViTShrunk):
        return [z_BND] * count, [grid] * count
    small_BND = z_BND.unflatten(1, grid)[:, ::2, ::2].flatten(1, 2)
    small = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
    return [z_BND, *[small_BND] * (count - 1)], [grid, *[small] * (count - 1)]


def run(module: Decoder, z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    return module(*several(module, z_BND, grid))


@pytest.mark.parametrize("name", sorted(ALL))
class TestEveryDecoder:
    @pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 2)])
    @pytest.mark.parametrize("num_classes", [1, 5])
    def test_any_grid_and_class_count(self, name: str, grid: tuple[int, int], num_classes: int) -> None:
        masks = run(decoder(name, num_classes=num_classes), torch.randn(2, grid[0] * grid[1], 48), grid)
        assert masks.shape == (2, num_classes, *grid)
        assert masks.isfinite().all()

    def test_every_parameter_learns(self, name: str) -> None:
        module = decoder(name).train()
        said = module.predict(*several(module, torch.randn(2, 6, 48), (2, 3)))
        sum(value.square().sum() for value in (said.masks_BKhw, said.classes_BKC) if value is not None).backward()
        idle = [key for key, value in module.named_parameters() if value.grad is None or not value.grad.any()]
        assert idle == []

    def test_gradients_against_finite_differences(self, name: str) -> None:
        module = decoder(name, width=8, num_classes=3, **TINY).double()
        names = [key for key, _ in module.named_parameters()]
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.5)

        def masks(z_BND: Tensor, *parameters: Tensor) -> Tensor:
            return functional_call(module, dict(zip(names, parameters, strict=True)), several(module, z_BND, (2, 3)))

        tokens = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(masks, (tokens, *module.parameters()), fast_mode=True)

    def test_batch_items_do_not_mix(self, name: str) -> None:
        module, tokens = decoder(name), torch.randn(3, 6, 48)
        together = run(module, tokens, (2, 3))
        alone = torch.cat([run(module, item[None], (2, 3)) for item in tokens])
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)

    def test_listening_changes_nothing(self, name: str) -> None:
        module, tokens = decoder(name), torch.randn(1, 6, 48)
        quiet = run(module, tokens, (2, 3))
        with record(module, "*") as activations:
            heard = run(module, tokens, (2, 3))
        assert torch.equal(quiet, heard)
        assert set(activations) == set(tap_names(module))

    def test_activations_are_named_and_shaped_alike(self, name: str) -> None:
        """The table in whitebox/models/taps.py."""
        module = decoder(name)
        with record(module, "*") as activations:
            run(module, torch.randn(2, 6, 48), (2, 3))
        assert activations["input"].shape in [(2, 6, module.width), (2, 11, module.width)]
        for stack, tokens in (("layers", activations["input"].shape[1]), ("cross_layers", 5)):
            for index, layer in enumerate(getattr(module, stack, ())):
                prefix = f"{stack}.{index}."
                heard = {
                    key.removeprefix(prefix): value for key, value in activations.items() if key.startswith(prefix)
                }
                assert heard["tokens"].shape == heard["update"].shape == (2, tokens, module.width)
                if isinstance(layer, Subspaces):
                    keys = activations["input"].shape[1]
                    assert heard["projected"].shape == (2, layer.heads, keys, layer.head_dim)
                for key, value in heard.items():
                    if key.endswith("attention"):
                        torch.testing.assert_close(value.sum(-1), torch.ones(value.shape[:-1]))

    def test_layers_add_their_update(self, name: str) -> None:
        module = decoder(name)
        with record(module, "*") as activations:
            run(module, torch.randn(1, 6, 48), (2, 3))
        for stack, before in (
            ("layers", activations["input"]),
            ("cross_layers", getattr(module, "class_embeddings", 0)),
        ):
            for index in range(len(getattr(module, stack, ()))):
                after = activations[f"{stack}.{index}.tokens"]
                torch.testing.assert_close(before + activations[f"{stack}.{index}.update"], after)
                before = after

    def test_same_seed_same_model(self, name: str) -> None:
        first, second = decoder(name).state_dict(), decoder(name).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_state_dict_round_trip(self, name: str, tmp_path: Path) -> None:
        module, other, tokens = decoder(name), decoder(name), torch.randn(1, 6, 48)
        for parameter in other.parameters():
            nn.init.normal_(parameter)
        save_file(module.state_dict(), tmp_path / "decoder.safetensors")
        other.load_state_dict(load_file(tmp_path / "decoder.safetensors"), strict=True)
        assert torch.equal(run(other, tokens, (2, 3)), run(module, tokens, (2, 3)))

    def test_a_saved_model_comes_back(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(DECODERS, name, ALL[name])
        known = {field.name for field in fields(ALL[name].Config)}
        one_layer = {"encoder_layers": [0]} if "encoder_layers" in known else {}
        config = RunConfig(model=name, encoder=SMALL_ENCODER, decoder=ALL[name].Config(**one_layer))
        model = build(config.encoder, config.decoder, 5).eval()
        save_model(tmp_path / "model.safetensors", model, config)
        image = torch.rand(1, 3, 40, 32)
        assert torch.equal(whitebox.load_model(tmp_path)(image), model(image))

    def test_compiles_as_one_graph(self, name: str) -> None:
        module, tokens = decoder(name, **TINY), torch.randn(2, 6, 48)
        plain = run(module, tokens, (2, 3))
        plain.square().sum().backward()
        expected = {key: value.grad for key, value in module.named_parameters()}
        module.zero_grad(set_to_none=True)
        torch._dynamo.reset()
        # the graph as it is captured; inductor would write C++ for a minute
        compiled = torch.compile(module, fullgraph=True, backend="eager")(*several(module, tokens, (2, 3)))
        compiled.square().sum().backward()
        torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-4)
        for key, value in module.named_parameters():
            torch.testing.assert_close(value.grad, expected[key], atol=1e-4, rtol=1e-3, msg=key)

    def test_export_with_a_free_batch(self, name: str) -> None:
        """torch.export and ONNX give what the model gives, also for a batch they were not made with."""
        module = decoder(name, **TINY)
        check_export(ForGrid(module, (2, 3)), torch.randn(2, 6, 48), torch.randn(3, 6, 48))


@pytest.mark.parametrize("name", sorted(set(ALL) - {"segvit-shrunk"}))  # whose queries have places of their own
def test_rows_and_columns_of_the_grid(name: str) -> None:
    """Tokens carry no position of their own here: a transposed grid of tokens gives transposed masks."""
    module, tokens = decoder(name), torch.randn(1, 15, 48)
    transposed = tokens.unflatten(1, (3, 5)).transpose(1, 2).flatten(1, 2)
    masks = run(module, tokens, (3, 5))
    torch.testing.assert_close(run(module, transposed, (5, 3)), masks.transpose(2, 3), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(run(module, tokens, (5, 3)), masks.transpose(2, 3), atol=1e-2)


class ForGrid(nn.Module):
    """A decoder for one grid, as tensors in and out."""

    def __init__(self, module: Decoder, grid: tuple[int, int]) -> None:
        super().__init__()
        self.module, self.grid = module, grid

    def forward(self, z_BND: Tensor) -> Tensor:
        return run(self.module, z_BND, self.grid)


def test_export_of_a_whole_model() -> None:
    """From pixels to logits, with padding, at an image size the model was not made for."""
    model = build(SMALL_ENCODER, DepictSAConfig(layers=1), 5).eval()
    check_export(model, torch.rand(2, 3, 40, 32), torch.rand(3, 3, 40, 32))


class TestTheExampleOfTheDocumentation:
    def test_its_own_test(self) -> None:
        torch.manual_seed(0)
        exec(written("new_decoder.md", "test"), {**vars(EXAMPLE)})

    def test_becomes_a_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        line = written("new_decoder.md", "line: whitebox/models/decoders/__init__.py")
        registered = eval(f"{{{line}}}", {}, vars(EXAMPLE))
        imported = written("new_decoder.md", "import: whitebox/models/decoders/__init__.py").split()
        assert imported[1] == "whitebox.models.decoders.kmeans" and imported[-1] == registered["kmeans"].__name__
        shutil.copytree(configs_folder(), tmp_path / "configs")
        monkeypatch.setattr("whitebox.catalog.configs_folder", lambda: tmp_path / "configs")
        with pytest.raises(ConfigError, match="Unknown model 'kmeans-tiny'"):
            whitebox.create_model("kmeans-tiny", 7)
        for name, value in registered.items():
            monkeypatch.setitem(DECODERS, name, value)
        with torch.device("meta"):
            model = whitebox.create_model("kmeans-tiny", 7, **{"decoder.layers": 5})
        assert len(model.decoder.cross_layers) == 5
        path = tmp_path / "configs" / "decoders" / "kmeans.yaml"
        path.write_text(written("new_decoder.md", "file: configs/decoders/kmeans.yaml"))
        assert [name for name in model_names() if "kmeans" in name] == ["kmeans-dino", "kmeans-large", "kmeans-tiny"]
        with torch.device("meta"):
            assert len(whitebox.create_model("kmeans-large", 7).decoder.cross_layers) == 6
            assert whitebox.create_model("kmeans-dino", 7).encoder.patch_size == 14


@pytest.mark.parametrize("name", ["depict-sa", "depict-ca"])
def test_fused_attention_equals_the_plain_formula(name: str) -> None:
    module, tokens = decoder(name, width=64), torch.randn(1, 12, 64)
    with record(module, "layers.*") as activations:
        module(tokens, (3, 4))
    for index, layer in enumerate(module.layers):
        weights, projected = activations[f"layers.{index}.attention"], activations[f"layers.{index}.projected"]
        plain = sum((weights[:, head] @ projected[:, head]) @ layer.bases[head] for head in range(layer.heads))
        torch.testing.assert_close(activations[f"layers.{index}.update"], layer.step_size * plain, atol=1e-5, rtol=1e-4)


def test_bases_are_what_projects() -> None:
    """The compression view: in every white-box layer ``projected`` is ``bases`` times the normalised tokens."""
    for name in ("depict-sa", "cbsa", "tost", "crate"):
        module = decoder(name)
        with record(module, "*") as activations:
            module(torch.randn(1, 6, 48), (2, 3))
        before = activations["input"]
        assert list(subspace_layers(module)) == [f"layers.{index}" for index in range(3)]
        for key, layer in subspace_layers(module).items():
            assert is_subspace_layer(layer) and layer.bases.shape == (3, 100, 48)
            expected = torch.einsum("hpd,bnd->bhnp", layer.bases, layer.norm(before))
            torch.testing.assert_close(activations[f"{key}.projected"], expected, atol=1e-5, rtol=1e-4)
            before = activations[f"{key}.tokens"]


def test_only_zero_vectors_are_not_divided_by_their_norm() -> None:
    """Without epsilon, as the official code: the smallest vectors too are divided by what their norm is."""
    torch.manual_seed(0)
    vectors = torch.randn(1, 4, 8) * torch.tensor([1e4, 1.0, 1e-15, 0.0])[:, None]
    vectors.requires_grad_()
    found = unit(vectors)
    assert torch.equal(found[:, :3], vectors[:, :3] / vectors[:, :3].norm(dim=-1, keepdim=True))
    assert torch.equal(found[:, 3], torch.zeros(1, 8))
    found.square().sum().backward()
    assert vectors.grad.isfinite().all() and not vectors.grad[:, 3].any()


class TestCBSA:
    def test_attention_is_formed_for_representatives_only(self) -> None:
        module = decoder("cbsa", pool=2)
        with record(module, "layers.0.*") as activations:
            module(torch.randn(2, 48, 48), (6, 8))
        assert activations["layers.0.attention"].shape == (2, 3, 4, 53)
        assert activations["layers.0.representative_attention"].shape == (2, 3, 4, 4)

    def test_representatives_are_means_of_patches_alone(self) -> None:
        module = decoder("cbsa", pool=2)
        with record(module, "layers.0.*") as activations:
            module(torch.randn(2, 48, 48), (6, 8))
        patches = activations["layers.0.projected"][:, :, :48].unflatten(2, (6, 8))
        found = activations["layers.0.representatives"].unflatten(2, (2, 2))
        torch.testing.assert_close(found[:, :, 0, 1], patches[:, :, :3, 4:].mean(dim=(2, 3)))
        torch.testing.assert_close(found[:, :, 1, 0], patches[:, :, 3:, :4].mean(dim=(2, 3)))

    def test_without_steps_only_the_bias_remains(self) -> None:
        layer = CBSA(16, 2, 4, pool=2)
        nn.init.zeros_(layer.step_size)
        nn.init.ones_(layer.output.bias)
        tokens = torch.randn(1, 7, 16)
        torch.testing.assert_close(layer(tokens, (2, 3)), tokens + 1)


class TestTSSA:
    def test_memberships_are_shared_among_heads(self) -> None:
        module = decoder("tost")
        with record(module, "*.membership") as activations:
            module(torch.randn(2, 6, 48), (2, 3))
        for value in activations.values():
            assert value.shape == (2, 3, 11)
            torch.testing.assert_close(value.sum(dim=1), torch.ones(2, 11))

    def test_by_hand(self) -> None:
        """Two heads of one dimension, identity maps: every quantity can be written down."""
        layer = TSSA(2, 2, 1)
        layer.norm = nn.Identity()
        with torch.no_grad():
            layer.basis.copy_(torch.eye(2))
            layer.output.weight.copy_(torch.eye(2))
        tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [2.0, 0.0]]])
        share = torch.tensor([[0.2, 0.0, 0.8], [0.0, 1.0, 0.0]])
        pi = share.softmax(dim=0)
        moments = (pi * tokens[0].T.square()).sum(dim=1) / pi.sum(dim=1)
        expected = tokens[0] - pi.T * tokens[0] / (1 + moments)
        torch.testing.assert_close(layer(tokens)[0], expected)

    def test_half_precision_does_not_overflow(self) -> None:
        """These squares are beyond float16."""
        torch.manual_seed(0)
        layer, tokens = TSSA(8, 2, 4), 1000 * torch.randn(1, 50, 8)
        layer.norm = nn.Identity()
        nn.init.normal_(layer.basis)
        expected = layer(tokens)
        with torch.autocast("cpu", torch.float16):
            torch.testing.assert_close(layer(tokens), expected, atol=0.5, rtol=1e-2)
        halved = layer.half()(tokens.half())
        torch.testing.assert_close(halved.float(), expected, atol=0.5, rtol=1e-2)


class TestCrate:
    def test_tokens_are_sparse_and_not_negative(self) -> None:
        shares = []
        for sparsity in (0.1, 10.0):
            module = decoder("crate", sparsity=sparsity)
            with record(module, "layers.*.sparse", "layers.*.tokens") as activations:
                module(torch.randn(1, 6, 48), (2, 3))
            assert torch.equal(activations["layers.2.sparse"], activations["layers.2.tokens"])
            assert all((value >= 0).all() for value in activations.values())
            shares.append(float((activations["layers.2.sparse"] == 0).float().mean()))
        assert 0.2 < shares[0] < shares[1] < 1

    def test_tokens_that_are_all_zero_have_cosine_zero(self) -> None:
        module = decoder("crate", sparsity=100.0)
        with record(module, "layers.2.sparse", "cosine") as activations:
            masks = module(torch.randn(1, 6, 48), (2, 3))
        assert not activations["layers.2.sparse"].any() and not activations["cosine"].any()
        masks.square().sum().backward()
        assert masks.isfinite().all()
        assert all(value.grad.isfinite().all() for value in module.parameters())

    def test_compression_comes_before_sparsity(self) -> None:
        module = decoder("crate", layers=1)
        nn.init.zeros_(module.layers[0].output.weight)
        with record(module, "*") as activations:
            module(torch.randn(1, 6, 48), (2, 3))
        assert torch.equal(activations["layers.0.compressed"], activations["input"])


class TestInterventions:
    @pytest.mark.parametrize("name", ["depict-sa", "depict-ca", "cbsa", "crate"])
    def test_rotations_inside_heads_change_nothing(self, name: str) -> None:
        module, tokens = decoder(name), torch.randn(1, 6, 48)
        altered = intervene(module, "head_trans", seed=3)
        assert not torch.allclose(altered.layers[0].bases, module.layers[0].bases)
        torch.testing.assert_close(altered(tokens, (2, 3)), module(tokens, (2, 3)), atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize(("name", "operation"), [("tost", "head_trans"), ("cbsa", "ortho_trans")])
    def test_other_rotations_change_something(self, name: str, operation: str) -> None:
        module, tokens = decoder(name), torch.randn(1, 6, 48)
        found = intervene(module, operation)(tokens, (2, 3))
        assert not torch.allclose(found, module(tokens, (2, 3)), atol=1e-3)

    @pytest.mark.parametrize("name", ["cbsa", "tost", "crate"])
    def test_orthonormal_heads(self, name: str) -> None:
        module = decoder(name, head_dim=16)
        altered = intervene(module, "head_ortho", ["layers.1"])
        gram = altered.layers[1].bases @ altered.layers[1].bases.transpose(1, 2)
        torch.testing.assert_close(gram, torch.eye(16).expand(3, -1, -1), atol=1e-5, rtol=1e-5)
        assert torch.equal(altered.layers[0].basis, module.layers[0].basis)
        assert torch.equal(altered.layers[1].output.weight, module.layers[1].output.weight)

    def test_the_nearest_orthonormal_basis(self) -> None:
        """Bases that are orthonormal already stay, and scaling them makes no difference."""
        module = intervene(decoder("cbsa", head_dim=16), "head_ortho")
        kept = module.layers[0].basis.detach().clone()
        with torch.no_grad():
            module.layers[0].basis.mul_(3)
        torch.testing.assert_close(intervene(module, "head_ortho").layers[0].basis, kept, atol=1e-5, rtol=1e-5)


ENCODER_PARAMETERS = {"tiny": 5_876_392, "small": 22_368_616, "base": 87_203_560}
DECODER_PARAMETERS = {
    "cbsa": {"tiny": 376_830, "small": 753_342, "base": 2_895_696},
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


def layer_macs(module: Decoder, width: int, grid: tuple[int, int]) -> float:
    """Multiply-adds of a decoder's layers (or linear head) for one image, on the device ``meta``."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(module, torch.empty(1, grid[0] * grid[1], width, device="meta"), grid)
    counts = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    return sum(count for name, count in counts.items() if re.search(r"\.((cross_)?layers\.\d+|head)$", name)) / 2


@pytest.mark.parametrize(
    ("model", "image", "published", "rounding"),  # GFLOPs of the decoder's layers on ADE20K, papers.md section 1
    [
        ("cbsa-tiny", 512, 1.5, 0.02),
        ("cbsa-small", 512, 2.3, 0.02),
        ("cbsa-base", 512, 7.8, 0.02),
        ("cbsa-large", 640, 22.3, 0.02),
        ("depict-sa-tiny", 512, 5.77, 0.01),
        ("depict-sa-small", 512, 6.58, 0.01),
        ("depict-sa-base", 512, 8.21, 0.01),
        ("depict-sa-large", 640, 34.95, 0.01),
        ("segmenter-mask-tiny", 512, 4.19, 0.01),
        ("segmenter-mask-small", 512, 12.54, 0.01),
        ("segmenter-mask-base", 512, 41.71, 0.01),
        ("segmenter-mask-large", 640, 113.17, 0.01),
    ],
)
def test_published_decoder_cost(model: str, image: int, published: float, rounding: float) -> None:
    with torch.device("meta"):
        built = whitebox.create_model(model, num_classes=150).eval()
    found = layer_macs(built.decoder, built.encoder.width, (image // 16, image // 16))
    assert 2 * found / 1e9 == pytest.approx(published, rel=rounding)


FORMULAS = {
    name: (parameters, macs)
    for name, parameters, macs in re.findall(
        r"^\| `([\w-]+)` \| `([^`]+)` \| `([^`]+)` \|$", (DOCS / "decoders.md").read_text(), re.MULTILINE
    )
}


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_formulas_of_the_documentation(name: str) -> None:
    config, width, classes, grid = DECODERS[name].Config(), 96, 17, (6, 8)
    with torch.device("meta"):
        module = DECODERS[name](config, width, classes).eval()
    symbols = {"N": 48, "K": 17, "T": 65, "D": width, "W": module.width, "S": len(module.encoder_layers or ())}
    for symbol, key in (("L", "layers"), ("H", "heads"), ("P", "head_dim"), ("C", "cross_layers")):
        symbols[symbol] = getattr(config, key, None) or 1
    symbols["F"] = symbols["H"] * symbols["P"]
    symbols["G"] = symbols["H"] * getattr(config, "cross_head_dim", 0)
    symbols["R"] = getattr(config, "pool", 0) ** 2
    symbols["Q"] = len(getattr(module, "queries", torch.empty(1, 0))[0])
    parameters, macs = (eval(formula, {}, symbols) for formula in FORMULAS[name])
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
    assert layer_macs(module, width, grid) == macs


def test_impossible_hyper_parameters() -> None:
    with pytest.raises(ConfigError, match=r"decoder.layers=0 is impossible"):
        DepictSAConfig(layers=0)
    with pytest.raises(ConfigError, match=r"decoder.cross_head_dim=-1 is impossible"):
        DepictCAConfig(cross_head_dim=-1)
    with pytest.raises(ConfigError, match=r"decoder.pool=0 is impossible"):
        CBSAConfig(pool=0)
    with pytest.raises(ConfigError, match=r"decoder.heads=0 is impossible"):
        ToSTConfig(heads=0)
    with pytest.raises(ConfigError, match=r"decoder.ista_step=0 is impossible: it must be above 0"):
        CrateConfig(ista_step=0)
    with pytest.raises(ConfigError, match=r"decoder.sparsity=-1 is impossible: it cannot be negative"):
        CrateConfig(sparsity=-1)
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


def test_the_linear_probe_is_a_convolution_behind_batch_normalisation() -> None:
    """As mmsegmentation's BNHead on the map of tokens, in training and after it; dropout takes whole channels."""
    linear = DECODERS["segmenter-linear"]
    generator = torch.Generator().manual_seed(0)
    z_BND = torch.randn(3, 8, 6, generator=generator) * 3 + 1
    probe: Any = linear(linear.Config(batch_norm=True), 6, 4)
    norm, convolution = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)
    with torch.no_grad():
        probe.head.bias.copy_(torch.randn(4, generator=generator))
        convolution.weight.copy_(probe.head.weight[:, :, None, None])
        convolution.bias.copy_(probe.head.bias)
    for training in (True, False):
        probe.train(training)
        norm.train(training)
        expected = convolution(norm(z_BND.transpose(1, 2).unflatten(2, (2, 4))))
        torch.testing.assert_close(probe(z_BND, (2, 4)), expected)

    dropping: Any = linear(linear.Config(dropout=0.5), 6, 6)
    with torch.no_grad():
        dropping.head.weight.copy_(torch.eye(6))
    seen = dropping.train()(torch.ones(2, 8, 6), (2, 4))
    assert set(seen.unique().tolist()) == {0.0, 2.0}
    assert (seen == seen[:, :, :1, :1]).all()
    with pytest.raises(ConfigError, match=r"decoder.dropout=1.0 is impossible"):
        linear.Config(dropout=1.0)
