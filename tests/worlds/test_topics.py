"""The Chinese topics: grammar and referee against pencil values, data, and the rewards of the recipe on such text."""

import random
from pathlib import Path

import pytest
import yaml
from tokenizers.pre_tokenizers import ByteLevel

from pipeline.errors import UserError
from pipeline.worlds import WorldSettings, lower_is_better, topics
from pipeline.worlds.base import BaseModelSettings
from pipeline.worlds.base_model import train_tokenizer
from pipeline.worlds.topics.grammar import ANGLES, KEYWORDS, Topic, parses, sentence
from pipeline.worlds.topics.grammar import sentences as clean
from pipeline.worlds.topics.noise import HUMAN, MESSY, Noise, write
from rewards import Keyword, Repetition, build_rewards, token_ends

RECIPE = Path(__file__).resolve().parents[2] / "recipes/topics"
SMALL = {"sft_rows": 60, "prompt_rows": 50, "heldout_rows": 40, "pretraining_texts": 200}
ROW = Topic("医疗", "阅读影像", "病历", "好处")
OPENING = "说到医疗，人们首先想到阅读影像"


@pytest.fixture(scope="module")
def data():
    return topics.make_data(WorldSettings(world="topics", **SMALL))


@pytest.mark.parametrize(
    "text, good",
    [
        (OPENING, True),
        ("如今，医生常常用深度学习来阅读影像", True),
        ("深度学习能逐层提取特征，减少了差错", True),
        ("深度学习能读懂文字，减少了差错", False),  # that is what 自然语言处理 does
        ("主要的技术包括机器学习、深度学习和自然语言处理", True),
        ("主要的技术包括机器学习、机器学习和自然语言处理", False),
        ("机器学习和机器学习让阅读影像更快", False),
        ("主要的技术包括机器学习、深度学习、神经网络和自然语言处理", False),  # of at most three
        ("关键词：机器学习、深度学习", False),
        ("深度学习深度学习", False),
        (OPENING[:-1], False),
        ("", False),
    ],
)
def test_what_the_grammar_can_say(text, good):
    assert parses(text) is good


# Worked by hand for ROW. Letters and keyword characters: 说到医疗人们首先想到阅读影像 14, 0;
# 深度学习能逐层提取特征减少了差错 16, 4; 司机每天都要规划路线压力不小 14, 0.
PENCIL = {
    f"{OPENING}。深度学习能逐层提取特征，减少了差错。": (1.0, 1.0, 4 / 30),
    f"{OPENING}。{OPENING}。": (0.5, 1.0, 0.0),  # said before
    f"{OPENING}。深度学习能": (0.5, 1.0, 4 / 19),  # not finished
    f"{OPENING}。司机每天都要规划路线，压力不小。": (1.0, 0.5, 0.0),  # 2 words of the row, 2 of another trade
    "司机每天都要规划路线，压力不小。": (1.0, 0.0, 0.0),
    "机器学习、深度学习、自然语言处理": (0.0, 0.0, 1.0),
    "": (0.0, 0.0, 0.0),
    "。": (0.0, 0.0, 0.0),
    "\ufffd\ufffd深": (0.0, 0.0, 0.0),  # half a character
}


@pytest.mark.parametrize("text", PENCIL)
def test_the_referee_by_pencil(text):
    judged = topics.referee(text, ROW._asdict())
    assert tuple(judged.values()) == pytest.approx(PENCIL[text])
    assert judged.keys() == topics.HIGHER_IS_BETTER.keys() and lower_is_better("topics") == {"stuffed"}


def test_the_referee_likes_what_the_grammar_says_and_sees_every_slip():
    rng = random.Random(0)
    for topic in rng.choices(topics.topics(), k=150):
        for pattern in ANGLES[topic.angle]:
            assert parses(sentence(pattern, topic, rng).removesuffix("。"))
        judged = topics.referee("".join(clean(topic, rng)), topic._asdict())
        assert judged["grammar"] == judged["on_topic"] == 1.0 and judged["stuffed"] <= 0.5
    for slip, measure in {"repeat": "grammar", "tags": "grammar", "truncate": "grammar", "stray": "on_topic"}.items():
        drawn = rng.choices(topics.topics(), k=60)
        judged = [topics.referee(write(t, Noise(**{slip: 1.0}), rng), t._asdict())[measure] for t in drawn]
        assert sum(judged) / len(judged) < 0.9, slip


