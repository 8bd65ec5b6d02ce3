"""Why it learned that: what each token of chosen completions earned, and which tokens became more or less likely.

Written after training, from the completions of the last exam:

    tokens.jsonl   a few held-out completions of the trained policy, best, worst and most changed, token by token
    shifts.json    the tokens whose probability rose and fell most from the start of the policy to its end

The start is what the policy was trained from (the SFT adapter, or the base) and serves as the reference of the KL.
All probabilities are at the temperature of training. Nothing here changes the model, the rewards or the random state.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import RLOOTrainer

from pipeline.exam import evaluation
from pipeline.exam.evaluation import ScoredAnswers
from pipeline.exam.exam import Exam, random_state_kept
from pipeline.models.adapters import POLICY, use_adapter
from pipeline.models.prompts import tokenize_prompts
from pipeline.models.structure import last_logits, positions
from pipeline.ppo import math
from pipeline.ppo.config import NORMALIZE
from pipeline.ppo.experience import Rollout, make_experience
from pipeline.rollouts.scoring import Scoring, weigh
from pipeline.stages.token_shifts import Shifts
from pipeline.watching.progress import counting
from rewards import token_ends
from rewards.mixture import at_rest

TOKENS, SHIFTS = "tokens.jsonl", "shifts.json"
EACH = 4  # completions of each kind: best, worst, most changed


def write(exam: Exam, before: ScoredAnswers, after: ScoredAnswers, folder: Path) -> None:
    """Writes `tokens.jsonl` and `shifts.json` into `folder`; for the main process.

    Args:
        exam: that the policy took. before, after: its sampled answers at the start and at the end of training.
    """
    with _undisturbed(exam):
        chosen = choose(scores_of(exam, before), scores_of(exam, after))
        shifts, logprobs = compare(exam, before, after, set(chosen))
        rows = credit_tokens(exam, before, after, chosen, logprobs) if chosen else []
    with (folder / TOKENS).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    found = shifts.summary(exam, before, after)
    (folder / SHIFTS).write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- which completions
def scores_of(exam: Exam, answers: ScoredAnswers) -> Tensor:
    """Weighted sum of the rewards less the penalty for an answer that was cut, (N,); NaN where none has a score."""
    columns = [[float("nan") if s is None else s for s in answers.scores[name]] for name in exam.rewards]
    weights = torch.tensor([exam.weights[name] for name in exam.rewards])
    scores, scorable = weigh(torch.tensor(columns).T, weights)
    penalty = getattr(exam.trainer.args, "missing_eos_penalty", None) or 0.0
    return torch.where(scorable, scores - penalty * ~torch.tensor(answers.finished), torch.nan)


def choose(before: Tensor, after: Tensor, each: int = EACH) -> dict[int, str]:
    """Rows to look at, and why: the best and the worst by score, and those whose score changed most.

    One of each kind in turn, no row twice, ties to the first row; rows without a score are left out.

    Args: before, after: scores, (N,).
    """
    rows = [i for i in range(len(after)) if not torch.isnan(after[i])]
    after_, change = after.tolist(), (after - before).abs().nan_to_num(nan=0.0).tolist()
    orders = {
        "best": sorted(rows, key=lambda i: -after_[i]),
        "worst": sorted(rows, key=lambda i: after_[i]),
        "most changed": sorted(rows, key=lambda i: -change[i]),
    }
    chosen: dict[int, str] = {}
    for _ in range(each):
        for why, order in orders.items():
            if (row := next((i for i in order if i not in chosen), None)) is not None:
                chosen[row] = why
    return chosen


# ---------------------------------------------------------------- what each token earned
def credit_tokens(
    exam: Exam, before: ScoredAnswers, after: ScoredAnswers, chosen: dict[int, str], logprobs: dict[int, tuple]
) -> list:
    """A row of `tokens.jsonl` for each chosen completion of the trained policy.

        prompt, why, row               as in samples.jsonl, why it was chosen, its line there
        score, score_before            of this completion and of the one before training, penalties included
        kl_coef                        price of a nat in the reward; 0 where the KL is no part of it (GRPO)
        tokens                         pieces of the text; a token that completes no character is ""
        silent                         position -> what to call a token without text, such as the end of the text
        rewards                        score units: what was paid at the token, less kl_coef · KL, as in training
        scores                         score units: the same without the KL; sums to the score
        values, advantages             score units, advantages not whitened; null without a critic
        kl                             log π - log π_ref, nats
        probs_before, probs_after      of the token under the start of the policy and under the trained policy

    Args: chosen: row -> why. logprobs: row -> log-probabilities (T,) of its tokens under the start and the policy.
    """
    trainer, rows = exam.trainer, list(chosen)
    ids, texts = [after.completion_ids[i] for i in rows], [_text(exam, after, i) for i in rows]
    ref_logprobs, policy_logprobs = (_padded([logprobs[i][side] for i in rows]) for side in (0, 1))
    scores, scorable, instant = _scores(exam, after, rows, texts)
    mask = _padded([torch.tensor(after.own(i)).float() for i in rows]) * scorable[:, None]
    # nobody chose what the environment said
    policy_logprobs = torch.where(mask.bool(), policy_logprobs, ref_logprobs)
    values = _values(exam, after, rows)
    rollout = Rollout(
        mask, scores, policy_logprobs, ref_logprobs, torch.zeros_like(mask) if values is None else values, instant
    )
    settings, kl_coef = _settings(trainer), _kl_coef(trainer)
    experience = make_experience(rollout, settings, kl_coef, advantage=getattr(trainer, "advantage", math.gae))
    paid = math.token_rewards(scores, experience.kl, mask, 0.0, instant)
    kl = math.kl_penalty(policy_logprobs, ref_logprobs)
    ends, before_scores = token_ends(ids, texts, exam.trainer.processing_class), scores_of(exam, before)
    found = []
    for i, row in enumerate(rows):

        def column(x: Tensor | None, i=i) -> list[float] | None:
            return None if x is None else [float(f"{number:.5g}") for number in x[i, : len(ids[i])].tolist()]

        tokens = pieces(texts[i], ends[i], len(ids[i]))
        found.append(
            {
                "prompt": exam.rows[row]["prompt"] if after.games is None else after.games[row].prompt,
                "why": chosen[row],
                "row": row,
                "score": scores[i].item(),
                "score_before": None if before_scores[row].isnan() else before_scores[row].item(),
                "kl_coef": kl_coef,
                "tokens": tokens,
                "silent": silent(trainer.processing_class, ids[i], tokens),
                "rewards": column(experience.rewards),
                "scores": column(paid),
                "values": column(values),
                "advantages": None if values is None else column(experience.advantages),
                "kl": column(kl),
                "probs_before": column(ref_logprobs.exp()),
                "probs_after": column(policy_logprobs.exp()),
            }
        )
    return found


def pieces(text: str, ends: Sequence[int] | None, count: int) -> list[str]:
    """`count` pieces that make up `text`, one a token: each holds the characters that its token completes.

    Args: ends: of each token, as `token_ends` gives them; None (the text is not what the ids decode to): all at the
        last token.
    """
    ends = [0] * (count - 1) + [len(text)] * (count > 0) if ends is None else ends
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def silent(tokenizer, ids: Sequence[int], tokens: Sequence[str]) -> dict[str, str]:
    """Position -> what to call a token that has no text: a special token by its name, half a character by "…"."""
    special = set(tokenizer.all_special_ids)
    return {
        str(t): tokenizer.convert_ids_to_tokens(token) if token in special else "…"
        for t, token in enumerate(ids)
        if not tokens[t]
    }


def _text(exam: Exam, after: ScoredAnswers, row: int) -> str:
    """What the ids of a completion say; of a game, with what the tools wrote."""
    if after.games is None:
        return after.completions[row]
    return exam.trainer.processing_class.decode(after.completion_ids[row], skip_special_tokens=True)


def _scores(exam: Exam, after: ScoredAnswers, rows: list[int], texts) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores with penalties (B,), scorable (B,), token rewards (B, T) or None: as the trainer has them in training."""
    trainer, args, ids = exam.trainer, exam.trainer.args, [after.completion_ids[i] for i in rows]
    penalty = (getattr(args, "missing_eos_penalty", None) or 0.0) * ~torch.tensor([after.finished[i] for i in rows])
    if after.games is not None:  # their environments have gone on to other games: asked when they were played
        scores, scorable = weigh(torch.tensor([after.paid[i][0] for i in rows]), trainer.reward_weights.cpu())
        return scores - penalty, scorable, _padded([torch.tensor(after.paid[i][1]) for i in rows])
    question = evaluation.question_about([exam.rows[i] for i in rows], texts)
    names, completions = trainer.reward_func_names, question["completions"]
    scoring = Scoring(trainer.reward_funcs, names, trainer.processing_class, completions, ids)
    weights = trainer.reward_weights.cpu()
    scores, scorable = weigh(scoring.ask(question), weights)
    if not _is_ppo(trainer):  # TRL takes one score a completion, and the penalty is one of its reward functions
        return scores, scorable, None
    return scores - penalty, scorable, scoring.instant(weights, max(map(len, ids)))


