"""The command line, from training to prediction, and its one-line errors."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_vectors import vector_file
from PIL import Image

import whitebox
from whitebox.catalog import dataset_names, model_names
from whitebox.cli import main

SETTINGS = """
encoder.width=24 encoder.depth=1 encoder.heads=2 decoder.head_dim=8 data.size=32 data.crop=32 data.resize=32
data.train_length=8 data.val_length=3 inference.window=32 inference.stride=32 train.batch_size=4 train.epochs=1
train.workers=0 train.log_every=1
"""
TINY = SETTINGS.split()
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["whitebox", "train", "depict-sa-tiny", "-o", str(folder), *TINY])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code
    return folder


def one_line(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1


class TestTrain:
    def test_leaves_records_tables_and_figures(self, runs: Path) -> None:
        run = runs / "depict-sa-tiny-shapes"
        assert (run / "curves.png").stat().st_size > 1000
        (record,) = (run / "records").glob("eval-shapes-val-*.json")
        written = json.loads(record.read_text())
        assert written["measured"]["miou"]["low"] <= written["measured"]["miou"]["value"]
        assert written["n"] == 3
        with np.load(record.with_suffix(".npz")) as counts:
            assert counts["counts"].shape == (3, 3, 7)
        for folder, suffixes in (("tables", (".csv", ".md", ".tex")), ("figures", (".png", ".pdf"))):
            assert {path.suffix for path in (run / folder).iterdir()} == set(suffixes)

    def test_print_config_trains_nothing(self, call: Call, tmp_path: Path) -> None:
        code, out, _ = call("train", "depict-ca-tiny", "--print-config", "optim.lr=0.3", "-o", tmp_path)
        assert code == 0
        assert "lr: 0.3" in out
        assert list(tmp_path.iterdir()) == []

    def test_compile_is_an_override(self, call: Call) -> None:
        assert "compile: true" in call("train", "depict-ca-tiny", "--print-config", "--compile")[1]
        assert "compile: false" in call("train", "depict-ca-tiny", "--print-config")[1]

    def test_a_changed_configuration(self, call: Call, runs: Path, tmp_path: Path) -> None:
        shutil.copytree(runs, tmp_path / "runs")
        changed = ["train", "depict-sa-tiny", "-o", tmp_path / "runs", "--resume", *TINY, "optim.lr=0.25"]
        code, _, err = call(*changed)
        assert code == 2
        assert one_line(err)
        assert "optim.lr was 0.0005, is 0.25" in err
        assert call(*changed, "--allow-changes")[0] == 0

    def test_a_second_run_of_the_same_name(self, call: Call, runs: Path) -> None:
        code, _, err = call("train", "depict-sa-tiny", "-o", runs, *TINY)
        assert code == 1
        assert one_line(err)
        assert "--resume" in err

    def test_resume_of_a_finished_run(self, call: Call, runs: Path) -> None:
        code, out, _ = call("train", "depict-sa-tiny", "-o", runs, "--resume", *TINY)
        assert code == 0
        assert "resumed at step 2" in out

    def test_resume_of_a_finished_run_whose_log_is_damaged(self, call: Call, runs: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(runs / "depict-sa-tiny-shapes", run)
        (run / "metrics.jsonl").write_bytes(b'\xff\xfe\x00{"step": "a"}\n')
        code, out, err = call("train", "depict-sa-tiny", "-o", tmp_path, "--name", "run", "--resume", *TINY)
        assert code == 0, err
        assert "Run saved in" in out and "No curves are drawn: " in err

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["train", "depict-ca-tny"], 2, "did you mean 'depict-ca-tiny'?"),
            (["train", "depict-ca-tiny", "--dataset", "camvit"], 2, "did you mean 'camvid'?"),
            (["train", "depict-ca-tiny", "optim.lrr=1"], 2, "did you mean 'optim.lr'?"),
            (["train", "depict-ca-tiny", "--dataset", "camvid", "--data-root", "/nowhere"], 1, "--data-root"),
            (["train", "depict-ca-tiny", "encoder.name=vit_tinny"], 1, "timm has no model 'vit_tinny'"),
            (["train", "depict-ca-tiny", "encoder.weights=/nowhere.pth"], 1, "There is no file /nowhere.pth"),
            (["eval", "/nowhere"], 1, "There is no file or folder /nowhere"),
            (["predict", "/nowhere", "photo.jpg"], 1, "There is no file or folder /nowhere"),
            (["convert", "/nowhere.pth", "-o", "out"], 1, "There is no file or folder /nowhere.pth"),
        ],
    )
    def test_errors(
        self, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        found, _, err = call(*arguments)
        assert found == code
        assert one_line(err)
        assert message in err

    def test_debug_shows_the_traceback(self, call: Call) -> None:
        code, _, err = call("train", "nothing", "--debug")
        assert code == 2 and "Traceback" in err and "ConfigError: Unknown model 'nothing'" in err

    def test_usage_errors_exit_with_2(self, call: Call) -> None:
        assert call("train")[0] == 2
        assert call("tarin")[0] == 2
        assert call("eval", "x", "--limit", "0")[0] == 2


class TestEval:
    def test_finds_the_result_of_the_training_again(self, call: Call, runs: Path) -> None:
        run = runs / "depict-sa-tiny-shapes"
        before = {path: json.loads(path.read_text())["measured"] for path in (run / "records").glob("*.json")}
        code, out, _ = call("eval", run)
        assert code == 0
        assert "mIoU" in out
        assert {path: json.loads(path.read_text())["measured"] for path in (run / "records").glob("*.json")} == before

    def test_options(self, call: Call, runs: Path, tmp_path: Path) -> None:
        options = [
            "--split",
            "test",
            "--multiscale",
            "--limit",
            2,
            "--save-images",
            1,
            "-o",
            tmp_path,
            "--device",
            "cpu",
        ]
        code, _, _ = call("eval", runs / "depict-sa-tiny-shapes" / "model.safetensors", *options)
        assert code == 0
        (record,) = (tmp_path / "records").glob("eval-shapes-test-multiscale-*.json")
        written = json.loads(record.read_text())
        assert written["n"] == 2
        assert written["settings"]["scales"] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
        assert written["settings"]["flip"] is True
        assert len(list((tmp_path / "pictures" / "shapes-test").iterdir())) == 1

    def test_another_dataset_has_other_classes(self, call: Call, runs: Path, shared: Path) -> None:
        arguments = ("eval", runs / "depict-sa-tiny-shapes", "--dataset", "camvid", "--data-root", shared / "data")
        code, _, err = call(*arguments)
        assert code == 1
        assert one_line(err)
        assert "has 7 classes and camvid has 11: measure on the dataset the model was trained for" in err

    def test_several_runs_are_compared(
        self, call: Call, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "results" / "other").mkdir(parents=True)
        weights = runs / "depict-sa-tiny-shapes" / "model.safetensors"
        shutil.copyfile(weights, tmp_path / "results" / "other" / "model.safetensors")
        monkeypatch.chdir(tmp_path)
        code, out, _ = call("eval", weights, "results/other", "inference.stride=16", "-o", "both")
        assert code == 0
        assert out.count("depict-sa-tiny-shapes") == 1 and "other" in out  # one table of both
        assert len(list((tmp_path / "both" / "figures").glob("eval-shapes-val-2_models-*.png"))) == 1
        (table,) = (tmp_path / "both" / "tables").glob("eval-shapes-val-2_models-*.csv")
        rows = table.read_text().splitlines()
        assert [row.split(",")[0] for row in rows] == ["Model", "depict-sa-tiny-shapes", "other"]
        assert call("eval", "--limit", 1)[0] == 0  # all below results/
        assert list((tmp_path / "results" / "other" / "records").glob("*.json"))

    def test_no_runs(self, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        code, _, err = call("eval")
        assert code == 2
        assert one_line(err)
        assert "There are no runs below results/" in err

    def test_a_device_that_is_not_there(self, call: Call, runs: Path) -> None:
        code, _, err = call("eval", runs / "depict-sa-tiny-shapes", "--device", "warp")
        assert code == 2
        assert one_line(err)
        assert "--device warp cannot be used here" in err


class TestPredict:
    def test_files_and_folders(self, call: Call, runs: Path, tmp_path: Path) -> None:
        photos = tmp_path / "photos"
        photos.mkdir()
        Image.fromarray(np.full((40, 30, 3), 90, np.uint8)).save(photos / "a.png")
        arguments = ("predict", runs / "depict-sa-tiny-shapes", photos, "-o", tmp_path / "out", "--probabilities")
        code, out, _ = call(*arguments)
        assert code == 0
        assert "1 of 1 images segmented" in out
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "a_labels.png",
            "a_overlay.jpg",
            "a_probabilities.npz",
        ]
        assert Image.open(tmp_path / "out" / "a_labels.png").size == (30, 40)

    def test_one_broken_file_does_not_stop_the_others(self, call: Call, runs: Path, tmp_path: Path) -> None:
        photos = tmp_path / "photos"
        photos.mkdir()
        Image.fromarray(np.full((40, 30, 3), 90, np.uint8)).save(photos / "b.png")
        (photos / "a.jpg").write_bytes(b"broken")
        code, out, err = call("predict", runs / "depict-sa-tiny-shapes", photos, "-o", tmp_path / "out")
        assert code == 1
        assert one_line(err)
        assert "a.jpg" in err
        assert "1 of 2 images segmented" in out
        assert (tmp_path / "out" / "b_labels.png").exists()

    def test_nothing_to_predict(self, call: Call, runs: Path, tmp_path: Path) -> None:
        code, _, err = call("predict", runs / "depict-sa-tiny-shapes", tmp_path / "none.jpg")
        assert code == 1
        assert one_line(err)
        assert "none.jpg" in err


def test_convert(call: Call, golden: Path | None, tmp_path: Path) -> None:
    for name in ("checkpoint.pth", "variant.yml"):
        shutil.copyfile(vector_file(golden, "depict_ca", name), tmp_path / name)
    code, out, _ = call("convert", tmp_path / "checkpoint.pth", "-o", tmp_path / "mine")
    assert code == 0
    assert "official checkpoint, depict-ca; all" in out
    image = torch.rand(1, 3, 70, 90)
    assert torch.equal(whitebox.load_model(tmp_path / "mine")(image), whitebox.load_model(tmp_path)(image))
    code, _, err = call("convert", tmp_path / "checkpoint.pth", "-o", tmp_path / "mine")
    assert code == 2
    assert one_line(err)
    assert "exists already" in err


def test_convert_to_and_from_mmsegmentation(mmseg: None, call: Call, runs: Path, tmp_path: Path) -> None:
    run = runs / "depict-sa-tiny-shapes"
    code, out, _ = call("convert", run, "--to", "mmseg", "-o", tmp_path / "model.pth")
    assert code == 0 and "model.py" in out and (tmp_path / "model.py").is_file()
    code, out, _ = call(
        "convert", tmp_path / "model.pth", "--from", "mmseg", "--dataset", "shapes", "-o", tmp_path / "back"
    )
    assert code == 0 and "all" in out
    image = torch.rand(1, 3, 70, 90)
    assert torch.equal(whitebox.load_model(tmp_path / "back")(image), whitebox.load_model(run)(image))
    for arguments, message in (
        ([run, "--to", "mmseg", "-o", tmp_path / "model.pth"], "model.pth exists already"),
        ([run, "--to", "paper", "-o", tmp_path / "other"], "--to paper is impossible: choose whitebox or mmseg"),
        ([run, "--dataset", "shapes", "-o", tmp_path / "other"], "add --from mmseg"),
        ([tmp_path / "model.pth", "-o", tmp_path / "other"], "whitebox convert --from mmseg"),
    ):
        code, _, err = call("convert", *arguments)
        assert code in (1, 2) and one_line(err) and message in err


@pytest.mark.parametrize("direction", ["--from", "--to"])
def test_convert_without_mmsegmentation_says_so(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    """Before it looks at the checkpoint."""
    monkeypatch.setitem(sys.modules, "mmseg", None)
    code, _, err = call("convert", tmp_path / "none.pth", direction, "mmseg", "-o", tmp_path / "a.pth")
    assert code == 2 and one_line(err)
    assert f"whitebox convert {direction} mmseg needs mmsegmentation: pip install 'whitebox-seg[mmseg]' && pip" in err


def test_lists(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("models")
    assert code == 0
    assert all(f" {name} " in out for name in model_names())
    code, out, _ = call("datasets", "--data-root", tmp_path)
    assert code == 0
    assert all(f" {name} " in out for name in dataset_names())
    assert "built in" in out
    assert "(not there)" in out
