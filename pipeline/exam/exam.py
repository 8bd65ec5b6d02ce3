"""The exam: prompts held out from training, answered by the policy and scored, before, after and during training.

It serves PPO and TRL's own trainers alike, and it changes nothing in the training: an adapter trained with exams in
between is equal to the last bit to one trained without. Each exam is a row of `heldout.jsonl`:

    step, update        optimizer steps and rollouts so far
    episodes, tokens    completions and completion tokens sampled in training so far
    seconds             of training so far; what the exams took is left out
    cpu_seconds         of the processor in the same time, all threads of this process: on a machine shared with other
                        work, what a run with one thread would have taken alone
    kl                  to the start of the policy: mean over completions of Σ_t log π - log π_start, in nats (k1)
    score               Σ weight · mean of the reward, over the rewards that scored at least one row
    rewards, referee    mean of each, by name, without weight, clipping or normalization
    length, finished    tokens and share that ended by itself; corpus_bleu, corpus_rougeL where rows have references
"""

import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback

from pipeline.config import check, setting, steps_per_update
from pipeline.exam import evaluation, games
from pipeline.models.adapters import POLICY, use_adapter
from pipeline.models.lockstep import in_lockstep
from pipeline.models.prompts import with_kwargs
from pipeline.runs.folder import HELDOUT, append_line, read_heldout
from pipeline.safety.reading import read_json
from pipeline.watching.progress import Count, Counting, counting, unshown
from rewards import raw
from rewards.mixture import at_rest

CLOCK = "exam_state.json"  # in a checkpoint


@dataclass
class RewardArguments:
    """What is rewarded, and how the result is judged on held-out prompts."""

    rewards: list[dict] = setting(
        [], "Rewards, e.g. '{name: bleu, weight: 0.5}' '{name: learned, path: runs/tiny/reward}' mymodule:myfunction."
    )
    referee: str | None = setting(
        None, "A world's own judgement of held-out completions (e2e, dialogue, ...). Never a reward in training."
    )
    eval_samples: int = setting(200, "Held-out prompts that are answered before and after.")
    eval_every: int | None = setting(
        None, "Updates (rollouts) between two exams on the held-out prompts; none: only before and after."
    )
    eval_batch_size: int = setting(50, "Held-out prompts answered at once.")
    show_samples: int = setting(5, "Prompts whose two completions are shown side by side in the terminal.")

    def __post_init__(self):
        check(bool(self.rewards), "rewards", self.rewards, "at least one, such as '{name: keyword, column: facts}'")
        for key in ("eval_samples", "eval_batch_size"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "a whole number from 1 up")
        check(
            self.eval_every is None or self.eval_every >= 1, "eval_every", self.eval_every, "a whole number from 1 up"
        )


