"""QLoRA end to end on the CPU: the three stages on an nf4 base, and what must hold of it in PPO."""

import contextlib
import gc
import io
import json
from pathlib import Path

import pytest
import torch
import toy
from conftest import build_model, build_tokenizer
from peft import PeftModel
from safetensors.torch import load_file
from saved import reward_folder
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage
from pipeline.models import loading as models
from pipeline.ppo.config import PPOStage
from pipeline.stages import ppo as ppo_stage
from pipeline.stages import reward_model, sft
from pipeline.stages.ppo import RewardArguments
from rewards import build_rewards

bitsandbytes = pytest.importorskip("bitsandbytes")

WORDS = [f"w{i}" for i in range(16)]
SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2}
ROWS = {
    "sft": [{"prompt": f"say {w} =>\n", "completion": f"It is {w}."} for w in WORDS],
    "reward": [{"prompt": f"say {w} =>\n", "chosen": f"It is {w}.", "rejected": "No."} for w in WORDS],
    "ppo": [{"prompt": f"say {w} =>\n", "facts": [w]} for w in WORDS],
}
COMMON = {
    "use_cpu": True,
    "optim": "paged_adamw_8bit",
    "save_strategy": "no",
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
}


def four_bit(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The quantised numbers of every linear layer and their scales, copied."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            state = layer.weight.quant_state
            tensors = {"weight": layer.weight.data, "scales": state.absmax, "scales of scales": state.state2.absmax}
            found |= {f"{name} {kind}": tensor.clone() for kind, tensor in tensors.items()}
    return found


class Watched(ppo_stage.PPOTrainer):
    """The stage's trainer; the last one can be looked at, with the 4-bit weights that it began with."""

    last: "Watched"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Watched.last, self.began_with = self, four_bit(self.model)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Folder, summaries and output of SFT, reward model and PPO, run one after the other on one 4-bit base."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.chdir(tmp_path_factory.mktemp("qlora"))
        patch.setattr(ppo_stage, "PPOTrainer", Watched)
        build_model(**SIZES).save_pretrained("base")
        build_tokenizer().save_pretrained("base")
        for name, rows in ROWS.items():
            Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        base = {"model_name_or_path": "base", "load_in_4bit": True, "lora_r": 32}
        summaries = {
            "sft": sft.run(
                ModelArguments(**base),
                DataArguments(dataset="sft.jsonl", eval_fraction=0.25),
                SFTStage(output_dir="out/sft", max_length=64, max_steps=6, **COMMON),
            ),
            "reward": reward_model.run(
                ModelArguments(**base, adapter_path="out/sft"),
                DataArguments(dataset="reward.jsonl", eval_fraction=0.25),
                RewardStage(output_dir="out/reward", max_length=64, max_steps=12, **COMMON),
            ),
            "ppo": ppo_stage.run(
                ModelArguments(**base, adapter_path="out/sft"),
                DataArguments(dataset="ppo.jsonl", eval_fraction=0.25),
                RewardArguments(rewards=[{"name": "keyword", "column": "facts"}], eval_samples=2, show_samples=0),
                PPOStage(
                    output_dir="out/ppo",
                    critic_path="out/reward",
                    total_episodes=8,
                    num_iterations=2,
                    max_completion_length=8,
                    **COMMON,
                ),
            ),
        }
        yield Path.cwd(), summaries, said.getvalue()


def test_the_three_stages_train_on_four_bits(stages):
    folder, summaries, said = stages
    loss = summaries["sft"]["heldout_loss"]
    assert loss["after"] < loss["before"] - 0.1
    assert summaries["reward"]["accuracy"] == 1.0
    assert said.count("memory of a process, estimated:") == 3 and "policy, reference, critic" in said
    assert summaries["ppo"]["episodes"] == 8 and summaries["ppo"]["kl"] != 0
    before, after = (load_file(folder / f"out/{name}/adapter_model.safetensors") for name in ("sft", "ppo"))
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert any(not torch.equal(before[key], after[key]) for key in after)
    # the result is an ordinary adapter, which the base in 32 bits takes as well
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "out/ppo")


def test_the_optimizer_keeps_eight_bits(stages):
    """On a CPU, bitsandbytes keeps a paged optimizer's state as an unpaged one's, and small tensors in 32 bits."""
    optimizer = Watched.last.optimizer.optimizer
    assert isinstance(optimizer, bitsandbytes.optim.AdamW)
    learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kinds = {p.numel() >= 4096: optimizer.state[p]["state1"].dtype for p in learned}
    assert kinds == {True: torch.uint8, False: torch.float32}


def test_a_whole_run_leaves_the_four_bits_alone(stages):
    """Exams, rollouts, updates: nothing is merged into the base, and bitsandbytes repacks nothing."""
    trainer = Watched.last
    after = four_bit(trainer.model)
    assert len(after) == 3 * 7 * SIZES["num_hidden_layers"]
    for name, tensor in trainer.began_with.items():
        assert torch.equal(after[name], tensor), name


def nf4(folder, dtype=torch.float32, **changes):
    """A toy language model on an nf4 base, by transformers alone."""
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "initializer_range": 0.1}
    toy.build_model(**sizes | changes).save_pretrained(folder)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=quantization)


