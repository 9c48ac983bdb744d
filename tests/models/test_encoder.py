"""Encoders: any timm ViT, any image size, weights from files, and what to say when they cannot be had."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from whitebox.errors import CheckpointError, ConfigError, ModelError
from whitebox.models import Encoder, EncoderConfig, hub, record

SMALL = {"width": 48, "depth": 2, "heads": 3}


def encoder(name: str = "vit_tiny_patch16_384", **options: object) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(name=name, **{"image_size": 64, **SMALL, **options})).eval()


def randomised(module: Encoder) -> Encoder:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return module


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (16, 16), (128, 48)])
def test_any_multiple_of_the_patch_size(size: tuple[int, int]) -> None:
    tokens, grid = encoder()(torch.randn(2, 3, *size))
    assert grid == (size[0] // 16, size[1] // 16)
    assert tokens.shape == (2, grid[0] * grid[1], 48)


def test_equals_timm_at_the_size_it_was_made_for() -> None:
    ours = randomised(encoder(norm_eps=1e-6))
    reference = timm.create_model("vit_tiny_patch16_384", img_size=64, embed_dim=48, depth=2, num_heads=3).eval()
    reference.load_state_dict(ours.vit.state_dict())
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours.tokens(images), reference.forward_features(images))


def test_positions_are_resampled_bilinearly_only_when_the_number_of_tokens_differs() -> None:
    module = randomised(encoder())
    same = torch.randn(1, 3, 32, 128)
    with record(module, "input") as heard:
        module(same)
    patches = module.vit.patch_embed.proj(same).flatten(2).transpose(1, 2)
    torch.testing.assert_close(heard["input"][:, 1:], patches + module.vit.pos_embed[:, 1:])

    wide = torch.randn(1, 3, 32, 96)
    with record(module, "input") as heard:
        module(wide)
    grid = module.vit.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    resized = F.interpolate(grid, size=(2, 6), mode="bilinear").flatten(2).transpose(1, 2)
    patches = module.vit.patch_embed.proj(wide).flatten(2).transpose(1, 2)
    torch.testing.assert_close(heard["input"][:, 1:], patches + resized)


@pytest.mark.parametrize(
    ("name", "prefix", "patch"),
    [
        ("deit_tiny_distilled_patch16_224", 2, 16),
        ("vit_small_patch14_dinov2", 1, 14),
        ("vit_small_patch14_reg4_dinov2", 5, 14),
        ("vit_small_patch16_dinov3", 5, 16),
        ("vit_base_patch8_224", 1, 8),
    ],
)
def test_other_timm_transformers(name: str, prefix: int, patch: int) -> None:
    options = {"depth": 1} if "dinov3" in name else SMALL
    module = Encoder(EncoderConfig(name=name, image_size=4 * patch, **options)).eval()
    assert module.prefix_tokens == prefix
    images = torch.randn(1, 3, 2 * patch, 3 * patch)
    with record(module, "layers.0.tokens") as heard:
        tokens, grid = module(images)
    assert grid == (2, 3)
    assert tokens.shape == (1, 6, module.width)
    assert heard["layers.0.tokens"].shape == (1, prefix + 6, module.width)
    torch.testing.assert_close(tokens, module(images)[0])


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_other_transformers_keep_the_conventions_of_timm(name: str) -> None:
    module = randomised(Encoder(EncoderConfig(name=name, image_size=56, **SMALL)).eval())
    images = torch.randn(1, 3, 42, 70)
    torch.testing.assert_close(module.tokens(images), module.vit.forward_features(images))


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (9, 2), (37, 41)])
def test_positions_as_the_authors_of_dinov2_resample_them(grid: tuple[int, int]) -> None:
    """Place i of the new grid lies at (i + 0.5) / (n + 0.1) * m - 0.5 of the old one; bicubic by hand, a = -0.75."""
    module = randomised(encoder("vit_small_patch14_dinov2", image_size=56, positions="dinov2"))
    with record(module, "input") as heard:
        module(torch.zeros(1, 3, 14 * grid[0], 14 * grid[1]))
    positions_hwD = module.vit.pos_embed[0, 1:].unflatten(0, (4, 4)).double()

    def weights(many: int) -> torch.Tensor:
        table = torch.zeros(many, 4, dtype=torch.float64)
        for place in range(many):
            at = (place + 0.5) * (1 / ((many + 0.1) / 4)) - 0.5 if many != 4 or grid != (4, 4) else float(place)
            for near in range(math.floor(at) - 1, math.floor(at) + 3):
                x, a = abs(at - near), -0.75
                weight = (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)
                table[place, min(max(near, 0), 3)] += weight
        return table

    expected = torch.einsum("hi,wj,ijD->hwD", weights(grid[0]), weights(grid[1]), positions_hwD).flatten(0, 1)
    patches = heard["input"][0, 1:] - module.vit.patch_embed.proj.bias
    torch.testing.assert_close(patches.double(), expected, atol=1e-5, rtol=1e-4)


def test_pixel_statistics() -> None:
    assert encoder().mean == (127.5, 127.5, 127.5)
    deit = encoder("deit_tiny_distilled_patch16_224")
    assert (deit.mean, deit.std) == ((123.68, 116.28, 103.53), (58.4, 57.12, 57.38))
    assert encoder(normalization="deit").mean == deit.mean
    with pytest.raises(ConfigError, match=r"encoder.normalization='clip' is impossible: choose vit or deit"):
        encoder(normalization="clip")


def test_the_classifier_is_kept_but_frozen() -> None:
    module = encoder()
    assert [name for name, value in module.named_parameters() if not value.requires_grad] == [
        "vit.head.weight",
        "vit.head.bias",
    ]


class TestWeights:
    def test_from_a_file_of_another_image_size(self, tmp_path: Path) -> None:
        source = randomised(encoder(image_size=64))
        save_file(source.vit.state_dict(), tmp_path / "vit.safetensors")
        loaded = encoder(image_size=96, weights=str(tmp_path / "vit.safetensors"))
        images = torch.randn(1, 3, 96, 96)
        torch.testing.assert_close(loaded.tokens(images), source.tokens(images))

    def test_without_a_classifier(self, tmp_path: Path) -> None:
        source = randomised(encoder())
        kept = {key: value for key, value in source.vit.state_dict().items() if not key.startswith("head.")}
        torch.save({"model": kept}, tmp_path / "vit.pth")
        loaded = encoder(weights=str(tmp_path / "vit.pth"))
        torch.testing.assert_close(loaded.vit.blocks[0].attn.qkv.weight, source.vit.blocks[0].attn.qkv.weight)

    def test_of_another_model(self, tmp_path: Path) -> None:
        save_file(encoder(width=96).vit.state_dict(), tmp_path / "vit.safetensors")
        with pytest.raises(CheckpointError, match=r"vit.safetensors does not fit this model: .* of another shape"):
            encoder(weights=str(tmp_path / "vit.safetensors"))

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="There is no file"):
            encoder(weights=str(tmp_path / "vit.pth"))

    def test_cut_short(self, tmp_path: Path) -> None:
        for name, save in (("vit.safetensors", save_file), ("vit.pth", torch.save)):
            save(encoder().vit.state_dict(), tmp_path / name)
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:2000])
            with pytest.raises(CheckpointError, match="cut short"):
                encoder(weights=str(tmp_path / name))

    @pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1"])
    def test_not_a_torch_file(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "vit.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"vit.pth is not a torch file"):
            encoder(weights=str(tmp_path / "vit.pth"))

    def test_pickled_code_is_not_run(self, tmp_path: Path) -> None:
        trap = tmp_path / "ran"

        class Evil:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return Path.touch, (trap,)

        torch.save({"model": Evil()}, tmp_path / "evil.pth")
        (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil()))
        for name in ("evil.pth", "plain.pth"):
            with pytest.raises(CheckpointError, match=name):
                encoder(weights=str(tmp_path / name))
        assert not trap.exists()

    def test_no_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub, "require_answer", lambda: (_ for _ in ()).throw(ConnectionError("no\nroute")))
        with pytest.raises(ModelError, match=r"could not be downloaded \(ConnectionError: no route\).*weights=FILE"):
            encoder(pretrained=True)


def test_unknown_and_impossible_models() -> None:
    with pytest.raises(ModelError, match="timm has no model 'vit_tinny'"):
        encoder("vit_tinny")
    for name in ("resnet18", "swin_tiny_patch4_window7_224", "beit_base_patch16_224", "hiera_tiny_224"):
        with pytest.raises(ModelError, match=f"'{name}' is not a plain Vision Transformer"):
            Encoder(EncoderConfig(name=name))
    with pytest.raises(ModelError, match=r"timm cannot build .* of {'embed_dim': 48, 'depth': 2, 'num_heads': 5}"):
        encoder(heads=5)
    with pytest.raises(ModelError, match=r"timm cannot build 'vit_tiny_patch16_384.foo'"):
        encoder("vit_tiny_patch16_384.foo")
    with pytest.raises(ModelError, match="'vit_small_r26_s32_224' is not a plain Vision"):
        Encoder(EncoderConfig(name="vit_small_r26_s32_224", image_size=64, depth=1))


def test_images_smaller_than_a_patch() -> None:
    with pytest.raises(
        ModelError, match=r"image_size=15 .* is smaller than a patch of 16 px: choose a larger data.crop"
    ):
        encoder(image_size=15)
    assert encoder(image_size=16)(torch.zeros(1, 3, 32, 32))[1] == (2, 2)


@pytest.mark.parametrize(
    "options", [{"drop_path": 1}, {"depth": 0}, {"width": -4}, {"image_size": 0}, {"norm_eps": 0}, {"weights": "a"}]
)
def test_impossible_settings(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=rf"^encoder.{next(iter(options))}=.* is impossible: "):
        EncoderConfig(pretrained="weights" in options, **options)


class TestIntermediateLayers:
    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize("class_tokens", [False, True])
    @pytest.mark.parametrize(
        "name", ["vit_tiny_patch16_384", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"]
    )
    @torch.inference_mode()
    def test_equal_timms(self, name: str, class_tokens: bool, norm: bool) -> None:
        """Our own forward pass, and timm's where positions are rotary."""
        options = {"depth": 3} if "dinov3" in name else {**SMALL, "depth": 3}
        patch = 14 if "14" in name else 16
        module = randomised(Encoder(EncoderConfig(name=name, image_size=4 * patch, norm_eps=1e-6, **options)).eval())
        images = torch.randn(2, 3, 4 * patch, 4 * patch)
        tokens, grids = module.intermediate(images, (0, 2), norm=norm, class_tokens=class_tokens)
        assert grids == [(4, 4), (4, 4)]
        found = module.vit.forward_intermediates(
            images, indices=[0, 2], norm=norm, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        for own, (patches, prefix) in zip(tokens, found, strict=True):
            torch.testing.assert_close(own, torch.cat([prefix, patches], dim=1) if class_tokens else patches)

    @pytest.mark.parametrize("name", ["vit_tiny_patch16_384", "vit_small_patch16_dinov3"])
    def test_no_later_block_runs(self, name: str) -> None:
        options = {"depth": 3} if "dinov3" in name else {**SMALL, "depth": 3}
        module = Encoder(EncoderConfig(name=name, image_size=64, **options)).eval()
        with torch.inference_mode(), record(module, "layers.*.tokens") as heard:
            (tokens,), _ = module.intermediate(torch.zeros(1, 3, 64, 64), (1,), class_tokens=True)
        assert list(heard) == ["layers.0.tokens", "layers.1.tokens"]
        assert torch.equal(heard["layers.1.tokens"], tokens)

    def test_the_last_one_normed_is_what_forward_gives(self) -> None:
        module, images = randomised(encoder()), torch.randn(1, 3, 64, 96)
        ((last,), _), (tokens, grid) = module.intermediate(images, (1,), norm=True), module(images)
        assert torch.equal(last, tokens) and grid == (4, 6)

    def test_without_the_class_token(self) -> None:
        """It is in no block, while its position stays with it: that of the patches is what it was."""
        with_token, without = encoder(), encoder(class_token=False)
        without.vit.load_state_dict(randomised(with_token).vit.state_dict())
        images = torch.randn(1, 3, 32, 48)
        with record(with_token, "input") as full, record(without, "input") as bare:
            with_token(images)
            assert without.tokens(images).shape == (1, 6, 48)
        torch.testing.assert_close(bare["input"], full["input"][:, 1:])
        assert (with_token.prefix_tokens, without.prefix_tokens) == (1, 0)
        assert not without.vit.cls_token.requires_grad

    def test_without_final_norm_there_is_no_classifier_either(self) -> None:
        module = randomised(encoder(final_norm=False))
        assert not [name for name in module.vit.state_dict() if name.startswith(("norm.", "head"))]
        images = torch.randn(1, 3, 64, 64)
        assert torch.equal(module(images)[0], module.intermediate(images, (1,))[0][0])

    def test_timms_weights_fit_without_norm_and_classifier(self, tmp_path: Path) -> None:
        source = randomised(encoder())
        save_file(source.vit.state_dict(), tmp_path / "vit.safetensors")
        loaded = encoder(final_norm=False, weights=str(tmp_path / "vit.safetensors"))
        images = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(loaded.intermediate(images, (1,))[0][0], source.intermediate(images, (1,))[0][0])

    @pytest.mark.parametrize(
        "options",
        [{"positions": "mmseg"}, {"class_token": False}, {"final_norm": False}, {"class_token": False, "shrink": 0}],
    )
    def test_what_timms_forward_pass_cannot(self, options: dict[str, object]) -> None:
        key = next(iter(options))
        with pytest.raises(
            ModelError, match=rf"'vit_small_patch16_dinov3' runs timm's own forward pass: encoder.{key}"
        ):
            Encoder(EncoderConfig(name="vit_small_patch16_dinov3", image_size=64, depth=1, **options))

    def test_positions_as_timm(self) -> None:
        images = torch.randn(1, 3, 32, 96)
        ours = randomised(encoder(positions="timm", norm_eps=1e-6))
        torch.testing.assert_close(ours.tokens(images), ours.vit.forward_features(images))
        by_family = encoder(norm_eps=1e-6)
        by_family.vit.load_state_dict(ours.vit.state_dict())
        assert not torch.allclose(by_family.tokens(images), ours.tokens(images))
