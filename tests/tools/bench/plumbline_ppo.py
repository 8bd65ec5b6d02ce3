"""One run of our PPO, four roles on one base: `python -m tests.tools.bench.plumbline_ppo --size M --dtype bfloat16`.

Prints the seconds of each update after the first, where they went, and the memory. `--stage sft` measures the peak
memory of the SFT stage at the same tokens a micro-batch instead.
"""

import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import pipeline.stages.sft
from pipeline.config import DataArguments, ModelArguments, SFTStage
from pipeline.ppo import PPOConfig, PPOTrainer
from rewards import build_rewards
from tests.tools.bench import measure, models

_OTHER = "other"  # everything that is not a forward, a backward, an optimizer step or a decoding step


class Updates(TrainerCallback):
    """Cuts the run into updates, from the end of one to the end of the next."""

    def __init__(self, clock: measure.Clock):
        self.clock, self.trainer, self.rows = clock, None, []

    def on_train_begin(self, args, state, control, **kwargs):
        self._since, self._tokens = self.clock.now(), 0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.steps_per_update:
            return
        now, tokens = self.clock.now(), self.trainer.journal.tokens
        self.rows.append(
            {
                "seconds": now - self._since,
                "tokens": tokens - self._tokens,
                "clocks": self.clock.read() | {f"time/{k}": v for k, v in self.trainer.journal.seconds.items()},
            }
        )
        self._since, self._tokens = now, tokens


def split(row: dict) -> dict[str, float]:
    """Where the seconds of an update went. Only decoding itself counts as generation, where it can be told apart."""
    clocks = row["clocks"]
    parts = {
        "generation": clocks.get("decoding") or clocks["time/generation"],
        "forward": clocks["time/forward"] + clocks["time/scoring"],
        "training": clocks["time/training"] + clocks.get("optimizer", 0.0),
    }
    return parts | {_OTHER: row["seconds"] - sum(parts.values())}


def settings(args, built: models.Built, folder: str) -> PPOConfig:
    return PPOConfig(
        folder,
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=args.accumulate,
        num_iterations=args.epochs,
        total_episodes=args.batch * args.accumulate * args.updates,
        max_completion_length=built.size.completion,
        temperature=models.TEMPERATURE,
        learning_rate=1e-5,
        critic_path=str(built.reward),
        critic_layers=args.critic_layers,
        use_cpu=args.device == "cpu",
        bf16=args.dtype == "bfloat16",
        seed=args.seed,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def ppo(args, built: models.Built, folder: str) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(built.base)
    rows = args.batch * args.accumulate * args.updates
    prompts = (built.prompts * (rows // len(built.prompts) + 1))[:rows]
    dataset = Dataset.from_dict({"prompt": prompts})
    clock = measure.Clock(args.device)
    updates = Updates(clock)
    memory = measure.Memory(args.device)
    trainer = PPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(built.base, dtype=getattr(torch, args.dtype)),
        reward_funcs=[reward for reward, _ in build_rewards([{"name": "learned", "path": str(built.reward)}])],
        args=settings(args, built, folder),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **models.LORA),
        callbacks=[updates],
    )
    updates.trainer = trainer
    base = trainer.model.get_base_model()
    base.generate = clock.timed("decoding", base.generate)
    trainer.create_optimizer()
    trainer.optimizer.step = clock.timed("optimizer", trainer.optimizer.step)
    trainer.train()
    timed = updates.rows[1:]
    return {
        "seconds": [row["seconds"] for row in timed],
        "tokens": [row["tokens"] for row in timed],
        "split": [split(row) for row in timed],
        "clocks": [row["clocks"] for row in timed],
        "peak_mib": memory.peak(),
        "parameters": measure.distinct_parameters(),
        "score": [log["score"] for log in trainer.state.log_history if "score" in log],
    }


def sft(args, built: models.Built, folder: str) -> dict:
    """Peak memory of the SFT stage on micro-batches of as many tokens as PPO's: prompt and completion."""
    rows = args.batch * args.accumulate * args.updates
    tokenizer = AutoTokenizer.from_pretrained(built.base)
    texts = [text for text in built.prompts if len(text) > 1]
    data = f"{folder}/rows.jsonl"
    pairs = []
    for i in range(rows):
        # the next prompts' tokens are the completion, one short of PPO's: SFT adds the end token
        ids = [t for k in range(1, 10) for t in tokenizer(texts[(i + k) % len(texts)])["input_ids"]]
        pairs.append(
            {"prompt": texts[i % len(texts)], "completion": tokenizer.decode(ids[: built.size.completion - 1])}
        )
    Dataset.from_list(pairs).to_json(data)
    memory = measure.Memory(args.device)
    pipeline.stages.sft.run(
        ModelArguments(model_name_or_path=str(built.base), dtype=args.dtype, lora_dropout=0.0),
        DataArguments(dataset=data),
        SFTStage(
            output_dir=f"{folder}/sft",
            per_device_train_batch_size=args.batch,
            gradient_accumulation_steps=args.accumulate,
            max_steps=args.updates,
            use_cpu=args.device == "cpu",
            bf16=args.dtype == "bfloat16",
            seed=args.seed,
            save_strategy="no",
            disable_tqdm=True,
        ),
    )
    return {"peak_mib": memory.peak(), "parameters": measure.distinct_parameters()}


def main() -> None:
    args = measure.arguments(__doc__, stage=("ppo", "sft"))
    measure.use_threads(args.threads)
    built = models.build(args.models, args.size, args.form, args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        result = {"ppo": ppo, "sft": sft}[args.stage](args, built, folder)
    measure.tell({"side": "plumbline", "args": vars(args), "versions": measure.versions()} | result)


if __name__ == "__main__":
    main()
