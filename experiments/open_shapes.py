"""``open-shapes``: does a decoder segment classes whose names it never saw, because their words compose?

Ours, no paper. SED on a tiny CLIP is trained with the names of seen classes, then asked four questions on scenes that
no training showed; its controls and two white-box decoders with classes made of names answer the same ones. Nothing
here says anything about natural images, or about the published numbers of SED.

    python -m experiments.open_shapes measure RUN ... -o results/open-shapes
    python -m experiments.open_shapes rejection RUN -o results/open-shapes
    python -m experiments.open_shapes scenes RUN -o results/open-shapes
    python -m experiments.open_shapes show results/open-shapes

``measure`` writes a record a run, ``rejection`` one about early rejection, ``show`` draws their tables and figures;
``scenes`` draws the answers of a run to some scenes.

Shapes: N images, K classes of a question, B batch, H W pixels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from analysis.ask import ask
from analysis.maths.intervals import mean_interval
from analysis.measures.evaluation import measured_scores
from analysis.record import Answer, Data, Question, Record, describe_weights, read_records
from analysis.show.figures import figure_style, new_figure, save_figure
from analysis.show.tables import Cell, Column, Estimate, Table, number
from whitebox.api import load_run
from whitebox.config import RunConfig, resolve
from whitebox.data import SegmentationDataset, build_dataset, open_shapes
from whitebox.data.fingerprint import fingerprint
from whitebox.engine.header import weights_file
from whitebox.engine.metrics import image_counts
from whitebox.models import OpenSegmentor, Segmentor
from whitebox.models.decoders.sed import cost_volume
from whitebox.terminal import table_console

KIND, REJECTION = "open-shapes", "open-shapes-rejection"
IMAGES, BATCH = 200, 10
WORDS = ("colour", "pattern", "form")
FEWER = (1, 2, 4, 8, 16)  # k of early rejection


@dataclass(frozen=True)
class Asked:
    """Scenes of one split among the names of one dataset."""

    name: str
    title: str
    dataset: str
    split: str
    given: bool = True  # whether the names hold those of training, so that a model of given classes can answer


QUESTIONS = (
    Asked("seen", "seen scenes, seen names", "open-shapes", "val"),
    Asked("held-out", "held-out scenes, held-out names", "open-shapes-held-out", "held-out", False),
    Asked("held-out-all", "held-out scenes, all names", "open-shapes-all", "held-out"),
    Asked("pairs", "unseen pairs, their names", "open-shapes-pairs", "pairs", False),
    Asked("pairs-all", "unseen pairs, all names", "open-shapes-all", "pairs"),
)


def scenes(question: Asked, images: int, size: int) -> SegmentationDataset:
    """The scenes of a question."""
    data = resolve("sed-tiny", question.dataset, {"data.val_length": images, "data.size": size}).data
    return build_dataset(data, question.split, augment=False)


class CostAlone(nn.Module):
    """The cosine between places and names, without a decoder: what the towers know of themselves."""

    def __init__(self, model: OpenSegmentor) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        maps = self.model.encode(images).tokens
        cost_BThw = cost_volume(maps[-1], self.model.prepare()).mean(2)
        return F.interpolate(cost_BThw, images.shape[-2:], mode="bilinear", align_corners=False)


@torch.no_grad()
def answers(
    model: Segmentor, dataset: SegmentationDataset, cost_alone: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Predicted and true classes (H, W) of each scene, both as indices of the dataset's classes.

    A model of given classes answers with those; one of names is asked about the dataset's.
    """
    asked: nn.Module = model
    table_K = torch.arange(len(dataset.classes))
    if isinstance(model, OpenSegmentor):
        model.set_vocabulary(dataset.classes)
        asked = CostAlone(model) if cost_alone else model
    else:
        table_K = torch.tensor([dataset.classes.index(name) for name in model.classes])
    for start in range(0, len(dataset), BATCH):
        batch = [dataset[index] for index in range(start, min(start + BATCH, len(dataset)))]
        predicted_BHW = table_K[asked(torch.stack([sample.image for sample in batch])).argmax(1)]
        yield from zip(predicted_BHW, (sample.label.long() for sample in batch), strict=True)


