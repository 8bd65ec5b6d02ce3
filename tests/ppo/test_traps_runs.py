"""Traps 13 and 28 to 33: two processes, checkpoints, memory, settings. The table: test_traps.py."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import toy
from torch.utils._python_dispatch import TorchDispatchMode
from toy import ANSWERS, PROMPTS
from trl import GRPOConfig

from pipeline.errors import UserError
from pipeline.models.adapters import CRITIC, POLICY
from pipeline.ppo import PPOConfig
from pipeline.ppo.config import _REFUSED
from rewards import build_rewards

ROOT = Path(__file__).resolve().parents[2]


def close(a, b, **tolerance):
    torch.testing.assert_close(a, b, **tolerance)


# ---------------------------------------------------------------- 13, 28, 29 two processes
@pytest.fixture(scope="module")
def two_processes(warm, tmp_path_factory) -> Path:
    """One run of tests/support/distributed/two_processes.py on two processes; the folder with what it wrote."""
    folder = tmp_path_factory.mktemp("distributed")
    script = ROOT / "tests/support/distributed/two_processes.py"
    for done in warm.ranks(2, [script, folder], folder):
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def reported(folder: Path, rank: int) -> dict:
    return torch.load(folder / f"rank{rank}.pt", weights_only=True)


def test_trap_13_two_processes_whiten_together(tmp_path, two_processes):
    trainer = toy.make_trainer(
        tmp_path, toy.with_sft_adapter(), rollout_func=toy.canned(ANSWERS), shuffle_dataset=False
    )
    whole = toy.sample(trainer)
    parts = [reported(two_processes, rank) for rank in (0, 1)]
    assert parts[0]["rows"] + parts[1]["rows"] == list(ANSWERS.values())
    for name in ("advantages", "returns"):
        both = [part[name] for part in parts]
        width = max(part.shape[1] for part in both)
        both = torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in both])
        close(both, whole[name], atol=1e-5, rtol=1e-5)
    # each process by itself would have whitened to mean 0
    assert abs(parts[0]["advantages"].sum().item()) > 1e-2
    # and the metrics are those of all rows
    ours = trainer.journal.read()
    assert parts[0]["metrics"] == pytest.approx({n: ours[n] for n in parts[0]["metrics"]}, rel=1e-4, abs=1e-6)


def test_leave_one_out_of_a_group_on_two_processes(two_processes):
    scores = [1, 0, 0, 2, -1, 0, 0, 1]  # letters of ANSWERS: 3 in all
    found = torch.cat([reported(two_processes, rank)["group"] for rank in (0, 1)])
    assert found.tolist() == pytest.approx([s - (3 - s) / 7 for s in scores], abs=1e-5)


def test_trap_28_ranks_hold_the_same_weights(tmp_path, two_processes):
    first, second = (reported(two_processes, rank)["learned"] for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    # and they are those of one process with the same rollouts
    trainer = toy.make_trainer(tmp_path, toy.with_sft_adapter(), rollout_func=toy.canned(ANSWERS), total_episodes=16)
    start = toy.learned(trainer)
    trainer.train()
    alone = toy.learned(trainer)
    assert max((alone[name] - start[name]).abs().max() for name in alone) > 1e-2
    for name in alone:
        # float32, Adam: gradients near 0 are sums in another order
        close(first[name], alone[name], atol=2e-4, rtol=1e-3, msg=name)


def test_a_loss_of_one_process_that_is_not_finite_skips_the_step_on_both(two_processes):
    first, second = (reported(two_processes, rank) for rank in (0, 1))
    assert first["skipped"] == second["skipped"] == [0, 2]
    assert all(torch.equal(first["lost"][name], second["lost"][name]) for name in first["lost"])
    assert [path.name for path in (two_processes / "lost/non_finite").glob("*.json")].count("step-3-rank1.json") == 1
    assert not list((two_processes / "lost/non_finite").glob("*rank0*"))


def test_trap_29_saving_after_a_two_process_run(two_processes):
    # Trainer.__init__ has run: what TRL 1.12 lacked is there
    assert hasattr(toy.make_trainer(two_processes / "one"), "is_distributed_loading_by_transformers")
    saved = two_processes / "saved"
    for folder in (saved, saved / CRITIC):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (folder / "adapter_model.safetensors").exists() and config["peft_type"] == "LORA"
    assert not list(saved.rglob("*.bin")) and not list(saved.rglob("*.pt"))


# ---------------------------------------------------------------- 30 checkpoints
@pytest.mark.parametrize("stop", [2, 3, 4, 7], ids=["between", "inside", "epoch", "second epoch"])
def test_trap_30_checkpoint_round_trip(tmp_path, stop):
    """12 steps = `stop` steps, a checkpoint, and the rest in a new trainer: the same bits.

    A rollout takes 2 steps here (num_iterations 2) and an epoch over the 8 prompts is 2 rollouts of 4: step 2 lies
    between rollouts, 3 inside one, 4 at the end of an epoch and 7 inside a rollout of the second.
    """

    def build(folder, **config):
        return toy.make_trainer(
            folder,
            toy.with_sft_adapter(),
            per_device_train_batch_size=2,
            total_episodes=24,
            kl_coef=0.2,
            kl_target=0.05,
            kl_horizon=20,
            critic_learning_rate=3e-3,
            lr_scheduler_type="linear",
            reward=[stateful()],
            **config,
        )

    whole = build(tmp_path / "whole", save_strategy="steps", save_steps=stop)
    whole.train()
    again = build(tmp_path / "again")
    start = toy.learned(again)
    checkpoint = tmp_path / "whole" / f"checkpoint-{stop}"
    assert (checkpoint / "rollout_0.safetensors").exists() == (stop % 2 == 1)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == whole.state.global_step == 12
    for name, expected in toy.learned(whole).items():
        assert torch.equal(again.model.get_parameter(name), expected), name
        assert not torch.equal(start[name], expected), name
    assert again.kl_coef == whole.kl_coef != 0.2
    assert (again.journal.episodes, again.journal.tokens) == (24, whole.journal.tokens)
    assert again.reward_funcs[0].state_dict() == whole.reward_funcs[0].state_dict()
    same = {"score", "kl", "returns", "values", "loss", "learning_rate", "grad_norm", "ratio", "step"}
    last, expected = again.state.log_history[-2], whole.state.log_history[-2]
    assert {n: last[n] for n in same & set(last)} == {n: expected[n] for n in same & set(last)}


def test_two_processes_resume_inside_a_rollout(two_processes):
    for rank in (0, 1):
        assert (two_processes / "whole" / "checkpoint-3" / f"rollout_{rank}.safetensors").exists()
        report = reported(two_processes, rank)
        assert all(torch.equal(report["whole"][name], report["again"][name]) for name in report["whole"])


def stateful():
    """A reward with running statistics."""
    [(reward, _)] = build_rewards([{"name": "toy:letters", "normalize": "running"}])
    return reward


# ---------------------------------------------------------------- 31-33
class Largest(TorchDispatchMode):
    """The most elements that any tensor with the vocabulary in its shape had."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary, self.elements = vocabulary, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            # an expanded view (stride 0) takes no memory
            if isinstance(tensor, torch.Tensor) and self.vocabulary in tensor.shape and 0 not in tensor.stride():
                self.elements = max(self.elements, tensor.numel())
        return found


