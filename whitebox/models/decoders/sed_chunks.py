"""SED without gradients: the formulas of ``sed.py``, some classes at a time, and early rejection.

Everything but class attention acts on one class alone, and linear attention needs of all classes two sums a place. So
each layer visits the classes twice, a few at a time: first the spatial block, which adds to the sums; then what the
classes read of them, and the fusion. What a layer reads of the image passes through its convolution once an image, not
once a class. Images are refined one after another, since early rejection keeps other classes in each.

Shapes: B batch, T classes, c those of a chunk, P prompt templates, C channels, D width of the CLIP embedding, G
guidance channels, H heads of d dimensions, N places (h * w), S layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from whitebox.models.decoders.sed import SED, Layer

# Numbers of the largest map at hand at once. A processor wants them in its cache, a GPU wants large kernels.
_ON_CPU, _ELSEWHERE = 2**22, 2**28


def predict_in_chunks(decoder: SED, maps: Sequence[Tensor], dense_BDhw: Tensor, text_TPD: Tensor) -> Tensor:
    """Masks (B, T, 8 h, 8 w) as ``SED.plain`` gives them; ``maps`` coarsest first."""
    return torch.stack([_image(decoder, *each, text_TPD, None)[0] for each in _images(maps, dense_BDhw)])


def predict_rejecting(
    decoder: SED, maps: Sequence[Tensor], dense_BDhw: Tensor, text_TPD: Tensor
) -> tuple[Tensor, Tensor]:
    """Masks, -inf for rejected classes; and which classes entered each layer, (S, B, T) boolean."""
    found = [_image(decoder, *each, text_TPD, decoder.topk) for each in _images(maps, dense_BDhw)]
    return torch.stack([masks for masks, _ in found]), torch.stack([kept for _, kept in found], dim=1)


def _images(maps: Sequence[Tensor], dense_BDhw: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
    for image in range(len(dense_BDhw)):
        yield [each[image : image + 1] for each in maps], dense_BDhw[image : image + 1]


def _image(
    decoder: SED, maps: list[Tensor], dense_1Dhw: Tensor, text_TPD: Tensor, topk: int | None
) -> tuple[Tensor, Tensor]:
    """Masks of one image (T, h, w), and which classes entered each layer (S, T)."""
    from whitebox.models.decoders.sed import among_best, cost_volume

    T = len(text_TPD)
    cost_TPhw = decoder.cost(cost_volume(dense_1Dhw, text_TPD))[0].contiguous(memory_format=torch.channels_last)
    x_TChw = torch.cat([decoder.cost_embedding(cost_TPhw[part]) for part in _parts(decoder, cost_TPhw, 1)])
    if decoder.input.listening:
        decoder.input(x_TChw[None])
    alive_T = torch.arange(T, device=x_TChw.device)
    kept_ST = []
    names = decoder.names(text_TPD)
    for stage, layer in enumerate(decoder.layers):
        if topk is not None:
            best = among_best(decoder.heads[stage](x_TChw)[:, 0], topk)
            alive_T, x_TChw, cost_TPhw = alive_T[best], x_TChw[best], cost_TPhw[best]
            kept_ST.append(torch.zeros(T, dtype=torch.bool, device=best.device).index_fill_(0, alive_T, True))
        guidance = names[stage]
        guidance = guidance if guidance is None else guidance[alive_T]
        last = stage + 1 == len(decoder.layers)
        x_TChw = _layer(decoder, stage, cast("Layer", layer), x_TChw, maps[stage], cost_TPhw, guidance, last)
    masks_Thw = x_TChw.new_full((T, *x_TChw.shape[-2:]), -torch.inf)
    masks_Thw[alive_T] = x_TChw[:, 0]
    return masks_Thw, torch.stack(kept_ST) if kept_ST else torch.empty(0)


def _parts(decoder: SED, x_TChw: Tensor, growth: int) -> Iterator[slice]:
    """Classes to visit together, where what is made of each is ``growth`` times as large."""
    at_once = _ON_CPU if x_TChw.device.type == "cpu" else _ELSEWHERE
    step = decoder.chunk or max(1, at_once // (growth * x_TChw[0].numel()))
    for start in range(0, len(x_TChw), step):
        yield slice(start, min(start + step, len(x_TChw)))


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
    """The classes' maps after a layer, at twice the size; after the last one the masks."""
    from whitebox.models.decoders.sed import class_sums, full_attention, pooled, read_sums, upsampled

    attention, fusion, pool = layer.classes, layer.fusion, decoder.config.eval_pool
    parts = list(_parts(decoder, x_TChw, 4))
    linear = attention.attention == "linear"

    def tokens(part: slice) -> Tensor:
        """Pooled maps of some classes as tokens, a place a row: (N, c, C)."""
        y_cChw = pooled(x_TChw[None, part], pool)[0]
        return y_cChw.flatten(2).permute(2, 0, 1)

    def names(part: slice) -> Tensor | None:
        return None if guidance_TG is None else guidance_TG[part]

    x_TChw = x_TChw.clone(memory_format=torch.channels_last)
    kv = k = None
    for part in parts:
        x_TChw[part] = layer.spatial(x_TChw[part])
        if linear:
            _, k_NcHd, v_NcHd = attention.project(tokens(part), names(part))
            added = class_sums(F.elu(k_NcHd) + 1, v_NcHd)
            kv, k = added if kv is None or k is None else (kv + added[0], k + added[1])
    if not linear:
        q_NTHd, k_NTHd, v_NTHd = attention.project(tokens(slice(None)), guidance_TG)
        read_NTHd = full_attention(q_NTHd, k_NTHd, v_NTHd)

    image_1Ghw = F.relu(decoder.image_guidance[stage](map_1Chw))
    up, cost = fusion.up.out_channels, decoder.cost_guidance[stage].out_channels
    w_up, w_image, w_cost = fusion.conv1.weight.split([up, image_1Ghw.shape[1], cost], dim=1)
    image_1Chw = F.conv2d(image_1Ghw, w_image, padding=1)
    w_own = torch.cat([w_up, w_cost], dim=1).contiguous(memory_format=torch.channels_last)

    made: list[Tensor] = []
    for part in parts:
        y_NcC = tokens(part)
        if linear:
            assert kv is not None and k is not None
            q_NcHd, _, _ = attention.project(y_NcC, names(part))
            y_NcC = attention.finish(y_NcC, read_sums(F.elu(q_NcHd) + 1, kv, k))
        else:
            y_NcC = attention.finish(y_NcC, read_NTHd[:, part])
        x_cChw = x_TChw[part]
        h, w = (side // pool for side in x_cChw.shape[-2:])
        y_cChw = y_NcC.permute(1, 2, 0).unflatten(2, (h, w))
        x_cChw = x_cChw + upsampled(y_cChw[None], (x_cChw.shape[-2], x_cChw.shape[-1]))[0]
        g_cGhw = cost_TPhw[part]
        for earlier in range(stage + 1):
            g_cGhw = F.relu_(decoder.cost_guidance[earlier](g_cGhw))
        joined = torch.cat([fusion.up(x_cChw), g_cGhw], dim=1)
        first = F.conv2d(joined, w_own, padding=1).add_(image_1Chw)
        z_cChw = F.relu_(fusion.norm2(fusion.conv2(F.relu_(fusion.norm1(first)))))
        made.append(decoder.heads[-1](z_cChw) if last else z_cChw)
    return torch.cat(made)
