from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from asking import asked, shown
from child_runs import TINY
from golden_vectors import load_npz, vector_file
from PIL import Image

from analysis.maths.attention import level_numbers, map_numbers, rollout, token_rows
from analysis.maths.packing import pack, unpack
from analysis.measures import maps
from analysis.measures.attention import Attention, Choice
from analysis.measures.maps import attention, attention_layers, stage_masks
from analysis.measures.samples import Photo, open_photo
from analysis.record import Record, RecordError, read_record, write_record
from analysis.show import attention as attention_figures
from analysis.show import photos
from analysis.show.render import render
from whitebox.config import resolve
from whitebox.engine.checkpoint import save_model
from whitebox.errors import ConfigError, DataError, ModelError
from whitebox.models import Segmentor, build, record
from whitebox.models.attention import CBSA
from whitebox.runs import Run, open_run

Call = Callable[..., tuple[int, str, str]]
MODELS = ("depict-sa-tiny", "depict-ca-tiny", "segmenter-mask-tiny", "segmenter-linear-tiny", "cbsa-tiny", "tost-tiny")
SEGVIT = {**{key: value for key, value in TINY.items() if key != "decoder.head_dim"}, "decoder.heads": 2}
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
    config = resolve("segvit-tiny", "shapes", {**SEGVIT, "decoder.encoder_layers": [0, 1]})
    save_model(folder / "segvit-tiny" / "model.safetensors", segvit({"decoder.encoder_layers": [0, 1]}), config)
    generator = np.random.default_rng(0)
    for name in ("photo.png", "other.jpg"):
        Image.fromarray(generator.integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(folder / name)
    return folder


def segvit(changes: dict[str, Any]) -> Segmentor:
    """Untrained, of 7 classes; queries and keys are large enough for masks that are not 1/2 everywhere."""
    config = resolve("segvit-tiny", "shapes", {**SEGVIT, **changes})
    model = build(config.encoder, config.decoder, 7, tuple(CLASSES.split(", ")))
    with torch.no_grad():
        for layer in model.decoder.cross_layers:
            layer.q.weight.mul_(20)
            layer.k.weight.mul_(20)
    return model


def opened(folder: Path, name: str) -> Run:
    return open_run(folder / name, device="cpu")


def measure(run: Run, paths: list[Path], choice: Choice) -> Record:
    """By the options that mean ``choice``."""
    options = Attention(
        layer=None if choice.layer is None else str(choice.layer),
        head=None if choice.head == "mean" else str(choice.head),
        part=choice.part == "decoder",
        classes=",".join(choice.classes) or None,
        patch=[f"{row},{column}" for row, column in choice.patches],
        **{key: getattr(choice, key) for key in ("cls", "rollout", "masks", "interpolation", "colours", "overlays")},
    )
    assert options.choice == choice
    return asked(options, run, photos=paths)


def maps_of(folder: Path, name: str, choice: Choice, photo: str = "photo.png") -> list[dict[str, Any]]:
    return measure(opened(folder, name), [folder / photo], choice).measured["photos"][0]["maps"]


def unpack_tensor(lines: list[str]) -> torch.Tensor:
    return torch.from_numpy(unpack(lines))


def values(each: dict[str, Any]) -> torch.Tensor:
    return unpack_tensor(each["values"])


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
        assert map_numbers(torch.tensor([0.5, 1.0]), (1, 2), None, None, whole=2.0)["on_patches"] == 0.75
        nothing = map_numbers(torch.zeros(2), (1, 2), torch.ones(1, 2, dtype=torch.bool), (0, 0))
        assert nothing["on_patches"] == 0 and math.isnan(nothing["entropy"]) and math.isnan(nothing["distance"])

    def test_levels_are_no_shares(self) -> None:
        numbers = level_numbers(torch.tensor([0.9, 0.1, 0.2]), (1, 3), torch.tensor([[True, False, False]]))
        assert numbers == pytest.approx({"maximum": 0.9, "mean": 0.4, "in_region": 0.75, "region": 1 / 3})


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
        joined, patches, classes, through = map(
            frozenset, (("patch", "class"), ("patch",), ("class",), ("representative",))
        )
        expected = {
            "depict-sa-tiny": {f"decoder.layers.{index}.attention": joined for index in range(3)},
            "depict-ca-tiny": {
                **{f"decoder.layers.{index}.attention": patches for index in range(3)},
                **{f"decoder.cross_layers.{index}.attention": classes for index in range(3)},
            },
            "segmenter-mask-tiny": {f"decoder.layers.{index}.attention": joined for index in range(2)},
            "segmenter-linear-tiny": {},
            "cbsa-tiny": {f"decoder.layers.{index}.attention": through for index in range(3)},
            "tost-tiny": {},
        }
        assert {name: attention_layers(opened(folder, name).model, "decoder") for name in MODELS} == expected
        encoder = attention_layers(opened(folder, "tost-tiny").model, "encoder")
        assert encoder == {f"encoder.layers.{index}.attention": {"patch", "cls"} for index in range(2)}

    @pytest.mark.parametrize("pool", [3, 5])
    def test_representatives_are_no_tokens(self, pool: int) -> None:
        """Even where there are as many as classes, or as tokens of the first image that is tried (4 x 4 patches)."""
        config = resolve("cbsa-tiny", "shapes", {**TINY, "decoder.pool": pool})
        layers = attention_layers(build(config.encoder, config.decoder, 9), "decoder")
        assert set(layers.values()) == {maps.THROUGH}

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
        run = opened(folder, "depict-sa-tiny")
        with torch.no_grad():
            run.model.decoder.layers[1].basis[0, 0] = math.nan
        with pytest.raises(ModelError, match=r"NaN or infinite values in decoder\.layers\.1\.attention of depict-sa"):
            measure(run, [folder / "photo.png"], Choice(layer=1))


class TestThroughRepresentatives:
    @pytest.mark.parametrize("row", [0, 2, -1])
    def test_a_row_of_the_product(self, row: int) -> None:
        weights = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(token_rows(weights, row, True), (weights.mT @ weights)[:, row])
        among = torch.rand(2, 5, 5)
        assert torch.equal(token_rows(among, row, False), among[:, row])

    @torch.inference_mode()
    def test_the_official_map(self, golden: Path | None) -> None:
        """``return_attn`` of CBSA's classifier, see tests/models/test_golden.py, TestBlocks.test_cbsa."""
        vectors = load_npz(vector_file(golden, "blocks", "cbsa_cls_cbsa.npz"))
        layer = CBSA(48, 3, 16, pool=8)
        layer.norm = torch.nn.Identity()
        layer.basis.copy_(torch.from_numpy(vectors["param.proj.weight"]))
        with record(layer, "attention") as taps:
            layer(torch.from_numpy(vectors["x"]), (7, 7))
        for row in (0, 20, -1):
            found = token_rows(taps["attention"][0], row, True)
            np.testing.assert_allclose(found, vectors["return_attn"][0, :, row], atol=1e-5)

    def test_classes_and_patches(self, folder: Path) -> None:
        run = opened(folder, "cbsa-tiny")
        choice = Choice(layer=1, head="all", classes=("disc",), patches=((1, 3),))
        found = measure(run, [folder / "photo.png"], choice)
        (note,) = found.measured["notes"]
        assert "rows of A^T A, which do not sum up to 1" in note
        maps = found.measured["photos"][0]["maps"]
        assert [(each["query"], each["head"]) for each in maps] == [
            (query, head) for query in ("disc", "patch 1,3") for head in "012"
        ]
        weights = attention(run.model, open_photo(folder / "photo.png", run).pixels_13hw, LAYER_1)
        full = weights.mT @ weights
        assert full.shape == (3, 15, 15)
        for head in range(3):
            of_class, of_patch = maps[head], maps[3 + head]
            torch.testing.assert_close(values(of_class).flatten().float(), full[head, 8 + 1, :8], rtol=1e-4, atol=0)
            torch.testing.assert_close(values(of_patch).flatten().float(), full[head, 7, :8], rtol=1e-4, atol=0)
            share = float(full[head, 7, :8].sum() / full[head, 7].sum())
            assert of_patch["numbers"]["on_patches"] == pytest.approx(share, rel=1e-4)


LAYER_1 = "decoder.layers.1.attention"


class TestMasks:
    def test_stages_add_up_to_the_masks_of_the_decoder(self, folder: Path) -> None:
        run = opened(folder, "segvit-tiny")
        pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
        found = stage_masks(run.model, pixels)
        assert list(found) == ["decoder.cross_layers.2.masks", "decoder.cross_layers.5.masks", "decoder.sum"]
        first, second, total = found.values()
        with torch.inference_mode():
            expected = run.model.eval().masks(pixels)[0].flatten(1)
        assert torch.equal(total, expected) and first.abs().max() > 0.01 and not torch.equal(first, second)
        torch.testing.assert_close(first + second, total)

    def test_one_stage_is_its_own_sum(self) -> None:
        model = segvit({"decoder.encoder_layers": [1]})
        assert list(stage_masks(model, torch.rand(1, 3, 32, 48))) == ["decoder.cross_layers.2.masks"]

    def test_masks_that_do_not_add_up(self) -> None:
        """Those of the Shrunk head: a prediction a layer, each by itself."""
        changes = {"decoder": "segvit-shrunk", "decoder.encoder_layers": [0, 1], "encoder.shrink": 1}
        found = stage_masks(segvit(changes), torch.rand(1, 3, 48, 48))
        assert list(found) == [f"decoder.cross_layers.{index}.masks" for index in range(3)]
        assert all(masks.shape == (7, 9) for masks in found.values())

    def test_a_stage_on_another_grid_is_in_the_sum_alone(self) -> None:
        model = segvit({"decoder.encoder_layers": [0, 1], "encoder.shrink": 1})
        found = stage_masks(model, torch.rand(1, 3, 48, 48))
        assert list(found) == ["decoder.cross_layers.5.masks", "decoder.sum"]

    def test_masks_that_are_not_finite(self, folder: Path) -> None:
        run = opened(folder, "segvit-tiny")
        with torch.no_grad():
            run.model.decoder.cross_layers[2].q.weight[0, 0] = math.nan
        with pytest.raises(ModelError, match=r"NaN or infinite values in decoder\.cross_layers\.\d\.masks of segvit"):
            measure(run, [folder / "photo.png"], Choice(masks=True, layer="all", colours="unit"))

    def test_sigmoid_of_each_stage_and_of_the_sum(self, folder: Path) -> None:
        run = opened(folder, "segvit-tiny")
        choice = Choice(masks=True, layer="all", classes=("disc", "egg"), colours="unit")
        found = measure(run, [folder / "photo.png"], choice)
        maps = found.measured["photos"][0]["maps"]
        assert [(each["query"], each["layer"]) for each in maps] == [
            (query, f"decoder.{layer}")
            for query in ("disc", "egg")
            for layer in ("cross_layers.2", "cross_layers.5", "sum")
        ]
        logits = stage_masks(run.model, open_photo(folder / "photo.png", run).pixels_13hw)
        for each, (index, layer) in zip(maps, [(k, name) for k in (1, 6) for name in logits], strict=True):
            expected = logits[layer][index].sigmoid()
            torch.testing.assert_close(values(each).flatten().float(), expected, rtol=1e-4, atol=0)
            assert each["numbers"]["mean"] == pytest.approx(float(expected.mean()), rel=1e-4)
            assert set(each["numbers"]) == {"maximum", "mean", "in_region", "region"}
        assert found.variant == "decoder-mask" and found.measured["notes"] == []
        (own,) = maps_of(folder, "segvit-tiny", Choice(masks=True, classes=("egg",)))
        assert own == maps[-1]
        with pytest.raises(ConfigError, match=r"--layer 3 .* has layers 0 to 2 with masks"):
            maps_of(folder, "segvit-tiny", Choice(masks=True, layer=3))

    def test_colours_to_one(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tops = []
        monkeypatch.setattr(attention_figures, "_painted", lambda image, *rest: tops.append(rest[-1]) or image)
        monkeypatch.setattr(attention_figures, "save_figure", lambda *_, **__: None)
        choice = Choice(masks=True, classes=("egg",), colours="unit", overlays=True)
        records = [
            measure(opened(folder, name), [folder / "photo.png"], choice) for name in ("segvit-tiny", "tost-tiny")
        ]
        (table,) = shown(records, tmp_path / "maps").values()
        assert tops == [1.0, 1.0]
        assert "attention-to-mask" in table.caption and "colours from 0 to 1" in table.caption
        assert [column.name for column in table.columns][5:7] == ["Maximum (%)", "Mean (%)"]

    def test_most_decoders_have_none(self, folder: Path) -> None:
        for name in MODELS:
            record = measure(opened(folder, name), [folder / "photo.png"], Choice(masks=True))
            assert record.measured["photos"][0]["maps"] == []
            assert record.measured["notes"] == ["the decoder has no masks made by attention (attention-to-mask)."]


class TestMemberships:
    def test_a_map_a_head(self, folder: Path) -> None:
        run = opened(folder, "tost-tiny")
        found = measure(run, [folder / "photo.png"], Choice(layer="all"))
        maps = found.measured["photos"][0]["maps"]
        assert [(each["query"], each["layer"], each["head"]) for each in maps] == [
            ("membership", f"decoder.layers.{layer}", head) for layer in range(3) for head in "012"
        ]
        heads = torch.stack([values(each) for each in maps[6:]])
        torch.testing.assert_close(heads.sum(0), torch.ones(2, 4, dtype=torch.float64), rtol=1e-4, atol=0)
        pixels = open_photo(folder / "photo.png", run).pixels_13hw
        expected = attention(run.model, pixels, "decoder.layers.2.membership")[:, :8]
        torch.testing.assert_close(heads.flatten(1).float(), expected, rtol=1e-4, atol=0)
        assert found.measured["notes"] == ["the decoder has no attention; its memberships are drawn."]
        assert found.variant == "decoder" and "softmax over heads" in found.measured["conventions"]
        assert maps_of(folder, "tost-tiny", Choice(head=1)) == [maps[7]]
        with pytest.raises(ConfigError, match=r"--layer 3 .* layers 0 to 2 with memberships"):
            maps_of(folder, "tost-tiny", Choice(layer=3))
        with pytest.raises(ConfigError, match=r"--head 3 .* heads 0 to 2"):
            maps_of(folder, "tost-tiny", Choice(head=3))

    def test_figures_of_their_own(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = []
        monkeypatch.setattr(
            attention_figures, "_draw", lambda holders, path: drawn.append([held.model for held, _ in holders])
        )
        names = ("depict-sa-tiny", "tost-tiny", "cbsa-tiny", "segmenter-linear-tiny")
        records = [measure(opened(folder, name), [folder / "photo.png"], Choice(classes=("egg",))) for name in names]
        shown(records, tmp_path / "maps")
        assert drawn == [["depict-sa-tiny", "cbsa-tiny", "segmenter-linear-tiny"], ["tost-tiny"]]


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
            monkeypatch.chdir(tmp_path)
            shown = np.zeros((*pixels.shape[-2:], 3), np.uint8)
            photo = Photo(tmp_path / "photo.png", shown, pixels, run.model.place, run.model.encoder.patch_size)
            monkeypatch.setattr(maps, "open_photo", lambda *_: photo)
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
        counts = unpack_tensor(photo["prediction"]).flatten().long().bincount(minlength=7)
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
        for name, choice, what in (
            ("segmenter-linear-tiny", Choice(layer=5, head=9), "attention"),
            *((name, Choice(rollout=True), "rollout") for name in ("segmenter-linear-tiny", "cbsa-tiny", "tost-tiny")),
        ):
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
        shown([record], tmp_path / "figure")
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

    def test_a_run_without_maps_alone(
        self, records: list[Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        render(records[1:], tmp_path / "alone")
        assert not (tmp_path / "alone").exists()
        assert capsys.readouterr().out == (
            "segmenter-linear-tiny: the decoder has no attention from class embeddings to patches: "
            "these maps do not apply.\n"
        )

    def test_records_that_hold_attention_only(
        self, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As they were before masks and memberships."""
        before = [
            dataclasses.replace(
                held,
                measured={key: value for key, value in held.measured.items() if key not in ("shows", "conventions")},
                settings={
                    **{key: value for key, value in held.settings.items() if key != "masks"},
                    "conventions": held.measured["conventions"],
                },
            )
            for held in records
        ]
        titles: list[list[str]] = []
        monkeypatch.setattr(
            attention_figures,
            "save_figure",
            lambda figure, *_, **__: titles.append([axes.get_title() for axes in figure.axes]),
        )
        now, then = (shown(each, tmp_path / "maps") for each in (records, before))
        assert now == then and titles[:2] == titles[2:] and "egg\nlayers.2, head 1" in titles[0][2]

    def test_table_and_overlays(self, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention_figures, "_draw", lambda *_: None)
        (table,) = shown(records, tmp_path / "figures" / "maps").values()
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
        painted = attention_figures._painted(black, each, stored, records[0], each["numbers"]["maximum"]).sum(2)
        grid = photos.at_pixels(values(each)[None], stored, (50, 90), "nearest")[0]
        assert (painted == painted.max())[grid == grid.max()].all()
        assert painted[grid == grid.min()].max() < painted.max()

    def test_photos_that_are_gone_or_changed(self, records: list[Record], tmp_path: Path) -> None:
        Image.open("other.jpg").save("photo.png")
        with pytest.raises(RecordError, match=r"The photo photo\.png has changed since it was measured"):
            shown(records, tmp_path / "maps")
        Path("photo.png").unlink()
        with pytest.raises(RecordError, match=r"The photo photo\.png of a record is not there: paths count from"):
            shown(records, tmp_path / "maps")

    def test_records_of_different_conventions(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn = []
        monkeypatch.setattr(attention_figures, "_draw", lambda holders, path: drawn.append((len(holders), path.name)))
        run = opened(folder, "depict-sa-tiny")
        records = [measure(run, [folder / "photo.png"], Choice(colours=colours)) for colours in ("own", "shared")]
        (table,) = shown([*records, records[0]], tmp_path / "maps").values()
        assert drawn == [(2, "maps-1-photo"), (1, "maps-2-photo")]
        assert "0 to the map's maximum" in table.caption and "0 to the largest value" in table.caption

    def test_shared_colours_and_rollout(self, folder: Path, tmp_path: Path) -> None:
        choice = Choice(part="encoder", cls=True, patches=((0, 1),), rollout=True, layer="all", colours="shared")
        record = measure(opened(folder, "depict-ca-tiny"), [folder / "photo.png"], choice)
        (table,) = shown([record], tmp_path / "maps").values()
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
        assert pack(values) == ["0.33333 0", "1.2346e-09 12"]
        torch.testing.assert_close(unpack_tensor(pack(values)), values, rtol=5e-5, atol=0)


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
            return [len(line) for line in attention_figures._lines(made(*sizes))]

        assert widths(3, 1, 1) == [3]
        assert widths(2, 3, 1) == [3, 3]
        assert widths(2, 2, 3) == [3, 3, 3, 3]
        assert widths(1, 12, 1) == [6, 6]
        assert widths(7, 1, 1) == [4, 3]
        assert widths(0, 0, 0) == [0]


def parsed(part: str = "decoder", patches: list[str] | None = None, **changes: Any) -> Choice:
    return Attention(part=part == "decoder", patch=patches, **changes).choice


class TestParse:
    def test_what_is_typed(self) -> None:
        choice = parsed(layer="0", head="all", classes=" car, road,", patches=["3,21", " 0 , 1"])
        assert (choice.layer, choice.head, choice.classes) == (0, "all", ("car", "road"))
        assert choice.patches == ((3, 21), (0, 1)) and choice.kinds == ("class", "patch")
        assert parsed() == Choice() and parsed().kinds == ("class",)
        assert parsed(part="encoder", layer="all").kinds == ("cls",)
        assert parsed(part="encoder", patches=["0,0"]).kinds == ("patch",)
        assert parsed(masks=True) == Choice(masks=True, colours="unit")
        assert parsed(masks=True, colours="own").colours == "own"

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
            ({"colours": "log"}, "--colours 'log' is unknown: choose own or shared or unit"),
            ({"masks": True, "part": "encoder"}, "--encoder-layers does not go with --masks"),
            ({"masks": True, "patches": ["0,0"]}, "--patch does not go with --masks"),
            ({"masks": True, "head": "mean"}, "--head does not go with --masks"),
            ({"masks": True, "rollout": True}, "--rollout does not go with --masks"),
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

    def test_masks(self, folder: Path, tmp_path: Path, call: Call) -> None:
        options = ["--masks", "--layer", "all", "--classes", "disc", "--device", "cpu", "-o", tmp_path]
        code, out, err = call("attention", folder / "segvit-tiny", folder / "photo.png", *options)
        assert code == 0, err
        assert "attention-to-mask" in out and "sum" in out
        assert len(list((tmp_path / "figures").glob("attention-photos-photo-decoder-mask-*.png"))) == 1
        code, out, err = call("attention", folder / "tost-tiny", folder / "photo.png", *options)
        assert (code, out.count("\n")) == (0, 1) and "tost-tiny: the decoder has no masks made by attention" in out

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


def test_next_to_nothing_is_drawn_next_to_black() -> None:
    """Beside a map that reaches 1e-4 one of 1e-9 is not stretched to the same brightness; a hundredth still is."""
    faint, fair, strong = ({"numbers": {"maximum": value}} for value in (1e-9, 5e-6, 1e-4))
    held: Any = SimpleNamespace(settings={"colours": "map"})
    tops = [attention_figures._top(each, held, 1e-4) for each in (faint, fair, strong)]
    assert tops == pytest.approx([1e-6, 5e-6, 1e-4])


@pytest.mark.parametrize(("colours", "bright"), [("own", True), ("shared", True), ("unit", False)])
def test_a_map_of_next_to_nothing_looks_like_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colours: str, bright: bool
) -> None:
    """Pixels of the figure and of the overlays: a map that reaches 1e-9 is black, one of 1e-4 is not but beside 1."""
    monkeypatch.chdir(folder)
    held = measure(
        opened(folder, "depict-sa-tiny"), [folder / "photo.png"], Choice(head="all", classes=("egg",), colours=colours)
    )
    maps = held.measured["photos"][0]["maps"][:2]
    for each, top in zip(maps, (1e-9, 1e-4), strict=True):
        values_hw = unpack(each["values"])
        each["values"], each["numbers"]["maximum"] = pack(values_hw / values_hw.max() * top), top
    held.measured["photos"][0]["maps"] = maps
    caught: list[Any] = []
    monkeypatch.setattr(attention_figures, "save_figure", lambda figure, path, dpi: caught.append(figure))
    attention_figures.figures([held], tmp_path / "figure")
    grid = [axes for axes in caught[0].axes if axes.images and "max" in axes.get_title()]
    assert [axes.get_title().rpartition("max ")[2] for axes in grid] == ["1e-09", "0.0001"]
    attention_figures._overlays(held, tmp_path / "overlays")
    overlays = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "overlays").iterdir())]
    photo = np.asarray(Image.open(folder / "photo.png").convert("L"), np.float64).mean()
    for pictures in ([np.asarray(axes.images[0].get_array()) for axes in grid], overlays):
        faint, strong = (picture.mean() - (1 - attention_figures.OPACITY) * photo for picture in pictures)
        assert abs(faint) < 3 and (strong > 30 if bright else abs(strong) < 3)
