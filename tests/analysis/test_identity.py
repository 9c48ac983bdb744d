"""Every choice that changes a number changes what a question is called, and none that does not, for each kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import made_up, nothing
from PIL import Image
from tiny_runs import tiny_run

from analysis.consumed import Chosen, EvaluatedImages
from analysis.maths.corruption_names import parse_kinds
from analysis.maths.variance import Sds
from analysis.measurement import KINDS, Measurement
from analysis.measures import compare as comparison
from analysis.measures import noise_variance as spread
from analysis.measures import power as planning
from analysis.measures import profile as profiling
from analysis.measures import similarity as resemblance
from analysis.measures import tradeoff as accuracy_and_cost
from analysis.measures.ablate import Ablate
from analysis.measures.alignment import Alignment
from analysis.measures.attention import Attention
from analysis.measures.baselines import question_of
from analysis.measures.boundary import Boundary
from analysis.measures.calibration import Calibration
from analysis.measures.confusion import Confusion
from analysis.measures.corruptions import Corruptions
from analysis.measures.drift import Drift
from analysis.measures.evaluation import Evaluated, evaluation_question
from analysis.measures.extras import Extra, extra_question
from analysis.measures.images import Images as ImageScores
from analysis.measures.noise import Noise
from analysis.measures.ood import OOD
from analysis.measures.orthogonality import Orthogonality
from analysis.measures.pca import PCA
from analysis.measures.probe import Probe
from analysis.measures.rank_analysis import RankAnalysis
from analysis.measures.similarity import Setting
from analysis.measures.variance import Variance
from analysis.record import Answer, Question, Record, new_record
from whitebox.runs import SavedRun, find_run

Ask = Callable[..., Question]


class Asked:
    """The question of each kind, put to a run; keywords are options of that measurement."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for seed, name in enumerate(("one", "two", "three")):
            tiny_run(folder / name / "run", seed=seed)
        self.photo = folder / "photo.png"
        Image.fromarray(np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3)).save(self.photo)

    def run(self, name: str = "one", overrides: Sequence[str] = ()) -> SavedRun:
        return find_run(self.folder / name / "run", overrides=overrides, device="cpu")

    def ask(self, kind: str, run: SavedRun | None = None, **options: Any) -> Question:
        found: Question = getattr(self, kind.replace("-", "_"))(run or self.run(), **options)
        return found

    def _put(self, measurement: type[Measurement], run: SavedRun, **options: Any) -> Question:
        photos = (options.pop("photo", self.photo),)
        chosen = Chosen(options.pop("split", None), options.pop("limit", None), photos)
        made = measurement(**options)
        return made.question(run, made.consumes(run, chosen))

    def ablate(self, run: SavedRun, **options: Any) -> Question:
        return self._put(Ablate, run, **options)

    def alignment(self, run: SavedRun, **options: Any) -> Question:
        return self._put(Alignment, run, **options)

    def orthogonality(self, run: SavedRun, **options: Any) -> Question:
        return self._put(Orthogonality, run, **options)

    def drift(self, run: SavedRun, **options: Any) -> Question:
        return self._put(Drift, run, **options)

    def rank_analysis(self, run: SavedRun, **options: Any) -> Question:
        return self._put(RankAnalysis, run, **options)

    def attention(self, run: SavedRun, **options: Any) -> Question:
        return self._put(Attention, run, **options)

    def pca(self, run: SavedRun, **options: Any) -> Question:
        return self._put(PCA, run, **options)

    def probe(self, run: SavedRun, **options: Any) -> Question:
        return self._put(Probe, run, **options)

    def ood(self, run: SavedRun, **options: Any) -> Question:
        return self._put(OOD, run, **{"held_out": "egg", **options})

    def against(self, run: SavedRun, draws: int = 3, names: Sequence[str] = ("untrained",), **options: Any) -> Question:
        return question_of(RankAnalysis(), self.rank_analysis(run, **options), names, draws, [])

    def parameter_noise(self, run: SavedRun, **options: Any) -> Question:
        return self._put(Noise, run, **{"levels": (0.1,), **options})

    def noise_variance(self, run: SavedRun, **options: Any) -> Question:
        sweep = new_record(self.parameter_noise(run, **options), Answer(measured={"curve": []}, n=3))
        return spread.noise_variance(sweep, [run], Noise(levels=(0.1,)), Chosen(), self.folder)

    def input_noise(self, run: SavedRun, **options: Any) -> Question:
        return self._put(type(Noise.of(target="input", levels=(1.0,))), run, levels=(0.1,), target="input", **options)

    def corruptions(self, run: SavedRun, kinds: str = "fog", **options: Any) -> Question:
        pytest.importorskip("imagecorruptions", reason="needs the extra corruptions")
        return self._put(Corruptions, run, **{"kinds": parse_kinds(kinds), "severities": (1,), **options})

    def profile(self, run: SavedRun, **options: Any) -> Question:
        return profiling.subject_of(run, "cpu").question(profiling.Setting(**options))

    def eval(self, run: SavedRun, **options: Any) -> Question:
        return evaluation_question(run, EvaluatedImages(run, Chosen(**options)))

    def _extra(self, extra: Extra, run: SavedRun, **options: Any) -> Question:
        return extra_question(extra, self.eval(run, **options), EvaluatedImages(run, Chosen(**options)).units)

    def boundary(self, run: SavedRun, ratio: float = 0.02, **options: Any) -> Question:
        return self._extra(Boundary(ratio), run, **options)

    def calibration(self, run: SavedRun, **options: Any) -> Question:
        return self._extra(Calibration(), run, **options)

    def confusion(self, run: SavedRun, **options: Any) -> Question:
        return self._extra(Confusion(), run, **options)

    def images(self, run: SavedRun, **options: Any) -> Question:
        return self._extra(ImageScores(), run, **options)

    def variance(self, run: SavedRun, **options: Any) -> Question:
        return self._extra(Variance(), run, **options)

    def _evaluated(self, run: SavedRun, **options: Any) -> Evaluated:
        miou = {"value": 0.5, "low": 0.4, "high": 0.6}
        answer = Answer(measured={"miou": miou, "per_class": []}, n=options.get("limit", 3))
        return Evaluated(run.name, new_record(self.eval(run, **options), answer), Path("nowhere"))

    def compare(self, run: SavedRun, other: str = "two", seed: int = 0, **options: Any) -> Question:
        shown = {key: getattr(run, key) for key in ("data", "inference")}
        reference = self.run(other)
        vars(reference).update(shown)
        pair = (self._evaluated(each, **options) for each in (reference, run))
        return comparison.compare(*pair, self.folder, seed)

    def power(self, run: SavedRun, other: str = "two", seeds: int = 3, **options: Any) -> Question:
        pair = (self._evaluated(each, **options) for each in (self.run(other), run))
        study = planning.Study(seeds=(), units=(), comparisons=seeds)
        return planning.power_record(*pair, Sds(1.0, 1.0, 1.0), study, self.folder)

    def similarity(self, run: SavedRun, limit: int | None = None, split: str | None = None, **options: Any) -> Question:
        setting = Setting(**options)
        return resemblance.similarity(run, run, ("a", "a"), Chosen(split, limit), setting, nothing, self.folder)

    def tradeoff(self, run: SavedRun, **options: Any) -> Question:
        return accuracy_and_cost.tradeoff(run, self._evaluated(run, **options), self.folder)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(tmp_path_factory.mktemp("identity"))


