"""Several trainings of one configuration as one model: evaluations, other records, commands, and what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from child_runs import TINY
from PIL import Image
from safetensors.torch import load_file, save_file

from analysis.consumed import Chosen
from analysis.maths.resampling import estimated, interval, sampled
from analysis.measures.boundary import Boundary
from analysis.measures.calibration import Calibration
from analysis.measures.confusion import Confusion
from analysis.measures.evaluation import evaluated, read_counts
from analysis.measures.extras import with_counts
from analysis.measures.families import family_evaluation, family_extras, family_records, joined, merged
from analysis.measures.images import Images
from analysis.measures.renewal import renew
from analysis.record import RecordError, read_record, read_records
from whitebox.config import resolve
from whitebox.engine.checkpoint import save_model
from whitebox.engine.header import HEADER, read_header
from whitebox.engine.metrics import score_vectors
from whitebox.errors import CheckpointError, ConfigError
from whitebox.models import build
from whitebox.runs import expanded, families, find_run, members

Call = Callable[..., tuple[int, str, str]]
CLASSES = ("background", "disc", "square", "triangle", "star", "cross", "egg")


def new_run(folder: Path, seed: int, **changes: object) -> Path:
    config = resolve("depict-sa-tiny", "shapes", {**TINY, "data.val_length": 4, "train.seed": seed, **changes})
    torch.manual_seed(seed)
    save_model(folder / "model.safetensors", build(config.encoder, config.decoder, 7, CLASSES), config)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of three trainings, and another of two, evaluated."""
    folder = tmp_path_factory.mktemp("families")
    for name, count, changes in (("sa", 3, {}), ("other", 2, {"decoder.layers": 1})):
        for seed in range(count):
            new_run(folder / name / f"seed-{seed}", seed, **changes)
        (folder / name / "seeds.txt").write_text("\n".join(map(str, range(count))))
        for path in members(folder / name):
            run = find_run(path, device="cpu")
            evaluated(run, run.name, Chosen())
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_an_evaluation_of_all_is_made_of_their_counts(runs: Path) -> None:
    found = [find_run(path, device="cpu") for path in expanded([runs / "sa"])]
    (family,) = families(found)
    assert (family.name, family.folder, family.indices) == ("sa", runs / "sa", (0, 1, 2))
    assert [run.name for run in found] == ["sa-seed-0", "sa-seed-1", "sa-seed-2"]
    trained = [evaluated(run, run.name) for run in found]
    record = family_evaluation(family, trained).record
    counts = np.stack([each.evaluation.counts_N3K for each in trained])
    expected = estimated(counts.reshape(3, 4, -1), score_vectors, within=(0, 1))
    miou = record.measured["miou"]
    assert [miou[key] for key in ("value", "low", "high", "sd")] == pytest.approx(
        [each[0] for each in (expected.value_M, expected.low_M, expected.high_M, expected.sd_M)]
    )
    assert miou["seeds"] == [each.record.measured["miou"]["value"] for each in trained]
    assert record.settings["training_seeds"] == [0, 1, 2] and record.model == "sa"


def test_what_else_was_asked_for_is_of_all_counts_too(runs: Path) -> None:
    """The worst confusions of one training are not those of another: their numbers are no means of rows."""
    found = [find_run(path, device="cpu") for path in expanded([runs / "sa"])]
    (family,) = families(found)
    extras = [Boundary(), Calibration(), Confusion(), Images()]
    trained = [evaluated(run, run.name, extras=extras) for run in found]
    records = family_extras(family, trained, extras)
    assert [record.kind for record in records] == [extra.kind for extra in extras]
    boundary, calibration, confusion, images = (record.measured for record in records)
    for own in (boundary["miou"], calibration["ece"], images["fwiou"]):
        assert len(own["seeds"]) == 3 and own["value"] == pytest.approx(np.mean(own["seeds"]))
    assert boundary["miou"]["seeds"] == pytest.approx([each.extras[0].measured["miou"]["value"] for each in trained])
    assert calibration["ece"]["seeds"] == pytest.approx([each.extras[1].measured["ece"]["value"] for each in trained])
    entries = np.concatenate([each.evaluation.confusion_M4 for each in trained])  # type: ignore[misc]
    total = np.zeros((7, 7))
    np.add.at(total, (entries[:, 1], entries[:, 2]), entries[:, 3])
    share = total / np.maximum(1, total.sum(1, keepdims=True))
    np.testing.assert_allclose(np.array(confusion["matrix"])[:, :-1], share, atol=1e-12)
    worst = confusion["worst"][0]
    pair = CLASSES.index(worst["label"]), CLASSES.index(worst["prediction"])
    assert worst["share"]["value"] == pytest.approx(share[pair])
    assert all(record.settings["training_seeds"] == [0, 1, 2] for record in records)


