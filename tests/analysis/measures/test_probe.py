"""`whitebox probe`: what it measures of each decoder, beside the same by hand, and how it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from asking import asked, samples_of, shown
from tiny_runs import tiny_run

from analysis.consumed import Chosen, Images
from analysis.maths.collapse import collapse
from analysis.measures.layer_probes import _held_out, groups_of
from analysis.measures.probe import Probe
from analysis.record import Record
from whitebox.config import resolve
from whitebox.data.images import IGNORE
from whitebox.engine.metrics import scores
from whitebox.errors import ConfigError, DataError
from whitebox.models.taps import record
from whitebox.runs import Run, open_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for model in ("depict-sa-tiny", "depict-ca-tiny", "segmenter-linear-tiny", "segvit-tiny"):
        own = {"decoder__encoder_layers": [0, 1]} if model.startswith("segvit") else {}
        tiny_run(folder / model, model, **own)
    return folder


def opened(runs: Path, model: str = "depict-sa-tiny", *overrides: str) -> Run:
    return open_run(runs / model, overrides=overrides, device="cpu")


def by_hand(run: Run, tap: str, limit: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens of labelled patches, their labels, and what the decoder says."""
    tokens, labels, said = [], [], []
    for sample in samples_of(run, limit):
        known = sample.labels_Bhw.flatten(1) != IGNORE
        with torch.no_grad(), record(run.model, tap) as activations:
            masks = run.model.masks(sample.pixels_B3HW)
        tokens.append(activations[tap][:, : known.shape[1]][known])
        labels.append(sample.labels_Bhw.flatten(1)[known])
        said.append(masks.flatten(2).argmax(1)[known])
    return torch.cat(tokens), torch.cat(labels), torch.cat(said)


@pytest.fixture(scope="module")
def found(runs: Path) -> Record:
    return asked(Probe(encoder=True), opened(runs))


class TestMeasured:
    def test_layers_of_encoder_and_decoder(self, found: Record) -> None:
        names = [layer["name"] for layer in found.measured["layers"]]
        assert names == [
            *(f"encoder.layers.{i}" for i in range(2)),
            "decoder.input",
            *(f"decoder.layers.{i}" for i in range(3)),
        ]
        assert [layer["position"] for layer in found.measured["layers"]] == [-2, -1, 0, 1, 2, 3]
        assert found.n == 3 and found.measured["fitted"] == {"patches": 48, "images": 12}
        for layer in found.measured["layers"]:
            assert 0 <= layer["miou"]["value"] <= 1 and 0 <= layer["nmi"]["value"] <= 1 and layer["nc1"]["value"] > 0
            assert layer["rate"]["value"] >= layer["reduction"]["value"] >= 0

    def test_output_is_what_the_decoder_says_of_the_patches(self, runs: Path, found: Record) -> None:
        _, label_N, said_N = by_hand(opened(runs), "decoder.input", 3)
        counts = [np.bincount(each, minlength=7) for each in (said_N[said_N == label_N], said_N, label_N)]
        expected = scores(np.stack(counts))
        assert found.measured["output"]["miou"]["value"] == pytest.approx(expected.miou)
        assert found.measured["judged"]["patches"] == len(label_N)

    def test_geometry_is_of_the_tokens_after_layernorm(self, runs: Path, found: Record) -> None:
        z_ND, label_N, _ = by_hand(opened(runs), "decoder.layers.1.tokens", 3)
        normed_ND = F.layer_norm(z_ND, z_ND.shape[-1:]).double().numpy()
        (layer,) = (each for each in found.measured["layers"] if each["name"] == "decoder.layers.1")
        numbers = [layer[key]["value"] for key in ("nc1", "lengths", "angles")]
        np.testing.assert_allclose(numbers, collapse(normed_ND, label_N.numpy()), rtol=1e-3)
        raw = asked(Probe(tokens="raw", layers="decoder.layers.1"), opened(runs)).measured["layers"][0]
        np.testing.assert_allclose(raw["nc1"]["value"], collapse(z_ND.double().numpy(), label_N.numpy())[0], rtol=1e-3)

    def test_energies_are_those_of_what_a_layer_projects(self, runs: Path, found: Record) -> None:
        run = opened(runs)
        _, label_N, _ = by_hand(run, "decoder.input", 3)
        layer: Any = run.model.decoder.layers[1]
        seen_N24, _, _ = by_hand(run, "decoder.layers.0.tokens", 3)
        with torch.no_grad():
            seen_N24 = layer.norm(seen_N24).double()
        energy = found.measured["energies"][1]
        assert energy["name"] == "decoder.layers.1" and energy["random"] == [8 / 24] * 3
        for head, u_PD in enumerate(layer.bases.detach().double()):
            inside_N24 = seen_N24 @ torch.linalg.pinv(u_PD) @ u_PD
            for c in label_N.unique().tolist():
                of = label_N == c
                expected = inside_N24[of].square().sum() / seen_N24[of].square().sum()
                assert energy["shares"][c][head]["value"] == pytest.approx(expected.item(), rel=1e-5)

    def test_tables_and_figures(self, runs: Path, found: Record, tmp_path: Path) -> None:
        linear = asked(Probe(), opened(runs, "segmenter-linear-tiny"))
        tables = shown([found, linear], tmp_path / "probe")
        assert set(tables) == {"", "-classes", "-rates", "-energies"}
        assert [row[1] for row in tables[""].rows][-2:] == ["decoder.input", "output"]
        assert {path.name for path in tmp_path.glob("*.png")} == {"probe.png", "probe-energies.png"}
        assert "labelled patches of 12 images of train" in tables[""].caption
        assert set(shown([linear], tmp_path / "linear")) == {"", "-classes", "-rates"}

    def test_what_does_not_apply_is_said_and_the_rest_measured(self, runs: Path) -> None:
        measured = asked(Probe(encoder=True, layers="encoder.layers.1"), opened(runs, "segvit-tiny")).measured
        assert measured["energies"] == [] and len(measured["layers"]) == 2
        assert any("energies do not apply" in note for note in measured["notes"])
        chosen = Probe(layers="decoder.layers.0")
        assert asked(chosen, opened(runs, "depict-ca-tiny")).measured["energies"][0]["name"] == "decoder.layers.1"

    def test_a_class_that_never_occurs_is_named(self, found: Record, runs: Path) -> None:
        few = asked(Probe(layers="decoder.input"), opened(runs), limit=1).measured
        absent = [
            name
            for name, iou in zip(few["classes"], few["layers"][0]["class_rates"], strict=True)
            if np.isnan(iou["value"] or np.nan)
        ]
        (note,) = (each for each in few["notes"] if "geometry" in each)
        assert absent and all(name in note for name in absent[:6])

    def test_training_images_are_said_to_be_read_by_their_own_readers(self, runs: Path) -> None:
        own = asked(Probe(layers="decoder.input"), opened(runs), split="train").measured
        assert any("readers were fitted on images of the split" in note for note in own["notes"])

    def test_fewer_images_and_patches(self, runs: Path) -> None:
        found = asked(Probe(layers="decoder.input", train_images=6, patches=20), opened(runs))
        assert found.measured["fitted"] == {"patches": 24, "images": 6} and found.measured["judged"]["sample"] == 12