@pytest.fixture(autouse=True)
def only_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """What compares and trades off gives its question instead of asking it."""
    for module in (comparison, accuracy_and_cost, resemblance, spread):
        monkeypatch.setattr(module, "ask", lambda question, *_, **__: question)
    monkeypatch.setattr(planning, "keep", lambda question, *_: question)


NOTHING: set[str] = set()
PHOTOS = {"data.resize=64", "data.max_ratio=1.25"}
DRAWN = {"data.shapes_seed=7", "data.size=40"}
WINDOWS = PHOTOS | DRAWN | {"inference.window=16 inference.stride=16", "inference.stride=16", "inference.window=null"}
EVALUATION = WINDOWS | {"inference.scales=[1.0,1.5]", "inference.flip=true", "inference.scores=softmax"}
EVALUATION |= {"data.mean_over=labelled"}
UNSEEN = ["inference.batch=1", "data.crop=16 inference.window=32 inference.stride=32", "data.flip=0.1"]
OVERRIDES = [*sorted(EVALUATION), *UNSEEN]
CONSUMED = {
    "ablate": EVALUATION,
    "alignment": WINDOWS,
    "attention": PHOTOS,
    "boundary": EVALUATION,
    "calibration": EVALUATION,
    "compare": EVALUATION,
    "confusion": EVALUATION,
    "corruptions": EVALUATION,
    "eval": EVALUATION,
    "images": EVALUATION,
    "input-noise": EVALUATION,
    "drift": NOTHING,
    "orthogonality": NOTHING,
    "parameter-noise": EVALUATION,
    "pca": PHOTOS,
    "probe": WINDOWS | {"data.mean_over=labelled"},
    "noise-variance": EVALUATION,
    "ood": WINDOWS,
    "against": WINDOWS,
    "power": EVALUATION,
    "profile": NOTHING,
    "rank-analysis": WINDOWS,
    "similarity": WINDOWS,
    "variance": EVALUATION,
    "tradeoff": EVALUATION - {"inference.window=null"},  # which it refuses
}


