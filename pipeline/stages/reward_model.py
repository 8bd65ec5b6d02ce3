"""The reward-model stage: a thin layer over `trl.RewardTrainer`.

One SEQ_CLS LoRA adapter with its score head, relative to the raw base. Its LoRA weights start as those of the SFT
adapter. Trained on pairs with the loss of Bradley and Terry: -log sigmoid(score(chosen) - score(rejected)).
"""

import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed
from trl import RewardTrainer

from pipeline.config import DataArguments, ModelArguments, RewardStage, check
from pipeline.data import loading as data
from pipeline.data.exact_rows import begin_once
from pipeline.data.grouping import GroupsByLength
from pipeline.errors import UserError
from pipeline.hub import PushesResults
from pipeline.memory import report as memory_report
from pipeline.models import auto_class, precision, probe
from pipeline.models import loading as models
from pipeline.models.folders import Stage
from pipeline.models.lean import lean
from pipeline.models.prompts import are_messages
from pipeline.models.structure import freeze_idle
from pipeline.runs import claim
from pipeline.runs.resumable_trainer import Resumable
from pipeline.runs.resume import open_run
from pipeline.safety.console import say
from pipeline.stages import frame
from pipeline.stages.refusals import check_start, in_one_sentence
from pipeline.stages.sft import check_context
from pipeline.watching import terminal, trackers
from pipeline.watching.nonfinite import SkipsNonFinite
from pipeline.watching.progress import counting
from rewards.rendering import TEMPLATE_COLUMNS

BINS = 10
HELD_OUT = 0.1  # of the prompts, when nothing is named: the stage has figures of held-out pairs always
CHECKED_PAIRS = 8  # held-out pairs that the saved model must score as the trained one did
PAIRS, MAX_PAIRS = "pairs.jsonl", 500  # held-out pairs with their scores, for the report; so many rows at most
_ROW = "row"  # of the held-out pairs: TRL drops the long ones


class Reward(SkipsNonFinite, Resumable, PushesResults, GroupsByLength, RewardTrainer):
    """TRL's RewardTrainer, with our way of stopping and going on, of steps that are not finite, of the Hub and of rows
    of like length."""

    def lengths(self, rows):
        return [max(map(len, pair)) for pair in zip(rows["chosen_ids"], rows["rejected_ids"], strict=True)]

    def __init__(self, *args, reads_end: bool = True, **kwargs):
        self._reads_end = reads_end
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if not self._reads_end:
            processing_class = auto_class.without_end(processing_class)
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)


class Member(NamedTuple):
    """One of an ensemble (reward_ensemble.py)."""

    seed: int  # of the ensemble, which holds the same pairs out for all
    number: int  # from 1 up; its pairs are drawn by it
    callback: TrainerCallback


@claim.ends_with
def run(
    model_args: ModelArguments, data_args: DataArguments, config: RewardStage, member: Member | None = None
) -> dict:
    """Runs the stage and returns the summary that it writes into `config.output_dir`.

    Args: member: of an ensemble that this is; None: a reward model alone.

    Raises:
        UserError: for whatever does not fit; nothing that existed before is touched.
    """
    check(config.ensemble == 1, "ensemble", config.ensemble, "several are trained by pipeline.stages.reward_ensemble")
    started = time.perf_counter()
    # 1. What can fail cheaply fails first
    stage, tokenizer = frame.begin("The reward-model stage", model_args, config, for_scores=True)
    reads_end = auto_class.reads_end(models.load_config(model_args, stage.base))
    train, heldout = load_pairs(data_args, config.seed if member is None else member.seed, tokenizer)
    if member is not None:
        train = drawn(train, member.number, member.seed)
    reader = tokenizer if reads_end else auto_class.without_end(tokenizer)
    longest = data.show_examples(train, heldout, reader, "preference", config.max_length, data_args.dataset, say)
    folder = open_run(model_args, data_args, config)
    if folder.finished:
        return folder.read_summary()

    # 2. The base, with a score head and an adapter that starts as the SFT adapter
    set_seed(config.seed)  # head and adapter are drawn here, before the trainer sets the seed
    model = models.load_base(model_args, "scores", base=stage.base, tokenizer=tokenizer)
    check_context(model, longest, config.max_length)
    if model_args.use_peft:
        with in_one_sentence(model):
            model = models.start_score_adapter(model, model_args, stage.adapter)
        probe.check_adapter(model)
    if not reads_end:
        probe.check_scores(model, tokenizer, "The reward-model stage")
    memory_report.log_estimate(
        memory_report.of_reward, model, model_args, config, min(longest, config.max_length or longest)
    )
    with in_one_sentence():
        trainer = Reward(
            model=model,
            args=config,
            train_dataset=train,
            eval_dataset=heldout.add_column(_ROW, list(range(len(heldout)))),
            processing_class=tokenizer,
            callbacks=[folder.metrics_callback(), *([member.callback] if member else ())],
            reads_end=reads_end,
        )
    freeze_idle(trainer.model)
    _check_left(trainer, train, heldout, config.max_length)
    check_start(trainer)
    precision.train_in_float32(trainer.model)
    if model_args.use_peft:
        lean(trainer.model)
    trackers.connect(trainer)
    folder.write_config(model_args, data_args, config)

    # 3. Train, then look at the pairs that were held out
    trained = frame.train(trainer, folder, "reward model")
    chosen, rejected = score_pairs(trainer)
    if not torch.cat([chosen, rejected]).isfinite().all():
        raise UserError("the scores of held-out pairs are not finite: training has diverged; lower learning_rate")
    summary = {
        "stage": "reward",
        "train_loss": trained.training_loss,
        **preference_metrics(chosen, rejected),
        "pairs": len(trainer.train_dataset),
        "steps": trainer.state.global_step,
        "seed": config.seed,
        **frame.origin(stage, model_args),
    }

    # 4. Save, load again on a fresh base, compare the scores, and say where it is
    frame.save(trainer, folder.path)
    if trainer.accelerator.is_main_process:
        write_pairs(folder.path / PAIRS, heldout.select(trainer.eval_dataset[_ROW]), chosen, rejected)
        _check_reload(trainer, model_args, stage, tokenizer, folder.path, chosen, rejected)
    trainer.accelerator.wait_for_everyone()
    summary["seconds"] = round(time.perf_counter() - started + trainer.seconds_before, 1)
    summary["peak_memory_mib"] = memory_report.peak_mib()
    return frame.finish(trainer, folder, summary, _log_result if member is None else _log_figures)


