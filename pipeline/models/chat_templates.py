"""A chat template in place of the tokenizer's own, as TRL's `chat_template_path` names it, for every stage alike.

TRL sets it in its SFT and reward trainers, after our checks, and from a folder it also takes every token that the base
lacks and resizes the embeddings, which no adapter saves. Here it is set as the tokenizer is read, so that everything
sees it, and new embeddings are for runs that train all weights.
"""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from pipeline.errors import UserError

FILES = (".jinja", ".j2")


def take(tokenizer: PreTrainedTokenizerBase, source: str, new_tokens: bool) -> None:
    """Gives `tokenizer` the chat template of `source`, and of a folder or Hub name the end token as well.

    Args: new_tokens: whether the base may get embeddings for tokens of the template that it lacks.

    Raises:
        UserError: no template there, or one with tokens that the base lacks.
    """
    file = Path(source)
    if file.is_file() or file.suffix in FILES:
        tokenizer.chat_template = _read(file)
        return
    try:
        other = AutoTokenizer.from_pretrained(source)
        template = other.get_chat_template()
    except Exception as error:  # half a folder fails in many ways
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"chat_template_path: {source} is no {' or '.join(FILES)} file, and no tokenizer with a chat template: "
            f"{reason}"
        ) from None
    needed = [t for t in other.added_tokens_decoder.values() if t.content in template or t.content == other.eos_token]
    lacking = [token for token in needed if token.content not in tokenizer.get_vocab()]
    if lacking and not new_tokens:
        names = ", ".join(token.content for token in lacking[:5])
        raise UserError(
            f"chat_template_path: the template of {source} wants tokens that the base lacks ({names}), and a LoRA "
            "adapter brings no new ones: take a base that has them, a .jinja file without them, or train all weights "
            "(use_peft: false)"
        )
    tokenizer.add_tokens(lacking)
    tokenizer.chat_template = template
    if other.eos_token is not None:
        tokenizer.eos_token = other.eos_token


def make_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Embeddings for tokens that `take` added, and the end token that it set; for runs that train all weights."""
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    if model.can_generate():
        named = model.generation_config.eos_token_id
        named = [] if named is None else [named] if isinstance(named, int) else list(named)
        model.generation_config.eos_token_id = list(dict.fromkeys([tokenizer.eos_token_id, *named]))


def _read(file: Path) -> str:
    if file.suffix not in FILES:
        raise UserError(f"chat_template_path: {file} is a file, which wants the ending {' or '.join(FILES)}")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"chat_template_path: {file} cannot be read: {reason}") from None


def marking_assistants(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template by which TRL knows what the assistant said (`assistant_only_loss`); None: the tokenizer's own.

    Raises:
        UserError: the tokenizer's own has no marks, and TRL knows no version of it that has.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            "assistant_only_loss wants a chat template, and the tokenizer has none: set chat_template_path"
        )
    if has_generation_markers(tokenizer.chat_template):
        return None
    try:
        return get_training_chat_template(tokenizer)
    except Exception as error:  # it renders messages, and a template may fail in any way
        reason = "" if isinstance(error, ValueError) else f" ({' '.join(str(error).split())[:200]})"
        raise UserError(
            "assistant_only_loss: the tokenizer's chat template does not mark what the assistant says, and TRL knows "
            f"no version of it that does{reason}: put {{% generation %}} and {{% endgeneration %}} around it in a "
            "copy of the template, and name that in chat_template_path; or leave assistant_only_loss out"
        ) from None
