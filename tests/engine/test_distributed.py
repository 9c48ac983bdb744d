"""Several processes (gloo) do what one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from child_runs import STEPS, TINY, Quiet, alone, lines, same, tiny, together, weights

from whitebox import load_model
from whitebox.data import build_dataset
from whitebox.engine import checkpoint, distributed
from whitebox.engine import train as training
from whitebox.engine import update as updating
from whitebox.engine.checkpoint import training_states
from whitebox.engine.distributed import evaluate_together, join, on_main
from whitebox.engine.evaluate import Kept
from whitebox.engine.train import Interrupted, train
from whitebox.errors import ConfigError, DataError, TrainingError

LIVELY = {"encoder__drop_path": 0.5, "data__crop": 48}  # samples skip layers; crops have ignored pixels
Options = dict[str, Any]


def run(folder: Path, options: Options, resume: bool = False) -> None:
    reporter = Quiet()
    train(tiny(**options), folder, reporter, resume=resume)
    assert (reporter.begun is not None) == (os.environ.get("RANK", "0") == "0")


def stop_at(folder: Path, options: Options, step: int) -> None:
    """SIGTERM of the main process after a step: all of them stop there."""

    def stop(now: int) -> None:
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)

    train(tiny(**options), folder, Quiet(at_step=stop))


def trained(processes: int, folder: Path, options: Options, *more: Any) -> Path:
    ended = together(processes, run, folder, options, *more, folder=folder.parent / "output")
    assert [code for code, _ in ended] == [0] * processes, ended
    return folder


def assert_close(first: Path, second: Path) -> None:
    assert [step for step, _ in lines(first)] == [step for step, _ in lines(second)]
    np.testing.assert_allclose([loss for _, loss in lines(first)], [loss for _, loss in lines(second)], atol=1e-6)
    theirs = weights(second)
    for name, ours in weights(first).items():
        torch.testing.assert_close(ours, theirs[name], atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(1, tmp_path_factory.mktemp("one") / "run", LIVELY)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(2, tmp_path_factory.mktemp("two") / "run", LIVELY)


def test_two_processes_give_the_losses_of_one(one: Path, two: Path) -> None:
    assert_close(two, one)
    assert [step for step, _ in lines(two, "miou")] == [3, STEPS]
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())


def test_an_encoder_with_parts_that_make_no_tokens(tmp_path: Path) -> None:
    """SigLIP's pooling gets no gradient; several processes would wait for it."""
    options = {"encoder__name": "vit_base_patch16_siglip_224", "train__steps": 2, "data__train_length": 8}
    folder = trained(2, tmp_path / "two", options)
    assert_close(folder, trained(1, tmp_path / "one", options))
    frozen = [name for name, value in load_model(folder).named_parameters() if not value.requires_grad]
    assert frozen
    assert all(name.startswith("encoder.vit.attn_pool.") for name in frozen)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_another_number_of_processes_goes_on(before: int, after: int, one: Path, two: Path, tmp_path: Path) -> None:
    ended = together(before, stop_at, tmp_path / "run", LIVELY, 4, folder=tmp_path)
    assert [code for code, _ in ended] == [0] * before
    assert all("Interrupted: Stopped by SIGTERM at step 4 of 6" in output for _, output in ended)
    assert checkpoint.state_step(training_states(tmp_path / "run" / "checkpoints")[-1]) == 4
    trained(after, tmp_path / "run", LIVELY, True)
    if before == after:
        assert same(tmp_path / "run", two)
    else:
        assert_close(tmp_path / "run", one)


def evaluate_share(weights_of: Path, images: int) -> None:
    joined = join("cpu")
    model, config = checkpoint.load_weights(weights_of / checkpoint.WEIGHTS)
    config.data.val_length = images
    dataset = build_dataset(config.data, "val", augment=False)
    seen: list[int] = []
    found = evaluate_together(
        model,
        dataset,
        config.inference,
        config.data,
        workers=0,
        on_image=lambda index, *_: seen.append(index),
        kept=Kept(boundary=0.1, confidence=True),
    )
    assert seen == list(range(joined.process_index, images, joined.num_processes))
    assert list(found.names) == dataset.names[:images]
    counted = (found.counts_N3K, found.confusion_M4, found.boundary_N3K, found.confidence_NB3, found.squared_error_N)
    assert all(each is not None and len(each) for each in counted)
    sys.stdout.write(f"{found.names} {[each.tolist() for each in counted if each is not None]}")


@pytest.mark.parametrize("images", [5, 1])
def test_an_evaluation_is_shared(images: int, one: Path, tmp_path: Path) -> None:
    """Also where a process has no image at all."""
    whole = alone(evaluate_share, one, images, folder=tmp_path / "1")
    assert whole[0] == 0, whole
    assert whole[1].count("val_") == images
    assert together(2, evaluate_share, one, images, folder=tmp_path / "2") == [whole, whole]


def broken_image(folder: Path) -> None:
    original = training.collate

    def collate(loaded: Any) -> Any:
        return original(([DataError("photo.jpg is cut short.")], 0.0) if os.environ["RANK"] == "1" else loaded)

    training.collate = collate
    run(folder, {})


def unwritable(folder: Path) -> None:
    def refuse(*_: Any) -> None:
        raise TrainingError("Cannot write there.")

    checkpoint.save_model = refuse  # type: ignore[assignment]
    run(folder, {})


