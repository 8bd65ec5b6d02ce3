"""A learned scorer: a reward model from the reward stage, or any sequence-classification model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import cached_file

from .base import Reward, RewardError, choice, nearest
from .ensemble import Ensemble, check_whole, members_of
from .foreign import ADAPTER_WEIGHTS
from .model_based import (
    ModelBased,
    adapter_config,
    check_complete,
    is_head,
    load_adapter,
    load_options,
    loading,
    padding_matters,
)
from .rendering import NOTHING, encode, row_of
from .text import Message, Text, Texts, text_of
from .tokenizing import adds_end


class Learned(ModelBased):
    """What a sequence-classification model says of prompt + completion.

    A model with one output is a reward model: the score is its logit, without bounds, in the units in which it was
    trained (a difference of 1 means odds of e : 1 that the higher one is preferred). A model with several outputs is a
    classifier: the score is the probability of `label`, from 0 to 1: a softmax over the labels, or where the model's
    `problem_type` says that several may hold at once (multi_label_classification) a sigmoid. With problem_type
    regression it is the output named `label` as it is.

        {name: learned, path: runs/tiny/reward}
        {name: learned, path: my-org/sentiment, label: positive, include_prompt: false}
        {name: learned, path: my-org/toxicity, label: toxic, include_prompt: false, weight: -1.0}

    Options:
        path: a folder of the reward stage (adapter with its score head), or a folder or hub name of any sequence
            classifier. It brings its own tokenizer: text goes in, so the policy's need not be the same.
        label: which output of a classifier, by its name in the model's `id2label`.
        include_prompt (true): false shows the model the completion alone.
        append_eos ("auto"): whether plain text ends with the tokenizer's end-of-text token, as TRL's RewardTrainer
            puts it. `auto` does so for reward models that read the last token.
        template (none): a chat template, or a file with one, in place of the tokenizer's own.
        max_length (the model's): the longest text in tokens; of a longer one the beginning is left out.
        pessimism (0): of an ensemble (`make reward` with `ensemble: k`), how many times the spread between its members
            is taken off their mean (`rewards.ensemble`).
        batch_size (32): texts scored at once.
        device (this process's), dtype ("auto", as saved; float32 where the
            processor has no units for 16 bits).

    The text is tokenized as `trl.RewardTrainer` does it. Plain text: prompt + completion + end-of-text as one
    string, with the special tokens that the tokenizer adds, but none of them twice in a row. Messages: the chat
    template over prompt and completion,
    nothing added, with what the row's columns `chat_template_kwargs` and `tools` give it. A completion that was cut at
    the length limit is scored as if it ended there, end-of-text and all: a reward model has only ever read a score at
    the end of a text. What it costs not to end is PPO's `missing_eos_penalty`. A score does not depend on padding
    or on the other texts of the batch.

    With `instant: true` each word is paid by the difference that it makes to the score, the text scored as if it ended
    there. That takes one pass of the model for each word of each completion, in batches of like length.

    In Python `model` (anything with `.config` and `model(input_ids=, attention_mask=).logits`) and `tokenizer` can be
    handed in, already loaded; then `path` is not needed.
    """

    def __init__(
        self,
        path: str | None = None,
        label: str | None = None,
        include_prompt: bool = True,
        append_eos: bool | str = "auto",
        template: str | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        device: str | None = None,
        dtype: str = "auto",
        model: Any = None,
        tokenizer: Any = None,
        log_name: str = "learned",
        pessimism: float = 0.0,
    ):
        super().__init__(path, model, tokenizer, max_length, batch_size, device, dtype, log_name)
        self.label = label
        self.include_prompt = include_prompt
        self.append_eos = choice(append_eos, "append_eos", ("auto", True, False), log_name)
        self.template = template
        self.pessimism = pessimism

    @classmethod
    def made(cls, **options: Any) -> Reward:
        """A folder with several reward models makes an `Ensemble` of them."""
        members = members_of(options.get("path"))
        if not members:
            return cls(**options)
        check_whole(str(options["path"]), "learned")
        pessimism = options.pop("pessimism", 0.0)
        each = [cls(**options | {"path": str(member), "log_name": member.name}) for member in members]
        return Ensemble(each, pessimism)

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        rows = enumerate(zip(prompts, completions, strict=True))
        return list(self.score_ids([self.encode(prompt, said, row_of(columns, i)) for i, (prompt, said) in rows]))

    def encode(self, prompt: Text, completion: Text, row: Mapping[str, Any] = NOTHING) -> list[int]:
        """The ids of one text as the model reads it; see the class for how.

        Args: row: the columns that speak to the chat template (`rewards.rendering`), if there are any.
        """
        self._prepare()
        conversational = not isinstance(completion, str)
        if not isinstance(completion, str) and self._tokenizer.chat_template is not None:
            messages = [*_messages(prompt, "user"), *completion] if self.include_prompt else list(completion)
            [ids] = encode(self._tokenizer, [self._rendered(messages, row)], rendered=True)
            return ids[-self._limit :] or [self._tokenizer.pad_token_id]
        if conversational and self._is_reward_model:
            raise self.error(
                f"the data has messages, but the tokenizer of '{self.path}' has no chat template; give `template`."
            )
        parts = [prompt, completion] if self.include_prompt else [completion]
        text = ("\n" if conversational else "").join(map(text_of, parts))
        eos = self._tokenizer.eos_token if self._appends_eos else None
        if eos and self._ends_by_itself:
            text = text.removesuffix(eos)
        elif eos and not text.endswith(eos):
            text += eos
        [ids] = encode(self._tokenizer, [text], rendered=False, truncation=True, max_length=self._limit)
        return ids or [self._tokenizer.pad_token_id]  # a model cannot read nothing

    @torch.no_grad()
    def score_ids(self, rows: Sequence[list[int]]) -> list[float]:
        """Scores of texts given as ids of the model's tokenizer, of any lengths."""
        self._prepare()
        return self._in_batches(rows, len, lambda batch: self._read(self._model(**self._pad(batch)).logits.float()))

    def _read(self, logits: torch.Tensor) -> torch.Tensor:
        """logits (B, labels) -> scores (B,)."""
        if self._label_id is None:
            return logits[:, 0]
        kind = getattr(self._model.config, "problem_type", None)
        if kind == "multi_label_classification":
            logits = logits.sigmoid()
        elif kind != "regression":
            logits = logits.softmax(dim=-1)
        return logits[:, self._label_id]

    def _load(self, path: str) -> tuple[Any, Any]:
        return load_scorer(path, self.__name__, self.dtype)

    def _settle(self) -> None:
        if self.pessimism:
            raise self.error(
                f"pessimism is for an ensemble, and '{self.path}' is one reward model; train several with ensemble: 4 "
                "in reward.yaml."
            )
        config, tokenizer = self._model.config, self._tokenizer
        labels = {int(i): name for i, name in (getattr(config, "id2label", None) or {}).items()}
        count = getattr(config, "num_labels", len(labels))
        self._is_reward_model = count == 1
        if self._is_reward_model and self.label is not None:
            raise self.error(
                f"label is '{self.label}', but the model has one output; leave it out (log_name names it)."
            )
        self._label_id = None if self._is_reward_model else self._find_label(labels)
        reads_last = self._is_reward_model and _reads_last(self._model)
        self._appends_eos = reads_last if self.append_eos == "auto" else self.append_eos
        self._ends_by_itself = adds_end(tokenizer)

        # TRL's rule. The model finds the last token of a text as the last one that is not this id.
        if tokenizer.pad_token_id is None:
            pad = config.get_text_config().pad_token_id
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad) if pad is not None else tokenizer.eos_token
        if tokenizer.pad_token_id is None:
            raise self.error(f"the tokenizer of '{self.path}' has neither a padding nor an end-of-text token.")
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
        if not _reads_last(self._model):
            rows = [torch.tensor(tokenizer(text)["input_ids"], device=self.device) for text in ("no", "a longer text")]
            if padding_matters(self._model, rows, tokenizer.pad_token_id):
                raise self.error(
                    f"the model at '{self.path}' scores a text otherwise when it stands in a batch, padded on the "
                    "right: give another one."
                )

        if self.template is not None:
            file = Path(self.template)
            is_file = "{" not in self.template and file.is_file()
            try:
                tokenizer.chat_template = file.read_text("utf-8") if is_file else self.template
            except UnicodeDecodeError:
                raise self.error(f"the template '{self.template}' is not UTF-8 text.") from None
        tokenizer.truncation_side = "left"
        self._limit = self._longest()

    def _find_label(self, labels: dict[int, str]) -> int:
        names = list(labels.values())
        if self.label is None:
            raise self.error(f"the model has several labels; say which with `label`: {', '.join(names)}.")
        found = [i for i, name in labels.items() if name == self.label or name.lower() == str(self.label).lower()]
        if not found:
            near = nearest(self.label, names)
            raise self.error(f"the model has no label '{self.label}'{near}; it has {', '.join(names)}.")
        return found[0]