class Exam:
    """The held-out prompts, answered by one adapter at a time; on the main process only, others wait (or go along,
    where they share the base: pipeline/models/lockstep.py).

    Args:
        trainer: PPOTrainer, or TRL's GRPOTrainer or RLOOTrainer.
        reference: the adapter that the policy started from; None: the base with every adapter off.
        rows: dicts with `prompt` and the columns that the rewards (and the chat template) read.
        rewards, weights: name -> reward; name -> its weight in `score`.
        referee: (completion text, row) -> named scores.
        speaking: adapter -> a context with who answers in the place of the model, or None.
    """

    def __init__(
        self,
        trainer,
        reference: str | None,
        rows: Sequence[dict],
        rewards: dict[str, Callable],
        weights: dict[str, float],
        referee: Callable | None = None,
        batch_size: int = 50,
        speaking: Callable[[str | None], AbstractContextManager] = lambda adapter: nullcontext(),
    ):
        # as the trainer's own rows: its setting stands in every one
        rows = with_kwargs(rows, getattr(trainer, "chat_template_kwargs", None))
        self.trainer, self.reference, self.rows = trainer, reference, rows
        self.rewards, self.weights, self.referee, self.batch_size = rewards, weights, referee, batch_size
        self.model, self.speaking = trainer.accelerator.unwrap_model(trainer.model), speaking

    def take(
        self, adapter: str | None, greedy: bool = True, shown: Counting = unshown
    ) -> list[evaluation.ScoredAnswers]:
        """Answers with `adapter`, sampled as in training and then, if asked for, greedy; scored by every reward and
        the referee. An empty list on all processes but the main one.

        Args: shown: how the answers are counted (`pipeline.watching.progress.counting`).
        """
        answers, trainer = [], self.trainer
        with in_lockstep(self.model):
            if trainer.accelerator.is_main_process:
                asked = self._undisturbed(adapter), self.speaking(adapter), shown(len(self.rows) * (1 + greedy))
                with asked[0], asked[1] as speaker, asked[2] as answered:
                    answers = [
                        self._answer(temperature, answered, speaker)
                        for temperature in ((trainer.temperature, 0) if greedy else (trainer.temperature,))
                    ]
        trainer.accelerator.wait_for_everyone()
        return answers

    def _answer(self, temperature: float, answered: Count, speaker: Callable | None) -> evaluation.ScoredAnswers:
        trainer, rewards = self.trainer, {name: raw(reward) for name, reward in self.rewards.items()}
        asked = {"temperature": temperature, "batch_size": self.batch_size, "seed": trainer.args.seed}
        asked["answered"] = answered
        if games.plays(trainer):
            return games.play_and_score(trainer, self.rows, rewards, self.referee, **asked)
        return evaluation.answer_and_score(
            self.model,
            trainer.processing_class,
            self.rows,
            rewards,
            self.referee,
            max_new_tokens=trainer.max_completion_length,
            eos_token_ids=trainer.eos_token_ids,
            sampling=sampled_by(trainer),
            speaker=speaker,
            **asked,
        )

    def kl(self, answers: evaluation.ScoredAnswers, shown: Counting = unshown) -> float:
        """Mean over completions of log π - log π_start summed over tokens, in nats (the k1 estimate of the KL)."""
        with shown(2 * len(self.rows)) as read:
            now, at_the_start = (self._log_probability(who, answers, read) for who in (POLICY, self.reference))
        return now - at_the_start

    def _log_probability(self, adapter: str | None, answers: evaluation.ScoredAnswers, read: Count) -> float:
        tokenizer, temperature = self.trainer.processing_class, self.trainer.temperature
        with self.active_adapter(adapter):
            asked = (self.model, tokenizer, self.rows, answers.completion_ids, temperature, self.batch_size, read)
            each = evaluation.logprobs(*asked, prompt_ids=answers.prompt_ids)
        return sum(row[torch.tensor(answers.own(i))].double().sum().item() for i, row in enumerate(each)) / len(each)

    def figures(self, answers: evaluation.ScoredAnswers, kl: float) -> dict:
        """What one row of `heldout.jsonl` says about the answers."""
        means = {name: _mean(column) for name, column in answers.scores.items()}
        rewards = {name: means.pop(name) for name in self.rewards}
        score = sum(self.weights[name] * mean for name, mean in rewards.items() if mean is not None)
        text = {"length": _mean(answers.lengths), "finished": _mean(answers.finished)}
        return {"kl": kl, "score": score, "rewards": rewards, "referee": means} | text | answers.corpus

    @contextmanager
    def _undisturbed(self, adapter: str | None) -> Iterator[None]:
        """Random state and running statistics of the rewards are left as they were."""
        with ExitStack() as stack:
            for reward in self.rewards.values():
                stack.enter_context(at_rest(reward))
            stack.enter_context(random_state_kept())
            stack.enter_context(self.active_adapter(adapter))
            yield

    def active_adapter(self, adapter: str | None) -> AbstractContextManager:
        """Inside, `adapter` answers."""
        return use_adapter(self.model, adapter)


def sampled_by(trainer) -> dict:
    """How a trainer of TRL's samples besides the temperature, by the names of transformers' generation."""
    named = {key: getattr(trainer, key, None) for key in ("top_p", "top_k", "min_p", "repetition_penalty")}
    own = getattr(trainer.args, "generation_kwargs", None) or {}
    return {key: value for key, value in named.items() if value is not None} | own


