"""How far training has moved a decoder's layers from where they started, and whether their steps still go that way.

A layer of DEPICT adds ``step * U softmax(...) U^T y`` (arXiv 2411.03033). As derived it goes down the rate, with a step
above 0; the released code draws the step from N(0, 1) at the start and learns it, so its sign says whether a layer can
compress or expand. In other decoders a learned map stands behind the subspaces, and a step by itself says nothing.

The start is the model drawn again from the seed of its training by the PyTorch that is installed. Where that draws
other numbers, subspaces are no more alike to this start than random ones, which a note says.

Layout of ``measured``::

    {"layers": [{"name": "decoder.layers.0", "random": 0.01, "alike": VALUE, "step": VALUE, "start": VALUE}, ...],
     "notes": [...]}

VALUE: ``{"value", "low", "high"}`` without an interval; of a family with the value of each training, under ``seeds``.
``alike``: cosine of a layer's bases, as one vector, with those at the start; ``random``: three standard deviations of
it between random ones. ``step`` and ``start`` are absent where a layer has no such step.

Shapes: H heads, P dimensions of a subspace, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from analysis.measurement import Measurement, Progress, Quantity
from analysis.record import Answer

if TYPE_CHECKING:
    from torch import Tensor

    from analysis.consumed import Chosen, Consumed, WeightsAlone
    from whitebox.runs import Run, SavedRun


@dataclass(frozen=True, kw_only=True)
class Drift(Measurement):
    """How far has training moved the layers from their start, and do their steps still go the same way?

    The weights alone are measured, beside the model drawn again from the seed of its training.

    \b
    whitebox drift results/depict-sa-tiny-camvid results/depict-ca-tiny-camvid
    """

    kind = "drift"

    def consumes(self, run: SavedRun | Run, chosen: Chosen) -> Consumed:
        """No image."""
        from analysis.consumed import WeightsAlone

        return WeightsAlone(run, chosen)

    def quantities(self, measured: Mapping[str, Any]) -> list[Quantity]:
        """Of each layer."""
        names = {"alike": "cosine of subspaces with the start", "start": "step at the start", "step": "step, learned"}
        return [
            Quantity(name, layer["name"], index, layer[key])
            for key, name in names.items()
            for index, layer in enumerate(measured["layers"], start=1)
            if key in layer
        ]

    def measure(self, run: Run, consumed: WeightsAlone, advance: Progress) -> Answer:
        """All layers of the decoder that have subspaces."""
        import torch

        from analysis.measures.baselines import without_weights
        from whitebox.models import build
        from whitebox.models.attention import SubspaceAttention, subspace_layers

        model, config = run.model, run.config
        torch.manual_seed(config.train.seed)
        encoder = without_weights(config.encoder)
        made = build(encoder, config.decoder, model.num_classes, model.classes, model.palette)
        starts = subspace_layers(made)
        layers: list[dict[str, Any]] = []
        notes = []
        for name, layer in subspace_layers(model).items():
            if not name.startswith("decoder."):
                continue
            now, then = (each.detach().cpu().double().flatten() for each in (layer.bases, starts[name].bases))
            cosine = torch.nn.functional.cosine_similarity(now, then, dim=0)
            found: dict[str, Any] = {"name": name, "random": 3 / len(now) ** 0.5, "alike": _value(cosine)}
            if isinstance(layer, SubspaceAttention):
                start = cast(SubspaceAttention, starts[name])
                found |= {"step": _value(layer.step_size), "start": _value(start.step_size)}
            layers.append(found)
        if not layers:
            notes.append("has no layers with subspaces.")
        elif all(layer["alike"]["value"] < layer["random"] for layer in layers):
            notes.append("is no more alike to this start than random: another PyTorch drew its start, or it moved far.")
        advance(1, 1)
        return Answer(measured={"layers": layers, "notes": notes}, n=1)


def _value(number: Tensor) -> dict[str, float | None]:
    return {"value": number.item(), "low": None, "high": None}