def right_words(predicted_HW: Tensor, label_HW: Tensor, classes: Sequence[str]) -> NDArray[np.float64]:
    """Shares of the pixels of shapes: class right, then each of its words right, (4,); nan without shapes."""
    shapes = label_HW > 0
    said, true = predicted_HW[shapes], label_HW[shapes]
    if not len(true):
        return np.full(1 + len(WORDS), np.nan)
    words = {kind.name: kind.words for kind in open_shapes.KINDS}
    ids: dict[str, int] = {}
    table = torch.tensor(
        [[ids.setdefault(word, len(ids)) for word in words.get(name, ("", "", ""))] for name in classes]
    )
    right = (table[said] == table[true]).double().mean(0)
    return np.array([(said == true).double().mean().item(), *right.tolist()])


def answer(model: Segmentor, question: Asked, images: int, size: int, cost_alone: bool = False) -> dict[str, Any]:
    """What one question gives: scores with intervals over images, and which words are right."""
    dataset = scenes(question, images, size)
    counts, words = [], []
    for predicted, label in answers(model, dataset, cost_alone):
        counts.append(image_counts(predicted, label, len(dataset.classes)).numpy())
        words.append(right_words(predicted, label, dataset.classes))
    measured = measured_scores(np.stack(counts), dataset.classes, mean_over="labelled")
    value, low, high = mean_interval(np.stack(words))
    shares = [{"value": value[i], "low": low[i], "high": high[i]} for i in range(1 + len(WORDS))]
    return {
        "names": len(dataset.classes),
        **{key: measured[key] for key in ("miou", "macc", "aacc")},
        **dict(zip(("shapes", *WORDS), shares, strict=True)),
    }


def measure(path: Path, folder: Path, images: int = IMAGES, cost_alone: bool = False) -> Record:
    """The record of a run: its answers to all questions that it can answer."""
    model, config = load_run(path)
    # a model of given classes has no say where they are not among the names
    asked = [each for each in QUESTIONS if isinstance(model, OpenSegmentor) or each.given]
    name = f"{path.name}{'-cost-alone' if cost_alone else ''}"

    def found() -> Answer:
        told = {each.name: answer(model, each, images, config.data.size, cost_alone) for each in asked}
        return Answer(measured=told, n=images)

    return ask(_question(KIND, name, path, config, images), found, folder / "records")


def _question(kind: str, name: str, path: Path, config: RunConfig, images: int) -> Question:
    decides = (config.data.shapes_seed, config.data.size, open_shapes.CLASSES)
    return Question(
        kind=kind,
        model=name,
        data=Data("open-shapes", "val+held-out+pairs", images, fingerprint([(str(each),) for each in decides])),
        weights=describe_weights(weights_file(path)),
        seeds={"bootstrap": 0, "training": config.train.seed},
        settings={
            "resamples": 1000,
            "mean_over": "labelled",
            "steps": config.train.steps,
            "contrast_steps": config.train.contrast_steps,
            "names": config.loss.names,
            "embeddings": getattr(config.encoder, "embeddings", "learned"),
        },
    )


# --- early rejection -------------------------------------------------------------------------------------------------


def vocabularies() -> dict[int, tuple[str, ...]]:
    """Names to choose from, more and more: the held-out ones, then seen ones, all, and parts of names beside them."""
    held_out, everything = open_shapes.names("held-out"), open_shapes.CLASSES
    others = [name for name in everything if name not in held_out]
    kinds = open_shapes.KINDS
    parts = dict.fromkeys(
        " ".join(pair) for kind in kinds for pair in (kind.words[:2], kind.words[1:], (kind.words[0], kind.words[2]))
    )
    found = (held_out, (*held_out, *others[:40]), everything, (*everything, *parts))
    return {len(names): names for names in found}


