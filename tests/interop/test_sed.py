"""Official checkpoints of SED become runs: strictly, and without unpickling anything but tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sed_vectors import PREFIX, Case, state_dict
from torch import Tensor

from whitebox.api import load_run
from whitebox.errors import CheckpointError
from whitebox.interop.sed import CLIP, our_name
from whitebox.models import CLIPConfig, OpenSegmentor, build
from whitebox.models.decoders.sed import SEDConfig

Call = Callable[..., tuple[int, str, str]]
TABLE = f"{CLIP}token_embedding.weight"


@pytest.fixture(scope="module")
def official(shared: Path) -> tuple[Case, dict[str, Tensor]]:
    """A checkpoint's state dict by the official names."""
    case = Case(shared / "golden", "sed_trace")
    tensors = {PREFIX + name: tensor for name, tensor in case.weights.items() if "token_embedding.used" not in name}
    return case, {**tensors, TABLE: state_dict(case)["encoder.text.token_embedding.weight"]}


@pytest.fixture
def checkpoint(official: tuple[Case, dict[str, Tensor]], tmp_path: Path) -> Path:
    path = tmp_path / "model_final.pth"
    torch.save({"model": official[1], "scheduler": {"base_lrs": [2e-4], "last_epoch": 8}, "iteration": 7}, path)
    return path


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((80, 50)).save(tmp_path / "photos" / "one.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("name", ["base", "large"])
def test_names_and_shapes_are_those_of_the_released_models(shared: Path, name: str) -> None:
    configs = json.loads((shared / "golden" / "segvit_sed" / "real_configs.json").read_text(encoding="utf-8"))
    lists = [each for each in _shape_lists(configs) if any(key.startswith("conv1.") for key in each)]
    assert lists
    clip = {"base": "clip_convnext_base_w_320", "large": "clip_convnext_large_d_320"}[name]
    with torch.device("meta"):
        model = build(CLIPConfig(name=clip), SEDConfig(), 171)
    ours = {key: list(each.shape) for key, each in model.state_dict().items()}
    mine = {key: shape for key, shape in ours.items() if key.startswith("decoder.")}
    theirs = [{our_name(f"{PREFIX}transformer.{key}"): list(shape) for key, shape in each.items()} for each in lists]
    assert mine in theirs or name == "large"  # the vectors list the names of the base model alone
    assert len(ours) == {"base": 608, "large": 658}[name]


def _shape_lists(tree: object) -> list[dict[str, list[int]]]:
    """The tables of names and shapes somewhere in a JSON."""
    if not isinstance(tree, dict):
        return []
    if tree and all(isinstance(value, list) and all(isinstance(n, int) for n in value) for value in tree.values()):
        return [tree]
    return [found for value in tree.values() for found in _shape_lists(value)]


def test_a_checkpoint_loads_strictly(checkpoint: Path, official: tuple[Case, dict[str, Tensor]]) -> None:
    case, tensors = official
    model, config = load_run(checkpoint)
    assert isinstance(model, OpenSegmentor) and len(model.classes) == 171 and not model.training
    assert model.load_report is not None and model.load_report.matched == len(tensors)
    model.encoder.image_size = 96
    model.set_vocabulary(case.facts["test_classes"], features_TPD=case["text.features_test"])
    with torch.no_grad():
        masks = model.predict(case["in.image"][None].to(torch.uint8)).masks_BKhw
    assert float((masks.flatten(0, 1)[:, None] - case["pool1.agg.head"]).abs().max()) < 1e-4
    assert (config.inference.window, config.data.resize, config.data.transforms) == (None, 640, "detectron2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(f"{PREFIX}transformer.head1.bias"), "1 missing"),
        (lambda tensors: tensors.update({f"{PREFIX}transformer.head9.bias": torch.zeros(1)}), "1 unexpected"),
        (lambda tensors: tensors.pop(f"{CLIP}text_projection"), "do not describe a SED"),
        (
            lambda tensors: tensors.update({f"{PREFIX}transformer.conv1.weight": torch.zeros(48, 7, 7, 7)}),
            "7 prompts a name",
        ),
        (
            lambda tensors: tensors.update({f"{PREFIX}transformer.decoder2.up.bias": torch.zeros(3)}),
            "1 of another shape",
        ),
    ],
)
def test_another_checkpoint_is_refused(
    official: tuple[Case, dict[str, Tensor]],
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], object],
    message: str,
) -> None:
    tensors = dict(official[1])
    change(tensors)
    torch.save({"model": tensors}, tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match=message) as refused:
        load_run(tmp_path / "model_final.pth")
    assert "\n" not in str(refused.value)


def test_from_a_checkpoint_to_pictures(checkpoint: Path, photos: Path, tmp_path: Path, call: Call) -> None:
    """Convert, predict any words, reject early, and be told what cannot be."""
    code, out, _ = call("convert", checkpoint, "-o", tmp_path / "run")
    assert code == 0 and "all 209 tensors matched" in out
    names = tmp_path / "names.txt"
    names.write_text("cat\n\nsofa, couch\nstriped cushion\n", encoding="utf-8")
    for options in (("--classes", "cat, sofa, striped cushion"), ("--vocabulary", names, "--fast", "--topk", 2)):
        code, out, err = call("predict", tmp_path / "run", photos, *options, "--probabilities", "-o", tmp_path / "out")
        assert code == 0, err
        with np.load(tmp_path / "out" / "one_probabilities.npz") as found:
            assert found["probabilities"].shape == (3, 50, 80)
            assert list(found["classes"])[1] in ("sofa", "sofa, couch")
        assert np.asarray(Image.open(tmp_path / "out" / "one_labels.png")).max() < 3
    assert len(list((tmp_path / "cache" / "text").iterdir())) == 2
    for options, message in (
        (("--classes", ""), "The vocabulary is empty"),
        (("--classes", "cat, dog, Cat"), "is class 1 already"),
        (("--classes", f"cat, {'very ' * 200}big"), "at most 77"),
        (("--classes", "cat, dog", "--fast", "--topk", 3), "topk=3 is impossible: there are 2 classes"),
        (("--classes", "cat, dog", "--topk", 1), "add --fast"),
        (("--classes", "a", "--vocabulary", "ade150"), "give one of them"),
        (("--vocabulary", tmp_path / "none.txt"), "cannot be read: No such file"),
        (("--vocabulary", tmp_path / "photos" / "one.png"), "cannot be read: "),
    ):
        code, _, err = call("predict", tmp_path / "run", photos, *options, "-o", tmp_path / "out")
        assert code != 0 and err.count("\n") == 1 and message in err, (options, err)


def test_a_closed_vocabulary_stays_closed(photos: Path, tmp_path: Path, call: Call) -> None:
    from tiny_runs import tiny_run

    run = tiny_run(tmp_path / "closed")
    for options in (("--classes", "cat, dog"), ("--fast",)):
        code, _, err = call("predict", run, photos, *options, "-o", tmp_path / "out")
        assert code != 0 and "the classes it was trained with" in err and err.count("\n") == 1
