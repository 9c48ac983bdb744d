"""Windows, scales and flips against the official vectors and a plain reference."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import whitebox
from whitebox.config import DataConfig, InferenceConfig
from whitebox.engine import assembly
from whitebox.engine.inference import predict_labels, predict_many, probabilities, segment
from whitebox.engine.windows import anchors, enlarge, resize_image
from whitebox.errors import DataError
from whitebox.models import EncoderConfig, build
from whitebox.models.decoders.depict_sa import DepictSAConfig


class Stripes(nn.Module):
    """A model that is neither linear nor mirror-symmetric, and depends on the position inside the window."""

    def __init__(self, classes=5):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(classes, 3, 3, 3, generator=generator))
        self.dropout = nn.Dropout(0.5)
        self.batches = []

    def forward(self, images_BCHW):
        self.batches.append(len(images_BCHW))
        features = self.dropout(F.conv2d(images_BCHW - 0.5, self.weight, padding=1))
        ramp_W = torch.linspace(-1, 1, features.shape[3])
        ramp_H = torch.linspace(0, 0.5, features.shape[2])[:, None]
        return features.tanh() * 3 + (ramp_W + ramp_H) * features


@pytest.fixture
def model():
    return Stripes().eval()


def photo(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(noise, (width, height)).reshape(height, width, 3))


def reference(model, views, shape, window, stride):
    """The official algorithm, window by window."""
    result = 0
    for image, flipped in views:
        x = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
        x = x.flip(3) if flipped else x
        h, w = x.shape[2:]
        if min(h, w) < window:
            size = (window, int((w / h) * window)) if h < w else (int((h / w) * window), window)
            x = F.interpolate(x, size, mode="bilinear")
            h, w = size
        logits, count = 0, torch.zeros(h, w)
        for y in [a for a in range(0, h, stride) if a < h - window] + [h - window]:
            for z in [a for a in range(0, w, stride) if a < w - window] + [w - window]:
                with torch.no_grad():
                    part = model(x[:, :, y : y + window, z : z + window])
                logits = logits + F.pad(part, (z, w - z - window, y, h - y - window))
                count[y : y + window, z : z + window] += 1
        logits = F.interpolate(logits / count, shape, mode="bilinear")[0]
        result = result + (logits.flip(2) if flipped else logits).softmax(0)
    return result / len(views)


CASES = [
    # image sides, original sides, window, stride
    ((40, 64), (40, 64), 32, 16),
    ((41, 67), (53, 90), 32, 20),
    ((64, 33), (64, 33), 32, 32),
    ((20, 45), (60, 135), 32, 24),
    ((45, 20), (30, 13), 32, 17),
    ((32, 32), (31, 37), 32, 32),
    ((5, 7), (200, 280), 32, 32),
]


@pytest.mark.parametrize(("size", "shape", "window", "stride"), CASES)
@pytest.mark.parametrize("flips", [(False,), (True,), (False, True)])
def test_equals_the_plain_reference(model, size, shape, window, stride, flips):
    views = [(photo(*size), flipped) for flipped in flips]
    expected = reference(model, views, shape, window, stride)
    result = probabilities(model, views, shape, window, stride, batch=3)
    assert result.shape == (5, *shape) and result.dtype == torch.float32
    assert (result - expected).abs().max() < 2e-6


def test_scales_are_averaged_as_probabilities(model):
    views = [(photo(height, height * 2, seed=height), flipped) for height in (16, 32, 48) for flipped in (False, True)]
    result = probabilities(model, views, (32, 64), 24, 20, batch=4)
    assert (result - reference(model, views, (32, 64), 24, 20)).abs().max() < 2e-6


@pytest.mark.parametrize("tile", [(1, 1), (5 * 91, 91), (5 * 64 * 3, 64), (2**20, 7)])
def test_tiles_do_not_change_the_result(model, monkeypatch, tile):
    views = [(photo(40, 64), False), (photo(60, 80), True)]
    expected = reference(model, views, (77, 91), 32, 20)
    monkeypatch.setattr(assembly, "ON_CPU", tile)
    assert (probabilities(model, views, (77, 91), 32, 20) - expected).abs().max() < 2e-6


def test_batch_of_windows_changes_rounding_only(model):
    views = [(photo(50, 70), False), (photo(32, 70), False)]
    one = probabilities(model, views, (50, 70), 32, 16, batch=1)
    model.batches.clear()
    for batch in (2, 5, 100):
        assert (probabilities(model, views, (50, 70), 32, 16, batch) - one).abs().max() < 1e-6
    assert model.batches == [2] * 8 + [5, 5, 5, 1] + [16]  # 3 x 4 and 1 x 4 windows: batches span views


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (64, 64, 32, [0]),
        (65, 64, 32, [0, 1]),
        (102, 64, 32, [0, 32, 38]),
        (128, 64, 64, [0, 64]),
        (129, 64, 64, [0, 64, 65]),
        (167, 64, 32, [0, 32, 64, 96, 103]),
    ],
)
def test_anchors(length, window, stride, expected):
    assert anchors(length, window, stride) == expected


def test_enlarging_truncates_as_the_official_code():
    """Quirk 32: 246 / 120 * 480 is 983.999... in floats."""
    assert enlarge(torch.zeros(1, 3, 120, 246), 480).shape == (1, 3, 480, 983)
    assert enlarge(torch.zeros(1, 3, 246, 120), 480).shape == (1, 3, 983, 480)
    assert enlarge(torch.zeros(1, 3, 60, 60), 480).shape == (1, 3, 480, 480)
    assert enlarge(torch.zeros(1, 3, 480, 999), 480).shape == (1, 3, 480, 999)


def test_enlarging_is_bounded():
    assert enlarge(torch.zeros(1, 3, 1, 2000), 512).shape == (1, 3, 512, 8192)
    assert enlarge(torch.zeros(1, 3, 9000, 2), 512).shape == (1, 3, 9000, 512)
    assert enlarge(torch.zeros(1, 3, 10, 75), 1024).shape == (1, 3, 1024, 7680)
    assert enlarge(torch.zeros(1, 3, 1, 100), 64).shape == (1, 3, 64, 6400)


def test_resizing_equals_the_official_pipeline(shared):
    blocks = shared / "golden" / "blocks"
    truth, meta = np.load(blocks / "preprocess.npz"), json.loads((blocks / "preprocess.json").read_text())
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        resized = resize_image(truth["rgb_u8"], meta["im_size"], ratio, meta["max_ratio"])
        assert list(resized.shape[:2]) == meta["shapes_hw"][str(ratio)]
        if f"vit.r{ratio}" in truth:
            expected = truth[f"vit.r{ratio}"].transpose(1, 2, 0) * 127.5 + 127.5
            assert np.array_equal(resized, np.rint(expected))


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((100, 200), (64, 128)),
        ((200, 100), (128, 64)),
        ((50, 500), (26, 256)),
        ((1, 1), (64, 64)),
        ((1, 1000), (1, 256)),
    ],
)
def test_long_side_is_bounded_and_no_side_vanishes(sides, expected):
    assert resize_image(photo(*sides), 64, 1.0, 4.0).shape[:2] == expected


def test_segment_resizes_flips_and_returns_the_original_size(model):
    image = photo(50, 90)
    config = InferenceConfig(window=32, stride=24, batch=3, scales=[0.5, 1.5], flip=True)
    data = DataConfig(resize=40, max_ratio=2.0)
    views = [(resize_image(image, 40, ratio, 2.0), flipped) for ratio in (0.5, 1.5) for flipped in (False, True)]
    result = segment(model, image, config, data)
    assert (result - reference(model, views, (50, 90), 32, 24)).abs().max() < 2e-6
    assert torch.equal(predict_labels(model, image, config, data), result.argmax(0))


def test_segment_without_a_dataset_keeps_the_photo_size(model):
    image = photo(50, 90)
    result = segment(model, image, InferenceConfig(window=32, stride=24), None)
    assert (result - reference(model, [(image, False)], (50, 90), 32, 24)).abs().max() < 2e-6
    half = cv2.resize(image, (45, 25))
    result = segment(model, image, InferenceConfig(window=32, stride=24, scales=[0.5]), None)
    assert (result - reference(model, [(half, False)], (50, 90), 32, 24)).abs().max() < 2e-6


def test_predict_labels_is_the_argmax_of_segment(model):
    image, config, data = photo(70, 40), InferenceConfig(window=32, stride=20), DataConfig(resize=48)
    labels = predict_labels(model, image, config, data)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, segment(model, image, config, data).argmax(0))


@pytest.mark.parametrize("many", [1, 1000])
@pytest.mark.parametrize("classes", [1, 3, 40])
def test_labels_are_found_for_few_and_for_many_classes(classes, many, monkeypatch):
    monkeypatch.setattr(assembly, "MANY_CLASSES", many)
    model, image = Stripes(classes).eval(), photo(61, 130)
    config, data = InferenceConfig(window=32, stride=20), DataConfig(resize=48)
    assert torch.equal(predict_labels(model, image, config, data), segment(model, image, config, data).argmax(0))


def test_of_equal_logits_the_first_class_counts(monkeypatch):
    block = torch.randint(0, 3, (4, 5, 9)).float()
    for many in (1, 1000):
        monkeypatch.setattr(assembly, "MANY_CLASSES", many)
        assert torch.equal(assembly.largest_class(block).long(), block.argmax(2))


@pytest.mark.parametrize("sides", [(1, 1), (1, 300), (300, 1), (2, 3), (7, 2000)])
@pytest.mark.parametrize("data", [None, DataConfig(resize=32)])
def test_tiny_and_narrow_images(model, sides, data):
    result = segment(model, photo(*sides), InferenceConfig(window=32, stride=32, batch=64, flip=True), data)
    assert result.shape == (5, *sides)
    assert torch.isfinite(result).all()
    torch.testing.assert_close(result.sum(0), torch.ones(sides))


SIDES = [(40, 64), (32, 32), (5, 90), (70, 33), (32, 32)]


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
@pytest.mark.parametrize("flip", [False, True])
def test_windows_of_several_photos_share_batches(model, batch, flip):
    photos = [photo(*sides, seed=seed) for seed, sides in enumerate(SIDES)]
    config = InferenceConfig(window=32, stride=20, batch=batch, flip=flip)
    expected = [predict_labels(model, image, config) for image in photos]
    model.batches.clear()
    labels = list(predict_many(model, iter(photos), config))
    assert all(torch.equal(one, other) for one, other in zip(labels, expected, strict=True))
    assert [tuple(label.shape) for label in labels] == SIDES
    windows = sum(model.batches)
    assert model.batches == [batch] * (windows // batch) + [windows % batch] * (windows % batch > 0)
    assert windows == (2 if flip else 1) * (6 + 1 + 29 + 6 + 1)


def test_photos_are_asked_for_when_there_is_room(model):
    asked = []

    def photos():
        for number in range(10):
            asked.append(number)
            yield photo(32, 32, seed=number)

    results = predict_many(model.train(), photos(), InferenceConfig(window=32, stride=32, batch=4))
    assert asked == [] and next(results).shape == (32, 32)
    assert asked == [0, 1, 2, 3] and not model.training
    next(results)
    assert asked == [0, 1, 2, 3]
    results.close()
    assert model.training


def test_no_photos(model):
    assert list(predict_many(model, [], InferenceConfig())) == []


@pytest.mark.parametrize("window", [32, 44])
@pytest.mark.parametrize("flip", [False, True])
def test_masks_of_a_segmentor_give_what_its_logits_give(window, flip):
    """Windows that are padded to whole patches, and windows that overlap by part of a patch."""
    torch.manual_seed(0)
    model = build(EncoderConfig(image_size=32, width=48, depth=1, heads=3), DepictSAConfig(head_dim=16), 5).eval()
    views = [(photo(50, 75), flip), (photo(90, 130), False)]
    expected = reference(model, views, (61, 92), window, 21)
    assert (probabilities(model, views, (61, 92), window, 21, batch=3) - expected).abs().max() < 2e-6


MEMORY = """
import re, numpy as np, torch
from whitebox.config import InferenceConfig
from whitebox.engine.inference import predict_labels
from whitebox.models import EncoderConfig, build
from whitebox.models.decoders.segmenter_linear import SegmenterLinearConfig

