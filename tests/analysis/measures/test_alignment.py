"""`whitebox alignment`: gradients, line search and baselines against known cases; each decoder; how it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from asking import asked, nothing, samples_of, shown
from child_runs import TINY
from torch import Tensor

from analysis.maths.coding_rate import coding_rate, compression_rate
from analysis.maths.conventions import DISTORTIONS, MULTIPLES
from analysis.maths.moves import (
    Move,
    ascent,
    best_multiple,
    captured,
    compression,
    cosine,
    gradient_step,
    inside,
    judge,
    principal_subspace,
    random_update,
    refinement,
)
from analysis.measures.alignment import Alignment
from analysis.record import Record, RecordError, read_record, write_record
from whitebox.config import resolve
from whitebox.engine.checkpoint import save_model
from whitebox.errors import ConfigError, ModelError
from whitebox.models import build, intervene
from whitebox.models.attention import SubspaceAttention
from whitebox.models.taps import record
from whitebox.runs import Run, open_run


def measure(run: Run, limit: int | None = None, advance: Any = nothing, **options: Any) -> Record:
    return asked(Alignment(**{"path": 2, **options}), run, limit=limit, advance=advance)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def bowl(x: Tensor, update: Tensor, sense: int = -1) -> Move:
    """|x|^2 to fall, or -|x|^2 to rise; one term for each vector."""
    return Move(x, update, lambda x_MD: -sense * x_MD.square().sum(-1), sense, unit=None if sense < 0 else 100.0)


@pytest.fixture
def layer() -> SubspaceAttention:
    torch.manual_seed(0)
    made = SubspaceAttention(width=12, heads=3, head_dim=5).double()
    torch.nn.init.normal_(made.norm.weight)
    torch.nn.init.normal_(made.norm.bias)
    return made


def passed(layer: SubspaceAttention, z_ND: Tensor, query_KD: Tensor | None = None) -> dict[str, Tensor]:
    """What a layer's taps say of one window."""
    with record(layer, "*") as activations, torch.no_grad():
        layer(z_ND[None]) if query_KD is None else layer(z_ND[None], query=query_KD[None])
    return {name: value[0] for name, value in activations.items()}


