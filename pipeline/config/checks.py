"""How a setting is declared and checked: every error names the setting that is wrong."""

import json
from dataclasses import field
from math import ceil
from typing import Any

from pipeline.errors import UserError, shortened

DTYPES = ("auto", "fast", "float32", "bfloat16", "float16")
SELECTIVE = ("gradient_checkpointing_kwargs", {"selective": True}, "TRL does it in SFT of all weights alone")
WATCH = ("warn", "stop", "off")
TRACKERS = {  # the packages, of which one is needed
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")
CHAT_TEMPLATE = (
    "Chat template in place of the tokenizer's own: a .jinja file, or a folder or Hub name whose tokenizer has it. "
    "Later stages find it beside the adapter."
)
CHAT_TEMPLATE_KWARGS = (
    "What the chat template is given besides, e.g. '{\"enable_thinking\": false}'; a row's column of that name "
    "takes precedence."
)


def setting(default: Any, text: str) -> Any:
    """A dataclass field with a help text."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def steps_for(total_episodes: int, per_update: int, steps: int, max_steps: int) -> int:
    """Optimizer steps of `total_episodes` completions in whole updates of `per_update` completions and `steps` each;
    `max_steps`, unless -1, must agree."""
    in_all = ceil(total_episodes / per_update) * steps
    if max_steps not in (-1, in_all):
        raise UserError(
            f"max_steps is {max_steps}, but total_episodes {total_episodes} makes it {in_all}: give one of them."
        )
    return in_all


def steps_per_update(config: Any) -> int:
    """Optimizer steps over one rollout, by TRL's settings of a stage that samples."""
    return max(1, config.steps_per_generation * config.num_iterations // config.gradient_accumulation_steps)


def check(good: bool, key: str, value: Any, wants: str) -> None:
    """Raises `UserError` naming the setting unless `good`."""
    if not good:
        raise UserError(f"{key}: {shortened(repr(value))} is not valid: {wants}")


def is_selective(config: Any) -> bool:
    """Whether TRL is to keep some activations and recompute others."""
    return bool(
        (config.gradient_checkpointing_kwargs or config.activation_checkpointing_kwargs or {}).get("selective")
    )


def say_once(ours: Any, theirs: Any, key: str) -> None:
    """One word for a setting that stands in TRL's config too: a flag or YAML key sets both, but in Python it may be
    given to either."""
    setattr(ours, key, getattr(ours, key) or getattr(theirs, key, None))


def mapping(value: dict[str, Any] | str | None, key: str) -> dict[str, Any] | None:
    """The setting `key` as a mapping; the command line gives it as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    check(isinstance(value, dict | None), key, value, "a mapping; on the command line JSON, such as '{\"a\": false}'")
    return value


def games(value: dict[str, Any] | str | None) -> dict[str, str] | str | None:
    """The setting `environment`: module:Class, or a mapping of such by name; the command line gives that as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = mapping(value, "environment")
    named = value.values() if isinstance(value, dict) else [] if value is None else [value]
    good = value != {} and all(isinstance(one, str) and ":" in one for one in named)
    check(good, "environment", value, "module:Class, such as mygames:Maze, or a mapping of such by name")
    return value
