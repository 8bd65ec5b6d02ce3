"""The update of PPO: what a step reads of a rollout, and the losses of policy and critic."""

import torch

from pipeline.models.adapters import CRITIC
from pipeline.ppo import math
from pipeline.ppo.batches import CRITIC_STATES, has_rows_alone, pack, parts
from pipeline.ppo.passes import whole
from pipeline.ppo.rollout import judge


class Update:
    """The training step of `PPOTrainer`: mini-batches, losses, optimizer."""

    def _prepare_inputs(self, generation_batch):
        is_new = self.model.training and (
            self._buffered_inputs is None or self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        )
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        if is_new:
            self._buffered_inputs = self._by_mini_batch(self._buffered_inputs)
        pass_index, micro_step = divmod(self._step, self.args.steps_per_generation)
        self.journal.before_any_update = (
            pass_index % self.num_iterations == 0 and micro_step < self.args.gradient_accumulation_steps
        )
        if self.args.replay and micro_step == 0:
            self._begin_pass(pass_index % self.num_iterations)
        return (self.replay.micro_batches or self._buffered_inputs)[micro_step]

    def _begin_pass(self, index):
        def refresh(batch, rollout):
            """What the policy and the critic of now say of an earlier rollout."""
            logprobs, _, values = self._logprobs_and_values(batch, rollout.ref_logprobs)
            rollout = rollout._replace(old_logprobs=logprobs, values=values)
            return rollout, judge(rollout, self.args, self.kl_coef, self.journal.sum)

        with self.journal.clock("forward"), torch.no_grad():
            self.replay.begin_pass(index, self.num_iterations, refresh, self.args.steps_per_generation)
        if self.replay.micro_batches is not None:
            self.replay.micro_batches = self._by_mini_batch(self.replay.micro_batches)
            for batch in self.replay.micro_batches:
                self.journal.add("replay/weight", batch["importance_sampling_ratio"], batch["loss_mask"])

    def _by_mini_batch(self, micro_batches):
        """Packs each mini-batch, and writes into its micro-batches how many tokens it has over all processes.

        The loss is a sum divided by that number, so the gradient does not depend on how a mini-batch is cut up.
        """
        size, packed = self.args.gradient_accumulation_steps, []
        for start in range(0, len(micro_batches), size):
            mini_batch = pack(micro_batches[start : start + size])
            count = self.journal.sum(torch.stack([m["loss_mask"].sum() for m in mini_batch]).sum())
            packed += [micro_batch | {"num_items_in_batch": count} for micro_batch in mini_batch]
        return packed

    def training_step(self, model, inputs, num_items_in_batch):
        with self.journal.clock("training"):
            self._one_by_one = not self.is_deepspeed_enabled  # which steps at every backward pass
            try:
                # 1. The policy, forward and backward (through TRL, which calls _compute_loss)
                loss = super().training_step(model, inputs, num_items_in_batch)
                # 2. The critic, which needs nothing of it: activations of one of them are in memory at a time
                if self._last is not None:
                    of_critic = self._learn(self._critic_loss(self._last))
                    self.add_to_loss(of_critic)
                    loss = loss + of_critic
            finally:
                self._one_by_one, self._last = False, None
        return loss

    def _compute_loss(self, model, inputs):
        if not self._one_by_one:
            return self._policy_loss(model, inputs) + self._critic_loss(inputs)
        *first, self._last = self._parts(inputs)
        so_far = torch.zeros((), device=self.accelerator.device)
        for part in first:
            with self.accelerator.no_sync(model):
                so_far += self._learn(self._policy_loss(model, part)) + self._learn(self._critic_loss(part))
        return self._policy_loss(model, self._last) + so_far

    def _parts(self, inputs) -> list[dict]:
        """A micro-batch in parts of like length; their losses add up to its own."""
        size = len(inputs["completion_mask"])
        if not has_rows_alone(inputs, size):
            return [inputs]
        return [
            part.cut(inputs) for part in parts(inputs["prompt_mask"], inputs["completion_mask"], size, self._a_pass)
        ]

    def _learn(self, loss):
        if loss.requires_grad:
            self.accelerator.backward(loss)
        return loss.detach()

    def _policy_loss(self, model, inputs):
        mask, old_logprobs = inputs["loss_mask"], inputs["old_per_token_logps"]
        # 1. What the policy says now
        logprobs, entropy, aux_loss = self._logprobs(
            model, inputs, compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
        )
        # 2. The loss of each token
        clip = (self.epsilon_low, self.epsilon_high) if self.args.algorithm == "ppo" else (torch.inf, torch.inf)
        policy_loss, ratio, clipped = math.policy_loss(logprobs, old_logprobs, inputs["advantages"], *clip)
        if "importance_sampling_ratio" in inputs:  # vLLM's sampler is not quite the policy (TRL's correction)
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
        log_ratio = (logprobs - old_logprobs).detach()
        for name, x in {
            "entropy": entropy,
            "loss/policy": policy_loss,
            "clip_fraction/policy": clipped,
            "approx_kl": torch.expm1(log_ratio) - log_ratio,
            "ratio": ratio,
        }.items():
            self._notes.add(name, x, mask)
        self._notes.largest("ratio/max", ratio, mask)
        return loss

    def _critic_loss(self, inputs):
        if self.critic is None:
            return torch.zeros((), device=self.accelerator.device)
        input_ids, attention_mask, num_tokens = whole(inputs)
        with self._reading(num_tokens), self.accelerator.autocast():
            values = self.critic.values(input_ids, attention_mask, num_tokens, inputs.get(CRITIC_STATES))
        value_loss, clipped = math.value_loss(
            values, inputs["old_values"], inputs["returns"], self.args.cliprange_value
        )
        self._notes.add("loss/value", value_loss, inputs["loss_mask"])
        self._notes.add("clip_fraction/value", clipped, inputs["loss_mask"])
        return self.args.vf_coef * self._mean(value_loss, inputs)

    def _mean(self, token_loss, inputs):
        """Sum over real tokens divided by the tokens of the whole mini-batch (DDP averages over processes)."""
        mask = inputs["loss_mask"]
        tokens = inputs["num_items_in_batch"] / self.accelerator.num_processes if self.model.training else mask.sum()
        return torch.where(mask.bool(), token_loss, 0).sum() / tokens.clamp(min=1)

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.args.critic_learning_rate is not None and len(optimizer.param_groups) <= 2:
            names = {CRITIC, "value_head"}
            critic = {id(p) for n, p in self.model.named_parameters() if names & set(n.split("."))}
            for group in list(optimizer.param_groups):
                theirs = [p for p in group["params"] if id(p) in critic]
                group["params"] = [p for p in group["params"] if id(p) not in critic]
                optimizer.param_groups.append({**group, "params": theirs, "lr": self.args.critic_learning_rate})
        return optimizer
