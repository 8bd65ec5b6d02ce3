"""Adapters that PEFT made, one for each of its settings, and what they must say: the table of the tests."""

import dataclasses
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import toy
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import ArrowConfig, BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from toy import AB, A, B, C, D
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pipeline.config import ModelArguments
from pipeline.models import loading as models

IDS, MASK = torch.tensor([[C, D, A, B, AB, A, B]]), torch.ones(1, 7, dtype=torch.long)
PLAIN, ALONE, NOWHERE = "plain", "alone", "nowhere"  # taken wherever adapters share a base; alone on one; not at all


class Case(NamedTuple):
    fate: str
    settings: dict
    says: str = ""  # the setting, as a refusal names it
    base: str = "llama"
    output: bool = False  # it is on the output layer as well, which TRL's trainers of language models refuse


def plain(base: str = "llama", output: bool = False, **settings) -> Case:
    return Case(PLAIN, settings, base=base, output=output)


def alone(says: str, base: str = "llama", **settings) -> Case:
    return Case(ALONE, settings, says, base)


def nowhere(says: str, **settings) -> Case:
    return Case(NOWHERE, settings, says)


CASES = {
    "r, lora_alpha": plain(r=3, lora_alpha=5),
    "rank_pattern, alpha_pattern": plain(rank_pattern={"q_proj": 3}, alpha_pattern={"v_proj": 7}),
    "use_rslora": plain(use_rslora=True),
    "use_dora": plain(use_dora=True),
    "lora_dropout": plain(lora_dropout=0.5),
    "lora_bias": plain(lora_bias=True),
    "task_type": plain(task_type=None),
    "target_modules, by the architecture": plain(target_modules=None),
    "target_modules, a pattern": plain(target_modules=r".*layers\.\d+\.self_attn\.(q|k)_proj"),
    "target_modules, all-linear": plain(target_modules="all-linear"),
    "target_modules, the embeddings": plain(target_modules=["q_proj", "embed_tokens"]),
    "target_modules, the output layer": plain(output=True, target_modules=["q_proj", "lm_head"]),
    "the same, tied": plain("tied", True, target_modules=["q_proj", "lm_head"]),
    "exclude_modules": plain(exclude_modules=["down_proj"]),
    "exclude_modules, a pattern": plain(exclude_modules=r".*layers\.1\..*"),
    "both": plain(output=True, exclude_modules=r".*layers\.1\..*", target_modules=["q_proj", "lm_head"]),
    "layers_to_transform": plain(layers_to_transform=[0, 2]),
    "layers_to_transform, one": plain(layers_to_transform=1, layers_pattern="layers"),
    "target_parameters": plain(target_modules=["q_proj"], target_parameters=["o_proj.weight"]),
    "target_parameters alone": plain(target_modules=[], target_parameters=["q_proj.weight", "down_proj.weight"]),
    "fan_in_fan_out": plain("gpt2", fan_in_fan_out=True, target_modules=["c_attn", "c_proj"]),
    "fan_in_fan_out, use_dora": plain("gpt2", fan_in_fan_out=True, target_modules=["c_attn"], use_dora=True),
    **{f"init_lora_weights {x}": plain(init_lora_weights=x) for x in (False, "gaussian", "eva", "orthogonal", "mica")},
    "bias all": alone("bias: all", bias="all"),
    "bias lora_only": alone("bias: lora_only", bias="lora_only"),
    "bias all, GPT-2": alone("bias: all", "gpt2", bias="all", fan_in_fan_out=True, target_modules=["c_attn"]),
    "trainable_token_indices": alone("trainable_token_indices", trainable_token_indices=[A, D]),
    "trainable_token_indices, tied": alone("trainable_token_indices", "tied", trainable_token_indices=[A, D]),
    "modules_to_save": alone("modules_to_save: embed_tokens", modules_to_save=["embed_tokens"]),
    "modules_to_save, a norm": alone("modules_to_save: norm", modules_to_save=["norm"]),
    "modules_to_save, both ends": alone("modules_to_save: embed", "tied", modules_to_save=["embed_tokens", "lm_head"]),
    "init_lora_weights pissa": alone("init_lora_weights: pissa", init_lora_weights="pissa"),
    "init_lora_weights olora": alone("init_lora_weights: olora", init_lora_weights="olora"),
    "init_lora_weights pissa_niter_4": nowhere("init_lora_weights: pissa_niter_4", init_lora_weights="pissa_niter_4"),
    "init_lora_weights lora_ga": nowhere("init_lora_weights: lora_ga", init_lora_weights="lora_ga"),
    "ensure_weight_tying": nowhere(
        "ensure_weight_tying", target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True
    ),
    "layer_replication": nowhere("layer_replication", layer_replication=[[0, 2], [1, 3]]),
    "alora_invocation_tokens": nowhere("alora_invocation_tokens", alora_invocation_tokens=[A, B]),
    "velora_config": nowhere("velora_config", velora_config=VeloraConfig()),
    "kasa_config": nowhere("kasa_config", kasa_config=KasaConfig()),
    "monteclora_config": nowhere("monteclora_config", monteclora_config=MontecloraConfig()),
    "use_bdlora": nowhere(
        "use_bdlora", use_bdlora=BdLoraConfig(["q_proj", "v_proj", "down_proj"], nblocks=2, match_strict=False)
    ),
}  # fmt: skip
# Such adapters are not made on this machine (a GPU, data, a package): a plain one's settings are edited.
EDITED = {
    "init_lora_weights corda": ({"init_lora_weights": "corda"}, "init_lora_weights: corda"),
    "init_lora_weights loftq": ({"init_lora_weights": "loftq"}, "init_lora_weights: loftq"),
    "arrow_config": ({"arrow_config": dataclasses.asdict(ArrowConfig())}, "arrow_config"),
    "use_qalora": ({"use_qalora": True}, "use_qalora"),
    "megatron_config": ({"megatron_config": {"a": 1}}, "megatron_config"),
    "a setting of a later PEFT": ({"use_something_new": True}, "use_something_new"),
    **{f"peft_type {x}": ({"peft_type": x}, x) for x in ("IA3", "ADALORA", "LOHA", "PROMPT_TUNING", "XLORA")},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("foreign")


def base_of(place: Path, kind: str) -> Path:
    """A base with biases everywhere, tied or not, or a GPT-2."""
    folder = place / kind
    if not folder.exists():
        shape = {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 3}
        model = toy.build_gpt2() if kind == "gpt2" else toy.build_model(**shape, tie_word_embeddings=kind == "tied")
        torch.manual_seed(7)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3)
        model.save_pretrained(folder)
        toy.tokenizer().save_pretrained(folder)
    return folder


