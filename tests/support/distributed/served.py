"""Run by test_vllm_training.py and test_ahead.py on two processes: three updates of PPO, sampled by the vLLM server at
an address, with --rollout_ahead one update early. Each process writes the adapter that it ended with."""

import os
import sys
from pathlib import Path

import torch
import toy
from vllm_stand_in import vllm_base

from pipeline.ppo.config import PPOStage
from pipeline.rollouts import vllm_trainer

folder, url, *flags = sys.argv[1:]
folder = Path(folder)
trainer = toy.make_trainer(
    folder / "run",
    toy.with_sft_adapter(vllm_base()),
    prompts=toy.PROMPTS * 2,
    total_episodes=24,
    gradient_accumulation_steps=1,
    settings_=PPOStage,
    vllm_server=url,
    rollout_ahead=int("--rollout_ahead" in flags),
)
trainer.train()
vllm_trainer.close(trainer)
found = {"learned": toy.learned(trainer), "ratio": max(toy.logged(trainer, "sampler/ratio_max"))}
torch.save(found, folder / f"rank{os.environ['RANK']}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
