"""SED without gradients: the formulas of ``sed.py``, a part at a time, and early rejection.

Spatial block and fusion act on one class alone, class attention on one place alone. So each layer is visited three
times: some classes, some places, some classes again; only the maps between layers are held whole, channels last in
memory. What a layer reads of the image passes through its convolution once an image, not once a class. Images are
refined one after another, since early rejection keeps other classes in each.

Shapes: B batch, T classes, c those of a part, P prompt templates, C channels, D width of the CLIP embedding, G guidance
channels, N some places, M some places of some classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from whitebox.models.decoders.sed import SED, Layer

# Numbers at hand at once. A processor wants them in its cache (4 MB), a GPU wants large kernels (1 GB).
_ON_CPU, _ELSEWHERE = 2**20, 2**28


def predict_in_chunks(decoder: SED, maps: Sequence[Tensor], dense_BDhw: Tensor, text_TPD: Tensor) -> Tensor:
    """Masks (B, T, 8 h, 8 w) as ``SED.plain`` gives them; ``maps`` coarsest first."""
    return torch.stack([_image(decoder, *each, text_TPD, None)[0][-1] for each in _images(maps, dense_BDhw)])


def predict_rejecting(
    decoder: SED, maps: Sequence[Tensor], dense_BDhw: Tensor, text_TPD: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Masks (B, T, h, w), -inf for rejected classes, and which classes entered each layer, (B, T) boolean.

    The last masks are the decoder's own; before them are those before each layer that somebody listens to.
    """
    found = [_image(decoder, *each, text_TPD, decoder.topk) for each in _images(maps, dense_BDhw)]
    masks, kept = (list(map(torch.stack, zip(*each, strict=True))) for each in zip(*found, strict=True))
    return masks, kept


