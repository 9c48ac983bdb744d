"""A run killed at any moment and resumed is the unbroken run, bit for bit."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from child_runs import STEPS, TINY, Quiet, alone, die, lines, same, tiny
from PIL import Image
from tiny_runs import configured

import whitebox
from whitebox import cli
from whitebox.config import resolve
from whitebox.data import shapes
from whitebox.data.shapes import CLASSES
from whitebox.engine import checkpoint
from whitebox.engine import resume as resuming
from whitebox.engine.checkpoint import training_states
from whitebox.engine.header import WEIGHTS
from whitebox.engine.train import Interrupted, train
from whitebox.errors import CheckpointError, ConfigError
from whitebox.models import build


def run(folder: Path, resume: bool = False, **overrides: Any) -> None:
    train(tiny(**overrides), folder, Quiet(), resume=resume)


def go_on(folder: Path) -> None:
    code, output = alone(run, folder, True, folder=folder.parent / "again")
    assert code == 0, output


def kept(folder: Path) -> list[int]:
    return [checkpoint.state_step(path) for path in training_states(folder / "checkpoints")]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    code, output = alone(run, folder / "run", folder=folder)
    assert code == 0, output
    assert kept(folder / "run") == [4, STEPS]
    return folder / "run"


def killed_after_step(folder: Path, step: int) -> None:
    train(tiny(), folder, Quiet(at_step=lambda now: die() if now == step else None))


@pytest.mark.parametrize(("step", "states"), [(1, []), (3, [2]), (5, [3, 4])])
def test_killed_after_a_step(step: int, states: list[int], unbroken: Path, tmp_path: Path) -> None:
    """Before anything is saved; at the end of an epoch, before it is saved; within an epoch."""
    code, output = alone(killed_after_step, tmp_path / "run", step, folder=tmp_path)
    assert code == -signal.SIGKILL, output
    assert kept(tmp_path / "run") == states
    go_on(tmp_path / "run")
    assert same(tmp_path / "run", unbroken)


def killed_while_saving(folder: Path, moment: str) -> None:
    original_write, original_replace, original_save = checkpoint._Hashed.write, os.replace, checkpoint.save_model
    written = saved = 0

    def write(self: Any, data: bytes) -> int:
        nonlocal written
        written += len(data) if "step-00000004" in self.file.name else 0
        if written > 50_000:
            die()
        return original_write(self, data)

    def replace(source: Any, target: Any) -> None:
        if moment == "before the rename" and "step-00000004" in str(target):
            die()
        original_replace(source, target)
        if moment == "after the rename" and "step-00000004" in str(target):
            die()

    def save_model(*arguments: Any) -> None:
        nonlocal saved
        original_save(*arguments)
        saved += 1
        if moment == "between weights and state" and saved == 3:
            die()

    os.replace, checkpoint.save_model = replace, save_model  # type: ignore[assignment]
    if moment == "half written":
        checkpoint._Hashed.write = write  # type: ignore[method-assign]
    run(folder)


@pytest.mark.parametrize(
    ("moment", "states", "left"),
    [
        ("half written", [2, 3], 1),
        ("before the rename", [2, 3], 1),
        ("after the rename", [2, 3, 4], 0),
        ("between weights and state", [2, 3], 0),
    ],
)
def test_killed_while_saving(moment: str, states: list[int], left: int, unbroken: Path, tmp_path: Path) -> None:
    code, output = alone(killed_while_saving, tmp_path / "run", moment, folder=tmp_path)
    assert code == -signal.SIGKILL, output
    assert kept(tmp_path / "run") == states
    assert len(list((tmp_path / "run" / "checkpoints").glob(".step-*"))) == left
    go_on(tmp_path / "run")
    assert same(tmp_path / "run", unbroken)
    assert kept(tmp_path / "run") == [4, STEPS]
    assert list((tmp_path / "run").rglob(".*")) == []


def killed_while_evaluating(folder: Path) -> None:
    train(tiny(), folder, Quiet(at_image=lambda image: die() if image == 2 else None))


def test_killed_while_evaluating(unbroken: Path, tmp_path: Path) -> None:
    """The missing evaluation is made up for, once."""
    code, output = alone(killed_while_evaluating, tmp_path / "run", folder=tmp_path)
    assert code == -signal.SIGKILL, output
    assert lines(tmp_path / "run", "miou") == []
    go_on(tmp_path / "run")
    assert same(tmp_path / "run", unbroken)


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit"])
def test_a_damaged_newest_state(damage: str, unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    newest = training_states(folder / "checkpoints")[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"truncated": content[:-100], "a flipped bit": content}[damage])
    code, output = alone(run, folder, True, folder=tmp_path / "again")
    assert code == 0
    assert f"{newest.name} is damaged (its checksum is wrong); going on from step-00000004-" in output
    assert same(folder, unbroken)
    assert kept(folder) == [4, STEPS]


def test_all_states_damaged(unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    for path in training_states(tmp_path / "run" / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"no training state that can be resumed \(step-0.* and step-0.*: damaged"
    ):
        run(tmp_path / "run", resume=True)


def test_weights_without_a_state_are_not_trained_over(unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = (tmp_path / "run" / WEIGHTS).read_bytes()
    with pytest.raises(CheckpointError, match=r"holds no training state that can be resumed\."):
        run(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == before


def killed_in_the_first_save(folder: Path) -> None:
    original = checkpoint.save_model

    def save_model(*arguments: Any) -> None:
        original(*arguments)
        die()

    checkpoint.save_model = save_model
    run(folder)


def test_killed_between_the_first_weights_and_their_state(unbroken: Path, tmp_path: Path) -> None:
    """Weights without a state then stand in nobody's way; those of a finished run do, see above."""
    code, output = alone(killed_in_the_first_save, tmp_path / "run", folder=tmp_path)
    assert code == -signal.SIGKILL, output
    assert (tmp_path / "run" / WEIGHTS).exists() and kept(tmp_path / "run") == []
    go_on(tmp_path / "run")
    assert same(tmp_path / "run", unbroken)