def load_pairs(data_args: DataArguments, seed: int, tokenizer: PreTrainedTokenizerBase):
    """Training and held-out pairs, reduced to the columns that TRL reads. `seed`: of what is held out."""
    train, heldout = data.load(data_args, "preference", seed, say)
    if heldout is None:
        train, heldout = data.hold_out(train, HELD_OUT, seed)
        say(f"no held-out pairs are named: {len(heldout):,} set aside (eval_fraction {HELD_OUT})")
    kept = ["prompt", "chosen", "rejected", "margin"]  # what TRL reads, and what the chat template is told
    kept += TEMPLATE_COLUMNS if are_messages(train[0]) else ()
    for name, rows in (("training", train), ("held-out", heldout)):
        _check_margins(rows, name)
    return tuple(
        begin_once(rows.select_columns([c for c in kept if c in rows.column_names]), tokenizer)
        for rows in (train, heldout)
    )


def drawn(pairs: Dataset, number: int, seed: int) -> Dataset:
    """As many rows as there are, with replacement: those of the member `number` of an ensemble."""
    rows = np.random.default_rng([seed, number]).integers(len(pairs), size=len(pairs))
    return pairs.select(rows.tolist())


def _check_margins(rows, name: str) -> None:
    for number, margin in enumerate(rows["margin"] if "margin" in rows.column_names else (), start=1):
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
            raise UserError(
                f"{name} pairs, row {number}: margin is {margin!r:.100}, but it is by how much chosen is to score "
                "above rejected: give a number in every row, or rename the column"
            )


def _check_left(trainer: RewardTrainer, train, heldout, max_length: int | None) -> None:
    for name, before, after in (
        ("training", train, trainer.train_dataset),
        ("held-out", heldout, trainer.eval_dataset),
    ):
        if len(after) == 0:
            raise UserError(f"no {name} pair is left: each is longer than max_length {max_length} tokens; raise it")
        if len(after) < len(before):
            say(f"{len(before) - len(after):,} {name} pairs dropped: longer than max_length {max_length} tokens")


@torch.no_grad()
def score_pairs(trainer: RewardTrainer) -> tuple[Tensor, Tensor]:
    """Scores of the held-out pairs by the model as it is: chosen (N,) and rejected (N,), float32 on the CPU."""
    model = trainer.model_wrapped
    model.eval()
    columns, batches = ([], []), trainer.get_eval_dataloader()
    with counting("held-out pairs, in batches", len(batches)) as scored:
        for batch in batches:
            batch = trainer._prepare_inputs(batch)
            with trainer.compute_loss_context_manager():
                scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
            for column, part in zip(columns, scores.float().chunk(2), strict=True):
                column.append(trainer.accelerator.gather_for_metrics(part.contiguous()).cpu())
            scored(1)
    return torch.cat(columns[0]), torch.cat(columns[1])


