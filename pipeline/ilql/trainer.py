"""Implicit language Q-learning on the Trainer's loop: the losses, the target that follows, checkpoints."""

from collections import defaultdict
from pathlib import Path

import torch
from datasets import Dataset
from peft import set_peft_model_state_dict
from torch import Tensor
from transformers import Trainer, TrainerCallback

from pipeline.data.grouping import GroupsByLength
from pipeline.hub import PushesResults
from pipeline.ilql import math
from pipeline.ilql.config import ILQLStage
from pipeline.ilql.data import Collator
from pipeline.ilql.network import FOLDER, ONLINE, Network
from pipeline.models.adapter_files import read_weights
from pipeline.models.adapters import POLICY
from pipeline.models.attention import use_short_rows
from pipeline.models.generation import count_positions_from_the_mask
from pipeline.models.lean import lean
from pipeline.models.sharding import check_launcher
from pipeline.models.shared_base import SharesBase
from pipeline.runs.checkpoint_loading import from_checkpoint
from pipeline.runs.resumable_trainer import Resumable
from pipeline.safety.weights import ADAPTER_WEIGHTS
from pipeline.watching.journal import Journal, KeepsJournal
from pipeline.watching.nonfinite import SkipsNonFinite


class QLearning(GroupsByLength, Trainer):
    """The losses alone, on a `Network`; see `ILQLTrainer`."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids, mask = inputs["completion_ids"], inputs["completion_mask"]
        whole = torch.cat([inputs["prompt_ids"], ids], dim=1), torch.cat([inputs["prompt_mask"], mask], dim=1)
        found = model(*whole, ids.shape[1])
        targets = math.td_targets(inputs["rewards"], found.values.detach(), mask, self.args.gamma, self.args.lam)
        target_q = self.network.target_q(*whole, ids)
        both = found.logits, found.q2
        taken = [math.taken(q, ids) for q in both]
        parts = {
            "loss/q": sum(math.td_loss(q, targets) for q in taken),
            "loss/v": math.expectile_loss(target_q, found.values, self.args.tau),
            "loss/conservative": sum(math.conservative_loss(q, ids) for q in both),
        }
        self._note(parts, torch.minimum(*taken), found.values, inputs["rewards"], mask)
        each = parts["loss/q"] + parts["loss/v"] + self.args.cql_coef * parts["loss/conservative"]
        total = torch.where(mask.bool(), each, 0).sum()
        if num_items_in_batch is None:
            loss = total / mask.sum().clamp(min=1)
        else:  # tokens of all micro-batches and processes; DDP takes the mean over these
            loss = total / num_items_in_batch * self.accelerator.num_processes
        return (loss, found) if return_outputs else loss

    @torch.no_grad()
    def _note(self, parts: dict[str, Tensor], q: Tensor, values: Tensor, rewards: Tensor, mask: Tensor) -> None:
        to_go = math.returns(rewards, mask, self.args.gamma)
        missed = to_go - values
        moments = {"_r": to_go, "_r2": to_go.square(), "_e": missed, "_e2": missed.square()}
        for name, x in (parts | {"q": q, "values": values} | moments).items():
            self.journal.add(name, x, mask)
        self.journal.count(mask.sum(dim=1))

    def lengths(self, rows):
        return [len(p) + len(c) for p, c in zip(rows["prompt_ids"], rows["completion_ids"], strict=True)]

    def _get_num_items_in_batch(self, batch_samples, device):
        """All completion tokens of a step."""
        count = torch.stack([batch["completion_mask"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.reduce(count, reduction="sum")


class ILQLTrainer(KeepsJournal, SharesBase, SkipsNonFinite, Resumable, PushesResults, QLearning):
    """Learns Q and V of a data set of scored completions (Snell et al. 2022, arXiv 2206.11871).

    Args:
        network: policy, values and target on one base.
        args: the settings.
        train_dataset: rows with the lists prompt_ids, completion_ids and rewards.
        processing_class: the tokenizer, saved with the result.

    Raises:
        UserError: under ZeRO-3.
    """

    journal_name = "ilql"

    def __init__(self, network: Network, args: ILQLStage, train_dataset: Dataset, processing_class, callbacks=None):
        check_launcher("ILQL", args)
        self._metrics = {"train": defaultdict(list)}  # TRL's trainers have it, and Resumable keeps it
        super().__init__(
            model=network,
            args=args,
            train_dataset=train_dataset,
            data_collator=Collator(processing_class.pad_token_id),
            processing_class=processing_class,
            callbacks=callbacks,
        )
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of a step, not by micro-batches
        self.network = network
        lean(network.lm)
        use_short_rows(network.lm.get_base_model())
        count_positions_from_the_mask(network.lm)
        self.journal = Journal(self.accelerator)
        self.add_callback(Follow(network, args.polyak))

    # what the exams ask a trainer for
    @property
    def max_completion_length(self) -> int:
        return self.args.max_completion_length

    @property
    def temperature(self) -> float:
        return self.args.temperature

    def log(self, logs, start_time=None):
        if "loss" in logs:
            found = self.journal.read()
            if "_r" in found:
                variances = [found.pop(f"{x}2") - found.pop(x) ** 2 for x in ("_r", "_e")]
                if variances[0] > 0:
                    found["explained_variance"] = 1 - variances[1] / variances[0]
            logs = {**logs, **found, "episodes": self.journal.episodes, "tokens": self.journal.tokens}
        super().log(logs, start_time)

    # ------------------------------------------------------------ save and load
    def _save(self, output_dir=None, state_dict=None):
        """Policy adapter and tokenizer, and in `values` what decodes with it; safetensors only."""
        folder = Path(output_dir or self.args.output_dir)
        self.network.lm.save_pretrained(folder, selected_adapters=[POLICY])
        self.network.save(folder / FOLDER, self.args.beta)
        self.processing_class.save_pretrained(folder)

    def save_rest(self, folder):
        super().save_rest(folder)
        if self.args.should_save:
            self.network.save(folder / ONLINE, self.args.beta, online=True)

    @from_checkpoint("its weights")
    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        folder = Path(resume_from_checkpoint)
        set_peft_model_state_dict(self.network.lm, read_weights(folder / ADAPTER_WEIGHTS), POLICY)
        self.network.load(folder / FOLDER)
        self.network.load(folder / ONLINE, online=True)


class Follow(TrainerCallback):
    """The target follows the values after each step."""

    def __init__(self, network: Network, rate: float):
        self.network, self.rate = network, rate

    def on_step_end(self, args, state, control, **kwargs):
        self.network.follow(self.rate)
