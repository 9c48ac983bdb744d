"""CBSA: "Towards Interpretable and Efficient Attention: Compressing All by Contracting a Few".

Wen, Huang and Li, NeurIPS 2025, arXiv 2509.16875; official code ``QishuaiWen/CBSA``; its decoder is called CBT. The
noise curves of CBT and of a ToST decoder stand in ``QishuaiWen/DEPICT``, for a variant of CBT (marked with a dagger)
whose definition is not published: they are reported here under cbsa and tost.
"""

from __future__ import annotations

from experiments.experiment import Experiment, Reported
from experiments.measurements import (
    NOISE_LEVELS,
    accuracies,
    coding_rates,
    miou_values,
    noise_values,
    parameter_noise,
    reported_noise,
    tradeoff_values,
    tradeoffs,
)

DECODERS = ("cbsa", "depict-sa", "segmenter-mask")
README = "QishuaiWen/CBSA, README"

ADE20K = tuple(
    Reported(f"cbsa-{size}", "mIoU (%)", value, "ADE20K val", README)
    for size, value in (("tiny", 39.1), ("small", 45.8), ("base", 49.3), ("large", 53.3))
)
GFLOPS = tuple(
    Reported(f"cbsa-{size}", "decoder GFLOPs", value, "150 classes, 512 px (large: 640 px)", README)
    for size, value in (("tiny", 1.5), ("small", 2.3), ("base", 7.8), ("large", 22.3))
)

NOISE_MIOU = {
    "cbsa-tiny": (
        38.95,
        {0.001: 38.9, 0.01: 39.0, 0.02: 38.7, 0.05: 38.6, 0.1: 38.0, 0.2: 37.2, 0.3: 35.65, 0.5: 34.0, 1.0: 17.7},
    ),
    "cbsa-small": (
        45.9,
        {0.001: 45.9, 0.01: 45.8, 0.02: 45.7, 0.05: 45.05, 0.1: 44.1, 0.2: 43.0, 0.3: 41.8, 0.5: 21.2, 1.0: 0.2},
    ),
    "tost-tiny": (38.5, {0.001: 38.5, 0.01: 37.4, 0.02: 33.2, 0.03: 27.6, 0.05: 14.5, 0.1: 2.0, 0.2: 0.9, 1.0: 0.5}),
    "tost-small": (44.9, {0.001: 44.9, 0.01: 43.9, 0.02: 37.8, 0.03: 27.25, 0.05: 9.6, 0.1: 1.5, 0.2: 0.9, 1.0: 0.5}),
}
NOISE = reported_noise(NOISE_MIOU)

EXPERIMENTS = (
    Experiment(
        name="cbsa-tables",
        title="mIoU, single scale",
        where="CBSA, README",
        decoders=DECODERS,
        measure=accuracies,
        values=miou_values,
        reported=ADE20K,
    ),
    Experiment(
        name="cbsa-performance",
        title="mIoU against GFLOPs of the decoder",
        where="CBSA, README, and DEPICT, assets/performance.png",
        decoders=DECODERS,
        measure=tradeoffs,
        values=tradeoff_values,
        reported=(*ADE20K, *GFLOPS),
    ),
    Experiment(
        name="cbsa-coding-rate",
        title="coding rate along the layers",
        where="CBSA, coding_rate.py",
        decoders=(*DECODERS, "tost", "crate"),
        measure=coding_rates,
    ),
    Experiment(
        name="cbsa-noise",
        title="robustness to Gaussian noise on the decoder's parameters",
        where="DEPICT, assets/noise_tiny.png and noise_small.png",
        decoders=(*DECODERS, "tost", "crate"),
        measure=parameter_noise(NOISE_LEVELS),
        values=noise_values,
        reported=NOISE,
    ),
)