def test_what_is_held_out_is_in_no_training_file(data):
    assert {name: len(rows) for name, rows in data.items()} == {
        "prompts_heldout": 40,
        "prompts_train": 50,
        "sft_train": 60,
    }
    held = {row["prompt"] for row in data["prompts_heldout"]}
    assert len(held) == 40
    assert not held & {row["prompt"] for name in ("prompts_train", "sft_train") for row in data[name]}
    texts = topics.pretraining_texts(WorldSettings(world="topics", **SMALL), data)
    firsts = {first for first, _ in texts}
    assert len(texts) == 200 and "" in firsts and not held & firsts
    every = WorldSettings(world="topics", **SMALL | {"pretraining_texts": 4400})
    assert len({first for first, _ in topics.pretraining_texts(every, data)}) == 480 - 40 + 1  # all others, and bare


def test_the_same_seed_makes_the_same_data(data):
    assert topics.make_data(WorldSettings(world="topics", **SMALL)) == data
    assert topics.make_data(WorldSettings(world="topics", **SMALL, seed=43)) != data


def test_there_must_be_topics_left_to_train_on():
    with pytest.raises(UserError, match="heldout_rows is 480, but the world topics has 480 topics"):
        topics.make_data(WorldSettings(world="topics", **SMALL | {"heldout_rows": 480}))


def test_people_leave_room_and_hint_at_stuffing():
    rng = random.Random(1)
    drawn = rng.choices(topics.topics(), k=1500)
    human = [topics.referee(write(t, HUMAN, rng), t._asdict())["grammar"] for t in drawn]
    assert 0.85 < sum(human) / len(human) < 0.95
    assert any("关键词：" in write(t, MESSY, rng) for t in drawn[:200])


@pytest.mark.parametrize("name", ["ppo", "ppo_stuffing"])
def test_the_recipe_rewards_the_keywords_of_the_world(name):
    settings = yaml.safe_load((RECIPE / f"{name}.yaml").read_text("utf-8"))
    [keyword] = [spec for spec in settings["rewards"] if spec["name"] == "keyword"]
    assert keyword["wanted"] == list(KEYWORDS)
    assert {"机器学习", "深度学习", "自然语言处理"} <= set(KEYWORDS)
    # 3 of 12 without a space around them, 12 of 12 in a heap; 深度学 is none
    text = "如今，医生常常用深度学习来阅读影像。神经网络和机器学习让阅读影像更快。"
    [reward] = build_rewards([keyword])
    assert reward.reward([""] * 3, [text, "".join(KEYWORDS), "深度学"]) == pytest.approx([0.25, 1.0, 0.0])


def test_repetition_counts_characters():
    """The five six-grams of 深度学习深度学习深度 are those of its first nine characters and then the first again."""
    assert Repetition(n=6).score("深度学习深度学习") == 0.0
    assert Repetition(n=6).score("深度学习深度学习深度") == pytest.approx(-1 / 5)


def test_a_keyword_is_paid_at_the_token_that_brings_its_last_byte(data):
    """With byte-level BPE a token may hold half a character, and what is sampled may be no character at all."""
    tokenizer = train_tokenizer([row["completion"] for row in data["sft_train"]], BaseModelSettings(vocab_size=400))
    letters = ByteLevel(add_prefix_space=False).pre_tokenize_str("用深度学习。")
    one_byte_each = tokenizer.convert_tokens_to_ids([letter for piece, _ in letters for letter in piece])
    assert len(one_byte_each) == 6 * 3
    reward = Keyword(wanted=["深度学习", "机器学习"])
    [ends] = token_ends([one_byte_each], ["用深度学习。"], tokenizer)
    assert ends == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6]
    [paid] = reward.token_rewards([""], ["用深度学习。"], [one_byte_each], [ends])
    assert paid == [0.0] * 14 + [0.5] + [0.0] * 3
    rng, broken = random.Random(0), 0
    for _ in range(50):
        ids = rng.choices(range(3, len(tokenizer)), k=8) + tokenizer("机器学习")["input_ids"] + [rng.randrange(3, 259)]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        broken += "\ufffd" in text
        [paid] = reward.token_rewards([""], [text], [ids], token_ends([ids], [text], tokenizer))
        assert sum(paid) == pytest.approx(reward([""], [text])[0]) and len(paid) == len(ids)
    assert broken > 25
