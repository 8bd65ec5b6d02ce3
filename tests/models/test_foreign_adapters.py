"""Adapters made elsewhere, one for every setting of PEFT's LoraConfig: taken for what PEFT says they are, or refused
by the name of the setting, wherever an adapter can be given.

Expected values are those of `PeftModel.from_pretrained` on a fresh base.
"""

import dataclasses
import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import peft
import pytest
import torch
import toy
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import ArrowConfig, BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from toy import AB, A, B, C, D
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pipeline.config import ModelArguments
from pipeline.errors import UserError
from pipeline.eval.candidates import active_adapter, adapter_name, by_base, load_group, read_candidates
from pipeline.ilql.network import TARGET, VALUES, Network
from pipeline.models import adapter_files, precision
from pipeline.models import loading as models
from pipeline.models.adapters import CRITIC, POLICY, REFERENCE, use_adapter
from pipeline.ppo.critic import Critic
from pipeline.ppo.reward_adapter import put_on_base
from pipeline.stages.merge import MergeArguments, merge
from rewards import RewardError, build_rewards
from rewards.foreign import _KNOWN

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


def test_every_setting_of_the_library_is_in_the_table():
    asked = {key for case in CASES.values() for key in case.settings} | {
        key for edit, _ in EDITED.values() for key in edit
    }
    silent = {"runtime_config", "megatron_core", "qalora_group_size"}  # nothing without those that are refused
    starts = {"loftq_config", "eva_config", "corda_config", "lora_ga_config"}  # of a start that is over
    of_the_file = {"auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
    there = {field.name for field in dataclasses.fields(LoraConfig)}
    assert there - asked == silent | starts | of_the_file
    assert _KNOWN <= there


# ---------------------------------------------------------------- alone on its base: SFT, eval, merge, rewards
@every(PLAIN, ALONE)
def test_sft_goes_on_from_it(case, tmp_path):
    model, wanted = load(case.folder, case.at, trainable=True), of_peft(case.folder, case.at, is_trainable=True)
    same(logits(model), logits(wanted))
    if case.output:
        with pytest.raises(UserError, match="adapts lm_head too, which TRL does not train"):
            adapter_files.check_output_layer(model, case.folder)
        return
    adapter_files.check_output_layer(model, case.folder)
    assert trained(model) == trained(wanted)
    precision.train_in_float32(model)
    model(input_ids=IDS, labels=IDS).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.05 * parameter.grad)
    assert (logits(model) - logits(wanted)).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    same(logits(of_peft(tmp_path, case.at)), logits(model))


@every(PLAIN, ALONE)
def test_it_becomes_one_model_with_its_base(case, tmp_path):
    merge(MergeArguments(run=str(case.folder), output=str(tmp_path / "whole")))
    same(logits(raw(tmp_path / "whole")), logits(of_peft(case.folder, case.at)))


@every(PLAIN, ALONE)
def test_eval_hears_it_and_the_base_beside_it(place, case):
    other = make(place, "r, lora_alpha", CASES["r, lora_alpha"]) if case.base == "llama" else case.folder
    specs = [{"it": str(case.folder)}, {"base": str(case.at)}, {"other": str(other)}]
    wanted = {"it": of_peft(case.folder, case.at), "base": raw(case.at), "other": of_peft(other, case.at)}
    args, heard = ModelArguments(), set()
    for group in by_base(read_candidates(specs, args), "base"):
        model = load_group(group, args)
        for i, candidate in enumerate(group):
            with active_adapter(model, candidate.stage.adapter and adapter_name(i)):
                same(logits(model), logits(wanted[candidate.name]))
                heard.add(candidate.name)
    assert heard == set(wanted)


@every(PLAIN, ALONE)
def test_as_a_reward_of_its_own(case):
    if case.base == "gpt2" and case.settings.get("target_modules") is None:
        return
    texts = ["ab", "", "deec"]
    model = of_peft(case.folder, case.at)
    [(fluent, _)] = build_rewards([{"name": "perplexity", "path": str(case.folder)}])
    found = fluent(["c", "d"], ["ab", "eed"])
    for prompt, text, score in zip(["c", "d"], ["ab", "eed"], found, strict=True):
        before, ids = toy.tokenizer()(prompt)["input_ids"], toy.tokenizer()(prompt + text)["input_ids"]
        each = toy.hand_logprobs(model, before, ids[len(before) :])
        assert score == pytest.approx(each.mean().item(), abs=1e-5)
    folder = case.reward()
    scorer = of_peft(folder, case.at, scores=True)
    [(learned, _)] = build_rewards([{"name": "learned", "path": str(folder)}])
    for text, score in zip(texts, learned(["c"] * 3, texts), strict=True):
        ids = torch.tensor([toy.tokenizer()(f"c{text}<eos>")["input_ids"]])
        assert score == pytest.approx(scorer(input_ids=ids).logits.item(), abs=1e-5)


