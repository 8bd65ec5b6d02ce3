"""What the small Hub of the tests holds: repositories with their commits, and the faults that a test has ordered."""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


class Blob(NamedTuple):
    content: bytes
    lfs: bool

    @property
    def sha1(self) -> str:
        """Git's id: of the content, or of the pointer that stands for an LFS object."""
        content = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        header = "version https://git-lfs.github.com/spec/v1"
        return f"{header}\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()


class Commit(NamedTuple):
    oid: str
    title: str
    author: str
    files: dict[str, Blob]


@dataclass
class Repo:
    private: bool
    commits: list[Commit] = field(default_factory=list)

    def commit(self, title: str, author: str, files: dict[str, Blob]) -> Commit:
        text = f"{len(self.commits)} {title} " + " ".join(f"{path} {blob.sha256}" for path, blob in files.items())
        self.commits.append(Commit(hashlib.sha1(text.encode()).hexdigest(), title, author, files))
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.oid == revision), None)


@dataclass
class Fault:
    """What happens to the next `times` requests with this method whose path has `part` in it."""

    method: str
    part: str
    times: int
    status: int | None = None  # an answer instead of the real one
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    lost: bool = False  # do what is asked, and hang up instead of answering
    cut: bool = False  # hang up in the middle of the upload
    echo: bool = False  # say the Authorization header back
    call: Callable | None = None


class Hub:
    """The server's state, and the orders that tests give it."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.tokens: dict[str, tuple[str, str]] = {}  # token -> (user, role)
        self.requests: list[tuple[str, str]] = []  # (method, path), in the order of arrival
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.url = ""

    def fail(self, method: str, part: str, status: int, times: int = 1, **more) -> None:
        body = more.pop("body", {"error": "ordered by the test"})
        self.faults.append(Fault(method, part, times, status, body=json.dumps(body).encode(), **more))

    def cut(self, method: str, part: str, times: int = 1) -> None:
        self.faults.append(Fault(method, part, times, cut=True))

    def lose(self, method: str, part: str, times: int = 1) -> None:
        self.faults.append(Fault(method, part, times, lost=True))

    def before(self, method: str, part: str, call: Callable) -> None:
        self.faults.append(Fault(method, part, 1, call=call))

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.part in path:
                    fault.times -= 1
                    return fault
        return None

    def asked(self, method: str, part: str) -> list[str]:
        """Paths of the requests so far."""
        return [path for verb, path in self.requests if verb == method and part in path]

    def files(self, repo: str) -> dict[str, bytes]:
        """What lies on the main branch, without the .gitattributes that every repository starts with."""
        files = self.repos[repo].commits[-1].files
        return {path: blob.content for path, blob in files.items() if path != ".gitattributes"}

    def write(self, repo: str, author: str = "somebody", private: bool = True, **files: str) -> str:
        """A commit by somebody else (file names with `_` for `.`); makes the repository where there is none."""
        with self.lock:
            if repo not in self.repos:
                self.create(repo, private)
            now = dict(self.repos[repo].commits[-1].files)
            now |= {name.replace("_", ".", 1): Blob(text.encode(), False) for name, text in files.items()}
            return self.repos[repo].commit("by hand", author, now).oid

    def create(self, repo: str, private: bool) -> None:
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        self.repos[repo] = Repo(private)
        self.repos[repo].commit("initial commit", "system", {".gitattributes": Blob(attributes, False)})
