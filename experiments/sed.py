"""SED: "SED: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation".

Xie, Cao, Xie, Khan and Pang, CVPR 2024, arXiv 2311.15537. Trained on COCO-Stuff, it never saw ADE20K; nothing here
reproduces its tables, which need its weights and data.
"""

from __future__ import annotations

from experiments.experiment import Reported

ZERO_SHOT = tuple(
    Reported(f"sed-{size}", "mIoU (%)", value, "ADE20K val", "SED, README")
    for size, value in (("base", 31.8), ("large", 35.3))
)
