"""Configuration: layers of differences, and one line for what cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from whitebox.catalog import dataset_names, flatten
from whitebox.config import change, from_dict, resolve, to_dict, to_yaml
from whitebox.errors import ConfigError
from whitebox.models.decoders import DECODERS


def test_layers_in_order() -> None:
    config = resolve("depict-sa-large", "cityscapes", ["optim.lr=0.5", "train.epochs=3"])
    assert config.encoder.name == "vit_large_patch16_384"
    assert (config.decoder.layers, config.decoder.heads) == (6, 3)
    assert (config.data.crop, config.data.resize, config.inference.stride) == (768, 1024, 512)
    assert (config.optim.lr, config.train.epochs, config.train.batch_size) == (0.5, 3, 8)
    assert config.encoder.image_size == 768


@pytest.mark.parametrize(
    ("dataset", "epochs", "batch", "lr", "resize", "max_ratio", "crop", "window", "stride"),
    [  # config.yml and segm/data/config of Segmenter
        ("ade20k", 64, 8, 1e-3, 512, 4, 512, 512, 512),
        ("pascal-context", 256, 16, 1e-3, 520, 8, 480, 480, 320),
        ("cityscapes", 216, 8, 1e-2, 1024, 2, 768, 768, 512),
    ],
)
def test_official_recipes(
    dataset: str,
    epochs: int,
    batch: int,
    lr: float,
    resize: int,
    max_ratio: float,
    crop: int,
    window: int,
    stride: int,
) -> None:
    config = resolve("segmenter-mask-small", dataset)
    assert (config.train.epochs, config.train.batch_size, config.optim.lr) == (epochs, batch, lr)
    data = config.data
    assert (data.resize, data.max_ratio, data.crop) == (resize, max_ratio, crop)
    assert (data.scale_range, data.cat_max_ratio, data.flip, data.photometric) == ([0.5, 2.0], 0.75, 0.5, True)
    assert (config.inference.window, config.inference.stride) == (window, stride)
    optim = config.optim
    assert (optim.name, optim.momentum, optim.weight_decay, optim.min_lr, optim.power) == ("sgd", 0.9, 0, 1e-5, 0.9)


@pytest.mark.parametrize("dataset", dataset_names())
def test_every_dataset_resolves(dataset: str) -> None:
    assert resolve("depict-sa-tiny", dataset).data.name == dataset


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lrr=1"], r"^Unknown key 'optim.lrr'; did you mean 'optim.lr'\? `--print-config` shows all keys.$"),
        (["zzz=1"], r"^Unknown key 'zzz'. "),
        (["optim=1"], r"^Unknown key 'optim'"),
        (["optim.lr"], r"^Override 'optim.lr' is not of the form key=value"),
        (["=3"], r"is not of the form key=value"),
        (["optim.lr=[1"], r"^The value of 'optim.lr' cannot be read: "),
        (["optim.lr=fast"], r"^optim.lr='fast': Value 'fast' of type 'str' could not be converted to Float.$"),
        (["train.epochs=1.5"], r"^train.epochs=1.5: Value '1.5' of type 'float' could not be converted to Integer.$"),
        (["decoder.layers=many"], r"^decoder.layers='many'"),
        (["decoder.name=depict-xa"], r"^Unknown decoder 'depict-xa'; did you mean 'depict-sa'\?"),
        (["optim.name=adam"], r"^optim.name='adam' is impossible: choose sgd or adamw.$"),
        (["optim.lr=0"], r"^optim.lr=0.0 is impossible"),
        (["optim.lr=nan"], r"^optim.lr=nan is impossible"),
        (["optim.min_lr=1"], r"^optim.min_lr=1.0 is impossible: it lies in \[0, optim.lr=0.001\].$"),
        (["optim.momentum=1"], r"^optim.momentum=1.0 is impossible"),
        (["optim.weight_decay=-1"], r"^optim.weight_decay=-1.0 is impossible"),
        (["optim.clip_grad=0"], r"^optim.clip_grad=0.0 is impossible"),
        (["optim.warmup_steps=-1"], r"^optim.warmup_steps=-1 is impossible"),
        (["train.epochs=0"], r"^train.epochs=0 is impossible: it must be at least 1.$"),
        (["train.micro_batch=3"], r"^train.micro_batch=3 is impossible: it must divide train.batch_size=8.$"),
        (["train.precision=int8"], r"^train.precision='int8' is impossible: choose fp32, bf16 or fp16.$"),
        (["train.seed=-1"], r"^train.seed=-1 is impossible"),
        (["train.workers=-1"], r"^train.workers=-1 is impossible"),
        (["train.eval_every=-1"], r"^train.eval_every=-1 is impossible"),
        (["train.save_every_steps=0"], r"^train.save_every_steps=0 is impossible: it must be at least 1, or null.$"),
        (["train.ema=1"], r"^train.ema=1.0 is impossible: a decay lies in \(0, 1\).$"),
        (["train.trackers=[comet]"], r"^train.trackers=\['comet'\] is impossible: choose from"),
        (["data.crop=0"], r"^data.crop=0 is impossible"),
        (["data.scale_range=[2,1]"], r"^data.scale_range=\[2.0, 1.0\] is impossible"),
        (["data.cat_max_ratio=0"], r"^data.cat_max_ratio=0.0 is impossible"),
        (["data.scale_range=[0.5,.inf]"], r"^data.scale_range=\[0.5, inf\] is impossible"),
        (["data.name=../up"], r"^data.name='../up' is impossible: it names files"),
        (["data.name=.."], r"^data.name='..' is impossible"),
        (["optim.power=nan"], r"^optim.power=nan is impossible"),
        (["encoder.drop_path=2"], r"^encoder.drop_path=2.0 is impossible"),
        (["decoder.dropout=-1"], r"^decoder.dropout=-1.0 is impossible"),
        (["data.flip=2"], r"^data.flip=2.0 is impossible"),
        (["data.max_ratio=0.5"], r"^data.max_ratio=0.5 is impossible"),
        (["inference.stride=600"], r"^inference.stride=600 is impossible: at most window=512.$"),
        (["inference.stride=null"], r"^inference.stride=None is impossible: at most window=512.$"),
        (["inference.stride=0"], r"^inference.stride=0 is impossible: it must be at least 1.$"),
        (["inference.window=0"], r"^inference.window=0 is impossible: it must be at least 1.$"),
        (["inference.window=whole"], r"^inference.window='whole': Value 'whole' .* could not be converted to Integer"),
        (["inference.window=null", "inference.batch=0"], r"^inference.batch=0 is impossible: it must be at least 1.$"),
        (["inference.scales=[]"], r"^inference.scales=\[\] is impossible"),
        (["inference.batch=0"], r"^inference.batch=0 is impossible"),
        (["inference.scores=logits"], r"^inference.scores='logits' is impossible: choose shares or softmax.$"),
        (["data.train_max_ratio=0"], r"^data.train_max_ratio=0.0 is impossible"),
        (["data.max_ratio=.inf"], r"^data.max_ratio=inf is impossible"),
        (["loss=dice"], r"^loss.name='dice' is impossible: choose cross-entropy, atm or binary-cross-entropy.$"),
        (["loss=1"], r"^Unknown key 'loss'"),
        (["loss.ignore=void"], r"^loss.ignore='void' is impossible: choose negative or mask.$"),
        (["loss.focal=-1"], r"^loss.focal=-1.0 is impossible: it cannot be negative.$"),
        (["loss.no_object=0"], r"^loss.no_object=0.0 is impossible: it must be above 0.$"),
        (["optim.warmup_ratio=0"], r"^optim.warmup_ratio=0.0 is impossible: it lies in \(0, 1\].$"),
        (["optim.decoder_lr=0"], r"^optim.decoder_lr=0.0 is impossible"),
        (["train.steps=0"], r"^train.steps=0 is impossible: it must be at least 1, or null.$"),
        (
            ["encoder.positions=linear"],
            r"^encoder.positions='linear' is impossible: choose segmenter, mmseg, dinov2 or timm.$",
        ),
        (["encoder.shrink=4"], r"^encoder.shrink=4 is impossible: a class token has no place on the grid"),
    ],
)
def test_one_line_errors(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        resolve("depict-sa-tiny", "ade20k", overrides)
    assert "\n" not in str(raised.value)


def test_another_decoder_brings_its_own_keys() -> None:
    config = resolve("depict-sa-tiny", None, ["decoder.name=segmenter-mask", "decoder.width=64"])
    assert (config.decoder.name, config.decoder.width) == ("segmenter-mask", 64)


def test_a_section_is_named_in_short() -> None:
    config = resolve("depict-sa-tiny", "shapes", ["loss=atm", "decoder=segvit", "optim=sgd", "decoder.layers=2"])
    assert (config.loss.name, config.decoder.name, config.optim.name, config.decoder.layers) == (
        "atm",
        "segvit",
        "sgd",
        2,
    )
    assert resolve("depict-sa-tiny", None, {"loss": "atm", "encoder": "vit_small_patch16_384"}).loss.name == "atm"
    assert resolve("segvit-tiny").loss.name == "atm"
    assert resolve("depict-sa-tiny").loss.name == "cross-entropy"


def test_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHITEBOX_DATA", raising=False)
    assert resolve("depict-sa-tiny", "camvid").data.root == "data"
    monkeypatch.setenv("WHITEBOX_DATA", "elsewhere")
    assert resolve("depict-sa-tiny", "camvid").data.root == "elsewhere"
    assert resolve("depict-sa-tiny", "camvid", (), Path("given")).data.root == "given"


def test_saved_and_read_back(tmp_path: Path) -> None:
    config = resolve("depict-ca-small", "pascal-context", ["optim.clip_grad=2", "inference.scales=[0.5,1]"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_dict(OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))) == config
    assert from_dict(to_dict(config)) == config


def test_images_whole(tmp_path: Path) -> None:
    """The stride says nothing then: configurations that mean the same are the same."""
    config = resolve("depict-ca-tiny", "camvid", ["inference.window=null"])
    assert (config.inference.window, config.inference.stride) == (None, None)
    assert resolve("depict-ca-tiny", "camvid", ["inference.window=null", "inference.stride=9"]) == config
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_dict(OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))) == config
    assert change(resolve("depict-ca-tiny", "camvid"), None, ["inference.window=null"]) == config
    assert change(config, "camvid").inference.window == 256
    with pytest.raises(ConfigError, match=r"^inference.stride=None is impossible: at most window=64.$"):
        change(config, None, ["inference.window=64"])


def test_change_of_a_saved_run() -> None:
    saved = resolve("depict-ca-tiny", "shapes", ["train.epochs=7", "data.size=64"])
    same = change(saved)
    assert same == saved
    other = change(saved, "camvid", ["inference.stride=128"], "../there")
    assert (other.data.name, other.data.root, other.data.size) == ("camvid", "../there", 128)
    assert (other.inference.window, other.inference.stride) == (256, 128)
    assert (other.train.epochs, other.optim.name) == (7, saved.optim.name)
    with pytest.raises(ConfigError, match=r"optim.lr was fixed by the training: only data.\* and inference.\*"):
        change(saved, None, ["optim.lr=1"])
    with pytest.raises(ConfigError, match=r"Unknown key 'inference.windw'"):
        change(saved, None, ["inference.windw=1"])


BAD = (None, "x", -1, 10**30, float("nan"), [], [[1]], {"a": 1}, "${oc.env:HOME}", "\x1b[2J\n", "a" * 5000)


def test_a_configuration_whose_class_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a decoder that is defined in a function."""
    given = DECODERS["depict-sa"]

    @dataclass(frozen=True, kw_only=True)
    class Own(given.Config):  # type: ignore[name-defined, misc]
        own: int = 3

    monkeypatch.setitem(DECODERS, "own", type("OwnDecoder", (given,), {"Config": Own}))
    found = [resolve("own-tiny", "shapes", {"decoder.own": value}).decoder for value in (4, 5)]
    assert [each.own for each in [*found, resolve("own-tiny").decoder]] == [4, 5, 3]


