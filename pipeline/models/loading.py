"""Tokenizer, base model, quantisation and adapters: everything that is read from a model folder or the Hub.

A *stage folder* holds a LoRA adapter and names its base in `adapter_config.json`. It may be given wherever a model or
an adapter is asked for. Weights are read from safetensors only.
"""

import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available
from trl.trainer.reward_trainer import suppress_seqcls_warning

from pipeline.config import ModelArguments, check, tell_cost
from pipeline.errors import UserError, shortened
from pipeline.models import chat_templates
from pipeline.models.adapter_files import (
    HEAD,
    check_shares_base,
    check_task,
    difference,
    does_not_fit,
    leave_output,
    name_base,
    of_lora,
    read_head,
    read_settings,
    read_weights,
)
from pipeline.models.adapters import base_of
from pipeline.models.auto_class import auto_classes
from pipeline.models.ends import end_of_turn, say_stops
from pipeline.models.folders import Stage, resolve_model, resolve_stage
from pipeline.models.precision import models_on_gpu, quantization, resolve_dtype
from pipeline.models.quantized import never_repack
from pipeline.models.sharding import read_whole
from pipeline.models.structure import kind_of, name_trunk
from pipeline.safety.console import say
from pipeline.safety.reading import read_json
from pipeline.safety.weights import ADAPTER_WEIGHTS, check_safetensors
from rewards import open_ended
from rewards.foreign import HEADS
from rewards.model_based import is_head

_HEAD = (
    "is the model's output layer, whose weights TRL multiplies by itself, so that LoRA matrices on it would not learn"
)
# Tokens that models ship for padding, or that stand unused, in the order of preference.
PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")


def load_tokenizer(
    stage: Stage | str, args: ModelArguments | None = None, config: Any = None, needs_end: bool = True
) -> PreTrainedTokenizerBase:
    """The tokenizer of a stage (its own when it has one, otherwise its base's), with a pad token. It ends no text by
    itself: a prompt is to be gone on with.

    Args: config: of a trainer; what it says of eos_token and pad_token is done.

    Raises:
        UserError: no tokenizer there, with `needs_end` one without an end-of-sequence token, or settings that do not
            fit it.
    """
    args = args or ModelArguments()
    stage = resolve_stage(stage) if isinstance(stage, str) else stage
    own = stage.adapter and Path(stage.adapter, "tokenizer_config.json").is_file()
    path = stage.adapter if own else stage.base
    options = {} if own else {"revision": args.model_revision or "main"}
    with _readable(path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=args.trust_remote_code, **options)
    if args.chat_template_path:
        chat_templates.take(tokenizer, args.chat_template_path, new_tokens=not args.use_peft)
    for key in ("eos_token", "pad_token"):
        if (token := getattr(config, key, None)) is not None:
            check(token in tokenizer.get_vocab(), key, token, f"a token that the tokenizer in {path} has")
            setattr(tokenizer, key, token)
    if needs_end and tokenizer.eos_token is None:
        raise UserError(
            f"the tokenizer in {path} has no end-of-sequence token, so a model could never learn to stop: "
            "set eos_token in its tokenizer_config.json"
        )
    open_ended(tokenizer, [end_of_turn(tokenizer)])
    if tokenizer.pad_token is None:
        vocabulary = tokenizer.get_vocab()
        free = [token for token in PAD_TOKENS if token in vocabulary and token != tokenizer.eos_token]
        tokenizer.pad_token = free[0] if free else tokenizer.eos_token
        kind = "which it has and which is not its end token" if free else "its end token: it has no other to spare"
        say(f"note: the tokenizer in {path} has no pad token; padding with {tokenizer.pad_token}, {kind}")
    return tokenizer


def load_config(args: ModelArguments, base: str) -> PreTrainedConfig:
    """The config of a model folder or Hub name; a `UserError` where there is none to read."""
    with _readable(base, "model"):
        return AutoConfig.from_pretrained(
            base, revision=args.model_revision or "main", trust_remote_code=args.trust_remote_code
        )


