"""What a pass does not use is found, and the pass leaves nothing behind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from whitebox.config import resolve
from whitebox.models import build
from whitebox.models.unused import freeze_unused, unused_parameters

SMALL = {"encoder.width": 24, "encoder.heads": 2, "encoder.depth": 2, "data.crop": 32}


class Odd(nn.Module):
    """Parts that are used, that are not, and that are used in training alone; with dropout and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle, self.auxiliary = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.norm, self.dropout = nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.used.bias.requires_grad_(False)

    def forward(self, x_BD: Tensor) -> list[Tensor]:
        y_BD = self.dropout(self.norm(self.used(x_BD)))
        return [y_BD, self.auxiliary(y_BD)] if self.training else [y_BD]


def test_found_by_looking() -> None:
    module, x_BD = Odd(), torch.ones(4, 3)
    assert unused_parameters(module, lambda: module(x_BD)) == ["idle.weight", "idle.bias"]
    module.eval()
    expected = ["idle.weight", "idle.bias", "auxiliary.weight", "auxiliary.bias"]
    assert unused_parameters(module, lambda: module(x_BD)) == expected


def test_modules_of_one_make_are_looked_at_once() -> None:
    passes, x_BD = [], torch.ones(4, 3)
    for key in ("a", "a", "b", None, None):
        module = Odd()
        found = unused_parameters(module, lambda made=module: passes.append(made) or made(x_BD), key)
        assert found == ["idle.weight", "idle.bias"]
    assert len(passes) == 4


def test_models_that_are_built_alike_are_frozen_alike() -> None:
    """The second one, too, although nothing is looked at for it; and another configuration is another make."""
    trained = []
    for layers in ([0, 1], [0, 1], [0]):
        config = resolve("segvit-tiny", overrides={**SMALL, "decoder.encoder_layers": layers})
        model = build(config.encoder, config.decoder, 3)
        trained.append([name for name, each in model.named_parameters() if each.requires_grad])
    assert trained[0] == trained[1] != trained[2]
    assert not any(name.startswith("encoder.vit.blocks.1") for name in trained[2])


def test_nothing_is_left_behind() -> None:
    module, x_BD = Odd(), torch.randn(4, 3)
    before, dice = {name: value.clone() for name, value in module.state_dict().items()}, torch.get_rng_state()
    with torch.no_grad():
        freeze_unused(module, lambda: module(x_BD))
    assert torch.equal(torch.get_rng_state(), dice)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(value.grad is None for value in module.parameters())
    frozen = [name for name, value in module.named_parameters() if not value.requires_grad]
    assert frozen == ["used.bias", "idle.weight", "idle.bias"]
