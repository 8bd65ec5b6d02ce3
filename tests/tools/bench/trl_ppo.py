"""One run of TRL 1.12's PPO, for its own environment: `python -m tests.tools.bench.trl_ppo --size M --dtype bfloat16`.

TRL gets its best form: the reference is its policy without the adapter (no fourth model), weights are loaded in the
asked precision, and natural completions may stop at the end token. TRL's code is not changed; names in its module are
wrapped with clocks.
"""

import gc
import tempfile
from types import SimpleNamespace

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from tests.tools.bench import measure, models


class Updates(TrainerCallback):
    """Cuts the run into updates, and their seconds into phases."""

    def __init__(self, clock: measure.Clock, garbage: measure.Clock):
        self.clock, self.garbage, self.rows = clock, garbage, []
        self.training_since, self.tokens = None, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._since = self.clock.now()

    def on_step_end(self, args, state, control, **kwargs):
        now, clocks = self.clock.now(), self.clock.read()
        parts = clocks | {"training": now - self.training_since, "gc": self.garbage.read().get("gc", 0.0)}
        seconds = now - self._since
        parts["other"] = seconds - sum(parts.values())
        self.rows.append({"seconds": seconds, "tokens": self.tokens, "split": parts})
        self._since, self.training_since, self.tokens = now, None, 0


def watch(updates: Updates) -> None:
    """Puts clocks around the names that TRL's training loop uses."""
    clock, generate, forward = updates.clock, ppo_trainer.batch_generation, ppo_trainer.forward

    def generation(model, queries, *args):
        out = clock.timed("generation", generate)(model, queries, *args)
        ends = out[0][:, queries.shape[1] :] == models.EOS
        # up to the first end token, itself included
        updates.tokens += int((ends.cumsum(dim=1) - ends.long() == 0).sum())
        return out

    def forwards(*args):
        if not torch.is_grad_enabled():
            return clock.timed("forward", forward)(*args)
        updates.training_since = updates.training_since or clock.now()
        return forward(*args)

    def without_gradient(*args):
        return None if torch.is_grad_enabled() else "forward"

    ppo_trainer.batch_generation, ppo_trainer.forward = generation, forwards
    ppo_trainer.get_reward = clock.timed("forward", ppo_trainer.get_reward)
    ppo_trainer.selective_log_softmax = clock.timed(without_gradient, ppo_trainer.selective_log_softmax)
    ppo_trainer.gc = SimpleNamespace(collect=updates.garbage.timed("gc", gc.collect))


def settings(args, built: models.Built, folder: str) -> PPOConfig:
    return PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=args.accumulate,
        num_ppo_epochs=args.epochs,
        num_mini_batches=1,
        total_episodes=args.batch * args.accumulate * args.updates,
        response_length=built.size.completion,
        stop_token="eos" if args.form == "natural" else None,
        temperature=models.TEMPERATURE,
        learning_rate=1e-5,
        num_sample_generations=0,
        use_cpu=args.device == "cpu",
        seed=args.seed,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def main() -> None:
    args = measure.arguments(__doc__)
    measure.use_threads(args.threads)
    built = models.build(args.models, args.size, args.form, args.dtype)
    tokenizer = AutoTokenizer.from_pretrained(built.base)
    rows = args.batch * args.accumulate * args.updates
    prompts = (built.prompts * (rows // len(built.prompts) + 1))[:rows]
    dataset = Dataset.from_dict({"input_ids": tokenizer(prompts)["input_ids"]})
    updates = Updates(measure.Clock(args.device), measure.Clock(args.device))
    watch(updates)
    memory = measure.Memory(args.device)
    dtype = getattr(torch, args.dtype)

    def scorer():
        return AutoModelForSequenceClassification.from_pretrained(built.base, num_labels=1, dtype=dtype)

    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=settings(args, built, folder),
            processing_class=tokenizer,
            model=AutoModelForCausalLM.from_pretrained(built.base, dtype=dtype),
            ref_model=None,
            reward_model=scorer(),
            value_model=scorer(),
            train_dataset=dataset,
            eval_dataset=dataset.select(range(args.batch)),
            peft_config=LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **models.LORA),
            callbacks=[updates],
        )
        trainer.train()
    timed = updates.rows[1:]
    result = {
        "seconds": [row["seconds"] for row in timed],
        "tokens": [row["tokens"] for row in timed],
        "split": [row["split"] for row in timed],
        "peak_mib": memory.peak(),
        "parameters": measure.distinct_parameters(),
    }
    measure.tell({"side": "trl", "args": vars(args), "versions": measure.versions()} | result)


if __name__ == "__main__":
    main()
