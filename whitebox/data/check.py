"""Look at every file of a dataset: what is there, what is wrong, and what its labels hold.

Shapes: H, W pixels; K classes; V values that labels store, see ``whitebox.data.readers``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from whitebox.config import DataConfig
from whitebox.data import build_dataset, dataset_info
from whitebox.data.images import NARROW, Label, UInt8, orientation, read_image, read_label
from whitebox.data.learnable import ONE_CLASS, hopeless
from whitebox.data.prepare import read_marker
from whitebox.data.published import PUBLISHED, Published
from whitebox.data.readers import GENERATED, READERS, Folder, Layout, Listing, label_table, unlike_sizes
from whitebox.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

Int64 = npt.NDArray[np.int64]
OnImage = Callable[[int, int], None]  # images done, images in all
Pixels = TypeVar("Pixels", UInt8, Label)

_MOST = 8  # threads: decoding releases Python's lock


@dataclass
class SplitReport:
    """What one split holds. Stored values are those of the label files, before they become classes."""

    name: str
    images: int = 0  # files, or names of the owners' list
    labels: int = 0  # files
    checked: int = 0  # pairs whose two files are good and of one size
    pixels_V: Int64 = field(default_factory=lambda: np.zeros(NARROW, np.int64))  # by stored value
    occurs_V: Int64 = field(default_factory=lambda: np.zeros(NARROW, np.int64))  # labels a stored value occurs in
    unlabelled: int = 0  # labels without a pixel that counts
    turned_images: int = 0  # good pairs whose image, or label, has an EXIF orientation
    turned_labels: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height) of images
    problems: list[str] = field(default_factory=list)

    def stored(self) -> tuple[int, int] | None:
        """Lowest and highest stored value besides the last, which is ignored; None where there is none."""
        values = np.flatnonzero(self.pixels_V[:-1])
        return (int(values[0]), int(values[-1])) if values.size else None


@dataclass
class DatasetReport:
    """What ``check_dataset`` found.

    ``problems`` are what training would fail on or silently suffer from, ``doubts`` what only its owner can judge.
    """

    config: DataConfig
    classes: Sequence[str]
    table_V: Label
    splits: list[SplitReport]
    problems: list[str]
    notes: list[str]
    doubts: list[str] = field(default_factory=list)  # what may be right, and should be looked at

    def ignored(self, split: SplitReport) -> float:
        """Share of pixels that do not count, 0..1."""
        total = split.pixels_V.sum()
        return float(split.pixels_V[self.table_V == len(self.table_V) - 1].sum() / total) if total else 0.0

    def class_pixels(self, split: SplitReport) -> Int64:
        """Pixels by class, shape (K,)."""
        return self._by_class(split.pixels_V)

    def class_images(self, split: SplitReport) -> Int64:
        """Images by class, shape (K,)."""
        return self._by_class(split.occurs_V)

    def _by_class(self, values_V: Int64) -> Int64:
        by_index = np.bincount(self.table_V, weights=values_V, minlength=len(self.classes))  # exact below 2^53
        return by_index[: len(self.classes)].astype(np.int64)


def check_dataset(
    config: DataConfig,
    splits: Sequence[str] = (),
    *,
    allow_partial: bool = False,
    workers: int | None = None,
    on_image: OnImage | None = None,
) -> DatasetReport:
    """Read every image and label of a dataset.

    Args:
        config: which dataset, and where.
        splits: which of it; none: training, validation, and ``test`` where it is there.
        allow_partial: another number of images than the owners published is no problem.
        workers: threads; None: the cores, at most 8.
        on_image: called after each pair.

    Raises:
        ConfigError: unknown kind or split, or settings that do not fit the dataset.
        DataError: the classes of a ``folder`` cannot be read.
    """
    classes, _ = dataset_info(config)
    optional = () if splits else ("test",)
    splits = list(dict.fromkeys(splits or filter(None, (config.train_split, config.val_split))))
    reader = READERS[config.kind]
    if not isinstance(reader, Layout | Folder):
        return _check_drawn(config, classes, splits, on_image)

    reports, listings = [], []
    for name in [*splits, *(each for each in optional if each not in splits)]:
        if name in optional and isinstance(reader, Layout) and name not in reader.splits:
            continue
        try:
            listing = reader.listing(config, name)
        except DataError as error:
            if name not in optional:
                reports.append(SplitReport(name, problems=[str(error)]))
            continue
        V = len(listing.table_V)
        reports.append(SplitReport(name, pixels_V=np.zeros(V, np.int64), occurs_V=np.zeros(V, np.int64)))
        listings.append((reports[-1], listing))

    total = sum(len(listing.names) for _, listing in listings)
    done = 0
    for report, listing in listings:
        for pair in _read_split(report, listing, workers or min(_MOST, os.cpu_count() or 1)):
            _add(report, listing, *pair)
            done += 1
            if on_image is not None:
                on_image(done, total)
    table_V = listings[0][1].table_V if listings else label_table(len(classes))
    result = DatasetReport(config, classes, table_V, reports, [line for each in reports for line in each.problems], [])
    _judge_counts(result, allow_partial)
    _judge_labels(result)
    result.notes += _about_zero(result, reader)
    return result


def _check_drawn(
    config: DataConfig, classes: Sequence[str], splits: Sequence[str], on_image: OnImage | None
) -> DatasetReport:
    datasets = [build_dataset(config, split, augment=False) for split in splits]
    reports, done, total = [], 0, sum(len(dataset) for dataset in datasets)
    for split, dataset in zip(splits, datasets, strict=True):
        report = SplitReport(split, images=len(dataset), labels=len(dataset))
        for index in range(len(dataset)):
            image, label = dataset.source.load(index)
            _count(report, image, label, label_table(len(classes)))
            done += 1
            if on_image is not None:
                on_image(done, total)
        reports.append(report)
    result = DatasetReport(config, classes, label_table(len(classes)), reports, [], [])
    _judge_labels(result)
    return result


Read = tuple[str, "UInt8 | DataError | None", "Label | DataError | None"]  # name, image and label, None: no file


def _read_split(report: SplitReport, listing: Listing, workers: int) -> Iterator[Read]:
    report.images, report.labels = len(listing.names), len(listing.labels)
    if listing.listed:
        report.labels = sum(name in listing.labels for name in listing.names)
    report.problems += listing.doubled
    report.problems += [lack.finding() for lack in listing.unpaired()]
    if not listing.names:
        report.problems.append(f"{listing.image_folder} holds no images.")

    read_stored = partial(read_label, values=len(listing.table_V))

    def read(name: str) -> Read:
        return (
            name,
            _try(read_image, listing.images[name]) if name in listing.images else None,
            _try(read_stored, listing.labels[name]) if name in listing.labels else None,
        )

    with ThreadPoolExecutor(workers) as pool:  # a few at a time: decoded images are large
        step = 4 * workers
        for start in range(0, len(listing.names), step):
            yield from pool.map(read, listing.names[start : start + step])


def _try(read: Callable[[str], Pixels], path: str) -> Pixels | DataError:
    try:
        return read(path)
    except DataError as error:
        return error


def _add(
    report: SplitReport, listing: Listing, name: str, image: UInt8 | DataError | None, label: Label | DataError | None
) -> None:
    """Count one pair, or note what is wrong with it."""
    report.problems += [str(each) for each in (image, label) if isinstance(each, DataError)]
    if not isinstance(image, np.ndarray) or not isinstance(label, np.ndarray):
        return
    if image.shape[:2] != label.shape:
        report.problems.append(unlike_sizes(listing.images[name], image, listing.labels[name], label))
        return
    report.turned_images += orientation(listing.images[name]) > 1
    report.turned_labels += orientation(listing.labels[name]) > 1
    counts_V = _count(report, image, label, listing.table_V)
    unknown = np.flatnonzero((listing.table_V == len(listing.table_V) - 2) & (counts_V > 0))
    if unknown.size:
        values = ", ".join(map(str, unknown[:8])) + (" ..." if unknown.size > 8 else "")
        report.problems.append(
            f"Label {listing.labels[name]} holds values without a class: {values} "
            f"({counts_V[unknown].sum() / label.size:.1%} of its pixels); {listing.hint}."
        )


def _count(report: SplitReport, image: UInt8, label: Label, table_V: Label) -> Int64:
    counts_V = np.bincount(label.ravel(), minlength=len(table_V)).astype(np.int64)
    report.checked += 1
    report.pixels_V += counts_V
    report.occurs_V += counts_V > 0
    report.unlabelled += int(counts_V[table_V != len(table_V) - 1].sum() == 0)
    report.sizes[image.shape[1], image.shape[0]] += 1
    return counts_V


def _published(config: DataConfig) -> Published | None:
    return next((published for published in PUBLISHED.values() if config.kind in published.kinds), None)


def _judge_counts(report: DatasetReport, allow_partial: bool) -> None:
    published = _published(report.config)
    if published is None:
        return
    short = {
        split.name: (split.images, published.counts[split.name])
        for split in report.splits
        if split.name in published.counts and split.images != published.counts[split.name]
    }
    if not short:
        return
    marker = read_marker(Path(report.config.root, published.folder)) or {}
    accepted: Mapping[str, int] = marker.get("images", {})
    line = "Not the complete dataset: " + ", ".join(
        f"{name} has {count} of {all_} images" for name, (count, all_) in short.items()
    )
    if allow_partial or all(accepted.get(name) == count for name, (count, _) in short.items()):
        report.notes.append(f"{line} (accepted).")
    else:
        report.problems.append(f"{line}; --allow-partial accepts it.")


def _judge_labels(report: DatasetReport) -> None:
    if len(report.classes) == 1:
        report.problems.append(f"{report.config.name}: {ONE_CLASS}.")
    if doubled := [name for name, count in Counter(report.classes).items() if count > 1]:
        report.doubts.append(f"{len(doubled)} names are those of several classes: {_listed(doubled)}.")
    for split in report.splits:
        if split.unlabelled:
            report.notes.append(f"{split.name}: {split.unlabelled} labels have no pixel that counts.")
        if not split.checked:
            continue
        absent = [report.classes[k] for k in np.flatnonzero(report.class_pixels(split) == 0).tolist()]
        if problem := hopeless(split.name, report.classes, report.table_V, split.pixels_V):
            report.problems.append(problem)
        elif absent and split.pixels_V[-1] and report.config.kind == "folder":
            report.doubts.append(
                f"{split.name}: {len(absent)} classes never occur: {_listed(absent)}; and 255, which is ignored, "
                f"covers {report.ignored(split):.1%}: data.label_map={{255:CLASS}} gives it a class."
            )
        elif absent:
            report.notes.append(f"{split.name}: {len(absent)} classes never occur: {_listed(absent)}.")
        if split.turned_images:
            report.doubts.append(
                f"{split.name}: {split.turned_images} images have an EXIF orientation, their labels are read as "
                "stored; `data show` shows whether they fit."
            )
        if split.turned_labels:
            report.doubts.append(
                f"{split.name}: {split.turned_labels} labels have an EXIF orientation, which is not applied to labels; "
                "`data show` shows whether they fit."
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _about_zero(report: DatasetReport, reader: Layout | Folder) -> list[str]:
    """What ``reduce_zero_label`` does here, and what the other setting would."""
    pixels_V = sum((split.pixels_V for split in report.splits), np.zeros(len(report.table_V), np.int64))
    values = np.flatnonzero(pixels_V[:-1])
    if not values.size:
        return []
    share = pixels_V[0] / pixels_V.sum()
    if isinstance(reader, Layout) and reader.ids:
        return ["reduce_zero_label has no part in it: stored values are the owners' ids, a table makes them classes."]
    classes, lowest, highest = report.classes, int(values[0]), int(values[-1])
    now = f"reduce_zero_label={str(report.config.reduce_zero_label).lower()}: stored values {lowest}..{highest}, "
    if report.config.reduce_zero_label:
        beyond = pixels_V[len(classes) : -1].sum() / pixels_V.sum()
        return [
            f"{now}0 ({share:.2%} of pixels) is ignored, 1 is {classes[0]!r}. With false, 0 would be {classes[0]!r}, "
            f"every class one off, and {beyond:.2%} of pixels ({len(classes)} and above) without a class."
        ]
    lost = f"{share:.2%} of pixels ({classes[0]!r}) would be ignored" if pixels_V[0] else "nothing would be ignored"
    other = f"1 would be {classes[0]!r}, every class one off" if len(classes) > 1 else "no class would be left"
    return [f"{now}0 is {classes[0]!r}. With true, {lost}, and {other}."]


# --- on the terminal -------------------------------------------------------------------------------------------------


def print_report(report: DatasetReport, console: Console, most: int | None = 50) -> None:
    """Tables, notes, and problems (the first ``most`` of a split; None: all)."""
    from rich.table import Table

    from whitebox.terminal import plain, print_line

    folder = Path(report.config.root, report.config.path)
    where = "drawn, no files" if report.config.kind in GENERATED else str(folder)
    print_line(console, f"{report.config.name} ({where}): {len(report.classes)} classes")
    table = Table("split", "images", "labels", "good pairs", "stored values", "ignored", "sizes (px)", box=None)
    for split in report.splits:
        stored, ignored = split.stored(), f", {len(split.pixels_V) - 1}" if split.pixels_V[-1] else ""
        table.add_row(
            plain(split.name),
            str(split.images),
            str(split.labels),
            str(split.checked),
            f"{stored[0]}..{stored[1]}{ignored}" if stored else "none",
            f"{report.ignored(split):.2%}",
            _sizes(split.sizes),
        )
    console.print(table)
    shown = [split for split in report.splits if split.checked]
    if shown:
        table = Table("", "class", box=None)
        for split in shown:
            table.add_column(plain(f"{split.name} % of labelled px"), justify="right")
            table.add_column("images", justify="right")
        pixels, images = [report.class_pixels(s) for s in shown], [report.class_images(s) for s in shown]
        for k, name in enumerate(report.classes):
            if not any(images_K[k] for images_K in images):
                continue  # the notes count them
            cells = []
            for pixels_K, images_K in zip(pixels, images, strict=True):
                cells += [f"{100 * pixels_K[k] / max(pixels_K.sum(), 1):.3f}", str(images_K[k])]
            table.add_row(str(k), plain(name), *cells)
        console.print(table)
    for note in report.notes:
        print_line(console, f"note: {note}")
    for doubt in report.doubts:
        print_line(console, f"look: {doubt}")
    shown_problems = report.problems if most is None else report.problems[:most]
    for problem in shown_problems:
        print_line(console, f"problem: {problem}", style="red")
    if len(shown_problems) < len(report.problems):
        hidden = len(report.problems) - len(shown_problems)
        print_line(console, f"... and {hidden} more problems; --all shows them")
    count, doubts = len(report.problems), len(report.doubts)
    verdict = f"{count} problem{'s' if count > 1 else ''}" if count else "nothing is wrong"
    if doubts and not count:
        verdict = f"no problem, and {doubts} thing{'s' if doubts > 1 else ''} to look at"
    print_line(console, f"{report.config.name}: {verdict}")


def described(report: DatasetReport) -> dict[str, Any]:
    """A report in JSON's types: what each split holds, by class where its files could be read, and what is wrong."""
    splits = []
    for split in report.splits:
        stored, pixels_K, images_K = split.stored(), report.class_pixels(split), report.class_images(split)
        splits.append(
            {
                "name": split.name,
                "images": split.images,
                "labels": split.labels,
                "good_pairs": split.checked,
                "stored_values": None if stored is None else list(stored),
                "ignored": report.ignored(split),
                "sizes": [{"width": w, "height": h, "images": count} for (w, h), count in split.sizes.most_common()],
                "classes": [
                    {"name": name, "pixels": int(pixels_K[k]), "images": int(images_K[k])}
                    for k, name in enumerate(report.classes)
                ],
            }
        )
    told = {"problems": report.problems, "doubts": report.doubts, "notes": report.notes}
    return {"dataset": report.config.name, "splits": splits, **told}


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    if not sizes:
        return "none"
    (width, height), count = sizes.most_common(1)[0]
    if len(sizes) == 1:
        return f"{width} x {height}"
    sides = [side for size in sizes for side in size]
    share = count / sizes.total()
    return f"{len(sizes)} sizes, sides {min(sides)} to {max(sides)}, {share:.0%} are {width} x {height}"
