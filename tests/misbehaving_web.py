"""A small web server on this machine that can misbehave."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Web:
    """What the server offers, and how; ``log`` holds (path, Range header, status) of each request."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)  # of the next answers: bytes sent before the connection is cut
    failures: list[int] = field(default_factory=list)  # of the next answers: status instead of the file
    ranges: bool = True
    length: bool = True  # else chunks, and no Content-Length
    moved: dict[str, str] = field(default_factory=dict)  # name -> address it is sent on to
    pause: float = 0.0  # s before each byte of a body
    slow_head: bool = False  # the answer's first line never ends
    reason: str = ""  # after the status
    log: list[tuple[str, str, int]] = field(default_factory=list)
    address: str = ""

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"

    def statuses(self) -> list[int]:
        return [status for _, _, status in self.log]


@contextmanager
def serve() -> Iterator[Web]:
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            name, asked = self.path.lstrip("/"), self.headers.get("Range", "")
            status = web.failures.pop(0) if web.failures else 200 if name in web.files else 404
            if web.slow_head:
                with suppress(OSError):
                    while web.slow_head:
                        self.wfile.write(b"H")
                        time.sleep(0.02)
                return
            if name in web.moved:
                web.log.append((name, asked, 302))
                self.send_response(302)
                self.send_header("Location", web.moved[name])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if status != 200:
                web.log.append((name, asked, status))
                self.send_response(status, web.reason or None)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = web.files[name]
            tag = f'"{hashlib.sha256(body).hexdigest()}"'
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and web.ranges else 0
            if self.headers.get("If-Range", tag) != tag:
                start = 0
            status = 416 if start >= len(body) > 0 else 206 if start else 200
            web.log.append((name, asked, status))
            self.send_response(status)
            self.send_header("ETag", tag)
            if status == 416:
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            content = body[start:]
            sent = content[: web.cuts.pop(0)] if web.cuts else content
            if web.length:
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if not web.pause:
                    self.wfile.write(sent)
                    return
                with suppress(OSError):
                    for place in range(len(sent)):
                        self.wfile.write(sent[place : place + 1])
                        time.sleep(web.pause)
            else:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                if sent:
                    self.wfile.write(f"{len(sent):x}\r\n".encode() + sent + b"\r\n")
                if len(sent) == len(content):
                    self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    web.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
