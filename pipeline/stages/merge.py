"""Merging: base + adapter -> one whole model that plain Transformers loads.

    W' = W + (lora_alpha / r) B A        (Hu et al. 2021, arXiv 2106.09685, section 4.1)

The sum is taken in float32. A base that was trained on in 4 or 8 bits is first de-quantized, so that the sum is over
the very weights that the adapter was trained on. What was written is loaded again and compared with the adapter.
"""

import dataclasses
import gc
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from pipeline.config import DTYPES, ModelArguments, check, setting, settle_dtype
from pipeline.errors import UserError
from pipeline.hub.card import write_card
from pipeline.ilql.network import has_shift
from pipeline.models import loading as models
from pipeline.models import precision
from pipeline.models.ends import stop_token_ids
from pipeline.models.folders import Stage, check_fingerprint, resolve_stage
from pipeline.runs import claim
from pipeline.runs.folder import CONFIG, SUMMARY, RunFolder
from pipeline.safety.console import say
from pipeline.safety.reading import read_json, read_yaml
from pipeline.safety.weights import ADAPTER_CONFIG, read_adapter_config

# How far the merged model's outputs (log-probabilities of tokens, nats; scores) may be from the adapter's.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.5, torch.float16: 0.1}
QUANTIZED = 0.5  # its layers round what goes through them, to 8 or 16 bits
ROWS, LENGTH = 4, 32  # of the texts on which the two are compared
# Settings of the run that decide its weights. Never trust_remote_code: a run may come from somebody else.
KEPT = ("dtype", "model_revision", "load_in_4bit", "load_in_8bit", "use_bnb_nested_quant")


