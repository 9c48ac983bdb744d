"""Files as people have them: what is read right, and what is said where it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from own_data import change_masks, make_folder
from PIL import Image

from whitebox.config import DataConfig, change, from_dict, resolve
from whitebox.data import build_dataset, dataset_info
from whitebox.data.check import check_dataset
from whitebox.data.images import orientation, read_image, read_label
from whitebox.errors import ConfigError, DataError

Call = Callable[..., tuple[int, str, str]]


def configured(root: Path, **changes: object) -> DataConfig:
    settings = {"name": "folder", "kind": "folder", "root": str(root.parent), "path": root.name}
    return DataConfig(**{**settings, **changes})  # type: ignore[arg-type]


def classes(root: Path) -> tuple[str, ...]:
    return dataset_info(configured(root))[0]


def problems(root: Path, **changes: object) -> list[str]:
    found = check_dataset(configured(root, **changes)).problems
    assert all("\n" not in line for line in found)
    return found


def check(call: Call, root: Path, *overrides: str) -> tuple[int, list[str]]:
    code, out, err = call("data", "check", "folder", "--data-root", root.parent, f"data.path={root.name}", *overrides)
    assert err == ""
    return code, out.splitlines()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "d")


class TestClassNames:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_of_a_windows_editor(self, root: Path, encoding: str) -> None:
        (root / "classes.txt").write_bytes("road\r\n\r\ncar\r\nHimmel – ö\r\n".encode(encoding))
        assert classes(root) == ("road", "car", "Himmel – ö")

    def test_only_line_ends_end_a_name(self, root: Path) -> None:
        (root / "classes.txt").write_text("a\u2028b\nc\x0bd\re\n", newline="")
        assert classes(root) == ("a\u2028b", "c\x0bd", "e")

    def test_numbers_in_meta_json(self, root: Path) -> None:
        (root / "classes.txt").unlink()
        (root / "meta.json").write_bytes(b'\xef\xbb\xbf{"classes": [0, 1, "on"]}')
        assert classes(root) == ("0", "1", "on")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                '{"classes": [true, "b"]}',
                r'"classes" in .*meta.json holds True, which is no name: write names in quotes',
            ),
            ('{"classes": ["a", {"b": 1}]}', r"holds {'b': 1}, which is no name"),
            ('{"classes": ["a", " "]}', r"Class 1 of .* has no name: give it one"),
            ("[" * 9000, r"meta.json cannot be read as JSON"),
        ],
    )
    def test_what_is_no_name(self, root: Path, content: str, message: str) -> None:
        (root / "classes.txt").unlink()
        (root / "meta.json").write_text(content)
        with pytest.raises(DataError, match=message):
            classes(root)

    def test_half_a_character(self, root: Path) -> None:
        (root / "classes.txt").unlink()
        (root / "meta.json").write_text(json.dumps({"classes": ["a", "b\ud800"]}))
        with pytest.raises(ConfigError, match=r"Class 1 of .*, 'bU\+D800' is no text in UTF-8: rename it."):
            classes(root)

    def test_overrides_are_taken_as_written(self) -> None:
        chosen = resolve("depict-sa-tiny", "folder", ["data.classes=[on, 007, 1e5, null]"]).data.classes
        assert chosen == ["on", "007", "1e5", "null"]

    @pytest.mark.parametrize("name", ["lane [/red]", "[bold]x", ":smile:", "a_b$c$", "%s {x}"])
    def test_in_the_report(self, call: Call, root: Path, name: str) -> None:
        (root / "classes.txt").write_text(f"road\n{name}\nsky\n")
        code, lines = check(call, root)
        assert code == 0
        assert any(f" 1  {name} " in line for line in lines)

    def test_escape_sequences_do_nothing(self, call: Call, root: Path) -> None:
        (root / "classes.txt").write_text("road\na\x1b]0;title\x07\x1b[2J\u202eb\nsky\n")
        code, lines = check(call, root)
        assert code == 0
        assert "\x1b" not in "".join(lines)
        assert any("aU+001B]0;titleU+0007U+001B[2JU+202Eb" in line for line in lines)


class TestPaths:
    @pytest.mark.parametrize("name", ["007", "1_1_1", "on", "null x", "1e5", "#x", "${oc.env:HOME}", "a: b", "'q'"])
    def test_as_written(self, tmp_path: Path, call: Call, name: str) -> None:
        make_folder(tmp_path / name)
        code, lines = check(call, tmp_path / name)
        assert (code, lines[0]) == (0, f"folder ({tmp_path / name}): 3 classes")

    def test_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
        make_folder(tmp_path / "home" / "d")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert call("data", "check", "folder", "data.path=~/d")[0] == 0
        assert call("data", "show", "folder", "--data-root=~", "data.path=d", "-n", 1, "--output=~/shown.png")[0] == 0
        assert (tmp_path / "home" / "shown.png").is_file()
        config = resolve("depict-sa-tiny", "folder", ["encoder.weights=~/w.pth", "data.root=~", "data.path=d"])
        assert config.encoder.weights == str(tmp_path / "home" / "w.pth")
        assert config.data.root == str(tmp_path / "home")
        monkeypatch.setenv("WHITEBOX_DATA", "~/elsewhere")
        assert resolve("depict-sa-tiny", "camvid").data.root == str(tmp_path / "home" / "elsewhere")

    def test_relative_ones_mean_the_folder_here(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
    ) -> None:
        """Whatever $WHITEBOX_DATA says; and a run finds them again from elsewhere."""
        other = make_folder(tmp_path / "data" / "other")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("WHITEBOX_DATA", str(tmp_path / "data"))
        config = resolve("depict-sa-tiny", "folder", ["data.path=d"])
        assert Path(config.data.root, config.data.path) == root
        assert resolve("depict-sa-tiny", "folder", ["data.path=other"]).data.root == str(other.parent)
        make_folder(tmp_path / "data" / "d")
        assert resolve("depict-sa-tiny", "folder", ["data.path=d"], tmp_path / "data").data.root == str(other.parent)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        again = change(from_dict(json.loads(json.dumps({**vars(config), "data": vars(config.data)}, default=vars))))
        assert Path(again.data.root, again.data.path) == root
        assert change(again, None, (), tmp_path / "data").data.root == str(tmp_path / "data")
        code, _, err = call("data", "check", "folder", "data.path=nowhere")
        assert code == 1
        assert err.endswith("(and for nowhere here): give it as data.path=DIR, a path here or below --data-root.\n")

    def test_normal_forms(self, root: Path) -> None:
        """A zip made on a Mac spells é as two characters."""
        (root / "images/train/im0.png").rename(root / "images/train/caf\u00e9.png")
        (root / "masks/train/im0.png").rename(root / "masks/train/cafe\u0301.png")
        assert problems(root) == []
        assert build_dataset(configured(root), "train", augment=False).names == ["caf\u00e9", "im1"]


class TestLabelFiles:
    def rewrite(self, root: Path, suffix: str) -> None:
        for path in sorted(root.glob("masks/*/*.png")):
            with Image.open(path) as image:
                image.save(path.with_name(path.stem + suffix))
            path.unlink()

    def test_gif(self, root: Path) -> None:
        before = read_label(root / "masks/train/im0.png")
        self.rewrite(root, ".gif")
        assert problems(root) == []
        np.testing.assert_array_equal(read_label(root / "masks/train/im0.gif"), before)

    def test_gif_of_grey_values_in_any_order(self, tmp_path: Path) -> None:
        """A GIF has a palette only; where that is grey, its values are meant and not their places in it."""
        image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
        image.putpalette([255, 255, 255, 0, 0, 0, 1, 1, 1])
        image.save(tmp_path / "a.gif")
        assert read_label(tmp_path / "a.gif").tolist() == [[255, 0], [1, 0]]
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        image.save(tmp_path / "b.gif", optimize=False)
        assert read_label(tmp_path / "b.gif").tolist() == [[0, 1], [2, 1]]

    def test_animation(self, tmp_path: Path) -> None:
        frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (0, 90)]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match=r"a.gif is an animation of 2 frames"):
            read_label(tmp_path / "a.gif")

    def test_jpeg(self, root: Path) -> None:
        self.rewrite(root, ".jpg")
        found = problems(root)
        assert len(found) == 4
        assert found[0].endswith(f"only {root}/masks/train/im0.jpg: JPEG changes label values, save it as PNG.")
        with pytest.raises(DataError, match="JPEG changes label values"):
            build_dataset(configured(root), "train", augment=False)

    def test_suffix_of_the_stem(self, root: Path) -> None:
        self.rewrite(root, "_mask.png")
        found = problems(root)
        assert len(found) == 4
        assert f"only {root}/masks/train/im0_mask.png, whose stem differs" in found[0]
        assert found[0].endswith("or set data.label_suffix=_mask.png.")
        assert problems(root, label_suffix="_mask.png") == []

    def test_photos_of_another_kind(self, root: Path) -> None:
        with Image.open(root / "images/train/im0.png") as image:
            image.save(root / "images/train/im0.gif")
        (root / "images/train/im0.png").unlink()
        (found,) = problems(root)
        assert f"only {root}/images/train/im0.gif: that is no kind of image that is read" in found

    def test_one_stem_twice_hides_nothing(self, root: Path) -> None:
        with Image.open(root / "images/train/im1.png") as image:
            image.save(root / "images/train/im1.jpg")
        (root / "masks/train/im0.png").write_bytes(b"")
        report = check_dataset(configured(root))
        assert report.splits[0].images == 2
        assert len(report.problems) == 2
        assert "im1.jpg and" in report.problems[0] and "have the same stem" in report.problems[0]
        with pytest.raises(DataError, match="have the same stem: keep one of them"):
            build_dataset(configured(root), "train", augment=False)

    def test_floating_point(self, tmp_path: Path) -> None:
        whole = np.arange(3072).reshape(48, 64) % 3
        Image.fromarray(whole.astype(np.float32)).save(tmp_path / "l.tif")
        np.testing.assert_array_equal(read_label(tmp_path / "l.tif"), whole)
        with pytest.raises(
            DataError, match=r"l.tif holds floating point numbers \(float32\): save it with integers of 8"
        ):
            read_image(tmp_path / "l.tif")
        cv2.imwrite(str(tmp_path / "d.tif"), whole / 2)
        with pytest.raises(DataError, match=r"d.tif holds floating point numbers with fractions \(mode float64\)"):
            read_label(tmp_path / "d.tif")

    @pytest.mark.parametrize(("mode", "reason"), [("LA", "has transparency"), ("RGB", "of equal channels")])
    def test_grey_values_in_several_channels(self, tmp_path: Path, mode: str, reason: str) -> None:
        Image.new(mode, (4, 4)).save(tmp_path / "a.png")
        with pytest.raises(DataError, match=reason):
            read_label(tmp_path / "a.png")


class TestSizes:
    def test_more_than_pillow_allows(self, tmp_path: Path) -> None:
        """14000 x 14000 px."""
        Image.fromarray(np.zeros((14000, 14000), np.uint8)).save(tmp_path / "big.png", compress_level=1)
        assert read_label(tmp_path / "big.png").shape == (14000, 14000)
        assert Image.MAX_IMAGE_PIXELS is not None

    def test_more_than_opencv_allows(self, tmp_path: Path) -> None:
        """By what the header says; nothing is decoded."""
        path = tmp_path / "huge.bmp"
        Image.new("L", (1, 1)).save(path)
        content = bytearray(path.read_bytes())
        content[18:26] = np.array([40_000, 40_000], "<i4").tobytes()
        path.write_bytes(content)
        for read, what in ((read_label, "Label"), (read_image, "Image")):
            with pytest.raises(DataError, match=rf"^{what} .*huge.bmp has 40000 x 40000 px, more than 2\^30 in all"):
                read(path)

    def test_more_than_the_memory(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the size in the header."""
        monkeypatch.setattr("whitebox.data.images.free_bytes", lambda wanted: 10_000)
        with pytest.raises(DataError, match=r"has 64 x 48 px, which need 18.4 kB of memory, and 10.0 kB are free"):
            read_image(root / "images/train/im0.png")
        assert read_label(root / "masks/train/im0.png").shape == (48, 64)  # 6144 bytes are enough

    def test_free_memory_under_a_limit(self) -> None:
        """``ulimit -v``, in a process of its own."""
        code = "from whitebox.memory import free_bytes; print(free_bytes())"
        limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9)); {code}"
        done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=True)
        assert 5e8 < int(done.stdout) < 1e9


