"""The SFT stage: a thin layer over `trl.SFTTrainer`.

What TRL does and this stage relies on (held by tests): the end token is appended to plain-text completions, so that
the model learns to stop; the loss is on the completion alone when there is a prompt column.
"""

import math
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import set_seed
from trl import SFTTrainer

from pipeline.config import SELECTIVE, DataArguments, ModelArguments, SFTStage, check, is_selective
from pipeline.data import loading as data
from pipeline.data.exact_rows import begin_once, exact
from pipeline.data.grouping import GroupsByLength
from pipeline.errors import UserError
from pipeline.hub import PushesResults
from pipeline.memory import report as memory_report
from pipeline.models import chat_templates, precision, probe, prompts
from pipeline.models import loading as models
from pipeline.models.adapter_files import check_output_layer
from pipeline.models.ends import stop_token_ids
from pipeline.models.short_forms import take_short_forms
from pipeline.models.structure import freeze_idle
from pipeline.runs import claim
from pipeline.runs.resumable_trainer import Resumable
from pipeline.runs.resume import open_run
from pipeline.safety.console import say
from pipeline.stages import frame
from pipeline.stages.refusals import check_start, in_one_sentence
from pipeline.watching import terminal, trackers
from pipeline.watching.nonfinite import SkipsNonFinite
from pipeline.watching.progress import evaluating
from rewards.rendering import TEMPLATE_COLUMNS


class SFT(SkipsNonFinite, Resumable, PushesResults, GroupsByLength, SFTTrainer):
    """TRL's SFTTrainer, with our way of stopping and going on, of steps that are not finite, of the Hub and of rows of
    like length."""

    def lengths(self, rows):
        return [len(ids) for ids in rows["input_ids"]]


@claim.ends_with
def run(model_args: ModelArguments, data_args: DataArguments, config: SFTStage) -> dict:
    """Runs the stage and returns the summary that it writes into `config.output_dir`.

    Raises:
        UserError: for whatever does not fit; nothing that existed before is touched.
    """
    started = time.perf_counter()
    # 1. What can fail cheaply fails first
    check(not (model_args.use_peft and is_selective(config)), *SELECTIVE)
    stage, tokenizer = frame.begin("SFT", model_args, config)
    train, heldout = data.load(data_args, "sft", config.seed, say)
    train, heldout = (
        rows and begin_once(to_prompt_completion(rows, config, say), tokenizer) for rows in (train, heldout)
    )
    template = chat_templates.marking_assistants(tokenizer) if config.assistant_only_loss else None
    longest = data.show_examples(train, heldout, tokenizer, "sft", config.max_length, data_args.dataset, say, template)
    folder = open_run(model_args, data_args, config)
    if folder.finished:
        return folder.read_summary()

    # 2. The base, with a new adapter or the one to go on from
    set_seed(config.seed)
    model = models.load_base(model_args, base=stage.base, tokenizer=tokenizer)
    check_context(model, longest, config.max_length)
    if stage.adapter:
        model = models.load_adapter(model, stage.adapter, trainable=True)
        check_output_layer(model, stage.adapter)
    probe.check(model, tokenizer, "SFT", config)
    memory_report.log_estimate(
        memory_report.of_sft, model, model_args, config, min(longest, config.max_length or longest)
    )
    with in_one_sentence(model):
        trainer = SFT(
            model=model,
            args=config,
            train_dataset=train,
            eval_dataset=heldout,
            processing_class=tokenizer,
            peft_config=models.lora_config(model_args) if model_args.use_peft and not stage.adapter else None,
            callbacks=[folder.metrics_callback()],
        )
    if len(trainer.train_dataset) == 0:
        raise UserError(f"no row is left: every prompt alone fills max_length {config.max_length}; raise it")
    check_start(trainer)
    precision.train_in_float32(trainer.model)
    if model_args.use_peft:
        take_short_forms(trainer.model)
        probe.check_adapter(trainer.model)
    freeze_idle(trainer.model)
    if not model_args.use_peft:  # saved with the model, for whoever lets it answer
        model.generation_config.eos_token_id = stop_token_ids(model, tokenizer)
    trackers.connect(trainer)
    folder.write_config(model_args, data_args, config)

    # 3. Measure, train, measure again
    with evaluating(trainer, "held-out rows, before training"):
        before = frame.held_out_before(trainer, resumed=folder.checkpoint is not None)
    trained = frame.train(trainer, folder, "sft")
    with evaluating(trainer, "held-out rows, after training"):
        before, after = before(), trainer.evaluate() if heldout else {}

    # 4. Save, check what was saved, and say where it is
    frame.save(trainer, folder.path)
    summary = {
        "stage": "sft",
        "train_loss": trained.training_loss,
        "heldout_loss": {"before": before.get("eval_loss"), "after": after.get("eval_loss")} if heldout else None,
        "rows": len(trainer.train_dataset),
        "heldout_rows": len(heldout) if heldout else 0,
        "steps": trainer.state.global_step,
        "seconds": round(time.perf_counter() - started + trainer.seconds_before, 1),
        "peak_memory_mib": memory_report.peak_mib(),
        "seed": config.seed,
        **frame.origin(stage, model_args),
    }
    return frame.finish(trainer, folder, summary, _log_result)


