"""`chat_template_path` in every stage: seen by every check, carried along with the tokenizer, never more tokens."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import build_model, build_tokenizer
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.eval import stage as evaluation_stage
from pipeline.exam.exam import RewardArguments
from pipeline.models import chat_templates
from pipeline.models import loading as models
from pipeline.stages import ppo as ppo_stage
from pipeline.stages import reward_model, sft, trl_stage

NEW = (
    "{% for m in messages %}({{ m.role }}){{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}(assistant){% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no"}
TURNS = [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "ho"}]
STOPPED = "stopped here"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder: a base without a template, a template in a file, tokenizers with one, and data."""
    monkeypatch.chdir(tmp_path)
    build_model().save_pretrained("base")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained("base")
    Path("new.jinja").write_text(NEW)
    tokenizer.chat_template = NEW
    tokenizer.save_pretrained("same-tokens")
    tokenizer.chat_template = CHATML
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained("more-tokens")
    pair = {"prompt": TURNS[0], "chosen": TURNS[1], "rejected": TURNS[0]}
    Path("sft.jsonl").write_text(json.dumps({"prompt": TURNS[0], "completion": TURNS[1]}) + "\n")
    Path("pairs.jsonl").write_text(json.dumps(pair) + "\n")
    Path("heldout.jsonl").write_text(json.dumps(pair | {"chosen": [{"role": "assistant", "content": "hm"}]}) + "\n")
    Path("prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": [{"role": "user", "content": word}]}) + "\n" for word in "abcdefgh")
    )
    return tmp_path


def run_sft(out="out", **settings):
    model = {"model_name_or_path": "base", "lora_r": 2} | settings.pop("model", {})
    return sft.run(ModelArguments(**model), DataArguments("sft.jsonl"), SFTStage(out, max_length=64, **CPU | settings))


def run_stage(name: str, model: dict, **settings):
    """A stage, ended as soon as its trainer is there: its checks are over then."""
    arguments = ModelArguments(**{"model_name_or_path": "base", "lora_r": 2} | model)
    rollout = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_completion_length": 4}
    rewards = RewardArguments(rewards=[{"name": "length", "max": 3}])
    prompts = DataArguments("prompts.jsonl", eval_fraction=0.5)
    if name == "sft":
        return run_sft(model=model, **settings)
    if name == "reward":
        pairs = DataArguments("pairs.jsonl", eval_dataset="heldout.jsonl")
        return reward_model.run(arguments, pairs, RewardStage("out", **CPU | settings))
    if name == "ppo":
        return ppo_stage.run(arguments, prompts, rewards, ppo_stage.PPOStage("out", **rollout | CPU | settings))
    return trl_stage.run(
        arguments, prompts, rewards, trl_stage.GRPOStage("out", num_generations=2, **rollout | CPU | settings)
    )


@pytest.fixture
def stopped(monkeypatch):
    """Every trainer stops as it begins to train or to measure."""

    def stop(self, *args, **kwargs):
        stop.tokenizer = self.processing_class
        raise RuntimeError(STOPPED)

    for kind in (sft.SFT, reward_model.Reward, trl_stage.CountedGRPO, ppo_stage.PPOTrainer):
        monkeypatch.setattr(kind, "train", stop)
        monkeypatch.setattr(kind, "evaluate", stop)
    monkeypatch.setattr("pipeline.exam.exam.Exam.take", lambda self, *args, **kwargs: stop(self.trainer))
    return stop


@pytest.mark.parametrize("source", ["new.jinja", "same-tokens"])
@pytest.mark.parametrize("name", ["sft", "reward", "ppo", "grpo"])
def test_every_stage_takes_the_template_before_it_looks_at_the_data(place, stopped, capsys, name, source):
    with pytest.raises(RuntimeError, match=STOPPED):
        run_stage(name, {"chat_template_path": source})
    assert stopped.tokenizer.chat_template == NEW and len(stopped.tokenizer) == 259
    shown = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("example 1"))
    assert "(user)" in shown


@pytest.mark.parametrize("name", ["sft", "reward", "ppo", "grpo"])
def test_without_one_every_stage_says_what_to_set_and_has_it(place, stopped, name):
    with pytest.raises(
        UserError, match="row 1: the data are messages, but the tokenizer has no chat template: set chat_t"
    ):
        run_stage(name, {})
    with pytest.raises(RuntimeError, match=STOPPED):
        run_stage(name, {"chat_template_path": "new.jinja"})


@pytest.mark.parametrize("name", ["sft", "reward"])
def test_in_python_trls_own_setting_does_the_same(place, stopped, name):
    with pytest.raises(RuntimeError, match=STOPPED):
        run_stage(name, {}, chat_template_path="same-tokens")
    assert stopped.tokenizer.chat_template == NEW and len(stopped.tokenizer) == 259