def test_no_kind_is_forgotten() -> None:
    assert set(CONSUMED) == set(KINDS)


@pytest.mark.parametrize("kind", CONSUMED)
def test_how_images_are_shown_is_part_of_the_identity(asked: Asked, kind: str) -> None:
    before = asked.ask(kind).identity
    assert asked.ask(kind).identity == before
    refused = {"inference.window=null"} if kind == "tradeoff" else set()
    changed = {
        overrides
        for overrides in OVERRIDES
        if overrides not in refused and asked.ask(kind, asked.run(overrides=overrides.split())).identity != before
    }
    assert changed == CONSUMED[kind]


def test_orthogonality_after_the_decoder_is_of_images(asked: Asked) -> None:
    before = asked.ask("orthogonality", after=True).identity
    changed = {
        overrides
        for overrides in OVERRIDES
        if asked.ask("orthogonality", asked.run(overrides=overrides.split()), after=True).identity != before
    }
    assert changed == WINDOWS


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *(("ablate", each) for each in ({"eps": 1.0}, {"draws": 2}, {"seed": 1}, {"limit": 2})),
    ("ablate", {"layers": "decoder.layers.0"}),
    *(("alignment", each) for each in ({"eps": 1.0}, {"at": "normed"}, {"draws": 2}, {"seed": 1}, {"limit": 2})),
    ("alignment", {"path": 3}),
    *(("orthogonality", each) for each in ({"after": True}, {"draws": 3}, {"seed": 1})),
    *(("rank-analysis", each) for each in ({"preset": "crate"}, {"eps": 1.0}, {"encoder": True}, {"limit": 2})),
    ("rank-analysis", {"layers": "decoder.input"}),
    ("rank-analysis", {"split": "test"}),
    *(("attention", each) for each in ({"layer": "0"}, {"head": "all"}, {"rollout": True}, {"part": False})),
    *(("attention", each) for each in ({"classes": "egg"}, {"patch": ["0,0"]}, {"masks": True})),
    ("pca", {"directions": 2}),
    *(("probe", each) for each in ({"encoder": True}, {"patches": 10}, {"train_images": 3}, {"eps": 1.0}, {"seed": 1})),
    ("probe", {"tokens": "raw"}),
    *(("against", each) for each in ({"draws": 2}, {"names": ("train",)}, {"eps": 1.0}, {"limit": 2})),
    *(("ood", each) for each in ({"held_out": "star"}, {"directions": 2}, {"train_images": 3})),
    *(("profile", each) for each in ({"size": 16}, {"batch": 2}, {"precision": "bf16"}, {"repeats": 2})),
    *(("eval", each) for each in ({"limit": 2}, {"split": "test"}, {"unit": "block:2"})),
    ("boundary", {"ratio": 0.05}),
    *(("compare", each) for each in ({"limit": 2}, {"seed": 1}, {"other": "three"})),
    ("tradeoff", {"limit": 2}),
    *(("noise-variance", each) for each in ({"draws": 2}, {"seed": 1}, {"limit": 2})),
    *(("power", each) for each in ({"other": "three"}, {"seeds": 5}, {"limit": 2})),
    *(("similarity", each) for each in ({"limit": 2}, {"seed": 1}, {"encoder": True}, {"draws": 3})),
    *(("parameter-noise", each) for each in ({"levels": (0.2,)}, {"draws": 2}, {"target": "all"}, {"relative": True})),
    *(("parameter-noise", each) for each in ({"antithetic": True}, {"seed": 1}, {"halving": False})),
    *(("input-noise", each) for each in ({"draws": 2}, {"seed": 1})),
    *(("corruptions", each) for each in ({"kinds": "snow"}, {"severities": (2,)}, {"seed": 1})),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_options_are_part_of_the_identity(asked: Asked, kind: str, options: dict[str, Any]) -> None:
    assert asked.ask(kind, **options).identity != asked.ask(kind).identity


