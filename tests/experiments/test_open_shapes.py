from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.record import read_records
from experiments import open_shapes as study
from whitebox.config import resolve
from whitebox.data import open_shapes
from whitebox.engine.contrast import ContrastConfig
from whitebox.engine.log import Silent
from whitebox.engine.train import train

QUICK = {
    "train.steps": 1,
    "train.batch_size": 2,
    "train.workers": 0,
    "train.contrast_steps": 1,
    "data.train_length": 2,
    "data.val_length": 1,
    "data.size": 64,
    "data.crop": 64,
    "data.resize": 64,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A run of names, and one of given classes."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHITEBOX_CACHE", str(folder / "cache"))
        patch.setattr("whitebox.engine.contrast.ContrastConfig", partial(ContrastConfig, portraits=70))
        found = {}
        for model, chosen in (("sed-tiny", {}), ("segmenter-linear-tiny", {"encoder.depth": 1, "encoder.width": 48})):
            found[model] = folder / f"{model}-seed0"
            train(resolve(model, "open-shapes", {**QUICK, **chosen}), found[model], Silent())
        yield found


def test_words_of_a_name_count_one_by_one() -> None:
    classes = ("ground", "red plain star", "red dotted star", "blue plain cross")
    label = torch.tensor([[0, 1, 1], [1, 1, 0]])
    said = torch.tensor([[3, 1, 2], [3, 0, 0]])
    right = study.right_words(said, label, classes)
    np.testing.assert_allclose(right, [1 / 4, 2 / 4, 2 / 4, 2 / 4])
    assert np.isnan(study.right_words(label * 0, label * 0, classes)).all()


def test_vocabularies_hold_each_other() -> None:
    found = study.vocabularies()
    assert list(found) == sorted(found)
    sets = [set(names) for names in found.values()]
    assert all(small < large for small, large in pairwise(sets))
    assert all(len(names) == number for number, names in found.items())
    assert set(open_shapes.CLASSES) in sets


def test_the_study_from_runs_to_tables(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.main(["measure", *map(str, runs.values()), "-o", str(tmp_path), "--images", "2"])
    study.main(["measure", str(runs["sed-tiny"]), "-o", str(tmp_path), "--images", "2", "--cost-alone"])
    study.main(["rejection", str(runs["sed-tiny"]), "-o", str(tmp_path), "--images", "1"])
    records = {record.model: record for record in read_records(tmp_path / "records", study.KIND)}
    assert set(records) == {"sed-tiny-seed0", "sed-tiny-seed0-cost-alone", "segmenter-linear-tiny-seed0"}
    names = {each: told["names"] for each, told in records["sed-tiny-seed0"].measured.items()}
    assert names == {"seen": 68, "held-out": 25, "held-out-all": 121, "pairs": 30, "pairs-all": 121}
    closed = records["segmenter-linear-tiny-seed0"].measured
    assert set(closed) == {"seen", "held-out-all", "pairs-all"}
    assert closed["held-out-all"]["shapes"]["value"] == 0  # no name of a shape is among its classes
    (rejected,) = read_records(tmp_path / "records", study.REJECTION)
    rows = {(row["names"], row["k"]): row for row in rejected.measured["rows"]}
    assert rows[121, None]["kept"] == 121
    assert rows[121, 1]["kept"] <= rows[121, 16]["kept"] <= 121
    assert rows[121, 1]["gflops"] <= rows[121, None]["gflops"]
    study.main(["scenes", str(runs["sed-tiny"]), "-o", str(tmp_path), "--images", "2"])
    assert (tmp_path / "figures" / "scenes.png").stat().st_size > 10_000
    capsys.readouterr()
    study.main(["show", str(tmp_path)])
    assert "This says nothing about natural images." in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    stems = {path.name for path in (tmp_path / "tables").glob("*.md")}
    assert stems == {"answers.md", "words-held-out-all.md", "words-pairs-all.md", "rejection.md"}
    assert (tmp_path / "figures" / "answers.png").stat().st_size > 10_000
