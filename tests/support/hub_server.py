"""A small Hub on loopback, in this process: what `huggingface_hub` asks of the real one to push and to download.

Repositories are kept in memory, with commits, LFS objects and visibility. Faults are ordered beforehand:

    hub.fail("PUT", "/lfs/", 500)                        # the next such request, once
    hub.fail("POST", "/commit/", 429, headers={"Retry-After": "1"}, times=2)
    hub.cut("PUT", "/lfs/")                              # reads half of the body and hangs up
    hub.lose("POST", "/commit/")                         # does what is asked, and hangs up instead of answering
    hub.before("POST", "/commit/", call)                 # calls `call()` when the request is here

What it leaves out of the real Hub: branches, pull requests, Xet, uploads in several parts, gated repositories.

PYTEST_DONT_REWRITE: the test modules import it before pytest loads it for its fixtures.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from hub_state import HUB_NAME, Blob, Commit, Fault, Hub
from huggingface_hub import close_session, constants

# of the account me: it may write, it may only read
TOKEN, READER = "hf_" + "W" * 30, "reader-without-the-usual-beginning"


@contextmanager
def serving():
    """Runs the server on a free port for the length of the block; yields its `Hub`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    ROUTES = [
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create_repo"),
        ("DELETE", r"/api/repos/delete", "delete_repo"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/refs", "refs"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/commits/(?P<revision>[^/]+)", "commits"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "info"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "lfs_put"),
        ("POST", r"/lfs/verify", "lfs_verify"),
        ("HEAD|GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ]

    # ------------------------------------------------------------ the request
    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (ConnectionError, BrokenPipeError):  # the client is gone
            self.close_connection = True

    def log_message(self, *args):
        pass

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
        fault = self.hub.fault_for(self.command, path)
        length = int(self.headers.get("Content-Length") or 0)
        if fault and fault.cut:
            self.rfile.read(length // 2)
            return self.hang_up()
        self.body = self.rfile.read(length)
        if fault and fault.call:
            fault.call()
        if fault and fault.status:
            return self.send(fault.status, self.echoed(fault), fault.headers)
        if fault and fault.lost:
            self.send = lambda *args, **kwargs: self.hang_up()
        for method, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split("|"):
                with self.hub.lock:
                    return getattr(self, name)(**match.groupdict())
        self.error(404, f"no such page: {self.command} {path}")

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = answer

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def echoed(self, fault: Fault) -> bytes:
        if not fault.echo:
            return fault.body
        header = self.headers.get("Authorization", "")
        fault.headers["X-Error-Message"] = f"odd: {header}"
        return json.dumps({"error": f"Authorization: {header}; {header.split(' ')[-1]}"}).encode()

    def send(self, status: int, content=b"", headers=None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def error(self, status: int, message: str, code: str | None = None):
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.send(status, {"error": message}, headers)

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    # ------------------------------------------------------------ who may do what
    def user(self) -> tuple[str | None, str]:
        """(name, role); (None, "") without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.hub.tokens.get(token, (None, "unknown" if token else ""))

    def may_write(self, repo: str) -> bool:
        name, role = self.user()
        if name is None:
            self.error(401, "Invalid credentials in Authorization header" if role else "Invalid username or password.")
        elif role != "write" or repo.split("/")[0] != name:
            self.error(403, f"You don't have the rights to write to {repo}")
        else:
            return True
        return False

    def find(self, repo: str, revision: str | None = None) -> Commit | None:
        """The commit, or None after an answer that says why not; what is private looks as if it was not there."""
        name, role = self.user()
        found = self.hub.repos.get(repo)
        if role == "unknown":
            self.error(401, "Invalid credentials in Authorization header")
        elif found is None or (found.private and repo.split("/")[0] != name):
            self.error(404 if name else 401, "Repository not found", "RepoNotFound")
        elif (commit := found.at(revision or "main")) is None:
            self.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        else:
            return commit
        return None

    # ------------------------------------------------------------ repositories
    def whoami(self):
        name, role = self.user()
        if name is None:
            return self.error(401, "Invalid credentials in Authorization header")
        token = {"displayName": "test", "role": role}
        self.send(200, {"type": "user", "name": name, "auth": {"type": "access_token", "accessToken": token}})

    def create_repo(self):
        asked = self.json
        repo = f"{asked.get('organization') or self.user()[0]}/{asked['name']}"
        if not self.may_write(repo):
            return
        url = f"{self.hub.url}/{repo}"
        if repo in self.hub.repos:
            return self.send(409, {"error": "You already created this model repo", "url": url})
        self.hub.create(repo, asked.get("visibility") == "private")
        self.send(200, {"url": url, "name": repo})

    def delete_repo(self):
        repo = f"{self.json.get('organization') or self.user()[0]}/{self.json['name']}"
        if self.may_write(repo) and self.find(repo):
            del self.hub.repos[repo]
            self.send(200, {})

    def validate_yaml(self):
        """As strict as the real one in what our cards may get wrong: base_model and datasets are names on the Hub."""
        match = re.match(r"---\n(.*?)\n---", self.json["content"], re.DOTALL)
        metadata = yaml.safe_load(match[1]) if match else {}
        wrong = []
        for key in ("base_model", "datasets"):
            values = metadata.get(key) or []
            for value in [values] if isinstance(values, str) else values:
                if not HUB_NAME.fullmatch(value):
                    wrong.append({"message": f'"{key}" with value "{value}" is not valid.'})
        self.send(400 if wrong else 200, {"errors": wrong, "warnings": []})

    def info(self, repo: str, revision: str | None = None):
        commit = self.find(repo, revision)
        if commit is None:
            return
        with_blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = []
        for path, blob in commit.files.items():
            more = {"blobId": blob.sha1, "size": len(blob.content)} if with_blobs else {}
            if with_blobs and blob.lfs:
                more["lfs"] = self.lfs_info(blob)
            siblings.append({"rfilename": path} | more)
        private = self.hub.repos[repo].private
        self.send(200, {"id": repo, "sha": commit.oid, "private": private, "tags": [], "siblings": siblings})

    def tree(self, repo: str, revision: str):
        if commit := self.find(repo, revision):
            rows = []
            for path, blob in commit.files.items():
                row = {"type": "file", "path": path, "oid": blob.sha1, "size": len(blob.content)}
                rows.append(row | ({"lfs": self.lfs_info(blob) | {"oid": blob.sha256}} if blob.lfs else {}))
            self.send(200, rows)

    def refs(self, repo: str):
        if commit := self.find(repo):
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit.oid}
            self.send(200, {"branches": [branch], "tags": [], "converts": []})

    def commits(self, repo: str, revision: str):
        if self.find(repo, revision):
            rows = [
                {"id": c.oid, "title": c.title, "message": "", "date": "2024-01-01T00:00:00.000Z"}
                | {"authors": [{"user": c.author}]}
                for c in reversed(self.hub.repos[repo].commits)
            ]
            self.send(200, rows)

    @staticmethod
    def lfs_info(blob: Blob) -> dict:
        return {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}

    # ------------------------------------------------------------ upload
    def preupload(self, repo: str, revision: str):
        if not self.may_write(repo) or not (commit := self.find(repo, revision)):
            return
        rows = []
        for file in self.json["files"]:
            there = commit.files.get(file["path"])
            mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
            oid = there and (there.sha256 if there.lfs else there.sha1)
            rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send(200, {"files": rows})

    def lfs_batch(self, repo: str):
        if not self.may_write(repo):
            return
        rows = []
        for item in self.json["objects"]:
            row = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.lfs:
                urls = {"upload": f"{self.hub.url}/lfs/{item['oid']}", "verify": f"{self.hub.url}/lfs/verify"}
                row["actions"] = {name: {"href": url, "header": {}} for name, url in urls.items()}
            rows.append(row)
        self.send(200, {"transfer": "basic", "objects": rows})

    def lfs_put(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.error(400, "the content does not match its sha256")
        self.hub.lfs[oid] = self.body
        self.send(200)

    def lfs_verify(self):
        content = self.hub.lfs.get(self.json["oid"])
        good = content is not None and len(content) == self.json["size"]
        self.send(200, {}) if good else self.error(404, "not uploaded")

    def commit(self, repo: str, revision: str):
        if not self.may_write(repo) or not (head := self.find(repo, revision)):
            return
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        parent = header["value"].get("parentCommit")
        if parent not in (None, head.oid):
            return self.error(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif kind == "lfsFile" and value["oid"] in self.hub.lfs:
                files[value["path"]] = Blob(self.hub.lfs[value["oid"]], True)
            elif kind == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                return self.error(400, f"cannot do {kind} with {value.get('path')}")
        done = self.hub.repos[repo].commit(header["value"]["summary"], self.user()[0], files)
        url = f"{self.hub.url}/{repo}/commit/{done.oid}"
        self.send(200, {"success": True, "commitUrl": url, "commitOid": done.oid, "hookOutput": ""})

    # ------------------------------------------------------------ download
    def resolve(self, repo: str, revision: str, path: str):
        commit = self.find(repo, revision)
        if commit is None:
            return
        if path not in commit.files:
            return self.error(404, "Entry not found", "EntryNotFound")
        blob = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.sha1}"', "Content-Type": "application/octet-stream"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        self.send(200, blob.content, headers | {"Content-Length": str(len(blob.content))})


# ------------------------------------------------------------ fixtures: pytest_plugins = ["hub_server"]
@pytest.fixture
def server(monkeypatch, tmp_path):
    """The loopback server with the accounts me (may write) and reader; the client in this process looks there."""
    with serving() as hub_:
        hub_.tokens |= {TOKEN: ("me", "write"), READER: ("me", "read")}
        for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "ENDPOINT": hub_.url}.items():
            monkeypatch.setattr(constants, name, value)
        pages = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub_.url + pages)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
        environment = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": hub_.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        for name, value in (environment | {"HF_HOME": str(tmp_path / "hf")}).items():
            monkeypatch.setenv(name, value)
        close_session()
        yield hub_
        close_session()


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The clock stands still: seconds that the client and we would have waited."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found
