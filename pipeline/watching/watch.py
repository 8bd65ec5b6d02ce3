"""Watchers: while a policy is trained, they read what is logged and say once what usually goes wrong, with the figure
and the usual remedy.

What they say is printed, and kept as a row of `warnings.jsonl`: `step`, `watcher`, `text`. With `watch: stop` the
first warning saves a checkpoint and ends the run. A watcher sees the first log and the newest ones, so that one odd
update is no alarm.
"""

import json
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import TrainerCallback

from pipeline.errors import UserError
from pipeline.runs.folder import METRICS, read_heldout, read_metrics, write_aside
from pipeline.safety.console import from_main, say

WARNINGS = "warnings.jsonl"

# ---------------------------------------------------------------- thresholds
LASTING = 3  # logs (and exams) in a row: what lasts that long is no odd update
# Of good runs of recipes/tiny and recipes/e2e, 34 in all, none came near: their highest KL was 0.63 nats a token, in
# runs where replay did harm, and 0.41 in others. 1 nat: the tokens are e times as likely as they were, all of them.
KL_PER_TOKEN = 1.0
KL_AT_LEAST = 20.0  # nats a completion: a short one may well move by a nat a token
ENTROPY_LEFT = 0.1  # share of the first entropy; good runs kept 0.44 and more
REPEATED_MORE = 0.2  # share of trigrams; good runs moved by 0.01
RATIO_OFF = 0.05  # 16-bit rounding moves a ratio by about 0.01, dropout or another temperature by 0.1 and more
SAMPLER_KL = 0.02  # nats a token: log-probabilities off by 0.2 (½ · 0.2²); in 16 bits they are by some hundredths
CRITIC_COLD, CRITIC_LOGS = 20, 30  # logs that a cold critic may take, and how many then decide: they jump about
SLOW, SLOW_AT_LEAST = 10.0, 1.0  # times the seconds of generation (nine tenths of an update are waiting); seconds
NO_VERDICT = 0.2  # share of questions to a judge; a 7B model that is told the form has next to none
HUGE = 1000.0  # score units; PPO's own terms (kl_coef times some nats) are of the order of 1
REFEREE_FALL = 0.1  # share of its best; the noise of an exam of 200 prompts is about 0.03


class Row(NamedTuple):
    """One log, under PPO's names whoever wrote it."""

    step: int
    metrics: dict[str, float]


class Seen(NamedTuple):
    """What a watcher may look at."""

    first: list[Row]  # the first log, or none yet
    last: Sequence[Row]  # the newest, the oldest of them first
    logs: int  # in all
    exams: Sequence[dict]  # rows of heldout.jsonl
    lower_is_better: frozenset[str]  # measures of the referee
    warmup: int  # updates in which the critic learns alone

    def lasting(self, name: str, count: int = LASTING) -> list[float]:
        """The newest `count` values, or none when there are fewer."""
        values = [row.metrics[name] for row in self.last if name in row.metrics][-count:]
        return values if len(values) == count else []

    def at_first(self, name: str) -> float | None:
        return self.first[0].metrics.get(name) if self.first else None


# ---------------------------------------------------------------- what each one looks for: a sentence, or None
def kl_runs_away(seen: Seen) -> str | None:
    kl, length = seen.lasting("kl"), seen.lasting("length/mean")
    if not kl or not length or any(k < max(KL_AT_LEAST, KL_PER_TOKEN * n) for k, n in zip(kl, length, strict=True)):
        return None
    return (
        f"the KL to the reference runs away: {kl[-1]:.1f} nats a completion, {kl[-1] / length[-1]:.2f} a token. "
        "Raise kl_coef (beta for GRPO and RLOO) or set kl_target, or lower learning_rate or num_iterations."
    )


def entropy_collapses(seen: Seen) -> str | None:
    entropy, first = seen.lasting("entropy"), seen.at_first("entropy")
    if not entropy or first is None or max(entropy) >= ENTROPY_LEFT * first:
        return None
    return (
        f"the entropy has collapsed: {entropy[-1]:.3f} nats a token, {first:.3f} at first. The policy says nearly the "
        "same each time and cannot explore. Lower learning_rate, or raise kl_coef or entropy_coef."
    )


def all_cut(seen: Seen) -> str | None:
    finished = seen.lasting("finished")
    if not finished or max(finished) > 0:
        return None
    length = seen.lasting("length/mean", 1)
    at = f" at {length[0]:.0f} tokens" if length else ""
    return (
        f"all completions are cut{at}: none ended by itself in {LASTING} logs. Raise max_completion_length, set "
        "missing_eos_penalty, and check that the SFT data ends with the end-of-text token."
    )


def scores_do_not_vary(seen: Seen) -> str | None:
    spread, score = seen.lasting("score_std"), seen.lasting("score", 1)
    if not spread or max(spread) > 1e-6 * max(1.0, abs(score[0] if score else 0.0)):
        return None
    return (
        f"the scores do not vary: every completion of {LASTING} logs got {score[0] if score else 0.0:.3g}, so there "
        "is nothing to learn from. Look at a few completions and at the columns and the limits of the rewards."
    )