def test_trap_31_no_tensor_of_batch_times_tokens_times_vocabulary(tmp_path):
    vocabulary, prompts = 1009, PROMPTS * 4  # 32 completions
    sizes = []
    for length in (8, 32):
        trainer = toy.make_trainer(
            tmp_path,
            toy.build_model(vocab_size=vocabulary),
            per_device_train_batch_size=2,
            max_completion_length=length,
        )
        with Largest(vocabulary) as largest:
            batch = toy.sample(trainer, prompts)
        assert batch["completion_ids"].shape == (32, length)
        sizes.append(largest.elements)
    # one step of generation (32 rows), or one micro-batch of 2 rows with prompt; never 32 x 32
    assert sizes[1] <= vocabulary * 2 * (32 + 4) < vocabulary * 32 * 32 / 10


CHANGES = {
    "advantage": None,  # test_advantage.py
    "algorithm": "reinforce",
    "baseline": None,  # test_algorithms.py
    "vllm_importance_sampling_mode": None,  # test_vllm_training.py
    "num_generations": 2,
    "num_generations_eval": None,  # evaluation only: test_ppo_trainer.py
    "num_iterations": 1,
    "learning_rate": 3e-3,
    "scale_rewards": None,  # refused
    "loss_type": None,  # refused
    "disable_dropout": None,  # refused
    "gradient_checkpointing": None,  # changes memory, not numbers: test_adapters.py
    "logging_steps": None,  # test_ppo_trainer.py
    "ddp_find_unused_parameters": None,  # refused
    "total_episodes": 12,
    "num_mini_batches": 2,
    "replay": 1,
    "kl_coef": 0.5,
    "kl_estimator": "k3",
    "kl_target": 1.0,
    "kl_horizon": 10.0,
    "gamma": 0.8,
    "lam": 0.5,
    "vf_coef": 0.5,
    "cliprange_value": 1e-4,
    "whiten_advantages": False,
    "whiten_rewards": True,
    "missing_eos_penalty": 1.0,
    "multi_objective_aggregation": "normalize_then_sum",
    "critic_path": None,  # test_critic.py
    "critic_layers": 1,
    "critic_warmup": 1,
    "critic_learning_rate": 1e-3,
}
# GRPO's own settings that a toy run can show
INHERITED = {
    "temperature": 0.7,
    "epsilon": 1e-3,
    "epsilon_high": 1e-3,
    "entropy_coef": 0.3,
    "max_completion_length": 4,
}
INHERITED |= {"reward_weights": [3.0], "shuffle_dataset": False, "max_grad_norm": 1e-3, "seed": 5}


