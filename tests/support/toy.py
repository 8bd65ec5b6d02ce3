"""A language model small enough to look at: nine tokens, two layers, completions of a few tokens."""

import os

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func is experimental in TRL; the tests use it on purpose


import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.ppo import PPOConfig, PPOTrainer

PAD, BOS, EOS, A, B, C, D, E, AB = range(9)
PROMPTS = ["c", "cd", "ede", "dcec", "e", "ca", "dd", "cedb"]


def tokenizer(**special) -> PreTrainedTokenizerFast:
    """One token per letter a-e, and `ab` merged: the ids [A, B] are a non-canonical way to write "ab"."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "a", "b", "c", "d", "e", "ab"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    core.decoder = decoders.Fuse()
    tokens = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **tokens)


def build_model(seed: int = 0, **changes) -> LlamaForCausalLM:
    """Far from uniform, and every token has a chance of a few percent, so many completions end and many are cut."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 9,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes))


def build_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """With absolute positions: a shift shows at once, where Llama's relative ones forgive it."""
    torch.manual_seed(seed)
    ids = {"vocab_size": 9, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    return GPT2LMHeadModel(GPT2Config(**ids, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3))


def lora(**changes) -> LoraConfig:
    return LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | changes)


def randomize(model, adapter: str, seed: int, scale: float = 0.2) -> None:
    """Gives LoRA's B matrices of `adapter`, which start at 0, random numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and adapter in name.split("."):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def with_sft_adapter(model=None, seed: int = 1, **config):
    """The model with an adapter that does something, as an SFT stage leaves it."""
    model = get_peft_model(model or build_model(), lora(**config))
    randomize(model, "default", seed)
    return model


def letters(prompts, completions, **columns) -> list[float]:
    """A reward: the number of a's less the number of d's."""
    return [float(text.count("a") - text.count("d")) for text in completions]


def make_trainer(
    tmp_path,
    model=None,
    reward=letters,
    prompts=PROMPTS,
    columns=None,
    tokenizer_=None,
    cls=PPOTrainer,
    settings_=PPOConfig,
    **config,
):
    """A PPOTrainer on the toy. Keywords that are the trainer's go to it, all others are settings (`settings_`)."""
    for_trainer = {name: config.pop(name) for name in ("rollout_func", "eval_dataset", "callbacks") if name in config}
    model = build_model() if model is None else model
    if not hasattr(model, "peft_config"):
        for_trainer["peft_config"] = config.pop("peft_config", None) or lora()
    settings = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_iterations": 2,
        "max_completion_length": 6,
        "total_episodes": 8,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return cls(
        model=model,
        reward_funcs=reward,
        args=settings_(str(tmp_path), **settings | config),
        train_dataset=prompts and Dataset.from_dict({"prompt": list(prompts)} | (columns or {})),
        processing_class=tokenizer_ or tokenizer(),
        **for_trainer,
    )


def canned(answers: dict[str, list[int]]):
    """A rollout in which every prompt gets the completion ids that `answers` has for it."""

    def rollout(prompts, trainer):
        return {
            "prompt_ids": trainer.processing_class(text=prompts)["input_ids"],
            "completion_ids": [list(answers[prompt]) for prompt in prompts],
            "logprobs": None,
        }

    return rollout


# lengths 1 to 6, some finished and some cut at 6
ANSWERS = dict(
    zip(
        PROMPTS,
        [
            [A, EOS],
            [D, D, A, C, B, A],
            [EOS],
            [A, B, A, EOS],
            [C, C, D, D, A, EOS],
            [B, EOS],
            [AB, AB, E, C, D, D],
            [E, A, EOS],
        ],
        strict=True,
    )
)


def sample(trainer, prompts=PROMPTS, **columns) -> dict:
    """One rollout as the update would get it."""
    trainer.model.train()
    return trainer._generate_and_score_completions([{"prompt": p} | columns for p in prompts])


def loss_of(trainer, batch) -> torch.Tensor:
    """The loss of `batch` as one mini-batch."""
    trainer.model.train()
    trainer.model.zero_grad()
    return trainer._compute_loss(trainer.model, batch | {"num_items_in_batch": batch["loss_mask"].sum()})


def snapshot(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def learned(trainer) -> dict[str, torch.Tensor]:
    """What PPO trains: policy, critic and value head."""
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def logged(trainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


@torch.no_grad()
def hand_logprobs(model, prompt_ids, completion_ids, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of one completion, straight from the logits of one unpadded sequence. (T,)"""
    was_training = model.training
    model.eval()
    logits = model(input_ids=torch.tensor([[*prompt_ids, *completion_ids]])).logits[0].double() / temperature
    model.train(was_training)
    each = torch.log_softmax(logits, dim=-1)
    start = len(prompt_ids) - 1
    return torch.stack([each[start + t, token] for t, token in enumerate(completion_ids)])


def real(batch, key: str = "completion_ids") -> list[list]:
    """Rows of `batch[key]` without the padding."""
    pairs = zip(batch[key].tolist(), batch["completion_mask"].tolist(), strict=True)
    return [[x for x, m in zip(row, mask, strict=True) if m] for row, mask in pairs]


def real_prompts(batch) -> list[list[int]]:
    pairs = zip(batch["prompt_ids"].tolist(), batch["prompt_mask"].tolist(), strict=True)
    return [[x for x, m in zip(row, mask, strict=True) if m] for row, mask in pairs]


def config(**settings):
    return PPOConfig("out", use_cpu=True, bf16=False, report_to="none", **settings)
