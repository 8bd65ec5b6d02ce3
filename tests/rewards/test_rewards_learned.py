"""The learned scorer against TRL's RewardTrainer and transformers' own classifiers, on tiny random models."""

import json
import math
import shutil

import pytest
import tiny_architectures as tiny
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from scored import COMPLETIONS, PROMPTS, make_tokenizer, tiny_config
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)
from trl import RewardConfig, RewardTrainer

from rewards import Learned, RewardError, build_rewards

CHAT = "{% for m in messages %}<bos>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
PAIRS = {"prompt": PROMPTS, "chosen": COMPLETIONS, "rejected": [" x" + c for c in reversed(COMPLETIONS)]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A plain language model folder."""
    path = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def reward_trainer(base, path, data, tokenizer, peft_config=None):
    args = RewardConfig(
        output_dir=str(path),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=0.05,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=1,
    )
    return RewardTrainer(
        str(base),
        args=args,
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def lora():
    return LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])


@pytest.fixture(scope="module")
def stage(base, tmp_path_factory):
    """A reward-stage folder (LoRA and score head) after two steps of TRL's trainer, and that trainer."""
    path = tmp_path_factory.mktemp("reward")
    trainer = reward_trainer(base, path, PAIRS, make_tokenizer(), lora())
    trainer.train()
    trainer.save_model(str(path))
    return path, trainer


def trainers_own_scores(trainer, keys):
    """Scores of the trainer's own rows through its own model, one row at a time, without any padding."""
    trainer.model.eval()
    rows = [row[key] for key in keys for row in trainer.train_dataset]
    with torch.no_grad():
        return [trainer.model(input_ids=torch.tensor([row])).logits.item() for row in rows]


# --- as the reward model was trained --------------------------------------------------------------------------------
def test_scores_are_those_of_the_trainer(stage):
    path, trainer = stage
    reward = Learned(str(path), device="cpu")
    scores = reward(PROMPTS * 2, PAIRS["chosen"] + PAIRS["rejected"])
    assert scores == pytest.approx(trainers_own_scores(trainer, ["chosen_ids", "rejected_ids"]), abs=1e-5)
    assert len({round(score, 4) for score in scores}) > 4  # they say something


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_text_is_tokenized_as_the_trainer_does_it(base, tmp_path, pad):
    tokenizer = make_tokenizer(pad=pad)
    trainer = reward_trainer(base, tmp_path, PAIRS, tokenizer)
    reward = Learned(model=trainer.model, tokenizer=tokenizer)
    rows = {row_key: [row[row_key] for row in trainer.train_dataset] for row_key in ("chosen_ids", "rejected_ids")}
    for key in ("chosen", "rejected"):
        ours = [reward.encode(p, c) for p, c in zip(PROMPTS, PAIRS[key], strict=True)]
        assert ours == rows[f"{key}_ids"]
        assert all(ids[-1] == 2 and ids.count(2) == 1 for ids in ours)
    scores = reward(PROMPTS, PAIRS["chosen"])
    assert scores == pytest.approx(trainers_own_scores(trainer, ["chosen_ids"]), abs=1e-5)


def test_messages_are_tokenized_as_the_trainer_does_it(base, tmp_path):
    tokenizer = make_tokenizer(chat_template=CHAT)
    prompts = [[{"role": "system", "content": "be nice"}, {"role": "user", "content": text}] for text in PROMPTS]
    data = {"prompt": prompts}
    for key in ("chosen", "rejected"):
        data[key] = [[{"role": "assistant", "content": text}] for text in PAIRS[key]]
    trainer = reward_trainer(base, tmp_path, data, tokenizer)
    reward = Learned(model=trainer.model, tokenizer=tokenizer)
    ours = [reward.encode(p, c) for p, c in zip(prompts, data["chosen"], strict=True)]
    assert ours == [row["chosen_ids"] for row in trainer.train_dataset]
    assert not any(2 in ids for ids in ours)  # the template has no end-of-text token, and none is added
    scores = reward(prompts, data["chosen"])
    assert scores == pytest.approx(trainers_own_scores(trainer, ["chosen_ids"]), abs=1e-5)


# --- trap 21: padding and batch-mates -------------------------------------------------------------------------------
@pytest.mark.parametrize("pad", ["<pad>", "<eos>", None])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_score_depends_on_no_padding_and_no_batch_mate(pad, batch_size):
    torch.manual_seed(3)
    model = LlamaForSequenceClassification(tiny_config(num_labels=1)).eval()
    model.config.pad_token_id = None
    tokenizer = make_tokenizer(pad=pad)
    reward = Learned(model=model, tokenizer=tokenizer, batch_size=batch_size)
    single = [reward([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(single, abs=1e-6)
    assert reward(PROMPTS[::-1], COMPLETIONS[::-1]) == pytest.approx(single[::-1], abs=1e-6)
    assert len({round(score, 5) for score in single}) == len(single)
    assert tokenizer.pad_token == pad  # the caller's tokenizer is left alone


def test_the_end_is_read_where_pad_is_not_eos():
    torch.manual_seed(3)
    model = LlamaForSequenceClassification(tiny_config(num_labels=1)).eval()
    reward = Learned(model=model, tokenizer=make_tokenizer())
    ids = reward.encode("the cat =>", " sat")
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state
    expected = model.score(hidden)[0, -1, 0].item()  # over the eos
    assert reward(["the cat =>"], [" sat"]) == [pytest.approx(expected, abs=1e-6)]


# --- models that must be refused ------------------------------------------------------------------------------------
def test_an_adapter_without_its_score_head_is_refused(stage, tmp_path):
    path, _ = stage
    shutil.copytree(path, tmp_path / "headless")
    file = tmp_path / "headless" / "adapter_model.safetensors"
    weights = load_file(file)
    kept = {key: value for key, value in weights.items() if "score" not in key}
    assert len(kept) < len(weights)
    save_file(kept, file)
    with pytest.raises(RewardError, match="headless.*without its score head"):
        Learned(str(tmp_path / "headless"))(["p"], ["c"])


def test_a_language_model_is_refused_as_folder_and_as_adapter(base, tmp_path):
    with pytest.raises(RewardError, match="holds no score head"):
        Learned(str(base))(["p"], ["c"])
    model = get_peft_model(
        LlamaForCausalLM(tiny_config()), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(RewardError, match="adapter of type CAUSAL_LM.*SEQ_CLS"):
        Learned(str(tmp_path))(["p"], ["c"])


def test_a_missing_base_is_named(stage, tmp_path):
    shutil.copytree(stage[0], tmp_path / "moved")
    file = tmp_path / "moved" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "runs/gone/base"}))
    with pytest.raises(RewardError, match="moved.*'runs/gone/base'"):
        Learned(str(tmp_path / "moved"))(["p"], ["c"])


def test_pickled_weights_are_refused(tmp_path):
    model = LlamaForSequenceClassification(tiny_config(num_labels=1))
    model.config.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(RewardError, match="cannot load"):
        Learned(str(tmp_path))(["p"], ["c"])


def test_nothing_there_is_one_clear_line(tmp_path):
    with pytest.raises(RewardError) as caught:
        Learned(str(tmp_path / "none"))(["p"], ["c"])
    assert str(tmp_path / "none") in str(caught.value) and "\n" not in str(caught.value)


# --- classifiers ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A BERT with three labels: it has no score head on the last token but a classifier on the first one."""
    path = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        id2label={0: "negative", 1: "neutral", 2: "Positive"},
        label2id={"negative": 0, "neutral": 1, "Positive": 2},
        initializer_range=1.0,
    )
    BertForSequenceClassification(config).save_pretrained(path)
    make_tokenizer(model_max_length=24).save_pretrained(path)
    return path


def probabilities(path, text):
    model = BertForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        ids = make_tokenizer()(text, return_tensors="pt")["input_ids"]
        return model(input_ids=ids).logits.softmax(-1)[0].tolist()


def test_the_score_of_a_classifier_is_the_probability_of_its_label(classifier):
    expected = probabilities(classifier, "no => sat on")
    for i, label in enumerate(["negative", "neutral", "positive"]):
        reward = Learned(str(classifier), label=label, device="cpu")
        assert reward(["no =>"], [" sat on"]) == [pytest.approx(expected[i], abs=1e-6)]
    alone = Learned(str(classifier), label="neutral", include_prompt=False, device="cpu")
    assert alone(["no =>"], [" sat on"]) == [pytest.approx(probabilities(classifier, " sat on")[1], abs=1e-6)]


def test_several_labels_at_once_are_sigmoids(classifier, tmp_path):
    model = BertForSequenceClassification.from_pretrained(classifier, problem_type="multi_label_classification").eval()
    reward = Learned(model=model, tokenizer=make_tokenizer(), label="neutral")
    with torch.no_grad():
        logits = model(input_ids=make_tokenizer()("a b", return_tensors="pt")["input_ids"]).logits
    assert reward(["a"], [" b"]) == [pytest.approx(logits.sigmoid()[0, 1].item(), abs=1e-6)]


def saved(folder, model):
    model.save_pretrained(folder)
    make_tokenizer(padding_side="right", model_max_length=24).save_pretrained(folder)
    return str(folder)


def test_sentiment_with_two_classes(classifier, tmp_path):
    """softmax of (0, log 3) is (1/4, 3/4), whatever the text."""
    names = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}, "num_labels": 2}
    config = BertConfig.from_pretrained(classifier, **names)
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, math.log(3)]))
    path = saved(tmp_path, model)
    for label, score in (("positive", 3 / 4), ("negative", 1 / 4)):
        ((reward, _),) = build_rewards([{"name": "learned", "path": path, "label": label, "device": "cpu"}])
        assert reward(["a", "b"], ["good", ""]) == pytest.approx([score] * 2)


