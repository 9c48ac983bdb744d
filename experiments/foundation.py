"""Our study on a foundation encoder: nine decoders on the frozen tokens of one, several trainings each.

Seed by seed over all decoders; a training is measured whole before the next begins, and one whose records are there
counts as done, also without its weights. Below the study's folder each decoder has one of its own with a folder a seed,
as ``whitebox train --seeds`` makes them; records of all its trainings as one model lie above these, and tables and
figures of all decoders above those, with what became of the papers' claims (`experiments.claims`).
``results/foundation/README.md`` is what came of it.

Accuracy and calibration are of all images. What looks inside a model, or at many changed ones, takes the first
`IMAGES` of the validation split: a pass of it costs as much as several evaluations.
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
from analysis.measures.baselines import KIND as AGAINST
from analysis.measures.baselines import Wanted, against
from analysis.measures.calibration import Calibration
from analysis.measures.compare import compare
from analysis.measures.drift import Drift
from analysis.measures.evaluation import KIND as EVALUATION
from analysis.measures.evaluation import Evaluated, evaluated
from analysis.measures.extras import Stored
from analysis.measures.families import family_evaluation, family_extras, family_records
from analysis.measures.noise import Noise
from analysis.measures.orthogonality import Orthogonality
from analysis.measures.probe import Probe
from analysis.measures.rank_analysis import RankAnalysis
from analysis.measures.tradeoff import KIND as TRADEOFF
from analysis.measures.tradeoff import tradeoff
from analysis.record import Record, read_records
from analysis.show.render import plain_name, render
from experiments.claims import OF_PAIRS, Found, Key, claims_table, layers_table
from experiments.experiment import Setting
from experiments.overview import overview_table
from experiments.study import Trained
from whitebox.config import RunConfig, resolve
from whitebox.errors import require
from whitebox.runs import Family, SavedRun, ended, find_run, seed_folder

NAME = "foundation"
TITLE = "nine decoders on the frozen tokens of one foundation encoder, several trainings each"
ENCODER = "dinov2-small"
SEEDS = range(5)
REFERENCE = "linear"  # differences are to it
DECODERS = {  # rates other than the recipe's are those of a search on a held-out drive, results/foundation
    "linear": Trained("segmenter-linear", ("optim.lr=3e-3",)),
    "linear-batchnorm": Trained("segmenter-linear", ("optim.lr=3e-3", "decoder.batch_norm=true")),
    "depict-sa": Trained("depict-sa"),
    "depict-ca": Trained("depict-ca"),
    "cbsa": Trained("cbsa", ("optim.lr=3e-3",)),
    "tost": Trained("tost"),
    "crate": Trained("crate"),
    "segvit": Trained("segvit"),
    "segmenter-mask": Trained("segmenter-mask", ("optim.lr=3e-4",)),
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
IMAGES = 40
SIMILARITY = "similarity"  # `analysis.measures.similarity.KIND`; that module needs torch
EXTRAS = (Calibration(),)  # counted in the pass of an evaluation


@dataclass(frozen=True)
class Own:
    """What is measured of each training.

    Attributes:
        measurement: made of a setting.
        images: the first that it looks at; 0: it looks at weights alone.
        first: of so many seeds only; None: of all.
        baseline: also of untrained decoders, of the first seed: it is the same for all.
    """

    measurement: Callable[[Setting], Measurement]
    images: int = IMAGES
    first: int | None = None
    baseline: bool = False


OWN = (
    Own(lambda setting: RankAnalysis(seed=setting.seed), baseline=True),
    Own(lambda setting: Alignment(windows=1, seed=setting.seed), baseline=True),
    Own(lambda setting: Orthogonality(seed=setting.seed), images=0, baseline=True),
    Own(lambda _: Drift(), images=0),
    Own(lambda setting: _noise(setting, NOISE, relative=False)),
    Own(lambda setting: _noise(setting, RELATIVE_NOISE, relative=True)),
    Own(lambda setting: Ablate(seed=setting.seed), first=3),
    Own(lambda setting: Probe(patches=8_000, train_images=100, seed=setting.seed), first=1),
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
        return [own for own in OWN if own.first is None or self.seeds.index(seed) < own.first]

    def done(self, decoder: str, seed: int, setting: Setting) -> bool:
        """Whether all records of a training are there."""
        there: dict[tuple[str, str], set[str]] = {}
        for record in self.records(decoder, seed):
            there.setdefault((record.kind, record.variant), set()).add(record.data.split)
        wanted = [own.measurement(setting) for own in self.wanted(seed)]
        of_splits = (EVALUATION, *(extra.kind for extra in EXTRAS))
        return {(TRADEOFF, ""), *((each.kind, each.variant) for each in wanted)} <= there.keys() and all(
            len(there.get((kind, ""), ())) >= len(self.splits) for kind in of_splits
        )

    def records(self, decoder: str, seed: int) -> list[Record]:
        """All that was measured of a training by itself: nothing of baselines, nor beside another.

        Raises:
            RecordError: one cannot be read.
        """
        found = read_records(self.place(decoder, seed) / "records")
        return [record for record in found if "baseline" not in record.settings and record.kind != SIMILARITY]

    def measure(self, run: SavedRun, decoder: str, seed: int, setting: Setting, bar: Bar, *, again: bool) -> None:
        """All that is wanted of one training, and how alike it is to the first, where the weights of that are there.

        Raises:
            WhiteboxError: of the measurements.
        """
        from analysis.measures.similarity import Setting as Alike
        from analysis.measures.similarity import similarity

        evaluations = []
        for split in self.splits:
            with bar(f"eval: {run.name}, {split or run.data.val_split}") as advance:
                chosen = Chosen(split, setting.limit)
                evaluations.append(evaluated(run, run.name, chosen, None, advance, again=again, extras=EXTRAS))
        tradeoff(run, evaluations[0], run.folder, again=again)
        for own in self.wanted(seed):
            measurement = own.measurement(setting)
            chosen = _first(own.images, setting)
            (record,) = measure_runs(measurement, [run], chosen, bar, again=again)
            if own.baseline and seed == self.seeds[0]:
                against(measurement, run, chosen, Wanted(("untrained",)), record, bar, run.folder, again=again)
        first = self.place(decoder, self.seeds[0])
        if seed != self.seeds[0] and ended(first):
            pair = find_run(first, None, self.data_root), run
            chosen, names = _first(IMAGES, setting), (pair[0].name, run.name)
            with bar(f"similarity: {' | '.join(names)}") as advance:
                similarity(*pair, names, chosen, Alike(seed=setting.seed), advance, run.folder, again=again)

    def found(self, setting: Setting) -> Found:
        """All trainings of a decoder as one model; of what is beside untrained ones, the first.

        Raises:
            RecordError: a record cannot be read, or trainings were not measured alike.
            OutputError: the records of the families cannot be written.
        """
        found = Found({}, {}, {}, setting.seed)
        extras = {extra.kind for extra in EXTRAS}
        for decoder in self.only or DECODERS:
            by_key: dict[Key, dict[int, Record]] = {}
            for seed in self.seeds:
                for record in self.records(decoder, seed):
                    by_key.setdefault(_key(record), {})[seed] = record
            for key, own in by_key.items():
                family = Family(decoder, self.folder / decoder, tuple(range(len(own))))
                together: list[Record] = []
                if key.kind == AGAINST:
                    found.baselines.setdefault(key.variant, {})[decoder] = next(iter(own.values()))
                elif key.kind == EVALUATION:
                    members = [self._evaluated(decoder, seed, record) for seed, record in own.items()]
                    model = family_evaluation(family, members) if len(members) > 1 else members[0]
                    if len(members) > 1:
                        together = family_extras(family, members, EXTRAS)
                    found.evaluations.setdefault(key.split, {})[decoder] = model
                    together.append(model.record)
                elif key.kind not in extras or len(own) == 1:
                    together = family_records(list(own), list(own.values()), [family])
                for record in together:
                    found.records.setdefault(_key(record), {})[decoder] = record
        return found

    def show(self, setting: Setting, folder: Path | None = None, *, figures: bool = True) -> None:
        """Tables and figures of all decoders, of each beside the reference and beside untrained ones, and the claims.

        Args:
            folder: of tables and figures; None: the study's.

        Raises:
            RecordError, OutputError: see `found`.
        """
        folder, found = folder or self.folder, self.found(setting)
        together = [list(each.values()) for each in (*found.records.values(), *found.baselines.values())]
        for models in found.evaluations.values():
            if REFERENCE in models:
                reference = models[REFERENCE]
                others = [model for decoder, model in models.items() if decoder != REFERENCE]
                together.append([compare(reference, each, self.folder, setting.seed, extras=EXTRAS) for each in others])
        trainings = [self.place(*training) for training in self.trainings()]
        together.append([record for place in trainings for record in read_records(place / "records", SIMILARITY)])
        for group in filter(None, together):
            render(group, folder, plain_name(group), figures=figures)
        shown = {
            "overview": overview_table(found),
            "claims": claims_table(found),
            "claims-pairs": claims_table(found, OF_PAIRS),
            "claims-layers": layers_table(found),
        }
        for name, table in shown.items():
            table.write(folder / "tables" / name)

    def _evaluated(self, decoder: str, seed: int, record: Record) -> Evaluated:
        """An evaluation out of its record and counts, with what else was counted."""
        folder = self.place(decoder, seed) / "records"
        also = []
        for extra in EXTRAS:
            (own,) = (each for each in read_records(folder, extra.kind) if each.data == record.data)
            also.append(Stored(own, (folder / own.file_name).with_suffix(".npz")))
        return Evaluated(record.model, record, (folder / record.file_name).with_suffix(".npz"), tuple(also))


def _first(images: int, setting: Setting) -> Chosen:
    """So many images, or fewer where fewer were asked for; 0: none is looked at."""
    return Chosen(limit=min(images, setting.limit or images) or None)


def _key(record: Record) -> Key:
    """What must be the same in records that are shown together."""
    return Key(record.kind, record.variant, record.data.split)