def test_counts_of_other_images_are_not_taken(runs: Path) -> None:
    (run, *_) = (find_run(path, device="cpu") for path in expanded([runs / "sa"]))
    found = evaluated(run, run.name, extras=[Calibration()])
    own = found.also[0]
    with np.load(own.counts) as arrays:
        np.savez(own.counts, **{**arrays, "names": arrays["names"][::-1]})
    with pytest.raises(RecordError, match="are of other images; delete them, and repeat"):
        with_counts(Calibration(), found.evaluation, own)
    own.counts.write_bytes(b"PK")
    with pytest.raises(RecordError, match="cannot be read; delete them, and repeat"):
        with_counts(Calibration(), found.evaluation, own)


@pytest.mark.usefixtures("empty_pictures")
def test_eval_and_compare_and_summary_take_a_family_as_one_model(call: Call, runs: Path) -> None:
    code, _, err = call("eval", runs / "sa", runs / "other", "--device", "cpu", "-o", "out")
    assert code == 0, err
    (table,) = Path("out/tables").glob("eval-shapes-val-2_models-*.md")
    text = table.read_text("utf-8")
    assert text.count("\n| sa |") == text.count("\n| other |") == 1 and " ± " in text
    code, _, err = call("compare", runs / "sa", runs / "other", "--device", "cpu", "-o", "out")
    assert code == 0, err
    (record,) = read_records("out/records", "compare")
    assert record.settings["reference_seeds"] == [0, 1, 2] and record.settings["training_seeds"] == [0, 1]
    assert "after Holm" not in Path(next(Path("out/tables").glob("*-sentences.md"))).read_text("utf-8")
    call("eval", runs / "sa", runs / "other", "--device", "cpu")
    code, _, err = call("summary", runs)
    assert code == 0, err
    rows = (runs / "tables" / "summary.md").read_text("utf-8")
    assert "| sa |" in rows and "seed-0" not in rows


def test_variance_by_its_source_and_power(call: Call, runs: Path) -> None:
    code, out, err = call("eval", runs / "sa", "--variance", "--device", "cpu")
    assert code == 0, err
    (record,) = read_records(runs / "sa" / "records", "variance")
    assert (record.measured["seeds"], record.measured["units"]) == (3, 4)
    counts = np.stack([read_counts(path, read_record(path.with_suffix(".json"))).counts_N3K for path in npz(runs)])
    cells_SU = sampled(counts.reshape(3, 4, -1), score_vectors, resamples=1).cells_SUM[..., 0]
    rest_SU = cells_SU - cells_SU.mean(0) - cells_SU.mean(1)[:, None] + cells_SU.mean()
    assert record.measured["miou"]["residual"] ** 2 == pytest.approx((rest_SU**2).sum() / 6)
    (table,) = (runs / "sa" / "tables").glob("variance-*.md")
    assert "4 images, 3 trainings" in table.read_text("utf-8")
    assert call("eval", runs / "sa" / "seed-0", "--variance", "--device", "cpu")[0] == 0
    (single,) = read_records(runs / "sa" / "seed-0" / "records", "variance")
    assert single.measured["miou"]["seed"] is None and single.measured["miou"]["unit"] > 0
    code, out, err = call("power", runs / "sa", runs / "other", "--device", "cpu", "-o", "out", "--comparisons", 2)
    (record,) = read_records("out/records", "power")
    assert code == 0 and record.settings["reference_seeds"] == [0, 1, 2], err
    assert "other - sa" in out and "4 units" in out and "16 units" in out
    (csv,) = Path("out/tables").glob("power-*.csv")
    rows = csv.read_text("utf-8").splitlines()
    assert [row["differences"] for row in record.measured["smallest"]] == [
        pytest.approx([float(each) for each in row.split(",")[-3:]]) for row in rows[1:]
    ]
    by_units = [[float(each) for each in row.split(",")[-3:]] for row in rows[1:]]
    assert len(rows) == 4 and all(row == sorted(row, reverse=True) for row in by_units)


