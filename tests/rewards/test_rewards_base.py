"""How a reward is named, checked and wrapped."""

import functools
import inspect
import math
import statistics
import sys

import pytest
from trl.trainer.utils import get_callable_name

from rewards import (
    Keyword,
    Mixture,
    Reward,
    RewardError,
    Shaped,
    build_rewards,
    load_state,
    log_name_of,
    raw,
    state_of,
    text_of,
)
from rewards.build import REGISTRY

PROMPTS = ["p", "p", "p"]
COMPLETIONS = ["a cat", "a dog", ""]


def longer(prompts, completions, scale=1.0, **columns):
    return [scale * len(text) for text in completions]


def names_of(specs):
    return [log_name_of(reward) for reward, _ in build_rewards(specs)]


# --- text -----------------------------------------------------------------------------------------------------------
def test_text_of_strings_messages_blocks_and_nothing():
    assert text_of("as it is ") == "as it is "
    assert text_of([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]) == "a\nb"
    blocks = [{"type": "text", "text": "x"}, {"type": "image"}, {"type": "text", "text": "y"}]
    assert text_of([{"role": "assistant", "content": blocks}]) == "xy"
    assert text_of([{"role": "assistant", "content": None}]) == text_of(None) == text_of([]) == ""


# --- specs ----------------------------------------------------------------------------------------------------------
def test_a_mapping_a_string_a_bare_name_and_a_function_are_all_specs():
    built = build_rewards([{"name": "bleu", "weight": 0.5}, "{name: keyword, column: facts}", "rougeL", longer])
    assert [type(r).__name__ for r, _ in built] == ["Bleu", "Keyword", "Rouge", "function"]
    assert [w for _, w in built] == [0.5, 1.0, 1.0, 1.0]
    assert [get_callable_name(r) for r, _ in built] == ["bleu", "keyword", "rougeL", "longer"]


def test_building_leaves_the_spec_as_it_was():
    spec = {"name": "bleu", "weight": 2, "clip": [0, 1]}
    build_rewards([spec])
    assert spec == {"name": "bleu", "weight": 2, "clip": [0, 1]}


def test_yaml_numbers_like_1e_minus_4_are_numbers():
    # YAML 1.1 reads 1e-4 as a string
    assert build_rewards(["{name: bleu, weight: 1e-4}"])[0].weight == 1e-4


def test_names_in_the_logs_are_unique_or_given():
    specs = [{"name": "keyword", "wanted": w} for w in "abc"]
    assert names_of(specs) == ["keyword", "keyword_2", "keyword_3"]
    assert names_of([dict(specs[0], log_name="polite"), specs[1]]) == ["polite", "keyword"]
    with pytest.raises(RewardError, match="'x'.*log_name"):
        build_rewards([dict(spec, log_name="x") for spec in specs[:2]])


