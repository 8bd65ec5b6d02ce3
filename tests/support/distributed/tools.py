"""Run by test_tool_loop.py on two processes that share a base: the prompts of the first make it call a tool."""

import os
import sys
from pathlib import Path

import torch
import toy

folder = Path(sys.argv[1])
sys.path.append(str(Path(__file__).resolve().parents[2] / "rollouts"))
import test_tool_loop as loop  # noqa: E402  # it lies beside no test that imports it

questions = ["which bird?", "a bird", "bird", "no bird?", "hello", "why?", "so?", "well"]
trainer, _ = loop.build(folder / "run", loop.make_tokenizer(), [], questions, total_episodes=8, shuffle_dataset=False)
trainer.train()
found = {"looked_up": loop.looked_up, "learned": toy.learned(trainer)}
torch.save(found, folder / f"rank{os.environ['RANK']}.pt")
trainer.accelerator.wait_for_everyone()
torch.distributed.destroy_process_group()