def bad_label(folder: Path) -> None:
    def count(*_: Any, shard: tuple[int, int], **__: Any) -> Any:
        raise DataError(f"mask.png of process {shard[0]} does not fit.")

    distributed.count_images = count  # type: ignore[assignment]
    run(folder, {})


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (broken_image, "DataError: photo.jpg is cut short."),
        (unwritable, "TrainingError: Cannot write there."),
        (bad_label, "DataError: mask.png of process 0 does not fit."),
    ],
)
def test_what_stops_one_stops_all(target: Any, line: str, tmp_path: Path) -> None:
    for code, output in together(2, target, tmp_path / "run", folder=tmp_path):
        assert code == 1
        assert line in output
        assert "Traceback" not in output


def test_a_batch_that_cannot_be_shared(tmp_path: Path) -> None:
    for code, output in together(2, run, tmp_path / "run", {"train__batch_size": 3}, folder=tmp_path):
        assert code == 2
        assert "train.batch_size=3 cannot be shared by 2 processes" in output


def test_one_device_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--device cuda:1 names one device for 2 processes: leave it out"):
        join("cuda:1")


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="--device nonsense cannot be used here"):
        join("nonsense")
    assert join("cpu").device.type == "cpu"


def test_on_main_passes_errors_on() -> None:
    join("cpu")
    done: list[int] = []
    on_main(lambda: done.append(1))
    assert done == [1]

    def fail() -> None:
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        on_main(fail)


# ---------------------------------------------------------------------------------------------------- options together

AVERAGED: Options = {**LIVELY, "train__precision": "bf16", "train__ema": 0.5, "train__micro_batch": 1}
ALL_OPTIONS: Options = {**AVERAGED, "train__checkpointing": True, "train__compile": True}


def traced_alone(target: Any, *arguments: Any) -> None:
    """Without inductor, which writes C++ for a minute: what would be compiled is traced and run as it is."""
    updating.COMPILER = "eager"
    target(*arguments)


def test_all_options_compose(tmp_path: Path) -> None:
    """Two processes, bf16, moving average, split batch: compiled and recomputing until it stops, then plain."""
    trained(2, tmp_path / "unbroken", AVERAGED)
    for code, output in together(
        2, traced_alone, stop_at, tmp_path / "run", ALL_OPTIONS, 2, folder=tmp_path / "output"
    ):
        assert code == 0, output
        assert "Stopped by SIGTERM at step 2" in output
    trained(2, tmp_path / "run", AVERAGED, True)
    assert same(tmp_path / "run", tmp_path / "unbroken")


# ------------------------------------------------------------------------------------------------------------- sharded


def sharded(target: Any, *arguments: Any) -> None:
    """accelerate shards models on GPUs only; on CPUs (gloo) torch can, if accelerate's state says so."""
    original = distributed.Accelerator

    def accelerator(**options: Any) -> Any:
        made = original(**options)
        made.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
        made.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        return made

    distributed.Accelerator = accelerator  # type: ignore[misc]
    target(*arguments)


def test_sharded_parameters(one: Path, tmp_path: Path) -> None:
    """FSDP gives the losses of one process; one process goes on where two sharded ones stopped, and they after it."""
    options = {**LIVELY, "train__checkpointing": True}
    for code, output in together(2, sharded, stop_at, tmp_path / "run", options, 2, folder=tmp_path / "1"):
        assert code == 0, output
        assert "Stopped by SIGTERM at step 2" in output
    stopped = alone(stop_at_resumed, tmp_path / "run", LIVELY, 4, folder=tmp_path / "2")
    assert stopped[0] == 0, stopped
    for code, output in together(2, sharded, run, tmp_path / "run", options, True, folder=tmp_path / "3"):
        assert code == 0, output
    assert_close(tmp_path / "run", one)


def stop_at_resumed(folder: Path, options: Options, step: int) -> None:
    def stop(now: int) -> None:
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)

    train(tiny(**options), folder, Quiet(at_step=stop), resume=True)


@pytest.mark.parametrize(
    ("version", "options", "message"),
    [
        ("0", {}, "FSDP needs GPUs: leave --use_fsdp out"),
        ("1", {}, "Of FSDP only version 2 is known here: add --fsdp_version 2"),
        ("2", {"train.ema": 0.9}, "train.ema keeps a whole model, which FSDP shards"),
    ],
)
def test_sharding_that_cannot_be(
    version: str, options: Options, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sharding:
        def __init__(self, **_: Any) -> None:
            self.distributed_type = DistributedType.NO if version == "0" else DistributedType.FSDP
            self.is_fsdp2 = version == "2"

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(distributed, "Accelerator", Sharding)
    with pytest.raises(ConfigError, match=message):
        train(tiny(**options), tmp_path / "run", Quiet(), device="cpu")


# ------------------------------------------------------------------------------------------------------------ launchers


def launched(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RANK", "WORLD_SIZE"))}
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=240, env=environment, check=False
    )


def test_torchrun_and_accelerate_launch(one: Path, tmp_path: Path) -> None:
    settings = [f"{key}={value}" for key, value in {**TINY, "encoder.drop_path": 0.5, "data.crop": 48}.items()]
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "whitebox")
    done = launched(*torchrun, "train", "depict-sa-tiny", "-o", str(tmp_path), "--name", "run", *settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Training depict-sa-tiny on shapes") == 1
    assert done.stdout.count("Run saved in") == 1
    assert_close(tmp_path / "run", one)
    (record,) = (tmp_path / "run" / "records").glob("*.json")
    measured = json.loads(record.read_text())["measured"]

    accelerate = ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "whitebox")
    done = launched(*accelerate, "eval", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Figures and tables: ") == 1
    assert json.loads(record.read_text())["measured"] == measured


def test_interrupted_is_an_error_with_its_own_exit_code() -> None:
    assert Interrupted("x", 130).exit_code == 130
