"""The training loop: reproducible, resumable, and clear about what stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import child_runs
import pytest
import torch
from child_runs import Quiet
from omegaconf import OmegaConf

import whitebox
from whitebox.config import RunConfig, from_dict, resolve
from whitebox.data import build_dataset
from whitebox.engine import train as training
from whitebox.engine import update as updating
from whitebox.engine.checkpoint import training_states
from whitebox.engine.evaluate import evaluate
from whitebox.engine.log import MetricsLog, StepTimes
from whitebox.engine.optimisation import learning_rate
from whitebox.engine.train import train
from whitebox.errors import ConfigError, DataError, OutputError, TrainingError

TINY = {**child_runs.TINY, "encoder.depth": 1, "train.save_every_steps": None}


def config(model: str = "depict-sa-tiny", **overrides: Any) -> RunConfig:
    return resolve(model, "shapes", {**TINY, **{key.replace("__", "."): value for key, value in overrides.items()}})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return whitebox.load_model(folder).state_dict()


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(config(), folder, Quiet())
    return folder


def test_what_a_run_leaves(tmp_path: Path) -> None:
    reporter = Quiet()
    model, evaluation = train(config(), tmp_path / "run", reporter)
    folder = tmp_path / "run"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "model.safetensors",
    ]
    assert reporter.begun == (6, 0, 12, 3)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == reporter.lines
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert {"miou", "macc", "aacc", "split", "epoch"} <= lines[-1].keys()
    assert {"loss", "lr", "images_per_second", "memory_gb", "epoch"} <= lines[0].keys()
    assert lines[0]["lr"] == learning_rate(0, 6, config().optim)
    assert from_dict(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))) == config()
    assert len(training_states(folder / "checkpoints")) == 2

    saved = whitebox.load_model(folder)
    assert same(saved.state_dict(), model.state_dict())
    assert saved.classes == build_dataset(config().data, "val", augment=False).classes
    again = evaluate(saved, build_dataset(config().data, "val", augment=False), config().inference, config().data)
    assert (again.counts_N3K == evaluation.counts_N3K).all()
    assert lines[-1]["miou"] == again.scores.miou


def test_the_same_seed_gives_the_same_weights(finished: Path, tmp_path: Path) -> None:
    train(config(train__workers=2), tmp_path / "again", Quiet())
    assert same(weights(tmp_path / "again"), weights(finished))
    assert losses(tmp_path / "again") == losses(finished)
    train(config(train__seed=1), tmp_path / "other", Quiet())
    assert not same(weights(tmp_path / "other"), weights(finished))


def test_it_learns(tmp_path: Path) -> None:
    train(config(train__epochs=30, train__eval_every=0), tmp_path / "run", Quiet())
    found = losses(tmp_path / "run")
    assert sum(found[-5:]) < 0.8 * sum(found[:5])


def test_splitting_the_batch_changes_nothing(tmp_path: Path) -> None:
    """Also where images have different numbers of valid pixels: the loss is the mean over those of the whole batch."""
    settings: dict[str, Any] = {"encoder__drop_path": 0.5, "encoder__depth": 3}
    settings["data__crop"] = 48  # padded crops: ignored pixels
    for name, micro in (("whole", None), ("split", 1)):
        train(config(train__micro_batch=micro, **settings), tmp_path / name, Quiet())
    assert losses(tmp_path / "split") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    split, whole = weights(tmp_path / "split"), weights(tmp_path / "whole")
    for key in whole:
        torch.testing.assert_close(split[key], whole[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stop_after", [3, 4, 5])
def test_an_interrupted_run_goes_on(stop_after: int, finished: Path, tmp_path: Path) -> None:
    def stop(step: int) -> None:
        if step == stop_after + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(), tmp_path / "run", Quiet(at_step=stop))
    reporter = Quiet()
    train(config(train__log_every=2), tmp_path / "run", reporter, resume=True)
    assert reporter.begun is not None
    assert reporter.begun[1] == 3
    assert same(weights(tmp_path / "run"), weights(finished))


def test_a_finished_run_is_only_evaluated(finished: Path) -> None:
    before, reporter = weights(finished), Quiet()
    train(config(), finished, reporter, resume=True)
    assert [line["step"] for line in reporter.lines] == [6]
    assert same(weights(finished), before)


def test_metrics_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = MetricsLog(path, first_step=2, steps=4)
    log.begin()
    log.write({"step": 3, "miou": float("nan")})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "miou": null}\n'


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    bad = [
        b'{"step": "a"}',
        b"\xff\xfe\x00",
        b"[1]",
        b"3",
        b'{"step": null}',
        b"[" * 5000 + b"]" * 5000,
        b'{"step": [1]}',
    ]
    path.write_bytes(b"\n".join([b'{"step": 1}', *bad, b'{"step": 2}', b'{"step": 9}']))
    MetricsLog(path, first_step=3, steps=4).begin()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_last_evaluation_is_logged_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "split": "val"}\n{"step": 4}\n{"step": 4, "split": "val"}\n')
    assert MetricsLog(path, first_step=2, steps=4).evaluated == {2}
    MetricsLog(path, first_step=4, steps=4).begin()
    assert path.read_text() == '{"step": 2, "split": "val"}\n{"step": 4}\n'


def test_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "nowhere" / "metrics.jsonl", first_step=0, steps=4)
    with pytest.raises(OutputError, match=r"Cannot write .*metrics.jsonl: No such file or directory; free some"):
        log.write({"step": 1})


def test_says_once_how_long_loader_and_model_take(tmp_path: Path) -> None:
    reporter = Quiet()
    train(config(), tmp_path / "run", reporter)
    (times,) = reporter.times
    assert (times.steps, times.workers) == (5, 0)  # all after the first, which is slower
    assert 0 < times.loader <= times.waited
    assert times.model > 0
    means = StepTimes(workers=2)
    for seconds in (1.0, 3.0):
        means.add(model=seconds, loader=seconds, waited=0.0)
    assert means == StepTimes(workers=2, steps=2, model=2.0, loader=1.0, waited=0.0)


def test_the_moving_average_is_what_is_evaluated_and_saved(tmp_path: Path) -> None:
    """EMA after n steps from the weights of every step; the first update starts it."""
    seen: list[dict[str, torch.Tensor]] = []
    learners: list[Any] = []
    original = training.Learner.update

    def update(self: Any, *arguments: Any) -> Any:
        found = original(self, *arguments)
        seen.append({name: tensor.clone() for name, tensor in self.built.state_dict().items()})
        learners.append(self)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Learner, "update", update)
        train(config(train__ema=0.75), tmp_path / "run", Quiet())
    average = seen[0]
    for state in seen[1:]:
        average = {name: 0.75 * average[name] + 0.25 * state[name] for name in state}
    saved = weights(tmp_path / "run")
    for name, expected in average.items():
        torch.testing.assert_close(saved[name], expected)
    assert not same(saved, seen[-1])
    assert learners[0].evaluated() is learners[0].ema.module


@pytest.mark.parametrize("option", ["train__checkpointing", "train__compile"])
def test_options_that_change_no_number(
    option: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updating, "COMPILER", "eager")  # traced, not translated to C++
    train(config(**{option: True}), tmp_path / "run", Quiet())
    assert losses(tmp_path / "run") == losses(finished)
    assert same(weights(tmp_path / "run"), weights(finished))


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("depict-ca-tiny", {}),
        ("segmenter-linear-tiny", {}),
        ("segmenter-mask-tiny", {}),
        ("depict-ca-tiny", {"optim__name": "sgd", "optim__clip_grad": None, "optim__warmup_steps": 0}),
        ("depict-sa-tiny", {"train__precision": "bf16"}),
        ("depict-sa-tiny", {"train__eval_every": 0, "train__save_every": 2}),
    ],
)
def test_every_model_and_option_trains(model: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    settings = {key: value for key, value in TINY.items() if "depict" in model or key != "decoder.head_dim"}
    chosen = {key.replace("__", "."): value for key, value in overrides.items()}
    _, evaluation = train(resolve(model, "shapes", {**settings, **chosen}), tmp_path / "run", Quiet())
    assert evaluation.scores.miou > 0


def test_a_tracker_gets_the_curves(tmp_path: Path) -> None:
    train(config(train__trackers=["tensorboard"]), tmp_path / "run", Quiet())
    (events, _) = sorted((tmp_path / "run" / "whitebox").rglob("events.out.*"), key=lambda path: len(path.parts))
    content = events.read_bytes()
    assert b"train/loss" in content
    assert b"val/miou" in content


class TestWhatStopsIt:
    def test_a_run_that_is_there(self, finished: Path) -> None:
        with pytest.raises(TrainingError, match=r"run holds a run already: continue it with --resume, or .* --name"):
            train(config(), finished, Quiet())

    def test_a_loss_that_is_not_finite(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = 0

        def spoiled(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return original(model, images, labels) * (float("nan") if calls == 5 else 1)

        original = updating.summed_loss
        monkeypatch.setattr(updating, "summed_loss", spoiled)
        with pytest.raises(
            TrainingError,
            match=r"^The loss is nan at step 4 \(epoch 1, learning rate .*, images train_.*not updated. Lower optim.lr",
        ):
            train(config(), tmp_path / "run", Quiet())
        assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())

    def test_a_gradient_that_is_not_finite(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With and without clipping: the loss alone may still look right."""
        original = updating.summed_loss

        def spoiled(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            loss = original(model, images, labels)
            loss.register_hook(lambda gradient: gradient * float("inf"))
            return loss

        monkeypatch.setattr(updating, "summed_loss", spoiled)
        for name, clip in (("clipped", 1.0), ("plain", None)):
            with pytest.raises(TrainingError, match=r"^The gradient is (nan|inf) at step 0 .*weights were not updated"):
                train(config(optim__clip_grad=clip), tmp_path / name, Quiet())

    def test_a_batch_that_does_not_fit_into_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What to set is measured, what was done is saved, and with that setting it goes on."""
        original, steps = updating.summed_loss, 0

        def small(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            nonlocal steps
            steps += 1
            if len(images) > 1 and steps > 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return original(model, images, labels)

        monkeypatch.setattr(updating, "summed_loss", small)
        with pytest.raises(
            TrainingError,
            match=r"^4 images at once do not fit into the memory of cpu \(CUDA out of memory. Tried to allocate .*"
            r"GiB\). Set train.micro_batch=1: .* The state of step 2 is saved, --resume goes on from it.$",
        ):
            train(config(), tmp_path / "run", Quiet())
        train(config(train__micro_batch=1), tmp_path / "run", Quiet(), resume=True)
        assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())

    def test_fewer_images_than_a_batch(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"has 12 training images, fewer than one batch: set train.batch_size to"):
            train(config(train__batch_size=16), tmp_path / "run", Quiet())

    def test_no_gpu_for_fp16(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"train.precision=fp16 needs a GPU"):
            train(config(train__precision="fp16"), tmp_path / "run", Quiet(), device="cpu")

    def test_a_tracker_that_is_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(training, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"train.trackers=mlflow needs that package: pip install mlflow"):
            train(config(train__trackers=["mlflow"]), tmp_path / "run", Quiet())

    def test_an_output_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(
            OutputError, match=r"Cannot write .*run: Not a directory; choose another name with --name or folder with -o"
        ):
            train(config(), tmp_path / "file" / "run", Quiet())

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_broken_image_is_one_line(self, workers: int, tmp_path: Path) -> None:
        for split in ("train", "val"):
            for kind in ("images", "masks"):
                (tmp_path / kind / split).mkdir(parents=True)
            for index in range(4):
                (tmp_path / "images" / split / f"{index}.png").write_bytes(b"not an image")
                (tmp_path / "masks" / split / f"{index}.png").write_bytes(b"not an image")
        data = {"data.path": str(tmp_path), "data.classes": ["a", "b"], "train.workers": workers}
        shapes_only = ("data.size", "data.train_length", "data.val_length")
        settings = {key: value for key, value in TINY.items() if key not in shapes_only}
        with pytest.raises(DataError, match=r"\.png") as raised:
            train(resolve("depict-sa-tiny", "folder", {**settings, **data}), tmp_path / "run", Quiet())
        assert "\n" not in str(raised.value)
