"""DPO by TRL's own trainer on preference pairs, with the exam, run folder and report of PPO, to be compared with it.

Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290, Eq. 7) learns from pairs without a reward model
and without sampling:

    L = -log σ(β (log π(y_w|x)/π_ref(y_w|x) - log π(y_l|x)/π_ref(y_l|x)))

The reference is what the policy starts from: of an SFT adapter TRL keeps a frozen copy, `ref`, on the same base; a new
adapter starts as the base itself. Rewards only score held-out answers here.
"""

import time

from datasets import Dataset
from transformers import set_seed
from trl import DPOTrainer

from pipeline.config import DataArguments, DPOStage, ModelArguments, check
from pipeline.data import loading as data
from pipeline.data import offline
from pipeline.data.exact_rows import begin_once
from pipeline.data.grouping import GroupsByLength
from pipeline.errors import UserError
from pipeline.exam.exam import Exam, ExamCallback, RewardArguments, random_state_kept
from pipeline.hub import PushesResults
from pipeline.memory import report as memory_report
from pipeline.models import loading as models
from pipeline.models import probe
from pipeline.models.adapter_files import check_brought, check_output_layer, check_shares_base
from pipeline.models.ends import stop_token_ids
from pipeline.models.folders import Stage
from pipeline.models.prompts import are_messages, check_room, tokenize_prompts
from pipeline.models.sharding import launcher_of
from pipeline.models.structure import freeze_idle
from pipeline.runs import claim
from pipeline.runs.resumable_trainer import Resumable
from pipeline.runs.resume import open_run
from pipeline.stages import frame, rl
from pipeline.stages.refusals import check_start, in_one_sentence
from pipeline.stages.sft import check_context
from pipeline.stages.trl_stage import SavesPolicy, frozen_start
from pipeline.watching.journal import Journal, KeepsJournal
from pipeline.watching.nonfinite import SkipsNonFinite
from pipeline.worlds import referee as world_referee
from rewards import build_rewards, prepare
from rewards.rendering import TEMPLATE_COLUMNS

ALGORITHM = "dpo"


class DPO(SavesPolicy, KeepsJournal, SkipsNonFinite, Resumable, PushesResults, GroupsByLength, DPOTrainer):
    """TRL's DPOTrainer, with our way of stopping and going on, of steps that are not finite, of the Hub and of rows of
    like length; it counts what it reads, and saves the policy's adapter alone."""

    journal_name = "dpo"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.journal = Journal(self.accelerator)

    def lengths(self, rows):
        columns = (rows[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        return [len(prompt) + max(len(one), len(other)) for prompt, one, other in zip(*columns, strict=True)]

    # what the exams ask a trainer for
    @property
    def max_completion_length(self) -> int:
        return self.args.max_completion_length

    @property
    def temperature(self) -> float:
        return self.args.temperature

    def _compute_loss(self, model, inputs, return_outputs):
        if self.model.training:
            self.journal.count(inputs["completion_mask"].sum(dim=1))
        return super()._compute_loss(model, inputs, return_outputs)

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs = {**logs, "episodes": self.journal.episodes, "tokens": self.journal.tokens}
        super().log(logs, start_time)


@claim.ends_with
def run(model_args: ModelArguments, data_args: DataArguments, reward_args: RewardArguments, config: DPOStage) -> dict:
    """Runs the stage and returns the summary that it writes.

    Raises:
        UserError, RewardError: for whatever does not fit; nothing that existed before is touched.
    """
    started = time.perf_counter()
    # 1. What can fail cheaply fails first
    check(model_args.use_peft, "use_peft", False, "DPO trains LoRA adapters on a frozen base")
    if (launcher := launcher_of(config)) not in ("one process", "DDP"):
        raise UserError(f"DPO does not run under {launcher}: use one process, or several with DDP")
    start, tokenizer = frame.begin("DPO", model_args, config)
    if start.adapter is not None:
        check_shares_base(start.adapter)
    weighted = build_rewards(reward_args.rewards)
    referee = world_referee(reward_args.referee) if reward_args.referee else None
    train, heldout = load_data(data_args, config, tokenizer)
    longest = data.show_examples(train, None, tokenizer, "preference", None, data_args.dataset)
    folder = open_run(model_args, data_args, reward_args, config)
    if folder.finished:
        return folder.read_summary()

    # 2. The base with the policy on it, and TRL's trainer
    set_seed(config.seed)
    rows = heldout.select(range(min(reward_args.eval_samples, len(heldout)))).to_list()
    with random_state_kept():
        prepare(reward for reward, _ in weighted)
    model = load_policy(model_args, config, start, tokenizer, longest, rows, reward_args.eval_batch_size)
    with in_one_sentence(model):
        trainer = DPO(
            model=model,
            args=config,
            train_dataset=train,
            processing_class=tokenizer,
            peft_config=None if start.adapter else models.lora_config(model_args),
            callbacks=[folder.metrics_callback()],
        )
    if len(trainer.train_dataset) == 0:
        raise UserError(f"no pair is left: every prompt alone fills max_length {config.max_length}; raise it")
    trainer.eos_token_ids = stop_token_ids(trainer.model, tokenizer)
    check_start(trainer)
    probe.check_adapter(trainer.model)
    probe.check(trainer.model, tokenizer, "DPO", config, writes=True)
    freeze_idle(trainer.model)
    exam = Exam(
        trainer,
        frozen_start(trainer.model, fresh=start.adapter is None),
        rows,
        *rl.by_name(weighted),
        referee,
        reward_args.eval_batch_size,
    )

    # 3. The exam, training, the exam again; what came of it
    exams = ExamCallback(exam, folder.path, reward_args.eval_every)
    trainer.add_callback(exams)

    def figures() -> dict:
        own = {"pairs": len(trainer.train_dataset), "beta": config.beta, "steps": trainer.state.global_step}
        return own | frame.origin(start, model_args)

    settings = (model_args, data_args, reward_args, config)
    return rl.train_between_exams(trainer, exams, folder, settings, ALGORITHM, started, figures)


def load_data(data_args: DataArguments, config: DPOStage, tokenizer) -> tuple[Dataset, Dataset]:
    """Pairs, reduced to the columns that TRL reads, and held-out prompts."""
    train, heldout = offline.load(data_args, "preference", config.seed, "DPO")
    kept = ["prompt", "chosen", "rejected", *(TEMPLATE_COLUMNS if are_messages(train[0]) else ())]
    return begin_once(train.select_columns([c for c in kept if c in train.column_names]), tokenizer), heldout


def load_policy(
    model_args: ModelArguments, config: DPOStage, start: Stage, tokenizer, longest: int, rows: list[dict], at_once: int
):
    """The base, with the adapter that the policy starts from where there is one.

    Args: longest: tokens of the longest pair. rows: held-out, of which `at_once` are answered at once.

    Raises:
        UserError: the adapter or the data do not fit.
    """
    model = models.load_base(model_args, base=start.base, tokenizer=tokenizer)
    check_context(model, longest, config.max_length)
    prompt = max(map(len, tokenize_prompts(tokenizer, rows)))
    check_room(model, prompt, config.max_completion_length)
    if start.adapter is not None:
        check_brought(model, start.adapter)
        model = models.load_adapter(model, start.adapter, trainable=True)
        check_output_layer(model, start.adapter)
    used = min(longest, config.max_length or longest)
    memory_report.log_estimate(
        memory_report.of_pairs, model, model_args, config, used, prompt, min(at_once, len(rows))
    )
    return model
