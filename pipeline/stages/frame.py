"""What every stage begins and ends with; what is its own stands between."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import DistributedType
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import TrainOutput

from pipeline.config import ModelArguments, check, say_once
from pipeline.hub.card import write_card
from pipeline.models import auto_class, averaging, precision
from pipeline.models import loading as models
from pipeline.models.folders import Stage, resolve_model
from pipeline.models.provenance import hardware
from pipeline.models.sharding import check_launcher
from pipeline.report import write_report
from pipeline.runs import claim
from pipeline.runs.folder import RunFolder
from pipeline.runs.stopping import graceful
from pipeline.safety.console import is_main, say
from pipeline.safety.weights import ADAPTER_WEIGHTS, fingerprint
from pipeline.watching import terminal, trackers


def begin(
    who: str, model_args: ModelArguments, config, for_scores: bool = False
) -> tuple[Stage, PreTrainedTokenizerBase]:
    """Base and adapter to start from, and the tokenizer; what can fail cheaply fails first.

    Args: who: the stage, as errors name it. config: its settings. for_scores: it trains a reward model.

    Raises:
        UserError: the launcher, the base or the adapter does not fit.
    """
    check_launcher(who, config)
    if hasattr(config, "chat_template_path"):
        say_once(model_args, config, "chat_template_path")
        config.chat_template_path = None  # the tokenizer has it already
    stage = resolve_model(model_args)
    check(model_args.use_peft or not stage.adapter, "use_peft", False, f"{stage.adapter} is an adapter to start from")
    averaging.check(who, config, model_args.use_peft, stage.adapter)
    needs_end = not for_scores or auto_class.reads_end(models.load_config(model_args, stage.base))
    return stage, models.load_tokenizer(stage, model_args, config, needs_end)


def train(trainer: Trainer, folder: RunFolder, name: str, sample_every: int = 0) -> TrainOutput:
    """Trains from the beginning, or goes on from the folder's checkpoint; Ctrl-C stops it after a step. At the end the
    adapter stands where `adapter_averaging` wants it; no checkpoint does.

    Args: name, sample_every: see `terminal.show_progress`.
    """
    weight = averaging.weight_of(trainer.args)
    line = averaging.Averaging(trainer.accelerator.unwrap_model(trainer.model), weight) if weight < 1 else None
    try:
        with terminal.show_progress(trainer, name, sample_every), graceful(trainer, folder):
            trained = trainer.train(resume_from_checkpoint=folder.checkpoint)
    except (Exception, SystemExit):
        trackers.finish(trainer)  # a run that was stopped is closed in its tracker, too
        raise
    if line is not None:
        out = line.apply()
        say(f"The adapter goes back to {weight} of its way (adapter_averaging). Its rank leaves {out:.1%} out.")
    return trained


def finish(trainer: Trainer, folder: RunFolder, summary: dict, log_result: Callable[[dict, Path], None]) -> dict:
    """Summary, card and report into the folder, then `log_result`; pushes if asked to, and returns the summary."""
    folder.write_summary(summary)
    if is_main():
        write_card(folder.path, force=True)
        write_report(folder.path)
    log_result(summary, folder.path)
    trackers.finish(trainer)
    if trainer.args.push_to_hub:
        trainer.push_saved()
    folder.finish()
    return summary


def held_out_before(trainer, resumed: bool) -> Callable[[], dict]:
    """Figures on the held-out rows before training; call what is returned after `train` to have them.

    Accelerate takes a model that was evaluated for one that it has wrapped: without the lines below DDP would never be
    put around it, and each process would train by itself. FSDP and DeepSpeed cannot be evaluated before they train,
    but at the start of training.
    """
    if trainer.eval_dataset is None:
        return dict
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.args.eval_on_start = not resumed
        return lambda: next((row for row in trainer.state.log_history if "eval_loss" in row), {})
    found = trainer.evaluate()
    if trainer.accelerator.num_processes > 1:
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        if getattr(model, "_is_accelerate_prepared", False):
            del model._is_accelerate_prepared
        trainer.accelerator._models.clear()
    return lambda: found


def origin(stage: Stage, model_args: ModelArguments) -> dict:
    """What the result was made from and on, for the summary; the next stage checks the fingerprint."""
    return {
        "base": stage.base,
        "started_from": stage.adapter,
        "base_fingerprint": fingerprint(stage.base),
        "dtype": str(precision.resolve_dtype(model_args)).removeprefix("torch."),
        "hardware": hardware(),
    }


def save(trainer: Trainer, path: Path) -> None:
    """Writes adapter (or model) and tokenizer, and compares the adapter's file with what was trained."""
    with claim.all_or_nothing(path):
        trainer.save_model(str(path), _internal_call=True)  # not pushed yet: the summary is to come
    if trainer.accelerator.is_main_process:
        # A pickle; config.yaml says the same in plain text.
        (path / "training_args.bin").unlink(missing_ok=True)
        model = trainer.accelerator.unwrap_model(trainer.model)
        whole = trainer.accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if isinstance(model, PeftModel) and whole:
            saved, trained = load_file(path / ADAPTER_WEIGHTS), get_peft_model_state_dict(model)
            if set(saved) != set(trained) or any(not torch.equal(saved[key], trained[key].cpu()) for key in saved):
                raise RuntimeError(f"the adapter in {path} differs from the one that was trained")
    trainer.accelerator.wait_for_everyone()
