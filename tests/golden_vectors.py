"""Reading the reference tensors made with the official implementations (see tests/golden/README.md)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

COMMITTED = Path(__file__).resolve().parent / "golden"
CASES = (
    "depict_sa",
    "depict_sa_deit",
    "depict_ca",
    "depict_ca_deit",
    "segmenter_linear",
    "segmenter_linear_deit",
    "segmenter_mask",
    "segmenter_mask_deit",
)


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file."""
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def sampled(vectors: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, int]:
    """The array ``name`` or ``name_sN``, of which every N-th row and column is kept, with N."""
    if name in vectors:
        return vectors[name], 1
    for key, value in vectors.items():
        if match := re.fullmatch(rf"{name}_s(\d+)", key):
            return value, int(match[1])
    raise KeyError(name)


def difference(found: torch.Tensor, expected: np.ndarray) -> float:
    """Largest absolute difference; shapes must agree."""
    assert tuple(found.shape) == expected.shape
    return float((found.double() - torch.from_numpy(expected).double()).abs().max())


def vector_file(golden: Path | None, *parts: str) -> Path:
    """A file among the shared vectors, else among the committed ones, else the test is skipped."""
    for folder in (golden, COMMITTED):
        if folder is not None and (folder.joinpath(*parts)).is_file():
            return folder.joinpath(*parts)
    pytest.skip(f"needs the golden vectors {'/'.join(parts)} in the folder `shared` beside the checkout")


def released_segvit(shared: Path) -> dict[str, Any]:
    """The small whole SegViT model of the vectors as mmsegmentation 0.x saves one, with the text of its config."""

    def call(options: dict[str, Any]) -> str:
        return f"dict({', '.join(f'{key}={value!r}' for key, value in options.items())})"

    folder = shared / "golden" / "segvit_sed"
    kwargs = json.loads((folder / "segvit_e2e.json").read_text())["kwargs"]
    text = (
        "norm_cfg = dict(type='SyncBN', requires_grad=True)\n"
        "img_norm_cfg = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)\n"
        f"model = dict(backbone={call(kwargs['backbone'])}, decode_head={call(kwargs['decode_head'])},\n"
        f"    train_cfg=dict(), test_cfg={call(kwargs['test_cfg'])})\n"
    )
    weights = load_file(folder / "segvit_e2e.weights.safetensors")
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    return {"meta": {"config": text, "mmseg_version": "0.24.0"}, "state_dict": tensors}


def real_checkpoint(golden: Path, case: str, folder: Path) -> Path:
    """Write the official-layout checkpoint of a ``real/`` case (shared fp16 encoder and its decoder) to ``folder``."""
    tensors = {}
    for prefix, file in (
        ("encoder", golden / "real" / "encoder_vit_tiny_patch16_384.fp16.safetensors"),
        ("decoder", golden / "real" / case / "decoder.fp16.safetensors"),
    ):
        tensors.update({f"{prefix}.{name}": torch.from_numpy(value).float() for name, value in load_file(file).items()})
    torch.save({"model": tensors}, folder / "checkpoint.pth")
    (folder / "variant.yml").write_text((golden / "real" / case / "variant.yml").read_text())
    return folder / "checkpoint.pth"
