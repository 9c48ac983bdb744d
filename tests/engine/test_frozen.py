"""Frozen encoders: the decoder alone learns, and the encoder's tokens are computed once and shared."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from child_runs import STEPS, Quiet, alone, die, lines, same, tiny, together, weights
from safetensors.torch import load_file, save_file

from analysis.consumed import Chosen, Images
from whitebox import load_model, record
from whitebox.api import load_run
from whitebox.config import RunConfig, StoreConfig
from whitebox.data import build_dataset
from whitebox.engine import checkpoint
from whitebox.engine.evaluate import evaluate
from whitebox.engine.header import WEIGHTS, read_header
from whitebox.engine.kept import tokens_kept
from whitebox.engine.rows import Stored, stores
from whitebox.engine.train import train
from whitebox.errors import CheckpointError, ConfigError, InUseError, ModelError
from whitebox.lock import LOCK, Lock
from whitebox.models import EncoderConfig
from whitebox.models.encoder import Encoder
from whitebox.runs import open_run

SEGVIT = {"decoder.encoder_layers": [0, 1], "decoder.layers": 1, "decoder.dropout": 0.0}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the weights of the encoder of ``tiny``."""
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    torch.manual_seed(7)
    made = Encoder(EncoderConfig(width=24, depth=2, heads=2, image_size=32)).vit
    save_file({name: tensor.contiguous() for name, tensor in made.state_dict().items()}, path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def frozen(encoder: Path, model: str = "depict-sa-tiny", **overrides: Any) -> RunConfig:
    chosen = {"encoder.frozen": True, "encoder.weights": str(encoder), "encoder.drop_path": 0.5, **overrides}
    return tiny(model, **chosen)


def started(encoder: Path, folder: Path, **overrides: Any) -> Quiet:
    quiet = Quiet()
    train(frozen(encoder, **overrides), folder, quiet)
    return quiet


def test_the_decoder_alone_learns_and_is_saved(encoder: Path, tmp_path: Path) -> None:
    started(encoder, tmp_path / "run")
    stored = load_file(tmp_path / "run" / WEIGHTS)
    assert stored
    assert all(name.startswith("decoder.") for name in stored)
    about = read_header(tmp_path / "run" / WEIGHTS)["encoder"]
    model = load_model(tmp_path / "run")
    assert (about["name"], about["origin"]) == (model.encoder.config.name, str(encoder))
    assert about["sha256"] == model.encoder.sha256
    ours, theirs = model.encoder.vit.state_dict(), load_file(encoder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if not name.startswith("head."))
    state = checkpoint.load_training_state(tmp_path / "run" / "checkpoints")
    assert all(name.startswith("decoder.") for name in state["model"])
    trained = {name for group in state["optimizer"]["state"]["param_groups"] for name in group["params"]}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(name.startswith("decoder.") for name in trained)


def test_drop_path_does_not_disturb_it(encoder: Path, tmp_path: Path) -> None:
    started(encoder, tmp_path / "a")
    started(encoder, tmp_path / "b", encoder__drop_path=0.0)
    assert same(tmp_path / "a", tmp_path / "b")


def test_whole_runs_need_no_file(encoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "gone.safetensors"
    shutil.copy(encoder, file)
    started(file, tmp_path / "run", train__whole=True)
    file.unlink()
    assert load_model(tmp_path / "run").encoder.fixed


def test_an_encoder_that_moved_is_found_or_named(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "elsewhere" / "e.safetensors"
    file.parent.mkdir()
    shutil.copy(encoder, file)
    started(file, tmp_path / "run")
    shutil.rmtree(file.parent)
    with pytest.raises(CheckpointError, match=r"its frozen encoder .* came from .*e.safetensors, which is not there"):
        load_model(tmp_path / "run")
    shutil.copy(encoder, tmp_path / "run" / file.name)
    beside = load_model(tmp_path / "run").state_dict()
    (tmp_path / "weights").mkdir()
    (tmp_path / "run" / file.name).rename(tmp_path / "weights" / file.name)
    monkeypatch.setenv(checkpoint.ENCODERS, str(tmp_path / "weights"))
    named = load_model(tmp_path / "run").state_dict()
    assert all(torch.equal(beside[name], named[name]) for name in beside)
    other = {name: tensor + 1 for name, tensor in load_file(encoder).items()}
    save_file(other, tmp_path / "weights" / file.name)
    with pytest.raises(CheckpointError, match=r"is not the one that the decoder in .* was trained on"):
        load_model(tmp_path / "run")


def test_resume_needs_the_same_encoder(encoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "e.safetensors"
    shutil.copy(encoder, file)
    started(file, tmp_path / "run")
    save_file({name: tensor + 1 for name, tensor in load_file(encoder).items()}, file)
    with pytest.raises(CheckpointError, match="is not the one that this run began with"):
        train(frozen(file), tmp_path / "run", Quiet(), resume=True)


def test_random_weights_are_frozen_only_when_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"would keep .* at random weights: .* --random-encoder"):
        train(tiny(encoder__frozen=True, encoder__pretrained=False), tmp_path / "run", Quiet())
    assert not (tmp_path / "run").exists()
    train(tiny(encoder__frozen=True, encoder__random=True), tmp_path / "run", Quiet())
    assert "encoder" not in read_header(tmp_path / "run" / WEIGHTS)  # nowhere else
    load_model(tmp_path / "run")


def test_the_last_blocks_may_be_trained(encoder: Path, tmp_path: Path) -> None:
    started(encoder, tmp_path / "run", encoder__train_last=1, optim__lr=0.1)
    ours, theirs = load_model(tmp_path / "run").encoder.vit.state_dict(), load_file(encoder)
    changed = {name for name in theirs if not (name.startswith("head.") or torch.equal(ours[name], theirs[name]))}
    assert changed
    assert all(name.startswith(("blocks.1.", "norm.")) for name in changed)
    with pytest.raises(ModelError, match="the encoder has 2 blocks"):
        started(encoder, tmp_path / "other", encoder__train_last=3)
    with pytest.raises(ConfigError, match=r"it needs encoder.frozen=true"):
        tiny(encoder__train_last=1)
    with pytest.raises(ConfigError, match=r"say store.use=false"):
        started(encoder, tmp_path / "other", encoder__train_last=1, data__views=2)


def views_kept() -> list[Stored]:
    """The stores of views, without those of images as they are."""
    return [stored for stored in stores() if stored.rows is not None]


class TestStore:
    @pytest.mark.parametrize(("model", "options"), [("depict-sa-tiny", {}), ("segvit-tiny", SEGVIT)])
    def test_the_losses_are_the_same_with_and_without(
        self, model: str, options: dict[str, Any], encoder: Path, cache: Path, tmp_path: Path
    ) -> None:
        """To the last bit; 12 images in 2 views are encoded once, 3 epochs read them."""
        options = {**options, "data__views": 2, "train__epochs": 3, "store__precision": "fp32", "data__crop": 40}
        if model == "segvit-tiny":
            options["decoder.head_dim"] = None
        with_store, again, without = (tmp_path / name for name in ("with", "again", "without"))
        chosen = {key: value for key, value in options.items() if value is not None}
        config = frozen_any(encoder, model, chosen)
        first, second = Quiet(), Quiet()
        train(config, with_store, first)
        train(config, again, second)
        assert (first.encoded, second.encoded) == (24, 0)
        train(frozen_any(encoder, model, {**chosen, "store__use": False}), without, Quiet())
        assert same(with_store, without)
        assert same(with_store, again)
        assert [stored.done for stored in views_kept()] == [24]

    def test_float16_is_close(self, encoder: Path, tmp_path: Path) -> None:
        started(encoder, tmp_path / "half", data__views=1)
        started(encoder, tmp_path / "full", data__views=1, store__use=False)
        ours, theirs = dict(lines(tmp_path / "half")), dict(lines(tmp_path / "full"))
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, rel=1e-3)
        assert ours != theirs

    def test_two_processes_make_it_together(self, encoder: Path, cache: Path, tmp_path: Path) -> None:
        options = {"data__views": 2, "store__precision": "fp32"}
        ended = together(2, _train, encoder, tmp_path / "two", options, cache, folder=tmp_path / "output")
        assert [code for code, _ in ended] == [0, 0], ended
        (stored,) = views_kept()
        assert stored.done == stored.rows == 24
        assert {path.name for path in stored.folder.glob("rows-*")} == {"rows-0.bin", "rows-1.bin"}
        quiet = started(encoder, tmp_path / "one", **options)
        assert quiet.encoded == 0
        ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name])

    def test_killed_while_encoding(self, encoder: Path, cache: Path, tmp_path: Path) -> None:
        """What was flushed is not made again, and the result is that of an unbroken training."""
        code, output = alone(_killed_at_row, encoder, tmp_path / "run", 17, cache, folder=tmp_path / "output")
        assert code == -9, output
        (stored,) = views_kept()
        assert stored.done == 16
        quiet = Quiet()
        train(frozen(encoder, data__views=2), tmp_path / "run", quiet, resume=True)
        assert quiet.encoded == 8
        started(encoder, tmp_path / "unbroken", data__views=2, store__gib=1.0)
        assert same(tmp_path / "run", tmp_path / "unbroken")

    def test_it_is_another_for_another_question(self, encoder: Path, tmp_path: Path) -> None:
        for number, changes in enumerate(
            ({}, {"data__view_seed": 1}, {"data__flip": 0.0}, {"data__crop": 48}, {"data__shapes_seed": 3})
        ):
            quiet = started(encoder, tmp_path / str(number), data__views=1, **changes)
            assert quiet.encoded == 12
        quiet = started(encoder, tmp_path / "same", data__views=1, train__epochs=1, optim__lr=0.1, train__batch_size=3)
        assert quiet.encoded == 0
        quiet = started(encoder, tmp_path / "seed", data__views=1, data__view_seed=0, train__seed=5)
        assert quiet.encoded == 0
        scored = {"data__unit": "image", "data__mean_over": "labelled", "data__val_length": 3}
        quiet = started(encoder, tmp_path / "scored", data__views=1, **scored)
        assert quiet.encoded == 0

    def test_images_as_they_are_are_encoded_once(
        self, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By evaluations of every decoder, with the same scores; what the encoder's taps tell is computed anew."""
        started(encoder, tmp_path / "run", store__use=False)
        started(encoder, tmp_path / "other", train__epochs=1)
        seen: list[int] = []
        forward = Encoder.forward
        monkeypatch.setattr(Encoder, "forward", lambda self, x: (seen.append(len(x)), forward(self, x))[1])
        model, config = load_run(tmp_path / "run")
        seen.clear()  # what the model saw to know which weights it uses
        images = build_dataset(config.data, "val", augment=False)
        plain = evaluate(model, images, config.inference, config.data)
        assert sum(seen) == 3
        seen.clear()
        with tokens_kept(model, StoreConfig()):
            kept = evaluate(model, images, config.inference, config.data)
            assert seen == []
            with record(model, "encoder.layers.0.tokens") as activations:
                evaluate(model, images, config.inference, config.data)
            assert sum(seen) == 3
        assert activations
        assert (kept.counts_N3K == plain.counts_N3K).all()
        assert model.kept is None

    def test_measurements_read_them(self, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        started(encoder, tmp_path / "run", train__epochs=1)
        run = open_run(tmp_path / "run", device="cpu")
        seen: list[int] = []
        forward = Encoder.forward
        monkeypatch.setattr(Encoder, "forward", lambda self, x: (seen.append(len(x)), forward(self, x))[1])
        kept = [run.model.masks(sample.pixels_B3HW) for sample in Images(run, Chosen()).each(run)]
        assert len(kept) == 3 and seen == []
        run.config.store.use = False
        plain = [run.model.masks(sample.pixels_B3HW) for sample in Images(run, Chosen()).each(run)]
        assert len(seen) == 3
        assert all(torch.equal(one, other) for one, other in zip(kept, plain, strict=True))

    def test_a_full_store_stops_nobody(
        self, encoder: Path, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        started(encoder, tmp_path / "run", store__gib=1e-9)
        assert not list(cache.glob("*/rows-*"))
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text("in the way")
        started(encoder, tmp_path / "other")
        assert "Tokens of images are computed anew each time." in caplog.text
        assert lines(tmp_path / "run", "miou") == lines(tmp_path / "other", "miou")

    def test_what_does_not_fit_is_refused_before_it_is_made(self, encoder: Path, cache: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"3 views of 12 images, .* more than store.gib=1e-05: data.views=2 or"):
            started(encoder, tmp_path / "run", data__views=3, store__gib=1e-5, data__crop=16, data__resize=16)
        assert not list(cache.glob("*/rows*"))

    def test_somebody_else_is_making_it(self, encoder: Path, cache: Path, tmp_path: Path) -> None:
        started(encoder, tmp_path / "run", data__views=1)
        (stored,) = views_kept()
        (stored.folder / "index-0.bin").write_bytes(b"")
        with (
            Lock(stored.folder / LOCK, "it", "wait"),
            pytest.raises(InUseError, match=r"The store of tokens .* is being written by process"),
        ):
            started(encoder, tmp_path / "other", data__views=1)


def frozen_any(encoder: Path, model: str, options: dict[str, Any]) -> RunConfig:
    from child_runs import TINY

    from whitebox.config import resolve

    chosen = {key.replace("__", "."): value for key, value in options.items()}
    base = {key: value for key, value in TINY.items() if key != "decoder.head_dim" or model.startswith("depict")}
    return resolve(model, "shapes", {**base, "encoder.frozen": True, "encoder.weights": str(encoder), **chosen})


def _train(encoder: Path, folder: Path, options: dict[str, Any], cache: Path) -> None:
    os.environ["WHITEBOX_CACHE"] = str(cache.parent)
    train(frozen(encoder, **options), folder, Quiet())


def _killed_at_row(encoder: Path, folder: Path, row: int, cache: Path) -> None:
    os.environ["WHITEBOX_CACHE"] = str(cache.parent)
    from whitebox.engine import rows

    rows.FLUSHED = 8
    quiet = Quiet(at_row=lambda done: die() if done == row else None)
    train(frozen(encoder, data__views=2), folder, quiet)


def test_steps_are_as_many_as_without(encoder: Path, tmp_path: Path) -> None:
    quiet = started(encoder, tmp_path / "run", data__views=5)
    assert quiet.begun is not None
    assert quiet.begun[0] == STEPS
