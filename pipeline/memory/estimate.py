"""What a run needs in memory, by role, from the model's config and the settings alone; nothing is loaded.

In all it is what stays (base, adapters, gradients, optimizer) and the largest of what comes and goes: a training pass
over one micro-batch, generation of a rollout, a pass without gradient. All figures are bytes of one process. They are
worked out for decoders of Llama's kind (RMSNorm, rotary positions, SwiGLU) in transformers 5.23, PEFT 0.21 and TRL
1.16, and held to what autograd saves and to measured peaks by tests/memory/test_memory.py. For other decoders base and
adapters are exact and activations are rough; experts (MoE) are not provided for.

Not counted: the libraries themselves, the allocator's waste, CUDA's own context (about 0.5 GiB), vLLM.
"""

from dataclasses import dataclass

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig

from pipeline.exam.evaluation import LOGITS
from pipeline.models.attention import SHORT_ROWS
from pipeline.models.head import LOGITS_AT_ONCE
from pipeline.models.sharding import read_whole

# TRL's fused head (trl/kernels/chunked_logprob.py) works on tiles of so many tokens x so many words
_HEAD_TOKENS, _HEAD_WORDS = 4096, 32768
# bitsandbytes: weights in a block of 4 bits share a scale; nested scales are 8 bits, in blocks of 256
_BLOCK, _NESTED_BLOCK = 64, 256
# linear layers that read the same tensor
_SHARED = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "gate_proj": "mlp", "up_proj": "mlp"}


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder. `linears` are its linear layers but the output one, as (name, inputs, outputs).

    A reward model has a score head in place of the vocabulary: its `vocab` is 0.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    linears: tuple[tuple[str, int, int], ...]
    parameters: int  # in all; tied ones once
    attention: str = "sdpa"

    @classmethod
    def of(cls, config: PreTrainedConfig, scores: bool = False) -> "Architecture":
        """The sizes that `config` describes, or with `scores` those of a reward model on it.

        The model is built on the meta device, without memory.
        """
        text = config.get_text_config()
        kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
        with read_whole(), init_empty_weights():
            model = kind.from_config(text)
        model.tie_weights()
        output = model.score if scores else model.get_output_embeddings()
        linears = tuple(
            (name, module.in_features, module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not output
        )
        heads = text.num_attention_heads
        return cls(
            hidden=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            vocab=0 if scores else text.vocab_size,
            linears=linears,
            parameters=sum(p.numel() for p in model.parameters()) - (output.weight.numel() if scores else 0),
            attention=model.config._attn_implementation or "sdpa",
        )

    @property
    def in_linears(self) -> int:
        """Weights in the linear layers: what is quantised."""
        return sum(inputs * outputs for _, inputs, outputs in self.linears)


@dataclass(frozen=True)
class Precision:
    """`weights`: bytes of a number of the base (4 or 2; quantised: of what it computes in). `bits`: 4 or 8 when its
    linear layers are quantised. `autocast`: whether the trainer runs in mixed precision (bf16 or fp16). `lean`: its
    layers have the short forms of pipeline/models/lean.py, as under LoRA."""

    weights: int = 4
    bits: int | None = None
    nested: bool = False
    autocast: bool = False
    lean: bool = False

    @property
    def compute(self) -> int:
        """Bytes of a number that comes out of a linear layer."""
        return 2 if self.autocast else self.weights


@dataclass(frozen=True)
class Adapter:
    """LoRA of `rank` on the linear layers that `targets` names ("all-linear": on all). Its weights are float32."""

    rank: int
    targets: tuple[str, ...] = ("all-linear",)

    def on(self, model: Architecture) -> list[tuple[str, int, int]]:
        """The linear layers that it changes."""
        if self.targets == ("all-linear",):
            return list(model.linears)
        return [layer for layer in model.linears if layer[0].endswith(tuple(f".{name}" for name in self.targets))]

    def parameters(self, model: Architecture) -> int:
        """r (inputs + outputs) for each layer: A is (r, inputs) and B is (outputs, r)."""
        return sum(self.rank * (inputs + outputs) for _, inputs, outputs in self.on(model))


@dataclass(frozen=True)
class Batch:
    """`rows` sequences of `prompt` + `completion` tokens; without a completion the whole is learned."""

    rows: int
    prompt: int
    completion: int = 0

    @property
    def length(self) -> int:
        return self.prompt + self.completion

    @property
    def tokens(self) -> int:
        return self.rows * self.length


# ------------------------------------------------------------ what stays
def base(model: Architecture, precision: Precision) -> int:
    """The base's weights. Quantised are the linear layers alone: embeddings, output layer and norms are not.

    4 bits: half a byte a weight and one float32 scale for each block of 64; nested (QLoRA, arXiv 2305.14314, section
    3): one byte in place of that float32, and a float32 for each 256 of those: 0.127 in place of 0.5 bit a weight.
    8 bits: a byte a weight and a float32 for each output.
    """
    inside, weights = model.in_linears, model.parameters * precision.weights
    if precision.bits is None:
        return weights
    if precision.bits == 4:
        blocks = inside / _BLOCK
        scales = blocks * (1 + 4 / _NESTED_BLOCK) if precision.nested else blocks * 4
        return int(weights - inside * precision.weights + inside / 2 + scales)
    return weights - inside * precision.weights + inside + 4 * sum(outputs for _, _, outputs in model.linears)


def shared_base(model: Architecture, precision: Precision, processes: int) -> int:
    """Bytes of a base whose layers are shared out over processes (models/shared_base.py): of each layer a part; the
    whole of the one that runs and of the next, which is gathered meanwhile. The rest is whole, and so is a quantised
    base."""
    whole = base(model, precision)
    if precision.bits or processes == 1:
        return whole
    layers = model.in_linears * precision.weights
    return whole - layers + layers // processes + 2 * layers // model.layers


def optimizer(parameters: int, name: str = "adamw_torch", size: int = 4) -> int:
    """Gradients (`size` bytes a number) and the state of the optimizer.

    AdamW has two moments like the weights. In 8 bits they are a byte each, with a float32 scale for each 256
    (arXiv 2110.02861); paged ones may leave the GPU for the host when it is full, but are counted.
    """
    moment = 1 + 4 / 256 if "8bit" in name else size
    moments = {"sgd": 0, "adafactor": 0}.get(name, 1 if "lion" in name else 2)
    return int(parameters * (size + moments * moment))


# ------------------------------------------------------------ what comes and goes
def saved(
    model: Architecture, precision: Precision, adapter: Adapter | None, batch: Batch, checkpointing: bool = False
) -> int:
    """What autograd keeps of one pass through the trunk until its backward pass.

    With checkpointing that is the input of each layer, and of the last norm; a layer's own tensors come back one layer
    at a time (`saved_by_layer`).
    """
    # around the layers: what the head reads, cosine and sine
    around = (model.hidden + 2 * model.head_dim) * precision.weights * batch.tokens
    if checkpointing:
        states = model.layers * model.hidden * precision.weights + 4 * model.hidden + 4
        return states * batch.tokens + around
    # the last norm keeps its input, but the very first one none: embeddings do not learn
    return model.layers * saved_by_layer(model, precision, adapter, batch) + around


def saved_by_layer(model: Architecture, precision: Precision, adapter: Adapter | None, batch: Batch) -> int:
    """What autograd keeps of one layer."""
    each = _saved_by_token(model, precision, adapter, batch.length) * batch.tokens
    return int(each) + _cast_weights(model, precision, adapter) // model.layers


def _saved_by_token(model: Architecture, precision: Precision, adapter: Adapter | None, length: int) -> float:
    """Bytes a token of one layer, in sequences of `length`.

    RMSNorm, twice: its input in float32 (for the square and for the product, one storage) and 1/rms. A frozen linear
    layer keeps nothing of its input. Attention (SDPA): q, k, v, its output, the logarithm of the softmax's sum, and
    the mask, which every layer casts anew; k and v are repeated for all heads where there is a mask. SwiGLU: gate,
    silu(gate), up. LoRA: the input of each A, and of each B. Inputs are shared (q, k, v read one tensor) unless each
    layer casts its own: to bfloat16 under autocast, to float32 on a 16-bit base without it. In the short forms a norm
    keeps its input as it came, SwiGLU gate and up, and LoRA casts nothing on a 16-bit base.
    """
    h, i, c = model.hidden, model.intermediate, precision.compute
    across, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    norms = 2 * ((precision.weights if precision.lean else 4) * h + 4)
    if model.attention.startswith("flash"):
        attention = c * (2 * across + 2 * kv) + 4 * model.heads
    elif model.attention == SHORT_ROWS:  # q, k, v, the softmax
        attention = c * (across + 2 * kv) + c * model.heads * length
    elif model.attention == "eager":  # the softmax in float32, and as the products take it
        attention = c * 4 * across + model.heads * length * (4 + (c if c < 4 else 0))
    else:
        attention = c * 4 * across + 4 * model.heads + c * length
    mlp = (2 if precision.lean else 3) * i * c
    if adapter is None:  # the weights themselves learn: inputs of all layers, and the normed states of both norms
        return norms + attention + mlp + c * (2 * h + i) + 2 * 4 * h
    size = 2 if precision.autocast else 4
    casts = precision.autocast or precision.weights == 2
    if precision.lean and not precision.bits:
        size, casts = c, precision.autocast and precision.weights == 4
    kept = not casts and model.attention != SHORT_ROWS  # attention keeps its output, which o_proj reads
    inputs, layers = {}, adapter.on(model)
    for name, width, _ in layers:
        block, _, leaf = name.rpartition(".")
        inputs[name if casts else (block, _SHARED.get(leaf, leaf))] = 0 if leaf == "o_proj" and kept else width
    per_layer = (sum(inputs.values()) + len(layers) * adapter.rank) / model.layers
    return norms + attention + mlp + size * per_layer


def _cast_weights(model: Architecture, precision: Precision, adapter: Adapter | None) -> int:
    """Autocast's 16-bit copies of float32 weights, which the backward pass reads: adapters (not in the short form);
    and a float32 base, whose frozen weights it does not cache but autograd keeps."""
    if not precision.autocast:
        return 0
    if precision.lean and not precision.bits:
        adapter = None
    whole = model.in_linears if precision.weights == 4 and precision.bits is None else 0
    return 2 * (whole + (adapter.parameters(model) if adapter else 0))


def layer_backward(model: Architecture, precision: Precision, batch: Batch) -> int:
    """Gradients alive at once inside the backward pass of one layer, above what is saved.

    They are most in SwiGLU: of the product through the base, through the adapter and their sum, (tokens, intermediate)
    each, beside the gradient of the layer's output.
    """
    return batch.tokens * (3 * model.intermediate * precision.compute + 2 * model.hidden * precision.weights)


def head(
    model: Architecture, precision: Precision, batch: Batch, cuda: bool, backward: bool = True, entropy: bool = True
) -> int:
    """Log-probabilities from tiles, never (tokens, words): by our own head (pipeline/models/head.py) or TRL's.

    Ours scores completions alone. A tile has the logits in float32, their exponentials, and these once more in 16 bits
    where the products are in 16 bits; the states of all tokens and their gradient stand beside it.

    TRL's has tiles of at most 4096 tokens x 32768 words.
    In the backward pass a CUDA kernel works inside the tile (as wide as 32768 whatever the vocabulary). Elsewhere
    torch keeps beside the tile, in float32, logits, scaled logits, log p, p and the gradient, a mask, and two more
    while it adds the gradient of log p, three with that of the entropy; in the forward pass three. Elsewhere every
    position is scored, on CUDA those of completions alone.
    """
    if not model.vocab:
        return 0
    if precision.lean and not cuda and not entropy:
        tokens = batch.rows * (batch.completion or batch.length)
        tile = min(tokens, max(1, LOGITS_AT_ONCE // model.vocab)) * model.vocab * (8 + 2 * (precision.compute < 4))
        return tile + (3 if backward else 1) * tokens * model.hidden * precision.compute
    tokens = batch.rows * (batch.completion if cuda and batch.completion else batch.length)
    n, words = min(tokens, _HEAD_TOKENS), min(model.vocab, _HEAD_WORDS)
    if cuda:
        tile = n * _HEAD_WORDS * precision.compute
    else:
        tile = n * words * (precision.compute + ((33 if entropy else 29) if backward else 12))
    return tile + (4 * tokens * model.hidden if backward else 0)


def forward(model: Architecture, precision: Precision, adapter: Adapter | None, batch: Batch) -> int:
    """A pass through the trunk without gradient: one layer's tensors, most of them in SwiGLU (gate, silu(gate), up as
    it comes from the base and with the adapter's part), and the states between the layers."""
    wide = 3 + (adapter is not None)
    return batch.tokens * (wide * model.intermediate * precision.compute + 3 * model.hidden * precision.weights)


def kv_cache(model: Architecture, precision: Precision, batch: Batch) -> int:
    """Keys and values of every layer for every token: 2 x layers x kv heads x head size numbers a token."""
    return 2 * model.layers * model.kv_heads * model.head_dim * precision.compute * batch.tokens


def generation(model: Architecture, precision: Precision, adapter: Adapter | None, batch: Batch) -> int:
    """All rows at once: the cache at its longest, a layer's old one while it grows, and either the pass over the
    prompts or the last step's logits (in float32, scaled, as probabilities, and summed for the draw)."""
    cache = kv_cache(model, precision, batch)
    prompts = forward(model, precision, adapter, Batch(batch.rows, batch.prompt))
    return cache + cache // model.layers + max(prompts, batch.rows * model.vocab * 16)


def exam_logits(model: Architecture, precision: Precision, batch: Batch) -> int:
    """What evaluation.logprobs holds at once: logits as they come, in float32 (if they are not), over temperature and
    log-softmax of them, for as many rows as LOGITS numbers are, but one at least."""
    row = (batch.completion + 1) * model.vocab
    return min(batch.rows, max(1, LOGITS // row)) * row * (precision.compute + 12)


# ------------------------------------------------------------ a whole run
@dataclass(frozen=True)
class Estimate:
    """Bytes by role. `stays`: base, adapters, gradients + optimizer; `passes`: of these the largest counts."""

    stays: dict[str, int]
    passes: dict[str, int]
    adapters: str = ""  # whose they are

    @property
    def total(self) -> int:
        return sum(self.stays.values()) + max(self.passes.values())


def training(
    model: Architecture,
    precision: Precision,
    adapter: Adapter | None,
    batch: Batch,
    checkpointing: bool,
    cuda: bool,
    trunks: int = 1,
    entropy: bool = True,
) -> int:
    """The peak of forward and backward over one micro-batch, above what stays.

    `trunks`: passes through the trunk whose activations are alive together. `entropy`: the loss has its gradient, too.
    Either the head's backward pass is the peak, or the first layer's that comes after it.
    """
    kept = saved(model, precision, adapter, batch, checkpointing)
    first = layer_backward(model, precision, batch)
    if checkpointing:
        first += saved_by_layer(model, precision, adapter, batch)
    return max(trunks * kept + first, kept + head(model, precision, batch, cuda, entropy=entropy))


def estimate(
    model: Architecture,
    precision: Precision,
    adapter: Adapter | None,
    batch: Batch,
    *,
    learning: int = 1,
    frozen: int = 0,
    heads: int = 0,
    rollout: Batch | None = None,
    exam: Batch | None = None,
    optim: str = "adamw_torch",
    checkpointing: bool = False,
    cuda: bool = False,
    trunks: int = 1,
    entropy: bool = True,
) -> Estimate:
    """Estimate of one run.

    Args:
        adapter: None when all weights learn.
        batch: one micro-batch of training.
        learning, frozen: adapters of each kind (PPO: policy and critic learn, the reference is frozen).
        heads: score and value heads that learn, (hidden + 1) float32 numbers each.
        rollout, exam: what is generated at once, in training and for held-out prompts; None: nothing.
        trunks, entropy: as in `training`.
    """
    size = 4 if adapter else precision.weights
    each = adapter.parameters(model) if adapter else 0
    trained = (learning * each if adapter else model.parameters) + heads * (model.hidden + 1)
    stays = {"base": base(model, precision)}
    if adapter:
        stays["adapters"] = 4 * (each * (learning + frozen) + heads * (model.hidden + 1))
    stays["gradients and optimizer"] = optimizer(trained, optim, size)
    passes = {"training": training(model, precision, adapter, batch, checkpointing, cuda, trunks, entropy)}
    if rollout is not None:
        passes["generation"] = generation(model, precision, adapter, rollout)
        look = forward(model, precision, adapter, batch) + batch.tokens * model.hidden * precision.weights
        passes["log-probabilities"] = look + head(model, precision, batch, cuda, backward=False, entropy=entropy)
    if exam is not None:
        look = forward(model, precision, adapter, exam) + exam_logits(model, precision, exam)
        passes["held-out prompts"] = max(generation(model, precision, adapter, exam), look)
    return Estimate(stays, passes)