class TestOrientation:
    def turn(self, root: Path, part: str, value: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = value
        for path in sorted(root.glob(f"{part}/*/*.png")):
            with Image.open(path) as image:
                image.load()
            image.save(path, exif=exif)

    @pytest.mark.parametrize(("part", "which", "other"), [("images", "image", "label")])
    def test_quarter_turns(self, root: Path, part: str, which: str, other: str) -> None:
        self.turn(root, part, 6)
        assert orientation(root / part / "train/im0.png") == 6
        assert f"the {which} is turned by its EXIF orientation (6) and the {other} is not" in problems(root)[0]
        with pytest.raises(DataError, match=r"turned by its EXIF orientation \(6\)"):
            build_dataset(configured(root), "train", augment=False)[0]

    @pytest.mark.parametrize("part", ["images", "masks"])
    def test_half_turns(self, root: Path, call: Call, part: str) -> None:
        self.turn(root, part, 3)
        code, lines = check(call, root)
        what = "2 images have an EXIF orientation, their labels are read as stored" if part == "images" else "2 labels"
        assert code == 0
        assert sum(what in line for line in lines) == 2
        assert lines[-1] == "folder: no problem, and 2 things to look at"


class TestLabels:
    def test_one_class(self, root: Path, call: Call) -> None:
        change_masks(root, np.zeros_like)
        (root / "classes.txt").write_text("water\n")
        code, lines = check(call, root)
        assert code == 1
        assert (
            "there is one class, so every pixel is right from the first step: add a class for all the rest" in lines[-2]
        )

    def test_0_and_255(self, root: Path) -> None:
        change_masks(root, lambda label: np.where(label == 1, 255, 0))
        (root / "classes.txt").write_text("background\ntumour\n")
        found = problems(root)
        assert len(found) == 2
        assert "labels hold 0 and 255 alone, and 255 is ignored, so only 'background' counts" in found[0]
        assert "where 255 means 'tumour', say so with data.label_map={0:0,255:1}" in found[0]
        assert problems(root, label_map={0: 0, 255: 1}) == []

    def test_only_ignored(self, root: Path) -> None:
        change_masks(root, lambda label: np.full_like(label, 255), "train")
        assert problems(root) == ["train: no label has a pixel of any class."]

    def test_only_one_of_the_classes(self, root: Path) -> None:
        change_masks(root, np.zeros_like, "val")
        assert problems(root) == ["val: no label has a pixel of any class but 'road': there is nothing to tell apart."]

    def test_a_class_stored_as_255(self, root: Path) -> None:
        change_masks(root, lambda label: np.where(label == 2, 255, label))
        report = check_dataset(configured(root))
        assert report.problems == []
        assert "1 classes never occur: sky; and 255, which is ignored, covers" in report.doubts[0]

    def test_names_twice(self, root: Path) -> None:
        (root / "classes.txt").write_text("road\ncar\nroad\n")
        assert check_dataset(configured(root)).doubts == ["1 names are those of several classes: road."]


class TestLabelMap:
    """``data.label_map``: stored values -> classes, without rewriting a file."""

    def labels(self, root: Path, **changes: object) -> np.ndarray:  # type: ignore[type-arg]
        dataset = build_dataset(configured(root, **changes), "train", augment=False)
        return np.stack([sample.label.numpy() for sample in dataset])

    def test_values(self, root: Path) -> None:
        before = self.labels(root)
        change_masks(root, lambda label: np.array([0, 255, 77], np.uint8)[label])
        np.testing.assert_array_equal(self.labels(root, label_map={255: 1, 77: 2}), before)
        merged = self.labels(root, label_map={255: 0, 77: 255})
        np.testing.assert_array_equal(merged, np.array([0, 0, 255])[before])
        report = check_dataset(configured(root, label_map={255: 1, 77: 2}))
        assert report.problems == []
        assert report.class_pixels(report.splits[0]).tolist() == np.bincount(before.ravel()).tolist()

    def test_reduce_zero_label_is_for_the_others(self, root: Path) -> None:
        before = self.labels(root)
        found = self.labels(root, reduce_zero_label=True, label_map={0: 2})
        np.testing.assert_array_equal(found, np.array([2, 0, 1])[before])

    @pytest.mark.parametrize(
        ("text", "value"), [("{0:0,255:1}", {0: 0, 255: 1}), ("{0: 0, 3 : 255}", {0: 0, 3: 255}), ("{}", {})]
    )
    def test_as_override(self, text: str, value: dict[int, int]) -> None:
        config = resolve("depict-sa-tiny", "folder", [f"data.label_map={text}"])
        assert config.data.label_map == value
        saved = json.loads(json.dumps({**vars(config), "data": vars(config.data)}, default=vars))
        assert from_dict(saved) == config
        assert change(config, None, ["data.label_map={7:1}"]).data.label_map == {7: 1}

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["data.label_map=0:0"], r"data.label_map=0:0 cannot be read: write {STORED:CLASS,...}, for example"),
            (["data.label_map={a:0}"], r"cannot be read"),
            (["data.label_map={256:0}"], r"it takes {STORED:CLASS,...}, stored values 0..255"),
            (["data.label_map={0:254}"], r"classes from 0, or 255 for ignored"),
            (["data.kind=camvid", "data.label_map={0:1}"], r"labels of data.kind=camvid are fixed"),
        ],
    )
    def test_what_it_cannot_be(self, overrides: list[str], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            resolve("depict-sa-tiny", "folder", overrides)

    def test_a_class_that_is_not_there(self, root: Path) -> None:
        with pytest.raises(
            ConfigError, match=r"makes 255 class 3, and there are 3 classes: 0 to 2, or 255 for ignored"
        ):
            self.labels(root, label_map={255: 3})


def test_letters_of_pictures(root: Path, call: Call, tmp_path: Path) -> None:
    """Names of one length in ASCII and beyond are drawn with other letters, none of them an empty box."""
    from whitebox.text import drawn, font

    assert drawn("ñandú Straße céu Жук") == "ñandú Straße céu Жук"
    assert drawn("a中🦔\x1b") == "aU+4E2DU+1F994U+001B"
    assert drawn("e\u0301") == "é"
    assert drawn("x" * 200) == f"{24 * 'x'}…{23 * 'x'}"
    assert len(drawn("中" * 200)) <= 48
    box = np.asarray(font(20).getmask("\U00013000"))
    for letter in "ñúßéЖ":
        shape = np.asarray(font(20).getmask(letter))
        assert shape.shape != box.shape or (shape != box).any()
    (root / "classes.txt").write_text("ñandú\nStraße\ncéu\n")
    code, _, _ = call(
        "data", "show", "folder", "--data-root", root.parent, "data.path=d", "-n", 1, "-o", tmp_path / "a.png"
    )
    assert code == 0
    (root / "classes.txt").write_text("nandu\nStrase\nceu\n")
    call("data", "show", "folder", "--data-root", root.parent, "data.path=d", "-n", 1, "-o", tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
