"""Bringing parcels to the Hub: look first, overwrite nothing of somebody else's, try again when it stumbles.

`huggingface_hub` asks again by itself while it uploads weights (429 with Retry-After, 5xx, lost connections), and does
not send again what the Hub has. What it asks only once (look, create, commit) is asked again here.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError

from pipeline import __version__
from pipeline.errors import UserError
from pipeline.hub.errors import MOVED, cause_of, is_passing, status_of
from pipeline.hub.parcel import Parcel

NOTE = ".push.json"  # in the run folder: what was pushed last, so that our own files are known again
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before the second, third, … try
LONGEST_WAIT = 300.0  # seconds; the Hub may ask for more, but then a person should decide
GIT_ATTRIBUTES = ".gitattributes"  # the Hub's own


class Remote(NamedTuple):
    """What lies on the Hub."""

    head: str | None  # the last commit of the main branch; None: there is no such repository
    private: bool
    files: dict[str, str]  # name -> sha256 of a large file, git's sha1 of any other


def hub_api(token: str | None = None) -> HfApi:
    """The client; the token is that of the environment or of `hf auth login` unless one is given."""
    if constants.is_offline_mode():
        raise UserError("nothing can be pushed in offline mode: unset HF_HUB_OFFLINE and run it again")
    if not (token or get_token()):
        raise LocalTokenNotFoundError()
    return HfApi(token=token, library_name="plumbline", library_version=__version__)


def patiently(call: Callable[[], Any]) -> Any:
    """`call()`, again after each failure that may pass: after what Retry-After says, else after 1, 2, 4 and 8 s."""
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            asked = _retry_after(error)
            if not is_passing(error) or asked > LONGEST_WAIT:
                raise
            time.sleep(max(wait, asked))
    return call()


def _retry_after(error: Exception) -> float:
    """Seconds; 0 when the Hub does not say."""
    headers = getattr(getattr(cause_of(error), "response", None), "headers", {})
    value = headers.get("Retry-After", "").strip()
    return float(value) if value.isdigit() else 0.0


def look(api: HfApi, repo: str) -> Remote:
    """What lies in `repo` now."""
    try:
        info = patiently(lambda: api.model_info(repo, files_metadata=True))
    except RepositoryNotFoundError as error:
        if status_of(error) == 401:  # the Hub says so of what does not exist, too, but only to nobody in particular
            raise
        return Remote(None, True, {})
    files = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings or []}
    return Remote(info.sha, bool(info.private), files)


def not_ours(parcel: Parcel, remote: Remote) -> list[str]:
    """Files on the Hub that the push would change and that were not pushed from this folder."""
    noted = noted_files(parcel.folder, parcel.repo)
    return [
        name
        for name, oid in remote.files.items()
        if name in parcel.files and oid not in noted.get(name, ()) and oid not in parcel.digests(name)
    ]


def upload(api: HfApi, parcel: Parcel, remote: Remote, private: bool, message: str) -> str:
    """Makes the repository if there is none, and commits the parcel on top of what `look` saw.

    Returns:
        The commit's id. Where nothing differs there is no new commit, and it is that of the last one.

    Raises:
        HfHubHTTPError: 412 when somebody committed since `look`; and whatever else stays after all tries.
    """
    head = remote.head
    if head is None:
        patiently(lambda: api.create_repo(parcel.repo, private=private, exist_ok=True))
        made = look(api, parcel.repo)
        if others := [name for name in made.files if name != GIT_ATTRIBUTES]:
            raise UserError(f"{parcel.repo} was made by somebody else just now, with {others[0]} in it: look at it")
        head = made.head
    files = [CommitOperationAdd(name, file) for name, file in parcel.files.items()]
    patiently(lambda: api.preupload_lfs_files(parcel.repo, files, free_memory=False))
    try:
        commit = patiently(lambda: api.create_commit(parcel.repo, files, commit_message=message, parent_commit=head))
        oid = commit.oid
    except Exception as error:
        if status_of(error) not in MOVED:
            raise
        # a try whose answer was lost on the way may have been the one that moved the branch
        now = look(api, parcel.repo)
        if any(now.files.get(name) not in parcel.digests(name) for name in parcel.files):
            raise
        oid = now.head
    _write_note(parcel, oid)
    return oid


def noted_files(folder: Path, repo: str) -> dict[str, list[str]]:
    """What was pushed last from `folder` to `repo`: name -> the ids that the Hub may give it."""
    return _read_notes(folder).get(_key(repo), {}).get("files", {})


def _write_note(parcel: Parcel, oid: str) -> None:
    note = {"commit": oid, "files": {name: parcel.digests(name) for name in parcel.files}}
    text = json.dumps(_read_notes(parcel.folder) | {_key(parcel.repo): note}, indent=2) + "\n"
    try:
        (parcel.folder / NOTE).write_text(text, "utf-8")
    except OSError:
        pass  # a folder that cannot be written: the next push will ask before it overwrites


def _read_notes(folder: Path) -> dict:
    try:
        return json.loads((folder / NOTE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _key(repo: str) -> str:
    return f"{constants.ENDPOINT}/{repo}"