def fill_the_disk(folder: Path, room: int) -> None:
    """No file may grow beyond ``room`` bytes after step 3: what a full disk does to those who write."""

    def fill(step: int) -> None:
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    train(tiny(), folder, Quiet(at_step=fill))


@pytest.mark.parametrize(("file", "share"), [(WEIGHTS, 0.5), ("step-00000004.pt", 1.5)])
def test_a_disk_that_fills_up(file: str, share: float, unbroken: Path, tmp_path: Path) -> None:
    room = int(share * (unbroken / WEIGHTS).stat().st_size)
    code, output = alone(fill_the_disk, tmp_path / "run", room, folder=tmp_path)
    assert code == 1
    (line,) = [line for line in output.splitlines() if "Cannot write" in line]
    assert file in line
    assert "File too large" in line
    assert line.endswith(
        "free some space or choose another folder. The state of step 3 is kept: --resume goes on from it."
    )
    assert "Traceback" not in output
    assert kept(tmp_path / "run") == [2, 3]
    go_on(tmp_path / "run")
    assert same(tmp_path / "run", unbroken)


class TestAnotherConfiguration:
    def test_is_refused_with_the_difference(self, unbroken: Path) -> None:
        with pytest.raises(
            ConfigError,
            match=r"another configuration: optim.lr was 0.0005, is 0.1; train.seed was 0, is 5. .*--allow-changes",
        ):
            run(unbroken, resume=True, optim__lr=0.1, train__seed=5)

    def test_is_accepted_when_asked(self, unbroken: Path, tmp_path: Path) -> None:
        shutil.copytree(unbroken, tmp_path / "run")
        longer = tiny(train__epochs=3, optim__weight_decay=0.25)
        learners: list[Any] = []

        def seen(step: int) -> None:
            learners.append(step)

        train(longer, tmp_path / "run", Quiet(at_step=seen), resume=True, allow_changes=True)
        assert learners == [7, 8, 9]
        assert "weight_decay: 0.25" in (tmp_path / "run" / "config.yaml").read_text()
        state = checkpoint.load_training_state(tmp_path / "run" / "checkpoints")
        assert [group["weight_decay"] for group in state["optimizer"]["state"]["param_groups"]] == [0.25]

    def test_of_the_optimiser_begins_a_new_one(self, unbroken: Path, tmp_path: Path) -> None:
        shutil.copytree(unbroken, tmp_path / "run")
        sgd = tiny(optim__name="sgd", train__epochs=3)
        train(sgd, tmp_path / "run", Quiet(), resume=True, allow_changes=True)
        assert lines(tmp_path / "run")[:STEPS] == lines(unbroken)

    def test_of_the_model_does_not_fit(self, unbroken: Path) -> None:
        with pytest.raises(CheckpointError, match=r"The training state does not fit this model: .* missing"):
            train(tiny(encoder__depth=3), unbroken, Quiet(), resume=True, allow_changes=True)


