"""All measurements by name, and what they have in common.

A measurement is a frozen dataclass in ``analysis/measures``. Its fields are its options: the command line, the settings
of its records, and its use by experiments follow from them. Its module is read for every ``--help``, so what is heavy
is imported inside its functions. What is shown of its records is a module in ``analysis/show``.
docs/new_measurement.md has one from beginning to end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from typer import Option

from analysis.record import Answer, Question, describe_weights

if TYPE_CHECKING:
    from analysis.consumed import Chosen, Consumed
    from whitebox.runs import Run, SavedRun

Progress = Callable[[int, int], None]  # done, of how many
Seed = Annotated[int, Option(min=0, help="Of everything random, and of the bootstrap.")]


class Kind(NamedTuple):
    """Where a kind of record comes from, and what shows it.

    Attributes:
        shown: module with its ``tables`` and ``figures``, see `analysis.show.render`.
        measured: ``module:object``, its `Measurement`; "": a command of its own makes such records.
    """

    shown: str
    measured: str = ""


KINDS: dict[str, Kind] = {
    "rank-analysis": Kind("analysis.show.rank_analysis", "analysis.measures.rank_analysis:RankAnalysis"),
    "orthogonality": Kind("analysis.show.orthogonality", "analysis.measures.orthogonality:Orthogonality"),
    "drift": Kind("analysis.show.drift", "analysis.measures.drift:Drift"),
    "attention": Kind("analysis.show.attention", "analysis.measures.attention:Attention"),
    "pca": Kind("analysis.show.pca", "analysis.measures.pca:PCA"),
    "alignment": Kind("analysis.show.alignment", "analysis.measures.alignment:Alignment"),
    "ablate": Kind("analysis.show.ablate", "analysis.measures.ablate:Ablate"),
    "probe": Kind("analysis.show.probe", "analysis.measures.probe:Probe"),
    "ood": Kind("analysis.show.ood", "analysis.measures.ood:OOD"),
    "against": Kind("analysis.show.against"),
    "profile": Kind("analysis.show.profile"),
    "parameter-noise": Kind("analysis.show.noise"),
    "input-noise": Kind("analysis.show.noise"),
    "corruptions": Kind("analysis.show.corruptions"),
    "eval": Kind("analysis.show.evaluation"),
    "boundary": Kind("analysis.show.boundary"),
    "calibration": Kind("analysis.show.calibration"),
    "confusion": Kind("analysis.show.confusion"),
    "images": Kind("analysis.show.images"),
    "variance": Kind("analysis.show.variance"),
    "noise-variance": Kind("analysis.show.variance"),
    "power": Kind("analysis.show.power"),
    "compare": Kind("analysis.show.compare"),
    "similarity": Kind("analysis.show.similarity"),
    "tradeoff": Kind("analysis.show.tradeoff"),
}


def loaded(place: str) -> Any:
    """The object at ``module:object``."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


class Quantity(NamedTuple):
    """One number of an answer, which may be held against what an untrained network, say, has in its place.

    Attributes:
        name: with its unit.
        place: a layer, or what else it is of.
        position: of the place along the layers; None: it has none.
        stored: ``{"value", "low", "high"}``.
        factor: to be shown in the unit.
    """

    name: str
    place: str
    position: int | None
    stored: Mapping[str, Any]
    factor: float = 1


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What can be asked of a run. A subclass names its kind, has its options as fields, and measures."""

    kind: ClassVar[str]
    takes: ClassVar[str] = "images"  # or photos; what the command line asks for

    def consumes(self, run: SavedRun | Run, chosen: Chosen) -> Consumed:
        """What of the user's choice is read.

        Raises:
            WhiteboxError: it is not there, or does not fit.
        """
        from analysis.consumed import Images, Photos

        return (Images if self.takes == "images" else Photos)(run, chosen)

    @property
    def variant(self) -> str:
        """A short word for file names where the options are not the usual ones."""
        return ""

    def settings(self, run: SavedRun | Run) -> Mapping[str, Any]:
        """All options that change the numbers, and constants behind them."""
        return {key: value for key, value in asdict(self).items() if key != "seed"}

    @property
    def seeds(self) -> Mapping[str, int]:
        """What is random."""
        return {"bootstrap": self.seed} if hasattr(self, "seed") else {}

    def question(self, run: SavedRun | Run, consumed: Consumed) -> Question:
        """Put to a run."""
        return Question(
            kind=self.kind,
            model=run.name,
            data=consumed.data,
            weights=describe_weights(run.weights),
            variant="-".join(word for word in (self.variant, consumed.word) if word),
            seeds=dict(self.seeds),
            settings={**consumed.settings, **self.settings(run)},
        )

    def quantities(self, measured: Mapping[str, Any]) -> list[Quantity]:
        """What of an answer can be held against baselines, see `analysis.measures.baselines`; none: it has none."""
        return []

    def measure(self, run: Run, consumed: Any, advance: Progress) -> Answer:
        """Answer it.

        Args:
            consumed: what `consumes` gave.
            advance: called with how much is done, of how much.
        """
        raise NotImplementedError
