"""Run by test_architectures.py on two processes: a model of images and text, trained on text alone, with adapters also
in its tower for images. Each process writes the adapters before and after SFT and two updates of PPO."""

import os
import sys
from pathlib import Path

import torch
from walk_architecture import Walk

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
# AdamW would make much of a gradient that is zero but for rounding
steps = Walk("llava", folder / f"walk{rank}", per_device_train_batch_size=4, optim="sgd", learning_rate=0.5)
found = {}
for name in ("sft", "ppo"):
    trainer = steps.sft_trainer() if name == "sft" else steps.ppo_trainer(folder / f"ppo{rank}", layers=1)
    learned = {key: p for key, p in trainer.model.named_parameters() if "lora_" in key}
    start = {key: p.detach().clone() for key, p in learned.items()}
    trainer.train()
    found[name] = {"start": start, "end": {key: p.detach().clone() for key, p in learned.items()}}
torch.save(found, folder / f"rank{rank}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
