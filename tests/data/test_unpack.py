"""Archives that mean no harm, and archives that do."""

import gzip
import io
import os
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from whitebox.data import unpack as module
from whitebox.data.unpack import Limits, copy_folder, is_archive, unpack
from whitebox.errors import DataError

FILES = {"set/images/a.jpg": b"a" * 5000, "set/images/b.jpg": b"", "set/readme.txt": b"hello"}
LIMITS = Limits(100_000, 50)


def everything(path: str) -> str:
    return path


def images(path: str) -> str | None:
    return f"out/{path.rsplit('/', 1)[-1]}" if path.endswith(".jpg") else None


def make_zip(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("set") if hasattr(archive, "mkdir") else None
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes] = FILES, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("set")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o4777
            archive.addfile(info, io.BytesIO(content))
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "a.zip": make_zip,
    "a.tar": make_tar,
    "a.tar.gz": lambda path: make_tar(path, mode="w:gz"),
    "a.tar.xz": lambda path: make_tar(path, mode="w:xz"),
    "a.dat": make_zip,  # the content says what it is, not the name
}


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive: Path, target: Path, limits: Limits = LIMITS) -> str:
    """The message; nothing may have been written outside of ``target``."""
    outside = tree(target.parent)
    with pytest.raises(DataError) as caught:
        unpack(archive, target, everything, limits)
    assert "\n" not in str(caught.value)
    assert {name: content for name, content in tree(target.parent).items() if not name.startswith("t/")} == outside
    assert not any(path.is_symlink() for path in target.rglob("*"))
    return str(caught.value)


@pytest.mark.parametrize("name", MAKERS)
def test_unpacks(tmp_path: Path, name: str) -> None:
    archive = MAKERS[name](tmp_path / name)
    assert is_archive(archive)
    seen: list[int] = []
    assert unpack(archive, tmp_path / "t", everything, LIMITS, seen.append) == 3
    assert tree(tmp_path / "t") == FILES
    assert seen == list(range(1, seen[-1] + 1))


@pytest.mark.parametrize("name", MAKERS)
def test_only_what_is_wanted(tmp_path: Path, name: str) -> None:
    assert unpack(MAKERS[name](tmp_path / name), tmp_path / "t", images, LIMITS) == 2
    assert tree(tmp_path / "t") == {"out/a.jpg": FILES["set/images/a.jpg"], "out/b.jpg": b""}


def test_folder(tmp_path: Path) -> None:
    unpack(make_zip(tmp_path / "a.zip"), tmp_path / "source", everything, LIMITS)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.jpg").write_bytes(b"c")
    (tmp_path / "source" / "link").symlink_to(tmp_path / "more")
    assert copy_folder(tmp_path / "source", tmp_path / "t", images, LIMITS) == 3
    assert set(tree(tmp_path / "t")) == {"out/a.jpg", "out/b.jpg", "out/c.jpg"}
    with pytest.raises(DataError, match="more than 50 files or 1e-06 GB"):
        copy_folder(tmp_path / "source", tmp_path / "t", images, Limits(1000, 50))


def test_permissions_are_ours(tmp_path: Path) -> None:
    unpack(make_tar(tmp_path / "a.tar"), tmp_path / "t", everything, LIMITS)
    assert stat.S_IMODE((tmp_path / "t" / "set" / "readme.txt").stat().st_mode) & 0o7111 == 0


def test_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_zip(tmp_path / "a.zip")

    def stop(done: int) -> None:
        if (tmp_path / "t" / "set" / "images" / "a.jpg").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "t", everything, LIMITS, stop)
    assert set(tree(tmp_path / "t")) == {"set/images/a.jpg"}
    written: list[str] = []
    real = module.open_for_writing
    monkeypatch.setattr(module, "open_for_writing", lambda path, mode: written.append(path.name) or real(path, mode))
    unpack(archive, tmp_path / "t", everything, LIMITS)
    assert written == ["b.jpg.unfinished", "readme.txt.unfinished"]
    assert tree(tmp_path / "t") == FILES


