"""The ferry desk: its referee by pencil, its data, its chat format, and the loss on the assistant's turns alone."""

import json
import random
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from pipeline import cli
from pipeline.chat.speakers import load_run
from pipeline.chat.terminal_chat import Chat
from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.eval import stage as evaluation
from pipeline.exam.exam import RewardArguments
from pipeline.stages import ppo, reward_model, sft
from pipeline.worlds import BaseModelSettings, WorldSettings, dialogue, lower_is_better, referee
from pipeline.worlds.chat_format import write_out
from pipeline.worlds.dialogue import desk
from pipeline.worlds.dialogue.words import SLOTS, sentences, trip
from pipeline.worlds.prepare import prepare

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_layers": 1, "num_heads": 2}
SMALL = {
    "world": "dialogue",
    "sft_rows": 40,
    "preference_rows": 60,
    "preference_heldout_rows": 20,
    "prompt_rows": 40,
    "heldout_rows": 20,
    "pretraining_texts": 60,
}


@pytest.fixture(scope="module")
def rows():
    return dialogue.make_data(WorldSettings(**SMALL))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`runs/dialogue` with data and a base model of 40 thousand parameters, in the current folder of the test."""
    folder = tmp_path_factory.mktemp("dialogue")
    world = WorldSettings(**SMALL | {"output_dir": str(folder / "runs/dialogue")})
    prepare(world, BaseModelSettings(**SIZES, context_length=320, pretraining_batch_size=8))
    return folder


def customer(*lines: str) -> list[dict]:
    """A conversation of which the customer has the first and the last word."""
    return [{"role": ("user", "assistant")[i % 2], "content": line} for i, line in enumerate(lines)]


# --- the referee ---
# Two seats were asked for, then the island was given; day and boat are open.
OPEN = {
    "prompt": customer(
        "Hello, I would like two seats.",
        "Gladly. I have noted two seats. May I ask for the island?",
        "To Fara, please.",
    ),
    "facts": ["Fara"],
    "seats": "two",
    "place": "Fara",
    "day": "",
    "boat": "",
}
FULL = OPEN | {"facts": ["two", "Fara", "Monday", "noon"], "day": "Monday", "boat": "noon"}
GOOD = "Thank you. I put down a trip to Fara. Which day, please?"
PENCIL = [  # coherent, polite, fresh, fluent
    (OPEN, GOOD, 1, 1, 1, 1),
    (OPEN, "Thank you. This is for two seats to Fara. Could you tell me the boat?", 1, 1, 1, 1),
    (OPEN, "Thank you. I put down a trip to Skell. Which day, please?", 0, 1, 1, 1),
    (OPEN, "Thank you. I put down three seats to Fara. Which day, please?", 0, 1, 1, 1),
    (OPEN, "Thank you. Which day, please?", 0, 1, 1, 1),
    (OPEN, "Thank you. I put down a trip to Fara.", 0, 1, 1, 1),
    (OPEN, "Thank you. I put down a trip to Fara. Which island, please?", 0, 1, 1, 1),
    (OPEN, "Thank you. I put down a trip to Fara. Which day, please? Which boat, please?", 0, 1, 1, 1),
    (OPEN, "OK. I put down a trip to Fara. What day?", 1, 0, 1, 1),
    (OPEN, "Thank you. I put down a trip to Fara. What day?", 1, 0, 1, 1),
    (OPEN, "I put down a trip to Fara. Which day, please?", 1, 0, 1, 1),
    (OPEN, "Gladly. I put down a trip to Fara. Which day, please?", 1, 1, 0, 1),
    (OPEN, "Thank you. Thank you. I put down a trip to Fara. Which day, please?", 1, 1, 0, 1),
    (OPEN, "Thank you. I put down a trip Fara to. Which day, please?", 1, 1, 1, 0),
    (OPEN, "Thank you. I put down a trip to Fara. Which day, please", 0, 1, 1, 0),
    (OPEN, "Thank you. Fara. Which day, please?", 1, 1, 1, 0),
    (OPEN, "", 0, 0, 0, 0),
    (OPEN, "謝謝。法拉。", 0, 0, 1, 0),
    (FULL, "Thank you. That makes two seats to Fara on Monday by the noon boat. Until then.", 1, 1, 1, 1),
    (FULL, "Thank you. That makes two seats to Fara on Monday. Until then.", 0, 1, 1, 1),
    (FULL, "Thank you. That makes two seats to Fara on Monday by the noon boat. Which day, please?", 0, 1, 1, 1),
]


@pytest.mark.parametrize("row, text, coherent, polite, fresh, fluent", PENCIL, ids=[case[1] for case in PENCIL])
def test_the_referee_by_pencil(row, text, coherent, polite, fresh, fluent):
    wanted = {"coherent": coherent, "polite": polite, "fresh": fresh, "fluent": fluent}
    assert referee("dialogue")(text, row) == {"good": coherent * polite * fresh * fluent} | wanted
    assert not lower_is_better("dialogue")


SPOILS = {
    "curt": "polite",
    "wrong": "coherent",
    "forget": "coherent",
    "ask_known": "coherent",
    "ask_nothing": "coherent",
    "echo": "fresh",
    "garble": "fluent",
}


def test_a_clean_answer_is_good_and_each_slip_shows():
    rng = random.Random(5)
    seen = set()
    for _ in range(300):
        visit = desk.draw_visit(rng)
        row = dialogue.prompt_row(visit, rng)
        earlier = [m["content"] for m in row["prompt"] if m["role"] == "assistant"]
        assert all(dialogue.referee(text, row)["good"] for text in row["references"])
        for slip in desk.possible_slips(visit[-1]):
            text = desk.answer(visit[-1], earlier, frozenset([slip]), rng)
            assert dialogue.referee(text, row)[SPOILS[slip]] == 0, (slip, text)
            seen.add(slip)
    assert seen == set(SPOILS) == set(desk.SLIPS)


def test_a_visit_carries_what_was_said():
    rng = random.Random(3)
    visits = [desk.draw_visit(rng) for _ in range(500)]
    assert {len(visit) for visit in visits} == {2, 3, 4}  # an opening leaves two slots open or more
    for visit in visits:
        for before, turn in zip(visit, visit[1:], strict=False):
            assert set(before.known) <= set(turn.known) and turn.facts.items() <= turn.known.items()
            assert (turn.ask is None) == (len(turn.known) == 4) and turn.ask not in turn.known
    kinds = [turn for visit in visits for turn in visit[1:]]
    recalls = [turn for turn in kinds if "did I say" in turn.user or "was it again" in turn.user]
    assert all(len(turn.facts) == 1 for turn in recalls) and 0.1 < len(recalls) / len(kinds) < 0.3
    assert any("changed my mind" in turn.user for turn in kinds)


def test_words():
    assert trip({"day": "Monday", "seats": "one"}) == "one seat on Monday"
    assert trip({"boat": "noon", "place": "Fara"}) == "a trip to Fara by the noon boat"
    assert sentences("Gladly. When? and  on") == ["Gladly.", "When?", "and  on"]


# --- the data ---
def words_of_the_customer(messages: list[dict]) -> tuple[str, ...]:
    return tuple(m["content"] for m in messages if m["role"] == "user")


def test_rows_are_conversations(rows):
    assert {name: len(found) for name, found in rows.items()} == {
        "sft_train": 40,
        "preferences_train": 60,
        "preferences_heldout": 20,
        "prompts_train": 40,
        "prompts_heldout": 20,
    }
    for row in rows["sft_train"]:
        roles = [m["role"] for m in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and set(row) == {"messages"}
    for row in rows["prompts_train"] + rows["preferences_train"]:
        roles = [m["role"] for m in row["prompt"]]
        assert roles == (["user", "assistant"] * 4)[: len(roles)] and roles[-1] == "user"
    for row in rows["prompts_train"]:
        assert len(set(row["references"])) == 4 and row["facts"]
        known = {row[slot] for slot in SLOTS} - {""}
        assert set(row["facts"]) <= known and not known & set(row["unwanted"])
        assert len(known) + len(row["unwanted"]) == 6 + 12 + 7 + 4  # every value there is
    assert len({len(row["prompt"]) for row in rows["prompts_heldout"]}) >= 3


def test_a_held_out_conversation_begins_no_training_row(rows):
    held = {words_of_the_customer(r["prompt"]) for n in ("prompts_heldout", "preferences_heldout") for r in rows[n]}
    assert len(held) == 40
    trained = [row["messages"] for row in rows["sft_train"]]
    trained += [row["prompt"] for name in ("preferences_train", "prompts_train") for row in rows[name]]
    texts = dialogue.pretraining_texts(WorldSettings(**SMALL), rows)
    for _, text in texts:
        trained.append(customer(*(turn for turns in text.split("<user>")[1:] for turn in turns.split("<assistant>"))))
    assert len(trained) == 40 + 60 + 40 + 60
    beginnings = {words[:n] for words in map(words_of_the_customer, trained) for n in range(1, len(words) + 1)}
    assert not held & beginnings


def test_what_is_held_out_is_drawn_no_more():
    first = dialogue._hold_out(30, random.Random(1), set())
    held = set(map(dialogue.key_of, first))
    drawn = dialogue._draw_many(200, random.Random(1), held)
    assert len(drawn) == 200 and len(held) == 30
    assert not held & {dialogue.key_of(visit[:n]) for visit in drawn for n in range(1, len(visit) + 1)}


def test_the_same_seed_makes_the_same_data(rows):
    assert dialogue.make_data(WorldSettings(**SMALL)) == rows
    assert dialogue.make_data(WorldSettings(**SMALL, seed=43)) != rows


def test_the_chosen_answer_has_fewer_faults():
    """By the referee, which knows nothing of how the answers were made."""
    rng, clean = random.Random(2), 0.0
    for _ in range(200):
        visit = desk.draw_visit(rng)
        row, pair = dialogue.prompt_row(visit, rng), dialogue.preference_row(visit, rng)
        row["prompt"] = pair["prompt"]
        chosen, rejected = (dialogue.referee(pair[key][0]["content"], row) for key in ("chosen", "rejected"))
        assert rejected["good"] == 0
        clean += chosen["good"]
    assert clean / 200 == pytest.approx(0.75, abs=0.12)  # four standard errors of 0.03


# --- the chat format ---
def test_the_template_writes_what_the_base_has_read(made):
    tokenizer = AutoTokenizer.from_pretrained(made / "runs/dialogue/base")
    messages = customer("Hello.", "Gladly. When?", "On Monday.", "Thank you.")
    text = "<user>Hello.<assistant>Gladly. When?<eos><user>On Monday.<assistant>Thank you.<eos>"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == write_out(messages) == text
    asked = tokenizer.apply_chat_template(messages[:3], tokenize=False, add_generation_prompt=True)
    assert asked == text.removesuffix("Thank you.<eos>")
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    user, assistant = tokenizer.convert_tokens_to_ids(["<user>", "<assistant>"])
    assert (ids.count(user), ids.count(assistant), ids.count(tokenizer.eos_token_id)) == (2, 2, 2)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Hello.Gladly. When?On Monday.Thank you."
    # the words of the role tokens are learned by no merge
    assert not {"user", "assistant", "<user", "eos>"} & set(tokenizer.get_vocab())
    with pytest.raises(UserError, match=r"does not take these messages \(system\): the roles are user and assistant"):
        data.render({"prompt": [{"role": "system", "content": "Be kind."}]}, "prompts", tokenizer)


class Spy(sft.SFT):
    """The stage's trainer; the last one made can be looked at."""

    last: "Spy"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Spy.last = self


