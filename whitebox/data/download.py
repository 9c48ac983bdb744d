"""Downloads that survive: a cut connection goes on where it stopped, in this call or in another.

While it grows, a file is ``NAME.part``; ``NAME.json`` beside it says of which version on the server it is a part. Only
a complete file with the right checksum gets its name.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from whitebox.errors import DataError
from whitebox.foreign import read_json

log = logging.getLogger("whitebox")

OnBytes = Callable[[int, int | None], None]  # bytes done, bytes in all where the server says

_CHUNK = 1 << 18
_LONGEST_WAIT = 30.0  # s
_SLOWEST = 1000  # bytes/s; a connection that brings less counts as cut
_LARGEST = 2**40  # bytes
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # answers of a server that may know better in a moment
_CUT = OSError  # also URLError and time-outs


class _CutError(Exception):
    """The connection ended before the file did, or the server could not answer now."""


def is_url(text: str) -> bool:
    """Whether a text is a web address rather than a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE) is not None


def file_digests(path: Path, algorithms: tuple[str, ...], on_bytes: OnBytes | None = None) -> dict[str, str]:
    """Hexadecimal digests of a file by algorithm (names of ``hashlib``), read once."""
    hashes = {algorithm: hashlib.new(algorithm) for algorithm in algorithms}
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            for each in hashes.values():
                each.update(block)
            done += len(block)
            if on_bytes is not None:
                on_bytes(done, total)
    return {algorithm: each.hexdigest() for algorithm, each in hashes.items()}


def download(
    url: str,
    path: Path,
    checksum: str = "",
    on_bytes: OnBytes | None = None,
    patience: int = 5,
    wait: float = 1.0,
    timeout: float = 30.0,
    largest: int = _LARGEST,
) -> str:
    """Fetch ``url`` into the file ``path``; nothing is done where it is there already.

    Where a server sends us on to another host, that is said. It cannot send us to another protocol, or from https to
    http.

    Args:
        url: http or https.
        path: its folder exists.
        checksum: ``"md5:..."`` or another algorithm of ``hashlib``; empty: none is known.
        on_bytes: called as the file grows.
        patience: connections in a row that bring nothing new before this gives up.
        wait: s before the second of them; doubles each time, up to half a minute.
        timeout: s without an answer, or with less than a kilobyte a second, before a connection counts as cut.
        largest: bytes the file may have.

    Returns:
        The file's sha256, hexadecimal.

    Raises:
        DataError: the address or the server is of no use, the disk is full, the file is too large, or the checksum is
            wrong (the file is then removed). What was fetched of an unfinished file stays for the next call.
    """
    if urlsplit(url).scheme not in _SCHEMES:
        raise DataError(f"{url} cannot be downloaded: give an http or https address, or a local file or folder.")
    part, note = path.with_name(path.name + ".part"), path.with_name(path.name + ".json")
    if path.exists():
        return str(_read_note(note).get("sha256") or file_digests(path, ("sha256",), on_bytes)["sha256"])
    failures, most = 0, _size(part)
    web = urllib.request.build_opener(_Http, _Https, _Redirects(url))
    while True:
        began = time.monotonic()
        try:
            _attempt(web, url, part, note, on_bytes, timeout, largest)
            break
        except _CutError as cut:
            failures = 0 if _size(part) > most + _SLOWEST * (time.monotonic() - began) else failures + 1
            most = max(most, _size(part))
            if failures >= patience:
                raise DataError(
                    f"{url} cannot be downloaded ({cut}); {_size(part)} bytes are kept: run the same command again to "
                    "go on, or give the file with --from."
                ) from None
            time.sleep(min(wait * 2 ** max(failures - 1, 0), _LONGEST_WAIT))
    algorithm, _, expected = checksum.partition(":")
    digests = file_digests(part, ("sha256", algorithm) if algorithm else ("sha256",))
    if expected and digests[algorithm] != expected.lower():
        part.unlink()
        note.unlink(missing_ok=True)
        raise DataError(
            f"{url} has {algorithm} {digests[algorithm]}, not {expected}: it was damaged on its way or has changed; "
            "run the command again, or give a file you trust with --from."
        )
    _write_note(note, {"url": url, "sha256": digests["sha256"]})
    os.replace(part, path)
    return digests["sha256"]