@pytest.mark.parametrize(
    "spec, parts",
    [
        ("bleuu", ["no reward 'bleuu'", "did you mean 'bleu'", "keyword"]),
        ("rougel", ["did you mean 'rougeL'"]),
        ({"name": "bleu", "colum": "x"}, ["'bleu'", "'colum'", "did you mean 'column'"]),
        ({"name": "bleu", "wieght": 1}, ["'wieght'", "did you mean 'weight'"]),
        ({"name": "bleu", "weight": "much"}, ["'bleu'", "weight is 'much'"]),
        ({"name": "bleu", "weight": float("nan")}, ["weight is nan"]),
        ({"name": "bleu", "weight": True}, ["weight is True"]),
        ({"name": "bleu", "clip": [1, 0]}, ["'bleu'", "clip is [1, 0]"]),
        ({"name": "bleu", "clip": 3}, ["'bleu'", "[lowest, highest]"]),
        ({"name": "bleu", "normalize": "runing"}, ["'bleu'", "normalize is 'runing'", "running"]),
        ({"name": "bleu", "tokenize": "13b"}, ["'bleu'", "tokenize is '13b'", "did you mean '13a'"]),
        ({"name": "rouge", "type": "rouge7"}, ["type is 'rouge7'", "rougeLsum"]),
        ({"name": "keyword"}, ["'keyword'", "column, wanted"]),
        ({"name": "keyword", "wanted": "x", "mode": "al"}, ["mode is 'al'", "did you mean 'all'"]),
        ({"name": "keyword", "wanted": {"a": 1}}, ["'wanted'"]),
        ({"name": "length"}, ["'length'", "min, max"]),
        ({"name": "length", "min": 5, "max": 4}, ["min is 5 and max is 4"]),
        ({"name": "length", "max": 0}, ["max is 0"]),
        ({"name": "repetition", "n": 0}, ["n is 0"]),
        ({"name": "mixture"}, ["'mixture' needs the option 'rewards'"]),
        ({"name": "learned"}, ["'learned'", "path"]),
        ({"name": "learned", "path": "x", "model": "y"}, ["'learned' has no option 'model'"]),
        ({"weight": 1}, ["does not name a reward"]),
        ("{name: bleu", ["{name: bleu", "cannot be read"]),
        (3, ["3 does not name a reward"]),
        ("no_such_module:f", ["no_such_module"]),
        ("math:sqr", ["'math' has no 'sqr'", "did you mean 'sqrt'"]),
        ("math:pi", ["is no function"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(spec, parts):
    with pytest.raises(RewardError) as caught:
        build_rewards([spec])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_missing_column_is_named_with_the_nearest_one():
    reward = Keyword(column="facts")
    with pytest.raises(RewardError) as caught:
        reward(prompts=PROMPTS, completions=COMPLETIONS, fact=[[]] * 3, area=[""] * 3, trainer_state=None)
    message = str(caught.value)
    for part in ("'keyword'", "no column 'facts'", "it has area, fact", "did you mean 'fact'"):
        assert part in message
    assert "trainer_state" not in message


def test_what_trl_passes_besides_the_columns_is_no_column():
    with pytest.raises(RewardError, match="no column 'trainer_state'"):
        Keyword(column="trainer_state")(prompts=PROMPTS, completions=COMPLETIONS, trainer_state=object())


def test_every_registered_reward_documents_each_of_its_options():
    import importlib

    for module, cls_name, _ in REGISTRY.values():
        cls = getattr(importlib.import_module(f"rewards.{module}"), cls_name)
        for option in set(inspect.signature(cls).parameters) - {"log_name", *cls.python_only}:
            assert f"{option} " in cls.__doc__ or f"{option}," in cls.__doc__ or f"{option}:" in cls.__doc__, (
                cls_name,
                option,
            )


# --- the user's own -------------------------------------------------------------------------------------------------
@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_rewards_for_test.py").write_text(
        "def count(prompts, completions, letter='a', **columns):\n"
        "    return [float(text.count(letter)) for text in completions]\n"
        "class Counter:\n"
        "    def __init__(self, letter):\n"
        "        self.letter = letter\n"
        "    def __call__(self, prompts, completions, **columns):\n"
        "        return count(prompts, completions, self.letter)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield "own_rewards_for_test"
    sys.modules.pop("own_rewards_for_test", None)


def test_own_functions_and_classes_are_imported_from_the_current_folder(own_module):
    specs = [
        f"{{name: {own_module}:count}}",
        {"name": f"{own_module}:count", "letter": "t", "log_name": "tees"},
        {"name": f"{own_module}:Counter", "letter": "d", "clip": [0, 0.5]},
    ]
    built = build_rewards(specs)
    assert [get_callable_name(r) for r, _ in built] == ["count", "tees", "Counter"]
    scores = [r(prompts=PROMPTS, completions=COMPLETIONS, references=PROMPTS) for r, _ in built]
    assert scores == [[2, 1, 0], [1, 0, 0], [0, 0.5, 0]]


def test_an_own_functions_misspelt_option_is_an_error(own_module):
    with pytest.raises(RewardError, match="no option 'leter'.*did you mean 'letter'"):
        build_rewards([{"name": f"{own_module}:count", "leter": "t"}])


def test_an_error_inside_the_users_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_rewards_for_test.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RewardError, match="ZeroDivisionError: division by zero .broken_rewards_for_test.py, line 1"):
        build_rewards(["broken_rewards_for_test:f"])


# --- normalizing, clipping, mixing ----------------------------------------------------------------------------------
def fixed(*scores):
    return lambda prompts, completions, **columns: list(scores)


def test_running_normalization_by_pencil():
    # scores 1, 2, 3 have mean 2 and variance 2/3; with 6 then: mean 3, variance (4+1+0+9)/4 = 3.5
    first, second = [1.0, 2.0, 3.0], [6.0]
    batches = iter([first, second])
    shaped = Shaped(lambda prompts, completions, **c: next(batches), normalize="running")
    assert shaped(PROMPTS, COMPLETIONS) == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)])
    assert shaped(PROMPTS[:1], COMPLETIONS[:1]) == pytest.approx([3 / math.sqrt(3.5)])


