"""Every architecture that transformers has a causal model for, or PEFT has targets for: what the stages make of it.

Two layers, random weights: SFT, reward model, two updates of PPO with the critic on all layers and on one, each
compared with a fresh model from the saved files, one text at a time and without padding. What cannot be had is refused
in one sentence before a step is made: by the first of `REFUSED` that names it, or because transformers has no class.
A few that differ in kind are tried by `make test`; the table is long (docs/correctness.md has the counts).
"""

import re
from pathlib import Path

import pytest
import tiny_architectures as tiny
import torch
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from walk_architecture import CLOSE, STAGES, Walk, walk

from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# window, state space, mixture of experts, hybrid, image tower, encoder-decoder, another head, the last position read
LEAN = ("gemma2", "mamba", "mixtral", "bamba", "llama4_text", "t5", "bert", "xlnet")

PPO = ("ppo", "critic_layers")
LANGUAGE = ("sft", *PPO)
# Which stages say what of which architectures
REFUSED: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (STAGES, "no usable model X", "RefinedWeb RefinedWebModel btlm chatglm rwkv7"),
    (LANGUAGE, "no usable model X", "gemma3n gemma4_assistant gemma4_unified_assistant"),
    (("sft",), "with an output layer on top", "blip-2"),
    (PPO, "does not run on a text alone", "blip-2"),
    (STAGES, "trains on texts of any length", "reformer"),
    (STAGES, "is an encoder-decoder", "mt5 musicgen musicgen_melody t5"),
    (
        ("reward",),
        "is an encoder-decoder",
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet whisper",
    ),
    (LANGUAGE, "is no language model", "deberta deberta-v2 layoutlm"),
    (LANGUAGE, "depends on those after it", "cpmant paligemma xlm xlnet"),
    (("reward",), "padding changes the scores", "xlnet"),
    (("reward",), "does not fit Qwen3_5ForSequenceClassification", "qwen3_5"),
    (
        LANGUAGE,
        "computes something else between the two",
        "bert big_bird camembert data2vec-text electra ernie inkling_text megatron-bert modernbert-decoder prophetnet "
        "recurrent_gemma rembert roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xlstm xmod",
    ),
    (
        PPO,
        "padding changes what X",
        "bart bigbird_pegasus blenderbot blenderbot-small blt deepseek_v4 marian mbart mvp pegasus plbart rwkv trocr "
        "whisper",
    ),
    (PPO, "says something else of a text while it learns", "phimoe"),
    (PPO, "writes by others than it gives for the same text at once", "git moshi"),
    (("critic_layers",), "but the model has 0 layers", "hrm_text"),
)


def refusals(model_type: str) -> dict[str, str]:
    """For each stage that refuses an architecture words of the sentence."""
    found: dict[str, str] = {}
    for stages, words, names in REFUSED:
        if model_type in names.split():
            found = dict.fromkeys(stages, words) | found
    known = model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    return found if known else {"reward": "transformers has no sequence classifier of its kind"} | found


@pytest.mark.parametrize(
    "model_type", [pytest.param(x, marks=[] if x in LEAN else pytest.mark.slow) for x in tiny.ARCHITECTURES]
)
def test_an_architecture_is_trained_or_refused(model_type, tmp_path):
    refused, found = refusals(model_type), walk(model_type, tmp_path / "walk")
    for stage, result in found.items():
        if stage in refused:
            assert isinstance(result, str) and refused[stage] in result and "\n" not in result, f"{stage}: {result}"
        else:
            assert isinstance(result, float) and result < CLOSE, f"{stage}: {result}"


@pytest.mark.parametrize(
    ("model_type", "what"),
    [("llama4_text", "router"), ("phimoe", "router"), ("deepseek_v4", "o_a_proj"), ("nemotron_h", "out_proj")],
)
def test_linear_layers_by_type_alone_are_named(model_type, what, tmp_path):
    """On "all-linear" adapters stand on routers that return two tensors, on products by groups, and on what Mamba's
    kernels read by themselves."""
    steps = Walk(model_type, tmp_path, targets=["all-linear"])
    for stage in ("sft", "ppo"):
        with pytest.raises(UserError, match=what):
            getattr(steps, stage)()
        assert not steps.training


@pytest.mark.slow
def test_adapters_that_no_text_runs_on_two_processes(warm, tmp_path):
    """DDP would wait for the gradients of the tower for images. Two processes end as one with both their rows."""
    script = ROOT / "tests/support/distributed/idle_adapters.py"
    for done in warm.ranks(2, [script, tmp_path], tmp_path):
        assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for stage in ("sft", "ppo"):
        for name, end in first[stage]["end"].items():
            assert torch.equal(end, second[stage]["end"][name]), name
            below = ".layers.0." in name and ".critic." in name  # frozen
            idle = "language_model" not in name or ".reference." in name or below
            assert torch.equal(end, first[stage]["start"][name]) is idle, name
    steps = Walk("llava", tmp_path / "alone", optim="sgd", learning_rate=0.5)
    trainer = steps.sft_trainer()
    trainer.train()
    alone = {name: p.detach() for name, p in trainer.model.named_parameters() if "lora_" in name}
    for name, end in first["sft"]["end"].items():
        torch.testing.assert_close(
            end, alone[name], atol=1e-5, rtol=1e-3, msg=lambda said, name=name: f"{name}: {said}"
        )


def test_the_page_has_the_counts():
    rows = {name: refusals(name) for name in tiny.ARCHITECTURES}
    counts = [len(rows), *(sum(stage not in refused for refused in rows.values()) for stage in STAGES)]
    text = " ".join((ROOT / "docs/correctness.md").read_text("utf-8").split())
    said = re.search(
        r"Of (\d+) architectures SFT trains (\d+), the reward stage (\d+), PPO (\d+), with `critic_layers` (\d+)", text
    )
    assert said, "docs/correctness.md has no counts"
    assert [int(x) for x in said.groups()] == counts
    missing = {name for _, _, names in REFUSED for name in names.split() if f"`{name}`" not in text}
    assert not missing, f"docs/correctness.md does not name {sorted(missing)}"
