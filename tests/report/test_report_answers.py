"""A newcomer's five questions at the top of the report: what is said, by figures that a pencil can check."""

import json
from pathlib import Path

import pytest
from report_pages import EVIL, Page
from rows import write_rows

from pipeline.report import write_report
from pipeline.report.answers import BETTER, CHEATED, COST, HOW_MUCH, NEXT, five_answers
from pipeline.report.runs import read_run
from pipeline.report.samples import changes, read_samples
from pipeline.report.verdict import Change, length_pays, repetition, sides
from pipeline.watching.watch import read_warnings

QUESTIONS = [BETTER, HOW_MUCH, CHEATED, COST, NEXT]
ALL = {"scores", "samples", "warnings", "over", "histograms", "lengths", "reward-model", "stage-1", "settings"}
# gold gains 0.2, 0.4, 0.2, 0.4 on four prompts: mean 0.3, s² = 0.04/3, half = 1.96 √(0.04/3/4) = 0.113
SURE = [(0.2, 0.4), (0.2, 0.6), (0.4, 0.6), (0.4, 0.8)]
# and 0.6, -0.4, 0.6, -0.4: mean 0.1, s² = 4 · 0.25 / 3, half = 1.96 √(1/12) = 0.566
DOUBTFUL = [(0.2, 0.8), (0.6, 0.2), (0.2, 0.8), (0.6, 0.2)]


def policy(folder: Path, pairs=SURE, exams=None, referee="gold", metrics=(), **summary) -> Path:
    """A run of PPO with one reward, `bleu`, that rises from 0.25 to 0.75, and `pairs` of the referee's measure."""
    folder.mkdir(parents=True)
    before, after = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    judged = [{"gold": before}, {"gold": after}] if referee else [{}, {}]
    means = {
        which: {"bleu": x} | gold for which, x, gold in zip(("before", "after"), (0.25, 0.75), judged, strict=True)
    }
    write_rows(
        folder / "samples.jsonl",
        [
            {"prompt": "p", "before": "b", "after": "a", "length_before": 8, "length_after": 9}
            | {"scores_before": {"bleu": 0.25} | ({"gold": b} if referee else {})}
            | {"scores_after": {"bleu": 0.75} | ({"gold": a} if referee else {})}
            for b, a in pairs
        ],
    )
    if exams is None:
        exams = [(0.0, 0.25, before), (2.0, 0.75, after)]
    write_rows(
        folder / "heldout.jsonl",
        [
            {"step": 4 * i, "update": 12 * i, "kl": kl, "score": score, "rewards": {"bleu": score}}
            | {"referee": {"gold": gold} if referee else {}}
            for i, (kl, score, gold) in enumerate(exams)
        ],
    )
    write_rows(folder / "metrics.jsonl", metrics or [{"step": s, "loss": 1.0, "repetition": 0.0} for s in (1, 2)])
    said = {
        "algorithm": "ppo",
        "kl": 2.0,
        "episodes": 640,
        "tokens": 12800,
        "seconds": 95.0,
        "hardware": "2 CPU cores",
    }
    said |= means | {"length": {"before": 8.0, "after": 10.0}} | summary
    (folder / "summary.json").write_text(json.dumps(said), "utf-8")
    return folder


def asked(folder: Path, anchors=ALL, before=()) -> dict:
    run, rows = read_run(folder), read_samples(folder)
    found = five_answers(run, rows, changes(rows), read_warnings(folder), before, anchors)
    assert [answer.question for answer in found] in (QUESTIONS, QUESTIONS[:4], [])
    return {answer.question: answer for answer in found}


def said(answer) -> str:
    return " ".join([answer.verdict, *answer.sentences])


