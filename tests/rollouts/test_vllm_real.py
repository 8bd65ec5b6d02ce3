"""Rollouts by a real vLLM server on loopback, on the CPU and in float32. `make test-vllm`"""

import json
import math
import statistics
from pathlib import Path

import notes
import pytest
import smollm2
import torch
import toy
from test_vllm_server import ASKED, ROWS, engine, ours, policy
from test_vllm_training import make, served_by_two
from vllm_exchanges import RECORDED, ask_all, shape
from vllm_real import PATIENCE, serving
from vllm_stand_in import vllm_base

from pipeline.config import DataArguments, ModelArguments
from pipeline.errors import UserError
from pipeline.exam.exam import RewardArguments
from pipeline.ppo.config import PPOStage
from pipeline.rollouts import vllm_trainer
from pipeline.rollouts.vllm_server import VllmServer
from pipeline.runs.folder import read_heldout, read_metrics
from pipeline.stages import ppo
from rewards import Judge

pytestmark = pytest.mark.slow
NATS = 1e-4  # between vLLM's kernels and transformers', in float32
ALONE = {"vllm_at_once": 1}  # what a server computes depends on what it computes at the same time, in the last bits
T_95 = 4.303  # Student's t, two-sided, 2 degrees of freedom


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A server on the toy that the stand-in has, too."""
    folder = tmp_path_factory.mktemp("vllm")
    vllm_base().save_pretrained(folder / "base")
    toy.tokenizer().save_pretrained(folder / "base")
    with serving(folder / "base", folder / "log") as server:
        yield server


# ---------------------------------------------------------------- one server
def test_the_real_one_speaks_as_it_was_recorded(tmp_path, real):
    policy().save_pretrained(tmp_path / "adapter")
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    found = ask_all(real.url, str(tmp_path / "adapter"))
    for name, each in recorded.items():
        assert (found[name]["status"], shape(found[name]["answer"])) == (each["status"], shape(each["answer"])), name


def test_two_versions_and_their_log_probabilities(tmp_path, real):
    asking, differences = engine(tmp_path, real), []
    for seed in (1, 2):
        model = toy.with_sft_adapter(vllm_base(), seed=seed)
        adapter = asking.load(model, "default")
        for temperature in (1.0, 0.7):
            completions = asking.sample(ROWS * 4, adapter, list(range(16)), ASKED | {"temperature": temperature})
            for row, (ids, logprobs) in zip(ROWS * 4, completions, strict=True):
                pairs = zip(logprobs, ours(model, row, ids, temperature), strict=True)
                differences += [abs(theirs - own) for theirs, own in pairs]
        assert len({tuple(completion.ids) for completion in completions[::4]}) > 1  # one prompt, other seeds
    assert len(differences) > 200 and max(differences) < NATS
    assert len(asking.servers[0].names()) == 3


@pytest.mark.parametrize(
    ("settings", "words"), [({"r": 17}, "rank 16"), ({"use_dora": True}, "DoRA"), ({"lora_bias": True}, "bias")]
)
def test_the_server_refuses_what_we_refuse(tmp_path, real, settings, words):
    """Past our own check, which says it before anything is sent."""
    asking = engine(tmp_path, real)
    asking._check = lambda model, name: None
    with pytest.raises(ValueError, match=f"does not take the adapter|answers with status 500.*{words}"):
        asking.load(policy(**settings), "default")


def test_the_server_does_not_see_the_folder(tmp_path, real):
    with pytest.raises(ValueError, match="does not see /there/"):
        engine(tmp_path, real, vllm_adapters=f"{tmp_path}/here:/there").load(policy(), "default")


def test_two_servers_to_which_the_adapter_is_copied(tmp_path, real):
    here, there, model = tmp_path / "here", tmp_path / "there", policy()
    where = {"vllm_adapters": f"{here}:{there}", "vllm_copy": f"cp -r {here}/. {there}"}
    with serving(real.base, tmp_path / "log") as second:
        asking = engine(tmp_path, real, second, **where)
        adapter = asking.load(model, "default")
        assert [adapter.name in server.names() for server in asking.servers] == [True, True]
        assert adapter.folder == f"{there}/{adapter.name}"
        completions = asking.sample(ROWS * 4, adapter, list(range(16)), ASKED)
        asking.unload(adapter)
    assert (tmp_path / "log").read_text().count('POST /v1/completions HTTP/1.1" 200') == 8
    for row, (ids, logprobs) in zip(ROWS * 4, completions, strict=True):
        assert logprobs == pytest.approx(ours(model, row, ids), abs=NATS)


def test_two_processes(warm, tmp_path, real):
    before = VllmServer(real.url).names()
    one, two = served_by_two(warm, tmp_path, real)
    assert all(torch.equal(p, two["learned"][n]) for n, p in one["learned"].items())
    assert one["ratio"] < 1 + 1e-3 and VllmServer(real.url).names() == before


def test_a_rollout_ahead_is_weighed_and_kept_through_a_stop(tmp_path, real):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "rollout_ahead": 1, **ALONE}
    before = VllmServer(real.url).names()
    whole = make(tmp_path, real, "whole", **settings)
    whole.train()
    first, *further = toy.logged(whole, "sampler/ratio_max")
    assert first < 1 + 1e-3 < min(further)  # those were sampled by the policy of one update ago
    again = make(tmp_path, real, "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert all(torch.equal(again.model.get_parameter(n), x) for n, x in toy.learned(whole).items())
    for trainer in (whole, again):
        vllm_trainer.close(trainer)
    assert VllmServer(real.url).names() == before


def test_a_stopped_run_goes_on_to_the_same_bits_with_one_request_at_a_time(tmp_path, real):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "num_mini_batches": 2}
    settings |= {"per_device_train_batch_size": 4, **ALONE}
    whole = make(tmp_path, real, "whole", **settings)
    whole.train()
    for step in (4, 6):  # between two rollouts, and inside one
        again = make(tmp_path, real, str(step), **settings)
        again.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{step}"))
        assert all(torch.equal(again.model.get_parameter(n), x) for n, x in toy.learned(whole).items()), step


def test_killed_in_the_middle_of_a_rollout_and_started_again(tmp_path, real, monkeypatch):
    """It comes back without adapters: it gets the version again, and is asked for what is missing, nothing else."""
    asking, model, read = engine(tmp_path, real, vllm_server_timeout=PATIENCE, **ALONE), policy(), VllmServer._read
    adapter = asking.load(model, "default")
    seeds = list(range(16))
    expected = asking.sample(ROWS * 4, adapter, seeds, ASKED)
    answered = []

    def dies(self, content, body):
        answered.append(body["seed"])
        if len(answered) == 5:
            real.kill()
            real.start()
        return read(self, content, body)

    monkeypatch.setattr(VllmServer, "_read", dies)
    found = asking.sample(ROWS * 4, adapter, seeds, ASKED)
    assert sorted(answered) == seeds and asking.servers[0].names() == ["base", adapter.name]
    for row, (ids, logprobs) in zip(ROWS * 4, found, strict=True):
        assert logprobs == pytest.approx(ours(model, row, ids), abs=NATS)
    assert found == expected


# ---------------------------------------------------------------- field notes
UPDATES = 20


def train_notes(place: Path, output: Path, seed: int, **where) -> list[dict]:
    """20 updates of 32 completions, and an exam before, in the middle and after; the logs."""
    data = place / "data"
    ppo.run(
        ModelArguments(model_name_or_path=str(place / "base"), adapter_path=str(place / "sft"), dtype="float32"),
        DataArguments(
            dataset=str(data / "prompts_train.jsonl"), eval_dataset=str(data / "prompts_heldout.jsonl")
        ),
        RewardArguments(
            rewards=[{"name": "keyword", "column": "facts", "instant": True}, {"name": "bleu", "weight": 0.5}],
            referee="field_notes", eval_samples=20, eval_every=10, show_samples=0,
        ),
        PPOStage(
            output_dir=str(output), total_episodes=32 * UPDATES, per_device_train_batch_size=16, num_mini_batches=2,
            gradient_accumulation_steps=1, num_iterations=2, max_completion_length=48, learning_rate=2e-3,
            lr_scheduler_type="constant", kl_coef=0.03, missing_eos_penalty=1.0, seed=seed, use_cpu=True, bf16=False,
            disable_tqdm=True, **where,
        ),
    )  # fmt: skip
    return [row for row in read_metrics(output) if "loss" in row]


def late(rows: list[dict]) -> float:
    """Mean score of the second half of a run."""
    return statistics.mean(row["score"] for row in rows[UPDATES // 2 :])


def test_ppo_on_field_notes_learns_as_with_transformers(tmp_path, monkeypatch):
    """The run by the server lies where a fourth run by transformers would, by the prediction interval of three. The
    server wants a key."""
    place = notes.folder()
    monkeypatch.setenv("VLLM_API_KEY", "s3cret")  # the server inherits it
    with serving(place / "base", tmp_path / "log") as server:
        with monkeypatch.context() as without:
            without.delenv("VLLM_API_KEY")
            with pytest.raises(UserError, match="asks for a key"):
                VllmServer(server.url).facts()
        rows = train_notes(place, tmp_path / "vllm", 0, vllm_server=server.url)
        assert VllmServer(server.url).names() == ["base"]
    plain = [train_notes(place, tmp_path / f"plain{seed}", seed) for seed in (0, 1, 2)]
    assert len(rows) == UPDATES
    assert max(row["sampler/ratio_max"] for row in rows) < 1 + 1e-3  # the weight is 1 in float32
    assert min(row["sampling/importance_sampling_ratio/min"] for row in rows) > 1 - 1e-3
    assert max(row["sampler/kl"] for row in rows) < 1e-6
    scores = [late(run) for run in plain]
    spread = T_95 * statistics.stdev(scores) * math.sqrt(1 + 1 / 3)
    print(f"late scores: vLLM {late(rows):.3f}, transformers {scores}, within {spread:.3f}")
    assert abs(late(rows) - statistics.mean(scores)) <= spread
    first, last = (statistics.mean(row["score"] for row in part) for part in (rows[:3], rows[-3:]))
    assert last > first
    exams = read_heldout(tmp_path / "vllm")
    assert [exam["update"] for exam in exams] == [0, 10, 20] and exams[-1]["kl"] > 0


# ---------------------------------------------------------------- a real model
def test_three_updates_on_smollm2_and_a_verdict_of_the_same_server(tmp_path):
    base = smollm2.folder()
    rows = [
        {"prompt": [{"role": "user", "content": f"Say something about {x}."}]} for x in "tea rain cats bread".split()
    ]
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    with serving(base, tmp_path / "log", "--max-model-len", "512") as server:
        ppo.run(
            ModelArguments(model_name_or_path=str(base), dtype="float32", lora_r=16),
            DataArguments(dataset=str(data), eval_fraction=0.25),
            RewardArguments(rewards=[{"name": "repetition", "n": 3}], eval_samples=2, show_samples=0),
            PPOStage(
                output_dir=str(tmp_path / "run"), total_episodes=24, per_device_train_batch_size=8, num_iterations=1,
                gradient_accumulation_steps=1, critic_layers=2, max_completion_length=24, learning_rate=2e-4,
                use_cpu=True, bf16=False, disable_tqdm=True, vllm_server=server.url,
            ),
        )  # fmt: skip
        judge = Judge(f"{server.url}/v1", "base", reasons=False, answer_tokens=24, cache=False, timeout=PATIENCE)
        [verdict] = judge(["Say something about tea."], ["Tea is a warm drink that many people like."])
    assert 0 <= verdict <= 1
    logs = [row for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert len(logs) == 3 and max(row["ratio/first"] for row in logs) < 1e-3
    assert max(row["sampler/ratio_max"] for row in logs) < 1 + 1e-3
    assert max(row["sampling/sampling_logp_difference/max"] for row in logs) < 10 * NATS
