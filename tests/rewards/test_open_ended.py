"""No prompt ends in an end token by the tokenizer's own doing, no text ends in two, and none begins twice."""

import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch
from conftest import build_model, build_tokenizer
from datasets import Dataset
from test_rewards_learned import COMPLETIONS, PROMPTS, make_tokenizer, tiny_config
from test_rewards_perplexity import by_hand, make_model
from tokenizers import processors
from toy import with_sft_adapter
from transformers import AutoTokenizer, ByT5Tokenizer, LlamaForSequenceClassification
from trl import GRPOConfig, RLOOConfig

from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage
from pipeline.exam import evaluation
from pipeline.exam.exam import Exam
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.stages import reward_model, sft
from pipeline.stages.trl_stage import CountedGRPO, CountedRLOO
from rewards import Learned, Perplexity, Reconstruction, adds_end, begun_once, open_ended

BOS, EOS = 1, 2
ENDS = [("</s>", EOS), ("<s>", BOS)]


def template(single, pair="$A $B"):
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ENDS)


# what is put before a text, and how
KINDS = {
    "bos and eos": ([BOS], template("<s> $A </s>")),
    "eos": ([], template("$A </s>")),
    "eos twice": ([BOS], template("<s> $A </s> </s>")),
    "as RoBERTa": ([BOS], processors.RobertaProcessing(*ENDS)),
    "as BERT": ([BOS], processors.BertProcessing(*ENDS)),
    "in a sequence": ([BOS], processors.Sequence([processors.ByteLevel(), template("<s> $A </s>")])),
    "an end token before the text, as OPT": ([EOS], template("</s> $A")),
    "another token behind it": ([], template("$A <s>")),
    "bos": ([BOS], template("<s> $A")),
    "nothing": ([], processors.ByteLevel()),
}


def appending(kind="bos and eos"):
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = KINDS[kind][1]
    return tokenizer


def body(text):
    return build_tokenizer()(text, add_special_tokens=False)["input_ids"]


# ---------------------------------------------------------------- the tokenizer
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_behind_a_text_goes_and_what_stands_before_it_stays(kind, tmp_path):
    first, _ = KINDS[kind]
    last = [BOS] if kind == "another token behind it" else []  # no end token: some models want one there
    tokenizer = appending(kind)
    pair = tokenizer("a", "b")["input_ids"]
    assert open_ended(tokenizer) is tokenizer and not adds_end(tokenizer)
    assert tokenizer("ab")["input_ids"] == [*first, *body("ab"), *last]
    assert tokenizer("ab</s>")["input_ids"] == [*first, *body("ab"), EOS, *last]  # that one is the text's own
    assert tokenizer(["ab", ""])["input_ids"] == [[*first, *body("ab"), *last], [*first, *last]]
    assert tokenizer("a", "b")["input_ids"] == pair
    tokenizer.save_pretrained(tmp_path)
    for same in (AutoTokenizer.from_pretrained(tmp_path), copy.deepcopy(tokenizer), open_ended(tokenizer)):
        assert same("ab")["input_ids"] == [*first, *body("ab"), *last]


