"""Every command on models of an open vocabulary: it works, or one line says what does not apply."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.measures.maps import class_maps
from analysis.measures.samples import open_photo, predicted_patches
from whitebox.config import resolve
from whitebox.data import open_shapes
from whitebox.engine.checkpoint import save_model
from whitebox.engine.inference import predict_labels, rejecting
from whitebox.errors import CheckpointError
from whitebox.models import OpenSegmentor, build, record
from whitebox.runs import Run, open_run

Call = Callable[..., tuple[int, str, str]]
MODELS = ("sed-tiny", "depict-sa-open-tiny", "cbsa-open-tiny")
NAMES = ("ground", "red striped star", "blue plain circle", "pink dotted cross")
SMALL = {"data.size": 64, "data.crop": 64, "data.resize": 48, "data.val_length": 2, "encoder.text_layers": 1}


def saved(folder: Path, name: str, names: tuple[str, ...], **changes: object) -> Path:
    """An untrained run, whose predictions differ from place to place."""
    config = resolve(name, "open-shapes", {**SMALL, **{key.replace("__", "."): each for key, each in changes.items()}})
    torch.manual_seed(0)
    model = build(config.encoder, config.decoder, len(names), names)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    save_model(folder / "model.safetensors", model, config)
    return folder


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs by the names of their models, a photo whose sides are no multiples of a patch, and one of a video."""
    folder = tmp_path_factory.mktemp("open")
    for name in MODELS:
        saved(folder / name, name, open_shapes.names("seen"))
    pixels, _ = open_shapes.draw(0, "held-out", 0, 96)
    (folder / "frames").mkdir()
    for index in range(2):
        Image.fromarray(pixels[:, index : 70 + index]).save(folder / "frames" / f"{index}.png")
    Image.fromarray(pixels[:66]).save(folder / "photo.png")
    return folder


