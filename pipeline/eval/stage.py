"""The evaluation stage: every candidate answers the same prompts, greedy and sampled, and the answers are judged.

`output_dir` gets `summary.json` (every figure), `table.md`, `rows.jsonl` (every answer with its scores) and
`config.yaml`. With `outputs` nothing but that file is written: the greedy answers, one a line.
"""

import json
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from pipeline.config import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_KWARGS,
    DTYPES,
    DataArguments,
    ModelArguments,
    ServerSettings,
    check,
    check_vllm_server,
    mapping,
    setting,
    settle_dtype,
)
from pipeline.errors import UserError
from pipeline.eval import best_of
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
from pipeline.eval.rows import check_outputs, load_rows, write_outputs
from pipeline.eval.tables import TABLE, markdown, show
from pipeline.exam.evaluation import ScoredAnswers, logprobs
from pipeline.exam.statistics import CONFIDENCE, PERMUTATIONS, RESAMPLES
from pipeline.rollouts.vllm_engine import Engine, engine_of, speaker_of
from pipeline.runs import claim
from pipeline.runs.folder import SUMMARY, RunFolder
from pipeline.safety.console import say
from pipeline.watching.progress import counting
from pipeline.worlds import load_world
from rewards import Judge as LanguageModel
from rewards import Perplexity, build_rewards, every_in, log_name_of, prepare, raw
from rewards.asking import guarded

ROWS = "rows.jsonl"
_WAIT = timedelta(days=7)  # what other processes give the main one


