"""What a measurement consumes: the weights alone, images as evaluation shows them, or photos. Known without a model.

From it follow the data and the settings of a question: whatever of it changes, the numbers are others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.measurement import Progress
from analysis.record import Data, Record
from whitebox.config import DataConfig
from whitebox.data.fingerprint import checksums, data_fingerprint, fingerprint
from whitebox.data.readers import class_table, reader_of
from whitebox.data.units import Units, units_of, with_unit
from whitebox.errors import ConfigError, DataError, ModelError
from whitebox.names import fits_label_set

if TYPE_CHECKING:
    from analysis.measures.samples import Sample
    from whitebox.data import SegmentationDataset
    from whitebox.data.images import UInt8
    from whitebox.runs import Run, SavedRun


@dataclass(frozen=True)
class Chosen:
    """What a user chose to consume; a measurement takes of it what it needs.

    Attributes:
        split: None: the validation split.
        limit: only the first images; None: all.
        photos: files.
        unit: what is independent, see `whitebox.data.units.with_unit`; None: what the dataset says.
    """

    split: str | None = None
    limit: int | None = None
    photos: tuple[Path, ...] = ()
    unit: str | None = None


class WeightsAlone:
    """No image is read."""

    word = ""

    def __init__(self, run: SavedRun | Run, chosen: Chosen) -> None:
        if chosen.split is not None or chosen.limit is not None:
            raise ConfigError("--split and --limit choose images, but the weights alone are measured: add --after.")
        self.data = Data(run.data.name, "", 0, fingerprint([]))
        self.settings: dict[str, Any] = {}


class Images:
    """The images of one split as evaluation shows them, windowed (one scale, unmirrored).

    Attributes:
        word: for names of files, where units are others than the dataset's own.

    Raises:
        ConfigError: ``limit`` below 1, or an unknown dataset or split.
        DataError: there are no images.
        ModelError: model and dataset have different numbers of classes.
    """

    def __init__(self, run: SavedRun | Run, chosen: Chosen) -> None:
        if chosen.limit is not None and chosen.limit < 1:
            raise ConfigError(f"--limit {chosen.limit} is impossible: it must be at least 1.")
        self.config: DataConfig = run.data if chosen.unit is None else with_unit(run.data, chosen.unit)
        self.word = "" if chosen.unit is None else f"unit_{chosen.unit}"
        self.split, self.limit = chosen.split or run.data.val_split, chosen.limit
        self.source = reader_of(run.data).source(run.data, self.split)
        self.classes, self.names = self.source.classes, self.source.names[: chosen.limit]
        if not self.names:
            raise DataError(f"The split {self.split} of {run.data.name} has no images: check its folder.")
        self.prompted = run.classes != self.classes and run.open_vocabulary
        if self.prompted and not fits_label_set(run.classes, self.classes):
            raise ModelError(
                f"The vocabulary has {len(run.classes)} names and {run.data.name} has {len(self.classes)} classes: "
                "give one name for each of them, in their order."
            )
        if not self.prompted and len(self.classes) != len(run.classes):
            raise ModelError(
                f"{run.name} has {len(run.classes)} classes and {run.data.name} has {len(self.classes)}: measure on "
                "the dataset the model was trained for (--dataset)."
            )
        data, inference = run.data, run.inference
        self.settings: dict[str, Any] = {
            "resize": data.resize,
            "max_ratio": data.max_ratio,
            "window": inference.window,
            "stride": inference.stride,
            "unit": self.units.described,
        }

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def units(self) -> Units:
        """Which of them belong together.

        Raises:
            WhiteboxError: nothing says it of one of them.
        """
        return units_of(self.config, self.names)

    @cached_property
    def data(self) -> Data:
        """What they hold, see `data_fingerprint`."""
        found = data_fingerprint(self.config, self.source, self.limit)
        return Data(self.config.name, self.split, len(self), found)

    @cached_property
    def dataset(self) -> SegmentationDataset:
        """As PyTorch takes them; more than ``limit``."""
        from whitebox.data import build_dataset

        return build_dataset(self.config, self.split, augment=False)

    def each(self, run: Run, advance: Progress | None = None) -> Iterator[Sample]:
        """One after another, see `analysis.measures.samples`; ``advance`` is called after each."""
        from analysis.measures.samples import samples

        return samples(run, self.dataset, range(len(self)), advance)


class EvaluatedImages(Images):
    """The images of one split as evaluation segments them: windows, scales and mirror images."""

    def __init__(self, run: SavedRun | Run, chosen: Chosen) -> None:
        super().__init__(run, chosen)
        self.settings |= {"scales": list(run.inference.scales), "flip": run.inference.flip}
        if run.inference.scores != "shares":  # records before them have no such keys
            self.settings["scores"] = run.inference.scores
        if run.data.mean_over != "occurring":
            self.settings["mean_over"] = run.data.mean_over
        if run.data.transforms != "mmseg":
            self.settings["transforms"] = run.data.transforms
        if run.inference.topk is not None:
            self.settings["topk"] = run.inference.topk
        if self.prompted:
            self.settings["vocabulary"] = fingerprint(enumerate(run.classes))


class Photos:
    """Photos given by hand, each shown whole in one pass, and the labels of some of them.

    Args:
        labels: label images in the order of the photos, or one folder of PNGs with the photos' names; may be empty.

    Raises:
        ConfigError: another number of labels than of photos.
    """

    word = ""

    def __init__(self, run: SavedRun | Run, chosen: Chosen, labels: Sequence[Path] = ()) -> None:
        self.paths = chosen.photos
        self.labels = self._paired(labels)
        self._label_values = run.data, run.classes
        self.settings: dict[str, Any] = {"resize": run.data.resize, "max_ratio": run.data.max_ratio}
        if run.inference.topk is not None:
            self.settings["topk"] = run.inference.topk

    def _paired(self, labels: Sequence[Path]) -> list[Path | None]:
        if not labels:
            return [None] * len(self.paths)
        if len(labels) == 1 and labels[0].is_dir():
            return [labels[0] / f"{path.stem}.png" for path in self.paths]
        if len(labels) != len(self.paths):
            raise ConfigError(
                f"There are {len(self.paths)} photos and {len(labels)} labels: repeat --truth once for each photo in "
                "their order, or give one folder of PNGs with the photos' names."
            )
        return list(labels)

    @cached_property
    def table_256(self) -> UInt8:
        """Class of each value stored in a label."""
        return class_table(*self._label_values)

    @cached_property
    def data(self) -> Data:
        """Their names, and what they and their labels hold."""
        names = [path.stem for path in self.paths]
        labels = [path for path in self.labels if path is not None]
        meaning = [("labels", *checksums(labels, "Label"), self.table_256.tobytes().hex())] if labels else []
        together = names[0] if len(names) == 1 else f"{len(names)}_photos"
        entries = [*zip(names, checksums(self.paths, "Image"), strict=True), *meaning]
        return Data("photos", together, len(names), fingerprint(entries))

    def found_again(self, record: Record) -> Record:
        """A record in which the photos lie where they lie now."""
        for stored, path in zip(record.measured["photos"], self.paths, strict=True):
            stored["path"] = Path(os.path.relpath(path)).as_posix()
        return record


Consumed = WeightsAlone | Images | Photos
