"""SED: a cost volume between pixels and names, refined class by class.

Paper: Xie et al., "SED: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation", CVPR 2024,
arXiv 2311.15537. Official code: ``xb534/SED`` (db20d93, Apache-2.0). Written from a description of it.

The cosine between the CLIP embedding of a place and that of a name under each of P prompt templates is a map with P
channels a class, the cost volume. A 7 x 7 convolution embeds it; three layers refine and double it, in three parts:

    spatial    a large-kernel ConvNeXt block, class by class (feature aggregation);
               or two Swin blocks, which the official code has too, for no released config
    classes    attention over the classes at each place, pooled; linear or softmax (feature aggregation)
    fusion     upsampling, then two 3 x 3 convolutions that also read the image's feature maps and the cost (skip-layer
               fusion); what they read of the image is detached, so the image tower learns through the cost alone

Heads of one 3 x 3 convolution say a mask before each layer and after the last. Those before the last are read for early
rejection (``topk``): a class that is among the k best of no place is not refined any further. Its logit is -inf.
The classes that are left see each other alone, so their masks are not those of the whole vocabulary.

Deliberate deviations from the official code. With the same weights none changes an output that it can give:

- Early rejection takes batches; each image keeps classes of its own. The official code takes one image.
- The pooled map of class attention is ``pool`` in training and ``eval_pool`` in evaluation. There that is one
  number, and the official evaluation script sets it to 1 after training with 2.
- Any number of templates and any widths. The official code fixes 80 templates where the cost is read for fusion.
- Without gradients the same is computed some classes at a time (``whitebox.models.decoders.sed_chunks``).

Shapes: B batch, T classes, P prompt templates, C channels, D width of the CLIP embedding, G guidance channels, h w a
grid, n = B * T maps (the classes of an image side by side).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from whitebox.errors import ModelError, require
from whitebox.models.decoders.base import Decoder, Prediction
from whitebox.models.taps import Readout, Tap

STAGES = 3


@dataclass(frozen=True, kw_only=True)
class SEDConfig:
    """Hyper-parameters of SED. The defaults are those of SED-B and SED-L."""

    name: str = "sed"
    hidden: int = 128  # channels of the embedded cost
    widths: list[int] = field(default_factory=lambda: [64, 32, 16])  # channels after each layer
    guidance: list[int] = field(default_factory=lambda: [32, 16, 8])  # channels read of the image, and of the cost
    spatial: str = "convnext"  # blocks on the map of a class: convnext | swin
    kernels: list[int] = field(default_factory=lambda: [9, 9, 9])  # of the ConvNeXt blocks
    window: int = 12  # of the Swin blocks, places a side
    heads: int = 4  # of class attention, and of the Swin blocks
    attention: str = "linear"  # linear | full (softmax)
    pool: int = 2  # class attention sees averages of pool x pool places, in training
    eval_pool: int = 1  # and in evaluation
    text_guidance: bool = False  # class attention also reads the names' embeddings (as CAT-Seg; not in SED)
    train: str = "all"  # all | heads: only the three auxiliary heads, of a model that lacks them

    def __post_init__(self) -> None:
        for key in ("widths", "guidance", "kernels"):
            values = list(getattr(self, key))
            require(
                len(values) == STAGES and min(values) >= 1, f"decoder.{key}", values, f"it takes {STAGES} numbers >= 1"
            )
        for kernel in self.kernels:
            require(kernel % 2 == 1, "decoder.kernels", list(self.kernels), "kernels are odd")
        for width in self.widths:
            groups = width // 16
            fits = groups >= 1 and width % groups == 0
            require(fits, "decoder.widths", list(self.widths), "each is at least 16 and divided by its sixteenth part")
        inputs = [self.hidden, *self.widths[:-1]]
        for width, guidance in zip(inputs, self.guidance, strict=True):
            require(
                guidance < width, "decoder.guidance", list(self.guidance), f"fewer than the {width} channels beside"
            )
            require(width % self.heads == 0, "decoder.heads", self.heads, f"it must divide the widths {inputs}")
        require(self.spatial in ("convnext", "swin"), "decoder.spatial", self.spatial, "choose convnext or swin")
        for key in ("pool", "eval_pool", "window"):
            require(getattr(self, key) >= 1, f"decoder.{key}", getattr(self, key), "it must be at least 1")
        require(self.attention in ("linear", "full"), "decoder.attention", self.attention, "choose linear or full")
        require(self.train in ("all", "heads"), "decoder.train", self.train, "choose all or heads")


def linear_attention(q_NTHd: Tensor, k_NSHd: Tensor, v_NSHd: Tensor, eps: float = 1e-6) -> Tensor:
    """phi(q) (phi(k)^T v) / (phi(q) sum phi(k) + eps) with phi = elu + 1, (N, T, H, d).

    Source: Katharopoulos et al. 2020, arXiv 2006.16236, equation 6.
    """
    q_NTHd, k_NSHd = phi(q_NTHd), phi(k_NSHd)
    kv_NHdd = torch.einsum("nshd,nshe->nhde", k_NSHd, v_NSHd)
    norm_NTH = torch.einsum("nthd,nhd->nth", q_NTHd, k_NSHd.sum(1)) + eps
    return torch.einsum("nthd,nhde->nthe", q_NTHd, kv_NHdd) / norm_NTH[..., None]


def phi(x: Tensor) -> Tensor:
    """Elu + 1: exp(x) below 0, x + 1 above."""
    if torch.is_grad_enabled():
        return F.elu(x) + 1
    return x.clamp(max=0).exp_().add_(x.clamp(min=0))  # the same, in a third of a processor's time


def full_attention(q_NTHd: Tensor, k_NSHd: Tensor, v_NSHd: Tensor) -> Tensor:
    """Softmax attention with scale d^-1/2, (N, T, H, d)."""
    q_NHTd, k_NHSd, v_NHSd = (each.transpose(1, 2) for each in (q_NTHd, k_NSHd, v_NSHd))
    return F.scaled_dot_product_attention(q_NHTd, k_NHSd, v_NHSd).transpose(1, 2)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a map, which come last. No ``nn.LayerNorm``: weight decay acts on it (SED)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_xC: Tensor) -> Tensor:
        return F.layer_norm(x_xC, self.weight.shape, self.weight, self.bias, eps=1e-6)


class SpatialBlock(nn.Module):
    """ConvNeXt block with a large kernel; layer scale starts at 1."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = ChannelNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x_nChw: Tensor) -> Tensor:
        y_nhwC = self.depthwise(x_nChw).permute(0, 2, 3, 1)
        y_nhwC = self.scale * self.mlp(self.norm(y_nhwC))
        return x_nChw + y_nhwC.permute(0, 3, 1, 2)


