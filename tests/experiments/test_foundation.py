"""The study on a frozen encoder: trained, measured and shown by one command, at a size that takes seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from child_runs import TINY

from analysis.record import RecordError, read_records
from experiments import foundation
from experiments.experiment import Setting
from experiments.foundation import DECODERS, OWN, SETTINGS, SPLITS, Foundation
from whitebox.catalog import model_names
from whitebox.data import dataset_info
from whitebox.engine.header import WEIGHTS

Call = Callable[..., tuple[int, str, str]]
MODEL = {key: value for key, value in TINY.items() if not key.startswith("decoder")}
FEW = {
    **MODEL,
    "encoder.pretrained": "false",
    "encoder.random": "true",
    "data.views": 1,
    "data.view_seed": 0,
    "train.epochs": 1,
    "optim.warmup_steps": 1,
}
ARGUMENTS = ("--dataset", "shapes", "--encoder", "vit-tiny", "--model-size", "tiny", "--limit", "3", "--draws", "1")


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_pictures: None) -> Callable[..., list[str]]:
    """The command with two decoders and measurements of each sort."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(foundation, "DECODERS", {name: DECODERS[name] for name in ("linear", "depict-sa")})
    kinds = ("rank-analysis", "orthogonality", "parameter-noise")
    chosen = [own for own in OWN if own.measurement(Setting()).kind in kinds]
    monkeypatch.setattr(foundation, "OWN", (*chosen[:2], chosen[2]))
    own = [f"{key}={value}" for key, value in FEW.items()]
    return lambda *more: ["reproduce", "foundation", *own, *ARGUMENTS, "--noise", "0.1", "--device", "cpu", *more]


def test_from_an_empty_folder_to_tables_and_on_without_weights(
    few: Callable[..., list[str]], call: Call, tmp_path: Path
) -> None:
    code, _, err = call(*few("--seeds", "0:2"))
    assert code == 0, err
    root = tmp_path / "results" / "foundation"
    kinds = [record.kind for record in read_records(root / "depict-sa" / "records")]
    assert sorted(kinds) == ["calibration", "eval", "orthogonality", "parameter-noise", "rank-analysis", "tradeoff"]
    (baseline, *_) = read_records(root / "depict-sa" / "seed-0" / "records", "against")
    assert baseline.measured["baselines"] == ["untrained"]  # the same for all seeds
    assert not read_records(root / "depict-sa" / "seed-1" / "records", "against")
    together = read_records(root / "depict-sa" / "records", "eval")[0]
    assert together.settings["training_seeds"] == [0, 1] and together.model == "depict-sa"
    (difference,) = read_records(root / "records", "compare")
    assert (difference.model, difference.settings["reference"]) == ("depict-sa", "linear")
    tables = {path.stem.split("-shapes")[0] for path in (root / "tables").glob("*.md")}
    assert {"eval", "compare", "calibration", "rank-analysis", "against", "similarity", "tradeoff", "claims"} <= tables
    (alike,) = read_records(root / "depict-sa" / "seed-1" / "records", "similarity")
    assert alike.model == "depict-sa-seed-0 | depict-sa-seed-1"
    claims = (root / "tables" / "claims.md").read_text("utf-8")
    assert claims.count("| depict-sa |") >= 3 and "cannot tell: 2 of at least 3 trainings" in claims

    trained = sorted(root.glob(f"*/seed-*/{WEIGHTS}"))
    assert len(trained) == 4
    for path in trained:
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/seed-*/records/*")}
    code, again, err = call(*few("--seeds", "0:2"))
    assert code == 0, err
    assert again.count("is measured.") == 4 and "epoch 1" not in again
    assert {path: path.stat().st_mtime_ns for path in root.glob("*/seed-*/records/*")} == before

    written = {path: path.read_bytes() for path in (root / "tables").iterdir()}
    shutil.rmtree(root / "tables")
    code, shown, err = call(*few("--seeds", "0:3", "--show"))  # of what is there
    assert code == 0 and "is measured." not in shown, err
    assert {path: path.read_bytes() for path in (root / "tables").iterdir()} == written

    code, plan, _ = call(*few("--seeds", "0:3", "--dry-run"))
    assert code == 0 and "2 of 3 trainings there" in plan and "Disk" in plan

    code, _, err = call(*few("--seeds", "0:3", "--decoder", "linear"))  # one more, beside those without weights
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (more,) = root.glob(f"*/seed-*/{WEIGHTS}")
    assert more.parent.name == "seed-2" and read_records(more.parent / "records", "parameter-noise")


def test_a_record_that_cannot_be_read_is_said(few: Callable[..., list[str]], tmp_path: Path) -> None:
    study = Foundation(dataset="shapes", encoder="vit-tiny", size="tiny", seeds=range(1), folder=tmp_path)
    assert not study.done("linear", 0, Setting())
    broken = study.place("linear", 0) / "records" / "eval-shapes-val-00000000.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    with pytest.raises(RecordError):
        study.done("linear", 0, Setting())


def test_what_it_refuses(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for more, message in (
        (("foundation", "--split", "val"), "foundation has splits of its own, and one --model-size"),
        (("foundation", "--seeds", "3"), "--seeds 3 is impossible"),
        (("depict", "--seeds", "0:2"), "--encoder, --seeds, --decoder and --show belong to"),
    ):
        code, _, err = call("reproduce", *more, "--dataset", "shapes")
        assert code == 2 and err.count("\n") == 1 and message in err, err


def test_decoders_exist_and_are_trained_by_one_recipe() -> None:
    for dataset in ("camvid", "ade20k"):
        study = Foundation(dataset=dataset, encoder="dinov2-small", size="small", seeds=range(2), folder=Path("x"))
        assert {study.model(decoder) for decoder in DECODERS} <= set(model_names())
        configs = [study.config(decoder) for decoder in DECODERS]
        assert all(config.encoder.frozen for config in configs)
        assert len({str(config.train) + str(config.data) for config in configs}) == 1
        assert len(dataset_info(configs[0].data)[0]) > 1
        order = list(study.trainings())
        assert order[: len(DECODERS)] == [(decoder, 0) for decoder in DECODERS] and len(order) == 2 * len(DECODERS)
    assert set(SETTINGS) == set(SPLITS)
