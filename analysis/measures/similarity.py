"""Have two models learned the same? CKA between their layers, and how their subspaces lie to each other.

Definitions: `analysis.maths.similarity`. Tokens are patch tokens of the windows of evaluation, before the first decoder
layer and after each; both models see the same. Subspaces are those of layers of the same name; a black-box layer has
its query projection in their place.

Layout of ``measured`` for ``kind="similarity"``::

    {"first": ["decoder.input", ...], "second": [...], "cka": [[ESTIMATE of second, ...] of first, ...],
     "layers": [{"name": "decoder.layers.0", "overlap": [[...of second heads] of first heads], "angle": [[...]],
                 "matched": [[0, 2], ...],
                 "numbers": {"same_overlap", "same_angle", "matched_overlap", "matched_angle"},
                 "random": {the same: {"value", "low", "high"}}}, ...],
     "notes": [...]}

Shapes: N images, B windows, D width, H and G heads, P subspace dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.ask import ask
from analysis.consumed import Chosen, Images
from analysis.maths.conventions import RESAMPLES
from analysis.maths.intervals import ranged
from analysis.maths.resampling import interval, sampled
from analysis.maths.similarity import (
    cka,
    head_angles,
    head_numbers,
    head_overlaps,
    hsic_sums,
    matched,
    random_head_numbers,
)
from analysis.measurement import Progress
from analysis.measures.finite import finite
from analysis.measures.samples import Sample
from analysis.measures.stages import Stage, split, stages_of
from analysis.record import Answer, Question, Record, describe_weights
from whitebox.errors import ConfigError, ModelError
from whitebox.models import record
from whitebox.models.attention import subspace_layers
from whitebox.runs import Run, SavedRun

KIND = "similarity"


@dataclass(frozen=True)
class Setting:
    """How similarity is measured.

    Attributes:
        encoder: also the encoder's layers.
        draws: random rotations to compare subspaces with.
        seed: of these, and of the bootstrap over units.
    """

    encoder: bool = False
    draws: int = 20
    seed: int = 0


def similarity(
    first: SavedRun | Run,
    second: SavedRun | Run,
    names: tuple[str, str],
    chosen: Chosen,
    setting: Setting,
    advance: Progress,
    folder: Path,
    *,
    again: bool = False,
) -> Record:
    """The record of a pair of runs; of a run and itself, how its own layers resemble each other.

    Args:
        names: of both.
        folder: the record is below it.
        again: whatever is stored.

    Raises:
        ModelError: tokens of other widths or grids; NaN or infinite ones.
        ConfigError: both are shown images in another way; decoders without tokens along their layers.
        WhiteboxError: an image cannot be read, or does not fit.
    """
    ours, theirs = Images(first, chosen), Images(second, chosen)
    require_shown_alike(ours, theirs, names)
    question = Question(
        kind=KIND,
        model=names[0] if first is second else f"{names[0]} | {names[1]}",
        data=ours.data,
        weights=describe_weights(first.weights),
        variant="encoder" if setting.encoder else "",
        seeds={"bootstrap": setting.seed, "random": setting.seed},
        settings={
            **ours.settings,
            "second_weights": describe_weights(second.weights).sha256,
            "encoder": setting.encoder,
            "draws": setting.draws,
            "resamples": RESAMPLES,
        },
    )

    def answer() -> Answer:
        both = (first.open(), first.open() if first is second else second.open())
        return Answer(measured=_measured(both, (ours, theirs), names, setting, advance), n=len(ours))

    return ask(question, answer, folder / "records", again=again)


def require_shown_alike(ours: Images, theirs: Images, names: tuple[str, str]) -> None:
    """Raise a ConfigError unless both models see the same windows of the same images."""
    if ours.data != theirs.data:
        raise ConfigError(
            f"{names[0]} and {names[1]} were trained on other data: name one for both (--dataset, --split, --limit)."
        )
    unlike = [key for key, value in ours.settings.items() if value != theirs.settings.get(key)]
    if unlike:
        shown = ", ".join(f"{key} {ours.settings[key]} and {theirs.settings.get(key)}" for key in unlike)
        raise ConfigError(
            f"{names[0]} and {names[1]} are shown images in another way ({shown}): give both the same, "
            "as inference.window=512."
        )


def _measured(
    both: tuple[Run, Run], images: tuple[Images, Images], names: tuple[str, str], setting: Setting, advance: Progress
) -> dict[str, Any]:
    stages = tuple(_patch_stages(run, setting.encoder) for run in both)
    for name, widths in (("decoder", [run.model.decoder.width for run in both]), ("encoder", _encoders(both, setting))):
        if widths[0] != widths[1]:
            raise ModelError(
                f"Tokens of the {name} have {widths[0]} numbers in {names[0]} and {widths[1]} in {names[1]}: layers "
                "and subspaces are compared between models of one width."
            )
    shapes = len(stages[0]), len(stages[1])
    rows: list[NDArray[np.float64]] = []
    for pair in zip(images[0].each(both[0], advance), images[1].each(both[1]), strict=True):
        tokens = [_tokens(run, sample, found) for run, sample, found in zip(both, pair, stages, strict=True)]
        shown = [sorted({(len(each), each.shape[1]) for each in of_run}) for of_run in tokens]
        if shown[0] != shown[1] or len(shown[0]) != 1:
            sizes = " and ".join(
                ", ".join(f"{windows} windows of {patches} tokens" for windows, patches in each) for each in shown
            )
            raise ModelError(f"{names[0]} and {names[1]} have {sizes}: CKA takes the same patches of all layers.")
        windows = range(len(tokens[0][0]))
        rows.append(np.mean([hsic_sums(*([z[at] for z in each] for each in tokens)) for at in windows], axis=0))
    found = interval(
        sampled(
            np.stack(rows),
            lambda sums: cka(sums, *shapes),
            images[0].units.of_N,
            resamples=RESAMPLES,
            seed=setting.seed,
        )
    )
    flat = [ranged(*each) for each in zip(found.value_M, zip(found.low_M, found.high_M, strict=True), strict=True)]
    layers = [] if names[0] == names[1] else _subspaces(both, setting)
    notes = [] if layers or names[0] == names[1] else ["no layers of the same name with subspaces of one kind."]
    return {
        **{key: [stage.name for stage in each] for key, each in zip(("first", "second"), stages, strict=True)},
        "cka": [flat[row * shapes[1] : (row + 1) * shapes[1]] for row in range(shapes[0])],
        "layers": layers,
        "notes": notes,
    }


def _encoders(both: tuple[Run, Run], setting: Setting) -> list[int]:
    return [run.model.encoder.width if setting.encoder else 0 for run in both]


def _patch_stages(run: Run, encoder: bool) -> list[Stage]:
    return [stage for stage in stages_of(run, encoder, ()) if not stage.classes]


@torch.inference_mode()
def _tokens(run: Run, sample: Sample, stages: list[Stage]) -> list[Tensor]:
    """Patch tokens of each stage, (B, N, D)."""
    with record(run.model, *(stage.tap for stage in stages)) as heard:
        run.model.masks(sample.pixels_B3HW)
    count = sample.labels_Bhw[0].numel()
    return [
        finite(split(run.model, heard[stage.tap], count)[0], f"{stage.tap} (image {sample.name})", run)
        for stage in stages
    ]


def _subspaces(both: tuple[Run, Run], setting: Setting) -> list[dict[str, Any]]:
    """Layers of one name whose subspaces have as many dimensions."""
    ours, theirs = (
        {
            name: np.asarray(layer.bases.detach().cpu().double().numpy())
            for name, layer in subspace_layers(run.model).items()
            if name.startswith("decoder.")
        }
        for run in both
    )
    found = []
    for name, u_HPD in ours.items():
        v_GPD = theirs.get(name)
        if v_GPD is None or u_HPD.shape[1:] != v_GPD.shape[1:]:
            continue
        overlap_HG = head_overlaps(u_HPD, v_GPD)
        found.append(
            {
                "name": name,
                "overlap": overlap_HG.tolist(),
                "angle": head_angles(u_HPD, v_GPD).tolist(),
                "matched": [list(pair) for pair in matched(overlap_HG)],
                "numbers": head_numbers(u_HPD, v_GPD),
                "random": random_head_numbers(u_HPD, v_GPD, setting.draws, setting.seed),
            }
        )
    return found