def test_the_flag_of_the_tokenizer(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.add_bos_token, tokenizer.add_eos_token = True, True
    assert tokenizer("ab")["input_ids"] == [BOS, *body("ab"), EOS] and adds_end(tokenizer)  # the test itself
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        open_ended(each)
        assert each("ab")["input_ids"] == [BOS, *body("ab")]
        each.update_post_processor() if each is tokenizer else None  # which transformers does of the flags
        assert each("ab")["input_ids"] == [BOS, *body("ab")]


def test_a_slow_tokenizer():
    tokenizer = ByT5Tokenizer()
    a, eos = tokenizer("a")["input_ids"]
    assert adds_end(tokenizer)
    for each in (open_ended(tokenizer), open_ended(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert not adds_end(each) and each(["a", "aa"])["input_ids"] == [[a], [a, a]]
        assert each("a</s>")["input_ids"] == [a, eos] and each("a", "a")["input_ids"] == [a, eos, a, eos]


def test_further_ends():
    tokenizer = appending("another token behind it")
    assert open_ended(tokenizer, [BOS])("ab")["input_ids"] == body("ab")


def test_a_text_that_begins_with_the_token_that_is_put_before_it():
    tokenizer = appending("bos")
    assert tokenizer("<s>ab")["input_ids"] == [BOS, BOS, *body("ab")]
    for text in ("<s>ab", "ab"):
        assert begun_once(tokenizer(text)["input_ids"], tokenizer) == [BOS, *body("ab")]
    assert begun_once([BOS], tokenizer) == [BOS] and begun_once([], tokenizer) == []


# ---------------------------------------------------------------- the stages
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base whose tokenizer puts <s> before and </s> behind every text."""
    folder = tmp_path_factory.mktemp("models") / "appending"
    build_model().save_pretrained(folder)
    appending().save_pretrained(folder)
    return folder


def spy(monkeypatch, module, name):
    made = []

    class Spy(getattr(module, name)):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(module, name, Spy)
    return made


def file_of(folder, rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataArguments(dataset=str(folder / "rows.jsonl"))


@pytest.mark.parametrize("prompt", ["ab =>", "<s>ab =>"])
def test_sft_has_one_end_and_prompts_have_none(prompt, folder, tmp_path, monkeypatch):
    made = spy(monkeypatch, sft, "SFT")
    rows = [{"prompt": prompt, "completion": " c"}] * 4
    config = SFTStage(output_dir=str(tmp_path / "out"), max_steps=1, save_strategy="no", use_cpu=True, max_length=64)
    sft.run(ModelArguments(model_name_or_path=str(folder), lora_r=2), file_of(tmp_path, rows), config)
    row = made[0].train_dataset[0]
    assert row["input_ids"] == [BOS, *body("ab => c"), EOS]
    assert row["labels"] == [-100] * len([BOS, *body("ab =>")]) + [*body(" c"), EOS]
    # what is saved beside the adapter reads prompts as they were in training
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("ab")["input_ids"] == [BOS, *body("ab")]


def test_a_whole_text_has_one_end(folder, tmp_path, monkeypatch):
    made = spy(monkeypatch, sft, "SFT")
    config = SFTStage(output_dir=str(tmp_path / "out"), max_steps=1, save_strategy="no", use_cpu=True, max_length=64)
    rows = [{"text": "ab"}, {"text": "ab</s>"}, {"text": "<s>ab"}] * 2
    sft.run(ModelArguments(model_name_or_path=str(folder), lora_r=2), file_of(tmp_path, rows), config)
    assert list(made[0].train_dataset["input_ids"]) == [[BOS, *body("ab"), EOS]] * 6


def test_the_reward_model_reads_one_end_and_is_asked_so(folder, tmp_path, monkeypatch):
    made = spy(monkeypatch, reward_model, "Reward")
    rows = [{"prompt": f"<s>{i} =>", "chosen": " b", "rejected": " c"} for i in range(6)]
    config = RewardStage(output_dir=str(tmp_path / "out"), max_steps=1, save_strategy="no", use_cpu=True)
    pairs = replace(file_of(tmp_path, rows), eval_fraction=0.34)
    reward_model.run(ModelArguments(model_name_or_path=str(folder), lora_r=2), pairs, config)
    read = [row["chosen_ids"] for row in made[0].train_dataset]
    assert [row[0] for row in read] == [BOS] * 3 and all(row[1] != BOS for row in read)
    assert all(row[-3:] == [*body(" b"), EOS] for row in read)
    learned = Learned(str(tmp_path / "out"), device="cpu")
    assert learned.encode("<s>ab =>", " b") == learned.encode("ab =>", " b") == [BOS, *body("ab => b"), EOS]


TRAINERS = [
    (PPOTrainer, PPOConfig, {"num_mini_batches": 1, "total_episodes": 8}),
    (CountedGRPO, GRPOConfig, {"num_generations": 2, "max_steps": 1}),
    (CountedRLOO, RLOOConfig, {"num_generations": 2, "max_steps": 1}),
]


@pytest.mark.parametrize(("cls", "config", "changes"), TRAINERS, ids=["ppo", "grpo", "rloo"])
def test_rollouts_and_exams_go_on_with_the_prompt(tmp_path, cls, config, changes):
    prompts = ["ab =>", "<s>ab =>", "ab</s>"]
    trainer = cls(
        model=with_sft_adapter(build_model()),
        reward_funcs=lambda prompts, **_: [0.0] * len(prompts),
        args=config(
            str(tmp_path), per_device_train_batch_size=8, gradient_accumulation_steps=1, max_completion_length=4,
            use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True, **changes,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts * 4}),
        processing_class=appending(),
    )  # fmt: skip
    wanted = [[BOS, *body("ab =>")]] * 2 + [[BOS, *body("ab"), EOS]]  # an end that stands in the prompt itself
    assert trainer._tokenize_prompts(prompts)[0] == wanted
    assert evaluation.tokenize_prompts(trainer.processing_class, prompts) == wanted
    exam = Exam(trainer, None, [{"prompt": prompt} for prompt in prompts], {}, {})
    asked = []
    trainer.model.get_base_model().register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    exam.take(None, greedy=False)
    first = [[i for i in row if i != 0] for row in asked[0]]
    assert sorted(first) == sorted(wanted)


# ---------------------------------------------------------------- the rewards
def closed(**options):
    """The tokenizer of the rewards' tests, which puts <bos> before and <eos> behind."""
    tokenizer = make_tokenizer(**options)
    ends = [("<bos>", 1), ("<eos>", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=ends
    )
    return tokenizer


def plain(text):
    return make_tokenizer()(text, add_special_tokens=False)["input_ids"]


def test_perplexity_is_that_of_the_completions_own_tokens():
    model, tokenizer = make_model(), closed()
    found = Perplexity(model=model, tokenizer=tokenizer)(["the cat =>", "<bos>the cat =>"], [" sat", " sat"])
    wanted = by_hand(model, [1, *plain("the cat =>")], plain(" sat"))
    assert found == pytest.approx([wanted, wanted], abs=1e-5)
    [alone] = Perplexity(model=model, tokenizer=tokenizer, include_prompt=False)(["x"], [" sat"])
    assert alone == pytest.approx(by_hand(model, [1], plain(" sat")), abs=1e-5)
    assert adds_end(tokenizer)  # a tokenizer that was handed in stays as it is


def test_reconstruction_reads_the_prompt_alone():
    model = make_model()
    [found] = Reconstruction(model=model, tokenizer=closed())(["the cat"], ["sat"])
    assert found == pytest.approx(by_hand(model, [1, *plain("sat\n")], plain("the cat")), abs=1e-5)


@pytest.mark.parametrize(("append_eos", "ends"), [("auto", [2]), (True, [2]), (False, [2])])
def test_a_reward_model_reads_one_end(append_eos, ends):
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(tiny_config(num_labels=1)).eval()
    reward = Learned(model=model, tokenizer=closed(), append_eos=append_eos)
    for prompt, completion in zip(PROMPTS[:2], COMPLETIONS[:2], strict=True):
        wanted = [1, *plain(prompt + completion), *ends]
        assert reward.encode(prompt, completion) == wanted
        assert reward.encode(f"<bos>{prompt}", completion) == wanted
    assert reward.encode(PROMPTS[0], COMPLETIONS[0] + "<eos>")[-2:] != [2, 2] or append_eos is False
