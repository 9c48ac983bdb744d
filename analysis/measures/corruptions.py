"""What the corruptions of ImageNet-C do to a model, alone and beside a reference model.

Severities of one corruption, and models, see the same random numbers. There is one draw a photo, so the error of what
is drawn is part of that of images: intervals are the bootstrap's over images, and quotients of two models take the same
images for both.

``measured``: ``clean`` and ``mean`` mIoU; ``corruptions``, a list of ``name``, ``group``, ``mean`` over severities, and
``severities``, a list of ``severity`` and ``miou``; with a reference its ``reference`` (model, sha256 of its weights),
``cd`` and ``relative_cd`` of each corruption, and their means ``mcd`` and ``relative_mcd``. Fractions, each with its
interval over images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.maths.conventions import RESAMPLES
from analysis.maths.corruption_names import PACKAGE, package_version
from analysis.measurement import Measurement, Progress
from analysis.record import Answer, describe_weights
from whitebox.errors import ConfigError

if TYPE_CHECKING:
    from analysis.consumed import Chosen, EvaluatedImages
    from whitebox.runs import Run, SavedRun


@dataclass(frozen=True, kw_only=True)
class Corruptions(Measurement):
    """The corruptions of ImageNet-C.

    Attributes:
        kinds, severities: see ``analysis.maths.corruption_names``.
        seed: of the corruptions, and of the bootstrap.
        reference: a run whose degradation is the unit.
        output: rows are kept in ``sweeps`` below it; None: below a run's folder.
    """

    kind = "corruptions"
    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    seed: int = 0
    reference: SavedRun | Run | None = None
    output: Path | None = None

    def consumes(self, run: SavedRun | Run, chosen: Chosen) -> EvaluatedImages:
        """Images as evaluation segments them; those of the reference are to be the same.

        Raises:
            ConfigError: they are not.
        """
        from analysis.consumed import EvaluatedImages

        images = EvaluatedImages(run, chosen)
        if self.reference is not None and EvaluatedImages(self.reference, chosen).data != images.data:
            raise ConfigError(f"The reference {self.reference.name} was measured on other images than {run.name}.")
        return images

    @property
    def seeds(self) -> Mapping[str, int]:
        """Of the corruptions, and of the bootstrap over images."""
        return {"noise": self.seed, "bootstrap": self.seed}

    def settings(self, run: SavedRun | Run) -> Mapping[str, Any]:
        """The package that corrupts, and the reference, among them."""
        return {
            "kinds": self.kinds,
            "severities": self.severities,
            "package": f"{PACKAGE} {package_version()}",
            "reference": None if self.reference is None else describe_weights(self.reference.weights).sha256,
            "resamples": RESAMPLES,
        }

    def measure(self, run: Run, consumed: EvaluatedImages, advance: Progress) -> Answer:
        """Each corruption at each severity, of the reference too."""
        from analysis.consumed import Chosen, EvaluatedImages
        from analysis.measures.corruption_tables import corrupted, measured_corruptions

        measured: dict[str, Any] = {}
        beside = None
        if self.reference is not None:
            opened = self._reference
            images = EvaluatedImages(opened, Chosen(consumed.split, consumed.limit))
            beside = corrupted(opened, self, images, (self.output or opened.folder) / "sweeps", advance)
            weights = describe_weights(opened.weights).sha256
            measured["reference"] = {"model": opened.name, "weights": weights}
        found = corrupted(run, self, consumed, (self.output or run.folder) / "sweeps", advance)
        measured |= {**measured_corruptions(self, found, beside), "classes": list(consumed.classes)}
        return Answer(measured=measured, n=len(consumed))

    @cached_property
    def _reference(self) -> Run:
        """With its model, once for all runs."""
        assert self.reference is not None
        return self.reference.open()
