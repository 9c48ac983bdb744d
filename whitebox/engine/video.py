"""Predict videos and folders of frames: an overlay video with one legend for the whole clip, and label PNGs.

Each clip is read twice. The first time its frames are predicted and the labels kept, compressed, in a nameless file
beside the result (the system removes it however the run ends); then the classes that occur are known, and the second
time the video is drawn, with a legend that stays the same. So memory does not grow with the length of a clip.

With PyAV (the extra ``video``) videos are H.264, or AV1 where it was built without, which browsers play, and each frame
is shown when it was in the clip, also at a variable frame rate. Without it they are MPEG-4 part 2, which players show
and browsers do not: it is the one codec for .mp4 that the OpenCV of the package index encodes at more than a few frames
a second (H.264 is left out of it for its licence; VP9 is 50 to 100 times slower); a clip with a variable frame rate
then gets its mean rate. Sound is left out, which is said where there is some.

Shapes: H W pixels.
"""

from __future__ import annotations

import itertools
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

# FFmpeg writes about broken files straight to standard error; our one line says it. Read once, when cv2 opens a video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2

from whitebox.config import DataConfig, InferenceConfig
from whitebox.data.images import IMAGE_SUFFIXES, read_image, silent_decoders
from whitebox.engine.inference import evaluating, predict_labels
from whitebox.engine.predict import PredictedFiles, named_jobs
from whitebox.errors import ConfigError, DataError
from whitebox.files import make_folder, unwritable
from whitebox.pictures import Pixels, as_labels, blend, label_type, save_label, with_legend

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv")
CODECS = ("libx264", "libopenh264", "libsvtav1", "libaom-av1", "libvpx-vp9")  # of PyAV; the first that is there
TICKS = 90_000  # a second, in which PyAV counts when a frame is shown
FOLDER_FPS = 24.0  # frames a second of a folder of frames
_FASTEST = 1000.0  # frames a second; what a file says beyond it is no frame rate

Advance = Callable[[int, int], None]  # frames done, of all
Progress = Callable[[str, int | None], AbstractContextManager[Advance]]  # what is done, frames where known


class UnreadableVideoError(DataError):
    """A clip that cannot be read; other clips can."""


@dataclass(frozen=True)
class Clip:
    """Frames that can be read again and again.

    Attributes:
        path: the video file, or the folder of frames.
        fps: frames a second.
        count: frames the file promises; 0 where it does not say.
        frames: iterates over (name, RGB uint8 (H, W, 3)).
        variable: whether the frames of a file are to be shown when they are there, not at ``fps``.
    """

    path: Path
    fps: float
    count: int
    frames: Callable[[], Iterator[tuple[str, Pixels]]]
    variable: bool = False


@contextmanager
def _no_progress(_description: str, _total: int | None) -> Iterator[Advance]:
    yield lambda _done, _of: None


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether the path is called like a video file, and is no folder."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES and not os.path.isdir(path)