def test_toxicity_with_several_labels_at_once_as_a_penalty(classifier, tmp_path):
    """Sigmoids of (0, log 3, -log 3) are 1/2, 3/4 and 1/4: they need not sum to 1."""
    names = {"toxic": 0, "insult": 1, "threat": 2}
    config = BertConfig.from_pretrained(
        classifier,
        id2label={i: name for name, i in names.items()},
        label2id=names,
        problem_type="multi_label_classification",
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, math.log(3), -math.log(3)]))
    path = saved(tmp_path, model)
    specs = [{"name": "learned", "path": path, "label": name, "weight": -1.0, "device": "cpu"} for name in names]
    built = build_rewards(specs)
    assert [weight * reward(["p"], ["c"])[0] for reward, weight in built] == pytest.approx([-1 / 2, -3 / 4, -1 / 4])


def test_a_regression_head_gives_its_number_as_it_is(classifier, tmp_path):
    one = BertForSequenceClassification(
        BertConfig.from_pretrained(classifier, num_labels=1, problem_type="regression")
    )
    several = BertForSequenceClassification(BertConfig.from_pretrained(classifier, problem_type="regression"))
    with torch.no_grad():
        for model, values in ((one, [4.5]), (several, [0.5, -2.0, 3.0])):
            model.classifier.weight.zero_()
            model.classifier.bias.copy_(torch.tensor(values))
    assert Learned(saved(tmp_path / "one", one), device="cpu")(["p"], ["c"]) == pytest.approx([4.5])
    path = saved(tmp_path / "several", several)
    for label, score in (("negative", 0.5), ("neutral", -2.0), ("Positive", 3.0)):
        assert Learned(path, label=label, device="cpu")(["p"], ["c"]) == pytest.approx([score])


