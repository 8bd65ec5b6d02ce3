"""The perplexity reward against log-probabilities of single, unpadded sequences, on tiny random models."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scored import COMPLETIONS, NOTHING, PROMPTS, V, by_hand, ids, make_model, make_tokenizer, tiny_config
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertLMHeadModel, LlamaForCausalLM, LlamaForSequenceClassification

from rewards import Perplexity, RewardError, build_rewards

CHAT = (
    "{% for m in messages %}<bos>{{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant:\n{% endif %}"
)


@pytest.fixture(scope="module")
def model():
    return make_model()


def bos_tokenizer(**options):
    """One that puts <bos> before each text, as Llama's does."""
    tokenizer = make_tokenizer(**options)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    assert tokenizer("x")["input_ids"][0] == 1
    return tokenizer


# --- values ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_score_is_the_mean_log_probability_and_no_padding_or_batch_mate_changes_it(model, batch_size):
    reward = Perplexity(model=model, tokenizer=make_tokenizer(), batch_size=batch_size)
    expected = [by_hand(model, ids(p), ids(c)) for p, c in zip(PROMPTS[:3], COMPLETIONS[:3], strict=True)] + [NOTHING]
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    assert reward(PROMPTS[::-1], COMPLETIONS[::-1]) == pytest.approx(expected[::-1], abs=1e-5)
    assert len({round(score, 3) for score in expected}) == 4


@pytest.mark.parametrize("include_prompt", [True, False])
def test_a_model_that_knows_nothing_gives_minus_log_v(include_prompt):
    model = make_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    reward = Perplexity(model=model, tokenizer=make_tokenizer(), include_prompt=include_prompt)
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx([-math.log(V)] * 4, abs=1e-6)


def test_a_model_of_two_tokens_by_pencil():
    """Whatever came before, p(a) = 3/4 and p(b) = 1/4: "aab" has (2 log 3/4 + log 1/4) / 3."""

    class Fixed:
        config = tiny_config()

        def __call__(self, input_ids, attention_mask):
            logits = torch.full((*input_ids.shape, V), -1e9)
            logits[..., ids("a")[0]], logits[..., ids("b")[0]] = math.log(3 / 4), math.log(1 / 4)
            return type("Output", (), {"logits": logits})

    reward = Perplexity(model=Fixed(), tokenizer=make_tokenizer())
    third = (2 * math.log(3 / 4) + math.log(1 / 4)) / 3
    assert reward(["x", "x"], ["aab", "b"]) == pytest.approx([third, math.log(1 / 4)], abs=1e-6)


def test_bfloat16_models_are_read_in_float32(model):
    class Half:
        config = model.config

        def __call__(self, **inputs):
            return type("Output", (), {"logits": model(**inputs).logits.bfloat16()})

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids("the cat =>") + ids(" ran")])).logits[0].bfloat16().double()
    start = len(ids("the cat =>"))
    said = logits[start - 1 : -1].log_softmax(-1)
    expected = sum(said[t, token].item() for t, token in enumerate(ids(" ran"))) / len(ids(" ran"))
    reward = Perplexity(model=Half(), tokenizer=make_tokenizer())
    assert reward(["the cat =>"], [" ran"]) == pytest.approx([expected], abs=1e-5)


# --- what is judged, after what -------------------------------------------------------------------------------------
def test_without_the_prompt_the_text_stands_after_the_begin_of_text_token(model):
    alone = Perplexity(model=model, tokenizer=make_tokenizer(), include_prompt=False)
    expected = by_hand(model, [1], ids(" sat on the mat"))
    assert alone(["the cat =>"], [" sat on the mat"]) == pytest.approx([expected], abs=1e-5)
    # nothing as a prompt is no prompt; a one-token text has a score as well
    with_prompt = Perplexity(model=model, tokenizer=make_tokenizer())
    assert with_prompt(["", ""], [" sat on the mat", "x"]) == pytest.approx(
        [expected, by_hand(model, [1], ids("x"))], abs=1e-5
    )


def test_a_tokenizer_without_a_begin_of_text_token_starts_with_its_end_of_text(model):
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    reward = Perplexity(model=model, tokenizer=tokenizer, include_prompt=False)
    assert reward(["p"], ["cat"]) == pytest.approx([by_hand(model, [2], ids("cat"))], abs=1e-5)
    tokenizer.eos_token = None
    with pytest.raises(RewardError, match="neither a begin-of-text nor an end-of-text"):
        Perplexity(model=model, tokenizer=tokenizer)(["p"], ["cat"])


def test_a_begin_of_text_token_that_the_tokenizer_adds_is_not_added_twice_nor_judged(model):
    tokenizer = bos_tokenizer()
    for include_prompt, before in ((True, [1, *ids("the cat =>")]), (False, [1])):
        reward = Perplexity(model=model, tokenizer=tokenizer, include_prompt=include_prompt)
        expected = by_hand(model, before, ids(" ran"))
        assert reward(["the cat =>"], [" ran"]) == pytest.approx([expected], abs=1e-5)


def test_a_token_across_the_border_is_the_completions(model):
    tokenizer = make_tokenizer()
    whole, begun = ids("on the"), ids("on t")
    common = next(i for i, (a, b) in enumerate(zip(whole, begun, strict=False)) if a != b)
    assert 0 < common < len(begun)  # " the" is one token, so " t" is no beginning of it
    row = Perplexity(model=model, tokenizer=tokenizer).encode("on t", "he")
    assert row == (whole, common)


