"""A hub on this machine: the routes that huggingface_hub 2.4.0 takes, and ways to break them.

    with Loopback() as hub:
        hub.url                                # for HF_ENDPOINT
        hub.faults.append(Fault("PUT /lfs/", drop_after=1000))
        hub.repositories["me/model"].files

Uploads go the large-file way (batch, PUT, verify), downloads through a redirect to another
path with ETag and ranges. The server takes what it is given: it does not hash an upload
unless ``hashing`` is set, as a store that compares sizes only would not.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub.store import Commit, Entry, Repository, apply, is_large, new_repository

TOKEN = "hf_loopbackSECRETtokenNOBODYmaySEE"
READ_TOKEN = "hf_loopbackREADonlyTOKENnobodySEES"
USER = "me"


@dataclass
class Fault:
    """What goes wrong with requests whose ``METHOD /path`` starts with ``on`` (a pattern).

    ``status``: answered in place of the truth. ``flip``: this byte of the body is another
    one, up or down. ``drop_after``: the connection ends after so many bytes of the body.
    ``slow``: seconds of waiting. ``deaf``: the request is carried out and the answer lost.
    ``before``: called first, say to commit behind a publisher's back. ``times``: how often.
    """

    on: str
    times: int = 1
    status: int = 0
    message: str = ""
    code: str = ""
    flip: int | None = None
    drop_after: int | None = None
    slow: float = 0.0
    deaf: bool = False
    before: Callable[[], object] | None = None
    after: int = 0  # requests that pass first


@dataclass
class Seen:
    """One request: ``received`` and ``sent`` count the bytes of the bodies."""

    line: str
    headers: dict[str, str]
    received: int = 0
    sent: int = 0


class Answer(Exception):
    """Ends a request with a status."""

    def __init__(self, status: int, message: str = "", code: str = "", **body: Any) -> None:
        self.status, self.message, self.code = status, message, code
        self.body = body | ({"error": message} if message else {})


@dataclass
class Loopback:
    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    collections: dict[str, list[str]] = field(default_factory=dict)
    hashing: bool = False
    quota: int | None = None
    part_bytes: int = 0  # above this, uploads go in parts

    def __enter__(self) -> Loopback:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._lock = threading.Lock()
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def store_url(self) -> str:
        """Large files lie with another host, which must never see a token."""
        return f"http://localhost:{self._server.server_port}"

    def add(self, name: str, files: dict[str, bytes], *, private: bool = False) -> Repository:
        self.repositories[name] = new_repository(name, private=private)
        self.repositories[name].add(files)
        return self.repositories[name]

    def fault(self, line: str) -> Fault | None:
        """The first fault that is due for this request."""
        with self._lock:
            for each in self.faults:
                if each.times and re.match(each.on, line):
                    if each.after:
                        each.after -= 1
                        return None
                    each.times -= 1
                    return each
        return None

    def bytes_of(self, pattern: str) -> int:
        """Bytes received by requests that match."""
        return sum(each.received for each in self.seen if re.match(pattern, each.line))

    def lines(self, pattern: str = "") -> list[str]:
        return [each.line for each in self.seen if re.match(pattern, each.line)]


class _Handler(BaseHTTPRequestHandler):
    hub: Loopback
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # 40 ms an answer otherwise
    wbufsize = 1 << 16

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        self.raw_route = parts.path
        line = f"{self.command} {self.route}"
        self.record = Seen(line, {k.lower(): v for k, v in self.headers.items()})
        self.hub.seen.append(self.record)
        self.fault = self.hub.fault(line)
        try:
            if self.fault and self.fault.before:
                self.fault.before()
            if self.fault and self.fault.slow:
                time.sleep(self.fault.slow)
            body = self._body()
            if self.fault and self.fault.status:
                raise Answer(self.fault.status, self.fault.message, self.fault.code)
            self._dispatch(body)
        except Answer as answer:
            self._send(answer.status, answer.body, code=answer.code, message=answer.message)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = bytearray()
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            self.record.received = len(data)
            return bytes(data)
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.fault
        if fault and fault.drop_after is not None and length > fault.drop_after:
            self.record.received = len(self.rfile.read(fault.drop_after))
            self._hang_up()
        data = bytearray(self.rfile.read(length))
        self.record.received = len(data)
        if fault and fault.flip is not None and data:
            data[fault.flip % len(data)] ^= 1
        return bytes(data)

    def _hang_up(self) -> None:
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(2)
        raise ConnectionResetError

    def _send(
        self, status: int, value: Any = None, headers: dict[str, str] | None = None,
        data: bytes | None = None, code: str = "", message: str = "",
    ) -> None:  # fmt: skip
        if self.fault and self.fault.deaf:
            self._hang_up()
        raw = data if data is not None else json.dumps(value).encode()
        self.send_response(status)
        kind = "application/octet-stream" if data is not None else "application/json"
        given = {"Content-Length": str(len(raw)), "Content-Type": kind} | (headers or {})
        if code:
            given["X-Error-Code"] = code
        if message:
            given["X-Error-Message"] = message
        for name, each in given.items():
            self.send_header(name, each)
        self.end_headers()
        if self.command == "HEAD":
            return
        fault = self.fault
        if fault and fault.flip is not None and self.command == "GET" and raw:
            at = fault.flip % len(raw)
            raw = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        if fault and fault.drop_after is not None and self.command == "GET":
            self.wfile.write(raw[: fault.drop_after])
            self.record.sent = min(len(raw), fault.drop_after)
            self.wfile.flush()
            self._hang_up()
        self.wfile.write(raw)
        self.record.sent = len(raw)

    # who is asking

    def _may(self, *, write: bool = False) -> bool:
        """Whether a token came along; a wrong one is refused."""
        given = self.headers.get("Authorization", "")
        if not given:
            if write:
                raise Answer(401, "Invalid username or password.")
            return False
        if given not in (f"Bearer {TOKEN}", f"Bearer {READ_TOKEN}"):
            raise Answer(401, "Invalid credentials in Authorization header")
        if write and given == f"Bearer {READ_TOKEN}":
            raise Answer(403, "Forbidden: pass a token with write permission")
        return True

    def _repository(self, name: str, *, write: bool = False) -> Repository:
        known = self._may(write=write)
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not known):
            raise Answer(404 if known else 401, "Repository not found", "RepoNotFound")
        return found

    def _commit(self, repository: Repository, revision: str) -> Commit:
        found = repository.find(unquote(revision))
        if found is None:
            raise Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # routes

    def _dispatch(self, body: bytes) -> None:
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {self.raw_route}"):
                method(self, body, **{k: unquote(v) for k, v in found.groupdict().items()})
                return
        raise Answer(404, f"no such route: {self.command} {self.route}")

    def whoami(self, body: bytes) -> None:
        if not self._may():
            raise Answer(401, "Invalid username or password.")
        self._send(200, {"name": USER, "type": "user", "orgs": [], "auth": {}})

    def create(self, body: bytes) -> None:
        self._may(write=True)
        asked = json.loads(body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        if not name.startswith(f"{USER}/"):
            raise Answer(403, f"You don't have the rights to create a model under {name}")
        if name in self.hub.repositories:
            raise Answer(409, "You already created this model repo", url=f"{self.hub.url}/{name}")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = new_repository(name, private=private)
        self._send(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def delete(self, body: bytes) -> None:
        self._may(write=True)
        asked = json.loads(body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        if self.hub.repositories.pop(name, None) is None:
            raise Answer(404, "Repository not found", "RepoNotFound")
        self._send(200, {})

    def validate_yaml(self, body: bytes) -> None:
        found = re.match(r"---\r?\n(.*?)\n---", json.loads(body)["content"], re.DOTALL)
        try:
            value = yaml.safe_load(found[1]) if found else {}
        except yaml.YAMLError as error:
            raise Answer(400, "bad metadata", errors=[{"message": str(error)}]) from error
        if not isinstance(value, dict):
            raise Answer(400, "bad metadata", errors=[{"message": "no mapping"}])
        self._send(200, {"warnings": [], "errors": []})

    def info(self, body: bytes, name: str, revision: str = "main") -> None:
        repository = self._repository(name)
        commit = self._commit(repository, revision)
        blobs = "blobs" in self.query
        siblings = [
            {"rfilename": path}
            | ({"size": each.size, "blobId": each.blob_id, **_lfs(each, "sha256")} if blobs else {})
            for path, each in commit.files.items()
        ]
        self._send(
            200,
            {"id": name, "sha": commit.sha, "private": repository.private,
             "gated": "auto" if repository.gated else False, "siblings": siblings, "tags": []},
        )  # fmt: skip

    def tree(self, body: bytes, name: str, revision: str) -> None:
        commit = self._commit(self._repository(name), revision)
        self._send(200, [_listed(path, each) for path, each in commit.files.items()])

    def paths_info(self, body: bytes, name: str, revision: str) -> None:
        commit = self._commit(self._repository(name), revision)
        wanted = parse_qs(body.decode())["paths"]
        self._send(200, [_listed(k, v) for k, v in commit.files.items() if k in wanted])

    def refs(self, body: bytes, name: str) -> None:
        repository = self._repository(name)
        branches = [
            {"name": each, "ref": f"refs/heads/{each}", "targetCommit": sha}
            for each, sha in repository.branches.items()
            if not each.startswith("refs/")
        ]
        self._send(200, {"branches": branches, "converts": [], "tags": [], "pullRequests": []})

    def branch(self, body: bytes, name: str, branch: str) -> None:
        repository = self._repository(name, write=True)
        if self.command == "DELETE":
            if repository.branches.pop(branch, None) is None:
                raise Answer(404, "Reference does not exist", "RevisionNotFound")
        elif branch in repository.branches:
            raise Answer(409, f"Reference already exists: refs/heads/{branch}")
        else:
            start = json.loads(body or b"{}").get("startingPoint", "main")
            repository.branches[branch] = self._commit(repository, start).sha
        self._send(200, {})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        import base64

        asking = "create_pr" in self.query
        repository = self._repository(name, write=not asking)
        before = self._commit(repository, revision).files
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs"
                if is_large(each["path"], each["size"], base64.b64decode(each["sample"]))
                else "regular",
                "shouldIgnore": False,
                "oid": _remote_oid(before.get(each["path"])),
            }
            for each in json.loads(body)["files"]
        ]
        self._send(200, {"files": files})

    def batch(self, body: bytes, name: str) -> None:
        repository = self._repository(name)
        objects = []
        for each in json.loads(body)["objects"]:
            if each["oid"] in repository.objects:
                objects.append(each)
            elif self._over_quota(each["size"]):
                error = {"code": 507, "message": "Storage quota exceeded"}
                objects.append(each | {"error": error})
            else:
                objects.append(each | {"actions": self._actions(name, each)})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _over_quota(self, more: int) -> bool:
        held = sum(len(each) for r in self.hub.repositories.values() for each in r.objects.values())
        return self.hub.quota is not None and held + more > self.hub.quota

    def _actions(self, name: str, wanted: dict[str, Any]) -> dict[str, Any]:
        place = f"{self.hub.store_url}/lfs/{name}/{wanted['oid']}"
        upload: dict[str, Any] = {"href": f"{place}?signature=SIGNEDsecret"}
        step = self.hub.part_bytes
        if step and wanted["size"] > step:
            count = -(-wanted["size"] // step)
            parts = {
                str(at + 1): f"{place}/part/{at}?signature=SIGNEDsecret" for at in range(count)
            }
            upload = {"href": f"{place}/complete", "header": {"chunk_size": str(step), **parts}}
        verify = {"href": f"{self.hub.url}/lfs-verify/{name}"}
        return {"upload": upload, "verify": verify}

    def put(self, body: bytes, name: str, oid: str) -> None:
        assert "authorization" not in self.record.headers, "a signed address needs no token"
        if self.hub.hashing and hashlib.sha256(body).hexdigest() != oid:
            raise Answer(400, "the content's SHA-256 is another")
        self.hub.repositories[name].objects[oid] = body
        self._send(200, {}, {"ETag": '"x"'})

    def put_part(self, body: bytes, name: str, oid: str, part: str) -> None:
        self.hub.repositories[name].objects[f"{oid}/{int(part):06}"] = body
        self._send(200, {}, {"ETag": f'"{part}"'})

    def complete(self, body: bytes, name: str, oid: str) -> None:
        objects = self.hub.repositories[name].objects
        parts = sorted(each for each in objects if each.startswith(f"{oid}/"))
        objects[oid] = b"".join(objects.pop(each) for each in parts)
        self._send(200, {})

    def lfs_verify(self, body: bytes, name: str) -> None:
        asked = json.loads(body)
        held = self._repository(name).objects.get(asked["oid"])
        if held is None or len(held) != asked["size"]:
            raise Answer(422, "the object is not there, or of another size")
        self._send(200, {})

    def lfs_files(self, body: bytes, name: str) -> None:
        repository = self._repository(name, write=True)
        if self.command == "POST":
            for each in json.loads(body)["deletions"]["sha"]:
                repository.objects.pop(each, None)
            self._send(200, {})
            return
        self._send(
            200,
            [
                {"fileOid": oid, "filename": oid, "oid": oid, "size": len(data),
                 "pushedAt": "2026-01-01T00:00:00.000Z", "ref": None}
                for oid, data in repository.objects.items()
            ],
        )  # fmt: skip

    def commit(self, body: bytes, name: str, revision: str) -> None:
        asking = "create_pr" in self.query
        repository = self._repository(name, write=not asking)
        head, *lines = (json.loads(line) for line in body.splitlines())
        before = self._commit(repository, revision)
        wanted = head["value"].get("parentCommit")
        if wanted is not None and wanted != before.sha:
            raise Answer(412, "A commit has happened since. Please refresh and try again.")
        for line in lines:
            if line["key"] == "lfsFile" and line["value"]["oid"] not in repository.objects:
                raise Answer(400, f"LFS pointer pointed to a file that does not exist: {line}")
        branch, request = revision, None
        if asking:
            number = len(repository.requests) + 1
            repository.requests[number] = "open"
            branch, request = f"refs/pr/{number}", f"{self.hub.url}/{name}/discussions/{number}"
        title = head["value"]["summary"]
        sha = repository.commit(apply(before.files, lines), title, branch, before.sha)
        self._send(
            200,
            {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha,
             "pullRequestUrl": request, "success": True},
        )  # fmt: skip

    def status(self, body: bytes, name: str, number: str) -> None:
        wanted = json.loads(body)["status"]
        self._repository(name).requests[int(number)] = wanted
        event = {
            "id": "1", "type": "status-change", "createdAt": "2026-01-01T00:00:00.000Z",
            "author": {"name": USER}, "data": {"status": wanted},
        }  # fmt: skip
        self._send(200, {"newStatus": event})

    def collect(self, body: bytes, slug: str) -> None:
        self._may(write=True)
        if slug not in self.hub.collections:
            raise Answer(404, "Collection not found")
        item = json.loads(body)["item"]["id"]
        if item in self.hub.collections[slug]:
            raise Answer(409, "already in the collection")
        self.hub.collections[slug].append(item)
        self.collection(b"", slug)

    def collection(self, body: bytes, slug: str) -> None:
        self._send(
            200,
            {"slug": slug, "title": slug, "owner": {"name": USER}, "items": [], "position": 0,
             "lastUpdated": "2026-01-01T00:00:00.000Z", "private": True, "theme": "blue",
             "upvotes": 0},
        )  # fmt: skip

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        if repository.gated and not path.endswith((".md", ".gitattributes")):
            raise Answer(
                403, f"Access to model {name} is restricted and you are not in the authorized "
                "list.", "GatedRepo",
            )  # fmt: skip
        commit = self._commit(repository, revision)
        entry = commit.files.get(path)
        if entry is None:
            raise Answer(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{entry.blob_id}"'}
        if entry.oid:
            headers |= {
                "X-Linked-Size": str(entry.size),
                "X-Linked-Etag": f'"{entry.oid}"',
                "Location": f"{self.hub.store_url}/cdn/{name}/{entry.oid}?signature=SIGNEDsecret",
            }
            self._send(302, {}, headers)
            return
        self._ranged(entry.data, headers)

    def cdn(self, body: bytes, name: str, oid: str) -> None:
        assert "authorization" not in self.record.headers, "a signed address needs no token"
        self._ranged(self.hub.repositories[name].objects[oid], {"ETag": f'"{oid}"'})

    def _ranged(self, data: bytes, headers: dict[str, str]) -> None:
        headers["Accept-Ranges"] = "bytes"
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not found:
            self._send(200, data=data, headers=headers)
            return
        first, last = int(found[1]), int(found[2] or len(data) - 1)
        if first >= len(data):
            raise Answer(416, "Range Not Satisfiable")
        headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
        self._send(206, data=data[first : last + 1], headers=headers)


def _lfs(entry: Entry, digest: str) -> dict[str, Any]:
    if not entry.oid:
        return {}
    return {"lfs": {digest: entry.oid, "size": entry.size, "pointerSize": 130}}


def _listed(path: str, entry: Entry) -> dict[str, Any]:
    said = {"type": "file", "path": path, "size": entry.size, "oid": entry.blob_id}
    return said | _lfs(entry, "oid")


def _remote_oid(entry: Entry | None) -> str | None:
    return (entry.oid or entry.blob_id) if entry else None


_NAME = r"(?P<name>[^/]+/[^/]+)"
_API = rf"/api/models/{_NAME}"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"DELETE /api/repos/delete", _Handler.delete),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"GET {_API}", _Handler.info),
    (rf"GET {_API}/revision/(?P<revision>[^/]+)", _Handler.info),
    (rf"GET {_API}/tree/(?P<revision>[^/]+)", _Handler.tree),
    (rf"POST {_API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    (rf"GET {_API}/refs", _Handler.refs),
    (rf"(?:POST|DELETE) {_API}/branch/(?P<branch>[^/]+)", _Handler.branch),
    (rf"POST {_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (rf"POST {_API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (rf"POST {_API}/discussions/(?P<number>\d+)/status", _Handler.status),
    (rf"(?:GET|POST) {_API}/lfs-files(?:/batch)?", _Handler.lfs_files),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (rf"PUT /lfs/{_NAME}/(?P<oid>\w+)", _Handler.put),
    (rf"PUT /lfs/{_NAME}/(?P<oid>\w+)/part/(?P<part>\d+)", _Handler.put_part),
    (rf"POST /lfs/{_NAME}/(?P<oid>\w+)/complete", _Handler.complete),
    (rf"POST /lfs-verify/{_NAME}", _Handler.lfs_verify),
    (r"POST /api/collections/(?P<slug>[^/]+/[^/]+)/items", _Handler.collect),
    (r"GET /api/collections/(?P<slug>[^/]+/[^/]+)", _Handler.collection),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    (rf"(?:GET|HEAD) /cdn/{_NAME}/(?P<oid>\w+)", _Handler.cdn),
]


if __name__ == "__main__":  # a hub to try things on: python -m hub.loopback, from tests/
    with Loopback() as served:
        print(f"HF_ENDPOINT={served.url} HF_TOKEN={TOKEN}", flush=True)
        threading.Event().wait()
