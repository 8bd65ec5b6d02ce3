"""`push_to_hub: true` while training, against the loopback server: what arrives, when, and what fails."""

import json
from pathlib import Path

import pytest
import toy
import yaml
from hub_server import READER, TOKEN
from huggingface_hub import constants

from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage
from pipeline.errors import UserError
from pipeline.exam.exam import RewardArguments
from pipeline.stages import ppo as stage
from pipeline.stages import reward_model, sft

pytest_plugins = ["hub_server"]

WEIGHTS = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"}
RECORD = {"README.md", "config.yaml", "metrics.jsonl", "summary.json"}


def train(tmp_path, **settings):
    """Two updates of one step each, a checkpoint after each."""
    trainer = make(tmp_path, **settings)
    trainer.train()
    return trainer


def make(tmp_path, **settings):
    settings = {
        **{"push_to_hub": True, "hub_model_id": "me/toy", "save_strategy": "steps", "save_steps": 1},
        **{"num_iterations": 1, "total_episodes": 16},
    } | settings
    return toy.make_trainer(tmp_path / "out", toy.with_sft_adapter(), **settings)


def titles(server, repo="me/toy") -> list[str]:
    return [commit.title for commit in server.repos[repo].commits[1:]]


def test_every_checkpoint_of_ppo_is_pushed_and_the_end(server, tmp_path):
    trainer = train(tmp_path)
    assert titles(server) == ["Training in progress, step 1", "Training in progress, step 2"]
    for step, commit in zip((1, 2), server.repos["me/toy"].commits[1:], strict=True):
        assert set(commit.files) == WEIGHTS | {".gitattributes"}
        saved = tmp_path / f"out/checkpoint-{step}/adapter_model.safetensors"
        assert commit.files["adapter_model.safetensors"].content == saved.read_bytes()
    assert server.repos["me/toy"].private
    trainer.push_to_hub()  # the same weights: the card alone is new
    assert titles(server)[2:] == ["End of training"] and set(server.files("me/toy")) == WEIGHTS | {"README.md"}
    trainer.save_model()  # as the Trainer has it, this pushes too; here nothing differs
    assert len(titles(server)) == 3


def test_strategy_end_pushes_at_the_end_only(server, tmp_path):
    trainer = train(tmp_path, hub_strategy="end")
    assert titles(server) == []
    trainer.push_to_hub()
    assert titles(server) == ["End of training"]


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_checkpoints_are_never_pushed(server, tmp_path, strategy):
    with pytest.raises(UserError, match=f"hub_strategy: '{strategy}' is not valid: end or every_save"):
        train(tmp_path, hub_strategy=strategy)
    assert server.repos == {}


@pytest.mark.parametrize("given, private", [(None, True), (True, True), (False, False)])
def test_private_unless_said_otherwise(server, tmp_path, given, private):
    train(tmp_path, hub_private_repo=given)
    assert server.repos["me/toy"].private == private


def test_the_name_is_that_of_the_folder_and_the_account_that_of_the_token(server, tmp_path):
    train(tmp_path, hub_model_id=None)
    assert list(server.repos) == ["me/out"]


@pytest.mark.parametrize("private", [True, False])
def test_what_somebody_else_has_there_stops_the_run_before_it_starts(server, tmp_path, private):
    server.write("me/toy", private=private, README_md="theirs")
    message = "me/toy has README.md already" if private else "me/toy is public already"
    with pytest.raises(UserError, match=message):
        train(tmp_path)
    assert server.files("me/toy") == {"README.md": b"theirs"}


def test_a_resumed_run_knows_its_own_files(server, tmp_path):
    train(tmp_path)
    trainer = make(tmp_path, total_episodes=24)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    assert titles(server)[-1] == "Training in progress, step 3"


def test_a_hub_that_fails_in_the_middle_does_not_stop_the_training(server, tmp_path, capsys):
    server.fail("POST", "/commit/", 403)
    trainer = train(tmp_path)
    assert trainer.state.global_step == 2 and titles(server) == ["Training in progress, step 2"]
    assert (
        "not pushed at step 1, training goes on: this token may not write to me/toy (403)" in capsys.readouterr().out
    )


def test_what_somebody_wrote_meanwhile_stays(server, tmp_path):
    trainer = train(tmp_path)
    server.write("me/toy", tokenizer_json="theirs")
    with pytest.raises(UserError, match="me/toy: tokenizer.json was changed by somebody else during training"):
        trainer.push_to_hub()
    assert server.files("me/toy")["tokenizer.json"] == b"theirs"


@pytest.mark.parametrize("token", [READER, "hf_unknown"])
def test_a_token_that_will_not_do_stops_the_run_before_it_starts(server, tmp_path, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match="403" if token == READER else "401"):
        train(tmp_path)
    assert not list(tmp_path.glob("out/checkpoint-*"))


def test_offline(server, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="offline mode: unset HF_HUB_OFFLINE"):
        train(tmp_path)


def test_the_token_of_the_settings_is_used_and_gets_into_no_file(server, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    trainer = train(tmp_path, hub_token=TOKEN)
    assert len(titles(server)) == 2
    assert trainer.args.hub_token is None  # the Trainer pickles its settings into checkpoints
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if TOKEN.encode() in path.read_bytes()]


# ------------------------------------------------------------ the stages
def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "reward", "ppo", "grpo"])
def test_each_stage_pushes_its_result_with_card_and_summary(server, tmp_path, tiny_model_folder, kind, monkeypatch):
    from pipeline.stages import trl_stage

    monkeypatch.chdir(tmp_path)
    words = [f"w{i}" for i in range(24)]
    rows = {
        "sft": [{"prompt": f"say {w} =>\n", "completion": f"It is {w}."} for w in words],
        "reward": [{"prompt": f"say {w} =>\n", "chosen": f"It is {w}.", "rejected": "No."} for w in words],
    }.get(kind, [{"prompt": f"say {w} =>\n", "facts": [w]} for w in words])
    data = DataArguments(dataset=write_rows(tmp_path / "rows.jsonl", rows), eval_fraction=0.25)
    model = ModelArguments(model_name_or_path=str(tiny_model_folder))
    common = {
        **{"output_dir": f"out/{kind}", "use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 2},
        **{"push_to_hub": True, "hub_model_id": "me/stage", "save_strategy": "steps", "save_steps": 1},
    }
    rewards = RewardArguments(rewards=[{"name": "keyword", "column": "facts"}], eval_samples=4)
    if kind == "sft":
        sft.run(model, data, SFTStage(max_length=64, **common))
    elif kind == "reward":
        reward_model.run(model, data, RewardStage(max_length=64, **common))
    elif kind == "ppo":
        stage.run(model, data, rewards, stage.PPOStage(max_completion_length=8, num_iterations=2, **common))
    else:
        settings = trl_stage.GRPOStage(max_completion_length=8, num_generations=2, **common)
        trl_stage.run(model, data, rewards, settings)
    # where no reward differs the second step leaves the policy as it is, and then there is nothing to push
    commits = titles(server, "me/stage")
    assert commits[0] == "Training in progress, step 1" and commits[-1] == "End of training"
    files = server.files("me/stage")
    assert WEIGHTS | RECORD <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name]
    assert files["adapter_model.safetensors"] == Path(f"out/{kind}/adapter_model.safetensors").read_bytes()
    assert (
        json.loads(files["summary.json"])["seed"] == json.loads(Path(f"out/{kind}/summary.json").read_text())["seed"]
    )
    assert yaml.safe_load(files["config.yaml"])["dataset"] == "rows.jsonl"
    assert server.repos["me/stage"].private and str(tmp_path).encode() not in b"".join(files.values())