def npz(runs: Path) -> list[Path]:
    """The counts of the trainings of one family."""
    return [next((runs / "sa" / f"seed-{seed}" / "records").glob("eval-*.npz")) for seed in range(3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/sa"], "power takes a reference and at least one other model"),
        (["runs/sa", "runs/other/seed-0"], "so seed is unknown: train with --seeds, or give --sd-seed"),
        ([], "power needs runs, or standard deviations: give --sd-seed, --sd-unit, --sd-residual as well"),
        (["--sd-seed", "1", "--sd-unit", "1", "--sd-residual", "1"], "does not know how many units there are"),
        (["runs/sa", "runs/other", "--seeds", "2"], "seeds=2 is impossible: of fewer than 3"),
        (["runs/sa", "runs/other", "--units", "x"], "--units x is impossible: give whole numbers with commas"),
        (["runs/sa", "runs/other", "--power", "1"], "power=1.0 is impossible"),
    ],
)
def test_power_that_cannot_be_told(call: Call, runs: Path, arguments: list[str], message: str) -> None:
    code, _, err = call("power", *arguments, "--device", "cpu")
    assert code == 2 and err.count("\n") == 1 and message in err, err


def test_one_model_cannot_be_compared_with_itself(call: Call, runs: Path) -> None:
    code, _, err = call("compare", runs / "sa", "--device", "cpu")
    assert code == 2 and "sa is one model, trained with 3 seeds" in err


def test_a_family_may_lie_anywhere_and_a_seed_twice_is_none(tmp_path: Path) -> None:
    paths = [new_run(tmp_path / f"sa-s{seed}", seed) for seed in (1, 0)]
    found = [find_run(path) for path in paths]
    (family,) = families(found)
    assert (family.name, family.folder, family.indices) == ("sa", tmp_path, (1, 0))
    assert len(families([found[0], find_run(new_run(tmp_path / "again", 1))])) == 2


def test_what_does_not_make_a_family(runs: Path) -> None:
    (runs / "sa" / "seeds.txt").write_text("0\n1\n2\n3\n4\n")
    with pytest.raises(CheckpointError, match="lacks the finished training of seed 3, 4: go on with"):
        expanded([runs / "sa"])
    (runs / "sa" / "seeds.txt").unlink()
    new_run(runs / "sa" / "seed-2", 2, **{"decoder.layers": 1})
    with pytest.raises(ConfigError, match=r"seed-2 has decoder.layers=1, .*seed-0 has 3: .* in their seed alone"):
        expanded([runs / "sa"])
    (runs / "sa" / "seeds.txt").write_text("[]")
    with pytest.raises(CheckpointError, match="lists no seeds"):
        members(runs / "sa")


def test_trainings_that_were_not_measured_alike_are_not_one_model(runs: Path) -> None:
    found = [find_run(path, device="cpu") for path in expanded([runs / "sa"])]
    (family,) = families(found)
    trained = [evaluated(run, run.name) for run in found]
    fewer = evaluated(found[1], found[1].name, Chosen(limit=3))
    with pytest.raises(RecordError, match="sa-seed-1 was measured on other data than sa-seed-0"):
        family_evaluation(family, [trained[0], fewer, trained[2]])
    settings = {**trained[2].record.settings, "window": 64}
    other = replace(trained[2], record=replace(trained[2].record, settings=settings))
    with pytest.raises(RecordError, match="sa-seed-2 was measured with another window than sa-seed-0"):
        family_evaluation(family, [*trained[:2], other])


