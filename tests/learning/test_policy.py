"""PPO on the tiny base (`make base`): it learns what is rewarded and nothing from noise, and the KL holds it.

Everything is judged on the 200 held-out prompts, answered by sampling at temperature 1 as in training. The word that
is wanted is "visitor": the world's grammar has it ("Today's visitor was a robin."), the base says it in one answer
of five, and it fits every prompt, so the best possible reward is 1.0.
"""

import json
import random
from functools import cache
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline import cli
from pipeline.errors import UserError
from pipeline.exam import evaluation
from pipeline.models.adapters import POLICY, use_adapter
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.worlds import BaseModelSettings, WorldSettings
from pipeline.worlds.prepare import prepare
from rewards.keyword import Keyword

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (0, 1, 2)
UPDATES, EPISODES = 16, 32  # 16 updates of 32 completions
MAX_COMPLETION_LENGTH = 24
Z = 3.29  # standard errors: by chance, one correct run in a thousand lies further off
wanted = Keyword(wanted=["visitor"])


class Answers(NamedTuple):
    """What one policy answers to the held-out prompts; one entry a prompt."""

    said: list[float]  # 1 = the wanted word is in it
    surprise: list[float]  # -log π(y) in nats; its mean is the entropy of the policy over completions
    log_ratio: list[float]  # log π(y) - log π_ref(y) in nats; its mean is the KL of a completion


class Outcome(NamedTuple):
    before: Answers
    after: Answers


def mean(x: list[float]) -> float:
    return sum(x) / len(x)


def standard_error(x: list[float]) -> float:
    """Of the mean of `x`. For zeros and ones this is the binomial √(p(1-p)/n), with n-1 for n."""
    return sqrt(sum((each - mean(x)) ** 2 for each in x) / (len(x) - 1) / len(x))


def together(outcomes: list[Outcome], when: str, what: str) -> list[float]:
    """One column of several runs, one after the other."""
    return [x for outcome in outcomes for x in getattr(getattr(outcome, when), what)]


@pytest.fixture(scope="session")
def tiny(request) -> Path:
    """Base and data of recipes/tiny: those of runs/tiny where `make base` made them, else made once for pytest's cache
    (two minutes)."""
    settings = cli.parse(WorldSettings, BaseModelSettings, argv=["--config", str(ROOT / "recipes/tiny/base.yaml")])
    if (ROOT / "runs/tiny/base/model.safetensors").is_file():
        settings[0].output_dir = str(ROOT / "runs/tiny")
        try:
            return prepare(*settings)
        except UserError:  # made with other settings
            pass
    settings[0].output_dir = str(request.config.cache.mkdir("tiny"))
    return prepare(*settings)


@pytest.fixture(scope="session")
def run(tiny, tmp_path_factory):
    """`run("keyword", seed)` is the outcome of that run; each is made once."""
    return cache(lambda reward, seed, kl_coef=0.1: train(tiny, tmp_path_factory.mktemp("ppo"), reward, seed, kl_coef))


def train(tiny: Path, folder: Path, reward: str, seed: int, kl_coef: float) -> Outcome:
    dice = random.Random(seed)
    rewards = {
        "keyword": wanted,
        "noise": lambda prompts, completions, **columns: [dice.random() for _ in completions],
    }
    tokenizer = AutoTokenizer.from_pretrained(tiny / "base")
    trainer = PPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny / "base"),
        reward_funcs=rewards[reward],
        args=PPOConfig(
            str(folder),
            per_device_train_batch_size=EPISODES,
            gradient_accumulation_steps=1,
            total_episodes=UPDATES * EPISODES,
            max_completion_length=MAX_COMPLETION_LENGTH,
            learning_rate=1.5e-3,
            lr_scheduler_type="constant",
            kl_coef=kl_coef,
            seed=seed,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts_of(tiny / "data/prompts_train.jsonl")}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    heldout = prompts_of(tiny / "data/prompts_heldout.jsonl")
    before = examine(trainer, heldout, None, seed=2 * seed)
    trainer.train()
    return Outcome(before, examine(trainer, heldout, POLICY, seed=2 * seed + 1))