def make(place: Path, name: str, case: Case, scores: bool = False) -> Path:
    """The adapter of a case as PEFT saves it, all that it trains far from its start."""
    folder = place / f"{'reward' if scores else 'policy'} {name}"
    if folder.exists():
        return folder
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    model = kind.from_pretrained(base_of(place, case.base), **({"num_labels": 1} if scores else {}))
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    torch.manual_seed(3)
    model = get_peft_model(
        model, LoraConfig(**settings | case.settings | ({"task_type": "SEQ_CLS"} if scores else {}))
    )
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.eval().save_pretrained(folder)
    toy.tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def hidden(model) -> torch.Tensor:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return getattr(base, base.base_model_prefix)(input_ids=IDS, attention_mask=MASK).last_hidden_state


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS, attention_mask=MASK).logits


def of_peft(folder: Path, base: Path, scores: bool = False, **options):
    """What PEFT alone makes of it."""
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    model = kind.from_pretrained(base, **({"num_labels": 1, "pad_token_id": toy.PAD} if scores else {}))
    return PeftModel.from_pretrained(model, folder, **options).eval()


def raw(base: Path):
    return AutoModelForCausalLM.from_pretrained(base).eval()


def load(folder: Path, base: Path, trainable: bool = False):
    """As SFT, the algorithms on rewards, eval and merge load it."""
    args = ModelArguments(model_name_or_path=str(base))
    return models.load_adapter(models.load_base(args), str(folder), trainable=trainable).eval()


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def same(found, wanted):
    torch.testing.assert_close(found, wanted, atol=5e-5, rtol=1e-4)  # what a setting passed over changes is above 0.1


def every(*fates: str):
    names = [name for name, case in CASES.items() if case.fate in fates]
    return pytest.mark.parametrize("name", names)


@pytest.fixture
def case(place, name):
    """`.folder`: of the adapter of a language model. `.reward()`: of a reward model of the same settings."""
    found = CASES[name]
    return SimpleNamespace(
        **found._asdict(),
        at=base_of(place, found.base),
        folder=make(place, name, found),
        reward=lambda: make(place, name, found, scores=True),
    )


def score_model(base: Path):
    return models.load_base(ModelArguments(), "scores", base=str(base))


def beside(case):
    """Another policy on the same base. PEFT wants `target_parameters` to be those of all adapters on it."""
    shared = case.settings.get("target_parameters")
    settings = {"target_parameters": shared, "target_modules": ["v_proj"]} if shared else {"r": 4}
    model = get_peft_model(raw(case.at), toy.lora(**settings))
    model.get_base_model().name_or_path = str(case.at)
    return model


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        yield
