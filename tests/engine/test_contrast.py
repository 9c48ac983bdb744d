import os
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from child_runs import alone, die
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from whitebox.cli.progress import TrainingProgress
from whitebox.config import resolve
from whitebox.data import open_shapes
from whitebox.engine import contrast
from whitebox.engine.contrast import (
    ContrastConfig,
    captions,
    encoder_of,
    keep_towers,
    kept_at,
    matched_loss,
    rate,
    spoken,
    trained_clip,
    turned,
)
from whitebox.engine.log import Silent
from whitebox.engine.train import train
from whitebox.errors import CheckpointError, ConfigError, TrainingError
from whitebox.models.clip import CLIPConfig, CLIPEncoder
from whitebox.models.text import PLAIN

WORDS = sorted({*open_shapes.WORDS, *" ".join(PLAIN).replace("{}", "").split()})
ENCODER = CLIPConfig(
    name="clip_convnext_tiny",
    words=WORDS,
    templates="plain",
    squash=False,
    context=12,
    depths=[1, 1, 1, 1],
    widths=[8, 8, 8, 16],
    embed=16,
    text_width=16,
    text_layers=1,
)
QUICK = ContrastConfig(steps=3, batch=8, portraits=12, size=32)


def test_captions_are_all_choices_of_words() -> None:
    value = next(value for value, name in enumerate(open_shapes.CLASSES) if name == "red dotted star")
    said = {spoken(caption) for caption in captions(value)}
    assert said == {"red", "dotted", "star", "red dotted", "red star", "dotted star", "red dotted star"}
    assert [spoken(caption) for caption in captions(0)] == ["ground"]


def test_the_loss_of_single_matches_is_clips() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    target = torch.arange(5)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(matched_loss(logits, torch.eye(5)), expected)


def test_matches_share_the_target() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    matches = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    rows, columns = logits.log_softmax(1), logits.log_softmax(0)
    by_portrait = -(rows[0, :2].mean() + rows[1, 1:].mean()) / 2
    by_caption = -(columns[0, 0] + columns[:, 1].mean() + columns[1, 2]) / 3
    torch.testing.assert_close(matched_loss(logits, matches), (by_portrait + by_caption) / 2)


def test_images_are_turned_together() -> None:
    images = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    seen = {tuple(turned(images, np.array(turns))[1, 2].flatten().tolist()) for turns in product((0, 1), repeat=3)}
    assert len(seen) == 8
    assert all(sorted(each) == images[1, 2].flatten().tolist() for each in seen)


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    config = ContrastConfig(steps=100, warmup=9)
    rates = [rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[100] == pytest.approx(0, abs=1e-9)


def test_training_is_a_function_of_the_seed() -> None:
    state = torch.get_rng_state()
    first, again, other = (trained_clip(ENCODER, replace(QUICK, seed=seed)).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["text.projection"], other["text.projection"])


def test_both_towers_learn_and_the_text_tower_is_frozen_afterwards() -> None:
    before = trained_clip(ENCODER, replace(QUICK, steps=0)).state_dict()
    steps: list[tuple[int, int]] = []
    clip = trained_clip(ENCODER, QUICK, lambda done, total: steps.append((done, total)))
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    moved = {name for name, tensor in clip.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"text.projection", "projection.weight", "logit_scale", "trunk.stem.0.weight"} <= moved
    assert {name for name, parameter in clip.named_parameters() if parameter.requires_grad} == {
        name for name, _ in clip.named_parameters() if name.startswith(("trunk.", "projection."))
    }


def test_a_loss_that_is_not_finite_ends_it() -> None:
    with pytest.raises(TrainingError, match="contrastive loss is not finite at step 2"):
        trained_clip(ENCODER, replace(QUICK, lr=1e30, clip_grad=1e30, warmup=0))


def test_dropout_is_a_function_of_the_seed_too() -> None:
    dropping = replace(ENCODER, drop_path=0.5)
    first = trained_clip(dropping, QUICK).state_dict()
    torch.rand(1)
    again = trained_clip(dropping, QUICK).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    without = trained_clip(ENCODER, QUICK).state_dict()
    assert not torch.equal(first["projection.weight"], without["projection.weight"])


def test_towers_are_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path))
    path = keep_towers(ENCODER, QUICK)
    assert path == kept_at(ENCODER, QUICK)
    assert tmp_path in path.parents
    steps: list[int] = []
    assert keep_towers(ENCODER, QUICK, lambda done, total: steps.append(done)) == path
    assert steps == []
    loaded, trained = CLIPEncoder(replace(ENCODER, weights=str(path))), trained_clip(ENCODER, QUICK)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in trained.state_dict().items())
    assert kept_at(ENCODER, replace(QUICK, seed=1)) != path
    assert kept_at(replace(ENCODER, text_layers=2), QUICK) != path