def rejection(path: Path, folder: Path, images: int = 20) -> Record:
    """Early rejection on held-out scenes: loss, kept classes, FLOPs and seconds, against the number of names and k."""
    model, config = load_run(path)
    assert isinstance(model, OpenSegmentor)
    rows = [row for names in vocabularies().values() for row in _rejecting(model, names, images, config.data.size)]
    question = _question(REJECTION, path.name, path, config, images)
    return ask(question, lambda: Answer(measured={"rows": rows}, n=images), folder / "records")


@torch.no_grad()
def _rejecting(model: OpenSegmentor, names: tuple[str, ...], images: int, size: int) -> list[dict[str, Any]]:
    """A row for each k, with the full decoder first; all take turns on each scene."""
    dataset = scenes(QUESTIONS[2], images, size)
    K, decoder = len(dataset.classes), cast(Any, model.decoder)
    model.set_vocabulary(names)
    model.prepare()
    index = torch.tensor([dataset.classes.index(name) if name in dataset.classes else K for name in names])
    ways = [None, *(k for k in FEWER if k < len(names))]
    seconds: dict[int | None, list[float]] = {k: [] for k in ways}
    counts: dict[int | None, list[NDArray[np.int64]]] = {k: [] for k in ways}
    kept: dict[int | None, list[float]] = {k: [] for k in ways}
    gflops: dict[int | None, list[float]] = {k: [] for k in ways}
    for scene in range(images):
        sample = dataset[scene]
        encoded = model.encode(sample.image[None])
        for k in ways:
            decoder.topk = k
            with FlopCounterMode(display=False) as counter:  # untimed, it warms up
                decoder.predict(*encoded)
            gflops[k].append(counter.get_total_flops() / 1e9)
            began = time.process_time()
            prediction = decoder.predict(*encoded)
            seconds[k].append(time.process_time() - began)
            kept[k].append(torch.isfinite(prediction.masks_BKhw).flatten(2).any(-1).sum().item())
            said_HW = index[model.probabilities(prediction, (size, size))[0].argmax(0)]
            counts[k].append(image_counts(said_HW, sample.label.long(), K + 1).numpy())  # K: a name of no class
        decoder.topk = None
    rows = []
    for k in ways:
        found = measured_scores(np.stack(counts[k]), [*dataset.classes, "other"], mean_over="labelled")
        low, median, high = np.quantile(seconds[k], (0.25, 0.5, 0.75)).tolist()
        rows.append(
            {
                "names": len(names),
                "k": k,
                "miou": found["miou"],
                "aacc": found["aacc"],
                "kept": float(np.mean(kept[k])),
                "gflops": float(np.mean(gflops[k])),
                "seconds": {"value": median, "low": low, "high": high},
            }
        )
    return rows


# --- tables and figures ----------------------------------------------------------------------------------------------

TITLES = {
    "sed-tiny": "SED",
    "sed-random": "SED, random vectors for names",
    "sed-joint": "SED, text tower trained, too",
    "cost-alone": "cosine of the towers alone",
    "segmenter-linear": "Segmenter linear (seen classes alone)",
    "depict-sa-open": "DEPICT-SA, classes made of names",
    "cbsa-open": "CBSA, classes made of names",
}


