"""Every choice that changes a number changes what a record is called, and none that does not, for each kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import tiny_run

from analysis.maths.corruptions import parse_kinds
from analysis.measures import alignment, orthogonality, pca, rank_analysis, tradeoff
from analysis.measures import attention as attention_maps
from analysis.measures import profile as costs
from analysis.measures.compare import compare, evaluated
from analysis.measures.corruptions import corruption_record, measure_corruptions
from analysis.measures.noise import Noise, measure_noise
from analysis.record import Record
from analysis.show.render import renderers
from whitebox.config import change
from whitebox.runs import Run, open_run

Measure = Callable[..., Record]


class Measured:
    """Measures a tiny run in each way; keywords are options of that measurement."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = open_run(tiny_run(folder / "run", seed=1), device="cpu")
        self.other = open_run(tiny_run(folder / "other", seed=2), device="cpu")
        self.photo = folder / "photo.png"
        Image.fromarray(np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3)).save(self.photo)

    def _new(self) -> Path:
        """A folder in which nothing has been measured yet."""
        shutil.rmtree(self.folder / "output", ignore_errors=True)
        return self.folder / "output"

    def alignment(self, run: Run, **options: Any) -> Record:
        return alignment.measure(run, **{"limit": 1, "draws": 1, **options})

    def orthogonality(self, run: Run, **options: Any) -> Record:
        return orthogonality.measure(run, **{"draws": 2, **options})

    def rank_analysis(self, run: Run, **options: Any) -> Record:
        own = {key: options.pop(key) for key in ("split", "limit", "seed", "encoder", "layers") if key in options}
        return rank_analysis.measure(run, rank_analysis.convention(**options), **{"limit": 1, **own})

    def attention(self, run: Run, photo: Path | None = None, **options: Any) -> Record:
        return attention_maps.measure(run, [photo or self.photo], attention_maps.Choice(**options))

    def pca(self, run: Run, photo: Path | None = None, truth: Path | None = None, **options: Any) -> Record:
        return pca.measure(run, [photo or self.photo], [truth] if truth else [], **options)

    def profile(self, run: Run, **options: Any) -> Record:
        subject = costs.Subject(name="x", model=run.model, config=run.config, weights=run.weights, folder=run.folder)
        return costs.measure([subject], costs.Setting(**{"size": 32, "repeats": 1, **options}))[0]

    def eval(self, run: Run, **options: Any) -> Record:
        return evaluated(run, "x", output=self._new(), **{"limit": 1, **options}).record

    def compare(self, run: Run, other: Run | None = None, seed: int = 0, **options: Any) -> Record:
        shown = {"output": self._new(), "limit": 1, **options}
        first = replace(other or self.other, config=run.config)
        return compare(evaluated(first, "y", **shown), evaluated(run, "x", **shown), seed)

    def tradeoff(self, run: Run, **options: Any) -> Record:
        return tradeoff.measure(run, self.eval(run, **options))

    def parameter_noise(self, run: Run, **options: Any) -> Record:
        shown = {"split": options.pop("split", None), "limit": options.pop("limit", 1)}
        noise = Noise(**{"levels": (0.1,), "draws": 1, "halving": False, **options})
        return measure_noise(run, noise, self._new(), memory=10**6, advance=lambda done, of: None, **shown)

    def input_noise(self, run: Run, **options: Any) -> Record:
        return self.parameter_noise(run, target="input", **options)

    def corruptions(
        self,
        run: Run,
        kinds: str = "fog",
        severities: tuple[int, ...] = (1,),
        reference: Run | None = None,
        seed: int = 0,
    ) -> Record:
        def found(run: Run) -> Any:
            return measure_corruptions(
                *(run, parse_kinds(kinds), severities),
                seed=seed,
                folder=self._new(),
                split=None,
                limit=1,
                advance=lambda done, of: None,
            )

        return corruption_record(found(run), None if reference is None else found(reference))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return Measured(tmp_path_factory.mktemp("identity"))


NOTHING: set[str] = set()
PHOTOS = {"data.resize=64", "data.max_ratio=1.25"}
WINDOWS = PHOTOS | {"inference.window=16 inference.stride=16", "inference.stride=16", "inference.window=null"}
EVALUATION = WINDOWS | {"inference.scales=[1.0,1.5]", "inference.flip=true", "inference.scores=softmax"}
OVERRIDES = [*sorted(EVALUATION), "inference.batch=1", "data.crop=16"]
CONSUMED = {
    "alignment": WINDOWS,
    "attention": PHOTOS,
    "compare": EVALUATION,
    "corruptions": EVALUATION,
    "eval": EVALUATION,
    "input-noise": EVALUATION,
    "orthogonality": NOTHING,
    "parameter-noise": EVALUATION,
    "pca": PHOTOS,
    "profile": NOTHING,
    "rank-analysis": WINDOWS,
    "tradeoff": EVALUATION - {"inference.window=null"},  # which it refuses
}