# ---------------------------------------------------------------- a policy
def test_a_change_that_is_more_than_chance(tmp_path):
    found = asked(policy(tmp_path / "ppo"))
    assert found[BETTER].verdict == "Yes."
    assert "gold got better, by more than chance would give." in found[BETTER].sentences
    assert "not about another seed" in said(found[BETTER])
    assert said(found[HOW_MUCH]).startswith(
        "+0.300 gold. gold 0.300 → 0.600 (95% interval of the change +0.187 to +0.413). "
        "Of 4 held-out prompts the answer has a better gold on 4, a worse one on 0, the same on 0."
    )
    assert "What it was trained on, with the intervals of the changes: bleu 0.250 → 0.750 (+" in said(found[HOW_MUCH])
    assert found[CHEATED].verdict == "No sign of it." and "two exams can show no turn" in said(found[CHEATED])
    assert said(found[COST]) == (
        "1 min 35 s on 2 CPU cores. It sampled 640 completions of 12,800 tokens in all. "
        "It moved 2 nats a completion, 0.2 a token away from its start (KL)."
    )
    assert found[NEXT].verdict == "Take exams in between (--eval_every 2), to see where it was best."
    assert "make seeds" in said(found[NEXT])


def test_advice_outside_the_clone_names_the_command_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Train other seeds (plumbline seeds)" in said(asked(policy(tmp_path / "ppo"))[NEXT])


def test_a_change_that_may_be_chance_names_the_prompts_that_would_show_it(tmp_path):
    """(2.8/1.96)² · 4 · (0.566/0.1)² = 2.041 · 4 · 32.01 = 261, rounded up to two digits."""
    found = asked(policy(tmp_path / "ppo", DOUBTFUL))
    assert found[BETTER].verdict == "That is not shown."
    assert "gold got better, which may be chance." in found[BETTER].sentences
    assert "better gold on 2, a worse one on 2" in said(found[HOW_MUCH])
    assert "about 270 held-out prompts would show it four times in five (here 4; eval_samples)" in said(found[NEXT])
    assert "make seeds" not in said(found[NEXT])


def test_prompts_needed_by_pencil():
    assert Change("x", 0.5, 0.6, 0.2, 1, 100).prompts_needed() == 820  # 2.0408 · 100 · 4 = 816.3
    assert Change("x", 0.5, 0.4, 0.2, -1, 100).prompts_needed() == 820
    assert Change("x", 0.5, 0.5, 0.2, 1, 100).prompts_needed() is None
    assert Change("x", 0.5, 0.6, None, 1, 100).prompts_needed() is None


def test_worse_while_the_score_rose_is_called_so(tmp_path):
    found = asked(policy(tmp_path / "ppo", [(a, b) for b, a in SURE]))
    assert found[BETTER].verdict == "No, it is worse."
    assert found[CHEATED].verdict == "It looks so."
    assert "score that it was trained on is higher, but gold is worse" in said(found[CHEATED])
    assert "change weights or rewards" in found[NEXT].verdict


@pytest.mark.parametrize(
    ("gold", "verdict", "advice"),
    [
        # falls by 0.3 from its best, more than the 0.113 that may be chance
        ((0.3, 0.9, 0.6), "It looks so.", "gold was best at KL 1: stop there"),
        # by 0.1
        ((0.3, 0.7, 0.6), "There are signs that it may have.", "make seeds"),
    ],
)
def test_a_turn_of_the_referee(tmp_path, gold, verdict, advice):
    exams = [(i, 0.25 + i / 4, x) for i, x in enumerate(gold)]
    found = asked(policy(tmp_path / "ppo", exams=exams))
    assert found[CHEATED].verdict == verdict and "From its best exam gold fell" in said(found[CHEATED])
    assert ("though by no more than chance" in said(found[CHEATED])) == (verdict != "It looks so.")
    assert advice in said(found[NEXT])
    assert found[CHEATED].evidence[0] == ("over", "score against the referee")


def test_without_a_referee_nothing_is_called_honest(tmp_path):
    found = asked(policy(tmp_path / "ppo", referee=None))
    assert found[BETTER].verdict == "By what it was trained on, yes."
    assert "does not show that the answers are better" in said(found[BETTER])
    assert found[CHEATED].verdict == "This run cannot tell."
    assert found[NEXT].verdict.startswith("Let something judge it")


