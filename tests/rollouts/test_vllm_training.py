"""Training, exams, eval and samples by a vLLM server (a stand-in: see test_vllm_server.py)."""

import json
import math
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import toy
from short_runs import SETTINGS, prompts_file, run_ppo
from test_vllm_server import quick  # noqa: F401
from vllm_stand_in import dies_after, serving, vllm_base

from pipeline.config import DataArguments, GRPOStage, ModelArguments, RLOOStage
from pipeline.errors import UserError
from pipeline.eval import sampling
from pipeline.eval import stage as eval_stage
from pipeline.exam.exam import RewardArguments
from pipeline.ppo.config import PPOStage
from pipeline.rollouts import vllm_trainer
from pipeline.runs.folder import read_heldout, read_metrics
from pipeline.stages import trl_stage
from pipeline.watching.watch import WATCHERS, Seen, row_of

ROOT = Path(__file__).resolve().parents[2]
KEYWORD = [{"name": "keyword", "column": "facts"}]


def make(tmp_path, server, name="run", **changes):
    settings = {"prompts": toy.PROMPTS * 2, "total_episodes": 24, "per_device_train_batch_size": 8}
    settings |= {"gradient_accumulation_steps": 1, "settings_": PPOStage, "vllm_server": server.url} | changes
    return toy.make_trainer(tmp_path / name, toy.with_sft_adapter(vllm_base()), **settings)


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path) as running:
        yield running


# ---------------------------------------------------------------- rollouts
@pytest.mark.parametrize("parts", [{}, {"replay": 1}, {"algorithm": "a2c", "num_iterations": 1}])
def test_each_rollout_is_sampled_by_the_newest_policy(tmp_path, server, parts):
    trainer = make(tmp_path, server, **parts)
    before = toy.learned(trainer)
    trainer.train()
    assert len(server.loaded) == len(set(server.loaded)) == 1 + 3  # what is tried first, and each rollout
    assert server.most == 2 and list(server.adapters) == server.loaded[-2:]  # the one before last goes
    # what the server said of its tokens is what the policy says: every version arrived
    assert max(toy.logged(trainer, "sampling/sampling_logp_difference/max")) < 1e-5
    assert max(toy.logged(trainer, "sampler/ratio_max")) == pytest.approx(1, abs=1e-5)
    assert max(toy.logged(trainer, "sampler/kl")) == pytest.approx(0, abs=1e-9)
    assert all(not torch.equal(p, before[n]) for n, p in toy.learned(trainer).items())
    trained = [body for body in server.bodies if body["stop_token_ids"]]
    assert len(trained) == 24 and len({body["seed"] for body in trained}) == 24
    assert {body["max_tokens"] for body in trained} == {6} and {body["ignore_eos"] for body in trained} == {True}
    vllm_trainer.close(trainer)
    assert not server.adapters and not (tmp_path / "run" / "adapters").exists()


@pytest.mark.parametrize(("off", "weight"), [(0.5, math.exp(0.5)), (-1.0, math.exp(-1.0)), (2.0, 3.0)])
def test_a_sampler_that_differs_is_weighed_and_told(tmp_path, server, off, weight):
    """π_ours/π_sampler of every token is e^off, which TRL truncates at 3; KL by k3 is e^off - off - 1."""
    trainer = make(tmp_path, server, total_episodes=8, num_iterations=1, whiten_advantages=False)
    complete = server.complete

    def shifted(body):
        status, answer = complete(body)
        said = answer["choices"][0]["logprobs"]
        said["token_logprobs"] = [x - off for x in said["token_logprobs"]]
        return status, answer

    server.complete = shifted
    seen = []
    loss = trainer._policy_loss
    trainer._policy_loss = lambda model, inputs: seen.append(inputs) or loss(model, inputs)
    trainer.train()
    weights = torch.cat([x["importance_sampling_ratio"][x["loss_mask"].bool()] for x in seen])
    torch.testing.assert_close(weights, torch.full_like(weights, weight), rtol=1e-4, atol=0)
    assert toy.logged(trainer, "sampler/kl") == [pytest.approx(math.expm1(off) - off, rel=1e-3)]
    assert toy.logged(trainer, "sampler/ratio_max") == [pytest.approx(math.exp(off), rel=1e-4)]
    # ratio 1 before anything is learned: the loss is -weight · advantage, a mean over tokens
    advantages = torch.cat([x["advantages"][x["loss_mask"].bool()] for x in seen])
    expected = -weight * advantages.mean().item()
    assert toy.logged(trainer, "loss/policy") == [pytest.approx(expected, rel=1e-3)] and abs(expected) > 0.01