def predict_videos(
    model: nn.Module,
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    inference: InferenceConfig,
    data: DataConfig | None = None,
    *,
    video: str | os.PathLike[str] | None = None,
    fps: float | None = None,
    labels: bool = False,
    alpha: float = 0.5,
    progress: Progress = _no_progress,
) -> PredictedFiles:
    """Segment video files, each into ``NAME_overlay.mp4``, or a folder of frames into one video.

    The overlay has the frame rate and the size of the clip, with a strip for the legend below it. An odd width or
    height gets one more pixel, as the codec demands; clips under 320 px are enlarged, as photos are, or get a margin.
    A video appears under its name only when it is complete.

    Args:
        model: has ``classes`` and ``palette``.
        inputs: video files; with ``video`` one folder, whose images are the frames in natural order (2 before 10).
            All frames of a clip have one size.
        output: folder, made where missing.
        data: how frames are resized before inference; None: not at all.
        video: the .mp4 to make of a folder of frames, below ``output``.
        fps: frames a second. None: those of the file, and 24 for a folder.
        labels: also ``NAME_labels/FRAME.png``, palette PNGs of class indices. FRAME counts from 000000 for a video
            file; for a folder it is the name of the frame.
        alpha: opacity of the classes, 0 to 1.
        progress: a bar for each pass over each clip, as ``whitebox.cli.progress.image_progress``.

    Returns:
        The videos written, and the files that could not be read, or not to their end, with the reason. Of a file that
        ends too early, the frames before are written.

    Raises:
        ConfigError: an option cannot be used.
        DataError: an input is missing, a frame of a folder cannot be read, or the output cannot be written or would
            replace an input.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha={alpha} is impossible: an opacity lies in [0, 1].")
    if fps is not None and not 0 < fps <= _FASTEST:
        raise ConfigError(f"--fps {fps:g} is impossible: give frames a second, above 0 and at most {_FASTEST:g}.")
    paths, folder = [Path(path) for path in inputs], Path(output)
    if video is None:
        for path in paths:
            if not os.path.isfile(path):
                raise DataError(f"Video {path} does not exist, is no file, or may not be read: check the path.")
        targets = [(path, folder / f"{name}_overlay.mp4") for path, name in named_jobs(paths, folder)]
    else:
        if len(paths) != 1 or not os.path.isdir(paths[0]):
            raise ConfigError(f"--video {video} is made of one folder of frames, not of {_listed(paths)}.")
        if Path(video).suffix.lower() != ".mp4":
            raise ConfigError(f"--video {video} cannot be written: only .mp4 can, e.g. {Path(video).stem}.mp4.")
        targets = [(paths[0], folder / video)]
    sources = {os.path.realpath(path) for path in paths}
    for _, target in targets:
        if os.path.realpath(target) in sources:
            raise DataError(f"{target} is an input and would be replaced: choose another folder.")
        make_folder(target.parent)

    result = PredictedFiles()
    with evaluating(model):
        for path, target in targets:
            stem = target.with_suffix("").name.removesuffix("_overlay")
            label_folder = target.parent / f"{stem}_labels" if labels else None
            try:
                clip = open_frames(path, fps) if video is not None else open_video(path, fps)
                count = _predict_clip(model, clip, target, inference, data, label_folder, alpha, progress)
            except UnreadableVideoError as error:
                result.failed.append((path, str(error)))
                continue
            except OSError as error:
                raise unwritable(target.parent, error) from error
            result.written.append(target)
            # Where a file only knows its duration, the number of frames is an estimate: allow a second or a tenth.
            if clip.count - count > max(1.0, min(clip.fps, clip.count / 10)):
                reason = f"Video {path} gave {count} of the {clip.count} frames it promises: it is cut short or damaged"
                result.failed.append((path, f"{reason}; {target} ends there."))
    return result


def open_video(path: str | os.PathLike[str], fps: float | None = None) -> Clip:
    """A video file, turned upright as the camera noted.

    Args:
        path: the file.
        fps: frames a second instead of those the file says.

    Raises:
        UnreadableVideoError: damaged, no video, a codec that is not known, or no frame rate.
        DataError: OpenCV cannot read videos here.
    """
    path = Path(path)
    with closing(_Reader(path)) as reader:
        said, promised = reader.capture.get(cv2.CAP_PROP_FPS), reader.capture.get(cv2.CAP_PROP_FRAME_COUNT)
    if fps is None and not 0 < said <= _FASTEST:
        raise UnreadableVideoError(f"Video {path} does not say how many frames a second it has: give --fps.")

    def frames() -> Iterator[tuple[str, Pixels]]:
        with closing(_Reader(path)) as reader:
            for number, frame_HW3 in enumerate(reader):
                yield f"{number:06d}", frame_HW3

    count = int(promised) if 0 < promised < 2**31 else 0
    return Clip(path, said if fps is None else fps, count, frames, variable=fps is None)


def open_frames(folder: str | os.PathLike[str], fps: float | None = None) -> Clip:
    """The images that lie directly in a folder, in natural order: 2.jpg before 10.jpg. Hidden ones are left out.

    Raises:
        DataError: there is none, or the folder cannot be read; while iterating: an image cannot be read.
    """
    folder = Path(folder)
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    except OSError as error:
        raise DataError(f"Folder {folder} cannot be read ({error.strerror}): check path and permissions.") from None
    files = sorted((path for path in found if not path.name.startswith(".")), key=lambda path: _natural(path.name))
    if not files:
        raise DataError(f"Folder {folder} holds no frame ({', '.join(s[1:] for s in IMAGE_SUFFIXES)}) of its own.")
    names = [path.stem for path in files]
    if len({name.casefold() for name in names}) < len(names):
        names = [path.name for path in files]

    def frames() -> Iterator[tuple[str, Pixels]]:
        for name, path in zip(names, files, strict=True):
            yield name, read_image(path)

    return Clip(folder, FOLDER_FPS if fps is None else fps, len(files), frames)


def _predict_clip(
    model: nn.Module,
    clip: Clip,
    target: Path,
    inference: InferenceConfig,
    data: DataConfig | None,
    label_folder: Path | None,
    alpha: float,
    progress: Progress,
) -> int:
    """Write the overlay video, and the labels where a folder is given; the number of frames."""
    classes, palette = tuple(model.classes), tuple(model.palette)  # type: ignore[arg-type]
    kind = label_type(classes)
    values = np.iinfo(kind).max + 1
    pixels, count, size = np.zeros(values, dtype=np.int64), 0, None
    with tempfile.TemporaryFile(dir=target.parent) as store:
        with progress(f"predicting {clip.path.name}", clip.count or None) as advance:
            for name, image_HW3 in clip.frames():
                size = size or image_HW3.shape[:2]
                if image_HW3.shape[:2] != size:
                    raise UnreadableVideoError(
                        f"Frame {name} of {clip.path} is {_px(image_HW3.shape)}, the first one {_px(size)}: "
                        "a video has one size, so bring the frames to one."
                    )
                if count == 0 and label_folder is not None:
                    make_folder(label_folder)
                label_HW = predict_labels(model, image_HW3, inference, data).cpu().numpy()
                label_HW = as_labels(label_HW, classes)
                pixels += np.bincount(label_HW.ravel(), minlength=values)
                if label_folder is not None:
                    save_label(label_HW, palette, label_folder / f"{name}.png")
                packed = zlib.compress(label_HW.tobytes(), 1)
                store.write(len(packed).to_bytes(4, "little") + packed)
                count += 1
                advance(count, max(count, clip.count))
        if size is None:
            raise UnreadableVideoError(f"Video {clip.path} holds no frame that can be read: replace or remove it.")

        store.seek(0)
        present = np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)]
        legend = np.repeat(present, np.arange(len(present), 0, -1))  # drawn as a label image: largest class first
        with (
            progress(f"writing {target.name}", count) as advance,
            _writing(target, clip, count) as write,
        ):
            # Not strict: a file that is being recorded may have become longer.
            for done, (label_HW, (_, image_HW3)) in enumerate(
                zip(_stored(store, size, kind), clip.frames(), strict=False), 1
            ):
                picture = blend(image_HW3, label_HW, palette, alpha)
                write(_even(with_legend([picture], [legend], palette, classes)))
                advance(done, count)
    return count


def _stored(
    store: IO[bytes], size: tuple[int, ...], kind: type[np.unsignedinteger[Any]]
) -> Iterator[NDArray[np.unsignedinteger[Any]]]:
    while header := store.read(4):
        packed = store.read(int.from_bytes(header, "little"))
        yield np.frombuffer(zlib.decompress(packed), kind).reshape(size)


class _Reader:
    """RGB frames of a video file."""

    def __init__(self, path: Path) -> None:
        if not cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
            raise DataError(
                "This OpenCV was built without FFmpeg and knows no videos: pip install opencv-python-headless."
            )
        with silent_decoders():
            self.capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG)  # 12:30.mp4 is no protocol
        if not self.capture.isOpened():
            self.capture.release()
            raise UnreadableVideoError(
                f"Video {path} is empty, cut short, no video, or of a codec that is not known: replace it or bring it "
                "to H.264 (ffmpeg -i IN -c:v libx264 OUT.mp4)."
            )
        self.capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # phones store films lying on their side

    def __iter__(self) -> Iterator[Pixels]:
        while True:
            with silent_decoders():
                read, frame_HW3 = self.capture.read()
            if not read:
                return
            yield cv2.cvtColor(frame_HW3, cv2.COLOR_BGR2RGB)  # type: ignore[misc]

    def close(self) -> None:
        self.capture.release()


def codec_in_words() -> str:
    """What videos are written as here."""
    if find_spec("av") is None:
        return "MPEG-4, which browsers do not play: pip install 'whitebox-seg[video]' writes H.264 or AV1"
    return "H.264" if "264" in _codec() else "AV1" if "av1" in _codec() else "VP9"


def has_sound(path: str | os.PathLike[str]) -> bool:
    """Whether a video file has some, as far as PyAV, where it is there, can tell."""
    if find_spec("av") is None or os.path.isdir(path):
        return False
    import av

    try:
        with av.open(os.path.abspath(path)) as opened:
            return len(opened.streams.audio) > 0
    except (av.FFmpegError, OSError):
        return False


def _codec() -> str:
    import av

    return next(name for name in CODECS if name in av.codecs_available)


def _times(clip: Clip, count: int) -> list[float]:
    """When each frame is shown, in seconds from the first: as the file says, else ``fps`` a second."""
    import av

    found: list[float] = []
    if clip.variable:
        try:
            with av.open(os.path.abspath(clip.path)) as opened:
                packets = opened.demux(opened.streams.video[0])
                found = sorted(float(each.pts * each.time_base) for each in packets if each.pts is not None)
        except (av.FFmpegError, OSError, IndexError, TypeError):
            found = []
    if len(found) < count or any(after <= before for before, after in itertools.pairwise(found)):
        return [number / clip.fps for number in range(count)]
    return [time - found[0] for time in found[:count]]


@contextmanager
def _writing(target: Path, clip: Clip, count: int) -> Iterator[Callable[[Pixels], None]]:
    """Yields the function that adds an RGB frame; at the end ``count`` of them get their name, or nothing does.

    Raises:
        DataError: no encoder, or a file that does not hold all frames, because the disk is full for instance.
    """
    by = _writing_by_opencv if find_spec("av") is None else _writing_by_av
    with by(target, clip, count) as write:
        yield write


@contextmanager
def _writing_by_av(target: Path, clip: Clip, count: int) -> Iterator[Callable[[Pixels], None]]:
    import av

    temporary, times, done = target.with_name(f".{target.stem}.partial.mp4"), _times(clip, count), 0
    codec = _codec()
    stream: Any = None
    try:
        with av.open(os.path.abspath(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as written:

            def write(frame_HW3: Pixels) -> None:
                nonlocal stream, done
                if stream is None:
                    made: Any = written.add_stream(codec, rate=Fraction(clip.fps).limit_denominator(65535))
                    made.height, made.width = frame_HW3.shape[:2]
                    made.pix_fmt, made.time_base = "yuv420p", Fraction(1, TICKS)
                    made.codec_context.time_base = Fraction(1, TICKS)
                    stream = made
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HW3), format="rgb24")
                frame.pts, frame.time_base = round(times[done] * TICKS), Fraction(1, TICKS)
                written.mux(stream.encode(frame))
                done += 1

            yield write
            if stream is not None:
                written.mux(stream.encode())
        if done != count:
            raise DataError(f"{target} could not be written: {done} of {count} frames arrived; did the input change?")
        os.replace(temporary, target)
    except av.FFmpegError as error:
        raise DataError(f"PyAV {av.__version__} cannot write {target} ({error}): is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _writing_by_opencv(target: Path, clip: Clip, count: int) -> Iterator[Callable[[Pixels], None]]:
    """As `_writing`, at the mean frame rate.

    Raises:
        DataError: no encoder, or a file that does not hold all frames, because the disk is full for instance.
    """
    temporary = target.with_name(f".{target.stem}.partial.mp4")  # OpenCV knows the format by the suffix
    rate = clip.fps if clip.fps <= 65 else round(clip.fps, 2)  # MPEG-4 takes fractions up to 65535 / 65535
    writer: Any = None

    def write(frame_HW3: Pixels) -> None:
        nonlocal writer
        if writer is None:
            height, width = frame_HW3.shape[:2]
            with silent_decoders():
                codec = cv2.VideoWriter.fourcc(*"mp4v")
                writer = cv2.VideoWriter(os.path.abspath(temporary), cv2.CAP_FFMPEG, codec, rate, (width, height))
            if not writer.isOpened():
                raise DataError(
                    f"OpenCV {cv2.__version__} cannot encode {target} (MPEG-4, {width}x{height} px, {rate:g} frames a "
                    "second): pip install opencv-python-headless has the codec; larger than 8191 px is not possible."
                )
        writer.write(cv2.cvtColor(frame_HW3, cv2.COLOR_RGB2BGR))

    try:
        yield write
        writer.release()
        # OpenCV does not say when writing fails.
        with silent_decoders():
            written = cv2.VideoCapture(os.path.abspath(temporary), cv2.CAP_FFMPEG)
        held = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
        written.release()
        if held != count:
            raise DataError(
                f"{target} could not be written: {held} of {count} frames arrived; is the disk full, or did the input "
                "change meanwhile?"
            )
        os.replace(temporary, target)
    finally:
        if writer is not None:
            writer.release()
        temporary.unlink(missing_ok=True)


def _even(picture_HW3: Pixels) -> Pixels:
    """Repeat the last column or row where their number is odd; the codec would drop it."""
    height, width = picture_HW3.shape[:2]
    return np.pad(picture_HW3, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key under which numbers count as numbers; the digits themselves decide between 1 and 01."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(parts)] + [(0, name)]


def _listed(paths: Sequence[Path]) -> str:
    return f"{len(paths)} inputs" if len(paths) != 1 else f"{paths[0]}"


def _px(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]} px"
