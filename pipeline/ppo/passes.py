"""What the adapters say of a batch: log-probabilities and values of the sampled tokens, in parts of like length."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl import GRPOTrainer

from pipeline.models.adapters import use_adapter
from pipeline.models.lockstep import in_lockstep, lockstep_of
from pipeline.models.trunk import Tail
from pipeline.ppo.batches import CRITIC_STATES, Batch, parts
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.critic import Critic
from pipeline.ppo.experience import Experience, Rollout
from pipeline.ppo.replay import Replay
from pipeline.watching.journal import Journal
from rewards import RewardFunction

# log-probabilities (B, T); entropies (B, T) and a mixture's balancing loss, None unless they were asked for
LogprobsAndMore = tuple[Tensor, Tensor | None, Tensor | None]
_READ = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


class Passes(GRPOTrainer):
    """The forward passes of `PPOTrainer`; it has the adapters, the critic and the layer tails that they need."""

    # What TRL and transformers have, where their annotations say more or less than it is here
    args: PPOConfig
    model: PeftModel
    processing_class: PreTrainedTokenizerBase | ProcessorMixin
    reward_funcs: list[RewardFunction]  # type: ignore[assignment]  # in the place of a name its model
    _buffered_inputs: list[Batch] | None  # type: ignore[assignment]  # None at first
    # What PPOTrainer has
    critic: Critic | None
    reference_adapter: str | None
    replay: Replay
    journal: Journal
    _tail: Tail
    _a_pass: float
    _experience: Callable[[Rollout], Experience]
    _by_mini_batch: Callable[[list[Batch]], list[Batch]]

    def _old_and_ref_logprobs(self, batch: Batch, ref_logprobs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the sampled tokens by the policy as it is now and by the reference; (B, T) each."""
        size = self.args.per_device_train_batch_size
        # TRL has them where its sampler's differ from ours
        old_logprobs: Tensor | None = batch.get("old_per_token_logps")
        if old_logprobs is None:
            old_logprobs = self._logprobs(self.model, batch, batch_size=size)[0]
        if ref_logprobs is None:
            with use_adapter(self.model, self.reference_adapter):
                ref_logprobs = self._logprobs(self.model, batch, batch_size=size)[0]
        return old_logprobs, ref_logprobs

    def _values(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """V before each token, (B, T), 0 at padding; and what enters the critic's first trained layer, (B, P+T, H).

        The epochs begin there. None where every layer is trained. Without a critic every value is 0.
        """
        size, known = self.args.per_device_train_batch_size, CRITIC_STATES in batch
        shape, prompt = batch["completion_mask"].shape, batch["prompt_mask"].shape[1]
        if self.critic is None:
            return torch.zeros(shape, device=batch["completion_mask"].device), None
        found, states = self.critic.head.weight.new_zeros(shape), None  # in the head's precision
        with in_lockstep(self.model):
            for part in parts(batch["prompt_mask"], batch["completion_mask"], size, self._a_pass):
                inputs = part.cut({key: batch[key] for key in (*_READ, CRITIC_STATES) if key in batch})
                with self._reading(part.tokens), self.accelerator.autocast():
                    if known:  # an earlier rollout
                        values, entering = self.critic.values(*whole(inputs), inputs[CRITIC_STATES]), None
                    else:
                        values, entering = self.critic.values_and_states(*whole(inputs))
                found[part.rows, : part.tokens] = values
                if entering is not None:
                    if states is None:
                        states = entering.new_zeros(shape[0], prompt + shape[1], entering.shape[-1])
                    states[part.rows, prompt - part.prompt : prompt + part.tokens] = entering
        if lockstep := lockstep_of(self.model):  # the update goes through the same layers on every process
            self.critic.resumable = lockstep.all(self.critic.resumable)
        if states is not None and not self.critic.resumable:  # a later part may have been the first to show it
            states = None
        return found, states

    def _begin_replay(self, epoch: int) -> None:
        """Lets this epoch go over an earlier rollout, if `replay` has it so."""

        def refresh(batch: Batch, rollout: Rollout) -> tuple[Rollout, Experience]:
            """An earlier rollout as the policy and the critic see it now."""
            old_logprobs, _ = self._old_and_ref_logprobs(batch, rollout.ref_logprobs)
            rollout = rollout._replace(old_logprobs=old_logprobs, values=self._values(batch)[0])
            return rollout, self._experience(rollout)

        with self.journal.clock("forward"), torch.no_grad():
            self.replay.begin_pass(epoch, self.num_iterations, refresh, self.args.micro_batches_per_rollout)
        if self.replay.micro_batches is not None:
            self.replay.micro_batches = self._by_mini_batch(self.replay.micro_batches)
            for batch in self.replay.micro_batches:
                self.journal.add("replay/weight", batch["importance_sampling_ratio"], batch["loss_mask"])

    def _reading(self, num_tokens: int) -> AbstractContextManager[None]:
        """Inside, only completions of `num_tokens` are read, each token from the position before it."""
        # recomputation in the backward pass happens outside of the block
        return nullcontext() if self.args.gradient_checkpointing else self._tail.reads(num_tokens + 1)

    def _logprobs(self, model: nn.Module, inputs: Batch, **asked: Any) -> tuple[Tensor, Any, Any]:
        """Log-probabilities of the completions, (B, T), by the adapter that speaks, and what else was asked for."""
        return self._get_per_token_logps_and_entropies(model, *whole(inputs), **asked)

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **asked: Any,
    ) -> LogprobsAndMore:
        def call(
            input_ids: Tensor, attention_mask: Tensor, num_tokens: int, *of_trl: Any, **asked: Any
        ) -> LogprobsAndMore:
            with self._reading(num_tokens):
                found: LogprobsAndMore = super(Passes, self)._get_per_token_logps_and_entropies(
                    model, input_ids, attention_mask, num_tokens, *of_trl, **asked
                )
            return found

        if batch_size is None or any(x is not None for x in asked.values()):
            return call(input_ids, attention_mask, logits_to_keep, batch_size, **asked)
        # A whole rollout, by us or by TRL: in parts of like length
        width = input_ids.shape[1] - logits_to_keep
        found = []
        with in_lockstep(self.model):
            for part in parts(attention_mask[:, :width], attention_mask[:, width:], batch_size, self._a_pass):
                columns = (part.rows, slice(width - part.prompt, width + part.tokens))
                found.append((part, call(input_ids[columns], attention_mask[columns], part.tokens)[0]))
        logprobs = found[0][1].new_zeros(len(input_ids), logits_to_keep)
        for part, of_part in found:
            logprobs[part.rows, : part.tokens] = of_part
        return logprobs, None, None


def whole(inputs: Batch) -> tuple[Tensor, Tensor, int]:
    """Ids and mask (B, P+T) of prompt and completion, and T."""
    input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    return input_ids, attention_mask, inputs["completion_ids"].shape[1]
