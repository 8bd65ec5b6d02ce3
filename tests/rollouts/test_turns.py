"""Games of several turns through the real trainer and TRL's real loop: what a turn is paid and where, worked out by
hand; what the environment says carries no loss; held-out games; resuming; what is refused.

The model is told what to say (tests/support/counting.py): a random one calls no tools.
"""

import random
import re
import threading
from pathlib import Path

import pytest
import torch
import toy
from counting import DONE, Counter, add, ids_of, make_trainer, rows_of, says

from pipeline.errors import UserError
from pipeline.models.adapters import CRITIC
from pipeline.ppo import math
from pipeline.rollouts import environments
from pipeline.rollouts.turns import turns_of
from rewards import Environment, RewardError, Turn, build_rewards
from rewards.mixture import token_rewards_of

WORDS = ["up", "twice", "nothing", "at once"]
LINES = {"up": [add(2), add(3), DONE], "twice": [add(1), DONE], "nothing": [DONE], "at once": [add(4, 5), DONE]}


def rewards_of(*specs) -> list:
    return [reward for reward, _ in build_rewards(specs)]


def rollout(trainer) -> dict:
    trainer.model.train()
    return trainer._generate_and_score_completions(rows_of(trainer))


def play(tmp_path, *specs, lines=LINES, **changes):
    trainer = make_trainer(tmp_path, list(lines), rewards_of(*specs) or None, **changes)
    says(trainer, lines)
    return trainer, rollout(trainer)


# ---------------------------------------------------------------- by pencil
def test_gae_passes_over_what_the_environment_says():
    """γ = λ = 1/2; the two tokens in the middle are the environment's, and count for nothing.

    t4: δ = 2 - .5 = 1.5                  A = 1.5
    t3: δ = 0 + .5·.5 - 1 = -.75          A = -.75 + .25·1.5 = -.375
    t0: δ = 1 + .5·1 - .5 = 1             A = 1 + .25·(-.375) = .90625     (the next own token is t3)
    """
    rewards, values = torch.tensor([[1.0, 9, 9, 0, 2]]), torch.tensor([[0.5, 7, 7, 1, 0.5]])
    advantages, returns = math.gae(rewards, values, torch.tensor([[1, 0, 0, 1, 1]]), 0.5, 0.5)
    assert advantages.tolist() == [[0.90625, 0, 0, -0.375, 1.5]]
    assert returns.tolist() == [[1.40625, 0, 0, 0.625, 2.0]]


@pytest.mark.parametrize("critic_layers", [None, 1])
def test_a_turn_is_paid_at_its_last_token(tmp_path, critic_layers):
    trainer, batch = play(tmp_path, {"name": "environment", "instant": "turns"}, critic_layers=critic_layers)
    tokenizer, line = trainer._tokenizer, LINES["up"]
    lengths = [len(ids_of(tokenizer, text)) for text in line]
    mask, ids = batch["loss_mask"][0], batch["completion_ids"][0]
    # the whole game is one row; what the model said counts, in its places, and nothing else
    whole = f"{line[0]}<tool>2<assistant>{line[1]}<tool>5<assistant>{line[2]}"
    assert tokenizer.decode(ids[batch["completion_mask"][0].bool()]) == whole
    assert tokenizer.decode(ids[mask.bool()]) == "".join(line)
    # critic at 0, no KL: A_t = Σ (γλ)^n r, n counting the model's own tokens up to the payment; γλ = .72
    first, second = lengths[0] - 1, lengths[0] + lengths[1] - 1
    expected = [
        (2 * 0.72 ** (first - t) if t <= first else 0) + (3 * 0.72 ** (second - t) if t <= second else 0)
        for t in range(sum(lengths))
    ]
    torch.testing.assert_close(batch["advantages"][0][mask.bool()], torch.tensor(expected))
    assert (batch["advantages"][0][~mask.bool()] == 0).all()
    # two calls in one turn are paid together; a game without a call is paid nothing
    own = batch["loss_mask"][3].bool()
    end = len(ids_of(tokenizer, LINES["at once"][0])) - 1
    torch.testing.assert_close(batch["advantages"][3][own][end], torch.tensor(9.0))
    assert (batch["advantages"][2] == 0).all()


def test_without_instant_all_of_it_comes_at_the_end(tmp_path):
    _, batch = play(tmp_path, {"name": "environment"})
    own = batch["advantages"][0][batch["loss_mask"][0].bool()]
    torch.testing.assert_close(own, 5 * 0.72 ** torch.arange(len(own) - 1, -1, -1.0))


