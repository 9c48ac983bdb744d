"""Videos that browsers play: codec, frames, and when they are shown; sound is left out, and said."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from whitebox.config import InferenceConfig
from whitebox.engine.video import codec_in_words, has_sound, predict_videos
from whitebox.errors import DataError

av = pytest.importorskip("av", reason="needs the extra video")
INFERENCE = InferenceConfig(window=32, stride=32)


class Brightest(nn.Module):
    """The brightest of the three colours is the class."""

    classes = ("red thing", "green thing", "blue thing")
    palette = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    num_classes = 3

    def forward(self, images: Tensor) -> Tensor:
        return images * 50


def picture(colour: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    found = np.full((240, 321, 3), 20, np.uint8)  # odd: the codec wants one pixel more
    found[..., colour] = 220
    return found[:, :320]


def write_clip(path: Path, times: list[float], sound: bool = False) -> Path:
    with av.open(str(path), "w") as opened:
        stream = opened.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if sound:
            audio = opened.add_stream("aac", rate=8000)
            audio.layout = "mono"
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.rate, silence.pts = 8000, 0
            opened.mux(audio.encode(silence))
            opened.mux(audio.encode())
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number % 3), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            opened.mux(stream.encode(frame))
        opened.mux(stream.encode())
    return path


def read(path: Path) -> tuple[str, str, list[float], list[np.ndarray[Any, Any]]]:
    """Codec, pixel format, times, and frames."""
    with av.open(str(path)) as opened:
        stream = opened.streams.video[0]
        assert not opened.streams.audio
        frames = [(float(each.pts * each.time_base), each.to_ndarray(format="rgb24")) for each in opened.decode(stream)]
        return stream.codec_context.name, stream.pix_fmt, [time for time, _ in frames], [each for _, each in frames]


@pytest.mark.parametrize(
    "times", [[0.0, 0.1, 0.2, 0.3], [0.0, 0.04, 0.5, 0.9, 1.7]], ids=["constant rate", "variable rate"]
)
def test_frames_are_shown_when_they_were(times: list[float], tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", times)
    (path,) = predict_videos(Brightest(), [clip], tmp_path / "out", INFERENCE).written
    codec, pixels, shown, frames = read(path)
    assert codec in ("h264", "libdav1d", "av1", "vp9") and pixels == "yuv420p"
    assert shown == pytest.approx(times, abs=0.002)
    assert [int(each[60, 160].argmax()) for each in frames] == [number % 3 for number in range(len(times))]
    assert list(path.parent.iterdir()) == [path]
    start = path.read_bytes()
    assert start.index(b"moov") < start.index(b"mdat")  # a browser shows it before all of it has arrived


def test_a_folder_of_frames_and_another_rate(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for number in range(4):
        Image.fromarray(picture(number % 3)).save(tmp_path / "frames" / f"{number}.png")
    predict_videos(Brightest(), [tmp_path / "frames"], tmp_path / "out", INFERENCE, video="v.mp4", fps=10)
    assert read(tmp_path / "out" / "v.mp4")[2] == pytest.approx([0, 0.1, 0.2, 0.3], abs=0.002)
    clip = write_clip(tmp_path / "clip.mp4", [0.0, 0.04, 0.5, 0.9])
    (path,) = predict_videos(Brightest(), [clip], tmp_path / "out", INFERENCE, fps=5).written
    assert read(path)[2] == pytest.approx([0, 0.2, 0.4, 0.6], abs=0.002)


def test_sound(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [0.0, 0.1, 0.2], sound=True)
    assert has_sound(clip) and not has_sound(write_clip(tmp_path / "silent.mp4", [0.0, 0.1]))
    (path,) = predict_videos(Brightest(), [clip], tmp_path / "out", INFERENCE).written
    assert len(read(path)[2]) == 3
    assert not has_sound(tmp_path) and not has_sound(tmp_path / "none.mp4")
    assert codec_in_words() in ("H.264", "AV1", "VP9")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [0.0, 0.1, 0.2])

    def full(*_: object, **__: object) -> None:
        raise av.FFmpegError(28, "No space left on device")

    monkeypatch.setattr("av.VideoFrame.from_ndarray", full)
    with pytest.raises(DataError, match=r"cannot write .* is the disk full"):
        predict_videos(Brightest(), [clip], tmp_path / "out", INFERENCE)
    assert list((tmp_path / "out").iterdir()) == []