class TestOtherData:
    """A run of 4 steps on a folder of 8 and 2 images, whose data change before it goes on."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        for split, count in (("train", 8), ("val", 2)):
            for index in range(count):
                for part, array in zip(("images", "masks"), shapes.draw(0, split, index, 32), strict=True):
                    path = tmp_path / "data" / part / split / f"{index}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.asarray(array)).save(path)
        (tmp_path / "data" / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        return tmp_path / "data"

    @staticmethod
    def run(data: Path, **options: Any) -> None:
        drawn = ("data.size", "data.train_length", "data.val_length")
        settings = {key: value for key, value in TINY.items() if key not in drawn}
        config = resolve("depict-sa-tiny", "folder", {**settings, "data.path": str(data), "train.eval_every": 0})
        train(config, data.parent / "run", Quiet(), **options)

    @staticmethod
    def repaint(path: Path) -> None:
        Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)

    def test_is_named_and_refused_but_for_allow_changes(self, data: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.run(data)
        before = (data.parent / "run" / "metrics.jsonl").read_bytes()

        def refused(message: str) -> None:
            with pytest.raises(ConfigError, match=message) as raised:
                self.run(data, resume=True)
            assert str(raised.value).endswith("Go on with the old one, or accept the changes with --allow-changes.")

        names = (data / "classes.txt").read_text()
        (data / "classes.txt").write_text("\n".join([CLASSES[1], CLASSES[0], *CLASSES[2:]]) + "\n")
        refused(r"started with other data: classes were background, disc, .*, are disc, background, ")
        (data / "classes.txt").write_text(names)
        image = (data / "images" / "train" / "3.png").read_bytes()
        self.repaint(data / "images" / "train" / "3.png")
        refused(r"other data: images or labels of train have changed\.")
        (data / "images" / "train" / "3.png").write_bytes(image)
        self.repaint(data / "masks" / "val" / "1.png")
        refused(r"other data: images or labels of val have changed\.")
        for part in ("images", "masks"):
            (data / part / "train" / "7.png").unlink()
            (data / part / "train" / "2.png").unlink()
        refused(r"other data: train had 8 images, has 6; images or labels of val have changed\.")
        assert (data.parent / "run" / "metrics.jsonl").read_bytes() == before
        self.run(data, resume=True, allow_changes=True)
        assert "has 6; images or labels of val have changed. It goes on as you allowed." in caplog.text

    def test_the_same_data_elsewhere_are_the_same(self, data: Path) -> None:
        self.run(data)
        moved = shutil.copytree(data, data.parent / "elsewhere")
        for path in moved.rglob("*.png"):
            os.utime(path, (1, 1))
        with pytest.raises(ConfigError, match=r"another configuration: data\.path was"):
            self.run(moved, resume=True)
        shutil.rmtree(data)
        moved.rename(data)
        self.run(data, resume=True)

    def test_another_version_of_the_code(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run(data)
        known = resuming.versions()
        monkeypatch.setattr(resuming, "versions", lambda: {**known, "git_commit": "0123"})
        with pytest.raises(ConfigError, match=r"another version of the code: git_commit was .*, is 0123\. "):
            self.run(data, resume=True)
        self.run(data, resume=True, allow_changes=True)

    def test_a_state_that_does_not_know_its_data(self, data: Path) -> None:
        self.run(data)
        states = data.parent / "run" / "checkpoints"
        state = checkpoint.load_training_state(states)
        del state["origin"]
        checkpoint.save_training_state(states, state["step"], state)
        self.run(data, resume=True)

    @pytest.mark.parametrize("state", [[1], {"step": 4}])
    def test_a_state_of_something_else(self, state: Any, data: Path) -> None:
        checkpoint.save_training_state(data.parent / "run" / "checkpoints", 4, state)
        with pytest.raises(CheckpointError, match="move it away"):
            self.run(data, resume=True)


def command(folder: Path, *more: str) -> list[str]:
    settings = [f"{key}={value}" for key, value in TINY.items()]
    return ["whitebox", "train", "depict-sa-tiny", "-o", str(folder), "--name", "run", *settings, *more]


def signalled(folder: Path, number: int, when: str, more: tuple[str, ...]) -> None:
    """The command, which sends itself a signal after step 4, or in the first evaluation."""
    from whitebox.cli import progress

    def stepped(self: Any, step: int) -> None:
        if step == 4 and when == "step":
            os.kill(os.getpid(), number)
        if step == 4 and when == "group":
            os.killpg(0, number)
        if step == 4 and when == "twice":
            os.kill(os.getpid(), number)
            time.sleep(0.6)
            os.kill(os.getpid(), number)

    def evaluating(self: Any, done: int, total: int) -> None:
        if when == "evaluation" and done == 1:
            os.kill(os.getpid(), number)

    os.setsid()
    progress.TrainingProgress.stepped = stepped  # type: ignore[method-assign]
    progress.TrainingProgress.evaluating = evaluating  # type: ignore[method-assign]
    sys.argv = command(folder, *more)
    cli.main()


@pytest.mark.parametrize(
    ("number", "when", "code", "step", "more"),
    [
        (signal.SIGTERM, "step", 0, 4, ()),
        (signal.SIGINT, "step", 130, 4, ()),
        (signal.SIGTERM, "evaluation", 0, 3, ()),
        (signal.SIGTERM, "group", 0, 4, ("train.workers=2",)),
    ],
)
def test_a_signal_saves_at_the_next_step(
    number: signal.Signals, when: str, code: int, step: int, more: tuple[str, ...], unbroken: Path, tmp_path: Path
) -> None:
    found, output = alone(signalled, tmp_path, number, when, (*more, "train.save_every_steps=null"), folder=tmp_path)
    assert found == code, output
    (line,) = [line for line in output.splitlines() if "Stopped" in line]
    assert f"Stopped by {number.name} at step {step} of {STEPS}; the state is saved in {tmp_path / 'run'}." in line
    assert line.endswith("Go on with the same command and --resume.")
    assert "Traceback" not in output
    assert kept(tmp_path / "run")[-1] == step
    go_on(tmp_path / "run")
    assert same(tmp_path / "run", unbroken)


def test_a_second_interrupt_stops_at_once(unbroken: Path, tmp_path: Path) -> None:
    code, output = alone(signalled, tmp_path, signal.SIGINT, "twice", ("train.save_every_steps=null",), folder=tmp_path)
    assert code == 130, output
    assert "Stopped at once" in output
    assert kept(tmp_path / "run") == [3]
    go_on(tmp_path / "run")
    assert same(tmp_path / "run", unbroken)


def stopped_before_the_first_step(folder: Path) -> None:
    class Impatient(Quiet):
        def started(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    train(tiny(), folder, Impatient())


def test_a_signal_before_the_first_step(unbroken: Path, tmp_path: Path) -> None:
    code, output = alone(stopped_before_the_first_step, tmp_path / "run", folder=tmp_path)
    assert code == 0
    assert "at step 0 of 6" in output
    go_on(tmp_path / "run")
    assert same(tmp_path / "run", unbroken)


@pytest.mark.parametrize(
    "options",
    [
        {"optim__name": "sgd", "optim__momentum": 0.0, "optim__clip_grad": None, "optim__weight_decay": 0.1},
        {"optim__name": "sgd", "optim__lr": 0.1},
        {"train__ema": 0.9, "train__precision": "bf16"},
    ],
)
def test_whatever_the_optimiser_keeps(options: dict[str, Any], tmp_path: Path) -> None:
    """Nothing, a momentum, or moments beside an average of the weights."""

    def stop(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    train(tiny(**options), tmp_path / "unbroken", Quiet())
    with pytest.raises(Interrupted, match="at step 4 of 6"):
        train(tiny(**options), tmp_path / "run", Quiet(at_step=stop))
    run(tmp_path / "run", resume=True, **options)
    assert same(tmp_path / "run", tmp_path / "unbroken")


def test_dropout_is_a_function_of_the_step(tmp_path: Path) -> None:
    """A generator that went on from where it was would give a resumed run other numbers."""

    def stop(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    config = configured("segmenter-mask-tiny", encoder__drop_path=0.5)
    assert config.decoder.dropout == 0.1
    train(config, tmp_path / "unbroken", Quiet())
    with pytest.raises(Interrupted, match="at step 4 of 6"):
        train(config, tmp_path / "run", Quiet(at_step=stop))
    train(config, tmp_path / "run", Quiet(), resume=True)
    assert same(tmp_path / "run", tmp_path / "unbroken")


class Scaler(torch.amp.GradScaler):
    """fp16 multiplies the loss by a scale that it adapts. Training on CPUs knows no fp16, but PyTorch's scaler does."""

    def __init__(self, overflows: int = 0) -> None:
        super().__init__("cpu", init_scale=2.0**10, growth_interval=2)
        self.overflows = overflows

    def scale(self, outputs: Any) -> Any:
        self.overflows -= 1
        return super().scale(outputs) * (float("inf") if self.overflows >= 0 else 1.0)