def test_running_statistics_equal_those_of_all_scores_in_one():
    scores = [[0.1, 1e6 + 0.5], [None, -3.0, float("nan")], [], [7.25, 7.25, 2.0]]
    batches = iter(scores)
    shaped = Shaped(lambda prompts, completions, **c: next(batches), normalize="running")
    for batch in scores:
        shaped([""] * len(batch), [""] * len(batch))
    known = [s for batch in scores for s in batch if s is not None and s == s]
    assert shaped.stats.count == 6
    assert shaped.stats.mean == pytest.approx(statistics.fmean(known), rel=1e-12)
    assert shaped.stats.std == pytest.approx(statistics.pstdev(known), rel=1e-12)


def test_equal_scores_normalize_to_zero_and_missing_ones_stay_missing():
    assert Shaped(fixed(2.0, None, 2.0), normalize="running")(PROMPTS, COMPLETIONS) == [0.0, None, 0.0]


def test_clipping_comes_after_normalizing_and_keeps_missing_scores():
    assert Shaped(fixed(5.0, -5.0, None), clip=[-1, 2])(PROMPTS, COMPLETIONS) == [2.0, -1.0, None]
    # normalized: 1 and -1
    assert Shaped(fixed(5.0, -5.0), normalize="running", clip=[-0.5, 3])(["", ""], ["", ""]) == [1.0, -0.5]


def test_statistics_rest_when_not_training_and_survive_a_restart():
    specs = [{"name": fixed(1.0, 2.0, 6.0), "normalize": "running", "log_name": "own"}, longer]
    before, after = build_rewards(specs), build_rewards(specs)
    before[0].reward(PROMPTS, COMPLETIONS)
    before[0].reward.training = False
    expected = before[0].reward(PROMPTS, COMPLETIONS)
    state = state_of(before)
    assert state == {"own": {"stats": {"count": 3, "mean": 3.0, "m2": 14.0}}}
    load_state(after, state)
    after[0].reward.training = False
    assert after[0].reward(PROMPTS, COMPLETIONS) == expected
    assert raw(after[0].reward)(PROMPTS, COMPLETIONS) == [1.0, 2.0, 6.0] and raw(longer) is longer


def test_shaping_an_async_function_is_refused():
    async def slow(prompts, completions, **columns):
        return [0.0]

    class Slow:
        async def __call__(self, prompts, completions, **columns):
            return [0.0]

    for function in (slow, functools.partial(slow), Slow()):
        with pytest.raises(RewardError, match="async"):
            build_rewards([{"name": function, "clip": [0, 1]}])


def test_a_mixture_is_the_weighted_sum_over_the_parts_that_have_a_score():
    logged = {}
    mixture = Mixture(
        [
            {"name": fixed(1.0, None, None), "weight": 2.0, "log_name": "a"},
            {"name": fixed(0.5, 0.25, float("nan")), "weight": -1.0, "log_name": "b"},
        ]
    )
    assert mixture(prompts=PROMPTS, completions=COMPLETIONS, log_metric=logged.__setitem__) == [1.5, -0.25, None]
    assert logged == {"mixture/a": 1.0, "mixture/b": 0.375}


def test_a_mixture_from_yaml_with_its_own_clip_and_weight():
    parts = "[{name: repetition, n: 1}, {name: length, max: 2}]"
    text = f"{{name: mixture, log_name: style, weight: 3, clip: [-0.5, 1], rewards: {parts}}}"
    ((reward, weight),) = build_rewards([text])
    assert (log_name_of(reward), weight) == ("style", 3.0)
    # "a a a a": 1 - 1/4 = .75 repeated, twice the longest length allowed: -1; together -1.75
    assert reward(prompts=["p"] * 2, completions=["a a a a", "a b"]) == [-0.5, 0.0]


def test_a_mixture_carries_the_state_of_its_parts():
    spec = {"name": "mixture", "rewards": [{"name": fixed(1.0, 3.0), "normalize": "running", "log_name": "x"}]}
    before, after = build_rewards([spec]), build_rewards([spec])
    before[0].reward(["p"] * 2, ["c"] * 2)
    load_state(after, state_of(before))
    assert state_of(after) == {"mixture": {"x": {"stats": {"count": 2, "mean": 2.0, "m2": 2.0}}}}


def test_a_part_with_too_few_scores_is_named():
    with pytest.raises(RewardError, match="'<lambda>': it returned 1 scores for 3 completions"):
        Mixture([fixed(1.0)])(PROMPTS, COMPLETIONS)


def test_a_reward_is_a_value_error_so_that_one_net_catches_all():
    assert issubclass(RewardError, ValueError)
    assert isinstance(Keyword(wanted="x"), Reward)
