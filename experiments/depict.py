"""DEPICT: "Rethinking Decoders for Transformer-based Semantic Segmentation: A Compression Perspective".

Wen and Li, NeurIPS 2024, arXiv 2411.03033; official code and figures ``QishuaiWen/DEPICT``. The paper's coding rates
and heat maps are published as pictures without their constants, so figures 2 to 8 have no reported number here.
"""

from __future__ import annotations

from experiments import segmenter
from experiments.experiment import Experiment, Reported
from experiments.measurements import (
    NOISE_LEVELS,
    accuracies,
    coding_rates,
    miou_values,
    noise_values,
    orthogonality_of_bases,
    parameter_noise,
    principal_components,
    reported_noise,
    tradeoff_values,
    tradeoffs,
)

DECODERS = ("depict-sa", "depict-ca", "segmenter-mask")
PLOT = "~ DEPICT, assets/performance.png"

ADE20K = tuple(
    Reported(model, "mIoU (%)", value, "ADE20K val", source)
    for model, value, source in (
        ("depict-sa-tiny", 39.3, PLOT),
        ("depict-sa-small", 46.7, PLOT),
        ("depict-sa-base", 49.2, PLOT),
        ("depict-sa-large", 52.9, "DEPICT, Papers-with-Code entry"),
    )
)

OTHERS = tuple(
    Reported(model, "mIoU (%)", value, data, source)
    for model, data, value, source in (
        ("depict-sa-large", "Cityscapes val", 78.8, "DEPICT, table 2"),
        ("depict-sa-large", "Pascal Context val", 57.9, "DEPICT, table 2"),
    )
)

GFLOPS = tuple(
    Reported(model, "decoder GFLOPs", value, "150 classes, 512 px (large: 640 px)", PLOT)
    for model, value in (
        ("depict-sa-tiny", 5.8),
        ("depict-sa-small", 6.58),
        ("depict-sa-base", 8.17),
        ("depict-sa-large", 34.95),
        ("segmenter-mask-tiny", 4.22),
        ("segmenter-mask-small", 12.61),
        ("segmenter-mask-base", 41.71),
        ("segmenter-mask-large", 113.2),
    )
)

# mIoU under noise of standard deviation sigma on all parameters that were perturbed (which: unknown), one draw each
NOISE_MIOU = {
    "depict-sa-tiny": (39.3, {0.001: 39.4, 0.01: 38.9, 0.02: 36.1, 0.03: 31.05, 0.05: 8.2, 0.1: 0.2, 1.0: 0.2}),
    "depict-sa-small": (46.7, {0.001: 46.7, 0.01: 45.0, 0.02: 35.9, 0.03: 20.5, 0.05: 1.0, 0.1: 0.2, 1.0: 0.2}),
    "segmenter-mask-tiny": (38.1, {0.001: 35.4, 0.002: 28.3, 0.003: 18.3, 0.005: 6.0, 0.01: 1.5, 0.1: 0.3, 1.0: 0.3}),
    "segmenter-mask-small": (
        45.3,
        {0.001: 35.2, 0.002: 11.5, 0.003: 5.0, 0.005: 1.75, 0.01: 0.7, 0.1: 0.26, 1.0: 0.28},
    ),
}
NOISE = reported_noise(NOISE_MIOU)

EXPERIMENTS = (
    Experiment(
        name="depict-fig2",
        title="principal components of the tokens before and after the decoder's self-attention",
        where="DEPICT, figures 2 and 4",
        decoders=DECODERS,
        measure=principal_components,
    ),
    Experiment(
        name="depict-fig5",
        title="orthogonality of the subspaces P and of the class embeddings Q",
        where="DEPICT, figures 5, 6 and 8",
        decoders=DECODERS,
        measure=orthogonality_of_bases,
    ),
    Experiment(
        name="depict-fig7",
        title="coding rate across layers: R(P_l^T Z), its ratio to R(Z), R(Z) and R(Q)",
        where="DEPICT, figure 7 and appendix, page 14",
        decoders=DECODERS,
        measure=coding_rates,
    ),
    Experiment(
        name="depict-tab1",
        title="mIoU, single scale",
        where="DEPICT, table 1",
        decoders=(*DECODERS, "segmenter-linear"),
        measure=accuracies,
        values=miou_values,
        reported=(*ADE20K, *segmenter.ADE20K),
    ),
    Experiment(
        name="depict-tab2",
        title="mIoU of ViT-L models on Cityscapes and Pascal Context, single scale",
        where="DEPICT, table 2",
        decoders=DECODERS,
        datasets=("cityscapes", "pascal-context"),
        measure=accuracies,
        values=miou_values,
        reported=(*OTHERS, *segmenter.OTHERS),
    ),
    Experiment(
        name="depict-performance",
        title="mIoU against GFLOPs of the decoder",
        where="DEPICT, assets/performance.png",
        decoders=DECODERS,
        measure=tradeoffs,
        values=tradeoff_values,
        reported=(*ADE20K, *segmenter.ADE20K, *GFLOPS),
    ),
    Experiment(
        name="depict-noise",
        title="robustness to Gaussian noise on the decoder's parameters",
        where="DEPICT, assets/noise_tiny.png and noise_small.png",
        decoders=(*DECODERS, "segmenter-linear"),
        measure=parameter_noise(NOISE_LEVELS),
        values=noise_values,
        reported=NOISE,
    ),
    Experiment(
        name="depict-noise-relative",
        title="the same with noise in units of each tensor's rms, so that large weights are no advantage",
        where="ours, beside DEPICT, assets/noise_tiny.png",
        decoders=(*DECODERS, "segmenter-linear"),
        measure=parameter_noise("0.02,0.05,0.1,0.2,0.3,0.5,0.7,1,1.5,2,3,5,10,20,50", relative=True),
    ),
)
