"""What the stages that train on rewards have in common: load; take the exam, train, take it again; write it down."""

import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.config import DataArguments, ModelArguments, check, say_once, steps_per_update
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.exam import evaluation, games
from pipeline.exam.exam import Exam, ExamCallback, RewardArguments, random_state_kept
from pipeline.hub.card import write_card
from pipeline.memory import report as memory_report
from pipeline.models import loading as models
from pipeline.models.adapter_files import check_brought, check_output_layer, check_shares_base
from pipeline.models.adapters import POLICY
from pipeline.models.folders import name_of_start
from pipeline.models.lockstep import in_lockstep
from pipeline.models.prompts import check_room
from pipeline.models.shared_base import load_shared
from pipeline.ppo.reward_adapter import stands_on
from pipeline.report import SAMPLES, write_report
from pipeline.report.token_picture import token_pictures
from pipeline.rollouts import environments, vllm_trainer
from pipeline.runs import claim
from pipeline.runs.folder import RunFolder
from pipeline.runs.resume import open_run
from pipeline.safety.console import say
from pipeline.stages import frame, token_credit
from pipeline.stages.refusals import check_start
from pipeline.watching import trackers
from pipeline.watching.progress import counting
from pipeline.watching.rewards_stop import StopCallback
from pipeline.watching.terminal import visible
from pipeline.watching.watch import WatchCallback
from pipeline.worlds import lower_is_better
from pipeline.worlds import referee as world_referee
from rewards import RewardFunction, WeightedReward, build_rewards, log_name_of, prepare, text_of


class Start(NamedTuple):
    """What a run starts from."""

    model: object  # a PEFT model that starts as the SFT adapter, or a base; None: the run is finished already
    peft_config: LoraConfig | None  # of the adapter to make, when there is none yet
    tokenizer: object
    train: Dataset
    heldout: Dataset
    weighted: list[WeightedReward]
    referee: object
    folder: RunFolder
    origin: dict  # for the summary
    games: dict  # what TRL calls tools and environment_factory, where they are set


def load(
    model_args: ModelArguments, data_args: DataArguments, reward_args: RewardArguments, config, who: str
) -> Start:
    """Everything that a run needs; `who` names the algorithm in errors. What can fail cheaply fails first.

    Raises:
        UserError, RewardError: for whatever does not fit; nothing that existed before is touched.
    """
    say_once(data_args, config, "chat_template_kwargs")
    check(model_args.use_peft, "use_peft", False, f"{who} trains LoRA adapters on a frozen base")
    start, tokenizer = frame.begin(who, model_args, config)
    if start.adapter is not None:
        check_shares_base(start.adapter)
    weighted = build_rewards(reward_args.rewards)
    referee = world_referee(reward_args.referee) if reward_args.referee else None
    train, heldout = data.load(data_args, "prompts", config.seed, say)
    if heldout is None:
        raise UserError(f"eval_dataset is not set: {who} compares before and after on prompts held out from training")
    played = environments.of(config, weighted, tokenizer, train[0])
    longest = data.show_examples(train, heldout, tokenizer, "prompts", None, data_args.dataset, say)
    folder, made_from = open_run(model_args, data_args, reward_args, config), frame.origin(start, model_args)
    if folder.finished:
        return Start(None, None, tokenizer, train, heldout, weighted, referee, folder, made_from, played)
    vllm_trainer.check(config, longest + config.max_completion_length)
    with random_state_kept():
        prepare(reward for reward, _ in weighted if who != "PPO" or not stands_on(reward, start.base))
    model = load_shared(lambda: models.load_base(model_args, base=start.base, tokenizer=tokenizer), config)
    check_room(model, longest, config.max_completion_length)
    if start.adapter is not None:
        check_brought(model, start.adapter)
        model = models.load_adapter(model, start.adapter, trainable=True)
        check_output_layer(model, start.adapter)
    exam_rows = min(reward_args.eval_batch_size, reward_args.eval_samples)
    shared = sum(who == "PPO" and stands_on(reward, start.base) for reward, _ in weighted)
    memory_report.log_estimate(memory_report.of_rollouts, model, model_args, config, longest, exam_rows, shared)
    peft_config = None if start.adapter else models.lora_config(model_args)
    return Start(model, peft_config, tokenizer, train, heldout, weighted, referee, folder, made_from, played)


