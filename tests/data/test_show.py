"""`whitebox data show`: the picture holds the stored samples, the views of training, and the names of classes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from whitebox.config import DataConfig
from whitebox.data import build_dataset, shapes
from whitebox.data.show import show_dataset
from whitebox.errors import ConfigError, DataError

GREY = (127.5, 127.5, 127.5)
MakeFolder = Callable[..., DataConfig]
Call = Callable[..., tuple[int, str, str]]
HEIGHT = 200  # px of a panel


def drawn(size: int = 200, **changes: object) -> DataConfig:
    settings = {"size": size, "crop": size, "resize": size, "scale_range": [1.0, 1.0], "photometric": False}
    return DataConfig(**{**settings, "train_length": 20, "val_length": 3, **changes})  # type: ignore[arg-type]


def pixels(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def panels(picture: np.ndarray, row: int = 0) -> list[np.ndarray]:  # type: ignore[type-arg]
    """The four square panels of a row of the first column."""
    top = 40 + row * (HEIGHT + 14 + 12)
    return [picture[top : top + HEIGHT, 6 + 206 * n : 6 + 206 * n + HEIGHT] for n in range(4)]


def share_of_equal(a: np.ndarray, b: np.ndarray) -> float:  # type: ignore[type-arg]
    return float((a == b).all(-1).mean())


def test_panels_are_the_sample_and_its_view(tmp_path: Path) -> None:
    config = drawn()
    (name,) = show_dataset(config, "train", 1, tmp_path / "a.png", GREY, seed=3)
    plain = build_dataset(config, "train", augment=False)
    view = build_dataset(config, "train", augment=True, seed=3, mean_255=GREY)[plain.names.index(name)]
    sample = plain[plain.names.index(name)]
    photo, label, seen, seen_label = panels(pixels(tmp_path / "a.png"))
    palette = np.array(shapes.PALETTE, np.uint8)
    np.testing.assert_array_equal(photo, sample.image.permute(1, 2, 0).numpy())
    np.testing.assert_allclose(seen / 255, view.image.permute(1, 2, 0).numpy(), atol=0.5 / 255 + 1e-6)
    # the names of classes are written over the labels
    assert share_of_equal(label, palette[sample.label.numpy()]) > 0.9
    assert share_of_equal(seen_label, palette[view.label.numpy()]) > 0.9
    assert share_of_equal(label, palette[sample.label.numpy()]) < 1


def test_same_seed_same_picture(tmp_path: Path) -> None:
    config = drawn(64)
    chosen = [show_dataset(config, "train", 4, tmp_path / f"{n}.png", GREY, seed) for n, seed in enumerate((0, 0, 1))]
    assert chosen[0] == chosen[1] != chosen[2]
    assert np.array_equal(pixels(tmp_path / "0.png"), pixels(tmp_path / "1.png"))


def test_padding_is_ignored(tmp_path: Path) -> None:
    show_dataset(drawn(100, crop=200, resize=100), "train", 1, tmp_path / "a.png", GREY)
    _, _, seen, label = panels(pixels(tmp_path / "a.png"))
    assert (seen[150:] == 128).all()
    assert (label[150:] == 0).all()


def test_legend_grows_with_what_occurs(folder: MakeFolder, tmp_path: Path) -> None:
    config = folder(train=1)
    show_dataset(config, "train", 1, tmp_path / "all.png", GREY)
    mask = Path(config.root, config.path, "masks", "train", "train0.png")
    classes = np.unique(np.asarray(Image.open(mask)))
    palette = build_dataset(config, "train", augment=False).palette

    def legend(path: Path) -> set[tuple[int, ...]]:
        below = pixels(path)[40 + HEIGHT + 26 :]
        return {tuple(colour) for colour in below.reshape(-1, 3).tolist()}

    assert len(classes) > 1
    assert all(palette[k] in legend(tmp_path / "all.png") for k in classes)
    Image.fromarray(np.full((64, 64), 3, np.uint8)).save(mask)
    show_dataset(config, "train", 1, tmp_path / "one.png", GREY)
    assert palette[3] in legend(tmp_path / "one.png")
    assert palette[4] not in legend(tmp_path / "one.png")


def test_all_where_there_are_fewer(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    names = show_dataset(
        drawn(32), "val", 8, tmp_path / "new" / "a.jpg", GREY, on_image=lambda done, total: seen.append((done, total))
    )
    assert names == ["val_00000", "val_00001", "val_00002"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with Image.open(tmp_path / "new" / "a.jpg") as picture:
        assert picture.format == "JPEG"


def test_no_picture_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.txt is no picture file"):
        show_dataset(drawn(32), "train", 1, tmp_path / "a.txt", GREY)


def test_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no split 'dev'"):
        show_dataset(drawn(32), "dev", 1, tmp_path / "a.png", GREY)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written \(File exists|cannot be written \(Not a directory"):
        show_dataset(drawn(32), "train", 1, tmp_path / "file" / "a.png", GREY)


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "pascal-context-59", "coco-stuff164k"])
def test_samples(call: Call, shared: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.png"
    code, out, _ = call("data", "show", name, "--data-root", shared / "data" / "samples", "-n", 3, "-o", path)
    assert (code, out) == (0, f"Picture: {path}\n")
    height, width, _ = pixels(path).shape
    assert width > 1000 and height > 2 * HEIGHT


def test_default_output(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("data", "show", "shapes", "-n", 1, "--split", "val", "data.size=32", "data.crop=32")
    assert (code, out) == (0, "Picture: shapes-val.png\n")
    assert (tmp_path / "shapes-val.png").is_file()


def test_labels_are_shrunk_to_classes_that_are_there(tmp_path: Path) -> None:
    """Classes 0 and 2 alternate pixel by pixel; an average of them would show class 1, which is nowhere."""
    for part, content in (
        ("images", np.zeros((330, 330, 3), np.uint8)),
        ("masks", np.indices((330, 330)).sum(0) % 2 * 2),
    ):
        (tmp_path / "set" / part / "train").mkdir(parents=True)
        Image.fromarray(content.astype(np.uint8)).save(tmp_path / "set" / part / "train" / "a.png")
    (tmp_path / "set" / "classes.txt").write_text("first\nsecond\nthird\n")
    palette = [[10, 20, 30], [40, 250, 60], [200, 30, 220]]
    config = drawn(kind="folder", root=str(tmp_path), path="set", palette=palette)
    show_dataset(config, "train", 1, tmp_path / "a.png", GREY)
    _, label, _, seen_label = panels(pixels(tmp_path / "a.png"))
    for panel in (label, seen_label):
        assert {tuple(colour) for colour in np.unique(panel.reshape(-1, 3), axis=0).tolist()} == {
            (10, 20, 30),
            (200, 30, 220),
        }
