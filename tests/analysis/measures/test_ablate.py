"""`whitebox ablate`: gradients against autograd, variants against decoders changed by hand, each decoder, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import asked, nothing, shown
from tiny_runs import tiny_run
from torch import Tensor

from analysis.consumed import Chosen
from analysis.maths.coding_rate import compression_gradient, compression_rate
from analysis.maths.moves import TRIED, compression, cosine
from analysis.measures.ablate import Ablate
from analysis.measures.decoder_scores import DecoderScores, Seen, folds
from analysis.measures.variants import bases_as, descended, descent, fitted, layers_of, without_heads
from analysis.record import Record, read_record, write_record
from whitebox.errors import ConfigError, ModelError
from whitebox.models import intervene, record
from whitebox.models.attention import SubspaceAttention
from whitebox.runs import Run, open_run

MODELS = ("depict-sa-tiny", "depict-ca-tiny", "cbsa-tiny", "tost-tiny", "crate-tiny", "segmenter-mask-tiny")
STEPS = [(layer, factor) for factor in (0.0, 0.5, 2.0, -1.0) for layer in ("0", "1", "2", "all")]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for name in (*MODELS, "segmenter-linear-tiny"):
        tiny_run(root / name, name, **({"decoder__heads": 2} if name == "segmenter-mask-tiny" else {}))
    tiny_run(root / "other", seed=1, train__seed=1)
    return root


@pytest.fixture
def opened(folder: Path) -> Callable[[str], Run]:
    return lambda name: open_run(folder / name, device="cpu")


def measure(run: Run, limit: int | None = None, advance: Any = nothing, **options: Any) -> Record:
    return asked(Ablate(**{"draws": 1, **options}), run, limit=limit, advance=advance)


def row(record: Record, kind: str, layer: str = "all", number: float | None = None) -> dict[str, Any]:
    name = layer if layer == "all" else f"decoder.layers.{layer}"
    found = [
        each
        for each in record.measured["variants"]
        if (each["kind"], each["layer"], each["number"]) == (kind, name, number)
    ]
    assert len(found) == 1
    return dict(found[0])


def scores_of(run: Run) -> DecoderScores:
    return DecoderScores(run, Ablate().consumes(run, Chosen()), 0.1, 0)


def level(run: Run) -> float:
    """The mIoU of a run, evaluated as it is."""
    return float(measure(run, layers="decoder.layers.0").measured["miou"]["value"])


class TestGradient:
    def test_the_closed_form_is_autograds(self) -> None:
        z, bases = normal(2, 20, 12).requires_grad_(), normal(3, 5, 12, seed=1)
        (expected,) = torch.autograd.grad(compression_rate(z, bases, 0.3).sum(), z)
        torch.testing.assert_close(compression_gradient(z.detach(), bases, 0.3), expected, rtol=1e-10, atol=1e-12)

    def test_and_that_of_finite_differences(self) -> None:
        z, bases, direction, h = normal(9, 6), normal(2, 3, 6, seed=1), normal(9, 6, seed=2), 1e-6
        slope = (compression_rate(z + h * direction, bases, 0.3) - compression_rate(z - h * direction, bases, 0.3)) / (
            2 * h
        )
        torch.testing.assert_close((compression_gradient(z, bases, 0.3) * direction).sum(), slope, rtol=1e-7, atol=1e-9)

    def test_through_the_norm_too(self, layer: SubspaceAttention) -> None:
        z = normal(2, 20, 12).requires_grad_()
        (expected,) = torch.autograd.grad(-compression_rate(layer.norm(z), layer.bases, 0.5).sum(), z)
        torch.testing.assert_close(descent(layer, z.detach(), 0.5)[0], expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("length", [0.01, 1.0, 100.0])
    def test_the_step_is_the_best_of_halvings_in_each_window(self, layer: SubspaceAttention, length: float) -> None:
        z, update = normal(2, 20, 12), length * normal(2, 20, 12, seed=1)
        step = descended(layer, z, update, 0.5)
        assert (step.norm(dim=(1, 2)) <= update.norm(dim=(1, 2)) * (1 + 1e-9)).all()
        torch.testing.assert_close(cosine(step, descent(layer, z, 0.5)[0]), torch.ones(2, dtype=torch.float64))
        for window in range(2):
            move = compression(layer, z[window] + update[window], update[window], None, 0.5)
            longest = step[window] / step[window].norm() * update[window].norm()
            best = torch.stack([move.value(z[window] + factor * longest) for factor in TRIED]).min()
            torch.testing.assert_close(move.value(z[window] + step[window]), best)
            assert best < move.value(z[window])

    def test_tokens_without_a_rate_stay(self, layer: SubspaceAttention) -> None:
        torch.nn.init.zeros_(layer.norm.bias)
        assert not descended(layer, torch.zeros(1, 4, 12), torch.ones(1, 4, 12), 0.5).any()

    @pytest.fixture
    def layer(self) -> SubspaceAttention:
        torch.manual_seed(0)
        made = SubspaceAttention(width=12, heads=3, head_dim=5).double()
        torch.nn.init.normal_(made.norm.weight)
        torch.nn.init.normal_(made.norm.bias)
        return made


class TestSubspaces:
    def test_fitted_bases_span_the_new_subspace_and_are_as_long(self) -> None:
        new, own = normal(2, 3, 8), normal(2, 3, 8, seed=1)
        found = fitted(new, own)
        torch.testing.assert_close(found.norm(dim=(1, 2)), own.norm(dim=(1, 2)))
        for head in range(2):
            assert torch.linalg.matrix_rank(torch.cat([found[head], new[head]])) == 3
        rotation = torch.linalg.qr(normal(2, 3, 3, seed=2))[0]
        torch.testing.assert_close(fitted(2 * rotation @ own, own), own)  # only turned: turned back

    def test_a_layer_forgets_what_replaced_its_bases(self, opened: Callable[[str], Run]) -> None:
        decoder = opened("depict-sa-tiny").model.decoder
        before = decoder.layers[0].basis.clone()
        with bases_as({"0": decoder.layers[0]}, {"0": normal(3, 8, 24).float()}):
            assert not torch.allclose(decoder.layers[0].basis, before)
        assert torch.equal(decoder.layers[0].basis, before)

    def test_a_rotation_within_heads_changes_nothing(self, opened: Callable[[str], Run], tmp_path: Path) -> None:
        """Subspaces of a training that differs by a rotation inside each head are the same subspaces."""
        from whitebox.engine.checkpoint import save_model

        run = opened("depict-sa-tiny")
        save_model(tmp_path / "model.safetensors", intervene(run.model, "head_trans", seed=3), run.config)
        changed = row(measure(run, other=str(tmp_path), heads="0"), "other training")
        assert changed["rate"]["value"] == pytest.approx(0, abs=1e-3)
        assert changed["miou"]["value"] == pytest.approx(0, abs=1e-3)


class TestVariants:
    def test_layers_and_steps_by_hand(self, opened: Callable[[str], Run]) -> None:
        run = opened("depict-sa-tiny")
        before = copy.deepcopy(run.model.state_dict())
        found = measure(run, heads="0")
        assert [(each["layer"].removeprefix("decoder.layers."), each["number"]) for each in found.measured["variants"]][
            : len(STEPS)
        ] == STEPS
        base = found.measured["miou"]["value"]
        assert base == pytest.approx(level(run))
        for factor in (0.0, 0.5, 2.0, -1.0):
            changed = opened("depict-sa-tiny")
            with torch.no_grad():
                changed.model.decoder.layers[1].step_size.mul_(factor)
            difference = row(found, "step", "1", factor)["miou"]["value"]
            assert difference == pytest.approx(level(changed) - base, abs=1e-9)
        none = opened("depict-sa-tiny")
        none.model.decoder.layers = torch.nn.ModuleList()
        alone = scores_of(none)
        without = alone.miou(alone.seen(nullcontext()), np.array([True] * 3))
        assert row(found, "step", "all", 0.0)["miou"]["value"] == pytest.approx(without - base, abs=1e-9)
        assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())

    def test_a_layer_with_step_0_changes_nothing(self, opened: Callable[[str], Run]) -> None:
        run = opened("depict-sa-tiny")
        with torch.no_grad():
            run.model.decoder.layers[1].step_size.zero_()
        found = measure(run, layers="decoder.layers.1")
        assert len(found.measured["variants"]) == 4 + 1 + 2 + 3  # no "all" beside one layer
        for each in found.measured["variants"]:
            assert each["miou"]["value"] == 0 and each["rate"]["value"] == pytest.approx(0, abs=1e-9), each
        assert all(each["miou"]["value"] == 0 for each in found.measured["pruning"])

    @pytest.mark.parametrize("name", MODELS)
    def test_heads_by_hand(self, opened: Callable[[str], Run], name: str) -> None:
        run = opened(name)
        scores = scores_of(run)
        changed = opened(name)
        layer = layers_of(run.model)["decoder.layers.1"]
        with torch.no_grad():
            if name.startswith("segmenter"):
                changed.model.decoder.layers[1].attn.proj.weight[:, 12:] = 0
            else:
                changed.model.decoder.layers[1].basis[8:16] = 0
        found = scores.seen(without_heads(run.model, [("decoder.layers.1", layer, 1)]))
        expected = scores_of(changed).seen(nullcontext())
        assert np.array_equal(found.counts_N3K, expected.counts_N3K)
        assert not np.array_equal(found.counts_N3K, scores.seen(nullcontext()).counts_N3K)

    def test_the_rate_is_that_of_the_tokens_behind_each_layer(self, opened: Callable[[str], Run]) -> None:
        run = opened("depict-sa-tiny")
        image = Ablate().consumes(run, Chosen()).dataset[0].image
        with torch.inference_mode(), record(run.model, "decoder.layers.*.tokens") as heard:
            run.model(image[None])
            expected = sum(
                float(compression_rate(layer.norm(heard[f"decoder.layers.{index}.tokens"]), layer.bases, 0.7))
                for index, layer in enumerate(run.model.decoder.layers)
            )
        found = measure(run, limit=1, eps=0.7, layers="decoder.layers.0")
        assert found.measured["rate"]["value"] == pytest.approx(expected, rel=1e-5)

    def test_of_several_windows_one_has_its_rate_measured(self, opened: Callable[[str], Run]) -> None:
        run = opened("depict-sa-tiny")
        side = run.inference.window // 2
        run.config.inference = replace(run.inference, window=side, stride=side, batch=3)
        scores, layer = scores_of(run), run.model.decoder.layers[0]
        assert min(scores.images.windows) > 1
        seen = scores.seen(nullcontext())
        found: dict[int, list[float]] = {}

        def hear(images: list[int]) -> None:
            for image, z in zip(images, heard["decoder.layers.0.tokens"], strict=True):
                found.setdefault(image, []).append(float(compression_rate(layer.norm(z), layer.bases, 0.1)))

        with record(run.model, "decoder.layers.0.tokens") as heard:
            scores.images.evaluate(hear)
        assert [len(each) for each in found.values()] == scores.images.windows
        expected = [found[image][window] for image, window in enumerate(scores.window_N)]
        assert seen.rates_LN is not None and seen.rates_LN[0].tolist() == pytest.approx(expected, rel=1e-5)
        assert len(set(scores.window_N)) > 1

    def test_a_gradient_step_compresses_more_than_no_step(self, opened: Callable[[str], Run]) -> None:
        found = measure(opened("depict-sa-tiny"), heads="0")
        assert row(found, "gradient")["rate"]["value"] < row(found, "step", "all", 0.0)["rate"]["value"]

    @pytest.mark.parametrize("name", [*MODELS, "segmenter-linear-tiny"])
    def test_each_decoder(self, opened: Callable[[str], Run], name: str) -> None:
        steps: list[tuple[int, int]] = []
        found = measure(opened(name), limit=1, layers="decoder.layers.1", advance=lambda *at: steps.append(at))
        kinds = {each["kind"] for each in found.measured["variants"]}
        notes = " ".join(found.measured["notes"])
        if name == "segmenter-linear-tiny":
            assert kinds == set() and found.measured["rate"] is None and "no layer whose change" in notes
            assert found.measured["pruning"] == []
        elif name == "segmenter-mask-tiny":
            assert kinds == {"step", "head"} and "no gradient step" in notes and found.measured["rate"]["value"] > 0
        else:
            assert kinds == {"step", "head", "gradient", "principal", "random"}
            assert ("output maps of its own" in notes) == (not name.startswith("depict"))
        assert not steps or steps[-1][0] == steps[-1][1]


class TestPruning:
    def test_units_are_shared_out_in_turn(self) -> None:
        assert folds(["a", "a", "b", "c", "c"]).tolist() == [0, 0, 1, 0, 0]
        assert folds(["a", "a"]).tolist() == [0, 0]

    def test_each_half_takes_the_order_of_the_other(self, opened: Callable[[str], Run]) -> None:
        run = opened("depict-sa-tiny")
        found = measure(run)
        scores, layers = scores_of(run), layers_of(run.model)
        every = [(name, layer, head) for name, layer in layers.items() for head in range(3)]
        alone = [scores.seen(without_heads(run.model, [each])) for each in every]
        half = np.array([0, 1, 0])
        before = scores.seen(nullcontext())
        pruning = found.measured["pruning"]
        assert len(pruning) == 9
        for count in (1, 4, 9):
            chosen = []
            for fold in (0, 1):
                order = np.argsort([-scores.miou(each, half != fold) for each in alone], kind="stable")
                chosen.append(scores.seen(without_heads(run.model, [every[index] for index in order[:count]])))
            together = chosen[0].where(half == 0, chosen[1])
            assert pruning[count - 1]["miou"]["value"] == scores.changes_from(before)(together)["miou"]["value"]
        assert len(set(map(tuple, (each["dropped"] for each in pruning)))) > 1

    def test_of_one_unit_the_order_is_made_on_the_same_images_and_that_is_said(
        self, opened: Callable[[str], Run]
    ) -> None:
        run = opened("depict-sa-tiny")
        run.config.data = replace(run.data, unit="(.).*")  # their names begin alike
        found = measure(run, limit=3, layers="decoder.layers.0")
        assert "of one unit" in " ".join(found.measured["notes"])

    def test_images_of_two_evaluations(self) -> None:
        first, second = (Seen(np.full((2, 3, 4), each), np.full((1, 2), float(each))) for each in (1, 2))
        mixed = first.where(np.array([True, False]), second)
        assert mixed.counts_N3K[:, 0, 0].tolist() == [1, 2]
        assert mixed.rate_N is not None and mixed.rate_N.tolist() == [1, 2]


def test_what_it_refuses(folder: Path, opened: Callable[[str], Run]) -> None:
    run = opened("depict-sa-tiny")
    refusals: list[tuple[type[Exception], dict[str, Any], str]] = [
        (ConfigError, {"eps": 0.0}, "--eps=0.0 is impossible"),
        (ConfigError, {"draws": 0}, "--draws=0 is impossible"),
        (ConfigError, {"heads": "a"}, "--heads 'a' is impossible: give numbers"),
        (ConfigError, {"heads": "-1"}, "--heads='-1' is impossible: heads count from 0"),
        (ConfigError, {"heads": "0,3"}, "There is no head 3 to drop: layers have heads 0 to 2"),
        (ConfigError, {"layers": "layers.0"}, "There is no layer 'layers.0' to change: this model has decoder.lay"),
        (ConfigError, {"other": str(folder / "depict-sa-tiny")}, "is depict-sa-tiny itself: give another training"),
        (
            ModelError,
            {"other": str(folder / "segmenter-linear-tiny")},
            "no subspaces of 3 x 8 x 24 in decoder.layers.0",
        ),
    ]
    for error, options, message in refusals:
        with pytest.raises(error, match=message):
            measure(run, limit=1, **options)
    with torch.no_grad():
        run.model.decoder.layers[1].basis[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"NaN or infinite values in decoder\.layers\.1\.tokens of depict-sa"):
        measure(run, limit=1)


def test_another_training_and_a_seed(folder: Path, opened: Callable[[str], Run]) -> None:
    run = opened("depict-sa-tiny")
    first, again, second = (
        measure(run, limit=1, layers="decoder.layers.0", heads="0", other=str(folder / "other"), seed=seed)
        for seed in (0, 0, 1)
    )
    assert row(first, "other training")["rate"]["value"] != 0
    assert first.measured == again.measured
    assert row(first, "random", number=0) != row(second, "random", number=0)


def test_tables_and_figures_come_from_records_alone(opened: Callable[[str], Run], tmp_path: Path) -> None:
    names = ("depict-sa-tiny", "segmenter-mask-tiny", "segmenter-linear-tiny")
    layers = "decoder.layers.0,decoder.layers.1"
    read = [read_record(write_record(measure(opened(name), layers=layers), tmp_path / "records")) for name in names]
    (table,) = shown(read, tmp_path / "figure").values()
    assert len(table.rows) == (1 + 12 + 6 + 3 + 2 + 6) + (1 + 12 + 4 + 4) + 1
    text = table.to_markdown()
    for words in (
        "layers.0 dropped",
        "layers.1, head 2 dropped",
        "subspaces: principal",
        "6 heads pruned",
        "eps = 0.1",
    ):
        assert words in text
    assert {path.suffix for path in tmp_path.glob("figure*")} == {".png", ".pdf"}
    many = [replace(read[0], model=name) for name in ("a", "b/c", "d", "e")]
    shown([*many, read[2]], tmp_path / "many")  # each would fill a page
    assert {path.name for path in tmp_path.glob("many*.png")} == {f"many-{name}.png" for name in ("a", "b_c", "d", "e")}
    (alone,) = shown(read[2:], tmp_path / "alone").values()
    assert len(alone.rows) == 1 and not list(tmp_path.glob("alone*"))


def test_trainings_of_one_model_are_shown_as_one(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    runs = [tiny_run(tmp_path / f"sa-{seed}", seed=seed, train__seed=seed) for seed in range(3)]
    code, out, err = call(
        "ablate", *runs, "--draws", 1, "--limit", 1, "--layers", "decoder.layers.2", "--device", "cpu"
    )
    assert code == 0, err
    rows = [line for line in out.splitlines() if "│" in line]
    assert sum("as trained" in line for line in rows) == 1 and sum("layers.2 dropped" in line for line in rows) == 1
    assert "of 3 trainings" in " ".join(out.split())
    code, _, err = call("ablate", runs[0], "--layers", "decoder.layers.9", "--device", "cpu")
    assert code == 2 and err.startswith("error: There is no layer 'decoder.layers.9'") and err.count("\n") == 1