@dataclass
class MergeArguments:
    """What to merge, and where to."""

    run: str | None = setting(None, "Folder of the run whose adapter is merged, e.g. runs/tiny/ppo.")
    output: str | None = setting(None, "Folder for the whole model. It must not hold anything yet.")
    dtype: str = setting("auto", "Precision of the merged weights: float32, bfloat16, float16, or auto: as trained.")
    trust_remote_code: bool = setting(False, "Run Python code that comes with the model. Leave it off.")

    def __post_init__(self):
        check(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        self.dtype = settle_dtype(self.dtype)


class Merged(NamedTuple):
    """What came of it. `difference`: the largest one from the adapter, in nats for a policy, in scores for a
    reward model."""

    folder: Path
    dtype: torch.dtype
    difference: float


@claim.ends_with
def merge(args: MergeArguments) -> Merged:
    """Writes the whole model: weights in safetensors, tokenizer, generation config, card.

    The folder is filled at once, when all has gone well.

    Raises:
        UserError: no adapter there, one that cannot be merged, or `output` holds something already.
    """
    # 1. What can fail cheaply fails first
    stage, kind = find(args)
    run_args = run_arguments(Path(args.run), args)
    tokenizer = models.load_tokenizer(stage, run_args)
    output = RunFolder.create(args.output).path

    # 2. What the adapter says, on the base as it was in training
    base = models.load_base(run_args, kind, base=stage.base, tokenizer=tokenizer)
    quantized = getattr(base, "is_quantized", False)
    trained_in = precision.resolve_dtype(run_args) if quantized else next(base.parameters()).dtype
    dtype = trained_in if args.dtype == "auto" else getattr(torch, args.dtype)
    texts = sample_ids(len(tokenizer))
    tied = is_tied_where_changed(base, stage.adapter)
    model = models.load_adapter(base, stage.adapter).eval()
    wanted = outputs(model, texts)
    if quantized:
        say("warning: the base was quantized in training. It is de-quantized here: the result is several times as big")
        say("         as that base, and no finer.")
    if quantized or tied:
        base = models.load_base(run_args, kind, base=stage.base, tokenizer=tokenizer)
        base = base.dequantize() if quantized else base
        if tied:
            untie(base)
        model = models.load_adapter(base, stage.adapter).eval()

    # 3. The sum in float32, rounded once at the end
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tied.*")  # see `untie`
        merged = _one_model(model.float(), stage.adapter).to(dtype)
    prepare_generation(merged, tokenizer)
    with tempfile.TemporaryDirectory(prefix=".merging-", dir=output.parent) as aside:
        merged.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        del model, merged, base
        gc.collect()

        # 4. What was written, loaded by plain Transformers, says what the adapter says
        auto = AutoModelForSequenceClassification if kind == "scores" else AutoModelForCausalLM
        whole = auto.from_pretrained(aside, dtype=dtype, trust_remote_code=args.trust_remote_code).eval()
        difference = (outputs(whole, texts) - wanted).abs().max().item()
        if not difference <= max(TOLERANCE[dtype], TOLERANCE[trained_in], QUANTIZED if quantized else 0.0):
            raise RuntimeError(f"the merged model differs from the adapter by {difference:.3g}: it was not kept")
        if Path(args.run, SUMMARY).is_file():
            write_card(args.run, aside)
        os.chmod(aside, 0o755)  # a temporary folder is closed to others
        os.replace(aside, output)
    unit = "in the score" if kind == "scores" else "nats in the log-probability of a token"
    say(f"The whole model lies in {output} ({str(dtype).removeprefix('torch.')}); from the adapter it differs by at")
    say(f"most {difference:.1e} {unit}, over {ROWS} random texts of {LENGTH} tokens.")
    return Merged(output, dtype, difference)


def find(args: MergeArguments) -> tuple[Stage, str]:
    """Base and adapter of the run, and what the model is for: causal or scores."""
    for key in ("run", "output"):
        if not getattr(args, key):
            raise UserError(f"{key} is not set: e.g. --run runs/tiny/ppo --output runs/tiny/merged")
    stage = resolve_stage(args.run)
    if stage.adapter is None:
        raise UserError(f"{args.run} holds no adapter ({ADAPTER_CONFIG} is missing): there is nothing to merge")
    if has_shift(args.run):
        raise UserError(
            f"{args.run} is a run of ILQL, whose Q and V shift the policy's logits at each token: a merged model "
            "would not have them. Decode with the run itself (docs/ilql.md)"
        )
    check_fingerprint(stage)
    kinds = {"CAUSAL_LM": "causal", "SEQ_CLS": "scores"}
    task = read_adapter_config(args.run).get("task_type") or "CAUSAL_LM"
    if task not in kinds:
        raise UserError(f"{args.run} is an adapter for {task}: a policy or a reward model can be merged, no other")
    return stage, kinds[task]


def run_arguments(run: Path, args: MergeArguments) -> ModelArguments:
    """The base as in training, from the run's config.yaml; in its own precision where there is none."""
    path = run / CONFIG
    found = read_yaml(path) if path.is_file() else {}
    kept = {key: found[key] for key in KEPT if found.get(key) is not None}
    summary = read_json(run / SUMMARY) if (run / SUMMARY).is_file() else {}
    if summary.get("dtype") in DTYPES:
        kept["dtype"] = summary["dtype"]  # what auto came to
    return dataclasses.replace(ModelArguments(**kept), trust_remote_code=args.trust_remote_code)


def is_tied_where_changed(base: PreTrainedModel, adapter: str) -> bool:
    """Whether the base's output layer is its embeddings, and the adapter changes one of the two."""
    config = read_adapter_config(adapter)
    changed = [*(config.get("target_modules") or []), *(config.get("modules_to_save") or [])]
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return False
    names = {name.split(".")[-1] for name, module in base.named_modules() if module is head or module is embeddings}
    return bool(names.intersection(changed))


def untie(base: PreTrainedModel) -> None:
    """Gives the base an output layer of its own: merging into its embeddings would change both."""
    head = base.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    base.config.get_text_config().tie_word_embeddings = False


def _one_model(model: PeftModel, adapter: str) -> PreTrainedModel:
    try:
        return model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        if "out of memory" in str(error):
            raise
        raise UserError(f"PEFT cannot merge {adapter} into its base: {' '.join(str(error).split())[:300]}") from None


def prepare_generation(model: PreTrainedModel, tokenizer) -> None:
    """The generation config knows where to stop and what to pad with, as the tokenizer of the run says it."""
    config = getattr(model, "generation_config", None)
    if not model.can_generate() or config is None:
        return
    stops = stop_token_ids(model, tokenizer)
    config.eos_token_id = stops[0] if len(stops) == 1 else stops
    config.pad_token_id = tokenizer.pad_token_id
    try:
        config.validate(strict=True)
    except ValueError:  # some bases have settings of sampling beside do_sample: false, which cannot be saved
        config.do_sample = True


def sample_ids(vocabulary: int) -> torch.Tensor:
    """Texts of random tokens, (ROWS, LENGTH), always the same."""
    return torch.randint(vocabulary, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def outputs(model: PreTrainedModel | PeftModel, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the tokens after the first, (N, T - 1); of a reward model the scores, (N, 1)."""
    ids = ids.to(model.device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().cpu()
    if logits.dim() == 2:
        return logits
    return logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None].cpu()).squeeze(-1)
