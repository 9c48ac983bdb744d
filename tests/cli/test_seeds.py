"""`whitebox train --seeds`: several trainings below one name, stopped and gone on with, and as one model."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from child_runs import TINY

from analysis.record import read_records
from whitebox.cli import main
from whitebox.cli.progress import TrainingProgress
from whitebox.engine.header import read_header
from whitebox.runs import ended

Call = Callable[..., tuple[int, str, str]]
SETTINGS = [f"{key}={value}" for key, value in {**TINY, "train.epochs": 1, "data.val_length": 4}.items()]
TRAIN = ["train", "depict-sa-tiny", "--name", "sa", "--device", "cpu", *SETTINGS]
pytestmark = pytest.mark.usefixtures("empty_pictures")


def one_line(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trainings of three steps, by one command."""
    folder = tmp_path_factory.mktemp("seeds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["whitebox", *TRAIN, "-o", str(folder), "--seeds", "0:2"])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def stop_at(step: int, training: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM at a step of one of the trainings of the next command."""
    seen: list[int] = []
    stepped = TrainingProgress.stepped

    def counted(self: Any, done: int) -> None:
        seen.append(done)
        if done == step and seen.count(step) == training:
            os.kill(os.getpid(), signal.SIGTERM)
        stepped(self, done)

    monkeypatch.setattr(TrainingProgress, "stepped", counted)


def miou(folder: Path) -> dict[str, Any]:
    (record,) = read_records(folder / "records", "eval")
    found: dict[str, Any] = record.measured["miou"]
    return found


def test_each_seed_has_its_folder_and_all_have_one_record(made: Path) -> None:
    family = made / "sa"
    assert sorted(path.name for path in family.iterdir()) == [
        "figures", "records", "seed-0", "seed-1", "seeds.txt", "tables",
    ]  # fmt: skip
    assert (family / "seeds.txt").read_text("utf-8") == "0\n1\n"
    (record,) = read_records(family / "records", "eval")
    assert record.model == "sa" and record.settings["training_seeds"] == [0, 1] and record.n == 4
    each = [read_records(family / f"seed-{seed}" / "records", "eval")[0] for seed in (0, 1)]
    assert record.measured["miou"]["seeds"] == [own.measured["miou"]["value"] for own in each]
    assert [own.model for own in each] == ["sa-seed-0", "sa-seed-1"]  # as every later command names them
    for seed, own in enumerate(each):
        assert own.seeds["training"] == seed
        assert read_header(family / f"seed-{seed}" / "model.safetensors")["config"]["train"]["seed"] == seed
    assert each[0].weights != each[1].weights


def test_more_seeds_are_added_and_what_is_finished_is_left(runs: Path, call: Call) -> None:
    weights = runs / "sa" / "seed-1" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    code, out, err = call(*TRAIN, "-o", runs, "--seeds", "1:3", "--resume", "train.log_every=2")
    assert code == 0, err
    assert "seed-1 is finished." in out and "3 trainings saved" in out and weights.stat().st_mtime_ns == before
    records = read_records(runs / "sa" / "records", "eval")
    assert sorted(record.settings["training_seeds"] for record in records) == [[0, 1], [0, 1, 2]]


def test_a_stopped_seed_is_gone_on_with(
    made: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(2, 2, monkeypatch)
    code, _, err = call(*TRAIN, "-o", tmp_path, "--seeds", "0:2")
    assert code == 0 and "Stopped by SIGTERM at step 2 of 3" in err
    family = tmp_path / "sa"
    assert ended(family / "seed-0") and not ended(family / "seed-1") and not (family / "records").exists()
    assert (family / "seed-1" / "model.safetensors").is_file()
    code, _, err = call("eval", family)
    assert code == 1 and one_line(err) and "lacks the finished training of seed 1: go on with" in err
    # measured as it was when it was stopped: it is no more finished than before
    assert call("eval", family / "seed-1", "--device", "cpu")[0] == 0
    code, out, err = call(*TRAIN, "-o", tmp_path, "--seeds", "0:1", "--resume")
    assert code == 0 and "is to have seed 1, too: go on with" in out
    code, out, err = call(*TRAIN, "-o", tmp_path, "--seeds", "0:2", "--resume")
    assert code == 0, err
    assert "seed-0 is finished." in out and "resumed at step 2" in out
    assert ended(family / "seed-1") and miou(family) == miou(made / "sa")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--seeds", "0:2"], 1, "seed-0 holds a run already: continue with --resume, or choose other --seeds"),
        (["--seeds", "2:4", "optim.lr=0.25"], 2, "seed-0 was trained with optim.lr=0.0005, not 0.25"),
        (["--seeds", "0:2", "--resume", "decoder.layers=1"], 2, "seed-0 was trained with decoder.layers=3, not 1"),
        (["--seeds", "0:2", "--resume", "data.train_length=8"], 2, "data.train_length=12, not 8"),
        (["--seeds", "3:3"], 2, "--seeds 3:3 is impossible"),
        (["--seeds", "3"], 2, "--seeds 3 is impossible"),
        (["--seeds", "a:b"], 2, "--seeds a:b is impossible"),
        (["--seeds", "-1:2"], 2, "--seeds -1:2 is impossible"),
        (["--seeds", "2:4", "train.seed=1"], 2, "--seeds and train.seed both choose the seed"),
    ],
)
def test_what_cannot_be(runs: Path, call: Call, arguments: list[str], code: int, message: str) -> None:
    listed = (runs / "sa" / "seeds.txt").read_bytes()
    found, _, err = call(*TRAIN, "-o", runs, *arguments)
    assert found == code and one_line(err) and message in err, err
    assert (runs / "sa" / "seeds.txt").read_bytes() == listed and not (runs / "sa" / "seed-2").exists()


def test_one_training_is_no_folder_for_several(runs: Path, call: Call) -> None:
    code, _, err = call(*TRAIN, "-o", runs / "sa", "--name", "seed-0", "--seeds", "0:2", "--resume")
    assert code == 1 and one_line(err) and "holds one training, not several" in err


def test_a_list_of_seeds_that_is_none(runs: Path, call: Call) -> None:
    (runs / "sa" / "seeds.txt").write_bytes(b"0\n\xff\n")
    code, _, err = call(*TRAIN, "-o", runs, "--seeds", "0:2", "--resume")
    assert code == 1 and one_line(err) and "lists no seeds" in err


def test_a_log_that_is_damaged_or_lost_makes_no_training_unfinished(runs: Path) -> None:
    log = runs / "sa" / "seed-0" / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    assert lines[-1]["epoch"] == 1 and ended(log.parent)
    log.write_bytes(log.read_bytes() + b'{"step": 3, "ep')
    assert ended(log.parent)
    log.unlink()
    assert ended(log.parent)
    (log.parent / "model.safetensors").unlink()
    assert not ended(log.parent)
