"""DEPICT-SA and CBSA with classes made of names, and training steps with some of the names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exporting import OfScales, check_export
from torch import Tensor

from whitebox.config import resolve
from whitebox.engine.contrast import ContrastConfig, kept_at
from whitebox.engine.optimisation import build_loss
from whitebox.errors import ConfigError, ModelError
from whitebox.models import EncoderConfig, OpenSegmentor, build, record
from whitebox.models.clip import CLIPConfig
from whitebox.models.decoders.depict_sa import DepictSAConfig
from whitebox.models.decoders.open_queries import OpenCBSAConfig, OpenDepictSAConfig
from whitebox.models.open_vocabulary import few_classes

NAMES = ("ground", "red striped star", "blue plain circle", "pink dotted cross", "cyan checked square")
MODELS = ("depict-sa-open-tiny", "cbsa-open-tiny")
SMALL = {"decoder.layers": 2, "decoder.heads": 2, "decoder.head_dim": 8, "decoder.width": 16, "encoder.text_layers": 1}


def small(name: str) -> OpenSegmentor:
    torch.manual_seed(0)
    config = resolve(name, "open-shapes", SMALL if name in MODELS else {})
    model = build(config.encoder, config.decoder, len(NAMES), NAMES)
    assert isinstance(model, OpenSegmentor)
    model.loss = build_loss(config.loss, len(NAMES))
    return model.eval()


def images(size: int = 64) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_mask_belongs_to_its_name(name: str) -> None:
    model = small(name)
    masks = model.predict(images()).masks_BKhw
    assert masks.shape == (2, 5, 8, 8)
    order = [3, 0, 4, 1, 2]
    model.set_vocabulary([NAMES[index] for index in order])
    torch.testing.assert_close(model.predict(images()).masks_BKhw, masks[:, order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_another_number_of_names_and_any_size(name: str) -> None:
    model = small(name)
    model.set_vocabulary(NAMES[:2])
    probabilities = model(images(70))
    assert probabilities.shape == (2, 2, 70, 70)
    assert 0 <= probabilities.min() <= probabilities.max() <= 1


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_export_with_a_free_batch(name: str) -> None:
    """torch.export and ONNX give what the decoder gives for these names, also for a batch they were not made with."""
    model = small(name)
    maps = model.encode(images()).tokens
    check_export(OfScales(model.decoder, maps), torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0, 3.0]))


@pytest.mark.parametrize("name", MODELS)
def test_masks_are_the_cosine_of_what_the_taps_show(name: str) -> None:
    model = small(name)
    model.prepare()
    with record(model, "decoder.*") as found:
        masks = model.predict(images()).masks_BKhw
    patches, classes = found["decoder.patches"], found["decoder.classes"]
    expected = model.decoder.scale * patches @ classes.transpose(1, 2) + model.decoder.bias
    torch.testing.assert_close(masks.flatten(2).transpose(1, 2), expected)


@pytest.mark.parametrize("name", MODELS)
def test_everything_but_the_text_tower_learns(name: str) -> None:
    model = small(name).train()
    labels = torch.randint(0, 5, (2, 64, 64), generator=torch.Generator().manual_seed(2))
    model.loss.mean(model(images(), labels), model.loss.counts(labels, 5)).backward()
    without = {key for key, value in model.named_parameters() if value.grad is None}
    assert {key.split(".")[1] for key in without} == {"text", "logit_scale"}


def test_names_need_a_text_tower() -> None:
    for config in (OpenDepictSAConfig(), OpenCBSAConfig()):
        with pytest.raises(ModelError, match="makes classes of names: it needs an encoder with a text tower"):
            build(EncoderConfig(image_size=32, width=48, depth=1, heads=3, patch_size=16), config, 3)


def test_settings_beyond_those_of_the_closed_decoder() -> None:
    assert {*vars(OpenDepictSAConfig())} - {*vars(DepictSAConfig())} == {"width"}
    with pytest.raises(ConfigError, match=r"decoder\.width=0 is impossible"):
        OpenDepictSAConfig(width=0)


# --- some of the names -----------------------------------------------------------------------------------------------


def test_few_classes_hold_those_of_the_images() -> None:
    labels = torch.tensor([[[7, 7, 255], [2, 9, 7]]], dtype=torch.uint8)
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        chosen, few = few_classes(labels, 10, 5)
        assert sorted(chosen.tolist()) == sorted(set(chosen.tolist()))
        assert chosen[:3].tolist() == [2, 7, 9]
        assert len(chosen) == 5
        back = torch.where(few == 255, 255, chosen[few.clamp(max=4)])
        torch.testing.assert_close(back, labels.long())
        seen |= set(chosen[3:].tolist())
    assert seen == set(range(10)) - {2, 7, 9}
    assert few_classes(labels, 10, 1)[0].tolist() == [2, 7, 9]


def test_the_loss_of_few_names_is_that_of_all_on_average() -> None:
    """Of a decoder whose masks do not see each other's classes the mean over choices is the loss of all names."""
    model = small("sed-tiny").train()
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[:, :, 32:] = 1
    counts = model.loss.counts(labels, 5)

    def loss(names: int | None, seed: int) -> Tensor:
        model.loss.names = names  # type: ignore[attr-defined]
        torch.manual_seed(seed)
        return model.loss.mean(model(images(), labels), counts)

    with torch.no_grad():
        whole = loss(None, 0)
        some = torch.stack([loss(3, seed) for seed in range(4)])
    assert model.num_classes == 5
    assert len(model.prepare()) == 5
    torch.testing.assert_close(some.mean(), whole, rtol=0.15, atol=0)
    assert some.std() > 0
    assert loss(3, 1) == loss(3, 1)
    assert loss(5, 1) == loss(None, 2)


