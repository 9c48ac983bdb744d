"""Noise sweeps and corruptions from runs to records and figures, and the command `robustness`."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from asking import asked, shown
from child_runs import alone, together
from tiny_runs import configured, tiny_model, tiny_run

from analysis.consumed import Chosen, EvaluatedImages
from analysis.maths.conventions import RESAMPLES
from analysis.maths.halving import search_half
from analysis.maths.perturbation import perturbed, target_parameters
from analysis.maths.ratios import paired_ratios
from analysis.maths.resampling import estimated
from analysis.measures.changes import CLEAN, ChangedRun, draw_interval, percentile_interval
from analysis.measures.corruptions import Corruptions
from analysis.measures.noise import Noise
from analysis.measures.noise_curves import halving_noise
from analysis.measures.rows import Key
from analysis.record import Record, RecordError, read_records, write_record
from analysis.show.tables import Estimate
from whitebox.cli.app import main_process
from whitebox.engine.checkpoint import save_model
from whitebox.engine.evaluate import evaluate
from whitebox.engine.metrics import score_vectors, scores
from whitebox.errors import ConfigError, DataError
from whitebox.models import intervene
from whitebox.runs import Run, open_run

Call = Callable[..., tuple[int, str, str]]

FEW = {"data__val_length": 4, "data__size": 40, "inference__stride": 20}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(tiny_run(tmp_path_factory.mktemp("run") / "sa", **FEW), device="cpu")


def swept(run: Run, folder: Path, **options: Any) -> Record:
    chosen: dict[str, Any] = {"levels": (0.05, 0.3), "draws": 2, "halving": False, **options}
    limit = chosen.pop("limit", None)
    return asked(Noise.of(**{"memory": 10**9, **chosen}, output=folder), run, limit=limit)


def plain(run: Run) -> np.ndarray:
    """Counts of the run as `whitebox eval` counts them."""
    config = run.config
    dataset = EvaluatedImages(run, Chosen()).dataset
    return evaluate(run.model, dataset, config.inference, config.data, workers=0).counts_N3K


def rows_of(folder: Path) -> dict[str, str]:
    """The rows in a folder: counts by key."""
    lines = [json.loads(line) for path in folder.glob("sweeps/*.jsonl") for line in path.read_text().splitlines()[1:]]
    return {json.dumps(line["key"], sort_keys=True): line["images"] for line in lines}


@pytest.mark.parametrize("target", ["decoder", "all", "input"])
def test_without_noise_it_is_the_plain_evaluation(run: Run, target: str) -> None:
    """Bit for bit, whether the encoder runs once or each time; the clean point, and noise of sigma 0."""
    measured = ChangedRun(run, EvaluatedImages(run, Chosen()), 10**9, target)
    expected = plain(run)
    np.testing.assert_array_equal(measured.measure(CLEAN), expected)
    key = {"target": target, "relative": False, "sigma": 0.0, "seed": 0, "draw": 0, "sign": 1}
    np.testing.assert_array_equal(measured.measure(key), expected)
    assert (measured.measure({**key, "sigma": 0.4}) != expected).any()


@pytest.mark.parametrize("target", ["decoder", "attention", "queries", "norms", "head"])
def test_tokens_computed_once_give_what_whole_models_give(run: Run, target: str) -> None:
    images = EvaluatedImages(run, Chosen())
    measured = ChangedRun(run, images, 0, target)
    assert measured.encode_once and not ChangedRun(run, images, 0, "encoder").encode_once
    for sigma, sign in ((0.1, 1), (0.5, -1)):
        key = {"target": target, "relative": True, "sigma": sigma, "seed": 1, "draw": 2, "sign": sign}
        found = measured.measure(key)
        parameters = target_parameters(run.model, target)
        with perturbed(parameters, sigma, seed=1, draw=2, sign=sign, relative=True):
            np.testing.assert_array_equal(found, plain(run))


def test_a_record_holds_what_was_measured(run: Run, tmp_path: Path) -> None:
    record = swept(run, tmp_path, levels=(0.05, 0.3), draws=3)
    clean, weak, strong = record.measured["curve"]
    expected = plain(run)
    assert record.kind == "parameter-noise" and record.n == 4 and record.variant == "decoder"
    assert clean["sigma"] == 0 and clean["miou"] == {"value": scores(expected).miou, "low": None, "high": None}
    found = estimated(expected.reshape(4, -1), score_vectors, resamples=RESAMPLES)
    width = clean["images"]["high"] - clean["images"]["low"]
    assert 0.5 < width / (found.high_M - found.low_M)[0] < 1.5  # of four images the percentiles are steps
    for point, sigma in ((weak, 0.05), (strong, 0.3)):
        assert point["sigma"] == sigma and len(point["draws"]) == 3
        mean, low, high = draw_interval(point["draws"])
        assert point["miou"] == pytest.approx({"value": mean, "low": max(low, 0.0), "high": min(high, 1.0)})
        assert point["smallest"] == min(point["draws"]) and point["largest"] == max(point["draws"])
        assert point["images"]["low"] <= mean <= point["images"]["high"]
    assert record.settings["draws"] == 3 and record.seeds == {"noise": 0, "bootstrap": 0}
    assert record.measured["classes"][0] == "background" and record.measured["notes"] == []


def test_the_same_seed_gives_the_same_curve(run: Run, tmp_path: Path) -> None:
    """In any order of levels and draws, any batch of windows, and any memory; another seed gives another."""
    expected = swept(run, tmp_path / "first", levels=(0.05, 0.1, 0.3), draws=2)
    inference = dataclasses.replace(run.config.inference, batch=1)
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, inference=inference))
    swept(other, tmp_path / "second", levels=(0.3,), draws=2, memory=0)
    swept(other, tmp_path / "second", levels=(0.05,), draws=1, memory=0)
    found = swept(other, tmp_path / "second", levels=(0.05, 0.1, 0.3), draws=2, memory=0)
    assert found.measured == expected.measured and found.identity == expected.identity
    assert rows_of(tmp_path / "second") == rows_of(tmp_path / "first")
    different = swept(run, tmp_path / "first", levels=(0.05, 0.1, 0.3), draws=2, seed=1)
    assert different.measured["curve"][1]["draws"] != expected.measured["curve"][1]["draws"]


def test_number_of_loading_processes_changes_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for workers in (0, 2):
        monkeypatch.setattr("whitebox.engine.evaluate.default_workers", lambda workers=workers: workers)
        found.append(swept(run, tmp_path / str(workers), target="input", levels=(0.2,), draws=1).measured)
    assert found[0] == found[1]


def test_a_finished_sweep_is_not_measured_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = swept(run, tmp_path, antithetic=True, halving=True)
    monkeypatch.setattr(ChangedRun, "measure", lambda *_: pytest.fail("a finished row is measured again"))
    again = swept(run, tmp_path, antithetic=True, halving=True)
    assert again.measured == first.measured
    fewer = swept(run, tmp_path, draws=1, levels=(0.3,))
    assert fewer.measured["curve"][1]["draws"] == [first.measured["curve"][2]["draws"][0]]
    assert fewer.measured["curve"][1]["miou"]["low"] is None


def test_antithetic_pairs_are_one_draw(run: Run, tmp_path: Path) -> None:
    record = swept(run, tmp_path, levels=(0.3,), antithetic=True, draws=3)
    point = record.measured["curve"][1]
    assert len(point["draws"]) == 6
    pairs = [np.mean(point["draws"][at : at + 2]) for at in (0, 2, 4)]
    mean, low, high = draw_interval(pairs, within=(0.0, 1.0))
    assert (point["miou"]["value"], point["miou"]["low"], point["miou"]["high"]) == pytest.approx((mean, low, high))


def test_a_model_without_queries_is_left_as_it_is(tmp_path: Path) -> None:
    linear = open_run(tiny_run(tmp_path / "linear", "segmenter-linear-tiny", **FEW), device="cpu")
    record = swept(linear, tmp_path / "rows", target="queries", halving=True)
    assert len(record.measured["curve"]) == 1 and "sigma_50" not in record.measured
    assert record.measured["notes"] == ["it has no queries, so the noise changes nothing and is not measured."]
    shown([record], tmp_path / "figure")


def test_rotated_subspaces_keep_the_clean_point(tmp_path: Path) -> None:
    """MSSA is invariant to a rotation inside each head, so the curve begins where it did; noise then differs."""
    config = configured("depict-sa-tiny", **FEW)
    curves = []
    for name in ("plain", "head_trans"):
        model = tiny_model(config)
        if name == "head_trans":
            model = intervene(model, "head_trans")  # type: ignore[assignment]
        save_model(tmp_path / name / "model.safetensors", model, config)
        opened = open_run(tmp_path / name, device="cpu")
        curves.append(swept(opened, tmp_path / name, levels=(0.3,), draws=1).measured["curve"])
    assert curves[0][0]["miou"] == curves[1][0]["miou"] and curves[0][0]["images"] == curves[1][0]["images"]
    assert curves[0][1]["draws"] != curves[1][1]["draws"]


def test_students_interval() -> None:
    values = [0.3, 0.35, 0.31, 0.4, 0.33]
    mean, low, high = draw_interval(values)
    expected = scipy.stats.t.interval(0.95, 4, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (mean, low, high) == pytest.approx((np.mean(values), *expected))
    assert math.isnan(draw_interval([0.3])[1]) and draw_interval([0.3])[0] == 0.3
    assert percentile_interval(np.array([np.nan, *range(101)])) == pytest.approx((2.5, 97.5))
    assert all(map(math.isnan, percentile_interval(np.array([np.nan]))))


def run_search(curve: Callable[[float], float], levels: tuple[float, ...], half: float) -> tuple[float, int]:
    search, steps = search_half(half, {level: curve(level) for level in levels}), 0
    try:
        sigma = next(search)
        while True:
            steps += 1
            sigma = search.send(curve(sigma))
    except StopIteration as end:
        return end.value, steps


@pytest.mark.parametrize("sigma_50", [0.004, 0.03, 0.1, 0.77, 5.0])
@pytest.mark.parametrize("levels", [(0.1, 0.2, 0.3), (0.001, 0.01, 0.1, 1.0), (0.1,)])
def test_halving_of_a_known_curve(sigma_50: float, levels: tuple[float, ...]) -> None:
    """0.4 / (1 + (sigma / sigma_50)^2) is halved at sigma_50, inside the levels or beyond."""
    found, steps = run_search(lambda sigma: 0.4 / (1 + (sigma / sigma_50) ** 2), levels, 0.2)
    assert found == pytest.approx(sigma_50, rel=2e-3) and steps <= 24


def test_halving_that_is_not_there() -> None:
    assert math.isnan(run_search(lambda _: 0.4, (0.1, 0.2), 0.2)[0])
    assert math.isnan(run_search(lambda _: 0.1, (0.1, 0.2), 0.2)[0])
    assert run_search(lambda _: 0.4, (9000.0,), 0.2)[1] == 0  # noise has an upper bound


def test_halving_takes_the_lowest_crossing() -> None:
    def curve(sigma: float) -> float:
        return 0.4 if sigma < 0.15 or 0.25 < sigma < 0.35 else 0.1

    assert 0.14 < run_search(curve, (0.1, 0.2, 0.3, 0.4), 0.2)[0] < 0.16


@pytest.mark.parametrize("levels", [(0.01, 1.0), (0.01, 0.1, 1.0), (0.01,), (0.002, 0.9)])
def test_a_dip_between_two_levels_is_found(levels: tuple[float, ...]) -> None:
    """One as wide as the grid is coarse, wherever the levels are; levels alone said 0.3, where it stays below."""

    def curve(sigma: float) -> float:
        return 1.0 if sigma < 0.02 else 0.3 if sigma < 0.0301 else 0.9 if sigma < 0.3 else 0.1

    assert run_search(curve, levels, 0.5)[0] == pytest.approx(0.02, rel=0.05)


def test_levels_that_are_near_enough_are_not_looked_between() -> None:
    levels = (0.1, 0.14, 0.2, 0.28)
    found, steps = run_search(lambda sigma: 0.4 if sigma < 0.21 else 0.1, levels, 0.2)
    assert 0.2 < found < 0.22 and steps <= 4  # bisection alone


class Curves:
    """mIoU of draws whose sigma_50 are known; stands for what rows give."""

    def __init__(self, sigma_50: dict[int, float]) -> None:
        self.sigma_50 = sigma_50
        self.measured: set[tuple[int, float, int]] = set()

    def complete(self, keys: Sequence[Key]) -> None:
        self.measured |= {(key["draw"], key["sigma"], key["sign"]) for key in keys}

    def __call__(self, keys: Sequence[Key]) -> float:
        if list(keys) == [CLEAN]:
            return 0.4
        assert all((key["draw"], key["sigma"], key["sign"]) in self.measured for key in keys)
        signed = [key["sigma"] * (1 + 0.2 * key["sign"]) for key in keys]  # the twins of a pair differ
        return float(
            np.mean([0.4 / (1 + (x / self.sigma_50[key["draw"]]) ** 2) for x, key in zip(signed, keys, strict=True)])
        )


def test_sigma_50_is_that_of_each_draw() -> None:
    curves = Curves({0: 0.01, 1: 0.2, 2: 0.05})
    noise = Noise(levels=(0.001, 0.03, 1.0), draws=3)
    curves.complete([key for sigma in noise.levels for draw in range(3) for key in noise.keys(sigma, draw)])
    half = halving_noise(noise, curves, curves.complete)  # type: ignore[arg-type]
    assert half["draws"] == pytest.approx([0.01 / 1.2, 0.2 / 1.2, 0.05 / 1.2], rel=3e-3)
    expected = tuple(map(math.exp, draw_interval(np.log(half["draws"]))))
    assert (half["value"], half["low"], half["high"]) == pytest.approx(expected)
    assert half["value"] == pytest.approx(float(np.prod(half["draws"]) ** (1 / 3)))
    single = halving_noise(dataclasses.replace(noise, draws=1), curves, curves.complete)  # type: ignore[arg-type]
    assert single["value"] == pytest.approx(half["draws"][0]) and single["low"] is None


def test_sigma_50_of_antithetic_pairs_is_that_of_their_mean() -> None:
    curves, noise = Curves({0: 0.01}), Noise(levels=(0.001, 1.0), draws=1, antithetic=True)
    curves.complete([key for sigma in noise.levels for key in noise.keys(sigma, 0)])
    sigma = halving_noise(noise, curves, curves.complete)["value"]  # type: ignore[arg-type]
    mean = np.mean([0.4 / (1 + (sigma * side / 0.01) ** 2) for side in (0.8, 1.2)])
    assert mean == pytest.approx(0.2, rel=3e-3)


def test_sigma_50_that_is_not_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One draw without it: no value for the model, a note, and a dash."""
    curves, noise = Curves({0: 0.01, 1: 1e9}), Noise(levels=(0.001, 1.0), draws=2)
    curves.complete([key for sigma in noise.levels for draw in (0, 1) for key in noise.keys(sigma, draw)])
    half = halving_noise(noise, curves, curves.complete)  # type: ignore[arg-type]
    assert half["value"] is None and half["low"] is None and math.isnan(half["draws"][1])
    monkeypatch.setattr("analysis.measures.noise_curves.halving_noise", lambda *_: half)
    record = swept(run, tmp_path, levels=(0.01,), draws=2, limit=1, halving=True)
    assert record.measured["sigma_50"]["draws"][1] is None
    assert "halves its mIoU in every draw" in record.measured["notes"][0]
    assert "–" in shown([record], tmp_path / "figure")["-sigma50"].to_markdown()


