"""Encoders, models, datasets and recipes by name: what each brings, which of them counts, and the names of before."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from omegaconf import OmegaConf

import whitebox
from whitebox import catalog
from whitebox.catalog import (
    about,
    configs_folder,
    dataset_names,
    datasets_of,
    described_models,
    encoder_names,
    flatten,
    model_names,
    recipe_names,
)
from whitebox.config import RunConfig, change, from_dict, resolve, to_dict
from whitebox.data import dataset_info
from whitebox.errors import ConfigError, ModelError
from whitebox.models.clip import CLIPEncoder
from whitebox.models.decoders import DECODERS
from whitebox.models.encoder import EncoderConfig

# What configurations were when a file was a model, or a dataset with its recipe (commit 40d43bd): differences from the
# defaults of each model, and of each dataset.
BEFORE: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "golden" / "configs.json").read_text(encoding="utf-8")
)
NOW = {
    "ade20k-640": ("ade20k", "segmenter-640"),
    "ade20k-segvit": ("ade20k", "segvit"),
    "coco-stuff10k-segvit": ("coco-stuff10k", "segvit"),
    "pascal-context-segvit": ("pascal-context", "segvit"),
    "pascal-context-59-segvit": ("pascal-context-59", "segvit"),
}


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was said before, and no folder was chosen."""
    catalog.tell.cache_clear()
    monkeypatch.delenv("WHITEBOX_DATA", raising=False)


def before(model: str, dataset: str) -> dict[str, Any]:
    """All keys and values of the configuration that a model and a dataset had."""
    chosen = BEFORE["models"][model]
    sections = {"encoder": EncoderConfig(), "decoder": DECODERS[chosen["decoder.name"]].Config()}
    defaults = to_dict(RunConfig(model=model, **sections))
    settings = {**flatten(defaults), **chosen, **BEFORE["datasets"][dataset]}
    return {**settings, "encoder.image_size": settings["data.crop"]}


def now(config: RunConfig) -> dict[str, Any]:
    return flatten(to_dict(config))


@pytest.mark.parametrize("model", BEFORE["models"])
def test_models_are_what_they_were(model: str) -> None:
    assert now(resolve(model, "cityscapes")) == before(model, "cityscapes")


@pytest.mark.parametrize("dataset", BEFORE["datasets"])
def test_datasets_are_what_they_were(dataset: str, caplog: pytest.LogCaptureFixture) -> None:
    """Those with a recipe in their name say what to write instead, and are named as the dataset they are."""
    config = resolve("segvit-large", dataset)
    name, recipe = NOW.get(dataset, (dataset, None))
    expected = {**before("segvit-large", dataset), "data.name": name}
    if dataset == "folder":
        expected["data.root"] = config.data.root  # found where the images are
    assert now(config) == expected
    assert config == resolve("segvit-large", name, recipe=recipe)
    told = [f"{dataset} is now a dataset with a recipe: write --dataset {name} --recipe {recipe}"]
    assert [record.message for record in caplog.records] == (told if recipe else [])


def test_no_model_is_lost() -> None:
    assert set(BEFORE["models"]) <= set(model_names())
    assert set(BEFORE["datasets"]) <= {*dataset_names(), *NOW}


def test_the_last_of_several_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults < encoder < decoder < dataset < recipe < overrides, key by key."""
    keys = ["data.max_ratio", "data.resize", "encoder.depth", "encoder.width", "optim.lr", "optim.power", "train.seed"]
    said = {
        "encoders/e.yaml": "encoder: {name: vit_tiny_patch16_384, width: 1, depth: 1}\n"
        "about: {patch: 16, image_size: 1, parameters: 1, pretraining: p, licence: l}",
        "decoders/depict-sa.yaml": "encoder: {depth: 2}\ndata: {resize: 2, max_ratio: 2}\n"
        "models: {m: {takes: e, data: {resize: 22}}}",
        "datasets/d.yaml": "data: {name: d, max_ratio: 3}\noptim: {lr: 3, power: 3}\nrecipe: r",
        "recipes/r.yaml": "optim: {power: 4}\ndatasets: {d: {train: {seed: 4}}}",
        "recipes/s.yaml": "optim: {power: 5}\ntrain: {seed: 5}",
    }
    for name, text in said.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("whitebox.catalog.configs_folder", lambda: tmp_path)

    def values(**options: Any) -> list[Any]:
        found = now(resolve("m", **options))
        return [found[key] for key in keys]

    assert values() == [2, 22, 2, 1, 1e-3, 0.9, 0]
    assert values(dataset="d") == [3, 22, 2, 1, 3, 4, 4]
    assert values(dataset="d", recipe="s") == [3, 22, 2, 1, 3, 5, 5]
    assert values(dataset="d", overrides=["optim.power=6", "encoder.depth=6"]) == [3, 22, 6, 1, 3, 6, 4]


def test_each_kind_of_file_says_its_own() -> None:
    """Datasets are data alone, recipes no model; what a file says differs from the defaults."""
    allowed = {
        "encoders": {"encoder", "about"},
        "decoders": {"encoder", "decoder", "loss", "models"},
        "datasets": {"data", "inference", "recipe"},
        "recipes": {"encoder", "decoder", "data", "inference", "loss", "optim", "train", "datasets"},
    }
    assert {path.name for path in configs_folder().iterdir()} == set(allowed)
    for kind, sections in allowed.items():
        for path in (configs_folder() / kind).glob("*.yaml"):
            said = OmegaConf.to_container(OmegaConf.load(path))
            assert set(said) <= sections, path


@pytest.mark.parametrize("dataset", dataset_names())
def test_files_hold_differences_only(dataset: str) -> None:
    """A name, kind or path may be the default's."""
    said = OmegaConf.to_container(OmegaConf.load(configs_folder() / "datasets" / f"{dataset}.yaml"))
    said.pop("recipe", None)
    defaults = now(resolve("segmenter-linear-tiny"))
    repeated = [key for key, value in flatten(said).items() if defaults[key] == value]
    assert set(repeated) <= {"data.name", "data.kind"}


