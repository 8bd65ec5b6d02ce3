"""What each token earned and which tokens became likelier: against the pencil and against probabilities by hand."""

import json
import math
import random

import pytest
import torch
from conftest import build_tokenizer
from short_runs import SETTINGS, prompts_file, run_ppo
from toy import (
    AB,
    ANSWERS,
    EOS,
    PROMPTS,
    A,
    B,
    C,
    D,
    hand_logprobs,
    letters,
    make_trainer,
    randomize,
    tokenizer,
    with_sft_adapter,
)

from pipeline.config import DataArguments, ModelArguments
from pipeline.exam.evaluation import ScoredAnswers
from pipeline.exam.exam import Exam, RewardArguments
from pipeline.models.adapters import POLICY, use_adapter
from pipeline.stages import token_credit, token_shifts, trl_stage
from rewards import Instant, Shaped, token_ends

BEFORE = dict(zip(PROMPTS, [[B, EOS], [C, D], [A, A, EOS], [D, EOS], [EOS], [AB, EOS], [C], [D, D, EOS]], strict=True))


def scored(answers: dict[str, list[int]], prompts=PROMPTS) -> ScoredAnswers:
    ids = [answers[prompt] for prompt in prompts]
    texts = tokenizer().batch_decode(ids, skip_special_tokens=True)
    return ScoredAnswers(texts, ids, [row[-1] == EOS for row in ids], {"letters": letters(prompts, texts)})


def examined(tmp_path, trained=True, reward=letters, **settings):
    """An exam of a toy policy that starts as an adapter; `trained`: it has moved away from there."""
    trainer = make_trainer(tmp_path, model=with_sft_adapter(), reward=reward, **settings)
    if trained:
        randomize(trainer.model, POLICY, seed=9)
    if trainer.critic is not None:
        torch.nn.init.normal_(trainer.critic.head.weight, generator=torch.Generator().manual_seed(0))
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    return Exam(trainer, trainer.reference_adapter, rows, {"letters": reward}, {"letters": 1.0})


def written(exam, folder, before=BEFORE, after=ANSWERS):
    token_credit.write(exam, scored(before), scored(after), folder)
    rows = [json.loads(line) for line in (folder / token_credit.TOKENS).read_text("utf-8").splitlines()]
    return rows, json.loads((folder / token_credit.SHIFTS).read_text("utf-8"))


def by_hand(exam, adapter, prompt, ids):
    with use_adapter(exam.model, adapter):
        return hand_logprobs(exam.model, exam.trainer.processing_class(prompt)["input_ids"], ids)


# ---------------------------------------------------------------- tokens as text
def test_pieces_make_up_the_text_and_no_character_is_split():
    """One token a byte: a character of several is whole at the token of its last byte."""
    byte_level = build_tokenizer()
    text = "a 鹭\n🦊é"
    ids = [*byte_level(text)["input_ids"], byte_level.eos_token_id]
    tokens = token_credit.pieces(text, token_ends([ids], [text], byte_level)[0], len(ids))
    assert tokens == ["a", " ", "", "", "鹭", "\n", "", "", "", "🦊", "", "é", ""]
    names = token_credit.silent(byte_level, ids, tokens)
    assert names == {"2": "…", "3": "…", "6": "…", "7": "…", "8": "…", "10": "…", "12": "</s>"}


def test_a_text_that_is_not_what_the_ids_decode_to_stands_at_the_last_token():
    assert token_credit.pieces("four", None, 3) == ["", "", "four"]
    assert token_credit.pieces("", None, 0) == []


def test_a_token_alone_keeps_its_space():
    byte_level = build_tokenizer()
    assert token_shifts.token_text(byte_level, byte_level.convert_tokens_to_ids("Ġ")) == " "
    assert token_shifts.token_text(byte_level, 2) == "</s>"
    first_byte = byte_level("鹭")["input_ids"][0]
    assert token_shifts.token_text(byte_level, first_byte) == byte_level.convert_ids_to_tokens(
        first_byte
    )  # half a character
    assert token_shifts.token_text(byte_level, 999) == "#999"  # a row of the embedding that has no token


