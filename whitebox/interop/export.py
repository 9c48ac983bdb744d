"""A run as one file for other programs: ONNX, torch.export, safetensors; and an ONNX file as a model that predicts.

What is written takes RGB images as float32 in [0, 1] and gives class maps at the pixels of the images: normalisation,
padding to whole patches, upsampling and cropping are inside. Classes, palette, and how photos are to be shown to it lie
in the file's metadata, under ``whitebox``. Every file is run once it is written, and compared with the model.

Of a fixed size it takes squares of that size, in batches; ``dynamic``: images of any size. Position embeddings are
resampled to each grid then; a Segmenter ViT would leave them as they are on another grid of as many patches as it was
made for (2 x 8 for 4 x 4), and a file does not, which is the one difference to the model.

Shapes: B batch, K classes, H W pixels.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from whitebox.config import DataConfig, InferenceConfig, RunConfig
from whitebox.engine.checkpoint import encoder_apart, load_weights, save_model
from whitebox.errors import CheckpointError, ConfigError, ModelError
from whitebox.extras import require_extra
from whitebox.files import write_atomically
from whitebox.foreign import parse_json
from whitebox.models import OpenSegmentor, Segmentor
from whitebox.models.decoders.base import class_scores
from whitebox.versions import versions

METADATA = "whitebox"
FORMATS = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}
REPEATS = 5  # timed passes, of each
AGREEING = 0.999  # of pixels have the same class in float32, at least


@dataclass(frozen=True)
class Check:
    """What a file gives beside what the model gives, of made images.

    Attributes:
        difference: the largest, of any output.
        agreement: share of the pixels whose class is the same.
        seconds: of an image of ``size``, median of `REPEATS`; of the file, and of the model.
        sizes: of the images, (H, W).
    """

    difference: float
    agreement: float
    seconds: tuple[float, float]
    sizes: tuple[tuple[int, int], ...]


class Exported(nn.Module):
    """Float32 images (B, 3, H, W) in [0, 1] -> class maps (B, K, H, W), float32."""

    def __init__(self, model: Segmentor, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        model = self.model
        size = images.shape[-2], images.shape[-1]
        pixels = images.to(self.dtype)
        if isinstance(model, OpenSegmentor):
            return model.probabilities(model.decoder.predict(*model.encode(pixels)), size)
        said = model.decoder.predict(*model.tokens(model.pad(model.normalise(pixels))))
        maps_BKHW = model.upsample(said.masks_BKhw)[..., : size[0], : size[1]]
        if said.shares_BKK is None:
            return maps_BKHW
        scores_BPK = class_scores(maps_BKHW.flatten(2).transpose(1, 2), said.shares_BKK)
        return scores_BPK.transpose(1, 2).unflatten(2, size)


def export(
    model: Segmentor,
    config: RunConfig,
    path: Path,
    kind: str,
    *,
    size: int | None = None,
    opset: int | None = None,
    half: bool = False,
    decoder_only: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Check:
    """Write a model to a file, run the file, and compare.

    Args:
        kind: one of `FORMATS`.
        size: px, of the squares it takes; None: it takes images of any size.
        opset: of ONNX; None: torch's choice.
        half: weights and computation in float16; images and class maps stay float32. Of safetensors the weights
            alone, which are computed with in float32 again.
        decoder_only: of safetensors, without the frozen encoder, which is found by name and hash.
        say: told what is done next.

    Raises:
        ConfigError: what was asked for goes not together, or the extra is not installed.
        ModelError: the model cannot be exported so, or the file does not give what it gives.
        OutputError: the file cannot be written.
    """
    if kind == "onnx":
        require_extra("export", "whitebox export to ONNX")
    patch = model.encoder.patch_size
    sizes = [(size, size)] if size is not None else _sizes(patch)
    if kind == "safetensors":
        return _save_weights(model, config, path, sizes, half, decoder_only)
    dtype = torch.float16 if half else torch.float32
    if isinstance(model, OpenSegmentor):
        model.prepare()
    exported = Exported(copy.deepcopy(model).to(dtype) if half else model, dtype).eval()
    say("translating the model")
    with _quiet(), torch.no_grad(), _any_size(exported.model, size is None):
        program = _program(exported, sizes[0], dynamic=size is None)
        about = json.dumps(_about(model, config, size, half))
        if kind == "torch-export":
            write_atomically(
                path, lambda target: torch.export.save(program, str(target), extra_files={METADATA: about})
            )
            found: nn.Module = torch.export.load(str(path)).module()
        else:
            _write_onnx(program, path, opset, about)
            found = read_onnx(path)
    say("comparing the file with the model")
    plain = Exported(model, torch.float32)
    try:
        return _compared(found, plain, sizes, 0.0 if half else AGREEING)
    except ModelError:
        path.unlink(missing_ok=True)
        raise


def _save_weights(
    model: Segmentor, config: RunConfig, path: Path, sizes: list[tuple[int, int]], half: bool, decoder_only: bool
) -> Check:
    """Write a ``model.safetensors`` of its own, and compare.

    Raises:
        ConfigError: the encoder was trained with the decoder, so that nobody else has it.
    """
    if decoder_only and not encoder_apart(config):
        raise ConfigError(f"The encoder of {config.model} is the run's own: leave --decoder-only out.")
    weights = model.state_dict()
    if half:
        weights = {name: each.half() if each.is_floating_point() else each for name, each in weights.items()}
    save_model(path, model, replace(config, train=replace(config.train, whole=not decoder_only)), weights)
    try:
        found = Exported(load_weights(path)[0], torch.float32)
        return _compared(found, Exported(model, torch.float32), sizes, 0.0 if half else 1.0)
    except ModelError:
        path.unlink(missing_ok=True)
        raise


def _sizes(patch: int) -> list[tuple[int, int]]:
    """Images of any size: wide, high, and none a multiple of the patch."""
    return [(16 * patch, 12 * patch), (9 * patch - 3, 14 * patch + 1), (20 * patch, 20 * patch)]


def _program(exported: Exported, size: tuple[int, int], *, dynamic: bool) -> Any:
    from torch.export import Dim

    shapes: dict[int, Any] = {0: Dim("batch", min=1, max=64)}
    if dynamic:
        shapes |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    example = torch.rand(2, 3, *size)
    try:
        return torch.export.export(exported, (example,), dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # torch raises errors of many kinds where a model does not fit what it can follow
        log = logging.getLogger("whitebox")
        log.debug("torch.export", exc_info=True)
        reason = " ".join(str(error).split())[:200]
        cure = "; --size N exports it for one size" if dynamic else ""
        raise ModelError(f"torch.export {torch.__version__} cannot follow this model ({reason}){cure}.") from error


def _write_onnx(program: Any, path: Path, opset: int | None, about: str) -> None:
    import onnx

    try:
        translated = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            optimize=True,
            opset_version=opset,
            input_names=["images"],
            output_names=["classes"],
        )
        assert translated is not None
        proto = translated.model_proto
    except Exception as error:  # see `_program`
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"torch.onnx of torch {torch.__version__} cannot translate this model ({reason}).") from error
    said = proto.metadata_props.add()
    said.key, said.value = METADATA, about
    if proto.ByteSize() >= 2**31:
        raise ModelError(
            "The model has more than 2 GB, which an ONNX file cannot hold: add --half, or take another format."
        )
    write_atomically(path, lambda target: onnx.save_model(proto, str(target)))


def _about(model: Segmentor, config: RunConfig, size: int | None, half: bool) -> dict[str, Any]:
    inference = config.inference
    if size is not None:
        inference = replace(inference, window=size, stride=min(inference.stride or size, size))
    gives = "probabilities" if model.decoder.independent else "scores" if model.decoder.scores else "logits"
    return {
        "model": config.model,
        "classes": list(model.classes),
        "palette": [list(colour) for colour in model.palette],
        "input": "RGB images, float32 in [0, 1], (B, 3, H, W)",
        "gives": gives,
        "size": size,
        "half": half,
        "inference": asdict(inference),
        "data": {key: getattr(config.data, key) for key in ("name", "resize", "max_ratio", "transforms")},
        "versions": versions(),
    }


@contextmanager
def _any_size(model: Segmentor, dynamic: bool) -> Iterator[None]:
    """Inside the block the parts of a model that have special cases of a size compute without them."""
    modules: list[Any] = list(model.modules()) if dynamic else []
    parts = [each for each in modules if hasattr(each, "any_size")]
    of_dinov3 = getattr(timm.layers, "RotaryEmbeddingDinoV3", ())  # older versions have none
    rotary = [each for each in modules if isinstance(each, of_dinov3) and each.normalize_coords == "separate"]
    for part in parts:
        part.any_size = True
    for rope in rotary:
        rope.get_embed = partial(_rotary, rope)
    try:
        yield
    finally:
        for part in parts:
            part.any_size = False
        for rope in rotary:
            del rope.get_embed


def _rotary(rope: Any, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """``RotaryEmbeddingDinoV3.get_embed``, (h * w, 2 P), without Python's numbers of the grid, which fix a size.

    Source: timm; patches lie at the middles of h and of w steps between -1 and 1.
    """
    sides = [(torch.arange(side, device=rope.periods.device) + 0.5 + rope.grid_offset) / side for side in shape]
    coordinates_N2 = 2 * torch.stack(torch.meshgrid(sides, indexing="ij"), dim=-1).flatten(0, 1) - 1
    angles_NP = (2 * math.pi * coordinates_N2[:, :, None].to(rope.periods.dtype) / rope.periods).flatten(1)
    waves = [angles_NP.sin(), angles_NP.cos()]
    if rope.rotate_half:
        waves = [torch.cat([wave, wave], dim=-1) for wave in waves]
    else:
        waves = [wave.repeat_interleave(2, dim=-1) for wave in waves]
    found = torch.cat(waves, dim=-1)
    return found if dtype is None else found.to(dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's own words about how it translates are for its authors."""
    names = ("torch.onnx", "torch.export", "onnxscript", "torch.fx")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@torch.inference_mode()
