"""Measurements that papers share, in the shape `experiments.experiment.Experiment` takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from analysis.ask import Bar, measure_runs
from analysis.consumed import Chosen, Images
from analysis.maths.levels import parse_levels
from analysis.measurement import Measurement
from analysis.measures.attention import Attention
from analysis.measures.evaluation import Evaluated, evaluated
from analysis.measures.noise import Noise
from analysis.measures.orthogonality import Orthogonality
from analysis.measures.pca import PCA
from analysis.measures.rank_analysis import RankAnalysis
from analysis.measures.tradeoff import tradeoff
from analysis.record import Record
from analysis.show.profile import stored_cost
from analysis.show.tables import Estimate, estimate, percent
from experiments.experiment import Measure, Reported, Setting, Value
from whitebox.data.readers import FileSource
from whitebox.runs import Run, SavedRun


def asks(measurement: Callable[[Setting, list[Path]], Measurement], photos: bool = False) -> Measure:
    """Ask each run; of what a setting says, and of photos with their labels where a figure shows them."""

    def measured(runs: Sequence[Run | SavedRun], setting: Setting, folder: Path, bar: Bar, again: bool) -> list[Record]:
        records = []
        for run in runs:
            shown, labels = chosen_photos(run, setting, folder) if photos else ([], [])
            chosen = Chosen(setting.split, setting.limit, tuple(shown))
            each = measurement(setting, labels)
            if not photos and isinstance(each, Orthogonality):
                chosen = Chosen()
            records += measure_runs(each, [run], chosen, bar, folder=folder, again=again)
        return records

    return measured


def chosen_photos(run: SavedRun | Run, setting: Setting, folder: Path) -> tuple[list[Path], list[Path]]:
    """Photos spread over a split, and their labels; images that have no file are written to ``folder``/photos."""
    images = Images(run, Chosen(setting.split, setting.limit))
    count = min(setting.photos, len(images))
    chosen = [index * len(images) // count for index in range(count)]
    source = images.source
    if isinstance(source, FileSource):
        pairs = [source.pairs[index] for index in chosen]
        return [Path(pair.image) for pair in pairs], [Path(pair.label) for pair in pairs]
    photos: list[Path] = []
    labels: list[Path] = []
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    for index in chosen:
        image_HW3, label_HW = source.load(index)
        for pixels, suffix, paths in ((image_HW3, "", photos), (label_HW, "-label", labels)):
            paths.append(folder / "photos" / f"{source.names[index]}{suffix}.png")
            Image.fromarray(pixels).save(paths[-1])
    return photos, labels


principal_components = asks(lambda setting, labels: PCA(truth=labels), photos=True)
attention = asks(lambda setting, labels: Attention(), photos=True)
attention_masks = asks(lambda setting, labels: Attention(masks=True, layer="all", colours="unit"), photos=True)
orthogonality_of_bases = asks(lambda setting, labels: Orthogonality(seed=setting.seed))
coding_rates = asks(lambda setting, labels: RankAnalysis(seed=setting.seed))


def accuracies(runs: Sequence[Run | SavedRun], setting: Setting, folder: Path, bar: Bar, again: bool) -> list[Record]:
    """Accuracies and the mIoU; an evaluation that is there already is taken."""
    return [_evaluated(run, setting, folder, bar, again).record for run in runs]


def _evaluated(run: Run | SavedRun, setting: Setting, folder: Path, bar: Bar, again: bool) -> Evaluated:
    with bar(f"eval: {run.name}") as advance:
        return evaluated(run, run.name, Chosen(setting.split, setting.limit), folder, advance, again=again)


def miou_values(records: Sequence[Record], models: dict[str, str]) -> list[Value]:
    """The mIoU of evaluations, percent."""
    return [
        Value(models[record.model], "mIoU (%)", percent(record.measured["miou"]))
        for record in records
        if record.kind == "eval"
    ]


def tradeoffs(runs: Sequence[Run | SavedRun], setting: Setting, folder: Path, bar: Bar, again: bool) -> list[Record]:
    """Accuracy and cost of each run."""
    return [tradeoff(run, _evaluated(run, setting, folder, bar, again), folder, again=again) for run in runs]


def tradeoff_values(records: Sequence[Record], models: dict[str, str]) -> list[Value]:
    """mIoU, percent, GFLOPs of the decoder's blocks, and GMACs of the whole model."""
    values = []
    for record in records:
        blocks, model = (stored_cost(record, scope) for scope in ("decoder blocks", "model"))
        values.append(Value(models[record.model], "mIoU (%)", percent(record.measured["miou"])))
        values.append(Value(models[record.model], "decoder GFLOPs", Estimate(blocks.gflops)))
        values.append(Value(models[record.model], "model GMACs", Estimate(1e-9 * model.macs)))
    return values


NOISE_LEVELS = "0.001,0.002,0.003,0.005,0.01,0.02,0.03,0.05,0.1,0.2,0.3,0.5,1"  # of the papers' noise figures


def parameter_noise(levels: str, relative: bool = False) -> Measure:
    """Noise on the decoder's parameters, absolute or relative to the rms of each tensor, unless a user chose levels."""

    def measurement(setting: Setting, labels: list[Path]) -> Measurement:
        sigmas = parse_levels(setting.noise or levels)
        return Noise(levels=sigmas, relative=relative, draws=setting.draws, seed=setting.seed, output=setting.output)

    return asks(measurement)


def noise_values(records: Sequence[Record], models: dict[str, str]) -> list[Value]:
    """The mIoU at each level in percent of the clean model's, with the interval over draws."""
    values = []
    for record in records:
        clean, *curve = record.measured["curve"]
        for point in curve:
            share = estimate(point["miou"], 100 / clean["miou"]["value"])
            values.append(Value(models[record.model], sigma_quantity(point["sigma"]), share))
    return values


def sigma_quantity(sigma: float) -> str:
    """What a level of a noise curve is called beside reported values."""
    return f"mIoU at sigma {sigma:.3g}, % of clean"


def reported_noise(curves: Mapping[str, tuple[float, Mapping[float, float]]]) -> tuple[Reported, ...]:
    """What the noise figures of ``QishuaiWen/DEPICT`` show: model -> clean mIoU, and mIoU of each sigma, on ADE20K."""
    return tuple(
        Reported(
            model,
            sigma_quantity(sigma),
            100 * miou / clean,
            "ADE20K val",
            f"~ DEPICT, assets/noise_{model.rpartition('-')[2]}.png",
        )
        for model, (clean, curve) in curves.items()
        for sigma, miou in curve.items()
    )