def test_half_a_file_does_not_count(tmp_path: Path) -> None:
    half = tmp_path / "t" / "set" / "images" / "a.jpg.unfinished"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"a" * 10)
    unpack(make_zip(tmp_path / "a.zip"), tmp_path / "t", everything, LIMITS)
    assert tree(tmp_path / "t") == FILES


EVIL_NAMES = ["../out.txt", "set/../../out.txt", "/NAME", "..\\out.txt", "C:\\out.txt", "\\out.txt"]


@pytest.mark.parametrize("name", EVIL_NAMES)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_no_member_leaves_its_folder(tmp_path: Path, make: Callable[..., Path], name: str) -> None:
    """``/NAME`` stands for an absolute path into the test's own folder, so that a slip leaves nothing behind."""
    name = f"{tmp_path}/slipped.txt" if name.startswith("/") else name
    archive = make(tmp_path / "evil", {name: b"x"})
    assert "would write outside its folder" in refused(archive, tmp_path / "t")
    assert not (tmp_path / "slipped.txt").exists()


def test_unwanted_evil_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="outside its folder"):
        unpack(make_tar(tmp_path / "evil", {"../a.txt": b""}), tmp_path / "t", images, LIMITS)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_no_links_or_devices_in_tar(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "secret").write_text("secret")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        link = tarfile.TarInfo("folder.jpg")
        link.type, link.linkname = kind, str(tmp_path)
        archive.addfile(link)
        through = tarfile.TarInfo("folder.jpg/secret")
        through.size = 4
        archive.addfile(through, io.BytesIO(b"evil"))
    what = "device" if kind in (tarfile.CHRTYPE, tarfile.FIFOTYPE) else "link"
    assert f"has a {what} where a file should be ('folder.jpg')" in refused(tmp_path / "evil.tar", tmp_path / "t")
    assert (tmp_path / "secret").read_text() == "secret"
    assert unpack(tmp_path / "evil.tar", tmp_path / "u", lambda _: None, LIMITS) == 0  # unwanted ones are no harm


def test_no_links_in_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    assert "has a link where a file should be" in refused(tmp_path / "evil.zip", tmp_path / "t")


