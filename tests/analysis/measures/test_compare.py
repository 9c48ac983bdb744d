"""Paired differences from stored counts, and the commands `compare` and `intervene`."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from asking import shown
from child_runs import TINY

import whitebox
from analysis.consumed import Chosen
from analysis.maths.conventions import RESAMPLES
from analysis.maths.resampling import interval, sampled
from analysis.measures import compare as comparison
from analysis.measures.compare import distinct_names
from analysis.measures.evaluation import Evaluated, evaluated, measured_scores, read_counts
from analysis.record import Answer, Data, Question, Record, RecordError, Weights, new_record, read_records
from whitebox.config import RunConfig, resolve
from whitebox.engine.checkpoint import save_model
from whitebox.engine.evaluate import Evaluation
from whitebox.engine.header import read_header
from whitebox.engine.metrics import score_vectors
from whitebox.errors import ConfigError
from whitebox.models import build, intervene
from whitebox.runs import open_run

Call = Callable[..., tuple[int, str, str]]


def configured(name: str = "depict-sa-tiny", **changes: object) -> RunConfig:
    unknown = ("decoder.head_dim",) if "segmenter" in name else ()
    return resolve(name, "shapes", {**{key: value for key, value in TINY.items() if key not in unknown}, **changes})


def new_run(folder: Path, name: str = "depict-sa-tiny", seed: int = 0, **changes: object) -> Path:
    """An untrained run, with the classes of its dataset."""
    config = configured(name, **changes)
    torch.manual_seed(seed)
    classes = ("background", "disc", "square", "triangle", "star", "cross", "egg")
    save_model(folder / "model.safetensors", build(config.encoder, config.decoder, 7, classes), config)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs; ``sa`` and ``linear`` are evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    new_run(folder / "sa")
    new_run(folder / "linear", "segmenter-linear-tiny")
    new_run(folder / "other" / "sa", seed=1)
    for name in ("sa", "linear"):
        evaluated(open_run(folder / name, device="cpu"), name)
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, and the working directory."""
    shutil.copytree(made, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def nothing_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr("whitebox.engine.distributed.evaluate_together", fail)


def example(name: str, shift: int, classes: tuple[str, ...] = ("a", "b"), images: int = 6) -> Evaluated:
    """A made-up evaluation; the labels do not depend on ``shift``."""
    random = np.random.default_rng(shift)
    labels_NK = np.random.default_rng(99).integers(20, 50, (images, len(classes)))
    right_NK = random.integers(0, labels_NK)
    counts_N3K = np.stack([right_NK, labels_NK, labels_NK], axis=1)
    evaluation = Evaluation(tuple(f"image {index}" for index in range(images)), counts_N3K)
    question = Question(
        kind="eval",
        model=name,
        data=Data("shapes", "val", images, f"{images} images"),
        weights=Weights("x", str(shift)),
        settings={"resamples": 1000, "window": 32},
    )
    record = new_record(question, Answer(measured=measured_scores(counts_N3K, classes), n=images))
    made = Evaluated(name, record, Path("nowhere"))
    vars(made).update(evaluation=evaluation, unit_N=evaluation.names)  # instead of a file
    return made


def compare(reference: Evaluated, model: Evaluated, *arguments: Any, **options: Any) -> Record:
    """Compared now, whatever was stored."""
    with TemporaryDirectory() as folder:
        return comparison.compare(reference, model, Path(folder), *arguments, **options)


class TestCompare:
    def test_differences_and_their_intervals(self) -> None:
        reference, model = example("first", 1), example("second", 2)
        record = compare(reference, model, seed=3)
        ours, theirs = model.evaluation, reference.evaluation
        both = [
            sampled(each.counts_N3K.reshape(6, -1), score_vectors, resamples=RESAMPLES, seed=3)
            for each in (ours, theirs)
        ]
        found = interval(both[0].minus(both[1], matched=True))
        for index, key in enumerate(("miou", "macc", "aacc")):
            stored = record.measured[key]
            assert stored["value"] == pytest.approx(getattr(ours.scores, key) - getattr(theirs.scores, key))
            assert (stored["low"], stored["high"]) == (found.low_M[index], found.high_M[index])
            assert stored["p"] == found.p_M[index] and stored["error"] > 0
            assert record.measured["reference"][key] == getattr(theirs.scores, key)
        last = record.measured["per_class"][1]
        assert last["name"] == "b" and last["iou"]["value"] == pytest.approx(last["model"] - last["reference"])
        assert (last["iou"]["low"], last["iou"]["high"]) == (found.low_M[4], found.high_M[4])
        assert (record.kind, record.model, record.n, record.seeds) == ("compare", "second", 6, {"bootstrap": 3})
        assert record.settings["reference"] == "first" and record.measured["notes"] == []

    def test_other_settings_are_noted(self) -> None:
        reference, model = example("first", 1), example("second", 2)
        record = dataclasses.replace(
            model.record, settings={**model.record.settings, "window": 64, "training_weights": ["ab"]}
        )
        changed = dataclasses.replace(model, record=record)
        vars(changed)["evaluation"] = model.evaluation
        notes = compare(reference, changed, notes=["hello"]).measured["notes"]
        assert notes == ["hello", "window is 64, that of the reference 32"]

    @pytest.mark.parametrize(
        ("other", "what"),
        [
            (example("x", 1, classes=("a", "c")), "classes"),
            (example("x", 1, images=5), "images"),
        ],
    )
    def test_what_cannot_be_compared(self, other: Evaluated, what: str) -> None:
        with pytest.raises(RecordError, match=f"x and first were evaluated on different {what}"):
            compare(example("first", 1), other)

    def test_other_labels_of_the_same_images(self) -> None:
        reference = example("first", 1)
        data = dataclasses.replace(reference.record.data, fingerprint="00" * 32)
        other = dataclasses.replace(reference, name="x", record=dataclasses.replace(reference.record, data=data))
        with pytest.raises(RecordError, match="different images or labels"):
            compare(reference, other)


class TestDistinctNames:
    def test_folders_above_are_added_as_needed(self) -> None:
        paths = [Path("a/x/model.safetensors"), Path("b/x/model.safetensors"), Path("b/y/model.safetensors")]
        assert distinct_names(paths[1:]) == ["x", "y"]
        assert distinct_names(paths) == ["a/x", "b/x", "b/y"]

    def test_two_weights_in_one_folder(self) -> None:
        assert distinct_names([Path("a/one.safetensors"), Path("a/two.safetensors")]) == [
            "one.safetensors",
            "two.safetensors",
        ]

    def test_the_same_weights_twice(self) -> None:
        with pytest.raises(ConfigError, match="cannot be compared with itself"):
            distinct_names([Path("a/model.safetensors"), Path("b/../a/model.safetensors")])


class TestStoredCounts:
    def test_they_are_found_again(self, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        nothing_is_evaluated(monkeypatch)
        run = open_run(runs / "sa", device="cpu")
        found = evaluated(run, "mine")
        assert found.name == "mine" and found.record.model == "sa" and len(found.evaluation.names) == 3

    @pytest.mark.parametrize("change", ["limit", "window", "split", "weights", "counts gone"])
    def test_what_does_not_fit_is_evaluated(self, runs: Path, change: str) -> None:
        overrides = ["inference.stride=16"] if change == "window" else []
        if change == "weights":
            new_run(runs / "sa", seed=5)
        if change == "counts gone":
            next((runs / "sa" / "records").glob("*.npz")).unlink()
        run = open_run(runs / "sa", overrides=overrides, device="cpu")
        seen: list[tuple[int, int]] = []
        split, limit = ("train", 4) if change == "split" else (None, 2 if change == "limit" else None)
        chosen = Chosen(split, limit)
        found = evaluated(run, "mine", chosen, None, lambda *done: seen.append(done))
        images = {"limit": 2, "split": 4}.get(change, 3)
        assert seen == [(done, images) for done in range(1, images + 1)]
        assert found.record in read_records(runs / "sa" / "records")  # and is stored
        again: list[tuple[int, int]] = []
        evaluated(run, "mine", chosen, None, lambda *done: again.append(done))
        assert again == []

    def test_damaged_or_foreign_counts(self, runs: Path) -> None:
        (mine,), (foreign,) = ((runs / name / "records").glob("*.npz") for name in ("sa", "linear"))
        (record,) = read_records(mine.parent)
        with np.load(foreign) as arrays:
            np.savez(mine, names=arrays["names"], counts=arrays["counts"] + 1)
        with pytest.raises(RecordError, match="are not those of their record"):
            read_counts(mine, record)
        mine.write_bytes(foreign.read_bytes()[:100])
        with pytest.raises(RecordError, match="cannot be read"):
            _ = evaluated(open_run(runs / "sa", device="cpu"), "mine").evaluation


class TestRender:
    def records(self) -> list[Record]:
        return [compare(example("first", 1), example(name, shift)) for name, shift in (("second", 2), ("third", 3))]

    def test_table_and_figure(self, tmp_path: Path) -> None:
        records = self.records()
        table = shown(records, tmp_path / "compare")[""]
        assert [column.name for column in table.columns] == [
            "Class",
            "first (%)",
            "second, difference",
            "third, difference",
        ]
        assert [row[0] for row in table.rows] == ["a", "b", "mIoU", "mAcc", "aAcc"]
        value = records[1].measured["miou"]["value"]
        assert table.rows[2][3].value == pytest.approx(100 * value)  # type: ignore[union-attr]
        assert "n = 6 images" in table.caption and "seed 0" in table.caption
        assert {path.name for path in tmp_path.iterdir()} == {"compare.png", "compare.pdf"}

    def test_a_class_that_is_nowhere(self, tmp_path: Path) -> None:
        (first, second), nothing = (example("first", 1), example("second", 2)), np.zeros((6, 3, 1), np.int64)
        for each in (first, second):
            each.evaluation.counts_N3K[:, :, 1:] = nothing
        record = compare(first, second)
        assert set(record.measured["per_class"][1]["iou"].values()) == {None}
        assert shown([record], tmp_path / "x")[""].shown()[1] == ["b", "–", "–"]

    def test_what_does_not_fit_together(self, tmp_path: Path) -> None:
        records = self.records()
        other = {**records[1].settings, "reference_weights": "00"}
        with pytest.raises(RecordError, match="another reference"):
            shown([records[0], dataclasses.replace(records[1], settings=other)], tmp_path / "x")
        with pytest.raises(RecordError, match="another reference, or other images"):
            shown([records[0], compare(example("first", 1, images=4), example("x", 2, images=4))], tmp_path / "x")


class TestCompareCommand:
    def test_stored_and_new_evaluations(self, call: Call, runs: Path) -> None:
        code, out, err = call("compare", "runs/linear", runs / "sa", "runs/other/sa", "--device", "cpu", "--seed", 4)
        assert code == 0, err
        assert "linear, n = 3" not in out and "other/sa" in out
        records = [*read_records("runs/sa/records", "compare"), *read_records("runs/other/sa/records", "compare")]
        assert [record.model for record in records] == ["runs/sa", "other/sa"]
        assert {record.settings["reference"] for record in records} == {"runs/linear"}
        assert all(record.seeds == {"bootstrap": 4} for record in records)
        assert len(list(Path("runs/tables").glob("compare-shapes-val-2_models-*.csv"))) == 3
        assert len(list(Path("runs/figures").glob("compare-shapes-val-2_models-*.pdf"))) == 1

    def test_output_and_limit(self, call: Call, runs: Path) -> None:
        before = sorted((runs / "sa").rglob("*"))
        code, _, err = call("compare", runs / "linear", runs / "sa", "--limit", 2, "-o", "out")
        assert code == 0, err
        assert sorted(record.kind for record in read_records("out/records")) == ["compare", "eval", "eval"]
        assert all(record.n == 2 for record in read_records("out/records"))
        assert sorted((runs / "sa").rglob("*")) == before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["runs/sa"], "a reference and at least one other run; 1 were named"),
            (["runs/sa", "runs/sa/model.safetensors"], "cannot be compared with itself"),
            (["runs/sa", "runs/none"], "There is no file or folder runs/none"),
            (["runs/sa", "runs/linear", "--split", "moon"], "moon"),
            (["runs/sa", "runs/linear", "decoder.heads=2"], "decoder.heads was fixed by the training"),
            (["runs/sa", "runs/more"], "runs/more and runs/sa were evaluated on different images"),
        ],
    )
    def test_errors(self, call: Call, runs: Path, arguments: list[str], message: str) -> None:
        new_run(runs / "more", **{"data.val_length": 4})
        code, _, err = call("compare", *arguments, "--device", "cpu")
        assert code != 0
        assert err.startswith("error: ") and err.count("\n") == 1
        assert message.replace("runs/", "") in err.replace("runs/", "")


