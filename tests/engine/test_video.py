"""Overlay videos of video files and of folders of frames: right pixels, one legend, and every way that can go wrong."""

import resource
import struct
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from whitebox import cli, runs
from whitebox.config import InferenceConfig, resolve
from whitebox.engine import video as video_module
from whitebox.engine.inference import predict_labels
from whitebox.engine.video import is_video, open_frames, open_video, predict_videos
from whitebox.errors import ConfigError, DataError
from whitebox.runs import Run

INFERENCE = InferenceConfig(window=32, stride=32)
CLASSES = ("red thing", "green thing", "blue thing", "never seen")
PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))
COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}
IDENTITY = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
QUARTER_TURN = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)  # shown turned clockwise


@pytest.fixture(autouse=True)
def without_pyav(monkeypatch):
    """Written by OpenCV, whatever is installed; tests/engine/test_web_video.py has the other way."""
    monkeypatch.setattr(video_module, "find_spec", lambda name: None)


class Brightest(nn.Module):
    """The brightest of the three colours is the class; the fourth never occurs."""

    classes, palette, num_classes = CLASSES, PALETTE, 4

    def forward(self, images_B3HW):
        return torch.cat([images_B3HW * 50, torch.full_like(images_B3HW[:, :1], -50)], 1)


def frame(left, right="blue", height=240, width=320):
    """Left half and right half of one colour each."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:, : width // 2], picture[:, width // 2 :] = COLOURS[left], COLOURS[right]
    return picture


def write_video(path, pictures, fps=12.5, codec="mp4v"):
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, (width, height))
    for picture in pictures:
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def write_frames(folder, pictures, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / (names[number] if names else f"{number}.png"))
    return folder


def read_video(path):
    """Frames as RGB, and frames a second."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    pictures = []
    while (got := capture.read())[0]:
        pictures.append(cv2.cvtColor(got[1], cv2.COLOR_BGR2RGB))
    return pictures, capture.get(cv2.CAP_PROP_FPS)


def run(inputs, output, **options):
    return predict_videos(Brightest(), inputs, output, INFERENCE, **options)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def near(colour, expected, tolerance=25):
    return np.abs(np.asarray(colour, int) - expected).max() <= tolerance


CLIP = [frame("red")] * 4 + [frame("green")] * 3 + [frame("red")] * 3