def test_messages_for_a_classifier_without_a_template_are_their_text(classifier):
    reward = Learned(str(classifier), label="neutral", device="cpu")
    messages = [[{"role": "user", "content": "no =>"}]], [[{"role": "assistant", "content": "sat on"}]]
    assert reward(*messages) == [pytest.approx(probabilities(classifier, "no =>\nsat on")[1], abs=1e-6)]


def test_labels_are_asked_for_and_checked(classifier):
    with pytest.raises(RewardError, match="negative, neutral, Positive"):
        Learned(str(classifier), device="cpu")(["p"], ["c"])
    with pytest.raises(RewardError, match="no label 'positiv'.*did you mean 'Positive'"):
        Learned(str(classifier), label="positiv", device="cpu")(["p"], ["c"])


def test_a_label_for_a_reward_model_is_refused(stage):
    with pytest.raises(RewardError, match="label is 'quality'.*one output.*log_name"):
        Learned(str(stage[0]), label="quality", device="cpu")(["p"], ["c"])


def test_too_long_a_text_loses_its_beginning(classifier):
    reward = Learned(str(classifier), label="neutral", device="cpu")
    long = "x y " * 30 + "sat on the mat"
    ids = make_tokenizer()(long)["input_ids"]
    assert len(ids) > 24 and reward.encode("", long) == ids[-24:]
    assert Learned(str(classifier), label="neutral", max_length=5).encode("", long) == ids[-5:]
    assert 0 < reward([""], [long])[0] < 1