class WindowAttention(nn.Module):
    """Softmax attention within windows of a map, without position bias (SED); Swin's (arXiv 2103.14030) has one."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x_nhwC: Tensor, window: int, shift: int) -> Tensor:
        n, h, w, C = x_nhwC.shape
        rolled_nhwC = x_nhwC.roll((-shift, -shift), (1, 2)) if shift else x_nhwC
        grid = (h // window, window, w // window, window)
        z_MLC = rolled_nhwC.view(n, *grid, C).transpose(2, 3).reshape(-1, window**2, C)
        q, k, v = (each(z_MLC).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.q, self.k, self.v))
        together = None
        if shift:  # what was rolled in from the other side belongs to another part of the map
            rows_h, columns_w = (parts(side, window, shift).to(x_nhwC.device) for side in (h, w))
            part_hw = 3 * rows_h[:, None] + columns_w
            part_WL = part_hw.view(grid).transpose(1, 2).reshape(-1, window**2)
            together = (part_WL[:, None, :, None] == part_WL[:, None, None, :]).repeat(n, 1, 1, 1)
        read_MLC = F.scaled_dot_product_attention(q, k, v, together).transpose(1, 2).flatten(2)
        windows_nyxwwC = self.proj(read_MLC).view(n, grid[0], grid[2], window, window, C)
        back_nhwC = windows_nyxwwC.transpose(2, 3).reshape(x_nhwC.shape)
        return back_nhwC.roll((shift, shift), (1, 2)) if shift else back_nhwC


def parts(side: int, window: int, shift: int) -> Tensor:
    """Along one side of a rolled map: 0 before its last window, then 1 what was there, 2 what came from the front."""
    index = torch.arange(side)
    return (index >= side - window).long() + (index >= side - shift)


class SwinBlock(nn.Module):
    """Pre-norm Transformer block on the map of a class, attention within windows."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads)
        self.mlp = Mlp(channels, 4 * channels)

    def forward(self, x_nhwC: Tensor, window: int, shift: int) -> Tensor:
        x_nhwC = x_nhwC + self.attn(self.norm1(x_nhwC), window, shift)
        return cast(Tensor, x_nhwC + self.mlp(self.norm2(x_nhwC)))