def test_what_the_environment_says_carries_no_loss(tmp_path):
    trainer, batch = play(tmp_path, {"name": "environment", "instant": "turns"})
    loss = toy.loss_of(trainer, batch)
    for name in ("advantages", "returns", "old_values", "old_per_token_logps"):
        junk = batch | {name: torch.where(batch["loss_mask"] == 1, batch[name], 7.0)}
        torch.testing.assert_close(toy.loss_of(trainer, junk), loss)


def messages_said(prompts, completions, environments, **columns):
    """A reward of one's own: turns so far, and a hundredth of the total."""
    pairs = zip(completions, environments, strict=True)
    return [sum(m["role"] == "assistant" for m in messages) + game.total / 100 for messages, game in pairs]


def test_any_function_can_be_paid_by_turns(tmp_path):
    trainer, batch = play(
        tmp_path, {"name": messages_said, "instant": "turns"}, {"name": "environment", "weight": 0}, gamma=1.0, lam=0.0
    )  # λ = 0 and a critic at 0: the advantage of a token is what it is paid
    paid = batch["advantages"][0][batch["loss_mask"][0].bool()]
    # turns 1, 2, 3 with totals 2, 5, 5: 1.02, then 2.05 - 1.02, then 3.05 - 2.05; and get_reward, whose weight TRL has
    ends = torch.tensor([len(ids_of(trainer._tokenizer, text)) for text in LINES["up"]]).cumsum(0) - 1
    torch.testing.assert_close(paid[ends], torch.tensor([1.02, 1.03, 1.00 + 5]))
    assert paid.sum().item() == pytest.approx(3.05 + 5)


def test_payments_by_hand_in_a_mixture():
    """Turn 1 ends at token 1, turn 2 at token 4; the environment says 1, then 1.5. Clipped to 1.25, halved."""

    class Half:
        def get_reward(self):
            return 1.5

    turns = [[Turn(1, 2, worth=1.0), Turn(4, 3)]]
    asked = {"prompts": ["p"], "completions": [[]], "completion_ids": [[7] * 5], "token_ends": [None]}
    asked |= {"completion_turns": turns, "environments": [Half()]}
    [reward] = rewards_of({"name": "environment", "instant": "turns"})
    assert token_rewards_of(reward, **asked) == [[0, 1.0, 0, 0, 0.5]]
    parts = [{"name": "environment", "weight": 0.5, "clip": [0, 1.25]}]
    [mixture] = rewards_of({"name": "mixture", "rewards": parts, "instant": "turns"})
    assert mixture(**{key: asked[key] for key in ("prompts", "completions", "environments")}) == [0.625]
    paid = token_rewards_of(mixture, **asked)[0]
    assert sum(paid) == pytest.approx(0.625) and paid[1] > 0


def test_turns_by_pencil():
    said = [{"role": role} for role in ("assistant", "tool", "tool", "assistant", "tool", "assistant")]
    rounds = [(1.0, "a"), (2.0, "b")]
    expected = [Turn(1, 3, 1.0, "a"), Turn(4, 5, 2.0, "b"), Turn(7, 6)]
    assert turns_of([1, 1, 0, 1, 1, 0, 0, 1], said, rounds) == expected
    # the limit left no room for the last turn
    assert turns_of([1, 1, 0, 1, 1, 0, 0], said[:5], rounds) == expected[:2]
    assert turns_of([1, 1], said[:1], rounds)[0].messages == 1


def test_a_game_that_meets_the_limit_is_paid_in_full(tmp_path):
    lines = {"up": [add(2), add(3), DONE], "over": [DONE]}
    trainer = make_trainer(tmp_path, list(lines), rewards_of({"name": "environment", "instant": "turns"}), lam=0.0)
    first, second = (len(ids_of(trainer._tokenizer, text)) for text in lines["up"][:2])
    answer = len(ids_of(trainer._tokenizer, "<tool>2<assistant>"))
    trainer.max_completion_length = first + answer + second  # no room for the answer to the second call
    says(trainer, lines)
    batch = rollout(trainer)
    paid = batch["advantages"][0][batch["loss_mask"][0].bool()]
    assert paid.nonzero().flatten().tolist() == [first - 1, first + second - 1]
    assert paid[[first - 1, first + second - 1]].tolist() == [2.0, 3.0]


# ---------------------------------------------------------------- TRL's own ways
def test_trls_way_of_asking_for_the_reward_stays(tmp_path):
    trainer, batch = play(tmp_path)
    assert trainer.reward_func_names == ["Counter"]
    assert trainer._scores_per_reward.flatten().tolist() == [5, 1, 0, 9]
    named = make_trainer(tmp_path, WORDS, [Environment()])
    assert named.reward_func_names == ["environment"] and len(named.reward_weights) == 1


