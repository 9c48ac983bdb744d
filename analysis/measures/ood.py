"""Does a model know what it does not know? Scores of patches of a class it was never taught, and of corrupted photos.

Higher is more foreign; z_k are the logits of the classes that were taught, p their softmax::

    max logit   -max_k z_k                             Hendrycks et al., arXiv 1911.11132
    entropy     -sum_k p_k ln p_k
    energy      -ln sum_k exp z_k                      Liu et al., NeurIPS 2020
    distance    |z - Pi z| / |z|, z a token after the last layer (after LayerNorm without gain and bias), Pi the
                projection on the leading eigenvectors of the second moment of training tokens, not centred
                (the residual of ViM, Wang et al., CVPR 2022, without its logit)

**Held-out classes**: a training with ``data.held_out=[Bicyclist]`` ignores their pixels; patches of them are foreign,
all other labelled ones known. **Corrupted photos**: the mean score of a photo; corrupted ones are foreign, clean ones
known.

Layout of ``measured``, ESTIMATE as in `analysis.maths.intervals.estimates`::

    {"held_out": ["Bicyclist"], "known": 130000, "foreign": 1200, "stage": "decoder.layers.2", "directions": 10,
     "fitted": {"images": 100, "split": "train"},
     "scores": [{"name": "max logit", "auroc": ESTIMATE, "ap": ESTIMATE, "fpr95": ESTIMATE, "roc": [0.0, ..., 1.0]},
                ...],
     "corruptions": [{"kind": "fog", "severity": 3, "scores": [{"name": ..., "auroc": ..., ...}, ...]}, ...],
     "notes": [...]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from analysis.measurement import Measurement, Progress, Seed
from analysis.record import Answer
from whitebox.errors import ConfigError, require
from whitebox.names import listed

if TYPE_CHECKING:
    from analysis.consumed import Images
    from whitebox.runs import Run, SavedRun


@dataclass(frozen=True, kw_only=True)
class OOD(Measurement):
    """Does a model know what it does not know? A class that was held out of its training, and corrupted photos.

    \b
    whitebox train depict-sa-tiny --dataset camvid data.held_out=[Bicyclist]
    whitebox ood results/depict-sa-tiny-camvid
    whitebox ood results/depict-sa-tiny-camvid --corruptions fog,gaussian_noise --severity 1:5
    """

    kind = "ood"
    held_out: Annotated[
        str | None, Option(help="Classes that are foreign, with commas. Default: those held out of the training.")
    ] = None
    corruptions: Annotated[
        str | None, Option(help="Also corrupted photos: all, or names of `whitebox robustness --corruptions`.")
    ] = None
    severity: Annotated[str, Option(help="Of the corruptions: 3, 1:5 or 1,3,5.")] = "3"
    directions: Annotated[
        int | None, Option(min=1, help="Of the principal subspace. Default: the number of classes that were taught.")
    ] = None
    train_images: Annotated[int, Option(min=1, help="Images that give the subspace, at most, evenly spaced.")] = 100
    seed: Seed = 0

    def __post_init__(self) -> None:
        from analysis.maths.corruption_names import parse_kinds, parse_severities

        require(self.train_images >= 1, "--train-images", self.train_images, "it must be at least 1")
        require(
            self.directions is None or self.directions >= 1, "--directions", self.directions, "it must be at least 1"
        )
        parse_severities(self.severity)
        if self.corruptions is not None:
            parse_kinds(self.corruptions)

    @property
    def changes(self) -> list[tuple[str, int]]:
        """Corruptions with their severities."""
        from analysis.maths.corruption_names import parse_kinds, parse_severities

        kinds = () if self.corruptions is None else parse_kinds(self.corruptions)
        return [(kind, severity) for kind in kinds for severity in parse_severities(self.severity)]

    @property
    def seeds(self) -> Mapping[str, int]:
        """Of the corruptions."""
        return {"corruptions": self.seed}

    def foreign(self, run: SavedRun | Run) -> tuple[str, ...]:
        """The classes that are foreign.

        Raises:
            ConfigError: unknown, or too few are left; or nothing is foreign.
        """
        taught_without = run.saved.get("data", {}).get("held_out") or ()
        names = tuple(taught_without) if self.held_out is None else listed(self.held_out)
        for name in names:
            require(name in run.classes, "--held-out", name, f"{run.name} has {', '.join(run.classes[:30])}")
        require(len(run.classes) - len(names) >= 2, "--held-out", ",".join(names), "two classes at least must be left")
        if not names and not self.changes:
            raise ConfigError(
                f"Nothing is foreign to {run.name}: train with data.held_out=[CLASS], or give --corruptions."
            )
        return names

    def settings(self, run: SavedRun | Run) -> Mapping[str, Any]:
        """What is foreign, and what gives the subspace."""
        from analysis.maths.corruption_names import package_version

        found: dict[str, Any] = {
            "held_out": list(self.foreign(run)),
            "directions": self.directions,
            "train_images": self.train_images,
            "fitted": asdict(self.fitted(run).data),
            "changes": [list(each) for each in self.changes],
        }
        return {**found, "imagecorruptions": package_version()} if self.changes else found

    def fitted(self, run: SavedRun | Run) -> Images:
        """The training images, of which some give the subspace.

        Raises:
            ConfigError: the dataset has none.
        """
        from analysis.measures.probe import training_images

        return training_images(run)

    def measure(self, run: Run, consumed: Images, advance: Progress) -> Answer:
        """Scores of patches, and of whole photos; memory grows by a few numbers a photo.

        Raises:
            ConfigError: more directions than tokens have dimensions.
            DataError: an image cannot be read.
            ModelError: tokens that are NaN or infinite.
        """
        from analysis.measures.foreign import detected

        return Answer(measured=detected(self, run, consumed, advance), n=len(consumed))
