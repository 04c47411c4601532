"""A Hub on loopback: the part of the Hugging Face Hub's HTTP API that uploading and loading models needs.

It runs in a thread of the test process, keeps everything in memory, and answers the unmodified `huggingface_hub` and
`transformers` clients: `HF_ENDPOINT=server.url` is all they need. Faults (error answers, cut connections, lost
answers) can be injected per path.

    with HubServer() as server:
        server.add_fault("PUT", "/lfs/", kind="cut", times=1)
        ...  # run a client process with env=server.client_env(tmp_path)
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".parquet", ".onnx")
LFS_THRESHOLD = 10 * 1024 * 1024  # bytes; larger files are LFS whatever their name, as on the Hub
CARD_BLOCK = re.compile(r"^\s*---\r?\n(.*?)\r?\n---", re.DOTALL)


@dataclass(frozen=True)
class Blob:
    """One version of one file."""

    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """Git's blob id of a regular file, the SHA-256 of an LFS file: what the Hub uses as ETag."""
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """One commit: the whole tree after it."""

    sha: str
    parent: str | None
    title: str
    files: dict[str, Blob]
    date: str


@dataclass
class Repository:
    """A git repository as far as the API shows it."""

    id: str
    kind: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, title: str, files: dict[str, Blob]) -> Commit:
        """Append a commit to a branch and move the branch to it: the only way a tree becomes visible."""
        parent = self.branches.get(branch)
        digest = hashlib.sha1(f"{self.id}{parent}{len(self.commits)}{title}".encode())
        for path, blob in sorted(files.items()):
            digest.update(path.encode() + blob.oid.encode())
        commit = Commit(digest.hexdigest(), parent, title, files, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"))
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit

    def resolve(self, revision: str) -> Commit | None:
        """Find a commit by branch, tag or sha."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(sha)

    def history(self, revision: str = "main") -> list[Commit]:
        """Commits of a revision, newest first."""
        commits, commit = [], self.resolve(revision)
        while commit is not None:
            commits.append(commit)
            commit = self.commits.get(commit.parent) if commit.parent else None
        return commits


@dataclass
class Fault:
    """What to do wrong with the next `times` requests whose method and path match.

    kind: `"status"` does nothing and answers `status` with a page that is no JSON; `"cut"` closes the connection in the
    middle of the request body; `"lose_answer"` does what was asked and closes the connection instead of answering.
    """

    method: str
    pattern: str
    kind: str
    times: int
    status: int


@dataclass(frozen=True)
class User:
    """Owner of a token. role: `"write"` or `"read"`."""

    name: str
    role: str = "write"


class ApiError(Exception):
    """An error answer."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict | None = None):
        super().__init__(message)
        self.status, self.code = status, code
        self.body = body or {"error": message}


class HubServer:
    """The server and its state. Use it as a context manager, or `start` and `stop` it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.users: dict[str, User] = {"hf_write_secret": User("alice"), "hf_read_secret": User("bob", "read")}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        """Endpoint for `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> HubServer:
        """Serve in a daemon thread."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving and close the socket."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(self, *exc_info) -> None:
        self.stop()

    def client_env(self, home: Path, token: str | None = "hf_write_secret") -> dict[str, str]:
        """Environment of a client process that knows this Hub and no other, with its caches under `home`."""
        foreign = ("HF_", "HUGGING_FACE", "TRANSFORMERS_", "PYTHONPATH", "http_proxy", "https_proxy", "all_proxy")
        env = {k: v for k, v in os.environ.items() if not k.lower().startswith(tuple(f.lower() for f in foreign))}
        env |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        return env | ({"HF_TOKEN": token} if token else {})

    def add_fault(self, method: str, pattern: str, kind: str = "status", times: int = 1, status: int = 503) -> None:
        """Make the next `times` requests with this method (or `"*"`) and a path matching `pattern` fail."""
        with self.lock:
            self.faults.append(Fault(method, pattern, kind, times, status))

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The fault that this request must suffer, if any."""
        with self.lock:
            self.requests.append(f"{method} {path}")
            for fault in self.faults:
                if fault.times > 0 and fault.method in ("*", method) and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None

    def repository(self, repo_id: str, kind: str = "models") -> Repository | None:
        """State of a repository, for assertions."""
        return self.repositories.get((kind, repo_id))

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Content of a model repository at a revision, without git's own `.gitattributes`."""
        commit = self.repositories["models", repo_id].resolve(revision)
        return {path: blob.content for path, blob in commit.files.items() if path != ".gitattributes"}

    def count(self, method: str, pattern: str) -> int:
        """How many requests of this kind were received."""
        return sum(bool(re.match(f"{method} .*{pattern}", line)) for line in self.requests)


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{REPO}"
FILES = rf"(?:/(?P<kind>datasets|spaces))?/{REPO}"


class HubHandler(BaseHTTPRequestHandler):
    """Routes requests to the `HubServer` in `hub`. One method per endpoint, named in `ROUTES`."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    timeout = 30

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("DELETE", r"/api/repos/delete", "delete"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("GET", rf"{API}(?:/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", rf"{API}/tree/(?P<revision>[^/]+)", "tree"),
        ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", rf"{API}/commits/(?P<revision>[^/]+)", "commits"),
        ("GET", rf"{API}/refs", "refs"),
        ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"{API}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"{API}/branch/(?P<branch>[^/]+)", "create_branch"),
        ("DELETE", rf"{API}/branch/(?P<branch>[^/]+)", "delete_branch"),
        ("POST", rf"{API}/tag/(?P<revision>[^/]+)", "create_tag"),
        ("POST", rf"{FILES}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/upload/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
        ("POST", r"/lfs/verify", "lfs_verify"),
        ("GET", rf"{FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, format: str, *args) -> None:
        """Stay silent: pytest shows `HubServer.requests` where it matters."""

    def dispatch(self) -> None:
        """Suffer a fault or answer the request."""
        url = urlsplit(self.path)
        path, self.query = url.path, parse_qs(url.query)
        fault = self.hub.take_fault(self.command, path)
        if fault is not None and fault.kind == "cut":
            self.rfile.read(min(int(self.headers.get("Content-Length") or 0) // 2, 1 << 16))
            return self.hang_up()
        self.body = self.read_body()
        if fault is not None and fault.kind == "status":
            page = b"<html><body>the proxy in front of the Hub is unwell</body></html>"
            return self.send_bytes(fault.status, page, {"Content-Type": "text/html"})
        try:
            status, payload, headers = 200, self.route(path), {}
        except ApiError as error:
            status, payload = error.status, error.body
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
        if fault is not None and fault.kind == "lose_answer":
            return self.hang_up()
        if payload is not None:
            self.answer(status, payload, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = dispatch

    def route(self, path: str) -> dict | list | None:
        """Find and call the endpoint; None means that it has answered by itself."""
        command = "GET" if self.command == "HEAD" else self.command
        for method, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if method == command and match:
                groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                if "repo" in match.groupdict():
                    groups.setdefault("kind", "models")
                if "revision" in match.groupdict():
                    groups.setdefault("revision", "main")
                with self.hub.lock:
                    return getattr(self, name)(**groups)
        raise ApiError(404, f"no endpoint {self.command} {path}")

    def hang_up(self) -> None:
        """Close the connection without an answer."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def read_body(self) -> bytes:
        """Whole request body, of known length or chunked."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, status: int, payload: dict | list, headers: dict | None = None) -> None:
        """Send a JSON answer."""
        self.send_bytes(status, json.dumps(payload).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def send_bytes(self, status: int, content: bytes, headers: dict) -> None:
        """Send an answer; a HEAD request gets the headers only."""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # Who may do what

    def user(self) -> User | None:
        """Owner of the token sent with the request, None without one."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = self.hub.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise ApiError(401, "Invalid credentials in Authorization header")
        return user

    def readable(self, kind: str, repo: str) -> Repository:
        """A repository that the caller may see; a hidden one looks like a missing one."""
        user, repository = self.user(), self.hub.repositories.get((kind, repo))
        if repository is None or (repository.private and (user is None or user.name != repo.split("/")[0])):
            raise ApiError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        return repository

    def check_may_write(self, namespace: str) -> User:
        """Refuse callers without a write token for the namespace."""
        user = self.user()
        if user is None:
            raise ApiError(401, "Authentication required")
        if user.role != "write" or user.name != namespace:
            raise ApiError(403, f"You don't have the rights to write under the namespace {namespace}")
        return user

    def writable(self, kind: str, repo: str) -> Repository:
        """A repository that the caller may change."""
        repository = self.readable(kind, repo)
        self.check_may_write(repo.split("/")[0])
        return repository

    def revision_of(self, repository: Repository, revision: str) -> Commit:
        """The commit of a revision, or the Hub's error for a missing one."""
        commit = repository.resolve(revision)
        if commit is None:
            raise ApiError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # Account and repositories

    def whoami(self) -> dict:
        user = self.user()
        if user is None:
            raise ApiError(401, "Authentication required")
        token = {"displayName": "test", "role": user.role}
        return {"type": "user", "name": user.name, "orgs": [], "auth": {"accessToken": token}}

    def named_repository(self) -> tuple[str, str, dict]:
        request = json.loads(self.body)
        namespace = request.get("organization") or self.whoami()["name"]
        self.check_may_write(namespace)
        return f"{request.get('type', 'model')}s", f"{namespace}/{request['name']}", request

    def create(self) -> dict:
        kind, repo, request = self.named_repository()
        url = f"{self.hub.url}/{repo}" if kind == "models" else f"{self.hub.url}/{kind}/{repo}"
        if (kind, repo) in self.hub.repositories:
            message = "You already created this model repo"
            raise ApiError(409, message, body={"error": message, "url": url})
        repository = Repository(
            repo, kind, private=request.get("visibility") == "private" or bool(request.get("private"))
        )
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repository.commit("main", "initial commit", {".gitattributes": Blob(attributes.encode(), lfs=False)})
        self.hub.repositories[kind, repo] = repository
        return {"url": url, "name": repo, "id": repo}

    def delete(self) -> dict:
        kind, repo, _ = self.named_repository()
        if self.hub.repositories.pop((kind, repo), None) is None:
            raise ApiError(404, "Repository not found", "RepoNotFound")
        return {}

    def info(self, kind: str, repo: str, revision: str) -> dict:
        repository = self.readable(kind, repo)
        commit = self.revision_of(repository, revision)
        card = card_metadata(commit.files["README.md"].content.decode()) if "README.md" in commit.files else {}
        tags = [card["library_name"]] if "library_name" in card else []
        tags += [f"license:{card['license']}"] if "license" in card else []
        return {
            "id": repo,
            "modelId": repo,
            "sha": commit.sha,
            "private": repository.private,
            "tags": [*tags, *card.get("tags", [])],
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "lastModified": commit.date,
            "createdAt": commit.date,
            "cardData": card,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }

    def tree(self, kind: str, repo: str, revision: str) -> list:
        commit = self.revision_of(self.readable(kind, repo), revision)
        return [file_entry(path, blob) for path, blob in sorted(commit.files.items())]

    def paths_info(self, kind: str, repo: str, revision: str) -> list:
        commit = self.revision_of(self.readable(kind, repo), revision)
        wanted = parse_qs(self.body.decode()).get("paths", [])
        return [file_entry(path, commit.files[path]) for path in wanted if path in commit.files]

    def commits(self, kind: str, repo: str, revision: str) -> list:
        repository = self.readable(kind, repo)
        self.revision_of(repository, revision)
        return [
            {"id": c.sha, "authors": [{"user": repo.split("/")[0]}], "date": c.date, "title": c.title, "message": ""}
            for c in repository.history(revision)
        ]

    def refs(self, kind: str, repo: str) -> dict:
        repository = self.readable(kind, repo)
        return {
            "branches": [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
                for name, sha in repository.branches.items()
            ],
            "converts": [],
            "tags": [
                {"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha} for name, sha in repository.tags.items()
            ],
        }

    def create_branch(self, kind: str, repo: str, branch: str) -> dict:
        repository = self.writable(kind, repo)
        if branch in repository.branches:
            raise ApiError(409, f"Reference already exists: {branch}")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.branches[branch] = self.revision_of(repository, start).sha
        return {}

    def delete_branch(self, kind: str, repo: str, branch: str) -> dict:
        if self.writable(kind, repo).branches.pop(branch, None) is None:
            raise ApiError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        return {}

    def create_tag(self, kind: str, repo: str, revision: str) -> dict:
        repository = self.writable(kind, repo)
        tag = json.loads(self.body)["tag"]
        if tag in repository.tags:
            raise ApiError(409, f"Tag already exists: {tag}")
        repository.tags[tag] = self.revision_of(repository, revision).sha
        return {}

    # Uploading

    def validate_yaml(self) -> dict:
        problems = card_problems(json.loads(self.body)["content"])
        if problems:
            body = {"error": problems[0], "errors": [{"message": p} for p in problems], "warnings": []}
            raise ApiError(400, problems[0], body=body)
        return {"errors": [], "warnings": []}

    def preupload(self, kind: str, repo: str, revision: str) -> dict:
        commit = self.revision_of(self.writable(kind, repo), revision)
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_lfs(file["path"], file["size"]) else "regular",
                    "shouldIgnore": False,
                    "oid": commit.files[file["path"]].oid if file["path"] in commit.files else None,
                }
                for file in json.loads(self.body)["files"]
            ]
        }

    def lfs_batch(self, kind: str, repo: str) -> dict:
        self.writable(kind, repo)
        answers = []
        for wanted in json.loads(self.body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/lfs/upload/{wanted['oid']}"},
                "verify": {"href": f"{self.hub.url}/lfs/verify"},
            }
            answers.append(wanted if wanted["oid"] in self.hub.lfs else {**wanted, "actions": actions})
        return {"transfer": "basic", "objects": answers}

    def lfs_upload(self, oid: str) -> dict:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise ApiError(400, "content does not match its SHA-256")
        self.hub.lfs[oid] = self.body
        return {}

    def lfs_verify(self) -> dict:
        wanted = json.loads(self.body)
        if len(self.hub.lfs.get(wanted["oid"], b"")) != wanted["size"]:
            raise ApiError(404, "LFS object not found")
        return {}

    def commit(self, kind: str, repo: str, revision: str) -> dict:
        repository = self.writable(kind, repo)
        if revision not in repository.branches:
            raise ApiError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head = repository.resolve(revision)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, head.sha):
            raise ApiError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            self.apply(files, line["key"], line["value"])
        commit = repository.commit(revision, header["summary"], files)
        return {"success": True, "commitOid": commit.sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit.sha}"}

    def apply(self, files: dict[str, Blob], key: str, value: dict) -> None:
        """Apply one operation of a commit to the tree being built."""
        path = value["path"]
        if key == "file":
            files[path] = Blob(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in self.hub.lfs:
                raise ApiError(400, f"LFS pointer to a missing object: {path}")
            files[path] = Blob(self.hub.lfs[value["oid"]], lfs=True)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise ApiError(404, "A file with this name doesn't exist", "EntryNotFound")
        elif key == "deletedFolder":
            for inside in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                del files[inside]
        else:
            raise ApiError(400, f"unknown operation {key}")

    # Downloading

    def resolve(self, kind: str, repo: str, revision: str, path: str) -> None:
        commit = self.revision_of(self.readable(kind, repo), revision)
        blob = commit.files.get(path)
        if blob is None:
            raise ApiError(404, "Entry not found", "EntryNotFound")
        headers = {"ETag": f'"{blob.oid}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": str(len(blob.content))}
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start is None:
            return self.send_bytes(200, blob.content, headers)
        first, size = int(start[1]), len(blob.content)
        headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
        return self.send_bytes(206, blob.content[first:], headers)


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub stores such a file as LFS."""
    return path.endswith(LFS_SUFFIXES) or size > LFS_THRESHOLD


def file_entry(path: str, blob: Blob) -> dict:
    """A file as the tree and paths-info endpoints describe it."""
    entry = {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.content)}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.oid, "size": len(blob.content), "pointerSize": 134}
    return entry


def card_metadata(content: str) -> dict:
    """Metadata block of a model card; empty if there is none."""
    match = CARD_BLOCK.match(content)
    return (yaml.safe_load(match[1]) or {}) if match else {}


def card_problems(content: str) -> list[str]:
    """What the Hub would refuse in a card's metadata."""
    try:
        data = card_metadata(content)
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata must be a mapping"]
    problems = []
    if "license" in data and not re.fullmatch(r"[a-z0-9.+-]+", str(data["license"])):
        problems.append('"license" must be one of the known identifiers')
    for model in data.get("model-index", []):
        for result in model.get("results", []):
            if "type" not in result.get("task", {}) or not {"type", "name"} <= set(result.get("dataset", {})):
                problems.append('"model-index" result without task type or dataset')
            if not all({"type", "value"} <= set(metric) for metric in result.get("metrics", [])):
                problems.append('"model-index" metric without type or value')
    return problems