class TestMaths:
    @pytest.mark.parametrize("sense", [-1, 1])
    def test_a_gradient_step_is_perfect_in_either_sense(self, sense: int) -> None:
        x = normal(6, 4)
        found = judge(bowl(x, -0.5 * x, sense), generator())
        assert found["cosine"] == pytest.approx(1)
        assert found["multiple"] == pytest.approx(2, abs=0.01)  # of half the way to the optimum
        if sense < 0:  # percent of the value before
            assert found["change"] == pytest.approx(-75) and found["best"] == pytest.approx(-100, abs=0.01)
            np.testing.assert_allclose(found["head_change"], -75)
        else:  # percentage points
            assert found["change"] == pytest.approx(100 * 0.75 * x.square().sum())

    def test_a_step_the_wrong_way(self) -> None:
        x = normal(6, 4)
        found = judge(bowl(x, 0.5 * x), generator())
        assert found["cosine"] == pytest.approx(-1) and found["change"] == pytest.approx(125)
        assert found["multiple"] == pytest.approx(-2, abs=0.01)

    def test_the_search_says_where_its_range_ends(self) -> None:
        x = normal(3, 4)
        move = bowl(x, -0.01 * x)  # best 100 times
        multiple, value = best_multiple(move, [float(move.after(each)) for each in MULTIPLES])
        assert multiple == MULTIPLES[-1] and value == pytest.approx(float(0.96**2 * x.square().sum()))

    def test_each_term_has_its_own_direction(self) -> None:
        x = normal(3, 4)
        directions = ascent(bowl(x, x))
        for term in range(3):
            expected = torch.zeros_like(x)
            expected[term] = -2 * x[term]
            torch.testing.assert_close(directions[term], expected)

    def test_the_gradient_step_goes_no_further_than_the_update(self) -> None:
        x = normal(5, 4)
        far = bowl(x, 7 * normal(5, 4, seed=1))  # its length overshoots by far; halving it does not
        near = bowl(x, 0.1 * x.norm() * F.normalize(normal(5, 4, seed=1).flatten(), dim=0).view(5, 4))
        before = x.square().sum()
        assert gradient_step(far, ascent(far).sum(0)) < 0.5 * before
        torch.testing.assert_close(gradient_step(near, ascent(near).sum(0)), 0.81 * before)
        flat = Move(x, x, lambda x_MD: 0 * x_MD.sum()[None] + 3, 1)
        assert gradient_step(flat, ascent(flat).sum(0)) == 3

    def test_random_updates_move_each_vector_as_far(self) -> None:
        update = normal(5, 4) * torch.tensor([0.0, 1, 2, 3, 4])[:, None]
        drawn = random_update(update, generator())
        torch.testing.assert_close(drawn.norm(dim=-1), update.norm(dim=-1))
        assert torch.equal(drawn, random_update(update, generator()))
        assert not torch.equal(drawn, random_update(update, generator(1)))

    def test_random_cosines_scatter_around_zero(self) -> None:
        x = normal(40, 30)
        found = judge(bowl(x, x), generator(1), draws=50)["random_cosine"]
        assert found.shape == (50,) and abs(found.mean()) < 0.02
        assert found.std() == pytest.approx(1 / math.sqrt(40 * 30), rel=0.3)

    def test_cosine_of_no_update_is_not_defined(self) -> None:
        assert math.isnan(cosine(normal(2, 3), torch.zeros(2, 3, dtype=torch.float64)))

    def test_inside_is_the_share_of_energy(self) -> None:
        v = torch.eye(4, dtype=torch.float64)[:, :2]
        q = torch.tensor([[3.0, 0, 4, 0], [0, 0, 0, 9], [1, 5, 0, 0]], dtype=torch.float64)
        assert float(inside(q, v)) == pytest.approx((9 / 25 + 0 + 1) / 3)

    def test_captured_energy(self) -> None:
        z = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 0.5]], dtype=torch.float64)
        axes = torch.eye(3, dtype=torch.float64)
        assert float(captured(axes[:2], z)) == pytest.approx(1)
        assert float(captured(torch.stack([axes[0] + axes[1], axes[0] - 3 * axes[1]]), z)) == pytest.approx(1)
        assert float(captured(axes[1:], z)) == pytest.approx(1.25 / 5)
        assert float(captured(torch.stack([axes[0], 5 * axes[0]]), z)) == pytest.approx(4 / 5)  # collapsed
        torch.testing.assert_close(principal_subspace(z, 1).abs(), axes[:, :1])
        assert principal_subspace(z, 9).shape == (3, 3)
        assert principal_subspace(z[:2], 3).shape == (3, 2)  # two tokens have no third direction


