"""What a configuration asks of the training loop: another loss, rates and groups of parameters, a number of steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from child_runs import TINY, Quiet, lines, same, together, weights
from torch.overrides import TorchFunctionMode

from whitebox.config import OptimConfig, RunConfig, from_dict, resolve, to_dict
from whitebox.engine import checkpoint, update
from whitebox.engine.optimisation import build_loss, build_optimizer, learning_rate
from whitebox.engine.train import train
from whitebox.errors import ConfigError
from whitebox.models import EncoderConfig, build
from whitebox.models.decoders.depict_sa import DepictSAConfig
from whitebox.models.losses import ATMLoss, CrossEntropy, DiceCrossEntropy

SEGVIT = {"decoder.encoder_layers": [0, 1], "decoder.layers": 1, "decoder.dropout": 0.0}
LIVELY = {"encoder__drop_path": 0.5, "data__crop": 48}  # samples skip layers; crops have ignored pixels


def tiny(model: str = "segvit-tiny", **overrides: Any) -> RunConfig:
    """A training of a second; overrides with ``__`` for the dot."""
    settings = {**TINY, **SEGVIT} if "segvit" in model else dict(TINY)
    if "segvit" in model:
        del settings["decoder.head_dim"]
    return resolve(model, "shapes", {**settings, **{key.replace("__", "."): value for key, value in overrides.items()}})


def run(folder: Path, options: dict[str, Any]) -> None:
    train(tiny(**options), folder, Quiet())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, LIVELY)
    return folder


def assert_close(first: Path, second: Path) -> None:
    np.testing.assert_allclose([loss for _, loss in lines(first)], [loss for _, loss in lines(second)], rtol=1e-5)
    theirs = weights(second)
    for name, ours in weights(first).items():
        torch.testing.assert_close(ours, theirs[name], atol=1e-4, rtol=1e-4)


def test_splitting_a_batch_changes_nothing(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", {**LIVELY, "train__micro_batch": 1})
    assert_close(tmp_path / "run", whole)


def test_two_processes_give_the_losses_of_one(whole: Path, tmp_path: Path) -> None:
    """Also with parameters that never get a gradient: blocks behind the last that is asked for."""
    ended = together(2, run, tmp_path / "run", LIVELY, folder=tmp_path / "output")
    assert [code for code, _ in ended] == [0, 0], ended
    assert_close(tmp_path / "run", whole)


def test_an_interrupted_run_goes_on(whole: Path, tmp_path: Path) -> None:
    def stop(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    config = tiny(**LIVELY)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", Quiet(at_step=stop))
    train(config, tmp_path / "run", Quiet(), resume=True)
    assert same(tmp_path / "run", whole)


def test_compiling_changes_nothing(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "COMPILER", "eager")  # traced, not translated to C++
    run(tmp_path / "run", {**LIVELY, "train__compile": True})
    assert same(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("segvit-tiny", {"loss": "cross-entropy"}),
        ("segvit-tiny", {"loss__ignore": "mask", "train__precision": "bf16", "optim__decoder_lr": 10.0}),
        ("segvit-tiny", {"decoder": "segvit-shrunk", "encoder__shrink": 1, "optim__decay_norms": False}),
        ("segvit-tiny", {"encoder__class_token": True, "encoder__final_norm": True, "train__checkpointing": True}),
        ("depict-sa-tiny", {"loss": "atm"}),
        ("depict-ca-tiny", {"loss": "atm", "loss__dice": 0.0}),
    ],
)
def test_losses_and_models_go_together(model: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    quick = {"train__epochs": 6, "train__eval_every": 0, "optim__warmup_steps": 0, "optim__lr": 3e-3}
    config = tiny(model, **{**quick, **overrides})
    _, evaluation = train(config, tmp_path / "run", Quiet())
    found = [loss for _, loss in lines(tmp_path / "run")]
    assert sum(found[-6:]) < 0.97 * sum(found[:6])
    assert evaluation.scores.miou > 0


def test_a_number_of_steps(tmp_path: Path) -> None:
    """2 epochs are 6 steps; 4 of them are one and a third. The schedule ends there, and so does a resumed run."""
    config = tiny(train__steps=4)
    reporter = Quiet()
    train(config, tmp_path / "run", reporter)
    assert reporter.begun is not None and reporter.begun[0] == 4
    assert [step for step, _ in lines(tmp_path / "run")] == [1, 2, 3, 4]
    assert lines(tmp_path / "run", "lr")[-1][1] == learning_rate(3, 4, config.optim)
    assert [step for step, _ in lines(tmp_path / "run", "miou")] == [3, 4]
    before = weights(tmp_path / "run")
    train(config, tmp_path / "run", Quiet(), resume=True)
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "run").items())

    def stop(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "other", Quiet(at_step=stop))
    train(config, tmp_path / "other", Quiet(), resume=True)
    assert same(tmp_path / "other", tmp_path / "run")


def test_a_state_of_an_earlier_version_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration lacks the keys of today, which had their defaults."""
    original = checkpoint.save_training_state

    def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
        config = json.loads(state["config"])
        for section, keys in (
            ("encoder", ("positions", "class_token", "final_norm", "shrink")),
            ("optim", ("warmup_ratio", "decoder_lr", "decay_norms")),
        ):
            for key in keys:
                del config[section][key]
        del config["loss"], config["train"]["steps"], config["inference"]["scores"], config["data"]["train_max_ratio"]
        return original(folder, step, {**state, "config": json.dumps(config)})

    config = tiny("depict-sa-tiny", train__epochs=1)
    monkeypatch.setattr(checkpoint, "save_training_state", save)
    train(config, tmp_path / "run", Quiet())
    train(config, tmp_path / "run", Quiet(), resume=True)
    with pytest.raises(ConfigError, match=r"another configuration: loss.name was 'cross-entropy', is 'atm'"):
        train(tiny("depict-sa-tiny", train__epochs=1, loss="atm"), tmp_path / "run", Quiet(), resume=True)
    changed = tiny("depict-sa-tiny", train__epochs=2, optim__decoder_lr=10.0)  # two groups where there was one
    train(changed, tmp_path / "run", Quiet(), resume=True, allow_changes=True)
    assert [step for step, _ in lines(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


class TestGroups:
    @staticmethod
    def groups(**optim: Any) -> list[dict[str, Any]]:
        model = build(EncoderConfig(image_size=32, width=24, depth=1, heads=2), DepictSAConfig(layers=1, head_dim=4), 3)
        return build_optimizer(model, OptimConfig(**{"lr": 0.1, "weight_decay": 0.01, **optim})).param_groups

    def test_one_by_default(self) -> None:
        (group,) = self.groups()
        assert (group["lr"], group["weight_decay"], group["nesterov"]) == (0.1, 0.01, True)

    def test_the_decoder_by_itself(self) -> None:
        encoder, decoder = self.groups(name="adamw", decoder_lr=10.0)
        assert (encoder["lr"], decoder["lr"]) == (0.1, 1.0)
        assert len(decoder["params"]) == 9

    def test_norms_of_the_encoder_alone_are_spared(self) -> None:
        decayed, spared = self.groups(decay_norms=False)
        assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
        assert len(spared["params"]) == 6  # weight and bias of norm1, norm2, norm


def test_warm_up() -> None:
    """Without a ratio it is the linear one of mmcv with ratio 1 / (steps + 1), bit for bit as it was."""
    optim = OptimConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(step, 100, optim) for step in range(3)] == [
        pytest.approx((step + 1) / 5 * learning_rate(step, 100, OptimConfig(lr=1.0))) for step in range(3)
    ]
    ratio = OptimConfig(lr=1.0, warmup_steps=4, warmup_ratio=0.2)
    for step in range(8):
        assert learning_rate(step, 100, ratio) == pytest.approx(learning_rate(step, 100, optim), rel=1e-12)
    assert learning_rate(0, 100, OptimConfig(lr=1.0, warmup_ratio=0.5)) == 1.0  # there is nothing to warm up


def test_rates_fall_towards_the_image() -> None:
    """Two blocks, decay 1/2: norm 1, last block 1/2, first block 1/4, embeddings 1/8; the decoder has its own."""
    model = build(EncoderConfig(width=24, depth=2, heads=2, image_size=32), DepictSAConfig(head_dim=8), 3)
    chosen = OptimConfig(name="adamw", lr=0.8, min_lr=0.0, layer_decay=0.5, decoder_lr=10.0)
    optimizer = build_optimizer(model, chosen)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    expected = {"norm": 0.8, "blocks.1": 0.4, "blocks.0": 0.2, "patch_embed": 0.1, "pos_embed": 0.1, "cls_token": 0.1}
    seen = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = next((key for key in expected if name.startswith(f"encoder.vit.{key}")), None)
            assert rates[id(parameter)] == pytest.approx(8.0 if key is None else expected[key]), name
            seen.add(key)
    assert seen == {None, *expected}


def test_losses_by_name() -> None:
    assert isinstance(build_loss(resolve("depict-sa-tiny").loss, 4), CrossEntropy)
    chosen = ["loss.ignore=mask", "loss.focal=5", "loss.no_object=0.2"]
    loss = build_loss(resolve("segvit-tiny", None, chosen).loss, 4)
    assert isinstance(loss, ATMLoss)
    assert (loss.ignore, loss.weights_T, loss.no_object) == ("mask", (1.0, 5.0, 1.0), 0.2)


def test_class_weights_and_dice() -> None:
    loss = build_loss(resolve("depict-sa-tiny", None, ["loss.class_weights=[1,3]", "loss.dice=0.5"]).loss, 2)
    assert isinstance(loss, DiceCrossEntropy)
    assert (loss.dice, loss.entropy.class_weights) == (0.5, [1.0, 3.0])
    with pytest.raises(ConfigError, match=r"loss.class_weights=\[1.0, 3.0\] is impossible: there are 7 classes"):
        build_loss(resolve("depict-sa-tiny", None, ["loss.class_weights=[1,3]"]).loss, 7)
    for wrong in ("loss.class_weights=[0,0]", "loss.class_weights=[1,-1]", "loss.dice=-1"):
        with pytest.raises(ConfigError, match="is impossible"):
            resolve("depict-sa-tiny", None, [wrong])
    with pytest.raises(ConfigError, match="atm has none"):
        resolve("segvit-tiny", None, ["loss.class_weights=[1,2]"])


def test_runs_before_there_was_a_dice_term_have_none() -> None:
    """Their saved configuration holds atm's weights, which cross-entropy did not read."""
    saved = to_dict(resolve("depict-sa-tiny"))
    del saved["loss"]["class_weights"]
    saved["loss"]["dice"] = 1.0
    assert from_dict(saved).loss.dice is None
    saved["loss"]["class_weights"] = None
    assert from_dict(saved).loss.dice == 1.0


class Waits(TorchFunctionMode):
    """Remembers what would make a CPU wait for a GPU: numbers that leave a tensor, shapes that depend on numbers."""

    NAMES = frozenset({"item", "tolist", "__float__", "__int__", "__bool__", "__index__", "cpu", "numpy", "nonzero"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.NAMES:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("model", ["depict-sa-tiny", "cbsa-tiny", "segmenter-mask-tiny"])
def test_a_step_waits_for_a_gpu_at_its_end_alone(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first forward pass of a step to its report: the loss and the gradient's norm are read, and nothing else.

    AdamW on a CPU counts its steps in Python, the fused one of a GPU does not; SGD has no count.
    """
    waits, steps = Waits(), []
    forward = update.summed_loss

    def summed_loss(*given: Any) -> torch.Tensor:
        if not steps or steps[-1] is not None:
            waits.seen.clear()  # what came before is of tensors that the loader gave
            steps.append(None)
        return forward(*given)

    def at_step(step: int) -> None:
        steps[-1] = list(waits.seen)

    monkeypatch.setattr(update, "summed_loss", summed_loss)
    own = {key: value for key, value in TINY.items() if key != "decoder.head_dim" or not model.startswith("seg")}
    more = {
        "optim.name": "sgd",
        "train.steps": 3,
        "train.micro_batch": 2,
        "encoder.drop_path": 0.5,
        "optim.clip_grad": 1,
    }
    with waits:
        train(resolve(model, "shapes", {**own, **more}), tmp_path / "run", Quiet(at_step=at_step))
    assert len(steps) == 3
    assert (
        steps[:-1] == [["__float__", "__float__"]] * 2
    )  # behind the last of an epoch its labels are counted, on a CPU


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_optimisers_do_the_same(name: str) -> None:
    """As a GPU has them; here on a CPU, which knows them too."""
    config = tiny("depict-sa-tiny", optim__name=name, optim__lr=0.01, optim__weight_decay=0.1)
    ended = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = build(config.encoder, config.decoder, 3)
        optimizer = build_optimizer(model, config.optim, fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)).square().mean().backward()
            optimizer.step()
        ended.append(model.state_dict())
    for key, value in ended[0].items():
        torch.testing.assert_close(ended[1][key], value, atol=1e-4, rtol=1e-3)  # three steps move weights by 0.03
