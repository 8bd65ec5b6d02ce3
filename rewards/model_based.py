"""What the rewards that ask a model have in common: how it is loaded, and how texts go through it in batches."""

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer
from transformers.utils import cached_file, find_adapter_config_file, logging

from . import processor
from .base import Reward, RewardError, choice, number
from .foreign import ADAPTER_WEIGHTS, HEADS, adapter_problem, is_missing_folder
from .rendering import TemplateError, render
from .text import Message

DTYPES = ("auto", "float32", "bfloat16", "float16")
logger = getLogger(__name__)


Row = TypeVar("Row")  # a text in whatever form a subclass encodes it


class ModelBased(Reward):
    """A reward that asks a frozen model of transformers. Text goes in, so the model brings its own tokenizer.

    A subclass says how the two are loaded (`_load`), settles what its options leave open (`_settle`) and scores.
    Nothing is loaded before the first use.
    """

    python_only = ("model", "tokenizer")

    def __init__(
        self,
        path: str | None,
        model: Any,
        tokenizer: Any,
        max_length: int | None,
        batch_size: int,
        device: str | None,
        dtype: str,
        log_name: str,
    ):
        super().__init__(log_name)
        if (path is None) == (model is None) or (model is None) != (tokenizer is None):
            raise self.error("give either path, or (in Python) model and tokenizer together.")
        self.path = None if path is None else str(path)
        self.max_length = None if max_length is None else int(number(max_length, "max_length", log_name))
        self.batch_size = max(1, int(number(batch_size, "batch_size", log_name)))
        self.device = None if device is None else self._usable(device)
        self.dtype = choice(dtype, "dtype", DTYPES, log_name)
        self._model, self._tokenizer = model, tokenizer
        self._ready = False

    @property
    def is_loaded(self) -> bool:
        """Whether the model is there already: handed in, or loaded at the first use."""
        return self._model is not None

    def take(self, model: Any, tokenizer: Any) -> None:
        """Takes a model that is in memory already instead of loading its own; before the first use."""
        self._model, self._tokenizer = model, tokenizer

    @property
    def model(self) -> Any:
        """The model, loaded at the first use."""
        self._prepare()
        return self._model

    @property
    def tokenizer(self) -> Any:
        """The model's own tokenizer."""
        self._prepare()
        return self._tokenizer

    def prepare(self) -> None:
        self._prepare()

    def _usable(self, device: Any) -> Any:
        try:
            kind = torch.device(device).type
        except (RuntimeError, TypeError):
            raise self.error(f"device is {device!r:.100}; give cpu, cuda or cuda:0.") from None
        if kind == "cuda" and not torch.cuda.is_available():
            raise self.error(f"device is '{device}', but this machine has no GPU that torch can use; leave it out.")
        return device

    def _load(self, path: str) -> tuple[Any, Any]:
        """The model at `path` and its tokenizer, on the CPU."""
        raise NotImplementedError

    def _suit_the_processor(self) -> None:
        if self.dtype == "auto":
            processor.suited(self._model)
        elif line := processor.note(f"reward '{self.__name__}', dtype {self.dtype}", getattr(torch, self.dtype)):
            logger.warning(line)

    def _settle(self) -> None:
        """Called once, as soon as model and tokenizer are there."""

    def _prepare(self) -> None:
        """Loads what was not handed in, and settles what the options leave open."""
        if self._ready:
            return
        if self._model is None and self.path is not None:
            self.device = self.device or process_device()
            self._model, self._tokenizer = self._load(self.path)
            if torch.device(self.device).type == "cpu":
                self._suit_the_processor()
            self._model.to(self.device)
        elif self.device is None:
            self.device = getattr(self._model, "device", "cpu")
        if isinstance(self._model, torch.nn.Module) and self.path is not None:
            self._model.eval().requires_grad_(False)
        self._tokenizer = copy.copy(self._tokenizer) if self.path else copy.deepcopy(self._tokenizer)
        self._settle()
        self._ready = True

    def _rendered(self, messages: Sequence[Message], row: Mapping[str, Any], **how: Any) -> str:
        """The messages in the tokenizer's chat template; see `rewards.rendering.render`."""
        try:
            return render(self._tokenizer, messages, row, **how)
        except TemplateError as error:
            raise self.error(f"the chat template of '{self.path}' {error}.") from error

    def _longest(self) -> int:
        """The longest text in tokens: what the model, its tokenizer and `max_length` all allow."""
        # RoBERTa numbers positions from pad + 1, so its tokenizer's limit is the true one; some tokenizers have none.
        positions = getattr(self._model.config, "max_position_embeddings", None) or 10**9
        longest = int(min(self._tokenizer.model_max_length, positions, 10**9))
        return min(self.max_length or longest, longest)

    def _in_batches(
        self, rows: Sequence[Row], length: Callable[[Row], int], score: Callable[[list[Row]], torch.Tensor]
    ) -> list[float]:
        """`score` (B rows -> B numbers) over all rows, like lengths together for less padding; in the rows' order."""
        scores = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: length(rows[i]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for i, value in zip(batch, score([rows[i] for i in batch]).tolist(), strict=True):
                scores[i] = value
        return scores

    def _pad(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        """Right-padded input_ids and attention_mask, both (B, T); the mask comes from the lengths, not the ids."""
        ids = [torch.tensor(row, dtype=torch.long) for row in rows]
        padded = pad_sequence(ids, batch_first=True, padding_value=self._tokenizer.pad_token_id or 0)
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        return {"input_ids": padded.to(self.device), "attention_mask": mask.to(self.device)}


@torch.no_grad()
def padding_matters(model: Any, rows: Sequence[torch.Tensor], pad: int) -> bool:
    """Whether scores change by more than rounding when texts, ids (T,) each, are padded on the right to go through
    a sequence classifier together: a head that reads the last position then reads padding."""
    ids = pad_sequence(list(rows), batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    training = model.training
    model.eval()
    alone = [model(input_ids=row[None], attention_mask=torch.ones_like(row)[None]).logits for row in rows]
    wanted, found = torch.cat(alone).float(), model(input_ids=ids, attention_mask=mask).logits.float()
    model.train(training)
    exact = model.dtype == torch.float32 and getattr(model, "quantization_method", None) is None
    return not bool((found - wanted).abs().max() <= (1e-3 if exact else 0.2) * wanted.abs().max())


def process_device() -> torch.device:
    """The device of this process: each one loads its own model, onto its own device."""
    from accelerate import PartialState

    device: torch.device = PartialState().device
    return device


@contextmanager
def loading(path: str, name: str) -> Iterator[None]:
    """Inside, what goes wrong becomes one `RewardError` of the reward `name`, and models load whole."""
    if is_missing_folder(path):
        raise RewardError(f"Reward '{name}': cannot load '{path}': there is no such folder.")
    _check_whole(path, name)
    try:
        with _whole_weights():
            yield
    except RewardError:
        raise
    except Exception as error:  # half a file fails in many ways: SafetensorError, KeyError, tokenizers' own, …
        misfit = "size mismatch" in str(error)
        ours = isinstance(error, NotImplementedError)  # PEFT's, of a setting that it does not know
        if "out of memory" in str(error) or isinstance(error, RuntimeError) and not (misfit or ours):
            raise  # no memory, no device
        if misfit:
            first = str(error).strip().splitlines()[1].strip()
            raise RewardError(f"Reward '{name}': the adapter '{path}' does not fit its base: {first}") from error
        kind = "" if os.path.isdir(path) else " (no such folder, and no model of that name in the cache or on the hub)"
        raise RewardError(f"Reward '{name}': cannot load '{path}'{kind}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it comes with Python code of its own, and a reward never runs that (no trust_remote_code)."
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _check_whole(path: str, name: str) -> None:
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise RewardError(
                f"Reward '{name}': {file} is truncated or damaged ({str(error)[:200]}); copy or download it again."
            ) from None


def check_complete(info: dict[str, Any], path: str, name: str, but: Callable[[str], bool]) -> None:
    """Raises `RewardError` for weights that no file had and that would be random; `but` says which may miss."""
    if missing := sorted(key for key in info["missing_keys"] if not but(key)):
        raise RewardError(
            f"Reward '{name}': '{path}' lacks {len(missing)} weights ({missing[0]}), which would be random; copy, "
            "download or make the model again."
        )


def is_head(key: str) -> bool:
    """Whether a weight belongs to the last layer of a sequence classifier, which lies with the adapter."""
    return any(head in key.split(".") for head in HEADS)


def load_options(dtype: str) -> dict[str, Any]:
    """What every `from_pretrained` gets: safetensors only, no code that comes with the model."""
    return {"use_safetensors": True, "trust_remote_code": False, "dtype": dtype}


def adapter_config(path: str) -> dict[str, Any] | None:
    """The configuration of the adapter at `path`; None where there is no adapter."""
    file = find_adapter_config_file(path)
    if file is None:
        return None
    try:
        found = json.loads(Path(file).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} does not hold a JSON object")
    if problem := adapter_problem(found):
        raise ValueError(f"the adapter {problem}")
    return found


def load_adapter(
    path: str, name: str, config: dict[str, Any], model_class: Any, options: dict[str, Any]
) -> tuple[Any, Any]:
    """The adapter at `path` on its base, in evaluation mode on the CPU, and its tokenizer (else that of the base)."""
    from peft import PeftModel

    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise RewardError(
            f"Reward '{name}': {path}/adapter_config.json names no base model (base_model_name_or_path); train the "
            "adapter again, or write its base there."
        )
    if cached_file(path, ADAPTER_WEIGHTS, _raise_exceptions_for_missing_entries=False) is None:
        raise RewardError(f"Reward '{name}': '{path}' has no {ADAPTER_WEIGHTS}; a pickle is never read.")
    try:
        if is_missing_folder(base):
            raise OSError("there is no such folder")
        model, info = model_class.from_pretrained(
            base, revision=config.get("revision"), output_loading_info=True, **options
        )
    except OSError as error:
        raise RewardError(
            f"Reward '{name}': the adapter '{path}' stands on the base '{base}', which cannot be loaded from "
            f"{os.getcwd()}: {_first_line(error)}"
        ) from error
    check_complete(info, base, name, is_head)
    has_tokenizer = cached_file(path, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False) is not None
    tokenizer = AutoTokenizer.from_pretrained(path if has_tokenizer else base, trust_remote_code=False)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    return PeftModel.from_pretrained(model, path, use_safetensors=True).eval(), tokenizer


@contextmanager
def _whole_weights() -> Iterator[None]:
    """Inside, models load whole on every process, though a sharding trainer (ZeRO-3, FSDP) has set itself up."""
    from accelerate.state import AcceleratorState

    before = os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING")
    plugin: Any = AcceleratorState().deepspeed_plugin if AcceleratorState._shared_state else None
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # true gives real weights to the first process only
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the base has no score head, and need not have: it comes with the adapter
    try:
        if plugin is not None:
            with plugin.zero3_init_context_manager(enable=False):
                yield
        else:
            yield
    finally:
        logging.set_verbosity(verbosity)
        if before is None:
            del os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"]
        else:
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = before