def peak():  # not ru_maxrss: a child inherits that of its parent
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

torch.set_num_threads(1)
model = build(EncoderConfig(width=48, depth=1, heads=1), SegmenterLinearConfig(), 150)
predict_labels(model, np.zeros((512, 1024, 3), np.uint8), InferenceConfig())
before = peak()
assert predict_labels(model, np.zeros((2000, 3000, 3), np.uint8), InferenceConfig()).shape == (2000, 3000)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux to know the peak memory of a process")
def test_memory_of_a_large_photo():
    """A quarter of 6000 x 4000 px within a quarter of 2 GB; its logits alone would be 3.6 GB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 500e6


def test_views_of_an_image_may_be_read_only_or_strided(model):
    image = photo(40, 40)
    config = InferenceConfig(window=32, stride=32)
    expected = segment(model, image[:, ::-1].copy(), config)
    assert torch.equal(segment(model, image[:, ::-1], config), expected)
    assert torch.equal(segment(model, image[:, ::-1], config, DataConfig(resize=40)), expected)
    for data in (None, DataConfig(resize=33)):
        expected = segment(model, image.copy(), config, data)
        image.flags.writeable = False
        assert torch.equal(segment(model, image, config, data), expected)


def test_dropout_is_off_and_training_modes_come_back():
    model = Stripes().train()
    model.dropout.eval()
    inner = nn.Sequential(model, nn.Dropout(0.9)).train()
    model.dropout.training = False
    config = InferenceConfig(window=32, stride=32)
    first, second = (segment(inner, photo(32, 32), config) for _ in range(2))
    assert torch.equal(first, second)
    assert inner.training and model.training and inner[1].training and not model.dropout.training


def test_training_modes_come_back_after_an_error():
    class Broken(nn.Module):
        def forward(self, images):
            assert not self.training
            raise RuntimeError("stop")

    model = Broken().train()
    with pytest.raises(RuntimeError, match="stop"):
        segment(model, photo(32, 32), InferenceConfig(window=32, stride=32))
    assert model.training


def test_no_gradients(model):
    config = InferenceConfig(window=32, stride=32)
    assert not segment(model, photo(32, 32), config).requires_grad


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
@pytest.mark.parametrize("function", [segment, predict_labels])
def test_other_arrays_are_an_error(model, wrong, function):
    with pytest.raises(DataError, match=r"must be RGB uint8 of shape \(H, W, 3\)"):
        function(model, wrong, InferenceConfig(window=32, stride=32))


GOLDEN = [
    f"{family}{variant}"
    for family in ("cbsa", "depict_sa", "depict_ca", "segmenter_linear", "segmenter_mask")
    for variant in ("", "_deit")
]
RUNS = ["ss", "ss_flip", "ss_stride_eq_window", "ms", "ms_flip"]


def check_golden(case, run):
    meta = json.loads((case / "inference.json").read_text())
    arguments, step = meta["runs"][run], meta["prob_stride"]
    inputs, truth = np.load(case / "inference_inputs.npz"), np.load(case / f"inference_{run}.npz")
    views = [(inputs[f"im_u8_{ratio}"], flip) for ratio in arguments["ratios"] for flip in arguments["flips"]]
    assert len(views) == arguments["n_images"]
    model = whitebox.load_model(case / "checkpoint.pth")
    model.mean.fill_(127.5)  # the vectors' inputs were normalised so, whatever variant.yml says
    model.std.fill_(127.5)
    result = probabilities(
        model,
        views,
        arguments["ori_shape"],
        arguments["window_size"],
        arguments["window_stride"],
        arguments["window_batch_size"],
    )
    assert (result[:, ::step, ::step] - torch.from_numpy(truth[f"prob_s{step}"])).abs().max() < 1e-5
    assert (result.argmax(0).numpy() == truth["argmax"]).mean() >= 0.999


@pytest.mark.parametrize("case", ["depict_sa", "segmenter_linear"])
def test_official_vectors_in_the_repository(case):
    check_golden(Path(__file__).parents[1] / "golden" / case, "ms_flip")


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("case", GOLDEN)
def test_official_vectors(shared, case, run):
    check_golden(shared / "golden" / case, run)


@pytest.mark.parametrize("case", ["depict_sa", "depict_ca", "segmenter_linear", "segmenter_mask"])
def test_official_vectors_of_real_size(shared, case, tmp_path):
    """ViT-tiny, 150 classes, a photo of 512 x 683 px, from file to probabilities."""
    real = shared / "golden" / "real"
    parts = {
        "encoder": load_file(real / "encoder_vit_tiny_patch16_384.fp16.safetensors"),
        "decoder": load_file(real / case / "decoder.fp16.safetensors"),
    }
    weights = {f"{part}.{name}": tensor.float() for part in parts for name, tensor in parts[part].items()}
    torch.save({"model": weights, "n_cls": 150, "epoch": 0}, tmp_path / "checkpoint.pth")
    shutil.copy(real / case / "variant.yml", tmp_path)
    model, image = whitebox.load_model(tmp_path), np.load(real / "image_u8.npz")["im_u8"]
    truth = np.load(real / case / "inference_683x512.npz")
    for run, stride, flipped in (("stride512", 512, False), ("stride480_flip", 480, True)):
        result = probabilities(model, [(image, flipped)], image.shape[:2], 512, stride, batch=4)
        assert (result[:, ::29, ::29] - torch.from_numpy(truth[f"{run}.prob_s29"])).abs().max() < 1e-5
        assert (result.argmax(0).numpy() == truth[f"{run}.argmax"]).mean() >= 0.999


@pytest.mark.parametrize("case", GOLDEN)
def test_official_windows(shared, case):
    described = json.loads((shared / "golden" / case / "inference.json").read_text())
    window, stride = (described["runs"]["ss"][key] for key in ("window_size", "window_stride"))
    for windows in described["windows"].values():
        image = enlarge(torch.zeros(1, 3, *windows["in_shape"]), window)
        assert list(image.shape[2:]) == windows["after_resize"]
        rows, columns = (anchors(length, window, stride) for length in image.shape[2:])
        corners = [[y, x] for y in rows for x in columns]
        assert corners == windows["anchors"]