def grouped(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of the trainings of each model, by its title; in the order of ``TITLES``."""

    def key(record: Record) -> str:
        return (
            "cost-alone"
            if "cost-alone" in record.model
            else next(key for key in TITLES if record.model.startswith(key))
        )

    found: dict[str, list[Record]] = {}
    for name, title in TITLES.items():
        if same := [record for record in records if key(record) == name]:
            found[title] = sorted(same, key=lambda record: record.seeds["training"])
    return found


def over_seeds(records: Sequence[Record], question: str, key: str) -> Estimate | None:
    """Percent: the mean over trainings with their range; of one training its interval over images."""
    if question not in records[0].measured:
        return None
    values = [100 * record.measured[question][key]["value"] for record in records]
    if len(values) > 1:
        return Estimate(float(np.mean(values)), min(values), max(values))
    only = records[0].measured[question][key]
    return Estimate(*(100 * number(only[part]) for part in ("value", "low", "high")))  # few images have no interval


def answers_table(groups: Mapping[str, Sequence[Record]]) -> Table:
    """MIoU of each model for each question."""
    rows: list[tuple[Cell, ...]] = [
        (title, len(records), *(over_seeds(records, each.name, "miou") for each in QUESTIONS))
        for title, records in groups.items()
    ]
    chance = "; ".join(f"{each.title}: {100 / (count - 1):.1f} %" for each, count in _numbers(groups).items())
    return Table(
        columns=(Column("Model"), Column("Trainings", 0), *(Column(f"{each.title} (mIoU, %)") for each in QUESTIONS)),
        rows=tuple(rows),
        caption=f"{_n(groups)} Brackets: lowest and highest of several trainings; of a single one the 95 % interval "
        f"over images. A guess among the names of shapes would be right on this share of their pixels: {chance}. "
        "This says nothing about natural images.",
    )


def words_table(groups: Mapping[str, Sequence[Record]], question: str) -> Table:
    """Which words are right on the pixels of shapes."""
    rows: list[tuple[Cell, ...]] = [
        (title, *(over_seeds(records, question, key) for key in ("shapes", *WORDS, "aacc")))
        for title, records in groups.items()
    ]
    title = next(each.title for each in QUESTIONS if each.name == question)
    return Table(
        columns=tuple(map(Column, ("Model", "Whole name (%)", "Colour (%)", "Pattern (%)", "Form (%)", "aAcc (%)"))),
        rows=tuple(rows),
        caption=f"{title}: share of the pixels of shapes whose name, and whose words, are right; aAcc is of all "
        f"pixels. {_n(groups)} A guess would have 1 of {len(open_shapes.COLOURS)} colours, {len(open_shapes.PATTERNS)} "
        f"patterns and {len(open_shapes.FORMS)} forms.",
    )


def rejection_table(record: Record) -> Table:
    """Early rejection against the number of names and k."""
    rows: list[tuple[Cell, ...]] = []
    full: dict[int, dict[str, Any]] = {row["names"]: row for row in record.measured["rows"] if row["k"] is None}
    for row in record.measured["rows"]:
        whole = full[row["names"]]
        miou = Estimate(*(100 * number(row["miou"][part]) for part in ("value", "low", "high")))
        milliseconds = Estimate(*(1000 * row["seconds"][part] for part in ("value", "low", "high")))
        fewer, faster = whole["gflops"] / row["gflops"], whole["seconds"]["value"] / row["seconds"]["value"]
        kept = row["kept"], row["gflops"], fewer, milliseconds, faster
        rows.append((row["names"], str(row["k"] or "all"), miou, 100 * row["aacc"]["value"], *kept))
    return Table(
        columns=(
            Column("Names", 0),
            Column("k"),
            Column("mIoU (%)"),
            Column("aAcc (%)"),
            Column("Names kept"),
            Column("Decoder GFLOPs", 3),
            Column("times fewer"),
            Column("Decoder ms", 0),
            Column("times faster"),
        ),
        rows=tuple(rows),
        caption=f"{record.model} on {record.n} held-out scenes. Processor time of one thread, median [quartiles], all "
        "k in turns on each scene; names kept and GFLOPs: means over scenes; names beyond the 121 are parts of names. "
        "Brackets of mIoU: 95 % interval over images.",
    )


def show(folder: Path) -> None:
    """Tables and figures of the records in ``folder/records``."""
    groups = grouped(read_records(folder / "records", KIND))
    tables = {"answers": answers_table(groups)}
    for question in ("held-out-all", "pairs-all"):
        tables[f"words-{question}"] = words_table(groups, question)
    for record in read_records(folder / "records", REJECTION):
        tables["rejection"] = rejection_table(record)
    for name, table in tables.items():
        table.write(folder / "tables" / name)
        table_console().print(table.to_rich())
    _figure(groups, folder / "figures" / "answers")


def _figure(groups: Mapping[str, Sequence[Record]], path: Path) -> None:
    with figure_style(len(groups)) as colours:
        figure = new_figure(2.6, 7.2)
        axes = figure.add_subplot()
        width = 0.8 / len(groups)
        for place, (colour, (title, records)) in enumerate(zip(colours, groups.items(), strict=False)):
            for index, each in enumerate(QUESTIONS):
                shown = over_seeds(records, each.name, "miou")  # as the table has it
                if shown is None:
                    continue
                values = [100 * record.measured[each.name]["miou"]["value"] for record in records]
                x = index + (place - (len(groups) - 1) / 2) * width
                axes.bar(x, shown.value, width * 0.9, color=colour, label=None if index else title)
                axes.plot([x] * len(values), values, "o", color="0.2", markersize=2)
                axes.vlines(x, shown.low, shown.high, color="0.2", linewidth=1)
        axes.set_xticks(range(len(QUESTIONS)), [each.title.replace(", ", ",\n") for each in QUESTIONS])
        axes.set_ylabel("mIoU (%)")
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside upper center", ncols=3)
        save_figure(figure, path)


def picture(path: Path, folder: Path, question: str = "held-out-all", images: int = 6) -> None:
    """``figures/scenes``: scenes, their truth, and what a run says of them among the names of a question."""
    model, config = load_run(path)
    dataset = scenes(next(each for each in QUESTIONS if each.name == question), images, config.data.size)
    colours = np.array(dataset.palette, np.uint8)
    with figure_style():
        figure = new_figure(3.6, 1.2 * images)
        panels = figure.subplots(3, images)
        for column, (said_HW, true_HW) in enumerate(answers(model, dataset)):
            photo = dataset[column].image.permute(1, 2, 0).numpy()
            for row, (what, pixels, shown) in enumerate(
                (("scene", photo, None), ("truth", colours[true_HW], true_HW), ("said", colours[said_HW], said_HW))
            ):
                axes = panels[row, column]
                axes.imshow(pixels, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.set_ylabel("" if column else what)
                if shown is not None:
                    counts_K = torch.bincount(shown.flatten(), minlength=len(dataset.classes))
                    largest = [k for k in counts_K.argsort(descending=True).tolist() if k and counts_K[k] > 80][:3]
                    axes.set_xlabel("\n".join(dataset.classes[k] for k in largest), fontsize=5.5)
        save_figure(figure, folder / "figures" / "scenes")


def _numbers(groups: Mapping[str, Sequence[Record]]) -> dict[Asked, int]:
    first = next(iter(groups.values()))[0].measured
    return {each: first[each.name]["names"] for each in QUESTIONS if each.name in first}


def _n(groups: Mapping[str, Sequence[Record]]) -> str:
    return f"n = {next(iter(groups.values()))[0].n} scenes a question."


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line, see the head of this file."""
    parser = argparse.ArgumentParser(description="What models trained on open-shapes know of names they never saw.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, images in (("measure", IMAGES), ("rejection", 20), ("scenes", 6)):
        command = commands.add_parser(name)
        command.add_argument("runs", nargs="+" if name == "measure" else 1, type=Path)
        command.add_argument("-o", "--output", type=Path, default=Path("results/open-shapes"))
        command.add_argument("--images", type=int, default=images)
    commands.choices["measure"].add_argument("--cost-alone", action="store_true", help="the towers without decoders")
    commands.add_parser("show").add_argument("folder", type=Path)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.command == "show":
        show(chosen.folder)
        return
    for run in chosen.runs:
        if chosen.command == "scenes":
            picture(run, chosen.output, images=chosen.images)
            return
        if chosen.command == "measure":
            record = measure(run, chosen.output, chosen.images, chosen.cost_alone)
        else:
            record = rejection(run, chosen.output, chosen.images)
        table_console().print(f"{record.model}: {chosen.output / 'records' / record.file_name}")


if __name__ == "__main__":
    main()