def test_without_samples_nothing_is_called_better(tmp_path):
    folder = policy(tmp_path / "ppo")
    (folder / "samples.jsonl").unlink()
    found = asked(folder)
    assert found[BETTER].verdict == "Not known." and "(no interval)" in said(found[HOW_MUCH])


def test_a_lower_measure_that_is_better_when_low(tmp_path):
    folder = policy(tmp_path / "ppo", [(a, b) for b, a in SURE])
    change = Change("gold", 0.6, 0.3, 0.1, -1, 4)
    assert change.verdict == 1 and change.gain == pytest.approx(0.3)
    assert sides(read_samples(folder), change) == (4, 0, 0)
    assert sides(read_samples(folder), change._replace(name="other")) is None


def test_a_gain_that_greedy_answers_do_not_share(tmp_path):
    greedy = {"before": {"gold": 0.9}, "after": {"gold": 0.8}}
    assert "did not gain, 0.900 → 0.800: part of the gain may be" in said(
        asked(policy(tmp_path / "ppo", greedy=greedy))[BETTER]
    )
    greedy["after"]["gold"] = 0.95
    assert "greedy" not in said(asked(policy(tmp_path / "a" / "ppo", greedy=greedy))[BETTER])


def test_signs_of_cheating_in_the_text(tmp_path):
    metrics = [{"step": s, "loss": 1.0, "repetition": 0.05 if s < 10 else 0.35} for s in range(1, 11)]
    folder = policy(tmp_path / "ppo", metrics=metrics, length={"before": 8.0, "after": 12.0})
    write_rows(folder / "warnings.jsonl", [{"step": 7, "watcher": "entropy", "text": "the entropy has collapsed"}])
    found = asked(folder)
    assert found[CHEATED].verdict == "There are signs that it may have."
    for words in ("warned at step 7", "much longer", "repeats itself: 5% → 35%", "8 → 12 tokens"):
        assert words in said(found[CHEATED]), words
    assert {"warnings", "scores", "stage-1"} <= {anchor for anchor, _ in found[CHEATED].evidence}
    assert found[NEXT].verdict == "Read the warnings: each names its usual remedy."


def test_repetition_is_the_first_log_and_the_mean_of_the_last_tenth(tmp_path):
    metrics = [{"step": s, "loss": 1.0, "repetition": s / 100} for s in range(1, 21)]
    assert repetition(read_run(policy(tmp_path / "ppo", metrics=metrics))) == pytest.approx((0.01, 0.195))


def test_long_answers_that_get_more_by_pencil():
    """Lengths 1, 2, 3 with the scores 2, 6, 4 correlate by 0.5 (test_report.py); with 3, 3, 3 not at all; -, none."""
    rows = [
        {"length_before": n, "length_after": n, "scores_before": {"x": b, "y": b}, "scores_after": {"x": a, "y": 3}}
        for n, b, a in ((1, 1, 2), (2, 0, 6), (3, 1, 4))
    ]
    assert length_pays(rows, "x") == pytest.approx((0.0, 0.5))
    assert length_pays(rows, "y") is None and length_pays(rows[:2], "x") is None


def test_completions_that_are_cut(tmp_path):
    folder = policy(tmp_path / "ppo")
    summary = json.loads((folder / "summary.json").read_text())
    summary["after"]["finished"] = 0.5
    (folder / "summary.json").write_text(json.dumps(summary))
    assert asked(folder)[NEXT].verdict == (
        "Only 50% of its completions end by themselves: raise max_completion_length."
    )


def test_a_policy_that_hardly_moved(tmp_path):
    assert "It hardly moved (KL 0.01 nats)" in said(asked(policy(tmp_path / "ppo", DOUBTFUL, kl=0.01))[NEXT])