class SwinBlocks(nn.Module):
    """Two blocks in place of a ``SpatialBlock``, the second with windows shifted by half of one.

    On a map no larger than a window there is one window, and no shift. Unlike in the official code the map may have any
    size whose sides are multiples of the window.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.block_1, self.block_2 = (SwinBlock(channels, heads) for _ in range(2))

    def forward(self, x_nChw: Tensor) -> Tensor:
        h, w = x_nChw.shape[-2:]
        window = min(self.window, h, w)
        if h % window or w % window:
            raise ModelError(
                f"A map of {h} x {w} places has no whole windows of {window}: choose another decoder.window."
            )
        shift = 0 if min(h, w) <= self.window else window // 2
        x_nhwC = self.block_2(self.block_1(x_nChw.permute(0, 2, 3, 1), window, 0), window, shift)
        return cast(Tensor, x_nhwC.permute(0, 3, 1, 2))


class ClassAttention(nn.Module):
    """Pre-norm Transformer layer over the classes at each place, without output map; MLP with ReLU.

    Its result is upsampled (corners aligned) and *added*: the pooled input counts there, too.
    """

    def __init__(self, channels: int, heads: int, attention: str, guidance: int = 0) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.q, self.k = (nn.Linear(channels + guidance, channels) for _ in range(2))
        self.v = nn.Linear(channels, channels)
        self.mlp = Mlp(channels, 4 * channels, act_layer=nn.ReLU)
        self.weights = Readout()

    def forward(self, x_BTChw: Tensor, pool: int, guidance_TG: Tensor | None = None) -> Tensor:
        B, T, C, h, w = x_BTChw.shape
        pooled_BTChw = pooled(x_BTChw, pool)
        y_NTC = pooled_BTChw.permute(0, 3, 4, 1, 2).reshape(-1, T, C)
        y_NTC = self.mix(y_NTC, guidance_TG)
        y_BhwTC = y_NTC.view(B, *pooled_BTChw.shape[-2:], T, C)
        return x_BTChw + upsampled(y_BhwTC.permute(0, 3, 4, 1, 2), (h, w))

    def mix(self, y_NTC: Tensor, guidance_TG: Tensor | None) -> Tensor:
        """The Transformer layer, tokens are the classes."""
        q_NTHd, k_NTHd, v_NTHd = self.project(y_NTC, guidance_TG)
        if self.weights.listening:
            self.weights(class_weights(q_NTHd, k_NTHd, self.attention))
        T = y_NTC.shape[1]
        if self.attention == "full":
            read_NTHd = full_attention(q_NTHd, k_NTHd, v_NTHd)
        else:
            read_NTHd = linear_attention(q_NTHd, k_NTHd, v_NTHd / T) * T  # so that half precision does not overflow
        return self.finish(y_NTC, read_NTHd)

    def project(self, y_NTC: Tensor, guidance_TG: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (N, T, H, d)."""
        z_NTC = self.norm1(y_NTC)
        both = z_NTC
        if guidance_TG is not None:
            both = torch.cat([z_NTC, guidance_TG.expand(z_NTC.shape[0], -1, -1)], dim=-1)
        q, k, v = (each.unflatten(-1, (self.heads, -1)) for each in (self.q(both), self.k(both), self.v(z_NTC)))
        return q, k, v

    def finish(self, y_NTC: Tensor, read_NTHd: Tensor) -> Tensor:
        """Tokens after what they read was added, and the MLP."""
        y_NTC = y_NTC + read_NTHd.flatten(2)
        return cast(Tensor, y_NTC + self.mlp(self.norm2(y_NTC)))


