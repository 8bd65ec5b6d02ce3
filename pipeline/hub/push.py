"""`make push`: show what would be pushed, ask, push."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import check, setting
from pipeline.errors import UserError
from pipeline.hub.errors import plain_errors
from pipeline.hub.parcel import KINDS, Parcel, pack
from pipeline.hub.upload import Remote, hub_api, look, not_ours, upload
from pipeline.safety.console import say

REPO_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass
class PushArguments:
    """What to push, and where to. The token is that of `hf auth login` or HF_TOKEN; it is never a flag."""

    run: str | None = setting(None, "Folder of a finished run, such as runs/tiny/ppo.")
    repo: str | None = setting(
        None, "Repository for it on the Hub, account/name; what comes along goes to account/name-reward and -critic."
    )
    what: list[str] = setting(
        [], "policy, reward, critic; by default what the run made, and the reward model that a policy learned from."
    )
    private: bool = setting(True, "Only you and those you name can see it; false: everybody.")
    base_model: str | None = setting(
        None, "Name of the base on the Hub, where the run names a local folder; it changes the pushed copy only."
    )
    report: bool = setting(False, "Push report.html as well; it shows prompts and completions of your data.")
    yes: bool = setting(False, "Push without asking. Without it and without a terminal nothing is pushed.")
    overwrite: bool = setting(False, "Overwrite files on the Hub that were not pushed from this folder.")

    def __post_init__(self):
        check(bool(self.run), "run", self.run, "the folder of a finished run, such as runs/tiny/ppo")
        check_repo("repo", self.repo)
        for kind in self.what:
            check(kind in KINDS.values(), "what", kind, f"one of {', '.join(KINDS.values())}")
        self.what = list(dict.fromkeys(self.what))


def check_repo(key: str, repo: str | None) -> None:
    """Raises `UserError` unless `repo` has the form account/name that the Hub takes."""
    good = repo is not None and REPO_NAME.fullmatch(repo) and len(repo) <= 96 and "--" not in repo and ".." not in repo
    check(bool(good), key, repo, "a repository on the Hub, account/name")


def run(args: PushArguments) -> list[str]:
    """Pushes, and returns the repositories that were pushed to; none after a dry run.

    Raises:
        UserError: for whatever the user can mend, before or during the push. What other people wrote stays.
    """
    # 1. What goes where; everything local is checked before the network is asked
    parcels = pack(Path(args.run), args.repo, args.what, args.base_model, args.report)
    for parcel in parcels:
        say(listing(parcel, args.private))
    # 2. A person says yes
    if not (args.yes or _asked("Push this?")):
        say("Nothing was pushed. To push without being asked, add --yes.")
        return []
    # 3. All the repositories are looked at before the first is written to
    with plain_errors(args.repo):
        api = hub_api()
    remotes = []
    for parcel in parcels:
        with plain_errors(parcel.repo):
            remotes.append(look(api, parcel.repo))
        _check_remote(parcel, remotes[-1], args)
    # 4. Push
    for parcel, remote in zip(parcels, remotes, strict=True):
        with plain_errors(parcel.repo):
            oid = upload(api, parcel, remote, args.private, f"{parcel.kind} of {parcel.folder.name}")
        say(f"{parcel.repo}: {'nothing new to push' if oid == remote.head else f'pushed as {oid[:12]}'}")
    return [parcel.repo for parcel in parcels]


def listing(parcel: Parcel, private: bool) -> str:
    """The dry run of one parcel: repository, visibility, every file with its size, warnings."""
    sizes = {name: parcel.size(name) for name in parcel.files}
    seen_by = "private" if private else "public: everybody can see and download it"
    lines = [f"{parcel.repo} ({parcel.kind}, {seen_by}), from {parcel.folder}:"]
    for name, size in sizes.items():
        changed = "  (paths and base rewritten)" if isinstance(parcel.files[name], bytes) else ""
        lines.append(f"  {_readable(size):>10}  {name}{changed}")
    lines.append(f"  {_readable(sum(sizes.values())):>10}  in {len(sizes)} files")
    lines += [f"  note: {warning}" for warning in parcel.warnings]
    return "\n".join(lines)


def _readable(size: int) -> str:
    """Bytes in the decimal units that the Hub shows."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _check_remote(parcel: Parcel, remote: Remote, args: PushArguments) -> None:
    if remote.head is None:
        return
    if args.private and not remote.private:
        raise UserError(
            f"{parcel.repo} is public already, and this push is meant to be private: "
            "say --private false to push there all the same, or give another --repo"
        )
    theirs = not_ours(parcel, remote)
    if not theirs or args.overwrite:
        return
    say(f"In {parcel.repo} these files were not pushed from {parcel.folder}: {', '.join(theirs)}")
    if not _asked("Overwrite them?"):
        raise UserError(
            f"{parcel.repo} has files that were not pushed from {parcel.folder} ({', '.join(theirs)}), and they stay: "
            "add --overwrite to replace them, or give another --repo"
        )


def _asked(question: str) -> bool:
    """The answer of a person at the terminal; no without a terminal."""
    if not (sys.stdin and sys.stdin.isatty()):
        return False
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        return False
