"""CLIP with a ConvNeXt image tower: feature maps at strides, and embeddings of names in the space of the last map.

The image towers are those of open_clip (``convnext_base_w_320``, ``convnext_large_d_320``: timm's ConvNeXt, LayerNorm,
projection); SED applies the projection at every place of the last map instead of to its average. The text tower is
CLIP's causal Transformer (``whitebox.models.text``), frozen. Both are built here without open_clip; its tokenizer is
needed where names become token ids.

Training follows SED rather than open_clip's own configs, which changed since: no drop path in the base model, 0.1 and
a dropout of 0.1 in the projection of the large one.

Shapes: B batch, C channels, D width of the embedding, H W pixels, h w a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import Mlp
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from whitebox.errors import CheckpointError, ModelError, require
from whitebox.models.hub import from_hub
from whitebox.models.taps import Tap
from whitebox.models.text import TEMPLATE_COUNTS, TextTower, make_tokenizer
from whitebox.models.weights import load_strictly, read_content, read_tensors, renamed, unwrap

MEAN = (122.7709383, 116.7460125, 104.09373615)  # of CLIP's pixels, 0..255
STD = (68.5005327, 66.6321579, 70.32316305)
LEVELS = 4

PRESETS: dict[str, dict[str, Any]] = {
    "clip_convnext_base_w_320": {
        "depths": [3, 3, 27, 3],
        "widths": [128, 256, 512, 1024],
        "embed": 640,
        "projection": "linear",
        "text_width": 640,
        "text_heads": 10,
        "text_layers": 12,
        "hub": "laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K",
    },
    "clip_convnext_large_d_320": {
        "depths": [3, 3, 27, 3],
        "widths": [192, 384, 768, 1536],
        "embed": 768,
        "projection": "mlp",
        "text_width": 768,
        "text_heads": 12,
        "text_layers": 16,
        "drop_path": 0.1,
        "dropout": 0.1,
        "hub": "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
    },
    "clip_convnext_tiny": {  # ours, small enough to be trained on made images in minutes
        "depths": [1, 1, 2, 1],
        "widths": [24, 48, 72, 96],
        "embed": 64,
        "projection": "linear",
        "patch_size": 2,
        "layer_scale": None,
        "text_width": 64,
        "text_heads": 4,
        "text_layers": 2,
    },
}
# open_clip's names of the tensors -> ours; the first that matches renames
OPEN_CLIP_NAMES = (
    (r"visual\.trunk\.(.+)", r"trunk.\1"),
    (r"visual\.head\.(?:proj|mlp)\.(.+)", r"projection.\1"),
    (r"token_embedding\.(.+)", r"text.token_embedding.\1"),
    (r"positional_embedding", r"text.positional_embedding"),
    (r"text_projection", r"text.projection"),
    (r"ln_final\.(.+)", r"text.norm.\1"),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.(.+)", r"text.layers.\1.norm\2.\3"),
    (r"transformer\.resblocks\.(\d+)\.attn\.(.+)", r"text.layers.\1.self_attn.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.+)", r"text.layers.\1.linear1.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.+)", r"text.layers.\1.linear2.\2"),
)
# What is trained of the image tower, by the names of its tensors (SED's CLIP_FINETUNE).
FINETUNE = {
    "full": ("",),
    "conv": ("conv",),
    "mlp": ("mlp",),
    "res5": ("stages.3",),
    "none": (),
}


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Which CLIP, and how it is initialised. ``None`` keeps what the name defines."""

    name: str = "clip_convnext_base_w_320"
    pretrained: bool = False  # download open_clip's weights from the Hub
    weights: str | None = None  # or read them from this file (.safetensors, or .pth holding tensors only)
    image_size: int | None = None  # px, of the square that images are squashed to; None: the dataset's crop, else 768
    squash: bool = True  # False: images keep their own size and aspect ratio
    finetune: str = "full"  # of the image tower: full | conv | mlp | res5 | none
    train_text: bool = False  # whether the text tower is trained, too (a control: SED never does)
    embeddings: str = "text"  # of names: text | random (a control: unit vectors that know nothing of their words)
    templates: str = "imagenet"  # prompts of a name: imagenet (80) | imagenet-select (8) | single | plain (4)
    drop_path: float | None = None
    dropout: float | None = None  # in the projection
    depths: list[int] | None = None
    widths: list[int] | None = None
    embed: int | None = None
    projection: str | None = None  # linear | mlp
    patch_size: int | None = None  # px, of the stem
    layer_scale: float | None = None  # what it starts from, where the name says no other
    text_width: int | None = None
    text_heads: int | None = None
    text_layers: int | None = None
    context: int | None = None  # tokens of a prompt at most
    words: list[str] = field(default_factory=list)  # a vocabulary of whole words; empty: CLIP's byte pairs
    vocabulary: int | None = None  # number of tokens; None: those of the tokenizer

    def __post_init__(self) -> None:
        require(self.name in PRESETS, "encoder.name", self.name, f"choose {', '.join(PRESETS)}")
        require(not (self.pretrained and self.weights), "encoder.weights", self.weights, "not with pretrained=true")
        require(self.finetune in FINETUNE, "encoder.finetune", self.finetune, f"choose {', '.join(FINETUNE)}")
        known = self.embeddings in ("text", "random")
        require(known, "encoder.embeddings", self.embeddings, "choose text or random")
        read = self.embeddings == "text"
        require(read or not self.train_text, "encoder.train_text", self.train_text, "random embeddings read no text")
        sets = ", ".join(TEMPLATE_COUNTS)
        require(self.templates in TEMPLATE_COUNTS, "encoder.templates", self.templates, f"choose {sets}")
        for key in ("drop_path", "dropout"):
            value = getattr(self, key)
            require(value is None or 0 <= value < 1, f"encoder.{key}", value, "it lies in [0, 1)")
        for key in ("depths", "widths"):
            value = getattr(self, key)
            fits = value is None or (len(value) == LEVELS and min(value) >= 1)
            require(fits, f"encoder.{key}", value, f"it takes {LEVELS} numbers >= 1")
        known = self.projection in (None, "linear", "mlp")
        require(known, "encoder.projection", self.projection, "choose linear or mlp")
        for key in (
            "image_size",
            "embed",
            "patch_size",
            "text_width",
            "text_heads",
            "text_layers",
            "context",
            "vocabulary",
        ):
            value = getattr(self, key)
            require(value is None or value >= 1, f"encoder.{key}", value, "it must be at least 1")

    def chosen(self, key: str, default: Any = None) -> Any:
        """A setting: as given, else as the name defines, else ``default``."""
        value = getattr(self, key)
        return PRESETS[self.name].get(key, default) if value is None else value