def class_weights(q_NTHd: Tensor, k_NSHd: Tensor, attention: str) -> Tensor:
    """Weights of class attention, rows are queries, (N, H, T, S)."""
    if attention == "full":
        logits_NHTS = torch.einsum("nthd,nshd->nhts", q_NTHd, k_NSHd) * q_NTHd.shape[-1] ** -0.5
        return logits_NHTS.softmax(-1)
    products_NHTS = torch.einsum("nthd,nshd->nhts", phi(q_NTHd), phi(k_NSHd))
    return products_NHTS / (products_NHTS.sum(-1, keepdim=True) + 1e-6)


def pooled(x_BTChw: Tensor, pool: int) -> Tensor:
    """Averages of pool x pool places; what is left over at the border is dropped."""
    if pool == 1:
        return x_BTChw
    if min(x_BTChw.shape[-2:]) < pool:
        raise ModelError(
            f"A map of {x_BTChw.shape[-2]} x {x_BTChw.shape[-1]} places cannot be pooled {pool} x {pool}: "
            "take larger images, or decoder.pool=1."
        )
    return F.avg_pool2d(x_BTChw.flatten(0, 1), pool).unflatten(0, x_BTChw.shape[:2])


def upsampled(y_BTChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corners aligned."""
    if y_BTChw.shape[-2:] == size:
        return y_BTChw
    flat = F.interpolate(y_BTChw.flatten(0, 1), size=size, mode="bilinear", align_corners=True)
    return flat.unflatten(0, y_BTChw.shape[:2])


class Fusion(nn.Module):
    """Upsampling by two, joined with what is read of image and cost; two convolutions with GroupNorm and ReLU."""

    def __init__(self, channels: int, out: int, guidance: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels - guidance, 2, stride=2)
        self.conv1 = nn.Conv2d(channels + guidance, out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(out // 16, out), nn.GroupNorm(out // 16, out)

    def forward(self, x_nChw: Tensor, image_BGhw: Tensor, cost_nGhw: Tensor) -> Tensor:
        image_nGhw = image_BGhw.repeat_interleave(x_nChw.shape[0] // image_BGhw.shape[0], dim=0)
        joined = torch.cat([self.up(x_nChw), image_nGhw, cost_nGhw], dim=1)
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(joined))))))


class Layer(nn.Module):
    """One of the three layers: spatial block, class attention, fusion."""

    def __init__(self, channels: int, out: int, guidance: int, kernel: int, config: SEDConfig) -> None:
        super().__init__()
        self.spatial: nn.Module = SpatialBlock(channels, kernel)
        if config.spatial == "swin":
            self.spatial = SwinBlocks(channels, config.heads, config.window)
        self.classes = ClassAttention(channels, config.heads, config.attention, channels if config.text_guidance else 0)
        self.fusion = Fusion(channels, out, guidance)
        self.spatial_maps = Tap()
        self.class_maps = Tap()
        self.maps = Readout()
        self.masks = Readout()
        self.kept = Readout()

    def forward(
        self, x_nChw: Tensor, image_BGhw: Tensor, cost_nGhw: Tensor, pool: int, guidance_TG: Tensor | None
    ) -> Tensor:
        B = image_BGhw.shape[0]
        x_BTChw = self.spatial_maps(self.spatial(x_nChw).unflatten(0, (B, -1)))
        x_BTChw = self.class_maps(self.classes(x_BTChw, pool, guidance_TG))
        x_nChw = self.fusion(x_BTChw.flatten(0, 1), image_BGhw, cost_nGhw)
        self.maps(x_nChw.unflatten(0, (B, -1)))
        return x_nChw


class SED(Decoder):
    """The decoder; it takes four inputs of the encoder, finest first, the last one in the space of the names.

    Args:
        config: see there.
        widths: channels of the encoder's maps that fusion reads, coarsest first; each has twice the grid of the one
            before, the first twice that of the embedded map.
        embed: D.
        prompts: P.

    Attributes:
        text_TPD: embeddings of the names, unit vectors; what the class maps are of. None: not given yet.
        topk: early rejection in evaluation: the k of a place that are refined; None: all classes are.
        growth: places of the masks a side for one of the last map.
        chunk: classes at a time without gradients; None: as many as fit a fixed amount of memory.
    """

    Config = SEDConfig
    growth = 2**STAGES
    open_vocabulary = True
    independent = True
    text_TPD: Tensor | None

    def __init__(self, config: SEDConfig, widths: Sequence[int], embed: int, prompts: int, num_classes: int) -> None:
        super().__init__(config, config.hidden, num_classes)
        self.config, self.prompts, self.embed = config, prompts, embed
        self.topk: int | None = None
        self.chunk: int | None = None
        self.register_buffer("text_TPD", None, persistent=False)
        self.cost_embedding = nn.Conv2d(prompts, config.hidden, 7, padding=3)
        self.image_guidance = nn.ModuleList(
            nn.Conv2d(width, out, 3, padding=1) for width, out in zip(widths, config.guidance, strict=True)
        )
        costs = [prompts, *config.guidance[:-1]]
        self.cost_guidance = nn.ModuleList(
            nn.ConvTranspose2d(width, out, 2, stride=2) for width, out in zip(costs, config.guidance, strict=True)
        )
        inputs = [config.hidden, *config.widths[:-1]]
        self.layers = nn.ModuleList(
            Layer(*sizes, config) for sizes in zip(inputs, config.widths, config.guidance, config.kernels, strict=True)
        )
        if config.text_guidance:
            self.text_guidance = nn.ModuleList(nn.Linear(embed, width) for width in inputs)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 3, padding=1) for width in [config.hidden, *config.widths])
        self.cost = Tap()
        self.embedded = Readout()
        self.masks = Readout()
        if config.train == "heads":
            self.requires_grad_(False)
            self.heads[:-1].requires_grad_(True)

    @classmethod
    def beside(cls, encoder: Any, config: SEDConfig, num_classes: int) -> SED:
        if not hasattr(encoder, "prompts"):
            raise ModelError("SED compares images with names: it needs an encoder with a text tower, a CLIP ConvNeXt.")
        decoder = cls(config, encoder.widths[-2::-1], encoder.embed, encoder.prompts, num_classes)
        decoder.encoder_strides = encoder.strides
        return decoder

    def forward(self, z_BND: Sequence[Tensor], grid: object = None) -> Tensor:
        """Maps (B, C, h, w) at ``encoder_strides``, the last embedded (B, D, h, w) -> masks (B, T, 8 h, 8 w)."""
        return self.predict(z_BND, grid).masks_BKhw

    def predict(self, z_BND: Sequence[Tensor], grid: object = None) -> Prediction:
        """As ``forward``, in training with the auxiliary masks as ``earlier``, coarsest first.

        In training of the auxiliary heads alone (``train=heads``) the last of them stands for the masks.
        """
        from whitebox.models.decoders.sed_chunks import predict_in_chunks

        text_TPD = self._text()
        maps, dense_BDhw = z_BND[-2::-1], z_BND[-1]
        one_graph = torch.compiler.is_compiling()  # or exporting: of any number of images
        if self.topk is not None and not self.training:
            if one_graph and not torch.compiler.is_dynamo_compiling():
                raise ModelError("Early rejection keeps other classes in each image: set topk=None to export SED.")
            return self._rejecting(maps, dense_BDhw, text_TPD)
        counted = dense_BDhw.is_meta  # costs are those of the formulas
        whole = torch.is_grad_enabled() or self.training or counted or one_graph
        if not (whole or self._listening(dense_BDhw.shape[0])):
            return Prediction(predict_in_chunks(self, maps, dense_BDhw, text_TPD))
        return self.plain(maps, dense_BDhw, text_TPD)

    def plain(self, maps: Sequence[Tensor], dense_BDhw: Tensor, text_TPD: Tensor) -> Prediction:
        """The formulas as they stand, all classes at once; ``maps`` coarsest first."""
        B, T = dense_BDhw.shape[0], text_TPD.shape[0]
        pool = self.config.pool if self.training else self.config.eval_pool
        cost_nPhw = self.cost(cost_volume(dense_BDhw, text_TPD)).flatten(0, 1)
        x_nChw = self.cost_embedding(cost_nPhw)
        self.embedded(x_nChw.unflatten(0, (B, T)))
        guidance = self.names(text_TPD)
        masks: list[Tensor] = []
        last = self.config.train == "heads" and self.training
        for stage, layer in enumerate(self.layers):
            masks.append(self.say(stage, x_nChw.detach(), T))
            if last and stage == STAGES - 1:
                break
            image_BGhw, cost_nPhw = self.guide(stage, maps[stage], cost_nPhw)
            x_nChw = layer(x_nChw, image_BGhw, cost_nPhw, pool, guidance[stage])
        else:
            masks.append(self.say(STAGES, x_nChw, T))
        return Prediction(masks[-1], earlier=tuple(Prediction(each) for each in masks[:-1]))

    def say(self, stage: int, x_nChw: Tensor, classes: int) -> Tensor:
        """Masks (B, T, h, w) before a layer, or after the last one."""
        masks_BThw = self.heads[stage](x_nChw).view(-1, classes, *x_nChw.shape[-2:])
        tap = self.masks if stage == STAGES else cast(Layer, self.layers[stage]).masks
        return cast(Tensor, tap(masks_BThw))

    def guide(self, stage: int, map_BChw: Tensor, cost_nPhw: Tensor) -> tuple[Tensor, Tensor]:
        """What a layer's fusion reads of the image (B, G, 2 h, 2 w) and of the cost (n, G, 2 h, 2 w)."""
        image_BGhw = F.relu(self.image_guidance[stage](map_BChw.detach()))
        return image_BGhw, F.relu(self.cost_guidance[stage](cost_nPhw))

    def names(self, text_TPD: Tensor) -> list[Tensor | None]:
        """What class attention reads of the names in each layer, (T, G) or nothing."""
        if not self.config.text_guidance:
            return [None] * STAGES
        mean_TD = F.normalize(text_TPD.mean(1), dim=-1)
        return [F.relu(linear(mean_TD)) for linear in self.text_guidance]

    def _rejecting(self, maps: Sequence[Tensor], dense_BDhw: Tensor, text_TPD: Tensor) -> Prediction:
        from whitebox.models.decoders.sed_chunks import predict_rejecting

        layers = cast("Sequence[Layer]", self.layers)
        if any(tap.changed for layer in layers for tap in (layer.spatial_maps, layer.class_maps)):
            raise ModelError("With early rejection maps within a layer cannot be changed: set topk=None.")
        if len(dense_BDhw) > 1 and (self.cost.listening or self.embedded.listening):
            raise ModelError("With early rejection `cost` and `embedded` are of one image: show one at a time.")
        masks, kept = predict_rejecting(self, maps, dense_BDhw, text_TPD)
        for layer, kept_BT in zip(layers, kept, strict=True):
            layer.kept(kept_BT)
        for tap, masks_BThw in zip((layer.masks for layer in layers if layer.masks.listening), masks[:-1], strict=True):
            tap(masks_BThw)
        return Prediction(self.masks(masks[-1]))

    def _text(self) -> Tensor:
        if self.text_TPD is None:
            raise ModelError("This decoder has no names yet: `set_vocabulary` of its model gives them.")
        return self.text_TPD

    def _listening(self, images: int) -> bool:
        """Whether somebody reads what is never there as a whole where classes are visited in parts.

        Of one image these are the insides of layers, of several all there is.
        """
        layers = cast("Sequence[Layer]", self.layers)
        there = {self.cost, self.embedded, *(layer.masks for layer in layers)} if images == 1 else set()
        return any(each.listening for each in self.modules() if isinstance(each, Tap) and each not in there)


def cost_volume(dense_BDhw: Tensor, text_TPD: Tensor) -> Tensor:
    """Cosine of each place with each name under each template, (B, T, P, h, w)."""
    places_BDhw = F.normalize(dense_BDhw, dim=1)
    names_TPD = F.normalize(text_TPD, dim=-1)
    return torch.einsum("bdhw,tpd->btphw", places_BDhw, names_TPD)


def among_best(masks_Thw: Tensor, k: int) -> Tensor:
    """Which classes are among the k best of at least one place, (T,) boolean."""
    T = len(masks_Thw)
    if k >= T:
        return masks_Thw.new_ones(T, dtype=torch.bool)
    best_kN = masks_Thw.flatten(1).topk(k, dim=0).indices
    return masks_Thw.new_zeros(T, dtype=torch.bool).index_fill_(0, best_kN.flatten(), True)
