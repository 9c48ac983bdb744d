"""Principal components of patch tokens before and after the decoder's layers, and what their directions segment.

DEPICT (Wen and Li, arXiv 2411.03033, figures 2 to 4) segments a photo by PCA of Z_0, the encoder's patch tokens, and of
Z_L, those after the self-attention layers: the layers are to build a principal subspace in which the directions are the
classes. The paper shows pictures; how they were made is not published. Here:

    tokens        Z_0 is ``decoder.input``, Z_L the ``tokens`` of the last decoder layer, before its LayerNorm; patches
                  only, of one photo, their mean subtracted
    components    right singular vectors of the (N, D) tokens, float64; the entry of largest magnitude is positive
    colours       scores of components 1, 2, 3 as red, green, blue, each from its 1st to its 99th percentile
    segmentation  a patch goes to the direction of the largest |cosine| with its token, and there to the end it points
                  to: opposite tokens are as different as cosines can tell. As many directions as classes, unless asked
                  otherwise, so at most twice as many segments; signs of directions play no part
    agreement     normalised mutual information 2 I(A; B) / (H(A) + H(B)) over patches (Vinh et al. 2010, JMLR 11, table
                  2, NMI_sum), blind to which number a segment has: 1 the same segments, about 0 unrelated ones. Many
                  small segments share some information with anything

Shapes: N patches, D model width, P components, h w patch grid, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from analysis.maths.conventions import RESAMPLES
from analysis.measurement import Measurement, Progress, Quantity
from analysis.record import Answer
from whitebox.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from analysis.consumed import Chosen, Photos
    from analysis.measures.samples import Photo
    from whitebox.data.images import UInt8
    from whitebox.runs import Run, SavedRun

SEED = 0  # of the bootstrap over photos


@dataclass(frozen=True, kw_only=True)
class PCA(Measurement):
    """Principal components of the patch tokens before and after the decoder's layers, and what they segment.

    \b
    whitebox pca results/depict-sa-tiny-camvid results/segmenter-mask-tiny-camvid photo.jpg --truth label.png
    """

    kind = "pca"
    takes = "photos"
    truth: Annotated[
        list[Path] | None, Option(help="Label image of the photo; repeat for several, in their order.")
    ] = None
    directions: Annotated[
        int | None, Option(min=1, help="Principal directions to segment by. Default: the number of classes.")
    ] = None

    def consumes(self, run: SavedRun | Run, chosen: Chosen) -> Photos:
        """The photos, and their labels."""
        from analysis.consumed import Photos

        return Photos(run, chosen, self.truth or ())

    @property
    def seeds(self) -> Mapping[str, int]:
        """Of the intervals over photos."""
        return {"bootstrap": SEED}

    def settings(self, run: SavedRun | Run) -> Mapping[str, Any]:
        """Labels are data."""
        return {"directions": self.directions or len(run.classes), "resamples": RESAMPLES}

    def quantities(self, measured: Mapping[str, Any]) -> list[Quantity]:
        """Agreement, segments and variance before and after the layers: means over photos, or those of the only one."""
        shown = (
            ("nmi_truth", "NMI, truth", 1.0),
            ("nmi_prediction", "NMI, prediction", 1.0),
            ("segments", "segments", 1.0),
            ("all", "variance of PC 1-K (%)", 100.0),
        )
        (photo, *more) = measured["photos"]
        states = {each["name"]: each["numbers"] for each in photo["states"]}
        if more:
            states = {name: measured["means"][name] for name in states}
        found = []
        for key, title, factor in shown:
            for index, (name, numbers) in enumerate(states.items()):
                stored = numbers[key] if more else {"value": numbers[key], "low": None, "high": None}
                found.append(Quantity(title, name, index, stored, factor))
        return found

    def measure(self, run: Run, consumed: Photos, advance: Progress) -> Answer:
        """The components of a run's tokens over photos.

        Raises:
            ConfigError: more directions than tokens have dimensions.
            DataError: a photo or label cannot be read, or they do not fit.
            ModelError: tokens are not finite.
        """
        from analysis.measures.samples import open_photo

        width = run.model.decoder.width
        if self.directions is not None and not 1 <= self.directions <= width:
            raise ConfigError(
                f"--directions {self.directions} is impossible: the tokens of {run.name} have 1 to {width}."
            )
        count = self.directions or min(run.model.num_classes, width)
        photos = []
        for done, (path, label) in enumerate(zip(consumed.paths, consumed.labels, strict=True), start=1):
            photos.append(_measure_photo(run, open_photo(path, run), label, consumed.table_256, count))
            advance(done, len(consumed.paths))
        found = [state["name"] for state in photos[0]["states"]]
        where = {"Z_0": "enter the decoder", "Z_L": "leave decoder layers"}
        measured = {
            "photos": photos,
            "directions": count,
            "means": _means(photos) if len(photos) > 1 else {},
            "classes": list(run.model.classes),
            "palette": [list(colour) for colour in run.model.palette],
            "notes": [
                f"no patch tokens {what}: {name} does not apply." for name, what in where.items() if name not in found
            ],
        }
        return Answer(measured=measured, n=len(photos))


def _measure_photo(run: Run, photo: Photo, label: Path | None, table_256: UInt8, count: int) -> dict[str, Any]:
    """What a record holds of one photo."""
    from analysis.maths.components import SHOWN, as_colours, mutual_information, nearest_direction, principal_components
    from analysis.maths.packing import pack
    from analysis.measures.finite import finite
    from analysis.measures.samples import describe_photo, predicted_patches, read_truth
    from whitebox.models import record, tap_names

    taps = tap_names(run.model)
    names = {"Z_0": [name for name in taps if name == "decoder.input"]}
    names["Z_L"] = [name for name in taps if fnmatchcase(name, "decoder.layers.*.tokens")][-1:]
    patches = math.prod(photo.grid)
    with record(run.model, *(name for found in names.values() for name in found)) as activations:
        labels_hw = predicted_patches(run, photo)
    truth_hw = None
    if label is not None:
        truth_hw = photo.labels(read_truth(label, photo, run, table_256))

    def agreement(segments_N: Tensor, other_hw: Tensor | None) -> float:
        return math.nan if other_hw is None else mutual_information(segments_N, other_hw.flatten())

    states = []
    for state, found in names.items():
        for name in found:
            tokens_TD = finite(activations[name][0].cpu(), name, run)
            if len(tokens_TD) not in (patches, patches + run.model.num_classes):
                continue  # not tokens of patches
            components = principal_components(tokens_TD[:patches], max(count, SHOWN))
            segments_N = nearest_direction(components.scores_NP[:, :count])
            shares = components.shares_P.tolist() + [math.nan] * SHOWN
            states.append(
                {
                    "name": state,
                    "activation": name,
                    "numbers": {
                        **{f"component_{index + 1}": shares[index] for index in range(SHOWN)},
                        "all": float(components.shares_P[:count].sum()),
                        "segments": len(segments_N.unique()),
                        "nmi_prediction": agreement(segments_N, labels_hw),
                        "nmi_truth": agreement(segments_N, truth_hw),
                    },
                    "colours": [pack(each_N.view(photo.grid)) for each_N in as_colours(components.scores_NP).T],
                    "segments": pack(segments_N.view(photo.grid)),
                }
            )
    return {
        **describe_photo(photo),
        "prediction": pack(labels_hw),
        "truth": None if truth_hw is None else pack(truth_hw),
        "states": states,
        "numbers": {"segments": len(labels_hw.unique()), "nmi_truth": agreement(labels_hw.flatten(), truth_hw)},
    }


def _means(photos: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each number of each state, and of the prediction, with its interval over photos."""
    from analysis.maths.intervals import estimates

    groups = {
        state["name"]: [
            each["numbers"] for photo in photos for each in photo["states"] if each["name"] == state["name"]
        ]
        for state in photos[0]["states"]
    }
    groups["prediction"] = [photo["numbers"] for photo in photos]
    return {
        name: {key: estimates([numbers[key] for numbers in group], seed=SEED) for key in group[0]}
        for name, group in groups.items()
    }
