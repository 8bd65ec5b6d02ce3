"""The offline data: prompts with completions, read, tokenized, scored once by the project's rewards, and padded."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import is_conversational

from pipeline.config import DataArguments
from pipeline.data import loading as data
from pipeline.data import offline
from pipeline.data.exact_rows import exact_rows
from pipeline.data.loading import COLUMNS
from pipeline.errors import UserError
from pipeline.exam.evaluation import question_about
from pipeline.models.ends import end_of_turn, ids_behind
from pipeline.models.prompts import ids as ids_of
from pipeline.models.prompts import tokenize_prompts
from pipeline.ppo import math
from pipeline.rollouts.scoring import Scoring, weigh
from pipeline.safety.console import say
from rewards import WeightedReward, log_name_of, text_of
from rewards.mixture import Shaped, at_rest, every_in

FINISHED = "finished"  # column: false where the completion was cut at a limit
CHUNK = 256  # completions scored at once


class Scored(NamedTuple):
    """What is learned from, and what it is worth."""

    rows: Dataset  # prompt_ids, completion_ids, rewards: lists; a reward for each completion token
    means: dict[str, float]  # of each reward, unweighted, and of the weighted `score`
    std: float  # of the score


def load(args: DataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Rows with prompt and completion to learn from, and held-out prompts, each once, with their columns.

    Raises:
        UserError: data that cannot be read, that has no completions, or nothing held out.
    """
    train, heldout = offline.load(args, "sft", seed, "ILQL")
    if data.columns_of(train, "sft", str(args.dataset)) != COLUMNS["sft"][0]:
        raise UserError(
            f"dataset {args.dataset} has no columns prompt and completion, which Q-learning wants (it has "
            f"{', '.join(train.column_names)[:300]})"
        )
    return train, heldout


def tokenize(rows: Dataset, tokenizer, max_length: int) -> Dataset:
    """Adds prompt_ids and completion_ids, the end token on those that are finished; rows that are too long go.

    Ids are those of prompt and completion in one text where these begin with the prompt's, as TRL does it for SFT.

    Raises:
        UserError: no row is left, or `finished` holds something else than true and false.
    """
    found = rows.to_list()
    conversational = is_conversational({"prompt": found[0]["prompt"]})
    prompts = tokenize_prompts(tokenizer, found)
    keep, end = [], end_of_turn(tokenizer) if conversational else tokenizer.eos_token_id
    ends = (tokenizer.eos_token_id, end)
    for number, (row, prompt_ids) in enumerate(zip(found, prompts, strict=True), start=1):
        finished = row.get(FINISHED)
        if not isinstance(finished, bool | None):
            raise UserError(f"row {number}: {FINISHED} is {finished!r:.100}, but wants true or false")
        ids = _completion_ids(row, prompt_ids, tokenizer, conversational)
        ids = next((ids[: t + 1] for t, token in enumerate(ids) if token in ends), ids)
        is_ended = bool(ids) and ids[-1] in ends
        if finished is False and is_ended:  # by the template, which ends every turn
            ids = ids[:-1]
        elif finished is not False and not is_ended:
            ids = [*ids, end]
        row |= {"prompt_ids": prompt_ids, "completion_ids": ids}
        if ids and len(prompt_ids) + len(ids) <= max_length:
            keep.append(row)
    if not keep:
        raise UserError(f"no row is left: every one has more than max_length {max_length} tokens; raise it")
    if len(keep) < len(found):
        say(f"{len(found) - len(keep):,} rows left out: more than max_length {max_length} tokens")
    return exact_rows(keep)


def _completion_ids(row: dict, prompt_ids: list[int], tokenizer, conversational: bool) -> list[int]:
    prompt, completion = row["prompt"], row["completion"]
    if conversational:
        turns = completion if isinstance(completion, list) else [_turn(completion)]
        [whole] = ids_of(row | {"completion": turns}, "sft", tokenizer)
        if whole[: len(prompt_ids)] == prompt_ids:
            return whole[len(prompt_ids) :]
    return ids_behind(prompt, prompt_ids, text_of(completion), tokenizer)


