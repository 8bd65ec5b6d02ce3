"""Completions of a model for every row of a data set, several of each, as offline data: a file of JSON lines.

A row of the file has all columns of the prompt's row, `completion`, and `finished`: false where the completion was cut
at `max_completion_length`. With `column` the completion has another name and stands there as a text, as a judge's
`against` wants it; `finished` is left out.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from trl import is_conversational

from pipeline.config import DataArguments, check, setting
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.eval.candidates import active_adapter, adapter_name, load_group, read_candidates, template_kwargs
from pipeline.eval.settings import AnswerSettings
from pipeline.exam.evaluation import complete, texts_of
from pipeline.models.ends import stop_token_ids
from pipeline.models.prompts import check_room, tokenize_prompts
from pipeline.rollouts.vllm_engine import engine_of, speaker_of
from pipeline.runs.folder import new_file
from pipeline.safety.console import say
from pipeline.watching.progress import counting
from rewards.base import RESERVED


@dataclass
class SampleArguments(AnswerSettings):
    """Who answers which prompts, how often, and where to; at temperature 0 the answers are greedy."""

    run: str | None = setting(None, "Model, adapter or stage folder that answers, e.g. runs/tiny/sft.")
    max_rows: int | None = setting(None, "Use only the first prompts.")
    output: str | None = setting(None, "File to write, e.g. runs/tiny/samples.jsonl. It must not exist.")
    samples_per_prompt: int = setting(4, "Completions of each prompt.")
    column: str = setting("completion", "Name of the column that gets the completion.")
    batch_size: int = setting(64, "Prompts answered at once.")

    def __post_init__(self):
        super().__post_init__()
        for key in ("run", "dataset", "output"):
            check(bool(getattr(self, key)), key, getattr(self, key), "it must be set")
        check(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        varied = self.temperature > 0 or self.samples_per_prompt == 1
        check(varied, "samples_per_prompt", self.samples_per_prompt, "1 at temperature 0: greedy ones do not vary")
        named = self.column == "completion" or bool(self.column) and self.column not in RESERVED
        check(named, "column", self.column, "a name that rewards can be given, such as sft_answer")
        for key in ("samples_per_prompt", "batch_size"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "a whole number from 1 up")


def run(args: SampleArguments) -> Path:
    """Writes the file, whole or not at all, and returns its path.

    Raises:
        UserError: for whatever does not fit; nothing that existed before is touched.
    """
    started = time.perf_counter()
    PartialState(cpu=args.use_cpu)
    output = Path(args.output)
    with new_file(output, "output") as write:
        lines, finished = answered(args)
        write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    share = sum(finished) / len(finished)
    say(
        f"{len(lines):,} completions in {time.perf_counter() - started:.0f} s, {share:.1%} ended by themselves. "
        f"They lie in {output}."
    )
    return output


def answered(args: SampleArguments) -> tuple[list[dict], list[bool]]:
    """The rows of the file, and whether each completion ended by itself."""
    model_args = args.model_arguments()
    [candidate] = read_candidates([{"model": args.run}], model_args)
    kwargs = template_kwargs([candidate], args.chat_template_kwargs)
    where = (args.dataset, args.dataset_config, args.dataset_split)
    data_args = DataArguments(*where, max_rows=args.max_rows, chat_template_kwargs=kwargs)
    rows = data.load(data_args, "prompts", args.seed, say)[0].to_list()
    if args.column != "completion" and args.column in rows[0]:
        raise UserError(f"column {args.column} is in {args.dataset} already: give another name")
    engine = engine_of(args, Path(args.output).parent)
    model = load_group([candidate], model_args)
    longest = max(map(len, tokenize_prompts(candidate.tokenizer, rows)))
    check_room(model, longest, args.max_completion_length)
    if engine is not None:
        engine.check_room(longest + args.max_completion_length)
    rows = [row for row in rows for _ in range(args.samples_per_prompt)]
    ends = stop_token_ids(model, candidate.tokenizer)
    adapter = adapter_name(0) if candidate.stage.adapter else None
    with (
        active_adapter(model, adapter),
        speaker_of(engine, model, adapter, candidate.tokenizer) as speaker,
        counting("completions", len(rows)) as count,
    ):
        found = complete(
            model,
            candidate.tokenizer,
            rows,
            args.max_completion_length,
            ends,
            args.temperature,
            args.batch_size,
            args.seed,
            answered=count,
            speaker=speaker,
        )
    texts = texts_of(candidate.tokenizer, [row["prompt"] for row in rows], found, ends)
    complete_rows = args.column == "completion"
    conversational = complete_rows and is_conversational({"prompt": rows[0]["prompt"]})
    finished = [bool(ids) and ids[-1] in ends for ids in found]
    lines = [
        row
        | {args.column: [{"role": "assistant", "content": text}] if conversational else text}
        | ({"finished": whole} if complete_rows else {})
        for row, text, whole in zip(rows, texts, finished, strict=True)
    ]
    return lines, finished
