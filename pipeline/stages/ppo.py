"""The PPO stage: settings, data and adapters in; a better adapter, `summary.json`, samples and a report out."""

import time

from pipeline.config import DataArguments, ModelArguments
from pipeline.exam.exam import RewardArguments
from pipeline.ppo.config import PPOStage
from pipeline.ppo.trainer import PPOTrainer
from pipeline.runs import claim
from pipeline.stages import rl
from pipeline.stages.refusals import in_one_sentence

__all__ = ["PPOStage", "RewardArguments", "run"]


@claim.ends_with
def run(model_args: ModelArguments, data_args: DataArguments, reward_args: RewardArguments, config: PPOStage) -> dict:
    """Runs the stage and returns the summary that it writes.

    Raises:
        UserError, RewardError: for whatever does not fit; nothing that existed before is touched.
    """
    started = time.perf_counter()
    # 1. Settings, data, rewards, one base; the policy starts as the SFT adapter
    start = rl.load(model_args, data_args, reward_args, config, "PPO")
    if start.folder.finished:
        return start.folder.read_summary()
    # 2. The trainer adds the reference and the critic
    config.reward_weights = rl.weights_of(start.weighted, config)
    with in_one_sentence(start.model):
        trainer = PPOTrainer(
            model=start.model,
            reward_funcs=[reward for reward, _ in start.weighted],
            args=config,
            train_dataset=start.train,
            processing_class=start.tokenizer,
            peft_config=start.peft_config,
            callbacks=[start.folder.metrics_callback()],
            **start.games,
        )
    # 3. The exam, training, the exam again; what came of it
    settings = (model_args, data_args, reward_args, config)
    return rl.run_between_exams(trainer, start, settings, config.algorithm, trainer.reference_adapter, started)