def scaled_by(scaler: Callable[[], Scaler], monkeypatch: pytest.MonkeyPatch) -> None:
    original = Accelerator.__init__

    def init(self: Any, **options: Any) -> None:
        original(self, **options)
        self.scaler = scaler()

    monkeypatch.setattr(Accelerator, "__init__", init)


def scale_of(folder: Path) -> tuple[float, int]:
    state = checkpoint.load_training_state(folder / "checkpoints")["scaler"]
    return state["scale"], state["_growth_tracker"]


def test_the_scale_of_fp16_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    scaled_by(Scaler, monkeypatch)
    plain = {"optim__name": "sgd", "optim__clip_grad": None, "optim__lr": 0.1, "train__steps": 5}
    train(tiny(**plain), tmp_path / "unbroken", Quiet())
    assert scale_of(tmp_path / "unbroken") == (2.0**12, 1)  # doubled after steps 2 and 4
    with pytest.raises(Interrupted, match="at step 3 of 5"):
        train(tiny(**plain), tmp_path / "run", Quiet(at_step=stop))
    assert scale_of(tmp_path / "run") == (2.0**11, 1)
    train(tiny(**plain), tmp_path / "run", Quiet(), resume=True)
    assert scale_of(tmp_path / "run") == (2.0**12, 1)
    assert same(tmp_path / "run", tmp_path / "unbroken")


def test_a_step_that_overflows_fp16_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No update, and half the scale for the next step; the run goes on."""
    scaled_by(lambda: Scaler(overflows=1), monkeypatch)
    config = tiny(optim__name="sgd", optim__lr=0.1, train__steps=1)
    torch.manual_seed(config.train.seed)
    first = build(config.encoder, config.decoder, len(CLASSES)).state_dict()
    train(config, tmp_path / "run", Quiet())
    assert scale_of(tmp_path / "run") == (2.0**9, 0)
    after = whitebox.load_model(tmp_path / "run").state_dict()
    assert all(torch.equal(after[name], value) for name, value in first.items())


def test_what_was_never_begun_begins(unbroken: Path, tmp_path: Path) -> None:
    """One command for the first job and for those after a preemption."""
    go_on(tmp_path / "run")
    assert same(tmp_path / "run", unbroken)
