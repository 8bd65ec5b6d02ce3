"""The five questions of somebody new to it, answered in words at the top of the page, each with its evidence.

Is it better, by how much, did it cheat, what did it cost, what to try next. An answer says no more than the run has
measured: without an interval nothing is called better, and without a referee nothing is called honest.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.report import exams
from pipeline.report.numbers import decimals_for, duration, is_number, number, signed
from pipeline.report.runs import Contestant, Run
from pipeline.report.samples import Rows
from pipeline.report.tables import joined, referees
from pipeline.report.verdict import (
    CUT,
    MOVED,
    Change,
    Sign,
    changes_of,
    lengths,
    repetition,
    sides,
    signs,
    trained_on,
    turns,
)
from pipeline.safety.commands import target

BETTER, HOW_MUCH, CHEATED = "Is it better?", "By how much?", "Did it cheat?"
COST, NEXT = "What did it cost?", "What should I try next?"
# What stands at each anchor of the page
PLACES = {
    "scores": "what changed",
    "samples": "samples",
    "warnings": "warnings",
    "over": "score against the referee",
    "histograms": "how the scores are spread",
    "lengths": "length against score",
    "reward-model": "reward model",
    "stage-1": "curves",
    "settings": "settings and single figures",
}
ADVICE = 3  # suggestions at most


class Answer(NamedTuple):
    """One question with its answer: a verdict of few words, sentences, and links to (anchor, what stands there)."""

    question: str
    verdict: str
    sentences: list[str]
    evidence: list[tuple[str, str]]


class Found(NamedTuple):
    """What the answers about a policy are taken from."""

    run: Run
    rows: Rows
    warnings: Sequence[dict[str, Any]]
    referee: list[Change]
    rewards: list[Change]
    signs: list[Sign]

    @property
    def judged(self) -> list[Change]:
        """What says whether it is better: the referee; without one, what it was trained on."""
        return self.referee or self.rewards


def five_answers(
    run: Run,
    rows: Rows,
    intervals: dict[str, tuple[float, float]],
    warnings: Sequence[dict[str, Any]],
    before: Sequence[Run],
    anchors: set[str],
) -> list[Answer]:
    """The answers for a run of any stage; none where the run says too little of itself.

    Args:
        intervals: measure -> mean change and half its 95% interval (samples.changes).
        before: the stages that it builds on, for what they took.
        anchors: parts that the page has; evidence leads to no other.
    """
    stage = run.summary.get("stage")
    if "algorithm" in run.summary and run.summary.get("before"):
        referee = changes_of(run, referees(run), intervals, len(rows))
        rewards = changes_of(run, trained_on(run), intervals, len(rows))
        found = Found(run, rows, warnings, referee, rewards, signs(run, rows, referee, warnings))
        answers = [_better(found), _how_much(found), _cheated(found), _cost(run, before), _next(found)]
    elif stage == "sft" and run.summary.get("heldout_loss"):
        answers = [*_imitation(run), _cost(run, before)]
    elif stage == "reward" and is_number(run.summary.get("accuracy")):
        answers = [*_reward_model(run), _cost(run, before)]
    else:
        return []
    return [
        answer._replace(evidence=[(a, PLACES[a]) for a, _ in dict.fromkeys(answer.evidence) if a in anchors])
        for answer in answers
    ]


def _at(*anchors: str) -> list[tuple[str, str]]:
    return [(anchor, "") for anchor in anchors]


# ---------------------------------------------------------------- a policy
def _better(found: Found) -> Answer:
    if not found.judged:
        return Answer(BETTER, "This run cannot tell.", ["It has no score on held-out prompts, before and after."], [])
    verdicts = [change.verdict for change in found.judged]
    judge = ["Its judge is a referee that no training saw."] if found.referee else []
    said = [*judge, *map(_moved, found.judged)]
    if None in verdicts:
        verdict = "Not known."
        said.append("There are too few samples to say whether that is more than chance.")
    elif 1 in verdicts and -1 in verdicts:
        verdict = "In part."
    elif -1 in verdicts:
        verdict = "No, it is worse."
    elif 1 in verdicts:
        verdict = "Yes." if found.referee else "By what it was trained on, yes."
    else:
        verdict = "That is not shown."
    if not found.referee:
        said.append(
            "That is what it was trained to raise, and no referee has judged it, so it does not show that the answers "
            "are better."
        )
    elif 1 in verdicts:
        said.append(
            "This is about other prompts of the same kind, not about another seed, which may come out otherwise."
        )
    return Answer(BETTER, verdict, said + _greedy(found), _at("scores", "samples"))


def _moved(change: Change) -> str:
    lower = ", lower is better," if change.sign < 0 else ""
    way = "did not change" if not change.gain else "got better" if change.gain > 0 else "got worse"
    doubt = {None: "", 0: ", which may be chance"}.get(change.verdict, ", by more than chance would give")
    return f"{change.name}{lower} {way}{doubt}."


def _greedy(found: Found) -> list[str]:
    """A gain in sampled answers that greedy ones do not share may be sharper sampling."""
    greedy, said = found.run.summary.get("greedy") or {}, []
    for change in found.referee:
        old, new = ((greedy.get(which) or {}).get(change.name) for which in ("before", "after"))
        if change.gain <= 0 or not (is_number(old) and is_number(new)) or change.sign * (new - old) > 0:
            continue
        d = decimals_for(old, new)
        said.append(
            f"With the likeliest token each time (greedy) {change.name} did not gain, {number(old, d)} → "
            f"{number(new, d)}: part of the gain may be that it gambles less, not that it knows more."
        )
    return said


def _how_much(found: Found) -> Answer:
    said = [f"{_amount(change, '95% interval of the change ')}." for change in found.judged]
    if found.judged and (counts := sides(found.rows, found.judged[0])):
        better, worse, same = counts
        of = f"Of {sum(counts)} held-out prompts the answer has a better {found.judged[0].name}"
        said.append(f"{of} on {better}, a worse one on {worse}, the same on {same}.")
    if found.referee and found.rewards:
        rewards = "; ".join(_amount(change, "") for change in found.rewards)
        said.append(f"What it was trained on, with the intervals of the changes: {rewards}.")
    verdict = ""
    if found.judged:
        first = found.judged[0]
        verdict = f"{signed(first.after - first.before, decimals_for(first.before, first.after))} {first.name}."
    return Answer(HOW_MUCH, verdict or "This run cannot tell.", said, _at("scores", "histograms"))


def _amount(change: Change, what: str) -> str:
    d = decimals_for(change.before, change.after)
    text = f"{change.name} {number(change.before, d)} → {number(change.after, d)}"
    if change.half is None:
        return f"{text} (no interval)"
    moved = change.after - change.before
    return f"{text} ({what}{signed(moved - change.half, d)} to {signed(moved + change.half, d)})"


def _cheated(found: Found) -> Answer:
    said = [f"{sign.text}." for sign in found.signs]
    if any(sign.strong for sign in found.signs):
        verdict = "It looks so."
    elif found.signs:
        verdict = "There are signs that it may have."
    elif not found.referee:
        verdict = "This run cannot tell."
    else:
        verdict = "No sign of it."
        fell = [c.name for c in found.referee if c.gain < 0]
        if fell:
            said.append(f"{joined(fell)} got worse, but by no more than chance may give.")
        else:
            said.append(f"{joined([c.name for c in found.referee])}, which no training saw, did not get worse.")
    if not found.referee:
        said.append("Nothing that it was not trained on has judged it, and what is trained on can be pleased.")
    elif exams.few_exams([Contestant("it", [found.run])]):
        said.append("Only before and after were examined, and two exams can show no turn in between.")
    if tokens := lengths(found.run):
        said.append(f"A completion has {number(tokens[0])} → {number(tokens[1])} tokens.")
    if (repeats := repetition(found.run)) and not any("repeats itself" in text for text in said):
        said.append(f"It repeats {repeats[0]:.0%} → {repeats[1]:.0%} of its trigrams.")
    places = [sign.anchor for sign in found.signs] + ["over", "lengths", "samples"]
    return Answer(CHEATED, verdict, said, _at(*places))


def _next(found: Found) -> Answer:
    advice = [*_mend(found), *_see_better(found), *_go_on(found)][:ADVICE]
    verdict, *said = [text for text, _ in advice]
    return Answer(NEXT, verdict, said, _at(*(anchor for _, anchor in advice)))


def _mend(found: Found) -> list[tuple[str, str]]:
    """What went wrong, and its remedy."""
    advice, worse = [], [change.name for change in found.referee if change.verdict == -1]
    turned = [(change, path) for change, path, beyond in turns(found.run, found.referee) if beyond and path.mark]
    if turned:
        change, path = turned[0]
        advice.append(
            (f"{change.name} was best at KL {number(path.kl[path.mark])}: stop there (fewer total_episodes), or hold "
            "it closer to its start with a higher kl_coef or a kl_target.", "over")
        )  # fmt: skip
    elif worse:
        advice.append(
            (f"Look at the samples that lost most {worse[0]}, see what the rewards paid for there, and change weights "
            "or rewards; a higher kl_coef holds it closer to its start.", "samples")
        )  # fmt: skip
    finished = (found.run.summary.get("after") or {}).get("finished")
    if is_number(finished) and finished < CUT:
        text = f"Only {finished:.0%} of its completions end by themselves: raise max_completion_length."
        advice.append((text, "samples"))
    if found.warnings:
        advice.append(("Read the warnings: each names its usual remedy.", "warnings"))
    return advice


def _see_better(found: Found) -> list[tuple[str, str]]:
    """What would make the answers above surer."""
    advice = []
    if not found.referee:
        text = f"Let something judge it that it is not trained on: a referee, or people ({target('judge')})."
        advice.append((text, "samples"))
    open_ = [change for change in found.judged if change.verdict == 0 and change.gain > 0]
    kl = found.run.summary.get("kl")
    if is_number(kl) and kl < MOVED and not any(change.verdict == 1 for change in found.judged):
        text = f"It hardly moved (KL {number(kl)} nats): raise learning_rate or total_episodes, or lower kl_coef."
        advice.append((text, "stage-1"))
    elif open_ and (needed := open_[0].prompts_needed()):
        text = (
            f"If the change of {open_[0].name} is real, about {needed:,} held-out prompts would show it four times in "
            f"five (here {open_[0].prompts:,}; eval_samples)."
        )
        advice.append((text, "scores"))
    if found.referee and exams.few_exams([Contestant("it", [found.run])]):
        updates = found.run.exams[-1].get("update") if found.run.exams else None
        every = max(1, round(updates / 6)) if is_number(updates) else 6
        advice.append((f"Take exams in between (--eval_every {every}), to see where it was best.", "settings"))
    return advice


def _go_on(found: Found) -> list[tuple[str, str]]:
    """What to do with a run about which nothing is wrong."""
    advice = []
    if any(change.verdict == 1 for change in found.judged):
        advice.append((f"Train other seeds ({target('seeds')}): one run may be lucky.", "scores"))
        if len(found.run.exams) > 3 and not turns(found.run, found.referee):
            last = found.run.exams[-1].get("score")
            scores = [exam.get("score") for exam in found.run.exams]
            if all(map(is_number, scores)) and last == max(scores):
                advice.append(("The score was at its highest at the end: more total_episodes may gain more.", "over"))
    return [*advice, ("Read the samples that lost most, sorted by the change.", "samples")]


# ---------------------------------------------------------------- the other stages
def _imitation(run: Run) -> list[Answer]:
    pair = run.summary["heldout_loss"]
    old, new = pair.get("before"), pair.get("after")
    if not (is_number(old) and is_number(new)):
        return []
    d = decimals_for(old, new)
    better = Answer(
        BETTER,
        "It predicts held-out rows better." if new < old else "No: it predicts held-out rows no better.",
        [f"Whether its answers are better this stage does not measure; {target('eval')} does."],
        _at("scores", "stage-1"),
    )
    amount = f"{signed(new - old, d)} nats a token of held-out loss."
    how = Answer(HOW_MUCH, amount, [f"{number(old, d)} → {number(new, d)}, lower is better."], _at("scores"))
    cheated = Answer(CHEATED, "It could not.", ["It imitates its data; nothing pays it for what it writes."], [])
    return [better, how, cheated]


def _reward_model(run: Run) -> list[Answer]:
    accuracy, error = run.summary["accuracy"], run.summary.get("accuracy_se")
    pairs = run.summary.get("heldout_pairs")
    half = 1.96 * error if is_number(error) else None
    if half is None:
        verdict = "Not known."
    elif accuracy - half > 0.5:
        verdict = "Better than a coin, yes."
    else:
        verdict = "No better than a coin, as far as is shown."
    text = f"Of two held-out answers it scores the preferred one higher in {accuracy:.1%} of the pairs"
    if half is not None:
        text += f" (95% interval {max(0.0, accuracy - half):.1%} to {min(1.0, accuracy + half):.1%})"
    how = Answer(HOW_MUCH, f"{signed(100 * (accuracy - 0.5), 1)} points over a coin.", [], _at("reward-model"))
    if is_number(pairs):
        how.sentences.append(f"On {number(int(pairs))} held-out pairs.")
    cheated = Answer(
        CHEATED,
        "It can be cheated.",
        ["A policy will look for what it pays wrongly: read the pairs where it was sure and wrong."],
        _at("reward-model"),
    )
    return [Answer(BETTER, verdict, [text + "."], _at("reward-model", "stage-1")), how, cheated]


# ---------------------------------------------------------------- what it took
def _cost(run: Run, before: Sequence[Run]) -> Answer:
    summary, said = run.summary, []
    seconds = summary.get("seconds")
    if is_number(summary.get("episodes")):
        tokens = f" of {number(int(summary['tokens']))} tokens in all" if is_number(summary.get("tokens")) else ""
        said.append(f"It sampled {number(int(summary['episodes']))} completions{tokens}.")
    if is_number(summary.get("kl")):
        tokens = lengths(run)
        each = f", {number(summary['kl'] / tokens[1])} a token" if tokens and tokens[1] else ""
        said.append(f"It moved {number(summary['kl'])} nats a completion{each} away from its start (KL).")
    if is_number(summary.get("peak_memory_mib")):
        said.append(f"A process took {number(summary['peak_memory_mib'] / 1024)} GiB of memory at most.")
    took = [(stage.name, stage.summary.get("seconds")) for stage in before]
    earlier = [f"{name} {duration(took)}" for name, took in took if is_number(took)]
    if earlier:
        said.append(f"The stages before it took {joined(earlier)}.")
    where = f" on {summary['hardware']}" if isinstance(summary.get("hardware"), str) else ""
    verdict = f"{duration(seconds)}{where}." if is_number(seconds) else "It did not write down its time."
    return Answer(COST, verdict, said, _at("settings", "stage-1"))