def test_trainings_of_other_classes_are_not_one_model(runs: Path) -> None:
    path = runs / "sa" / "seed-1" / "model.safetensors"
    config = resolve("depict-sa-tiny", "shapes", {**TINY, "data.val_length": 4, "train.seed": 1})
    save_model(path, build(config.encoder, config.decoder, 7, ("sky", *CLASSES[1:])), config)
    with pytest.raises(ConfigError, match=r"seed-1 has other classes than .*seed-0"):
        expanded([runs / "sa"])


def test_a_family_differs_in_nothing_that_is_learned(tmp_path: Path) -> None:
    beside = {"train.workers": 2, "train.log_every": 3, "data.root": "elsewhere", "data.unit": "image"}
    paths = [new_run(tmp_path / "sa" / "seed-0", 0), new_run(tmp_path / "sa" / "seed-1", 1, **beside)]
    assert expanded([tmp_path / "sa"]) == paths and len(families([find_run(path) for path in paths])) == 1


def test_a_family_goes_on_with_a_later_version(tmp_path: Path) -> None:
    """One that knows keys which the first training did not: it has their defaults, and no others."""
    paths = [new_run(tmp_path / "sa" / f"seed-{seed}", seed) for seed in (0, 1)]
    first = paths[0] / "model.safetensors"
    header = read_header(first)
    del header["config"]["data"]["held_out"], header["config"]["train"]["micro_batch"]
    save_file(load_file(first), first, metadata={HEADER: json.dumps(header)})
    assert expanded([tmp_path / "sa"]) == paths
    (family,) = families([find_run(path) for path in paths])
    assert family.indices == (0, 1)
    new_run(paths[1], 1, **{"data.held_out": [CLASSES[0]]})
    with pytest.raises(ConfigError, match=r"seed-1 has data.held_out=.*seed-0 has \[\]"):
        expanded([tmp_path / "sa"])


def test_one_unit_or_part_of_the_images(runs: Path, call: Call) -> None:
    code, _, err = call("eval", runs / "sa", "--unit", "(.).*", "--device", "cpu", "-o", runs / "out")
    assert code == 0, err
    (record,) = (each for each in read_records(runs / "out" / "records", "eval") if each.model == "sa")
    assert record.measured["miou"]["low"] is None and record.measured["miou"]["sd"] > 0
    (table,) = (runs / "out" / "tables").glob("*.md")
    assert "no interval: all images are of one unit" in table.read_text("utf-8")
    code, _, err = call("eval", runs / "sa", "--unit", "(.*[02])$", "--device", "cpu")
    assert code == 1 and err.count("\n") == 1 and "finds no unit in the name" in err
    code, _, err = call("eval", runs / "sa", "--unit", "(.*7)$", "--device", "cpu")
    assert code == 1 and err.count("\n") == 1 and "(and for 3 more)" in err


def test_numbers_of_other_records_are_means_with_their_spread() -> None:
    stored = [{"value": value, "low": value - 1, "high": value + 1} for value in (1.0, 2.0, 6.0)]
    found = joined(stored)
    assert found["value"] == 3.0 and found["sd"] == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert found["seeds"] == [1.0, 2.0, 6.0] and found["low"] < 1.0 and found["high"] > 5.0
    two = joined(stored[:2])
    assert (two["low"], two["high"]) == (0.5, 2.5)  # that of units alone
    tree = [{"layers": [{"name": "a", "gain": each, "width": 4}], "at_end": each["value"]} for each in stored]
    assert merged(tree) == {"layers": [{"name": "a", "gain": {**stored[0], **found}, "width": 4}], "at_end": 3.0}
    assert (
        merged([[1, 2], [1]]) == [1, 2]
        and joined([stored[0], {"value": None, "low": None, "high": None}])["low"] is None
    )