# ---------------------------------------------------------------- which completions
def test_one_of_each_kind_in_turn_and_no_row_twice():
    nan = float("nan")
    before = torch.tensor([0.0, 5.0, 3.0, nan, 1.0, 1.0])
    after = torch.tensor([2.0, 5.0, -1.0, 0.5, nan, 1.5])
    # best 5, worst -1, changed by 2 (row 0); then best 1.5 (row 5), worst 0.5 (row 3), and nobody is left
    assert token_credit.choose(before, after, each=2) == {
        1: "best",
        2: "worst",
        0: "most changed",
        5: "best",
        3: "worst",
    }


def test_scores_are_weighted_and_an_answer_that_was_cut_pays(tmp_path):
    exam = examined(tmp_path, missing_eos_penalty=0.5)
    exam.rewards, exam.weights = {"a": letters, "b": letters}, {"a": 2.0, "b": 1.0}
    answers = ScoredAnswers(["x"] * 3, [[2]] * 3, [True, False, True], {"a": [1.0, 1.0, None], "b": [3.0, None, None]})
    scores = token_credit.scores_of(exam, answers)
    assert scores[:2].tolist() == [2 * 1 + 3, 2 * 1 - 0.5] and scores[2].isnan()


# ---------------------------------------------------------------- what each token earned
def test_rewards_add_up_and_probabilities_are_those_of_the_models(tmp_path):
    exam = examined(tmp_path, kl_coef=0.25, missing_eos_penalty=0.5, gamma=1.0, lam=1.0)
    rows, _ = written(exam, tmp_path)
    assert {row["row"] for row in rows} == set(range(8)) and len(rows) == 8
    for row in rows:
        prompt = PROMPTS[row["row"]]
        ids = ANSWERS[prompt]
        text = "".join(row["tokens"])
        assert row["prompt"] == prompt and text == tokenizer().decode(ids, skip_special_tokens=True)
        score = text.count("a") - text.count("d") - 0.5 * (ids[-1] != EOS)
        start, now = (by_hand(exam, adapter, prompt, ids) for adapter in (exam.reference, POLICY))
        assert row["score"] == pytest.approx(score) and row["kl_coef"] == 0.25
        assert row["kl"] == pytest.approx((now - start).tolist(), abs=1e-4)
        assert row["probs_before"] == pytest.approx(start.exp().tolist(), abs=1e-4)
        assert row["probs_after"] == pytest.approx(now.exp().tolist(), abs=1e-4)
        assert row["scores"] == pytest.approx([0.0] * (len(ids) - 1) + [score])  # all of it at the end
        assert row["rewards"] == pytest.approx(
            [s - 0.25 * k for s, k in zip(row["scores"], row["kl"], strict=True)], abs=1e-4
        )
        assert sum(row["rewards"]) == pytest.approx(score - 0.25 * (now - start).sum().item(), abs=1e-3)
        # with gamma = lambda = 1: what is still to come, less what was expected
        assert len(set(row["values"])) == len(ids)
        to_come = [sum(row["rewards"][t:]) for t in range(len(ids))]
        assert row["advantages"] == pytest.approx(
            [g - v for g, v in zip(to_come, row["values"], strict=True)], abs=1e-3
        )
        # those of the critic for one unpadded row
        prompt_ids = exam.trainer.processing_class(prompt)["input_ids"]
        whole = torch.tensor([prompt_ids + ids])
        with torch.no_grad():
            values = exam.trainer.critic.values(whole, torch.ones_like(whole), len(ids))[0]
        assert row["values"] == pytest.approx(values.tolist(), abs=1e-4)


def halves(rewards, values, mask, gamma, lam):
    """An advantage estimator of one's own: half the reward of each token, whatever the critic says."""
    return rewards / 2 * mask, values * mask


def test_advantages_are_those_of_the_estimator_that_trained(tmp_path):
    rows, _ = written(examined(tmp_path, advantage=f"{__name__}:halves"), tmp_path)
    assert all(row["advantages"] == pytest.approx([r / 2 for r in row["rewards"]], abs=1e-4) for row in rows)


def test_instant_rewards_stand_at_the_tokens_that_earn_them(tmp_path):
    exam = examined(tmp_path, reward=Instant(letters, at="tokens", log_name="letters"))
    row = next(row for row in written(exam, tmp_path)[0] if row["prompt"] == "cd")
    assert ANSWERS["cd"] == [D, D, A, C, B, A] and row["scores"] == [-1.0, -1.0, 1.0, 0.0, 0.0, 1.0]


