"""What `whitebox eval` counts beside accuracies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.errors import ConfigError

if TYPE_CHECKING:
    from analysis.measures.extras import Extra

Boundary = Annotated[bool, typer.Option("--boundary", help="Also Boundary IoU: how well outlines are found.")]
BoundaryRatio = Annotated[
    float | None,
    typer.Option(help="With --boundary: how near, as a share of the diagonal. Default 0.02; Cityscapes: 0.005."),
]
Calibration = Annotated[
    bool, typer.Option("--calibration", help="Also ECE, Brier score, reliability diagram, risk-coverage curve.")
]
Confusion = Annotated[bool, typer.Option("--confusion", help="Also the confusion matrix, and its worst entries.")]


Images = Annotated[
    bool, typer.Option("--images", help="Also IoU image by image, the worst images, and frequency-weighted IoU.")
]
Variance = Annotated[bool, typer.Option("--variance", help="Also how much of the variance is of seed, unit, residual.")]


def chosen_extras(
    boundary: bool,
    ratio: float | None,
    calibration: bool,
    confusion: bool = False,
    images: bool = False,
    variance: bool = False,
) -> list[Extra]:
    """What was asked for.

    Raises:
        ConfigError: a ratio without ``--boundary``, or an impossible one.
    """
    from analysis.measures.boundary import Boundary as BoundaryIoU
    from analysis.measures.calibration import Calibration as Confidence
    from analysis.measures.confusion import Confusion as Matrix
    from analysis.measures.images import Images as Singly
    from analysis.measures.variance import Variance as Sources

    if ratio is not None and not boundary:
        raise ConfigError("--boundary-ratio says how near to a boundary pixels count: add --boundary.")
    found: list[Extra] = []
    if boundary:
        found.append(BoundaryIoU() if ratio is None else BoundaryIoU(ratio))
    asked = ((calibration, Confidence), (confusion, Matrix), (images, Singly), (variance, Sources))
    return [*found, *(extra() for wanted, extra in asked if wanted)]