class ExamCallback(TrainerCallback):
    """Takes the exam every `every` updates of the training and writes `heldout.jsonl`, each row once.

    Args:
        exam: what to take. folder: of the run.
        every: updates between two exams; None: none in between.
    """

    def __init__(self, exam: Exam, folder: Path, every: int | None):
        self.exam, self.folder, self.every = exam, Path(folder), every
        args = exam.trainer.args
        samples = hasattr(args, "steps_per_generation")  # else an update is a step
        self.steps_per_update = steps_per_update(args) if samples else 1
        self.watch = Stopwatch()

    def write(self, answers: evaluation.ScoredAnswers, kl: float) -> None:
        """Adds the row of this step, unless it is there already; for the main process."""
        state, journal = self.exam.trainer.state, self.exam.trainer.journal
        if state.global_step in [row["step"] for row in read_heldout(self.folder)]:
            return
        row = {
            "step": state.global_step,
            "update": state.global_step // self.steps_per_update,
            "episodes": journal.episodes,
            "tokens": journal.tokens,
            **self.watch.read(),
        }
        append_line(self.folder / HELDOUT, row | self.exam.figures(answers, kl))

    def on_train_begin(self, args, state, control, **kwargs):
        resumed_from = getattr(self.exam.trainer, "resumed_from", None)
        if resumed_from is not None and (resumed_from / CLOCK).exists():
            self.watch.add(read_json(resumed_from / CLOCK, {str: float}))
        self.watch.start()

    def on_step_end(self, args, state, control, **kwargs):
        update, rest = divmod(state.global_step, self.steps_per_update)
        if self.every is None or rest or update % self.every or state.global_step >= state.max_steps:
            return
        self.watch.stop()
        started = time.perf_counter()
        in_lines = partial(counting, f"held-out prompts, update {update}", first=False)
        shown = unshown if sys.stdout.isatty() else in_lines  # there the bar of the training stands
        answers = self.exam.take(POLICY, greedy=False, shown=shown)
        with in_lockstep(self.exam.model):
            if state.is_world_process_zero:
                self.write(answers[0], self.exam.kl(answers[0], shown))
        self.exam.trainer.accelerator.wait_for_everyone()
        self.watch.start()
        self.exam.trainer.journal.leave_out(time.perf_counter() - started)

    def save_rest(self, folder: Path) -> None:
        """Into a checkpoint (see pipeline/runs/resumable_trainer.py)."""
        (folder / CLOCK).write_text(json.dumps(self.watch.read()), encoding="utf-8")

    def on_train_end(self, args, state, control, **kwargs):
        self.watch.stop()


class Stopwatch:
    """Seconds on the clock and seconds of the processor, while it runs."""

    def __init__(self):
        self._so_far = dict.fromkeys(("seconds", "cpu_seconds"), 0.0)
        self._since: dict[str, float] | None = None  # None: stopped

    def start(self) -> None:
        self._since = self._now()

    def stop(self) -> None:
        self._so_far, self._since = self._total(), None

    def read(self) -> dict[str, float]:
        return {name: round(seconds, 2) for name, seconds in self._total().items()}

    def add(self, read: dict[str, float]) -> None:
        """What an earlier process had read."""
        self._so_far = {name: seconds + read.get(name, 0.0) for name, seconds in self._so_far.items()}

    def _total(self) -> dict[str, float]:
        if self._since is None:
            return self._so_far
        now = self._now()
        return {name: seconds + now[name] - self._since[name] for name, seconds in self._so_far.items()}

    @staticmethod
    def _now() -> dict[str, float]:
        return {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever the block draws from Python's, numpy's and torch's generators, they go on as if it had not."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _mean(column: Sequence[float | None]) -> float | None:
    known = [float(x) for x in column if x is not None and not math.isnan(x)]
    return sum(known) / len(known) if known else None
