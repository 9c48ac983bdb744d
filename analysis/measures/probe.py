"""What do layers know? Readers of the tokens of each layer, and the geometry of classes in them.

Tokens are the patches of the windows of evaluation that have a label, after LayerNorm without gain and bias
(``normed``) or as they are (``raw``). Readers (`analysis.maths.probes`) are fitted on patches of training images, as
many from each image, and read every labelled patch of the images that are measured; what the decoder itself says of
these patches stands beside them. Geometry (`analysis.maths.collapse`) and rates are those of a sample of the patches
that are measured. The energy of a subspace is that of the tokens as its layer sees them,

    energy of head h in class c = sum_{i in c} |Pi_h z_i|^2 / sum_{i in c} |z_i|^2,

Pi_h the orthogonal projection on the span of U_h; a random subspace of that dimension would hold P / D.

Layout of ``measured``, ESTIMATE as in `analysis.maths.intervals.estimates`, classes in the order of ``classes``::

    {"classes": ["Sky", ...], "fitted": {"patches": 20000, "images": 367}, "judged": {"patches": ..., "sample": ...},
     "layers": [{"name": "decoder.layers.0", "position": 1, "width": 192, "miou": ESTIMATE, "iou": [ESTIMATE, ...],
                 "strength": 0.001, "nearest": ESTIMATE, "nmi": ..., "ari": ..., "nc1": ..., "lengths": ...,
                 "angles": ..., "rate": ..., "reduction": ..., "class_rates": [ESTIMATE, ...]}, ...],
     "output": {"miou": ESTIMATE, "iou": [ESTIMATE, ...]},
     "energies": [{"name": "decoder.layers.0", "position": 1, "random": [0.33, ...],
                   "shares": [[ESTIMATE of a head, ...] of a class, ...]}, ...],
     "notes": [...]}

Layers are named and counted as in `analysis.measures.rank_analysis`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from analysis.maths.conventions import EPS, RESAMPLES, Convention
from analysis.measurement import Measurement, Progress, Quantity, Seed
from analysis.record import Answer
from whitebox.errors import ConfigError, require

if TYPE_CHECKING:
    from analysis.consumed import Images
    from whitebox.runs import Run, SavedRun


@dataclass(frozen=True, kw_only=True)
class Probe(Measurement):
    """What do layers know? Linear probes, clusters, neural collapse, rates and energies of classes, layer by layer.

    \b
    whitebox probe results/depict-sa-tiny-camvid results/segmenter-mask-tiny-camvid --encoder-layers
    whitebox probe results/depict-sa-tiny-camvid --split test --patches 50000
    """

    kind = "probe"
    encoder: Annotated[bool, Option("--encoder-layers", help="Also the encoder's layers.")] = False
    layers: Annotated[
        str | None, Option(help="Only these, with wildcards: decoder.input,decoder.layers.*,encoder.layers.11.")
    ] = None
    tokens: Annotated[str, Option(help="normed (after LayerNorm) or raw.")] = "normed"
    patches: Annotated[
        int, Option(min=1, help="Labelled patches to fit on, and as many to measure geometry on, about.")
    ] = 20_000
    train_images: Annotated[int, Option(min=1, help="Images to fit on, at most, evenly spaced.")] = 400
    eps: Annotated[float, Option(help="Distortion of rates; the formula has its square.")] = EPS
    seed: Seed = 0

    def __post_init__(self) -> None:
        for name in ("patches", "train_images"):
            require(
                getattr(self, name) >= 1, f"--{name}".replace("_", "-"), getattr(self, name), "it must be at least 1"
            )
        assert self.rule  # refuses what is impossible

    @property
    def rule(self) -> Convention:
        """Which tokens these are."""
        return Convention(tokens=self.tokens, eps=self.eps)

    @property
    def variant(self) -> str:
        """What differs from the usual tokens."""
        return "-".join(
            word
            for word in ("" if self.tokens == "normed" else self.tokens, f"eps_{self.eps:g}" * (self.eps != EPS))
            if word
        )

    @property
    def seeds(self) -> Mapping[str, int]:
        """Of the bootstrap, of which patches are taken, and of the starts of k-means."""
        return {"bootstrap": self.seed, "patches": self.seed, "clusters": self.seed}

    def settings(self, run: SavedRun | Run) -> Mapping[str, Any]:
        """The options, and what is fitted on."""
        layers = [] if self.layers is None else self.layers.split(",")
        means = {} if run.data.mean_over == "occurring" else {"mean_over": run.data.mean_over}
        return {
            **super().settings(run),
            **means,
            "layers": layers,
            "fitted": asdict(self.fitted(run).data),
            "resamples": RESAMPLES,
        }

    def fitted(self, run: SavedRun | Run) -> Images:
        """The training images, of which some are fitted on.

        Raises:
            ConfigError: the dataset has none.
            DataError: they are not there.
        """
        return training_images(run)

    def quantities(self, measured: Mapping[str, Any]) -> list[Quantity]:
        """What readers find in each layer, and how classes lie in it."""
        shown = (
            ("miou", "linear probe, mIoU (%)", 100.0),
            ("nearest", "nearest class mean, mIoU (%)", 100.0),
            ("nmi", "NMI of clusters", 1.0),
            ("nc1", "NC1", 1.0),
            ("reduction", "rate reduction (nats)", 1.0),
        )
        return [
            Quantity(title, layer["name"], layer["position"], layer[key], factor)
            for key, title, factor in shown
            for layer in measured["layers"]
        ]

    def measure(self, run: Run, consumed: Images, advance: Progress) -> Answer:
        """The layers of a run on images, windowed as for evaluation; memory grows by a few numbers an image.

        Raises:
            ConfigError: an unknown layer.
            DataError: too few labelled patches, or an image cannot be read.
            ModelError: tokens that are NaN or infinite.
        """
        from analysis.measures.layer_probes import probed

        patterns = [] if self.layers is None else self.layers.split(",")
        return Answer(measured=probed(self, run, consumed, patterns, advance), n=len(consumed))


def training_images(run: SavedRun | Run) -> Images:
    """What something is fitted on.

    Raises:
        ConfigError: the dataset has none.
        DataError: they are not there.
    """
    from analysis.consumed import Chosen, Images

    if not run.data.train_split:
        raise ConfigError(f"{run.data.name} is for evaluation only: there are no training images to fit on.")
    return Images(run, Chosen(split=run.data.train_split))
