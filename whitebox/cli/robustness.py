"""The command that measures how much noise and corruption models bear."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.cli.analysis import Again, Dataset, Limit, Output, Seed, Split, ask_runs
from whitebox.cli.app import DataRoot, Device, RunsAndOverrides, Unit, app, runs_and_overrides
from whitebox.errors import ConfigError
from whitebox.extras import require_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.measurement import Measurement
    from analysis.record import Record
    from whitebox.runs import SavedRun


@app.command(name="robustness")
def robustness_command(
    runs: RunsAndOverrides = None,
    noise: Annotated[
        str | None, typer.Option(metavar="START:STOP[:STEP|:logN]", help="Standard deviations; or a comma list.")
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="What the noise is added to: decoder, or of it attention, queries, norms, matrices, step-sizes, head; "
            "encoder, all, input."
        ),
    ] = "decoder",
    relative: Annotated[bool, typer.Option("--relative", help="Sigma in units of each tensor's rms.")] = False,
    draws: Annotated[int, typer.Option(min=1, max=1000, help="Of the noise, at each level.")] = 5,
    antithetic: Annotated[bool, typer.Option("--antithetic", help="Each draw also with the opposite sign.")] = False,
    halving: Annotated[
        bool, typer.Option("--sigma-50/--no-sigma-50", help="Look for the noise that halves the mIoU.")
    ] = True,
    corruptions: Annotated[
        str | None, typer.Option(help="all, noise, blur, weather, digital, or names; a comma list.")
    ] = None,
    severity: Annotated[str, typer.Option(help="Of the corruptions: 3, 1:5 or 1,3,5.")] = "1:5",
    reference: Annotated[
        Path | None, typer.Option(help="A run: degradation under corruptions is also given as a multiple of its.")
    ] = None,
    variance: Annotated[
        bool, typer.Option("--variance", help="Also where the variance under noise comes from: seed, unit, draw.")
    ] = False,
    memory: Annotated[
        float, typer.Option(min=0, help="GB of the encoder's tokens kept in memory; the rest goes to a temporary file.")
    ] = 4.0,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    split: Split = None,
    limit: Limit = None,
    unit: Unit = None,
    seed: Seed = 0,
    device: Device = None,
    output: Output = None,
    again: Again = False,
) -> None:
    """How much noise on parameters or photos, and which corruptions, do models bear? mIoU curves, and sigma_50.

    What is measured is kept, row by row, in sweeps/ of each run's folder (or of --output): the same command goes on
    where it was stopped, and several processes share the rows (torchrun).

    \b
    whitebox robustness --noise 0.1:0.5
    whitebox robustness results/depict-sa-tiny-camvid --noise 0.001:1:log13 --draws 5 --target decoder
    whitebox robustness results/depict-sa-tiny-camvid --noise 0.1:0.5 --target input
    whitebox robustness results/depict-sa-tiny-camvid --corruptions all --severity 1:5
    """
    if (noise is None) == (corruptions is None):
        raise ConfigError(
            "Choose one: --noise 0.001:1:log13 (on parameters; on photos with --target input) or --corruptions all."
        )
    if reference is not None and corruptions is None:
        raise ConfigError("--reference belongs to --corruptions: leave it out with --noise.")
    if variance and noise is None:
        raise ConfigError("--variance belongs to --noise, whose draws are a source of it: leave it out.")
    if not math.isfinite(memory):
        raise ConfigError(f"--memory {memory:g} is impossible: give a number of GB, 0 or more.")
    from analysis.consumed import Chosen
    from analysis.maths.corruption_names import parse_kinds, parse_severities
    from analysis.maths.levels import parse_levels
    from analysis.measures.corruptions import Corruptions
    from analysis.measures.noise import Noise
    from analysis.measures.noise_variance import noise_variance
    from whitebox.runs import find_run, require_same_classes

    paths, overrides = runs_and_overrides(runs)
    measurement: Measurement
    if noise is not None:
        measurement = Noise.of(
            levels=parse_levels(noise),
            target=target,
            relative=relative,
            draws=draws,
            antithetic=antithetic,
            seed=seed,
            halving=halving,
            memory=int(memory * 1e9),
            output=output,
        )
    else:
        kinds, severities = parse_kinds(corruptions or ""), parse_severities(severity)
        require_extra("corruptions", "whitebox robustness --corruptions")
        beside = None if reference is None else find_run(reference, dataset, data_root, overrides, device)
        measurement = Corruptions(kinds=kinds, severities=severities, seed=seed, reference=beside, output=output)

    def beside_noise(record: Record, trained: Sequence[SavedRun], folder: Path) -> Record:
        assert isinstance(measurement, Noise)
        return noise_variance(record, trained, measurement, Chosen(split, limit, unit=unit), folder, again=again)

    require_same_classes([*paths, *([reference] if reference else [])])
    ask_runs(
        measurement,
        runs,
        dataset=dataset,
        data_root=data_root,
        split=split,
        limit=limit,
        unit=unit,
        device=device,
        output=output,
        again=again,
        beside=beside_noise if variance else None,
    )
