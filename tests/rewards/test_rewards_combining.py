"""Gates, products and thresholds, with numbers by hand."""

import pytest

from rewards import Instant, Mixture, RewardError, build_rewards, every_in, log_name_of, raw, token_rewards_of

PROMPTS, TEXTS = ["p"] * 4, ["a", "b", "c", "d"]
# a function of these scores for the texts a, b, c, d, however few of them it is asked about
ROWS = dict(zip("abcd", range(4), strict=True))


def scoring(*scores, asked=None):
    def score(prompts, completions, **columns):
        if asked is not None:
            asked.extend(completions)
        return [scores[ROWS[text]] for text in completions]

    return score


def build(**spec):
    ((reward, _),) = build_rewards([spec])
    return reward


def test_a_gate_pays_its_rewards_where_the_condition_is_met():
    asked, logged = [], {}
    gate = build(
        name="gate",
        condition=scoring(1.0, 0.5, None, 2.0),
        rewards=[{"name": scoring(3.0, 5.0, 7.0, None, asked=asked), "weight": 2}, scoring(0.25, 0, 0, 0.75)],
        otherwise=-1,
    )
    # row 1: 2 * 3 + 0.25; row 2 not met; row 3: nobody knows; row 4: the first reward has no score
    assert gate(PROMPTS, TEXTS, log_metric=logged.__setitem__) == [6.25, -1.0, None, 0.75]
    assert asked == ["a", "d"]
    assert logged == {"gate/met": pytest.approx(2 / 3), "gate/score_2": 3.0, "gate/score_3": 0.5}


def test_a_gate_asks_about_the_right_rows_of_every_column():
    seen = []

    def reward(prompts, completions, fact, completion_ids, step, **columns):
        seen.append((prompts, completions, fact, completion_ids, step))
        return [1.0] * len(prompts)

    gate = build(name="gate", condition=scoring(0, 1, 0, 1), rewards=[reward])
    columns = {"fact": [1, 2, 3, 4], "completion_ids": [[1], [2], [3], [4]], "step": 7}
    assert gate(["p", "q", "r", "s"], TEXTS, **columns) == [0, 1, 0, 1]
    assert seen == [(["q", "s"], ["b", "d"], [2, 4], [[2], [4]], 7)]


def test_a_gate_that_nothing_passes_asks_nothing():
    asked = []
    gate = build(name="gate", condition=scoring(0, 0, 0, 0), rewards=[scoring(1, 1, 1, 1, asked=asked)])
    assert gate(PROMPTS, TEXTS) == [0.0] * 4 and asked == []


def test_a_product_is_the_product_and_none_where_a_factor_is_missing():
    logged = {}
    product = build(name="product", rewards=[scoring(0.5, 0.0, None, 2.0), scoring(0.5, 3.0, 1.0, 0.25)])
    assert product(PROMPTS, TEXTS, log_metric=logged.__setitem__) == [0.25, 0.0, None, 0.5]
    assert logged == {"product/score": pytest.approx(2.5 / 3), "product/score_2": 4.75 / 4}


def test_a_threshold_is_met_from_its_value_on():
    reward = build(name=scoring(0.3, 0.1 + 0.2, 0.29, None), at_least=0.3, log_name="enough")
    assert reward(PROMPTS, TEXTS) == [1.0, 1.0, 0.0, None] and log_name_of(reward) == "enough"
    # a verifier may say 0.9999999999999999 of what is not quite right
    assert build(name=scoring(6 * (1 / 6), sum([1 / 6] * 6), 0, 0), at_least=1)(PROMPTS, TEXTS)[:2] == [1.0, 0.0]
    assert raw(reward) is reward  # reports show what is paid


def test_threshold_and_gate_in_yaml():
    gate = build(
        name="gate",
        condition={"name": "length", "max": 3, "at_least": -0.5},
        rewards=["{name: keyword, wanted: [cat]}"],
    )
    # 4 words: (4 - 3) / 3 too long, -0.33; 6 words: -1
    assert gate(["p"] * 3, ["a cat sat there", "a cat sat there and slept", "a dog"]) == [1.0, 0.0, 0.0]


CHARS = "the cat sat"
IDS, ENDS = [[1, 2, 3, 4]], [[3, 7, 11, 11]]  # the | cat| sat|</s>


def tokens(reward):
    return token_rewards_of(reward, ["p"], [CHARS], IDS, ENDS)[0]


def test_a_threshold_pays_at_the_token_that_reaches_it():
    words = {"name": "keyword", "wanted": ["cat", "sat"], "instant": True}
    assert tokens(build(**words)) == [0, 0.5, 0.5, 0]
    assert tokens(build(**words, at_least=1)) == [0, 0, 1, 0]
    assert tokens(build(**words, at_least=0.5)) == [0, 1, 0, 0]
    assert tokens(build(**words, at_least=0)) == [1, 0, 0, 0]
    # 0 until "sat" is too much: 1 from the first token on, taken back at the third
    assert tokens(build(name="length", max=2, instant=True, at_least=0)) == [1, 0, -1, 0]


