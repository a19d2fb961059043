"""A small Hub on 127.0.0.1: what huggingface_hub, transformers and PEFT ask of the real one, over real HTTP.

    with LoopbackHub(Path("store"), tokens={"hf_abc": "me"}) as hub:
        hub.url, hub.log, hub.files("me/repo")

Repositories are lists of commits in memory. Large files go to an LFS store or, where `xet` is true, to hf_xet's own
store in a folder (a CAS that it finds under the address local://), from which it also downloads. `hub.fault` is
asked before each request: it may drop the connection, answer an error, or stop after the work and before the answer.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN = "hf_SecretSecretSecretSecretSecretOne"  # no place but the header of a request may hold it
LARGE = (".safetensors", ".bin", ".pt", ".parquet", ".arrow", ".png")  # the real Hub's .gitattributes, in short
FAULTS = ("drop", "half", "unavailable", "mute")
"""Connection closed at once; closed after half of the body; status 503; work done, and closed without an answer."""


@dataclass(frozen=True)
class Blob:
    """A file of a commit: its bytes, or where they are."""

    size: int
    content: bytes | None = None
    sha256: str | None = None

    @property
    def oid(self) -> str:
        """git's name for it; the pointer's for a large file."""
        data = self.content if self.content is not None else pointer(self.sha256, self.size)
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass
class Repo:
    """A model repository: branch -> commits, each a whole tree, the newest last."""

    private: bool
    branches: dict[str, list[tuple[str, dict[str, Blob]]]] = field(default_factory=dict)

    def find(self, revision: str) -> tuple[str, dict[str, Blob]] | None:
        """(commit, files) of a branch or commit."""
        if revision in self.branches:
            return self.branches[revision][-1]
        every = [commit for commits in self.branches.values() for commit in commits]
        return next((commit for commit in every if commit[0] == revision), None)

    def commit(self, branch: str, files: Mapping[str, Blob]) -> str:
        oid = hashlib.sha1(f"{branch}{time.time_ns()}{sorted(files)}".encode()).hexdigest()
        self.branches.setdefault(branch, []).append((oid, dict(files)))
        return oid


class LoopbackHub:
    """The server; a context manager.

    Attributes:
        url: its address.
        log: (method, path, status) of every request, in order.
        repos: name -> Repo.
        fault: method and path -> one of FAULTS, or None to serve; may also do something of its own.
    """

    def __init__(self, store: Path, *, tokens: Mapping[str, str], readers: Mapping[str, str] = {}, xet: bool = False):
        self.store, self.xet = Path(store), xet
        self.tokens, self.readers = dict(tokens), dict(readers)
        self.log: list[tuple[str, str, int]] = []
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.fault: Callable[[str, str], str | None] = lambda method, path: None
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def seed(self, name: str, folder: Path, *, private: bool = False) -> None:
        """A repository with the files of a folder."""
        files = {}
        for path in sorted(Path(folder).iterdir()):
            data = path.read_bytes()
            files[path.name] = Blob(len(data), data)
        self.repos[name] = Repo(private)
        self.repos[name].commit("main", files)

    def commits(self, name: str, branch: str = "main") -> list[str]:
        """Commits of a branch, the first is the empty one of its making."""
        return [oid for oid, _ in self.repos[name].branches.get(branch, [])] if name in self.repos else []

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """name -> bytes of a revision."""
        found = self.repos[name].find(revision)
        return {path: self.content(blob) for path, blob in found[1].items()}

    def content(self, blob: Blob) -> bytes:
        if blob.content is not None:
            return blob.content
        return self.lfs[blob.sha256] if blob.sha256 in self.lfs else b"in the store of xet: " + blob.sha256.encode()

    def holds(self, sha256: str) -> bool:
        """Whether the bytes of a large file have arrived."""
        return sha256 in self.lfs or sha256 in self.xet_hashes()

    def xet_hashes(self) -> dict[str, str]:
        """sha256 -> xet's hash, from the shards in the store (xet-core, mdb_shard format)."""
        found = {}
        for shard in self.store.rglob("*.mdb"):
            data = shard.read_bytes()
            place = 48  # after the header: tag, version, size of the footer
            while place + 48 <= len(data):
                name, flags, entries = data[place : place + 32], *struct.unpack_from("<II", data, place + 32)
                if name == b"\xff" * 32:
                    break
                place += 48 * (1 + entries)
                if flags & 0x80000000:  # as many hashes of ranges
                    place += 48 * entries
                if flags & 0x40000000:
                    found[_hex(data[place : place + 32])] = _hex(name)
                    place += 48
        return found