def test_parts_are_matched_by_their_words_and_pictures_are_of_the_first() -> None:
    """Attention maps of other classes in each training, matrices that have no common basis, spectra, sigma_50."""
    maps = [[{"query": name, "numbers": {"entropy": number}} for name, number in each] for each in (
        [("car", 1.0), ("tree", 9.0)], [("sky", 7.0), ("car", 3.0)]
    )]  # fmt: skip
    (car,) = merged(maps)
    assert car["query"] == "car" and car["numbers"]["entropy"]["seeds"] == [1.0, 3.0]
    matrices = [{"gram": {"side": 1, "peak": peak, "values": text}} for peak, text in ((1.0, "fw=="), (3.0, "AA=="))]
    assert merged(matrices) == matrices[0]
    spectra = [{"component": [1, 4], "value": [n, 2 * n], "low": [0.0, n], "high": [9.0, 9.0]} for n in (1.0, 3.0)]
    spectrum = merged(spectra)
    assert spectrum["component"] == [1, 4] and spectrum["value"] == [2.0, 4.0]
    assert spectrum["seeds"] == [[1.0, 3.0], [2.0, 6.0]]
    random = {"random": {"value": 1.0, "low": 0.0, "high": 2.0}}
    assert merged([random, random]) == random  # no spread of trainings: it has nothing to do with them
    points = [{"smallest": each, "largest": each} for each in (0.1, 0.3, 0.2)]
    assert merged(points) == {"smallest": 0.1, "largest": 0.3}
    halves = [{"value": value, "low": value / 2, "high": 2 * value, "draws": [value]} for value in (0.1, 0.2, 0.4)]
    half = merged([{"sigma_50": each} for each in halves])["sigma_50"]
    assert half["value"] == pytest.approx(0.2) == half["draws"][0]
    assert half["low"] < 0.1 and half["low"] * half["high"] == pytest.approx(0.04)
    halves[0] = {"value": None, "low": None, "high": None, "draws": [None]}  # it bears all noise that was tried
    assert merged([{"sigma_50": each} for each in halves])["sigma_50"]["value"] is None


def test_intervals_of_shares_end_at_their_bounds() -> None:
    """Of three trainings far apart Student's t has no end within them."""
    values = (0.1, 0.9, 0.99)
    stored = [{"value": value, "low": value - 0.01, "high": value + 0.01} for value in values]
    free, share, cosine, rate = (
        merged([{key: each} for each in stored])[key] for key in ("change", "overlap", "cosine", "rate")
    )
    assert free["low"] < 0 and free["high"] > 1 and (rate["low"], rate["high"]) == (0, free["high"])
    assert (share["low"], share["high"], share["value"]) == (0, 1, free["value"])
    assert (cosine["low"], cosine["high"]) == (max(free["low"], -1), 1)
    assert merged([{"overlap": 0.2}, {"overlap": 0.4}])["overlap"] == pytest.approx(0.3)
    assert merged([{"overlap": {"value": 0.2, "low": None, "high": None}}] * 3)["overlap"]["high"] is None


def test_notes_are_those_of_all_trainings(runs: Path, tmp_path: Path) -> None:
    found = [find_run(path, device="cpu") for path in expanded([runs / "sa"])]
    notes = (["has none.", "one."], ["has none."], ["has none.", "one."])
    records = [
        replace(evaluated(run, run.name).record, measured={"notes": note})
        for run, note in zip(found, notes, strict=True)
    ]
    (together,) = family_records([run.seed for run in found], records, families(found), tmp_path)
    assert together.measured["notes"] == ["has none.", "sa-seed-0, sa-seed-2: one."]