def test_overlay_has_frames_rate_size_and_colours_of_the_video(tmp_path):
    result = run([write_video(tmp_path / "clip.mp4", CLIP)], tmp_path / "out")
    assert result.written == [tmp_path / "out" / "clip_overlay.mp4"] and result.failed == []
    assert names(tmp_path / "out") == ["clip_overlay.mp4"]
    pictures, fps = read_video(result.written[0])
    assert fps == 12.5 and len(pictures) == len(CLIP)
    assert all(picture.shape == pictures[0].shape for picture in pictures)
    height, width = pictures[0].shape[:2]
    assert width == 320 and 240 < height < 300
    for picture, source in zip(pictures, CLIP, strict=True):
        left = PALETTE[0 if source[0, 0, 0] > 128 else 1]
        assert near(picture[100, 60], (source[100, 60].astype(int) + left) // 2)
        assert near(picture[100, 260], (source[100, 260].astype(int) + PALETTE[2]) // 2)


def test_legend_is_that_of_the_whole_clip_on_every_frame(tmp_path):
    (path,) = run([write_video(tmp_path / "clip.mp4", CLIP)], tmp_path / "out").written
    strips = np.stack([picture[242:] for picture in read_video(path)[0]]).astype(int)
    assert np.abs(strips - strips[0]).max() < 60  # of the codec; a class that comes or goes is a difference of 200
    for colour in PALETTE[:3]:
        assert (np.abs(strips - colour).max(-1) < 60).any((1, 2)).all()
    assert not (np.abs(strips - PALETTE[3]).max(-1) < 60).any()
    swatches = [np.nonzero((np.abs(strips[0] - colour).max(-1) < 60).any(0))[0].min() for colour in PALETTE[:3]]
    assert swatches[2] < swatches[0] < swatches[1]  # largest first: blue is half of it all, red seven frames of ten


def test_labels_of_a_video_are_numbered_palette_pngs(tmp_path):
    path = write_video(tmp_path / "clip.mp4", CLIP[3:5])
    run([path], tmp_path / "out", labels=True)
    assert names(tmp_path / "out") == ["clip_labels/000000.png", "clip_labels/000001.png", "clip_overlay.mp4"]
    for number, (_, picture) in enumerate(open_video(path).frames()):
        label = Image.open(tmp_path / "out" / "clip_labels" / f"{number:06d}.png")
        assert label.mode == "P"
        assert np.array_equal(label, predict_labels(Brightest(), picture, INFERENCE).numpy())


def test_folder_becomes_a_video_in_natural_order(tmp_path):
    order = ["red", "green", "blue", "green"]
    folder = write_frames(tmp_path / "f", [frame(c) for c in order], ["f2.png", "f10.png", "f100.png", "F101.png"])
    (folder / ".hidden.png").write_bytes(b"none")
    write_frames(folder / "sub", [frame("red")], ["f0.png"])
    result = run([folder], tmp_path / "out", video="a/car.mp4", labels=True)
    assert result.written == [tmp_path / "out" / "a" / "car.mp4"]
    pictures, fps = read_video(result.written[0])
    assert fps == 24 and [int(picture[100, 60].argmax()) for picture in pictures] == [0, 1, 2, 1]
    labels = tmp_path / "out" / "a" / "car_labels"
    assert names(labels) == ["F101.png", "f10.png", "f100.png", "f2.png"]
    assert np.asarray(Image.open(labels / "f10.png"))[100, 60] == 1


def test_frames_of_one_stem_keep_their_suffix_in_the_labels(tmp_path):
    folder = write_frames(tmp_path / "f", [frame("red"), frame("green")], ["a.png", "a.bmp"])
    run([folder], tmp_path / "out", video="v.mp4", labels=True)
    assert names(tmp_path / "out" / "v_labels") == ["a.bmp.png", "a.png.png"]


@pytest.mark.parametrize("fps", [0.5, 30000 / 1001, 90.0123, 239.743])
def test_frame_rates(tmp_path, fps):
    folder = write_frames(tmp_path / "f", [frame("red")] * 2)
    (path,) = run([folder], tmp_path / "out", video="v.mp4", fps=fps).written
    assert open_video(path).fps == pytest.approx(fps, rel=1e-4)


def test_frame_rate_of_a_video_can_be_changed(tmp_path):
    (path,) = run([write_video(tmp_path / "clip.mp4", CLIP[:2])], tmp_path / "out", fps=5).written
    assert read_video(path)[1] == 5


def test_odd_sizes_lose_nothing_and_small_frames_are_enlarged(tmp_path):
    folder = write_frames(tmp_path / "f", [frame("red", "green", 41, 33)])
    (path,) = run([folder], tmp_path / "out", video="v.mp4").written
    picture = read_video(path)[0][0]
    assert picture.shape[0] % 2 == 0 and picture.shape[1] % 2 == 0
    assert picture.shape[0] > 8 * 41 and picture.shape[1] >= 8 * 33
    even, odd = (
        read_video(run([write_frames(tmp_path / name, [picture])], tmp_path, video=f"{name}.mp4").written[0])[0][0]
        for name, picture in (("even", frame("red", "green", 240, 426)), ("odd", frame("red", "green", 241, 427)))
    )
    assert odd.shape == (even.shape[0] + 2, 428, 3)


def test_film_of_a_turned_phone_is_shown_upright(tmp_path):
    path = write_video(tmp_path / "clip.mp4", [frame("red", height=320, width=400)] * 2)
    content = path.read_bytes()
    assert content.count(IDENTITY) == 2  # of the movie, and of its track
    path.write_bytes(QUARTER_TURN.join(content.rsplit(IDENTITY, 1)))
    (written,) = run([path], tmp_path / "out").written
    (picture, _), _ = read_video(written)
    assert picture.shape[0] > 400 and picture.shape[1] == 320
    assert picture[100, 160].argmax() == 0 and picture[300, 160].argmax() == 2  # left is now above


def test_videos_of_one_name_get_different_ones(tmp_path):
    for part in "ab":
        (tmp_path / part).mkdir()
    inputs = [write_video(tmp_path / part / "clip.mp4", CLIP[:2]) for part in "ab"]
    run(inputs, tmp_path / "out")
    assert names(tmp_path / "out") == ["a/clip_overlay.mp4", "b/clip_overlay.mp4"]


def test_stream_that_does_not_say_its_length(tmp_path):
    path = tmp_path / "clip.avi"
    path.write_bytes(b"".join(cv2.imencode(".jpg", picture)[1].tobytes() for picture in CLIP))
    assert open_video(path).count == 0
    result = run([path], tmp_path / "out")
    assert result.failed == [] and len(read_video(result.written[0])[0]) == len(CLIP)


class TestDamage:
    def test_cut_video_is_written_to_its_end_and_reported(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (20, 64, 96, 3), dtype=np.uint8)
        path = write_video(tmp_path / "clip.avi", list(noise), codec="MJPG")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        result = run([path], tmp_path / "out")
        read = len(read_video(result.written[0])[0])
        assert 5 < read < 11
        ((failed, reason),) = result.failed
        assert failed == path and "\n" not in reason
        assert f"{path} gave {read} of the 20 frames" in reason and "cut short" in reason

    @pytest.mark.parametrize("content", [b"", b"no video" * 1000, None], ids=["empty", "garbage", "cut"])
    def test_unreadable_video_is_named_and_the_others_are_done(self, tmp_path, content, capfd):
        good, bad = write_video(tmp_path / "good.mp4", CLIP[:2]), tmp_path / "bad.mp4"
        bad.write_bytes(good.read_bytes()[:-200] if content is None else content)  # an index at the end is cut off
        result = run([bad, good], tmp_path / "out")
        ((failed, reason),) = result.failed
        assert failed == bad and "\n" not in reason and f"Video {bad} is empty, cut short, no video" in reason
        assert names(tmp_path / "out") == ["good_overlay.mp4"]
        assert capfd.readouterr() == ("", "")  # FFmpeg and OpenCV are silent

    def test_video_without_a_frame(self, tmp_path, monkeypatch):
        path = write_video(tmp_path / "clip.mp4", CLIP[:2])
        monkeypatch.setattr(video_module._Reader, "__iter__", lambda self: iter(()))
        result = run([path], tmp_path / "out", labels=True)
        assert result.failed == [(path, f"Video {path} holds no frame that can be read: replace or remove it.")]
        assert names(tmp_path / "out") == []

    def test_video_without_a_frame_rate(self, tmp_path, monkeypatch):
        path = write_video(tmp_path / "clip.mp4", CLIP[:2])

        class Silent:
            capture = type("Capture", (), {"get": staticmethod(lambda _: 0.0)})

            def __init__(self, path):
                pass

            def close(self):
                pass

        monkeypatch.setattr(video_module, "_Reader", Silent)
        with pytest.raises(DataError, match=r"clip.mp4 does not say .* give --fps"):
            open_video(path)
        assert open_video(path, 25).fps == 25

    def test_frames_of_different_size(self, tmp_path):
        folder = write_frames(tmp_path / "f", [frame("red"), frame("red", height=200)], ["a.png", "b.png"])
        ((failed, reason),) = run([folder], tmp_path / "out", video="v.mp4").failed
        assert failed == folder and "\n" not in reason
        assert f"Frame b of {folder} is 320x200 px, the first one 320x240 px" in reason
        assert names(tmp_path / "out") == []

    def test_unreadable_frame(self, tmp_path):
        folder = write_frames(tmp_path / "f", [frame("red")])
        (folder / "1.png").write_bytes(b"none")
        with pytest.raises(DataError, match=r"1\.png is damaged"):
            run([folder], tmp_path / "out", video="v.mp4")
        assert names(tmp_path / "out") == []


class TestOutput:
    def test_name_appears_when_the_video_is_complete(self, tmp_path):
        """What lies there while frames are written is what a killed run leaves."""
        target = tmp_path / "out" / "clip_overlay.mp4"
        target.parent.mkdir()
        target.write_bytes(b"of before")
        seen = []

        @contextmanager
        def progress(description, total):
            yield lambda done, of: seen.append((description, done, of, total, target.read_bytes() == b"of before"))

        run([write_video(tmp_path / "clip.mp4", CLIP[:3])], target.parent, progress=progress)
        expected = [("predicting clip.mp4", done, 3, 3, True) for done in (1, 2, 3)]
        assert seen == expected + [("writing clip_overlay.mp4", done, 3, 3, True) for done in (1, 2, 3)]
        assert len(read_video(target)[0]) == 3

    def test_interrupted_run_leaves_nothing(self, tmp_path):
        @contextmanager
        def progress(description, total):
            def advance(done, of):
                if description.startswith("writing") and done == 2:
                    raise KeyboardInterrupt

            yield advance

        with pytest.raises(KeyboardInterrupt):
            run([write_video(tmp_path / "clip.mp4", CLIP[:3])], tmp_path / "out", progress=progress)
        assert names(tmp_path / "out") == []

    def test_full_disk(self, tmp_path):
        pictures = list(np.random.default_rng(0).integers(0, 256, (20, 240, 320, 3), dtype=np.uint8))
        path = write_video(tmp_path / "clip.mp4", pictures)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)

        @contextmanager
        def progress(description, total):
            if description.startswith("writing"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
            yield lambda done, of: None

        try:
            with pytest.raises(DataError, match=r"clip_overlay.mp4 could not be written: 0 of 20 .* disk full"):
                run([path], tmp_path / "out", progress=progress)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert names(tmp_path / "out") == []

    def test_folder_that_cannot_be_written(self, tmp_path):
        path = write_video(tmp_path / "clip.mp4", CLIP[:2])
        with pytest.raises(DataError, match=r"clip.mp4 cannot be written"):
            run([path], path)
        (tmp_path / "out" / "clip_overlay.mp4").mkdir(parents=True)
        with pytest.raises(DataError, match=r"out cannot be written \(Is a directory\)"):
            run([path], tmp_path / "out")

    def test_input_is_not_replaced(self, tmp_path):
        inputs = [write_video(tmp_path / name, CLIP[:2]) for name in ("clip.mp4", "clip_overlay.mp4")]
        before = inputs[1].read_bytes()
        with pytest.raises(DataError, match=r"clip_overlay.mp4 is an input and would be replaced"):
            run(inputs, tmp_path)
        assert inputs[1].read_bytes() == before

    def test_encoder_that_refuses(self, tmp_path, capfd):
        folder = write_frames(tmp_path / "f", [frame("red", width=8208, height=16)])
        with pytest.raises(DataError, match=r"cannot encode .*v.mp4 \(MPEG-4, 8208x\d+ px, 24 frames a second\)"):
            run([folder], tmp_path / "out", video="v.mp4")
        assert names(tmp_path / "out") == [] and capfd.readouterr() == ("", "")

    def test_opencv_without_ffmpeg(self, tmp_path, monkeypatch):
        path = write_video(tmp_path / "clip.mp4", CLIP[:2])
        monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda backend: backend != cv2.CAP_FFMPEG)
        with pytest.raises(DataError, match=r"built without FFmpeg .* pip install opencv-python-headless"):
            run([path], tmp_path / "out")


class TestOptions:
    @pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1001])
    def test_impossible_rate(self, tmp_path, fps):
        with pytest.raises(ConfigError, match=r"--fps .* is impossible"):
            run([], tmp_path / "out", fps=fps)

    def test_impossible_opacity(self, tmp_path):
        with pytest.raises(ConfigError, match=r"alpha=2"):
            run([], tmp_path / "out", alpha=2)

    def test_missing_input(self, tmp_path):
        with pytest.raises(DataError, match=r"none.mp4 does not exist"):
            run([tmp_path / "none.mp4"], tmp_path / "out")

    def test_folder_without_a_frame(self, tmp_path):
        with pytest.raises(DataError, match=r"holds no frame"):
            open_frames(write_frames(tmp_path / "f", []))

    def test_video_of_something_else_than_one_folder(self, tmp_path):
        folder = write_frames(tmp_path / "f", [frame("red")])
        with pytest.raises(ConfigError, match=r"of one folder of frames, not of .*0\.png"):
            run([folder / "0.png"], tmp_path / "out", video="v.mp4")
        with pytest.raises(ConfigError, match=r"of one folder of frames, not of 2 inputs"):
            run([folder, folder], tmp_path / "out", video="v.mp4")

    def test_video_of_another_kind(self, tmp_path):
        folder = write_frames(tmp_path / "f", [frame("red")])
        with pytest.raises(ConfigError, match=r"only \.mp4 can, e\.g\. v\.mp4"):
            run([folder], tmp_path / "out", video="v.webm")

    def test_is_video(self, tmp_path):
        (tmp_path / "folder.mp4").mkdir()
        assert is_video("a/b.MOV") and is_video(tmp_path / "none.mp4")
        assert not is_video("a.jpg") and not is_video("clip") and not is_video(tmp_path / "folder.mp4")


