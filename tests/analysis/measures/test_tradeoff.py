from pathlib import Path

import pytest
import torch
from asking import shown
from child_runs import TINY

from analysis.measures.evaluation import Evaluated
from analysis.measures.tradeoff import tradeoff
from analysis.record import Data, Record
from analysis.show.tables import Estimate
from whitebox.config import InferenceConfig, resolve
from whitebox.engine.checkpoint import save_model
from whitebox.errors import ConfigError
from whitebox.models import build
from whitebox.runs import open_run


def test_accuracy_stands_beside_the_cost_of_one_window(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = resolve("depict-sa-tiny", "shapes", TINY)
    save_model(tmp_path / "run" / "model.safetensors", build(config.encoder, config.decoder, 7), config)
    run = open_run(tmp_path / "run", device="cpu")
    miou = {"value": 0.5, "low": 0.4, "high": 0.6}
    evaluation = Record(kind="eval", model="run", data=Data("shapes", "val", 3, "f"), measured={"miou": miou}, n=3)
    evaluated = Evaluated("run", evaluation, tmp_path / "none")
    record = tradeoff(run, evaluated, tmp_path)
    assert tradeoff(run, evaluated, tmp_path) == record
    (table,) = shown([record], tmp_path / "figure").values()
    (row,) = table.rows
    assert row[:2] == ("run", Estimate(50.0, 40.0, 60.0))
    tokens, width, features = (32 // 16) ** 2 + 7, 24, 3 * 8
    assert row[3] == pytest.approx(3 * 2 * 1e-9 * (2 * tokens * width * features + 2 * tokens**2 * features))
    assert (tmp_path / "figure.png").stat().st_size > 1000 and "window of 32 px" in table.caption
    run.config.inference = InferenceConfig(window=None)
    with pytest.raises(ConfigError, match=r"^run shows images whole \(inference.window=null\), .* one window: give"):
        tradeoff(run, evaluated, tmp_path)
