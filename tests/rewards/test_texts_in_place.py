"""What a completion says is what its ids say behind their prompt: for tokenizers whose decoder drops a first space."""

import functools
import json

import pytest
import torch
from byte_tokens import byte_level
from conftest import build_model
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rewards_tokens import byte_fallback, metaspace, word_piece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toy import with_sft_adapter
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast
from trl import GRPOConfig, RLOOConfig

from pipeline.exam import evaluation
from pipeline.exam.exam import Exam
from pipeline.ilql import data as ilql_data
from pipeline.models.ends import ids_behind, turn_of
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.stages import token_credit
from pipeline.stages.trl_stage import CountedGRPO, CountedRLOO
from rewards import Instant, Keyword, text_of, texts_after, token_ends

WORDS = ["▁the", "▁cat", "▁=>", "▁yes", "yes", "▁", "the", "s", ".", "a", "<|user|>", "<|bot|>"]
PROMPT = "the cat =>"
TURNS = "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|bot|>' }}{{ m.content }}{% endfor %}"
CHAT = TURNS.replace("{% endfor %}", "{% if m.role != 'user' %}</s>{% endif %}{% endfor %}")
CHAT += "{% if add_generation_prompt %}<|bot|>{% endif %}"
LLAMA2 = (  # as that one writes turns: white space around what is said
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[the] ' + m.content + ' [cat]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@functools.cache
def pieces(scheme="always", template=CHAT):
    """A tokenizer of SentencePiece's kind: pad 0, bos 1, eos 2, unk 3. Its decoder drops the first space."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *WORDS[:10], "▁[the]", "▁[cat]"]
    core = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=3))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    made.add_tokens(["<|user|>", "<|bot|>"], special_tokens=True)
    made.chat_template = template
    return made


def ids(tokenizer, *words):
    return [tokenizer.convert_tokens_to_ids(word) for word in words]


def after(tokenizer, prompt, *words):
    """The text of these tokens behind the prompt, and where its tokens end."""
    asked = prompt if isinstance(prompt, list) else tokenizer(prompt)["input_ids"]
    row = ids(tokenizer, *words)
    [text] = texts_after([asked], [row], tokenizer)
    return text, token_ends([row], [text], tokenizer)[0]


# ---------------------------------------------------------------- by pencil
def test_the_case_of_the_issue():
    assert pieces().decode(ids(pieces(), "▁yes", "▁the")) == "yes the"  # what it would be otherwise
    assert after(pieces(), PROMPT, "▁yes", "▁the", "</s>") == (" yes the", [4, 8, 8])
    assert PROMPT + after(pieces(), PROMPT, "▁yes", "▁the")[0] == "the cat => yes the"


@pytest.mark.parametrize(
    ("words", "text", "ends"),
    [
        (["yes", "▁the"], "yes the", [3, 7]),
        (["▁", "yes"], " yes", [1, 4]),
        (["▁", "▁yes"], "  yes", [1, 5]),
        (["▁"], " ", [1]),
        (["▁", "</s>"], " ", [1, 1]),
        (["</s>"], "", [0]),
        ([], "", []),
        ([".", "▁yes"], ". yes", [1, 5]),
        (["<pad>", "▁yes"], " yes", [0, 4]),
        (["<|bot|>", "▁yes"], " yes", [0, 4]),
    ],
)
def test_a_first_space_stays_where_there_is_one(words, text, ends):
    assert after(pieces(), PROMPT, *words) == (text, ends)


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_at_the_beginning_of_a_text_the_space_is_the_tokenizers_own(scheme):
    tokenizer = pieces(scheme)
    alone = "yes the" if scheme != "never" else " yes the"
    assert tokenizer.decode(ids(tokenizer, "▁yes", "▁the")) == alone
    for prompt in ([], ids(tokenizer, "<s>"), ids(tokenizer, "<s>", "<pad>")):
        assert after(tokenizer, prompt, "▁yes", "▁the")[0] == alone
    assert after(tokenizer, ids(tokenizer, "<s>", "▁"), "▁yes", "▁the")[0] == " yes the"


@pytest.mark.parametrize(("scheme", "text"), [("always", "yes"), ("first", " yes"), ("never", " yes")])
def test_behind_a_token_of_the_template_it_is_whose_the_tokenizer_says(scheme, text):
    """`<|bot|>yes` is <|bot|> ▁yes for those that open every part with a space, and <|bot|> yes for others."""
    tokenizer = pieces(scheme)
    prompt = evaluation.tokenize_prompts(tokenizer, [[{"role": "user", "content": PROMPT}]])[0]
    assert prompt[-1] == tokenizer.convert_tokens_to_ids("<|bot|>")
    assert after(tokenizer, prompt, "▁yes")[0] == text
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": text}], return_dict=True
    )["input_ids"]
    assert whole == [*prompt, *ids(tokenizer, "▁yes", "</s>")]


def test_llamas_byte_fallback():
    tokenizer = byte_fallback()
    cat = ["<0xE7>", "<0x8C>", "<0xAB>"]
    assert after(tokenizer, "the cat", "▁cat", "▁", *cat, "s", "</s>") == (" cat 猫s", [4, 5, 5, 5, 6, 7, 7])
    assert after(tokenizer, "猫", "▁cat") == (" cat", [4])  # a prompt of bytes alone
    assert after(tokenizer, "猫", *cat) == ("猫", [0, 0, 1])
    assert after(tokenizer, "the cat", "▁", *cat) == (" 猫", [1, 1, 1, 2])
    assert after(tokenizer, "the cat", *cat[:2])[0] == "\ufffd\ufffd"  # half a character
    assert after(tokenizer, "the cat", "<0x41>", *cat[:2])[0] == "\ufffd" * 3
    long = ["▁cat", "▁the"] * 30  # further than the window
    assert after(tokenizer, "the", *long) == (" cat the" * 30, [4 * (i + 1) for i in range(60)])


def test_word_pieces():
    tokenizer = word_piece()
    assert after(tokenizer, "the", "cat", "##s", ".") == (" cats.", [4, 5, 6])
    assert after(tokenizer, "the cat", "##s", "sat") == ("s sat", [1, 5])


def test_tokenizers_that_drop_nothing_are_left_alone():
    for tokenizer in (byte_level(), ByT5Tokenizer()):
        row = tokenizer(" the cat", add_special_tokens=False)["input_ids"]
        assert texts_after([tokenizer("a")["input_ids"]], [row], tokenizer) == [" the cat"]
        assert texts_after([[]], [row[1:]], tokenizer) == [tokenizer.decode(row[1:])]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_tokens_behind_any_prompt(data):
    tokenizer = data.draw(st.sampled_from([metaspace(), byte_fallback(), byte_level()]))
    some = [i for i, word in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))) if word != "<unk>"]
    prompt, row = (data.draw(st.lists(st.sampled_from(some), max_size=n)) for n in (8, 40))
    before, whole = (tokenizer.decode(x, skip_special_tokens=True) for x in (prompt, prompt + row))
    [text] = texts_after([prompt], [row], tokenizer)
    if before and "\ufffd" not in before + whole and prompt[-1] not in tokenizer.added_tokens_decoder:
        assert before + text == whole
    [ends] = token_ends([row], [text], tokenizer)
    assert len(ends) == len(row) and ends == sorted(ends) and ends[-1:] in ([], [len(text)])


# ---------------------------------------------------------------- messages
def test_the_space_with_which_a_template_opens_an_answer_is_none_of_the_answers():
    tokenizer = pieces(template=LLAMA2)
    assert turn_of(tokenizer).before == " " and turn_of(tokenizer).end == 2
    asked = [[{"role": "user", "content": PROMPT}]] * 3
    rows = [ids(tokenizer, *words) for words in (["▁yes", "▁", "</s>"], ["yes", "</s>"], ["▁", "▁yes"])]
    assert evaluation.texts_of(tokenizer, asked, rows, [2]) == ["yes ", "yes", " yes"]
    assert evaluation.texts_of(tokenizer, [PROMPT] * 3, rows, [2]) == [" yes ", "yes", "  yes"]


def test_the_ids_of_a_text_where_it_stands():
    tokenizer = pieces()
    asked = tokenizer(PROMPT)["input_ids"]
    for words, text in ((["▁yes", "▁the"], " yes the"), (["yes"], "yes"), ([".", "▁yes"], ". yes")):
        assert ids_behind(PROMPT, asked, text, tokenizer) == ids(tokenizer, *words)
    turn = evaluation.tokenize_prompts(tokenizer, [[{"role": "user", "content": "the"}]])[0]
    assert ids_behind([{"role": "user", "content": "the"}], turn, "yes", tokenizer) == ids(tokenizer, "▁yes")
    # "=>" alone would be cut otherwise than in "=>s"
    assert ids_behind("the a", ids(tokenizer, "▁the", "▁", "a"), "s", tokenizer) == ids(tokenizer, "s")


# ---------------------------------------------------------------- in training
def make(cls, config, tokenizer, reward, prompts, tmp_path, **changes):
    own = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1} | changes
    return cls(
        model=with_sft_adapter(build_model(vocab_size=len(tokenizer), initializer_range=0.5)),
        reward_funcs=reward,
        args=config(
            str(tmp_path), max_completion_length=6, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
            disable_tqdm=True, **own,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )  # fmt: skip


TRAINERS = [
    (PPOTrainer, PPOConfig, {"num_mini_batches": 1, "total_episodes": 16, "num_iterations": 1}),
    (CountedGRPO, GRPOConfig, {"num_generations": 2, "max_steps": 2}),
    (CountedRLOO, RLOOConfig, {"num_generations": 2, "max_steps": 2}),
]


@pytest.mark.parametrize(("cls", "config", "changes"), TRAINERS, ids=["ppo", "grpo", "rloo"])
def test_rewards_read_what_the_ids_say(tmp_path, cls, config, changes):
    tokenizer, read = pieces(), []

    def look(prompts, completions, completion_ids, **columns):
        read.extend(zip(prompts, completions, completion_ids, strict=True))
        return [float(len(text)) for text in completions]

    make(cls, config, tokenizer, look, [PROMPT, "the cat", "yes the"] * 6, tmp_path, **changes).train()
    assert len(read) >= 16
    for prompt, text, row in read:
        asked = tokenizer(prompt)["input_ids"]
        assert prompt + text == tokenizer.decode([*asked, *row], skip_special_tokens=True)
    assert any(text.startswith(" ") for _, text, _ in read)


def test_instant_rewards_are_paid_at_their_tokens(tmp_path):
    tokenizer = pieces()
    rewards = [Instant(Keyword(wanted="yes"))]
    trainer = make(PPOTrainer, PPOConfig, tokenizer, rewards, [PROMPT] * 8, tmp_path, **TRAINERS[0][2])
    answers = [["▁yes", "▁the"], ["▁the", "▁yes", "</s>"], ["▁", "yes", "▁"], ["s", "▁cat"]] * 2
    rows = [ids(tokenizer, *words) for words in answers]
    trainer.rollout_func = lambda prompts, _: {
        "prompt_ids": trainer._tokenize_prompts(prompts)[0],
        "completion_ids": [list(row) for row in rows],
        "logprobs": None,
    }
    trainer.model.train()
    trainer._generate_and_score_completions([{"prompt": PROMPT}] * 8)
    paid = trainer._scoring.instant(torch.ones(1), 3).tolist()
    assert paid[:4] == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_the_exam_the_samples_and_the_explanation(tmp_path):
    tokenizer, read = pieces(), []

    def look(prompts, completions, completion_ids, **columns):
        read.extend(zip(completions, completion_ids, strict=True))
        return [1.0] * len(prompts)

    trainer = make(PPOTrainer, PPOConfig, tokenizer, look, [PROMPT] * 8, tmp_path, **TRAINERS[0][2])
    rows = [{"prompt": PROMPT}, {"prompt": "yes the"}] * 4
    exam = Exam(trainer, "reference", rows, {"look": look}, {"look": 1.0})
    judged = exam.take("default")
    for each in judged:
        for row, text, row_ids in zip(rows, each.completions, each.completion_ids, strict=True):
            whole = [*tokenizer(row["prompt"])["input_ids"], *row_ids]
            assert row["prompt"] + text == tokenizer.decode(whole, skip_special_tokens=True)
    assert [text for each in judged for text in each.completions] == [text for text, _ in read]
    token_credit.write(exam, judged[0], judged[0], tmp_path)
    for line in map(json.loads, (tmp_path / token_credit.TOKENS).read_text().splitlines()):
        assert "".join(line["tokens"]) == judged[0].completions[line["row"]]
    shifts = json.loads((tmp_path / token_credit.SHIFTS).read_text())
    texts = [text_of(row["prompt"]) + text for row, text in zip(rows, judged[0].completions, strict=True)]
    for entry in shifts["gains"] + shifts["losses"]:
        said = entry["example"]["prompt"] + entry["example"]["context"]
        assert any(text.startswith(said) for text in texts)


def test_step_takes_texts_in_their_place(tmp_path):
    trainer = make(PPOTrainer, PPOConfig, pieces(), lambda **_: [], [PROMPT] * 8, tmp_path, **TRAINERS[0][2])
    assert trainer._ids_of(" yes the", PROMPT) == ids(pieces(), "▁yes", "▁the", "</s>")


def test_ilql_learns_from_texts_in_their_place():
    rows = Dataset.from_list([{"prompt": PROMPT, "completion": " yes the"}, {"prompt": PROMPT, "completion": "yes"}])
    found = ilql_data.tokenize(rows, pieces(), 64)["completion_ids"]
    assert list(found) == [ids(pieces(), "▁yes", "▁the", "</s>"), ids(pieces(), "yes", "</s>")]
