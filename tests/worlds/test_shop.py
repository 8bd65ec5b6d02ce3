"""The shop: its rules and its referee by pencil, its data, its chat format, and the way from nothing to PPO."""

import json
import random
from collections import Counter

import pytest
import yaml
from trl.chat_template_utils import is_chat_template_prefix_preserving, parse_response, supports_tool_calling

from pipeline import cli
from pipeline.config import DataArguments, ModelArguments, SFTStage
from pipeline.exam.exam import RewardArguments
from pipeline.stages import ppo, sft
from pipeline.worlds import BaseModelSettings, WorldSettings, lower_is_better, referee, shop
from pipeline.worlds.base_model import train_tokenizer
from pipeline.worlds.chat_format import TOOLS, write_out
from pipeline.worlds.prepare import prepare
from pipeline.worlds.shop import clerk
from pipeline.worlds.shop.game import CALL, GOODS, Shop

SMALL = {"world": "shop", "sft_rows": 60, "prompt_rows": 40, "heldout_rows": 20, "pretraining_texts": 300}
SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_layers": 1, "num_heads": 2}
TINY_BASE = BaseModelSettings(**SIZES, context_length=256, pretraining_batch_size=16)


@pytest.fixture(scope="module")
def rows():
    return shop.make_data(WorldSettings(**SMALL))


def visit(order: dict[str, int], stock: dict[str, int]) -> Shop:
    made = Shop()
    made.reset(order=[f"{count} {item}" for item, count in order.items()])
    made._stock = dict.fromkeys(GOODS, 0) | stock
    return made


# --- the rules ---
def test_a_visit_by_pencil():
    """Of 2 rope and 2 tea, 1 rope and 3 tea are there: 3 pieces can be had, each a third; every call costs CALL."""
    game = visit({"rope": 2, "tea": 2}, {"rope": 1, "tea": 3, "salt": 4})
    assert game.get_reward() == 0.0
    assert game.buy("rope", 2) == "only 1 left" and game.get_reward() == pytest.approx(-CALL)
    assert game.buy("rope", 1) == "sold 1" and game.get_reward() == pytest.approx(1 / 3 - 2 * CALL)
    assert game.buy("rope", 1) == "sold out"
    assert game.ask("tea") == "3 left" and game.ask("gold") == "no such thing"
    assert game.buy("tea", 2) == "sold 2" and game.get_reward() == pytest.approx(1 - 6 * CALL)
    assert game._measures() == {"won": 1.0, "filled": 1.0, "unwanted": 0.0, "calls": 6.0}
    assert game.buy("tea", 1) == "sold 1"  # one too many
    assert game.buy("gold", 1) == "no such thing" and game.buy("salt", 0) == "no such thing"
    assert game.get_reward() == pytest.approx(1 - 1 / 3 - 9 * CALL)
    assert game._measures() == {"won": 0.0, "filled": 1.0, "unwanted": 1.0, "calls": 9.0}


def test_the_stock_is_the_seeds():
    stocks = [Shop() for _ in range(2)]
    for made in stocks:
        made.reset(order=["2 rope"], seed=7, prompt="ignored")
    assert stocks[0]._stock == stocks[1]._stock
    made.reset(order=["2 rope"], seed=8)
    assert made._stock != stocks[0]._stock
    counts = Counter()
    for seed in range(1000):
        made.reset(order=["2 rope"], seed=seed)
        counts[made._stock["rope"] < 2] += 1
    assert 330 < counts[True] < 470  # two of five


# --- the referee ---
def called(*calls: tuple, answered: bool = True) -> list[dict]:
    messages = []
    for name, arguments in calls:
        function = {"name": name, "arguments": arguments}
        messages.append(
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        )
        messages.append({"role": "tool", "name": name, "content": "what it said does not matter"})
    return messages if answered else messages[:-1]


def test_the_referee_plays_the_calls_again():
    row = {"order": ["1 rope"], "seed": next(s for s in range(99) if _stock(s, "rope") >= 1)}
    good = {"item": "rope", "count": 1}
    assert shop.referee(called(("buy", good)), row)["won"] == 1.0
    assert shop.referee([*called(("buy", good)), {"role": "assistant", "content": "That is all."}], row)["won"] == 1.0
    # a call that nobody answered has not happened; one of a wrong form has done nothing
    assert shop.referee(called(("buy", good), answered=False), row)["won"] == 0.0
    bad = [("buy", {"item": "rope"}), ("buy", {"item": "rope", "count": "x"}), ("sell", good), ("_pieces", {})]
    assert shop.referee(called(*bad), row) == {"won": 0.0, "filled": 0.0, "unwanted": 0.0, "calls": 1.0}
    assert shop.referee(called(*bad, ("buy", good)), row)["won"] == 1.0
    assert referee("shop") is shop.referee and lower_is_better("shop") == {"unwanted", "calls"}


def _stock(seed: int, item: str) -> int:
    made = Shop()
    made.reset(order=[f"1 {item}"], seed=seed)
    return made._stock[item]


