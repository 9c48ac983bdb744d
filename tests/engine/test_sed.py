"""SED trains, is evaluated and rejects classes as the official code does; vectors as in tests/models/test_sed.py."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sed_vectors import PREFIX, Case, relative, whole_model

from whitebox.config import InferenceConfig, OptimConfig
from whitebox.engine.inference import predict_labels, probabilities, rejecting, segment
from whitebox.engine.optimisation import build_optimizer, learning_rate
from whitebox.errors import ConfigError
from whitebox.interop.sed import our_name
from whitebox.models import OpenSegmentor
from whitebox.models.losses import BinaryCrossEntropy

# of the official configs; a step has other numbers of them
OPTIM = OptimConfig(
    name="adamw",
    lr=2e-6,
    min_lr=0.0,
    schedule="cosine",
    weight_decay=1e-4,
    clip_grad=0.01,
    decoder_lr=100.0,
    decay_norms=False,
    decay_decoder_norms=False,
)
WHOLE = InferenceConfig(window=None)


def traced(shared: Path, train: bool = False) -> tuple[Case, OpenSegmentor]:
    case = Case(shared / "golden", "sed_trace")
    kind = "train" if train else "test"
    model = whole_model(case, case.facts[f"{kind}_classes"])
    object.__setattr__(model.decoder.config, "eval_pool", 1)
    model.set_vocabulary(model.classes, features_TPD=case[f"text.features_{kind}"])
    return case, model


def test_groups_of_the_optimiser_are_the_official_ones(shared: Path) -> None:
    _, model = traced(shared)
    official = Case(shared / "golden", "sed_train")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in build_optimizer(model, OPTIM).param_groups
        for parameter in group["params"]
    }
    expected = {our_name(PREFIX + name): tuple(values) for name, values in official.facts["groups"].items()}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values), name


def test_three_steps_of_training_are_the_official_ones(shared: Path) -> None:
    case = Case(shared / "golden", "sed_train")
    _, model = traced(shared, train=True)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OPTIM)
    times = [group["lr"] / OPTIM.lr for group in optimizer.param_groups]
    loss = model.loss = BinaryCrossEntropy()
    trained = [each for each in model.parameters() if each.requires_grad]
    model.train()
    for step, expected in enumerate(case.facts["losses"]):
        rate = learning_rate(step, case.facts["max_iter"], OPTIM)
        for group, factor in zip(optimizer.param_groups, times, strict=True):
            group["lr"] = rate * factor
        rates = sorted({group["lr"] for group in optimizer.param_groups}, reverse=True)
        assert rates == pytest.approx(case.facts["lr_by_step_largest_first"][step])
        labels = case[f"in.step{step}.sem_seg"].long()
        sums = model(case[f"in.step{step}.image"].to(torch.uint8), labels)
        counts = loss.counts(labels, model.num_classes)
        limit = 1e-5 if step == 0 else 1e-4  # AdamW turns rounding near 0 into whole steps: 5e-5 from threads alone
        assert (sums.detach() / counts[0]).tolist() == pytest.approx(list(expected.values()), abs=limit)
        loss.mean(sums, counts).backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, math.inf)
        assert float(norm) == pytest.approx(case.facts["grad_norm_before_clip"][step], rel=1e-3)
        if step == 0:
            gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
        torch.nn.utils.clip_grad_norm_(trained, OPTIM.clip_grad)
        optimizer.step()
        optimizer.zero_grad()

    official = {name: each for name, each in case.tensors.items() if name.startswith("grad.") and "fast" not in name}
    compared = 0
    for name, expected_gradient in official.items():
        own = our_name(PREFIX + name[name.index("clip_model" if "clip_model" in name else "transformer") :])
        tiny = any(part in name for part in ("attention.attention.q", "attention.attention.k"))
        assert relative(gradients[own], expected_gradient) < (5e-3 if tiny else 1e-4), name
        compared += 1
    assert compared > 100

    close, total = 0, 0
    for name, expected_change in case.tensors.items():
        if name.startswith("delta.after3."):
            own = our_name(PREFIX + name.removeprefix("delta.after3."))
            difference = (dict(model.named_parameters())[own].detach() - start[own] - expected_change).abs()
            limit = 2e-4 if own.startswith("decoder.") else 2e-6
            assert difference.max() <= 2 * limit, name
            close += int((difference <= 0.02 * expected_change.abs().max()).sum())
            total += difference.numel()
    assert close >= 0.98 * total > 0


def test_probabilities_of_photos_are_the_official_ones(shared: Path) -> None:
    case, model = traced(shared)
    image = case["in.image"].permute(1, 2, 0).to(torch.uint8).numpy()
    size = tuple(case["pool1.out.prob"].shape[1:])
    found = probabilities(model, [(image, False)], size, None, None)
    assert relative(found, case["pool1.out.prob"]) < 2e-5
    for k in (1, 2, 4):
        with rejecting(model, k):
            found = probabilities(model, [(image, False)], size, None, None)
        assert relative(found, case[f"er.top{k}.prob"]) < 2e-5
        assert model.decoder.topk is None


def test_labels_are_the_largest_probabilities(shared: Path) -> None:
    case, model = traced(shared)
    image = case["in.image"].permute(1, 2, 0).to(torch.uint8).numpy()
    for inference in (WHOLE, InferenceConfig(window=None, topk=2), InferenceConfig(window=None, flip=True)):
        whole = segment(model, image, inference)
        assert whole.shape == (10, 75, 110) and float(whole.min()) >= 0 and float(whole.max()) <= 1
        assert torch.equal(predict_labels(model, image, inference), whole.argmax(0))
    mirrored = segment(model, np.ascontiguousarray(image[:, ::-1]), InferenceConfig(window=None, flip=True))
    assert torch.allclose(mirrored.flip(2), segment(model, image, InferenceConfig(window=None, flip=True)), atol=1e-5)


def test_what_does_not_apply_is_said(shared: Path) -> None:
    case, model = traced(shared)
    image = case["in.image"].permute(1, 2, 0).to(torch.uint8).numpy()
    with pytest.raises(ConfigError, match=r"inference\.topk=11 is impossible: there are 10 classes"):
        segment(model, image, InferenceConfig(window=None, topk=11))
    with pytest.raises(ConfigError, match=r"set inference\.window=null"):
        segment(model, image, InferenceConfig(window=64, stride=64))
    with pytest.raises(ConfigError, match="only open-vocabulary"):
        segment(torch.nn.Conv2d(3, 2, 1), image, InferenceConfig(window=None, topk=1))


def test_the_cosine_schedule_ends_at_its_least_rate() -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.5, schedule="cosine")
    assert [learning_rate(step, 4, optim) for step in (0, 2, 4, 9)] == pytest.approx([1.0, 0.75, 0.5, 0.5])
