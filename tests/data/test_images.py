import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from whitebox.data.images import read_image, read_label
from whitebox.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 32, 3)).astype(np.uint8)


def smooth(height: int = 40, width: int = 60) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 4, columns * 3, 200 - rows * 2], -1).astype(np.uint8)


def encode(array: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff"])
def test_lossless_images_come_back_as_rgb(tmp_path: Path, kind: str) -> None:
    read = read_image(save(tmp_path / f"a.{kind}", encode(PIXELS, kind)))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, PIXELS)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_lossy_images_come_back_as_rgb(tmp_path: Path, kind: str) -> None:
    read = read_image(save(tmp_path / f"a.{kind}", encode(smooth(), kind, quality=95)))
    assert np.abs(read.astype(int) - smooth()).mean() < 4


def test_pixels_equal_mmcv(mmseg: None, tmp_path: Path) -> None:
    import mmcv

    path = save(tmp_path / "a.jpg", encode(PIXELS, "jpeg", quality=80))
    np.testing.assert_array_equal(read_image(path), mmcv.imread(str(path), channel_order="rgb"))


def test_16_bit_becomes_8_bit(tmp_path: Path) -> None:
    deep = PIXELS.astype(np.uint16) * 256 + 77
    path = save(tmp_path / "a.png", cv2.imencode(".png", deep[..., ::-1])[1].tobytes())
    np.testing.assert_array_equal(read_image(path), PIXELS)


@pytest.mark.parametrize("deep", [False, True])
def test_grey_gets_three_equal_channels(tmp_path: Path, deep: bool) -> None:
    grey = PIXELS[..., 0]
    stored = grey.astype(np.uint16) * 256 if deep else grey
    read = read_image(save(tmp_path / "a.png", cv2.imencode(".png", stored)[1].tobytes()))
    np.testing.assert_array_equal(read, np.repeat(grey[..., None], 3, -1))


def test_rgba_keeps_its_colours(tmp_path: Path) -> None:
    rgba = np.dstack([PIXELS, RNG.integers(0, 256, (24, 32)).astype(np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", encode(rgba, "png"))), PIXELS)


def test_palette_image_gives_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[10, 20, 30], [40, 50, 60]]])


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    read = read_image(save(tmp_path / "a.jpg", encode(smooth(), "jpeg", quality=98, exif=exif)))
    upright = np.rot90(smooth(), -1)
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).mean() < 4


def test_one_pixel(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", encode(np.full((1, 1, 3), 9, np.uint8), "png"))
    np.testing.assert_array_equal(read_image(path), [[[9, 9, 9]]])


def test_data_after_the_end_is_no_damage(tmp_path: Path) -> None:
    content = encode(smooth(), "jpeg")
    whole, longer = save(tmp_path / "a.jpg", content), save(tmp_path / "b.jpg", content + b"a film follows" * 9)
    np.testing.assert_array_equal(read_image(longer), read_image(whole))


@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "webp", "tiff"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_cut_short(tmp_path: Path, kind: str, share: float, capfd: pytest.CaptureFixture[str]) -> None:
    content = encode(PIXELS, kind)
    path = save(tmp_path / f"a.{kind}", content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"a\.\w+ is damaged.*replace or remove it"):
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_cut_short_and_filled_with_zeros(tmp_path: Path) -> None:
    content = encode(PIXELS, "jpeg")
    path = save(tmp_path / "a.jpg", content[: len(content) // 2] + bytes(len(content) // 2))
    with pytest.raises(DataError, match="cut short"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_label])
@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"<html>not found</html>", "is damaged"), (None, "cannot be opened")]
)
def test_not_an_image(tmp_path: Path, read: object, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(path)  # type: ignore[operator]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        read_image(tmp_path)


LABEL = np.array([[0, 1, 2], [3, 254, 255]], np.uint8)


def test_label_indices(tmp_path: Path) -> None:
    read = read_label(save(tmp_path / "a.png", encode(LABEL, "png")))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, LABEL)


def test_palette_label_gives_indices(tmp_path: Path) -> None:
    image = Image.fromarray(LABEL, "P")
    image.putpalette(RNG.integers(0, 256, 768).tolist())
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), LABEL)


def test_one_bit_label(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", encode(LABEL > 1, "png"))
    np.testing.assert_array_equal(read_label(path), LABEL > 1)


def test_16_bit_label_of_small_values(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", cv2.imencode(".png", LABEL.astype(np.uint16))[1].tobytes())
    np.testing.assert_array_equal(read_label(path), LABEL)


def test_16_bit_label_of_large_values(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", cv2.imencode(".png", LABEL.astype(np.uint16) + 300)[1].tobytes())
    with pytest.raises(DataError, match=r"a\.png holds the value 555"):
        read_label(path)


def test_colour_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png is a colour image \(mode RGB\)"):
        read_label(save(tmp_path / "a.png", encode(PIXELS, "png")))


def test_label_cut_short(tmp_path: Path) -> None:
    content = encode(PIXELS[..., 0], "png")
    with pytest.raises(DataError, match=r"a\.png is damaged, cut short"):
        read_label(save(tmp_path / "a.png", content[: len(content) // 2]))