def test_empty_texts_have_a_score(classifier):
    (score,) = Learned(str(classifier), label="neutral", device="cpu")([""], [""])
    assert 0 < score < 1


# --- the rest -------------------------------------------------------------------------------------------------------
def test_messages_for_a_reward_model_need_a_template(stage):
    messages = [[{"role": "user", "content": "a"}]], [[{"role": "assistant", "content": "b"}]]
    with pytest.raises(RewardError, match="chat template"):
        Learned(str(stage[0]), device="cpu")(*messages)
    reward = Learned(str(stage[0]), template=CHAT, device="cpu")
    assert (
        reward.tokenizer.decode(reward.encode(messages[0][0], messages[1][0])) == "<bos>user: a\n<bos>assistant: b\n"
    )


def test_nothing_is_loaded_before_the_first_score_and_nothing_learns(stage):
    ((reward, _),) = build_rewards([{"name": "learned", "path": str(stage[0]), "device": "cpu"}])
    assert reward._model is None
    assert not reward.model.training and not any(p.requires_grad for p in reward.model.parameters())
    reward(["p"], ["c"])
    assert reward.__name__ == "learned"


def test_a_whole_model_folder_and_its_eos_setting(tmp_path):
    torch.manual_seed(3)
    model = LlamaForSequenceClassification(tiny_config(num_labels=1)).eval()
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert Learned(str(tmp_path)).encode("a", "b")[-1] == 2
    assert 2 not in Learned(str(tmp_path), append_eos=False).encode("a", "b")
    assert Learned(str(tmp_path)).encode("a", "b<eos>").count(2) == 1
    assert not any(p.requires_grad for p in Learned(str(tmp_path), device="cpu").model.parameters())
    assert all(p.requires_grad for p in model.parameters())  # a model that is handed in is left as it is
    expected = Learned(model=model, tokenizer=make_tokenizer())(PROMPTS, COMPLETIONS)
    assert Learned(str(tmp_path), device="cpu")(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-6)


def test_a_head_that_reads_the_last_position_is_refused(tiny_tokenizer):
    """XLNet's reads what stands last in a batch, padding or not."""
    config = tiny.config_of("xlnet", num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(RewardError, match="scores a text otherwise when it stands in a batch"):
        Learned(model=model, tokenizer=tiny_tokenizer)(["a"], ["b"])