def sweep_together(run_folder: Path, folder: Path) -> None:
    record = swept(open_run(run_folder, device="cpu"), folder / "rows", levels=(0.05, 0.3), draws=2)
    if main_process():
        write_record(record, folder / "record")


def test_two_processes_give_the_curve_of_one(run: Run, tmp_path: Path) -> None:
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        ended = together(processes, sweep_together, run.folder, folder, folder=folder / "output")
        assert [code for code, _ in ended] == [0] * processes, ended
    records = [read_records(tmp_path / name / "record")[0] for name in "12"]
    assert records[0].measured == records[1].measured
    assert rows_of(tmp_path / "1" / "rows") == rows_of(tmp_path / "2" / "rows")
    assert len(list((tmp_path / "2" / "rows" / "sweeps").glob("*.jsonl"))) == 1


@pytest.mark.usefixtures("imagecorruptions")
def test_corruptions(run: Run, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "kinds": ("gaussian_noise", "contrast"),
        "severities": (1, 5),
        "output": tmp_path / "rows",
    }
    beside = Corruptions(**options, reference=run)
    alone = asked(Corruptions(**options), run, limit=3)
    assert "reference" not in alone.measured and alone.settings["package"].startswith("imagecorruptions-imaug ")
    same = asked(beside, run, limit=3)
    itself = same.measured
    assert itself["mcd"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert itself["reference"]["model"] == run.name
    other = open_run(tiny_run(tmp_path / "ca", "depict-ca-tiny", **FEW), device="cpu")
    record = asked(beside, other, limit=3)
    first = record.measured["corruptions"][0]
    miou = [point["miou"]["value"] for point in first["severities"]]
    assert first["group"] == "noise" and first["mean"]["value"] == pytest.approx(np.mean(miou))
    reference = [point["miou"]["value"] for point in alone.measured["corruptions"][0]["severities"]]
    by_hand = (1 - np.array(miou)).sum() / (1 - np.array(reference)).sum()
    assert first["cd"]["value"] == pytest.approx(by_hand) and first["cd"]["low"] < by_hand < first["cd"]["high"]
    tables = shown([same, record], tmp_path / "figure")
    assert list(tables) == ["-severities", "-mean", "-degradation"]
    assert len(tables["-severities"].rows) == 4 and tables["-mean"].summary_rows == 2
    assert {path.name for path in tmp_path.glob("figure*.png")} == {"figure.png", "figure-mean.png"}
    with pytest.raises(RecordError, match="has another reference than"):
        shown([alone, record], tmp_path / "figure")
    larger = open_run(tiny_run(tmp_path / "larger", **{**FEW, "data__size": 48}), device="cpu")
    with pytest.raises(ConfigError, match="was measured on other images than larger"):
        asked(beside, larger, limit=3)


@pytest.mark.usefixtures("imagecorruptions")
def test_photos_too_small_for_corruptions(tmp_path: Path) -> None:
    small = open_run(tiny_run(tmp_path / "run", data__size=24, data__val_length=2), device="cpu")
    with pytest.raises(DataError, match="val_00000: A photo of 24 x 24 px cannot be corrupted"):
        asked(Corruptions(kinds=("fog",), severities=(1,)), small)


def test_targets_never_share_a_figure(run: Run, tmp_path: Path) -> None:
    records = [
        swept(run, tmp_path, **options, limit=2, levels=(0.1,), draws=1)
        for options in ({"target": "decoder"}, {"target": "queries"}, {"target": "decoder", "relative": True})
    ]
    tables = shown(records, tmp_path / "figure")
    suffixes = ("-decoder", "-queries", "-decoder-relative")
    assert list(tables) == [f"{suffix}-curve" for suffix in suffixes]
    assert sorted(tmp_path.glob("*.png")) == sorted(tmp_path / f"figure{suffix}.png" for suffix in suffixes)
    assert "units of each tensor's rms" in tables["-decoder-relative-curve"].caption
    other = dataclasses.replace(records[0], measured={**records[0].measured, "classes": ["sky"] * 7})
    with pytest.raises(RecordError, match="has other classes than"):
        shown([records[0], other], tmp_path / "figure")
    elsewhere = dataclasses.replace(records[0], data=dataclasses.replace(records[0].data, split="test"))
    with pytest.raises(RecordError, match="was measured on other images than"):
        shown([records[0], elsewhere], tmp_path / "figure")
    with pytest.raises(RecordError, match="at most 10 models, not 11"):
        shown([records[0]] * 11, tmp_path / "figure")


def compared(run: Run, folder: Path, **changes: dict[str, Any]) -> list[Record]:
    """Three models with five shared draws; that of a draw is the same for all, up to a factor and a little."""
    common = np.array([0.05, 0.2, 0.1, 0.4, 0.08])
    record = swept(run, folder, levels=(0.1,), draws=1, limit=1)
    factors = {
        "first": 1.0,
        "double": 2 * np.array([1.01, 0.99, 1.0, 1.02, 0.98]),
        "alike": np.array([1.1, 0.9, 1, 1, 1]),
    }
    return [
        dataclasses.replace(
            record,
            model=name,
            measured={
                **record.measured,
                "sigma_50": {"value": 0.1, "low": None, "high": None, "draws": [*common * factor]},
            },
            settings={**record.settings, "draws": 5, "grid": 1.5, **changes.get(name, {})},
        )
        for name, factor in factors.items()
    ]


def test_sigma_50_is_compared_in_pairs_of_draws(run: Run, tmp_path: Path) -> None:
    """Draws differ by a factor of 8, which unpaired intervals would hold."""
    tables = shown(compared(run, tmp_path), tmp_path / "figure")
    assert list(tables) == ["-curve", "-sigma50", "-ratio"]
    double, alike = tables["-ratio"].rows
    log = np.log(2 * np.array([1.01, 0.99, 1.0, 1.02, 0.98]))
    low, high = np.exp(scipy.stats.t.interval(0.95, 4, loc=log.mean(), scale=scipy.stats.sem(log)))
    ratio = double[1]
    assert isinstance(ratio, Estimate)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((np.exp(log.mean()), low, high))
    p = scipy.stats.ttest_1samp(log, 0).pvalue
    assert double[2] == pytest.approx(p) and double[3] == pytest.approx(2 * p)  # Holm: the smaller of two
    assert alike[3] == alike[2] and alike[2] > 0.5  # type: ignore[operator]
    assert "multiple of first" in tables["-ratio"].to_markdown()
    assert "lowest on a grid of levels at most a factor of 1.5 apart, from 0.1 on" in tables["-sigma50"].caption


def test_other_draws_are_no_pairs(run: Run, tmp_path: Path) -> None:
    tables = shown(compared(run, tmp_path, double={"antithetic": True}), tmp_path / "figure")
    assert "-ratio" not in tables and "no ratios in pairs" in tables["-sigma50"].caption


def test_records_before_the_grid_say_so(run: Run, tmp_path: Path) -> None:
    old = [
        dataclasses.replace(each, settings={key: value for key, value in each.settings.items() if key != "grid"})
        for each in compared(run, tmp_path)
    ]
    assert "a curve that dips there would be missed" in shown(old, tmp_path / "figure")["-sigma50"].caption


def test_two_draws_have_a_ratio_without_an_interval() -> None:
    (ratio,) = paired_ratios([1.0, 2.0], [[2.0, 4.1]])
    assert ratio.value == pytest.approx(math.sqrt(2 * 2.05))
    assert all(map(math.isnan, (ratio.low, ratio.high, ratio.p, ratio.adjusted)))
    with pytest.raises(ValueError, match="3 draws cannot be paired with 2"):
        paired_ratios([1.0, 2.0], [[1.0, 2.0, 3.0]])


@pytest.fixture
def folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two runs."""
    shutil.copytree(run.folder, tmp_path / "results" / "sa")
    tiny_run(tmp_path / "results" / "linear", "segmenter-linear-tiny", **FEW)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_draws_all_runs_together(folder: Path, call: Call) -> None:
    code, out, err = call("robustness", "--noise", "0.1:0.2", "--draws", "2", "--limit", "2", "--device", "cpu")
    assert code == 0, err
    assert "sigma_50" in out and "Student's t interval" in out and "n = 2 images" in out
    for name in ("sa", "linear"):
        assert [record.model for record in read_records(folder / "results" / name / "records")] == [name]
        assert len(list((folder / "results" / name / "sweeps").glob("*.jsonl"))) == 1
    (figure,) = (folder / "results" / "figures").glob("*.png")
    assert "2_models" in figure.name
    code, out, _ = call("render", "results/linear/records", "results/sa/records", "-o", "drawn")
    drawn = folder / "drawn" / "figures" / "parameter-noise-shapes-val-decoder.png"
    assert code == 0 and drawn.read_bytes() == figure.read_bytes()


def test_the_command_without_the_package_says_so(folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    code, _, err = call("robustness", "results/sa", "--corruptions", "fog", "--limit", "1", "--device", "cpu")
    assert code == 2 and err.count("\n") == 1
    assert "whitebox robustness --corruptions needs imagecorruptions-imaug: pip install 'whitebox-seg[corr" in err
    assert not (folder / "results" / "sa" / "sweeps").exists()


@pytest.mark.usefixtures("imagecorruptions")
def test_the_command_corrupts_beside_a_reference(folder: Path, call: Call) -> None:
    code, out, err = call(
        *("robustness", "results/sa", "--corruptions", "noise,pixelate", "--severity", "2", "--limit", "2"),
        *("--reference", "results/linear", "-o", "out", "--device", "cpu", "-v"),
    )
    assert code == 0, err
    assert "relative CD" in out and "as a multiple of that of linear" in " ".join(out.split())
    assert [record.model for record in read_records(folder / "out" / "records")] == ["sa"]
    assert len(list((folder / "out" / "sweeps").glob("*.jsonl"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results/sa"], "Choose one: --noise 0.001:1:log13"),
        (["--noise", "0.1", "--corruptions", "all"], "Choose one: "),
        (["--noise", "0.5:0.1"], "--noise '0.5:0.1' is reversed"),
        (["--noise", "nan"], "--noise 'nan': 'nan' is impossible"),
        (
            ["--noise", "0.1", "--target", "decode"],
            "Unknown --target 'decode'; did you mean 'decoder'? There are decoder",
        ),
        (["--noise", "0.1", "--target", "input", "--relative"], "leave it out for the input"),
        (["--noise", "0.1", "--reference", "results/sa"], "--reference belongs to --corruptions"),
        (["--noise", "0.1", "--memory", "inf"], "--memory inf is impossible"),
        (["--corruptions", "smog"], "Unknown corruption 'smog'"),
        (["--corruptions", "fog", "--severity", "0:5"], "--severity '0:5' is impossible"),
        (["results/none", "--noise", "0.1"], "There is no file or folder results/none"),
        (["results/sa", "results/other", "--noise", "0.1"], "results/other has other classes (7: a, b, c, ...) than"),
        (["results/sa", "--noise", "0.1", "-o", "results/sa/model.safetensors"], "Cannot write results/sa/model"),
        (["results/sa", "--noise", "0.1", "--split", "nowhere"], "nowhere"),
    ],
)
def test_one_line_for_what_a_user_can_mend(folder: Path, call: Call, arguments: list[str], message: str) -> None:
    config = configured("depict-sa-tiny", **FEW)
    save_model(folder / "results" / "other" / "model.safetensors", tiny_model(config, classes=tuple("abcdefg")), config)
    code, _, err = call("robustness", *arguments, "--device", "cpu", "--limit", "1", "--draws", "1")
    assert code in (1, 2) and message in err and err.startswith("error: ") and err.count("\n") == 1


def test_no_runs(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call("robustness", "--noise", "0.1:0.5")
    assert code == 2 and "There are no runs below results/" in err


def killed_command(run_folder: Path, output: Path) -> None:
    """A sweep that is killed in its fourth row."""
    measure, count = ChangedRun.measure, 0

    def counted(self: ChangedRun, key: Any) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            from child_runs import die

            die()
        return measure(self, key)

    ChangedRun.measure = counted  # type: ignore[method-assign]
    torch.set_num_threads(1)
    swept(open_run(run_folder, device="cpu"), output, levels=(0.05, 0.3), draws=2)


def test_a_killed_sweep_goes_on_where_it_stopped(run: Run, tmp_path: Path) -> None:
    code, _ = alone(killed_command, run.folder, tmp_path / "rows", folder=tmp_path)
    assert code == -9 and len(rows_of(tmp_path / "rows")) == 3
    found = swept(run, tmp_path / "rows", levels=(0.05, 0.3), draws=2)
    assert found.measured == swept(run, tmp_path / "whole", levels=(0.05, 0.3), draws=2).measured
    assert rows_of(tmp_path / "rows") == rows_of(tmp_path / "whole")


def test_no_interval_of_two_draws_nor_outside_of_what_can_be() -> None:
    """Two values say nothing of their spread: their interval was [-91, 119] % of mIoU."""
    mean, low, high = draw_interval([0.1, 0.18], within=(0.0, 1.0))
    assert mean == pytest.approx(0.14) and math.isnan(low) and math.isnan(high)
    assert draw_interval([0.01, 0.02, 0.3], within=(0.0, 1.0))[1] == 0.0
    assert draw_interval([0.99, 0.98, 0.7], within=(0.0, 1.0))[2] == 1.0
    assert draw_interval([0.01, 0.02, 0.3])[1] < 0