def load_scorer(path: str, name: str = "learned", dtype: str = "auto") -> tuple[Any, Any]:
    """The sequence classifier at `path` and its tokenizer, in evaluation mode on the CPU.

    Raises:
        RewardError: nothing loadable there, or a model whose score head is missing, so that scores would be random.
    """
    options = load_options(dtype)
    if members := members_of(path):
        raise RewardError(
            f"Reward '{name}': '{path}' is an ensemble; give one of its reward models, such as {members[0]}, or build "
            "it from a spec (build_rewards)."
        )
    with loading(path, name):
        adapter = adapter_config(path)
        if adapter is not None:
            if adapter.get("task_type") != "SEQ_CLS":
                raise RewardError(
                    f"Reward '{name}': '{path}' is an adapter of type {adapter.get('task_type')}, not a reward model "
                    "(SEQ_CLS); train one with recipes/reward.py."
                )
            options["num_labels"] = _head_size(path, name)
            return load_adapter(path, name, adapter, AutoModelForSequenceClassification, options)
        model, info = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True, **options)
        fresh = sorted(key for key in info["missing_keys"] if is_head(key))
        if fresh:
            raise RewardError(
                f"Reward '{name}': '{path}' holds no score head ({', '.join(fresh)} would be random); "
                "give a reward model or a sequence classifier."
            )
        check_complete(info, path, name, is_head)
        return model.eval(), AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def _head_size(path: str, name: str) -> int:
    """Number of outputs of the score head that is saved with the adapter at `path`."""
    weights = cached_file(path, ADAPTER_WEIGHTS, _raise_exceptions_for_missing_entries=False)
    if weights is None:
        raise RewardError(f"Reward '{name}': '{path}' has no {ADAPTER_WEIGHTS}; a pickle is never read.")
    with safe_open(weights, framework="pt") as saved:
        heads = [key for key in saved.keys() if is_head(key) and "lora_" not in key and key.endswith("weight")]
        if not heads:
            raise RewardError(
                f"Reward '{name}': the adapter '{path}' was saved without its score head, so its scores would be "
                "random; train it with recipes/reward.py, or with modules_to_save=['score']."
            )
        return int(saved.get_slice(heads[-1]).get_shape()[0])


def _reads_last(model: Any) -> bool:
    """Whether the head reads the last token of a text (`score` on a decoder), not a first [CLS] token."""
    modules = getattr(model, "named_modules", None)
    return modules is None or any(name.split(".")[-1] == "score" or ".score." in f".{name}." for name, _ in modules())


def _messages(prompt: Text, role: str) -> list[Message]:
    return [{"role": role, "content": prompt}] if isinstance(prompt, str) else list(prompt)
