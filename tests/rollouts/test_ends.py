"""Where a completion ends: at the end-of-text token and at the end of a turn, in every place that samples."""

import copy
import json
import os
import re
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import pytest
import toy
import trl
from conftest import build_model, build_tokenizer
from datasets import Dataset
from test_tool_loop import build as build_tool_loop
from test_tool_loop import tokenizer as calling  # noqa: F401
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, RLOOConfig
from vllm_stand_in import serving

from pipeline.config import DataArguments, ModelArguments, SFTStage
from pipeline.data import loading as data
from pipeline.exam import evaluation
from pipeline.exam.exam import Exam
from pipeline.ilql import data as ilql_data
from pipeline.models.ends import end_of_turn, say_stops, stop_token_ids, turn_of, without_end
from pipeline.models.loading import load_base, load_tokenizer
from pipeline.ppo.config import PPOStage
from pipeline.stages import merge, sft
from pipeline.stages.trl_stage import CountedGRPO, CountedRLOO, MissingEOS

PAD, BOS, EOS, A, B, C, D, END, AB = range(9)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROMPTS = [[{"role": "user", "content": text}] for text in ("c", "cd", "da", "dcbc", "a", "ca", "dd", "cbdb")]


def letters(template="{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}", special=True):
    """Nine tokens, of which <|im_end|> ends a turn and <eos> a text: a random model often says either."""
    words = ["<pad>", "<bos>", "<eos>", "a", "b", "c", "d", "<|im_end|>", "ab"]
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[("a", "b")]))
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    made.add_tokens(["<|im_end|>"], special_tokens=special)
    made.chat_template = template
    return made


def chatml(**special) -> PreTrainedTokenizerFast:
    """One token a byte, ChatML, and an end token that ChatML does not write."""
    made = build_tokenizer()
    made.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    made.chat_template = CHATML
    return made


def ids(tokenizer, *words):
    return [tokenizer.convert_tokens_to_ids(word) for word in words]


# ---------------------------------------------------------------- what a template ends a turn with
ENDS = {  # of the templates that TRL ships, read off their text
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2": "<|END_OF_TURN_TOKEN|>",
    "deepseekv3": "<｜end▁of▁sentence｜>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "gemma4": "<turn|>",
    "glm4moe": "<|user|>",
    "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama3_2": "<|eot_id|>",
    "llava_next": "</s>",
    "phi3": "<|end|>",
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3_8": "<|im_end|>",
    "smolvlm": "<end_of_utterance>",
}


@pytest.mark.parametrize(("name", "end"), ENDS.items())
def test_the_end_of_a_turn_in_templates_that_models_have(name, end):
    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(sorted(set(re.findall(r"<[|｜]?[\w▁]+[|｜]?>", template))), special_tokens=True)
    tokenizer.chat_template = template
    assert tokenizer.convert_ids_to_tokens(turn_of(tokenizer).end) == end


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
        (
            "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}",
            None,
        ),  # a line may end
        ("{% for m in messages %}{{ m.content + '<|im_end|> ' }}{% endfor %}", None),  # no token of this tokenizer
        ("{% for m in messages %}{{ bos_token + m.content }}{% endfor %}", None),
        ("{% for m in messages %}{{ m.content + '.' }}{% endfor %}", None),  # a sentence may end
        ("{% for m in messages %}{{ ' ' + m.content + ' ' + eos_token }}{% endfor %}", "</s>"),
        ("{% for m in messages %}{{ m.content[0].text + eos_token }}{% endfor %}", "</s>"),
        (
            "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
            "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
            "</s>",
        ),
        ("{{ raise_exception('never') }}", "none"),
        ("{{ messages[0].content }}", "none"),
        (None, "none"),
    ],
)
def test_the_end_of_a_turn_in_templates_of_peoples_own(template, end):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    turn = turn_of(tokenizer)
    found = "none" if turn is None else turn.end and tokenizer.convert_ids_to_tokens(turn.end)
    assert found == end
    assert end_of_turn(tokenizer) == 2


def test_a_mark_that_is_an_ordinary_word_of_the_vocabulary():
    words = ["<unk>", "</s>", "[end]", "a", "."]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    for written, end in (("[end]", 2), (".", 1), ("[end] .", 1), ("[END]", 1)):
        tokenizer.chat_template = f"{{% for m in messages %}}{{{{ m.content + ' {written} ' }}}}{{% endfor %}}"
        assert end_of_turn(tokenizer) == end


