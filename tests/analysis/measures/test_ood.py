"""`whitebox ood`: scores of held-out classes and of corrupted photos beside the same by hand, and how it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from asking import asked, samples_of, shown
from sklearn.metrics import average_precision_score, roc_auc_score
from tiny_runs import tiny_run

from analysis.measures.ood import OOD
from whitebox.data import build_dataset
from whitebox.data.images import IGNORE
from whitebox.errors import ConfigError
from whitebox.models.taps import record
from whitebox.runs import Run, open_run

HELD = "square"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_run(folder, data__held_out=[HELD], data__val_length=8)
    return open_run(folder, device="cpu")


def by_hand(run: Run, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens of the last layer, logits and labels of labelled patches."""
    tokens, logits, labels = [], [], []
    for sample in samples_of(run, count):
        known = sample.labels_Bhw.flatten(1) != IGNORE
        with torch.no_grad(), record(run.model, "decoder.layers.2.tokens") as activations:
            masks = run.model.masks(sample.pixels_B3HW)
        z_BND = activations["decoder.layers.2.tokens"][:, : known.shape[1]]
        tokens.append(F.layer_norm(z_BND, z_BND.shape[-1:])[known].double())
        logits.append(masks.flatten(2).mT[known].double())
        labels.append(sample.labels_Bhw.flatten(1)[known])
    return torch.cat(tokens), torch.cat(logits), torch.cat(labels)


def test_scores_of_a_held_out_class(run: Run, tmp_path: Path) -> None:
    found = asked(OOD(directions=3), run)
    measured = found.measured
    foreign = run.classes.index(HELD)
    z_ND, logits_NK, label_N = by_hand(run, 8)
    assert (measured["held_out"], measured["foreign"]) == ([HELD], int((label_N == foreign).sum()))
    assert measured["foreign"] + measured["known"] == len(label_N) and measured["notes"] == []
    taught_NC = logits_NK[:, [c for c in range(7) if c != foreign]]
    p_NC = taught_NC.softmax(-1)
    expected = {
        "max logit": -taught_NC.amax(-1),
        "entropy": -(p_NC * p_NC.log()).sum(-1),
        "energy": -taught_NC.exp().sum(-1).log(),
    }
    training = replace(run, config=replace(run.config, data=replace(run.config.data, val_split="train")))
    own_ND, _, own_N = by_hand(training, 12)
    _, _, directions_DD = torch.linalg.svd(own_ND[own_N != foreign])
    outside_ND = z_ND - z_ND @ directions_DD[:3].mT @ directions_DD[:3]
    expected["distance"] = outside_ND.norm(dim=1) / z_ND.norm(dim=1)
    assert [each["name"] for each in measured["scores"]] == list(expected)
    for each in measured["scores"]:
        truth = (label_N == foreign).numpy()
        assert each["auroc"]["value"] == pytest.approx(roc_auc_score(truth, expected[each["name"]]), abs=0.02)
        assert each["ap"]["value"] == pytest.approx(average_precision_score(truth, expected[each["name"]]), abs=0.05)
        assert 0 <= each["fpr95"]["value"] <= 1 and each["roc"][-1] == 1
    table = shown([found], tmp_path / "ood")[""]
    assert (tmp_path / "ood.png").is_file() and "AP of a guess" in table.caption


def test_corrupted_photos(run: Run, tmp_path: Path, imagecorruptions: None) -> None:
    found = asked(OOD(corruptions="gaussian_noise", severity="1,5", train_images=2), run, limit=4)
    changes = found.measured["corruptions"]
    assert [(each["kind"], each["severity"]) for each in changes] == [("gaussian_noise", 1), ("gaussian_noise", 5)]
    for each in changes:
        assert all(0 <= score["auroc"]["value"] <= 1 for score in each["scores"])
    assert "-corruptions" in shown([found], tmp_path / "ood") and (tmp_path / "ood-corruptions.png").is_file()


def test_what_was_taught_or_is_not_there_is_said(run: Run) -> None:
    notes = asked(OOD(held_out="disc", train_images=2), run, limit=8).measured["notes"]
    assert any("not held out of the training" in note for note in notes)
    _, _, label_N = by_hand(run, 1)
    absent = next(name for c, name in enumerate(run.classes) if c not in label_N)
    measured = asked(OOD(held_out=absent, train_images=2), run, limit=1).measured
    assert measured["scores"] == [] and any("nothing foreign to find" in note for note in measured["notes"])


def test_impossible_options(run: Run, tmp_path: Path) -> None:
    for options in ({"severity": "9"}, {"train_images": 0}, {"directions": 0}, {"corruptions": "rust"}):
        given: dict[str, Any] = options
        with pytest.raises(ConfigError):
            OOD(**given)
    with pytest.raises(ConfigError, match="--held-out"):
        OOD(held_out="unicorn").foreign(run)
    with pytest.raises(ConfigError, match="two classes at least"):
        OOD(held_out=",".join(run.classes[:6])).foreign(run)
    with pytest.raises(ConfigError, match=r"--directions 24 is impossible"):
        asked(OOD(directions=24, train_images=1), run, limit=1)
    plain = open_run(tiny_run(tmp_path / "plain"), device="cpu")
    with pytest.raises(ConfigError, match=r"Nothing is foreign to plain: train with data.held_out"):
        asked(OOD(), plain)


def test_pixels_of_held_out_classes_are_ignored_in_training_alone(run: Run) -> None:
    held = run.classes.index(HELD)
    mean = (124.0, 116.0, 104.0)
    plain = replace(run.config.data, held_out=[])
    before = build_dataset(plain, "train", augment=True, mean_255=mean)
    taught = build_dataset(run.config.data, "train", augment=True, mean_255=mean)
    seen = {value for index in range(12) for value in before[0, index].label.unique().tolist()}
    assert held in seen and not any((taught[0, index].label == held).any() for index in range(12))
    evaluated = build_dataset(run.config.data, "train", augment=False)
    assert any((evaluated[index].label == held).any() for index in range(12))


@pytest.mark.parametrize("names", [["unicorn"], ["disc", "square", "triangle", "egg", "star", "cross"]])
def test_a_class_that_cannot_be_held_out(run: Run, names: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.held_out"):
        build_dataset(replace(run.config.data, held_out=names), "train", augment=True, mean_255=(0.0, 0.0, 0.0))


def test_without_a_held_out_class_stores_keep_their_names(run: Run) -> None:
    from whitebox.engine.views import question

    def data_of(held_out: list[str]) -> Any:
        config = replace(run.config, data=replace(run.config.data, held_out=held_out, views=2))
        return question(run.model, config, "x")["data"]

    assert "held_out" not in data_of([]) and data_of([HELD])["held_out"] == [HELD]
