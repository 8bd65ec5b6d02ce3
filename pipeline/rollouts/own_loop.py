"""The way in for those who make rollouts themselves: `generate(prompts)` and `step(prompts, completions, scores)`.

`step` runs one PPO update through the very code that `train()` runs: Trainer's loop over optimizer steps, with the
given completions in the place of sampled ones and the given scores in the place of reward functions.
"""

import math
import time
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from datasets import Dataset

from pipeline.errors import UserError
from pipeline.models.ends import end_of_turn, ids_behind
from rewards import RewardError
from rewards.values import read


class Completion(NamedTuple):
    """One sampled completion: its text (or messages, for conversational prompts) and the ids that were sampled."""

    text: str | list[dict]
    ids: list[int]


class Given:
    """Scores that the user has computed, as a reward function."""

    def __init__(self, scores: Sequence):
        self._scores = list(scores)
        self.instant = any(isinstance(score, list | tuple) for score in self._scores)

    def __call__(self, prompts, completions, **columns):
        return [math.fsum(score) if isinstance(score, list | tuple) else score for score in self._scores]

    def token_rewards(self, prompts, completions, **columns):
        return self._scores


def no_rewards(prompts, completions, **columns):
    raise RewardError("PPOTrainer has no reward_funcs: give them, or call step(prompts, completions, scores).")


class OwnLoop:
    """Mixed into PPOTrainer."""

    _started = False

    def generate(self, prompts: Sequence) -> list[Completion]:
        """Samples one completion for each prompt (texts or lists of messages), as `train()` samples them.

        Raises:
            UserError: the trainer has tools or an environment.
        """
        self._check_one_turn("generate")
        self.model.train()
        _, completion_ids, _, texts, *_ = self._generate(list(prompts))
        return [Completion(text, list(ids)) for text, ids in zip(texts, completion_ids, strict=True)]

    def step(self, prompts: Sequence, completions: Sequence, scores: Sequence) -> dict[str, float]:
        """One update (`num_iterations` epochs) on completions of your own making. Returns what it logs.

        Args:
            prompts: texts or lists of messages; as many as one process takes for a rollout,
                `per_device_train_batch_size x gradient_accumulation_steps x num_mini_batches`.
            completions: for each prompt what `generate` gave, or token ids, or a text (which then ends with the
                end-of-text token, or as the chat template ends a turn). Ids are best: the policy is trained on
                exactly them.
            scores: for each completion a number, or a list with a number for each of its tokens, or None (it is left
                out), in whatever form rewards may return them (`rewards/values.py`).

        Raises:
            UserError: when the numbers of rows or tokens do not fit, or when `total_episodes` are used up.
        """
        self._check_one_turn("step")
        self._check_counts(prompts=prompts, completions=completions, scores=scores)
        ids = [self._ids_of(completion, prompt) for prompt, completion in zip(prompts, completions, strict=True)]
        scores = _numbers(scores, len(ids))
        _check_rows(ids, scores)
        if not self._started:
            self._start()
        if self.state.global_step >= self.args.max_steps:
            raise UserError(f"total_episodes ({self.args.max_steps} optimizer steps) are used up: raise it.")
        self.model.train()
        steps = self.args.steps_per_update
        micro_steps = steps * self.args.gradient_accumulation_steps
        rows = [{"prompt": prompt} for prompt in prompts]
        with self._instead_of_sampling(ids, scores):
            self._run_epoch(
                model=self.model_wrapped,
                epoch=self.state.global_step // steps,
                train_dataloader=[rows] * micro_steps,
                steps_in_epoch=micro_steps,
                num_update_steps_per_epoch=steps,
                trial=None,
                ignore_keys_for_eval=None,
                start_time=self._since,
                resume_from_checkpoint=None,
                epochs_trained=0,
                steps_trained_in_current_epoch=0,
            )
        return dict(self.state.log_history[-1]) if self.state.log_history else {}

    def _start(self) -> None:
        """What Trainer does before its first epoch."""
        if self.args.max_steps <= 0:
            raise UserError("step() needs total_episodes (or max_steps): the learning-rate schedule ends there.")
        self._started, self._since = True, time.time()
        self._init_training_state(self.args.max_steps, self.args.max_steps, 1, None, None)
        self._prepare_for_training(self.args.max_steps, [], None)
        self._initial_num_input_tokens_seen = self._initial_global_step = self._globalstep_last_logged = 0
        self._tr_loss, self._total_loss_scalar = torch.tensor(0.0, device=self.args.device), 0.0
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)

    def _ids_of(self, completion, prompt: str | list[dict] = "") -> list[int]:
        if isinstance(completion, Completion):
            return list(completion.ids)
        if isinstance(completion, str):
            [prompt_ids] = self._tokenize_prompts([prompt])[0]
            tokenizer = self._tokenizer
            end = tokenizer.eos_token_id if isinstance(prompt, str) else end_of_turn(tokenizer)
            return [*ids_behind(prompt, prompt_ids, completion, tokenizer), end]
        return [int(token) for token in completion]

    def _check_one_turn(self, who: str) -> None:
        if getattr(self, "tools", None):
            raise UserError(
                f"{who}() plays no games of several turns: a trainer with tools or an environment has train()"
            )

    def _check_counts(self, **given: Sequence) -> None:
        expected = self.args.per_device_train_batch_size * self.args.steps_per_generation
        for name, rows in given.items():
            if hasattr(rows, "__len__") and len(rows) != expected:
                raise UserError(
                    f"step() got {len(rows)} {name}, but a rollout of one process has {expected}: "
                    f"per_device_train_batch_size {self.args.per_device_train_batch_size} x "
                    f"gradient_accumulation_steps {self.args.gradient_accumulation_steps} x num_mini_batches "
                    f"{self.args.num_mini_batches}."
                )

    @contextmanager
    def _instead_of_sampling(self, completion_ids: list[list[int]], scores: list):
        def rollout(prompts, trainer):
            prompt_ids = self._tokenize_prompts(prompts)[0]
            return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

        ours = {
            "rollout_func": rollout,
            "reward_funcs": [Given(scores)],
            "reward_func_names": ["given"],
            "reward_processing_classes": [None],
            "reward_weights": torch.ones(1),
            "use_vllm": False,  # it would weigh what no sampler has sampled
        }
        theirs = {name: getattr(self, name) for name in ours}
        vars(self).update(ours)
        try:
            yield
        finally:
            vars(self).update(theirs)

    def get_train_dataloader(self):
        if self._no_prompts:
            raise UserError("PPOTrainer has no train_dataset: give one, or call step(prompts, completions, scores).")
        return super().get_train_dataloader()


def _numbers(scores: Any, count: int) -> list:
    """The scores as numbers, lists of numbers and None."""
    try:
        return read(scores, count, "scores: step() got", tokens=True, give="give")
    except RewardError as error:
        raise UserError(str(error)) from None


def _check_rows(ids: list[list[int]], scores: list) -> None:
    per_token = any(isinstance(score, list) for score in scores)
    for row, (tokens, score) in enumerate(zip(ids, scores, strict=True)):
        if not tokens:
            raise UserError(f"completions[{row}] has no tokens; a completion has at least the end-of-text token.")
        if per_token and score is not None and not (isinstance(score, list) and len(score) == len(tokens)):
            given = f"{len(score)} numbers" if isinstance(score, list) else "one number"
            raise UserError(f"scores[{row}] has {given}, but its completion has {len(tokens)} tokens: give one each.")


def placeholder() -> Dataset:
    """TRL insists on a data set; it is never read."""
    return Dataset.from_dict({"prompt": [""]})
