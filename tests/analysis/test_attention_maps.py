from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from child_runs import TINY
from golden_vectors import load_npz, vector_file
from PIL import Image

from analysis import attention_maps, photos
from analysis.attention_maps import Choice, attention, attention_layers, map_numbers, measure, rollout
from analysis.records import Record, RecordError, read_record, write_record
from analysis.render import render
from analysis.samples import Photo
from whitebox.config import resolve
from whitebox.engine.checkpoint import save_model
from whitebox.errors import ConfigError, DataError, ModelError
from whitebox.models import build
from whitebox.runs import Run, open_run

Call = Callable[..., tuple[int, str, str]]
MODELS = ("depict-sa-tiny", "depict-ca-tiny", "segmenter-mask-tiny", "segmenter-linear-tiny", "cbsa-tiny", "tost-tiny")
CLASSES = "background, disc, square, triangle, star, cross, egg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained runs of 7 classes, and photos of 32 x 58 px when shown to them: 2 x 4 patches."""
    folder = tmp_path_factory.mktemp("attention")
    torch.manual_seed(0)
    for name in MODELS:
        keys = {key: value for key, value in TINY.items() if "segmenter" not in name or key != "decoder.head_dim"}
        config = resolve(name, "shapes", keys)
        model = build(config.encoder, config.decoder, 7, tuple(CLASSES.split(", ")))
        save_model(folder / name / "model.safetensors", model, config)
    generator = np.random.default_rng(0)
    for name in ("photo.png", "other.jpg"):
        Image.fromarray(generator.integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(folder / name)
    return folder


def opened(folder: Path, name: str) -> Run:
    return open_run(folder / name, device="cpu")


def maps_of(folder: Path, name: str, choice: Choice, photo: str = "photo.png") -> list[dict[str, Any]]:
    return measure(opened(folder, name), [folder / photo], choice).measured["photos"][0]["maps"]


def values(each: dict[str, Any]) -> torch.Tensor:
    return photos.unpack(each["values"])


class TestNumbers:
    def test_uniform_attention(self) -> None:
        region = torch.tensor([[True, False, False], [False, False, True]])
        numbers = map_numbers(torch.full((6,), 0.1), (2, 3), region, (0, 0))
        assert numbers["on_patches"] == pytest.approx(0.6)
        assert numbers["maximum"] == pytest.approx(0.1)
        assert numbers["entropy"] == pytest.approx(math.log(6))
        assert numbers["entropy_share"] == pytest.approx(1)
        assert numbers["in_region"] == pytest.approx(numbers["region"]) == pytest.approx(2 / 6)
        assert numbers["distance"] == pytest.approx((0 + 1 + 2 + 1 + math.sqrt(2) + math.sqrt(5)) / 6)

    def test_one_patch_takes_all(self) -> None:
        row = torch.tensor([0.0, 0.0, 0.0, 0.7])
        numbers = map_numbers(row, (2, 2), torch.tensor([[False, False], [False, True]]), (0, 1))
        assert numbers["entropy"] == numbers["entropy_share"] == 0
        assert (numbers["in_region"], numbers["region"], numbers["distance"]) == (1, 0.25, 1)

    def test_what_does_not_apply_is_missing(self) -> None:
        numbers = map_numbers(torch.tensor([0.5]), (1, 1), None, None)
        assert all(math.isnan(numbers[key]) for key in ("entropy_share", "in_region", "region", "distance"))
        nowhere = map_numbers(torch.tensor([0.5, 0.5]), (1, 2), torch.zeros(1, 2, dtype=torch.bool), None)
        assert math.isnan(nowhere["in_region"]) and nowhere["region"] == 0
        nothing = map_numbers(torch.zeros(2), (1, 2), torch.ones(1, 2, dtype=torch.bool), (0, 0))
        assert nothing["on_patches"] == 0 and math.isnan(nothing["entropy"]) and math.isnan(nothing["distance"])


class TestRollout:
    def test_layers_of_all_tokens(self) -> None:
        first, second = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
        expected = (second + torch.eye(5)) / 2 @ (first + torch.eye(5)) / 2
        torch.testing.assert_close(rollout([first, second], [0, 0], 5, range(5)), expected)
        torch.testing.assert_close(rollout([first, second], [0, 0], 5, [3]), expected[3:4])

    def test_tokens_that_a_layer_leaves_alone(self) -> None:
        """Two layers between 3 patches, then one in which 2 classes look at patches, as in DEPICT-CA."""
        generator = torch.Generator().manual_seed(1)
        among, cross = (
            torch.rand(3, 3, generator=generator).softmax(-1),
            torch.rand(2, 3, generator=generator).softmax(-1),
        )
        full_among, full_cross = torch.eye(5), torch.eye(5)
        full_among[:3, :3] = (among + torch.eye(3)) / 2
        full_cross[3:] = torch.cat([cross, torch.eye(2)], 1) / 2
        found = rollout([among, among, cross], [0, 0, 3], 5, [3, 4, 0])
        torch.testing.assert_close(found, (full_cross @ full_among @ full_among)[[3, 4, 0]])
        torch.testing.assert_close(found.sum(1), torch.ones(3))


class TestLayers:
    def test_what_rows_belong_to(self, folder: Path) -> None:
        joined, patches, classes, none = map(frozenset, (("patch", "class"), ("patch",), ("class",), ()))
        expected = {
            "depict-sa-tiny": {f"decoder.layers.{index}.attention": joined for index in range(3)},
            "depict-ca-tiny": {
                **{f"decoder.layers.{index}.attention": patches for index in range(3)},
                **{f"decoder.cross_layers.{index}.attention": classes for index in range(3)},
            },
            "segmenter-mask-tiny": {f"decoder.layers.{index}.attention": joined for index in range(2)},
            "segmenter-linear-tiny": {},
            "cbsa-tiny": {f"decoder.layers.{index}.attention": none for index in range(3)},
            "tost-tiny": {},
        }
        assert {name: attention_layers(opened(folder, name).model, "decoder") for name in MODELS} == expected
        encoder = attention_layers(opened(folder, "tost-tiny").model, "encoder")
        assert encoder == {f"encoder.layers.{index}.attention": {"patch", "cls"} for index in range(2)}

    @pytest.mark.parametrize("pool", [3, 5])
    def test_representatives_are_no_tokens(self, pool: int) -> None:
        """Even where there are as many as classes, or as tokens of the first image that is tried (4 x 4 patches)."""
        config = resolve("cbsa-tiny", "shapes", {**TINY, "decoder.pool": pool})
        assert not any(attention_layers(build(config.encoder, config.decoder, 9), "decoder").values())

    def test_an_encoder_without_class_token(self) -> None:
        config = resolve("depict-sa-tiny", "shapes", {**TINY, "encoder.class_token": False})
        layers = attention_layers(build(config.encoder, config.decoder, 7), "encoder")
        assert set(layers.values()) == {frozenset({"patch"})}

    def test_attention_leaves_the_model_as_it_was(self, folder: Path) -> None:
        model = opened(folder, "segmenter-mask-tiny").model.train()
        name = "decoder.layers.0.attention"
        pixels = torch.rand(1, 3, 32, 48)
        once, again = (attention(model, pixels, name) for _ in range(2))
        assert model.training and not model.decoder.layers[0].attention.listening
        assert once.shape == (1, 13, 13) and torch.equal(once, again)  # no dropout
        torch.testing.assert_close(once.sum(-1), torch.ones(1, 13))

    def test_weights_that_are_not_finite(self, folder: Path) -> None:
        model = opened(folder, "depict-sa-tiny").model
        with torch.no_grad():
            model.decoder.layers[1].basis[0, 0] = math.nan
        with pytest.raises(ModelError, match=r"weights of decoder\.layers\.1\.attention are not finite"):
            attention(model, torch.rand(1, 3, 32, 32), "decoder.layers.1.attention")


GOLDEN = {"depict_sa": "dec.net.", "depict_ca": "dec.cnet.", "segmenter_mask": "dec.", "depict_ca_deit": "dec.cnet."}


class TestAgainstTheOfficialCode:
    @pytest.fixture
    def photo_of(self, golden: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
        """Make every photo the input of the vectors; gives the run."""

        def use(case: str, size: str) -> Run:
            run = open_run(vector_file(golden, case, "checkpoint.pth"), device="cpu")
            normalised = torch.from_numpy(load_npz(vector_file(golden, case, f"vectors_{size}.npz"))["im"][:1])
            pixels = (normalised * run.model.std + run.model.mean) / 255
            (tmp_path / "photo.png").write_bytes(b"photo")
            shown = np.zeros((*pixels.shape[-2:], 3), np.uint8)
            photo = Photo(tmp_path / "photo.png", shown, pixels, run.model.encoder.patch_size)
            monkeypatch.setattr(attention_maps, "open_photo", lambda *_: photo)
            return run

        return use

    @pytest.mark.parametrize("case", list(GOLDEN))
    @pytest.mark.parametrize("size", ["train", "pad"])
    def test_class_embeddings(self, case: str, size: str, photo_of: Callable[..., Run], golden: Path | None) -> None:
        run = photo_of(case, size)
        expected = load_npz(vector_file(golden, case, f"layers_{size}.npz"))
        choice = Choice(layer="all", head="all", classes=run.model.classes)
        photo = measure(run, [Path("photo.png")], choice).measured["photos"][0]
        patches = math.prod(photo["grid"])
        found = {
            (each["query"], each["layer"][-1], int(each["head"])): values(each).flatten() for each in photo["maps"]
        }
        layers = [key for key in expected if key.startswith(GOLDEN[case]) and key.endswith(".attn")]
        assert layers
        for key in layers:
            for head, rows in enumerate(expected[key][0]):
                for index, name in enumerate(run.model.classes):
                    row = found.pop((name, key[-6], head))
                    np.testing.assert_allclose(row, rows[index - 7, :patches], rtol=1e-4, atol=3e-5)
        assert not found

    @pytest.mark.parametrize("case", ["depict_sa_deit", "segmenter_linear"])
    def test_encoder(self, case: str, photo_of: Callable[..., Run], golden: Path | None) -> None:
        run = photo_of(case, "pad")
        expected = load_npz(vector_file(golden, case, "layers_pad.npz"))
        prefix = run.model.encoder.prefix_tokens
        choice = Choice(part="encoder", layer=1, patches=((1, 2),), cls=True)
        patch, cls = measure(run, [Path("photo.png")], choice).measured["photos"][0]["maps"]
        mean = expected["enc.L1.attn"][0].mean(0)
        grid = values(cls).shape
        np.testing.assert_allclose(values(cls).flatten(), mean[0, prefix:], rtol=1e-4, atol=3e-5)
        np.testing.assert_allclose(values(patch).flatten(), mean[prefix + grid[1] + 2, prefix:], rtol=1e-4, atol=3e-5)

    def test_rollout(self, photo_of: Callable[..., Run], golden: Path | None) -> None:
        run = photo_of("depict_sa", "pad")
        expected = load_npz(vector_file(golden, "depict_sa", "layers_pad.npz"))
        layers = [torch.from_numpy(expected[f"dec.net.L{index}.attn"][0]).mean(0) for index in range(3)]
        mixed = [(layer + torch.eye(len(layer))) / 2 for layer in layers]
        choice = Choice(layer=1, rollout=True, classes=run.model.classes[2:3], patches=((0, 1),))
        of_class, of_patch = measure(run, [Path("photo.png")], choice).measured["photos"][0]["maps"]
        patches = values(of_class).numel()
        product = mixed[1] @ mixed[0]
        np.testing.assert_allclose(values(of_class).flatten(), product[2 - 7, :patches], rtol=1e-4, atol=3e-5)
        np.testing.assert_allclose(values(of_patch).flatten(), product[1, :patches], rtol=1e-4, atol=3e-5)


class TestMeasure:
    def test_mean_is_the_mean_of_heads(self, folder: Path) -> None:
        heads = maps_of(folder, "depict-ca-tiny", Choice(head="all", classes=("egg",)))
        (mean,) = maps_of(folder, "depict-ca-tiny", Choice(classes=("Egg",)))
        (second,) = maps_of(folder, "depict-ca-tiny", Choice(head=1, classes=("egg",)))
        assert [each["head"] for each in heads] == ["0", "1", "2"] and mean["head"] == "mean"
        expected = torch.stack([values(each) for each in heads]).mean(0)
        torch.testing.assert_close(values(mean), expected, rtol=1e-4, atol=0)
        assert second == heads[1]
        assert mean["layer"] == "decoder.cross_layers.2" and values(mean).shape == (2, 4)
        assert mean["numbers"]["on_patches"] == pytest.approx(1, abs=1e-5)

    def test_classes_predicted_most_are_the_default(self, folder: Path) -> None:
        record = measure(opened(folder, "depict-sa-tiny"), [folder / "photo.png"], Choice())
        photo = record.measured["photos"][0]
        counts = photos.unpack(photo["prediction"]).flatten().long().bincount(minlength=7)
        regions = [each["region"] for each in photo["maps"]]
        assert regions == sorted(regions) and len(regions) == min(3, int((counts > 0).sum()))
        assert min(counts[regions]) >= max([0, *(int(n) for k, n in enumerate(counts) if k not in regions)])
        for each in photo["maps"]:
            assert each["numbers"]["region"] == pytest.approx(int(counts[each["region"]]) / 8)

    def test_queries_side_by_side(self, folder: Path) -> None:
        choice = Choice(layer="all", classes=("disc",), patches=((1, 3), (0, 0)))
        maps = maps_of(folder, "segmenter-mask-tiny", choice)
        assert [(each["query"], each["layer"][-1]) for each in maps] == [
            (query, layer) for query in ("disc", "patch 1,3", "patch 0,0") for layer in "01"
        ]
        assert maps[2]["patch"] == [1, 3] and maps[2]["numbers"]["distance"] > 0
        # in DEPICT-CA classes look in the cross-attention, patches before it
        maps = maps_of(folder, "depict-ca-tiny", Choice(layer=0, classes=("disc",), patches=((0, 0),)))
        assert [each["layer"] for each in maps] == ["decoder.cross_layers.0", "decoder.layers.0"]

    def test_what_does_not_apply_is_said(self, folder: Path) -> None:
        for name in ("segmenter-linear-tiny", "cbsa-tiny", "tost-tiny"):
            for choice, what in ((Choice(layer=5, head=9), "attention"), (Choice(rollout=True), "rollout")):
                record = measure(opened(folder, name), [folder / "photo.png"], choice)
                assert record.measured["photos"][0]["maps"] == []
                assert f"the decoder has no {what} from class embeddings to patches" in record.measured["notes"][0]
        encoder = measure(opened(folder, "segmenter-linear-tiny"), [folder / "photo.png"], Choice(part="encoder"))
        assert [each["query"] for each in encoder.measured["photos"][0]["maps"]] == ["class token"]
        assert encoder.measured["notes"] == []

    @pytest.mark.parametrize(
        ("choice", "message"),
        [
            (Choice(layer=3), "--layer 3 is not in depict-sa-tiny: its decoder has layers 0 to 2"),
            (Choice(part="encoder", layer=2), "encoder has layers 0 to 1 with attention from a class token"),
            (Choice(head=3), r"--head 3 is not in depict-sa-tiny: decoder\.layers\.2\.attention has heads 0 to 2"),
            (Choice(classes=("disc", "dish")), f"no class 'dish'; it has: {CLASSES}"),
            (
                Choice(patches=((2, 0),)),
                "--patch 2,0 is outside photo.png, .* 2 x 4 patches: rows 0 to 1, columns 0 to 3",
            ),
            (Choice(patches=((0, 4),)), "--patch 0,4 is outside"),
        ],
    )
    def test_unknown_places(self, folder: Path, choice: Choice, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            maps_of(folder, "depict-sa-tiny", choice)

    def test_photos_of_any_shape(self, folder: Path, tmp_path: Path) -> None:
        """One pixel; smaller than a patch; long; each is drawn in its own shape."""
        run = opened(folder, "depict-sa-tiny")
        paths = []
        for number, (height, width) in enumerate([(1, 1), (9, 5), (4, 300)]):
            paths.append(tmp_path / f"{number}.png")
            Image.fromarray(np.full((height, width, 3), 60 * number, np.uint8)).save(paths[-1])
        record = measure(run, paths, Choice(patches=((0, 0),), classes=("egg",)))
        for photo in record.measured["photos"]:
            assert [*values(photo["maps"][0]).shape] == photo["grid"]
        attention_maps.render([record], tmp_path / "figure")
        assert len(list(tmp_path.glob("figure-*.png"))) == 3

    def test_unreadable_photo(self, folder: Path) -> None:
        with pytest.raises(DataError, match=r"nowhere\.jpg cannot be opened"):
            maps_of(folder, "depict-sa-tiny", Choice(), "nowhere.jpg")


class TestRender:
    @pytest.fixture
    def records(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
        for name in ("photo.png", "other.jpg"):
            shutil.copy(folder / name, tmp_path / name)
        monkeypatch.chdir(tmp_path)
        choice = Choice(head="all", classes=("egg",), overlays=True)
        paths = [tmp_path / "photo.png", tmp_path / "other.jpg"]
        return [measure(opened(folder, name), paths, choice) for name in ("depict-sa-tiny", "segmenter-linear-tiny")]

    def test_a_record_is_enough(self, records: list[Record], tmp_path: Path) -> None:
        stored = [write_record(record, tmp_path / "records") for record in records]
        assert str(tmp_path) not in stored[0].read_text()
        render(records, tmp_path / "first")
        render([read_record(path) for path in stored], tmp_path / "second")
        written = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").glob("**/*.*"))
        assert [path.suffix for path in written].count(".png") == 2  # a figure a photo
        for path in written:
            assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes()

    def test_a_run_without_maps_alone(self, records: list[Record], tmp_path: Path) -> None:
        render(records[1:], tmp_path / "alone")
        assert len(list((tmp_path / "alone" / "figures").glob("*.png"))) == 2

    def test_table_and_overlays(self, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention_maps, "_draw", lambda *_: None)
        (table,) = attention_maps.render(records, tmp_path / "figures" / "maps").values()
        assert [row[:5] for row in table.rows] == [
            ("depict-sa-tiny", photo, "egg", "layers.2", head) for photo in ("photo", "other") for head in "012"
        ]
        assert "each head" in table.caption and "nearest interpolation" in table.caption
        assert "0 to the map's maximum" in table.caption
        overlays = sorted((tmp_path / "figures").glob("attention-*-overlays/*"))
        assert len(overlays) == 2 * 3
        assert overlays[0].name == "depict-sa-tiny-other-egg-decoder.layers.2-0.jpg"
        assert all(Image.open(path).size == (90, 50) for path in overlays)

    def test_the_brightest_place_is_the_maximum(self, records: list[Record]) -> None:
        stored = records[0].measured["photos"][0]
        each = stored["maps"][0]
        black = np.zeros((50, 90, 3), np.uint8)
        painted = attention_maps._painted(black, each, stored, records[0], each["numbers"]["maximum"]).sum(2)
        grid = photos.at_pixels(values(each)[None], stored, (50, 90), "nearest")[0]
        assert (painted == painted.max())[grid == grid.max()].all()
        assert painted[grid == grid.min()].max() < painted.max()

    def test_photos_that_are_gone_or_changed(self, records: list[Record], tmp_path: Path) -> None:
        Image.open("other.jpg").save("photo.png")
        with pytest.raises(RecordError, match=r"The photo photo\.png has changed since it was measured"):
            attention_maps.render(records, tmp_path / "maps")
        Path("photo.png").unlink()
        with pytest.raises(RecordError, match=r"The photo photo\.png of a record is not there: paths count from"):
            attention_maps.render(records, tmp_path / "maps")

    def test_records_of_different_conventions(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn = []
        monkeypatch.setattr(attention_maps, "_draw", lambda holders, path: drawn.append((len(holders), path.name)))
        run = opened(folder, "depict-sa-tiny")
        records = [measure(run, [folder / "photo.png"], Choice(colours=colours)) for colours in ("own", "shared")]
        (table,) = attention_maps.render([*records, records[0]], tmp_path / "maps").values()
        assert drawn == [(2, "maps-1-photo"), (1, "maps-2-photo")]
        assert "0 to the map's maximum" in table.caption and "0 to the largest value" in table.caption

    def test_shared_colours_and_rollout(self, folder: Path, tmp_path: Path) -> None:
        choice = Choice(part="encoder", cls=True, patches=((0, 1),), rollout=True, layer="all", colours="shared")
        record = measure(opened(folder, "depict-ca-tiny"), [folder / "photo.png"], choice)
        (table,) = attention_maps.render([record], tmp_path / "maps").values()
        assert "rollout: heads averaged, A' = (A + I)/2" in table.caption
        assert "0 to the largest value of all maps" in table.caption
        assert record.variant == "encoder-rollout" and len(table.rows) == 4


class TestPhotos:
    def test_size_inside_a_figure(self) -> None:
        for shape, expected in (((1800, 2700), (600, 900)), ((400, 300), (400, 300)), ((30, 40), (300, 400))):
            assert photos.for_figure(np.zeros((*shape, 3), np.uint8)).shape[:2] == expected
        assert photos.for_figure(np.zeros((1, 5000, 3), np.uint8)).shape[:2] == (1, 900)

    def test_packed_numbers(self) -> None:
        values = torch.tensor([[1 / 3, 0.0], [1.2345678e-9, 12.0]], dtype=torch.float64)
        assert photos.pack(values) == ["0.33333 0", "1.2346e-09 12"]
        torch.testing.assert_close(photos.unpack(photos.pack(values)), values, rtol=5e-5, atol=0)


class TestLines:
    def test_what_stands_side_by_side(self) -> None:
        def made(queries: int, layers: int, heads: int) -> list[dict[str, str]]:
            return [
                {"query": f"q{q}", "layer": f"l{layer}", "head": f"{head}"}
                for q in range(queries)
                for layer in range(layers)
                for head in range(heads)
            ]

        def widths(*sizes: int) -> list[int]:
            return [len(line) for line in attention_maps._lines(made(*sizes))]

        assert widths(3, 1, 1) == [3]
        assert widths(2, 3, 1) == [3, 3]
        assert widths(2, 2, 3) == [3, 3, 3, 3]
        assert widths(1, 12, 1) == [6, 6]
        assert widths(7, 1, 1) == [4, 3]
        assert widths(0, 0, 0) == [0]


def parsed(**changes: Any) -> Choice:
    given = {
        "part": "decoder",
        "layer": None,
        "head": None,
        "classes": None,
        "patches": [],
        "cls": False,
        "rollout": False,
        "interpolation": "nearest",
        "colours": "own",
        "overlays": False,
    }
    return Choice.parse(**{**given, **changes})


class TestParse:
    def test_what_is_typed(self) -> None:
        choice = parsed(layer="0", head="all", classes=" car, road,", patches=["3,21", " 0 , 1"])
        assert (choice.layer, choice.head, choice.classes) == (0, "all", ("car", "road"))
        assert choice.patches == ((3, 21), (0, 1)) and choice.kinds == ("class", "patch")
        assert parsed() == Choice() and parsed().kinds == ("class",)
        assert parsed(part="encoder", layer="all").kinds == ("cls",)
        assert parsed(part="encoder", patches=["0,0"]).kinds == ("patch",)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"layer": "last"}, "--layer 'last' is impossible: give a number from 0, or all"),
            ({"layer": "-1"}, "--layer '-1' is impossible"),
            ({"head": "best"}, "--head 'best' is impossible: give a number from 0, or all or mean"),
            ({"patches": ["3"]}, "--patch '3' is impossible: give row and column"),
            ({"patches": ["-1,2"]}, "--patch '-1,2' is impossible"),
            ({"classes": " , "}, "--classes is empty"),
            ({"part": "encoder", "classes": "car"}, "--classes goes with --decoder"),
            ({"cls": True}, "--cls goes with --encoder"),
            ({"rollout": True, "head": "1"}, "--head 1 does not go with --rollout"),
            ({"interpolation": "cubic"}, "--interpolation 'cubic' is unknown: choose nearest or bilinear"),
            ({"colours": "log"}, "--colours 'log' is unknown: choose own or shared"),
        ],
    )
    def test_what_cannot_be(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            parsed(**changes)


class TestCommand:
    def test_two_runs_and_a_photo(self, folder: Path, tmp_path: Path, call: Call) -> None:
        runs = [folder / "depict-sa-tiny", folder / "segmenter-linear-tiny"]
        options = ["--head", "all", "--classes", "disc,egg", "--device", "cpu", "-o", tmp_path]
        same = folder / "depict-sa-tiny" / ".." / "photo.png"
        code, out, err = call("attention", *runs, folder / "photo.png", same, "data.resize=48", *options)
        assert code == 0, err
        assert "segmenter-linear-tiny: the decoder has no attention" in out
        stored = [json.loads(path.read_text()) for path in (tmp_path / "records").iterdir()]
        assert {record["model"] for record in stored} == {"depict-sa-tiny", "segmenter-linear-tiny"}
        assert all(record["measured"]["photos"][0]["grid"] == [3, 6] for record in stored)
        assert len(list((tmp_path / "figures").glob("attention-photos-photo-*.p*"))) == 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["depict-sa-tiny"], "No photo is named: give files that end in .jpg"),
            (["depict-sa-tiny", "nowhere.jpg"], "nowhere.jpg cannot be opened"),
            (["nowhere", "photo.png"], "There is no file or folder nowhere"),
            (["depict-sa-tiny", "photo.png", "--layer", "7"], "layers 0 to 2"),
            (["depict-sa-tiny", "photo.png", "data.rezise=3"], "did you mean 'data.resize'"),
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
        code, _, err = call("attention", *arguments, "--device", "cpu", "-o", tmp_path)
        assert code != 0 and err.startswith("error: ") and err.count("\n") == 1
        assert message in err