def weights_of(weighted: list[WeightedReward], config) -> list[float]:
    """The weights for TRL's `reward_weights`; a setting of that name that says something else is refused."""
    weights, given = [weight for _, weight in weighted], config.reward_weights
    wants = f"each reward has its own weight, which makes it {weights}: leave it out, and set weight in rewards"
    check(given is None or [float(weight) for weight in given] == weights, "reward_weights", given, wants)
    return weights


def run_between_exams(trainer, start: Start, settings: tuple, algorithm: str, reference: str | None, started: float):
    """Trains a trainer that samples, between two exams; see `train_between_exams`.

    Args:
        settings: the dataclasses of the run, RewardArguments the last but one and the trainer's config the last.
        reference: the adapter that the policy started from, None for the base.
    """
    *_, reward_args, config = settings
    check_start(trainer)
    rows = start.heldout.select(range(min(reward_args.eval_samples, len(start.heldout)))).to_list()
    weighted = dict(zip(trainer.reward_func_names, start.weighted, strict=False))
    exam = Exam(
        trainer,
        reference,
        rows,
        {name: reward for name, (reward, _) in weighted.items()},
        {name: weight for name, (_, weight) in weighted.items()},
        start.referee,
        reward_args.eval_batch_size,
        partial(vllm_trainer.speaking, trainer),
    )
    exams = ExamCallback(exam, start.folder.path, reward_args.eval_every)
    trainer.add_callback(exams)
    trainer.add_callback(StopCallback([reward for reward, _ in start.weighted]))
    if note := episodes_note(config, len(start.train)):
        say(note)
    if config.watch != "off":  # after the exam's, whose rows it reads
        warmup = getattr(config, "critic_warmup", 0)
        lower = lower_is_better(reward_args.referee)
        trainer.add_callback(WatchCallback(start.folder.path, config.watch, lower, warmup))
    try:
        return train_between_exams(
            trainer, exams, start.folder, settings, algorithm, started, lambda: start.origin, token_credit.write
        )
    finally:
        vllm_trainer.close(trainer)


def by_name(weighted: Sequence[WeightedReward]) -> tuple[dict[str, RewardFunction], dict[str, float]]:
    """Rewards and weights by the names of the logs, as an exam wants them."""
    found = [(log_name_of(reward), reward, weight) for reward, weight in weighted]
    return {name: reward for name, reward, _ in found}, {name: weight for name, _, weight in found}


def train_between_exams(
    trainer,
    exams: ExamCallback,
    folder: RunFolder,
    settings: tuple,
    algorithm: str,
    started: float,
    figures: Callable[[], dict],
    write_credit: Callable | None = None,
) -> dict:
    """Trains, with the exam before, after and in between, and writes the run folder; returns the summary.

    Args:
        exams: the trainer's callback that takes them. settings: as of `run_between_exams`.
        algorithm: as in the summary.
        started: time.perf_counter() at the start of the stage.
        figures: what else the summary says.
        write_credit: writes into the folder what each token earned, of (exam, answers before, after, folder).
    """
    *_, reward_args, config = settings
    exam, is_main = exams.exam, trainer.accelerator.is_main_process
    folder.write_config(*settings)
    trackers.connect(trainer)
    before = exam.take(exam.reference, shown=partial(counting, "held-out prompts, before training"))
    if is_main and folder.checkpoint is None:
        exams.write(before[0], kl=0.0)
    frame.train(trainer, folder, algorithm, getattr(config, "sample_every", 0))
    with claim.all_or_nothing(folder.path):
        trainer.save_model(str(folder.path), _internal_call=True)  # not pushed yet: summary and report are to come
    after = exam.take(POLICY, shown=partial(counting, "held-out prompts, after training"))

    summary = {}
    with in_lockstep(exam.model):
        if is_main:
            kl = exam.kl(after[0], partial(counting, "KL to the start"))
            seconds = time.perf_counter() - started + trainer.seconds_before
            exams.write(after[0], kl)
            summary = _summary(trainer, algorithm, before, after, kl, seconds) | figures()
            folder.write_summary(summary)
            _write_samples(folder.path / SAMPLES, exam.rows, before[0], after[0])
            if write_credit is not None:
                write_credit(exam, before[0], after[0], folder.path)
            write_card(folder.path, force=True)
            report = write_report(folder.path)
            _show(summary, exam.rows, before[0], after[0], reward_args.show_samples, folder.path, report)
    trackers.finish(trainer, partial(token_pictures, folder.path))
    if config.push_to_hub:
        trainer.push_saved()
    trainer.accelerator.wait_for_everyone()
    folder.finish()
    return summary


