"""SegViT: "SegViT: Semantic Segmentation with Plain Vision Transformers".

Zhang, Tian, Tang, Chu, Wei, Shen and Liu, NeurIPS 2022, arXiv 2210.05844; official code and tables ``zbwxp/SegVit``.
Sizes here are ``base``, ``large`` and ``large-shrunk``; the release has no smaller ones.
"""

from __future__ import annotations

from experiments.experiment import Experiment, Reported
from experiments.measurements import (
    NOISE_LEVELS,
    accuracies,
    attention_masks,
    coding_rates,
    miou_values,
    parameter_noise,
    tradeoff_values,
    tradeoffs,
)

DECODERS = ("segvit", "segmenter-mask", "depict-sa")
README = "zbwxp/SegVit, README"

MIOU = tuple(
    Reported(f"segvit-{size}", "mIoU (%)", value, data, README)
    for size, data, value in (
        ("base", "ADE20K val", 51.3),
        ("large", "ADE20K val", 54.6),
        ("large-shrunk", "ADE20K val", 53.9),
        ("large", "COCO-Stuff 10k test", 49.9),
        ("large-shrunk", "COCO-Stuff 10k test", 49.1),
        ("large", "Pascal Context 59 val", 64.1),
        ("large-shrunk", "Pascal Context 59 val", 62.3),
    )
)
COSTS = tuple(
    Reported(f"segvit-{size}", "model GMACs", value, data, f"{README}, which calls MACs FLOPs")
    for size, data, value in (
        ("base", "ADE20K, 512 px", 120.9),
        ("large", "ADE20K, 640 px", 637.9),
        ("large-shrunk", "ADE20K, 640 px", 373.5),
        ("large", "COCO-Stuff 10k, 512 px", 383.9),
        ("large-shrunk", "COCO-Stuff 10k, 512 px", 224.8),
        ("large", "Pascal Context, 480 px", 321.6),
        ("large-shrunk", "Pascal Context, 480 px", 186.9),
    )
)

EXPERIMENTS = (
    Experiment(
        name="segvit-tables",
        title="mIoU, single scale",
        where="SegViT, README",
        decoders=DECODERS,
        measure=accuracies,
        values=miou_values,
        reported=MIOU,
    ),
    Experiment(
        name="segvit-performance",
        title="mIoU against cost",
        where="SegViT, README",
        decoders=DECODERS,
        measure=tradeoffs,
        values=tradeoff_values,
        reported=(*MIOU, *COSTS),
    ),
    Experiment(
        name="segvit-masks",
        title="attention-to-mask maps of the class queries",
        where="ours; the maps are those of SegViT, section 3.2",
        decoders=("segvit",),
        measure=attention_masks,
    ),
    Experiment(
        name="segvit-coding-rate",
        title="coding rate along the layers",
        where="ours, beside DEPICT, figure 7",
        decoders=DECODERS,
        measure=coding_rates,
    ),
    Experiment(
        name="segvit-noise",
        title="robustness to Gaussian noise on the decoder's parameters",
        where="ours, beside DEPICT, assets/noise_tiny.png",
        decoders=DECODERS,
        measure=parameter_noise(NOISE_LEVELS),
    ),
)
