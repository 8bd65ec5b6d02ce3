"""What is paid at which token: placements by pencil, and the sum is the score for every reward."""

import functools
import json
import re
from pathlib import Path

import pytest
from byte_tokens import paid

from rewards import (
    Bleu,
    Instant,
    Keyword,
    Length,
    Mixture,
    Repetition,
    RewardError,
    Rouge,
    Shaped,
    build_rewards,
    load_state,
    log_name_of,
    pays_tokens,
    raw,
    set_training,
    state_of,
    token_rewards_of,
)
from rewards.text import word_ends, words

ROOT = Path(__file__).resolve().parents[2]


def near(*numbers):
    return pytest.approx(list(numbers), abs=1e-9)


def count_a(prompts, completions, **columns):
    return [float(text.count("a")) for text in completions]


# --- words ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text, found",
    [
        ("the cat sat", ["the", "cat", "sat"]),
        (" The cat's off!\n", ["The", "cat's", "off", "!"]),
        ("it is 3.5, well-known ... ok?!", ["it", "is", "3.5", ",", "well-known", "...", "ok", "?!"]),
        ("'tis dogs' -5", ["'", "tis", "dogs", "'", "-", "5"]),
        ("猫坐。我的iPhone", ["猫", "坐", "。", "我", "的", "iPhone"]),
        ("猫,是", ["猫", ",", "是"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),
        ("क्\u200dष می\u200cخواهم", ["क्\u200dष", "می\u200cخواهم"]),
        ("go👩\u200d🚀 👍🏽a", ["go", "👩\u200d🚀", "👍🏽", "a"]),
        (" \n", []),
        ("", []),
    ],
)
def test_where_words_end(text, found):
    ends = word_ends(text)
    assert [text[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)] == found


def test_words_in_lower_case_that_grow():
    assert words("İstanbul ΟΔΟΣ") == ["i̇stanbul", "οδος"]
    assert paid(Length(max=1), "İstanbul", " is", " big") == near(0, -1, 0)
    assert paid(Length(max=2), "İİ", " İİ", " x", " y") == near(0, 0, -0.5, -0.5)


# --- each reward's own placement ------------------------------------------------------------------------------------
def test_a_keyword_pays_once_at_the_token_that_completes_it():
    assert paid(Keyword(wanted="cat"), "the", " cat", " sat") == near(0, 1, 0)
    assert paid(Keyword(wanted=["cat", "sat"]), "the", " c", "at", " sat", " cat", "</s>") == near(
        0, 0, 0.5, 0.5, 0, 0
    )
    assert paid(Keyword(wanted=["cat", "dog"]), "the", " cat") == near(0, 0.5)
    # inside a word it is not said
    assert paid(Keyword(wanted="cat"), "the", " cat", "alog") == near(0, 0, 0)
    assert paid(Keyword(wanted=["cat", "sat"]), "cat sat", " on") == near(1, 0)


def test_modes_pay_at_the_last_and_at_the_first():
    both = ["cat", "sat"]
    assert paid(Keyword(wanted=both, mode="all"), "cat", " and", " sat", ".") == near(0, 0, 1, 0)
    assert paid(Keyword(wanted=both, mode="all"), "cat", " and", " cat") == near(0, 0, 0)
    assert paid(Keyword(wanted=both, mode="any"), "so", " sat", " cat") == near(0, 1, 0)


def test_unwanted_words_cost_where_they_are_said_until_1_is_gone():
    reward = Keyword(wanted="cat", unwanted=["x", "y", "z"], unwanted_cost=0.75)
    assert paid(reward, "x", " cat", " y", " z", " x") == near(-0.75, 1, -0.25, 0, 0)


def test_length_costs_where_the_units_stand():
    assert paid(Length(max=2), "a b", " c", " d", ".", " e", " f") == near(0, -0.5, -0.5, 0, 0, 0)
    assert paid(Length(max=2), "a", " b", " c d", " e") == near(0, 0, -1, 0)
    assert paid(Length(max=4, unit="characters"), "ab", "cd", "ef", "g") == near(0, 0, -0.5, -0.25)
    assert paid(Length(max=2, unit="tokens"), "abcd", "e", "", "f") == near(0, 0, -0.5, -0.5)
    assert paid(Length(max=2.5, unit="tokens"), "a", "b", "c", "d") == near(0, 0, -0.2, -0.4)
    assert paid(Length(min=4), "a", " b", "!") == near(0, 0, -0.5)
    assert paid(Length(min=2, max=3), "a", " b", "!") == near(0, 0, 0)
    # half of the source's four words are free; each further one is a quarter of it: (0.75 - 0.5) / 0.5
    half = Length(max=0.5, column="source")
    assert paid(half, "a", " b", " c", " d", source="w x y z") == near(0, 0, -0.5, -0.5)
    assert paid(half, "a", " b", source="") is None
    # 猫坐在 is three words
    assert paid(Length(max=1), "猫坐", "在") == near(-1, 0)