@pytest.mark.parametrize(
    "dtype, autocast, tolerance", [("float32", False, 1e-4), ("bfloat16", False, 0.1), ("bfloat16", True, 0.1)]
)
def test_sampler_rollout_and_update_agree(tmp_path, dtype, autocast, tolerance):
    """Sampler against rollout: one reads a cache token by token, the other the whole row. In float32 they differ by
    the order of sums, about 1e-6; in bfloat16 a logit of 5 is rounded by up to 2**-7 of itself, 0.04."""
    model = toy.with_sft_adapter(nf4(tmp_path, getattr(torch, dtype)))
    trainer = toy.make_trainer(tmp_path, model, bf16=autocast, max_completion_length=16, temperature=0.8)
    sampled, generate = [], trainer.model.generate

    def listen(*args, **kwargs):
        out = generate(*args, output_logits=True, return_dict_in_generate=True, **kwargs)
        sampled.append(torch.log_softmax(torch.stack(out.logits, dim=1).float() / 0.8, dim=-1))
        return out.sequences

    trainer.model.generate = listen
    before = four_bit(model)
    batch = toy.sample(trainer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in four_bit(model).items())
    ids, real = batch["completion_ids"], batch["completion_mask"].bool()
    rollout, num_tokens = batch["old_per_token_logps"], ids.shape[1]
    drawn = sampled[0][:, :num_tokens].gather(2, ids[:, :, None])[:, :, 0]
    assert (drawn - rollout)[real].abs().max() < tolerance

    rows = torch.cat([batch["prompt_ids"], ids], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    update, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, rows, mask, num_tokens)
    assert update.requires_grad
    assert (update - rollout)[real].abs().max() < tolerance


def gradients(model) -> list[torch.Tensor]:
    model.train().zero_grad()
    model(input_ids=torch.arange(3, 9)[None], labels=torch.arange(3, 9)[None]).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_an_evaluation_before_training_changes_no_gradient(tmp_path):
    """With AVX512-BF16, bitsandbytes would repack the weights in eval mode, and the base would pass no gradient on."""
    nf4(tmp_path / "q")  # writes the base
    args = ModelArguments(model_name_or_path=str(tmp_path / "q"), load_in_4bit=True)
    model = toy.with_sft_adapter(models.load_base(args, base=str(tmp_path / "q")))
    before = gradients(model)
    with torch.no_grad():
        model.eval()(input_ids=torch.arange(3, 9)[None])
    assert all(torch.equal(x, y) for x, y in zip(before, gradients(model), strict=True))


def test_a_base_that_was_repacked_before_ppo_learns(tmp_path):
    model = toy.with_sft_adapter(nf4(tmp_path))
    before = gradients(model)
    with torch.no_grad():
        model.eval()(input_ids=torch.arange(3, 9)[None])
    model.zero_grad()
    trainer = toy.make_trainer(tmp_path, model)
    policy = [p for name, p in model.named_parameters() if ".default." in name]
    model.train()(input_ids=torch.arange(3, 9)[None], labels=torch.arange(3, 9)[None]).loss.backward()
    for parameter, grad in zip(policy, before, strict=True):  # scales were rounded to bfloat16 meanwhile
        assert (parameter.grad - grad).norm() < 0.05 * grad.norm() + 1e-6
    assert trainer.model is model


def weights_alive() -> dict[int, int]:
    """Storages of all parameters in this process -> how many weights each holds (quantised: as many as it stands
    for), whatever holds them: trainer, critic, reward functions, a forgotten copy."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.nn.Parameter) and thing.device.type != "meta":  # isinstance is slow here
            state = getattr(thing, "quant_state", None)
            found[thing.untyped_storage().data_ptr()] = thing.numel() if state is None else state.shape.numel()
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "nf4"])
def test_the_base_is_in_memory_once(tmp_path, precision):
    folder, sizes = tmp_path / "base", {"hidden_size": 64, "intermediate_size": 128}
    if precision == "nf4":
        sizes["num_attention_heads"] = 4
    toy.build_model(**sizes, initializer_range=0.1).save_pretrained(folder)
    reward_folder(folder, tmp_path / "reward", r=2, lora_alpha=4, target_modules="all-linear")
    toy.tokenizer().save_pretrained(tmp_path / "reward")
    before = weights_alive()
    if precision == "nf4":
        model = nf4(folder, **sizes)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision))
    base = sum(weights_alive().values()) - sum(before.values())
    # a layer: 64 x 64 for q and o, 64 x 32 for k and v (one kv head of two), 3 x 64 x 128; norms; nine words, untied
    heads = 4 if precision == "nf4" else 2
    kv = 64 // heads
    layer = 2 * 64 * 64 + 2 * 64 * kv + 3 * 64 * 128 + 2 * 64
    assert base == 2 * layer + 64 + 2 * 9 * 64
    reward = build_rewards([{"name": "learned", "path": str(tmp_path / "reward")}])[0][0]
    trainer = toy.make_trainer(tmp_path, toy.with_sft_adapter(model), reward, critic_path=str(tmp_path / "reward"))
    trainer.train()
    assert set(trainer.model.peft_config) == {"default", "reference", "critic", "reward"}
    alive = {pointer: size for pointer, size in weights_alive().items() if pointer not in before}
    adapter = 2 * 2 * (2 * (64 + 64) + 2 * (64 + kv) + 3 * (64 + 128))  # rank 2, two layers
    assert sum(alive.values()) <= base + 4 * adapter + 2 * (64 + 1)
