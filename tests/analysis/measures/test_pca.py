from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import asked, shown
from child_runs import TINY
from PIL import Image

from analysis.maths.components import as_colours, mutual_information, nearest_direction, principal_components
from analysis.maths.packing import unpack
from analysis.measures.pca import PCA
from analysis.measures.samples import open_photo, predicted_patches, read_truth
from analysis.record import Record, RecordError, read_record, write_record
from analysis.show import pca as pictures
from analysis.show.render import render
from whitebox.config import resolve
from whitebox.data.readers import class_table
from whitebox.engine.checkpoint import save_model
from whitebox.errors import ConfigError, DataError, ModelError
from whitebox.models import build, record
from whitebox.runs import Run, open_run


def measure(run: Run, photos: list[Path], truth: list[Path] | None = None, directions: int | None = None) -> Record:
    return asked(PCA(truth=truth, directions=directions), run, photos=photos)


def unpack_tensor(lines: list[str]) -> torch.Tensor:
    return torch.from_numpy(unpack(lines))


Call = Callable[..., tuple[int, str, str]]
MODELS = ("depict-ca-tiny", "segmenter-mask-tiny", "segmenter-linear-tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained runs of 7 classes; photos of 2 x 4 patches when shown to them, and labels."""
    folder = tmp_path_factory.mktemp("pca")
    torch.manual_seed(0)
    for name in MODELS:
        keys = {key: value for key, value in TINY.items() if "segmenter" not in name or key != "decoder.head_dim"}
        config = resolve(name, "shapes", keys)
        save_model(folder / name / "model.safetensors", build(config.encoder, config.decoder, 7), config)
    generator = np.random.default_rng(0)
    (folder / "labels").mkdir()
    for name in ("one", "two"):
        Image.fromarray(generator.integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(folder / f"{name}.jpg")
        label = np.full((50, 90), 3, np.uint8)
        label[:25, :40], label[:, 80:] = 6, 255
        Image.fromarray(label).save(folder / "labels" / f"{name}.png")
    return folder


def opened(folder: Path, name: str) -> Run:
    return open_run(folder / name, device="cpu")


class TestComponents:
    def test_axes_of_a_cloud(self) -> None:
        """Tokens on orthogonal axes of known spread, turned, and moved away from the origin."""
        generator = torch.Generator().manual_seed(0)
        turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))
        offsets = torch.zeros(6, 5, dtype=torch.float64)
        for index, size in enumerate((3.0, 2.0, 1.0)):
            offsets[2 * index, index], offsets[2 * index + 1, index] = size, -size
        found = principal_components(offsets @ turn + 100, 5)
        torch.testing.assert_close(found.shares_P, torch.tensor([9, 4, 1, 0, 0], dtype=torch.float64) / 14)
        cosines = (found.directions_PD[:3] @ turn.T[:, :3]).abs()
        torch.testing.assert_close(cosines, torch.eye(3, dtype=torch.float64))
        torch.testing.assert_close(found.scores_NP[:, :3].abs(), offsets[:, :3].abs())
        largest = found.directions_PD.gather(1, found.directions_PD.abs().argmax(1, keepdim=True))
        assert (largest > 0).all()

    def test_neither_order_nor_sign_of_tokens_matters(self) -> None:
        z = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
        order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
        first, second, mirrored = (principal_components(each, 4) for each in (z, z[order], -z))
        torch.testing.assert_close(first.directions_PD, second.directions_PD)
        torch.testing.assert_close(first.directions_PD, mirrored.directions_PD)
        torch.testing.assert_close(first.scores_NP, -mirrored.scores_NP)

    def test_tokens_without_spread(self) -> None:
        for z in (torch.ones(6, 4), torch.ones(1, 4)):
            found = principal_components(z, 3)
            assert torch.isnan(found.shares_P).all() and (found.scores_NP == 0).all()
            assert (as_colours(found.scores_NP) == 0.5).all()
            assert (nearest_direction(found.scores_NP) == 0).all()

    def test_both_ends_of_a_direction_are_segments(self) -> None:
        scores = torch.tensor([[3.0, 1.0], [-3.0, 1.0], [0.1, 0.5], [0.1, -0.5], [0.0, 0.0]])
        assert nearest_direction(scores).tolist() == [0, 1, 2, 3, 0]

    def test_colours_from_percentile_to_percentile(self) -> None:
        score = torch.arange(101, dtype=torch.float64)
        score[-1] = 1e6  # one outlier does not make the rest black
        colours = as_colours(score[:, None])
        assert colours.shape == (101, 3) and (colours[:, 1:] == 0.5).all()
        assert colours[:2, 0].tolist() == [0, 0] and colours[99:, 0].tolist() == [1, 1]
        assert colours[50, 0] == pytest.approx(0.5)