def test_repetition_costs_where_an_n_gram_comes_again():
    # a b, b a, a b: one of three
    assert paid(Repetition(n=2), "a", " b", " a", " b", "!") == near(0, 0, 0, -1 / 3, 0)
    assert paid(Repetition(n=1), "no", " No", ", no") == near(0, -1 / 3, -1 / 3)


def test_without_alignment_all_is_paid_at_the_last_token():
    rewards = [Keyword(wanted="a"), Length(min=2), Repetition(n=1), Instant(count_a), Instant(Bleu())]
    for reward in rewards:
        (row,) = reward.token_rewards(["p"], ["a a"], [[1, 2, 3]], [None], references=["a b"])
        assert row[:2] == [0, 0] and row[2] == pytest.approx(reward(["p"], ["a a"], references=["a b"])[0])


def test_length_in_tokens_needs_no_alignment():
    (row,) = Length(max=1, unit="tokens").token_rewards(["p"], ["?"], [[7, 8]], [None])
    assert row == near(0, -1)


# --- any reward: differences ----------------------------------------------------------------------------------------
def test_differences_from_word_to_word_and_from_token_to_token():
    # a's so far: "a" 1, "a cat" 2, "a cat sat" 3; "sat" is complete with "t", the full stop adds none
    tokens = ("a", " c", "at", " sa", "t", ".", "")
    assert paid(Instant(count_a), *tokens) == near(1, 0, 1, 0, 1, 0, 0)
    assert paid(Instant(count_a, at="words"), *tokens) == near(1, 0, 1, 0, 1, 0, 0)
    assert paid(Instant(count_a, at="tokens"), *tokens) == near(1, 0, 1, 1, 0, 0, 0)


def test_a_token_with_several_words_is_paid_for_those_that_it_completes():
    # "a cat a" completes "a" and "cat"; its last a belongs to "and"
    assert paid(Instant(count_a), "a cat a", "nd", " so") == near(2, 1, 0)
    assert paid(Instant(count_a, at="tokens"), "a cat a", "nd", " so") == near(3, 0, 0)


def test_the_first_difference_starts_from_zero_and_what_the_last_token_earns_is_the_rest():
    def silent_costs(prompts, completions, **columns):
        return [len(text.split()) - 5.0 for text in completions]

    assert paid(Instant(silent_costs), "one", " two", " three") == near(-4, 1, 1)


def test_a_prefix_without_a_score_changes_nothing():
    def from_two_words(prompts, completions, **columns):
        scores = {1: None, 2: 0.25, 3: float("nan"), 4: 1.0}
        return [scores[len(text.split())] for text in completions]

    assert paid(Instant(from_two_words), "a", " b", " c", " d") == near(0, 0.25, 0, 0.75)
    assert paid(Instant(from_two_words), "a", " b", " c") is None


def test_what_a_prefix_brings_along():
    seen = []

    def spy(prompts, completions, completion_ids, facts, trainer_state, log_metric, **columns):
        log_metric("calls", 1)
        seen.append((prompts, completions, completion_ids, facts, trainer_state))
        return [0.0 for _ in completions]

    said = [{"role": "assistant", "content": "a b"}]
    Instant(spy).token_rewards(
        ["p", "q"],
        ["x y z", said],
        [[1, 2, 3], [4, 5]],
        [[1, 3, 5], [1, 3]],
        facts=[["f"], ["g"]],
        trainer_state="state",
        log_metric=lambda *args: pytest.fail("prefixes are not logged"),
    )
    whole, prefixes = seen  # one call for all prefixes of all rows
    assert whole[:3] == (["p", "q"], ["x y z", said], [[1, 2, 3], [4, 5]])
    first = [{"role": "assistant", "content": "a"}]
    assert prefixes[:3] == (["p", "p", "q"], ["x", "x y", first], [[1], [1, 2], [4]])
    assert prefixes[3:] == ([["f"], ["f"], ["g"]], "state")


def test_many_prefixes_go_in_several_calls(monkeypatch):
    monkeypatch.setattr("rewards.instant.PREFIXES_A_CALL", 2)
    assert paid(Instant(count_a), "a", " a", " b", " a", " a", " b") == near(1, 1, 0, 1, 1, 0)