def run(stage: str, *settings: str) -> dict:
    """The stage of the recipe on the small base, as `recipes/<stage>.py` runs it. Returns its summary."""
    run_stage, *classes = STAGES[stage]
    argv = ["--config", str(ROOT / f"recipes/dialogue/{stage}.yaml"), "--use_cpu", "true", *settings]
    return run_stage(*cli.parse(*classes, argv=argv))


STAGES = {
    "sft": (sft.run, ModelArguments, DataArguments, SFTStage),
    "reward": (reward_model.run, ModelArguments, DataArguments, RewardStage),
    "ppo": (ppo.run, ModelArguments, DataArguments, RewardArguments, ppo.PPOStage),
    "eval": (evaluation.run, evaluation.EvalArguments),
}


def test_the_loss_is_on_every_turn_of_the_assistant_and_on_nothing_else(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setattr(sft, "SFT", Spy)
    run("sft", "--output_dir", "runs/dialogue/one_step", "--max_steps", "1", "--save_strategy", "no")
    trainer, tokenizer = Spy.last, Spy.last.processing_class
    given = [json.loads(line) for line in (made / "runs/dialogue/data/sft_train.jsonl").read_text().splitlines()]
    spoken = {write_out(row["messages"]): row["messages"] for row in given}
    assert len(trainer.train_dataset) + len(trainer.eval_dataset) == 40
    for row in trainer.train_dataset:
        messages = spoken[tokenizer.decode(row["input_ids"])]
        learned = [label for label in row["labels"] if label != -100]
        turns = [m["content"] for m in messages if m["role"] == "assistant"]
        assert tokenizer.decode(learned) == "".join(turn + "<eos>" for turn in turns)
        masked = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
        words = [m["content"] for m in messages if m["role"] == "user"]
        assert tokenizer.decode(masked) == "".join(f"<user>{word}<assistant>" for word in words)


# --- from nothing to PPO ---
@pytest.mark.slow
def test_from_nothing_to_ppo_chat_and_evaluation(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    run("sft")
    assert run("reward")["heldout_pairs"] == 20
    # 40 prompts are enough for a rollout of 32
    after = run(
        "ppo", "--num_mini_batches", "2", "--total_episodes", "64", "--eval_samples", "8", "--critic_warmup", "1"
    )["after"]
    assert {*dialogue.HIGHER_IS_BETTER, "learned", "keyword", "bleu", "repetition"} <= set(after)
    sample = json.loads(Path("runs/dialogue/ppo/samples.jsonl").read_text().splitlines()[0])
    assert sample["prompt"][-1]["role"] == "user"
    assert sample["prompt"][-1]["content"] in Path("runs/dialogue/ppo/report.html").read_text()

    chat = Chat(load_run("runs/dialogue/ppo"), Console(width=100))
    capsys.readouterr()
    assert chat.say("Hello, I would like two seats.") and chat.say("To Fara, please.")
    for history in chat.histories:
        assert [m["role"] for m in history] == ["user", "assistant"] * 2
    assert "error" not in capsys.readouterr().out

    measured = run("eval", "--eval_samples", "8")
    assert "coherent" in json.dumps(measured)