@pytest.fixture
def here(there: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(there)
    return there


COMMANDS: dict[str, str] = {
    "eval RUN --dataset open-shapes-held-out data.size=64": "records/eval-*.json",
    "robustness RUN --noise 0.1 --draws 1 --limit 1 --no-sigma-50": "records/parameter_noise-*.json",
    "robustness RUN --noise 0.1 --target input --draws 1 --limit 1 --no-sigma-50": "records/input_noise-*.json",
    "profile RUN --size 64 --repeats 1": "records/profile-*.json",
    "predict RUN frames --video clip.mp4 --fps 5": "clip.mp4",
}
# what no model of maps has, and what is said of it
NOT_OF_SED = {
    "rank-analysis RUN --limit 1": "has no tokens along its layers, but maps of each class: this does not apply",
    "orthogonality RUN --draws 2": "has no subspaces",
    "alignment RUN --limit 1 --draws 1": "has no subspaces",
    "ablate RUN --limit 1 --draws 1": "has no layer whose change of the tokens can be taken away",
    "similarity RUN --limit 1 --draws 1": "has no tokens along its layers, but maps of each class: this does not apply",
    "pca RUN photo.png": "no patch tokens enter the decoder",
    "intervene RUN --ortho head_ortho --limit 1": "no subspace attention, so there are no bases to replace",
    "attention RUN photo.png": "--masks shows its maps of classes",
    "attention RUN photo.png --encoder": "has no attention from a class token to patches",
}
OF_WHITE_BOXES = {
    "rank-analysis RUN --limit 1": "records/rank_analysis-*.json",
    "orthogonality RUN --draws 2": "records/orthogonality-*.json",
    "alignment RUN --limit 1 --draws 1": "records/alignment-*.json",
    "ablate RUN --limit 1 --draws 1 --layers decoder.layers.0": "records/ablate-*.json",
    "similarity RUN --limit 1 --draws 1": "records/similarity-*.json",
    "pca RUN photo.png": "records/pca-*.json",
    "attention RUN photo.png": "records/attention-*.json",
    "intervene RUN --ortho head_ortho --limit 1": "model.safetensors",
}


def words(command: str, name: str, output: Path) -> list[str]:
    return [*command.replace("RUN", name).split(), "--device", "cpu", "-o", str(output)]


@pytest.mark.parametrize("name", MODELS[:2])
@pytest.mark.usefixtures("empty_pictures")
@pytest.mark.parametrize("command", COMMANDS)
def test_what_every_model_does(command: str, name: str, here: Path, tmp_path: Path, call: Call) -> None:
    code, _, err = call(*words(command, name, tmp_path / "out"))
    assert code == 0, err
    assert list((tmp_path / "out").glob(COMMANDS[command])), command


@pytest.mark.parametrize("command", NOT_OF_SED)
def test_what_does_not_apply_to_sed_is_one_line(command: str, here: Path, tmp_path: Path, call: Call) -> None:
    _, out, err = call(*words(command, "sed-tiny", tmp_path / "out"))
    lines = [line for line in (out + err).splitlines() if NOT_OF_SED[command] in line]
    assert len(lines) == 1, out + err


@pytest.mark.usefixtures("empty_pictures")
@pytest.mark.parametrize(
    ("name", "command"),
    [*(("depict-sa-open-tiny", command) for command in OF_WHITE_BOXES), ("cbsa-open-tiny", "attention RUN photo.png")],
)
def test_white_boxes_of_names_are_measured_as_others(
    name: str, command: str, here: Path, tmp_path: Path, call: Call
) -> None:
    code, out, err = call(*words(command, name, tmp_path / "out"))
    assert code == 0, err
    assert "not apply" not in out + err
    assert list((tmp_path / "out").glob(OF_WHITE_BOXES[command])), command


def opened(name: str, folder: Path, **changes: object) -> Run:
    return open_run(saved(folder, name, NAMES, **changes), device="cpu")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("squash", [False, True])
def test_labels_of_a_photo_of_any_size(name: str, squash: bool, here: Path, tmp_path: Path) -> None:
    """As the model itself gives them, also where the photo is padded to whole patches."""
    run = opened(name, tmp_path, encoder__squash=squash, encoder__image_size=64 if squash else None)
    photo = open_photo(Path("photo.png"), run)
    shown_HW3 = (photo.pixels_13hw[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    with torch.inference_mode():
        expected_HW = run.model.eval()(torch.from_numpy(shown_HW3).permute(2, 0, 1)[None])[0].argmax(0)
    assert shown_HW3.shape == ((64, 64, 3) if squash else (48, 70, 3))
    assert len(expected_HW.unique()) > 1
    found_HW = predict_labels(run.model, shown_HW3, run.config.inference)
    assert (found_HW == expected_HW).float().mean() > 0.999  # rounding where two are alike


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("squash", [False, True])
def test_patches_of_a_photo_are_places_of_the_masks(name: str, squash: bool, here: Path, tmp_path: Path) -> None:
    run = opened(name, tmp_path, encoder__squash=squash, encoder__image_size=64 if squash else None)
    photo = open_photo(Path("photo.png"), run)
    labels_hw = predicted_patches(run, photo)
    assert photo.grid == tuple(labels_hw.shape)
    truth_hw = photo.labels(np.zeros((66, 96), np.uint8))
    assert truth_hw.shape == labels_hw.shape
    assert (truth_hw == 255).any() != squash  # what is padded has no class


class TestMapsOfClasses:
    def test_they_are_the_cost_and_the_masks_of_each_layer(self, here: Path, tmp_path: Path) -> None:
        run = opened("sed-tiny", tmp_path)
        photo = open_photo(Path("photo.png"), run)
        found = class_maps(run.model, photo.pixels_13hw)
        layers = [f"decoder.layers.{index}" for index in range(3)]
        assert list(found) == ["decoder.cost", *layers, "decoder.last"]
        with torch.enable_grad(), record(run.model, "decoder.*") as seen:  # the formulas as they stand
            run.model.eval().masks(photo.pixels_13hw)
        (h, w), K = photo.grid, len(NAMES)
        for index, layer in enumerate(layers):
            whole = found[layer].view(K, h, w)
            times = 2 ** (3 - index)
            expected = seen[f"{layer}.masks"][0].sigmoid()
            torch.testing.assert_close(whole, expected.repeat_interleave(times, 1).repeat_interleave(times, 2))
        torch.testing.assert_close(found["decoder.last"].view(K, h, w), seen["decoder.masks"][0].sigmoid())
        cost = seen["decoder.cost"][0].mean(1).clamp(min=0)
        torch.testing.assert_close(found["decoder.cost"].view(K, h, w)[:, ::8, ::8], cost)

    def test_early_rejection_leaves_none_of_what_is_rejected(self, here: Path, tmp_path: Path, call: Call) -> None:
        run = opened("sed-tiny", tmp_path)
        photo, model = open_photo(Path("photo.png"), run), run.model
        whole, few = class_maps(model, photo.pixels_13hw), class_maps(model, photo.pixels_13hw, topk=1)
        assert list(whole) == list(few)
        with torch.inference_mode(), record(model, "decoder.layers.*.kept") as kept, rejecting(model, 1):
            model.eval().masks(photo.pixels_13hw)
        entered = [kept[f"decoder.layers.{index}.kept"][0] for index in range(3)]
        assert not entered[0].all()  # else nothing is seen here
        for name, before in zip(("layers.1", "layers.2", "last"), entered, strict=True):
            maps_KN = few[f"decoder.{name}"]
            assert torch.equal(maps_KN.any(1), before)
        for name in ("decoder.cost", "decoder.layers.0"):
            torch.testing.assert_close(few[name], whole[name])
        asked = ("--masks", "--layer", "all", "-o", tmp_path / "out", "--device", "cpu", "inference.topk=1")
        code, _, err = call("attention", "sed-tiny", "photo.png", *asked)
        assert code == 0, err
        (path,) = (tmp_path / "out" / "records").glob("attention-*.json")
        told = json.loads(path.read_text(encoding="utf-8"))
        assert told["settings"]["topk"] == 1
        assert "keeps the 1 best classes of a place" in told["measured"]["conventions"]
        code, _, err = call("attention", "sed-tiny", "photo.png", *asked[:-1], "inference.topk=999")
        assert code == 2 and "topk=999 is impossible: there are 68 classes" in err and err.count("\n") == 1

    def test_drawn(self, here: Path, tmp_path: Path, call: Call) -> None:
        asked = ("--masks", "--layer", "all", "--classes", "red plain star", "-o", tmp_path / "out", "--device", "cpu")
        code, _, err = call("attention", "sed-tiny", "photo.png", *asked)
        assert code == 0, err
        (path,) = (tmp_path / "out" / "records").glob("attention-*.json")
        told = json.loads(path.read_text(encoding="utf-8"))["measured"]
        assert told["shows"] == "class map" and "cosine of places and names" in told["conventions"]
        drawn = [each["layer"].partition(".")[2] for each in told["photos"][0]["maps"]]
        assert drawn == ["cost", "layers.0", "layers.1", "layers.2", "last"]
        assert len(list((tmp_path / "out" / "figures").glob("*.png"))) == 1
        code, _, err = call("attention", "sed-tiny", "photo.png", "--masks", "--layer", "5", "-o", tmp_path / "out")
        assert code == 2 and "has layers 0 to 4 with maps of classes" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("eval RUN --dataset open-shapes-held-out --vocabulary voc20", "vocabulary has 20 names and"),
        ("eval RUN --fast --topk 0", "--topk=0 is impossible: it must be at least 1"),
        ("eval RUN --fast --topk 69", "topk=69 is impossible: there are 68 classes"),
        ("eval RUN --topk 3", "--topk 3 is of early rejection: add --fast"),
        ("eval RUN inference.topk=0", "inference.topk=0 is impossible"),
        ("eval RUN --vocabulary ade846", "Unknown vocabulary 'ade846'; did you mean 'ade847'"),
        ("predict RUN photo.png --classes ,", "The vocabulary is empty"),
        ("predict RUN photo.png --classes star,Star", "is class 1 already"),
        ("predict RUN photo.png --classes star,violet", "'violet'; it knows 22: a, blue"),
    ],
)
def test_what_cannot_be_is_one_line(command: str, message: str, here: Path, tmp_path: Path, call: Call) -> None:
    code, _, err = call(*words(command, "sed-tiny", tmp_path / "out"))
    assert code != 0 and message in err and err.count("\n") == 1, err


class TestNamesInPlaceOfRuns:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("sed-base", "fetch them as the README of github.com/xb534/SED says, then `whitebox convert model_final"),
            ("depict-sa-tiny", "depict-sa-tiny is a model without weights; train it, `whitebox train depict-sa-tiny`"),
            ("nothing", "There is no file or folder nothing."),
        ],
    )
    def test_one_line_says_how_weights_are_had(self, name: str, message: str, here: Path, call: Call) -> None:
        code, _, err = call("predict", name, "photo.png", "--classes", "cat, sofa", "-o", "none")
        assert code == 1 and message in err and err.count("\n") == 1
        assert not Path("none").exists()

    def test_a_run_below_results_goes_by_its_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        saved(Path("results/mine"), "sed-tiny", NAMES)
        assert open_run(Path("mine"), device="cpu").folder == Path("results/mine")
        Path("mine").mkdir()
        with pytest.raises(CheckpointError, match="mine holds neither"):  # what is there counts
            open_run(Path("mine"), device="cpu")


def test_models_of_names_are_those_tried_here() -> None:
    from whitebox.models import DECODERS

    tried = {resolve(name).decoder.name for name in MODELS}
    assert tried == {name for name, each in DECODERS.items() if each.open_vocabulary}
    with torch.device("meta"):
        assert isinstance(build(resolve("sed-tiny").encoder, resolve("sed-tiny").decoder, 2), OpenSegmentor)