def test_an_async_reward_is_waited_for(tmp_path):
    async def later(prompts, completions, **columns):
        return letters(prompts, completions)

    rows, _ = written(examined(tmp_path, reward=later), tmp_path)
    texts = ["".join(row["tokens"]) for row in rows]
    assert len(rows) == 8 and [row["score"] for row in rows] == [text.count("a") - text.count("d") for text in texts]


def test_reinforce_has_no_critic(tmp_path):
    rows, _ = written(examined(tmp_path, algorithm="reinforce", num_iterations=1), tmp_path)
    assert all(row["values"] is None and row["advantages"] is None for row in rows)
    assert all(len(row["rewards"]) == len(row["tokens"]) for row in rows)


def test_an_untrained_policy_has_moved_nowhere(tmp_path):
    rows, shifts = written(examined(tmp_path, trained=False), tmp_path)
    assert all(x == 0 for row in rows for x in row["kl"])
    assert all(row["probs_before"] == row["probs_after"] for row in rows)
    assert shifts["gains"] == shifts["losses"] == []


def test_nothing_is_disturbed(tmp_path):
    reward = Shaped(letters, "running", log_name="letters")
    exam = examined(tmp_path, reward=reward)
    reward([""] * 2, ["a", "d"])
    exam.model.train()

    def state():
        weights = {name: parameter.detach().clone() for name, parameter in exam.model.named_parameters()}
        learns = [parameter.requires_grad for parameter in exam.model.parameters()]
        return (
            weights,
            learns,
            exam.model.training,
            vars(reward.stats).copy(),
            torch.get_rng_state(),
            random.getstate(),
        )

    before = state()
    written(exam, tmp_path)
    after = state()
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:4] == after[1:4] and reward.training
    assert torch.equal(before[4], after[4]) and before[5] == after[5]


# ---------------------------------------------------------------- which tokens became likelier
def test_shifts_by_pencil():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])
    q = torch.tensor([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]])
    shifts = token_shifts.Shifts(3)
    shifts.add(0, p.log(), q.log())
    shifts.add(1, p[:1].log(), p[:1].log())  # a context in which nothing has changed
    assert shifts.positions == 3
    assert shifts.before.tolist() == pytest.approx([1.125, 1.25, 0.625])
    assert shifts.change.tolist() == pytest.approx([-0.125, -0.5, 0.625])
    # token 2 rises most at position 1 of completion 0, token 1 falls most there, token 0 at position 0
    assert shifts._place[0, 2].tolist() == [0, 1] and shifts._probs[0, 2].tolist() == pytest.approx([0.125, 0.5])
    assert shifts._place[1, 1].tolist() == [0, 1] and shifts._probs[1, 1].tolist() == pytest.approx([0.75, 0.25])
    assert shifts._place[1, 0].tolist() == [0, 0]


def test_a_long_completion_is_taken_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.log_softmax(torch.randn(7, 5, generator=generator), dim=-1) for _ in range(2))
    whole, parts = token_shifts.Shifts(5), token_shifts.Shifts(5)
    whole.add(0, p, q)
    monkeypatch.setattr(token_shifts, "_POSITIONS", 2)
    parts.add(0, p, q)
    torch.testing.assert_close(whole.change, parts.change)
    assert torch.equal(whole._place, parts._place) and torch.equal(whole._probs, parts._probs)
    assert whole._place[..., 1].max() > 2


