"""PPO from messages: the chat template makes the prompt, rewards get messages, and a plain function is enough."""

import pytest
from conftest import build_model
from datasets import Dataset

from pipeline.ppo import PPOConfig, PPOTrainer


def test_conversational_prompts_and_a_plain_function(tmp_path, tiny_tokenizer):
    seen = []

    def count_a(prompts, completions, topic, **columns):
        seen.extend(zip(prompts, completions, topic, strict=True))
        return [float(completion[0]["content"].count("a")) for completion in completions]

    rows = [{"prompt": [{"role": "user", "content": f"say {n}"}], "topic": str(n)} for n in range(4)]
    args = PPOConfig(
        str(tmp_path),
        per_device_train_batch_size=4,
        total_episodes=4,
        max_completion_length=6,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
    )
    trainer = PPOTrainer(
        model=build_model(),
        reward_funcs=count_a,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )
    read = []
    generate = trainer._generate_single_turn

    def spy(prompt_ids, *args, **kwargs):
        read.extend(tiny_tokenizer.decode(ids) for ids in prompt_ids)
        return generate(prompt_ids, *args, **kwargs)

    trainer._generate_single_turn = spy
    trainer.train()
    assert sorted(read) == [f"<user>say {n}<assistant>" for n in range(4)]
    assert sorted(topic for *_, topic in seen) == ["0", "1", "2", "3"]
    for prompt, completion, topic in seen:
        assert prompt == [{"role": "user", "content": f"say {topic}"}]
        assert [message["role"] for message in completion] == ["assistant"]
    expected = sum(completion[0]["content"].count("a") for _, completion, _ in seen) / 4
    assert trainer.state.log_history[0]["score/count_a"] == pytest.approx(expected)