def load_base(
    args: ModelArguments,
    for_: str = "causal",
    base: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PreTrainedModel:
    """The base model without any adapter.

    Args:
        args: precision, quantisation, attention and revision.
        for_: `causal` for a language model; `scores` for one score per sequence, with a small random score head
            (when the folder is a saved reward model, with its own head).
        base: folder or Hub name; by default the base that `args` names.
        tokenizer: its pad token is written into the model's config, and its vocabulary is checked to fit.

    Raises:
        UserError: no such model, pickled weights, or a tokenizer with more tokens than the model has embeddings.
    """
    base = base or resolve_model(args).base
    options: dict[str, Any] = {
        "revision": args.model_revision or "main",
        "dtype": resolve_dtype(args),
        "attn_implementation": args.attn_implementation,
        "trust_remote_code": args.trust_remote_code,
        "use_safetensors": True,
        "quantization_config": quantization(args),
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # not ignored: refused below, in words
    }
    if options["quantization_config"] is not None and models_on_gpu():
        options["device_map"] = {"": PartialState().local_process_index}
    check_attention(args)
    if not models_on_gpu():
        tell_cost(f"dtype: {args.dtype}", options["dtype"])
    if for_ == "scores":
        options["num_labels"] = 1
    for auto in auto_classes(load_config(args, base), for_, base):
        with _readable(base, "model"), read_whole(), suppress_seqcls_warning():
            model, found = auto.from_pretrained(base, **options)
        if for_ == "scores" or not found["missing_keys"]:
            break
    if odd := sorted(found["mismatched_keys"]):
        name, saved, wanted = odd[0]
        raise UserError(
            f"{base}: {name} has the shape {list(saved)} in its safetensors, but {list(wanted)} by its config.json: "
            "the two files do not belong together"
        )
    fresh = fresh_parts(model, found["missing_keys"]) if for_ == "scores" else set()
    if missing := sorted(key for key in found["missing_keys"] if not fresh & set(key.split("."))):
        raise UserError(
            f"{base}: {len(missing)} weights are missing in its safetensors ({missing[0]}), which would be random: "
            "copy, download or make the model again"
        )
    if for_ == "scores" and hasattr(model, "score") and not has_own_head(base):  # on a decoder
        init_score_head(model)
    model.fresh_parts = sorted(fresh)
    name_trunk(model)
    check_targets(model, args)
    never_repack(model)
    if tokenizer is not None:
        if args.chat_template_path and not args.use_peft:
            chat_templates.make_room(model, tokenizer)
        rows = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            raise UserError(f"{base}: the tokenizer has {len(tokenizer)} tokens but the model only {rows} embeddings")
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        if for_ == "causal":
            say_stops(model, tokenizer)
    return model


def check_attention(args: ModelArguments) -> None:
    """Raises `UserError` when the asked for attention needs a package that is not here."""
    there = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    if args.attn_implementation in there and not there[args.attn_implementation]():
        raise UserError(
            f"attn_implementation: {args.attn_implementation} needs a GPU and the package flash-attn, which are not "
            "both here: leave it out, or take sdpa"
        )


def check_targets(model: PreTrainedModel, args: ModelArguments) -> None:
    """Raises `UserError` when one of `lora_target_modules` is no module of the model."""
    names = [name for name, _ in model.named_modules()]
    for target in args.lora_target_modules if args.use_peft else []:
        if target != "all-linear" and not any(name == target or name.endswith(f".{target}") for name in names):
            linear = sorted({name.split(".")[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
            raise UserError(
                f"lora_target_modules: {model.name_or_path} has no module {target}; its linear ones are "
                f"{', '.join(linear)}, or give all-linear"
            )
    heads = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    for target in args.lora_target_modules if args.use_peft else []:
        if any(name == target or name.endswith(f".{target}") for name in heads):
            raise UserError(f"lora_target_modules: {target} {_HEAD}: leave it out")


def has_own_head(base: str) -> bool:
    """Whether a local folder holds a whole sequence-classification model (a fully fine-tuned reward model)."""
    config = Path(base, "config.json")
    if not config.is_file():
        return False
    named = read_json(config).get("architectures")
    return isinstance(named, list) and any("SequenceClassification" in str(name) for name in named)


def fresh_parts(model: PreTrainedModel, missing: Iterable[str]) -> set[str]:
    """Names of the modules that a base has no weights for and that a reward model brings: its head, and with an
    encoder also the pooler between the two. They are trained and saved whole with the adapter."""
    head = {name for name, child in model.named_children() if child is not model.base_model}
    return {part for key in missing for part in key.split(".")[:-1] if part in head or part == "pooler"}


def init_score_head(model: PreTrainedModel) -> None:
    """Draws the head from N(0, (0.1 / sqrt(hidden + 1))²): all scores start near 0, but no two are equal."""
    weight = model.score.weight
    torch.nn.init.normal_(weight, std=0.1 / (weight.shape[1] + 1) ** 0.5)


def lora_config(args: ModelArguments, task_type: str | TaskType = "CAUSAL_LM") -> LoraConfig:
    """LoRA settings for `CAUSAL_LM`, `SEQ_CLS` or `TOKEN_CLS`; the latter two save the score head with the adapter."""
    targets = args.lora_target_modules
    # PEFT itself adds the score head to modules_to_save for SEQ_CLS and TOKEN_CLS (a test holds it to that).
    return LoraConfig(
        task_type=TaskType(task_type),
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=targets[0] if targets == ["all-linear"] else list(targets),
        bias="none",
    )


def load_adapter(model: PreTrainedModel, adapter: str, trainable: bool = False, name: str = "default") -> PeftModel:
    """Puts the adapter in a stage folder on `model`.

    Raises:
        UserError: it does not fit the base, weights are missing, it is for another task, or a score head is wanted and
            not in the file.
    """
    check_safetensors(Path(adapter), "adapter")
    if "SequenceClassification" in type(model).__name__:
        check_score_head(adapter)
    else:
        check_task(adapter)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        try:
            found = PeftModel.from_pretrained(model, adapter, is_trainable=trainable, adapter_name=name)
        except Exception as error:  # half a file fails in many ways
            raise does_not_fit(adapter, model, error) from None
    name_base(found.peft_config[name], model)
    return found


def check_score_head(adapter: str) -> None:
    """Raises `UserError` when the adapter was saved without its score head: scores would be random."""
    weights = Path(adapter) / ADAPTER_WEIGHTS
    try:
        with safe_open(weights, framework="pt") as file:
            names = file.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights} is not a whole safetensors file ({str(error)[:200]}): save it again") from None
    if not any(is_head(name) for name in names):
        raise UserError(
            f"{adapter} is no reward model: its adapter was saved without a score head, so that its scores would "
            "be random; give the folder of the reward-model stage"
        )


def start_score_adapter(model: PreTrainedModel, args: ModelArguments, start: str | None) -> PeftModel:
    """A new SEQ_CLS LoRA adapter with a score head on `model`, which starts as the adapter `start`: that of a language
    model, or of a reward model, whose head is then gone on from as well.

    Raises:
        UserError: `start` cannot share a base, or is of another model.
    """
    whole = sorted(set(model.fresh_parts) - {*HEADS}) or None  # PEFT adds the heads by itself
    if start is None:
        config = lora_config(args, TaskType.SEQ_CLS)
        config.modules_to_save = whole
        return get_peft_model(model, config)
    check_safetensors(Path(start), "adapter")
    check_shares_base(start)
    check_task(start, "SEQ_CLS")
    head = {f"{HEAD}{name}": value for name, value in read_head(start).items()}
    if head and {name: x.shape for name, x in head.items()} != {f"{HEAD}weight": model.score.weight.shape}:
        raise UserError(f"{start} has a score head of other outputs than one: give a reward model, or an SFT adapter")
    weights = read_weights(Path(start) / ADAPTER_WEIGHTS)
    weights = of_lora({key: x for key, x in weights.items() if key not in head}, model, start)
    config = read_settings(start, "SEQ_CLS", args.lora_dropout)
    config.modules_to_save = whole
    if left := leave_output(config, weights, model):
        say(f"note: {start} adapts {left} too, which a reward model does not have: that part is left out")
    try:
        peft_model = get_peft_model(model, config)
    except (TypeError, ValueError) as error:
        _check_names(weights, model, start)
        raise does_not_fit(start, model, error) from None
    if odd := difference(peft_model, weights):
        _check_names(weights, base_of(peft_model), start)
        raise UserError(f"adapter {start} does not fit the base {model.name_or_path}: they differ at {odd}")
    own = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    set_peft_model_state_dict(peft_model, own | weights | head)
    return peft_model


def _check_names(weights: dict[str, Tensor], model: PreTrainedModel, start: str) -> None:
    """Raises `UserError` when an adapter stands on layers of which a classifier has none by that name: transformers
    may take the text's part alone for a language model, and the whole model for a classifier (Qwen 3.5)."""
    layers = {key.split(".lora_")[0].removeprefix("base_model.model.") for key in weights}
    if layers.isdisjoint(name for name, _ in model.named_modules()):
        raise UserError(
            f"adapter {start} does not fit {type(model).__name__}, as which transformers loads {kind_of(model)} for "
            f"scores: layers have other names there than in the language model. Start from the base, with "
            f"model_name_or_path: {model.name_or_path}"
        )


def load_scorer(path: str, args: ModelArguments | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The reward model in a stage folder, ready to score, and its tokenizer.

    Raises:
        UserError: its score head is not among the saved weights.
    """
    args = args or ModelArguments()
    stage = resolve_stage(path)
    tokenizer = load_tokenizer(stage, args)
    if stage.adapter is None and not has_own_head(stage.base):
        raise UserError(f"{path} is no reward model: it has no score head; give the folder of the reward-model stage")
    model = load_base(args, for_="scores", base=stage.base, tokenizer=tokenizer)
    if stage.adapter:
        model = load_adapter(model, stage.adapter)
    return model.eval(), tokenizer


@contextmanager
def _readable(path: str, what: str):
    """Turns the loaders' own errors into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # half a file fails in many ways: SafetensorError, TypeError, tokenizers' own, …
        if "out of memory" in str(error):
            raise
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{path} brings Python code of its own (auto_map in its config.json), which runs only with "
                "trust_remote_code: true: read that code first, or take another model"
            ) from None
        first = shortened(" ".join(str(error).split()), 300) or type(error).__name__
        place = "in this folder" if Path(path).is_dir() else "as a folder here, and the Hub does not give it"
        raise UserError(f"no usable {what} {path} {place}: {first}") from None
