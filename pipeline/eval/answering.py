"""A candidate answers: its base loaded, what it says to each prompt, what rewards and referee say of it."""

from collections.abc import Callable, Sequence

import torch

from pipeline.errors import UserError
from pipeline.eval.candidates import Candidate, load_group
from pipeline.exam.evaluation import ScoredAnswers, answer_and_score
from pipeline.exam.exam import random_state_kept
from pipeline.models.ends import stop_token_ids
from pipeline.models.prompts import check_room, tokenize_prompts
from pipeline.rollouts.vllm_engine import Engine
from pipeline.watching.progress import counting

GREEDY, SAMPLED = DECODINGS = ("greedy", "sampled")


def load(group: Sequence[Candidate], rows: Sequence[dict], args, engine: Engine | None = None) -> torch.nn.Module:
    """`load_group`, or a `UserError` where a prompt and its completion may not fit into the context.

    Args: args: the stage's settings.
    """
    model = load_group(group, args.model_arguments())
    for candidate in group:
        who = f"candidate {candidate.name}: "
        try:
            longest = max(map(len, tokenize_prompts(candidate.tokenizer, rows)))
        except UserError as error:
            raise UserError(f"{who}{error}") from None
        check_room(model, longest, args.max_completion_length, who)
        if engine is not None:
            engine.check_room(longest + args.max_completion_length)
    return model


def answer(
    model,
    candidate: Candidate,
    rows: Sequence[dict],
    args,
    temperature: float,
    what: str,
    rewards: dict[str, Callable] | None = None,
    referee: Callable | None = None,
    speaker: Callable | None = None,
) -> ScoredAnswers:
    """What `model` says to each row as it is, and its scores. The same seed for every candidate.

    Args:
        args: the stage's settings.
        temperature: 0: greedy.
        what: is being answered, for the line that counts.
    """
    with random_state_kept(), counting(f"{candidate.name}, {what}", len(rows)) as answered:
        return answer_and_score(
            model,
            candidate.tokenizer,
            rows,
            rewards or {},
            referee,
            max_new_tokens=args.max_completion_length,
            eos_token_ids=stop_token_ids(model, candidate.tokenizer),
            temperature=temperature,
            batch_size=args.eval_batch_size,
            seed=args.seed,
            answered=answered,
            speaker=speaker,
        )