def test_bleu_pays_for_the_n_grams_that_a_word_completes():
    # "the cat sat" has 3 + 2 + 1 = 6 n-grams; "the" is one, "cat" brings "cat" and "the cat", "sat" three
    assert paid(Instant(Bleu()), "the", " cat", " sat", references="the cat sat") == near(1 / 6, 2 / 6, 3 / 6)
    # a wrong word brings nothing; the last token gets BLEU less GLEU so far
    text, reference = "the dog sat", ["the cat sat"]
    rest = Bleu().score(text, reference) - 1 / 6
    assert paid(Instant(Bleu()), "the", " dog", " sat", references=reference) == near(1 / 6, 0, rest)
    # beyond the reference (1 n-gram; the text has 1, then 3) words cost: 1, then 1/3
    row = paid(Instant(Bleu()), "the", " cat", " ran", references="the")
    assert row[:2] == near(1, 1 / 3 - 1)


def test_bleus_potential_is_the_best_over_the_references_and_reads_chinese():
    reward = Bleu(lowercase=True)
    assert reward.potential(["p"], ["The cat"], references=[["a dog ran", "the cat sat"]]) == near(3 / 6)
    assert reward.potential(["p"] * 2, ["x", ""], references=[None, "x"]) == [None, 0.0]
    assert paid(Instant(Bleu()), "猫", "坐", references="猫坐") == near(1 / 3, 2 / 3)


def test_rouge_pays_by_its_own_score():
    # f of 1/1 and 1/3: 1/2; of 2/2 and 2/3: 4/5; then 1
    assert paid(Instant(Rouge("rouge1")), "the", " cat", " sat", references="the cat sat") == near(0.5, 0.3, 0.2)


# --- wrapped rewards ------------------------------------------------------------------------------------------------
def test_a_clipped_reward_pays_what_the_clip_takes_at_the_last_token():
    reward = Shaped(Instant(Keyword(wanted=["a", "b"])), clip=[0, 0.75])
    assert paid(reward, "a", " b", " c") == near(0.5, 0.5, -0.25)


@pytest.mark.parametrize("order", [lambda r, **o: Shaped(Instant(r), **o), lambda r, **o: Instant(Shaped(r, **o))])
def test_a_normalized_reward_pays_scaled_tokens_and_the_shift_at_the_last(order):
    reward = order(Keyword(wanted=["a", "b"]), normalize="running")
    reward(["p"] * 2, ["a b", "x"])  # mean 0.5, standard deviation 0.5
    set_training(reward, False)
    assert paid(reward, "a", " c") == near(1, -1)
    assert reward(["p"], ["a c"]) == [0.0]
    assert reward.instant


def test_token_rewards_leave_the_running_statistics_alone():
    shaped = Shaped(count_a, normalize="running")
    mixture = Mixture([{"name": shaped, "log_name": "x"}, {"name": "keyword", "wanted": "a", "instant": True}])
    for reward in (Instant(shaped), mixture, Instant(mixture)):
        reward(["p"] * 2, ["a", "b a a"])
        before = vars(shaped.stats).copy()
        rows = (["p"] * 2, ["a", "b a a"], [[1], [2, 3, 4]], [[1], [1, 3, 5]])
        rewards = token_rewards_of(reward, *rows)
        assert vars(shaped.stats) == before and shaped.training
        set_training(reward, False)
        assert [sum(row) for row in rewards] == pytest.approx(reward(["p"] * 2, ["a", "b a a"]))
        set_training(reward, True)


def test_a_mixture_pays_each_part_in_its_own_way():
    parts = [
        {"name": "keyword", "wanted": "cat", "weight": 2, "instant": True},
        {"name": "length", "max": 2},
        {"name": lambda prompts, completions, **c: [None] * len(completions), "log_name": "none"},
    ]
    mixture = Mixture(parts)
    assert pays_tokens(mixture) and not pays_tokens(Mixture(parts[1:]))
    # the keyword at its token; three words are one too many, -1/2 at the end
    assert paid(mixture, "cat", " and", " so", "") == near(2, 0, 0, -0.5)
    assert paid(Mixture([{"name": parts[2]["name"], "log_name": "none"}, parts[0]]), "a", " cat") == near(0, 2)
    # asked as a whole, every part pays at its tokens
    assert paid(Instant(mixture), "cat", " and", " so") == near(2, 0, -0.5)
    # but one with a form of its own keeps it
    own = Mixture([{"name": count_a, "instant": "tokens"}])
    assert paid(Instant(own, at="words"), "a", "a", " a") == near(1, 1, 1)
    nothing = Mixture([dict(parts[0], wanted=[], column="facts")])
    assert paid(nothing, "a", facts=[]) is None