def _turn(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def score(rows: Dataset, tokenizer, weighted: Sequence[WeightedReward], missing_eos_penalty: float | None) -> Scored:
    """What every reward says of every completion, and what is paid at each token, as PPO pays it.

    Running statistics (`normalize: running`) are those of all the data.

    Raises:
        UserError, RewardError: no reward scores any row, or one is infinite.
    """
    if any(isinstance(part, Shaped) and part.stats for reward, _ in weighted for part in every_in(reward)):
        for start in range(0, len(rows), CHUNK):
            _ask(rows[start : start + CHUNK], tokenizer, weighted)
    columns, paid, scores = [], [], []
    weights = torch.tensor([weight for _, weight in weighted])
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        with ExitStack() as stack:
            for reward, _ in weighted:
                stack.enter_context(at_rest(reward))
            each, scoring = _ask(chunk, tokenizer, weighted)
        total, scorable = weigh(each, weights)
        cut = torch.tensor([finished is False for finished in chunk.get(FINISHED, [None] * len(total))])
        total = torch.where(scorable, total - (missing_eos_penalty or 0.0) * cut, torch.nan)
        ids = [torch.ones(len(row)) for row in chunk["completion_ids"]]
        mask = pad_sequence(ids, batch_first=True)
        instant = scoring.instant(weights, mask.shape[1])
        rewards = math.token_rewards(total, torch.zeros_like(mask), mask, 0.0, instant)
        paid += [[round(x, 6) for x in row[: len(real)].tolist()] for row, real in zip(rewards, ids, strict=True)]
        columns.append(each)
        scores.append(total)
    each, total = torch.cat(columns), torch.cat(scores)
    known = ~total.isnan()
    if not known.any():
        raise UserError("no reward scored any completion: check that the columns that the rewards read are filled")
    if len(total) > known.sum():
        say(f"{len(total) - int(known.sum()):,} rows left out: no reward scored them")
    names = [log_name_of(reward) for reward, _ in weighted]
    means = {name: column[~column.isnan()].mean().item() for name, column in zip(names, each.T, strict=True)}
    good = known.nonzero()[:, 0].tolist()
    kept = rows.select(good).select_columns(["prompt_ids", "completion_ids"])
    kept = kept.add_column("rewards", [paid[i] for i in good])
    return Scored(kept, means | {"score": total[known].mean().item()}, total[known].std(correction=0).item())


def mean_return(rows: Dataset, gamma: float) -> float:
    """Mean over all tokens of what the completion still earns from there on, discounted."""
    total, count = 0.0, 0
    for rewards in rows["rewards"]:
        following = 0.0
        for reward in reversed(rewards):
            following = reward + gamma * following
            total, count = total + following, count + 1
    return total / count


def _ask(chunk: dict[str, list], tokenizer, weighted: Sequence[WeightedReward]) -> tuple[Tensor, Scoring]:
    """Scores (B, F), NaN where there is none, and what knows the payments at tokens."""
    ours = ("prompt_ids", "completion_ids")
    columns = {name: values for name, values in chunk.items() if name not in ours}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    question = question_about(rows, chunk["completion"])
    names, completions = [log_name_of(reward) for reward, _ in weighted], question["completions"]
    scoring = Scoring([reward for reward, _ in weighted], names, tokenizer, completions, chunk["completion_ids"])
    return scoring.ask(question), scoring


class Collator:
    """Rows to tensors: prompts padded on the left, completions on the right, so that columns are completion tokens."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """prompt_ids and prompt_mask (B, P); completion_ids, completion_mask and rewards (B, T)."""
        batch = {}
        for name, side in (("prompt", "left"), ("completion", "right")):
            ids = [torch.tensor(row[f"{name}_ids"]) for row in rows]
            ones = [torch.ones_like(row) for row in ids]
            batch[f"{name}_ids"] = pad_sequence(ids, True, self.pad_token_id, side)
            batch[f"{name}_mask"] = pad_sequence(ones, True, 0, side)
        batch["rewards"] = pad_sequence([torch.tensor(row["rewards"]) for row in rows], batch_first=True)
        return batch
