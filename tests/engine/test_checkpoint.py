"""Weights with their header, and training states: whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import whitebox
from whitebox import files
from whitebox.config import resolve
from whitebox.engine import checkpoint
from whitebox.engine.checkpoint import load_training_state, save_model, save_training_state, state_step, training_states
from whitebox.errors import CheckpointError, ConfigError, ModelError, OutputError
from whitebox.models import Segmentor, build

SMALL = {"encoder.width": 48, "encoder.depth": 1, "encoder.heads": 3, "encoder.image_size": 32}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Segmentor]:
    config = resolve("depict-ca-tiny", "shapes", SMALL)
    model = build(config.encoder, config.decoder, 2, ("cat", "dog"), ((1, 2, 3), (4, 5, 6))).eval()
    save_model(tmp_path / "model.safetensors", model, config)
    return tmp_path / "model.safetensors", model


class TestWeights:
    def test_round_trip(self, saved: tuple[Path, Segmentor]) -> None:
        path, model = saved
        image = torch.rand(1, 3, 40, 50)
        for given in (path, path.parent, str(path)):
            loaded = whitebox.load_model(given)
            assert torch.equal(loaded(image), model(image))
            assert (loaded.classes, loaded.palette) == (("cat", "dog"), ((1, 2, 3), (4, 5, 6)))
        assert "whitebox weights; all" in str(loaded.load_report)

    def test_header_says_what_it_is(self, saved: tuple[Path, Segmentor]) -> None:
        header = checkpoint.read_header(saved[0])
        assert header["config"]["model"] == "depict-ca-tiny"
        assert header["versions"]["torch"] == torch.__version__.split("+")[0] or header["versions"]["torch"]

    def test_no_temporary_file_is_left(self, saved: tuple[Path, Segmentor]) -> None:
        assert os.listdir(saved[0].parent) == ["model.safetensors"]

    def test_cut_short(self, saved: tuple[Path, Segmentor]) -> None:
        path = saved[0]
        for kept in (0, 5, 300, path.stat().st_size - 100):
            path.write_bytes(path.read_bytes()[:kept])
            with pytest.raises(CheckpointError, match=r"model.safetensors is cut short"):
                whitebox.load_model(path)

    def test_without_header(self, saved: tuple[Path, Segmentor]) -> None:
        save_file(load_file(saved[0]), saved[0])
        with pytest.raises(CheckpointError, match=r"no whitebox header.*encoder.weights=FILE"):
            whitebox.load_model(saved[0])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"classes": ["cat"]}, "does not fit this model"),
            ({"classes": "cd"}, "does not name and colour its classes"),
            ({"classes": None}, "does not name and colour its classes"),
            ({"palette": [[1, 2, 3], [4, 5, 999]]}, "does not name and colour its classes"),
            ({"palette": [1, 2]}, "does not name and colour its classes"),
            ({"config": {}}, "lacks 'model'"),
            ({"config": {"model": "m", "encoder": {"name": "vit_tiny_patch16_384"}}}, "lacks 'decoder'"),
        ],
    )
    def test_header_that_does_not_fit(self, saved: tuple[Path, Segmentor], change: dict, message: str) -> None:
        path = saved[0]
        header = checkpoint.read_header(path) | change
        if change.get("classes") == ["cat"]:
            header["palette"] = header["palette"][:1]
        save_file(load_file(path), path, metadata={"whitebox": json.dumps(header)})
        with pytest.raises(CheckpointError, match=message):
            whitebox.load_model(path)

    def test_unknown_key_of_a_newer_version(self, saved: tuple[Path, Segmentor]) -> None:
        path = saved[0]
        header = checkpoint.read_header(path)
        header["config"]["decoder"]["gates"] = 3
        save_file(load_file(path), path, metadata={"whitebox": json.dumps(header)})
        with pytest.raises(CheckpointError, match=r"Unknown key 'decoder.gates' in the saved configuration"):
            whitebox.load_model(path)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("decoder.layers", 100_000_000, r"decoder.layers=100000000 is impossible: it can be 1000 at most"),
            ("decoder.layers", 900, r"3588 missing \(first: decoder.layers.3.basis\)"),
            ("encoder.width", 6000, r"describes has far more parameters than the \d+ numbers in it"),
            ("decoder.layers", "${train.epochs}", r"of type 'str' could not be converted to Integer"),
            ("decoder.layers", [1], r"decoder.layers=\[1\] in the saved configuration"),
            ("decoder.name", ["a"], r"decoder.name=\['a'\] is impossible: it is a name"),
            ("encoder.name", {"a": 1}, r"encoder.name={'a': 1} is impossible: it is a name"),
            ("data.name", "${oc.env:SECRET}", r"data.name='\$\{oc.env:SECRET\}' is impossible: it names files"),
            ("data.name", "../../x", r"data.name='../../x' is impossible: it names files"),
            ("data.train_split", "../x", r"data.train_split='../x' is impossible: it names a folder"),
            ("data.val_split", "/x", r"data.val_split='/x' is impossible: it names a folder"),
            ("data.resize", 10**9, r"data.resize=1000000000 is impossible: it can be 16384 px at most"),
            ("inference.window", 10**9, r"inference.window=1000000000 is impossible: it can be 16384 px"),
            ("inference.scales", [1e9], r"inference.scales=\[1000000000.0\] is impossible: it takes numbers above 0"),
            ("data.scale_range", 1, r"data.scale_range=1 in the saved configuration"),
            ("optim.lr", "fast", r"optim.lr='fast' in the saved configuration"),
        ],
    )
    def test_a_header_of_somebody_else(
        self, saved: tuple[Path, Segmentor], key: str, value: object, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET", "secret")
        path, _ = saved
        header = checkpoint.read_header(path)
        section, name = key.split(".")
        header["config"][section][name] = value
        save_file(load_file(path), path, metadata={"whitebox": json.dumps(header)})
        with pytest.raises((CheckpointError, ModelError, ConfigError), match=message) as raised:
            whitebox.load_model(path)
        assert "\n" not in str(raised.value)
        assert "secret" not in str(raised.value)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), "int8"])
    def test_numbers_that_are_none(self, saved: tuple[Path, Segmentor], bad: object) -> None:
        path, header = saved[0], checkpoint.read_header(saved[0])
        tensors = load_file(path)
        name = "decoder.layers.0.basis"
        tensors[name] = tensors[name].to(torch.int8) if bad == "int8" else torch.full_like(tensors[name], bad)
        save_file(tensors, path, metadata={"whitebox": json.dumps(header)})
        with pytest.raises(CheckpointError, match=rf"model.safetensors: {name} holds (int8 where|NaN or infinite)"):
            whitebox.load_model(path)

    def test_nothing_is_resolved(self, saved: tuple[Path, Segmentor], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET", "secret")
        path, _ = saved
        header = checkpoint.read_header(path)
        header["config"]["data"]["path"] = "${oc.env:SECRET}" + "${data.root}" * 1000
        save_file(load_file(path), path, metadata={"whitebox": json.dumps(header)})
        _, config = checkpoint.load_weights(path)
        assert config.data.path == header["config"]["data"]["path"]

    @pytest.mark.parametrize("text", ["[" * 5000 + "]" * 5000, '{"config": {"a": ' + '{"a": ' * 500 + "1" + "}" * 502])
    def test_a_deep_header(self, saved: tuple[Path, Segmentor], text: str) -> None:
        save_file({"a": torch.ones(1)}, saved[0], metadata={"whitebox": text})
        with pytest.raises(CheckpointError, match=r"The header of .* cannot be read: it is nested deeper than 64 lev"):
            checkpoint.read_header(saved[0])

    def test_read_only_folder(self, saved: tuple[Path, Segmentor], monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
        with pytest.raises(OutputError, match=r"Cannot write .*other.safetensors: Permission denied; free some space"):
            save_model(saved[0].with_name("other.safetensors"), saved[1], resolve("depict-ca-tiny", None, SMALL))

    def test_a_full_disk_keeps_the_old_file(
        self, saved: tuple[Path, Segmentor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = saved[0].read_bytes()

        def fill(tensors: object, target: Path, metadata: object) -> None:
            Path(target).write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint, "save_file", fill)
        with pytest.raises(OutputError, match="No space left on device"):
            save_model(saved[0], saved[1], resolve("depict-ca-tiny", None, SMALL))
        assert saved[0].read_bytes() == before
        assert os.listdir(saved[0].parent) == ["model.safetensors"]


class TestTrainingStates:
    def test_two_newest_are_kept(self, tmp_path: Path) -> None:
        for step in (5, 10, 20, 100_000_000):
            save_training_state(tmp_path, step, {"step": step})
        assert [state_step(path) for path in training_states(tmp_path)] == [20, 100_000_000]
        assert load_training_state(tmp_path)["step"] == 100_000_000
        assert len(os.listdir(tmp_path)) == 2

    def test_the_name_holds_the_checksum(self, tmp_path: Path) -> None:
        path = save_training_state(tmp_path, 7, {"x": torch.ones(3)})
        assert path.name == f"step-00000007-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.pt"

    def test_later_states_are_leftovers(self, tmp_path: Path) -> None:
        """Those of a run that went on from an older state, because they were damaged."""
        for step in (3, 4, 5):
            save_training_state(tmp_path, step, {"step": step})
        save_training_state(tmp_path, 5, {"step": 5, "again": True})
        assert [state_step(path) for path in training_states(tmp_path)] == [4, 5]
        assert load_training_state(tmp_path)["again"]
        save_training_state(tmp_path, 5, {"step": 5})
        training_states(tmp_path)[-1].write_bytes(b"damaged")
        save_training_state(tmp_path, 4, {"step": 4})
        assert [state_step(path) for path in training_states(tmp_path)] == [4]

    def test_a_damaged_newest_falls_back(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        save_training_state(tmp_path, 1, {"step": 1, "x": torch.ones(1000)})
        newest = save_training_state(tmp_path, 2, {"step": 2, "x": torch.ones(1000)})
        newest.write_bytes(newest.read_bytes()[:1000])
        assert load_training_state(tmp_path)["step"] == 1
        (record,) = caplog.records
        assert re.fullmatch(r"step-00000002-\w+.pt is damaged .*; going on from step-00000001-\w+.pt\.", record.message)

    def test_a_full_disk_keeps_the_older(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_training_state(tmp_path, 1, {"step": 1})

        class Full(io.BytesIO):
            def write(self, data: object) -> int:
                raise OSError(28, "No space left on device")

        original = checkpoint._Hashed.__init__
        monkeypatch.setattr(checkpoint._Hashed, "__init__", lambda self, file: original(self, Full()))
        with pytest.raises(OutputError, match=r"Cannot write .*step-00000002.pt: No space left on device; free some"):
            save_training_state(tmp_path, 2, {"step": 2, "x": torch.ones(1000)})
        assert [path.name[:13] for path in tmp_path.iterdir()] == ["step-00000001"]
        assert load_training_state(tmp_path)["step"] == 1

    def test_leftovers_of_a_killed_process(self, tmp_path: Path) -> None:
        for name in (".step-00000001.pt.abc", ".model.safetensors.xyz", "step-00000001.pt.abc"):
            (tmp_path / name).touch()
        files.remove_leftovers(tmp_path, "step-*")
        assert sorted(os.listdir(tmp_path)) == [".model.safetensors.xyz", "step-00000001.pt.abc"]

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="holds no training state that can be resumed"):
            load_training_state(tmp_path)
        (tmp_path / "step-00000001-0123456789abcdef.pt").write_bytes(b"x")
        with pytest.raises(
            CheckpointError, match=r"resumed \(step-00000001-0123456789abcdef.pt: damaged, the checksum"
        ):
            load_training_state(tmp_path)
