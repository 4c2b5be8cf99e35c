"""A model hub on this machine: the part of the Hugging Face Hub's HTTP API that its client uses, over real HTTP.

Repositories, tokens, commits and large files are kept in memory. Made from what the installed `huggingface_hub` sends
and expects; Xet, its other way to transfer files, has to be off (HF_HUB_DISABLE_XET=1).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE_FILE_SUFFIXES = (".safetensors", ".bin", ".model")  # as the hub's own .gitattributes has it
LARGE_FILE_BYTES = 10_000_000
POINTER_BYTES = 134
MAIN = "main"


class Refusal(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str, code: str | None = None, **content: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.content = status, message, code, content


@dataclass
class Commit:
    oid: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    private: bool
    commits: list[Commit] = field(default_factory=list)

    def commit(self, revision: str) -> Commit:
        for commit in reversed(self.commits):
            if revision in (MAIN, "HEAD", commit.oid):
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add(self, title: str, files: dict[str, bytes]) -> Commit:
        oid = hashlib.sha1(
            f"{len(self.commits)} {title} {sorted((path, git_oid(files[path])) for path in files)}".encode()
        ).hexdigest()
        self.commits.append(Commit(oid, title, files))
        return self.commits[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1].files


@dataclass
class Fault:
    """What goes wrong: requests whose "METHOD /path" matches are cut off, or answered with a status.

    Args:
        after: the request does its work, and then its answer is lost.
        meanwhile: what somebody else does just before the request does its work.
    """

    pattern: str
    times: float = math.inf
    status: int | None = None
    after: bool = False
    meanwhile: Callable[[], object] | None = None


class LocalHub:
    """`with LocalHub() as hub:` serves at `hub.url`.

    `users` maps a token to its user and its role ("write" or "read"). `part_bytes` is the size above which large files
    are sent in parts. `requests` lists "METHOD /path status" of every request, status 0 for one that was cut off.
    """

    def __init__(self, part_bytes: int = 5_000_000):
        self.users = {
            "hf_writer": ("ada", "write"),
            "hf_reader": ("ada", "read"),
            "hf_other": ("eve", "write"),
        }
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.part_bytes = part_bytes
        self.lock = threading.RLock()

    def __enter__(self) -> LocalHub:
        handler = type("HubHandler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        # Large files come from another host, which must get no token.
        self.content_url = f"http://localhost:{self.server.server_address[1]}/cdn"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, token: str | None = "hf_writer") -> dict[str, str]:
        """What a process needs to take this for the hub."""
        variables = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return variables | ({} if token is None else {"HF_TOKEN": token})

    def fault_of(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def do_GET(self) -> None:
        self.handle_request()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    # One request -----------------------------------------------------------------------------------------------------

    def handle_request(self) -> None:
        split = urlsplit(self.path)
        self.place, self.query = unquote(split.path), parse_qs(split.query)
        line = f"{self.command} {self.place}"
        fault = self.hub.fault_of(line)
        if fault is not None and fault.meanwhile is not None:
            fault.meanwhile()
            fault = None
        if fault is not None and fault.status is None and not fault.after:
            return self.cut(line)
        self.body = self.read_body()
        try:
            if fault is not None and fault.status is not None:
                raise Refusal(fault.status, "asked for by the test")
            answer = self.route()
        except Refusal as refusal:
            answer = self.refuse(refusal)
        if fault is not None and fault.after:
            return self.cut(line)
        status, headers, content = answer
        self.hub.requests.append(f"{line} {status}")
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def cut(self, line: str) -> None:
        """The connection ends in the middle of things."""
        self.hub.requests.append(f"{line} 0")
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def refuse(self, refusal: Refusal) -> tuple[int, dict[str, str], bytes]:
        headers = {"X-Error-Message": refusal.message} | (
            {"X-Error-Code": refusal.code} if refusal.code else {}
        )
        return self.json({"error": refusal.message, **refusal.content}, refusal.status, headers)

    @staticmethod
    def json(
        content: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        return status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(content).encode()

    def route(self) -> tuple[int, dict[str, str], bytes]:
        for pattern, method, answer in ROUTES:
            match = re.fullmatch(pattern, self.place)
            if match and self.command in method:
                with self.hub.lock:
                    return answer(self, **match.groupdict())
        raise Refusal(404, f"this hub knows no {self.command} {self.place}")

    # Who asks --------------------------------------------------------------------------------------------------------

    def user(self) -> tuple[str, str] | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = self.hub.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def repository(self, name: str, writing: bool = False) -> Repository:
        user, found = self.user(), self.hub.repositories.get(name)
        owner = name.removeprefix("spaces/").split("/")[0]
        if found is None or (found.private and (user is None or user[0] != owner)):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if writing and (user is None or user != (owner, "write")):
            raise Refusal(
                403, f"you need write access to {name}: your token has the role {user and user[1]!r}"
            )
        return found

    def whoami(self) -> Any:
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": user[1]}}
        return self.json({"type": "user", "id": "1", "name": user[0], "orgs": [], "auth": token})

    # Writing ---------------------------------------------------------------------------------------------------------

    def create(self) -> Any:
        user, wanted = self.user(), json.loads(self.body)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        owner = wanted.get("organization") or user[0]
        if user != (owner, "write"):
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        name = f"{owner}/{wanted['name']}"
        if wanted.get("type") == "space":
            assert wanted["sdk"] == "gradio"
            name = f"spaces/{name}"
        if name in self.hub.repositories:
            raise Refusal(409, "You already created this model repo", url=f"{self.hub.url}/{name}")
        repository = Repository(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        repository.add(
            "initial commit", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
        )
        self.hub.repositories[name] = repository
        return self.json({"url": f"{self.hub.url}/{name}", "name": name})

    def validate_card(self) -> Any:
        problems = card_problems(json.loads(self.body)["content"])
        if problems:
            raise Refusal(400, "Invalid metadata", errors=[{"message": problem} for problem in problems])
        return self.json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> Any:
        commit = self.repository(name, writing=True).commit(revision)
        files = []
        for file in json.loads(self.body)["files"]:
            large = file["path"].endswith(LARGE_FILE_SUFFIXES) or file["size"] > LARGE_FILE_BYTES
            known = commit.files.get(file["path"])
            files.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": None if known is None else (sha256(known) if large else git_oid(known)),
                }
            )
        return self.json({"files": files})

    def lfs_batch(self, name: str) -> Any:
        self.repository(name, writing=True)
        request = json.loads(self.body)
        assert (request["operation"], request["hash_algo"]) == ("upload", "sha256")
        objects = []
        for item in request["objects"]:
            oid, size = item["oid"], item["size"]
            action = {"oid": oid, "size": size}
            if oid not in self.hub.large_files:
                href, header = f"{self.hub.url}/lfs/{oid}", {}
                if size > self.hub.part_bytes:
                    count = math.ceil(size / self.hub.part_bytes)
                    header = {str(number): f"{href}/{number}" for number in range(1, count + 1)}
                    header["chunk_size"] = str(self.hub.part_bytes)
                    href += "/complete"
                verify = {"href": f"{self.hub.url}/{name}.git/info/lfs/objects/verify"}
                action["actions"] = {"upload": {"href": href, "header": header}, "verify": verify}
            objects.append(action)
        return self.json({"transfer": "basic", "objects": objects})

    def receive(self, oid: str) -> Any:
        self.hub.large_files[check_hash(oid, self.body)] = self.body
        return 200, {}, b""

    def receive_part(self, oid: str, number: str) -> Any:
        self.hub.parts.setdefault(oid, {})[int(number)] = self.body
        return 200, {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'}, b""

    def complete(self, oid: str) -> Any:
        parts, stated = self.hub.parts.pop(oid), json.loads(self.body)["parts"]
        for part in stated:
            if part["etag"].strip('"') != hashlib.md5(parts[part["partNumber"]]).hexdigest():
                raise Refusal(400, f"part {part['partNumber']} is damaged")
        content = b"".join(parts[part["partNumber"]] for part in stated)
        self.hub.large_files[check_hash(oid, content)] = content
        return self.json({})

    def verify(self, name: str) -> Any:
        item = json.loads(self.body)
        if len(self.hub.large_files.get(item["oid"], b"")) != item["size"]:
            raise Refusal(404, "no such large file")
        return self.json({})

    def commit(self, name: str, revision: str) -> Any:
        repository = self.repository(name, writing=True)
        head = repository.commit(revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, head.oid):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    raise Refusal(400, f"the large file {value['path']} was never uploaded")
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif kind == "deletedFile" and files.pop(value["path"], None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        made = repository.add(header["summary"], files)
        return self.json(
            {"success": True, "commitOid": made.oid, "commitUrl": f"{self.hub.url}/{name}/commit/{made.oid}"}
        )

    # Reading ---------------------------------------------------------------------------------------------------------

    def info(self, name: str, revision: str = MAIN) -> Any:
        repository = self.repository(name)
        commit = repository.commit(revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        readme = commit.files.get("README.md", b"").decode()
        return self.json(
            {
                "id": name,
                "modelId": name,
                "sha": commit.oid,
                "private": repository.private,
                "siblings": siblings,
                "cardData": read_metadata(readme),
                "tags": [],
            }
        )

    def tree(self, name: str, revision: str, folder: str | None = None) -> Any:
        files = self.repository(name).commit(revision).files
        if folder:
            files = {path: content for path, content in files.items() if path.startswith(f"{folder}/")}
            if not files:
                raise Refusal(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        listed = []
        for path, content in sorted(files.items()):
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
            if is_large(path, content):
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": POINTER_BYTES}
            listed.append(entry)
        return self.json(listed)

    def resolve(self, name: str, revision: str, path: str) -> Any:
        commit = self.repository(name).commit(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            status, refused, content = self.refuse(Refusal(404, "Entry not found", "EntryNotFound"))
            return status, refused | headers, content
        content = commit.files[path]
        if not is_large(path, content):
            return 200, {**headers, "ETag": f'"{git_oid(content)}"', "Content-Type": "text/plain"}, content
        self.hub.large_files[sha256(content)] = content  # one that a test has put there itself
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{sha256(content)}"'}
        return 302, {**headers, **linked, "Location": f"{self.hub.content_url}/{sha256(content)}"}, b""

    def deliver(self, oid: str) -> Any:
        assert "Authorization" not in self.headers
        content = self.hub.large_files[oid]
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match:  # a download that goes on
            start = int(match[1])
            place = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return 206, {"Content-Range": place, "ETag": f'"{oid}"'}, content[start:]
        return 200, {"ETag": f'"{oid}"'}, content


NAME = r"(?P<name>(?:spaces/)?[^/]+/[^/]+)"  # Spaces are kept under the names that their addresses have
MODEL_OR_SPACE = rf"/api/(?:models/)?{NAME}"
OID = r"(?P<oid>[0-9a-f]{64})"
ROUTES: list[tuple[str, tuple[str, ...], Callable[..., Any]]] = [
    (r"/api/whoami-v2", ("GET",), _Handler.whoami),
    (r"/api/repos/create", ("POST",), _Handler.create),
    (r"/api/validate-yaml", ("POST",), _Handler.validate_card),
    (rf"{MODEL_OR_SPACE}/preupload/(?P<revision>[^/]+)", ("POST",), _Handler.preupload),
    (rf"{MODEL_OR_SPACE}/commit/(?P<revision>[^/]+)", ("POST",), _Handler.commit),
    (rf"{MODEL_OR_SPACE}/revision/(?P<revision>[^/]+)", ("GET",), _Handler.info),
    (rf"{MODEL_OR_SPACE}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", ("GET",), _Handler.tree),
    (rf"{MODEL_OR_SPACE}", ("GET",), _Handler.info),
    (rf"/{NAME}\.git/info/lfs/objects/batch", ("POST",), _Handler.lfs_batch),
    (rf"/{NAME}\.git/info/lfs/objects/verify", ("POST",), _Handler.verify),
    (rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", ("GET", "HEAD"), _Handler.resolve),
    (rf"/lfs/{OID}", ("PUT",), _Handler.receive),
    (rf"/lfs/{OID}/(?P<number>\d+)", ("PUT",), _Handler.receive_part),
    (rf"/lfs/{OID}/complete", ("POST",), _Handler.complete),
    (rf"/cdn/{OID}", ("GET", "HEAD"), _Handler.deliver),
]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def check_hash(oid: str, content: bytes) -> str:
    if sha256(content) != oid:
        raise Refusal(400, "the content does not have the hash that it was announced with")
    return oid


def is_large(path: str, content: bytes) -> bool:
    return path.endswith(LARGE_FILE_SUFFIXES) or len(content) > LARGE_FILE_BYTES


def read_metadata(readme: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", readme, flags=re.DOTALL)
    return yaml.safe_load(match[1]) if match else {}


REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def card_problems(readme: str) -> list[str]:
    """What the hub would not take about a card's metadata, by its documented specification."""
    try:
        metadata = read_metadata(readme)
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    problems = [] if isinstance(metadata, dict) and metadata else ["no metadata"]
    if metadata.get("license") == "other" and not metadata.get("license_name"):
        problems.append("license: other wants a license_name")
    for language in metadata.get("language", []):
        if not re.fullmatch(r"[a-z]{2,3}", language):
            problems.append(f"language: {language!r} is no ISO 639 code")
    for key in ("base_model", "datasets"):
        if not all(REPOSITORY.fullmatch(name) for name in metadata.get(key, [])):
            problems.append(f"{key}: {metadata[key]} are no ids")
    for model in metadata.get("model-index", []):
        if not model.get("name"):
            problems.append("model-index wants a name")
        for result in model.get("results", []):
            wanted = [("task", "type"), ("dataset", "type"), ("dataset", "name")]
            problems += [f"result without {a}.{b}" for a, b in wanted if not result.get(a, {}).get(b)]
            for metric in result.get("metrics", [{}]):
                if not metric.get("type") or not isinstance(metric.get("value"), (int, float)):
                    problems.append(f"metric {metric} wants a type and a number")
    return problems