def test_what_ends_a_completion():
    model, tokenizer = build_model(vocab_size=261), chatml()
    assert stop_token_ids(model, tokenizer) == [2, 260]
    model.generation_config.eos_token_id = [7, 2]
    assert stop_token_ids(model, tokenizer) == [7, 2, 260]
    model.generation_config.eos_token_id = 260  # as the models that ChatML comes with have it
    assert stop_token_ids(model, tokenizer) == [2, 260]
    tokenizer.chat_template, model.generation_config.eos_token_id = None, None
    assert stop_token_ids(model, tokenizer) == [2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base whose end token is not the one with which its chat template ends a turn."""
    folder = tmp_path_factory.mktemp("models") / "chatml"
    toy.build_model().save_pretrained(folder)
    letters().save_pretrained(folder)
    return folder


def test_it_is_said_in_one_line(folder, capsys):
    load_base(ModelArguments(str(folder)), tokenizer=load_tokenizer(str(folder)))
    assert capsys.readouterr().out == (
        "note: the chat template ends a turn with <|im_end|>, and the tokenizer's end token is <eos>: a completion "
        "ends at either\n"
    )
    model, tokenizer = build_model(), build_tokenizer()
    say_stops(model, tokenizer)  # a template that ends turns with the end token
    tokenizer.chat_template = None
    say_stops(model, tokenizer)
    model, tokenizer = build_model(vocab_size=261), chatml()
    model.generation_config.eos_token_id = [2, 260]
    say_stops(model, tokenizer)  # the model says so itself
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("behind", "written"), [("'<|im_end|>'", "writes '<|im_end|>' there"), ("''", "writes nothing there")]
)
def test_a_template_that_ends_no_turn_is_named(behind, written):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = f"{{% for m in messages %}}{{{{ m.content + {behind} }}}}{{% endfor %}}"
    rows, told = Dataset.from_list([{"prompt": PROMPTS[0]}]), []
    data.show_examples(rows, None, tokenizer, "prompts", None, log=told.append)
    assert sum("ends an answer with no token of the tokenizer" in line and written in line for line in told) == 1
    told.clear()
    data.show_examples(Dataset.from_list([{"prompt": "x"}]), None, tokenizer, "prompts", None, log=told.append)
    assert not any("note" in line for line in told) and without_end(build_tokenizer()) is None


# ---------------------------------------------------------------- in training
def check_ends(rows, limit=6):
    """Each completion ends at its first end token, or is cut; returns which end, and what they end with."""
    assert all(not {EOS, END} & set(row[:-1]) and len(row) <= limit for row in rows)
    return [row[-1] in (EOS, END) for row in rows], {row[-1] for row in rows}


def ppo(tmp_path, special=True, **settings):
    return toy.make_trainer(
        tmp_path,
        toy.with_sft_adapter(),
        prompts=PROMPTS,
        reward=lambda prompts, completions, **columns: [0.0] * len(prompts),
        tokenizer_=letters(special=special),
        missing_eos_penalty=1.0,
        kl_coef=0.0,
        **settings,
    )


@pytest.mark.parametrize("special", [True, False])
def test_ppo_stops_at_the_end_of_a_turn_and_pays_the_penalty_for_the_others_alone(tmp_path, special):
    trainer, ended, seen = ppo(tmp_path, special), [], set()
    assert trainer.eos_token_ids == [EOS, END]
    for _ in range(3):
        batch = toy.sample(trainer, PROMPTS)
        now, last = check_ends(toy.real(batch))
        paid = trainer._scores(batch)[1].tolist()
        assert paid == [0.0 if each else -1.0 for each in now]
        ended, seen = ended + now, seen | last
    assert {EOS, END} <= seen and not all(ended)  # the test itself: all three happen
    assert trainer.journal.read()["finished"] == pytest.approx(sum(ended) / len(ended))


@pytest.mark.parametrize("special", [True, False])
def test_the_text_is_without_the_end(tmp_path, special):
    trainer = ppo(tmp_path, special)
    for completion in trainer.generate(PROMPTS * 2):
        words = [["", "", "", "a", "b", "c", "d", "", "ab"][i] for i in completion.ids]
        assert completion.text == [{"role": "assistant", "content": "".join(words)}]


def test_the_exam_stops_where_training_does(tmp_path):
    trainer = ppo(tmp_path)
    rows, rewards = [{"prompt": prompt} for prompt in PROMPTS * 4], {"r": lambda prompts, **_: [0.0] * len(prompts)}
    sampled, greedy = Exam(trainer, "reference", rows, rewards, {"r": 1.0}).take("reference")
    ended, seen = check_ends(sampled.completion_ids)
    assert sampled.finished == ended and {EOS, END} <= seen
    assert greedy.finished == check_ends(greedy.completion_ids)[0]


@pytest.mark.parametrize(("cls", "config"), [(CountedGRPO, GRPOConfig), (CountedRLOO, RLOOConfig)])
def test_trls_own_trainers_stop_there_too(tmp_path, cls, config):
    penalty, asked = MissingEOS(), []

    def look(prompts, completions, completion_ids, **columns):
        asked.extend(completion_ids)
        return [float(len(ids)) for ids in completion_ids]

    trainer = cls(
        model=toy.with_sft_adapter(),
        reward_funcs=[look, penalty],
        args=config(
            str(tmp_path), per_device_train_batch_size=8, gradient_accumulation_steps=1, num_generations=2,
            max_completion_length=6, max_steps=4, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
            disable_tqdm=True, temperature=1.0,
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=letters(),
    )  # fmt: skip
    penalty.eos_token_ids = trainer.eos_token_ids
    trainer.train()
    ended, seen = check_ends(asked)
    assert {EOS, END} <= seen and not all(ended)
    assert penalty([], [], asked) == [0.0 if each else -1.0 for each in ended]


def test_a_vllm_server_is_told(tmp_path):
    with serving(tmp_path, toy.build_model()) as server:
        trainer = ppo(tmp_path, settings_=PPOStage, vllm_server=server.url)
        trainer.generate(PROMPTS)
    asked = [each["stop_token_ids"] for each in server.bodies[-len(PROMPTS) :]]
    assert asked == [[EOS, END]] * len(PROMPTS)


def test_a_text_of_ones_own_ends_as_a_turn(tmp_path):
    trainer = ppo(tmp_path)
    assert trainer._ids_of("ba", PROMPTS[0]) == [B, A, END] and trainer._ids_of("ba", "c") == [B, A, EOS]


# ---------------------------------------------------------------- elsewhere
@pytest.mark.parametrize(("finished", "ended"), [(True, True), (None, True), (False, False)])
def test_ilql_learns_the_end_of_a_turn_from_what_ended(finished, ended):
    tokenizer = chatml()
    rows = [{"prompt": PROMPTS[0], "completion": [{"role": "assistant", "content": "ab"}], "finished": finished}]
    [row] = ilql_data.tokenize(Dataset.from_list(rows), tokenizer, 512)
    # and nothing of the line break behind it
    assert row["completion_ids"] == tokenizer("ab")["input_ids"] + ids(tokenizer, "<|im_end|>") * ended
    [plain] = ilql_data.tokenize(Dataset.from_list([{"prompt": "a", "completion": "b"}]), tokenizer, 512)
    assert plain["completion_ids"] == [*tokenizer("b")["input_ids"], 2]


def test_a_merged_model_stops_there(folder):
    model = load_base(ModelArguments(str(folder)))
    merge.prepare_generation(model, load_tokenizer(str(folder)))
    assert model.generation_config.eos_token_id == [EOS, END]


def test_sampled_rows_are_finished_there(folder, tmp_path):
    from pipeline.eval.sampling import SampleArguments
    from pipeline.eval.sampling import run as sample

    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    sample(
        SampleArguments(
            run=str(folder), dataset=str(tmp_path / "prompts.jsonl"), output=str(tmp_path / "out.jsonl"),
            max_completion_length=6, use_cpu=True,
        )
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    by_hand = evaluation.complete(
        toy.build_model(), letters(), [row["prompt"] for row in rows], 6, [EOS, END], 1.0, 64, 0
    )
    assert [row["finished"] for row in rows] == check_ends(by_hand)[0]
    assert {EOS, END} <= check_ends(by_hand)[1]


def test_a_whole_model_is_saved_with_its_ends(folder, tmp_path):
    turns = [{"messages": [PROMPTS[0][0], {"role": "assistant", "content": "ab"}]}] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turns))
    sft.run(
        ModelArguments(str(folder), use_peft=False),
        DataArguments(str(tmp_path / "rows.jsonl")),
        SFTStage(output_dir=str(tmp_path / "out"), max_steps=1, save_strategy="no", use_cpu=True, max_length=32),
    )
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [EOS, END]


def test_what_stands_between_a_call_and_its_answer(tmp_path, calling):  # noqa: F811
    """TRL cuts the template's text behind the tokenizer's own end token alone; the line break must not go."""
    asked = [{"role": "tool", "name": "lookup", "content": "a grey bird"}]
    wanted = build_tool_loop(tmp_path / "a", calling, [])[0]._get_tool_suffix_ids(asked)
    other = copy.deepcopy(calling)
    other.add_tokens(["<|endoftext|>"], special_tokens=True)
    other.eos_token = "<|endoftext|>"
    assert build_tool_loop(tmp_path / "b", other, [])[0]._get_tool_suffix_ids(asked) == wanted
    assert calling.decode(wanted).startswith("\n<|im_start|>user\n<tool_response>\na grey bird\n</tool_response>")