def test_own_objects_pay_as_they_like_and_wrong_shapes_are_named():
    class Own:
        def __init__(self, rows):
            self.rows = rows

        def __call__(self, prompts, completions, **columns):
            return [3.0]

        def token_rewards(self, prompts, completions, completion_ids, token_ends, **columns):
            return self.rows

    rows = (["p"], ["a b"], [[1, 2]], [[1, 3]])
    ((reward, _),) = build_rewards([{"name": Own([[1.0, 2.0]]), "clip": [0, 2]}])
    assert pays_tokens(reward) and reward.token_rewards(*rows) == [[1.0, 1.0]]
    assert token_rewards_of(count_a, *rows) == [[0.0, 1.0]]
    with pytest.raises(RewardError, match="'Own'.*3 numbers for the 2 tokens of completion 0"):
        token_rewards_of(Own([[1.0, 1.0, 1.0]]), *rows)
    with pytest.raises(RewardError, match="'Own'.*2 scores for 1 completions"):
        token_rewards_of(Own([None, None]), *rows)


# --- YAML -----------------------------------------------------------------------------------------------------------
def test_instant_in_yaml_with_the_other_options():
    spec = "{name: keyword, wanted: [a, b], instant: true, weight: 2, clip: [0, 0.75], log_name: said}"
    ((reward, weight),) = build_rewards([spec])
    assert (log_name_of(reward), weight, type(raw(reward))) == ("said", 2, Keyword)
    assert pays_tokens(reward) and paid(reward, "a", " b") == near(0.5, 0.25)
    assert reward(["p"], ["a b"]) == [0.75] and raw(reward)(["p"], ["a b"]) == [1.0]


def test_the_forms_in_yaml():
    # "a catalog" does not say "cat", but it does up to the second token
    tokens = ("a", " cat", "alog")
    rows = {}
    for form in ("true", "words", "tokens", "false"):
        ((reward, _),) = build_rewards([f"{{name: keyword, wanted: cat, instant: {form}}}"])
        rows[form] = paid(reward, *tokens) if pays_tokens(reward) else None
    assert rows == {"true": near(0, 0, 0), "words": near(0, 0, 0), "tokens": near(0, 1, -1), "false": None}


def test_instant_for_functions_mixtures_and_wrong_values():
    specs = [{"name": count_a, "instant": True}, {"name": count_a, "instant": "words"}]
    built = build_rewards(specs)
    assert [log_name_of(r) for r, _ in built] == ["count_a", "count_a_2"]
    assert paid(built[1].reward, "a", " a") == near(1, 1) and raw(built[0].reward) is count_a
    ((mixture, _),) = build_rewards([{"name": "mixture", "instant": True, "rewards": specs[:1]}])
    assert type(raw(mixture)) is Mixture and paid(mixture, "a", " a") == near(1, 1)
    with pytest.raises(RewardError, match="'bleu'.*instant is 'word'.*did you mean 'words'"):
        build_rewards([{"name": "bleu", "instant": "word"}])
    with pytest.raises(RewardError, match="at is 'word'"):
        Instant(count_a, at="word")


def test_an_async_function_is_refused():
    async def slow(prompts, completions, **columns):
        return [0.0]

    for name in (slow, functools.partial(slow), Mixture([slow])):
        with pytest.raises(RewardError, match="instant is not for async functions"):
            build_rewards([{"name": name, "instant": True, "log_name": "slow"}])


def test_state_goes_through_the_wrapper():
    specs = [{"name": "keyword", "wanted": "a", "normalize": "running", "instant": True}]
    part = {"name": "mixture", "instant": True, "rewards": [dict(specs[0], log_name="inner")]}
    before, after = build_rewards([*specs, part]), build_rewards([*specs, part])
    for reward, _ in before:
        reward(["p"] * 2, ["a", "b"])
    stats = {"stats": {"count": 2, "mean": 0.5, "m2": 0.5}}
    assert state_of(before) == {"keyword": stats, "mixture": {"inner": stats}}
    load_state(after, json.loads(json.dumps(state_of(before))))
    assert state_of(after) == state_of(before)
    direct = Instant(Shaped(Keyword(wanted="a"), normalize="running"))
    direct.load_state_dict(stats)
    assert direct.state_dict() == stats


def test_set_training_reaches_every_running_mean():
    inner = Shaped(count_a, normalize="running")
    for reward in (inner, Instant(inner), Mixture([inner]), Shaped(Instant(Mixture([inner])), clip=[0, 1])):
        set_training(reward, False)
        assert not inner.training
        set_training(reward, True)
        assert inner.training
    set_training(count_a, False)  # nothing to set


# --- the sum --------------------------------------------------------------------------------------------------------


def test_the_example_in_the_documents_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/rewards.md").read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "token_rewards" in block]
    exec(block, {})
