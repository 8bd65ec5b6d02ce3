"""PPOTrainer: TRL's GRPOTrainer carries prompts, generation, rewards, distribution and checkpoints; what makes it PPO
(critic, KL penalty in the reward, GAE, value loss) is here.

What is relied on of TRL is private there, so it is pinned to one minor version and held by
tests/ppo/test_trl_contract.py.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, set_seed
from trl import GRPOTrainer

from pipeline.errors import UserError
from pipeline.hub import PushesResults
from pipeline.models.adapters import CRITIC, POLICY, REFERENCE, copy_adapter, train_only
from pipeline.models.attention import use_short_rows
from pipeline.models.generation import count_positions_from_the_mask, sample_plainly
from pipeline.models.lean import lean
from pipeline.models.trunk import Tail, Trunk
from pipeline.ppo import baseline, checkpoint, math, setup
from pipeline.ppo.batches import tokens_a_pass
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.critic import Critic
from pipeline.ppo.passes import Passes
from pipeline.ppo.replay import Replay
from pipeline.ppo.rollout import Rollout, is_finished, judge
from pipeline.ppo.scorer import put_on_base
from pipeline.ppo.update import Update
from pipeline.rollouts.own_loop import OwnLoop, no_rewards, placeholder
from pipeline.rollouts.scoring import Scoring, weigh
from pipeline.rollouts.vllm_server import send_merged
from pipeline.runs.checkpoint_reading import from_checkpoint
from pipeline.runs.resumable import ResumableRollouts
from pipeline.watching.journal import Journal, repetition
from pipeline.watching.nonfinite import SkipsNonFinite
from rewards import set_training

# GRPO's own statistics (of groups that PPO has not), and those that are logged here under the names of METRICS
_NOT_LOGGED = {"reward", "reward_std", "frac_reward_zero_std", "num_tokens", "step_time"}
_NOT_LOGGED_GROUPS = ("rewards/", "completions/", "profiling/")


class PPOTrainer(OwnLoop, Update, Passes, SkipsNonFinite, ResumableRollouts, PushesResults, GRPOTrainer):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) of a LoRA adapter.

    Args:
        model: base model or its name or folder, or a PEFT model (then its adapter is where the policy starts and a
            frozen copy of it is the reference; otherwise the reference is the base with the adapter off).
        reward_funcs: as in TRL, one or several of: a function `f(prompts, completions, **columns)` that returns one
            number or None a completion, a reward of the package `rewards`, a sequence classifier or its name.
        args: PPOConfig.
        train_dataset: rows with a `prompt` (text or messages) and whatever columns the rewards read. Both may be left
            out by those who call `generate` and `step` themselves.
        peft_config: LoRA settings when `model` has no adapter yet; default: rank 16 on all linear layers.
        The other arguments are those of `trl.GRPOTrainer`.

    Raises:
        UserError: when the settings, the adapter or the critic's folder do not fit, when there are fewer prompts than
            one rollout takes, or when no reward scored any completion.
    """

    _tag_names = ["trl", "ppo", "plumbline"]
    _name = "PPO"
    _paper = {
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
        "citation": "@article{schulman2017proximal, title={Proximal Policy Optimization Algorithms}, "
        "author={Schulman, John and Wolski, Filip and Dhariwal, Prafulla and Radford, Alec and Klimov, Oleg}, "
        "year={2017}, eprint={arXiv:1707.06347}}",
    }

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: Callable | list | None = None,
        args: PPOConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        peft_config: PeftConfig | None = None,
        **kwargs,
    ):
        args = PPOConfig("ppo") if args is None else args
        self._no_prompts = train_dataset is None
        if not self._no_prompts:
            setup.check_prompts(train_dataset, args)
        set_seed(args.seed)  # before adapters are made, so that they are the same on every process and in every run
        starts_from_adapter = isinstance(model, PeftModel)
        model = setup.with_policy_adapter(model, peft_config, args)
        self.reference_adapter = REFERENCE if starts_from_adapter else None  # None: the base with every adapter off
        if starts_from_adapter:
            copy_adapter(model, POLICY, REFERENCE)
        has_critic = args.algorithm != "reinforce"
        self.critic = Critic(model, args.critic_path, args.critic_layers) if has_critic else None
        if args.gradient_checkpointing:
            args = setup.checkpoint_through_adapters(args, model)
        # Nothing is trainable while TRL sets up: on a quantized base it would round what is to bfloat16, so that the
        # policy is no longer its reference and the value head no longer float32
        model.requires_grad_(False)
        super().__init__(
            model=model,
            reward_funcs=no_rewards if reward_funcs is None else reward_funcs,
            args=args,
            train_dataset=placeholder() if self._no_prompts else train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        setup.refuse_sharding(self)
        put_on_base(self.reward_funcs, model, self.accelerator.autocast)
        train_only(model, [POLICY], extra=self.critic.learned() if self.critic else [])
        setup.check_all_learns(model)
        setup.switch_dropout_off(model)
        lean(model)
        use_short_rows(model.get_base_model())
        trunk = Trunk(model)
        self._tail, self._a_pass = Tail(trunk), tokens_a_pass(trunk.module, trunk.depth)
        sample_plainly(model, self.eos_token_ids, self._tokenizer)
        count_positions_from_the_mask(model)
        send_merged(self)
        self._one_by_one = False  # whether policy and critic go backward one after the other
        self._last: dict | None = None  # the part of a micro-batch whose critic comes after the policy
        self.kl_coef = args.kl_coef
        self.baseline = baseline.build(args.baseline, self.accelerator)
        self.replay = Replay(args.replay)
        self.journal = Journal(self.accelerator)  # of training; evaluation between two logs must not mix with it
        self._eval_journal = Journal(self.accelerator)

    @property
    def _notes(self) -> Journal:
        return self.journal if self.model.training else self._eval_journal

    # ------------------------------------------------------------ rollout
    def _generate_and_score_completions(self, inputs):
        # 1. Sample completions and score them (TRL; _calculate_rewards below keeps what each reward said)
        batch = super()._generate_and_score_completions(inputs)
        mask, scores, instant, finished = self._scores(batch)
        # 2. Log-probabilities of the sampled tokens and values of their states, all without dropout or gradient
        with self._notes.clock("forward"), torch.no_grad():
            rollout = Rollout(mask, scores, *self._logprobs_and_values(batch), instant)
        # 3. Token rewards, advantages, returns; whitened over all processes
        experience = judge(rollout, self.args, self.kl_coef, self.journal.sum, self._taken_off(mask.any(dim=1)))
        # 4. What the update reads
        batch |= {
            "loss_mask": mask,
            "old_per_token_logps": rollout.old_logprobs,
            "old_values": rollout.values,
            "advantages": experience.advantages,
            "returns": experience.returns,
        }
        if self.model.training and self.args.replay:
            self.replay.keep(batch, rollout)
        # 5. Log, and let the KL coefficient follow its target
        self._log_rollout(batch, rollout, experience, finished)
        return batch

    def _generate(self, prompts):
        with self._notes.clock("generation"):
            return super()._generate(prompts)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        for reward in self.reward_funcs:
            set_training(reward, self.model.training)  # running statistics are those of training alone
        scoring = Scoring(self.reward_funcs, self.reward_func_names, self._tokenizer, completions, completion_ids_list)
        self.reward_funcs, rewards = scoring.functions, self.reward_funcs  # TRL's loop asks through them
        try:
            with self._notes.clock("scoring"):
                scores_per_reward = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        finally:
            self.reward_funcs = rewards
        self._scoring = scoring
        start = self.accelerator.process_index * len(prompts)
        self._scores_per_reward = scores_per_reward[start : start + len(prompts)]  # (B, F), this process's rows
        for name, column in zip(self.reward_func_names, scores_per_reward.T, strict=True):
            if torch.isinf(column).any():
                raise UserError(f"The reward {name} returned an infinite score; clip it, or the weights are lost.")
        if self.model.training and torch.isnan(scores_per_reward).all():
            raise UserError(
                "No reward scored any completion of this rollout: every reward returned None or NaN for every row. "
                "Check that the columns that the rewards read are filled."
            )
        return scores_per_reward

    def _scores(self, batch):
        """Loss mask (B, T), scores with penalties (B,), token rewards (B, T) or None, finished (B,)."""
        completion_mask = batch["completion_mask"]
        weights = self.reward_weights.to(completion_mask.device)
        scores, scorable = weigh(self._scores_per_reward, weights)
        instant = self._scoring.instant(weights, completion_mask.shape[1])
        self._notes.add("score", scores, scorable)
        for name, column in zip(self.reward_func_names, self._scores_per_reward.T, strict=True):
            self._notes.add(f"score/{name}", column, ~torch.isnan(column))
        finished = is_finished(batch["completion_ids"], completion_mask, self.eos_token_ids)
        if self.args.missing_eos_penalty is not None:
            scores = scores - self.args.missing_eos_penalty * ~finished
        return _sampled(batch) * scorable[:, None], scores, instant, finished

    def _taken_off(self, counts):
        """REINFORCE's baseline as a function of the returns of whole completions, (B,) -> (B,); else None."""
        if self.baseline is None:
            return None
        training = self.model.training
        group_size = self.num_generations if training else self.num_generations_eval
        return lambda totals: self.baseline(totals, counts, group_size, training)

    # ------------------------------------------------------------ log
    def _log_rollout(self, batch, rollout, experience, finished):
        mask, journal = rollout.loss_mask, self._notes
        lengths = _sampled(batch).sum(dim=1)
        kl, counts = experience.kl.sum(dim=1), mask.any(dim=1)
        journal.add("kl", kl, counts)
        journal.add("returns", experience.returns, mask)
        journal.add("length/mean", lengths)
        journal.largest("length/max", lengths)
        journal.largest("length/min", -lengths)  # the largest of the negatives; turned round in log()
        journal.add("finished", finished)
        journal.add("repetition", repetition(batch["completion_ids"], batch["completion_mask"]))
        journal.add("score_std", math.moments(rollout.scores, counts, self.journal.sum)[1].sqrt()[None])
        journal.add("kl_coef", torch.tensor([self.kl_coef], device=mask.device))
        if self.critic is not None:
            explained = math.explained_variance(rollout.values, experience.returns, mask, self.journal.sum)
            journal.add("explained_variance", explained[None])
            journal.add("values", rollout.values, mask)
        # TRL's completions table has a column for the advantage: give it the mean over the completion
        advantage = experience.advantages.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        advantage = self.accelerator.gather(advantage).tolist()
        column = self._logs["advantages"]
        for _ in range(min(len(advantage), len(column))):
            column.pop()
        column.extend(advantage)
        if self.model.training:
            episodes = journal.count(lengths)
            if self.args.kl_target is not None:
                total, rows = journal.sum(torch.stack([kl.sum(), counts.sum()])).tolist()
                self.kl_coef = math.adapt_kl_coef(
                    self.kl_coef, total / max(rows, 1), self.args.kl_target, self.args.kl_horizon, episodes
                )

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        ours = self._notes.read()
        if "length/min" in ours:
            ours["length/min"] = -ours["length/min"]
        if mode == "train" and "loss" in logs:
            ours |= self.journal.read_clocks()
        kept = {
            name: x
            for name, x in self._metrics[mode].items()
            if name not in _NOT_LOGGED and not name.startswith(_NOT_LOGGED_GROUPS)
        }
        self._metrics[mode].clear()
        self._metrics[mode].update(kept | {name: [x] for name, x in ours.items()})
        super().log(logs, start_time)

    # ------------------------------------------------------------ save and load
    def _save(self, output_dir=None, state_dict=None):
        """Policy adapter and tokenizer into `output_dir`, critic into `output_dir/critic`; safetensors only."""
        folder = Path(output_dir or self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)
        model.save_pretrained(folder, selected_adapters=[POLICY])
        if self.critic is not None:
            self.critic.save(folder / CRITIC)
        self.processing_class.save_pretrained(folder)

    def save_rest(self, folder):
        super().save_rest(folder)
        checkpoint.save(self, folder)

    def load_rest(self, folder):
        checkpoint.load(self, folder)
        super().load_rest(folder)

    @from_checkpoint("its weights")
    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        # not through PEFT's load_adapter, which would change which adapters learn and which one speaks
        checkpoint.load_adapters(self, Path(resume_from_checkpoint))

    def _load_best_model(self):
        checkpoint.load_adapters(self, Path(self.state.best_model_checkpoint))


def _sampled(batch):
    """(B, T), 1 = a token of the policy; 0 = padding or what a tool wrote."""
    return batch["completion_mask"] * (1 if batch.get("tool_mask") is None else batch["tool_mask"])
