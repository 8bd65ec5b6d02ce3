"""`generate` and `step`: rollouts of the user's own making, through the code that `train()` runs."""

import pytest
import torch
import toy
from toy import ANSWERS, EOS, PROMPTS, A, B

from pipeline.errors import UserError
from pipeline.rollouts.own_loop import Completion
from rewards import RewardError


def own(tmp_path, **settings):
    return toy.make_trainer(tmp_path, toy.with_sft_adapter(), reward=None, prompts=None, **settings)


SETTINGS = {
    "total_episodes": 24,
    "num_mini_batches": 2,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "linear",
}


def test_steps_of_ones_own_are_the_steps_of_train(tmp_path):
    """The same completions and scores, once through train() and once by hand: the same bits in policy and critic."""
    trained = toy.make_trainer(
        tmp_path, toy.with_sft_adapter(), rollout_func=toy.canned(ANSWERS), shuffle_dataset=False, **SETTINGS
    )
    seen = []
    reward = trained.reward_funcs[0]

    def recording(prompts, completions, **columns):
        seen.append(list(prompts))
        torch.manual_seed(5)  # the next thing that is drawn is the order in the mini-batches
        return reward(prompts, completions, **columns)

    trained.reward_funcs = [recording]
    trained.train()
    assert len(seen) == 3

    by_hand = own(tmp_path, **SETTINGS)
    for i, prompts in enumerate(seen):
        completions = [ANSWERS[p] for p in prompts]
        texts = by_hand.processing_class.batch_decode(completions, skip_special_tokens=True)
        torch.manual_seed(5)
        logs = by_hand.step(prompts, completions, toy.letters(prompts, texts))
        assert logs["episodes"] == 8 * (i + 1) and logs["score"] == pytest.approx(3 / 8)
    assert by_hand.state.global_step == trained.state.global_step == 12
    rows = [row for row in trained.state.log_history if "loss" in row]
    assert logs["loss"] == rows[-1]["loss"] and logs["learning_rate"] == rows[-1]["learning_rate"]
    expected = toy.learned(trained)
    assert all(torch.equal(p, expected[n]) for n, p in toy.learned(by_hand).items())


def test_generate_and_step_learn(tmp_path):
    """Reward a's: after some updates there are more of them."""
    trainer = own(tmp_path, total_episodes=8 * 12, num_iterations=4, kl_coef=0.0, learning_rate=3e-2)
    counts = []
    for _ in range(12):
        completions = trainer.generate(PROMPTS)
        assert all(isinstance(c, Completion) and 1 <= len(c.ids) <= 6 for c in completions)
        assert trainer.processing_class.batch_decode([c.ids for c in completions], skip_special_tokens=True) == [
            c.text for c in completions
        ]
        scores = [float(c.text.count("a")) for c in completions]
        counts.append(sum(scores))
        trainer.step(PROMPTS, completions, torch.tensor(scores))
    assert sum(counts[-4:]) > 1.5 * sum(counts[:4])


def test_scores_for_every_token(tmp_path):
    trainer = own(tmp_path, total_episodes=16, whiten_advantages=False, lam=0.0)
    ids = [ANSWERS[p] for p in PROMPTS]
    scores = [[float(t) for t in range(len(row))] for row in ids]
    scores[3] = None
    caught = {}
    plain = trainer._prepare_inputs

    def catch(rows):
        inputs = plain(rows)
        caught.setdefault("first", []).append(inputs)
        return inputs

    trainer._prepare_inputs = catch
    trainer.step(PROMPTS, ids, scores)
    # λ = 0, V = 0 and no KL at first: the advantage is the token's own score; the row without scores is left out
    batches = caught["first"][:2]
    found = {tuple(r): a for b in batches for r, a in zip(toy.real(b), b["advantages"].tolist(), strict=True)}
    for row, score in zip(ids, scores, strict=True):
        assert found[tuple(row)][: len(row)] == pytest.approx(score or [0.0] * len(row), abs=1e-5)


def test_texts_are_tokenized_and_ended(tmp_path):
    trainer = own(tmp_path)
    assert trainer._ids_of("ba") == [B, A, EOS] and trainer._ids_of(torch.tensor([A, EOS])) == [A, EOS]
    logs = trainer.step(PROMPTS, ["b", "ba", "c", "d", "e", "a", "da", "e"], [0, 1, 0, 0, 0, 1, 1, 0])
    assert (logs["length/min"], logs["length/max"], logs["finished"]) == (2, 3, 1.0)


def test_conversational_prompts(tmp_path):
    tokenizer = toy.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    trainer = toy.make_trainer(tmp_path, reward=None, prompts=None, tokenizer_=tokenizer)
    prompts = [[{"role": "user", "content": p}] for p in PROMPTS]
    completions = trainer.generate(prompts)
    assert completions[0].text[0]["role"] == "assistant"
    assert trainer.step(prompts, completions, [1.0] * 8)["score"] == 1.0


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"prompts": PROMPTS[:7]},
            "step.. got 7 prompts, but a rollout of one process has 8: per_device_train_batch_",
        ),
        ({"completions": [[A, EOS]] * 9}, "step.. got 9 completions"),
        ({"scores": [1.0]}, "step.. got 1 scores"),
        ({"completions": [[A, EOS]] * 7 + [[]]}, r"completions\[7\] has no tokens"),
        ({"scores": [[1.0, 2.0]] * 7 + [[1.0]]}, r"scores\[7\] has 1 numbers, but its completion has 2 tokens"),
        ({"scores": [[1.0, 2.0]] * 7 + [1.0]}, r"scores\[7\] has one number, but its completion has 2 tokens"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, change, words):
    trainer = own(tmp_path)
    given = {"prompts": PROMPTS, "completions": [[A, EOS]] * 8, "scores": [1.0] * 8} | change
    before = toy.learned(trainer)
    with pytest.raises(UserError, match=words):
        trainer.step(**given)
    assert all(torch.equal(p, before[n]) for n, p in toy.learned(trainer).items())


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UserError, match="no train_dataset"):
        own(tmp_path).train()
    with pytest.raises(RewardError, match="no reward_funcs"):
        toy.make_trainer(tmp_path, reward=None).train()
    with pytest.raises(UserError, match="needs total_episodes"):
        own(tmp_path, total_episodes=None).step(PROMPTS, [[A, EOS]] * 8, [1.0] * 8)
    trainer = own(tmp_path)
    trainer.step(PROMPTS, [[A, EOS]] * 8, [1.0] * 8)
    with pytest.raises(UserError, match="used up"):
        trainer.step(PROMPTS, [[A, EOS]] * 8, [1.0] * 8)