class TestInterveneCommand:
    def test_a_rotation_inside_heads_changes_nothing(self, call: Call, runs: Path) -> None:
        code, out, err = call("intervene", "runs/sa", "--ortho", "head_trans", "--device", "cpu")
        assert code == 0, err
        assert "head_trans of all subspace layers of sa, seed 0" in out
        (record,) = read_records("runs/sa-head_trans/records", "compare")
        assert record.model == "sa-head_trans" and record.settings["reference"] == "sa"
        assert abs(record.measured["miou"]["value"]) < 1e-3
        done = read_header(Path("runs/sa-head_trans/model.safetensors"))["altered"]
        source = read_records("runs/sa/records")[0].weights
        assert source is not None
        assert done == {"operation": "head_trans", "layers": "all", "seed": 0, "run": "sa", "sha256": source.sha256}
        assert "altered" not in read_header(Path("runs/sa/model.safetensors"))
        assert Path("runs/sa-head_trans/config.yaml").is_file()

    def test_the_altered_model_is_what_the_operation_gives(self, call: Call, runs: Path) -> None:
        arguments = ("--ortho", "ortho_trans", "--layers", "decoder.layers.2, decoder.layers.0", "--seed", 7, "-o", "x")
        code, _, err = call("intervene", "runs/sa", *arguments)
        assert code == 0, err
        original = whitebox.load_model("runs/sa")
        expected = intervene(original, "ortho_trans", ["decoder.layers.0", "decoder.layers.2"], 7).state_dict()
        found = whitebox.load_model("x").state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        changed = {name for name, tensor in original.state_dict().items() if not torch.equal(found[name], tensor)}
        assert changed == {"decoder.layers.0.basis", "decoder.layers.2.basis"}
        (record,) = read_records("x/records", "compare")
        assert record.measured["miou"]["value"] != 0

    def test_from_inside_the_run(self, call: Call, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(runs / "sa")
        code, _, err = call("intervene", ".", "--ortho", "head_ortho", "--device", "cpu")
        assert code == 0, err
        assert (runs / "sa-head_ortho" / "model.safetensors").is_file()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["runs/sa", "--ortho", "a/b"], "choose from head_ortho, head_trans, ortho_trans"),
            (["runs/sa", "--ortho", "head_trans", "--layers", "decoder.layers.7"], "decoder.layers.0"),
            (["runs/linear", "--ortho", "head_trans"], "no subspace attention"),
            (["runs/none", "--ortho", "head_trans"], "There is no file or folder runs/none"),
            (["runs/sa", "--ortho", "head_trans", "--split", "moon"], "moon"),
            (
                ["runs/sa", "--ortho", "head_trans", "-o", "runs/linear"],
                "exists already; choose another folder with -o",
            ),
        ],
    )
    def test_errors_leave_nothing_behind(self, call: Call, runs: Path, arguments: list[str], message: str) -> None:
        before = sorted(runs.parent.rglob("*"))
        code, _, err = call("intervene", *arguments)
        assert code != 0
        assert err.startswith("error: ") and err.count("\n") == 1
        assert message in err
        assert sorted(runs.parent.rglob("*")) == before


def test_a_class_that_neither_finds_has_no_interval() -> None:
    """[0.00, 0.00] would read as certainty."""
    counts_N3K = np.zeros((4, 3, 2), np.int64)
    counts_N3K[:, :, 0] = [[5, 8, 7], [6, 8, 8], [4, 9, 6], [7, 8, 9]]
    counts_N3K[:, 1:, 1] = 3  # predicted and labelled, never both
    better_N3K = counts_N3K.copy()
    better_N3K[:, 0, 0] += 1
    first, second = (Evaluation(tuple("abcd"), each) for each in (counts_N3K, better_N3K))
    evaluations = [example("a", 1), example("b", 2)]
    for made, evaluation in zip(evaluations, (first, second), strict=True):
        vars(made).update(evaluation=evaluation, unit_N=evaluation.names)  # which it would read from a file
    found = comparison.differences(evaluations[0], evaluations[1], ["x", "y"], 0)
    seen, unseen = (row["iou"] for row in found["per_class"])
    assert seen["low"] <= seen["value"] <= seen["high"]
    assert unseen["value"] == 0 and np.isnan(unseen["low"]) and np.isnan(unseen["high"])
