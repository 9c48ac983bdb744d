"""A run as one file for other programs: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whitebox.cli.app import RunPath, app, say
from whitebox.errors import ConfigError


@app.command(tables=False)
def export(
    run: RunPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="model.onnx, model.pt2 or model.safetensors.")],
    format: Annotated[
        str | None, typer.Option(help="onnx, torch-export or safetensors. Default: what the name of the file says.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="px, of the squares it takes. Default: the window of the run's evaluation."),
    ] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="It takes images of any size instead.")] = False,
    opset: Annotated[int | None, typer.Option(min=18, help="Of ONNX. Default: as torch chooses.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Weights and computation in float16.")] = False,
    decoder_only: Annotated[
        bool, typer.Option("--decoder-only", help="Of safetensors: without the frozen encoder, which users have.")
    ] = False,
) -> None:
    """Write a run as ONNX, torch.export or safetensors, run the file, and say how it differs from the run.

    Normalisation and upsampling are inside, classes and palette in its metadata. `whitebox predict` takes ONNX files.

    \b
    whitebox export results/depict-sa-tiny-camvid -o model.onnx
    whitebox export results/depict-sa-tiny-camvid -o any-size.onnx --dynamic
    whitebox predict model.onnx photos/ -o out/
    """
    from whitebox.interop.export import FORMATS, export
    from whitebox.memory import readable
    from whitebox.runs import open_run

    kind = format or next((name for name, suffix in FORMATS.items() if output.suffix == suffix), None)
    if kind not in FORMATS:
        raise ConfigError(f"--format {kind} is unknown: choose {', '.join(FORMATS)}, or name the file by it.")
    if size is not None and dynamic:
        raise ConfigError("--size takes one size and --dynamic any: give one of them.")
    if kind != "onnx" and opset is not None:
        raise ConfigError("--opset is of ONNX: leave it out, or add --format onnx.")
    if kind == "safetensors" and (size or dynamic):
        raise ConfigError("safetensors holds weights alone, for any size: leave --size and --dynamic out.")
    if kind != "safetensors" and decoder_only:
        raise ConfigError("--decoder-only is of safetensors: leave it out, or add --format safetensors.")
    if output.exists():
        raise ConfigError(f"{output} exists already; choose another name with -o.")
    opened = open_run(run, device="cpu")
    if kind != "safetensors" and not dynamic and size is None:
        size = opened.inference.window
        if size is None:
            raise ConfigError(f"{opened.name} is shown whole photos: give --size N, or --dynamic.")
    check = export(
        opened.model, opened.config, output, kind, size=size, opset=opset, half=half, decoder_only=decoder_only
    )
    takes = "images of any size" if size is None else f"squares of {size} px"
    say(f"Saved {output}: {readable(output.stat().st_size)}, takes {takes}.")
    say(f"Largest difference to the run {check.difference:.2g}; the same class in {check.agreement:.3%} of the pixels.")
    file, model = (1000 * seconds for seconds in check.seconds)
    height, width = check.sizes[-1]
    say(f"An image of {width} x {height} px takes {file:.0f} ms, of PyTorch {model:.0f} ms, on this processor.")
    if kind == "onnx":
        say(f"Next: whitebox predict {output} PHOTO -o out")
