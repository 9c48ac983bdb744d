"""Parameters, FLOPs by scope against closed forms and published numbers, timing, memory, and the command `profile`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from asking import nothing, shown
from child_runs import TINY

from analysis.maths.conventions import Cost
from analysis.measures import costs
from analysis.measures.costs import LiveMemory, TimedModel, blocks, count
from analysis.measures.profile import Setting, Subject, profile
from analysis.record import Record, RecordError
from analysis.show import profile as pictures
from experiments.published import CLASSES, COSTS, SIZES, published_costs
from whitebox.config import resolve, to_dict
from whitebox.engine.checkpoint import save_model
from whitebox.errors import ConfigError
from whitebox.models import Segmentor, build

Call = Callable[..., tuple[int, str, str]]


def model(name: str, classes: int, size: int, **overrides: object) -> Segmentor:
    """A model without content: counting needs none."""
    config = resolve(name, overrides={"encoder.image_size": size, **overrides})
    with torch.device("meta"):
        return build(config.encoder, config.decoder, classes)


def subject(name: str = "depict-sa-tiny") -> Subject:
    unknown = ("decoder.head_dim",) if "linear" in name else ()
    config = resolve(name, "shapes", {key: value for key, value in TINY.items() if key not in unknown})
    built = build(config.encoder, config.decoder, 7)
    return Subject(
        name=name,
        saved=to_dict(config),
        classes=7,
        device="cpu",
        weights=None,
        folder=Path("nowhere"),
        open=lambda: (built, config),
    )


def measure(subjects: list[Subject], setting: Setting, advance: Any = nothing) -> list[Record]:
    with TemporaryDirectory() as folder:
        return profile(subjects, setting, advance, folder=Path(folder))


class TestCount:
    @pytest.mark.parametrize("name", [name for name, each in COSTS.items() if each.quantity == "decoder GFLOPs"])
    def test_published_decoder_gflops(self, name: str) -> None:
        size = SIZES[name.split("-")[-1]]
        found = count(model(name, CLASSES, size, **{"encoder.depth": 1}), size)["decoder blocks"].gflops
        tolerance = 0.02 if name.startswith("cbsa") else 0.01  # CBSA's numbers are rounded to a tenth
        assert found == pytest.approx(COSTS[name].value, rel=tolerance)

    @pytest.mark.parametrize("name", ["segvit-base", "segvit-large", "segvit-large-shrunk"])
    def test_published_macs_of_segvit(self, name: str) -> None:
        size = SIZES[name.split("-")[-1]]
        counted = count(model(name, CLASSES, size), size)
        assert 1e-9 * counted["model"].macs == pytest.approx(COSTS[name].value, rel=0.005)
        products = CLASSES**2 * size**2  # of masks and classes at every pixel
        assert counted["model"].macs == counted["encoder"].macs + counted["decoder"].macs + products

    def test_scopes_are_what_the_formulas_say(self) -> None:
        N, K, D, depth, pixels = 20 * 20, 7, 192, 3, 16 * 16 * 3
        config = resolve("depict-sa-tiny", overrides={"encoder.depth": depth})
        counted = count(build(config.encoder, config.decoder, K), 320)
        encoder = depth * (12 * (N + 1) * D**2 + 2 * (N + 1) ** 2 * D) + N * pixels * D
        layers = 3 * (2 * (N + K) * D * 300 + 2 * (N + K) ** 2 * 300)
        assert counted["encoder"].macs == encoder
        assert counted["decoder blocks"].macs == layers
        assert counted["decoder"].macs == layers + N * K * D  # and the masks
        assert counted["model"].macs == encoder + layers + N * K * D
        assert counted["decoder blocks"].gflops == pytest.approx(2e-9 * layers)

    def test_cross_attention_layers_are_blocks(self) -> None:
        N, K, D = 16, 5, 192
        counted = count(model("depict-ca-tiny", K, 64, **{"encoder.depth": 1}), 64)
        selfs = 3 * (2 * N * D * 300 + 2 * N**2 * 300)
        crosses = 3 * ((N + 2 * K) * D * 150 + 2 * N * K * 150)
        assert counted["decoder blocks"].macs == selfs + crosses

    def test_a_linear_decoder_has_no_blocks(self) -> None:
        linear = model("segmenter-linear-tiny", 5, 64, **{"encoder.depth": 1})
        counted = count(linear, 64)
        assert blocks(linear.decoder) == {}
        assert counted["decoder blocks"] == Cost(0, 0)
        assert counted["decoder"] == Cost(5 * 192 + 5, 16 * 192 * 5)

    def test_token_statistics_are_not_matrix_products(self) -> None:
        N, D = 16 + 5, 192
        counted = count(model("tost-tiny", 5, 64, **{"encoder.depth": 1}), 64)
        assert counted["decoder blocks"].macs == 3 * 2 * N * D * 300  # projection and output map alone

    def test_parameters(self) -> None:
        built = model("segmenter-mask-tiny", 150, 512)
        counted = count(built, 512)
        assert counted["model"].parameters == sum(parameter.numel() for parameter in built.parameters())
        assert counted["encoder"].parameters + counted["decoder"].parameters == counted["model"].parameters
        assert (
            round(1e-6 * counted["decoder"].parameters, 2) == 1.03
        )  # reference/papers.md; Segmenter's README says 7 M
        assert counted["decoder blocks"].parameters == 2 * (12 * 192**2 + 13 * 192)

    def test_images_are_padded_to_whole_patches(self) -> None:
        built = model("depict-sa-tiny", 5, 64, **{"encoder.depth": 1})
        assert count(built, 49) == count(built, 64)

    def test_the_model_is_left_as_it_was(self) -> None:
        built = subject().open()[0].train()
        before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
        count(built, 32)
        after = built.state_dict()
        assert built.training and all(torch.equal(after[name], tensor) for name, tensor in before.items())


class TestPublished:
    def test_only_for_the_papers_setting(self) -> None:
        config = resolve("depict-sa-tiny")
        assert published_costs(config, 512, 150)["decoder blocks GFLOPs"]["value"] == 5.8
        assert published_costs(config, 640, 150) == published_costs(config, 512, 19) == {}
        assert published_costs(resolve("depict-sa-large"), 640, 150) and not published_costs(
            resolve("depict-sa-large"), 512, 150
        )
        assert published_costs(resolve("depict-ca-tiny"), 512, 150) == {}

    def test_not_for_an_altered_model(self) -> None:
        assert published_costs(resolve("depict-sa-tiny", overrides=["decoder.layers=2"]), 512, 150) == {}
        assert published_costs(resolve("depict-sa-tiny", overrides=["encoder.width=24"]), 512, 150) == {}
        assert published_costs(resolve("depict-sa-tiny", overrides=["encoder.image_size=384"]), 512, 150)


class TestLiveMemory:
    def test_peak_of_what_is_alive_at_once(self) -> None:
        x = torch.zeros(1000)
        with LiveMemory(iter([x])) as memory:
            y = x + 1  # 4000 bytes
            z = y[:10].double()  # a view, and 80 bytes
            del y
            assert memory.alive == 80
            w = torch.cat([x, x])  # 8000 bytes
        assert memory.peak == 8080 and memory.alive == 8080
        del w, z
        assert memory.alive == 0

    def test_what_was_there_does_not_count(self) -> None:
        layer = torch.nn.Linear(10, 5)
        x = torch.zeros(3, 10)
        with torch.no_grad(), LiveMemory(iter([*layer.parameters(), x])) as memory:
            layer(x)
        assert memory.peak == 3 * 5 * 4


class TestWatched:
    def test_both_halves_in_order_and_nothing_remains(self) -> None:
        built, seen = subject().open()[0], []
        with costs.watched(built, lambda scope: seen.append(("before", scope)), lambda scope: seen.append(scope)):
            built(torch.zeros(1, 3, 32, 32))
        built(torch.zeros(1, 3, 32, 32))
        assert seen == [("before", "encoder"), "encoder", ("before", "decoder"), "decoder"]
        assert "encode" not in vars(built) and "predict" not in vars(built.decoder)


class TestMeasure:
    def test_record(self) -> None:
        subjects = [subject(), subject("segmenter-linear-tiny")]
        seen: list[tuple[int, int]] = []
        first, second = measure(subjects, Setting(size=32, batch=2, repeats=3), lambda *done: seen.append(done))
        assert seen == [(done, 10) for done in range(1, 11)]  # two models, two passes each to warm up
        for record in (first, second):
            assert record.n == 3 and record.weights is None and record.reported == {}
            seconds, speeds = record.measured["seconds"], record.measured["images_per_second"]
            assert all(len(seconds[scope]) == 3 for scope in ("encoder", "decoder", "model"))
            for turn in range(3):
                assert 0 < seconds["encoder"][turn] + seconds["decoder"][turn] < seconds["model"][turn]
            assert speeds["model"]["value"] == pytest.approx(2 / sorted(seconds["model"])[1])
            assert speeds["model"]["low"] <= speeds["model"]["value"] <= speeds["model"]["high"]
        assert first.identity != second.identity
        assert first.settings["classes"] == 7 and first.settings["decoder"]["head_dim"] == 8

    def test_memory(self) -> None:
        one, four = (measure([subject()], Setting(size=32, batch=batch, repeats=1))[0] for batch in (1, 4))
        parameters = one.measured["scopes"]["model"]["parameters"]
        assert one.measured["memory"]["weights"] == 4 * parameters + 2 * 3 * 4  # and mean and std of the pixels
        assert four.measured["memory"]["weights"] == one.measured["memory"]["weights"]
        for scope in ("encoder", "decoder"):
            alive, more = (record.measured["memory"]["activations"] for record in (one, four))
            assert 3.5 < more[scope] / alive[scope] < 4.5
            assert 0 < alive[scope] <= alive["model"]

    def test_low_precision(self) -> None:
        record = measure([subject()], Setting(size=32, precision="bf16", repeats=1))[0]
        assert record.settings["precision"] == "bf16"
        with pytest.raises(ConfigError, match="fp16 needs a GPU"):
            measure([subject()], Setting(size=32, precision="fp16", repeats=1))

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
    def test_memory_does_not_suffice(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        def fail(bench: TimedModel) -> None:
            raise error

        monkeypatch.setattr(TimedModel, "predict", fail)
        with pytest.raises(ConfigError, match="depict-sa-tiny at --size 32 does not fit into the memory"):
            measure([subject()], Setting(size=32))

    def test_other_errors_are_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(bench: TimedModel) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(TimedModel, "predict", fail)
        with pytest.raises(RuntimeError, match="a bug"):
            measure([subject()], Setting(size=32))

    @pytest.mark.parametrize("wrong", [{"size": 0}, {"batch": 0}, {"repeats": 0}, {"precision": "fp8"}])
    def test_impossible_settings(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ConfigError, match=f"--{next(iter(wrong))} "):
            Setting(**wrong)


class TestRender:
    def test_tables_and_figure(self, tmp_path: Path) -> None:
        records = measure([subject(), subject("segmenter-linear-tiny")], Setting(size=32, repeats=2))
        reported = {"decoder blocks GFLOPs": {"value": 4.2, "source": "a paper"}}
        records[0] = dataclasses.replace(records[0], reported=reported)
        other = {"model GMACs": {"value": 9.0, "source": "another"}}
        records[1] = dataclasses.replace(records[1], reported=other)
        tables = shown(records, tmp_path / "profile")
        summary, scopes = tables[""], tables["-scopes"]
        names = [column.name for column in summary.columns]
        assert [row[names.index("Published (G)")] for row in summary.rows] == [4.2, None]
        assert "Published: a paper; another." in summary.caption
        assert "median of 2 passes [quartiles]" in summary.caption
        assert [row[1] for row in scopes.rows[:4]] == ["decoder blocks", "decoder", "encoder", "model"]
        assert [row[5] for row in scopes.rows] == ["4.2 GFLOPs", "", "", "", "", "", "", "9.0 GMACs"]
        for row in scopes.rows[:4]:
            assert row[4] == pytest.approx(2 * row[3])
        assert {path.name for path in tmp_path.iterdir()} == {"profile.png", "profile.pdf"}

    def test_several_sizes_show_cost_against_tokens(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = []
        monkeypatch.setattr(pictures, "save_figure", lambda figure, stem: drawn.append((figure, str(stem))))
        records = [record for size in (64, 40) for record in measure([subject()], Setting(size=size, repeats=2))]
        alone = measure([subject("segmenter-linear-tiny")], Setting(size=32, repeats=2))
        shown([*records, *alone], tmp_path / "profile")
        ((figure, stem),) = drawn[1:]
        assert stem.endswith("profile-tokens.png") and len(figure.axes) == 3
        work, _, memory = (axes.lines[0] for axes in figure.axes)
        assert list(work.get_xdata()) == [9, 16]  # 40 px are padded to 48
        macs = [each.measured["scopes"]["decoder"]["macs"] / 1e9 for each in reversed(records)]
        assert list(work.get_ydata()) == pytest.approx(macs)
        assert list(memory.get_ydata()) == sorted(memory.get_ydata())

    def test_what_was_timed_otherwise_is_not_compared(self, tmp_path: Path) -> None:
        (record,) = measure([subject()], Setting(size=32, repeats=1))
        other = dataclasses.replace(record, settings={**record.settings, "threads": 64})
        with pytest.raises(RecordError, match="different threads"):
            shown([record, other], tmp_path / "x")
        with pytest.raises(RecordError, match="different machines"):
            shown([record, dataclasses.replace(record, hardware={"cpu": "another", "gpus": []})], tmp_path / "x")


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        made = subject()
        save_model(tmp_path / "results" / "mine" / "model.safetensors", *made.open())
        return tmp_path / "results" / "mine"

    def test_names_and_runs(self, call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        arguments = ("--size", 32, "--repeats", 1, "encoder.depth=1", "decoder.layers=1", "decoder.head_dim=8")
        code, out, err = call("profile", "depict-ca-tiny", "--classes", 3, *arguments)
        assert code == 0, err
        assert "depict-ca-tiny" in out
        (path,) = (tmp_path / "results" / "profile" / "records").glob("profile-random-32px-*.json")
        written = json.loads(path.read_text())
        assert written["settings"]["classes"] == 3 and written["settings"]["decoder"]["layers"] == 1
        assert written["settings"]["encoder"]["image_size"] == 32
        code, out, err = call("profile", "--size", 32, "--repeats", 1)  # all below results/
        assert code == 0, err
        (path,) = (run / "records").glob("profile-random-32px-*.json")
        assert json.loads(path.read_text())["weights"]["path"] == "results/mine/model.safetensors"
        code, _, err = call(
            "profile", run, "segmenter-linear-tiny", "--repeats", 1, "-o", "both", "--dataset", "shapes"
        )
        assert code == 0, err  # an absolute path beside a name
        assert len(list((tmp_path / "both" / "records").glob("profile-random-128px-*.json"))) == 2
        assert len(list((tmp_path / "both" / "tables").glob("*-2_models-*-scopes.tex"))) == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["depict-sa-tny"], "did you mean 'depict-sa-tiny'?"),
            (["nothing-like-it-at-all"], "neither a file or folder nor a model. `whitebox models` lists the models."),
            (["depict-sa-tiny", "--precision", "fp8"], "choose from fp32, bf16, fp16"),
            (["depict-sa-tiny", "--dataset", "camvit"], "did you mean 'camvid'?"),
            (["depict-sa-tiny", "inference.window=null"], "inference.window=null leaves no window to take the size"),
            (["depict-sa-tiny", "decoder.heds=2"], "did you mean 'decoder.heads'?"),
            (["results/mine", "decoder.heads=2"], "decoder.heads was fixed by the training"),
            (["results/mine", "--classes", "9"], "mine has 7 classes"),
            (["results"], "results holds neither model.safetensors nor an official checkpoint.pth"),
        ],
    )
    def test_errors(
        self,
        call: Call,
        run: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        arguments: list[str],
        message: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        code, _, err = call("profile", *arguments)
        assert code != 0
        assert err.startswith("error: ") and err.count("\n") == 1
        assert message in err
