"""Before and after, on prompts held out from training: completions, scores by every reward and by the referee, KL."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig
from trl import is_conversational

from pipeline.errors import UserError
from pipeline.metrics import load_metric
from pipeline.models.decoding import Decoder, cut
from pipeline.models.ends import said, turn_of
from pipeline.models.prompts import Asked, tokenize_prompts
from pipeline.models.structure import eval_mode, last_logits, positions
from rewards.asking import columns_of, guarded

LOGITS = 2**26  # so many logits at once at most: 50 completions of 128 tokens over 150,000 words would be 2**30


class ScoredAnswers(NamedTuple):
    """What one policy said to the held-out prompts, and what it was worth. One entry a prompt."""

    completions: list[str]
    completion_ids: list[list[int]]  # the sampled tokens, end-of-text token included
    finished: list[bool]  # ended by itself rather than cut at the limit
    scores: dict[str, list[float | None]]  # by the name of reward or referee
    corpus: dict[str, float] = {}  # corpus_bleu (0 to 100) and corpus_rougeL (0 to 1), where the rows have references
    # Where the completions are games of several turns (exam/games.py), which `completions` shows as text:
    games: list[Any] | None = None  # with prompt_ids, own (1 = sampled by the policy), messages, turns
    paid: list[tuple[list[float], list[float]]] = []  # by the training's rewards: score of each; at every token

    @property
    def prompt_ids(self) -> list[list[int]] | None:
        """What stood before each game; None: the rows' prompts."""
        return None if self.games is None else [game.prompt_ids for game in self.games]

    def own(self, row: int) -> list[bool]:
        """Which of a completion's tokens the policy sampled."""
        ids = self.completion_ids[row]
        return [True] * len(ids) if self.games is None else [bool(x) for x in self.games[row].own]

    @property
    def lengths(self) -> list[int]:
        """Sampled tokens of each completion."""
        return [sum(self.own(row)) for row in range(len(self.completion_ids))]

    def means(self) -> dict[str, float]:
        """Mean of every score (rows without one left out), of the length in tokens, and the share that finished; and
        the corpus metrics."""
        means = {name: _mean([s for s in column if s is not None]) for name, column in self.scores.items()}
        length = "tokens" if "length" in means else "length"  # a reward may have the name
        return means | self.corpus | {length: _mean(self.lengths), "finished": _mean(self.finished)}


def answer_and_score(
    model,
    tokenizer,
    rows: Sequence[dict],
    rewards: dict[str, Callable],
    referee: Callable[[str, dict], dict[str, float]] | None,
    *,
    max_new_tokens: int,
    eos_token_ids: list[int],
    temperature: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    sampling: dict | None = None,
    answered: Callable[[int], None] = lambda count: None,
    speaker: Callable | None = None,
) -> ScoredAnswers:
    """Lets `model` answer every row's prompt and scores the answers.

    Args:
        rows: dicts with `prompt` (text or messages) and the columns that the rewards read.
        rewards: name -> function with TRL's signature.
        referee: (completion text, row) -> named scores; never a reward in training.
        temperature: 1 = the policy's own distribution, 0 = greedy.
        batch_size: prompts at once. seed: of the sampling; the caller's random state is left as it was.
        sampling: see `complete`.
        answered: is told of each number of prompts that have been answered.
        speaker: see `complete`.
    """
    drawn = {"sampling": sampling, "answered": answered, "speaker": speaker}
    ids = complete(model, tokenizer, rows, max_new_tokens, eos_token_ids, temperature, batch_size, seed, **drawn)
    texts = texts_of(tokenizer, rows, ids, eos_token_ids)
    question = question_about(rows, texts)
    scores = {name: guarded(reward, name)(completion_ids=ids, **question) for name, reward in rewards.items()}
    for name, column in scores.items():
        if any(score is not None and math.isinf(score) for score in column):
            raise UserError(f"The reward {name} returned an infinite score, of which there is no mean; clip it.")
    if referee is not None:
        verdicts = [referee(text, row) for text, row in zip(texts, rows, strict=True)]
        scores |= {name: [verdict[name] for verdict in verdicts] for name in verdicts[0]}
    finished = [bool(row) and row[-1] in eos_token_ids for row in ids]
    return ScoredAnswers(texts, ids, finished, scores, corpus_metrics(texts, [row.get("references") for row in rows]))