@pytest.mark.usefixtures("empty_pictures")
def test_outlines_and_confidence_are_compared_in_pairs(call: Call, runs: Path) -> None:
    """Seed by seed where both have the same, on the same draws; corrected like the others."""
    shutil.copytree(runs / "other" / "seed-0", runs / "other" / "seed-2")
    new_run(runs / "other" / "seed-2", 2, **{"decoder.layers": 1})
    (runs / "other" / "seeds.txt").unlink()
    found = ("compare", runs / "sa", runs / "other", "--device", "cpu", "-o", "out")
    code, _, err = call(*found, "--boundary", "--calibration", "--unit", "image")
    assert code == 0, err
    (record,) = read_records("out/records", "compare")
    for key, own in (("boundary_miou", Boundary()), ("ece", Calibration()), ("brier", Calibration())):
        both = []
        for name in ("other", "sa"):
            trained = [find_run(path, device="cpu") for path in expanded([runs / name])]
            kept = [evaluated(run, run.name, output=Path("out"), extras=[own]).kept(own, 0)[0] for run in trained]
            both.append(own.sampled(kept, None))
        expected, index = interval(both[0].minus(both[1], True)), own.compared[key].place
        stored = record.measured[key]
        assert stored["value"] == pytest.approx(expected.value_M[index]) and len(stored["seeds"]) == 3
        assert stored["low"] == pytest.approx(expected.low_M[index]) and stored["p"] == pytest.approx(
            expected.p_M[index]
        )
        assert record.measured["model"][key] - record.measured["reference"][key] == pytest.approx(stored["value"])
    (table,) = Path("out/tables").glob("compare-*-beside.md")
    text = table.read_text("utf-8")
    assert "| Boundary mIoU | other |" in text and "| ECE | other |" in text and "less is better" in text
    code, _, err = call(*found, "--boundary-ratio", "0.1")
    assert code == 2 and err.count("\n") == 1 and "add --boundary" in err


@pytest.mark.usefixtures("empty_pictures")
def test_the_variance_under_noise_has_draws(call: Call, runs: Path) -> None:
    """Of the rows of the sweep, antithetic pairs as one draw."""
    sweep = ("robustness", runs / "sa", "--noise", 0.1, "--draws", 2, "--antithetic", "--no-sigma-50")
    rest = ("--variance", "--device", "cpu", "-o", "out", "--unit", "image")
    code, out, err = call(*sweep, *rest)
    assert code == 0 and "sd, draw" in out, err
    (record,) = read_records("out/records", "noise-variance")
    (level,) = record.measured["levels"]
    assert [record.measured[key] for key in ("seeds", "units", "draws")] == [3, 4, 2] and record.model == "sa"
    assert all(level[key] >= 0 for key in ("seed", "unit", "draw")) and level["residual"] > 0
    assert sum(level["shares"].values()) == pytest.approx(1) and len(level["shares"]) == 4
    (table,) = Path("out/tables").glob("noise-variance-*.md")
    assert "trainings: sa 3" in table.read_text("utf-8")
    (rows, *_) = sorted(Path("out/sweeps").glob("*.jsonl"))
    rows.write_text("".join(rows.read_text("utf-8").splitlines(keepends=True)[:-1]), "utf-8")
    next(Path("out/records").glob("noise_variance-*")).unlink()
    code, _, err = call(*sweep, *rest)
    assert code == 1 and err.count("\n") == 1 and "lacks rows of the sweep: --again measures them anew" in err
    code, _, err = call("robustness", runs / "sa", "--corruptions", "fog", "--variance", "--device", "cpu")
    assert code == 2 and err.count("\n") == 1 and "--variance belongs to --noise" in err


@pytest.mark.usefixtures("empty_pictures")
def test_costs_of_a_family_are_those_of_all_its_passes(call: Call, runs: Path) -> None:
    """In the place of its first training, between other models; the summary takes them."""
    asked = ("profile", "segmenter-linear-tiny", runs / "sa", runs / "other", "--size", 32, "--repeats", 2, "-o", "out")
    code, out, err = call(*asked, "--device", "cpu")
    assert code == 0 and "2 or 4 or 6 passes, ± sd of the medians of several trainings" in " ".join(out.split()), err
    (table,) = (path for path in Path("out/tables").glob("profile-*.md") if "scopes" not in path.name)
    rows = [line.split(" |")[0] for line in table.read_text("utf-8").splitlines()[2:5]]
    assert rows == ["| segmenter-linear-tiny", "| sa", "| other"]
    (family,) = (each for each in read_records("out/records", "profile") if each.model == "sa")
    speed = family.measured["images_per_second"]["model"]
    assert family.n == 6 == len(family.measured["seconds"]["model"]) and len(speed["seeds"]) == 3
    assert speed["value"] == pytest.approx(np.median([1 / each for each in family.measured["seconds"]["model"]]))
    assert speed["sd"] == pytest.approx(np.std(speed["seeds"], ddof=1))


