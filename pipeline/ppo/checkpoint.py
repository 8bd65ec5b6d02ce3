"""What a checkpoint of PPO holds besides Trainer's files: policy, critic, KL coefficient, counters, rewards' running
statistics, the rollouts that are kept for replay, and, when it was taken in the middle of a rollout, its rest.

A run that is stopped after N optimizer steps and resumed from there does the same as one that was never stopped.
"""

import json
from pathlib import Path

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from pipeline.adapters import CRITIC, POLICY
from pipeline.errors import UserError
from rewards.mixture import load_state, state_of

STATE = "ppo_state.json"
_POLICY_WEIGHTS = "adapter_model.safetensors"


def save(trainer, folder: Path) -> None:
    """Writes `ppo_state.json` (main process) and, in the middle of a rollout, `rollout_<process>.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    step = trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations)
    if step:
        tensors = {
            f"{index}.{name}": value.contiguous()
            for index, micro_batch in enumerate(trainer._buffered_inputs)
            for name, value in micro_batch.items()
            if isinstance(value, torch.Tensor)
        }
        # clones: micro-batches share what is one number for all of them, and safetensors refuses shared memory
        save_file({name: value.cpu().clone() for name, value in tensors.items()}, _rollout_file(trainer, folder))
    if trainer.args.replay:
        # never empty: there is a number for the file to hold before the first rollout as well
        tensors = {"kept": torch.tensor(len(trainer.replay.kept))} | trainer.replay.state()
        save_file({n: x.cpu().contiguous().clone() for n, x in tensors.items()}, _replay_file(trainer, folder))
    if trainer.args.should_save:
        state = {
            "micro_step": step,
            "kl_coef": trainer.kl_coef,
            "baseline": trainer.baseline and trainer.baseline.state,
            "episodes": trainer.journal.episodes,
            "tokens": trainer.journal.tokens,
            "rewards": state_of((reward, 1.0) for reward in trainer.reward_funcs),
        }
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")


def load_adapters(trainer, folder: Path) -> None:
    """Puts the policy's and the critic's weights from `folder` into the model; nothing else of it changes.

    Raises:
        UserError: when `folder` is not a checkpoint of PPO.
    """
    weights, critic = folder / _POLICY_WEIGHTS, folder / CRITIC
    if not weights.exists() or (trainer.critic and not critic.exists()):
        raise UserError(
            f"{folder} is not a checkpoint of PPO: {_POLICY_WEIGHTS} or {CRITIC}/ is missing. "
            "Give a folder called checkpoint-<step> of a PPO run."
        )
    set_peft_model_state_dict(trainer.accelerator.unwrap_model(trainer.model), load_file(weights), POLICY)
    if trainer.critic is not None:
        trainer.critic.load_weights(critic)


def load(trainer, folder: Path) -> None:
    """Puts everything else back: where in the rollout and in the order of the prompts the run was, and its counters.

    Raises:
        UserError: when `folder` is not a checkpoint of PPO.
    """
    if not (folder / STATE).exists():
        raise UserError(f"{folder} is not a complete checkpoint of PPO: {STATE} is missing. Give an earlier one.")
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    trainer.kl_coef = state["kl_coef"]
    if trainer.baseline is not None:
        trainer.baseline.state = state["baseline"]
    trainer.journal.episodes, trainer.journal.tokens = state["episodes"], state["tokens"]
    load_state(((reward, 1.0) for reward in trainer.reward_funcs), state["rewards"])
    trainer._step, trainer._buffered_inputs = state["micro_step"], None
    if state["micro_step"] and _rollout_file(trainer, folder).exists():
        trainer._buffered_inputs = _load_rollout(trainer, folder)
    if trainer.args.replay and _replay_file(trainer, folder).exists():
        tensors = load_file(_replay_file(trainer, folder))
        trainer.replay.load_state({n: x.to(trainer.args.device) for n, x in tensors.items() if n != "kept"})
    _pass_over_epochs(trainer)


def _load_rollout(trainer, folder: Path) -> list[dict]:
    micro_batches: list[dict] = [{} for _ in range(trainer.args.steps_per_generation)]
    for name, value in load_file(_rollout_file(trainer, folder)).items():
        index, key = name.split(".", 1)
        micro_batches[int(index)][key] = value.to(trainer.args.device)
    return micro_batches


def _rollout_file(trainer, folder: Path) -> Path:
    return folder / f"rollout_{trainer.args.process_index}.safetensors"


def _replay_file(trainer, folder: Path) -> Path:
    return folder / f"replay_{trainer.args.process_index}.safetensors"


def _pass_over_epochs(trainer) -> None:
    """TRL's sampler shuffles anew in every epoch with one generator: draw the orders that are behind.

    Without it every resumed run would see the prompts in the order of the first epoch.
    """
    order = getattr(trainer, "prompt_order", None)
    if order is None or not order.shuffle:
        return
    batches = len(order) // trainer.args.generation_batch_size
    steps = max(batches // trainer.args.gradient_accumulation_steps, 1)
    for _ in range(trainer.state.global_step // steps):
        torch.randperm(order.num_samples, generator=order.generator)