def test_messages_are_read_through_the_template_and_the_completion_is_its_text(model):
    prompt = [{"role": "system", "content": "be nice"}, {"role": "user", "content": "the cat"}]
    said = [{"role": "assistant", "content": "sat on the mat"}]
    reward = Perplexity(model=model, tokenizer=bos_tokenizer(chat_template=CHAT))
    before = ids("<bos>system:\nbe nice\n<bos>user:\nthe cat\n<bos>assistant:\n")
    assert reward([prompt], [said]) == pytest.approx([by_hand(model, before, ids("sat on the mat"))], abs=1e-5)
    # the completion goes on with a message that the prompt begins
    begun = [{"role": "assistant", "content": "sat on"}]
    row = reward.encode(begun, [{"role": "assistant", "content": " the mat"}])
    assert reward.tokenizer.decode(row.ids) == "<bos>assistant:\nsat on the mat"
    # a model without a template reads the texts
    plain = Perplexity(model=model, tokenizer=make_tokenizer())
    row = plain.encode(prompt, said)
    assert row.ids == ids("be nice\nthe cat\nsat on the mat")
    assert plain.tokenizer.decode(row.ids[row.start :]) == "sat on the mat"
    assert plain([prompt], [[{"role": "assistant", "content": None}]]) == pytest.approx([NOTHING])


def test_of_too_long_a_text_the_beginning_is_left_out(model):
    long, said = "x y " * 60, " sat on the mat"
    assert len(ids(long)) > 100
    reward = Perplexity(model=model, tokenizer=make_tokenizer(), max_length=20)
    tail = (ids(long) + ids(said))[-20:]
    expected = by_hand(model, tail[: -len(ids(said))], ids(said))
    assert reward([long], [said]) == pytest.approx([expected], abs=1e-5)
    # a completion that is too long by itself: of what is left, all that has something before it
    short = Perplexity(model=model, tokenizer=make_tokenizer(), max_length=4)
    tail = ids("x =>" + "k q j z v w")[-4:]
    assert short(["x =>"], ["k q j z v w"]) == pytest.approx([by_hand(model, tail[:1], tail[1:])], abs=1e-5)
    whole = Perplexity(model=model, tokenizer=make_tokenizer())
    assert len(whole.encode(long * 4, said).ids) == 128  # what the model can read


# --- loading --------------------------------------------------------------------------------------------------------
def test_a_folder_and_an_adapter_folder(model, tmp_path):
    model.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    spec = {"name": "perplexity", "path": str(tmp_path / "base"), "device": "cpu", "clip": [-8, 0]}
    ((clipped, _),) = build_rewards([spec])
    handed = Perplexity(model=model, tokenizer=make_tokenizer())(PROMPTS, COMPLETIONS)
    assert clipped(PROMPTS, COMPLETIONS) == pytest.approx([max(-8, score) for score in handed], abs=1e-5)
    reward = Perplexity(str(tmp_path / "base"), device="cpu")
    assert reward._model is None  # nothing is loaded before the first score
    assert not reward.model.training and not any(p.requires_grad for p in reward.model.parameters())
    assert all(p.requires_grad for p in model.parameters())  # a model that is handed in is left as it is

    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(base, lora)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = by_hand(adapted.eval(), ids("the cat =>"), ids(" ran"))
    score = Perplexity(str(tmp_path / "adapter"), device="cpu")(["the cat =>"], [" ran"])
    assert score == pytest.approx([expected], abs=1e-5)
    assert abs(expected - by_hand(model, ids("the cat =>"), ids(" ran"))) > 0.01


def test_a_model_that_can_skip_the_prompts_positions_does(model):
    seen = []

    class Watched(LlamaForCausalLM):
        def forward(self, *args, logits_to_keep=0, **kwargs):
            seen.append(logits_to_keep)
            return super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)

    watched = Watched(model.config).eval()
    watched.load_state_dict(model.state_dict())
    score = Perplexity(model=watched, tokenizer=make_tokenizer())(["the cat =>"] * 2, [" ran", " sat on"])
    assert seen == [1 + max(len(ids(" ran")), len(ids(" sat on")))]
    expected = [by_hand(model, ids("the cat =>"), ids(text)) for text in (" ran", " sat on")]
    assert score == pytest.approx(expected, abs=1e-5)


def test_what_is_no_language_model_is_refused(model, tmp_path):
    LlamaForSequenceClassification(tiny_config(num_labels=1)).save_pretrained(tmp_path / "scorer")
    make_tokenizer().save_pretrained(tmp_path / "scorer")
    with pytest.raises(RewardError, match="no whole language model.*lm_head.weight would be random"):
        Perplexity(str(tmp_path / "scorer"))(["p"], ["c"])

    scorer = LlamaForSequenceClassification(tiny_config(num_labels=1))
    get_peft_model(scorer, LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS")).save_pretrained(tmp_path / "r")
    with pytest.raises(RewardError, match="adapter of type SEQ_CLS.*CAUSAL_LM"):
        Perplexity(str(tmp_path / "r"))(["p"], ["c"])

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    both_ways = BertLMHeadModel(BertConfig(vocab_size=V, **sizes))
    with pytest.raises(RewardError, match="both directions"):
        Perplexity(model=both_ways, tokenizer=make_tokenizer())(["p"], ["c"])

    with pytest.raises(RewardError) as caught:
        Perplexity(str(tmp_path / "none"))(["p"], ["c"])
    assert str(tmp_path / "none") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec, message",
    [
        ({}, "either path"),
        ({"path": "x", "dtype": "float"}, "dtype is 'float'.*float32"),
        ({"path": "x", "max_length": 1}, "max_length is 1"),
        ({"path": "x", "include_prompt": "yes"}, "include_prompt is 'yes'"),
        ({"path": "x", "batchsize": 3}, "batch_size"),
        ({"path": "x", "model": 1}, "no option 'model'"),
    ],
)
def test_options_are_checked(spec, message):
    with pytest.raises(RewardError, match=message):
        build_rewards([{"name": "perplexity"} | spec])
