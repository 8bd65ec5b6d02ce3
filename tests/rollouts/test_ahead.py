"""`rollout_ahead: 1`: the next rollout is sampled while this one is learned from. The stand-in for vLLM answers."""

from types import SimpleNamespace

import pytest
import torch
import toy
from datasets import Dataset
from test_vllm_training import make, served_by_two
from transformers import TrainerCallback
from vllm_stand_in import dies_after, serving

from pipeline.errors import UserError
from pipeline.models.adapters import POLICY
from pipeline.ppo.config import PPOStage
from pipeline.rollouts import vllm_trainer
from pipeline.rollouts.ahead import Ahead, Pending
from pipeline.rollouts.vllm_server import Adapter, VllmServer

SMALL = {"per_device_train_batch_size": 2, "use_cpu": True, "bf16": False}
STEPS = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "num_mini_batches": 2}
STEPS |= {"per_device_train_batch_size": 4}  # four optimizer steps an update


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def models(server):
    """Every version of the adapter that the server was given, as it was."""
    kept, load = {}, server.load

    def keeping(body):
        answer = load(body)
        if body:
            kept[body["lora_name"]] = server.adapters[body["lora_name"]]
        return answer

    server.load = keeping
    return kept


def rollouts_of(trainer) -> list[dict]:
    """What each update will learn from, once it was made."""
    made, make_one = [], trainer._generate_and_score_completions

    def noting(inputs):
        made.append(make_one(inputs))
        return made[-1]

    trainer._generate_and_score_completions = noting
    return made


def asked_in_training(server, size: int = 8) -> list[list[dict]]:
    bodies = [body for body in server.bodies if body["stop_token_ids"]]
    return [bodies[start : start + size] for start in range(0, len(bodies), size)]


# ---------------------------------------------------------------- which policy, which prompts, which weight
@pytest.mark.parametrize("parts", [{}, {"replay": 1}, {"algorithm": "a2c", "num_iterations": 1}])
def test_a_rollout_is_sampled_by_the_policy_of_one_update_ago(tmp_path, server, models, monkeypatch, parts):
    """Update k = 1, 2, 3 learns from what version max(k - 2, 0) has sampled, version n being the policy after update
    n. 16 prompts are two rollouts, so the third is of another epoch."""
    monkeypatch.setattr(Ahead, "asks", True)  # so that the server has the policy of the last update too
    trainer = make(tmp_path, server, rollout_ahead=1, **parts)
    learned_from = rollouts_of(trainer)
    trainer.train()
    _, *versions = server.loaded  # the first is tried out before the training
    asked = asked_in_training(server)
    assert [{body["model"] for body in bodies} for bodies in asked] == [{versions[i]} for i in (0, 0, 1)]
    assert len(versions) == 3 and server.most == 2
    server.adapters.update(models)
    for batch, bodies in zip(learned_from, asked, strict=True):
        # the server's answers, asked for them again: same prompts, same seeds, same version
        answers = [server.complete(body)[1]["choices"][0] for body in bodies]
        said = sorted([body["prompt"], answer["token_ids"]] for body, answer in zip(bodies, answers, strict=True))
        assert said == sorted(map(list, zip(toy.real_prompts(batch), toy.real(batch), strict=True)))
    for update, sampler in ((1, 0), (2, 0), (3, 1)):
        weights = check_weights(
            learned_from[update - 1], models[versions[update - 1]][1], models[versions[sampler]][1]
        )
        assert (weights - 1).abs().max() > 1e-3 if update > 1 else torch.allclose(weights, torch.ones(()), atol=1e-5)


def check_weights(batch, ours, theirs) -> torch.Tensor:
    """min(3, π_ours/π_sampler) of every token, from the logits of one sequence at a time; the weights."""
    found = []
    rows = zip(toy.real_prompts(batch), toy.real(batch), toy.real(batch, "importance_sampling_ratio"), strict=True)
    for prompt, ids, weights in rows:
        expected = (toy.hand_logprobs(ours, prompt, ids) - toy.hand_logprobs(theirs, prompt, ids)).exp().clamp(max=3)
        found.append(torch.tensor(weights))
        torch.testing.assert_close(found[-1], expected.float(), atol=1e-4, rtol=1e-4)
    return torch.cat(found)


def test_a_version_that_nobody_samples_from_is_not_loaded(tmp_path, server):
    """Of the last of three updates the rollout is there."""
    make(tmp_path, server, "ahead", rollout_ahead=1).train()
    tried, *versions = server.loaded
    assert len(versions) == 2
    make(tmp_path, server, "in turn").train()
    assert len(server.loaded) == 3 + 1 + 3


def test_the_first_rollout_is_that_of_a_run_without(tmp_path, server):
    firsts = []
    for ahead in (0, 1):
        trainer = make(tmp_path, server, str(ahead), rollout_ahead=ahead)
        learned_from = rollouts_of(trainer)
        trainer.train()
        firsts.append(learned_from[0])
    assert toy.real(firsts[0]) == toy.real(firsts[1])
    assert torch.equal(firsts[0]["advantages"], firsts[1]["advantages"])


def test_generate_by_hand_is_not_ahead_of_anything(tmp_path, server):
    trainer = make(tmp_path, server, rollout_ahead=1)
    assert len(trainer.generate(toy.PROMPTS)) == 8 and trainer.vllm_generation.ahead.pending is None


def test_two_processes(warm, tmp_path, server):
    one, two = served_by_two(warm, tmp_path, server, "--rollout_ahead")
    assert all(torch.equal(p, two["learned"][n]) for n, p in one["learned"].items())
    _, *versions = server.loaded
    asked = asked_in_training(server)
    assert [{body["model"] for body in bodies} for bodies in asked] == [{versions[i]} for i in (0, 0, 1)]
    assert one["ratio"] > 1 + 1e-3 and not server.adapters


