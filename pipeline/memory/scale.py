"""What a run would take on several processes, in memory, time and network, worked out before there is a machine:

    python -m pipeline.scale 0.5B 7B 32B 70B --processes 8

The tables are printed by scale_tables.py. Models are 0.5B and 32B (Qwen2.5), 7B and 70B (Llama 2), or folders and Hub
names, of which only the config is read. Memory is the estimate that every stage prints (estimate.py). Time counts
multiplications and divides them by the speed that is given; network is what ring algorithms send. Both are arithmetic
on stated assumptions, not measurements; that they count right is held to real runs by tests/memory/test_scale.py,
tests/ppo/test_shared_base.py and tests/stages/test_launchers.py.
"""

from dataclasses import dataclass

from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

from pipeline.memory import estimate as memory
from pipeline.memory.estimate import Adapter, Architecture, Batch, Precision

# As published; embeddings of the smallest are tied.
SIZES: dict[str, PreTrainedConfig] = {
    "0.5B": Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "7B": LlamaConfig(),
    "32B": Qwen2Config(
        hidden_size=5120,
        intermediate_size=27648,
        num_hidden_layers=64,
        num_attention_heads=40,
        num_key_value_heads=8,
        vocab_size=152064,
    ),
    "70B": LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
}
PRECISIONS = {"bf16": Precision(weights=2), "nf4": Precision(weights=2, bits=4, nested=True)}


@dataclass(frozen=True)
class Plan:
    """A run, as each process sees it, and what the machines are taken to do."""

    processes: int = 8
    prompt: int = 512  # tokens
    completion: int = 64  # tokens
    rows: int = 4  # of a micro-batch
    episodes: int = 64  # completions of one process in one rollout
    epochs: int = 4  # over each rollout, one optimizer step each
    rank: int = 16  # of LoRA, on all linear layers
    flops: float = 2e14  # multiplications and additions a second that a process really makes
    bandwidth: float = 2e12  # bytes a second from its memory
    network: float = 2.5e10  # bytes a second from a process to another one

    @property
    def batch(self) -> Batch:
        return Batch(self.rows, self.prompt, self.completion)

    @property
    def rollout(self) -> Batch:
        return Batch(self.episodes, self.prompt, self.completion)

    @property
    def adapter(self) -> Adapter:
        return Adapter(self.rank)


# ------------------------------------------------------------ memory
def of_stage(stage: str, model: Architecture, precision: Precision, plan: Plan) -> memory.Estimate:
    """The estimate that the stage `sft`, `reward` or `ppo` prints, on a GPU, with gradient checkpointing."""
    common = {"cuda": True, "checkpointing": True}
    if stage == "sft":
        return memory.estimate(model, precision, plan.adapter, plan.batch, entropy=False, **common)
    if stage == "reward":  # chosen and rejected in one pass
        pairs = Batch(2 * plan.rows, plan.prompt, plan.completion)
        return memory.estimate(model, precision, plan.adapter, pairs, heads=1, **common)
    lean = Precision(precision.weights, precision.bits, precision.nested, lean=True)
    roles = {"learning": 2, "frozen": 2, "heads": 1, "rollout": plan.rollout}  # reference and reward model are frozen
    return memory.estimate(model, lean, plan.adapter, plan.batch, **roles, **common)


def under(
    launcher: str, found: memory.Estimate, model: Architecture, precision: Precision, plan: Plan
) -> float | None:
    """Bytes of one process under `launcher`, from the estimate of one process alone.

    DDP: all of it on each. ZeRO-2: gradients and optimizer are divided. FSDP, ZeRO-3: also base and adapters; one
    layer is whole at a time. None: FSDP leaves a 4-bit base whole (Accelerate 1.15), and ZeRO-3 of one was not tried.
    """
    stays, n = dict(found.stays), plan.processes
    passes = max(found.passes.values())
    if launcher == "DDP":
        return found.total
    optimizer = stays.pop("gradients and optimizer") / n
    if launcher == "ZeRO-2":
        return sum(stays.values()) + optimizer + passes
    if precision.bits:
        return None
    layer = (model.in_linears / model.layers) * precision.weights
    return sum(stays.values()) / n + layer + optimizer + passes


def shared(found: memory.Estimate, model: Architecture, precision: Precision, processes: int) -> float:
    """Bytes of one process that runs PPO under FSDP, from the estimate of one process alone: the base is shared out
    (pipeline/models/shared_base.py), and all else as under DDP. So is a 4-bit base, which stays whole."""
    return found.total - found.stays["base"] + memory.shared_base(model, precision, processes)


# ------------------------------------------------------------ time
def forward(model: Architecture, tokens: int, length: int, words: int = 0) -> float:
    """Multiplications and additions of one pass over `tokens` in sequences of `length`, `words` of them with logits.

    2 for each weight of the linear layers and token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), 4 for each
    pair of positions, head and number of a head (q·k and the sum over v), 2 for each word and hidden number.
    """
    attention = 4 * model.layers * model.heads * model.head_dim * length
    return tokens * (2 * model.in_linears + attention) + 2 * words * model.vocab * model.hidden


