"""How much information tokens hold along the layers of a model: coding rates, ranks, and what class embeddings span.

Of the patch tokens after every layer: coding rate R(Z), rate reduction with the ground truth, eigen-spectrum and ranks,
and the share of zeros, which is what CRATE's ISTA is for (arXiv 2306.01129, figure 3, has the share of non-zeros);
the rate of the tokens of every layer projected on the subspaces of every layer, R(P_l^T Z_j), and its ratio to R of
the same tokens; of the class embeddings R(Q) and the principal angles to the leading directions of the tokens. The
quantities themselves are in `analysis.maths.coding_rate`.

Sources: arXiv 2411.03033 (DEPICT), figure 7 (projected rates) and its appendix (R(Z), R(Q)), whose constants are not
published. Those of the released scripts are presets: ``crate``, ``vis_utils/coding_rate.py`` of
``Ma-Lab-Berkeley/CRATE``; ``cbsa``, ``coding_rate.py`` of ``QishuaiWen/CBSA``. Both measure the output of a layer's
projection, so tokens after the layer's LayerNorm, and write 0.01 where the formula has eps^2.

Stages. Z_0 enters the first decoder layer, Z_l leaves layer l. Where a decoder compresses patch tokens and class
embeddings together, the first are Z and the others Q; where class embeddings attend to tokens (``cross_layers``), Q_0
is what was learned and Q_l leaves cross-attention l. A subspace of ``layers`` is measured on Z, one of ``cross_layers``
on Q, which those layers project without a LayerNorm (as in the official code), whatever the convention.

Layout of ``measured``, ESTIMATE as in `analysis.maths.intervals.estimates`, positions counted in layers from Z_0::

    {"layers": [{"name": "decoder.layers.0", "position": 1, "width": 192, "rate": ESTIMATE, "reduction": ...,
                 "effective_rank": ..., "stable_rank": ..., "numerical_rank": ..., "components": [ESTIMATE, ...],
                 "zeros": ESTIMATE,
                 "spectrum": {"component": [1, 2, ...], "value": [...], "low": [...], "high": [...]}}, ...],
     "projections": [{"tokens": "Z", "subspaces": [{"name": "decoder.layers.0", "position": 1, "heads": 3}, ...],
                      "positions": [0, 1, ...], "rate": [[ESTIMATE of subspace l, stage j], ...], "ratio": ...}, ...],
     "classes": [{"name": "decoder.layers.0", "position": 1, "rate": ESTIMATE, "overlap": ESTIMATE}, ...],
     "angles": {"classes": 11, "width": 192, "overlap": ESTIMATE, "degrees": [ESTIMATE, ...], "random": [...]} or null,
     "notes": [...]}

Shapes: B windows, N tokens, D width, H heads, P subspace dimension, K classes, M entries kept of a spectrum.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from analysis.maths.conventions import DRAWS, RESAMPLES, Convention, convention
from analysis.measurement import Measurement, Progress, Quantity, Seed
from analysis.record import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from analysis.consumed import Images
    from whitebox.runs import Run, SavedRun


@dataclass(frozen=True, kw_only=True)
class RankAnalysis(Measurement):
    """How much do tokens hold along the layers? Coding rates, rate reduction, projected rates, spectra and ranks.

    Defaults: --tokens normed --normalise none --eps 0.1 --prefactor subspace --over-heads sum --which patches.

    \b
    whitebox rank-analysis results/depict-sa-tiny-camvid results/segmenter-mask-tiny-camvid --limit 100
    whitebox rank-analysis results/depict-ca-tiny-camvid --preset crate --encoder-layers
    """

    kind = "rank-analysis"
    preset: Annotated[str | None, Option(help="Conventions of a released script: crate, cbsa.")] = None
    tokens: Annotated[str | None, Option(help="normed (after LayerNorm) or raw.")] = None
    normalise: Annotated[str | None, Option(help="Scale to length 1: none, token, projected.")] = None
    eps: Annotated[float | None, Option(help="Distortion; the formula has its square. Default: 0.1.")] = None
    prefactor: Annotated[str | None, Option(help="d of projected rates: subspace (P) or width (D).")] = None
    heads: Annotated[str | None, Option("--over-heads", help="sum or mean of their rates.")] = None
    which: Annotated[str | None, Option(help="patches, or all: with class embeddings compressed along.")] = None
    encoder: Annotated[bool, Option("--encoder-layers", help="Also the encoder's layers.")] = False
    layers: Annotated[
        str | None, Option(help="Only these, with wildcards: decoder.input,decoder.layers.*,encoder.layers.11.")
    ] = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        assert self.rule  # refuses what is impossible

    @cached_property
    def rule(self) -> Convention:
        """A preset, with the changes that were asked for."""
        words = ("tokens", "normalise", "eps", "prefactor", "heads", "which")
        return convention(self.preset, **{word: getattr(self, word) for word in words})

    @property
    def variant(self) -> str:
        """The convention, where it is not the usual one."""
        return "" if self.rule == Convention() else self.rule.name

    @property
    def seeds(self) -> Mapping[str, int]:
        """Of the bootstrap over images, and of the random subspaces."""
        return {"bootstrap": self.seed, "random": self.seed}

    def settings(self, run: SavedRun | Run) -> Mapping[str, Any]:
        """The convention rather than the options that gave it."""
        return {
            "convention": asdict(self.rule),
            "encoder": self.encoder,
            "layers": self._patterns,
            "resamples": RESAMPLES,
            "draws": DRAWS,
        }

    @property
    def _patterns(self) -> list[str]:
        return [] if self.layers is None else self.layers.split(",")

    def quantities(self, measured: Mapping[str, Any]) -> list[Quantity]:
        """Rates and ranks of each stage, and R^c of the tokens that enter and leave each layer on its own subspaces."""
        shown = (("rate", "R(Z) (nats)"), ("reduction", "rate reduction (nats)"), ("effective_rank", "effective rank"))
        found = [
            Quantity(name, layer["name"], layer["position"], layer[key])
            for key, name in shown
            for layer in measured["layers"]
        ]
        for projection in measured["projections"]:
            if projection["tokens"] == "Z":
                columns = {position: column for column, position in enumerate(projection["positions"])}
                for when, step in (("before", -1), ("after", 0)):
                    for subspace, rates in zip(projection["subspaces"], projection["rate"], strict=True):
                        if (at := subspace["position"] + step) in columns:
                            name = f"R^c {when} the layer (nats)"
                            found.append(Quantity(name, subspace["name"], subspace["position"], rates[columns[at]]))
        return found

    def measure(self, run: Run, consumed: Images, advance: Progress) -> Answer:
        """The stages of a run on images, windowed as for evaluation; memory grows by a few numbers an image.

        Raises:
            ConfigError: an unknown layer, an eps too small.
            ModelError: tokens that are NaN or infinite.
            DataError: an image cannot be read.
        """
        import numpy as np

        from analysis.measures.stages import StageNumbers, measured_of, stages_of

        numbers = StageNumbers(run, self.rule, stages_of(run, self.encoder, self._patterns))
        shown = consumed.each(run, advance)
        images = [numbers.image(each.pixels_B3HW, each.labels_Bhw, each.name) for each in shown]
        found = {key: np.stack([image[key] for image in images]) for key in images[0]}
        return Answer(measured=measured_of(numbers, found, self.seed, consumed.units.of_N), n=len(consumed))