def question_about(rows: Sequence[dict], texts: Sequence[str | list[dict]]) -> dict[str, list]:
    """What a reward is asked with about completions, one a row: `prompts`, `completions` (messages where the prompts
    are messages) and every other column, as in training."""
    prompts, completions = [row["prompt"] for row in rows], list(texts)
    if is_conversational({"prompt": prompts[0]}):
        completions = [[{"role": "assistant", "content": x}] if isinstance(x, str) else x for x in completions]
    return {"prompts": prompts, "completions": completions, **columns_of(rows)}


def corpus_metrics(texts: Sequence[str], references: Sequence[list[str] | None]) -> dict[str, float]:
    """BLEU over all texts at once and mean ROUGE-L, by `evaluate`; rows without references are left out."""
    pairs = [(text, wanted) for text, wanted in zip(texts, references, strict=True) if wanted]
    if not pairs:
        return {}
    predictions, wanted = (list(side) for side in zip(*pairs, strict=True))
    bleu = load_metric("bleu").compute(predictions=predictions, references=wanted)["score"]
    rouge = load_metric("rouge").compute(predictions=predictions, references=wanted)["rougeL"]
    return {"corpus_bleu": float(bleu), "corpus_rougeL": float(rouge)}


@torch.no_grad()
def complete(
    model,
    tokenizer,
    prompts: Sequence[Asked],
    max_new_tokens,
    eos_token_ids,
    temperature=1.0,
    batch_size=32,
    seed=0,
    *,
    sampling: dict | None = None,
    answered=lambda count: None,
    speaker: Callable | None = None,
) -> list[list[int]]:
    """Completion ids of every prompt, cut after the first end-of-text id. `model` is put in eval mode and back.

    Args:
        prompts: rows with `prompt` and what they tell the chat template, or bare prompts.
        sampling: further settings of transformers' generation, such as top_p; greedy answers go without them.
        speaker: answers token ids in the place of `model` (`pipeline.rollouts.vllm_engine.Speaker`).
    """
    prompt_ids = tokenize_prompts(tokenizer, prompts)
    if speaker is not None:
        asked = {"temperature": temperature, "seed": seed, "sampling": sampling, "answered": answered}
        found = speaker(prompt_ids, max_new_tokens=max_new_tokens, eos_token_ids=eos_token_ids, **asked)
        return [cut(ids, eos_token_ids) for ids in found]
    settings = {"max_new_tokens": max_new_tokens, "eos_token_id": eos_token_ids, "do_sample": bool(temperature)}
    settings |= {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    if temperature:
        settings |= {"temperature": temperature, "top_k": 0, "top_p": 1.0} | (sampling or {})
    config = GenerationConfig(**settings)
    order = sorted(range(len(prompts)), key=lambda i: len(prompt_ids[i]))  # like lengths together: less padding
    completions: list[list[int]] = [[] for _ in prompts]
    decode = partial(_sample, model, config) if temperature else Decoder(model, config)
    with eval_mode(model), _plain_generation(model), _seeded(seed):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = _left_pad([prompt_ids[i] for i in batch], tokenizer.pad_token_id, model.device)
            for i, ids in zip(batch, decode(**inputs), strict=True):
                completions[i] = cut(ids, eos_token_ids)
            answered(len(batch))
    return completions


def _sample(model, config: GenerationConfig, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[list[int]]:
    """The whole batch to its longest row: who drops rows also changes what the others draw."""
    try:
        output = model.generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=config)
    except RuntimeError as error:
        if "probability tensor" not in str(error):  # torch.multinomial
            raise
        raise UserError(
            "the model's probabilities are not finite, so nothing can be sampled: its weights are damaged, or its "
            "training has diverged (lower learning_rate)"
        ) from None
    return output[:, input_ids.shape[1] :].tolist()


def logprobs(model, tokenizer, prompts: Sequence[Asked], completion_ids, *asked, **more) -> list[torch.Tensor]:
    """Log-probability in nats of each completion token under `model`; one tensor (length,) a row. See `each_token`."""

    def chosen(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits, dim=-1).gather(2, ids[..., None])[..., 0]

    return each_token(chosen, model, tokenizer, prompts, completion_ids, *asked, **more)


def entropies(model, tokenizer, prompts: Sequence[Asked], completion_ids, *asked, **more) -> list[torch.Tensor]:
    """H(π) = -Σ_a π(a) log π(a) in nats where each completion token was drawn; one tensor (length,) a row. See
    `each_token`."""

    def entropy(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Categorical(logits=logits).entropy()

    return each_token(entropy, model, tokenizer, prompts, completion_ids, *asked, **more)


@torch.no_grad()
def each_token(
    of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    model,
    tokenizer,
    prompts: Sequence[Asked],
    completion_ids,
    temperature=1.0,
    batch_size=32,
    read=lambda count: None,
    prompt_ids: list[list[int]] | None = None,
) -> list[torch.Tensor]:
    """What `of` makes of each completion token; one tensor (length,) a row. See `complete`.

    Args:
        of: (logits / temperature (B, T, V), ids of the tokens (B, T)) -> (B, T).
        prompt_ids: of the prompts, where they are more than a row says.
    """
    prompt_ids, found = prompt_ids or tokenize_prompts(tokenizer, prompts), []
    row = (max(map(len, completion_ids), default=0) + 1) * model.config.get_text_config().vocab_size
    batch_size = min(batch_size, max(1, LOGITS // row))
    with eval_mode(model):
        for start in range(0, len(prompts), batch_size):
            answers = completion_ids[start : start + batch_size]
            whole = [p + c for p, c in zip(prompt_ids[start : start + batch_size], answers, strict=True)]
            inputs = _left_pad(whole, tokenizer.pad_token_id, model.device)
            longest = max(len(answer) for answer in answers)
            given = positions(model, inputs["attention_mask"]) | last_logits(model, longest + 1)
            logits = model(**inputs, **given, use_cache=False).logits
            ids = inputs["input_ids"][:, -longest:]
            each = of(logits[:, -longest - 1 : -1].float() / temperature, ids)
            found += [row[longest - len(answer) :].cpu() for row, answer in zip(each, answers, strict=True)]
            read(len(answers))
    return found


def texts_of(
    tokenizer, prompts: Sequence[Asked], completion_ids: list[list[int]], eos_token_ids: list[int]
) -> list[str]:
    """What the completion ids of every prompt say, as the rewards read it in training.

    Args: prompts: as in `complete`.
    """
    first = prompts[0]["prompt"] if isinstance(prompts[0], Mapping) else prompts[0]
    turn = turn_of(tokenizer) if is_conversational({"prompt": first}) else None
    return said(tokenize_prompts(tokenizer, prompts), completion_ids, tokenizer, eos_token_ids, turn)


def _left_pad(rows: list[list[int]], pad_token_id: int, device) -> dict[str, torch.Tensor]:
    ids = [torch.tensor(row) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id, padding_side="left").to(device),
        "attention_mask": pad_sequence(
            [torch.ones_like(row) for row in ids], batch_first=True, padding_side="left"
        ).to(device),
    }


@contextmanager
def _plain_generation(model) -> Iterator[None]:
    """`generate` fills what a GenerationConfig leaves open (repetition penalties, …) from the model's own: hide it."""
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = owner.generation_config
    owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = before


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else float("nan")