def preference_metrics(chosen: Tensor, rejected: Tensor) -> dict:
    """Held-out figures of a reward model from scores of pairs, (N,) each.

    accuracy: share of pairs with chosen above rejected, a tie counting half. margin: mean of chosen - rejected.
    log_loss: mean of -log sigmoid(margin), nats (0.693 for a coin). calibration: see `calibrate`.
    """
    margins = (chosen - rejected).double()
    right = (margins > 0).double() + 0.5 * (margins == 0).double()
    accuracy = right.mean().item()
    error, bins = calibrate(margins)
    return {
        "accuracy": accuracy,
        "accuracy_se": (accuracy * (1 - accuracy) / len(margins)) ** 0.5,
        "margin": margins.mean().item(),
        "log_loss": -torch.nn.functional.logsigmoid(margins).mean().item(),
        "calibration_error": error,
        "calibration_bins": bins,
        "score_mean": torch.cat([chosen, rejected]).mean().item(),
        "score_std": torch.cat([chosen, rejected]).std(correction=0).item(),
        "heldout_pairs": len(margins),
    }


def calibrate(margins: Tensor, bins: int = BINS) -> tuple[float, list[dict]]:
    """Expected calibration error of the pair probabilities, and the bins it is made of.

    The model's confidence in its own choice is p = sigmoid(|margin|), in [0.5, 1]; it is right when margin > 0 (a tie
    is half right). With equal-width bins b: ECE = sum_b n_b / N |share right in b - mean p in b| (Guo et al. 2017,
    arXiv 1706.04599, Eq. 3).

    Args:
        margins: score(chosen) - score(rejected), (N,).
    """
    confidence = torch.sigmoid(margins.double().abs())
    right = (margins > 0).double() + 0.5 * (margins == 0).double()
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    error, rows = 0.0, []
    for number in range(bins):
        inside = index == number
        count = int(inside.sum())
        row = {"from": 0.5 + number * 0.5 / bins, "to": 0.5 + (number + 1) * 0.5 / bins, "pairs": count}
        if count:
            row["confidence"], row["accuracy"] = confidence[inside].mean().item(), right[inside].mean().item()
            error += count / len(margins) * abs(row["accuracy"] - row["confidence"])
        rows.append(row)
    return error, rows


def write_pairs(path: Path, rows, chosen: Tensor, rejected: Tensor) -> None:
    """The held-out pairs as they came, the first `MAX_PAIRS` of them, with `score_chosen` and `score_rejected`.

    Args: rows: N with `chosen`, `rejected` and perhaps `prompt`, texts or messages. chosen, rejected: scores, (N,).
    """
    rows = rows.select(range(min(MAX_PAIRS, len(rows))))
    with path.open("w", encoding="utf-8") as file:
        for row, better, worse in zip(rows, chosen.tolist(), rejected.tolist(), strict=False):
            pair = {key: row.get(key) for key in ("prompt", "chosen", "rejected")}
            pair |= {"score_chosen": better, "score_rejected": worse}
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")


@torch.no_grad()
def _check_reload(trainer, model_args: ModelArguments, stage: Stage, tokenizer, path: Path, chosen, rejected) -> None:
    """Loads what was saved on a fresh base; its scores must be those of the trained model."""
    base = stage.base if model_args.use_peft else str(path)
    model = models.load_base(model_args, "scores", base=base, tokenizer=tokenizer)
    if model_args.use_peft:
        model = models.load_adapter(model, str(path))
    model = model.to(trainer.accelerator.device).eval() if not precision.quantization(model_args) else model.eval()
    rows = trainer.eval_dataset.select(range(min(CHECKED_PAIRS, len(chosen))))
    batch = trainer.data_collator(rows.to_list())
    scores = model(**{key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}).logits
    wanted = torch.cat([chosen[: len(rows)], rejected[: len(rows)]])
    exact = next(model.parameters()).dtype == torch.float32 and not trainer.args.bf16 and not trainer.args.fp16
    tolerance = 1e-4 if exact else 0.1
    worst = (scores.float().cpu().squeeze(-1) - wanted).abs().max().item()
    if not worst <= tolerance * (1 + wanted.abs().max().item()):
        raise RuntimeError(f"the reward model in {path} scores differently after loading: {worst:.3g} apart")


def _log_result(summary: dict, path: Path) -> None:
    _log_figures(summary, path)
    say(f"Next: {terminal.next_step('ppo', path)}")


def _log_figures(summary: dict, path: Path) -> None:
    say(
        f"Reward model: right on {summary['accuracy']:.1%} of {summary['heldout_pairs']:,} held-out pairs "
        f"(margin {summary['margin']:.2f}, calibration error {summary['calibration_error']:.3f}) after "
        f"{summary['steps']} steps in {summary['seconds']:.0f} s. The result lies in {path}."
    )