class TestEncoders:
    @pytest.mark.slow
    @pytest.mark.parametrize("encoder", [name for name in encoder_names() if "convnext" not in name])
    def test_what_is_said_of_it(self, encoder: str) -> None:
        config, known = resolve("segmenter-linear-tiny", encoder=encoder).encoder, about(encoder)
        with torch.device("meta"):
            vit = timm.create_model(config.name, num_classes=0)
        used = [each for name, each in vit.named_parameters() if not name.startswith(("attn_pool.", "fc_norm."))]
        assert sum(each.numel() for each in used) / 1e6 == pytest.approx(known.parameters, abs=0.05)
        assert vit.patch_embed.patch_size == (known.patch, known.patch)
        assert len(vit.blocks) == known.depth
        assert vit.pretrained_cfg["input_size"] == (3, known.image_size, known.image_size)
        if not encoder.startswith("clip-"):  # OpenAI's are MIT; timm says Apache-2.0 of its copies
            assert vit.pretrained_cfg["license"] == known.licence.lower().replace(" ", "-")
        assert bool(known.gated) == encoder.startswith("dinov3-")
        if "vit" not in encoder and "deit" not in encoder:  # positions on the grid that they were learned on
            assert config.image_size == known.image_size

    @pytest.mark.parametrize("encoder", [name for name in encoder_names() if "convnext" in name])
    def test_what_is_said_of_a_convnext(self, encoder: str) -> None:
        known = about(encoder)
        with torch.device("meta"):
            built = CLIPEncoder(resolve("sed-tiny", encoder=encoder).encoder)
        tower = sum(each.numel() for part in (built.trunk, built.projection) for each in part.parameters())
        assert tower / 1e6 == pytest.approx(known.parameters, abs=0.05)
        assert built.patch_size == known.patch

    def test_a_decoder_takes_blocks_by_fraction_of_depth(self) -> None:
        """At 1/2, 2/3 and the end; with the large model at 1/3, 2/3 and the end, as published."""

        def blocks(model: str, encoder: str, *overrides: str) -> list[int]:
            return list(resolve(model, encoder=encoder, overrides=overrides).decoder.encoder_layers)

        assert blocks("segvit-base", "dinov2-base") == [5, 7, 11]
        assert blocks("segvit-base", "dinov2-large") == [11, 15, 23]
        assert blocks("segvit-base", "siglip2-so400m") == [13, 17, 26]
        assert blocks("segvit-large", "vit-large") == [7, 15, 23]
        assert blocks("segvit-large", "dinov2-base") == [3, 7, 11]
        assert blocks("segvit-base", "dinov2-large", "decoder.encoder_layers=[2,23]") == [2, 23]

    def test_the_page_says_the_same(self) -> None:
        page = (Path(__file__).parent.parent / "docs" / "encoders.md").read_text(encoding="utf-8")
        for encoder in encoder_names():
            config, known = resolve("segmenter-linear-tiny", encoder=encoder).encoder, about(encoder)
            sizes = f"{known.parameters:.1f} | {known.patch} | {known.image_size}"
            licence = f"{known.licence}{' (gated)' if known.gated else ''}"
            assert f"| `{encoder}` | `{config.name}` | {sizes} | {known.pretraining} | {licence} |\n" in page

    @pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
    def test_the_vit_of_the_size_is_its_own(self, size: str) -> None:
        assert resolve(f"depict-sa-{size}") == resolve(f"depict-sa-{size}", encoder=f"vit-{size}")

    def test_the_decoder_stays(self) -> None:
        config = resolve("depict-sa-large", encoder="deit-small")
        assert (config.encoder.name, config.decoder.layers) == ("deit_small_distilled_patch16_224", 6)
        config = resolve("segvit-small", encoder="deit-small")
        assert (config.encoder.name, config.encoder.positions) == ("deit_small_distilled_patch16_224", "mmseg")

    @pytest.mark.parametrize("overrides", [["encoder=dinov2-small"], {"encoder": "dinov2-small"}])
    def test_as_an_override(self, overrides: Any) -> None:
        assert resolve("depict-sa-small", "camvid", overrides) == resolve(
            "depict-sa-small", "camvid", encoder="dinov2-small"
        )
        with torch.device("meta"):
            model = whitebox.create_model("depict-sa-small", 5, encoder="dinov2-small")
        assert (model.encoder.patch_size, model.encoder.width, model.num_classes) == (14, 384, 5)

    def test_patches_are_whole(self, caplog: pytest.LogCaptureFixture) -> None:
        """What the user chooses stays; the stride follows the window."""
        config = resolve("depict-sa-small", "camvid", encoder="dinov2-small")
        sizes = config.data.crop, config.inference.window, config.inference.stride, config.encoder.image_size
        assert sizes == (252, 252, 252, 518) and config.data.resize == 256
        assert [record.message for record in caplog.records] == [
            "Whole patches of 14 px: data.crop=252 inference.window=252 inference.stride=252"
        ]
        config = resolve("depict-sa-small", "pascal-context", ["data.crop=300"], encoder="dinov2-small")
        assert (config.data.crop, config.inference.window, config.inference.stride) == (300, 300, 202)
        assert resolve("depict-sa-small", "ade20k", ["encoder.patch_size=32"]).data.crop == 512
        assert resolve("depict-sa-small", "shapes", ["data.crop=128"], encoder="dinov2-small").data.crop == 128
        timm_name = "encoder.name=vit_small_patch14_dinov2.lvd142m"
        assert resolve("depict-sa-small", "ade20k", [timm_name]).data.crop == 504

    def test_another_dataset_later(self) -> None:
        config = resolve("depict-sa-small", "camvid", encoder="dinov2-small")
        assert change(config, "cityscapes").inference.window == 756
        assert change(config).inference == config.inference


