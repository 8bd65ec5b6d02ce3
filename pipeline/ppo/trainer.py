"""PPOTrainer: TRL's GRPOTrainer carries prompts, generation, rewards, distribution and checkpoints; what makes it PPO
(critic, KL penalty in the reward, GAE, value loss) is here.

One update reads from top to bottom: `_generate_and_score_completions` makes a rollout and what was learned from it
(`experience.py`), `_prepare_inputs` hands it out in mini-batches, `training_step` goes forward and backward on one
micro-batch. The formulas are in `math.py`; everything else beside it is housekeeping.

Where it is not the PPO of Schulman et al. 2017: the policy is a LoRA adapter; policy and critic share a frozen base,
but no adapter; a per-token KL penalty against the policy's start stands in the reward (Ziegler et al. 2019);
advantages are whitened over the whole rollout; the value loss is clipped only where `cliprange_value` asks for it; a
loss is a mean over all tokens of a mini-batch.

What is relied on of TRL is private there, so it is pinned to one minor version and held by
tests/ppo/test_trl_contract.py.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, set_seed
from trl import GRPOTrainer

from pipeline.hub import PushesResults
from pipeline.models import probe
from pipeline.models.adapters import CRITIC, POLICY, REFERENCE, base_of, copy_adapter, train_only
from pipeline.models.decoding import Rollouts
from pipeline.models.generation import count_positions_from_the_mask, sample_plainly
from pipeline.models.lockstep import as_many
from pipeline.models.sharding import check_launcher
from pipeline.models.shared_base import SharesBase, share_out
from pipeline.models.short_forms import take_short_forms
from pipeline.models.structure import freeze_idle
from pipeline.models.trunk import Tail, Trunk
from pipeline.ppo import baseline, checkpoint, logs, math, setup
from pipeline.ppo.aggregation import Paid, scale
from pipeline.ppo.batches import CRITIC_STATES, Batch, in_parts, pack, tokens_a_pass
from pipeline.ppo.config import NORMALIZE, PPOConfig
from pipeline.ppo.critic import Critic
from pipeline.ppo.experience import Experience, Rollout, is_finished, make_experience
from pipeline.ppo.passes import Passes, whole
from pipeline.ppo.replay import Replay
from pipeline.ppo.reward_adapter import put_on_base
from pipeline.rollouts import vllm_trainer
from pipeline.rollouts.own_loop import OwnLoop, no_rewards, placeholder
from pipeline.rollouts.scoring import check_finite, check_scored
from pipeline.rollouts.text_ends import TextEnds
from pipeline.rollouts.turns import Turns
from pipeline.runs.checkpoint_loading import from_checkpoint
from pipeline.runs.resumable_trainer import ResumableRollouts
from pipeline.watching.journal import Journal
from pipeline.watching.nonfinite import SkipsNonFinite
from rewards import RewardFunction, set_training


# TRL and transformers set `_buffered_inputs` and `hub_model_id` to None at first, which mypy takes for all they can be
class PPOTrainer(  # type: ignore[misc]
    OwnLoop,
    Passes,
    SharesBase,
    SkipsNonFinite,
    ResumableRollouts,
    PushesResults,
    Turns,
    TextEnds,
    GRPOTrainer,
):
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
        reward_funcs: RewardFunction | str | list[RewardFunction | str] | None = None,
        args: PPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ):
        args = PPOConfig("ppo") if args is None else args
        check_launcher("PPO", args)
        self._no_prompts = train_dataset is None
        if train_dataset is not None:
            setup.check_prompts(train_dataset, args.completions_per_rollout // (args.num_generations or 1))
        self.advantage = setup.advantage_estimator(args.advantage)
        set_seed(args.seed)  # before adapters are made, so that they are the same on every process and in every run
        starts_from_adapter = isinstance(model, PeftModel)
        model = setup.with_policy_adapter(model, peft_config, args)
        probe.check_adapter(model)
        share_out(model, args)
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
        super().__init__(  # type: ignore[no-untyped-call]
            model=model,
            reward_funcs=no_rewards if reward_funcs is None else reward_funcs,
            args=args,
            train_dataset=placeholder() if train_dataset is None else train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        setup.switch_dropout_off(model)
        probe.check(model, self._tokenizer, self._name, args, writes=True, dropout=False)
        put_on_base(self.reward_funcs, model, self.accelerator.autocast)
        train_only(model, [POLICY], extra=self.critic.learned() if self.critic else [])
        freeze_idle(model)
        take_short_forms(model, self.temperature, head=not (args.entropy_coef or args.cast_lm_head_to_fp32))
        trunk = Trunk(model)
        self._tail, self._a_pass = Tail(trunk), tokens_a_pass(trunk.module, trunk.depth)
        sample_plainly(model, self.eos_token_ids, self._tokenizer)
        self._rollouts = Rollouts(base_of(model))
        count_positions_from_the_mask(model)
        vllm_trainer.attach(self)
        self.kl_coef = args.kl_coef
        self.baseline = baseline.build(args.baseline, self.accelerator)
        self.replay = Replay(args.replay)
        self.journal = Journal(self.accelerator)  # of training; evaluation between two logs must not mix with it
        self._eval_journal = Journal(self.accelerator)

    # ------------------------------------------------------------ 1. the rollout
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        """Rows of the data set -> a rollout of B completions of at most T tokens, with all that the update reads."""
        # 1. Sample completions and score them (TRL, through _generate and _calculate_rewards below)
        batch: Batch = super()._generate_and_score_completions(inputs)
        mask, scores, finished, paid = self._scores(batch)
        # 2. Log-probabilities of the sampled tokens and values of their states, all without dropout or gradient
        with self._notes.clock("forward"), torch.no_grad():
            old_logprobs, ref_logprobs = self._old_and_ref_logprobs(batch)
            values, states = self._values(batch)
        # 3. Token rewards, advantages, returns; whitened over all processes
        rollout = Rollout(mask, scores, old_logprobs, ref_logprobs, values, paid.at_tokens)
        experience = self._experience(rollout, self._baseline_of(rollout))
        # 4. What the update reads
        batch |= {
            "loss_mask": mask,
            "old_per_token_logps": rollout.old_logprobs,
            "old_values": rollout.values,
            "advantages": experience.advantages,
            "returns": experience.returns,
        }
        if states is not None:
            batch[CRITIC_STATES] = states
        if self.model.training and self.args.replay:
            self.replay.keep(batch, rollout)
        # 5. Log; count; let the KL coefficient follow its target
        logs.log_rollout(self, batch, rollout, experience, finished, paid)
        if self.model.training:
            episodes = self.journal.count(logs.sampled(batch).sum(dim=1))
            self._adapt_kl_coef(experience.kl.sum(dim=1), mask.any(dim=1), episodes)
        return batch

    def _generate(self, prompts: list[Any]) -> Any:
        with self._notes.clock("generation"), self._rollouts.without_ended_rows():
            return super()._generate(prompts)

    def _calculate_rewards(
        self, inputs: list[Any], prompts: list[Any], completions: list[Any], completion_ids_list: list[list[int]]
    ) -> Tensor:
        """What every reward said of every completion of all processes, (processes · B, F); this process's rows are
        kept (B, F), and what was paid token by token."""
        for reward in self.reward_funcs:
            set_training(reward, self.model.training)  # running statistics are those of training alone
        scoring = self._asks(completions, completion_ids_list)
        self.reward_funcs, rewards = scoring.functions, self.reward_funcs  # TRL's loop asks through them
        try:
            with self._notes.clock("scoring"):
                scores_per_reward = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        finally:
            self.reward_funcs = rewards
        self._scoring = scoring
        mine = slice(start := self.accelerator.process_index * len(prompts), start + len(prompts))
        group_size = self._group_size if self.args.multi_objective_aggregation == NORMALIZE else None
        weighted, self._factors = scale(scores_per_reward, self.reward_weights.to(scores_per_reward), group_size)
        self._scores_per_reward, self._weighted = scores_per_reward[mine], weighted[mine]
        if self.model.training:
            check_scored(scores_per_reward)
        return check_finite(scores_per_reward, self.reward_func_names)

    def _scores(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Paid]:
        """Loss mask (B, T), scores with penalties (B,), finished (B,), and what each reward pays."""
        completion_mask = batch["completion_mask"]
        scorable = logs.log_scores(self, self._scores_per_reward, self.reward_weights.to(completion_mask.device))
        paid = Paid(self._weighted, self._scoring.instant_of_each(self._factors, completion_mask.shape[1]))
        finished = is_finished(batch["completion_ids"], completion_mask, self.eos_token_ids)
        scores = paid.scores.sum(dim=1) - (self.args.missing_eos_penalty or 0.0) * ~finished
        return logs.sampled(batch) * scorable[:, None], scores, finished, paid

    def _experience(self, rollout: Rollout, baseline: Callable[[Tensor], Tensor] | None = None) -> Experience:
        """Token rewards, advantages and returns of a rollout, by the policy's and the critic's present settings."""
        return make_experience(rollout, self.args, self.kl_coef, self.journal.sum, baseline, self.advantage)

    def _baseline_of(self, rollout: Rollout) -> Callable[[Tensor], Tensor] | None:
        """The setting `baseline` as a function of the returns of whole completions, (B,) -> (B,); None without."""
        if (baseline := self.baseline) is None:
            return None
        training, counts, group_size = self.model.training, rollout.loss_mask.any(dim=1), self._group_size
        return lambda totals: baseline(totals, counts, group_size, training)

    @property
    def _group_size(self) -> int:  # completions of one prompt in a rollout
        return (self.num_generations if self.model.training else self.num_generations_eval) or 1

    def _adapt_kl_coef(self, kl: Tensor, counts: Tensor, episodes: int) -> None:
        """β follows `kl_target`: the mean KL of the completions that count, (B,) and (B,), over all processes."""
        if self.args.kl_target is not None:
            total, rows = self.journal.sum(torch.stack([kl.sum(), counts.sum()])).tolist()
            target, horizon = self.args.kl_target, self.args.kl_horizon
            self.kl_coef = math.adapt_kl_coef(self.kl_coef, total / max(rows, 1), target, horizon, episodes)

    # ------------------------------------------------------------ 2. mini-batches
    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> Batch:
        """The micro-batch of this step; TRL makes a new rollout for it when the last one is used up."""
        steps = self.args.micro_batches_per_rollout
        is_new = self.model.training and (
            self._buffered_inputs is None or self._step % (steps * self.num_iterations) == 0
        )
        inputs: Batch = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        if is_new:
            self._buffered_inputs = self._by_mini_batch(self._buffered_inputs or [])
        epoch, micro_step = divmod(int(self._step), steps)
        epoch %= self.num_iterations
        self.journal.before_any_update = epoch == 0 and micro_step < self.args.gradient_accumulation_steps
        if self.args.replay and micro_step == 0:
            self._begin_replay(epoch)
        return (self.replay.micro_batches or self._buffered_inputs or [])[micro_step]

    def _by_mini_batch(self, micro_batches: list[Batch]) -> list[Batch]:
        """Packs each mini-batch, and writes into its micro-batches how many tokens it has over all processes.

        The loss is a sum divided by that number, so the gradient does not depend on how a mini-batch is cut up.
        """
        size = self.args.gradient_accumulation_steps
        packed: list[Batch] = []
        for start in range(0, len(micro_batches), size):
            mini_batch = pack(micro_batches[start : start + size])
            count = self.journal.sum(torch.stack([m["loss_mask"].sum() for m in mini_batch]).sum())
            packed += [micro_batch | {"num_items_in_batch": count} for micro_batch in mini_batch]
        return packed

    # ------------------------------------------------------------ 3. the update
    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of policy and critic on one micro-batch. Returns its loss, a scalar.

        In parts of like length, and policy and critic one after the other: neither needs anything of the other, so
        the activations of one of them on one part are all that memory has to hold.
        """
        model.train()
        if callable(train := getattr(self.optimizer, "train", None)):  # schedule-free optimizers
            train()
        inputs = self._prepare_inputs(inputs)
        with self.journal.clock("training"):
            if self.is_deepspeed_enabled:  # makes its step in every backward pass, so there can be one only
                loss = self._backward(self._compute_loss(model, inputs))
            else:
                parts = as_many(in_parts(inputs, self._a_pass), self.model)
                loss = torch.zeros((), device=self.accelerator.device)
                for number, (part, weight) in enumerate(parts, start=1):
                    part = part if weight else part | {"loss_mask": torch.zeros_like(part["loss_mask"])}
                    with nullcontext() if number == len(parts) else self.accelerator.no_sync(model):
                        loss += self._backward(weight * self._policy_loss(model, part))
                        loss += self._backward(weight * self._critic_loss(part))
        self.keep_loss(inputs, loss)
        self._step += 1
        return loss

    def _backward(self, loss: Tensor) -> Tensor:
        if loss.requires_grad:
            # the loss is a mean over the whole mini-batch already
            self.accelerator.backward(loss, **({"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}))
        return loss.detach()

    def _compute_loss(self, model: nn.Module, inputs: Batch) -> Tensor:
        """Of a whole batch at once: in evaluation, and under DeepSpeed."""
        return self._policy_loss(model, inputs) + self._critic_loss(inputs)

    def _policy_loss(self, model: nn.Module, inputs: Batch) -> Tensor:
        mask, old_logprobs = inputs["loss_mask"], inputs["old_per_token_logps"]
        # 1. What the policy says now
        logprobs, entropy, aux_loss = self._logprobs(
            model, inputs, compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
        )
        # 2. The loss of each token
        clip = (self.epsilon_low, self.epsilon_high) if self.args.algorithm == "ppo" else (torch.inf, torch.inf)
        policy_loss, ratio, clipped = math.policy_loss(logprobs, old_logprobs, inputs["advantages"], *clip)
        if "importance_sampling_ratio" in inputs:  # replay's, and vLLM's sampler (TRL's correction)
            policy_loss = policy_loss * inputs["importance_sampling_ratio"]
        token_loss = policy_loss - self.entropy_coef * entropy
        if self.state.global_step < self.args.critic_warmup * self.args.steps_per_update:
            token_loss = 0.0 * token_loss  # the policy waits for a critic that knows the scale of the rewards
        # 3. Their mean over the mini-batch
        loss = self._mean(token_loss, inputs)
        if self.aux_loss_enabled:
            share = len(mask) / (self.args.per_device_train_batch_size * self.current_gradient_accumulation_steps)
            loss = loss + self.router_aux_loss_coef * aux_loss * share
        # 4. Log
        logs.log_policy(self._notes, mask, logprobs - old_logprobs, entropy, policy_loss, ratio, clipped)
        return loss

    def _critic_loss(self, inputs: Batch) -> Tensor:
        if self.critic is None:
            return torch.zeros((), device=self.accelerator.device)
        # 1. What the critic says now
        input_ids, attention_mask, num_tokens = whole(inputs)
        with self._reading(num_tokens), self.accelerator.autocast():
            values = self.critic.values(input_ids, attention_mask, num_tokens, inputs.get(CRITIC_STATES))
        # 2. The loss of each token, and its mean over the mini-batch
        cliprange = self.args.cliprange_value
        value_loss, clipped = math.value_loss(values, inputs["old_values"], inputs["returns"], cliprange)
        self._notes.add("loss/value", value_loss, inputs["loss_mask"])
        self._notes.add("clip_fraction/value", clipped, inputs["loss_mask"])
        return self.args.vf_coef * self._mean(value_loss, inputs)

    def _mean(self, token_loss: Tensor, inputs: Batch) -> Tensor:
        """Sum over real tokens divided by the tokens of the whole mini-batch (DDP averages over processes)."""
        mask = inputs["loss_mask"]
        tokens = inputs["num_items_in_batch"] / self.accelerator.num_processes if self.model.training else mask.sum()
        return torch.where(mask.bool(), token_loss, 0).sum().div(tokens.clamp(min=1))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        rate = self.args.critic_learning_rate
        return setup.with_critic_rate(super().create_optimizer(*args, **kwargs), self.model, rate)

    # ------------------------------------------------------------ log
    @property
    def _notes(self) -> Journal:
        return self.journal if self.model.training else self._eval_journal

    def log(self, values: dict[str, float], start_time: float | None = None) -> None:
        logs.put_into(self, values)
        super().log(values, start_time)  # type: ignore[no-untyped-call]

    # ------------------------------------------------------------ save and load
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Policy adapter and tokenizer into `output_dir`, critic into `output_dir/critic`; safetensors only."""
        folder = Path(output_dir or self.args.output_dir or "")
        model = self.accelerator.unwrap_model(self.model)
        model.save_pretrained(folder, selected_adapters=[POLICY])
        if self.critic is not None:
            self.critic.save(folder / CRITIC)
        self.processing_class.save_pretrained(folder)

    def save_rest(self, folder: Path) -> None:
        super().save_rest(folder)
        checkpoint.save(self, folder)

    def load_rest(self, folder: Path) -> None:
        checkpoint.load(self, folder)
        super().load_rest(folder)

    @from_checkpoint("its weights")
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # not through PEFT's load_adapter, which would change which adapters learn and which one is active
        checkpoint.load_adapters(self, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        checkpoint.load_adapters(self, Path(self.state.best_model_checkpoint or ""))