class TestCommand:
    @pytest.fixture
    def call(self, monkeypatch, capfd):
        config = resolve("depict-sa-tiny", "shapes")
        config.inference = INFERENCE
        opened = Run("run", Path("run/model.safetensors"), Brightest(), config)
        monkeypatch.setattr(runs, "open_run", lambda *_, **__: opened)

        def run(*arguments):
            monkeypatch.setattr("sys.argv", ["whitebox", "predict", "RUN", *map(str, arguments)])
            with pytest.raises(SystemExit) as stopped:
                cli.main()
            captured = capfd.readouterr()
            return int(stopped.value.code or 0), captured.out, captured.err

        return run

    def test_photos_and_videos_together(self, call, tmp_path: Path):
        clip = write_video(tmp_path / "clip.mp4", CLIP[:2])
        photos = write_frames(tmp_path / "photos", [frame("red")])
        code, out, err = call(clip, photos, "-o", tmp_path / "out", "--labels")
        assert code == 0 and err == ""
        assert "1 of 1 images segmented" in out and f"Video: {tmp_path / 'out' / 'clip_overlay.mp4'}" in out
        assert names(tmp_path / "out") == [
            *("0_labels.png", "0_overlay.jpg", "clip_labels/000000.png", "clip_labels/000001.png", "clip_overlay.mp4")
        ]

    def test_folder_with_and_without_video(self, call, tmp_path: Path):
        folder = write_frames(tmp_path / "f", CLIP[:2])
        assert call(folder, "-o", tmp_path / "out")[0] == 0
        assert names(tmp_path / "out") == ["0_labels.png", "0_overlay.jpg", "1_labels.png", "1_overlay.jpg"]
        assert call(folder, "-o", tmp_path / "new", "--video", "v.mp4", "--fps", "10")[0] == 0
        assert names(tmp_path / "new") == ["v.mp4"] and read_video(tmp_path / "new" / "v.mp4")[1] == 10

    def test_damaged_video_is_one_line(self, call, tmp_path: Path):
        (tmp_path / "bad.mp4").write_bytes(b"none")
        code, _, err = call(tmp_path / "bad.mp4", "-o", tmp_path / "out")
        assert code == 1 and err.startswith("error: Video ") and err.count("\n") == 1 and "bad.mp4" in err

    def test_options_that_do_not_fit(self, call, tmp_path: Path):
        code, _, err = call(tmp_path / "a.mp4", "--probabilities")
        assert code == 2 and "--probabilities is for photos" in err
        code, _, err = call(tmp_path / "a.jpg", "--fps", "3")
        assert code == 2 and "--fps is for videos" in err


def test_frames_of_davis(shared, tmp_path):
    folder = shared / "data" / "davis2016-val-240p" / "JPEGImages" / "240p" / "blackswan"
    (path,) = run([folder], tmp_path, video="swan.mp4").written
    pictures, _ = read_video(path)
    assert len(pictures) == len(list(folder.iterdir())) and pictures[0].shape[1] == 428


@pytest.mark.parametrize("name", ["12:30.mp4", "-i.mp4", "file:x.mp4", "%03d.mp4", "a b$(c).mp4", "ü [x].mp4"])
def test_names_that_mean_something_to_ffmpeg(name, tmp_path, monkeypatch):
    """Also where they are relative: FFmpeg takes what is before a colon for a protocol."""
    write_video(tmp_path / "plain.mp4", [frame("red")] * 3)
    (tmp_path / "plain.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    result = predict_videos(Brightest(), [name], "out", INFERENCE)
    assert result.failed == []
    assert result.written == [Path("out") / f"{Path(name).stem}_overlay.mp4"]
    assert sum(1 for _ in open_video(result.written[0]).frames()) == 3
