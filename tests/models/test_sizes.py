"""Models of impossible sizes are refused before their memory is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from whitebox.errors import ConfigError, ModelError
from whitebox.models import DECODERS, EncoderConfig, build, sizes

TINY = {"width": 24, "depth": 1, "heads": 2, "image_size": 32}


def built(encoder: dict[str, Any] | None = None, decoder: str = "depict-sa", classes: int = 3, **options: Any) -> None:
    build(EncoderConfig(**{**TINY, **(encoder or {})}), DECODERS[decoder].Config(**options), classes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 100_000_000}, r"decoder.layers=100000000 is impossible: it can be 1000 at most"),
        ({"heads": 1001}, r"decoder.heads=1001 is impossible: it can be 1000 at most"),
        ({"head_dim": 10**9}, r"decoder.head_dim=1000000000 is impossible: it can be 65536 at most"),
        ({"encoder": {"depth": 10**6}}, r"encoder.depth=1000000 is impossible: it can be 1000 at most"),
        ({"encoder": {"width": 10**6}}, r"encoder.width=1000000 is impossible: it can be 65536 at most"),
        ({"encoder": {"image_size": 10**6}}, r"encoder.image_size=1000000 is impossible: that is a grid of 125000 x"),
        ({"head_dim": 65536, "heads": 2}, r"decoder.head_dim=65536 is impossible: with heads=2 it is 131072 in all"),
        ({"decoder": "segvit", "encoder_layers": [10**9]}, r"decoder.encoder_layers=1000000000 is impossible"),
        ({"decoder": "segvit", "encoder_layers": [0] * 2000}, r"encoder_layers='...' is impossible: it takes at most"),
    ],
)
def test_sizes_no_model_has(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(**options)


def test_as_many_classes() -> None:
    with pytest.raises(ModelError, match="num_classes=1000000 is impossible: it can be 65536 at most"):
        built(classes=10**6)


@pytest.mark.parametrize("options", [{"head_dim": 65536, "heads": 1, "layers": 100}, {"encoder": {"width": 4096}}])
def test_more_than_the_memory(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "free_bytes", lambda: 50_000_000)
    with pytest.raises(ModelError, match=r"(needs more than .* for its parameters|does not fit into memory).*50.0 MB"):
        built(**options)


def test_nothing_stays_watched() -> None:
    with pytest.raises(ModelError, match="far more parameters than the 10 numbers in it"), sizes.bounded(10):
        torch.nn.Linear(5000, 5000)
    torch.nn.Linear(5000, 5000)


def test_errors_of_another_kind_pass() -> None:
    with pytest.raises(RuntimeError, match="something else"), sizes.bounded():
        raise RuntimeError("something else")