def test_the_weight_is_one_where_both_sides_are_the_same(tmp_path, server):
    """A run by a server and one by hand on the same completions end in the same adapter, within rounding."""
    trainer = make(tmp_path, server, total_episodes=8, optim="sgd")
    trainer.train()
    said = {}
    for body in server.bodies:
        if body["stop_token_ids"]:
            ids = server_ids(server, body)
            said.setdefault(tuple(body["prompt"]), []).append(ids)

    def rollout(prompts, trainer):
        prompt_ids = trainer.processing_class(text=prompts)["input_ids"]
        left = {key: list(ids) for key, ids in said.items()}
        completions = [left[tuple(ids)].pop(0) for ids in prompt_ids]
        return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}

    by_hand = make(tmp_path, server, "by_hand", total_episodes=8, optim="sgd", vllm_server=None, rollout_func=rollout)
    by_hand.train()
    assert toy.logged(trainer, "score") == toy.logged(by_hand, "score")
    for name, expected in toy.learned(by_hand).items():
        torch.testing.assert_close(trainer.model.get_parameter(name), expected, atol=1e-5, rtol=1e-4)


def server_ids(server, body) -> list[int]:
    """What the stand-in said to a body, said again by the adapter's first version."""
    return server.complete(body)[1]["choices"][0]["token_ids"]


def test_a_step_of_ones_own_is_not_weighed(tmp_path, server):
    trainer = make(tmp_path, server, reward=None, prompts=None)
    completions = trainer.generate(toy.PROMPTS)
    assert len(completions) == 8 and len(server.loaded) == 2
    logs = trainer.step(toy.PROMPTS, completions, [float(len(x.ids)) for x in completions])
    assert logs["score"] > 0 and "sampler/kl" not in logs


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, server):
    """The stand-in says the same to the same seed; the seeds come from what a checkpoint keeps."""
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "num_mini_batches": 2}
    settings |= {"per_device_train_batch_size": 4}
    whole = make(tmp_path, server, "whole", **settings)
    whole.train()
    assert whole.state.global_step == 12
    for step in (4, 6):  # between two rollouts, and inside one
        again = make(tmp_path, server, str(step), **settings)
        again.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{step}"))
        assert all(torch.equal(again.model.get_parameter(n), x) for n, x in toy.learned(whole).items()), step


def test_a_run_goes_on_at_a_server_that_was_gone(tmp_path, server):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "vllm_server_timeout": 0.1}
    whole = make(tmp_path, server, "whole", **settings)
    whole.train()
    broken = make(tmp_path, server, "broken", **settings)
    revive = dies_after(server, 12)
    with pytest.raises(UserError, match="answers with status 500: engine is dead; the run goes on.*--resume"):
        broken.train()
    revive()
    again = make(tmp_path, server, "broken", **settings)
    again.train(resume_from_checkpoint=True)
    assert all(torch.equal(again.model.get_parameter(n), x) for n, x in toy.learned(whole).items())


SCRIPT = ROOT / "tests/support/distributed/served.py"


def served_by_two(warm, tmp_path, server, *flags) -> list[dict]:
    """What two processes have learned, of which one asks the server."""
    for done in warm.ranks(2, [SCRIPT, tmp_path, server.url, *flags], tmp_path):
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_are_sampled_for_by_one(warm, tmp_path, server):
    one, two = served_by_two(warm, tmp_path, server)
    assert all(torch.equal(p, two["learned"][n]) for n, p in one["learned"].items())
    assert len(server.loaded) == 4 and not server.adapters and one["ratio"] == pytest.approx(1, abs=1e-5)
    assert len({body["seed"] for body in server.bodies if body["stop_token_ids"]}) == 24


def test_what_the_server_refuses_ends_both_processes(warm, tmp_path, server):
    complete = server.complete
    server.complete = lambda body: (403, {"error": "no"}) if body["stop_token_ids"] else complete(body)
    for done in warm.ranks(2, [SCRIPT, tmp_path, server.url], tmp_path):
        assert done.returncode != 0 and "answers with status 403: no; the run goes on from its last" in done.stderr


def test_images_are_refused(tmp_path, server):
    with pytest.raises(UserError, match="samples from text alone"):
        make(tmp_path, server).vllm_generation.generate([[3]], ["an image"], 1)


# ---------------------------------------------------------------- stages
@contextmanager
def base_server(tmp_path, folder):
    from transformers import LlamaForCausalLM

    with serving(tmp_path, LlamaForCausalLM.from_pretrained(folder)) as running:
        yield running