@pytest.mark.parametrize(
    ("kind", "options"), [("parameter-noise", {"memory": 5}), ("parameter-noise", {"output": Path("x")})]
)
def test_what_changes_no_number_is_not(asked: Asked, kind: str, options: dict[str, Any]) -> None:
    assert asked.ask(kind, **options).identity == asked.ask(kind).identity


@pytest.mark.parametrize("kind", CONSUMED)
def test_weights_are_part_of_the_identity(asked: Asked, kind: str) -> None:
    other = {"other": "three"} if kind == "compare" else {}
    questions = [asked.ask(kind, asked.run(name), **other) for name in ("one", "two")]
    assert questions[0].model == questions[1].model and questions[0].identity != questions[1].identity


def test_another_reference_is_another_measurement(asked: Asked) -> None:
    runs = [None, asked.run("two"), asked.run("three")]
    assert len({asked.ask("corruptions", reference=run).identity for run in runs}) == 3


@pytest.mark.parametrize("kind", ["attention", "pca"])
def test_a_photo_is_its_bytes(asked: Asked, kind: str, tmp_path: Path) -> None:
    before = asked.ask(kind).identity
    shutil.copy(asked.photo, tmp_path / "photo.png")
    assert asked.ask(kind, photo=tmp_path / "photo.png").identity == before
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(tmp_path / "photo.png")
    assert asked.ask(kind, photo=tmp_path / "photo.png").identity != before


def test_a_label_of_a_photo_is_its_bytes(asked: Asked, tmp_path: Path) -> None:
    identities = {asked.ask("pca").identity}
    for label in (0, 1):
        Image.fromarray(np.full((32, 48), label, np.uint8)).save(tmp_path / f"{label}.png")
        identities.add(asked.ask("pca", truth=[tmp_path / f"{label}.png"]).identity)
    assert len(identities) == 3


def test_times_are_of_a_machine(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    before = asked.ask("profile").identity
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert asked.ask("profile").identity != before
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(profiling, "hardware", lambda: {"cpu": "another", "cores": 1, "gpus": []})
    assert asked.ask("profile").identity != before


def test_a_record_has_the_identity_of_its_question(asked: Asked) -> None:
    question = asked.ask("alignment")
    record: Record = new_record(question, Answer(measured={"a": np.float64(1)}, n=1))
    assert record.identity == question.identity and record.file_name == question.file_name
    values = {key: getattr(record, key) for key in ("model", "data", "weights", "variant", "seeds", "settings")}
    assert made_up("alignment", **values, measured={}, n=1).identity == question.identity