def test_evidence_leads_only_to_what_the_page_has(tmp_path):
    found = asked(policy(tmp_path / "ppo"), anchors={"scores"})
    assert {anchor for answer in found.values() for anchor, _ in answer.evidence} == {"scores"}


# ---------------------------------------------------------------- the other stages
def stage(folder: Path, **summary) -> Path:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    write_rows(folder / "metrics.jsonl", [{"step": s, "loss": 1 / s} for s in (1, 2)])
    return folder


def test_sft_says_what_it_measured_and_no_more(tmp_path):
    loss = {"before": 2.0, "after": 1.5}
    found = asked(stage(tmp_path / "sft", stage="sft", heldout_loss=loss, seconds=9.5))
    assert found[BETTER].verdict == "It predicts held-out rows better."
    assert found[HOW_MUCH].verdict == "−0.50 nats a token of held-out loss."
    assert found[CHEATED].verdict == "It could not." and found[COST].verdict == "9.5 s."


def test_a_reward_model_against_a_coin(tmp_path):
    """0.75 ± 1.96 · 0.05 = 0.652 to 0.848; and 0.55 ± 0.098 holds a half."""
    found = asked(stage(tmp_path / "reward", stage="reward", accuracy=0.75, accuracy_se=0.05, heldout_pairs=75))
    assert (
        found[BETTER].verdict == "Better than a coin, yes." and found[HOW_MUCH].verdict == "+25.0 points over a coin."
    )
    assert "in 75.0% of the pairs (95% interval 65.2% to 84.8%)" in said(found[BETTER])
    assert "On 75 held-out pairs." in said(found[HOW_MUCH])
    doubtful = asked(stage(tmp_path / "b" / "reward", stage="reward", accuracy=0.55, accuracy_se=0.05))
    assert doubtful[BETTER].verdict == "No better than a coin, as far as is shown."


def test_what_the_stages_before_it_took(tmp_path):
    earlier = [read_run(stage(tmp_path / name, seconds=took)) for name, took in (("sft", 61.0), ("reward", 30.0))]
    found = asked(policy(tmp_path / "ppo", peak_memory_mib=1536), before=earlier)
    assert "The stages before it took sft 1 min 1 s and reward 30 s." in said(found[COST])
    assert "A process took 1.5 GiB of memory at most." in said(found[COST])


def test_a_run_that_says_nothing_of_itself_has_no_answers(tmp_path):
    assert asked(stage(tmp_path / "x", seconds=3.0)) == {}


# ---------------------------------------------------------------- on the page
def test_the_answers_stand_at_the_top_and_their_evidence_is_on_the_page(tmp_path):
    folder = policy(tmp_path / "ppo", [(b, a) for b, a in SURE])
    text = write_report(folder).read_text("utf-8")
    page = Page(text)
    assert page.unmatched == [] and page.open == []
    plain = " ".join("".join(page.text).split())
    places = [plain.index(question) for question in QUESTIONS]
    assert places == sorted(places) and places[-1] < plain.index("held out from training")
    ids = {value for _, name, value in page.attributes if name == "id"}
    links = {value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert {"scores", "over", "samples", "settings"} <= links <= ids


def test_names_in_the_answers_stay_text(tmp_path):
    folder = policy(tmp_path / "ppo")
    for name in ("summary.json", "heldout.jsonl", "samples.jsonl"):
        text = (folder / name).read_text().replace('"gold"', json.dumps(EVIL))
        (folder / name).write_text(text)
    page = Page(write_report(folder).read_text("utf-8"))
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert f"{EVIL} got better, by more than chance" in "".join(page.text)


def test_a_referee_that_fell_by_chance_is_said_to_have_fallen(tmp_path):
    found = asked(policy(tmp_path / "ppo", [(a, b) for b, a in DOUBTFUL]))
    assert found[BETTER].verdict == "That is not shown." and found[CHEATED].verdict == "No sign of it."
    assert "gold got worse, but by no more than chance may give." in found[CHEATED].sentences
