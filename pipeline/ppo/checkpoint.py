"""What a checkpoint of PPO holds besides Trainer's files and those of pipeline/runs/resumable_trainer.py: policy,
critic, KL coefficient, baseline, rewards' running statistics, the rollouts that are kept for replay, and the one that
a vLLM server has sampled ahead.

A run that is stopped after N optimizer steps and resumed from there does the same as one that was never stopped.
"""

import json
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.models.adapters import CRITIC, POLICY
from pipeline.ppo.baseline import LeaveOneOut, MovingAverage
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.critic import Critic
from pipeline.ppo.replay import Replay
from pipeline.rollouts import vllm_trainer
from pipeline.safety.reading import read_json
from pipeline.safety.weights import ADAPTER_WEIGHTS
from rewards import RewardFunction, WeightedReward
from rewards.mixture import load_state, state_of

STATE = "ppo_state.json"
_SHAPE = {"kl_coef": float, "baseline": (float, None), "rewards": {str: dict}, "critic_resumable?": bool}


class Trained(Protocol):
    """What of a PPOTrainer is kept."""

    args: PPOConfig
    model: PeftModel
    accelerator: Accelerator
    critic: Critic | None
    kl_coef: float
    baseline: LeaveOneOut | MovingAverage | None
    replay: Replay
    reward_funcs: list[RewardFunction]


def save(trainer: Trained, folder: Path) -> None:
    """Writes `ppo_state.json` (main process) and, with replay, `replay_<process>.safetensors`."""
    if trainer.args.replay:
        # never empty: there is a number for the file to hold before the first rollout as well
        tensors = {"kept": torch.tensor(len(trainer.replay.kept))} | trainer.replay.state()
        save_file({n: x.cpu().contiguous().clone() for n, x in tensors.items()}, _replay_file(trainer, folder))
    vllm_trainer.save_ahead(trainer, folder)
    if trainer.args.should_save:
        state = {
            "kl_coef": trainer.kl_coef,
            "baseline": trainer.baseline and trainer.baseline.state,
            "rewards": state_of(WeightedReward(reward, 1.0) for reward in trainer.reward_funcs),
            "critic_resumable": trainer.critic is not None and trainer.critic.resumable,
        }
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")


def load_adapters(trainer: Trained, folder: Path) -> None:
    """Puts the policy's and the critic's weights from `folder` into the model; nothing else of it changes.

    Raises:
        UserError: when `folder` is not a checkpoint of PPO.
    """
    weights, critic = folder / ADAPTER_WEIGHTS, folder / CRITIC
    if not weights.exists() or (trainer.critic and not critic.exists()):
        raise UserError(
            f"{folder} is not a checkpoint of PPO: {ADAPTER_WEIGHTS} or {CRITIC}/ is missing. "
            "Give a folder called checkpoint-<step> of a PPO run."
        )
    set_peft_model_state_dict(trainer.accelerator.unwrap_model(trainer.model), load_file(weights), POLICY)
    if trainer.critic is not None:
        trainer.critic.load_weights(critic)


def load(trainer: Trained, folder: Path) -> None:
    """Puts everything else back.

    Raises:
        UserError: when `folder` is not a checkpoint of PPO.
    """
    if not (folder / STATE).exists():
        raise UserError(f"{folder} is not a complete checkpoint of PPO: {STATE} is missing. Give an earlier one.")
    state = read_json(folder / STATE, _SHAPE)
    trainer.kl_coef = state["kl_coef"]
    if trainer.baseline is not None:
        trainer.baseline.state = state["baseline"]
    if trainer.critic is not None:
        trainer.critic.resumable &= state.get("critic_resumable", True)  # what long rows had shown by then
    load_state((WeightedReward(reward, 1.0) for reward in trainer.reward_funcs), state["rewards"])
    vllm_trainer.load_ahead(trainer, folder)
    if trainer.args.replay and _replay_file(trainer, folder).exists():
        tensors = load_file(_replay_file(trainer, folder))
        trainer.replay.load_state({n: x.to(trainer.args.device) for n, x in tensors.items() if n != "kept"})


def _replay_file(trainer: Trained, folder: Path) -> Path:
    return folder / f"replay_{trainer.args.process_index}.safetensors"