def test_the_change_of_each_token_is_the_sum_over_all_contexts(tmp_path):
    exam = examined(tmp_path)
    changes = torch.zeros(9, dtype=torch.float64)
    ids_of_prompt = {prompt: exam.trainer.processing_class(prompt)["input_ids"] for prompt in PROMPTS}
    exam.model.eval()
    contexts = [
        (prompt, answers[prompt], t)
        for answers in (BEFORE, ANSWERS)
        for prompt in PROMPTS
        for t in range(len(answers[prompt]))
    ]
    at = {}
    for prompt, ids, t in contexts:
        both = []
        for adapter in (exam.reference, POLICY):
            with torch.no_grad(), use_adapter(exam.model, adapter):
                logits = exam.model(torch.tensor([ids_of_prompt[prompt] + ids[:t]])).logits[0, -1].double()
            both.append(torch.softmax(logits, dim=-1))
        at[prompt, tuple(ids[:t])] = both
        assert (both[1] - both[0]).sum().abs() < 1e-9
        changes += both[1] - both[0]
    rows, shifts = written(exam, tmp_path)
    assert shifts["positions"] == len(contexts) and shifts["completions"] == [8, 8]
    found = {entry["id"]: entry for entry in shifts["gains"] + shifts["losses"]}
    assert sorted(found) == list(range(9))  # the whole vocabulary is listed, so the changes add up to 0
    assert [found[i]["change"] for i in range(9)] == pytest.approx(changes.tolist(), abs=1e-4)
    assert sum(entry["change"] for entry in found.values()) == pytest.approx(0, abs=1e-5)
    gains = [entry["change"] for entry in shifts["gains"]]
    assert gains == sorted(gains, reverse=True) and gains[-1] > 0
    assert found[D]["sampled_before"] == 4 and found[D]["sampled_after"] == 6
    assert found[AB]["token"] == "ab" and found[EOS]["token"] == "<eos>"
    for entry in found.values():
        example = entry["example"]
        context = next(  # the example is one of the contexts, and its probabilities are those of the models there
            both
            for (prompt, ids), both in at.items()
            if prompt == example["prompt"]
            and tokenizer().decode(list(ids), skip_special_tokens=True) == example["context"]
            and both[0][entry["id"]].item() == pytest.approx(example["before"], abs=1e-4)
        )
        assert context[1][entry["id"]].item() == pytest.approx(example["after"], abs=1e-4)
        # nowhere did it change more in that direction
        sign = math.copysign(1, entry["change"])
        largest = max(sign * (q - p)[entry["id"]].item() for p, q in at.values())
        assert sign * (example["after"] - example["before"]) == pytest.approx(largest, abs=1e-4)


# ---------------------------------------------------------------- the stages write it
@pytest.mark.parametrize("messages", [False, True])
def test_the_ppo_stage_explains_itself(tmp_path, tiny_model_folder, messages):
    data = prompts_file(tmp_path)
    if messages:
        rows = [json.loads(line) for line in data.read_text().splitlines()]
        as_messages = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
        data.write_text("".join(json.dumps(row) + "\n" for row in as_messages))

    def size(prompts, completions, facts, **columns):
        assert len(facts) == len(completions) and all(facts)
        texts = [c[0]["content"] if messages else c for c in completions]
        return [float(len(text)) for text in texts]

    run_ppo(tmp_path / "out", tiny_model_folder, data, [{"name": size, "weight": 0.5}], None, total_episodes=4)
    samples = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (tmp_path / "out" / token_credit.TOKENS).read_text().split("\n") if line]
    assert sorted(row["row"] for row in rows) == [0, 1, 2]
    for row in rows:
        sample = samples[row["row"]]
        assert "".join(row["tokens"]) == sample["after"] and row["prompt"] == sample["prompt"]
        assert row["score"] == pytest.approx(0.5 * len(sample["after"]))
        assert len(row["advantages"]) == len(row["tokens"])
    assert json.loads((tmp_path / "out" / token_credit.SHIFTS).read_text())["gains"]


@pytest.mark.parametrize(("algorithm", "price"), [("grpo", 0.0), ("rloo", 0.25)])
def test_trls_trainers_have_no_critic_and_rloo_prices_the_kl(tmp_path, tiny_model_folder, algorithm, price):
    config = {"grpo": trl_stage.GRPOStage, "rloo": trl_stage.RLOOStage}[algorithm]

    def size(prompts, completions, **columns):
        return [float(len(text)) for text in completions]

    trl_stage.run(
        ModelArguments(str(tiny_model_folder), dtype="float32", lora_r=2),
        DataArguments(dataset=str(prompts_file(tmp_path)), eval_fraction=0.25),
        RewardArguments(rewards=[{"name": size, "weight": 0.5}], eval_samples=3, show_samples=0),
        config(
            **SETTINGS | {"output_dir": str(tmp_path / "out"), "total_episodes": 4, "learning_rate": 0.1},
            beta=0.25,
            missing_eos_penalty=1.5,
        ),
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / token_credit.TOKENS).read_text().split("\n") if line]
    assert len(rows) == 3
    for row in rows:
        finished = "</s>" in row["silent"].values()
        score = 0.5 * len("".join(row["tokens"])) - 1.5 * (not finished)
        assert row["values"] is None and row["advantages"] is None and row["kl_coef"] == price
        assert any(row["kl"]) and sum(row["scores"]) == row["score"] == pytest.approx(score)
        assert sum(row["rewards"]) == pytest.approx(score - price * sum(row["kl"]), abs=1e-3)
