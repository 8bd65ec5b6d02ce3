"""GRPO and RLOO by TRL's own trainers, on the same data, rewards and run folder as PPO, so that they can be compared.

The training is TRL's. What is added around it: the base and the SFT adapter are loaded as for PPO, completions are
counted, the exam is taken on held-out prompts, and what is saved is one LoRA adapter.
"""

import json
import time
from pathlib import Path

import torch
from trl import GRPOTrainer, RLOOTrainer

from pipeline.config import DataArguments, GRPOStage, ModelArguments, RLOOStage
from pipeline.exam.exam import RewardArguments, random_state_kept
from pipeline.hub import PushesResults
from pipeline.models import probe
from pipeline.models.adapters import POLICY, copy_adapter
from pipeline.models.generation import sample_plainly
from pipeline.models.shared_base import SharesBase
from pipeline.models.structure import freeze_idle
from pipeline.rollouts import vllm_trainer
from pipeline.rollouts.row_prompts import RowPrompts
from pipeline.rollouts.scoring import check_finite
from pipeline.rollouts.text_ends import TextEnds
from pipeline.runs import claim
from pipeline.runs.resumable_trainer import ResumableRollouts
from pipeline.safety.console import say
from pipeline.safety.reading import read_json
from pipeline.stages import rl
from pipeline.stages.refusals import in_one_sentence
from pipeline.watching.journal import Journal
from pipeline.watching.nonfinite import SkipsNonFinite
from rewards import WeightedReward, load_state, log_name_of, pays_tokens, state_of
from rewards.asking import guarded_alike

START = "ref"  # TRL's own name for the frozen copy of the adapter that the policy starts from
_STATE = "stage_state.json"  # in a checkpoint


class SavesPolicy:
    """Mixed into a trainer: saves the policy's adapter alone, and the tokenizer."""

    def _save(self, output_dir=None, state_dict=None):
        folder = Path(output_dir or self.args.output_dir)
        self.accelerator.unwrap_model(self.model).save_pretrained(folder, selected_adapters=[POLICY])
        self.processing_class.save_pretrained(folder)


class Counted(SavesPolicy, SharesBase, SkipsNonFinite, ResumableRollouts, PushesResults, RowPrompts, TextEnds):
    """Mixed into TRL's trainers: counts what they sample, and saves the policy's adapter alone."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.journal = Journal(self.accelerator)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        if self.model.training:
            lengths = [len(ids) for ids in completion_ids_list]
            self.journal.count(torch.tensor(lengths, device=self.accelerator.device))
        asked = [
            reward if isinstance(reward, torch.nn.Module) else guarded_alike(reward, name)
            for reward, name in zip(self.reward_funcs, self.reward_func_names, strict=True)
        ]
        self.reward_funcs, rewards = asked, self.reward_funcs  # TRL's loop asks through them
        try:
            scores = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        finally:
            self.reward_funcs = rewards
        return check_finite(scores, self.reward_func_names)

    def save_rest(self, folder):
        super().save_rest(folder)
        if self.args.should_save:
            state = {"rewards": state_of((reward, 1.0) for reward in self.reward_funcs)}
            (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")

    def load_rest(self, folder):
        super().load_rest(folder)
        state = read_json(folder / _STATE, {"rewards": {str: dict}})
        load_state(((reward, 1.0) for reward in self.reward_funcs), state["rewards"])


class CountedGRPO(Counted, GRPOTrainer):
    """TRL's GRPOTrainer (Shao et al. 2024, arXiv 2402.03300), counted."""

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        vllm_trainer.log_difference(self, batch)
        return batch


class CountedRLOO(Counted, RLOOTrainer):
    """TRL's RLOOTrainer (Ahmadian et al. 2024, arXiv 2402.14740), counted."""


class MissingEOS:
    """-1 for a completion that was cut at the limit, 0 for one that ended by itself: PPO's penalty, as a reward."""

    __name__ = "missing_eos"

    def __init__(self):
        self.eos_token_ids: list[int] = []  # the trainer knows them

    def __call__(self, prompts, completions, completion_ids, **columns) -> list[float]:
        return [0.0 if ids and ids[-1] in self.eos_token_ids else -1.0 for ids in completion_ids]


@claim.ends_with
def run(
    model_args: ModelArguments, data_args: DataArguments, reward_args: RewardArguments, config: GRPOStage | RLOOStage
) -> dict:
    """Runs GRPO or RLOO, as the type of `config` says, and returns the summary that it writes.

    Rewards that are `instant` for PPO give their whole score at the end here: TRL takes one score a completion.

    Raises:
        UserError, RewardError: for whatever does not fit; nothing that existed before is touched.
    """
    started = time.perf_counter()
    algorithm, trainer_class = ("grpo", CountedGRPO) if isinstance(config, GRPOStage) else ("rloo", CountedRLOO)
    start = rl.load(model_args, data_args, reward_args, config, algorithm.upper())
    if start.folder.finished:
        return start.folder.read_summary()
    if instant := [log_name_of(reward) for reward, _ in start.weighted if pays_tokens(reward)]:
        say(f"{algorithm.upper()} takes one score a completion: `instant` of {', '.join(instant)} has no effect here.")
    weighted = _with_penalty(start.weighted, config.missing_eos_penalty)
    reward_funcs, config.reward_weights = [reward for reward, _ in weighted], rl.weights_of(weighted, config)
    with in_one_sentence(start.model):
        trainer = trainer_class(
            model=start.model,
            reward_funcs=reward_funcs,
            args=config,
            train_dataset=start.train,
            processing_class=start.tokenizer,
            peft_config=start.peft_config,
            callbacks=[start.folder.metrics_callback()],
        )
    if config.missing_eos_penalty is not None:
        reward_funcs[-1].eos_token_ids = trainer.eos_token_ids
    sample_plainly(trainer.model, trainer.eos_token_ids, start.tokenizer)
    probe.check_adapter(trainer.model)
    probe.check(trainer.model, start.tokenizer, algorithm.upper(), config, writes=True)
    freeze_idle(trainer.model)
    vllm_trainer.attach(trainer)
    settings = (model_args, data_args, reward_args, config)
    return rl.run_between_exams(
        trainer, start, settings, algorithm, frozen_start(trainer.model, fresh=start.peft_config is not None), started
    )


def _with_penalty(weighted: list[WeightedReward], penalty: float | None) -> list[WeightedReward]:
    return weighted if penalty is None else [*weighted, WeightedReward(MissingEOS(), penalty)]


def frozen_start(model, fresh: bool) -> str | None:
    """The adapter that the policy starts from, frozen; None: a `fresh` adapter starts as the base itself."""
    if fresh:
        return None
    if START not in model.peft_config:  # without a KL penalty TRL makes none
        with random_state_kept():
            copy_adapter(model, POLICY, START)
    for name, parameter in model.named_parameters():
        if START in name.split("."):
            parameter.requires_grad_(False)
    return START