_SCHEMES = ("http", "https")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server that sends us elsewhere, and says where to."""

    def __init__(self, url: str) -> None:
        self.host = urlsplit(url).hostname

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        to = urlsplit(newurl)
        if to.scheme not in _SCHEMES or (to.scheme == "http" and req.type == "https"):
            raise _not_as_safe(req.full_url, newurl)
        if to.hostname != self.host:
            log.warning("%s sends us on to the host %s.", self.host, to.hostname)
            self.host = to.hostname
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _not_as_safe(url: str, to: str) -> DataError:
    scheme, host = urlsplit(to).scheme, urlsplit(to).netloc
    return DataError(
        f"{url} cannot be downloaded: its server sends us on to {scheme}://{host}, which is not as safe; get the file "
        "yourself and give it with --from."
    )


class _Timed:
    """A connection whose answer has to begin in time: a time-out alone begins anew with each byte of it."""

    sock: Any
    timeout: Any

    def getresponse(self) -> Any:
        timer = threading.Timer(self.timeout, self._cut)
        timer.daemon = True
        timer.start()
        try:
            return super().getresponse()  # type: ignore[misc]
        finally:
            timer.cancel()

    def _cut(self) -> None:
        with suppress(OSError, AttributeError):  # it has ended in this moment
            self.sock.shutdown(socket.SHUT_RDWR)


class _TimedHttp(_Timed, http.client.HTTPConnection):
    pass


class _TimedHttps(_Timed, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: Any) -> Any:
        return self.do_open(_TimedHttp, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: Any) -> Any:
        return self.do_open(_TimedHttps, req)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_note(note: Path) -> dict[str, Any]:
    try:
        known = read_json(note)
    except (OSError, ValueError):  # never written, or half: what lies beside it is not trusted then
        return {}
    return (
        {key: value for key, value in known.items() if isinstance(value, str | int)} if isinstance(known, dict) else {}
    )


def _write_note(note: Path, content: dict[str, Any]) -> None:
    try:
        note.write_text(json.dumps(content), "utf-8")
    except OSError as error:
        raise disk_error(note, error) from error


def _attempt(
    web: urllib.request.OpenerDirector,
    url: str,
    part: Path,
    note: Path,
    on_bytes: OnBytes | None,
    timeout: float,
    largest: int,
) -> None:
    """One connection: append to ``part`` until the file is complete.

    Raises:
        _CutError: it is not complete yet.
        DataError: another connection would not help.
    """
    known = _read_note(note)
    start = _size(part) if known.get("url") == url else 0
    headers = {"User-Agent": "whitebox", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if known.get("version"):
            headers["If-Range"] = str(known["version"])  # else the server sends a changed file from its beginning
    try:
        with web.open(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
            start, total = _begin(response, start, known, part)
            _write_note(note, {"url": url, "version": _version(response.headers), "total": total})
            _receive(response, part, start, total, on_bytes, timeout, largest)
    except urllib.error.HTTPError as error:
        error.close()
        in_all = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if error.code == 416 and in_all and int(in_all[1]) == start:
            return  # nothing was missing
        if error.code == 416:
            part.unlink(missing_ok=True)  # a part of another file: begin anew
            raise _CutError("its length has changed") from None
        if 300 <= error.code < 400:
            to = urljoin(error.url or url, error.headers.get("Location", ""))
            if urlsplit(to).scheme not in _SCHEMES:
                raise _not_as_safe(url, to) from None
            raise DataError(
                f"{url} cannot be downloaded: its server sends us round in a circle; give the file, or another address "
                "of it, with --from."
            ) from None
        answer = f"{error.code} {http.client.responses.get(error.code, '')}".strip()  # its own words could be anything
        if error.code in _TRY_AGAIN:
            raise _CutError(f"the server answers {answer}") from None
        raise DataError(
            f"{url} cannot be downloaded (the server answers {answer}): give the file, or another address of it, with "
            "--from."
        ) from None
    except http.client.HTTPException as error:
        raise _CutError(f"its answer is not HTTP ({type(error).__name__})") from None
    except _CUT as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise _CutError(str(reason) or type(reason).__name__) from None
    except ValueError as error:  # an address without a host, a port that is none
        raise DataError(f"{url} is no address ({error}): correct it.") from None


def _version(headers: Any) -> str:
    """What tells this version of the file from another: a strong ETag, else the date."""
    tag = headers.get("ETag", "")
    return str(tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", ""))


def _begin(response: Any, start: int, known: dict[str, Any], part: Path) -> tuple[int, int | None]:
    """Where the answer begins in the file, and the length of the file if the server says."""
    length = response.headers.get("Content-Length", "")
    if response.status != 206:
        return 0, int(length) if re.fullmatch(
            r"\d{1,18}", length
        ) else None  # the whole file: ranges are not supported, or it has changed
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    total = int(span[2]) if span and span[2] != "*" else None
    if span is None or int(span[1]) != start or (known.get("total") and total != known["total"]):
        part.unlink(missing_ok=True)
        raise _CutError("it answers with another part than asked for")
    return start, total


def _receive(
    response: Any,
    part: Path,
    start: int,
    total: int | None,
    on_bytes: OnBytes | None,
    timeout: float,
    largest: int,
) -> None:
    if (total or 0) > largest:
        raise _too_large(part, largest)
    room, needed = shutil.disk_usage(part.parent).free, (total or start) - start
    if needed > room:
        raise DataError(
            f"The disk of {part.parent} has {room / 1e9:.1f} GB left, the download needs {needed / 1e9:.1f} GB: make "
            "room, or choose another folder with --data-root."
        )
    done, before, since = start, start, time.monotonic()
    with open_for_writing(part, "r+b" if start else "wb") as file:
        file.seek(start)
        while block := response.read1(_CHUNK):
            write_block(file, block, part)
            done += len(block)
            if done > largest:
                raise _too_large(part, largest)
            if on_bytes is not None:
                on_bytes(done, total)
            if time.monotonic() > since + timeout:
                if done < before + _SLOWEST * timeout:
                    raise _CutError(f"it brings less than {_SLOWEST} bytes a second")
                before, since = done, time.monotonic()
    if total is not None and done < total:
        raise _CutError(f"the connection was cut after {done} of {total} bytes")


def _too_large(part: Path, largest: int) -> DataError:
    part.unlink(missing_ok=True)
    return DataError(
        f"The download has more than {largest / 1e9:g} GB, far more than it should: it is another file, or made to "
        "fill the disk."
    )


def open_for_writing(path: Path, mode: str) -> Any:
    """``path.open(mode)`` without a buffer, so that an error belongs to the write that met it."""
    try:
        return path.open(mode, buffering=0)
    except OSError as error:
        raise disk_error(path, error) from error


def write_block(file: Any, block: bytes, path: Path) -> None:
    """Write all of ``block``; a nearly full disk takes less of it at a time."""
    left = memoryview(block)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> DataError:
    """What to tell when a file cannot be written."""
    remedy = "make room and run the command again" if error.errno == errno.ENOSPC else "check disk and permissions"
    return DataError(f"{path} cannot be written ({error.strerror or error}): {remedy}.")
