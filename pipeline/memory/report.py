"""What a stage says of its memory before it trains (estimate.py works it out), and whether a GPU has it."""

import sys
from dataclasses import replace

import torch
from peft import PeftModel

from pipeline.config import ModelArguments
from pipeline.memory.estimate import Adapter, Architecture, Batch, Estimate, Precision, estimate, shared_base
from pipeline.models import precision
from pipeline.models.attention import SHORT_ROWS, uses_short_rows
from pipeline.models.lockstep import lockstep_of
from pipeline.safety.console import say

# What lowers the largest pass. A rollout and the held-out prompts are each answered at once.
_LOWER = {
    "training": "per_device_train_batch_size (raise gradient_accumulation_steps by as much), lower {length}, or set "
    "{last}",
    "generation": "gradient_accumulation_steps or num_mini_batches, lower {length}, or set load_in_4bit: true",
    "held-out prompts": "eval_batch_size, lower {length}, or set load_in_4bit: true",
}


def of_sft(model, model_args: ModelArguments, args, longest: int) -> Estimate:
    """Of the SFT stage. `model`: the base, or with the adapter to go on from. `longest`: tokens of the longest row."""
    batch = Batch(args.per_device_train_batch_size, longest)
    return _estimate(
        model, model_args, args, batch, lean=model_args.use_peft, short_rows=model_args.use_peft, entropy=False
    )


def of_reward(model, model_args: ModelArguments, args, longest: int) -> Estimate:
    """Of the reward-model stage, which reads chosen and rejected in one pass, and at the end loads what it saved."""
    batch = Batch(2 * args.per_device_train_batch_size, longest)
    found = _estimate(model, model_args, args, batch, scores=True, lean=model_args.use_peft, heads=1)
    again = found.stays["base"] + found.stays.get("adapters", 0)
    return replace(found, passes=found.passes | {"the result, read again": again})


def of_pairs(model, model_args: ModelArguments, args, longest: int, prompt: int, exam_rows: int) -> Estimate:
    """Of DPO, which reads chosen and rejected in one pass, and the frozen copy of an adapter that it started from.

    Args: longest: tokens of the longest pair. prompt: of the longest held-out one, of which `exam_rows` are answered
        at once.
    """
    reference = isinstance(model, PeftModel)
    exam = Batch(exam_rows, prompt, args.max_completion_length)
    batch = Batch(2 * args.per_device_train_batch_size, longest)
    return _estimate(model, model_args, args, batch, frozen=int(reference), exam=exam, entropy=False)


def of_rollouts(
    model, model_args: ModelArguments, args, prompt: int, exam_rows: int, rewards: int = 0, trunks: int = 1
) -> Estimate:
    """Of PPO, GRPO or RLOO, as `args` says.

    Args:
        model: the base, or with the adapter that the policy starts from (then the reference is an adapter too).
        prompt: tokens of the longest prompt. exam_rows: held-out prompts answered at once.
        rewards: reward models whose adapters lie on the policy's base. One that loads beside it is not counted.
        trunks: passes whose activations are alive together in the update.
    """
    algorithm = getattr(args, "algorithm", None)  # None: GRPO or RLOO, whose reference is there for beta's sake
    critic = algorithm not in (None, "reinforce")
    reference = isinstance(model, PeftModel) and (algorithm is not None or args.beta != 0)
    answers, rows = args.max_completion_length, args.per_device_train_batch_size
    found = _estimate(
        model,
        model_args,
        args,
        Batch(rows, prompt, answers),
        lean=algorithm is not None,
        short_rows=algorithm is not None,
        learning=1 + critic,
        frozen=reference + rewards,
        heads=int(critic),
        rollout=Batch(rows * args.steps_per_generation, prompt, answers),
        exam=Batch(exam_rows, prompt, answers),
        trunks=trunks,
        entropy=algorithm is None or bool(args.entropy_coef),
    )
    names = {"policy": True, "reference": reference, "critic": critic, "reward model": bool(rewards)}
    return replace(found, adapters=", ".join(name for name, there in names.items() if there))


