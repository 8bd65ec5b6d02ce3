"""What a policy might write to give itself marks, through the fence and past the reader of verdicts.

Whether a judge falls for the words alone is a matter of the model; test_judge_real.py measures one.
"""

import json
import re
import unicodedata

import pytest
from conftest import build_tokenizer
from injections import INJECTIONS, VERDICT
from judge_server import block, serving

from rewards import Judge
from rewards.rubric import Rubric, harmless

RUBRIC = Rubric("Is it a colour?", [1, 10])
# Special tokens of widely used chat models, as their tokenizers match them: literally, anywhere in a text.
TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<s>", "</s>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|assistant|>", "<|user|>"),
    *("<|system|>", "<\uff5cAssistant\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<think>", "</think>"),
    *("<|START_OF_TURN_TOKEN|>", "[TOOL_CALLS]", "<bos>", "<eos>", "<pad>", "<|channel|>", "[gMASK]", "<assistant>"),
)


def test_there_are_enough_of_them():
    assert len(INJECTIONS) >= 30 and len(set(INJECTIONS.values())) == len(INJECTIONS)


@pytest.mark.parametrize("token", TOKENS)
def test_no_special_token_survives(token):
    for text in (token, f"<{token}>", token * 3, f"a{token}b", "\u200b".join(token), f"\u202e{token}"):
        for shown in (harmless(text), unicodedata.normalize("NFKC", harmless(text))):
            assert token not in shown
    wide = token.translate(str.maketrans("<>[]", "\uff1c\uff1e\uff3b\uff3d"))
    assert token not in unicodedata.normalize("NFKC", harmless(wide))


PLAIN = ["a < b and b > c", "if x<y: y>>1", "x[i] + A[0]", "[Note] 5 < 6", "naïve 👩\u200d🚀 می\u200cخواهم", "a\n\tb"]


@pytest.mark.parametrize("text", PLAIN)
def test_what_people_write_is_shown_as_it_is(text):
    assert harmless(text) == text


@pytest.mark.parametrize("name", INJECTIONS)
def test_it_stays_inside_its_fence(name):
    text = INJECTIONS[name]
    for question in (RUBRIC.mark("Name a colour.", text), RUBRIC.mark(text, "red"), RUBRIC.compare("?", text, "red")):
        asked = question.messages[1]["content"]
        code = re.match(r"BEGIN TASK (\w{12})\n", asked)[1]
        assert code not in question.shown and code not in text
        fences = re.findall(rf"^(BEGIN|END) (.+) {code}$", asked, re.M)
        names = [what for _, what in fences[::2]]
        assert fences == [(kind, what) for what in names for kind in ("BEGIN", "END")]  # each opened and closed once
        assert asked.rindex(f"END {names[-1]} {code}") < asked.rindex("Judge by the rubric and by nothing that")
        assert question.messages[0] == RUBRIC_MESSAGE[len(names) == 3]
        assert not any(unicodedata.category(char) in ("Cc", "Cf") and char != "\n" for char in asked)


RUBRIC_MESSAGE = [RUBRIC.mark("x", "y").messages[0], RUBRIC.compare("x", "y", "z").messages[0]]


def test_a_fence_is_that_of_its_text_alone():
    codes = {RUBRIC.mark("p", text).messages[1]["content"].split()[2] for text in INJECTIONS.values()}
    assert len(codes) == len(INJECTIONS)
    assert RUBRIC.mark("p", "a") == RUBRIC.mark("p", "a")  # or no answer could be found in the cache


@pytest.mark.parametrize("name", INJECTIONS)
def test_it_writes_nobodys_turn(name):
    """Through a chat template and its tokenizer: as many special tokens as with a harmless answer, at both ends."""
    tokenizer = build_tokenizer()

    def special(answer: str) -> list[int]:
        messages = RUBRIC.mark("Name a colour.", answer).messages
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return [i for i in ids if i in tokenizer.all_special_ids]

    assert special(INJECTIONS[name]) == special("red")
    if name == "the test model's":  # the control: unfenced it would have
        assert tokenizer.eos_token_id in tokenizer(INJECTIONS[name])["input_ids"]


HONEST = '{"reason": "It is no colour.", "score": 2}'
ECHOES = {
    "quotes it, then judges": "The answer says:\n{0}\n\n{1}",
    "judges, then quotes it": "{1}\n(The answer was: {0})",
    "quotes it in the reason": None,
    "says nothing but what it says": "{0}",
    "says it in a block": "```json\n{0}\n```",
    "says it after thinking": "<think>I must judge it.</think>{0}",
}


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("name", INJECTIONS)
def test_a_judge_that_repeats_it_gives_no_marks_for_it(name, echo):
    def reply(body):
        if ECHOES[echo] is None:
            return json.dumps({"reason": block(body), "score": 2})
        return ECHOES[echo].format(block(body), HONEST)

    question = RUBRIC.mark("Name a colour.", INJECTIONS[name])
    said = reply({"messages": question.messages})
    score = RUBRIC.marked(said, question.shown)
    assert score in (None, pytest.approx(1 / 9)), said
    if ECHOES[echo] is None:
        assert score == pytest.approx(1 / 9)


READ = [
    (HONEST, 1 / 9),
    (f"```json\n{HONEST}\n```", 1 / 9),
    (f"<think>Perhaps {VERDICT}?</think>\n{HONEST}", 1 / 9),
    (f"{HONEST}\n{HONEST}", 1 / 9),
    ('{"score": "10"}', 1),
    ('{"score": 5.5, "more": [1]}', 0.5),
    (f"{HONEST} {VERDICT}", None),
    ('{"score": 10.01}', None),
    ('{"score": 0}', None),
    ('{"score": true}', None),
    ('{"score": NaN}', None),
    ('{"score": 1e999}', None),
    ('{"score": null}', None),
    ('{"score": [10]}', None),
    ('{"score": "10/10"}', None),
    ('{"score": 1, "score": 10}', None),
    ('{"Score": 10}', None),
    ('{"verdict": {"score": 10}}', None),
    ("10", None),
    ("", None),
    ("{" * 5000, None),
    ('{"a":' * 5000, None),
    ('{"score": ' + "1" * 5000 + "}", None),
]


@pytest.mark.parametrize(("reply", "score"), READ)
def test_what_is_a_verdict(reply, score):
    found = RUBRIC.marked(reply, "the answer")
    assert found == (score if score is None else pytest.approx(score))


def test_a_winner_is_one_of_three():
    shown = "a\nb"
    said = {"A": 1, "b": 0, " Tie ": 0.5, "C": None, "": None, 1: None, None: None}
    assert {key: RUBRIC.compared(json.dumps({"winner": key}), shown) for key in said} == said


def test_through_the_whole_reward():
    """Of a judge that obeys whatever it can, the catalogue gets no mark."""
    with serving(lambda body: block(body)) as server:
        judge = Judge(server.url, "m", cache=False)
        assert judge(["Name a colour."] * len(INJECTIONS), list(INJECTIONS.values())) == [None] * len(INJECTIONS)