class TestMutualInformation:
    def test_what_it_is_for_known_tables(self) -> None:
        a = torch.tensor([0, 0, 1, 1, 2, 2])
        assert mutual_information(a, a) == pytest.approx(1)
        assert mutual_information(torch.tensor([7, 7, 300, 300, 0, 0]), a) == pytest.approx(1)  # numbers are only names
        assert mutual_information(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])) == pytest.approx(0, abs=1e-12)
        # halves against quarters: I = ln 2, H = ln 2 and ln 4
        halves, quarters = torch.tensor([0, 0, 1, 1]), torch.arange(4)
        assert mutual_information(halves, quarters) == pytest.approx(2 / 3)

    def test_ignored_labels(self) -> None:
        segments, labels = torch.tensor([0, 1, 1, 0]), torch.tensor([4, 5, 255, 255])
        assert mutual_information(segments, labels) == pytest.approx(1)
        assert math.isnan(mutual_information(segments, torch.full((4,), 255)))
        assert math.isnan(mutual_information(torch.zeros(3), torch.zeros(3)))
        assert mutual_information(torch.zeros(4), torch.tensor([0, 1, 0, 1])) == 0


class TestMeasure:
    def test_tokens_are_those_before_and_after_the_layers(self, folder: Path) -> None:
        run = opened(folder, "segmenter-mask-tiny")
        stored = measure(run, [folder / "one.jpg"]).measured["photos"][0]
        photo = open_photo(folder / "one.jpg", run)
        with record(run.model, "decoder.*") as taps:
            prediction = predicted_patches(run, photo)
        assert torch.equal(unpack_tensor(stored["prediction"]).long(), prediction)
        for state, name in zip(stored["states"], ("decoder.input", "decoder.layers.1.tokens"), strict=True):
            assert state["activation"] == name
            expected = principal_components(taps[name][0, :8], 7)  # 8 patches, then class embeddings
            assert unpack_tensor(state["segments"]).flatten().tolist() == nearest_direction(expected.scores_NP).tolist()
            shares = [state["numbers"][f"component_{index}"] for index in (1, 2, 3)]
            assert shares == pytest.approx(expected.shares_P[:3].tolist())
            assert state["numbers"]["all"] == pytest.approx(1)  # 8 centred tokens have 7 dimensions
            colours = torch.stack([unpack_tensor(lines) for lines in state["colours"]], -1).flatten(0, 1)
            torch.testing.assert_close(colours, as_colours(expected.scores_NP), rtol=1e-4, atol=1e-5)

    def test_agreement_with_the_truth(self, folder: Path) -> None:
        run = opened(folder, "depict-ca-tiny")
        stored = measure(run, [folder / "one.jpg"], [folder / "labels" / "one.png"]).measured["photos"][0]
        truth = unpack_tensor(stored["truth"])
        assert truth.tolist() == [[6, 6, 3, 3], [3, 3, 3, 3]]
        for state in stored["states"]:
            segments = unpack_tensor(state["segments"]).flatten()
            assert state["numbers"]["nmi_truth"] == pytest.approx(mutual_information(segments, truth.flatten()))
            assert state["numbers"]["segments"] == len(set(segments.tolist()))
        prediction = unpack_tensor(stored["prediction"]).flatten()
        agreement = mutual_information(prediction, truth.flatten())
        assert stored["numbers"]["nmi_truth"] == pytest.approx(agreement, nan_ok=True)

    def test_directions_to_segment_by(self, folder: Path) -> None:
        run = opened(folder, "depict-ca-tiny")
        stored = measure(run, [folder / "one.jpg"], directions=1).measured["photos"][0]
        for state in stored["states"]:
            assert set(unpack_tensor(state["segments"]).flatten().tolist()) == {0, 1}
            assert state["numbers"]["all"] == state["numbers"]["component_1"] > state["numbers"]["component_3"]

    def test_more_directions_than_dimensions(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match=r"--directions 25 is impossible: .* have 1 to 24"):
            measure(opened(folder, "depict-ca-tiny"), [folder / "one.jpg"], directions=25)
        config = resolve("depict-sa-tiny", "shapes", TINY)
        many = Run("many", folder / MODELS[0] / "model.safetensors", build(config.encoder, config.decoder, 30), config)
        assert measure(many, [folder / "one.jpg"]).measured["directions"] == 24

    def test_means_over_photos(self, folder: Path) -> None:
        paths = [folder / "one.jpg", folder / "two.jpg"]
        found = measure(opened(folder, "depict-ca-tiny"), paths, [folder / "labels"])
        assert found.n == 2 and found.data.images == 2
        for index, state in enumerate(("Z_0", "Z_L")):
            singles = [photo["states"][index]["numbers"]["component_1"] for photo in found.measured["photos"]]
            mean = found.measured["means"][state]["component_1"]
            assert mean["value"] == pytest.approx(sum(singles) / 2)
            assert mean["low"] is None and mean["high"] is None  # two photos have no interval
        assert set(found.measured["means"]) == {"Z_0", "Z_L", "prediction"}

    def test_a_decoder_without_layers(self, folder: Path) -> None:
        found = measure(opened(folder, "segmenter-linear-tiny"), [folder / "one.jpg"])
        assert [state["name"] for state in found.measured["photos"][0]["states"]] == ["Z_0"]
        assert found.measured["notes"] == ["no patch tokens leave decoder layers: Z_L does not apply."]

    def test_weights_that_are_not_finite(self, folder: Path) -> None:
        run = opened(folder, "depict-ca-tiny")
        with torch.no_grad():
            run.model.decoder.layers[0].basis[0, 0] = math.nan
        with pytest.raises(ModelError, match="NaN or infinite values in decoder"):
            measure(run, [folder / "one.jpg"])

    def test_what_does_not_fit(self, folder: Path, tmp_path: Path) -> None:
        run, one, label = opened(folder, "depict-ca-tiny"), folder / "one.jpg", folder / "labels" / "one.png"
        with pytest.raises(ConfigError, match="There are 1 photos and 2 labels: repeat --truth once for each photo"):
            measure(run, [one], [label, label])
        with pytest.raises(DataError, match=r"Label .*one\.png cannot be opened"):
            measure(run, [one], [tmp_path])
        Image.fromarray(np.zeros((50, 91), np.uint8)).save(tmp_path / "wide.png")
        with pytest.raises(DataError, match=r"wide\.png is 91 x 50 px but the photo .* is 90 x 50 px"):
            measure(run, [one], [tmp_path / "wide.png"])
        Image.fromarray(np.full((50, 90), 9, np.uint8)).save(tmp_path / "many.png")
        with pytest.raises(DataError, match=r"many\.png holds the value 9, which none of the 7 classes"):
            measure(run, [one], [tmp_path / "many.png"])
        with pytest.raises(DataError, match=r"nowhere\.jpg cannot be opened"):
            measure(run, [tmp_path / "nowhere.jpg"])

    def test_stored_values_mean_what_they_mean_in_the_dataset(self, folder: Path, tmp_path: Path) -> None:
        """In ADE20K 0 is ignored and k is class k - 1; Cityscapes stores ids."""
        photo = open_photo(folder / "one.jpg", opened(folder, "depict-ca-tiny"))
        Image.fromarray(np.full((50, 90), 7, np.uint8)).save(tmp_path / "label.png")
        for dataset, classes, expected in (("ade20k", 150, 6), ("cityscapes", 19, 0), ("camvid", 11, 7)):
            config = resolve("segmenter-linear-tiny", dataset)
            run = Run("run", Path("x"), build(config.encoder, config.decoder, classes), config)
            assert (
                read_truth(tmp_path / "label.png", photo, run, class_table(run.data, run.classes)) == expected
            ).all()

    def test_a_photo_of_one_patch(self, folder: Path, tmp_path: Path) -> None:
        Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(tmp_path / "dot.png")
        run = opened(folder, "depict-ca-tiny")
        run.config.data.resize = 16
        found = measure(run, [tmp_path / "dot.png"])
        numbers = found.measured["photos"][0]["states"][0]["numbers"]
        assert numbers["component_1"] is None and numbers["segments"] == 1
        (table,) = shown([found], tmp_path / "figure").values()
        assert table.columns[-1].name == "Segments"  # neither truth nor anything to agree on
        assert (tmp_path / "figure.png").is_file()


