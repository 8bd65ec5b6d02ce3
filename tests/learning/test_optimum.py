"""PPO, A2C and REINFORCE reach the known optimum of a toy, judged without any sampling."""

import itertools

import pytest
import torch
import toy
from toy import BOS, EOS, PAD, PROMPTS

LENGTH = 4  # tokens of a completion; four of them with an `a` in each are the best there is
OPTIMUM = 4.0
# Updates of 64 completions, and the learning rate
SETTINGS = {"ppo": (16, 1e-2), "a2c": (20, 3e-2), "reinforce": (40, 1e-2)}
LEAVE_ONE_OUT = {"baseline": "leave_one_out", "num_generations": 4}


def count_a(prompts, completions, **columns) -> list[float]:
    return [float(text.count("a")) for text in completions]


@torch.no_grad()
def expected_reward(model) -> float:
    """Mean over the prompts of Σ_y π(y) · (number of a's in y), over all completions y of at most LENGTH tokens."""
    tokenizer, going_on = toy.tokenizer(), [token for token in range(9) if token != EOS]
    worth = torch.tensor([("" if i in (PAD, BOS, EOS) else tokenizer.decode([i])).count("a") for i in range(9)])
    total = 0.0
    for prompt in PROMPTS:
        start = tokenizer(text=prompt)["input_ids"]
        reached = torch.ones(1, dtype=torch.float64)  # π of each beginning of `length` tokens, in the order of product
        for length in range(LENGTH):
            beginnings = torch.tensor([[*start, *y] for y in itertools.product(going_on, repeat=length)])
            each = reached[:, None] * torch.softmax(model(input_ids=beginnings).logits[:, -1].double(), dim=-1)
            total += (each * worth).sum().item()
            reached = each[:, going_on].flatten()
    return total / len(PROMPTS)


def learn(tmp_path, algorithm: str, seed: int, **settings) -> tuple[float, float]:
    """Expected reward before and after training, in a's."""
    updates, learning_rate = SETTINGS[algorithm]
    trainer = toy.make_trainer(
        tmp_path,
        # The frozen output layer limits how sure the model can be: with hidden size 16 to 3.76 of 4, with 32 to 3.995
        model=toy.build_model(hidden_size=32),
        reward=count_a,
        prompts=PROMPTS * 8,
        algorithm=algorithm,
        per_device_train_batch_size=64,
        gradient_accumulation_steps=1,
        num_iterations=None,
        max_completion_length=LENGTH,
        total_episodes=64 * updates,
        learning_rate=learning_rate,
        kl_coef=0.0,
        peft_config=toy.lora(r=8, lora_alpha=16),
        seed=seed,
        **settings,
    )
    before = expected_reward(trainer.model)
    trainer.train()
    return before, expected_reward(trainer.model)


def test_expected_reward_by_pencil():
    """A model that says every token with 1/9: a token is reached with (8/9)^t and is worth an `a` with 2/9."""
    model = toy.build_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert expected_reward(model) == pytest.approx(2 / 9 * sum((8 / 9) ** t for t in range(4)), abs=1e-9)


SEEDS = [pytest.param(0, id="0"), *(pytest.param(n, marks=pytest.mark.slow, id=str(n)) for n in (1, 2))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("algorithm", SETTINGS)
def test_the_optimum_is_reached(tmp_path, algorithm, seed):
    """Optimum 4.0. From 0.554 a's; seeds 0, 1, 2; seconds of one thread for each.

    | algorithm | updates | learning rate | reached | seconds |
    |---|---|---|---|---|
    | ppo | 16 | 1e-2 | 3.965, 3.946, 3.966 | 3 |
    | a2c | 20 | 3e-2 | 3.989, 3.980, 3.990 | 2 |
    | reinforce, no baseline | 40 | 1e-2 | 3.975, 3.974, 3.989 | 3 |

    What did less well: A2C in 40 updates at 1e-2 (3.987, 3.735, 3.988); REINFORCE in 20 updates at 3e-2 (3.627, 3.343,
    3.988): without a baseline every reward here speaks for what was sampled, and at that rate it settles too early.
    With a moving average 25 updates at 3e-2 gave 3.984, 3.988, 3.988.
    """
    before, after = learn(tmp_path, algorithm, seed)
    assert before < 0.25 * OPTIMUM
    assert after >= 0.9 * OPTIMUM


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", [{"baseline": "moving_average"}, LEAVE_ONE_OUT], ids=lambda s: s["baseline"])
def test_reinforce_reaches_it_with_a_baseline(tmp_path, settings, seed):
    """Optimum 4.0, 40 updates, seeds 0 to 2: moving average 3.986, 3.987, 3.985; leave one out 3.989, 3.975, 3.979"""
    _, after = learn(tmp_path, "reinforce", seed, **settings)
    assert after >= 0.9 * OPTIMUM
