"""A model hub on this machine: the calls by which `huggingface_hub` makes a repository, fills it and fetches it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

WRITE, READ = "hf_write", "hf_read"
OWNER = "me"
"""Account of both tokens."""
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    """Files by branch and name, and what each commit said; a new one holds what the hub itself puts there."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"*.bin lfs\n"}})
    commits: list[list[dict[str, Any]]] = field(default_factory=list)

    def sha(self, branch: str) -> str:
        """Id of the files of a branch."""
        return hashlib.sha1(repr(sorted(self.branches[branch].items())).encode()).hexdigest()


class LocalHub(ThreadingHTTPServer):
    """Repositories by name, large files by sha256, and every request as (method, path, token)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.refusals: dict[str, tuple[int, str]] = {}
        """Status and message by a part of the path: what the hub answers in place of its work."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def paths(self, method: str) -> list[str]:
        """Paths of the requests of one method."""
        return [path for each, path, _ in self.requests if each == method]


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """A hub that answers while it is used."""
    hub = LocalHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", more: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more or {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # The head and the body of an answer are two writes: without this each answer waits for an acknowledgement of the first.
    disable_nagle_algorithm = True
    server: LocalHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.server.requests.append((self.command, path, token))
        try:
            answer = self._answer(path, body, token)
        except _Refused as error:
            codes = {"X-Error-Code": error.code} if error.code else {}
            said = json.dumps({"error": error.message, **error.more}).encode()
            self._send(error.status, said, {"X-Error-Message": error.message.replace("\n", " "), **codes})
        else:
            self._send(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), self.more)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, path: str, body: bytes, token: str | None) -> Any:
        self.more: dict[str, str] = {}
        for part, (status, message) in self.server.refusals.items():
            if part in path:
                raise _Refused(status, message)
        if path.startswith("/large/"):  # signed by its URL, as storage is
            return self._put_large(path, body)
        if token not in (WRITE, READ):
            raise _Refused(401, "Invalid credentials in Authorization header")
        # Reading what is known takes a read token, all else one that may write.
        if token == READ and self.command == "POST" and path != "/api/validate-yaml":
            raise _Refused(403, "You don't have the rights to do this with a read token")
        for pattern, answer in _CALLS.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return answer(self, body, **found.groupdict())
        raise _Refused(404, f"Cannot {self.command} {path}")

    def _put_large(self, path: str, body: bytes) -> dict[str, Any]:
        oid = path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large[oid] = body
        return {}

    def _repository(self, repo: str, branch: str = "main") -> tuple[Repository, dict[str, bytes]]:
        found = self.server.repositories.get(repo)
        if found is None:
            raise _Refused(404, "Repository not found", "RepoNotFound")
        by_sha = {found.sha(name): name for name in found.branches}
        name = by_sha.get(branch, branch)
        if name not in found.branches:
            raise _Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        return found, found.branches[name]

    # --- calls -------------------------------------------------------------------------------------------------------

    def _create(self, body: bytes) -> dict[str, Any]:
        asked = json.loads(body)
        repo = f"{asked['organization'] or OWNER}/{asked['name']}"
        if repo.partition("/")[0] != OWNER:
            raise _Refused(403, "You don't have the rights to create a model under the namespace")
        url = {"url": f"{self.server.url}/{repo}"}
        if repo not in self.server.repositories:
            is_private = asked.get("private") or asked.get("visibility") == "private"
            self.server.repositories[repo] = Repository(bool(is_private))
            return url
        raise _Refused(409, "You already created this model repo", more=url)

    def _info(self, body: bytes, repo: str, branch: str = "main") -> dict[str, Any]:
        found, files = self._repository(repo, branch)
        shown = {"id": repo, "modelId": repo, "sha": hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()}
        return {**shown, "private": found.private, "siblings": [{"rfilename": name} for name in files]}

    def _branch(self, body: bytes, repo: str, branch: str) -> dict[str, Any]:
        found, files = self._repository(repo)
        found.branches[branch] = dict(files)
        return {}

    def _card(self, body: bytes) -> dict[str, Any]:
        if "pipeline_tag: text-classification" not in json.loads(body)["content"].split("---\n")[1]:
            more = {"errors": [{"message": "pipeline_tag is missing"}]}
            raise _Refused(400, "invalid metadata", more=more)
        return {"errors": [], "warnings": []}

    def _preupload(self, body: bytes, repo: str, branch: str) -> dict[str, Any]:
        _, files = self._repository(repo, branch)
        return {
            "files": [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    **({"oid": _oid(each["path"], files[each["path"]])} if each["path"] in files else {}),
                }
                for each in json.loads(body)["files"]
            ]
        }

    def _batch(self, body: bytes, repo: str) -> dict[str, Any]:
        self._repository(repo)
        objects = []
        for each in json.loads(body)["objects"]:
            places = {"upload": "large", "verify": "verify"}
            actions = {action: {"href": f"{self.server.url}/{place}/{each['oid']}"} for action, place in places.items()}
            is_known = each["oid"] in self.server.large
            objects.append({"oid": each["oid"], "size": each["size"], **({} if is_known else {"actions": actions})})
        return {"transfer": "basic", "objects": objects}

    def _verify(self, body: bytes, oid: str) -> dict[str, Any]:
        assert json.loads(body) == {"oid": oid, "size": len(self.server.large[oid])}
        return {}

    def _commit(self, body: bytes, repo: str, branch: str) -> dict[str, Any]:
        found, files = self._repository(repo, branch)
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        found.commits.append(lines)
        sha = found.sha(branch)
        return {"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha}

    def _tree(self, body: bytes, repo: str, branch: str) -> list[dict[str, Any]]:
        _, files = self._repository(repo, branch)
        return [
            {"type": "file", "path": name, "size": len(content), "oid": _git_oid(content)}
            for name, content in files.items()
        ]

    def _file(self, body: bytes, repo: str, branch: str, name: str) -> bytes:
        _, files = self._repository(repo, branch)
        self.more = {"X-Repo-Commit": branch, "ETag": f'"{_git_oid(files[name])}"'}
        return files[name]


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if name.endswith(".safetensors") else _git_oid(content)


_MODEL = rf"/api/models/{_REPO}"
_CALLS = {
    "POST /api/repos/create": _Handler._create,
    "POST /api/validate-yaml": _Handler._card,
    rf"GET {_MODEL}": _Handler._info,
    rf"GET {_MODEL}/revision/(?P<branch>.+)": _Handler._info,
    rf"POST {_MODEL}/branch/(?P<branch>.+)": _Handler._branch,
    rf"POST {_MODEL}/preupload/(?P<branch>.+)": _Handler._preupload,
    rf"POST /{_REPO}\.git/info/lfs/objects/batch": _Handler._batch,
    r"POST /verify/(?P<oid>\w+)": _Handler._verify,
    rf"POST {_MODEL}/commit/(?P<branch>.+)": _Handler._commit,
    rf"GET {_MODEL}/tree/(?P<branch>[^/]+)": _Handler._tree,
    rf"(?:GET|HEAD) /{_REPO}/resolve/(?P<branch>[^/]+)/(?P<name>.+)": _Handler._file,
}