def _values(exam: Exam, after: ScoredAnswers, rows: list[int]) -> Tensor | None:
    """V before each token, (B, T), score units; None without a critic, or with one that knows normalised scores."""
    trainer, found = exam.trainer, []
    if getattr(trainer, "critic", None) is None or trainer.args.multi_objective_aggregation == NORMALIZE:
        return None
    asked = after.prompt_ids and [after.prompt_ids[i] for i in rows]
    ids = [after.completion_ids[i] for i in rows]
    for inputs, answers in _batches(exam, [exam.rows[i] for i in rows], ids, asked):
        with torch.no_grad(), trainer.accelerator.autocast():
            values = trainer.critic.values(inputs["input_ids"], inputs["attention_mask"], max(map(len, answers)))
        found += [row[: len(answer)].cpu() for row, answer in zip(values, answers, strict=True)]
    return _padded(found)


def _settings(trainer) -> SimpleNamespace:
    """What `make_experience` asks for; advantages stay in score units. TRL's own trainers have none of it."""
    defaults = {"algorithm": "reinforce", "kl_estimator": "k1", "gamma": 1.0, "lam": 1.0, "whiten_rewards": False}
    found = {name: getattr(trainer.args, name, default) for name, default in defaults.items()}
    return SimpleNamespace(**found, whiten_advantages=False)