def _images(maps: Sequence[Tensor], dense_BDhw: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
    for image in range(len(dense_BDhw)):
        yield [each[image : image + 1] for each in maps], dense_BDhw[image : image + 1]


def _image(
    decoder: SED, maps: list[Tensor], dense_1Dhw: Tensor, text_TPD: Tensor, topk: int | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Of one image: masks (T, h, w), and with early rejection which classes entered each layer (T,).

    With early rejection the masks are also those before each layer that somebody listens to.
    """
    from whitebox.models.decoders.sed import among_best, cost_volume

    T = len(text_TPD)
    cost_TPhw = decoder.cost(cost_volume(dense_1Dhw, text_TPD))[0].contiguous(memory_format=torch.channels_last)
    each = decoder.config.hidden * cost_TPhw[0, 0].numel()
    parts = _parts(decoder, T, 2 * each, cost_TPhw.device)
    x_TChw = torch.cat([decoder.cost_embedding(cost_TPhw[part]) for part in parts])
    x_TChw = x_TChw.contiguous(memory_format=torch.channels_last)
    if decoder.embedded.listening:
        decoder.embedded(x_TChw[None].clone())
    alive_T = torch.arange(T, device=x_TChw.device)
    said: list[Tensor] = []
    kept: list[Tensor] = []
    names = decoder.names(text_TPD)
    for stage, layer in enumerate(decoder.layers):
        if topk is not None:
            said_Thw = decoder.heads[stage](x_TChw)[:, 0]
            if cast("Layer", layer).masks.listening:
                said.append(_of_all(said_Thw, alive_T, T))
            best = among_best(said_Thw, topk)
            alive_T, x_TChw, cost_TPhw = alive_T[best], x_TChw[best], cost_TPhw[best]
            kept.append(torch.zeros(T, dtype=torch.bool, device=best.device).index_fill_(0, alive_T, True))
        elif cast("Layer", layer).masks.listening:
            decoder.say(stage, x_TChw, T)
        guidance = names[stage]
        guidance = guidance if guidance is None else guidance[alive_T]
        last = stage + 1 == len(decoder.layers)
        x_TChw = _layer(decoder, stage, cast("Layer", layer), x_TChw, maps[stage], cost_TPhw, guidance, last)
    return [*said, _of_all(x_TChw[:, 0], alive_T, T)], kept


def _of_all(masks_chw: Tensor, alive_c: Tensor, T: int) -> Tensor:
    """Masks (T, h, w) of all classes, -inf for those that are rejected."""
    masks_Thw = masks_chw.new_full((T, *masks_chw.shape[1:]), -torch.inf)
    masks_Thw[alive_c] = masks_chw
    return masks_Thw


def _parts(decoder: SED, total: int, each: int, device: torch.device) -> Iterator[slice]:
    """Slices of ``total`` things that are visited together, where each takes ``each`` numbers."""
    at_once = _ON_CPU if device.type == "cpu" else _ELSEWHERE
    step = decoder.chunk or max(1, at_once // each)
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def _layer(
    decoder: SED,
    stage: int,
    layer: Layer,
    x_TChw: Tensor,
    map_1Chw: Tensor,
    cost_TPhw: Tensor,
    guidance_TG: Tensor | None,
    last: bool,
) -> Tensor:
    """The classes' maps after a layer, at twice the size; after the last one the masks. ``x_TChw`` is written over."""
    _spatial(decoder, layer, x_TChw)
    y_TChw = _attend(decoder, layer, x_TChw, guidance_TG)
    return _fuse(decoder, stage, layer, x_TChw, y_TChw, map_1Chw, cost_TPhw, last)


def _spatial(decoder: SED, layer: Layer, x_TChw: Tensor) -> None:
    """The spatial block, in place."""
    from whitebox.models.decoders.sed import SpatialBlock

    block, device = layer.spatial, x_TChw.device
    T, C, h, w = x_TChw.shape
    for part in _parts(decoder, T, 2 * C * h * w, device):
        if not isinstance(block, SpatialBlock):
            x_TChw[part] = block(x_TChw[part])
            continue
        z_MC = block.depthwise(x_TChw[part]).permute(0, 2, 3, 1).reshape(-1, C)
        x_MC = x_TChw[part].permute(0, 2, 3, 1).view(-1, C)
        for some in _parts(decoder, len(z_MC), 8 * C, device):
            x_MC[some] += block.mlp(block.norm(z_MC[some])).mul_(block.scale)


def _attend(decoder: SED, layer: Layer, x_TChw: Tensor, guidance_TG: Tensor | None) -> Tensor:
    """What class attention adds, on pooled places; without pooling the maps with it, in place."""
    from whitebox.models.decoders.sed import pooled

    pool = decoder.config.eval_pool
    T, C = x_TChw.shape[:2]
    y_TChw = pooled(x_TChw[None], pool)[0].contiguous(memory_format=torch.channels_last)
    h, w = y_TChw.shape[-2:]
    y_TLC = y_TChw.permute(0, 2, 3, 1).view(T, h * w, C)
    for some in _parts(decoder, h * w, 8 * T * C, x_TChw.device):
        y_NTC = y_TLC[:, some].transpose(0, 1).contiguous()
        y_NTC = layer.classes.mix(y_NTC, guidance_TG)
        if pool == 1:
            y_TLC[:, some] += y_NTC.transpose(0, 1)
        else:
            y_TLC[:, some] = y_NTC.transpose(0, 1)
    return y_TChw


def _fuse(
    decoder: SED,
    stage: int,
    layer: Layer,
    x_TChw: Tensor,
    y_TChw: Tensor,
    map_1Chw: Tensor,
    cost_TPhw: Tensor,
    last: bool,
) -> Tensor:
    from whitebox.models.decoders.sed import upsampled

    fusion = layer.fusion
    image_1Ghw = F.relu(decoder.image_guidance[stage](map_1Chw))
    up, cost = fusion.up.out_channels, fusion.conv1.in_channels - fusion.up.out_channels - image_1Ghw.shape[1]
    w_up, w_image, w_cost = fusion.conv1.weight.split([up, image_1Ghw.shape[1], cost], dim=1)
    image_1Chw = F.conv2d(image_1Ghw, w_image, padding=1).contiguous(memory_format=torch.channels_last)
    w_own = torch.cat([w_up, w_cost], dim=1).contiguous(memory_format=torch.channels_last)
    T, h, w = x_TChw.shape[0], x_TChw.shape[2], x_TChw.shape[3]
    out = 1 if last else fusion.conv2.out_channels
    made_TChw = x_TChw.new_empty(T, out, 2 * h, 2 * w).contiguous(memory_format=torch.channels_last)
    for part in _parts(decoder, T, 4 * (up + cost) * h * w, x_TChw.device):
        x_cChw = y_TChw[part]
        if decoder.config.eval_pool > 1:
            x_cChw = x_TChw[part] + upsampled(x_cChw[None], (h, w))[0]
        g_cGhw = cost_TPhw[part]
        for earlier in range(stage + 1):
            g_cGhw = F.relu_(decoder.cost_guidance[earlier](g_cGhw))
        joined = torch.cat([fusion.up(x_cChw), g_cGhw], dim=1)
        first = F.conv2d(joined, w_own, padding=1).add_(image_1Chw)
        z_cChw = F.relu_(fusion.norm2(fusion.conv2(F.relu_(fusion.norm1(first)))))
        made_TChw[part] = decoder.heads[-1](z_cChw) if last else z_cChw
    return made_TChw