def learning(
    model: Architecture, adapter: Adapter, tokens: int, length: int, words: int = 0, checkpointing: bool = True
) -> float:
    """The same of forward and backward with a frozen base: the gradient passes each layer once for its input, and
    attention's two products have two each; LoRA's own products are three passes over its weights."""
    linear, attention = 2 * model.in_linears, 4 * model.layers * model.heads * model.head_dim * length
    lora, passes = 2 * adapter.parameters(model), 3 if checkpointing else 2
    trunk = passes * linear + (passes + 1) * attention + (passes + 1) * lora
    return tokens * trunk + 4 * words * model.vocab * model.hidden


def seconds(model: Architecture, precision: Precision, plan: Plan) -> dict[str, float]:
    """Of one PPO update, by who works. Sampling reads all weights and the cache for each token, which takes longer
    than to multiply them; the rest is multiplication."""
    whole, length = plan.rollout, plan.prompt + plan.completion
    words = plan.episodes * plan.completion
    read = memory.base(model, precision) + memory.kv_cache(model, precision, whole)
    prompts = forward(model, plan.episodes * plan.prompt, plan.prompt, plan.episodes)
    token = forward(model, plan.episodes, length, plan.episodes) / plan.flops
    look = forward(model, whole.tokens, length) / plan.flops
    look_and_say = forward(model, whole.tokens, length, words) / plan.flops
    return {
        "sampling": prompts / plan.flops + plan.completion * max(token, read / plan.bandwidth),
        "policy looks": look_and_say,
        "reference": look_and_say,
        "critic looks": look,
        "reward model": look,
        "policy learns": plan.epochs * learning(model, plan.adapter, whole.tokens, length, words) / plan.flops,
        "critic learns": plan.epochs * learning(model, plan.adapter, whole.tokens, length) / plan.flops,
    }


# ------------------------------------------------------------ network
def ring(processes: int, size: float) -> float:
    """Bytes that each process sends in a ring all-reduce of `size` bytes: half of it a reduce-scatter, half an
    all-gather, (n - 1)/n of the bytes each (Patarasuk & Yuan 2009)."""
    return 2 * (processes - 1) / processes * size


def ddp(trained: int, processes: int) -> float:
    """Bytes sent a process and optimizer step: float32 gradients of what is trained, however large the base is."""
    return ring(processes, 4 * trained)


def sharded(
    model: Architecture, precision: Precision, adapter: Adapter, processes: int, micro_batches: int = 1
) -> float:
    """Bytes sent a process and optimizer step under FSDP 2 or ZeRO-3, for each micro-batch: the layers' weights are
    gathered in the forward and again in the backward pass, embeddings and output layer once, gradients scattered."""
    trained = 4 * adapter.parameters(model)  # float32
    layers = model.in_linears * precision.weights + trained
    rest = (model.parameters - model.in_linears) * precision.weights
    return micro_batches * (processes - 1) / processes * (2 * layers + rest + trained)


def passes(plan: Plan, vllm: bool = False) -> int:
    """Passes through the base in a PPO update, each of which gathers all layers, once more if it goes backward: one a
    token that is sampled (vLLM samples by itself), one a micro-batch for each of the four that look, and for the
    policy and the critic that learn, in each epoch."""
    micro_batches = -(-plan.episodes // plan.rows)
    return (0 if vllm else plan.completion) + micro_batches * (4 + plan.epochs * 2 * 2)


def gathered(model: Architecture, precision: Precision, plan: Plan, vllm: bool = False) -> float:
    """Bytes sent a process and PPO update to gather the layers of a base that is shared out: each process sends what
    it has of a layer, 1/n, to n - 1 others. A 4-bit base is whole on each."""
    layers = 0 if precision.bits else model.in_linears * precision.weights
    return passes(plan, vllm) * (plan.processes - 1) / plan.processes * layers


def vllm(model: Architecture, adapter: Adapter) -> float:
    """Bytes that a vLLM server reads before a rollout: the policy's adapter, in float32."""
    return 4 * adapter.parameters(model)


def update(model: Architecture, precision: Precision, plan: Plan, launcher: str) -> dict[str, float]:
    """Seconds of one PPO update by who works, and of what a process sends meanwhile.

    Args: launcher: `DDP`, `FSDP`, or `FSDP, vLLM`: a server samples, whose own time is not counted.
    """
    found, learned = seconds(model, precision, plan), 2 * plan.adapter.parameters(model) + model.hidden + 1
    by_vllm = launcher.endswith("vLLM")
    sent = plan.epochs * ddp(learned, plan.processes)
    if launcher != "DDP":
        sent += gathered(model, precision, plan, by_vllm)
    if by_vllm:
        found.pop("sampling")
        sent += vllm(model, plan.adapter)
    return found | {"sent": sent / plan.network}