class TestCompression:
    def test_gradient_of_the_literal_reading_is_the_closed_form(self, layer: SubspaceAttention) -> None:
        seen = passed(layer, normal(20, 12))
        move = compression(layer, seen["tokens"], seen["update"], seen["projected"], eps=0.5, at="normed")
        a = 5 / (20 * 0.5**2)
        w_HNP, u_HPD = seen["projected"], layer.bases.detach()
        inner_HPP = torch.eye(5, dtype=torch.float64) + a * w_HNP.mT @ w_HNP
        expected_HND = -a * w_HNP @ torch.linalg.inv(inner_HPP) @ u_HPD
        torch.testing.assert_close(ascent(move), expected_HND, rtol=1e-9, atol=1e-12)

    def test_gradient_through_the_norm_by_finite_differences(self, layer: SubspaceAttention) -> None:
        seen = passed(layer, normal(20, 12))
        move = compression(layer, seen["tokens"], seen["update"], seen["projected"], eps=0.5)
        direction, h = normal(20, 12, seed=3), 1e-5
        slope = (move.value(move.x_MD + h * direction) - move.value(move.x_MD - h * direction)) / (2 * h)
        torch.testing.assert_close(-(ascent(move).sum(0) * direction).sum(), slope, rtol=1e-6, atol=1e-9)

    def test_the_objective_is_the_rate_of_what_the_layer_sees(self, layer: SubspaceAttention) -> None:
        z = normal(20, 12)
        seen = passed(layer, z)
        expected = compression_rate(layer.norm(z), layer.bases, 0.5)
        for at in ("tokens", "normed"):
            move = compression(layer, seen["tokens"], seen["update"], None, eps=0.5, at=at)
            torch.testing.assert_close(move.value(move.x_MD), expected.detach())

    def test_longer_tokens_compress_nothing_through_the_norm(self, layer: SubspaceAttention) -> None:
        layer.norm.eps = 0.0
        z = normal(20, 12)
        through, literal = (compression(layer, 3 * z, 2 * z, None, eps=0.5, at=at) for at in ("tokens", "normed"))
        assert float(through.after() - through.value(through.x_MD)) == pytest.approx(0, abs=1e-9)
        assert abs(float(literal.after() - literal.value(literal.x_MD))) > 0.1

    def test_heads_add_up_to_the_update(self, layer: SubspaceAttention) -> None:
        seen = passed(layer, normal(20, 12))
        move = compression(layer, seen["tokens"], seen["update"], seen["projected"])
        assert move.heads_HMD is not None
        torch.testing.assert_close(move.heads_HMD.sum(0), seen["update"])
        assert compression(layer, seen["tokens"], seen["update"], None).heads_HMD is None

    def test_the_derived_direction_drops_nothing(self, layer: SubspaceAttention) -> None:
        seen = passed(layer, normal(20, 12))
        move = compression(layer, seen["tokens"], seen["update"], seen["projected"])
        own = (seen["projected"] @ layer.bases).sum(0)
        torch.testing.assert_close(move.derived_MD, seen["update"] / layer.step_size - own)
        alone = passed(layer, normal(1, 12))  # one token attends to itself: softmax - 1 = 0
        move = compression(layer, alone["tokens"], alone["update"], alone["projected"])
        assert move.derived_MD is not None and float(move.derived_MD.abs().max()) < 1e-12

    def test_mssa_follows_the_gradient_where_its_derivation_holds(self) -> None:
        """One head with an orthonormal basis, large eps, tokens in two tight groups: the derivation's own setting."""
        layer = SubspaceAttention(width=8, heads=1, head_dim=8).double()
        torch.nn.init.eye_(layer.basis)
        z = torch.cat([normal(1, 8), normal(1, 8, seed=1)]).repeat_interleave(10, dim=0) + 0.1 * normal(20, 8, seed=2)
        torch.nn.init.constant_(layer.step_size, -1.0)
        seen = passed(layer, z)
        found = judge(
            compression(layer, seen["tokens"], seen["update"], seen["projected"], 10.0, "normed"), generator()
        )
        assert found["cosine"] > 0.95 and found["head_cosine"].shape == (1,)
        torch.nn.init.constant_(layer.step_size, 1.0)
        seen = passed(layer, z)
        wrong = judge(
            compression(layer, seen["tokens"], seen["update"], seen["projected"], 10.0, "normed"), generator()
        )
        assert wrong["cosine"] == pytest.approx(-found["cosine"]) and wrong["change"] > 0 > found["best"]


class TestRefinement:
    def test_class_embeddings_are_drawn_to_the_principal_subspace(self, layer: SubspaceAttention) -> None:
        z, q = normal(20, 12), normal(3, 12, seed=1)
        seen = passed(layer, z, q)
        move = refinement(layer, seen["tokens"], seen["update"], seen["projected"], F.normalize(z, dim=-1))
        torch.testing.assert_close(move.x_MD, q)
        assert move.heads_HMD is not None
        torch.testing.assert_close(move.heads_HMD.sum(0), seen["update"])
        v = principal_subspace(F.normalize(z, dim=-1), 3)
        perfect = judge(replace(move, update_MD=q @ v @ v.T - q), generator())  # lands inside
        assert perfect["before"] + perfect["change"] == pytest.approx(100)
        assert perfect["cosine"] > 0.3 and perfect["multiple"] == pytest.approx(1, abs=0.02)
        assert perfect["head_cosine"].shape == (3,)

    def test_with_as_many_classes_as_dimensions_all_is_inside(self, layer: SubspaceAttention) -> None:
        z, q = normal(20, 12), normal(12, 12, seed=1)
        seen = passed(layer, z, q)
        move = refinement(layer, seen["tokens"], seen["update"], seen["projected"], F.normalize(z, dim=-1))
        found = judge(move, generator())
        assert found["before"] == pytest.approx(100) and found["change"] == pytest.approx(0, abs=1e-9)


