"""Runs on a base that processes share (test_shared_base.py), each three updates of PPO or its kin on the toy."""

from pathlib import Path

import torch
import toy
from equal_runs import make, run
from saved import reward_folder

from rewards import build_rewards

# The critic and the reward model stand on the policy's base, as adapters of their own. Float32, SGD without clipping.
COMMON = {"total_episodes": 24, "num_iterations": 2}
NO_CRITIC = {"algorithm": "reinforce", "num_iterations": None, "vf_coef": 0.1}
# one update, whose passes can be counted by hand
COUNTED = {"prompts": toy.PROMPTS, "rollout_func": toy.canned(toy.ANSWERS), "total_episodes": 8}
KINDS = {
    "ppo": {},
    "layers": {"critic_layers": 1},
    "checkpointing": {"gradient_checkpointing": True},
    "a2c": {"algorithm": "a2c", "num_iterations": None},
    "reinforce": NO_CRITIC,
    "counted": COUNTED,
}


def prepare(folder: Path) -> None:
    """Base and reward model."""
    toy.build_model(num_hidden_layers=3).save_pretrained(folder / "base")
    reward_folder(folder / "base", folder / "reward")
    toy.tokenizer().save_pretrained(folder / "reward")


def seeded_base(folder: Path):
    torch.manual_seed(0)  # what is drawn for the adapters that come next
    return toy.LlamaForCausalLM.from_pretrained(folder / "base")


def trainer_of(folder: Path, kind: str, processes: int, **changes):
    """The trainer; 8 completions an update over all processes."""
    asked = {"name": "learned", "path": str(folder / "reward"), "normalize": "running", "instant": kind != "counted"}
    rewards = [build_rewards([asked])[0][0], toy.letters]
    critic = {} if kind == "reinforce" else {"critic_path": str(folder / "reward")}
    return make(
        folder / f"{kind}{processes}",
        build=lambda: seeded_base(folder),
        double=False,
        reward=rewards,
        per_device_train_batch_size=8 // processes,
        **COMMON | critic | KINDS[kind] | changes,
    )


def train(folder: Path, kind: str, processes: int = 1, **changes) -> dict:
    """What it trains, before and after."""
    return run(trainer_of(folder, kind, processes, **changes))