class TestRefuses:
    def test_too_few_labelled_patches(self, runs: Path) -> None:
        with pytest.raises(DataError, match=r"2 images of shapes train have 8 labelled patches .* fitted on 10 of two"):
            asked(Probe(train_images=2), opened(runs, "depict-sa-tiny", "data.train_length=2"))

    def test_an_unknown_layer(self, runs: Path) -> None:
        with pytest.raises(ConfigError, match=r"--layers 'decoder.layers.9' fits nothing"):
            asked(Probe(layers="decoder.layers.9"), opened(runs))

    @pytest.mark.parametrize("options", [{"patches": 0}, {"train_images": 0}, {"tokens": "cooked"}, {"eps": 0.0}])
    def test_impossible_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            Probe(**options)

    def test_an_eps_too_small_for_doubles_is_refused_at_the_first_image(self, runs: Path) -> None:
        passed: list[int] = []
        with pytest.raises(ConfigError, match="too small for double precision"):
            asked(Probe(eps=1e-9), opened(runs), advance=lambda done, _total: passed.append(done))
        assert not passed

    def test_a_dataset_for_evaluation_only(self, runs: Path) -> None:
        run = opened(runs)
        run.config.data.train_split = ""
        with pytest.raises(ConfigError, match="shapes is for evaluation only: there are no training images to fit on"):
            Probe().settings(run)


def test_what_is_held_out_is_whole_units() -> None:
    unit_N = [f"drive {index // 4}" for index in range(40)]
    image_N = np.repeat(np.arange(40), 3)
    held_N = _held_out(unit_N, image_N, seed=0)
    assert held_N.sum() == 24 and all(len(set(held_N[image_N // 4 == unit])) == 1 for unit in range(10))
    few = _held_out(["one"] * 10, np.arange(10), seed=0)  # images, where there are too few units
    assert few.sum() == 2 and _held_out(["one"], np.zeros(10, int), seed=0).sum() == 2


def test_groups_are_of_whole_units() -> None:
    unit_N = [str(index // 2) for index in range(100)]
    group_N = groups_of(unit_N)
    assert len(set(group_N)) == 20 and all(group_N[index] == group_N[index + 1] for index in range(0, 100, 2))
    assert groups_of(["a", "a", "b"]).tolist() == [0, 0, 1]


def test_which_images_are_fitted_on_is_part_of_the_question(runs: Path) -> None:
    def identity(*overrides: str, **options: Any) -> str:
        run, measurement = opened(runs, "depict-sa-tiny", *overrides), Probe(**options)
        return measurement.question(run, Images(run, Chosen())).identity

    before = identity()
    assert identity() == before
    assert (
        len(
            {
                before,
                identity("data.train_length=11"),
                identity(train_images=6),
                identity(seed=1),
                identity(encoder=True),
            }
        )
        == 5
    )
    assert resolve("depict-sa-tiny", "shapes", {}).data.train_split == "train"
