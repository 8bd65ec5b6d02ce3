"""What the stages take for true of a language model, tried on the model itself before anything long runs.

- Causal: what it says of a token depends on nothing that comes later. An encoder's attention sees the whole text.
- One head: TRL computes log-probabilities from the last hidden states and the output embeddings alone
  (`add_fused_lm_head`), so nothing that it does not know of may stand between the two.
- Padding on the left, as rollouts have it, changes nothing, nor does the cache with which a model writes.

Two short rows go through the model as the stages run it, and each by itself as transformers runs it.
"""

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import add_fused_lm_head

from pipeline.errors import UserError
from pipeline.models.adapters import POLICY, base_of
from pipeline.models.structure import eval_mode, is_product, kind_of, positions, runs_on_text, trunk_of
from rewards.model_based import padding_matters

_LENGTHS = (9, 5)  # tokens of the two rows
_NEW = 3  # tokens that are written
_ORDERS = 16  # of the tokens of a row
# The largest difference that is put down to rounding, in nats: 0.001 and 0.5 where log-probabilities are about -10
_EXACT, _SIXTEEN_BITS = 1e-4, 0.05


@torch.no_grad()
def check_scores(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, who: str) -> None:
    """Raises `UserError` when `model`, a classifier with another head than `score` on the last token, cannot learn
    from texts of any length, or when padding on the right, as the texts of a batch have it, changes its scores."""
    rows = rows_of(tokenizer, base_of(model))
    with eval_mode(model), runs_on_text(model):
        _while_learning(model, rows[:1], who)
        if padding_matters(model, rows, tokenizer.pad_token_id):
            raise UserError(
                f"{who} pads texts on the right, and padding changes the scores of {kind_of(model)}, which reads them "
                "elsewhere: take another architecture"
            )


@torch.no_grad()
def check(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    who: str,
    args,
    writes: bool = False,
    dropout: bool = True,
) -> None:
    """Raises `UserError` when `model` is not what a stage takes it for.

    Args:
        who: the stage, for the error.
        args: its settings.
        writes: whether it lets the model write.
        dropout: whether it may be on, so that a model says something else while it learns.
    """
    base = base_of(model)
    if base.get_output_embeddings() is None or trunk_of(model) is base:
        raise UserError(f"{who} takes a decoder with an output layer on top, which {kind_of(model)} does not have")
    rows = rows_of(tokenizer, base)
    with eval_mode(model), runs_on_text(model):
        alone = [_logprobs(model(input_ids=row[None], use_cache=False).logits[0]) for row in rows]
        _check_causal(model, rows[0], alone[0], who)
        _check_head(model, rows[0], alone[0], who)
        _check_balance(model, rows[0], args)
        _while_learning(model, rows[:1], who, use_cache=False)
        if not dropout:
            _check_learning(model, rows[0], who)
        if writes:
            batch = _left_padded(rows, tokenizer.pad_token_id)
            _check_padding(model, batch, alone, who)
            _check_writing(model, batch, rows, tokenizer, who)


def check_adapter(model: PeftModel, name: str = POLICY) -> None:
    """Raises `UserError` where an adapter cannot be what it should. Call it before the first pass.

    It stands on what is a linear layer by its type alone. Or PEFT could not read back what it saves: some
    architectures have their weights under other names in files, and PEFT puts an adapter's names through the same
    translation.
    """
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        return  # sharded by DeepSpeed ZeRO-3: there is nothing to look at
    for where, layer in base_of(model).named_modules():
        if isinstance(layer, BaseTunerLayer) and not is_product(layer.get_base_layer()):
            raise UserError(
                f"PEFT takes {where} of {kind_of(model)} for a plain linear layer, which it is not: give "
                f"lora_target_modules without {where.split('.')[-1]}"
            )
    result = set_peft_model_state_dict(model, get_peft_model_state_dict(model, adapter_name=name), adapter_name=name)
    lost = [key for key in result.missing_keys if "lora_" in key and name in key.split(".")]
    if lost:
        layer = lost[0].split(".lora_")[0].split(".")
        raise UserError(
            f"PEFT could not read an adapter on {'.'.join(layer[-3:])} of {kind_of(model)} back from its file: give "
            f"lora_target_modules without {layer[-1]} there"
        )


def _check_causal(model, row: Tensor, alone: Tensor, who: str) -> None:
    other = torch.cat([row[:-1], row[:1]])
    changed = _logprobs(model(input_ids=other[None], use_cache=False).logits[0])
    if _differ(changed[:-1], alone[:-1], model):
        raise UserError(
            f"{who} takes a decoder, but what {kind_of(model)} says of a token depends on those after it, as in an "
            "encoder (a model of BERT's kind is a decoder with is_decoder: true in its config.json)"
        )


def _check_head(model, row: Tensor, alone: Tensor, who: str) -> None:
    try:
        said = _by_trl(model, row).log_probs[0]
    except Exception as error:
        raise _refusal(
            error, f"{who} takes log-probabilities as TRL computes them, and {kind_of(model)} cannot"
        ) from None
    if _differ(said[:, None], alone[:-1].gather(1, row[1:, None]), model):
        raise UserError(
            f"{who} takes log-probabilities as TRL computes them, from the last hidden states and the output "
            f"embeddings, but {kind_of(model)} computes something else between the two: take another architecture"
        )


