"""Segmenter: "Segmenter: Transformer for Semantic Segmentation".

Strudel, Garcia, Laptev and Schmid, ICCV 2021, arXiv 2105.05633; official code and tables ``rstrudel/segmenter``.
"""

from __future__ import annotations

from experiments.experiment import Experiment, Reported
from experiments.measurements import accuracies, attention, miou_values

README = "rstrudel/segmenter, README"

ADE20K = tuple(
    Reported(f"segmenter-mask-{size}", "mIoU (%)", value, "ADE20K val", README)
    for size, value in (("tiny", 38.1), ("small", 45.3), ("base", 48.5), ("large", 51.8))
)
OTHERS = (
    Reported("segmenter-mask-large", "mIoU (%)", 58.1, "Pascal Context val", README),
    Reported("segmenter-mask-large", "mIoU (%)", 79.1, "Cityscapes val", README),
)

EXPERIMENTS = (
    Experiment(
        name="segmenter-tables",
        title="mIoU, single scale",
        where="Segmenter, README",
        decoders=("segmenter-mask", "segmenter-linear"),
        measure=accuracies,
        values=miou_values,
        reported=(*ADE20K, *OTHERS),
    ),
    Experiment(
        name="segmenter-attention",
        title="attention maps of the class embeddings",
        where="Segmenter, appendix",
        decoders=("segmenter-mask",),
        measure=attention,
    ),
)