def test_the_template_goes_with_the_adapter_to_the_next_stage(place, capsys):
    run_sft(model={"chat_template_path": "same-tokens"})
    assert yaml.safe_load(Path("out/config.yaml").read_text())["chat_template_path"] == "same-tokens"
    tokenizer = models.load_tokenizer("out")
    assert tokenizer.chat_template == NEW and len(tokenizer) == 259  # TRL would have filled it up to 320
    capsys.readouterr()
    train, _ = data.load(DataArguments("prompts.jsonl"), "prompts")
    told = []
    data.show_examples(train, None, tokenizer, "prompts", None, log=told.append)
    assert told[-1] == "example 2 text: (user)b(assistant)"
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "out")


@pytest.mark.parametrize("name", ["sft", "reward", "ppo", "grpo"])
def test_a_template_of_more_tokens_is_refused_at_the_start(place, name):
    with pytest.raises(
        UserError, match=r"more-tokens wants tokens that the base lacks \(<\|im_end\|>, <\|im_start\|>\)"
    ):
        run_stage(name, {"chat_template_path": "more-tokens"})
    assert not Path("out").exists()


def test_a_run_of_all_weights_learns_the_new_tokens_and_later_stages_take_them(place, monkeypatch, request):
    run_sft("whole", model={"chat_template_path": "more-tokens", "use_peft": False})
    tokenizer = models.load_tokenizer("whole")
    assert (len(tokenizer), tokenizer.eos_token) == (261, "<|im_end|>")
    model = models.load_base(ModelArguments("whole"), tokenizer=tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == 261
    assert model.generation_config.eos_token_id[0] == tokenizer.eos_token_id
    request.getfixturevalue("stopped")
    for name in ("reward", "ppo"):
        with pytest.raises(RuntimeError, match=STOPPED):
            run_stage(name, {"model_name_or_path": "whole"})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("base", "base is no .jinja or .j2 file, and no tokenizer with a chat template"),
        ("nowhere", "nowhere is no .jinja or .j2 file"),
        ("nowhere.jinja", "nowhere.jinja cannot be read: No such file"),
        ("sft.jsonl", "sft.jsonl is a file, which wants the ending .jinja or .j2"),
    ],
)
def test_what_holds_no_template_is_refused(place, source, words):
    with pytest.raises(UserError, match=f"chat_template_path: {words}"):
        run_sft(model={"chat_template_path": source})


def test_only_tokens_that_the_template_writes_count(place):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = NEW
    tokenizer.add_special_tokens({"additional_special_tokens": ["<of-no-use>"]})
    tokenizer.save_pretrained("of-no-use")
    target = build_tokenizer()
    chat_templates.take(target, "of-no-use", new_tokens=False)
    assert target.chat_template == NEW and len(target) == 259


def test_the_evaluation_says_which_candidate_has_no_template(place):
    common = {"dataset": "prompts.jsonl", "max_completion_length": 4, "use_cpu": True, "dtype": "float32"}
    with pytest.raises(UserError, match="candidate base: the data are messages, but .* set chat_template_path"):
        evaluation_stage.run(
            evaluation_stage.EvalArguments(candidates=[{"base": "base"}], output_dir="eval", **common)
        )
    args = evaluation_stage.EvalArguments(
        candidates=[{"base": "base"}], output_dir="eval", chat_template_path="same-tokens", eval_samples=2, **common
    )
    assert evaluation_stage.run(args)["prompts"] == 2


@pytest.mark.parametrize("key", ["eos_token", "pad_token"])
@pytest.mark.parametrize("name", ["sft", "reward"])
def test_trls_token_settings_are_seen_before_the_data_and_must_exist(place, stopped, capsys, name, key):
    Path("plain.jsonl").write_text(
        json.dumps({"prompt": "a", "completion": "b", "chosen": "c", "rejected": "d"}) + "\n"
    )
    Path("sft.jsonl").write_text(Path("plain.jsonl").read_text())
    Path("pairs.jsonl").write_text(Path("plain.jsonl").read_text())
    Path("heldout.jsonl").write_text(json.dumps({"prompt": "x", "chosen": "c", "rejected": "d"}) + "\n")
    with pytest.raises(UserError, match=f"{key}: '<none>' is not valid: a token that the tokenizer in base has"):
        run_stage(name, {}, **{key: "<none>"})
    with pytest.raises(RuntimeError, match=STOPPED):
        run_stage(name, {}, **{key: "<s>"})
    assert getattr(stopped.tokenizer, key) == "<s>"
    if key == "eos_token":
        assert "<s>" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("example 1"))


def test_a_tokenizer_without_an_end_token_is_given_one(place, stopped):
    tokenizer = AutoTokenizer.from_pretrained("base")
    tokenizer.eos_token = None
    tokenizer.save_pretrained("base")
    with pytest.raises(UserError, match="no end-of-sequence token"):
        run_sft(model={"chat_template_path": "new.jinja"})
    with pytest.raises(RuntimeError, match=STOPPED):
        run_sft(model={"chat_template_path": "new.jinja"}, eos_token="</s>")
