"""The decoders of a study in one table: accuracy on each split, calibration, cost and the noise they bear."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.record import Record
from analysis.show.profile import stored_cost
from analysis.show.spread import over_units
from analysis.show.tables import Cell, Column, Estimate, Table, estimate, percent
from experiments.claims import Found

_NOISE = {"decoder": "sigma_50", "decoder-relative": "sigma_50, relative"}


def overview_table(found: Found) -> Table:
    """A row a decoder, in the order of the study."""
    splits = list(found.evaluations)
    first = {split: next(iter(models.values())).record for split, models in found.evaluations.items()}
    calibration, costs = found.of("calibration"), found.of("tradeoff")
    noises = {variant: found.of("parameter-noise", variant) for variant in _NOISE}
    rows: list[tuple[Cell, ...]] = []
    for decoder in dict.fromkeys(decoder for models in found.evaluations.values() for decoder in models):
        models = [found.evaluations[split].get(decoder) for split in splits]
        cells: list[Cell] = [decoder, max(len(model.seeds) for model in models if model is not None)]
        cells += [None if model is None else percent(model.record.measured["miou"]) for model in models]
        cells.append(percent(calibration[decoder].measured["ece"]) if decoder in calibration else None)
        cost = stored_cost(costs[decoder], "decoder") if decoder in costs else None
        cells += [None, None] if cost is None else [cost.parameters / 1e6, cost.gflops]
        cells += [_sigma(noise.get(decoder)) for noise in noises.values()]
        rows.append(tuple(cells))
    columns = (
        Column("Decoder"),
        Column("Trainings", 0),
        *(Column(f"mIoU, {split} (%)", 1) for split in splits),
        Column("ECE (%)", 1),
        Column("Decoder (M)", 3),
        Column("Decoder (GFLOPs)", 2),
        *(Column(name, 3) for name in _NOISE.values()),
    )
    known = [record for noise in noises.values() for record in noise.values()]
    return Table(columns, tuple(rows), _caption(first, next(iter(costs.values()), None), known))


def _sigma(record: Record | None) -> Estimate | None:
    return None if record is None else estimate(record.measured.get("sigma_50") or {})


def _caption(first: dict[str, Record], cost: Record | None, noises: Sequence[Record]) -> str:
    shown = "; ".join(f"{split}: n = {record.n} images, {over_units(record)}" for split, record in first.items())
    name = next(iter(first.values())).data.name if first else ""
    text = (
        f"{name}. Means over trainings ± their standard deviation; brackets hold the spread between three trainings or "
        f"more. {shown}. ECE of the first split."
    )
    if cost is not None:
        text += (
            " Decoder: all after the encoder; GFLOPs = 2 x multiply-adds of one window of "
            f"{cost.settings['size']} px and {cost.settings['classes']} classes."
        )
    if noises:
        noise = noises[0]
        text += (
            f" sigma_50: noise on the decoder's parameters that halves the mIoU of the first {noise.n} images of "
            f"{noise.data.split}, {noise.settings['draws']} draws; relative: in units of each tensor's rms."
        )
    return text