def episodes_note(config, prompts: int) -> str | None:
    """What to say when a run samples another number of completions than its settings ask for, since it samples in
    whole rollouts: TRL leaves the prompts that fill none out of an epoch. None: it is the number that was asked for.

    Args: config: the trainer's. prompts: rows of its training data.
    """
    size = config.generation_batch_size  # completions of a rollout
    of_prompts = size // config.num_generations
    asked = getattr(config, "total_episodes", None)
    if asked is not None:
        made = -(-asked // size) * size
        return (
            None
            if made == asked
            else f"note: total_episodes {asked} is rounded up to {made}: whole rollouts of {size}"
        )
    whole, left = divmod(prompts, of_prompts)
    if config.max_steps > 0 or (not left and config.num_train_epochs == int(config.num_train_epochs)):
        return None
    steps = steps_per_update(config)
    rollouts = math.ceil(math.ceil(config.num_train_epochs * whole * steps) / steps)
    return (
        f"note: {prompts} prompts x {config.num_train_epochs:g} epochs become {rollouts * size} episodes: a rollout "
        f"takes {of_prompts} prompts, so each epoch leaves out {left}, not the same ones each time"
    )


def _summary(trainer, algorithm: str, before, after, kl: float, seconds: float) -> dict:
    """Held-out means before and after: sampled as in training, and greedy."""
    return {
        "algorithm": algorithm,
        "before": before[0].means(),
        "after": after[0].means(),
        "greedy": {"before": before[1].means(), "after": after[1].means()},
        "kl": kl,
        "heldout": len(before[0].completions),
        "episodes": trainer.journal.episodes,
        "tokens": trainer.journal.tokens,
        "seconds": round(seconds, 1),
        "peak_memory_mib": memory_report.peak_mib(),
        "seed": trainer.args.seed,
    }


def _write_samples(path: Path, rows, before: evaluation.ScoredAnswers, after: evaluation.ScoredAnswers) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows):
            sample = {
                "prompt": row["prompt"],
                "before": before.completions[i],
                "after": after.completions[i],
                "length_before": before.lengths[i],  # tokens
                "length_after": after.lengths[i],
                "scores_before": {name: column[i] for name, column in before.scores.items()},
                "scores_after": {name: column[i] for name, column in after.scores.items()},
            }
            if before.games is not None and after.games is not None:
                sample["prompt"] = after.games[i].prompt
                for which, side in (("before", before), ("after", after)):
                    sample[f"turns_{which}"] = games.turns_shown(side.games[i], side.paid[i][1])
            file.write(json.dumps(sample, ensure_ascii=False) + "\n")


def _show(summary, rows, before_answers, after_answers, count, folder: Path, report: Path) -> None:
    console = Console(soft_wrap=False)
    table = Table(title=f"{summary['heldout']} held-out prompts", title_justify="left")
    name, start = summary["algorithm"].upper(), name_of_start(summary["started_from"])
    start = "start" if start == name else start
    for column in ("", start, name, f"{start} greedy", f"{name} greedy"):
        table.add_column(column, justify="left" if not column else "right")
    greedy = summary["greedy"]
    for score in summary["before"]:
        cells = (summary["before"], summary["after"], greedy["before"], greedy["after"])
        table.add_row(escape(visible(score)), *(f"{cell[score]:.3f}" for cell in cells))
    table.add_row("KL, nats", "0", f"{summary['kl']:.2f}")
    console.print(table)
    pairs = zip(rows, before_answers.completions, after_answers.completions, strict=True)
    for row, before, after in list(pairs)[:count]:
        prompt = row["prompt"] if isinstance(row["prompt"], str) else text_of(row["prompt"][-1:])
        console.print(f"[bold]{escape(visible(prompt.strip()))}[/bold]")
        width = max(len(start), len(name))
        console.print(f"  {start:<{width}}  {escape(visible(before.strip()))}")
        console.print(f"  {name:<{width}}  {escape(visible(after.strip()))}\n")
    speed = f"{summary['episodes']} episodes in {summary['seconds']:.0f} s"
    say(f"{name}: {speed}. The result lies in {folder}; the report with the curves is {report}.")
    say("Next: open the report in a browser.")
