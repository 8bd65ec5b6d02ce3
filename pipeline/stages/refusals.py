"""What TRL, PEFT and transformers refuse only once model and trainer are made, as one sentence instead of a trace."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import Trainer
from transformers.optimization import get_scheduler
from transformers.utils import is_liger_kernel_available

from pipeline.errors import UserError
from rewards import RewardError

LIBRARIES = ("trl", "peft", "transformers", "accelerate")


@contextmanager
def in_one_sentence(model: nn.Module | None = None) -> Iterator[None]:
    """Inside, what a library refuses is a `UserError` with its words.

    Only what one raises of its own accord: an error that happens to it, or to us, keeps its trace.

    Args: model: gets an adapter inside; what PEFT refuses is told with the names of its linear modules.
    """
    hint = "" if model is None else f" ({_linear_modules(model)})"
    try:
        yield
    except (UserError, RewardError):
        raise
    except Exception as error:
        library = _who_refused(error)
        if library is None:
            raise
        said = " ".join(str(error).split())
        said = said if len(said) <= 400 else f"{said[:400]} ..."
        raise UserError(
            f"{library} does not take these settings: {said}{hint if library == 'peft' else ''}"
        ) from error


def check_start(trainer: Trainer) -> None:
    """Raises `UserError` where optimizer, learning-rate schedule, kernels or the order of the rows cannot be made.

    transformers notices it only when training begins: after whatever is measured before.
    """
    if trainer.args.use_liger_kernel and not is_liger_kernel_available():
        raise UserError("use_liger_kernel: the package liger-kernel is not there; install it, or leave this out")
    args, weight = trainer.args, nn.Parameter(torch.zeros(2, 2))
    with in_one_sentence(), torch.random.fork_rng():
        trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
        trainer._get_train_sampler(trainer.train_dataset)
        try:
            optimizer = torch.optim.SGD([weight], lr=args.learning_rate)
            get_scheduler(
                args.lr_scheduler_type,
                optimizer,
                num_warmup_steps=1,
                num_training_steps=2,
                scheduler_specific_kwargs=args.lr_scheduler_kwargs,
            )
        except TypeError as error:  # a setting that this schedule lacks
            raise UserError(f"lr_scheduler_kwargs {args.lr_scheduler_kwargs} is not valid: {error}") from error


def _linear_modules(model: nn.Module) -> str:
    names = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return f"its linear modules are {', '.join(sorted(names))}, of which lora_target_modules may name some"


def _who_refused(error: Exception) -> str | None:
    """The library whose own `raise` it was, or None."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    library = str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0]
    line = traceback.extract_tb(trace)[-1].line or ""
    return library if library in LIBRARIES and line.startswith("raise ") else None
