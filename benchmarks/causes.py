"""What `whitebox ablate` and `whitebox probe` cost: ``python benchmarks/causes.py run RUN --data-root DIR``.

Two tables (CSV, Markdown, LaTeX), hardware and versions in their names, of a trained run and its evaluation's images:

    ablate    each kind of variant against the decoder evaluated as it is, in turns that alternate, on tokens that the
              encoder has made once; how many there are, and what all of them take in decoders
    probe     the whole measurement against `whitebox.engine.evaluate` of all images that it looks at
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from turns import ratio, seconds, spread

from analysis.consumed import Chosen, Images
from analysis.measures.ablate import Ablate
from analysis.measures.decoder_scores import DecoderScores
from analysis.measures.probe import Probe
from analysis.measures.variants import (
    compressing,
    gradients,
    heads,
    layers_of,
    moments_heard,
    replaced_subspaces,
    steps,
    without_heads,
)
from analysis.record import hardware
from analysis.show.tables import Cell, Column, Table
from whitebox.engine.evaluate import evaluate
from whitebox.runs import Run, find_run
from whitebox.terminal import table_console


def ablate(run: Run, limit: int, turns: int) -> list[tuple[Cell, ...]]:
    """A row a kind of variant, then of all together."""
    scores = DecoderScores(run, Ablate().consumes(run, Chosen(limit=limit)), 0.1, 0)
    layers = layers_of(run.model)
    spaces, single = compressing(layers), heads(layers)
    with moments_heard(spaces) as moments:
        before = scores.seen(nullcontext())
    changes = scores.changes_from(before)
    made: dict[str, list[Callable[[], AbstractContextManager[Any]]]] = {}
    variants = steps(run.model, layers)
    if spaces:
        variants += gradients(run.model, spaces, 0.1) + replaced_subspaces(spaces, moments, 3, 0, None)
    for each in variants:
        kind = each.kind if each.layer != "all" or each.kind != "gradient" else "gradient, all layers"
        made.setdefault(kind, []).append(each.made)
    if single:
        made["head"] = [partial(without_heads, run.model, [each]) for each in single]
        made["pruning"] = [partial(without_heads, run.model, single)] * (2 * max(0, len(single) - 1))

    def change(kind: str) -> None:
        changes(scores.seen(made[kind][0]()))

    tasks: dict[str, Callable[[], object]] = {"decoder": scores.images.evaluate}
    tasks |= {kind: partial(change, kind) for kind in made}
    passed = seconds(tasks, turns)
    rows: list[tuple[Cell, ...]] = [("decoder, as it is", 1, spread(passed["decoder"]), None)]
    rows += [(kind, len(made[kind]), spread(passed[kind]), ratio(passed[kind], passed["decoder"])) for kind in made]
    count = sum(map(len, made.values()))
    total = [sum(len(made[kind]) * passed[kind][turn] for kind in made) / count for turn in range(turns)]
    rows.append(("all variants, each on average", count, spread(total), ratio(total, passed["decoder"])))
    return rows


def probe(run: Run, limit: int, turns: int) -> list[tuple[Cell, ...]]:
    """Against evaluation of the images that are fitted on, and of those that are measured."""
    asked = Probe()
    consumed, training = Images(run, Chosen(limit=limit)), asked.fitted(run)

    def evaluated() -> None:
        for images, count in ((consumed, limit), (training, None)):
            evaluate(run.model, images.dataset, run.inference, run.data, limit=count)

    def measured() -> None:
        asked.measure(run, consumed, lambda _done, _total: None)

    passed = seconds({"evaluation": evaluated, "probe": measured}, turns)
    total = limit + len(training)
    return [
        ("evaluation", total, spread(passed["evaluation"]), None),
        ("probe", total, spread(passed["probe"]), ratio(passed["probe"], passed["evaluation"])),
    ]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Costs of `whitebox ablate` and `whitebox probe`."""


@app.command()
def run(
    runs: list[Path],
    data_root: Annotated[Path | None, typer.Option()] = None,
    part: Annotated[list[str], typer.Option(help="ablate, probe; repeat for several.")] = ["ablate", "probe"],  # noqa: B006
    limit: Annotated[int, typer.Option(min=2, help="images")] = 24,
    turns: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    output: Path = Path("results/benchmarks"),
) -> None:
    """Measure, print and write."""
    torch.set_num_threads(threads)
    cpu, version = hardware()["cpu"], torch.__version__.split("+")[0]
    told = (
        f"{cpu}, {threads} threads, torch {version}, Python {platform.python_version()}; median and range over {turns} "
        "turns that alternate."
    )
    name = re.sub(r"[^a-z0-9.]+", "-", f"{cpu}-{threads}-threads-torch-{version}".lower())
    parts = {"ablate": ablate, "probe": probe}
    unknown = sorted(set(part) - set(parts))
    if unknown:
        raise typer.BadParameter(f"no part {', '.join(unknown)}; there are {', '.join(parts)}.")
    for chosen in part:
        rows: list[tuple[Cell, ...]] = []
        for path in runs:
            opened = find_run(path, device="cpu", data_root=data_root).open()
            rows += [(opened.name, *row) for row in parts[chosen](opened, limit, turns)]
        counted = Column("of them" if chosen == "ablate" else "images", 0)
        columns = (Column("run"), Column(chosen), counted, Column("s", 2), Column("ratio", 2))
        table = Table(columns, tuple(rows), f"{limit} images. {told}")
        table_console().print(table.to_rich())
        table.write(output / f"causes-{chosen}-{name}")


if __name__ == "__main__":
    app()
