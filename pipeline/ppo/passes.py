"""What the adapters say of a batch: log-probabilities and values of the sampled tokens, in parts of like length."""

from contextlib import nullcontext

import torch

from pipeline.models.adapters import use_adapter
from pipeline.ppo.batches import CRITIC_STATES, parts

_READ = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


class Passes:
    """The forward passes of `PPOTrainer`; it has the adapters, the critic and the layer tails that they need."""

    def _old_and_ref_logprobs(self, batch, ref_logprobs=None):
        """Log-probabilities of the sampled tokens by the policy as it is now and by the reference; (B, T) each."""
        size = self.args.per_device_train_batch_size
        old_logprobs = batch.get("old_per_token_logps")  # TRL has them where its sampler's differ from ours
        if old_logprobs is None:
            old_logprobs = self._logprobs(self.model, batch, batch_size=size)[0]
        if ref_logprobs is None:
            with use_adapter(self.model, self.reference_adapter):
                ref_logprobs = self._logprobs(self.model, batch, batch_size=size)[0]
        return old_logprobs, ref_logprobs

    def _values(self, batch):
        """V before each token, (B, T), 0 at padding; and what enters the critic's first trained layer, (B, P+T, H).

        The epochs begin there. None where every layer is trained.
        """
        size, known, found, states = self.args.per_device_train_batch_size, CRITIC_STATES in batch, None, None
        shape, prompt = batch["completion_mask"].shape, batch["prompt_mask"].shape[1]
        for part in parts(batch["prompt_mask"], batch["completion_mask"], size, self._a_pass):
            inputs = part.cut({key: batch[key] for key in (*_READ, CRITIC_STATES) if key in batch})
            with self._reading(part.tokens), self.accelerator.autocast():
                if known:  # an earlier rollout
                    values, entering = self.critic.values(*whole(inputs), inputs[CRITIC_STATES]), None
                else:
                    values, entering = self.critic.values_and_states(*whole(inputs))
            found = values.new_zeros(shape) if found is None else found
            found[part.rows, : part.tokens] = values
            if entering is not None:
                if states is None:
                    states = entering.new_zeros(shape[0], prompt + shape[1], entering.shape[-1])
                states[part.rows, prompt - part.prompt : prompt + part.tokens] = entering
        return found, states

    def _reading(self, num_tokens):
        """Inside, only completions of `num_tokens` are read, each token from the position before it."""
        # recomputation in the backward pass happens outside of the block
        return nullcontext() if self.args.gradient_checkpointing else self._tail.reads(num_tokens + 1)

    def _logprobs(self, model, inputs, **asked):
        """Log-probabilities of the completions, (B, T), by the adapter that speaks, and what else was asked for."""
        return self._get_per_token_logps_and_entropies(model, *whole(inputs), **asked)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **asked
    ):
        def call(input_ids, attention_mask, num_tokens, *of_trl, **asked):
            with self._reading(num_tokens):
                return super(Passes, self)._get_per_token_logps_and_entropies(
                    model, input_ids, attention_mask, num_tokens, *of_trl, **asked
                )

        if batch_size is None or any(x is not None for x in asked.values()):
            return call(input_ids, attention_mask, logits_to_keep, batch_size, **asked)
        # A whole rollout, by us or by TRL: in parts of like length
        width = input_ids.shape[1] - logits_to_keep
        logprobs = None
        for part in parts(attention_mask[:, :width], attention_mask[:, width:], batch_size, self._a_pass):
            columns = (part.rows, slice(width - part.prompt, width + part.tokens))
            found = call(input_ids[columns], attention_mask[columns], part.tokens)[0]
            logprobs = found.new_zeros(len(input_ids), logits_to_keep) if logprobs is None else logprobs
            logprobs[part.rows, : part.tokens] = found
        return logprobs, None, None


def whole(inputs):
    """Ids and mask (B, P+T) of prompt and completion, and T."""
    input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    return input_ids, attention_mask, inputs["completion_ids"].shape[1]
