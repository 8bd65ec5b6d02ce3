"""The ILQL stage: an SFT adapter and scored completions in; Q and V that shift its logits and a report out."""

import time

import torch

from pipeline.config import DataArguments, ModelArguments, check
from pipeline.errors import UserError
from pipeline.exam.exam import ExamCallback, RewardArguments, random_state_kept
from pipeline.ilql import data, memory
from pipeline.ilql.config import ILQLStage
from pipeline.ilql.exam import ShiftedExam
from pipeline.ilql.network import Network
from pipeline.ilql.trainer import ILQLTrainer
from pipeline.memory import report as memory_report
from pipeline.models import loading as models
from pipeline.models import precision, probe
from pipeline.models.adapter_files import check_brought, check_shares_base
from pipeline.models.ends import stop_token_ids
from pipeline.models.folders import Stage
from pipeline.models.lockstep import lockstep_of
from pipeline.models.prompts import check_context, tokenize_prompts
from pipeline.models.shared_base import load_shared
from pipeline.runs import claim
from pipeline.runs.resume import open_run
from pipeline.safety.console import say
from pipeline.stages import frame, rl
from pipeline.stages.refusals import check_start
from pipeline.worlds import referee as world_referee
from rewards import build_rewards, prepare

ALGORITHM = "ilql"


@claim.ends_with
def run(model_args: ModelArguments, data_args: DataArguments, reward_args: RewardArguments, config: ILQLStage) -> dict:
    """Runs the stage and returns the summary that it writes.

    Raises:
        UserError, RewardError: for whatever does not fit; nothing that existed before is touched.
    """
    started = time.perf_counter()
    # 1. What can fail cheaply fails first
    check(model_args.use_peft, "use_peft", False, "ILQL trains LoRA adapters on a frozen base")
    start, tokenizer = frame.begin("ILQL", model_args, config)
    if start.adapter is None:
        raise UserError("adapter_path is not set: ILQL shifts the logits of a policy, say the folder of the SFT stage")
    check_shares_base(start.adapter)
    weighted = build_rewards(reward_args.rewards)
    referee = world_referee(reward_args.referee) if reward_args.referee else None
    train, heldout = data.load(data_args, config.seed)
    train = data.tokenize(train, tokenizer, config.max_length)
    folder = open_run(model_args, data_args, reward_args, config)
    if folder.finished:
        return folder.read_summary()

    # 2. The base with its adapters, and what the data are worth
    torch.manual_seed(config.seed)
    rows = heldout.select(range(min(reward_args.eval_samples, len(heldout)))).to_list()
    at_once = min(reward_args.eval_batch_size, len(rows))
    network, scored = load(model_args, config, start, tokenizer, train, heldout, weighted, at_once)
    trainer = ILQLTrainer(network, config, scored.rows, tokenizer, [folder.metrics_callback()])
    trainer.eos_token_ids = stop_token_ids(network.lm, tokenizer)
    check_start(trainer)
    exam = ShiftedExam(
        trainer,
        rows,
        *rl.by_name(weighted),
        referee,
        reward_args.eval_batch_size,
    )

    # 3. The exam, training, the exam again; what came of it
    exams = ExamCallback(exam, folder.path, reward_args.eval_every)
    trainer.add_callback(exams)

    def figures() -> dict:
        return {
            "rows": len(scored.rows),
            "data": scored.means | {"score_std": scored.std},
            "beta": config.beta,
            "steps": trainer.state.global_step,
            "cpu_seconds": exams.watch.read()["cpu_seconds"],
            **frame.origin(start, model_args),
        }

    settings = (model_args, data_args, reward_args, config)
    return rl.train_between_exams(trainer, exams, folder, settings, ALGORITHM, started, figures)


def load(
    model_args: ModelArguments, config: ILQLStage, start: Stage, tokenizer, train, heldout, weighted, exam_rows: int
) -> tuple[Network, data.Scored]:
    """The network, whose values start at their mean over the data, and the scored data.

    Args: exam_rows: prompts that the exam answers at once, for the estimate of the memory.

    Raises:
        UserError, RewardError: the adapter or the data do not fit, or no reward scores any row.
    """
    with random_state_kept():
        prepare(reward for reward, _ in weighted)
    model = load_shared(lambda: models.load_base(model_args, base=start.base, tokenizer=tokenizer), config)
    longest = max(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in train)
    prompt = max(map(len, tokenize_prompts(tokenizer, heldout.to_list())))
    used = max(longest, prompt + config.max_completion_length)
    what = f"the longest row, or prompt with max_completion_length, has {used} tokens"
    check_context(model, used, what, "lower max_length or max_completion_length")
    check_brought(model, start.adapter)
    model = models.load_adapter(model, start.adapter)
    probe.check(model, tokenizer, "ILQL", None, writes=True)
    memory_report.log_estimate(memory.of_ilql, model, model_args, config, longest, prompt, exam_rows)
    if precision.quantization(model_args) is None and lockstep_of(model) is None:
        model.to(config.device)
    since = time.perf_counter()
    with random_state_kept():
        scored = data.score(train, tokenizer, weighted, config.missing_eos_penalty)
    prompts = len({tuple(ids) for ids in scored.rows["prompt_ids"]})
    say(
        f"{len(scored.rows):,} completions of {prompts:,} prompts scored in {time.perf_counter() - since:.0f} s: "
        f"mean {scored.means['score']:.3f}, standard deviation {scored.std:.3f}"
    )
    if scored.std == 0:
        raise UserError("every completion has the same score: there is nothing to learn from it; give other data")
    network = Network(model, config.values_path)
    for heads in (network.heads, network.target_heads):
        heads.start_at(data.mean_return(scored.rows, config.gamma))
    return network, scored