def test_an_async_environment(tmp_path):
    class Later(Counter):
        async def add(self, number: int) -> str:
            """Adds a number.

            Args:
                number: What to add.
            """
            return Counter.add(self, number)

        async def get_reward(self) -> float:
            assert threading.current_thread() is threading.main_thread()
            return Counter.get_reward(self)

    spec = {"name": "environment", "instant": "turns"}
    trainer, batch = play(tmp_path, spec, environment=Later, lam=0.0)
    paid = batch["advantages"][0][batch["loss_mask"][0].bool()]
    assert paid[paid != 0].tolist() == [2.0, 3.0]


def test_several_environments_in_one_run(tmp_path):
    class Doubled(Counter):
        def get_reward(self):
            return 2 * Counter.get_reward(self)

    trainer, _ = play(
        tmp_path,
        {"name": "environment", "instant": "turns"},
        environment={"plain": Counter, "doubled": Doubled},
        columns={"environment": ["doubled", "plain", "plain", "doubled"]},
    )
    assert trainer._scores_per_reward.flatten().tolist() == [10, 1, 0, 18]
    games, played = trainer.play(rows_of(trainer), 0)
    assert [type(game) for game in played] == [Doubled, Counter, Counter, Doubled]
    assert [game.get_reward() for game in played] == [10, 1, 0, 18]


# ---------------------------------------------------------------- held-out games
def test_a_held_out_game_is_the_game_of_training(tmp_path):
    trainer, batch = play(tmp_path, {"name": "environment", "instant": "turns"}, columns={"start": [10, 0, 0, 0]})
    before = (
        [game.total for game in trainer.environments],
        trainer.turns,
        torch.get_rng_state(),
        dict(trainer._metrics),
    )
    games, played = trainer.play(rows_of(trainer), 0)
    after = [game.total for game in trainer.environments], trainer.turns, torch.get_rng_state(), dict(trainer._metrics)
    assert before[:2] == after[:2] and before[3] == after[3] and torch.equal(before[2], after[2])
    assert not {*map(id, played)} & {*map(id, trainer.environments)} and trainer.model.training
    for row, game in enumerate(games):
        real, prompt = (batch[f"{name}_mask"][row].bool() for name in ("completion", "prompt"))
        assert game.prompt_ids == batch["prompt_ids"][row][prompt].tolist()
        assert game.completion_ids == batch["completion_ids"][row][real].tolist()
        assert game.own == batch["loss_mask"][row][real].tolist()
    assert games[0].prompt[-1]["content"] == "Count up from 10."
    assert [message.get("content") for message in games[0].messages] == ["", "12", "", "15", "done"]
    [scores, tokens] = trainer.paid(rows_of(trainer), games, played)[0]
    assert scores == [5.0] and [x for x in tokens if x] == [2.0, 3.0]
    assert [tokens[turn.end] for turn in games[0].turns] == [2.0, 3.0, 0.0]


# ---------------------------------------------------------------- seeds, and going on where a run was stopped
class Dice(Counter):
    """What is added is drawn: from the game's own seed, and from Python's generator."""

    def reset(self, seed: int, **row):
        self.dice = random.Random(seed)
        return Counter.reset(self, seed=seed)

    def add(self, number: int) -> str:
        """Adds a number.

        Args:
            number: What to add.
        """
        return Counter.add(self, number * self.dice.randint(1, 6) + random.randint(0, 9))


def test_a_game_is_made_from_run_step_and_prompt(tmp_path):
    trainer, _ = play(tmp_path, environment=Dice)
    seeds = [game.seed for game in trainer.environments]
    assert len(set(seeds)) == 4 and all(0 <= seed < 2**32 for seed in seeds)
    rollout(trainer)
    assert [game.seed for game in trainer.environments] == seeds
    trainer.state.global_step = 2
    rollout(trainer)
    assert not set(seeds) & {game.seed for game in trainer.environments}
    # a row's own seed stays, and an environment that takes none gets none
    assert environments.seeded({"seed": 5}, Dice(), 1) == {"seed": 5}

    class Plain:
        def reset(self, prompt):
            """Begins."""

    assert environments.seeded({"prompt": "p"}, Plain(), 1) == {"prompt": "p"}


def test_completions_of_one_prompt_play_the_same_game(tmp_path):
    trainer = make_trainer(tmp_path, WORDS, environment=Dice, num_generations=2)
    says(trainer, LINES)
    trainer.model.train()
    rows = [row for row in rows_of(trainer)[:2] for _ in range(2)]
    trainer._generate_and_score_completions(rows)
    seeds = [game.seed for game in trainer.environments]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]


