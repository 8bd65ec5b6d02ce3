"""Ensembles of reward models: how they are trained and resumed, what `learned` makes of them, what PPO logs."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from reward_stage import PAIRS, runner
from safetensors.torch import load_file
from short_runs import prompts_file, run_ppo

from pipeline.config import RewardStage
from pipeline.errors import UserError
from pipeline.models.folders import resolve_stage
from pipeline.report import write_report
from pipeline.runs.folder import read_metrics
from pipeline.stages.reward_model import drawn
from rewards import Learned, RewardError, build_rewards
from rewards.ensemble import Ensemble, members_of, pessimistic
from rewards.tokens import token_ends

PROMPTS, COMPLETIONS = ["au =>", "bv =>", "cw =>"], [" au.", " no!", " what is that"]


def test_the_formula_by_pencil():
    """1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5, spread 1.870829."""
    assert pessimistic([1, 2, 3, 6], 0) == pytest.approx((3, 1.870829))
    assert pessimistic([1, 2, 3, 6], 0.5) == pytest.approx((2.0645857, 1.870829))
    assert pessimistic([2.5], 3.0) == (2.5, 0.0)


def test_any_rewards_can_be_its_members():
    def long(prompts, completions, **columns):
        return [float(len(text)) for text in completions]

    def sometimes(prompts, completions, **columns):
        return [None if text == "no" else 1.0 for text in completions]

    logged = []
    both = Ensemble([long, sometimes], 2.0, "both")
    scores = both(["", "", ""], ["abc", "no", "a"], log_metric=lambda *each: logged.append(each))
    assert scores == [pytest.approx(2 - 2 * 1), None, 1.0]  # 3 and 1; 2 and none; 1 and 1
    assert logged == [("both/spread", 0.5)]
    with pytest.raises(RewardError, match="pessimism is -1; give a number from 0 up"):
        Ensemble([long], -1.0)


def test_pairs_are_drawn_with_replacement():
    rows = Dataset.from_dict({"chosen": [str(i) for i in range(1000)]})
    one, again, other = (drawn(rows, number, 0)["chosen"] for number in (1, 1, 2))
    assert list(one) == list(again) != list(other) and len(one) == 1000
    # each row is left out with probability (1 - 1/1000)^1000, nearly 1/e: 632 different ones, give or take 10
    assert abs(len(set(one)) - 632) < 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_folder):
    """An ensemble of three: summary and folder."""
    folder = tmp_path_factory.mktemp("ensemble")
    with pytest.MonkeyPatch.context() as patch:
        run = runner(folder, tiny_model_folder, patch)
        summary, out, _ = run(PAIRS, ensemble=3, learning_rate=1e-2)
    return summary, folder / out


def scores_of(path) -> torch.Tensor:
    return torch.tensor(Learned(path=str(path), device="cpu")(PROMPTS, COMPLETIONS))


def test_members_are_reward_models_of_their_own(trained):
    summary, folder = trained
    assert json.loads((folder / "summary.json").read_text()) == summary
    members = members_of(str(folder))
    assert [member.name for member in members] == ["member_1", "member_2", "member_3"]
    found = [scores_of(member) for member in members]
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])
    assert summary["stage"] == "reward" and summary["ensemble"] == 3 and len(summary["members"]) == 3
    own = [json.loads((member / "summary.json").read_text()) for member in members]
    assert [it["accuracy"] for it in summary["members"]] == [it["accuracy"] for it in own]
    assert len({it["heldout_pairs"] for it in own}) == 1 and own[0]["pairs"] == 27  # of 36, a quarter held out


def test_held_out_pairs_have_mean_and_spread(trained):
    summary, folder = trained
    pairs, *each = (
        [json.loads(line) for line in (path / "pairs.jsonl").read_text().splitlines()]
        for path in (folder, *members_of(str(folder)))
    )
    for pair, *said in zip(pairs, *each, strict=True):
        assert {one["chosen"] for one in said} == {pair["chosen"]}  # all were measured on the same pairs
        for side in ("chosen", "rejected"):
            found = torch.tensor([one[f"score_{side}"] for one in said], dtype=torch.float64)
            assert pair[f"score_{side}"] == pytest.approx(found.mean().item())
            assert pair[f"spread_{side}"] == pytest.approx(found.std(correction=0).item())
    right = [pair["score_chosen"] > pair["score_rejected"] for pair in pairs]
    assert summary["accuracy"] == sum(right) / len(right) and summary["heldout_pairs"] == len(pairs) == 9
    assert summary["spread"] == pytest.approx(
        sum(pair[f"spread_{side}"] for pair in pairs for side in ("chosen", "rejected")) / 18
    )
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("pessimism", [0.0, 1.5])
def test_learned_takes_the_mean_less_the_spread(trained, pessimism):
    _, folder = trained
    [(reward, _)] = build_rewards([{"name": "learned", "path": str(folder), "pessimism": pessimism, "device": "cpu"}])
    each = torch.stack([scores_of(member) for member in members_of(str(folder))]).double()
    wanted = each.mean(dim=0) - pessimism * each.std(dim=0, correction=0)
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(wanted.tolist(), abs=1e-5)
    assert reward.__name__ == "learned"


def test_paid_at_each_word_by_the_same_formula(trained):
    """The sum is the score; what the first word is paid is the score of the text up to there."""
    _, folder = trained
    spec = {"name": "learned", "path": str(folder), "pessimism": 1.5, "device": "cpu"}
    [(plain, _)], [(instant, _)] = build_rewards([spec]), build_rewards([spec | {"instant": True}])
    tokenizer = plain.parts[0].reward
    tokenizer.prepare()
    tokenizer = tokenizer._tokenizer
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in COMPLETIONS]
    ends = token_ends(ids, COMPLETIONS, tokenizer)
    paid = instant.token_rewards(PROMPTS, COMPLETIONS, ids, ends)
    assert [math.fsum(row) for row in paid] == pytest.approx(plain(PROMPTS, COMPLETIONS), abs=1e-5)
    first = next(x for x in paid[2] if x)
    assert first == pytest.approx(plain(PROMPTS[2:], [" what"])[0], abs=1e-5)


def copied(whole: Path, folder: Path) -> dict:
    """Copies the finished run and its pairs into `folder`; returns the settings by which it is gone on with."""
    shutil.copytree(whole, folder / "part")
    shutil.copy(whole.parents[2] / "pairs.jsonl", folder / "pairs.jsonl")
    return {"ensemble": 3, "learning_rate": 1e-2, "out": "part", "resume": True, "dataset": "pairs.jsonl"}


def test_it_goes_on_with_the_member_that_was_missing(trained, tmp_path, tiny_model_folder, monkeypatch):
    summary, whole = trained
    run, asked = runner(tmp_path, tiny_model_folder, monkeypatch), copied(whole, tmp_path)
    untouched, _, _ = run(None, **asked)
    assert untouched == summary
    shutil.rmtree(tmp_path / "part/member_3")
    (tmp_path / "part/summary.json").unlink()
    (tmp_path / "part/.unfinished").touch()
    before = (tmp_path / "part/member_2/adapter_model.safetensors").stat().st_mtime_ns
    again, _, _ = run(None, **asked)
    assert {key: again[key] for key in ("accuracy", "spread", "members")} == {
        key: summary[key] for key in ("accuracy", "spread", "members")
    }
    assert (tmp_path / "part/member_2/adapter_model.safetensors").stat().st_mtime_ns == before
    ours, theirs = (load_file(folder / "member_3/adapter_model.safetensors") for folder in (tmp_path / "part", whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_settings_that_decide_the_result_are_held_fast(trained, tmp_path, tiny_model_folder, monkeypatch):
    summary, whole = trained
    run, asked = runner(tmp_path, tiny_model_folder, monkeypatch), copied(whole, tmp_path)
    for count in (2, 4):
        with pytest.raises(UserError, match=f"ensemble was 3 and is {count} now.*give another --output_dir$"):
            run(None, **asked | {"ensemble": count})
    with pytest.raises(UserError, match="learning_rate was 0.01 and is 0.5 now"):
        run(None, **asked | {"learning_rate": 0.5})
    with pytest.raises(UserError, match="ensemble was 3 and is 1 now"):
        run(None, **asked | {"ensemble": 1})
    assert [member.name for member in members_of("part")] == ["member_1", "member_2", "member_3"]
    assert json.loads((tmp_path / "part/summary.json").read_text()) == summary


def test_an_ensemble_of_which_a_part_is_missing(trained, tmp_path):
    _, whole = trained
    folder = tmp_path / "ensemble"
    shutil.copytree(whole, folder)
    shutil.copytree(whole / "member_1", folder / "member_1 (copy)")  # of nobody's making: not a fourth
    spec = {"name": "learned", "path": str(folder), "pessimism": 1.0}
    assert len(build_rewards([spec])[0].reward.parts) == 3
    shutil.copytree(whole / "member_1", folder / "member_4")
    with pytest.raises(RewardError, match="an ensemble of 3 reward models, but there are 4 in it: remove .* member_3"):
        build_rewards([spec])
    shutil.rmtree(folder / "member_4")
    for number, words in ((2, "of which member_2 is missing"), (3, "of which member_2, member_3 are missing")):
        shutil.rmtree(folder / f"member_{number}")
        with pytest.raises(RewardError, match=f"is an ensemble of 3 reward models, {words}: put back"):
            build_rewards([spec])
    (folder / "summary.json").unlink()
    with pytest.raises(RewardError, match="summary.json, which counts .*--resume"):
        build_rewards([spec])


def test_scores_of_a_run_that_diverged_are_an_error(tmp_path, tiny_model_folder, monkeypatch):
    run = runner(tmp_path, tiny_model_folder, monkeypatch)
    with pytest.raises(UserError, match="scores of held-out pairs are not finite.*lower learning_rate"):
        run(PAIRS, learning_rate=1e30, max_steps=1, warmup_steps=0)


def test_what_wants_one_reward_model_says_so(trained, tiny_model_folder, tmp_path, monkeypatch):
    _, folder = trained
    with pytest.raises(UserError, match="is an ensemble of 3 reward models: give one of them, as .*member_1"):
        resolve_stage(str(folder))
    with pytest.raises(RewardError, match="is an ensemble; give one of its reward models, such as .*member_1"):
        Learned(path=str(folder), device="cpu")(PROMPTS, COMPLETIONS)
    with pytest.raises(RewardError, match="pessimism is for an ensemble, and '.*member_1' is one reward model"):
        build_rewards([{"name": "learned", "path": str(folder / "member_1"), "pessimism": 0.5}])[0].reward.prepare()
    with pytest.raises(UserError, match="ensemble: 0 is not valid"):
        RewardStage(output_dir=str(tmp_path), ensemble=0, use_cpu=True)
    run = runner(tmp_path, tiny_model_folder, monkeypatch)
    with pytest.raises(UserError, match="push_to_hub: True is not valid: an ensemble is several folders"):
        run(PAIRS, ensemble=2, push_to_hub=True)


def test_ppo_with_an_ensemble_on_its_base(trained, tmp_path, tiny_model_folder):
    _, folder = trained
    rewards = [{"name": "learned", "path": str(folder), "pessimism": 0.5}]
    run_ppo(tmp_path / "ppo", tiny_model_folder, prompts_file(tmp_path), rewards, None)
    rows = [row for row in read_metrics(tmp_path / "ppo") if "score/learned" in row]
    assert len(rows) == 3 and all(row["learned/spread"] > 0 for row in rows)
    text = write_report(tmp_path / "ppo").read_text("utf-8")
    assert "Where the reward models disagree" in text and "<code>learned/spread</code>" in text
