"""What is settled before anything is measured, and stands in records and captions. Loads nothing."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Any

from whitebox.errors import require

RESAMPLES = 10_000  # of a bootstrap
LEVEL = 0.95  # of an interval
MEANS = {"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc"}  # of an evaluation, in the order of `sampled_scores`

SCOPES = ("decoder blocks", "decoder", "encoder", "model")  # of costs, see `analysis.measures.costs`
BLOCKS, MODEL = "decoder blocks GFLOPs", "model GMACs"  # what papers publish of them

_SCALES = (0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
SHARES = (0.90, 0.95, 0.99)  # of the energy, whose numbers of components are counted
DRAWS = 100  # random subspaces to compare angles with
EPS = 0.1  # distortion of coding rates, where no other is asked for
UPDATES = 4  # random ones, of each window and layer
STEPS = 16  # of a path along a gradient
MULTIPLES = (*(-scale for scale in reversed(_SCALES)), 0.0, *_SCALES)  # of an update: its objective is drawn there
DISTORTIONS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # eps at which an update is held against its objective


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates for one image."""

    parameters: int
    macs: int

    @property
    def gflops(self) -> float:
        """2 x MACs, in units of 1e9."""
        return 2e-9 * self.macs


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What is measured exactly: published codes differ in each of these, and curves with them.

    Attributes:
        tokens: ``normed``: after LayerNorm, as layers see them: R(P_l^T Z_j) is that of layer l, R(Z) has one without
            gain and bias. ``raw``: as they are, as the formula has it; rates then grow with their length.
        normalise: vectors scaled to length 1: ``none``; each ``token``, before it is projected; or each ``projected``
            token (in R(Z): each token). A zero vector stays zero.
        eps: the formula has its square.
        prefactor: of a projected rate, d / (N eps^2): d = P, the dimension of the ``subspace``, or D, the ``width``.
        heads: projected rates of a layer are the ``sum`` (R^c) or the ``mean`` over its heads.
        which: ``patches``, or ``all`` tokens a layer compresses together, so also class embeddings.

    Raises:
        ConfigError: an unknown word, or ``eps`` that is not positive.
    """

    tokens: str = "normed"
    normalise: str = "none"
    eps: float = EPS
    prefactor: str = "subspace"
    heads: str = "sum"
    which: str = "patches"

    def __post_init__(self) -> None:
        require(0 < self.eps < float("inf"), "eps", self.eps, "it must be above 0 and finite")
        for key, words in _WORDS.items():
            require(getattr(self, key) in words, key, getattr(self, key), f"choose {' or '.join(words)}")

    @property
    def name(self) -> str:
        """Short, for file names: that of a preset, else its words."""
        return next((name for name, preset in PRESETS.items() if preset == self), "-".join(map(str, astuple(self))))


_WORDS = {
    "tokens": ("normed", "raw"),
    "normalise": ("none", "token", "projected"),
    "prefactor": ("subspace", "width"),
    "heads": ("sum", "mean"),
    "which": ("patches", "all"),
}


PRESETS = {"crate": Convention(normalise="projected", which="all"), "cbsa": Convention(which="all")}


def convention(preset: str | None = None, **changes: Any) -> Convention:
    """A preset (None: the defaults), with the ``changes`` that are not None.

    Raises:
        ConfigError: see `Convention`; an unknown preset.
    """
    require(preset is None or preset in PRESETS, "preset", preset, f"choose {' or '.join(PRESETS)}")
    base = Convention() if preset is None else PRESETS[preset]
    return replace(base, **{key: value for key, value in changes.items() if value is not None})
