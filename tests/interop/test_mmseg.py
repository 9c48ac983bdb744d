"""mmsegmentation: the same logits and losses in both worlds, its own runner, and checkpoints both ways."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tiny_runs import CLOSED
from torch import Tensor

import whitebox
from whitebox.api import load_run
from whitebox.config import RunConfig, resolve
from whitebox.data import dataset_info
from whitebox.data.images import read_image
from whitebox.engine.checkpoint import save_model
from whitebox.engine.inference import segment
from whitebox.errors import CheckpointError, ConfigError, ModelError, OutputError, WhiteboxError
from whitebox.models import DECODERS, Segmentor, build

pytest.importorskip("mmseg", reason="needs the extra mmseg")
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from whitebox.interop.mmseg import ALIASES, from_mmseg, require_dataset, to_mmseg

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "mmsegmentation.md"
CLASSES = ("sky", "road", "car", "tree", "sign")
PALETTE = ((1, 2, 3), (40, 50, 60), (7, 8, 9), (200, 0, 0), (0, 0, 255))
TINY = {"width": 24, "depth": 2, "heads": 2, "image_size": 64}
SEVERAL = [name for name, decoder in DECODERS.items() if hasattr(decoder.Config(), "encoder_layers")]
WHOLE = {"model.test_cfg.mode": "whole", "model.data_preprocessor.test_cfg": {"_delete_": True, "size_divisor": 16}}


def tiny(decoder: str = "depict-sa", **overrides: Any) -> tuple[Segmentor, RunConfig]:
    """A small model with seeded weights, and a run config that tests photos of 64 px with windows of 64."""
    small = {"encoder": TINY, "decoder.name": decoder, "data.resize": 64, "inference.window": 64}
    if decoder in SEVERAL:
        small |= {"encoder.class_token": False, "encoder.final_norm": False, "decoder.encoder_layers": [0, 1]}
    if decoder == "segvit-shrunk":
        small |= {"encoder.shrink": 1}
    config = resolve("segmenter-linear-tiny", overrides={**small, "inference.stride": 48, **overrides})
    torch.manual_seed(0)
    model = build(config.encoder, config.decoder, len(CLASSES), CLASSES, PALETTE)
    for parameter in model.parameters():  # nothing stays zero, one or equal to another
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval(), config


def moved(model: Segmentor, config: RunConfig, folder: Path, **options: Any) -> Any:
    """The model in mmsegmentation."""
    to_mmseg(model, config, folder / "tiny.pth")
    return init_model(str(folder / "tiny.py"), str(folder / "tiny.pth"), device="cpu", cfg_options=options or None)


def sample(image_3HW: Tensor, label_HW: Tensor | None = None) -> SegDataSample:
    shape = tuple(image_3HW.shape[1:])
    made = SegDataSample(metainfo={"ori_shape": shape, "img_shape": shape})
    if label_HW is not None:
        made.gt_sem_seg = PixelData(data=label_HW[None])
    return made


def logits(net: Any, images_B3HW: Tensor) -> Tensor:
    """What mmsegmentation makes of RGB uint8 images, which it wants as BGR."""
    data = {"inputs": list(images_B3HW.flip(1)), "data_samples": [sample(image) for image in images_B3HW]}
    with torch.no_grad():
        return torch.stack([result.seg_logits.data for result in net.test_step(data)])


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


class TestSameNumbers:
    @pytest.mark.parametrize("decoder", CLOSED)
    def test_logits(self, decoder: str, tmp_path: Path) -> None:
        model, config = tiny(decoder)
        net = moved(model, config, tmp_path, **WHOLE)
        for height, width in ((64, 64), (45, 70)):  # the second is padded
            images = pixels(2, 3, height, width)
            with torch.no_grad():
                expected = model(images)
            assert expected.std() > 0.01
            torch.testing.assert_close(logits(net, images), expected, atol=1e-5, rtol=0)

    def test_logits_with_imagenet_statistics(self, tmp_path: Path) -> None:
        model, config = tiny(**{"encoder.name": "deit_tiny_distilled_patch16_224"})
        net = moved(model, config, tmp_path, **WHOLE)
        images = pixels(1, 3, 50, 64)
        with torch.no_grad():
            torch.testing.assert_close(logits(net, images), model(images), atol=1e-5, rtol=0)

    def test_probabilities_of_a_photo(self, tmp_path: Path) -> None:
        """Resized, in overlapping windows, from a file."""
        model, config = tiny()
        net = moved(model, config, tmp_path)
        noise = np.random.default_rng(0).integers(0, 256, (7, 11, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "photo.png"), cv2.resize(noise, (150, 90)))
        found = inference_model(net, str(tmp_path / "photo.png"))
        expected = segment(model, read_image(tmp_path / "photo.png"), config.inference, config.data)
        torch.testing.assert_close(found.seg_logits.data.softmax(0), expected, atol=1e-5, rtol=0)
        assert torch.equal(found.pred_sem_seg.data[0], expected.argmax(0))
        assert len(expected.argmax(0).unique()) > 1

    @pytest.mark.parametrize("decoder", ["depict-ca", "segvit"])
    @pytest.mark.parametrize("size", [(90, 150), (33, 150), (64, 128)])
    def test_labels_of_a_whole_photo(self, decoder: str, size: tuple[int, int], tmp_path: Path) -> None:
        """From there and back: the model that comes back is tested as mmsegmentation tests, whole."""
        model, config = tiny(decoder, **{"inference.window": None})
        net = moved(model, config, tmp_path)
        assert net.test_cfg.mode == "whole"
        back, run = from_mmseg(tmp_path / "tiny.pth")
        assert (run.inference.window, run.inference.stride) == (None, None)
        noise = np.random.default_rng(0).integers(0, 256, (7, 11, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "photo.png"), cv2.resize(noise, size[::-1]))
        found = inference_model(net, str(tmp_path / "photo.png"))
        expected = segment(back, read_image(tmp_path / "photo.png"), run.inference, config.data)
        said = found.seg_logits.data
        probabilities = said / said.sum(0) if model.decoder.scores else said.softmax(0)
        torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)
        assert (found.pred_sem_seg.data[0] == expected.argmax(0)).float().mean() > 0.999
        assert len(expected.argmax(0).unique()) > 1

    @pytest.mark.parametrize("decoder", CLOSED)
    def test_loss_and_gradients(self, decoder: str, tmp_path: Path) -> None:
        model, config = tiny(decoder)
        net = moved(model, config, tmp_path)
        images = pixels(2, 3, 64, 64)
        labels = torch.randint(0, len(CLASSES), (2, 64, 64), generator=torch.Generator().manual_seed(2))
        labels[:, :9] = 255
        data = {"inputs": list(images.flip(1)), "data_samples": list(map(sample, images, labels))}
        losses = net(**net.data_preprocessor(data, training=True), mode="loss")
        losses["decode.loss_ce"].backward()
        counts = model.loss.counts(labels, model.num_classes)
        expected = model.loss.mean(model(images, labels), counts)
        expected.backward()
        torch.testing.assert_close(losses["decode.loss_ce"], expected, atol=1e-5, rtol=0)
        ours = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        theirs = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
        assert len(ours) == len(theirs)
        for name, parameter in ours.items():
            prefix = "backbone." if name.startswith("encoder.") else "decode_head."
            torch.testing.assert_close(theirs[prefix + name].grad, parameter.grad, atol=1e-5, rtol=1e-3)


class TestConverter:
    @pytest.mark.parametrize("decoder", CLOSED)
    def test_there_and_back(self, decoder: str, tmp_path: Path) -> None:
        model, config = tiny(decoder)
        assert to_mmseg(model, config, tmp_path / "a.pth") == tmp_path / "a.py"
        back, again = from_mmseg(tmp_path / "a.pth")
        for (name, tensor), (same, other) in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
            assert name == same and torch.equal(tensor, other)
        assert (back.classes, back.palette) == (CLASSES, PALETTE)
        assert again.decoder == getattr(model.decoder, "config", config.decoder)
        assert again.inference == config.inference
        assert (again.model, again.data.name, again.data.kind) == (f"mmseg-{decoder}", "unknown", "")
        assert str(back.load_report).endswith(
            f"a.pth: mmsegmentation checkpoint, {decoder}; all {len(model.state_dict())} tensors matched"
        )
        assert not back.training

    def test_the_result_is_a_run(self, tmp_path: Path) -> None:
        model, config = tiny()
        to_mmseg(model, config, tmp_path / "a.pth")
        save_model(tmp_path / "run" / "model.safetensors", *from_mmseg(tmp_path / "a.pth", dataset="camvid"))
        loaded, again = load_run(tmp_path / "run")
        image = pixels(1, 3, 32, 48)
        assert torch.equal(loaded(image), model(image))
        assert (again.data.kind, again.data.crop, again.inference.stride) == ("camvid", 256, 48)

    def test_a_checkpoint_without_its_config(self, tmp_path: Path) -> None:
        model, config = tiny()
        to_mmseg(model, config, tmp_path / "a.pth")
        content = torch.load(tmp_path / "a.pth", weights_only=True)
        torch.save({"state_dict": content["state_dict"]}, tmp_path / "bare.pth")
        with pytest.raises(CheckpointError, match=r"bare.pth does not hold its config: give the one .* work_dir"):
            from_mmseg(tmp_path / "bare.pth")
        back, _ = from_mmseg(tmp_path / "bare.pth", tmp_path / "a.py")
        assert back.classes == tuple(f"class {index}" for index in range(5))
        assert torch.equal(back(pixels(1, 3, 32, 32)), model(pixels(1, 3, 32, 32)))

    def test_the_name_of_the_paper(self, checkpoint: Path) -> None:
        expected = from_mmseg(checkpoint)[0]
        edit(checkpoint, config=[("'whitebox.DepictSAHead'", "'whitebox.DEPICTHead'")])
        model, config = from_mmseg(checkpoint)
        assert config.decoder.name == "depict-sa"
        assert torch.equal(model(pixels(1, 3, 32, 32)), expected(pixels(1, 3, 32, 32)))

    def test_another_loss_is_said(self, tmp_path: Path) -> None:
        """mmsegmentation has no loss=atm."""
        model, config = tiny("segvit", **{"loss.name": "atm"})
        to_mmseg(model, config, tmp_path / "a.pth")
        first, rest = (tmp_path / "a.py").read_text().split("\n", 1)
        assert first == "# The run had loss=atm, which mmsegmentation lacks: loss_decode is cross-entropy."
        from_mmseg(tmp_path / "a.pth")
        assert Config.fromfile(tmp_path / "a.py").model.decode_head.loss_decode.type == "CrossEntropyLoss"
        to_mmseg(*tiny("segvit"), tmp_path / "b.pth")
        assert (tmp_path / "b.py").read_text() == rest

    def test_auxiliary_heads_stay_behind(self, checkpoint: Path) -> None:
        edit(checkpoint, tensors={"auxiliary_head.conv_seg.weight": torch.zeros(2)})
        from_mmseg(checkpoint)

    @pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_tiny_patch16_384"])
    def test_statistics_are_recognised(self, name: str, tmp_path: Path) -> None:
        model, config = tiny(**{"encoder.name": name})
        to_mmseg(model, config, tmp_path / "a.pth")
        back, again = from_mmseg(tmp_path / "a.pth")
        assert torch.equal(back.mean, model.mean) and torch.equal(back.std, model.std)
        assert again.encoder.normalization == ("deit" if "deit" in name else "vit")

    def test_imagenet_statistics_as_mmsegmentation_writes_them(self, checkpoint: Path) -> None:
        edit(checkpoint, config=[("mean=[127.5, 127.5, 127.5]", "mean=[123.675, 116.28, 103.53]")])
        edit(checkpoint, config=[("std=[127.5, 127.5, 127.5]", "std=[58.395, 57.12, 57.375]")])
        assert from_mmseg(checkpoint)[1].encoder.normalization == "deit"

    def test_the_generic_head_and_whole_images(self, checkpoint: Path) -> None:
        edit(checkpoint, config=[("type='whitebox.DepictSAHead'", "type='whitebox.DecodeHead', decoder='depict-sa'")])
        for old, new in (("mode='slide'", "mode='whole'"), (", mode='whole'", "")):  # which is mmsegmentation's default
            edit(checkpoint, config=[(old, new)])
            _, config = from_mmseg(checkpoint)
            assert config.decoder.name == "depict-sa"
            assert (config.inference.window, config.inference.stride) == (None, None)

    def test_a_window_that_is_no_whole_number_of_patches(self, tmp_path: Path) -> None:
        model, config = tiny(**{"inference.window": 72})
        with pytest.raises(ConfigError, match=r"inference.window=72 .* multiple of the patch size 16"):
            to_mmseg(model, config, tmp_path / "a.pth")
        with pytest.raises(ConfigError, match=r"output='.*a.ckpt' is impossible: .* called \*.pth"):
            to_mmseg(model, config, tmp_path / "a.ckpt")
        assert not list(tmp_path.iterdir())

    def test_a_file_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"Cannot write .*a.pth"):
            to_mmseg(*tiny(), tmp_path / "file" / "a.pth")

    def test_layers_follow_the_backbone(self, tmp_path: Path) -> None:
        """What the head is fed, not what its options say."""
        model, config = tiny("segvit", **{"encoder.depth": 3, "decoder.encoder_layers": [0, 2]})
        to_mmseg(model, config, tmp_path / "a.pth")
        old = "encoder_layers=[\n                0,\n                2,\n            ]"
        edit(tmp_path / "a.pth", config=[(old, "encoder_layers=[0, 1]")])
        back, again = from_mmseg(tmp_path / "a.pth")
        assert again.decoder.encoder_layers == [0, 2]
        assert torch.equal(back(pixels(1, 3, 32, 32)), model(pixels(1, 3, 32, 32)))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    to_mmseg(*tiny(), tmp_path / "a.pth")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    content["meta"]["cfg"] = re.sub(r"\s*\n\s*(?![a-z_]+ = )", " ", content["meta"]["cfg"])  # a statement a line
    content["meta"]["cfg"] = re.sub(r"([\[(]) | ?,? (?=[\])])", r"\1", content["meta"]["cfg"])
    torch.save(content, tmp_path / "a.pth")
    return tmp_path / "a.pth"


def edit(
    path: Path, config: Any = (), meta: dict[str, Any] | None = None, tensors: Any = (), rest: Any = (), drop: str = ""
) -> None:
    content = torch.load(path, weights_only=True)
    for old, new in config:
        assert content["meta"]["cfg"].count(old) == 1, content["meta"]["cfg"]
        content["meta"]["cfg"] = content["meta"]["cfg"].replace(old, new)
    content["meta"].update(meta or {})
    content["state_dict"].update(tensors)
    content["state_dict"].pop(drop, None)
    content.update(rest)
    torch.save(content, path)


class Evil:
    """Copies a file when it is unpickled as pickle does."""

    def __init__(self, folder: Path, function: Any = shutil.copyfile) -> None:
        self.folder, self.function = folder, function

    def __reduce__(self) -> tuple[object, tuple[Path, Path]]:
        return self.function, (self.folder / "a.py", self.folder / "ran")


class TestUntrusted:
    def test_objects_beside_the_weights_are_not_run(self, checkpoint: Path) -> None:
        folder = checkpoint.parent
        edit(checkpoint, rest={"message_hub": {"log": Evil(folder), "seen": np.arange(3.0), "where": folder}})
        from_mmseg(checkpoint)
        assert not (folder / "ran").exists()
        torch.load(checkpoint, weights_only=False)
        assert (folder / "ran").exists()  # so it was evil

    def test_what_torch_never_reads(self, checkpoint: Path) -> None:
        edit(checkpoint, rest={"message_hub": Evil(checkpoint.parent, os.rename)})
        with pytest.raises(CheckpointError, match="holds more than tensors and is not opened"):
            from_mmseg(checkpoint)
        assert not (checkpoint.parent / "ran").exists()

    def test_objects_among_the_weights_are_no_weights(self, checkpoint: Path) -> None:
        edit(checkpoint, tensors={"decode_head.decoder.norm.bias": Evil(checkpoint.parent)})
        with pytest.raises(CheckpointError, match=r"1 missing \(first: decoder.norm.bias\)"):
            from_mmseg(checkpoint)
        assert not (checkpoint.parent / "ran").exists()

    def test_the_config_is_not_run(self, checkpoint: Path) -> None:
        trap = checkpoint.parent / "ran"
        edit(checkpoint, config=[("custom_imports =", f"open({str(trap)!r}, 'w')\ncustom_imports =")])
        from_mmseg(checkpoint)
        edit(checkpoint, config=[("drop_path=0.1", f"drop_path=open({str(trap)!r}, 'w')")])
        with pytest.raises(CheckpointError, match=r"has no plain model=dict\(...\)"):
            from_mmseg(checkpoint)
        assert not trap.exists()


class TestBadInput:
    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("model = dict(", "model = dict(dict(), ", r"has no plain model=dict\(...\) with backbone"),
            ("model = dict(", "model = dict(**{}, ", r"has no plain model=dict"),
            ("model = dict(", "model = (", r"has no plain model=dict"),
            ("model = dict(", "net = dict(", r"has no plain model=dict"),
            ("backbone=dict(", "spine=dict(", r"has no plain model=dict"),
            ("'whitebox.Encoder'", "'VisionTransformer'", r"The backbone in .*a.pth is 'VisionTransformer', which has"),
            ("'whitebox.DepictSAHead'", "'FCNHead'", r"The decode_head in .*a.pth is 'FCNHead', which has no"),
            ("'whitebox.DepictSAHead'", "'whitebox.DecodeHead', decoder='depict'", r"Unknown decoder 'depict'; did"),
            ("model = dict(", "model = dict(neck=dict(type='FPN'), ", r"has a neck, which has no counterpart"),
            ("depth=2", "depths=2", r"does not describe a model of whitebox: Unknown key 'encoder.depths'; did you"),
            ("num_classes=5", "num_class=5", r"does not describe a model of whitebox: KeyError\('num_classes'\)"),
            ("num_classes=5", "num_classes='x'", r"does not describe a model of whitebox: ValueError"),
            ("num_classes=5", "num_classes=6", r"does not fit this model: .* of another shape"),
            (
                "depth=2",
                "depth=2, out_indices=[1]",
                r"does not describe a .* Unknown key 'decoder.encoder_layers'",
            ),
            ("crop_size=(64, 64)", "crop_size=64", r"does not describe a model of whitebox: TypeError"),
            ("crop_size=(64, 64)", "crop_size=(64, 96)", r"test_cfg.crop_size=\(64, 96\) is impossible: .* are square"),
            ("stride=(48, 48)", "stride=(32, 48)", r"test_cfg.stride=\(32, 48\) is impossible: .* are square"),
            ("stride=(48, 48)", "stride=(80, 80)", r"inference.stride=80 is impossible: at most window=64"),
            ("mode='slide'", "mode='slice'", r"test_cfg.mode='slice' is impossible: mmsegmentation knows whole and"),
            ("mean=[127.5, 127.5, 127.5]", "mean=[1, 2, 3]", r"data_preprocessor.mean in .* is \[1, 2, 3\]: whitebox"),
            ("std=[127.5, 127.5, 127.5]", "std=[1, 1, 1]", r"data_preprocessor.std in .* is \[1, 1, 1\]: whitebox"),
            ("mean=[127.5, 127.5, 127.5]", "median=[1]", r"data_preprocessor.mean in .* is None: whitebox"),
            ("std=[127.5, 127.5, 127.5]", "var=[1]", r"data_preprocessor.std in .* is None: whitebox"),
            ("std=[127.5, 127.5, 127.5]", "std=[1, [2], 'x']", r"data_preprocessor.std in .* is \[1, \[2\], 'x'\]"),
            ("'whitebox.DepictSAHead'", "['x']", r"The decode_head in .* is \['x'\], which has no"),
            ("model = dict(", "model = " + "-" * 3000 + "dict(", r"has no plain model=dict"),
            ("bgr_to_rgb=True", "bgr_to_rgb=False", r"has no bgr_to_rgb=True: models of whitebox take RGB"),
        ],
    )
    def test_configs(self, checkpoint: Path, old: str, new: str, message: str) -> None:
        edit(checkpoint, config=[(old, new)])
        with pytest.raises(CheckpointError, match=message) as raised:
            from_mmseg(checkpoint)
        assert "\n" not in str(raised.value)

    def test_damaged_checkpoints(self, checkpoint: Path) -> None:
        whole = checkpoint.read_bytes()
        edit(checkpoint, drop="decode_head.decoder.norm.bias")
        with pytest.raises(CheckpointError, match=r"1 missing \(first: decoder.norm.bias\)"):
            from_mmseg(checkpoint)
        edit(checkpoint, tensors={"decode_head.conv_seg.bias": torch.zeros(5)})
        with pytest.raises(CheckpointError, match=r"1 unexpected \(first: decode_head.conv_seg.bias\)"):
            from_mmseg(checkpoint)
        checkpoint.write_bytes(whole[:-5000])
        with pytest.raises(CheckpointError, match="is cut short or not a torch file"):
            from_mmseg(checkpoint)
        checkpoint.write_text("<html>")
        with pytest.raises(CheckpointError, match="is not a torch file"):
            from_mmseg(checkpoint)
        with pytest.raises(CheckpointError, match="There is no file"):
            from_mmseg(checkpoint.with_name("none.pth"))
        with pytest.raises(CheckpointError, match="There is no file"):
            from_mmseg(checkpoint.parent)

    @pytest.mark.parametrize("content", [[1], {"state_dict": {}}, {"model": {"fc": torch.zeros(1)}}, torch.zeros(2)])
    def test_of_another_project(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=r"is no mmsegmentation checkpoint .* needs its variant.yml"):
            from_mmseg(tmp_path / "a.pth")

    def test_classes_that_do_not_fit(self, checkpoint: Path) -> None:
        edit(checkpoint, meta={"dataset_meta": {"classes": ["a"], "palette": None}})
        model, _ = from_mmseg(checkpoint)
        assert model.classes[0] == "class 0"
        edit(checkpoint, meta={"dataset_meta": {"classes": 3, "palette": [[0, 0, "red"]] * 5}})
        with pytest.raises(CheckpointError, match="dataset_meta"):
            from_mmseg(checkpoint)

    def test_the_callers_own_mistakes(self, checkpoint: Path) -> None:
        with pytest.raises(ConfigError, match="Unknown dataset 'camvids'; did you mean 'camvid'"):
            from_mmseg(checkpoint, dataset="camvids")
        with pytest.raises(CheckpointError, match=r"The config .*none.py cannot be read"):
            from_mmseg(checkpoint, checkpoint.with_name("none.py"))

    @pytest.mark.parametrize(
        ("keys", "error", "message"),
        [
            ({"type": "whitebox.Encoder", "embed_dims": 3}, ConfigError, "Unknown key 'encoder.embed_dims'"),
            ({"type": "whitebox.Encoder", "pretrained": "a.pth"}, ConfigError, "encoder.pretrained='a.pth'"),
            (
                {"type": "whitebox.Encoder", "name": "resnet18"},
                ModelError,
                "'resnet18' is not a plain Vision Transformer",
            ),
            ({"decoder": "depict-as"}, ConfigError, r"Unknown decoder 'depict-as'; did you mean 'depict-(s|c)a'"),
            ({"decoder": "depict-sa", "options": {"layer": 2}}, ConfigError, "did you mean 'decoder.layers'"),
            ({"decoder": "depict-sa", "options": {"layers": 0}}, ConfigError, "decoder.layers=0 is impossible"),
            ({"decoder": "segvit-shrunk"}, ConfigError, r"options.grid=None is impossible: .* grid=32 for 512 px"),
            ({"decoder": "depict-sa", "num_classes": 1}, ConfigError, "num_classes=1 is impossible"),
            ({"decoder": "depict-sa", "in_index": [0, 1]}, ConfigError, "in_index=.* decoder depict-sa takes 1 of the"),
            ({"decoder": "segvit", "in_index": 3}, ConfigError, "in_index=3 is impossible: decoder segvit takes 3 of"),
            ({"type": "whitebox.Encoder", **TINY, "out_indices": [2]}, ModelError, r"\[2\] asks for block 2"),
        ],
    )
    def test_building(self, keys: dict[str, Any], error: type[WhiteboxError], message: str) -> None:
        head = {"type": "whitebox.DecodeHead", "in_channels": 8, "num_classes": 3}
        with pytest.raises(error, match=message) as raised:
            MODELS.build(keys if "type" in keys else {**head, **keys})
        assert "\n" not in str(raised.value)

    def test_images_that_are_no_whole_patches(self) -> None:
        encoder = MODELS.build({"type": "whitebox.Encoder", **TINY})
        with pytest.raises(ModelError, match=r"whitebox.Encoder got 32 x 45 px, no multiples of its patch size 16"):
            encoder(torch.zeros(1, 3, 32, 45))

    def test_features_that_are_missing(self) -> None:
        head = MODELS.build({"type": "whitebox.SegViTHead", "in_channels": 8, "num_classes": 3})
        with pytest.raises(ModelError, match=r"number \[0, 1, 2\] and got NoneType: in_channels and in_index must fit"):
            head([torch.zeros(1, 8, 2, 2)] * 2)

    @pytest.mark.parametrize("feature", [torch.zeros(1, 9, 2, 2), torch.zeros(1, 8, 4), [torch.zeros(1, 8, 2, 2)]])
    def test_features_that_are_no_maps(self, feature: Any) -> None:
        head = MODELS.build({"type": "whitebox.DepictSAHead", "in_channels": 8, "num_classes": 3})
        with pytest.raises(ModelError, match=r"takes maps \(B, 8, h, w\) number \[-1\] and got"):
            head((feature,))


class TestRegistry:
    def test_every_decoder_has_its_head(self) -> None:
        assert sorted(ALIASES.values()) == sorted([*CLOSED, "depict-sa"])
        assert ALIASES["DEPICTHead"] == ALIASES["DepictSAHead"] == "depict-sa"
        for title, name in ALIASES.items():
            options = {"grid": 4} if name == "segvit-shrunk" else None
            head = MODELS.build({"type": f"whitebox.{title}", "in_channels": 12, "num_classes": 3, "options": options})
            assert type(head.decoder) is DECODERS[name]
            assert [n for n, _ in head.named_parameters()] == [
                f"decoder.{n}" for n, _ in head.decoder.named_parameters()
            ]

    def test_the_document_names_them(self) -> None:
        named = set(re.findall(r"`whitebox\.(\w+Head)`", DOCUMENT.read_text()))
        assert named == {"DecodeHead", *ALIASES}

    def test_two_classes_need_no_advice(self, recwarn: pytest.WarningsRecorder) -> None:
        head = MODELS.build({"type": "whitebox.CBSAHead", "in_channels": 12, "num_classes": 2})
        assert head((torch.randn(1, 12, 4, 4),)).shape == (1, 2, 4, 4)
        assert not recwarn.list

    def test_another_map_than_the_last(self) -> None:
        head = MODELS.build({"type": "whitebox.DepictCAHead", "in_channels": 6, "in_index": 0, "num_classes": 3})
        assert head((torch.randn(1, 6, 4, 5), torch.randn(1, 99, 1, 1))).shape == (1, 3, 4, 5)

    def test_raw_tokens_of_some_blocks(self) -> None:
        backbone = MODELS.build({"type": "whitebox.Encoder", **TINY, "out_indices": [0, 1]}).eval()
        image = torch.randn(1, 3, 32, 48)
        with torch.no_grad():
            maps = backbone(image)
            last = backbone.encoder(image)[0]
        assert [tuple(each.shape) for each in maps] == [(1, 24, 2, 3)] * 2
        assert torch.equal(backbone.encoder.vit.norm(maps[1].flatten(2).transpose(1, 2)), last)

    def test_a_runner_leaves_loaded_weights_alone(self, tmp_path: Path) -> None:
        model, config = tiny()
        net = moved(model, config, tmp_path)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        net.init_weights()
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())

    def test_without_mmsegmentation(self) -> None:
        """Whatever needs no mmsegmentation works where it is not installed."""
        code = (
            "import sys\nfor name in ('mmseg', 'mmengine', 'mmcv'): sys.modules[name] = None\n"
            "import whitebox, whitebox.cli\n"
            "whitebox.create_model('depict-sa-tiny', 3, encoder={'width': 24, 'depth': 1, 'heads': 2})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)


SMALLER = {
    "256": "64",
    "4500": "20",
    "450": "20",
    "batch_size=8": "batch_size=2",
    "num_workers=4": "num_workers=0",
    "persistent_workers=True": "persistent_workers=False",
    "pretrained=True": "width=24, depth=2, heads=2",
    "in_channels=192": "in_channels=24",
    "interval=50": "interval=1",
    "pipeline=test_pipeline": "pipeline=test_pipeline, indices=3",
}


def smaller(text: str) -> str:
    for old, new in SMALLER.items():
        assert old in text
        text = text.replace(old, new)
    return text


class TestDocument:
    """Whoever copies the document's config and lines gets what it says, here on a small model and few images."""

    def test_config_training_and_checkpoints(
        self, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config, train, *_, convert = blocks()
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "camvid").symlink_to(shared / "data" / "camvid-mini")
        (tmp_path / "depict_ca_camvid.py").write_text(smaller(config))

        exec(train, {})
        (log,) = tmp_path.glob("work_dirs/depict_ca_camvid/*/vis_data/scalars.json")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        assert len(losses) == 20 and all(map(math.isfinite, losses))
        assert np.mean(losses[-5:]) < np.mean(losses[:5])
        assert [line["mIoU"] > 0 for line in lines if "mIoU" in line] == [True]

        exec(convert.replace("iter_4500", "iter_20"), {})
        model = whitebox.load_model("results/from-mmseg")
        assert model.classes[:2] == ("Sky", "Building") and model.palette[4] == (60, 40, 222)
        image = pixels(1, 3, 64, 64)
        for file, weights in (
            ("depict_ca_camvid.py", "work_dirs/depict_ca_camvid/iter_20.pth"),
            ("depict_ca.py", "depict_ca.pth"),
        ):
            net = init_model(file, weights, device="cpu")
            assert net.dataset_meta["classes"][0] == "Sky"
            with torch.no_grad():
                torch.testing.assert_close(logits(net, image), model(image), atol=1e-5, rtol=0)

    def test_the_complete_config_builds(self) -> None:
        """As it stands, but for the download."""
        config = Config.fromstring(blocks()[0], ".py")
        config.model.backbone.pretrained = False
        config.model.backbone.depth = 1
        net = MODELS.build(config.model)
        assert net.decode_head.decoder.width == net.backbone.encoder.width == 192

    @pytest.mark.parametrize(("name", "px"), [("segvit-tiny", 512), ("segvit-large-shrunk", 640)])
    def test_segvit_is_that_of_whitebox(self, name: str, px: int) -> None:
        """The whole encoder, and the decoder built beside it."""
        model: dict[str, Any] = {}
        for block in blocks()[3:5] if name.endswith("shrunk") else blocks()[3:4]:
            exec(block, model)
        model["backbone"]["pretrained"] = False
        wanted = resolve(name, None, {"encoder.image_size": px})
        with torch.device("meta"):
            expected = build(wanted.encoder, wanted.decoder, 150)
            backbone, head = (MODELS.build(model[part]) for part in ("backbone", "decode_head"))
        assert backbone.encoder.config == wanted.encoder
        assert backbone.out_indices == list(expected.decoder.encoder_layers)
        assert head.decoder.config == expected.decoder.config
        for own, theirs in ((expected.encoder, backbone.encoder), (expected.decoder, head.decoder)):
            assert {key: value.shape for key, value in theirs.state_dict().items()} == {
                key: value.shape for key, value in own.state_dict().items()
            }

    def test_a_backbone_of_mmsegmentation(self) -> None:
        names: dict[str, Any] = {}
        exec(blocks()[2], names)
        config = Config.fromstring(blocks()[0], ".py")
        config.model.backbone = {**names["backbone"], "num_layers": 1}
        net = MODELS.build(config.model)
        net.init_weights()
        images = pixels(1, 3, 256, 256)
        assert logits(net.eval(), images).shape == (1, 11, 256, 256)
        data = {"inputs": list(images), "data_samples": [sample(images[0], torch.zeros(256, 256, dtype=torch.long))]}
        losses = net.train()(**net.data_preprocessor(data, training=True), mode="loss")
        losses["decode.loss_ce"].backward()
        assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)


