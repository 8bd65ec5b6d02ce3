"""Our rewards where TRL expects a reward function: in its GRPOTrainer; and several processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from judge_server import by_length, serving
from scored import make_tokenizer, tiny_config
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
from trl import GRPOConfig, GRPOTrainer

from rewards import Bleu, Learned, Perplexity, Relevance, build_rewards

REFERENCES = [["the cat sat", "a cat sat"], ["the dog ran"]]
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def plain(prompts, completions, facts, **columns):
    """A user's function: what it takes is the row's own facts."""
    return [float(len(wanted)) if wanted else None for wanted in facts]


class Letters:
    """A sentence embedding by hand: how often each byte occurs."""

    def encode(self, texts, normalize_embeddings, **options):
        counts = np.array([np.bincount(list(text.encode()), minlength=256) for text in texts], dtype=float)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def train(reward_funcs, prompts, tmp_path, tokenizer, **columns):
    torch.manual_seed(0)
    args = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        reward_weights=[weight for _, weight in reward_funcs],
    )
    trainer = GRPOTrainer(
        LlamaForCausalLM(tiny_config()),
        reward_funcs=[reward for reward, _ in reward_funcs],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts, **columns}),
        processing_class=tokenizer,
    )
    trainer.train()
    return [log for log in trainer.state.log_history if "reward" in log]


@pytest.fixture
def judge():
    """A judge that gives a mark a character."""
    with serving(by_length) as server:
        yield {"name": "judge", "url": server.url, "model": "m", "scale": [0, 10], "cache": False}


def test_rewards_run_in_trls_grpo_trainer(tmp_path, judge):
    torch.manual_seed(3)
    scorer = LlamaForSequenceClassification(tiny_config(num_labels=1)).eval()
    rewards = build_rewards(
        [
            {"name": "bleu", "weight": 0.5},
            {"name": "keyword", "column": "facts", "weight": 2.0, "log_name": "facts"},
            {"name": "length", "max": 3, "unit": "tokens", "normalize": "running", "clip": [-2, 2]},
            {"name": Learned(model=scorer, tokenizer=make_tokenizer()), "weight": 0.1},
            {"name": Perplexity(model=LlamaForCausalLM(tiny_config()).eval(), tokenizer=make_tokenizer())},
            {"name": Relevance(model=Letters())},
            {"name": "coverage", "column": "source"},
            {"name": "length", "column": "source", "max": 0.5, "log_name": "brevity"},
            {"name": "mixture", "rewards": [{"name": "rougeL"}, {"name": "repetition", "n": 1}]},
            plain,
            judge,
        ]
    )
    logs = train(
        rewards,
        ["the cat =>", "the dog =>"],
        tmp_path,
        make_tokenizer(),
        references=REFERENCES,
        facts=[["a"], ["b", "c"]],
        source=["the cat sat on the mat", "the dog ran home"],
    )
    assert len(logs) == 2
    names = [
        "bleu",
        "facts",
        "length",
        "learned",
        "perplexity",
        "relevance",
        "coverage",
        "brevity",
        "mixture",
        "plain",
        "judge",
    ]
    for log in logs:
        means = [log[f"rewards/{name}/mean"] for name in names]
        assert all(mean == mean for mean in means)
        assert log["rewards/perplexity/mean"] < 0 and -1 <= log["rewards/brevity/mean"] <= 0
        assert 0 <= log["rewards/relevance/mean"] <= 1 and 0 <= log["rewards/coverage/mean"] <= 1
        assert 0 < log["rewards/judge/mean"] <= 1 and log["judge/unreadable"] == log["judge/failed"] == 0
        # both rows twice: (1 + 2) / 2
        assert log["rewards/plain/mean"] == 1.5
        assert log["reward"] == pytest.approx(sum(w * m for (_, w), m in zip(rewards, means, strict=True)), abs=1e-5)
        parts = log["mixture/rougeL"] + log["mixture/repetition"]
        assert log["rewards/mixture/mean"] == pytest.approx(parts, abs=1e-5)


def test_rewards_run_on_messages_in_trls_grpo_trainer(tmp_path):
    torch.manual_seed(3)
    scorer = LlamaForSequenceClassification(tiny_config(num_labels=1)).eval()
    seen = []

    def spy(prompts, completions, references, **columns):
        seen.extend(zip(prompts, completions, references, strict=True))
        return [0.0] * len(completions)

    tokenizer = make_tokenizer(chat_template=CHAT)
    learned = Learned(model=scorer, tokenizer=tokenizer)
    perplexity = Perplexity(model=LlamaForCausalLM(tiny_config()).eval(), tokenizer=tokenizer)
    rewards = build_rewards(["bleu", learned, perplexity, spy])
    prompts = [[{"role": "user", "content": text}] for text in ("the cat", "the dog")]
    logs = train(rewards, prompts, tmp_path, tokenizer, references=REFERENCES)
    assert len(logs) == 2 and len(seen) == 8
    prompts, completions, references = map(list, zip(*seen, strict=True))
    assert completions[0][0]["role"] == "assistant"
    for name, reward in (("bleu", Bleu()), ("learned", learned), ("perplexity", perplexity)):
        scores = reward(prompts[:4], completions[:4], references=references[:4])
        assert logs[0][f"rewards/{name}/mean"] == pytest.approx(sum(scores) / 4, abs=1e-5)


@pytest.mark.slow
def test_two_processes_share_the_running_statistics(tmp_path):
    """Rank 0 sees 0 and 2, rank 1 sees 4 and nothing: mean 2, sum of squared deviations 8, on both."""
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\n"
        "import torch.distributed as dist\n"
        "from rewards import Shaped\n"
        "dist.init_process_group('gloo')\n"
        "scores = [[0.0, 2.0], [4.0, None]][dist.get_rank()]\n"
        "shaped = Shaped(lambda prompts, completions, **c: scores, normalize='running')\n"
        "shaped(['p'] * 2, ['c'] * 2)\n"
        "open(f'{sys.argv[1]}/{dist.get_rank()}', 'w').write(repr(vars(shaped.stats)))\n"
        "dist.destroy_process_group()\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    env = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, script, tmp_path], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = [(tmp_path / rank).read_text() for rank in "01"]
    assert first == second == "{'count': 3, 'mean': 2.0, 'm2': 8.0}"