class CLIPEncoder(nn.Module):
    """Images -> feature maps, names -> embeddings.

    Attributes:
        widths: channels of the maps, finest first. embed: D. prompts: templates of a name.
        patch_size: pixels a side of a place of the last map, to whose multiples images are padded.
        image_size: px, of the square that images are squashed to; None: they are not.
        tokenizer: texts -> token ids.
        mean, std: of the pixels, 0..255.

    Raises:
        ModelError: sizes that do not go together, or weights that cannot be had.
    """

    fixed = False  # see ``Encoder.fixed``
    prefix_tokens = 0  # see ``Encoder``

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.mean, self.std = MEAN, STD
        self.widths: list[int] = list(config.chosen("widths"))
        self.embed: int = config.chosen("embed")
        self.prompts = TEMPLATE_COUNTS[config.templates]
        stem: int = config.chosen("patch_size", 4)
        self.strides = tuple(stem * 2**level for level in range(LEVELS))
        self.patch_size = self.strides[-1]
        self.width, self.depth = self.widths[-1], LEVELS
        size = self.image_size = (config.image_size or 768) if config.squash else None
        if size is not None and size % self.patch_size:
            raise ModelError(f"encoder.image_size={size} is impossible: it must be a multiple of {self.patch_size}.")
        self.tokenizer = make_tokenizer(list(config.words), config.chosen("context", 77))
        heads, text_width = config.chosen("text_heads"), config.chosen("text_width")
        if text_width % heads:
            raise ModelError(f"encoder.text_heads={heads} is impossible: it must divide the width {text_width}.")
        self.trunk = ConvNeXt(
            depths=tuple(config.chosen("depths")),
            dims=tuple(self.widths),
            patch_size=stem,
            num_classes=0,
            drop_path_rate=config.chosen("drop_path", 0.0),
            ls_init_value=config.chosen("layer_scale", None if "layer_scale" in PRESETS[config.name] else 1e-6),
        )
        if stem == 2:  # then timm would halve before the first level as well
            self.trunk.stages[0].downsample = nn.Identity()
        self.projection: nn.Module
        if config.chosen("projection") == "linear":
            self.projection = nn.Linear(self.width, self.embed, bias=False)
        else:
            dropout = config.chosen("dropout", 0.0)
            self.projection = Mlp(self.width, 2 * self.embed, self.embed, drop=(dropout, 0.0), bias=(True, False))
        self.text = TextTower(
            config.vocabulary or self.tokenizer.size,
            self.tokenizer.context,
            text_width,
            heads,
            config.chosen("text_layers"),
            self.embed,
        )
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # log(1 / 0.07)
        self.layers = nn.ModuleList(_LevelTaps() for _ in range(LEVELS))
        self.dense = Tap()
        if config.pretrained:
            self.load_open_clip(_hub_tensors(config.name), f"open_clip's weights of {config.name}")
        elif config.weights is not None:
            self.load_open_clip(_file_tensors(Path(config.weights)), config.weights)
        self.freeze()

    def freeze(self) -> None:
        """Leave trainable what ``finetune`` and ``train_text`` say; the logit scale never is."""
        self.requires_grad_(False)
        self.text.requires_grad_(self.config.train_text)
        head = "head.mlp" if isinstance(self.projection, Mlp) else "head.proj"  # open_clip's names, as SED's rules read
        for name, parameter in (*self.trunk.named_parameters(), *self.projection.named_parameters(head)):
            parameter.requires_grad_(any(part in name for part in FINETUNE[self.config.finetune]))

    def maps(self, x_B3HW: Tensor, strides: Sequence[int]) -> list[Tensor]:
        """Normalised images, sides multiples of ``patch_size`` -> feature maps (B, C, h, w) at some of ``strides``.

        Raises:
            ModelError: there is no map at a stride.
        """
        missing = [stride for stride in strides if stride not in self.strides]
        if missing:
            raise ModelError(f"This encoder has maps at strides {list(self.strides)}, not at {missing[0]}.")
        x_BChw = self.trunk.stem(x_B3HW)
        found = []
        for stage, taps in zip(self.trunk.stages, self.layers, strict=True):
            x_BChw = stage(x_BChw)
            found.append(cast(_LevelTaps, taps).maps(x_BChw))
        return [found[self.strides.index(stride)] for stride in strides]

    def embedded(self, map_BChw: Tensor) -> Tensor:
        """The last map in the space of the names, (B, D, h, w); its vectors are not normalised."""
        x_BhwC = self._norm(map_BChw).permute(0, 2, 3, 1)
        return cast(Tensor, self.dense(self.projection(x_BhwC).permute(0, 3, 1, 2)))

    def forward(self, x_B3HW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalised images -> tokens of the last map, (B, h * w, C), and its grid (h, w)."""
        map_BChw = self._norm(self.maps(x_B3HW, self.strides[-1:])[0])
        return map_BChw.flatten(2).transpose(1, 2), (map_BChw.shape[-2], map_BChw.shape[-1])

    def _norm(self, map_BChw: Tensor) -> Tensor:
        return cast(Tensor, cast(Any, self.trunk.head).norm(map_BChw))

    def image_embedding(self, x_B3HW: Tensor) -> Tensor:
        """CLIP's embedding of whole images, (B, D), not normalised: of the average place, as it was trained."""
        mean_BC11 = self.maps(x_B3HW, self.strides[-1:])[0].mean((2, 3), keepdim=True)
        return self.embedded(mean_BC11)[:, :, 0, 0]

    def blocks(self) -> list[nn.Module]:
        """The layers of the image tower whose inputs are enough to run them again."""
        return [block for stage in self.trunk.stages for block in cast(Any, stage).blocks]

    def sample(self) -> Tensor:
        """Two blank images of 4 x 4 places of the last map, to see what a pass through the model uses."""
        side = 4 * self.patch_size
        return self.logit_scale.new_zeros(2, 3, side, side)

    def load_open_clip(self, tensors: dict[str, Tensor], source: str) -> None:
        """A state dict by open_clip's names (or ours).

        Raises:
            CheckpointError: a tensor is missing, unexpected, or of another shape.
        """
        load_strictly(self, {renamed(name, OPEN_CLIP_NAMES): each for name, each in tensors.items()}, source, "CLIP")


class _LevelTaps(nn.Module):
    """A name for what one level of the image tower gives."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = Tap()


def _file_tensors(path: Path) -> dict[str, Tensor]:
    found = unwrap(read_content(path), [r"(?:visual\.)?trunk\.stem\.0\.weight"])
    if found is None:
        raise CheckpointError(f"{path} holds no CLIP with a ConvNeXt by the names of open_clip (visual.trunk.stem.0).")
    return found.tensors


def _hub_tensors(name: str) -> dict[str, Tensor]:
    repository = PRESETS[name].get("hub")
    if repository is None:
        raise ModelError(f"There are no pretrained weights of {name}: it is trained on made images.")
    from huggingface_hub import hf_hub_download

    file = "open_clip_model.safetensors"
    return read_tensors(Path(from_hub(name, repository, [file], lambda: hf_hub_download(repository, file))))
