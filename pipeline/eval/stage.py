"""The evaluation stage: every candidate answers the same prompts, greedy and sampled, and the answers are judged.

`output_dir` gets `summary.json` (every figure), `table.md`, `rows.jsonl` (every answer with its scores) and
`config.yaml`. With `outputs` nothing but that file is written: the greedy answers, one a line.
"""

import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from pipeline.config import DataArguments, check
from pipeline.errors import UserError
from pipeline.eval import best_of, sharpened
from pipeline.eval.answering import DECODINGS, GREEDY, SAMPLED, answer, load
from pipeline.eval.candidates import (
    Candidate,
    active_adapter,
    adapter_name,
    by_base,
    read_candidates,
    template_kwargs,
)
from pipeline.eval.comparing import compare, figures
from pipeline.eval.judges import read_judges
from pipeline.eval.measures import Answers, measures_of
from pipeline.eval.rows import check_outputs, load_rows, outputs
from pipeline.eval.settings import EvalArguments
from pipeline.eval.tables import TABLE, markdown, show
from pipeline.exam.evaluation import ScoredAnswers, entropies, logprobs
from pipeline.exam.statistics import CONFIDENCE, PERMUTATIONS, RESAMPLES
from pipeline.report import write_report
from pipeline.rollouts.vllm_engine import Engine, engine_of, speaker_of
from pipeline.runs import claim
from pipeline.runs.folder import SUMMARY, RunFolder, new_file
from pipeline.safety.console import say
from pipeline.watching.progress import counting
from pipeline.worlds import load_world
from rewards import Judge as LanguageModel
from rewards import Perplexity, build_rewards, every_in, log_name_of, prepare, raw
from rewards.asking import guarded

ROWS = "rows.jsonl"
_WAIT = timedelta(days=7)  # what other processes give the main one


@claim.ends_with
def run(args: EvalArguments) -> dict:
    """Runs the stage and returns the summary that it writes; an empty one with `outputs`.

    The main process does the work and the others wait for it.

    Raises:
        UserError, RewardError: for whatever does not fit; nothing that existed before is touched.
    """
    started = time.perf_counter()
    # whoever set the state up before has chosen device and patience
    state = PartialState() if PartialState._shared_state else PartialState(cpu=args.use_cpu, timeout=_WAIT)
    candidates = read_candidates(args.candidates, args.model_arguments())
    if args.outputs:
        check(len(candidates) == 1, "outputs", args.outputs, "it wants one candidate, e.g. --candidates runs/e2e/ppo")
        file = check_outputs(args.outputs) if state.is_main_process else None
    args.chat_template_kwargs = template_kwargs(candidates, args.chat_template_kwargs)
    shape = {"prompt_template": args.prompt_template, "as_messages": args.as_messages}
    shape["chat_template_kwargs"] = args.chat_template_kwargs
    data_args = DataArguments(args.dataset, args.dataset_config, args.dataset_split, **shape)
    rows = load_rows(data_args, args.eval_samples, complete=bool(args.outputs))
    if note := _note_on_form(rows, candidates):
        say(note)
    summary = {}
    if args.outputs:
        if state.is_main_process:
            with new_file(file, "outputs") as write:
                write_greedy(args, candidates[0], rows, file, write)
    else:
        evaluation = Evaluation(args, candidates, rows)
        folder = RunFolder.create(args.output_dir)
        if state.is_main_process:
            evaluation.answer_all(engine_of(args, folder.path))
            summary = evaluation.write(folder, started)
    state.wait_for_everyone()
    return summary


def write_greedy(
    args: EvalArguments, candidate: Candidate, rows: list[dict], file: Path, write: Callable[[str], None]
) -> None:
    """Greedy answers of the candidate, one a line, by `write` into `file`."""
    engine = engine_of(args, file.parent)
    model = load([candidate], rows, args, engine)
    adapter = adapter_name(0) if candidate.stage.adapter else None
    with active_adapter(model, adapter), speaker_of(engine, model, adapter, candidate.tokenizer) as speaker:
        answers = answer(model, candidate, rows, args, 0, GREEDY, speaker=speaker)
    write(outputs(file, answers.completions, rows, args.as_messages))
    say(f"{candidate.name}: {len(rows):,} greedy answers lie in {file}.")