def critic_explains_nothing(seen: Seen) -> str | None:
    explained = seen.lasting("explained_variance", CRITIC_LOGS)
    if not explained or seen.logs < seen.warmup + CRITIC_COLD + CRITIC_LOGS or statistics.median(explained) > 0:
        return None
    return (
        f"the critic explains nothing: its explained variance had the median {statistics.median(explained):.2f} in "
        f"the last {CRITIC_LOGS} logs, where 0 is no better than a constant. Raise critic_learning_rate or vf_coef, "
        "start it from the reward model (critic_path), or sample more completions an update."
    )


def ratio_is_off(seen: Seen) -> str | None:
    ratio = seen.lasting("ratio/first", 1)
    if not ratio or ratio[0] <= RATIO_OFF:
        return None
    return (
        f"the ratio is off by {ratio[0]:.2f} a token before any update, where it should be 1: rollout and update see "
        "different policies. Look for dropout, another temperature or chat template, or low precision (bf16, "
        "quantization), and train in float32 to tell."
    )


def sampler_differs(seen: Seen) -> str | None:
    kl, largest = seen.lasting("sampler/kl"), seen.lasting("sampler/ratio_max", 1)
    if not kl or not largest or min(kl) <= SAMPLER_KL:
        return None
    return (
        f"the vLLM server samples from another policy than the trainer's: KL {kl[-1]:.3f} nats a token, and a token "
        f"was {largest[0]:.1f} times as likely here as there. Start it with the trainer's base and --dtype, and with "
        "processed_logprobs; float32 on both sides tells rounding from a mistake. With rollout_ahead an update lies "
        "between them as well: lower learning_rate or num_iterations."
    )


def over_optimized(seen: Seen) -> str | None:
    for name in (seen.exams[0].get("referee") or {}) if seen.exams else {}:
        rows = [(exam, exam["referee"].get(name)) for exam in seen.exams if exam.get("referee")]
        sign = -1 if name in seen.lower_is_better else 1
        known = [(exam, sign * value) for exam, value in rows if value is not None]
        best, at_best = max(known, key=lambda row: row[1], default=(None, 0.0))
        after = known[-LASTING:]
        if best is None or best in [exam for exam, _ in after]:
            continue
        limit = at_best - REFEREE_FALL * abs(at_best)
        if all(exam["score"] > best["score"] and value < limit for exam, value in after):
            last, value = after[-1]
            return (
                f"the reward rises while the held-out referee gets worse (over-optimization): since update "
                f"{best.get('update')} the score went from {best['score']:.3f} to {last['score']:.3f} and {name} from "
                f"{sign * at_best:.3f} to {sign * value:.3f}. Stop at the best exam, raise kl_coef, or mend the "
                "reward."
            )
    return None


def repeats_itself(seen: Seen) -> str | None:
    share, first = seen.lasting("repetition"), seen.at_first("repetition")
    if not share or first is None or min(share) < first + REPEATED_MORE:
        return None
    return (
        f"completions repeat themselves: {share[-1]:.0%} of their trigrams stood earlier in the same completion, "
        f"{first:.0%} at first. Look at the samples; add the reward `repetition`, or raise kl_coef."
    )


def rewards_are_slow(seen: Seen) -> str | None:
    scoring, generation = seen.lasting("time/scoring", 1), seen.lasting("time/generation", 1)
    if not scoring or not generation or scoring[0] < SLOW_AT_LEAST or not 0 < SLOW * generation[0] < scoring[0]:
        return None
    return (
        f"the rewards take {scoring[0]:.1f} s of an update, generation {generation[0]:.1f} s "
        f"({scoring[0] / generation[0]:.0f} times): score in batches, or make max_completion_length or the number of "
        "rewards smaller."
    )


def judge_is_unclear(seen: Seen) -> str | None:
    for name in seen.last[-1].metrics:
        reward, _, what = name.rpartition("/")
        if what not in ("unreadable", "failed") or min(seen.lasting(name) or [0.0]) <= NO_VERDICT:
            continue
        share = seen.lasting(name, 1)[0]
        if what == "failed":
            return (
                f"the judge of {reward} leaves {share:.0%} of the questions without an answer: these completions go "
                "without its reward. Lower at_once, raise timeout or retries, or look at the server."
            )
        return (
            f"{share:.0%} of the verdicts of {reward} cannot be read: these completions go without it, and a policy "
            "may learn to write what spoils the verdict. Take a larger judge, a server that holds it to the form "
            "(json_schema), a simpler rubric or more answer_tokens."
        )
    return None


def scores_are_huge(seen: Seen) -> str | None:
    newest = seen.last[-1].metrics
    scores = {name: value for name, value in newest.items() if name == "score" or name.startswith("score/")}
    name = max(scores, key=lambda key: (abs(scores[key]), key), default=None)
    if name is None or abs(scores[name]) <= HUGE:
        return None
    return (
        f"{name} is {scores[name]:.3g} on average, beside which the price of a nat (kl_coef "
        f"{newest.get('kl_coef', 0.0):g}) counts for nothing: give the reward normalize: running, a clip or a smaller "
        "weight."
    )


