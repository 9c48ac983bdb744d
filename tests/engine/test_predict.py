"""Files written for photos and folders of them, and every way that can go wrong."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from whitebox.config import DataConfig, InferenceConfig
from whitebox.engine.inference import predict_labels, segment
from whitebox.engine.predict import ComparisonSaver, predict_files
from whitebox.errors import ConfigError, DataError
from whitebox.pictures import colourise, overlay, save_label, save_picture, side_by_side

INFERENCE = InferenceConfig(window=16, stride=16)
CLASSES = ("red thing", "green thing", "blue thing")
PALETTE = ((200, 30, 30), (30, 200, 30), (30, 30, 200))


class Brightest(nn.Module):
    classes, palette, num_classes = CLASSES, PALETTE, 3

    def forward(self, images_B3HW):
        return images_B3HW * 5


def photo(height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path, seed=0, **size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(seed=seed, **size)).save(path)
    return path


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def run(inputs, output, **options):
    return predict_files(Brightest(), inputs, output, INFERENCE, **options)


def test_label_png_holds_indices_and_colours(tmp_path):
    path = write(tmp_path / "a.png")
    result = run([path], tmp_path / "out")
    assert result.written == [tmp_path / "out" / "a_labels.png", tmp_path / "out" / "a_overlay.jpg"]
    assert result.failed == [] and names(tmp_path / "out") == ["a_labels.png", "a_overlay.jpg"]
    label = Image.open(result.written[0])
    expected = predict_labels(Brightest(), photo(), INFERENCE).numpy()
    assert label.mode == "P"
    assert np.array_equal(np.asarray(label), expected)
    assert np.array_equal(np.asarray(label.convert("RGB")), np.array(PALETTE)[expected])
    assert np.asarray(Image.open(result.written[1])).shape[2] == 3


def test_images_are_resized_as_the_dataset_says(tmp_path):
    data = DataConfig(resize=40)
    (label, _) = run([write(tmp_path / "a.png")], tmp_path / "out", data=data).written
    assert np.array_equal(Image.open(label), predict_labels(Brightest(), photo(), INFERENCE, data).numpy())
    assert not np.array_equal(Image.open(label), predict_labels(Brightest(), photo(), INFERENCE).numpy())


def test_probabilities_are_written_when_asked_for(tmp_path):
    result = run([write(tmp_path / "a.png")], tmp_path / "out", probabilities=True)
    saved = np.load(result.written[2])
    assert result.written[2].name == "a_probabilities.npz"
    assert saved["probabilities"].shape == (3, 20, 30) and saved["probabilities"].dtype == np.float16
    np.testing.assert_allclose(saved["probabilities"], segment(Brightest(), photo(), INFERENCE), atol=1e-3)
    assert saved["classes"].tolist() == list(CLASSES)
    expected = predict_labels(Brightest(), photo(), INFERENCE).numpy()
    assert np.array_equal(np.asarray(Image.open(result.written[0])), expected)


def test_folder_is_searched_in_order_and_its_tree_kept(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/deep/c.webp", "sub/a.tiff", "d.bmp"):
        write(tmp_path / "photos" / name)
    write(tmp_path / "photos" / ".hidden.png")
    write(tmp_path / "photos" / ".cache" / "e.png")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    seen = []
    run([tmp_path / "photos"], tmp_path / "out", on_file=lambda *report: seen.append(report))
    stems = ["a", "b", "d", "sub/a", "sub/deep/c"]
    assert names(tmp_path / "out") == sorted(f"{s}{e}" for s in stems for e in ("_labels.png", "_overlay.jpg"))
    assert [(done, total) for done, total, _ in seen] == [(number, 5) for number in range(1, 6)]
    files = [path.relative_to(tmp_path / "photos").as_posix() for _, _, path in seen]
    assert files == ["a.PNG", "b.jpg", "d.bmp", "sub/a.tiff", "sub/deep/c.webp"]


def test_names_never_collide(tmp_path):
    """Every label is there, and is that of its own image."""
    files = ["x/a.png", "x/a.bmp", "x/a.bmp.png", "x/b.png", "y/b.png", "y/B.bmp", "y/c.png", "z/x/b.png"]
    for seed, name in enumerate(files):
        write(tmp_path / name, seed)
    inputs = [tmp_path / "x", tmp_path / "y", tmp_path / "z/x", tmp_path / "x" / "b.png"]
    result = run(inputs, tmp_path / "out")
    labels = [path for path in result.written if path.name.endswith("_labels.png")]
    assert len({path.as_posix().casefold() for path in labels}) == len(files)
    relative = {path.relative_to(tmp_path / "out").as_posix() for path in labels}
    assert {"a.png_labels.png", "a.bmp_labels.png", "c_labels.png", "y/b.png_labels.png"} <= relative
    found = {np.asarray(Image.open(path)).tobytes() for path in labels}
    expected = {
        predict_labels(Brightest(), photo(seed=seed), INFERENCE).numpy().astype(np.uint8).tobytes()
        for seed in range(len(files))
    }
    assert found == expected


def test_the_same_file_given_twice_is_predicted_once(tmp_path):
    path = write(tmp_path / "photos" / "a.png")
    assert len(run([path, tmp_path / "photos", path], tmp_path / "out").written) == 2


def test_results_below_the_input_folder_are_no_inputs(tmp_path):
    write(tmp_path / "a.png")
    for _ in range(2):
        assert len(run([tmp_path], tmp_path / "out").written) == 2
    assert names(tmp_path) == ["a.png", "out/a_labels.png", "out/a_overlay.jpg"]


def test_an_input_is_never_replaced(tmp_path):
    write(tmp_path / "a.jpg")
    truth = write(tmp_path / "a_labels.png", seed=1)
    before = truth.read_bytes()
    with pytest.raises(DataError, match=r"a_labels\.png is an input and would be replaced: choose another folder"):
        run([tmp_path], tmp_path)
    assert truth.read_bytes() == before and names(tmp_path) == ["a.jpg", "a_labels.png"]


def test_damaged_file_does_not_stop_the_others(tmp_path):
    for name in ("a.png", "c.png"):
        write(tmp_path / "photos" / name)
    (tmp_path / "photos" / "b.jpg").write_bytes(b"not a photo")
    seen = []
    result = run([tmp_path / "photos"], tmp_path / "out", on_file=lambda done, total, path: seen.append(path.name))
    assert names(tmp_path / "out") == ["a_labels.png", "a_overlay.jpg", "c_labels.png", "c_overlay.jpg"]
    ((path, reason),) = result.failed
    assert path == tmp_path / "photos" / "b.jpg" and str(path) in reason and "\n" not in reason
    assert seen == ["a.png", "b.jpg", "c.png"]


@pytest.mark.parametrize("content", [b"", b"plain text", b"\xff\xd8\xff\xe0 cut"])
@pytest.mark.parametrize("name", ["a.jpg", "notes.txt"])
def test_single_file_that_is_no_image_is_reported(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    ((_, reason),) = run([tmp_path / name], tmp_path / "out").failed
    assert str(tmp_path / name) in reason and "\n" not in reason


def test_missing_input_is_an_error_before_any_work(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jpg does not exist"):
        run([write(tmp_path / "a.png"), tmp_path / "nowhere.jpg"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"empty holds no image \(jpg, jpeg, png"):
        run([tmp_path / "empty"], tmp_path / "out")


@pytest.mark.parametrize("below", ["", "deeper"])
def test_output_that_is_a_file_is_an_error(tmp_path, below):
    (tmp_path / "out").touch()
    with pytest.raises(DataError, match=r"out\S* cannot be written \(.+\): choose another") as raised:
        run([write(tmp_path / "a.png")], tmp_path / "out" / below)
    assert "\n" not in str(raised.value)


def test_output_without_permission_is_an_error(tmp_path, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    path = write(tmp_path / "a.png")
    monkeypatch.setattr(Path, "touch", refuse)  # root may write anywhere, so the folder cannot be made unwritable
    with pytest.raises(DataError, match=r"out cannot be written \(Permission denied\)"):
        run([path], tmp_path / "out")


def test_disk_that_fills_up_is_an_error(tmp_path, monkeypatch):
    def full(self, *args, **options):
        raise OSError(28, "No space left on device")

    path = write(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match="No space left on device"):
        run([path], tmp_path / "out")


def test_impossible_opacity_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"alpha=1\.5"):
        run([write(tmp_path / "a.png")], tmp_path / "out", alpha=1.5)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)])
def test_one_pixel_photos(tmp_path, size):
    path = write(tmp_path / "a.png", height=size[0], width=size[1])
    label, shown = run([path], tmp_path / "out").written
    assert np.asarray(Image.open(label)).shape == size
    assert min(Image.open(shown).size) > 20


def test_model_mode_comes_back(tmp_path):
    model = Brightest().train()
    predict_files(model, [write(tmp_path / "a.png")], tmp_path / "out", INFERENCE)
    assert model.training


def test_colourise():
    label = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    assert colourise(label, PALETTE).tolist() == [[list(PALETTE[0]), list(PALETTE[1])], [list(PALETTE[2]), [0, 0, 0]]]


def test_save_label_keeps_any_index(tmp_path):
    label = np.arange(256, dtype=np.int64).reshape(16, 16)
    save_label(label, PALETTE, tmp_path / "label.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "label.png")), label)


def test_overlay_blends_inside_and_is_solid_at_borders():
    image = photo(400, 500)
    label = np.zeros((400, 500), dtype=np.uint8)
    label[:, 250:] = 2
    label[300:] = 255
    result = overlay(image, label, PALETTE, CLASSES, alpha=0.25)
    assert result.shape[1] == 500 and result.shape[0] > 400
    inside = np.rint(0.75 * image[10, 10] + 0.25 * np.array(PALETTE[0]))
    assert np.abs(result[10, 10] - inside).max() <= 1
    assert result[10, 250].tolist() == list(PALETTE[2])
    assert np.array_equal(result[301:400], image[301:])


def test_overlay_with_alpha_0_shows_the_photo():
    image, label = photo(400, 500), np.random.default_rng(0).integers(0, 3, (400, 500))
    assert np.array_equal(overlay(image, label, PALETTE, CLASSES, alpha=0)[:400], image)


def test_small_photos_are_enlarged_by_a_whole_factor():
    image, label = photo(100, 128), np.full((100, 128), 255)
    result = overlay(image, label, PALETTE, CLASSES)
    assert np.array_equal(result, image.repeat(3, axis=0).repeat(3, axis=1))


def legend_colours(picture, height):
    return {tuple(colour) for colour in picture[height:].reshape(-1, 3).tolist()}


def test_legend_names_the_classes_that_occur_largest_first():
    label = np.full((400, 500), 2)
    label[:100] = 0
    result = overlay(np.zeros((400, 500, 3), np.uint8), label, PALETTE, CLASSES)
    shown = legend_colours(result, 400)
    assert {PALETTE[0], PALETTE[2]} <= shown and PALETTE[1] not in shown
    first = {index: np.argwhere((result[400:] == PALETTE[index]).all(2))[:, 1].min() for index in (0, 2)}
    assert first[2] < first[0]


def test_long_legends_wrap_and_long_names_fit():
    classes = [f"class {index}" for index in range(40)] + ["x" * 200]
    palette = [(index, 100, 200) for index in range(40)] + [(99, 0, 99)]
    label = np.arange(41).repeat(100).reshape(41, 100)
    result = overlay(np.zeros((41, 100, 3), np.uint8), label, palette, classes)
    shown = legend_colours(result, 41 * 4)
    assert set(palette) <= shown
    assert (result[:, -3:] == 255).all()  # nothing runs over the edge


def test_side_by_side_holds_photo_truth_and_prediction():
    image, truth, prediction = photo(330, 400), np.zeros((330, 400), np.uint8), np.ones((330, 400), np.int64)
    truth[:5] = 255
    result = side_by_side(image, truth, prediction, PALETTE, CLASSES)
    gap = 4
    assert np.array_equal(result[:330, :400], image)
    assert np.array_equal(result[:330, 400 + gap : 800 + gap], colourise(truth, PALETTE))
    assert np.array_equal(result[:330, 800 + 2 * gap : 1200 + 2 * gap], colourise(prediction, PALETTE))
    assert {PALETTE[0], PALETTE[1]} <= legend_colours(result, 330)


class Sample(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor
    name: str


def sample(name="some/photo"):
    image = torch.from_numpy(photo(330, 400)).permute(2, 0, 1)
    return Sample(image, torch.zeros(330, 400, dtype=torch.uint8), name)


@pytest.mark.parametrize(
    ("count", "total", "chosen"), [(0, 5, []), (1, 5, [0]), (2, 5, [0, 2]), (5, 5, [0, 1, 2, 3, 4]), (9, 2, [0, 1])]
)
def test_comparisons_are_spread_over_the_dataset(tmp_path, count, total, chosen):
    saver = ComparisonSaver(Brightest(), tmp_path / "pictures", count, total)
    for index in range(total):
        saver(index, sample(), torch.ones(330, 400, dtype=torch.int64))
    assert [path.name for path in saver.written] == [f"{index:04d}-some_photo.jpg" for index in chosen]
    assert (tmp_path / "pictures").exists() == (count > 0)


def test_comparison_shows_the_sample(tmp_path):
    saver = ComparisonSaver(Brightest(), tmp_path, 1, 1)
    saver(0, sample(), torch.ones(330, 400, dtype=torch.int64))
    expected = side_by_side(photo(330, 400), np.zeros((330, 400), int), np.ones((330, 400), int), PALETTE, CLASSES)
    saved = np.asarray(Image.open(saver.written[0])).astype(int)
    assert saved.shape == expected.shape
    assert np.abs(saved - expected).mean() < 3  # JPEG


def test_comparisons_that_cannot_be_written_are_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file cannot be written"):
        ComparisonSaver(Brightest(), tmp_path / "file", 1, 1)
    saver = ComparisonSaver(Brightest(), tmp_path, 1, 1)
    (tmp_path / "0000-a.jpg").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        saver(0, sample("a"), torch.ones(330, 400, dtype=torch.int64))


def test_a_real_photo(shared, tmp_path):
    """A real JPEG, from file to files."""
    source = shared / "data" / "samples" / "natural" / "images" / "mmseg_3dogs.jpg"
    label, shown = run([source], tmp_path, data=DataConfig(resize=64)).written
    width, height = Image.open(source).size
    assert Image.open(label).size == (width, height)
    assert Image.open(shown).size[0] == width and Image.open(shown).size[1] > height


def test_what_is_left_out_is_said(tmp_path):
    write(tmp_path / "photos" / "a.png")
    write(tmp_path / "photos" / "moving.gif")
    write(tmp_path / "photos" / f"{'n' * 245}.png")
    result = run([tmp_path / "photos"], tmp_path / "out")
    reasons = {path.name[:6]: reason for path, reason in result.failed}
    assert reasons["moving"].endswith("moving.gif is left out: GIF is not read, save it as PNG or JPEG.")
    assert "has a name too long for _labels.png behind it: shorten it" in reasons["nnnnnn"]
    assert (result.images, len(result.written)) == (3, 2)


def test_photos_that_do_not_fit_into_the_memory(tmp_path, monkeypatch):
    """By their size, before they are decoded; and where PyTorch finds no memory nevertheless."""
    path = write(tmp_path / "a.png")
    with monkeypatch.context() as patch:
        patch.setattr("whitebox.data.images.free_bytes", lambda wanted: 24 * 600 - 1)
        ((_, reason),) = run([path], tmp_path / "out").failed
        assert "a.png has 30 x 20 px, which need 14.4 kB of memory, and 14.4 kB are free" in reason

    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr("whitebox.engine.predict.predict_labels", full)
    ((_, reason),) = run([path], tmp_path / "out").failed
    assert reason == f"Image {path} does not fit into the memory: make it smaller, or cut it."


def test_wide_pictures_are_made_smaller(tmp_path):
    """A JPEG has at most 65500 px a side."""
    save_picture(np.zeros((16, 66_000, 3), np.uint8), tmp_path / "a.jpg")
    assert Image.open(tmp_path / "a.jpg").size == (65_500, 16)