def test_a_resumed_run_plays_the_same_games(tmp_path):
    def train(folder, resume=None, **changes):
        trainer = make_trainer(folder, WORDS, environment=Dice, total_episodes=12, **changes)
        says(trainer, LINES)
        trainer.train(resume_from_checkpoint=resume)
        return toy.learned(trainer)

    whole = train(tmp_path / "whole", save_strategy="steps", save_steps=3)  # in the middle of the second rollout
    for step in (3, 4):
        if (checkpoint := tmp_path / "whole" / f"checkpoint-{step}").exists():
            again = train(tmp_path / "again", str(checkpoint))
            assert all(torch.equal(again[name], weights) for name, weights in whole.items())
    assert (tmp_path / "whole" / "checkpoint-3").exists()


# ---------------------------------------------------------------- refused
def test_a_trainer_with_games_has_no_loop_of_ones_own(tmp_path):
    trainer = make_trainer(tmp_path, WORDS)
    for ask in (lambda: trainer.generate(["p"]), lambda: trainer.step(["p"], [[1]], [0.0])):
        with pytest.raises(UserError, match="plays no games of several turns"):
            ask()


def test_what_does_not_go_together_is_refused(tmp_path):
    row = {"prompt": [{"role": "user", "content": "hello"}]}
    one = {None: Counter}
    plain = toy.config()
    vllm = toy.config()
    vllm.use_vllm, vllm.vllm_server = True, "http://10.0.0.2:8000"
    with pytest.raises(UserError, match="environment and vllm_server: .* leave one of the two out"):
        environments.check(vllm, row, one, False)
    with pytest.raises(UserError, match="tools: the prompts are text, and turns are messages"):
        environments.check(plain, {"prompt": "hello"}, {}, True)
    with pytest.raises(UserError, match="there are a, b, and the first row's column environment is None"):
        environments.check(plain, row, {"a": Counter, "b": Counter}, False)


def test_an_environment_that_cannot_be_copied_is_named(tmp_path):
    class Locked(Counter):
        def __init__(self):
            self.lock = threading.Lock()

    with pytest.raises(UserError, match="Locked cannot be copied .*let its get_reward pay by turns"):
        play(tmp_path, {"name": messages_said, "instant": "turns"}, environment=Locked)
    play(tmp_path, {"name": "environment", "instant": "turns"}, environment=Locked)


def test_what_get_reward_says_is_looked_at(tmp_path):
    class Text(Counter):
        def get_reward(self):
            return "five"

    with pytest.raises(RewardError, match="The environment Text: get_reward returned 'five'"):
        play(tmp_path, {"name": "environment", "instant": "turns"}, environment=Text)
    with pytest.raises(RewardError, match="Reward 'environment': there is no environment"):
        Environment()(prompts=["p"], completions=["c"])


def test_a_critic_with_an_opinion_counts_it_for_own_tokens_alone(tmp_path):
    trainer = make_trainer(
        tmp_path, WORDS, rewards_of({"name": "environment", "instant": "turns"}), lam=1.0, gamma=1.0
    )
    toy.randomize(trainer.model, CRITIC, 3)
    torch.nn.init.normal_(trainer.critic.head.weight)
    says(trainer, LINES)
    batch = rollout(trainer)
    own = batch["loss_mask"][0].bool()
    first, second = (len(ids_of(trainer._tokenizer, text)) for text in LINES["up"][:2])
    at = torch.arange(int(own.sum()))
    to_come = 2.0 * (at < first) + 3.0 * (at < first + second)
    torch.testing.assert_close(batch["advantages"][0][own], to_come - batch["old_values"][0][own])


def test_the_environment_of_the_docs(tmp_path):
    page = Path(__file__).resolve().parents[2] / "docs" / "turns.md"
    written = {}
    exec(re.search(r"```python[^\n]*\n(class Number.*?)```", page.read_text("utf-8"), re.DOTALL)[1], written)
    lines = {"up": ["<call>guess number=4<eos>", "<call>guess number=8<eos>", DONE], "none": [DONE]}
    spec = {"name": "environment", "instant": "turns"}
    columns = {"seed": [7, 7]}  # it thinks of 8
    trainer, batch = play(tmp_path, spec, lines=lines, environment=written["Number"], columns=columns, lam=0.0)
    assert [m["content"] for m in trainer.play(rows_of(trainer), 0)[0][0].messages] == ["", "more", "", "yes", "done"]
    paid = batch["advantages"][0][batch["loss_mask"][0].bool()]
    assert paid[paid.abs() > 1e-6].tolist() == pytest.approx([-0.1, 0.9])
