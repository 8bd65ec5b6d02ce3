"""A real tool loop through TRL: the model calls a tool, TRL runs it and writes the result into the completion, the
model goes on. What the tool wrote is not trained on. The first turn is canned: a random model calls no tools."""

import os

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

from pathlib import Path

import pytest
import torch
import toy
import trl
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.models.adapters import CRITIC
from pipeline.ppo import PPOConfig, PPOTrainer

CALL = '<tool_call>\n{"name": "lookup", "arguments": {"word": "heron"}}\n</tool_call><|im_end|>'
ANSWER = "no bird.<|im_end|>"
RESULT = "a grey bird"
ROOT = Path(__file__).resolve().parents[2]


def lookup(word: str) -> str:
    """Looks a word up.

    Args:
        word: The word.
    """
    looked_up.append(word)
    return RESULT


looked_up: list[str] = []


QUESTIONS = ["which bird?", "hello", "a bird", "why?"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def make_tokenizer():
    """Byte-level, with the chat template of Qwen3 as TRL ships it, whose tool calls TRL can parse."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    special, alphabet = ["<pad>", "<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([CALL, RESULT], trainer)
    core.add_tokens([AddedToken(t, normalized=False) for t in ("<tool_call>", "</tool_call>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>")
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def build(tmp_path, tokenizer, seen, questions=QUESTIONS, **changes):
    def first_turn(prompts, trainer):
        texts = [CALL if "bird" in p[-1]["content"] else ANSWER for p in prompts]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return {"prompt_ids": trainer._tokenize_prompts(prompts)[0], "completion_ids": ids, "logprobs": None}

    def reward(prompts, completions, **columns):
        seen.append(completions)
        return [float(i) for i in range(len(prompts))]

    torch.manual_seed(0)
    settings = {"total_episodes": 4} | changes
    trainer = PPOTrainer(
        toy.build_model(vocab_size=len(tokenizer), max_position_embeddings=2048, pad_token_id=0, eos_token_id=2),
        reward,
        PPOConfig(
            str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, num_iterations=2,
            max_completion_length=96, max_tool_calling_iterations=1, learning_rate=1e-2,
            use_cpu=True, bf16=False, report_to="none", save_strategy="no", whiten_advantages=False, lam=1.0,
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": q}] for q in questions]}),
        processing_class=tokenizer, peft_config=toy.lora(), tools=[lookup], rollout_func=first_turn,
    )  # fmt: skip
    return trainer, [{"prompt": [{"role": "user", "content": q}]} for q in questions]


def test_what_a_tool_wrote_is_not_trained_on(tmp_path, tokenizer):
    looked_up.clear()
    seen = []
    trainer, rows = build(tmp_path, tokenizer, seen)
    toy.randomize(trainer.model, CRITIC, 3)
    torch.nn.init.normal_(trainer.critic.head.weight)
    trainer.model.train()
    batch = trainer._generate_and_score_completions(rows)
    assert looked_up == ["heron", "heron"]  # TRL ran it, for the two rows that asked
    assert [m["role"] for m in seen[0][0]] == ["assistant", "tool", "assistant"]

    call = tokenizer(CALL, add_special_tokens=False)["input_ids"]
    for row in (0, 2):
        ids = [
            i for i, m in zip(batch["completion_ids"][row].tolist(), batch["completion_mask"][row], strict=True) if m
        ]
        mask = batch["loss_mask"][row].tolist()
        start = len(call)
        assert ids[:start] == call and mask[:start] == [1] * start
        # from the end of the call to the model's next turn: the template's turn markers with the result in them
        end = start + next(n for n in range(len(ids)) if mask[start + n] == 1)
        written = tokenizer.decode(ids[start:end])
        assert RESULT in written and written.endswith("<|im_start|>assistant\n")
        assert mask[start:end] == [0] * (end - start)
        assert mask[end : len(ids)] == [1] * (len(ids) - end) and end < len(ids)
        for name in ("advantages", "returns"):
            assert (batch[name][row, start:end] == 0).all()
        # GAE passes over it: λ = 1 and no KL at first, so every token of the model has score minus value
        own = batch["loss_mask"][row].bool()
        expected = row - batch["old_values"][row][own]
        torch.testing.assert_close(batch["advantages"][row][own], expected, atol=1e-5, rtol=1e-5)
    assert batch["loss_mask"][1].sum() == len(tokenizer(ANSWER, add_special_tokens=False)["input_ids"])

    loss = toy.loss_of(trainer, batch)
    junk = {
        name: torch.where(batch["loss_mask"] == 1, batch[name], 7.0)
        for name in ("advantages", "returns", "old_values", "old_per_token_logps")
    }
    torch.testing.assert_close(toy.loss_of(trainer, batch | junk), loss)


def test_a_whole_run_with_a_tool(tmp_path, tokenizer):
    looked_up.clear()
    trainer, _ = build(tmp_path, tokenizer, [])
    before = toy.learned(trainer)
    trainer.train()
    assert looked_up == ["heron", "heron"]
    logged = trainer.state.log_history[0]
    assert logged["tools/call_frequency"] == 0.5 and logged["tools/failure_frequency"] == 0.0
    assert any(not torch.equal(p, before[n]) for n, p in toy.learned(trainer).items())


@pytest.mark.slow  # two processes
def test_one_process_of_a_shared_base_calls_tools_and_the_other_none(warm, tmp_path):
    """The second turns of the first process go through layers that the second one has a part of."""
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    for done in warm.ranks(2, [ROOT / "tests/support/distributed/tools.py", tmp_path], tmp_path, fsdp):
        assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert (first["looked_up"], second["looked_up"]) == (["heron"] * 4, [])
    assert all(torch.equal(first["learned"][name], second["learned"][name]) for name in first["learned"])
