"""Models made from the vectors of the official SED, and comparison with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from whitebox.interop.sed import decoder_name, our_name
from whitebox.models import CLIPConfig, OpenSegmentor, build
from whitebox.models.clip import OPEN_CLIP_NAMES
from whitebox.models.decoders.sed import SED, SEDConfig
from whitebox.models.weights import renamed

PREFIX = "sem_seg_head.predictor."


class Case:
    """One case of the vectors: its description, its weights, and its tensors."""

    def __init__(self, golden: Path, name: str) -> None:
        folder = golden / ("sed_steps" if (golden / "sed_steps" / f"{name}.json").exists() else "segvit_sed")
        self.facts: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        weights = folder / f"{name}.weights.safetensors"
        self.weights: dict[str, Tensor] = load_file(weights) if weights.exists() else {}
        tensors = folder / f"{name}.io.safetensors"
        self.tensors: dict[str, Tensor] = load_file(tensors if tensors.exists() else folder / f"{name}.safetensors")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest value; shapes must agree."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


def aggregator(case: Case) -> tuple[SED, list[Tensor]]:
    """The official decoder alone, and the maps it takes."""
    official = case.facts["kwargs"]
    config = SEDConfig(
        hidden=official["hidden_dim"],
        widths=official["decoder_dims"],
        guidance=official["decoder_guidance_proj_dims"],
        kernels=official["kernel_size"],
        heads=official["nheads"],
        attention=official["attention_type"],
        pool=official["pooling_size"][0],
        eval_pool=official["pooling_size"][0],
        text_guidance=official["text_guidance_dim"] > 0,
    )
    text_BTPD = case["in.text_feats"]
    decoder = SED(
        config, official["decoder_guidance_dims"], text_BTPD.shape[-1], official["prompt_channel"], text_BTPD.shape[1]
    )
    decoder.load_state_dict({decoder_name(name): tensor for name, tensor in case.weights.items()})
    decoder.text_TPD = text_BTPD[0]
    return decoder.eval(), [*(case[f"in.appearance{index}"] for index in (3, 2, 1)), case["in.img_feats"]]


def whole_model(case: Case, classes: list[str], **encoder: Any) -> OpenSegmentor:
    """A whole model: `sed_model_e2e` or `sed_trace`."""
    facts = case.facts.get("kwargs", case.facts)
    clip = facts.get("clip", case.facts.get("clip_config"))
    sizes, text, official = facts.get("timm_convnext") or clip["timm_ConvNeXt"], clip["text_cfg"], facts["predictor"]
    encoder_config = CLIPConfig(
        image_size=facts["clip_resolution"][0],
        depths=sizes["depths"],
        widths=sizes["dims"],
        embed=clip["embed_dim"],
        text_width=text["width"],
        text_heads=text["heads"],
        text_layers=text["layers"],
        context=text["context_length"],
        vocabulary=text["vocab_size"],
        **encoder,
    )
    decoder_config = SEDConfig(
        hidden=official["hidden_dims"],
        widths=official["decoder_dims"],
        guidance=official["decoder_guidance_proj_dims"],
        kernels=official["kernel_size"],
        heads=official["num_heads"],
        pool=official["pooling_sizes"][0],
        eval_pool=official["pooling_sizes"][0],
    )
    model = build(encoder_config, decoder_config, len(classes), tuple(classes))
    assert isinstance(model, OpenSegmentor)
    model.load_state_dict(state_dict(case))
    return model.eval()


def state_dict(case: Case) -> dict[str, Tensor]:
    """Weights of a whole model by our names; of the token table only the rows that are read are in the vectors."""
    table = "clip_model.token_embedding."
    weights = {name: tensor for name, tensor in case.weights.items() if not name.startswith(f"{table}used")}
    if f"{table}used_ids" in case.weights:
        rows = case.weights[f"{table}used_rows"]
        whole = torch.zeros(case.facts["clip_config"]["text_cfg"]["vocab_size"], rows.shape[1])
        whole[case.weights[f"{table}used_ids"]] = rows
        weights[f"{table}weight"] = whole
    return {our_name(PREFIX + name): tensor for name, tensor in weights.items()}


def clip_name(official: str) -> str:
    """Our name of a tensor of open_clip's model."""
    return renamed(official, OPEN_CLIP_NAMES)