def test_a_gate_pays_at_the_tokens_of_its_rewards_or_at_the_last_one():
    inner = [{"name": "keyword", "wanted": ["cat"], "instant": True}, {"name": "length", "max": 2}]
    met = {"name": "gate", "condition": {"name": "keyword", "wanted": ["sat"]}, "rewards": inner}
    unmet = met | {"condition": {"name": "keyword", "wanted": ["dog"]}, "otherwise": -2}
    assert tokens(build(**met)) == [0, 1, 0, -0.5]
    assert tokens(build(**unmet)) == [0, 0, 0, -2]
    # instant on the gate itself: also length pays where it costs
    assert tokens(build(**met, instant=True)) == [0, 1, -0.5, 0]
    assert tokens(Instant(build(**unmet))) == [0, 0, 0, -2]


def test_a_product_pays_by_differences():
    parts = [{"name": "keyword", "wanted": ["cat", "sat"]}, {"name": "keyword", "wanted": ["sat", "the"]}]
    # after each word: 0 * 1/2, 1/2 * 1/2, 1 * 1
    assert tokens(build(name="product", rewards=parts, instant="words")) == [0, 0.25, 0.75, 0]
    assert tokens(build(name="product", rewards=parts)) == [0, 0, 0, 1]


def test_what_is_inside_is_found_and_keeps_its_state():
    spec = {"name": "gate", "condition": "{name: bleu, at_least: 0.2}", "rewards": ["rougeL"], "normalize": "running"}
    reward = build(**spec)
    assert [type(part).__name__ for part in every_in(reward)] == ["Shaped", "Gate", "Threshold", "Bleu", "Rouge"]
    nested = {"name": scoring(1, 3, 1, 3), "normalize": "running", "log_name": "x"}
    mixture = Mixture([{"name": "mixture", "rewards": [nested], "log_name": "inner"}])
    mixture(PROMPTS, TEXTS)
    assert mixture.state_dict() == {"inner": {"x": {"stats": {"count": 4, "mean": 2.0, "m2": 4.0}}}}


async def later(prompts, completions, **columns):
    return [1.0] * len(prompts)


NORMALIZED = {"name": "bleu", "normalize": "running"}
LOOP: list = []
LOOP.append({"name": "mixture", "rewards": LOOP})  # as YAML's `&a [{name: mixture, rewards: *a}]`


@pytest.mark.parametrize(
    "spec, words",
    [
        ({"name": "gate", "rewards": ["bleu"]}, "'gate' needs the option 'condition'"),
        ({"name": "gate", "condition": "bleu"}, "'gate' needs the option 'rewards'"),
        ({"name": "gate", "condition": "bleu", "rewards": []}, "at least one reward under `rewards`"),
        ({"name": "gate", "condition": None, "rewards": ["bleu"]}, "None does not name a reward"),
        ({"name": "gate", "condition": "bleu", "rewards": 5}, "rewards is 5; give a list of rewards"),
        ({"name": "product", "rewards": True}, "rewards is True; give a list of rewards"),
        ({"name": "mixture", "rewards": 1.5}, "rewards is 1.5; give a list of rewards"),
        ({"name": "mixture", "rewards": LOOP}, "inside each other too deeply, or one inside of itself"),
        ({"name": "bleu", "log_name": "x" * 20_000}, "log_name is 'xxx.*; give a name of up to 100 characters"),
        ({"name": "bleu", "log_name": ["x"]}, "log_name is .'x'.; give a name"),
        ({"name": "bleu", "instant": "x" * 20_000}, "instant is 'xxx.*; give true or false"),
        ({"name": "bleu", "clip": ["x" * 20_000]}, "clip is"),
        ({"name": "gate", "condition": "bleu", "rewards": ["blue"]}, "did you mean 'bleu'"),
        ({"name": "gate", "condition": {"name": "bleu", "weight": 2}, "rewards": ["bleu"]}, "has no weight"),
        ({"name": "gate", "condition": "bleu", "rewards": ["bleu"], "otherwise": "x"}, "otherwise is 'x'"),
        ({"name": "gate", "condition": "bleu", "rewards": [NORMALIZED]}, "'bleu_2' has normalize.*on 'gate'"),
        ({"name": "gate", "condition": later, "rewards": ["bleu"]}, "'later' is async"),
        ({"name": "product", "rewards": [{"name": "bleu", "weight": 2}]}, "'bleu' has the weight 2; set weight on"),
        ({"name": "product", "rewards": [{"name": "bleu", "instant": True}]}, "set instant on the product"),
        ({"name": "product", "rewards": [NORMALIZED]}, "'bleu' has normalize"),
        ({"name": "bleu", "at_least": "much"}, "at_least is 'much'"),
        ({"name": "bleu", "at_least": 0.5, "clip": [0, 1]}, "at_least gives 0 or 1; leave clip out"),
        ({"name": "mixture", "rewards": [NORMALIZED], "at_least": 0.5}, "normalize leaves none"),
        ({"name": later, "at_least": 0.5}, "not for async"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_scored(spec, words):
    with pytest.raises(RewardError, match=words) as caught:
        build_rewards([spec])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_negative_factor_is_refused_when_it_comes():
    product = build(name="product", rewards=["{name: length, max: 1}", "{name: keyword, wanted: [a]}"])
    with pytest.raises(RewardError, match="'product': 'length' scored -1, .*clip from 0 up"):
        product(["p"], ["a b c"])