def test_a_clerk_without_slips_wins_and_each_slip_shows():
    rng = random.Random(0)
    for seed in range(50):
        order = shop.draw_order(rng)
        won = clerk.play(shop.prompt_of(order), order, seed, rng, clerk.NONE)
        assert shop.referee(won[1:], {"order": order, "seed": seed})["won"] == 1.0
    worse = {"ask": "calls", "miscount": "won", "stray": "unwanted", "forget": "filled", "give_up": "filled"}
    for slip, measure in (worse | {"insist": "calls"}).items():
        sums = []
        for likely in (0.0, 0.6):
            rng = random.Random(1)
            games = [
                (clerk.play([], ["2 rope", "3 tea"], seed, rng, clerk.NONE | {slip: likely})) for seed in range(60)
            ]
            row = {"order": ["2 rope", "3 tea"]}
            sums.append(sum(shop.referee(game, row | {"seed": i})[measure] for i, game in enumerate(games)))
        assert sums[1] > sums[0] if measure in ("calls", "unwanted") else sums[1] < sums[0], slip


# --- data and chat format ---
def test_rows(rows):
    assert {name: len(found) for name, found in rows.items()} == {
        "prompts_heldout": 20,
        "prompts_train": 40,
        "sft_train": 60,
    }
    held_out = {tuple(row["order"]) for row in rows["prompts_heldout"]}
    assert len(held_out) == 20 and not held_out & {tuple(row["order"]) for row in rows["prompts_train"]}
    texts = [text for _, text in shop.pretraining_texts(WorldSettings(**SMALL), rows)]
    prompts = [write_out(row["prompt"]) for row in rows["prompts_heldout"]]
    learned = [write_out(row["messages"]) for row in rows["sft_train"]] + texts
    assert not any(text.startswith(prompt) for text in learned for prompt in prompts)
    assert "seed" not in rows["prompts_train"][0] and rows["prompts_heldout"][0]["seed"] >= 0
    assert rows == shop.make_data(WorldSettings(**SMALL))


def test_calls_are_read_back_from_what_the_template_writes(rows):
    texts = [text for _, text in shop.pretraining_texts(WorldSettings(**SMALL), rows)]
    tokenizer = train_tokenizer(texts, TINY_BASE, TOOLS)
    assert supports_tool_calling(tokenizer) and is_chat_template_prefix_preserving(tokenizer)
    for row in rows["sft_train"]:
        assert tokenizer.apply_chat_template(row["messages"], tokenize=False) == write_out(row["messages"])
    tools = [Shop().ask, Shop().buy]
    said = tokenizer("<call>buy item=rope count=2<call>ask item=tea<eos>", add_special_tokens=False)["input_ids"]
    found = parse_response(tokenizer, said, tokenizer("<user>a<assistant>")["input_ids"], tools)
    calls = [call["function"] for call in found["tool_calls"]]
    assert calls == [
        {"name": "buy", "arguments": {"item": "rope", "count": 2}},
        {"name": "ask", "arguments": {"item": "tea"}},
    ]
    said = tokenizer("That is all.<eos>", add_special_tokens=False)["input_ids"]
    found = parse_response(tokenizer, said, tokenizer("<user>a<assistant>")["input_ids"], tools)
    assert found == {"role": "assistant", "content": "That is all."}


# --- the whole way ---
@pytest.mark.slow
def test_from_nothing_to_ppo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(WorldSettings(**SMALL | {"output_dir": "runs/game"}), TINY_BASE)
    root = cli.__file__.rsplit("/pipeline/", 1)[0]

    def settings(stage: str, **changes) -> list[str]:
        found = yaml.safe_load(open(f"{root}/recipes/game/{stage}.yaml", encoding="utf-8")) | changes
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump(found))
        return ["--config", f"{stage}.yaml", "--use_cpu", "true"]

    sft.run(*cli.parse(ModelArguments, DataArguments, SFTStage, argv=settings("sft")))
    short = {
        "total_episodes": 32,
        "per_device_train_batch_size": 8,
        "num_mini_batches": 2,
        "eval_samples": 6,
        "critic_warmup": 0,
    }
    given = (ModelArguments, DataArguments, RewardArguments, ppo.PPOStage)
    summary = ppo.run(*cli.parse(*given, argv=settings("ppo", **short, critic_layers=1)))
    for figures in (summary["before"], summary["after"], summary["greedy"]["after"]):
        assert {"environment", "won", "filled", "unwanted", "calls"} <= set(figures)
        assert 0 <= figures["won"] <= 1
    samples = [json.loads(line) for line in open("runs/game/ppo/samples.jsonl", encoding="utf-8")]
    for sample in samples:
        for which in ("before", "after"):
            paid = sum(turn["paid"] for turn in sample[f"turns_{which}"])
            assert paid == pytest.approx(sample[f"scores_{which}"]["environment"], abs=1e-5)
    page = open("runs/game/ppo/report.html", encoding="utf-8").read()
    assert 'class="turns"' in page and "Which token earned what" in page
    # what each token earned: the environment's own words have nothing, and the rest is the score
    tokens = [json.loads(line) for line in open("runs/game/ppo/tokens.jsonl", encoding="utf-8")]
    assert tokens
    for row in tokens:
        assert sum(row["scores"]) == pytest.approx(row["score"], abs=1e-4)
        assert "<tool>" not in row["silent"].values() or any(x == 0 for x in row["advantages"])