def prompts_of(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]


def examine(trainer: PPOTrainer, prompts: list[str], adapter: str | None, seed: int) -> Answers:
    """Samples an answer to each prompt with `adapter` (None: the base, which is the reference) and judges them."""
    model, tokenizer = trainer.model, trainer.processing_class
    with use_adapter(model, adapter):
        ids = evaluation.complete(
            model, tokenizer, prompts, MAX_COMPLETION_LENGTH, trainer.eos_token_ids, batch_size=100, seed=seed
        )
    logprobs = {}
    for name in (adapter, None):
        with use_adapter(model, name):
            each = evaluation.logprobs(model, tokenizer, prompts, ids, batch_size=100)
        logprobs[name] = [row.double().sum().item() for row in each]
    return Answers(
        said=wanted(prompts=prompts, completions=tokenizer.batch_decode(ids, skip_special_tokens=True)),
        surprise=[-x for x in logprobs[adapter]],
        log_ratio=[x - ref for x, ref in zip(logprobs[adapter], logprobs[None], strict=True)],
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_it_reaches_the_optimum(run, seed):
    """Optimum 1.0, 16 updates of 32 completions; seeds 0, 1, 2: from 0.215, 0.165, 0.225 to 0.985, 0.975, 0.970, at
    a KL of 1.91, 1.74, 1.82 nats a completion; 50 seconds each on one thread. (With kl_coef 0.02 it was 1.000, 0.990,
    0.985 at 2.90, 2.65, 2.57 nats.)
    """
    before, after = run("keyword", seed)
    assert mean(before.said) < 0.5
    assert mean(after.said) >= 0.95


def test_it_learns_nothing_from_noise(run):
    """The settings of the run above, the reward a random number. The errors are those of sampling 600 answers; what
    lies between prompts is in both halves, so the true error of sampling is smaller. The drift from run to run is not
    in them: it is what kl_coef keeps small.

    Measured (seeds 0, 1, 2): the word's share 0.215, 0.165, 0.225 before and 0.210, 0.250, 0.260 after, 1.60 standard
    errors together; KL 0.26, 0.25, 0.20 nats; entropy 9.27 ± 0.18 before and 9.27 ± 0.19 after, in nats a completion.
    With kl_coef 0.02, tried first, the drift was larger: KL 1.34, 1.51, 1.35 nats, 2.14 standard errors. 0.1 was
    chosen after that look, so the bound is not quite one in a thousand.
    """
    outcomes = [run("noise", seed) for seed in SEEDS]
    before, after = (together(outcomes, when, "said") for when in ("before", "after"))
    # the policy did move,
    moved = together(outcomes, "after", "log_ratio")
    assert mean(moved) > Z * standard_error(moved)
    # but neither to the word nor away from it,
    error = sqrt(standard_error(before) ** 2 + standard_error(after) ** 2)
    assert abs(mean(after) - mean(before)) < Z * error
    # and it did not collapse
    before, after = (together(outcomes, when, "surprise") for when in ("before", "after"))
    assert mean(after) > mean(before) - Z * sqrt(standard_error(before) ** 2 + standard_error(after) ** 2)


def test_a_large_kl_coef_keeps_it_at_the_reference(run):
    """The bound by pencil: a policy at least as good as its start has E[r] - β·KL ≥ p, where p is the start's share of
    the word, and E[r] ≤ 1, so KL ≤ (1 - p)/β: 0.39 nats at β = 2. Measured: 0.05 nats, and 1.91 ± 0.07 at β = 0.1.
    """
    kl_coef = 2.0
    held, free = run("keyword", 0, kl_coef), run("keyword", 0)
    bound = (1 - mean(held.before.said)) / kl_coef
    assert mean(held.after.log_ratio) < bound
    assert mean(free.after.log_ratio) - Z * standard_error(free.after.log_ratio) > bound
