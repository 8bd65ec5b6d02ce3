"""Run by test_traps_runs.py on two processes: one rollout, two updates, a checkpoint, saved adapters, and
the run resumed from the checkpoint."""

import sys
from pathlib import Path

import torch
import toy

folder = Path(sys.argv[1])


def build(output_dir, **config):
    # 8 completions an update as on one process: 2 processes x 2 x 2 accumulated; 2 optimizer steps an update
    return toy.make_trainer(
        output_dir, toy.with_sft_adapter(), per_device_train_batch_size=2, total_episodes=16, **config
    )


trainer = build(folder / "run", rollout_func=toy.canned(toy.ANSWERS))
rank = trainer.accelerator.process_index
prompts = toy.PROMPTS[4 * rank : 4 * rank + 4]
batch = toy.sample(trainer, prompts)
metrics = trainer.journal.read()
trainer.journal.episodes = trainer.journal.tokens = 0
trainer.train()
trainer.save_model(str(folder / "saved"))

# sampled rollouts: what is left of the one that step 3 lies in, and the random state, must come from the checkpoint
whole = build(folder / "whole", save_strategy="steps", save_steps=3, replay=1)
whole.train()
again = build(folder / "again", replay=1)
again.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-3"))

# eight completions of one prompt, four on each process: each is compared with all the others
mine = list(toy.ANSWERS.values())[4 * rank : 4 * rank + 4]
group = build(
    folder / "group",
    rollout_func=lambda prompts, trainer: {
        "prompt_ids": trainer.processing_class(text=prompts)["input_ids"],
        "completion_ids": mine,
        "logprobs": None,
    },
    algorithm="reinforce",
    num_iterations=None,
    baseline="leave_one_out",
    num_generations=8,
)
group_advantages = toy.sample(group, ["c"] * 4)["advantages"][:, 0]

# in the second rollout one process alone gets a score whose square, and with it its loss, is infinite
rollouts = []


def too_large(prompts, completions, **columns):
    rollouts.append(len(prompts))
    scores = toy.letters(prompts, completions)
    return [3e19, *scores[1:]] if rank == 1 and len(rollouts) == 2 else scores


lost = build(folder / "lost", reward=too_large)
lost.train()

report = {
    "rows": toy.real(batch),
    "advantages": batch["advantages"],
    "returns": batch["returns"],
    "group": group_advantages,
    "metrics": metrics,
    "learned": toy.learned(trainer),
    "whole": toy.learned(whole),
    "again": toy.learned(again),
    "lost": toy.learned(lost),
    "skipped": toy.logged(lost, "skipped_steps"),
}
torch.save(report, folder / f"rank{rank}.pt")
trainer.accelerator.wait_for_everyone()
torch.distributed.destroy_process_group()