class TestNamesOfBefore:
    @pytest.mark.parametrize("name", NOW)
    def test_shown_as_before(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        """Where a run is shown other images, there is no recipe: the line has the settings, and they do the same."""
        run = resolve("segvit-tiny", "camvid")
        changed = change(run, name)
        (record,) = caplog.records
        _, _, line = record.message.partition("is now written --dataset ")
        dataset, *overrides = line.split()
        assert dataset == changed.data.name == NOW[name][0]
        assert change(run, dataset, overrides) == changed
        wanted = resolve("segvit-tiny", name)
        assert (changed.data, changed.inference) == (wanted.data, wanted.inference)

    def test_runs_that_were_saved_with_them(self) -> None:
        config = resolve("segvit-tiny", "ade20k", recipe="segvit")
        saved = to_dict(config)
        saved["data"]["name"] = "ade20k-segvit"
        assert from_dict(saved) == config

    def test_said_once(self, caplog: pytest.LogCaptureFixture) -> None:
        for _ in range(3):
            resolve("segvit-tiny", "ade20k-segvit")
        assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("segmentr-mask-tiny", {}, r"^Unknown model 'segmentr-mask-tiny'; did you mean 'segmenter-mask-tiny'\?"),
        ("segvit-shrunk-tiny", {}, r"^Unknown model 'segvit-shrunk-tiny'; did you mean 'segvit-"),
        (
            "depict-sa-tiny",
            {"dataset": "camvit"},
            r"^Unknown dataset 'camvit'; did you mean 'camvid'.*--dataset folder",
        ),
        (
            "depict-sa-tiny",
            {"encoder": "dinov2-smal"},
            r"'dinov2-smal'; did you mean 'dinov2-small'\? `whitebox encoders",
        ),
        ("depict-sa-tiny", {"overrides": ["encoder=deit-smal"]}, r"^Unknown encoder 'deit-smal'; did you mean 'deit-s"),
        ("depict-sa-tiny", {"encoder": "vit_tiny_patch16_384"}, r"^Unknown encoder 'vit_tiny_patch16_384'; did you"),
        ("depict-sa-tiny", {"recipe": "segvitt"}, r"^Unknown recipe 'segvitt'; did you mean 'segvit'\? `whitebox reci"),
    ],
)
def test_unknown_names(model: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        resolve(model, **options)
    assert "\n" not in str(raised.value)


def test_an_encoder_without_a_block_that_is_asked_for() -> None:
    message = r"asks for block 23, but the encoder has 12"
    with torch.device("meta"), pytest.raises(ModelError, match=message) as raised:
        whitebox.create_model("segvit-small", 3, decoder={"encoder_layers": [7, 15, 23]})
    assert "\n" not in str(raised.value)


def test_the_papers_size_for_large_models() -> None:
    config = resolve("segmenter-mask-large", "ade20k", recipe="segmenter-640")
    assert (config.data.resize, config.data.crop, config.inference.window, config.inference.stride) == (640,) * 4
    assert (config.train.epochs, config.train.batch_size, config.optim.lr) == (64, 8, 1e-3)


@pytest.mark.parametrize("recipe", recipe_names())
def test_recipes_name_datasets(recipe: str) -> None:
    """And work on one that they do not name."""
    for dataset in (*datasets_of(recipe), "folder"):
        assert resolve("segmenter-linear-tiny", dataset, recipe=recipe).data.name == dataset


@pytest.mark.parametrize(
    ("dataset", "classes", "crop", "stride", "train_ratio", "ratio", "power", "decay", "steps"),
    [  # shared/reference/segvit_sed.md, section A7; a ratio of 100 stands for no limit
        ("ade20k", 150, 640, 608, None, 3.2, 1.0, 0.01, 160_000),
        ("coco-stuff10k", 171, 512, 341, 4.0, 100.0, 2.0, 0.02, 80_000),
        ("pascal-context", 60, 480, 320, 1.0, 100.0, 1.0, 0.03, 80_000),
        ("pascal-context-59", 59, 480, 320, 1.0, 100.0, 1.0, 0.03, 80_000),
    ],
)
def test_recipes_of_segvit(
    dataset: str,
    classes: int,
    crop: int,
    stride: int,
    train_ratio: float | None,
    ratio: float,
    power: float,
    decay: float,
    steps: int,
) -> None:
    config = resolve("segvit-large", dataset, recipe="segvit")
    data, optim = config.data, config.optim
    assert len(dataset_info(data)[0]) == classes
    assert (data.crop, data.train_max_ratio, data.max_ratio) == (crop, train_ratio, ratio)
    assert data.resize == (520 if crop == 480 else crop)
    assert (config.inference.window, config.inference.stride, config.encoder.image_size) == (crop, stride, crop)
    assert (optim.name, optim.lr, optim.min_lr, optim.power, optim.weight_decay) == ("adamw", 2e-5, 0, power, decay)
    assert (optim.warmup_steps, optim.warmup_ratio, optim.clip_grad) == (1500, 1e-6, 35)
    assert (optim.decoder_lr, optim.decay_norms) == (10, False)
    assert (config.train.steps, config.train.batch_size, config.loss.name) == (steps, 16, "atm")


@pytest.mark.parametrize(
    ("overrides", "pretrained"),
    [
        ({}, True),
        ({"encoder.weights": "file.safetensors"}, False),
        ({"encoder.random": True}, False),
        ({"encoder.pretrained": False}, False),
    ],
)
def test_frozen_encoders_are_pretrained_unless_said_otherwise(overrides: dict[str, Any], pretrained: bool) -> None:
    config = resolve("depict-sa-small", "camvid", overrides, encoder="dinov2-small", recipe="frozen")
    assert (config.encoder.frozen, config.encoder.pretrained) == (True, pretrained)
    assert not resolve("depict-sa-small", "camvid").encoder.pretrained


def test_recipes_of_encoders() -> None:
    """The published linear probes are for the linear decoder; fine-tuning takes pretrained weights or a file's."""
    for probe in ("dinov2-linear", "dinov3-linear"):
        config = resolve("segmenter-linear-small", "ade20k", encoder="dinov2-small", recipe=probe)
        assert (config.encoder.frozen, config.decoder.batch_norm, config.train.steps) == (True, True, 40000)
        assert config.data.crop == config.inference.window == 504  # whole patches of 14 px
        with pytest.raises(ConfigError, match=r"Unknown key 'decoder.batch_norm' in configs/recipes"):
            resolve("depict-sa-small", "ade20k", encoder="dinov2-small", recipe=probe)
    assert resolve("depict-sa-small", "camvid", encoder="dinov2-small", recipe="finetune").encoder.pretrained
    tuned = resolve("depict-sa-small", "camvid", ["encoder.weights=w"], encoder="dinov2-small", recipe="finetune")
    assert (tuned.encoder.pretrained, tuned.encoder.weights, tuned.encoder.frozen) == (False, "w", False)


def test_models_are_offered_without_waiting_for_pytorch() -> None:
    code = "import sys; from whitebox import catalog; print(*catalog.described_models(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [*model_names(), "False"] and described_models() == model_names()