def test_no_kind_is_forgotten() -> None:
    assert set(CONSUMED) == set(renderers())


def _measure(measured: Measured, kind: str) -> Measure:
    found: Measure = getattr(measured, kind.replace("-", "_"))
    return found


@pytest.mark.parametrize("kind", CONSUMED)
def test_how_images_are_shown_is_part_of_the_identity(measured: Measured, kind: str) -> None:
    measure, run = _measure(measured, kind), measured.run
    before = measure(run).identity
    assert measure(run).identity == before
    wrong = []
    for overrides in OVERRIDES:
        if kind == "tradeoff" and "null" in overrides:
            continue
        changed = replace(run, config=change(run.config, None, overrides.split()))
        if (measure(changed).identity != before) != (overrides in CONSUMED[kind]):
            wrong.append(overrides)
    assert not wrong


def test_orthogonality_after_the_decoder_is_of_images(measured: Measured) -> None:
    before = measured.orthogonality(measured.run, after=True, limit=1).identity
    for overrides in OVERRIDES:
        changed = replace(measured.run, config=change(measured.run.config, None, overrides.split()))
        identity = measured.orthogonality(changed, after=True, limit=1).identity
        assert (identity != before) == (overrides in WINDOWS), overrides


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *(("alignment", each) for each in ({"eps": 1.0}, {"at": "normed"}, {"draws": 2}, {"seed": 1}, {"limit": 2})),
    *(("orthogonality", each) for each in ({"after": True}, {"draws": 3}, {"seed": 1})),
    *(("rank-analysis", each) for each in ({"preset": "crate"}, {"eps": 1.0}, {"encoder": True}, {"limit": 2})),
    ("rank-analysis", {"layers": ["decoder.input"]}),
    ("rank-analysis", {"split": "test"}),
    *(("attention", each) for each in ({"layer": 0}, {"head": "all"}, {"rollout": True}, {"part": "encoder"})),
    ("pca", {"directions": 2}),
    *(("profile", each) for each in ({"size": 16}, {"batch": 2}, {"precision": "bf16"}, {"repeats": 2})),
    *(("eval", each) for each in ({"limit": 2}, {"split": "test"})),
    *(("compare", each) for each in ({"limit": 2}, {"seed": 1})),
    *(("parameter-noise", each) for each in ({"levels": (0.2,)}, {"draws": 2}, {"target": "all"}, {"relative": True})),
    *(("parameter-noise", each) for each in ({"antithetic": True}, {"seed": 1}, {"halving": True})),
    *(("corruptions", each) for each in ({"kinds": "snow"}, {"severities": (2,)}, {"seed": 1})),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_options_are_part_of_the_identity(measured: Measured, kind: str, options: dict[str, Any]) -> None:
    measure = _measure(measured, kind)
    assert measure(measured.run, **options).identity != measure(measured.run).identity


@pytest.mark.parametrize("kind", sorted(set(CONSUMED)))
def test_weights_are_part_of_the_identity(measured: Measured, kind: str) -> None:
    measure = _measure(measured, kind)
    renamed = replace(measured.other, name=measured.run.name)
    assert measure(renamed).identity != measure(measured.run).identity


def test_another_reference_is_another_measurement(measured: Measured, tmp_path: Path) -> None:
    third = open_run(tiny_run(tmp_path / "third", seed=3), device="cpu")
    for measure, name in ((measured.compare, "other"), (measured.corruptions, "reference")):
        first, second = (measure(measured.run, **{name: each}) for each in (measured.other, third))
        assert first.identity != second.identity


@pytest.mark.parametrize("kind", ["attention", "pca"])
def test_a_photo_is_its_bytes(measured: Measured, kind: str, tmp_path: Path) -> None:
    measure = _measure(measured, kind)
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(tmp_path / measured.photo.name)
    shutil.copy(measured.photo, tmp_path / "copy")
    assert measure(measured.run, photo=tmp_path / measured.photo.name).identity != measure(measured.run).identity


def test_a_label_of_a_photo_is_its_bytes(measured: Measured, tmp_path: Path) -> None:
    identities = [measured.pca(measured.run).identity]
    for label in (0, 1):
        Image.fromarray(np.full((32, 48), label, np.uint8)).save(tmp_path / "label.png")
        identities.append(measured.pca(measured.run, truth=tmp_path / "label.png").identity)
    assert len(set(identities)) == 3


def test_times_are_of_a_machine(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    before = measured.profile(measured.run).identity
    monkeypatch.setattr(costs, "hardware", lambda: {"cpu": "another", "cores": 1, "gpus": []})
    assert measured.profile(measured.run).identity != before
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert measured.profile(measured.run).identity != before
    finally:
        torch.set_num_threads(threads)