WATCHERS: dict[str, Callable[[Seen], str | None]] = {
    "kl": kl_runs_away,
    "entropy": entropy_collapses,
    "cut": all_cut,
    "variance": scores_do_not_vary,
    "critic": critic_explains_nothing,
    "ratio": ratio_is_off,
    "sampler": sampler_differs,
    "over-optimization": over_optimized,
    "repetition": repeats_itself,
    "slow rewards": rewards_are_slow,
    "judge": judge_is_unclear,
    "huge scores": scores_are_huge,
}


def row_of(logs: dict) -> Row:
    """A log of PPO, or of TRL's GRPO and RLOO, under PPO's names. TRL's `kl` is per token, PPO's per completion."""
    metrics = {name: float(x) for name, x in logs.items() if isinstance(x, int | float)}
    if "reward" in metrics and "completions/mean_length" in metrics:
        metrics["score"], metrics["score_std"] = metrics["reward"], metrics.get("reward_std", 0.0)
        metrics["length/mean"] = metrics["completions/mean_length"]
        metrics["finished"] = 1 - metrics.get("completions/clipped_ratio", 0.0)
        if "kl" in metrics:
            metrics["kl"] *= metrics["length/mean"]
    return Row(int(logs.get("step", 0)), metrics)


class WatchCallback(TrainerCallback):
    """Runs the watchers on each log of the training, on the main process; all processes stop together.

    Args:
        folder: of the run. action: warn or stop.
        lower_is_better: measures of the referee that get better as they fall.
        warmup: updates in which the critic learns alone.

    Raises:
        UserError: at the end of the training, when a watcher has stopped it.
    """

    def __init__(self, folder: Path, action: str = "warn", lower_is_better=frozenset(), warmup: int = 0):
        self.folder, self.action = Path(folder), action
        self.lower_is_better, self.warmup = frozenset(lower_is_better), warmup
        self._forget()

    def _forget(self) -> None:
        self.first: list[Row] = []
        self.last: deque[Row] = deque(maxlen=CRITIC_LOGS)
        self.logs = 0
        self.said: set[str] = set()
        self.stopped: str | None = None

    def read(self, logs: dict) -> list[tuple[str, str]]:
        """Takes a log in; returns what is new to say, (watcher, text) each."""
        if "loss" not in logs:
            return []
        row = row_of(logs)
        self.first = self.first or [row]
        self.last.append(row)
        self.logs += 1
        exams = read_heldout(self.folder)
        seen = Seen(self.first, self.last, self.logs, exams, self.lower_is_better, self.warmup)
        new = {name: look(seen) for name, look in WATCHERS.items() if name not in self.said}
        found = [(name, text) for name, text in new.items() if text]
        self.said |= {name for name, _ in found}
        return found

    def on_train_begin(self, args, state, control, **kwargs):
        """A resumed run goes on where it was: it has said what it has said before the checkpoint."""
        self._forget()
        if not state.is_world_process_zero or not state.global_step:
            return
        rows = [row for row in read_warnings(self.folder) if row["step"] <= state.global_step]
        if (self.folder / WARNINGS).exists():
            write_aside(self.folder / WARNINGS, "".join(map(_line, rows)))
        if (self.folder / METRICS).exists():
            for row in read_metrics(self.folder):
                if row["step"] <= state.global_step:
                    self.read(row)
        self.said = {row["watcher"] for row in rows}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            for watcher, text in self.read(logs | {"step": state.global_step}):
                self._say(state.global_step, watcher, text)
        if self.action == "stop" and logs and "loss" in logs:
            self.stopped = from_main(self.stopped)
            if self.stopped:
                control.should_save = control.should_training_stop = True

    def _say(self, step: int, watcher: str, text: str) -> None:
        say(f"Warning (step {step}): {text}")
        note_warning(self.folder, step, watcher, text)
        if self.action == "stop" and self.stopped is None:
            checkpoint = self.folder / f"checkpoint-{step}"
            self.stopped = f"stopped at step {step} (watch: stop), {checkpoint} is saved: {text}"

    def on_train_end(self, args, state, control, **kwargs):
        if self.stopped:
            raise UserError(self.stopped)


def note_warning(folder: str | Path, step: int, watcher: str, text: str) -> None:
    """Adds a row to the run's `warnings.jsonl`; for the main process."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with Path(folder, WARNINGS).open("a", encoding="utf-8") as file:
        file.write(_line({"step": step, "watcher": watcher, "text": text}))


def read_warnings(folder: str | Path) -> list[dict]:
    """The rows of a run's `warnings.jsonl` that are whole; none when there is no such file."""
    path = Path(folder, WARNINGS)
    rows = read_metrics(path) if path.is_file() else []
    return [row for row in rows if isinstance(row, dict) and {"step", "watcher", "text"} <= set(row)]


def _line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
