"""Our own study: nine decoders on CamVid, from scratch, on equal terms (results/camvid).

One recipe, one training each, 30 epochs from random weights; what it says and does not say stands in
results/camvid/README.md. Measured in the order below; records of a step lie in ``records`` of its folder, and tables
and figures beside them are what `whitebox render` makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.ask import Bar, measure_runs
from analysis.consumed import Chosen, Images
from analysis.maths.levels import parse_levels
from analysis.measurement import Measurement
from analysis.measures.alignment import Alignment
from analysis.measures.attention import Attention
from analysis.measures.compare import compare
from analysis.measures.evaluation import evaluated
from analysis.measures.noise import Noise
from analysis.measures.orthogonality import Orthogonality
from analysis.measures.pca import PCA
from analysis.measures.rank_analysis import RankAnalysis
from analysis.record import Record
from experiments.experiment import Measure, Setting
from experiments.measurements import NOISE_LEVELS
from experiments.study import Step, Study, Trained
from whitebox.data.readers import FileSource
from whitebox.runs import Run, SavedRun

RECIPE = (
    "optim.name=adamw",
    "optim.lr=5e-4",
    "optim.warmup_steps=200",
    "optim.clip_grad=1",
    "optim.weight_decay=0.05",
    "train.batch_size=4",
    "train.epochs=30",
    "train.eval_every=10",
    "train.precision=bf16",
    "train.workers=0",
)
DECODERS = ("depict-sa", "depict-ca", "segmenter-mask", "segmenter-linear", "cbsa", "tost", "crate", "segvit")
RUNS = {f"{decoder}-tiny-camvid": Trained(f"{decoder}-tiny") for decoder in DECODERS}
RUNS["segvit-tiny-ce-camvid"] = Trained("segvit-tiny", ("loss=cross-entropy",))

ALL = tuple(RUNS)
COMPARED = tuple(name for name in ALL if name != "segvit-tiny-ce-camvid")
INSIDE = tuple(name for name in COMPARED if name != "segmenter-linear-tiny-camvid")  # it has no layers
DERIVED = INSIDE[:3]  # also with another distortion

RELATIVE_LEVELS = "0.02,0.05,0.1,0.2,0.3,0.5,0.7,1,1.5,2,3,5,10,20,50"
PHOTO = "0016E5_08027"
SHOWN = "Road,Building,Car"


def _asked(measurement: Callable[[Setting, Path], Measurement], photo: str = "", images: bool = True) -> Measure:
    """Ask each run on the validation images, on a photo of them, or of its weights."""

    def measured(runs: Sequence[Run | SavedRun], setting: Setting, folder: Path, bar: Bar, again: bool) -> list[Record]:
        chosen, label = Chosen(limit=setting.limit) if images and not photo else Chosen(), Path()
        if photo:
            source = Images(runs[0], Chosen()).source
            assert isinstance(source, FileSource)
            (pair,) = (pair for pair in source.pairs if pair.name == photo)
            chosen, label = Chosen(photos=(Path(pair.image),)), Path(pair.label)
        return measure_runs(measurement(setting, label), runs, chosen, bar, folder=folder, again=again)

    return measured


def _noise(levels: str, relative: bool) -> Measure:
    return _asked(
        lambda setting, _: Noise(
            levels=parse_levels(setting.noise or levels),
            relative=relative,
            draws=setting.draws,
            seed=setting.seed,
            output=setting.output,
        )
    )


def _accuracy(split: str) -> Measure:
    """Evaluations belong to the runs themselves."""

    def measured(runs: Sequence[Run | SavedRun], setting: Setting, folder: Path, bar: Bar, again: bool) -> list[Record]:
        records = []
        for run in runs:
            with bar(f"eval: {run.name}, {split}") as advance:
                chosen = Chosen(split, setting.limit)
                records.append(evaluated(run, run.name, chosen, None, advance, again=again).record)
        return records

    return measured


def _differences(split: str) -> Measure:
    """Of each run to the first."""

    def measured(runs: Sequence[Run | SavedRun], setting: Setting, folder: Path, bar: Bar, again: bool) -> list[Record]:
        chosen = Chosen(split, setting.limit)
        first, *others = (evaluated(run, run.name, chosen) for run in runs)
        return [compare(first, other, folder, setting.seed, again=again) for other in others]

    return measured


def _costs(runs: Sequence[Run | SavedRun], setting: Setting, folder: Path, bar: Bar, again: bool) -> list[Record]:
    """On one thread, of one window; the runs take turns."""
    import torch

    from analysis.measures.profile import Setting as Timing
    from analysis.measures.profile import profile, subject_of

    torch.set_num_threads(1)
    size = runs[0].inference.window
    assert size is not None
    with bar("profile") as advance:
        subjects = [subject_of(run, "cpu") for run in runs]
        return profile(subjects, Timing(size=size, repeats=20), advance, folder=folder, again=again)


STUDY = Study(
    name="camvid",
    title="nine decoders on CamVid, from scratch, on equal terms: accuracy, cost, robustness, and what they do inside",
    dataset="camvid",
    recipe=RECIPE,
    runs=RUNS,
    steps=(
        Step("accuracy-val", "", ALL, _accuracy("val"), joint=True),
        Step("accuracy-test", "", ALL, _accuracy("test"), joint=True),
        Step("differences", "comparison", COMPARED, _differences("val")),
        Step("differences on test", "comparison", COMPARED, _differences("test")),
        Step("noise", "robustness", ALL, _noise(NOISE_LEVELS, relative=False)),
        Step("relative noise", "robustness", ALL, _noise(RELATIVE_LEVELS, relative=True)),
        Step("costs", "analysis", ALL, _costs),
        Step("rates and ranks", "analysis", INSIDE, _asked(lambda setting, _: RankAnalysis(seed=setting.seed))),
        Step(
            "the same of raw tokens",
            "analysis",
            INSIDE,
            _asked(lambda setting, _: RankAnalysis(tokens="raw", seed=setting.seed)),
        ),
        Step(
            "orthogonality",
            "analysis",
            INSIDE,
            _asked(lambda setting, _: Orthogonality(after=True, seed=setting.seed)),
        ),
        Step("alignment", "analysis", INSIDE, _asked(lambda setting, _: Alignment(seed=setting.seed))),
        Step("the same, eps 1", "analysis", DERIVED, _asked(lambda setting, _: Alignment(eps=1.0, seed=setting.seed))),
        Step("attention", "analysis", INSIDE, _asked(lambda *_: Attention(classes=SHOWN), PHOTO)),
        Step(
            "masks",
            "analysis",
            ("segvit-tiny-camvid",),
            _asked(lambda *_: Attention(masks=True, layer="all", classes=SHOWN), PHOTO),
        ),
        Step("components", "analysis", INSIDE, _asked(lambda _, label: PCA(truth=[label]), PHOTO)),
    ),
)