def test_the_test_pipeline_is_read_back(tmp_path: Path) -> None:
    """How photos are resized is part of what a model predicts."""
    config = resolve("segmenter-linear-tiny", "camvid", {"encoder": TINY, "data.resize": 96, "data.max_ratio": 2.5})
    classes, palette = dataset_info(config.data)
    model = build(config.encoder, config.decoder, len(classes), classes, palette)
    to_mmseg(model, config, tmp_path / "model.pth")
    again = from_mmseg(tmp_path / "model.pth", dataset="camvid")[1]
    assert (again.data.resize, again.data.max_ratio) == (96, 2.5)
    alone = from_mmseg(tmp_path / "model.pth")[1]
    assert (alone.data.kind, alone.data.resize, alone.data.max_ratio) == ("", 96, 2.5)


def test_a_dataset_of_other_classes(tmp_path: Path) -> None:
    """`whitebox convert` refuses it; its evaluation would."""
    config = resolve("segmenter-linear-tiny", "shapes", {"encoder": TINY})
    classes, palette = dataset_info(config.data)
    model = build(config.encoder, config.decoder, 7, classes, palette)
    camvid = resolve("segmenter-linear-tiny", "camvid").data
    with pytest.raises(
        CheckpointError, match=r"in a.pth has 7 classes and camvid has 11: give the dataset it was trained"
    ):
        require_dataset(model, camvid, Path("a.pth"))
    require_dataset(model, config.data, Path("a.pth"))
    model.classes = tuple("abcdefg")
    with pytest.raises(CheckpointError, match=r"Class 0 is 'a' in a.pth and 'background' in shapes"):
        require_dataset(model, config.data, Path("a.pth"))
