"""`python -m rewards.check recipe.yaml`: reads the recipe's data and rewards, and prints what they would pay.

    python -m rewards.check recipes/tiny/ppo.yaml [--rows 64] [--references COLUMN] [--seed 0]

Exit codes: 0 nothing to warn of, 1 warnings, 2 something does not fit (one line says what).
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline import cli
from pipeline.check.findings import findings
from pipeline.check.measuring import Measured, mean, measure, totals
from pipeline.check.texts import KINDS, completions, references_in
from pipeline.config import DataArguments, ModelArguments
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.exam.exam import RewardArguments
from pipeline.models import loading as models
from pipeline.models.folders import resolve_model
from pipeline.safety.commands import Parser
from pipeline.safety.console import say
from pipeline.safety.reading import read_yaml
from rewards import Environment, build_rewards, every_in, text_of

WIDTH = 80  # columns of a terminal
_NAME, _CELL = 16, 8  # characters
WARNINGS = 1  # exit code


def main() -> None:
    """The command."""
    cli.launch(_main)


def _main() -> None:
    parser = Parser("python -m rewards.check", description="What a recipe's rewards pay for good and bad completions.")
    parser.add_argument("recipe", help="a YAML with dataset and rewards, such as recipes/tiny/ppo.yaml")
    parser.add_argument("--rows", type=int, default=64, help="rows of the training data that are tried (64)")
    parser.add_argument("--references", metavar="COLUMN", help="the column with good completions")
    parser.add_argument("--seed", type=int, default=0, help="of what is shuffled (0)")
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    args = parser.parse_args()
    if check(args.recipe, args.rows, args.references, args.seed):
        raise SystemExit(WARNINGS)


def check(recipe: str, count: int = 64, column: str | None = None, seed: int = 0) -> list[str]:
    """Prints the table and the warnings, and returns the warnings.

    Args:
        recipe: path of a YAML. count: rows that are tried. column: with the references. seed: of what is shuffled.

    Raises:
        UserError, RewardError: recipe, data or rewards that do not fit.
    """
    if count < 2:
        raise UserError(f"--rows is {count}; give a whole number from 2 up")
    model_args, data_args, reward_args, settings = _read(recipe)
    rewards = build_rewards(reward_args.rewards)
    if any(isinstance(part, Environment) for reward, _ in rewards for part in every_in(reward)):
        raise UserError(
            f"{recipe}: the reward environment is paid for games, and none is played here: see the run's exam"
        )
    train, _ = data.load(data_args, "prompts", settings.get("seed", 0), say)
    rows = train.select(range(min(count, len(train)))).to_list()
    column, references = references_in(rows, column)
    rows, references = _with_a_reference(rows, references)
    tokenizer = _tokenizer(model_args)
    made = completions([text_of(row["prompt"]) for row in rows], references, seed)
    measured = measure(rewards, rows, made, tokenizer)
    from_ = f"references in the column {column}" if references else "no references: --references names their column"
    say(f"{recipe}: {len(rows)} rows of {data_args.dataset}, {from_}\n")
    for line in table(measured):
        say(line)
    lengths = [len(text) for text in made.get("shuffled", ())]
    warnings = findings(measured, lengths) + _too_long(references, tokenizer, settings.get("max_completion_length"))
    say()
    for warning in warnings:
        say(textwrap.fill(f"warning: {warning}.", WIDTH, subsequent_indent="  "))
    if not warnings:
        say("Nothing to warn of.")
    return warnings


def table(measured: Sequence[Measured]) -> list[str]:
    """Lines of at most 80 columns: what each reward pays on average (weight times score), their sum, and the cost."""
    kinds = list(measured[0].scores)
    head = "".join(f"{KINDS[kind].head:>{_CELL}}" for kind in kinds)
    lines = [f"{'paid on average':<{_NAME}}{head}{'ms each':>{_CELL}}"]
    for each in measured:
        cells = [each.weight * each.mean(kind) for kind in kinds] + [1e3 * each.seconds]
        lines.append(_name(each.name) + "".join(map(_cell, cells)))
    sums = totals(measured)
    lines.append(_name("score") + "".join(_cell(mean(sums[kind])) for kind in kinds))
    lines.append("")
    legend = "; ".join(f"{KINDS[kind].head}: {KINDS[kind].words}" for kind in kinds)
    normalized = [each.name for each in measured if each.normalized]
    if normalized:
        legend += f". Normalized in training, here as it is: {', '.join(normalized)}"
    return lines + textwrap.wrap(legend, WIDTH)


def _read(recipe: str) -> tuple[ModelArguments, DataArguments, RewardArguments, dict[str, Any]]:
    """What the recipe says of model, data and rewards, and everything that it says."""
    if not Path(recipe).is_file():
        raise UserError(f"{recipe}: there is no such file; give a recipe with rewards, such as recipes/tiny/ppo.yaml")
    settings, kinds = read_yaml(Path(recipe)), (ModelArguments, DataArguments, RewardArguments)
    if "rewards" not in settings:
        raise UserError(f"{recipe} has no rewards: give the recipe of a stage that trains on some, such as ppo.yaml")
    names = {field.name for kind in kinds for field in fields(kind)}
    return *cli.build({k: v for k, v in settings.items() if k in names}, *kinds, where=recipe), settings


def _with_a_reference(rows: list[dict[str, Any]], references: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows without a reference are left out where others have one; without two of them there are none."""
    pairs = [(row, text) for row, text in zip(rows, references, strict=False) if text.strip()]
    if len(pairs) < 2:
        return rows, []
    return [row for row, _ in pairs], [text for _, text in pairs]


def _tokenizer(args: ModelArguments) -> Any:
    """The policy's, or None where the recipe's model is not there: few rewards count tokens."""
    try:
        return models.load_tokenizer(resolve_model(args), args, needs_end=False)
    except UserError as error:
        say(f"note: rewards are told of no tokens, for {error}")
        return None


def _too_long(references: list[str], tokenizer: Any, limit: Any) -> list[str]:
    if not references or tokenizer is None or not isinstance(limit, int):
        return []
    long = sum(len(ids) >= limit for ids in tokenizer(references, add_special_tokens=False)["input_ids"])
    if not long:
        return []
    return [f"{long} of {len(references)} references do not fit into max_completion_length {limit}"]


def _name(name: str) -> str:
    return f"{name if len(name) < _NAME else name[: _NAME - 2] + '…':<{_NAME}}"


def _cell(value: float) -> str:
    if math.isnan(value):
        return f"{'-':>{_CELL}}"
    short = f"{value:.3f}"
    return f"{short if len(short) < _CELL else f'{value:.1e}':>{_CELL}}"
