"""A game small enough to count by hand, a model that says what it is told to, and a trainer for the two.

user: Count up from 10.          the environment says where it begins
assistant: [add number=2]        paid 2
tool: 12
assistant: [add number=3]        paid 3
tool: 15
assistant: done                  paid nothing
"""

import os

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import toy
from datasets import Dataset

from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.worlds.base import BaseModelSettings
from pipeline.worlds.base_model import train_tokenizer
from pipeline.worlds.chat_format import TOOLS

DONE = "done<eos>"


class Counter:
    """Adds numbers; every number is paid."""

    def reset(self, start: int = 0, seed: int = 0, **row) -> str:
        self.total, self.start, self.seed = start, start, seed
        return f" from {start}."

    def add(self, number: int) -> str:
        """Adds a number.

        Args:
            number: What to add.
        """
        self.total += number
        return str(self.total)

    def get_reward(self) -> float:
        return float(self.total - self.start)


def add(*numbers: int) -> str:
    return "".join(f"<call>add number={number}" for number in numbers) + "<eos>"


def tokenizer():
    texts = [add(2) + "from 10 15 done Count up", "done"]
    return train_tokenizer(texts, BaseModelSettings(vocab_size=300, context_length=512), TOOLS)


def says(trainer, lines: dict[str, list[str]]) -> None:
    """Lets the model say, to the prompt with a word, the lines of that word, one a turn."""
    tokenizer = trainer._tokenizer

    def generate(input_ids, attention_mask, **kwargs):
        said = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            before = tokenizer.decode(ids[mask.bool()])
            key = next(key for key in lines if key in before)
            turn = before.count("<assistant>") - 1
            said.append(torch.tensor(ids_of(tokenizer, lines[key][turn])))
        rest = torch.nn.utils.rnn.pad_sequence(said, batch_first=True, padding_value=tokenizer.pad_token_id)
        return torch.cat([input_ids, rest], dim=1)

    trainer.model.generate = generate


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def make_trainer(
    folder, words, rewards=None, columns=None, environment=Counter, cls=PPOTrainer, callbacks=(), **changes
):
    """A trainer whose prompts each have a word of `words`."""
    torch.manual_seed(0)
    made = tokenizer()
    model = toy.build_model(vocab_size=len(made), max_position_embeddings=512)
    settings = {
        "per_device_train_batch_size": len(words),
        "gradient_accumulation_steps": 1,
        "num_iterations": 2,
        "max_completion_length": 128,
        "total_episodes": 2 * len(words),
        "learning_rate": 1e-2,
        "kl_coef": 0.0,
        "whiten_advantages": False,
        "gamma": 0.9,
        "lam": 0.8,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    rows = {"prompt": [[{"role": "user", "content": f"Count {word}"}] for word in words]}
    return cls(
        model,
        rewards,
        PPOConfig(str(folder), **settings | changes),
        train_dataset=Dataset.from_dict(rows | (columns or {})),
        processing_class=made,
        peft_config=toy.lora(),
        environment_factory=environment,
        callbacks=list(callbacks),
    )


def rows_of(trainer) -> list[dict]:
    return list(trainer.train_dataset)