class Evaluation:
    """The answers of all candidates to all rows, and what is made of them.

    Attributes:
        answers: candidate -> decoding -> its answers, by `answer_all`.
        best: the samples for best-of-n, if they were asked for.
        controls: candidate -> how the reference was made as sharp as it is; the control is one more in `answers`.
        higher_wins: score -> whether the higher one is the better one; other scores have no winner.
        judges: name -> function that says which of two answers wins.
    """

    def __init__(self, args: EvalArguments, candidates: list[Candidate], rows: list[dict]):
        """Raises UserError or RewardError for a reference, reward, referee or judge that is not there."""
        self.args, self.rows = args, rows
        self.candidates = {candidate.name: candidate for candidate in candidates}
        self.reference = args.reference or candidates[0].name
        if self.reference not in self.candidates:
            known = ", ".join(self.candidates)
            raise UserError(f"reference is {args.reference}, which is no candidate; choose one of {known}")
        if args.sharpened:
            for name in self.candidates:
                if (taken := sharpened.control_name(self.reference, name)) in self.candidates:
                    raise UserError(
                        f"candidate {taken} has the name of the control for {name}: give it another one, or set "
                        "sharpened: false"
                    )
        weighted = build_rewards(args.rewards)
        built = [reward for reward, _ in weighted]
        prepare(part for reward in built for part in every_in(reward) if isinstance(part, LanguageModel))
        self.rewards = {log_name_of(reward): guarded(raw(reward)) for reward in built}
        self.weights = {log_name_of(reward): weight for reward, weight in weighted}
        self.judges = read_judges(args.judges, [key for key in rows[0] if key != "prompt"])
        world = load_world(args.referee) if args.referee else None
        self.referee = world.referee if world else None
        self.higher_wins = dict.fromkeys(self.rewards, True) | (world.HIGHER_IS_BETTER if world else {})
        self.answers: dict[str, dict[str, Answers]] = {}
        self.best: best_of.BestOf | None = None
        self.controls: dict[str, sharpened.Sharpened] = {}

    def answer_all(self, engine: Engine | None = None) -> None:
        """Every candidate answers every prompt, by the servers of `engine` where there is one. Bases are loaded one
        after the other, that of the reference at the end: base and reference also say how likely the others' answers
        are to them."""
        own: dict[str, list[float]] = {}  # log π of the sampled completions
        entropy: dict[str, float] = {}
        said: dict[str, dict[str, ScoredAnswers]] = {name: {} for name in self.candidates}
        for group in by_base(list(self.candidates.values()), last=self.reference):
            model = None  # the one before may go
            model = load(group, self.rows, self.args, engine)
            for place, candidate in enumerate(group):
                since = time.perf_counter()
                adapter = adapter_name(place) if candidate.stage.adapter else None
                with active_adapter(model, adapter):
                    with speaker_of(engine, model, adapter, candidate.tokenizer) as speaker:
                        for decoding in DECODINGS:
                            temperature = self.args.temperature if decoding == SAMPLED else 0
                            said[candidate.name][decoding] = self._answer(
                                model, candidate, self.rows, temperature, decoding, speaker
                            )
                        if candidate.name == self.reference and self.args.best_of:
                            self.best = self._sample_for_best(model, candidate, speaker)
                    own[candidate.name] = self._logprobs(model, candidate, said[candidate.name][SAMPLED])
                    if self.args.sharpened:
                        entropy[candidate.name] = self._entropy(model, candidate, said[candidate.name][SAMPLED])
                seconds = time.perf_counter() - since
                say(f"{candidate.name}: {len(self.rows):,} prompts answered, greedy and sampled, in {seconds:.0f} s")
        reference = self.candidates[self.reference]
        its_adapter = adapter_name(group.index(reference)) if reference.stage.adapter else None
        trained = self._trained() if self.args.sharpened else ()
        if trained:
            with (
                active_adapter(model, its_adapter),
                speaker_of(engine, model, its_adapter, reference.tokenizer) as speaker,
            ):
                for name in trained:
                    self._sharpen(model, name, entropy, said, own, speaker)
        for name, by_decoding in said.items():
            kl = None
            comparable = name not in self.candidates or _same_vocabulary(self.candidates[name], reference)
            if name != self.reference and comparable:
                with active_adapter(model, its_adapter):
                    theirs = self._logprobs(model, reference, by_decoding[SAMPLED])
                kl = [mine - their for mine, their in zip(own[name], theirs, strict=True)]
            with active_adapter(model, None):
                self.answers[name] = {
                    decoding: Answers(scored, *self._perplexity(model, scored), kl if decoding == SAMPLED else None)
                    for decoding, scored in by_decoding.items()
                }

    def write(self, folder: RunFolder, started: float) -> dict:
        """Everything that the stage writes; returns the summary. `started`: time.perf_counter() at the start."""
        self._write_rows(folder.path / ROWS)
        if self.best:
            best_of.write_samples(self.best, [row["prompt"] for row in self.rows], folder.path / best_of.SAMPLES)
        references = [row.get("references") for row in self.rows]
        measures = {
            name: {decoding: measures_of(answers, references) for decoding, answers in by_decoding.items()}
            for name, by_decoding in self.answers.items()
        }
        say("Intervals and paired tests ...")
        comparisons, args = compare(self, measures), self.args
        summary = {
            "stage": "eval",
            "dataset": args.dataset,
            "prompts": len(self.rows),
            "seed": args.seed,
            "temperature": args.temperature,
            "max_completion_length": args.max_completion_length,
            "reference": self.reference,
            "perplexity_model": self.candidates[self.reference].stage.base,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "permutations": PERMUTATIONS,
            "tests": sum(comparison["p"] is not None for comparison in comparisons),
            "candidates": {
                name: {"path": self.candidates.get(name, self.candidates[self.reference]).path}
                | {decoding: figures(found, args.seed) for decoding, found in by_decoding.items()}
                for name, by_decoding in measures.items()
            },
            "comparisons": comparisons,
            "sharpened": {policy: found._asdict() for policy, found in self.controls.items()},
            **self._best_of(),
            "seconds": round(time.perf_counter() - started, 1),
        }
        folder.write_config(args)
        (folder.path / TABLE).write_text(markdown(summary), encoding="utf-8")
        folder.write_summary(summary)
        claim.keep(folder.path)  # hours of answers: a page that cannot be written must not take them along
        show(summary)
        write_report(folder.path)
        say(f"The result lies in {folder.path}: {TABLE}, {SUMMARY} with all figures, {ROWS} with every answer.")
        return summary

    def _answer(self, model, candidate: Candidate, rows: list[dict], temperature, what: str, speaker) -> ScoredAnswers:
        return answer(model, candidate, rows, self.args, temperature, what, self.rewards, self.referee, speaker)

    def _sample_for_best(self, model, candidate: Candidate, speaker) -> best_of.BestOf:
        count = self.args.best_of
        rows = best_of.repeated(self.rows, count)
        answers = self._answer(model, candidate, rows, self.args.temperature, f"{count} samples of each", speaker)
        return best_of.BestOf(candidate.name, count, answers, list(self.rewards), self.weights)

    def _trained(self) -> list[str]:
        """The candidates that may be sharper; none of another vocabulary, nor what the reference came from."""
        reference = self.candidates[self.reference]
        origins = (reference.stage, reference.stage._replace(adapter=None))
        return [
            name
            for name, candidate in self.candidates.items()
            if candidate.stage not in origins and _same_vocabulary(candidate, reference)
        ]

    def _sharpen(self, model, policy: str, entropy: dict[str, float], said: dict, own: dict, speaker) -> None:
        """Adds the control of one policy to `controls`, `said` and `own`; the reference is the one that speaks."""
        reference, highest = self.candidates[self.reference], self.args.temperature
        rows = self.rows[: sharpened.TEXTS]

        def entropy_at(temperature: float) -> float:
            tried = answer(model, reference, rows, self.args, temperature, f"at {temperature:.3g}", speaker=speaker)
            return self._entropy(model, reference, tried, temperature)

        who = (self.reference, policy)
        found = sharpened.sharpen(*who, *(entropy[name] for name in reversed(who)), entropy_at, highest)
        self.controls[policy] = found
        say(sharpened.in_words(policy, self.reference, found._asdict()))
        if found.temperature is not None:
            scored = self._answer(model, reference, self.rows, found.temperature, found.name, speaker)
            said[found.name] = {SAMPLED: scored}
            own[found.name] = self._logprobs(model, reference, scored, found.temperature)

    def _entropy(self, model, candidate: Candidate, scored: ScoredAnswers, temperature: float | None = None) -> float:
        """Mean over the tokens of the first texts, in nats, at the temperature at which they were sampled."""
        rows, ids = self.rows[: sharpened.TEXTS], scored.completion_ids[: sharpened.TEXTS]
        asked = (rows, ids, temperature or self.args.temperature, self.args.eval_batch_size)
        return torch.cat(entropies(model, candidate.tokenizer, *asked)).double().mean().item()

    def _best_of(self) -> dict[str, dict]:
        if self.best is None:
            return {}
        others = {name: found[SAMPLED].scored for name, found in self.answers.items() if name != self.reference}
        return {"best_of": best_of.summary(self.best, others, self.higher_wins, self.args.seed)}

    def _logprobs(
        self, model, candidate: Candidate, scored: ScoredAnswers, temperature: float | None = None
    ) -> list[float]:
        """log π of each completion, nats, summed over its tokens."""
        args, what = self.args, f"log-probabilities under {candidate.name}"
        with counting(what, len(self.rows), first=False) as read:
            asked = (self.rows, scored.completion_ids, temperature or args.temperature, args.eval_batch_size, read)
            each = logprobs(model, candidate.tokenizer, *asked)
        return [row.double().sum().item() for row in each]

    def _perplexity(self, model, scored: ScoredAnswers) -> tuple[list[float], list[int]]:
        """-log p of each completion's text under `model`, nats, and the tokens that it has there; nothing said: 0."""
        tokenizer = self.candidates[self.reference].tokenizer
        scorer = Perplexity(model=model, tokenizer=tokenizer, batch_size=self.args.eval_batch_size)
        pairs = zip(self.rows, scored.completions, strict=True)
        encoded = [scorer.encode(row["prompt"], text, row) for row, text in pairs]
        with counting("perplexity", len(self.rows), first=False):  # a log file hears of it, if it takes minutes
            scores = iter(scorer.score_rows([row for row in encoded if row is not None]))
        tokens = [0 if row is None else len(row.ids) - row.start for row in encoded]
        return [-next(scores) * count if count else 0.0 for count in tokens], tokens

    def _write_rows(self, path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            for i, row in enumerate(self.rows):
                said = {
                    name: {decoding: _entry(answers, i) for decoding, answers in by_decoding.items()}
                    for name, by_decoding in self.answers.items()
                }
                file.write(json.dumps({"prompt": row["prompt"], "candidates": said}, ensure_ascii=False) + "\n")


def _note_on_form(rows: list[dict], candidates: list[Candidate]) -> str | None:
    """What to say where texts go to a model that was made for messages, or None."""
    of_chat = [candidate.name for candidate in candidates if candidate.tokenizer.chat_template]
    if not of_chat or not isinstance(rows[0]["prompt"], str):
        return None
    return (
        f"note: the prompts are texts, and {', '.join(of_chat)} answers them as they stand; as_messages: true asks in "
        "a user's turn of the chat template"
    )


def _same_vocabulary(a: Candidate, b: Candidate) -> bool:
    return a.tokenizer.get_vocab() == b.tokenizer.get_vocab()


def _entry(answers: Answers, i: int) -> dict:
    scored = answers.scored
    entry = {
        "completion": scored.completions[i],
        "scores": {name: column[i] for name, column in scored.scores.items()},
        "length": len(scored.completion_ids[i]),
        "finished": scored.finished[i],
    }
    return entry if answers.kl is None else entry | {"kl": answers.kl[i]}
