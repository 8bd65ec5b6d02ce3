"""What a run of ILQL needs in memory: the base, three adapters, the heads, and Q of every token of the vocabulary."""

from dataclasses import replace

import torch
from peft import PeftModel

from pipeline.config import ModelArguments
from pipeline.ilql.config import ILQLStage
from pipeline.memory.estimate import Architecture, Batch, Estimate, estimate, optimizer
from pipeline.memory.report import adapter_of, as_shared, precision_of


def of_ilql(
    model: PeftModel, model_args: ModelArguments, args: ILQLStage, longest: int, prompt: int, exam_rows: int
) -> Estimate:
    """Estimate of one process.

    Args: model: the base with the policy's adapter. longest: tokens of the longest row. prompt: of the longest
        held-out prompt. exam_rows: prompts that the exam answers at once.
    """
    architecture = Architecture.of(model.config)
    precision = replace(precision_of(model_args, args), lean=True)
    batch = Batch(args.per_device_train_batch_size, longest)
    common = {
        "optim": str(getattr(args.optim, "value", args.optim)),
        "checkpointing": bool(args.activation_checkpointing),
        "cuda": torch.cuda.is_available() and not args.use_cpu,
    }
    adapter = adapter_of(model, model_args)
    exam = Batch(exam_rows, prompt, args.max_completion_length)
    found = estimate(architecture, precision, adapter, batch, frozen=2, exam=exam, **common)
    trunk = estimate(replace(architecture, vocab=0), precision, adapter, batch, **common)
    hidden = architecture.hidden
    heads = 2 * (4 * hidden**2 + 5 * hidden + 1) + 2 * hidden**2 + 4 * hidden + 1  # two for Q, one for V
    # of each Q over the vocabulary in float32: itself, its exponentials for the sum, the gradient
    q = 2 * 3 * 4 * batch.tokens * architecture.vocab
    stays = found.stays | {
        "adapters": found.stays["adapters"] + 2 * 4 * heads,
        "gradients and optimizer": found.stays["gradients and optimizer"] + optimizer(heads, common["optim"]),
    }
    passes = found.passes | {"training": trunk.passes["training"] + q}
    found = replace(found, stays=stays, passes=passes, adapters="policy, values, target with their heads")
    return as_shared(found, model, architecture, precision, args)
