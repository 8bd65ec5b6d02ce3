"""Held-out evaluation: completions, log-probabilities and scores, against sums by hand."""

import pytest
import torch
import toy
from toy import EOS, PROMPTS, A, B, C, D, E

from pipeline.errors import UserError
from pipeline.exam import evaluation

OPTIONS = {"max_new_tokens": 5, "eos_token_ids": [EOS]}


@pytest.fixture
def model():
    return toy.build_model().eval()


def greedy_by_hand(model, prompt: str, length: int) -> list[int]:
    ids, answer = toy.tokenizer()(prompt)["input_ids"], []
    with torch.no_grad():
        while len(answer) < length and EOS not in answer:
            answer.append(model(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax().item())
    return answer


def test_greedy_completions_by_hand(model):
    found = evaluation.complete(model, toy.tokenizer(), PROMPTS, 5, [EOS], temperature=0)
    assert found == [greedy_by_hand(model, prompt, 5) for prompt in PROMPTS]


def test_greedy_does_not_depend_on_the_batch(model):
    tokenizer = toy.tokenizer()
    whole = evaluation.complete(model, tokenizer, PROMPTS, 5, [EOS], temperature=0)
    for size in (1, 3):
        assert evaluation.complete(model, tokenizer, PROMPTS, 5, [EOS], temperature=0, batch_size=size) == whole


def test_a_hostile_generation_config_does_not_count(model):
    plain = evaluation.complete(model, toy.tokenizer(), PROMPTS * 4, 5, [EOS], seed=3)
    for name, value in {"repetition_penalty": 3.0, "top_k": 1, "top_p": 0.1, "no_repeat_ngram_size": 1}.items():
        setattr(model.generation_config, name, value)
    model.generation_config.suppress_tokens = [A]
    assert evaluation.complete(model, toy.tokenizer(), PROMPTS * 4, 5, [EOS], seed=3) == plain
    assert any(A in row for row in plain)


def test_sampling_has_the_distribution_of_the_policy(model):
    found = evaluation.complete(model, toy.tokenizer(), ["cd"] * 3000, 1, [EOS], temperature=0.6, batch_size=1000)
    p = torch.stack([toy.hand_logprobs(model, [C, D], [token], 0.6)[0] for token in range(9)]).exp()
    share = torch.bincount(torch.tensor(found)[:, 0], minlength=9) / 3000
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / 3000).sqrt() + 1e-9).all()


def test_seed_and_random_state(model):
    tokenizer = toy.tokenizer()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = evaluation.complete(model, tokenizer, PROMPTS, 5, [EOS], seed=1)
    assert torch.equal(torch.rand(3), expected)  # the caller's random numbers go on as if nothing had been
    torch.rand(100)
    assert evaluation.complete(model, tokenizer, PROMPTS, 5, [EOS], seed=1) == first
    assert evaluation.complete(model, tokenizer, PROMPTS, 5, [EOS], seed=2) != first


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_put_back(model, training):
    model.train(training)
    evaluation.complete(model, toy.tokenizer(), ["c"], 2, [EOS])
    assert model.training is training
    evaluation.logprobs(model, toy.tokenizer(), ["c"], [[A]])
    assert model.training is training


def test_completions_end_at_the_first_of_several_ids(model):
    found = evaluation.complete(model, toy.tokenizer(), PROMPTS * 4, 5, [EOS, E])
    assert all(not {EOS, E} & set(row[:-1]) for row in found) and {row[-1] for row in found} >= {EOS, E}
    assert all(len(row) == 5 or row[-1] in (EOS, E) for row in found)


@pytest.mark.parametrize("build", [toy.build_model, toy.build_gpt2])
def test_logprobs_by_hand_padded_and_in_any_batch(build):
    model = build().eval()
    answers = [[A, B, EOS], [D], [A, A, A, A, A], [E, EOS]]
    prompts = ["c", "dcec", "ed", "ccdd"]
    for size in (1, 2, 32):
        found = evaluation.logprobs(model, toy.tokenizer(), prompts, answers, temperature=0.7, batch_size=size)
        for prompt, answer, row in zip(prompts, answers, found, strict=True):
            by_hand = toy.hand_logprobs(model, toy.tokenizer()(prompt)["input_ids"], answer, 0.7)
            torch.testing.assert_close(row.double(), by_hand, atol=1e-5, rtol=1e-5)


def test_judge_puts_rewards_and_referee_side_by_side(model):
    rows = [{"prompt": prompt, "fact": str(i)} for i, prompt in enumerate(PROMPTS)]
    seen = {}

    def reward(prompts, completions, completion_ids, fact):
        seen.update(prompts=prompts, ids=completion_ids, fact=fact)
        return [None if p == "c" else 2.0 for p in prompts]

    def referee(completion, row):
        return {"letters": float(len(completion)), "row": float(row["fact"])}

    found = evaluation.answer_and_score(
        model, toy.tokenizer(), rows, {"mine": reward}, referee, temperature=0, **OPTIONS
    )
    ids = [greedy_by_hand(model, prompt, 5) for prompt in PROMPTS]
    texts = [toy.tokenizer().decode(row, skip_special_tokens=True) for row in ids]
    assert found.completion_ids == seen["ids"] == ids and found.completions == texts
    assert seen["prompts"] == PROMPTS and seen["fact"] == [str(i) for i in range(8)]
    assert found.finished == [row[-1] == EOS for row in ids]
    assert found.scores["letters"] == [len(text) for text in texts] and found.scores["row"] == list(range(8))
    means = found.means()
    assert means["mine"] == 2.0 and means["row"] == 3.5  # a row without a score is left out
    assert means["length"] == pytest.approx(sum(map(len, ids)) / 8)
    assert means["finished"] == pytest.approx(sum(row[-1] == EOS for row in ids) / 8)


@pytest.mark.parametrize("score", [float("inf"), -float("inf")])
def test_an_infinite_score_has_no_mean(model, score):
    rewards = {"wild": lambda prompts, **_: [0.5] * (len(prompts) - 1) + [score]}
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    with pytest.raises(UserError, match="The reward wild returned an infinite score"):
        evaluation.answer_and_score(model, toy.tokenizer(), rows, rewards, None, temperature=0, **OPTIONS)


def test_a_model_that_has_diverged_samples_nothing(model):
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    with pytest.raises(UserError, match="probabilities are not finite.*lower learning_rate"):
        evaluation.answer_and_score(model, toy.tokenizer(), rows, {}, None, temperature=1.0, **OPTIONS)


def test_a_reward_called_length_keeps_its_name():
    found = evaluation.ScoredAnswers(["a", "b"], [[3], [3, 4]], [True, False], {"length": [-1.0, 0.0]}, {})
    assert found.means() == {"length": -0.5, "tokens": 1.5, "finished": 0.5}


def test_messages_go_through_the_chat_template(model):
    tokenizer = toy.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ 'd' + m['content'] }}{% endfor %}{{ 'e' }}"
    chat = [[{"role": "user", "content": "cc"}]]
    assert evaluation.tokenize_prompts(tokenizer, chat) == [[D, C, C, E]]
    seen = []

    def reward(prompts, completions, completion_ids):
        seen.extend(completions)
        return [1.0]

    found = evaluation.answer_and_score(
        model, tokenizer, [{"prompt": chat[0]}], {"mine": reward}, None, temperature=0, **OPTIONS
    )
    answer = greedy_by_hand(model, "dcce", 5)
    assert found.completion_ids == [answer]
    text = tokenizer.decode(answer, skip_special_tokens=True)
    assert seen == [[{"role": "assistant", "content": text}]] and found.completions == [text]
