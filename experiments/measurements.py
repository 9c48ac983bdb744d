"""Measurements that papers share, in the shape `experiments.experiment.Experiment` takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from analysis.maths.perturbation import parse_levels
from analysis.measures import attention as attention_maps
from analysis.measures import compare as comparison
from analysis.measures import orthogonality, pca, rank_analysis, tradeoff
from analysis.measures import profile as costs
from analysis.measures.images import Progress, Samples
from analysis.measures.noise import Noise, measure_noise
from analysis.record import Record
from analysis.show.tables import Estimate, estimate, percent
from experiments.experiment import Measure, Reported, Setting, Value
from whitebox.data.readers import FileSource
from whitebox.runs import Run

MEMORY = 4_000_000_000  # bytes of tokens kept for a noise sweep; more go to a temporary file


def each_run(measure: Callable[[Run, Setting, Path, Progress], Record]) -> Measure:
    """One record a run."""

    def measured(runs: Sequence[Run], setting: Setting, folder: Path, advance: Progress) -> list[Record]:
        return [measure(run, setting, folder, advance) for run in runs]

    return measured


def chosen_photos(run: Run, setting: Setting, folder: Path) -> tuple[list[Path], list[Path]]:
    """Photos spread over a split, and their labels; images that have no file are written to ``folder``/photos."""
    samples = Samples(run, setting.split, setting.limit)
    count = min(setting.photos, len(samples))
    chosen = [index * len(samples) // count for index in range(count)]
    source = samples.dataset.source
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


@each_run
def principal_components(run: Run, setting: Setting, folder: Path, advance: Progress) -> Record:
    """Components of the tokens of some photos, and the segmentation they give."""
    photos, labels = chosen_photos(run, setting, folder)
    return pca.measure(run, photos, labels, advance=advance)


@each_run
def attention(run: Run, setting: Setting, folder: Path, advance: Progress) -> Record:
    """Attention from class embeddings to the patches of some photos, last layer."""
    photos, _ = chosen_photos(run, setting, folder)
    return attention_maps.measure(run, photos, attention_maps.Choice(), advance)


@each_run
def attention_masks(run: Run, setting: Setting, folder: Path, advance: Progress) -> Record:
    """Masks that attention makes (attention-to-mask) over some photos, of each stage and of their sum."""
    photos, _ = chosen_photos(run, setting, folder)
    choice = attention_maps.Choice(masks=True, layer="all", colours="unit")
    return attention_maps.measure(run, photos, choice, advance)


@each_run
def orthogonality_of_bases(run: Run, setting: Setting, folder: Path, advance: Progress) -> Record:
    """Heat maps of subspaces and class embeddings."""
    return orthogonality.measure(run, seed=setting.seed, advance=advance)


@each_run
def coding_rates(run: Run, setting: Setting, folder: Path, advance: Progress) -> Record:
    """Coding rates along the layers."""
    return rank_analysis.measure(run, split=setting.split, limit=setting.limit, seed=setting.seed, advance=advance)


@each_run
def accuracies(run: Run, setting: Setting, folder: Path, advance: Progress) -> Record:
    """Accuracies and the mIoU; an evaluation that is there already is taken."""
    return comparison.evaluated(run, run.name, setting.split, setting.limit, folder, advance).record


def miou_values(records: Sequence[Record], models: dict[str, str]) -> list[Value]:
    """The mIoU of evaluations, percent."""
    return [
        Value(models[record.model], "mIoU (%)", percent(record.measured["miou"]))
        for record in records
        if record.kind == "eval"
    ]


@each_run
def tradeoffs(run: Run, setting: Setting, folder: Path, advance: Progress) -> Record:
    """Accuracy and cost of a run."""
    evaluation = comparison.evaluated(run, run.name, setting.split, setting.limit, folder, advance).record
    return tradeoff.measure(run, evaluation)


def tradeoff_values(records: Sequence[Record], models: dict[str, str]) -> list[Value]:
    """mIoU, percent, GFLOPs of the decoder's blocks, and GMACs of the whole model."""
    values = []
    for record in records:
        blocks, model = (costs.stored_cost(record, scope) for scope in ("decoder blocks", "model"))
        values.append(Value(models[record.model], "mIoU (%)", percent(record.measured["miou"])))
        values.append(Value(models[record.model], "decoder GFLOPs", Estimate(blocks.gflops)))
        values.append(Value(models[record.model], "model GMACs", Estimate(1e-9 * model.macs)))
    return values


NOISE_LEVELS = "0.001,0.002,0.003,0.005,0.01,0.02,0.03,0.05,0.1,0.2,0.3,0.5,1"  # of the papers' noise figures


def parameter_noise(levels: str, relative: bool = False) -> Measure:
    """Noise on the decoder's parameters, absolute or relative to the rms of each tensor, unless a user chose levels."""

    def measure(run: Run, setting: Setting, folder: Path, advance: Progress) -> Record:
        sigmas = parse_levels(setting.noise or levels)
        noise = Noise(levels=sigmas, relative=relative, draws=setting.draws, seed=setting.seed)
        return measure_noise(
            run, noise, folder / "sweeps", split=setting.split, limit=setting.limit, memory=MEMORY, advance=advance
        )

    return each_run(measure)


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