def _log_result(summary: dict, path: Path) -> None:
    losses = summary["heldout_loss"]
    figures = f"training loss {summary['train_loss']:.3f}"
    if losses:
        perplexity = math.exp(min(losses["after"], 50))
        figures = (
            f"held-out loss {losses['before']:.3f} -> {losses['after']:.3f} nats a token (perplexity {perplexity:.2f})"
        )
    say(f"SFT: {figures} after {summary['steps']} steps in {summary['seconds']:.0f} s. The result lies in {path}.")
    say(f"Next: {terminal.next_step('reward', path)}")


def to_prompt_completion(rows: Dataset, config: SFTStage, log) -> Dataset:
    """The columns that TRL shall see. Conversations become prompt (all but the last turn) and completion (the last).

    A further `text` column beside prompt and completion must go: TRL would append the end token to it instead.
    """
    wanted = data.columns_of(rows, "sft", "training data")
    messages = prompts.are_messages(rows[0])
    extra = [column for column in TEMPLATE_COLUMNS if messages and column in rows.column_names]
    rows = rows.select_columns([*wanted, *extra])
    if config.assistant_only_loss:
        return _with_assistants(rows, wanted, config, log)
    if wanted == ("text",) and config.completion_only_loss:
        raise UserError("completion_only_loss: the data are whole texts: give prompt and completion, or leave it out")
    if wanted != ("messages",) or config.completion_only_loss is False:
        return rows
    good = [i for i, turns in enumerate(rows["messages"]) if len(turns) > 1 and turns[-1]["role"] == "assistant"]
    if not good:
        raise UserError(
            "messages: no conversation ends with an assistant turn after another one, nothing to learn from"
        )
    if len(good) < len(rows):
        log(f"messages: {len(rows) - len(good):,} rows dropped: they do not end with an assistant turn")
    log("messages: the loss is on the last assistant turn (assistant_only_loss: true takes all of them)")
    columns = rows.select(good).to_dict()
    turns = columns.pop("messages")
    return exact(columns | {"prompt": [each[:-1] for each in turns], "completion": [each[-1:] for each in turns]})


def _with_assistants(rows: Dataset, wanted: tuple[str, ...], config: SFTStage, log) -> Dataset:
    """The rows with a turn of the assistant, for a loss on these turns."""
    if not prompts.are_messages(rows[0]):
        raise UserError("assistant_only_loss: the data are text without turns: give messages, or leave it out")
    if wanted == ("messages",) and config.completion_only_loss:
        raise UserError(
            "completion_only_loss and assistant_only_loss: a whole conversation has no completion besides what the "
            "assistant says: leave one of the two out"
        )
    good = [
        i
        for i, row in enumerate(rows.select_columns(list(wanted)))
        if any(message["role"] == "assistant" for turns in row.values() for message in turns)
    ]
    if not good:
        raise UserError("assistant_only_loss: no row has a turn of the assistant, so there is nothing to learn from")
    if len(good) < len(rows):
        log(f"{len(rows) - len(good):,} rows dropped: no turn of the assistant in them")
    return rows.select(good)


def check_context(model: torch.nn.Module, longest: int, max_length: int | None) -> None:
    """Raises `UserError` when a row would be longer than the model's context."""
    used = longest if max_length is None else min(longest, max_length)
    remedy = "set max_length to {context} or less"
    prompts.check_context(model, used, f"the longest row has {used} tokens", remedy)
