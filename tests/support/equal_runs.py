"""Runs that must end with the same adapters (test_equivalences.py), each two updates of two epochs on the toy."""

import zlib

import torch
import toy
from toy import EOS

from pipeline.models.adapters import CRITIC, POLICY

PROMPTS = [*toy.PROMPTS, "d", "ec", "cde", "edcc", "a", "ac", "de", "dceb"]  # two rollouts


KINDS = {
    "llama": {"build": toy.build_model},
    "gpt2": {"build": toy.build_gpt2},  # absolute positions
    "adamw": {"build": toy.build_gpt2, "optim": "adamw_torch", "learning_rate": 1e-2, "max_grad_norm": 1.0},
}


# what two processes run: kind, per_device_train_batch_size, gradient_accumulation_steps
TWICE = [("llama", 4, 1), ("llama", 2, 2), ("gpt2", 2, 2), ("adamw", 4, 1)]


def one_by_one(prompts, trainer):
    """Samples from the policy, each prompt by itself: the same completions in whatever company the prompt comes."""
    prompt_ids = trainer.processing_class(text=prompts)["input_ids"]
    completion_ids = []
    for prompt, ids in zip(prompts, prompt_ids, strict=True):
        seed = zlib.crc32(f"{prompt} {trainer.state.global_step}".encode())
        generator, sampled = torch.Generator().manual_seed(seed), []
        while len(sampled) < trainer.args.max_completion_length and EOS not in sampled:
            with torch.no_grad():
                logits = trainer.model(input_ids=torch.tensor([[*ids, *sampled]])).logits[0, -1]
            sampled.append(torch.multinomial(logits.softmax(-1), 1, generator=generator).item())
        completion_ids.append(sampled)
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def make(folder, build=toy.build_model, double=True, adapter=None, **changes):
    """A trainer whose policy differs from the reference and whose critic has an opinion, so that every term counts."""
    settings = {
        "prompts": PROMPTS,
        "rollout_func": one_by_one,
        "total_episodes": 16,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.3,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 0.0,
        "kl_coef": 0.2,
        "missing_eos_penalty": 0.5,
        "entropy_coef": 0.01,
        "vf_coef": 0.5,
    }
    model = build()
    trainer = toy.make_trainer(
        folder, toy.with_sft_adapter(model.double() if double else model, **adapter or {}), **settings | changes
    )
    toy.randomize(trainer.model, POLICY, 5)
    toy.randomize(trainer.model, CRITIC, 3)
    if trainer.critic:
        torch.nn.init.normal_(trainer.critic.head.weight, generator=torch.Generator().manual_seed(4))
    if double and trainer.critic:
        trainer.critic.head.double().register_forward_pre_hook(lambda head, states: (states[0].double(),))
    return trainer


def run(trainer) -> dict[str, dict[str, torch.Tensor]]:
    """What PPO trains, before and after."""
    start = toy.learned(trainer)
    trainer.train()
    return {"start": start, "end": toy.learned(trainer)}


def train(folder, kind="llama", **changes):
    return run(make(folder, **KINDS[kind] | changes))


def seeded(folder, seed=42, junk=0):
    """The toy run of the other tests: float32, new adapters, sampled by TRL. `junk`: numbers drawn beforehand."""
    model = toy.build_model()
    torch.rand(junk)
    return run(toy.make_trainer(folder, model, prompts=PROMPTS, total_episodes=16, seed=seed))


def cut(size: int, accumulation: int) -> dict:
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
