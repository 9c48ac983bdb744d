"""How much noise a model bears: mIoU under noise on its parameters or on photos, and the noise that halves it.

Two sources of error are kept apart. *Draws*: other random numbers would give another curve; the interval is Student's
t over draws (over pairs of draws where they are antithetic), beside the smallest and the largest mIoU. *Images*: other
images would give another mIoU; the interval is the bootstrap's over images, of the mean over draws.

sigma_50 is the noise that halves the clean mIoU: for each draw the lowest crossing on a grid of levels at most a factor
of 1.5 apart (`analysis.maths.halving`), then bisection in log sigma to two levels 5 % apart, and interpolation between
these. The value is the geometric mean over draws, its interval Student's t of the logarithms.

Where only the decoder is perturbed, the encoder runs once (``whitebox.engine.encoded``). What is measured is kept row
by row (``analysis.measures.rows``), so a sweep goes on where it stopped.

``measured``: ``curve``, a list over levels, the clean model (sigma 0) first, of ``sigma``, ``miou`` (mean over draws,
with its interval), ``smallest``, ``largest``, ``images`` (the same with the interval over images) and ``draws`` (mIoU
of each row); ``sigma_50`` with its interval, and that of each draw. Fractions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.maths.conventions import RESAMPLES
from analysis.maths.halving import GRID
from analysis.maths.levels import TARGETS
from analysis.measurement import Measurement, Progress
from analysis.record import Answer
from whitebox.catalog import nearest
from whitebox.errors import ConfigError

if TYPE_CHECKING:
    from analysis.consumed import Chosen, EvaluatedImages
    from analysis.measures.rows import Key
    from whitebox.runs import Run, SavedRun

MEMORY = 4_000_000_000  # bytes of tokens kept; more go to a temporary file


@dataclass(frozen=True, kw_only=True)
class Noise(Measurement):
    """A noise sweep.

    Attributes:
        levels: sigma, ascending, above 0.
        target: of ``analysis.maths.levels.TARGETS``.
        relative: sigma in units of each tensor's root mean square.
        draws: D.
        antithetic: each draw also with the opposite sign.
        seed: of the noise, and of the bootstrap.
        halving: look for sigma_50.
        memory: bytes, see `MEMORY`.
        output: rows are kept in ``sweeps`` below it; None: below the run's folder.
    """

    kind = "parameter-noise"
    levels: tuple[float, ...]
    target: str = "decoder"
    relative: bool = False
    draws: int = 5
    antithetic: bool = False
    seed: int = 0
    halving: bool = True
    memory: int = MEMORY
    output: Path | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            hint = nearest(self.target, list(TARGETS))
            raise ConfigError(f"Unknown --target {self.target!r}{hint} There are {', '.join(TARGETS)}.")
        if self.relative and self.target == "input":
            raise ConfigError("--relative scales noise by the parameters it is added to: leave it out for the input.")

    @staticmethod
    def of(target: str = "decoder", **options: Any) -> Noise:
        """On parameters or, with the target ``input``, on photos."""
        return (InputNoise if target == "input" else Noise)(target=target, **options)

    def keys(self, sigma: float, draw: int) -> list[Key]:
        """The rows of one draw at one level: one, or the two of an antithetic pair."""
        shared = {"target": self.target, "relative": self.relative, "sigma": sigma, "seed": self.seed, "draw": draw}
        return [{**shared, "sign": sign} for sign in ((1, -1) if self.antithetic else (1,))]

    def consumes(self, run: SavedRun | Run, chosen: Chosen) -> EvaluatedImages:
        """Images as evaluation segments them."""
        from analysis.consumed import EvaluatedImages

        return EvaluatedImages(run, chosen)

    @property
    def variant(self) -> str:
        """On what the noise is."""
        return "" if self.target == "input" else self.target + "-relative" * self.relative

    @property
    def seeds(self) -> Mapping[str, int]:
        """Of the noise, and of the bootstrap over images."""
        return {"noise": self.seed, "bootstrap": self.seed}

    def settings(self, run: SavedRun | Run) -> Mapping[str, Any]:
        """All but where rows and tokens are kept."""
        own = {key: value for key, value in super().settings(run).items() if key not in ("memory", "output")}
        grid = {"grid": GRID} if self.halving else {}
        return {**own, **grid, "interval": "t over draws", "resamples": RESAMPLES}

    def measure(self, run: Run, consumed: EvaluatedImages, advance: Progress) -> Answer:
        """The curve, and sigma_50."""
        from analysis.measures.noise_curves import measured_noise

        measured = measured_noise(run, self, consumed, (self.output or run.folder) / "sweeps", advance)
        return Answer(measured=measured, n=len(consumed))


class InputNoise(Noise):
    """A noise sweep on photos."""

    kind = "input-noise"