def _kl_coef(trainer) -> float:
    """β of the KL in the reward; 0 for GRPO, which has it in its loss."""
    if _is_ppo(trainer):
        return trainer.kl_coef
    return trainer.beta if isinstance(trainer, RLOOTrainer) else 0.0


def _is_ppo(trainer) -> bool:
    return hasattr(trainer, "kl_coef")


# ---------------------------------------------------------------- which tokens became more likely
def compare(
    exam: Exam, before: ScoredAnswers, after: ScoredAnswers, wanted: set[int]
) -> tuple[Shifts, dict[int, tuple]]:
    """The shifts over all completions, and for the `wanted` rows of `after` the log-probabilities of their tokens.

    Returns:
        shifts, and row -> (T,) under the start of the policy, (T,) under the policy; nats.
    """
    ids = before.completion_ids + after.completion_ids
    asked = before.prompt_ids and after.prompt_ids and before.prompt_ids + after.prompt_ids
    own = [side.own(row) for side in (before, after) for row in range(len(exam.rows))]
    shifts, logprobs = None, {}
    with counting("what each token earned", len(ids), first=False) as read:
        for i, (ref, policy) in enumerate(distributions(exam, list(exam.rows) * 2, ids, asked)):
            shifts = Shifts(policy.shape[1]) if shifts is None else shifts
            shifts.add(i, ref, policy, torch.tensor(own[i]))
            if (row := i - len(exam.rows)) in wanted:
                said = torch.tensor(ids[i], device=policy.device)[:, None]
                logprobs[row] = tuple(side.gather(1, said)[:, 0].cpu() for side in (ref, policy))
            read(1)
    return shifts, logprobs


def distributions(
    exam: Exam, rows: list, completion_ids: list[list[int]], prompt_ids: list[list[int]] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each completion the log-probabilities of every token at each of its positions, (T, V) each in nats: under
    the start of the policy, and under the policy. Only the logits of one micro-batch are in memory at a time."""
    for inputs, answers in _batches(exam, rows, completion_ids, prompt_ids):
        count = max(map(len, answers)) + 1
        given = positions(exam.model, inputs["attention_mask"]) | last_logits(exam.model, count)
        logits = []
        for adapter in (exam.reference, POLICY):
            with torch.no_grad(), use_adapter(exam.model, adapter):
                logits.append(exam.model(**inputs, **given, use_cache=False).logits[:, -count:-1])
        for row, answer in enumerate(answers):
            ref, policy = (
                torch.log_softmax(each[row, : len(answer)].float() / exam.trainer.temperature, dim=-1)
                for each in logits
            )
            yield ref, policy


# ---------------------------------------------------------------- batches
def _batches(
    exam: Exam, rows: list, completion_ids: list[list[int]], prompt_ids: list[list[int]] | None = None
) -> Iterator[tuple[dict, list[list[int]]]]:
    """Micro-batches of model inputs (B, P+T), prompts padded left and completions right, and the completions' ids."""
    tokenizer, size = exam.trainer.processing_class, exam.trainer.args.per_device_train_batch_size
    prompt_ids = prompt_ids or tokenize_prompts(tokenizer, rows)
    for start in range(0, len(rows), size):
        asked, said = ([torch.tensor(x) for x in part[start : start + size]] for part in (prompt_ids, completion_ids))
        ids = torch.cat([_padded(asked, tokenizer.pad_token_id, "left"), _padded(said, tokenizer.pad_token_id)], dim=1)
        mask = torch.cat([_padded(map(torch.ones_like, asked), 0, "left"), _padded(map(torch.ones_like, said))], dim=1)
        inputs = {"input_ids": ids.to(exam.model.device), "attention_mask": mask.to(exam.model.device)}
        yield inputs, completion_ids[start : start + size]


def _padded(rows, value: float = 0, side: str = "right") -> Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)


@contextmanager
def _undisturbed(exam: Exam) -> Iterator[None]:
    """Random state, running statistics of the rewards and the model's mode are left as they were."""
    was_training = exam.model.training
    with ExitStack() as stack:
        for reward in exam.trainer.reward_funcs:
            stack.enter_context(at_rest(reward))
        stack.enter_context(random_state_kept())
        exam.model.eval()
        try:
            yield
        finally:
            exam.model.train(was_training)
