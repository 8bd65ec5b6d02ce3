"""Which tokens became more or less likely by training, summed over all held-out completions: `shifts.json`."""

import itertools

import torch
from torch import Tensor

from pipeline.exam import evaluation
from pipeline.exam.evaluation import ScoredAnswers
from pipeline.exam.exam import Exam
from rewards.text import text_of

LISTED = 15  # tokens in each list of shifts
CONTEXT = 120  # characters of text before a token that is given as an example
_POSITIONS = 64  # distributions that are compared at once


class Shifts:
    """How the probability of every token of the vocabulary changed, summed over contexts.

    For each token v, with p the start of the policy and q the trained policy:

        change(v) = Σ_c q(v | c) - p(v | c)

    where c runs over every position of every completion, of those sampled before training and of those sampled after
    it. That is by how many times more v is expected to be said, if each of these contexts came up once more. As q and
    p both sum to 1, the changes of all tokens sum to 0. The context with the largest rise and the one with the
    largest fall of each token are kept as examples.

    Attributes, (V,) each, float64 on the CPU: before = Σ_c p(v | c), after = Σ_c q(v | c).
    """

    def __init__(self, vocab_size: int):
        self.before, self.after = torch.zeros(2, vocab_size, dtype=torch.float64)
        self.positions = 0
        # row 0: the largest rise, row 1: the largest fall
        self._most = torch.full((2, vocab_size), -torch.inf)
        self._place = torch.zeros(2, vocab_size, 2, dtype=torch.long)  # completion, position
        self._probs = torch.zeros(2, vocab_size, 2)  # before, after

    @property
    def change(self) -> Tensor:
        return self.after - self.before

    def add(self, completion: int, ref_logprobs: Tensor, logprobs: Tensor, own: Tensor | None = None) -> None:
        """Adds the contexts of one completion.

        Args: log-probabilities of the whole vocabulary, (T, V) each. own: (T,) of bool, the positions that count.
        """
        whole = torch.arange(len(logprobs))
        for part in (whole if own is None else whole[own]).split(
            _POSITIONS
        ):  # probabilities of many at once are large
            p, q = ref_logprobs[part].exp(), logprobs[part].exp()
            self.positions += len(p)
            self.before += p.sum(dim=0, dtype=torch.float64).cpu()
            self.after += q.sum(dim=0, dtype=torch.float64).cpu()
            for i, rise in enumerate((q - p, p - q)):
                most, where = rise.max(dim=0)
                probs = torch.stack([p.gather(0, where[None])[0], q.gather(0, where[None])[0]], dim=1).cpu()
                most, where = most.cpu(), where.cpu()
                new = most > self._most[i]
                self._most[i][new], self._probs[i][new] = most[new], probs[new]
                self._place[i][new] = torch.stack([torch.full_like(where, completion), part[where]], dim=1)[new]

    def summary(self, exam: Exam, before: ScoredAnswers, after: ScoredAnswers) -> dict:
        """What `shifts.json` holds: the tokens that gained and lost most, with an example context each."""
        tokenizer, sides = exam.trainer.processing_class, (before, after)
        sampled = [
            torch.bincount(torch.tensor([*itertools.chain(*side.completion_ids)]), minlength=len(self.after))
            for side in sides
        ]

        def entry(token: int, direction: int) -> dict:
            completion, position = self._place[direction, token].tolist()
            side, row = divmod(completion, len(exam.rows))
            before_it = sides[side].completion_ids[row][:position]
            [said] = evaluation.texts_of(
                tokenizer, [exam.rows[row]["prompt"]], [before_it], exam.trainer.eos_token_ids
            )
            p, q = self._probs[direction, token].tolist()
            return {
                "token": token_text(tokenizer, token),
                "id": token,
                "before": self.before[token].item(),
                "after": self.after[token].item(),
                "change": self.change[token].item(),
                "sampled_before": int(sampled[0][token]),
                "sampled_after": int(sampled[1][token]),
                "example": {
                    "prompt": text_of(exam.rows[row]["prompt"])[-CONTEXT:],
                    "context": said[-CONTEXT:],
                    "before": p,
                    "after": q,
                },
            }

        order = self.change.argsort(descending=True, stable=True).tolist()
        return {
            "completions": [len(side.completions) for side in sides],
            "positions": self.positions,
            "gains": [entry(token, 0) for token in order[:LISTED] if self.change[token] > 0],
            "losses": [entry(token, 1) for token in order[: -LISTED - 1 : -1] if self.change[token] < 0],
        }


def token_text(tokenizer, token: int) -> str:
    """A token as it stands within a text, its space included; one that is no text alone, by its name."""
    once, twice = tokenizer.decode([token]), tokenizer.decode([token, token])
    # some decoders take the space off the first token of a text
    text = twice[len(once) :] if twice.startswith(once) else once
    if text and "\ufffd" not in text:
        return text
    return tokenizer.convert_ids_to_tokens(token) or f"#{token}"
