"""mmsegmentation: our encoder and decoders by name in its configs, and checkpoints both ways.

    custom_imports = dict(imports=["whitebox.interop.mmseg"], allow_failed_imports=False)

registers ``whitebox.Encoder`` (a backbone), ``whitebox.DecodeHead`` (``decoder="depict-sa"``) and one head a decoder,
named after its class (``whitebox.DepictSAHead``, also called ``whitebox.DEPICTHead``). docs/mmsegmentation.md has a
complete config.

In mmsegmentation normalising, padding, upsampling and the loss stay mmsegmentation's: its ``SegDataPreProcessor`` does
what ``Segmentor`` does before the encoder, ``BaseDecodeHead`` what comes after the decoder. Heads take feature maps
(B, D, h, w), of any backbone whose last map has one width.

Shapes: B batch, D width, K classes, N patch tokens, H W pixels (P = H * W), h w patch grid (N = h * w).
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from whitebox.config import DataConfig, RunConfig, resolve
from whitebox.data import dataset_info
from whitebox.errors import CheckpointError, ConfigError, ModelError, require, short
from whitebox.extras import require_extra
from whitebox.files import write_atomically, write_text
from whitebox.interop.reading import assignments, inference, normalization, same_statistics
from whitebox.models import DECODERS, Encoder, Segmentor, build
from whitebox.models.decoders.base import Prediction, class_scores
from whitebox.models.segmentor import unnamed_classes
from whitebox.models.weights import count_numbers, load_strictly, read_pickle, unwrap

require_extra("mmseg", "whitebox.interop.mmseg")
with warnings.catch_warnings():  # about compiled operators, which nothing of ours needs
    warnings.simplefilter("ignore")
    from mmengine.config import Config
    from mmengine.registry import MODELS as ROOT
    from mmengine.registry import Registry
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.models.utils import resize

MODELS = Registry("model", parent=ROOT, scope="whitebox", locations=["whitebox.interop.mmseg"])
ALIASES = {  # open vocabularies have no place in mmsegmentation's configs
    f"{decoder.__name__.removesuffix('Decoder')}Head": name
    for name, decoder in DECODERS.items()
    if not decoder.open_vocabulary
}
ALIASES["DEPICTHead"] = "depict-sa"  # the paper's name without a variant; written configs take the first of two names
IMPORTS = {"imports": ["whitebox.interop.mmseg"], "allow_failed_imports": False}
LOSS = {"type": "CrossEntropyLoss", "avg_non_ignore": True}  # as whitebox: the mean over labelled pixels

PREFIXES = {"encoder.": "backbone.encoder.", "decoder.": "decode_head.decoder."}  # of tensors: ours -> theirs
UNUSED = "auxiliary_head."  # tensors of theirs that only training needs


@MODELS.register_module(name="Encoder")
class EncoderBackbone(nn.Module):
    """The encoder of whitebox as a backbone: ``type="whitebox.Encoder"``.

    It is no mmengine ``BaseModule``: ``init_weights`` of a runner would overwrite weights that are loaded already.

    Args:
        out_indices: blocks (from 0, in rising order) whose tokens are given, as they are; None: the last tokens,
            through the final norm.
        options: the keys of ``EncoderConfig`` (``name``, ``pretrained``, ``weights``, ``image_size``, ``drop_path``,
            ...). ``normalization`` has no effect here: ``data_preprocessor`` normalises.

    Raises:
        ConfigError: an unknown key or an impossible value.
        ModelError: timm cannot build it, its weights cannot be had, or it has no such blocks.
    """

    def __init__(self, out_indices: Sequence[int] | None = None, **options: Any) -> None:
        super().__init__()
        self.encoder = Encoder(_resolve(encoder=options).encoder)
        self.out_indices = out_indices
        if out_indices is not None:
            self.encoder.serve(out_indices)

    def forward(self, x_B3HW: Tensor) -> tuple[Tensor, ...]:
        """Normalised images -> feature maps, (B, D, h, w) each.

        Raises:
            ModelError: a side is no multiple of the patch size.
        """
        patch, (H, W) = self.encoder.patch_size, x_B3HW.shape[-2:]
        if H % patch or W % patch:
            raise ModelError(
                f"whitebox.Encoder got {H} x {W} px, no multiples of its patch size {patch}: choose such crops for "
                f"training and mode='slide', or pad with test_cfg=dict(size_divisor={patch}) in data_preprocessor."
            )
        if self.out_indices is None:
            z_BND, grid = self.encoder(x_B3HW)
            tokens, grids = [z_BND], [grid]
        else:
            tokens, grids = self.encoder.intermediate(x_B3HW, self.out_indices)
        return tuple(z_BND.transpose(1, 2).unflatten(2, grid) for z_BND, grid in zip(tokens, grids, strict=True))


@MODELS.register_module(name="DecodeHead")
class DecodeHead(BaseDecodeHead):
    """A decoder of whitebox as a decode head: ``type="whitebox.DecodeHead"``. Any mmsegmentation loss goes with it.

    A decoder that gives scores (``Decoder.scores``) predicts these; losses take their logarithm, whose softmax is each
    score's share of their sum.

    Args:
        decoder: a name in ``whitebox.models.DECODERS``.
        in_channels: D of the backbone's maps.
        num_classes: K.
        options: keys of the decoder's config, as in ``whitebox train ... decoder.layers=3``.
        in_index: which of the backbone's maps; None: the last, or for a decoder that takes several the first ones.
        head: what else ``BaseDecodeHead`` takes: ``loss_decode``, ``ignore_index``, ``sampler``, ``align_corners``.
            Default loss: cross-entropy, the mean over the pixels that are not ignored.

    Raises:
        ConfigError: unknown decoder or option, an impossible value, or no ``grid`` for a decoder that has one.
    """

    def __init__(
        self,
        decoder: str,
        in_channels: int,
        num_classes: int,
        options: Mapping[str, Any] | None = None,
        in_index: int | Sequence[int] | None = None,
        **head: Any,
    ) -> None:
        require(num_classes >= 2, "num_classes", num_classes, "there must be at least two, each has its own mask")
        config = _resolve(decoder={**(options or {}), "name": decoder}).decoder
        need = "a head does not see its backbone, so give its patch grid: grid=32 for 512 px and patches of 16 px"
        require(getattr(config, "grid", 0) is not None, "options.grid", None, need)
        built = DECODERS[decoder](config, in_channels, num_classes)
        count = 1 if built.encoder_layers is None else len(built.encoder_layers)
        if in_index is None:
            in_index = [-1] if built.encoder_layers is None else range(count)
        indices = [in_index] if isinstance(in_index, int) else list(in_index)
        require(len(indices) == count, "in_index", in_index, f"decoder {decoder} takes {count} of the backbone's maps")
        super().__init__(
            [in_channels] * count,
            1,  # of a classifier that is deleted below: the decoder makes the masks
            num_classes=num_classes,
            out_channels=num_classes,
            dropout_ratio=0,
            in_index=indices,
            input_transform="multiple_select",
            init_cfg=None,
            **{"loss_decode": LOSS, **head},
        )
        del self.conv_seg
        self.decoder = built

    def forward(self, inputs: Sequence[Tensor]) -> Tensor | Prediction:
        """Feature maps of the backbone -> mask logits (B, K, h, w), or of a decoder that gives scores all it says.

        Raises:
            ModelError: a chosen map is missing, none, or of another width.
        """
        width, last = self.in_channels[0], len(inputs) - 1
        maps: list[Any] = [inputs[index] if -last - 1 <= index <= last else None for index in self.in_index]
        for x_BDhw in maps:
            if not isinstance(x_BDhw, Tensor) or x_BDhw.dim() != 4 or x_BDhw.shape[1] != width:
                got = tuple(x_BDhw.shape) if isinstance(x_BDhw, Tensor) else type(x_BDhw).__name__
                raise ModelError(
                    f"The decode head takes maps (B, {width}, h, w) number {self.in_index} and got {got}: in_channels "
                    "and in_index must fit the backbone, which gives maps without class tokens."
                )
        tokens = [x_BDhw.flatten(2).transpose(1, 2) for x_BDhw in maps]
        grids = [tuple(x_BDhw.shape[2:]) for x_BDhw in maps]
        single = self.decoder.encoder_layers is None
        said = self.decoder.predict(*((tokens[0], grids[0]) if single else (tokens, grids)))
        return said if self.decoder.scores else said.masks_BKhw

    def predict_by_feat(self, seg_logits: Tensor | Prediction, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Class maps of the images' size, (B, K, H, W): logits or scores."""
        if isinstance(seg_logits, Prediction):
            return _scores(super().predict_by_feat(seg_logits.masks_BKhw, batch_img_metas), seg_logits)
        return cast(Tensor, super().predict_by_feat(seg_logits, batch_img_metas))

    def loss_by_feat(self, seg_logits: Tensor | Prediction, batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Losses by name, of masks upsampled to the size of the labels."""
        if isinstance(seg_logits, Prediction):
            size = batch_data_samples[0].gt_sem_seg.shape
            masks_BKHW = resize(seg_logits.masks_BKhw, size, mode="bilinear", align_corners=self.align_corners)
            seg_logits = _scores(masks_BKHW, seg_logits).clamp_min(torch.finfo(torch.float32).tiny).log()
        return cast(dict[str, Tensor], super().loss_by_feat(seg_logits, batch_data_samples))


def _scores(masks_BKHW: Tensor, said: Prediction) -> Tensor:
    """Scores of the classes, (B, K, H, W)."""
    shares_BKK = said.shares_BKK
    assert shares_BKK is not None
    scores_BPK = class_scores(masks_BKHW.float().flatten(2).transpose(1, 2), shares_BKK)
    return scores_BPK.transpose(1, 2).unflatten(2, tuple(masks_BKHW.shape[2:]))


def _alias(title: str, name: str) -> type[DecodeHead]:
    def init(self: DecodeHead, *args: Any, **options: Any) -> None:
        DecodeHead.__init__(self, name, *args, **options)

    doc = f"``whitebox.DecodeHead`` with ``decoder={name!r}``."
    return type(title, (DecodeHead,), {"__init__": init, "__doc__": doc, "__module__": __name__})


for _title, _name in ALIASES.items():
    MODELS.register_module(name=_title, module=_alias(_title, _name))


def to_mmseg(model: Segmentor, config: RunConfig, output: Path) -> Path:
    """Write a model as ``output`` (.pth) for mmsegmentation, and its config beside it (.py).

    ``mmseg.apis.init_model(CONFIG, OUTPUT)`` then gives an ``EncoderDecoder`` with the same logits. Its loss is
    cross-entropy; where the run had another one, a comment on top of the config says so.

    Args:
        model: the model. config: that of its run; ``data`` and ``inference`` become the test pipeline and ``test_cfg``.

    Returns:
        Path of the config.

    Raises:
        ConfigError: ``output`` is not called ``*.pth``.
        OutputError: it cannot be written.
    """
    require(output.suffix == ".pth", "output", str(output), "an mmsegmentation checkpoint is called *.pth")
    if model.decoder.open_vocabulary:
        raise ConfigError("mmsegmentation has no place for an open vocabulary: this model stays in whitebox.")
    text = Config(_mmseg_config(model, config)).pretty_text
    if config.loss.name != "cross-entropy":
        comment = f"The run had loss={config.loss.name}, which mmsegmentation lacks: loss_decode is cross-entropy."
        text = f"# {comment}\n{text}"
    meta = {
        "cfg": text,
        "dataset_meta": {"classes": list(model.classes), "palette": [list(colour) for colour in model.palette]},
    }
    tensors = {_renamed(name, PREFIXES): tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    written = io.BytesIO()  # torch hides the system's error behind its own
    torch.save({"meta": meta, "state_dict": tensors}, written)

    def write(target: Path) -> None:
        target.write_bytes(written.getbuffer())

    write_atomically(output, write)
    return write_text(output.with_suffix(".py"), text)


def from_mmseg(checkpoint: Path, config: Path | None = None, dataset: str | None = None) -> tuple[Segmentor, RunConfig]:
    """Model of an mmsegmentation checkpoint whose backbone and head are ours, with the same logits.

    Nothing is run: objects other than tensors and plain containers (a runner's log of losses) are replaced by empty
    ones or refused, and the config is read as literals.

    Args:
        checkpoint: what a runner or ``to_mmseg`` wrote.
        config: the dumped config, for a checkpoint that holds none; a runner writes it into its ``work_dir``.
        dataset: a name of ``whitebox datasets``, for evaluation; None: nothing is known of the dataset.

    Raises:
        CheckpointError: missing, cut short, or of a model that has no counterpart here.
        ConfigError: unknown dataset.
    """
    content = _read_checkpoint(checkpoint)
    meta = content["meta"] if isinstance(content.get("meta"), Mapping) else {}
    source = str(config or checkpoint)
    text = _config_text(meta, config, checkpoint)
    described = _model_section(text, source)
    try:
        run, num_classes = _run_config(described)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, ConfigError) as error:
        reason = str(error) if isinstance(error, ConfigError) else short(repr(error))
        raise CheckpointError(f"The config of {source} does not describe a model of whitebox: {reason}") from error
    run.data = DataConfig(name="unknown", kind="") if dataset is None else _resolve(dataset).data
    run.data = replace(run.data, **_test_size(text))
    classes, palette = _classes(meta.get("dataset_meta"), num_classes, checkpoint)
    encoder = replace(run.encoder, pretrained=False, weights=None)  # everything is in the file itself
    kept = {name: tensor for name, tensor in content["state_dict"].items() if not name.startswith(UNUSED)}
    model = build(encoder, run.decoder, num_classes, classes, palette, count_numbers(kept))
    _require_same_pixels(model, described["data_preprocessor"], source)
    ours = {theirs: own for own, theirs in PREFIXES.items()}
    tensors = {_renamed(name, ours): tensor for name, tensor in kept.items()}
    model.load_report = load_strictly(model, tensors, str(checkpoint), f"mmsegmentation checkpoint, {run.decoder.name}")
    return model.eval(), run


def _resolve(dataset: str | None = None, **sections: Mapping[str, Any]) -> RunConfig:
    """Defaults, the recipe of ``dataset``, and the given keys of the sections ``encoder`` and ``decoder``."""
    return resolve("segmenter-linear-tiny", dataset, sections)


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _mmseg_config(model: Segmentor, config: RunConfig) -> dict[str, Any]:
    """A config of mmsegmentation that builds ``model`` and tests it as whitebox does."""
    patch, window, stride = model.encoder.patch_size, config.inference.window, config.inference.stride
    padding: dict[str, Any] = {"size_divisor": patch}
    test: dict[str, Any] = {"mode": "whole"}
    if window is not None:
        need = f"mmsegmentation does not pad windows, so it must be a multiple of the patch size {patch}"
        require(window % patch == 0, "inference.window", window, need)
        padding = {"size": (window, window)}
        test = {"mode": "slide", "crop_size": (window, window), "stride": (stride, stride)}
    encoder = {key: value for key, value in asdict(config.encoder).items() if value is not None}
    for key in ("pretrained", "weights"):  # the checkpoint has them
        encoder.pop(key, None)
    if model.decoder.encoder_layers is not None:
        encoder["out_indices"] = list(model.decoder.encoder_layers)
    built = getattr(model.decoder, "config", config.decoder)  # where None in the run's config means the encoder's
    decoder = {key: value for key, value in asdict(built).items() if value is not None and key != "name"}
    title = next(title for title, name in ALIASES.items() if name == config.decoder.name)
    return {
        "default_scope": "mmseg",
        "custom_imports": IMPORTS,
        "model": {
            "type": "EncoderDecoder",
            "data_preprocessor": {
                "type": "SegDataPreProcessor",
                "mean": list(model.encoder.mean),
                "std": list(model.encoder.std),
                "bgr_to_rgb": True,
                "pad_val": 0,
                "seg_pad_val": 255,
                **padding,
                "test_cfg": padding,
            },
            "backbone": {"type": "whitebox.Encoder", **encoder},
            "decode_head": {
                "type": f"whitebox.{title}",
                "in_channels": model.encoder.width,
                "num_classes": model.num_classes,
                "options": decoder,
                "loss_decode": LOSS,
            },
            "train_cfg": {},
            "test_cfg": test,
        },
        "test_pipeline": [
            {"type": "LoadImageFromFile"},
            {
                "type": "Resize",
                "scale": (int(config.data.max_ratio * config.data.resize), config.data.resize),
                "keep_ratio": True,
            },
            {"type": "PackSegInputs"},
        ],
    }


class _Inert:
    """Stands for any object of a checkpoint that is neither tensor nor plain container. It does and keeps nothing."""

    def __new__(cls, *args: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint with ``state_dict`` (names to tensors) and ``meta``, without running anything it holds.

    Raises:
        CheckpointError: see ``read_pickle``; or it is no checkpoint of mmsegmentation.
    """
    try:
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        others = []  # not a file that torch writes today: read_pickle says what is wrong with it
    with torch.serialization.safe_globals([(_Inert, name) for name in others]):
        content = read_pickle(path)
    found = unwrap(content, [r"decode_head\..+"])
    if found is None or not isinstance(content, dict):
        raise CheckpointError(
            f"{path} is no mmsegmentation checkpoint (state_dict with decode_head.*); an official DEPICT or Segmenter "
            "checkpoint.pth needs its variant.yml beside it."
        )
    return {**content, "state_dict": found.tensors}


def _config_text(meta: Mapping[str, Any], config: Path | None, checkpoint: Path) -> str:
    """The config as a runner dumps it: of the file ``config``, else of the checkpoint itself."""
    if config is not None:
        try:
            return config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"The config {config} cannot be read: {error}.") from error
    if not isinstance(meta.get("cfg"), str):
        raise CheckpointError(
            f"{checkpoint} does not hold its config: give the one that the runner wrote into its work_dir."
        )
    return str(meta["cfg"])


def _model_section(text: str, source: str) -> dict[str, Any]:
    """``model`` of a dumped config; nothing is run.

    Raises:
        CheckpointError: it is no such config, or its model is not built of our two parts.
    """
    try:
        model = assignments(text, ("model",))["model"]
        types = {name: model[name]["type"] for name in ("backbone", "decode_head", "data_preprocessor")}
    except (SyntaxError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"The config of {source} has no plain model=dict(...) with backbone, decode_head and data_preprocessor; "
            "give the complete one that the runner wrote into its work_dir."
        ) from error
    for part, fits in (
        ("backbone", types["backbone"] == "whitebox.Encoder"),
        ("decode_head", types["decode_head"] in ["whitebox.DecodeHead", *(f"whitebox.{title}" for title in ALIASES)]),
    ):
        if not fits:
            raise CheckpointError(f"The {part} in {source} is {types[part]!r}, which has no counterpart in whitebox.")
    if model.get("neck"):
        raise CheckpointError(f"The model in {source} has a neck, which has no counterpart in whitebox.")
    return cast(dict[str, Any], model)


def _run_config(model: dict[str, Any]) -> tuple[RunConfig, int]:
    """Encoder, decoder, windows and the number of classes of a config's ``model``."""
    encoder = {key: value for key, value in model["backbone"].items() if key not in ("type", "out_indices")}
    encoder["normalization"] = normalization(model["data_preprocessor"].get("mean"))
    head = model["decode_head"]
    name = ALIASES.get(head["type"].removeprefix("whitebox."), head.get("decoder"))
    decoder = {**(head.get("options") or {}), "name": name}
    out_indices = model["backbone"].get("out_indices")
    if out_indices is not None:
        indices = head.get("in_index")
        decoder["encoder_layers"] = list(out_indices) if indices is None else [out_indices[index] for index in indices]
    run = _resolve(encoder=encoder, decoder=decoder)
    run.model = f"mmseg-{name}"
    run.inference = inference(model.get("test_cfg") or {})
    return run, int(head["num_classes"])


def _test_size(text: str) -> dict[str, Any]:
    """``data.resize`` and ``data.max_ratio`` of a config's test pipeline; nothing where it does not resize as ours."""
    try:
        pipeline = assignments(text, ("test_pipeline",)).get("test_pipeline", ())
        steps = [step for step in pipeline if step.get("type") == "Resize" and step.get("keep_ratio")]
        long, short = (int(side) for side in steps[0]["scale"])
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return {}
    long, short = max(long, short), min(long, short)
    return {"resize": short, "max_ratio": long / short} if short > 0 else {}


def require_dataset(model: Segmentor, data: DataConfig, source: Path) -> None:
    """See that a model has the classes of the dataset it is said to be of; those of a folder are not known here.

    Raises:
        CheckpointError: it has others.
    """
    if data.kind in ("", "folder"):
        return
    names, _ = dataset_info(data)
    num_classes, classes = model.num_classes, model.classes
    if len(names) != num_classes:
        raise CheckpointError(
            f"The model in {source} has {num_classes} classes and {data.name} has {len(names)}: give the dataset it "
            "was trained on with --dataset, or leave that out."
        )
    if classes == unnamed_classes(num_classes):
        return
    unlike = [index for index, name in enumerate(classes) if name != names[index]]
    if unlike:
        raise CheckpointError(
            f"Class {unlike[0]} is {classes[unlike[0]]!r} in {source} and {names[unlike[0]]!r} in {data.name}: give "
            "the dataset it was trained on with --dataset, or leave that out."
        )


def _require_same_pixels(model: Segmentor, preprocessor: Mapping[str, Any], source: str) -> None:
    """Whether a model normalises as its mmsegmentation preprocessor did."""
    for key, own in (("mean", model.encoder.mean), ("std", model.encoder.std)):
        if not same_statistics(own, preprocessor.get(key)):
            raise CheckpointError(
                f"data_preprocessor.{key} in {source} is {short(repr(preprocessor.get(key)))}: whitebox knows the "
                f"pixel statistics vit (127.5), deit (ImageNet's), and those of timm's weights, {own}."
            )
    if not preprocessor.get("bgr_to_rgb"):
        raise CheckpointError(f"data_preprocessor in {source} has no bgr_to_rgb=True: models of whitebox take RGB.")


def _classes(meta: Any, num_classes: int, checkpoint: Path) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Names and colours in ``dataset_meta``, where their number fits."""
    try:
        classes = tuple(str(name).strip() for name in (meta or {}).get("classes") or ())
        palette = tuple((int(red), int(green), int(blue)) for red, green, blue in (meta or {}).get("palette") or ())
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"The dataset_meta of {checkpoint} does not name and colour its classes.") from error
    return classes if len(classes) == num_classes else (), palette if len(palette) == num_classes else ()
