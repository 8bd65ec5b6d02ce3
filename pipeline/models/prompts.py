"""The rows of a data set as the models of every stage read them, and whether they fit into a model's context.

How a prompt is rendered stands in `rewards/rendering.py`, which the rewards share; nothing here adds to it. A row is a
dict with `prompt` (text or messages) and, for the chat template, perhaps `chat_template_kwargs` and `tools`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.errors import UserError
from rewards import rendering
from rewards.rendering import NoTemplate, TemplateError

KWARGS = "chat_template_kwargs"
PICTURES = ("image", "images")  # columns that TRL takes for what a model is shown
# A row, or a bare prompt
Asked = Mapping[str, Any] | str | Sequence[dict]


def tokenize_prompts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Asked]) -> list[list[int]]:
    """The ids of every row's prompt (or of bare prompts), as the policy reads them in training.

    Raises:
        UserError: the chat template is missing, or does not take the messages of a row.
    """
    rows = [row if isinstance(row, Mapping) else {"prompt": row} for row in rows]
    prompts = [row["prompt"] for row in rows]
    with _in_words():
        return rendering.prompt_ids(tokenizer, prompts, rows)


def render(
    row: Mapping[str, Any], kind: str, tokenizer: PreTrainedTokenizerBase, template: str | None = None
) -> list[str]:
    """The full texts of a row as the model will see them: one, or chosen and rejected; for `prompts` the prompt.

    Args:
        kind: of the data, as in pipeline/data/loading.py. template: in place of the tokenizer's own.

    Raises:
        UserError: the chat template is missing, or does not take the messages.
    """

    def whole(*parts: Any) -> str:
        parts = tuple(part for part in parts if part is not None)
        if isinstance(parts[0], list):
            messages = [message for part in parts for message in part]
            return rendering.render(tokenizer, messages, row, **({"chat_template": template} if template else {}))
        text = "".join(parts)
        return text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token

    with _in_words():
        if kind == "prompts":
            return [rendering.prompt_text(tokenizer, row["prompt"], row)]
        if kind == "preference":
            return [whole(row.get("prompt"), row["chosen"]), whole(row.get("prompt"), row["rejected"])]
        if "completion" in row and "prompt" in row:
            return [whole(row["prompt"], row["completion"])]
        return [whole(row.get("messages") or row.get("text"))]


def ids(
    row: Mapping[str, Any], kind: str, tokenizer: PreTrainedTokenizerBase, template: str | None = None
) -> list[list[int]]:
    """The ids of the texts of `render`, as TRL's trainers make them."""
    if kind == "prompts":
        return tokenize_prompts(tokenizer, [row])
    return rendering.encode(tokenizer, render(row, kind, tokenizer, template), are_messages(row))


def are_messages(row: Mapping[str, Any]) -> bool:
    """Whether a row of any kind holds messages rather than text."""
    first = next((row[key] for key in ("prompt", "chosen", "messages", "text") if row.get(key) is not None), "")
    return not isinstance(first, str)


def with_kwargs(rows: Iterable[Mapping[str, Any]], kwargs: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows, with `kwargs` in their column `chat_template_kwargs`, where what a row itself says comes first."""
    if not kwargs:
        return [dict(row) for row in rows]
    return [{**row, KWARGS: {**kwargs, **(row.get(KWARGS) or {})}} for row in rows]


def context_of(model: PreTrainedModel) -> int | None:
    """The longest text of `model` in tokens; None where nothing says that there is a limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def check_context(model: PreTrainedModel, used: int, what: str, remedy: str) -> None:
    """Raises `UserError` where a text of `used` tokens does not fit into the model's context.

    Args: what: the text and its length. remedy: what to do; `{context}` in it is the model's context in tokens.
    """
    context = context_of(model)
    if context and used > context:
        raise UserError(f"{what}, but the model's context is {context}: {remedy.format(context=context)}")


def check_room(model: PreTrainedModel, longest: int, max_completion_length: int, who: str = "") -> None:
    """Raises `UserError` where the longest prompt and its completion may not fit into the model's context.

    Args: longest: prompt, in tokens. who: is asked, where there are several, such as "candidate sft: ".
    """
    both = longest + max_completion_length
    lengths = f"the longest prompt has {longest} tokens and max_completion_length is {max_completion_length}"
    remedy = "lower max_completion_length, or leave long prompts out"
    check_context(model, both, f"{who}{lengths}, together {both}", remedy)


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except NoTemplate:
        raise UserError(
            "the data are messages, but the tokenizer has no chat template: set chat_template_path"
        ) from None
    except TemplateError as error:
        raise UserError(
            f"the tokenizer's chat template {error}; change the messages, or set chat_template_path"
        ) from None