# ---------------------------------------------------------------- on one base with others: reward stage, PPO, ILQL
def score_model(base: Path):
    return models.load_base(ModelArguments(), "scores", base=str(base))


@every(PLAIN)
def test_the_reward_stage_starts_from_it(case, tmp_path):
    model = models.start_score_adapter(score_model(case.at), ModelArguments(), str(case.folder)).eval()
    same(hidden(model), hidden(of_peft(case.folder, case.at)))
    model.save_pretrained(tmp_path / "reward")
    same(logits(of_peft(tmp_path / "reward", case.at, scores=True)), logits(model))
    # and on from there: a critic, and one more reward model, whose head is kept
    critic = Critic(beside(case), str(tmp_path / "reward"))
    critic.model.eval()
    same(critic.values(IDS, MASK, 1)[0, 0], head_on(model))
    again = models.start_score_adapter(score_model(case.at), ModelArguments(), str(tmp_path / "reward")).eval()
    same(logits(again), logits(model))


def beside(case):
    """Another policy on the same base. PEFT wants `target_parameters` to be those of all adapters on it."""
    shared = case.settings.get("target_parameters")
    settings = {"target_parameters": shared, "target_modules": ["v_proj"]} if shared else {"r": 4}
    model = get_peft_model(raw(case.at), toy.lora(**settings))
    model.get_base_model().name_or_path = str(case.at)
    return model


@torch.no_grad()
def head_on(model) -> torch.Tensor:
    """The score of the text without its last token."""
    return model(input_ids=IDS[:, :-1], attention_mask=MASK[:, :-1]).logits[0, 0]


@every(PLAIN)
def test_ppo_starts_from_it(case, tmp_path):
    wanted, base = of_peft(case.folder, case.at), raw(case.at)
    policy = load(case.folder, case.at, trainable=True)
    if case.output:
        return
    trainer = toy.make_trainer(tmp_path, policy, total_episodes=8)
    model = trainer.model.eval()
    with use_adapter(model, POLICY):
        same(logits(model), logits(wanted))
    with use_adapter(model, REFERENCE):
        same(logits(model), logits(wanted))
    with use_adapter(model, CRITIC):
        same(hidden(model), hidden(base))
    learns = {name for name in trained(trainer.model) if f".{POLICY}" in name}
    assert learns >= trained(of_peft(case.folder, case.at, is_trainable=True))
    trainer.train()
    assert toy.logged(trainer, "kl")[0] == pytest.approx(0, abs=1e-5)
    model.eval()
    with use_adapter(model, REFERENCE):
        same(logits(model), logits(wanted))
    with use_adapter(model, POLICY):
        moved = logits(model)
    assert (moved - logits(wanted)).abs().max() > 1e-4
    trainer.save_model(str(tmp_path / "policy"))
    same(logits(of_peft(tmp_path / "policy", case.at)), moved)
    with use_adapter(model, CRITIC):
        states = hidden(model)
    same(hidden(of_peft(tmp_path / "policy" / "critic", case.at)), states)


@every(PLAIN)
def test_a_critic_and_a_reward_on_the_policys_base_start_from_it(case):
    folder = case.reward()
    scorer = of_peft(folder, case.at, scores=True)
    model = beside(case)
    critic = Critic(model, str(folder))
    model.eval()
    same(critic.values(IDS, MASK, 1)[0, 0], head_on(scorer))
    alone, shared = (build_rewards([{"name": "learned", "path": str(folder)}])[0][0] for _ in "ab")
    assert len(put_on_base([shared], model, nullcontext)) == 1
    model.eval()
    assert shared(["c", "d"], ["ab", "e"]) == pytest.approx(alone(["c", "d"], ["ab", "e"]), abs=1e-5)


@every(PLAIN)
def test_ilql_starts_from_it(case):
    wanted = hidden(of_peft(case.folder, case.at))
    with_policy = Network(load(case.folder, case.at))
    with_values = Network(beside(case), str(case.folder))
    for network in (with_policy, with_values):
        for adapter in (VALUES, TARGET):
            with use_adapter(network.lm, adapter):
                same(hidden(network.lm.eval()), wanted)