class TestRender:
    def test_a_record_is_enough(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        truths = [Path("labels/one.png")]
        found = [measure(opened(folder, name), [folder / "one.jpg"], truths) for name in MODELS[1:]]
        stored = [read_record(write_record(each, tmp_path / "records")) for each in found]
        render(found, tmp_path / "first")
        render(stored, tmp_path / "second")
        written = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").glob("**/*.*"))
        assert {path.suffix for path in written} == {".png", ".pdf", ".csv", ".md", ".tex"}
        for path in written:
            assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes()

    def test_tables(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = []
        monkeypatch.setattr(pictures, "_draw", lambda holders, path: drawn.append((len(holders), path.name)))
        paths = [folder / "one.jpg", folder / "two.jpg"]
        found = [measure(opened(folder, name), paths, [folder / "labels"]) for name in MODELS]
        tables = shown(found, tmp_path / "pca")
        assert [row[2] for row in tables[""].rows] == 2 * (2 * ["Z_0", "Z_L", "prediction"]) + 2 * ["Z_0", "prediction"]
        assert [row[1] for row in tables["-means"].rows] == 8 * ["mean of 2"]
        assert tables[""].columns[-1].name == "NMI truth" and "nearest end of 7 directions" in tables[""].caption
        assert "95 % interval over photos" in tables["-means"].caption
        assert drawn == [(3, "pca-1-one"), (3, "pca-2-two")]

    def test_more_segments_than_a_byte_counts(self, folder: Path) -> None:
        stored = {"shown": [320, 320], "patch": 16}
        painted = pictures._segments_over(np.zeros((20, 20, 3), np.uint8), np.arange(400.0).reshape(20, 20), stored)
        assert painted.shape == (20, 20, 3) and len(np.unique(painted.reshape(-1, 3), axis=0)) > 200

    def test_agreement_stands_beside_that_by_chance(self, folder: Path) -> None:
        """With a segment a patch it is the same however patches are shuffled; of large halves it is next to nothing."""
        random = np.random.default_rng(0)
        labels = random.integers(0, 4, 60)
        alone = mutual_information(torch.arange(60), torch.from_numpy(labels))
        assert 0.4 < alone == pytest.approx(pictures._by_chance(np.arange(60), labels))
        halves, quarters = random.integers(0, 2, 4000), random.integers(0, 4, 4000)
        assert 0 < pictures._by_chance(halves, quarters) < 0.002
        few = [random.permutation(np.repeat([0, 1], 4)) for _ in range(2000)]
        expected = np.mean([mutual_information(torch.from_numpy(each), torch.from_numpy(few[0])) for each in few])
        assert pictures._by_chance(few[0], few[0]) == pytest.approx(expected, abs=0.06)
        assert pictures._by_chance(few[1] * 7 + 2, few[2]) == pictures._by_chance(few[1], few[2])  # any names
        ignored = np.where(np.arange(60) < 50, labels, 255)
        assert pictures._by_chance(np.arange(60), ignored) == pytest.approx(
            mutual_information(torch.arange(50), torch.from_numpy(labels[:50]))
        )
        assert math.isnan(pictures._by_chance(np.arange(3), np.full(3, 255)))
        stored = {"truth": [" ".join(map(str, labels))], "prediction": ["0 " * 60]}
        text = pictures._agreement({"nmi_truth": 0.71, "nmi_prediction": 0.2}, np.arange(60)[None], stored)
        assert text == f"NMI 0.71, by chance {alone:.2f}"
        assert pictures._agreement({"nmi_truth": None, "nmi_prediction": None}, np.arange(60)[None], stored) == ""

    @pytest.mark.parametrize("truth", [True, False])
    def test_panels_of_the_figure(self, folder: Path, monkeypatch: pytest.MonkeyPatch, truth: bool) -> None:
        """Photo, truth and the legend in the first line, five panels a run below it; nothing is cut or covered."""
        caught: list[Any] = []
        monkeypatch.setattr(pictures, "save_figure", lambda figure, path, dpi: caught.append(figure))
        labels = [folder / "labels" / "one.png"] if truth else None
        found = [measure(opened(folder, name), [folder / "one.jpg"], labels) for name in MODELS]
        pictures.figures(found, Path("unused"))
        (figure,) = caught
        figure.draw_without_rendering()
        grid = np.array(figure.axes, object).reshape(4, 5)
        filled = [[bool(axes.images) for axes in line] for line in grid]
        assert filled == [[True, truth, False, False, False], [True] * 5, [True] * 5, [True] * 2 + [False] * 2 + [True]]
        titles = [[axes.get_title().partition("\n")[0] for axes in line] for line in grid[:2]]
        assert titles[0] == ["photo", "ground truth of patches" if truth else "", "", "", ""]
        heads = [title.partition(":")[0].partition(",")[0] for title in titles[1]]
        assert heads == ["Z_0", "Z_0", "Z_L", "Z_L", "prediction"]
        assert [line[0].texts[0].get_text().replace("\n", "") for line in grid[1:]] == list(MODELS)
        for line in grid[1:]:
            agreed = [axes.get_title() for axes in line if "segments" in axes.get_title()]
            assert all(("by chance" in title) for title in agreed) and agreed
        (legend,) = (axes.get_legend() for axes in grid.flat if axes.get_legend() is not None)
        extent = legend.get_window_extent()
        boxes = [axes.get_window_extent() for axes in grid[0]]
        assert boxes[1].x1 < extent.x0 and extent.x1 <= figure.bbox.x1  # where the line would be empty
        assert extent.y0 > max(axes.title.get_window_extent().y1 for axes in grid[1])
        assert extent.height <= boxes[0].height + 10 and extent.width > boxes[0].width
        for line in grid:
            spans = [axes.title.get_window_extent() for axes in line if axes.get_title()]
            assert all(left.x1 <= right.x0 for left, right in pairwise(spans))
            assert (
                spans[0].x0 >= 0 and spans[-1].x1 <= figure.bbox.x1 and max(each.y1 for each in spans) <= figure.bbox.y1
            )

    def test_a_changed_photo(self, folder: Path, tmp_path: Path) -> None:
        photo = tmp_path / "photo.png"
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(photo)
        found = measure(opened(folder, "depict-ca-tiny"), [photo])
        Image.fromarray(np.ones((40, 40, 3), np.uint8)).save(photo)
        with pytest.raises(RecordError, match=r"photo\.png has changed since it was measured"):
            shown([found], tmp_path / "figure")


class TestCommand:
    def test_runs_photos_and_truth(self, folder: Path, tmp_path: Path, call: Call) -> None:
        arguments = [*(folder / name for name in MODELS[1:]), folder / "one.jpg"]
        code, out, err = call("pca", *arguments, "--truth", folder / "labels", "--device", "cpu", "-o", tmp_path)
        assert code == 0, err
        assert "NMI truth" in out and "segmenter-linear-tiny: no patch tokens leave decoder layers" in out
        assert len(list((tmp_path / "records").iterdir())) == 2
        assert len(list((tmp_path / "figures").glob("*.png"))) == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["depict-ca-tiny"], "No photo is named"),
            (["depict-ca-tiny", "one.jpg", "--truth", "a.png", "--truth", "b.png"], "1 photos and 2 labels"),
            (["depict-ca-tiny", "labels/nowhere.png"], "nowhere.png cannot be opened"),
        ],
    )
    def test_errors(
        self,
        folder: Path,
        call: Call,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        arguments: list[str],
        message: str,
    ) -> None:
        monkeypatch.chdir(folder)
        code, _, err = call("pca", *arguments, "--device", "cpu", "-o", tmp_path)
        assert code != 0 and err.startswith("error: ") and err.count("\n") == 1
        assert message in err


def test_the_truth_is_resized_to_classes_that_are_there(folder: Path, tmp_path: Path) -> None:
    """Classes 2 and 6 alone: a class between them is in no photo. Nearest: source pixel floor(i old / new)."""
    label = np.random.default_rng(0).choice([2, 6], (50, 90)).astype(np.uint8)
    Image.fromarray(label).save(tmp_path / "mixed.png")
    run = opened(folder, "depict-ca-tiny")
    stored = measure(run, [folder / "one.jpg"], [tmp_path / "mixed.png"]).measured["photos"][0]
    resized = label[(np.arange(32) * 50 // 32)[:, None], np.arange(58) * 90 // 58]
    expected = [
        [int(np.bincount(resized[y : y + 16, x : x + 16].ravel()).argmax()) for x in range(0, 58, 16)] for y in (0, 16)
    ]
    assert unpack_tensor(stored["truth"]).tolist() == expected