def _compared(found: nn.Module, model: nn.Module, sizes: Sequence[tuple[int, int]], least: float) -> Check:
    """Made images through both; ``least``: share of pixels that must have the same class."""
    difference, same, pixels = 0.0, 0, 0
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        coarse = torch.rand(2, 3, 8, 8, generator=generator)
        images = nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
        ours, theirs = model(images).float(), found(images).float()
        difference = max(difference, float((ours - theirs).abs().max()))
        same += int((ours.argmax(1) == theirs.argmax(1)).sum())
        pixels += ours[:, 0].numel()
    agreement = same / pixels
    if not agreement >= least:
        raise ModelError(
            f"The file does not give what the model gives: {agreement:.2%} of the pixels have the same class (largest "
            f"difference {difference:.3g}), so it was deleted: export it for one size (--size N), or choose another "
            "--opset or --format."
        )
    one = images[:1]
    return Check(difference, agreement, (_seconds(found, one), _seconds(model, one)), tuple(sizes))


def _seconds(module: nn.Module, images: Tensor) -> float:
    module(images)
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        module(images)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


class OnnxModel(nn.Module):
    """An exported file as a model: images (B, 3, H, W) in [0, 1] -> class maps (B, K, H, W).

    Attributes:
        classes, palette: K names and RGB triples.
        gives: logits, scores or probabilities, see ``whitebox.engine.assembly``.
        inference, data: how photos are to be shown to it.
    """

    def __init__(self, session: Any, about: dict[str, Any]) -> None:
        super().__init__()
        self.session = session
        self.classes = tuple(str(name) for name in about["classes"])
        self.palette = tuple(tuple(int(part) for part in colour) for colour in about["palette"])
        self.gives = str(about["gives"])
        self.size: int | None = about["size"]
        self.inference = InferenceConfig(**about["inference"])
        self.data = DataConfig(**about["data"])

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def forward(self, images: Tensor) -> Tensor:
        (maps_BKHW,) = self.session.run(None, {"images": images.float().cpu().numpy()})
        return torch.from_numpy(maps_BKHW)


def read_onnx(path: Path) -> OnnxModel:
    """A file that ``whitebox export`` has written.

    Raises:
        ConfigError: onnxruntime is not installed.
        CheckpointError: the file is missing, damaged, or was not written by whitebox.
    """
    require_extra("export", f"{path}, an ONNX file,")
    import onnxruntime

    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises errors of its own, which share no base
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{path} is damaged, or no ONNX file that onnxruntime takes ({reason}).") from error
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise CheckpointError(f"{path} was not written by `whitebox export`: it does not say what its classes are.")
    try:
        return OnnxModel(session, parse_json(text))
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"The metadata of {path} cannot be used: it is damaged ({type(error).__name__})."
        ) from error
