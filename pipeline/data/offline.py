"""For what learns without sampling: rows of one kind to learn from, and held-out prompts that are answered."""

from dataclasses import replace

from datasets import Dataset

from pipeline.config import DataArguments
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.safety.console import say


def load(args: DataArguments, kind: str, seed: int, who: str) -> tuple[Dataset, Dataset]:
    """Rows of `kind` to learn from, and held-out prompts, each once, with their columns.

    Args: kind: as `data.load` knows it, `sft` or `preference`. who: the algorithm, for errors.

    Raises:
        UserError: data that cannot be read, or nothing held out.
    """
    plain = replace(args, eval_dataset=None, eval_split=None, eval_fraction=0.0)
    train, _ = data.load(plain, kind, seed, say)
    if args.eval_dataset or args.eval_split:
        source = args.eval_dataset or args.dataset
        named = replace(plain, dataset=source, dataset_split=args.eval_split or args.dataset_split)
        heldout, _ = data.load(named, "prompts", seed, say)
        known = {repr(prompt) for prompt in (train["prompt"] if "prompt" in train.column_names else ())}
        keep = [i for i, prompt in enumerate(heldout["prompt"]) if repr(prompt) not in known]
        if len(keep) < len(heldout):
            say(f"held-out data: {len(heldout) - len(keep):,} rows dropped: they are in the training data too")
        heldout = heldout.select(keep)
    elif args.eval_fraction:
        train, heldout = data.hold_out(train, args.eval_fraction, seed)
        if "prompt" not in heldout.column_names:
            raise UserError(
                f"eval_fraction: the rows of {args.dataset} have no column prompt, so there is nothing to answer: "
                "give eval_dataset"
            )
    else:
        raise UserError(f"eval_dataset is not set: {who} compares before and after on prompts held out from training")
    first = {repr(prompt): i for i, prompt in reversed(list(enumerate(heldout["prompt"])))}
    if not first:
        raise UserError("every held-out row is in the training data too: give other held-out rows")
    return train, heldout.select(sorted(first.values()))
