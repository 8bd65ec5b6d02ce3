"""What a run would take on several processes, in memory, time and network, worked out before there is a machine:

    python -m pipeline.scale 0.5B 7B 70B --processes 8

Models are 0.5B (Qwen2.5), 7B and 70B (Llama 2), or folders and Hub names, of which only the config is read. Memory is
the estimate that every stage prints (estimate.py). Time counts multiplications and divides them by the speed
that is given; network is what ring algorithms send. Both are arithmetic on stated assumptions, not measurements; that
they count right is held to real runs by tests/memory/test_scale.py and tests/stages/test_launchers.py.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from transformers import AutoConfig, LlamaConfig, PreTrainedConfig, Qwen2Config

from pipeline import cli
from pipeline.errors import UserError
from pipeline.memory import estimate as memory
from pipeline.memory.estimate import Adapter, Architecture, Batch, Precision

GIB = 2**30
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


def vllm(model: Architecture, precision: Precision) -> float:
    """Bytes that go to each worker of a vLLM server before a rollout: all weights, the adapter added in."""
    return model.parameters * precision.weights


# ------------------------------------------------------------ tables
def tables(models: dict[str, Architecture], plan: Plan) -> Iterator[str]:
    """Markdown, a line each."""
    yield from _memory_by_role(models, plan)
    yield ""
    yield from _memory_by_launcher(models, plan)
    yield ""
    yield from _time(models, plan)
    yield ""
    yield from _network(models, plan)


def _memory_by_role(models, plan) -> Iterator[str]:
    yield f"Memory of one process that runs PPO, GiB ({_run(plan)}):"
    yield ""
    heads = ("base", "policy", "reference", "critic", "reward model", "gradients, optimizer", "training", "sampling")
    yield from _head("model", *heads, "in all")
    for name, precision, model in _each(models):
        found = of_stage("ppo", model, precision, plan)
        each, head = 4 * plan.adapter.parameters(model), 4 * (model.hidden + 1)
        roles = (found.stays["base"], each, each, each + head, each, found.stays["gradients and optimizer"])
        yield _row(
            name, *(_gib(x) for x in (*roles, found.passes["training"], found.passes["generation"], found.total))
        )


def _memory_by_launcher(models, plan) -> Iterator[str]:
    yield f"Memory of one process of {plan.processes}, by stage and launcher, GiB:"
    yield ""
    columns = [(stage, launcher) for stage in ("sft", "reward") for launcher in ("DDP", "ZeRO-2", "FSDP, ZeRO-3")]
    columns += [("ppo", "DDP"), ("ppo", "ZeRO-2")]
    yield from _head("model", *(f"{stage}, {launcher}" for stage, launcher in columns))
    for name, precision, model in _each(models):
        cells = []
        for stage, launcher in columns:
            size = under(launcher, of_stage(stage, model, precision, plan), model, precision, plan)
            cells.append("-" if size is None else _gib(size))
        yield _row(name, *cells)


def _time(models, plan) -> Iterator[str]:
    yield (
        f"Seconds of one PPO update by role, if a process makes {plan.flops:.3g} FLOP/s and reads "
        f"{plan.bandwidth:.3g} bytes/s ({_run(plan)}):"
    )
    yield ""
    first = True
    for name, precision, model in _each(models):
        found = seconds(model, precision, plan)
        if first:
            yield from _head("model", *found, "in all", "PFLOP")
            first = False
        total = sum(found.values())
        work = (total - found["sampling"]) * plan.flops / 1e15
        yield _row(name, *(_digits(x) for x in (*found.values(), total)), _digits(work))


def _network(models, plan) -> Iterator[str]:
    yield (
        f"Bytes that each of {plan.processes} processes sends in a PPO update ({plan.epochs} optimizer steps; SFT: "
        f"one step), and seconds at {plan.network:.3g} bytes/s:"
    )
    yield ""
    heads = (
        "PPO, DDP or ZeRO-2",
        "seconds",
        "weights to vLLM",
        "seconds",
        "SFT, DDP",
        "SFT, FSDP or ZeRO-3",
        "seconds",
    )
    yield from _head("model", *heads)
    for name, precision, model in _each(models):
        each = plan.adapter.parameters(model)
        update = plan.epochs * ddp(2 * each + model.hidden + 1, plan.processes)
        weights, step = vllm(model, precision), ddp(each, plan.processes)
        cells = [_bytes(update), _digits(update / plan.network), _bytes(weights), _digits(weights / plan.network)]
        cells.append(_bytes(step))
        if precision.bits:
            cells += ["-", "-"]
        else:
            shared = sharded(model, precision, plan.adapter, plan.processes)
            cells += [_bytes(shared), _digits(shared / plan.network)]
        yield _row(name, *cells)


def _each(models) -> Iterator[tuple[str, Precision, Architecture]]:
    for name, model in models.items():
        for kind, precision in PRECISIONS.items():
            yield f"{name} {kind}", precision, model


def _run(plan: Plan) -> str:
    return (
        f"{plan.rows} x {plan.prompt + plan.completion} tokens a micro-batch, {plan.episodes} completions, LoRA rank "
        f"{plan.rank}, gradient checkpointing"
    )


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield "|" + "---|" + "---:|" * (len(cells) - 1)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _gib(size: float) -> str:
    return _digits(size / GIB)


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000 or unit == "GiB":
            return f"{_digits(size)} {unit}"
        size /= 1024
    raise AssertionError


def _digits(x: float) -> str:
    """Three digits, but no more places than help: 0.0412, 4.12, 41.2, 412, 4,120."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


# ------------------------------------------------------------ command
class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (python -m pipeline.scale 0.5B 7B 70B; --help says more)")


def architecture(name: str) -> Architecture:
    """Of a size of `SIZES`, or of the config of a folder or Hub name."""
    if name in SIZES:
        return Architecture.of(SIZES[name])
    try:
        return Architecture.of(AutoConfig.from_pretrained(name))
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise UserError(
            f"{name} is none of {', '.join(SIZES)}, and no model's config can be read from it "
            f"({str(error).splitlines()[0][:200]})"
        ) from None


def main(argv: Sequence[str] | None = None) -> None:
    parser = _Parser(prog="python -m pipeline.scale", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("models", nargs="*", help="0.5B, 7B, 70B, a folder or a Hub name (default: those three)")
    for name, value in vars(Plan()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default: {value:g}")
    parser.add_argument("--debug", action="store_true", help="show the whole trace of an error")
    args = vars(parser.parse_args(argv))
    names = args.pop("models") or list(SIZES)
    args.pop("debug")
    for name, value in args.items():
        if not 0 < value < float("inf"):
            raise UserError(f"--{name} is {value}; give a number above 0")
    for line in tables({name: architecture(name) for name in names}, Plan(**args)):
        print(line)


if __name__ == "__main__":
    cli.launch(main)