# --- stopped, and gone on with ---------------------------------------------------------------------------------------

LONGER = replace(QUICK, steps=7)


def test_a_killed_stage_goes_on_to_the_same_towers(tmp_path: Path) -> None:
    """kill -9 after step 5, and again after 6; states are those of steps 2, 4 and 6."""
    towers: dict[str, dict[str, torch.Tensor]] = {}
    for name, killed in {"at once": (), "in parts": (5, 6)}.items():
        for killed_at in killed:
            code, output = alone(_stage, tmp_path / name, killed_at, folder=tmp_path)
            assert code == -9, output
            assert output.split() == [str(step) for step in range({5: 0, 6: 4}[killed_at], killed_at + 1)]
            (state,) = (tmp_path / name / "contrast").iterdir()
            with safe_open(state, "pt") as opened:
                assert opened.metadata() == {"step": str({5: 4, 6: 6}[killed_at])}
        code, output = alone(_stage, tmp_path / name, None, folder=tmp_path)
        assert code == 0 and output.split()[0] == ("6" if killed else "0"), output
        (path,) = (tmp_path / name / "contrast").iterdir()  # nothing is left of the state
        towers[name] = load_file(path)
    ours, theirs = towers.values()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _stage(cache: Path, killed_at: int | None) -> None:
    def on_step(done: int, total: int) -> None:
        sys.stdout.write(f"{done}\n")
        sys.stdout.flush()
        if done == killed_at:
            die()

    os.environ["WHITEBOX_CACHE"] = str(cache)
    contrast._SAVED_EVERY = 2
    keep_towers(replace(ENCODER, drop_path=0.5), LONGER, on_step)


@pytest.mark.parametrize("content", [b"", b"nothing that is a state"])
def test_a_damaged_state_is_one_line(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path))
    state = kept_at(ENCODER, LONGER).with_suffix(".state.safetensors")
    state.parent.mkdir()
    state.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"\.state\.safetensors does not say how far .* delete it, and it begins"):
        keep_towers(ENCODER, LONGER)
    save_file({"clip.nothing": torch.zeros(1)}, state, metadata={"step": "2"})
    with pytest.raises(CheckpointError, match="delete it, and it begins anew") as refused:
        keep_towers(ENCODER, LONGER)
    assert "\n" not in str(refused.value)


# --- before a training -----------------------------------------------------------------------------------------------

QUICK_RUN = {
    "train.steps": 1,
    "train.batch_size": 2,
    "train.workers": 0,
    "train.contrast_steps": 1,
    "data.train_length": 4,
    "data.val_length": 1,
    "encoder.text_layers": 1,
}


def test_a_training_begins_with_the_contrastive_stage_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("whitebox.engine.contrast.ContrastConfig", partial(ContrastConfig, portraits=70))
    config = resolve("sed-tiny", "open-shapes", QUICK_RUN)
    for name in ("first", "second"):
        with TrainingProgress() as progress:
            model, _ = train(config, tmp_path / name, progress)
    (kept,) = (tmp_path / "cache" / "contrast").iterdir()
    shown = capsys.readouterr().out.replace("\n", "")
    assert shown.count("First a tiny CLIP, by contrast on captioned shapes: 1 steps") == 1
    assert shown.count("The tiny CLIP is there from an earlier run") == 1
    assert shown.count("prompts once; later trainings read them") == 1
    text = {name: tensor for name, tensor in load_file(kept).items() if name.startswith("text.")}
    assert all(torch.equal(model.encoder.state_dict()[name], tensor) for name, tensor in text.items())
    saved = (tmp_path / "first" / "config.yaml").read_text("utf-8")
    assert str(tmp_path) not in saved.replace(str(config.data.root), "")


def test_its_words_are_those_of_open_shapes(tmp_path: Path) -> None:
    config = resolve("sed-tiny", "camvid", {"train.steps": 1})
    with pytest.raises(ConfigError, match="trained on open-shapes alone: add --dataset open-shapes"):
        encoder_of(config, Silent())
    given = resolve("sed-tiny", "camvid", {"encoder.weights": "towers.safetensors"})
    assert encoder_of(given, Silent()) is given.encoder
    other = resolve("depict-sa-tiny", "open-shapes", {})
    assert encoder_of(other, Silent()) is other.encoder