FAINT = {
    "rank-analysis": ("--limit 1", "layers", "± ", 0.4),
    "alignment": ("--limit 1 --draws 1", "", "± ", 0.4),
    "orthogonality": ("--draws 2", "-numbers", "± ", 0.45),
    "attention": ("photo.png", "-numbers", "± ", 0.45),
    "robustness": ("--noise 0.1,0.2 --draws 2 --limit 1 --no-sigma-50", "", "", 0.4),
}


@pytest.mark.usefixtures("empty_pictures")
@pytest.mark.parametrize("command", FAINT)
def test_seeds_lie_lightly_behind_the_mean(
    call: Call, runs: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each training once for each of what is drawn of the mean; and the table says mean ± sd."""
    import matplotlib.axes

    arguments, suffix, spread, faint = FAINT[command]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save("photo.png")
    drawn: list[object] = []
    plot = matplotlib.axes.Axes.plot

    def noted(axes: matplotlib.axes.Axes, *given: object, **look: object) -> object:
        if look.get("alpha") == faint:
            drawn.append(given)
        return plot(axes, *given, **look)  # type: ignore[arg-type]

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", noted)
    code, out, err = call(command, runs / "sa", *arguments.split(), "--device", "cpu", "-o", "out")
    assert code == 0, err
    assert drawn and list(Path("out/figures").glob(f"*{suffix}.png"))
    assert spread in out and "seed-0" not in out
    (record,) = (each for each in read_records("out/records") if each.model == "sa")
    assert record.settings["training_seeds"] == [0, 1, 2]


def test_what_lies_behind_an_estimate_is_of_all_trainings() -> None:
    """As the draws of sigma_50, which models are compared by: they were those of the first training."""
    half = [{"value": sum(draws) / 2, "low": None, "high": None, "draws": draws} for draws in ([1.0, 3.0], [2.0, 5.0])]
    assert merged(half)["draws"] == [1.5, 4.0]
    half[1]["draws"] = [2.0, None]  # in one training a draw has none
    assert merged(half)["draws"] == [1.5, None]


def test_intervals_are_made_anew_from_counts(runs: Path, call: Call) -> None:
    record = read_records(runs / "sa" / "seed-0" / "records", "eval")[0]
    assert record.settings["unit"]["name"] == "image"
    code, out, err = call("render", runs / "sa", "-o", "out", "--tables", "--renew", "--unit", "(.*)[0-9]")
    assert code == 0 and "3 records have new intervals" in out, err
    (renewed,) = read_records(runs / "sa" / "seed-0" / "records", "eval")
    assert renewed.settings["unit"]["count"] == 1 and renewed.measured["miou"]["low"] is None
    assert renewed.measured["miou"]["value"] == record.measured["miou"]["value"] and renewed.created == record.created
    assert renew([runs / "sa"]) == 3
    (back,) = read_records(runs / "sa" / "seed-0" / "records", "eval")
    assert back.measured == record.measured
    code, _, err = call("render", runs / "sa", "--unit", "image")
    assert code == 2 and "add --renew" in err


def test_an_evaluation_of_before_units_is_replaced_without_predicting(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs / "sa" / "seed-0" / "records"
    (path,) = folder.glob("eval-*.json")
    old = json.loads(path.read_text("utf-8"))
    del old["settings"]["unit"]
    old["settings"]["resamples"] = 1000
    path.unlink()
    (folder / "eval-shapes-val-00000000.json").write_text(json.dumps(old))
    path.with_suffix(".npz").rename(folder / "eval-shapes-val-00000000.npz")

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr("whitebox.engine.distributed.evaluate_together", fail)
    found = evaluated(find_run(runs / "sa" / "seed-0", device="cpu"), "x").record
    assert found.settings["unit"]["count"] == 4 and found.settings["resamples"] == 10_000
    assert [path.name for path in folder.glob("eval-*.json")] == [found.file_name]