def _check_balance(model, row: Tensor, args) -> None:
    """Where TRL adds the loss that keeps experts equally busy; see `aux_loss_enabled` of its trainers."""
    config, coefficient = base_of(model).config.get_text_config(), getattr(args, "router_aux_loss_coef", None)
    if coefficient is None:
        coefficient = getattr(config, "router_aux_loss_coef", 0.0)
    if coefficient and hasattr(config, "output_router_logits"):
        try:
            _by_trl(model, row, output_router_logits=True)
        except Exception as error:
            raise _refusal(
                error,
                f"TRL adds a loss for the balance of experts, and {kind_of(model)} has none to compute it from",
                "set router_aux_loss_coef: 0.0",
            ) from None


def _while_learning(model, rows: list[Tensor], who: str, **options):
    """What a model in training mode says of rows of one length; some take texts of one length alone (Reformer)."""
    ids = torch.stack(rows)
    with torch.random.fork_rng([ids.device] if ids.is_cuda else []):
        model.train()
        try:
            return model(input_ids=ids, **options)
        except Exception as error:
            raise _refusal(error, f"{who} trains on texts of any length, and {kind_of(model)} cannot") from None
        finally:
            model.eval()


def _check_learning(model, row: Tensor, who: str) -> None:
    """Some models compute otherwise while they learn: PhiMoE draws one of two experts that are nearly alike, which
    shows in one of many tokens."""
    drawn = torch.Generator().manual_seed(0)
    rows = [row[torch.randperm(len(row), generator=drawn).to(row.device)] for _ in range(_ORDERS)]
    found = _logprobs(_while_learning(model, rows, who, use_cache=False).logits)
    wanted = _logprobs(model(input_ids=torch.stack(rows), use_cache=False).logits)
    if _differ(found.flatten(0, 1), wanted.flatten(0, 1), model):
        raise UserError(
            f"{who} trains on what the model wrote, and {kind_of(model)} says something else of a text while it "
            "learns, with dropout off: take another architecture"
        )


def _by_trl(model, row: Tensor, **options):
    """What TRL's fused head says of a row."""
    base = base_of(model)
    own = vars(base).get("forward")
    add_fused_lm_head(base)
    try:
        ids = row[None]
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True, **options)
    finally:
        del base.forward
        if own is not None:
            base.forward = own


def _refusal(error: Exception, sentence: str, advice: str = "take another architecture") -> Exception:
    if "out of memory" in str(error):
        return error
    why = " ".join(f"{type(error).__name__}: {error}".split())
    return UserError(f"{sentence} ({why:.200}): {advice}")


def _check_padding(model, batch: dict[str, Tensor], alone: list[Tensor], who: str) -> None:
    given = positions(model, batch["attention_mask"])
    padded = _logprobs(model(**batch, **given, use_cache=False).logits)
    if any(_differ(padded[i, -len(row) :], row, model) for i, row in enumerate(alone)):
        raise UserError(
            f"{who} pads prompts on the left, and padding changes what {kind_of(model)} says: take an architecture "
            "that passes over it"
        )


def _check_writing(model, batch: dict[str, Tensor], rows: list[Tensor], tokenizer, who: str) -> None:
    base = base_of(model)
    before, base.generation_config = base.generation_config, GenerationConfig()
    config = GenerationConfig(max_new_tokens=_NEW, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    config.return_dict_in_generate = config.output_logits = True
    try:
        written = model.generate(**batch, generation_config=config)
    except Exception as error:
        raise _refusal(error, f"{who} lets the model write, and {kind_of(model)} cannot") from None
    finally:
        base.generation_config = before
    logits = torch.stack(written.logits, dim=1)  # (B, N, V)
    for row, ids, said in zip(rows, written.sequences[:, -logits.shape[1] :], _logprobs(logits), strict=True):
        whole = torch.cat([row, ids[:-1]])
        alone = _logprobs(model(input_ids=whole[None], use_cache=False).logits[0])
        if _differ(said, alone[len(row) - 1 :], model):
            raise UserError(
                f"{who} needs the probabilities of what the model wrote, and {kind_of(model)} writes by others than "
                "it gives for the same text at once: take another architecture"
            )


def rows_of(tokenizer: PreTrainedTokenizerBase, base: PreTrainedModel) -> list[Tensor]:
    """Two rows of ordinary tokens: none that ends a text, or stands for an image."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    known = min(len(tokenizer), base.get_input_embeddings().weight.shape[0])
    ordinary = torch.tensor([i for i in range(known) if i not in special] or range(known))
    drawn = torch.Generator().manual_seed(0)
    return [ordinary[torch.randint(len(ordinary), (n,), generator=drawn)].to(base.device) for n in _LENGTHS]


def _left_padded(rows: list[Tensor], pad_token_id: int) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=pad_token_id) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (width - len(row), 0)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _logprobs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1)


def _differ(found: Tensor, wanted: Tensor, model) -> bool:
    """Whether log-probabilities (T, V) are apart by more than rounding.

    In 16 bits, where a rounding can send a token to another expert, that has to be so at most positions.
    """
    base = base_of(model)
    exact = base.dtype == torch.float32 and getattr(base, "quantization_method", None) is None
    apart = (found - wanted).abs().flatten(1).median(dim=1).values  # at each position
    apart = apart.max() if exact else apart.median()
    return not bool(apart <= (_EXACT if exact else _SIXTEEN_BITS) * wanted.abs().median())