# ---------------------------------------------------------------- what comes in between
class AtEachStep(TrainerCallback):
    def __init__(self, do):
        self.do = do

    def on_step_end(self, *args, **kwargs):
        self.do()


def test_exams_do_not_disturb_it(tmp_path, server):
    plain = make(tmp_path, server, "plain", rollout_ahead=1)
    plain.train()
    examined = make(tmp_path, server, "examined", rollout_ahead=1)
    answers = []

    def exam():
        with vllm_trainer.speaking(examined, POLICY) as speak:
            answers.append(speak([[3]], max_new_tokens=4, eos_token_ids=[toy.EOS], temperature=0, seed=0))

    examined.add_callback(AtEachStep(exam))
    examined.train()
    assert len(answers) == examined.state.global_step > 3
    assert all(torch.equal(examined.model.get_parameter(n), x) for n, x in toy.learned(plain).items())


def test_no_version_goes_while_it_is_sampled_from(tmp_path, server, monkeypatch):
    trainer, order = make(tmp_path, server, rollout_ahead=1), []
    generation = trainer.vllm_generation
    future = SimpleNamespace(exception=lambda: order.append("waited"))
    generation.ahead.pending = Pending(0, [], future)
    generation.versions = [Adapter("old", "/old"), Adapter("new", "/new")]
    monkeypatch.setattr(generation.engine, "unload", lambda adapter: order.append(adapter.name))
    generation.sync_weights()
    assert order == ["waited", "old"]
    generation.close()  # as after a second Ctrl-C: it waits for nothing
    assert order[2:] == [server.loaded[-1], "new"]


def test_a_rollout_that_is_made_again_is_sampled_in_its_turn(tmp_path, server, models):
    """TRL makes it again where it was dropped; what was sampled ahead is still for the next one."""
    trainer = make(tmp_path, server, rollout_ahead=1, num_iterations=2, total_episodes=16)
    learned_from = rollouts_of(trainer)

    def drop():
        if trainer.state.global_step == 1:
            trainer._buffered_inputs = None

    trainer.add_callback(AtEachStep(drop))
    trainer.train()
    first, second, again = asked_in_training(server)
    prompts = [sorted(toy.real_prompts(batch)) for batch in learned_from]
    assert [sorted(body["prompt"] for body in bodies) for bodies in (first, again, second)] == prompts
    assert first[0]["model"] == second[0]["model"] != again[0]["model"]


def test_rows_in_another_order_end_the_run(tmp_path, server):
    trainer = make(tmp_path, server, rollout_ahead=1)
    trainer.data_collator = lambda rows: rows[::-1]
    with pytest.raises(UserError, match="other prompts than update 2 is given.*data_collator"):
        trainer.train()


# ---------------------------------------------------------------- stopped, and gone on
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, server):
    whole = make(tmp_path, server, "whole", rollout_ahead=1, **STEPS)
    whole.train()
    assert whole.state.global_step == 12
    there = [(tmp_path / f"whole/checkpoint-{step}/ahead.json").exists() for step in (4, 6, 9, 12)]
    assert there == [True, True, False, False]  # in the last update there is nothing to sample
    for step, further in ((4, 8), (6, 0)):  # between two rollouts, and inside one
        again, before = make(tmp_path, server, str(step), rollout_ahead=1, **STEPS), len(server.bodies)
        again.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{step}"))
        assert all(torch.equal(again.model.get_parameter(n), x) for n, x in toy.learned(whole).items()), step
        assert len(server.bodies) - before == further  # nothing that was answered is asked again


def test_a_server_that_goes_is_told_in_the_next_update_and_the_run_goes_on(tmp_path, server, monkeypatch):
    monkeypatch.setattr(VllmServer, "first_pause", 0.001)
    settings = {"rollout_ahead": 1, "vllm_server_timeout": 0.0} | STEPS
    broken = make(tmp_path, server, "broken", **settings)
    revive = dies_after(server, 12)
    with pytest.raises(UserError, match="answers with status 500: engine is dead; the run goes on.*--resume"):
        broken.train()
    assert broken.state.global_step == 4 and not (tmp_path / "broken/checkpoint-4/ahead.json").exists()
    revive()
    again = make(tmp_path, server, "broken", **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 12


# ---------------------------------------------------------------- where it cannot be
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "rollout_ahead: 1 is not valid.*set vllm_server"),
        ({"vllm_server": "http://a:1", "rollout_ahead": 2}, "rollout_ahead: 2 is not valid: 0 or 1"),
        ({"vllm_server": "http://a:1", "vllm_importance_sampling_correction": False}, "must be weighed"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        PPOStage(output_dir=str(tmp_path), **SMALL | {"rollout_ahead": 1} | settings)


def test_from_python_it_wants_rows_and_the_trainers_own_way(tmp_path, server):
    with pytest.raises(UserError, match="takes the next prompts from .* here is no train_dataset: leave it out"):
        make(tmp_path, server, "none", rollout_ahead=1, reward=None, prompts=None)
    with pytest.raises(UserError, match="rollout_func samples in its own way"):
        make(tmp_path, server, "own", rollout_ahead=1, rollout_func=toy.canned(toy.ANSWERS))
    stream = Dataset.from_dict({"prompt": toy.PROMPTS}).to_iterable_dataset()
    trainer = make(tmp_path, server, "stream")
    trainer.train_dataset, trainer.args.rollout_ahead = stream, 1
    with pytest.raises(UserError, match="here is a stream: leave it out"):
        vllm_trainer.attach(trainer)
