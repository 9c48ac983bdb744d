"""Downloads against a server that cuts connections, changes its mind, and sends the wrong thing."""

import errno
import hashlib
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from misbehaving_web import Web, serve

from whitebox.data import download as module
from whitebox.data.download import download, is_url
from whitebox.errors import DataError

BODY = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as started:
        started.files["set.zip"] = BODY
        yield started


def get(web: Web, path: Path, **changes: Any) -> str:
    return download(web.url("set.zip"), path, **{"wait": 0.0, "patience": 3, "timeout": 5.0, **changes})


def fails(web: Web, path: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        get(web, path, **changes)
    assert "\n" not in str(caught.value)
    assert not path.exists()
    return str(caught.value)


def test_whole_file(web: Web, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    assert get(web, tmp_path / "a", on_bytes=lambda done, total: seen.append((done, total))) == SHA256
    assert (tmp_path / "a").read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert not (tmp_path / "a.part").exists()


def test_there_already(web: Web, tmp_path: Path) -> None:
    get(web, tmp_path / "a")
    assert get(web, tmp_path / "a") == SHA256
    (tmp_path / "a.json").unlink()
    assert get(web, tmp_path / "a") == SHA256
    assert len(web.log) == 1


@pytest.mark.parametrize("length", [True, False], ids=["length", "chunks"])
def test_cut_connections_go_on(web: Web, tmp_path: Path, length: bool) -> None:
    web.cuts, web.length = [100_000, 50_000], length
    assert get(web, tmp_path / "a") == SHA256
    assert (tmp_path / "a").read_bytes() == BODY
    assert [asked for _, asked, _ in web.log] == ["", "bytes=100000-", "bytes=150000-"]
    assert web.statuses() == [200, 206, 206]


def test_another_call_goes_on(web: Web, tmp_path: Path) -> None:
    web.cuts = [100_000, 0, 0, 0]
    message = fails(web, tmp_path / "a")
    assert "cut after 100000 of 300000 bytes); 100000 bytes are kept: run the same command again" in message
    web.log.clear()
    assert get(web, tmp_path / "a") == SHA256
    assert web.log == [("set.zip", "bytes=100000-", 206)]


def test_without_ranges_it_begins_anew(web: Web, tmp_path: Path) -> None:
    web.ranges, web.cuts = False, [100_000]
    assert get(web, tmp_path / "a") == SHA256
    assert (tmp_path / "a").read_bytes() == BODY
    assert web.statuses() == [200, 200]


def test_without_ranges_it_gives_up(web: Web, tmp_path: Path) -> None:
    web.ranges, web.cuts = False, [100_000] * 20
    fails(web, tmp_path / "a")
    assert web.statuses() == [200] * 4  # one that brought something, three that did not bring more


def test_a_file_that_changed_begins_anew(web: Web, tmp_path: Path) -> None:
    web.cuts = [100_000, 0, 0, 0]
    fails(web, tmp_path / "a")
    web.files["set.zip"] = changed = BODY[::-1]
    assert get(web, tmp_path / "a") == hashlib.sha256(changed).hexdigest()
    assert (tmp_path / "a").read_bytes() == changed


def test_a_part_of_another_address_is_not_used(web: Web, tmp_path: Path) -> None:
    web.cuts = [100_000, 0, 0, 0]
    fails(web, tmp_path / "a")
    web.files["other.zip"] = other = BODY[:120_000][::-1]
    download(web.url("other.zip"), tmp_path / "a", wait=0.0)
    assert (tmp_path / "a").read_bytes() == other


def test_a_part_that_is_the_whole(web: Web, tmp_path: Path) -> None:
    web.cuts = [100_000, 0, 0, 0]
    fails(web, tmp_path / "a")
    (tmp_path / "a.part").write_bytes(BODY)  # killed before the rename
    assert get(web, tmp_path / "a") == SHA256
    assert web.statuses()[-1] == 416


def test_a_part_longer_than_the_file_begins_anew(web: Web, tmp_path: Path) -> None:
    web.cuts = [100_000, 0, 0, 0]
    fails(web, tmp_path / "a")
    (tmp_path / "a.part").write_bytes(BODY + b"more")
    assert get(web, tmp_path / "a") == SHA256
    assert web.statuses()[-2:] == [416, 200]


def test_a_damaged_note_begins_anew(web: Web, tmp_path: Path) -> None:
    web.cuts = [100_000, 0, 0, 0]
    fails(web, tmp_path / "a")
    (tmp_path / "a.json").write_text('{"url": ')
    web.log.clear()
    assert get(web, tmp_path / "a") == SHA256
    assert web.log == [("set.zip", "", 200)]


@pytest.mark.parametrize("status", [404, 403])
def test_refused(web: Web, tmp_path: Path, status: int) -> None:
    web.failures = [status]
    message = fails(web, tmp_path / "a")
    assert f"the server answers {status}" in message and "--from" in message
    assert len(web.log) == 1


def test_busy_server_is_asked_again(web: Web, tmp_path: Path) -> None:
    web.failures = [503, 429]
    assert get(web, tmp_path / "a") == SHA256
    assert web.statuses() == [503, 429, 200]


def test_checksum(web: Web, tmp_path: Path) -> None:
    md5 = hashlib.md5(BODY).hexdigest()
    assert get(web, tmp_path / "a", checksum=f"md5:{md5.upper()}") == SHA256
    message = fails(web, tmp_path / "b", checksum=f"md5:{'0' * 32}")
    assert f"has md5 {md5}, not {'0' * 32}" in message
    assert not (tmp_path / "b.part").exists()  # else the next call would go on with what is wrong


def test_no_server(tmp_path: Path) -> None:
    with serve() as web:
        url = web.url("set.zip")
    with pytest.raises(DataError, match=r"cannot be downloaded .*0 bytes are kept"):
        download(url, tmp_path / "a", patience=2, wait=0.0)


def test_waits_longer_each_time(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    web.failures = [503] * 4
    get(web, tmp_path / "a", patience=5, wait=10.0)
    assert waits == [10.0, 20.0, 30.0, 30.0]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/set.zip", "http://", "http://127.0.0.1:x/a"])
def test_addresses_of_no_use(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match=r"address|cannot be downloaded"):
        download(url, tmp_path / "a", patience=1, wait=0.0)
    assert not (tmp_path / "a").exists()


def test_what_is_an_address() -> None:
    assert is_url("https://host/file.zip")
    assert is_url("FTP://host/file.zip")
    assert not is_url("/data/file.zip")
    assert not is_url("C:\\file.zip")


def test_no_room(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000))
    assert "has 0.0 GB left, the download needs 0.0 GB: make room" in fails(web, tmp_path / "a")


def test_the_disk_fills_up(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, path: Path) -> None:
            self.file = path.open("wb", buffering=0)

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def seek(self, place: int) -> None:
            self.file.seek(place)

        def write(self, block: memoryview) -> int:
            if self.file.tell() >= 70_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(block[:7000])  # a nearly full disk takes a part

    with monkeypatch.context() as patch:
        patch.setattr(module, "open_for_writing", lambda path, mode: Full(path))
        message = fails(web, tmp_path / "a")
    assert "a.part cannot be written (No space left on device): make room and run the command again." in message
    kept = (tmp_path / "a.part").stat().st_size
    assert 70_000 <= kept < 80_000
    assert get(web, tmp_path / "a") == SHA256
    assert web.log[-1] == ("set.zip", f"bytes={kept}-", 206)


def test_folder_that_is_not_there(web: Web, tmp_path: Path) -> None:
    assert "cannot be written (No such file or directory)" in fails(web, tmp_path / "none" / "a")


@pytest.mark.parametrize("length", [True, False], ids=["length", "chunks"])
def test_more_bytes_than_a_dataset_has(web: Web, tmp_path: Path, length: bool) -> None:
    web.length = length
    assert "has more than 0.0001 GB, far more than it should" in fails(web, tmp_path / "a", largest=100_000)
    assert not (tmp_path / "a.part").exists()
    assert get(web, tmp_path / "a", largest=len(BODY)) == SHA256


def test_a_server_that_sends_a_byte_now_and_then(web: Web, tmp_path: Path) -> None:
    web.pause = 0.02
    message = fails(web, tmp_path / "a", timeout=0.1, patience=2)
    assert "brings less than 1000 bytes a second" in message
    assert len(web.log) == 2


def test_a_server_whose_answer_never_begins(web: Web, tmp_path: Path) -> None:
    web.slow_head = True
    assert "its answer is not HTTP" in fails(web, tmp_path / "a", timeout=0.2, patience=1)
    web.slow_head = False


def test_sent_on_to_another_host(web: Web, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serve() as other:
        other.files["there.zip"] = BODY
        web.moved["set.zip"] = web.url("again.zip")
        web.moved["again.zip"] = other.url("there.zip").replace("127.0.0.1", "localhost")
        assert get(web, tmp_path / "a") == SHA256
    assert caplog.messages == ["127.0.0.1 sends us on to the host localhost."]


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/a", "file:///etc/passwd", "data:,x"])
def test_sent_on_to_another_protocol(web: Web, tmp_path: Path, address: str) -> None:
    web.moved["set.zip"] = address
    message = fails(web, tmp_path / "a")
    assert f"its server sends us on to {address.split(':')[0]}://" in message


def test_from_https_to_http() -> None:
    request = urllib.request.Request("https://host/a")
    with pytest.raises(DataError, match="sends us on to http://host, which is not as safe"):
        module._Redirects(request.full_url).redirect_request(request, None, 302, "", {}, "http://host/a")


def test_sent_round_in_a_circle(web: Web, tmp_path: Path) -> None:
    web.moved = {"set.zip": web.url("b"), "b": web.url("set.zip")}
    assert "its server sends us round in a circle" in fails(web, tmp_path / "a")


def test_words_of_a_server_are_not_shown(web: Web, tmp_path: Path) -> None:
    web.failures, web.reason = [404], "\x1b]0;PWNED\x07\x1b[2J"
    assert "the server answers 404 Not Found)" in fails(web, tmp_path / "a")