@pytest.mark.slow
def test_any_value_of_a_saved_configuration_is_taken_or_refused_in_a_line() -> None:
    """Whatever somebody else wrote: no traceback, nothing resolved, no message of many lines or letters."""
    saved = to_dict(resolve("depict-sa-tiny", "camvid"))
    refused = []
    for index, key in enumerate(flatten(saved)):
        section, _, name = key.rpartition(".")
        for value in (BAD[(3 * index + more) % len(BAD)] for more in range(3)):
            changed = {**saved, section: {**saved[section], name: value}} if section else {**saved, name: value}
            try:
                taken = flatten(to_dict(from_dict(changed)))
            except ConfigError as error:
                refused.append(str(error))
            else:
                assert not isinstance(value, str) or taken[key] == value, (key, value)
    assert len(refused) > 150
    assert [line for line in refused if "\n" in line or len(line) > 1000] == []


@pytest.mark.parametrize(
    ("dataset", "overrides", "window", "stride"),
    [
        ("camvid", ["data.crop=128"], 128, 128),
        ("folder", ["data.crop=64"], 64, 64),
        ("pascal-context-segvit", ["data.crop=240"], 240, 160),  # its share of the window
        ("camvid", ["data.crop=128", "inference.window=192"], 192, 192),
        ("camvid", ["data.crop=128", "inference.stride=32"], 128, 32),
        ("camvid", ["data.crop=128", "inference.window=null"], None, None),
        ("camvid", ["inference.window=128"], 128, 128),
        ("camvid", [], 256, 256),
    ],
)
def test_windows_follow_the_crop(dataset: str, overrides: list[str], window: int | None, stride: int | None) -> None:
    """Unless they are given."""
    found = resolve("segmenter-linear-tiny", dataset, overrides).inference
    assert (found.window, found.stride) == (window, stride)
