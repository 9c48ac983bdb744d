"""`whitebox rank-analysis`: conventions, what it measures of each decoder, tables and figures, and how it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from asking import asked, samples_of, shown
from child_runs import TINY
from golden_vectors import load_npz, vector_file
from torch import Tensor, nn

from analysis.maths.coding_rate import coding_rate, rate_reduction, second_moment
from analysis.maths.conventions import Convention, convention
from analysis.maths.tokens import (
    Tokens,
    overlap,
    principal_angles,
    projections,
    random_angles,
    reductions,
    token_numbers,
)
from analysis.measures.rank_analysis import RankAnalysis
from analysis.record import Record
from analysis.show import rank_analysis as rank_figures
from whitebox.config import resolve
from whitebox.engine.checkpoint import save_model
from whitebox.errors import ConfigError, DataError, ModelError
from whitebox.models import build
from whitebox.models.attention import subspace_layers
from whitebox.models.taps import record
from whitebox.runs import Run, open_run


def measure(
    run: Run,
    rule: Convention | None = None,
    *,
    layers: list[str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    **options: Any,
) -> Record:
    names = None if layers is None else ",".join(layers)
    return asked(RankAnalysis(**asdict(rule or Convention()), layers=names, **options), run, split, limit)


PLAIN = Convention(tokens="raw")


def make_run(folder: Path, model: str = "depict-sa-tiny", name: str = "", **overrides: Any) -> Run:
    torch.manual_seed(0)
    own = {} if "linear" in model or "mask" in model else {"decoder.head_dim": 8}
    settings = {key: value for key, value in TINY.items() if key != "decoder.head_dim"}
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    config = resolve(model, "shapes", {**settings, "inference.batch": 2, **own, **changed})
    run = folder / (name or model)
    save_model(run / "model.safetensors", build(config.encoder, config.decoder, 7), config)
    return open_run(run, device="cpu")


class Layer:
    """A layer that has subspaces and a LayerNorm."""

    def __init__(self, bases_HPD: Tensor, norm: nn.LayerNorm | None = None) -> None:
        self.bases = bases_HPD
        self.norm = nn.LayerNorm(bases_HPD.shape[-1]) if norm is None else norm


def layers(count: int, H: int, P: int, D: int) -> list[Layer]:
    torch.manual_seed(1)
    made = [Layer(torch.randn(H, P, D)) for _ in range(count)]
    for layer in made:
        nn.init.normal_(layer.norm.weight)
        nn.init.normal_(layer.norm.bias)
    return made


def singles(stored: list[dict[str, float]]) -> list[float]:
    return [value["value"] for value in stored]


class TestConvention:
    @pytest.mark.parametrize("preset", ["crate", "cbsa"])
    def test_presets_equal_the_released_scripts(self, golden: Path | None, preset: str) -> None:
        stored = load_npz(vector_file(golden, "blocks", "coding_rate.npz"))
        names = [name for name in stored if name.startswith(preset)]
        assert len(names) >= 4
        for name in names:
            _, stored_tokens, eps_squared = name.split(".", 2)
            x_BHNP = torch.from_numpy(stored[stored_tokens])
            B, H, _, P = x_BHNP.shape
            blocks = torch.eye(H * P).unflatten(0, (H, P))  # head h keeps its own coordinates
            rule = convention(preset, tokens="raw")
            if eps_squared == "eps0.01":
                assert rule.eps**2 == pytest.approx(0.01)  # what the scripts are run with
            else:
                rule = replace(rule, eps=float(eps_squared[3:]) ** 0.5)
            tokens = Tokens(x_BHNP.transpose(1, 2).flatten(2), rule)
            rate_B = projections(tokens, [Layer(blocks)])[0][:, 0].numpy()
            mean, deviation = stored[name]
            assert rate_B.mean() == pytest.approx(mean, rel=1e-6)
            if B > 1:
                assert rate_B.std(ddof=1) == pytest.approx(deviation, abs=1e-6 * mean)

    def test_changes_over_a_preset(self) -> None:
        assert convention() == Convention()
        assert convention("crate", eps=0.5, heads=None) == replace(convention("crate"), eps=0.5)
        assert (
            convention("cbsa").name == "cbsa" and convention("cbsa", eps=0.5).name == "normed-none-0.5-subspace-sum-all"
        )

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"eps": 0.0}, "eps=0.0 is impossible: it must be above 0"),
            ({"eps": float("nan")}, "eps=nan is impossible"),
            ({"tokens": "cooked"}, "tokens='cooked' is impossible: choose normed or raw"),
            ({"normalise": "yes"}, "choose none or token or projected"),
            ({"preset": "mcr2"}, "preset='mcr2' is impossible: choose crate or cbsa"),
        ],
    )
    def test_impossible(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            convention(**changes)


class TestProjections:
    @pytest.mark.parametrize("tokens", ["normed", "raw"])
    @pytest.mark.parametrize("normalise", ["none", "token", "projected"])
    @pytest.mark.parametrize(("prefactor", "heads"), [("subspace", "sum"), ("width", "mean")])
    def test_against_the_formula(self, tokens: str, normalise: str, prefactor: str, heads: str) -> None:
        B, N, H, P, D = 2, 30, 3, 4, 10
        rule = Convention(tokens=tokens, normalise=normalise, prefactor=prefactor, heads=heads, eps=0.3)
        z_BND, several = 3 * torch.randn(B, N, D) + 1, layers(2, H, P, D)
        rate_BL, full_BL = projections(Tokens(z_BND, rule), several)
        assert rate_BL.shape == full_BL.shape == (B, 2)
        for index, layer in enumerate(several):
            y_BND = (layer.norm(z_BND) if tokens == "normed" else z_BND).detach().double()
            unit_BND = y_BND if normalise == "none" else F.normalize(y_BND, dim=-1)
            source_BND = unit_BND if normalise == "token" else y_BND
            w_BHNP = source_BND[:, None] @ layer.bases.double().mT
            w_BHNP = F.normalize(w_BHNP, dim=-1) if normalise == "projected" else w_BHNP
            rate_BH = coding_rate(w_BHNP, 0.3, D if prefactor == "width" else P)
            expected_B = rate_BH.sum(1) if heads == "sum" else rate_BH.mean(1)
            torch.testing.assert_close(rate_BL[:, index], expected_B, rtol=1e-5, atol=1e-8)
            torch.testing.assert_close(full_BL[:, index], coding_rate(unit_BND, 0.3), rtol=1e-5, atol=1e-8)

    def test_layer_norms_of_different_eps(self) -> None:
        z_BND, (first, second) = torch.randn(1, 20, 6), layers(2, 1, 3, 6)
        second.norm.eps = 0.5
        together = projections(Tokens(z_BND, Convention()), [first, second])[0]
        alone = [projections(Tokens(z_BND, Convention()), [layer])[0] for layer in (first, second)]
        torch.testing.assert_close(together, torch.cat(alone, 1))
        expected = coding_rate((second.norm(z_BND) @ second.bases[0].T).detach(), 0.1)
        torch.testing.assert_close(together[:, 1], expected, rtol=1e-5, atol=0)


class TestTokens:
    def test_zero_tokens_hold_nothing(self) -> None:
        for rule in (Convention(), PLAIN, convention("crate")):
            numbers = token_numbers(Tokens(torch.zeros(1, 9, 4), rule))
            held = {key: value.sum().item() for key, value in numbers.items()}
            assert held == {**dict.fromkeys(numbers, 0), "zeros": 1}

    def test_which_vectors(self) -> None:
        z_BND = 5 * torch.randn(1, 9, 4)
        raw, normed, unit = (Tokens(z_BND, rule) for rule in (PLAIN, Convention(), Convention(normalise="token")))
        assert torch.equal(raw.vectors_BND, z_BND.double())
        assert normed.vectors_BND.mean(-1).abs().max() < 1e-12
        assert unit.vectors_BND.norm(dim=-1).sub(1).abs().max() < 1e-12
        for tokens in (raw, normed, unit):
            torch.testing.assert_close(tokens.moment_BDD, second_moment(tokens.vectors_BND), rtol=1e-12, atol=1e-12)

    def test_rate_reduction_is_of_labelled_patches(self) -> None:
        z_BND = torch.randn(4, 12, 5)
        labels_BN = torch.full((4, 12), 255)
        labels_BN[0] = torch.arange(12) % 3
        labels_BN[1, :7] = torch.arange(7) % 2
        labels_BN[2] = 4
        found = reductions(Tokens(z_BND, PLAIN), labels_BN)
        expected = rate_reduction(z_BND[1, :7].double(), labels_BN[1, :7], 0.1)
        assert found[1].item() == pytest.approx(expected.item()) and found[0] > 0
        assert found[2] == 0 and found[3].isnan()  # a single class; no label
        assert reductions(Tokens(z_BND[:, :6], PLAIN), labels_BN).isnan().all()  # not one token a patch


class TestAngles:
    def test_known_subspaces(self) -> None:
        axes = torch.eye(6, dtype=torch.float64)
        z_BND = (axes * torch.tensor([9.0, 8, 7, 1, 1, 1]))[None]  # leading: the first axes
        turned = torch.stack([axes[0] + axes[3], 5 * axes[1], -axes[2]])
        same, orthogonal = axes[[2, 0, 1]], axes[3:]
        found = [principal_angles(second_moment(z_BND), q_KD[None])[0] for q_KD in (same, orthogonal, turned)]
        for degrees, expected in zip(found, ([0, 0, 0], [90, 90, 90], [0, 0, 45]), strict=True):
            np.testing.assert_allclose(degrees, expected, atol=1e-5)
        np.testing.assert_allclose(overlap(torch.stack(found)), [1, 0, 2.5 / 3], atol=1e-12)

    def test_dependent_vectors_have_fewer(self) -> None:
        z_BND, q_KD = torch.randn(1, 20, 5), torch.randn(2, 5)
        degrees = principal_angles(second_moment(z_BND), q_KD[[0, 0, 1]][None])[0]
        assert degrees.isnan().tolist() == [False, False, True]
        assert overlap(degrees[None]).isfinite().all()
        assert principal_angles(second_moment(z_BND), torch.zeros(1, 3, 5)).isnan().all()

    def test_more_classes_than_dimensions(self) -> None:
        degrees = principal_angles(second_moment(torch.randn(1, 20, 4)), torch.randn(1, 9, 4))
        assert degrees.shape == (1, 4) and degrees.abs().max() < 1e-4

    def test_random_subspaces(self) -> None:
        drawn = random_angles(6, 24, seed=0, draws=200)
        assert drawn.shape == (200, 6) and (np.diff(drawn) >= 0).all()
        assert overlap(torch.from_numpy(drawn)).mean().item() == pytest.approx(6 / 24, abs=0.01)
        np.testing.assert_array_equal(drawn, random_angles(6, 24, seed=0, draws=200))


class TestMeasure:
    def test_own_layers_see_what_the_model_projects(self, tmp_path: Path) -> None:
        """R^c of layer l is that of its own projected tokens, for every kind of decoder that has subspaces."""
        for model in ("depict-sa-tiny", "depict-ca-tiny", "cbsa-tiny", "tost-tiny", "crate-tiny"):
            run = make_run(tmp_path, model)
            for norm in (module for module in run.model.decoder.modules() if isinstance(module, nn.LayerNorm)):
                nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
            measured = measure(run, Convention(which="all"), limit=1).measured
            (sample,) = samples_of(run, 1)
            with record(run.model, "decoder.layers.*.projected") as activations, torch.no_grad():
                run.model.masks(sample.pixels_B3HW)
            rates = measured["projections"][0]["rate"]
            assert len(rates) == len(activations) == 3 and len(rates[0]) == 4
            for index, w_BHNP in enumerate(activations.values()):
                expected = coding_rate(w_BHNP, 0.1).sum(1).mean().item()
                assert rates[index][index]["value"] == pytest.approx(expected, rel=1e-5)

    def test_patches_and_class_embeddings_are_told_apart(self, tmp_path: Path) -> None:
        run = make_run(tmp_path)
        measured = measure(run, PLAIN, limit=3).measured
        rates, class_rates, reduced = [], [], []
        for sample in samples_of(run, 3):
            with record(run.model, "decoder.layers.0.tokens") as activations, torch.no_grad():
                run.model.masks(sample.pixels_B3HW)
            (z_BND,) = activations.values()
            assert z_BND.shape[1] == 4 + 7
            rates.append(coding_rate(z_BND[:, :4], 0.1).mean().item())
            class_rates.append(coding_rate(z_BND[:, 4:], 0.1).mean().item())
            reduced.append(reductions(Tokens(z_BND[:, :4], PLAIN), sample.labels_Bhw.flatten(1)).nanmean().item())
        layer, classes = measured["layers"][1], measured["classes"][1]
        assert layer["name"] == classes["name"] == "decoder.layers.0" and layer["position"] == 1
        assert layer["rate"]["value"] == pytest.approx(np.mean(rates), rel=1e-6)
        assert layer["reduction"]["value"] == pytest.approx(np.nanmean(reduced), rel=1e-6)
        assert classes["rate"]["value"] == pytest.approx(np.mean(class_rates), rel=1e-6)
        assert layer["rate"]["low"] <= layer["rate"]["value"] <= layer["rate"]["high"]
        assert len(layer["components"]) == 3 and layer["width"] == 24
        assert layer["spectrum"]["component"][0] == 1 and layer["spectrum"]["component"][-1] == 24
        assert len(layer["spectrum"]["value"]) == len(layer["spectrum"]["component"])
        assert len(measured["angles"]["degrees"]) == 7 and measured["notes"] == []

    def test_zeros_are_those_that_ista_leaves(self, tmp_path: Path) -> None:
        run = make_run(tmp_path, "crate-tiny")
        found = measure(run, limit=1)
        (sample,) = samples_of(run, 1)
        with record(run.model, "decoder.layers.*.sparse") as activations, torch.no_grad():
            run.model.masks(sample.pixels_B3HW)
        shares = [(z_BND[:, :4] == 0).double().mean().item() for z_BND in activations.values()]
        layers = found.measured["layers"]
        assert [layer["zeros"]["value"] for layer in layers] == pytest.approx([0, *shares])
        assert all(0 < share < 1 for share in shares)
        dense = measure(make_run(tmp_path), limit=1)
        old = replace(dense, measured={**dense.measured, "layers": [{**each} for each in dense.measured["layers"]]})
        for layer in old.measured["layers"]:
            del layer["zeros"]  # as in records older than this quantity
        table = shown([found, dense, old], tmp_path / "rank")["-ranks"]
        assert table.columns[-1].name == "Zeros (%)" and (tmp_path / "rank-zeros.png").is_file()
        zeros = [row[-1].value for row in table.rows]  # type: ignore[union-attr]
        assert zeros[1] == pytest.approx(100 * shares[0]) and zeros[4:8] == [0.0] * 4 and np.isnan(zeros[8:]).all()

    def test_cross_attention_is_measured_on_class_embeddings(self, tmp_path: Path) -> None:
        run = make_run(tmp_path, "depict-ca-tiny")
        found = measure(run, limit=1)
        names = [stage["name"] for stage in found.measured["classes"]]
        assert names == ["decoder.class_embeddings", *(f"decoder.cross_layers.{index}" for index in range(3))]
        assert [stage["position"] for stage in found.measured["classes"]] == [3, 4, 5, 6]
        self_attention, cross = found.measured["projections"]
        assert (self_attention["tokens"], cross["tokens"]) == ("Z", "Q") and cross["positions"] == [3, 4, 5, 6]
        layer = subspace_layers(run.model)["decoder.cross_layers.1"]
        q_BKD = run.model.decoder.class_embeddings.detach()
        expected = coding_rate(q_BKD[:, None] @ layer.bases.detach().mT, 0.1).sum().item()
        assert cross["rate"][1][0]["value"] == pytest.approx(expected, rel=1e-6)  # not normalised
        whole = coding_rate(q_BKD, 0.1).item()
        assert cross["ratio"][1][0]["value"] == pytest.approx(expected / whole, rel=1e-6)

    def test_without_subspaces_the_rest_is_measured(self, tmp_path: Path) -> None:
        measured = measure(make_run(tmp_path, "segmenter-linear-tiny"), limit=2, encoder=True).measured
        assert [layer["position"] for layer in measured["layers"]] == [-2, -1, 0]
        assert measured["projections"] == measured["classes"] == [] and measured["angles"] is None
        assert "has no subspaces: projected coding rates do not apply." in measured["notes"]
        assert any(note.startswith("has no class embeddings") for note in measured["notes"])
        assert all(layer["rate"]["value"] > 0 for layer in measured["layers"])

    def test_layers_can_be_chosen(self, tmp_path: Path) -> None:
        run = make_run(tmp_path, "segmenter-mask-tiny")
        measured = measure(run, limit=1, layers=["encoder.layers.1", "decoder.layers.*"]).measured
        assert [layer["name"] for layer in measured["layers"]] == [
            "encoder.layers.1",
            "decoder.layers.0",
            "decoder.layers.1",
        ]
        assert measured["projections"][0]["positions"] == [1, 2]
        with pytest.raises(
            ConfigError, match=r"--layers 'decoder.layer.0' fits nothing in segmenter-mask-tiny; it has: enc"
        ):
            measure(run, limit=1, layers=["decoder.layer.0"])

    def test_encoder_tokens_are_patches(self, tmp_path: Path) -> None:
        run = make_run(tmp_path)
        measured = measure(run, PLAIN, limit=1, encoder=True).measured
        (sample,) = samples_of(run, 1)
        with record(run.model, "encoder.layers.0.tokens") as activations, torch.no_grad():
            run.model.masks(sample.pixels_B3HW)
        z_BND = activations["encoder.layers.0.tokens"][:, 1:]
        assert measured["layers"][0]["rate"]["value"] == pytest.approx(coding_rate(z_BND, 0.1).mean().item(), rel=1e-6)

    def test_an_image_is_the_mean_of_its_windows_in_any_batches(self, tmp_path: Path) -> None:
        one = make_run(tmp_path, name="one", data__size=64, data__resize=64, inference__batch=1)
        many = make_run(tmp_path, name="many", data__size=64, data__resize=64, inference__batch=3)
        (sample,) = samples_of(one, 1)
        assert len(sample.pixels_B3HW) == 4
        with record(one.model, "decoder.layers.1.tokens") as activations, torch.no_grad():
            one.model.masks(sample.pixels_B3HW)
        expected = coding_rate(activations["decoder.layers.1.tokens"][:, :4], 0.1).mean().item()
        for run in (one, many):
            rate = measure(run, PLAIN, limit=1).measured["layers"][2]["rate"]["value"]
            assert rate == pytest.approx(expected, rel=1e-5)

    def test_an_image_smaller_than_a_patch_is_enlarged(self, tmp_path: Path) -> None:
        run = make_run(tmp_path, data__size=9, data__resize=9)
        rate = measure(run, limit=1).measured["layers"][1]["rate"]
        assert rate["value"] > 0 and rate["low"] is None  # one image has no interval

    def test_same_seed_same_record(self, tmp_path: Path) -> None:
        run = make_run(tmp_path)
        first, second, other = measure(run), measure(run), measure(run, seed=1)
        assert first.measured == second.measured and first.identity == second.identity != other.identity

    def test_weights_that_are_no_numbers(self, tmp_path: Path) -> None:
        run = make_run(tmp_path)
        run.model.decoder.layers[1].step_size.data.fill_(torch.nan)
        with pytest.raises(
            ModelError, match=r"NaN or infinite values in decoder.layers.1.tokens \(image val_00000\) of depict-sa-tiny"
        ):
            measure(run, limit=1)

    def test_what_samples_refuse(self, tmp_path: Path) -> None:
        run = make_run(tmp_path)
        with pytest.raises(ConfigError, match="--limit 0"):
            measure(run, limit=0)
        with pytest.raises((ConfigError, DataError), match="nowhere"):
            measure(run, split="nowhere")


MODELS = ("depict-sa-tiny", "depict-ca-tiny", "segmenter-mask-tiny", "segmenter-linear-tiny")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("runs")
    return [measure(make_run(folder, model), limit=2) for model in MODELS]


class TestRender:
    def test_tables_and_figures(self, records: list[Record], tmp_path: Path) -> None:
        tables = shown(records, tmp_path / "rank")
        assert list(tables) == ["", "-ranks", "-projected", "-ratio", "-classes"]
        names = {path.stem for path in tmp_path.iterdir()}
        assert names == {f"rank-{name}" for name in ("layers", "spectra", "angles", "projected", "projected-classes")}
        assert all(path.stat().st_size > 3000 for path in tmp_path.iterdir())
        assert len(tables[""].rows) == len(tables["-ranks"].rows) == 4 + 4 + 3 + 1
        assert len(tables["-projected"].rows) == 3 + 3 + 3 + 2
        for table in tables.values():
            for word in ("n = 2 images", "shapes val", "eps = 0.1", "sum over heads", "after LayerNorm", "seed 0"):
                assert word in table.caption
            assert table.caption.isascii()  # LaTeX

    def test_own_rates(self, records: list[Record]) -> None:
        rates = records[0].measured["projections"][0]["rate"]
        row = rank_figures.tables(records)[""].rows[2]
        assert row[1] == "decoder.layers.1"
        assert [cell.value for cell in row[4:]] == pytest.approx(singles(rates[1][1:3]))  # type: ignore[union-attr]

    def test_mean_over_heads_leaves_r_c_a_sum(self, tmp_path: Path) -> None:
        run = make_run(tmp_path)
        both = [measure(run, Convention(heads=heads), limit=1) for heads in ("sum", "mean")]
        sums = [rank_figures.tables([one])[""].rows[1][5].value for one in both]  # type: ignore[union-attr]
        assert sums[0] == pytest.approx(sums[1])
        shown = [one.measured["projections"][0]["rate"][0][0]["value"] for one in both]
        assert shown[0] == pytest.approx(3 * shown[1])

    def test_conventions_are_drawn_apart(self, records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: list[tuple[list[str], str]] = []
        monkeypatch.setattr(
            rank_figures, "_draw", lambda group, stem: drawn.append(([each.model for each in group], stem))
        )
        settings = {**records[1].settings, "convention": asdict(convention("crate"))}
        tables = shown([records[0], replace(records[1], settings=settings), records[2]], Path("rank"))
        other = "normed-none-0.1-subspace-sum-patches"
        assert drawn == [
            (["depict-ca-tiny"], "rank-crate"),
            (["depict-sa-tiny", "segmenter-mask-tiny"], f"rank-{other}"),
        ]
        assert {"-crate", f"-{other}-ranks"} < tables.keys()
        assert "scaled to length 1 after projection" in tables["-crate"].caption

    def test_only_a_linear_decoder(self, records: list[Record], tmp_path: Path) -> None:
        assert list(shown(records[-1:], tmp_path / "rank")) == ["", "-ranks"]
        assert {path.stem for path in tmp_path.iterdir()} == {"rank-layers", "rank-spectra"}

    def test_whole_images_are_said(self, records: list[Record]) -> None:
        assert "n = 2 images, mean over an image's windows of 32 px." in rank_figures.tables(records[:1])[""].caption
        whole = replace(records[0], settings={**records[0].settings, "window": None})
        assert "n = 2 images, each shown whole." in rank_figures.tables([whole])[""].caption

    def test_different_data_is_said(self, records: list[Record]) -> None:
        other = replace(records[1], data=replace(records[1].data, name="camvid", images=9), n=9)
        caption = rank_figures.tables([records[0], other])[""].caption
        assert "depict-sa-tiny on shapes val, n = 2; depict-ca-tiny on camvid val, n = 9" in caption


class TestCommand:
    def test_records_can_be_drawn_again(self, call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
        run = make_run(tmp_path, "segmenter-linear-tiny").folder
        code, out, _ = call("rank-analysis", run, "--limit", 2, "--device", "cpu", "-o", tmp_path / "out")
        assert code == 0 and "segmenter-linear-tiny: has no subspaces: projected coding rates do not apply." in out
        written = sorted((tmp_path / "out" / "records").iterdir())
        stored = [json.loads(path.read_text()) for path in written]
        assert {one["kind"] for one in stored} == {"rank-analysis"}
        assert stored[0]["settings"]["convention"]["eps"] == 0.1
        assert call("render", tmp_path / "out" / "records", "-o", tmp_path / "again")[0] == 0
        for kind in ("figures", "tables"):
            drawn, again = (sorted((tmp_path / at / kind).iterdir()) for at in ("out", "again"))
            assert len(drawn) == len(again) > 0
            if kind == "tables":  # a label of LaTeX is the name of its file
                texts = [[re.sub(r"\\label{.*}\n", "", path.read_text()) for path in at] for at in (drawn, again)]
                assert texts[0] == texts[1]

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--eps", "0"], 2, "eps=0.0 is impossible"),
            (["--eps", "-1"], 2, "eps=-1.0 is impossible"),
            (["--eps", "1e-12"], 2, "eps=1e-12 is too small for double precision"),
            (["--preset", "mcr"], 2, "choose crate or cbsa"),
            (["--heads", "max"], 2, "choose sum or mean"),
            (["--layers", "decoder.layers.9"], 2, "it has: encoder.layers.0"),
            (["--dataset", "camvit"], 2, "did you mean 'camvid'?"),
        ],
    )
    def test_errors_are_one_line(
        self,
        call: Callable[..., tuple[int, str, str]],
        tmp_path: Path,
        arguments: list[str],
        code: int,
        message: str,
    ) -> None:
        run = make_run(tmp_path).folder
        found, _, err = call("rank-analysis", run, "--device", "cpu", "--limit", 1, "-o", tmp_path / "out", *arguments)
        assert (found, err.count("\n")) == (code, 1) and err.startswith("error: ") and message in err
