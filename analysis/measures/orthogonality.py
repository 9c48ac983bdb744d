"""How orthogonal subspaces and class embeddings are: heat maps of U U^T and Q Q^T, and numbers beside random matrices.

Sources: arXiv 2411.03033 (DEPICT), figures 5, 6, 8 and its appendix. As there, a black-box layer shows its query
projection, the class embeddings are normalised, the bases are not. The learned class embeddings need no image. What a
derivation calls an orthonormal basis of the principal subspace are the embeddings *after* the decoder, which depend on
the image: they are measured on request. Which of the two the paper's figures show is not known to us.

Layout of ``measured``::

    {"layers": [{"name": "decoder.layers.0", "heads": 3, "dim": 100, "width": 192, "numbers": {"deviation": 0.4, ...},
                 "random": {"deviation": {"value", "low", "high"}, ...}, "unit": 0.5, "gram": PACKED}, ...],
     "classes": {"names": [...], "width": 192, "random": {...}, "learned": {"numbers": {"cosine": 0.1, ...},
                 "cosines": PACKED}, "after": {"numbers": {"cosine": {"value", "low", "high"}, ...},
                 "cosines": PACKED}},
     "notes": [...]}

``gram`` is U U^T in units of ``unit``, the mean of its diagonal; PACKED: see `analysis.maths.packing.packed`. Without
class embeddings ``classes`` is null, without images ``after`` is absent.

Shapes: H heads, P dimensions of a subspace, D width, K classes, M rows, B windows of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, cast

from typer import Option

from analysis.maths.conventions import RESAMPLES
from analysis.measurement import Measurement, Progress, Quantity, Seed
from analysis.record import Answer
from whitebox.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from analysis.consumed import Chosen, Consumed, Images, WeightsAlone
    from whitebox.runs import Run, SavedRun


@dataclass(frozen=True, kw_only=True)
class Orthogonality(Measurement):
    """Are subspaces, and class embeddings, orthogonal? Heat maps, and numbers beside random matrices.

    The weights alone are measured, unless --after is given.

    \b
    whitebox orthogonality results/depict-sa-tiny-camvid results/segmenter-mask-tiny-camvid
    whitebox orthogonality results/depict-ca-tiny-camvid --after --limit 100 --data-root data
    """

    kind = "orthogonality"
    after: Annotated[bool, Option("--after", help="Also the class embeddings after the decoder, on images.")] = False
    draws: Annotated[int, Option(min=2, help="Random matrices to compare with, of each shape.")] = 100
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ConfigError(f"--draws {self.draws} is impossible: an interval needs at least 2.")

    def consumes(self, run: SavedRun | Run, chosen: Chosen) -> Consumed:
        """No image, unless embeddings after the decoder are asked for."""
        from analysis.consumed import WeightsAlone

        return super().consumes(run, chosen) if self.after else WeightsAlone(run, chosen)

    @property
    def variant(self) -> str:
        """Whether images are consumed."""
        return "after" if self.after else ""

    @property
    def seeds(self) -> Mapping[str, int]:
        """Of the random matrices, and of the bootstrap over images."""
        return {"random": self.seed, "bootstrap": self.seed}

    def settings(self, run: SavedRun | Run) -> Mapping[str, Any]:
        """``after`` is the variant."""
        return {"draws": self.draws, "resamples": RESAMPLES}

    def quantities(self, measured: Mapping[str, Any]) -> list[Quantity]:
        """Every number of the subspaces of each layer, and of the learned class embeddings."""
        found = [
            Quantity(key, layer["name"], index, {"value": value, "low": None, "high": None})
            for index, layer in enumerate(measured["layers"], start=1)
            for key, value in layer["numbers"].items()
        ]
        learned = measured["classes"]["learned"]["numbers"] if measured["classes"] else {}
        for key, value in learned.items():
            stored = {"value": value, "low": None, "high": None}
            found.append(Quantity(f"class embeddings: {key}", "class embeddings", None, stored))
        return found

    def measure(self, run: Run, consumed: Images | WeightsAlone, advance: Progress) -> Answer:
        """The subspaces of all layers, and the class embeddings.

        Raises:
            ModelError: weights that are NaN or infinite.
            DataError: an image cannot be read.
        """
        import numpy as np

        from analysis.consumed import Images
        from analysis.maths.packing import packed
        from analysis.maths.subspaces import class_numbers, gram, head_numbers, random_numbers
        from analysis.measures.embeddings import cosines, embeddings_after, overlap_note, tap_after
        from analysis.measures.finite import finite
        from whitebox.models.attention import subspace_layers

        @cache
        def random_heads(*shape: int) -> dict[str, dict[str, float]]:
            return random_numbers(head_numbers, shape, self.draws, self.seed)

        notes: dict[str, None] = {}  # each once, in order
        layers = []
        found = {name: layer.bases for name, layer in subspace_layers(run.model).items()}
        for done, (name, bases) in enumerate(found.items(), start=1):
            bases_HPD = finite(bases.detach().cpu().double().numpy(), name, run)
            H, P, D = bases_HPD.shape
            gram_MM = gram(bases_HPD)
            unit = float(np.trace(gram_MM)) / len(gram_MM)
            layers.append(
                {
                    "name": name,
                    "heads": H,
                    "dim": P,
                    "width": D,
                    "numbers": head_numbers(bases_HPD),
                    "random": random_heads(H, P, D),
                    "unit": unit,
                    "gram": packed(gram_MM / unit if unit else gram_MM),
                }
            )
            if H * P > D:
                notes[overlap_note(H, P, D)] = None
            if not self.after:
                advance(done, len(found))
        if not layers:
            notes["has no subspaces: nothing to measure in its layers."] = None

        classes = None
        if not hasattr(run.model.decoder, "class_embeddings"):
            notes["has no class embeddings."] = None
        else:
            learned_1KD = cast("Tensor", run.model.decoder.class_embeddings).detach()
            learned_KD = finite(learned_1KD[0].cpu().double().numpy(), "the class embeddings", run)
            classes = {
                "names": list(run.model.classes),
                "width": learned_KD.shape[1],
                "random": random_numbers(class_numbers, learned_KD.shape, self.draws, self.seed),
                "learned": {"numbers": class_numbers(learned_KD), "cosines": packed(cosines(learned_KD))},
            }
            tap = tap_after(run.model)
            if tap is not None and isinstance(consumed, Images):
                classes["after"] = embeddings_after(run, tap, consumed, self.seed, advance)
            elif self.after:
                notes["has no tap of class embeddings after its decoder."] = None
        measured = {"layers": layers, "classes": classes, "notes": list(notes)}
        return Answer(measured=measured, n=self.draws)  # of the random matrices; images are counted in the data