SHAPE = {key: value for key, value in TINY.items() if key != "decoder.head_dim"}
MODELS = ("depict-sa-tiny", "depict-ca-tiny", "segmenter-mask-tiny", "segmenter-linear-tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained runs."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("runs")
    for name in (*MODELS, "cbsa-tiny", "crate-tiny", "tost-tiny"):
        own = {} if "segmenter" in name else {"decoder.head_dim": 8}
        config = resolve(name, "shapes", {**SHAPE, **own})
        save_model(root / name / "model.safetensors", build(config.encoder, config.decoder, 7), config)
    return root


@pytest.fixture
def opened(folder: Path) -> Callable[[str], Run]:
    return lambda name: open_run(folder / name, device="cpu")


class TestMeasure:
    def test_depict_sa(self, opened: Callable[[str], Run]) -> None:
        run = opened("depict-sa-tiny")
        steps: list[tuple[int, int]] = []
        found = measure(run, limit=3, draws=3, advance=lambda *at: steps.append(at))
        assert steps == [(1, 3), (2, 3), (3, 3)] and found.n == 3 and found.measured["notes"] == []
        layers = found.measured["layers"]
        assert [layer["name"] for layer in layers] == [f"decoder.layers.{index}" for index in range(3)]
        for layer, module in zip(layers, run.model.decoder.layers, strict=True):
            assert layer["objective"] == "compression" and layer["step"] == module.step_size.item()
            assert -1 <= layer["derived"]["low"] <= layer["derived"]["value"] <= layer["derived"]["high"] <= 1
            assert len(layer["heads"]) == 3 and len(layer["curve"]) == len(MULTIPLES)
            assert layer["curve"][MULTIPLES.index(0)]["value"] == 0
            assert layer["curve"][MULTIPLES.index(1)] == pytest.approx(layer["change"])
            assert layer["best"]["value"] <= min(each["value"] for each in layer["curve"]) + 1e-9
            assert layer["gradient"]["value"] <= 0 <= layer["at_end"] <= 1
            assert layer["random"]["cosine"]["low"] < 0 < layer["random"]["cosine"]["high"]

    def test_the_change_is_what_the_layer_makes(self, opened: Callable[[str], Run]) -> None:
        run = opened("depict-sa-tiny")
        found = measure(run, limit=1, eps=0.7).measured["layers"][1]
        (sample,) = samples_of(run, 1)
        module = run.model.decoder.layers[1]
        with record(run.model, "decoder.layers.*.tokens") as seen, torch.inference_mode():
            run.model.masks(sample.pixels_B3HW)
            before, after = (
                compression_rate(module.norm(seen[f"decoder.layers.{index}.tokens"][0]), module.bases, 0.7)
                for index in (0, 1)
            )
        assert found["before"]["value"] == pytest.approx(float(before), rel=1e-5)
        assert found["change"]["value"] == pytest.approx(float(100 * (after - before) / before), rel=1e-3)

    def test_one_window_of_each_image(self, opened: Callable[[str], Run]) -> None:
        run = opened("depict-sa-tiny")
        side = run.inference.window // 2
        run.config.inference = replace(run.inference, window=side, stride=side)
        (sample,) = samples_of(run, 1)
        layer = run.model.decoder.layers[1]
        with record(run.model, "decoder.layers.0.tokens") as seen, torch.inference_mode():
            run.model.masks(sample.pixels_B3HW)
            rates = [float(compression_rate(layer.norm(z), layer.bases, 0.1)) for z in seen["decoder.layers.0.tokens"]]
        one, every, more = (measure(run, limit=1, windows=windows) for windows in (1, None, 100))
        after = [each.measured["layers"][1]["before"]["value"] for each in (one, every)]
        assert len(rates) == 4 and min(abs(after[0] - rate) for rate in rates) < 1e-3 * abs(after[0])
        assert after[1] == pytest.approx(np.mean(rates), rel=1e-5)
        assert more.measured == every.measured and "windows" not in every.settings and one.identity != every.identity

    def test_depict_ca(self, opened: Callable[[str], Run]) -> None:
        layers = measure(opened("depict-ca-tiny"), limit=3).measured["layers"]
        assert [layer["objective"] for layer in layers] == ["compression"] * 3 + ["principal directions"] * 3
        assert all("captured" not in layer for layer in layers[:3])
        for first, second in pairwise(layers[3:]):
            after, before = first["captured"]["after"]["value"], second["captured"]["before"]["value"]
            assert after == pytest.approx(before, rel=1e-4)
            after = first["before"]["value"] + first["change"]["value"]
            assert after == pytest.approx(second["before"]["value"], rel=1e-4)
            assert first["derived"] is None and 0 < first["before"]["value"] < 100
            assert first["gradient"]["value"] >= 0 and len(first["heads"]) == 3

    def test_segmenter_is_a_control_without_heads_of_its_own(self, opened: Callable[[str], Run]) -> None:
        layers = measure(opened("segmenter-mask-tiny"), limit=1).measured["layers"]
        assert len(layers) == 2
        for layer in layers:
            assert layer["step"] is None and layer["derived"] is None
            assert all(head["cosine"] is None and head["change"]["value"] for head in layer["heads"])

    def test_of_crate_the_part_before_ista_is_judged(self, opened: Callable[[str], Run]) -> None:
        run = opened("crate-tiny")
        found = measure(run, limit=1).measured["layers"][0]
        (sample,) = samples_of(run, 1)
        with record(run.model, "decoder.layers.0.*") as seen, torch.no_grad():
            run.model.masks(sample.pixels_B3HW)
        layer = run.model.decoder.layers[0]
        before = seen["decoder.layers.0.tokens"] - seen["decoder.layers.0.update"]
        with torch.no_grad():
            rates = [
                coding_rate(layer.project(layer.norm(z_BND)), 0.1).sum().item()
                for z_BND in (before, seen["decoder.layers.0.compressed"])
            ]
        assert found["before"]["value"] == pytest.approx(rates[0], rel=1e-4)
        assert found["change"]["value"] == pytest.approx(100 * (rates[1] / rates[0] - 1), rel=1e-2)

    def test_a_linear_decoder_has_nothing_to_align(self, opened: Callable[[str], Run], tmp_path: Path) -> None:
        found = measure(opened("segmenter-linear-tiny"), limit=1)
        assert found.measured["layers"] == [] and found.measured["notes"][0].startswith("has no subspaces")
        assert shown([found], tmp_path / "x") == {} and list(tmp_path.iterdir()) == []

    def test_rotations_within_heads_change_nothing(self, opened: Callable[[str], Run]) -> None:
        run = opened("depict-ca-tiny")
        turned = Run(run.name, run.weights, intervene(run.model, "head_trans"), run.config)  # type: ignore[arg-type]
        for ours, theirs in zip(*(measure(each, limit=1).measured["layers"] for each in (run, turned)), strict=True):
            for key in ("cosine", "change", "gradient"):
                assert ours[key]["value"] == pytest.approx(theirs[key]["value"], rel=1e-3, abs=1e-4)

    def test_seeds_and_conventions(self, opened: Callable[[str], Run]) -> None:
        run = opened("depict-sa-tiny")
        first, again, other = (measure(run, limit=1, seed=seed) for seed in (0, 0, 1))
        assert first.measured == again.measured
        assert first.measured["layers"][0]["random"] != other.measured["layers"][0]["random"]
        assert first.measured["layers"][0]["cosine"] == other.measured["layers"][0]["cosine"]
        literal = measure(run, limit=1, at="normed", eps=1.0)
        assert literal.variant == "normed-eps_1" and literal.settings["eps"] == 1.0
        assert literal.identity != first.identity

    @pytest.mark.parametrize(
        ("name", "own"),
        [("tost-tiny", "variational bound"), ("cbsa-tiny", "contraction"), ("crate-tiny", "sparse rate")],
    )
    def test_an_operator_is_judged_by_its_own_objective_too(
        self, opened: Callable[[str], Run], name: str, own: str
    ) -> None:
        found = measure(opened(name), limit=1, draws=1, path=2).measured["layers"]
        assert [layer["objective"] for layer in found] == ["compression", own] * 3
        for layer in found:
            at = DISTORTIONS.index(0.1)  # the range goes through the numbers at --eps
            assert layer["range"]["cosine"][at]["value"] == pytest.approx(layer["cosine"]["value"])
            assert layer["range"]["change"][at]["value"] == pytest.approx(layer["change"]["value"])
            assert len(layer["range"]["change"]) == len(DISTORTIONS) and abs(layer["cosine"]["value"]) <= 1
        for layer in found[1::2]:
            assert ("given" in layer) == (own == "contraction") and ("parts" in layer) == (own == "sparse rate")
            if own == "sparse rate":
                parts = layer["parts"]
                for when in ("before", "by_mssa", "by_ista"):
                    rate, compressed, sparsity = (
                        parts[key][when]["value"] for key in ("rate", "compression", "sparsity")
                    )
                    assert parts["total"][when]["value"] == pytest.approx(rate - compressed - sparsity)
                ista = parts["rate"]["by_ista"]["value"] - parts["sparsity"]["by_ista"]["value"]
                assert layer["change"]["value"] == pytest.approx(ista) and layer["heads"] == []
            else:
                assert layer["gradient"]["value"] <= 0 and layer["path"]["value"] <= 0

    def test_many_small_steps(self, opened: Callable[[str], Run]) -> None:
        run = opened("depict-sa-tiny")
        few, many = (measure(run, limit=1, path=steps).measured["layers"][0] for steps in (1, 32))
        assert many["path"]["value"] < few["path"]["value"] <= 0
        assert few["gradient"] == many["gradient"]

    def test_what_it_refuses(self, opened: Callable[[str], Run]) -> None:
        run = opened("depict-ca-tiny")
        for wrong, message in (
            ({"eps": 0.0}, "--eps=0.0 is impossible: it must be above 0"),
            ({"eps": math.nan}, "--eps=nan is impossible"),
            ({"at": "raw"}, "--at='raw' is impossible: choose tokens or normed"),
            ({"draws": 0}, "--draws=0 is impossible"),
            ({"path": 0}, "--path=0 is impossible"),
            ({"windows": 0}, "--windows=0 is impossible"),
            ({"limit": 0}, "--limit 0 is impossible"),
            ({"eps": 1e-9, "limit": 1}, "too small for double precision"),
        ):
            with pytest.raises(ConfigError, match=message):
                measure(run, **wrong)
        with torch.no_grad():
            run.model.decoder.class_embeddings[0, 0, 0] = torch.nan
        with pytest.raises(ModelError, match=r"NaN or infinite values in decoder\.cross_layers\.0\.\w+ of depict-ca"):
            measure(run, limit=1)


def test_tables_and_figures_come_from_records_alone(opened: Callable[[str], Run], tmp_path: Path) -> None:
    records = [measure(opened(name), limit=1) for name in MODELS]
    read = [read_record(write_record(each, tmp_path / "records")) for each in records]
    tables = shown(read, tmp_path / "figure")
    assert list(tables) == ["", "-change", "-heads", "-classes", "-range"]
    assert [len(table.rows) for table in tables.values()] == [3 + 6 + 2, 3 + 3 + 2, 9 + 18 + 2, 3, 6 * (3 + 3 + 2)]
    assert all("eps = 0.1" in table.caption and "n = 1 images" in table.caption for table in tables.values())
    assert {path.name for path in tmp_path.glob("figure*")} == {
        f"figure{part}.{suffix}" for part in ("", "-directions", "-steps") for suffix in ("png", "pdf")
    }
    with pytest.raises(RecordError, match="different eps; render them apart"):
        shown([read[0], replace(read[1], settings={**read[1].settings, "eps": 1.0})], tmp_path / "x")
    with pytest.raises(RecordError, match="on different images"):
        shown([read[0], replace(read[1], data=replace(read[1].data, split="train"))], tmp_path / "x")


def test_own_objectives_are_shown_beside_the_rate(opened: Callable[[str], Run], tmp_path: Path) -> None:
    names = ("tost-tiny", "cbsa-tiny", "crate-tiny")
    read = [
        read_record(write_record(measure(opened(name), limit=1, draws=1, path=2), tmp_path / "records"))
        for name in names
    ]
    tables = shown(read, tmp_path / "figure")
    assert [row[1] for row in tables[""].rows[:2]] == ["layers.0", "layers.0 bound"]
    assert [len(table.rows) for table in tables.values()] == [18, 15, 45, 15, 6 * 18]
    assert "Representatives: R of CBSA's representatives." in tables[""].caption
    assert [column.name for column in tables["-change"].columns][-4:] == ["gradient", "path", "best", "Given (%)"]
    assert [row[2] for row in tables["-sparse"].rows[:2]] == ["R - R^c - lambda |Z|_1", "R"]
    (tmp_path / "before").mkdir()
    older = json.loads(json.dumps([each.measured for each in read[:1]]))  # of before there was a range
    for layer in older[0]["layers"]:
        for key in ("range", "path"):
            del layer[key]
    tables = shown([replace(read[0], measured=older[0])], tmp_path / "before" / "figure")
    assert "-range" not in tables and "path" not in [column.name for column in tables["-change"].columns]
    assert not list((tmp_path / "before").glob("*directions*"))


def test_the_command(folder: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = call("alignment", folder / "depict-sa-tiny", "--limit", 1, "--device", "cpu", "-o", tmp_path)
    assert code == 0, err
    assert "layers.2" in out and "Derived" in out
    assert len(list((tmp_path / "records").iterdir())) == 1
    code, _, err = call("alignment", folder / "depict-sa-tiny", "--eps", -1, "--device", "cpu", "-o", tmp_path)
    assert code == 2 and err.startswith("error: --eps=-1.0 is impossible") and err.count("\n") == 1
