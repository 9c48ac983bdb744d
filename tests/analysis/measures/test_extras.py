"""What `whitebox eval` counts beside accuracies: one pass for all, stored, and read the next time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import tiny_run

from analysis.maths.calibration import calibration_error
from analysis.measures.boundary import Boundary
from analysis.measures.calibration import Calibration
from analysis.measures.confusion import Confusion, _first_classes
from analysis.measures.evaluation import evaluated
from analysis.measures.extras import Extra
from analysis.measures.images import Images
from analysis.record import read_records
from whitebox.engine import distributed
from whitebox.engine.evaluate import Evaluation, Kept
from whitebox.engine.metrics import scores
from whitebox.errors import ConfigError
from whitebox.runs import find_run

Call = Callable[..., tuple[int, str, str]]
ALL: tuple[Extra, ...] = (Boundary(), Calibration(), Confusion())


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Kept]:
    """What each pass over the images was asked to keep."""
    seen: list[Kept] = []
    whole = distributed.evaluate_together

    def counted(*given: object, kept: Kept, **options: object) -> Evaluation:
        seen.append(kept)
        return whole(*given, kept=kept, workers=0, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(distributed, "evaluate_together", counted)
    return seen


def test_one_pass_for_all_and_none_for_what_is_there(tmp_path: Path, passes: list[Kept]) -> None:
    run = find_run(tiny_run(tmp_path / "run"), device="cpu")
    first = evaluated(run, "run", extras=ALL)
    assert passes == [Kept(boundary=0.02, confidence=True)]
    assert [record.kind for record in first.extras] == ["boundary", "calibration", "confusion"]
    again = evaluated(run, "run", extras=ALL)
    assert len(passes) == 1 and again.record == first.record and again.extras == first.extras
    assert evaluated(run, "run").record == first.record  # the same question, whatever else was asked
    assert len(passes) == 1
    evaluated(run, "run", extras=[Boundary(0.1)])
    assert passes[1:] == [Kept(boundary=0.1)]
    assert len(read_records(tmp_path / "run" / "records")) == 5


def test_a_confusion_matrix_needs_no_second_pass(tmp_path: Path, passes: list[Kept]) -> None:
    run = find_run(tiny_run(tmp_path / "run"), device="cpu")
    found = evaluated(run, "run")
    (record,) = evaluated(run, "run", extras=[Confusion()]).extras
    assert passes == [Kept()]
    measured = record.measured
    assert measured["names"] == [row["name"] for row in found.record.measured["per_class"]]
    for index, row in enumerate(found.record.measured["per_class"]):  # accuracy is the diagonal
        assert measured["matrix"][index][index] == pytest.approx(row["acc"]["value"] or 0)
        assert measured["labelled"][index] == pytest.approx(row["label_share"])
    shares = np.array(measured["matrix"])
    np.testing.assert_allclose(shares[:, -1], 0, atol=1e-12)  # all classes are shown
    worst = measured["worst"][0]
    np.fill_diagonal(shares, 0)
    assert worst["share"]["value"] == pytest.approx(shares.max())


def test_images_one_by_one_need_no_second_pass(tmp_path: Path, passes: list[Kept]) -> None:
    run = find_run(tiny_run(tmp_path / "run"), device="cpu")
    found = evaluated(run, "run")
    (record,) = evaluated(run, "run", extras=[Images()]).extras
    assert passes == [Kept()]
    counts_N3K, measured = found.evaluation.counts_N3K, record.measured
    ious = [scores(each, "labelled").miou for each in counts_N3K]
    assert measured["miou_images"]["value"] == pytest.approx(np.mean(ious))
    assert measured["miou"]["value"] == pytest.approx(found.record.measured["miou"]["value"])
    worst = int(np.argmin(ious))
    assert measured["worst"][0] == {"name": found.evaluation.names[worst], "miou": pytest.approx(min(ious))}
    assert measured["miou_worst"] == pytest.approx(min(ious))  # of three images the worst 5 % are one
    assert sum(row["images"] for row in measured["histogram"]) == len(ious)
    labels_K = counts_N3K[:, 2].sum(0)
    by_hand = np.nansum(labels_K * scores(counts_N3K).iou_K) / labels_K.sum()
    assert measured["fwiou"]["value"] == pytest.approx(by_hand)


def test_older_counts_without_a_confusion_matrix_are_made_anew(tmp_path: Path, passes: list[Kept]) -> None:
    run = find_run(tiny_run(tmp_path / "run"), device="cpu")
    found = evaluated(run, "run")
    with np.load(found.counts) as arrays:
        old = {name: arrays[name] for name in ("names", "counts")}
    np.savez_compressed(found.counts, **old)
    (record,) = evaluated(run, "run", extras=[Confusion()]).extras
    assert len(passes) == 2 and record.measured["worst"]


def test_records_hold_what_their_counts_say(tmp_path: Path) -> None:
    run = find_run(tiny_run(tmp_path / "run"), device="cpu")
    found = evaluated(run, "run", extras=ALL)
    boundary, calibration, _ = found.extras
    folder = tmp_path / "run" / "records"
    with np.load((folder / boundary.file_name).with_suffix(".npz")) as arrays:
        assert arrays["names"].tolist() == list(found.evaluation.names)
        expected = scores(arrays["counts"])
    assert boundary.measured["miou"]["value"] == pytest.approx(expected.miou)
    assert boundary.measured["mask_miou"] == pytest.approx(found.record.measured["miou"]["value"])
    with np.load((folder / calibration.file_name).with_suffix(".npz")) as arrays:
        bins_NB3 = arrays["bins"]
        assert arrays["squared_error"].shape == (len(bins_NB3),)
    measured = calibration.measured
    assert measured["ece"]["value"] == pytest.approx(calibration_error(bins_NB3.sum(0)))
    assert sum(row["share"] for row in measured["reliability"]) == pytest.approx(1)
    risk = measured["risk"][-1]
    assert risk["coverage"] == 1 and risk["risk"]["value"] == pytest.approx(1 - found.record.measured["aacc"]["value"])
    aacc = bins_NB3[..., 1].sum() / bins_NB3[..., 0].sum()
    assert aacc == pytest.approx(found.record.measured["aacc"]["value"])


def test_counts_that_are_lost_are_counted_again(tmp_path: Path, passes: list[Kept]) -> None:
    run = find_run(tiny_run(tmp_path / "run"), device="cpu")
    (record,) = evaluated(run, "run", extras=[Calibration()]).extras
    counts = (tmp_path / "run" / "records" / record.file_name).with_suffix(".npz")
    counts.unlink()
    evaluated(run, "run", extras=[Calibration()])
    assert len(passes) == 2 and counts.is_file()


def test_of_many_classes_those_of_the_worst_confusions_are_shown() -> None:
    worst = [(7, 3), (3, 7), (100, 2), (5, 6)]
    assert _first_classes(worst, 24) == [2, 3, 5, 6, 7, 100]
    assert _first_classes(worst, 5) == [2, 3, 7, 100]  # a pair is shown whole or not at all


def test_150_classes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    entries = [(n, k, j, 50) for n in range(3) for k in range(150) for j in (k, (k + 1) % 150) if random.random() < 0.7]
    entries_M4 = np.array([(*each[:3], each[3] + (each[1] == 9) * 500 * (each[2] != 9)) for each in entries])
    counts_N3K = np.zeros((3, 3, 150), np.int64)
    for number, label, prediction, count in entries_M4:
        counts_N3K[number, :, :] += 0
        counts_N3K[number, 2, label] += count
        counts_N3K[number, 1, prediction] += count
        counts_N3K[number, 0, label] += count * (label == prediction)
    evaluation = Evaluation(("a", "b", "c"), counts_N3K, confusion_M4=entries_M4)
    measured = Confusion().measured([evaluation], [f"class {index}" for index in range(150)], None)
    assert len(measured["worst"]) == 20 and 2 < len(measured["names"]) <= 24
    matrix = np.array(measured["matrix"])
    assert matrix.shape == (len(measured["names"]), len(measured["names"]) + 1)
    np.testing.assert_allclose(matrix.sum(1), 1)
    json.dumps(measured)


class TestCommand:
    def test_tables_and_figures(self, call: Call, tmp_path: Path) -> None:
        folder = tiny_run(tmp_path / "run")
        code, out, err = call(
            "eval", str(folder), "--boundary", "--calibration", "--confusion", "--images", "--device", "cpu", "-v"
        )
        assert code == 0, err
        assert "mIoU of an image (%)" in out
        assert "Boundary IoU (%)" in out and "ECE (%)" in out and "Predicted as" in out
        drawn = {path.name.rsplit("-shapes-val-")[0] for path in (folder / "figures").glob("*.png")}
        assert drawn == {"eval", "boundary", "calibration", "confusion", "images"}
        assert len(list((folder / "figures").glob("calibration-*.png"))) == 2

    @pytest.mark.usefixtures("empty_pictures")
    def test_several_side_by_side(self, call: Call, tmp_path: Path) -> None:
        runs = [str(tiny_run(tmp_path / f"run{seed}", seed=seed)) for seed in range(2)]
        asked = ("--boundary", "--calibration", "--confusion", "--images", "--limit", "2", "-o", str(tmp_path / "o"))
        code, out, err = call("eval", *runs, *asked, "--device", "cpu")
        assert code == 0, err
        assert "Boundary mIoU (%)" in out
        tables = [path.read_text() for path in (tmp_path / "o" / "tables").glob("calibration-*2_models*.md")]
        assert len(tables) == 1 and "run0" in tables[0] and "run1" in tables[0]

    def test_a_ratio_of_what_is_not_asked(self, call: Call, tmp_path: Path) -> None:
        code, _, err = call("eval", str(tiny_run(tmp_path / "run")), "--boundary-ratio", "0.005")
        assert code == 2 and "add --boundary." in err

    def test_an_impossible_ratio(self) -> None:
        with pytest.raises(ConfigError, match=r"--boundary-ratio=0\.0 is impossible"):
            Boundary(0.0)
