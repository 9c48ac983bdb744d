import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from child_runs import TINY

from analysis.record import Data, Record, read_records
from analysis.show.tables import Estimate
from experiments import EXPERIMENTS, PAPERS
from experiments.experiment import Experiment, Reported, Value, beside
from experiments.reproduce import Needed, chosen_experiments, needed_runs, training_cost
from whitebox.catalog import model_names
from whitebox.config import resolve
from whitebox.engine.checkpoint import save_model
from whitebox.errors import ConfigError
from whitebox.models import build

DECODERS = ("depict-sa", "depict-ca", "segmenter-mask", "segmenter-linear")
Call = Callable[..., tuple[int, str, str]]
MODEL = {key: value for key, value in TINY.items() if not key.startswith("decoder")}  # of any decoder
SAME = [f"{key}={value}" for key, value in MODEL.items()]


def save(folder: Path, model: str, seed: int = 0, altered: dict | None = None, **changes) -> None:
    config = resolve(model, "shapes", {**MODEL, "train.seed": seed, **changes})
    torch.manual_seed(seed)
    save_model(folder / "model.safetensors", build(config.encoder, config.decoder, 7), config, altered=altered)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for decoder in DECODERS:
        save(tmp_path / "results" / f"{decoder}-tiny-shapes", f"{decoder}-tiny")
    return tmp_path / "results"


EVALUATED = {"miou": {"value": 0.4, "low": 0.3, "high": 0.5}}


def record(model: str) -> Record:
    return Record(kind="eval", model=model, data=Data("shapes", "val", 3, "f"), measured={}, n=3)


def test_every_paper_names_models_that_exist_and_says_where_its_numbers_stand() -> None:
    assert len(EXPERIMENTS) == sum(map(len, PAPERS.values()))
    for experiment in EXPERIMENTS.values():
        assert {f"{decoder}-tiny" for decoder in experiment.decoders} <= set(model_names()), experiment.name
        for each in experiment.reported:
            assert each.model in model_names() and each.source and each.data and math.isfinite(each.value)


def test_the_lowest_seed_is_taken(runs: Path) -> None:
    save(runs / "another", "depict-sa-tiny", seed=3)
    needed = needed_runs(chosen_experiments("depict-tab1", "shapes"), "shapes", ["tiny", "small"], runs, SAME)
    assert needed[0] == Needed("depict-sa-tiny", runs / "depict-sa-tiny-shapes")
    assert Needed("depict-sa-small", None) in needed and len(needed) == 8


def test_altered_models_and_other_losses_do_not_pass_for_a_model(runs: Path, call: Call) -> None:
    experiments = chosen_experiments("depict-tab1", "shapes")
    save(runs / "a", "depict-sa-tiny", altered={"operation": "head_ortho"})
    save(runs / "b", "depict-sa-tiny", **{"loss.name": "atm"})
    plain = Needed("depict-sa-tiny", runs / "depict-sa-tiny-shapes")
    assert needed_runs(experiments, "shapes", ["tiny"], runs, SAME)[0] == plain
    (runs / "depict-sa-tiny-shapes" / "model.safetensors").unlink()
    other = needed_runs(experiments, "shapes", ["tiny"], runs, SAME)[0]
    assert other.folder == runs / "b" and "loss.name=atm" in other.differs
    code, out, _ = call("reproduce", "depict-tab1", *SAME, "--dataset", "shapes", "--dry-run")
    assert code == 0 and "loss.name=atm" in "".join(out.split())


def test_a_size_that_some_decoders_do_not_have(tmp_path: Path) -> None:
    needed = needed_runs(chosen_experiments("segvit-tables", "shapes"), "shapes", ["large", "large-shrunk"], tmp_path)
    assert [each.model for each in needed] == [
        *(f"{decoder}-large" for decoder in ("segvit", "segmenter-mask", "depict-sa")),
        "segvit-large-shrunk",
    ]


def test_what_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"no experiment 'depict-fig77'; did you mean 'depict-fig7'\?"):
        chosen_experiments("depict-fig77", "shapes")
    with pytest.raises(ConfigError, match="depict-tab2 is about cityscapes and pascal-context"):
        chosen_experiments("depict-tab2", "shapes")
    with pytest.raises(ConfigError, match="no model depict-sa-huge"):
        needed_runs(chosen_experiments("depict-tab1", "shapes"), "shapes", ["huge"], Path("nowhere"))


def test_a_training_costs_three_passes_over_its_images() -> None:
    config = resolve("depict-sa-tiny", "shapes", TINY)
    cost = training_cost(config)
    assert cost.steps == 6 and cost.images == 24 and cost.hours > 0
    no_such = {"encoder.weights": "none.safetensors"}  # what it costs is known before weights are there
    twice = training_cost(resolve("depict-sa-tiny", "shapes", {**TINY, **no_such, "train.epochs": 4}))
    assert twice.petaflops == pytest.approx(2 * cost.petaflops)
    steps = training_cost(resolve("depict-sa-tiny", "shapes", {**TINY, "train.steps": 9}))
    assert steps.steps == 9 and steps.petaflops == pytest.approx(1.5 * cost.petaflops)


def test_a_frozen_encoder_costs_one_pass_a_step_or_a_view() -> None:
    frozen = {**TINY, "encoder.frozen": True, "encoder.random": True}
    decoders = training_cost(resolve("depict-sa-tiny", "shapes", {**frozen, "data.views": 3}), stored=True)
    assert decoders.petaflops > 0 == decoders.disk
    whole = training_cost(resolve("depict-sa-tiny", "shapes", TINY)).petaflops
    once = (whole - decoders.petaflops) / 3  # of each image that is seen
    each_step = training_cost(resolve("depict-sa-tiny", "shapes", frozen))
    assert each_step.petaflops == pytest.approx(decoders.petaflops + once) and each_step.disk == 0
    views = training_cost(resolve("depict-sa-tiny", "shapes", {**frozen, "data.views": 3}), trainings=2)
    images = each_step.images / 2  # in two epochs
    assert views.petaflops == pytest.approx(2 * decoders.petaflops + once * 3 * images / each_step.images)
    assert views.disk > 0


