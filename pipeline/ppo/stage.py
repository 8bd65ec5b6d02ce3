"""The PPO stage: settings, data and adapters in; a better adapter, `summary.json`, samples and a report out."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import data, evaluation, models, terminal
from pipeline.adapters import POLICY, use_adapter
from pipeline.config import DataArguments, ModelArguments, StageDefaults, check, setting
from pipeline.errors import UserError
from pipeline.folders import resolve_model
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.trainer import PPOTrainer
from pipeline.report import SAMPLES, write_report
from pipeline.run_folder import RunFolder, say
from pipeline.sft import check_context
from pipeline.worlds import referee as world_referee
from rewards import build_rewards, raw, set_training


@dataclass
class RewardArguments:
    """What is rewarded, and how the result is judged on held-out prompts."""

    rewards: list[dict] = setting(
        [], "Rewards, e.g. '{name: bleu, weight: 0.5}' '{name: learned, path: runs/tiny/reward}' mymodule:myfunction."
    )
    referee: str | None = setting(
        None, "A world's own judgement of held-out completions (field_notes, e2e). Never a reward in training."
    )
    eval_samples: int = setting(200, "Held-out prompts that are answered before and after.")
    eval_batch_size: int = setting(50, "Held-out prompts answered at once.")
    show_samples: int = setting(5, "Prompts whose two completions are shown side by side in the terminal.")

    def __post_init__(self):
        check(bool(self.rewards), "rewards", self.rewards, "at least one, such as '{name: keyword, column: facts}'")
        for key in ("eval_samples", "eval_batch_size"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "a whole number from 1 up")


@dataclass
class PPOStage(StageDefaults, PPOConfig):
    """Settings of the PPO stage: TRL's `GRPOConfig` and PPO's own, with our defaults."""

    logging_steps: float = setting(0, "Optimizer steps between two logs; 0 means once an update (rollout).")
    save_strategy: str = setting("no", "When to write checkpoints: no, steps or epoch.")


def run(model_args: ModelArguments, data_args: DataArguments, reward_args: RewardArguments, config: PPOStage) -> dict:
    """Runs the stage and returns the summary that it writes.

    Raises:
        UserError, RewardError: for whatever does not fit; nothing that existed before is touched.
    """
    started = time.perf_counter()
    # 1. What can fail cheaply fails first
    start = resolve_model(model_args)
    check(model_args.use_peft, "use_peft", False, "PPO trains LoRA adapters on a frozen base")
    weighted = build_rewards(reward_args.rewards)
    referee = world_referee(reward_args.referee) if reward_args.referee else None
    tokenizer = models.load_tokenizer(start, model_args)
    train, heldout = data.load(data_args, "prompts", config.seed, say)
    if heldout is None:
        raise UserError("eval_dataset is not set: PPO compares before and after on prompts held out from training")
    longest = data.explain(train, heldout, tokenizer, "prompts", None, data_args.dataset, say)
    folder = RunFolder.create(config.output_dir, resume=bool(config.resume_from_checkpoint))

    # 2. One base; the policy starts as the SFT adapter
    model = models.load_base(model_args, base=start.base, tokenizer=tokenizer)
    check_context(model, longest + config.max_completion_length, None)
    if start.adapter is not None:
        model = models.load_adapter(model, start.adapter, trainable=True)
    config.reward_weights = [weight for _, weight in weighted]
    trainer = PPOTrainer(
        model=model,
        reward_funcs=[reward for reward, _ in weighted],
        args=config,
        train_dataset=train,
        processing_class=tokenizer,
        peft_config=None if start.adapter else models.lora_config(model_args),
        callbacks=[folder.metrics_callback()],
    )
    folder.write_config(model_args, data_args, reward_args, config)
    terminal.show_progress(trainer, "ppo")

    # 3. Judge, train, judge again
    rows = heldout.select(range(min(reward_args.eval_samples, len(heldout)))).to_list()
    rewards = {name: raw(reward) for name, reward in zip(trainer.reward_func_names, trainer.reward_funcs, strict=True)}
    exam = _Exam(trainer, rows, rewards, referee, reward_args)
    before = exam.take(trainer.reference_adapter)
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model(str(folder.path))
    after = exam.take(POLICY)

    # 4. What came of it
    summary = {}
    if trainer.accelerator.is_main_process:
        summary = _summary(trainer, before, after, exam.kl(after[0]), time.perf_counter() - started)
        folder.write_summary(summary)
        _write_samples(folder.path / SAMPLES, rows, before[0], after[0])
        _show(summary, rows, before[0], after[0], reward_args.show_samples, folder.path, write_report(folder.path))
    trainer.accelerator.wait_for_everyone()
    return summary


def _summary(trainer, before, after, kl: float, seconds: float) -> dict:
    """Held-out means before and after: sampled as in training, and greedy."""
    return {
        "algorithm": trainer.args.algorithm,
        "before": before[0].means(),
        "after": after[0].means(),
        "greedy": {"before": before[1].means(), "after": after[1].means()},
        "kl": kl,
        "heldout": len(before[0].completions),
        "episodes": trainer.journal.episodes,
        "tokens": trainer.journal.tokens,
        "seconds": round(seconds, 1),
        "seed": trainer.args.seed,
    }


def _write_samples(path: Path, rows, before: evaluation.Judged, after: evaluation.Judged) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows):
            sample = {
                "prompt": row["prompt"],
                "before": before.completions[i],
                "after": after.completions[i],
                "scores_before": {name: column[i] for name, column in before.scores.items()},
                "scores_after": {name: column[i] for name, column in after.scores.items()},
            }
            file.write(json.dumps(sample, ensure_ascii=False) + "\n")


class _Exam:
    """The held-out prompts, answered by one adapter at a time; on the main process only, others wait."""

    def __init__(self, trainer, rows, rewards, referee, reward_args):
        self.trainer, self.rows, self.rewards, self.referee, self.args = trainer, rows, rewards, referee, reward_args
        self.model = trainer.accelerator.unwrap_model(trainer.model)

    def take(self, adapter: str | None) -> list[evaluation.Judged]:
        """Answers with `adapter`, sampled as in training and then greedy, judged by every reward and the referee."""
        judged, trainer = [], self.trainer
        for reward in trainer.reward_funcs:
            set_training(reward, False)  # held-out scores do not move running statistics
        if trainer.accelerator.is_main_process:
            with use_adapter(self.model, adapter):
                judged = [
                    evaluation.judge(
                        self.model,
                        trainer.processing_class,
                        self.rows,
                        self.rewards,
                        self.referee,
                        max_new_tokens=trainer.max_completion_length,
                        eos_token_ids=trainer.eos_token_ids,
                        temperature=temperature,
                        batch_size=self.args.eval_batch_size,
                        seed=trainer.args.seed,
                    )
                    for temperature in (trainer.temperature, 0)
                ]
        trainer.accelerator.wait_for_everyone()
        return judged

    def kl(self, judged: evaluation.Judged) -> float:
        """Mean over completions of log π - log π_ref summed over tokens, in nats (the k1 estimate of the KL)."""
        prompts, total = [row["prompt"] for row in self.rows], []
        for adapter in (POLICY, self.trainer.reference_adapter):
            with use_adapter(self.model, adapter):
                each = evaluation.logprobs(
                    self.model,
                    self.trainer.processing_class,
                    prompts,
                    judged.completion_ids,
                    self.trainer.temperature,
                    self.args.eval_batch_size,
                )
            total.append(sum(row.double().sum().item() for row in each) / len(each))
        return total[0] - total[1]


def _show(summary, rows, judged_before, judged_after, count, folder: Path, report: Path) -> None:
    console = Console(soft_wrap=False)
    table = Table(title=f"{summary['heldout']} held-out prompts", title_justify="left")
    name = summary["algorithm"].upper()
    for column in ("", "SFT", name, "SFT greedy", f"{name} greedy"):
        table.add_column(column, justify="left" if not column else "right")
    greedy = summary["greedy"]
    for score in summary["before"]:
        cells = (summary["before"], summary["after"], greedy["before"], greedy["after"])
        table.add_row(escape(score), *(f"{cell[score]:.3f}" for cell in cells))
    table.add_row("KL, nats", "0", f"{summary['kl']:.2f}")
    console.print(table)
    pairs = zip(rows, judged_before.completions, judged_after.completions, strict=True)
    for row, before, after in list(pairs)[:count]:
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        console.print(f"[bold]{escape(prompt.strip())}[/bold]")
        console.print(f"  {'SFT':<{len(name)}}  {escape(before.strip())}")
        console.print(f"  {name}  {escape(after.strip())}\n")
    speed = f"{summary['episodes']} episodes in {summary['seconds']:.0f} s"
    say(f"{name}: {speed}. The result lies in {folder}; the report with the curves is {report}.")
    say("Next: open the report in a browser.")
