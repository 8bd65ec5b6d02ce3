"""Held-out games of several turns: played to their end, scored by every reward, and written down turn by turn."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pipeline.exam.evaluation import ScoredAnswers
from rewards.asking import columns_of, guarded
from rewards.text import text_of
from rewards.turns import calls_of, transcript


def plays(trainer: Any) -> bool:
    """Whether the completions of a trainer are games."""
    return bool(getattr(trainer, "tools", None)) and hasattr(trainer, "play")


def play_and_score(
    trainer: Any,
    rows: Sequence[Mapping[str, Any]],
    rewards: Mapping[str, Callable],
    referee: Callable[[Any, Mapping], dict[str, float]] | None,
    *,
    temperature: float,
    batch_size: int,
    seed: int,
    answered: Callable[[int], None] = lambda count: None,
) -> ScoredAnswers:
    """Lets the adapter that speaks play the games of every row; see `evaluation.answer_and_score`.

    Args:
        trainer: with `play` and `paid` (pipeline/rollouts/turns.py).
        referee: (messages of a game, row) -> named scores; never a reward in training.
    """
    games: list[Any] = []
    scores: dict[str, list[float | None]] = {name: [] for name in rewards}
    verdicts: list[dict[str, float]] = []
    paid: list[tuple[list[float], list[float]]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(rows), batch_size):
            asked = rows[start : start + batch_size]
            played, environments = trainer.play(asked, temperature, start)
            question = columns_of(asked) | {"prompts": [game.prompt for game in played]}
            question |= {"completions": [game.messages for game in played]}
            question |= {"environments": environments} if environments else {}
            ids = [game.completion_ids for game in played]
            for name, reward in rewards.items():
                scores[name] += guarded(reward, name)(completion_ids=ids, **question)
            if referee is not None:
                verdicts += [referee(game.messages, row) for game, row in zip(played, asked, strict=True)]
            paid += trainer.paid(asked, played, environments)
            games += played
            answered(len(asked))
    if verdicts:
        scores |= {name: [verdict[name] for verdict in verdicts] for name in verdicts[0]}
    ids = [game.completion_ids for game in games]
    finished = [bool(row) and row[-1] in trainer.eos_token_ids for row in ids]
    texts = [transcript(game.messages) for game in games]
    return ScoredAnswers(texts, ids, finished, scores, games=games, paid=paid)


def turns_shown(game: Any, paid: Sequence[float] = ()) -> list[dict[str, Any]]:
    """A game turn by turn: what the model said, what it called, what it was answered, and what it was paid for it.

    Args: paid: by the rewards at each token, score units.
    """
    found, starts = [], [0, *(turn.messages for turn in game.turns)]
    tokens = [0, *(turn.end + 1 for turn in game.turns)]
    for i in range(len(game.turns)):
        said, *answers = game.messages[starts[i] : starts[i + 1]] or [{}]
        found.append(
            {
                "said": text_of([said]),
                "calls": calls_of(said),
                "answers": [text_of([message]) for message in answers],
                "paid": round(sum(paid[tokens[i] : tokens[i + 1]]), 6),
            }
        )
    return found