def test_reported_numbers_stand_beside_and_never_in_the_measured_column() -> None:
    experiment = Experiment(
        name="x",
        title="title",
        where="somewhere",
        decoders=("depict-sa",),
        measure=lambda *_: [],
        values=lambda records, models: [Value(models[each.model], "mIoU (%)", Estimate(50.0)) for each in records],
        reported=(
            Reported("depict-sa-tiny", "mIoU (%)", 39.3, "ADE20K val", "there"),
            Reported("segmenter-mask-tiny", "mIoU (%)", 38.1, "ADE20K val", "there"),
            Reported("depict-sa-large", "mIoU (%)", 52.9, "ADE20K val", "there"),
        ),
    )
    table = beside(experiment, [record("run")], {"run": "depict-sa-tiny"})
    assert table is not None
    first, second = table.rows
    assert first == ("depict-sa-tiny", "mIoU (%)", Estimate(50.0), 39.3, "ADE20K val", "there")
    assert second[0] == "segmenter-mask-tiny" and math.isnan(second[2].value) and second[3] == 38.1
    assert beside(EXPERIMENTS["depict-fig7"], [record("run")], {"run": "depict-sa-tiny"}) is None


def test_shrunk_is_part_of_a_size() -> None:
    experiment = EXPERIMENTS["segvit-tables"]
    assert experiment.size("segvit-large-shrunk") == "large-shrunk" and experiment.size("depict-sa-tiny") == "tiny"
    assert experiment.size("depict-ca-tiny") is None
    table = beside(experiment, [dataclasses.replace(record("run"), measured=EVALUATED)], {"run": "segvit-large-shrunk"})
    assert table is not None and [row[3] for row in table.rows] == [53.9, 49.1, 62.3]
    assert [row[2].value for row in table.rows[:1]] == [40.0]


def test_a_paper_from_end_to_end_goes_on_where_it_stopped(
    runs: Path, call: Call, request: pytest.FixtureRequest
) -> None:
    arguments = ["reproduce", "depict", "--dataset", "shapes", "--limit", "2", "--draws", "2", "--noise", "0.1,1"]
    code, out, err = call(*arguments, "--device", "cpu")
    assert code == 0, err
    assert "Measured" in out and "Reported on" in out and "ADE20K val" in out
    folder = runs / "depict" / "shapes"
    kinds = {each.kind for each in read_records(folder / "records")}
    assert kinds == {"pca", "orthogonality", "rank-analysis", "eval", "tradeoff", "parameter-noise"}
    for name in ("depict-fig7-layers.png", "depict-performance.pdf", "depict-noise.png"):
        assert (folder / "figures" / name).stat().st_size > 1000
    assert (folder / "tables" / "depict-tab1-reported.tex").is_file()
    before = {path: path.stat().st_mtime_ns for path in (folder / "records").iterdir()}
    request.getfixturevalue("empty_pictures")
    code, again, _ = call(*arguments, "--device", "cpu")
    assert code == 0 and {path: path.stat().st_mtime_ns for path in (folder / "records").iterdir()} == before
    assert again.count("Figures and tables") == out.count("Figures and tables")


@pytest.mark.usefixtures("empty_pictures")
def test_a_damaged_answer_is_named_with_its_cure(runs: Path, call: Call) -> None:
    arguments = ["reproduce", "segmenter-tables", "--dataset", "shapes", "--limit", "1", "--device", "cpu"]
    assert call(*arguments)[0] == 0
    damaged = next((runs / "segmenter" / "shapes" / "records").glob("eval-*.json"))
    for text in ("{", "[]", '{"schema": 1}', '{"schema": 2}', "[" * 5000):
        damaged.write_text(text)
        code, _, err = call(*arguments)
        assert code == 1 and err.count("\n") == 1 and damaged.name in err and "With --again it is measured anew" in err
    assert call(*arguments, "--again")[0] == 0
    assert damaged.with_name(f"{damaged.name}.damaged-1").read_text() == "[" * 5000  # and nothing is lost


def test_missing_runs_are_named_with_their_cost(runs: Path, call: Call) -> None:
    code, out, _ = call("reproduce", "depict-tab1", *SAME, "--dataset", "shapes", "--model-size", "small", "--dry-run")
    assert code == 0 and out.count("to be trained") == 4 and not list(runs.glob("*small*"))


@pytest.mark.usefixtures("empty_pictures")
def test_missing_runs_are_trained(runs: Path, call: Call) -> None:
    for decoder in DECODERS[1:]:
        for path in (runs / f"{decoder}-tiny-shapes").iterdir():
            path.unlink()
    arguments = ["reproduce", "segmenter-tables", *SAME, "train.epochs=1", "--dataset", "shapes", "--device", "cpu"]
    code, out, err = call(*arguments)
    assert code == 0, err
    assert "segmenter-mask-tiny has no run on shapes" in out
    assert (runs / "segmenter-mask-tiny-shapes" / "model.safetensors").is_file()


def test_bad_requests(runs: Path, call: Call) -> None:
    code, _, err = call("reproduce")
    assert code == 2 and "whitebox reproduce --list" in err
    code, out, _ = call("reproduce", "--list")
    assert code == 0 and "depict-fig7" in out
