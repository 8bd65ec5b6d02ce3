"""Pushing to the Hub: the real client against a small server on loopback (tests/support/hub_server.py).

The tests that take the fixture `place` run against the real Hub as well when HF_TOKEN and PLUMBLINE_HUB_TESTS are set;
they make private repositories there, called plumbline-test-…, and delete them.
"""

import json
import os
import pickle
import re
import shutil
import uuid
from pathlib import Path

import hub_server
import pytest
import yaml
from hub_runs import PUSHED, make_runs, push
from huggingface_hub import CommitOperationAdd, HfApi, constants, snapshot_download

from pipeline.errors import UserError

pytest_plugins = ["hub_server"]  # the fixtures server and waits


# ------------------------------------------------------------ a run to push, and a Hub to push it to
@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    return make_runs(tmp_path_factory.mktemp("made"))


@pytest.fixture
def runs(made, tmp_path, monkeypatch) -> Path:
    """A copy, in the working directory, that may be changed."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/t")


class Place:
    """A Hub and an account on it. `server` is None on the real one."""

    def __init__(self, account: str, server: hub_server.Hub | None):
        self.account, self.server, self.repos = account, server, []

    def repo(self) -> str:
        self.repos += [f"{self.account}/plumbline-test-{uuid.uuid4().hex[:8]}"]
        return self.repos[-1]

    def download(self, repo: str, folder: Path) -> dict[str, bytes]:
        root = Path(snapshot_download(repo, local_dir=folder))
        files = [path for path in root.rglob("*") if path.is_file() and ".cache" not in path.parts]
        return {str(path.relative_to(root)): path.read_bytes() for path in files if path.name != ".gitattributes"}


@pytest.fixture(params=["loopback", "real"])
def place(request, monkeypatch):
    if request.param == "loopback":
        yield Place("me", request.getfixturevalue("server"))
        return
    if not (os.environ.get("HF_TOKEN") and os.environ.get("PLUMBLINE_HUB_TESTS")):
        pytest.skip("the real Hub: set HF_TOKEN and PLUMBLINE_HUB_TESTS=1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    found = Place(HfApi().whoami()["name"], None)
    yield found
    for repo in found.repos:
        for name in (repo, f"{repo}-reward", f"{repo}-critic"):
            HfApi().delete_repo(name, missing_ok=True)


# ------------------------------------------------------------ what is pushed
def test_policy_and_reward_are_pushed_and_come_back_bit_for_bit(place, runs, tmp_path, capsys):
    repo = place.repo()
    assert push(repo, what=[]) == [repo, f"{repo}-reward"]
    policy = place.download(repo, tmp_path / "policy")
    reward = place.download(f"{repo}-reward", tmp_path / "reward")
    assert set(policy) == set(reward) == PUSHED
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "metrics.jsonl"):
        assert policy[name] == (runs / "ppo" / name).read_bytes()
        assert reward[name] == (runs / "reward" / name).read_bytes()
    assert HfApi().model_info(repo).private and HfApi().model_info(f"{repo}-reward").private
    said = capsys.readouterr().out
    for text in (f"{repo} (policy, private)", f"{repo}-reward (reward, private)", "runs/t/base, which others do not"):
        assert text in said


def test_dry_run_lists_every_file_and_asks_nothing_of_the_network(server, runs, capsys):
    assert push("me/a", yes=False, what=[]) == []
    said = capsys.readouterr().out
    policy, reward = said.split("me/a-reward (reward, private)")
    for name in PUSHED:
        assert f"  {name}\n" in policy.replace("  (paths and base rewritten)", "")
        assert f"  {name}\n" in reward.replace("  (paths and base rewritten)", "")
    size = (runs / "ppo/adapter_model.safetensors").stat().st_size
    assert f"{size / 1000:.1f} kB  adapter_model.safetensors" in policy
    assert f"in {len(PUSHED)} files" in policy and "add --yes" in reward
    assert server.requests == []


def test_the_critic_goes_when_it_is_asked_for_and_takes_the_tokenizer_along(place, runs, tmp_path):
    repo = place.repo()
    assert push(repo, what=["critic"], base_model="gpt2") == [f"{repo}-critic"]
    files = place.download(f"{repo}-critic", tmp_path / "back")
    assert files["adapter_model.safetensors"] == (runs / "ppo/critic/adapter_model.safetensors").read_bytes()
    assert files["tokenizer.json"] == (runs / "ppo/tokenizer.json").read_bytes()
    assert b"AutoPeftModelForTokenClassification" in files["README.md"] and b"base_model: gpt2" in files["README.md"]


def test_a_reward_run_is_pushed_by_itself(server, runs):
    assert push("me/rm", run=runs / "reward", what=[]) == ["me/rm"]
    assert set(server.files("me/rm")) == PUSHED


def test_nothing_of_this_machine_is_pushed(server, runs):
    tokens = json.loads((runs / "ppo/tokenizer_config.json").read_text())
    tokens |= {"name_or_path": "/home/" + "me/base", "extra_special_tokens": ["/home/" + "token"]}
    (runs / "ppo/tokenizer_config.json").write_text(json.dumps(tokens))
    adapter = json.loads((runs / "ppo/adapter_config.json").read_text())
    adapter["base_model_name_or_path"] = "/home/" + "me/base"
    (runs / "ppo/adapter_config.json").write_text(json.dumps(adapter))
    push("me/a")
    files = server.files("me/a")
    assert yaml.safe_load(files["config.yaml"])["dataset"] == "rows.jsonl"
    assert json.loads(files["summary.json"])["base"] == "base"
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "base"
    pushed = json.loads(files["tokenizer_config.json"])
    assert pushed == tokens | {"name_or_path": "base"}  # a token that looks like a path is a token
    assert b"/home/" + b"me" not in b"".join(files.values())


def test_base_model_is_named_in_the_pushed_copy_alone(server, runs):
    before = (runs / "ppo/adapter_config.json").read_bytes()
    push("me/a", base_model="org/base")
    files = server.files("me/a")
    pushed = json.loads(files["adapter_config.json"])
    assert pushed == json.loads(before) | {"base_model_name_or_path": "org/base"}
    card = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert card["base_model"] == "org/base" and card["tags"] == ["lora", "base_model:adapter:org/base"]
    assert (runs / "ppo/adapter_config.json").read_bytes() == before


def test_a_local_base_is_not_named_in_the_card_which_the_hub_would_refuse(server, runs):
    push("me/a")
    assert "base_model" not in server.files("me/a")["README.md"].decode()


def test_report_only_when_asked(server, runs):
    push("me/a", report=True)
    assert set(server.files("me/a")) == PUSHED | {"report.html"}


def test_pickles_are_refused_under_any_name(server, runs):
    weights = runs / "ppo/adapter_model.safetensors"
    weights.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="is truncated or damaged"):
        push("me/a")
    weights.rename(runs / "ppo/adapter_model.bin")
    (runs / "ppo/rollout_0.safetensors").unlink()
    with pytest.raises(UserError, match="as a pickle"):
        push("me/a")
    assert server.requests == []


def test_half_a_file_is_refused(server, runs):
    weights = runs / "ppo/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="is truncated or damaged"):
        push("me/a")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"run": "runs/none"}, "there is no folder runs/none"),
        ({"run": "runs/t/base"}, "runs/t/base holds no result"),
        ({"repo": "just-a-name"}, "repo: 'just-a-name' is not valid: a repository on the Hub, account/name"),
        ({"what": ["optimizer"]}, "what: 'optimizer' is not valid: one of policy, reward, critic"),
        ({"run": "runs/t/reward", "what": ["policy"]}, "has no policy to push; there is reward"),
        ({"base_model": "./base"}, "base_model: './base' is not valid"),
    ],
)
def test_wrong_settings_are_named(server, runs, settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        push(**{"repo": "me/a"} | settings)


def test_two_reward_models_need_a_choice(server, runs):
    config = yaml.safe_load((runs / "ppo/config.yaml").read_text())
    (runs / "ppo/critic").rename(runs / "second")
    adapter = json.loads((runs / "second/adapter_config.json").read_text()) | {"task_type": "SEQ_CLS"}
    (runs / "second/adapter_config.json").write_text(json.dumps(adapter))
    config["rewards"].append({"name": "learned", "path": "runs/t/second"})
    (runs / "ppo/config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="was trained on 2 reward models"):
        push("me/a", what=[])
    assert push("me/a") == ["me/a"]


# ------------------------------------------------------------ again, and other people
def test_pushing_again_sends_nothing_and_a_change_sends_what_changed(place, runs, tmp_path, capsys):
    repo = place.repo()
    push(repo)
    first = HfApi().model_info(repo).sha
    push(repo)
    assert HfApi().model_info(repo).sha == first and "nothing new to push" in capsys.readouterr().out
    (runs / "ppo/metrics.jsonl").write_text('{"step": 2}\n')
    push(repo)  # over our own file, without a question
    assert HfApi().model_info(repo).sha != first
    assert place.download(repo, tmp_path / "back")["metrics.jsonl"] == b'{"step": 2}\n'
    if place.server:
        assert len(place.server.asked("PUT", "/lfs/")) == 1


def test_what_somebody_else_wrote_stays_until_overwrite_is_said(place, runs, tmp_path):
    repo, api = place.repo(), HfApi()
    push(repo)
    theirs = [CommitOperationAdd("README.md", b"---\nlicense: mit\n---\nby hand"), CommitOperationAdd("LICENSE", b"x")]
    api.create_commit(repo, theirs, commit_message="by hand")
    head = api.model_info(repo).sha
    (runs / "ppo/metrics.jsonl").write_text('{"step": 2}\n')
    with pytest.raises(UserError, match=r"\(README.md\), and they stay: add --overwrite") as caught:
        push(repo)
    assert "LICENSE" not in str(caught.value) and api.model_info(repo).sha == head
    push(repo, overwrite=True)
    files = place.download(repo, tmp_path / "back")
    assert files["metrics.jsonl"] == b'{"step": 2}\n' and b"by hand" not in files["README.md"]
    assert files["LICENSE"] == b"x"


def test_a_repository_of_which_nothing_would_be_overwritten_is_added_to(server, runs):
    server.write("me/a", LICENSE="x")
    push("me/a")
    assert set(server.files("me/a")) == PUSHED | {"LICENSE"}


def test_no_repository_is_written_when_one_of_them_is_somebody_elses(server, runs):
    server.write("me/a-reward", README_md="theirs")
    with pytest.raises(UserError, match="me/a-reward has files that were not pushed"):
        push("me/a", what=["policy", "reward"])
    assert "me/a" not in server.repos


def test_a_public_repository_is_not_taken_for_a_private_one(server, runs):
    server.write("me/a", private=False, LICENSE="x")
    with pytest.raises(UserError, match="me/a is public already"):
        push("me/a")
    push("me/a", private=False)
    assert set(server.files("me/a")) >= PUSHED


def test_public_when_asked(server, runs):
    push("me/a", private=False)
    assert not server.repos["me/a"].private


def test_a_commit_in_between_is_not_overwritten(server, runs):
    server.before("POST", "/commit/", lambda: server.write("me/a", README_md="theirs"))
    with pytest.raises(UserError, match=r"somebody else changed me/a during the push \(412\)"):
        push("me/a")
    assert server.files("me/a") == {"README.md": b"theirs"}


# ------------------------------------------------------------ failures that pass


# ------------------------------------------------------------ failures that stay


# ------------------------------------------------------------ the server itself
def test_the_server_answers_what_else_people_ask(server):
    server.write("me/a", LICENSE="x")
    assert HfApi().whoami()["name"] == "me"
    assert [branch.name for branch in HfApi().list_repo_refs("me/a").branches] == ["main"]
    assert [commit.title for commit in HfApi().list_repo_commits("me/a")] == ["by hand", "initial commit"]