def _estimate(
    model,
    model_args: ModelArguments,
    args,
    batch: Batch,
    scores: bool = False,
    lean: bool = False,
    short_rows: bool = False,
    **roles,
) -> Estimate:
    architecture, precision = Architecture.of(model.config, scores), replace(precision_of(model_args, args), lean=lean)
    if short_rows and uses_short_rows(architecture.attention, model.device, model.dtype, batch.length):
        architecture = replace(architecture, attention=SHORT_ROWS)
    found = estimate(
        architecture,
        precision,
        adapter_of(model, model_args),
        batch,
        optim=str(getattr(args.optim, "value", args.optim)),
        checkpointing=bool(args.activation_checkpointing),
        cuda=torch.cuda.is_available() and not args.use_cpu,
        **roles,
    )
    return as_shared(found, model, architecture, precision, args)


def as_shared(found: Estimate, model, architecture: Architecture, precision: Precision, args) -> Estimate:
    """The estimate of one process of a run whose base is shared out; else `found`."""
    if lockstep_of(model) is None:
        return found
    return replace(found, stays=found.stays | {"base": shared_base(architecture, precision, args.world_size)})


def precision_of(model_args: ModelArguments, args) -> Precision:
    """Of base and training, as the settings say."""
    return Precision(
        weights=precision.resolve_dtype(model_args).itemsize,
        bits=4 if model_args.load_in_4bit else 8 if model_args.load_in_8bit else None,
        nested=model_args.use_bnb_nested_quant,
        autocast=bool(args.bf16 or args.fp16),
    )


def adapter_of(model, model_args: ModelArguments) -> Adapter | None:
    """The adapter that `model` has, or the one that the settings make; None when all weights learn."""
    if isinstance(model, PeftModel):
        config = model.active_peft_config
        targets = config.target_modules
        return Adapter(config.r, (targets,) if isinstance(targets, str) else tuple(targets))
    return Adapter(model_args.lora_r, tuple(model_args.lora_target_modules)) if model_args.use_peft else None


def log_estimate(of, model, model_args: ModelArguments, args, *sizes: int) -> None:
    """Prints the estimate `of(model, model_args, args, *sizes)`, and on a GPU a warning when it does not fit.

    A model of a kind that the estimate knows nothing of (one with code of its own, say) trains all the same.
    """
    try:
        found = of(model, model_args, args, *sizes)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        say(f"memory of a process: no estimate for this kind of model ({type(error).__name__}: {error!s:.200})")
        return
    for line in table(found):
        say(line)
    if torch.cuda.is_available() and not args.use_cpu:
        free, _ = torch.cuda.mem_get_info()
        free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        length = "max_completion_length" if hasattr(args, "max_completion_length") else "max_length"
        complaint = misfit(found, torch.cuda.memory_allocated(), free, length, bool(args.activation_checkpointing))
        if complaint:
            say(complaint)


def table(found: Estimate) -> list[str]:
    """The lines of the estimate: roles with their sizes, aligned, and the sum."""
    largest = max(found.passes, key=found.passes.get)
    rows = [(name, size, found.adapters if name == "adapters" else "") for name, size in found.stays.items()]
    rows += [(name, size, "while it lasts" + ", the most" * (name == largest)) for name, size in found.passes.items()]
    rows.append(("in all", found.total, f"what stays and {largest}"))
    lines = [f"  {name:<24}{human(size):>10}  {note}".rstrip() for name, size, note in rows]
    return ["memory of a process, estimated:", *lines]


def misfit(found: Estimate, allocated: int, free: int, length: str, checkpointing: bool) -> str | None:
    """The warning when the rest of the estimate is more than `free`; `allocated` is there already. Bytes."""
    missing = found.total - allocated
    if missing <= free:
        return None
    last = "load_in_4bit: true" if checkpointing else "gradient_checkpointing: true"
    lower = _LOWER.get(max(found.passes, key=found.passes.get), _LOWER["training"])
    return (
        f"warning: the run is likely to end out of memory: it needs {human(missing)} more, and the GPU has "
        f"{human(free)} free. Lower {lower.format(length=length, last=last)}."
    )


def human(size: float) -> str:
    """Bytes with three digits in KiB, MiB or GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000 or unit == "GiB":
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"
        size /= 1024
    raise AssertionError


def peak_mib() -> int | None:
    """The most memory that this process has had so far, in MiB: of the GPU where it has one, else of the machine (the
    peak of its resident set; None where the system does not tell)."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)