def test_trap_32_every_setting_changes_behavior(tmp_path):
    defaults = PPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    assert defaults.whiten_rewards is False  # found harmful, so off unless asked for
    own = set(PPOConfig.__annotations__)
    assert own == set(CHANGES)

    def final(**changes):
        # KL with a meaning from the start, two rollouts of two steps
        settings = {"total_episodes": 8, "kl_coef": 0.1, "gradient_accumulation_steps": 1} | changes
        if "kl_horizon" in changes:
            settings["kl_target"] = 0.5
        if "algorithm" in changes:
            settings["num_iterations"] = None
        trainer = toy.make_trainer(tmp_path, toy.with_sft_adapter(), prompts=PROMPTS * 2, **settings)
        toy.randomize(trainer.model, POLICY, 9, scale=0.3)
        trainer.train()
        return torch.cat([p.flatten() for n, p in toy.learned(trainer).items() if POLICY in n.split(".")])

    baseline, with_target = final(), final(kl_target=0.5)
    assert torch.equal(baseline, final())
    for name, value in {**CHANGES, **INHERITED}.items():
        if value is not None:
            found = final(**{name: value})
            assert not torch.equal(found, with_target if name == "kl_horizon" else baseline), name


def test_every_setting_of_grpo_is_used_or_refused():
    """A GRPO setting that PPO passes over in silence is a trap; a new one in TRL must be looked at."""
    used = (
        set(INHERITED) | set(CHANGES) | {"steps_per_generation", "generation_batch_size", "num_completions_to_print"}
    )
    used |= {"model_init_kwargs", "trust_remote_code", "router_aux_loss_coef", "cast_lm_head_to_fp32"}
    used |= {"ds3_gather_for_generation", "pad_to_multiple_of", "chat_template_kwargs", "cache_implementation"}
    used |= {"max_tool_calling_iterations", "log_completions", "log_multimodal", "log_unique_prompts"}
    used |= {"log_completions_hub_repo", "use_transformers_continuous_batching", "use_transformers_paged"}
    used |= {"transformers_continuous_batching_config", "generation_kwargs"}
    fields = {f.name for f in dataclasses.fields(GRPOConfig)} - {
        f.name for f in dataclasses.fields(GRPOConfig.__base__)
    }
    fields = {name for name in fields if not name.startswith(("vllm_", "use_vllm"))}
    assert fields - used - set(_REFUSED) == set()


@pytest.mark.parametrize(
    "setting",
    [{"scale_rewards": "group"}, {"scale_rewards": "batch"}, {"loss_type": "grpo"}]
    + [{"multi_objective_aggregation": "sum"}, {"importance_sampling_level": "sequence"}],
)
def test_trap_33_group_estimators_are_refused(tmp_path, setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        PPOConfig(str(tmp_path), use_cpu=True, bf16=False, **setting)


def test_one_completion_per_prompt_has_advantages(tmp_path):
    trainer = toy.make_trainer(tmp_path, rollout_func=toy.canned(ANSWERS))
    assert trainer.num_generations == 1
    assert toy.sample(trainer)["advantages"].abs().max() > 0.5