@pytest.mark.parametrize("ahead", [0, 1])
def test_ppo_and_its_exams_by_a_server(tmp_path, tiny_model_folder, ahead):
    with base_server(tmp_path, tiny_model_folder) as server:
        where = {"vllm_server": server.url, "rollout_ahead": ahead}
        summary = run_ppo(tmp_path / "run", tiny_model_folder, prompts_file(tmp_path), KEYWORD, 1, **where)
        assert not server.adapters
    assert len(read_heldout(tmp_path / "run")) == 4 and summary["heldout"] == 3
    greedy = [body for body in server.bodies if body["temperature"] == 0]
    assert len(greedy) == 2 * 3  # before and after
    # 12 in training, 3 rows each in four exams, greedy, and what is tried first of each adapter: two rows
    assert len(server.bodies) == 12 + 4 * 3 + 2 * 3 + 2 * (1 + 4)
    assert not (tmp_path / "run" / "adapters").exists()
    assert all(row["sampler/ratio_max"] < 1.001 for row in read_metrics(tmp_path / "run") if "loss" in row)
    asked = Counter(body["model"] for body in server.bodies)  # exams ask for 5 or 8 of one version
    assert sorted(asked.values()).count(4) == (1 if ahead else 3)  # one policy sampled the first two rollouts
    base_alone = [body for body in server.bodies if body["model"] == "base"]
    assert len(base_alone) == 2 * 3 + 2  # the policy starts as the base: so does the first exam


@pytest.mark.parametrize("stage", [GRPOStage, RLOOStage])
def test_grpo_and_rloo_by_a_server(tmp_path, tiny_model_folder, stage):
    with base_server(tmp_path, tiny_model_folder) as server:
        more = {"vllm_server": server.url, "vllm_importance_sampling_mode": "token_truncate"}
        more = more if stage is GRPOStage else {"vllm_server": server.url}
        trl_stage.run(
            ModelArguments(model_name_or_path=str(tiny_model_folder), dtype="float32", lora_r=2),
            DataArguments(dataset=str(prompts_file(tmp_path)), eval_fraction=0.25),
            RewardArguments(rewards=KEYWORD, eval_samples=3, show_samples=0),
            stage(output_dir=str(tmp_path / "run"), total_episodes=8, **SETTINGS | more),
        )
        assert not server.adapters
    rows = [row for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert len(rows) == 2
    if stage is GRPOStage:
        assert all(row["sampler/kl"] < 1e-8 and row["sampler/ratio_max"] < 1.001 for row in rows)


def test_a_server_that_is_not_there_ends_the_run_before_anything_is_loaded(tmp_path, tiny_model_folder, monkeypatch):
    monkeypatch.setattr("pipeline.models.loading.load_base", None)
    where = {"vllm_server": "http://127.0.0.1:9", "vllm_server_timeout": 0.0}
    with pytest.raises(UserError, match="vllm_server http://127.0.0.1:9 is not up"):
        run_ppo(tmp_path / "run", tiny_model_folder, prompts_file(tmp_path), KEYWORD, None, **where)


def test_eval_and_samples_by_a_server(tmp_path, tiny_model_folder):
    """Greedy answers are those of transformers; all prompts go to the server."""
    data = prompts_file(tmp_path)
    run_ppo(tmp_path / "ppo", tiny_model_folder, data, KEYWORD, None, total_episodes=4)
    asked = {"candidates": [{"ppo": str(tmp_path / "ppo")}, {"base": str(tiny_model_folder)}], "dataset": str(data)}
    asked |= {"eval_samples": 4, "max_completion_length": 6, "use_cpu": True, "dtype": "float32"}
    with base_server(tmp_path, tiny_model_folder) as server:
        found = {}
        for name, where in {"server": server.url, "plain": None}.items():
            eval_stage.run(eval_stage.EvalArguments(output_dir=str(tmp_path / name), vllm_server=where, **asked))
            rows = [json.loads(line) for line in (tmp_path / name / "rows.jsonl").read_text().splitlines()]
            found[name] = [
                {who: said["greedy"]["completion"] for who, said in row["candidates"].items()} for row in rows
            ]
        assert found["server"] == found["plain"]
        sampled = {"run": str(tmp_path / "ppo"), "dataset": str(data), "max_rows": 4, "max_completion_length": 6}
        sampled |= {"use_cpu": True, "dtype": "float32"}
        args = sampling.SampleArguments(**sampled, output=str(tmp_path / "samples.jsonl"), vllm_server=server.url)
        out = sampling.run(args)
        assert len(out.read_text().splitlines()) == 16 and not server.adapters
    assert len(server.bodies) == 2 * 2 * 4 + 2 * 2 + 16 + 2


# ---------------------------------------------------------------- watching
def test_a_sampler_that_stays_off_is_told():
    def seen(*kl):
        rows = [row_of({"loss": 0.0, "sampler/kl": x, "sampler/ratio_max": 7.0}) for x in kl]
        return Seen(rows[:1], rows, len(rows), [], frozenset(), 0)

    look = WATCHERS["sampler"]
    assert "KL 0.030 nats a token, and a token was 7.0 times as likely" in look(seen(0.03, 0.03, 0.03))
    assert look(seen(0.03, 0.001, 0.03)) is None and look(seen(0.03, 0.03)) is None