def _hex(hash_: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", hash_))


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.code, self.message = status, code, message


class _Cut(Exception):
    """The connection ends here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it would hold each answer back for 40 ms
    routes: list[tuple[str, re.Pattern, str]] = []  # noqa: RUF012

    def log_message(self, *args) -> None: ...

    @property
    def hub(self) -> LoopbackHub:
        return self.server.hub

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        fault = self.hub.fault(self.command, path)
        try:
            if fault == "drop":
                raise _Cut
            length = int(self.headers.get("Content-Length") or 0)
            if fault == "half":
                self.rfile.read(length // 2)
                raise _Cut
            self.body = self.rfile.read(length)
            if len(self.body) < length:  # the other side is gone
                raise _Cut
            if fault == "unavailable":
                raise _Refused(503, message="out of order")
            for method, pattern, name in self.routes:
                found = pattern.fullmatch(path)
                if found and self.command in (method, "HEAD" if method == "GET" else method):
                    with self.hub.lock:
                        status, headers, data = getattr(self, name)(*found.groups())
                    break
            else:
                raise _Refused(404, message=f"no endpoint {path}")
            if fault == "mute":
                raise _Cut
        except _Cut:
            self.hub.log.append((self.command, path, 0))
            self.close_connection = True
            self.connection.close()
            return
        except _Refused as refused:
            status, data = refused.status, json.dumps({"error": refused.message or refused.code}).encode()
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            headers |= {"X-Repo-Commit": self.commit_at} if refused.code == "EntryNotFound" else {}
        self.hub.log.append((self.command, path, status))
        self.answer(status, headers, data)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def answer(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", headers.get("X-Length") or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
        except OSError:  # the other side went away
            self.close_connection = True

    # who asks, and for what

    def user(self) -> str | None:
        said = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not said:
            return None
        if said not in self.hub.tokens and said not in self.hub.readers:
            raise _Refused(401, message="Invalid credentials in Authorization header")
        return self.hub.tokens.get(said) or self.hub.readers[said]

    def repo(self, name: str, *, write: bool = False) -> Repo:
        user, repo = self.user(), self.hub.repos.get(name)
        if repo is None or (repo.private and user != name.partition("/")[0]):
            raise _Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if write:
            self.must_write(name)
        return repo

    def must_write(self, name: str) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.hub.tokens.get(token) != name.partition("/")[0]:
            raise _Refused(403, message="you have no write access to this namespace" if self.user() else "log in")

    def tree(self, name: str, revision: str) -> tuple[str, dict[str, Blob]]:
        found = self.repo(name).find(revision)
        if found is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    # endpoints

    def whoami(self):
        user = self.user()
        if user is None:
            raise _Refused(401, message="Invalid username or password.")
        return _json({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    def create(self):
        asked = self.json()
        name = f"{asked.get('organization') or self.user()}/{asked['name']}"
        self.must_write(name)
        if name in self.hub.repos:
            raise _Refused(409, message="You already created this model repo")
        private = asked.get("private") or asked.get("visibility") == "private"  # before huggingface_hub 2, and since
        repo = self.hub.repos[name] = Repo(bool(private))
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        repo.commit("main", {".gitattributes": Blob(len(attributes), attributes)})
        return _json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def branch(self, name: str, branch: str):
        repo = self.repo(name, write=True)
        if branch in repo.branches:
            raise _Refused(409, message="Reference already exists")
        repo.branches[branch] = list(repo.branches["main"])
        return _json({})

    def validate(self):
        content = self.json()["content"]
        if not content.startswith("---\n"):
            return _json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        import yaml

        said, errors = yaml.safe_load(content.split("---\n")[1]), []
        for model in said.get("model-index") or []:
            for result in model.get("results") or []:
                if not {"task", "metrics"} <= result.keys() or "type" not in result.get("dataset", {}):
                    errors.append({"message": '"model-index[0].results[0]" lacks a task, dataset or metric'})
        return _json({"errors": errors, "warnings": []}, status=400 if errors else 200)

    def info(self, name: str, revision: str = "main"):
        commit, files = self.tree(name, revision)
        siblings = [{"rfilename": path, "size": blob.size} for path, blob in files.items()]
        repo = self.hub.repos[name]
        card = files.get("README.md")
        found = {"id": name, "modelId": name, "sha": commit, "private": repo.private, "siblings": siblings}
        return _json({**found, "tags": [], "cardData": {} if card is None else {"there": True}, "downloads": 0})

    def info_at(self, name: str, revision: str):
        return self.info(name, revision)

    def refs(self, name: str):
        branches = self.repo(name).branches
        found = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c[-1][0]} for b, c in branches.items()]
        return _json({"branches": found, "tags": [], "converts": []})

    def listing(self, name: str, revision: str, under: str | None = None):
        _, files = self.tree(name, revision)
        if under and not any(path.startswith(f"{under}/") for path in files):
            raise _Refused(404, "EntryNotFound", f"{under} does not exist")
        entries = []
        for path, blob in files.items():
            entry = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
            if blob.sha256:
                entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
                xet = self.hub.xet_hashes().get(blob.sha256) if self.hub.xet else None
                entry |= {"xetHash": xet} if xet else {}
            entries.append(entry)
        return _json(entries)

    def preupload(self, name: str, revision: str):
        self.repo(name, write=True)
        _, files = self.tree(name, revision)
        asked = self.json()
        rules = [line for line in asked.get("gitIgnore", "").splitlines() if line and line[0] != "#"]
        told = [
            {
                "path": path,
                "uploadMode": "lfs" if path.endswith(LARGE) else "regular",
                "shouldIgnore": any(fnmatch.fnmatch(f"/{path}", rule) for rule in rules),
                "oid": (files[path].sha256 or files[path].oid) if path in files else None,
            }
            for path in (entry["path"] for entry in asked["files"])
        ]
        return _json({"files": told})

    def batch(self, name: str):
        self.repo(name, write=True)
        told, asked = [], self.json()
        for wanted in asked["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.lfs:
                to = f"{self.hub.url}/lfs/{wanted['oid']}"
                entry["actions"] = {"upload": {"href": to}, "verify": {"href": f"{to}/verify"}}
            told.append(entry)
        way = "xet" if self.hub.xet and "xet" in asked.get("transfers", []) else "basic"
        return _json({"transfer": way, "objects": told}, kind="application/vnd.git-lfs+json")

    def put(self, sha256: str):
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise _Refused(400, message="the bytes are not those that were announced")
        self.hub.lfs[sha256] = self.body
        return 200, {}, b""

    def verify(self, sha256: str):
        if sha256 not in self.hub.lfs:
            raise _Refused(404, message="not uploaded")
        return 200, {}, b""

    def commit(self, name: str, revision: str):
        repo = self.repo(name, write=True)
        if revision not in repo.branches:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = dict(repo.branches[revision][-1][1])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                data = base64.b64decode(value["content"])
                files[value["path"]] = Blob(len(data), data)
            elif item["key"] == "lfsFile":
                if not self.hub.holds(value["oid"]):
                    raise _Refused(400, message=f"the bytes of {value['path']} were never uploaded")
                files[value["path"]] = Blob(value["size"], None, value["oid"])
            elif item["key"] == "deletedFile":
                files.pop(value["path"])
        oid = repo.commit(revision, files)
        return _json({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def xet_token(self, name: str, kind: str, revision: str):
        self.repo(name, write=kind == "write")
        if not self.hub.xet:
            raise _Refused(404, message="no xet here")
        where, expires = f"local://{self.hub.store.resolve()}", int(time.time()) + 1  # asked for anew by each push
        headers = {
            "X-Xet-Cas-Url": where,
            "X-Xet-Access-Token": "of-the-store",
            "X-Xet-Token-Expiration": str(expires),
        }
        status, plain, data = _json({"casUrl": where, "accessToken": "store", "exp": expires})
        return status, {**plain, **headers}, data

    def resolve(self, name: str, revision: str, path: str):
        self.commit_at, files = self.tree(name, revision)
        if path not in files:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        blob = files[path]
        headers = {"X-Repo-Commit": self.commit_at, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        if blob.sha256:
            headers |= {
                "X-Linked-ETag": f'"{blob.sha256}"',
                "X-Linked-Size": str(blob.size),
                "X-Length": str(blob.size),
            }
            xet = self.hub.xet_hashes().get(blob.sha256) if self.hub.xet else None
            if xet:
                link = f"{self.hub.url}/api/models/{name}/xet-read-token/{self.commit_at}"
                headers |= {"X-Xet-Hash": xet, "Link": f'<{link}>; rel="xet-auth"'}
                return 200, headers, b"" if self.command == "HEAD" else b"?" * blob.size
        data = self.hub.content(blob)
        return 200, {**headers, "X-Length": str(len(data))}, data


def _json(value: object, *, status: int = 200, kind: str = "application/json") -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": kind}, json.dumps(value).encode()


NAME = r"([\w.-]+/[\w.-]+)"
_Handler.routes = [
    (method, re.compile(pattern), name)
    for method, pattern, name in (
        ("GET", "/api/whoami-v2", "whoami"),
        ("POST", "/api/repos/create", "create"),
        ("POST", "/api/validate-yaml", "validate"),
        ("POST", rf"/api/models/{NAME}/branch/([\w./-]+)", "branch"),
        ("GET", rf"/api/models/{NAME}/refs", "refs"),
        ("GET", rf"/api/models/{NAME}/revision/([\w./-]+)", "info_at"),
        ("GET", rf"/api/models/{NAME}/tree/([\w.-]+)(?:/([\w./-]+))?", "listing"),
        ("GET", rf"/api/models/{NAME}/xet-(read|write)-token/([\w./-]+)", "xet_token"),
        ("POST", rf"/api/models/{NAME}/preupload/([\w./-]+)", "preupload"),
        ("POST", rf"/api/models/{NAME}/commit/([\w./-]+)", "commit"),
        ("GET", rf"/api/models/{NAME}", "info"),
        ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/([0-9a-f]{64})", "put"),
        ("POST", r"/lfs/([0-9a-f]{64})/verify", "verify"),
        ("GET", rf"/{NAME}/resolve/([\w.-]+)/(.+)", "resolve"),
    )
]