def test_random_embeddings_know_nothing_of_words() -> None:
    config = resolve("sed-tiny", "open-shapes", {"encoder.embeddings": "random"})
    model = build(config.encoder, config.decoder, len(NAMES), NAMES)
    assert isinstance(model, OpenSegmentor)
    features = model.prepare()
    assert features.shape == (5, 4, 64)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(5, 4))
    torch.testing.assert_close(features, features[:, :1].expand_as(features))
    cosines = features[:, 0] @ features[:, 0].T - torch.eye(5)
    assert cosines.abs().max() < 0.6
    model.set_vocabulary(NAMES[2:3])
    torch.testing.assert_close(model.prepare()[0], features[2])


def test_a_trained_text_tower_learns_and_its_embeddings_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path))
    config = resolve("sed-tiny", "open-shapes", {"encoder.train_text": True})
    torch.manual_seed(0)
    model = build(config.encoder, config.decoder, len(NAMES), NAMES)
    assert isinstance(model, OpenSegmentor)
    model.loss = build_loss(replace(config.loss, names=3), len(NAMES))
    before = model.prepare().clone()
    labels = torch.randint(0, 5, (2, 64, 64))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.loss.mean(model(images(), labels), model.loss.counts(labels, 5)).backward()
    missing = [name for name, each in model.encoder.text.named_parameters() if each.grad is None]
    assert not missing and model.encoder.text.projection.grad is not None
    assert model.encoder.text.projection.grad.abs().max() > 0
    optimizer.step()
    model.eval()
    assert not torch.equal(model.prepare(), before)
    assert not list(tmp_path.rglob("*.safetensors"))  # of a tower that changes, each evaluation would leave one
    same = [resolve("sed-tiny", "open-shapes", {"encoder.train_text": trained}).encoder for trained in (False, True)]
    first, second = (kept_at(each, ContrastConfig()) for each in same if isinstance(each, CLIPConfig))
    assert first == second  # of the contrastive stage
    with pytest.raises(ConfigError, match=r"encoder\.train_text=True .*random embeddings read no text"):
        resolve("sed-tiny", "open-shapes", {"encoder.train_text": True, "encoder.embeddings": "random"})
