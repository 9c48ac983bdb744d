"""Our study on a foundation encoder: nine decoders on the frozen tokens of one, several trainings each.

Seed by seed over all decoders; a training is measured whole before the next begins, and one whose records are there
counts as done, also without its weights. Below the study's folder each decoder has one of its own with a folder a seed,
as ``whitebox train --seeds`` makes them; records of all its trainings as one model lie above these, and tables and
figures of all decoders above those. ``results/foundation/README.md`` is what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from analysis.ask import Bar, measure_runs
from analysis.consumed import Chosen
from analysis.maths.levels import parse_levels
from analysis.measurement import Measurement
from analysis.measures.ablate import Ablate
from analysis.measures.alignment import Alignment
from analysis.measures.baselines import Wanted, against
from analysis.measures.compare import compare
from analysis.measures.evaluation import KIND as EVALUATION
from analysis.measures.evaluation import Evaluated, evaluated
from analysis.measures.families import family_evaluation, family_records
from analysis.measures.noise import Noise
from analysis.measures.orthogonality import Orthogonality
from analysis.measures.probe import Probe
from analysis.measures.rank_analysis import RankAnalysis
from analysis.record import Record, read_records
from analysis.show.render import render
from experiments.experiment import Setting
from experiments.study import Trained
from whitebox.config import RunConfig, resolve
from whitebox.errors import require
from whitebox.runs import Family, SavedRun, seed_folder

NAME = "foundation"
TITLE = "nine decoders on the frozen tokens of one foundation encoder, several trainings each"
ENCODER = "dinov2-small"
SEEDS = range(5)
REFERENCE = "linear"  # differences are to it
DECODERS = {
    "linear": Trained("segmenter-linear", ("optim.lr=3e-3",)),
    "linear-batchnorm": Trained("segmenter-linear", ("optim.lr=3e-3", "decoder.batch_norm=true")),
    "depict-sa": Trained("depict-sa"),
    "depict-ca": Trained("depict-ca"),
    "cbsa": Trained("cbsa"),
    "tost": Trained("tost"),
    "crate": Trained("crate"),
    "segvit": Trained("segvit"),
    "segmenter-mask": Trained("segmenter-mask"),
}
SETTINGS: Mapping[str, tuple[str, ...]] = {  # of datasets beside their own; others are trained as they say
    "camvid": (
        "data.resize=360",
        "data.crop=252",
        "data.views=4",
        "data.view_seed=0",
        "inference.window=252",
        "inference.stride=252",
        "train.eval_every=10",
    )
}
SPLITS: Mapping[str, tuple[str, ...]] = {"camvid": ("val", "test")}  # of others the validation split alone
NOISE = "0.01,0.03,0.1,0.3,1"
RELATIVE_NOISE = "0.1,0.3,1,3,10"


@dataclass(frozen=True)
class Own:
    """What is measured of each training.

    Attributes:
        measurement: made of a setting.
        images: whether it looks at images, not at weights alone.
        first: of seeds below this one only; None: of all.
        baseline: also of untrained decoders, of the first seed: it is the same for all.
    """

    measurement: Callable[[Setting], Measurement]
    images: bool = True
    first: int | None = None
    baseline: bool = False


OWN = (
    Own(lambda setting: RankAnalysis(seed=setting.seed), baseline=True),
    Own(lambda setting: Alignment(windows=1, seed=setting.seed), baseline=True),
    Own(lambda setting: Orthogonality(seed=setting.seed), images=False, baseline=True),
    Own(lambda setting: _noise(setting, NOISE, relative=False)),
    Own(lambda setting: _noise(setting, RELATIVE_NOISE, relative=True)),
    Own(lambda setting: Ablate(seed=setting.seed), first=3),
    Own(lambda setting: Probe(seed=setting.seed), first=3, baseline=True),
)


def _noise(setting: Setting, levels: str, relative: bool) -> Measurement:
    return Noise(
        levels=parse_levels(setting.noise or levels),
        relative=relative,
        draws=setting.draws,
        seed=setting.seed,
        output=setting.output,
    )


@dataclass(frozen=True, kw_only=True)
class Foundation:
    """The study on one dataset.

    Attributes:
        size: of the decoders, as in a model's name.
        folder: of all of it.
        overrides: for all trainings, after the study's own.
        only: these decoders; empty: all.

    Raises:
        ConfigError: it has no such decoder.
    """

    dataset: str
    encoder: str
    size: str
    seeds: range
    folder: Path
    overrides: tuple[str, ...] = ()
    data_root: Path | None = None
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for decoder in self.only:
            require(decoder in DECODERS, "--decoder", decoder, f"choose {', '.join(DECODERS)}")

    @property
    def splits(self) -> tuple[str | None, ...]:
        """What is evaluated."""
        return SPLITS.get(self.dataset, (None,))

    def trainings(self) -> Iterator[tuple[str, int]]:
        """Decoder and seed, in the order in which they are trained."""
        return ((decoder, seed) for seed in self.seeds for decoder in self.only or DECODERS)

    def place(self, decoder: str, seed: int) -> Path:
        """The folder of a training."""
        return seed_folder(self.folder / decoder, seed)

    def chosen(self, decoder: str) -> list[str]:
        """The overrides of a decoder's trainings."""
        return [*SETTINGS.get(self.dataset, ()), *DECODERS[decoder].overrides, "encoder.frozen=true", *self.overrides]

    def model(self, decoder: str) -> str:
        """As `whitebox models` lists it."""
        return f"{DECODERS[decoder].model}-{self.size}"

    def config(self, decoder: str) -> RunConfig:
        """What a decoder is trained with, but for the seed.

        Raises:
            ConfigError: an unknown dataset, encoder or key, or a value that cannot be.
        """
        return resolve(
            self.model(decoder),
            self.dataset,
            self.chosen(decoder),
            self.data_root,
            encoder=self.encoder,
            recipe="frozen",
        )

    def wanted(self, seed: int) -> list[Own]:
        """What is measured of the trainings of a seed."""
        return [own for own in OWN if own.first is None or seed < own.first]

    def done(self, decoder: str, seed: int, setting: Setting) -> bool:
        """Whether all records of a training are there."""
        records = self.records(decoder, seed)
        there = {(record.kind, record.variant) for record in records}
        splits = {record.data.split for record in records if record.kind == EVALUATION}
        wanted = [own.measurement(setting) for own in self.wanted(seed)]
        return len(splits) >= len(self.splits) and {(each.kind, each.variant) for each in wanted} <= there

    def records(self, decoder: str, seed: int) -> list[Record]:
        """All that was measured of a training, and of it beside baselines.

        Raises:
            RecordError: one cannot be read.
        """
        found = read_records(self.place(decoder, seed) / "records")
        return [record for record in found if "baseline" not in record.settings]

    def measure(self, run: SavedRun, decoder: str, seed: int, setting: Setting, bar: Bar, *, again: bool) -> None:
        """All that is wanted of one training.

        Raises:
            WhiteboxError: of the measurements.
        """
        for split in self.splits:
            with bar(f"eval: {run.name}, {split or run.data.val_split}") as advance:
                evaluated(run, run.name, Chosen(split, setting.limit), None, advance, again=again)
        for own in self.wanted(seed):
            measurement = own.measurement(setting)
            chosen = Chosen(limit=setting.limit) if own.images else Chosen()
            (record,) = measure_runs(measurement, [run], chosen, bar, again=again)
            if own.baseline and seed == SEEDS[0]:
                against(measurement, run, chosen, Wanted(("untrained",)), record, bar, run.folder, again=again)

    def show(self, setting: Setting, *, figures: bool = True) -> None:
        """All trainings of a decoder as one model, all models together, and each beside the reference.

        Raises:
            RecordError: a record cannot be read, or trainings were not measured alike.
            OutputError: tables and figures cannot be written.
        """
        kinds: dict[object, list[Record]] = {}
        evaluations: dict[str, dict[str, Evaluated]] = {}
        for decoder in self.only or DECODERS:
            by_seed = {seed: self.records(decoder, seed) for seed in self.seeds}
            family = Family(decoder, self.folder / decoder, tuple(range(len(self.seeds))))
            for key in dict.fromkeys(_key(record) for records in by_seed.values() for record in records):
                found = {seed: record for seed, records in by_seed.items() for record in records if _key(record) == key}
                own = Family(family.name, family.folder, tuple(range(len(found))))
                if key[0] == EVALUATION:
                    members = [self._evaluated(decoder, seed, record) for seed, record in found.items()]
                    together = family_evaluation(own, members) if len(members) > 1 else members[0]
                    evaluations.setdefault(str(key[2]), {})[decoder] = together
                    record = together.record
                else:
                    (record,) = family_records(list(found), list(found.values()), [own])
                kinds.setdefault(key, []).append(record)
        for records in kinds.values():
            render(records, self.folder, figures=figures)
        for models in evaluations.values():
            if REFERENCE in models:
                others = [model for decoder, model in models.items() if decoder != REFERENCE]
                differences = [compare(models[REFERENCE], other, self.folder, setting.seed) for other in others]
                if differences:
                    render(differences, self.folder, figures=figures)

    def _evaluated(self, decoder: str, seed: int, record: Record) -> Evaluated:
        """An evaluation out of its record and counts."""
        path = self.place(decoder, seed) / "records" / record.file_name
        return Evaluated(record.model, record, path.with_suffix(".npz"))


def _key(record: Record) -> tuple[object, ...]:
    """What must be the same in records that are shown together."""
    return record.kind, record.variant, record.data.split