@dataclass
class EvalArguments(ServerSettings):
    """Who is evaluated, on which prompts, by what."""

    candidates: list[dict] = setting(
        [], "Models, adapters or stage folders by name: base=runs/tiny/base sft=runs/tiny/sft ppo=runs/tiny/ppo."
    )
    reference: str | None = setting(
        None, "The candidate that the others are compared with, and from which KL is measured; default: the first."
    )
    dataset: str | None = setting(
        None, "Prompts: a file, a folder or a Hub name as for PPO; or a CSV with a column mr of the E2E data."
    )
    dataset_config: str | None = setting(None, "Configuration of a Hub data set.")
    dataset_split: str = setting("train", "Split of a Hub data set or folder.")
    prompt_template: str | None = setting(None, "Makes the prompt of other columns, as for the other stages.")
    as_messages: bool = setting(False, "Text prompts become a user's message, as for the other stages.")
    chat_template_path: str | None = setting(None, CHAT_TEMPLATE)
    chat_template_kwargs: dict | str | None = setting(
        None, f"{CHAT_TEMPLATE_KWARGS} None: as the candidates were trained."
    )
    eval_samples: int | None = setting(None, "Use only the first prompts.")
    output_dir: str | None = setting(None, "Folder for the result. It must not hold anything yet.")
    outputs: str | None = setting(
        None,
        "Only write the greedy answers of the one candidate into this file, nothing is judged: a line each, or JSON "
        "lines with prompt and completion where it ends in .jsonl.",
    )
    rewards: list[dict] = setting(
        [], "Rewards that score the answers, written as for PPO; weights count for best_of alone."
    )
    referee: str | None = setting(None, "A world's own judgement of completions (e2e, dialogue, ...).")
    judges: list[dict] = setting(
        [],
        "Who says which of two answers wins: mymodule:function(prompts, completions_a, completions_b, **columns), or "
        "a language model, '{name: judge, url: http://localhost:8000/v1, model: name}'.",
    )
    best_of: int | None = setting(
        None,
        "Samples of the reference for each prompt, of which the weighted rewards choose: best-of-n up to this n as a "
        "baseline, e.g. 16; none: no baseline.",
    )
    max_completion_length: int = setting(256, "Longest completion in tokens.")
    temperature: float = setting(1.0, "Of the sampled answers; 1 is the policy's own distribution.")
    eval_batch_size: int = setting(50, "Prompts answered at once.")
    seed: int = setting(0, "Seed of the sampling, the bootstrap and the permutation tests.")
    dtype: str = setting("auto", "Precision of the base weights, as for the other stages.")
    load_in_4bit: bool = setting(False, "Load the bases in 4 bits (needs bitsandbytes).")
    use_cpu: bool = setting(False, "Stay on the CPU.")

    def __post_init__(self):
        self.rewards, self.judges = self.rewards or [], self.judges or []  # the parser gives None for none
        check_vllm_server(self)
        self.chat_template_kwargs = mapping(self.chat_template_kwargs, "chat_template_kwargs")
        check(bool(self.candidates), "candidates", self.candidates, "at least one, such as sft=runs/tiny/sft")
        check(bool(self.dataset), "dataset", self.dataset, "the prompts, e.g. runs/tiny/data/prompts_heldout.jsonl")
        check(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        self.dtype = settle_dtype(self.dtype)
        check(self.temperature > 0, "temperature", self.temperature, "a number above 0; greedy answers come besides")
        check(self.seed >= 0, "seed", self.seed, "a whole number from 0 up")
        for key in ("eval_samples", "max_completion_length", "eval_batch_size"):
            value = getattr(self, key)
            check((value is None and key == "eval_samples") or value >= 1, key, value, "a whole number from 1 up")
        count = self.best_of
        check(count is None or count >= 2, "best_of", count, "a whole number from 2 up, such as 16")
        check(count is None or bool(self.rewards), "best_of", count, "it wants rewards, which choose the best")

    def model_arguments(self) -> ModelArguments:
        return ModelArguments(
            dtype=self.dtype, load_in_4bit=self.load_in_4bit, chat_template_path=self.chat_template_path
        )


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
            write_greedy(args, candidates[0], rows, file)
    else:
        evaluation = Evaluation(args, candidates, rows)
        folder = RunFolder.create(args.output_dir)
        if state.is_main_process:
            evaluation.answer_all(engine_of(args, folder.path))
            summary = evaluation.write(folder, started)
    state.wait_for_everyone()
    return summary


def write_greedy(args: EvalArguments, candidate: Candidate, rows: list[dict], file: Path) -> None:
    """Greedy answers of the candidate, one a line."""
    engine = engine_of(args, file.parent)
    model = load([candidate], rows, args, engine)
    adapter = adapter_name(0) if candidate.stage.adapter else None
    with active_adapter(model, adapter), speaker_of(engine, model, adapter, candidate.tokenizer) as speaker:
        answers = answer(model, candidate, rows, args, 0, GREEDY, speaker=speaker)
    write_outputs(file, answers.completions, rows, args.as_messages)
    say(f"{candidate.name}: {len(rows):,} greedy answers lie in {file}.")


class Evaluation:
    """The answers of all candidates to all rows, and what is made of them.

    Attributes:
        answers: candidate -> decoding -> its answers, by `answer_all`.
        best: the samples for best-of-n, if they were asked for.
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

    def answer_all(self, engine: Engine | None = None) -> None:
        """Every candidate answers every prompt, by the servers of `engine` where there is one. Bases are loaded one
        after the other, that of the reference at the end: base and reference also say how likely the others' answers
        are to them."""
        own: dict[str, list[float]] = {}  # log π of the sampled completions
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
                seconds = time.perf_counter() - since
                say(f"{candidate.name}: {len(self.rows):,} prompts answered, greedy and sampled, in {seconds:.0f} s")
        reference = self.candidates[self.reference]
        its_adapter = adapter_name(group.index(reference)) if reference.stage.adapter else None
        for name, candidate in self.candidates.items():
            kl = None
            if candidate is not reference and _same_vocabulary(candidate, reference):
                with active_adapter(model, its_adapter):
                    theirs = self._logprobs(model, reference, said[name][SAMPLED])
                kl = [mine - their for mine, their in zip(own[name], theirs, strict=True)]
            with active_adapter(model, None):
                self.answers[name] = {
                    decoding: Answers(scored, *self._perplexity(model, scored), kl if decoding == SAMPLED else None)
                    for decoding, scored in said[name].items()
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
                name: {"path": self.candidates[name].path}
                | {decoding: figures(found, args.seed) for decoding, found in by_decoding.items()}
                for name, by_decoding in measures.items()
            },
            "comparisons": comparisons,
            **self._best_of(),
            "seconds": round(time.perf_counter() - started, 1),
        }
        folder.write_config(args)
        (folder.path / TABLE).write_text(markdown(summary), encoding="utf-8")
        folder.write_summary(summary)
        show(summary)
        say(f"The result lies in {folder.path}: {TABLE}, {SUMMARY} with all figures, {ROWS} with every answer.")
        return summary

    def _answer(self, model, candidate: Candidate, rows: list[dict], temperature, what: str, speaker) -> ScoredAnswers:
        return answer(model, candidate, rows, self.args, temperature, what, self.rewards, self.referee, speaker)

    def _sample_for_best(self, model, candidate: Candidate, speaker) -> best_of.BestOf:
        count = self.args.best_of
        rows = best_of.repeated(self.rows, count)
        answers = self._answer(model, candidate, rows, self.args.temperature, f"{count} samples of each", speaker)
        return best_of.BestOf(candidate.name, count, answers, list(self.rewards), self.weights)

    def _best_of(self) -> dict[str, dict]:
        if self.best is None:
            return {}
        others = {name: found[SAMPLED].scored for name, found in self.answers.items() if name != self.reference}
        return {"best_of": best_of.summary(self.best, others, self.higher_wins, self.args.seed)}

    def _logprobs(self, model, candidate: Candidate, scored: ScoredAnswers) -> list[float]:
        """log π of each completion, nats, summed over its tokens."""
        args, what = self.args, f"log-probabilities under {candidate.name}"
        with counting(what, len(self.rows), first=False) as read:
            asked = (self.rows, scored.completion_ids, args.temperature, args.eval_batch_size, read)
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