def test_no_password(tmp_path: Path) -> None:
    content = bytearray(make_zip(tmp_path / "a.zip").read_bytes())
    central = content.index(
        b"PK\x01\x02", content.index(b"PK\x01\x02") + (4 if hasattr(zipfile.ZipFile, "mkdir") else 0)
    )
    content[central + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    assert "under a password" in refused(tmp_path / "a.zip", tmp_path / "t")


@pytest.mark.parametrize("make", [make_zip, lambda path, files: make_tar(path, files, "w:gz")])
def test_bombs(tmp_path: Path, make: Callable[..., Path]) -> None:
    bomb = make(tmp_path / "bomb", {"zeros.jpg": bytes(200_000)})
    assert bomb.stat().st_size < 2000
    assert "more than 50 files or 0.0001 GB" in refused(bomb, tmp_path / "t")
    assert tree(tmp_path / "t") == {}
    many = make(tmp_path / "many", {f"{index}.jpg": b"" for index in range(60)})
    assert "far more than this dataset" in refused(many, tmp_path / "t")
    assert len(tree(tmp_path / "t")) <= 50


def test_a_bomb_that_lies_about_its_size(tmp_path: Path) -> None:
    content = bytearray(make_zip(tmp_path / "a.zip", {"zeros.jpg": bytes(200_000)}).read_bytes())
    real, small = struct.pack("<L", 200_000), struct.pack("<L", 10)
    assert content.count(real) == 2  # the file's own header, and the list at the end
    (tmp_path / "a.zip").write_bytes(content.replace(real, small))
    assert "is damaged" in refused(tmp_path / "a.zip", tmp_path / "t")
    assert sum(map(len, tree(tmp_path / "t").values())) <= 10


@pytest.mark.parametrize("name", MAKERS)
def test_cut_short(tmp_path: Path, name: str) -> None:
    archive = MAKERS[name](tmp_path / name)
    content = archive.read_bytes()
    archive.write_bytes(content[: 3000 if name == "a.tar" else len(content) // 2])
    assert "is damaged, cut short, or no zip or tar file" in refused(archive, tmp_path / "t")


def test_a_flipped_bit(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", b"abcdef" * 100)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[100] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    assert "Bad CRC-32" in refused(tmp_path / "a.zip", tmp_path / "t")
    assert "a.jpg" not in tree(tmp_path / "t")


def test_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"<html>login</html>" * 100)
    assert not is_archive(tmp_path / "a.zip")
    assert "no zip or tar file" in refused(tmp_path / "a.zip", tmp_path / "t")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"no tar" * 500))
    assert not is_archive(tmp_path / "a.gz")


@pytest.mark.skipif(os.name != "posix", reason="needs folders that cannot be written")
def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.jpg": b"1", "a.jpg/b.jpg": b"2"})
    assert "cannot be written" in refused(archive, tmp_path / "t")


@pytest.mark.parametrize(
    "below", ["../out.txt", "/whitebox-placed.txt", "a/../../out.txt", "a\\..\\out.txt", "a\0b", ""]
)
def test_a_wanted_place_outside_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    """Whatever a dataset's rules make of a name that is harmless itself."""
    monkeypatch.setattr(module, "open_for_writing", lambda *_: pytest.fail("something was written"))
    with pytest.raises(DataError, match=re.escape(f"place() gave {below!r}")):
        unpack(make_zip(tmp_path / "a.zip"), tmp_path / "t", lambda _: below, LIMITS)
    assert tree(tmp_path) == {"a.zip": (tmp_path / "a.zip").read_bytes()}


def test_no_zero_bytes_in_names(tmp_path: Path) -> None:
    """The system would end the name there; tar's extended headers can hold one, zip's names end there."""
    archive = make_tar(tmp_path / "evil", {"\u00e4.jpg\0.txt": b"x"})
    with tarfile.open(archive) as opened:
        assert "\0" in opened.getnames()[1]
    assert "would write outside its folder ('\u00e4.jpg\\x00.txt')" in refused(archive, tmp_path / "t")


def test_a_file_of_that_size_but_other_content_is_replaced(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip")
    unpack(archive, tmp_path / "t", everything, LIMITS)
    (tmp_path / "t" / "set" / "readme.txt").write_bytes(b"HELLO")
    unpack(archive, tmp_path / "t", everything, LIMITS)
    assert tree(tmp_path / "t") == FILES


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_giant_header_is_not_read(tmp_path: Path, mode: str) -> None:
    with tarfile.open(tmp_path / "a.tar", mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        info = tarfile.TarInfo("set/a.jpg")
        info.pax_headers = {"comment": "x" * 2_000_000}
        archive.addfile(info, io.BytesIO())
    assert is_archive(tmp_path / "a.tar")
    assert "has a header of 2.0 MB" in refused(tmp_path / "a.tar", tmp_path / "t")


def test_many_headers(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(3):
            archive.addfile(tarfile.TarInfo(f"set/{number}.jpg"))
            block = tarfile.TarInfo.create_pax_global_header({f"k{number}-{each}": "v" for each in range(600)})
            archive.fileobj.write(block)  # type: ignore[union-attr]
            archive.offset += len(block)
    assert "it has too many headers" in refused(tmp_path / "a.tar", tmp_path / "t")


def test_a_folder_that_links_to_its_parent(tmp_path: Path) -> None:
    (tmp_path / "source" / "set").mkdir(parents=True)
    (tmp_path / "source" / "set" / "up").symlink_to(tmp_path / "source")
    with pytest.raises(DataError, match=r"set/up is a link to a folder that it lies in, so it has no end: remove"):
        copy_folder(tmp_path / "source", tmp_path / "t", everything, LIMITS)
