"""A Hugging Face Hub on this machine: as much of it as its client asks to push and to fetch, and it can misbehave.

Large files go by the LFS protocol, as they do where the client is told not to use Xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_of_a_friend_1234567890"
READER = "hf_may_only_read_1234567890"


@dataclass
class Repository:
    """Commits by their names, each with all its files, and the branches and tags that name one."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        before = self.commits.get(self.names.get(branch, ""), {})
        name = hashlib.sha1(repr((sorted(before), sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[name] = {**before, **files}
        self.names[branch] = name
        return name


@dataclass
class Hub:
    """What is on it, and how it behaves; ``log`` holds (method, path) of each request."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # large files by sha256
    cut: int = 0  # so many of the next downloads end too early, ...
    cut_after: int = 10  # ... after so many bytes
    damage: int = 0  # so many of the next downloads have a byte changed
    refuse_uploads: bool = False  # connections of large files end before they are read
    damage_uploads: bool = False
    log: list[tuple[str, str]] = field(default_factory=list)
    address: str = ""


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        # --- answers

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def say(self, content: Any, status: int = 200) -> None:
            self.answer(status, json.dumps(content).encode(), Content_Type="application/json")

        def refuse(self, code: str, status: int = 404) -> None:
            self.answer(status, b"{}", X_Error_Code=code, X_Error_Message=code)

        # --- requests

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        @property
        def token(self) -> str:
            return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

        def seen(self, name: str) -> Repository | None:
            found = hub.repositories.get(name)
            return None if found is None or (found.private and self.token not in (TOKEN, READER)) else found

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(self.path.split("?")[0])
            hub.log.append((self.command, path))
            if path in ("", "/"):
                self.answer(200)
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                repository = self.seen(found[1])
                if repository is None:
                    self.refuse("RepoNotFound", 401)
                    return
                name = found[2] or "main"
                commit = repository.names.get(name, name)
                self.say({"id": found[1], "sha": commit, "private": repository.private, "siblings": [], "tags": []})
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(.+)/([^/]+)", path):
                self.file(found[1], found[2], found[3])
            else:
                self.refuse("Unknown")

        def file(self, name: str, revision: str, file: str) -> None:
            repository = self.seen(name)
            if repository is None:
                self.refuse("RepoNotFound", 401)
                return
            commit = repository.names.get(revision, revision)
            if commit not in repository.commits:
                self.refuse("RevisionNotFound")
                return
            content = repository.commits[commit].get(file)
            if content is None:
                self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                return
            digest = hashlib.sha256 if is_large(file) else hashlib.sha1
            headers = {"ETag": f'"{digest(content).hexdigest()}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
            if self.command == "HEAD":
                self.answer(200, Content_Length=str(len(content)), **headers)
                return
            start, status = 0, 200
            if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                start, status = int(asked[1]), 206
                headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            part = content[start:]
            if is_large(file) and hub.cut:
                hub.cut -= 1
                self.close_connection = True
                self.answer(status, part[: hub.cut_after], Content_Length=str(len(part)), **headers)
                return
            if is_large(file) and hub.damage:
                hub.damage -= 1
                part = part[:-1] + bytes([part[-1] ^ 1])
            self.answer(status, part, Content_Length=str(len(part)), **headers)

        def do_PUT(self) -> None:
            hub.log.append((self.command, self.path))
            if hub.refuse_uploads:
                self.close_connection = True
                with suppress(OSError):
                    self.connection.close()
                return
            content = self.body()
            if hub.damage_uploads:
                content = content[:-1] + b"?"
            hub.stored[self.path.rpartition("/")[2]] = content
            self.answer(200)

        def do_POST(self) -> None:
            path, body = unquote(self.path.split("?")[0]), self.body()
            hub.log.append((self.command, path))
            if path == "/api/validate-yaml":
                wrong = [] if body and json.loads(body)["content"].startswith("---\n") else [{"message": "no metadata"}]
                self.say({"errors": wrong, "warnings": []}, 400 if wrong else 200)
                return
            if self.token == READER:
                self.refuse("Forbidden", 403)
                return
            if self.token != TOKEN:
                self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
                return
            said = json.loads(body) if body.startswith(b"{") and b'\n{"' not in body else {}
            if path == "/api/repos/create":
                name = f"{said['organization']}/{said['name']}"
                if name in hub.repositories:
                    self.say({"url": f"{hub.address}/{name}"}, 409)
                    return
                private = bool(said.get("private")) or said.get("visibility") == "private"
                hub.repositories[name] = Repository(private)
                hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
                self.say({"url": f"{hub.address}/{name}", "name": name})
            elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/.+", path):
                modes = [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if is_large(each["path"]) else "regular",
                        "shouldIgnore": False,
                    }
                    for each in said["files"]
                ]
                self.say({"files": modes})
            elif path.endswith(".git/info/lfs/objects/batch"):
                self.say({"transfer": "basic", "objects": [self.where(each) for each in said["objects"]]})
            elif path == "/verify":
                stored = hub.stored.get(said["oid"], b"")
                self.say({}, 200 if len(stored) == said["size"] else 422)
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
                self.commit(found[1], found[2], [json.loads(line) for line in body.splitlines()])
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/(.+)", path):
                self.paths(found[1], found[2], body)
            else:
                self.refuse("Unknown")

        def where(self, said: dict[str, Any]) -> dict[str, Any]:
            if said["oid"] in hub.stored:
                return {"oid": said["oid"], "size": said["size"]}
            upload = {"href": f"{hub.address}/lfs/{said['oid']}"}
            return {**said, "actions": {"upload": upload, "verify": {"href": f"{hub.address}/verify"}}}

        def commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
            files = {}
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.stored[value["oid"]]
            made = hub.repositories[name].commit(files, branch)
            self.say({"commitUrl": f"{hub.address}/{name}/commit/{made}", "commitOid": made, "success": True})

        def paths(self, name: str, revision: str, body: bytes) -> None:
            files = hub.repositories[name].commits[revision]
            asked = json.loads(body)["paths"] if body.startswith(b"{") else re.findall(r"paths=([^&]+)", body.decode())
            found = []
            for path in asked:
                content = files[unquote(path)]
                lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
                about = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                found.append({**about, "lfs": lfs} if is_large(path) else about)
            self.say(found)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
