"""Which of transformers' classes a model folder is loaded as, or in one sentence why it is none for the stages."""

import copy

from accelerate import init_empty_weights
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from pipeline.errors import UserError

_CAUSAL = (
    (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
    (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText),
)
_SCORES = ((MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification),)


def auto_classes(config: PreTrainedConfig, for_: str, path: str) -> list:
    """The auto classes for a language model (`causal`; also one of images and text, trained on text alone) or for a
    reward model (`scores`), the most fitting first: a checkpoint of images and text may be of the second alone.

    Raises:
        UserError: an encoder-decoder, or a model that transformers has no such class for.
    """
    half = for_ == "scores" and getattr(type(config), "is_encoder_decoder", False)  # saved as its decoder alone
    if config.is_encoder_decoder or half:
        raise UserError(
            f"{path} ({config.model_type}) is an encoder-decoder, which reads with one half and writes with the "
            "other; the stages train models of one stack: take a decoder"
            + (", or an encoder for a reward model" if for_ == "scores" else "")
        )
    options = _CAUSAL if for_ == "causal" else _SCORES
    own_code = not type(config).__module__.startswith("transformers.")
    if found := [auto for mapping, auto in options if own_code or type(config) in mapping]:
        return found
    if for_ == "causal":
        raise UserError(
            f"{path} ({config.model_type}) is no language model: transformers has none of its kind that writes text. "
            "An encoder can be a reward (learned) or the base of a reward model; here a decoder is wanted"
        )
    raise UserError(
        f"{path} ({config.model_type}) cannot be the base of a reward model: transformers has no sequence classifier "
        "of its kind; take another base, which the policy need not share"
    )


def reads_end(config: PreTrainedConfig) -> bool:
    """Whether a reward model of this kind reads its score at the last token, so that every text needs an end. An
    encoder's head stands elsewhere, and its tokenizer closes a text by itself."""
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return True
    with init_empty_weights():
        return hasattr(AutoModelForSequenceClassification.from_config(config), "score")


def without_end(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that has nothing to append to a plain text, where TRL appends the end token."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = ""
    return tokenizer