# ---------------------------------------------------------------- refused by name
@every(ALONE)
def test_what_changes_the_base_is_merged_first(case, tmp_path):
    says = f"has {case.says}.*, which changes the base itself"
    with pytest.raises(UserError, match=says):
        models.start_score_adapter(score_model(case.at), ModelArguments(), str(case.folder))
    with pytest.raises(UserError, match=says):
        adapter_files.check_shares_base(case.folder)  # PPO, GRPO, RLOO, ILQL: tests/faults
    with pytest.raises(UserError, match=says):
        toy.make_trainer(tmp_path, load(case.folder, case.at, trainable=True))
    model = get_peft_model(raw(case.at), toy.lora())
    model.get_base_model().name_or_path = str(case.at)
    with pytest.raises(UserError, match=says):
        Network(model, str(case.folder))
    if "lm_head" not in str(case.settings):
        folder = case.reward()
        with pytest.raises(UserError, match=says):
            Critic(model, str(folder))
        alone, beside = (build_rewards([{"name": "learned", "path": str(folder)}])[0][0] for _ in "ab")
        assert put_on_base([beside], model, nullcontext) == []
        assert beside(["c"], ["ab"]) == alone(["c"], ["ab"])
    same(logits(model), logits(raw(case.at)))  # and nothing of it was left on the base


@every(NOWHERE)
def test_what_is_not_read_is_refused_everywhere(case, tmp_path):
    refused_everywhere(case.folder, case.at, case.says, tmp_path)


@pytest.mark.parametrize("name", EDITED)
def test_settings_that_are_not_read(place, tmp_path, name):
    changes, says = EDITED[name]
    for scores in (False, True):
        made = make(place, "r, lora_alpha", CASES["r, lora_alpha"], scores)
        folder = tmp_path / str(scores)
        folder.mkdir()
        for file in made.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    refused_everywhere(tmp_path / "False", base_of(place, "llama"), says, tmp_path, tmp_path / "True")


def refused_everywhere(folder: Path, base: Path, says: str, aside: Path, reward: Path | None = None) -> None:
    model = get_peft_model(raw(base), toy.lora())
    for act in (
        lambda: load(folder, base),
        lambda: models.start_score_adapter(score_model(base), ModelArguments(), str(folder)),
        lambda: Critic(model, str(reward or folder)),
        lambda: Network(model, str(folder)),
        lambda: merge(MergeArguments(run=str(folder), output=str(aside / "whole"))),
        lambda: read_candidates([{"it": str(folder)}], ModelArguments()),
        lambda: build_rewards([{"name": "perplexity", "path": str(folder)}])[0][0](["c"], ["ab"]),
        lambda: build_rewards([{"name": "learned", "path": str(reward or folder)}])[0][0](["c"], ["ab"]),
    ):
        with pytest.raises((UserError, RewardError), match=says):
            act()


@pytest.mark.parametrize(
    "config", [peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]), peft.LoHaConfig()]
)
def test_ppo_by_its_class_takes_lora_alone(tmp_path, config):
    with pytest.raises(UserError, match=config.peft_type.value):
        toy.make_trainer(tmp_path, peft_config=config)


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM", "QUESTION_ANS"])
def test_an_adapter_for_another_task_is_no_language_model(place, tmp_path, task):
    made = make(place, "r, lora_alpha", CASES["r, lora_alpha"], scores=task == "SEQ_CLS")
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"task_type": task}))
    with pytest.raises(UserError, match=f"is an adapter for {task}, not of a language model"):
        load(tmp_path, base_of(place, "llama"))


def test_weights_of_the_base_that_lie_with_an_adapter(place, tmp_path):
    """`save_embedding_layers` puts embeddings into the file, which PEFT then loads into the base."""
    base = base_of(place, "llama")
    model = get_peft_model(raw(base), toy.lora(target_modules=["q_proj"]))
    toy.randomize(model, "default", 4)
    model.save_pretrained(tmp_path / "same", save_embedding_layers=True)
    started = models.start_score_adapter(score_model(base), ModelArguments(), str(tmp_path / "same"))
    same(hidden(started.eval()), hidden(model))
    adapter_files.check_brought(raw(base), tmp_path / "same")
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.5)
    model.save_pretrained(tmp_path / "other", save_embedding_layers=True)
    for act in (
        lambda: models.start_score_adapter(score_model(base), ModelArguments(), str(tmp_path / "other")),
        lambda: adapter_files.check_brought(raw(base), tmp_path / "other"),
        lambda: Network(get_peft_model(raw(base), toy.lora()), str(tmp_path / "other")),
    ):
        with pytest.raises(UserError, match=r"brings model\.embed_tokens\.weight along"):
            act()


def test_a_score_head_of_several_outputs_is_no_start(place, tmp_path):
    base = base_of(place, "llama")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    get_peft_model(model, toy.lora(task_type="SEQ_CLS")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="score head of other outputs than one"):
        models.start_score_adapter(score_model(base), ModelArguments(), str(tmp_path))


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        yield
