"""How long reading and augmenting takes, beside which a training step or an evaluated image must be fast.

``python benchmarks/data.py`` times single samples in one process and one thread: ``shapes`` as it is drawn, and
photo-like JPEGs of 683 x 512 px with PNG labels through the recipe of ADE20K; and the augmentation alone, beside
mmsegmentation's where that is installed. ``train.workers`` processes share this work while the model computes. Writes
CSV, Markdown and LaTeX, hardware and versions in their names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from turns import ratio, spread

from analysis.record import hardware
from analysis.show.tables import Cell, Column, Table
from whitebox.config import DataConfig, resolve
from whitebox.data import build_dataset
from whitebox.data.augment import augment, random_key
from whitebox.data.images import UInt8
from whitebox.memory import keep_freed
from whitebox.terminal import table_console

IMAGES, CLASSES, SIZE = 8, 150, (512, 683)
MEAN = (127.5, 127.5, 127.5)
BY_MMSEG = "augmentation alone, by mmsegmentation"


def write_photos(folder: Path) -> None:
    """Smooth noise compresses like a photo; labels are large regions."""
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for index in range(IMAGES):
        coarse = random.integers(0, 256, (64, 85, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / f"{index}.jpg"), cv2.resize(coarse, SIZE[::-1]))
        regions = random.integers(0, CLASSES, (6, 8), dtype=np.uint8)
        label = cv2.resize(regions, SIZE[::-1], interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / "masks" / f"{index}.png"), label)


def milliseconds(sample: Callable[[int, int], object], turns: int) -> list[float]:
    """A sample in processor time, over turns of ``IMAGES`` samples; the first turn is not counted."""
    passed = []
    for turn in range(turns + 1):
        start = time.process_time()
        for index in range(IMAGES):
            sample(turn, index)
        passed.append(1000 * (time.process_time() - start) / IMAGES)
    return passed[1:]


def samples(config: DataConfig, split: str, augmented: bool) -> Callable[[int, int], object]:
    """Those of a dataset."""
    dataset = build_dataset(config, split, augment=augmented, mean_255=MEAN if augmented else None)
    return lambda turn, index: dataset[turn, index]


def transforms(config: DataConfig, photos: Sequence[tuple[UInt8, UInt8]]) -> dict[str, Callable[[int, int], object]]:
    """The augmentation alone, of the same photos with the same random numbers: ours and theirs."""

    def ours(turn: int, index: int) -> object:
        return augment(*photos[index], config, MEAN, random_key(0, turn, index))

    found: dict[str, Callable[[int, int], object]] = {"augmentation alone": ours}
    if find_spec("mmseg") is None or find_spec("mmcv") is None:
        return found
    from mmengine.registry import DefaultScope
    from mmseg.datasets import transforms as _registered  # noqa: F401
    from mmseg.registry import TRANSFORMS

    DefaultScope.get_instance("benchmark", scope_name="mmseg")
    low, high = config.scale_range
    scale = (int(config.max_ratio * config.resize), config.resize)
    steps: list[dict[str, Any]] = [
        {"type": "RandomResize", "scale": scale, "ratio_range": (low, high), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (config.crop,) * 2, "cat_max_ratio": config.cat_max_ratio},
        {"type": "RandomFlip", "prob": config.flip},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    built = [TRANSFORMS.build(step) for step in steps]

    def theirs(turn: int, index: int) -> object:
        image, label = photos[index]
        size = label.shape
        sample = {"img": image, "gt_seg_map": label, "seg_fields": ["gt_seg_map"], "img_shape": size, "ori_shape": size}
        np.random.seed(random_key(0, turn, index))  # noqa: NPY002
        for step in built:
            sample = step(sample)
        return sample

    return {**found, BY_MMSEG: theirs}


def main(turns: Annotated[int, typer.Option(min=1)] = 15, output: Path = Path("results/benchmarks")) -> None:
    """Measure, print and write the table."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    keep_freed()  # as in a process of a loader
    shapes = resolve("segmenter-linear-tiny", "shapes").data
    with TemporaryDirectory() as folder:
        write_photos(Path(folder))
        names = [f"class {index}" for index in range(CLASSES)]
        config = DataConfig(name="photos", kind="folder", path=folder, classes=names)
        read = [build_dataset(config, ".", augment=False)[index] for index in range(IMAGES)]
        pairs = [(each.image.permute(1, 2, 0).numpy().copy(), each.label.numpy()) for each in read]
        tasks = {
            "shapes, 128 px, drawn and augmented": samples(shapes, "train", True),
            "photo, 683 x 512 px, read and augmented to a 512 px crop": samples(config, ".", True),
            "photo, 683 x 512 px, read for evaluation": samples(config, ".", False),
            **transforms(config, pairs),
        }
        passed = {title: milliseconds(sample, turns) for title, sample in tasks.items()}
    rows: list[tuple[Cell, ...]] = [
        (title, spread(found), ratio(found, passed[BY_MMSEG]) if "alone" in title and BY_MMSEG in passed else None)
        for title, found in passed.items()
    ]
    cpu, version = hardware()["cpu"], torch.__version__.split("+")[0]
    table = Table(
        columns=(Column("Sample"), Column("ms", 2), Column("of mmsegmentation's", 2)),
        rows=tuple(rows),
        caption=f"{cpu}, one thread, processor time, torch {version}, OpenCV {cv2.__version__}; median and range over "
        f"{turns} turns of {IMAGES} samples. Ours ends in a padded float32 tensor, mmsegmentation's in uint8.",
    )
    table_console().print(table.to_rich())
    table.write(output / f"data-{cpu}-torch-{version}".lower().replace(" ", "-"))


if __name__ == "__main__":
    typer.run(main)
